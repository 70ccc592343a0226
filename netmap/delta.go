package netmap

import (
	"cmp"
	"net/netip"
	"slices"
	"sync"

	"tailscale.com/tailcfg"

	"github.com/skein-vpn/skein/dns"
	"github.com/skein-vpn/skein/policy"
	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// maxSteps is how many steps between snapshots are remembered. Sessions that are further apart make theirs anew.
const maxSteps = 32

// step is the way from one snapshot to another.
type step struct {
	from, to *state.Snapshot

	once    sync.Once
	changed []*change        // sorted by id; with all, every node of both
	all     bool             // nodes may look different, themselves included, though their entries are the same
	renames bool             // all look different
	renamed []tailnet.UserID // users that look different

	nodesOnly bool // nothing is different but the nodes in changed

	mu     sync.Mutex
	frames map[frameKey]*shared // guarded by mu
}

// change is one node before and after; nil where it is not there. What viewers are told of it is encoded once.
type change struct {
	old, new *state.Node

	wholeOnce, newsOnce sync.Once
	whole               []byte   // new, for those who did not see it before
	patches             [][]byte // for those who did: nothing if they see no difference,
	replace             bool     // or else the whole peer
}

// wholeIn is the whole peer as the snapshot to shows it to an audience.
func (c *change) wholeIn(to *state.Snapshot, a audience) []byte {
	if !sameForAll(to, c.new) {
		return marshal(peerNode(to, c.new, a))
	}
	c.wholeOnce.Do(func() { c.whole = marshal(peerNode(to, c.new, a)) })
	return c.whole
}

// news is what those are told who saw the peer in from, as the audience before, and see it in to, as the audience after.
func (c *change) news(from, to *state.Snapshot, before, after audience) (patches [][]byte, replace bool) {
	if !sameForAll(from, c.old) || !sameForAll(to, c.new) {
		return newsOf(peerNode(from, c.old, before), peerNode(to, c.new, after))
	}
	c.newsOnce.Do(func() { c.patches, c.replace = newsOf(peerNode(from, c.old, before), peerNode(to, c.new, after)) })
	return c.patches, c.replace
}

func newsOf(was, is *tailcfg.Node) (patches [][]byte, replace bool) {
	ps, ok := patch(was, is)
	if !ok {
		return nil, true
	}
	for _, p := range ps {
		patches = append(patches, marshal(p))
	}
	return patches, false
}

func (c *change) id() tailnet.NodeID {
	if c.new != nil {
		return c.new.ID
	}
	return c.old.ID
}

// frameKey is what viewers must have in common to share a delta.
type frameKey struct {
	before, after audience
	compress      bool
	had, gets     *tailcfg.DERPMap // their variants of the relay map
}

// shared is what the viewers of one kind are told alike.
type shared struct {
	once  sync.Once
	about []tailnet.NodeID // the nodes it tells something about; sorted
	body  []byte           // the message; nil: nothing
	frame Frame            // body

	tailOnce sync.Once
	sealed   []byte // body as the rest of a message that has begun with other fields
}

func (s *shared) tail(compress bool) []byte {
	s.tailOnce.Do(func() { s.sealed = seal(compress, append([]byte{','}, s.body[1:]...)) })
	return s.sealed
}

// Delta is what v must be told to get from one snapshot to a later one; ok is false if that is nothing. Both must hold
// v's node.
func (e *Encoder) Delta(from, to *state.Snapshot, v Viewer) (f Frame, ok bool) {
	st := e.step(from, to)
	before, after := from.Node(v.Node), to.Node(v.Node)
	if st.renames {
		return e.renamed(st, v, before, after), true
	}
	k := st.key(before, after, v)
	if st.alike(before, after, v) {
		s := st.shared(k, v)
		return s.frame, s.body != nil
	}
	o := e.own(st, v, before, after)
	if s := st.shared(k, v); before.Owner() == after.Owner() && !s.tells(v.Node) {
		switch {
		case s.body == nil:
		case o.empty():
			return s.frame, true
		default:
			return newFrame(seal(v.Compress, o.b), s.tail(v.Compress)), true
		}
	} else {
		st.common(o, v, k.before, k.after, v.Node)
	}
	if o.empty() {
		return Frame{}, false
	}
	return newFrame(seal(v.Compress, o.close())), true
}

// key is what v, which is before and after, has in common with others.
func (st *step) key(before, after *state.Node, v Viewer) frameKey {
	return frameKey{audienceOf(st.from, before), audienceOf(st.to, after), v.Compress, st.from.DERP.For(v.Capver), st.to.DERP.For(v.Capver)}
}

// alike reports whether v, which is before and after, is told what its audience is told and nothing about itself.
func (st *step) alike(before, after *state.Node, v Viewer) bool {
	return before == after && !st.all && st.to.Policy.Same(st.from.Policy, after.Node, v.Capver)
}

// Look finds out, for one viewer after the other, whom a snapshot brings nothing new. It is not safe for concurrent use.
type Look struct {
	e       *Encoder
	to      *state.Snapshot
	st      *step
	key     frameKey // of the viewer before this one
	nothing bool     // for viewers with key
}

// Look looks at sn.
func (e *Encoder) Look(sn *state.Snapshot) *Look { return &Look{e: e, to: sn} }

// Nothing reports whether Delta has nothing for v on the way from an earlier snapshot. It may be false although Delta finds nothing:
// what a viewer is told about itself is not looked at. So for most viewers it costs no more than a few comparisons.
func (l *Look) Nothing(from *state.Snapshot, v Viewer) bool {
	before, after := from.Node(v.Node), l.to.Node(v.Node)
	if before == nil || before != after {
		return false
	}
	fresh := l.st == nil || l.st.from != from
	if fresh {
		l.st = l.e.step(from, l.to)
	}
	if l.st.renames || !l.st.alike(before, after, v) {
		return false
	}
	if k := l.st.key(before, after, v); fresh || k != l.key {
		l.key, l.nothing = k, l.st.unseen(k) || l.st.shared(k, v).body == nil
	}
	return l.nothing
}

// renamed is the delta when all nodes have other names, and so all peers are to be told whole. They come in the blocks that full maps
// are made of.
func (e *Encoder) renamed(st *step, v Viewer, before, after *state.Node) Frame {
	o := e.own(st, v, before, after)
	st.common(o, v, audienceOf(st.from, before), audienceOf(st.to, after), v.Node)
	o.key("PeersChanged")
	parts, any := e.view(st.to, viewKeyOf(st.to, after, v)).appendPeers([][]byte{nil}, after)
	if !any {
		o.b = append(o.b, "[]}"...)
		return newFrame(seal(v.Compress, o.b))
	}
	parts[0] = seal(v.Compress, append(o.b, '['))
	return newFrame(append(parts, closing[v.Compress])...)
}

// shared is what the viewers with this key are told, made by the first who asks.
func (st *step) shared(k frameKey, v Viewer) *shared {
	st.mu.Lock()
	s := st.frames[k]
	if s == nil {
		s = &shared{}
		st.frames[k] = s
	}
	st.mu.Unlock()
	s.once.Do(func() {
		var o object
		s.about = st.common(&o, v, k.before, k.after, 0)
		if !o.empty() {
			s.body = o.close()
			s.frame = newFrame(seal(k.compress, s.body))
		}
	})
	return s
}

// tells reports whether something is said about a node.
func (s *shared) tells(id tailnet.NodeID) bool {
	_, ok := slices.BinarySearch(s.about, id)
	return ok
}

// own is what a viewer is told about itself, if it changed or looks different.
func (e *Encoder) own(st *step, v Viewer, before, after *state.Node) *object {
	o := &object{}
	if self := marshal(e.selfNode(st.to, after)); !slices.Equal(self, marshal(e.selfNode(st.from, before))) {
		o.key("Node")
		o.b = append(o.b, self...)
	}
	if st.from.Policy == st.to.Policy && sameTraffic(before, after) {
		return o
	}
	setFiltersAfter(o, st, before, after, v)
	ssh := marshal(st.to.Policy.SSHFor(after.Node))
	if !slices.Equal(ssh, marshal(st.from.Policy.SSHFor(before.Node))) {
		o.key("SSHPolicy")
		o.b = append(o.b, ssh...)
	}
	return o
}

// sameTraffic reports whether one policy makes the same filters for a node before and after. That a policy is the same value
// says that it finds nothing different about any node, but filters look at routes that are not approved, too.
func sameTraffic(before, after *state.Node) bool {
	return before.IPv4 == after.IPv4 && before.IPv6 == after.IPv6 && slices.Equal(before.ApprovedRoutes, after.ApprovedRoutes) &&
		slices.Equal(before.AdvertisedRoutes(), after.AdvertisedRoutes()) && slices.Equal(before.ActiveRoutes(), after.ActiveRoutes()) &&
		(len(before.Hostings) == 0) == (len(after.Hostings) == 0)
}

// common adds what all viewers of an audience are told, except about the node self (0: nobody), and without the peers that are
// told whole if all are (renames). about are the nodes that something is said about, sorted.
func (st *step) common(o *object, v Viewer, before, after audience, self tailnet.NodeID) (about []tailnet.NodeID) {
	changed := st.changed
	if before != after && !st.all {
		changed = pairs(st.from.Nodes(), st.to.Nodes(), false)
	}
	past, present := st.eyes(before, after, len(changed))
	var peers, patches [][]byte
	var removed []tailcfg.NodeID
	owners := map[tailnet.UserID]bool{}
	for _, id := range st.renamed {
		owners[id] = true
	}
	for _, c := range changed {
		if c.id() == self && self != 0 {
			if c.old.Owner() != c.new.Owner() {
				owners[c.new.Owner()] = true
			}
			continue
		}
		did, does := past.sees(c.old), present.sees(c.new)
		said := len(removed) + len(peers) + len(patches)
		switch {
		case did && !does:
			removed = append(removed, c.id().Tailcfg())
		case st.renames:
			if does && (!did || c.old.Owner() != c.new.Owner()) {
				owners[c.new.Owner()] = true
			}
		case !did && does:
			peers = append(peers, c.wholeIn(st.to, after))
			owners[c.new.Owner()] = true
		case did && does:
			ps, replace := c.news(st.from, st.to, before, after)
			patches = append(patches, ps...)
			if replace {
				peers = append(peers, c.wholeIn(st.to, after))
				owners[c.new.Owner()] = true
			}
		}
		if len(removed)+len(peers)+len(patches) > said {
			about = append(about, c.id())
		}
	}
	// A reload makes new values that may say the same, and either field makes clients rebuild their netmaps.
	if had, gets := st.from.DERP.For(v.Capver), st.to.DERP.For(v.Capver); had != gets && !slices.Equal(marshal(had), marshal(gets)) {
		o.set("DERPMap", derpMapAfter(had, gets))
	}
	if had, gets := st.from.DERP.Dial, st.to.DERP.Dial; gets != nil && had != gets && !slices.Equal(marshal(had), marshal(gets)) {
		o.set("ControlDialPlan", gets)
	}
	named := len(st.from.Services())+len(st.to.Services()) > 0 && (st.all || before != after || !sameServices(st.from, st.to))
	if st.from.DNS != st.to.DNS || named {
		if config := marshal(dnsConfig(st.to, after)); !slices.Equal(config, marshal(dnsConfig(st.from, before))) {
			o.key("DNSConfig")
			o.b = append(o.b, config...)
		}
		if st.from.DNS.Base != st.to.DNS.Base {
			o.set("Domain", st.to.DNS.Base)
		}
	}
	o.list("PeersChanged", peers)
	if len(removed) > 0 {
		o.set("PeersRemoved", removed)
	}
	o.list("PeersChangedPatch", patches)
	o.list("UserProfiles", profilesOf(st.to, owners))
	return about
}

// fewChanges are looked at for each audience without remembering anything.
const fewChanges = 8

// eyes are those of viewers before and after, for so many changes.
func (st *step) eyes(before, after audience, changes int) (past, present eyes) {
	remember := changes > fewChanges
	return eyes{audience: before, p: st.from.Policy, remember: remember}, eyes{audience: after, p: st.to.Policy, remember: remember}
}

// unseen reports whether viewers with this key are told nothing because they see none of the few nodes that changed, and nothing else
// did. Where each user's devices are an audience of their own, most of these need no frame then.
func (st *step) unseen(k frameKey) bool {
	if !st.nodesOnly || k.before != k.after || len(st.changed) > fewChanges {
		return false
	}
	past, present := st.eyes(k.before, k.after, len(st.changed))
	return !slices.ContainsFunc(st.changed, func(c *change) bool { return past.sees(c.old) || present.sees(c.new) })
}

// pairs walks two lists sorted by id; with onlyChanged it leaves out nodes that are the same value in both.
func pairs(from, to []*state.Node, onlyChanged bool) (out []*change) {
	for len(from) > 0 || len(to) > 0 {
		if onlyChanged && len(from) > 0 && len(to) > 0 && from[0] == to[0] {
			from, to = from[1:], to[1:]
			continue
		}
		c := &change{}
		switch {
		case len(to) == 0 || len(from) > 0 && from[0].ID < to[0].ID:
			c.old, from = from[0], from[1:]
		case len(from) == 0 || to[0].ID < from[0].ID:
			c.new, to = to[0], to[1:]
		default:
			c.old, c.new, from, to = from[0], to[0], from[1:], to[1:]
		}
		out = append(out, c)
	}
	return out
}

// step is the step between two snapshots, made by the first who asks.
func (e *Encoder) step(from, to *state.Snapshot) *step {
	e.mu.Lock()
	i := slices.IndexFunc(e.steps, func(s *step) bool { return s.from == from && s.to == to })
	var st *step
	if i >= 0 {
		st = e.steps[i]
	} else {
		st = &step{from: from, to: to, frames: map[frameKey]*shared{}}
		if len(e.steps) >= maxSteps {
			e.steps = slices.Delete(e.steps, 0, 1)
		}
		e.steps = append(e.steps, st)
	}
	e.mu.Unlock()
	st.once.Do(func() {
		st.renames = from.DNS.Base != to.DNS.Base
		st.all = !from.Policy.SameRules(to.Policy) || from.DNS.Base != to.DNS.Base || from.DERP.Home != to.DERP.Home
		st.changed = pairs(from.Nodes(), to.Nodes(), !st.all)
		if !st.all && to.Policy.Policy() != nil {
			st.changed = withRouters(st.changed, to)
		}
		if !st.all && from.DNS == to.DNS && from.DERP == to.DERP {
			e.share(st)
		}
		st.renamed = renamedUsers(from, to)
		st.nodesOnly = !st.all && len(st.renamed) == 0 && from.DNS == to.DNS && from.DERP == to.DERP && sameServices(from, to)
	})
	return st
}

// maxNews is how many changes are remembered for other steps; beyond that all are forgotten.
const maxNews = 4096

// news are changes that several steps may have in common. When a fleet comes back, each session begins with another snapshot and
// makes a step of its own, but what is said of a node in them is mostly the same.
type news struct {
	rules *policy.Compiled // of these all but users and nodes counts
	dns   *dns.Settings
	derp  *state.DERPMaps
	of    map[[2]*state.Node]*change
}

// share puts changes that other steps have as well in place of the step's.
func (e *Encoder) share(st *step) {
	e.mu.Lock()
	defer e.mu.Unlock()
	n := &e.news
	if n.rules == nil || !n.rules.SameRules(st.to.Policy) || n.dns != st.to.DNS || n.derp != st.to.DERP || len(n.of) > maxNews {
		*n = news{st.to.Policy, st.to.DNS, st.to.DERP, map[[2]*state.Node]*change{}}
	}
	for i, c := range st.changed {
		k := [2]*state.Node{c.old, c.new}
		if other := n.of[k]; other != nil {
			st.changed[i] = other
		} else {
			n.of[k] = c
		}
	}
}

// withRouters adds to the changes the routers that share a prefix with one that changed: where a policy steers viewers to
// some of the routers, another one may carry the prefix for them now, though nothing about itself is different.
func withRouters(changed []*change, to *state.Snapshot) []*change {
	moved := map[netip.Prefix]bool{}
	is := map[tailnet.NodeID]bool{}
	for _, c := range changed {
		is[c.id()] = true
		for _, n := range []*state.Node{c.old, c.new} {
			if n != nil {
				for _, p := range n.ActiveRoutes() {
					moved[p] = true
				}
			}
		}
	}
	if len(moved) == 0 {
		return changed
	}
	for _, n := range to.Nodes() {
		if !is[n.ID] && slices.ContainsFunc(n.ActiveRoutes(), func(p netip.Prefix) bool { return moved[p] }) {
			changed = append(changed, &change{old: n, new: n})
		}
	}
	slices.SortFunc(changed, func(a, b *change) int { return cmp.Compare(a.id(), b.id()) })
	return changed
}

// renamedUsers are the users that are in both snapshots and look different; new ones come with their nodes.
func renamedUsers(from, to *state.Snapshot) (out []tailnet.UserID) {
	was, is := from.Users(), to.Users()
	if len(was) == len(is) && (len(is) == 0 || &was[0] == &is[0]) {
		return nil
	}
	for _, u := range is {
		if old := from.User(u.ID); old != nil && old != u {
			out = append(out, u.ID)
		}
	}
	return out
}

// derpMapAfter is m for a client that was sent had before: parts that are left out keep what they were, so those that are
// gone are said to be empty (tailcfg.DERPMap, tailcfg.DERPHomeParams).
func derpMapAfter(had, m *tailcfg.DERPMap) any {
	type homeParams struct{ RegionScore map[int]float64 }
	out := struct {
		HomeParams         *homeParams `json:",omitempty"`
		Regions            map[int]*tailcfg.DERPRegion
		OmitDefaultRegions bool `json:"omitDefaultRegions,omitempty"`
	}{nil, m.Regions, m.OmitDefaultRegions}
	if m.HomeParams != nil || had.HomeParams != nil {
		out.HomeParams = &homeParams{map[int]float64{}}
		if m.HomeParams != nil && m.HomeParams.RegionScore != nil {
			out.HomeParams.RegionScore = m.HomeParams.RegionScore
		}
	}
	if out.Regions == nil {
		out.Regions = map[int]*tailcfg.DERPRegion{}
	}
	return out
}
