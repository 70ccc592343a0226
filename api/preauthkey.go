package api

import (
	"context"
	"crypto/sha256"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// DefaultKeyLife is how long a pre-auth key lives if its maker does not say.
const DefaultKeyLife = 24 * time.Hour

// PreAuthKey is a key that lets nodes join without a person.
type PreAuthKey struct {
	User        *User  `json:"user"` // null if the key gives tags
	ID          ID     `json:"id"`
	Key         string `json:"key"` // the secret when it is made, later only the part that may be shown
	Reusable    bool   `json:"reusable"`
	Ephemeral   bool   `json:"ephemeral"`
	Preapproved bool   `json:"preapproved"` // its nodes need no approval
	Description string `json:"description"`
	// KeyDurationSeconds is how long the keys of its nodes live, as in Settings; 0: as those say.
	KeyDurationSeconds int64      `json:"keyDurationSeconds"`
	Used               bool       `json:"used"`
	Expiration         *time.Time `json:"expiration"` // null: never
	CreatedAt          *time.Time `json:"createdAt"`
	ACLTags            []string   `json:"aclTags"`

	Revoked bool `json:"revoked"`
	Usable  bool `json:"usable"` // a new node can join with it now
}

// Namespace is the name of the key's owner; empty if it gives tags.
func (k *PreAuthKey) Namespace() string {
	if k.User == nil {
		return ""
	}
	return k.User.Name
}

func preAuthKeyJSON(sn *state.Snapshot, k *tailnet.PreAuthKey, now time.Time) *PreAuthKey {
	return &PreAuthKey{
		User: userOf(sn, k.User), ID: ID(k.ID), Key: k.Prefix, Reusable: k.Reusable, Ephemeral: k.Ephemeral, Preapproved: k.Preapproved, Used: k.Used,
		KeyDurationSeconds: keyDurationSeconds(k.KeyDuration),
		Description:        k.Description,
		Expiration:         timestamp(k.Expires), CreatedAt: timestamp(k.Created), ACLTags: list(k.Tags),
		Revoked: k.Revoked, Usable: k.Usable(now) == nil,
	}
}

type (
	// PreAuthKeyFilter chooses keys that are all that its fields say; empty ones choose all.
	PreAuthKeyFilter struct {
		User  Ref      `query:"user"`                                     // whose they are
		Tags  []string `query:"tag"`                                      // may be repeated: keys that give one of them
		State string   `query:"state" enum:"usable,used,expired,revoked"` // used: a key for one node that has had it
		Page
	}
	// PreAuthKeyList is the answer to ListPreAuthKeys.
	PreAuthKeyList struct {
		PreAuthKeys []*PreAuthKey `json:"preAuthKeys"`
		NextPage    string        `json:"nextPage,omitempty"`
	}
	// PreAuthKeyAnswer is one key.
	PreAuthKeyAnswer struct {
		PreAuthKey *PreAuthKey `json:"preAuthKey"`
	}
	// CreatePreAuthKeyRequest makes a key. It needs User or ACLTags; a key with tags belongs to nobody, as do its nodes.
	CreatePreAuthKeyRequest struct {
		User               Ref        `json:"user" required:"false" example:"anna"`
		Reusable           bool       `json:"reusable" required:"false" example:"true"`
		Ephemeral          bool       `json:"ephemeral" required:"false"`
		Preapproved        bool       `json:"preapproved" required:"false"`
		Description        string     `json:"description,omitempty"`
		KeyDurationSeconds int64      `json:"keyDurationSeconds,omitempty"`
		Expiration         *time.Time `json:"expiration,omitempty"` // null: after a day; the zero time (0001-01-01T00:00:00Z): never
		ACLTags            []string   `json:"aclTags,omitempty"`
	}
	// ExpirePreAuthKeyRequest names a key by its id, or by Key: its secret or the part of it that is shown.
	ExpirePreAuthKeyRequest struct {
		ID  ID     `json:"id,omitempty" example:"1"`
		Key string `json:"key,omitempty"`
	}
	// DeletePreAuthKeyRequest is the same behind the "?".
	DeletePreAuthKeyRequest struct {
		ID  ID     `query:"id" example:"1"`
		Key string `query:"key"`
	}
)

func (s *server) preAuthKeyOperations() []operation {
	change := auth.ScopeAuthKeys
	return []operation{
		get("/preauthkey", auth.Read(auth.ScopeAuthKeys), "lists keys with which nodes join", s.listPreAuthKeys),
		post("/preauthkey", change, "makes one; the secret is in the answer, this once", s.createPreAuthKey),
		del("/preauthkey", change, "deletes one", s.deletePreAuthKey),
		post("/preauthkey/expire", change, "ends one", s.expirePreAuthKey),
	}
}

func (s *server) listPreAuthKeys(_ *http.Request, f *PreAuthKeyFilter) (*PreAuthKeyList, error) {
	sn, now := s.State.Snapshot(), s.Now()
	owner, err := findOwner(sn, f.User)
	if err != nil {
		return nil, err
	}
	tags, err := parseTags(f.Tags)
	if err != nil {
		return nil, err
	}
	out := &PreAuthKeyList{PreAuthKeys: []*PreAuthKey{}}
	for _, k := range sn.PreAuthKeys() {
		if (owner == 0 || k.User == owner) && (f.State == "" || f.State == preAuthKeyState(k, now)) &&
			(len(tags) == 0 || slices.ContainsFunc(k.Tags, func(t string) bool { return slices.Contains(tags, t) })) {
			out.PreAuthKeys = append(out.PreAuthKeys, preAuthKeyJSON(sn, k, now))
		}
	}
	out.PreAuthKeys, out.NextPage, err = cut(out.PreAuthKeys, f.Page, func(k *PreAuthKey) string { return byNumber(k.ID) })
	return out, err
}

// States of keys, as filters name them.
const (
	keyUsable  = "usable"
	keyUsed    = "used"
	keyExpired = "expired"
	keyRevoked = "revoked"
)

// preAuthKeyState is the first thing that keeps nodes from joining with k.
func preAuthKeyState(k *tailnet.PreAuthKey, now time.Time) string {
	switch {
	case k.Usable(now) == nil:
		return keyUsable
	case k.Revoked:
		return keyRevoked
	case k.Used && !k.Reusable:
		return keyUsed
	}
	return keyExpired
}

// ListPreAuthKeys are the keys that f chooses, sorted by id.
func (c *Client) ListPreAuthKeys(ctx context.Context, f PreAuthKeyFilter) ([]*PreAuthKey, error) {
	var out PreAuthKeyList
	err := c.do(ctx, http.MethodGet, c.path("preauthkey").query(values(f)), nil, &out)
	return out.PreAuthKeys, err
}

func (s *server) createPreAuthKey(r *http.Request, req *CreatePreAuthKeyRequest) (*PreAuthKeyAnswer, error) {
	tags, err := parseTags(req.ACLTags)
	if err != nil {
		return nil, err
	}
	life, err := keyDuration(req.KeyDurationSeconds)
	if err != nil {
		return nil, err
	}
	kr := auth.KeyRequest{Tags: tags, Reusable: req.Reusable, Ephemeral: req.Ephemeral, Preapproved: req.Preapproved, KeyDuration: life, Description: req.Description}
	if req.User != "" || len(tags) == 0 {
		u, err := findUser(s.State.Snapshot(), req.User)
		if err != nil {
			return nil, err
		}
		if len(tags) == 0 {
			kr.User = u.ID
		}
	}
	if err := auth.PrincipalOf(r.Context()).AllowKeyFor(s.State.Snapshot(), kr.User, tags); err != nil {
		return nil, err
	}
	now := s.Now()
	switch {
	case req.Expiration == nil:
		kr.Expires = now.Add(DefaultKeyLife)
	case req.Expiration.IsZero():
	case !req.Expiration.After(now):
		return nil, tailnet.Errorf(tailnet.Invalid, "the expiration %s has passed already", req.Expiration.UTC().Format(time.RFC3339))
	default:
		kr.Expires = req.Expiration.UTC()
	}
	secret, k, err := s.Auth.CreatePreAuthKey(r.Context(), kr)
	if err != nil {
		return nil, err
	}
	out := preAuthKeyJSON(s.State.Snapshot(), k, now)
	out.Key = secret
	return &PreAuthKeyAnswer{out}, nil
}

// CreatePreAuthKey makes a key. Its secret is in the answer and never again.
func (c *Client) CreatePreAuthKey(ctx context.Context, req CreatePreAuthKeyRequest) (*PreAuthKey, error) {
	var out PreAuthKeyAnswer
	err := c.do(ctx, http.MethodPost, c.path("preauthkey"), req, &out)
	return out.PreAuthKey, err
}

// findPreAuthKey is the key that req names.
func findPreAuthKey(sn *state.Snapshot, req ExpirePreAuthKeyRequest) (*tailnet.PreAuthKey, error) {
	if req.ID == 0 && req.Key == "" {
		return nil, tailnet.Errorf(tailnet.Invalid, "no pre-auth key is given: name it by its id")
	}
	if req.ID != 0 {
		if k := sn.PreAuthKey(tailnet.PreAuthKeyID(req.ID)); k != nil {
			return k, nil
		}
		return nil, tailnet.Errorf(tailnet.NotFound, "there is no pre-auth key %s", req.ID)
	}
	hash := sha256.Sum256([]byte(req.Key))
	for _, k := range sn.PreAuthKeys() {
		if k.Hash == hash || k.Prefix != "" && (k.Prefix == req.Key || strings.HasPrefix(req.Key, k.Prefix+"-")) {
			return k, nil
		}
	}
	return nil, tailnet.Errorf(tailnet.NotFound, "there is no such pre-auth key; name it by its id")
}

func (s *server) expirePreAuthKey(r *http.Request, req *ExpirePreAuthKeyRequest) (*Empty, error) {
	found, err := findPreAuthKey(s.State.Snapshot(), *req)
	if err != nil {
		return nil, err
	}
	return &Empty{}, s.Auth.RevokePreAuthKey(r.Context(), found.ID)
}

// ExpirePreAuthKey ends a key; nodes that joined with it stay.
func (c *Client) ExpirePreAuthKey(ctx context.Context, req ExpirePreAuthKeyRequest) error {
	return c.do(ctx, http.MethodPost, c.path("preauthkey", "expire"), req, nil)
}

func (s *server) deletePreAuthKey(r *http.Request, req *DeletePreAuthKeyRequest) (*Empty, error) {
	k, err := findPreAuthKey(s.State.Snapshot(), ExpirePreAuthKeyRequest(*req))
	if err != nil {
		return nil, err
	}
	err = s.update(r, "delete pre-auth key "+ID(k.ID).String(), func(tx *state.Tx) error {
		tx.DeletePreAuthKey(k.ID)
		return nil
	})
	return &Empty{}, err
}

// DeletePreAuthKey removes a key; nodes that joined with it stay.
func (c *Client) DeletePreAuthKey(ctx context.Context, req ExpirePreAuthKeyRequest) error {
	return c.do(ctx, http.MethodDelete, c.path("preauthkey").query(values(DeletePreAuthKeyRequest(req))), nil, nil)
}
