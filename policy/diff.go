package policy

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"tailscale.com/tailcfg"

	"github.com/skein-vpn/skein/tailnet"
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

// Bounds of what Diff tells. Whoever changes more has changed everything.
const (
	maxChanges = 1000      // changes told in words
	maxNames   = 100       // names on one side of a change
	maxCompare = 2_000_000 // pairs of kinds that are looked at
	maxMore    = 30_000    // further changes that are counted
)

// ownDevices is the destination of what a change does between the devices of one user, where it does so for several.
const ownDevices = "their own devices"

// Diff is what changes for the nodes of a tailnet from one policy to another. Both must be compiled for the same users and
// nodes. An empty result says that nobody gains or loses anything; attributes of nodes, which are not access, do not
// count. more is how many further changes there are which are not told; -1: there are so many that not all kinds of nodes were
// looked at, and what is told may be about others too.
//
// It looks at kinds of nodes, not at nodes: those that both policies treat alike are one kind, and what one kind may do at
// another is the AND of two rows of bits, worked out in words once for each result. So the cost is the square of the
// kinds, not of the users.
func Diff(old, new *Compiled) (changes []Change, more int) {
	kinds := kindsOf(old, new)
	places := placesOf(old, new, kinds)
	names := sshNames(old, new)
	d := &differ{was: newScope(old, kinds, places, names), is: newScope(new, kinds, places, names), found: map[string]*found{}, memo: map[[2]int32][]fact{}}
	compareScopes(d.was, d.is)
	compared := 0
	for i := range kinds {
		for j := range places {
			if compared++; compared > maxCompare || d.more > maxMore {
				return d.changes(), -1
			}
			a, b := &kinds[i], &places[j]
			var others []fact
			if b.kind == nil || a.meetsOther(b.kind) {
				others = d.between(i, j, false)
				d.tell(others, a.label, b.label)
			}
			if b.kind == nil || a.users[0] != nil {
				continue
			}
			var own []fact
			for _, f := range d.between(i, j, true) {
				if !slices.Contains(others, f) {
					own = append(own, f)
				}
			}
			if len(own) == 0 {
				continue
			}
			dst := b.label
			if len(b.kind.users) > 1 || len(a.users) > 1 {
				dst = []string{ownDevices}
			}
			if src := a.own(b.kind); len(src) > 0 {
				d.tell(own, src, dst)
			}
		}
	}
	return d.changes(), d.more
}

// fact is something that one of two policies alone allows.
type fact struct {
	opens bool
	what  string
}

// found is a change with the kinds that it is about, for each of its destinations.
type found struct {
	fact
	src, dst []string
}

type differ struct {
	was, is *scope
	found   map[string]*found
	order   []*found
	more    int
	beyond  map[string]bool
	memo    map[[2]int32][]fact
}

// between is what changes for kind i at place j: between different owners, or (own) between devices of one user.
func (d *differ) between(i, j int, own bool) []fact {
	if d.was.same(i, j, own) && d.is.same(i, j, own) {
		return nil
	}
	key := [2]int32{d.was.at(i, j, own), d.is.at(i, j, own)}
	out, ok := d.memo[key]
	if !ok {
		was, is := d.was.results[key[0]], d.is.results[key[1]]
		for _, what := range withoutNamed(is.without(was).words()) {
			out = append(out, fact{true, what})
		}
		for _, what := range withoutNamed(was.without(is).words()) {
			out = append(out, fact{false, what})
		}
		d.memo[key] = out
	}
	return out
}

// What sessions of SSH are called.
const (
	asName     = "ssh as "
	anyName    = "any user but root"
	ownName    = "the user of one's own name"
	afterCheck = ", after a check"
)

// withoutNamed leaves out sessions as single users where those as any user are there.
func withoutNamed(words []string) []string {
	return slices.DeleteFunc(words, func(w string) bool {
		name, ok := strings.CutPrefix(w, asName)
		name, checked := strings.CutSuffix(name, afterCheck)
		all := asName + anyName
		if checked {
			all += afterCheck
		}
		return ok && name != "root" && w != all && slices.Contains(words, all)
	})
}

func (d *differ) tell(facts []fact, src, dst []string) {
	for _, f := range facts {
		key := fmt.Sprint(f.opens, dst, f.what)
		ch := d.found[key]
		if ch == nil && len(d.order) >= maxChanges {
			if d.beyond == nil {
				d.beyond = map[string]bool{}
			}
			if !d.beyond[key] && len(d.beyond) <= maxMore {
				d.beyond[key] = true
				d.more++
			}
			continue
		}
		if ch == nil {
			ch = &found{fact: f, dst: dst}
			d.found[key], d.order = ch, append(d.order, ch)
		}
		ch.src = append(ch.src, src...)
	}
}

// changes puts together what differs in its destination only.
func (d *differ) changes() []Change {
	var out []Change
	at := map[string]int{}
	for _, ch := range d.order {
		slices.Sort(ch.src)
		ch.src = slices.Compact(ch.src)
		key := fmt.Sprint(ch.opens, ch.src, ch.what)
		i, ok := at[key]
		if !ok {
			i = len(out)
			at[key] = i
			out = append(out, Change{Opens: ch.opens, Src: ch.src, What: ch.what})
		}
		out[i].Dst = append(out[i].Dst, ch.dst...)
	}
	for i := range out {
		slices.Sort(out[i].Dst)
		out[i].Src, out[i].Dst = shorten(out[i].Src), shorten(slices.Compact(out[i].Dst))
	}
	return out
}

// shorten leaves of too many names the first ones, and says how many there are more.
func shorten(names []string) []string {
	if len(names) <= maxNames {
		return names
	}
	return append(slices.Clone(names[:maxNames]), fmt.Sprintf("%d more", len(names)-maxNames))
}

// diffKind is nodes that neither policy tells apart, but for autogroup:self.
type diffKind struct {
	label []string                    // of its users, tags or nodes
	users map[tailnet.UserID][]string // owner (0 if tagged) → its part of label
	one   map[*Compiled]*entry        // that stands for all
}

// meetsOther reports whether a node of k and one of o have different owners, or none.
func (k *diffKind) meetsOther(o *diffKind) bool {
	if len(k.users) != 1 || len(o.users) != 1 {
		return true
	}
	for u := range k.users {
		return u == 0 || o.users[u] == nil
	}
	return true
}

// own are the owners of nodes of k that own nodes of o too, as the label of k calls them.
func (k *diffKind) own(o *diffKind) (names []string) {
	for u, of := range k.users {
		if u != 0 && o.users[u] != nil {
			names = append(names, of...)
		}
	}
	return names
}

// place is a kind of nodes, or what lies behind routers.
type place struct {
	label []string
	kind  *diffKind    // nil: a route or the internet
	route netip.Prefix // valid: this route
	world bool         // the internet
}

// owned is the nodes of one user, or with the same tags, in one kind.
type owned struct {
	user  tailnet.UserID
	name  string
	nodes []string
	kind  int
}

// kindsOf sorts the nodes into kinds.
func kindsOf(old, new *Compiled) (out []diffKind) {
	type key struct {
		was, is Class
		tags    string
		logins  string // what localpart:*@DOMAIN makes of the user, which classes do not tell
	}
	type memberKey struct {
		key
		user tailnet.UserID
	}
	at, mat := map[key]int{}, map[memberKey]int{}
	var members []owned
	base := old
	if base.allowAll {
		base = new
	}
	for _, e := range base.entries {
		one := map[*Compiled]*entry{old: old.entry(e.id), new: new.entry(e.id)}
		k := key{was: NoClass, is: NoClass, tags: strings.Join(e.tags, "+"), logins: old.logins(e.user) + "|" + new.logins(e.user)}
		if o := one[old]; o != nil {
			k.was = o.class
		}
		if n := one[new]; n != nil {
			k.is = n.class
		}
		i, ok := at[k]
		if !ok {
			i = len(out)
			at[k] = i
			out = append(out, diffKind{one: one, users: map[tailnet.UserID][]string{}})
		}
		m, ok := mat[memberKey{k, e.user}]
		if !ok {
			m = len(members)
			mat[memberKey{k, e.user}] = m
			name := k.tags
			if u := base.user(e.user); u != nil {
				name = u.user.LoginName()
			}
			members = append(members, owned{user: e.user, name: name, kind: i})
		}
		members[m].nodes = append(members[m].nodes, e.node.Name)
	}
	seen := map[string]int{}
	for _, m := range members {
		seen[m.name]++
	}
	for _, m := range members {
		if m.name == "" || seen[m.name] > 1 { // the user or the tags do not tell them apart: name the nodes
			list := m.nodes
			if len(list) > 3 {
				list = append(slices.Clone(list[:3]), fmt.Sprintf("%d more", len(list)-3))
			}
			m.name = strings.TrimSpace(m.name + " (" + strings.Join(list, ", ") + ")")
		}
		out[m.kind].label = append(out[m.kind].label, m.name)
		out[m.kind].users[m.user] = append(out[m.kind].users[m.user], m.name)
	}
	return out
}

// logins says which ssh rules give the user a login of its own name.
func (c *Compiled) logins(id tailnet.UserID) string {
	if c.allowAll || id == 0 {
		return ""
	}
	out := ""
	for i, it := range c.rules.ssh {
		if u := c.user(id); u != nil && len(it.rule.domains) > 0 {
			if _, ok := it.rule.localUser(u.user); ok {
				out += fmt.Sprint(i, " ")
			}
		}
	}
	return out
}

func placesOf(old, new *Compiled, kinds []diffKind) (out []place) {
	routes := map[netip.Prefix]bool{}
	exit := false
	for i := range kinds {
		out = append(out, place{label: kinds[i].label, kind: &kinds[i]})
	}
	for _, c := range []*Compiled{old, new} {
		for _, s := range c.subnets {
			routes[s.net] = true
		}
		for _, k := range kinds {
			if e := k.one[c]; e != nil && c.class(e.class) != nil && c.class(e.class).exit {
				exit = true
			}
		}
	}
	for _, r := range slices.SortedFunc(maps.Keys(routes), comparePrefix) {
		out = append(out, place{label: []string{"route " + r.String()}, route: r})
	}
	if exit {
		out = append(out, place{label: []string{"the internet"}, world: true})
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
