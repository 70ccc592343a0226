// Package control is what a Tailscale client talks to.
//
// # The road of a client
//
//	GET  /key                         our Noise public key
//	POST /ts2021 (or WebSocket GET)   upgrade to Noise; inside it HTTP/2, with the machine key proven:
//	  POST /machine/register          join, log out, renew        → auth
//	  POST /machine/map Stream        the map session: a full map, then deltas and keep-alives
//	  POST /machine/map               "lite update": endpoints, disco key, Hostinfo → state.Update
//	  …                               what else a client may ask for; an honest answer to each
//
// The pages that people open are in package web.
//
// The machine key of the connection is the only identity here; whatever a body names must belong to it. State hangs on
// nodes, never on connections, because one client opens several.
//
// A map session is one goroutine, that of its request. It remembers the snapshot it sent last, waits for a newer one and
// takes the newest in one step, so a slow client skips revisions and no queue can overflow. All sessions are woken in rounds,
// which leave the others their time (rounds.go).
package control

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/mux"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/control/h2"
	"github.com/skein-vpn/skein/netmap"
	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// Options is what a Server is made of. All but the durations, Limits, Proxies and Log are required.
type Options struct {
	State     *state.State
	Auth      *auth.Auth
	Encoder   *netmap.Encoder
	NoiseKey  key.MachinePrivate
	ServerURL string // as clients reach us, without a slash at its end

	KeepAlive    time.Duration // between messages on an idle stream; 0: DefaultKeepAlive
	WriteTimeout time.Duration // for one message to a client; 0: DefaultWriteTimeout
	SilentAfter  time.Duration // a connection is cut when the client has not shown itself for this long; 0: DefaultSilentAfter
	OfflineAfter time.Duration // from the end of a map session to "offline"; 0: at once
	Probe        ProbeOptions
	Limits       Limits
	Proxies      []netip.Prefix // whose X-Forwarded-For is believed
	Log          *slog.Logger   // nil: slog.Default
}

// DefaultKeepAlive is the time between messages on an idle stream, to which up to 8 s are added at random. Clients give a
// stream up after 120 s of silence (controlclient.Direct.sendMapRequest's watchdog).
const DefaultKeepAlive = 50 * time.Second

// DefaultWriteTimeout is generous: a session that outlives it is dead, not slow.
const DefaultWriteTimeout = time.Minute

// DefaultSilentAfter bounds how long a machine that lost its power or its network counts as online. A client that has
// nothing to say is asked for a sign of life after three quarters of it, that is about as often as it gets a keep-alive.
// Without that the kernel would try to deliver the keep-alives for 15 minutes before it gives the connection up.
const DefaultSilentAfter = 70 * time.Second

// Server answers Tailscale clients.
type Server struct {
	o   Options
	log *slog.Logger

	ctx  context.Context // ends when the server shuts down
	stop context.CancelFunc
	wg   sync.WaitGroup // connections, timers, rounds and the prober

	handler   http.Handler // inside Noise connections
	h2        h2.Options
	limits    *limiter
	turns     chan struct{} // as many slots as full maps may be made at a time
	pings     *pings
	announced *announcements
	round     atomic.Pointer[round] // the one that is now
	atWork    atomic.Int64          // see work

	enteredMu sync.Mutex
	entered   []*mapSession // guarded by enteredMu: the map sessions that rounds look at

	counters Counters

	mu         sync.Mutex
	sessions   map[tailnet.NodeID]*mapSession      // guarded by mu: the stream of each node, one at a time
	forwarding map[tailnet.NodeID]bool             // guarded by mu: routers of which it is known whether they said that they forward no packets
	offline    map[tailnet.NodeID]*time.Timer      // guarded by mu: nodes whose stream has ended just now
	gone       map[key.MachinePublic]chan struct{} // guarded by mu: streams of nodes that do not exist, closed by a newer one
	closed     bool                                // guarded by mu
	era        context.Context                     // guarded by mu: of the connections; ends when the server steps aside
	endEra     context.CancelFunc                  // guarded by mu
	expected   map[tailnet.NodeID]bool             // guarded by mu: had a session when the server stepped aside; nil while it serves
}

// New returns a Server that runs until Close.
func New(o Options) *Server {
	if o.KeepAlive == 0 {
		o.KeepAlive = DefaultKeepAlive
	}
	if o.WriteTimeout == 0 {
		o.WriteTimeout = DefaultWriteTimeout
	}
	if o.SilentAfter == 0 {
		o.SilentAfter = DefaultSilentAfter
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	s := &Server{
		o: o, log: o.Log, limits: newLimiter(o.Limits), pings: newPings(), announced: newAnnouncements(), forwarding: map[tailnet.NodeID]bool{}, turns: make(chan struct{}, runtime.GOMAXPROCS(0)),
		sessions: map[tailnet.NodeID]*mapSession{}, offline: map[tailnet.NodeID]*time.Timer{},
		gone: map[key.MachinePublic]chan struct{}{},
	}
	s.ctx, s.stop = context.WithCancel(context.Background())
	s.era, s.endEra = context.WithCancel(s.ctx)
	s.handler = s.inner()
	s.h2 = h2.Options{
		MaxStreams: maxStreams, IdleTimeout: idleConnection, WriteTimeout: o.WriteTimeout, Grace: closeAfter,
		Counters: &s.counters.H2,
		ReadIdle: o.SilentAfter / 4 * 3, PingTimeout: o.SilentAfter / 4, // an HTTP/2 ping, answered by any client
		Log: o.Log,
	}
	sn := o.State.Snapshot()
	s.round.Store(newRound(sn.Seq))
	s.wg.Go(func() { s.runRounds(s.ctx, sn) })
	s.wg.Go(func() { s.probe(s.ctx) })
	s.wg.Go(func() { s.fetchServices(s.ctx) })
	return s
}

// Close ends all map sessions, so that clients connect again at once, and waits for them. Who was online stays so in the
// store: after a restart they are expected back.
func (s *Server) Close() {
	s.mu.Lock()
	s.closed = true
	for id, t := range s.offline {
		if t.Stop() {
			s.wg.Done()
		}
		delete(s.offline, id)
	}
	s.mu.Unlock()
	s.stop()
	s.wg.Wait()
}

// Mount adds the routes that clients use.
func (s *Server) Mount(r *mux.Router) {
	r.HandleFunc("/key", s.serveKey).Methods(http.MethodGet)
	r.HandleFunc("/ts2021", s.serveNoise).Methods(http.MethodPost, http.MethodGet)
}

// inner is the handler inside one Noise connection.
func (s *Server) inner() http.Handler {
	r := mux.NewRouter() // without subrouters: those answer a wrong method with 404
	r.HandleFunc("/machine/register", s.serveRegister).Methods(http.MethodPost)
	r.HandleFunc("/machine/map", s.serveMap).Methods(http.MethodPost)
	r.HandleFunc("/machine/ping/{id}", s.servePong).Methods(http.MethodPost, http.MethodHead)
	r.HandleFunc("/machine/whoami", s.serveWhoAmI).Methods(http.MethodGet)
	r.HandleFunc("/machine/feature/query", s.serveFeatureQuery).Methods(http.MethodPost)
	r.HandleFunc("/machine/audit-log", s.serveAuditLog).Methods(http.MethodPost)
	r.HandleFunc("/machine/update-health", s.serveUpdateHealth).Methods(http.MethodPost)
	r.HandleFunc("/machine/ssh/action/{src}/to/{dst}", s.serveSSHAction).Methods(http.MethodGet)
	for path, what := range map[string]string{
		"/set-dns":             "HTTPS certificates are not offered by this server",
		"/id-token":            "identity tokens are not offered by this server",
		"/set-device-attr":     "device attributes are not offered by this server",
		"/webclient/{rest:.*}": "checks for the web client are not offered by this server",
		"/tka/{rest:.*}":       "Tailnet Lock is not offered by this server",
	} {
		r.HandleFunc("/machine"+path, func(w http.ResponseWriter, r *http.Request) { http.Error(w, what, http.StatusNotImplemented) })
	}
	r.NotFoundHandler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, "there is nothing at this path", http.StatusNotFound)
	})
	return s.guard(r)
}

// guard logs a panic in h as the fault of ours that it is and ends the one request; net/http would hardly mention it.
func (s *Server) guard(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			if p := recover(); p != nil {
				s.log.Error("panic in a request", "remote", peerOf(r).remote, "err", p, "stack", string(debug.Stack()))
				panic(http.ErrAbortHandler)
			}
		}()
		h.ServeHTTP(w, r)
	})
}

// peer is who is at the other end of a Noise connection.
type peer struct {
	machine key.MachinePublic
	capver  tailcfg.CapabilityVersion // of the handshake
	remote  netip.Addr
}

type peerKey struct{}

// peerOf is the peer of the connection that r came in on.
func peerOf(r *http.Request) peer { return r.Context().Value(peerKey{}).(peer) }

// asClient is r's context with its machine, which calls itself name, as who acts in it, for the audit log.
func asClient(r *http.Request, name string) context.Context {
	p := peerOf(r)
	a := state.Actor{Kind: "client", Name: tailnet.CleanText(name), ID: p.machine.ShortString(), Origin: "client"}
	if p.remote.IsValid() {
		a.Remote = p.remote.String()
	}
	return state.WithActor(r.Context(), a)
}

// serveKey tells our Noise public key (tailcfg.OverTLSPublicKeyResponse). Clients from before 2022 ask without a version
// and want a key that we do not have.
func (s *Server) serveKey(w http.ResponseWriter, r *http.Request) {
	if r.FormValue("v") == "" {
		http.Error(w, "this client is too old: it needs a protocol that is no longer spoken (version parameter v missing)", http.StatusBadRequest)
		return
	}
	if s.refuseAside(w) {
		return
	}
	writeJSON(w, tailcfg.OverTLSPublicKeyResponse{PublicKey: s.o.NoiseKey.Public()})
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // the client is gone if it fails
}

// maxBody bounds what a client may post: a Hostinfo with the most routes we keep, several times over.
const maxBody = 1 << 20

// decode reads the JSON body of r into v, or answers the request and returns false.
func decode(w http.ResponseWriter, r *http.Request, v any) bool {
	err := decodeBody(http.MaxBytesReader(w, r.Body, maxBody), v)
	var tooLarge *http.MaxBytesError
	switch {
	case err == nil:
		return true
	case errors.As(err, &tooLarge):
		http.Error(w, "the body is larger than 1 MiB", http.StatusRequestEntityTooLarge)
	default:
		http.Error(w, "the body is not the JSON that is expected here: "+tailnet.CleanText(err.Error()), http.StatusBadRequest)
	}
	return false
}

func decodeBody(r io.Reader, v any) error {
	d := json.NewDecoder(r)
	if err := d.Decode(v); err != nil {
		return err
	}
	if d.More() {
		return errors.New("there is more than one value")
	}
	return nil
}

// httpStatus is the status for an error that is answered inside Noise.
func httpStatus(err error) int {
	switch tailnet.CodeOf(err) {
	case tailnet.Invalid:
		return http.StatusBadRequest
	case tailnet.NotFound:
		return http.StatusNotFound
	case tailnet.Conflict:
		return http.StatusConflict
	case tailnet.Denied:
		return http.StatusForbidden
	case tailnet.Exhausted:
		return http.StatusTooManyRequests
	case tailnet.Unavailable:
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

// fail answers with an error: its sentence if it has one for users, otherwise nothing but the status.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, doing string, err error) {
	var e *tailnet.Error
	if !errors.As(err, &e) {
		if r.Context().Err() != nil { // we are shutting down, or nobody waits for the answer
			http.Error(w, "the server is restarting", http.StatusServiceUnavailable)
			return
		}
		s.log.Error(doing+" failed", "remote", peerOf(r).remote, "err", err)
		http.Error(w, "internal error", http.StatusInternalServerError)
		return
	}
	if e.Cause != nil {
		s.log.Warn(doing+" failed", "remote", peerOf(r).remote, "err", e.Cause)
	}
	http.Error(w, e.Message, httpStatus(err))
}

// nodeOf is the node with the key k, which must belong to the machine of the connection; otherwise it answers the request
// and returns nil.
func (s *Server) nodeOf(w http.ResponseWriter, r *http.Request, k key.NodePublic) *state.Node {
	n := s.o.State.Snapshot().NodeByKey(k)
	if n == nil {
		http.Error(w, "this node is not registered", http.StatusNotFound)
		return nil
	}
	if n.MachineKey != peerOf(r).machine {
		s.counters.ForeignNodes.Add(1)
		s.log.Warn("a machine spoke for a node of another one", "node", n.ID, "remote", peerOf(r).remote)
		http.Error(w, "this node key belongs to another machine", http.StatusForbidden)
		return nil
	}
	return n
}

// Sessions is the number of open map sessions.
func (s *Server) Sessions() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.sessions)
}
