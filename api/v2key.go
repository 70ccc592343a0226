package api

import (
	"maps"
	"net/http"
	"strings"
	"time"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// v2Key is a key of any kind (Key of the Go client). Which fields there are follows from KeyType.
type v2Key struct {
	ID            string `json:"id"`
	KeyType       string `json:"keyType"`       // auth, api, client, federated
	Key           string `json:"key,omitempty"` // the secret, in the answer that makes it
	Description   string `json:"description"`
	ExpirySeconds *int64 `json:"expirySeconds,omitempty"` // from Created
	Created       string `json:"created"`
	Updated       string `json:"updated,omitempty"`
	Expires       string `json:"expires,omitempty"`
	Revoked       string `json:"revoked,omitempty"`
	Invalid       bool   `json:"invalid,omitempty"`
	UserID        string `json:"userId,omitempty"`

	Capabilities *v2Capabilities `json:"capabilities,omitempty"` // of auth keys

	Scopes           []string          `json:"scopes,omitempty"`
	Tags             []string          `json:"tags,omitempty"`
	Issuer           string            `json:"issuer,omitempty"`
	Subject          string            `json:"subject,omitempty"`
	Audience         string            `json:"audience,omitempty"`
	CustomClaimRules map[string]string `json:"customClaimRules,omitempty"`
}

type v2Capabilities struct {
	Devices struct {
		Create struct {
			Reusable      bool     `json:"reusable"`
			Ephemeral     bool     `json:"ephemeral"`
			Preauthorized bool     `json:"preauthorized"`
			Tags          []string `json:"tags"`
		} `json:"create"`
	} `json:"devices"`
}

// v2KeyRequest makes or replaces a key.
type v2KeyRequest struct {
	KeyType       string          `json:"keyType"` // empty: auth
	Capabilities  *v2Capabilities `json:"capabilities"`
	ExpirySeconds int64           `json:"expirySeconds"` // 0: v2KeyLife
	Description   string          `json:"description"`

	Scopes           []string          `json:"scopes"`
	Tags             []string          `json:"tags"`
	Issuer           string            `json:"issuer"`
	Subject          string            `json:"subject"`
	Audience         string            `json:"audience"`
	CustomClaimRules map[string]string `json:"customClaimRules"`
}

// v2KeyLife is how long an auth key lives, at the most and if its maker does not say, as at the hosted service.
const v2KeyLife = 90 * 24 * time.Hour

func (s *server) v2KeyRoutes() []route {
	const base = "/tailnet/{tailnet}/keys"
	// Which scope is needed depends on the kind of the key: auth decides when it is known.
	return []route{
		{base, ops{http.MethodGet: {auth.ScopeNone, s.v2Keys}, http.MethodPost: {auth.ScopeNone, s.v2CreateKey}}},
		{base + "/{key}", ops{
			http.MethodGet: {auth.ScopeNone, s.v2GetKey}, http.MethodPut: {auth.ScopeNone, s.v2ReplaceKey}, http.MethodDelete: {auth.ScopeNone, s.v2DeleteKey},
		}},
	}
}

// v2KeyJSON is the one place that makes a v2Key.
func v2KeyJSON(k auth.Key, now time.Time) *v2Key {
	out := &v2Key{ID: k.ID(), Invalid: k.Ended(now)}
	if p := k.PreAuth; p != nil {
		out.KeyType, out.Description, out.Created, out.Expires = "auth", p.Description, v2Time(p.Created), v2Time(p.Expires)
		if p.User != 0 {
			out.UserID = p.User.String()
		}
		if !p.Expires.IsZero() {
			life := int64(p.Expires.Sub(p.Created) / time.Second)
			out.ExpirySeconds = &life
		}
		if p.Revoked {
			out.Revoked = v2Time(p.Expires)
		}
		out.Capabilities = &v2Capabilities{}
		c := &out.Capabilities.Devices.Create
		c.Reusable, c.Ephemeral, c.Preauthorized, c.Tags = p.Reusable, p.Ephemeral, p.Preapproved, list(p.Tags)
		return out
	}
	c := k.Credential
	out.KeyType, out.Description, out.Created, out.Expires, out.Revoked = string(c.Kind), c.Description, v2Time(c.Created), v2Time(c.Expires), v2Time(c.Revoked)
	out.Scopes, out.Tags, out.Issuer, out.Subject, out.Audience, out.CustomClaimRules = c.Scopes, c.Tags, c.Issuer, c.Subject, c.Audience, c.Claims
	if c.User != 0 {
		out.UserID = c.User.String()
	}
	return out
}

// v2Keys are the keys that can still be used: those of the caller's user, or with ?all=true all that it may see.
func (s *server) v2Keys(r *http.Request) (any, error) {
	p := auth.PrincipalOf(r.Context())
	if p.Allow(auth.Read(auth.ScopeAuthKeys)) != nil && p.Allow(auth.Read(auth.ScopeAPIKeys)) != nil &&
		p.Allow(auth.Read(auth.ScopeOAuthKeys)) != nil && p.Allow(auth.Read(auth.ScopeFederated)) != nil {
		return nil, p.Allow(auth.Read(auth.ScopeAuthKeys))
	}
	var all bool
	switch v := r.URL.Query().Get("all"); v {
	case "", "false":
	case "true":
		all = true
	default:
		return nil, tailnet.Errorf(tailnet.Invalid, "all=%q is neither true nor false", clip(v))
	}
	out := struct {
		Keys []*v2Key `json:"keys"`
	}{[]*v2Key{}}
	for _, k := range auth.Keys(s.State.Snapshot(), p) {
		owner := tailnet.UserID(0)
		if k.PreAuth != nil {
			owner = k.PreAuth.User
		} else {
			owner = k.Credential.User
		}
		if !k.Ended(s.Now()) && (all || p.User == 0 || owner == p.User) {
			out.Keys = append(out.Keys, v2KeyJSON(k, s.Now()))
		}
	}
	return out, nil
}

func (s *server) v2CreateKey(r *http.Request) (any, error) {
	var req v2KeyRequest
	if err := readV2(r, &req); err != nil {
		return nil, err
	}
	p := auth.PrincipalOf(r.Context())
	switch req.KeyType {
	case "", "auth":
		return s.v2CreateAuthKey(r, req)
	case "client", "federated":
		cr, err := req.client()
		if err != nil {
			return nil, err
		}
		if req.KeyType == "federated" {
			c, err := s.Auth.CreateFederatedIdentity(r.Context(), p, cr)
			if err != nil {
				return nil, err
			}
			return v2KeyJSON(auth.Key{Credential: c}, s.Now()), nil
		}
		secret, c, err := s.Auth.CreateOAuthClient(r.Context(), p, cr)
		if err != nil {
			return nil, err
		}
		out := v2KeyJSON(auth.Key{Credential: c}, s.Now())
		out.Key = secret
		return out, nil
	case "api":
		return nil, &unsupported{"the making of API keys by programs here; \"skein apikeys create\" makes one"}
	}
	return nil, tailnet.Errorf(tailnet.Invalid, "keyType %q is neither auth, client nor federated", clip(req.KeyType))
}

// client is the request as auth wants it.
func (req *v2KeyRequest) client() (auth.ClientRequest, error) {
	tags, err := parseTags(req.Tags)
	if err != nil {
		return auth.ClientRequest{}, err
	}
	if req.Capabilities != nil || req.ExpirySeconds != 0 {
		return auth.ClientRequest{}, tailnet.Errorf(tailnet.Invalid, "capabilities and expirySeconds belong to auth keys")
	}
	return auth.ClientRequest{
		Scopes: req.Scopes, Tags: tags, Description: req.Description,
		Issuer: req.Issuer, Subject: req.Subject, Audience: req.Audience, Claims: maps.Clone(req.CustomClaimRules),
	}, nil
}

func (s *server) v2CreateAuthKey(r *http.Request, req v2KeyRequest) (any, error) {
	if len(req.Scopes) > 0 || req.Issuer != "" || req.Subject != "" || req.Audience != "" || len(req.CustomClaimRules) > 0 {
		return nil, tailnet.Errorf(tailnet.Invalid, "scopes, issuer, subject, audience and customClaimRules belong to keys of the types client and federated")
	}
	kr := auth.KeyRequest{Description: req.Description}
	if req.Capabilities != nil {
		c := req.Capabilities.Devices.Create
		tags, err := parseTags(c.Tags)
		if err != nil {
			return nil, err
		}
		kr.Tags, kr.Reusable, kr.Ephemeral, kr.Preapproved = tags, c.Reusable, c.Ephemeral, c.Preauthorized
	}
	switch max := int64(v2KeyLife / time.Second); {
	case req.ExpirySeconds < 0 || req.ExpirySeconds > max:
		return nil, tailnet.Errorf(tailnet.Invalid, "expirySeconds must be 1 to %d, or 0 for that", max)
	case req.ExpirySeconds == 0:
		req.ExpirySeconds = max
	}
	now := s.Now()
	kr.Expires = now.Add(time.Duration(req.ExpirySeconds) * time.Second)
	p := auth.PrincipalOf(r.Context())
	if len(kr.Tags) == 0 {
		if p.User == 0 && !p.TagBound {
			return nil, tailnet.Errorf(tailnet.Invalid, "the key needs tags: the one that you use belongs to no user who could own the nodes")
		}
		kr.User = p.User
	}
	if err := p.AllowKeyFor(s.State.Snapshot(), kr.User, kr.Tags); err != nil {
		return nil, err
	}
	secret, k, err := s.Auth.CreatePreAuthKey(r.Context(), kr)
	if err != nil {
		return nil, err
	}
	out := v2KeyJSON(auth.Key{PreAuth: k}, now)
	out.Key = secret
	return out, nil
}

// v2PathKey is the key that the path names, as the caller may see it.
func (s *server) v2PathKey(r *http.Request, sn *state.Snapshot) (auth.Key, error) {
	id, err := pathVar(r, "key")
	if err != nil {
		return auth.Key{}, err
	}
	return auth.FindKey(sn, auth.PrincipalOf(r.Context()), id)
}

// v2GetKey tells of ended keys too, or Terraform would make them anew each time.
func (s *server) v2GetKey(r *http.Request) (any, error) {
	k, err := s.v2PathKey(r, s.State.Snapshot())
	if err != nil {
		return nil, err
	}
	return v2KeyJSON(k, s.Now()), nil
}

func (s *server) v2ReplaceKey(r *http.Request) (any, error) {
	var req v2KeyRequest
	if err := readV2(r, &req); err != nil {
		return nil, err
	}
	k, err := s.v2PathKey(r, s.State.Snapshot())
	if err != nil {
		return nil, err
	}
	c := k.Credential
	if c == nil || c.Kind == tailnet.APIKey || req.KeyType != "" && req.KeyType != string(c.Kind) {
		return nil, tailnet.Errorf(tailnet.Invalid, "only OAuth clients and federated identities can be changed, and not into each other")
	}
	cr, err := req.client()
	if err != nil {
		return nil, err
	}
	if c.Kind == tailnet.FederatedIdentity && strings.TrimSpace(cr.Audience) == "" {
		cr.Audience = c.Audience
	}
	changed, err := s.Auth.UpdateClient(r.Context(), auth.PrincipalOf(r.Context()), c.ID, cr)
	if err != nil {
		return nil, err
	}
	return v2KeyJSON(auth.Key{Credential: changed}, s.Now()), nil
}

// v2DeleteKey revokes: the key can still be asked for.
func (s *server) v2DeleteKey(r *http.Request) (any, error) {
	k, err := s.v2PathKey(r, s.State.Snapshot())
	if err != nil {
		return nil, err
	}
	return Empty{}, s.Auth.RevokeKey(r.Context(), auth.PrincipalOf(r.Context()), k.ID())
}
