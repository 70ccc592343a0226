package api

import (
	"context"
	"net/http"
	"time"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/tailnet"
)

// SSHCheckID is the id of an SSH check in what a person copied: the id alone, or the URL that the SSH client printed.
func SSHCheckID(text string) (string, error) {
	id := lastPart(text)
	if !plainID(id) {
		return "", tailnet.Errorf(tailnet.Invalid, "%q is not the id of an SSH session: it is the last part of the URL that the SSH client printed", clip(id))
	}
	return id, nil
}

// SSHCheck is an SSH session that waits to be confirmed, or was.
type SSHCheck struct {
	ID          string     `json:"id"`
	SourceID    ID         `json:"sourceId"`
	Source      string     `json:"source"`      // MagicDNS name; empty if the node is gone
	SourceUser  string     `json:"sourceUser"`  // who owns it
	Destination string     `json:"destination"` // MagicDNS name; empty if the node is gone
	DestID      ID         `json:"destinationId"`
	SSHUser     string     `json:"sshUser"`
	LocalUser   string     `json:"localUser"`
	CheckPeriod string     `json:"checkPeriod"` // for how long an approval holds, such as "12h0m0s"; "always": for this session alone
	CreatedAt   *time.Time `json:"createdAt"`
	ApprovedAt  *time.Time `json:"approvedAt"`
	Denied      bool       `json:"denied"`
	DecidedBy   string     `json:"decidedBy"`
}

// SSHCheckFilter chooses sessions.
type SSHCheckFilter struct {
	Node Ref `query:"node"` // from it or to it
	Page
}

// SSHCheckList is the answer to ListSSHChecks.
type SSHCheckList struct {
	SSHChecks []*SSHCheck `json:"sshChecks"`
	NextPage  string      `json:"nextPage,omitempty"`
}

// SSHCheckAnswer is the answer to ApproveSSHCheck and DenySSHCheck.
type SSHCheckAnswer struct {
	SSHCheck *SSHCheck `json:"sshCheck"`
}

func (s *server) sshCheckOperations() []operation {
	return []operation{
		get("/sshcheck", auth.Read(auth.ScopeDevices), "SSH sessions that wait to be confirmed", s.listSSHChecks),
		post("/sshcheck/{id}/approve", auth.ScopeDevices, "confirms one", s.decideSSHCheck(s.Auth.ApproveSSH)),
		post("/sshcheck/{id}/deny", auth.ScopeDevices, "ends one", s.decideSSHCheck(s.Auth.DenySSH)),
	}
}

func (s *server) sshCheck(c *tailnet.SSHCheck) *SSHCheck {
	out := &SSHCheck{
		ID: c.ID, SourceID: ID(c.Src), DestID: ID(c.Dst), SSHUser: c.SSHUser, LocalUser: c.LocalUser, CheckPeriod: "always",
		CreatedAt: timestamp(c.Created), ApprovedAt: timestamp(c.Approved), Denied: c.Denied, DecidedBy: c.DecidedBy,
	}
	if c.Period > 0 {
		out.CheckPeriod = c.Period.String()
	}
	sn := s.State.Snapshot()
	if n := sn.Node(c.Src); n != nil {
		out.Source = n.Name
	}
	if n := sn.Node(c.Dst); n != nil {
		out.Destination = n.Name
	}
	if u := sn.User(c.SrcUser); u != nil {
		out.SourceUser = u.Name
	}
	return out
}

func (s *server) listSSHChecks(r *http.Request, f *SSHCheckFilter) (*SSHCheckList, error) {
	var node ID
	if f.Node != "" {
		n, err := findNode(s.State.Snapshot(), f.Node)
		if err != nil {
			return nil, err
		}
		node = ID(n.ID)
	}
	checks, err := s.Auth.SSHChecks(r.Context())
	if err != nil {
		return nil, err
	}
	out := &SSHCheckList{SSHChecks: []*SSHCheck{}}
	for _, c := range checks {
		if j := s.sshCheck(c); node == 0 || j.SourceID == node || j.DestID == node {
			out.SSHChecks = append(out.SSHChecks, j)
		}
	}
	out.SSHChecks, out.NextPage, err = cut(out.SSHChecks, f.Page, func(c *SSHCheck) string { return byTime(*c.CreatedAt, c.ID) })
	return out, err
}

func (s *server) decideSSHCheck(decide func(ctx context.Context, id, by string) (*tailnet.SSHCheck, error)) func(*http.Request, *Empty) (*SSHCheckAnswer, error) {
	return func(r *http.Request, _ *Empty) (*SSHCheckAnswer, error) {
		text, err := pathVar(r, "id")
		if err != nil {
			return nil, err
		}
		id, err := SSHCheckID(text)
		if err != nil {
			return nil, err
		}
		c, err := decide(r.Context(), id, s.author(r, ""))
		if err != nil {
			return nil, err
		}
		return &SSHCheckAnswer{s.sshCheck(c)}, nil
	}
}

// ListSSHChecks are the SSH sessions that wait to be confirmed, oldest first.
func (c *Client) ListSSHChecks(ctx context.Context) ([]*SSHCheck, error) {
	var out SSHCheckList
	err := c.do(ctx, http.MethodGet, c.path("sshcheck"), nil, &out)
	return out.SSHChecks, err
}

// ApproveSSHCheck lets a session begin that waits under id, which may be the URL that the SSH client printed.
func (c *Client) ApproveSSHCheck(ctx context.Context, id string) (*SSHCheck, error) {
	return c.decideSSHCheck(ctx, id, "approve")
}

// DenySSHCheck ends a session that waits under id.
func (c *Client) DenySSHCheck(ctx context.Context, id string) (*SSHCheck, error) {
	return c.decideSSHCheck(ctx, id, "deny")
}

func (c *Client) decideSSHCheck(ctx context.Context, text, what string) (*SSHCheck, error) {
	id, err := SSHCheckID(text)
	if err != nil {
		return nil, err
	}
	var out SSHCheckAnswer
	err = c.do(ctx, http.MethodPost, c.path("sshcheck", id, what), nil, &out)
	return out.SSHCheck, err
}
