package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skein-vpn/skein/integration/lab"
	"tailscale.com/ipn/ipnstate"
)

// Servers that do not reach each other, but the database, and what crosses servers besides: SSH sessions confirmed elsewhere, and
// routers of one network at different servers.
func TestClusterApart(t *testing.T) {
	file := filepath.Join(t.TempDir(), "policy.hujson")
	writeSSHPolicy(t, file, `{"action": "check", "src": ["junyao@"], "dst": ["junyao@"], "users": ["root"]}`)
	c := newServers(t, serversOptions{env: []string{"SKEIN_POLICY_PATH=" + file}})
	a := c.joinOn(0, c.Cloud("alpha"), "--accept-routes")
	b, g, d := c.join(1, "beta"), c.joinOn(2, c.Cloud("gamma"), "--ssh"), c.join(2, "delta")
	c.load()
	direct(b, d)
	beat := b.Host.Beat(d.IP4())
	c.confirmElsewhere(b, g)
	c.failover(a)
	c.partition(a, b, g)
	c.steady(beat)
	c.prove()
}

// confirmElsewhere has an SSH session wait at the third server and be approved at the first.
func (c *servers) confirmElsewhere(from, to *lab.Node) {
	c.t.Helper()
	from.WaitPeer(soon, "gamma", nil)
	p := from.StartCLI("ssh", "root@gamma", "echo", "in as $(id -un)")
	var id string
	c.Wait(soon, "the session prints an address", func() (bool, string) {
		m := sshCheckURL.FindStringSubmatch(p.Log())
		if m != nil {
			id = strings.TrimSpace(m[2])
		}
		return m != nil, p.Log()
	})
	c.Wait(soon, "the session waits", func() (bool, string) {
		list := c.s[0].Skein("auth", "list")
		return strings.Contains(list, id), list
	})
	begin := time.Now()
	c.s[0].Skein("auth", "approve", id)
	if err := p.WaitEnd(soon); err != nil || !strings.Contains(p.Log(), "in as root") {
		c.t.Errorf("after the approval at another server: %v\n%s", err, p.Log())
	}
	c.measured("from the approval of an SSH session at another server to its end", time.Since(begin))
}

// failover takes one of two routers away that are connected to different servers.
func (c *servers) failover(a *lab.Node) {
	c.t.Helper()
	home := c.LAN("home", homeLAN, lab.EasyNAT)
	var routers []*lab.Node
	for i, name := range []string{"router1", "router2"} {
		h := home.Host(name, fmt.Sprintf("192.168.199.%d", 186+i))
		h.Forward()
		routers = append(routers, c.joinOn(i+1, h, "--advertise-routes="+homeLAN))
		c.s[0].Skein("routes", "enable", "-i", c.s[0].Node(name)["ID"], "-r", homeLAN)
		if i == 0 {
			a.WaitPeer(patient, name, carries(homeLAN))
		}
	}
	a.WaitPeer(patient, "router2", not(carries(homeLAN)))
	direct(a, routers[0])
	direct(a, routers[1])
	a.Ping(soon, home.Router.Addr())
	beat := a.Host.Beat(home.Router.Addr())
	begin := time.Now()
	routers[0].Host.CutCable()
	a.WaitPeer(patient, "router2", carries(homeLAN))
	c.measured("another router, at another server, carries the network", time.Since(begin))
	a.Ping(soon, home.Router.Addr())
	_, _, gap := beat.Stop()
	c.measured("network out of reach", gap)
	if gap > 15*time.Second {
		c.t.Errorf("the network behind two routers was out of reach for %v", gap)
	}
	for i := range c.s {
		c.Wait(patient, fmt.Sprintf("s%d knows who carries the network", i+1), func() (bool, string) {
			text := c.s[i].Skein("routes", "list")
			return strings.Count(text, "primary") <= 1, text
		})
	}
	routers[0].Host.PlugCable()
	a.WaitPeer(patient, "router1", func(p *ipnstate.PeerStatus) bool { return p.Online })
}

// partition keeps the servers from reaching each other: everything goes on but relaying between them, and they say so.
func (c *servers) partition(a, b, g *lab.Node) {
	c.t.Helper()
	defer c.relayed(a, g)()
	g.Ping(patient, a.IP4())
	relays := func(want string) {
		c.t.Helper()
		for i := range c.s {
			for j := range c.s {
				name := fmt.Sprintf("s%d", j+1)
				c.Wait(patient, fmt.Sprintf("s%d says that the relay of %s is %s", i+1, name, want), func() (bool, string) {
					row := c.cluster(i, name)
					return i == j && row["Relay"] == "" || row["Relay"] == want, fmt.Sprint(row)
				})
			}
		}
	}
	relays("reached")
	apart := func(do func(*lab.Host, *lab.Host)) {
		for _, s := range c.s {
			for _, o := range c.s {
				if s != o {
					do(s.Host, o.Host)
				}
			}
		}
	}
	apart(func(s, o *lab.Host) { s.Ignore(o.Addr()) })
	begin := time.Now()
	relays("unreached")
	c.measured("servers that do not reach each other say so", time.Since(begin))
	for i, s := range c.s {
		c.Wait(patient, "the log says so", func() (bool, string) {
			return strings.Count(s.Log(), "the relay of another server is not reached") >= 2, s.Tail(10)
		})
		if text, err := s.Host.Get(soon, "http://127.0.0.1:9090/metrics"); err != nil || !strings.Contains(text, "skein_relay_links_unreached 2\n") {
			c.t.Errorf("metrics of s%d: %v\n%s", i+1, err, text)
		}
		if row := c.cluster(i, fmt.Sprintf("s%d", (i+1)%3+1)); row["State"] != "alive" {
			c.t.Errorf("s%d takes a server for dead that the database hears of: %v", i+1, row)
		}
		c.measured(fmt.Sprintf("change at s%d seen by all clients meanwhile", i+1), c.follows(i, "beta", a, g))
	}
	c.online(0, "alpha", "beta", "gamma")
	if _, err := g.Host.Ping(never, a.IP4()); err == nil {
		c.t.Error("nodes at relays of servers apart reach each other without a direct path: then the log is wrong")
	}
	n := c.join(2, "epsilon")
	n.WaitPeer(soon, "alpha", nil)
	a.WaitPeer(soon, "epsilon", nil)

	apart(func(s, o *lab.Host) { s.Heed(o.Addr()) })
	begin = time.Now()
	g.Ping(patient, a.IP4())
	c.measured("nodes at relays of different servers reach each other after the way was free again", time.Since(begin))
	relays("reached")
	c.measured("servers say that they reach each other", time.Since(begin))
}

// Servers whose clocks are off by hours work like others, and say that they are off.
func TestClusterClocks(t *testing.T) {
	o := serversOptions{own: [3][]string{1: {"SKEIN_LAB_CLOCK=93600"}, 2: {"SKEIN_LAB_CLOCK=-5400"}}} // 26 hours ahead, 90 minutes behind
	o.variants[1], o.variants[2] = lab.OtherClock, lab.OtherClock
	c := newServers(t, o)
	for i := range c.s {
		for j, want := range []string{"right", "26h0m0s ahead", "1h30m0s behind"} {
			if row := c.cluster(i, fmt.Sprintf("s%d", j+1)); row["Clock"] != want {
				t.Errorf("s%d says that the clock of s%d is %q, want %q", i+1, j+1, row["Clock"], want)
			}
		}
		if off := strings.Contains(c.s[i].Log(), "clock is off"); off != (i > 0) {
			t.Errorf("s%d says that its clock is off: %v", i+1, off)
		}
	}
	if text, err := c.s[2].Host.Get(soon, "http://127.0.0.1:9090/metrics"); err != nil || !strings.Contains(text, "skein_clock_ahead_seconds -5") {
		t.Errorf("metrics of s3: %v\n%s", err, text)
	}

	// Keys live for an hour, made at one server and used at the next.
	a, b, g := c.join(0, "alpha"), c.join(1, "beta"), c.join(2, "gamma")
	c.load()
	direct(a, b)
	beat := a.Host.Beat(b.IP4())
	for i := range c.s {
		c.measured(fmt.Sprintf("change at s%d seen by all clients", i+1), c.follows(i, "alpha", b, g))
		c.online(i, "alpha", "beta", "gamma")
	}

	// A login begins at the server that is ahead and is completed at the one that is behind.
	c.names(1)
	delta := c.Cloud("delta").StartTailscaled(lab.NodeOptions{})
	login := delta.Login(clusterURL)
	c.names(0, 1, 2)
	c.s[2].Skein("nodes", "register", "--namespace", "junyao", "--key", login.Key)
	c.measured("login at one server, completed at another", login.Wait(soon))

	// A key ends at the same moment at all servers.
	ends := time.Now().Add(12 * time.Second).Truncate(time.Second)
	c.s[1].Skein("nodes", "expire", "-i", c.s[1].Node("delta")["ID"], "--at", ends.UTC().Format(time.RFC3339))
	for i := range c.s {
		c.s[i].WaitNode(soon, "delta", "the end is known and not yet there", func(r lab.Row) bool {
			return r != nil && (r["Expired"] == "no" || time.Now().After(ends))
		})
	}
	a.WaitPeer(patient, "delta", func(p *ipnstate.PeerStatus) bool { return p.Expired })
	if early := time.Until(ends); early > 500*time.Millisecond {
		t.Errorf("the key ended %v too early", early)
	}
	c.measured("end of a key, seen by a client", time.Since(ends))
	for i := range c.s {
		c.s[i].WaitNode(soon, "delta", "its key has ended", func(r lab.Row) bool { return r != nil && r["Expired"] == "yes" })
	}

	// What was done one after the other stands so in the audit log, with times of today.
	c.auditOrder()
	c.s[1].Kill()
	c.measured("clients of a killed server are at another one", c.follows(2, "alpha", b, g))
	c.s[1].StartAgain()
	c.online(1, "alpha", "beta", "gamma")
	c.steady(beat)
	c.prove()
}

// auditOrder makes a namespace at each server in turn and looks for the times of that.
func (c *servers) auditOrder() {
	c.t.Helper()
	begin := time.Now().Add(-2 * time.Second)
	for i := range 6 {
		c.s[i%3].Skein("namespaces", "create", fmt.Sprintf("in-order-%d", i))
	}
	last := begin
	for i, line := range strings.Split(c.db.Query("SELECT r.at FROM revisions r JOIN audit_log a ON a.rev = r.rev WHERE a.target LIKE 'in-order-%' ORDER BY r.rev"), "\n") {
		at, err := time.Parse(time.RFC3339Nano, line)
		if err != nil || at.Before(last) || at.After(time.Now().Add(2*time.Second)) {
			c.t.Errorf("entry %d was made at %q, the one before at %v: %v", i, line, last, err)
		}
		last = at
	}
}

// envOldServer names a skein of an earlier version, with which TestClusterUpgrade begins. Without it, it goes from this tree's to a next
// version that it makes up.
const envOldServer = "SKEIN_LAB_OLD_SERVER"

// The next version is put in the place of one server after the other. It adds to the schema while old servers work.
func TestClusterUpgrade(t *testing.T) {
	o, next, number := serversOptions{}, lab.NextVersion, lab.NextNumber
	if path := os.Getenv(envOldServer); path != "" {
		old := lab.Built(path)
		o.variants, next, number = [3]*lab.Variant{old, old, old}, nil, ""
	}
	c := newServers(t, o)
	a, b, g := c.join(0, "alpha"), c.join(1, "beta"), c.join(2, "gamma")
	nodes := []*lab.Node{a, b, g}
	c.load()
	direct(a, b)
	beat := a.Host.Beat(b.IP4())
	schema := c.db.Query("SELECT max(version) FROM schema_migrations")
	for step, i := range []int{0, 2, 1} {
		s := c.s[i]
		s.Stop(patient)
		s.Become(next)
		begin := time.Now()
		s.StartAgain()
		c.measured(fmt.Sprintf("s%d is healthy as the next version", i+1), time.Since(begin))
		if row := c.cluster(i, fmt.Sprintf("s%d", i+1)); !strings.HasPrefix(row["Version"], number) {
			t.Errorf("s%d calls itself %v", i+1, row)
		}
		for j := range c.s { // old and new together
			c.measured(fmt.Sprintf("change at s%d seen by all clients", j+1), c.follows(j, "alpha", b, g))
			c.online(j, "alpha", "beta", "gamma")
		}
		if step == 0 {
			now := c.db.Query("SELECT max(version) FROM schema_migrations")
			if now == schema {
				t.Fatalf("the next version has not migrated the schema, which is still %s", now)
			}
			// An old server that works goes on; one that starts refuses.
			c.s[2].Kill()
			if err := c.s[2].Start(); err != nil {
				t.Fatal(err)
			}
			if err := c.s[2].WaitEnd(patient); err == nil || !strings.Contains(c.s[2].Tail(3), "was written by a newer skein") {
				t.Errorf("an old server starts on the newer schema: %v\n%s", err, c.s[2].Tail(5))
			}
			c.follows(1, "alpha", b, g)
		}
	}
	for _, n := range nodes {
		n.Ping(soon, nodes[0].IP4())
	}
	for i, s := range c.s {
		// Up to schema 12 each connection of an old server fails once, with "cached plan must not change result type".
		if log := s.Log(); next != nil && (strings.Contains(log, "cached plan") || strings.Contains(log, "level=ERROR")) {
			t.Errorf("an error in the log of s%d:\n%s", i+1, log)
		}
	}
	c.steady(beat)
	c.prove()
}

// The database and one server are cut off from all others, among them the database's standby, which takes over. What is asked of that
// server is not acknowledged, because the standby does not have it; so the server steps aside.
func TestClusterSplit(t *testing.T) {
	c := newServers(t, serversOptions{standby: true})
	a, b, g := c.join(0, "alpha"), c.join(1, "beta"), c.join(2, "gamma")
	c.load()
	direct(a, b)
	beat := a.Host.Beat(b.IP4())
	lonely := c.s[2]
	sides := func(do func(*lab.Host, *lab.Host)) {
		for _, in := range []*lab.Host{c.dbHost, lonely.Host} {
			for _, out := range []*lab.Host{c.s[0].Host, c.s[1].Host, c.standby.Host} {
				do(in, out)
				do(out, in)
			}
		}
	}
	sides(func(from, to *lab.Host) { from.Ignore(to.Addr()) })
	begin := time.Now()
	c.standby.Promote()
	asked := make(chan lab.Result, 1)
	go func() { asked <- lonely.Try("namespaces", "create", "nobody-has-heard-of-it") }()
	c.Wait(patient, "the lonely server says that it is not well", func() (bool, string) {
		text, err := lonely.Host.Get(2*time.Second, "http://127.0.0.1:8080/key?v=130")
		return err != nil, text
	})
	c.measured("a server on the lost side of the database has stepped aside", time.Since(begin))
	c.follows(0, "alpha", b, g)
	c.measured("all clients follow the other side", time.Since(begin))
	if r := <-asked; r.Err == nil {
		t.Errorf("a change was acknowledged that only the lost side of the database has: %v", r)
	}
	c.online(1, "alpha", "beta", "gamma")

	c.db.Kill() // as whatever promotes a standby has to see to
	sides(func(from, to *lab.Host) { from.Heed(to.Addr()) })
	begin = time.Now()
	c.Wait(patient, "the lonely server is well again", func() (bool, string) {
		_, err := lonely.Host.Get(2*time.Second, "http://127.0.0.1:8080/health")
		return err == nil, fmt.Sprint(err)
	})
	c.measured("it is back", time.Since(begin))
	c.follows(2, "alpha", b, g)
	if list := lonely.Skein("namespaces", "list"); strings.Contains(list, "nobody-has-heard-of-it") {
		t.Errorf("the lost side has left its mark:\n%s", list)
	}
	c.steady(beat)
	c.prove()
}

// The host of the database is gone, and its standby takes over.
func TestClusterStandby(t *testing.T) {
	c := newServers(t, serversOptions{standby: true, env: []string{"SKEIN_CLUSTER_STEP_ASIDE_AFTER=30s"}})
	a, b, g := c.join(0, "alpha"), c.join(1, "beta"), c.join(2, "gamma")
	c.load()
	direct(a, b)
	beat := a.Host.Beat(b.IP4())
	c.follows(0, "alpha", b, g)
	last := len(c.loads[0].Registered())
	c.Wait(patient, "the load loads", func() (bool, string) { return len(c.loads[0].Registered()) > last+5, "" })

	c.dbHost.CutCable() // its connections end nowhere
	c.db.Kill()
	begin := time.Now()
	c.standby.Promote()
	c.measured("the standby was promoted", time.Since(begin))
	last = len(c.loads[0].Registered())
	c.Wait(patient, "nodes register again", func() (bool, string) { return len(c.loads[0].Registered()) > last, c.s[0].Tail(5) })
	c.measured("a node has registered after the host of the database was gone", time.Since(begin))
	for i := range c.s {
		c.measured(fmt.Sprintf("change at s%d seen by all clients", i+1), c.follows(i, "alpha", b, g))
		c.measured("… after the host of the database was gone", time.Since(begin))
		c.online(i, "alpha", "beta", "gamma")
		if strings.Contains(c.s[i].Log(), "stepping aside") {
			t.Errorf("s%d has stepped aside", i+1)
		}
	}
	c.steady(beat)
	c.prove()
}
