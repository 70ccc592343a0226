package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os/user"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/skein-vpn/skein/policy"
	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// officePolicy lets junyao into the nodes of anna by ssh, and into a network behind homeds.
const officePolicy = `// who reaches what
{
	"groups": {"group:admins": ["junyao@"]},
	"acls": [
		{"action": "accept", "src": ["group:admins"], "dst": ["anna@example.org:22"]}, // help
		{"action": "accept", "src": ["anna@example.org"], "dst": ["10.8.0.0/16:80,443"], "proto": "tcp"},
	],
	"tests": [
		{"src": "junyao@", "accept": ["anna@example.org:22"]},
	],
}
`

// failingPolicy asserts what it does not allow.
const failingPolicy = `{
	"acls": [{"action": "accept", "src": ["junyao@"], "dst": ["anna@example.org:22"]}],
	"tests": [
		{"src": "junyao@", "accept": ["anna@example.org:22"]},
		{"src": "junyao@", "accept": ["anna@example.org:80"]},
	],
}`

// me is whom the server sees at the other end of its socket.
func me(t testing.TB) string {
	t.Helper()
	u, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	return u.Username
}

func (w *world) setPolicy(text string) *SetPolicyAnswer {
	w.Helper()
	a, err := w.client.SetPolicy(w.ctx(), SetPolicyRequest{Text: text, Changes: true})
	if err != nil {
		w.Fatal(err)
	}
	return a
}

func texts(changes []PolicyChange) string {
	var out []string
	for _, ch := range changes {
		out = append(out, ch.Text)
	}
	return strings.Join(out, "\n")
}

func TestPolicyLife(t *testing.T) {
	w := seed(t)
	if _, err := w.client.EnableRoutes(w.ctx(), RoutesRequest{Node: "homeds", Routes: []string{"10.8.0.0/16"}}); err != nil {
		t.Fatal(err)
	}
	p, err := w.client.Policy(w.ctx())
	if err != nil || p.Text != "" || p.Version != 0 || p.UpdatedAt != nil || !p.InForce || p.Source != FromDatabase || len(p.ETag) != 64 {
		t.Fatalf("a new tailnet has the policy %+v, %v", p, err)
	}

	// What it would do, before it is done.
	d, err := w.client.DiffPolicy(w.ctx(), PolicyRequest{Text: officePolicy})
	if err != nil || len(d.Changes) == 0 || slices.ContainsFunc(d.Changes, func(c PolicyChange) bool { return c.Opens }) || d.Version != 0 || len(d.Faults) != 0 {
		t.Fatalf("diff to no policy: %+v, %v", d, err)
	}
	if sn := w.st.Snapshot(); sn.Text != nil || sn.Policy.Policy() != nil {
		t.Fatal("diff has set the policy")
	}

	set := w.setPolicy(officePolicy)
	if set.Text != officePolicy || set.Version != 1 || !set.Changed || !set.InForce || set.Author != me(t) || !set.UpdatedAt.Equal(noon) || texts(set.Changes) != texts(d.Changes) {
		t.Fatalf("set: %+v", set)
	}
	if p, err = w.client.Policy(w.ctx()); err != nil || *p.UpdatedAt != noon || p.ETag != set.ETag || p.Text != officePolicy {
		t.Fatalf("get: %+v, %v", p, err)
	}

	// The same again is no new version.
	if again := w.setPolicy(officePolicy); again.Changed || again.Version != 1 || len(again.Changes) != 0 {
		t.Errorf("set again: %+v", again)
	}

	more := strings.Replace(officePolicy, ":22\"]}, // help", ":22,8080\"]}, // help", 1)
	a, err := w.client.SetPolicy(w.ctx(), SetPolicyRequest{Text: more, Author: "anna", Comment: "the proxy", IfMatch: "1", Changes: true})
	if err != nil || a.Version != 2 || a.Author != "anna (by "+me(t)+")" || a.Comment != "the proxy" || texts(a.Changes) != "opens: junyao → anna@example.org: port 8080" && !strings.Contains(texts(a.Changes), "8080") {
		t.Fatalf("set: %+v, %v", a, err)
	}

	hist, err := w.client.PolicyHistory(w.ctx(), 0)
	if err != nil || len(hist) != 2 || hist[0].Version != 2 || !hist[0].InForce || hist[1].InForce || hist[1].Bytes != len(officePolicy) || hist[0].Comment != "the proxy" {
		t.Errorf("history: %+v, %v", hist, err)
	}
	if hist, err := w.client.PolicyHistory(w.ctx(), 1); err != nil || len(hist) != 1 {
		t.Errorf("short history: %+v, %v", hist, err)
	}
	if v, err := w.client.PolicyVersion(w.ctx(), 1); err != nil || v.Text != officePolicy || v.InForce {
		t.Errorf("version 1: %+v, %v", v, err)
	}

	if d, err := w.client.DiffPolicy(w.ctx(), PolicyRequest{Version: 1}); err != nil || !strings.Contains(texts(d.Changes), "closes") || d.Version != 2 {
		t.Errorf("diff to version 1: %+v, %v", d, err)
	}
	back, err := w.client.RollbackPolicy(w.ctx(), RollbackPolicyRequest{Version: 1, Changes: true})
	if err != nil || back.Version != 3 || back.Text != officePolicy || back.Comment != "rollback to version 1" || !strings.Contains(texts(back.Changes), "closes") {
		t.Errorf("rollback: %+v, %v", back, err)
	}
	back, err = w.client.RollbackPolicy(w.ctx(), RollbackPolicyRequest{Version: 2, Comment: "as it was", IfMatch: Ref(back.ETag)})
	if err != nil || back.Version != 4 || back.Text != more || back.Comment != "rollback to version 2: as it was" || len(back.Changes) != 0 {
		t.Errorf("rollback: %+v, %v", back, err)
	}

	// None must be asked for.
	if _, err := w.client.SetPolicy(w.ctx(), SetPolicyRequest{}); tailnet.CodeOf(err) != tailnet.Invalid || !strings.Contains(err.Error(), `"none": true`) {
		t.Errorf("an empty text: %v", err)
	}
	a, err = w.client.SetPolicy(w.ctx(), SetPolicyRequest{None: true, Changes: true})
	if err != nil || a.Version != 5 || a.Text != "" || len(a.Changes) == 0 || w.st.Snapshot().Policy.Policy() != nil {
		t.Errorf("none: %+v, %v", a, err)
	}
	if a, err := w.client.SetPolicy(w.ctx(), SetPolicyRequest{None: true}); err != nil || a.Changed {
		t.Errorf("none again: %+v, %v", a, err)
	}
	if back, err := w.client.RollbackPolicy(w.ctx(), RollbackPolicyRequest{Version: 4}); err != nil || back.Version != 6 {
		t.Errorf("rollback: %+v, %v", back, err)
	}
	if back, err := w.client.RollbackPolicy(w.ctx(), RollbackPolicyRequest{Version: 5}); err != nil || back.Version != 7 || back.Text != "" {
		t.Errorf("rollback to none: %+v, %v", back, err)
	}
}

// headscale's tools send and read no more than this.
func TestPolicyForHeadscaleTools(t *testing.T) {
	w := seed(t)
	if status, body := w.call("GET", "/api/v1/policy", ""); status != 200 || !strings.HasPrefix(body, `{"policy":"","updatedAt":null,`) {
		t.Errorf("%d %s", status, body)
	}
	if status, body := w.call("PUT", "/api/v1/policy", `{"policy":"{\"acls\":[]}"}`); status != 200 || !strings.HasPrefix(body, `{"policy":"{\"acls\":[]}","updatedAt":"2022-09-15T12:00:00Z",`) {
		t.Errorf("%d %s", status, body)
	}
	if a := w.st.Snapshot().Text.Author; a != "local" {
		t.Errorf("without a unix socket the author is %q", a)
	}
}

// Every call here must fail as it says, and must change nothing.
func TestPolicyBadInput(t *testing.T) {
	w := seed(t)
	w.setPolicy(officePolicy)
	w.setPolicy(officePolicy + "\n")
	quoted := func(text string) string {
		b, err := json.Marshal(text)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	put := func(text string) string { return `{"policy":` + quoted(text) + `}` }
	tests := []struct {
		call, body string
		status     int
		want       string // part of the message
		faults     int
	}{
		{"PUT /api/v1/policy", "", 400, "the policy is empty", 0},
		{"PUT /api/v1/policy", `{"policy":" \n"}`, 400, "the policy is empty", 0},
		{"PUT /api/v1/policy", `{"policy":{"acls":[]}}`, 400, `"policy" at byte 11 is a JSON object; a string is asked for`, 0},
		{"PUT /api/v1/policy", `{"policy":`, 400, "not valid JSON at byte", 0},
		{"PUT /api/v1/policy", put("{"), 400, "line 1, column 2", 1},
		{"PUT /api/v1/policy", put("{\n\t\"acl\": []}"), 400, "line 2, column 2", 1},
		{"PUT /api/v1/policy", put("{\"acls\": [\n{\"action\": \"accept\", \"src\": [\"nobody\"], \"dst\": [\"x:99999\"]}]}"), 400, "line 2", 2},
		{"PUT /api/v1/policy", put(failingPolicy), 400, "a test of the policy fails: line 5: tests[1]: ", 1},
		{"PUT /api/v1/policy", `{"none":true,"policy":"{}"}`, 400, "contradict", 0},
		{"PUT /api/v1/policy", `{"policy":"{}","ifMatch":"1"}`, 412, "it is version 2 by now, set by " + me(t) + " at 2022-09-15T12:00:00Z, not 1", 0},
		{"PUT /api/v1/policy", `{"policy":"{}","ifMatch":7}`, 412, "not 7", 0},
		{"PUT /api/v1/policy", `{"policy":"{}","ifMatch":"` + strings.Repeat("ab", 32) + `"}`, 412, "not the text with that etag", 0},
		{"PUT /api/v1/policy", `{"policy":"{}","ifMatch":"soon"}`, 400, `"soon" is neither the version of a policy, such as 3, nor its etag`, 0},
		{"PUT /api/v1/policy", `{"policy":"{}","ifMatch":true}`, 400, "neither an id nor a name", 0},
		{"PUT /api/v1/policy", `{"policy":"{}","comment":"a\u0007"}`, 400, "the comment", 0},
		{"PUT /api/v1/policy", `{"policy":"{}","author":"` + strings.Repeat("x", 300) + `"}`, 400, "the author is longer than 256 bytes", 0},
		{"PUT /api/v1/policy", "{\"policy\":\"{} // \xff\"}", 400, "not valid UTF-8 at byte 18 (0xff)", 0},
		{"PUT /api/v1/policy", put("{}" + strings.Repeat(" ", 11<<20)), 400, "the limit is 10485760", 1},
		{"PUT /api/v1/policy", put(strings.Repeat("\n", 11<<20)), 413, "larger than 22020096 bytes", 0},
		{"PUT /api/v1/policy", put(strings.Repeat("[", 100000)), 400, "line 1", 1},
		{"POST /api/v1/policy", "", 405, "only GET, PUT", 0},

		{"POST /api/v1/policy/check", "", 400, "the policy is empty", 0},
		{"POST /api/v1/policy/check", `{"version":9}`, 404, "the policy has no version 9", 0},
		{"POST /api/v1/policy/check", `{"version":1,"none":true}`, 400, "contradict", 0},
		{"POST /api/v1/policy/diff", `{"version":"x"}`, 400, "is not an id", 0},
		{"POST /api/v1/policy/diff", put("{"), 400, "line 1, column 2", 1},
		{"GET /api/v1/policy/history?limit=0", "", 400, "is not a number from 1 to 1000", 0},
		{"GET /api/v1/policy/history?limit=1001", "", 400, "is not a number from 1 to 1000", 0},
		{"GET /api/v1/policy/version/9", "", 404, "the policy has no version 9", 0},
		{"GET /api/v1/policy/version/x", "", 400, `"x" is not a version`, 0},
		{"POST /api/v1/policy/rollback", "", 400, "no version is given", 0},
		{"POST /api/v1/policy/rollback", `{"version":"9"}`, 404, "the policy has no version 9", 0},
		{"POST /api/v1/policy/rollback", `{"version":-1}`, 400, "", 0},
		{"POST /api/v1/policy/rollback", `{"version":"1","ifMatch":"1"}`, 412, "it is version 2 by now", 0},

		{"GET /api/v1/policy/explain", "", 400, "no source is given", 0},
		{"GET /api/v1/policy/explain?src=1", "", 400, "no destination is given", 0},
		{"GET /api/v1/policy/explain?src=nobody&dst=1", "", 404, `there is no node, user or tag "nobody"`, 0},
		{"GET /api/v1/policy/explain?src=1&dst=nobody:22", "", 404, `there is no node, user or tag "nobody"`, 0},
		{"GET /api/v1/policy/explain?src=group:nobody&dst=1", "", 400, `the source: group not found: "group:nobody"`, 0},
		{"GET /api/v1/policy/explain?src=1&dst=autogroup:self", "", 400, `the destination: "autogroup:self" is not a set of nodes`, 0},
		{"GET /api/v1/policy/explain?src=autogroup:tagged&dst=1", "", 404, `there are no nodes in "autogroup:tagged"`, 0},
		{"GET /api/v1/policy/explain?src=tag:x&dst=1", "", 404, `no node has the tag "tag:x"`, 0},
		{"GET /api/v1/policy/explain?src=1&dst=vm:ssh", "", 400, `"ssh" is not a port`, 0},
		{"GET /api/v1/policy/explain?src=1&dst=vm:65536", "", 400, "is not a port", 0},
		{"GET /api/v1/policy/explain?src=1&dst=vm:0", "", 400, "is not a port", 0},
		{"GET /api/v1/policy/explain?src=1&dst=vm:22&port=23", "", 400, "given twice, as 22 and 23", 0},
		{"GET /api/v1/policy/explain?src=1&dst=vm&port=-1", "", 400, `port="-1" is not a whole number`, 0},
		{"POST /api/v1/policy/explain", `{"src":1,"dst":"vm","port":70000}`, 400, "is not a port", 0},
		{"GET /api/v1/policy/explain?src=1&dst=vm:22&proto=tcpp", "", 400, "is not a protocol", 0},
		{"GET /api/v1/policy/explain?src=1&dst=vm:22&proto=256", "", 400, "is not a protocol", 0},
		{"GET /api/v1/policy/explain?src=1&dst=vm&proto=tcp", "", 400, "tcp needs a port: write vm:22", 0},
		{"GET /api/v1/policy/explain?src=1&dst=fe80::1%25eth0", "", 400, "has a zone", 0},

		{"POST /api/v1/user/junyao/role", "", 400, `"" is not a role: use owner, admin, network-admin`, 0},
		{"POST /api/v1/user/junyao/role", `{"role":"king"}`, 400, `"king" is not a role`, 0},
		{"POST /api/v1/user/nobody/role", `{"role":"admin"}`, 404, "there is no namespace", 0},
	}
	before := w.st.Snapshot()
	for _, tt := range tests {
		method, path, _ := strings.Cut(tt.call, " ")
		status, body := w.call(method, path, tt.body)
		var p Problem
		if err := json.Unmarshal([]byte(body), &p); err != nil {
			t.Errorf("%s %.60s: the answer is not JSON: %.300s", tt.call, tt.body, body)
			continue
		}
		if tt.want == "" && status >= 400 && status < 500 {
			continue
		}
		if status != tt.status || p.Status != tt.status || !strings.Contains(p.Message, tt.want) || len(p.Faults) != tt.faults {
			t.Errorf("%.80s %.60s: %d %+v, want %d %q", tt.call, tt.body, status, p, tt.status, tt.want)
		}
		if len(p.Message) > 700 {
			t.Errorf("%.80s %.60s: the message is %d bytes long", tt.call, tt.body, len(p.Message))
		}
	}
	if after := w.st.Snapshot(); after.Rev != before.Rev || after.Policy != before.Policy {
		t.Errorf("failed calls changed the tailnet: rev %d became %d", before.Rev, after.Rev)
	}
	if h, err := w.client.PolicyHistory(w.ctx(), 0); err != nil || len(h) != 2 {
		t.Errorf("failed calls made versions: %v, %v", h, err)
	}
	if w.log.Len() > 0 {
		t.Errorf("mistakes of callers are in the log:\n%s", w.log.String())
	}
}

func TestPolicyErrorsReachTheClient(t *testing.T) {
	w := seed(t)
	for text, want := range map[string]PolicyFault{
		"{\n  \"acl\": []}": {Line: 2, Column: 3},
		failingPolicy:       {Line: 5, Path: "tests[1]"},
		"{} // \xff":        {Line: 1, Column: 7},
	} {
		_, err := w.client.SetPolicy(w.ctx(), SetPolicyRequest{Text: text})
		var pe *PolicyError
		if !errors.As(err, &pe) || tailnet.CodeOf(err) != tailnet.Invalid || len(pe.Faults) != 1 || pe.Faults[0].Text == "" {
			t.Errorf("%q: %v", text, err)
			continue
		}
		got := pe.Faults[0]
		if got.Line != want.Line || got.Column != want.Column || want.Path != "" && got.Path != want.Path {
			t.Errorf("%q: %+v, want %+v", text, got, want)
		}
		c, err := w.client.CheckPolicy(w.ctx(), PolicyRequest{Text: text})
		if err != nil || c.Valid || len(c.Faults) != 1 || c.Faults[0] != got {
			t.Errorf("check of %q: %+v, %v", text, c, err)
		}
	}
	if c, err := w.client.CheckPolicy(w.ctx(), PolicyRequest{Text: officePolicy}); err != nil || !c.Valid || c.Faults == nil || c.Warnings == nil {
		t.Errorf("check: %+v, %v", c, err)
	}
	if d, err := w.client.DiffPolicy(w.ctx(), PolicyRequest{Text: failingPolicy}); err != nil || len(d.Faults) != 1 || len(d.Changes) == 0 {
		t.Errorf("diff to a policy whose test fails: %+v, %v", d, err)
	}
	if w.st.Snapshot().Rev != seed(t).st.Snapshot().Rev {
		t.Error("something was stored")
	}
}

func TestPolicyIfMatch(t *testing.T) {
	w := seed(t)
	put := func(header, text string) (int, http.Header) {
		t.Helper()
		b, _ := json.Marshal(SetPolicyRequest{Text: text})
		req := httptest.NewRequest("PUT", "/api/v1/policy", strings.NewReader(string(b)))
		if header != "" {
			req.Header.Set("If-Match", header)
		}
		rec := httptest.NewRecorder()
		w.handler.ServeHTTP(rec, req)
		return rec.Code, rec.Header()
	}
	if status, _ := put(`"1"`, "{}"); status != 412 {
		t.Errorf("nothing to replace: %d", status)
	}
	status, h := put(`"0"`, `{"acls":[]}`)
	if status != 200 || len(h.Get("ETag")) != 66 {
		t.Fatalf("first: %d %v", status, h)
	}
	for i, header := range []string{h.Get("ETag"), "*", `W/"2", ` + h.Get("ETag"), `"4"`, "5", ""} {
		if status, _ := put(header, fmt.Sprintf("{\"acls\":[]} // %d\n", i)); (status == 200) != (i != 2) {
			t.Errorf("%d: If-Match %s: %d", i, header, status)
		}
		if i == 2 {
			put("", "{\"acls\":[]} // 2\n")
		}
	}
	if etagOf(`{"acls": []}`) != etagOf(`{"acls":[]}`+"\n") || etagOf("{}") == etagOf("") {
		t.Error("an etag is about the text but for its formatting")
	}

	// Of many who replace the same version, one wins.
	p, err := w.client.Policy(w.ctx())
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	won, lost := 0, 0
	for i := range 16 {
		wg.Go(func() {
			_, err := w.client.SetPolicy(w.ctx(), SetPolicyRequest{Text: fmt.Sprintf("{} // %d\n", i), IfMatch: Ref(p.Version.String())})
			mu.Lock()
			defer mu.Unlock()
			switch tailnet.CodeOf(err) {
			case "":
				won++
			case tailnet.Conflict:
				lost++
			default:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won != 1 || lost != 15 {
		t.Errorf("%d won, %d lost", won, lost)
	}
	if v := w.st.Snapshot().Text.ID; ID(v) != p.Version+1 {
		t.Errorf("version %d, want %d", v, p.Version+1)
	}
}

// A policy that comes from a file can be looked at and not changed.
func TestPolicyFromFile(t *testing.T) {
	p, err := policy.Parse([]byte(officePolicy))
	if err != nil {
		t.Fatal(err)
	}
	w := newWorldWith(t, func(o *state.Options, a *Options) {
		o.PolicyFromFile, o.PolicyFile = true, p
		a.PolicyFile = "/etc/skein/policy.hujson"
	})
	if got, err := w.client.Policy(w.ctx()); err != nil || got.Text != officePolicy || got.Source != FromFile || !got.InForce || got.Version != 0 {
		t.Errorf("%+v, %v", got, err)
	}
	for _, req := range []SetPolicyRequest{{Text: "{}"}, {Text: officePolicy}, {None: true}, {Text: "{}", IfMatch: "7"}} {
		if _, err := w.client.SetPolicy(w.ctx(), req); tailnet.CodeOf(err) != tailnet.Conflict || !strings.Contains(err.Error(), "policy.path") {
			t.Errorf("%.20q: %v", req.Text, err)
		}
	}
	if c, err := w.client.CheckPolicy(w.ctx(), PolicyRequest{Text: "{}"}); err != nil || !c.Valid {
		t.Errorf("check: %+v, %v", c, err)
	}
	if d, err := w.client.DiffPolicy(w.ctx(), PolicyRequest{Text: "{}"}); err != nil || d.Version != 0 {
		t.Errorf("diff: %+v, %v", d, err)
	}
	if sn := w.st.Snapshot(); string(sn.Policy.Policy().Text()) != officePolicy || sn.Text != nil {
		t.Error("the policy has changed")
	}
}

func TestExplain(t *testing.T) {
	w := seed(t)
	if _, err := w.client.EnableRoutes(w.ctx(), RoutesRequest{Node: "homeds", Routes: []string{"10.8.0.0/16"}}); err != nil {
		t.Fatal(err)
	}
	anna := w.user("server")
	w.node(anna, "db")
	if _, err := w.client.TagNode(w.ctx(), "db", []string{"tag:db"}); err != nil {
		t.Fatal(err)
	}
	for _, id := range []tailnet.NodeID{1, 2, 3, 4} {
		w.online(id)
	}
	ask := func(src, dst, proto string) string {
		t.Helper()
		a, err := w.client.ExplainPolicy(w.ctx(), ExplainRequest{Src: Ref(src), Dst: Ref(dst), Proto: Ref(proto)})
		if err != nil {
			return err.Error()
		}
		var out []string
		for _, x := range a.Explanations {
			s := "no"
			if x.Allowed {
				s = "yes"
			}
			s += " " + x.Src.Name + "→" + x.Dst.Name + strings.Join(x.Dst.Addresses, "+")
			for _, r := range x.Rules {
				s += "; " + r.Text
			}
			for _, r := range x.Near {
				s += "; near " + r.Text
			}
			for _, n := range x.Through {
				s += "; through " + n.Name
			}
			for _, n := range append([]string{x.Why}, x.Notes...) {
				if n != "" {
					s += "; " + n
				}
			}
			out = append(out, s)
		}
		return strings.Join(out, "\n")
	}
	check := func(src, dst, proto, want string) {
		t.Helper()
		if got := ask(src, dst, proto); got != want {
			t.Errorf("%s → %s %s:\n got %s\nwant %s", src, dst, proto, got, want)
		}
	}

	// Without a policy.
	const vm, db = "vm100.64.0.3+fd7a:115c:a1e0::3", "db100.64.0.4+fd7a:115c:a1e0::4"
	none := "no policy is set, so that everybody reaches everybody"
	check("junyao", "vm:22", "", "yes junyao→"+vm+"; "+none)
	check("junyao", "10.8.1.1:22", "", "yes junyao→10.8.1.1; "+none+"; through homeds")
	check("junyao", "10.9.1.1", "", "no junyao→10.9.1.1; no node has the address 10.9.1.1 and no approved route leads there")
	check("junyao", "junyao", "", "yes junyao→junyao100.64.0.1+fd7a:115c:a1e0::1; a node reaches itself without the network")

	w.setPolicy(strings.Replace(officePolicy, `"acls"`, `"tagOwners": {"tag:db": []}, "acls"`, 1))
	help := "acls[0] in line 5 opens port 22"
	net := "acls[1] in line 6 opens tcp 80, 443"
	noRule := "no rule has this source and this destination"
	check("junyao", "vm:22", "", "yes junyao→"+vm+"; "+help)
	check("1", "3:22", "tcp", "yes junyao→"+vm+"; "+help)
	check("100.64.0.1", "[fd7a:115c:a1e0::3]:22", "17", "yes junyao→vmfd7a:115c:a1e0::3; "+help)
	check("junyao.skein.internal", "fd7a:115c:a1e0::3", "", "yes junyao→vmfd7a:115c:a1e0::3; "+help)
	check("junyao", "vm", "", "yes junyao→"+vm+"; "+help)
	check("junyao", "vm:23", "", "no junyao→"+vm+"; near "+help+"; rules allow these two other ports or protocols only")
	check("vm", "junyao:22", "", "no vm→junyao100.64.0.1+fd7a:115c:a1e0::1; "+noRule)
	check("vm", "10.8.1.1:443", "tcp", "yes vm→10.8.1.1; "+net+"; through homeds")
	check("vm", "10.8.1.1:443", "udp", "no vm→10.8.1.1; near "+net+"; through homeds; rules allow these two other ports or protocols only")
	check("vm", "192.168.199.5:443", "", "no vm→192.168.199.5; no node has the address 192.168.199.5 and no approved route leads there")
	check("junyao", "tag:db:5432", "", "no junyao→"+db+"; "+noRule)

	// A user is all its nodes, and so is a group.
	check("group:admins", "autogroup:member:22", "", ask("junyao", "homeds:22", "")+"\n"+ask("junyao", "vm:22", "")+"\n"+ask("homeds", "junyao:22", "")+"\n"+ask("homeds", "vm:22", ""))
	check("user:junyao", "anna@example.org:22", "", "yes junyao→"+vm+"; "+help+"\nyes homeds→"+vm+"; "+help)
	check("user:junyao", "homeds", "", "no junyao→homeds100.64.0.2+fd7a:115c:a1e0::2; "+noRule)
	check("user:server", "vm", "", "the user server has no nodes")

	if err := w.st.Update(w.ctx(), "test", func(tx *state.Tx) error { tx.SetOnline(3, false); return nil }); err != nil {
		t.Fatal(err)
	}
	if _, err := w.client.ExpireNode(w.ctx(), "junyao", ExpireNodeRequest{}); err != nil {
		t.Fatal(err)
	}
	check("junyao", "vm:22", "", "yes junyao→"+vm+"; "+help+"; the key of junyao (1) has expired: it takes part again once it has logged in; vm (3) is offline now")

	a, err := w.client.ExplainPolicy(w.ctx(), ExplainRequest{Src: "1", Dst: "vm", Port: 22})
	if err != nil || !a.Allowed || a.Version != 1 || a.Explanations[0].Rules[0].Source != `{"action": "accept", "src": ["group:admins"], "dst": ["anna@example.org:22"]}, // help` {
		t.Errorf("%+v, %v", a, err)
	}
	if status, body := w.call("GET", "/api/v1/policy/explain?src=1&dst=vm&port=22", ""); status != 200 || !strings.Contains(body, `"rule":"acls[0]","line":5`) {
		t.Errorf("%d %s", status, body)
	}
}

func TestSplitPort(t *testing.T) {
	for in, want := range map[string]string{
		"vm": "vm 0", "vm:22": "vm 22", "tag:a": "tag:a 0", "tag:a:22": "tag:a 22", "1:65535": "1 65535", "100.64.0.1": "100.64.0.1 0", "100.64.0.1:1": "100.64.0.1 1",
		"fd7a::1": "fd7a::1 0", "[fd7a::1]": "fd7a::1 0", "[fd7a::1]:22": "fd7a::1 22", "user:a@b:7": "user:a@b 7", "": " 0", "autogroup:internet": "autogroup:internet 0",
	} {
		name, port, err := splitPort(in)
		if got := fmt.Sprint(name, " ", port); err != nil || got != want {
			t.Errorf("%q: %q, %v; want %q", in, got, err, want)
		}
	}
	for _, in := range []string{":", "vm:", "vm:x", "vm:-1", "100.64.0.1:0", "[fd7a::1]:70000", "a:b:c"} {
		if name, port, err := splitPort(in); err == nil {
			t.Errorf("%q: %q %d", in, name, port)
		}
	}
}

func TestRoles(t *testing.T) {
	w := seed(t)
	for _, role := range append(slices.Clone(Roles), "admin", "admin") {
		u, err := w.client.SetUserRole(w.ctx(), "junyao", role)
		if err != nil || u.Role != role || u.Name != "junyao" {
			t.Errorf("%s: %+v, %v", role, u, err)
		}
	}
	// A policy knows at once.
	w.setPolicy(`{"acls": [{"action": "accept", "src": ["autogroup:admin"], "dst": ["*:22"]}]}`)
	allowed := func() bool {
		a, err := w.client.ExplainPolicy(w.ctx(), ExplainRequest{Src: "1", Dst: "vm:22"})
		return err == nil && a.Allowed
	}
	if !allowed() {
		t.Error("an administrator is not one to the policy")
	}
	if _, err := w.client.SetUserRole(w.ctx(), "1", "member"); err != nil || allowed() {
		t.Errorf("a member is still an administrator (%v)", err)
	}
}

// Sessions of SSH and capabilities are told beside the network, with what a session needs and is not there.
func TestExplainBeside(t *testing.T) {
	w := seed(t)
	for _, id := range []tailnet.NodeID{1, 3} {
		w.online(id)
	}
	w.setPolicy(`{
	"acls": [{"action": "accept", "src": ["anna@example.org"], "dst": ["junyao@:22"]}],
	"grants": [{"src": ["junyao@"], "dst": ["anna@example.org"], "app": {"example.com/cap/x": [{"role": "admin"}], "tailscale.com/cap/drive": [{"shares": ["*"], "access": "ro"}]}}],
	"ssh": [
		{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self"], "users": ["autogroup:nonroot"]},
		{"action": "check", "checkPeriod": "90m", "src": ["junyao@"], "dst": ["junyao@"], "users": ["root", "pi"]},
	],
}`)
	ask := func(src, dst string) *Explanation {
		t.Helper()
		a, err := w.client.ExplainPolicy(w.ctx(), ExplainRequest{Src: Ref(src), Dst: Ref(dst)})
		if err != nil || len(a.Explanations) != 1 {
			t.Fatalf("%+v, %v", a, err)
		}
		return a.Explanations[0]
	}
	x := ask("junyao", "vm")
	if len(x.Capabilities) != 2 || x.Allowed || len(x.SSH) != 0 {
		t.Fatalf("%+v", x)
	}
	if c := x.Capabilities[0]; c.Text != `grants[0] in line 3 grants example.com/cap/x {"role":"admin"}` || c.Name != "example.com/cap/x" || string(c.Values[0]) != `{"role":"admin"}` || c.Line != 3 || !strings.HasPrefix(c.Source, `"grants": [`) {
		t.Errorf("%+v", c)
	}
	if x := ask("vm", "junyao"); len(x.Capabilities) != 0 || len(x.SSH) != 0 {
		t.Errorf("the other way: %+v", x)
	}
	x = ask("junyao", "homeds")
	if len(x.SSH) != 2 {
		t.Fatalf("%+v", x)
	}
	if r := x.SSH[0]; r.Text != "ssh[1] in line 6 lets in as root, pi, after a check that holds for 1h30m" || r.Action != "check" || r.CheckPeriod != "1h30m" || r.Line != 6 {
		t.Errorf("%+v", r)
	}
	if r := x.SSH[1]; r.Text != "ssh[0] in line 5 lets in as any user but root" || r.Action != "accept" || r.CheckPeriod != "" || !slices.Equal(r.Users, []string{"any user but root"}) {
		t.Errorf("%+v", r)
	}
	notes := strings.Join(x.Notes, "; ")
	if !strings.Contains(notes, "does not serve SSH sessions") || !strings.Contains(notes, "no rule of acls or grants opens tcp 22 between them") {
		t.Errorf("notes: %s", notes)
	}
	if x := ask("junyao", "homeds:80"); len(x.SSH) != 0 {
		t.Errorf("port 80: %+v", x.SSH)
	}
}

// A user that nobody is is a fault with its place, unless that is allowed; mail addresses of people who sign in by an
// identity provider are warnings.
func TestUnknownUsersInPolicy(t *testing.T) {
	w := seed(t)
	const text = "{\n\t\"groups\": {\"group:a\": [\"junyoa@\", \"new@example.org\"]},\n\t\"acls\": [{\"action\": \"accept\", \"src\": [\"group:a\"], \"dst\": [\"anna@example.org:22\"]}],\n}"
	_, err := w.client.SetPolicy(w.ctx(), SetPolicyRequest{Text: text})
	var pe *PolicyError
	if !errors.As(err, &pe) || len(pe.Faults) != 2 {
		t.Fatalf("set: %v", err)
	}
	if f := pe.Faults[0]; f != (PolicyFault{2, 25, `groups["group:a"][0]`, `no user is called "junyoa@"; did you mean "junyao@"?`}) {
		t.Errorf("%+v", f)
	}
	if f := pe.Faults[1]; f.Line != 2 || f.Column != 36 || !strings.Contains(f.Text, `no user is called "new@example.org"; create the user first, or allow unknown users`) {
		t.Errorf("%+v", f)
	}
	if sn := w.st.Snapshot(); sn.Text != nil {
		t.Fatal("it was set nevertheless")
	}
	if a, err := w.client.CheckPolicy(w.ctx(), PolicyRequest{Text: text}); err != nil || a.Valid || len(a.Faults) != 2 {
		t.Errorf("check: %+v, %v", a, err)
	}
	if d, err := w.client.DiffPolicy(w.ctx(), PolicyRequest{Text: text}); err != nil || len(d.Faults) != 2 || len(d.Changes) == 0 {
		t.Errorf("diff: %+v, %v", d, err)
	}
	a, err := w.client.CheckPolicy(w.ctx(), PolicyRequest{Text: text, AllowUnknownUsers: true})
	if err != nil || !a.Valid || len(a.Warnings) != 2 || a.Warnings[1] != (PolicyWarning{2, `no user is called "new@example.org"`}) {
		t.Errorf("check, allowed: %+v, %v", a, err)
	}
	set, err := w.client.SetPolicy(w.ctx(), SetPolicyRequest{Text: text, AllowUnknownUsers: true})
	if err != nil || set.Version != 1 || len(set.Warnings) != 2 {
		t.Errorf("set, allowed: %+v, %v", set, err)
	}
	// Setting what is in force already is no new chance to fail, and neither is going back to it.
	if again, err := w.client.SetPolicy(w.ctx(), SetPolicyRequest{Text: text}); err != nil || again.Changed {
		t.Errorf("again: %+v, %v", again, err)
	}
	w.setPolicy(`{"acls": []}`)
	if back, err := w.client.RollbackPolicy(w.ctx(), RollbackPolicyRequest{Version: 1}); err != nil || len(back.Warnings) != 2 {
		t.Errorf("rollback: %+v, %v", back, err)
	}

	idp := &server{Options: Options{SignIn: true}}
	for name, want := range map[string]bool{"new@example.org": true, "junyoa@": false} {
		if idp.tolerates(false)(name) != want || !idp.tolerates(true)(name) {
			t.Errorf("with an identity provider, %s may be unknown: %v", name, !want)
		}
	}
}

// Questions about policies do not wait for the writer, nor it for them.
func TestQuestionsDoNotWait(t *testing.T) {
	w := seed(t)
	w.setPolicy(officePolicy)
	begun, goOn := make(chan struct{}), make(chan struct{})
	done := make(chan error, 1)
	go func() {
		done <- w.st.Update(w.ctx(), "test", func(*state.Tx) error { close(begun); <-goOn; return nil })
	}()
	<-begun
	if a, err := w.client.CheckPolicy(w.ctx(), PolicyRequest{Text: officePolicy}); err != nil || !a.Valid {
		t.Errorf("check: %+v, %v", a, err)
	}
	if d, err := w.client.DiffPolicy(w.ctx(), PolicyRequest{Text: `{"acls": []}`}); err != nil || len(d.Changes) == 0 {
		t.Errorf("diff: %+v, %v", d, err)
	}
	if _, err := w.client.ExplainPolicy(w.ctx(), ExplainRequest{Src: "junyao", Dst: "vm"}); err != nil {
		t.Error(err)
	}
	close(goOn)
	if err := <-done; err != nil {
		t.Error(err)
	}
}
