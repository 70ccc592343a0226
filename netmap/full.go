package netmap

import (
	"maps"
	"slices"
	"sync"
	"time"

	"tailscale.com/tailcfg"

	"github.com/skein-vpn/skein/policy"
	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// Encoder makes frames and keeps what several of them share. It is safe for concurrent use.
type Encoder struct {
	opts Options
	now  func() time.Time

	mu     sync.Mutex
	blocks map[blockKey]*block     // guarded by mu
	views  []*view                 // guarded by mu: the newest last
	peers  map[tailnet.NodeID]peer // guarded by mu
	steps  []*step                 // guarded by mu: the newest last
	news   news                    // guarded by mu
}

// New returns an Encoder; now is the clock that clients are told (tailcfg.MapResponse.ControlTime), nil for time.Now.
func New(o Options, now func() time.Time) *Encoder {
	if now == nil {
		now = time.Now
	}
	return &Encoder{opts: o, now: now, blocks: map[blockKey]*block{}, peers: map[tailnet.NodeID]peer{}}
}

const (
	blockPiece = 16    // peers in one piece of a block that is needed without one of them
	blockPeers = 64    // peers in one block, about: at this size the compression ratio is that of one large frame
	maxBlocks  = 16384 // kept at the most; beyond that all are dropped and made again as needed
)

// audience is what viewers must have in common to see the same peers alike.
type audience struct {
	class policy.Class
	user  tailnet.UserID // set if viewers of the class see their own user's devices in particular (autogroup:self)
	blind bool           // takes no part (state.Node.Active): sees nobody
}

func audienceOf(sn *state.Snapshot, v *state.Node) audience {
	a := audience{class: v.Class, blind: !v.Active()}
	if sn.Policy.Personal(v.Class) {
		a.user = v.User
	}
	return a
}

// eyes are those of an audience in one snapshot. They are not safe for concurrent use.
type eyes struct {
	audience
	p *policy.Compiled

	remember bool    // what was found out about classes, because many nodes are looked at
	classes  []sight // by class
}

// sight is what an audience sees of a class.
type sight int8

const (
	unknown sight = iota
	nobody
	ownOnes // those of the audience's user
	everyone
)

// sees reports whether viewers of this audience are told about n.
func (y *eyes) sees(n *state.Node) bool {
	if n == nil || y.blind || n.Class < 0 {
		return false
	}
	s := unknown
	if int(n.Class) < len(y.classes) {
		s = y.classes[n.Class]
	}
	if s == unknown {
		switch {
		case y.p.Sees(y.class, n.Class):
			s = everyone
		case y.user != 0 && y.p.SeesOwn(y.class, n.Class):
			s = ownOnes
		default:
			s = nobody
		}
		if y.remember {
			if more := int(n.Class) + 1 - len(y.classes); more > 0 {
				y.classes = append(y.classes, make([]sight, more)...)
			}
			y.classes[n.Class] = s
		}
	}
	return (s == everyone || s == ownOnes && n.User == y.user) && n.Published()
}

type blockKey struct {
	audience
	index    int // id / width
	width    int // ids in a block
	compress bool
}

// block is a run of peers, encoded. It is valid while the snapshot's peers in its range are these very values.
type block struct {
	once   sync.Once
	nodes  []*state.Node
	derp   int             // home region that was assumed
	base   string          // domain that names were made with
	sn     *state.Snapshot // set if some peer's routes depend on more than these values: valid for this snapshot alone
	json   [][]byte        // one per node
	sealed []byte          // all of them

	cut    sync.Once
	pieces [][]byte // all of them, blockPiece in each, for viewers that are among them
}

var comma = map[bool][]byte{false: []byte(","), true: seal(true, []byte(","))}

// view is what all viewers of one audience share of one snapshot's full map. It is made by the first who asks.
type view struct {
	sn *state.Snapshot
	viewKey

	once   sync.Once
	shared []byte   // from the middle of the user profiles to the opening of the peers
	blocks []*block // the peers, by id
}

// viewKey is what viewers must have in common to share a view.
type viewKey struct {
	audience
	compress bool
	derp     *tailcfg.DERPMap // the variant of the relay map that they get
}

// maxViews is how many views are kept: those of the newest snapshots, for a fleet that connects at once.
const maxViews = 16

// Full is the complete map for v, with which every stream begins. ok is false if the snapshot does not hold v's node.
func (e *Encoder) Full(sn *state.Snapshot, v Viewer) (f Frame, ok bool) {
	self := sn.Node(v.Node)
	if self == nil {
		return Frame{}, false
	}
	vw := e.view(sn, viewKeyOf(sn, self, v))
	var o object
	o.set("ControlTime", e.now().UTC())
	if !e.opts.LogCollection {
		o.set("Debug", tailcfg.Debug{DisableLogTail: true})
	}
	if sn.DERP.Dial != nil {
		o.set("ControlDialPlan", sn.DERP.Dial)
	}
	o.set("Node", e.selfNode(sn, self))
	setFilters(&o, sn, self, v)
	if sn.Policy.Policy() != nil {
		o.set("SSHPolicy", sn.Policy.SSHFor(self.Node))
	}
	o.key("UserProfiles") // its own first: the others' follow in the shared part, where it may stand again
	o.b = append(o.b, '[')
	o.b = appendJoined(o.b, profilesOf(sn, map[tailnet.UserID]bool{self.Owner(): true}))
	parts, _ := vw.appendPeers([][]byte{seal(v.Compress, o.b), vw.shared}, self)
	return newFrame(append(parts, closing[v.Compress])...), true
}

func viewKeyOf(sn *state.Snapshot, self *state.Node, v Viewer) viewKey {
	return viewKey{audienceOf(sn, self), v.Compress, sn.DERP.For(v.Capver)}
}

// appendPeers appends the peers without self, which a list of peers must never contain, separated by commas; any reports
// whether there are some.
func (vw *view) appendPeers(parts [][]byte, self *state.Node) (_ [][]byte, any bool) {
	add := func(sealed []byte) {
		if any {
			parts = append(parts, comma[vw.compress])
		}
		parts, any = append(parts, sealed), true
	}
	for _, b := range vw.blocks {
		i := b.find(self)
		if i < 0 {
			add(b.sealed)
			continue
		}
		for j, piece := range b.inPieces(vw.compress) {
			if j != i/blockPiece {
				add(piece)
				continue
			}
			rest := slices.Clone(b.json[j*blockPiece : min(len(b.json), (j+1)*blockPiece)])
			if rest = slices.Delete(rest, i%blockPiece, i%blockPiece+1); len(rest) > 0 {
				add(seal(vw.compress, appendJoined(nil, rest)))
			}
		}
	}
	return parts, any
}

// closing ends the list of peers and the message.
var closing = map[bool][]byte{false: []byte("]}"), true: seal(true, []byte("]}"))}

// view is the view of sn with this key.
func (e *Encoder) view(sn *state.Snapshot, k viewKey) *view {
	e.mu.Lock()
	i := slices.IndexFunc(e.views, func(x *view) bool { return x.sn == sn && x.viewKey == k })
	var vw *view
	if i >= 0 {
		vw = e.views[i]
	} else {
		vw = &view{sn: sn, viewKey: k}
		if len(e.views) >= maxViews {
			e.views = slices.Delete(e.views, 0, 1)
		}
		e.views = append(e.views, vw)
	}
	e.mu.Unlock()
	vw.once.Do(func() {
		owners := map[tailnet.UserID]bool{}
		peers := visible(sn, k.audience)
		width := blockWidth(len(sn.Nodes()), len(peers))
		for len(peers) > 0 {
			index := int(peers[0].ID) / width
			n := slices.IndexFunc(peers, func(n *state.Node) bool { return int(n.ID)/width != index })
			if n < 0 {
				n = len(peers)
			}
			vw.blocks = append(vw.blocks, e.block(sn, blockKey{k.audience, index, width, k.compress}, peers[:n]))
			for _, p := range peers[:n] {
				owners[p.Owner()] = true
			}
			peers = peers[n:]
		}
		var o object
		o.set("Domain", sn.DNS.Base)
		o.set("DERPMap", k.derp) // mandatory: without one the client never gets out of Starting
		o.set("DNSConfig", dnsConfig(sn, k.audience))
		o.set("CollectServices", false)
		o.key("Peers")
		o.b[0] = ',' // the viewer's own part has opened the object
		var b []byte
		for _, p := range profilesOf(sn, owners) {
			b = append(append(b, ','), p...)
		}
		b = append(append(b, ']'), o.b...)
		vw.shared = seal(k.compress, append(b, '['))
	})
	return vw
}

// visible are the nodes that the audience sees.
func visible(sn *state.Snapshot, a audience) (out []*state.Node) {
	y := eyes{audience: a, p: sn.Policy, remember: true}
	for _, n := range sn.Nodes() {
		if y.sees(n) {
			out = append(out, n)
		}
	}
	return out
}

// blockWidth is how many ids a block covers so that it holds about blockPeers for viewers who see so many of the nodes. It is
// a power of two, so that it stays when nodes come and go.
func blockWidth(nodes, peers int) int {
	width := blockPeers
	for peers > 0 && width*peers < blockPeers*nodes/2 {
		width *= 2
	}
	return width
}

// find is where n stands in the block, or -1.
func (b *block) find(n *state.Node) int {
	if n.ID < b.nodes[0].ID || n.ID > b.nodes[len(b.nodes)-1].ID {
		return -1
	}
	return slices.Index(b.nodes, n)
}

// inPieces is the block in pieces, so that little is to be encoded for a viewer that must be left out of one.
func (b *block) inPieces(compress bool) [][]byte {
	b.cut.Do(func() {
		for piece := range slices.Chunk(b.json, blockPiece) {
			b.pieces = append(b.pieces, seal(compress, appendJoined(nil, piece)))
		}
	})
	return b.pieces
}

// block is the block that holds exactly run, made by the first who asks.
func (e *Encoder) block(sn *state.Snapshot, k blockKey, run []*state.Node) *block {
	e.mu.Lock()
	b := e.blocks[k]
	var only *state.Snapshot
	if slices.ContainsFunc(run, func(n *state.Node) bool { return !sameForAll(sn, n) }) {
		only = sn
	}
	if b == nil || b.derp != sn.DERP.Home || b.base != sn.DNS.Base || b.sn != only || !slices.Equal(b.nodes, run) {
		if len(e.blocks) >= maxBlocks {
			clear(e.blocks)
		}
		b = &block{nodes: run, derp: sn.DERP.Home, base: sn.DNS.Base, sn: only}
		e.blocks[k] = b
	}
	e.mu.Unlock()
	b.once.Do(func() {
		for _, n := range run {
			b.json = append(b.json, e.peerJSON(sn, n, k.audience))
		}
		b.sealed = seal(k.compress, appendJoined(nil, b.json))
	})
	return b
}

// peerJSON is n as the audience is shown it, encoded. Where that is the same for all, it is made once.
func (e *Encoder) peerJSON(sn *state.Snapshot, n *state.Node, a audience) []byte {
	if !sameForAll(sn, n) {
		return marshal(peerNode(sn, n, a))
	}
	e.mu.Lock()
	p := e.peers[n.ID]
	e.mu.Unlock()
	if p.node == n && p.derp == sn.DERP.Home && p.base == sn.DNS.Base {
		return p.json
	}
	p = peer{node: n, derp: sn.DERP.Home, base: sn.DNS.Base, json: marshal(peerNode(sn, n, a))}
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.peers) > 2*len(sn.Nodes())+blockPeers { // most are of nodes that are gone
		clear(e.peers)
	}
	e.peers[n.ID] = p
	return p.json
}

// peer is a node, encoded for all audiences alike.
type peer struct {
	node *state.Node
	derp int
	base string
	json []byte
}

func profilesOf(sn *state.Snapshot, ids map[tailnet.UserID]bool) (out [][]byte) {
	for _, id := range slices.Sorted(maps.Keys(ids)) {
		if u := sn.User(id); u != nil {
			out = append(out, marshal(profile(u)))
		}
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
