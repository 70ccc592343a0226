package control

import (
	"fmt"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/skein-vpn/skein/netmap"
	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// three are nodes of which the first sees the last one, and the second sees nobody.
func (ts *testServer) three() (sees, blind, seen tailnet.NodeID) {
	ts.t.Helper()
	sees, blind, seen = ts.joined("sees").id(), ts.joined("blind").id(), ts.joined("seen").id()
	sn := ts.state.Snapshot()
	ts.setPolicy(fmt.Sprintf(`{"acls": [{"action": "accept", "src": [%q], "dst": ["%s:*"]}]}`, sn.Node(sees).IPv4, sn.Node(seen).IPv4))
	ts.began(ts.state.Snapshot())
	return sees, blind, seen
}

// changed is the snapshot in which the peers of a node are told something else about it, when its round has begun.
func (ts *testServer) changed(id tailnet.NodeID) *state.Snapshot {
	ts.t.Helper()
	ts.change(id, func(n *tailnet.Node) { n.HomeDERP++ })
	sn := ts.state.Snapshot()
	ts.began(sn)
	return sn
}

// began waits until a round has begun for sn or a newer snapshot.
func (ts *testServer) began(sn *state.Snapshot) {
	ts.t.Helper()
	deadline := time.Now().Add(patience)
	for ts.control.round.Load().seq < sn.Seq {
		if time.Now().After(deadline) {
			ts.t.Fatalf("no round for snapshot %d; the last one is for %d", sn.Seq, ts.control.round.Load().seq)
		}
		time.Sleep(time.Millisecond)
	}
}

// entered are sessions that only wait.
func (ts *testServer) entered(n int, node tailnet.NodeID) (out []*mapSession) {
	sn := ts.state.Snapshot()
	for range n {
		ms := newMapSession(ts.control, httptest.NewRecorder(), netmap.Viewer{Node: node, Capver: 130}, sn.Node(node).NodeKey)
		ts.control.enter(ms, sn)
		out = append(out, ms)
	}
	return out
}

// woken waits until ms is woken, and returns the round that did.
func (ts *testServer) woken(what string, ms *mapSession) *round {
	ts.t.Helper()
	select {
	case r := <-ms.place.wake: // it is the session's now
		return r
	case <-time.After(patience):
		ts.t.Fatalf("%s: not woken", what)
		return nil
	}
}

// asleep fails unless ms waits, and knows sn.
func (ts *testServer) asleep(what string, ms *mapSession, sn *state.Snapshot) {
	ts.t.Helper()
	ms.place.mu.Lock()
	defer ms.place.mu.Unlock()
	if !ms.place.waits || len(ms.place.wake) > 0 || ms.place.known.Seq < sn.Seq {
		ts.t.Errorf("%s: waits %v, knows snapshot %d, want at least %d", what, ms.place.waits, ms.place.known.Seq, sn.Seq)
	}
}

// A round wakes those whom a change concerns, and takes the others along; the next one begins although some are slow, and whoever
// missed it goes on at once.
func TestRounds(t *testing.T) {
	ts := newServer(t, nil)
	s := ts.control
	sees, blind, seen := ts.three()
	const n = 2 * roundSessions
	first, others := ts.entered(n, sees), ts.entered(n, blind)
	sn := ts.changed(seen)
	var rs []*round
	for _, ms := range first {
		rs = append(rs, ts.woken("the first round", ms))
	}
	for _, r := range rs[n/roundSlow:] {
		r.leave()
	}
	for _, ms := range others {
		ts.asleep("one whom it does not concern", ms, sn)
	}
	if got := s.counters.Woken.Load(); got < n || got >= 2*n {
		t.Errorf("%d were woken, want about %d", got, n)
	}
	quick, slow := first[n-1], first[0]
	s.wait(quick, sn, sn)
	ts.asleep("one that has sent the newest snapshot", quick, sn)
	ts.changed(seen)
	ts.woken("the second round", quick).leave()
	s.wait(slow, sn, sn)
	if r := ts.woken("one that was slow", slow); r != nil {
		t.Error("it is taken for one that has waited")
	}
	for _, r := range rs[:n/roundSlow] {
		r.leave()
	}
	for _, ms := range append(first, others...) {
		s.exit(ms)
	}
	if len(s.entered) != 0 {
		t.Errorf("%d sessions are left", len(s.entered))
	}
}

// A session that ends when it has been woken holds up no round.
func TestRoundsExit(t *testing.T) {
	ts := newServer(t, nil)
	sees, _, seen := ts.three()
	all := ts.entered(2*roundSessions, sees)
	defer ts.control.work()() // so that rounds wait
	for range 3 {
		ts.changed(seen)
		for _, ms := range all {
			ts.control.exit(ms)
		}
		all = ts.entered(2*roundSessions, sees)
	}
}

// While others are at work there is a pause after a round, which ends.
func TestRoundsPause(t *testing.T) {
	ts := newServer(t, nil)
	s := ts.control
	sees, _, seen := ts.three()
	end := s.work()
	all := ts.entered(roundSessions, sees)
	for i := range 3 {
		sn := ts.changed(seen)
		for _, ms := range all {
			ts.woken("a round", ms).leave()
			s.wait(ms, sn, sn)
		}
		if i == 1 {
			end()
		}
	}
	if n := s.atWork.Load(); n != 0 {
		t.Errorf("%d are said to be at work", n)
	}
}

// A server that shuts down in the middle of a round does not wait for it.
func TestRoundsEnd(t *testing.T) {
	ts := newServer(t, nil)
	sees, _, seen := ts.three()
	ts.entered(2*roundSessions, sees)
	defer ts.control.work()()
	ts.changed(seen)
	begin := time.Now()
	ts.control.Close()
	t.Logf("closed after %v", time.Since(begin))
}
