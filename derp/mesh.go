package derp

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	tsderp "tailscale.com/derp"
	"tailscale.com/derp/derphttp"
	"tailscale.com/net/netmon"
	"tailscale.com/tailcfg"
	"tailscale.com/types/logger"
)

// A region may have several relays, one for each server, and two peers may be on different ones. So each relay connects to each
// other one as a trusted peer, hears who is there, and hands packets over. They trust each other by a key that all share.
//
//	peer A ──► relay 1 ──(mesh)──► relay 2 ──► peer B
//
// A connection whose other end is cut off looks like one on which nobody speaks. So each is tried all the time, and one that gives no
// answer is given up and made anew: otherwise TCP would need up to two minutes to notice, and as long to notice that the way is
// free again.
type mesh struct {
	mu    sync.Mutex
	wg    sync.WaitGroup
	links map[string]*link // by DERPNode.Name
}

// link is our connection to one other relay.
type link struct {
	node    *tailcfg.DERPNode
	stop    func()
	reached atomic.Bool
}

// Our choices.
const (
	linkEvery = 3 * time.Second // between tries whether the other relay answers
	linkWait  = 3 * time.Second // for its answer
	linkTries = 2               // without an answer, then the connection is given up
	linkQuiet = 6 * time.Second // without a connection, then it is told; a server that restarts is back sooner
)

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
	l := &link{node: n}
	ctx, cancel := context.WithCancel(context.Background())
	l.stop = cancel
	s.mesh.wg.Go(func() {
		told := false
		lost := time.Now()
		for ctx.Err() == nil {
			s.runLink(ctx, l, region, logf, func() {
				switch reached := l.reached.Load(); {
				case reached && told:
					s.log.Info("the relay of another server is reached again", "relay", n.Name)
					told = false
				case !reached && !told && time.Since(lost) > linkQuiet:
					s.log.Warn("the relay of another server is not reached: clients that are connected there and those that are connected here "+
						"reach each other on direct paths only", "relay", n.Name)
					told = true
				case reached:
					lost = time.Now()
				}
			})
		}
	})
	return l
}

// runLink runs one connection to another relay, made anew when it breaks, until ctx ends or the relay does not answer on it any more.
// looked is called after each try.
func (s *Server) runLink(ctx context.Context, l *link, region *tailcfg.DERPRegion, logf logger.Logf, looked func()) {
	c := derphttp.NewRegionClient(s.relay.PrivateKey(), logf, netmon.NewStatic(), func() *tailcfg.DERPRegion { return region })
	c.MeshKey = s.relay.MeshKey()
	c.WatchConnectionChanges = true
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		c.RunWatchConnectionLoop(ctx, s.relay.PublicKey(), logf,
			func(p tsderp.PeerPresentMessage) { s.relay.AddPacketForwarder(p.Key, c) },
			func(p tsderp.PeerGoneMessage) { s.relay.RemovePacketForwarder(p.Peer, c) },
			func(error) {})
	})
	defer func() {
		l.reached.Store(false)
		cancel()
		_ = c.Close()
		wg.Wait()
	}()
	wait := time.NewTimer(linkEvery / 10) // the first look, soon
	defer wait.Stop()
	for silent := 0; silent < linkTries; {
		select {
		case <-wait.C:
		case <-ctx.Done():
			return
		}
		wait.Reset(linkEvery)
		try, end := context.WithTimeout(ctx, linkWait)
		err := c.Ping(try)
		end()
		switch {
		case err == nil:
			silent = 0
		case errors.Is(err, context.DeadlineExceeded): // there is a connection
			silent++
		}
		l.reached.Store(err == nil)
		looked()
	}
	logf("no answer; the connection is given up")
}

// Reaches reports whether the relay that goes by a name answers us.
func (s *Server) Reaches(name string) bool {
	s.mesh.mu.Lock()
	defer s.mesh.mu.Unlock()
	l := s.mesh.links[name]
	return l != nil && l.reached.Load()
}

// Links is how many relays this one is to be connected with, and how many of them do not answer.
func (s *Server) Links() (all, unreached int) {
	s.mesh.mu.Lock()
	defer s.mesh.mu.Unlock()
	for _, l := range s.mesh.links {
		if !l.reached.Load() {
			unreached++
		}
	}
	return len(s.mesh.links), unreached
}
