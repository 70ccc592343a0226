package netmap

import (
	"slices"
	"sync"

	"tailscale.com/tailcfg"

	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// maxSteps is how many steps between snapshots are remembered. Sessions that are further apart make theirs anew.
const maxSteps = 32

// step is the way from one snapshot to another.
type step struct {
	from, to *state.Snapshot

	once    sync.Once
	changed []*change // sorted by id; with all, every node of both
	all     bool      // nodes may look different, themselves included, though their entries are the same

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

// wholeIn is the whole peer as the snapshot to shows it.
func (c *change) wholeIn(to *state.Snapshot) []byte {
	c.wholeOnce.Do(func() { c.whole = marshal(peerNode(to, c.new)) })
	return c.whole
}

// news is what those are told who saw the peer in from and see it in to.
func (c *change) news(from, to *state.Snapshot) (patches [][]byte, replace bool) {
	c.newsOnce.Do(func() {
		ps, ok := patch(peerNode(from, c.old), peerNode(to, c.new))
		if c.replace = !ok; c.replace {
			return
		}
		for _, p := range ps {
			c.patches = append(c.patches, marshal(p))
		}
	})
	return c.patches, c.replace
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
	if before != after || st.all {
		o := e.own(st, v, before, after)
		if o.empty() {
			return Frame{}, false
		}
		return newFrame(seal(v.Compress, o.close())), true
	}
	k := frameKey{audienceOf(before), audienceOf(after), v.Compress, from.DERP.For(v.Capver), to.DERP.For(v.Capver)}
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

// own is the delta for a viewer that changed itself, or that looks different.
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
	if before != after && !st.all {
		changed = pairs(st.from.Nodes(), st.to.Nodes(), false)
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
			peers = append(peers, c.wholeIn(st.to))
			owners[c.new.Owner()] = true
		case did && does:
			ps, replace := c.news(st.from, st.to)
			patches = append(patches, ps...)
			if replace {
				peers = append(peers, c.wholeIn(st.to))
				owners[c.new.Owner()] = true
			}
		}
	}
	// A reload makes new values that may say the same, and either field makes clients rebuild their netmaps.
	if had, gets := st.from.DERP.For(v.Capver), st.to.DERP.For(v.Capver); had != gets && !slices.Equal(marshal(had), marshal(gets)) {
		o.set("DERPMap", derpMapAfter(had, gets))
	}
	if st.from.DNS != st.to.DNS {
		if config := marshal(st.to.DNS.Config()); !slices.Equal(config, marshal(st.from.DNS.Config())) {
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
	for _, u := range st.to.Users() { // a renamed user; new ones come with their nodes
		if old := st.from.User(u.ID); old != nil && old != u {
			owners[u.ID] = true
		}
	}
	o.list("UserProfiles", profilesOf(st.to, owners))
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
		st.all = from.Policy != to.Policy || from.DNS.Base != to.DNS.Base || from.DERP.Home != to.DERP.Home
		st.changed = pairs(from.Nodes(), to.Nodes(), !st.all)
	})
	return st
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
