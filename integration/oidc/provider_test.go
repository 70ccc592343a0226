package oidc_test

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"tailscale.com/tailcfg"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/auth/oidc"
	"github.com/skein-vpn/skein/dns"
	provider "github.com/skein-vpn/skein/integration/oidc"
	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/state/statetest"
	"github.com/skein-vpn/skein/tailnet"
)

// site is auth/oidc behind two handlers, against the real provider.
type site struct {
	t    *testing.T
	st   *state.State
	m    *oidc.Manager
	srv  *httptest.Server
	last *oidc.SignedIn

	grants statetest.Grants
	gone   []string
	ahead  time.Duration // of the real time
}

func newSite(t *testing.T) *site {
	s := &site{t: t}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	var err error
	s.st, err = state.Open(context.Background(), state.Options{
		Store: statetest.New(), RestartGrace: time.Hour, Log: log, Addressing: state.Addressing{Prefix4: netip.MustParsePrefix("100.64.0.0/10")},
		DNS: &dns.Settings{Base: "skein.internal"}, DERP: &state.DERPMaps{Current: &tailcfg.DERPMap{}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.st.Close)
	mux := http.NewServeMux()
	mux.HandleFunc("/begin", func(w http.ResponseWriter, r *http.Request) {
		to, c, err := s.m.Begin(r.Context(), oidc.DefaultID, oidc.Flow{Kind: oidc.FlowLogin, ReturnTo: "/x"})
		if err != nil {
			http.Error(w, err.Error(), http.StatusTeapot)
			return
		}
		http.SetCookie(w, c)
		http.Redirect(w, r, to, http.StatusSeeOther)
	})
	mux.HandleFunc(oidc.CallbackPath, func(w http.ResponseWriter, r *http.Request) {
		in, err := s.m.Finish(r.Context(), r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusTeapot)
			return
		}
		s.last = in
		_, _ = io.WriteString(w, "in")
	})
	s.srv = httptest.NewServer(mux)
	t.Cleanup(s.srv.Close)
	return s
}

func (s *site) use(po oidc.ProviderOptions) {
	s.t.Helper()
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	var err error
	s.m, err = oidc.New(oidc.Options{
		Grants: &s.grants, Gone: func(_ context.Context, u *tailnet.User) error { s.gone = append(s.gone, u.Name); return nil },
		Now:   func() time.Time { return time.Now().Add(s.ahead) },
		State: s.st, Pending: auth.New(auth.Options{State: s.st, Store: &statetest.Logins{}, Log: log}), ServerURL: s.srv.URL, Providers: []oidc.ProviderOptions{po}, Log: log,
	})
	if err != nil {
		s.t.Fatal(err)
	}
}

var action = regexp.MustCompile(`action="([^"]+)"`)

// signIn does what a person does at the provider's pages: name and password, then consent. It returns what the site says in the end.
func (s *site) signIn(name string) string {
	s.t.Helper()
	jar, _ := cookiejar.New(nil)
	c := &http.Client{Jar: jar, Timeout: 2 * time.Minute}
	get := func(resp *http.Response, err error) (*http.Response, string) {
		s.t.Helper()
		if err != nil {
			s.t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			s.t.Fatal(err)
		}
		return resp, string(b)
	}
	resp, page := get(c.Get(s.srv.URL + "/begin"))
	for range 5 {
		m := action.FindStringSubmatch(page)
		if m == nil {
			return strings.TrimSpace(page)
		}
		to, err := resp.Request.URL.Parse(strings.ReplaceAll(m[1], "&amp;", "&"))
		if err != nil {
			s.t.Fatal(err)
		}
		form := url.Values{"prompt": {"consent"}}
		if strings.Contains(page, `name="login"`) {
			form = url.Values{"prompt": {"login"}, "login": {name}, "password": {"any"}}
		}
		resp, page = get(c.PostForm(to.String(), form))
	}
	s.t.Fatalf("the provider asks again and again:\n%s", page)
	return ""
}

// TestRealProvider signs people in with oidc-provider: both ways to send a secret and a public client, claims from the user info
// endpoint, groups, what changes from one time to the next.
func TestRealProvider(t *testing.T) {
	provider.Need(t)
	for _, c := range []struct{ secret, method string }{{"s3cret:/+&", "client_secret_basic"}, {"s3cret:/+&", "client_secret_post"}, {"", "none"}} {
		t.Run(c.method, func(t *testing.T) {
			s := newSite(t)
			p := provider.Start(t, provider.Options{
				Listen: "127.0.0.1:0", ClientID: "skein", ClientSecret: c.secret, AuthMethod: c.method, RedirectURIs: []string{s.srv.URL + oidc.CallbackPath},
			})
			po := oidc.ProviderOptions{
				Issuer: p.Issuer + "/", ClientID: "skein", ClientSecret: c.secret, AuthMethod: c.method, GroupsClaim: "groups",
				Scopes: []string{"openid", "email", "profile", "groups"},
			}
			s.use(po)
			if got := s.signIn("anna"); got != "in" {
				t.Fatal(got)
			}
			u := s.last.User
			if u.Name != "anna" || u.Email != "anna@example.com" || u.DisplayName != "Anna" || !slices.Equal(u.Groups, []string{"staff"}) ||
				u.ProviderID != p.Issuer+"/anna" || s.last.Flow.ReturnTo != "/x" {
				t.Errorf("%+v", s.last)
			}
			p.Say("anna", map[string]any{"email": "a@example.org", "groups": []string{"ops", "staff"}, "picture": "https://example.org/a.png"})
			if got := s.signIn("anna"); got != "in" {
				t.Fatal(got)
			}
			if v := s.last.User; v.ID != u.ID || v.Email != "a@example.org" || !slices.Equal(v.Groups, []string{"ops", "staff"}) || v.Picture == "" {
				t.Errorf("%+v", v)
			}
			p.Say("eve", map[string]any{"email_verified": false})
			if got := s.signIn("eve"); !strings.Contains(got, "claim email_verified") {
				t.Error(got)
			}
			if n := len(s.st.Snapshot().Users()); n != 1 {
				t.Errorf("%d users", n)
			}
			if to := s.m.LogoutURL(s.last.Identity, "/"); !strings.HasPrefix(to, p.Issuer+"/session/end?") {
				t.Error(to)
			}
			po.AllowedGroups = []string{"managers"}
			s.use(po)
			if got := s.signIn("anna"); !strings.Contains(got, "none of your groups") {
				t.Error(got)
			}
			if c.secret != "" {
				po.ClientSecret = "wrong"
				s.use(po)
				if got := s.signIn("anna"); !strings.Contains(got, "does not accept this server as its client") {
					t.Error(got)
				}
			}
		})
	}
}

// TestRealRecheck asks the provider again after somebody who has signed in, twice, until the account is closed.
func TestRealRecheck(t *testing.T) {
	s := newSite(t)
	p := provider.Start(t, provider.Options{
		Listen: "127.0.0.1:0", ClientID: "skein", ClientSecret: "s3cret", RedirectURIs: []string{s.srv.URL + oidc.CallbackPath},
	})
	s.use(oidc.ProviderOptions{
		Issuer: p.Issuer, ClientID: "skein", ClientSecret: "s3cret", GroupsClaim: "groups", CheckEvery: time.Minute,
		Scopes: []string{"openid", "email", "profile", "groups", "offline_access"}, ExtraParams: map[string]string{"prompt": "consent"},
	})
	for _, name := range []string{"anna", "bert"} {
		if got := s.signIn(name); got != "in" {
			t.Fatal(got)
		}
	}
	p.Say("anna", map[string]any{"groups": []string{"new"}})
	for range 2 {
		s.ahead += 2 * time.Minute
		if err := s.m.Recheck(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	users := s.st.Snapshot().Users()
	if !slices.Equal(users[0].Groups, []string{"new"}) || !slices.Equal(users[1].Groups, []string{"staff"}) || len(s.gone) != 0 {
		t.Errorf("%q, %q, gone %q", users[0].Groups, users[1].Groups, s.gone)
	}
	p.Close("anna")
	s.ahead += 2 * time.Minute
	if err := s.m.Recheck(context.Background()); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(s.gone, []string{"anna"}) {
		t.Errorf("gone %q", s.gone)
	}
}

// TestLockFile: what npm ci fetches does not depend on where the lock file was made.
func TestLockFile(t *testing.T) {
	var lock struct {
		Packages map[string]struct{ Version, Resolved, Integrity string }
	}
	b, err := os.ReadFile("package-lock.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &lock); err != nil {
		t.Fatal(err)
	}
	if len(lock.Packages) < 10 {
		t.Errorf("%d packages", len(lock.Packages))
	}
	for name, p := range lock.Packages {
		if name != "" && (p.Resolved != "" || p.Integrity == "" || p.Version == "") {
			t.Errorf("%s: %+v", name, p)
		}
	}
}
