package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"tailscale.com/ipn/ipnstate"

	"github.com/skein-vpn/skein/integration/lab"
)

// A policy decides, with real clients, who sees whom, which ports are open, who may use a subnet route, and which routes
// need no administrator; a changed policy takes effect on running clients at once.
func TestPolicy(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "policy.hujson")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const policy = `{
		"groups":    {"group:home": ["junyao@"]},
		"tagOwners": {"tag:web": ["junyao@"], "tag:nas": ["junyao@"]},
		"autoApprovers": {"routes": {"192.168.199.0/24": ["tag:nas"]}},
		"acls": [
			{"action": "accept", "src": ["group:home"], "dst": ["192.168.199.0/24:*", "tag:nas:*"]},
			{"action": "accept", "src": [%s], "dst": ["tag:web:80"]},
		],
	}`
	write(fmt.Sprintf(policy, `"group:home"`))
	n := newNet(t, lab.EasyNAT, lab.ServerOptions{Env: []string{"SKEIN_POLICY_PATH=" + file}})
	n.srv.Skein("namespaces", "create", "guest")
	mac := n.join(n.Mac, "--accept-routes")
	nas := n.join(n.NAS, "--advertise-routes="+homeLAN, "--advertise-tags=tag:nas")
	web := n.join(n.Cloud, "--advertise-tags=tag:web")
	guestHost := n.Office.Host("guest-laptop", "10.8.99.46")
	guest := guestHost.StartTailscaled(lab.NodeOptions{})
	guest.Up(n.srv.URL, "--auth-key="+n.srv.Key("guest"), "--accept-routes")

	n.Cloud.ServeHTTP(web.IP4().String()+":80", nil)
	n.Cloud.ServeHTTP(web.IP4().String()+":81", nil)
	url := func(port int) string { return fmt.Sprintf("http://%s:%d/", web.IP4(), port) }
	gets := func(h *lab.Host, url string) bool { _, err := h.Get(3*time.Second, url); return err == nil }

	mac.WaitPeer(soon, "homeDS", carries(homeLAN)) // approved by the policy
	mac.Ping(soon, n.Router.Addr())
	mac.Ping(soon, nas.IP4())
	n.Wait(soon, "port 80 of the web server answers the laptop", func() (bool, string) { return gets(n.Mac, url(80)), "no answer" })
	if gets(n.Mac, url(81)) {
		t.Error("port 81 is open though the policy does not open it")
	}
	guest.WaitNoPeer(soon, "homeDS")
	guest.WaitNoPeer(soon, n.Cloud.Name())
	if _, err := guestHost.Ping(never, n.Router.Addr()); err == nil {
		t.Error("the guest reaches the home router")
	}
	if gets(guestHost, url(80)) {
		t.Error("the guest reaches the web server")
	}

	reload := func(what string) time.Time {
		t.Helper()
		begin := time.Now()
		if err := unix.Kill(n.srv.Pid(), unix.SIGHUP); err != nil {
			t.Fatal(err)
		}
		t.Log("reloaded:", what)
		return begin
	}
	write(fmt.Sprintf(policy, `"group:home", "guest@"`))
	begin := reload("the guest may use the web server")
	n.Wait(soon, "port 80 of the web server answers the guest", func() (bool, string) { return gets(guestHost, url(80)), "no answer" })
	n.measured("web server open to the guest after reload", time.Since(begin))
	if gets(guestHost, url(81)) {
		t.Error("port 81 is open to the guest")
	}
	guest.WaitNoPeer(soon, "homeDS")

	write("{ this is no policy")
	reload("a file with faults, which changes nothing")
	n.Wait(soon, "the fault is in the log", func() (bool, string) { return strings.Contains(n.srv.Log(), "the policy has faults"), "it is not" })
	if !gets(guestHost, url(80)) {
		t.Error("a policy with faults has closed what was open")
	}

	write(strings.Replace(fmt.Sprintf(policy, `"group:home", "gust@"`), `"acls"`, `"tests": [{"src": "guest@", "accept": ["tag:web:80"]}], "acls"`, 1))
	reload("a file whose test fails, which changes nothing")
	n.Wait(soon, "the failing test is in the log", func() (bool, string) {
		return strings.Contains(n.srv.Log(), "guest@ to tag:web:80: want accepted, got denied"), "it is not"
	})
	if !gets(guestHost, url(80)) {
		t.Error("a policy whose test fails has closed what was open")
	}

	write(fmt.Sprintf(policy, `"group:home", "gust@"`))
	begin = reload("the guest may not any more")
	n.Wait(soon, "the log names the user who is not there", func() (bool, string) { return strings.Contains(n.srv.Log(), "user=gust@"), "it does not" })
	guest.WaitNoPeer(soon, n.Cloud.Name())
	n.measured("web server gone from the guest after reload", time.Since(begin))
	if gets(guestHost, url(80)) {
		t.Error("the guest still reaches the web server")
	}
	mac.Ping(soon, n.Router.Addr())
}

// autogroup:self lets the machines of one person reach each other, and nobody else's.
func TestPolicySelf(t *testing.T) {
	file := filepath.Join(t.TempDir(), "policy.hujson")
	if err := os.WriteFile(file, []byte(`{"acls": [{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:*"]}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	n := newNet(t, lab.EasyNAT, lab.ServerOptions{Env: []string{"SKEIN_POLICY_PATH=" + file}})
	n.srv.Skein("namespaces", "create", "guest")
	mac, nas := n.join(n.Mac), n.join(n.NAS)
	guest := n.Cloud.StartTailscaled(lab.NodeOptions{})
	guest.Up(n.srv.URL, "--auth-key="+n.srv.Key("guest"))
	mac.Ping(soon, nas.IP4())
	nas.Ping(soon, mac.IP4())
	guest.WaitNoPeer(soon, "homeDS")
	if _, err := n.Cloud.Ping(never, mac.IP4()); err == nil {
		t.Error("the guest reaches somebody else's machine")
	}
}

// A policy gives the exit node to one group, and steers two people to two routers of one network.
func TestPolicyExitNodeAndVia(t *testing.T) {
	file := filepath.Join(t.TempDir(), "policy.hujson")
	if err := os.WriteFile(file, []byte(`{
		"groups":    {"group:home": ["junyao@"]},
		"tagOwners": {"tag:exit": ["junyao@"], "tag:first": ["junyao@"], "tag:second": ["junyao@"]},
		"autoApprovers": {
			"exitNode": ["tag:exit"],
			"routes":   {"192.168.199.0/24": ["tag:first", "tag:second"]},
		},
		"grants": [
			{"src": ["group:home"], "dst": ["autogroup:internet"], "ip": ["*"]},
			{"src": ["guest@"], "dst": ["tag:exit"], "ip": ["tcp:80"]},
			{"src": ["group:home"], "dst": ["192.168.199.0/24"], "ip": ["*"], "via": ["tag:second"]},
			{"src": ["guest@"], "dst": ["192.168.199.0/24"], "ip": ["*"], "via": ["tag:first"]},
		],
	}`), 0o600); err != nil {
		t.Fatal(err)
	}
	n := newNet(t, lab.EasyNAT, lab.ServerOptions{Env: []string{"SKEIN_POLICY_PATH=" + file}})
	n.srv.Skein("namespaces", "create", "guest")
	spare := n.Home.Host("homeDS-spare", "192.168.199.187")
	spare.Forward()
	guestHost := n.Office.Host("guest-laptop", "10.8.99.46")

	mac := n.join(n.Mac, "--accept-routes")
	n.join(n.Cloud, "--advertise-exit-node", "--advertise-tags=tag:exit")
	n.join(n.NAS, "--advertise-routes="+homeLAN, "--advertise-tags=tag:first")
	n.join(spare, "--advertise-routes="+homeLAN, "--advertise-tags=tag:second")
	guest := guestHost.StartTailscaled(lab.NodeOptions{})
	guest.Up(n.srv.URL, "--auth-key="+n.srv.Key("guest"), "--accept-routes")

	mac.WaitPeer(soon, "VM-0-2-centos", func(p *ipnstate.PeerStatus) bool { return p.ExitNodeOption })
	guest.WaitPeer(soon, "VM-0-2-centos", func(p *ipnstate.PeerStatus) bool { return !p.ExitNodeOption })

	mac.WaitPeer(soon, "homeDS-spare", carries(homeLAN))
	guest.WaitPeer(soon, "homeDS", carries(homeLAN))
	for _, c := range []struct {
		node  *lab.Node
		other string
	}{{mac, "homeDS"}, {guest, "homeDS-spare"}} {
		if p := lab.Peer(c.node.Status(), c.other); p != nil && carries(homeLAN)(p) {
			t.Errorf("%s is also shown the other router:\n%s", c.node.Host.Name(), lab.Brief(c.node.Status()))
		}
		c.node.Ping(soon, n.Router.Addr())
	}
}
