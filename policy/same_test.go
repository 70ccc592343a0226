package policy

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
	"tailscale.com/tailcfg"

	"github.com/skein-vpn/skein/tailnet"
)

// told is what a client of version v on n is told by c beside its peers. The order of filter rules says nothing, that of
// SSH rules much.
func told(c *Compiled, n *tailnet.Node, v tailcfg.CapabilityVersion) string {
	named := c.Filters(n, v)
	if named == nil {
		named = map[string][]tailcfg.FilterRule{"": c.FilterFor(n)}
	}
	for _, rules := range named {
		slices.SortFunc(rules, func(a, b tailcfg.FilterRule) int { return strings.Compare(jsonOf(a), jsonOf(b)) })
	}
	return jsonOf(named) + jsonOf(c.SSHFor(n))
}

// TestSame: where Same says that a node is told the same, it is, whatever users and other nodes have become.
func TestSame(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		p, err := Parse([]byte(w.text()))
		if err != nil {
			t.Fatal(err)
		}
		users := slices.Clone(w.users)
		var nodes []*tailnet.Node
		for id := range 4 {
			nodes = append(nodes, drawNode(t, id))
		}
		c, err := Compile(p, users, nodes, Options{})
		if err != nil {
			t.Fatal(err)
		}
		for step := range rapid.IntRange(1, 8).Draw(t, "steps") {
			o := c
			before := slices.Clone(nodes)
			if rapid.IntRange(0, 3).Draw(t, fmt.Sprint("what", step)) == 0 {
				i := rapid.IntRange(0, len(users)-1).Draw(t, "user")
				u := *users[i]
				u.Email = rapid.SampledFrom([]string{"u1@a.example", "u3@a.example", "other@a.example", "other@b.example"}).Draw(t, "email")
				c = c.WithUser(users[i], &u)
				users[i] = &u
			} else {
				i := rapid.IntRange(0, len(nodes)-1).Draw(t, "node")
				n := drawNode(t, i)
				if rapid.Bool().Draw(t, "owner only") { // the same device, moved to somebody else
					m := nodes[i].Clone()
					m.User, m.Tags, n = n.User, n.Tags, m
				}
				c = c.With(nodes[i], n)
				nodes[i] = n
			}
			for i, n := range nodes {
				if before[i] != n {
					continue
				}
				for _, v := range []tailcfg.CapabilityVersion{capverNamedFilters - 1, capverNamedFilters, capverSourceCaps, tailcfg.CurrentCapabilityVersion} {
					if was, is := told(o, n, v), told(c, n, v); c.Same(o, n, v) && was != is {
						t.Fatalf("node %d, version %d is told\n  %s and then\n  %s", n.ID, v, was, is)
					}
				}
			}
		}
	})
}

// TestSameSSH: a device that goes over to another user is out of the SSH rules for the first one's own devices, and a user
// who gets another login out of those that name local users by it.
func TestSameSSH(t *testing.T) {
	c, nodes := small(t, `{"acls": [], "ssh": [
		{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self"], "users": ["autogroup:nonroot"]}]}`, Options{})
	moved := nodes["ada-2"].Clone()
	moved.User = 2
	d := c.With(nodes["ada-2"], moved)
	for _, name := range []string{"ada-1", "bob-1"} {
		if d.Same(c, nodes[name], 142) {
			t.Errorf("%s is told the same after a device has moved to another user", name)
		}
	}
	c, nodes = small(t, `{"tagOwners": {"tag:server": []}, "acls": [], "ssh": [
		{"action": "accept", "src": ["autogroup:member"], "dst": ["tag:server"], "users": ["localpart:*@example.com"]}]}`, Options{})
	ada := *c.users[0].user
	ada.Email = "countess@example.com"
	d = c.WithUser(c.users[0].user, &ada)
	if d.Same(c, nodes["server"], 142) {
		t.Error("the server is told the same after a user has got another login")
	}
	if !c.Same(c, nodes["server"], 142) {
		t.Error("a policy is not the same as itself")
	}
}
