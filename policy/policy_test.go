package policy

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"tailscale.com/tailcfg"

	"github.com/skein-vpn/skein/tailnet"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// small is a tailnet of one administrator, one member, a server with a tag and a router.
func small(t testing.TB, text string, opts Options) (*Compiled, map[string]*tailnet.Node) {
	t.Helper()
	p, err := Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	users := []*tailnet.User{
		{ID: 1, Name: "ada", Email: "ada@example.com", Role: tailnet.RoleAdmin},
		{ID: 2, Name: "bob", Email: "bob@example.com"},
	}
	nodes := map[string]*tailnet.Node{}
	var list []*tailnet.Node
	for i, name := range []string{"ada-1", "ada-2", "bob-1", "server", "router"} {
		n := &tailnet.Node{
			ID: tailnet.NodeID(i + 1), Name: name, IPv4: netip.AddrFrom4([4]byte{100, 64, 0, byte(i + 1)}),
			Created: time.Unix(int64(i), 0), Hostinfo: &tailcfg.Hostinfo{OS: "linux", IPNVersion: "1.90.2-t123"},
		}
		switch name[:3] {
		case "ada":
			n.User = 1
		case "bob":
			n.User = 2
		default:
			n.Tags = []string{"tag:" + name}
		}
		list = append(list, n)
		nodes[name] = n
	}
	r := nodes["router"]
	r.Hostinfo.RoutableIPs = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	r.ApprovedRoutes = r.Hostinfo.RoutableIPs
	c, err := Compile(p, users, list, opts)
	if err != nil {
		t.Fatal(err)
	}
	return c, nodes
}

const owners = `"tagOwners": {"tag:server": ["bob@example.com"], "tag:router": ["autogroup:admin", "tag:server"]},`

func TestAllowAll(t *testing.T) {
	c := AllowAll()
	n := &tailnet.Node{ID: 1, IPv4: addr("100.64.0.1"), Hostinfo: &tailcfg.Hostinfo{}}
	if got := jsonOf(c.FilterFor(n)); got != `[{"SrcIPs":["*"],"DstPorts":[{"IP":"*","Ports":{"First":0,"Last":65535}}]}]` {
		t.Error(got)
	}
	n.Hostinfo.RoutableIPs = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("192.168.0.0/16")}
	n.ApprovedRoutes = n.Hostinfo.RoutableIPs[:1]
	if got := jsonOf(c.FilterFor(n)); strings.Contains(got, "192.168") || !strings.Contains(got, "10.0.0.0/8") || !strings.Contains(got, "100.64.0.1/32") {
		t.Error(got)
	}
	if c.With(nil, n) != c || c.WithUser(nil, &tailnet.User{ID: 1}) != c || !c.Sees(0, 0) || c.ClassOf(n) != 0 {
		t.Error("without a policy all nodes are one class, whatever happens")
	}
	if len(c.SSHFor(n).Rules) != 0 || c.Approves(n, n.ApprovedRoutes[0]) || len(c.AttrsFor(n)) != 0 || c.Test() != nil {
		t.Error("without a policy there is nothing beyond reaching each other")
	}
}

func TestSSH(t *testing.T) {
	c, nodes := small(t, `{`+owners+`"ssh": [
		{"action": "accept", "src": ["autogroup:member"], "dst": ["tag:server"], "users": ["autogroup:nonroot"],
		 "recorder": ["tag:router"], "enforceRecorder": true},
		{"action": "check", "checkPeriod": "1h", "src": ["autogroup:admin"], "dst": ["tag:server"], "users": ["root"]},
		{"action": "check", "checkPeriod": "always", "src": ["autogroup:member"], "dst": ["autogroup:self"], "users": ["root"]},
		{"action": "accept", "src": ["tag:server"], "dst": ["tag:router"], "users": ["backup"], "acceptEnv": ["GIT_*"]},
	]}`, Options{CheckURL: "https://skein.example"})
	for _, x := range []struct {
		src, dst, user string
		want           SSHDecision // Line and Action apart
	}{
		{"ada-1", "server", "root", SSHDecision{Allowed: true, Check: true, Period: time.Hour}},
		{"bob-1", "server", "root", SSHDecision{}},
		{"bob-1", "server", "bob", SSHDecision{Allowed: true, Period: defaultCheckPeriod}},
		{"ada-1", "ada-2", "root", SSHDecision{Allowed: true, Check: true}},
		{"ada-1", "bob-1", "root", SSHDecision{}},
		{"server", "router", "backup", SSHDecision{Allowed: true, Period: defaultCheckPeriod}},
		{"router", "server", "backup", SSHDecision{}},
		{"server", "router", "root", SSHDecision{}},
	} {
		got := c.SSH(nodes[x.src], nodes[x.dst], x.user)
		if got.Allowed != x.want.Allowed || got.Check != x.want.Check || got.Period != x.want.Period {
			t.Errorf("%s to %s as %s: got %+v, want %+v", x.src, x.dst, x.user, got, x.want)
		}
		if got.Allowed && (got.Line == 0 || got.Action == nil || !got.Action.Accept) {
			t.Errorf("%s to %s as %s: no line or no action: %+v", x.src, x.dst, x.user, got)
		}
	}
	rules := c.SSHFor(nodes["server"]).Rules
	if len(rules) != 2 || rules[0].Action.HoldAndDelegate != "https://skein.example"+checkPath {
		t.Fatalf("the rule that checks must come first: %s", jsonOf(rules))
	}
	accept := rules[1].Action
	if !slices.Equal(accept.Recorders, []netip.AddrPort{netip.MustParseAddrPort("100.64.0.5:80")}) || accept.OnRecordingFailure == nil {
		t.Errorf("recorders: %s", jsonOf(accept))
	}
	if rules[1].SSHUsers["root"] != "" || rules[1].SSHUsers["*"] != "=" {
		t.Errorf("nonroot: %v", rules[1].SSHUsers)
	}
}

func TestAttributes(t *testing.T) {
	c, nodes := small(t, `{`+owners+`
		"nodeAttrs": [
			{"target": ["tag:server"], "attr": ["funnel", "disable-ipv4"]},
			{"target": ["autogroup:member"], "ipPool": ["100.80.0.0/16"], "app": {"tailscale.com/app-connectors": [{"name": "x", /* c */ "connectors": ["tag:router"]}]}},
		],
		"OneCGNATRoute": "mac-always", "randomizeClientPort": true,
		"autoApprovers": {"routes": {"10.0.0.0/8": ["tag:router"], "0.0.0.0/0": ["tag:router"]}, "exitNode": ["bob@example.com"], "services": {"svc:web": ["tag:server"], "tag:router": ["ada@example.com"]}},
	}`, Options{HTTPS: true})
	attrs := c.AttrsFor(nodes["server"])
	for _, want := range []tailcfg.NodeCapability{attrFunnel, attrFunnelPorts, "randomize-client-port"} {
		if _, ok := attrs[want]; !ok {
			t.Errorf("the server lacks %s: %v", want, attrs)
		}
	}
	if _, ok := attrs[attrFunnelHTTPS]; ok {
		t.Error("warned of missing HTTPS where there is HTTPS")
	}
	if got := c.AddrsOf(nodes["server"]); len(got) != 0 {
		t.Errorf("IPv4 is disabled for the server, which has no IPv6; got %v", got)
	}
	if got := jsonOf(c.AttrsFor(nodes["bob-1"])["tailscale.com/app-connectors"]); got != `[{"name":"x","connectors":["tag:router"]}]` {
		t.Error(got)
	}
	mac := nodes["bob-1"].Clone()
	mac.Hostinfo = &tailcfg.Hostinfo{OS: "macOS"}
	if _, ok := c.AttrsFor(mac)[attrOneCGNATOn]; !ok {
		t.Error("OneCGNATRoute has no effect on a Mac")
	}
	if got := c.PoolFor(nodes["bob-1"]); len(got) != 1 || c.PoolFor(nodes["server"]) != nil {
		t.Errorf("pool: %v", got)
	}
	pfx := netip.MustParsePrefix
	for _, x := range []struct {
		node, route string
		want        bool
	}{
		{"router", "10.0.0.0/8", true}, {"router", "10.5.0.0/16", true}, {"server", "10.5.0.0/16", false}, {"router", "0.0.0.0/0", false},
		{"bob-1", "0.0.0.0/0", true}, {"bob-1", "::/0", true}, {"ada-1", "::/0", false}, {"router", "192.168.0.0/16", true}, {"router", "fd00::/64", false},
	} {
		if got := c.Approves(nodes[x.node], pfx(x.route)); got != x.want {
			t.Errorf("%s of %s: approved %v, want %v", x.route, x.node, got, x.want)
		}
	}
	if !c.ApprovesService(nodes["server"], "svc:web", nil) || c.ApprovesService(nodes["router"], "svc:web", nil) || !c.ApprovesService(nodes["ada-1"], "svc:db", []string{"tag:router"}) {
		t.Error("services")
	}
	ada, bob := &tailnet.User{ID: 1, Email: "ada@example.com", Role: tailnet.RoleAdmin}, &tailnet.User{ID: 2, Email: "bob@example.com"}
	if !c.MayTag(ada, "tag:server") || !c.MayTag(bob, "tag:server") || c.MayTag(bob, "tag:router") || c.MayTag(ada, "tag:unknown") || c.MayTag(nil, "tag:server") {
		t.Error("MayTag")
	}
	if !c.MayRetag([]string{"tag:server"}, "tag:router") || c.MayRetag([]string{"tag:router"}, "tag:server") || !c.KnowsTag("tag:router") || c.KnowsTag("tag:x") {
		t.Error("MayRetag, KnowsTag")
	}
}

func TestPosture(t *testing.T) {
	text := `{` + owners + `
		"postures": {"posture:new": ["node:tsVersion >= '1.90'", "node:tsReleaseTrack == 'stable'"], "posture:gold": ["custom:tier IN ['gold', 'silver']"]},
		"defaultSrcPosture": ["posture:new"],
		"acls": [
			{"action": "accept", "src": ["autogroup:member"], "dst": ["tag:server:22"]},
			{"action": "accept", "src": ["*"], "dst": ["tag:router:22"], "srcPosture": ["posture:gold"]},
			{"action": "accept", "src": ["*"], "dst": ["tag:server:80"], "srcPosture": []},
		],
		"tests": [{"src": "bob@example.com", "srcPostureAttrs": {"node:tsVersion": "1.80.1", "node:tsReleaseTrack": "stable"}, "deny": ["tag:server:22"]},
			{"src": "bob@example.com", "accept": ["tag:server:22", "tag:server:80"]}],
	}`
	c, nodes := small(t, text, Options{Custom: func(n *tailnet.Node) map[string]string {
		if n.Name == "ada-1" {
			return map[string]string{"custom:tier": "gold"}
		}
		return nil
	}})
	if err := c.Test(); err != nil {
		t.Error(err)
	}
	if x := c.Explain(nodes["bob-1"], addr("100.64.0.4"), 6, 22); !x.Allowed {
		t.Errorf("%+v", x)
	}
	old := nodes["bob-1"].Clone()
	old.Hostinfo = &tailcfg.Hostinfo{OS: "linux", IPNVersion: "1.88.9"}
	d := c.With(nodes["bob-1"], old)
	if x := d.Explain(old, addr("100.64.0.4"), 6, 22); x.Allowed {
		t.Error("an old client still gets in")
	}
	if !c.Explain(nodes["bob-1"], addr("100.64.0.4"), 6, 22).Allowed {
		t.Error("the older value changed")
	}
	for name, want := range map[string]bool{"ada-1": true, "ada-2": false, "server": false} {
		if got := c.Explain(nodes[name], addr("100.64.0.5"), 6, 22).Allowed; got != want {
			t.Errorf("%s with a custom attribute: %v, want %v", name, got, want)
		}
	}
}

func TestIPSets(t *testing.T) {
	c, nodes := small(t, `{`+owners+`
		"hosts": {"one": "10.1.1.1"},
		"ipsets": {"ipset:lan": ["add 10.0.0.0/8", "remove 10.1.0.0/16", "add host:one"], "ipset:all": ["ipset:lan", "192.0.2.1-192.0.2.4"]},
		"grants": [{"src": ["bob@example.com"], "dst": ["ipset:all"], "ip": ["tcp:22"]}]}`, Options{})
	for dst, want := range map[string]bool{"10.2.0.1": true, "10.1.0.1": false, "10.1.1.1": true} {
		if got := c.Explain(nodes["bob-1"], addr(dst), 6, 22); got.Allowed != want {
			t.Errorf("%s: %+v", dst, got)
		}
	}
}

func TestTaildropGrant(t *testing.T) {
	c, nodes := small(t, `{`+owners+`"grants": [{"src": ["ada@example.com"], "dst": ["bob@example.com"], "app": {"github.com/skein-vpn/taildrop": []}}]}`, Options{})
	if got := jsonOf(c.FilterFor(nodes["bob-1"])); !strings.Contains(got, string(capFileSend)) || !strings.Contains(got, "100.64.0.1") {
		t.Error(got)
	}
	if got := jsonOf(c.FilterFor(nodes["ada-2"])); !strings.Contains(got, string(capSharingTarget)) || !strings.Contains(got, "100.64.0.3") {
		t.Error(got)
	}
}

// TestFiltersStable: a node that joins a set changes no filter of clients that know capabilities as sources, and one named
// filter of the others.
func TestFiltersStable(t *testing.T) {
	c, nodes := small(t, `{`+owners+`"acls": [
		{"action": "accept", "src": ["autogroup:member"], "dst": ["tag:server:22"]},
		{"action": "accept", "src": ["tag:router"], "dst": ["tag:server:80"]}]}`, Options{})
	join := &tailnet.Node{ID: 50, Name: "bob-2", User: 2, IPv4: addr("100.64.0.50"), Hostinfo: &tailcfg.Hostinfo{}}
	d := c.With(nil, join)
	s := nodes["server"]
	if a, b := jsonOf(c.Filters(s, 142)), jsonOf(d.Filters(s, 142)); a != b {
		t.Errorf("with capabilities a join changed\n%s to\n%s", a, b)
	}
	a, b := c.Filters(s, 100), d.Filters(s, 100)
	changed := 0
	for name := range a {
		if jsonOf(a[name]) != jsonOf(b[name]) {
			changed++
		}
	}
	if len(a) != 2 || len(b) != 2 || changed != 1 {
		t.Errorf("%d of %d named filters changed: %s, %s", changed, len(a), jsonOf(a), jsonOf(b))
	}
	if c.Filters(s, 80) != nil {
		t.Error("an old client gets named filters")
	}
	if got := d.SourceCaps(d.ClassOf(join)); len(got) != 1 || !strings.Contains(jsonOf(d.Filters(s, 142)), string(got[0])) {
		t.Errorf("the new node carries %v", got)
	}
}
