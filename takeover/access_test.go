package takeover

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/skein-vpn/skein/policy"
	"github.com/skein-vpn/skein/tailnet"
)

// What headscale made of a policy is compared with what Skein makes of it, and the difference told with nodes and ports.
func TestCompareAccess(t *testing.T) {
	for _, c := range []struct {
		generation, policy string
		want               []string
	}{
		{"0.28 or 0.29", `{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:22"]}]}`, nil},
		{"0.30", `{"groups": {}}`, nil},
		{"0.23 to 0.25", `{"groups": {"group:a": ["anna@"]}}`, []string{"opens: anna, bob → anna, bob: everything"}},
		{"0.26 or 0.27", `{"acls": [], /* nobody */}`, nil},
		{"0.26 or 0.27", `{"acls": [{"action": "accept", "src": ["anna@"], "dst": ["*:*"]}], "ssh": [{"action": "check", "checkPeriod": "1h", "src": ["anna@"], "dst": ["anna@"], "users": ["root"]}]}`,
			[]string{"closes: anna → anna: ssh as root", "opens: anna → anna: ssh as root, after a check"}},
		{"0.29", `{"acls": [{"action": "accept", "src": ["anna@"], "dst": ["*:*"]}], "ssh": [{"action": "check", "src": ["anna@"], "dst": ["anna@"], "users": ["root"]}]}`, nil},
		{"0.28 or 0.29", `{"acls": [], "grants": [{"src": ["*"], "dst": ["bob@"], "ip": ["53"]}]}`, []string{"opens: anna, bob → bob: port 53"}},
	} {
		tr := &translation{plan: &Plan{Policy: []byte(c.policy)}}
		for i, name := range []string{"anna", "bob"} {
			id := tailnet.NodeID(i + 1)
			tr.plan.Users = append(tr.plan.Users, &tailnet.User{ID: tailnet.UserID(id), Name: name})
			tr.plan.Nodes = append(tr.plan.Nodes, &tailnet.Node{
				ID: id, User: tailnet.UserID(id), Name: name + "s", Authorized: true,
				IPv4: netip.MustParseAddr(fmt.Sprintf("100.64.0.%d", id)), IPv6: netip.MustParseAddr(fmt.Sprintf("fd7a:115c:a1e0::%x", int(id))),
			})
		}
		tr.report = &tr.plan.Report
		tr.report.Headscale = c.generation
		parsed, err := policy.Parse(tr.plan.Policy)
		if err != nil {
			t.Fatal(err)
		}
		if tr.rules, err = policy.Compile(parsed, tr.plan.Users, nil, policy.Options{}); err != nil {
			t.Fatal(err)
		}
		tr.compareAccess()
		got := tr.report.Policy.Access
		for _, w := range c.want {
			if !slices.ContainsFunc(got, func(g string) bool { return strings.HasPrefix(g, w) }) {
				t.Errorf("%s %s: no %q in %q", c.generation, c.policy, w, got)
			}
		}
		if len(got) > 0 != (len(c.want) > 0) || len(tr.report.Notes) > 0 {
			t.Errorf("%s %s: %q, notes %q", c.generation, c.policy, got, tr.report.Notes)
		}
	}
}

// A report stays readable whatever is in it, and no text of a policy does more than fail.
func FuzzRewrite(f *testing.F) {
	f.Add([]byte(`{"acls": [{"action": "accept", "src": ["100.64.0.1"], "dst": ["nas:22", "[fd7a:115c:a1e0::1]:*"]}], "hosts": {"nas": "100.64.0.0/24"}, "ssh": [{"action": "check"}]}`), "0.28 or 0.29")
	f.Add([]byte(`{"acls": [{"src": [1, null], "dst": {}}], "ssh": {}, "hosts": []}`), "0.23 to 0.25")
	f.Fuzz(func(t *testing.T, text []byte, generation string) {
		before := string(text)
		out, differs := readingsOf(generation).rewrite(text)
		if string(text) != before {
			t.Error("the policy itself was changed")
		}
		if differs && len(out) == 0 {
			t.Error("nothing differs from something")
		}
	})
}
