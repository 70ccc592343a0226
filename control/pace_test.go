package control

import (
	"context"
	"errors"
	"net/http"
	"testing"
	"time"

	"golang.org/x/time/rate"

	"github.com/skein-vpn/skein/tailnet"
)

// A node has its budget at once; after that it waits, up to a point, and others don't.
func TestBudget(t *testing.T) {
	b := newBudget(60)
	now := time.Unix(1000, 0)
	for i := range 60 {
		if wait, ok := b.take(1, now); wait != 0 || !ok {
			t.Fatalf("request %d of the budget: wait %v, %v", i+1, wait, ok)
		}
	}
	for i := 1; i <= 10; i++ {
		if wait, ok := b.take(1, now); wait != time.Duration(i)*time.Second || !ok {
			t.Errorf("request %d over the budget: wait %v, %v", i, wait, ok)
		}
	}
	for range 3 { // asking in vain costs nothing
		if wait, ok := b.take(1, now); wait != 11*time.Second || ok {
			t.Errorf("request 11 over the budget: wait %v, %v", wait, ok)
		}
	}
	if wait, ok := b.take(2, now); wait != 0 || !ok {
		t.Errorf("another node: wait %v, %v", wait, ok)
	}
	later := now.Add(3 * time.Minute)
	if wait, ok := b.take(3, later); wait != 0 || !ok {
		t.Errorf("a third node, later: wait %v, %v", wait, ok)
	}
	if len(b.rates) != 1 {
		t.Errorf("%d nodes are remembered, want 1", len(b.rates))
	}
}

func TestHold(t *testing.T) {
	s := &Server{}
	b := newBudget(6000)
	fill := func() {
		for wait := time.Duration(0); wait == 0; {
			wait, _ = b.take(1, time.Now())
		}
	}
	fill()
	if err := s.hold(t.Context(), b, 1, nil); err != nil {
		t.Error(err)
	}
	b.perMinute = 60
	b.rates = map[tailnet.NodeID]*rate.Limiter{}
	fill()
	replaced := make(chan struct{})
	close(replaced)
	if err := s.hold(t.Context(), b, 1, replaced); !errors.Is(err, errReplaced) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.hold(ctx, b, 1, nil); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if n := s.counters.HeldBack.Load(); n < 2 {
		t.Errorf("%d were held back", n)
	}
}

// Who asks for too many maps, or reports something new in a loop, is refused; another node does not notice.
func TestTooMany(t *testing.T) {
	ts := newServer(t, func(o *Options) { o.Limits = Limits{MapsPerMinute: 2, ReportsPerMinute: 2} })
	wild, calm := ts.joined("wild"), ts.joined("calm")
	get := func(c *client, stream bool) int {
		req := c.streamRequest()
		req.Stream, req.ReadOnly = stream, !stream
		status, _, _ := c.do(http.MethodPost, "/machine/map", req)
		return status
	}
	if a, b, c, d := get(wild, false), get(wild, false), get(wild, false), get(wild, true); a != 200 || b != 200 || c != 429 || d != 429 {
		t.Errorf("maps are answered with %d, %d, %d and a stream with %d", a, b, c, d)
	}
	if got := get(calm, false); got != 200 {
		t.Errorf("another node's map is answered with %d", got)
	}
	if n := ts.control.Counters().TooMany.Load(); n != 2 {
		t.Errorf("%d are counted as too many", n)
	}
}
