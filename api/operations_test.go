package api

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/types/key"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
	"github.com/skein-vpn/skein/webhook"
)

// newWholeWorld is seed with everything that a server can have, and something of every kind in it: its ids are in what it returns.
func newWholeWorld(t testing.TB) (w *world, ids map[string]string) {
	w = seed(t)
	clock := func() time.Time { return noon }
	quiet := slog.New(slog.DiscardHandler)
	o := Options{
		State: w.st, Auth: w.auth, Version: "1.2.3", Now: clock, Log: slog.New(slog.NewTextHandler(&w.log, nil)), Events: w.events(w.st),
		Accounts: auth.NewAccounts(auth.AccountsOptions{State: w.st, Store: w.db, ServerURL: "http://192.0.2.1:8080", Secret: []byte("test"), Now: clock, Log: quiet}),
		Webhooks: webhook.New(webhook.Options{State: w.st, Store: w.db, AllowLoopback: true, Now: clock, Log: quiet}),
		Cluster: func(context.Context) ([]ClusterServer, error) {
			return []ClusterServer{{ID: "1", Name: "one", Alive: true, Leads: true, Self: true, Started: &noon, LastSeen: &noon}}, nil
		},
		Netmap: func(*state.Snapshot, tailnet.NodeID, tailcfg.CapabilityVersion) (json.RawMessage, error) {
			return json.RawMessage(`{"Peers": []}`), nil
		},
	}
	w.raw = NewServer(o)
	w.spec = specOf(t, o)
	w.handler = w.spec.tell(t, w.raw)
	w.client = w.serve(w.handler)

	receiver := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	t.Cleanup(receiver.Close)
	ids = map[string]string{"receiver": receiver.URL}
	w.setPolicy(`{"tagOwners": {"tag:ci": []}, "acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}],
		"ssh": [{"action": "check", "checkPeriod": "always", "src": ["junyao@"], "dst": ["autogroup:self"], "users": ["root"]}]}`)
	for _, name := range []string{"check1", "check2", "check3", "check4"} {
		a, err := w.auth.SSH(w.ctx(), auth.SSHQuestion{Src: 1, Dst: 2, SSHUser: "root", LocalUser: "toor"})
		w.must(err)
		at, err := url.Parse(a.HoldAndDelegate)
		w.must(err)
		ids[name] = at.Query().Get("check")
	}
	for _, name := range []string{"login1", "login2"} {
		out, err := w.auth.Register(w.ctx(), key.NewMachine().Public(), &tailcfg.RegisterRequest{
			Version: 142, NodeKey: key.NewNode().Public(), Hostinfo: &tailcfg.Hostinfo{Hostname: name, OS: "linux"},
		}, "192.0.2.9:1234")
		w.must(err)
		ids[name] = out.Login
	}
	ids["apikey"] = auth.CredentialIDOf(w.apiKey(0))
	return w, ids
}

// successes are calls that succeed in a whole world, one of each operation at least, in this order. What stands in "<>" is an id; behind "→"
// stands which id the answer tells, and where.
const successes = `
GET /user?role=member&status=active
POST /user {"name": "spare", "displayName": "Spare", "email": "spare@example.org"}
POST /user/spare/rename/other
POST /user/other/role {"role": "auditor"}
POST /user/other/suspend
POST /user/other/restore
POST /user/other/approve
DELETE /user/other
GET /node?user=junyao&tag=tag:ci&online=false&expired=false&ephemeral=false&os=Linux&name=home&status=active&limit=1
POST /node/register?user=junyao&key=<login1>
GET /node/homeds
POST /node/homeds/approve {"approved": false}
POST /node/homeds/approve
POST /node/homeds/rename/nas
POST /node/nas/user {"user": "anna@example.org"}
POST /node/nas/tags {"tags": ["tag:ci"]}
POST /node/nas/attributes/custom:tier {"value": "gold", "comment": "test"}
DELETE /node/nas/attributes/custom:tier
GET /node/nas/netmap?capver=100
POST /node/nas/expire {"expiry": "2030-01-31T12:00:00Z"}
POST /node/nas/expire?disable_expiry=true
GET /routes?node=nas&enabled=false&advertised=true&primary=false&exit=false&prefix=10.8.0.1&limit=5
POST /routes/enable {"node": "nas", "all": true}
POST /routes/disable {"node": 2, "routes": ["10.8.0.0/16"]}
POST /routes/exact {"node": "nas", "routes": []}
POST /node/2/approve_routes {"routes": ["10.8.0.0/16"]}
GET /node/2/routes
POST /preauthkey {"user": "1", "reusable": true, "aclTags": []} → preauthkey preAuthKey.id
GET /preauthkey?user=junyao&state=usable&limit=1
POST /preauthkey/expire {"id": "<preauthkey>"}
DELETE /preauthkey?id=<preauthkey>
GET /apikey?state=usable
POST /apikey {"description": "test", "scopes": ["devices:core:read"]} → apikey2 key.id
POST /apikey/expire {"prefix": "<apikey2>"}
POST /apikey/revoke {"prefix": "<apikey2>"}
DELETE /apikey/<apikey2>
POST /oauthclient {"scopes": ["auth_keys"], "tags": ["tag:ci"]} → client oauthClient.id
POST /oauthclient {"scopes": ["auth_keys"], "tags": ["tag:ci"], "issuer": "https://example.com", "subject": "*", "claims": {"a": "b"}}
GET /oauthclient?kind=client&state=usable
POST /oauthclient/<client>/revoke
DELETE /oauthclient/<client>
GET /login?name=login2&os=linux
GET /sshcheck?node=nas
GET /sshcheck?limit=1
POST /sshcheck/<check1>/approve
POST /sshcheck/<check2>/deny
POST /auth/approve {"authId": "<check3>"}
POST /auth/reject {"authId": "<check4>"}
POST /auth/register {"user": "junyao", "authId": "<login2>"}
POST /node/backfillips?confirmed=true
POST /admin/link {"name": "root", "role": "admin"}
GET /admin
GET /policy
PUT /policy {"policy": "{\"tagOwners\": {\"tag:ci\": []}, \"acls\": [{\"action\": \"accept\", \"src\": [\"*\"], \"dst\": [\"*:22\"]}]}", "changes": true}
POST /policy/check {"report": true, "policy": "{\"acls\": [{\"action\": \"accept\", \"src\": [\"nobody\"], \"dst\": [\"*:22\"]}]}"}
POST /policy/diff {"none": true}
GET /policy/history?limit=1
GET /policy/version/1
POST /policy/rollback {"version": 1, "changes": true}
GET /policy/explain?src=junyao&dst=vm:22
POST /policy/explain {"src": "junyao", "dst": "10.8.0.1", "port": 22, "proto": "tcp"}
GET /audit?limit=5&action=node
GET /events?once=true&since=0.0
POST /webhook {"url": "<receiver>", "events": ["nodeCreated"]} → webhook webhook.id
GET /webhook
PATCH /webhook/<webhook> {"events": ["nodeDeleted"]}
POST /webhook/<webhook>/rotate
POST /webhook/<webhook>/test
DELETE /webhook/<webhook>
PATCH /settings {"deviceApproval": true, "keyDurationSeconds": 86400, "contacts": {"security": "security@example.org"}}
GET /settings
PATCH /dns {"nameservers": [{"addr": "9.9.9.9"}], "split": {"corp.example.com": [{"addr": "10.0.0.53"}]}, "search": ["example.com"]}
POST /dns/records {"name": "printer.example.com", "value": "100.64.0.9"}
GET /dns
DELETE /dns/records?name=printer.example.com
PUT /service/web {"ports": ["tcp:443"], "displayName": "Web"}
GET /service?limit=1
GET /service/svc:web
POST /service/web/approve {"node": "nas"}
POST /service/web/refuse {"node": "nas"}
DELETE /service/web
GET /derp/map
GET /cluster
GET /status
GET /health
GET /version
DELETE /node/3
`

// Every operation answers as the document says when it succeeds: the handler of the world looks.
func TestEveryOperationSucceeds(t *testing.T) {
	w, ids := newWholeWorld(t)
	for line := range strings.Lines(successes) {
		line, to, _ := strings.Cut(strings.TrimSpace(line), " → ")
		if line == "" {
			continue
		}
		for name, id := range ids {
			line = strings.ReplaceAll(line, "<"+name+">", id)
		}
		method, rest, _ := strings.Cut(line, " ")
		path, body, _ := strings.Cut(rest, " ")
		status, answer := w.call(method, Prefix+path, body)
		if status != 200 {
			t.Errorf("%s: %d %s", line, status, answer)
			continue
		}
		if name, where, ok := strings.Cut(to, " "); ok {
			var v any
			w.must(json.Unmarshal([]byte(answer), &v))
			ids[name], _ = at(v, strings.Split(where, ".")...).(string)
		}
	}
	// Whoever signs in without a provider can be made by a browser only: see the tests of the command line and of the pages.
	without := []string{"POST /admin/{user}/reset", "DELETE /admin/{user}", "POST /debug/node"}
	for _, o := range w.ops() {
		name := o.method + " " + o.path
		if !w.spec.seen[name][200] && !slices.Contains(without, name) {
			t.Errorf("%s was not called: add it to successes", name)
		}
	}
}

// wrong is a request that must fail, and how.
type wrong struct {
	what, method, path, body string
	header                   http.Header
}

// wrongs are requests that the document does not allow, made from what it says of the operation o.
func wrongs(sp *spec, o operation) (out []wrong) {
	good := fill(o.path, nil)
	m := at(sp.doc, "paths", o.path, strings.ToLower(o.method))
	body := ""
	schema := at(m, "requestBody", "content", "application/json", "schema")
	if ref, ok := at(schema, "$ref").(string); ok {
		schema = at(sp.doc, strings.Split(strings.TrimPrefix(ref, "#/"), "/")...)
	}
	if schema != nil {
		body = "{}"
	}
	add := func(what, path, body string) { out = append(out, wrong{what, o.method, path, body, nil}) }
	add("an unknown parameter", good+"?nonsense=1", body)
	for _, v := range variables(o.path) {
		bad := []string{"%20", "%00", "a%2Fb", "..%2F..%2Fetc", "%E6%88%91%E6%88%91", strings.Repeat("x", 300), "%22%3Cscript%3E"}
		if v != "new" && v != "name" && (v != "service" || o.method != http.MethodPut) {
			bad = append(bad, "nothing-like-it", "-1", "99999", "9223372036854775808", "1e3", "%ff")
		}
		for _, b := range bad {
			add("{"+v+"} "+b, fill(o.path, map[string]string{v: b}), body)
		}
	}
	params, _ := at(m, "parameters").([]any)
	for _, p := range params {
		name, s := at(p, "name").(string), at(p, "schema")
		if at(p, "in") == "header" {
			out = append(out, wrong{"a bad ETag", o.method, good, body, http.Header{name: {`"zz"`}}})
		}
		if at(p, "in") == "query" && (at(s, "enum") != nil || at(s, "type") != "string" && at(s, "type") != "array" || at(s, "format") != nil || at(s, "pattern") != nil) {
			add("?"+name+"=rubbish", good+"?"+name+"=rub%20bish", body)
		}
		if at(s, "minimum") != nil {
			for _, n := range []string{"0", "-1", "99999999999999999999", "1.5"} {
				add("?"+name+"="+n, good+"?"+name+"="+n, body)
			}
		}
	}
	if schema == nil {
		return out
	}
	limit := maxBody
	if o.noun() == "policy" {
		limit = maxPolicyBody
	}
	for _, b := range []string{
		"{", "[]", `"text"`, "7", "true", "{} x", "\x00", "{\"\xff\":1}", strings.Repeat("[", 20_000), "<xml/>", "name=x&y=z",
		`{"x":"` + strings.Repeat("x", limit) + `"}`,
	} {
		add("a body that begins with "+clip(b), good, b)
	}
	props, _ := at(schema, "properties").(map[string]any)
	for _, name := range slices.Sorted(maps.Keys(props)) {
		bad := `{"a":{}}`
		switch typ := at(props[name], "type"); typ {
		case "object":
			bad = `"text"`
		case nil:
			continue // anything
		}
		add("a wrong type of "+name, good, `{"`+name+`":`+bad+`}`)
	}
	return out
}

// fill is a path with its variables escaped and in place: those in with, others as they are in a whole world.
func fill(path string, with map[string]string) string {
	return Prefix + variable.ReplaceAllStringFunc(path, func(v string) string {
		if w, ok := with[strings.Trim(v, "{}")]; ok {
			return w
		}
		return map[string]string{"{node}": "homeds", "{user}": "junyao", "{name}": "custom:tier", "{new}": "new", "{version}": "1"}[v] +
			map[bool]string{true: "nothing"}[slices.Contains([]string{"{id}", "{client}", "{prefix}", "{webhook}", "{service}"}, v)]
	})
}

// ledger is everything that a call could change: the state, and what is kept beside it.
func (w *world) ledger() string {
	w.Helper()
	ctx := w.ctx()
	var all []any
	for _, load := range []func() (any, error){
		func() (any, error) { return w.st.Snapshot().Rev, nil },
		func() (any, error) { return w.auth.AuditLog(ctx, tailnet.AuditQuery{Limit: 1}) },
		func() (any, error) { return w.db.Webhooks(ctx, tailnet.DefaultID) },
		func() (any, error) { return w.auth.Logins(ctx) },
		func() (any, error) { return w.auth.SSHChecks(ctx) },
	} {
		v, err := load()
		w.must(err)
		all = append(all, v)
	}
	b, err := json.Marshal(all)
	w.must(err)
	return string(b)
}

// Whatever the document does not allow is refused by a problem that it tells, twice the same, and changes nothing.
func TestEveryOperationRefuses(t *testing.T) {
	w, _ := newWholeWorld(t)
	before, n := w.ledger(), 0
	check := func(x wrong) {
		t.Helper()
		n++
		var first string
		for i := range 2 {
			r := httptest.NewRequest("GET", "/", strings.NewReader(x.body))
			u, err := r.URL.Parse(x.path)
			w.must(err)
			r.Method, r.URL = x.method, u
			maps.Copy(r.Header, x.header)
			rec := httptest.NewRecorder()
			w.handler.ServeHTTP(rec, r)
			if rec.Code < 400 || rec.Code >= 500 || rec.Header().Get("Content-Type") != "application/problem+json" {
				t.Errorf("%s %s with %s: %d %.300s", x.method, clip(x.path), x.what, rec.Code, rec.Body)
			}
			if i == 0 {
				first = rec.Body.String()
			} else if rec.Body.String() != first {
				t.Errorf("%s %s with %s: %s, and then %s", x.method, clip(x.path), x.what, first, rec.Body)
			}
		}
	}
	for _, o := range w.ops() {
		for _, x := range wrongs(w.spec, o) {
			check(x)
		}
		for _, method := range []string{"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "NONSENSE"} {
			if path := fill(o.path, nil); at(w.spec.doc, "paths", w.spec.path(strings.ToLower(method), path)) == nil {
				check(wrong{"a wrong method", method, path, "{}", nil})
			}
		}
		if after := w.ledger(); after != before {
			t.Fatalf("%s %s: a failed call has changed something: %s became %s", o.method, o.path, before, after)
		}
	}
	for _, path := range []string{"", "/", "//", "/node/", "/node//routes", "/user/junyao/", "/NODE", "/policy/version", "/openapi.json/", "/docs/", "/%2e%2e/%2e%2e/etc/passwd"} {
		check(wrong{"nowhere", "GET", Prefix + path, "", nil})
	}
	if strings.Contains(w.log.String(), "panic") || strings.Contains(w.log.String(), "level=ERROR") {
		t.Error(w.log.String())
	}
	t.Logf("%d requests were refused", n)
}

// Bodies are JSON whatever their Content-Type says, or if there is none.
func TestContentTypeDoesNotMatter(t *testing.T) {
	w := newWorld(t)
	for i, ct := range []string{"", "text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin1", "rubbish"} {
		r := httptest.NewRequest("POST", Prefix+"/user", strings.NewReader(fmt.Sprintf(`{"name":"u%d"}`, i)))
		r.Header.Del("Content-Type")
		if ct != "" {
			r.Header.Set("Content-Type", ct)
		}
		rec := httptest.NewRecorder()
		w.handler.ServeHTTP(rec, r)
		if rec.Code != 200 {
			t.Errorf("%q: %d %s", ct, rec.Code, rec.Body)
		}
	}
}

// Whatever is sent to whichever operation, the answer is what the document tells, it is no fault of ours, and a failed call changes nothing.
func FuzzOperations(f *testing.F) {
	w, ids := newWholeWorld(f)
	ops := w.ops()
	for i := range ops {
		f.Add(i, "homeds", "junyao", "limit=1", `{"name":"x","user":1,"tags":["tag:ci"],"routes":["10.8.0.0/16"],"value":{},"policy":"{}"}`, `"1"`)
	}
	f.Add(3, "%ff", "..", "after=MDAwMDAw&limit=1000", "{", "W/\"*\"")
	f.Add(9, ids["check1"], ids["login1"], "expiry=1", `{"expiry":"0001-01-01T00:00:00Z"}`, "")
	f.Fuzz(func(t *testing.T, which int, first, second, query, body, etag string) {
		o := ops[uint(which)%uint(len(ops))]
		if o.stream || o.path == "/webhook/{webhook}/test" || strings.Contains(body, "http") { // do not end, or send something elsewhere
			return
		}
		values := []string{first, second}
		path := variable.ReplaceAllStringFunc(o.path, func(string) string {
			v := values[0]
			values = append(values[1:], v)
			return url.PathEscape(v)
		})
		r := httptest.NewRequest("GET", "/", strings.NewReader(body))
		u, err := r.URL.Parse(Prefix + path)
		if err != nil {
			return
		}
		u.RawQuery = query
		r.Method, r.URL = o.method, u
		r.Header.Set("If-Match", etag)
		before := w.st.Snapshot().Rev
		rec := httptest.NewRecorder()
		w.raw.ServeHTTP(rec, r)
		if err := w.spec.holds(o.method, u.EscapedPath(), rec.Code, rec.Header(), bytes.TrimSpace(rec.Body.Bytes())); err != nil || rec.Code >= 500 {
			t.Errorf("%s %s %q: %d %s: %v\n%s", o.method, u, body, rec.Code, rec.Body, err, w.log.String())
		}
		if rec.Code >= 400 && w.st.Snapshot().Rev != before {
			t.Errorf("%s %s %q: %d, and something has changed", o.method, u, body, rec.Code)
		}
	})
}
