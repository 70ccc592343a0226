// Package oidc signs people in with OpenID Connect providers: Ory Hydra, Dex, Keycloak, Authentik, Google, Entra and others.
//
//	browser            Skein                                   provider
//	   │  choose a provider │                                      │
//	   │ ─────────────────► │ Begin: state, nonce, PKCE verifier   │
//	   │ ◄───────────────── │   sealed in a cookie; redirect       │
//	   │ ── authorization request ───────────────────────────────► │ signs the person in
//	   │ ◄──────────────────────────────────── code and state ──── │
//	   │ ── /oidc/callback ► │ Finish: cookie, state, code ───────► │ token endpoint, keys, user info
//	   │                     │   verify, allow, map to a User       │
//
// # Words
//
// A Provider is one entry of the configuration; its ID stands in URLs and in User.Provider. A Flow is what a person signs in
// for: the pages themselves, a node that waits to be added, an SSH session that waits to be confirmed. An Identity is what the
// provider says about the person, verified and bounded. A SignedIn is the result.
//
// # Invariants
//
// Everything that a sign-in needs between its two halves stands in a cookie that only a server with the same Key can read or
// make: another browser cannot finish what this one began, a restart in between loses nothing, and strangers who begin
// sign-ins use no memory. A state is good once and for signInTTL. What a provider says is checked before anything is
// stored: signature with a public key (so never "none" or a shared secret), issuer, audience, times, nonce, access token
// hash; then the rules of the configuration; then whether what the person signs in for still waits. Nothing is registered
// here: Finish stores the User, and the caller decides what becomes of the Flow, after asking the person.
//
// Errors of Begin and Finish are tailnet.Errors whose sentence may be shown to whoever signs in; the cause is for the log.
//
// Left to others: pages, sessions and rate limits (web), the state that holds users (state).
package oidc

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// CallbackPath is where providers send browsers back to. A provider of a list has its own: CallbackPath + "/" + ID.
const CallbackPath = "/oidc/callback"

// DefaultID is the ID of a provider that is the only one.
const DefaultID = "oidc"

// ProviderOptions describe one provider. Issuer and ClientID are required.
type ProviderOptions struct {
	ID           string // letters, digits and hyphens; DefaultID: the only one, whose callback is CallbackPath itself
	Name         string // as on the button; empty: the host name of the issuer
	Issuer       string // URL, with or without a slash at its end
	ClientID     string
	ClientSecret string // empty: a public client, which must use PKCE

	// AuthMethod is how the client proves itself at the token endpoint: "client_secret_basic", "client_secret_post" or "none".
	// Empty: what fits the secret and what the provider says that it supports.
	AuthMethod  string
	Scopes      []string          // nil: openid, profile, email
	ExtraParams map[string]string // of the authorization request

	AllowedDomains []string // of the mail address; empty: any
	AllowedUsers   []string // mail addresses; empty: any
	AllowedGroups  []string // one of them is enough; empty: any

	// GroupsClaim is the claim that lists groups, such as "groups" or "resource_access.skein.roles": a dot leads into an
	// object unless a claim has the whole name. Empty: groups are not read.
	GroupsClaim string

	UnverifiedEmail bool // a mail address is good enough although the provider does not say that it is verified

	Expiry             time.Duration // of nodes that join by this sign-in; 0: the tailnet's rule
	UseExpiryFromToken bool          // nodes end with the ID token instead

	// CheckEvery is how often the provider is asked after users, if Scopes or ExtraParams ask for a refresh token; 0: never.
	CheckEvery time.Duration

	NoPKCE     bool // only for providers that choke on it
	PlainPKCE  bool // method plain instead of S256
	SkipLogout bool // do not send people to the provider when they sign out
}

// Pending says what waits for a person. *auth.Auth is the one in use.
type Pending interface {
	Login(ctx context.Context, id string) (*tailnet.Login, error)
	SSHCheck(ctx context.Context, id string) (*tailnet.SSHCheck, error)
}

// Options is what a Manager is made of. State, Pending, ServerURL and Key are required.
type Options struct {
	State     *state.State
	Pending   Pending
	ServerURL string   // as people reach the server, without a slash at its end
	Key       [32]byte // seals the cookies; the same at all servers of one installation, and after a restart
	Providers []ProviderOptions
	Tailnet   tailnet.ID // 0: tailnet.DefaultID

	Grants GrantStore                                       // nil: providers are never asked after users
	Gone   func(ctx context.Context, u *tailnet.User) error // called when one is not there any more; nil: nothing to do
	Leads  func() bool                                      // reports whether this server does what only one may do; nil: it does

	Client *http.Client     // for requests to providers; nil: one with time and size limits
	Now    func() time.Time // nil: time.Now
	Log    *slog.Logger     // nil: slog.Default
}

// Provider is what the sign-in page shows of one.
type Provider struct {
	ID, Name string
	Err      error // nil: ready; else a sentence for the sign-in page
}

// Manager knows the providers.
type Manager struct {
	o         Options
	st        *state.State
	log       *slog.Logger
	seal      sealer
	providers []*provider

	usedMu sync.Mutex
	used   map[string]time.Time // guarded by usedMu: states that were brought back, and when they end anyway
}

// New returns a Manager. Providers are asked for what they can do by Run, Discover or the first Begin, not here.
func New(o Options) (*Manager, error) {
	if o.Tailnet == 0 {
		o.Tailnet = tailnet.DefaultID
	}
	if o.Client == nil {
		o.Client = boundedClient()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	seal, err := newSealer(o.Key)
	if err != nil {
		return nil, err
	}
	m := &Manager{o: o, st: o.State, log: o.Log, seal: seal, used: map[string]time.Time{}}
	for _, po := range o.Providers {
		if po.ID == "" {
			po.ID = DefaultID
		}
		if m.provider(po.ID) != nil {
			return nil, tailnet.Errorf(tailnet.Invalid, "there are two providers with the id %q", po.ID)
		}
		p, err := newProvider(po, o)
		if err != nil {
			return nil, err
		}
		m.providers = append(m.providers, p)
	}
	return m, nil
}

// Providers are all of them, in the order of the configuration. It asks nobody.
func (m *Manager) Providers() []Provider {
	out := make([]Provider, len(m.providers))
	for i, p := range m.providers {
		out[i] = Provider{ID: p.o.ID, Name: p.name, Err: p.fault()}
	}
	return out
}

func (m *Manager) provider(id string) *provider {
	i := slices.IndexFunc(m.providers, func(p *provider) bool { return p.o.ID == id })
	if i < 0 {
		return nil
	}
	return m.providers[i]
}

// Discover asks all providers that are not ready, and returns what went wrong.
func (m *Manager) Discover(ctx context.Context) error {
	errs := make([]error, len(m.providers))
	var wg sync.WaitGroup
	for i, p := range m.providers {
		wg.Go(func() { _, errs[i] = p.ready(ctx) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// Times between two attempts to reach a provider that is not ready; each pause is twice as long as the one before.
const (
	firstRetry = 2 * time.Second
	lastRetry  = time.Minute
)

// Run keeps asking providers that are not ready, and those that are after their users, until ctx ends.
func (m *Manager) Run(ctx context.Context) {
	var wg sync.WaitGroup
	wg.Go(func() { m.recheck(ctx) })
	for _, p := range m.providers {
		wg.Go(func() {
			last := ""
			for wait := firstRetry; ; wait = min(2*wait, lastRetry) {
				if _, err := p.ready(ctx); err == nil {
					m.log.Info("identity provider is ready", "provider", p.o.ID, "issuer", p.o.Issuer)
					return
				} else if why := causes(err); ctx.Err() == nil && why != last {
					m.log.Warn("identity provider is not ready; trying again and again", "provider", p.o.ID, "issuer", p.o.Issuer, "err", why)
					last = why
				}
				select {
				case <-time.After(wait):
				case <-ctx.Done():
					return
				}
			}
		})
	}
	wg.Wait()
}

// causes is err with what it hides from people.
func causes(err error) string {
	var e *tailnet.Error
	if errors.As(err, &e) && e.Cause != nil {
		return e.Message + ": " + e.Cause.Error()
	}
	return err.Error()
}

// randomText is 256 random bits that fit into a URL. Hydra refuses less than 8 characters, others less than 16 bytes.
func randomText() string { return rand.Text() + rand.Text() }

// localPath returns p if it is a path on this server, else "/".
func localPath(p string) string {
	u, err := url.Parse(p)
	if err != nil || u.Scheme != "" || u.Host != "" || u.User != nil || !strings.HasPrefix(p, "/") || strings.HasPrefix(p, "//") ||
		strings.ContainsAny(p, "\\\r\n\t") || len(p) > maxReturnTo {
		return "/"
	}
	return p
}

// maxReturnTo is how long a Flow.ReturnTo may be, in bytes: it has to fit into the cookie.
const maxReturnTo = 1024
