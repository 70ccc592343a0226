package api

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/coreos/go-oidc/v3/oidc/oidctest"
	"github.com/gorilla/mux"
	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/auth/oidc"
	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// tokens serves the token endpoints and the API of w.
func (w *world) tokens() *httptest.Server {
	r := mux.NewRouter()
	NewTokens(w.auth, nil, nil, slog.New(slog.DiscardHandler)).Mount(r)
	r.PathPrefix(Prefix + "/").Handler(w.behindGate())
	srv := httptest.NewServer(r)
	w.Cleanup(srv.Close)
	return srv
}

// With the client that everybody uses, both ways of proving itself.
func TestClientCredentials(t *testing.T) {
	w := seed(t)
	w.setPolicy(`{"tagOwners":{"tag:ci":[],"tag:web":["tag:ci"],"tag:db":[]},"acls":[]}`)
	srv := w.tokens()
	oc, err := w.client.CreateOAuthClient(w.ctx(), CreateOAuthClientRequest{Scopes: []string{"auth_keys", "devices:core:read"}, Tags: []string{"tag:ci"}, Description: "CI"})
	if err != nil || !strings.HasPrefix(oc.Secret, "tskey-client-"+oc.ID+"-") || oc.Kind != "client" {
		t.Fatalf("%+v %v", oc, err)
	}
	for _, style := range []oauth2.AuthStyle{oauth2.AuthStyleAutoDetect, oauth2.AuthStyleInHeader, oauth2.AuthStyleInParams} {
		for _, path := range []string{TokenPath, shortTokenPath} {
			cfg := clientcredentials.Config{ClientID: "some-client-id", ClientSecret: oc.Secret, TokenURL: srv.URL + path, AuthStyle: style}
			tok, err := cfg.Token(w.ctx())
			if err != nil || tok.TokenType != "Bearer" || tok.Extra("expires_in") != 3600.0 || tok.Extra("scope") != "auth_keys devices:core:read" {
				t.Fatalf("%+v %v", tok, err)
			}
			c, err := NewClient(srv.URL, tok.AccessToken)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.ListNodes(w.ctx(), NodeFilter{}); err != nil {
				t.Error(err)
			}
			if _, err := c.ListUsers(w.ctx(), UserFilter{}); tailnet.CodeOf(err) != tailnet.Denied {
				t.Errorf("beyond its scopes: %v", err)
			}
			for tags, ok := range map[string]bool{"tag:ci": true, "tag:web": true, "tag:db": false, "": false, "tag:ci tag:db": false} {
				req := CreatePreAuthKeyRequest{ACLTags: strings.Fields(tags)}
				if tags == "" {
					req.User = "junyao"
				}
				if _, err := c.CreatePreAuthKey(w.ctx(), req); (err == nil) != ok || !ok && tailnet.CodeOf(err) != tailnet.Denied {
					t.Errorf("a key with the tags %q: %v", tags, err)
				}
			}
		}
	}
	// A narrower one, and the end of it.
	cfg := clientcredentials.Config{ClientSecret: oc.Secret, TokenURL: srv.URL + TokenPath, Scopes: []string{"auth_keys:read"}, EndpointParams: url.Values{"tags": {"tag:web"}}}
	tok, err := cfg.Token(w.ctx())
	if err != nil || tok.Extra("scope") != "auth_keys:read" {
		t.Fatalf("%+v %v", tok, err)
	}
	c, _ := NewClient(srv.URL, tok.AccessToken)
	if _, err := c.ListPreAuthKeys(w.ctx(), PreAuthKeyFilter{}); err != nil {
		t.Error(err)
	}
	if _, err := c.CreatePreAuthKey(w.ctx(), CreatePreAuthKeyRequest{ACLTags: []string{"tag:web"}}); tailnet.CodeOf(err) != tailnet.Denied {
		t.Error(err)
	}
	clients, err := w.client.ListOAuthClients(w.ctx(), OAuthClientFilter{})
	if err != nil || len(clients) != 1 || clients[0].LastSeen == nil || clients[0].Secret != "" {
		t.Errorf("%+v %v", clients, err)
	}
	if err := w.client.RevokeOAuthClient(w.ctx(), oc.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := c.ListPreAuthKeys(w.ctx(), PreAuthKeyFilter{}); tailnet.CodeOf(err) != tailnet.Unauthenticated {
		t.Errorf("a token of a revoked client: %v", err)
	}
	if _, err := cfg.Token(w.ctx()); err == nil || !strings.Contains(err.Error(), "invalid_client") {
		t.Errorf("a revoked client: %v", err)
	}
	if err := w.client.DeleteOAuthClient(w.ctx(), oc.Secret); err != nil {
		t.Fatal(err)
	}
}

func TestTokenErrors(t *testing.T) {
	w := seed(t)
	oc, err := w.client.CreateOAuthClient(w.ctx(), CreateOAuthClientRequest{Scopes: []string{"dns"}, Tags: []string{"tag:a"}})
	if err != nil {
		t.Fatal(err)
	}
	r := mux.NewRouter()
	NewTokens(w.auth, nil, nil, slog.New(slog.DiscardHandler)).Mount(r)
	const cc = "grant_type=client_credentials&client_secret="
	n := 0
	for _, tt := range []struct {
		method, path, contentType, body string
		status                          int
		code                            string
	}{
		{"GET", TokenPath, "", "", 405, "invalid_request"},
		{"POST", TokenPath, "", "", 400, "invalid_request"},
		{"POST", TokenPath, "application/json", `{"grant_type":"client_credentials"}`, 400, "invalid_request"},
		{"POST", TokenPath, "x", "grant_type=password", 400, "unsupported_grant_type"},
		{"POST", TokenPath, "x", "grant_type=client_credentials", 401, "invalid_client"},
		{"POST", TokenPath, "x", cc + "x", 401, "invalid_client"},
		{"POST", TokenPath, "x", cc + oc.Secret + "x", 401, "invalid_client"},
		{"POST", TokenPath, "x", cc + w.apiKey(0), 401, "invalid_client"},
		{"POST", TokenPath, "x", cc + oc.Secret + "&grant_type=client_credentials", 400, "invalid_request"},
		{"POST", TokenPath, "x", cc + oc.Secret + "&scope=users", 400, "invalid_scope"},
		{"POST", TokenPath, "x", cc + oc.Secret + "&scope=everything", 400, "invalid_scope"},
		{"POST", TokenPath, "x", cc + oc.Secret + "&scope=all", 400, "invalid_scope"},
		{"POST", TokenPath, "x", cc + oc.Secret + "&tags=tag:b", 400, "invalid_request"},
		{"POST", TokenPath, "x", cc + "%zz", 400, "invalid_request"},
		{"POST", TokenPath, "x", cc + strings.Repeat("x", maxTokenBody), 400, "invalid_request"},
		{"POST", TokenExchangePath, "x", "", 400, "invalid_request"},
		{"POST", TokenExchangePath, "x", "client_id=x&jwt=a.b.c", 400, "invalid_grant"},
		{"POST", TokenExchangePath, "x", "client_id=" + oc.ID + "&jwt=a.b.c", 400, "invalid_grant"},
		{"POST", TokenPath, "x", cc + oc.Secret + "&scope=dns:read&unknown=1", 200, ""},
	} {
		n++
		req := httptest.NewRequest(tt.method, tt.path, strings.NewReader(tt.body))
		req.RemoteAddr = fmt.Sprintf("192.0.2.%d:1", n)
		if tt.contentType == "x" {
			tt.contentType = "application/x-www-form-urlencoded"
		}
		req.Header.Set("Content-Type", tt.contentType)
		rec := httptest.NewRecorder()
		r.ServeHTTP(rec, req)
		var e struct{ Error, Error_description string } //nolint:revive // as in the RFC
		if err := json.Unmarshal(rec.Body.Bytes(), &e); err != nil || rec.Code != tt.status || e.Error != tt.code || tt.code != "" && e.Error_description == "" {
			t.Errorf("%s %s %.80s: %d %s", tt.method, tt.path, tt.body, rec.Code, rec.Body)
		}
		if rec.Header().Get("Cache-Control") != "no-store" || (rec.Code == 401) != (rec.Header().Get("WWW-Authenticate") != "") || strings.Contains(rec.Body.String(), oc.Secret) {
			t.Errorf("%.80s: %v %s", tt.body, rec.Header(), rec.Body)
		}
	}
	for i := range failuresBurst + 1 {
		req := httptest.NewRequest("POST", TokenPath, strings.NewReader(cc+"tskey-client-x-y"))
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		rec := httptest.NewRecorder()
		r.ServeHTTP(rec, req)
		if last := i == failuresBurst; last != (rec.Code == 429) || last && rec.Header().Get("Retry-After") == "" {
			t.Errorf("guess %d: %d %s", i, rec.Code, rec.Body)
		}
	}
}

// Making a client asks for no less than the client may do.
func TestBadOAuthClients(t *testing.T) {
	w := seed(t)
	before := w.st.Snapshot().Rev
	for body, want := range map[string]string{
		`{}`:                                 "scopes are missing",
		`{"scopes":["x"]}`:                   "is not a scope",
		`{"scopes":["auth_keys"]}`:           "tags are missing",
		`{"scopes":["all"]}`:                 "tags are missing",
		`{"scopes":["dns"],"tags":["tag:"]}`: "tag",
		`{"scopes":["dns"],"subject":"x"}`:   "needs an issuer",
		`{"scopes":["dns"],"issuer":"http://example.com","subject":"x"}`:                    "is not an issuer",
		`{"scopes":["dns"],"issuer":"https://u:p@example.com","subject":"x"}`:               "is not an issuer",
		`{"scopes":["dns"],"issuer":"https://example.com?x","subject":"x"}`:                 "is not an issuer",
		`{"scopes":["dns"],"issuer":"https://example.com"}`:                                 "subject is missing",
		`{"scopes":["dns"],"issuer":"https://example.com","subject":"x","claims":{"":"x"}}`: "claim",
		`{"scopes":["dns"],"issuer":"https://example.com","subject":"x","claims":{"a":7}}`:  "JSON number",
		`{"scopes":["dns"],"description":"` + strings.Repeat("x", 300) + `"}`:               "description",
	} {
		if status, answer := w.call("POST", "/api/v1/oauthclient", body); status != 400 || !strings.Contains(answer, want) {
			t.Errorf("%s: %d %s", body, status, answer)
		}
	}
	h := w.behindGate()
	key := "Bearer " + w.apiKey(0, auth.ScopeOAuthKeys, auth.Read(auth.ScopeDNS))
	after := before + 1
	for _, body := range []string{`{"scopes":["dns"]}`, `{"scopes":["dns:read"],"issuer":"https://example.com","subject":"x"}`} {
		if rec, _ := send(h, "192.0.2.1", "POST", "/api/v1/oauthclient", key, body); rec.Code != 403 {
			t.Errorf("%s: %d %s", body, rec.Code, rec.Body)
		}
	}
	if got := w.st.Snapshot().Rev; got != after {
		t.Errorf("rev %d became %d", after, got)
	}
}

// A real issuer (keys, discovery, signatures) whose tokens are exchanged.
func TestTokenExchange(t *testing.T) {
	w := newWorldWith(t, func(*state.Options, *Options) {})
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	other, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	idp := &oidctest.Server{PublicKeys: []oidctest.PublicKey{{PublicKey: key.Public(), KeyID: "k", Algorithm: "RS256"}}}
	issuer := httptest.NewServer(idp)
	defer issuer.Close()
	idp.SetIssuer(issuer.URL)
	srv := w.tokens()
	fed, err := w.client.CreateOAuthClient(w.ctx(), CreateOAuthClientRequest{
		Scopes: []string{"auth_keys"}, Tags: []string{"tag:ci"}, Issuer: issuer.URL + "/", Subject: "repo:me/*:main", Claims: map[string]string{"groups": "ops", "run": "7"},
	})
	if err != nil || fed.Kind != "federated" || fed.Secret != "" || fed.Audience != "skein/"+fed.ID {
		t.Fatalf("%+v %v", fed, err)
	}
	claims := func(edit ...string) string {
		c := map[string]any{"iss": issuer.URL, "aud": fed.Audience, "sub": "repo:me/app:main", "exp": noon.Unix() + 60, "iat": noon.Unix(), "groups": []string{"dev", "ops"}, "run": 7}
		for i := 0; i+1 < len(edit); i += 2 {
			var v any
			if err := json.Unmarshal([]byte(edit[i+1]), &v); err != nil {
				t.Fatal(err)
			}
			c[edit[i]] = v
		}
		b, _ := json.Marshal(c)
		return string(b)
	}
	exchange := func(id, jwt string) (int, string) {
		res, err := http.PostForm(srv.URL+TokenExchangePath, url.Values{"client_id": {id}, "jwt": {jwt}})
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, _ := io.ReadAll(res.Body)
		return res.StatusCode, string(b)
	}
	good := oidctest.SignIDToken(key, "k", "RS256", claims())
	status, body := exchange(fed.ID+"?ephemeral=false", good)
	var tok TokenAnswer
	if err := json.Unmarshal([]byte(body), &tok); err != nil || status != 200 || tok.Scope != "auth_keys" {
		t.Fatalf("%d %s", status, body)
	}
	c, _ := NewClient(srv.URL, tok.AccessToken)
	if _, err := c.CreatePreAuthKey(w.ctx(), CreatePreAuthKeyRequest{ACLTags: []string{"tag:ci"}}); err != nil {
		t.Error(err)
	}
	// As tailscale does it.
	via, err := (&oauth2.Config{Endpoint: oauth2.Endpoint{TokenURL: srv.URL + TokenExchangePath}}).
		Exchange(context.Background(), "", oauth2.SetAuthURLParam("client_id", fed.ID), oauth2.SetAuthURLParam("jwt", good))
	if err != nil || via.AccessToken == "" {
		t.Errorf("%+v %v", via, err)
	}
	for name, tt := range map[string]struct{ jwt, want string }{
		"other key":      {oidctest.SignIDToken(other, "k", "RS256", claims()), "signature"},
		"unknown key":    {oidctest.SignIDToken(key, "z", "RS256", claims()), "signature"},
		"expired":        {oidctest.SignIDToken(key, "k", "RS256", claims("exp", "1000")), "expired at"},
		"other audience": {oidctest.SignIDToken(key, "k", "RS256", claims("aud", `"x"`)), "another audience"},
		"other issuer":   {oidctest.SignIDToken(key, "k", "RS256", claims("iss", `"https://evil.example"`)), "of the issuer"},
		"other subject":  {oidctest.SignIDToken(key, "k", "RS256", claims("sub", `"repo:you/app:main"`)), "claim sub"},
		"other group":    {oidctest.SignIDToken(key, "k", "RS256", claims("groups", `["dev"]`)), "claim groups"},
		"no group":       {oidctest.SignIDToken(key, "k", "RS256", claims("groups", `null`)), "claim groups"},
		"other number":   {oidctest.SignIDToken(key, "k", "RS256", claims("run", `8`)), "claim run"},
		"not signed":     {"eyJhbGciOiJub25lIn0." + strings.Split(good, ".")[1] + ".", "signature"},
		"not even that":  {"x", "no JWT"},
		"huge":           {strings.Repeat("x", maxTokenBody-1000), "longer than"},
	} {
		status, body := exchange(fed.ID, tt.jwt)
		if status != 400 || !strings.Contains(body, "invalid_grant") || !strings.Contains(body, tt.want) {
			t.Errorf("%s: %d %s", name, status, body)
		}
	}
	if err := w.client.DeleteOAuthClient(w.ctx(), fed.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := c.ListPreAuthKeys(w.ctx(), PreAuthKeyFilter{}); tailnet.CodeOf(err) != tailnet.Unauthenticated {
		t.Errorf("a token of what is gone: %v", err)
	}
}

// All kinds of keys under one roof.
func TestKeysShareOneSpaceOfIDs(t *testing.T) {
	w := seed(t)
	ctx, root := w.ctx(), auth.SocketPrincipal("test")
	_, pre, err := w.auth.CreatePreAuthKey(ctx, auth.KeyRequest{Tags: []string{"tag:a"}})
	if err != nil {
		t.Fatal(err)
	}
	_, api, err := w.auth.CreateAPIKey(ctx, root, auth.APIKeyRequest{})
	if err != nil {
		t.Fatal(err)
	}
	_, client, err := w.auth.CreateOAuthClient(ctx, root, auth.ClientRequest{Scopes: []string{"dns"}})
	if err != nil {
		t.Fatal(err)
	}
	ids := []string{auth.PreAuthKeyID(pre), api.ID, client.ID}
	var got []string
	for _, k := range auth.Keys(w.st.Snapshot(), root) {
		got = append(got, k.ID())
	}
	if slices.Sort(ids); !slices.Equal(slices.Sorted(slices.Values(got)), ids) {
		t.Errorf("%q, want %q", got, ids)
	}
	self := &auth.Principal{Kind: auth.KindAPIKey, Credential: api.ID, Scopes: []string{auth.Read(auth.ScopeOAuthKeys)}}
	if n := len(auth.Keys(w.st.Snapshot(), self)); n != 2 { // itself and the client
		t.Errorf("it sees %d keys", n)
	}
	for id, want := range map[string]tailnet.Code{api.ID: "", client.ID: "", auth.PreAuthKeyID(pre): tailnet.Denied, "none": tailnet.NotFound} {
		if _, err := auth.FindKey(w.st.Snapshot(), self, id); tailnet.CodeOf(err) != want {
			t.Errorf("%s: %v", id, err)
		}
	}
	for _, id := range ids {
		for range 2 {
			if err := w.auth.RevokeKey(ctx, root, id); err != nil {
				t.Errorf("%s: %v", id, err)
			}
		}
		if k, err := auth.FindKey(w.st.Snapshot(), root, id); err != nil || !k.Ended(noon) {
			t.Errorf("%s: %+v %v", id, k, err)
		}
	}
}

var _ auth.TokenVerifier = (*oidc.Verifier)(nil)
