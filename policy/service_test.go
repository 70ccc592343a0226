package policy

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/skein-vpn/skein/tailnet"
)

// A rule for a service opens its addresses on its hosts, and nothing else of them; tests and explanations know services.
func TestServiceDestinations(t *testing.T) {
	p, err := Parse([]byte(`{"tagOwners": {"tag:web": [], "tag:ops": []},
		"acls": [{"action": "accept", "src": ["ann@"], "dst": ["svc:web:80"]}, {"action": "accept", "src": ["tag:ops"], "dst": ["tag:web:22"]}],
		"grants": [{"src": ["ann@"], "dst": ["svc:web"], "app": {"example.com/cap/x": [{"a": 1}]}}],
		"tests": [
			{"src": "ann@", "accept": ["svc:web:80", "100.64.0.9:80"], "deny": ["svc:web:81", "svc:none:80", "tag:web:80"]},
			{"src": "tag:ops", "accept": ["tag:web:22"], "deny": ["svc:web:22", "svc:web:80"]}]}`))
	if err != nil {
		t.Fatal(err)
	}
	if w := p.Warnings(); len(w) != 0 {
		t.Errorf("warned of %v", w)
	}
	v4, v6 := netip.MustParseAddr("100.64.0.9"), netip.MustParseAddr("fd7a:115c:a1e0::9")
	ann := &tailnet.User{ID: 1, Name: "ann"}
	node := func(id tailnet.NodeID, user tailnet.UserID, tags ...string) *tailnet.Node {
		return &tailnet.Node{ID: id, User: user, Tags: tags, IPv4: netip.AddrFrom4([4]byte{100, 64, 0, byte(id)})}
	}
	laptop, ops := node(1, 1), node(2, 0, "tag:ops")
	host := node(3, 0, "tag:web")
	host.Hostings = []tailnet.Hosting{{Service: "svc:web", Offered: true, Active: true, Approval: tailnet.ApprovedByAdmin, IPv4: v4, IPv6: v6}}
	c, err := Compile(p, []*tailnet.User{ann}, []*tailnet.Node{laptop, ops, host}, Options{Services: map[string][]netip.Addr{"svc:web": {v4, v6}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Test(); err != nil {
		t.Error(err)
	}
	if !c.SeesNode(laptop, host) || !c.UsesService(c.ClassOf(laptop), v4) || c.UsesService(c.ClassOf(ops), v4) || !c.UsesService(c.ClassOf(host), v6) {
		t.Error("the wrong nodes are told of the service")
	}
	carrier := func(netip.Prefix, []tailnet.NodeID) tailnet.NodeID { return host.ID }
	if rs := c.Routes(c.ClassOf(laptop), host, carrier); fmt.Sprint(rs) != "[100.64.0.9/32 fd7a:115c:a1e0::9/128]" {
		t.Errorf("the laptop is shown %v", rs)
	}
	if rs := c.Routes(c.ClassOf(ops), host, carrier); len(rs) != 0 {
		t.Errorf("one who may not use it is shown %v", rs)
	}
	filter := fmt.Sprint(c.FilterFor(host))
	if !strings.Contains(filter, "100.64.0.9") || strings.Contains(filter, "{100.64.0.3 {80 80}}") || !strings.Contains(filter, "example.com/cap/x") {
		t.Errorf("the host lets in %s", filter)
	}
	if x := c.Explain(laptop, v4, 6, 80); !x.Allowed || len(x.Through) != 1 || x.By[0].Label != "acls[0]" {
		t.Errorf("%+v", x)
	}
	if x := c.Explain(ops, v4, 6, 22); x.Allowed {
		t.Errorf("%+v", x)
	}
	if !c.NamesService("svc:web") || c.NamesService("svc:none") {
		t.Error("it does not know what it names")
	}
}
