package integration

import (
	"strings"
	"testing"
	"time"

	"github.com/skein-vpn/skein/integration/lab"
	"tailscale.com/ipn/ipnstate"
)

// twoRouters is the seed network with a second subnet router of the home LAN, both enabled. The
// first one is primary.
func twoRouters(t *testing.T) (n *net, mac, first, second *lab.Node) {
	n = newNet(t, lab.EasyNAT, lab.ServerOptions{})
	spare := n.Home.Host("homeDS-spare", "192.168.199.187")
	spare.Forward()
	mac = n.join(n.Mac, "--accept-routes")
	first = n.join(n.NAS, "--advertise-routes="+homeLAN)
	second = n.join(spare, "--advertise-routes="+homeLAN)
	for _, name := range []string{"homeDS", "homeDS-spare"} {
		n.enable(t, name, homeLAN)
	}
	mac.WaitPeer(soon, "homeDS", carries(homeLAN))
	mac.WaitPeer(soon, "homeDS-spare", not(carries(homeLAN)))
	direct(mac, first)
	direct(mac, second)
	mac.Ping(soon, n.Router.Addr())
	return n, mac, first, second
}

// failover takes the primary away and waits until the other router carries the LAN.
func failover(t *testing.T, n *net, mac *lab.Node, what string, takeAway func()) {
	beat := n.Mac.Beat(n.Router.Addr())
	begin := time.Now()
	takeAway()
	mac.WaitPeer(patient, "homeDS-spare", carries(homeLAN))
	n.measured("other router is primary after "+what, time.Since(begin))
	if p := lab.Peer(mac.Status(), "homeDS"); p != nil && carries(homeLAN)(p) {
		t.Errorf("both routers carry the LAN:\n%s", lab.Brief(mac.Status()))
	}
	mac.Ping(soon, n.Router.Addr())
	_, _, gap := beat.Stop()
	n.measured("home LAN out of reach after "+what, gap)
	if gap > 15*time.Second {
		t.Errorf("the home LAN was out of reach for %v", gap)
	}
}

// The primary router's process is killed. When it comes back, the other one stays primary: a router
// takes its prefixes back only after it has been well for a while.
func TestFailoverProcessKilled(t *testing.T) {
	n, mac, first, _ := twoRouters(t)
	failover(t, n, mac, "kill -9 of tailscaled", first.Kill)
	first.StartAgain()
	first.WaitRunning(patient)
	mac.WaitPeer(patient, "homeDS", func(p *ipnstate.PeerStatus) bool { return p.Online })
	stays(t, "the other router stays primary", mac, "homeDS-spare", carries(homeLAN))
	mac.Ping(soon, n.Router.Addr())
}

// The primary router's cable is cut: its connection to the server ends nowhere.
func TestFailoverCableCut(t *testing.T) {
	n, mac, first, _ := twoRouters(t)
	failover(t, n, mac, "a cut cable", n.NAS.CutCable)
	n.NAS.PlugCable()
	mac.Ping(patient, first.IP4())
	stays(t, "the other router stays primary", mac, "homeDS-spare", carries(homeLAN))
	mac.Ping(soon, n.Router.Addr())
}

// Disabling a route takes it away from every client at once, and from the router itself.
func TestRouteDisabled(t *testing.T) {
	n := newNet(t, lab.EasyNAT, lab.ServerOptions{})
	mac, vm := n.join(n.Mac, "--accept-routes"), n.join(n.Cloud, "--accept-routes")
	nas := n.join(n.NAS, "--advertise-routes="+homeLAN)
	if _, err := n.Mac.Ping(never, n.Router.Addr()); err == nil {
		t.Error("the home router answers although the route is not enabled")
	}
	n.enable(t, "homeDS", homeLAN)
	for _, node := range []*lab.Node{mac, vm} {
		node.WaitPeer(soon, "homeDS", carries(homeLAN))
		node.Ping(soon, n.Router.Addr())
	}
	id := n.id(t, "homeDS")
	begin := time.Now()
	n.srv.Skein("routes", "disable", "-i", id, "-r", homeLAN)
	for _, node := range []*lab.Node{mac, vm} {
		node.WaitPeer(soon, "homeDS", not(carries(homeLAN)))
		n.measured("route gone from "+node.Host.Name()+" after routes disable", time.Since(begin))
	}
	for _, node := range []*lab.Node{mac, vm} {
		if _, err := node.Host.Ping(never, n.Router.Addr()); err == nil {
			t.Errorf("%s still reaches the home router", node.Host.Name())
		}
		node.Ping(soon, nas.IP4())
	}
	// The router still offers the route, and enabling it again is all it takes.
	n.enable(t, "homeDS", homeLAN)
	mac.Ping(soon, n.Router.Addr())
}

// A route that its router stops offering is gone at once; it stays enabled and is back when the router
// offers it again.
func TestRouteWithdrawn(t *testing.T) {
	n := newNet(t, lab.EasyNAT, lab.ServerOptions{})
	mac, nas := n.join(n.Mac, "--accept-routes"), n.join(n.NAS, "--advertise-routes="+homeLAN)
	n.enable(t, "homeDS", homeLAN)
	mac.WaitPeer(soon, "homeDS", carries(homeLAN))
	mac.Ping(soon, n.Router.Addr())
	nas.MustCLI("set", "--advertise-routes=")
	mac.WaitPeer(soon, "homeDS", not(carries(homeLAN)))
	if _, err := n.Mac.Ping(never, n.Router.Addr()); err == nil {
		t.Error("the home router still answers")
	}
	nas.MustCLI("set", "--advertise-routes="+homeLAN)
	mac.WaitPeer(soon, "homeDS", carries(homeLAN))
	mac.Ping(soon, n.Router.Addr())
	if got := n.routeEnabled(t, n.id(t, "homeDS"), homeLAN); got != "true" {
		t.Errorf("the route is %s", got)
	}
}

// An exit node carries the laptop's traffic to the internet once it is enabled, and both default
// routes go together.
func TestExitNode(t *testing.T) {
	n := newNet(t, lab.EasyNAT, lab.ServerOptions{})
	web := n.Lab.Cloud("web")
	web.ServeHTTP(":80", nil)
	n.Cloud.Forward()
	mac, vm := n.join(n.Mac), n.join(n.Cloud, "--advertise-exit-node")
	seenAs := func() string {
		body, err := n.Mac.Get(soon, "http://"+web.Addr().String()+"/")
		if err != nil {
			return err.Error()
		}
		return strings.TrimPrefix(strings.TrimSpace(body), "hello from web, you are ")
	}
	if got := seenAs(); got != n.Office.Public.String() {
		t.Fatalf("without an exit node seen as %s, want %s", got, n.Office.Public)
	}
	id := n.id(t, "VM-0-2-centos")
	n.srv.WaitNode(soon, "VM-0-2-centos", "offers to be an exit node", func(lab.Row) bool {
		return n.routeEnabled(t, id, "0.0.0.0/0") == "false"
	})
	if r := mac.CLI(soon, "set", "--exit-node="+vm.IP4().String()); r.Err == nil {
		t.Errorf("an exit node that is not enabled was accepted: %v", r)
	}
	n.srv.Skein("routes", "enable", "-i", id, "-r", "0.0.0.0/0")
	for _, route := range []string{"0.0.0.0/0", "::/0"} {
		if got := n.routeEnabled(t, id, route); got != "true" {
			t.Errorf("%s is %s after enabling one of the pair", route, got)
		}
	}
	mac.WaitPeer(soon, "VM-0-2-centos", func(p *ipnstate.PeerStatus) bool { return p.ExitNodeOption })
	mac.MustCLI("set", "--exit-node="+vm.IP4().String())
	n.Wait(soon, "traffic leaves by the exit node", func() (bool, string) {
		got := seenAs()
		return got == n.Cloud.Addr().String(), got
	})
	mac.MustCLI("set", "--exit-node=")
	n.Wait(soon, "traffic leaves by the office again", func() (bool, string) {
		got := seenAs()
		return got == n.Office.Public.String(), got
	})
	n.srv.Skein("routes", "disable", "-i", id, "-r", "::/0")
	mac.WaitPeer(soon, "VM-0-2-centos", func(p *ipnstate.PeerStatus) bool { return !p.ExitNodeOption })
}
