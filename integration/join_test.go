package integration

import (
	"strings"
	"testing"
	"time"

	"github.com/skein-vpn/skein/integration/lab"
	"tailscale.com/ipn/ipnstate"
)

// A client without a key prints an address; the page there names the client and the administrator's
// command, and the client comes up by itself when the command is given.
func TestInteractiveRegistration(t *testing.T) {
	n := newNet(t, lab.EasyNAT, lab.ServerOptions{})
	mac := n.Mac.StartTailscaled(lab.NodeOptions{})
	lg := mac.Login(n.srv.URL)
	if !strings.HasPrefix(lg.URL, n.srv.URL+"/") {
		t.Errorf("the client was sent to %s, want a page of %s", lg.URL, n.srv.URL)
	}
	page, err := n.Mac.Get(soon, lg.URL)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"junyao", "skein nodes register --namespace ", "--key " + lg.Key} {
		if !strings.Contains(page, want) {
			t.Errorf("the registration page does not contain %q:\n%s", want, page)
		}
	}
	if row := n.srv.Node("junyao"); row != nil {
		t.Errorf("listed before it was approved: %v", row)
	}
	approve(t, n, lg)
	mac.WaitRunning(soon)
	if r := n.srv.Try("nodes", "register", "--namespace", "junyao", "--key", lg.Key+"x"); r.Code != 1 || r.Stderr == "" || r.Stdout != "" {
		t.Errorf("register with a wrong key: %v", r)
	}
}

// A login that waits for approval is not lost when the server is killed.
func TestPendingLoginSurvivesRestart(t *testing.T) {
	n := newNet(t, lab.EasyNAT, lab.ServerOptions{})
	mac := n.Mac.StartTailscaled(lab.NodeOptions{})
	lg := mac.Login(n.srv.URL)
	n.srv.Kill()
	n.srv.StartAgain()
	approve(t, n, lg)
	mac.WaitRunning(soon)
}

// A deleted node disappears for the others at once, and its own client says that it needs a login.
func TestDeletedNode(t *testing.T) {
	n := newNet(t, lab.EasyNAT, lab.ServerOptions{})
	mac, nas := n.join(n.Mac), n.join(n.NAS)
	mac.WaitPeer(soon, "homeDS", nil)
	ip := nas.IP4()
	mac.Ping(soon, ip)

	begin := time.Now()
	n.srv.Skein("nodes", "delete", "-i", n.id(t, "homeDS"), "--yes")
	mac.WaitNoPeer(soon, "homeDS")
	n.measured("deletion seen by the peer", time.Since(begin))
	nas.WaitState(soon, "NeedsLogin")
	n.measured("deletion seen by the deleted node", time.Since(begin))
	if row := n.srv.Node("homeDS"); row != nil {
		t.Errorf("still listed: %v", row)
	}
	if _, err := n.Mac.Ping(never, ip); err == nil {
		t.Error("the deleted node still answers")
	}
	// The machine may come back as a new node, with a number that was never used.
	nas.Up(n.srv.URL, "--auth-key="+n.srv.Key("junyao"), "--force-reauth")
	if id := n.id(t, "homeDS"); id != "3" {
		t.Errorf("the new node has the number %s, want 3", id)
	}
	mac.WaitPeer(soon, "homeDS", nil)
	mac.Ping(soon, nas.IP4())
}

// Logout ends a node's session for everybody; the same machine logs in again under its old number,
// name and addresses.
func TestLogout(t *testing.T) {
	n := newNet(t, lab.EasyNAT, lab.ServerOptions{})
	mac, nas := n.join(n.Mac), n.join(n.NAS)
	mac.WaitPeer(soon, "homeDS", nil)
	before, ip := n.srv.Node("homeDS"), nas.IP4()
	nas.MustCLI("logout")
	nas.WaitState(soon, "NeedsLogin")
	n.srv.WaitNode(soon, "homeDS", "logged out", func(r lab.Row) bool {
		return r != nil && r["Expired"] == "yes" && r["Online"] == "offline"
	})
	if _, err := n.Mac.Ping(never, ip); err == nil {
		t.Error("the node still answers after its logout")
	}
	nas.Up(n.srv.URL, "--auth-key="+n.srv.Key("junyao"))
	sameNode(t, before, n.srv.Node("homeDS"))
	mac.WaitPeer(soon, "homeDS", func(p *ipnstate.PeerStatus) bool { return p.Online && !p.Expired })
	mac.Ping(soon, nas.IP4())
}

// An expired node needs a login, is marked in the list and unreachable, and comes back as itself.
func TestExpiry(t *testing.T) {
	n := newNet(t, lab.EasyNAT, lab.ServerOptions{})
	mac, nas := n.join(n.Mac), n.join(n.NAS)
	mac.WaitPeer(soon, "homeDS", nil)
	ip := nas.IP4()
	mac.Ping(soon, ip)
	before := n.srv.Node("homeDS")

	n.srv.Skein("nodes", "expire", "-i", before["ID"])
	nas.WaitState(soon, "NeedsLogin")
	n.srv.WaitNode(soon, "homeDS", "expired", func(r lab.Row) bool { return r != nil && r["Expired"] == "yes" })
	mac.WaitFor(soon, "homeDS expired or gone", func(st *ipnstate.Status) bool {
		p := lab.Peer(st, "homeDS")
		return p == nil || p.Expired
	})
	if _, err := n.Mac.Ping(never, ip); err == nil {
		t.Error("the expired node still answers")
	}
	nas.Up(n.srv.URL, "--auth-key="+n.srv.Key("junyao"), "--force-reauth")
	after := n.srv.Node("homeDS")
	sameNode(t, before, after)
	if before["NodeKey"] == after["NodeKey"] {
		t.Error("the node has kept its expired key")
	}
	mac.WaitPeer(soon, "homeDS", func(p *ipnstate.PeerStatus) bool { return p.Online && !p.Expired })
	mac.Ping(soon, nas.IP4())
}

func sameNode(t *testing.T, before, after lab.Row) {
	t.Helper()
	for _, column := range []string{"ID", "Hostname", "Name", "Namespace", "IP addresses"} {
		if before[column] != after[column] {
			t.Errorf("%s was %q, is now %q", column, before[column], after[column])
		}
	}
	if after["Expired"] != "no" {
		t.Errorf("still expired: %v", after)
	}
}

// An ephemeral node is gone after its logout, and after the inactivity time when its process dies.
func TestEphemeral(t *testing.T) {
	n := newNet(t, lab.EasyNAT, lab.ServerOptions{Env: []string{"SKEIN_NODE_EPHEMERAL_INACTIVITY_TIMEOUT=5s"}})
	mac := n.join(n.Mac)
	nas := n.NAS.StartTailscaled(lab.NodeOptions{})
	nas.Up(n.srv.URL, "--auth-key="+n.srv.Key("junyao", "--ephemeral"))
	vm := n.Cloud.StartTailscaled(lab.NodeOptions{})
	vm.Up(n.srv.URL, "--auth-key="+n.srv.Key("junyao", "--ephemeral"))
	mac.WaitPeer(soon, "homeDS", nil)
	mac.WaitPeer(soon, "VM-0-2-centos", nil)
	if row := n.srv.Node("homeDS"); row["Ephemeral"] != "true" {
		t.Errorf("not listed as ephemeral: %v", row)
	}

	begin := time.Now()
	nas.MustCLI("logout")
	mac.WaitNoPeer(soon, "homeDS")
	n.measured("ephemeral node gone after logout", time.Since(begin))
	begin = time.Now()
	vm.Kill()
	mac.WaitNoPeer(patient, "VM-0-2-centos")
	n.measured("ephemeral node gone after its process was killed", time.Since(begin))
	for _, name := range []string{"homeDS", "VM-0-2-centos"} {
		if row := n.srv.Node(name); row != nil {
			t.Errorf("still listed: %v", row)
		}
	}
	if row := n.srv.Node("junyao"); row == nil || row["Online"] != "online" {
		t.Errorf("the ordinary node: %v", row)
	}
}

// Clients of older versions join, see the others, and reach them directly and over the relay.
func TestOlderClients(t *testing.T) {
	for _, version := range []string{"v1.80.3", "v1.94.2"} {
		t.Run(version, func(t *testing.T) {
			old := lab.OldClient(t, version)
			n := newNet(t, lab.EasyNAT, lab.ServerOptions{})
			mac := n.joinAs(n.Mac, lab.NodeOptions{Client: old}, "--accept-routes")
			nas := n.join(n.NAS, "--advertise-routes="+homeLAN)
			vm := n.joinAs(n.Cloud, lab.NodeOptions{Client: old})
			mac.WaitPeer(soon, "homeDS", nil)
			mac.WaitPeer(soon, "VM-0-2-centos", nil)
			direct(mac, nas)
			direct(nas, vm)
			n.enable(t, "homeDS", homeLAN)
			mac.Ping(soon, n.Router.Addr())

			n.Mac.Block(lab.UDP)
			mac.Ping(patient, nas.IP4())
			vias, r := mac.Vias(soon, "-c=2", "--until-direct=false", nas.IP4().String())
			allRelayed(t, vias, r)
			n.Mac.Unblock()

			n.srv.Skein("nodes", "delete", "-i", n.id(t, "VM-0-2-centos"), "--yes")
			mac.WaitNoPeer(soon, "VM-0-2-centos")
			vm.WaitState(soon, "NeedsLogin")
		})
	}
}

// An invented key and a used one-time key let nobody in.
func TestRefusedKeys(t *testing.T) {
	n := newNet(t, lab.EasyNAT, lab.ServerOptions{})
	mac := n.Mac.StartTailscaled(lab.NodeOptions{})
	r := mac.CLI(soon, "up", "--login-server="+n.srv.URL, "--auth-key=0123456789abcdef", "--timeout=10s")
	if r.Err == nil {
		t.Errorf("joined with an invented key: %v", r)
	}
	key := n.srv.Key("junyao")
	mac.Up(n.srv.URL, "--auth-key="+key)
	nas := n.NAS.StartTailscaled(lab.NodeOptions{})
	if r := nas.CLI(soon, "up", "--login-server="+n.srv.URL, "--auth-key="+key, "--timeout=10s"); r.Err == nil {
		t.Errorf("joined with a one-time key that was used: %v", r)
	}
}
