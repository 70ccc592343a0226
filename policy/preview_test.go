package policy

import (
	"net/netip"
	"testing"

	"github.com/skein-vpn/skein/tailnet"
)

// Which rules are about a user, and which open an address and port.
func TestPreviewRules(t *testing.T) {
	p, err := Parse([]byte(`{
		"groups": {"group:dev": ["ann@"]}, "tagOwners": {"tag:db": []}, "hosts": {"lan": "192.168.0.0/24"},
		"postures": {"posture:x": ["node:os == 'linux'"]},
		"acls": [
			{"action": "accept", "src": ["group:dev"], "dst": ["tag:db:5432"]},
			{"action": "accept", "src": ["*"], "dst": ["lan:80"]},
			{"action": "accept", "src": ["ben@"], "dst": ["tag:db:22"]},
			{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:*"]},
			{"action": "accept", "src": ["100.64.0.1"], "srcPosture": ["posture:x"], "dst": ["100.64.0.2:22"]}],
		"grants": [{"src": ["ann@"], "dst": ["tag:db"], "ip": ["udp:53", "tcp:5432"]}, {"src": ["ann@"], "dst": ["tag:db"], "app": {"x.example/y": []}}]}`))
	if err != nil {
		t.Fatal(err)
	}
	ann, ben := &tailnet.User{ID: 1, Name: "ann"}, &tailnet.User{ID: 2, Name: "ben"}
	node := func(id tailnet.NodeID, user tailnet.UserID, addr string, tags ...string) *tailnet.Node {
		return &tailnet.Node{ID: id, User: user, Tags: tags, IPv4: netip.MustParseAddr(addr)}
	}
	router := node(3, 2, "100.64.0.3")
	router.ApprovedRoutes = []netip.Prefix{netip.MustParsePrefix("192.168.0.0/24")}
	c, err := Compile(p, []*tailnet.User{ann, ben}, []*tailnet.Node{node(1, 2, "100.64.0.1"), node(2, 0, "100.64.0.2", "tag:db"), router}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	labels := func(rs []RuleRef) (out string) {
		for _, r := range rs {
			out += r.Label + " "
		}
		return out
	}
	to := func(s string) string {
		ap := netip.MustParseAddrPort(s)
		return labels(c.RulesTo(ap.Addr(), ap.Port()))
	}
	for _, x := range []struct{ what, got, want string }{
		{"ann", labels(c.RulesFrom(ann)), "acls[0] acls[1] acls[3] grants[0] grants[1] "},
		{"ben", labels(c.RulesFrom(ben)), "acls[1] acls[2] acls[3] "},
		{"nobody", labels(c.RulesFrom(&tailnet.User{ID: 9, Name: "eve"})), "acls[1] acls[3] "},
		{"the database", to("100.64.0.2:5432"), "acls[0] grants[0] "},
		{"its SSH", to("100.64.0.2:22"), "acls[2] acls[4] "},
		{"its DNS", to("100.64.0.2:53"), "grants[0] "},
		{"ben's node", to("100.64.0.1:80"), "acls[3] "},
		{"nowhere", to("192.168.0.7:80"), ""},
	} {
		if x.got != x.want {
			t.Errorf("%s: %s, want %s", x.what, x.got, x.want)
		}
	}
	if got := AllowAll().RulesFrom(ann); len(got) != 1 || got[0].Label != "" {
		t.Errorf("without a policy: %v", got)
	}
}
