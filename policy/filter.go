package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	"tailscale.com/tailcfg"

	"github.com/skein-vpn/skein/tailnet"
)

// Capability versions that decide the form of filters (tailcfg.MapRequest.Version).
const (
	capverNamedFilters = 81  // tailcfg.MapResponse.PacketFilters
	capverSourceCaps   = 109 // cap: in tailcfg.FilterRule.SrcIPs
)

// FilterFor is the packet filter of n: what it lets in, with addresses as sources, as every client understands it. It is never nil: an empty filter lets nothing in
// (tailcfg.MapResponse.PacketFilter). n must be in c as it is given here.
//
// A node that advertises routes which are not approved is given "*" as a destination only as far as it may carry it, since a peer could send
// packets for the others into its tunnel whatever we tell that peer.
func (c *Compiled) FilterFor(n *tailnet.Node) []tailcfg.FilterRule {
	if c.allowAll {
		rule := tailcfg.FilterRule{SrcIPs: []string{"*"}}
		for _, dst := range destinations(n) {
			rule.DstPorts = append(rule.DstPorts, tailcfg.NetPortRange{IP: dst, Ports: tailcfg.PortRangeAny})
		}
		return []tailcfg.FilterRule{rule}
	}
	return narrow(c.filter(n), n)
}

// Filters is the same as FilterFor for clients of the given capability version, by name, so that a change sends only the names
// it concerns (tailcfg.MapResponse.PacketFilters). Nil: the client wants FilterFor. From a version on sources are
// named by capabilities, which peers carry (SourceCaps), instead of addresses: then a node that joins changes no filter.
func (c *Compiled) Filters(n *tailnet.Node, v tailcfg.CapabilityVersion) map[string][]tailcfg.FilterRule {
	if v < capverNamedFilters {
		return nil
	}
	if c.allowAll {
		return map[string][]tailcfg.FilterRule{"base": c.FilterFor(n)}
	}
	caps := v >= capverSourceCaps && carriesNothing(n)
	out := map[string][]tailcfg.FilterRule{}
	for _, g := range c.grouped(n) {
		name, rules := g.name, g.rules
		if caps && g.src >= 0 && c.rules.byCap(g.src) {
			for i := range rules {
				if !capable(&rules[i]) {
					continue
				}
				rules[i].SrcIPs = []string{"cap:" + string(c.rules.capName(g.src))}
			}
		}
		out[name] = append(out[name], narrow(rules, n)...)
	}
	if len(out) == 0 {
		out["base"] = []tailcfg.FilterRule{}
	}
	return out
}

// carriesNothing reports whether n has no other addresses than its own.
func carriesNothing(n *tailnet.Node) bool { return len(n.AdvertisedRoutes())+len(n.Hostings) == 0 }

// capable reports whether a rule means the same with a capability as its source: grants need addresses, and so do
// protocols other than TCP, UDP, SCTP and ICMP (filter.matches.matchProtoAndIPsOnlyIfAllPorts). ICMP with a capability is
// let in to all destinations of the filter (matchIPsOnly), so that nodes with routes get addresses always.
func capable(r *tailcfg.FilterRule) bool {
	for _, p := range r.IPProto {
		if !slices.Contains([]int{1, 6, 17, 58, 132}, p) {
			return false
		}
	}
	return len(r.CapGrant) == 0
}

// byCap reports whether the set is one of nodes that are named by what they are, so that a capability can stand for it.
func (r *rules) byCap(set int) bool {
	s := r.sets[set]
	return !s.star && !s.all && len(s.nets) == 0 && len(s.targets) > 0
}

// capName is the capability that nodes of a set carry. It follows from the set alone, not from its number, so that an edited policy
// keeps the names of the sets that it keeps.
func (r *rules) capName(set int) tailcfg.NodeCapability {
	key := ""
	for _, t := range r.sets[set].targets {
		key += t.key() + "\n"
	}
	for _, p := range r.sets[set].postures {
		key += "\x00" + p
	}
	h := uint64(14695981039346656037)
	for i := range len(key) {
		h = (h ^ uint64(key[i])) * 1099511628211
	}
	return tailcfg.NodeCapability("skein/src/" + strconv.FormatUint(mix(h), 36))
}

// SourceCaps are the capabilities that peers must be told of nodes of a class, for the filters that Filters makes
// (tailcfg.Node.CapMap of the peer). Sorted.
func (c *Compiled) SourceCaps(id Class) []tailcfg.NodeCapability {
	if c.allowAll || c.class(id) == nil {
		return nil
	}
	r := c.rules
	var out []tailcfg.NodeCapability
	k := c.class(id)
	seen := map[int]bool{}
	for i := range r.items {
		it := &r.items[i]
		if it.caps == nil && !it.self && !seen[it.src] && k.in.has(it.src) && r.byCap(it.src) {
			seen[it.src] = true
			out = append(out, r.capName(it.src))
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// ruleGroup is rules with the same sources.
type ruleGroup struct {
	name  string
	src   int // set; -1: the node's own user's devices
	rules []tailcfg.FilterRule
}

// filter is the filter of n before it is narrowed: the rules as the hosted service writes them.
func (c *Compiled) filter(n *tailnet.Node) []tailcfg.FilterRule {
	out := []tailcfg.FilterRule{}
	c.eachRule(n, c.firsts(), func(_ int, rule tailcfg.FilterRule) { out = append(out, rule) })
	return out
}

// grouped is the filter of n in groups, one for each set of sources.
func (c *Compiled) grouped(n *tailnet.Node) (out []*ruleGroup) {
	at := map[int]*ruleGroup{}
	c.eachRule(n, c.rules.first, func(src int, rule tailcfg.FilterRule) {
		g := at[src]
		if g == nil {
			g = &ruleGroup{name: "self", src: src}
			if src >= 0 {
				g.name = string(c.rules.capName(src))
			}
			at[src] = g
			out = append(out, g)
		}
		g.rules = append(g.rules, rule)
	})
	return out
}

// eachRule calls f for the rules of n's filter, in order: merged where sources and protocols are the same (first says which item is
// the first of those), at the place of the first rule of the policy that has them. src is the set of the sources, or -1.
func (c *Compiled) eachRule(n *tailnet.Node, first []int, f func(src int, rule tailcfg.FilterRule)) {
	e := c.entry(n.ID)
	if e == nil {
		return
	}
	r, k := c.rules, c.class(e.class)
	type pending struct {
		at, src int
		rule    tailcfg.FilterRule
	}
	var found []pending
	merged := map[int]int{} // first item of the same kind → index in found
	selfOf := map[string]int{}

	items := k.items
	if e.user != 0 && len(r.selfs) > 0 {
		items = slices.Concat(k.items, r.selfs)
		slices.Sort(items)
	}
	for _, i := range items {
		it := &r.items[i]
		if it.self {
			src := c.selfSources(e, it.src)
			if len(src) == 0 {
				continue
			}
			if it.caps != nil {
				found = append(found, pending{i, -1, capRule(src, it.caps, prefixes(e.addrs))})
				continue
			}
			key := fmt.Sprint(src, it.protos)
			j, ok := selfOf[key]
			if !ok {
				j = len(found)
				selfOf[key] = j
				found = append(found, pending{i, -1, tailcfg.FilterRule{SrcIPs: src, IPProto: it.protos}})
			}
			for _, a := range e.strs {
				found[j].rule.DstPorts = appendPorts(found[j].rule.DstPorts, a, it.ranges)
			}
			continue
		}
		if it.caps != nil {
			if dsts := c.capDsts(e, k, it); len(dsts) > 0 {
				if src := c.addresses(it.src); len(src) > 0 {
					found = append(found, pending{i, it.src, capRule(src, it.caps, dsts)})
				}
			}
			continue
		}
		var open []tailcfg.NetPortRange
		for _, d := range it.dst {
			for _, ip := range c.dstIPs(e, k, it, d.set) {
				open = appendPorts(open, ip, d.ranges)
			}
		}
		if len(open) == 0 {
			continue
		}
		j, ok := merged[first[i]]
		if !ok {
			src := c.addresses(it.src)
			if len(src) == 0 {
				continue
			}
			j = len(found)
			merged[first[i]] = j
			found = append(found, pending{first[i], it.src, tailcfg.FilterRule{SrcIPs: src, IPProto: it.protos}})
		}
		found[j].rule.DstPorts = append(found[j].rule.DstPorts, open...)
	}
	slices.SortStableFunc(found, func(a, b pending) int { return a.at - b.at })
	for _, p := range found {
		f(p.src, p.rule)
	}
}

func appendPorts(out []tailcfg.NetPortRange, ip string, ranges []tailcfg.PortRange) []tailcfg.NetPortRange {
	for _, r := range ranges {
		out = append(out, tailcfg.NetPortRange{IP: ip, Ports: r})
	}
	return out
}

func capRule(src []string, caps tailcfg.PeerCapMap, dsts []netip.Prefix) tailcfg.FilterRule {
	return tailcfg.FilterRule{SrcIPs: src, CapGrant: []tailcfg.CapGrant{{Dsts: dsts, CapMap: caps}}}
}

// firsts is, for each item, the first with the same sources, protocols and via; grants of capabilities stand alone. Sources are the same if they hold the same
// nodes and addresses, in whatever words.
func (c *Compiled) firsts() []int {
	c.memo.order.Do(func() {
		type key struct {
			hash   hash128
			static string
			protos string
			via    int
		}
		seen := map[key]int{}
		c.memo.first = make([]int, len(c.rules.items))
		for i := range c.rules.items {
			it := &c.rules.items[i]
			s := c.rules.sets[it.src]
			k := key{c.hashes[it.src], s.static(), fmt.Sprint(it.protos), it.via}
			if it.self || it.caps != nil {
				c.memo.first[i] = i
				continue
			}
			if _, ok := seen[k]; !ok {
				seen[k] = i
			}
			c.memo.first[i] = seen[k]
		}
	})
	return c.memo.first
}

// static is the part of a set that does not come from nodes.
func (s *set) static() string {
	switch {
	case s.all:
		return "all"
	case s.star:
		return "* " + fmt.Sprint(s.nets)
	case len(s.nets) == 0:
		return ""
	}
	if len(s.postures) > 0 || slices.ContainsFunc(s.targets, func(t target) bool { return t.kind != kindAddr }) {
		// A node may be in the set by an address of the policy or by what it is, which are not the same addresses.
		return fmt.Sprintf("%p", s)
	}
	nets := slices.Clone(s.nets)
	slices.SortFunc(nets, comparePrefix)
	return fmt.Sprint(nets)
}

// addresses are the sources of a set, as filters write them, without repetitions.
func (c *Compiled) addresses(id int) []string {
	l := c.lists[id]
	l.once.Do(func() {
		s := c.rules.sets[id]
		if s.all {
			l.addrs = []string{"*"}
			return
		}
		seen := map[string]bool{}
		add := func(a string) {
			if !seen[a] {
				seen[a] = true
				l.addrs = append(l.addrs, a)
			}
		}
		if len(s.postures) == 0 {
			for _, n := range s.nets {
				add(netString(n))
			}
		}
		if s.star {
			for _, a := range tailnetRanges {
				add(a)
			}
			for _, n := range c.subnets {
				add(netString(n.net))
			}
			return
		}
		for _, e := range c.nodesIn(id) {
			named := c.class(e.class).named.has(id)
			for i, a := range e.strs {
				// Without postures the addresses of the policy are in the list already.
				if named || len(s.postures) > 0 && slices.ContainsFunc(s.nets, func(n netip.Prefix) bool { return n.Contains(e.addrs[i]) }) {
					add(a)
				}
			}
		}
	})
	return l.addrs
}

// nodesIn are the nodes of a set, by what they are or by one of their addresses, sorted by id.
func (c *Compiled) nodesIn(id int) (out []*entry) {
	for class, b := range c.members {
		if b != nil && len(b.nodes) > 0 && c.class(Class(class)).in.has(id) {
			out = append(out, b.nodes...)
		}
	}
	slices.SortFunc(out, byID)
	return out
}

// selfSources are the addresses of those devices of e's user that are in the set.
func (c *Compiled) selfSources(e *entry, set int) (out []string) {
	for _, o := range c.ownedBy(e.user) {
		if c.class(o.class).in.has(set) {
			out = append(out, o.strs...)
		}
	}
	return out
}

// dstIPs is what of a destination e can be, in the notation of tailcfg.NetPortRange.IP: its own addresses if it is one
// of the nodes, the policy's addresses as they are written if one of its own or of its routes is among them.
func (c *Compiled) dstIPs(e *entry, k *class, it *item, set int) []string {
	s := c.rules.sets[set]
	if it.via >= 0 {
		switch {
		case !k.routed(c.rules, set):
			return nil
		case s.star:
			var out []string
			for _, p := range k.routes {
				out = append(out, netString(p))
			}
			if k.exit {
				out = append(out, internetRanges...)
			}
			return out
		case s.internet:
			return internetRanges
		}
		return s.meeting(nil, k.routes)
	}
	switch {
	case s.star:
		return []string{"*"}
	case s.internet:
		if k.exit {
			return internetRanges
		}
		return nil
	case len(s.nets) > 0:
		if !k.in.has(set) && !k.over.has(set) {
			return nil
		}
		return s.meeting(e.addrs, k.routes)
	case k.in.has(set):
		return e.strs
	}
	return nil
}

// meeting are the addresses of a set that hold one of addrs or share some with routes.
func (s *set) meeting(addrs []netip.Addr, routes []netip.Prefix) (out []string) {
	for _, n := range s.nets {
		if slices.ContainsFunc(addrs, n.Contains) || slices.ContainsFunc(routes, n.Overlaps) {
			out = append(out, netString(n))
		}
	}
	return out
}

// capDsts is where a capability of an item holds on e: its own addresses that are meant, and prefixes that its routes
// meet.
func (c *Compiled) capDsts(e *entry, k *class, it *item) (out []netip.Prefix) {
	for _, d := range it.dst {
		s := c.rules.sets[d.set]
		var more []netip.Prefix
		switch {
		case len(s.nets) > 0 && len(s.postures) == 0:
			for _, a := range e.addrs {
				if slices.ContainsFunc(s.nets, func(n netip.Prefix) bool { return n.Contains(a) }) {
					more = append(more, netip.PrefixFrom(a, a.BitLen()))
				}
			}
			for _, n := range s.nets {
				if slices.ContainsFunc(k.routes, n.Overlaps) {
					more = append(more, n)
				}
			}
		case k.in.has(d.set):
			more = prefixes(e.addrs)
		}
		for _, p := range more {
			if !slices.Contains(out, p) {
				out = append(out, p)
			}
		}
	}
	return out
}

func prefixes(addrs []netip.Addr) []netip.Prefix {
	out := make([]netip.Prefix, len(addrs))
	for i, a := range addrs {
		out[i] = netip.PrefixFrom(a, a.BitLen())
	}
	return out
}

// narrow cuts destinations down to what n may receive packets for, if it advertises more than that: the client takes packets for all
// that it advertises.
func narrow(rules []tailcfg.FilterRule, n *tailnet.Node) []tailcfg.FilterRule {
	others := unapproved(n)
	if len(others) == 0 {
		return rules
	}
	out := slices.Clone(rules)
	for i := range out {
		var dsts []tailcfg.NetPortRange
		for _, d := range out[i].DstPorts {
			ips := []string{d.IP}
			if p, err := netip.ParsePrefix(d.IP); err == nil && overlaps(others, p) {
				ips = intersect(p, mayReceive(n))
			} else if d.IP == "*" {
				ips = destinations(n)
			}
			for _, ip := range ips {
				dsts = append(dsts, tailcfg.NetPortRange{IP: ip, Ports: d.Ports})
			}
		}
		out[i].DstPorts = dsts
	}
	return out
}

// unapproved are the routes that n advertises without being approved for them.
func unapproved(n *tailnet.Node) (out []netip.Prefix) {
	for _, p := range n.AdvertisedRoutes() {
		if !slices.Contains(n.ApprovedRoutes, p) {
			out = append(out, p)
		}
	}
	return out
}

// intersect is what of p is in nets.
func intersect(p netip.Prefix, nets []netip.Prefix) (out []string) {
	for _, own := range nets {
		switch {
		case !own.Overlaps(p):
		case own.Bits() > p.Bits():
			out = append(out, netString(own))
		default:
			return []string{netString(p)}
		}
	}
	return out
}

// mayReceive is all that n may receive packets for: its addresses and approved routes. If it advertises other routes too,
// those of an exit node are cut to the internet, or they would hold the others.
func mayReceive(n *tailnet.Node) []netip.Prefix {
	out := prefixes(n.Addrs())
	cut := slices.ContainsFunc(unapproved(n), func(p netip.Prefix) bool { return !tailnet.IsExitRoute(p) })
	for _, p := range n.ActiveRoutes() {
		if !cut || !tailnet.IsExitRoute(p) {
			out = append(out, p)
			continue
		}
		for _, i := range internet {
			if i.Addr().Is4() == p.Addr().Is4() {
				out = append(out, i)
			}
		}
	}
	return out
}

// destinations is mayReceive in the notation of tailcfg.NetPortRange.IP; "*" for nodes that advertise no routes.
func destinations(n *tailnet.Node) []string {
	if len(n.AdvertisedRoutes()) == 0 {
		return []string{"*"}
	}
	var out []string
	for _, p := range mayReceive(n) {
		out = append(out, p.String())
	}
	return out
}
