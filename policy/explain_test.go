package policy

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

const explainText = `{
	"tagOwners": {"tag:server": [], "tag:router": []},
	"acls": [
		{"action": "accept", "src": ["autogroup:member"], "dst": ["tag:server:22,80-443"]},
		{"action": "accept", "src": ["bob@example.com"], "dst": ["10.0.0.0/8:*"], "proto": "icmp"},
		{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:*"]},
	],
}`

func TestExplain(t *testing.T) {
	c, nodes := small(t, explainText, Options{})
	for _, x := range []struct {
		src, dst string
		proto    int
		port     uint16
		want     string
	}{
		{"bob-1", "100.64.0.4", 6, 22, "yes: acls[0] in line 4 opens port 22, 80-443"},
		{"bob-1", "100.64.0.4", 0, 81, "yes: acls[0] in line 4 opens port 22, 80-443"},
		{"bob-1", "100.64.0.4", 6, 23, "no: rules allow these two other ports or protocols only; near: acls[0] in line 4 opens port 22, 80-443"},
		{"bob-1", "10.1.2.3", 1, 0, "yes: acls[1] in line 5 opens icmp+icmpv6"},
		{"bob-1", "10.1.2.3", 6, 80, "no: rules allow these two other ports or protocols only; near: acls[1] in line 5 opens icmp+icmpv6"},
		{"ada-1", "10.1.2.3", 1, 0, "no: no rule has this source and this destination"},
		{"ada-1", "100.64.0.2", 6, 9, "yes: acls[2] in line 6 opens everything"},
		{"ada-1", "100.64.0.3", 6, 9, "no: no rule has this source and this destination"},
		{"ada-1", "192.0.2.1", 6, 9, "no: no node has the address 192.0.2.1 and no approved route leads there"},
	} {
		e := c.Explain(nodes[x.src], addr(x.dst), x.proto, x.port)
		got := "no: " + e.Why
		if e.Allowed {
			got = "yes: " + fmt.Sprint(e.By[0])
		} else if len(e.Near) > 0 {
			got += "; near: " + fmt.Sprint(e.Near[0])
		}
		if got != x.want {
			t.Errorf("%s → %s %d %d:\n got %s\nwant %s", x.src, x.dst, x.proto, x.port, got, x.want)
		}
	}
	if e := AllowAll().Explain(nodes["ada-1"], addr("100.64.0.3"), 6, 1); !e.Allowed || !strings.Contains(e.By[0].String(), "neither acls nor grants") {
		t.Errorf("%+v", e)
	}
}

func TestDiff(t *testing.T) {
	old, _ := small(t, explainText, Options{})
	next, _ := small(t, strings.NewReplacer("22,80-443", "22,80-100,8080", `"proto": "icmp"`, `"proto": "tcp"`).Replace(explainText), Options{})
	changes, more := Diff(old, next)
	var got []string
	for _, ch := range changes {
		got = append(got, ch.String())
	}
	slices.Sort(got)
	want := []string{
		"closes: ada@example.com, bob@example.com → tag:server: port 101-443",
		"closes: bob@example.com → route 10.0.0.0/8: icmp",
		"closes: bob@example.com → route 10.0.0.0/8: icmpv6",
		"opens: ada@example.com, bob@example.com → tag:server: port 8080",
		"opens: bob@example.com → route 10.0.0.0/8: tcp",
	}
	if !slices.Equal(got, want) || more != 0 {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if same, _ := Diff(old, old); len(same) != 0 {
		t.Errorf("a policy differs from itself: %v", same)
	}
	closed, _ := Diff(AllowAll(), old)
	if len(closed) == 0 || slices.ContainsFunc(closed, func(ch Change) bool { return ch.Opens }) {
		t.Errorf("against no policy: %v", closed)
	}
	ssh, _ := small(t, strings.Replace(explainText, `"acls"`, `"ssh": [{"action": "check", "src": ["autogroup:admin"], "dst": ["tag:server"], "users": ["root"]}], "acls"`, 1), Options{})
	changes, _ = Diff(old, ssh)
	if len(changes) != 1 || changes[0].String() != "opens: ada@example.com → tag:server: ssh as root, after a check" {
		t.Errorf("%v", changes)
	}
}
