package netmap

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/klauspost/compress/zstd"
	"tailscale.com/tailcfg"
)

// The model of a client: a naive account of what one does with the frames of a stream, after
// tailscale.com/control/controlclient, which is cited as map.go and direct.go. It decodes for itself and knows nothing of
// how this package encodes. real_test.go holds it against the real thing.

// client is what one stream has told a client so far.
type client struct {
	zstd  bool
	old   bool // a release (up to 1.94) that takes a disco key whatever LastSeen says
	heard bool // something but a keep-alive

	self     *tailcfg.Node
	peers    map[tailcfg.NodeID]*tailcfg.Node
	profiles map[tailcfg.UserID]tailcfg.UserProfile
	derp     *tailcfg.DERPMap
	dns      *tailcfg.DNSConfig
	domain   string
	filters  map[string][]tailcfg.FilterRule
	ssh      *tailcfg.SSHPolicy
	services bool
}

func newClient(v Viewer) *client {
	return &client{
		zstd: v.Compress, old: v.Capver < 138, peers: map[tailcfg.NodeID]*tailcfg.Node{},
		profiles: map[tailcfg.UserID]tailcfg.UserProfile{}, filters: map[string][]tailcfg.FilterRule{},
	}
}

// decodeFrame is the message in the frame b (direct.go:sendMapRequest, map.go... mapSession.decodeMsg). It is an error if
// the frame is not exactly one message, or has a field that tailcfg does not know.
func decodeFrame(b []byte, compressed bool) (*tailcfg.MapResponse, error) {
	if len(b) < 4 {
		return nil, io.ErrUnexpectedEOF
	}
	size := binary.LittleEndian.Uint32(b)
	if int(size) != len(b)-4 {
		return nil, fmt.Errorf("the length says %d, there are %d bytes", size, len(b)-4)
	}
	body := b[4:]
	if compressed {
		var err error
		if body, err = decoder().DecodeAll(body, nil); err != nil { // takes concatenated zstd frames as one
			return nil, err
		}
	}
	if bytes.Contains(body, []byte(`\u0000`)) {
		return nil, errors.New("a zero byte in the message")
	}
	var resp tailcfg.MapResponse
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(&resp); err != nil {
		return nil, fmt.Errorf("%w in %.300s", err, body)
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errors.New("something behind the message")
	}
	return &resp, nil
}

var decoder = sync.OnceValue(func() *zstd.Decoder {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(0))
	if err != nil {
		panic(err)
	}
	return d
})

func frameBytes(f Frame) []byte {
	var b bytes.Buffer
	n, err := f.WriteTo(&b)
	if err != nil || int(n) != b.Len() || b.Len() != f.Size() {
		panic(fmt.Sprintf("WriteTo wrote %d bytes and says %d, %v; Size is %d", b.Len(), n, err, f.Size()))
	}
	return b.Bytes()
}

// receive takes one frame. An error is what a real client, or the contract of tailcfg.MapResponse, would not put up with.
func (c *client) receive(f Frame) error {
	r, err := decodeFrame(frameBytes(f), c.zstd)
	if err != nil {
		return err
	}
	if r.KeepAlive {
		return nil // nothing else in it counts
	}
	if !c.heard && r.Node == nil {
		return errors.New("the first message has no Node") // direct.go:sendMapRequest gives up
	}
	c.heard = true
	if err := c.contract(r); err != nil {
		return err
	}
	upgrade(r.Node)
	for _, n := range slices.Concat(r.Peers, r.PeersChanged) {
		upgrade(n)
	}
	if err := c.notPatched(r); err != nil {
		return err
	}
	c.dropOldDisco(r)
	c.takePeers(r)
	c.takeRest(r)
	return c.sound()
}

// contract checks what tailcfg asks of a message, whether this client minds or not.
func (c *client) contract(r *tailcfg.MapResponse) error {
	for _, list := range [][]*tailcfg.Node{r.Peers, r.PeersChanged} {
		if !slices.IsSortedFunc(list, func(a, b *tailcfg.Node) int { return int(a.ID - b.ID) }) {
			return errors.New("peers are not sorted by id")
		}
		for i, n := range list {
			if i > 0 && n.ID == list[i-1].ID {
				return fmt.Errorf("peer %d comes twice", n.ID)
			}
		}
	}
	for _, n := range r.PeersChanged {
		// map.go:patchifyPeersChanged would make it a patch, and updatePeersStateFromResponse remove the peer.
		if slices.Contains(r.PeersRemoved, n.ID) {
			return fmt.Errorf("peer %d is both removed and changed", n.ID)
		}
	}
	for _, p := range r.PeersChangedPatch {
		if slices.Contains(r.PeersRemoved, p.NodeID) || slices.ContainsFunc(r.PeersChanged, func(n *tailcfg.Node) bool { return n.ID == p.NodeID }) {
			return fmt.Errorf("peer %d is patched and something else", p.NodeID)
		}
		if c.peers[p.NodeID] == nil {
			return fmt.Errorf("peer %d is patched, but was never sent", p.NodeID)
		}
	}
	for _, id := range r.PeersRemoved {
		if c.peers[id] == nil {
			return fmt.Errorf("peer %d is removed, but was never sent", id)
		}
	}
	if c.self != nil && len(r.Peers) > 0 {
		return errors.New("a later message sends all peers again")
	}
	return nil
}

// upgrade is map.go:upgradeNode.
func upgrade(n *tailcfg.Node) {
	if n == nil {
		return
	}
	if s, ok := strings.CutPrefix(n.LegacyDERPString, "127.3.3.40:"); ok && n.HomeDERP == 0 {
		_, _ = fmt.Sscan(s, &n.HomeDERP)
	}
	n.LegacyDERPString = ""
	if n.AllowedIPs == nil {
		n.AllowedIPs = slices.Clone(n.Addresses)
	}
}

// notPatched checks what map.go:patchifyPeersChanged would spoil: a whole peer that is known already, and differs only in
// what a patch can say, is taken for that patch, and a value that has become empty, or Online or LastSeen where there was
// none, is lost with it.
func (c *client) notPatched(r *tailcfg.MapResponse) error {
	for _, n := range r.PeersChanged {
		if was := c.peers[n.ID]; was != nil && patchable(was, n) {
			return fmt.Errorf("peer %d is sent whole, but will be taken for a patch", n.ID)
		}
	}
	return nil
}

// patchable is the part of map.go:peerChangeDiff that says no.
func patchable(a, b *tailcfg.Node) bool {
	text := func(n *tailcfg.Node) string {
		c := *n
		c.Key, c.KeyExpiry, c.KeySignature, c.DiscoKey = tailcfg.Node{}.Key, tailcfg.Node{}.KeyExpiry, nil, tailcfg.Node{}.DiscoKey
		c.Endpoints, c.HomeDERP, c.Cap, c.CapMap, c.Online, c.LastSeen = nil, 0, 0, nil, nil, nil
		return asText(&c)
	}
	return text(a) == text(b)
}

// dropOldDisco is map.go:removeUnwantedDiscoUpdates: a new disco key of a peer that is offline is old news unless it was
// seen since, and the whole patch is dropped with it.
func (c *client) dropOldDisco(r *tailcfg.MapResponse) {
	if c.old {
		return
	}
	r.PeersChangedPatch = slices.DeleteFunc(r.PeersChangedPatch, func(p *tailcfg.PeerChange) bool {
		was := c.peers[p.NodeID]
		return p.DiscoKey != nil && p.Online != nil && p.LastSeen != nil && was != nil && !*p.Online &&
			was.LastSeen != nil && !p.LastSeen.After(*was.LastSeen)
	})
}

// takePeers is map.go:updatePeersStateFromResponse.
func (c *client) takePeers(r *tailcfg.MapResponse) {
	if len(r.Peers) > 0 {
		c.peers = map[tailcfg.NodeID]*tailcfg.Node{}
		for _, n := range r.Peers {
			c.peers[n.ID] = n
		}
		return // the other fields do not count
	}
	for _, id := range r.PeersRemoved {
		delete(c.peers, id)
	}
	for _, n := range r.PeersChanged {
		c.peers[n.ID] = n
	}
	for id, online := range r.OnlineChange {
		if n := c.peers[id]; n != nil {
			n.Online = &online
		}
	}
	for _, p := range r.PeersChangedPatch {
		was := c.peers[p.NodeID]
		if was == nil {
			continue
		}
		n := *was
		if p.DERPRegion != 0 {
			n.HomeDERP = p.DERPRegion
		}
		if p.Cap != 0 {
			n.Cap = p.Cap
		}
		if p.CapMap != nil {
			n.CapMap = p.CapMap
		}
		if p.Endpoints != nil {
			n.Endpoints = p.Endpoints
		}
		if p.Key != nil {
			n.Key = *p.Key
		}
		if p.KeySignature != nil {
			n.KeySignature = p.KeySignature
		}
		if p.DiscoKey != nil {
			n.DiscoKey = *p.DiscoKey
		}
		if p.Online != nil {
			n.Online = p.Online
		}
		if p.LastSeen != nil {
			n.LastSeen = p.LastSeen
		}
		if p.KeyExpiry != nil {
			n.KeyExpiry = *p.KeyExpiry
		}
		c.peers[p.NodeID] = &n
	}
}

// takeRest is what remains of map.go:updateStateFromResponse: fields that stay as they are if a message leaves them out.
func (c *client) takeRest(r *tailcfg.MapResponse) {
	if r.Node != nil {
		c.self = r.Node
	}
	for _, p := range r.UserProfiles {
		c.profiles[p.ID] = p
	}
	if m := r.DERPMap; m != nil {
		if c.derp != nil { // parts that are left out stay, too
			if m.Regions == nil {
				m.Regions, m.OmitDefaultRegions = c.derp.Regions, c.derp.OmitDefaultRegions
			}
			if m.HomeParams == nil {
				m.HomeParams = c.derp.HomeParams
			} else if c.derp.HomeParams != nil && m.HomeParams.RegionScore == nil {
				m.HomeParams.RegionScore = c.derp.HomeParams.RegionScore
			}
		}
		maps.DeleteFunc(m.Regions, func(_ int, r *tailcfg.DERPRegion) bool { return r == nil })
		c.derp = m
	}
	if r.PacketFilter != nil {
		c.filters["base"] = r.PacketFilter
	}
	if all, ok := r.PacketFilters["*"]; ok && all == nil {
		clear(c.filters)
	}
	for name, rules := range r.PacketFilters {
		if name == "*" {
			continue
		}
		if c.filters[name] = rules; rules == nil {
			delete(c.filters, name)
		}
	}
	if r.DNSConfig != nil {
		c.dns = r.DNSConfig
	}
	if r.SSHPolicy != nil {
		c.ssh = r.SSHPolicy
	}
	if v, ok := r.CollectServices.Get(); ok {
		c.services = v
	}
	if r.Domain != "" {
		c.domain = r.Domain
	}
}

// sound checks what has to hold for a client at any time.
func (c *client) sound() error {
	if c.derp == nil || c.dns == nil || len(c.filters) == 0 || c.domain == "" {
		return errors.New("no relay map, no DNS settings, no packet filter or no domain")
	}
	if c.peers[c.self.ID] != nil {
		return errors.New("the viewer is among its own peers") // crashes Android
	}
	if _, ok := c.profiles[c.self.User]; !ok {
		return fmt.Errorf("no profile for the viewer's own user %d", c.self.User)
	}
	carried := map[string]tailcfg.NodeID{}
	for _, n := range c.peers {
		switch {
		case !n.Hostinfo.Valid(), n.Online == nil:
			return fmt.Errorf("peer %d has no Hostinfo, or Online is nil", n.ID)
		case n.DiscoKey.IsZero(), n.Key.IsZero(), n.StableID == "", len(n.Addresses) == 0, !n.MachineAuthorized:
			return fmt.Errorf("peer %d is not complete: %s", n.ID, asText(n))
		case !strings.HasSuffix(n.Name, "."), strings.Count(n.Name, ".") < 2:
			return fmt.Errorf("peer %d is called %q", n.ID, n.Name)
		}
		if _, ok := c.profiles[n.User]; !ok {
			return fmt.Errorf("no profile for user %d of peer %d", n.User, n.ID)
		}
		for _, p := range n.AllowedIPs {
			if other, ok := carried[p.String()]; ok && p.Bits() != 0 {
				return fmt.Errorf("%s is allowed for the peers %d and %d", p, other, n.ID)
			}
			carried[p.String()] = n.ID
		}
	}
	return nil
}

// asText is v as JSON: two values that say the same give the same text.
func asText(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// says is everything that the client knows, fact by fact.
func (c *client) says() map[string]string {
	derp := *c.derp
	if h := derp.HomeParams; h != nil && len(h.RegionScore) == 0 {
		derp.HomeParams = nil
	}
	out := map[string]string{
		"self": asText(plain(c.self)), "derp": asText(&derp), "dns": asText(c.dns), "domain": c.domain,
		"ssh": sshText(c.ssh), "services": fmt.Sprint(c.services),
	}
	var rules []tailcfg.FilterRule
	for _, name := range slices.Sorted(maps.Keys(c.filters)) {
		rules = append(rules, c.filters[name]...)
	}
	out["filter"] = asText(rules)
	for id, n := range c.peers {
		n := plain(n)
		if *n.Online {
			n.LastSeen = nil // when an online peer was last seen is nobody's question
		}
		if len(n.Endpoints) == 0 {
			n.Endpoints = nil
		}
		if len(n.KeySignature) == 0 {
			n.KeySignature = nil
		}
		out[fmt.Sprint("peer ", id)] = asText(n)
	}
	for id, p := range c.profiles {
		out[fmt.Sprint("profile ", id)] = asText(p)
	}
	return out
}

// sshText is p as text; none lets in as many as an empty one.
func sshText(p *tailcfg.SSHPolicy) string {
	if p == nil || len(p.Rules) == 0 {
		return "nobody"
	}
	return asText(p)
}

// plain is a copy of n in which nothing is said in one way only.
func plain(n *tailcfg.Node) *tailcfg.Node {
	c := *n
	c.CapMap = maps.Clone(n.CapMap)
	for k, v := range c.CapMap {
		if len(v) == 0 {
			c.CapMap[k] = nil
		}
	}
	return &c
}

// sameAs returns an error unless c, which followed a stream, knows what fresh knows from a new full map. It may remember
// what it cannot be made to forget, and would not profit from forgetting: users whom it cannot see any more, and the last
// home relay of a peer whose relay is not known any more.
func (c *client) sameAs(fresh *client) error {
	mine := *c
	mine.peers = maps.Clone(c.peers)
	for id, want := range fresh.peers {
		if got := mine.peers[id]; got != nil && want.HomeDERP == 0 {
			n := *got
			n.HomeDERP = 0
			mine.peers[id] = &n
		}
	}
	got, want := mine.says(), fresh.says()
	for _, k := range slices.Sorted(maps.Keys(want)) {
		if got[k] != want[k] {
			return fmt.Errorf("%s:\n  deltas:   %s\n  full map: %s", k, got[k], want[k])
		}
	}
	for k := range got {
		if _, ok := want[k]; !ok && !strings.HasPrefix(k, "profile ") {
			return fmt.Errorf("%s is known from deltas alone: %s", k, got[k])
		}
	}
	return nil
}
