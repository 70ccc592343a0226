package api

import (
	"net/http"
	"slices"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// v2User is a namespace (User of the Go client).
type v2User struct {
	ID                 string `json:"id"`
	DisplayName        string `json:"displayName"`
	LoginName          string `json:"loginName"`
	ProfilePicURL      string `json:"profilePicUrl"`
	TailnetID          string `json:"tailnetId"`
	Created            string `json:"created"`
	Type               string `json:"type"`   // member
	Role               string `json:"role"`   // one of Roles
	Status             string `json:"status"` // active, idle (no node was seen for long), suspended, needs-approval
	DeviceCount        int    `json:"deviceCount"`
	LastSeen           string `json:"lastSeen,omitempty"`
	CurrentlyConnected bool   `json:"currentlyConnected"`
}

func (s *server) v2UserRoutes() []route {
	const one = "/users/{user}"
	read, write := auth.Read(auth.ScopeUsers), auth.ScopeUsers
	act := func(to tailnet.UserStatus) ops {
		return ops{http.MethodPost: {write, s.v2SetStatus(to)}}
	}
	return []route{
		{"/tailnet/{tailnet}/users", ops{http.MethodGet: {read, s.v2Users}}},
		{one, ops{http.MethodGet: {read, s.v2GetUser}}},
		{one + "/approve", act(tailnet.UserActive)},
		{one + "/suspend", act(tailnet.UserSuspended)},
		{one + "/restore", act(tailnet.UserActive)},
		{one + "/role", ops{http.MethodPost: {write, s.v2SetRole}}},
		{one + "/delete", ops{http.MethodPost: {write, s.v2DeleteUser}}},
	}
}

func (s *server) v2UserJSON(sn *state.Snapshot, u *tailnet.User) *v2User {
	out := &v2User{
		ID: u.ID.String(), DisplayName: u.Title(), LoginName: u.LoginName(), ProfilePicURL: u.Picture, TailnetID: ID(sn.Tailnet.ID).String(),
		Created: v2Time(u.Created), Type: "member", Role: userJSON(u).Role, Status: string(u.Status),
	}
	if u.Status == tailnet.UserActive {
		out.Status = "active"
	}
	seen := u.Created
	for _, n := range sn.NodesOf(u.ID) {
		out.DeviceCount++
		if out.CurrentlyConnected = out.CurrentlyConnected || n.Online; n.LastSeen.After(seen) {
			seen = n.LastSeen
		}
	}
	if out.CurrentlyConnected {
		seen = s.Now()
	}
	out.LastSeen = v2Time(seen)
	return out
}

func (s *server) v2Users(r *http.Request) (any, error) {
	q := r.URL.Query()
	kind, role := q.Get("type"), q.Get("role")
	switch kind {
	case "", "all", "member", "shared":
	default:
		return nil, tailnet.Errorf(tailnet.Invalid, "type=%q is neither member, shared nor all", clip(kind))
	}
	if role != "" && role != "all" && !slices.Contains(Roles, role) {
		return nil, tailnet.Errorf(tailnet.Invalid, "role=%q is not a role", clip(role))
	}
	sn := s.State.Snapshot()
	out := struct {
		Users []*v2User `json:"users"`
	}{[]*v2User{}}
	for _, u := range sn.Users() {
		v := s.v2UserJSON(sn, u)
		if kind != "shared" && (role == "" || role == "all" || role == v.Role) { // nobody is shared in from elsewhere
			out.Users = append(out.Users, v)
		}
	}
	return out, nil
}

// v2PathUser is the user that the path names, by id or login name.
func (s *server) v2PathUser(r *http.Request) (*tailnet.User, error) {
	ref, err := pathVar(r, "user")
	if err != nil {
		return nil, err
	}
	sn := s.State.Snapshot()
	for _, u := range sn.Users() {
		if u.ID.String() == ref || u.LoginName() == ref {
			return u, nil
		}
	}
	return nil, tailnet.Errorf(tailnet.NotFound, "there is no user %q", clip(ref))
}

func (s *server) v2GetUser(r *http.Request) (any, error) {
	u, err := s.v2PathUser(r)
	if err != nil {
		return nil, err
	}
	return s.v2UserJSON(s.State.Snapshot(), u), nil
}

func (s *server) v2SetStatus(to tailnet.UserStatus) handler {
	return func(r *http.Request) (any, error) {
		discard(r)
		u, err := s.v2PathUser(r)
		if err != nil {
			return nil, err
		}
		_, err = s.changeStatus(r, u, to)
		return Empty{}, err
	}
}

func (s *server) v2SetRole(r *http.Request) (any, error) {
	var req SetRoleRequest
	if err := readV2(r, &req); err != nil {
		return nil, err
	}
	u, err := s.v2PathUser(r)
	if err != nil {
		return nil, err
	}
	_, err = s.changeRole(r, u, req.Role)
	return Empty{}, err
}

func (s *server) v2DeleteUser(r *http.Request) (any, error) {
	discard(r)
	u, err := s.v2PathUser(r)
	if err != nil {
		return nil, err
	}
	return Empty{}, s.dropUser(r, u)
}
