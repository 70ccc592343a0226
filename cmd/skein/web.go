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

	"github.com/skein-vpn/skein/api"
	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/auth/oidc"
	"github.com/skein-vpn/skein/remote"
	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
	"github.com/skein-vpn/skein/web"
)

// openWeb opens the pages for people.
func (s *server) openWeb(context.Context) error {
	secret, err := s.secret("web pages")
	if err != nil {
		return err
	}
	url := strings.TrimRight(s.cfg.ServerURL, "/")
	s.accounts = auth.NewAccounts(auth.AccountsOptions{State: s.state, Store: s.db, ServerURL: url, Secret: secret, Leads: s.leads, Now: s.clock.Now, Log: s.log})
	inside := s.apiOptions()
	s.pages = web.New(web.Options{
		NoSignIn: !s.cfg.Web.Enabled,
		State:    s.state, Auth: s.auth, Accounts: s.accounts, Providers: &providers{s.oidc}, Nodes: &webNodes{api.NewLocalClient(api.NewServer(inside))}, ServerURL: url, Secret: secret, Now: s.clock.Now, Log: s.log,
		Remote: func(r *http.Request) netip.Addr { return remote.Addr(r, s.cfg.TrustedProxies) },
	})
	return nil
}

// secret is a key for one purpose. All servers of a tailnet have the same, because they have the same identity.
func (s *server) secret(purpose string) ([]byte, error) {
	return hkdf.Key(sha256.New, s.noise.UntypedBytes(), nil, "skein "+purpose, 32)
}

// greetAdmin prints a one-time link if nobody can sign in as an administrator yet.
func (s *server) greetAdmin(ctx context.Context, w io.Writer) {
	if !s.cfg.Web.Enabled {
		return
	}
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
		NodeExpiry: in.NodeExpiry, Cookies: []*http.Cookie{in.Cookie}, Provider: in.Identity.Provider, IDToken: in.Identity.IDToken,
	}, nil
}

func (p *providers) SignOutURL(provider, idToken string) (url, name string) {
	for _, o := range p.m.Providers() {
		if o.ID == provider {
			return p.m.LogoutURL(oidc.Identity{Provider: provider, IDToken: idToken}, ""), o.Name
		}
	}
	return "", ""
}

// webNodes lets the pages change nodes by the API, so that there is one implementation.
type webNodes struct{ c *api.Client }

// as is ctx for somebody who changes a node: for who may change all, in that name; for others, who have been found to be its owner, in
// the server's.
func (webNodes) as(ctx context.Context, by *tailnet.User) (context.Context, error) {
	p, err := auth.UserPrincipal(by)
	if err != nil {
		return nil, err
	}
	if p.Allow(auth.ScopeDevices) != nil {
		p = auth.ServerPrincipal("pages, for " + by.LoginName())
	}
	return state.WithActor(auth.WithPrincipal(ctx, p), state.ActorOf(ctx)), nil // the pages have said who acts
}

func (n *webNodes) Approve(ctx context.Context, by *tailnet.User, id tailnet.NodeID) error {
	ctx, err := n.as(ctx, by)
	if err == nil {
		_, err = n.c.ApproveNode(ctx, api.Ref(id.String()), true)
	}
	return err
}

func (n *webNodes) Rename(ctx context.Context, by *tailnet.User, id tailnet.NodeID, name string) error {
	ctx, err := n.as(ctx, by)
	if err == nil {
		_, err = n.c.RenameNode(ctx, api.Ref(id.String()), name)
	}
	return err
}

func (n *webNodes) Delete(ctx context.Context, by *tailnet.User, id tailnet.NodeID) error {
	ctx, err := n.as(ctx, by)
	if err == nil {
		err = n.c.DeleteNode(ctx, api.Ref(id.String()))
	}
	return err
}
