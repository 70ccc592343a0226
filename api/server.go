// Package api is the administration of a tailnet over HTTP: requests, answers, the server side and the client side of each
// operation, one file per noun. The command line and the web pages use nothing else, so that an action has one
// implementation and one set of error messages.
//
// # Shape
//
// Everything is below /api/v1 and speaks the JSON of headscale's v1 interface, so that user interfaces and scripts written
// for it work: keys in camelCase, ids as decimal strings (numbers are accepted), times in RFC 3339 or null, lists under a
// named key and never null, unknown keys ignored. What is ours stands beside it: routes, derp/map, version, login, sshcheck, what
// is below policy, and more keys in a node and in a policy.
//
// Each noun's file declares its operations (operation.go); docs/api.md lists all of them, and GET /api/v1/openapi.json describes them.
//
// {user} is an id or a name; {node} is an id, a MagicDNS name, an address or a stable id. An id wins over a name that looks
// like one.
//
// # Errors
//
// Every failure, unknown paths and wrong methods among them, is answered with a Problem. A failed call has changed nothing.
// A policy that is refused has its faults beside the sentence, with line and column; a change of a policy that is not any
// more what If-Match names fails with 412. The one place that knows HTTP statuses is problem.go; everybody else speaks tailnet.Error.
//
// # Who may call
//
// Every operation names a scope of auth. With a Gate, a request must bring an API key or an access token, and may do what the
// role of its user and the scopes of the key allow: 401 if it brings none, 403 if it may not, 429 after too many wrong ones. Without
// a Gate the handler asks for nothing and must be mounted on the unix socket only (ListenUnix), where the file's mode decides.
package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/gorilla/mux"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// Prefix is where the operations are.
const Prefix = "/api/v1"

// maxBody is how many bytes of a request are read at the most.
const maxBody = 1 << 20

// Options is what a server is made of. State and Auth are required.
type Options struct {
	State   *state.State
	Auth    Registrar
	Version string // as /version tells it

	// Accounts are the people who sign in on the web pages without a provider; nil: nobody can.
	Accounts Accounts

	Webhooks Webhooks // nil: none

	Gate *Gate // who may come in; nil: everybody, as over the unix socket

	// PolicyFile is where the policy is read from, if State has it from a file (state.Options.PolicyFromFile). It is not
	// changed then. Empty: it is in the database.
	PolicyFile string

	// SignIn says that people sign in by an identity provider: a policy may name their mail addresses before they first do.
	SignIn bool

	Events *Events // nil: nobody is told what happens

	Health func(ctx context.Context) []HealthCheck // whether the server is well; nil: always

	About  func() About // what the server says of itself; nil: nothing
	Netmap NetmapFunc   // nil: there are no maps

	// Cluster are the servers that share the database, without their Nodes; nil if there is one server.
	Cluster func(ctx context.Context) ([]ClusterServer, error)

	Now func() time.Time // nil: time.Now
	Log *slog.Logger     // nil: slog.Default
}

type server struct {
	Options
}

// handler answers one operation: with a value that is written as JSON, with an http.Handler that goes on by itself, or with an error that becomes a Problem.
type handler func(r *http.Request) (any, error)

// route is one path and what its methods do. The first path that matches path and method is taken.
type route struct {
	path    string
	methods ops
}

// ops are the operations at one path, by method.
type ops map[string]op

// op is one operation and the scope that it asks for (auth.Principal.Allow).
type op struct {
	scope string
	do    handler
}

func newServer(o Options) *server {
	if o.Health == nil {
		o.Health = func(context.Context) []HealthCheck { return nil }
	}
	if o.About == nil {
		o.About = func() About { return About{} }
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	return &server{o}
}

// NewServer answers the operations below Prefix, tells what they are (SpecPath, DocsPath), and answers everything else with a 404 in JSON.
func NewServer(o Options) http.Handler {
	s := newServer(o)
	return s.described(s.mount(Prefix, table(s.operations()), s.serve, s.writeError))
}

// mount answers routes, which are below prefix, by serve, and everything else by fail.
func (s *server) mount(prefix string, routes []route, serve func(http.ResponseWriter, *http.Request, op), fail errorWriter) http.Handler {
	// Names may contain what a path element must escape, such as the @ of a mail address: match the escaped path, and
	// unescape once (pathVar).
	m := mux.NewRouter().UseEncodedPath().SkipClean(true)
	for _, rt := range routes {
		methods := slices.Sorted(maps.Keys(rt.methods))
		m.HandleFunc(prefix+rt.path, func(w http.ResponseWriter, r *http.Request) { serve(w, r, rt.methods[r.Method]) }).Methods(methods...)
	}
	m.NotFoundHandler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fail(w, r, tailnet.Errorf(tailnet.NotFound, "there is nothing at %s", clip(r.URL.Path)))
	})
	m.MethodNotAllowedHandler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		allowed := s.methodsAt(m, r)
		w.Header().Set("Allow", strings.Join(allowed, ", "))
		fail(w, r, &methodError{method: r.Method, allowed: allowed})
	})
	return s.guard(s.enter(m, fail), fail)
}

// errorWriter answers a request that has failed.
type errorWriter func(w http.ResponseWriter, r *http.Request, err error)

// operations are those of v1.
func (s *server) operations() []operation {
	return slices.Concat(
		s.userOperations(),
		s.nodeOperations(),
		s.attributeOperations(),
		s.routeOperations(),
		s.serviceOperations(),
		s.preAuthKeyOperations(),
		s.apiKeyOperations(),
		s.oauthClientOperations(),
		s.loginOperations(),
		s.sshCheckOperations(),
		s.adminOperations(),
		s.policyOperations(),
		s.auditOperations(),
		s.eventOperations(),
		s.webhookOperations(),
		s.settingsOperations(),
		s.dnsOperations(),
		s.derpOperations(),
		s.clusterOperations(),
		s.healthOperations(),
		s.headscaleOperations(),
		s.statusOperations(),
		s.netmapOperations(),
	)
}

// methodsAt are the methods that r's path knows.
func (s *server) methodsAt(m *mux.Router, r *http.Request) (out []string) {
	for _, name := range []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete} {
		try := r.Clone(r.Context())
		try.Method = name
		var match mux.RouteMatch
		if m.Match(try, &match) && match.MatchErr == nil {
			out = append(out, name)
		}
	}
	return out
}

// bodyTimeout is how long a stranger may take to send a request.
const bodyTimeout = time.Minute

// enter is next behind the gate. What is not below Prefix needs no key: there is nothing.
func (s *server) enter(next http.Handler, fail errorWriter) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.Gate == nil {
			if auth.PrincipalOf(r.Context()) == nil { // not from within this process (NewLocalClient)
				r = local(r)
			}
			next.ServeHTTP(w, r)
			return
		}
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTimeout)) // an HTTP/2 stream may not know it
		in, err := s.Gate.Enter(w.Header(), r)
		if err != nil {
			fail(w, r, err)
			return
		}
		next.ServeHTTP(w, in)
	})
}

// guard bounds the body and turns a panic into an answer.
func (s *server) guard(next http.Handler, fail errorWriter) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			p := recover()
			if p == nil {
				return
			}
			if err, ok := p.(error); ok && errors.Is(err, http.ErrAbortHandler) {
				panic(p)
			}
			s.Log.Error("panic in an API handler", "err", p, "method", r.Method, "path", r.URL.Path, "stack", string(debug.Stack()))
			fail(w, r, fmt.Errorf("panic: %v", p))
		}()
		limit := int64(maxBody)
		if strings.HasPrefix(r.URL.Path, Prefix+"/policy") || strings.HasPrefix(r.URL.Path, PrefixV2) && strings.Contains(r.URL.Path, "/acl") {
			limit = maxPolicyBody
		}
		r.Body = http.MaxBytesReader(w, r.Body, limit)
		next.ServeHTTP(w, r)
	})
}

// serve runs o to its end before it writes anything, so that a failure is never half an answer.
func (s *server) serve(w http.ResponseWriter, r *http.Request, o op) {
	var v any
	err := auth.PrincipalOf(r.Context()).Allow(o.scope)
	if err == nil {
		v, err = o.do(r)
	}
	if err != nil {
		s.writeError(w, r, err)
		return
	}
	if stream, ok := v.(http.Handler); ok {
		stream.ServeHTTP(w, r)
		return
	}
	if h, ok := v.(interface{ header(http.Header) }); ok {
		h.header(w.Header())
	}
	writeJSON(w, http.StatusOK, "application/json", v)
}

// update is State.Update with the mark of who asked.
func (s *server) update(r *http.Request, why string, f func(*state.Tx) error) error {
	return s.State.Update(r.Context(), "administrator: "+why, f)
}

// pathVar is a variable of the path, unescaped.
func pathVar(r *http.Request, name string) (string, error) {
	v, err := url.PathUnescape(mux.Vars(r)[name])
	if err != nil {
		return "", tailnet.Errorf(tailnet.Invalid, "%q in the path is not escaped correctly", clip(mux.Vars(r)[name]))
	}
	return v, nil
}

// clip shortens foreign text for an error message.
func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}
