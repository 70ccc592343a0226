package control

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/skein-vpn/skein/state"
)

// A new snapshot wakes all map sessions at once, which is a round. When snapshots follow each other faster than rounds end,
// as when a fleet comes back, nothing but rounds would be run, and all others (full maps, handshakes, the writer) would wait
// behind thousands of sessions for each of their steps. So a round begins when the one before it has ended, and if somebody
// else has something to do, after as long as that one took: sessions take bigger steps then, and half of the time is left
// to the others, or more if they are many. A change that comes alone waits for nothing.
//
//	snapshot ──▶ round ──▶ most sessions have sent it ──▶ as long again ──▶ is there a newer snapshot? ──▶ round …
//	                                                      └ or until nobody is at work (Server.work)

const (
	roundSessions = 128             // fewer of them are done so quickly that nobody need wait
	maxRound      = time.Second     // a round counts as ended after this
	maxPause      = time.Second / 2 // and is followed by no longer pause
	roundSlow     = 16              // nor does one wait for this part of the sessions: those that are slow to read
	pauseLooks    = 8               // how often in a pause one looks whether anybody is still at work
	pauseCrowd    = 16              // so many who are at work make the pause longer by as much again
)

// round is the time from one wake-up to the next.
type round struct {
	seq  uint64        // of the snapshot that began it
	next chan struct{} // closed when the next one begins

	// busy counts the sessions that wait for the next round, and once that has begun, those that are not through with it.
	busy atomic.Int64
	few  atomic.Int64  // so many may be left in the end; -1: nobody has asked yet
	calm chan struct{} // one slot: busy has come down to few
}

func newRound(seq uint64) *round {
	r := &round{seq: seq, next: make(chan struct{}), calm: make(chan struct{}, 1)}
	r.few.Store(-1)
	return r
}

// missed is for sessions that were busy when the last round began: they go on at once.
var missed = func() *round {
	r := newRound(0)
	close(r.next)
	return r
}()

// joinRound is the round whose end a session that has sent sn waits for. leave must follow when it has dealt with whatever
// has woken it.
func (s *Server) joinRound(sn *state.Snapshot) *round {
	r := s.round.Load()
	if sn.Seq < r.seq {
		r = missed
	}
	r.busy.Add(1)
	return r
}

func (r *round) leave() {
	if r.busy.Add(-1) == r.few.Load() {
		r.tell()
	}
}

func (r *round) tell() {
	select {
	case r.calm <- struct{}{}:
	default:
	}
}

// runRounds begins rounds until ctx ends.
func (s *Server) runRounds(ctx context.Context, sn *state.Snapshot) {
	for {
		select {
		case <-sn.Superseded():
		case <-ctx.Done():
			return
		}
		last := s.round.Load()
		sn = s.o.State.Snapshot()
		begin := time.Now()
		s.round.Store(newRound(sn.Seq))
		woken := last.busy.Load()
		close(last.next)
		s.counters.Rounds.Add(1)
		if woken < roundSessions {
			continue
		}
		last.end(ctx, woken)
		s.counters.RoundNanos.Add(int64(time.Since(begin)))
		took := min(time.Since(begin), maxPause)
		for ended := time.Now(); ctx.Err() == nil && time.Since(ended) < min(time.Duration(s.pauses())*took, maxPause); {
			time.Sleep(took / pauseLooks)
		}
	}
}

// pauses is how many times as long as a round the pause after it should be: once if anybody is at work, more in a crowd.
func (s *Server) pauses() int64 {
	n := s.atWork.Load()
	return min(n, 1) + min(n/pauseCrowd, 3)
}

// work counts somebody who is at work for a client: a handshake, a registration, a report, a full map. It must be called when
// that has ended.
func (s *Server) work() (end func()) {
	s.atWork.Add(1)
	return func() { s.atWork.Add(-1) }
}

// end waits until most of the woken sessions are through.
func (r *round) end(ctx context.Context, woken int64) {
	few := woken / roundSlow
	r.few.Store(few)
	if r.busy.Load() <= few { // it may have come down before we asked
		return
	}
	late := time.NewTimer(maxRound)
	defer late.Stop()
	select {
	case <-r.calm:
	case <-late.C:
	case <-ctx.Done():
	}
}
