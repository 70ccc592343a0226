package control

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"runtime/debug"
	"time"

	"tailscale.com/control/controlhttp/controlhttpserver"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"

	"github.com/skein-vpn/skein/control/h2"
	"github.com/skein-vpn/skein/remote"
)

const (
	handshakeTimeout = 10 * time.Second // clients give up after about as long (ts2021.Client.dial)
	idleConnection   = 5 * time.Minute  // a Noise connection without a request is closed after this
	maxStreams       = 100              // requests at once on one connection
)

// serveNoise upgrades the connection to Noise and serves HTTP/2 inside it until it ends.
//
// After an upgrade the handler returns and the connection goes on by itself, because the goroutine of an HTTP/1 request
// holds some 20 KB of buffers that nobody needs any more. A WebSocket connection ends with its handler, so that one stays.
func (s *Server) serveNoise(w http.ResponseWriter, r *http.Request) {
	if s.refuseAside(w) {
		return
	}
	remote := remote.Addr(r, s.o.Proxies)
	if !s.limits.connect(remote) {
		s.counters.RefusedConns.Add(1)
		w.Header().Set("Retry-After", "10")
		http.Error(w, "too many connections from this address", http.StatusTooManyRequests)
		return
	}
	if !s.begin() {
		s.limits.disconnect(remote)
		w.Header().Set("Retry-After", "1")
		http.Error(w, "the server is shutting down", http.StatusServiceUnavailable)
		return
	}
	// A WebSocket connection lives by the context it was accepted with, so that only a late handshake ends it early.
	ctx, cancel := context.WithCancel(s.ctx)
	late := time.AfterFunc(handshakeTimeout, cancel)
	end := s.work()
	conn, err := s.accept(ctx, w, r)
	end()
	late.Stop()
	if r.Method != http.MethodGet {
		cancel() // it is of no use any more
	}
	serve := func() {
		defer s.wg.Done()
		defer s.limits.disconnect(remote)
		defer cancel()
		defer func() { // nothing above us recovers any more
			if p := recover(); p != nil {
				s.log.Error("panic in a connection", "remote", remote, "err", p, "stack", string(debug.Stack()))
			}
		}()
		if err == nil {
			s.counters.Handshakes.Add(1)
			s.counters.Connections.Add(1)
			defer s.counters.Connections.Add(-1)
			s.serveConn(conn, remote)
		}
	}
	switch {
	case err != nil:
		s.counters.BadHandshakes.Add(1)
		s.log.Debug("a Noise handshake failed", "remote", remote, "err", err)
		serve()
	case r.Method == http.MethodGet:
		serve()
	default:
		go serve() // s.wg waits for it
	}
}

// closeAfter is how long streams have to end in order when the server shuts down, before their connection is closed.
const closeAfter = 200 * time.Millisecond

// accept makes the Noise handshake that r begins. After an error r has been answered.
func (s *Server) accept(ctx context.Context, w http.ResponseWriter, r *http.Request) (noise, error) {
	hijacker, ok := w.(http.Hijacker)
	if !ok || r.Method == http.MethodGet {
		return controlhttpserver.AcceptHTTP(ctx, w, r, s.o.NoiseKey, nil)
	}
	g := &gatherer{ResponseWriter: w, Hijacker: hijacker}
	nc, err := controlhttpserver.AcceptHTTP(ctx, g, r, s.o.NoiseKey, nil)
	if err != nil {
		return nil, err
	}
	return &noiseConn{nc, g.conn}, nil
}

// noise is a Noise connection.
type noise interface {
	net.Conn
	Peer() key.MachinePublic
	ProtocolVersion() int
}

// serveConn serves HTTP/2 inside one Noise connection until that ends.
func (s *Server) serveConn(conn noise, remote netip.Addr) {
	// The base context ends with the server, or when that steps aside; each request's own context ends with its stream.
	era := s.current()
	if era == nil {
		conn.Close()
		return
	}
	ctx := context.WithValue(era, peerKey{}, peer{
		machine: conn.Peer(), capver: tailcfg.CapabilityVersion(conn.ProtocolVersion()), remote: remote,
	})
	if err := h2.Serve(ctx, conn, s.handler, s.h2); err != nil {
		s.log.Debug("a connection has ended", "remote", remote, "err", err)
	}
}

// begin counts one more connection, unless the server is shutting down; the caller must call wg.Done.
func (s *Server) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.wg.Add(1)
	return true
}
