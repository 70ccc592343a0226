package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"tailscale.com/tailcfg"
	"tailscale.com/types/key"

	"github.com/skein-vpn/skein/netmap"
)

// recorder is a client that reads everything and hangs up after the first message of a stream.
type recorder struct {
	*httptest.ResponseRecorder
	hangUp func()
}

func (r *recorder) SetWriteDeadline(time.Time) error { return nil }
func (r *recorder) FlushError() error                { r.hangUp(); return nil }

// ask runs one request through the handlers, without a network, and checks what must hold for any answer.
func (c *client) ask(t *testing.T, method, path string, body []byte) *httptest.ResponseRecorder {
	ctx, cancel := context.WithTimeout(c.ts.ctx, patience)
	defer cancel()
	w := &recorder{httptest.NewRecorder(), cancel}
	c.ts.control.handler.ServeHTTP(w, c.requestFrom(ctx, method, path, string(body)))
	switch w.Code {
	case 200, 204, 400, 403, 404, 405, 409, 413, 429, 501:
	default:
		t.Errorf("status %d: %.300q", w.Code, w.Body)
	}
	if w.Code >= 400 {
		if b := w.Body.String(); !utf8.ValidString(b) || len(b) > 1000 || strings.ContainsFunc(strings.TrimSpace(b), unicode.IsControl) {
			t.Errorf("status %d repeats what it was sent: %.300q", w.Code, b)
		}
	}
	return w.ResponseRecorder
}

// fuzzed is a server with two nodes, the one that speaks and one that must not be touched by what it says.
type fuzzed struct {
	*client
	other  *client
	unused key.NodePublic // of no node yet
}

func newFuzzed(f *testing.F) *fuzzed {
	ts := newServer(f, func(o *Options) { o.Limits.RegistrationsPerMinute = 1 << 30 })
	f.Cleanup(func() { ts.log.watch(f) })
	return &fuzzed{ts.joined("alpha"), ts.joined("beta"), key.NewNode().Public()}
}

// names stand in fuzz inputs for keys, which differ from run to run.
func (z *fuzzed) names() map[string]string {
	return map[string]string{
		"OWN-KEY": z.node.Public().String(), "OTHER-KEY": z.other.node.Public().String(), "UNUSED-KEY": z.unused.String(),
	}
}

// add makes v an input to start from.
func (z *fuzzed) add(f *testing.F, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		f.Fatal(err)
	}
	for name, k := range z.names() {
		b = bytes.ReplaceAll(b, []byte(k), []byte(name))
	}
	f.Add(b)
}

// post sends an input, with the keys put in.
func (z *fuzzed) post(t *testing.T, path string, body []byte) *httptest.ResponseRecorder {
	z.ts.log.watch(t)
	for name, k := range z.names() {
		body = bytes.ReplaceAll(body, []byte(name), []byte(k))
	}
	before := z.ts.state.Snapshot().NodeByKey(z.other.node.Public()).Node
	w := z.ask(t, "POST", path, body)
	sn := z.ts.state.Snapshot()
	if sn.NodeByKey(z.other.node.Public()).Node != before {
		t.Error("another machine's node has changed")
	}
	for _, n := range sn.Nodes() {
		h := n.Hostinfo
		if h == nil || len(h.Hostname) > 255 || strings.ContainsFunc(n.Hostname, unicode.IsControl) || n.Name == "" || len(n.Name) > 63 ||
			len(n.Endpoints) > 64 || len(n.Endpoints) != len(n.EndpointTypes) || n.NodeKey.IsZero() || n.MachineKey.IsZero() {
			t.Errorf("a node is stored as %+v", n.Node)
		}
		for _, p := range h.RoutableIPs {
			if !p.IsValid() || p != p.Masked() {
				t.Errorf("a route is stored as %v", p)
			}
		}
	}
	// What the others are sent of it, they can read.
	frame, ok := z.ts.control.o.Encoder.Full(sn, netmap.Viewer{Node: sn.NodeByKey(z.other.node.Public()).ID, Capver: 142})
	var b bytes.Buffer
	if _, err := frame.WriteTo(&b); err != nil || !ok {
		t.Fatal("there is no map for the other node")
	}
	if _, err := readMessage(&b, false); err != nil {
		t.Errorf("the other node cannot read its map: %v", err)
	}
	return w
}

var rubbish = []string{"", "null", "[]", "{", "{}", `{"Version":-1}`, `{"NodeKey":null,"Hostinfo":{"NetInfo":null}}`, "\xff\xfe",
	`{"Expiry":"0001-01-01T00:00:00Z"}`, `{"NodeKey":"OWN-KEY","Hostinfo":{"RoutableIPs":["10.0.0.1/8","::/0","bad"]}}`}

func FuzzRegisterRequest(f *testing.F) {
	z := newFuzzed(f)
	for _, r := range []tailcfg.RegisterRequest{
		{Version: 142, NodeKey: z.node.Public()},
		{Version: 142, NodeKey: z.other.node.Public(), Expiry: time.Unix(123, 0)},
		{Version: 142, NodeKey: z.unused, OldNodeKey: z.node.Public(), Followup: z.ts.url + "/register/abc", Ephemeral: true},
		{Version: 142, NodeKey: z.node.Public(), Expiry: time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)},
		{Version: 142, NodeKey: z.unused, Tailnet: "required:x\x1b", Auth: &tailcfg.RegisterResponseAuth{AuthKey: "tskey-auth-x"}},
		{Version: 142, NodeKey: z.unused, NLKey: key.NewNLPrivate().Public(), NodeKeySignature: []byte{1, 2, 3}, Hostinfo: &tailcfg.Hostinfo{
			Hostname: "x\x00ä", RequestTags: []string{"tag:x"}, RoutableIPs: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/8")},
			Services: []tailcfg.Service{{Proto: "peerapi4", Port: 1}}}},
		{Version: 142, NodeKey: z.node.Public(), Expiry: time.Unix(123, 0)},
	} {
		z.add(f, r)
	}
	for _, s := range rubbish {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		w := z.post(t, "/machine/register", body)
		if w.Code != http.StatusOK {
			return
		}
		var r tailcfg.RegisterResponse
		if err := json.Unmarshal(w.Body.Bytes(), &r); err != nil {
			t.Errorf("the answer %q: %v", w.Body, err)
		}
		if strings.ContainsFunc(r.Error, unicode.IsControl) || len(r.Error) > 1000 {
			t.Errorf("the error repeats what it was sent: %.300q", r.Error)
		}
	})
}

func FuzzMapRequest(f *testing.F) {
	z := newFuzzed(f)
	lite := z.lite("192.0.2.1:1", "[::1]:2", "[fe80::1%eth0]:3")
	lite.Hostinfo.NetInfo = &tailcfg.NetInfo{PreferredDERP: -1, DERPLatency: map[string]float64{"1-v4": 0.1}}
	lite.Hostinfo.Location = &tailcfg.Location{Country: "x"}
	stolen := z.lite("192.0.2.66:66")
	stolen.NodeKey = z.other.node.Public()
	readOnly := z.streamRequest()
	readOnly.Stream, readOnly.ReadOnly, readOnly.Compress = false, true, ""
	gone := z.streamRequest()
	gone.NodeKey = z.unused
	for _, r := range []tailcfg.MapRequest{lite, stolen, readOnly, gone, z.streamRequest()} {
		z.add(f, r)
	}
	for _, s := range rubbish {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		w := z.post(t, "/machine/map", body)
		if w.Code != http.StatusOK || w.Body.Len() == 0 {
			return
		}
		b := w.Body.Bytes()
		if len(b) < 4 || int(binary.LittleEndian.Uint32(b)) != len(b)-4 {
			t.Fatalf("the answer is not one frame: %.100q", b)
		}
		compressed := bytes.HasPrefix(b[4:], []byte{0x28, 0xb5, 0x2f, 0xfd})
		if m, err := readMessage(bytes.NewReader(b), compressed); err != nil || m.Node == nil {
			t.Errorf("the map cannot be read: %v", err)
		}
	})
}

// The answer to a c2n call is an HTTP response that any client may have made up.
func FuzzPong(f *testing.F) {
	z := newFuzzed(f)
	for _, s := range []string{
		"", "HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n", "HTTP/1.1 200", "HTTP/9.9 -1 x\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n", "HTTP/1.0 101 Switching\r\nUpgrade: x\r\n\r\n",
		"GET / HTTP/1.1\r\n\r\n", "\x00\xff\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		p := &pending{machine: z.machine.Public(), answer: make(chan *http.Response, 1)}
		z.ts.control.pings.mu.Lock()
		z.ts.control.pings.waiting["token"] = p
		z.ts.control.pings.mu.Unlock()
		w := z.post(t, "/machine/ping/token", body)
		_, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(body)), nil)
		if (w.Code == http.StatusNoContent) != (err == nil) || (len(p.answer) == 1) != (err == nil) {
			t.Errorf("status %d and %d answers for a response that is read with %v", w.Code, len(p.answer), err)
		}
	})
}
