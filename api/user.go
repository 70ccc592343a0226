package api

import (
	"context"
	"net/http"
	"time"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// User is a namespace.
type User struct {
	ID            ID         `json:"id"`
	Name          string     `json:"name"`
	CreatedAt     *time.Time `json:"createdAt"`
	DisplayName   string     `json:"displayName"`
	Email         string     `json:"email"`
	ProviderID    string     `json:"providerId"`                                                                  // issuer and subject at the identity provider; empty for others
	Provider      string     `json:"provider"`                                                                    // id of the identity provider; empty for others
	ProfilePicURL string     `json:"profilePicUrl"`                                                               // https, may be empty
	Status        string     `json:"status" enum:"active,needs-approval,suspended"`                               // active, needs-approval or suspended: the nodes of those who are not active are cut off
	Role          string     `json:"role" enum:"owner,admin,network-admin,it-admin,billing-admin,auditor,member"` // as policies call it: autogroup:ROLE
}

// Roles are what a user can be, as policies call them (autogroup:ROLE).
var Roles = []string{
	string(tailnet.RoleOwner), string(tailnet.RoleAdmin), string(tailnet.RoleNetworkAdmin), string(tailnet.RoleITAdmin),
	string(tailnet.RoleBillingAdmin), string(tailnet.RoleAuditor), roleMember,
}

// roleMember is tailnet.RoleMember outside.
const roleMember = "member"

func userJSON(u *tailnet.User) *User {
	out := &User{
		ID: ID(u.ID), Name: u.Name, CreatedAt: timestamp(u.Created), DisplayName: u.DisplayName, Email: u.Email, Role: string(u.Role),
		ProviderID: u.ProviderID, Provider: u.Provider, ProfilePicURL: u.Picture,
	}
	if u.Role == tailnet.RoleMember {
		out.Role = roleMember
	}
	if out.Status = string(u.Status); u.Status == tailnet.UserActive {
		out.Status = statusActive
	}
	return out
}

// userOf is the owner of something; nil, which is written as null, if there is none.
func userOf(sn *state.Snapshot, id tailnet.UserID) *User {
	if u := sn.User(id); u != nil {
		return userJSON(u)
	}
	return nil
}

type (
	// UserFilter chooses users; empty fields choose all.
	UserFilter struct {
		ID     ID     `query:"id"`
		Name   string `query:"name"`  // exactly
		Email  string `query:"email"` // exactly
		Role   string `query:"role" enum:"owner,admin,network-admin,it-admin,billing-admin,auditor,member"`
		Status string `query:"status" enum:"active,needs-approval,suspended"`
		Page
	}
	// UserList is the answer to ListUsers.
	UserList struct {
		Users    []*User `json:"users"`
		NextPage string  `json:"nextPage,omitempty"`
	}
	// UserAnswer is one user.
	UserAnswer struct {
		User *User `json:"user"`
	}
	// CreateUserRequest makes a namespace. Only Name is required.
	CreateUserRequest struct {
		Name        string `json:"name" example:"anna"`
		DisplayName string `json:"displayName,omitempty"`
		Email       string `json:"email,omitempty"`
	}
	// SetRoleRequest makes a user what Role says, one of Roles.
	SetRoleRequest struct {
		Role string `json:"role" enum:"owner,admin,network-admin,it-admin,billing-admin,auditor,member" example:"auditor"`
	}
	// Empty is the request of operations that ask for nothing more than their path says, and the answer of those that have
	// nothing to say.
	Empty struct{}
)

func (s *server) userOperations() []operation {
	change := auth.ScopeUsers
	return []operation{
		get("/user", auth.Read(auth.ScopeUsers), "lists users (namespaces)", s.listUsers),
		post("/user", change, "makes a user", s.createUser),
		del("/user/{user}", change, "deletes a user without nodes, with its keys", s.deleteUser),
		post("/user/{user}/rename/{new}", change, "renames a user", s.renameUser),
		post("/user/{user}/role", change, "gives a user a role, not above one's own", s.setRole),
		post("/user/{user}/approve", change, "lets a user take part who signed in and waits for it", s.activateUser),
		post("/user/{user}/suspend", change, "cuts the nodes of a user off, and lets none join", s.suspendUser),
		post("/user/{user}/restore", change, "takes a suspension back", s.activateUser),
	}
}

func (s *server) pathUser(r *http.Request) (*tailnet.User, error) {
	ref, err := pathVar(r, "user")
	if err != nil {
		return nil, err
	}
	return findUser(s.State.Snapshot(), Ref(ref))
}

func (s *server) listUsers(_ *http.Request, f *UserFilter) (*UserList, error) {
	out := &UserList{Users: []*User{}}
	for _, u := range s.State.Snapshot().Users() {
		j := userJSON(u)
		if f.ID != 0 && j.ID != f.ID || f.Name != "" && j.Name != f.Name || f.Email != "" && j.Email != f.Email ||
			f.Role != "" && j.Role != f.Role || f.Status != "" && j.Status != f.Status {
			continue
		}
		out.Users = append(out.Users, j)
	}
	var err error
	out.Users, out.NextPage, err = cut(out.Users, f.Page, func(u *User) string { return byNumber(u.ID) })
	return out, err
}

// ListUsers are the namespaces that f chooses, sorted by id.
func (c *Client) ListUsers(ctx context.Context, f UserFilter) ([]*User, error) {
	var out UserList
	err := c.do(ctx, http.MethodGet, c.path("user").query(values(f)), nil, &out)
	return out.Users, err
}

func (s *server) createUser(r *http.Request, req *CreateUserRequest) (*UserAnswer, error) {
	if err := tailnet.CheckUserName(req.Name); err != nil {
		return nil, err
	}
	if err := checkText("display name", req.DisplayName); err != nil {
		return nil, err
	}
	if err := checkEmail(req.Email); err != nil {
		return nil, err
	}
	var u *tailnet.User
	err := s.update(r, "create namespace "+req.Name, func(tx *state.Tx) error {
		u = tx.NewUser(req.Name)
		u.DisplayName, u.Email = req.DisplayName, req.Email
		return tx.PutUser(u)
	})
	if err != nil {
		return nil, err
	}
	return &UserAnswer{userJSON(u)}, nil
}

// CreateUser makes a namespace.
func (c *Client) CreateUser(ctx context.Context, req CreateUserRequest) (*User, error) {
	var out UserAnswer
	err := c.do(ctx, http.MethodPost, c.path("user"), req, &out)
	return out.User, err
}

func (s *server) renameUser(r *http.Request, _ *Empty) (*UserAnswer, error) {
	old, err := s.pathUser(r)
	if err != nil {
		return nil, err
	}
	name, err := pathVar(r, "new")
	if err != nil {
		return nil, err
	}
	if err := tailnet.CheckUserName(name); err != nil {
		return nil, err
	}
	var renamed *tailnet.User
	err = s.update(r, "rename namespace "+old.Name+" to "+name, func(tx *state.Tx) error {
		u, err := userIn(tx, old.ID)
		if err != nil {
			return err
		}
		renamed = u
		if u.Name == name {
			return nil
		}
		c := *u
		c.Name = name
		renamed = &c
		return tx.PutUser(renamed)
	})
	if err != nil {
		return nil, err
	}
	return &UserAnswer{userJSON(renamed)}, nil
}

// RenameUser gives a namespace another name.
func (c *Client) RenameUser(ctx context.Context, user Ref, name string) (*User, error) {
	var out UserAnswer
	err := c.do(ctx, http.MethodPost, c.path("user", string(user), "rename", name), nil, &out)
	return out.User, err
}

func (s *server) setRole(r *http.Request, req *SetRoleRequest) (*UserAnswer, error) {
	found, err := s.pathUser(r)
	if err != nil {
		return nil, err
	}
	changed, err := s.changeRole(r, found, req.Role)
	if err != nil {
		return nil, err
	}
	return &UserAnswer{userJSON(changed)}, nil
}

// changeRole makes a user what to says, one of Roles.
func (s *server) changeRole(r *http.Request, found *tailnet.User, to string) (changed *tailnet.User, err error) {
	role, err := parseRole(to)
	if err != nil {
		return nil, err
	}
	p := auth.PrincipalOf(r.Context())
	err = s.update(r, "make namespace "+found.Name+" "+to, func(tx *state.Tx) error {
		u, err := userIn(tx, found.ID)
		if err != nil {
			return err
		}
		changed = u
		if u.Role == role {
			return nil
		}
		for _, r := range []tailnet.Role{u.Role, role} {
			if err := p.AllowRole(r); err != nil {
				return err
			}
		}
		c := *u
		c.Role = role
		changed = &c
		return tx.PutUser(changed)
	})
	return changed, err
}

// SetUserRole makes a user what role says, one of Roles.
func (c *Client) SetUserRole(ctx context.Context, user Ref, role string) (*User, error) {
	var out UserAnswer
	err := c.do(ctx, http.MethodPost, c.path("user", string(user), "role"), SetRoleRequest{role}, &out)
	return out.User, err
}

// activateUser lets a user take part who waited for approval, or was suspended.
func (s *server) activateUser(r *http.Request, _ *Empty) (*UserAnswer, error) {
	return s.setUserStatus(r, tailnet.UserActive)
}

func (s *server) suspendUser(r *http.Request, _ *Empty) (*UserAnswer, error) {
	return s.setUserStatus(r, tailnet.UserSuspended)
}

func (s *server) setUserStatus(r *http.Request, status tailnet.UserStatus) (*UserAnswer, error) {
	found, err := s.pathUser(r)
	if err != nil {
		return nil, err
	}
	changed, err := s.changeStatus(r, found, status)
	if err != nil {
		return nil, err
	}
	return &UserAnswer{userJSON(changed)}, nil
}

// changeStatus lets a user take part, or suspends one.
func (s *server) changeStatus(r *http.Request, found *tailnet.User, status tailnet.UserStatus) (changed *tailnet.User, err error) {
	why := "let namespace " + found.Name + " take part"
	if status == tailnet.UserSuspended {
		why = "suspend namespace " + found.Name
	}
	p := auth.PrincipalOf(r.Context())
	err = s.update(r, why, func(tx *state.Tx) error {
		u, err := userIn(tx, found.ID)
		if err != nil {
			return err
		}
		if err := p.AllowRole(u.Role); err != nil {
			return err
		}
		if status != tailnet.UserActive && p.User == u.ID {
			return tailnet.Errorf(tailnet.Conflict, "you cannot suspend yourself")
		}
		changed = u
		if u.Status == status {
			return nil
		}
		c := *u
		c.Status = status
		changed = &c
		return tx.PutUser(changed)
	})
	return changed, err
}

// ApproveUser lets a user take part who signed in and waits for it.
func (c *Client) ApproveUser(ctx context.Context, user Ref) (*User, error) {
	return c.userDo(ctx, user, "approve")
}

// SuspendUser cuts the nodes of a user off until RestoreUser, and lets none join.
func (c *Client) SuspendUser(ctx context.Context, user Ref) (*User, error) {
	return c.userDo(ctx, user, "suspend")
}

// RestoreUser lets a suspended user take part again.
func (c *Client) RestoreUser(ctx context.Context, user Ref) (*User, error) {
	return c.userDo(ctx, user, "restore")
}

func (c *Client) userDo(ctx context.Context, user Ref, what string) (*User, error) {
	var out UserAnswer
	err := c.do(ctx, http.MethodPost, c.path("user", string(user), what), nil, &out)
	return out.User, err
}

func (s *server) deleteUser(r *http.Request, _ *Empty) (*Empty, error) {
	u, err := s.pathUser(r)
	if err != nil {
		return nil, err
	}
	return &Empty{}, s.dropUser(r, u)
}

// dropUser deletes a user who has no nodes, with its pre-auth keys.
func (s *server) dropUser(r *http.Request, found *tailnet.User) error {
	p := auth.PrincipalOf(r.Context())
	return s.update(r, "delete namespace "+found.Name, func(tx *state.Tx) error {
		u, err := userIn(tx, found.ID)
		if err != nil {
			return err
		}
		if err := p.AllowRole(u.Role); err != nil {
			return err
		}
		return tx.DeleteUser(u.ID)
	})
}

// DeleteUser deletes a namespace that has no nodes, with its pre-auth keys.
func (c *Client) DeleteUser(ctx context.Context, user Ref) error {
	return c.do(ctx, http.MethodDelete, c.path("user", string(user)), nil, nil)
}
