package control

import (
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/gorilla/mux"
	"tailscale.com/tailcfg"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// What clients ask for besides registration and maps, each with an honest answer.

// serveWhoAmI answers `tailscale debug ts2021`.
func (s *Server) serveWhoAmI(w http.ResponseWriter, r *http.Request) {
	p := peerOf(r)
	writeJSON(w, map[string]any{"MachineKey": p.machine, "Version": p.capver, "Remote": p.remote})
}

// serveFeatureQuery tells `tailscale serve` and `tailscale funnel` that HTTPS names need what this server does not have
// (tailcfg.QueryFeatureResponse).
func (s *Server) serveFeatureQuery(w http.ResponseWriter, r *http.Request) {
	var q tailcfg.QueryFeatureRequest
	if !decode(w, r, &q) || s.nodeOf(w, r, q.NodeKey) == nil {
		return
	}
	writeJSON(w, tailcfg.QueryFeatureResponse{
		Text: "This server does not offer HTTPS names for nodes, which " + q.Feature + " needs. Plain HTTP and TCP can be served.\n",
	})
}

// maxAuditDetails is how many bytes a client may say about one action.
const maxAuditDetails = 1024

// serveAuditLog takes what a client reports about its user's actions, such as why it was disconnected, into the audit log.
func (s *Server) serveAuditLog(w http.ResponseWriter, r *http.Request) {
	var q tailcfg.AuditLogRequest
	if !decode(w, r, &q) {
		return
	}
	n := s.nodeOf(w, r, q.NodeKey)
	if n == nil {
		return
	}
	if wait := s.limits.audits.Take(peerOf(r).remote, time.Now()); wait > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(wait.Seconds())+1))
		http.Error(w, "too many audit messages; try again later", http.StatusTooManyRequests)
		return
	}
	details := q.Details[:min(len(q.Details), maxAuditDetails)]
	said, err := json.Marshal(map[string]any{"details": strings.ToValidUTF8(details, ""), "clientTime": q.Timestamp})
	if err == nil {
		err = s.o.Auth.Note(asClient(r, n.Name), "client reported", tailnet.AuditEntry{
			Action: "client." + tailnet.CleanText(string(q.Action)), TargetKind: state.TargetNode, TargetID: n.ID.String(), Target: n.Name, After: said,
		})
	}
	if err != nil {
		s.fail(w, r, "an audit message", err) // the client tries again
		return
	}
	w.WriteHeader(http.StatusOK)
}

// serveUpdateHealth takes what clients up to 1.80 post about their health. It is read and forgotten.
func (s *Server) serveUpdateHealth(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, http.MaxBytesReader(w, r.Body, maxBody))
	w.WriteHeader(http.StatusNoContent)
}

// serveSSHAction answers a node that asks whether a session may go on that a rule of the policy wants to be confirmed
// (tailcfg.SSHAction.HoldAndDelegate). A question with the parameter
// check waits for a person. Whatever is not answered with 200 the node asks again, for half an hour.
func (s *Server) serveSSHAction(w http.ResponseWriter, r *http.Request) {
	src, errS := strconv.ParseInt(mux.Vars(r)["src"], 10, 64)
	dst, errD := strconv.ParseInt(mux.Vars(r)["dst"], 10, 64)
	if errS != nil || errD != nil {
		http.Error(w, "the ids of nodes are numbers", http.StatusBadRequest)
		return
	}
	if n := s.o.State.Snapshot().Node(tailnet.NodeID(dst)); n == nil || n.MachineKey != peerOf(r).machine {
		http.Error(w, "sessions on that node are the business of another machine", http.StatusForbidden)
		return
	}
	v := r.URL.Query()
	action, err := s.o.Auth.SSH(r.Context(), auth.SSHQuestion{
		Src: tailnet.NodeID(src), Dst: tailnet.NodeID(dst), SSHUser: v.Get("ssh_user"), LocalUser: v.Get("local_user"), Check: v.Get("check"),
	})
	if err != nil {
		s.fail(w, r, "the question of an SSH session", err)
		return
	}
	writeJSON(w, action)
}
