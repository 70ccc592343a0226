package policy

import (
	"slices"

	"tailscale.com/tailcfg"

	"github.com/skein-vpn/skein/tailnet"
)

// Same reports whether a client of version v on n, which has not changed itself, is told the same by c as by o: its filters
// (Filters, FilterFor) and its SSH policy. It costs a comparison for each rule that lets others reach n, and makes
// nothing. It may be false where nothing differs after all.
func (c *Compiled) Same(o *Compiled, n *tailnet.Node, v tailcfg.CapabilityVersion) bool {
	if c == o || c.allowAll && o.allowAll {
		return true
	}
	if !c.SameRules(o) {
		return false
	}
	e := c.entry(n.ID)
	if e == nil || e != o.entry(n.ID) {
		return false
	}
	r, k := c.rules, c.class(e.class)
	caps := v >= capverSourceCaps && carriesNothing(n)
	for _, i := range k.items {
		it := &r.items[i]
		// A capability stands for the nodes of the set, but an empty set has no rule at all.
		named := caps && it.caps == nil && r.byCap(it.src) && capable(&tailcfg.FilterRule{IPProto: it.protos})
		if named && (c.hashes[it.src] == hash128{}) == (o.hashes[it.src] == hash128{}) {
			continue
		}
		if !c.sameSources(o, it.src) {
			return false
		}
	}
	personal := len(r.selfs) > 0
	for _, it := range r.ssh {
		// SSH rules tell the sources apart by user: the same nodes are not enough.
		named := it.dst >= 0 && k.in.has(it.dst)
		own := e.user != 0 && (it.self || len(it.rule.domains) > 0)
		personal = personal || own
		switch {
		case !named && !own:
		case named && c.lists[it.src] != o.lists[it.src], len(it.rule.domains) > 0 && !c.sameUsers(o), it.rec >= 0 && !c.sameSources(o, it.rec):
			return false
		}
	}
	return e.user == 0 || !personal || slices.Equal(c.ownedBy(e.user), o.ownedBy(e.user))
}

// sameSources reports whether the addresses of a set, as filters write them, are known to be the same.
func (c *Compiled) sameSources(o *Compiled, set int) bool {
	s := c.rules.sets[set]
	switch {
	case c.lists[set] == o.lists[set], s.all:
		return true
	case s.star:
		return slices.EqualFunc(c.subnets, o.subnets, func(a, b subnet) bool { return a.net == b.net })
	case c.hashes[set] == o.hashes[set]: // the same nodes; one of them looks different
		return slices.Equal(c.addresses(set), o.addresses(set))
	}
	return false
}

// sameUsers reports whether no user is another value.
func (c *Compiled) sameUsers(o *Compiled) bool {
	return slices.EqualFunc(c.users, o.users, func(a, b userBits) bool { return a.user == b.user })
}
