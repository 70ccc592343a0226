package cluster_test

import (
	"context"

	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"

	"github.com/skein-vpn/skein/cluster"
	"github.com/skein-vpn/skein/db"
	"github.com/skein-vpn/skein/db/pgtest"
	"github.com/skein-vpn/skein/dns"
	"github.com/skein-vpn/skein/netmap"
	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/state/statetest"
	"github.com/skein-vpn/skein/tailnet"
)

var _ cluster.Store = (*db.DB)(nil)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		pgtest.StopShared()
		os.Exit(code)
	}), goleak.IgnoreAnyFunction("github.com/skein-vpn/skein/db/pgtest.(*Server).Run.func1"))
}

var ctx = context.Background()

const patience = 2 * time.Minute

// member is one server: its database connections, its state and its place among the others.
type member struct {
	db    *db.DB
	st    *state.State
	c     *cluster.Cluster
	aside atomic.Bool
	stop  context.CancelFunc
	done  chan struct{}
	dead  bool
}

// quick are times for tests.
var quick = cluster.Options{Beat: 50 * time.Millisecond, TTL: 2 * time.Second, Grace: 300 * time.Millisecond, Poll: 500 * time.Millisecond, StepAside: time.Second}

// start runs a member until the test ends, or kill.
func start(t testing.TB, url, name string, o cluster.Options) *member {
	t.Helper()
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	if testing.Verbose() {
		log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	}
	d, err := db.Open(ctx, db.Options{URL: url, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	m := &member{db: d, done: make(chan struct{})}
	o.Store, o.Name, o.Log, o.OnAside = d, name, log, m.aside.Store
	m.c = cluster.New(o)
	if err := m.c.Join(ctx); err != nil {
		t.Fatal(err)
	}
	m.st, err = state.Open(ctx, state.Options{
		Store: d, Addressing: state.Addressing{Prefix4: netip.MustParsePrefix("100.64.0.0/10"), Prefix6: netip.MustParsePrefix("fd7a:115c:a1e0::/48")},
		DNS: &dns.Settings{MagicDNS: true, Base: "skein.internal"}, DERP: &state.DERPMaps{Current: &tailcfg.DERPMap{}},
		Server: m.c.ID(), SaveDelay: 10 * time.Millisecond, Changed: m.c.Changed, Leads: m.c.Leads, Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	run, stop := context.WithCancel(ctx)
	m.stop = stop
	go func() {
		m.c.Run(run, m.st.Follow)
		close(m.done)
	}()
	t.Cleanup(m.close)
	return m
}

func (m *member) close() {
	m.stop()
	<-m.done
	m.st.Close()
	_ = m.db.Close()
}

// die ends the member as kill -9 does: it says nothing any more.
func (m *member) die(t testing.TB) {
	t.Helper()
	_ = m.db.Close() // first, so that its end is not told
	m.close()
}

func must(t testing.TB, m *member, f func(*state.Tx) error) {
	t.Helper()
	if err := m.st.Update(ctx, "test", f); err != nil {
		t.Fatal(err)
	}
}

func addUser(t testing.TB, m *member, name string) (id tailnet.UserID) {
	t.Helper()
	must(t, m, func(tx *state.Tx) error {
		u := tx.NewUser(name)
		id = u.ID
		return tx.PutUser(u)
	})
	return id
}

// join adds a node and returns its id; it may be called from any goroutine.
func join(m *member, hostname string, user tailnet.UserID) (id tailnet.NodeID, err error) {
	machine, node := key.NewMachine().Public(), key.NewNode().Public()
	err = m.st.Update(ctx, "test: join", func(tx *state.Tx) error {
		n, err := tx.NewNode(hostname)
		if err != nil {
			return err
		}
		n.User, n.Authorized, n.MachineKey, n.NodeKey, n.DiscoKey = user, true, machine, node, key.NewDisco().Public()
		n.Hostinfo = &tailcfg.Hostinfo{Hostname: hostname, RoutableIPs: []netip.Prefix{netip.MustParsePrefix("192.168.199.0/24")}}
		n.ApprovedRoutes = n.Hostinfo.RoutableIPs
		id = n.ID
		return tx.PutNode(n)
	})
	return id, err
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

func three(t testing.TB) [3]*member {
	url := pgtest.Database(t)
	return [3]*member{start(t, url, "a", quick), start(t, url, "b", quick), start(t, url, "c", quick)}
}

// Changes of one server are seen by the others, without those nodes that did not change becoming other values.
func TestFollow(t *testing.T) {
	m := three(t)
	user := addUser(t, m[0], "junyao")
	eventually(t, "the user is known", func() bool { return m[1].st.Snapshot().User(user) != nil && m[2].st.Snapshot().User(user) != nil })
	var ids []tailnet.NodeID
	for i := range 6 {
		id, err := join(m[i%3], "node", user)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	all := func(ok func(sn *state.Snapshot) bool) func() bool {
		return func() bool { return ok(m[0].st.Snapshot()) && ok(m[1].st.Snapshot()) && ok(m[2].st.Snapshot()) }
	}
	eventually(t, "all nodes are known", all(func(sn *state.Snapshot) bool { return len(sn.Nodes()) == 6 }))
	before := m[1].st.Snapshot()
	must(t, m[0], func(tx *state.Tx) error {
		n := tx.Node(ids[0]).Clone()
		n.HomeDERP = 7
		return tx.PutNode(n)
	})
	eventually(t, "the change is known", all(func(sn *state.Snapshot) bool { return sn.Node(ids[0]).HomeDERP == 7 }))
	after := m[1].st.Snapshot()
	for _, id := range ids[1:] {
		if before.Node(id) != after.Node(id) {
			t.Errorf("node %d is another value although nothing about it has changed", id)
		}
	}
	must(t, m[2], func(tx *state.Tx) error { tx.DeleteNode(ids[0]); return nil })
	eventually(t, "the deletion is known", all(func(sn *state.Snapshot) bool { return sn.Node(ids[0]) == nil && len(sn.Nodes()) == 5 }))
}

// Who is online is told by the server that holds the session, and the route goes with it, the same at all servers.
func TestPresence(t *testing.T) {
	m := three(t)
	user := addUser(t, m[0], "junyao")
	first, err := join(m[0], "r1", user)
	if err != nil {
		t.Fatal(err)
	}
	second, err := join(m[1], "r2", user)
	if err != nil {
		t.Fatal(err)
	}
	lan := netip.MustParsePrefix("192.168.199.0/24")
	online := func(s *member, id tailnet.NodeID, v bool) {
		must(t, s, func(tx *state.Tx) error { tx.SetOnline(id, v); return nil })
	}
	all := func(what string, ok func(sn *state.Snapshot) bool) {
		t.Helper()
		eventually(t, what, func() bool {
			for _, s := range m {
				if !s.dead && !ok(s.st.Snapshot()) {
					return false
				}
			}
			return true
		})
	}
	all("both are known", func(sn *state.Snapshot) bool { return sn.Node(first) != nil && sn.Node(second) != nil })
	online(m[0], first, true)
	all("the first is online", func(sn *state.Snapshot) bool { return sn.Node(first).Online && sn.Routes.Primary(lan) == first })
	online(m[1], second, true)
	all("the second is online", func(sn *state.Snapshot) bool { return sn.Node(second).Online && sn.Routes.Primary(lan) == first })

	// It moves to another server; the old one notices late.
	online(m[2], first, true)
	all("the first has moved", func(sn *state.Snapshot) bool { return sn.Node(first).Server == m[2].c.ID() })
	online(m[0], first, false)
	online(m[0], second, false) // it has no session there: nothing happens
	must(t, m[0], func(tx *state.Tx) error { tx.SetFailing(first, true); return nil })
	all("the route is at the second", func(sn *state.Snapshot) bool {
		return sn.Node(first).Online && sn.Node(second).Online && sn.Routes.Primary(lan) == second
	})
	online(m[2], first, false)
	all("the first is offline", func(sn *state.Snapshot) bool { return !sn.Node(first).Online && sn.Node(second).Online })

	// The server of the second dies: it stays online until its grace is over.
	died := time.Now()
	m[1].die(t)
	m[1].dead = true
	all("the second is offline", func(sn *state.Snapshot) bool { return !sn.Node(second).Online })
	if after := time.Since(died); after < quick.Grace {
		t.Errorf("taken offline after %v", after)
	}
	online(m[0], second, true)
	all("the second is back at another server", func(sn *state.Snapshot) bool { return sn.Node(second).Online && sn.Routes.Primary(lan) == second })
}

// Three servers join nodes of one name, with one one-time key, at once: no address, name or id is given out twice, and the key
// lets one in.
func TestConcurrentJoins(t *testing.T) {
	m := three(t)
	user := addUser(t, m[0], "junyao")
	var once tailnet.PreAuthKeyID
	must(t, m[1], func(tx *state.Tx) error {
		k := tx.NewPreAuthKey()
		k.User, once = user, k.ID
		tx.PutPreAuthKey(k)
		return nil
	})
	eventually(t, "the key is known", func() bool {
		return !slices.ContainsFunc(m[:], func(s *member) bool { return s.st.Snapshot().PreAuthKey(once) == nil })
	})
	var mu sync.Mutex
	ids := map[tailnet.NodeID]bool{}
	used := 0
	var wg sync.WaitGroup
	for i, s := range m {
		for range 4 {
			wg.Go(func() {
				for j := range 15 {
					id, err := join(s, "same", user)
					if err != nil {
						t.Errorf("server %d, join %d: %v", i, j, err)
						continue
					}
					mu.Lock()
					if ids[id] {
						t.Errorf("node %d was acknowledged twice", id)
					}
					ids[id] = true
					mu.Unlock()
				}
			})
			wg.Go(func() {
				err := s.st.Update(ctx, "use the key", func(tx *state.Tx) error {
					k := tx.PreAuthKey(once)
					if err := k.Usable(tx.Now()); err != nil {
						return err
					}
					next := *k
					next.Used = true
					tx.PutPreAuthKey(&next)
					return nil
				})
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					used++
				} else if tailnet.CodeOf(err) != tailnet.Denied {
					t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	if used != 1 {
		t.Errorf("a key for one node let %d in", used)
	}
	check(t, m[0].db, ids)
	for _, s := range m {
		eventually(t, "all nodes are known everywhere", func() bool { return len(s.st.Snapshot().Nodes()) == len(ids) })
	}
}

// check reads the database and its history and proves that nothing acknowledged is lost and nothing given out twice.
func check(t testing.TB, d *db.DB, acked map[tailnet.NodeID]bool) {
	t.Helper()
	c, err := d.Load(ctx, 1)
	if err != nil {
		t.Fatal(err)
	}
	addrs, names := map[netip.Addr]tailnet.NodeID{}, map[string]tailnet.NodeID{}
	there := map[tailnet.NodeID]bool{}
	for _, n := range c.Nodes {
		there[n.ID] = true
		for _, a := range n.Addrs() {
			if o := addrs[a]; o != 0 {
				t.Errorf("%s belongs to nodes %d and %d", a, o, n.ID)
			}
			addrs[a] = n.ID
		}
		if o := names[n.Name]; o != 0 {
			t.Errorf("%q is the name of nodes %d and %d", n.Name, o, n.ID)
		}
		names[n.Name] = n.ID
	}
	revs, err := d.Revisions(ctx, 1, 0, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	first := map[tailnet.NodeID]tailnet.Rev{}
	for i, r := range revs {
		if r.Rev != tailnet.Rev(i+1) {
			t.Fatalf("revision %d stands at place %d", r.Rev, i+1)
		}
		for _, id := range r.PutNodes {
			if first[id] == 0 {
				first[id] = r.Rev
			}
		}
	}
	if len(revs) != int(c.Rev) {
		t.Errorf("%d revisions at rev %d", len(revs), c.Rev)
	}
	for id := range acked {
		if !there[id] || first[id] == 0 {
			t.Errorf("node %d was acknowledged and is not there", id)
		}
	}
}

// There is one leader; when it dies another one leads.
func TestLeader(t *testing.T) {
	m := three(t)
	leaders := func() (out []int) {
		for i, s := range m {
			if !s.dead && s.c.Leads() {
				out = append(out, i)
			}
		}
		return out
	}
	eventually(t, "somebody leads", func() bool { return len(leaders()) > 0 })
	for range 50 {
		if l := leaders(); len(l) > 1 {
			t.Fatalf("%v lead", l)
		}
		time.Sleep(2 * time.Millisecond)
	}
	l := leaders()[0]
	st, err := m[l].c.Status(ctx)
	if err != nil || len(st.Servers) != 3 || st.Leader != m[l].c.ID() {
		t.Errorf("%+v, %v", st, err)
	}
	m[l].die(t)
	m[l].dead = true
	eventually(t, "another one leads", func() bool { return len(leaders()) == 1 })
}

// A server that loses its database steps aside, and serves again once it has caught up with what happened meanwhile.
func TestStepAside(t *testing.T) {
	pg := pgtest.Start(t, pgtest.Options{})
	url := pg.NewDatabase(t)
	m := start(t, url, "a", quick)
	user := addUser(t, m, "junyao")
	if err := m.c.Health(); err != nil {
		t.Error(err)
	}
	pg.Pause()
	begin := time.Now()
	eventually(t, "it steps aside", m.aside.Load)
	t.Logf("aside after %v", time.Since(begin).Round(time.Millisecond))
	if err := m.c.Health(); tailnet.CodeOf(err) != tailnet.Unavailable {
		t.Errorf("healthy: %v", err)
	}
	if m.c.Leads() {
		t.Error("it leads")
	}
	pg.Resume()
	eventually(t, "it is back", func() bool { return !m.aside.Load() })
	if _, err := join(m, "n", user); err != nil {
		t.Error(err)
	}
	check(t, m.db, nil)
}

// BenchmarkPropagation is the time from a commit's acknowledgement at one server until another one has published it.
func BenchmarkPropagation(b *testing.B) {
	pg := pgtest.Start(b, pgtest.Options{Durable: true})
	url := pg.NewDatabase(b)
	o := cluster.Options{}
	m := [2]*member{start(b, url, "a", o), start(b, url, "b", o)}
	user := addUser(b, m[0], "junyao")
	id, err := join(m[0], "n", user)
	if err != nil {
		b.Fatal(err)
	}
	var added, whole []time.Duration
	for i := 0; b.Loop(); i++ {
		begin := time.Now()
		must(b, m[0], func(tx *state.Tx) error {
			n := tx.Node(id).Clone()
			n.HomeDERP = i + 1
			return tx.PutNode(n)
		})
		here, rev := time.Now(), m[0].st.Snapshot().Rev
		for sn := m[1].st.Snapshot(); sn.Rev < rev; sn = m[1].st.Snapshot() {
			<-sn.Superseded()
		}
		added, whole = append(added, time.Since(here)), append(whole, time.Since(begin))
	}
	slices.Sort(added)
	slices.Sort(whole)
	at := func(d []time.Duration, q float64) float64 {
		return float64(d[int(q*float64(len(d)-1))].Microseconds()) / 1000
	}
	b.ReportMetric(at(added, 0.5), "added-p50-ms")
	b.ReportMetric(at(added, 0.99), "added-p99-ms")
	b.ReportMetric(at(whole, 0.5), "whole-p50-ms")
}

// BenchmarkThreeWriters joins nodes at three servers at once, each with some clients at a time.
func BenchmarkThreeWriters(b *testing.B) {
	for _, servers := range []int{1, 3} {
		for _, clients := range []int{1, 16} {
			b.Run(fmt.Sprintf("servers=%d/clients=%d", servers, clients), func(b *testing.B) {
				pg := pgtest.Start(b, pgtest.Options{Durable: true})
				url := pg.NewDatabase(b)
				var m []*member
				for i := range servers {
					m = append(m, start(b, url, string(rune('a'+i)), cluster.Options{}))
				}
				user := addUser(b, m[0], "junyao")
				for _, s := range m {
					eventually(b, "the user is known", func() bool { return s.st.Snapshot().User(user) != nil })
				}
				var left atomic.Int64
				left.Store(int64(b.N))
				b.ResetTimer()
				var wg sync.WaitGroup
				for _, s := range m {
					for range clients {
						wg.Go(func() {
							for left.Add(-1) >= 0 {
								if _, err := join(s, "n", user); err != nil {
									b.Error(err)
								}
							}
						})
					}
				}
				wg.Wait()
				b.StopTimer()
				revs := m[0].st.Snapshot().Rev
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "joins/s")
				b.ReportMetric(float64(revs)/b.Elapsed().Seconds(), "commits/s")
			})
		}
	}
}

// BenchmarkServerJoins is how long a server takes that comes to a tailnet of 10,000 nodes: to connect, read everything, and make
// the first full map for a client.
func BenchmarkServerJoins(b *testing.B) {
	pg := pgtest.Start(b, pgtest.Options{})
	url := pg.NewDatabase(b)
	d, err := db.Open(ctx, db.Options{URL: url})
	if err != nil {
		b.Fatal(err)
	}
	c := statetest.Tailnet(10_000)
	if _, err := d.Commit(ctx, 1, 0, &tailnet.Changes{Tailnet: &c.Tailnet, PutUsers: c.Users, PutNodes: c.Nodes}); err != nil {
		b.Fatal(err)
	}
	_ = d.Close()
	var load, first time.Duration
	n := 0
	for b.Loop() {
		begin := time.Now()
		m := start(b, url, "a", cluster.Options{})
		load += time.Since(begin)
		begin = time.Now()
		f, ok := netmap.New(netmap.Options{}, nil).Full(m.st.Snapshot(), netmap.Viewer{Node: 1, Capver: tailcfg.CurrentCapabilityVersion, Compress: true})
		if !ok {
			b.Fatal("no map")
		}
		if _, err := f.WriteTo(io.Discard); err != nil {
			b.Fatal(err)
		}
		first += time.Since(begin)
		n++
		m.close()
	}
	b.ReportMetric(load.Seconds()/float64(n), "load-s")
	b.ReportMetric(first.Seconds()/float64(n), "first-map-s")
}

// What one server says, the others hear, and it does not.
func TestSay(t *testing.T) {
	url := pgtest.Database(t)
	var mu sync.Mutex
	heard := map[string][]string{}
	hear := func(who string) cluster.Options {
		o := quick
		o.OnWord = func(word string) {
			mu.Lock()
			defer mu.Unlock()
			heard[who] = append(heard[who], word)
		}
		return o
	}
	a, _ := start(t, url, "a", hear("a")), start(t, url, "b", hear("b"))
	eventually(t, "b hears", func() bool { // once it listens
		a.c.Say(ctx, "ssh")
		mu.Lock()
		defer mu.Unlock()
		return len(heard["b"]) > 0
	})
	mu.Lock()
	defer mu.Unlock()
	if len(heard["a"]) > 0 || heard["b"][0] != "ssh" {
		t.Errorf("heard: %v", heard)
	}
}

// Servers go by the database's clock, whatever their machines' say, and tell each other how far off those are.
func TestSkewedClocks(t *testing.T) {
	url := pgtest.Database(t)
	off := func(d time.Duration) cluster.Options {
		o := quick
		o.Clock = cluster.NewClock(func() time.Time { return time.Now().Add(d) }, nil)
		return o
	}
	ahead, behind := off(2*time.Hour), off(-3*time.Minute)
	start(t, url, "ahead", ahead)
	m := start(t, url, "behind", behind)
	for _, o := range []cluster.Options{ahead, behind} { // the database is on this machine
		if d := time.Until(o.Clock.Now()).Abs(); d > time.Minute {
			t.Errorf("a clock is %v off", d)
		}
	}
	eventually(t, "the skews are known", func() bool {
		st, err := m.c.Status(ctx)
		if err != nil || len(st.Servers) != 2 {
			return false
		}
		a, b := st.Servers[0].Skew-2*time.Hour, st.Servers[1].Skew+3*time.Minute
		return a.Abs() < time.Minute && b.Abs() < time.Minute
	})
}
