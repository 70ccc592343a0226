package api

import (
	"context"
	"net/http"
	"net/netip"
	"os/user"
	"strconv"
	"strings"
	"time"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/remote"
	"github.com/skein-vpn/skein/tailnet"
)

// Authenticator says who sends a secret: an API key or an access token. The error is Unauthenticated if nobody does.
type Authenticator interface {
	Authenticate(ctx context.Context, secret string) (*auth.Principal, error)
}

// How often one address may be wrong about its key. Guessing one is hopeless anyhow; this keeps the noise down.
const (
	failuresPerMinute = 10
	failuresBurst     = 20
)

// Gate lets requests in that come with a credential. It is safe for concurrent use.
type Gate struct {
	auth     Authenticator
	proxies  []netip.Prefix
	now      func() time.Time
	failures *remote.Limiter
}

// NewGate asks a for who sends a request. What the proxies say of where it comes from is believed. A nil now is time.Now.
func NewGate(a Authenticator, proxies []netip.Prefix, now func() time.Time) *Gate {
	if now == nil {
		now = time.Now
	}
	return &Gate{auth: a, proxies: proxies, now: now, failures: remote.NewLimiter(failuresPerMinute, failuresBurst)}
}

// Enter returns r with who sends it in its context (auth.PrincipalOf). The credential comes as a bearer token, or as the user of
// Basic with an empty password. An error is Unauthenticated, or Exhausted if the address has been wrong too often; then h, the
// header of the answer, says what is asked for, or when to come again.
func (g *Gate) Enter(h http.Header, r *http.Request) (*http.Request, error) {
	secret, err := secretOf(r)
	if err != nil {
		return nil, g.challenge(h, err)
	}
	addr, now := remote.Addr(r, g.proxies), g.now()
	if wait := g.failures.Wait(addr, now); wait > 0 {
		return nil, tooOften(h, wait)
	}
	p, err := g.auth.Authenticate(r.Context(), secret)
	if err != nil {
		if tailnet.CodeOf(err) == tailnet.Unauthenticated {
			g.failures.Take(addr, now)
		}
		return nil, g.challenge(h, err)
	}
	if addr.IsValid() {
		p.Remote = addr.String()
	}
	return r.WithContext(auth.WithPrincipal(r.Context(), p)), nil
}

// challenge adds to h what an answer with status 401 must have (RFC 9110, section 11.6.1).
func (g *Gate) challenge(h http.Header, err error) error {
	if tailnet.CodeOf(err) == tailnet.Unauthenticated {
		h.Set("WWW-Authenticate", `Bearer realm="skein"`)
	}
	return err
}

func tooOften(h http.Header, wait time.Duration) error {
	seconds := int(wait/time.Second) + 1
	h.Set("Retry-After", strconv.Itoa(seconds))
	return tailnet.Errorf(tailnet.Exhausted, "too many requests with wrong keys came from your address: try again in %d s", seconds)
}

// secretOf is the credential that r brings.
func secretOf(r *http.Request) (string, error) {
	header := r.Header.Get("Authorization")
	if header == "" {
		return "", tailnet.Errorf(tailnet.Unauthenticated, "an API key is needed: send it as \"Authorization: Bearer KEY\", or as the user of Basic")
	}
	if secret, password, ok := r.BasicAuth(); ok {
		if secret == "" { // curl -u :KEY
			secret = password
		}
		return strings.TrimSpace(secret), nil
	}
	scheme, secret, ok := strings.Cut(header, " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") || strings.TrimSpace(secret) == "" {
		return "", tailnet.Errorf(tailnet.Unauthenticated, "the Authorization header must be \"Bearer KEY\", or Basic with the key as the user")
	}
	return strings.TrimSpace(secret), nil
}

// local is r with who could open the unix socket that it came over.
func local(r *http.Request) *http.Request {
	name := "local"
	if uid, ok := strings.CutPrefix(r.RemoteAddr, peerPrefix); ok {
		name = "uid " + uid
		if u, err := user.LookupId(uid); err == nil && u.Username != "" {
			name = u.Username
		}
	}
	return r.WithContext(auth.WithPrincipal(r.Context(), auth.SocketPrincipal(name)))
}
