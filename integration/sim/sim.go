// Package sim puts a coordination server under load and measures it: thousands of light clients in one process, speaking
// the protocol of stock Tailscale clients over loopback. It works with Skein and with every other server that does, given
// its URL and a pre-auth key. The command is cmd/skeinsim.
//
// # The road of one client
//
//	TCP ─▶ POST /ts2021 (Noise) ─▶ HTTP/2 ─▶ /machine/register ─▶ /machine/map: lite update and stream
//	└ dial.go ───────────────────┘ └ h2.go ┘ └ client.go ──────────────────────────────────────────┘
//	stream ─▶ frames ─▶ message (frame.go, scan.go) ─▶ what the client sees now, and goals that are met (goal.go)
//
// A client is one goroutine and a connection. It does not keep its peers, only a bit for each of the other clients, and it
// reads of a response only what a scenario asks for; responses that many clients get are read once. So the simulator takes
// little of the machine that it shares with the server, and says how much it took.
//
// # Scenarios, in the order in which they run
//
//	join         N clients join, Concurrency at a time, until everyone sees everyone
//	idle         nothing happens for a while: what the server needs then, and its memory for each client
//	single-join  one more node joins: from its registration to its full map, and until all others see it
//	change       the endpoints of one client change, until all others know; one client after the other
//	online       one client goes away, until all others know, and comes back
//	route        one route is approved, until all others know
//	burst        100 clients change their endpoints at once
//	roam         clients change their endpoints at a rate
//	churn        ephemeral nodes join and leave at a rate
//	herd         all connections are cut at once, until all have their full map again
//	restart      the server is killed (SIGKILL) and started, until all have their full map again
//	abuse        clients that misbehave in one way after the other (abuse.go), while others change their endpoints at a rate
//	policy       one rule of the policy changes: until those whom it concerns have been sent something
//
// # Layouts
//
// Who the clients are (Layout) decides who sees whom. In the open one everybody sees everybody, and each scenario costs what
// it costs at the most. In the others a policy is in force: company has users in groups, servers with tags and
// autogroup:self; self has autogroup:self alone; teams lets everybody see 100 others.
//
// # What is measured
//
// A latency is the time from just before a cause (the request is sent, the connection is cut, the server is killed) to the
// moment in which a client has read the response that tells it. In a fan-out every client is a sample. "spread" is the time
// since the first client knew, which leaves out what comes before publishing, such as the grace before a node counts as
// offline. Server and simulator share the machine, so latencies hold the simulator's own work, too; CPU seconds don't.
//
// CPU seconds and memory are the kernel's figures for the server's process (/proc/PID/stat and status), from the beginning
// of the scenario until it is quiet again. The peak of the memory is set back before each scenario where the kernel
// permits it. Bytes are those on the TCP connections, with Noise, HTTP/2 and all.
//
// # What is checked
//
// A scenario that does not reach its goal within Timeout fails and says who misses what; so does a node that is sent itself
// as a peer, a response that cannot be read, and a stream that ends although nobody cut it.
//
// # Bounds
//
// Only loopback addresses are put under load unless AllowRemote is set. Everything ends: scenarios by Timeout, the run by
// its context; when Run returns, all clients have ended.
package sim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"tailscale.com/types/key"
)

// Options says what to run. The zero value of a number is its default.
type Options struct {
	// URL is the server, Keys are reusable pre-auth keys, which the clients use in turn. Both are required.
	URL  string
	Keys []string
	// EphemeralKey is a reusable key for ephemeral nodes. Without one, churn is skipped and single-join leaves its nodes
	// behind, offline.
	EphemeralKey string
	// AllowRemote permits load on servers that are not on this machine.
	AllowRemote bool

	Clients     int      // 100
	Concurrency int      // clients that join at the same time; 32
	Dials       int      // connections that are being made at the same time, at any moment; 1000
	Scenarios   []string // empty or "all": all of them
	// Partial: a policy keeps nodes from each other. Then a change is expected by those who see the node, and after
	// joining it is enough that everyone has a full map and nothing comes any more.
	Partial bool

	Changes int           // endpoint changes, one after the other; 20
	Burst   int           // clients that change at once; 100, or all clients if there are fewer
	Joins   int           // single joins; 5
	Flips   int           // times that a client goes offline and comes back; 3
	Routes  int           // approvals; 5
	Idle    time.Duration // one minute

	RoamRate  float64       // endpoint changes a second; 10
	RoamTime  time.Duration // 20 s
	AbuseTime time.Duration // of each kind; 10 s

	ChurnRate float64       // joins a second; 5
	ChurnTime time.Duration // 20 s
	ChurnLife time.Duration // how long such a node stays; 3 s

	// Timeout bounds each scenario; 2 minutes. Times that are asked for above come on top.
	Timeout time.Duration

	// Approve approves a route. nil: the scenario route is skipped.
	Approve func(ctx context.Context, node int64, name string, route netip.Prefix) error
	// Policy changes one rule of the policy; n is another number each time. nil: the scenario policy is skipped.
	Policy func(ctx context.Context, n int) error
	// Server is measured, killed and started. nil: nothing is measured and restart is skipped.
	Server Server

	quiet time.Duration // nothing is sent for so long: the server has finished; 300 ms

	// Log gets a line per scenario and the progress; Terminal says that it may be a line that overwrites itself. nil: none.
	Log      io.Writer
	Terminal bool
}

// Server is the process under load.
type Server interface {
	// PID is the process now.
	PID() int
	// Kill ends the process as a crash would; Start starts it again over the same data and returns without waiting until
	// it serves. errors.ErrUnsupported: the process is not ours.
	Kill() error
	Start() error
}

// Sim is a running simulation.
type Sim struct {
	o       Options
	target  *target
	reg     *registry
	decoder *decoder
	board   board
	clients []*client // the steady ones; others come after them by index
	dials   chan struct{}

	ctx  context.Context
	stop context.CancelCauseFunc
	wg   sync.WaitGroup // clients

	extra      atomic.Int32 // clients beyond the steady ones
	frames     atomic.Int64 // responses that say something
	keepAlives atomic.Int64
	lost       atomic.Int64 // streams that ended although nobody cut them
	lastLoss   atomic.Pointer[lossReport]
	doing      atomic.Pointer[string] // for the progress line

	mu     sync.Mutex
	faults []string // guarded by mu: what the server did wrong, the first few
}

type lossReport struct {
	name string
	err  error
}

func (o *Options) defaults() {
	def := func(p *int, v int) {
		if *p <= 0 {
			*p = v
		}
	}
	def(&o.Clients, 100)
	def(&o.Concurrency, 32)
	def(&o.Dials, 1000)
	def(&o.Changes, 20)
	def(&o.Burst, 100)
	def(&o.Joins, 5)
	def(&o.Flips, 3)
	def(&o.Routes, 5)
	for _, d := range []struct {
		p *time.Duration
		v time.Duration
	}{{&o.Idle, time.Minute}, {&o.RoamTime, 20 * time.Second}, {&o.AbuseTime, 10 * time.Second}, {&o.ChurnTime, 20 * time.Second}, {&o.ChurnLife, 3 * time.Second}, {&o.Timeout, 2 * time.Minute}, {&o.quiet, 300 * time.Millisecond}} {
		if *d.p <= 0 {
			*d.p = d.v
		}
	}
	if o.ChurnRate <= 0 {
		o.ChurnRate = 5
	}
	if o.RoamRate <= 0 {
		o.RoamRate = 10
	}
	o.Burst = min(o.Burst, o.Clients)
	if o.Log == nil {
		o.Log = io.Discard
	}
	o.Log = &lockedWriter{w: o.Log}
}

// Check says what is wrong with the options, as far as that can be known before there is a server.
func (o Options) Check() error {
	o.defaults()
	if _, err := scenarioNames(o.Scenarios); err != nil {
		return err
	}
	if o.Clients < 2 {
		return errors.New("it takes two clients at least (-n)")
	}
	return raiseFileLimit(o.Clients + 4*int(o.ChurnRate*o.ChurnLife.Seconds()) + abuseFiles + 100)
}

// lockedWriter serialises writes: progress and results come from two goroutines.
type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(b)
}

// Run runs the scenarios and reports on them. The report is there also if an error comes with it: errors are what stops
// the run; a scenario that did not reach its goal is said in the report.
func Run(ctx context.Context, o Options) (*Report, error) {
	if err := o.Check(); err != nil {
		return nil, err
	}
	o.defaults()
	names, err := scenarioNames(o.Scenarios)
	if err != nil {
		return nil, err
	}
	if len(o.Keys) == 0 {
		return nil, errors.New("a pre-auth key is needed (-key)")
	}
	t, err := newTarget(ctx, o.URL, o.AllowRemote)
	if err != nil {
		return nil, err
	}
	if err := t.fetchKey(ctx); err != nil {
		return nil, err
	}
	s := &Sim{o: o, target: t, reg: newRegistry(), dials: make(chan struct{}, o.Dials)}
	s.decoder = newDecoder(s.reg)
	defer s.decoder.close()
	s.ctx, s.stop = context.WithCancelCause(ctx)
	for i := range o.Clients {
		s.clients = append(s.clients, s.newClient(int32(i), o.Keys[i%len(o.Keys)], false))
	}
	defer s.wg.Wait()
	defer s.stop(nil)

	progress := make(chan struct{})
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		s.progress(progress)
	}()
	defer close(progress)
	return s.run(names)
}

func (s *Sim) run(names []string) (*Report, error) {
	r := newReport(s)
	for _, name := range names {
		sc := scenarios[slices.IndexFunc(scenarios, func(sc scenario) bool { return sc.name == name })]
		s.say("%s", name)
		ctx, cancel := context.WithTimeout(s.ctx, s.o.Timeout+sc.takes(&s.o))
		rows := sc.run(s, ctx)
		cancel()
		for _, row := range rows {
			row.Scenario, row.Clients = name, s.o.Clients
			r.Rows = append(r.Rows, row)
			fmt.Fprintln(s.o.Log, s.eraser()+row.line())
		}
		s.mu.Lock()
		r.Faults = slices.Clone(s.faults)
		s.mu.Unlock()
		r.finish(s)
		if err := context.Cause(s.ctx); err != nil {
			return r, err
		}
		if name == "join" && len(rows) > 0 && rows[len(rows)-1].Missing != "" {
			return r, errors.New("the clients did not all join; the other scenarios make no sense without them")
		}
	}
	return r, nil
}

// newClient makes a client that is not running yet.
func (s *Sim) newClient(index int32, authKey string, ephemeral bool) *client {
	c := &client{
		s: s, index: index, name: fmt.Sprintf("sim-%d", index+1), authKey: authKey, ephemeral: ephemeral,
		machine: key.NewMachine(), node: key.NewNode().Public(), disco: key.NewDisco().Public(),
		ready: make(chan struct{}), done: make(chan struct{}),
	}
	s.reg.add(c.node.String(), index)
	return c
}

// start runs a client until ctx ends; done is closed then.
func (s *Sim) start(ctx context.Context, c *client) {
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		c.run(ctx)
	}()
}

// newExtra makes a client beyond the steady ones.
func (s *Sim) newExtra(authKey string, ephemeral bool) *client {
	return s.newClient(int32(s.o.Clients)+s.extra.Add(1)-1, authKey, ephemeral)
}

// refuse ends the run: a server that refuses one client refuses all.
func (s *Sim) refuse(c *client, err error) { s.stop(fmt.Errorf("%s: %w", c.name, err)) }

// maxFaults is how many faults are kept.
const maxFaults = 20

// fault notes that the server did something wrong.
func (s *Sim) fault(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.faults) < maxFaults {
		s.faults = append(s.faults, fmt.Sprintf(format, args...))
	}
}

// everyone asks all viewers.
func everyone(*client) bool { return true }

// viewersOf asks those who should see the client.
func (s *Sim) viewersOf(c *client) func(*client) bool {
	if !s.o.Partial {
		return everyone
	}
	return func(v *client) bool {
		v.mu.Lock()
		defer v.mu.Unlock()
		return v.seesLocked(c.index)
	}
}

// fullMapGoal is that all clients have a new full map, with as many peers as want says.
func (s *Sim) fullMapGoal(want func(*client) int) *goal {
	g := newGoal(fullMap, stranger, "", s.clients, everyone)
	for _, c := range s.clients {
		g.want = append(g.want, want(c))
	}
	return g
}

// expected is how many peers a client should see now.
func (s *Sim) expected(c *client) int {
	if !s.o.Partial {
		return len(s.clients) - 1
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.peers
}

// maxSettle is how long settle waits at the most.
const maxSettle = 15 * time.Second

// settle waits until nothing is sent any more and the server rests, for a while at the most.
func (s *Sim) settle(ctx context.Context) {
	end := time.Now().Add(maxSettle)
	for time.Now().Before(end) {
		frames, cpu := s.frames.Load(), s.serverCPU()
		if sleep(ctx, s.o.quiet) != nil || s.frames.Load() == frames && s.serverCPU()-cpu <= 0.02 {
			return
		}
	}
}

// sleep waits for d or until ctx ends, which is the error.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// status says how the clients are, in a sentence.
func (s *Sim) status() string {
	var st struct{ connected, full, complete, least, gone int }
	st.least = len(s.clients)
	var example string
	for _, c := range s.clients {
		c.mu.Lock()
		if c.conn != nil {
			st.connected++
		}
		if errors.Is(c.err, errGone) {
			st.gone++
		}
		if c.err != nil && c.gate == nil && example == "" {
			example = fmt.Sprintf("; %s: %v", c.name, c.err)
		}
		if c.full {
			st.full++
			st.least = min(st.least, c.peers)
			if c.peers >= len(s.clients)-1 {
				st.complete++
			}
		}
		c.mu.Unlock()
	}
	if st.full == 0 {
		st.least = 0
	}
	parts := []string{fmt.Sprintf("%d of %d connected, %d with a map", st.connected, len(s.clients), st.full)}
	if !s.o.Partial {
		parts = append(parts, fmt.Sprintf("%d see all, the worst sees %d", st.complete, st.least))
	}
	if st.gone > 0 {
		parts = append(parts, fmt.Sprintf("%d are not known to the server any more", st.gone))
	}
	return strings.Join(parts, ", ") + example
}

// say sets what the progress line says.
func (s *Sim) say(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	s.doing.Store(&text)
}

// progress writes how it goes until done is closed: every 2 seconds on a terminal, every 10 elsewhere.
func (s *Sim) progress(done <-chan struct{}) {
	every := 10 * time.Second
	if s.o.Terminal {
		every = 2 * time.Second
	}
	t := time.NewTicker(every)
	defer t.Stop()
	begin := time.Now()
	for {
		select {
		case <-t.C:
			if doing := s.doing.Load(); doing != nil {
				end := "\n"
				if s.o.Terminal {
					end = ""
				}
				fmt.Fprintf(s.o.Log, "%s%4.0fs %s: %s%s", s.eraser(), time.Since(begin).Seconds(), *doing, s.status(), end)
			}
		case <-done:
			fmt.Fprint(s.o.Log, s.eraser())
			return
		}
	}
}

// eraser goes back to the beginning of the progress line and clears it.
func (s *Sim) eraser() string {
	if s.o.Terminal {
		return "\r\x1b[K"
	}
	return ""
}
