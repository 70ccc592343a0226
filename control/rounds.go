package control

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/skein-vpn/skein/netmap"
	"github.com/skein-vpn/skein/state"
)

// A new snapshot begins a round: whoever waits is looked at, and woken if there may be something to tell. For the others the snapshot
// says what the one before it said (netmap.Look), so that a change costs those whom it concerns. When snapshots follow each other
// faster than rounds end, as when a fleet comes back, nothing but rounds would be run, and all others (full maps, handshakes, the
// writer) would wait behind thousands of sessions for each of their steps. So a round begins when the one before it has ended, and if
// somebody else has something to do, after as long as that one took: sessions take bigger steps then, and half of the time is left to
// the others, or more if they are many. A change that comes alone waits for nothing.
//
//	snapshot ──▶ round ──▶ most of the woken have sent it ──▶ as long again ──▶ is there a newer snapshot? ──▶ round …
//	                                                          └ or until nobody is at work (Server.work)

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
	busy atomic.Int64  // the sessions that it has woken and that are not through with it
	few  atomic.Int64  // so many may be left in the end; -1: nobody has asked yet
	calm chan struct{} // one slot: busy has come down to few
}

func newRound(seq uint64) *round {
	r := &round{seq: seq, calm: make(chan struct{}, 1)}
	r.few.Store(-1)
	return r
}

// leave is called by a session that was woken when it is through. r is nil if it went on without having waited.
func (r *round) leave() {
	if r != nil && r.busy.Add(-1) == r.few.Load() {
		r.tell()
	}
}

func (r *round) tell() {
	select {
	case r.calm <- struct{}{}:
	default:
	}
}

// place is where a session stands between rounds. While it waits, rounds take it along; otherwise it is its session's.
type place struct {
	mu      sync.Mutex
	waits   bool            // guarded by mu
	known   *state.Snapshot // what the client knows
	seen    *state.Snapshot // what was looked at: known, or a later one that was not told yet
	wake    chan *round     // one slot, taken when waits ends; nil: there was a round meanwhile
	entered int             // index in Server.entered
}

// enter makes ms wait, for the first time, after it has sent sn.
func (s *Server) enter(ms *mapSession, sn *state.Snapshot) {
	s.enteredMu.Lock()
	ms.place.entered = len(s.entered)
	s.entered = append(s.entered, ms)
	s.enteredMu.Unlock()
	s.wait(ms, sn, sn)
}

// wait makes ms wait for what comes after it has looked at seen. If a round for that has begun, it goes on at once.
func (s *Server) wait(ms *mapSession, known, seen *state.Snapshot) {
	p := &ms.place
	p.mu.Lock()
	defer p.mu.Unlock()
	p.known, p.seen = known, seen
	if p.waits = seen.Seq >= s.round.Load().seq; !p.waits {
		p.wake <- nil
	}
}

// exit is when the session of ms ends.
func (s *Server) exit(ms *mapSession) {
	s.enteredMu.Lock()
	p, last := &ms.place, len(s.entered)-1
	s.entered[p.entered] = s.entered[last]
	s.entered[p.entered].place.entered = p.entered
	s.entered[last], s.entered = nil, s.entered[:last]
	s.enteredMu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.waits = false
	select {
	case r := <-p.wake:
		r.leave()
	default:
	}
}

// look wakes ms for r if it waits for the snapshot that l looks at and may have to tell something.
func (r *round) look(ms *mapSession, l *netmap.Look, sn *state.Snapshot) (woken bool) {
	p := &ms.place
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case !p.waits || p.seen.Seq >= sn.Seq:
	case l.Nothing(p.known, ms.viewer):
		p.known, p.seen = sn, sn
	default:
		p.waits = false
		r.busy.Add(1)
		p.wake <- r
		return true
	}
	return false
}

// runRounds begins rounds until ctx ends.
func (s *Server) runRounds(ctx context.Context, sn *state.Snapshot) {
	var all []*mapSession // those of the round; kept for the next one's
	for {
		select {
		case <-sn.Superseded():
		case <-ctx.Done():
			return
		}
		sn = s.o.State.Snapshot()
		begin := time.Now()
		r := newRound(sn.Seq)
		s.round.Store(r) // whoever comes to wait from now on sees it, and all others are entered
		s.enteredMu.Lock()
		all = append(all[:0], s.entered...)
		s.enteredMu.Unlock()
		woken := int64(0)
		l := s.o.Encoder.Look(sn)
		for _, ms := range all {
			if r.look(ms, l, sn) {
				woken++
			}
		}
		s.counters.Rounds.Add(1)
		s.counters.Woken.Add(woken)
		crowd := len(all)
		clear(all)
		if crowd < roundSessions {
			continue
		}
		if woken >= roundSessions {
			r.end(ctx, woken)
		}
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
