package oidc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	gooidc "github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"github.com/skein-vpn/skein/tailnet"
)

// Limits on what providers answer.
const (
	maxAnswer      = 1 << 20 // bytes
	answerTime     = 20 * time.Second
	maxProviderIDs = 63 // bytes
)

// boundedClient is an HTTP client whose answers end: in time, and after maxAnswer bytes.
func boundedClient() *http.Client {
	t := http.DefaultTransport.(*http.Transport).Clone()
	return &http.Client{Timeout: answerTime, Transport: bounded{t}}
}

// bounded cuts the bodies of answers.
type bounded struct{ http.RoundTripper }

func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := b.RoundTripper.RoundTrip(r)
	if err == nil {
		resp.Body = &boundedBody{resp.Body, maxAnswer}
	}
	return resp, err
}

type boundedBody struct {
	io.ReadCloser
	left int
}

func (b *boundedBody) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, fmt.Errorf("the answer is longer than %d bytes", maxAnswer)
	}
	n, err := b.ReadCloser.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}

// provider is one provider, ready or not.
type provider struct {
	o        ProviderOptions
	name     string
	callback string // URL
	client   *http.Client
	now      func() time.Time

	asking sync.Mutex // held while the provider is asked, so that one question is under way at a time

	mu   sync.Mutex
	disc *discovered // guarded by mu; nil: not ready
	err  error       // guarded by mu: why not
}

// discovered is what a provider has said about itself.
type discovered struct {
	provider *gooidc.Provider
	verifier *gooidc.IDTokenVerifier
	oauth    oauth2.Config
	issuer   string // in the provider's own spelling
	logout   string // where to send people who sign out; empty: nowhere
	issParam bool   // answers name the issuer (RFC 9207)
}

func newProvider(po ProviderOptions, o Options) (*provider, error) {
	if po.Scopes == nil {
		po.Scopes = []string{gooidc.ScopeOpenID, "profile", "email"}
	}
	if len(po.ID) > maxProviderIDs || strings.Trim(po.ID, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return nil, tailnet.Errorf(tailnet.Invalid, "%q is not an id for a provider: use a-z, 0-9 and hyphens, %d at the most", po.ID, maxProviderIDs)
	}
	u, err := url.Parse(po.Issuer)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" {
		return nil, tailnet.Errorf(tailnet.Invalid, "%q is not the address of an issuer such as https://login.example.com", po.Issuer)
	}
	if po.ClientSecret == "" && po.NoPKCE {
		return nil, tailnet.Errorf(tailnet.Invalid, "a client without a secret must use PKCE")
	}
	p := &provider{o: po, name: po.Name, client: o.Client, now: o.Now, callback: o.ServerURL + CallbackPath}
	if p.name == "" {
		p.name = u.Hostname()
	}
	if po.ID != DefaultID {
		p.callback += "/" + po.ID
	}
	p.err = tailnet.Errorf(tailnet.Unavailable, "%s has not been asked yet", p.name)
	return p, nil
}

// fault is why the provider is not ready; nil if it is.
func (p *provider) fault() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.disc != nil {
		return nil
	}
	return p.err
}

// context makes the libraries use our client.
func (p *provider) context(ctx context.Context) context.Context {
	return gooidc.ClientContext(ctx, p.client)
}

// ready is what the provider has said about itself; it is asked if that is not known yet. The error can be shown.
func (p *provider) ready(ctx context.Context) (*discovered, error) {
	known := func() *discovered {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.disc
	}
	if d := known(); d != nil {
		return d, nil
	}
	p.asking.Lock()
	defer p.asking.Unlock()
	if d := known(); d != nil {
		return d, nil
	}
	d, err := p.discover(p.context(ctx))
	if err != nil {
		err = p.explain(err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.disc = d
	if ctx.Err() == nil { // whoever asked may have gone away, which says nothing about the provider
		p.err = err
	}
	return d, err
}

// discover reads the provider's configuration document (OpenID Connect Discovery 1.0, section 4).
func (p *provider) discover(ctx context.Context) (*discovered, error) {
	gp, err := gooidc.NewProvider(ctx, p.o.Issuer)
	issuer := p.o.Issuer
	var mismatch *gooidc.IssuerMismatchError
	if errors.As(err, &mismatch) && strings.TrimRight(mismatch.Discovered, "/") == strings.TrimRight(mismatch.Provided, "/") {
		issuer = mismatch.Discovered // Hydra's ends in a slash, most others' do not
		gp, err = gooidc.NewProvider(ctx, issuer)
	}
	if err != nil {
		return nil, err
	}
	var meta struct {
		AuthMethods []string `json:"token_endpoint_auth_methods_supported"`
		PKCE        []string `json:"code_challenge_methods_supported"`
		Logout      string   `json:"end_session_endpoint"`
		JWKS        string   `json:"jwks_uri"`
		IssParam    bool     `json:"authorization_response_iss_parameter_supported"`
	}
	if err := gp.Claims(&meta); err != nil {
		return nil, err
	}
	e := gp.Endpoint()
	for what, s := range map[string]string{"authorization_endpoint": e.AuthURL, "token_endpoint": e.TokenURL, "jwks_uri": meta.JWKS} {
		if u, err := url.Parse(s); err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" {
			return nil, fmt.Errorf("its configuration has no usable %s (%.100q)", what, s)
		}
	}
	if e.AuthStyle, err = p.authStyle(meta.AuthMethods); err != nil {
		return nil, err
	}
	d := &discovered{
		provider: gp, issuer: issuer, issParam: meta.IssParam,
		verifier: gp.VerifierContext(p.context(context.Background()), &gooidc.Config{ClientID: p.o.ClientID, Now: p.now}),
		oauth: oauth2.Config{
			ClientID: p.o.ClientID, ClientSecret: p.o.ClientSecret, Endpoint: e, RedirectURL: p.callback, Scopes: p.o.Scopes,
		},
	}
	if u, err := url.Parse(meta.Logout); err == nil && (u.Scheme == "https" || u.Scheme == "http") && u.Host != "" && !p.o.SkipLogout {
		d.logout = meta.Logout
	}
	return d, nil
}

// authStyle is how the client proves itself. A provider that says nothing takes client_secret_basic (Discovery 1.0, section 3).
func (p *provider) authStyle(supported []string) (oauth2.AuthStyle, error) {
	method := p.o.AuthMethod
	switch {
	case p.o.ClientSecret == "":
		return oauth2.AuthStyleInParams, nil // the id alone
	case method == "" && len(supported) > 0 && !slices.Contains(supported, "client_secret_basic") && slices.Contains(supported, "client_secret_post"):
		method = "client_secret_post"
	case method == "":
		method = "client_secret_basic"
	}
	switch method {
	case "client_secret_basic":
		return oauth2.AuthStyleInHeader, nil
	case "client_secret_post":
		return oauth2.AuthStyleInParams, nil
	}
	return 0, fmt.Errorf("a client with a secret cannot use the method %q", method)
}

// explain makes a sentence for the sign-in page.
func (p *provider) explain(err error) error {
	say := func(format string, args ...any) error {
		return &tailnet.Error{Code: tailnet.Unavailable, Message: p.name + " " + fmt.Sprintf(format, args...), Cause: err}
	}
	var mismatch *gooidc.IssuerMismatchError
	switch {
	case errors.As(err, &mismatch):
		return say("calls itself %s, but the configuration says %s: an administrator has to make oidc.issuer the same",
			short(mismatch.Discovered), short(mismatch.Provided))
	case isTimeout(err):
		return say("does not answer at the moment")
	}
	var unreachable *url.Error
	if errors.As(err, &unreachable) {
		return say("cannot be reached at the moment")
	}
	return say("cannot be used at the moment: its answer could not be read")
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.Is(err, context.DeadlineExceeded) || errors.As(err, &t) && t.Timeout()
}

// short is s as it may be shown: without control characters, and not long.
func short(s string) string {
	s = tailnet.CleanText(s)
	if r := []rune(s); len(r) > 200 {
		return string(r[:200]) + "…"
	}
	return s
}
