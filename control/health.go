package control

import (
	"sync"
	"time"

	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// health is what the probes of one router have shown.
type health struct {
	mu    sync.Mutex
	last  time.Time // guarded by mu: of the last answer, or when probing began
	since time.Time // guarded by mu: answers have come without a gap since then
}

func newHealth(now time.Time) *health { return &health{last: now, since: now} }

func (h *health) answered(now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.last = now
}

// state reports whether the router has failed, and whether it has been well for so long that it is steady.
func (h *health) state(now time.Time, o ProbeOptions) (failing, steady bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if failing = now.Sub(h.last) >= o.Fail; failing {
		h.since = now
	}
	return failing, now.Sub(h.since) >= o.Steady
}

func setHealth(id tailnet.NodeID, failing, steady bool) func(*state.Tx) error {
	return func(tx *state.Tx) error {
		tx.SetFailing(id, failing)
		if steady {
			tx.SetSteady(id)
		}
		return nil
	}
}
