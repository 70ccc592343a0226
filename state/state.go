// Package state is the one writer of a tailnet and the source of every read.
//
// # One road for every change
//
//	Update(ctx, why, f) ──► writer goroutine ──► f(Tx) for all that wait ──► Store.Commit ──► derive ──► publish
//	                                                                        (one SQL         (only what   (one atomic store;
//	                                                                         transaction)     changed)     Superseded closes)
//
// A change is committed first and published by the same step, so nobody announces anything and what a client was told is
// what a restart reads back. An idle writer commits at once; while a commit is under way others gather and go into the
// next one together. There is no timer in front of a write.
//
// Reads are methods of Snapshot, which is immutable. Operations are functions given to Update; they see the newest state
// with the changes that stand before them in the same commit, and may run again if another server was faster.
//
// Who is online is soft: it is published as a snapshot of its own without a commit, and saved within a second or so.
// After a start every node is presumed as it was saved until a grace time has passed, so that a restart of the server
// moves no route. What only time changes (a key ends, peers learn a new key) is published the same way, when it happens.
//
// # Invariants
//
// Node keys, names and addresses are unique; a node belongs to a user or has tags, never both; ids are never used again.
// Derived parts (who carries a route, classes) are renewed for the nodes a change touches, and for no others.
package state

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"tailscale.com/types/key"

	"github.com/skein-vpn/skein/dns"
	"github.com/skein-vpn/skein/policy"
	"github.com/skein-vpn/skein/tailnet"
)

// maxGroup is how many updates one commit takes at the most.
const maxGroup = 1024

// Options is what a State is made of. Store, DNS and DERP are required.
type Options struct {
	Store      Store
	Tailnet    tailnet.ID // 0: tailnet.DefaultID
	Addressing Addressing
	DNS        *dns.Settings
	Records    []tailnet.DNSRecord // on top of DNS, from a file; see Tx.SetFileRecords
	DERP       *DERPMaps

	PolicyOptions  policy.Options
	PolicyFromFile bool           // the policy is PolicyFile and not what is stored
	PolicyFile     *policy.Policy // nil: none, everybody reaches everybody

	RestartGrace     time.Duration // how long nodes are presumed online after a start; 0: not at all
	EphemeralTimeout time.Duration // how long an ephemeral node may be offline; 0: for ever

	// For several servers on one store; all may be zero where there is one.
	Server    string        // this one's id, new with each start
	SaveDelay time.Duration // how long a change of presence may stay unsaved; 0: a second
	Changed   func()        // something was committed or saved, which other servers want to know; must not block
	Leads     func() bool   // this server does what only one may do; nil: it does

	Now func() time.Time // nil: time.Now
	Log *slog.Logger     // nil: slog.Default
}

// State is one tailnet in memory.
type State struct {
	store      Store
	id         tailnet.ID
	addressing Addressing
	now        func() time.Time
	log        *slog.Logger

	policyOptions  policy.Options
	policyFromFile bool

	server    string
	saveDelay time.Duration
	changed   func()
	leads     func() bool

	snapshot atomic.Pointer[Snapshot]
	ops      chan *op
	stop     context.CancelFunc
	stopped  <-chan struct{}
	gone     chan struct{} // closed when the writer has answered its last update
	wg       sync.WaitGroup

	// Owned by the writer goroutine.
	lowHost  uint64                      // no host part below it is free
	routers  routers                     // who offers which prefix
	presumed map[tailnet.NodeID]struct{} // online as saved, not heard of since the start
	here     map[tailnet.NodeID]struct{} // have a map session at this server
	seq      int64                       // save of presence that the snapshot has seen

	wake     chan struct{} // one slot: there is presence to save
	alarmMu  sync.Mutex
	alarm    time.Time     // guarded by alarmMu: when time alone changes a node next; zero: never
	alarmSet chan struct{} // one slot: alarm is earlier than it was

	dirtyMu sync.Mutex
	dirty   map[tailnet.NodeID]struct{} // guarded by dirtyMu: presence not saved yet
	saving  map[tailnet.NodeID]struct{} // guarded by dirtyMu: presence that is being saved
}

// op is one Update that waits for the writer.
type op struct {
	ctx  context.Context
	why  string
	f    func(*Tx) error // nil: only take over what other servers have done
	done chan error      // buffered, one value
	err  error           // of f

	stage atomic.Int32 // opWaiting, then one of the others for good
}

const (
	opWaiting   = iota // for the writer
	opTaken            // the writer runs f, or has done so
	opWithdrawn        // ctx ended first
)

// ErrClosed is what Update returns after Close.
var ErrClosed = tailnet.Errorf(tailnet.Unavailable, "the server is shutting down")

// Open reads the tailnet from the store and starts its writer. Close ends it.
func Open(ctx context.Context, o Options) (*State, error) {
	if o.Tailnet == 0 {
		o.Tailnet = tailnet.DefaultID
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	c, err := o.Store.Load(ctx, o.Tailnet)
	if err != nil {
		return nil, fmt.Errorf("reading the tailnet: %w", err)
	}
	run, stop := context.WithCancel(context.Background())
	st := &State{
		store: o.Store, id: o.Tailnet, addressing: o.Addressing, now: o.Now, log: o.Log,
		ops: make(chan *op, maxGroup), stop: stop, stopped: run.Done(), gone: make(chan struct{}),
		lowHost: 1, wake: make(chan struct{}, 1), dirty: map[tailnet.NodeID]struct{}{}, here: map[tailnet.NodeID]struct{}{},
		alarmSet: make(chan struct{}, 1),
		server:   o.Server, saveDelay: o.SaveDelay, changed: o.Changed, leads: o.Leads,
	}
	if st.saveDelay == 0 {
		st.saveDelay = saveDelay
	}
	if st.changed == nil {
		st.changed = func() {}
	}
	if st.leads == nil {
		st.leads = func() bool { return true }
	}
	st.policyOptions, st.policyFromFile = o.PolicyOptions, o.PolicyFromFile
	sn := st.load(c, &Snapshot{dnsBase: o.DNS, fileRecords: o.Records, DERP: o.DERP}, st.loadPolicy(ctx, c, o.PolicyFile))
	st.presumed = map[tailnet.NodeID]struct{}{}
	for _, n := range sn.nodes {
		if n.Online && st.server == "" { // of several servers, the others judge who is gone
			st.presumed[n.ID] = struct{}{}
		}
	}
	st.snapshot.Store(sn)
	st.start(func() { st.write(run) })
	st.start(func() { st.savePresence(run) })
	st.start(func() { st.runClock(run) })
	if st.server == "" {
		st.start(func() { st.endGrace(run, o.RestartGrace) })
	}
	if o.EphemeralTimeout > 0 {
		st.start(func() { st.reapEphemeral(run, o.EphemeralTimeout) })
	}
	return st, nil
}

func (st *State) start(f func()) {
	st.wg.Add(1)
	go func() {
		defer st.wg.Done()
		f()
	}()
}

// Close ends the writer after the updates it has accepted, saves soft state, and waits for all goroutines.
func (st *State) Close() {
	st.stop()
	st.wg.Wait()
}

// Snapshot is the newest state. It never blocks, and the value never changes.
func (st *State) Snapshot() *Snapshot { return st.snapshot.Load() }

// DeletedNode is the node that was deleted while it had this key, or nil.
func (st *State) DeletedNode(ctx context.Context, k key.NodePublic) (*tailnet.Node, error) {
	return st.store.DeletedNode(ctx, st.id, k)
}

// Update runs f against the newest state and returns once its changes are durable and published; why names the change
// for the tailnet's history. f must have no side effects: it may run again. If f fails nothing of it remains, and its
// error is returned as it is. If ctx ends before the writer has taken f up, Update returns its error and f never runs; after
// that it waits for the outcome, so that f may write to variables of its caller.
func (st *State) Update(ctx context.Context, why string, f func(*Tx) error) error {
	return st.enqueue(ctx, &op{ctx: ctx, why: why, f: f, done: make(chan error, 1)})
}

// enqueue hands o to the writer and waits for its answer.
func (st *State) enqueue(ctx context.Context, o *op) error {
	select {
	case <-st.stopped:
		return ErrClosed
	default:
	}
	select {
	case st.ops <- o:
	case <-ctx.Done():
		return ctx.Err()
	case <-st.stopped:
		return ErrClosed
	}
	select {
	case err := <-o.done:
		return err
	case <-ctx.Done():
		if o.stage.CompareAndSwap(opWaiting, opWithdrawn) {
			return ctx.Err()
		}
		return <-o.done // a commit takes commitTimeout at the most
	case <-st.gone: // it may have come too late to be taken
		select {
		case err := <-o.done:
			return err
		default:
			return ErrClosed
		}
	}
}

// write is the writer goroutine: it takes all waiting updates into one commit, then the next.
func (st *State) write(run context.Context) {
	defer close(st.gone)
	for {
		var group []*op
		select {
		case o := <-st.ops:
			group = append(group, o)
		case <-run.Done():
			st.refuseRest()
			return
		}
		for more := true; more && len(group) < maxGroup; {
			select {
			case o := <-st.ops:
				group = append(group, o)
			default:
				more = false
			}
		}
		st.commit(group)
	}
}

// refuseRest answers updates that were queued while the state was closing.
func (st *State) refuseRest() {
	for {
		select {
		case o := <-st.ops:
			o.done <- ErrClosed
		default:
			return
		}
	}
}

// commitTimeout bounds one commit; a store that hangs for longer fails the updates in it.
const commitTimeout = time.Minute

// commit runs the updates of group and makes what they changed durable and visible.
func (st *State) commit(group []*op) {
	ctx, cancel := context.WithTimeout(context.Background(), commitTimeout)
	defer cancel()
	group, base := st.follow(ctx, group)
	if len(group) == 0 {
		return
	}
	tx, err := st.tryCommit(ctx, base, group)
	for errors.Is(err, ErrConflict) && ctx.Err() == nil {
		st.log.Debug("another server was faster; running the updates again", "rev", base.Rev)
		// Published before anything else happens: what the writer keeps beside the snapshot (routers, lowHost) is that one's from
		// here on, whatever becomes of these updates.
		if base, err = st.catchUp(ctx, base); err == nil {
			tx, err = st.tryCommit(ctx, base, group)
		}
	}
	if err != nil {
		st.log.Error("commit failed", "rev", base.Rev, "updates", len(group), "err", err)
		err = &tailnet.Error{Code: tailnet.Unavailable, Message: "the change could not be stored", Cause: err}
	}
	for _, o := range group {
		if o.err != nil || tx == nil {
			o.done <- o.err
		} else {
			o.done <- err
		}
	}
}

// tryCommit runs the updates on top of base. The Tx is nil if they changed nothing.
func (st *State) tryCommit(ctx context.Context, base *Snapshot, group []*op) (*Tx, error) {
	tx := newTx(st, base, st.now())
	var why []string
	for _, o := range group {
		if !o.stage.CompareAndSwap(opWaiting, opTaken) && o.stage.Load() == opWithdrawn {
			o.err = o.ctx.Err()
			continue
		}
		if o.err = tx.run(o); o.err == nil {
			why = append(why, o.why)
		}
	}
	ch := tx.changes()
	if ch.Empty() && len(tx.presence) == 0 && tx.dns == nil && tx.records == nil && tx.derp == nil && tx.rules == nil {
		st.hear(tx)
		return nil, nil
	}
	rev := base.Rev
	if !ch.Empty() {
		ch.Why = why
		var err error
		if rev, err = st.store.Commit(ctx, st.id, base.Rev, ch); err != nil {
			return tx, err
		}
		st.changed()
	}
	st.publish(base, st.derive(base, tx, rev))
	st.lowHost = tx.lowHost
	st.hear(tx)
	st.markDirty(tx.dirty...)
	return tx, nil
}

// hear takes the nodes that tx heard of out of those that are only presumed to be online.
func (st *State) hear(tx *Tx) {
	for _, h := range tx.heard {
		delete(st.presumed, h.id)
		if h.online {
			st.here[h.id] = struct{}{}
		} else {
			delete(st.here, h.id)
		}
	}
}

// publish makes next the newest snapshot in place of prev and wakes everybody who waits for one.
func (st *State) publish(prev, next *Snapshot) {
	st.snapshot.Store(next)
	close(prev.superseded)
}

func stack() string { return string(debug.Stack()) }
