package policy

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/skein-vpn/skein/tailnet"
)

// Sees reports whether nodes of class viewer are told about nodes of class peer: one may reach the other. Devices of one
// user may see each other beyond that, see SeesOwn.
func (c *Compiled) Sees(viewer, peer Class) bool {
	if c.allowAll {
		return true
	}
	a, b := c.class(viewer), c.class(peer)
	if a == nil || b == nil {
		return false
	}
	return a.src.meets(b.dst) || b.src.meets(a.dst)
}

// SeesOwn reports whether a node of class viewer is told about a node of class peer of the same user, by
// autogroup:self. Both must be untagged.
func (c *Compiled) SeesOwn(viewer, peer Class) bool {
	if c.allowAll {
		return true
	}
	a, b := c.class(viewer), c.class(peer)
	return a != nil && b != nil && !a.tagged && !b.tagged && (a.self || b.self)
}

// SeesNode reports whether viewer is told about peer, all told.
func (c *Compiled) SeesNode(viewer, peer *tailnet.Node) bool {
	v, p := c.ClassOf(viewer), c.ClassOf(peer)
	return c.Sees(v, p) || !viewer.Tagged() && !peer.Tagged() && viewer.User == peer.User && viewer.User != 0 && c.SeesOwn(v, p)
}

// Personal reports whether what nodes of a class see depends on their user too: audiences of such a class must be told
// apart by user.
func (c *Compiled) Personal(id Class) bool {
	if c.allowAll || len(c.rules.selfs) == 0 {
		return false
	}
	k := c.class(id)
	return k != nil && !k.tagged
}

// Carrier says which of several routers of a prefix carries it, of those in among, which are in the order in which they
// were created; nil stands for all routers of the prefix. 0: none does.
type Carrier func(p netip.Prefix, among []tailnet.NodeID) tailnet.NodeID

// Routes are the routes of peer that viewers of a class are shown (tailcfg.Node.AllowedIPs beside the addresses): the
// exit routes and the subnet routes that it carries for them and that they may use. With via, that can be another router than for the others. The
// result is sorted.
func (c *Compiled) Routes(viewer Class, peer *tailnet.Node, carrier Carrier) (out []netip.Prefix) {
	for _, p := range peer.ActiveRoutes() {
		if c.allowAll {
			if tailnet.IsExitRoute(p) || carrier(p, nil) == peer.ID {
				out = append(out, p)
			}
			continue
		}
		if c.showsRoute(viewer, peer, p, carrier) {
			out = append(out, p)
		}
	}
	return out
}

func (c *Compiled) showsRoute(viewer Class, peer *tailnet.Node, p netip.Prefix, carrier Carrier) bool {
	v := c.class(viewer)
	e := c.entry(peer.ID)
	if v == nil || e == nil {
		return false
	}
	k := c.class(e.class)
	if tailnet.IsExitRoute(p) {
		return c.leadsOut(v, k)
	}
	plain, via := c.usesRoute(v, p)
	switch {
	case plain:
		return carrier(p, nil) == peer.ID
	case len(via) == 0 || !slices.ContainsFunc(via, k.in.has):
		return false
	}
	return c.steered(p, via, carrier) == peer.ID
}

// leadsOut reports whether v may use the exit node k.
func (c *Compiled) leadsOut(v, k *class) bool {
	for _, i := range k.items {
		it := &c.rules.items[i]
		if !v.src.has(i) || it.caps != nil {
			continue
		}
		for _, d := range it.dst {
			if s := c.rules.sets[d.set]; s.star || s.internet {
				return true
			}
		}
	}
	return false
}

// usesRoute reports whether v may use a subnet route by a rule that leaves the router open, or has answers to send back
// there, or stands by for the route itself; and otherwise the sets of routers that rules with via send it to.
func (c *Compiled) usesRoute(v *class, p netip.Prefix) (plain bool, via []int) {
	if slices.Contains(v.routes, p) {
		return true, nil
	}
	r := c.rules
	for i := range r.items {
		it := &r.items[i]
		if v.dst.has(i) && !tailnet.IsServiceRoute(p) { // services send nothing of themselves
			s := r.sets[it.src]
			if s.star || s.all || len(s.postures) == 0 && overlaps(s.nets, p) {
				return true, nil
			}
		}
		if !v.src.has(i) || it.caps != nil {
			continue
		}
		for _, d := range it.dst {
			s := r.sets[d.set]
			if !s.star && !overlaps(s.nets, p) {
				continue
			}
			if it.via < 0 {
				return true, nil
			}
			via = append(via, it.via)
		}
	}
	return false, via
}

// UsesService reports whether viewers of a class may reach a service with this address.
func (c *Compiled) UsesService(viewer Class, a netip.Addr) bool {
	if c.allowAll {
		return true
	}
	v := c.class(viewer)
	if v == nil {
		return false
	}
	plain, via := c.usesRoute(v, netip.PrefixFrom(a, a.BitLen()))
	return plain || len(via) > 0
}

// NamesService reports whether a rule has the service, as svc:NAME, among its destinations.
func (c *Compiled) NamesService(name string) bool {
	if c.allowAll {
		return false
	}
	return slices.ContainsFunc(c.rules.sets, func(s *set) bool {
		return slices.ContainsFunc(s.targets, func(t target) bool { return t.kind == kindService && t.name == name })
	})
}

// steered is the router of p among those of the sets: the one that carries it for everybody if it is among them.
func (c *Compiled) steered(p netip.Prefix, via []int, carrier Carrier) tailnet.NodeID {
	var ids []tailnet.NodeID
	for _, e := range c.routersOf(p) {
		if k := c.class(e.class); slices.ContainsFunc(via, k.in.has) {
			ids = append(ids, e.id)
		}
	}
	if len(ids) == 0 {
		return 0
	}
	if first := carrier(p, nil); slices.Contains(ids, first) {
		return first
	}
	return carrier(p, ids)
}

// routersOf are the nodes that a subnet route is approved for and that advertise it, in the order of creation.
func (c *Compiled) routersOf(p netip.Prefix) []*entry {
	c.memo.routers.Do(func() {
		c.memo.byRoute = map[netip.Prefix][]*entry{}
		for id, b := range c.members {
			if b == nil {
				continue
			}
			for _, r := range c.class(Class(id)).routes {
				c.memo.byRoute[r] = append(c.memo.byRoute[r], b.nodes...)
			}
		}
		for _, es := range c.memo.byRoute {
			slices.SortFunc(es, func(a, b *entry) int { return cmp.Or(a.created.Compare(b.created), cmp.Compare(a.id, b.id)) })
		}
	})
	return c.memo.byRoute[p]
}
