package state

import (
	"cmp"
	"maps"
	"net/netip"
	"reflect"
	"slices"

	"tailscale.com/types/key"

	"github.com/skein-vpn/skein/dns"
	"github.com/skein-vpn/skein/policy"
	"github.com/skein-vpn/skein/routes"
	"github.com/skein-vpn/skein/tailnet"
)

// routers knows for each prefix the nodes that may carry it, in the order in which they were created.
type routers map[netip.Prefix][]*tailnet.Node

func (r routers) remove(n *tailnet.Node) {
	for _, p := range n.ActiveRoutes() {
		r[p] = slices.DeleteFunc(r[p], func(x *tailnet.Node) bool { return x.ID == n.ID })
		if len(r[p]) == 0 {
			delete(r, p)
		}
	}
}

func (r routers) add(n *tailnet.Node) {
	for _, p := range n.ActiveRoutes() {
		i, _ := slices.BinarySearchFunc(r[p], n, func(a, b *tailnet.Node) int {
			return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.ID, b.ID))
		})
		r[p] = slices.Insert(r[p], i, n)
	}
}

// load builds the snapshot of c from nothing, with the policy, DNS and DERP of prev and who prev knew to be online (of several
// servers: who has a session here). Nodes that are as they were keep their pointers, so that sessions send what is new and no
// more. It also renews what the writer keeps beside the snapshot.
func (st *State) load(c *tailnet.Contents, prev *Snapshot, pol *policy.Compiled) *Snapshot {
	sn := &Snapshot{
		Seq: prev.Seq + 1, Rev: c.Rev, Tailnet: c.Tailnet,
		Policy: pol, Text: c.Policy, DNS: dnsOf(prev.dnsBase, prev.fileRecords, c.Tailnet.Settings.DNS), dnsBase: prev.dnsBase,
		fileRecords: prev.fileRecords, DERP: prev.DERP,
		users: c.Users, keys: c.PreAuthKeys, creds: c.Credentials, services: c.Services,
		index: index{
			byKey:     table[key.NodePublic, tailnet.NodeID]{base: make(map[key.NodePublic]tailnet.NodeID, len(c.Nodes))},
			byMachine: table[key.MachinePublic, []tailnet.NodeID]{base: make(map[key.MachinePublic][]tailnet.NodeID, len(c.Nodes))},
			byName:    table[string, tailnet.NodeID]{base: make(map[string]tailnet.NodeID, len(c.Nodes))},
			byAddr:    table[netip.Addr, tailnet.NodeID]{base: make(map[netip.Addr]tailnet.NodeID, 2*len(c.Nodes))},
			renewing:  map[key.NodePublic]tailnet.NodeID{},
		},
		superseded: make(chan struct{}),
	}
	for _, s := range c.Services {
		for _, a := range s.Addrs() {
			sn.byAddr.base[a] = aService
		}
	}
	now := st.now()
	st.lowHost = 1
	st.routers = routers{}
	was := map[netip.Prefix]tailnet.NodeID{} // primaries so far, for the election
	var lost []tailnet.NodeID                // have a session here that the store does not know of
	for _, n := range c.Nodes {
		e := &Node{Node: n, Class: sn.Policy.ClassOf(n)}
		p := c.Presence[n.ID]
		e.Online, e.LastSeen = p.Online, p.LastSeen
		if st.server != "" {
			e.Server, e.Failing, e.Steady = p.Server, p.Failing, p.Steady
		}
		carried := p.Primary
		old := prev.Node(n.ID)
		_, here := st.here[n.ID]
		if old != nil && (st.server == "" || here) {
			e.Online, e.LastSeen, e.Failing, e.Steady, e.Server = old.Online, old.LastSeen, old.Failing, old.Steady, old.Server
			if p.Server != old.Server || p.Online != old.Online {
				lost = append(lost, n.ID)
			}
		}
		if old != nil {
			if st.server == "" {
				carried = old.Primary
			}
			if reflect.DeepEqual(old.Node, n) {
				e.Node = old.Node
			}
		}
		e.judge(sn, now)
		st.wakeFor(e.turns())
		if e.Shown != n.NodeKey {
			sn.renewing[e.Shown] = n.ID
		}
		sn.nodes = append(sn.nodes, e)
		sn.byKey.base[n.NodeKey] = n.ID
		sn.byMachine.base[n.MachineKey] = append(sn.byMachine.base[n.MachineKey], n.ID)
		sn.byName.base[n.Name] = n.ID
		for _, a := range n.Addrs() {
			sn.byAddr.base[a] = n.ID
		}
		for _, r := range carried {
			if !tailnet.IsExitRoute(r) && slices.Contains(n.ActiveRoutes(), r) {
				was[r] = n.ID
			}
		}
		st.routers.add(n)
	}
	sn.Routes = st.elect(routes.NewTable(was), slices.Collect(maps.Keys(st.routers)), func(id tailnet.NodeID) *Node { return sn.Node(id) })
	for i, e := range sn.nodes {
		e.Primary = primaryOf(e, sn.Routes)
		if old := prev.Node(e.ID); old != nil && reflect.DeepEqual(old, e) && sn.Policy.SameRules(prev.Policy) {
			sn.nodes[i] = old
		}
	}
	st.seq = c.PresenceSeq
	if st.server != "" {
		st.markDirty(lost...)
	}
	return sn
}

// derive builds the snapshot that tx leads to. It costs a copy of the slice of nodes and, beyond that, only what the
// transaction touched.
func (st *State) derive(base *Snapshot, tx *Tx, rev tailnet.Rev) *Snapshot {
	sn := &Snapshot{
		Seq: base.Seq + 1, Rev: rev, Tailnet: tx.tailnet,
		Policy: base.Policy, Text: base.Text, Routes: base.Routes, DNS: base.DNS, dnsBase: base.dnsBase,
		fileRecords: base.fileRecords, DERP: base.DERP,
		nodes: base.nodes, users: base.users, keys: base.keys, creds: base.creds, services: base.services, index: base.index,
		superseded: make(chan struct{}),
	}
	if tx.dns != nil {
		sn.dnsBase = tx.dns
	}
	if tx.records != nil {
		sn.fileRecords = *tx.records
	}
	if set := sn.Tailnet.Settings.DNS; tx.dns != nil || tx.records != nil || set != base.Tailnet.Settings.DNS {
		sn.DNS = dnsOf(sn.dnsBase, sn.fileRecords, set)
	}
	if tx.derp != nil {
		sn.DERP = tx.derp
	}
	sn.users = overlay(base.users, tx.users, func(u *tailnet.User) tailnet.UserID { return u.ID })
	sn.keys = overlay(base.keys, tx.keys, func(k *tailnet.PreAuthKey) tailnet.PreAuthKeyID { return k.ID })
	sn.services = overlay(base.services, tx.services, func(s *tailnet.Service) string { return s.Name })
	sn.creds = overlay(base.creds, tx.creds, func(c *tailnet.Credential) string { return c.ID })
	sn.byKey = base.byKey.with(tx.byKey, same)
	sn.byName = base.byName.with(tx.byName, same)
	sn.byAddr = base.byAddr.with(tx.byAddr, same)
	sn.byMachine = base.byMachine.with(tx.byMachine, slices.Equal[[]tailnet.NodeID])

	sn.Policy = st.derivePolicy(base, tx, sn.users)
	if tx.text != nil {
		sn.Text = tx.text
	}

	changed := map[tailnet.NodeID]*Node{} // nil: deleted
	var prefixes []netip.Prefix           // whose routers, or whether they are usable, may have changed
	touch := func(id tailnet.NodeID) {
		if _, ok := changed[id]; ok {
			return
		}
		old, row := base.Node(id), tx.Node(id)
		if old != nil {
			prefixes = append(prefixes, old.ActiveRoutes()...)
		}
		if row == nil {
			changed[id] = nil
			return
		}
		p := tx.presenceOf(id)
		changed[id] = &Node{
			Node: row, Online: p.online, LastSeen: p.lastSeen, Failing: p.failing, Steady: p.steady, Server: p.server, Class: sn.Policy.ClassOf(row),
		}
		changed[id].judge(sn, tx.now)
		st.wakeFor(changed[id].turns())
		prefixes = append(prefixes, row.ActiveRoutes()...)
		if !tx.follows && (old == nil || old.Online != p.online || st.server != "" && old.presence() != p) {
			tx.dirty = append(tx.dirty, id)
		}
	}
	for id, row := range tx.nodes {
		old := base.Node(id)
		if old != nil {
			st.routers.remove(old.Node)
		}
		if row != nil {
			st.routers.add(row)
		}
		touch(id)
	}
	for id := range tx.presence {
		touch(id)
	}
	if other := !sn.Policy.SameRules(base.Policy); other || len(tx.users) > 0 { // then nodes that did not change may be of another class
		for _, n := range base.nodes {
			if _, changed := tx.users[n.User]; changed || other {
				touch(n.ID)
			}
		}
	}

	prefixes = tailnet.SortPrefixes(slices.AppendSeq(prefixes, maps.Keys(tx.claims)))
	sn.Routes = st.elect(base.Routes.With(tx.claims), prefixes, func(id tailnet.NodeID) *Node {
		if n, ok := changed[id]; ok {
			return n
		}
		return base.Node(id)
	})
	for _, p := range prefixes { // a route that moves changes both ends
		for _, id := range []tailnet.NodeID{base.Routes.Primary(p), sn.Routes.Primary(p)} {
			if base.Routes.Primary(p) != sn.Routes.Primary(p) && id != 0 {
				touch(id)
				if !tx.follows {
					tx.dirty = append(tx.dirty, id)
				}
			}
		}
	}
	sn.renewing = renewing(base, changed)
	for _, n := range changed {
		if n != nil {
			n.Primary = primaryOf(n, sn.Routes)
		}
	}
	sn.nodes = overlay(base.nodes, changed, func(n *Node) tailnet.NodeID { return n.ID })
	return sn
}

// dnsOf puts together what clients are told about names: the configuration's, the records of its file, and what
// administrators have set.
func dnsOf(base *dns.Settings, records []tailnet.DNSRecord, set *tailnet.DNS) *dns.Settings {
	if len(records) > 0 {
		c := *base
		c.Records = slices.Concat(base.Records, records)
		base = &c
	}
	return base.With(set)
}

// elect renews the primaries of the given prefixes.
func (st *State) elect(prev *routes.Table, prefixes []netip.Prefix, node func(tailnet.NodeID) *Node) *routes.Table {
	cands := map[netip.Prefix][]routes.Candidate{}
	for _, p := range prefixes {
		if tailnet.IsExitRoute(p) {
			continue
		}
		cands[p] = nil
		for _, r := range st.routers[p] {
			if n := node(r.ID); n.Active() { // others carry nothing, however few there are
				cands[p] = append(cands[p], routes.Candidate{Node: r.ID, Usable: n.usable(), Steady: n.Steady})
			}
		}
	}
	return routes.Elect(prev, cands)
}

// usable reports whether a router can carry routes now.
func (n *Node) usable() bool { return n.Online && !n.Failing && n.Active() }

// primaryOf is what n carries according to t: its primary routes, and its exit routes, which need no election.
func primaryOf(n *Node, t *routes.Table) (out []netip.Prefix) {
	if !n.Active() {
		return nil
	}
	for _, p := range n.ActiveRoutes() {
		if tailnet.IsExitRoute(p) || t.Primary(p) == n.ID {
			out = append(out, p)
		}
	}
	return out
}

// overlay is base, sorted by id, with the values of over put in or, where they are nil, taken out.
func overlay[K cmp.Ordered, V any](base []*V, over map[K]*V, id func(*V) K) []*V {
	if len(over) == 0 {
		return base
	}
	out := make([]*V, 0, len(base)+len(over))
	ids := slices.Sorted(maps.Keys(over))
	take := func(v *V) {
		if v != nil {
			out = append(out, v)
		}
	}
	for _, b := range base {
		for len(ids) > 0 && ids[0] < id(b) {
			take(over[ids[0]])
			ids = ids[1:]
		}
		if len(ids) > 0 && ids[0] == id(b) {
			take(over[ids[0]])
			ids = ids[1:]
			continue
		}
		out = append(out, b)
	}
	for _, i := range ids {
		take(over[i])
	}
	return out
}

// overlayMap is base with over put in; a zero value takes its key out. base is not written to.
func overlayMap[K comparable](base, over map[K]tailnet.NodeID) map[K]tailnet.NodeID {
	out, copied := base, false
	for k, v := range over {
		if base[k] == v {
			continue
		}
		if !copied {
			out, copied = maps.Clone(base), true
		}
		if v == 0 {
			delete(out, k)
		} else {
			out[k] = v
		}
	}
	return out
}
