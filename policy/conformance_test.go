package policy

import (
	"bufio"
	"cmp"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go4.org/netipx"
	"tailscale.com/tailcfg"

	"github.com/skein-vpn/skein/tailnet"
)

// The cases are what the hosted service answered to policies, recorded by the headscale project; testdata/conformance has
// a copy and its licence. SKEIN_CONFORMANCE names another folder with cases of the same form.

type recordedUser struct {
	ID    uint
	Login string
	Name  string
	Role  string
}

type recordedNode struct {
	Hostname, User, IPv4, IPv6 string
	Tags                       []string
	RoutableIPs                []string `json:"routable_ips"`
	ApprovedRoutes             []string `json:"approved_routes"`
}

type recordedPeer struct {
	Addresses     []string           `json:"addresses"`
	Routes        []string           `json:"routes"`
	PrimaryRoutes []string           `json:"primary_routes"`
	CapMap        tailcfg.NodeCapMap `json:"cap_map"`
}

type recordedState struct {
	PacketFilterRules []tailcfg.FilterRule    `json:"packet_filter_rules"`
	SSHRules          []*tailcfg.SSHRule      `json:"ssh_rules"`
	Addresses         []string                `json:"addresses"`
	Routes            []string                `json:"routes"`
	PrimaryRoutes     []string                `json:"primary_routes"`
	NodeAttrs         tailcfg.NodeCapMap      `json:"node_attrs"`
	Peers             map[string]recordedPeer `json:"peers"`
}

type recordedCase struct {
	ID, Kind, Policy string
	Users            []recordedUser
	Nodes            []recordedNode
	SkipReason       string `json:"skip_reason"`
	Doubt            struct {
		Fields []string
		Why    string
	}
	Expect struct {
		HTTPStatus           int                      `json:"http_status"`
		ErrorMessage         string                   `json:"error_message"`
		ErrorMessageUnusable string                   `json:"error_message_unusable"`
		PerNode              map[string]recordedState `json:"per_node"`
	}
}

// conformanceDir is where the cases are.
func conformanceDir() string {
	if dir := os.Getenv("SKEIN_CONFORMANCE"); dir != "" {
		return dir
	}
	const beside = "../../shared/conformance" // ../shared/conformance seen from the repository's root
	if _, err := os.Stat(beside); err == nil {
		return beside
	}
	return "testdata/conformance"
}

func loadCases(t testing.TB) (cases []recordedCase) {
	t.Helper()
	dir := conformanceDir()
	files, err := filepath.Glob(filepath.Join(dir, "*.jsonl.gz"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		z, err := gzip.NewReader(f)
		if err != nil {
			t.Fatal(name, err)
		}
		lines := bufio.NewScanner(z)
		lines.Buffer(nil, 16<<20)
		for lines.Scan() {
			var c recordedCase
			if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
				t.Fatal(name, err)
			}
			cases = append(cases, c)
		}
		if err := lines.Err(); err != nil {
			t.Fatal(name, err)
		}
	}
	if len(cases) == 0 {
		t.Fatal("no cases under ", dir)
	}
	return cases
}

// caseTailnet is the users and nodes of a case, the oldest first. No route is approved yet.
func caseTailnet(c *recordedCase) (users []*tailnet.User, nodes []*tailnet.Node) {
	byName := map[string]tailnet.UserID{}
	for _, u := range c.Users {
		role := tailnet.Role(u.Role)
		if role == "member" {
			role = tailnet.RoleMember
		}
		users = append(users, &tailnet.User{ID: tailnet.UserID(u.ID), Name: u.Name, Email: u.Login, Role: role})
		byName[u.Name] = tailnet.UserID(u.ID)
	}
	for i, n := range c.Nodes {
		node := &tailnet.Node{
			ID: tailnet.NodeID(i + 1), Hostname: n.Hostname, Name: n.Hostname, User: byName[n.User], Tags: n.Tags,
			IPv4: netip.MustParseAddr(n.IPv4), IPv6: netip.MustParseAddr(n.IPv6),
			Created: time.Unix(int64(1000+i), 0), Hostinfo: &tailcfg.Hostinfo{OS: "linux"},
		}
		for _, r := range n.RoutableIPs {
			node.Hostinfo.RoutableIPs = append(node.Hostinfo.RoutableIPs, netip.MustParsePrefix(r))
		}
		nodes = append(nodes, node)
	}
	return users, nodes
}

// caseDomains are the domains of the tailnet: that of its owner.
func caseDomains(c *recordedCase) []string {
	for _, u := range c.Users {
		if _, domain, ok := strings.Cut(u.Login, "@"); ok && u.Role == "owner" {
			return []string{domain}
		}
	}
	return nil
}

// caseResult is what Skein makes of a case.
type caseResult struct {
	err   error
	c     *Compiled
	nodes []*tailnet.Node
	state map[string]recordedState
}

// runCase takes the way that a server takes: an empty tailnet, nodes that join one after the other, routes approved by the policy as
// they are advertised.
func runCase(c *recordedCase) caseResult {
	p, err := Parse([]byte(c.Policy))
	if err != nil {
		return caseResult{err: err}
	}
	users, nodes := caseTailnet(c)
	comp, err := Compile(p, users, nil, Options{Domains: caseDomains(c), CheckURL: "https://unused"})
	if err != nil {
		return caseResult{err: err}
	}
	for i, n := range nodes {
		comp = comp.With(nil, n)
		m := n.Clone()
		for _, r := range n.AdvertisedRoutes() {
			if comp.Approves(n, r) {
				m.ApprovedRoutes = append(m.ApprovedRoutes, r)
			}
		}
		m.ApprovedRoutes = tailnet.SortPrefixes(m.ApprovedRoutes)
		comp = comp.With(n, m)
		nodes[i] = m
	}
	if err := comp.Test(); err != nil {
		return caseResult{err: err}
	}
	out := caseResult{c: comp, nodes: nodes, state: map[string]recordedState{}}
	for _, n := range nodes {
		out.state[n.Hostname] = stateOf(comp, nodes, n)
	}
	return out
}

// firstCreated carries each prefix with the router that was created first.
func firstCreated(nodes []*tailnet.Node) Carrier {
	return func(p netip.Prefix, among []tailnet.NodeID) tailnet.NodeID {
		if among != nil {
			return among[0]
		}
		for _, n := range nodes {
			if slices.Contains(n.ActiveRoutes(), p) {
				return n.ID
			}
		}
		return 0
	}
}

func stateOf(c *Compiled, nodes []*tailnet.Node, n *tailnet.Node) recordedState {
	carrier := firstCreated(nodes)
	st := recordedState{
		PacketFilterRules: c.filter(n), SSHRules: c.SSHFor(n).Rules, NodeAttrs: c.AttrsFor(n), Addresses: unusual(c, n),
		Peers: map[string]recordedPeer{},
	}
	for _, r := range n.ActiveRoutes() {
		st.Routes = append(st.Routes, r.String())
		if !tailnet.IsExitRoute(r) && carrier(r, nil) == n.ID {
			st.PrimaryRoutes = append(st.PrimaryRoutes, r.String())
		}
	}
	for _, p := range nodes {
		if p == n || !c.SeesNode(n, p) {
			continue
		}
		peer := recordedPeer{Addresses: unusual(c, p)}
		for _, r := range c.Routes(c.ClassOf(n), p, carrier) {
			peer.Routes = append(peer.Routes, r.String())
			if !tailnet.IsExitRoute(r) {
				peer.PrimaryRoutes = append(peer.PrimaryRoutes, r.String())
			} else {
				peer.CapMap = tailcfg.NodeCapMap{"suggest-exit-node": nil}
			}
		}
		st.Peers[p.Hostname] = peer
	}
	return st
}

// unusual are the addresses of n if they are not what it has.
func unusual(c *Compiled, n *tailnet.Node) (out []string) {
	addrs := c.AddrsOf(n)
	if len(addrs) == len(n.Addrs()) {
		return nil
	}
	for _, a := range addrs {
		out = append(out, netip.PrefixFrom(a, a.BitLen()).String())
	}
	return out
}

// standing are the capabilities that the service gives every node by itself; recordings hold them only where the policy names
// one.
var standing = []string{
	"https://tailscale.com/cap/file-sharing", "https://tailscale.com/cap/ssh", "https://tailscale.com/cap/tailnet-lock",
	"https://tailscale.com/cap/is-owner", "https://tailscale.com/cap/is-admin", "probe-udp-lifetime", "ssh-behavior-v1", "ssh-env-vars",
	"store-appc-routes", "tailnet-display-name", "default-auto-update",
}

// scores are the counts of one kind of cases.
type scores struct{ cases, skipped, outcome, meaning, letter, rejected, message int }

func TestConformance(t *testing.T) {
	byKind := map[string]*scores{}
	for _, c := range loadCases(t) {
		s := byKind[c.Kind]
		if s == nil {
			s = &scores{}
			byKind[c.Kind] = s
		}
		t.Run(c.ID, func(t *testing.T) {
			s.cases++
			if c.SkipReason != "" {
				s.skipped++
				t.Skip(c.SkipReason)
			}
			judge(t, &c, s)
		})
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%-12s %6s %8s %8s %8s %8s   %s\n", "kind", "cases", "skipped", "outcome", "meaning", "letter", "message of rejected")
	var total scores
	kinds := make([]string, 0, len(byKind))
	for k := range byKind {
		kinds = append(kinds, k)
	}
	slices.Sort(kinds)
	line := func(k string, s *scores) {
		fmt.Fprintf(&b, "%-12s %6d %8d %8d %8d %8d   %d of %d\n", k, s.cases, s.skipped, s.outcome, s.meaning, s.letter, s.message, s.rejected)
	}
	for _, k := range kinds {
		s := byKind[k]
		line(k, s)
		total.cases, total.skipped, total.outcome = total.cases+s.cases, total.skipped+s.skipped, total.outcome+s.outcome
		total.meaning, total.letter = total.meaning+s.meaning, total.letter+s.letter
		total.rejected, total.message = total.rejected+s.rejected, total.message+s.message
	}
	line("all", &total)
	t.Logf("cases of %s\n%s", conformanceDir(), b.String())
}

func judge(t *testing.T, c *recordedCase, s *scores) {
	got := runCase(c)
	if c.Expect.HTTPStatus != 200 {
		if got.err == nil {
			t.Errorf("accepted; want rejection: %s", c.Expect.ErrorMessage)
			return
		}
		s.outcome++
		s.meaning++
		s.letter++
		if c.Expect.ErrorMessageUnusable != "" {
			return
		}
		s.rejected++
		if strings.Contains(got.err.Error(), c.Expect.ErrorMessage) {
			s.message++
		} else {
			t.Logf("message: got %q, want it to contain %q", got.err, c.Expect.ErrorMessage)
		}
		return
	}
	if got.err != nil {
		t.Errorf("rejected: %v", got.err)
		return
	}
	s.outcome++
	meaning, letter := true, true
	for i, n := range c.Nodes {
		want, ok := c.Expect.PerNode[n.Hostname]
		if !ok {
			continue
		}
		have := got.state[n.Hostname]
		if !slices.Equal(sorted(n.ApprovedRoutes), sorted(have.Routes)) {
			meaning = false
			t.Errorf("%s: approved %v, want %v", n.Hostname, have.Routes, n.ApprovedRoutes)
		}
		withStanding(&want, &have)
		for field, diff := range compareStates(want, have) {
			if !slices.Contains(c.Doubt.Fields, field) {
				meaning = false
				t.Errorf("%s: %s: %s", n.Hostname, field, diff)
			}
		}
		node := got.nodes[i]
		own := ownPrefixes(got.c, node)
		if diff := filterDiff(cut(want.PacketFilterRules, own), cut(got.c.FilterFor(node), own)); diff != "" {
			meaning = false
			t.Errorf("%s: FilterFor, on what the node is: %s", n.Hostname, diff)
		}
		if diff := gocmp.Diff(canonical(want.PacketFilterRules), canonical(have.PacketFilterRules)); diff != "" {
			letter = false
			t.Logf("%s: by the letter: %s", n.Hostname, diff)
		}
	}
	if meaning {
		s.meaning++
		if letter {
			s.letter++
		}
	}
}

// withStanding takes standing capabilities off the recording if they are not ours to give: those that the policy does not
// give this node.
func withStanding(want, have *recordedState) {
	out := tailcfg.NodeCapMap{}
	for k, v := range want.NodeAttrs {
		if _, ours := have.NodeAttrs[k]; ours || !slices.Contains(standing, string(k)) {
			out[k] = v
		}
	}
	want.NodeAttrs = out
}

func sorted(s []string) []string {
	out := slices.Clone(s)
	slices.Sort(out)
	return out
}

// compareStates returns the fields in which two nodes' states differ, with a description.
func compareStates(want, got recordedState) map[string]string {
	out := map[string]string{}
	set := func(field, diff string) {
		if diff != "" {
			out[field] = diff
		}
	}
	str := cmpopts.SortSlices(func(a, b string) bool { return a < b })
	set("packet_filter_rules", filterDiff(want.PacketFilterRules, got.PacketFilterRules))
	set("ssh_rules", gocmp.Diff(want.SSHRules, got.SSHRules, cmpopts.EquateEmpty(),
		cmpopts.SortSlices(func(a, b *tailcfg.SSHPrincipal) bool { return a.NodeIP < b.NodeIP }),
		gocmp.FilterPath(func(p gocmp.Path) bool { return p.Last().String() == ".HoldAndDelegate" },
			gocmp.Comparer(func(a, b string) bool { return (a == "") == (b == "") }))))
	set("addresses", gocmp.Diff(want.Addresses, got.Addresses, str, cmpopts.EquateEmpty()))
	set("routes", gocmp.Diff(want.Routes, got.Routes, str, cmpopts.EquateEmpty()))
	set("primary_routes", gocmp.Diff(want.PrimaryRoutes, got.PrimaryRoutes, str, cmpopts.EquateEmpty()))
	set("node_attrs", gocmp.Diff(want.NodeAttrs, got.NodeAttrs, cmpopts.EquateEmpty()))
	set("peers", gocmp.Diff(want.Peers, got.Peers, str, cmpopts.EquateEmpty()))
	return out
}

// canonical is a filter in a form in which only differences by the letter are left: rules in order, lists sorted.
func canonical(rules []tailcfg.FilterRule) []any {
	out := []any{}
	for _, r := range rules {
		r.SrcIPs = sorted(r.SrcIPs)
		r.DstPorts = slices.Clone(r.DstPorts)
		slices.SortFunc(r.DstPorts, func(a, b tailcfg.NetPortRange) int {
			return cmp.Or(cmp.Compare(a.IP, b.IP), cmp.Compare(a.Ports.First, b.Ports.First), cmp.Compare(a.Ports.Last, b.Ports.Last))
		})
		r.IPProto = slices.Clone(r.IPProto)
		slices.Sort(r.IPProto)
		r.CapGrant = slices.Clone(r.CapGrant)
		for i := range r.CapGrant {
			d := slices.Clone(r.CapGrant[i].Dsts)
			slices.SortFunc(d, func(a, b netip.Prefix) int { return strings.Compare(a.String(), b.String()) })
			r.CapGrant[i].Dsts = d
		}
		b, _ := json.Marshal(r)
		var x any
		_ = json.Unmarshal(b, &x)
		out = append(out, x)
	}
	return out
}

// ownPrefixes is what a node can be sent packets for.
func ownPrefixes(c *Compiled, n *tailnet.Node) (out []netip.Prefix) {
	return append(prefixes(c.AddrsOf(n)), n.ActiveRoutes()...)
}

// cut leaves of a filter's destinations what is in own.
func cut(rules []tailcfg.FilterRule, own []netip.Prefix) []tailcfg.FilterRule {
	var b netipx.IPSetBuilder
	for _, p := range own {
		b.AddPrefix(p)
	}
	ours, _ := b.IPSet()
	out := slices.Clone(rules)
	for i := range out {
		var dsts []tailcfg.NetPortRange
		for _, d := range out[i].DstPorts {
			var b netipx.IPSetBuilder
			for _, s := range spans(d.IP) {
				b.AddRange(netipx.IPRangeFrom(s[0], s[1]))
			}
			b.Intersect(ours)
			set, _ := b.IPSet()
			for _, p := range set.Prefixes() {
				dsts = append(dsts, tailcfg.NetPortRange{IP: p.String(), Ports: d.Ports})
			}
		}
		out[i].DstPorts = dsts
	}
	return out
}

// spans parses the forms that occur in SrcIPs and DstPorts: "*", an address, a prefix, or a "first-last" range.
func spans(s string) [][2]netip.Addr {
	if s == "*" {
		return append(spans("0.0.0.0/0"), spans("::/0")...)
	}
	if lo, hi, ok := strings.Cut(s, "-"); ok {
		return [][2]netip.Addr{{netip.MustParseAddr(lo), netip.MustParseAddr(hi)}}
	}
	if p, err := netip.ParsePrefix(s); err == nil {
		r := netipx.RangeOfPrefix(p)
		return [][2]netip.Addr{{r.From(), r.To()}}
	}
	a := netip.MustParseAddr(s)
	return [][2]netip.Addr{{a, a}}
}

func within(a netip.Addr, list ...string) bool {
	for _, s := range list {
		for _, sp := range spans(s) {
			if a.Is4() == sp[0].Is4() && a.Compare(sp[0]) >= 0 && a.Compare(sp[1]) <= 0 {
				return true
			}
		}
	}
	return false
}

// filterDiff reports the first traffic or capability on which two packet filters differ, or "". Both are constant between
// the places where some span begins or ends, so that it is enough to look at those places: the answer is exact.
func filterDiff(want, got []tailcfg.FilterRule) string {
	srcs, dsts := map[netip.Addr]bool{}, map[netip.Addr]bool{}
	ports := map[int]bool{0: true}
	edges := func(m map[netip.Addr]bool, s string) {
		for _, sp := range spans(s) {
			m[sp[0]] = true
			if n := sp[1].Next(); n.IsValid() && n.Is4() == sp[1].Is4() {
				m[n] = true
			}
		}
	}
	for _, rules := range [][]tailcfg.FilterRule{want, got} {
		for _, r := range rules {
			for _, s := range r.SrcIPs {
				edges(srcs, s)
			}
			for _, d := range r.DstPorts {
				edges(dsts, d.IP)
				ports[int(d.Ports.First)], ports[int(d.Ports.Last)+1] = true, true
			}
			for _, g := range r.CapGrant {
				for _, d := range g.Dsts {
					edges(dsts, d.String())
				}
			}
		}
	}
	for src := range srcs {
		for dst := range dsts {
			w, g := reach(want, src, dst, ports), reach(got, src, dst, ports)
			for k := range w {
				if !g[k] {
					return fmt.Sprintf("missing: %s -> %s %s", src, dst, k)
				}
			}
			for k := range g {
				if !w[k] {
					return fmt.Sprintf("extra: %s -> %s %s", src, dst, k)
				}
			}
		}
	}
	return ""
}

// reach is all that a filter lets src do at dst.
func reach(rules []tailcfg.FilterRule, src, dst netip.Addr, ports map[int]bool) map[string]bool {
	out := map[string]bool{}
	for _, r := range rules {
		if !within(src, r.SrcIPs...) {
			continue
		}
		on := r.IPProto
		if len(on) == 0 {
			on = []int{6, 17, 1, 58}
		}
		for _, d := range r.DstPorts {
			if !within(dst, d.IP) {
				continue
			}
			for port := range ports {
				if port >= int(d.Ports.First) && port <= int(d.Ports.Last) {
					for _, proto := range on {
						out[fmt.Sprintf("proto %d port %d", proto, port)] = true
					}
				}
			}
		}
		for _, g := range r.CapGrant {
			for _, d := range g.Dsts {
				if !within(dst, d.String()) {
					continue
				}
				for name, values := range g.CapMap {
					out["cap "+string(name)] = true
					for _, v := range values {
						var x any
						_ = json.Unmarshal([]byte(v), &x)
						b, _ := json.Marshal(x)
						out["cap "+string(name)+"="+string(b)] = true
					}
				}
			}
		}
	}
	return out
}

// TestFiltersOfCases: for all recorded cases the filters by name and by capability mean the same as the one by address.
func TestFiltersOfCases(t *testing.T) {
	for _, c := range loadCases(t) {
		got := runCase(&c)
		if got.err != nil {
			continue
		}
		byCap := map[string][]string{}
		for _, n := range got.nodes {
			for _, name := range got.c.SourceCaps(got.c.ClassOf(n)) {
				for _, a := range got.c.AddrsOf(n) {
					byCap["cap:"+string(name)] = append(byCap["cap:"+string(name)], a.String())
				}
			}
		}
		for _, n := range got.nodes {
			want := got.c.FilterFor(n)
			for _, v := range []tailcfg.CapabilityVersion{capverNamedFilters, capverSourceCaps} {
				var have []tailcfg.FilterRule
				for _, rules := range got.c.Filters(n, v) {
					for _, r := range rules {
						var src []string
						for _, s := range r.SrcIPs {
							if strings.HasPrefix(s, "cap:") {
								src = append(src, byCap[s]...)
							} else {
								src = append(src, s)
							}
						}
						r.SrcIPs = src
						have = append(have, r)
					}
				}
				if diff := filterDiff(want, have); diff != "" {
					t.Errorf("%s: %s: capver %d: %s", c.ID, n.Hostname, v, diff)
				}
			}
		}
	}
}
