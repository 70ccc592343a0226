package oidc

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	gooidc "github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// GrantStore keeps refresh tokens, sealed. db.DB is the one in use.
type GrantStore interface {
	// PutProviderGrant stores g in place of the user's earlier one.
	PutProviderGrant(ctx context.Context, g *tailnet.ProviderGrant) error
	// ProviderGrants are those of a provider that were checked before t, the longest ago first, at most limit of them.
	ProviderGrants(ctx context.Context, id tailnet.ID, provider string, t time.Time, limit int) ([]*tailnet.ProviderGrant, error)
	// DeleteProviderGrant removes the user's; it is not an error if there is none.
	DeleteProviderGrant(ctx context.Context, id tailnet.ID, user tailnet.UserID) error
}

const (
	recheckTick  = time.Minute // between two looks for users whose turn it is
	recheckBatch = 100         // users in one look
)

// keepGrant stores the refresh token of a sign-in, if there is one and it is wanted.
func (m *Manager) keepGrant(ctx context.Context, p *provider, u *tailnet.User, token string) error {
	if token == "" || !p.rechecks() || m.o.Grants == nil {
		return nil
	}
	now := m.o.Now()
	g := &tailnet.ProviderGrant{
		Tailnet: m.o.Tailnet, User: u.ID, Provider: p.o.ID, Token: m.seal.bytes(grantName(u.ID), []byte(token)), Created: now, Checked: now,
	}
	if err := m.o.Grants.PutProviderGrant(ctx, g); err != nil {
		return fmt.Errorf("storing the provider's permission to ask again: %w", err)
	}
	return nil
}

func grantName(id tailnet.UserID) string { return "refresh token of user " + id.String() }

// rechecks reports whether users of the provider are asked after: it takes a refresh token, which the scope offline_access asks for
// (OpenID Connect Core 1.0, section 11), at Hydra also offline, and at Google a parameter.
func (p *provider) rechecks() bool {
	asks := slices.Contains(p.o.Scopes, gooidc.ScopeOfflineAccess) || slices.Contains(p.o.Scopes, "offline") || p.o.ExtraParams["access_type"] == "offline"
	return p.o.CheckEvery > 0 && asks
}

// recheck asks providers after users until ctx ends.
func (m *Manager) recheck(ctx context.Context) {
	if m.o.Grants == nil || !slices.ContainsFunc(m.providers, (*provider).rechecks) {
		return
	}
	tick := time.NewTicker(recheckTick)
	defer tick.Stop()
	for {
		if m.o.Leads == nil || m.o.Leads() {
			if err := m.Recheck(ctx); err != nil && ctx.Err() == nil {
				m.log.Warn("identity providers could not be asked after users", "err", causes(err))
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// Recheck asks the providers after the users whose turn it is. Who is not there any more, or may not sign in any more, loses the
// keys of his nodes; mail address, groups and the rest follow the provider. Trouble with a provider changes nothing.
func (m *Manager) Recheck(ctx context.Context) error {
	var errs []error
	for _, p := range m.providers {
		if !p.rechecks() {
			continue
		}
		due, err := m.o.Grants.ProviderGrants(ctx, m.o.Tailnet, p.o.ID, m.o.Now().Add(-p.o.CheckEvery), recheckBatch)
		if err != nil {
			return fmt.Errorf("reading refresh tokens: %w", err)
		}
		for _, g := range due {
			if ctx.Err() != nil {
				return errors.Join(append(errs, ctx.Err())...)
			}
			if err := m.recheckUser(ctx, p, g); err != nil {
				errs = append(errs, fmt.Errorf("user %d: %w", g.User, err))
			}
		}
	}
	return errors.Join(errs...)
}

func (m *Manager) recheckUser(ctx context.Context, p *provider, g *tailnet.ProviderGrant) error {
	u := m.st.Snapshot().User(g.User)
	token, err := m.seal.open(grantName(g.User), g.Token)
	if u == nil || err != nil { // deleted, or from before the server's key was changed
		return m.o.Grants.DeleteProviderGrant(ctx, m.o.Tailnet, g.User)
	}
	g.Checked = m.o.Now() // whatever comes of it: no provider is asked again and again
	d, err := p.ready(ctx)
	if err != nil {
		return errors.Join(err, m.o.Grants.PutProviderGrant(ctx, g))
	}
	pctx := p.context(ctx)
	fresh, err := d.oauth.TokenSource(pctx, &oauth2.Token{RefreshToken: string(token)}).Token()
	var re *oauth2.RetrieveError
	switch {
	case errors.As(err, &re) && re.ErrorCode == "invalid_grant": // RFC 6749, section 5.2
		return m.gone(ctx, u, p, "it does not know the sign-in any more")
	case err != nil:
		return errors.Join(err, m.o.Grants.PutProviderGrant(ctx, g))
	}
	// A provider that turns refresh tokens over knows the old one no more: the new one is stored before anything else.
	g.Token = m.seal.bytes(grantName(g.User), []byte(fresh.RefreshToken))
	if err := m.o.Grants.PutProviderGrant(ctx, g); err != nil {
		return fmt.Errorf("storing a refresh token: %w", err)
	}
	raw, _ := fresh.Extra("id_token").(string)
	if raw == "" {
		return nil // it need not come again (OpenID Connect Core 1.0, section 12.2)
	}
	t, err := d.verifier.Verify(pctx, raw)
	if err != nil {
		return err
	}
	id, err := p.identity(ctx, d, t, fresh)
	if err != nil {
		return err
	}
	if id.Identifier != u.ProviderID {
		return errors.New("the provider speaks of somebody else")
	}
	if err := p.admits(id); err != nil {
		return m.gone(ctx, u, p, err.Error())
	}
	_, err = m.store(ctx, p, id)
	return err
}

// gone takes the keys of a user's nodes away. Tagged nodes are nobody's, and stay.
func (m *Manager) gone(ctx context.Context, u *tailnet.User, p *provider, why string) error {
	n := 0
	err := m.st.Update(ctx, "the user is not known to "+p.o.ID+" any more", func(tx *state.Tx) error {
		n = 0
		for _, id := range m.nodesOf(u.ID) {
			node := tx.Node(id)
			if node == nil || node.User != u.ID || node.Expired(tx.Now()) {
				continue
			}
			c := node.Clone()
			c.Expiry = tx.Now()
			if err := tx.PutNode(c); err != nil {
				return err
			}
			n++
		}
		return nil
	})
	if err != nil {
		return err
	}
	m.log.Info("a user is gone at the identity provider; its nodes have to sign in again", "user", u.Name, "provider", p.o.ID, "nodes", n, "why", why)
	if m.o.Gone != nil {
		if err := m.o.Gone(ctx, u); err != nil {
			return err
		}
	}
	return m.o.Grants.DeleteProviderGrant(ctx, m.o.Tailnet, u.ID)
}

func (m *Manager) nodesOf(u tailnet.UserID) (out []tailnet.NodeID) {
	for _, n := range m.st.Snapshot().Nodes() {
		if n.User == u {
			out = append(out, n.ID)
		}
	}
	return out
}
