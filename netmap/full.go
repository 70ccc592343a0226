package netmap

import (
	"slices"
	"sync"
	"time"

	"tailscale.com/tailcfg"

	"github.com/skein-vpn/skein/dns"
	"github.com/skein-vpn/skein/policy"
	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// Encoder makes frames and keeps what several of them share. It is safe for concurrent use.
type Encoder struct {
	opts Options
	now  func() time.Time

	mu     sync.Mutex
	blocks map[blockKey]*block // guarded by mu
	steps  []*step             // guarded by mu: the newest last
}

// New returns an Encoder; now is the clock that clients are told (tailcfg.MapResponse.ControlTime), nil for time.Now.
func New(o Options, now func() time.Time) *Encoder {
	if now == nil {
		now = time.Now
	}
	return &Encoder{opts: o, now: now, blocks: map[blockKey]*block{}}
}

const (
	blockPeers = 64   // ids in one block: at this size the compression ratio is that of one large frame
	maxBlocks  = 8192 // kept at the most; beyond that all are dropped and made again as needed
)

// audience is what viewers must have in common to see the same peers alike.
type audience struct {
	class policy.Class
	blind bool // not approved yet: sees nobody
}

func audienceOf(v *state.Node) audience { return audience{class: v.Class, blind: !v.Authorized} }

// sees reports whether viewers of this audience are told about n (in the snapshot that p belongs to).
func (a audience) sees(p *policy.Compiled, n *state.Node) bool {
	return n != nil && !a.blind && n.Published() && p.Sees(a.class, n.Class)
}

type blockKey struct {
	audience
	index    int // id / blockPeers
	compress bool
}

// block is a run of peers, encoded. It is valid while the snapshot's peers in its range are these very values.
type block struct {
	once   sync.Once
	nodes  []*state.Node
	derp   int           // home region that was assumed
	dns    *dns.Settings // names are made with it
	json   [][]byte      // one per node
	sealed []byte        // all of them
}

var comma = map[bool][]byte{false: []byte(","), true: seal(true, []byte(","))}

// Full is the complete map for v, with which every stream begins. ok is false if the snapshot does not hold v's node.
func (e *Encoder) Full(sn *state.Snapshot, v Viewer) (f Frame, ok bool) {
	self := sn.Node(v.Node)
	if self == nil {
		return Frame{}, false
	}
	var o object
	o.set("ControlTime", e.now().UTC())
	if !e.opts.LogCollection {
		o.set("Debug", tailcfg.Debug{DisableLogTail: true})
	}
	o.set("Node", e.selfNode(sn, self))
	o.set("Domain", sn.DNS.Base)
	o.set("DERPMap", sn.DERP.For(v.Capver)) // mandatory: without one the client never gets out of Starting
	o.set("DNSConfig", sn.DNS.Config())
	o.set("CollectServices", false)
	o.set("PacketFilter", sn.Policy.FilterFor(self.Node))
	o.list("UserProfiles", profiles(sn, self))
	o.key("Peers")
	parts := [][]byte{seal(v.Compress, append(o.b, '['))}

	n := 0
	for _, run := range runs(sn, audienceOf(self)) {
		b := e.block(sn, audienceOf(self), v.Compress, run)
		sealed := b.sealed
		if i := slices.Index(run, self); i >= 0 { // peers must never contain the viewer itself
			if len(run) == 1 {
				continue
			}
			sealed = seal(v.Compress, appendJoined(nil, slices.Delete(slices.Clone(b.json), i, i+1)))
		}
		if n++; n > 1 {
			parts = append(parts, comma[v.Compress])
		}
		parts = append(parts, sealed)
	}
	return newFrame(append(parts, seal(v.Compress, []byte("]}")))...), true
}

// runs are the nodes that the audience sees, cut where a new block begins.
func runs(sn *state.Snapshot, a audience) (out [][]*state.Node) {
	var run []*state.Node
	for _, n := range sn.Nodes() {
		if !a.sees(sn.Policy, n) {
			continue
		}
		if len(run) > 0 && blockIndex(run[0]) != blockIndex(n) {
			out, run = append(out, run), nil
		}
		run = append(run, n)
	}
	if len(run) > 0 {
		out = append(out, run)
	}
	return out
}

func blockIndex(n *state.Node) int { return int(n.ID / blockPeers) }

// block is the block that holds exactly run, made by the first who asks.
func (e *Encoder) block(sn *state.Snapshot, a audience, compress bool, run []*state.Node) *block {
	k := blockKey{a, blockIndex(run[0]), compress}
	e.mu.Lock()
	b := e.blocks[k]
	if b == nil || b.derp != sn.DERP.Home || b.dns != sn.DNS || !slices.Equal(b.nodes, run) {
		if len(e.blocks) >= maxBlocks {
			clear(e.blocks)
		}
		b = &block{nodes: run, derp: sn.DERP.Home, dns: sn.DNS}
		e.blocks[k] = b
	}
	e.mu.Unlock()
	b.once.Do(func() {
		for _, n := range run {
			b.json = append(b.json, marshal(peerNode(sn, n)))
		}
		b.sealed = seal(compress, appendJoined(nil, b.json))
	})
	return b
}

// profiles are the users whose nodes self sees, and its own.
func profiles(sn *state.Snapshot, self *state.Node) (out [][]byte) {
	ids := map[tailnet.UserID]bool{self.Owner(): true}
	for _, n := range sn.Nodes() {
		if audienceOf(self).sees(sn.Policy, n) {
			ids[n.Owner()] = true
		}
	}
	return profilesOf(sn, ids)
}

func profilesOf(sn *state.Snapshot, ids map[tailnet.UserID]bool) (out [][]byte) {
	for _, u := range sn.Users() {
		if ids[u.ID] {
			out = append(out, marshal(profile(u)))
		}
	}
	if ids[tailnet.TaggedDevices] {
		out = append(out, marshal(profile(sn.User(tailnet.TaggedDevices))))
	}
	return out
}

// Gone is the map for a node that does not exist any more: an expired self, which makes the client ask its user to log in
// instead of polling for ever (controlclient.Auto.mapRoutine does not register again by itself).
func (e *Encoder) Gone(sn *state.Snapshot, n *tailnet.Node, v Viewer) Frame {
	out := &tailcfg.Node{
		ID: n.ID.Tailcfg(), StableID: tailcfg.StableNodeID(n.StableID), Name: sn.DNS.FQDN(n.Name), User: n.Owner().Tailcfg(),
		Key: n.NodeKey, KeyExpiry: e.now().Add(-time.Minute).UTC().Truncate(time.Second), MachineAuthorized: true,
		Hostinfo: (&tailcfg.Hostinfo{Hostname: n.Hostname}).View(), Cap: v.Capver,
	}
	for _, a := range n.Addrs() {
		p, _ := a.Prefix(a.BitLen())
		out.Addresses = append(out.Addresses, p)
	}
	out.AllowedIPs = out.Addresses
	var o object
	o.set("ControlTime", e.now().UTC())
	o.set("Node", out)
	o.set("PacketFilter", []tailcfg.FilterRule{})
	return newFrame(seal(v.Compress, o.close()))
}

// Seal encodes a response that concerns one viewer alone, such as a ping request.
func (e *Encoder) Seal(v Viewer, r *tailcfg.MapResponse) Frame {
	return newFrame(seal(v.Compress, marshal(r)))
}

var keepAlive = map[bool]Frame{
	false: newFrame([]byte(`{"KeepAlive":true}`)),
	true:  newFrame(seal(true, []byte(`{"KeepAlive":true}`))),
}

// KeepAlive is the frame that says only that the server is there. It is the same bytes each time: clients recognise them
// without decoding (controlclient.mapSession.decodeMsg).
func KeepAlive(v Viewer) Frame { return keepAlive[v.Compress] }
