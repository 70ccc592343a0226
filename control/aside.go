package control

import (
	"context"
	"net/http"
	"time"

	"github.com/skein-vpn/skein/tailnet"
)

// A server of several that does not reach the database any more must not go on with what may not be so any longer. It steps aside:
// all connections end, new ones are refused, and clients find another server. When it is back it takes clients again.
//
//	serving ──StepAside──► aside ──Return──► serving … grace … nodes that did not come back here, nor elsewhere, are offline

// StepAside ends all map sessions and connections and refuses new ones until Return. Who was online stays so for the moment.
func (s *Server) StepAside() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.asideSince() {
		return
	}
	s.expected = map[tailnet.NodeID]bool{}
	for id := range s.sessions {
		s.expected[id] = true
	}
	for id := range s.offline {
		s.stopOfflineLocked(id)
		s.expected[id] = true
	}
	s.endEra()
}

// Return takes clients again. Nodes that had a session here before and have none after grace are offline, unless they have one at
// another server.
func (s *Server) Return(grace time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || !s.asideSince() {
		return
	}
	s.era, s.endEra = context.WithCancel(s.ctx)
	gone := s.expected
	s.expected = nil
	s.wg.Go(func() {
		select {
		case <-time.After(grace):
		case <-s.ctx.Done():
			return
		}
		for id := range gone {
			s.wentOffline(id)
		}
	})
}

// asideSince reports whether the server has stepped aside. s.mu must be held.
func (s *Server) asideSince() bool { return s.expected != nil }

// current is the context that ends when the server steps aside or shuts down; nil while it is aside.
func (s *Server) current() context.Context {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.asideSince() {
		return nil
	}
	return s.era
}

// refuseAside answers a client of a server that has stepped aside; it reports whether it is one.
func (s *Server) refuseAside(w http.ResponseWriter) bool {
	if s.current() != nil {
		return false
	}
	w.Header().Set("Retry-After", "5")
	http.Error(w, "this server has lost its database; another one will serve you", http.StatusServiceUnavailable)
	return true
}
