package integration

import (
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/skein-vpn/skein/integration/lab"
	"tailscale.com/ipn/ipnstate"
)

const (
	clusterName = "skein.example.com"
	clusterURL  = "http://" + clusterName + ":8080"
	// stepAside is how long a server of these tests goes on without its database.
	stepAside = 8 * time.Second
)

// servers are three skein servers on one PostgreSQL, with clients.
type servers struct {
	t *testing.T
	*lab.Lab
	db      *lab.Postgres
	standby *lab.Postgres // nil: none
	dbHost  *lab.Host
	s       [3]*lab.Server
	loads   []*lab.Load
	renamed int
}

func newServers(t *testing.T, o serversOptions) *servers {
	t.Helper()
	t.Parallel()
	for _, v := range o.variants {
		if v != nil {
			v.Build(t)
		}
	}
	c := &servers{t: t, Lab: lab.New(t)}
	c.dbHost = c.Cloud("db")
	c.db = c.dbHost.StartPostgres()
	url := c.db.URL
	if o.standby {
		c.standby = c.Cloud("standby").StartStandby(c.db)
		url = fmt.Sprintf("postgres://skein@%s:5432,%s:5432/postgres?sslmode=disable&target_session_attrs=read-write", c.dbHost.Addr(), c.standby.Host.Addr())
	}
	for i := range c.s {
		name := fmt.Sprintf("s%d", i+1)
		so := lab.ServerOptions{URL: clusterURL, Variant: o.variants[i], Env: []string{
			"SKEIN_DATABASE_TYPE=postgres", "SKEIN_DATABASE_POSTGRES_URL=" + url, "SKEIN_CLUSTER_STEP_ASIDE_AFTER=" + stepAside.String(),
			"SKEIN_ROUTES_RESTART_GRACE=20s",
		}}
		so.Env = append(append(so.Env, o.env...), o.own[i]...)
		c.s[i] = c.Cloud(name).StartServer(so)
	}
	c.names(0, 1, 2)
	c.s[0].Skein("namespaces", "create", "junyao")
	c.Wait(soon, "the namespace is known everywhere", func() (bool, string) {
		for _, s := range c.s {
			if text := s.Skein("namespaces", "list"); !strings.Contains(text, "junyao") {
				return false, text
			}
		}
		return true, ""
	})
	return c
}

// serversOptions are variations of three servers; the zero value: all alike, on one database.
type serversOptions struct {
	env      []string // settings of all
	own      [3][]string
	variants [3]*lab.Variant
	standby  bool // the database has one
}

// names makes the servers' common name lead to these ones.
func (c *servers) names(which ...int) {
	var addrs []netip.Addr
	for _, i := range which {
		addrs = append(addrs, c.s[i].Host.Addr())
	}
	c.Name(clusterName, addrs...)
}

// join brings a new node up at one of the servers, with a key made at another one.
func (c *servers) join(at int, hostname string) *lab.Node {
	c.t.Helper()
	return c.joinOn(at, c.Cloud(hostname))
}

func (c *servers) joinOn(at int, h *lab.Host, args ...string) *lab.Node {
	c.t.Helper()
	c.names(at)
	defer c.names(0, 1, 2)
	key := c.s[(at+1)%3].Key("junyao")
	node := h.StartTailscaled(lab.NodeOptions{})
	node.Up(clusterURL, append(args, "--auth-key="+key)...)
	return node
}

// load has light nodes register all the time, at all servers, until prove.
func (c *servers) load() {
	c.t.Helper()
	for i, s := range c.s {
		c.loads = append(c.loads, c.Cloud(fmt.Sprintf("load%d", i+1)).StartLoad(fmt.Sprintf("http://%s:8080", s.Host.Addr()), s.Key("junyao", "--reusable")))
	}
}

// steady fails unless traffic between nodes went on all the time.
func (c *servers) steady(beat *lab.Beat) {
	c.t.Helper()
	sent, answered, gap := beat.Stop()
	c.Logf("pings between two nodes: %d of %d answered, longest gap %v", answered, sent, gap)
	if gap > hiccup {
		c.t.Errorf("traffic between nodes stopped for %v", gap)
	}
}

// cluster is the row of a server in "cluster status", as another one tells.
func (c *servers) cluster(at int, name string) lab.Row {
	c.t.Helper()
	_, rows := c.s[at].Table("cluster", "status")
	for _, row := range rows {
		if row["Server"] == name {
			return row
		}
	}
	return nil
}

// follows renames a node at one server and waits until the others see that: they are connected to a server that is up to date. It
// returns how long each took.
func (c *servers) follows(at int, who string, others ...*lab.Node) (slowest time.Duration) {
	c.t.Helper()
	c.renamed++
	name := fmt.Sprintf("name-%d", c.renamed)
	c.s[at].Skein("nodes", "rename", "-i", c.s[at].Node(who)["ID"], name)
	begin := time.Now()
	for _, o := range others {
		o.WaitPeer(patient, who, func(p *ipnstate.PeerStatus) bool { return strings.HasPrefix(p.DNSName, name+".") })
	}
	return time.Since(begin)
}

func (c *servers) measured(what string, d time.Duration) {
	c.Logf("measured: %s: %v", what, d.Round(time.Millisecond))
}

// online waits until all these nodes are online, as one server tells.
func (c *servers) online(at int, hostnames ...string) {
	c.t.Helper()
	for _, h := range hostnames {
		c.s[at].WaitNode(patient, h, "online", func(r lab.Row) bool { return r != nil && r["Online"] == "online" })
	}
}

// Three servers on one database, clients on each of them, light nodes that register all the time, and one fault after the other. In
// the end the database and its history say that nothing acknowledged was lost and nothing given out twice. One network for all of
// it, because building one takes longer than most of the faults.
func TestCluster(t *testing.T) {
	c := newServers(t, serversOptions{})
	a, b := c.join(0, "alpha"), c.join(1, "beta")

	// A login that begins at the third server is completed at the first.
	c.names(2)
	gamma := c.Cloud("gamma").StartTailscaled(lab.NodeOptions{})
	login := gamma.Login(clusterURL)
	c.names(0, 1, 2)
	c.s[0].Skein("nodes", "register", "--namespace", "junyao", "--key", login.Key)
	c.measured("login at one server, completed at another", login.Wait(soon))
	nodes := []*lab.Node{a, b, gamma}
	for i, n := range nodes {
		c.measured(fmt.Sprintf("change at s%d seen by all clients", i+1), c.follows(i, "alpha", b, gamma))
		n.Ping(soon, nodes[(i+1)%3].IP4())
	}
	for i := range c.s {
		c.online(i, "alpha", "beta", "gamma")
		if row := c.cluster(i, fmt.Sprintf("s%d", 3-i)); row == nil || row["State"] != "alive" {
			t.Errorf("s%d does not know s%d:\n%s", i+1, 3-i, c.s[i].Skein("cluster", "status"))
		}
	}

	c.relaysAreMeshed(a, gamma)
	c.concurrentJoins()
	c.load()
	direct(a, b)
	beat := a.Host.Beat(b.IP4())

	c.killOne(a, b, gamma)
	c.cutOneOff(a, b, gamma)
	c.pauseDatabase(a, b, gamma)
	c.restartAll(a, b, gamma)

	c.steady(beat)
	c.prove()
}

// relaysAreMeshed has two nodes without UDP reach each other although they are on relays of different servers.
func (c *servers) relaysAreMeshed(a, b *lab.Node) {
	c.t.Helper()
	defer c.relayed(a, b)()
	begin := time.Now()
	b.Ping(patient, a.IP4())
	c.measured("two nodes without UDP at relays of different servers reach each other", time.Since(begin))
}

// relayed leaves two nodes relays only, of different servers: a that of the first one. undo gives them UDP again.
func (c *servers) relayed(a, b *lab.Node) (undo func()) {
	c.t.Helper()
	a.Host.Block(lab.UDP)
	b.Host.Block(lab.UDP)
	c.s[0].Host.Ignore(b.Host.Addr())      // b has to take another relay than the first one, where a is
	b.MustCLI("debug", "break-derp-conns") // it would notice by itself, but not before a minute has passed
	return func() {
		c.s[0].Host.Heed(b.Host.Addr())
		a.Host.Unblock()
		b.Host.Unblock()
	}
}

// concurrentJoins registers nodes of the same names at all servers at once, and lets all of them try one key that is good for one
// node.
func (c *servers) concurrentJoins() {
	c.t.Helper()
	reusable, once := c.s[0].Key("junyao", "--reusable"), c.s[0].Key("junyao")
	var bursts, tries []*lab.Load
	for i, s := range c.s {
		url := fmt.Sprintf("http://%s:8080", s.Host.Addr())
		h := c.Cloud(fmt.Sprintf("burst%d", i+1))
		bursts = append(bursts, h.StartBurst(url, reusable, 15))
		h = c.Cloud(fmt.Sprintf("once%d", i+1))
		tries = append(tries, h.StartBurst(url, once, 2))
	}
	let := 0
	for _, l := range append(bursts, tries...) {
		if err := l.WaitEnd(patient); err != nil {
			c.t.Error(err)
		}
	}
	for _, l := range tries {
		let += len(l.Registered())
	}
	if let != 1 {
		c.t.Errorf("a key for one node let %d in", let)
	}
	for _, l := range bursts {
		if n := len(l.Registered()); n != 15 {
			c.t.Errorf("%d of 15 registered:\n%s", n, l.Tail(3))
		}
	}
	c.loads = append(c.loads, append(bursts, tries...)...)
}

// killOne kills a server like a power cut does: its clients are back at another one.
func (c *servers) killOne(a, b, g *lab.Node) {
	c.t.Helper()
	c.s[0].Kill()
	c.measured("clients of a killed server are at another one", c.follows(1, "gamma", a, b))
	c.online(1, "alpha", "beta", "gamma")
	c.s[0].StartAgain()
	c.online(0, "alpha", "beta", "gamma")
}

// cutOneOff keeps the database from answering one server: that one must send its clients away.
func (c *servers) cutOneOff(a, b, g *lab.Node) {
	c.t.Helper()
	lonely := c.s[1]
	c.dbHost.Ignore(lonely.Host.Addr())
	begin := time.Now()
	c.Wait(patient, "the lonely server says that it is not well", func() (bool, string) {
		text, err := lonely.Host.Get(2*time.Second, "http://127.0.0.1:8080/key?v=130")
		return err != nil, text
	})
	c.measured("a server without its database has stepped aside", time.Since(begin))
	if text, err := lonely.Host.Get(5*time.Second, "http://127.0.0.1:8080/health"); err == nil {
		c.t.Errorf("a server that has stepped aside is healthy: %s", text)
	}
	c.follows(2, "gamma", a, b)
	c.measured("its clients follow another server", time.Since(begin))
	c.online(2, "alpha", "beta", "gamma")
	c.dbHost.Heed(lonely.Host.Addr())
	begin = time.Now()
	c.Wait(patient, "the lonely server is well again", func() (bool, string) {
		_, err := lonely.Host.Get(2*time.Second, "http://127.0.0.1:8080/health")
		return err == nil, fmt.Sprint(err)
	})
	c.measured("it is back after the database was in reach", time.Since(begin))
	c.online(1, "alpha", "beta", "gamma")
}

// pauseDatabase stops the database for a moment: streams stay, and what is asked for then is done afterwards or refused clearly.
func (c *servers) pauseDatabase(a, b, g *lab.Node) {
	c.t.Helper()
	before := make([]string, len(c.s))
	for i := range c.s {
		before[i] = c.cluster(0, fmt.Sprintf("s%d", i+1))["Nodes"]
	}
	ended := len(regexp.MustCompile("stepping aside").FindAllString(c.s[0].Log()+c.s[2].Log(), -1))
	c.db.Pause()
	time.Sleep(4 * time.Second) // nothing to wait for: this is how long it is away
	c.db.Resume()
	begin := time.Now()
	c.follows(2, "gamma", a, b)
	c.measured("a change after the database was paused", time.Since(begin))
	if n := len(regexp.MustCompile("stepping aside").FindAllString(c.s[0].Log()+c.s[2].Log(), -1)); n != ended {
		c.t.Error("a server stepped aside although the database was back soon")
	}
	for i := range c.s {
		if now := c.cluster(0, fmt.Sprintf("s%d", i+1))["Nodes"]; now != before[i] {
			c.Logf("s%d had %s nodes before the pause and has %s after it", i+1, before[i], now)
		}
	}
}

// restartAll kills everything at once, the database too.
func (c *servers) restartAll(a, b, g *lab.Node) {
	c.t.Helper()
	for _, s := range c.s {
		s.Kill()
	}
	c.db.Kill()
	c.db.StartAgain()
	begin := time.Now()
	for _, s := range c.s {
		s.StartAgain()
	}
	c.measured("all servers healthy again", time.Since(begin))
	c.follows(0, "gamma", a, b)
	c.measured("all clients are back after everything was killed", time.Since(begin))
	c.online(1, "alpha", "beta", "gamma")
}
