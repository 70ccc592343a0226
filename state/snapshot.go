package state

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/types/key"

	"github.com/skein-vpn/skein/dns"
	"github.com/skein-vpn/skein/policy"
	"github.com/skein-vpn/skein/routes"
	"github.com/skein-vpn/skein/tailnet"
)

// Node is a node as one Snapshot knows it: its committed row and what follows from it. It is immutable, and two snapshots
// hold the same pointer exactly if nothing about the node differs between them.
type Node struct {
	*tailnet.Node

	Online   bool
	LastSeen time.Time      // while Online: when it came online; zero: never seen
	Failing  bool           // online, but as a router it does not answer probes
	Steady   bool           // usable for so long that it may take back the prefixes it was first to carry
	Primary  []netip.Prefix // approved routes that it carries now, exit routes among them; sorted
	Class    policy.Class
	Server   string // which holds its map session, or held the last one; empty where there is one server only

	// What follows from its row, its user and the time: see Active.
	Approved bool           // it may take part: approved where that is asked for, and its user is active
	Ended    bool           // its key has ended
	Shown    key.NodePublic // what peers know it under: NodeKey, or for a moment after a renewal OldNodeKey
}

// Active reports whether the node takes part: others are told about it and it about them, and it may use the relay.
func (n *Node) Active() bool { return n.Approved && !n.Ended }

// Presence is the node's soft state, as the store keeps it.
func (n *Node) Presence() tailnet.Presence {
	return tailnet.Presence{Online: n.Online, LastSeen: n.LastSeen, Primary: n.Primary, Server: n.Server, Failing: n.Failing, Steady: n.Steady}
}

// Published reports whether peers may be told about the node: a peer without a disco key has no path for good
// (tailcfg.Node.DiscoKey), and one that is not approved is nobody's peer. One whose key has ended is shown as such.
func (n *Node) Published() bool { return !n.DiscoKey.IsZero() && n.Approved }

// Snapshot is the immutable state of a tailnet. Anybody may keep one for any time and read it without a lock; newer ones
// do not change it.
type Snapshot struct {
	Seq uint64      // counts the snapshots of this process; of two, the higher one is newer
	Rev tailnet.Rev // the last commit in it

	Tailnet tailnet.Tailnet
	Policy  *policy.Compiled
	Text    *tailnet.PolicyVersion // that Policy was made from; nil: nobody has set one
	Routes  *routes.Table
	DNS     *dns.Settings // those of the configuration with those of Tailnet.Settings in
	DERP    *DERPMaps

	nodes []*Node         // sorted by id
	users []*tailnet.User // sorted by id
	keys  []*tailnet.PreAuthKey
	creds []*tailnet.Credential // sorted by id

	services []*tailnet.Service // sorted by name

	index
	dnsBase     *dns.Settings       // those of the configuration
	fileRecords []tailnet.DNSRecord // more of them, from a file
	superseded  chan struct{}
}

// DERPMaps is the relay map, in the variants that clients of different ages need. It is immutable.
type DERPMaps struct {
	Current  *tailcfg.DERPMap
	Old      *tailcfg.DERPMap          // for clients below OldBelow; nil if they get Current
	OldBelow tailcfg.CapabilityVersion // tailcfg.MapRequest.Version
	Dial     *tailcfg.ControlDialPlan  // where the servers are; nil: clients are told nothing of it
	Home     int                       // the one region that can be anybody's home; 0 if there are several or none
}

// For is the map for a client of the given capability version.
func (m *DERPMaps) For(v tailcfg.CapabilityVersion) *tailcfg.DERPMap {
	if m.Old != nil && v < m.OldBelow {
		return m.Old
	}
	return m.Current
}

// index finds nodes by what is unique to them. Its maps are shared between snapshots and never written to.
type index struct {
	byKey     table[key.NodePublic, tailnet.NodeID]
	byMachine table[key.MachinePublic, []tailnet.NodeID]
	byName    table[string, tailnet.NodeID]
	byAddr    table[netip.Addr, tailnet.NodeID]
	renewing  map[key.NodePublic]tailnet.NodeID // by OldNodeKey, where that is Shown
}

// Superseded is closed once a newer snapshot is published.
func (sn *Snapshot) Superseded() <-chan struct{} { return sn.superseded }

// Nodes are all nodes, sorted by id. The slice must not be changed.
func (sn *Snapshot) Nodes() []*Node { return sn.nodes }

// Users are all users, sorted by id. The slice must not be changed.
func (sn *Snapshot) Users() []*tailnet.User { return sn.users }

// PreAuthKeys are all pre-auth keys, sorted by id. The slice must not be changed.
func (sn *Snapshot) PreAuthKeys() []*tailnet.PreAuthKey { return sn.keys }

// Node is the node with this id, or nil. Every session asks at each change: as ids are given out one after the other, only so
// many places come into question as nodes were deleted.
func (sn *Snapshot) Node(id tailnet.NodeID) *Node {
	n := len(sn.nodes)
	if n == 0 || id < sn.nodes[0].ID || id > sn.nodes[n-1].ID {
		return nil
	}
	from := max(0, n-1-int(sn.nodes[n-1].ID-id))
	to := min(n, int(id-sn.nodes[0].ID)+1)
	i, ok := slices.BinarySearchFunc(sn.nodes[from:to], id, func(n *Node, id tailnet.NodeID) int { return cmp.Compare(n.ID, id) })
	if !ok {
		return nil
	}
	return sn.nodes[from+i]
}

// NodeByKey is the node with this NodeKey, or nil.
func (sn *Snapshot) NodeByKey(k key.NodePublic) *Node {
	return sn.Node(sn.byKey.get(k))
}

// NodeByName is the node with this MagicDNS label, or nil.
func (sn *Snapshot) NodeByName(label string) *Node {
	return sn.Node(sn.byName.get(label))
}

// NodeByAddr is the node with this address, or nil.
func (sn *Snapshot) NodeByAddr(a netip.Addr) *Node {
	return sn.Node(sn.byAddr.get(a))
}

// NodesByMachine are the nodes of one machine, sorted by id: one for each profile on it.
func (sn *Snapshot) NodesByMachine(k key.MachinePublic) []*Node {
	var out []*Node
	for _, id := range sn.byMachine.get(k) {
		out = append(out, sn.Node(id))
	}
	return out
}

// User is the user with this id, or nil. tailnet.TaggedDevices is a user like any other here.
func (sn *Snapshot) User(id tailnet.UserID) *tailnet.User {
	if id == tailnet.TaggedDevices {
		return taggedDevices
	}
	i, ok := slices.BinarySearchFunc(sn.users, id, func(u *tailnet.User, id tailnet.UserID) int { return cmp.Compare(u.ID, id) })
	if !ok {
		return nil
	}
	return sn.users[i]
}

var taggedDevices = &tailnet.User{ID: tailnet.TaggedDevices, Name: tailnet.TaggedDevicesName, DisplayName: "Tagged Devices"}

// UserByName is the user with this name, or nil.
func (sn *Snapshot) UserByName(name string) *tailnet.User {
	for _, u := range sn.users {
		if u.Name == name {
			return u
		}
	}
	return nil
}

// PreAuthKey is the key with this id, or nil.
func (sn *Snapshot) PreAuthKey(id tailnet.PreAuthKeyID) *tailnet.PreAuthKey {
	for _, k := range sn.keys {
		if k.ID == id {
			return k
		}
	}
	return nil
}

// Redundant are the online nodes that advertise and are approved for a prefix for which there is another such node: the
// ones worth probing, because somebody can take over from them. Sorted by id; it costs O(nodes).
func (sn *Snapshot) Redundant() (out []*Node) {
	count := map[netip.Prefix]int{}
	for _, n := range sn.nodes {
		if len(n.ApprovedRoutes)+len(n.Hostings) > 0 && n.Active() {
			for _, p := range n.ActiveRoutes() {
				count[p]++
			}
		}
	}
	for _, n := range sn.nodes {
		if n.Online && n.Active() && slices.ContainsFunc(n.ActiveRoutes(), func(p netip.Prefix) bool { return count[p] > 1 && !tailnet.IsExitRoute(p) }) {
			out = append(out, n)
		}
	}
	return out
}

// NodesOf are the nodes that user id owns, sorted by id.
func (sn *Snapshot) NodesOf(id tailnet.UserID) []*Node {
	var out []*Node
	for _, n := range sn.nodes {
		if n.Owner() == id {
			out = append(out, n)
		}
	}
	return out
}
