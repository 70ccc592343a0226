package control

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"tailscale.com/control/tsp"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
	"tailscale.com/util/zstdframe"

	"github.com/skein-vpn/skein/netmap"
	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// The first message of a stream carries everything: nothing is remembered from an earlier stream.
func TestFirstMap(t *testing.T) {
	ts := newServer(t, nil)
	a, b := ts.joined("alpha"), ts.joined("beta")
	for round := range 2 {
		s := a.stream()
		m := s.first()
		switch {
		case m.Node.Key != a.node.Public(), m.Node.Name != "alpha.skein.internal.", m.Node.StableID == "", !m.Node.MachineAuthorized,
			len(m.Node.Addresses) != 2, m.Node.Machine != a.machine.Public():
			t.Errorf("round %d: Node is %+v", round, m.Node)
		case m.DERPMap == nil || len(m.DERPMap.Regions) != 1:
			t.Errorf("round %d: DERPMap is %+v", round, m.DERPMap)
		case len(m.PacketFilter) == 0:
			t.Errorf("round %d: PacketFilter is %+v", round, m.PacketFilter)
		case m.DNSConfig == nil || !m.DNSConfig.Proxied || !slices.Contains(m.DNSConfig.Domains, "skein.internal"):
			t.Errorf("round %d: DNSConfig is %+v", round, m.DNSConfig)
		case m.Domain != "skein.internal":
			t.Errorf("round %d: Domain is %q", round, m.Domain)
		case m.ControlTime == nil:
			t.Errorf("round %d: no ControlTime", round)
		case len(m.Peers) != 1 || m.Peers[0].Key != b.node.Public() || m.Peers[0].Online == nil || !m.Peers[0].Hostinfo.Valid():
			t.Errorf("round %d: Peers are %+v", round, m.Peers)
		case m.Debug == nil || !m.Debug.DisableLogTail:
			t.Errorf("round %d: clients are not told to keep their logs: %+v", round, m.Debug)
		}
		if !slices.ContainsFunc(m.UserProfiles, func(p tailcfg.UserProfile) bool { return p.ID == m.Node.User && p.LoginName == "alice" }) {
			t.Errorf("round %d: no profile of the owner in %+v", round, m.UserProfiles)
		}
		s.close()
	}
}

// What a client reports of itself reaches the others as a patch, and again writes nothing.
func TestLiteUpdate(t *testing.T) {
	ts := newServer(t, nil)
	a, b := ts.joined("alpha"), ts.joined("beta")
	sa, sb := a.stream(), b.stream()
	sa.first()
	sb.first()

	req := b.lite("192.0.2.1:41641", "[fe80::1%eth0]:41641", "[2001:db8::1]:41641")
	req.Hostinfo.NetInfo = &tailcfg.NetInfo{PreferredDERP: 7}
	b.report(req)
	p := sa.patch("the endpoints of beta", b.id(), func(p *tailcfg.PeerChange) bool { return len(p.Endpoints) > 0 })
	if want := []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:41641"), netip.MustParseAddrPort("[2001:db8::1]:41641")}; !slices.Equal(p.Endpoints, want) {
		t.Errorf("endpoints are %v, want %v", p.Endpoints, want)
	}
	if p.DERPRegion != 7 {
		t.Errorf("home relay is %d, want 7", p.DERPRegion)
	}

	before := ts.state.Snapshot()
	b.report(req)
	if after := ts.state.Snapshot(); after.Rev != before.Rev {
		t.Errorf("a report without news made revision %d out of %d", after.Rev, before.Rev)
	}
	req.Endpoints, req.EndpointTypes = nil, nil
	b.report(req)
	sa.next("the endpoints of beta to go", func(m *message) bool {
		return slices.ContainsFunc(m.PeersChangedPatch, func(p *tailcfg.PeerChange) bool {
			return p.NodeID == b.id().Tailcfg() && p.Endpoints != nil && len(p.Endpoints) == 0
		})
	})
	if !sb.alive() {
		t.Errorf("a lite update ended the stream of its node: %v", sb.err)
	}
}

// What a stream request says of the client is ignored from version 68 on: it may be empty, and storing it would take the
// node's path away.
func TestStreamRequestStoresNothing(t *testing.T) {
	ts := newServer(t, nil)
	a := ts.joined("alpha")
	a.report(a.lite("192.0.2.1:41641"))
	before := ts.state.Snapshot().Node(a.id()).Node
	r := a.streamRequest()
	r.Hostinfo, r.Endpoints, r.DiscoKey = &tailcfg.Hostinfo{Hostname: "other"}, nil, key.NewDisco().Public()
	a.rawStream(r).first()
	ts.until("alpha is online", func(sn *state.Snapshot) bool { return sn.Node(a.id()).Online })
	if after := ts.state.Snapshot().Node(a.id()).Node; after.Hostname != "alpha" || after.DiscoKey != before.DiscoKey || len(after.Endpoints) != 1 {
		t.Errorf("the stream changed the node from %+v to %+v", before, after)
	}
}

// The version that peers are told is that of the newest stream or report; any version gets a map.
func TestCapabilityVersions(t *testing.T) {
	ts := newServer(t, nil)
	a, b := ts.joined("alpha"), ts.joined("beta")
	s := b.stream()
	s.first()
	for _, v := range []tailcfg.CapabilityVersion{106, 113, 125, 148, 5000} {
		c := ts.rawClient(a.machine, uint16(v)) // the handshake says it, too
		r := a.streamRequest()
		r.Version = v
		a.raw = c
		st := a.rawStream(r)
		if m := st.first(); m.DERPMap == nil || len(m.Peers) != 1 || m.Peers[0].HomeDERP != 900 || m.Peers[0].LegacyDERPString != "127.3.3.40:900" {
			t.Errorf("version %d: first map %+v", v, m.MapResponse)
		}
		s.patch("alpha's version", a.id(), func(p *tailcfg.PeerChange) bool { return p.Cap == v })
		st.close()
	}
}

// Compress other than zstd gets plain JSON, with the same framing.
func TestUncompressed(t *testing.T) {
	ts := newServer(t, nil)
	a, b := ts.joined("alpha"), ts.joined("beta")
	r := a.streamRequest()
	r.Compress = ""
	s := a.rawStream(r)
	if m := s.first(); len(m.Peers) != 1 {
		t.Errorf("first map %+v", m.MapResponse)
	}
	b.report(b.lite("192.0.2.1:1"))
	s.patch("an endpoint", b.id(), func(p *tailcfg.PeerChange) bool { return len(p.Endpoints) == 1 })
}

func TestReadOnlyMap(t *testing.T) {
	ts := newServer(t, nil)
	a := ts.joined("alpha")
	ts.joined("beta")
	before := ts.state.Snapshot()
	ms, err := a.tsp.Map(ts.ctx, tsp.MapOpts{NodeKey: a.node})
	ts.must(err)
	defer ms.Close()
	m, err := ms.Next()
	ts.must(err)
	if m.Node == nil || len(m.Peers) != 1 || m.DERPMap == nil {
		t.Errorf("the map is %+v", m)
	}
	if _, err := ms.Next(); err == nil {
		t.Error("there is a second message")
	}
	r := a.streamRequest()
	r.Stream, r.ReadOnly, r.Endpoints, r.DiscoKey = false, true, []netip.AddrPort{netip.MustParseAddrPort("192.0.2.9:9")}, key.NewDisco().Public()
	a.do("POST", "/machine/map", r)
	if after := ts.state.Snapshot(); after != before {
		t.Error("a read-only map changed the state")
	}
}

// A second stream of the same node ends the first, and the node stays online all the while.
func TestSecondStream(t *testing.T) {
	ts := newServer(t, nil)
	a, b := ts.joined("alpha"), ts.joined("beta")
	sb := b.stream()
	sb.first()
	s1 := a.rawStream(a.streamRequest())
	s1.first()
	sb.patch("alpha online", a.id(), func(p *tailcfg.PeerChange) bool { return p.Online != nil && *p.Online })
	s2 := a.rawStream(a.streamRequest())
	s2.first()
	for _, m := range s1.ended() {
		if m.Node != nil {
			t.Errorf("the first stream was told %+v before its end", m.MapResponse)
		}
	}
	b.report(b.lite("192.0.2.1:1"))
	s2.patch("a change on the second stream", b.id(), func(p *tailcfg.PeerChange) bool { return len(p.Endpoints) == 1 })
	if n := ts.state.Snapshot().Node(a.id()); !n.Online {
		t.Error("the end of the first stream took the node offline")
	}
	if n := ts.control.Sessions(); n != 2 {
		t.Errorf("%d sessions, want 2", n)
	}
	s2.close()
	sb.patch("alpha offline", a.id(), func(p *tailcfg.PeerChange) bool { return p.Online != nil && !*p.Online && p.LastSeen != nil })
}

// Two profiles on one machine are two nodes, each with a stream of its own.
func TestTwoNodesOfOneMachine(t *testing.T) {
	ts := newServer(t, nil)
	a := ts.joined("alpha")
	second := *a
	second.node, second.host = key.NewNode(), "alpha-tagged"
	if r := second.register(withKey(ts.authKey(false, false, "tag:second"))); !in(r) || second.id() == a.id() {
		t.Fatalf("the second profile answered %+v", r)
	}
	s1, s2 := a.rawStream(a.streamRequest()), second.rawStream(second.streamRequest())
	s1.first()
	s2.first()
	if n := ts.control.Sessions(); n != 2 || !s1.alive() {
		t.Errorf("%d sessions, want 2", n)
	}
}

// A deleted node is told at once, so that it asks its user to log in, and again whenever it asks.
func TestDeletedNode(t *testing.T) {
	ts := newServer(t, nil)
	a, b := ts.joined("alpha"), ts.joined("beta")
	sa, sb := a.stream(), b.stream()
	sa.first()
	sb.first()
	id := a.id()
	before := ts.state.Snapshot().Node(id)
	ts.update(func(tx *state.Tx) error { tx.DeleteNode(id); return nil })

	gone := func(m *message, id tailnet.NodeID) {
		t.Helper()
		if m.Node == nil || m.Node.ID != id.Tailcfg() || m.Node.Key != a.node.Public() || !m.Node.KeyExpiry.Before(time.Now()) ||
			m.Node.KeyExpiry.IsZero() || !m.Node.MachineAuthorized || m.Node.StableID == "" || len(m.Peers) != 0 {
			t.Errorf("a deleted node is told %+v", m.MapResponse)
		}
	}
	rest := sa.ended()
	if len(rest) == 0 {
		t.Fatal("the stream ended without a word")
	}
	gone(rest[len(rest)-1], id)
	sb.next("the removal", func(m *message) bool { return slices.Contains(m.PeersRemoved, id.Tailcfg()) })

	for range 2 { // it asks again and again, and is kept waiting on the stream
		s := a.stream()
		m := s.first()
		gone(m, id)
		if m.Node.StableID != tailcfg.StableNodeID(before.StableID) || len(m.Node.Addresses) != 2 {
			t.Errorf("the tombstone is %+v", m.Node)
		}
		if !s.alive() {
			t.Error("the stream ended; the client would ask in a loop")
		}
		s.close()
	}
	if status, body, _ := a.do("POST", "/machine/map", a.lite()); status != http.StatusNotFound {
		t.Errorf("a report of a deleted node: status %d %s, want 404", status, body)
	}
	if n := ts.state.Snapshot().NodeByKey(a.node.Public()); n != nil {
		t.Errorf("the node is back: %+v", n)
	}
}

// A key that nobody knows gets the same answer as that of a deleted node, and another machine's tombstone tells nothing.
func TestUnknownNodeKey(t *testing.T) {
	ts := newServer(t, func(o *Options) { o.KeepAlive = 50 * time.Millisecond })
	a, stranger := ts.joined("alpha"), ts.newClient("stranger")
	key, id := a.node, a.id()
	ts.update(func(tx *state.Tx) error { tx.DeleteNode(id); return nil })
	for name, c := range map[string]*client{"never seen": stranger, "of another machine": {ts: ts, node: key, raw: stranger.raw}} {
		r := c.streamRequest()
		r.Hostinfo = nil
		s := c.rawStream(r)
		m := s.first()
		if m.Node.ID != unknownNode.Tailcfg() || !m.Node.KeyExpiry.Before(time.Now()) || m.Node.Key != c.node.Public() || len(m.Node.Addresses) != 0 {
			t.Errorf("%s: told %+v", name, m.Node)
		}
		s.next("a keep-alive", func(m *message) bool { return m.KeepAlive })
		s.close()
		for what, r := range map[string]tailcfg.MapRequest{"lite": {OmitPeers: true}, "read-only": {ReadOnly: true}} {
			r.Version, r.NodeKey = 142, c.node.Public()
			if status, body, _ := c.do("POST", "/machine/map", r); status != http.StatusNotFound {
				t.Errorf("%s, %s: status %d %s, want 404", name, what, status, body)
			}
		}
	}
}

// A machine has one stream for nodes that are gone, however often it asks; the newest is kept.
func TestOneGoneStreamForEachMachine(t *testing.T) {
	ts := newServer(t, nil)
	a := ts.newClient("stranger")
	first := a.stream()
	first.first()
	second := a.stream()
	second.first()
	first.ended()
	if !second.alive() {
		t.Error("the newer stream has ended")
	}
	ts.control.mu.Lock()
	for len(ts.control.gone) < maxGone {
		ts.control.gone[key.NewMachine().Public()] = make(chan struct{})
	}
	ts.control.mu.Unlock()
	b := ts.newClient("one too many").stream()
	b.first() // it is told all the same
	b.ended()
	second.close()
	ts.control.mu.Lock()
	defer ts.control.mu.Unlock()
	if n := len(ts.control.gone); n > maxGone {
		t.Errorf("%d streams are kept, want %d at the most", n, maxGone)
	}
}

// A new node key leaves the stream of the old one alone until its client goes on with the new one; only then peers hear of it.
// The node is the same.
func TestRotation(t *testing.T) {
	ts := newServer(t, nil)
	a, b := ts.joined("alpha"), ts.joined("beta")
	sa, sb := a.stream(), b.stream()
	sa.first()
	sb.first()
	old, id := a.node, a.id()
	ts.until("alpha is online", func(sn *state.Snapshot) bool { return sn.Node(id).Online })
	r := withKey(ts.authKey(false, false))
	r.OldNodeKey = old.Public()
	a.node = key.NewNode()
	if got := a.register(r); !in(got) || a.id() != id {
		t.Fatalf("the new key answered %+v, node %d, want %d", got, a.id(), id)
	}
	c := ts.joined("gamma")
	for _, p := range c.stream().first().Peers {
		if p.ID == id.Tailcfg() && p.Key != old.Public() {
			t.Error("somebody who joins meanwhile is told alpha's new key already")
		}
	}
	sb.next("gamma", func(m *message) bool {
		for _, p := range m.PeersChangedPatch {
			if p.NodeID == id.Tailcfg() && p.Key != nil {
				t.Error("a peer hears of alpha's new key before alpha uses it")
			}
		}
		return len(m.PeersChanged) > 0 && m.PeersChanged[0].ID == c.id().Tailcfg()
	})
	if !sa.alive() {
		t.Error("the stream of the old key has ended before the new key is used")
	}
	stale := *a
	stale.node = old
	if status, _, _ := stale.do("POST", "/machine/map", stale.streamRequest()); status != http.StatusConflict {
		t.Errorf("a stream with the old key: status %d, want 409: the client comes back with its new one", status)
	}
	if status, _, _ := stale.do("POST", "/machine/map", stale.lite("192.0.2.66:66")); status != http.StatusNotFound {
		t.Errorf("a report with the old key: status %d, want 404", status)
	}
	next := a.stream()
	if m := next.first(); m.Node.ID != id.Tailcfg() || m.Node.Key != a.node.Public() {
		t.Errorf("the stream with the new key begins with %+v", m.Node)
	}
	sa.ended()
	sb.patch("alpha's new key", id, func(p *tailcfg.PeerChange) bool { return p.Key != nil && *p.Key == a.node.Public() })
	// Then they try it, because what alpha has tried meanwhile was lost.
	m := sb.next("a request to try the key", func(m *message) bool { return m.PingRequest != nil })
	if p := m.PingRequest; p.Types != "TSMP" || p.IP != ts.state.Snapshot().Node(id).IPv4 || !p.URLIsNoise {
		t.Errorf("beta is asked for %+v", p)
	} else if status, _, _ := b.do("POST", p.URL[strings.Index(p.URL, "/machine"):], tailcfg.PingResponse{}); status != http.StatusNoContent {
		t.Errorf("the answer is answered with %d", status)
	}
	if !next.alive() {
		t.Error("the stream of the new key has ended")
	}
}

// Idle streams get the keep-alive in its canonical form: the same bytes each time, so that clients need not decode it.
// They come far apart from each other compared to the time that a write may take.
func TestKeepAlive(t *testing.T) {
	ts := newServer(t, func(o *Options) { o.KeepAlive, o.WriteTimeout = 60*time.Millisecond, 30*time.Millisecond })
	a := ts.joined("alpha")
	s := a.rawStream(a.streamRequest())
	s.first()
	want := zstdframe.AppendEncode(nil, []byte(`{"KeepAlive":true}`))
	for range 4 {
		m := s.next("a keep-alive", func(m *message) bool { return m.KeepAlive })
		var canonical bytes.Buffer
		_, err := netmap.KeepAlive(netmap.Viewer{Compress: true}).WriteTo(&canonical)
		ts.must(err)
		if !bytes.Equal(m.frame, canonical.Bytes()[4:]) {
			t.Errorf("keep-alive %x, want %x", m.frame, canonical.Bytes()[4:])
		}
		plain, err := zstdframe.AppendDecode(nil, m.frame)
		if err != nil || string(plain) != `{"KeepAlive":true}` {
			t.Errorf("keep-alive says %s (%v); the shortest frame is %d bytes, this one %d", plain, err, len(want), len(m.frame))
		}
	}
}

// From the end of a stream to "offline" there is time to come back; whoever does was never away.
func TestOfflineAfter(t *testing.T) {
	t.Run("comes back", func(t *testing.T) {
		ts := newServer(t, func(o *Options) { o.OfflineAfter = time.Hour })
		a, b := ts.joined("alpha"), ts.joined("beta")
		sb := b.stream()
		sb.first()
		pending := func() int {
			ts.control.mu.Lock()
			defer ts.control.mu.Unlock()
			return len(ts.control.offline)
		}
		sa := a.stream()
		sa.first()
		ts.until("alpha is online", func(sn *state.Snapshot) bool { return sn.Node(a.id()).Online })
		sa.close()
		eventually(t, "the stream's end is seen", func() bool { return pending() == 1 })
		if !ts.state.Snapshot().Node(a.id()).Online {
			t.Error("the node is offline already")
		}
		a.stream().first()
		if n := pending(); n != 0 {
			t.Errorf("%d nodes are still to go offline", n)
		}
	})
	t.Run("stays away", func(t *testing.T) {
		ts := newServer(t, func(o *Options) { o.OfflineAfter = 30 * time.Millisecond })
		a := ts.joined("alpha")
		s := a.stream()
		s.first()
		ts.until("alpha is online", func(sn *state.Snapshot) bool { return sn.Node(a.id()).Online })
		s.close()
		ts.until("alpha is offline", func(sn *state.Snapshot) bool { return !sn.Node(a.id()).Online })
	})
}

// Close ends all streams at once, and everybody who was online is expected back.
func TestClose(t *testing.T) {
	ts := newServer(t, nil)
	a, b, away := ts.joined("alpha"), ts.joined("beta"), ts.joined("away")
	sa, sb := a.stream(), b.rawStream(b.streamRequest())
	sa.first()
	sb.first()
	c := ts.newClient("gone")
	sc := c.rawStream(c.streamRequest())
	sc.first()
	ts.until("both are online", func(sn *state.Snapshot) bool { return sn.Node(a.id()).Online && sn.Node(b.id()).Online })
	ids := []tailnet.NodeID{a.id(), b.id()}
	began := time.Now()
	ts.stop()
	t.Logf("closing took %v", time.Since(began))
	for _, s := range []*stream{sa, sb, sc} {
		s.ended()
	}
	if err := sb.err; !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("the stream ended with %v, want an orderly end", err)
	}
	ts.start(nil)
	for _, id := range ids {
		if !ts.state.Snapshot().Node(id).Online {
			t.Errorf("node %d is offline after a restart; it is expected back", id)
		}
	}
	if ts.state.Snapshot().Node(away.id()).Online {
		t.Error("a node that was not there is online after a restart")
	}
	a.dial(0)
	if m := a.stream().first(); len(m.Peers) != 2 {
		t.Errorf("after the restart alpha sees %d peers, want 2", len(m.Peers))
	}
}

// Hundreds of streams of one node leave one, and what the others took is given back.
func TestManyStreamsOfOneNode(t *testing.T) {
	ts := newServer(t, nil)
	a, b := ts.joined("alpha"), ts.joined("beta")
	var all []*stream
	for range 6 {
		a.raw = ts.rawClient(a.machine, 0)
		for range 50 {
			all = append(all, a.rawStream(a.streamRequest()))
		}
	}
	for _, s := range all[:len(all)-1] {
		s.ended()
	}
	last := all[len(all)-1]
	last.first()
	b.report(b.lite("192.0.2.1:1"))
	last.patch("a change on the last stream", b.id(), func(p *tailcfg.PeerChange) bool { return len(p.Endpoints) == 1 })
	eventually(t, "one session is left", func() bool { return ts.control.Sessions() == 1 })
}

// A client that asks in a loop makes no revisions, and others are served.
func TestRequestsInALoop(t *testing.T) {
	ts := newServer(t, nil)
	a, b := ts.joined("alpha"), ts.joined("beta")
	a.report(a.lite("192.0.2.1:1"))
	before := ts.state.Snapshot().Rev
	for range 200 {
		a.report(a.lite("192.0.2.1:1"))
		a.register(tailcfg.RegisterRequest{})
		if status, _, _ := a.do("GET", "/machine/whoami", nil); status != 200 {
			t.Fatalf("whoami: status %d", status)
		}
	}
	if rev := ts.state.Snapshot().Rev; rev != before {
		t.Errorf("requests without news took the revision from %d to %d", before, rev)
	}
	b.stream().first()
}

// A report of odd things is cleaned, not refused, and reaches peers in a form that they can read.
func TestOddReports(t *testing.T) {
	ts := newServer(t, nil)
	a, b := ts.joined("alpha"), ts.joined("beta")
	s := b.stream()
	s.first()
	r := a.lite("192.0.2.1:1")
	r.Hostinfo = &tailcfg.Hostinfo{
		Hostname: strings.Repeat("ä\x00", 1000), OS: "li\nnux",
		RoutableIPs: []netip.Prefix{{}, netip.MustParsePrefix("10.0.0.7/8"), netip.MustParsePrefix("100.64.0.0/24"), netip.MustParsePrefix("10.0.0.0/8")},
	}
	for i := range 500 {
		r.Endpoints = append(r.Endpoints, netip.AddrPortFrom(netip.MustParseAddr("192.0.2.2"), uint16(i)))
	}
	a.report(r)
	s.peer("alpha under its new name", func(n *tailcfg.Node) bool { return n.ID == a.id().Tailcfg() && n.Name != "alpha.skein.internal." })
	n := ts.state.Snapshot().Node(a.id())
	if len(n.Endpoints) > 64 || len(n.Hostinfo.Hostname) > 255 || strings.ContainsAny(n.Hostinfo.OS+n.Hostname, "\x00\n") {
		t.Errorf("kept: %d endpoints, a name of %d bytes, system %q", len(n.Endpoints), len(n.Hostinfo.Hostname), n.Hostinfo.OS)
	}
	if want := netip.MustParsePrefix("10.0.0.0/8"); len(n.AdvertisedRoutes()) != 1 || n.AdvertisedRoutes()[0] != want {
		t.Errorf("routes are %v, want %v", n.AdvertisedRoutes(), want)
	}
	b2, err := json.Marshal(a.lite())
	ts.must(err)
	for name, body := range map[string]string{
		"null": "null", "empty": "{}", "twice": string(b2) + string(b2), "cut": string(b2[:len(b2)/2]),
	} {
		if status, _, _ := a.do("POST", "/machine/map", body); status != 400 && status != 404 {
			t.Errorf("a report that is %s: status %d", name, status)
		}
	}
}
