package api

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/tailnet"
)

// Accounts is what the server needs of auth.Accounts.
type Accounts interface {
	// Admins are the users who can sign in without a provider, by id.
	Admins(ctx context.Context) ([]*auth.Admin, error)
	// CreateLink makes a one-time link and returns its address, which nobody can tell again.
	CreateLink(ctx context.Context, r auth.LinkRequest) (string, *tailnet.AccountLink, error)
	// DeleteAccount and ResetAccount take a user's ways to sign in away; the second one returns a link to begin anew. The error is
	// NotFound if there are none.
	DeleteAccount(ctx context.Context, u *tailnet.User) error
	ResetAccount(ctx context.Context, u *tailnet.User) (string, *tailnet.AccountLink, error)
}

// Admin is somebody who can sign in on the web pages without a provider. What such a user may do there is said by the user's role.
type Admin struct {
	User        *User      `json:"user"`
	Password    bool       `json:"password"` // there is one
	PasswordSet *time.Time `json:"passwordSet"`
	Passkeys    []string   `json:"passkeys"` // their names
	Sessions    int        `json:"sessions"` // browsers that are signed in
	SignedIn    *time.Time `json:"signedIn"` // last; null: never
	CreatedAt   *time.Time `json:"createdAt"`
}

type (
	// AdminFilter chooses a part of them.
	AdminFilter struct {
		Page
	}
	// AdminList is the answer to ListAdmins.
	AdminList struct {
		Admins   []*Admin `json:"admins"`
		NextPage string   `json:"nextPage,omitempty"`
	}
	// CreateAdminLinkRequest asks for a one-time link. With User it is for that namespace; otherwise it makes one, called Name or
	// what whoever uses it chooses.
	CreateAdminLinkRequest struct {
		User Ref    `json:"user,omitempty"`
		Name string `json:"name,omitempty" example:"anna"`
		Role string `json:"role,omitempty" example:"admin"` // of the namespace that is made; empty: admin, or owner if nobody can sign in yet
	}
	// AdminLink lets whoever has its URL choose how to sign in, once.
	AdminLink struct {
		URL       string     `json:"url"`
		ExpiresAt *time.Time `json:"expiresAt"`
	}
)

func (s *server) adminOperations() []operation {
	change := auth.ScopeUsers
	return []operation{
		get("/admin", auth.Read(auth.ScopeUsers), "lists who signs in on the web pages without a provider", withAccounts(s, s.listAdmins)),
		post("/admin/link", change, "makes a one-time link, for `{\"user\": …}` or a new namespace `{\"name\": …, \"role\": …}`; its address is in the answer, this once",
			withAccounts(s, s.createAdminLink)),
		post("/admin/{user}/reset", change, "takes password, passkeys and sessions away and makes a link", withAccounts(s, s.resetAdmin)),
		del("/admin/{user}", change, "takes them away", withAccounts(s, s.deleteAdmin)),
	}
}

// withAccounts is do where people can sign in on the web pages, and an error where they cannot.
func withAccounts[In, Out any](s *server, do func(*http.Request, *In) (*Out, error)) func(*http.Request, *In) (*Out, error) {
	return func(r *http.Request, in *In) (*Out, error) {
		if s.Accounts == nil {
			return nil, tailnet.Errorf(tailnet.Unavailable, "nobody can sign in on the pages of this server: they are switched off (web.enabled in its configuration)")
		}
		return do(r, in)
	}
}

func (s *server) listAdmins(r *http.Request, f *AdminFilter) (*AdminList, error) {
	admins, err := s.Accounts.Admins(r.Context())
	if err != nil {
		return nil, err
	}
	out := &AdminList{Admins: []*Admin{}}
	for _, a := range admins {
		j := &Admin{
			User: userJSON(a.User), Password: a.Account.Password != "", PasswordSet: timestamp(a.Account.PasswordSet), Passkeys: []string{},
			Sessions: a.Sessions, SignedIn: timestamp(a.Account.SignedIn), CreatedAt: timestamp(a.Account.Created),
		}
		for _, k := range a.Account.Passkeys {
			j.Passkeys = append(j.Passkeys, k.Name)
		}
		out.Admins = append(out.Admins, j)
	}
	out.Admins, out.NextPage, err = cut(out.Admins, f.Page, func(a *Admin) string { return byNumber(a.User.ID) })
	return out, err
}

// ListAdmins are the users who can sign in on the web pages without a provider.
func (c *Client) ListAdmins(ctx context.Context) ([]*Admin, error) {
	var out AdminList
	err := c.do(ctx, http.MethodGet, c.path("admin"), nil, &out)
	return out.Admins, err
}

func (s *server) createAdminLink(r *http.Request, req *CreateAdminLinkRequest) (*AdminLink, error) {
	p := auth.PrincipalOf(r.Context())
	var lr auth.LinkRequest
	if req.User != "" {
		u, err := findUser(s.State.Snapshot(), req.User)
		if err != nil {
			return nil, err
		}
		if req.Name != "" || req.Role != "" {
			return nil, tailnet.Errorf(tailnet.Invalid, "a link for a namespace that exists gives neither a name nor a role; set-role changes the role")
		}
		if err := p.AllowRole(u.Role); err != nil { // whoever uses the link acts as the user
			return nil, err
		}
		lr.User = u.ID
	} else {
		if req.Role == "" {
			req.Role = string(tailnet.RoleAdmin)
			if admins, err := s.Accounts.Admins(r.Context()); err != nil {
				return nil, err
			} else if len(admins) == 0 {
				req.Role = string(tailnet.RoleOwner)
			}
		}
		role, err := parseRole(req.Role)
		if err != nil {
			return nil, err
		}
		if err := p.AllowRole(role); err != nil {
			return nil, err
		}
		lr.Name, lr.Role = req.Name, role
	}
	return adminLink(s.Accounts.CreateLink(r.Context(), lr))
}

func adminLink(url string, l *tailnet.AccountLink, err error) (*AdminLink, error) {
	if err != nil {
		return nil, err
	}
	return &AdminLink{URL: url, ExpiresAt: timestamp(l.Expires)}, nil
}

// CreateAdminLink makes a one-time link. Its URL is in the answer and never again.
func (c *Client) CreateAdminLink(ctx context.Context, req CreateAdminLinkRequest) (*AdminLink, error) {
	out := new(AdminLink)
	err := c.do(ctx, http.MethodPost, c.path("admin", "link"), req, out)
	return out, err
}

// pathAdmin is the user that r's path names, if the caller may deal with one of that role.
func (s *server) pathAdmin(r *http.Request) (*tailnet.User, error) {
	ref, err := pathVar(r, "user")
	if err != nil {
		return nil, err
	}
	u, err := findUser(s.State.Snapshot(), Ref(ref))
	if err != nil {
		return nil, err
	}
	return u, auth.PrincipalOf(r.Context()).AllowRole(u.Role)
}

func (s *server) deleteAdmin(r *http.Request, _ *Empty) (*Empty, error) {
	u, err := s.pathAdmin(r)
	if err != nil {
		return nil, err
	}
	return &Empty{}, s.Accounts.DeleteAccount(r.Context(), u)
}

// DeleteAdmin takes from a namespace all ways to sign in without a provider, and ends its sessions. Namespace, role and nodes stay.
func (c *Client) DeleteAdmin(ctx context.Context, user Ref) error {
	return c.do(ctx, http.MethodDelete, c.path("admin", string(user)), nil, nil)
}

func (s *server) resetAdmin(r *http.Request, _ *Empty) (*AdminLink, error) {
	u, err := s.pathAdmin(r)
	if err != nil {
		return nil, err
	}
	return adminLink(s.Accounts.ResetAccount(r.Context(), u))
}

// ResetAdmin is DeleteAdmin, and a one-time link with which the user begins anew.
func (c *Client) ResetAdmin(ctx context.Context, user Ref) (*AdminLink, error) {
	out := new(AdminLink)
	err := c.do(ctx, http.MethodPost, c.path("admin", string(user), "reset"), nil, out)
	return out, err
}

// parseRole is the role that people write.
func parseRole(text string) (tailnet.Role, error) {
	if !slices.Contains(Roles, text) {
		return "", tailnet.Errorf(tailnet.Invalid, "%q is not a role: use %s", clip(text), strings.Join(Roles, ", "))
	}
	if text == roleMember {
		return tailnet.RoleMember, nil
	}
	return tailnet.Role(text), nil
}
