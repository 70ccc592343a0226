package control

import (
	"context"
	"net/http"
	"time"

	"golang.org/x/net/http2"
	"tailscale.com/control/controlhttp/controlhttpserver"
	"tailscale.com/tailcfg"
)

const (
	handshakeTimeout = 10 * time.Second // clients give up after about as long (ts2021.Client.dial)
	idleConnection   = 5 * time.Minute  // a Noise connection without a request is closed after this
	maxStreams       = 100              // requests at once on one connection
)

// serveNoise upgrades the connection to Noise and serves HTTP/2 inside it until it ends.
func (s *Server) serveNoise(w http.ResponseWriter, r *http.Request) {
	remote := remoteAddr(r, s.o.Proxies)
	if !s.limits.connect(remote) {
		w.Header().Set("Retry-After", "10")
		http.Error(w, "too many connections from this address", http.StatusTooManyRequests)
		return
	}
	defer s.limits.disconnect(remote)
	if !s.begin() {
		w.Header().Set("Retry-After", "1")
		http.Error(w, "the server is shutting down", http.StatusServiceUnavailable)
		return
	}
	defer s.wg.Done()

	// A WebSocket connection lives by the context it was accepted with, so that only a late handshake ends it early.
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	late := time.AfterFunc(handshakeTimeout, cancel)
	conn, err := controlhttpserver.AcceptHTTP(ctx, w, r, s.o.NoiseKey, nil)
	late.Stop()
	if err != nil {
		s.log.Debug("a Noise handshake failed", "remote", remote, "err", err)
		return
	}
	defer conn.Close()

	// The base context ends with the server; each request's own context ends with its stream.
	ctx = context.WithValue(s.ctx, peerKey{}, peer{
		machine: conn.Peer(), capver: tailcfg.CapabilityVersion(conn.ProtocolVersion()), remote: remote,
	})
	done := make(chan struct{})
	defer close(done)
	s.wg.Add(1)
	go func() { // ends the connection when the server shuts down, after its streams had a moment to end
		defer s.wg.Done()
		select {
		case <-done:
		case <-s.ctx.Done():
			select {
			case <-done:
			case <-time.After(200 * time.Millisecond):
				conn.Close()
			}
		}
	}()
	// A stream's own deadline cannot end it while the connection takes no byte: its reset waits behind the blocked write.
	h2 := &http2.Server{
		MaxConcurrentStreams: maxStreams, IdleTimeout: idleConnection, WriteByteTimeout: s.o.WriteTimeout,
		ReadIdleTimeout: s.o.SilentAfter / 4 * 3, PingTimeout: s.o.SilentAfter / 4, // an HTTP/2 ping, answered by any client
	}
	h2.ServeConn(conn, &http2.ServeConnOpts{Context: ctx, Handler: s.handler, BaseConfig: &http.Server{ErrorLog: s.httpLog}})
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
