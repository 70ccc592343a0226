package api

import (
	"encoding/json"
	"fmt"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// rows calls an operation that lists and returns the rows and the next page.
func (w *world) rows(call string) (rows []any, next string) {
	w.Helper()
	status, body := w.call("GET", Prefix+call, "")
	var v map[string]any
	w.must(json.Unmarshal([]byte(body), &v))
	if status != 200 {
		w.Fatalf("%s: %d %s", call, status, body)
	}
	for k, x := range v {
		if l, ok := x.([]any); ok {
			rows = l
		} else if k == "nextPage" {
			next = x.(string)
		}
	}
	return rows, next
}

// Every list of a whole world is the same by pages as at once, and tells nothing of pages if nobody asks.
func TestListsHavePages(t *testing.T) {
	w, ids := newWholeWorld(t)
	for i := range 3 {
		w.user(fmt.Sprintf("user%d", i))
		w.call("POST", Prefix+"/preauthkey", `{"user":"junyao"}`)
		w.apiKey(0)
		for _, call := range []struct{ path, body string }{
			{"/oauthclient", `{"scopes": ["auth_keys"], "tags": ["tag:ci"]}`}, {"/webhook", `{"url": "` + ids["receiver"] + `", "events": ["nodeCreated"]}`},
			{"/dns/records", `{"name": "printer.example.com", "value": "100.64.0.9"}`},
		} {
			if status, answer := w.call("POST", Prefix+call.path, call.body); status != 200 {
				t.Fatal(call, answer)
			}
		}
	}
	for i := range 3 {
		w.setPolicy(fmt.Sprintf(`{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:%d"]}]}`, 100+i))
		if status, answer := w.call("PUT", fmt.Sprintf("%s/service/web%d", Prefix, i), `{"ports": ["tcp:443"]}`); status != 200 {
			t.Fatal(answer)
		}
	}
	lists := 0
	for _, o := range w.ops() {
		if !slices.ContainsFunc(paramsOf(o.in), func(p param) bool { return p.name == "limit" && o.noun() != "audit" }) {
			continue
		}
		lists++
		all, next := w.rows(o.path)
		if next != "" {
			t.Errorf("%s tells of a page that nobody asked for", o.path)
		}
		if len(all) < 3 && o.path != "/admin" && o.path != "/login" {
			t.Errorf("%s: %d rows are too few for this test", o.path, len(all))
		}
		var paged []any
		for query, pages := "limit=1", 0; ; pages++ {
			rows, next := w.rows(o.path + "?" + query)
			paged = append(paged, rows...)
			if next == "" {
				break
			}
			if len(rows) != 1 || pages > len(all) {
				t.Fatalf("%s?%s: %d rows, and there is more", o.path, query, len(rows))
			}
			query = "limit=1&after=" + url.QueryEscape(next)
		}
		if !reflect.DeepEqual(paged, all) && len(paged)+len(all) > 0 {
			t.Errorf("%s by pages:\n%v\nat once:\n%v", o.path, paged, all)
		}
		if rows, next := w.rows(o.path + "?limit=1000"); len(rows) != len(all) || next != "" {
			t.Errorf("%s?limit=1000: %d rows of %d, next %q", o.path, len(rows), len(all), next)
		}
		for _, bad := range []string{"limit=0", "limit=1001", "limit=x", "after=%21%21"} {
			if status, body := w.call("GET", Prefix+o.path+"?"+bad, ""); status != 400 {
				t.Errorf("%s?%s: %d %s", o.path, bad, status, body)
			}
		}
	}
	if lists < 11 {
		t.Errorf("%d lists", lists)
	}
	// The audit log has its own: before and after.
	if rows, _ := w.rows("/audit?limit=2"); len(rows) != 2 {
		t.Errorf("%d entries", len(rows))
	}
}

// A row that goes while somebody turns pages shifts nothing.
func TestPagesWhileRowsGo(t *testing.T) {
	w := newWorld(t)
	u := w.user("junyao")
	for i := range 7 {
		w.node(u, fmt.Sprintf("node%d", i))
	}
	var names []string
	query := "limit=2"
	for {
		rows, next := w.rows("/node?" + query)
		for _, r := range rows {
			names = append(names, at(r, "givenName").(string))
		}
		if next == "" {
			break
		}
		last := at(rows[len(rows)-1], "id").(string)
		w.must(w.client.DeleteNode(w.ctx(), Ref(last))) // the very one that the cursor stands at
		query = "limit=2&after=" + next
	}
	if got := strings.Join(names, " "); got != "node0 node1 node2 node3 node4 node5 node6" {
		t.Error(got)
	}
}

// What filters choose, by the names of the rows.
func TestFilters(t *testing.T) {
	w := seed(t)
	w.online(1)
	w.must(w.st.Update(w.ctx(), "test", func(tx *state.Tx) error {
		n := tx.Node(2).Clone()
		n.Tags, n.User, n.Ephemeral = []string{"tag:ci", "tag:db"}, 0, true
		n.ApprovedRoutes = prefixes("10.8.0.0/16", "10.9.0.0/16")
		if err := tx.PutNode(n); err != nil {
			return err
		}
		n = tx.Node(3).Clone()
		n.Expiry = noon.Add(-1)
		h := *n.Hostinfo
		h.OS = "macOS"
		n.Hostinfo = &h
		return tx.PutNode(n)
	}))
	w.user("waiting")
	w.must(w.st.Update(w.ctx(), "test", func(tx *state.Tx) error {
		u := *tx.UserByName("waiting")
		u.Status, u.Role = tailnet.UserWaiting, tailnet.RoleAuditor
		return tx.PutUser(&u)
	}))
	key := func(body string) string {
		_, answer := w.call("POST", Prefix+"/preauthkey", body)
		var v PreAuthKeyAnswer
		w.must(json.Unmarshal([]byte(answer), &v))
		return v.PreAuthKey.ID.String()
	}
	key(`{"user":"junyao"}`)
	gone := key(`{"user":"anna@example.org","reusable":true}`)
	w.call("POST", Prefix+"/preauthkey/expire", `{"id":"`+gone+`"}`)
	key(`{"aclTags":["tag:ci"]}`)
	for _, tt := range []struct{ call, name, want string }{
		{"/node", "givenName", "junyao homeds vm"},
		{"/node?tag=tag:ci", "givenName", "homeds"},
		{"/node?tag=db&tag=tag:other", "givenName", "homeds"},
		{"/node?tag=tag:other", "givenName", ""},
		{"/node?online=true", "givenName", "junyao"},
		{"/node?online=false", "givenName", "homeds vm"},
		{"/node?expired=true", "givenName", "vm"},
		{"/node?status=expired", "givenName", "vm"},
		{"/node?status=active", "givenName", "junyao homeds"},
		{"/node?ephemeral=true", "givenName", "homeds"},
		{"/node?os=LINUX", "givenName", "junyao homeds"},
		{"/node?os=macos", "givenName", "vm"},
		{"/node?name=oMe", "givenName", "homeds"},
		{"/node?name=DS&os=linux&online=false", "givenName", "homeds"},
		{"/node?user=tagged-devices", "givenName", "homeds"},
		{"/node?user=anna@example.org&expired=false", "givenName", ""},
		{"/routes", "prefix", "10.8.0.0/16 10.9.0.0/16 192.168.199.0/24 0.0.0.0/0 ::/0"},
		{"/routes?node=homeds&enabled=true", "prefix", "10.8.0.0/16 10.9.0.0/16"},
		{"/routes?advertised=false", "prefix", "10.9.0.0/16"},
		{"/routes?exit=true", "prefix", "0.0.0.0/0 ::/0"},
		{"/routes?exit=false&enabled=false", "prefix", "192.168.199.0/24"},
		{"/routes?prefix=10.8.0.0/16", "nodeName", "homeds"},
		{"/routes?prefix=10.8.3.4", "prefix", "10.8.0.0/16 0.0.0.0/0"},
		{"/routes?prefix=10.0.0.0/8", "prefix", ""},
		{"/preauthkey?state=revoked", "id", gone},
		{"/preauthkey?state=usable&user=junyao", "id", "1"},
		{"/preauthkey?tag=ci", "id", "3"},
		{"/user?status=needs-approval", "name", "waiting"},
		{"/user?role=auditor", "name", "waiting"},
		{"/user?role=member", "name", "junyao anna@example.org"},
		{"/user?email=", "name", "junyao anna@example.org waiting"},
	} {
		rows, _ := w.rows(tt.call)
		var names []string
		for _, r := range rows {
			names = append(names, at(r, tt.name).(string))
		}
		if got := strings.Join(names, " "); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.call, got, tt.want)
		}
	}
	for call, want := range map[string]string{
		"/node?tagg=tag:ci":   `the parameter "tagg" is not known: use user, tag, online`,
		"/node?online=yes":    `online="yes" is neither true nor false`,
		"/node?status=asleep": `status="asleep" is none of active`,
		"/node?tag=tag:A":     `is not a tag`,
		"/routes?prefix=home": `prefix="home" is neither a prefix`,
		"/health?x=1":         "there are none here",
	} {
		if status, body := w.call("GET", Prefix+call, ""); status != 400 || !strings.Contains(strings.ReplaceAll(body, `\"`, `"`), want) {
			t.Errorf("%s: %d %s, want %s", call, status, body, want)
		}
	}
}
