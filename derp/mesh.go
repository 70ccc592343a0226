package derp

import (
	"context"
	"fmt"
	"reflect"
	"strings"
	"sync"

	tsderp "tailscale.com/derp"
	"tailscale.com/derp/derphttp"
	"tailscale.com/net/netmon"
	"tailscale.com/tailcfg"
)

// A region may have several relays, one for each server, and two peers may be on different ones. So each relay connects to each
// other one as a trusted peer, hears who is there, and hands packets over. They trust each other by a key that all share.
//
//	peer A ──► relay 1 ──(mesh)──► relay 2 ──► peer B
type mesh struct {
	mu    sync.Mutex
	wg    sync.WaitGroup
	links map[string]*link // by DERPNode.Name
}

// link is our connection to one other relay.
type link struct {
	node *tailcfg.DERPNode
	stop func()
}

// SetMeshKey lets relays that know the same key (64 hex digits) connect as peers. It must be called before the first session.
func (s *Server) SetMeshKey(key string) error {
	if err := s.relay.SetMeshKey(strings.TrimSpace(key)); err != nil {
		return fmt.Errorf("the key of the relays is not 64 hex digits: %w", err)
	}
	return nil
}

// Mesh keeps connections to these relays, and to no others, until Close or the next Mesh.
func (s *Server) Mesh(nodes []*tailcfg.DERPNode) {
	s.mu.Lock()
	closed := s.closed
	s.mu.Unlock()
	m := &s.mesh
	m.mu.Lock()
	defer m.mu.Unlock()
	if closed {
		nodes = nil
	}
	want := map[string]*tailcfg.DERPNode{}
	for _, n := range nodes {
		want[n.Name] = n
	}
	for name, l := range m.links {
		if n := want[name]; n != nil && reflect.DeepEqual(n, l.node) {
			delete(want, name)
			continue
		}
		l.stop()
		delete(m.links, name)
	}
	if m.links == nil {
		m.links = map[string]*link{}
	}
	for name, n := range want {
		m.links[name] = s.connect(n)
	}
}

// connect keeps a connection to another relay.
func (s *Server) connect(n *tailcfg.DERPNode) *link {
	logf := func(format string, args ...any) {
		s.log.Debug("mesh: "+strings.TrimSpace(fmt.Sprintf(format, args...)), "relay", n.Name)
	}
	region := &tailcfg.DERPRegion{RegionID: n.RegionID, RegionCode: "mesh", Nodes: []*tailcfg.DERPNode{n}}
	c := derphttp.NewRegionClient(s.relay.PrivateKey(), logf, netmon.NewStatic(), func() *tailcfg.DERPRegion { return region })
	c.MeshKey = s.relay.MeshKey()
	c.WatchConnectionChanges = true
	ctx, cancel := context.WithCancel(context.Background())
	s.mesh.wg.Go(func() {
		c.RunWatchConnectionLoop(ctx, s.relay.PublicKey(), logf,
			func(p tsderp.PeerPresentMessage) { s.relay.AddPacketForwarder(p.Key, c) },
			func(p tsderp.PeerGoneMessage) { s.relay.RemovePacketForwarder(p.Peer, c) },
			func(error) {})
	})
	return &link{node: n, stop: func() { cancel(); _ = c.Close() }}
}
