package web

import (
	"math"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// A change of the password wants the present one, counts wrong ones, and ends the other sessions.
func TestChangePassword(t *testing.T) {
	s := newSite(t, nil)
	s.user("anna", tailnet.RoleAdmin, password)
	b, other := s.browser().signIn("anna"), s.browser().signIn("anna")
	const next = "eight green wolves"
	change := func(old, pw, repeat string) answer {
		return b.submit("/account", "/account/password", "old", old, "password", pw, "repeat", repeat)
	}
	change("wrong", next, next).wants(t, 403, "The present password is wrong.")
	change(password, "short", "short").wants(t, 400, "fewer than 12")
	change(password, next, next+"x").wants(t, 400, "The two passwords differ.")
	change(password, next, next).wants(t, 200, "Your password was changed, and all other sessions have ended.")
	if a := other.get("/admin"); a.Request.URL.Path != "/login" {
		t.Error("the other session goes on")
	}
	if a := b.get("/admin"); a.Request.URL.Path != "/admin" {
		t.Error("this session has ended")
	}
	s.browser().submit("/login", "/login", "name", "anna", "password", password).wants(t, 403)
	s.browser().submit("/login", "/login", "name", "anna", "password", next).wants(t, 200)
	for range 20 {
		if a := change("wrong", next, next); a.StatusCode == http.StatusTooManyRequests {
			if a.Header.Get("Retry-After") == "" {
				t.Error("429 without Retry-After")
			}
			return
		}
	}
	t.Error("the present password can be guessed without end")
}

// The list of sessions: one ended, others ended, and never somebody else's.
func TestSessionList(t *testing.T) {
	s := newSite(t, nil)
	s.user("anna", tailnet.RoleAdmin, password)
	ben := s.user("ben", tailnet.RoleMember, password)
	a, b, c := s.browser(), s.browser(), s.browser()
	a.header.Set("User-Agent", "Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0")
	b.header.Set("User-Agent", "Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.0 Mobile/15E148 Safari/604.1")
	c.header.Set("User-Agent", "<b>"+strings.Repeat("x", 10000))
	a.signIn("anna")
	b.signIn("anna")
	c.signIn("anna")
	page := a.get("/account")
	page.wants(t, 200, "Firefox on Linux", "Safari on iPhone", "an unknown browser", "this browser", "127.0.0.1", "with a password")
	if strings.Contains(page.body, "<b>") || len(page.body) > 20000 {
		t.Error("the page shows what a browser calls itself")
	}
	bens := s.browser().signIn("ben")
	ss, err := s.acc.Sessions(ctx, ben)
	if err != nil {
		t.Fatal(err)
	}
	a.submit("/account", "/account/sessions", "session", ss[0].ID).wants(t, 200)
	if bens.get("/admin").Request.URL.Path != "/admin" {
		t.Error("one user has ended another's session")
	}
	a.submit("/account", "/account/sessions", "session", "").wants(t, 400)
	a.submit("/account", "/account/sessions", "session", "others").wants(t, 200, "The sessions have ended.")
	for _, x := range []*browser{b, c} {
		if x.get("/admin").Request.URL.Path != "/login" {
			t.Error("another session goes on")
		}
	}
	mine := regexp.MustCompile(`name="session" value="([0-9a-f]{64})"`).FindStringSubmatch(a.get("/account").body)[1]
	a.submit("/account", "/account/sessions", "session", mine).wants(t, 200, "You have signed out")
	// What the page knows of a session does not open it.
	u, _ := url.Parse(s.url)
	a.c.Jar.SetCookies(u, []*http.Cookie{{Name: sessionCookie, Value: ss[0].ID, Path: "/"}})
	if a.get("/admin").Request.URL.Path != "/login" {
		t.Error("the id of a session opens it")
	}
}

// Who signs in with a provider has no password here and cannot make one.
func TestProviderAccount(t *testing.T) {
	p := &provider{}
	s := newSite(t, func(o *Options) { o.Providers = p })
	p.user = s.user("dora", tailnet.RoleMember, "")
	b := s.browser()
	b.get("/login/with/dex?to=/account").wants(t, 200, "Where you are signed in")
	if a := b.get("/account"); strings.Contains(a.body, "Set a password") || strings.Contains(a.body, "Add a passkey") {
		t.Error("a password is offered")
	}
	b.submit("/account", "/account/password", "password", password, "repeat", password).wants(t, 403, "You sign in with a provider")
}

// A role that changes, and a suspension, count at once; who waits for approval may look and add machines.
func TestRolesCountAtOnce(t *testing.T) {
	s := newSite(t, nil)
	anna := s.user("anna", tailnet.RoleAdmin, password)
	other := s.user("ben", tailnet.RoleMember, "")
	n := s.node(other, "bens")
	set := func(f func(u *tailnet.User)) {
		t.Helper()
		if err := s.st.Update(ctx, "test", func(tx *state.Tx) error {
			u := *tx.User(anna.ID)
			f(&u)
			return tx.PutUser(&u)
		}); err != nil {
			t.Fatal(err)
		}
	}
	b := s.browser().signIn("anna")
	here := "/machines/" + n.ID.String()
	b.get(here).wants(t, 200, "bens")
	set(func(u *tailnet.User) { u.Role = tailnet.RoleAuditor })
	b.get(here).wants(t, 404, "not yours")
	b.submit("/admin", here, "action", "remove", "sure", "yes").wants(t, 404)
	set(func(u *tailnet.User) { u.Role, u.Status = tailnet.RoleAdmin, tailnet.UserWaiting })
	b.get(here).wants(t, 404)
	b.get("/admin").wants(t, 200, "An administrator has to approve you")
	set(func(u *tailnet.User) { u.Status = tailnet.UserSuspended })
	if a := b.get("/admin"); a.Request.URL.Path != "/login" {
		t.Error("the session of somebody who is suspended goes on")
	}
	b.submit("/login", "/login", "name", "anna", "password", password).wants(t, 403, "suspended")
}

// One's own machines: rename, remove, and what is wrong; a tagged machine is nobody's own.
func TestMachines(t *testing.T) {
	s := newSite(t, nil)
	s.user("anna", tailnet.RoleAdmin, password)
	ben := s.user("ben", tailnet.RoleMember, password)
	n := s.node(ben, "laptop")
	here := "/machines/" + n.ID.String()
	b := s.browser().signIn("ben")
	b.get("/admin").wants(t, 200, "laptop", "never seen", "100.64.0.1")
	b.submit(here, here, "action", "rename", "name", "<b>").wants(t, 400, "There is a problem", `value="<b>"`)
	b.submit(here, here, "action", "rename", "name", "notebook").wants(t, 200, "The machine is called notebook now.")
	b.submit(here, here, "action", "remove").wants(t, 400, "Tick the box")
	b.submit(here, here, "action", "approve").wants(t, 403, "Only an administrator")
	b.submit(here, here, "action", "explode").wants(t, 400)
	for _, id := range []string{"0", "99", "-1", "x", "99999999999999999999999"} {
		b.get("/machines/"+id).wants(t, 404, "not yours")
	}
	s.pass(3 * time.Hour)
	b.get(here).wants(t, 200, "3 hours ago", "notebook.skein.internal", "never")
	if err := s.nodes.change(n.ID, func(n *tailnet.Node) { n.Tags, n.User = []string{"tag:nas"}, 0 }); err != nil {
		t.Fatal(err)
	}
	b.get(here).wants(t, 404)
	anna := s.browser().signIn("anna")
	anna.get(here).wants(t, 200, "tag:nas")
	anna.submit(here, here, "action", "remove", "sure", "yes").wants(t, 200, "not in this network any more")
	if s.st.Snapshot().Node(n.ID) != nil {
		t.Error("it is there")
	}
	// One that waits for approval.
	w := s.node(ben, "waits")
	if err := s.nodes.change(w.ID, func(n *tailnet.Node) { n.Authorized = false }); err != nil {
		t.Fatal(err)
	}
	at := "/machines/" + w.ID.String()
	anna.get("/admin").wants(t, 200, "Waiting for approval", at)
	anna.submit(at, at, "action", "approve").wants(t, 200)
	if !s.st.Snapshot().Node(w.ID).Authorized {
		t.Error("it is not approved")
	}
}

// Bad requests of all kinds are answered, with a page or JSON.
func TestBadRequests(t *testing.T) {
	s := newSite(t, nil)
	s.user("anna", tailnet.RoleAdmin, password)
	b := s.browser().signIn("anna")
	for _, tt := range []struct {
		method, path, body, kind string
		status                   int
	}{
		{"PUT", "/admin", "", "", 405}, {"DELETE", "/login", "", "", 405}, {"POST", "/admin", "", "", 405}, {"GET", "/logout", "", "", 405},
		{"GET", "/login/passkey/begin", "", "", 405}, {"GET", "/nowhere", "", "", 404}, {"GET", "/web/nothing.css", "", "", 404}, {"GET", "/web/../web.go", "", "", 404},
		{"GET", "/web/", "", "", 404}, {"POST", "/logout", strings.Repeat("a", maxBody+1), "application/x-www-form-urlencoded", 413},
		{"POST", "/logout", "%zz", "application/x-www-form-urlencoded", 400}, {"POST", "/logout", "x", "multipart/form-data", 403},
		{"POST", "/account/passkeys/finish", "{", "application/json", 403}, {"TRACE", "/admin", "", "", 405}, {"GET", "/register/", "", "", 404},
	} {
		for _, accept := range []string{"text/html", "application/json"} {
			req, err := http.NewRequestWithContext(ctx, tt.method, s.url+tt.path, strings.NewReader(tt.body))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", tt.kind)
			req.Header.Set("Origin", s.url)
			b.header.Set("Accept", accept)
			a := b.do(req)
			if a.StatusCode != tt.status {
				t.Errorf("%s %s: %s, want %d", tt.method, tt.path, a.Status, tt.status)
			}
			if a.StatusCode == 405 && a.Header.Get("Allow") == "" {
				t.Errorf("%s %s: no Allow", tt.method, tt.path)
			}
			if got := a.Header.Get("Content-Type"); !strings.HasPrefix(tt.path, "/web/") && accept == "application/json" && got != "application/problem+json" {
				t.Errorf("%s %s: %s", tt.method, tt.path, got)
			}
		}
	}
}

// A panic is answered with a page that tells nothing.
func TestPanic(t *testing.T) {
	s := newSite(t, func(o *Options) { o.Auth = nil })
	a := s.browser().get("/register/x")
	a.wants(t, 500, "The server has failed; its log says why.")
	if strings.Contains(a.body, "nil pointer") {
		t.Error("the page shows the panic")
	}
}

// What browsers may keep changes its address with its contents.
func TestStatic(t *testing.T) {
	s := newSite(t, nil)
	b := s.browser()
	for name, kind := range map[string]string{"style.css": "text/css", "passkey.js": "text/javascript", "icon.svg": "image/svg+xml"} {
		a := b.get("/web/" + name + "?" + version)
		if a.StatusCode != 200 || !strings.HasPrefix(a.Header.Get("Content-Type"), kind) || !strings.Contains(a.Header.Get("Cache-Control"), "immutable") {
			t.Errorf("%s: %s, %v", name, a.Status, a.Header)
		}
		if a := b.get("/web/" + name + "?old"); strings.Contains(a.Header.Get("Cache-Control"), "immutable") {
			t.Errorf("%s may be kept under an old address", name)
		}
		if strings.Contains(a.body, "http://") && name != "icon.svg" || strings.Contains(a.body, "https://") {
			t.Errorf("%s loads something from elsewhere", name)
		}
	}
}

// The colours of text differ enough from what is behind it, in both schemes (WCAG 2.2, 1.4.3 and 1.4.11).
func TestContrast(t *testing.T) {
	css, err := os.ReadFile("static/style.css")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile(`:root \{([^}]*)\}`).FindAllStringSubmatch(string(css), -1)
	if len(blocks) != 2 {
		t.Fatalf("%d sets of colours", len(blocks))
	}
	for i, block := range blocks {
		colour := map[string]string{}
		for _, m := range regexp.MustCompile(`--([a-z-]+): (#[0-9a-f]+)`).FindAllStringSubmatch(block[1], -1) {
			colour[m[1]] = m[2]
		}
		for _, pair := range []struct {
			front, back string
			min         float64
		}{
			{"text", "bg", 4.5}, {"text", "card", 4.5}, {"soft", "bg", 4.5}, {"soft", "card", 4.5}, {"accent", "bg", 4.5}, {"accent", "card", 4.5}, {"accent", "accent-soft", 4.5},
			{"on-accent", "accent", 4.5}, {"bad", "card", 4.5}, {"bad", "bad-soft", 4.5}, {"card", "bad", 4.5}, {"text", "good-soft", 4.5}, {"text", "bad-soft", 4.5},
			{"good", "card", 4.5}, {"warn", "card", 4.5}, {"text", "accent-soft", 4.5}, {"soft", "accent-soft", 4.5}, {"warn", "accent-soft", 4.5}, {"good", "accent-soft", 4.5},
			{"edge", "card", 3}, {"edge", "bg", 3},
		} {
			a, b := luminance(t, colour[pair.front]), luminance(t, colour[pair.back])
			if got := (max(a, b) + 0.05) / (min(a, b) + 0.05); got < pair.min {
				t.Errorf("scheme %d: %s on %s has a contrast of %.2f, want %.1f", i, pair.front, pair.back, got, pair.min)
			}
		}
	}
}

// luminance is the relative luminance of a colour (WCAG 2.2).
func luminance(t *testing.T, hex string) (l float64) {
	t.Helper()
	if len(hex) == 4 {
		hex = "#" + strings.Repeat(hex[1:2], 2) + strings.Repeat(hex[2:3], 2) + strings.Repeat(hex[3:4], 2)
	}
	if len(hex) != 7 {
		t.Fatalf("colour %q", hex)
	}
	for i, weight := range []float64{0.2126, 0.7152, 0.0722} {
		n, err := strconv.ParseUint(hex[1+2*i:3+2*i], 16, 8)
		if err != nil {
			t.Fatal(err)
		}
		c := float64(n) / 255
		if c <= 0.03928 {
			c /= 12.92
		} else {
			c = math.Pow((c+0.055)/1.055, 2.4)
		}
		l += weight * c
	}
	return l
}
