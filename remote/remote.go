// Package remote says who is at the other end of an HTTP request, and how much one address may ask for.
//
// An address is that of the connection, or, behind a trusted proxy, the one that the proxy names. IPv6 addresses count by their /64,
// because whoever has one has all of those.
package remote

import (
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Addr is the address that r comes from: that of the connection, or, if a trusted proxy holds the connection, the
// last address in X-Forwarded-For that is not a trusted proxy itself. It is the zero address if there is none to tell.
func Addr(r *http.Request, trusted []netip.Prefix) netip.Addr {
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

// Site is what addresses are counted by; the zero Prefix for the zero Addr.
func Site(a netip.Addr) netip.Prefix {
	a = a.Unmap()
	bits := a.BitLen()
	if a.Is6() {
		bits = 64
	}
	p, _ := a.Prefix(bits)
	return p
}

// Limiter bounds how often something may happen per site. It is safe for concurrent use.
type Limiter struct {
	perSecond rate.Limit
	burst     int

	mu    sync.Mutex
	rates map[netip.Prefix]*rate.Limiter // guarded by mu
	swept time.Time                      // guarded by mu: when idle rates were last dropped
}

// NewLimiter lets something happen perMinute times a minute, and burst times at once.
func NewLimiter(perMinute float64, burst int) *Limiter {
	return &Limiter{perSecond: rate.Limit(perMinute / 60), burst: burst, rates: map[netip.Prefix]*rate.Limiter{}}
}

// Take counts one more from a at now and returns 0, or, if that would be too many, counts nothing and returns how long to wait.
func (l *Limiter) Take(a netip.Addr, now time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.rateLocked(a, now)
	res := r.ReserveN(now, 1)
	wait := res.DelayFrom(now)
	if wait > 0 {
		res.CancelAt(now)
	}
	return wait
}

// Wait is how long a would have to wait for Take at now. It counts nothing.
func (l *Limiter) Wait(a netip.Addr, now time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.rates[Site(a)]
	if r == nil {
		return 0
	}
	if missing := 1 - r.TokensAt(now); missing > 0 {
		return time.Duration(missing / float64(l.perSecond) * float64(time.Second))
	}
	return 0
}

func (l *Limiter) rateLocked(a netip.Addr, now time.Time) *rate.Limiter {
	if now.Sub(l.swept) > time.Minute { // a limiter whose bucket is full again says nothing
		for p, r := range l.rates {
			if r.TokensAt(now) >= float64(l.burst) {
				delete(l.rates, p)
			}
		}
		l.swept = now
	}
	r := l.rates[Site(a)]
	if r == nil {
		r = rate.NewLimiter(l.perSecond, l.burst)
		l.rates[Site(a)] = r
	}
	return r
}
