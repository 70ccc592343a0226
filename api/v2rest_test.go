package api

import (
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	ts "tailscale.com/client/tailscale/v2"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// ask sends a request with a key, and returns status and body.
func (w *v2World) ask(t *testing.T, key, method, path, body string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(w.ctx(), method, w.url.String()+PrefixV2+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth(key, "")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if !json.Valid(b) {
		t.Errorf("%s %s: %d with what is not JSON: %s", method, path, resp.StatusCode, b)
	}
	return resp.StatusCode, string(b)
}

func TestV2Contacts(t *testing.T) {
	w := newV2World(t)
	key, ctx := w.apiKey(0), w.ctx()
	c := w.tailscale(key)
	if got, err := c.Contacts().Get(ctx); err != nil || *got != (ts.Contacts{}) {
		t.Errorf("%+v, %v", got, err)
	}
	mail := "help@example.com"
	if err := c.Contacts().Update(ctx, ts.ContactSupport, ts.UpdateContactRequest{Email: &mail}); err != nil {
		t.Fatal(err)
	}
	if got, err := c.Contacts().Get(ctx); err != nil || *got != (ts.Contacts{Support: ts.Contact{Email: mail}}) {
		t.Errorf("%+v, %v", got, err)
	}
	bad := "Help <help@example.com>"
	if err := c.Contacts().Update(ctx, ts.ContactSupport, ts.UpdateContactRequest{Email: &bad}); status(err) != 400 {
		t.Errorf("not an address: %v", err)
	}
	if err := c.Contacts().Update(ctx, "sales", ts.UpdateContactRequest{Email: &mail}); status(err) != 404 {
		t.Errorf("no such contact: %v", err)
	}
	if err := c.Contacts().Update(ctx, ts.ContactSupport, ts.UpdateContactRequest{}); err != nil {
		t.Errorf("a change of nothing: %v", err)
	}
	if got := w.st.Snapshot().Tailnet.Settings.Contacts.Support; got != mail {
		t.Errorf("it is %q now", got)
	}
	if code, body := w.ask(t, key, "POST", "/tailnet/-/contacts/support/resend-verification-email", ""); code != 501 {
		t.Errorf("%d %s", code, body)
	}
}

func TestV2ConfigurationLog(t *testing.T) {
	w := newV2World(t)
	key, ctx := w.apiKey(0), w.ctx()
	c := w.tailscale(key)
	mail := "help@example.com"
	for range 8 { // some entries by somebody with a name
		mail = "x" + mail
		if err := c.Contacts().Update(ctx, ts.ContactSupport, ts.UpdateContactRequest{Email: &mail}); err != nil {
			t.Fatal(err)
		}
	}
	type entry struct {
		EventTime            time.Time
		Type, Origin, Action string
		Actor, Target        struct{ ID, Type, Name, DisplayName string }
		Old, New             json.RawMessage
	}
	type answer struct {
		Version, Tailnet string
		Logs             []entry
	}
	get := func(query url.Values) (a answer) {
		t.Helper()
		code, body := w.ask(t, key, "GET", "/tailnet/-/logging/configuration?"+query.Encode(), "")
		if code != 200 {
			t.Fatalf("%d %s", code, body)
		}
		if err := json.Unmarshal([]byte(body), &a); err != nil {
			t.Fatal(err)
		}
		return a
	}
	all := url.Values{"start": {"2000-01-01T00:00:00Z"}, "end": {"2100-01-01T00:00:00Z"}}
	a := get(all)
	if a.Version != "1.1" || a.Tailnet != "default" || len(a.Logs) < 8 {
		t.Fatalf("%+v", a)
	}
	last := a.Logs[len(a.Logs)-1]
	if last.Type != "CONFIG" || last.Action != "UPDATE" || last.Target.Type != "TAILNET" || last.Origin != "CONFIG_API" ||
		!strings.Contains(string(last.New), mail) || !slices.IsSortedFunc(a.Logs, func(a, b entry) int {
		return a.EventTime.Compare(b.EventTime)
	}) {
		t.Errorf("%+v", last)
	}
	only := url.Values{"start": all["start"], "end": all["end"], "target": {"NODE"}}
	for _, e := range get(only).Logs {
		if e.Target.Type != "NODE" {
			t.Errorf("asked for nodes: %+v", e)
		}
	}
	if n := len(get(url.Values{"start": {"2000-01-01T00:00:00Z"}, "end": {"2000-01-02T00:00:00Z"}}).Logs); n != 0 {
		t.Errorf("%d entries of a day without any", n)
	}
	for _, q := range []string{"", "?start=2000-01-01T00:00:00Z", "?start=today&end=tomorrow", "?start=2001-01-01T00:00:00Z&end=2000-01-01T00:00:00Z"} {
		if code, body := w.ask(t, key, "GET", "/tailnet/-/logging/configuration"+q, ""); code != 400 {
			t.Errorf("%q: %d %s", q, code, body)
		}
	}
}

func TestV2Services(t *testing.T) {
	w := newV2World(t)
	key, ctx := w.apiKey(0), w.ctx()
	c := w.tailscale(key)
	if all, err := c.Services().List(ctx); err != nil || len(all) != 0 {
		t.Errorf("%+v, %v", all, err)
	}
	web := ts.Service{Name: "svc:web", Ports: []string{"tcp:443", "tcp:80-90"}, Comment: "intranet", Tags: []string{"tag:b", "tag:a"}, Annotations: map[string]string{"k": "v"}}
	if err := c.Services().CreateOrUpdate(ctx, web); err != nil {
		t.Fatal(err)
	}
	got, err := c.Services().Get(ctx, "svc:web")
	if err != nil || len(got.Addrs) != 2 || got.Comment != web.Comment || !slices.Equal(got.Ports, web.Ports) || !slices.Equal(got.Tags, []string{"tag:a", "tag:b"}) ||
		got.Annotations["k"] != "v" {
		t.Fatalf("%+v, %v", got, err)
	}
	before := *got
	got.Comment, got.Ports = "", []string{"do-not-validate"}
	if err := c.Services().CreateOrUpdate(ctx, *got); err != nil {
		t.Fatal(err)
	}
	if got, err := c.Services().Get(ctx, "svc:web"); err != nil || !slices.Equal(got.Addrs, before.Addrs) || got.Comment != "" || !slices.Equal(got.Ports, []string{"do-not-validate"}) {
		t.Errorf("changed: %+v, %v", got, err)
	}
	// An address of one's own choice, of a new service and of one that is there.
	for _, name := range []string{"svc:web", "svc:db"} {
		addr := map[string]string{"svc:web": "100.64.7.7", "svc:db": "100.64.7.8"}[name]
		if err := c.Services().CreateOrUpdate(ctx, ts.Service{Name: name, Addrs: []string{addr}}); err != nil {
			t.Fatal(err)
		}
		if got, err := c.Services().Get(ctx, name); err != nil || got.Addrs[0] != addr || len(got.Addrs) != 2 {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	nas := w.st.Snapshot().NodeByName("homeds")
	for what, s := range map[string]ts.Service{
		"name":                 {Name: "svc:No.Name"},
		"port":                 {Name: "svc:x", Ports: []string{"443"}},
		"udp":                  {Name: "svc:x", Ports: []string{"udp:53"}},
		"tag":                  {Name: "svc:x", Tags: []string{"tag:Ä"}},
		"address":              {Name: "svc:x", Addrs: []string{"10.0.0.1"}},
		"no address":           {Name: "svc:x", Addrs: []string{"web"}},
		"two addresses":        {Name: "svc:x", Addrs: []string{"100.64.7.9", "100.64.7.10"}},
		"IPv6 alone":           {Name: "svc:x", Addrs: []string{"fd7a:115c:a1e0::99"}},
		"a comment too long":   {Name: "svc:x", Comment: strings.Repeat("a", 2000)},
		"annotations too long": {Name: "svc:x", Annotations: map[string]string{"k": strings.Repeat("a", 5000)}},
	} {
		if err := c.Services().CreateOrUpdate(ctx, s); status(err) != 400 {
			t.Errorf("%s: %v", what, err)
		}
	}
	for what, s := range map[string]ts.Service{
		"the name of a node":    {Name: "svc:homeds"},
		"the address of a node": {Name: "svc:x", Addrs: []string{nas.IPv4.String()}},
		"another's address":     {Name: "svc:x", Addrs: []string{"100.64.7.8"}},
	} {
		if err := c.Services().CreateOrUpdate(ctx, s); status(err) != 409 {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := c.Services().Get(ctx, "svc:x"); !ts.IsNotFound(err) {
		t.Errorf("something is left of what failed: %v", err)
	}
	for _, q := range [][3]string{
		{"PUT", "/tailnet/-/services/svc:web", `{"name": "svc:other"}`}, {"PUT", "/tailnet/-/services/svc:web", ""}, {"PUT", "/tailnet/-/services/svc:web", "["},
		{"POST", "/tailnet/-/services/svc:web/device/2/approved", "{}"},
		{"POST", "/tailnet/-/services/svc:web/device/2/approved", `{"approved": true}`}, // belongs to a user
	} {
		if code, body := w.ask(t, key, q[0], q[1], q[2]); code != 400 {
			t.Errorf("%v: %d %s", q, code, body)
		}
	}

	// A host: what it offers, and what was decided about it.
	w.must(w.st.Update(ctx, "test", func(tx *state.Tx) error {
		n := tx.Node(nas.ID).Clone()
		n.User, n.Tags = 0, []string{"tag:a"}
		tx.SetOffers(n, "hash", []tailnet.Hosting{{Service: "svc:db", Offered: true, Active: true, Ports: []string{"tcp:1-100"}}})
		return tx.PutNode(n)
	}))
	for _, all := range []string{"/tailnet/-/vip-services", "/tailnet/-/services"} {
		want := func(path, want string) {
			t.Helper()
			if code, body := w.ask(t, key, "GET", all+path, ""); code != 200 || strings.TrimSpace(body) != want {
				t.Errorf("%s: %d %s, want %s", all+path, code, body, want)
			}
		}
		decide := func(b string) {
			t.Helper()
			if code, body := w.ask(t, key, "POST", all+"/svc:db/device/"+nas.StableID+"/approved", `{"approved": `+b+`}`); code != 200 {
				t.Errorf("%d %s", code, body)
			}
		}
		want("/svc:db/devices", `{"hosts":[{"stableNodeID":"`+nas.StableID+`","approvalLevel":"not-approved","configured":"ready"}]}`)
		want("/svc:db/device/2/approved", `{"approved":false,"autoApproved":false}`)
		decide("true")
		want("/svc:db/device/"+nas.StableID+"/approved", `{"approved":true,"autoApproved":false}`)
		want("/svc:db/devices", `{"hosts":[{"stableNodeID":"`+nas.StableID+`","approvalLevel":"approved:manual","configured":"ready"}]}`)
		decide("false")
		want("/svc:web/devices", `{"hosts":[]}`)
		if code, _ := w.ask(t, key, "GET", all+"/svc:db/device/99/approved", ""); code != 404 {
			t.Errorf("no such device: %d", code)
		}
	}
	if err := c.Services().Delete(ctx, "svc:web"); err != nil {
		t.Error(err)
	}
	if err := c.Services().Delete(ctx, "svc:web"); !ts.IsNotFound(err) {
		t.Errorf("deleted again: %v", err)
	}
	// A credential may give the tags that it has, and no others.
	secret, _, err := w.auth.CreateOAuthClient(ctx, auth.SocketPrincipal("test"), auth.ClientRequest{Scopes: []string{"services", "auth_keys"}, Tags: []string{"tag:k8s"}})
	if err != nil {
		t.Fatal(err)
	}
	o := &ts.Client{BaseURL: w.url, Auth: &ts.OAuth{ClientID: "x", ClientSecret: secret}}
	if err := o.Services().CreateOrUpdate(ctx, ts.Service{Name: "svc:mine", Tags: []string{"tag:k8s"}}); err != nil {
		t.Error(err)
	}
	if err := o.Services().CreateOrUpdate(ctx, ts.Service{Name: "svc:theirs", Tags: []string{"tag:a"}}); status(err) != 403 {
		t.Errorf("a tag that is not its own: %v", err)
	}
}

func TestV2PreviewPolicy(t *testing.T) {
	w := newV2World(t)
	key := w.apiKey(0)
	const text = `// mine
{"groups": {"group:dev": ["junyao@"]},
 "acls": [
	{"action": "accept", "src": ["group:dev"], "dst": ["*:22"]}, // ssh
	{"action": "accept", "src": ["anna@example.org"], "dst": ["100.64.0.2:80", "100.64.0.3:443"]},
 ],
 "grants": [{"src": ["*"], "dst": ["100.64.0.3"], "ip": ["tcp:80", "udp:53"]}]}`
	for _, c := range [][3]string{
		{"type=user&previewFor=junyao", text, `{"matches":[{"users":["group:dev"],"ports":["*:22"],"lineNumber":4},{"users":["*"],"ports":["100.64.0.3:tcp:80","100.64.0.3:udp:53"],"lineNumber":7}],"type":"user","previewFor":"junyao"}`},
		{"type=user&previewFor=Anna@example.org", text, `{"matches":[{"users":["anna@example.org"],"ports":["100.64.0.2:80","100.64.0.3:443"],"lineNumber":5},{"users":["*"],"ports":["100.64.0.3:tcp:80","100.64.0.3:udp:53"],"lineNumber":7}],"type":"user","previewFor":"Anna@example.org"}`},
		{"type=ipport&previewFor=100.64.0.2:80", text, `{"matches":[{"users":["anna@example.org"],"ports":["100.64.0.2:80","100.64.0.3:443"],"lineNumber":5}],"type":"ipport","previewFor":"100.64.0.2:80"}`},
		{"type=ipport&previewFor=100.64.0.2:9", text, `{"matches":[],"type":"ipport","previewFor":"100.64.0.2:9"}`},
		{"type=ipport&previewFor=100.64.0.2:9", "", `{"matches":[{"users":["*"],"ports":["*:*"],"lineNumber":4}],"type":"ipport","previewFor":"100.64.0.2:9"}`},
	} {
		if code, body := w.ask(t, key, "POST", "/tailnet/-/acl/preview?"+c[0], c[1]); code != 200 || strings.TrimSpace(body) != c[2] {
			t.Errorf("%s: %d %s", c[0], code, body)
		}
	}
	for q, want := range map[string]int{
		"type=user&previewFor=nobody": 404, "type=group&previewFor=x": 400, "": 400, "type=ipport&previewFor=100.64.0.2": 400,
	} {
		if code, body := w.ask(t, key, "POST", "/tailnet/-/acl/preview?"+q, text); code != want {
			t.Errorf("%s: %d %s", q, code, body)
		}
	}
	if code, body := w.ask(t, key, "POST", "/tailnet/-/acl/preview?type=user&previewFor=junyao", `{"acls": 7}`); code != 400 || !strings.Contains(body, "acls") {
		t.Errorf("a policy with a fault: %d %s", code, body)
	}
	if w.st.Snapshot().Text != nil {
		t.Error("the preview has changed the policy")
	}
}

func TestV2AttributesEnd(t *testing.T) {
	w := newV2World(t)
	key, ctx := w.apiKey(0), w.ctx()
	c := w.tailscale(key)
	end := noon.Add(time.Hour)
	if err := c.Devices().SetPostureAttribute(ctx, "2", "custom:jit", ts.DevicePostureAttributeRequest{Value: true, Expiry: ts.Time{Time: end}}); err != nil {
		t.Fatal(err)
	}
	as, err := c.Devices().GetPostureAttributes(ctx, "2")
	if err != nil || as.Attributes["custom:jit"] != true || !as.Expiries["custom:jit"].Equal(end) {
		t.Errorf("%+v, %v", as, err)
	}
	if err := c.Devices().SetPostureAttribute(ctx, "2", "custom:late", ts.DevicePostureAttributeRequest{Value: true, Expiry: ts.Time{Time: noon.Add(-time.Hour)}}); status(err) != 400 {
		t.Errorf("one that has ended: %v", err)
	}
	// Several devices at once, all or none.
	id := w.st.Snapshot().Node(3).StableID
	patch := func(body string, want int) {
		t.Helper()
		if code, got := w.ask(t, key, "PATCH", "/tailnet/-/device-attributes", body); code != want {
			t.Errorf("%s: %d %s", body, code, got)
		}
	}
	patch(`{"nodes": {"2": {"custom:jit": null, "custom:a": {"value": 7}}, "`+id+`": {"custom:b": {"value": "x", "expiry": "`+end.Format(time.RFC3339)+`"}}}, "comment": "ticket 7"}`, 200)
	patch(`{"nodes": {"2": {"custom:c": {"value": 1}}, "99": {"custom:c": {"value": 1}}}}`, 404)
	patch(`{"nodes": {"2": {"custom:c": {"value": 1}, "custom:d": {}}}}`, 400)
	patch(`{"nodes": {}}`, 400)
	patch(`{"nodes": []}`, 400)
	sn := w.st.Snapshot()
	if a, b := sn.Node(2).Attributes, sn.Node(3).Attributes; len(a) != 1 || a[0].Name != "custom:a" || len(b) != 1 || !b[0].Expires.Equal(end) {
		t.Errorf("%+v %+v", a, b)
	}
}

// A key that ends again ends when the configuration says, if the tailnet's settings say nothing.
func TestV2KeyExpiryByConfiguration(t *testing.T) {
	w := seed(t)
	a := auth.New(auth.Options{State: w.st, Store: w.db, Now: func() time.Time { return noon }, NodeExpiry: 90 * 24 * time.Hour})
	h := NewV2Server(Options{State: w.st, Auth: a, Log: slog.New(slog.DiscardHandler)})
	for _, never := range []string{"true", "false"} {
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, httptest.NewRequest("POST", PrefixV2+"/device/2/key", strings.NewReader(`{"keyExpiryDisabled": `+never+`}`)))
		if rec.Code != 200 {
			t.Fatalf("%d %s", rec.Code, rec.Body)
		}
	}
	if n := w.st.Snapshot().Node(2); n.NeverExpires || !n.Expiry.Equal(noon.Add(90*24*time.Hour)) {
		t.Errorf("it ends at %s", n.Expiry)
	}
}
