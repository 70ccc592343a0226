package netmap

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"

	"github.com/skein-vpn/skein/policy"
	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/state/statetest"
	"github.com/skein-vpn/skein/tailnet"
)

// naive is the full map made the plain way: one struct, marshalled once. It shares only the looks of one node, and names, with what it
// is compared with; those have tables of their own below.
func naive(w *world, sn *state.Snapshot, v Viewer) *tailcfg.MapResponse {
	self := sn.Node(v.Node)
	now := w.now().UTC()
	r := &tailcfg.MapResponse{
		ControlTime: &now, Debug: &tailcfg.Debug{DisableLogTail: true}, Node: w.enc.selfNode(sn, self), Domain: sn.DNS.Base,
		DERPMap: sn.DERP.For(v.Capver), DNSConfig: dnsConfig(sn, audienceOf(sn, self)), CollectServices: "false",
	}
	if sn.Policy.Policy() == nil {
		r.PacketFilter = sn.Policy.FilterFor(self.Node)
	} else {
		r.PacketFilters, r.SSHPolicy = sn.Policy.Filters(self.Node, v.Capver), sn.Policy.SSHFor(self.Node)
	}
	users := map[tailnet.UserID]bool{self.Owner(): true}
	member := func(n *state.Node) bool { // in the tailnet, with or without a key that holds
		u := sn.User(n.User)
		return n.Authorized && (u == nil || u.Status == tailnet.UserActive)
	}
	for _, n := range sn.Nodes() {
		if n.ID == self.ID || n.DiscoKey.IsZero() || !member(n) || !member(self) || self.Expired(w.now()) || !sn.Policy.SeesNode(self.Node, n.Node) {
			continue
		}
		r.Peers = append(r.Peers, peerNode(sn, n, audienceOf(sn, self)))
		users[n.Owner()] = true
	}
	for id := range users {
		u := sn.User(id)
		r.UserProfiles = append(r.UserProfiles, tailcfg.UserProfile{ID: id.Tailcfg(), LoginName: u.LoginName(), DisplayName: u.Title()})
	}
	return r
}

// tidy makes two responses comparable: profiles in order and once.
func tidy(r *tailcfg.MapResponse) *tailcfg.MapResponse {
	slices.SortFunc(r.UserProfiles, func(a, b tailcfg.UserProfile) int { return int(a.ID - b.ID) })
	r.UserProfiles = slices.CompactFunc(r.UserProfiles, func(a, b tailcfg.UserProfile) bool { return a.ID == b.ID })
	if len(r.Peers) == 0 {
		r.Peers = nil
	}
	return r
}

// A glued full map decodes to what the plain way gives, for every viewer, with sparse ids, over blocks that are kept from
// one snapshot to the next.
func TestGluedFullMaps(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.SampledFrom([]int{1, 2, 63, 64, 65, 130}).Draw(t, "nodes")
		w := newWorld(t, statetest.NewWith(statetest.Tailnet(n)))
		for range rapid.IntRange(1, 3).Draw(t, "rounds") {
			w.update(func(tx *state.Tx) error { // thin it out
				for range rapid.IntRange(0, n).Draw(t, "deletions") {
					tx.DeleteNode(tailnet.NodeID(rapid.IntRange(1, n).Draw(t, "deleted")))
				}
				return nil
			})
			for range rapid.IntRange(1, 4).Draw(t, "changes") {
				w.randomChange(t)
			}
			sn := w.snapshot()
			nodes := sn.Nodes()
			for range min(3, len(nodes)) {
				v := Viewer{
					Node:   nodes[rapid.IntRange(0, len(nodes)-1).Draw(t, "viewer")].ID,
					Capver: rapid.SampledFrom([]tailcfg.CapabilityVersion{113, 142}).Draw(t, "capver"), Compress: rapid.Bool().Draw(t, "compress"),
				}
				f, ok := w.enc.Full(sn, v)
				if !ok {
					t.Fatal("no full map")
				}
				got, err := decodeFrame(frameBytes(f), v.Compress)
				if err != nil {
					t.Fatal(err)
				}
				want, err := json.Marshal(tidy(naive(w, sn, v)))
				if err != nil {
					t.Fatal(err)
				}
				if got := asText(tidy(got)); got != string(want) {
					t.Fatalf("node %d:\n  glued %s\n  plain %s", v.Node, got, want)
				}
			}
		}
		if _, ok := w.enc.Full(w.snapshot(), Viewer{Node: 1 << 40}); ok {
			t.Fatal("a full map for a node that does not exist")
		}
	})
}

// shares reports how many parts of x are, byte for byte in the same memory, parts of y.
func shares(x, y Frame) (n int) {
	for _, p := range x.parts {
		for _, q := range y.parts {
			if len(p) > 64 && len(q) == len(p) && &p[0] == &q[0] {
				n++
			}
		}
	}
	return n
}

// Blocks of peers are the same memory for all viewers whose block it is not, and from one snapshot to the next while none
// of their peers changes. So are the pieces of a viewer's own block that do not hold it.
func TestBlocksAreShared(t *testing.T) {
	const n = 4*blockPeers - 1 // four blocks: ids begin with 1
	w := newWorld(t, statetest.NewWith(statetest.Tailnet(n)))
	full := func(v Viewer) Frame {
		t.Helper()
		f, ok := w.enc.Full(w.snapshot(), v)
		if !ok {
			t.Fatal("no full map")
		}
		return f
	}
	a, b, c := Viewer{Node: 1, Capver: 142, Compress: true}, Viewer{Node: 2, Capver: 142, Compress: true}, Viewer{Node: n, Capver: 113, Compress: true}
	const shared = 1                         // what is said of the tailnet
	const pieces = blockPeers/blockPiece - 1 // of the own block
	if got := shares(full(a), full(a)); got != 3+pieces+shared {
		t.Errorf("one viewer asking twice: %d parts are the same memory, want %d", got, 3+pieces+shared)
	}
	if got := shares(full(a), full(b)); got != 3+pieces+shared {
		t.Errorf("two viewers of one block: %d parts are the same memory, want %d", got, 3+pieces+shared)
	}
	if got := shares(full(a), full(c)); got != 2+shared {
		t.Errorf("viewers of two blocks and versions: %d parts are the same memory, want %d", got, 2+shared)
	}
	before := full(a)
	w.edit(blockPeers+3, func(_ *state.Tx, n *tailnet.Node) { n.HomeDERP = 902 })
	if got := shares(before, full(a)); got != 2+pieces {
		t.Errorf("after a change in block 1: %d parts are the same memory, want %d", got, 2+pieces)
	}
	before = full(a)
	w.user("somebody")
	if got := shares(before, full(a)); got != 3+pieces {
		t.Errorf("after a change of no node: %d parts are the same memory, want %d", got, 3+pieces)
	}
	if got := shares(full(a), full(Viewer{Node: 1, Capver: 142})); got != 0 {
		t.Errorf("two encodings: %d parts are the same memory", got)
	}
}

// Many goroutines ask for full maps and deltas while the tailnet changes: each gets what it would get alone.
func TestConcurrentEncoding(t *testing.T) {
	w := newWorld(t, statetest.NewWith(statetest.Tailnet(100)))
	snaps := []*state.Snapshot{w.snapshot()}
	for i := range 20 {
		id := tailnet.NodeID(i*3 + 1)
		w.edit(id, func(_ *state.Tx, n *tailnet.Node) { n.HomeDERP = 902 + i })
		if i%4 == 0 {
			w.join("new", 1)
		}
		snaps = append(snaps, w.snapshot())
	}
	type request struct {
		from, to int
		v        Viewer
	}
	var requests []request
	for from := range snaps {
		for _, to := range []int{from, from + 1, len(snaps) - 1} {
			if to < len(snaps) {
				for _, id := range []tailnet.NodeID{1, 50, 100} {
					requests = append(requests, request{from, to, Viewer{Node: id, Capver: 142, Compress: id == 50}})
				}
			}
		}
	}
	run := func(e *Encoder, r request) []byte {
		if r.from == r.to {
			f, _ := e.Full(snaps[r.to], r.v)
			return frameBytes(f)
		}
		f, ok := e.Delta(snaps[r.from], snaps[r.to], r.v)
		if !ok {
			return nil
		}
		return frameBytes(f)
	}
	alone := New(Options{Taildrop: true}, w.now)
	want := make([][]byte, len(requests))
	for i, r := range requests {
		want[i] = run(alone, r)
	}
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range requests {
				i := (i*7 + g*13) % len(requests)
				if got := run(w.enc, requests[i]); !bytes.Equal(got, want[i]) {
					t.Errorf("request %+v differs when others ask as well", requests[i])
				}
			}
		})
	}
	wg.Wait()
}

// What peers are shown of a node.
func TestPeerNode(t *testing.T) {
	w, _, id := pairWorld(t)
	stable := w.snapshot().Node(id).StableID
	seen := statetest.Epoch.Add(1500 * time.Millisecond)
	w.setNow(seen)
	w.edit(id, func(tx *state.Tx, n *tailnet.Node) {
		n.Hostinfo = &tailcfg.Hostinfo{
			Hostname: "homeDS", OS: "linux", BackendLogID: "secret", DeviceModel: "DS218", RoutableIPs: []netip.Prefix{exit4, aLAN, exit6},
			RequestTags: []string{"tag:x"}, NetInfo: &tailcfg.NetInfo{PreferredDERP: 7}, SSH_HostKeys: []string{"ssh-ed25519 AAAA"},
			Services: []tailcfg.Service{{Proto: tailcfg.PeerAPI4, Port: 1}, {Proto: tailcfg.TCP, Port: 22}, {Proto: tailcfg.PeerAPIDNS, Port: 1}},
		}
		n.ApprovedRoutes = []netip.Prefix{exit4, aNet, aLAN, exit6} // aNet is not advertised
		n.Expiry, n.Capver, n.KeySignature = seen.Add(time.Hour), 141, []byte("sig")
		n.Tags, n.User = []string{"tag:web"}, 0
		n.HomeDERP = 903
		tx.SetOnline(id, true)
	})
	w.update(func(tx *state.Tx) error { tx.SetOnline(id, false); return nil })
	sn := w.snapshot()
	n := sn.Node(id)
	lastSeen, online := seen.Truncate(time.Second), false
	want := &tailcfg.Node{
		ID: id.Tailcfg(), StableID: tailcfg.StableNodeID(stable), Name: "peer.skein.internal.", User: tailnet.TaggedDevices.Tailcfg(),
		Key: n.NodeKey, KeyExpiry: lastSeen.Add(time.Hour), KeySignature: []byte("sig"), Machine: n.MachineKey, DiscoKey: n.DiscoKey,
		Addresses:  []netip.Prefix{netip.MustParsePrefix("100.64.0.2/32"), netip.MustParsePrefix("fd7a:115c:a1e0::2/128")},
		AllowedIPs: []netip.Prefix{netip.MustParsePrefix("100.64.0.2/32"), netip.MustParsePrefix("fd7a:115c:a1e0::2/128"), exit4, aLAN, exit6},
		Endpoints:  epSet[:1], HomeDERP: 903, LegacyDERPString: "127.3.3.40:903", Created: statetest.Epoch, Cap: 141,
		Hostinfo: (&tailcfg.Hostinfo{
			Hostname: "homeDS", OS: "linux", SSH_HostKeys: []string{"ssh-ed25519 AAAA"},
			Services: []tailcfg.Service{{Proto: tailcfg.PeerAPI4, Port: 1}, {Proto: tailcfg.PeerAPIDNS, Port: 1}},
		}).View(),
		Tags: []string{"tag:web"}, PrimaryRoutes: []netip.Prefix{aLAN}, LastSeen: &lastSeen, Online: &online, MachineAuthorized: true,
		CapMap: tailcfg.NodeCapMap{"suggest-exit-node": nil},
	}
	if got := peerNode(sn, n, audience{}); asText(got) != asText(want) {
		t.Errorf("peers are shown\n  %s\nwant\n  %s", asText(got), asText(want))
	}

	// Online: no LastSeen. A node without a home has the only one there is; with several regions, none.
	w.update(func(tx *state.Tx) error { tx.SetOnline(id, true); return nil })
	w.edit(id, func(_ *state.Tx, n *tailnet.Node) {
		n.HomeDERP, n.Hostinfo, n.Expiry = 0, &tailcfg.Hostinfo{}, time.Time{}
	})
	sn = w.snapshot()
	got := peerNode(sn, sn.Node(id), audience{})
	if got.Online == nil || !*got.Online || got.LastSeen != nil || got.HomeDERP != 901 || got.LegacyDERPString != "127.3.3.40:901" ||
		len(got.CapMap) != 0 || len(got.PrimaryRoutes) != 0 || len(got.AllowedIPs) != 2 || !got.KeyExpiry.IsZero() || !got.Hostinfo.Valid() {
		t.Errorf("online, without routes: %s", asText(got))
	}
	w.update(func(tx *state.Tx) error { tx.SetDERP(&state.DERPMaps{Current: relays(901, 902)}); return nil })
	sn = w.snapshot()
	if got := peerNode(sn, sn.Node(id), audience{}); got.HomeDERP != 0 || got.LegacyDERPString != "" {
		t.Errorf("with two regions and no home: %s", asText(got))
	}
}

// What a node is shown of itself: its approval and capabilities, its own routes; not what it knows better.
func TestSelfNode(t *testing.T) {
	w, id, _ := pairWorld(t)
	w.edit(id, func(_ *state.Tx, n *tailnet.Node) {
		n.Hostinfo = &tailcfg.Hostinfo{Hostname: "viewer", RoutableIPs: []netip.Prefix{aNet, aLAN}}
		n.ApprovedRoutes, n.Authorized = []netip.Prefix{aLAN}, false
	})
	sn := w.snapshot()
	got := w.enc.selfNode(sn, sn.Node(id))
	if got.MachineAuthorized || got.Endpoints != nil || got.Online != nil || got.LastSeen != nil || len(got.AllowedIPs) != 2 || len(got.PrimaryRoutes) != 0 {
		t.Errorf("a node that waits for its approval is shown %s", asText(got))
	}
	for _, tc := range []struct {
		o    Options
		want []tailcfg.NodeCapability
	}{
		{Options{}, nil},
		{Options{Taildrop: true}, []tailcfg.NodeCapability{tailcfg.CapabilityFileSharing}},
		{Options{RandomizeClientPort: true}, []tailcfg.NodeCapability{tailcfg.NodeAttrRandomizeClientPort}},
	} {
		m := New(tc.o, nil).selfNode(sn, sn.Node(id)).CapMap
		if len(m) != len(tc.want) || len(tc.want) > 0 && !m.Contains(tc.want[0]) {
			t.Errorf("%+v gives %v, want %v", tc.o, m, tc.want)
		}
	}
}

// Only a node whose user is an administrator is told so, whatever the policy says.
func TestAdminCapability(t *testing.T) {
	w, id, _ := pairWorld(t)
	p, err := policy.Parse([]byte(`{"nodeAttrs":[{"target":["*"],"attr":["https://tailscale.com/cap/is-admin","https://tailscale.com/cap/is-owner","other"]}]}`))
	if err != nil {
		t.Fatal(err)
	}
	w.update(func(tx *state.Tx) error { return tx.SetPolicy(p, "", "") })
	for _, tt := range []struct {
		role         tailnet.Role
		status       tailnet.UserStatus
		tags         []string
		admin, owner bool
	}{
		{role: tailnet.RoleMember}, {role: tailnet.RoleAuditor}, {role: tailnet.RoleITAdmin}, {role: tailnet.RoleNetworkAdmin},
		{role: tailnet.RoleAdmin, admin: true}, {role: tailnet.RoleOwner, admin: true, owner: true},
		{role: tailnet.RoleAdmin, status: tailnet.UserSuspended}, {role: tailnet.RoleOwner, tags: []string{"tag:x"}},
	} {
		w.update(func(tx *state.Tx) error {
			n := tx.Node(id).Clone()
			for _, u := range w.snapshot().Users() {
				c := *u
				c.Role, c.Status = tt.role, tt.status
				if err := tx.PutUser(&c); err != nil {
					return err
				}
				n.User = u.ID
			}
			if n.Tags = tt.tags; n.Tagged() {
				n.User = 0
			}
			return tx.PutNode(n)
		})
		sn := w.snapshot()
		m := w.enc.selfNode(sn, sn.Node(id)).CapMap
		if !m.Contains("other") || m.Contains(tailcfg.CapabilityAdmin) != tt.admin || m.Contains(tailcfg.CapabilityOwner) != tt.owner {
			t.Errorf("%+v: %v", tt, m)
		}
	}
}

// A node whose key has ended is shown as expired, without anything by which it could be reached, and sees nobody. While it
// is about to use a new key, it is shown with the one before, and itself with the new one.
func TestKeysOfPeers(t *testing.T) {
	w, viewer, peer := pairWorld(t)
	w.update(func(tx *state.Tx) error { tx.SetOnline(peer, true); return nil })
	w.edit(peer, func(_ *state.Tx, n *tailnet.Node) {
		n.Hostinfo = &tailcfg.Hostinfo{Hostname: "peer", RoutableIPs: []netip.Prefix{aLAN, exit4, exit6}}
		n.ApprovedRoutes = []netip.Prefix{exit4, aLAN, exit6}
	})
	var old, renewed key.NodePublic
	w.edit(peer, func(tx *state.Tx, n *tailnet.Node) {
		old, renewed = n.NodeKey, key.NewNode().Public()
		tx.NewKey(n, renewed)
	})
	sn := w.snapshot()
	if got := peerNode(sn, sn.Node(peer), audience{}); got.Key != old || got.Expired {
		t.Errorf("with a new key that is not used yet: %s", asText(got))
	}
	if got := w.enc.selfNode(sn, sn.Node(peer)); got.Key != renewed {
		t.Errorf("itself is told of the key %v, want %v", got.Key, renewed)
	}
	w.edit(peer, func(tx *state.Tx, n *tailnet.Node) { n.Expiry = tx.Now() })
	sn = w.snapshot()
	got := peerNode(sn, sn.Node(peer), audience{})
	if !got.Expired || got.Key == old || got.Key == renewed || got.Key.IsZero() || len(got.Endpoints) != 0 || got.HomeDERP != 0 || got.LegacyDERPString != "" ||
		len(got.AllowedIPs) != 2 || len(got.PrimaryRoutes) != 0 || *got.Online || got.CapMap.Contains(capSuggestExitNode) {
		t.Errorf("with a key that has ended: %s", asText(got))
	}
	if c := w.full(sn, Viewer{Node: peer, Capver: 142}); len(c.peers) != 0 || !c.self.MachineAuthorized || c.self.KeyExpiry.IsZero() {
		t.Errorf("itself sees %d peers and itself as %s", len(c.peers), asText(c.self))
	}
	if c := w.full(sn, Viewer{Node: viewer, Capver: 142}); len(c.peers) != 1 {
		t.Errorf("others see %d peers, want the expired one", len(c.peers))
	}
	w.update(func(tx *state.Tx) error {
		u := *tx.User(1)
		u.Status = tailnet.UserSuspended
		return tx.PutUser(&u)
	})
	sn = w.snapshot()
	for _, id := range []tailnet.NodeID{viewer, peer} {
		if c := w.full(sn, Viewer{Node: id, Capver: 142}); len(c.peers) != 0 || c.self.MachineAuthorized {
			t.Errorf("of a suspended user: %d peers, itself %s", len(c.peers), asText(c.self))
		}
	}
}

// A node that is not approved sees nobody and is nobody's peer; approved, it sees all and is seen.
func TestApproval(t *testing.T) {
	w, a, b := pairWorld(t)
	authorize := func(yes bool) {
		w.edit(b, func(_ *state.Tx, n *tailnet.Node) { n.Authorized = yes })
	}
	authorize(false)
	sn := w.snapshot()
	va, vb := Viewer{Node: a, Capver: 142}, Viewer{Node: b, Capver: 142}
	ca, cb := w.full(sn, va), w.full(sn, vb)
	if len(ca.peers) != 0 || len(cb.peers) != 0 || cb.self.MachineAuthorized {
		t.Errorf("before approval: %d and %d peers", len(ca.peers), len(cb.peers))
	}
	authorize(true)
	next := w.snapshot()
	for v, c := range map[Viewer]*client{va: ca, vb: cb} {
		f, ok := w.enc.Delta(sn, next, v)
		if !ok {
			t.Fatal("no delta")
		}
		if err := c.receive(f); err != nil || len(c.peers) != 1 || !c.self.MachineAuthorized {
			t.Errorf("after approval: %v, %d peers", err, len(c.peers))
		}
	}
}

// Every version gets its relay map, and nobody is refused for being new.
func TestVersions(t *testing.T) {
	w, a, _ := pairWorld(t)
	w.update(func(tx *state.Tx) error {
		tx.SetDERP(&state.DERPMaps{Current: relays(901), Old: relays(902), OldBelow: 131, Home: 901})
		return nil
	})
	for capver, region := range map[tailcfg.CapabilityVersion]int{0: 902, 106: 902, 130: 902, 131: 901, 142: 901, 148: 901, 10000: 901} {
		c := w.full(w.snapshot(), Viewer{Node: a, Capver: capver})
		if c.derp.Regions[region] == nil || len(c.derp.Regions) != 1 {
			t.Errorf("version %d is given the regions %v, want %d", capver, c.derp.RegionIDs(), region)
		}
	}
}

// Log collection is off unless it is switched on: the first message says so.
func TestLogCollection(t *testing.T) {
	w, a, _ := pairWorld(t)
	for _, on := range []bool{false, true} {
		f, _ := New(Options{LogCollection: on}, nil).Full(w.snapshot(), Viewer{Node: a})
		r, err := decodeFrame(frameBytes(f), false)
		if err != nil {
			t.Fatal(err)
		}
		if off := r.Debug != nil && r.Debug.DisableLogTail; off == on {
			t.Errorf("log collection %v: logs are disabled: %v", on, off)
		}
	}
}

// Keep-alives are the very bytes that clients recognise without decoding (direct.go:justKeepAliveStr), always the same ones.
func TestKeepAlive(t *testing.T) {
	for _, compress := range []bool{false, true} {
		v := Viewer{Compress: compress}
		f := KeepAlive(v)
		if g := KeepAlive(Viewer{Node: 7, Capver: 142, Compress: compress}); !bytes.Equal(frameBytes(f), frameBytes(g)) || &f.parts[0][0] != &g.parts[0][0] {
			t.Error("two keep-alives differ")
		}
		r, err := decodeFrame(frameBytes(f), compress)
		if err != nil || !r.KeepAlive || asText(r) != `{"KeepAlive":true}` {
			t.Errorf("a keep-alive is %s, %v", asText(r), err)
		}
		if !compress && string(frameBytes(f)[4:]) != `{"KeepAlive":true}` {
			t.Errorf("a keep-alive is %q", frameBytes(f))
		}
	}
}

// Seal encodes one response as it is.
func TestSeal(t *testing.T) {
	for _, compress := range []bool{false, true} {
		in := &tailcfg.MapResponse{PingRequest: &tailcfg.PingRequest{URL: "https://skein.example/machine/ping/x", URLIsNoise: true, Types: "c2n"}}
		got, err := decodeFrame(frameBytes(New(Options{}, nil).Seal(Viewer{Compress: compress}, in)), compress)
		if err != nil || asText(got) != asText(in) {
			t.Errorf("sealed %s, %v", asText(got), err)
		}
	}
}

// A node that is gone is shown an expired self, whatever is still known of it, and nobody else.
func TestGone(t *testing.T) {
	w, id, _ := pairWorld(t)
	sn := w.snapshot()
	for name, n := range map[string]*tailnet.Node{
		"deleted":  sn.Node(id).Node,
		"tagged":   {ID: 9, StableID: "n9", Name: "x", Tags: []string{"tag:x"}, NodeKey: key.NewNode().Public()},
		"unknown":  {ID: 1<<53 - 1, StableID: "gone", Name: "unknown", NodeKey: key.NewNode().Public()},
		"ipv6 one": {ID: 10, StableID: "n10", Name: "six", NodeKey: key.NewNode().Public(), IPv6: netip.MustParseAddr("fd7a:115c:a1e0::7")},
	} {
		v := Viewer{Node: n.ID, Capver: 142, Compress: true}
		r, err := decodeFrame(frameBytes(w.enc.Gone(sn, n, v)), true)
		if err != nil {
			t.Fatal(err)
		}
		self := r.Node
		if self == nil || self.Key != n.NodeKey || self.ID != n.ID.Tailcfg() || string(self.StableID) != n.StableID || self.Name != n.Name+".skein.internal." ||
			self.KeyExpiry.IsZero() || self.KeyExpiry.After(w.now()) || !self.MachineAuthorized || len(self.Addresses) != len(n.Addrs()) ||
			len(r.Peers)+len(r.UserProfiles)+len(r.PacketFilter) != 0 {
			t.Errorf("%s: %s", name, asText(r))
		}
	}
}

// WriteTo hands on the error of a broken connection and says how much went out.
func TestWriteToBrokenConnection(t *testing.T) {
	w := newWorld(t, statetest.NewWith(statetest.Tailnet(200)))
	f, _ := w.enc.Full(w.snapshot(), Viewer{Node: 1, Compress: true})
	for _, limit := range []int{0, 3, 4, 100, f.Size() - 1} {
		b := &brokenWriter{left: limit}
		if n, err := f.WriteTo(b); !errors.Is(err, errBroken) || n != int64(limit) {
			t.Errorf("after %d bytes: %d, %v", limit, n, err)
		}
	}
	if n, err := f.WriteTo(&brokenWriter{left: f.Size()}); err != nil || n != int64(f.Size()) {
		t.Errorf("to a whole connection: %d, %v", n, err)
	}
}

var errBroken = errors.New("broken pipe")

// brokenWriter takes so many bytes and no more.
type brokenWriter struct{ left int }

func (b *brokenWriter) Write(p []byte) (int, error) {
	n := min(len(p), b.left)
	b.left -= n
	if n < len(p) {
		return n, errBroken
	}
	return n, nil
}

// The old blocks and views do not pile up.
func TestCachesAreBounded(t *testing.T) {
	w := newWorld(t, statetest.NewWith(statetest.Tailnet(130)))
	for i := range 200 {
		w.edit(1, func(_ *state.Tx, n *tailnet.Node) { n.HomeDERP = i + 1 })
		w.full(w.snapshot(), Viewer{Node: 2, Capver: 142, Compress: i%2 == 0})
	}
	if b, v := len(w.enc.blocks), len(w.enc.views); b > 6 || v > maxViews {
		t.Errorf("%d blocks and %d views are kept after 200 maps of three blocks", b, v)
	}
	if got := fmt.Sprint(w.snapshot().Node(1).HomeDERP); got != "200" {
		t.Error(got)
	}
}
