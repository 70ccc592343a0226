package integration

import (
	"net/netip"
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
	mac, nas, vm := n.join(n.Mac), n.join(n.NAS), n.join(n.Cloud)
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
	// So does one that was away when it was deleted, and finds a server that was started since.
	n.Cloud.CutCable()
	n.srv.Skein("nodes", "delete", "-i", n.id(t, "VM-0-2-centos"), "--yes")
	n.srv.Kill()
	n.srv.StartAgain()
	n.Cloud.PlugCable()
	begin = time.Now()
	vm.WaitState(patient, "NeedsLogin")
	n.measured("deletion seen by a node that was away, after its return", time.Since(begin))

	// The machine may come back as a new node, with a number that was never used.
	nas.Up(n.srv.URL, "--auth-key="+n.srv.Key("junyao"), "--force-reauth")
	if id := n.id(t, "homeDS"); id != "4" {
		t.Errorf("the new node has the number %s, want 4", id)
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

// An expired node needs a login, is marked in the list and unreachable, and comes back as itself,
// whether a person lets it in again or it brings a key.
func TestExpiry(t *testing.T) {
	n := newNet(t, lab.EasyNAT, lab.ServerOptions{})
	mac, nas := n.join(n.Mac), n.join(n.NAS)
	mac.WaitPeer(soon, "homeDS", nil)
	ip := nas.IP4()
	mac.Ping(soon, ip)
	for way, login := range []func(){
		func() { approve(t, n, nas.Login(n.srv.URL)) },
		func() { nas.Up(n.srv.URL, "--auth-key="+n.srv.Key("junyao")) },
	} {
		before := n.srv.Node("homeDS")
		begin := time.Now()
		n.srv.Skein("nodes", "expire", "-i", before["ID"])
		nas.WaitState(soon, "NeedsLogin")
		n.measured("the client wants a login after nodes expire", time.Since(begin))
		n.srv.WaitNode(soon, "homeDS", "expired", func(r lab.Row) bool { return r != nil && r["Expired"] == "yes" })
		mac.WaitFor(soon, "homeDS expired or gone", func(st *ipnstate.Status) bool {
			p := lab.Peer(st, "homeDS")
			return p == nil || p.Expired
		})
		if _, err := n.Mac.Ping(never, ip); err == nil {
			t.Error("the expired node still answers")
		}
		login()
		after := n.srv.Node("homeDS")
		sameNode(t, before, after)
		if before["NodeKey"] == after["NodeKey"] {
			t.Errorf("login %d: the node has kept its expired key", way)
		}
		mac.WaitPeer(soon, "homeDS", func(p *ipnstate.PeerStatus) bool { return p.Online && !p.Expired })
		mac.Ping(soon, ip)
	}
}

// A client that runs and logs in again gets a new key and keeps its number, name, addresses and
// routes; until a person has approved it, it goes on with the old key. Approved for another
// namespace it is another node.
func TestForceReauth(t *testing.T) {
	n := newNet(t, lab.EasyNAT, lab.ServerOptions{})
	mac, nas := n.join(n.Mac, "--accept-routes"), n.join(n.NAS, "--advertise-routes="+homeLAN)
	n.enable(t, "homeDS", homeLAN)
	mac.WaitPeer(soon, "homeDS", carries(homeLAN))
	direct(mac, nas)
	again := []string{"--force-reauth", "--advertise-routes=" + homeLAN}

	before := n.srv.Node("homeDS")
	lg := nas.Login(n.srv.URL, again...)
	if _, err := n.Mac.Ping(soon, n.Router.Addr()); err != nil {
		t.Errorf("while the login waits for approval: %v", err)
	}
	beat := n.Mac.Beat(n.Router.Addr())
	approve(t, n, lg)
	mac.Ping(patient, n.Router.Addr())
	_, _, gap := beat.Stop()
	n.measured("traffic through the node stopped when its key changed for", gap)
	after := n.srv.Node("homeDS")
	sameNode(t, before, after)
	if before["NodeKey"] == after["NodeKey"] {
		t.Error("the node has kept its key")
	}
	nas.Up(n.srv.URL, append(again, "--auth-key="+n.srv.Key("junyao"))...)
	sameNode(t, before, n.srv.Node("homeDS"))
	mac.Ping(patient, n.Router.Addr())

	nas.Kill()
	nas.StartAgain()
	nas.WaitRunning(patient)
	sameNode(t, before, n.srv.Node("homeDS"))
	mac.Ping(patient, n.Router.Addr())

	n.srv.Skein("namespaces", "create", "guest")
	lg = nas.Login(n.srv.URL, again...)
	n.srv.Skein("nodes", "register", "--namespace", "guest", "--key", lg.Key)
	lg.Wait(patient)
	n.srv.WaitNode(soon, "homeDS", "the node of before is offline", func(r lab.Row) bool {
		return r["ID"] == before["ID"] && r["Online"] == "offline"
	})
	_, rows := n.srv.Table("nodes", "list")
	if len(rows) != 3 || rows[2]["Name"] != "homeds-1" || rows[2]["Namespace"] != "guest" {
		t.Errorf("want a third node homeds-1 of guest:\n%v", rows)
	}
}

// Two profiles on one machine are two nodes, and switching between them takes one offline and the
// other online.
func TestTwoProfiles(t *testing.T) {
	n := newNet(t, lab.EasyNAT, lab.ServerOptions{})
	n.srv.Skein("namespaces", "create", "guest")
	mac, nas := n.join(n.Mac), n.join(n.NAS)
	first := mac.IP4()
	mac.MustCLI("login", "--login-server="+n.srv.URL, "--auth-key="+n.srv.Key("guest"))
	mac.WaitRunning(soon)
	second := mac.IP4()
	if first == second {
		t.Fatalf("both profiles have the address %v", first)
	}
	nas.Ping(soon, second)
	online := func(name, want string) {
		t.Helper()
		n.Wait(soon, name+" is "+want, func() (bool, string) {
			_, rows := n.srv.Table("nodes", "list")
			for _, r := range rows {
				if r["Name"] == name {
					return r["Online"] == want, r["Online"]
				}
			}
			return false, "not listed"
		})
	}
	online("junyao", "offline")
	online("junyao-1", "online")
	for _, account := range []string{"junyao", "guest"} {
		mac.MustCLI("switch", account)
		mac.WaitRunning(soon)
		want := map[string]netip.Addr{"junyao": first, "guest": second}[account]
		n.Wait(soon, "the profile of "+account+" is in use", func() (bool, string) {
			got := mac.IP4()
			return got == want, got.String()
		})
		nas.Ping(soon, want)
	}
	online("junyao", "offline")
	online("junyao-1", "online")
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

// "tailscale down" takes a node offline for everybody, "tailscale up" brings it back.
func TestDownAndUp(t *testing.T) {
	n := newNet(t, lab.EasyNAT, lab.ServerOptions{})
	mac, nas := n.join(n.Mac), n.join(n.NAS)
	before, ip := n.srv.Node("homeDS"), nas.IP4()
	mac.WaitPeer(soon, "homeDS", func(p *ipnstate.PeerStatus) bool { return p.Online })
	mac.Ping(soon, ip)
	begin := time.Now()
	nas.MustCLI("down")
	mac.WaitPeer(soon, "homeDS", func(p *ipnstate.PeerStatus) bool { return !p.Online && !p.LastSeen.IsZero() })
	n.measured("peer is offline after tailscale down", time.Since(begin))
	if _, err := n.Mac.Ping(never, ip); err == nil {
		t.Error("the node still answers")
	}
	begin = time.Now()
	nas.MustCLI("up")
	mac.WaitPeer(soon, "homeDS", func(p *ipnstate.PeerStatus) bool { return p.Online })
	mac.Ping(patient, ip)
	n.measured("peer answers after tailscale up", time.Since(begin))
	sameNode(t, before, n.srv.Node("homeDS"))
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

// Clients of older versions join, see the others, reach them directly and over the relay, and are back
// after a restart of the server.
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

			n.srv.Kill()
			n.srv.StartAgain()
			n.srv.Skein("nodes", "delete", "-i", n.id(t, "VM-0-2-centos"), "--yes")
			mac.WaitNoPeer(patient, "VM-0-2-centos")
			vm.WaitState(patient, "NeedsLogin")
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
	// The right key makes up for it. The client may still report the end of its first attempt to the second command.
	key := n.srv.Key("junyao")
	n.Wait(patient, "the laptop joins with the right key", func() (bool, string) {
		r := mac.CLI(soon, "up", "--login-server="+n.srv.URL, "--auth-key="+key, "--timeout=10s")
		return r.Err == nil, r.String()
	})
	mac.WaitRunning(soon)
	nas := n.NAS.StartTailscaled(lab.NodeOptions{})
	if r := nas.CLI(soon, "up", "--login-server="+n.srv.URL, "--auth-key="+key, "--timeout=10s"); r.Err == nil {
		t.Errorf("joined with a one-time key that was used: %v", r)
	}
}
