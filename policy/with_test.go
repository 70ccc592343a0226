package policy

import (
	"fmt"
	"slices"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/skein-vpn/skein/tailnet"
)

// TestWith changes a tailnet step by step and compares with compiling what it has become. Values that were handed out must
// not change with it.
func TestWith(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		p, err := Parse([]byte(w.text()))
		if err != nil {
			t.Fatal(err)
		}
		users := slices.Clone(w.users[:2])
		c, err := Compile(p, users, nil, Options{})
		if err != nil {
			t.Fatal(err)
		}
		var nodes []*tailnet.Node
		type kept struct {
			c      *Compiled
			node   *tailnet.Node
			filter string
		}
		var before []kept
		for step := range rapid.IntRange(1, 12).Draw(t, "steps") {
			switch rapid.IntRange(0, 5).Draw(t, fmt.Sprint("what", step)) {
			case 0:
				if len(users) < len(w.users) {
					c, users = c.WithUser(nil, w.users[len(users)]), append(slices.Clone(users), w.users[len(users)])
				}
			case 1:
				i := rapid.IntRange(0, len(users)-1).Draw(t, "user")
				u := *users[i]
				u.Email = rapid.SampledFrom([]string{"u1@a.example", "u3@a.example", "other@b.example"}).Draw(t, "email")
				u.Role = rapid.SampledFrom([]tailnet.Role{tailnet.RoleMember, tailnet.RoleAdmin}).Draw(t, "role")
				c = c.WithUser(users[i], &u)
				users = slices.Clone(users)
				users[i] = &u
			case 2:
				if len(nodes) > 0 {
					i := rapid.IntRange(0, len(nodes)-1).Draw(t, "gone")
					c, nodes = c.With(nodes[i], nil), slices.Delete(slices.Clone(nodes), i, i+1)
				}
			default:
				n := drawNode(t, rapid.IntRange(0, 5).Draw(t, "id"))
				i, found := slices.BinarySearchFunc(nodes, n, func(a, b *tailnet.Node) int { return int(a.ID - b.ID) })
				var old *tailnet.Node
				nodes = slices.Clone(nodes)
				if found {
					old, nodes[i] = nodes[i], n
				} else {
					nodes = slices.Insert(nodes, i, n)
				}
				c = c.With(old, n)
			}
			if len(nodes) > 0 {
				n := nodes[len(nodes)-1]
				before = append(before, kept{c, n, jsonOf(c.FilterFor(n))})
			}
		}
		cold, err := Compile(p, users, nodes, Options{})
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range nodes {
			if diff := gocmp.Diff(canonical(cold.filter(n)), canonical(c.filter(n))); diff != "" {
				t.Fatalf("filter of %s: %s", n.Name, diff)
			}
			if has := c.HasSSH(n); has != (len(c.SSHFor(n).Rules) > 0) {
				t.Fatalf("HasSSH is %v for node %d, which has %d rules", has, n.ID, len(c.SSHFor(n).Rules))
			}
			if diff := gocmp.Diff(cold.SSHFor(n), c.SSHFor(n), cmpopts.EquateEmpty()); diff != "" {
				t.Fatalf("SSH of %s: %s", n.Name, diff)
			}
			for _, m := range nodes {
				if cold.SeesNode(n, m) != c.SeesNode(n, m) {
					t.Fatalf("%s sees %s: %v, compiled anew %v", n.Name, m.Name, c.SeesNode(n, m), cold.SeesNode(n, m))
				}
				a, b := c.Routes(c.ClassOf(n), m, firstCreated(nodes)), cold.Routes(cold.ClassOf(n), m, firstCreated(nodes))
				if !slices.Equal(a, b) {
					t.Fatalf("%s is shown of %s: %v, compiled anew %v", n.Name, m.Name, a, b)
				}
			}
		}
		for _, k := range before {
			if got := jsonOf(k.c.FilterFor(k.node)); got != k.filter {
				t.Fatalf("an older value changed: %s was %s", got, k.filter)
			}
		}
	})
}

// TestWithSame: what policies do not look at makes no new value, so that nobody is told anything.
func TestWithSame(t *testing.T) {
	p, err := Parse([]byte(`{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:22"]}]}`))
	if err != nil {
		t.Fatal(err)
	}
	n := &tailnet.Node{ID: 1, User: 1, IPv4: addr("100.64.0.1")}
	c, err := Compile(p, nil, []*tailnet.Node{n}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	m := n.Clone()
	m.HomeDERP, m.Hostname = 3, "other"
	if c.With(n, m) != c {
		t.Error("a new home relay made a new policy")
	}
	if c.With(nil, nil) != c || c.With(&tailnet.Node{ID: 99}, nil) != c {
		t.Error("nothing changed, but the policy did")
	}
	if got := c.ClassOf(m); got != c.ClassOf(n) {
		t.Errorf("class %d, want %d", got, c.ClassOf(n))
	}
	if c.ClassOf(&tailnet.Node{ID: 7, User: 2, IPv4: addr("192.0.2.1")}) == NoClass {
		t.Error("a node like the others has no class")
	}
}
