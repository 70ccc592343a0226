package control

import (
	"context"
	"errors"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/skein-vpn/skein/tailnet"
)

// A node that has run wild, or wants to do harm, asks for one full map after the other, or reports new endpoints in a loop, of
// which all others must be told. The others should not notice, but one on a bad line should not be cut off: so a node that
// has used up its budget is kept waiting, which a client takes for a slow server, and refused only when many of its
// requests wait already.

// budget lets each node do something so many times in a minute, all at once if it likes.
type budget struct {
	perMinute int

	mu    sync.Mutex
	rates map[tailnet.NodeID]*rate.Limiter // guarded by mu
	swept time.Time                        // guarded by mu: when idle rates were last dropped
}

func newBudget(perMinute int) *budget {
	return &budget{perMinute: perMinute, rates: map[tailnet.NodeID]*rate.Limiter{}}
}

// maxHeldBack is how long a request waits at the most; one that would have to wait longer is refused.
const maxHeldBack = 10 * time.Second

// Why a request is not served.
var (
	errTooMany  = tailnet.Errorf(tailnet.Exhausted, "this node asks for too much in too short a time; try again in a minute")
	errReplaced = errors.New("another stream of the node has begun")
)

// take returns how long a node must wait at now before it does it once more. ok is false if that is too long; then nothing is
// counted.
func (b *budget) take(id tailnet.NodeID, now time.Time) (wait time.Duration, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if now.Sub(b.swept) > time.Minute { // a rate whose bucket is full again says nothing
		for id, r := range b.rates {
			if r.TokensAt(now) >= float64(b.perMinute) {
				delete(b.rates, id)
			}
		}
		b.swept = now
	}
	r := b.rates[id]
	if r == nil {
		r = rate.NewLimiter(rate.Limit(float64(b.perMinute)/60), b.perMinute)
		b.rates[id] = r
	}
	res := r.ReserveN(now, 1)
	if wait = res.DelayFrom(now); wait > maxHeldBack {
		res.CancelAt(now)
		return wait, false
	}
	return wait, true
}

// hold waits until a node may do it once more. It gives up when ctx ends, when replaced is closed (nil: never), and at once if
// it would take too long.
func (s *Server) hold(ctx context.Context, b *budget, id tailnet.NodeID, replaced <-chan struct{}) error {
	wait, ok := b.take(id, time.Now())
	switch {
	case !ok:
		s.counters.TooMany.Add(1)
		return errTooMany
	case wait == 0:
		return nil
	}
	s.counters.HeldBack.Add(1)
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-replaced:
		return errReplaced
	case <-ctx.Done():
		return ctx.Err()
	}
}
