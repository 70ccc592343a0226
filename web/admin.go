package web

import (
	"net/http"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

func (h *Handler) adminPages() []page {
	return []page{
		{path: "/admin", get: (*visit).serveAdmin},
		{path: "/machines/{id}", get: (*visit).serveMachine, post: (*visit).changeMachine},
	}
}

// mayManage reports whether the visitor looks after the machines of everybody.
func (v *visit) mayManage() bool {
	p, err := auth.UserPrincipal(v.user)
	return err == nil && p.Allow(auth.ScopeDevices) == nil
}

// adminPage is what admin.html shows.
type adminPage struct {
	Manage     bool
	ServerURL  string
	Waiting    []machine
	More       int // machines that wait beside those
	Unapproved []nodeRow
	SSH        []sshSession
	Own        []nodeRow
	Others     int // machines of others
	UserWaits  bool
}

// nodeRow is a node in a list.
type nodeRow struct {
	ID     tailnet.NodeID
	Name   string
	Owner  string
	OS     string
	Addr   string
	Online bool
	Seen   string
	State  string // what is special about it: "expired", "waits for approval"; mostly empty
}

func (v *visit) nodeRow(sn *state.Snapshot, n *state.Node) nodeRow {
	now := v.h.o.Now()
	r := nodeRow{ID: n.ID, Name: n.Name, OS: n.Hostinfo.OS, Online: n.Online, Seen: "never seen"}
	if !n.LastSeen.IsZero() {
		r.Seen = "seen " + ago(now, n.LastSeen)
	}
	if u := sn.User(n.Owner()); u != nil {
		r.Owner = u.Title()
	}
	if as := n.Addrs(); len(as) > 0 {
		r.Addr = as[0].String()
	}
	switch {
	case !n.Authorized:
		r.State = "waits for approval"
	case !n.Approved:
		r.State = "its owner waits for approval"
	case n.Expired(now):
		r.State = "expired"
	}
	return r
}

// maxWaiting is how many machines that wait are shown: anybody may make one wait.
const maxWaiting = 50

// serveAdmin is the overview.
func (v *visit) serveAdmin() error {
	if !v.signedIn() {
		return nil
	}
	sn := v.h.o.State.Snapshot()
	p := adminPage{Manage: v.mayManage(), ServerURL: v.h.o.ServerURL, UserWaits: v.user.Status == tailnet.UserWaiting}
	for _, n := range sn.Nodes() {
		switch {
		case !n.Tagged() && n.User == v.user.ID:
			p.Own = append(p.Own, v.nodeRow(sn, n))
		case p.Manage:
			p.Others++
		}
		if p.Manage && !n.Authorized {
			p.Unapproved = append(p.Unapproved, v.nodeRow(sn, n))
		}
	}
	if p.Manage {
		logins, err := v.h.o.Auth.Logins(v.r.Context())
		if err != nil {
			return err
		}
		for _, l := range logins {
			if len(p.Waiting) < maxWaiting {
				p.Waiting = append(p.Waiting, v.machine(l))
			} else {
				p.More++
			}
		}
	}
	checks, err := v.h.o.Auth.SSHChecks(v.r.Context())
	if err != nil {
		return err
	}
	for _, c := range checks {
		if v.mayDecide(c) && len(p.SSH) < maxWaiting {
			p.SSH = append(p.SSH, v.sshSession(c))
		}
	}
	return v.render(http.StatusOK, "admin", view{Title: "Machines", Place: "machines", Token: v.token(), Page: p})
}
