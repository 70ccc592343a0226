package policy

import (
	"net/netip"
	"slices"

	"github.com/skein-vpn/skein/tailnet"
)

// RulesFrom are the rules that have devices of u among their sources, whatever their postures, in the order of the policy.
func (c *Compiled) RulesFrom(u *tailnet.User) []RuleRef {
	if c.allowAll {
		return []RuleRef{{}}
	}
	in := c.rules.userSets(u)
	return c.rulesWhere(func(it *item) bool {
		s := c.rules.sets[it.src]
		if len(s.postures) == 0 && (s.star || s.all) || in.has(it.src) {
			return true
		}
		return slices.ContainsFunc(c.ownedBy(u.ID), func(e *entry) bool { return c.class(e.class).in.has(it.src) }) // by an address
	})
}

// RulesTo are the rules that open a port of an address for somebody, in the order of the policy.
func (c *Compiled) RulesTo(addr netip.Addr, port uint16) []RuleRef {
	if c.allowAll {
		return []RuleRef{{}}
	}
	var x Explanation
	holders := c.holders(addr, &x)
	return c.rulesWhere(func(it *item) bool {
		if it.caps != nil {
			return false
		}
		if it.self {
			return (ports{it.protos, it.ranges}).admitsAny([]int{6, 17}, port) &&
				slices.ContainsFunc(holders, func(h *entry) bool { return h.user != 0 && slices.Contains(h.addrs, addr) })
		}
		return slices.ContainsFunc(it.dst, func(d dst) bool {
			return (ports{it.protos, d.ranges}).admitsAny([]int{6, 17}, port) &&
				slices.ContainsFunc(holders, func(h *entry) bool { return c.holds(h, h, it, d.set, addr) })
		})
	})
}

// rulesWhere are the rules one of whose items is meant, each once, in the order of the policy.
func (c *Compiled) rulesWhere(meant func(*item) bool) (out []RuleRef) {
	for i := range c.rules.items {
		it := &c.rules.items[i]
		if it.back || !meant(it) {
			continue
		}
		ref := c.ruleRef(it, nil)
		ref.Opens = ""
		if !slices.Contains(out, ref) {
			out = append(out, ref)
		}
	}
	slices.SortStableFunc(out, func(a, b RuleRef) int { return a.Line - b.Line })
	return out
}
