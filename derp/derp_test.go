package derp

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"go.uber.org/goleak"
	tsderp "tailscale.com/derp"
	"tailscale.com/derp/derphttp"
	"tailscale.com/net/netmon"
	"tailscale.com/net/wsconn"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for something that should happen at once. It is an upper bound for hangs, not a measure.
const patience = 30 * time.Second

// relayHost is a Server on a Listener on loopback, with the region that clients would be sent.
type relayHost struct {
	*Server
	url    *url.URL
	cert   *Certificate
	maps   *Maps
	region func() *tailcfg.DERPRegion // of maps.Current

	mu      sync.Mutex
	allowed map[key.NodePublic]bool
}

func (h *relayHost) allow(k key.NodePublic, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.allowed[k] = ok
}

func (h *relayHost) admits(k key.NodePublic) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.allowed[k]
}

func startRelay(t *testing.T) *relayHost {
	t.Helper()
	dir := t.TempDir()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &relayHost{allowed: map[key.NodePublic]bool{}, url: &url.URL{Scheme: "http", Host: l.Addr().String()}}
	if h.Server, err = New(Options{KeyPath: filepath.Join(dir, "derp.key"), Admit: h.admits}); err != nil {
		t.Fatal(err)
	}
	if h.cert, err = SelfSigned(filepath.Join(dir, "cert.pem"), CertHosts(h.url), nil); err != nil {
		t.Fatal(err)
	}
	src, err := NewSources(t.Context(), SourcesOptions{Embedded: &Embedded{ServerURL: h.url, RegionID: 999, Code: "skein", Cert: h.cert}})
	if err != nil {
		t.Fatal(err)
	}
	h.maps = src.Current()
	h.region = func() *tailcfg.DERPRegion { return h.maps.Current.Regions[999] }

	srv := &http.Server{Handler: h.Handler(), ReadHeaderTimeout: patience}
	PrepareServer(srv)
	served := make(chan error, 1)
	go func() { served <- srv.Serve(NewListener(l, ListenerOptions{TLS: h.cert.TLSConfig()})) }()
	t.Cleanup(func() {
		h.Close()
		srv.Close()
		<-served
	})
	return h
}

// client returns a stock DERP client for a region, with its key. The caller decides whether the key is allowed.
func client(t *testing.T, priv key.NodePrivate, region func() *tailcfg.DERPRegion) *derphttp.Client {
	t.Helper()
	c := derphttp.NewRegionClient(priv, t.Logf, netmon.NewStatic(), region)
	t.Cleanup(func() { c.Close() })
	return c
}

// connect returns a client that has got through the handshake.
func connect(t *testing.T, h *relayHost, priv key.NodePrivate) *derphttp.Client {
	t.Helper()
	c := client(t, priv, h.region)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := c.Connect(ctx); err != nil {
		t.Fatalf("connect: %v", err)
	}
	// The server says who it is as soon as the client is admitted.
	if m, err := c.Recv(); err != nil {
		t.Fatalf("first message: %v", err)
	} else if _, ok := m.(tsderp.ServerInfoMessage); !ok {
		t.Fatalf("first message is a %T", m)
	}
	return c
}

func recvPacket(t *testing.T, c *derphttp.Client) tsderp.ReceivedPacket {
	t.Helper()
	for {
		m, err := c.Recv()
		if err != nil {
			t.Fatalf("receive: %v", err)
		}
		if p, ok := m.(tsderp.ReceivedPacket); ok {
			return p
		}
	}
}

// until waits for a condition.
func until(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("still waiting after %v: %s", patience, what)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestRelayBetweenRegisteredNodes(t *testing.T) {
	h := startRelay(t)
	a, b := key.NewNode(), key.NewNode()
	h.allow(a.Public(), true)
	h.allow(b.Public(), true)
	ca, cb := connect(t, h, a), connect(t, h, b)
	for i := range 3 {
		msg := fmt.Appendf(nil, "packet %d", i)
		if err := ca.Send(b.Public(), msg); err != nil {
			t.Fatal(err)
		}
		got := recvPacket(t, cb)
		if got.Source != a.Public() || !bytes.Equal(got.Data, msg) {
			t.Fatalf("got %q from %v, want %q from %v", got.Data, got.Source.ShortString(), msg, a.Public().ShortString())
		}
	}
	if st := h.Stats(); st.Sessions != 2 || st.Nodes != 2 || st.Refused != 0 {
		t.Errorf("stats %+v", st)
	}
	if err := h.relay.ConsistencyCheck(); err != nil {
		t.Error(err)
	}
}

func TestUnregisteredIsRefused(t *testing.T) {
	h := startRelay(t)
	c := client(t, key.NewNode(), h.region)
	err := c.Connect(t.Context())
	if err == nil {
		_, err = c.Recv()
	}
	if err == nil {
		t.Fatal("a stranger got through")
	}
	until(t, "the refusal counted", func() bool { return h.Stats().Refused > 0 })
	c.Close()
	until(t, "the session gone", func() bool { return h.Stats() == Stats{Refused: h.Stats().Refused} })
}

func TestRemovedNodeIsCut(t *testing.T) {
	for name, cut := range map[string]func(*relayHost, key.NodePublic) int{
		"CloseNode": func(h *relayHost, k key.NodePublic) int { return h.CloseNode(k) },
		"Recheck":   func(h *relayHost, k key.NodePublic) int { return h.Recheck() },
	} {
		t.Run(name, func(t *testing.T) {
			h := startRelay(t)
			a, b := key.NewNode(), key.NewNode()
			h.allow(a.Public(), true)
			h.allow(b.Public(), true)
			ca, cb := connect(t, h, a), connect(t, h, b)
			if n := cut(h, key.NewNode().Public()); n != 0 {
				t.Fatalf("%d sessions cut for a key that is not connected", n)
			}
			h.allow(a.Public(), false)
			if n := cut(h, a.Public()); n != 1 {
				t.Fatalf("%d sessions cut, want 1", n)
			}
			// derphttp reconnects by itself on use: the connection ends, and the next one is refused.
			if m, err := ca.Recv(); err == nil {
				t.Fatalf("the removed node still gets %T", m)
			}
			until(t, "only b left", func() bool { return h.Stats().Sessions == 1 })
			if err := ca.Connect(t.Context()); err == nil {
				if m, err := ca.Recv(); err == nil {
					t.Fatalf("the removed node is back and gets %T", m)
				}
			}
			if err := cb.Send(b.Public(), []byte("self")); err != nil { // b is not touched
				t.Fatal(err)
			}
			recvPacket(t, cb)
		})
	}
}

// TestRemovalRace removes nodes while they connect: none may be left connected.
func TestRemovalRace(t *testing.T) {
	h := startRelay(t)
	var wg sync.WaitGroup
	for range 20 {
		k := key.NewNode()
		h.allow(k.Public(), true)
		c := client(t, k, h.region)
		wg.Go(func() {
			if c.Connect(t.Context()) == nil {
				for {
					if _, err := c.Recv(); err != nil {
						break
					}
				}
			}
			c.Close()
		})
		wg.Go(func() {
			h.allow(k.Public(), false)
			h.CloseNode(k.Public())
		})
	}
	wg.Wait() // a session that slipped through would keep its Recv waiting for ever
	until(t, "all sessions gone", func() bool { return h.Stats().Sessions == 0 })
}

func TestCloseEndsSessions(t *testing.T) {
	h := startRelay(t)
	a := key.NewNode()
	h.allow(a.Public(), true)
	c := connect(t, h, a)
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Recv(); err == nil {
		t.Fatal("session survived Close")
	}
	if st := h.Stats(); st.Sessions != 0 {
		t.Errorf("stats %+v", st)
	}
	if err := c.Connect(t.Context()); err == nil {
		t.Error("connected to a closed relay")
	}
}

func TestPinIsChecked(t *testing.T) {
	h := startRelay(t)
	a := key.NewNode()
	h.allow(a.Public(), true)

	other, err := SelfSigned(filepath.Join(t.TempDir(), "other.pem"), CertHosts(h.url), nil)
	if err != nil {
		t.Fatal(err)
	}
	wrong := h.region().Clone()
	wrong.Nodes[0].CertName = other.pin()
	c := client(t, a, func() *tailcfg.DERPRegion { return wrong })
	if err := c.Connect(t.Context()); err == nil || !strings.Contains(err.Error(), "hash") {
		t.Fatalf("another certificate than the pinned one: err = %v, want a complaint about the hash", err)
	}
	none := h.region().Clone()
	none.Nodes[0].CertName = ""
	c = client(t, a, func() *tailcfg.DERPRegion { return none })
	if err := c.Connect(t.Context()); err == nil {
		t.Fatal("a self-signed certificate was accepted without a pin")
	}
	legacy := client(t, a, func() *tailcfg.DERPRegion { return h.maps.Legacy.Regions[999] })
	if err := legacy.Connect(t.Context()); err != nil {
		t.Fatalf("the map for older clients: %v", err)
	}
}

func TestWebSocketRelay(t *testing.T) {
	h := startRelay(t)
	a, b := key.NewNode(), key.NewNode()
	h.allow(a.Public(), true)
	h.allow(b.Public(), true)
	cb := connect(t, h, b)
	hc := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	ws, _, err := websocket.Dial(t.Context(), "wss://"+h.url.Host+"/derp", &websocket.DialOptions{HTTPClient: hc, Subprotocols: []string{"derp"}})
	if err != nil {
		t.Fatal(err)
	}
	defer ws.CloseNow()
	nc := wsconn.NetConn(t.Context(), ws, websocket.MessageBinary, h.url.Host)
	defer nc.Close()
	ca, err := tsderp.NewClient(a, nc, newReadWriter(nc), t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	if err := ca.Send(b.Public(), []byte("from a browser")); err != nil {
		t.Fatal(err)
	}
	if got := recvPacket(t, cb); string(got.Data) != "from a browser" {
		t.Fatalf("got %q", got.Data)
	}
	h.allow(a.Public(), false)
	if n := h.CloseNode(a.Public()); n != 1 {
		t.Fatalf("%d cut", n)
	}
	until(t, "the WebSocket session gone", func() bool { return h.Stats().Sessions == 1 })
}

func TestHTTPEndpoints(t *testing.T) {
	h := startRelay(t)
	h.bootstrap = &Bootstrap{
		Names: []string{"Skein.example.com"},
		Lookup: func(_ context.Context, name string) ([]netip.Addr, error) {
			if name != "skein.example.com" {
				return nil, errors.New("asked for " + name)
			}
			return []netip.Addr{netip.MustParseAddr("192.0.2.1")}, nil
		},
	}
	hc := &http.Client{Transport: &http.Transport{
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true},
		ForceAttemptHTTP2: true, // must not be given
	}}
	defer hc.CloseIdleConnections()
	tests := []struct {
		method, path string
		header       [2]string
		status       int
		wantHeader   [2]string
		body         string
	}{
		{method: "GET", path: "/derp/probe", status: 200, wantHeader: [2]string{"Access-Control-Allow-Origin", "*"}},
		{method: "HEAD", path: "/derp/latency-check", status: 200},
		{method: "POST", path: "/derp/probe", status: 405},
		{method: "GET", path: "/generate_204", header: [2]string{"X-Tailscale-Challenge", "ts_abc"}, status: 204, wantHeader: [2]string{"X-Tailscale-Response", "response ts_abc"}},
		{method: "GET", path: "/bootstrap-dns?q=SKEIN.example.com", status: 200, body: `{"skein.example.com":["192.0.2.1"]}`},
		{method: "GET", path: "/bootstrap-dns", status: 200, body: `{"skein.example.com":["192.0.2.1"]}`},
		{method: "GET", path: "/bootstrap-dns?q=example.org", status: 200, body: `{}`},
		{method: "GET", path: "/derp", status: 426, wantHeader: [2]string{"Upgrade", "DERP"}},
		{method: "POST", path: "/derp", header: [2]string{"Upgrade", "DERP"}, status: 405},
		{method: "GET", path: "/derp/other", status: 404},
	}
	for _, scheme := range []string{"http", "https"} {
		for _, tt := range tests {
			t.Run(scheme+" "+tt.method+" "+tt.path, func(t *testing.T) {
				req, err := http.NewRequestWithContext(t.Context(), tt.method, scheme+"://"+h.url.Host+tt.path, nil)
				if err != nil {
					t.Fatal(err)
				}
				if tt.header[0] != "" {
					req.Header.Set(tt.header[0], tt.header[1])
				}
				res, err := hc.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				defer res.Body.Close()
				body, _ := io.ReadAll(res.Body)
				if res.StatusCode != tt.status || res.ProtoMajor != 1 {
					t.Errorf("status %s %s, want %d and HTTP/1.1", res.Proto, res.Status, tt.status)
				}
				if k := tt.wantHeader[0]; k != "" && res.Header.Get(k) != tt.wantHeader[1] {
					t.Errorf("%s: %q, want %q", k, res.Header.Get(k), tt.wantHeader[1])
				}
				if tt.body != "" && strings.TrimSpace(string(body)) != tt.body {
					t.Errorf("body %s, want %s", body, tt.body)
				}
			})
		}
	}
}

func TestKeyFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "relay.key")
	var wg sync.WaitGroup
	keys := make([]key.NodePublic, 8)
	for i := range keys { // several at once agree on one key
		wg.Go(func() {
			s, err := New(Options{KeyPath: path})
			if err != nil {
				t.Error(err)
				return
			}
			keys[i] = s.PublicKey()
		})
	}
	wg.Wait()
	for _, k := range keys {
		if k != keys[0] || k.IsZero() {
			t.Fatalf("different keys: %v", keys)
		}
	}
	fi, err := os.Stat(path)
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, err %v; want 0600", fi.Mode(), err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("files left behind: %v", left)
	}
	if text, _ := os.ReadFile(path); !strings.HasPrefix(string(text), "privkey:") {
		t.Errorf("not the usual text form")
	}
	for _, bad := range []string{"", "privkey:12", "nodekey:" + strings.Repeat("0", 64)} {
		p := filepath.Join(dir, "bad")
		if err := os.WriteFile(p, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := New(Options{KeyPath: p}); err == nil || !strings.Contains(err.Error(), p) {
			t.Errorf("key %q: err = %v, want one that names the file", bad, err)
		}
	}
	if _, err := New(Options{KeyPath: filepath.Join(dir, "no", "such", "dir")}); err == nil {
		t.Error("no error for a folder that does not exist")
	}
}

func TestVerifyHandler(t *testing.T) {
	known := key.NewNode().Public()
	h := VerifyHandler(func(k key.NodePublic) bool { return k == known })
	ask := func(method, body string) (int, string) {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(method, "/verify", strings.NewReader(body)))
		return w.Code, strings.TrimSpace(w.Body.String())
	}
	request := func(k key.NodePublic) string {
		b, _ := json.Marshal(tailcfg.DERPAdmitClientRequest{NodePublic: k, Source: netip.MustParseAddr("192.0.2.1")})
		return string(b)
	}
	for _, tt := range []struct {
		method, body string
		code         int
		want         string
	}{
		{"POST", request(known), 200, `{"Allow":true}`},
		{"POST", request(key.NewNode().Public()), 200, `{"Allow":false}`},
		{"GET", "", 405, ""},
		{"POST", "{", 400, ""},
		{"POST", "{}", 400, ""},
		{"POST", `{"NodePublic":"nodekey:xyz"}`, 400, ""},
		{"POST", `{"NodePublic":"` + strings.Repeat("a", 1<<20), 400, ""},
	} {
		code, body := ask(tt.method, tt.body)
		if code != tt.code || tt.want != "" && body != tt.want {
			t.Errorf("%s %.40s: %d %s, want %d %s", tt.method, tt.body, code, body, tt.code, tt.want)
		}
	}
	// Nobody outside a relay session gets an answer from the in-process address.
	if _, err := http.Post(admissionURL, "application/json", strings.NewReader(request(known))); err == nil {
		t.Error("the admission address answers anybody in the process")
	}
}
