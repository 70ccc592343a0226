package api

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/mux"
	ts "tailscale.com/client/tailscale/v2" // version 2.10.1

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
	"github.com/skein-vpn/skein/webhook"
)

// v2World is a world whose second face is served on a port, behind the gate.
type v2World struct {
	*world
	url *url.URL
}

func newV2World(t *testing.T) *v2World {
	w := seed(t)
	m := mux.NewRouter()
	NewTokens(w.auth, nil, nil, slog.New(slog.DiscardHandler)).Mount(m)
	m.PathPrefix("/").Handler(NewHandler(Options{
		State: w.st, Auth: w.auth, Gate: NewGate(w.auth, nil, nil), Now: func() time.Time { return noon }, Log: slog.New(slog.DiscardHandler),
		Webhooks: webhook.New(webhook.Options{State: w.st, Store: w.db, AllowLoopback: true, Log: slog.New(slog.DiscardHandler)}),
	}))
	srv := httptest.NewServer(m)
	t.Cleanup(srv.Close)
	u, err := url.Parse(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	return &v2World{w, u}
}

// client is their client with a key of ours.
func (w *v2World) tailscale(key string) *ts.Client { return &ts.Client{BaseURL: w.url, APIKey: key} }

// status is the HTTP status in what their client returned.
func status(err error) int {
	var ae ts.APIError
	if errors.As(err, &ae) {
		return ae.Status
	}
	return 0
}

func TestV2Devices(t *testing.T) {
	w := newV2World(t)
	c, ctx := w.tailscale(w.apiKey(0)), w.ctx()
	nas := w.st.Snapshot().NodeByName("homeds")
	ds, err := c.Devices().List(ctx, ts.WithFields(ts.IncludeFieldsAll))
	if err != nil || len(ds) != 3 {
		t.Fatalf("%d devices, %v", len(ds), err)
	}
	d := ds[1]
	if d.Name != "homeds.skein.internal" || d.Hostname != "homeDS" || d.ID != "2" || d.NodeID != nas.StableID || d.User != "junyao" ||
		!slices.Equal(d.AdvertisedRoutes, []string{"10.8.0.0/16", "192.168.199.0/24"}) || len(d.EnabledRoutes) != 0 || !d.Authorized ||
		d.Addresses[0] != nas.IPv4.String() || d.NodeKey != nas.NodeKey.String() || d.LastSeen == nil && !d.ConnectedToControl {
		t.Errorf("%+v", d)
	}
	ds, err = c.Devices().List(ctx, ts.WithFilter("hostname", []string{"homeDS", "vm"}), ts.WithFilter("isEphemeral", []string{"false"}))
	if err != nil || len(ds) != 2 || ds[0].AdvertisedRoutes != nil {
		t.Errorf("filtered: %+v, %v", ds, err)
	}
	if _, err := c.Devices().List(ctx, ts.WithFilter("colour", []string{"red"})); status(err) != 400 {
		t.Errorf("an unknown filter: %v", err)
	}
	for _, id := range []string{"2", nas.StableID} {
		d, err := c.Devices().GetWithAllFields(ctx, id)
		if err != nil || d.ID != "2" || len(d.AdvertisedRoutes) != 2 {
			t.Errorf("%s: %+v, %v", id, d, err)
		}
	}
	if _, err := c.Devices().Get(ctx, "99"); !ts.IsNotFound(err) {
		t.Errorf("a device that is not there: %v", err)
	}

	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	node := func() *state.Node { return w.st.Snapshot().Node(2) }
	must(c.Devices().SetName(ctx, nas.StableID, "nas.skein.internal"))
	if node().Name != "nas" {
		t.Errorf("name %q", node().Name)
	}
	if err := c.Devices().SetName(ctx, "2", "vm"); status(err) != 409 {
		t.Errorf("a name that another device has: %v", err)
	}
	must(c.Devices().SetName(ctx, "2", ""))
	if node().Name != "homeds" {
		t.Errorf("name %q", node().Name)
	}
	must(c.Devices().SetAuthorized(ctx, "2", false))
	if node().Authorized {
		t.Error("still approved")
	}
	must(c.Devices().SetAuthorized(ctx, "2", true))
	must(c.Devices().SetKey(ctx, "2", ts.DeviceKey{KeyExpiryDisabled: true}))
	if !node().NeverExpires {
		t.Error("the key expires")
	}
	must(c.Devices().SetIPv4Address(ctx, "2", "100.64.9.9"))
	if node().IPv4.String() != "100.64.9.9" || w.st.Snapshot().NodeByAddr(node().IPv4) == nil {
		t.Errorf("address %v", node().IPv4)
	}
	for ip, want := range map[string]int{"10.0.0.1": 400, "x": 400, "100.64.0.0": 400, "100.100.100.100": 400, w.st.Snapshot().Node(1).IPv4.String(): 409} {
		if err := c.Devices().SetIPv4Address(ctx, "2", ip); status(err) != want {
			t.Errorf("address %s: %v, want %d", ip, err, want)
		}
	}
	must(c.Devices().SetSubnetRoutes(ctx, "2", []string{"192.168.199.0/24", "172.20.0.0/16"}))
	rs, err := c.Devices().SubnetRoutes(ctx, "2")
	if err != nil || !slices.Equal(rs.Enabled, []string{"172.20.0.0/16", "192.168.199.0/24"}) || len(rs.Advertised) != 2 {
		t.Errorf("routes %+v, %v", rs, err)
	}
	must(c.Devices().SetTags(ctx, "2", []string{"tag:nas"}))
	if !node().Tagged() || node().User != 0 {
		t.Errorf("tags %v, user %d", node().Tags, node().User)
	}
	if err := c.Devices().SetTags(ctx, "2", nil); status(err) != 400 {
		t.Errorf("no tags: %v", err)
	}
	for name, v := range map[string]any{"custom:tier": "gold", "custom:level": 7, "custom:managed": true} {
		must(c.Devices().SetPostureAttribute(ctx, "2", name, ts.DevicePostureAttributeRequest{Value: v, Comment: "ticket 1"}))
	}
	must(c.Devices().DeletePostureAttribute(ctx, "2", "custom:level"))
	as, err := c.Devices().GetPostureAttributes(ctx, "2")
	if err != nil || as.Attributes["custom:tier"] != "gold" || as.Attributes["custom:managed"] != true || as.Attributes["node:os"] != "linux" || as.Attributes["custom:level"] != nil {
		t.Errorf("attributes %+v, %v", as, err)
	}
	for name, v := range map[string]any{"tier": "gold", "custom:": "x", "custom:a-b": "x", "node:os": "linux", "custom:list": []string{"a"}, "custom:empty": "", "custom:null": nil} {
		if err := c.Devices().SetPostureAttribute(ctx, "2", name, ts.DevicePostureAttributeRequest{Value: v}); status(err) != 400 {
			t.Errorf("attribute %s=%v: %v", name, v, err)
		}
	}
	if err := c.Devices().DeletePostureAttribute(ctx, "2", "custom:level"); !ts.IsNotFound(err) {
		t.Errorf("an attribute that is not there: %v", err)
	}
	must(c.Devices().Delete(ctx, "2"))
	if node() != nil {
		t.Error("still there")
	}
	if err := c.Devices().Delete(ctx, "2"); !ts.IsNotFound(err) {
		t.Errorf("deleted twice: %v", err)
	}
}

func TestV2DNS(t *testing.T) {
	w := newV2World(t)
	c, ctx := w.tailscale(w.apiKey(0)).DNS(), w.ctx()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(c.SetNameservers(ctx, []string{"1.1.1.1"}))
	if got, err := c.Nameservers(ctx); err != nil || !slices.Equal(got, []string{"1.1.1.1"}) {
		t.Errorf("%v, %v", got, err)
	}
	if err := c.SetNameservers(ctx, []string{"one"}); status(err) != 400 {
		t.Errorf("a bad address: %v", err)
	}
	must(c.SetSearchPaths(ctx, []string{"corp.example"}))
	if got, err := c.SearchPaths(ctx); err != nil || !slices.Equal(got, []string{"corp.example"}) {
		t.Errorf("%v, %v", got, err)
	}
	must(c.SetSplitDNS(ctx, ts.SplitDNSRequest{"a.example": {"10.0.0.1"}, "b.example": {"10.0.0.2"}}))
	got, err := c.UpdateSplitDNS(ctx, ts.SplitDNSRequest{"b.example": nil, "c.example": {"10.0.0.3", "10.0.0.4"}})
	if err != nil || !reflect.DeepEqual(got, ts.SplitDNSResponse{"a.example": {"10.0.0.1"}, "c.example": {"10.0.0.3", "10.0.0.4"}}) {
		t.Errorf("%v, %v", got, err)
	}
	must(c.SetPreferences(ctx, ts.DNSPreferences{MagicDNS: false}))
	if p, err := c.Preferences(ctx); err != nil || p.MagicDNS || w.st.Snapshot().DNS.MagicDNS {
		t.Errorf("%+v, %v", p, err)
	}
	want := ts.DNSConfiguration{
		Nameservers: []ts.DNSConfigurationResolver{{Address: "9.9.9.9", UseWithExitNode: true}},
		SplitDNS:    map[string][]ts.DNSConfigurationResolver{"x.example": {{Address: "10.0.0.9"}}},
		SearchPaths: []string{"x.example"}, Preferences: ts.DNSConfigurationPreferences{OverrideLocalDNS: true, MagicDNS: true},
	}
	must(c.SetConfiguration(ctx, want))
	if got, err := c.Configuration(ctx); err != nil || !reflect.DeepEqual(*got, want) {
		t.Errorf("%+v, %v", got, err)
	}
	must(c.SetNameservers(ctx, []string{"8.8.8.8", "9.9.9.9"})) // and how 9.9.9.9 is used stays
	if rs := w.st.Snapshot().DNS.Nameservers; rs[0].UseWithExitNode || !rs[1].UseWithExitNode {
		t.Errorf("%+v", rs)
	}
}

func TestV2Policy(t *testing.T) {
	w := newV2World(t)
	c, ctx := w.tailscale(w.apiKey(0)).PolicyFile(), w.ctx()
	raw, err := c.Raw(ctx)
	if err != nil || !strings.Contains(raw.HuJSON, `"*:*"`) {
		t.Fatalf("%+v, %v", raw, err)
	}
	text := "// mine\n{\"acls\": [{\"action\": \"accept\", \"src\": [\"*\"], \"dst\": [\"*:22\"]}]}\n"
	if err := c.Set(ctx, text, "0000"); status(err) != 412 || !strings.Contains(err.Error(), "(412)") {
		t.Errorf("a tag that is not there: %v", err)
	}
	if err := c.Set(ctx, text, defaultTag); err != nil {
		t.Fatal(err)
	}
	if err := c.Set(ctx, text, defaultTag); status(err) != 412 {
		t.Errorf("the default, which it is no more: %v", err)
	}
	got, err := c.Raw(ctx)
	if err != nil || got.HuJSON != text || got.ETag != `"`+etagOf(text)+`"` {
		t.Errorf("%+v, %v", got, err)
	}
	acl, err := c.Get(ctx)
	if err != nil || len(acl.ACLs) != 1 || acl.ETag != got.ETag {
		t.Fatalf("%+v, %v", acl, err)
	}
	acl.ACLs[0].Destination = []string{"*:80"}
	if set, err := c.SetAndGet(ctx, *acl, acl.ETag); err != nil || set.ACLs[0].Destination[0] != "*:80" {
		t.Errorf("%+v, %v", set, err)
	}
	if err := c.Set(ctx, text, got.ETag); status(err) != 412 {
		t.Errorf("an old tag: %v", err)
	}
	if err := c.Set(ctx, `{"acls": [{"action": "accept", "src": ["*", "still.to.come@example.org"], "dst": ["*:80"]}]}`, ""); err != nil {
		t.Error(err)
	}
	err = c.Set(ctx, `{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:99999"]}]}`, "")
	if status(err) != 400 || len(ts.ErrorData(err)) != 1 || !strings.Contains(ts.ErrorData(err)[0].Errors[0], "line 1") {
		t.Errorf("a fault: %v %+v", err, ts.ErrorData(err))
	}
	if err := c.Validate(ctx, text); err != nil {
		t.Errorf("a good policy: %v", err)
	}
	if err := c.Validate(ctx, `{"acls": 1}`); err == nil || !strings.Contains(err.Error(), "acls") {
		t.Errorf("a bad one: %v", err)
	}
	// Tests alone, against the policy in force.
	v := w.tailscale(w.apiKey(0)).PolicyFile()
	if err := v.Validate(ctx, []ts.ACLTest{{Source: "anna@example.org", Accept: []string{"100.64.0.2:80"}}}); err != nil {
		t.Errorf("a test that holds: %v", err)
	}
	if err := v.Validate(ctx, []ts.ACLTest{{Source: "anna@example.org", Accept: []string{"100.64.0.2:22"}}}); err == nil {
		t.Error("a test that does not hold passes")
	}
	// Reset, as Terraform does at the end.
	res := w.do(t, "POST", "/api/v2/tailnet/-/acl", "")
	if res.StatusCode != 200 {
		t.Errorf("reset: %d", res.StatusCode)
	}
	if raw, err = c.Raw(ctx); err != nil || raw.HuJSON != defaultPolicy {
		t.Errorf("after the reset: %+v, %v", raw, err)
	}
}

// Version 2.9 of their client, in a program of its own.
func TestV2OldClient(t *testing.T) {
	w := newV2World(t)
	cmd := exec.CommandContext(w.ctx(), "go", "run", ".", w.url.String(), w.apiKey(0))
	cmd.Dir = filepath.Join("testdata", "client29")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// do sends a raw request with a key and without a Content-Type.
func (w *v2World) do(t *testing.T, method, path, body string) *http.Response {
	t.Helper()
	return w.doWith(t, w.apiKey(0), method, path, body)
}

func (w *v2World) doWith(t *testing.T, key, method, path, body string) *http.Response {
	t.Helper()
	r, err := http.NewRequestWithContext(w.ctx(), method, w.url.String()+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.SetBasicAuth(key, "")
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { res.Body.Close() })
	return res
}

func TestV2Users(t *testing.T) {
	w := newV2World(t)
	c, ctx := w.tailscale(w.apiKey(0)).Users(), w.ctx()
	us, err := c.List(ctx, nil, nil)
	if err != nil || len(us) != 2 || us[0].LoginName != "junyao" || us[0].DeviceCount != 2 || us[0].Role != ts.UserRoleMember || us[0].Status != ts.UserStatusActive {
		t.Fatalf("%+v, %v", us, err)
	}
	u, err := c.Get(ctx, us[1].ID)
	if err != nil || u.LoginName != "anna@example.org" {
		t.Errorf("%+v, %v", u, err)
	}
	if _, err := c.Get(ctx, "77"); !ts.IsNotFound(err) {
		t.Errorf("nobody: %v", err)
	}
	for _, step := range []struct {
		path, body string
		status     int
		want       tailnet.User
	}{
		{"/role", `{"role": "admin"}`, 200, tailnet.User{Role: tailnet.RoleAdmin}},
		{"/role", `{"role": "king"}`, 400, tailnet.User{Role: tailnet.RoleAdmin}},
		{"/suspend", ``, 200, tailnet.User{Role: tailnet.RoleAdmin, Status: tailnet.UserSuspended}},
		{"/restore", ``, 200, tailnet.User{Role: tailnet.RoleAdmin}},
		{"/delete", ``, 409, tailnet.User{Role: tailnet.RoleAdmin}}, // it has a node
	} {
		res := w.do(t, "POST", "/api/v2/users/2"+step.path, step.body)
		if u := w.st.Snapshot().User(2); res.StatusCode != step.status || u.Role != step.want.Role || u.Status != step.want.Status {
			t.Errorf("%s %s: %d, %+v", step.path, step.body, res.StatusCode, u)
		}
	}
	role := ts.UserRoleAdmin
	if us, err := c.List(ctx, nil, &role); err != nil || len(us) != 1 || us[0].ID != "2" {
		t.Errorf("admins: %+v, %v", us, err)
	}
}

func TestV2Settings(t *testing.T) {
	w := newV2World(t)
	c, ctx := w.tailscale(w.apiKey(0)).TailnetSettings(), w.ctx()
	if err := c.Update(ctx, ts.UpdateTailnetSettingsRequest{DevicesApprovalOn: ts.PointerTo(true), DevicesKeyDurationDays: ts.PointerTo(30), HTTPSEnabled: ts.PointerTo(false)}); err != nil {
		t.Fatal(err)
	}
	got, err := c.Get(ctx)
	if err != nil || !got.DevicesApprovalOn || got.DevicesKeyDurationDays != 30 || got.UsersApprovalOn || got.UsersRoleAllowedToJoinExternalTailnets != ts.RoleAllowedToJoinExternalTailnetsNone {
		t.Errorf("%+v, %v", got, err)
	}
	before := w.st.Snapshot().Rev
	for _, req := range []ts.UpdateTailnetSettingsRequest{
		{HTTPSEnabled: ts.PointerTo(true)}, {NetworkFlowLoggingOn: ts.PointerTo(true)}, {RegionalRoutingOn: ts.PointerTo(true)},
		{PostureIdentityCollectionOn: ts.PointerTo(true)}, {DevicesAutoUpdatesOn: ts.PointerTo(true), DevicesApprovalOn: ts.PointerTo(false)},
		{UsersRoleAllowedToJoinExternalTailnets: ts.PointerTo(ts.RoleAllowedToJoinExternalTailnetsMember)},
	} {
		if err := c.Update(ctx, req); status(err) != 501 {
			t.Errorf("%+v: %v", req, err)
		}
	}
	if now := w.st.Snapshot().Rev; now != before {
		t.Error("a refused setting has changed something")
	}
}

func TestV2Keys(t *testing.T) {
	w := newV2World(t)
	c, ctx := w.tailscale(w.apiKey(1)).Keys(), w.ctx() // of junyao, an administrator
	w.setRole(1, tailnet.RoleAdmin)

	var req ts.CreateKeyRequest
	req.Capabilities.Devices.Create.Reusable, req.Capabilities.Devices.Create.Preauthorized = true, true
	req.Capabilities.Devices.Create.Tags = []string{"tag:ci"}
	req.ExpirySeconds, req.Description = 3600, "for CI"
	k, err := c.CreateAuthKey(ctx, req)
	if err != nil || !strings.HasPrefix(k.Key, "tskey-auth-") || k.KeyType != "auth" || k.Description != "for CI" || *k.ExpirySeconds != 3600 ||
		!k.Expires.Equal(noon.Add(time.Hour)) || !k.Capabilities.Devices.Create.Reusable || k.Capabilities.Devices.Create.Tags[0] != "tag:ci" {
		t.Fatalf("%+v, %v", k, err)
	}
	own, err := c.CreateAuthKey(ctx, ts.CreateKeyRequest{})
	if err != nil || own.UserID != "1" || !own.Expires.Equal(noon.Add(v2KeyLife)) {
		t.Fatalf("%+v, %v", own, err)
	}
	oc, err := c.CreateOAuthClient(ctx, ts.CreateOAuthClientRequest{Scopes: []string{"auth_keys", "dns:read"}, Tags: []string{"tag:ci"}, Description: "terraform"})
	if err != nil || !strings.HasPrefix(oc.Key, "tskey-client-"+oc.ID+"-") || oc.KeyType != "client" || !slices.Equal(oc.Scopes, []string{"auth_keys", "dns:read"}) {
		t.Fatalf("%+v, %v", oc, err)
	}
	fed, err := c.CreateFederatedIdentity(ctx, ts.CreateFederatedIdentityRequest{
		Scopes: []string{"dns"}, Issuer: "https://token.example.com", Subject: "repo:me/*", CustomClaimRules: map[string]string{"ref": "refs/heads/main"},
	})
	if err != nil || fed.KeyType != "federated" || fed.Audience == "" || fed.Key != "" || fed.CustomClaimRules["ref"] != "refs/heads/main" {
		t.Fatalf("%+v, %v", fed, err)
	}
	for id, kind := range map[string]string{k.ID: "auth", own.ID: "auth", oc.ID: "client", fed.ID: "federated"} {
		got, err := c.Get(ctx, id)
		if err != nil || got.ID != id || got.KeyType != kind || got.Key != "" || got.Invalid {
			t.Errorf("%s: %+v, %v", id, got, err)
		}
	}
	changed, err := c.SetOAuthClient(ctx, oc.ID, ts.SetOAuthClientRequest{Scopes: []string{"auth_keys", "dns"}, Tags: []string{"tag:ci", "tag:web"}, Description: "more"})
	if err != nil || changed.Description != "more" || !slices.Equal(changed.Tags, []string{"tag:ci", "tag:web"}) {
		t.Errorf("%+v, %v", changed, err)
	}
	if _, err := c.SetFederatedIdentity(ctx, fed.ID, ts.SetFederatedIdentityRequest{Scopes: []string{"dns:read"}, Issuer: "https://token.example.com", Subject: "x"}); err != nil {
		t.Error(err)
	}
	ids := func(all bool) (out []string) {
		ks, err := c.List(ctx, all)
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range ks {
			out = append(out, k.ID)
		}
		return out
	}
	if all := ids(true); !slices.Contains(all, k.ID) || !slices.Contains(all, oc.ID) || !slices.Contains(all, own.ID) {
		t.Errorf("all keys: %v", all)
	}
	if mine := ids(false); slices.Contains(mine, k.ID) || !slices.Contains(mine, own.ID) {
		t.Errorf("junyao's keys: %v", mine)
	}
	if err := c.Delete(ctx, k.ID); err != nil {
		t.Error(err)
	}
	if got, err := c.Get(ctx, k.ID); err != nil || !got.Invalid || got.Revoked.IsZero() {
		t.Errorf("a revoked key: %+v, %v", got, err)
	}
	if all := ids(true); slices.Contains(all, k.ID) {
		t.Error("a revoked key is listed")
	}
	for name, req := range map[string]string{
		"kind":              `{"keyType": "card"}`,
		"scopes of a key":   `{"scopes": ["dns"]}`,
		"life":              `{"expirySeconds": 99999999}`,
		"tag":               `{"capabilities": {"devices": {"create": {"tags": ["a b"]}}}}`,
		"scope":             `{"keyType": "client", "scopes": ["everything"]}`,
		"tags of auth_keys": `{"keyType": "client", "scopes": ["auth_keys"]}`,
		"issuer":            `{"keyType": "federated", "scopes": ["dns"], "issuer": "http://x", "subject": "a"}`,
	} {
		if res := w.do(t, "POST", "/api/v2/tailnet/-/keys", req); res.StatusCode != 400 {
			t.Errorf("%s: %d", name, res.StatusCode)
		}
	}

	// Their client with the OAuth client, as Terraform does it: it makes keys with its tags, and no more.
	oauth := &ts.Client{BaseURL: w.url, Auth: &ts.OAuth{ClientID: oc.ID, ClientSecret: oc.Key, Scopes: []string{"auth_keys"}}}
	if _, err := oauth.Keys().CreateAuthKey(ctx, req); err != nil {
		t.Errorf("with an access token: %v", err)
	}
	req.Capabilities.Devices.Create.Tags = []string{"tag:db"}
	if _, err := oauth.Keys().CreateAuthKey(ctx, req); status(err) != 403 {
		t.Errorf("a tag that is not its own: %v", err)
	}
	if _, err := oauth.DNS().Nameservers(ctx); status(err) != 403 {
		t.Errorf("a scope that was not asked for: %v", err)
	}
	if got, err := oauth.Keys().Get(ctx, oc.ID); err != nil || got.ID != oc.ID {
		t.Errorf("itself: %v", err)
	}
	if err := c.Delete(ctx, oc.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := oauth.Keys().Get(ctx, oc.ID); status(err) != 401 {
		t.Errorf("revoked: %v", err)
	}
}

func TestV2Webhooks(t *testing.T) {
	w := newV2World(t)
	c, ctx := w.tailscale(w.apiKey(0)).Webhooks(), w.ctx()
	var got []byte
	receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Tailscale-Webhook-Signature") != "" {
			got, _ = io.ReadAll(r.Body)
		}
	}))
	t.Cleanup(receiver.Close)
	h, err := c.Create(ctx, ts.CreateWebhookRequest{EndpointURL: receiver.URL, Subscriptions: []ts.WebhookSubscriptionType{ts.WebhookNodeCreated}})
	if err != nil || h.Secret == nil || !strings.HasPrefix(*h.Secret, "tskey-webhook-") || h.EndpointURL != receiver.URL {
		t.Fatalf("%+v, %v", h, err)
	}
	if hs, err := c.List(ctx); err != nil || len(hs) != 1 || hs[0].EndpointID != h.EndpointID || hs[0].Secret != nil {
		t.Errorf("%+v, %v", hs, err)
	}
	if u, err := c.Update(ctx, h.EndpointID, []ts.WebhookSubscriptionType{ts.WebhookPolicyUpdate, ts.WebhookUserCreated}); err != nil || len(u.Subscriptions) != 2 {
		t.Errorf("%+v, %v", u, err)
	}
	if r, err := c.RotateSecret(ctx, h.EndpointID); err != nil || r.Secret == nil || *r.Secret == *h.Secret {
		t.Errorf("%+v, %v", r, err)
	}
	if err := c.Test(ctx, h.EndpointID); err != nil || !strings.Contains(string(got), `"type":"test"`) {
		t.Errorf("%v: %s", err, got)
	}
	for _, req := range []ts.CreateWebhookRequest{
		{EndpointURL: "ftp://x", Subscriptions: []ts.WebhookSubscriptionType{ts.WebhookNodeCreated}},
		{EndpointURL: receiver.URL, Subscriptions: []ts.WebhookSubscriptionType{"nodeSneezed"}},
	} {
		if _, err := c.Create(ctx, req); status(err) != 400 {
			t.Errorf("%+v: %v", req, err)
		}
	}
	if err := c.Delete(ctx, h.EndpointID); err != nil {
		t.Error(err)
	}
	if _, err := c.Get(ctx, h.EndpointID); !ts.IsNotFound(err) {
		t.Errorf("deleted: %v", err)
	}
}

// Every answer is JSON in their shape, whatever is wrong.
func TestV2Failures(t *testing.T) {
	w := newV2World(t)
	key := w.apiKey(0)
	reader := w.apiKey(0, auth.Read(auth.ScopeDevices))
	for _, c := range []struct {
		key, method, path, body string
		status                  int
	}{
		{"", "GET", "/tailnet/-/devices", "", 401},
		{"tskey-api-x-y", "GET", "/tailnet/-/devices", "", 401},
		{reader, "GET", "/tailnet/-/devices", "", 200},
		{reader, "POST", "/device/1/name", `{"name": "x"}`, 403},
		{reader, "GET", "/tailnet/-/acl", "", 403},
		{key, "GET", "/tailnet/other.example/devices", "", 404},
		{key, "GET", "/tailnet/default/devices", "", 200},
		{key, "GET", "/nothing", "", 404},
		{key, "PUT", "/device/1/name", "", 405},
		{key, "POST", "/device/1/name", "", 400},
		{key, "POST", "/device/1/name", "{", 400},
		{key, "POST", "/device/1/name", `{"name": 7}`, 400},
		{key, "POST", "/device/1/authorized", `{}`, 400},
		{key, "POST", "/device/%zz/name", `{}`, 400},
		{key, "POST", "/device/1/name", `{"name": "` + strings.Repeat("a", maxBody) + `"}`, 413},
		{key, "POST", "/tailnet/-/acl", "\xff", 400},
		{key, "POST", "/tailnet/-/acl/preview", "{}", 400},
		{key, "GET", "/tailnet/-/vip-services/svc:none", "", 404},
		{key, "GET", "/tailnet/-/logging/network?start=a&end=b", "", 501},
		{reader, "GET", "/tailnet/-/vip-services", "", 403},
	} {
		if strings.Contains(c.path, "%zz") {
			continue // net/http's client cannot send it
		}
		res := w.doWith(t, c.key, c.method, "/api/v2"+c.path, c.body)
		var e ts.APIError
		if err := json.NewDecoder(res.Body).Decode(&e); err != nil {
			t.Errorf("%s %s: no JSON: %v", c.method, c.path, err)
		}
		if res.StatusCode != c.status || c.status != 200 && (e.Message == "" || e.Status != c.status) || res.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s %s: %d %q, want %d", c.method, c.path, res.StatusCode, e.Message, c.status)
		}
	}
}

// scoped is an Authenticator for whom a secret is a list of scopes.
type scoped struct{}

func (scoped) Authenticate(_ context.Context, secret string) (*auth.Principal, error) {
	return &auth.Principal{Kind: auth.KindAPIKey, Name: "test", Scopes: strings.Split(secret, " ")}, nil
}

// Every operation is done with its scope, with all of them and, if it reads, with what writes; and with nothing else.
func TestV2Scopes(t *testing.T) {
	w := seed(t)
	s := newServer(Options{State: w.st, Auth: w.auth, Gate: NewGate(scoped{}, nil, nil), Log: slog.New(slog.DiscardHandler)})
	h := NewV2Server(s.Options)
	ask := func(method, path, scopes string) int {
		r := httptest.NewRequest(method, PrefixV2+path, nil)
		r.Header.Set("Authorization", "Bearer "+scopes)
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, r)
		return rec.Code
	}
	fill := strings.NewReplacer("{tailnet}", "-", "{device}", "99", "{user}", "99", "{key}", "99", "{webhook}", "99", "{name}", "custom:x")
	n := 0
	for _, rt := range s.v2Routes() {
		for method, o := range rt.methods {
			if o.scope == auth.ScopeNone {
				continue // the kind of the key decides: TestV2Keys
			}
			n++
			path := fill.Replace(rt.path)
			var others []string
			allowed := map[string]bool{o.scope: true, auth.ScopeAll: true}
			if base, reads := strings.CutSuffix(o.scope, ":read"); reads {
				allowed[base], allowed[auth.Read(auth.ScopeAll)] = true, true
			}
			for _, sc := range auth.Scopes() {
				if !allowed[sc] {
					others = append(others, sc)
				}
			}
			for sc := range allowed {
				if code := ask(method, path, sc); code == 401 || code == 403 || code == 405 {
					t.Errorf("%s %s with %s: %d", method, path, sc, code)
				}
			}
			if code := ask(method, path, strings.Join(others, " ")); code != 403 {
				t.Errorf("%s %s with all but its scope: %d", method, path, code)
			}
		}
	}
	if n < 50 {
		t.Errorf("only %d operations", n)
	}
}
