package control

import (
	"context"
	"encoding/json"
	"slices"

	"tailscale.com/tailcfg"

	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// forwardingOff is what clients say in each of their map requests while they advertise routes and their system does not forward
// packets (tailcfg.MapRequest.DebugFlags, health.ipForwardingWarnable).
const forwardingOff = "warn-ip-forwarding-off"

// What the audit log says of it, when it changes.
const (
	actionForwardingOff = "node.ip_forwarding_off"
	actionForwardingOn  = "node.ip_forwarding_on"
)

// noteForwarding writes down when a router begins to say that it does not forward packets, and when it does again. What it said
// last is remembered; after a start, and where another server heard it, the audit log knows.
func (s *Server) noteForwarding(ctx context.Context, id tailnet.NodeID, req *tailcfg.MapRequest) {
	n := s.o.State.Snapshot().Node(id)
	if n == nil {
		return
	}
	off := slices.Contains(req.DebugFlags, forwardingOff) && len(n.AdvertisedRoutes()) > 0
	s.mu.Lock()
	was, known := s.forwarding[id]
	s.mu.Unlock()
	if known && was == off || !known && !off && len(n.AdvertisedRoutes()) == 0 {
		return
	}
	logged, err := s.loggedForwarding(ctx, id)
	if err == nil && logged != off {
		err = s.o.State.Update(state.WithActor(ctx, state.Actor{Kind: "client", Name: n.Name, ID: n.MachineKey.ShortString(), Origin: "client"}),
			"node reported itself", func(tx *state.Tx) error { tx.Audit(forwardingEntry(n, off)); return nil })
	}
	if err != nil {
		if ctx.Err() == nil {
			s.log.Error("it could not be written down whether a router forwards packets", "node", id, "err", err)
		}
		return
	}
	s.mu.Lock()
	s.forwarding[id] = off
	s.mu.Unlock()
}

// forwardingEntry says that n forwards no packets, or does again.
func forwardingEntry(n *state.Node, off bool) tailnet.AuditEntry {
	e := tailnet.AuditEntry{Action: actionForwardingOn, TargetKind: state.TargetNode, TargetID: n.ID.String(), Target: n.Name}
	if !off {
		return e
	}
	e.Action = actionForwardingOff
	var about struct {
		Subnets  bool `json:"subnets"`  // it advertises subnet routes
		ExitNode bool `json:"exitNode"` // it advertises itself as an exit node
	}
	for _, p := range n.AdvertisedRoutes() {
		about.ExitNode = about.ExitNode || tailnet.IsExitRoute(p)
		about.Subnets = about.Subnets || !tailnet.IsExitRoute(p)
	}
	e.After, _ = json.Marshal(about) // two bools
	return e
}

// loggedForwarding reports whether the last that the audit log has of a node is that it forwards no packets.
func (s *Server) loggedForwarding(ctx context.Context, id tailnet.NodeID) (off bool, err error) {
	var newest *tailnet.AuditEntry
	for _, action := range []string{actionForwardingOff, actionForwardingOn} {
		es, err := s.o.Auth.AuditLog(ctx, tailnet.AuditQuery{Target: state.TargetNode + ":" + id.String(), Action: action, Limit: 1})
		if err != nil {
			return false, err
		}
		if len(es) > 0 && (newest == nil || es[0].Rev > newest.Rev || es[0].Rev == newest.Rev && es[0].Seq > newest.Seq) {
			newest = es[0]
		}
	}
	return newest != nil && newest.Action == actionForwardingOff, nil
}
