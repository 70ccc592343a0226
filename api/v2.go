package api

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/gorilla/mux"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// The second face: /api/v2 in the shape of Tailscale's public API, so that its Go client, Terraform provider, gitops-pusher,
// get-authkey, Kubernetes operator and clients with an OAuth secret work unchanged. T is /tailnet/{tailnet}, where "-" is the
// tailnet of the credential.
//
//	v2device.go   T/devices, /device/{device}…           v2dns.go       T/dns/…
//	v2policy.go   T/acl…                                 v2user.go      T/users, /users/{user}…
//	v2key.go      T/keys…                                v2settings.go  T/settings, T/contacts
//	v2logging.go  T/logging/configuration                v2service.go   T/services…, T/vip-services…
//	v2webhook.go  T/webhooks, /webhooks/{endpoint}…      v2rest.go      what Skein does not have, which answers 501
//
// Rules of the wire, as those tools rely on them: every answer is JSON, 401, 404 and 405 among them (v2Error); bodies are read
// whatever their Content-Type says; ids are strings; unknown fields of requests are ignored, but a setting that Skein does not
// have is refused, never accepted and forgotten.

// PrefixV2 is where those operations are.
const PrefixV2 = "/api/v2"

// NewHandler answers the operations of both faces.
func NewHandler(o Options) http.Handler {
	v1, v2 := NewServer(o), NewV2Server(o)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, PrefixV2+"/") {
			v2.ServeHTTP(w, r)
			return
		}
		v1.ServeHTTP(w, r)
	})
}

// v2Error is a failure (APIError of the Go client). Terraform looks for "(412)" in what the client makes of it.
type v2Error struct {
	Message string        `json:"message"`
	Data    []v2ErrorData `json:"data,omitempty"`
	Status  int           `json:"status"`
}

// v2ErrorData is one group of faults of a policy.
type v2ErrorData struct {
	User     string   `json:"user"`
	Errors   []string `json:"errors"`
	Warnings []string `json:"warnings,omitempty"`
}

// unsupported is something that Tailscale's service has and Skein has not.
type unsupported struct{ what string }

func (e *unsupported) Error() string { return "Skein does not have " + e.what }

// NewV2Server answers the operations below PrefixV2, and everything else there with a 404. Its Options are those of NewServer.
func NewV2Server(o Options) http.Handler {
	s := newServer(o)
	return s.mount(PrefixV2, s.v2Routes(), s.serveV2, s.writeV2Error)
}

func (s *server) v2Routes() []route {
	return slices.Concat(s.v2DeviceRoutes(), s.v2PolicyRoutes(), s.v2KeyRoutes(), s.v2DNSRoutes(), s.v2SettingsRoutes(), s.v2UserRoutes(),
		s.v2ServiceRoutes(), s.v2WebhookRoutes(), s.v2ContactRoutes(), s.v2LoggingRoutes(), s.v2RestRoutes())
}

// plain is an answer that is not JSON of ours.
type plain struct {
	contentType string
	body        []byte
	etag        string // without quotes; empty: none
}

// tagged is an answer with an entity tag.
type tagged struct {
	value any
	etag  string // without quotes
}

// streamed is an answer that writes itself, because it may be long. It can fail only before it is returned.
type streamed func(http.ResponseWriter)

// serveV2 is serve with Tailscale's shapes.
func (s *server) serveV2(w http.ResponseWriter, r *http.Request, o op) {
	var v any
	err := s.checkTailnet(r)
	if err == nil {
		err = auth.PrincipalOf(r.Context()).Allow(o.scope)
	}
	if err == nil {
		v, err = o.do(r)
	}
	if err != nil {
		s.writeV2Error(w, r, err)
		return
	}
	switch a := v.(type) {
	case *plain:
		h := w.Header()
		h.Set("Content-Type", a.contentType)
		h.Set("Cache-Control", "no-store")
		h.Set("X-Content-Type-Options", "nosniff")
		if a.etag != "" {
			h.Set("ETag", `"`+a.etag+`"`)
		}
		w.WriteHeader(http.StatusOK)
		_, _ = w.Write(a.body)
	case streamed:
		a(w)
	case *tagged:
		w.Header().Set("ETag", `"`+a.etag+`"`)
		writeJSON(w, http.StatusOK, "application/json", a.value)
	default:
		writeJSON(w, http.StatusOK, "application/json", v)
	}
}

// checkTailnet returns nil if the path names the tailnet of the credential, or none.
func (s *server) checkTailnet(r *http.Request) error {
	if _, ok := mux.Vars(r)["tailnet"]; !ok {
		return nil
	}
	name, err := pathVar(r, "tailnet")
	if err != nil {
		return err
	}
	if own := s.State.Snapshot().Tailnet.Name; name != "-" && name != own {
		return tailnet.Errorf(tailnet.NotFound, "there is no tailnet %q; \"-\" stands for that of the key", clip(name))
	}
	return nil
}

func (s *server) writeV2Error(w http.ResponseWriter, r *http.Request, err error) {
	p := problemOf(err)
	out := v2Error{Message: p.Message, Status: p.Status}
	var (
		none *unsupported
		pe   *PolicyError
	)
	switch {
	case errors.As(err, &none):
		out.Message, out.Status = none.Error(), http.StatusNotImplemented
	case errors.As(err, &pe):
		out.Data = v2PolicyFaults(pe)
	case p.Status >= http.StatusInternalServerError:
		s.Log.Error("an API request failed", "method", r.Method, "path", r.URL.Path, "err", withCause(err))
	}
	writeJSON(w, out.Status, "application/json", out)
}

// readV2 is readJSON for an operation that needs a body.
func readV2(r *http.Request, v any) error {
	b, err := readBody(r)
	if err != nil {
		return err
	}
	if strings.TrimSpace(string(b)) == "" {
		return tailnet.Errorf(tailnet.Invalid, "the request has no body; a JSON object is asked for")
	}
	return decodeJSON(b, v)
}

// v2Time is t as Tailscale writes it; empty if there is none.
func v2Time(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}

// discard reads what an operation without a body was sent, so that the connection can be used again.
func discard(r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }

// v2Node is the node that the path names, by its stable id or its number.
func (s *server) v2Node(r *http.Request) (*state.Node, error) {
	ref, err := pathVar(r, "device")
	if err != nil {
		return nil, err
	}
	return v2NodeNamed(s.State.Snapshot(), ref)
}

// v2NodeNamed is the node with this stable id or number.
func v2NodeNamed(sn *state.Snapshot, ref string) (*state.Node, error) {
	for _, n := range sn.Nodes() {
		if n.StableID == ref {
			return n, nil
		}
	}
	if id, ok := Ref(ref).id(); ok {
		if n := sn.Node(tailnet.NodeID(id)); n != nil {
			return n, nil
		}
	}
	return nil, tailnet.Errorf(tailnet.NotFound, "there is no device %q", clip(ref))
}

// changeV2Node runs f on a copy of the node that the path names and stores it.
func (s *server) changeV2Node(r *http.Request, why string, f func(tx *state.Tx, n *tailnet.Node) (changed bool, err error)) (any, error) {
	found, err := s.v2Node(r)
	if err != nil {
		return nil, err
	}
	return Empty{}, s.updateNode(r, fmt.Sprintf("%s of node %s", why, found.ShortName()), found.ID, f)
}
