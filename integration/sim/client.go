package sim

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// client is one light client. Its life, in one goroutine:
//
//	dial ─▶ register (once) ─▶ lite update + stream ─▶ responses … ─▶ connection ends ─▶ wait a little ─▶ dial …
//
// It keeps of its peers only whether it sees them.
type client struct {
	s         *Sim
	index     int32
	name      string
	authKey   string
	ephemeral bool
	machine   key.MachinePrivate
	node      key.NodePublic
	disco     key.DiscoPublic
	rx, tx    atomic.Int64 // bytes on the wire, of all its connections

	ready chan struct{} // closed at its first full map
	done  chan struct{} // closed when run has ended

	mu         sync.Mutex
	conn       *h2conn        // guarded by mu; nil: none
	gate       chan struct{}  // guarded by mu; not nil: it stays away until this is closed
	cutting    bool           // guarded by mu: we ended the connection ourselves
	leaving    bool           // guarded by mu: it logs out
	registered bool           // guarded by mu
	reported   bool           // guarded by mu: the server has answered the last lite update
	version    int            // guarded by mu: how often its endpoints have changed
	routes     []netip.Prefix // guarded by mu: what it advertises
	full       bool           // guarded by mu: this connection has brought a full map
	fullAt     time.Time      // guarded by mu: when the last one came
	asked      time.Time      // guarded by mu: when it sent its registration
	nodeID     int64          // guarded by mu; 0: not known
	sees       []uint64       // guarded by mu: bit set by index of our clients
	peers      int            // guarded by mu: how many of the steady clients it sees
	err        error          // guarded by mu: why it is not connected
}

// watchdog is how long a stream may be silent before a client gives it up: controlclient.Direct.sendMapRequest.
const watchdog = 120 * time.Second

// errGone: the server answered that it does not know the node, although it registered. Real clients do not register again
// by themselves, and so don't ours.
var errGone = errors.New("the server says that the node's key has expired, or does not know the node")

// refusal is an answer to a registration that trying again does not change.
type refusal struct{ why string }

func (e *refusal) Error() string { return "the server refused the registration: " + e.why }

// run keeps the client connected until ctx ends.
func (c *client) run(ctx context.Context) {
	defer close(c.done)
	for failures := 0; ; {
		full, err := c.session(ctx)
		c.mu.Lock()
		c.err = err
		leaving := c.leaving
		c.mu.Unlock()
		if ctx.Err() != nil || leaving || errors.Is(err, errGone) {
			return
		}
		if full {
			failures = 0
		}
		failures++
		// As tailscale.com/util/backoff does, but for its upper limit: here nobody wants to wait for half a minute.
		pause := min(time.Duration(failures*failures)*10*time.Millisecond, time.Second)
		pause = time.Duration((0.5 + rand.Float64()) * float64(pause))
		var se *statusError
		if errors.As(err, &se) && se.after > pause {
			pause = se.after
		}
		var re *refusal
		if errors.As(err, &re) {
			c.s.refuse(c, re)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
	}
}

// session is one connection from beginning to end. full reports whether it brought a full map; there is always an error.
func (c *client) session(ctx context.Context) (full bool, err error) {
	if err := c.mayDial(ctx); err != nil {
		return false, err
	}
	nc, err := c.s.target.dial(ctx, c.machine, &c.rx, &c.tx)
	<-c.s.dials
	if err != nil {
		return false, err
	}
	h, err := newH2(nc, c.s.target.url.Host)
	if err != nil {
		nc.Close()
		return false, err
	}
	_ = nc.SetReadDeadline(time.Now().Add(watchdog))
	c.mu.Lock()
	if c.gate != nil || ctx.Err() != nil {
		c.mu.Unlock()
		nc.Close()
		return false, ctx.Err()
	}
	c.conn, c.cutting, c.err = h, false, nil
	registered, reported := c.registered, c.reported
	c.mu.Unlock()
	defer context.AfterFunc(ctx, h.close)()

	stream := func() error {
		if !reported { // a client that comes back says nothing new
			if err := c.report(h, func(err error) error { return err }); err != nil {
				return err
			}
		}
		return c.stream(h, func() { _ = nc.SetReadDeadline(time.Now().Add(watchdog)) })
	}
	if registered {
		err = stream()
	} else {
		err = c.register(h, time.Time{}, func() error {
			c.mu.Lock()
			c.registered = true
			c.mu.Unlock()
			return stream()
		})
	}
	if err != nil {
		nc.Close()
	}
	if end := h.loop(); err == nil {
		err = end
	}

	c.mu.Lock()
	defer c.mu.Unlock()
	full = c.full
	if full && !c.cutting && !c.leaving && ctx.Err() == nil {
		c.s.lost.Add(1)
		c.s.lastLoss.Store(&lossReport{c.name, err})
	}
	c.conn, c.full = nil, false
	return full, err
}

// mayDial waits until the client may connect. On success the caller must take one from c.s.dials.
func (c *client) mayDial(ctx context.Context) error {
	for {
		c.mu.Lock()
		gate := c.gate
		c.mu.Unlock()
		if gate == nil {
			break
		}
		select {
		case <-gate:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	select {
	case c.s.dials <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// register sends a registration; then is called if it is accepted. expiry is zero, or in the past to log out.
func (c *client) register(h *h2conn, expiry time.Time, then func() error) error {
	body, err := json.Marshal(&tailcfg.RegisterRequest{
		Version: tailcfg.CurrentCapabilityVersion, NodeKey: c.node, Auth: &tailcfg.RegisterResponseAuth{AuthKey: c.authKey},
		Expiry: expiry, Ephemeral: c.ephemeral, Hostinfo: c.hostinfo(),
	})
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.asked = time.Now()
	c.mu.Unlock()
	return h.post("/machine/register", c.lbHeader(), body, &exchange{done: func(status int, body []byte, err error) error {
		var res tailcfg.RegisterResponse
		switch {
		case err != nil:
			return err
		case status != 200:
			return fmt.Errorf("the registration was answered with status %d: %.200s", status, body)
		case json.Unmarshal(body, &res) != nil:
			return fmt.Errorf("the registration was not answered with JSON: %.200q", body)
		case !expiry.IsZero():
			return then()
		case res.Error != "":
			return &refusal{res.Error}
		case res.AuthURL != "":
			return &refusal{"it wants a person to log in at " + res.AuthURL}
		case res.NodeKeyExpired:
			return &refusal{"the node key has expired"}
		}
		return then()
	}})
}

// report sends a lite update: all that the client says of itself. then is called with what came of it.
func (c *client) report(h *h2conn, then func(error) error) error {
	c.mu.Lock()
	v := c.version
	c.reported = false
	c.mu.Unlock()
	body, err := json.Marshal(&tailcfg.MapRequest{
		Version: tailcfg.CurrentCapabilityVersion, Compress: "zstd", KeepAlive: true, OmitPeers: true,
		NodeKey: c.node, DiscoKey: c.disco, Hostinfo: c.hostinfo(),
		Endpoints: c.endpoints(v), EndpointTypes: []tailcfg.EndpointType{tailcfg.EndpointLocal, tailcfg.EndpointSTUN},
	})
	if err != nil {
		return err
	}
	return h.post("/machine/map", c.lbHeader(), body, &exchange{done: func(status int, body []byte, err error) error {
		if err == nil && status != 200 {
			err = fmt.Errorf("a lite update was answered with status %d: %.200s", status, body)
		}
		if err == nil {
			c.mu.Lock()
			c.reported = c.version == v
			c.mu.Unlock()
		}
		return then(err)
	}})
}

// stream asks for the map. alive is called with each response.
func (c *client) stream(h *h2conn, alive func()) error {
	body, err := json.Marshal(&tailcfg.MapRequest{
		Version: tailcfg.CurrentCapabilityVersion, Compress: "zstd", KeepAlive: true, Stream: true,
		NodeKey: c.node, DiscoKey: c.disco, Hostinfo: c.hostinfo(),
	})
	if err != nil {
		return err
	}
	sink := &mapSink{c: c, alive: alive}
	sink.response = response{d: c.s.decoder, use: func(m *message) { sink.fault = c.take(m) }}
	return h.post("/machine/map", c.lbHeader(), body, &exchange{
		sink: sink,
		done: func(status int, body []byte, err error) error {
			c.mu.Lock()
			leaving := c.leaving
			c.mu.Unlock()
			if err == nil && !leaving {
				err = fmt.Errorf("the server ended the stream: status %d %.200s", status, body)
			}
			return err
		},
	})
}

// mapSink takes the responses of one stream.
type mapSink struct {
	response
	c     *client
	alive func()
	fault error
}

// take implements sink.
func (m *mapSink) take(b []byte, left int) (int, error) {
	if left == 0 {
		m.alive()
	}
	used, err := m.response.take(b, left)
	if err != nil {
		m.c.s.fault("%s: %v", m.c.name, err)
		return used, err
	}
	return used, m.fault
}

func (c *client) lbHeader() [][2]string { return [][2]string{{"ts-lb", c.node.String()}} }

// hostinfo is what a laptop might say of itself.
func (c *client) hostinfo() *tailcfg.Hostinfo {
	port := uint16(20000 + c.index%40000)
	c.mu.Lock()
	defer c.mu.Unlock()
	return &tailcfg.Hostinfo{
		IPNVersion: "1.102.5-t0123456789ab", BackendLogID: fmt.Sprintf("%064x", c.index), OS: "linux", OSVersion: "6.12.43",
		Distro: "debian", DistroVersion: "13", Hostname: c.name, Machine: "x86_64", GoArch: "amd64", GoVersion: "go1.26.6",
		Services: []tailcfg.Service{
			{Proto: tailcfg.PeerAPI4, Port: port}, {Proto: tailcfg.PeerAPI6, Port: port}, {Proto: tailcfg.PeerAPIDNS, Port: 1},
		},
		NetInfo: &tailcfg.NetInfo{WorkingUDP: "true", WorkingIPv6: "false", HavePortMap: false}, RoutableIPs: c.routes,
		Userspace: "false", UserspaceRouter: "false",
	}
}

// endpoints are a private address and a public one, whose port is another one in each version.
func (c *client) endpoints(version int) []netip.AddrPort {
	i := uint32(c.index)
	return []netip.AddrPort{
		netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 168, byte(i >> 8), byte(i)}), 41641),
		// 198.18.0.0/15 is set aside for measurements: RFC 2544.
		netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18 | byte(i>>16&1), byte(i >> 8), byte(i)}), uint16(1024+version%64000)),
	}
}

// move gives the client new endpoints and tells the server. Before that, prepare gets what peers will find among them; sent
// is called when the server has answered.
func (c *client) move(prepare func(mark string), sent func(error)) {
	c.mu.Lock()
	c.version++
	v, h := c.version, c.conn
	c.mu.Unlock()
	prepare(`"` + c.endpoints(v)[1].String() + `"`)
	c.tell(h, sent)
}

// tell sends a lite update on h.
func (c *client) tell(h *h2conn, sent func(error)) {
	err := errEnded
	if h != nil {
		err = c.report(h, func(err error) error { sent(err); return nil })
	}
	if err != nil {
		sent(err)
	}
}

// advertise offers a route and waits for the server's answer.
func (c *client) advertise(ctx context.Context, p netip.Prefix) error {
	c.mu.Lock()
	c.routes = append(c.routes[:len(c.routes):len(c.routes)], p)
	h := c.conn
	c.mu.Unlock()
	answer := make(chan error, 1)
	c.tell(h, func(err error) { answer <- err })
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// logout ends the node on the server and waits for the answer.
func (c *client) logout(ctx context.Context) error {
	c.mu.Lock()
	h := c.conn
	c.leaving = true // the server may end the stream before it answers
	c.mu.Unlock()
	if h == nil {
		return errEnded
	}
	answer := make(chan struct{})
	if err := c.register(h, time.Unix(123, 0), func() error { close(answer); return nil }); err != nil {
		return err
	}
	select {
	case <-answer:
		return nil
	case <-c.done:
		return errEnded
	case <-ctx.Done():
		return ctx.Err()
	}
}

// cut ends the connection; the client connects again at once.
func (c *client) cut() {
	c.mu.Lock()
	h := c.conn
	c.cutting = true
	c.mu.Unlock()
	if h != nil {
		h.close()
	}
}

// pause ends the connection and keeps the client away until resume.
func (c *client) pause() {
	c.mu.Lock()
	if c.gate == nil {
		c.gate = make(chan struct{})
	}
	c.mu.Unlock()
	c.cut()
}

// away reports whether the client is kept away.
func (c *client) away() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.gate != nil
}

func (c *client) resume() {
	c.mu.Lock()
	if c.gate != nil {
		close(c.gate)
		c.gate = nil
	}
	c.mu.Unlock()
}

// seesLocked reports whether the client sees another; c.mu must be held.
func (c *client) seesLocked(other int32) bool {
	return int(other)/64 < len(c.sees) && c.sees[other/64]>>(other%64)&1 == 1
}

// setLocked notes whether the client sees another; c.mu must be held.
func (c *client) setLocked(other int32, sees bool) {
	if c.seesLocked(other) == sees {
		return
	}
	for int(other)/64 >= len(c.sees) {
		c.sees = append(c.sees, 0)
	}
	c.sees[other/64] ^= 1 << (other % 64)
	if int(other) < len(c.s.clients) {
		if sees {
			c.peers++
		} else {
			c.peers--
		}
	}
}

// take takes in a response. An error ends the connection.
func (c *client) take(m *message) error {
	if m.keepAlive {
		c.s.keepAlives.Add(1)
		return nil
	}
	c.s.frames.Add(1)
	now := time.Now()
	gs := c.s.board.now.Load()
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.full {
		if !m.self {
			c.s.fault("%s: the first response of a stream is without Node", c.name)
			return errors.New("the first response of the stream is without Node")
		}
		clear(c.sees)
		c.peers, c.full, c.fullAt = 0, true, now
	}
	if m.self {
		c.nodeID = m.selfID
		if m.gone && !c.leaving {
			return errGone
		}
	}
	if m.complete {
		clear(c.sees)
		c.peers = 0
	}
	viewer := int(c.index) < len(c.s.clients)
	for _, w := range m.removed {
		c.setLocked(w, false)
	}
	for _, list := range m.peers {
		for i := range list {
			s := &list[i]
			switch {
			case s.who == stranger:
				continue
			case s.who == c.index:
				c.s.fault("%s was sent itself as a peer", c.name)
			case !s.patch:
				c.setLocked(s.who, true)
			}
			if gs == nil || !viewer {
				continue
			}
			for _, g := range gs.node[s.who] {
				if g.matches(s) {
					g.hit(c.index, now)
				}
			}
		}
	}
	if gs != nil && viewer {
		c.checkLocked(gs, m, now)
	}
	select {
	case <-c.ready:
	default:
		close(c.ready)
	}
	return nil
}

// checkLocked looks at the goals that no single sighting fulfils; c.mu must be held. m may be nil.
func (c *client) checkLocked(gs *goals, m *message, now time.Time) {
	for _, g := range gs.other {
		switch g.aspect {
		case fullMap:
			if c.full && c.fullAt.After(g.begin) && c.peers >= g.want[c.index] {
				g.hit(c.index, now)
			}
		case told:
			if m != nil {
				g.hit(c.index, now)
			}
		}
	}
	if m == nil || !m.complete && len(m.removed) == 0 {
		return
	}
	for _, list := range gs.node {
		for _, g := range list {
			if g.aspect == vanishes && c.full && !c.seesLocked(g.node) {
				g.hit(c.index, now)
			}
		}
	}
}

func contains(b, mark []byte) bool { return len(b) > 0 && bytes.Contains(b, mark) }
