package main

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/auth/oidc"
	"github.com/skein-vpn/skein/config"
	"github.com/skein-vpn/skein/db"
	"github.com/skein-vpn/skein/tailnet"
)

var (
	_ oidc.Pending    = (*auth.Auth)(nil)
	_ oidc.GrantStore = (*db.DB)(nil)
)

// oidcStartTime is how long a server that must not start without its providers waits for them.
const oidcStartTime = 30 * time.Second

// openOIDC makes the identity providers known. It asks them only if the server must not start without them.
func (s *server) openOIDC(ctx context.Context) error {
	o := oidc.Options{State: s.state, Pending: s.auth, ServerURL: strings.TrimRight(s.cfg.ServerURL, "/"), Now: s.clock.Now, Log: s.log, Grants: s.db}
	o.Gone = func(ctx context.Context, u *tailnet.User) error { return s.accounts.EndSessions(ctx, u, "") }
	if s.cluster != nil {
		o.Leads = s.cluster.Leads
	}
	for _, p := range s.cfg.OIDC.All() {
		po, err := oidcProvider(&p)
		if err != nil {
			return err
		}
		o.Providers = append(o.Providers, po)
	}
	k, err := s.secret("sign-in by a provider")
	if err != nil {
		return err
	}
	copy(o.Key[:], k)
	if s.oidc, err = oidc.New(o); err != nil {
		return fmt.Errorf("oidc: %w", err)
	}
	if s.cfg.OIDC.OnlyStartIfOIDCIsAvailable {
		ctx, cancel := context.WithTimeout(ctx, oidcStartTime)
		defer cancel()
		if err := s.oidc.Discover(ctx); err != nil {
			return fmt.Errorf("the server does not start without its identity provider (oidc.only_start_if_oidc_is_available): %w", err)
		}
	}
	return nil
}

// oidcProvider puts a provider of the configuration into the words of auth/oidc.
func oidcProvider(p *config.OIDCProvider) (oidc.ProviderOptions, error) {
	key := cmp.Or(p.ID, oidc.DefaultID)
	secret, err := p.Secret()
	if err != nil {
		return oidc.ProviderOptions{}, fmt.Errorf("identity provider %s: %w", key, err)
	}
	return oidc.ProviderOptions{
		ID: p.ID, Name: p.Name, Issuer: p.Issuer, ClientID: p.ClientID, ClientSecret: secret, AuthMethod: p.TokenEndpointAuthMethod,
		Scopes: p.Scope, ExtraParams: p.ExtraParams,
		AllowedDomains: p.AllowedDomains, AllowedUsers: p.AllowedUsers, AllowedGroups: p.AllowedGroups,
		GroupsClaim: p.GroupsClaim, UnverifiedEmail: !p.EmailVerifiedRequired,
		Expiry: p.Expiry.Std(), UseExpiryFromToken: p.UseExpiryFromToken, CheckEvery: p.CheckEvery.Std(),
		NoPKCE: !p.PKCE.Enabled, PlainPKCE: p.PKCE.Method == "plain",
	}, nil
}
