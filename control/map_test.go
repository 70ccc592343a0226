package control

import (
	"net/netip"
	"slices"
	"testing"

	"tailscale.com/tailcfg"
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
