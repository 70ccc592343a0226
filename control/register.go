package control

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"tailscale.com/tailcfg"

	"github.com/skein-vpn/skein/tailnet"
)

// followupTimeout is how long a register request with a Followup waits for a person before it is answered with the same
// URL once more; proxies cut requests that take much longer.
const followupTimeout = 5 * time.Minute

// capverRetryAfter is the first version that honours 429 with Retry-After on register; older ones get the error as text.
const capverRetryAfter = 137

// serveRegister answers tailcfg.RegisterRequest.
func (s *Server) serveRegister(w http.ResponseWriter, r *http.Request) {
	var req tailcfg.RegisterRequest
	if !decode(w, r, &req) {
		return
	}
	p := peerOf(r)
	if wait := s.limits.register(p.remote); wait > 0 {
		s.counters.RefusedRegs.Add(1)
		if req.Version >= capverRetryAfter {
			w.Header().Set("Retry-After", strconv.Itoa(int(wait.Seconds())+1))
			http.Error(w, "too many registrations", http.StatusTooManyRequests)
		} else {
			writeJSON(w, tailcfg.RegisterResponse{Error: "too many registrations from this address; try again in a minute"})
		}
		return
	}
	end := s.work()
	hostname := ""
	if req.Hostinfo != nil {
		hostname = req.Hostinfo.Hostname
	}
	out, err := s.o.Auth.Register(asClient(r, hostname), p.machine, &req, p.remote.String())
	end()
	if err == nil && out.Login != "" && strings.HasSuffix(req.Followup, "/"+out.Login) {
		ctx, cancel := context.WithTimeout(r.Context(), followupTimeout)
		n, _ := s.o.Auth.Wait(ctx, req.NodeKey)
		cancel()
		if s.ctx.Err() != nil || s.current() == nil { // shutting down or aside: the client comes back with the same Followup
			http.Error(w, "the server is restarting", http.StatusServiceUnavailable)
			return
		}
		if n != nil && n.MachineKey == p.machine {
			out.Node = n
		}
	}
	switch {
	case err != nil:
		s.failRegister(w, r, err)
	case out.Node != nil:
		s.counters.Registrations.Add(1)
		s.log.Info("node registered", "node", out.Node.ID, "name", out.Node.Name, "remote", p.remote)
		writeJSON(w, s.registered(out.Node))
	case out.NewKey:
		writeJSON(w, tailcfg.RegisterResponse{NodeKeyExpired: true})
	case out.Login != "":
		writeJSON(w, tailcfg.RegisterResponse{AuthURL: s.o.ServerURL + "/register/" + out.Login})
	default: // logged out: anything but an Error will do
		writeJSON(w, tailcfg.RegisterResponse{})
	}
}

// registered is the answer to a node that is in. A client does not save its login without a LoginName.
func (s *Server) registered(n *tailnet.Node) tailcfg.RegisterResponse {
	sn := s.o.State.Snapshot()
	resp := tailcfg.RegisterResponse{MachineAuthorized: n.Authorized}
	if now := sn.Node(n.ID); now != nil {
		resp.MachineAuthorized = now.Approved
	}
	if u := sn.User(n.Owner()); u != nil {
		resp.User = tailcfg.User{ID: u.ID.Tailcfg(), DisplayName: u.Title(), ProfilePicURL: u.Picture, Created: u.Created}
		resp.Login = tailcfg.Login{ID: tailcfg.LoginID(u.ID), LoginName: u.LoginName(), DisplayName: u.Title(), ProfilePicURL: u.Picture}
	}
	return resp
}

// failRegister tells the client's user what is wrong (tailcfg.RegisterResponse.Error), or the client to try again.
func (s *Server) failRegister(w http.ResponseWriter, r *http.Request, err error) {
	var e *tailnet.Error
	if !errors.As(err, &e) || e.Code == tailnet.Unavailable || e.Code == tailnet.Internal {
		s.fail(w, r, "registration", err)
		return
	}
	s.counters.RejectedRegs.Add(1)
	s.log.Info("registration refused", "remote", peerOf(r).remote, "err", e.Message)
	writeJSON(w, tailcfg.RegisterResponse{Error: e.Message})
}
