package oidc

import (
	"context"
	"crypto/subtle"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	gooidc "github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"github.com/skein-vpn/skein/tailnet"
)

// Flow is what a person signs in for.
type Flow struct {
	Kind     string `json:"k"`           // FlowLogin, FlowNode, FlowSSH
	LoginID  string `json:"l,omitempty"` // FlowNode: id of the tailnet.Login; FlowSSH: of the tailnet.SSHCheck
	ReturnTo string `json:"r,omitempty"` // where to go on: a path on this server; anything else becomes "/"
}

// Kinds of Flow.
const (
	FlowLogin = "login" // to look at the pages
	FlowNode  = "node"  // to add a node
	FlowSSH   = "ssh"   // to confirm an SSH session
)

// SignedIn is a sign-in that has succeeded. Nothing has been done about the Flow yet.
type SignedIn struct {
	User     *tailnet.User
	Identity Identity
	Flow     Flow

	// NodeExpiry is when a node ends that joins by this sign-in, in place of the tailnet's rule; zero: by that rule.
	NodeExpiry time.Time

	Cookie *http.Cookie // removes the cookie of Begin; to be set in the answer
}

// maxQuery bounds the parameters that a provider sends the browser back with, in bytes.
const maxQuery = 8 << 10

// Begin starts a sign-in: the browser is to be sent to redirectURL with the cookie set. The error is NotFound for an unknown
// provider or if what flow is about does not wait any more, and Unavailable if the provider cannot be reached.
func (m *Manager) Begin(ctx context.Context, providerID string, flow Flow) (redirectURL string, cookie *http.Cookie, err error) {
	p := m.provider(providerID)
	if p == nil {
		return "", nil, tailnet.Errorf(tailnet.NotFound, "there is no identity provider %q here", short(providerID))
	}
	flow.ReturnTo = localPath(flow.ReturnTo)
	if err := m.waits(ctx, flow); err != nil {
		return "", nil, err
	}
	d, err := p.ready(ctx)
	if err != nil {
		return "", nil, err
	}
	s := &started{
		State: randomText(), Nonce: randomText(), Provider: providerID, Flow: flow, Until: m.o.Now().Add(signInTTL).Unix(),
	}
	var opts []oauth2.AuthCodeOption
	for k, v := range p.o.ExtraParams {
		opts = append(opts, oauth2.SetAuthURLParam(k, v))
	}
	opts = append(opts, gooidc.Nonce(s.Nonce)) // after the extra ones, which must not replace it
	switch {
	case p.o.NoPKCE:
	case p.o.PlainPKCE:
		s.Verifier = oauth2.GenerateVerifier()
		opts = append(opts, oauth2.SetAuthURLParam("code_challenge", s.Verifier), oauth2.SetAuthURLParam("code_challenge_method", "plain"))
	default:
		s.Verifier = oauth2.GenerateVerifier()
		opts = append(opts, oauth2.S256ChallengeOption(s.Verifier))
	}
	name := m.cookieName(s.State)
	value, err := m.seal.seal(name, s)
	if err != nil {
		return "", nil, err
	}
	return d.oauth.AuthCodeURL(s.State, opts...), m.cookie(name, value), nil
}

// waits returns nil if what flow is about still waits for a person.
func (m *Manager) waits(ctx context.Context, flow Flow) error {
	switch flow.Kind {
	case FlowLogin:
		return nil
	case FlowNode:
		_, err := m.o.Pending.Login(ctx, flow.LoginID)
		return err
	case FlowSSH:
		_, err := m.o.Pending.SSHCheck(ctx, flow.LoginID)
		return err
	}
	return tailnet.Errorf(tailnet.Invalid, "a sign-in cannot be for %q", short(flow.Kind))
}

// Finish ends a sign-in that came back to CallbackPath or below, and stores the user as the provider describes it now.
//
// Its errors, beside those of the provider and the state: Invalid if r is no answer to a sign-in that Begin has started in
// this browser (forged, replayed, too late), Denied if the provider or the configuration does not let this person in.
func (m *Manager) Finish(ctx context.Context, r *http.Request) (*SignedIn, error) {
	in, err := m.finish(ctx, r)
	var e *tailnet.Error
	if errors.As(err, &e) && e.Cause != nil {
		m.log.Warn("sign-in failed", "remote", r.RemoteAddr, "err", causes(err))
	}
	return in, err
}

func (m *Manager) finish(ctx context.Context, r *http.Request) (*SignedIn, error) {
	s, p, err := m.returned(r)
	if err != nil {
		return nil, err
	}
	d, err := p.ready(ctx)
	if err != nil {
		return nil, err
	}
	q := r.URL.Query()
	if err := d.checkIssParam(q["iss"]); err != nil {
		return nil, err
	}
	if code := q.Get("error"); code != "" {
		return nil, p.refused(code, q.Get("error_description"))
	}
	id, refresh, err := p.redeem(ctx, d, q.Get("code"), s)
	if err != nil {
		return nil, err
	}
	if err := p.admits(id); err != nil {
		m.log.Info("sign-in refused", "provider", p.o.ID, "user", id.String(), "err", causes(err))
		return nil, err
	}
	if err := m.waits(ctx, s.Flow); err != nil { // somebody may have been faster
		return nil, err
	}
	u, err := m.store(ctx, p, id)
	if err != nil {
		return nil, err
	}
	if err := m.keepGrant(ctx, p, u, refresh); err != nil {
		return nil, err
	}
	m.log.Info("signed in", "provider", p.o.ID, "user", u.Name, "subject", id.Subject)
	out := &SignedIn{User: u, Identity: *id, Flow: s.Flow, Cookie: m.cookie(m.cookieName(s.State), "")}
	switch {
	case p.o.UseExpiryFromToken:
		out.NodeExpiry = id.Expiry
	case p.o.Expiry > 0:
		out.NodeExpiry = m.o.Now().Add(p.o.Expiry)
	}
	return out, nil
}

// returned finds the cookie that belongs to the state in r, and marks the state as used. Nobody outside is asked yet.
func (m *Manager) returned(r *http.Request) (*started, *provider, error) {
	const again = "; begin once more"
	if len(r.URL.RawQuery) > maxQuery {
		return nil, nil, tailnet.Errorf(tailnet.Invalid, "the answer of the identity provider is too long"+again)
	}
	q := r.URL.Query()
	for _, k := range []string{"state", "code", "error", "iss"} {
		if len(q[k]) > 1 {
			return nil, nil, tailnet.Errorf(tailnet.Invalid, "the answer of the identity provider has %s twice"+again, k)
		}
	}
	state := q.Get("state")
	if state == "" {
		return nil, nil, tailnet.Errorf(tailnet.Invalid, "this page is where identity providers send people back to, and nobody did"+again)
	}
	name := m.cookieName(state)
	c, err := r.Cookie(name)
	if err != nil {
		return nil, nil, tailnet.Errorf(tailnet.Invalid,
			"this sign-in was not started in this browser, was finished already, or has taken more than %s; begin once more, here, with cookies allowed", signInTTL)
	}
	s, err := m.seal.unseal(name, c.Value)
	if err != nil || subtle.ConstantTimeCompare([]byte(s.State), []byte(state)) != 1 {
		return nil, nil, &tailnet.Error{Code: tailnet.Invalid, Message: "this sign-in was not started here" + again, Cause: err}
	}
	until := time.Unix(s.Until, 0)
	if m.o.Now().After(until) {
		return nil, nil, tailnet.Errorf(tailnet.Invalid, "this sign-in has taken more than %s"+again, signInTTL)
	}
	p := m.provider(s.Provider)
	if p == nil {
		return nil, nil, tailnet.Errorf(tailnet.Invalid, "the identity provider of this sign-in is not configured any more"+again)
	}
	if !strings.HasSuffix(p.callback, r.URL.Path) { // one provider's answer must not count as another's (RFC 9700, section 4.4)
		return nil, nil, tailnet.Errorf(tailnet.Invalid, "this sign-in was started with another identity provider"+again)
	}
	if !m.use(state, until) {
		return nil, nil, tailnet.Errorf(tailnet.Invalid, "this sign-in was finished already"+again)
	}
	return s, p, nil
}

// checkIssParam obeys RFC 9207, section 2.4.
func (d *discovered) checkIssParam(iss []string) error {
	if len(iss) == 0 && !d.issParam || slices.Equal(iss, []string{d.issuer}) {
		return nil
	}
	return tailnet.Errorf(tailnet.Invalid, "the answer comes from another identity provider than was asked; begin once more")
}

// refused says what an error of the authorization endpoint means (RFC 6749, section 4.1.2.1).
func (p *provider) refused(code, description string) error {
	code, description = short(code), short(description)
	if description != "" {
		description = " (" + description + ")"
	}
	switch code {
	case "access_denied", "consent_required", "interaction_required", "login_required", "account_selection_required":
		return tailnet.Errorf(tailnet.Denied, "%s did not sign you in: %s%s", p.name, code, description)
	case "temporarily_unavailable", "server_error":
		return tailnet.Errorf(tailnet.Unavailable, "%s cannot sign you in at the moment: %s%s", p.name, code, description)
	}
	return tailnet.Errorf(tailnet.Unavailable, "%s refuses to sign anybody in for this server: %s%s; an administrator has to compare both configurations",
		p.name, code, description)
}

// redeem exchanges the code, and verifies what comes for it. There may be a refresh token.
func (p *provider) redeem(ctx context.Context, d *discovered, code string, s *started) (id *Identity, refresh string, err error) {
	if code == "" {
		return nil, "", tailnet.Errorf(tailnet.Invalid, "the answer of %s has no code; begin once more", p.name)
	}
	ctx = p.context(ctx)
	var opts []oauth2.AuthCodeOption
	if s.Verifier != "" {
		opts = append(opts, oauth2.VerifierOption(s.Verifier))
	}
	token, err := d.oauth.Exchange(ctx, code, opts...)
	if err != nil {
		return nil, "", p.exchangeError(err)
	}
	raw, _ := token.Extra("id_token").(string)
	if raw == "" {
		return nil, "", p.unusable(errors.New("there is no ID token in the answer: is the scope openid missing?"))
	}
	t, err := d.verifier.Verify(ctx, raw)
	if err != nil {
		return nil, "", p.unusable(err)
	}
	if subtle.ConstantTimeCompare([]byte(t.Nonce), []byte(s.Nonce)) != 1 {
		return nil, "", p.unusable(errors.New("the ID token was made for another sign-in: its nonce is another"))
	}
	if t.AccessTokenHash != "" {
		if err := t.VerifyAccessToken(token.AccessToken); err != nil {
			return nil, "", p.unusable(err)
		}
	}
	id, err = p.identity(ctx, d, t, token)
	return id, token.RefreshToken, err
}

// exchangeError says why a code was not exchanged.
func (p *provider) exchangeError(err error) error {
	var re *oauth2.RetrieveError
	switch {
	case errors.As(err, &re) && re.ErrorCode == "invalid_grant":
		return &tailnet.Error{Code: tailnet.Invalid, Message: "this sign-in is over: " + p.name + " does not know its code any more; begin once more", Cause: err}
	case errors.As(err, &re) && (re.ErrorCode == "invalid_client" || re.ErrorCode == "unauthorized_client"):
		return &tailnet.Error{Code: tailnet.Unavailable, Cause: err, Message: p.name + " does not accept this server as its client: " +
			"an administrator has to look at the client id, the client secret and the method of authentication (token_endpoint_auth_method)"}
	case errors.As(err, &re):
		return &tailnet.Error{Code: tailnet.Unavailable, Message: p.name + " has refused to finish the sign-in; the server's log says why", Cause: err}
	}
	return p.explain(err)
}

// unusable is an answer that does not verify.
func (p *provider) unusable(err error) error {
	return &tailnet.Error{Code: tailnet.Denied, Message: "what " + p.name + " says about you cannot be verified; the server's log says why", Cause: err}
}
