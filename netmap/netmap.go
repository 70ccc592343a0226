// Package netmap turns snapshots into what clients are sent: full maps and deltas, encoded and compressed once and shared
// by all sessions they fit.
//
// # What is shared
//
// A peer's entry is the same bytes for every viewer, so that peers are encoded in blocks of up to 64, by id; a block is
// kept until one of its peers changes. Concatenated zstd frames decode as one, so a full map is glued together: a part
// made for the viewer, the shared blocks (of the one that holds the viewer itself a piece is made apart), and a closing part.
//
//	{"Node":…,"UserProfiles":[own  ⧺  ,others],"DNSConfig":…,"Peers":[  ⧺  block 0  ⧺  ,  ⧺  block 1  ⧺ … ⧺  ]}
//	└───────── this viewer ──────┘    └─────────────────────── every viewer of its audience ───────────────────┘
//
// A delta is what differs between two snapshots. Nodes are immutable, so comparing pointers finds the ones that changed;
// what changed about them decides between a patch, the whole peer and a removal (protocol rules are cited where they are
// obeyed). Viewers of one audience share one frame; only a viewer that changed itself gets its own.
//
// # Invariant
//
// A full map with deltas applied to it, in any number of steps, says the same as the next full map. The tests check it
// for random changes with a model of the client.
package netmap

import (
	"cmp"
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/types/key"

	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// Viewer is whom a map is for.
type Viewer struct {
	Node     tailnet.NodeID
	Capver   tailcfg.CapabilityVersion // of this stream (tailcfg.MapRequest.Version)
	Compress bool                      // zstd, as tailcfg.MapRequest.Compress asks for; otherwise plain JSON
}

// Options are the settings that show in maps.
type Options struct {
	Taildrop            bool // nodes of one user may send each other files
	LogCollection       bool // clients may upload their logs to Tailscale
	RandomizeClientPort bool
}

// peerNode is n as viewers of an audience are shown it. Only routes differ between audiences. A node whose key has ended is
// shown as expired, so that people see why it does not answer, without a path and with a key that nobody can use, as clients
// make of it themselves when their clock says so (ipnlocal.expiryManager.flagExpiredPeers).
func peerNode(sn *state.Snapshot, n *state.Node, a audience) *tailcfg.Node {
	var routes []netip.Prefix
	if !n.Ended {
		routes = sn.Policy.Routes(a.class, n.Node, sn.Carrier)
	}
	out := commonNode(sn, n, routes)
	out.Key = n.Shown
	out.Endpoints = n.Endpoints
	if n.Ended {
		out.Expired, out.Key = true, key.NodePublicWithBadOldPrefix(n.Shown)
		out.Endpoints, out.HomeDERP, out.LegacyDERPString = nil, 0, ""
	}
	out.Machine = n.MachineKey
	out.MachineAuthorized = true
	online := n.Online && !n.Ended
	out.Online = &online // never nil: a later nil→true is dropped by clients
	if !online && !n.LastSeen.IsZero() {
		seen := n.LastSeen.UTC().Truncate(time.Second)
		out.LastSeen = &seen
	}
	out.CapMap = tailcfg.NodeCapMap{}
	if slices.ContainsFunc(out.AllowedIPs, tailnet.IsExitRoute) {
		out.CapMap[capSuggestExitNode] = nil
	}
	for _, c := range sn.Policy.SourceCaps(n.Class) {
		out.CapMap[c] = nil
	}
	return out
}

// sameForAll reports whether peerNode gives the same for every audience.
func sameForAll(sn *state.Snapshot, n *state.Node) bool {
	return sn.Policy.Policy() == nil || len(n.ActiveRoutes()) == 0
}

// selfNode is n as it is shown itself. It leaves out what the client knows better (endpoints, whether it is online), so
// that a roaming client is not made to rebuild its netmap.
func (e *Encoder) selfNode(sn *state.Snapshot, n *state.Node) *tailcfg.Node {
	out := commonNode(sn, n, n.Primary)
	out.Machine = n.MachineKey
	out.MachineAuthorized = n.Approved
	out.CapMap = e.selfCaps()
	for c, v := range sn.Policy.AttrsFor(n.Node) {
		out.CapMap[c] = v
	}
	setAdmin(out.CapMap, sn, n)
	setServices(out.CapMap, n)
	if sn.Policy.HasSSH(n.Node) { // it lets `tailscale up --ssh` through
		out.CapMap[capSSH] = nil
	}
	return out
}

// commonNode is what a node and its peers are told alike. routes are those that it carries for whom it is shown to.
func commonNode(sn *state.Snapshot, n *state.Node, routes []netip.Prefix) *tailcfg.Node {
	out := &tailcfg.Node{
		ID:           n.ID.Tailcfg(),
		StableID:     tailcfg.StableNodeID(n.StableID),
		Name:         sn.DNS.FQDN(n.Name),
		User:         n.Owner().Tailcfg(),
		Key:          n.NodeKey,
		KeySignature: n.KeySignature,
		DiscoKey:     n.DiscoKey,
		Hostinfo:     peerHostinfo(n.Hostinfo).View(), // must be there: clients' status call panics without
		Created:      n.Created.UTC().Truncate(time.Second),
		Cap:          n.Capver,
		Tags:         n.Tags,
		HomeDERP:     cmp.Or(n.HomeDERP, sn.DERP.Home),
	}
	if out.HomeDERP != 0 {
		// capver < 111 reads this form only: tailcfg.Node.LegacyDERPString
		out.LegacyDERPString = netip.AddrPortFrom(legacyDERP, uint16(out.HomeDERP)).String()
	}
	if !n.Expiry.IsZero() {
		out.KeyExpiry = n.Expiry.UTC().Truncate(time.Second)
	}
	for _, a := range sn.Policy.AddrsOf(n.Node) {
		out.Addresses = append(out.Addresses, netip.PrefixFrom(a, a.BitLen()))
	}
	out.AllowedIPs = append(slices.Clone(out.Addresses), routes...)
	for _, p := range routes {
		if !tailnet.IsExitRoute(p) && !tailnet.IsServiceRoute(p) {
			out.PrimaryRoutes = append(out.PrimaryRoutes, p)
		}
	}
	return out
}

// legacyDERP is the address that stands for "a relay region" in tailcfg.Node.LegacyDERPString.
var legacyDERP = netip.MustParseAddr("127.3.3.40")

// peerHostinfo is the part of a node's Hostinfo that its peers need, and no more: the rest is nobody's business.
func peerHostinfo(h *tailcfg.Hostinfo) *tailcfg.Hostinfo {
	out := &tailcfg.Hostinfo{
		Hostname:     h.Hostname,
		OS:           h.OS,
		SSH_HostKeys: h.SSH_HostKeys,
		Location:     h.Location,
		ShareeNode:   h.ShareeNode,
	}
	for _, s := range h.Services {
		if strings.HasPrefix(string(s.Proto), "peerapi") {
			out.Services = append(out.Services, s)
		}
	}
	return out
}

// profile is a user as clients show it.
func profile(u *tailnet.User) tailcfg.UserProfile {
	return tailcfg.UserProfile{ID: u.ID.Tailcfg(), LoginName: u.LoginName(), DisplayName: u.Title(), ProfilePicURL: u.Picture}
}

// peerPatch is tailcfg.PeerChange with pointers where its omitempty would lose a value that says something: an empty list
// of endpoints clears them, an empty signature or map of capabilities takes them away.
type peerPatch struct {
	NodeID       tailcfg.NodeID
	DERPRegion   int                       `json:",omitzero"`
	Cap          tailcfg.CapabilityVersion `json:",omitzero"`
	CapMap       *tailcfg.NodeCapMap       `json:",omitempty"`
	Endpoints    *[]netip.AddrPort         `json:",omitempty"`
	Key          json.RawMessage           `json:",omitempty"`
	KeySignature *[]byte                   `json:",omitempty"`
	DiscoKey     json.RawMessage           `json:",omitempty"`
	Online       *bool                     `json:",omitempty"`
	LastSeen     *time.Time                `json:",omitempty"`
	KeyExpiry    *time.Time                `json:",omitempty"`
}

// patch is the step from a to b as patches to be applied in order, none if peers see no difference. ok is false if patches
// cannot say it and the whole peer must be sent.
//
// It must be able to say all that the client's own patches can (controlclient.peerChangeDiff): the client makes one of a
// whole peer if it can, and that one loses values that have become empty.
//
// Not said is what a client cannot be told within a stream, patched or whole: that a home relay or a version is not known
// any more.
func patch(a, b *tailcfg.Node) (ps []*peerPatch, ok bool) {
	ra, rb := *a, *b
	for _, r := range []*tailcfg.Node{&ra, &rb} { // what remains when all that a patch can say is taken out
		r.HomeDERP, r.LegacyDERPString, r.Cap, r.CapMap, r.Endpoints, r.KeySignature = 0, "", 0, nil, nil, nil
		r.Key, r.DiscoKey, r.Online, r.LastSeen, r.KeyExpiry = tailcfg.Node{}.Key, tailcfg.Node{}.DiscoKey, nil, nil, time.Time{}
	}
	if !slices.Equal(marshal(&ra), marshal(&rb)) {
		return nil, false
	}
	p, said := &peerPatch{NodeID: b.ID}, false
	if a.HomeDERP != b.HomeDERP && b.HomeDERP != 0 {
		p.DERPRegion, said = b.HomeDERP, true
	}
	if a.Cap != b.Cap && b.Cap != 0 {
		p.Cap, said = b.Cap, true
	}
	if !slices.Equal(marshal(a.CapMap), marshal(b.CapMap)) {
		caps := b.CapMap
		if caps == nil {
			caps = tailcfg.NodeCapMap{}
		}
		p.CapMap, said = &caps, true
	}
	if !slices.Equal(a.Endpoints, b.Endpoints) {
		eps := b.Endpoints
		if eps == nil {
			eps = []netip.AddrPort{}
		}
		p.Endpoints, said = &eps, true
	}
	if a.Key != b.Key {
		p.Key, said = marshal(b.Key), true
	}
	if !slices.Equal(a.KeySignature, b.KeySignature) {
		sig := []byte(b.KeySignature)
		if sig == nil {
			sig = []byte{}
		}
		p.KeySignature, said = &sig, true
	}
	if *a.Online != *b.Online {
		p.Online, said = b.Online, true
	}
	if b.LastSeen != nil && (a.LastSeen == nil || !a.LastSeen.Equal(*b.LastSeen)) {
		p.LastSeen, said = b.LastSeen, true
	}
	if !a.KeyExpiry.Equal(b.KeyExpiry) {
		p.KeyExpiry, said = &b.KeyExpiry, true
	}
	if a.DiscoKey != b.DiscoKey {
		// In a patch of its own: one that says "offline" and when the peer was last seen is dropped whole, unless that is
		// later, in seconds, than the client knew (controlclient.mapSession.removeUnwantedDiscoUpdates).
		ps = append(ps, &peerPatch{NodeID: b.ID, DiscoKey: marshal(b.DiscoKey)})
	}
	if said {
		ps = append(ps, p)
	}
	return ps, true
}
