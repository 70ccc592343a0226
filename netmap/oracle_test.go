package netmap

import (
	"testing"

	"go.uber.org/goleak"
	"pgregory.net/rapid"
	"tailscale.com/tailcfg"

	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/state/statetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// session is one client with its open stream.
type session struct {
	v    Viewer
	last *state.Snapshot // that it was sent
	c    *client
}

// step brings the session to sn as control does, and checks that what its client then knows is what sn says.
func (s *session) step(t *rapid.T, w *world, sn *state.Snapshot) {
	nothing := w.enc.Look(sn).Nothing(s.last, s.v)
	if f, ok := w.enc.Delta(s.last, sn, s.v); ok {
		if nothing {
			t.Fatalf("node %d is said to be told nothing", s.v.Node)
		}
		if err := s.c.receive(f); err != nil {
			r, _ := decodeFrame(frameBytes(f), s.v.Compress)
			t.Fatalf("node %d: %v, in %s", s.v.Node, err, asText(r))
		}
	}
	s.last = sn
	if err := s.c.sameAs(w.full(sn, s.v)); err != nil {
		t.Fatalf("node %d (version %d): %v", s.v.Node, s.v.Capver, err)
	}
	if _, ok := w.enc.Delta(sn, sn, s.v); ok {
		t.Fatalf("node %d: there is a delta from a snapshot to itself", s.v.Node)
	}
}

// A full map with deltas applied to it says the same as the next full map: for every viewer, whatever changes, however
// many snapshots it skips, in both encodings, and whatever version it has.
func TestDeltasEqualFullMaps(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t, statetest.New())
		var sessions []*session
		for range rapid.IntRange(1, 30).Draw(t, "changes") {
			w.randomChange(t)
			sn := w.snapshot()
			var live []*session
			for _, s := range sessions {
				if sn.Node(s.v.Node) == nil {
					continue // deleted: control tells it by Gone
				}
				live = append(live, s)
				switch rapid.IntRange(0, 5).Draw(t, "session") {
				case 0, 1, 2:
					s.step(t, w, sn)
				case 3: // it connects anew, perhaps after an update of its software
					s.v.Capver = rapid.SampledFrom([]tailcfg.CapabilityVersion{113, 130, 142, 200}).Draw(t, "capver")
					s.last, s.c = sn, w.full(sn, s.v)
				}
			}
			sessions = live
			if ns := sn.Nodes(); len(ns) > 0 && rapid.Bool().Draw(t, "connect") {
				v := Viewer{
					Node:     ns[rapid.IntRange(0, len(ns)-1).Draw(t, "viewer")].ID,
					Capver:   rapid.SampledFrom([]tailcfg.CapabilityVersion{113, 130, 142, 200}).Draw(t, "capver"),
					Compress: rapid.Bool().Draw(t, "compress"),
				}
				sessions = append(sessions, &session{v: v, last: sn, c: w.full(sn, v)})
			}
		}
		sn := w.snapshot()
		for _, s := range sessions {
			if sn.Node(s.v.Node) != nil {
				s.step(t, w, sn)
			}
		}
	})
}
