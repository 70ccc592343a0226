package policy

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"tailscale.com/tailcfg"
)

// Change is something that one policy allows and another does not.
type Change struct {
	Opens bool     // the new policy allows it; otherwise only the old one did
	Src   []string // who: users, tags or nodes
	Dst   []string // what it reaches: users, tags or nodes, "route 10.0.0.0/8", "the internet"
	What  string   // "tcp 22", "everything", "capability example.com/cap/x", "ssh as root"
}

func (ch Change) String() string {
	verb := "closes"
	if ch.Opens {
		verb = "opens"
	}
	return fmt.Sprintf("%s: %s → %s: %s", verb, strings.Join(ch.Src, ", "), strings.Join(ch.Dst, ", "), ch.What)
}

// maxChanges is how many changes Diff tells; whoever changes more has changed everything.
const maxChanges = 1000

// Diff is what changes for the nodes of a tailnet from one policy to another. Both must be compiled for the same users and
// nodes. An empty result says that nobody gains or loses anything; attributes of nodes, which are not access, do not count. more
// says that there are further changes.
//
// It looks at kinds of nodes, not at nodes: those that both policies treat alike are one, named by their user or tags.
func Diff(old, new *Compiled) (changes []Change, more bool) {
	groups := kinds(old, new)
	found := map[string]*Change{}
	var order []string
	places := destinationsOf(old, new, groups)
	for _, a := range groups {
		for _, b := range places {
			was, is := facts{}, facts{}
			old.access(a.of(old), b.of(old), b, was)
			new.access(a.of(new), b.of(new), b, is)
			for _, side := range []struct {
				opens bool
				set   facts
			}{{true, is.without(was)}, {false, was.without(is)}} {
				for _, what := range side.set.words() {
					if len(order) >= maxChanges {
						return collect(found, order), true
					}
					key := fmt.Sprint(side.opens, b.label, what)
					if found[key] == nil {
						found[key] = &Change{Opens: side.opens, Dst: []string{b.label}, What: what}
						order = append(order, key)
					}
					if ch := found[key]; !slices.Contains(ch.Src, a.label) {
						ch.Src = append(ch.Src, a.label)
					}
				}
			}
		}
	}
	return collect(found, order), false
}

// collect puts changes together that differ in their destination only.
func collect(found map[string]*Change, order []string) []Change {
	var out []Change
	at := map[string]int{}
	for _, k := range order {
		ch := found[k]
		key := fmt.Sprint(ch.Opens, ch.Src, ch.What)
		if i, ok := at[key]; ok {
			out[i].Dst = append(out[i].Dst, ch.Dst...)
			continue
		}
		at[key] = len(out)
		out = append(out, *ch)
	}
	return out
}

// place is a kind of nodes, or what lies behind routers.
type place struct {
	label string
	ids   map[*Compiled]*entry // one node that stands for all, as each policy has it
	route netip.Prefix         // valid: this route
	world bool                 // the internet
}

func (p place) of(c *Compiled) *entry { return p.ids[c] }

// kinds are the nodes, those that neither policy tells apart put together. Untagged nodes of different users are always
// apart.
func kinds(old, new *Compiled) (out []place) {
	type key struct {
		was, is Class
		user    int64
		tags    string
	}
	at := map[key]int{}
	names := map[int][]string{}
	base := old
	if base.allowAll {
		base = new
	}
	for _, e := range base.entries {
		ids := map[*Compiled]*entry{old: old.entry(e.id), new: new.entry(e.id)}
		k := key{user: int64(e.user), tags: strings.Join(e.tags, ", ")}
		if o := ids[old]; o != nil {
			k.was = o.class
		}
		if n := ids[new]; n != nil {
			k.is = n.class
		}
		i, ok := at[k]
		if !ok {
			i = len(out)
			at[k] = i
			label := k.tags
			if u := base.user(e.user); u != nil {
				label = u.user.LoginName()
			}
			out = append(out, place{label: label, ids: ids})
		}
		names[i] = append(names[i], e.node.Name)
	}
	seen := map[string]int{}
	for i := range out {
		seen[out[i].label]++
	}
	for i := range out {
		if n := out[i].label; n == "" || seen[n] > 1 { // the user or the tags do not tell them apart: name the nodes
			list := names[i]
			if len(list) > 3 {
				list = append(slices.Clone(list[:3]), fmt.Sprintf("%d more", len(list)-3))
			}
			out[i].label = strings.TrimSpace(n + " (" + strings.Join(list, ", ") + ")")
		}
	}
	return out
}

func destinationsOf(old, new *Compiled, groups []place) []place {
	out := slices.Clone(groups)
	routes := map[netip.Prefix]bool{}
	exit := false
	for _, c := range []*Compiled{old, new} {
		for _, s := range c.subnets {
			routes[s.net] = true
		}
		for _, g := range groups {
			if e := g.of(c); e != nil && c.class(e.class) != nil && c.class(e.class).exit {
				exit = true
			}
		}
	}
	for _, r := range slices.SortedFunc(maps.Keys(routes), comparePrefix) {
		out = append(out, place{label: "route " + r.String(), route: r})
	}
	if exit {
		out = append(out, place{label: "the internet", world: true})
	}
	return out
}

// facts are port ranges by protocol, and things that are there or not (without ranges).
type facts map[string][]tailcfg.PortRange

func (f facts) add(what string, ranges ...tailcfg.PortRange) { f[what] = append(f[what], ranges...) }

// open adds ports of protocols; none are the default ones.
func (f facts) open(protos []int, ranges []tailcfg.PortRange) {
	if len(protos) == 0 {
		protos = defaultProtos
	}
	for _, p := range protos {
		f.add(protoName(p), ranges...)
	}
}

// without is what is in f and not in g.
func (f facts) without(g facts) facts {
	out := facts{}
	for what, ranges := range f {
		has, there := g[what]
		if len(ranges) == 0 {
			if !there {
				out[what] = nil
			}
			continue
		}
		if rest := subtract(ranges, has); len(rest) > 0 {
			out[what] = rest
		}
	}
	return out
}

// subtract is the ports of a that are not in b, as few ranges as possible.
func subtract(a, b []tailcfg.PortRange) (out []tailcfg.PortRange) {
	edges := []int{}
	for _, r := range slices.Concat(a, b) {
		edges = append(edges, int(r.First), int(r.Last)+1)
	}
	slices.Sort(edges)
	edges = slices.Compact(edges)
	in := func(rs []tailcfg.PortRange, p int) bool {
		return slices.ContainsFunc(rs, func(r tailcfg.PortRange) bool { return r.Contains(uint16(p)) })
	}
	for i := 0; i+1 < len(edges); i++ {
		lo, hi := edges[i], edges[i+1]-1
		if !in(a, lo) || in(b, lo) {
			continue
		}
		if n := len(out); n > 0 && int(out[n-1].Last) == lo-1 {
			out[n-1].Last = uint16(hi)
		} else {
			out = append(out, tailcfg.PortRange{First: uint16(lo), Last: uint16(hi)})
		}
	}
	return out
}

// words are the facts for people, sorted. The default protocols together need no name.
func (f facts) words() (out []string) {
	same := len(f["tcp"]) > 0
	for _, p := range defaultProtos {
		same = same && slices.Equal(f[protoName(p)], f["tcp"])
	}
	if same {
		out = append(out, opens(nil, f["tcp"]))
		f = maps.Clone(f)
		for _, p := range defaultProtos {
			delete(f, protoName(p))
		}
	}
	for _, what := range slices.Sorted(maps.Keys(f)) {
		ranges := f[what]
		switch {
		case len(ranges) == 0:
			out = append(out, what)
		case slices.Equal(ranges, []tailcfg.PortRange{tailcfg.PortRangeAny}):
			out = append(out, what)
		default:
			out = append(out, what+" "+strings.TrimPrefix(opens(nil, ranges), "port "))
		}
	}
	return out
}

// access collects what a may do at a place.
func (c *Compiled) access(a, b *entry, at place, f facts) {
	if c.allowAll {
		f.open(nil, []tailcfg.PortRange{tailcfg.PortRangeAny})
		return
	}
	if a == nil {
		return
	}
	k := c.class(a.class)
	for i := range c.rules.items {
		it := &c.rules.items[i]
		if !k.in.has(it.src) {
			continue
		}
		for _, d := range it.dst {
			if !c.reachesPlace(a, b, at, it, d.set) {
				continue
			}
			for name := range it.caps {
				f.add("capability " + string(name))
			}
			if it.caps != nil {
				continue
			}
			f.open(it.protos, d.ranges)
		}
	}
	if b != nil && a.node != nil && b.node != nil {
		c.sshFacts(a, b, f)
	}
}

func (c *Compiled) reachesPlace(a, b *entry, at place, it *item, set int) bool {
	s := c.rules.sets[set]
	switch {
	case at.route.IsValid():
		return !it.self && it.caps == nil && (s.star || overlaps(s.nets, at.route))
	case at.world:
		return !it.self && it.caps == nil && (s.star || s.internet)
	case b == nil || it.via >= 0:
		return false
	case it.self:
		return a.user != 0 && a.user == b.user
	}
	return c.class(b.class).in.has(set)
}

// sshFacts are the sessions that a may open on b, by the names that the policy has.
func (c *Compiled) sshFacts(a, b *entry, f facts) {
	names := map[string]bool{}
	for _, it := range c.rules.ssh {
		for _, u := range it.rule.users {
			names[u] = true
		}
		if it.rule.nonroot {
			names["any user but root"] = true
		}
		if u := c.user(a.user); u != nil {
			if local, ok := it.rule.localUser(u.user); ok {
				names[local] = true
			}
		}
	}
	for name := range names {
		if d := c.SSH(a.node, b.node, name); d.Allowed {
			what := "ssh as " + name
			if d.Check {
				what += ", after a check"
			}
			f.add(what)
		}
	}
}
