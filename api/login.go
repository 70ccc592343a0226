package api

import (
	"context"
	"net/http"
	"strings"
	"time"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// Registrar is what the server needs of auth: what lets nodes in, and SSH sessions begin.
type Registrar interface {
	// CreatePreAuthKey makes a key and returns its secret, which nobody can tell again.
	CreatePreAuthKey(ctx context.Context, req auth.KeyRequest) (secret string, k *tailnet.PreAuthKey, err error)
	// AuditLog are the entries of the audit log that q chooses: the newest first, or, with q.After, the oldest first.
	AuditLog(ctx context.Context, q tailnet.AuditQuery) ([]*tailnet.AuditEntry, error)
	// RevokePreAuthKey ends a key for good; nodes that joined with it stay.
	RevokePreAuthKey(ctx context.Context, id tailnet.PreAuthKeyID) error
	// CreateAPIKey makes a key for p and returns its secret, which nobody can tell again.
	CreateAPIKey(ctx context.Context, p *auth.Principal, req auth.APIKeyRequest) (secret string, c *tailnet.Credential, err error)
	// CreateOAuthClient and CreateFederatedIdentity make what gets access tokens.
	CreateOAuthClient(ctx context.Context, p *auth.Principal, req auth.ClientRequest) (secret string, c *tailnet.Credential, err error)
	CreateFederatedIdentity(ctx context.Context, p *auth.Principal, req auth.ClientRequest) (*tailnet.Credential, error)
	// UpdateClient replaces what one of them says.
	UpdateClient(ctx context.Context, p *auth.Principal, id string, req auth.ClientRequest) (*tailnet.Credential, error)
	// RevokeKey ends a key of any kind, which stays in the list.
	RevokeKey(ctx context.Context, p *auth.Principal, id string) error
	// ExpireCredential, RevokeCredential and DeleteCredential end a key in p's name.
	ExpireCredential(ctx context.Context, p *auth.Principal, id string) error
	RevokeCredential(ctx context.Context, p *auth.Principal, id string) error
	DeleteCredential(ctx context.Context, p *auth.Principal, id string) error
	// CredentialUses says when keys were used last; those never used are missing.
	CredentialUses(ctx context.Context) (map[string]time.Time, error)
	// CompleteLogin lets the node in whose registration waits under loginID. The error is NotFound if there is no such
	// registration or its time is over.
	CompleteLogin(ctx context.Context, loginID string, user tailnet.UserID) (tailnet.NodeID, error)
	// Logins are the registrations that wait, oldest first.
	Logins(ctx context.Context) ([]*tailnet.Login, error)
	// Renew lets the key of n, a clone, live as long as if it had just logged in.
	Renew(tx *state.Tx, n *tailnet.Node)
	// KeyDuration is how long keys live by these settings and the configuration; 0: for ever.
	KeyDuration(s tailnet.Settings) time.Duration
	// SSHChecks are the SSH sessions that wait to be confirmed, oldest first.
	SSHChecks(ctx context.Context) ([]*tailnet.SSHCheck, error)
	// ApproveSSH lets one of them begin, DenySSH ends it; by is who did. The error is NotFound if nothing waits under the
	// id, and Conflict if it was decided before.
	ApproveSSH(ctx context.Context, id, by string) (*tailnet.SSHCheck, error)
	DenySSH(ctx context.Context, id, by string) (*tailnet.SSHCheck, error)
}

// LoginID is the id of a pending login in what a person copied: the id alone, or the URL or path that the client printed.
func LoginID(key string) (string, error) {
	id := lastPart(key)
	if id == "" {
		return "", tailnet.Errorf(tailnet.Invalid, "no key is given: it is the last part of the URL that the client printed")
	}
	if !plainID(id) {
		return "", tailnet.Errorf(tailnet.Invalid, "%q is not a registration key: it is the last part of the URL that the client printed", clip(id))
	}
	return id, nil
}

// lastPart is what comes after the last slash of a URL or path; text without one stays.
func lastPart(s string) string {
	s, _, _ = strings.Cut(strings.TrimSpace(s), "?")
	s = strings.TrimRight(s, "/")
	return s[strings.LastIndexByte(s, '/')+1:]
}

// plainID reports whether id could be one that auth has made: short, and without spaces or foreign letters.
func plainID(id string) bool {
	return id != "" && len(id) <= 200 && !strings.ContainsFunc(id, func(c rune) bool { return c <= ' ' || c > '~' })
}

// Login is a registration that waits for a person.
type Login struct {
	Key       string     `json:"key"` // for the key of POST /node/register
	Name      string     `json:"name"`
	OS        string     `json:"os"`
	NodeKey   string     `json:"nodeKey"`
	Remote    string     `json:"remote"`
	Ephemeral bool       `json:"ephemeral"`
	CreatedAt *time.Time `json:"createdAt"`
}

// LoginFilter chooses registrations that are all that its fields say; empty ones choose all.
type LoginFilter struct {
	Name string `query:"name"` // part of what the machine calls itself
	OS   string `query:"os"`   // such as linux, whatever the case
	Page
}

// LoginList is the answer to ListLogins.
type LoginList struct {
	Logins   []*Login `json:"logins"`
	NextPage string   `json:"nextPage,omitempty"`
}

func (s *server) loginOperations() []operation {
	return []operation{get("/login", auth.Read(auth.ScopeDevices), "nodes that wait to be let in", s.listLogins)}
}

func (s *server) listLogins(r *http.Request, f *LoginFilter) (*LoginList, error) {
	logins, err := s.Auth.Logins(r.Context())
	if err != nil {
		return nil, err
	}
	out := &LoginList{Logins: []*Login{}}
	for _, l := range logins {
		j := &Login{Key: l.ID, NodeKey: l.NodeKey.String(), Remote: l.Remote, Ephemeral: l.Ephemeral, CreatedAt: timestamp(l.Created)}
		if l.Hostinfo != nil {
			j.Name, j.OS = l.Hostinfo.Hostname, l.Hostinfo.OS
		}
		if (f.OS == "" || strings.EqualFold(j.OS, f.OS)) && strings.Contains(strings.ToLower(j.Name), strings.ToLower(f.Name)) {
			out.Logins = append(out.Logins, j)
		}
	}
	out.Logins, out.NextPage, err = cut(out.Logins, f.Page, func(l *Login) string { return byTime(*l.CreatedAt, l.Key) })
	return out, err
}

// ListLogins are the registrations that wait for a person.
func (c *Client) ListLogins(ctx context.Context) ([]*Login, error) {
	var out LoginList
	err := c.do(ctx, http.MethodGet, c.path("login"), nil, &out)
	return out.Logins, err
}
