package policy

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/skein-vpn/skein/tailnet"
)

// covers reports whether what a change is about holds TCP to the port.
func (ch Change) coversTCP(t *testing.T, port int) bool {
	list := ch.What
	switch {
	case list == "everything" || list == "tcp":
		return true
	case strings.HasPrefix(list, "port "):
		list = strings.TrimPrefix(list, "port ")
	case strings.HasPrefix(list, "tcp "):
		list = strings.TrimPrefix(list, "tcp ")
	default:
		return false
	}
	for _, part := range strings.Split(list, ", ") {
		lo, hi, isRange := strings.Cut(part, "-")
		if !isRange {
			hi = lo
		}
		first, err := strconv.Atoi(lo)
		last, err2 := strconv.Atoi(hi)
		if err != nil || err2 != nil {
			t.Fatalf("ports %q of %s", part, ch)
		}
		if port >= first && port <= last {
			return true
		}
	}
	return false
}

// TestDiffAgainstPairs: what Diff says of kinds of nodes is what Explain says of each pair of nodes, for pairs of recorded
// policies over the nodes of the first.
func TestDiffAgainstPairs(t *testing.T) {
	var cases []recordedCase
	for _, c := range loadCases(t) {
		if got := runCase(&c); got.err == nil && c.SkipReason == "" && strings.Contains(c.Policy, `"src"`) {
			cases = append(cases, c)
		}
	}
	pairs, changed := 0, 0
	for i := range cases {
		a, b := cases[i], cases[(i*37+11)%len(cases)]
		was := runCase(&a)
		p, err := Parse([]byte(b.Policy))
		if err != nil {
			t.Fatal(err)
		}
		users, _ := caseTailnet(&a)
		is, err := Compile(p, users, was.nodes, Options{})
		if err != nil {
			continue // a domain of another tailnet
		}
		changes, more := Diff(was.c, is)
		if more != 0 {
			t.Fatalf("%s to %s: %d more changes", a.ID, b.ID, more)
		}
		login := map[tailnet.UserID]string{}
		for _, u := range users {
			login[u.ID] = u.LoginName()
		}
		names := func(list []string, n *tailnet.Node) bool {
			who := strings.Join(n.Tags, "+")
			if !n.Tagged() {
				who = login[n.User]
			}
			return slices.ContainsFunc(list, func(s string) bool {
				return s == who || strings.HasPrefix(s, who+" (") && (strings.Contains(s, n.Name) || strings.Contains(s, " more)"))
			})
		}
		for _, src := range was.nodes {
			for _, dst := range was.nodes {
				if src == dst {
					continue
				}
				for _, port := range []int{22, 80, 443, 9999} {
					pairs++
					allowed := func(c *Compiled) bool {
						return c.Explain(src, dst.IPv4, 6, uint16(port)).Allowed || c.Explain(src, dst.IPv6, 6, uint16(port)).Allowed
					}
					before, after := allowed(was.c), allowed(is)
					told := map[bool]bool{}
					for _, ch := range changes {
						own := slices.Contains(ch.Dst, ownDevices) && !src.Tagged() && !dst.Tagged() && src.User == dst.User
						if ch.coversTCP(t, port) && names(ch.Src, src) && (own || names(ch.Dst, dst)) {
							told[ch.Opens] = true
						}
					}
					if before != after {
						changed++
					}
					if told[true] != (after && !before) || told[false] != (before && !after) {
						t.Fatalf("%s to %s: %s to %s:%d was %v and is %v; told: %v\n%v\n%s\n%s", a.ID, b.ID, src.Name, dst.Name, port, before, after, told, changes, a.Policy, b.Policy)
					}
				}
			}
		}
	}
	if changed < 1000 {
		t.Errorf("only %d of %d connections changed: the test says little", changed, pairs)
	}
}

// TestDiffOwnDevices: what opens between the devices of each of many users is one change.
func TestDiffOwnDevices(t *testing.T) {
	_, users, nodes := bigTailnet(0, 600)
	for _, n := range nodes {
		n.ApprovedRoutes = nil
	}
	old := mustCompile(t, `{"acls": []}`, users, nodes)
	changes, more := Diff(old, mustCompile(t, `{"acls": [{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:22"]}]}`, users, nodes))
	if more != 0 || len(changes) != 1 || !changes[0].Opens || changes[0].What != "port 22" || !slices.Equal(changes[0].Dst, []string{ownDevices}) {
		t.Fatalf("got %v, %d more", changes, more)
	}
	if n := len(changes[0].Src); n != maxNames+1 || !strings.HasSuffix(changes[0].Src[n-1], " more") {
		t.Errorf("%d sources, the last one %s", n, changes[0].Src[n-1])
	}
}

// TestDiffBound: more changes than anybody reads are counted.
func TestDiffBound(t *testing.T) {
	var users []*tailnet.User
	var nodes []*tailnet.Node
	rules := ""
	for i := range maxChanges + 50 {
		users = append(users, &tailnet.User{ID: tailnet.UserID(i + 1), Name: fmt.Sprint("u", i), Email: fmt.Sprintf("u%d@example.com", i)})
		n := bigNode(i)
		n.Tags, n.User, n.ApprovedRoutes = nil, tailnet.UserID(i+1), nil
		nodes = append(nodes, n)
		rules += fmt.Sprintf(`{"action": "accept", "src": ["u%d@example.com"], "dst": ["u%d@example.com:%d"]},`, i, (i+1)%(maxChanges+50), i+1)
	}
	changes, more := Diff(mustCompile(t, `{"acls": []}`, users, nodes), mustCompile(t, `{"acls": [`+rules+`]}`, users, nodes))
	if len(changes) != maxChanges || more != 50 {
		t.Errorf("%d changes and %d more", len(changes), more)
	}
}

// BenchmarkDiff: one line of 100 rules changes in a tailnet of 1,000 users, who are of as many kinds as groups make them.
func BenchmarkDiff(b *testing.B) {
	var users []*tailnet.User
	var nodes []*tailnet.Node
	groups := ""
	for i := range 1000 {
		users = append(users, &tailnet.User{ID: tailnet.UserID(i + 1), Name: fmt.Sprint("u", i), Email: fmt.Sprintf("u%d@example.com", i)})
		for j := range 3 {
			n := bigNode(3*i + j)
			n.Tags, n.User, n.ApprovedRoutes = nil, tailnet.UserID(i+1), nil
			nodes = append(nodes, n)
		}
	}
	for g := range 50 {
		groups += fmt.Sprintf(`"group:g%d": [`, g)
		for i := range 1000 {
			if mix(uint64(i*50+g+1))%8 == 0 {
				groups += fmt.Sprintf(`"u%d@example.com",`, i)
			}
		}
		groups += "],"
	}
	text := func(port int) string {
		rules := ""
		for i := range 100 {
			rules += fmt.Sprintf(`{"action": "accept", "src": ["group:g%d"], "dst": ["group:g%d:%d"]},`, i%50, (i*7+3)%50, port+i)
			port = 1000
		}
		return `{"groups": {` + groups + `}, "acls": [` + rules + `]}`
	}
	old, next := mustCompile(b, text(1000), users, nodes), mustCompile(b, text(2000), users, nodes)
	b.ReportAllocs()
	for b.Loop() {
		if changes, more := Diff(old, next); len(changes) == 0 || more != 0 {
			b.Fatal(len(changes), more)
		}
	}
	b.ReportMetric(float64(len(kindsOf(old, next))), "kinds")
}
