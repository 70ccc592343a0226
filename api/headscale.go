package api

import (
	"net/http"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/tailnet"
)

// Operations that headscale has under other names than we do, for user interfaces and scripts that were written for it. The others of
// its 29 stand with their nouns.

type (
	// AuthRequest names somebody or something that waits, by what is the last part of the URL that the client printed.
	AuthRequest struct {
		AuthID string `json:"authId" required:"false" example:"KEY"`
	}
	// AuthRegisterRequest lets a node in that waits.
	AuthRegisterRequest struct {
		User   Ref    `json:"user" required:"false" example:"anna"`
		AuthID string `json:"authId" required:"false" example:"KEY"`
	}
	// BackfillRequest must be confirmed.
	BackfillRequest struct {
		Confirmed bool `query:"confirmed"`
	}
	// BackfillAnswer tells which nodes got addresses.
	BackfillAnswer struct {
		Changes []string `json:"changes"` // always empty
	}
	// DebugNodeRequest would make a node that does not exist.
	DebugNodeRequest struct {
		User   Ref      `json:"user,omitempty"`
		Key    string   `json:"key,omitempty"`
		Name   string   `json:"name,omitempty"`
		Routes []string `json:"routes,omitempty"`
	}
)

func (s *server) headscaleOperations() []operation {
	change := auth.ScopeDevices
	return []operation{
		post("/auth/register", change, "lets a node in that waits, as headscale calls `/node/register`", s.authRegister),
		post("/auth/approve", change, "confirms an SSH session, as headscale calls `/sshcheck/{id}/approve`", s.authDecide(true)).failing(http.StatusNotFound),
		post("/auth/reject", change, "ends an SSH session, as headscale calls `/sshcheck/{id}/deny`", s.authDecide(false)).failing(http.StatusNotFound),
		post("/node/backfillips", change, "nothing: every node has its addresses from the start", s.backfill),
		post("/debug/node", change, "nothing but 501: Skein makes no nodes that do not exist", s.debugNode).failing(http.StatusNotImplemented),
	}
}

func (s *server) authRegister(r *http.Request, req *AuthRegisterRequest) (*NodeAnswer, error) {
	return s.registerNode(r, &RegisterNodeRequest{User: req.User, Key: req.AuthID})
}

func (s *server) authDecide(approve bool) func(*http.Request, *AuthRequest) (*Empty, error) {
	decide := s.Auth.DenySSH
	if approve {
		decide = s.Auth.ApproveSSH
	}
	return func(r *http.Request, req *AuthRequest) (*Empty, error) {
		if req.AuthID == "" {
			return nil, tailnet.Errorf(tailnet.Invalid, "no authId is given: it is the last part of the URL that the SSH client printed")
		}
		id, err := SSHCheckID(req.AuthID)
		if err != nil {
			return nil, err
		}
		_, err = decide(r.Context(), id, s.author(r, ""))
		return &Empty{}, err
	}
}

func (s *server) backfill(_ *http.Request, req *BackfillRequest) (*BackfillAnswer, error) {
	if !req.Confirmed {
		return nil, tailnet.Errorf(tailnet.Invalid, "it is not confirmed: add confirmed=true")
	}
	return &BackfillAnswer{Changes: []string{}}, nil
}

func (s *server) debugNode(*http.Request, *DebugNodeRequest) (*NodeAnswer, error) {
	return nil, &unsupported{"nodes that do not exist (debug/node)"}
}
