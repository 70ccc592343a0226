package control

import (
	"net/netip"
	"sync"
	"time"

	"github.com/skein-vpn/skein/remote"
)

// Limits bound what one address or one node may take. IPv6 addresses count by their /64. 0 is the default.
type Limits struct {
	Connections            int // of an address: open Noise connections
	RegistrationsPerMinute int // of an address: register requests; a burst of twice as many is allowed
	MapsPerMinute          int // of a node: full maps; see pace.go
	ReportsPerMinute       int // of a node: reports in which something is new
}

const (
	DefaultMapsPerMinute          = 60
	DefaultReportsPerMinute       = 120
	DefaultConnections            = 20000 // a carrier's NAT, or a simulator, shows many clients as one address
	DefaultRegistrationsPerMinute = 3000
)

// auditsPerMinute is how many audit messages of clients are taken from one address; each is a commit.
const auditsPerMinute = 20

// limiter counts by address and by node.
type limiter struct {
	o             Limits
	registrations *remote.Limiter
	audits        *remote.Limiter
	maps, reports *budget

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
	if o.MapsPerMinute == 0 {
		o.MapsPerMinute = DefaultMapsPerMinute
	}
	if o.ReportsPerMinute == 0 {
		o.ReportsPerMinute = DefaultReportsPerMinute
	}
	per := o.RegistrationsPerMinute
	return &limiter{
		o: o, registrations: remote.NewLimiter(float64(per), 2*per), audits: remote.NewLimiter(auditsPerMinute, 3*auditsPerMinute),
		maps: newBudget(o.MapsPerMinute), reports: newBudget(o.ReportsPerMinute), conns: map[netip.Prefix]int{},
	}
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
