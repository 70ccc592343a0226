package api

import (
	"encoding/json"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/types/key"

	"github.com/skein-vpn/skein/auth"
)

// What headscale's v1 answers have, as its API and Headplane's types tell. Ours may have more.
const (
	hsUser   = "id name createdAt displayName email providerId provider profilePicUrl"
	hsNode   = "id machineKey nodeKey discoKey ipAddresses name user lastSeen expiry preAuthKey createdAt registerMethod givenName online approvedRoutes availableRoutes subnetRoutes tags forcedTags validTags invalidTags"
	hsKey    = "user id key reusable ephemeral used expiration createdAt aclTags"
	hsAPIKey = "id prefix expiration createdAt lastSeen"
)

// All operations of headscale's v1, as Headplane and scripts call them. In "want", "a.b: x y" says that what stands under a.b, or the
// first there, has the keys x and y.
func TestHeadscalesOperations(t *testing.T) {
	w := seed(t)
	h := w.spec.tell(t, NewServer(Options{State: w.st, Auth: w.auth, Version: "1.2.3", Gate: NewGate(w.auth, nil, nil), Now: func() time.Time { return noon }}))
	secret := w.apiKey(0)
	ids := map[string]string{}
	w.setPolicy(`{"tagOwners": {"tag:ci": []}, "acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}],
		"ssh": [{"action": "check", "checkPeriod": "always", "src": ["junyao@"], "dst": ["autogroup:self"], "users": ["root"]}]}`)
	for _, name := range []string{"LOGIN1", "LOGIN2"} {
		out, err := w.auth.Register(w.ctx(), key.NewMachine().Public(), &tailcfg.RegisterRequest{
			Version: 142, NodeKey: key.NewNode().Public(), Hostinfo: &tailcfg.Hostinfo{Hostname: strings.ToLower(name), OS: "linux"},
		}, "192.0.2.9:1234")
		w.must(err)
		ids[name] = out.Login
	}
	for _, name := range []string{"CHECK1", "CHECK2"} {
		a, err := w.auth.SSH(w.ctx(), auth.SSHQuestion{Src: 1, Dst: 2, SSHUser: "root", LocalUser: "toor"})
		w.must(err)
		_, id, _ := strings.Cut(a.HoldAndDelegate, "check=")
		ids[name], _, _ = strings.Cut(id, "&")
	}
	tests := []struct {
		call, body string
		status     int
		want       string
		save       string // NAME a.b
	}{
		{"GET /user", "", 200, "users: " + hsUser, ""},
		{"GET /user?id=1", "", 200, "users: " + hsUser, ""},
		{"GET /user?name=junyao", "", 200, "users: " + hsUser, ""},
		{"POST /user", `{"name":"kid","email":"kid@example.org","displayName":"Kid","pictureUrl":"https://example.org/k.png"}`, 200, "user: " + hsUser, "KID user.id"},
		{"POST /user/KID/rename/child", "", 200, "user: " + hsUser, ""},
		{"DELETE /user/KID", "", 200, "", ""},

		{"POST /preauthkey", `{"user":"1","reusable":true,"ephemeral":false,"expiration":"2022-09-16T12:00:00.000Z"}`, 200, "preAuthKey: " + hsKey, "PAK preAuthKey.id"},
		{"POST /preauthkey", `{"ephemeral":true,"reusable":true,"expiration":null,"aclTags":["tag:ci"]}`, 200, "preAuthKey: " + hsKey, ""},
		{"GET /preauthkey", "", 200, "preAuthKeys: " + hsKey, ""},
		{"GET /preauthkey?user=1", "", 200, "preAuthKeys: " + hsKey, "SHOWN preAuthKeys.key"},
		{"POST /preauthkey/expire", `{"id":"PAK"}`, 200, "", ""},
		{"POST /preauthkey/expire", `{"user":"junyao","key":"SHOWN"}`, 200, "", ""},
		{"DELETE /preauthkey?id=PAK", "", 200, "", ""},

		{"POST /apikey", `{"expiration":"2022-12-31T23:59:00Z"}`, 200, ": apiKey", "TOKEN key.prefix"},
		{"GET /apikey", "", 200, "apiKeys: " + hsAPIKey, ""},
		{"POST /apikey/expire", `{"prefix":"TOKEN"}`, 200, "", ""},
		{"POST /apikey/expire", `{"id":"TOKEN"}`, 200, "", ""},
		{"DELETE /apikey/TOKEN?id=TOKEN", "", 200, "", ""},

		{"GET /node", "", 200, "nodes: " + hsNode, ""},
		{"GET /node?user=junyao", "", 200, "nodes: " + hsNode, ""},
		{"GET /node/2", "", 200, "node: " + hsNode, ""},
		{"POST /node/register?user=junyao&key=LOGIN1", `{"user":"junyao","key":"LOGIN1"}`, 200, "node: " + hsNode, "NODE node.id"},
		{"POST /node/2/approve_routes", `{"routes":["10.8.0.0/16"]}`, 200, "node: " + hsNode, ""},
		{"POST /node/2/approve_routes", `{"routes":[]}`, 200, "node: " + hsNode, ""},
		{"POST /node/2/rename/nas", "", 200, "node: " + hsNode, ""},
		{"POST /node/NODE/expire", "", 200, "node: " + hsNode, ""},
		{"POST /node/NODE/expire", `{"expiry":"2023-05-04T00:00:00Z"}`, 200, "node: " + hsNode, ""},
		{"POST /node/NODE/expire?disableExpiry=true", "", 200, "node: " + hsNode, ""},
		{"POST /node/NODE/user", `{"user":"2"}`, 200, "node: " + hsNode, ""},
		{"POST /node/NODE/tags", `{"tags":["tag:ci"]}`, 200, "node: " + hsNode, ""},
		{"POST /node/backfillips?confirmed=true", "", 200, ": changes", ""},
		{"POST /node/backfillips", "", 400, ": code message details", ""},
		{"POST /debug/node", `{"user":"junyao","key":"x","name":"fake","routes":[]}`, 501, ": code message details", ""},
		{"DELETE /node/NODE", "", 200, "", ""},
		{"GET /node/NODE", "", 404, ": code message details", ""},

		{"POST /auth/register", `{"user":"junyao","authId":"LOGIN2"}`, 200, "node: " + hsNode, ""},
		{"POST /auth/approve", `{"authId":"CHECK1"}`, 200, "", ""},
		{"POST /auth/reject", `{"authId":"CHECK2"}`, 200, "", ""},
		{"POST /auth/reject", `{"authId":"nothing"}`, 404, ": code message details", ""},

		{"GET /policy", "", 200, ": policy updatedAt", ""},
		{"PUT /policy", `{"policy":"{\"acls\":[]}"}`, 200, ": policy updatedAt", ""},
		{"PUT /policy", `{"policy":"{\"acls\":7}"}`, 400, ": code message details", ""},
		{"POST /policy/check", `{"policy":"{\"acls\":[]}"}`, 200, "", ""},
		{"POST /policy/check", `{"policy":"not json"}`, 400, ": code message details", ""},
		{"GET /health", "", 200, ": databaseConnectivity", ""},
	}
	for _, tt := range tests {
		fill := func(s string) string {
			for name, id := range ids {
				s = strings.ReplaceAll(s, name, id)
			}
			return s
		}
		method, path, _ := strings.Cut(fill(tt.call), " ")
		r := httptest.NewRequest(method, Prefix+path, strings.NewReader(fill(tt.body)))
		r.Header.Set("Authorization", "Bearer "+secret)
		r.Header.Set("User-Agent", "Headplane/0.7.0")
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, r)
		if rec.Code != tt.status {
			t.Errorf("%s %s: %d %s, want %d", tt.call, tt.body, rec.Code, rec.Body, tt.status)
			continue
		}
		var v any
		w.must(json.Unmarshal(rec.Body.Bytes(), &v))
		where, keys, _ := strings.Cut(tt.want, ": ")
		got := v
		if where != "" {
			got = first(at(v, strings.Split(where, ".")...))
		}
		for _, k := range strings.Fields(keys) {
			if m, ok := got.(map[string]any); !ok || !has(m, k) {
				t.Errorf("%s: no %s in %s of %s", tt.call, k, where, rec.Body)
			}
		}
		if name, where, ok := strings.Cut(tt.save, " "); ok {
			list, k, _ := strings.Cut(where, ".")
			ids[name], _ = at(first(at(v, list)), k).(string)
		}
	}
	seen := 0
	for _, statuses := range w.spec.seen {
		if statuses[200] {
			seen++
		}
	}
	if seen != 29 { // the 29 of headscale 0.29, less the one for debugging, and that of 0.27 which moves nodes
		t.Errorf("%d operations have succeeded", seen)
	}
}

func has(m map[string]any, k string) bool { _, ok := m[k]; return ok }

// first is the first of a list, or else v.
func first(v any) any {
	if l, ok := v.([]any); ok && len(l) > 0 {
		return l[0]
	}
	return v
}
