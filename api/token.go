package api

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/gorilla/mux"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/remote"
	"github.com/skein-vpn/skein/tailnet"
)

// Where access tokens are got: by the secret of an OAuth client, and by a token of another issuer. Tailscale's clients know the
// paths below /api/v2; the short ones are for people.
const (
	TokenPath         = "/api/v2/oauth/token"
	TokenExchangePath = "/api/v2/oauth/token-exchange"

	shortTokenPath    = "/oauth/token"
	shortExchangePath = "/oauth/token-exchange"
)

// maxTokenBody is how many bytes of a request for a token are read.
const maxTokenBody = 64 << 10

// TokenMaker is what the token endpoints need of auth.
type TokenMaker interface {
	ClientToken(ctx context.Context, secret string, scopes, tags []string) (token string, t *tailnet.AccessToken, err error)
	ExchangeToken(ctx context.Context, id, jwt string, scopes, tags []string) (token string, t *tailnet.AccessToken, err error)
}

// Tokens are the token endpoints (RFC 6749, section 4.4, and Tailscale's exchange of tokens).
type Tokens struct {
	auth     TokenMaker
	proxies  []netip.Prefix
	now      func() time.Time
	log      *slog.Logger
	failures *remote.Limiter
}

// NewTokens makes the token endpoints. What the proxies say of where a request comes from is believed. A nil now is time.Now, a nil
// log slog.Default.
func NewTokens(a TokenMaker, proxies []netip.Prefix, now func() time.Time, log *slog.Logger) *Tokens {
	if now == nil {
		now = time.Now
	}
	if log == nil {
		log = slog.Default()
	}
	return &Tokens{auth: a, proxies: proxies, now: now, log: log, failures: remote.NewLimiter(failuresPerMinute, failuresBurst)}
}

// Mount adds the endpoints. It must come before whatever else is below /api/v2.
func (t *Tokens) Mount(r *mux.Router) {
	for _, p := range []string{TokenPath, shortTokenPath} {
		r.HandleFunc(p, t.serve(t.client))
	}
	for _, p := range []string{TokenExchangePath, shortExchangePath} {
		r.HandleFunc(p, t.serve(t.exchange))
	}
}

// oauthError is a failure in the words of RFC 6749, section 5.2.
type oauthError struct {
	status      int
	Code        string `json:"error"`
	Description string `json:"error_description,omitempty"`
}

func (e *oauthError) Error() string { return e.Code + ": " + e.Description }

// TokenAnswer is the answer of the token endpoints (RFC 6749, section 5.1).
type TokenAnswer struct {
	AccessToken string `json:"access_token"`
	TokenType   string `json:"token_type"` // Bearer
	ExpiresIn   int    `json:"expires_in"` // seconds
	Scope       string `json:"scope"`      // separated by spaces
}

type tokenRequest func(r *http.Request) (token string, t *tailnet.AccessToken, err error)

func (t *Tokens) serve(get tokenRequest) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTimeout)) // an HTTP/2 stream may not know it
		w.Header().Set("Pragma", "no-cache")                                           // RFC 6749, section 5.1; writeJSON sets Cache-Control
		addr, now := remote.Addr(r, t.proxies), t.now()
		if wait := t.failures.Wait(addr, now); wait > 0 {
			err := tooOften(w.Header(), wait)
			writeJSON(w, http.StatusTooManyRequests, "application/json", &oauthError{Code: "slow_down", Description: err.Error()})
			return
		}
		if r.Method != http.MethodPost {
			w.Header().Set("Allow", http.MethodPost)
			writeJSON(w, http.StatusMethodNotAllowed, "application/json", &oauthError{Code: "invalid_request", Description: "only POST is possible here"})
			return
		}
		token, at, err := t.ask(w, r, get)
		if err != nil {
			e := t.explain(r, err)
			if e.Code == "invalid_client" || e.Code == "invalid_grant" {
				t.failures.Take(addr, now)
			}
			if e.status == http.StatusUnauthorized {
				w.Header().Set("WWW-Authenticate", `Basic realm="skein"`) // RFC 6749, section 5.2
			}
			writeJSON(w, e.status, "application/json", e)
			return
		}
		writeJSON(w, http.StatusOK, "application/json", TokenAnswer{
			AccessToken: token, TokenType: "Bearer", ExpiresIn: int(at.Expires.Sub(at.Created).Seconds()), Scope: strings.Join(at.Scopes, " "),
		})
	}
}

// ask reads the form of r and hands it to get.
func (t *Tokens) ask(w http.ResponseWriter, r *http.Request, get tokenRequest) (string, *tailnet.AccessToken, error) {
	r.Body = http.MaxBytesReader(w, r.Body, maxTokenBody)
	if err := r.ParseForm(); err != nil {
		return "", nil, &oauthError{http.StatusBadRequest, "invalid_request", "the body is no form (application/x-www-form-urlencoded), or larger than 64 KiB"}
	}
	for _, name := range []string{"grant_type", "client_id", "client_secret", "jwt", "scope", "tags"} {
		if len(r.PostForm[name]) > 1 { // RFC 6749, section 3.2
			return "", nil, &oauthError{http.StatusBadRequest, "invalid_request", "the parameter " + name + " is there more than once"}
		}
	}
	return get(r)
}

// client is the client credentials grant. The client is told by its secret alone: `tailscale up` sends an id of its own invention.
func (t *Tokens) client(r *http.Request) (string, *tailnet.AccessToken, error) {
	if g := r.PostForm.Get("grant_type"); g != "client_credentials" {
		if g == "" {
			return "", nil, &oauthError{http.StatusBadRequest, "invalid_request", "grant_type is missing: it must be client_credentials"}
		}
		return "", nil, &oauthError{http.StatusBadRequest, "unsupported_grant_type", "grant_type must be client_credentials"}
	}
	secret := r.PostForm.Get("client_secret")
	if _, password, ok := r.BasicAuth(); ok && password != "" {
		var err error
		if secret, err = url.QueryUnescape(password); err != nil { // RFC 6749, section 2.3.1
			return "", nil, &oauthError{http.StatusUnauthorized, "invalid_client", "the client secret is not escaped correctly"}
		}
	}
	if secret == "" {
		return "", nil, &oauthError{http.StatusUnauthorized, "invalid_client", "the client secret is missing: send it by Basic or as client_secret"}
	}
	return t.auth.ClientToken(r.Context(), strings.TrimSpace(secret), words(r, "scope"), words(r, "tags"))
}

// exchange takes a token of another issuer. The grant type is not looked at: Tailscale's clients send one that does not fit.
func (t *Tokens) exchange(r *http.Request) (string, *tailnet.AccessToken, error) {
	id, jwt := r.PostForm.Get("client_id"), strings.TrimSpace(r.PostForm.Get("jwt"))
	if id == "" || jwt == "" {
		return "", nil, &oauthError{http.StatusBadRequest, "invalid_request", "client_id and jwt are needed"}
	}
	id, _, _ = strings.Cut(id, "?") // attributes for the client itself
	token, at, err := t.auth.ExchangeToken(r.Context(), id, jwt, words(r, "scope"), words(r, "tags"))
	if tailnet.CodeOf(err) == tailnet.Unauthenticated {
		return "", nil, &oauthError{http.StatusBadRequest, "invalid_grant", err.Error()}
	}
	return token, at, err
}

// words is a parameter that is a list, separated by spaces or commas.
func words(r *http.Request, name string) []string {
	return strings.FieldsFunc(r.PostForm.Get(name), func(c rune) bool { return c == ' ' || c == ',' })
}

// explain puts err into the words of RFC 6749.
func (t *Tokens) explain(r *http.Request, err error) *oauthError {
	var (
		oe *oauthError
		se *auth.ScopeError
	)
	switch {
	case errors.As(err, &oe):
		return oe
	case errors.As(err, &se):
		return &oauthError{http.StatusBadRequest, "invalid_scope", se.Error()}
	}
	p := problemOf(err)
	switch tailnet.CodeOf(err) {
	case tailnet.Unauthenticated:
		return &oauthError{http.StatusUnauthorized, "invalid_client", p.Message}
	case tailnet.Invalid, tailnet.Denied:
		return &oauthError{http.StatusBadRequest, "invalid_request", p.Message}
	case tailnet.Unavailable:
		t.log.Warn("an access token could not be made", "remote", r.RemoteAddr, "err", withCause(err))
		return &oauthError{http.StatusServiceUnavailable, "temporarily_unavailable", p.Message}
	}
	t.log.Error("an access token could not be made", "remote", r.RemoteAddr, "err", withCause(err))
	return &oauthError{http.StatusInternalServerError, "server_error", p.Message}
}
