// Package policy decides who reaches what. It is pure: values in, values out.
//
// A Compiled policy puts every node into a Class; nodes of one class are matched by the same sides of the same rules. Who
// sees whom is then a fact between classes, which are few, and not between nodes, which are many. Filters are made per
// node, because they name only destinations that the node can be.
//
// The policy language is not here yet: AllowAll is the one policy there is, and it is what an installation without a
// policy file has. Everybody else asks a Compiled and does not know which one it is.
package policy

import (
	"net/netip"

	"tailscale.com/tailcfg"

	"github.com/skein-vpn/skein/tailnet"
)

// Class is a set of nodes that a compiled policy does not tell apart. Classes of two different Compiled values have
// nothing to do with each other.
type Class int32

// Compiled is a policy ready for use. It is immutable; the zero value is not valid, use AllowAll.
type Compiled struct {
	classes int // how many there are
}

// AllowAll is the policy of a tailnet that has none: everybody reaches everybody, and every approved route.
func AllowAll() *Compiled { return &Compiled{classes: 1} }

// ClassOf is the class of n, which follows from its user, tags, addresses and approved routes alone.
func (c *Compiled) ClassOf(n *tailnet.Node) Class { return 0 }

// Sees reports whether nodes of class viewer are told about nodes of class peer.
func (c *Compiled) Sees(viewer, peer Class) bool { return true }

// FilterFor is the packet filter of n: what it lets in. It is never nil: an empty filter lets nothing in
// (tailcfg.MapResponse.PacketFilter).
//
// A node that advertises routes is given only those that are approved, since a peer could send packets for the others
// into its tunnel whatever we tell that peer.
func (c *Compiled) FilterFor(n *tailnet.Node) []tailcfg.FilterRule {
	rule := tailcfg.FilterRule{SrcIPs: []string{"*"}}
	for _, dst := range destinations(n) {
		rule.DstPorts = append(rule.DstPorts, tailcfg.NetPortRange{IP: dst, Ports: tailcfg.PortRangeAny})
	}
	return []tailcfg.FilterRule{rule}
}

// destinations is all that n may receive packets for, in the notation of tailcfg.NetPortRange.IP.
func destinations(n *tailnet.Node) []string {
	if len(n.AdvertisedRoutes()) == 0 {
		return []string{"*"}
	}
	var out []string
	for _, a := range n.Addrs() {
		out = append(out, netip.PrefixFrom(a, a.BitLen()).String())
	}
	for _, p := range n.ActiveRoutes() {
		out = append(out, p.String())
	}
	return out
}
