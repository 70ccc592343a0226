package control

import (
	"net/netip"
	"sync"
	"time"

	"github.com/skein-vpn/skein/remote"
)

// Limits bound what one address may take. IPv6 addresses count by their /64. 0 is the default.
type Limits struct {
	Connections            int // open Noise connections
	RegistrationsPerMinute int // register requests; a burst of twice as many is allowed
}

const (
	DefaultConnections            = 20000 // a carrier's NAT, or a simulator, shows many clients as one address
	DefaultRegistrationsPerMinute = 3000
)

// limiter counts by address.
type limiter struct {
	o             Limits
	registrations *remote.Limiter

	mu    sync.Mutex
	conns map[netip.Prefix]int // guarded by mu
}

func newLimiter(o Limits) *limiter {
	if o.Connections == 0 {
		o.Connections = DefaultConnections
	}
	if o.RegistrationsPerMinute == 0 {
		o.RegistrationsPerMinute = DefaultRegistrationsPerMinute
	}
	per := o.RegistrationsPerMinute
	return &limiter{o: o, registrations: remote.NewLimiter(float64(per), 2*per), conns: map[netip.Prefix]int{}}
}

// connect counts a connection and reports whether it may stay; if so, disconnect must follow.
func (l *limiter) connect(a netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conns[remote.Site(a)] >= l.o.Connections {
		return false
	}
	l.conns[remote.Site(a)]++
	return true
}

func (l *limiter) disconnect(a netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conns[remote.Site(a)]--; l.conns[remote.Site(a)] <= 0 {
		delete(l.conns, remote.Site(a))
	}
}

// register counts a register request and returns how long the caller should wait; 0 lets it through.
func (l *limiter) register(a netip.Addr) time.Duration { return l.registrations.Take(a, time.Now()) }
