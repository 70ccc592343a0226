package api

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// behindGate is w's server as strangers reach it.
func (w *world) behindGate() http.Handler {
	return NewServer(Options{State: w.st, Auth: w.auth, Version: "1.2.3", Gate: NewGate(w.auth, nil, nil), Log: slog.New(slog.DiscardHandler)})
}

// send sends a raw request from an address, with an Authorization header unless that is empty.
func send(h http.Handler, from, method, path, authorization, body string) (*httptest.ResponseRecorder, Problem) {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r.RemoteAddr = from + ":1000"
	if authorization != "" {
		r.Header.Set("Authorization", authorization)
	}
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, r)
	var p Problem
	_ = json.Unmarshal(rec.Body.Bytes(), &p)
	return rec, p
}

func (w *world) apiKey(user tailnet.UserID, scopes ...string) string {
	w.Helper()
	secret, _, err := w.auth.CreateAPIKey(w.ctx(), auth.SocketPrincipal("test"), auth.APIKeyRequest{User: user, Scopes: scopes})
	if err != nil {
		w.Fatal(err)
	}
	return secret
}

func (w *world) setRole(id ID, r tailnet.Role) {
	w.Helper()
	err := w.st.Update(w.ctx(), "test", func(tx *state.Tx) error {
		u := *tx.User(tailnet.UserID(id))
		u.Role = r
		return tx.PutUser(&u)
	})
	if err != nil {
		w.Fatal(err)
	}
}

func TestGate(t *testing.T) {
	w := seed(t)
	h := w.behindGate()
	key := w.apiKey(0)
	basic := func(user, password string) string {
		return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
	}
	for i, tt := range []struct {
		authorization string
		status        int
	}{
		{"", 401}, {"Bearer", 401}, {"Bearer ", 401}, {key, 401}, {"Digest " + key, 401}, {"Basic x", 401}, {"Bearer x", 401}, {basic("x", ""), 401},
		{basic("", ""), 401}, {"Bearer " + key + "x", 401}, {"Bearer " + strings.Repeat("x", 20000), 401},
		{"Bearer " + key, 200}, {"bearer  " + key + " ", 200}, {basic(key, ""), 200}, {basic("", key), 200}, {basic(key, "ignored"), 200},
	} {
		rec, p := send(h, fmt.Sprintf("192.0.2.%d", i+1), "GET", "/api/v1/node", tt.authorization, "")
		if rec.Code != tt.status {
			t.Errorf("%.60q: %d %s", tt.authorization, rec.Code, rec.Body)
		}
		if tt.status == 401 && (rec.Header().Get("WWW-Authenticate") != `Bearer realm="skein"` || p.Status != 401 || p.Reason != tailnet.Unauthenticated || p.Title == "" ||
			rec.Header().Get("Content-Type") != "application/problem+json" || strings.Contains(p.Message, key)) {
			t.Errorf("%.60q: %v %+v", tt.authorization, rec.Header(), p)
		}
	}
	// Strangers do not learn what paths there are.
	for _, path := range []string{"/api/v1/nothing", "/api/v1/node/1", "/"} {
		if rec, _ := send(h, "192.0.2.99", "GET", path, "", ""); rec.Code != 401 {
			t.Errorf("%s: %d", path, rec.Code)
		}
	}
	// The socket needs no key, and does not mind one.
	if rec, _ := send(w.handler, "192.0.2.99", "GET", "/api/v1/node", "Bearer rubbish", ""); rec.Code != 200 {
		t.Errorf("over the socket: %d", rec.Code)
	}
}

// Whoever guesses is told to wait, with right keys too; others are not.
func TestGateAgainstGuessing(t *testing.T) {
	w := seed(t)
	h := w.behindGate()
	key := w.apiKey(0)
	for i := range failuresBurst {
		if rec, _ := send(h, "192.0.2.1", "GET", "/api/v1/node", "Bearer tskey-api-x-"+strconv.Itoa(i), ""); rec.Code != 401 {
			t.Fatalf("guess %d: %d", i, rec.Code)
		}
	}
	for _, guess := range []string{"Bearer x", "Bearer " + key} {
		rec, p := send(h, "192.0.2.1", "GET", "/api/v1/node", guess, "")
		after, err := strconv.Atoi(rec.Header().Get("Retry-After"))
		if rec.Code != 429 || err != nil || after < 1 || after > 10 || p.Reason != tailnet.Exhausted {
			t.Errorf("%s: %d, Retry-After %q, %+v", guess, rec.Code, rec.Header().Get("Retry-After"), p)
		}
	}
	if rec, _ := send(h, "192.0.2.1", "GET", "/api/v1/node", "", ""); rec.Code != 401 {
		t.Errorf("without a key: %d", rec.Code) // no guess
	}
	for range 2 * failuresBurst {
		if rec, _ := send(h, "192.0.2.2", "GET", "/api/v1/node", "Bearer "+key, ""); rec.Code != 200 {
			t.Fatalf("another address: %d", rec.Code)
		}
	}
}

// operations are all of the server's, with their scopes.
func (w *world) operations() map[string]string {
	out := map[string]string{}
	for _, o := range w.ops() {
		out[o.method+" "+o.path] = o.scope
	}
	return out
}

func (w *world) ops() []operation {
	return (&server{Options: Options{State: w.st, Auth: w.auth}}).operations()
}

// Every operation is refused to whoever lacks its scope, by role or by key, and not to others. What an operation answers beyond
// that does not matter here: the paths name nothing that exists.
func TestEveryOperationAsksForItsScope(t *testing.T) {
	w := seed(t)
	u := w.user("somebody")
	h := w.behindGate()
	type caller struct {
		name, key string
		may       func(scope string) bool
	}
	var callers []caller
	grants := func(have []string, want string) bool {
		p := auth.Principal{Kind: auth.KindAPIKey, Scopes: have}
		return p.Allow(want) == nil
	}
	for _, r := range auth.Roles() {
		one := w.user("role" + string(r))
		w.setRole(one.ID, r)
		callers = append(callers, caller{"the role " + string(r), w.apiKey(tailnet.UserID(one.ID)), func(s string) bool { return grants(auth.RoleScopes(r), s) }})
	}
	w.setRole(u.ID, tailnet.RoleOwner)
	for _, s := range auth.Scopes() {
		callers = append(callers, caller{"the scope " + s, w.apiKey(tailnet.UserID(u.ID), s), func(want string) bool { return grants([]string{s}, want) }})
	}
	known := append(auth.Scopes(), auth.ScopeNone)
	for op, scope := range w.operations() {
		if !slices.Contains(known, scope) {
			t.Errorf("%s asks for the scope %q, which does not exist", op, scope)
		}
		method, path, _ := strings.Cut(op, " ")
		if method == http.MethodGet && scope != auth.ScopeNone && !strings.HasSuffix(scope, ":read") {
			t.Errorf("%s only reads and asks for %s", op, scope)
		}
		for strings.Contains(path, "{") {
			a, b := strings.Index(path, "{"), strings.Index(path, "}")
			path = path[:a] + "nobody" + path[b+1:]
		}
		if path == "/events" {
			continue // does not end
		}
		for i, c := range callers {
			rec, p := send(h, fmt.Sprintf("192.0.2.%d", i), method, Prefix+path, "Bearer "+c.key, "")
			lacks := rec.Code == http.StatusForbidden && strings.Contains(p.Message, "lacks the scope "+scope)
			if may := c.may(scope); may == lacks || !may && rec.Code != http.StatusForbidden {
				t.Errorf("%s with %s: %d %s; may %v", op, c.name, rec.Code, rec.Body, may)
			}
		}
	}
}

// The table of operations in docs/api.md is what they declare; -update writes it anew.
func TestOperationsAreDocumented(t *testing.T) {
	const file = "../docs/api.md"
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	const head = "| Operation | Scope | What it does |\n|---|---|---|\n"
	before, rest, ok := strings.Cut(string(b), head)
	end := strings.Index(rest, "\n\n")
	if !ok || end < 0 {
		t.Fatalf("%s has no table that begins with %q", file, head)
	}
	var table strings.Builder
	for _, o := range newWorld(t).ops() {
		scope, does := cmp.Or(o.scope, "any key"), o.does
		var names []string
		for _, p := range paramsOf(o.in) {
			if p.field.Name != "Limit" && p.field.Name != "After" {
				names = append(names, p.name+"=")
			}
		}
		if len(names) > 0 {
			does += "; `?" + strings.Join(names, "&") + "`"
		}
		fmt.Fprintf(&table, "| `%s %s` | `%s` | %s |\n", o.method, o.path, scope, does)
	}
	want := before + head + strings.TrimSuffix(table.String(), "\n") + rest[end:]
	if want == string(b) {
		return
	}
	if !*update {
		t.Fatalf("the table of operations in %s is not what they declare: go test ./api -run Documented -update", file)
	}
	if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
		t.Fatal(err)
	}
}

// Operations that deal with roles look further than the scope.
func TestNobodyClimbs(t *testing.T) {
	w := seed(t)
	it, owner := w.user("it"), w.user("boss")
	w.setRole(it.ID, tailnet.RoleITAdmin)
	w.setRole(owner.ID, tailnet.RoleOwner)
	h := w.behindGate()
	key := "Bearer " + w.apiKey(tailnet.UserID(it.ID))
	before := w.st.Snapshot().Rev
	for _, call := range []struct{ op, body string }{
		{"POST /user/it/role", `{"role":"admin"}`},
		{"POST /user/it/role", `{"role":"owner"}`},
		{"POST /user/junyao/role", `{"role":"network-admin"}`},
		{"POST /user/boss/role", `{"role":"member"}`},
		{"DELETE /user/boss", ""},
		{"POST /user/boss/suspend", ""},
		{"POST /apikey", `{"user":"boss"}`},
		{"POST /apikey", `{"scopes":["policy_file"]}`},
	} {
		method, path, _ := strings.Cut(call.op, " ")
		if rec, p := send(h, "192.0.2.1", method, Prefix+path, key, call.body); rec.Code != 403 || p.Reason != tailnet.Denied {
			t.Errorf("%s %s: %d %s", call.op, call.body, rec.Code, rec.Body)
		}
	}
	if after := w.st.Snapshot().Rev; after != before {
		t.Errorf("rev %d became %d", before, after)
	}
	if rec, p := send(h, "192.0.2.1", "POST", "/api/v1/user/it/suspend", key, ""); rec.Code != 409 || !strings.Contains(p.Message, "yourself") {
		t.Errorf("suspending itself: %d %s", rec.Code, rec.Body)
	}
	if rec, _ := send(h, "192.0.2.1", "POST", "/api/v1/user/junyao/suspend", key, ""); rec.Code != 200 {
		t.Errorf("suspending a member: %d %s", rec.Code, rec.Body)
	}
	if rec, _ := send(h, "192.0.2.1", "POST", "/api/v1/user/junyao/role", key, `{"role":"auditor"}`); rec.Code != 200 {
		t.Errorf("what it may: %d %s", rec.Code, rec.Body)
	}
}

// API keys over the API, in headscale's shape.
func TestAPIKeys(t *testing.T) {
	w := seed(t)
	srv := httptest.NewServer(w.behindGate())
	t.Cleanup(srv.Close)
	c, err := NewClient(srv.URL+"/", w.apiKey(0))
	if err != nil {
		t.Fatal(err)
	}
	k, err := c.CreateAPIKey(w.ctx(), CreateAPIKeyRequest{User: "junyao", Description: "test"})
	if err != nil || k.Key.User.Name != "junyao" || k.Key.Expiration == nil {
		t.Fatalf("%+v %v", k, err)
	}
	status, body := w.call("GET", "/api/v1/apikey", "")
	var list struct {
		APIKeys []map[string]any `json:"apiKeys"`
	}
	if err := json.Unmarshal([]byte(body), &list); err != nil || status != 200 || len(list.APIKeys) != 2 || strings.Contains(body, k.APIKey) {
		t.Errorf("%d %s", status, body)
	}
	for _, want := range []string{"id", "prefix", "expiration", "createdAt", "lastSeen"} {
		if _, ok := list.APIKeys[0][want]; !ok {
			t.Errorf("a key has no %s: %s", want, body)
		}
	}
	keys, err := c.ListAPIKeys(w.ctx(), APIKeyFilter{})
	if err != nil || len(keys) != 2 {
		t.Fatalf("%v %v", keys, err)
	}
	for _, one := range keys {
		if (one.LastSeen != nil) != (one.User == nil) { // the one in use is the administrator's
			t.Errorf("%+v", one)
		}
	}
	if err := c.ExpireAPIKey(w.ctx(), k.Key.Prefix); err != nil {
		t.Error(err)
	}
	if err := c.RevokeAPIKey(w.ctx(), k.APIKey); err != nil { // by the key itself
		t.Error(err)
	}
	if err := c.DeleteAPIKey(w.ctx(), k.Key.Prefix); err != nil {
		t.Error(err)
	}
	for _, err := range []error{c.ExpireAPIKey(w.ctx(), k.Key.Prefix), c.RevokeAPIKey(w.ctx(), "nothing"), c.DeleteAPIKey(w.ctx(), k.APIKey)} {
		if tailnet.CodeOf(err) != tailnet.NotFound {
			t.Errorf("a key that is gone: %v", err)
		}
	}
	for body, want := range map[string]int{
		`{"user":"nobody"}`: 404, `{"scopes":["x"]}`: 400, `{"expiration":"2001-01-01T00:00:00Z"}`: 400, `{"scopes":"all"}`: 400, `{"description":"\u0007"}`: 400,
	} {
		if status, answer := w.call("POST", "/api/v1/apikey", body); status != want {
			t.Errorf("%s: %d %s", body, status, answer)
		}
	}
	if status, _ := w.call("POST", "/api/v1/apikey/expire", `{}`); status != 400 {
		t.Errorf("no key named: %d", status)
	}
}

func TestNewClient(t *testing.T) {
	for _, bad := range []string{"", "skein.example.com", "ftp://x", "https://", "https://x/path", "https://u:p@x", "https://x?y"} {
		if _, err := NewClient(bad, "k"); tailnet.CodeOf(err) != tailnet.Invalid {
			t.Errorf("%q: %v", bad, err)
		}
	}
	for _, bad := range []string{"", " \n", "a b", "ключ"} {
		if _, err := NewClient("http://x", bad); tailnet.CodeOf(err) != tailnet.Invalid {
			t.Errorf("key %q: %v", bad, err)
		}
	}
	// A key goes nowhere else.
	var got string
	elsewhere := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = r.Header.Get("Authorization") }))
	defer elsewhere.Close()
	srv := httptest.NewServer(http.RedirectHandler(elsewhere.URL, http.StatusPermanentRedirect))
	defer srv.Close()
	c, err := NewClient(srv.URL, "secret")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.ListUsers(context.Background(), UserFilter{}); err == nil || !strings.Contains(err.Error(), elsewhere.URL) || got != "" {
		t.Errorf("%v; sent %q", err, got)
	}
}
