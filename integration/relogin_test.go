package integration

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skein-vpn/skein/integration/lab"
	"tailscale.com/ipn/ipnstate"
)

// A container that is started again with the key on its command line: with its state it is back as itself, whether the key
// is used up, expired or deleted. Without its state it is another machine, which needs a key that is good.
func TestRestartWithAuthKey(t *testing.T) {
	n := newNet(t, lab.EasyNAT, lab.ServerOptions{})
	mac := n.join(n.Mac)
	key := n.srv.Key("junyao")
	nas := n.NAS.StartTailscaled(lab.NodeOptions{})
	up := func() { nas.Up(n.srv.URL, "--auth-key="+key) }
	up()
	before := n.srv.Node("homeDS")
	restarted := func(how string) {
		t.Helper()
		nas.Kill()
		nas.StartAgain()
		begin := time.Now()
		up()
		nas.WaitRunning(patient)
		n.measured("back with a key that is "+how, time.Since(begin))
		sameNode(t, before, n.srv.Node("homeDS"))
	}
	restarted("used up")
	n.srv.Skein("preauthkeys", "expire", key)
	restarted("expired")
	_, keys := n.srv.Table("preauthkeys", "list")
	n.srv.Skein("preauthkeys", "delete", "--yes", keys[len(keys)-1]["ID"])
	restarted("deleted")
	mac.WaitPeer(soon, "homeDS", func(p *ipnstate.PeerStatus) bool { return p.Online })
	mac.Ping(patient, nas.IP4())

	// Its login has ended, and so has the key that it brings.
	key = n.srv.Key("junyao")
	n.srv.Skein("preauthkeys", "expire", key)
	n.srv.Skein("nodes", "expire", before["ID"])
	nas.WaitState(soon, "NeedsLogin")
	refused(t, nas, n.srv.URL, key, "revoked")
	key = n.srv.Key("junyao")
	n.Wait(patient, "homeDS is back with a good key", func() (bool, string) {
		r := nas.CLI(soon, "up", "--login-server="+n.srv.URL, "--auth-key="+key, "--timeout=10s")
		return r.Err == nil, r.String() // it may tell the end of the attempt before once more
	})
	sameNode(t, before, n.srv.Node("homeDS"))

	// Without its state.
	nas.Kill()
	if err := os.RemoveAll(filepath.Join(n.NAS.Dir(), "state")); err != nil {
		t.Fatal(err)
	}
	nas.StartAgain()
	refused(t, nas, n.srv.URL, key, "used once only")
	key = n.srv.Key("junyao", "--reusable")
	n.Wait(patient, "homeDS joins anew", func() (bool, string) {
		r := nas.CLI(soon, "up", "--login-server="+n.srv.URL, "--auth-key="+key, "--timeout=10s")
		return r.Err == nil, r.String()
	})
	n.Wait(soon, "the node of before is offline and there is a new one", func() (bool, string) {
		_, rows := n.srv.Table("nodes", "list")
		return len(rows) == 3 && rows[1]["Online"] == "offline" && rows[2]["Name"] == "homeds-1", n.srv.Skein("nodes", "list")
	})
}

// refused checks that "tailscale up" with a key fails and says why.
func refused(t *testing.T, node *lab.Node, url, key, why string) {
	t.Helper()
	r := node.CLI(soon, "up", "--login-server="+url, "--auth-key="+key, "--timeout=10s")
	if r.Err == nil || !strings.Contains(r.Stderr+r.Stdout, why) {
		t.Errorf("tailscale up with a key that is not good, want a sentence with %q: %v", why, r)
	}
}

// nodeJSON is a node as "nodes show" tells it.
type nodeJSON struct {
	ID, Status         string
	Tags, IPAddresses  []string
	User               struct{ Name string }
	Expiry             *time.Time
	Authorized, Online bool
}

// tagKey is a new key whose nodes get these tags.
func tagKey(n *net, tags string) string {
	return strings.TrimSpace(n.srv.Skein("preauthkeys", "create", "--tags", tags))
}

func (n *net) show(t *testing.T, ref string) (out nodeJSON) {
	t.Helper()
	if err := json.Unmarshal([]byte(n.srv.Skein("nodes", "show", ref, "-o", "json")), &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// A machine of a user becomes a tagged one, with a key for tags or by asking for them, and remains the same node; logging
// out and in again it stays tagged, by key and by a person. Tags do not expire; taken away, the node belongs to a user again.
func TestTags(t *testing.T) {
	n := newNet(t, lab.EasyNAT, lab.ServerOptions{Config: "node:\n  expiry: 90d\n"})
	policy := filepath.Join(n.Dir(), "policy.hujson")
	err := os.WriteFile(policy, []byte(`{"tagOwners": {"tag:router": ["junyao@"], "tag:home": ["tag:router"], "tag:other": []},
		"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}`), 0o644)
	if err != nil {
		t.Fatal(err)
	}
	n.srv.Skein("policy", "set", policy, "--yes")
	mac, nas := n.join(n.Mac), n.join(n.NAS)
	before := n.show(t, "homeds")
	if before.Expiry == nil || nas.Status().Self.KeyExpiry == nil {
		t.Errorf("a user's key does not end: %+v", before)
	}
	is := func(user string, tags ...string) {
		t.Helper()
		n.Wait(soon, "homeds has the tags "+strings.Join(tags, ","), func() (bool, string) {
			return slices.Equal(n.show(t, "homeds").Tags, tags), n.srv.Skein("nodes", "show", "homeds")
		})
		after := n.show(t, "homeds")
		if after.ID != before.ID || !slices.Equal(after.IPAddresses, before.IPAddresses) || after.User.Name != user || (after.Expiry == nil) != (len(tags) > 0) {
			t.Errorf("want a node of %s with tags %q: %+v, before %+v", user, tags, after, before)
		}
		mac.WaitPeer(soon, "homeDS", func(p *ipnstate.PeerStatus) bool {
			return p.Online && !p.Expired && (p.Tags != nil) == (len(tags) > 0)
		})
		mac.Ping(patient, nas.IP4())
	}
	key := n.srv.Key("junyao")
	nas.Up(n.srv.URL, "--force-reauth", "--auth-key="+tagKey(n, "tag:home,tag:router"))
	is("tagged-devices", "tag:home", "tag:router")
	n.srv.Skein("nodes", "untag", "homeds", "-n", "junyao")
	is("junyao")
	n.srv.Skein("nodes", "tag", "homeds", "tag:router", "tag:other")
	n.srv.Skein("nodes", "untag", "homeds", "tag:other")
	is("tagged-devices", "tag:router")

	nas.MustCLI("logout")
	nas.WaitState(soon, "NeedsLogin")
	nas.Up(n.srv.URL, "--auth-key="+tagKey(n, "tag:router"))
	is("tagged-devices", "tag:router")
	lg := nas.Login(n.srv.URL, "--force-reauth")
	n.srv.Skein("nodes", "register", "--namespace", "junyao", "--key", lg.Key)
	lg.Wait(patient)
	is("tagged-devices", "tag:router")

	// It runs, and asks for a tag that its own tag may give; then for one that it may not.
	nas.Up(n.srv.URL, "--advertise-tags=tag:home")
	is("tagged-devices", "tag:home")
	nas.CLI(soon, "up", "--login-server="+n.srv.URL, "--advertise-tags=tag:other", "--timeout=10s") // which may end well: it runs
	n.Wait(soon, "a refusal", func() (bool, string) {
		return strings.Contains(n.srv.Log(), "requested tags [tag:other] are invalid or not permitted"), n.srv.Tail(5)
	})
	n.Wait(patient, "it asks for the tag of before", func() (bool, string) {
		r := nas.CLI(soon, "up", "--login-server="+n.srv.URL, "--advertise-tags=tag:home", "--timeout=10s")
		return r.Err == nil, r.String() // it may tell the end of the attempt before once more
	})
	is("tagged-devices", "tag:home")
	n.srv.Skein("nodes", "untag", "homeds", "-n", "junyao")
	nas.Up(n.srv.URL, "--advertise-tags=", "--auth-key="+key, "--force-reauth")
	is("junyao")
	nas.Up(n.srv.URL, "--advertise-tags=tag:router") // its user may
	is("tagged-devices", "tag:router")
}

// Where devices need approval a new one waits, sees nobody and is seen by nobody, until an administrator says yes or unless
// its key says so; users are suspended and restored, keys end at a time and are prolonged: each takes effect at once, for
// clients with a direct path to each other too.
func TestApproval(t *testing.T) {
	n := newNet(t, lab.EasyNAT, lab.ServerOptions{})
	n.srv.Skein("settings", "set", "--device-approval", "on")
	n.srv.Skein("namespaces", "create", "guest")
	mac := n.Mac.StartTailscaled(lab.NodeOptions{})
	mac.Up(n.srv.URL, "--auth-key="+n.srv.Key("junyao", "--pre-approved"))

	nas := n.NAS.StartTailscaled(lab.NodeOptions{})
	up := nas.StartCLI("up", "--login-server="+n.srv.URL, "--auth-key="+n.srv.Key("guest"))
	nas.WaitState(soon, "NeedsMachineAuth")
	n.Wait(soon, "tailscale up says where to approve", func() (bool, string) {
		return strings.Contains(up.Log(), n.srv.URL+"/admin"), up.Log()
	})
	if st := nas.Status(); len(st.Peer) != 0 {
		t.Errorf("a node that waits sees\n%s", lab.Brief(st))
	}
	_, rows := n.srv.Table("nodes", "list", "--waiting")
	if len(rows) != 1 || rows[0]["Hostname"] != "homeDS" || rows[0]["Status"] != "needs-approval" {
		t.Errorf("waiting: %v", rows)
	}
	if p := lab.Peer(mac.Status(), "homeDS"); p != nil {
		t.Errorf("a node that waits is seen: %+v", p)
	}
	begin := time.Now()
	n.srv.Skein("nodes", "approve", "homeds")
	nas.WaitRunning(soon)
	n.measured("client is up after nodes approve", time.Since(begin))
	if err := up.WaitEnd(soon); err != nil {
		t.Errorf("tailscale up ended with %v: %s", err, up.Log())
	}
	mac.WaitPeer(soon, "homeDS", nil)
	direct(mac, nas)
	ip := nas.IP4()

	cut := func(how, state string, args ...string) {
		t.Helper()
		begin := time.Now()
		n.srv.Skein(args...)
		mac.WaitFor(soon, "homeDS is gone or expired", func(st *ipnstate.Status) bool {
			p := lab.Peer(st, "homeDS")
			return p == nil || p.Expired
		})
		n.measured(how+" seen by the peer", time.Since(begin))
		nas.WaitState(soon, state)
		if p := lab.Peer(nas.Status(), "junyao"); p != nil && state != "NeedsLogin" { // then it shows what it knew
			t.Errorf("%s: it still sees %+v", how, p)
		}
		if _, err := n.Mac.Ping(never, ip); err == nil {
			t.Errorf("%s: it still answers", how)
		}
		if _, err := n.NAS.Ping(never, mac.IP4()); err == nil {
			t.Errorf("%s: it still reaches others", how)
		}
	}
	back := func(how string, args ...string) {
		t.Helper()
		begin := time.Now()
		n.srv.Skein(args...)
		nas.WaitRunning(soon)
		mac.WaitPeer(soon, "homeDS", func(p *ipnstate.PeerStatus) bool { return p.Online && !p.Expired })
		mac.Ping(soon, ip)
		n.measured("traffic again after "+how, time.Since(begin))
	}
	cut("suspension", "NeedsMachineAuth", "namespaces", "suspend", "guest")
	refused(t, n.Cloud.StartTailscaled(lab.NodeOptions{}), n.srv.URL, n.srv.Key("guest"), "suspended")
	back("namespaces restore", "namespaces", "restore", "guest")
	cut("taking the approval back", "NeedsMachineAuth", "nodes", "approve", "homeds", "--revoke")
	back("nodes approve", "nodes", "approve", "homeds")

	// The server alone ends a key at its time: the client's own clock does so ten seconds later.
	begin = time.Now()
	cut("the end of the key in three seconds", "NeedsLogin", "nodes", "expire", "homeds", "--at", "3s")
	if took := time.Since(begin); took < 2*time.Second {
		t.Errorf("the key ended after %v", took)
	}
	back("nodes expire --renew", "nodes", "expire", "homeds", "--renew")
}

// A new key does not stop traffic, neither to the node nor from it: peers hear of it when the node uses it, and then begin the
// session that the node itself could not.
func TestKeyRenewal(t *testing.T) {
	n := newNet(t, lab.EasyNAT, lab.ServerOptions{})
	mac, nas := n.join(n.Mac), n.join(n.NAS)
	mac.WaitPeer(soon, "homeDS", nil)
	direct(mac, nas)
	for i := range 4 {
		key := n.srv.Key("junyao")
		before := n.srv.Node("homeDS")
		from, to, way := n.Mac, nas.IP4(), "to"
		if i%2 == 1 {
			from, to, way = n.NAS, mac.IP4(), "from"
		}
		beat := from.Beat(to)
		nas.Up(n.srv.URL, "--auth-key="+key, "--force-reauth")
		n.srv.WaitNode(soon, "homeDS", "has a new key", func(r lab.Row) bool { return r["NodeKey"] != before["NodeKey"] })
		time.Sleep(time.Second) // its peers are told meanwhile
		if _, err := from.Ping(soon, to); err != nil {
			t.Fatal(err)
		}
		_, _, gap := beat.Stop()
		n.measured("traffic "+way+" a node stopped when its key changed for", gap)
		if gap > renewal {
			t.Errorf("traffic %s a node whose key changed stopped for %v", way, gap)
		}
	}
}

// renewal bounds what a new key may cost on a busy machine: less than WireGuard's second attempt at a handshake, which comes
// after five seconds.
const renewal = 4 * time.Second

// An ephemeral node that comes back while the server is about to delete it, or has just done so, is back with the key that it
// was started with.
func TestEphemeralComesBack(t *testing.T) {
	const timeout = 3 * time.Second
	n := newNet(t, lab.EasyNAT, lab.ServerOptions{Env: []string{"SKEIN_NODE_EPHEMERAL_INACTIVITY_TIMEOUT=3s"}})
	mac := n.join(n.Mac)
	up := "--auth-key=" + n.srv.Key("junyao", "--ephemeral", "--reusable")
	nas := n.NAS.StartTailscaled(lab.NodeOptions{})
	nas.Up(n.srv.URL, up)
	for _, away := range []time.Duration{timeout - 500*time.Millisecond, timeout, timeout + 2*time.Second} {
		nas.Kill()
		n.srv.WaitNode(soon, "homeDS", "is offline", func(r lab.Row) bool { return r == nil || r["Online"] == "offline" })
		time.Sleep(away) // nothing to wait for: this is how long it is away
		nas.StartAgain()
		n.Wait(patient, "homeDS is back", func() (bool, string) {
			r := nas.CLI(soon, "up", "--login-server="+n.srv.URL, up, "--timeout=10s")
			return r.Err == nil, r.String()
		})
		nas.WaitRunning(soon)
		mac.WaitPeer(soon, "homeDS", func(p *ipnstate.PeerStatus) bool { return p.Online })
		mac.Ping(patient, nas.IP4())
		_, rows := n.srv.Table("nodes", "list")
		if len(rows) != 2 {
			t.Errorf("after %v there are these nodes:\n%v", away, rows)
		}
	}
}

// Fifty machines join with one key in the same second, five of them with real clients: all are in, under names and addresses of
// their own, and see each other.
func TestManyJoinAtOnce(t *testing.T) {
	n := newNet(t, lab.EasyNAT, lab.ServerOptions{})
	const light = 45
	key := n.srv.Key("junyao", "--reusable")
	hosts := []*lab.Host{n.Mac, n.NAS, n.Cloud, n.Lab.Cloud("vm"), n.Lab.Cloud("vm")}
	var nodes []*lab.Node
	for _, h := range hosts {
		nodes = append(nodes, h.StartTailscaled(lab.NodeOptions{}))
	}
	burst := n.Lab.Cloud("burst").StartBurst(n.srv.URL, key, light)
	var wg sync.WaitGroup
	results := make([]lab.Result, len(nodes))
	for i, node := range nodes {
		wg.Go(func() { results[i] = node.CLI(patient, "up", "--login-server="+n.srv.URL, "--auth-key="+key) })
	}
	wg.Wait()
	for _, r := range results {
		if r.Err != nil {
			t.Fatal(r)
		}
	}
	n.Wait(soon, "all light machines are in", func() (bool, string) { return len(burst.Registered()) == light, burst.Log() })
	_, rows := n.srv.Table("nodes", "list")
	names, ips := map[string]bool{}, map[string]bool{}
	for _, r := range rows {
		names[r["Name"]], ips[r["IP addresses"]] = true, true
	}
	if total := light + len(nodes); len(rows) != total || len(names) != total || len(ips) != total || !names["vm-1"] {
		t.Errorf("%d nodes with %d names and %d pairs of addresses, want %d:\n%v", len(rows), len(names), len(ips), light+len(nodes), rows)
	}
	for _, node := range nodes { // light machines have no path and are nobody's peers
		node.WaitFor(soon, "four peers", func(st *ipnstate.Status) bool { return len(st.Peer) == len(nodes)-1 })
	}
	nodes[3].Ping(soon, nodes[4].IP4())
}
