package main

import (
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/auth/oidc"
	"github.com/skein-vpn/skein/remote"
	"github.com/skein-vpn/skein/web"
)

// openWeb opens the pages for people.
func (s *server) openWeb(context.Context) error {
	secret, err := s.secret("web pages")
	if err != nil {
		return err
	}
	url := strings.TrimRight(s.cfg.ServerURL, "/")
	s.accounts = auth.NewAccounts(auth.AccountsOptions{State: s.state, Store: s.db, ServerURL: url, Secret: secret, Log: s.log})
	s.pages = web.New(web.Options{
		State: s.state, Auth: s.auth, Accounts: s.accounts, Providers: &providers{s.oidc}, ServerURL: url, Secret: secret, Log: s.log,
		Remote: func(r *http.Request) netip.Addr { return remote.Addr(r, s.cfg.TrustedProxies) },
	})
	return nil
}

// secret is a key for one purpose. All servers of a tailnet have the same, because they have the same identity.
func (s *server) secret(purpose string) ([]byte, error) {
	noise, err := loadNoiseKey(s.cfg.Noise.PrivateKeyPath)
	if err != nil {
		return nil, err
	}
	return hkdf.Key(sha256.New, noise.UntypedBytes(), nil, "skein "+purpose, 32)
}

// greetAdmin prints a one-time link if nobody can sign in as an administrator yet.
func (s *server) greetAdmin(ctx context.Context, w io.Writer) {
	url, l, err := s.accounts.FirstLink(ctx)
	switch {
	case err != nil:
		s.log.Warn("no link for the first administrator could be made", "err", err)
	case url != "":
		fmt.Fprintf(w, "\nAdminister in the browser: open this address until %s, once, to become the first administrator\n(skein admins create-link makes another one):\n  %s\n",
			l.Expires.Local().Format("15:04"), url)
	}
}

// providers are the identity providers as the pages know them.
type providers struct{ m *oidc.Manager }

func (p *providers) Providers() (out []web.Provider) {
	for _, o := range p.m.Providers() {
		out = append(out, web.Provider(o))
	}
	return out
}

func (p *providers) Begin(ctx context.Context, provider string, f web.Flow) (string, *http.Cookie, error) {
	return p.m.Begin(ctx, provider, oidc.Flow{Kind: f.Kind, LoginID: f.LoginID, ReturnTo: f.ReturnTo})
}

func (p *providers) Finish(ctx context.Context, r *http.Request) (*web.SignedIn, error) {
	in, err := p.m.Finish(ctx, r)
	if err != nil {
		return nil, err
	}
	method := in.Identity.Provider
	for _, o := range p.m.Providers() {
		if o.ID == in.Identity.Provider {
			method = o.Name
		}
	}
	return &web.SignedIn{
		User: in.User, Flow: web.Flow{Kind: in.Flow.Kind, LoginID: in.Flow.LoginID, ReturnTo: in.Flow.ReturnTo}, Method: method,
		NodeExpiry: in.NodeExpiry, Cookies: []*http.Cookie{in.Cookie},
	}, nil
}
