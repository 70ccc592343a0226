package netmap

import (
	"slices"
	"sync"

	"tailscale.com/tailcfg"

	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// maxSteps is how many steps between snapshots are remembered. Sessions that are further apart make theirs anew.
const maxSteps = 64

// step is the way from one snapshot to another.
type step struct {
	from, to *state.Snapshot

	once    sync.Once
	changed []change // sorted by id
	all     bool     // who sees whom may have changed for nodes that did not

	mu     sync.Mutex
	frames map[frameKey]*shared // guarded by mu
}

// change is one node before and after; nil where it is not there.
type change struct{ old, new *state.Node }

func (c change) id() tailnet.NodeID {
	if c.new != nil {
		return c.new.ID
	}
	return c.old.ID
}

// frameKey is what viewers must have in common to share a delta.
type frameKey struct {
	before, after audience
	compress      bool
	derp          *tailcfg.DERPMap // the variant of the relay map that they get
}

type shared struct {
	once  sync.Once
	frame Frame
	any   bool
}

// Delta is what v must be told to get from one snapshot to a later one; ok is false if that is nothing. Both must hold
// v's node.
func (e *Encoder) Delta(from, to *state.Snapshot, v Viewer) (f Frame, ok bool) {
	st := e.step(from, to)
	before, after := from.Node(v.Node), to.Node(v.Node)
	if before != after || from.Policy != to.Policy {
		o := e.own(st, v, before, after)
		if o.empty() {
			return Frame{}, false
		}
		return newFrame(seal(v.Compress, o.close())), true
	}
	k := frameKey{audienceOf(before), audienceOf(after), v.Compress, to.DERP.For(v.Capver)}
	st.mu.Lock()
	s := st.frames[k]
	if s == nil {
		s = &shared{}
		st.frames[k] = s
	}
	st.mu.Unlock()
	s.once.Do(func() {
		var o object
		st.common(&o, v, k.before, k.after, 0)
		if !o.empty() {
			s.frame, s.any = newFrame(seal(v.Compress, o.close())), true
		}
	})
	return s.frame, s.any
}

// own is the delta for a viewer that changed itself.
func (e *Encoder) own(st *step, v Viewer, before, after *state.Node) *object {
	o := &object{}
	if self := marshal(e.selfNode(st.to, after)); !slices.Equal(self, marshal(e.selfNode(st.from, before))) {
		o.key("Node")
		o.b = append(o.b, self...)
	}
	filter := marshal(st.to.Policy.FilterFor(after.Node))
	if !slices.Equal(filter, marshal(st.from.Policy.FilterFor(before.Node))) {
		o.key("PacketFilter")
		o.b = append(o.b, filter...)
	}
	st.common(o, v, audienceOf(before), audienceOf(after), v.Node)
	return o
}

// common adds what all viewers of an audience are told, except about the node self (0: nobody).
func (st *step) common(o *object, v Viewer, before, after audience, self tailnet.NodeID) {
	changed := st.changed
	if st.all || before != after {
		changed = st.everything()
	}
	var peers, patches [][]byte
	var removed []tailcfg.NodeID
	owners := map[tailnet.UserID]bool{}
	for _, c := range changed {
		if c.id() == self && self != 0 {
			if c.old.Owner() != c.new.Owner() {
				owners[c.new.Owner()] = true
			}
			continue
		}
		did, does := before.sees(st.from.Policy, c.old), after.sees(st.to.Policy, c.new)
		switch {
		case did && !does:
			removed = append(removed, c.id().Tailcfg())
		case !did && does:
			peers = append(peers, marshal(peerNode(st.to, c.new)))
			owners[c.new.Owner()] = true
		case did && does:
			is := peerNode(st.to, c.new)
			p, ok := patch(peerNode(st.from, c.old), is)
			if !ok {
				peers = append(peers, marshal(is))
				owners[c.new.Owner()] = true
			} else if p != nil {
				patches = append(patches, marshal(p))
			}
		}
	}
	if st.from.DERP.For(v.Capver) != st.to.DERP.For(v.Capver) {
		o.set("DERPMap", st.to.DERP.For(v.Capver))
	}
	if st.from.DNS != st.to.DNS {
		o.set("DNSConfig", st.to.DNS.Config())
		if st.from.DNS.Base != st.to.DNS.Base {
			o.set("Domain", st.to.DNS.Base)
		}
	}
	o.list("PeersChanged", peers)
	if len(removed) > 0 {
		o.set("PeersRemoved", removed)
	}
	o.list("PeersChangedPatch", patches)
	for _, u := range st.to.Users() { // a renamed user; new ones come with their nodes
		if old := st.from.User(u.ID); old != nil && old != u {
			owners[u.ID] = true
		}
	}
	o.list("UserProfiles", profilesOf(st.to, owners))
}

// everything pairs all nodes of both snapshots, changed or not.
func (st *step) everything() []change { return pairs(st.from.Nodes(), st.to.Nodes(), false) }

// pairs walks two lists sorted by id; with onlyChanged it leaves out nodes that are the same value in both.
func pairs(from, to []*state.Node, onlyChanged bool) (out []change) {
	for len(from) > 0 || len(to) > 0 {
		var c change
		switch {
		case len(to) == 0 || len(from) > 0 && from[0].ID < to[0].ID:
			c.old, from = from[0], from[1:]
		case len(from) == 0 || to[0].ID < from[0].ID:
			c.new, to = to[0], to[1:]
		default:
			c.old, c.new, from, to = from[0], to[0], from[1:], to[1:]
		}
		if !onlyChanged || c.old != c.new {
			out = append(out, c)
		}
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
		st.all = from.Policy != to.Policy || from.DNS != to.DNS || from.DERP.Home != to.DERP.Home
		st.changed = pairs(from.Nodes(), to.Nodes(), true)
	})
	return st
}
