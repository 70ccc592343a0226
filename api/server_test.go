package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go4.org/mem"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/auth/oidc"
	"github.com/skein-vpn/skein/db"
	"github.com/skein-vpn/skein/dns"
	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// noon is the time of all tests.
var noon = time.Date(2022, 9, 15, 12, 0, 0, 0, time.UTC)

// world is a server over a real state and a real database.
type world struct {
	testing.TB
	st      *state.State
	auth    *auth.Auth
	log     bytes.Buffer
	health  string // what Options.Health says of the database
	db      *db.DB
	handler http.Handler // every answer of which is held against spec
	raw     http.Handler // the same without
	spec    *spec
	client  *Client // over a unix socket
}

func newWorld(t testing.TB) *world {
	t.Helper()
	return newWorldWith(t, func(*state.Options, *Options) {})
}

// newWorldWith is newWorld with other options.
func newWorldWith(t testing.TB, change func(*state.Options, *Options)) *world {
	t.Helper()
	w := &world{TB: t}
	ctx := context.Background()
	clock := func() time.Time { return noon }
	d, err := db.Open(ctx, db.Options{Path: filepath.Join(t.TempDir(), "db"), Now: clock})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	w.db = d
	so := state.Options{
		Store: d, Now: clock, Log: slog.New(slog.DiscardHandler),
		Addressing: state.Addressing{Prefix4: netip.MustParsePrefix("100.64.0.0/10"), Prefix6: netip.MustParsePrefix("fd7a:115c:a1e0::/48")},
		DNS:        &dns.Settings{MagicDNS: true, Base: "skein.internal"},
		DERP: &state.DERPMaps{Current: &tailcfg.DERPMap{Regions: map[int]*tailcfg.DERPRegion{
			999: {RegionID: 999, RegionCode: "skein", RegionName: "Skein", Nodes: []*tailcfg.DERPNode{{Name: "999a", RegionID: 999, HostName: "192.0.2.1"}}},
		}}},
	}
	ao := Options{
		Version: "1.2.3", Now: clock,
		Health: func(context.Context) []HealthCheck { return []HealthCheck{{Name: "database", Error: w.health}} },
		Log:    slog.New(slog.NewTextHandler(&w.log, nil)),
	}
	change(&so, &ao)
	w.st, err = state.Open(ctx, so)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.st.Close)
	w.auth = auth.New(auth.Options{State: w.st, Store: d, Now: clock, Verifier: oidc.NewVerifier(nil, clock)})
	ao.State, ao.Auth = w.st, w.auth
	ao.Events = w.events(w.st)
	w.raw, w.spec = NewServer(ao), specOf(t, ao)
	w.handler = w.spec.tell(t, w.raw)
	w.client = w.serve(w.handler)
	return w
}

// serve puts h on a unix socket.
func (w *world) serve(h http.Handler) *Client {
	w.Helper()
	path := filepath.Join(w.TempDir(), "s")
	l, err := ListenUnix(path, 0o600)
	if err != nil {
		w.Fatal(err)
	}
	srv := &http.Server{Handler: h}
	done := make(chan struct{})
	go func() {
		defer close(done)
		srv.Serve(l)
	}()
	w.Cleanup(func() {
		srv.Close()
		<-done
	})
	return NewUnixClient(path)
}

func (w *world) ctx() context.Context { return context.Background() }

// user makes a namespace.
func (w *world) user(name string) *User {
	w.Helper()
	u, err := w.client.CreateUser(w.ctx(), CreateUserRequest{Name: name})
	if err != nil {
		w.Fatal(err)
	}
	return u
}

// node makes a node of a namespace that advertises routes. Its keys follow from its id.
func (w *world) node(owner *User, hostname string, routes ...string) tailnet.NodeID {
	w.Helper()
	var id tailnet.NodeID
	err := w.st.Update(w.ctx(), "test", func(tx *state.Tx) error {
		n, err := tx.NewNode(hostname)
		if err != nil {
			return err
		}
		raw := bytes.Repeat([]byte{byte(n.ID)}, 32)
		n.StableID = fmt.Sprintf("n%d", n.ID)
		n.NodeKey = key.NodePublicFromRaw32(mem.B(raw))
		n.MachineKey = key.MachinePublicFromRaw32(mem.B(raw))
		n.DiscoKey = key.DiscoPublicFromRaw32(mem.B(raw))
		n.User, n.Authorized, n.RegisterMethod = tailnet.UserID(owner.ID), true, tailnet.RegisteredByCLI
		n.Hostinfo = &tailcfg.Hostinfo{Hostname: hostname, OS: "linux", IPNVersion: "1.102.5-t1234", RoutableIPs: prefixes(routes...)}
		n.Endpoints = []netip.AddrPort{netip.MustParseAddrPort("192.0.2.7:41641")}
		id = n.ID
		return tx.PutNode(n)
	})
	if err != nil {
		w.Fatal(err)
	}
	return id
}

func (w *world) online(id tailnet.NodeID) {
	w.Helper()
	if err := w.st.Update(w.ctx(), "test", func(tx *state.Tx) error { tx.SetOnline(id, true); return nil }); err != nil {
		w.Fatal(err)
	}
}

func prefixes(ss ...string) (out []netip.Prefix) {
	for _, s := range ss {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// call sends a raw request and returns status and body.
func (w *world) call(method, path, body string) (int, string) {
	w.Helper()
	rec := httptest.NewRecorder()
	w.handler.ServeHTTP(rec, httptest.NewRequest(method, path, strings.NewReader(body)))
	return rec.Code, rec.Body.String()
}

// seed is two namespaces and three nodes.
func seed(t testing.TB) *world {
	w := newWorld(t)
	junyao, anna := w.user("junyao"), w.user("anna@example.org")
	w.node(junyao, "junyao")
	w.node(junyao, "homeDS", "192.168.199.0/24", "10.8.0.0/16")
	w.node(anna, "vm", "0.0.0.0/0", "::/0")
	return w
}

// Every call here must fail as it says, and must change nothing.
func TestBadInput(t *testing.T) {
	w := seed(t)
	long := strings.Repeat("a", 200)
	tests := []struct {
		call, body string
		status     int
		want       string // part of the message
	}{
		{"GET /api/v1/nothing", "", 404, "there is nothing at /api/v1/nothing"},
		{"GET /", "", 404, "there is nothing at /"},
		{"GET /api/v1//node", "", 404, "there is nothing at"},
		{"PUT /api/v1/node", "", 405, "PUT is not possible here, only GET"},
		{"GET /api/v1/node/2/expire", "", 405, "GET is not possible here, only POST"},
		{"PATCH /api/v1/preauthkey", "", 405, "only GET, POST, DELETE"},

		{"GET /api/v1/events?types=node,nodes", "", 400, `"nodes" is not a kind of events: use one of api_key, auth_key, dns`},
		{"GET /api/v1/events?since=yesterday", "", 400, `"yesterday" is neither the id of an event, such as 4711.0, nor a time`},
		{"GET /api/v1/events?once=maybe", "", 400, `once="maybe" is neither true nor false`},
		{"GET /api/v1/events?node=nobody", "", 404, `there is no node "nobody"`},
		{"POST /api/v1/events", "", 405, "only GET"},

		{"GET /api/v1/user?id=x", "", 400, `id="x" is not an id`},
		{"POST /api/v1/user", "", 400, "a namespace needs a name"},
		{"POST /api/v1/user", `{`, 400, "not valid JSON at byte 1"},
		{"POST /api/v1/user", `[]`, 400, "a JSON array; an object is asked for"},
		{"POST /api/v1/user", `{"name":7}`, 400, `"name" at byte 9 is a JSON number; a string is asked for`},
		{"POST /api/v1/user", `{"name":"a"} x`, 400, "not valid JSON at byte"},
		{"POST /api/v1/user", `{"name":"junyao"}`, 409, `there is a namespace "junyao" already`},
		{"POST /api/v1/user", `{"name":"Junyao"}`, 400, "lower case, junyao"},
		{"POST /api/v1/user", `{"name":"a\u0007b"}`, 400, "use a-z, 0-9"},
		{"POST /api/v1/user", `{"name":"我"}`, 400, "use a-z, 0-9"},
		{"POST /api/v1/user", `{"name":"-a"}`, 400, "use a-z, 0-9"},
		{"POST /api/v1/user", `{"name":"42"}`, 400, "would look like an id"},
		{"POST /api/v1/user", `{"name":"tagged-devices"}`, 400, "take another one"},
		{"POST /api/v1/user", `{"name":"` + long + `"}`, 400, "longer than 128"},
		{"POST /api/v1/user", `{"name":"ok","displayName":"a\u001b[2J"}`, 400, "control characters"},
		{"POST /api/v1/user", `{"name":"ok","displayName":"` + long + long + `"}`, 400, "longer than 256"},
		{"POST /api/v1/user", `{"name":"ok","email":"nobody"}`, 400, "is not a mail address"},
		{"POST /api/v1/user", `{"name":"` + strings.Repeat("x", maxBody) + `"}`, 413, "larger than 1048576 bytes"},
		{"POST /api/v1/user/junyao/rename/Upper", "", 400, "lower case, upper"},
		{"POST /api/v1/user/junyao/rename/anna@example.org", "", 409, "already"},
		{"POST /api/v1/user/nobody/rename/somebody", "", 404, `there is no namespace "nobody"`},
		{"POST /api/v1/user/junyao/rename/%zz", "", 400, ""},
		{"PATCH /api/v1/settings", `{"deviceApproval":"yes"}`, 400, `"deviceApproval" at byte`},
		{"PATCH /api/v1/settings", `{"keyDurationSeconds":-2}`, 400, "keyDurationSeconds: -2 is neither"},
		{"PATCH /api/v1/settings", `{"keyDurationSeconds":9223372036854775807}`, 400, "is neither"},
		{"PATCH /api/v1/settings", `{"keyDurationSeconds":1,"userApproval":true}`, 400, "between a minute and ten years"},
		{"POST /api/v1/node/2/expire", `{"renew":true,"disableExpiry":true}`, 400, "contradict each other"},
		{"POST /api/v1/node/2/expire", `{"expiry":"0001-01-01T00:00:00Z"}`, 400, "for ever is disableExpiry"},
		{"POST /api/v1/node/2/approve", `{"approved":"no"}`, 400, "true or false is asked for"},
		{"POST /api/v1/user/nobody/suspend", "", 404, "there is no namespace"},
		{"DELETE /api/v1/user/9", "", 404, `there is no namespace "9"`},
		{"DELETE /api/v1/user/2147455555", "", 404, "there is no namespace"},
		{"DELETE /api/v1/user/junyao", "", 409, "still has nodes, such as"},
		{"DELETE /api/v1/user/anna%40example.org", "", 409, "still has nodes, such as vm (3)"},

		{"GET /api/v1/node?user=nobody", "", 404, `there is no namespace "nobody"`},
		{"GET /api/v1/node/99", "", 404, `there is no node "99"`},
		{"GET /api/v1/node/99999999999999999999999", "", 404, "there is no node"},
		{"GET /api/v1/node/-1", "", 404, "there is no node"},
		{"GET /api/v1/node/" + long, "", 404, "there is no node"},
		{"DELETE /api/v1/node/99", "", 404, "there is no node"},
		{"POST /api/v1/node/register", "", 400, "no namespace is given"},
		{"POST /api/v1/node/register?user=nobody&key=abc", "", 404, "there is no namespace"},
		{"POST /api/v1/node/register?user=junyao", "", 400, "no key is given"},
		{"POST /api/v1/node/register?user=junyao&key=a%20b", "", 400, "is not a registration key"},
		{"POST /api/v1/node/register?user=junyao&key=abc", "", 404, "no registration waits under this key"},
		{"POST /api/v1/node/2/expire?expiry=tomorrow", "", 400, `"tomorrow" is not a time`},
		{"POST /api/v1/node/2/expire", `{"expiry":"tomorrow"}`, 400, "is not a time"},
		{"POST /api/v1/node/2/expire", `{"expiry":7}`, 400, "a time must be a string"},
		{"POST /api/v1/node/2/expire?disableExpiry=maybe", "", 400, "neither true nor false"},
		{"POST /api/v1/node/2/expire?disable_expiry=true&expiry=2030-01-01", "", 400, "contradict"},
		{"POST /api/v1/node/99/expire", "", 404, "there is no node"},
		{"POST /api/v1/node/2/rename/junyao", "", 409, `the name "junyao" belongs to node 1; junyao-1 is free`},
		{"POST /api/v1/node/2/rename/HomeDS", "", 400, "such as homeds"},
		{"POST /api/v1/node/2/rename/a_b", "", 400, "such as a-b"},
		{"POST /api/v1/node/2/rename/a%0Ab", "", 400, "is not a name for a node"},
		{"POST /api/v1/node/2/rename/a%2Fb", "", 400, "is not a name for a node"},
		{"POST /api/v1/node/2/rename/" + long, "", 400, "1 to 63"},
		{"POST /api/v1/node/99/rename/a", "", 404, "there is no node"},
		{"POST /api/v1/node/2/tags", "", 400, "needs an owner"},
		{"POST /api/v1/node/2/tags", `{"tags":[]}`, 400, "needs an owner"},
		{"POST /api/v1/node/2/tags", `{"tags":"tag:a"}`, 400, `"tags" at byte`},
		{"POST /api/v1/node/2/tags", `{"tags":["tag:A"]}`, 400, `"tag:A" is not a tag`},
		{"POST /api/v1/node/2/tags", `{"tags":[""]}`, 400, "is not a tag"},
		{"POST /api/v1/node/2/tags", `{"tags":["tag:` + long + `"]}`, 400, "longer than 64"},
		{"POST /api/v1/node/2/tags", `{"tags":[` + manyTags(65) + `]}`, 400, "65 tags are too many"},
		{"POST /api/v1/node/2/user", "", 400, "no namespace is given"},
		{"POST /api/v1/node/2/user", `{"user":true}`, 400, "neither an id nor a name"},
		{"POST /api/v1/node/2/user", `{"user":1.5}`, 400, "neither an id nor a name"},
		{"POST /api/v1/node/2/user", `{"user":"9"}`, 404, `there is no namespace "9"`},
		{"POST /api/v1/node/2/user", `{"user":"tagged-devices"}`, 404, "there is no namespace"},

		{"GET /api/v1/routes?node=9", "", 404, "there is no node"},
		{"GET /api/v1/node/9/routes", "", 404, "there is no node"},
		{"POST /api/v1/routes/enable", "", 400, "no node is given"},
		{"POST /api/v1/routes/enable", `{"node":9,"all":true}`, 404, `there is no node "9"`},
		{"POST /api/v1/routes/enable", `{"node":2}`, 400, "no routes are given"},
		{"POST /api/v1/routes/enable", `{"node":2,"all":true,"routes":["10.8.0.0/16"]}`, 400, "contradict"},
		{"POST /api/v1/routes/enable", `{"node":2,"routes":["10.8.0.1"]}`, 400, "write 10.8.0.1/32"},
		{"POST /api/v1/routes/enable", `{"node":2,"routes":["10.8.0.1/16"]}`, 400, "the prefix is 10.8.0.0/16"},
		{"POST /api/v1/routes/enable", `{"node":2,"routes":["home"]}`, 400, `"home" is not a prefix`},
		{"POST /api/v1/routes/enable", `{"node":2,"routes":["10.8.0.0/16","10.9.0.0/16"]}`, 404, "homeds (2) does not advertise 10.9.0.0/16, only 10.8.0.0/16, 192.168.199.0/24"},
		{"POST /api/v1/routes/enable", `{"node":1,"routes":["10.9.0.0/16"]}`, 404, "tailscale set --advertise-routes=10.9.0.0/16"},
		{"POST /api/v1/routes/enable", `{"node":1,"routes":["0.0.0.0/0"]}`, 404, "tailscale set --advertise-exit-node"},
		{"POST /api/v1/routes/enable", `{"node":1,"all":true}`, 404, "junyao (1) advertises no routes"},
		{"POST /api/v1/routes/enable", `{"node":2,"routes":["100.64.0.9/32"],"allowUnadvertised":true}`, 400, "within the addresses of the nodes"},
		{"POST /api/v1/routes/disable", `{"node":2}`, 400, "no routes are given"},
		{"POST /api/v1/routes/disable", `{"node":2,"routes":["10.9.0.0/16"],"allowUnadvertised":true}`, 404, "does not advertise"},
		{"POST /api/v1/routes/exact", `{"node":2,"all":true}`, 400, "name them"},
		{"POST /api/v1/routes/exact", `{"node":2,"routes":["10.9.0.0/16"]}`, 404, "does not advertise"},
		{"POST /api/v1/node/2/approve_routes", `{"routes":["10.9.0.0/16"]}`, 404, "does not advertise"},
		{"POST /api/v1/node/9/approve_routes", `{"routes":[]}`, 404, "there is no node"},
		{"POST /api/v1/node/2/approve_routes", `{"routes":[1]}`, 400, `is a JSON number; a string is asked for`},

		{"GET /api/v1/preauthkey?user=nobody", "", 404, "there is no namespace"},
		{"POST /api/v1/preauthkey", "", 400, "no namespace is given"},
		{"POST /api/v1/preauthkey", `{"user":"nobody"}`, 404, "there is no namespace"},
		{"POST /api/v1/preauthkey", `{"user":"nobody","aclTags":["tag:a"]}`, 404, "there is no namespace"},
		{"POST /api/v1/preauthkey", `{"user":"1","aclTags":["tag:A"]}`, 400, "is not a tag"},
		{"POST /api/v1/preauthkey", `{"user":"1","expiration":"2020-01-01T00:00:00Z"}`, 400, "has passed already"},
		{"POST /api/v1/preauthkey", `{"user":"1","reusable":"yes"}`, 400, "true or false"},
		{"POST /api/v1/preauthkey/expire", "", 400, "no pre-auth key is given"},
		{"POST /api/v1/preauthkey/expire", `{"id":"7"}`, 404, "there is no pre-auth key 7"},
		{"POST /api/v1/preauthkey/expire", `{"id":"x"}`, 400, `"x" is not an id`},
		{"POST /api/v1/preauthkey/expire", `{"key":"tskey-auth-x"}`, 404, "there is no such pre-auth key"},
		{"DELETE /api/v1/preauthkey?id=x", "", 400, "is not an id"},
		{"DELETE /api/v1/preauthkey?id=7", "", 404, "there is no pre-auth key 7"},
		{"DELETE /api/v1/preauthkey", "", 400, "no pre-auth key is given"},
	}
	before := w.st.Snapshot().Rev
	for _, tt := range tests {
		method, path, _ := strings.Cut(tt.call, " ")
		if strings.Contains(path, "%zz") {
			continue // net/http refuses it before us
		}
		status, body := w.call(method, path, tt.body)
		var p Problem
		if err := json.Unmarshal([]byte(body), &p); err != nil {
			t.Errorf("%s %.60s: the answer is not JSON: %s", tt.call, tt.body, body)
			continue
		}
		if status != tt.status || p.Status != tt.status || !strings.Contains(p.Message, tt.want) || p.Detail != p.Message || p.Title == "" || p.Code == 0 {
			t.Errorf("%.80s %.60s: %d %+v, want %d %q", tt.call, tt.body, status, p, tt.status, tt.want)
		}
		if len(p.Message) > 700 {
			t.Errorf("%.80s %.60s: the message is %d bytes long", tt.call, tt.body, len(p.Message))
		}
	}
	if after := w.st.Snapshot().Rev; after != before {
		t.Errorf("failed calls changed the tailnet: rev %d became %d", before, after)
	}
	if w.log.Len() > 0 {
		t.Errorf("mistakes of callers are in the log:\n%s", w.log.String())
	}
}

func manyTags(n int) string {
	var tags []string
	for i := range n {
		tags = append(tags, fmt.Sprintf(`"tag:t%d"`, i))
	}
	return strings.Join(tags, ",")
}

func TestMethodNotAllowedSaysWhatIs(t *testing.T) {
	w := newWorld(t)
	rec := httptest.NewRecorder()
	w.handler.ServeHTTP(rec, httptest.NewRequest("PUT", "/api/v1/user", nil))
	if got := rec.Header().Get("Allow"); rec.Code != 405 || got != "GET, POST" {
		t.Errorf("status %d, Allow %q", rec.Code, got)
	}
	if got := rec.Header().Get("Content-Type"); got != "application/problem+json" {
		t.Errorf("Content-Type %q", got)
	}
}

// Every code has a status of its own, and what is our fault tells nothing.
func TestProblems(t *testing.T) {
	for _, tt := range []struct {
		err    error
		status int
		grpc   int
		msg    string
	}{
		{tailnet.Errorf(tailnet.Invalid, "bad"), 400, 3, "bad"},
		{tailnet.Errorf(tailnet.NotFound, "gone"), 404, 5, "gone"},
		{tailnet.Errorf(tailnet.Conflict, "taken"), 409, 6, "taken"},
		{tailnet.Errorf(tailnet.Denied, "no"), 403, 7, "no"},
		{tailnet.Errorf(tailnet.Exhausted, "full"), 429, 8, "full"},
		{tailnet.Errorf(tailnet.Unavailable, "later"), 503, 14, "later"},
		{fmt.Errorf("wrapped: %w", tailnet.Errorf(tailnet.Conflict, "taken")), 409, 6, "taken"},
		{tailnet.Errorf(tailnet.Internal, "secret"), 500, 13, "the server failed; its log says why"},
		{errors.New("secret"), 500, 13, "the server failed; its log says why"},
		{&tailnet.Error{Code: "odd", Message: "secret"}, 500, 13, "the server failed; its log says why"},
		{context.Canceled, 503, 14, "given up"},
		{context.DeadlineExceeded, 503, 14, "given up"},
		{state.ErrClosed, 503, 14, "shutting down"},
	} {
		p := problemOf(tt.err)
		if p.Status != tt.status || p.Code != tt.grpc || !strings.Contains(p.Message, tt.msg) {
			t.Errorf("%v: %+v", tt.err, p)
		}
	}
}

// failing is a Registrar that fails in every way.
type failing struct{ Registrar }

func (failing) CompleteLogin(context.Context, string, tailnet.UserID) (tailnet.NodeID, error) {
	panic("the secret of the panic")
}

func (failing) Logins(context.Context) ([]*tailnet.Login, error) {
	return nil, &tailnet.Error{Code: tailnet.Internal, Message: "reading", Cause: errors.New("the secret of the disk")}
}

func TestOurFaults(t *testing.T) {
	w := seed(t)
	w.handler = NewServer(Options{State: w.st, Auth: failing{}, Log: slog.New(slog.NewTextHandler(&w.log, nil))})
	for _, call := range []string{"POST /api/v1/node/register?user=junyao&key=abc", "GET /api/v1/login"} {
		method, path, _ := strings.Cut(call, " ")
		status, body := w.call(method, path, "")
		if status != 500 || strings.Contains(body, "secret") || !strings.Contains(body, "its log says why") {
			t.Errorf("%s: %d %s", call, status, body)
		}
	}
	for _, want := range []string{"the secret of the panic", "the secret of the disk", "server_test.go"} {
		if !strings.Contains(w.log.String(), want) {
			t.Errorf("the log does not say %q:\n%s", want, w.log.String())
		}
	}
}

func TestHealthAndVersion(t *testing.T) {
	w := newWorld(t)
	if h, err := w.client.Health(w.ctx()); err != nil || !h.DatabaseConnectivity {
		t.Errorf("health: %+v, %v", h, err)
	}
	w.health = "disk on fire"
	_, err := w.client.Health(w.ctx())
	if tailnet.CodeOf(err) != tailnet.Unavailable || !strings.Contains(err.Error(), "database: disk on fire") {
		t.Errorf("health of a broken server: %v", err)
	}
	for scope, told := range map[string]bool{auth.Read(auth.ScopeFlowLogs): false, auth.Read(auth.ScopeDevices): true} {
		h := NewServer(Options{State: w.st, Auth: w.auth, Gate: NewGate(w.auth, nil, nil), Health: func(context.Context) []HealthCheck {
			return []HealthCheck{{Name: "database", Error: w.health}}
		}, Log: slog.New(slog.DiscardHandler)})
		rec, p := send(h, "192.0.2.1", "GET", "/api/v1/health", "Bearer "+w.apiKey(0, scope), "")
		if rec.Code != http.StatusServiceUnavailable || !strings.Contains(p.Message, "database") || strings.Contains(p.Message, "fire") != told {
			t.Errorf("%s: %d %s", scope, rec.Code, p.Message)
		}
	}
	v, err := w.client.ServerVersion(w.ctx())
	if err != nil || v.Version != "1.2.3" || v.Go.Version == "" {
		t.Errorf("version: %+v, %v", v, err)
	}
	m, err := w.client.DERPMap(w.ctx())
	if err != nil || m.Regions[999].Nodes[0].HostName != "192.0.2.1" {
		t.Errorf("relay map: %+v, %v", m, err)
	}
}

// A client that meets something else than a skein says so.
func TestClientOfStrangers(t *testing.T) {
	w := newWorld(t)
	for body, want := range map[string]string{
		"<html>":               "something else than skein",
		`{"users":7}`:          "something else than skein",
		"500 <html>":           "status 500 and no explanation",
		`418 {"message":"hm"}`: "hm",
	} {
		c := w.serve(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			b := body
			if len(b) > 4 && b[3] == ' ' {
				var status int
				fmt.Sscan(b[:3], &status)
				rw.WriteHeader(status)
				b = b[4:]
			}
			io.WriteString(rw, b)
		}))
		if _, err := c.ListUsers(w.ctx(), UserFilter{}); err == nil || !strings.Contains(err.Error(), want) || tailnet.CodeOf(err) != tailnet.Internal {
			t.Errorf("%s: %v, want %q", body, err, want)
		}
	}
	_, err := NewUnixClient(filepath.Join(t.TempDir(), "none")).ListUsers(w.ctx(), UserFilter{})
	if tailnet.CodeOf(err) != tailnet.Unavailable || strings.Contains(err.Error(), "http://") {
		t.Errorf("no server: %v", err)
	}
}
