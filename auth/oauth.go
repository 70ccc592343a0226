package auth

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// How a program gets an access token, which lives for TokenLife:
//
//	OAuth client         secret ─────────────────────────────► ClientToken ──► token with (some of) the client's scopes and tags
//	federated identity   token of another issuer, its id ────► ExchangeToken ─► the same, if issuer, audience, subject and claims are
//	                                                                            what the identity says
//
// Neither belongs to a user: what they may do is what their maker could do when they were made.

// TokenLife is how long an access token lives.
const TokenLife = time.Hour

// Limits on what a federated identity may say.
const (
	maxClaims    = 32
	maxClaimText = 512 // bytes
	maxJWT       = 32 << 10
)

// ClientRequest says what an OAuth client or a federated identity may do.
type ClientRequest struct {
	Scopes      []string // not empty
	Tags        []string // needed if the scopes hold auth_keys or devices:core: what it may give to nodes
	Description string

	// Of a federated identity; see tailnet.Credential.
	Issuer   string
	Subject  string
	Audience string
	Claims   map[string]string
}

// TokenVerifier checks tokens of other issuers; oidc.Verifier is the one in use.
type TokenVerifier interface {
	// Verify returns the claims of token if issuer has signed it for audience and it is valid now.
	Verify(ctx context.Context, issuer, audience, token string) (map[string]any, error)
}

// checkClient returns r as it is to be stored, or says what is wrong with it, or that p may not do so much.
func (a *Auth) checkClient(p *Principal, r ClientRequest) (ClientRequest, error) {
	var err error
	if r.Scopes, err = CheckScopes(r.Scopes); err != nil {
		return r, err
	}
	if len(r.Scopes) == 0 {
		return r, tailnet.Errorf(tailnet.Invalid, "scopes are missing: name what it may do")
	}
	for _, s := range r.Scopes {
		if err := p.Allow(s); err != nil {
			return r, err
		}
	}
	for _, t := range r.Tags {
		if err := tailnet.CheckTag(t); err != nil {
			return r, err
		}
	}
	r.Tags = sortedUnique(r.Tags)
	if len(r.Tags) == 0 {
		r.Tags = nil
		for _, s := range []string{ScopeAuthKeys, ScopeDevices} {
			if grants(r.Scopes, s) {
				return r, tailnet.Errorf(tailnet.Invalid, "tags are missing: with the scope %s it can give tags to nodes, so name those that it may", s)
			}
		}
	}
	if err := p.AllowTags(a.st.Snapshot(), r.Tags); err != nil {
		return r, err
	}
	return r, checkDescription(r.Description)
}

// CreateOAuthClient makes an OAuth client in p's name. The secret is returned this once and not kept.
func (a *Auth) CreateOAuthClient(ctx context.Context, p *Principal, r ClientRequest) (secret string, c *tailnet.Credential, err error) {
	if err := p.Allow(ScopeOAuthKeys); err != nil {
		return "", nil, err
	}
	if r, err = a.checkClient(p, r); err != nil {
		return "", nil, err
	}
	c = &tailnet.Credential{
		ID: credentialID(), Kind: tailnet.OAuthClient, HashKind: tailnet.HashSHA256, Scopes: r.Scopes, Tags: r.Tags, Description: r.Description,
	}
	secret = clientPrefix + c.ID + "-" + randomText(40)
	hash := sha256.Sum256([]byte(secret))
	c.Hash = hash[:]
	err = a.putNew(ctx, "OAuth client created", c)
	return secret, c, err
}

// CreateFederatedIdentity lets tokens of r.Issuer be exchanged for access tokens, in p's name. An empty r.Audience becomes
// HOST/ID, with the host of the server and the id of the new identity.
func (a *Auth) CreateFederatedIdentity(ctx context.Context, p *Principal, r ClientRequest) (c *tailnet.Credential, err error) {
	if err := p.Allow(ScopeFederated); err != nil {
		return nil, err
	}
	if r, err = a.checkClient(p, r); err != nil {
		return nil, err
	}
	c = &tailnet.Credential{ID: credentialID(), Kind: tailnet.FederatedIdentity}
	if err := a.describe(c, r); err != nil {
		return nil, err
	}
	return c, a.putNew(ctx, "federated identity created", c)
}

// UpdateClient replaces what an OAuth client or a federated identity may do, in p's name. What it loses,
// its tokens lose as well.
func (a *Auth) UpdateClient(ctx context.Context, p *Principal, id string, r ClientRequest) (c *tailnet.Credential, err error) {
	r, err = a.checkClient(p, r)
	if err != nil {
		return nil, err
	}
	err = a.st.Update(ctx, "client changed", func(tx *state.Tx) error {
		old := tx.Credential(id)
		if old == nil || old.Kind == tailnet.APIKey {
			return noCredential(id)
		}
		if err := mayEnd(p, old); err != nil {
			return err
		}
		c = old.Clone()
		if c.Kind == tailnet.OAuthClient {
			c.Scopes, c.Tags, c.Description = r.Scopes, r.Tags, r.Description
		} else if err := a.describe(c, r); err != nil {
			return err
		}
		if c.Equal(old) {
			return nil
		}
		return tx.PutCredential(c)
	})
	return c, err
}

// describe puts what r says into the federated identity c.
func (a *Auth) describe(c *tailnet.Credential, r ClientRequest) error {
	if err := checkIssuer(r.Issuer); err != nil {
		return err
	}
	if r.Subject == "" {
		return tailnet.Errorf(tailnet.Invalid, "the subject is missing: name whom the issuer's tokens must be about; * stands for any text")
	}
	if len(r.Claims) > maxClaims {
		return tailnet.Errorf(tailnet.Invalid, "%d claims are too many: at most %d are possible", len(r.Claims), maxClaims)
	}
	for _, name := range slices.Sorted(maps.Keys(r.Claims)) {
		if v := r.Claims[name]; name == "" || len(name) > maxClaimText || len(v) > maxClaimText || tailnet.CleanText(name) != name {
			return tailnet.Errorf(tailnet.Invalid, "the claim %q is empty or longer than %d bytes", tailnet.CleanText(name), maxClaimText)
		}
	}
	if len(r.Subject) > maxClaimText || len(r.Audience) > maxClaimText {
		return tailnet.Errorf(tailnet.Invalid, "subject and audience must be at most %d bytes", maxClaimText)
	}
	if r.Audience == "" {
		host := "skein"
		if u, err := url.Parse(a.o.ServerURL); err == nil && u.Host != "" {
			host = u.Host
		}
		r.Audience = host + "/" + c.ID
	}
	c.Issuer, c.Subject, c.Audience, c.Claims = strings.TrimRight(r.Issuer, "/"), r.Subject, r.Audience, maps.Clone(r.Claims)
	c.Scopes, c.Tags, c.Description = r.Scopes, r.Tags, r.Description
	return nil
}

// checkIssuer returns nil if s may be an issuer: an https URL, or http to this very machine, which tests use.
func checkIssuer(s string) error {
	u, err := url.Parse(s)
	loopback := false
	if err == nil {
		a, aerr := netip.ParseAddr(u.Hostname())
		loopback = u.Hostname() == "localhost" || aerr == nil && a.IsLoopback()
	}
	if err != nil || u.Scheme != "https" && !(u.Scheme == "http" && loopback) || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || len(s) > maxClaimText {
		return tailnet.Errorf(tailnet.Invalid, "%q is not an issuer such as https://token.actions.githubusercontent.com", tailnet.CleanText(s))
	}
	return nil
}

// ClientToken makes an access token for who has the secret of an OAuth client. Scopes and tags narrow what it may do; none means all
// that the client may. The error is Unauthenticated if the secret is not good, and Invalid if more is wanted than the client may.
func (a *Auth) ClientToken(ctx context.Context, secret string, scopes, tags []string) (token string, t *tailnet.AccessToken, err error) {
	sn := a.st.Snapshot()
	unknown := tailnet.Errorf(tailnet.Unauthenticated, "this client secret is not known here; check that it was copied whole")
	id, ok := secretID(secret)
	if !ok || len(secret) > maxSecret {
		return "", nil, unknown
	}
	c := sn.Credential(id)
	if c == nil || c.Kind != tailnet.OAuthClient || !a.matches(c, secret) {
		return "", nil, unknown
	}
	return a.issue(ctx, sn, c, scopes, tags)
}

// ExchangeToken makes an access token for who brings jwt, a token that the issuer of the federated identity id has signed. It is like
// ClientToken in all else.
func (a *Auth) ExchangeToken(ctx context.Context, id, jwt string, scopes, tags []string) (token string, t *tailnet.AccessToken, err error) {
	sn := a.st.Snapshot()
	c := sn.Credential(id)
	if c == nil || c.Kind != tailnet.FederatedIdentity {
		return "", nil, tailnet.Errorf(tailnet.Unauthenticated, "there is no federated identity with this client id")
	}
	if err := c.Ended(a.o.Now()); err != nil {
		return "", nil, err
	}
	if a.o.Verifier == nil {
		return "", nil, tailnet.Errorf(tailnet.Unavailable, "this server exchanges no tokens")
	}
	if len(jwt) > maxJWT {
		return "", nil, tailnet.Errorf(tailnet.Unauthenticated, "the token is longer than %d bytes", maxJWT)
	}
	// Looked at before anybody is asked: strangers shall not make us ask the issuer.
	issuer, err := issuerOf(jwt)
	if err != nil {
		return "", nil, err
	}
	if strings.TrimRight(issuer, "/") != c.Issuer {
		return "", nil, tailnet.Errorf(tailnet.Unauthenticated, "the token is of the issuer %q, and %q is expected", tailnet.CleanText(issuer), c.Issuer)
	}
	claims, err := a.o.Verifier.Verify(ctx, issuer, c.Audience, jwt)
	if err != nil {
		return "", nil, err
	}
	if err := matchClaims(c, claims); err != nil {
		return "", nil, err
	}
	return a.issue(ctx, sn, c, scopes, tags)
}

// issuerOf is what a token says of its issuer; nobody has verified it.
func issuerOf(jwt string) (string, error) {
	bad := tailnet.Errorf(tailnet.Unauthenticated, "the token is no JWT")
	parts := strings.Split(jwt, ".")
	if len(parts) != 3 {
		return "", bad
	}
	b, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return "", bad
	}
	var payload struct {
		Issuer string `json:"iss"`
	}
	if json.Unmarshal(b, &payload) != nil || payload.Issuer == "" {
		return "", bad
	}
	return payload.Issuer, nil
}

// matchClaims returns nil if claims are what c wants. The error names the first that is not.
func matchClaims(c *tailnet.Credential, claims map[string]any) error {
	want := maps.Clone(c.Claims)
	if want == nil {
		want = map[string]string{}
	}
	want["sub"] = c.Subject
	for _, name := range slices.Sorted(maps.Keys(want)) {
		v, ok := claims[name]
		if !ok {
			return tailnet.Errorf(tailnet.Unauthenticated, "the token lacks the claim %s", name)
		}
		values, isList := v.([]any)
		if !isList {
			values = []any{v}
		}
		if !slices.ContainsFunc(values, func(v any) bool { return matchText(want[name], claimText(v)) }) {
			return tailnet.Errorf(tailnet.Unauthenticated, "the token's claim %s is %q, which is not what is expected", name, tailnet.CleanText(claimText(v)))
		}
	}
	return nil
}

// claimText is a claim as text.
func claimText(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case bool:
		return fmt.Sprint(v)
	case float64: // of JSON
		b, _ := json.Marshal(v) // a number never fails
		return string(b)
	}
	b, err := json.Marshal(v)
	if err != nil {
		return ""
	}
	return string(b)
}

// matchText reports whether s is what pattern says; "*" stands for any text.
func matchText(pattern, s string) bool {
	parts := strings.Split(pattern, "*")
	if len(parts) == 1 {
		return pattern == s
	}
	s, ok := strings.CutPrefix(s, parts[0])
	if !ok {
		return false
	}
	last := parts[len(parts)-1]
	for _, p := range parts[1 : len(parts)-1] {
		i := strings.Index(s, p)
		if i < 0 {
			return false
		}
		s = s[i+len(p):]
	}
	return strings.HasSuffix(s, last)
}

// issue makes a token for c, whose bearer has proven itself.
func (a *Auth) issue(ctx context.Context, sn *state.Snapshot, c *tailnet.Credential, scopes, tags []string) (string, *tailnet.AccessToken, error) {
	p, err := a.principal(sn, c, KindToken)
	if err != nil {
		return "", nil, err
	}
	if scopes, err = CheckScopes(scopes); err != nil {
		return "", nil, &ScopeError{err.Error()}
	}
	if len(scopes) == 0 {
		scopes = c.Scopes
	}
	for _, s := range scopes {
		if !grants(c.Scopes, s) {
			return "", nil, &ScopeError{fmt.Sprintf("the %s has no scope %s, only %s", c.Kind.Noun(), s, orNone(c.Scopes))}
		}
	}
	if tags = sortedUnique(tags); len(tags) == 0 {
		tags = c.Tags
	}
	p.TagBound, p.Tags = true, c.Tags
	if err := p.AllowTags(sn, tags); err != nil {
		return "", nil, tailnet.Errorf(tailnet.Invalid, "%w", err)
	}
	token := apiKeyPrefix + c.ID + "-" + randomText(40)
	now := a.o.Now()
	t := &tailnet.AccessToken{
		Hash: sha256.Sum256([]byte(token)), Tailnet: a.o.Tailnet, Credential: c.ID, Scopes: scopes, Tags: tags, Created: now, Expires: now.Add(TokenLife),
	}
	if err := a.o.Store.PutAccessToken(ctx, t); err != nil {
		return "", nil, &tailnet.Error{Code: tailnet.Unavailable, Message: "the access token could not be stored", Cause: err}
	}
	return token, t, nil
}

// ScopeError refuses a token with scopes that do not exist or that its client lacks. It is a tailnet.Invalid.
type ScopeError struct{ message string }

func (e *ScopeError) Error() string { return e.message }
func (e *ScopeError) Unwrap() error { return tailnet.Errorf(tailnet.Invalid, "%s", e.message) }
