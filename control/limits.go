package control

import (
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"
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
	o Limits

	mu    sync.Mutex
	conns map[netip.Prefix]int           // guarded by mu
	rates map[netip.Prefix]*rate.Limiter // guarded by mu
	swept time.Time                      // guarded by mu: when idle rates were last dropped
}

func newLimiter(o Limits) *limiter {
	if o.Connections == 0 {
		o.Connections = DefaultConnections
	}
	if o.RegistrationsPerMinute == 0 {
		o.RegistrationsPerMinute = DefaultRegistrationsPerMinute
	}
	return &limiter{o: o, conns: map[netip.Prefix]int{}, rates: map[netip.Prefix]*rate.Limiter{}, swept: time.Now()}
}

// site is what addresses are counted by.
func site(a netip.Addr) netip.Prefix {
	a = a.Unmap()
	bits := a.BitLen()
	if a.Is6() {
		bits = 64
	}
	p, _ := a.Prefix(bits)
	return p
}

// connect counts a connection and reports whether it may stay; if so, disconnect must follow.
func (l *limiter) connect(a netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conns[site(a)] >= l.o.Connections {
		return false
	}
	l.conns[site(a)]++
	return true
}

func (l *limiter) disconnect(a netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conns[site(a)]--; l.conns[site(a)] <= 0 {
		delete(l.conns, site(a))
	}
}

// register counts a register request and returns how long the caller should wait; 0 lets it through.
func (l *limiter) register(a netip.Addr) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	burst := 2 * l.o.RegistrationsPerMinute
	if now.Sub(l.swept) > time.Minute { // a limiter whose bucket is full again says nothing
		for p, r := range l.rates {
			if r.TokensAt(now) >= float64(burst) {
				delete(l.rates, p)
			}
		}
		l.swept = now
	}
	r := l.rates[site(a)]
	if r == nil {
		r = rate.NewLimiter(rate.Limit(float64(l.o.RegistrationsPerMinute)/60), burst)
		l.rates[site(a)] = r
	}
	res := r.ReserveN(now, 1)
	wait := res.DelayFrom(now)
	if wait > 0 {
		res.CancelAt(now)
	}
	return wait
}

// remoteAddr is the address that r comes from: that of the connection, or, if a trusted proxy holds the connection, the
// last address in X-Forwarded-For that is not a trusted proxy itself. It is the zero address if there is none to tell.
func remoteAddr(r *http.Request, trusted []netip.Prefix) netip.Addr {
	ap, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	addr := ap.Addr().Unmap()
	hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for i := len(hops) - 1; i >= 0 && isTrusted(addr, trusted); i-- {
		hop, err := netip.ParseAddr(strings.TrimSpace(hops[i]))
		if err != nil {
			break
		}
		addr = hop.Unmap()
	}
	return addr
}

func isTrusted(a netip.Addr, trusted []netip.Prefix) bool {
	for _, p := range trusted {
		if p.Contains(a) {
			return true
		}
	}
	return false
}
