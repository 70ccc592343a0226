package policy

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"go4.org/netipx"
	"pgregory.net/rapid"
	"tailscale.com/tailcfg"
	"tailscale.com/types/ipproto"
	"tailscale.com/wgengine/filter"

	"github.com/skein-vpn/skein/tailnet"
)

// The oracle reads the rules as the documentation of the language words them: pair by pair, address by address. It shares
// nothing with the compiler, neither sets nor classes nor the parser.

type oracleRule struct {
	Src, Dst, Via []string
	Ports         []string // of all destinations: "*", "22", "80-443"
	Proto         string
	Posture       string
	App           bool
	acl           bool
}

type world struct {
	groups map[string][]string
	hosts  map[string]string
	rules  []oracleRule
	users  []*tailnet.User
	nodes  []*tailnet.Node
}

func (w *world) text() string {
	p := map[string]any{
		"groups": w.groups, "hosts": w.hosts, "postures": map[string][]string{"posture:linux": {"node:os == 'linux'"}},
		"tagOwners": map[string][]string{"tag:a": {}, "tag:b": {}, "tag:c": {}},
	}
	acls, grants := []any{}, []any{}
	for _, r := range w.rules {
		m := map[string]any{"src": r.Src}
		if r.Posture != "" {
			m["srcPosture"] = []string{r.Posture}
		}
		if r.acl {
			m["action"] = "accept"
			var dst []string
			for _, d := range r.Dst {
				dst = append(dst, d+":"+strings.Join(r.Ports, ","))
			}
			m["dst"] = dst
			if r.Proto != "" {
				m["proto"] = r.Proto
			}
			acls = append(acls, m)
			continue
		}
		m["dst"] = r.Dst
		if r.App {
			m["app"] = map[string]any{"example.com/cap/x": []any{map[string]any{"n": 1}}}
		} else {
			var ip []string
			for _, port := range r.Ports {
				if r.Proto != "" {
					port = r.Proto + ":" + port
				}
				ip = append(ip, port)
			}
			m["ip"] = ip
		}
		if len(r.Via) > 0 {
			m["via"] = r.Via
		}
		grants = append(grants, m)
	}
	p["acls"], p["grants"] = acls, grants
	b, _ := json.Marshal(p)
	return string(b)
}

func (w *world) user(n *tailnet.Node) *tailnet.User {
	for _, u := range w.users {
		if u.ID == n.User && !n.Tagged() {
			return u
		}
	}
	return nil
}

func (w *world) inGroup(login, group string) bool {
	for _, m := range w.groups[group] {
		if m == login || strings.HasPrefix(m, "group:") && w.inGroup(login, m) {
			return true
		}
	}
	return false
}

// named reports whether the word means the node by what it is.
func (w *world) named(word string, n *tailnet.Node) bool {
	u := w.user(n)
	switch {
	case word == "*":
		return true
	case word == "autogroup:member":
		return !n.Tagged()
	case word == "autogroup:tagged":
		return n.Tagged()
	case word == "autogroup:admin":
		return u != nil && u.Role == tailnet.RoleAdmin
	case strings.HasPrefix(word, "tag:"):
		return slices.Contains(n.Tags, word)
	case strings.HasPrefix(word, "group:"):
		return u != nil && w.inGroup(u.Email, word)
	case strings.HasPrefix(word, "user:*@"):
		return u != nil && strings.HasSuffix(u.Email, strings.TrimPrefix(word, "user:*"))
	}
	return u != nil && u.Email == word
}

// literal is the prefix that the word stands for.
func (w *world) literal(word string) (netip.Prefix, bool) {
	if h, ok := w.hosts[word]; ok {
		word = h
	}
	if p, err := netip.ParsePrefix(word); err == nil {
		return p, true
	}
	a, err := netip.ParseAddr(word)
	if err != nil {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(a, a.BitLen()), true
}

// from reports whether packets of n with the address a are from the rule's sources.
func (w *world) from(r oracleRule, n *tailnet.Node, a netip.Addr) bool {
	if r.Posture != "" && n.Hostinfo.OS != "linux" {
		return false
	}
	for _, s := range r.Src {
		if p, ok := w.literal(s); ok {
			if p.Contains(a) {
				return true
			}
		} else if w.named(s, n) {
			return true
		}
	}
	return false
}

func isInternet(a netip.Addr) bool {
	if a.Is6() {
		return netip.MustParsePrefix("2000::/3").Contains(a)
	}
	return !a.IsPrivate() && !a.IsLinkLocalUnicast() && !netip.MustParsePrefix("100.64.0.0/10").Contains(a)
}

// to reports whether the address b at n (its own, or behind it) is one of the rule's destinations for a source src.
func (w *world) to(r oracleRule, src, n *tailnet.Node, b netip.Addr) bool {
	own := slices.Contains(n.Addrs(), b)
	if len(r.Via) > 0 && (own || !slices.ContainsFunc(r.Via, func(t string) bool { return slices.Contains(n.Tags, t) })) {
		return false
	}
	for _, d := range r.Dst {
		switch p, isLiteral := w.literal(d); {
		case d == "*":
			return true
		case d == "autogroup:self":
			if own && src != nil && !src.Tagged() && !n.Tagged() && src.User == n.User {
				return true
			}
		case d == "autogroup:internet":
			if slices.ContainsFunc(n.ActiveRoutes(), tailnet.IsExitRoute) && isInternet(b) {
				return true
			}
		case isLiteral:
			behind := slices.ContainsFunc(n.ActiveRoutes(), func(x netip.Prefix) bool { return !tailnet.IsExitRoute(x) && x.Contains(b) })
			if p.Contains(b) && (own || behind) {
				return true
			}
		case own && w.named(d, n):
			return true
		}
	}
	return false
}

func (r oracleRule) opens(proto ipproto.Proto, port uint16) bool {
	if r.App {
		return false
	}
	protos := map[string][]ipproto.Proto{"": {6, 17, 1, 58}, "tcp": {6}, "udp": {17}, "icmp": {1, 58}, "gre": {47}}[r.Proto]
	if !slices.Contains(protos, proto) {
		return false
	}
	for _, p := range r.Ports {
		lo, hi := 0, 65535
		if p != "*" {
			if n, _ := fmt.Sscanf(p, "%d-%d", &lo, &hi); n < 2 {
				hi = lo
			}
		}
		if int(port) >= lo && int(port) <= hi {
			return true
		}
	}
	return false
}

// allows is the oracle's answer. As the client's filter does, ICMP is let through between addresses for which there is any
// rule about traffic.
func (w *world) allows(src *tailnet.Node, a netip.Addr, dst *tailnet.Node, b netip.Addr, proto ipproto.Proto, port uint16) bool {
	for _, r := range w.rules {
		if r.App || !w.from(r, src, a) || !w.to(r, src, dst, b) {
			continue
		}
		if proto == ipproto.ICMPv4 || proto == ipproto.ICMPv6 || r.opens(proto, port) {
			return true
		}
	}
	return false
}

// sees reports whether there is any rule from one to the other, their subnet routes included.
func (w *world) sees(a, b *tailnet.Node) bool {
	return slices.ContainsFunc(w.rules, func(r oracleRule) bool { return w.links(r, a, b) || w.links(r, b, a) })
}

func (w *world) links(r oracleRule, src, dst *tailnet.Node) bool {
	var subnets []netip.Prefix
	for _, p := range dst.ActiveRoutes() {
		if !tailnet.IsExitRoute(p) {
			subnets = append(subnets, p)
		}
	}
	source := func() bool {
		for _, a := range src.Addrs() {
			if w.from(r, src, a) {
				return true
			}
		}
		if r.Posture != "" {
			return false
		}
		for _, s := range r.Src {
			if p, ok := w.literal(s); ok && slices.ContainsFunc(src.ActiveRoutes(), func(x netip.Prefix) bool { return !tailnet.IsExitRoute(x) && x.Overlaps(p) }) {
				return true
			}
		}
		return false
	}
	if !source() {
		return false
	}
	if !slices.Contains(r.Dst, "autogroup:self") || len(r.Dst) > 1 {
		for _, d := range r.Dst {
			p, isLiteral := w.literal(d)
			via := len(r.Via) > 0
			if via && !slices.ContainsFunc(r.Via, func(t string) bool { return slices.Contains(dst.Tags, t) }) {
				break
			}
			exit := slices.ContainsFunc(dst.ActiveRoutes(), tailnet.IsExitRoute)
			switch {
			case d == "*":
				if !via || len(dst.ActiveRoutes()) > 0 {
					return true
				}
			case d == "autogroup:internet":
				if exit && !r.App {
					return true
				}
			case isLiteral:
				if slices.ContainsFunc(subnets, p.Overlaps) || !via && slices.ContainsFunc(dst.Addrs(), p.Contains) {
					return true
				}
			case !via && d != "autogroup:self" && w.named(d, dst):
				return true
			}
		}
	}
	return slices.Contains(r.Dst, "autogroup:self") && !src.Tagged() && !dst.Tagged() && src.User == dst.User &&
		slices.ContainsFunc(src.Addrs(), func(a netip.Addr) bool { return w.from(r, src, a) })
}

// drawWorld makes a random tailnet and a random policy that names what is in it, and some things that are not.
func drawWorld(t *rapid.T) *world {
	w := &world{
		groups: map[string][]string{"group:x": {"u1@a.example", "u2@b.example"}, "group:y": {"u3@a.example", "group:x"}, "group:none": {}},
		hosts:  map[string]string{"host-one": "100.64.0.2", "lan": "10.1.0.0/16"},
	}
	for i := range 4 {
		u := &tailnet.User{ID: tailnet.UserID(i + 1), Name: fmt.Sprintf("u%d", i+1)}
		u.Email = u.Name + "@" + []string{"a.example", "b.example"}[(i+1)%2]
		if i == 0 {
			u.Role = tailnet.RoleAdmin
		}
		w.users = append(w.users, u)
	}
	w.users[0].Email, w.users[1].Email, w.users[2].Email = "u1@a.example", "u2@b.example", "u3@a.example"
	for i := range rapid.IntRange(2, 7).Draw(t, "nodes") {
		w.nodes = append(w.nodes, drawNode(t, i))
	}
	src := []string{
		"*", "autogroup:member", "autogroup:tagged", "autogroup:admin", "tag:a", "tag:b", "tag:c", "u1@a.example", "u2@b.example", "u3@a.example",
		"group:x", "group:y", "group:none", "user:*@a.example", "host-one", "lan", "100.64.0.1", "100.64.0.0/30", "10.0.0.0/8", "fd7a:115c:a1e0::3", "10.2.0.0/24",
	}
	owners := []string{"autogroup:member", "u1@a.example", "group:x", "group:y", "user:*@a.example", "autogroup:admin"}
	dst := append(slices.Clone(src), "autogroup:internet")
	for i := range rapid.IntRange(0, 6).Draw(t, "rules") {
		r := oracleRule{
			Src:   rapid.SliceOfN(rapid.SampledFrom(src), 1, 3).Draw(t, fmt.Sprint("src", i)),
			Dst:   rapid.SliceOfN(rapid.SampledFrom(dst), 1, 3).Draw(t, fmt.Sprint("dst", i)),
			Ports: rapid.SliceOfN(rapid.SampledFrom([]string{"*", "22", "80-443", "8080"}), 1, 2).Draw(t, fmt.Sprint("ports", i)),
			Proto: rapid.SampledFrom([]string{"", "", "tcp", "udp"}).Draw(t, fmt.Sprint("proto", i)),
			acl:   rapid.Bool().Draw(t, fmt.Sprint("acl", i)),
		}
		if rapid.IntRange(0, 5).Draw(t, "portless") == 0 {
			r.Proto, r.Ports = rapid.SampledFrom([]string{"icmp", "gre"}).Draw(t, "proto"), []string{"*"}
		}
		if rapid.IntRange(0, 3).Draw(t, "posture") == 0 {
			r.Posture = "posture:linux"
		}
		if rapid.IntRange(0, 3).Draw(t, "self") == 0 {
			r.Src = rapid.SliceOfN(rapid.SampledFrom(owners), 1, 2).Draw(t, "owners")
			r.Dst = append(r.Dst[:1:1], "autogroup:self")
		}
		if !r.acl {
			switch rapid.IntRange(0, 4).Draw(t, "grant") {
			case 0:
				r.Via = rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"tag:a", "tag:b"}), 1, 2, rapid.ID[string]).Draw(t, "via")
			case 1:
				r.App = true
				r.Dst = slices.DeleteFunc(r.Dst, func(d string) bool { return d == "autogroup:internet" })
			}
			if len(r.Via) > 0 {
				r.Dst = slices.DeleteFunc(r.Dst, func(d string) bool { return d == "autogroup:self" })
			}
		}
		if len(r.Dst) == 0 {
			r.Dst = []string{"tag:a"}
		}
		w.rules = append(w.rules, r)
	}
	return w
}

func drawNode(t *rapid.T, i int) *tailnet.Node {
	n := &tailnet.Node{
		ID: tailnet.NodeID(i + 1), Name: fmt.Sprintf("n%d", i+1), IPv4: netip.AddrFrom4([4]byte{100, 64, 0, byte(i + 1)}),
		IPv6:    netip.MustParseAddr(fmt.Sprintf("fd7a:115c:a1e0::%d", i+1)),
		Created: time.Unix(int64(i), 0), Hostinfo: &tailcfg.Hostinfo{OS: rapid.SampledFrom([]string{"linux", "macOS"}).Draw(t, "os")},
	}
	if rapid.Bool().Draw(t, "tagged") {
		n.Tags = rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"tag:a", "tag:b", "tag:c"}), 1, 2, rapid.ID[string]).Draw(t, "tags")
		slices.Sort(n.Tags)
	} else {
		n.User = tailnet.UserID(rapid.IntRange(1, 4).Draw(t, "user"))
	}
	for _, s := range rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"10.1.0.0/16", "10.2.0.0/24", "10.0.0.0/8", "192.0.2.0/24", "fd00:1::/64", "exit"}), 0, 2, rapid.ID[string]).Draw(t, "routes") {
		if s == "exit" {
			n.ApprovedRoutes = append(n.ApprovedRoutes, netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0"))
			continue
		}
		n.ApprovedRoutes = append(n.ApprovedRoutes, netip.MustParsePrefix(s))
	}
	n.ApprovedRoutes = tailnet.SortPrefixes(n.ApprovedRoutes)
	n.Hostinfo.RoutableIPs = slices.Clone(n.ApprovedRoutes)
	if rapid.IntRange(0, 3).Draw(t, "unapproved") == 0 {
		n.Hostinfo.RoutableIPs = append(n.Hostinfo.RoutableIPs, netip.MustParsePrefix("172.16.0.0/12"))
	}
	return n
}

// destinationsAt are addresses worth asking about at n.
func destinationsAt(n *tailnet.Node) []netip.Addr {
	out := n.Addrs()
	for _, r := range n.AdvertisedRoutes() {
		if tailnet.IsExitRoute(r) {
			out = append(out, netip.MustParseAddr("1.1.1.1"), netip.MustParseAddr("2001:4860::8888"), netip.MustParseAddr("192.168.7.7"))
			continue
		}
		out = append(out, r.Addr().Next())
	}
	for _, s := range []string{"10.1.2.3", "10.2.0.9", "10.9.9.9"} {
		a := netip.MustParseAddr(s)
		if slices.ContainsFunc(n.AdvertisedRoutes(), func(r netip.Prefix) bool { return r.Contains(a) }) {
			out = append(out, a)
		}
	}
	return out
}

func TestAgainstOracle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		p, err := Parse([]byte(w.text()))
		if err != nil {
			t.Fatalf("%v\n%s", err, w.text())
		}
		c, err := Compile(p, w.users, w.nodes, Options{})
		if err != nil {
			t.Fatal(err)
		}
		compareWithOracle(t, w, c)
	})
}

// compareWithOracle asks both about every pair, and the client's own filter in each form in which it can be sent.
func compareWithOracle(t *rapid.T, w *world, c *Compiled) {
	caps := map[netip.Addr][]tailcfg.NodeCapability{}
	for _, n := range w.nodes {
		for _, a := range n.Addrs() {
			caps[a] = c.SourceCaps(c.ClassOf(n))
		}
	}
	hasCap := func(a netip.Addr, want tailcfg.NodeCapability) bool { return slices.Contains(caps[a], want) }
	for _, dst := range w.nodes {
		plain := filterOf(t, dst, c.FilterFor(dst), nil)
		named := filterOf(t, dst, union(c.Filters(dst, capverNamedFilters)), nil)
		byCap := filterOf(t, dst, union(c.Filters(dst, 142)), hasCap)
		for _, src := range w.nodes {
			if src == dst {
				continue
			}
			if got, want := c.SeesNode(src, dst), w.sees(src, dst); got != want {
				t.Fatalf("%s sees %s: got %v, want %v\n%s", src.Name, dst.Name, got, want, w.text())
			}
			for _, a := range src.Addrs() {
				for _, b := range destinationsAt(dst) {
					if a.Is4() != b.Is4() {
						continue
					}
					for _, proto := range []ipproto.Proto{ipproto.TCP, ipproto.UDP, ipproto.ICMPv4, ipproto.ICMPv6, ipproto.GRE} {
						if proto == ipproto.ICMPv4 && a.Is6() || proto == ipproto.ICMPv6 && a.Is4() {
							continue
						}
						for _, port := range []uint16{22, 100, 8080, 9} {
							want := w.allows(src, a, dst, b, proto, port)
							if proto == ipproto.GRE {
								port = 0
								want = w.allows(src, a, dst, b, proto, 1)
							}
							if !carries(dst, b) {
								want = false // routes that are advertised and not approved never count
							}
							for name, f := range map[string]*filter.Filter{"plain": plain, "named": named, "by capability": byCap} {
								if got := f.Check(a, b, port, proto) == filter.Accept; got != want {
									t.Fatalf("%s filter of %s: %s → %s %v %d: got %v, want %v\n%s\nfilter: %s", name, dst.Name, a, b, proto, port, got, want, w.text(), jsonOf(c.FilterFor(dst)))
								}
							}
						}
					}
				}
			}
		}
	}
}

// carries reports whether packets for b can have their end at n or behind it.
func carries(n *tailnet.Node, b netip.Addr) bool {
	return slices.Contains(n.Addrs(), b) || slices.ContainsFunc(n.ActiveRoutes(), func(r netip.Prefix) bool {
		return r.Contains(b) && (!tailnet.IsExitRoute(r) || isInternet(b))
	})
}

func jsonOf(x any) string { b, _ := json.Marshal(x); return string(b) }

func union(m map[string][]tailcfg.FilterRule) (out []tailcfg.FilterRule) {
	for _, rules := range m {
		out = append(out, rules...)
	}
	return out
}

// filterOf is a filter as the client runs it; what a node advertises counts there as its own, approved or not.
func filterOf(t *rapid.T, n *tailnet.Node, rules []tailcfg.FilterRule, hasCap filter.CapTestFunc) *filter.Filter {
	matches, err := filter.MatchesFromFilterRules(rules)
	if err != nil {
		t.Fatalf("the client finds a fault in the filter: %v", err)
	}
	var b netipx.IPSetBuilder
	for _, a := range n.Addrs() {
		b.Add(a)
	}
	for _, r := range n.AdvertisedRoutes() {
		if tailnet.IsExitRoute(r) { // as ipnlocal.shrinkDefaultRoute leaves of it
			for _, p := range internet {
				b.AddPrefix(p)
			}
			continue
		}
		b.AddPrefix(r)
	}
	local, _ := b.IPSet()
	return filter.New(matches, hasCap, local, &netipx.IPSet{}, nil, func(string, ...any) {})
}
