package oidc

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"time"

	gooidc "github.com/coreos/go-oidc/v3/oidc"

	"github.com/skein-vpn/skein/tailnet"
)

// Bounds of a Verifier.
const (
	maxIssuers  = 100              // that are remembered
	askAgain    = 30 * time.Second // after an issuer did not answer
	askPatience = 10 * time.Second
)

// asymmetric are the algorithms of tokens: all but those with a shared secret, and "none".
var asymmetric = []string{
	gooidc.RS256, gooidc.RS384, gooidc.RS512, gooidc.ES256, gooidc.ES384, gooidc.ES512, gooidc.PS256, gooidc.PS384, gooidc.PS512, gooidc.EdDSA,
}

// Verifier checks tokens that other issuers have signed for workloads: CI jobs, pods, virtual machines. It is safe for concurrent
// use. Who names issuers decides which addresses this server asks.
type Verifier struct {
	client *http.Client
	now    func() time.Time

	mu      sync.Mutex
	issuers map[string]*issuer // guarded by mu
}

// issuer is what is known of one.
type issuer struct {
	asking   sync.Mutex // held while it is asked
	provider *gooidc.Provider
	err      error
	asked    time.Time
}

// NewVerifier returns a Verifier. A nil client is one with time and size limits, a nil now time.Now.
func NewVerifier(client *http.Client, now func() time.Time) *Verifier {
	if client == nil {
		client = boundedClient()
	}
	if now == nil {
		now = time.Now
	}
	return &Verifier{client: client, now: now, issuers: map[string]*issuer{}}
}

// Verify returns the claims of token if issuer, in its own spelling, has signed it for audience and it is valid now. The error is
// Unauthenticated if it is not, and Unavailable if the issuer cannot be asked for its keys.
func (v *Verifier) Verify(ctx context.Context, issuer, audience, token string) (map[string]any, error) {
	p, err := v.provider(ctx, issuer)
	if err != nil {
		return nil, &tailnet.Error{Code: tailnet.Unavailable, Message: "the issuer of the token cannot be asked for its keys", Cause: err}
	}
	own := gooidc.ClientContext(context.WithoutCancel(ctx), v.client)
	t, err := p.VerifierContext(own, &gooidc.Config{ClientID: audience, SupportedSigningAlgs: asymmetric, Now: v.now}).Verify(gooidc.ClientContext(ctx, v.client), token)
	if err != nil {
		var expired *gooidc.TokenExpiredError
		switch {
		case errors.As(err, &expired):
			return nil, tailnet.Errorf(tailnet.Unauthenticated, "the token expired at %s", expired.Expiry.UTC().Format(time.RFC3339))
		case strings.Contains(err.Error(), "audience"):
			return nil, &tailnet.Error{Code: tailnet.Unauthenticated, Message: "the token is for another audience than " + audience, Cause: err}
		}
		return nil, &tailnet.Error{Code: tailnet.Unauthenticated, Message: "the token is not good: its signature or its times are wrong", Cause: err}
	}
	var claims map[string]any
	if err := t.Claims(&claims); err != nil {
		return nil, &tailnet.Error{Code: tailnet.Unauthenticated, Message: "the token's claims cannot be read", Cause: err}
	}
	return claims, nil
}

// provider is what the issuer says about itself; it is asked if that is not known yet.
func (v *Verifier) provider(ctx context.Context, name string) (*gooidc.Provider, error) {
	v.mu.Lock()
	i := v.issuers[name]
	if i == nil {
		if len(v.issuers) >= maxIssuers {
			v.issuers = map[string]*issuer{}
		}
		i = &issuer{}
		v.issuers[name] = i
	}
	v.mu.Unlock()

	i.asking.Lock()
	defer i.asking.Unlock()
	now := v.now()
	if i.provider != nil || i.err != nil && now.Sub(i.asked) < askAgain {
		return i.provider, i.err
	}
	ask, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	p, err := gooidc.NewProvider(gooidc.ClientContext(ask, v.client), name)
	if ctx.Err() == nil { // whoever asked may have gone away, which says nothing about the issuer
		i.provider, i.err, i.asked = p, err, now
	}
	return p, err
}
