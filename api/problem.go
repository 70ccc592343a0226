package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/skein-vpn/skein/tailnet"
)

// Problem is the body of every failed answer. It is two shapes in one: what grpc-gateway writes (code, message, details),
// which tools for headscale read, and RFC 9457 (title, status, detail).
type Problem struct {
	Code    int    `json:"code"` // of gRPC: google.rpc.Code
	Message string `json:"message"`
	Details []any  `json:"details"` // always empty

	Title  string       `json:"title"`  // says the same for all failures of a kind
	Status int          `json:"status"` // of HTTP
	Detail string       `json:"detail"` // the same as Message
	Reason tailnet.Code `json:"reason"` // what the failure is to us

	Faults []PolicyFault `json:"faults,omitempty"` // of a policy that is refused
}

// kind is how one tailnet.Code looks outside.
type kind struct {
	status int
	grpc   int
	title  string
}

// kinds is the one place that knows which failure is which HTTP status.
//
// Exhausted is 429, although waiting alone will not help: gRPC's RESOURCE_EXHAUSTED is mapped so, and tools know it.
var kinds = map[tailnet.Code]kind{
	tailnet.Invalid:         {http.StatusBadRequest, 3, "The request is not valid"},
	tailnet.NotFound:        {http.StatusNotFound, 5, "No such thing"},
	tailnet.Conflict:        {http.StatusConflict, 6, "The request contradicts what exists"},
	tailnet.Denied:          {http.StatusForbidden, 7, "Not allowed"},
	tailnet.Unauthenticated: {http.StatusUnauthorized, 16, "Who calls is not known"},
	tailnet.Exhausted:       {http.StatusTooManyRequests, 8, "A limit is reached"},
	tailnet.Unavailable:     {http.StatusServiceUnavailable, 14, "Not possible at the moment"},
	tailnet.Internal:        {http.StatusInternalServerError, 13, "The server failed"},
}

// methodError is a path asked with a method that it does not know.
type methodError struct {
	method  string
	allowed []string
}

func (e *methodError) Error() string {
	return fmt.Sprintf("%s is not possible here, only %s", e.method, strings.Join(e.allowed, ", "))
}

// preconditionError is a change of something that is not any more what the caller wanted to change (If-Match).
type preconditionError struct{ message string }

func (e *preconditionError) Error() string { return e.message }

// problemOf is how err looks outside. The cause of an internal failure is not told.
func problemOf(err error) Problem {
	var (
		te *tailnet.Error
		me *methodError
		be *http.MaxBytesError
		pe *preconditionError
		fe *PolicyError

		no     *unsupported
		faults []PolicyFault
	)
	code, msg, k := tailnet.Internal, "the server failed; its log says why", kinds[tailnet.Internal]
	switch {
	case errors.As(err, &no):
		code, msg = tailnet.Invalid, no.Error()
		k = kind{http.StatusNotImplemented, 12, "Not part of Skein"}
	case errors.As(err, &me):
		code, msg = tailnet.Invalid, me.Error()
		k = kind{http.StatusMethodNotAllowed, 12, "Wrong method"}
	case errors.As(err, &pe):
		code, msg = tailnet.Conflict, pe.message
		k = kind{http.StatusPreconditionFailed, 9, "It has changed meanwhile"}
	case errors.As(err, &fe):
		code, msg, faults = tailnet.Invalid, fe.Message, fe.Faults
		k = kinds[code]
	case errors.As(err, &be):
		code, msg = tailnet.Invalid, fmt.Sprintf("the request is larger than %d bytes", be.Limit)
		k = kind{http.StatusRequestEntityTooLarge, 3, "The request is too large"}
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		code, msg = tailnet.Unavailable, "the request was given up before it was done"
		k = kinds[code]
	case errors.As(err, &te):
		if known, ok := kinds[te.Code]; ok && te.Code != tailnet.Internal {
			code, msg, k = te.Code, te.Message, known
		}
	}
	return Problem{Code: k.grpc, Message: msg, Details: []any{}, Title: k.title, Status: k.status, Detail: msg, Reason: code, Faults: faults}
}

func (s *server) writeError(w http.ResponseWriter, r *http.Request, err error) {
	p := problemOf(err)
	if p.Status >= http.StatusInternalServerError && p.Status != http.StatusNotImplemented {
		s.Log.Error("an API request failed", "method", r.Method, "path", r.URL.Path, "err", withCause(err))
	}
	writeJSON(w, p.Status, "application/problem+json", p)
}

// withCause is err for the log: a tailnet.Error keeps its cause out of its sentence.
func withCause(err error) string {
	var te *tailnet.Error
	if errors.As(err, &te) && te.Cause != nil && !strings.Contains(err.Error(), te.Cause.Error()) {
		return err.Error() + ": " + te.Cause.Error()
	}
	return err.Error()
}

// writeJSON answers with v. Angle brackets are left as they are: nobody reads this as HTML.
func writeJSON(w http.ResponseWriter, status int, contentType string, v any) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		panic(fmt.Sprintf("answer %T cannot be written as JSON: %v", v, err)) // a mistake of ours; guard answers it
	}
	h := w.Header()
	h.Set("Content-Type", contentType)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = w.Write(b.Bytes()) // a caller who has gone does not hear of it anyhow
}
