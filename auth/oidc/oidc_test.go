package oidc

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/types/key"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/dns"
	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/state/statetest"
	"github.com/skein-vpn/skein/tailnet"
)

var ctx = context.Background()

// env is a Skein with the two handlers that a page needs, a provider, and people with browsers.
type env struct {
	t      *testing.T
	h      *hydra
	st     *state.State
	logins *statetest.Logins
	m      *Manager
	site   *httptest.Server

	mu    sync.Mutex
	ahead time.Duration // of the real time
	last  *SignedIn
}

func newEnv(t *testing.T, h *hydra, edit func(*ProviderOptions)) *env {
	po := ProviderOptions{Issuer: h.srv.URL, ClientID: h.client.id, ClientSecret: h.client.secret, GroupsClaim: "groups"}
	if edit != nil {
		edit(&po)
	}
	return newEnvWith(t, h, po)
}

func newEnvWith(t *testing.T, h *hydra, pos ...ProviderOptions) *env {
	t.Helper()
	e := &env{t: t, h: h, logins: &statetest.Logins{}}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	var err error
	e.st, err = state.Open(ctx, state.Options{
		Store: statetest.New(), RestartGrace: time.Hour, Log: log,
		Addressing: state.Addressing{Prefix4: netip.MustParsePrefix("100.64.0.0/10")},
		DNS:        &dns.Settings{Base: "skein.internal"}, DERP: &state.DERPMaps{Current: &tailcfg.DERPMap{}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.st.Close)
	a := auth.New(auth.Options{State: e.st, Store: e.logins, Log: log})
	mux := http.NewServeMux()
	e.site = httptest.NewServer(mux)
	t.Cleanup(e.site.Close)
	mux.HandleFunc("/begin", func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		to, c, err := e.m.Begin(r.Context(), q.Get("p"), Flow{Kind: q.Get("kind"), LoginID: q.Get("login"), ReturnTo: q.Get("to")})
		if err != nil {
			fail(w, err)
			return
		}
		http.SetCookie(w, c)
		http.Redirect(w, r, to, http.StatusSeeOther)
	})
	callback := func(w http.ResponseWriter, r *http.Request) {
		in, err := e.m.Finish(r.Context(), r)
		if err != nil {
			fail(w, err)
			return
		}
		e.mu.Lock()
		e.last = in
		e.mu.Unlock()
		http.SetCookie(w, in.Cookie)
		_, _ = io.WriteString(w, "in")
	}
	mux.HandleFunc(CallbackPath, callback)
	mux.HandleFunc(CallbackPath+"/{id}", callback)
	e.m, err = New(Options{
		State: e.st, Pending: a, ServerURL: e.site.URL, Key: [32]byte{1}, Providers: pos, Log: log, Now: e.now,
	})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func (e *env) now() time.Time {
	e.mu.Lock()
	defer e.mu.Unlock()
	return time.Now().Add(e.ahead)
}

func (e *env) pass(d time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.ahead += d
}

// fail writes an error as a page would: its code, its sentence, and for the test its cause.
func fail(w http.ResponseWriter, err error) {
	var te *tailnet.Error
	out := map[string]string{"code": string(tailnet.CodeOf(err)), "message": err.Error()}
	if errors.As(err, &te) && te.Cause != nil {
		out["cause"] = te.Cause.Error()
	}
	w.WriteHeader(http.StatusTeapot)
	_ = json.NewEncoder(w).Encode(out)
}

// refusal is what fail wrote.
type refusal struct {
	Code           tailnet.Code
	Message, Cause string
}

// browser is one person's.
type browser struct {
	*http.Client
	t    *testing.T
	stop func(*http.Request) bool // not nil: do not follow this one
}

func newBrowser(t *testing.T) *browser {
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	b := &browser{t: t}
	b.Client = &http.Client{Jar: jar, Timeout: time.Minute, CheckRedirect: func(r *http.Request, _ []*http.Request) error {
		if b.stop != nil && b.stop(r) {
			return http.ErrUseLastResponse
		}
		return nil
	}}
	return b
}

// visit follows an address to its end. The refusal is nil if the person is in.
func (b *browser) visit(to string) (*http.Response, *refusal) {
	b.t.Helper()
	resp, err := b.Get(to)
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	if resp.StatusCode == http.StatusTeapot {
		r := &refusal{}
		if err := json.Unmarshal(body, r); err != nil {
			b.t.Fatalf("%v: %s", err, body)
		}
		return resp, r
	}
	if string(body) != "in" && (b.stop == nil || resp.StatusCode/100 != 3) {
		b.t.Fatalf("%s ended at %s with %s: %s", to, resp.Request.URL, resp.Status, body)
	}
	return resp, nil
}

// untilCallback goes through the provider and returns the address that it sends the browser back to, without going there.
func (b *browser) untilCallback(to string) string {
	b.t.Helper()
	b.stop = func(r *http.Request) bool { return strings.HasPrefix(r.URL.Path, CallbackPath) }
	defer func() { b.stop = nil }()
	resp, no := b.visit(to)
	if no != nil {
		b.t.Fatalf("refused: %+v", no)
	}
	return resp.Header.Get("Location")
}

func (e *env) begin(q ...string) string {
	v := url.Values{"p": {DefaultID}, "kind": {FlowLogin}}
	for i := 0; i+1 < len(q); i += 2 {
		v.Set(q[i], q[i+1])
	}
	return e.site.URL + "/begin?" + v.Encode()
}

// signIn signs somebody in, in a browser of its own.
func (e *env) signIn(q ...string) *SignedIn {
	e.t.Helper()
	if _, no := newBrowser(e.t).visit(e.begin(q...)); no != nil {
		e.t.Fatalf("refused: %+v", no)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.last
}

// refused wants a sign-in to fail with this code and words in its sentence or its cause, and to leave nothing behind.
func (e *env) refused(code tailnet.Code, words string, q ...string) {
	e.t.Helper()
	before := len(e.st.Snapshot().Users())
	_, no := newBrowser(e.t).visit(e.begin(q...))
	e.is(no, code, words)
	if n := len(e.st.Snapshot().Users()); n != before {
		e.t.Errorf("%d users, there were %d", n, before)
	}
}

func (e *env) is(no *refusal, code tailnet.Code, words string) {
	e.t.Helper()
	if no == nil {
		e.t.Fatalf("let in; want %s and %q", code, words)
	}
	if no.Code != code || !strings.Contains(no.Message+"\n"+no.Cause, words) {
		e.t.Errorf("got %+v, want %s and %q", no, code, words)
	}
}

// pending is the id of a login that waits.
func (e *env) pending(id string) string {
	e.t.Helper()
	l := &tailnet.Login{ID: id, Tailnet: tailnet.DefaultID, MachineKey: key.NewMachine().Public(), NodeKey: key.NewNode().Public(),
		Hostinfo: &tailcfg.Hostinfo{Hostname: "laptop"}, Created: time.Now()}
	if err := e.logins.PutLogin(ctx, l); err != nil {
		e.t.Fatal(err)
	}
	return id
}

// TestHydra is the whole way with both versions, and with the issuer in both spellings.
func TestHydra(t *testing.T) {
	for _, version := range []int{1, 2} {
		for _, slash := range []string{"", "/"} {
			h := newHydra(t, version)
			e := newEnv(t, h, func(po *ProviderOptions) { po.Issuer += slash })
			login := e.pending("WAITS")
			in := e.signIn("kind", FlowNode, "login", login, "to", "/register/WAITS")
			want := Identity{
				Provider: "oidc", Identifier: h.srv.URL + "/foo@bar.com", Issuer: h.srv.URL + "/", Subject: "foo@bar.com",
				Email: "foo@bar.com", EmailVerified: true, Username: "foo", Name: "Foo Bar", Groups: []string{"staff", "vpn"},
				Expiry: in.Identity.Expiry, IDToken: in.Identity.IDToken,
			}
			if got := in.Identity; !equal(got, want) {
				t.Errorf("v%d %q: got %+v, want %+v", version, slash, got, want)
			}
			if in.Flow != (Flow{Kind: FlowNode, LoginID: login, ReturnTo: "/register/WAITS"}) || !in.NodeExpiry.IsZero() {
				t.Errorf("%+v until %v", in.Flow, in.NodeExpiry)
			}
			u := e.st.Snapshot().User(in.User.ID)
			if u == nil || u.Name != "foo" || u.Email != "foo@bar.com" || u.DisplayName != "Foo Bar" || u.Provider != "oidc" ||
				u.ProviderID != h.srv.URL+"/foo@bar.com" || !slices.Equal(u.Groups, []string{"staff", "vpn"}) || u.Role != tailnet.RoleMember {
				t.Errorf("the user is %+v", u)
			}
			if len(h.basic) != 1 || !h.basic[0] || h.userin != 0 {
				t.Errorf("basic authentication %v, user info asked %d times", h.basic, h.userin)
			}
			q := h.asked[0]
			if len(q.Get("state")) < 22 || len(q.Get("nonce")) < 22 || q.Get("state") == q.Get("nonce") || q.Get("code_challenge_method") != "S256" ||
				q.Get("scope") != "openid profile email" || q.Get("redirect_uri") != e.site.URL+"/oidc/callback" {
				t.Errorf("asked %v", q)
			}
			// Again: the same user, nothing new.
			rev := e.st.Snapshot().Rev
			if again := e.signIn(); again.User.ID != in.User.ID || e.st.Snapshot().Rev != rev {
				t.Errorf("the second sign-in made user %d, was %d; rev %d, was %d", again.User.ID, in.User.ID, e.st.Snapshot().Rev, rev)
			}
		}
	}
}

func equal(a, b any) bool {
	x, _ := json.Marshal(a)
	y, _ := json.Marshal(b)
	return string(x) == string(y)
}

func TestEmailVerified(t *testing.T) {
	h := newHydra(t, 2)
	e := newEnv(t, h, nil)
	delete(h.session, "email_verified")
	e.refused(tailnet.Denied, "did not say that your mail address foo@bar.com is verified (claim email_verified)")
	e.refused(tailnet.Denied, "email_verified_required")
	h.session["email_verified"] = false
	e.refused(tailnet.Denied, "claim email_verified")
	delete(h.session, "email")
	e.refused(tailnet.Denied, "did not say what your mail address is")
	h.session = map[string]any{"email": "FOO@Bar.com", "email_verified": "true"}
	if in := e.signIn(); in.User.Email != "foo@bar.com" || in.User.Name != "foo" || in.User.Title() != "foo" {
		t.Errorf("%+v", in.User)
	}

	// Without the rule, people need no address at all.
	e = newEnv(t, h, func(po *ProviderOptions) { po.UnverifiedEmail = true })
	h.session = map[string]any{}
	h.subject = "8f14e45f"
	if in := e.signIn(); in.User.Email != "" || in.User.Name != "user-1" || in.User.LoginName() != "user-1" {
		t.Errorf("%+v", in.User)
	}
}

// TestUserInfo: what the ID token does not say, the user info endpoint may; about the same person, and the same address.
func TestUserInfo(t *testing.T) {
	h := newHydra(t, 2)
	e := newEnv(t, h, nil)
	h.session, h.info = map[string]any{"email": "foo@bar.com"}, map[string]any{
		"email": "foo@bar.com", "email_verified": true, "groups": []string{"b", "a", "b", " "}, "name": "Foo", "picture": "https://p.example/1.png",
	}
	in := e.signIn()
	if in.User.DisplayName != "Foo" || !slices.Equal(in.User.Groups, []string{"a", "b"}) || in.User.Picture != "https://p.example/1.png" || h.userin != 1 {
		t.Errorf("%+v, asked %d times", in.User, h.userin)
	}
	h.info["email"] = "other@bar.com"
	e.refused(tailnet.Denied, "claim email_verified")
	h.info["sub"] = "somebody else"
	e.refused(tailnet.Denied, "another subject")
	h.info = map[string]any{"sub": "foo@bar.com", "x": strings.Repeat("x", maxAnswer)}
	e.refused(tailnet.Unavailable, "longer than")
}

func TestGroups(t *testing.T) {
	h := newHydra(t, 1)
	h.session["groups"] = nil
	h.session["realm_access"] = map[string]any{"roles": []string{"vpn", "/ops"}}
	h.session["https://example.com/groups"] = "single"
	for _, c := range []struct {
		claim string
		want  []string
	}{
		{"realm_access.roles", []string{"/ops", "vpn"}}, {"https://example.com/groups", []string{"single"}}, {"groups", nil}, {"email.x", nil}, {"", nil},
	} {
		e := newEnv(t, h, func(po *ProviderOptions) { po.GroupsClaim = c.claim })
		if in := e.signIn(); !slices.Equal(in.User.Groups, c.want) {
			t.Errorf("%s: %q, want %q", c.claim, in.User.Groups, c.want)
		}
	}
	h.session["groups"] = []any{"a", 1}
	newEnv(t, h, nil).refused(tailnet.Denied, "not a list of names")
	h.session["groups"] = []string{"a\nb"}
	newEnv(t, h, nil).refused(tailnet.Denied, "control characters")
}

func TestAllowed(t *testing.T) {
	h := newHydra(t, 2)
	for _, c := range []struct {
		name string
		edit func(*ProviderOptions)
		why  string // empty: let in
	}{
		{"domain", func(po *ProviderOptions) { po.AllowedDomains = []string{"example.com", "BAR.com"} }, ""},
		{"other domain", func(po *ProviderOptions) { po.AllowedDomains = []string{"example.com"} }, "mail addresses of your domain may not"},
		{"end of a domain", func(po *ProviderOptions) { po.AllowedDomains = []string{"ar.com"} }, "may not sign in"},
		{"user", func(po *ProviderOptions) { po.AllowedUsers = []string{"Foo@bar.com"} }, ""},
		{"other user", func(po *ProviderOptions) { po.AllowedUsers = []string{"oo@bar.com"} }, "foo@bar.com may not sign in"},
		{"group", func(po *ProviderOptions) { po.AllowedGroups = []string{"x", "vpn"} }, ""},
		{"other group", func(po *ProviderOptions) { po.AllowedGroups = []string{"VPN", "/vpn"} }, "none of your groups"},
		{"all", func(po *ProviderOptions) {
			po.AllowedGroups, po.AllowedUsers, po.AllowedDomains = []string{"vpn"}, []string{"foo@bar.com"}, []string{"bar.com"}
		}, ""},
		{"one of them not", func(po *ProviderOptions) {
			po.AllowedGroups, po.AllowedUsers, po.AllowedDomains = []string{"vpn"}, []string{"foo@bar.com"}, []string{"example.com"}
		}, "may not"},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := newEnv(t, h, c.edit)
			if c.why == "" {
				e.signIn()
			} else {
				e.refused(tailnet.Denied, c.why)
			}
		})
	}
}

func TestClientAuthentication(t *testing.T) {
	for _, c := range []struct {
		method string // as the client is registered
		edit   func(*ProviderOptions)
		meta   []string // what the provider says that it supports
		why    string
	}{
		{"client_secret_basic", nil, nil, ""},
		{"client_secret_post", nil, nil, "method of authentication"},
		{"client_secret_post", func(po *ProviderOptions) { po.AuthMethod = "client_secret_post" }, nil, ""},
		{"client_secret_post", nil, []string{"client_secret_post"}, ""},
		{"none", func(po *ProviderOptions) { po.ClientSecret = "" }, nil, ""},
		{"client_secret_basic", func(po *ProviderOptions) { po.ClientSecret = "wrong" }, nil, "does not accept this server as its client"},
		{"client_secret_basic", func(po *ProviderOptions) { po.NoPKCE = true }, nil, ""},
		{"client_secret_basic", func(po *ProviderOptions) { po.PlainPKCE = true }, nil, ""},
	} {
		h := newHydra(t, 2)
		h.client.method = c.method
		if c.meta != nil {
			h.meta = map[string]any{"token_endpoint_auth_methods_supported": c.meta}
		}
		e := newEnv(t, h, c.edit)
		if c.method == "none" {
			h.client.secret = ""
		}
		if c.why == "" {
			e.signIn()
		} else {
			e.refused(tailnet.Unavailable, c.why)
		}
		if len(h.basic) != 1 {
			t.Errorf("%s: %d token requests: a code is good once", c.method, len(h.basic))
		}
	}
}

func TestExpiry(t *testing.T) {
	h := newHydra(t, 2)
	e := newEnv(t, h, func(po *ProviderOptions) { po.Expiry = 48 * time.Hour })
	if d := time.Until(e.signIn().NodeExpiry); d < 47*time.Hour || d > 49*time.Hour {
		t.Error(d)
	}
	e = newEnv(t, h, func(po *ProviderOptions) { po.UseExpiryFromToken = true })
	if d := time.Until(e.signIn().NodeExpiry); d < 50*time.Minute || d > 61*time.Minute {
		t.Error(d)
	}
}

func TestExtraParams(t *testing.T) {
	h := newHydra(t, 2)
	e := newEnv(t, h, func(po *ProviderOptions) {
		po.ExtraParams = map[string]string{"domain_hint": "example.com", "nonce": "fixed-nonce-of-a-thief"}
		po.Scopes = []string{"openid", "groups"}
	})
	e.signIn()
	if q := h.asked[0]; q.Get("domain_hint") != "example.com" || len(q["nonce"]) != 1 || q.Get("nonce") == "fixed-nonce-of-a-thief" || q.Get("scope") != "openid groups" {
		t.Error(q)
	}
}

func TestLogoutURL(t *testing.T) {
	h := newHydra(t, 2)
	e := newEnv(t, h, nil)
	in := e.signIn()
	u, err := url.Parse(e.m.LogoutURL(in.Identity, "/bye"))
	if err != nil || !strings.HasPrefix(u.String(), h.srv.URL+"/oauth2/sessions/logout?") || u.Query().Get("id_token_hint") != in.Identity.IDToken ||
		u.Query().Get("post_logout_redirect_uri") != e.site.URL+"/bye" {
		t.Errorf("%v, %v", u, err)
	}
	if s := e.m.LogoutURL(Identity{Provider: "gone"}, "/"); s != "" {
		t.Error(s)
	}
}
