package sim

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// scenario is one experiment. What goes wrong is said in its rows.
type scenario struct {
	name string
	run  func(*Sim, context.Context) []Row
	// takes is the time that it is asked to take, which is not part of its timeout.
	takes func(*Options) time.Duration
}

func noTime(*Options) time.Duration { return 0 }

// scenarios in the order in which they run.
var scenarios = []scenario{
	{"join", (*Sim).join, noTime},
	{"idle", (*Sim).idle, func(o *Options) time.Duration { return o.Idle }},
	{"single-join", (*Sim).singleJoin, noTime},
	{"change", (*Sim).change, noTime},
	{"online", (*Sim).online, noTime},
	{"route", (*Sim).route, noTime},
	{"burst", (*Sim).burst, noTime},
	{"roam", (*Sim).roam, func(o *Options) time.Duration { return o.RoamTime }},
	{"churn", (*Sim).churn, func(o *Options) time.Duration { return o.ChurnTime + o.ChurnLife }},
	{"herd", (*Sim).herd, noTime},
	{"restart", (*Sim).restart, noTime},
	{"abuse", (*Sim).abuse, func(o *Options) time.Duration { return time.Duration(len(abuses)+1) * o.AbuseTime }},
	{"policy", (*Sim).policy, noTime},
}

// ScenarioNames are the names of all scenarios in the order in which they run.
func ScenarioNames() (out []string) {
	for _, s := range scenarios {
		out = append(out, s.name)
	}
	return out
}

// scenarioNames are the scenarios to run, in their order; join is always the first.
func scenarioNames(asked []string) ([]string, error) {
	for _, a := range asked {
		if a != "all" && !slices.Contains(ScenarioNames(), a) {
			return nil, fmt.Errorf("there is no scenario %q; there are: all, %s", a, strings.Join(ScenarioNames(), ", "))
		}
	}
	if len(asked) == 0 || slices.Contains(asked, "all") {
		return ScenarioNames(), nil
	}
	return slices.DeleteFunc(ScenarioNames(), func(n string) bool { return n != "join" && !slices.Contains(asked, n) }), nil
}

// measuring is a measurement that has begun.
type measuring struct {
	s     *Sim
	begin time.Time
	took  time.Duration // 0: reached is not called yet
	u     usage
}

// measure begins a measurement once everything is quiet.
func (s *Sim) measure(ctx context.Context) *measuring {
	s.settle(ctx)
	if s.o.Server != nil {
		resetPeak(s.o.Server.PID())
	}
	return &measuring{s: s, u: s.usage(), begin: time.Now()}
}

// reached notes that the goal is reached, or given up.
func (m *measuring) reached() { m.took = time.Since(m.begin) }

// row ends the measurement when the server rests.
func (m *measuring) row(ctx context.Context, what string, changes int) Row {
	if m.took == 0 {
		m.reached()
	}
	if ctx.Err() == nil {
		m.s.settle(ctx)
	}
	u := m.s.usage()
	n := float64(len(m.s.clients))
	r := Row{
		What: what, Changes: changes, Seconds: m.took.Seconds(),
		ServerCPU: u.serverCPU - m.u.serverCPU, SimCPU: u.simCPU - m.u.simCPU,
		ReceivedPerClient: float64(u.received-m.u.received) / n, SentPerClient: float64(u.sent-m.u.sent) / n,
		Frames: u.frames - m.u.frames, KeepAlives: u.keepAlives - m.u.keepAlives,
		MemoryBefore: m.u.serverMemory, MemoryAfter: u.serverMemory, MemoryPeak: u.serverPeak,
	}
	if changes > 0 {
		r.PerChange = 1000 * r.ServerCPU / float64(changes)
		r.ReceivedPerClientAndChange = r.ReceivedPerClient / float64(changes)
	}
	return r
}

// problems collects what went wrong, the first few of it.
type problems struct {
	mu   sync.Mutex
	n    int
	text []string
}

func (p *problems) add(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.n++; p.n <= 3 {
		p.text = append(p.text, fmt.Sprintf(format, args...))
	}
}

func (p *problems) String() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.n > len(p.text) {
		return strings.Join(p.text, "; ") + fmt.Sprintf("; and %d more", p.n-len(p.text))
	}
	return strings.Join(p.text, "; ")
}

// join connects all clients, some at a time.
func (s *Sim) join(ctx context.Context) []Row {
	m := s.measure(ctx)
	g := s.fullMapGoal(func(c *client) int {
		if s.o.Partial {
			return 0
		}
		return len(s.clients) - 1
	})
	s.board.add(g)
	defer s.board.remove(g)
	took := make([]time.Duration, len(s.clients))
	var next atomic.Int64
	var wg sync.WaitGroup
	for range s.o.Concurrency {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= len(s.clients) || ctx.Err() != nil {
					return
				}
				begin := time.Now()
				s.start(s.ctx, s.clients[i])
				select {
				case <-s.clients[i].ready:
					took[i] = time.Since(begin)
				case <-ctx.Done():
					return
				}
			}
		})
	}
	wg.Wait()
	ok := wait(ctx, g)
	m.reached()
	if s.o.Partial {
		s.settle(ctx)
	}
	row := m.row(ctx, "join", len(s.clients))
	row.Latency = latencyOf(slices.DeleteFunc(took, func(d time.Duration) bool { return d == 0 }))
	if !ok {
		row.Missing = s.status()
	}
	return []Row{row}
}

// idle does nothing for a while.
func (s *Sim) idle(ctx context.Context) []Row {
	m := s.measure(ctx)
	interrupted := sleep(ctx, s.o.Idle) != nil
	m.reached()
	row := m.row(ctx, "idle", 0)
	row.Note = fmt.Sprintf("%d keep-alives, %d other responses", row.KeepAlives, row.Frames)
	if interrupted {
		row.Missing = "it was interrupted"
	}
	return []Row{row}
}

// singleJoin has one more node join, several times.
func (s *Sim) singleJoin(ctx context.Context) []Row {
	var p problems
	var first []time.Duration
	var seen []*goal
	authKey := cmp.Or(s.o.EphemeralKey, s.o.Keys[0])
	m := s.measure(ctx)
	var pauses time.Duration
	for i := range s.o.Joins {
		s.say("single-join %d of %d", i+1, s.o.Joins)
		c := s.newExtra(authKey, s.o.EphemeralKey != "")
		g := newGoal(appears, c.index, "", s.clients, everyone)
		s.board.add(g)
		life, end := context.WithCancel(s.ctx)
		s.start(life, c)
		select {
		case <-c.ready:
			c.mu.Lock()
			first = append(first, c.fullAt.Sub(c.asked))
			c.mu.Unlock()
		case <-ctx.Done():
			p.add("%s has no full map", c.name)
		}
		if !s.o.Partial && !wait(ctx, g) { // otherwise nobody knows who should see it
			p.add("%s is not seen by %s", c.name, g.missing(s.clients))
		}
		before := time.Now()
		s.settle(ctx)
		pauses += time.Since(before)
		s.board.remove(g)
		seen = append(seen, g)
		s.leave(ctx, c, end, nil)
		if ctx.Err() != nil {
			break
		}
	}
	m.reached()
	m.took -= pauses
	row := m.row(ctx, "single join: own full map", len(first))
	row.Latency = latencyOf(first)
	row.Note = "from sending the registration; CPU and bytes are for joining and leaving"
	all := Row{What: "single join: seen by all", Part: true, Changes: len(seen), Note: "from dialling"}
	all.fanOut(seen)
	row.Missing = p.String()
	return []Row{row, all}
}

// leave logs a client out and ends it. The goal, if not nil, is begun just before.
func (s *Sim) leave(ctx context.Context, c *client, end context.CancelFunc, g *goal) {
	if g != nil {
		s.board.add(g)
	}
	if c.ephemeral {
		short, cancel := context.WithTimeout(ctx, 10*time.Second)
		if err := c.logout(short); err != nil && ctx.Err() == nil {
			s.fault("%s could not log out: %v", c.name, err)
		}
		cancel()
	}
	end()
	<-c.done
}

// change moves one client after the other.
func (s *Sim) change(ctx context.Context) []Row {
	var list []*goal
	var p problems
	m := s.measure(ctx)
	for i := range s.o.Changes {
		s.say("change %d of %d", i+1, s.o.Changes)
		g := s.moveOne(ctx, s.clients[rand.N(len(s.clients))], &p)
		ok := wait(ctx, g)
		s.board.remove(g)
		list = append(list, g)
		if !ok {
			p.add("a change of %s was not seen by %s", s.clients[g.node].name, g.missing(s.clients))
			break
		}
	}
	m.reached()
	row := m.row(ctx, "endpoint change", len(list))
	row.fanOut(list)
	row.Missing = p.String()
	return []Row{row}
}

// moveOne has a client change its endpoints; the goal is on the board.
func (s *Sim) moveOne(ctx context.Context, c *client, p *problems) (g *goal) {
	c.move(func(mark string) {
		g = newGoal(endpoints, c.index, mark, s.clients, s.viewersOf(c))
		s.board.add(g)
	}, func(err error) {
		if err != nil && ctx.Err() == nil {
			p.add("%s could not report: %v", c.name, err)
		}
	})
	return g
}

// burst moves many clients at once.
func (s *Sim) burst(ctx context.Context) []Row {
	var p problems
	m := s.measure(ctx)
	list := make([]*goal, s.o.Burst)
	var wg sync.WaitGroup
	for i, k := range rand.Perm(len(s.clients))[:s.o.Burst] {
		wg.Go(func() { list[i] = s.moveOne(ctx, s.clients[k], &p) })
	}
	wg.Wait()
	ok := wait(ctx, list...)
	m.reached()
	s.board.remove(list...)
	row := m.row(ctx, fmt.Sprintf("burst of %d endpoint changes", s.o.Burst), s.o.Burst)
	row.fanOut(list)
	if !ok {
		for _, g := range list {
			if who := g.missing(s.clients); who != "" {
				p.add("a change of %s was not seen by %s", s.clients[g.node].name, who)
			}
		}
	}
	row.Missing = p.String()
	return []Row{row}
}

// roam has clients change their endpoints at a rate, one chosen at random after the other, whether or not the ones before
// are known everywhere.
func (s *Sim) roam(ctx context.Context) []Row {
	var p problems
	m := s.measure(ctx)
	list := s.roamFor(ctx, s.o.RoamTime, &p)
	m.reached()
	row := m.row(ctx, fmt.Sprintf("endpoint changes, %.3g a second", s.o.RoamRate), len(list))
	row.fanOut(list)
	row.Missing = p.String()
	return []Row{row}
}

// roamFor changes endpoints at the rate for so long and waits until everybody knows.
func (s *Sim) roamFor(ctx context.Context, d time.Duration, p *problems) []*goal {
	t := time.NewTicker(time.Duration(float64(time.Second) / s.o.RoamRate))
	defer t.Stop()
	list := make([]*goal, max(1, int(s.o.RoamRate*d.Seconds())))
	var wg sync.WaitGroup
	order := rand.Perm(len(s.clients)) // one that changed twice would skip a step for those who are late
	for i := range list {
		select {
		case <-t.C:
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			list = list[:i]
			break
		}
		s.say("change %d of %d", i+1, len(list))
		wg.Go(func() { list[i] = s.moveOne(ctx, s.clients[order[i%len(order)]], p) })
	}
	wg.Wait()
	wait(ctx, list...)
	s.board.remove(list...)
	for _, g := range list {
		if who := g.missing(s.clients); who != "" {
			p.add("a change of %s was not seen by %s", s.clients[g.node].name, who)
		}
	}
	return list
}

// online takes one client away and brings it back, several times.
func (s *Sim) online(ctx context.Context) []Row {
	var gone, back []*goal
	var rows []Row
	var pGone, pBack problems
	step := func(what string, a aspect, c *client, do func(), p *problems) *goal {
		sees := s.viewersOf(c)
		g := newGoal(a, c.index, "", s.clients, func(v *client) bool { return !v.away() && sees(v) })
		s.board.add(g)
		defer s.board.remove(g)
		do()
		if !wait(ctx, g) {
			p.add("that %s %s was not seen by %s", c.name, what, g.missing(s.clients))
		}
		return g
	}
	m := s.measure(ctx)
	var away []*client
	defer func() {
		for _, c := range away {
			c.resume()
		}
	}()
	for i := range s.o.Flips {
		s.say("online %d of %d: away", i+1, s.o.Flips)
		c := s.clients[(i*7+1)%len(s.clients)]
		if slices.Contains(away, c) {
			break
		}
		away = append(away, c)
		if gone = append(gone, step("went offline", offline, c, c.pause, &pGone)); ctx.Err() != nil {
			break
		}
	}
	rows = append(rows, m.row(ctx, "went offline", len(gone)))
	rows[0].fanOut(gone)
	rows[0].Missing, rows[0].Note = pGone.String(), "from cutting the connection, with the time that the server waits before it says so: see the spread"
	if ctx.Err() != nil {
		return rows
	}
	m = s.measure(ctx)
	for i, c := range away {
		s.say("online %d of %d: back", i+1, len(away))
		if back = append(back, step("came back", online, c, c.resume, &pBack)); ctx.Err() != nil {
			break
		}
	}
	rows = append(rows, m.row(ctx, "came online", len(back)))
	rows[1].fanOut(back)
	rows[1].Missing, rows[1].Note = pBack.String(), "from dialling"
	return rows
}

// route approves routes of several clients, one after the other.
func (s *Sim) route(ctx context.Context) []Row {
	if s.o.Approve == nil {
		return []Row{{What: "route approval", Skipped: "there is no way to approve a route (-approve-cmd)"}}
	}
	type offer struct {
		c *client
		p netip.Prefix
	}
	var offers []offer
	for i := range min(s.o.Routes, len(s.clients)) {
		o := offer{s.clients[(i*11+3)%len(s.clients)], netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, byte(i), 0}), 24)}
		if err := o.c.advertise(ctx, o.p); err != nil {
			return []Row{{What: "route approval", Missing: fmt.Sprintf("%s could not advertise %s: %v", o.c.name, o.p, err)}}
		}
		offers = append(offers, o)
	}
	var list []*goal
	var p problems
	m := s.measure(ctx)
	for i, o := range offers {
		s.say("route %d of %d", i+1, len(offers))
		o.c.mu.Lock()
		id := o.c.nodeID
		o.c.mu.Unlock()
		g := newGoal(routed, o.c.index, `"`+o.p.String()+`"`, s.clients, s.viewersOf(o.c))
		s.board.add(g)
		err := s.o.Approve(ctx, id, o.c.name, o.p)
		if err != nil {
			p.add("approving %s of %s: %v", o.p, o.c.name, err)
		}
		ok := err == nil && wait(ctx, g)
		s.board.remove(g)
		list = append(list, g)
		if !ok {
			if err == nil {
				p.add("%s of %s was not seen by %s", o.p, o.c.name, g.missing(s.clients))
			}
			break
		}
	}
	m.reached()
	row := m.row(ctx, "route approval", len(list))
	row.fanOut(list)
	row.Missing = p.String()
	return []Row{row}
}

// policy changes the policy a few times.
func (s *Sim) policy(ctx context.Context) []Row {
	if s.o.Policy == nil {
		return []Row{{What: "policy change", Skipped: "there is no way to change the policy (-policy-cmd)"}}
	}
	const times = 3
	var list []*goal
	var p problems
	if err := s.o.Policy(ctx, 1); err != nil { // from none to one is another step than from one to the next
		return []Row{{What: "policy change", Missing: fmt.Sprintf("changing the policy: %v", err)}}
	}
	m := s.measure(ctx)
	var pauses time.Duration
	for i := range times {
		s.say("policy %d of %d", i+1, times)
		g := newGoal(told, stranger, "", s.clients, everyone)
		s.board.add(g)
		if err := s.o.Policy(ctx, i+2); err != nil {
			s.board.remove(g)
			p.add("changing the policy: %v", err)
			break
		}
		// A policy need not concern everyone: what counts is who was told until the server rested.
		before := time.Now()
		for n := 0; n == 0 && ctx.Err() == nil; n = len(g.latencies()) {
			s.settle(ctx)
		}
		pauses += time.Since(before)
		s.board.remove(g)
		list = append(list, g)
		if l := g.latencies(); len(l) > 0 {
			pauses -= slices.Max(l)
		} else {
			p.add("nobody was told of change %d", i+1)
			break
		}
	}
	m.reached()
	m.took -= pauses
	row := m.row(ctx, "policy change", len(list))
	row.fanOut(list)
	row.Note = fmt.Sprintf("%d times a client was told, in %d changes; from before the command", row.Latency.Samples, len(list))
	row.Missing = p.String()
	return []Row{row}
}

// churn has ephemeral nodes join and leave at a rate.
func (s *Sim) churn(ctx context.Context) []Row {
	if s.o.EphemeralKey == "" {
		return []Row{{What: "churn", Skipped: "it needs a key for ephemeral nodes (-ephemeral-key)"}}
	}
	var p problems
	var mu sync.Mutex
	var seen, left []*goal
	m := s.measure(ctx)
	var wg sync.WaitGroup
	one := func() {
		c := s.newExtra(s.o.EphemeralKey, true)
		g := newGoal(appears, c.index, "", s.clients, everyone)
		s.board.add(g)
		defer s.board.remove(g)
		life, end := context.WithCancel(s.ctx)
		s.start(life, c)
		_ = sleep(ctx, s.o.ChurnLife)
		select {
		case <-c.ready:
		case <-ctx.Done():
			p.add("%s has no full map", c.name)
		}
		gone := newGoal(vanishes, c.index, "", s.clients, s.viewersOf(c))
		s.leave(ctx, c, end, gone)
		mu.Lock()
		defer mu.Unlock()
		seen, left = append(seen, g), append(left, gone)
	}
	total := max(1, int(s.o.ChurnRate*s.o.ChurnTime.Seconds()))
	// A server that cannot keep up must not make the simulator pile up nodes.
	room := make(chan struct{}, 64+4*int(s.o.ChurnRate*s.o.ChurnLife.Seconds()))
	t := time.NewTicker(time.Duration(float64(time.Second) / s.o.ChurnRate))
	defer t.Stop()
	late := 0
	for i := 0; i < total && ctx.Err() == nil; i++ {
		s.say("churn %d of %d", i+1, total)
		select {
		case <-t.C:
		case <-ctx.Done():
		}
		select {
		case room <- struct{}{}:
		default:
			late++
			select {
			case room <- struct{}{}:
			case <-ctx.Done():
				continue
			}
		}
		wg.Go(func() {
			one()
			<-room
		})
	}
	wg.Wait()
	s.allLeft(ctx, left, &p)
	m.reached()
	joined := m.row(ctx, "churn: join seen by all", len(seen))
	joined.fanOut(seen)
	joined.Note = fmt.Sprintf("%.3g a second, each for %s; from dialling; CPU is for joining and leaving", s.o.ChurnRate, s.o.ChurnLife)
	if late > 0 {
		joined.Note += fmt.Sprintf("; %d were started late, because too many had not left yet", late)
	}
	if never, of := unmet(seen); never > 0 && !s.o.Partial {
		p.add("%d of %d times a client never saw a node that joined", never, of)
	}
	joined.Missing = p.String()
	parted := Row{What: "churn: leave seen by all", Part: true, Changes: len(left), Note: "from the request to log out"}
	parted.fanOut(left)
	return []Row{joined, parted}
}

// allLeft waits until nobody sees the nodes that left. Who never saw one is not told that it left either.
func (s *Sim) allLeft(ctx context.Context, left []*goal, p *problems) {
	defer s.board.remove(left...)
	brief, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	for !wait(brief, left...) {
		s.settle(ctx)
		still := 0
		for _, g := range left {
			for i, v := range s.clients {
				v.mu.Lock()
				sees := v.seesLocked(g.node)
				v.mu.Unlock()
				if g.met[i].Load() == 0 && sees {
					still++
				}
			}
		}
		if still == 0 {
			return
		}
		if ctx.Err() != nil {
			p.add("%d times a client still sees a node that left", still)
			return
		}
	}
}

// unmet counts the viewers that did not meet a goal, of all that should have.
func unmet(list []*goal) (never, of int) {
	for _, g := range list {
		for i := range g.met {
			switch g.met[i].Load() {
			case 0:
				never++
				of++
			case notAsked:
			default:
				of++
			}
		}
	}
	return never, of
}

// herd cuts all connections at once.
func (s *Sim) herd(ctx context.Context) []Row {
	m := s.measure(ctx)
	row := s.back(ctx, m, "herd", func() error {
		for _, c := range s.clients {
			c.cut()
		}
		return nil
	})
	return []Row{row}
}

// back does something that ends all connections and waits until all clients have their full maps again.
func (s *Sim) back(ctx context.Context, m *measuring, what string, do func() error) Row {
	g := s.fullMapGoal(s.expected)
	s.board.add(g)
	defer s.board.remove(g)
	m.begin = g.begin
	if err := do(); err != nil {
		return Row{What: what, Missing: err.Error()}
	}
	ok := wait(ctx, g)
	m.reached()
	row := m.row(ctx, what, 0)
	row.Latency = latencyOf(g.latencies())
	if !ok {
		row.Missing = s.status()
	}
	return row
}

// restart kills the server and starts it again.
func (s *Sim) restart(ctx context.Context) []Row {
	if s.o.Server == nil {
		return []Row{{What: "restart", Skipped: "the server was not started by the simulator (-skein, -server-cmd)"}}
	}
	m := s.measure(ctx)
	for _, c := range s.clients {
		c.mu.Lock()
		c.cutting = true
		c.mu.Unlock()
	}
	var unsupported bool
	row := s.back(ctx, m, "restart after kill -9", func() error {
		err := s.o.Server.Kill()
		if unsupported = errors.Is(err, errors.ErrUnsupported); err != nil {
			return err
		}
		m.u.serverCPU, m.u.serverMemory = 0, 0 // those of the new process count
		return s.o.Server.Start()
	})
	if unsupported {
		return []Row{{What: "restart", Skipped: "the server was not started by the simulator (-skein, -server-cmd)"}}
	}
	return []Row{row}
}
