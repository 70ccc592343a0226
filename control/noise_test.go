package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"golang.org/x/net/http2"
	"tailscale.com/control/controlbase"
	"tailscale.com/control/tsp"
	"tailscale.com/net/wsconn"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

const (
	upgradeTo       = "tailscale-control-protocol"
	handshakeHeader = "X-Tailscale-Handshake"
)

func TestKey(t *testing.T) {
	ts := newServer(t, nil)
	for _, tt := range []struct {
		method, query string
		status        int
	}{
		{"GET", "?v=142", 200},
		{"GET", "?v=9999", 200}, // a newer client is never refused
		{"GET", "?v=rubbish", 200},
		{"GET", "?v=", 400},
		{"GET", "", 400},
		{"POST", "?v=142", 405},
		{"DELETE", "?v=142", 405},
	} {
		req, err := http.NewRequestWithContext(ts.ctx, tt.method, ts.url+"/key"+tt.query, nil)
		ts.must(err)
		resp, err := http.DefaultClient.Do(req)
		ts.must(err)
		body, err := io.ReadAll(resp.Body)
		ts.must(err)
		resp.Body.Close()
		if resp.StatusCode != tt.status {
			t.Errorf("%s /key%s: status %d, want %d", tt.method, tt.query, resp.StatusCode, tt.status)
		}
		if tt.status != 200 {
			continue
		}
		var k tailcfg.OverTLSPublicKeyResponse
		if err := json.Unmarshal(body, &k); err != nil || k.PublicKey != ts.key.Public() {
			t.Errorf("%s /key%s: %s (%v)", tt.method, tt.query, body, err)
		}
	}
	k, err := tsp.DiscoverServerKey(ts.ctx, ts.url)
	if err != nil || k != ts.key.Public() {
		t.Errorf("Tailscale's client reads the key %v, %v", k, err)
	}
}

// upgrade sends the request that turns a connection into Noise and returns the answer with what follows it.
func (ts *testServer) upgrade(handshake []byte) (net.Conn, *bufio.Reader, *http.Response) {
	ts.t.Helper()
	return ts.upgradeWith("POST", map[string]string{
		"Connection": "upgrade", "Upgrade": upgradeTo, handshakeHeader: base64.StdEncoding.EncodeToString(handshake),
	})
}

func (ts *testServer) upgradeWith(method string, headers map[string]string) (net.Conn, *bufio.Reader, *http.Response) {
	ts.t.Helper()
	addr := strings.TrimPrefix(ts.url, "http://")
	c, err := net.Dial("tcp", addr)
	ts.must(err)
	ts.t.Cleanup(func() { c.Close() })
	ts.must(c.SetDeadline(time.Now().Add(patience)))
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s /ts2021 HTTP/1.1\r\nHost: %s\r\n", method, addr)
	for k, v := range headers {
		fmt.Fprintf(&b, "%s: %s\r\n", k, v)
	}
	b.WriteString("\r\n")
	_, err = c.Write(b.Bytes())
	ts.must(err)
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	ts.must(err)
	return c, r, resp
}

// noise makes a Noise connection by hand.
func (ts *testServer) noise(machine key.MachinePrivate) *controlbase.Conn {
	ts.t.Helper()
	init, cont, err := controlbase.ClientDeferred(machine, ts.key.Public(), uint16(tailcfg.CurrentCapabilityVersion))
	ts.must(err)
	c, r, resp := ts.upgrade(init)
	if resp.StatusCode != http.StatusSwitchingProtocols {
		ts.t.Fatalf("the upgrade was answered %s", resp.Status)
	}
	nc, err := cont(ts.ctx, &bufferedConn{c, r})
	ts.must(err)
	ts.must(nc.SetDeadline(time.Now().Add(patience)))
	return nc
}

// bufferedConn reads what a bufio.Reader has read ahead first.
type bufferedConn struct {
	net.Conn
	r *bufio.Reader
}

func (c *bufferedConn) Read(p []byte) (int, error) { return c.r.Read(p) }

func initiation(t testing.TB, server key.MachinePublic) []byte {
	init, _, err := controlbase.ClientDeferred(key.NewMachine(), server, uint16(tailcfg.CurrentCapabilityVersion))
	if err != nil {
		t.Fatal(err)
	}
	return init
}

// noConnections waits until no connection is counted any more.
func (ts *testServer) noConnections() {
	ts.t.Helper()
	l := ts.control.limits
	eventually(ts.t, "all connections are given back", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.conns) == 0
	})
}

// A handshake that is not one costs its sender the connection, and nobody else anything.
func TestBadHandshake(t *testing.T) {
	ts := newServer(t, nil)
	good := initiation(t, ts.key.Public())
	edit := func(f func(b []byte) []byte) []byte { return f(bytes.Clone(good)) }
	for name, init := range map[string][]byte{
		"one byte":          {1},
		"truncated":         good[:50],
		"one byte short":    good[:len(good)-1],
		"one byte too long": edit(func(b []byte) []byte { return append(b, 0) }),
		"oversized":         bytes.Repeat([]byte("x"), 8<<10),
		"zeros":             make([]byte, len(good)),
		"wrong type":        edit(func(b []byte) []byte { b[2] = 9; return b }),
		"wrong length":      edit(func(b []byte) []byte { b[3] ^= 1; return b }),
		"garbled key":       edit(func(b []byte) []byte { b[20] ^= 1; return b }),
		"garbled tag":       edit(func(b []byte) []byte { b[len(b)-1] ^= 1; return b }),
		"other version":     edit(func(b []byte) []byte { b[1] ^= 1; return b }), // the prologue does not fit then
		"for another key":   initiation(t, key.NewMachine().Public()),
	} {
		t.Run(name, func(t *testing.T) {
			_, r, resp := ts.upgrade(init)
			if resp.StatusCode != http.StatusSwitchingProtocols {
				t.Fatalf("status %d; the library answers 101 before it looks", resp.StatusCode)
			}
			if rest, err := io.ReadAll(r); err != nil || len(rest) > 200 {
				t.Errorf("the connection is not closed at once: %d bytes, %v", len(rest), err)
			}
		})
	}
	for name, h := range map[string]map[string]string{
		"no upgrade":      {handshakeHeader: base64.StdEncoding.EncodeToString(good)},
		"another upgrade": {"Connection": "upgrade", "Upgrade": "h2c", handshakeHeader: base64.StdEncoding.EncodeToString(good)},
		"no handshake":    {"Connection": "upgrade", "Upgrade": upgradeTo},
		"not base64":      {"Connection": "upgrade", "Upgrade": upgradeTo, handshakeHeader: "%%%%"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, _, resp := ts.upgradeWith("POST", h); resp.StatusCode != http.StatusBadRequest {
				t.Errorf("status %d, want 400", resp.StatusCode)
			}
		})
	}
	for _, method := range []string{"PUT", "DELETE", "PATCH"} {
		if _, _, resp := ts.upgradeWith(method, nil); resp.StatusCode != http.StatusMethodNotAllowed {
			t.Errorf("%s /ts2021: status %d, want 405", method, resp.StatusCode)
		}
	}
	ts.noConnections()
	ts.joined("alpha").stream().first() // nothing is lost
}

// Garbage where Noise records or HTTP/2 are expected ends the connection.
func TestGarbageAfterUpgrade(t *testing.T) {
	ts := newServer(t, nil)
	closed := func(t *testing.T, r io.Reader) {
		t.Helper()
		var timeout net.Error
		if _, err := io.Copy(io.Discard, r); errors.As(err, &timeout) && timeout.Timeout() { // a reset is as good as an end
			t.Error("the connection is still open")
		}
	}
	for name, garbage := range map[string]string{
		"text":             strings.Repeat("garbage ", 1000),
		"too long":         "\x04\xff\xff",
		"not decipherable": "\x04\x00\x20" + strings.Repeat("x", 32),
		"empty record":     "\x04\x00\x00",
	} {
		t.Run("record/"+name, func(t *testing.T) {
			c, r, _ := ts.upgrade(initiation(t, ts.key.Public()))
			_, err := io.WriteString(c, garbage)
			ts.must(err)
			closed(t, r)
		})
	}
	for name, garbage := range map[string]string{
		"HTTP/1.1":             "GET / HTTP/1.1\r\nHost: x\r\n\r\n" + strings.Repeat("x", 5000),
		"preface then garbage": http2.ClientPreface + strings.Repeat("\xff", 9000),
	} {
		t.Run("HTTP2/"+name, func(t *testing.T) {
			nc := ts.noise(key.NewMachine())
			defer nc.Close()
			_, err := io.WriteString(nc, garbage)
			ts.must(err)
			closed(t, nc)
		})
	}
	ts.noConnections()
	ts.joined("alpha").stream().first()
}

// Clients in browsers come by WebSocket: their connection serves as long as any other.
func TestWebSocket(t *testing.T) {
	ts := newServer(t, nil)
	ctx, cancel := context.WithCancel(ts.ctx)
	defer cancel()
	machine := key.NewMachine()
	init, cont, err := controlbase.ClientDeferred(machine, ts.key.Public(), uint16(tailcfg.CurrentCapabilityVersion))
	ts.must(err)
	u := ts.url + "/ts2021?" + url.Values{handshakeHeader: {base64.StdEncoding.EncodeToString(init)}}.Encode()
	ws, _, err := websocket.Dial(ctx, u, &websocket.DialOptions{Subprotocols: []string{upgradeTo}})
	ts.must(err)
	defer ws.CloseNow()
	nc, err := cont(ctx, wsconn.NetConn(ctx, ws, websocket.MessageBinary, u))
	ts.must(err)
	h2, err := (&http2.Transport{AllowHTTP: true}).NewClientConn(nc)
	ts.must(err)
	defer h2.Close()

	post := func(path string, v any) *http.Response {
		t.Helper()
		b, err := json.Marshal(v)
		ts.must(err)
		req, err := http.NewRequestWithContext(ctx, "POST", "https://skein"+path, bytes.NewReader(b))
		ts.must(err)
		resp, err := h2.RoundTrip(req)
		ts.must(err)
		return resp
	}
	node := key.NewNode()
	resp := post("/machine/register", tailcfg.RegisterRequest{
		Version: tailcfg.CurrentCapabilityVersion, NodeKey: node.Public(), Hostinfo: &tailcfg.Hostinfo{Hostname: "browser"},
		Auth: &tailcfg.RegisterResponseAuth{AuthKey: ts.authKey(false, false)},
	})
	var reg tailcfg.RegisterResponse
	ts.must(json.NewDecoder(resp.Body).Decode(&reg))
	resp.Body.Close()
	if !reg.MachineAuthorized || reg.Error != "" {
		t.Fatalf("registration by WebSocket answered %+v", reg)
	}
	resp = post("/machine/map", tailcfg.MapRequest{Version: tailcfg.CurrentCapabilityVersion, NodeKey: node.Public(), Stream: true, Compress: "zstd"})
	defer resp.Body.Close()
	m, err := readMessage(resp.Body, true)
	ts.must(err)
	if m.Node == nil || m.Node.Key != node.Public() {
		t.Fatalf("the first message by WebSocket is %+v", m.MapResponse)
	}
	ts.joined("alpha")
	for m.PeersChanged == nil { // a later message comes as well
		m, err = readMessage(resp.Body, true)
		ts.must(err)
	}
}

func TestBadWebSocket(t *testing.T) {
	ts := newServer(t, nil)
	good := base64.StdEncoding.EncodeToString(initiation(t, ts.key.Public()))
	for name, tt := range map[string]struct {
		handshake   string
		subprotocol []string
	}{
		"no subprotocol": {good, nil},
		"no handshake":   {"", []string{upgradeTo}},
		"not base64":     {"%", []string{upgradeTo}},
		"truncated":      {good[:40], []string{upgradeTo}},
		"wrong key":      {base64.StdEncoding.EncodeToString(initiation(t, key.NewMachine().Public())), []string{upgradeTo}},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(ts.ctx, patience)
			defer cancel()
			ws, _, err := websocket.Dial(ctx, ts.url+"/ts2021?"+url.Values{handshakeHeader: {tt.handshake}}.Encode(),
				&websocket.DialOptions{Subprotocols: tt.subprotocol})
			ts.must(err)
			defer ws.CloseNow()
			for err == nil { // an error message may come before the end
				_, _, err = ws.Read(ctx)
			}
			if ctx.Err() != nil {
				t.Error("the connection was not closed")
			}
		})
	}
	ts.noConnections()
}

func TestConnectionLimit(t *testing.T) {
	ts := newServer(t, func(o *Options) { o.Limits.Connections = 3 })
	var open []*controlbase.Conn
	for range 3 {
		open = append(open, ts.noise(key.NewMachine()))
	}
	_, _, resp := ts.upgrade(initiation(t, ts.key.Public()))
	if resp.StatusCode != http.StatusTooManyRequests || resp.Header.Get("Retry-After") == "" {
		t.Errorf("one connection too many: status %d, Retry-After %q", resp.StatusCode, resp.Header.Get("Retry-After"))
	}
	open[0].Close()
	eventually(t, "a connection is free again", func() bool {
		c, _, resp := ts.upgrade(initiation(t, ts.key.Public()))
		c.Close()
		return resp.StatusCode == http.StatusSwitchingProtocols
	})
	for _, c := range open[1:] {
		c.Close()
	}
	ts.noConnections()
}

// Behind a trusted proxy connections count for the address that the proxy names.
func TestForwardedConnections(t *testing.T) {
	ts := newServer(t, func(o *Options) {
		o.Limits.Connections = 1
		o.Proxies = prefixes("127.0.0.0/8")
	})
	dial := func(from string) (*controlbase.Conn, int) {
		t.Helper()
		init, cont, err := controlbase.ClientDeferred(key.NewMachine(), ts.key.Public(), 142)
		ts.must(err)
		c, r, resp := ts.upgradeWith("POST", map[string]string{
			"Connection": "upgrade", "Upgrade": upgradeTo, handshakeHeader: base64.StdEncoding.EncodeToString(init), "X-Forwarded-For": from,
		})
		if resp.StatusCode != http.StatusSwitchingProtocols {
			return nil, resp.StatusCode
		}
		nc, err := cont(ts.ctx, &bufferedConn{c, r})
		ts.must(err)
		return nc, resp.StatusCode
	}
	first, _ := dial("198.51.100.7")
	if _, status := dial("203.0.113.5, 198.51.100.7"); status != http.StatusTooManyRequests {
		t.Errorf("the same address again, behind one that it made up: status %d, want 429", status)
	}
	second, status := dial("198.51.100.8")
	if status != http.StatusSwitchingProtocols {
		t.Fatalf("another address: status %d", status)
	}
	h2, err := (&http2.Transport{AllowHTTP: true}).NewClientConn(second)
	ts.must(err)
	defer h2.Close()
	req, err := http.NewRequestWithContext(ts.ctx, "GET", "https://skein/machine/whoami", nil)
	ts.must(err)
	resp, err := h2.RoundTrip(req)
	ts.must(err)
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); err != nil || !strings.Contains(string(b), `"198.51.100.8"`) {
		t.Errorf("who am I: %s (%v)", b, err)
	}
	first.Close()
	h2.Close()
	ts.noConnections()
}

// Close does not wait for connections that do nothing, or that never begin to speak HTTP/2.
func TestCloseEndsConnections(t *testing.T) {
	ts := newServer(t, nil)
	silent := ts.noise(key.NewMachine())
	idle := ts.newClient("idle")
	if status, _, _ := idle.do("GET", "/machine/whoami", nil); status != 200 {
		t.Fatalf("whoami: status %d", status)
	}
	began := time.Now()
	ts.control.Close()
	if d := time.Since(began); d > patience/2 {
		t.Errorf("closing took %v", d)
	}
	if _, err := io.Copy(io.Discard, silent); err != nil && strings.Contains(err.Error(), "timeout") {
		t.Errorf("the silent connection is still open: %v", err)
	}
	_, _, resp := ts.upgrade(initiation(t, ts.key.Public()))
	if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" {
		t.Errorf("a connection after Close: status %d, Retry-After %q", resp.StatusCode, resp.Header.Get("Retry-After"))
	}
}
