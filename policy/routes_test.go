package policy

import (
	"net/netip"
	"testing"

	"go4.org/netipx"
	"tailscale.com/tailcfg"
	"tailscale.com/wgengine/filter"

	"github.com/skein-vpn/skein/tailnet"
)

// clientFilter is the packet filter of the real client on n, which takes packets for all that it was told to advertise,
// approved or not; of a default route, only what is no private network (ipnlocal.shrinkDefaultRoute).
func clientFilter(t *testing.T, rules []tailcfg.FilterRule, n *tailnet.Node) *filter.Filter {
	t.Helper()
	matches, err := filter.MatchesFromFilterRules(rules)
	if err != nil {
		t.Fatal(err)
	}
	var local netipx.IPSetBuilder
	for _, p := range n.AdvertisedRoutes() {
		if tailnet.IsExitRoute(p) {
			var wide netipx.IPSetBuilder
			wide.AddPrefix(p)
			for _, s := range []string{"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7"} {
				wide.RemovePrefix(netip.MustParsePrefix(s))
			}
			set, err := wide.IPSet()
			if err != nil {
				t.Fatal(err)
			}
			local.AddSet(set)
			continue
		}
		local.AddPrefix(p)
	}
	for _, a := range n.Addrs() {
		local.Add(a)
	}
	set, err := local.IPSet()
	if err != nil {
		t.Fatal(err)
	}
	return filter.New(matches, nil, set, new(netipx.IPSet), nil, func(string, ...any) {})
}

// TestUnapprovedRoutes: a router lets packets in for the routes that are enabled and for no others, whatever it advertises
// and whatever a peer sends into its tunnel, without a policy and with one that allows all.
func TestUnapprovedRoutes(t *testing.T) {
	peer := addr("100.64.0.7")
	peer6 := addr("fd7a:115c:a1e0::7")
	all := func(n *tailnet.Node) map[string][]tailcfg.FilterRule {
		p, err := Parse([]byte(`{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}`))
		if err != nil {
			t.Fatal(err)
		}
		other := &tailnet.Node{ID: 7, User: 1, IPv4: peer, IPv6: peer6, Hostinfo: &tailcfg.Hostinfo{}}
		c, err := Compile(p, []*tailnet.User{{ID: 1, Name: "junyao"}}, []*tailnet.Node{n, other}, Options{})
		if err != nil {
			t.Fatal(err)
		}
		var named []tailcfg.FilterRule
		for _, rules := range c.Filters(n, tailcfg.CurrentCapabilityVersion) {
			named = append(named, rules...)
		}
		return map[string][]tailcfg.FilterRule{"without a policy": AllowAll().FilterFor(n), "with one": c.FilterFor(n), "with one, by name": named}
	}
	lan, net10, exit4, exit6 := "192.168.199.0/24", "10.0.0.0/8", "0.0.0.0/0", "::/0"
	for _, tc := range []struct {
		name                 string
		advertised, approved []string
		in, out              []string // addresses that packets are let in for, and that they are not
	}{
		{"no routes", nil, nil, []string{"100.64.0.2", "fd7a:115c:a1e0::2"}, []string{"192.168.199.1", "8.8.8.8"}},
		{"approved but not advertised", nil, []string{lan}, []string{"100.64.0.2"}, []string{"192.168.199.1"}},
		{"not enabled", []string{lan}, nil, []string{"100.64.0.2", "fd7a:115c:a1e0::2"}, []string{"192.168.199.1", "8.8.8.8"}},
		{"enabled", []string{lan}, []string{lan}, []string{"100.64.0.2", "192.168.199.1"}, []string{"192.168.200.1", "8.8.8.8"}},
		{"one of two", []string{lan, net10}, []string{lan}, []string{"192.168.199.1", "100.64.0.2"}, []string{"10.1.2.3"}},
		{"a part of what is advertised", []string{net10, "10.1.0.0/16"}, []string{"10.1.0.0/16"}, []string{"10.1.2.3"}, []string{"10.2.0.1"}},
		{"the whole and not the part", []string{net10, "10.1.0.0/16"}, []string{net10}, []string{"10.1.2.3", "10.2.0.1"}, []string{"192.168.199.1"}},
		{"an exit node", []string{exit4, exit6}, []string{exit4, exit6}, []string{"8.8.8.8", "2001:db8::1", "100.64.0.2"}, []string{"192.168.199.1", "10.1.2.3"}},
		{"an exit node that is not enabled", []string{exit4, exit6}, nil, []string{"100.64.0.2"}, []string{"8.8.8.8", "2001:db8::1"}},
		// Clients that use the exit node send it packets for its LAN too; it is not their exit, if nobody enabled it.
		{"an exit node whose LAN is not enabled", []string{exit4, lan, exit6}, []string{exit4, exit6}, []string{"8.8.8.8", "2001:db8::1", "100.64.0.2"}, []string{"192.168.199.1"}},
		{"an exit node whose LAN is", []string{exit4, lan, exit6}, []string{exit4, lan, exit6}, []string{"8.8.8.8", "192.168.199.1"}, []string{"10.1.2.3"}},
		{"a LAN whose exit is not enabled", []string{exit4, lan, exit6}, []string{lan}, []string{"192.168.199.1"}, []string{"8.8.8.8", "2001:db8::1"}},
	} {
		n := &tailnet.Node{
			ID: 2, User: 1, IPv4: addr("100.64.0.2"), IPv6: addr("fd7a:115c:a1e0::2"), Hostinfo: &tailcfg.Hostinfo{},
		}
		for _, s := range tc.advertised {
			n.Hostinfo.RoutableIPs = append(n.Hostinfo.RoutableIPs, netip.MustParsePrefix(s))
		}
		for _, s := range tc.approved {
			n.ApprovedRoutes = append(n.ApprovedRoutes, netip.MustParsePrefix(s))
		}
		tailnet.SortPrefixes(n.ApprovedRoutes)
		for how, rules := range all(n) {
			f := clientFilter(t, rules, n)
			check := func(dsts []string, want filter.Response) {
				for _, dst := range dsts {
					src := peer
					if addr(dst).Is6() {
						src = peer6
					}
					if got := f.CheckTCP(src, addr(dst), 80); got != want {
						t.Errorf("%s, %s: to %s %v, want %v", tc.name, how, dst, got, want)
					}
				}
			}
			check(tc.in, filter.Accept)
			check(tc.out, filter.Drop)
		}
	}
}
