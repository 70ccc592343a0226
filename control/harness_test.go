package control

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/mux"
	"go.uber.org/goleak"
	"tailscale.com/control/ts2021"
	"tailscale.com/control/tsp"
	"tailscale.com/net/tsdial"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
	"tailscale.com/types/logger"
	"tailscale.com/util/zstdframe"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/db"
	"github.com/skein-vpn/skein/dns"
	"github.com/skein-vpn/skein/netmap"
	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// patience bounds every wait for something that must happen; it is never slept through.
const patience = 20 * time.Second

// testServer is a control server with everything behind it (a database in a temporary folder, state, auth) and a loopback
// port in front.
type testServer struct {
	t   testing.TB
	ctx context.Context // ends with the test
	url string
	key key.MachinePrivate
	dir string

	db      *db.DB
	state   *state.State
	auth    *auth.Auth
	control *Server
	http    *http.Server
	served  chan struct{} // closed once http has stopped
	log     *logWatch

	user tailnet.UserID

	sendBuffer atomic.Int32 // bytes that the kernel takes from us on new connections before a write blocks; 0: as it likes
}

// logWatch is a slog.Handler that fails the test on an error or a panic that the test did not announce.
type logWatch struct {
	mu    sync.Mutex
	t     testing.TB // guarded by mu
	allow []string   // guarded by mu: parts of the error lines that may come
	lines []string   // guarded by mu: everything from Info on, the newest thousands
}

// watch makes t the test that fails from now on.
func (l *logWatch) watch(t testing.TB) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.t = t
}

func (l *logWatch) Enabled(context.Context, slog.Level) bool { return true }
func (l *logWatch) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l *logWatch) WithGroup(string) slog.Handler            { return l }
func (l *logWatch) Handle(_ context.Context, r slog.Record) error {
	line := r.Message
	r.Attrs(func(a slog.Attr) bool {
		line += " " + a.String()
		return true
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.lines) > 20_000 {
		l.lines = append(l.lines[:0], l.lines[10_000:]...)
	}
	if r.Level >= slog.LevelInfo {
		l.lines = append(l.lines, line)
	}
	if r.Level < slog.LevelError && !strings.Contains(line, "panic") {
		return nil
	}
	for _, a := range l.allow {
		if strings.Contains(line, a) {
			return nil
		}
	}
	l.t.Errorf("the server logged: %s", line)
	return nil
}

// contains reports whether a line from level Info on holds s.
func (l *logWatch) contains(s string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range l.lines {
		if strings.Contains(line, s) {
			return true
		}
	}
	return false
}

// newServer starts a server with the user "alice"; tune may change its options. Everything is closed with the test, and
// no goroutine may be left then.
func newServer(t testing.TB, tune func(*Options)) *testServer {
	t.Helper()
	current := goleak.IgnoreCurrent()
	_, fuzzing := t.(*testing.F) // which has goroutines of its own
	t.Cleanup(func() {
		http.DefaultTransport.(*http.Transport).CloseIdleConnections()
		if !t.Failed() && !fuzzing {
			goleak.VerifyNone(t, current)
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	t.Cleanup(cancel)
	ts := &testServer{t: t, ctx: ctx, key: key.NewMachine(), dir: t.TempDir(), log: &logWatch{t: t}}
	ts.start(tune)
	t.Cleanup(ts.stop)
	ts.update(func(tx *state.Tx) error {
		u := tx.NewUser("alice")
		ts.user = u.ID
		return tx.PutUser(u)
	})
	return ts
}

// start opens the server on the database in ts.dir; after stop it may be called again.
func (ts *testServer) start(tune func(*Options)) {
	ts.t.Helper()
	log := slog.New(ts.log)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.must(err)
	ts.url = "http://" + l.Addr().String()
	ts.db, err = db.Open(ts.ctx, db.Options{Path: filepath.Join(ts.dir, "skein.db"), Log: log})
	ts.must(err)
	ts.state, err = state.Open(ts.ctx, state.Options{
		Store: ts.db, DNS: &dns.Settings{MagicDNS: true, Base: "skein.internal"},
		DERP: &state.DERPMaps{Home: 900, Current: &tailcfg.DERPMap{Regions: map[int]*tailcfg.DERPRegion{
			900: {RegionID: 900, RegionCode: "test", Nodes: []*tailcfg.DERPNode{{Name: "900a", RegionID: 900, HostName: "127.0.0.1"}}},
		}}},
		Addressing: state.Addressing{
			Prefix4: netip.MustParsePrefix("100.64.0.0/10"), Prefix6: netip.MustParsePrefix("fd7a:115c:a1e0::/48"),
		},
		RestartGrace: time.Hour, Log: log,
	})
	ts.must(err)
	ts.auth = auth.New(auth.Options{State: ts.state, Store: ts.db, ServerURL: ts.url, Log: log})
	o := Options{
		State: ts.state, Auth: ts.auth, Encoder: netmap.New(netmap.Options{}, nil), NoiseKey: ts.key, ServerURL: ts.url, Log: log,
		Limits: Limits{MapsPerMinute: 1e9, ReportsPerMinute: 1e9},
	}
	if tune != nil {
		tune(&o)
	}
	ts.control = New(o)
	r := mux.NewRouter()
	ts.control.Mount(r)
	ts.http = &http.Server{
		Handler: r, ReadHeaderTimeout: patience, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if n := int(ts.sendBuffer.Load()); n > 0 {
				_ = c.(*net.TCPConn).SetWriteBuffer(n)
			}
			return ctx
		},
	}
	ts.served = make(chan struct{})
	go func(srv *http.Server, served chan struct{}) {
		defer close(served)
		_ = srv.Serve(l)
	}(ts.http, ts.served)
}

// stop closes the server the way serve does; a second call does nothing.
func (ts *testServer) stop() {
	if ts.control == nil {
		return
	}
	ts.control.Close()
	_ = ts.http.Close()
	<-ts.served
	ts.state.Close()
	ts.must(ts.db.Close())
	ts.control = nil
}

func (ts *testServer) must(err error) {
	ts.t.Helper()
	if err != nil {
		ts.t.Fatal(err)
	}
}

func (ts *testServer) update(f func(*state.Tx) error) {
	ts.t.Helper()
	ts.must(ts.state.Update(ts.ctx, "test", f))
}

// change applies f to a copy of the node and stores it.
func (ts *testServer) change(id tailnet.NodeID, f func(*tailnet.Node)) {
	ts.t.Helper()
	ts.update(func(tx *state.Tx) error {
		n := tx.Node(id).Clone()
		f(n)
		return tx.PutNode(n)
	})
}

// authKey makes a pre-auth key.
func (ts *testServer) authKey(reusable, ephemeral bool, tags ...string) string {
	ts.t.Helper()
	r := auth.KeyRequest{Reusable: reusable, Ephemeral: ephemeral, Tags: tags}
	if len(tags) == 0 {
		r.User = ts.user
	}
	secret, _, err := ts.auth.CreatePreAuthKey(ts.ctx, r)
	ts.must(err)
	return secret
}

// until waits for ok to hold in a snapshot.
func (ts *testServer) until(what string, ok func(*state.Snapshot) bool) {
	ts.t.Helper()
	deadline := time.After(patience)
	for {
		sn := ts.state.Snapshot()
		if ok(sn) {
			return
		}
		select {
		case <-sn.Superseded():
		case <-deadline:
			ts.t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// eventually waits for ok by asking often, where nothing can be waited on.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", patience, what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// runs reports whether a goroutine is inside the function, named as stack traces name it.
func runs(function string) bool {
	b := make([]byte, 4<<20)
	return bytes.Contains(b[:runtime.Stack(b, true)], []byte(function))
}

// client is one machine with one node key.
type client struct {
	ts      *testServer
	host    string
	machine key.MachinePrivate
	node    key.NodePrivate
	disco   key.DiscoPrivate
	tsp     *tsp.Client    // Tailscale's own scriptable client
	raw     *ts2021.Client // the same machine on a connection of its own, for requests that tsp does not make
}

// newClient makes a machine that calls itself host; it says nothing to the server yet.
func (ts *testServer) newClient(host string) *client {
	ts.t.Helper()
	c := &client{ts: ts, host: host, machine: key.NewMachine(), node: key.NewNode(), disco: key.NewDisco()}
	c.dial(0)
	return c
}

// dial makes the clients anew, for the server's present address; capver 0 is the current one.
func (c *client) dial(capver uint16) {
	var err error
	c.tsp, err = tsp.NewClient(tsp.ClientOpts{ServerURL: c.ts.url, MachineKey: c.machine})
	c.ts.must(err)
	c.tsp.SetControlPublicKey(c.ts.key.Public())
	c.raw = c.ts.rawClient(c.machine, capver)
	c.ts.t.Cleanup(func() { _ = c.tsp.Close() })
}

// rawClient is a Noise connection (several, if asked from several goroutines) with HTTP in it.
func (ts *testServer) rawClient(machine key.MachinePrivate, capver uint16) *ts2021.Client {
	ts.t.Helper()
	c, err := ts2021.NewClient(ts2021.ClientOpts{
		ServerURL: ts.url, PrivKey: machine, ServerPubKey: ts.key.Public(), Logf: logger.Discard, ProtocolVersion: capver,
		Dialer: tsdial.NewFromFuncForDebug(logger.Discard, (&net.Dialer{}).DialContext),
	})
	ts.must(err)
	ts.t.Cleanup(func() { _ = c.Close() })
	return c
}

func (c *client) hostinfo() *tailcfg.Hostinfo {
	return &tailcfg.Hostinfo{Hostname: c.host, OS: "linux"}
}

// do sends one request inside Noise; a string or []byte is the body as it is, anything else its JSON, nil none.
func (c *client) do(method, path string, body any) (status int, answer string, header http.Header) {
	c.ts.t.Helper()
	status, answer, header, err := c.try(c.ts.ctx, method, path, body)
	c.ts.must(err)
	return status, answer, header
}

func (c *client) try(ctx context.Context, method, path string, body any) (status int, answer string, header http.Header, err error) {
	resp, err := c.open(ctx, method, path, body)
	if err != nil {
		return 0, "", nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), resp.Header, err
}

func (c *client) open(ctx context.Context, method, path string, body any) (*http.Response, error) {
	var r io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		r = strings.NewReader(b)
	case []byte:
		r = bytes.NewReader(b)
	case io.Reader:
		r = b
	default:
		j, err := json.Marshal(b)
		if err != nil {
			return nil, err
		}
		r = bytes.NewReader(j)
	}
	_, host, _ := strings.Cut(c.ts.url, "://")
	req, err := http.NewRequestWithContext(ctx, method, "https://"+host+path, r)
	if err != nil {
		return nil, err
	}
	return c.raw.Do(req)
}

// register registers with a request of our own making.
func (c *client) register(r tailcfg.RegisterRequest) tailcfg.RegisterResponse {
	c.ts.t.Helper()
	resp, err := c.tryRegister(c.ts.ctx, r)
	c.ts.must(err)
	return resp
}

func (c *client) tryRegister(ctx context.Context, r tailcfg.RegisterRequest) (resp tailcfg.RegisterResponse, err error) {
	if r.Version == 0 {
		r.Version = tailcfg.CurrentCapabilityVersion
	}
	if r.NodeKey.IsZero() {
		r.NodeKey = c.node.Public()
	}
	if r.Hostinfo == nil {
		r.Hostinfo = c.hostinfo()
	}
	status, body, _, err := c.try(ctx, "POST", "/machine/register", r)
	if err != nil {
		return resp, err
	}
	if status != http.StatusOK {
		return resp, fmt.Errorf("register: status %d: %s", status, body)
	}
	return resp, json.Unmarshal([]byte(body), &resp)
}

// join registers with Tailscale's client and an auth key, and reports a disco key, so that peers see the node.
func (c *client) join(authKey string) *client {
	c.ts.t.Helper()
	resp, err := c.tsp.Register(c.ts.ctx, tsp.RegisterOpts{NodeKey: c.node, AuthKey: authKey, Hostinfo: c.hostinfo()})
	c.ts.must(err)
	if resp.AuthURL != "" || !resp.MachineAuthorized || resp.Login.LoginName == "" {
		c.ts.t.Fatalf("joining with a key answered %+v", resp)
	}
	c.ts.must(c.tsp.SendMapUpdate(c.ts.ctx, tsp.SendMapUpdateOpts{NodeKey: c.node, DiscoKey: c.disco.Public(), Hostinfo: c.hostinfo()}))
	return c
}

// joined makes and joins a client.
func (ts *testServer) joined(host string) *client {
	ts.t.Helper()
	return ts.newClient(host).join(ts.authKey(false, false))
}

// id is the node that the server has for the client's node key.
func (c *client) id() tailnet.NodeID {
	c.ts.t.Helper()
	n := c.ts.state.Snapshot().NodeByKey(c.node.Public())
	if n == nil {
		c.ts.t.Fatalf("%s is not registered", c.host)
	}
	return n.ID
}

// lite is the map request that reports endpoints.
func (c *client) lite(eps ...string) tailcfg.MapRequest {
	r := tailcfg.MapRequest{
		Version: tailcfg.CurrentCapabilityVersion, NodeKey: c.node.Public(), DiscoKey: c.disco.Public(),
		Hostinfo: c.hostinfo(), OmitPeers: true, Compress: "zstd",
	}
	for _, e := range eps {
		r.Endpoints = append(r.Endpoints, netip.MustParseAddrPort(e))
		r.EndpointTypes = append(r.EndpointTypes, tailcfg.EndpointLocal)
	}
	return r
}

// report sends a lite update, which must succeed.
func (c *client) report(r tailcfg.MapRequest) {
	c.ts.t.Helper()
	if status, body, _ := c.do("POST", "/machine/map", r); status != http.StatusOK {
		c.ts.t.Fatalf("lite update of %s: status %d: %s", c.host, status, body)
	}
}

// streamRequest is the request that begins a map session.
func (c *client) streamRequest() tailcfg.MapRequest {
	return tailcfg.MapRequest{
		Version: tailcfg.CurrentCapabilityVersion, NodeKey: c.node.Public(), Hostinfo: c.hostinfo(),
		Stream: true, KeepAlive: true, Compress: "zstd",
	}
}

// message is one map response as it came.
type message struct {
	tailcfg.MapResponse
	frame []byte // the body of the frame, still compressed
}

// stream is an open map session, read by a goroutine of its own.
type stream struct {
	t     testing.TB
	name  string
	msgs  chan *message // closed at the end of the session
	err   error         // why it ended; readable once msgs is closed
	close func()
}

// stream opens a map session with Tailscale's client.
func (c *client) stream() *stream {
	c.ts.t.Helper()
	ms, err := c.tsp.Map(c.ts.ctx, tsp.MapOpts{NodeKey: c.node, Stream: true, Hostinfo: c.hostinfo()})
	c.ts.must(err)
	return c.read(func() (*message, error) {
		m := &message{}
		return m, ms.NextInto(&m.MapResponse)
	}, func() { _ = ms.Close() })
}

// rawStream opens a map session with a request of our own making.
func (c *client) rawStream(r tailcfg.MapRequest) *stream {
	c.ts.t.Helper()
	resp, err := c.open(c.ts.ctx, "POST", "/machine/map", r)
	c.ts.must(err)
	if resp.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		c.ts.t.Fatalf("map session of %s: status %d: %s", c.host, resp.StatusCode, b)
	}
	return c.read(func() (*message, error) { return readMessage(resp.Body, r.Compress == "zstd") }, func() { resp.Body.Close() })
}

// readMessage reads one frame as tailscaled does: four bytes of length, little endian, then the body.
func readMessage(r io.Reader, compressed bool) (*message, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	m := &message{frame: make([]byte, binary.LittleEndian.Uint32(head[:]))}
	if _, err := io.ReadFull(r, m.frame); err != nil {
		return nil, err
	}
	body := m.frame
	if compressed {
		var err error
		if body, err = zstdframe.AppendDecode(nil, m.frame); err != nil {
			return nil, err
		}
	}
	return m, json.Unmarshal(body, &m.MapResponse)
}

func (c *client) read(next func() (*message, error), closeBody func()) *stream {
	s := &stream{t: c.ts.t, name: c.host, msgs: make(chan *message, 1000)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer close(s.msgs)
		for {
			m, err := next()
			if err != nil {
				s.err = err
				return
			}
			select {
			case s.msgs <- m:
			default:
				s.err = errors.New("the test does not read its messages")
				return
			}
		}
	}()
	s.close = sync.OnceFunc(func() {
		closeBody()
		<-done
	})
	c.ts.t.Cleanup(s.close)
	return s
}

// first is the first message, which must be a full one.
func (s *stream) first() *message {
	s.t.Helper()
	m := s.next("the first map", func(m *message) bool { return !m.KeepAlive })
	if m.Node == nil {
		s.t.Fatalf("%s: the first message has no Node: %+v", s.name, m.MapResponse)
	}
	return m
}

// next is the next message that ok accepts; others are skipped.
func (s *stream) next(what string, ok func(*message) bool) *message {
	s.t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case m, open := <-s.msgs:
			if !open {
				s.t.Fatalf("%s: the session ended (%v) before %s", s.name, s.err, what)
			}
			if ok(m) {
				return m
			}
		case <-deadline:
			s.t.Fatalf("%s: not within %v: %s", s.name, patience, what)
		}
	}
}

// patch is the next patch about a peer that ok accepts.
func (s *stream) patch(what string, id tailnet.NodeID, ok func(*tailcfg.PeerChange) bool) (p *tailcfg.PeerChange) {
	s.t.Helper()
	s.next(what, func(m *message) bool {
		for _, c := range m.PeersChangedPatch {
			if c.NodeID == id.Tailcfg() && ok(c) {
				p = c
			}
		}
		return p != nil
	})
	return p
}

// peer is the next whole peer, in whichever field, that ok accepts.
func (s *stream) peer(what string, ok func(*tailcfg.Node) bool) (n *tailcfg.Node) {
	s.t.Helper()
	s.next(what, func(m *message) bool {
		for _, list := range [][]*tailcfg.Node{m.Peers, m.PeersChanged} {
			for _, p := range list {
				if ok(p) {
					n = p
				}
			}
		}
		return n != nil
	})
	return n
}

// ended waits for the server to end the session and returns what came until then.
func (s *stream) ended() (rest []*message) {
	s.t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case m, open := <-s.msgs:
			if !open {
				return rest
			}
			rest = append(rest, m)
		case <-deadline:
			s.t.Fatalf("%s: the session has not ended within %v", s.name, patience)
		}
	}
}

// alive reports whether the server has kept the session; messages that wait are dropped.
func (s *stream) alive() bool {
	for {
		select {
		case _, open := <-s.msgs:
			if !open {
				return false
			}
		default:
			return true
		}
	}
}
