package api

import (
	"context"
	"net/http"
	"time"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/tailnet"
)

// OAuthClient is something that gets access tokens: an OAuth client by its secret, or, if Kind says so, a federated identity by a
// token of another issuer.
type OAuthClient struct {
	ID          string     `json:"id"`
	Kind        string     `json:"kind" enum:"client,federated"` // "client" or "federated"
	Scopes      []string   `json:"scopes"`
	Tags        []string   `json:"tags"`
	Description string     `json:"description"`
	CreatedAt   *time.Time `json:"createdAt"`
	RevokedAt   *time.Time `json:"revokedAt"`
	LastSeen    *time.Time `json:"lastSeen"` // used last, to within a minute or so; null: never
	Usable      bool       `json:"usable"`

	Issuer   string            `json:"issuer,omitempty"`
	Subject  string            `json:"subject,omitempty"`
	Audience string            `json:"audience,omitempty"`
	Claims   map[string]string `json:"claims,omitempty"`

	Secret string `json:"secret,omitempty"` // in the answer to CreateOAuthClient only
}

func oauthClientJSON(c *tailnet.Credential, used, now time.Time) *OAuthClient {
	return &OAuthClient{
		ID: c.ID, Kind: string(c.Kind), Scopes: list(c.Scopes), Tags: list(c.Tags), Description: c.Description,
		CreatedAt: timestamp(c.Created), RevokedAt: timestamp(c.Revoked), LastSeen: timestamp(used), Usable: c.Ended(now) == nil,
		Issuer: c.Issuer, Subject: c.Subject, Audience: c.Audience, Claims: c.Claims,
	}
}

type (
	// OAuthClientFilter chooses clients that are all that its fields say; empty ones choose all.
	OAuthClientFilter struct {
		Kind  string `query:"kind" enum:"client,federated"`
		State string `query:"state" enum:"usable,expired,revoked"`
		Page
	}
	// OAuthClientList is the answer to ListOAuthClients.
	OAuthClientList struct {
		OAuthClients []*OAuthClient `json:"oauthClients"`
		NextPage     string         `json:"nextPage,omitempty"`
	}
	// OAuthClientAnswer is one client.
	OAuthClientAnswer struct {
		OAuthClient *OAuthClient `json:"oauthClient"`
	}
	// CreateOAuthClientRequest makes an OAuth client, or, with an Issuer, a federated identity. Tags are needed if Scopes hold
	// auth_keys or devices:core. An empty Audience is made up.
	CreateOAuthClientRequest struct {
		Scopes      []string          `json:"scopes" example:"auth_keys"`
		Tags        []string          `json:"tags,omitempty" example:"tag:ci"`
		Description string            `json:"description,omitempty"`
		Issuer      string            `json:"issuer,omitempty"`
		Subject     string            `json:"subject,omitempty"`
		Audience    string            `json:"audience,omitempty"`
		Claims      map[string]string `json:"claims,omitempty"`
	}
)

func (s *server) oauthClientOperations() []operation {
	// What deals with both kinds asks for the scope of the kind itself: auth decides when it is known.
	change := auth.ScopeOAuthKeys
	return []operation{
		get("/oauthclient", auth.Read(auth.ScopeOAuthKeys), "lists OAuth clients, and federated identities for who has `federated_keys:read` too", s.listOAuthClients),
		post("/oauthclient", change, "makes an OAuth client; with an `issuer` a federated identity, which takes `federated_keys` as well", s.createOAuthClient),
		post("/oauthclient/{client}/revoke", change, "ends one and its tokens", s.endOAuthClient(s.Auth.RevokeCredential)),
		del("/oauthclient/{client}", change, "deletes one", s.endOAuthClient(s.Auth.DeleteCredential)),
	}
}

func (s *server) listOAuthClients(r *http.Request, f *OAuthClientFilter) (*OAuthClientList, error) {
	used, err := s.Auth.CredentialUses(r.Context())
	if err != nil {
		return nil, err
	}
	out := &OAuthClientList{OAuthClients: []*OAuthClient{}}
	for _, k := range auth.Keys(s.State.Snapshot(), auth.PrincipalOf(r.Context())) {
		if c := k.Credential; c != nil && c.Kind != tailnet.APIKey {
			j := oauthClientJSON(c, used[c.ID], s.Now())
			if (f.Kind == "" || f.Kind == j.Kind) && (f.State == "" || f.State == credentialState(j.RevokedAt, j.Usable)) {
				out.OAuthClients = append(out.OAuthClients, j)
			}
		}
	}
	out.OAuthClients, out.NextPage, err = cut(out.OAuthClients, f.Page, func(c *OAuthClient) string { return c.ID })
	return out, err
}

// ListOAuthClients are the OAuth clients and federated identities that f chooses, sorted by id.
func (c *Client) ListOAuthClients(ctx context.Context, f OAuthClientFilter) ([]*OAuthClient, error) {
	var out OAuthClientList
	err := c.do(ctx, http.MethodGet, c.path("oauthclient").query(values(f)), nil, &out)
	return out.OAuthClients, err
}

func (s *server) createOAuthClient(r *http.Request, req *CreateOAuthClientRequest) (*OAuthClientAnswer, error) {
	tags, err := parseTags(req.Tags)
	if err != nil {
		return nil, err
	}
	p := auth.PrincipalOf(r.Context())
	cr := auth.ClientRequest{
		Scopes: req.Scopes, Tags: tags, Description: req.Description, Issuer: req.Issuer, Subject: req.Subject, Audience: req.Audience, Claims: req.Claims,
	}
	if req.Issuer != "" {
		c, err := s.Auth.CreateFederatedIdentity(r.Context(), p, cr)
		if err != nil {
			return nil, err
		}
		return &OAuthClientAnswer{oauthClientJSON(c, time.Time{}, s.Now())}, nil
	}
	if req.Subject != "" || req.Audience != "" || len(req.Claims) > 0 {
		return nil, tailnet.Errorf(tailnet.Invalid, "subject, audience and claims belong to a federated identity, which needs an issuer")
	}
	secret, c, err := s.Auth.CreateOAuthClient(r.Context(), p, cr)
	if err != nil {
		return nil, err
	}
	out := oauthClientJSON(c, time.Time{}, s.Now())
	out.Secret = secret
	return &OAuthClientAnswer{out}, nil
}

// CreateOAuthClient makes an OAuth client, whose secret is in the answer and never again, or a federated identity.
func (c *Client) CreateOAuthClient(ctx context.Context, req CreateOAuthClientRequest) (*OAuthClient, error) {
	var out OAuthClientAnswer
	err := c.do(ctx, http.MethodPost, c.path("oauthclient"), req, &out)
	return out.OAuthClient, err
}

func (s *server) endOAuthClient(end func(ctx context.Context, p *auth.Principal, id string) error) func(*http.Request, *Empty) (*Empty, error) {
	return func(r *http.Request, _ *Empty) (*Empty, error) {
		ref, err := pathVar(r, "client")
		if err != nil {
			return nil, err
		}
		id := auth.CredentialIDOf(ref)
		if c := s.State.Snapshot().Credential(id); c == nil || c.Kind == tailnet.APIKey {
			return nil, tailnet.Errorf(tailnet.NotFound, "there is no OAuth client %q", clip(id))
		}
		return &Empty{}, end(r.Context(), auth.PrincipalOf(r.Context()), id)
	}
}

// RevokeOAuthClient ends a client and its tokens for good.
func (c *Client) RevokeOAuthClient(ctx context.Context, id string) error {
	return c.do(ctx, http.MethodPost, c.path("oauthclient", id, "revoke"), nil, nil)
}

// DeleteOAuthClient removes a client from the list; it ends with that, as do its tokens.
func (c *Client) DeleteOAuthClient(ctx context.Context, id string) error {
	return c.do(ctx, http.MethodDelete, c.path("oauthclient", id), nil, nil)
}
