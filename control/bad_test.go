package control

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"unicode/utf8"

	"tailscale.com/tailcfg"
	"tailscale.com/types/key"

	"github.com/skein-vpn/skein/tailnet"
)

// Every path inside Noise that takes a body.
var bodies = []string{"/machine/register", "/machine/map", "/machine/feature/query", "/machine/audit-log"}

// A body that is too large, not JSON, or not the JSON that is expected gets a clear answer, and the connection serves on.
func TestBadBodies(t *testing.T) {
	ts := newServer(t, nil)
	a := ts.joined("alpha")
	deep := strings.Repeat("[", 100_000)
	for _, path := range bodies {
		for name, tt := range map[string]struct {
			body   any
			status int
			says   string
		}{
			"nothing":           {"", 400, "JSON"},
			"text":              {"hello", 400, "JSON"},
			"binary":            {bytes.Repeat([]byte{0, 255, 27}, 1000), 400, "JSON"},
			"cut":               {`{"NodeKey":"nodekey:`, 400, "JSON"},
			"an array":          {`[]`, 400, "JSON"},
			"a number":          {`1`, 400, "JSON"},
			"deep":              {`{"Hostinfo":` + deep, 400, "JSON"},
			"two values":        {`{}{}`, 400, "more than one value"},
			"rubbish behind":    {`{} x`, 400, "more than one value"},
			"a bad key":         {`{"NodeKey":"nodekey:zz"}`, 400, "JSON"},
			"a key of bad type": {`{"NodeKey":5}`, 400, "JSON"},
			"a huge version":    {`{"Version":1e99,"CapVersion":1e99,"NodeKey":5}`, 400, "JSON"},
			"1 MiB and a byte":  {`{"X":"` + strings.Repeat("x", maxBody) + `"}`, 413, "1 MiB"},
			"without end":       {io.LimitReader(spaces{}, 64<<20), 413, "1 MiB"},
		} {
			status, answer, _, err := a.try(ts.ctx, "POST", path, tt.body)
			if err != nil && tt.status == 413 { // the server need not read what it refuses
				continue
			}
			ts.must(err)
			if status != tt.status || !strings.Contains(answer, tt.says) || len(answer) > 1000 || strings.ContainsAny(answer, "\x00\x1b") || !utf8.ValidString(answer) {
				t.Errorf("%s, %s: status %d %.300q, want %d with %q", path, name, status, answer, tt.status, tt.says)
			}
		}
	}
	if status, _, _ := a.do("POST", "/machine/update-health", io.LimitReader(spaces{}, 3<<20)); status != http.StatusNoContent {
		t.Errorf("update-health: status %d", status)
	}
	a.stream().first()
}

type spaces struct{}

func (spaces) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}

// A machine can act for its own nodes alone.
func TestWrongMachine(t *testing.T) {
	ts := newServer(t, nil)
	a, thief := ts.joined("alpha"), ts.joined("thief")
	before := ts.state.Snapshot().Node(a.id()).Node
	for _, tt := range []struct {
		name, path string
		body       func(key.NodePublic) any
	}{
		{"stream", "/machine/map", func(k key.NodePublic) any { return tailcfg.MapRequest{Version: 142, NodeKey: k, Stream: true} }},
		{"lite", "/machine/map", func(k key.NodePublic) any {
			return tailcfg.MapRequest{Version: 142, NodeKey: k, OmitPeers: true, DiscoKey: key.NewDisco().Public()}
		}},
		{"read-only", "/machine/map", func(k key.NodePublic) any { return tailcfg.MapRequest{Version: 142, NodeKey: k, ReadOnly: true} }},
		{"feature query", "/machine/feature/query", func(k key.NodePublic) any { return tailcfg.QueryFeatureRequest{NodeKey: k, Feature: "serve"} }},
		{"audit log", "/machine/audit-log", func(k key.NodePublic) any { return tailcfg.AuditLogRequest{NodeKey: k, Action: "x", Details: "forged"} }},
	} {
		status, body, _ := thief.do("POST", tt.path, tt.body(a.node.Public()))
		if status != http.StatusForbidden || !strings.Contains(body, "another machine") {
			t.Errorf("%s for another machine's node: status %d %s, want 403", tt.name, status, body)
		}
		if tt.name == "stream" {
			continue
		}
		status, body, _ = thief.do("POST", tt.path, tt.body(key.NewNode().Public()))
		if status != http.StatusNotFound || !strings.Contains(body, "not registered") {
			t.Errorf("%s for an unknown node: status %d %s, want 404", tt.name, status, body)
		}
	}
	if after := ts.state.Snapshot().Node(a.id()).Node; after != before {
		t.Errorf("the node was changed to %+v", after)
	}
	if ts.control.Sessions() != 0 {
		t.Error("there is a session")
	}
	if ts.log.contains("forged") {
		t.Error("the forged audit log entry is in the log")
	}
}

// What a stock client asks for besides maps gets an honest answer, whatever the method and body.
func TestOtherRequests(t *testing.T) {
	ts := newServer(t, nil)
	a, stranger := ts.joined("alpha"), ts.newClient("stranger")
	big := strings.Repeat("x", 100_000)
	for _, tt := range []struct {
		method, path string
		body         any
		status       int
		says         string
	}{
		{"GET", "/machine/whoami", nil, 200, a.machine.Public().String()},
		{"POST", "/machine/feature/query", tailcfg.QueryFeatureRequest{NodeKey: a.node.Public(), Feature: "funnel"}, 200, "funnel"},
		{"POST", "/machine/audit-log", tailcfg.AuditLogRequest{NodeKey: a.node.Public(), Action: "DISCONNECT", Details: "because"}, 200, ""},
		{"POST", "/machine/update-health", "{}", 204, ""},
		{"POST", "/machine/update-health", nil, 204, ""},

		{"POST", "/machine/set-dns", tailcfg.SetDNSRequest{NodeKey: a.node.Public()}, 501, "certificates"},
		{"POST", "/machine/id-token", tailcfg.TokenRequest{NodeKey: a.node.Public()}, 501, "identity tokens"},
		{"PATCH", "/machine/set-device-attr", "{}", 501, "attributes"},
		{"POST", "/machine/webclient/init/1/to/2", nil, 501, "web client"},
		{"POST", "/machine/webclient/wait/1/to/2/abc", nil, 501, "web client"},
		{"GET", "/machine/ssh/action/1/to/2?ssh-user=root", nil, 403, "another machine"},
		{"GET", "/machine/tka/bootstrap", `{"Head":""}`, 501, "Tailnet Lock"},
		{"GET", "/machine/tka/init/begin", big, 501, "Tailnet Lock"},
		{"GET", "/machine/tka/init/finish", bytes.Repeat([]byte{0}, 100), 501, "Tailnet Lock"},
		{"GET", "/machine/tka/sync/offer", nil, 501, "Tailnet Lock"},
		{"GET", "/machine/tka/sync/send", "null", 501, "Tailnet Lock"},
		{"GET", "/machine/tka/disable", big, 501, "Tailnet Lock"},
		{"GET", "/machine/tka/sign", "{", 501, "Tailnet Lock"},

		{"GET", "/", nil, 404, "nothing"},
		{"GET", "/key?v=142", nil, 404, "nothing"},
		{"POST", "/machine", "{}", 404, "nothing"},
		{"POST", "/machine/", "{}", 404, "nothing"},
		{"POST", "/machine/no-such-thing", big, 404, "nothing"},
		{"POST", "/machine/" + strings.Repeat("a/", 1000), "{}", 404, "nothing"},
		{"POST", "/machine/map/more", "{}", 404, "nothing"},
		{"POST", "/machine/%00%ff", "{}", 404, "nothing"},
		{"POST", "/ts2021", "{}", 404, "nothing"},
		{"POST", "/api/v1/node", "{}", 404, "nothing"},

		{"GET", "/machine/register", "{}", 405, ""},
		{"PUT", "/machine/register", "{}", 405, ""},
		{"GET", "/machine/map", "{}", 405, ""},
		{"HEAD", "/machine/map", nil, 405, ""},
		{"DELETE", "/machine/map", nil, 405, ""},
		{"GET", "/machine/ping/abc", nil, 405, ""},
		{"POST", "/machine/whoami", "{}", 405, ""},
		{"GET", "/machine/feature/query", "{}", 405, ""},
		{"GET", "/machine/audit-log", "{}", 405, ""},
		{"OPTIONS", "/machine/map", nil, 405, ""},
		{"PROPFIND", "/machine/map", nil, 405, ""},
	} {
		status, body, _ := a.do(tt.method, tt.path, tt.body)
		if status != tt.status || !strings.Contains(body, tt.says) {
			t.Errorf("%s %.60s: status %d %.200q, want %d with %q", tt.method, tt.path, status, body, tt.status, tt.says)
		}
		// Who has not registered is told no more than others.
		if status, _, _ := stranger.do(tt.method, tt.path, tt.body); status != tt.status && status != 404 && status != 403 {
			t.Errorf("%s %.60s by a stranger: status %d", tt.method, tt.path, status)
		}
	}
	es, err := ts.auth.AuditLog(ts.ctx, tailnet.AuditQuery{Action: "client"})
	if err != nil || len(es) != 1 || !strings.Contains(string(es[0].After), "because") || es[0].ActorKind != "client" || es[0].Origin != "client" || es[0].Remote == "" {
		t.Errorf("what the client said is not in the audit log: %+v, %v", es, err)
	}
}

// Paths outside Noise.
func TestOuterPaths(t *testing.T) {
	ts := newServer(t, nil)
	for _, tt := range []struct {
		method, path string
		status       int
	}{
		{"GET", "/machine/map", 404},
		{"POST", "/machine/register", 404},
		{"POST", "/machine/" + fmt.Sprintf("%064x", 0), 404}, // the protocol of before 2022
		{"GET", "/ts2021", 400},
		{"POST", "/ts2021", 400},
	} {
		req, err := http.NewRequestWithContext(ts.ctx, tt.method, ts.url+tt.path, strings.NewReader("{}"))
		ts.must(err)
		resp, err := http.DefaultClient.Do(req)
		ts.must(err)
		resp.Body.Close()
		if resp.StatusCode != tt.status {
			t.Errorf("%s %s: status %d, want %d", tt.method, tt.path, resp.StatusCode, tt.status)
		}
	}
}
