package derp

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"

	"tailscale.com/tailcfg"
)

// How a connection is admitted, in order:
//
//  1. serveRelay puts a session into the request's context; hijackWatcher notes the connection.
//  2. The library reads the client's key, checks its proof, and POSTs to the "verify URL" with the same context
//     (derpserver.go:verifyClient), through http.DefaultClient.
//  3. Our URL has a scheme of its own, which http.DefaultTransport hands to admission.RoundTrip: a function call, not a
//     connection. Nothing listens, so nothing else on this machine can ask or answer, and no port or secret is needed.
//  4. RoundTrip finds the session in the context and so knows which connection is asking: no guessing by address.
const (
	admissionScheme = "skein-derp-admission"
	admissionURL    = admissionScheme + "://this-process/"
)

var admissionOnce = sync.OnceValue(func() error {
	tr, ok := http.DefaultTransport.(*http.Transport)
	if !ok {
		return fmt.Errorf("derp: http.DefaultTransport is a %T, need *http.Transport to check relay clients", http.DefaultTransport)
	}
	tr.RegisterProtocol(admissionScheme, admission{})
	return nil
})

// registerAdmission makes the scheme known, once per process: all Servers share it.
func registerAdmission() error { return admissionOnce() }

type admission struct{}

// RoundTrip implements http.RoundTripper. An error means "refused" to the library too: failing open is not switched on.
func (admission) RoundTrip(req *http.Request) (*http.Response, error) {
	defer req.Body.Close()
	sess := sessionOf(req.Context())
	if sess == nil {
		return nil, errors.New("this address only answers the embedded relay")
	}
	k, err := readAdmitRequest(req.Body)
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(tailcfg.DERPAdmitClientResponse{Allow: sess.srv.decide(sess, k)})
	if err != nil {
		return nil, err
	}
	return &http.Response{
		Status:     "200 OK",
		StatusCode: http.StatusOK,
		Proto:      "HTTP/1.1",
		ProtoMajor: 1,
		ProtoMinor: 1,
		Header:     http.Header{"Content-Type": {"application/json"}},
		Body:       io.NopCloser(bytes.NewReader(body)),
		Request:    req,
	}, nil
}

// Hijack implements http.Hijacker.
func (w *hijackWatcher) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, brw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	s := w.sess.srv
	s.mu.Lock()
	closed := s.closed
	w.sess.conn = conn
	s.mu.Unlock()
	if closed { // Close has already walked the sessions
		closeNow(conn)
	}
	return conn, brw, nil
}
