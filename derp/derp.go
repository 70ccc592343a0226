// Package derp is Skein's own relay, and the list of all relays that clients are told of.
//
// Words. A DERP relay passes WireGuard packets between two nodes that find no direct path; it sees ciphertext only. STUN tells
// a node which address the outside sees. A DERP map lists regions, each with the relays (DERP nodes) that serve it. The
// embedded region is the one this process serves itself.
//
// What lives where:
//
//	derp.go      Server: the relay over HTTP, its key, who may use it, how a removed node is cut off
//	key.go       the private key's file
//	admit.go     how the relay library is made to ask us about a node key
//	mesh.go      connections to the relays of other servers
//	stun.go      STUN on its own UDP socket
//	listener.go  one TCP port for plain HTTP and TLS, told apart by the first byte
//	cert.go      the certificate of the TLS side, self-signed when there is no better one
//	region.go    the embedded region, and the two spellings of a map for newer and older clients
//	parse.go     a DERP map as YAML or JSON, checked
//	sources.go   files, URLs and the embedded region merged into the current map; refresh
//	trap.go      what clients do on port 443 of a server with an http:// address
//	bootstrap.go name look-up for clients whose own DNS is broken
//
// Invariants. Only node keys that Options.Admit allows get past the relay's handshake, and CloseNode ends what is already
// connected. The private key and the certificate are written once, mode 0600, never half. Every goroutine belongs to a value
// with a Close (STUN, Server) or to a Run that ends with its context (Sources). A published Maps is never changed.
//
// Left to others: listening on TCP and running the http.Server (cmd), choosing a DERP map for a client and putting it on the
// wire (netmap), knowing which nodes are registered (state, by way of Options.Admit).
package derp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"expvar"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"tailscale.com/derp/derpserver"
	"tailscale.com/metrics"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// Paths are the request paths that Server.Handler answers; mount it at each of them.
var Paths = []string{"/derp", "/derp/probe", "/derp/latency-check", "/generate_204", "/bootstrap-dns"}

// Options is what a Server needs to know.
type Options struct {
	// KeyPath is the file with the relay's private key ("privkey:" and 64 hex digits). It is created, mode 0600, when it does
	// not exist. Required.
	KeyPath string

	// Admit reports whether the holder of a node key may use the relay. It is asked once per connection, after the client has
	// proven that it owns the key, and must answer from memory. Nil admits everybody.
	Admit func(key.NodePublic) bool

	// Bootstrap answers /bootstrap-dns. Nil knows no names.
	Bootstrap *Bootstrap

	// Log receives the relay's own messages at debug level. Nil discards them.
	Log *slog.Logger
}

// Server is the embedded relay. It does not listen: mount Handler in an HTTP/1.1 server, because a relay session takes the
// connection over.
type Server struct {
	relay     *derpserver.Server
	http      http.Handler                        // the relay's own handler, WebSocket included
	vars      interface{ Get(string) expvar.Var } // the relay's own counters
	admit     func(key.NodePublic) bool
	bootstrap *Bootstrap
	log       *slog.Logger

	refused atomic.Int64
	cut     atomic.Int64

	running sync.WaitGroup // one for each session; waited for by Close
	mesh    mesh

	mu       sync.Mutex
	closed   bool
	sessions map[*session]struct{}
	byKey    map[key.NodePublic]map[*session]struct{} // sessions that have proven a key
}

// session is one connection on its way through the relay.
//
//	request ──Hijack──► conn known ──key proven──► admitted ──conn ends──► gone
//	                                     └─ refused ─────────────────────► gone
type session struct {
	srv *Server

	// Guarded by srv.mu.
	conn net.Conn       // nil before Hijack
	key  key.NodePublic // zero before admission
}

// Stats are the relay's counters, for metrics.
type Stats struct {
	Sessions int   // connections at present, those not admitted yet included
	Nodes    int   // distinct node keys connected at present
	Refused  int64 // handshakes refused since the start because Admit said no
	Cut      int64 // connections ended by CloseNode or Recheck since the start

	// What the relay itself has counted since the start. Dropped is that of all relays in this process.
	PacketsReceived, PacketsSent, PacketsDropped int64
	BytesReceived, BytesSent                     int64
}

// New reads or makes the relay's key and returns a relay ready to serve.
func New(o Options) (*Server, error) {
	if o.KeyPath == "" {
		return nil, errors.New("derp: no path given for the relay's private key")
	}
	priv, err := loadOrMakeKey(o.KeyPath)
	if err != nil {
		return nil, err
	}
	if err := registerAdmission(); err != nil {
		return nil, err
	}
	s := &Server{
		admit:     o.Admit,
		bootstrap: o.Bootstrap,
		log:       o.Log,
		sessions:  map[*session]struct{}{},
		byKey:     map[key.NodePublic]map[*session]struct{}{},
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.relay = derpserver.New(priv, func(format string, args ...any) {
		s.log.Debug("relay: " + strings.TrimSpace(fmt.Sprintf(format, args...)))
	})
	s.relay.SetVerifyClientURL(admissionURL)
	s.vars = s.relay.ExpVar(false).(*metrics.Set) //nolint:forcetypeassert // as it is documented
	s.http = derpserver.AddWebSocketSupport(s.relay, derpserver.Handler(s.relay))
	return s, nil
}

// PublicKey is the relay's identity. Clients learn it when they connect.
func (s *Server) PublicKey() key.NodePublic { return s.relay.PublicKey() }

// Handler answers the requests of Paths and 404 to anything else.
func (s *Server) Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/derp":
			s.serveRelay(w, r)
		case "/derp/probe", "/derp/latency-check":
			derpserver.ProbeHandler(w, r)
		case "/generate_204":
			derpserver.ServeNoContent(w, r)
		case "/bootstrap-dns":
			s.bootstrap.ServeHTTP(w, r)
		default:
			http.NotFound(w, r)
		}
	})
}

// serveRelay runs one relay session and returns when it has ended.
func (s *Server) serveRelay(w http.ResponseWriter, r *http.Request) {
	switch up := strings.ToLower(r.Header.Get("Upgrade")); {
	case r.Method != http.MethodGet:
		w.Header().Set("Allow", "GET")
		http.Error(w, "the relay is opened with GET", http.StatusMethodNotAllowed)
		return
	case up != "derp" && up != "websocket":
		w.Header().Set("Upgrade", "DERP")
		http.Error(w, "this is a DERP relay: it needs a connection upgrade", http.StatusUpgradeRequired)
		return
	case r.ProtoMajor != 1:
		http.Error(w, "the relay needs HTTP/1.1", http.StatusHTTPVersionNotSupported)
		return
	}
	sess := &session{srv: s}
	if !s.begin(sess) {
		http.Error(w, "the relay is shutting down", http.StatusServiceUnavailable)
		return
	}
	defer s.end(sess)
	s.http.ServeHTTP(&hijackWatcher{w, sess}, r.WithContext(withSession(r.Context(), sess)))
}

// begin reports false once the server is closed.
func (s *Server) begin(sess *session) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.sessions[sess] = struct{}{}
	s.running.Add(1)
	return true
}

func (s *Server) end(sess *session) {
	s.mu.Lock()
	delete(s.sessions, sess)
	if set := s.byKey[sess.key]; set != nil {
		delete(set, sess)
		if len(set) == 0 {
			delete(s.byKey, sess.key)
		}
	}
	s.mu.Unlock()
	s.running.Done()
}

// decide answers for one session whether the owner of k may use the relay.
//
// The session is filed under its key before Admit is asked. So when a node is removed (Admit turns false, then CloseNode runs),
// either this decision is already a refusal, or CloseNode finds the session: no order of events lets one slip through.
func (s *Server) decide(sess *session, k key.NodePublic) bool {
	s.mu.Lock()
	if s.closed || !sess.key.IsZero() {
		s.mu.Unlock()
		return false
	}
	sess.key = k
	if s.byKey[k] == nil {
		s.byKey[k] = map[*session]struct{}{}
	}
	s.byKey[k][sess] = struct{}{}
	s.mu.Unlock()

	if s.admit == nil || s.admit(k) {
		return true
	}
	s.refused.Add(1)
	return false
}

// CloseNode ends every relay session of a node key and returns how many there were. Call it once Admit refuses the key.
func (s *Server) CloseNode(k key.NodePublic) int {
	return s.cutKeys(func(other key.NodePublic) bool { return other == k })
}

// Recheck asks Admit about every connected node again and ends the sessions of those it refuses now. It returns how many
// connections were ended. The cost is one question per connected node.
func (s *Server) Recheck() int {
	if s.admit == nil {
		return 0
	}
	s.mu.Lock()
	keys := make([]key.NodePublic, 0, len(s.byKey))
	for k := range s.byKey {
		keys = append(keys, k)
	}
	s.mu.Unlock()
	gone := map[key.NodePublic]bool{}
	for _, k := range keys {
		if !s.admit(k) { // outside the lock: Admit is not ours
			gone[k] = true
		}
	}
	if len(gone) == 0 {
		return 0
	}
	return s.cutKeys(func(k key.NodePublic) bool { return gone[k] })
}

func (s *Server) cutKeys(match func(key.NodePublic) bool) int {
	var conns []net.Conn
	s.mu.Lock()
	for k, set := range s.byKey {
		if match(k) {
			for sess := range set {
				conns = append(conns, sess.conn)
			}
		}
	}
	s.mu.Unlock()
	for _, c := range conns {
		closeNow(c)
	}
	s.cut.Add(int64(len(conns)))
	return len(conns)
}

// Stats returns the counters as they stand.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	out := Stats{Sessions: len(s.sessions), Nodes: len(s.byKey), Refused: s.refused.Load(), Cut: s.cut.Load()}
	s.mu.Unlock()
	for name, p := range map[string]*int64{
		"packets_received": &out.PacketsReceived, "packets_sent": &out.PacketsSent,
		"bytes_received": &out.BytesReceived, "bytes_sent": &out.BytesSent,
	} {
		if v := s.vars.Get(name); v != nil {
			*p, _ = strconv.ParseInt(v.String(), 10, 64)
		}
	}
	out.PacketsDropped = packetsDropped()
	return out
}

// packetsDropped is what the relay library counts by reason and kind, added up.
func packetsDropped() (sum int64) {
	v, ok := expvar.Get("derp_packets_dropped").(interface{ WritePrometheus(io.Writer, string) })
	if !ok {
		return 0
	}
	var text bytes.Buffer
	v.WritePrometheus(&text, "dropped")
	for line := range strings.Lines(text.String()) {
		if _, value, ok := strings.Cut(line, "} "); ok {
			n, _ := strconv.ParseInt(strings.TrimSpace(value), 10, 64)
			sum += n
		}
	}
	return sum
}

// Close ends all relay sessions and waits until their goroutines are gone. New ones are refused with 503.
func (s *Server) Close() error {
	var conns []net.Conn
	s.mu.Lock()
	s.closed = true
	for sess := range s.sessions {
		if sess.conn != nil {
			conns = append(conns, sess.conn)
		}
	}
	s.mu.Unlock()
	for _, c := range conns {
		closeNow(c)
	}
	s.Mesh(nil)
	err := s.relay.Close()
	s.running.Wait()
	s.mesh.wg.Wait()
	return err
}

// hijackWatcher notes the connection that the relay takes over.
type hijackWatcher struct {
	http.ResponseWriter
	sess *session
}

func (w *hijackWatcher) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// closeNow ends a connection without TLS's farewell, which would wait up to 5 s for a peer that does not read.
func closeNow(c net.Conn) {
	for {
		inner, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		c = inner.NetConn()
	}
	c.Close()
}

// VerifyHandler lets relays elsewhere ask whether a node key is registered here, in the form that Tailscale's derper sends
// (--verify-client-url): POST tailcfg.DERPAdmitClientRequest, answered by tailcfg.DERPAdmitClientResponse. The request carries
// no credential; a stranger can only test keys it already knows.
func VerifyHandler(admit func(key.NodePublic) bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			w.Header().Set("Allow", "POST")
			http.Error(w, "send a POST with the node key to check", http.StatusMethodNotAllowed)
			return
		}
		k, err := readAdmitRequest(r.Body)
		if err != nil {
			http.Error(w, "the body must be {\"NodePublic\":\"nodekey:…\",\"Source\":\"address\"}", http.StatusBadRequest)
			return
		}
		writeJSON(w, tailcfg.DERPAdmitClientResponse{Allow: admit(k)})
	})
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // fails only if the asker has gone
}

// readAdmitRequest reads at most 4 KiB.
func readAdmitRequest(body io.Reader) (key.NodePublic, error) {
	var req tailcfg.DERPAdmitClientRequest
	if err := json.NewDecoder(io.LimitReader(body, 4<<10)).Decode(&req); err != nil {
		return key.NodePublic{}, err
	}
	if req.NodePublic.IsZero() {
		return key.NodePublic{}, errors.New("no node key")
	}
	return req.NodePublic, nil
}

type sessionKey struct{}

func withSession(ctx context.Context, sess *session) context.Context {
	return context.WithValue(ctx, sessionKey{}, sess)
}

func sessionOf(ctx context.Context) *session {
	sess, _ := ctx.Value(sessionKey{}).(*session)
	return sess
}
