package integration

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/skein-vpn/skein/integration/lab"
)

// The server is killed with -9 while nodes register, and started again: traffic between nodes does
// not notice, whatever was answered is still there, and a new node joins.
func TestKillUnderLoad(t *testing.T) {
	n := newNet(t, lab.EasyNAT, lab.ServerOptions{})
	mac, nas := n.join(n.Mac, "--accept-routes"), n.join(n.NAS, "--advertise-routes="+homeLAN)
	n.srv.WaitNode(soon, "homeDS", "has advertised its route", func(lab.Row) bool {
		return n.routeEnabled(t, n.id(t, "homeDS"), homeLAN) == "false"
	})
	n.srv.Skein("routes", "enable", "-i", n.id(t, "homeDS"), "-r", homeLAN)
	mac.WaitPeer(soon, "homeDS", carries(homeLAN))
	mac.WaitDirect(soon, nas.IP4())
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
	for range 3 {
		key = n.srv.Key("junyao")
		n.srv.Kill()
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
	if gap > time.Second {
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

// After a restart the home LAN's route stays with everybody although its router comes back last.
func TestRouteKeptWhileRouterReconnectsLast(t *testing.T) {
	n := newNet(t, lab.EasyNAT, lab.ServerOptions{})
	mac, nas := n.join(n.Mac, "--accept-routes"), n.join(n.NAS, "--advertise-routes="+homeLAN)
	n.srv.WaitNode(soon, "homeDS", "has advertised its route", func(lab.Row) bool {
		return n.routeEnabled(t, n.id(t, "homeDS"), homeLAN) == "false"
	})
	n.srv.Skein("routes", "enable", "-i", n.id(t, "homeDS"), "-r", homeLAN)
	mac.WaitDirect(soon, nas.IP4())
	mac.Ping(soon, n.Router.Addr())

	beat := n.Mac.Beat(n.Router.Addr())
	n.srv.Kill()
	// The router's connections to the server are cut, its direct path to the laptop is not.
	n.NAS.Block(lab.TCPPort(8080), lab.TCPPort(443))
	n.srv.StartAgain()
	begin := time.Now()
	n.join(n.Cloud)
	p := mac.WaitPeer(patient, "VM-0-2-centos", nil) // now the laptop has a map of the new process
	n.measured("laptop is back after the restart", time.Since(begin))
	if p = lab.Peer(mac.Status(), "homeDS"); p == nil || !carries(homeLAN)(p) {
		t.Errorf("the laptop has lost the route:\n%s", lab.Brief(mac.Status()))
	}
	n.NAS.Unblock()
	n.srv.WaitNode(patient, "homeDS", "online", func(r lab.Row) bool { return r["Online"] == "online" })
	mac.Ping(soon, n.Router.Addr())
	sent, answered, gap := beat.Stop()
	n.Logf("pings through the home router: %d of %d answered, longest gap %v", answered, sent, gap)
	if gap > time.Second {
		t.Errorf("the home LAN was gone for %v", gap)
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
