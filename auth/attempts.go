package auth

import (
	"net/netip"
	"sync"
	"time"

	"github.com/skein-vpn/skein/tailnet"
)

// allowance is how many attempts may be made at once, and the time after which one more may.
type allowance struct {
	burst int
	every time.Duration
}

// How often somebody may fail to sign in; attempts that succeed do not count.
var (
	perAddress = allowance{20, 10 * time.Second} // IPv6 addresses count by their /64
	perAccount = allowance{10, time.Minute}      // for one name, from wherever
)

const maxAttempts = 20000 // addresses and names that are remembered; what comes beyond shares one allowance

// WaitError is an Exhausted error that says when to try again.
type WaitError struct {
	Err  *tailnet.Error
	Wait time.Duration
}

func (e *WaitError) Error() string { return e.Err.Error() }
func (e *WaitError) Unwrap() error { return e.Err }

// attempts counts attempts to sign in. Each server counts for itself. (golang.org/x/time/rate cannot take an attempt back.)
type attempts struct {
	mu        sync.Mutex
	addresses map[netip.Prefix]*bucket // guarded by mu
	accounts  map[string]*bucket       // guarded by mu
	swept     time.Time                // guarded by mu: when full buckets were last dropped
}

// bucket holds what is left of an allowance.
type bucket struct {
	allowance
	left float64
	at   time.Time // when left was true
}

func newAttempts() *attempts {
	return &attempts{addresses: map[netip.Prefix]*bucket{}, accounts: map[string]*bucket{}}
}

// begin counts an attempt and returns what takes it back, or a WaitError. An empty account counts for the address only.
func (t *attempts) begin(now time.Time, remote netip.Addr, account string) (succeed func(), err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if now.Sub(t.swept) > time.Minute {
		sweep(t.addresses, now)
		sweep(t.accounts, now)
		t.swept = now
	}
	buckets := []*bucket{take(t.addresses, site(remote), perAddress, now)}
	if account != "" {
		buckets = append(buckets, take(t.accounts, account, perAccount, now))
	}
	var wait time.Duration
	for _, b := range buckets {
		if b.left < 1 {
			wait = max(wait, time.Duration((1-b.left)*float64(b.every)))
		}
	}
	if wait > 0 {
		wait = wait.Truncate(time.Second) + time.Second
		return nil, &WaitError{Wait: wait, Err: tailnet.Errorf(tailnet.Exhausted, "too many attempts to sign in; try again in %s", wait)}
	}
	for _, b := range buckets {
		b.left--
	}
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		for _, b := range buckets {
			b.left++
		}
	}, nil
}

// take is the bucket of k, filled up to now.
func take[K comparable](m map[K]*bucket, k K, a allowance, now time.Time) *bucket {
	b := m[k]
	if b == nil && len(m) >= maxAttempts {
		var shared K
		k = shared
		b = m[k]
	}
	if b == nil {
		b = &bucket{allowance: a, left: float64(a.burst), at: now}
		m[k] = b
	}
	b.fill(now)
	return b
}

func (b *bucket) fill(now time.Time) {
	if d := now.Sub(b.at); d > 0 {
		b.left = min(float64(b.burst), b.left+float64(d)/float64(b.every))
		b.at = now
	}
}

// sweep drops buckets that are full: they say nothing.
func sweep[K comparable](m map[K]*bucket, now time.Time) {
	for k, b := range m {
		if b.fill(now); b.left >= float64(b.burst) {
			delete(m, k)
		}
	}
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
