package control

import (
	"testing"
	"time"

	"github.com/skein-vpn/skein/state"
)

// publish makes a new snapshot and returns it.
func (ts *testServer) publish(name string) *state.Snapshot {
	ts.t.Helper()
	ts.update(func(tx *state.Tx) error { return tx.PutUser(tx.NewUser(name)) })
	return ts.state.Snapshot()
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

// closed waits until c is closed.
func (ts *testServer) closed(what string, c <-chan struct{}) {
	ts.t.Helper()
	select {
	case <-c:
	case <-time.After(patience):
		ts.t.Fatalf("%s: nobody was woken", what)
	}
}

// A round wakes all who have sent what the last one brought; the next one begins although some are slow, and whoever missed
// it goes on at once.
func TestRounds(t *testing.T) {
	ts := newServer(t, nil)
	s := ts.control
	old := ts.state.Snapshot()
	ts.began(old)
	const n = 2 * roundSessions
	var first []*round
	for range n {
		first = append(first, s.joinRound(old))
	}
	sn := ts.publish("one")
	ts.began(sn)
	for _, r := range first {
		ts.closed("the first round", r.next)
	}
	for _, r := range first[n/roundSlow:] {
		r.leave()
	}
	quick := s.joinRound(sn)
	select {
	case <-quick.next:
		t.Error("a session that has sent the newest snapshot is woken")
	default:
	}
	next := ts.publish("two")
	ts.began(next)
	ts.closed("the second round", quick.next)
	quick.leave()

	slow := s.joinRound(sn)
	ts.closed("a session that was slow", slow.next)
	slow.leave()
	for _, r := range first[:n/roundSlow] {
		r.leave()
	}
}

// While others are at work there is a pause after a round, which ends.
func TestRoundsPause(t *testing.T) {
	ts := newServer(t, nil)
	s := ts.control
	end := s.work()
	for i, name := range []string{"one", "two", "three"} {
		sn := ts.state.Snapshot()
		ts.began(sn)
		var rs []*round
		for range roundSessions {
			rs = append(rs, s.joinRound(sn))
		}
		ts.began(ts.publish(name))
		for _, r := range rs {
			ts.closed(name, r.next)
			r.leave()
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
	sn := ts.state.Snapshot()
	ts.began(sn)
	for range 2 * roundSessions {
		ts.control.joinRound(sn)
	}
	defer ts.control.work()()
	ts.began(ts.publish("one"))
	begin := time.Now()
	ts.control.Close()
	t.Logf("closed after %v", time.Since(begin))
}
