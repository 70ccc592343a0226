package web

import (
	"context"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"tailscale.com/tailcfg"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/tailnet"
)

// The first administrator comes by a link that works once, and signs in with a password from then on.
func TestFirstAdministrator(t *testing.T) {
	s := newSite(t, nil)
	s.browser().get("/login").wants(t, 200, "Nobody can sign in here yet", "skein admins create-link")
	old, _, err := s.acc.FirstLink(ctx)
	if err != nil {
		t.Fatal(err)
	}
	link, _, err := s.acc.FirstLink(ctx)
	if err != nil {
		t.Fatal(err)
	}
	b := s.browser()
	b.get(strings.TrimPrefix(old, s.url)).wants(t, 404, "does not work any more")
	here := strings.TrimPrefix(link, s.url)
	b.get(here).wants(t, 200, "Set up the first administrator", "At least 12 characters")
	b.get(here).wants(t, 200) // looking does not use it up
	for _, tt := range []struct{ name, password, repeat, want string }{
		{"", password, password, "A namespace needs a name."},
		{"Anna Bell", password, password, "is not a name"},
		{"anna", "short", "short", "fewer than 12 characters"},
		{"anna", "annaanna1234", "annaanna1234", "tried first"},
		{"anna", "aaabbbcccddd", "aaabbbcccddd", "use at least 5 different ones"},
		{"anna", "Password1234!", "Password1234!", "tried first"},
		{"anna", "qwertyuiop123", "qwertyuiop123", "tried first"},
		{"anna", strings.Repeat("long", 1000), strings.Repeat("long", 1000), "longer than"},
		{"anna", "seven \x00 foxes go", "seven \x00 foxes go", "cannot be typed"},
		{"anna", password, password + "x", "The two passwords differ."},
		{"tagged-devices", password, password, "take another one"},
	} {
		b.submit(here, here, "name", tt.name, "password", tt.password, "repeat", tt.repeat).wants(t, 400, "There is a problem", "Error: ", tt.want)
	}
	form := url.Values{"token": {b.token(here)}, "name": {"anna"}, "password": {password}, "repeat": {password}}
	a := b.post(here, form)
	a.wants(t, 200, "Signed in as <strong>anna</strong>", "No machine waits.", "tailscale up --login-server "+s.url)
	if a.Request.URL.Path != "/admin" {
		t.Errorf("led to %s", a.Request.URL)
	}
	u := s.st.Snapshot().UserByName("anna")
	if u == nil || u.Role != tailnet.RoleOwner {
		t.Fatalf("%+v", u)
	}
	s.browser().get(here).wants(t, 404, "has been used")
	form.Set("token", s.browser().token("/login"))
	s.browser().post(here, form).wants(t, 403)
	if l, _, err := s.acc.FirstLink(ctx); l != "" || err != nil {
		t.Errorf("a second first administrator could come: %q, %v", l, err)
	}
	s.browser().signIn("anna")
}

func TestLinkExpires(t *testing.T) {
	s := newSite(t, nil)
	link, _, err := s.acc.CreateLink(ctx, auth.LinkRequest{Name: "ben", Role: tailnet.RoleAdmin})
	if err != nil {
		t.Fatal(err)
	}
	here := strings.TrimPrefix(link, s.url)
	b := s.browser()
	b.get(here).wants(t, 200, "Choose how you will sign in", `value="ben"`, "readonly")
	token := b.token(here)
	s.pass(auth.LinkTTL)
	b.get(here).wants(t, 404)
	b.post(here, url.Values{"token": {token}, "password": {password}, "repeat": {password}}).wants(t, 404)
	if s.st.Snapshot().UserByName("ben") != nil {
		t.Error("the link has made a user after its time")
	}
}

// Each form wants a token of this browser and session, and the browser's word that it is a page of ours.
func TestForgery(t *testing.T) {
	s := newSite(t, nil)
	anna := s.user("anna", tailnet.RoleAdmin, password)
	n := s.node(anna, "laptop")
	login, _ := s.waiting(&tailcfg.Hostinfo{Hostname: "evil"})
	b := s.browser().signIn("anna")
	other := s.browser().signIn("anna")
	good := b.token("/admin")
	forms := map[string]url.Values{
		"/register/" + login:           {"owner": {anna.ID.String()}, "action": {"add"}},
		"/machines/" + n.ID.String():   {"action": {"remove"}, "sure": {"yes"}},
		"/account/password":            {"old": {password}, "password": {"another fine password"}, "repeat": {"another fine password"}},
		"/account/sessions":            {"session": {"others"}},
		"/account/passkeys":            {"passkey": {"x"}},
		"/account/passkeys/begin":      {},
		"/account/passkeys/finish":     {},
		"/login":                       {"name": {"anna"}, "password": {password}},
		"/login/passkey/begin":         {},
		"/login/passkey/finish":        {},
		"/logout":                      {},
		"/ssh/nothing":                 {"action": {"approve"}},
		"/setup/nothing":               {"name": {"x"}},
		"/setup/nothing/passkey/begin": {},
	}
	for path := range forms {
		for what, tamper := range map[string]func(r *http.Request, f url.Values){
			"no token":                func(_ *http.Request, f url.Values) { f.Del("token") },
			"an empty token":          func(_ *http.Request, f url.Values) { f.Set("token", "") },
			"another session's token": func(_ *http.Request, f url.Values) { f.Set("token", other.token("/admin")) },
			"a stranger's token":      func(_ *http.Request, f url.Values) { f.Set("token", s.browser().token("/login")) },
			"another site's page": func(r *http.Request, _ url.Values) {
				r.Header.Set("Sec-Fetch-Site", "cross-site")
				r.Header.Set("Origin", "https://evil.example")
			},
			"a neighbour's page": func(r *http.Request, _ url.Values) {
				r.Header.Set("Sec-Fetch-Site", "same-site")
				r.Header.Set("Origin", "http://neighbour.example")
			},
			"another origin":   func(r *http.Request, _ url.Values) { r.Header.Set("Origin", "https://evil.example") },
			"no origin at all": func(r *http.Request, _ url.Values) { r.Header.Set("Origin", "null") },
		} {
			f := url.Values{}
			for k, v := range forms[path] {
				f[k] = v
			}
			f.Set("token", good)
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			tamper(req, f)
			body := f.Encode()
			req, err = http.NewRequestWithContext(ctx, http.MethodPost, s.url+path, strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			req.Header.Set("Origin", s.url)
			tamper(req, f)
			if a := b.do(req); a.StatusCode != http.StatusForbidden {
				t.Errorf("%s with %s: %s", path, what, a.Status)
			}
		}
	}
	// A GET does none of it.
	for path := range forms {
		b.get(path + "?" + forms[path].Encode() + "&token=" + good)
	}
	if sn := s.st.Snapshot(); len(sn.Nodes()) != 1 || sn.Node(n.ID) == nil {
		t.Error("a forged form has changed the machines")
	}
	if ss, err := s.acc.Sessions(ctx, anna); err != nil || len(ss) != 2 {
		t.Errorf("%d sessions, %v", len(ss), err)
	}
	other.signIn("anna")
}

// A sign-in form is good in the browser that asked for it: nobody signs a victim in as somebody else.
func TestLoginCSRF(t *testing.T) {
	s := newSite(t, nil)
	s.user("mallory", tailnet.RoleAdmin, password)
	mallory := s.browser()
	f := url.Values{"token": {mallory.token("/login")}, "name": {"mallory"}, "password": {password}}
	victim := s.browser()
	victim.get("/login")
	victim.post("/login", f).wants(t, 403, "out of date")
	s.browser().post("/login", f).wants(t, 403) // nor in one that has never been here
	if victim.sessionCookie() != "" {
		t.Error("the victim has a session")
	}
	mallory.post("/login", f).wants(t, 200)
}

// A sign-in makes a new session, whatever the browser had before; the old one ends.
func TestSessionFixation(t *testing.T) {
	s := newSite(t, nil)
	s.user("anna", tailnet.RoleAdmin, password)
	b := s.browser()
	u, _ := url.Parse(s.url)
	planted := strings.Repeat("A", 43)
	b.c.Jar.SetCookies(u, []*http.Cookie{{Name: sessionCookie, Value: planted, Path: "/"}})
	b.signIn("anna")
	first := b.sessionCookie()
	if first == planted || len(first) < 40 {
		t.Fatalf("the session is %q", first)
	}
	b.signIn("anna")
	if second := b.sessionCookie(); second == first {
		t.Error("a second sign-in kept the session")
	}
	thief := s.browser()
	for _, secret := range []string{planted, first} {
		thief.c.Jar.SetCookies(u, []*http.Cookie{{Name: sessionCookie, Value: secret, Path: "/"}})
		if a := thief.get("/admin"); a.Request.URL.Path != "/login" {
			t.Errorf("session %s opens %s", secret, a.Request.URL)
		}
	}
}

// Where a sign-in leads is ours.
func TestOpenRedirect(t *testing.T) {
	s := newSite(t, nil)
	s.user("anna", tailnet.RoleAdmin, password)
	for _, to := range []string{
		"https://evil.example/", "//evil.example", `/\evil.example`, `\\evil.example`, "/admin/../../x", "javascript:alert(1)", "/login", "/logout", "admin",
		"/register/../x", "/register/a?b", "/admin\r\nX: y", "/%2Fevil.example", "/register/" + strings.Repeat("a", 5000), "/machines/1/../..", "",
	} {
		b := s.browser()
		a := b.submit("/login?to="+url.QueryEscape(to), "/login", "to", to, "name", "anna", "password", password)
		if a.Request.URL.Path != "/admin" || a.Request.URL.Host != strings.TrimPrefix(s.url, "http://") {
			t.Errorf("%q leads to %s", to, a.Request.URL)
		}
		if a := b.get("/login?to=" + url.QueryEscape(to)); a.Request.URL.Path != "/admin" {
			t.Errorf("%q leads to %s when somebody has signed in", to, a.Request.URL)
		}
	}
	for _, to := range []string{"/account", "/admin"} {
		if a := s.browser().submit("/login?to="+to, "/login", "to", to, "name", "anna", "password", password); a.Request.URL.Path != to {
			t.Errorf("%q leads to %s", to, a.Request.URL)
		}
	}
}

// Guessing is slowed down by name and by address; names that do not exist are treated like others.
func TestBruteForce(t *testing.T) {
	s := newSite(t, func(o *Options) {
		o.Remote = func(r *http.Request) netip.Addr { return netip.MustParseAddr(r.Header.Get("X-Test-From")) }
	})
	s.user("anna", tailnet.RoleAdmin, password)
	from := func(addr string) *browser {
		b := s.browser()
		b.header.Set("X-Test-From", addr)
		return b
	}
	try := func(b *browser, name, pw string) answer {
		return b.submit("/login", "/login", "name", name, "password", pw)
	}
	for _, name := range []string{"anna", "nobody"} {
		b := from("192.0.2." + map[string]string{"anna": "1", "nobody": "2"}[name])
		var said string
		for i := range 10 {
			a := try(b, name, "wrong password "+strings.Repeat("x", i))
			a.wants(t, 403, "The name or the password is wrong.")
			said = a.Status
		}
		a := try(b, name, password)
		a.wants(t, 429, "Too many attempts")
		if a.Header.Get("Retry-After") != "61" && a.Header.Get("Retry-After") != "60" {
			t.Errorf("%s: Retry-After %q after %s", name, a.Header.Get("Retry-After"), said)
		}
		// From elsewhere the name is closed just as well.
		try(from("198.51.100.9"), name, password).wants(t, 429)
	}
	s.pass(time.Minute + time.Second)
	if a := try(from("198.51.100.9"), "anna", password); a.StatusCode != 200 || a.Request.URL.Path != "/admin" {
		t.Errorf("after a minute: %s at %s", a.Status, a.Request.URL)
	}
	// One address, many names.
	b := from("2001:db8::1")
	for i := range 20 {
		try(b, "name"+string(rune('a'+i)), "wrong password").wants(t, 403)
	}
	try(b, "another", "wrong password").wants(t, 429)
	try(from("2001:db8::2"), "another", "wrong password").wants(t, 429) // the same /64
	try(from("2001:db8:0:1::2"), "another", "wrong password").wants(t, 403)
	b.header.Set("Accept", "application/json")
	a := b.post("/login", url.Values{"token": {from("2001:db8::1").token("/login")}, "name": {"x"}, "password": {"y"}})
	if a.StatusCode != 403 || a.Header.Get("Content-Type") != "application/problem+json" {
		t.Errorf("JSON: %s %s", a.Status, a.Header.Get("Content-Type"))
	}
}

// Sign-ins that succeed use nothing up.
func TestManyGoodSignIns(t *testing.T) {
	s := newSite(t, nil)
	s.user("anna", tailnet.RoleAdmin, password)
	for range 25 {
		s.browser().signIn("anna")
	}
	u := s.st.Snapshot().UserByName("anna")
	if ss, err := s.acc.Sessions(ctx, u); err != nil || len(ss) != 20 {
		t.Errorf("%d sessions, %v; want the newest 20", len(ss), err)
	}
}

// A session ends by itself when it is not used, and in any case after a week; with its user; and by hand.
func TestSessionEnds(t *testing.T) {
	s := newSite(t, nil)
	anna := s.user("anna", tailnet.RoleAdmin, password)
	in := func(b *browser) bool { return b.get("/admin").Request.URL.Path == "/admin" }
	b := s.browser().signIn("anna")
	s.pass(auth.SessionIdle - time.Minute)
	if !in(b) {
		t.Error("ended before its time")
	}
	s.pass(auth.SessionIdle + time.Minute)
	if in(b) {
		t.Error("an idle session goes on")
	}
	b.signIn("anna")
	for range 30 {
		s.pass(6 * time.Hour)
		in(b)
	}
	if in(b) {
		t.Error("a session lasts more than a week")
	}
	b.signIn("anna")
	secret := b.sessionCookie()
	b.submit("/admin", "/logout").wants(t, 200, "You have signed out")
	if b.sessionCookie() != "" || in(b) {
		t.Error("still signed in after signing out")
	}
	u, _ := url.Parse(s.url)
	b.c.Jar.SetCookies(u, []*http.Cookie{{Name: sessionCookie, Value: secret, Path: "/"}})
	if in(b) {
		t.Error("the secret of a session that was signed out still works")
	}
	b.signIn("anna")
	if err := s.acc.DeleteAccount(ctx, anna); err != nil {
		t.Fatal(err)
	}
	if in(b) {
		t.Error("the session of a removed account goes on")
	}
	s.browser().get("/login").wants(t, 200, "Nobody can sign in here yet")
}

// Cookies are what they should be: for HTTPS with the prefix that keeps others from planting them.
func TestCookies(t *testing.T) {
	for url, name := range map[string]string{"http://192.0.2.1:8080": "skein", "https://vpn.example.com": "__Host-skein"} {
		s := newSite(t, func(o *Options) { o.ServerURL = url })
		s.user("anna", tailnet.RoleAdmin, password)
		b := s.browser()
		a := b.get("/login")
		check := func(cs []*http.Cookie, want string) {
			t.Helper()
			for _, c := range cs {
				if c.Name == want && c.HttpOnly && c.SameSite == http.SameSiteLaxMode && c.Path == "/" && c.Domain == "" &&
					c.Secure == strings.HasPrefix(url, "https") {
					return
				}
			}
			t.Errorf("%s: no good cookie %s among %v", url, want, cs)
		}
		check(a.Cookies(), name+"-visit")
		visit := a.Cookies()[0]
		token := tokenField.FindStringSubmatch(a.body)[1]
		req, err := http.NewRequestWithContext(ctx, "POST", s.url+"/login", strings.NewReader("name=anna&password=seven+brown+foxes&token="+token))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.Header.Set("Origin", url) // a proxy did not pass the Host on
		req.AddCookie(&http.Cookie{Name: visit.Name, Value: visit.Value})
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusSeeOther {
			t.Errorf("%s: %s", url, resp.Status)
		}
		check(resp.Cookies(), name)
		http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	}
}

// provider is an identity provider of which only the seam is real.
type provider struct {
	flow    Flow
	user    *tailnet.User
	idToken string
}

func (p *provider) Providers() []Provider {
	return []Provider{{ID: "dex", Name: "Dex"}, {ID: "down", Name: "Down <b>", Err: tailnet.Errorf(tailnet.Unavailable, "down cannot be reached")}}
}

func (p *provider) Begin(_ context.Context, id string, f Flow) (string, *http.Cookie, error) {
	if id != "dex" {
		return "", nil, tailnet.Errorf(tailnet.NotFound, "there is no identity provider %q here", id)
	}
	p.flow = f
	return CallbackPath + "?code=1", &http.Cookie{Name: "begun", Value: "1", Path: "/"}, nil
}

func (p *provider) Finish(_ context.Context, r *http.Request) (*SignedIn, error) {
	if _, err := r.Cookie("begun"); err != nil {
		return nil, tailnet.Errorf(tailnet.Invalid, "this sign-in was not started in this browser")
	}
	return &SignedIn{User: p.user, Flow: p.flow, Method: "Dex", Cookies: []*http.Cookie{{Name: "begun", MaxAge: -1}}, Provider: "dex", IDToken: p.idToken}, nil
}

func (p *provider) SignOutURL(provider, idToken string) (string, string) {
	if provider != "dex" {
		return "", ""
	}
	return "https://dex.example/end?" + url.Values{"id_token_hint": {idToken}}.Encode(), "Dex"
}

// Who has come by TLS shall not come without, from then on; where there is none, nobody is told so.
func TestTransportSecurity(t *testing.T) {
	for url, want := range map[string]string{"https://vpn.example.com": transportSecurity, "http://vpn.example.com": ""} {
		s := newSite(t, func(o *Options) { o.ServerURL = url })
		if got := s.browser().get("/login").Header.Get("Strict-Transport-Security"); got != want {
			t.Errorf("%s: %q", url, got)
		}
	}
}

// Signing out here offers to sign out at the provider, with what that has said; nobody is sent there unasked.
func TestProviderSignOut(t *testing.T) {
	p := &provider{idToken: "a.b.c"}
	s := newSite(t, func(o *Options) { o.Providers = p })
	p.user = s.user("dora", tailnet.RoleMember, "")
	b := s.browser()
	signOut := func(want ...string) {
		t.Helper()
		b.get("/login/with/dex?to=/account").wants(t, 200, "signed in just now with Dex")
		b.submit("/account", "/logout").wants(t, 200, append(want, "You have signed out in this browser.")...)
	}
	signOut("At Dex you are still signed in.", `href="https://dex.example/end?id_token_hint=a.b.c"`, "Sign out at Dex, too")
	p.idToken = strings.Repeat("x", 4000)
	signOut(`href="https://dex.example/end?id_token_hint="`) // too long for a cookie

	// Whoever has not come by a provider, and a cookie that is not ours, are nothing to ask about.
	password := "correct horse battery"
	u := s.user("emil", tailnet.RoleMember, password)
	b.get("/login")
	b.submit("/login", "/login", "name", u.Name, "password", password, "to", "/account").wants(t, 200, "emil")
	if a := b.submit("/account", "/logout"); strings.Contains(a.body, "Dex") {
		t.Errorf("a provider that emil has not used:\n%s", a.body)
	}
}

// A sign-in with a provider leads to the question, not past it, and whoever comes by it is a member like others.
func TestProvider(t *testing.T) {
	p := &provider{}
	s := newSite(t, func(o *Options) { o.Providers = p })
	p.user = s.user("dora", tailnet.RoleMember, "")
	login, _ := s.waiting(&tailcfg.Hostinfo{Hostname: "laptop"})
	b := s.browser()
	here := "/register/" + login
	b.get(here).wants(t, 200, "Continue with Dex", "Down <b>", "Down cannot be reached.", "/login/with/dex?to=%2Fregister%2F"+login)
	a := b.get("/login/with/dex?to=" + url.QueryEscape(here))
	a.wants(t, 200, "Add this machine to dora?")
	if p.flow != (Flow{"node", login, here}) {
		t.Errorf("the flow is %+v", p.flow)
	}
	if len(s.st.Snapshot().Nodes()) != 0 {
		t.Error("the machine is in without a question")
	}
	b.submit(here, here, "owner", p.user.ID.String(), "action", "add").wants(t, 200, "laptop was added")
	b.get("/account").wants(t, 200, "signed in just now with Dex")
	s.browser().get(CallbackPath+"?code=1").wants(t, 400, "not started in this browser")
	s.browser().get("/login/with/other").wants(t, 404)
	s.browser().get("/login/with/dex?to=//evil.example").wants(t, 200)
	if p.flow != (Flow{"login", "", "/admin"}) {
		t.Errorf("the flow is %+v", p.flow)
	}
	newSite(t, nil).browser().get("/login/with/dex").wants(t, 404, "No identity provider is set up")
}
