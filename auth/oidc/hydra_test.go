package oidc

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// hydra is a provider that behaves as Ory Hydra does where it differs from others, together with the login and consent app that
// every Hydra needs: it has no users itself. The issuer ends in a slash, parameters with less than 8 characters are refused, the
// client authenticates in one way only, ID token and user info hold nothing but what the app puts into the session.
//
//	/oauth2/auth ─► app /login ─► admin API: accept ─► /oauth2/auth ─► app /consent ─► admin API: accept ─► /oauth2/auth ─► client
//
// Version 1 has its admin API at the root, version 2 below /admin. Functions change what it says, for attacks.
type hydra struct {
	t       *testing.T
	version int
	srv     *httptest.Server // public
	admin   *httptest.Server
	app     *httptest.Server
	key     *ecdsa.PrivateKey

	mu     sync.Mutex
	client struct{ id, secret, method string }
	issuer string
	meta   map[string]any // over the discovery document
	down   bool
	slow   chan struct{} // not nil: answers wait for it

	subject string         // who signs in at the app
	session map[string]any // what the app puts into the ID token
	info    map[string]any // user info; nil: session

	edit   func(claims map[string]any)                // changes the ID token
	sign   func(claims map[string]any) (string, bool) // makes it instead
	token  func(http.ResponseWriter) bool             // answers the token request instead
	asked  []url.Values                               // authorization requests
	basic  []bool                                     // of token requests
	flows  map[string]*hydraFlow                      // by challenge, verifier and code
	userin int                                        // user info requests
}

type hydraFlow struct {
	q       url.Values
	subject string
	session map[string]any
	used    bool
}

func newHydra(t *testing.T, version int) *hydra {
	h := &hydra{t: t, version: version, flows: map[string]*hydraFlow{}, subject: "foo@bar.com", session: map[string]any{
		"email": "foo@bar.com", "email_verified": true, "preferred_username": "foo", "name": "Foo Bar", "groups": []string{"vpn", "staff"},
	}}
	h.client.id, h.client.secret, h.client.method = "skein", "s3cret/+ü", "client_secret_basic"
	var err error
	if h.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/.well-known/openid-configuration", h.discovery)
	mux.HandleFunc("/.well-known/jwks.json", func(w http.ResponseWriter, _ *http.Request) {
		h.json(w, 200, jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: h.key.Public(), KeyID: "k1", Algorithm: "ES256", Use: "sig"}}})
	})
	mux.HandleFunc("GET /oauth2/auth", h.auth)
	mux.HandleFunc("POST /oauth2/token", h.exchange)
	mux.HandleFunc("/userinfo", h.userinfo)
	h.srv = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.mu.Lock()
		down, slow := h.down, h.slow
		h.mu.Unlock()
		if slow != nil {
			<-slow
		}
		if down {
			http.Error(w, "upstream connect error", http.StatusBadGateway)
			return
		}
		mux.ServeHTTP(w, r)
	}))
	t.Cleanup(h.srv.Close)
	h.issuer = h.srv.URL + "/"
	admin, prefix := http.NewServeMux(), ""
	if version > 1 {
		prefix = "/admin"
	}
	admin.HandleFunc("PUT "+prefix+"/oauth2/auth/requests/login/accept", h.acceptLogin)
	admin.HandleFunc("PUT "+prefix+"/oauth2/auth/requests/consent/accept", h.acceptConsent)
	h.admin = httptest.NewServer(admin)
	t.Cleanup(h.admin.Close)
	h.app = httptest.NewServer(h.loginApp(prefix))
	t.Cleanup(h.app.Close)
	return h
}

// set changes h while it serves.
func (h *hydra) set(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f()
}

func (h *hydra) json(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

func (h *hydra) discovery(w http.ResponseWriter, _ *http.Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	m := map[string]any{
		"issuer": h.issuer, "authorization_endpoint": h.srv.URL + "/oauth2/auth", "token_endpoint": h.srv.URL + "/oauth2/token",
		"jwks_uri": h.srv.URL + "/.well-known/jwks.json", "userinfo_endpoint": h.srv.URL + "/userinfo",
		"end_session_endpoint":                  h.srv.URL + "/oauth2/sessions/logout",
		"token_endpoint_auth_methods_supported": []string{"client_secret_post", "client_secret_basic", "private_key_jwt", "none"},
		"id_token_signing_alg_values_supported": []string{"ES256"}, "code_challenge_methods_supported": []string{"plain", "S256"},
		"response_types_supported": []string{"code", "code id_token"}, "subject_types_supported": []string{"public"},
		"scopes_supported": []string{"offline_access", "offline", "openid"}, "claims_supported": []string{"sub"},
	}
	maps.Copy(m, h.meta)
	h.json(w, 200, m)
}

// auth is the authorization endpoint, which is visited three times.
func (h *hydra) auth(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	q := r.URL.Query()
	back := func(v url.Values) {
		v.Set("state", q.Get("state"))
		http.Redirect(w, r, q.Get("redirect_uri")+"?"+v.Encode(), http.StatusSeeOther)
	}
	if v := q.Get("login_verifier"); v != "" {
		f := h.flows[v]
		h.flows["c"+v] = f
		http.Redirect(w, r, h.app.URL+"/consent?consent_challenge=c"+v, http.StatusFound)
		return
	}
	if v := q.Get("consent_verifier"); v != "" {
		f := h.flows[v]
		q = f.q
		code := "ory_ac_" + rand.Text()
		h.flows[code] = f
		back(url.Values{"code": {code}, "scope": {q.Get("scope")}})
		return
	}
	h.asked = append(h.asked, q)
	switch {
	case q.Get("client_id") != h.client.id:
		http.Error(w, "invalid_client", http.StatusUnauthorized)
	case len(q.Get("state")) < 8:
		back(url.Values{"error": {"invalid_state"}, "error_description": {"The state is missing or does not have enough characters and is therefore considered too weak."}})
	case len(q.Get("nonce")) < 8:
		back(url.Values{"error": {"insufficient_entropy"}, "error_description": {"Parameter 'nonce' is set but does not satisfy the minimum entropy of 8 characters."}})
	case h.client.method == "none" && q.Get("code_challenge_method") != "S256":
		back(url.Values{"error": {"invalid_request"}, "error_description": {"Clients must include a code_challenge when performing the authorize code flow, but it is missing."}})
	default:
		challenge := rand.Text()
		h.flows[challenge] = &hydraFlow{q: q}
		http.Redirect(w, r, h.app.URL+"/login?login_challenge="+challenge, http.StatusFound)
	}
}

func (h *hydra) acceptLogin(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var body struct{ Subject string }
	c := r.URL.Query().Get("login_challenge")
	f := h.flows[c]
	if json.NewDecoder(r.Body).Decode(&body) != nil || f == nil || body.Subject == "" {
		h.json(w, 404, map[string]string{"error": "Unable to locate the requested resource"})
		return
	}
	f.subject = body.Subject
	h.flows["v"+c] = f
	h.json(w, 200, map[string]string{"redirect_to": h.srv.URL + "/oauth2/auth?" + f.q.Encode() + "&login_verifier=v" + c})
}

func (h *hydra) acceptConsent(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var body struct {
		GrantScope []string `json:"grant_scope"`
		Session    struct {
			IDToken map[string]any `json:"id_token"`
		}
	}
	c := r.URL.Query().Get("consent_challenge")
	f := h.flows[c]
	if json.NewDecoder(r.Body).Decode(&body) != nil || f == nil || !slices.Contains(body.GrantScope, "openid") {
		h.json(w, 404, map[string]string{"error": "Unable to locate the requested resource"})
		return
	}
	f.session = body.Session.IDToken
	h.flows["v"+c] = f
	h.json(w, 200, map[string]string{"redirect_to": h.srv.URL + "/oauth2/auth?" + f.q.Encode() + "&consent_verifier=v" + c})
}

// loginApp is the app that knows the users, and lets everybody in as h.subject.
func (h *hydra) loginApp(prefix string) http.Handler {
	accept := func(w http.ResponseWriter, r *http.Request, what string, body any) {
		b, _ := json.Marshal(body)
		c := url.QueryEscape(r.URL.Query().Get(what + "_challenge"))
		req, _ := http.NewRequest(http.MethodPut, h.admin.URL+prefix+"/oauth2/auth/requests/"+what+"/accept?"+what+"_challenge="+c, bytes.NewReader(b))
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer resp.Body.Close()
		var out struct {
			To string `json:"redirect_to"`
		}
		if json.NewDecoder(resp.Body).Decode(&out) != nil || out.To == "" {
			http.Error(w, "the admin API said "+resp.Status, http.StatusBadGateway)
			return
		}
		http.Redirect(w, r, out.To, http.StatusFound)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/login", func(w http.ResponseWriter, r *http.Request) {
		h.mu.Lock()
		subject := h.subject
		h.mu.Unlock()
		accept(w, r, "login", map[string]any{"subject": subject, "remember": false})
	})
	mux.HandleFunc("/consent", func(w http.ResponseWriter, r *http.Request) {
		h.mu.Lock()
		session := maps.Clone(h.session)
		h.mu.Unlock()
		accept(w, r, "consent", map[string]any{"grant_scope": []string{"openid", "profile", "email"}, "session": map[string]any{"id_token": session}})
	})
	return mux
}

func (h *hydra) exchange(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.token != nil && h.token(w) {
		return
	}
	id, secret, basic := r.BasicAuth()
	h.basic = append(h.basic, basic)
	if basic { // RFC 6749, section 2.3.1: form-encoded before
		id, _ = url.QueryUnescape(id)
		secret, _ = url.QueryUnescape(secret)
	} else {
		id, secret = r.PostFormValue("client_id"), r.PostFormValue("client_secret")
	}
	method := "client_secret_post"
	switch {
	case basic:
		method = "client_secret_basic"
	case secret == "":
		method = "none"
	}
	if method != h.client.method || id != h.client.id || secret != h.client.secret {
		h.json(w, 401, map[string]string{"error": "invalid_client", "error_description": fmt.Sprintf("Client authentication failed. "+
			"The OAuth 2.0 Client supports client authentication method '%s', but method '%s' was requested.", h.client.method, method)})
		return
	}
	if r.PostFormValue("grant_type") == "refresh_token" {
		h.refresh(w, r.PostFormValue("refresh_token"))
		return
	}
	f := h.flows[r.PostFormValue("code")]
	grant := func(why string) {
		h.json(w, 400, map[string]string{"error": "invalid_grant", "error_description": why})
	}
	switch {
	case !strings.HasPrefix(r.PostFormValue("code"), "ory_ac_") || f == nil || f.used:
		grant("The authorization code is unknown or has already been used.")
		return
	case f.q.Get("redirect_uri") != r.PostFormValue("redirect_uri"):
		grant("The 'redirect_uri' from this request does not match the one from the authorize request.")
		return
	case !pkceFits(f.q, r.PostFormValue("code_verifier")):
		grant("The PKCE code challenge did not match the code verifier.")
		return
	}
	f.used = true
	h.issue(w, f)
}

// refresh turns a refresh token over: the old one is good no more.
func (h *hydra) refresh(w http.ResponseWriter, token string) {
	f := h.flows[token]
	delete(h.flows, token)
	if !strings.HasPrefix(token, "ory_rt_") || f == nil {
		h.json(w, 400, map[string]string{"error": "invalid_grant", "error_description": "The refresh token is malformed or not valid."})
		return
	}
	f = &hydraFlow{q: f.q, subject: f.subject, session: maps.Clone(h.session)}
	f.q.Del("nonce")
	h.issue(w, f)
}

// issue answers with tokens.
func (h *hydra) issue(w http.ResponseWriter, f *hydraFlow) {
	access := "ory_at_" + rand.Text()
	h.flows[access] = f
	hash := sha256.Sum256([]byte(access))
	now := time.Now()
	claims := map[string]any{}
	maps.Copy(claims, f.session)
	maps.Copy(claims, map[string]any{
		"iss": h.issuer, "sub": f.subject, "aud": []string{h.client.id}, "jti": rand.Text(), "sid": rand.Text(),
		"iat": now.Unix(), "auth_time": now.Unix(), "rat": now.Unix(), "exp": now.Add(time.Hour).Unix(),
		"at_hash": base64.RawURLEncoding.EncodeToString(hash[:16]),
	})
	if n := f.q.Get("nonce"); n != "" {
		claims["nonce"] = n
	}
	if h.edit != nil {
		h.edit(claims)
	}
	raw, done := "", false
	if h.sign != nil {
		raw, done = h.sign(claims)
	}
	if !done {
		raw = signed(h.t, claims, jose.ES256, h.key, "k1")
	}
	out := map[string]any{"access_token": access, "token_type": "bearer", "expires_in": 3600, "scope": f.q.Get("scope"), "id_token": raw}
	if strings.Contains(f.q.Get("scope"), "offline_access") {
		refresh := "ory_rt_" + rand.Text()
		h.flows[refresh] = f
		out["refresh_token"] = refresh
	}
	h.json(w, 200, out)
}

func pkceFits(q url.Values, verifier string) bool {
	sum := sha256.Sum256([]byte(verifier))
	switch q.Get("code_challenge_method") {
	case "S256":
		return q.Get("code_challenge") == base64.RawURLEncoding.EncodeToString(sum[:])
	case "plain":
		return q.Get("code_challenge") == verifier
	}
	return verifier == ""
}

// signed is an ID token.
func signed(t *testing.T, claims map[string]any, alg jose.SignatureAlgorithm, key any, kid string) string {
	b, err := json.Marshal(claims)
	if err != nil {
		t.Error(err)
		return ""
	}
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key}, (&jose.SignerOptions{}).WithHeader("kid", kid).WithType("JWT"))
	if err != nil {
		t.Error(err)
		return ""
	}
	o, err := s.Sign(b)
	if err != nil {
		t.Error(err)
		return ""
	}
	out, err := o.CompactSerialize()
	if err != nil {
		t.Error(err)
	}
	return out
}

func (h *hydra) userinfo(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.userin++
	f := h.flows[strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")]
	if f == nil {
		h.json(w, 401, map[string]string{"error": "request_unauthorized"})
		return
	}
	out := map[string]any{"sub": f.subject}
	if h.info != nil {
		maps.Copy(out, h.info)
	} else {
		maps.Copy(out, f.session)
	}
	h.json(w, 200, out)
}
