// Package web is the pages that people open in a browser: to let a machine in, to confirm an SSH session, and to look after
// their own account and machines.
//
// # The road of a machine
//
//	tailscale up ──► /register/ID ──┬─ signed in ────────────────────► "Add this machine to NAME?" ──POST──► it is in
//	                                ├─ /login: name and password, or a passkey ──┐
//	                                ├─ /login/with/X ──► provider ──► /oidc/…  ──┴─► back to /register/ID
//	                                └─ the command for the server's terminal
//
// /ssh/ID is the same for an SSH session that the policy wants confirmed. /setup/SECRET is where a one-time link leads: its holder
// chooses a password or a passkey. /admin shows what waits and one's own machines, /machines/ID one of them, and /account how one signs in
// and where one is signed in.
//
// # What protects the pages
//
// Each form carries a token that is good in one browser only: for the session, or, before there is one, for a cookie of its own. Beside that
// the browser's word counts about where a request comes from (http.CrossOriginProtection). A session is a random secret in a cookie, made
// anew at each sign-in. Nothing comes from elsewhere, nothing inline runs (Content-Security-Policy), and no page can be framed. Where
// a sign-in leads back to is one of a few paths of ours. How often somebody may fail to sign in is bounded in auth.
//
// Everything but passkeys works without JavaScript. Failures are pages, or application/problem+json if that is what is asked for.
//
// # Files
//
// web.go: what there is; guard.go: headers, sessions, tokens; render.go: templates and errors; signin.go, register.go, ssh.go, admin.go,
// machine.go and account.go: the pages.
package web

import (
	"context"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// Provider is an identity provider that people may sign in with.
type Provider struct {
	ID   string // part of a path
	Name string // as people are shown it
	Err  error  // why it cannot be used now; nil: it can
}

// Flow is what somebody signs in for: Kind "login", "node" or "ssh", with the id of what waits, and a path to return to.
type Flow struct {
	Kind     string
	LoginID  string
	ReturnTo string
}

// SignedIn is somebody whom a provider knows.
type SignedIn struct {
	User       *tailnet.User
	Flow       Flow
	Method     string    // what the provider is called, for the list of sessions
	NodeExpiry time.Time // when nodes end that join by this sign-in, in place of the tailnet's rule; zero: by that rule
	Cookies    []*http.Cookie

	Provider string // its id
	IDToken  string // what the provider has said, for SignOutURL; empty: nothing
}

// Providers lets people sign in elsewhere. The errors are *tailnet.Error with a sentence for the person.
type Providers interface {
	// Providers are those that are configured, in the order in which they are shown.
	Providers() []Provider
	// Begin is where to send the browser, and a cookie for it.
	Begin(ctx context.Context, provider string, f Flow) (redirect string, cookie *http.Cookie, err error)
	// Finish is called with the request that comes back, at CallbackPath or below.
	Finish(ctx context.Context, r *http.Request) (*SignedIn, error)
	// SignOutURL is where somebody signs out at a provider, and what that is called; empty if that is not possible there.
	SignOutURL(provider, idToken string) (url, name string)
}

// CallbackPath is where providers send browsers back to.
const CallbackPath = "/oidc/callback"

// Nodes changes nodes for somebody. The errors are those of the API.
type Nodes interface {
	Approve(ctx context.Context, by *tailnet.User, id tailnet.NodeID) error
	Rename(ctx context.Context, by *tailnet.User, id tailnet.NodeID, name string) error
	Delete(ctx context.Context, by *tailnet.User, id tailnet.NodeID) error
}

// Options is what a Handler is made of. All but Providers, Nodes, Now and Log are required.
type Options struct {
	State     *state.State
	Auth      *auth.Auth
	Accounts  *auth.Accounts
	Providers Providers                      // nil: none
	Nodes     Nodes                          // nil: nodes cannot be changed on the pages
	NoSignIn  bool                           // nobody signs in: pages for machines and SSH sessions show commands alone, others are not there
	ServerURL string                         // as people reach the server, without a slash at its end
	Secret    []byte                         // the same at all servers of the tailnet
	Remote    func(*http.Request) netip.Addr // where a request comes from

	Now func() time.Time // nil: time.Now
	Log *slog.Logger     // nil: slog.Default
}

// Handler serves the pages.
type Handler struct {
	o      Options
	mux    *http.ServeMux
	origin *http.CrossOriginProtection
	https  bool // people reach the server over TLS, by whoever's hand
}

// page is what one path does. A nil function is a method that is not allowed.
type page struct {
	path      string
	get, post func(v *visit) error
}

// Paths are the beginnings of all paths that the Handler serves; "/" alone is not among them.
var Paths = []string{"/register/", "/ssh/", "/login", "/logout", "/setup/", "/admin", "/machines/", "/account", CallbackPath, "/web/"}

// New returns a Handler.
func New(o Options) *Handler {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	h := &Handler{o: o, mux: http.NewServeMux(), origin: http.NewCrossOriginProtection(), https: strings.HasPrefix(o.ServerURL, "https://")}
	// A proxy may not pass the Host on that the browser asked for.
	if u, err := url.Parse(o.ServerURL); err == nil && u.Host != "" {
		_ = h.origin.AddTrustedOrigin(u.Scheme + "://" + u.Host) // refused only if it is no origin, and then it is none
	}
	for _, p := range h.pages() {
		h.mux.Handle(p.path, h.dispatch(p))
	}
	h.mux.Handle("GET /web/", staticHandler())
	return h
}

func (h *Handler) pages() []page {
	if h.o.NoSignIn {
		return []page{
			{path: "/{$}", get: (*visit).serveFront}, {path: "/register/{id}", get: (*visit).serveRegister}, {path: "/ssh/{id}", get: (*visit).serveSSH},
		}
	}
	return slices.Concat(h.signInPages(), h.registerPages(), h.sshPages(), h.adminPages(), h.accountPages())
}

// ServeHTTP answers for everything below Paths, and "/".
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	setHeaders(w.Header(), h.https)
	if _, pattern := h.mux.Handler(r); pattern == "" {
		v := &visit{h: h, w: w, r: r}
		v.fail(tailnet.Errorf(tailnet.NotFound, "there is nothing at this address"))
		return
	}
	h.mux.ServeHTTP(w, r)
}
