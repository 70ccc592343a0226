package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/skein-vpn/skein/api"
	"github.com/skein-vpn/skein/state"
)

// How the server looks at itself.
const (
	healthKept    = 2 * time.Second // a verdict is told to everybody who asks within that time
	healthTimeout = 5 * time.Second // for all checks together
)

// healthCheck is one thing that must be well. The error is for administrators.
type healthCheck struct {
	name string
	run  func(context.Context) error
}

// health is how the server is: looked at when somebody asks, but however many ask, not more than once in healthKept.
type health struct {
	checks []healthCheck
	log    *slog.Logger // is told when something goes wrong, and when it is well again
	now    func() time.Time

	look chan struct{} // one slot: taken while it is looked
	mu   sync.Mutex
	last []api.HealthCheck // guarded by mu
	at   time.Time         // guarded by mu; zero: never
}

// newHealth is what the server is asked for by load balancers, containers and `skein health`.
func (s *server) newHealth() *health {
	h := &health{now: time.Now, log: s.log, look: make(chan struct{}, 1)}
	add := func(name string, f func(context.Context) error) { h.checks = append(h.checks, healthCheck{name, f}) }
	if s.cluster != nil {
		add("cluster", func(context.Context) error { return s.cluster.Health() }) // not stepped aside, and what others do is followed
	}
	add("database", s.db.Health)
	add("changes", func(ctx context.Context) error { // the writer takes what is to be done; it commits nothing
		return s.state.Update(ctx, "health check", func(*state.Tx) error { return nil })
	})
	if s.relay != nil {
		add("relay", func(ctx context.Context) error { return s.ask(ctx, "/derp/probe") })
	}
	if s.stun != nil {
		add("stun", func(ctx context.Context) error {
			_, err := askSTUNAt(ctx, loopbackOf(s.stun.Addr()).String())
			return err
		})
	}
	return h
}

// check is the verdict: at most healthKept old, or new. It waits for a look that is under way, for as long as ctx lets it.
func (h *health) check(ctx context.Context) []api.HealthCheck {
	if last := h.kept(); last != nil {
		return last
	}
	select {
	case h.look <- struct{}{}:
		defer func() { <-h.look }()
	case <-ctx.Done():
		return []api.HealthCheck{{Name: "server", Error: "the checks take too long"}}
	}
	if last := h.kept(); last != nil {
		return last
	}
	return h.lookNow() // whoever asked first may go meanwhile: what others are told must not fail for that
}

func (h *health) kept() []api.HealthCheck {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.at.IsZero() || h.now().Sub(h.at) >= healthKept {
		return nil
	}
	return h.last
}

// lookNow runs all checks at once, and says in the log what has become different.
func (h *health) lookNow() []api.HealthCheck {
	ctx, cancel := context.WithTimeout(context.Background(), healthTimeout)
	defer cancel()
	out := make([]api.HealthCheck, len(h.checks))
	var wg sync.WaitGroup
	for i, c := range h.checks {
		out[i].Name = c.name
		wg.Go(func() {
			err := c.run(ctx)
			if errors.Is(err, context.DeadlineExceeded) {
				err = fmt.Errorf("no answer within %s", healthTimeout)
			}
			if err != nil {
				out[i].Error = err.Error()
			}
		})
	}
	wg.Wait()
	h.mu.Lock()
	defer h.mu.Unlock()
	for i, c := range out {
		was := ""
		if h.last != nil {
			was = h.last[i].Error
		}
		if c.Error != "" && was == "" {
			h.log.Error("the server is not well", "check", c.Name, "err", c.Error)
		} else if c.Error == "" && was != "" {
			h.log.Info("the server is well again", "check", c.Name)
		}
	}
	h.last, h.at = out, h.now()
	return out
}

// loopbackOf is where this machine itself reaches what listens at addr.
func loopbackOf(addr netip.AddrPort) netip.AddrPort {
	if !addr.Addr().IsUnspecified() {
		return addr
	}
	if addr.Addr().Is4() {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), addr.Port())
	}
	return netip.AddrPortFrom(netip.IPv6Loopback(), addr.Port())
}

// serveHealth tells strangers whether the server is well, and nothing else.
func (s *server) serveHealth(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Content-Type", "application/health+json")
	if err := api.Unwell(s.health.check(r.Context())); err != nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		fmt.Fprintln(w, `{"status":"fail"}`)
		return
	}
	fmt.Fprintln(w, `{"status":"pass"}`)
}
