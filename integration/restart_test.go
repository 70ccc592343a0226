package integration

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/skein-vpn/skein/integration/lab"
	"tailscale.com/ipn/ipnstate"
)

// The server is killed with -9 while nodes register, and started again: traffic between nodes does
// not notice, whatever was answered is still there, and a new node joins.
func TestKillUnderLoad(t *testing.T) {
	n := newNet(t, lab.EasyNAT, lab.ServerOptions{})
	mac, nas := n.join(n.Mac, "--accept-routes"), n.join(n.NAS, "--advertise-routes="+homeLAN)
	n.enable(t, "homeDS", homeLAN)
	mac.WaitPeer(soon, "homeDS", carries(homeLAN))
	direct(mac, nas)
	mac.Ping(soon, n.Router.Addr())
	before := n.srv.Node("homeDS")

	load := n.Lab.Cloud("load").StartLoad(n.srv.URL, n.srv.Key("junyao", "--reusable"))
	registered := func(more int) {
		t.Helper()
		want := len(load.Registered()) + more
		n.Wait(soon, "registrations", func() (bool, string) { return len(load.Registered()) >= want, load.Tail(3) })
	}
	registered(10)

	beat := n.Mac.Beat(n.Router.Addr())
	var key string
	for _, away := range []time.Duration{0, 0, 5 * time.Second} {
		key = n.srv.Key("junyao")
		n.srv.Kill()
		time.Sleep(away) // nothing to wait for: this is how long the server is gone
		begin := time.Now()
		n.srv.StartAgain()
		n.measured("server healthy again", time.Since(begin))
		registered(5)
	}
	begin := time.Now()
	vm := n.Cloud.StartTailscaled(lab.NodeOptions{})
	vm.Up(n.srv.URL, "--auth-key="+key)
	n.measured("new node is up after the restarts", time.Since(begin))
	mac.WaitPeer(patient, "VM-0-2-centos", nil)
	n.measured("new node seen by one that was there before", time.Since(begin))
	mac.Ping(soon, vm.IP4())
	sent, answered, gap := beat.Stop()
	n.Logf("pings through the home router: %d of %d answered, longest gap %v", answered, sent, gap)
	if gap > hiccup {
		t.Errorf("traffic between nodes stopped for %v", gap)
	}

	load.Kill()
	_, rows := n.srv.Table("nodes", "list")
	listed := map[string]bool{}
	for _, r := range rows {
		listed[r["Hostname"]] = true
	}
	for _, name := range load.Registered() {
		if !listed[name] {
			t.Errorf("%s was registered and is not listed", name)
		}
	}
	sameNode(t, before, n.srv.Node("homeDS"))
	if got := n.routeEnabled(t, before["ID"], homeLAN); got != "true" {
		t.Errorf("the route is %s after the restarts", got)
	}
}

// After a restart the home LAN's route stays with everybody although its router comes back last: for
// as long as the grace time, it counts as what it was before.
func TestRouteKeptWhileRouterReconnectsLast(t *testing.T) {
	n := newNet(t, lab.EasyNAT, lab.ServerOptions{})
	mac, nas := n.join(n.Mac, "--accept-routes"), n.join(n.NAS, "--advertise-routes="+homeLAN)
	n.enable(t, "homeDS", homeLAN)
	mac.WaitPeer(soon, "homeDS", carries(homeLAN))
	direct(mac, nas)
	mac.Ping(soon, n.Router.Addr())

	beat := n.Mac.Beat(n.Router.Addr())
	restartWithout(t, n, n.NAS)
	// Whoever asks for a map now must be told of the route: the laptop that was there, and a newcomer.
	vm := n.join(n.Cloud, "--accept-routes")
	mac.WaitPeer(patient, "VM-0-2-centos", nil) // now the laptop has a map of the new process
	if p := lab.Peer(mac.Status(), "homeDS"); p == nil || !carries(homeLAN)(p) {
		t.Errorf("the laptop has lost the route:\n%s", lab.Brief(mac.Status()))
	}
	vm.WaitPeer(soon, "homeDS", carries(homeLAN))
	stays(t, "the laptop keeps the route", mac, "homeDS", carries(homeLAN))
	n.NAS.Unblock()
	begin := time.Now()
	nas.WaitPeer(patient, "VM-0-2-centos", nil)
	n.measured("router is back after its way to the server was free", time.Since(begin))
	mac.Ping(soon, n.Router.Addr())
	sent, answered, gap := beat.Stop()
	n.Logf("pings through the home router: %d of %d answered, longest gap %v", answered, sent, gap)
	if gap > hiccup {
		t.Errorf("the home LAN was gone for %v", gap)
	}
}

// The same with a second router of the LAN that is back at once: it must not take over, because the
// first one works and only its connection to the server is late.
func TestPrimaryKeptWhileItReconnectsLast(t *testing.T) {
	n, mac, first, _ := twoRouters(t)
	beat := n.Mac.Beat(n.Router.Addr())
	restartWithout(t, n, n.NAS)
	n.join(n.Cloud)
	mac.WaitPeer(patient, "VM-0-2-centos", nil)
	stays(t, "the first router stays primary", mac, "homeDS", carries(homeLAN))
	n.NAS.Unblock()
	first.WaitPeer(patient, "VM-0-2-centos", nil)
	stays(t, "the first router stays primary after its return", mac, "homeDS", carries(homeLAN))
	sent, answered, gap := beat.Stop()
	n.Logf("pings through the home router: %d of %d answered, longest gap %v", answered, sent, gap)
	if gap > hiccup {
		t.Errorf("the home LAN was gone for %v", gap)
	}
}

// restartWithout kills the server and starts it again while the host's connections to it are cut;
// its paths to other nodes are not. The host stays cut off.
func restartWithout(t *testing.T, n *net, h *lab.Host) {
	t.Helper()
	n.srv.Kill()
	h.Block(lab.TCPPort(8080), lab.TCPPort(443))
	n.srv.StartAgain()
}

// stays fails the test if the peer stops fulfilling cond within the time in which a router that is
// gone would be replaced.
func stays(t *testing.T, what string, node *lab.Node, hostname string, cond func(*ipnstate.PeerStatus) bool) {
	t.Helper()
	for end := time.Now().Add(6 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		st := node.Status()
		if p := lab.Peer(st, hostname); p == nil || !cond(p) {
			t.Errorf("not so: %s:\n%s", what, lab.Brief(st))
			return
		}
	}
}

// With a plain http address that is public, running clients find back to a server that was away.
func TestPlainHTTPRestart(t *testing.T) {
	n := newNet(t, lab.EasyNAT, lab.ServerOptions{})
	if !strings.HasPrefix(n.srv.URL, "http://203.0.113.") {
		t.Fatalf("%s is not a plain public address", n.srv.URL)
	}
	nodes := []*lab.Node{n.join(n.Mac), n.join(n.NAS), n.join(n.Cloud)}
	for _, node := range nodes {
		node.WaitRunning(soon)
	}
	for round, gone := range []time.Duration{0, 8 * time.Second} {
		n.srv.Kill()
		// Long enough that every client has tried to dial and failed: that is what makes them force
		// TLS. There is no condition to wait for; the clients do not show it.
		time.Sleep(gone)
		n.srv.StartAgain()
		begin := time.Now()
		name := []string{"late-one", "late-two"}[round]
		late := n.Lab.Cloud(name)
		n.join(late)
		for _, node := range nodes {
			node.WaitPeer(patient, name, nil)
			n.measured(node.Host.Name()+" is back after the server was away for "+gone.String(), time.Since(begin))
		}
	}
	for _, node := range nodes { // nor do they complain of the certificate that they were shown
		node.WaitFor(soon, "healthy", func(st *ipnstate.Status) bool { return len(st.Health) == 0 })
	}
}

// A server that ends on SIGTERM says good-bye, and clients are back at once.
func TestCleanRestart(t *testing.T) {
	n := newNet(t, lab.EasyNAT, lab.ServerOptions{})
	mac, nas := n.join(n.Mac), n.join(n.NAS)
	mac.WaitPeer(soon, "homeDS", nil)
	begin := time.Now()
	if !n.srv.Stop(15 * time.Second) {
		t.Error("the server had to be killed")
	}
	n.measured("server stopped", time.Since(begin))
	n.srv.StartAgain()
	begin = time.Now()
	n.join(n.Cloud)
	for _, node := range []*lab.Node{mac, nas} {
		node.WaitPeer(patient, "VM-0-2-centos", nil)
		n.measured(node.Host.Name()+" is back after a clean restart", time.Since(begin))
	}
	mac.Ping(soon, netip.MustParseAddr("100.64.0.3"))
}
