// Package cluster makes several servers on one PostgreSQL database act as one. Any client may be on any of them.
//
// # How servers hear of each other
//
//	commit here ──► Changed ──► NOTIFY (coalesced) ──► every server's listener ──► Follow: read what is new, publish
//	                                                   └ and every few seconds anyway, should a word be lost
//
// The database is the truth: revisions say what was committed, presence says which server holds a node's map session. A
// notification only wakes, so it may be lost, late or doubled without harm.
//
// # Who is alive
//
// Each server says every BeatEvery that it is there, by the database's clock. One that has not been heard of for TTL is dead.
// Its nodes stay online for a Grace from then on, in which their clients connect to another server; what has not come back by
// then is taken offline, by the server that leads. To lead is a lease: the leader does what only one may do (that, deleting
// inactive ephemeral nodes, forgetting old rows).
//
//	         heard of within TTL        TTL without a word           Grace later
//	(start) ───────────────────► alive ─────────────────────► dead ──────────────► its nodes go offline
//	                               │ cannot reach the database for StepAside
//	                               └──────► aside: it ends its streams and refuses new ones, until it has caught up again
//
// # What time it is
//
// The database's clock says it, for leases, ends of keys, and everything else (Clock). So a machine whose clock is off is told of, and
// does no harm.
//
// # Without the database
//
// A server that does not reach the database cannot know what the others do. It goes on with what it knows for StepAside,
// because most outages are short and hit all servers alike, and then steps aside rather than serve what may have changed.
package cluster

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/skein-vpn/skein/tailnet"
)

// Store is what servers share. db.DB on PostgreSQL is the one in use.
type Store interface {
	// Time is what the database's clock says.
	Time(ctx context.Context) (time.Time, error)
	// Beat says that the server is there.
	Beat(ctx context.Context, s tailnet.Server) error
	// Servers are all servers entered; those heard of within ttl are alive.
	Servers(ctx context.Context, ttl time.Duration) ([]tailnet.Server, error)
	// LeaveServer gives a server's leases up and makes it one that was heard of ttl ago for the last time.
	LeaveServer(ctx context.Context, id string, ttl time.Duration) error
	// ForgetServers takes out servers not heard of for so long.
	ForgetServers(ctx context.Context, age time.Duration) error
	// Lease gets or renews a lease until ttl from now; false if somebody else holds it.
	Lease(ctx context.Context, name, holder string, ttl time.Duration) (bool, error)
	// LeaseHolder is who holds a lease, empty if nobody does.
	LeaseHolder(ctx context.Context, name string) (string, error)
	// Notify wakes all who listen.
	Notify(ctx context.Context, payload string) error
	// Listen calls f for each Notify, and once with an empty text when it begins to hear, until ctx ends or the connection breaks.
	Listen(ctx context.Context, check time.Duration, f func(payload string)) error
	// OnlineServers are the ids of servers at which nodes are online.
	OnlineServers(ctx context.Context, id tailnet.ID) ([]string, error)
	// TakeOffline takes the nodes offline that are online at a server.
	TakeOffline(ctx context.Context, id tailnet.ID, server string, now time.Time) (int, error)
}

// Our choices.
const (
	DefaultBeat      = 2 * time.Second
	DefaultTTL       = 10 * time.Second
	DefaultGrace     = 15 * time.Second
	DefaultPoll      = 3 * time.Second
	DefaultStepAside = 30 * time.Second

	listenCheck   = 5 * time.Second // between looks at whether the connection that listens is there
	sayWait       = time.Second
	listenAgain   = 500 * time.Millisecond
	followTimeout = 30 * time.Second
	forgetServers = 24 * time.Hour   // dead ones, from the list
	keepKnown     = 10 * time.Minute // dead ones, in what clients are told: a server that restarts changes nothing for them
	leaderLease   = "leader"
)

// Options is what a Cluster is made of. Store and Name are required.
type Options struct {
	Store   Store
	Clock   *Clock     // set by the database's with each beat; nil: a new one
	Tailnet tailnet.ID // 0: tailnet.DefaultID
	Name    string     // of this server, for people
	Info    string     // what the other servers must know of this one

	Beat, TTL, Grace, Poll, StepAside time.Duration // 0: the defaults
	StartGrace                        time.Duration // after our start nobody is taken offline for this long

	// OnServers is told which servers there are, by name, this one among them, whenever they or their Info are others; those that
	// were there lately are counted in, so that a restart is no change. One call at a time.
	OnServers func(servers []tailnet.Server)

	// OnWord is told what another server said (Cluster.Say); a word may be lost. It must not block.
	OnWord func(word string)

	OnAside func(aside bool) // told when this server steps aside and when it is back; one call at a time

	Log *slog.Logger // nil: slog.Default
}

// Cluster is this server as one of several. Its methods may be called from any goroutine.
type Cluster struct {
	o    Options
	self tailnet.Server
	log  *slog.Logger

	notify, wake chan struct{} // one slot each: tell the others; hear from them
	leadUntil    atomic.Int64  // nanoseconds since started, by the monotonic clock; 0: we do not lead
	started      time.Time
	aside        atomic.Bool
	reached      atomic.Int64 // when the database answered last, as leadUntil
	steps        atomic.Int64 // times that we followed
	skewed       bool         // the machine's clock was off at the last beat; belongs to who beats

	mu      sync.Mutex
	servers []tailnet.Server // guarded by mu: those alive, as seen last
	known   []tailnet.Server // guarded by mu: those that OnServers was told of
}

// New returns a Cluster that does nothing before Run.
func New(o Options) *Cluster {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&o.Beat, DefaultBeat)
	def(&o.TTL, DefaultTTL)
	def(&o.Grace, DefaultGrace)
	def(&o.Poll, DefaultPoll)
	def(&o.StepAside, DefaultStepAside)
	if o.Tailnet == 0 {
		o.Tailnet = tailnet.DefaultID
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Clock == nil {
		o.Clock = NewClock(nil, nil)
	}
	if o.OnServers == nil {
		o.OnServers = func([]tailnet.Server) {}
	}
	if o.OnWord == nil {
		o.OnWord = func(string) {}
	}
	if o.OnAside == nil {
		o.OnAside = func(bool) {}
	}
	return &Cluster{
		o: o, self: tailnet.Server{ID: rand.Text()[:16], Name: o.Name, Info: o.Info}, log: o.Log, started: time.Now(),
		notify: make(chan struct{}, 1), wake: make(chan struct{}, 1),
	}
}

// ID is this server's, new with each start.
func (c *Cluster) ID() string { return c.self.ID }

// Changed says that something was committed or saved that other servers want to know. It never blocks.
func (c *Cluster) Changed() { poke(c.notify) }

func poke(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// Leads reports whether this server does what only one may do.
func (c *Cluster) Leads() bool {
	return !c.aside.Load() && c.leadUntil.Load() > int64(time.Since(c.started))
}

// Alive is how many servers were there at the last look, this one included.
func (c *Cluster) Alive() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.servers)
}

// Aside reports whether this server has stepped aside.
func (c *Cluster) Aside() bool { return c.aside.Load() }

// Health is nil while the database is in reach and this server serves.
func (c *Cluster) Health() error {
	if c.aside.Load() {
		return tailnet.Errorf(tailnet.Unavailable, "this server has stepped aside, because it does not reach the database")
	}
	if away := c.away(); away > c.o.TTL {
		return tailnet.Errorf(tailnet.Unavailable, "the database has not answered for %s", away.Round(time.Second))
	}
	return nil
}

// away is how long the database has not answered.
func (c *Cluster) away() time.Duration {
	return time.Since(c.started) - time.Duration(c.reached.Load())
}

// Status is what people are told of the cluster.
type Status struct {
	Self    string // id of the server that tells
	Leader  string // id; empty: nobody at the moment
	Servers []tailnet.Server
}

// Status asks the database who is there. Of a server that was started again its starts before are left out.
func (c *Cluster) Status(ctx context.Context) (*Status, error) {
	servers, err := c.o.Store.Servers(ctx, c.o.TTL)
	if err != nil {
		return nil, err
	}
	leader, err := c.o.Store.LeaseHolder(ctx, leaderLease)
	if err != nil {
		return nil, err
	}
	return &Status{Self: c.self.ID, Leader: leader, Servers: current(servers)}, nil
}

// current are the servers without those that are gone and were followed by another one of their name.
func current(servers []tailnet.Server) (out []tailnet.Server) {
	for _, s := range servers {
		followed := slices.ContainsFunc(servers, func(o tailnet.Server) bool {
			return o.Name == s.Name && o.ID != s.ID && (o.Alive || o.Started.After(s.Started))
		})
		if s.Alive || !followed {
			out = append(out, s)
		}
	}
	return out
}

// Join enters this server and sees who else is there. One of the same name is taken for our own last start, which a crash has
// ended; should it live, it is heard of again at once. It is called once, before Run.
func (c *Cluster) Join(ctx context.Context) error {
	servers, err := c.o.Store.Servers(ctx, c.o.TTL)
	if err != nil {
		return err
	}
	for _, s := range servers {
		if s.Alive && s.Name == c.self.Name {
			if err := c.o.Store.LeaveServer(ctx, s.ID, c.o.TTL); err != nil {
				return err
			}
		}
	}
	return c.beat(ctx)
}

// Run keeps the server in touch with the others until ctx ends; then it takes it out. follow publishes what others have done
// (state.State.Follow). It returns when all its work has ended.
func (c *Cluster) Run(ctx context.Context, follow func(context.Context) error) {
	var wg sync.WaitGroup
	wg.Go(func() { c.listen(ctx) })
	wg.Go(func() { c.tell(ctx) })
	wg.Go(func() { c.followAll(ctx, follow) })
	c.keepBeating(ctx, follow)
	wg.Wait()
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
	defer cancel()
	if err := c.o.Store.LeaveServer(end, c.self.ID, c.o.TTL); err != nil {
		c.log.Warn("the other servers could not be told of the end of this one; they notice in a moment", "err", err)
	}
	_ = c.o.Store.Notify(end, c.self.ID)
}

// listen wakes followAll for what other servers notify.
func (c *Cluster) listen(ctx context.Context) {
	for ctx.Err() == nil {
		err := c.o.Store.Listen(ctx, listenCheck, func(text string) {
			from, word, said := strings.Cut(text, " ")
			switch {
			case from == c.self.ID:
			case said:
				c.o.OnWord(word)
			default:
				poke(c.wake)
			}
		})
		if ctx.Err() != nil {
			return
		}
		c.log.Debug("not listening to other servers; trying again", "err", err)
		sleep(ctx, listenAgain)
	}
}

// Say tells the other servers a word, which has no space in it, for their OnWord. It waits for the database for a moment at the
// most; a word that is lost must not matter.
func (c *Cluster) Say(ctx context.Context, word string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), sayWait)
	defer cancel()
	if err := c.o.Store.Notify(ctx, c.self.ID+" "+word); err != nil {
		c.log.Debug("other servers could not be told", "word", word, "err", err)
	}
}

// tell wakes the other servers after changes here. Changes that come while it does so make one notification together.
func (c *Cluster) tell(ctx context.Context) {
	for {
		select {
		case <-c.notify:
		case <-ctx.Done():
			return
		}
		t, cancel := context.WithTimeout(ctx, c.o.Poll) // then they look by themselves
		err := c.o.Store.Notify(t, c.self.ID)
		cancel()
		if err != nil && ctx.Err() == nil {
			c.log.Debug("other servers could not be woken; they look by themselves soon", "err", err)
		}
	}
}

// followAll takes over what others have done, when woken and now and then.
func (c *Cluster) followAll(ctx context.Context, follow func(context.Context) error) {
	tick := time.NewTicker(c.o.Poll)
	defer tick.Stop()
	for {
		select {
		case <-c.wake:
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if c.aside.Load() {
			continue // keepBeating catches up
		}
		t, cancel := context.WithTimeout(ctx, followTimeout)
		err := follow(t)
		cancel()
		c.steps.Add(1)
		if err != nil && ctx.Err() == nil {
			c.log.Warn("what other servers have done could not be read; it will be tried again", "err", err)
		}
	}
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// keepBeating says that we are there, judges who else is, and steps aside and back.
func (c *Cluster) keepBeating(ctx context.Context, follow func(context.Context) error) {
	gone := map[string]time.Time{} // since when nodes are online at servers that are not there
	for ctx.Err() == nil {
		t, cancel := context.WithTimeout(ctx, c.o.TTL/2)
		err := c.beat(t)
		if err == nil && c.aside.Load() {
			err = follow(t) // before anybody is served again
		}
		cancel()
		switch {
		case err == nil && c.aside.CompareAndSwap(true, false):
			c.log.Warn("the database is back; serving again")
			c.o.OnAside(false)
		case err != nil && ctx.Err() == nil:
			away := c.away()
			c.log.Warn("the database does not answer", "for", away.Round(time.Second), "err", err)
			if away >= c.o.StepAside && c.aside.CompareAndSwap(false, true) {
				c.log.Error("stepping aside: without the database this server does not know what the others do; its clients are sent away")
				c.o.OnAside(true)
			}
		}
		if err == nil && c.Leads() {
			c.judge(ctx, gone)
		} else {
			clear(gone)
		}
		sleep(ctx, c.o.Beat)
	}
}

// beat says that we are there, sees who else is, and tries to lead.
func (c *Cluster) beat(ctx context.Context) error {
	start := time.Since(c.started)
	if err := c.lookAtClock(ctx); err != nil {
		return err
	}
	self := c.self
	self.Skew = c.o.Clock.Skew()
	if err := c.o.Store.Beat(ctx, self); err != nil {
		return err
	}
	servers, err := c.o.Store.Servers(ctx, c.o.TTL)
	if err != nil {
		return err
	}
	leads, err := c.o.Store.Lease(ctx, leaderLease, c.self.ID, c.o.TTL)
	if err != nil {
		return err
	}
	c.reached.Store(int64(start))
	if leads {
		if c.leadUntil.Swap(int64(start+c.o.TTL)) == 0 {
			c.log.Info("this server leads")
		}
	} else {
		c.leadUntil.Store(0)
	}
	c.see(servers)
	if leads {
		return c.o.Store.ForgetServers(ctx, forgetServers)
	}
	return nil
}

// lookAtClock sets our clock by the database's, and says so if either of them is not as it should be.
func (c *Cluster) lookAtClock(ctx context.Context) error {
	step, err := c.o.Clock.Look(ctx, c.o.Store.Time)
	if err != nil {
		return err
	}
	if step.Abs() > MaxSkew {
		c.log.Warn("the database's clock was set, or another database has taken over; all servers go by it", "step", step.Round(time.Millisecond))
	}
	skew := c.o.Clock.Skew()
	off := skew.Abs() > MaxSkew
	switch {
	case off && !c.skewed:
		c.log.Warn("this machine's clock is off from the database's, by which all servers go: nothing ends too early or too late here, but the "+
			"times of the log and the validity of certificates are judged by it. Let NTP set both", "ahead", skew.Round(time.Millisecond))
	case !off && c.skewed:
		c.log.Info("this machine's clock is right again")
	}
	c.skewed = off
	return nil
}

// see takes note of who is there.
func (c *Cluster) see(servers []tailnet.Server) {
	var alive, known []tailnet.Server
	var newest time.Time
	for _, s := range servers {
		if s.Alive {
			alive = append(alive, s)
		}
		if s.Beat.After(newest) {
			newest = s.Beat
		}
	}
	for _, s := range servers { // sorted by name
		if newest.Sub(s.Beat) > keepKnown {
			continue
		}
		if n := len(known); n > 0 && known[n-1].Name == s.Name {
			if s.Started.After(known[n-1].Started) {
				known[n-1] = s
			}
			continue
		}
		known = append(known, s)
	}
	c.mu.Lock()
	changes := !slices.EqualFunc(alive, c.servers, func(a, b tailnet.Server) bool { return a.ID == b.ID })
	other := !slices.EqualFunc(known, c.known, func(a, b tailnet.Server) bool { return a.Name == b.Name && a.Info == b.Info })
	c.servers, c.known = alive, known
	c.mu.Unlock()
	if changes {
		names := make([]string, len(alive))
		for i, s := range alive {
			names[i] = s.Name
			if i > 0 && names[i-1] == s.Name {
				c.log.Warn("two servers have the same name (cluster.name): clients are told of one of them only", "name", s.Name)
			}
		}
		c.log.Info("servers alive", "names", names)
	}
	if other {
		c.o.OnServers(known)
	}
}

// judge takes nodes offline whose server has been gone for the grace time. Time is ours, from when we noticed: after an outage of
// the database every server has been silent, and each of them shall have its grace.
func (c *Cluster) judge(ctx context.Context, gone map[string]time.Time) {
	online, err := c.o.Store.OnlineServers(ctx, c.o.Tailnet)
	if err != nil {
		return // the next beat says so
	}
	c.mu.Lock()
	alive := c.servers
	c.mu.Unlock()
	for id := range gone {
		if !slices.Contains(online, id) || slices.ContainsFunc(alive, func(s tailnet.Server) bool { return s.ID == id }) {
			delete(gone, id)
		}
	}
	for _, id := range online {
		if slices.ContainsFunc(alive, func(s tailnet.Server) bool { return s.ID == id }) {
			continue
		}
		since, known := gone[id]
		if !known {
			gone[id] = time.Now()
			continue
		}
		if time.Since(since) < c.o.Grace || time.Since(c.started) < c.o.StartGrace {
			continue
		}
		n, err := c.o.Store.TakeOffline(ctx, c.o.Tailnet, id, c.o.Clock.Now())
		if err != nil && !errors.Is(err, context.Canceled) {
			c.log.Warn("nodes of a server that is gone could not be taken offline; it will be tried again", "err", err)
			continue
		}
		c.log.Info("a server is gone; its nodes that did not come back are offline", "server", id, "nodes", n)
		delete(gone, id)
		c.Changed()
		poke(c.wake)
	}
}
