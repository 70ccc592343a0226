package policy

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"tailscale.com/tailcfg"

	"github.com/skein-vpn/skein/tailnet"
)

// bigTailnet has 1,000 rules over nodes of 500 users and 200 tags.
func bigTailnet(rules, nodes int) (string, []*tailnet.User, []*tailnet.Node) {
	var b strings.Builder
	b.WriteString(`{"tagOwners": {`)
	for i := range 200 {
		fmt.Fprintf(&b, "\"tag:t%d\": [],", i)
	}
	b.WriteString(`}, "groups": {`)
	for i := range 100 {
		fmt.Fprintf(&b, "\"group:g%d\": [", i)
		for j := range 10 {
			fmt.Fprintf(&b, "\"u%d@example.com\",", (i*7+j*31)%500)
		}
		b.WriteString("],")
	}
	b.WriteString(`}, "acls": [`)
	for i := range rules {
		src := []string{fmt.Sprintf("group:g%d", i%100), fmt.Sprintf("u%d@example.com", i%500), "autogroup:member", fmt.Sprintf("tag:t%d", i%200), fmt.Sprintf("10.%d.%d.0/24", i/250, i%250)}[i%5]
		fmt.Fprintf(&b, `{"action": "accept", "src": [%q, "tag:t%d"], "dst": ["tag:t%d:%d", "10.%d.0.0/16:443"]},`, src, (i*3)%200, (i*13)%200, 1+i%1000, i%200)
	}
	b.WriteString(`]}`)
	var users []*tailnet.User
	for i := range 500 {
		users = append(users, &tailnet.User{ID: tailnet.UserID(i + 1), Name: fmt.Sprintf("u%d", i), Email: fmt.Sprintf("u%d@example.com", i)})
	}
	var list []*tailnet.Node
	for i := range nodes {
		list = append(list, bigNode(i))
	}
	return b.String(), users, list
}

func bigNode(i int) *tailnet.Node {
	n := &tailnet.Node{
		ID: tailnet.NodeID(i + 1), Name: fmt.Sprintf("n%d", i), IPv4: netip.AddrFrom4([4]byte{100, 64 + byte(i>>16), byte(i >> 8), byte(i)}),
		IPv6: netip.MustParseAddr(fmt.Sprintf("fd7a:115c:a1e0::%x:%x", i>>16, i&0xffff)), Created: time.Unix(int64(i), 0), Hostinfo: &tailcfg.Hostinfo{OS: "linux"},
	}
	if i%3 == 0 {
		n.Tags = []string{fmt.Sprintf("tag:t%d", i%200)}
	} else {
		n.User = tailnet.UserID(1 + i%500)
	}
	if i%100 == 0 {
		n.ApprovedRoutes = []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.%d.0.0/16", i/100%200))}
		n.Hostinfo.RoutableIPs = n.ApprovedRoutes
	}
	return n
}

func mustCompile(tb testing.TB, text string, users []*tailnet.User, nodes []*tailnet.Node) *Compiled {
	tb.Helper()
	p, err := Parse([]byte(text))
	if err != nil {
		tb.Fatal(err)
	}
	c, err := Compile(p, users, nodes, Options{})
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

// BenchmarkCompile: 1,000 rules over 10,000 nodes, from the text.
func BenchmarkCompile(b *testing.B) {
	text, users, nodes := bigTailnet(1000, 10_000)
	b.ReportAllocs()
	for b.Loop() {
		mustCompile(b, text, users, nodes)
	}
}

// BenchmarkJoin: one node joins 10,000 with 1,000 rules loaded, and goes again.
func BenchmarkJoin(b *testing.B) {
	text, users, nodes := bigTailnet(1000, 10_000)
	c := mustCompile(b, text, users, nodes)
	n := bigNode(10_001)
	b.ReportAllocs()
	for b.Loop() {
		d := c.With(nil, n)
		if d == c {
			b.Fatal("nothing changed")
		}
	}
}

// BenchmarkRetag: one of 10,000 nodes changes its tags.
func BenchmarkRetag(b *testing.B) {
	text, users, nodes := bigTailnet(1000, 10_000)
	c := mustCompile(b, text, users, nodes)
	old := nodes[300]
	n := old.Clone()
	n.Tags = []string{"tag:t7", "tag:t8"}
	b.ReportAllocs()
	for b.Loop() {
		c = c.With(old, n)
		old, n = n, old
	}
}

// BenchmarkFilter: the filter of one node after a change elsewhere.
func BenchmarkFilter(b *testing.B) {
	text, users, nodes := bigTailnet(1000, 10_000)
	c := mustCompile(b, text, users, nodes)
	n := bigNode(10_001)
	for name, f := range map[string]func(*Compiled){
		"addresses":    func(c *Compiled) { c.FilterFor(nodes[300]) },
		"capabilities": func(c *Compiled) { c.Filters(nodes[3], 142) },
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			old := (*tailnet.Node)(nil)
			is := n
			d := c
			for b.Loop() {
				d = d.With(old, is)
				old, is = is, old
				f(d)
			}
		})
	}
}

// BenchmarkSees: one viewer looks at all nodes.
func BenchmarkSees(b *testing.B) {
	text, users, nodes := bigTailnet(1000, 10_000)
	c := mustCompile(b, text, users, nodes)
	classes := make([]Class, len(nodes))
	for i, n := range nodes {
		classes[i] = c.ClassOf(n)
	}
	for b.Loop() {
		for _, k := range classes {
			c.Sees(classes[5], k)
		}
	}
}

// BenchmarkSelf: autogroup:self, with all filters made; it should grow as the number of users does.
func BenchmarkSelf(b *testing.B) {
	for _, n := range []int{250, 1000, 4000} {
		b.Run(fmt.Sprint(n, " users"), func(b *testing.B) {
			var users []*tailnet.User
			var nodes []*tailnet.Node
			for i := range n {
				users = append(users, &tailnet.User{ID: tailnet.UserID(i + 1), Name: fmt.Sprintf("u%d", i), Email: fmt.Sprintf("u%d@example.com", i)})
				for j := range 3 {
					m := bigNode(3*i + j)
					m.Tags, m.User, m.ApprovedRoutes, m.Hostinfo = nil, tailnet.UserID(i+1), nil, &tailcfg.Hostinfo{}
					nodes = append(nodes, m)
				}
			}
			b.ReportAllocs()
			for b.Loop() {
				c := mustCompile(b, `{"acls": [{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:*"]}]}`, users, nodes)
				for _, m := range nodes {
					c.FilterFor(m)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/user")
		})
	}
}

// TestSelfMakesNoClasses: with autogroup:self alone all devices of users are one class.
func TestSelfMakesNoClasses(t *testing.T) {
	_, users, nodes := bigTailnet(0, 600)
	c := mustCompile(t, `{"acls": [{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:*"]}]}`, users, nodes)
	classes := map[Class]bool{}
	for _, n := range nodes {
		if !n.Tagged() && len(n.ApprovedRoutes) == 0 {
			classes[c.ClassOf(n)] = true
		}
	}
	if len(classes) != 1 {
		t.Errorf("%d classes, want 1", len(classes))
	}
}
