package web

import (
	"context"
	"html"
	"io"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/db"
	"github.com/skein-vpn/skein/dns"
	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var ctx = context.Background()

const password = "seven brown foxes"

// site is the pages over a real state and database, behind a real HTTP server, with a clock that stands still.
type site struct {
	t     testing.TB
	db    *db.DB
	st    *state.State
	auth  *auth.Auth
	acc   *auth.Accounts
	srv   *httptest.Server
	url   string
	nodes *fakeNodes
	h     atomic.Pointer[Handler] // the pages; a browser may ask while they are made anew
	clock atomic.Pointer[time.Time]
}

func (s *site) now() time.Time { return *s.clock.Load() }

// pass lets time pass.
func (s *site) pass(d time.Duration) {
	t := s.now().Add(d)
	s.clock.Store(&t)
}

// fakeNodes changes nodes as the API would.
type fakeNodes struct{ st *state.State }

func (f *fakeNodes) change(id tailnet.NodeID, c func(n *tailnet.Node)) error {
	return f.st.Update(ctx, "test", func(tx *state.Tx) error {
		n := tx.Node(id).Clone()
		c(n)
		return tx.PutNode(n)
	})
}

func (f *fakeNodes) Approve(_ context.Context, _ *tailnet.User, id tailnet.NodeID) error {
	return f.change(id, func(n *tailnet.Node) { n.Authorized = true })
}

func (f *fakeNodes) Rename(_ context.Context, _ *tailnet.User, id tailnet.NodeID, name string) error {
	if strings.ContainsAny(name, " <>") {
		return tailnet.Errorf(tailnet.Invalid, "%q is not a name", name)
	}
	return f.change(id, func(n *tailnet.Node) { n.Name = name })
}

func (f *fakeNodes) Delete(_ context.Context, _ *tailnet.User, id tailnet.NodeID) error {
	return f.st.Update(ctx, "test", func(tx *state.Tx) error {
		tx.DeleteNode(id)
		return nil
	})
}

// newSite is a site; edit may change the options of its Handler.
func newSite(t testing.TB, edit func(*Options)) *site {
	t.Helper()
	s := &site{t: t}
	start := time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	s.clock.Store(&start)
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	var err error
	if s.db, err = db.Open(ctx, db.Options{Path: filepath.Join(t.TempDir(), "db.sqlite")}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.db.Close() })
	s.st, err = state.Open(ctx, state.Options{
		Store: s.db, Now: s.now, RestartGrace: 1000 * time.Hour, Log: log,
		Addressing: state.Addressing{Prefix4: netip.MustParsePrefix("100.64.0.0/10"), Prefix6: netip.MustParsePrefix("fd7a:115c:a1e0::/48")},
		DNS:        &dns.Settings{Base: "skein.internal", MagicDNS: true}, DERP: &state.DERPMaps{Current: &tailcfg.DERPMap{}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.st.Close)
	s.srv = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.h.Load().ServeHTTP(w, r) }))
	t.Cleanup(s.srv.Close)
	s.url = s.srv.URL
	s.auth = auth.New(auth.Options{State: s.st, Store: s.db, Now: s.now, Log: log, ServerURL: s.url})
	s.acc = auth.NewAccounts(auth.AccountsOptions{State: s.st, Store: s.db, ServerURL: s.url, Secret: []byte("secret"), Now: s.now, Log: log})
	s.nodes = &fakeNodes{s.st}
	s.serve(edit)
	return s
}

// serve makes the pages anew.
func (s *site) serve(edit func(*Options)) {
	o := Options{
		State: s.st, Auth: s.auth, Accounts: s.acc, Nodes: s.nodes, ServerURL: s.url, Secret: []byte("secret"), Now: s.now,
		Log:    slog.New(slog.DiscardHandler),
		Remote: func(r *http.Request) netip.Addr { return netip.MustParseAddrPort(r.RemoteAddr).Addr() },
	}
	if edit != nil {
		edit(&o)
	}
	s.h.Store(New(o))
}

// user makes a user with a role, and a password if it is not empty.
func (s *site) user(name string, role tailnet.Role, pw string) *tailnet.User {
	s.t.Helper()
	var u *tailnet.User
	err := s.st.Update(ctx, "test", func(tx *state.Tx) error {
		u = tx.NewUser(name)
		u.Role = role
		return tx.PutUser(u)
	})
	if err == nil && pw != "" {
		var link string
		if link, _, err = s.acc.CreateLink(ctx, auth.LinkRequest{User: u.ID}); err == nil {
			_, err = s.acc.UseLink(ctx, link[strings.LastIndexByte(link, '/')+1:], "", pw)
		}
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return u
}

// waiting is the id of a login that waits.
func (s *site) waiting(h *tailcfg.Hostinfo) (login string, machine key.MachinePrivate) {
	s.t.Helper()
	machine = key.NewMachine()
	out, err := s.auth.Register(ctx, machine.Public(), &tailcfg.RegisterRequest{Version: 130, NodeKey: key.NewNode().Public(), Hostinfo: h}, "192.0.2.7")
	if err != nil {
		s.t.Fatal(err)
	}
	return out.Login, machine
}

// node is a node of a user.
func (s *site) node(u *tailnet.User, hostname string) *tailnet.Node {
	s.t.Helper()
	login, _ := s.waiting(&tailcfg.Hostinfo{Hostname: hostname, OS: "linux"})
	id, err := s.auth.CompleteLogin(ctx, login, u.ID)
	if err != nil {
		s.t.Fatal(err)
	}
	return s.st.Snapshot().Node(id).Node
}

// browser is a browser without JavaScript: it keeps cookies and follows redirects.
type browser struct {
	s      *site
	c      *http.Client
	header http.Header // of each request
}

func (s *site) browser() *browser {
	jar, err := cookiejar.New(nil)
	if err != nil {
		s.t.Fatal(err)
	}
	return &browser{s: s, c: &http.Client{Jar: jar, Transport: s.srv.Client().Transport}, header: http.Header{"Accept": {"text/html,*/*"}}}
}

// answer is a page.
type answer struct {
	*http.Response
	body string
}

func (b *browser) do(req *http.Request) answer {
	b.s.t.Helper()
	for k, v := range b.header {
		req.Header[k] = v
	}
	resp, err := b.c.Do(req)
	if err != nil {
		b.s.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		b.s.t.Fatal(err)
	}
	a := answer{resp, string(body)}
	a.check(b.s.t)
	return a
}

// check fails the test if a header is missing that every answer must have.
func (a answer) check(t testing.TB) {
	t.Helper()
	csp := a.Header.Get("Content-Security-Policy")
	if !strings.Contains(csp, "default-src 'none'") || !strings.Contains(csp, "frame-ancestors 'none'") || !strings.Contains(csp, "form-action 'self'") ||
		strings.Contains(csp, "unsafe") {
		t.Errorf("%s: Content-Security-Policy is %q", a.Request.URL, csp)
	}
	for k, want := range map[string]string{
		"X-Frame-Options": "DENY", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin", "Cross-Origin-Opener-Policy": "same-origin",
	} {
		if a.Header.Get(k) != want {
			t.Errorf("%s: %s is %q, want %q", a.Request.URL, k, a.Header.Get(k), want)
		}
	}
	if strings.HasPrefix(a.Header.Get("Content-Type"), "text/html") {
		if a.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s may be cached", a.Request.URL)
		}
		for _, bad := range []string{"style=", " onclick", "<style", "javascript:", "http-equiv"} {
			if strings.Contains(a.body, bad) {
				t.Errorf("%s has %q in it, which the policy forbids", a.Request.URL, bad)
			}
		}
	}
}

func (b *browser) get(path string) answer {
	b.s.t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, b.s.url+path, nil)
	if err != nil {
		b.s.t.Fatal(err)
	}
	return b.do(req)
}

// post sends a form as a browser does, with its origin.
func (b *browser) post(path string, f url.Values) answer {
	b.s.t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, b.s.url+path, strings.NewReader(f.Encode()))
	if err != nil {
		b.s.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Origin", b.s.url)
	return b.do(req)
}

var tokenField = regexp.MustCompile(`name="token" value="([0-9a-f]{64})"`)

// token is the token of the forms of a page.
func (b *browser) token(path string) string {
	b.s.t.Helper()
	m := tokenField.FindStringSubmatch(b.get(path).body)
	if m == nil {
		b.s.t.Fatalf("%s has no form", path)
	}
	return m[1]
}

// submit fills a form of the page at path and sends it to action.
func (b *browser) submit(path, action string, fields ...string) answer {
	b.s.t.Helper()
	f := url.Values{"token": {b.token(path)}}
	for i := 0; i < len(fields); i += 2 {
		f.Set(fields[i], fields[i+1])
	}
	return b.post(action, f)
}

// signIn signs in with the password of all tests.
func (b *browser) signIn(name string) *browser {
	b.s.t.Helper()
	a := b.submit("/login?again=1", "/login", "name", name, "password", password)
	if a.StatusCode != 200 || a.Request.URL.Path != "/admin" {
		b.s.t.Fatalf("sign-in: %s at %s\n%s", a.Status, a.Request.URL, a.body)
	}
	return b
}

// sessionCookie is the secret of the browser's session, empty if it has none.
func (b *browser) sessionCookie() string {
	u, _ := url.Parse(b.s.url)
	for _, c := range b.c.Jar.Cookies(u) {
		if c.Name == sessionCookie {
			return c.Value
		}
	}
	return ""
}

// wants fails the test unless the page has the status and all texts, as people read them.
func (a answer) wants(t testing.TB, status int, texts ...string) {
	t.Helper()
	if a.StatusCode != status {
		t.Errorf("%s: status %d, want %d", a.Request.URL, a.StatusCode, status)
	}
	for _, w := range texts {
		if !strings.Contains(html.UnescapeString(a.body), w) {
			t.Errorf("%s does not have %q:\n%s", a.Request.URL, w, a.body)
		}
	}
}
