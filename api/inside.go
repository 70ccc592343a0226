package api

import (
	"bytes"
	"io"
	"net/http"
)

// NewLocalClient calls the operations of h, a server of this process without a Gate, for who is named in the context of each call
// (auth.WithPrincipal).
func NewLocalClient(h http.Handler) *Client {
	return &Client{http: &http.Client{Timeout: requestTimeout, Transport: inside{h}}, base: "http://skein", name: "this process"}
}

// inside is a transport to a handler in this process.
type inside struct{ h http.Handler }

func (t inside) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body == nil {
		r = r.Clone(r.Context())
		r.Body = http.NoBody
	}
	a := &insideAnswer{status: http.StatusOK, header: http.Header{}}
	t.h.ServeHTTP(a, r)
	return &http.Response{StatusCode: a.status, Header: a.header, Body: io.NopCloser(&a.body), Request: r}, nil
}

// insideAnswer is an http.ResponseWriter.
type insideAnswer struct {
	status int
	header http.Header
	body   bytes.Buffer
}

func (a *insideAnswer) Header() http.Header         { return a.header }
func (a *insideAnswer) WriteHeader(status int)      { a.status = status }
func (a *insideAnswer) Write(b []byte) (int, error) { return a.body.Write(b) }
