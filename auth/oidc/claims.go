package oidc

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode"

	gooidc "github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"github.com/skein-vpn/skein/tailnet"
)

// Limits on what is believed about one person.
const (
	maxSubject = 255 // bytes; OpenID Connect Core 1.0, section 2
	maxEmail   = 254 // bytes; RFC 5321 with its erratum 1690
	maxPicture = 2048
	maxGroup   = 255 // bytes of one name
	maxGroups  = 1000
)

// Identity is what a provider says about a person: verified, cleaned, bounded.
type Identity struct {
	Provider   string // ProviderOptions.ID
	Identifier string // tailnet.JoinProviderID of the two below
	Issuer     string // as the provider spells it
	Subject    string

	Email         string // may be empty
	EmailVerified bool   // the provider says so
	Username      string // preferred_username, may be empty
	Name          string // to be shown, may be empty
	Picture       string // https URL, may be empty
	Groups        []string
	Expiry        time.Time // of the ID token

	// IDToken is kept by the session of the person for LogoutURL.
	IDToken string
}

// String is how the person is called in the log.
func (id *Identity) String() string { return cmp.Or(id.Email, id.Username, id.Identifier) }

// claims are those of an ID token or of a user info answer.
type claims map[string]json.RawMessage

// text is a claim as text that can be shown, at most as long as tailnet.CleanText leaves it; empty if it is missing or
// something else.
func (c claims) text(name string) string {
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if unicode.Is(unicode.Bidi_Control, r) { // would turn what stands behind it around
			return -1
		}
		return r
	}, tailnet.CleanText(c.raw(name))))
}

// raw is a claim as it stands there.
func (c claims) raw(name string) (s string) {
	if json.Unmarshal(c[name], &s) != nil {
		return ""
	}
	return s
}

// yes is a claim that says true; some providers write "true".
func (c claims) yes(name string) bool {
	return slices.Contains([]string{"true", `"true"`}, string(c[name]))
}

func (c claims) has(name string) bool { return len(c[name]) > 0 && string(c[name]) != "null" }

// find is the claim called path, or the one that the path leads to through objects; nil if there is none.
func (c claims) find(path string) json.RawMessage {
	if c.has(path) {
		return c[path]
	}
	head, rest, ok := strings.Cut(path, ".")
	var inner claims
	if !ok || json.Unmarshal(c[head], &inner) != nil {
		return nil
	}
	return inner.find(rest)
}

// identity puts together what the ID token and, where that is silent, the user info endpoint say.
func (p *provider) identity(ctx context.Context, d *discovered, t *gooidc.IDToken, token *oauth2.Token) (*Identity, error) {
	var c claims
	if err := t.Claims(&c); err != nil {
		return nil, p.unusable(err)
	}
	if t.Subject == "" || len(t.Subject) > maxSubject || t.Subject != tailnet.CleanText(t.Subject) {
		return nil, p.unusable(fmt.Errorf("the subject has %d bytes, or control characters: want 1 to %d", len(t.Subject), maxSubject))
	}
	// OpenID Connect Core 1.0, section 3.1.3.7, points 4 and 5.
	if azp := c.text("azp"); azp != "" && azp != p.o.ClientID && len(t.Audience) > 1 {
		return nil, p.unusable(fmt.Errorf("the ID token was made for another client, %q", azp))
	}
	if p.incomplete(c) && d.provider.UserInfoEndpoint() != "" {
		if err := p.addUserInfo(ctx, d, t.Subject, token, c); err != nil {
			return nil, err
		}
	}
	raw, _ := token.Extra("id_token").(string)
	id := &Identity{
		Provider: p.o.ID, Issuer: d.issuer, Subject: t.Subject, Identifier: tailnet.JoinProviderID(d.issuer, t.Subject),
		Email: strings.ToLower(c.text("email")), EmailVerified: c.yes("email_verified"),
		Username: c.text("preferred_username"), Name: c.text("name"), Picture: c.picture(),
		Expiry: t.Expiry, IDToken: raw,
	}
	if id.Name == "" {
		id.Name = strings.TrimSpace(c.text("given_name") + " " + c.text("family_name"))
	}
	if id.Email != "" && !isEmail(id.Email) {
		return nil, p.unusable(fmt.Errorf("%.300q is not a mail address", id.Email))
	}
	var err error
	if id.Groups, err = p.groups(c); err != nil {
		return nil, err
	}
	return id, nil
}

// incomplete reports whether something is missing in c that the user info endpoint may know.
func (p *provider) incomplete(c claims) bool {
	return !c.has("email") || !c.has("email_verified") || !c.has("preferred_username") || !c.has("name") ||
		p.o.GroupsClaim != "" && c.find(p.o.GroupsClaim) == nil
}

// addUserInfo asks the user info endpoint for the claims that c does not have.
func (p *provider) addUserInfo(ctx context.Context, d *discovered, subject string, token *oauth2.Token, c claims) error {
	info, err := d.provider.UserInfo(ctx, oauth2.StaticTokenSource(token))
	if err != nil {
		return p.explain(fmt.Errorf("user info: %w", err))
	}
	// OpenID Connect Core 1.0, section 5.3.2: the answer may be about somebody else.
	if info.Subject != subject {
		return p.unusable(errors.New("the user info endpoint speaks of another subject than the ID token"))
	}
	var more claims
	if err := info.Claims(&more); err != nil {
		return p.unusable(err)
	}
	if c.has("email") { // what is said about one address says nothing about another
		if c.text("email") != more.text("email") {
			delete(more, "email_verified")
		}
	} else {
		delete(c, "email_verified")
	}
	for k, v := range more {
		if !c.has(k) {
			c[k] = v
		}
	}
	return nil
}

// isEmail reports whether s looks like a mail address.
func isEmail(s string) bool {
	local, domain, ok := strings.Cut(s, "@")
	return ok && local != "" && domain != "" && len(s) <= maxEmail && !strings.ContainsAny(s, " <>\"\\(),:;[]") && !strings.Contains(domain, "@")
}

// picture is the address of a picture that a client may load.
func (c claims) picture() string {
	s := c.raw("picture")
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || len(s) > maxPicture {
		return ""
	}
	return s
}

// groups are those of the groups claim: a list of names, or one name.
func (p *provider) groups(c claims) ([]string, error) {
	if p.o.GroupsClaim == "" {
		return nil, nil
	}
	raw := c.find(p.o.GroupsClaim)
	if raw == nil {
		return nil, nil
	}
	var list []string
	if json.Unmarshal(raw, &list) != nil {
		var one string
		if json.Unmarshal(raw, &one) != nil {
			return nil, p.unusable(fmt.Errorf("the claim %s is not a list of names (groups_claim): %.100s", p.o.GroupsClaim, raw))
		}
		list = []string{one}
	}
	if len(list) > maxGroups {
		return nil, tailnet.Errorf(tailnet.Denied, "%s says that you are in %d groups, and at most %d are possible: an administrator has to have it send fewer",
			p.name, len(list), maxGroups)
	}
	out := make([]string, 0, len(list))
	for _, g := range list {
		if g = strings.TrimSpace(g); g == "" {
			continue
		}
		if len(g) > maxGroup || g != tailnet.CleanText(g) {
			return nil, p.unusable(fmt.Errorf("the name of a group has %d bytes, or control characters: want 1 to %d", len(g), maxGroup))
		}
		out = append(out, g)
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// admits returns nil if the configuration lets this person in. All lists that are not empty must agree.
func (p *provider) admits(id *Identity) error {
	deny := func(format string, args ...any) error { return tailnet.Errorf(tailnet.Denied, format, args...) }
	if !p.o.UnverifiedEmail {
		const hint = "; an administrator can have the provider send it, or set email_verified_required to false if the provider does not let people choose their address"
		switch {
		case id.Email == "":
			return deny("%s did not say what your mail address is (claim email; is the scope email asked for?)"+hint, p.name)
		case !id.EmailVerified:
			return deny("%s did not say that your mail address %s is verified (claim email_verified)"+hint, p.name, id.Email)
		}
	}
	_, domain, _ := strings.Cut(id.Email, "@")
	same := func(want string) func(string) bool {
		return func(s string) bool { return strings.EqualFold(strings.TrimSpace(s), want) }
	}
	if len(p.o.AllowedDomains) > 0 && (domain == "" || !slices.ContainsFunc(p.o.AllowedDomains, same(domain))) {
		return deny("mail addresses of your domain may not sign in here (%s)", cmp.Or(id.Email, "you have none"))
	}
	if len(p.o.AllowedUsers) > 0 && (id.Email == "" || !slices.ContainsFunc(p.o.AllowedUsers, same(id.Email))) {
		return deny("the address %s may not sign in here", cmp.Or(id.Email, "(you have none)"))
	}
	if len(p.o.AllowedGroups) > 0 && !slices.ContainsFunc(p.o.AllowedGroups, func(g string) bool { return slices.Contains(id.Groups, g) }) {
		return deny("you (%s) may not sign in here: none of your groups at %s is allowed to", id.String(), p.name)
	}
	return nil
}

// LogoutURL is where to send a person who signs out here, so that it is signed out at the provider as well; empty if the provider
// offers nothing of the kind. back is a path on this server, which must be registered at the provider for this; empty: the provider's own
// page is the end (OpenID Connect RP-Initiated Logout 1.0).
func (m *Manager) LogoutURL(id Identity, back string) string {
	p := m.provider(id.Provider)
	if p == nil {
		return ""
	}
	p.mu.Lock()
	d := p.disc
	p.mu.Unlock()
	if d == nil || d.logout == "" {
		return ""
	}
	u, err := url.Parse(d.logout)
	if err != nil {
		return ""
	}
	q := u.Query()
	q.Set("client_id", p.o.ClientID)
	if id.IDToken != "" {
		q.Set("id_token_hint", id.IDToken)
		if back != "" {
			q.Set("post_logout_redirect_uri", m.o.ServerURL+localPath(back))
		}
	}
	u.RawQuery = q.Encode()
	return u.String()
}
