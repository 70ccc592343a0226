package oidc

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/skein-vpn/skein/tailnet"
)

// TestBrowserBound: what one browser began, no other can finish.
func TestBrowserBound(t *testing.T) {
	e := newEnv(t, newHydra(t, 2), nil)
	attacker, victim := newBrowser(t), newBrowser(t)
	link := attacker.untilCallback(e.begin("kind", FlowNode, "login", e.pending("EVIL")))
	_, no := victim.visit(link)
	e.is(no, tailnet.Invalid, "not started in this browser")

	// Not either if the victim is in the middle of a sign-in.
	own := victim.untilCallback(e.begin())
	_, no = victim.visit(link)
	e.is(no, tailnet.Invalid, "not started in this browser")
	if _, no = victim.visit(own); no != nil {
		t.Errorf("the victim's own sign-in was disturbed: %+v", no)
	}
	if len(e.st.Snapshot().Users()) != 1 {
		t.Error("a second user was made")
	}
}

// TestState: forged, missing, repeated, replayed, late.
func TestState(t *testing.T) {
	e := newEnv(t, newHydra(t, 2), nil)
	b := newBrowser(t)
	_, no := b.visit(e.site.URL + CallbackPath)
	e.is(no, tailnet.Invalid, "nobody did")
	_, no = b.visit(e.site.URL + CallbackPath + "?code=a&state=" + randomText())
	e.is(no, tailnet.Invalid, "not started in this browser")
	_, no = b.visit(e.site.URL + CallbackPath + "?state=" + strings.Repeat("x", maxQuery))
	e.is(no, tailnet.Invalid, "too long")

	back := b.untilCallback(e.begin())
	_, no = b.visit(back + "&state=another")
	e.is(no, tailnet.Invalid, "state twice")
	_, no = b.visit(strings.Replace(back, "state=", "state=x", 1))
	e.is(no, tailnet.Invalid, "not started in this browser")

	u, _ := url.Parse(e.site.URL)
	held := b.Jar.Cookies(u)
	if _, no = b.visit(back); no != nil {
		t.Fatalf("%+v", no)
	}
	if n := len(b.Jar.Cookies(u)); n != 0 {
		t.Errorf("%d cookies are left", n)
	}
	_, no = b.visit(back)
	e.is(no, tailnet.Invalid, "not started in this browser")
	b.Jar.SetCookies(u, held) // whoever has kept the cookie
	_, no = b.visit(back)
	e.is(no, tailnet.Invalid, "finished already")

	back = b.untilCallback(e.begin())
	e.pass(signInTTL + time.Second)
	_, no = b.visit(back)
	e.is(no, tailnet.Invalid, "more than 15m")
	if e.m.use("x", e.now()); len(e.m.used) != 1 {
		t.Errorf("%d states are kept", len(e.m.used))
	}
}

// TestCookie: changed, moved to another name, made with another key.
func TestCookie(t *testing.T) {
	h := newHydra(t, 2)
	e := newEnv(t, h, nil)
	u, _ := url.Parse(e.site.URL)
	for what, change := range map[string]func(*http.Cookie){
		"changed": func(c *http.Cookie) { c.Value = c.Value[:20] + "AAAA" + c.Value[24:] },
		"cut":     func(c *http.Cookie) { c.Value = c.Value[:10] },
		"no text": func(c *http.Cookie) { c.Value = "%%%" },
		"long":    func(c *http.Cookie) { c.Value = strings.Repeat("A", maxCookie+1) },
	} {
		b := newBrowser(t)
		back := b.untilCallback(e.begin())
		cs := b.Jar.Cookies(u)
		change(cs[0])
		b.Jar.SetCookies(u, cs)
		_, no := b.visit(back)
		if no == nil || no.Code != tailnet.Invalid {
			t.Errorf("%s: %+v", what, no)
		}
	}
	b := newBrowser(t)
	first, second := b.untilCallback(e.begin()), b.untilCallback(e.begin())
	cs := b.Jar.Cookies(u)
	cs[0].Value, cs[1].Value = cs[1].Value, cs[0].Value
	b.Jar.SetCookies(u, cs)
	for _, back := range []string{first, second} {
		_, no := b.visit(back)
		e.is(no, tailnet.Invalid, "not started here")
	}
}

// TestRestart: a sign-in outlives the server, and goes on at another one with the same key, but at none with another.
func TestRestart(t *testing.T) {
	e := newEnv(t, newHydra(t, 2), nil)
	for _, same := range []bool{true, false} {
		b := newBrowser(t)
		back := b.untilCallback(e.begin())
		o := e.m.o
		if !same {
			o.Key = [32]byte{2}
		}
		var err error
		if e.m, err = New(o); err != nil {
			t.Fatal(err)
		}
		_, no := b.visit(back)
		if same && no != nil {
			t.Errorf("%+v", no)
		} else if !same {
			e.is(no, tailnet.Invalid, "not started here")
		}
	}
}

// TestCodeOfAnother: the code of somebody else's sign-in, put into one's own answer.
func TestCodeOfAnother(t *testing.T) {
	h := newHydra(t, 2)
	for _, pkce := range []bool{true, false} {
		e := newEnv(t, h, func(po *ProviderOptions) { po.NoPKCE = !pkce })
		mine, other := newBrowser(t), newBrowser(t)
		back := mine.untilCallback(e.begin())
		stolen, err := url.Parse(other.untilCallback(e.begin()))
		if err != nil {
			t.Fatal(err)
		}
		u, _ := url.Parse(back)
		q := u.Query()
		q.Set("code", stolen.Query().Get("code"))
		u.RawQuery = q.Encode()
		_, no := mine.visit(u.String())
		if pkce {
			e.is(no, tailnet.Invalid, "PKCE")
		} else {
			e.is(no, tailnet.Denied, "nonce") // the second line of defence
		}
		if len(e.st.Snapshot().Users()) != 0 {
			t.Error("a user was made")
		}
	}
}

// TestTokens: what is wrong with an ID token, one after the other.
func TestTokens(t *testing.T) {
	h := newHydra(t, 2)
	e := newEnv(t, h, nil)
	stranger, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	set := func(k string, v any) func(map[string]any) { return func(c map[string]any) { c[k] = v } }
	for _, c := range []struct {
		name, why string
		edit      func(map[string]any)
	}{
		{"issuer", "issued by a different provider", set("iss", "https://evil.example/")},
		{"issuer without its slash", "issued by a different provider", set("iss", h.srv.URL)},
		{"audience", "expected audience", set("aud", []string{"another"})},
		{"no audience", "expected audience", set("aud", nil)},
		{"authorized party", "another client", func(c map[string]any) { c["aud"], c["azp"] = []string{"skein", "another"}, "another" }},
		{"nonce", "nonce", set("nonce", "another-nonce-altogether")},
		{"no nonce", "nonce", set("nonce", nil)},
		{"expired", "expired", set("exp", time.Now().Add(-time.Minute).Unix())},
		{"no expiry", "expired", func(c map[string]any) { delete(c, "exp") }},
		{"not yet", "nbf", set("nbf", time.Now().Add(time.Hour).Unix())},
		{"access token hash", "access token", set("at_hash", "bm90IGl0IGF0IGFsbCEhIQ")},
		{"no subject", "subject", set("sub", "")},
		{"long subject", "subject", set("sub", strings.Repeat("x", 256))},
		{"subject with a line", "subject", set("sub", "a\nb")},
		{"subject is a number", "claims", set("sub", 7)},
		{"mail address", "not a mail address", set("email", "foo@bar.com, evil@bar.com")},
		{"long mail address", "not a mail address", set("email", strings.Repeat("x", 300)+"@bar.com")},
		{"too many groups", "at most 1000", set("groups", make([]string, 1001))},
		{"long group", "name of a group", set("groups", []string{strings.Repeat("x", 256)})},
		{"huge", "could not be read", set("junk", strings.Repeat("x", maxAnswer))},
	} {
		t.Run(c.name, func(t *testing.T) {
			defer func(before *testing.T) { e.t = before }(e.t)
			e.t = t
			h.set(func() { h.edit = c.edit })
			code := tailnet.Denied
			if c.name == "huge" {
				code = tailnet.Unavailable
			}
			e.refused(code, c.why)
		})
	}
	h.set(func() { h.edit = nil })
	for name, sign := range map[string]func(map[string]any) string{
		"none": func(c map[string]any) string {
			b, _ := json.Marshal(c)
			return base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none"}`)) + "." + base64.RawURLEncoding.EncodeToString(b) + "."
		},
		"shared secret": func(c map[string]any) string {
			return signed(t, c, jose.HS256, []byte(strings.Repeat(h.client.secret, 8)), "k1")
		},
		"public key as the secret": func(c map[string]any) string {
			pub, _ := h.key.PublicKey.Bytes()
			return signed(t, c, jose.HS256, pub, "k1")
		},
		"a stranger's key":     func(c map[string]any) string { return signed(t, c, jose.ES256, stranger, "k1") },
		"a key nobody knows":   func(c map[string]any) string { return signed(t, c, jose.ES256, stranger, "k2") },
		"another algorithm":    func(c map[string]any) string { return signed(t, c, jose.ES384, must(t, elliptic.P384()), "k1") },
		"not signed at all":    func(c map[string]any) string { return "e30.e30" },
		"no token":             func(c map[string]any) string { return "" },
		"key in the signature": func(c map[string]any) string { return embedded(t, c, stranger) },
	} {
		t.Run(name, func(t *testing.T) {
			defer func(before *testing.T) { e.t = before }(e.t)
			e.t = t
			h.set(func() { h.sign = func(c map[string]any) (string, bool) { return sign(c), true } })
			e.refused(tailnet.Denied, "cannot be verified")
		})
	}
	h.set(func() { h.sign = nil })
	e.signIn()
}

func must(t *testing.T, c elliptic.Curve) *ecdsa.PrivateKey {
	k, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// embedded is an ID token that brings the key it is to be verified with.
func embedded(t *testing.T, claims map[string]any, k *ecdsa.PrivateKey) string {
	b, _ := json.Marshal(claims)
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: k}, &jose.SignerOptions{EmbedJWK: true})
	if err != nil {
		t.Fatal(err)
	}
	o, err := s.Sign(b)
	if err != nil {
		t.Fatal(err)
	}
	out, _ := o.CompactSerialize()
	return out
}

// TestTokenAnswers: nonsense from the token endpoint.
func TestTokenAnswers(t *testing.T) {
	h := newHydra(t, 2)
	e := newEnv(t, h, nil)
	for body, code := range map[string]tailnet.Code{
		"":                                    tailnet.Unavailable,
		"<html>":                              tailnet.Unavailable,
		`{"access_token":""}`:                 tailnet.Unavailable,
		`{"access_token":"a","id_token":7}`:   tailnet.Denied,
		`{"access_token":"a"}`:                tailnet.Denied,
		`{"error":"` + "\x00<script>" + `"}`:  tailnet.Unavailable,
		strings.Repeat(`{"a":`, maxAnswer/10): tailnet.Unavailable,
	} {
		h.set(func() {
			h.token = func(w http.ResponseWriter) bool {
				w.Header().Set("Content-Type", "application/json")
				_, _ = io.WriteString(w, body)
				return true
			}
		})
		e.refused(code, "")
	}
}

// TestPending: what a person signs in for must wait, before and after.
func TestPending(t *testing.T) {
	e := newEnv(t, newHydra(t, 2), nil)
	e.refused(tailnet.NotFound, "no registration waits", "kind", FlowNode, "login", "NOTHING")
	e.refused(tailnet.NotFound, "no SSH session waits", "kind", FlowSSH, "login", "NOTHING")
	e.refused(tailnet.Invalid, "cannot be for", "kind", "<b>")
	e.refused(tailnet.NotFound, "no identity provider", "p", "<b>")
	if n := len(e.h.asked); n != 0 {
		t.Errorf("the provider was asked %d times", n)
	}

	b := newBrowser(t)
	back := b.untilCallback(e.begin("kind", FlowNode, "login", e.pending("GONE")))
	if err := e.logins.DeleteLogin(ctx, tailnet.DefaultID, "GONE"); err != nil {
		t.Fatal(err)
	}
	_, no := b.visit(back)
	e.is(no, tailnet.NotFound, "no registration waits")
	if len(e.st.Snapshot().Users()) != 0 {
		t.Error("a user was made")
	}
}

func TestLocalPath(t *testing.T) {
	for in, want := range map[string]string{
		"": "/", "/": "/", "/register/A?b=c#d": "/register/A?b=c#d", "register": "/", "//evil.example": "/", "/\\evil.example": "/",
		"https://evil.example": "/", "/a\r\nSet-Cookie: x": "/", "javascript:alert(1)": "/", "/%zz": "/", "/" + strings.Repeat("a", maxReturnTo): "/",
		"///evil.example": "/", "/\tevil": "/", "/a//b": "/a//b",
	} {
		if got := localPath(in); got != want {
			t.Errorf("%.40q: got %q, want %q", in, got, want)
		}
	}
}

// TestRefusedByProvider: errors of the authorization endpoint, shown only once the state has been found to be ours.
func TestRefusedByProvider(t *testing.T) {
	h := newHydra(t, 1)
	e := newEnv(t, h, nil)
	_, no := newBrowser(t).visit(e.site.URL + CallbackPath + "?error=access_denied&error_description=Call+0900&state=x")
	e.is(no, tailnet.Invalid, "not started in this browser")
	if strings.Contains(no.Message, "0900") {
		t.Error(no)
	}
	for code, want := range map[string]tailnet.Code{
		"access_denied": tailnet.Denied, "login_required": tailnet.Denied, "server_error": tailnet.Unavailable, "invalid_scope": tailnet.Unavailable,
		"<script>": tailnet.Unavailable,
	} {
		b := newBrowser(t)
		back, err := url.Parse(b.untilCallback(e.begin()))
		if err != nil {
			t.Fatal(err)
		}
		back.RawQuery = url.Values{"state": back.Query()["state"], "error": {code}, "error_description": {"the reason\nwhy " + strings.Repeat("x", 3000)}}.Encode()
		_, no := b.visit(back.String())
		e.is(no, want, code)
		if strings.Contains(no.Message, "\n") || len(no.Message) > 800 || !strings.Contains(no.Message, "the reason") {
			t.Errorf("%q", no.Message)
		}
	}
	// Hydra's own: a state that is too short, as ours never is.
	resp, err := (&http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}).Get(
		h.srv.URL + "/oauth2/auth?client_id=skein&state=short&nonce=long-enough&redirect_uri=" + url.QueryEscape(e.site.URL+CallbackPath))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if !strings.Contains(resp.Header.Get("Location"), "invalid_state") {
		t.Errorf("the provider takes short states: %s", resp.Header.Get("Location"))
	}
}

// TestMixUp: an answer counts for the provider that was asked, and for no other.
func TestMixUp(t *testing.T) {
	good, evil := newHydra(t, 2), newHydra(t, 2)
	po := func(id string, h *hydra) ProviderOptions {
		return ProviderOptions{ID: id, Issuer: h.issuer, ClientID: h.client.id, ClientSecret: h.client.secret}
	}
	e := newEnvWith(t, good, po("good", good), po("evil", evil))
	for _, id := range []string{"good", "evil"} {
		if in := e.signIn("p", id); in.User.Provider != id {
			t.Errorf("%+v", in.User)
		}
	}
	if n := len(e.st.Snapshot().Users()); n != 2 {
		t.Errorf("%d users: the same subject at two providers is two people", n)
	}
	b := newBrowser(t)
	back := b.untilCallback(e.begin("p", "evil"))
	if !strings.Contains(back, CallbackPath+"/evil?") {
		t.Fatal(back)
	}
	_, no := b.visit(strings.Replace(back, "/evil?", "/good?", 1))
	e.is(no, tailnet.Invalid, "another identity provider")
	_, no = b.visit(strings.Replace(back, "/evil?", "?", 1))
	e.is(no, tailnet.Invalid, "another identity provider")
	_, no = b.visit(back + "&iss=" + url.QueryEscape(good.issuer))
	e.is(no, tailnet.Invalid, "another identity provider")

	// RFC 9207: who promises to say who it is must do so.
	h := newHydra(t, 2)
	h.meta = map[string]any{"authorization_response_iss_parameter_supported": true}
	e = newEnv(t, h, nil)
	e.refused(tailnet.Invalid, "another identity provider")
	b = newBrowser(t)
	if _, no := b.visit(b.untilCallback(e.begin()) + "&iss=" + url.QueryEscape(h.issuer)); no != nil {
		t.Errorf("%+v", no)
	}
}

// TestProviderDown: down at the start, then back, then away in the middle of a sign-in.
func TestProviderDown(t *testing.T) {
	h := newHydra(t, 2)
	h.down = true
	e := newEnv(t, h, nil)
	if p := e.m.Providers(); len(p) != 1 || p[0].Err == nil || p[0].ID != "oidc" || p[0].Name != "127.0.0.1" {
		t.Errorf("%+v", p)
	}
	e.refused(tailnet.Unavailable, "127.0.0.1 cannot be used at the moment")
	if err := e.m.Discover(ctx); err == nil || tailnet.CodeOf(err) == "" {
		t.Error(err)
	}
	run, stop := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { e.m.Run(run); close(done) }()
	h.set(func() { h.down = false })
	for deadline := time.Now().Add(time.Minute); e.m.Providers()[0].Err != nil; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it was not tried again")
		}
	}
	stop()
	<-done
	e.signIn()

	b := newBrowser(t)
	back := b.untilCallback(e.begin())
	h.set(func() { h.down = true })
	_, no := b.visit(back)
	e.is(no, tailnet.Unavailable, "refused to finish")
	if e.m.Providers()[0].Err != nil {
		t.Error("a provider that was ready stays so")
	}
}

// TestProviderHangs: nobody waits for ever, and shutting down does not wait at all.
func TestProviderHangs(t *testing.T) {
	h := newHydra(t, 2)
	h.slow = make(chan struct{})
	defer close(h.slow)
	e := newEnv(t, h, nil)
	run, stop := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { e.m.Run(run); close(done) }()
	stop()
	<-done
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	_, _, err := e.m.Begin(short, DefaultID, Flow{Kind: FlowLogin})
	if tailnet.CodeOf(err) != tailnet.Unavailable || !strings.Contains(err.Error(), "does not answer") {
		t.Error(err)
	}
}

// TestDiscovery: documents that are wrong.
func TestDiscovery(t *testing.T) {
	for what, c := range map[string]struct {
		meta map[string]any
		why  string
	}{
		"issuer":     {map[string]any{"issuer": "https://evil.example"}, "calls itself https://evil.example"},
		"no token":   {map[string]any{"token_endpoint": ""}, "could not be read"},
		"javascript": {map[string]any{"authorization_endpoint": "javascript:alert(1)"}, "could not be read"},
		"no keys":    {map[string]any{"jwks_uri": nil}, "could not be read"},
		"huge":       {map[string]any{"x": strings.Repeat("x", 2*maxAnswer)}, "could not be read"},
	} {
		h := newHydra(t, 2)
		h.meta = c.meta
		e := newEnv(t, h, nil)
		e.refused(tailnet.Unavailable, c.why)
		if err := e.m.Providers()[0].Err; err == nil || !strings.Contains(err.Error(), c.why) {
			t.Errorf("%s: the page says %v", what, err)
		}
	}
	closed := httptest.NewServer(nil)
	closed.Close()
	h := newHydra(t, 2)
	e := newEnv(t, h, func(po *ProviderOptions) { po.Issuer = closed.URL })
	e.refused(tailnet.Unavailable, "cannot be reached")
}

func TestOptions(t *testing.T) {
	for why, po := range map[string][]ProviderOptions{
		"not an id":            {{ID: "A b", Issuer: "https://a", ClientID: "x"}},
		"address of an issuer": {{Issuer: "a", ClientID: "x"}},
		"must use PKCE":        {{Issuer: "https://a", ClientID: "x", NoPKCE: true}},
		"two providers":        {{ID: "a", Issuer: "https://a", ClientID: "x"}, {ID: "a", Issuer: "https://b", ClientID: "x"}},
	} {
		if _, err := New(Options{Providers: po}); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%s: %v", why, err)
		}
	}
}

// TestCookieAttributes: nobody else gets to see the cookie, or to plant one.
func TestCookieAttributes(t *testing.T) {
	e := newEnv(t, newHydra(t, 2), nil)
	for _, server := range []string{"https://skein.example.com", "http://skein.example.com"} {
		o := e.m.o
		o.ServerURL = server
		m, err := New(o)
		if err != nil {
			t.Fatal(err)
		}
		_, c, err := m.Begin(ctx, DefaultID, Flow{Kind: FlowLogin, ReturnTo: "/" + strings.Repeat("a", maxReturnTo-1)})
		if err != nil {
			t.Fatal(err)
		}
		tls := strings.HasPrefix(server, "https")
		if !c.HttpOnly || c.Secure != tls || c.SameSite != http.SameSiteLaxMode || c.Path != "/" || c.Domain != "" || c.MaxAge != 900 ||
			strings.HasPrefix(c.Name, "__Host-") != tls || c.Valid() != nil || len(c.String()) > 4000 { // what browsers keep
			t.Errorf("%s: %s (%d bytes)", server, c, len(c.String()))
		}
	}
}

// FuzzCallback throws anything at the callback: no panic, and nobody gets in.
func FuzzCallback(f *testing.F) {
	seal, err := newSealer([32]byte{1})
	if err != nil {
		f.Fatal(err)
	}
	m := &Manager{o: Options{ServerURL: "http://127.0.0.1", Now: time.Now}, seal: seal, used: map[string]time.Time{}}
	f.Add("state=a&code=b", "x")
	f.Add("state=%zz&state=a", "")
	f.Add("error=access_denied", strings.Repeat("A", 9000))
	f.Fuzz(func(t *testing.T, query, cookie string) {
		r := &http.Request{Method: http.MethodGet, URL: &url.URL{Path: CallbackPath, RawQuery: query}, Header: http.Header{}}
		r.Header.Set("Cookie", fmt.Sprintf("%s=%s", m.cookieName(r.URL.Query().Get("state")), cookie))
		if _, _, err := m.returned(r); tailnet.CodeOf(err) != tailnet.Invalid {
			t.Errorf("%v", err)
		}
	})
}

// FuzzClaims: whatever a provider says, nothing panics, and what is believed keeps to the limits.
func FuzzClaims(f *testing.F) {
	f.Add(`{"email":"a@b.c","email_verified":"true","groups":["a"],"picture":"https://a/b"}`, "groups")
	f.Add(`{"a":{"b":{"c":"x"}},"name":"\u202egnp.exe"}`, "a.b.c")
	f.Add(`{"groups":{},"email":7,"name":null}`, "groups")
	f.Fuzz(func(t *testing.T, text, path string) {
		var c claims
		if json.Unmarshal([]byte(text), &c) != nil {
			return
		}
		p := &provider{o: ProviderOptions{GroupsClaim: path}}
		gs, err := p.groups(c)
		if err == nil && len(gs) > maxGroups {
			t.Errorf("%d groups", len(gs))
		}
		if s := c.text("name"); len(s) > 255 || strings.ContainsAny(s, "\n\u202e") {
			t.Errorf("%q", s)
		}
		if s := c.picture(); s != "" && !strings.HasPrefix(strings.ToLower(s), "https://") {
			t.Errorf("%q", s)
		}
		_ = c.yes("email_verified")
		if n := userName(c.text("name")); n != "" && tailnet.CheckUserName(n) != nil {
			t.Errorf("%q is no name", n)
		}
	})
}
