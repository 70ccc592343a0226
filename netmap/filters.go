package netmap

import (
	"slices"

	"tailscale.com/tailcfg"

	"github.com/skein-vpn/skein/state"
)

// Packet filters go to clients by name where they know that (tailcfg.MapResponse.PacketFilters), so that a change sends
// only the names it concerns. Without a policy there is one filter, which goes as the unnamed one: clients file it as "base".

// setFilters writes all filters of n.
func setFilters(o *object, sn *state.Snapshot, n *state.Node, v Viewer) {
	if named := namedFilters(sn, n, v); named != nil {
		o.set("PacketFilters", named)
	} else {
		o.set("PacketFilter", sn.Policy.FilterFor(n.Node))
	}
}

// namedFilters are the filters of n by name, or nil if it gets one without a name.
func namedFilters(sn *state.Snapshot, n *state.Node, v Viewer) map[string][]tailcfg.FilterRule {
	if sn.Policy.Policy() == nil {
		return nil
	}
	return sn.Policy.Filters(n.Node, v.Capver)
}

// setFiltersAfter writes what differs between the filters of a node before and after a step.
func setFiltersAfter(o *object, st *step, before, after *state.Node, v Viewer) {
	was, is := namedFilters(st.from, before, v), namedFilters(st.to, after, v)
	switch {
	case was == nil && is == nil:
		filter := marshal(st.to.Policy.FilterFor(after.Node))
		if !slices.Equal(filter, marshal(st.from.Policy.FilterFor(before.Node))) {
			o.key("PacketFilter")
			o.b = append(o.b, filter...)
		}
	case is == nil: // back to one: the named ones go, under "base" it must be named too, since "*" clears all
		o.set("PacketFilters", map[string][]tailcfg.FilterRule{"*": nil, "base": st.to.Policy.FilterFor(after.Node)})
	case was == nil:
		is["*"] = nil // clears the one without a name
		o.set("PacketFilters", is)
	default:
		diff := map[string][]tailcfg.FilterRule{}
		for name := range was {
			if _, stays := is[name]; !stays {
				diff[name] = nil
			}
		}
		for name, rules := range is {
			if old, had := was[name]; !had || !slices.Equal(marshal(old), marshal(rules)) {
				diff[name] = rules
			}
		}
		if len(diff) > 0 {
			o.set("PacketFilters", diff)
		}
	}
}
