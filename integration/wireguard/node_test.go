package wireguard

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"tailscale.com/control/ts2021"
	"tailscale.com/control/tsp"
	"tailscale.com/net/tsdial"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
	"tailscale.com/types/logger"
	"tailscale.com/util/zstdframe"
)

// peerEntry is a peer as the map has it.
type peerEntry = tailcfg.Node

// netmap is what a node has been told, put together from the first map and all that followed on the same stream.
type netmap struct {
	self  *tailcfg.Node
	peers map[tailcfg.NodeID]*peerEntry
}

// peer is the peer with the tailnet address of n, or nil.
func (m *netmap) peer(n *node) *peerEntry {
	for _, p := range m.peers {
		if slices.Contains(p.Addresses, n.self().Addresses[0]) {
			return p
		}
	}
	return nil
}

// apply adds a message of the stream.
func (m *netmap) apply(r *tailcfg.MapResponse) error {
	if r.Node != nil {
		m.self = r.Node
	}
	if len(r.Peers) > 0 {
		clear(m.peers)
	}
	for _, id := range r.PeersRemoved {
		delete(m.peers, id)
	}
	for _, list := range [][]*tailcfg.Node{r.Peers, r.PeersChanged} {
		for _, p := range list {
			m.peers[p.ID] = p
		}
	}
	for _, c := range r.PeersChangedPatch {
		p := m.peers[c.NodeID]
		if p == nil {
			continue // as clients do
		}
		p = p.Clone()
		if c.Key != nil {
			p.Key = *c.Key
		}
		if c.Endpoints != nil {
			p.Endpoints = c.Endpoints
		}
		m.peers[c.NodeID] = p
	}
	if m.self == nil {
		return fmt.Errorf("the first message has no Node")
	}
	return nil
}

// node is a scripted client.
type node struct {
	t        *testing.T
	s        *skein
	hostname string
	routes   []netip.Prefix // that it advertises
	machine  key.MachinePrivate
	key      key.NodePrivate // written under mu, by the test's goroutine alone
	oldKey   key.NodePublic
	disco    key.DiscoPrivate
	control  *ts2021.Client
	dev      *device // nil until plug
	hangUp   func()  // ends the stream and waits for its reader; nil if there is none

	mu      sync.Mutex
	m       netmap        // guarded by mu
	changed chan struct{} // guarded by mu: closed at the next message
}

func newNode(s *skein, hostname string) *node {
	t := s.t
	t.Helper()
	serverKey, err := tsp.DiscoverServerKey(t.Context(), s.url)
	if err != nil {
		t.Fatal(err)
	}
	n := &node{
		t: t, s: s, hostname: hostname, machine: key.NewMachine(), key: key.NewNode(), disco: key.NewDisco(), changed: make(chan struct{}),
	}
	n.control, err = ts2021.NewClient(ts2021.ClientOpts{
		ServerURL: s.url, PrivKey: n.machine, ServerPubKey: serverKey, Logf: logger.Discard,
		Dialer: tsdial.NewFromFuncForDebug(logger.Discard, (&net.Dialer{}).DialContext),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if n.hangUp != nil {
			n.hangUp()
		}
		_ = n.control.Close()
	})
	return n
}

func (n *node) hostinfo() *tailcfg.Hostinfo {
	return &tailcfg.Hostinfo{Hostname: n.hostname, OS: "linux", RoutableIPs: n.routes}
}

// post sends a request inside Noise; the answer must be 200.
func (n *node) post(path string, v any) io.ReadCloser {
	n.t.Helper()
	body, err := json.Marshal(v)
	if err != nil {
		n.t.Fatal(err)
	}
	_, host, _ := strings.Cut(n.s.url, "://")
	req, err := http.NewRequestWithContext(n.t.Context(), http.MethodPost, "https://"+host+path, bytes.NewReader(body))
	if err != nil {
		n.t.Fatal(err)
	}
	resp, err := n.control.Do(req)
	if err != nil {
		n.t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		n.t.Fatalf("%s: %s answered %d %s", n.hostname, path, resp.StatusCode, b)
	}
	return resp.Body
}

// register joins with a pre-auth key.
func (n *node) register(authKey string) {
	n.t.Helper()
	body := n.post("/machine/register", tailcfg.RegisterRequest{
		Version: tailcfg.CurrentCapabilityVersion, NodeKey: n.key.Public(), OldNodeKey: n.oldKey,
		Auth: &tailcfg.RegisterResponseAuth{AuthKey: authKey}, Hostinfo: n.hostinfo(),
	})
	defer body.Close()
	var r tailcfg.RegisterResponse
	if err := json.NewDecoder(body).Decode(&r); err != nil || r.Error != "" || r.AuthURL != "" || !r.MachineAuthorized {
		n.t.Fatalf("%s: registration answered %+v (%v)", n.hostname, r, err)
	}
}

// renew makes a new node key and registers it; the stream of the old one ends.
func (n *node) renew(authKey string) {
	n.t.Helper()
	n.mu.Lock()
	n.oldKey, n.key = n.key.Public(), key.NewNode()
	n.mu.Unlock()
	n.register(authKey)
}

// report is a lite update: endpoint, disco key and routes.
func (n *node) report() {
	n.t.Helper()
	r := tailcfg.MapRequest{
		Version: tailcfg.CurrentCapabilityVersion, NodeKey: n.key.Public(), DiscoKey: n.disco.Public(), OmitPeers: true,
		Hostinfo: n.hostinfo(), Endpoints: []netip.AddrPort{n.endpoint()}, EndpointTypes: []tailcfg.EndpointType{tailcfg.EndpointLocal},
	}
	n.post("/machine/map", r).Close()
}

// stream opens a map session, in place of the one before, and waits for the first map. Every message is put into the map,
// and the device is configured with it, before until sees it.
func (n *node) stream() {
	n.t.Helper()
	if n.hangUp != nil {
		n.hangUp()
	}
	n.mu.Lock()
	n.m = netmap{peers: map[tailcfg.NodeID]*peerEntry{}}
	n.mu.Unlock()
	body := n.post("/machine/map", tailcfg.MapRequest{
		Version: tailcfg.CurrentCapabilityVersion, NodeKey: n.key.Public(), Hostinfo: n.hostinfo(), Stream: true, KeepAlive: true, Compress: "zstd",
	})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			m, err := readMessage(body)
			if err != nil {
				return
			}
			if m.KeepAlive {
				continue
			}
			n.learn(m)
		}
	})
	n.hangUp = func() {
		body.Close()
		wg.Wait()
	}
	n.until("the first map", func(m *netmap) bool { return true })
}

func readMessage(r io.Reader) (*tailcfg.MapResponse, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	b := make([]byte, binary.LittleEndian.Uint32(head[:]))
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, err
	}
	b, err := zstdframe.AppendDecode(nil, b)
	if err != nil {
		return nil, err
	}
	m := &tailcfg.MapResponse{}
	return m, json.Unmarshal(b, m)
}

func (n *node) learn(r *tailcfg.MapResponse) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.m.apply(r); err != nil {
		n.t.Errorf("%s: %v", n.hostname, err)
		return
	}
	n.configureLocked()
	close(n.changed)
	n.changed = make(chan struct{})
}

// configureLocked gives the device what the map says. n.mu must be held.
func (n *node) configureLocked() {
	if n.dev == nil {
		return
	}
	if err := n.dev.configure(n.key, slices.Collect(maps.Values(n.m.peers))); err != nil {
		n.t.Errorf("%s: configuring WireGuard: %v", n.hostname, err)
	}
}

// plug gives the node a device, which follows its map from now on.
func (n *node) plug(d *device) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.dev = d
	n.configureLocked()
}

// until waits for the map, and with it the device, to be as ok says.
func (n *node) until(what string, ok func(*netmap) bool) {
	n.t.Helper()
	deadline := time.After(patience)
	for {
		n.mu.Lock()
		changed := n.changed
		// ok may ask other nodes for what they are, never this one.
		m := netmap{self: n.m.self, peers: maps.Clone(n.m.peers)}
		n.mu.Unlock()
		if m.self != nil && ok(&m) {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			b, _ := json.Marshal(slices.Collect(maps.Values(m.peers)))
			n.t.Fatalf("%s: not within %v: %s; its peers are %s", n.hostname, patience, what, b)
		}
	}
}

// self is the node as its map has it.
func (n *node) self() *tailcfg.Node {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.m.self
}

// addrs are the tailnet addresses, IPv4 first.
func (n *node) addrs() (out []netip.Addr) {
	for _, p := range n.self().Addresses {
		out = append(out, p.Addr())
	}
	return out
}

// endpoint is where the device listens.
func (n *node) endpoint() netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), n.dev.port())
}
