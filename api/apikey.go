package api

import (
	"cmp"
	"context"
	"net/http"
	"time"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// DefaultAPIKeyLife is how long an API key lives if its maker does not say.
const DefaultAPIKeyLife = 90 * 24 * time.Hour

// APIKey lets a program use this API. The keys down to LastSeen are headscale's, the rest is ours.
type APIKey struct {
	ID         string     `json:"id"`
	Prefix     string     `json:"prefix"` // the same as ID: the part of the key that may be shown
	Expiration *time.Time `json:"expiration"`
	CreatedAt  *time.Time `json:"createdAt"`
	LastSeen   *time.Time `json:"lastSeen"` // used last, to within a minute or so; null: never

	User        *User      `json:"user"` // null: the server's administrator
	Scopes      []string   `json:"scopes"`
	Description string     `json:"description"`
	RevokedAt   *time.Time `json:"revokedAt"`
	Usable      bool       `json:"usable"`
}

// Namespace is the name of the user for whom the key acts; empty for the server's administrator.
func (k *APIKey) Namespace() string {
	if k.User == nil {
		return ""
	}
	return k.User.Name
}

func apiKeyJSON(sn *state.Snapshot, c *tailnet.Credential, used time.Time, now time.Time) *APIKey {
	out := &APIKey{
		ID: c.ID, Prefix: c.ID, Expiration: timestamp(c.Expires), CreatedAt: timestamp(c.Created), LastSeen: timestamp(used),
		Scopes: list(c.Scopes), Description: c.Description, RevokedAt: timestamp(c.Revoked), Usable: c.Ended(now) == nil,
	}
	if c.User != 0 {
		u := sn.User(c.User)
		out.User = userOf(sn, c.User)
		out.Usable = out.Usable && auth.Active(u) == nil
	}
	return out
}

type (
	// APIKeyFilter chooses keys that are all that its fields say; empty ones choose all.
	APIKeyFilter struct {
		User  Ref    `query:"user"` // for whom they act
		State string `query:"state" enum:"usable,expired,revoked"`
		Page
	}
	// APIKeyList is the answer to ListAPIKeys.
	APIKeyList struct {
		APIKeys  []*APIKey `json:"apiKeys"`
		NextPage string    `json:"nextPage,omitempty"`
	}
	// CreateAPIKeyRequest makes a key. It acts for User, or, if that is empty, for whom its maker acts. Scopes are all of its maker's
	// if there are none.
	CreateAPIKeyRequest struct {
		Expiration  *time.Time `json:"expiration,omitempty"` // null: after 90 days; the zero time (0001-01-01T00:00:00Z): never
		User        Ref        `json:"user,omitempty"`
		Scopes      []string   `json:"scopes,omitempty" example:"devices:core:read"`
		Description string     `json:"description,omitempty" example:"inventory"`
	}
	// CreateAPIKeyAnswer has the key's secret, this once.
	CreateAPIKeyAnswer struct {
		APIKey string  `json:"apiKey"`
		Key    *APIKey `json:"key"`
	}
	// ExpireAPIKeyRequest names a key by its id, or by the key itself.
	ExpireAPIKeyRequest struct {
		Prefix string `json:"prefix,omitempty" example:"PREFIX"`
		ID     Ref    `json:"id,omitempty"` // the same
	}
	// DeleteAPIKeyRequest may name the key once more.
	DeleteAPIKeyRequest struct {
		ID string `query:"id"` // in place of the one in the path
	}
)

func (s *server) apiKeyOperations() []operation {
	change := auth.ScopeAPIKeys
	return []operation{
		get("/apikey", auth.Read(auth.ScopeAPIKeys), "lists API keys", s.listAPIKeys),
		post("/apikey", change, "makes one, for oneself; the secret is in the answer, this once", s.createAPIKey),
		post("/apikey/expire", change, "ends one as if its time were over", s.endAPIKey(s.Auth.ExpireCredential)),
		post("/apikey/revoke", change, "ends one for good", s.endAPIKey(s.Auth.RevokeCredential)),
		del("/apikey/{prefix}", change, "deletes one", s.deleteAPIKey),
	}
}

func (s *server) listAPIKeys(r *http.Request, f *APIKeyFilter) (*APIKeyList, error) {
	used, err := s.Auth.CredentialUses(r.Context())
	if err != nil {
		return nil, err
	}
	sn := s.State.Snapshot()
	owner, err := findOwner(sn, f.User)
	if err != nil {
		return nil, err
	}
	out := &APIKeyList{APIKeys: []*APIKey{}}
	for _, c := range sn.Credentials() {
		if c.Kind != tailnet.APIKey || owner != 0 && c.User != owner {
			continue
		}
		k := apiKeyJSON(sn, c, used[c.ID], s.Now())
		if f.State == "" || f.State == credentialState(k.RevokedAt, k.Usable) {
			out.APIKeys = append(out.APIKeys, k)
		}
	}
	out.APIKeys, out.NextPage, err = cut(out.APIKeys, f.Page, func(k *APIKey) string { return k.ID })
	return out, err
}

// credentialState is the state of an API key or OAuth client, as filters name it. One whose user takes part no more has ended as well.
func credentialState(revoked *time.Time, usable bool) string {
	switch {
	case revoked != nil:
		return keyRevoked
	case !usable:
		return keyExpired
	}
	return keyUsable
}

// ListAPIKeys are the API keys that f chooses, sorted by id.
func (c *Client) ListAPIKeys(ctx context.Context, f APIKeyFilter) ([]*APIKey, error) {
	var out APIKeyList
	err := c.do(ctx, http.MethodGet, c.path("apikey").query(values(f)), nil, &out)
	return out.APIKeys, err
}

func (s *server) createAPIKey(r *http.Request, req *CreateAPIKeyRequest) (*CreateAPIKeyAnswer, error) {
	now := s.Now()
	kr := auth.APIKeyRequest{Scopes: req.Scopes, Description: req.Description}
	switch {
	case req.Expiration == nil:
		kr.Expires = now.Add(DefaultAPIKeyLife)
	case !req.Expiration.IsZero():
		kr.Expires = req.Expiration.UTC()
	}
	sn := s.State.Snapshot()
	if req.User != "" {
		u, err := findUser(sn, req.User)
		if err != nil {
			return nil, err
		}
		kr.User = u.ID
	}
	secret, c, err := s.Auth.CreateAPIKey(r.Context(), auth.PrincipalOf(r.Context()), kr)
	if err != nil {
		return nil, err
	}
	return &CreateAPIKeyAnswer{secret, apiKeyJSON(sn, c, time.Time{}, now)}, nil
}

// CreateAPIKey makes a key. Its secret is in the answer and never again.
func (c *Client) CreateAPIKey(ctx context.Context, req CreateAPIKeyRequest) (*CreateAPIKeyAnswer, error) {
	out := new(CreateAPIKeyAnswer)
	err := c.do(ctx, http.MethodPost, c.path("apikey"), req, out)
	return out, err
}

// apiKeyID is the id of the API key that ref names: by its id, or by the key itself.
func (s *server) apiKeyID(ref string) (string, error) {
	if ref == "" {
		return "", tailnet.Errorf(tailnet.Invalid, "no API key is given: name it by its prefix, which the list shows")
	}
	id := auth.CredentialIDOf(ref)
	if c := s.State.Snapshot().Credential(id); c == nil || c.Kind != tailnet.APIKey {
		return "", tailnet.Errorf(tailnet.NotFound, "there is no API key %q", clip(id))
	}
	return id, nil
}

func (s *server) endAPIKey(end func(ctx context.Context, p *auth.Principal, id string) error) func(*http.Request, *ExpireAPIKeyRequest) (*Empty, error) {
	return func(r *http.Request, req *ExpireAPIKeyRequest) (*Empty, error) {
		if req.Prefix == "" {
			req.Prefix = string(req.ID)
		}
		id, err := s.apiKeyID(req.Prefix)
		if err != nil {
			return nil, err
		}
		return &Empty{}, end(r.Context(), auth.PrincipalOf(r.Context()), id)
	}
}

// ExpireAPIKey ends a key as if its time were over.
func (c *Client) ExpireAPIKey(ctx context.Context, prefix string) error {
	return c.do(ctx, http.MethodPost, c.path("apikey", "expire"), ExpireAPIKeyRequest{Prefix: prefix}, nil)
}

// RevokeAPIKey ends a key for good.
func (c *Client) RevokeAPIKey(ctx context.Context, prefix string) error {
	return c.do(ctx, http.MethodPost, c.path("apikey", "revoke"), ExpireAPIKeyRequest{Prefix: prefix}, nil)
}

func (s *server) deleteAPIKey(r *http.Request, req *DeleteAPIKeyRequest) (*Empty, error) {
	ref, err := pathVar(r, "prefix")
	if err != nil {
		return nil, err
	}
	id, err := s.apiKeyID(cmp.Or(req.ID, ref))
	if err != nil {
		return nil, err
	}
	return &Empty{}, s.Auth.DeleteCredential(r.Context(), auth.PrincipalOf(r.Context()), id)
}

// DeleteAPIKey removes a key from the list; it ends with that.
func (c *Client) DeleteAPIKey(ctx context.Context, prefix string) error {
	return c.do(ctx, http.MethodDelete, c.path("apikey", prefix), nil, nil)
}
