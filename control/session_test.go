package control

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"tailscale.com/tailcfg"

	"github.com/skein-vpn/skein/netmap"
	"github.com/skein-vpn/skein/state"
)

// requestFrom is a request as it comes out of the Noise connection of a machine, for handlers without a network.
func (c *client) requestFrom(ctx context.Context, method, path, body string) *http.Request {
	r := httptest.NewRequestWithContext(ctx, method, "https://skein"+path, strings.NewReader(body))
	return r.WithContext(context.WithValue(r.Context(), peerKey{}, peer{
		machine: c.machine.Public(), capver: tailcfg.CurrentCapabilityVersion, remote: netip.MustParseAddr("192.0.2.1"),
	}))
}

// gate is a client to which nothing can be written before it opens.
type gate struct {
	*httptest.ResponseRecorder
	writing chan struct{} // closed at the first write
	open    chan struct{} // to be closed
}

func newGate() *gate {
	return &gate{httptest.NewRecorder(), make(chan struct{}), make(chan struct{})}
}

func (g *gate) SetWriteDeadline(time.Time) error { return nil }

func (g *gate) Write(p []byte) (int, error) {
	select {
	case <-g.writing:
	default:
		close(g.writing)
	}
	<-g.open
	return g.ResponseRecorder.Write(p)
}

// A stream whose first map was long on its way must not take a node online whose next stream has come and gone since.
func TestLateStreamIsNotOnline(t *testing.T) {
	ts := newServer(t, nil)
	a := ts.joined("alpha")
	n := ts.state.Snapshot().Node(a.id())
	late := newGate()
	done := make(chan struct{})
	go func() {
		defer close(done)
		ts.control.serveStream(late, a.requestFrom(ts.ctx, "POST", "/machine/map", ""), n, netmap.Viewer{Node: n.ID, Capver: 142, Compress: true})
	}()
	<-late.writing
	s := a.stream()
	s.first()
	ts.until("alpha is online", func(sn *state.Snapshot) bool { return sn.Node(n.ID).Online })
	s.close()
	ts.until("alpha is offline", func(sn *state.Snapshot) bool { return !sn.Node(n.ID).Online })
	close(late.open)
	<-done
	if ts.state.Snapshot().Node(n.ID).Online {
		t.Error("the node is online without a stream")
	}
	if ts.control.Sessions() != 0 {
		t.Error("there is a session")
	}
}

// A stream that a new key overtakes before it begins ends at once.
func TestStreamOfRenewedKey(t *testing.T) {
	ts := newServer(t, nil)
	a := ts.joined("alpha")
	n := ts.state.Snapshot().Node(a.id())
	stale := *n.Node
	stale.NodeKey = ts.newClient("other").node.Public()
	w := newGate()
	close(w.open)
	ts.control.serveStream(w, a.requestFrom(ts.ctx, "POST", "/machine/map", ""), &state.Node{Node: &stale},
		netmap.Viewer{Node: n.ID, Capver: 142, Compress: true})
	if w.Body.Len() != 0 || ts.state.Snapshot().Node(n.ID).Online {
		t.Errorf("it was sent %d bytes; online: %v", w.Body.Len(), ts.state.Snapshot().Node(n.ID).Online)
	}
}

// A panic costs one request and is in the log.
func TestGuard(t *testing.T) {
	ts := newServer(t, nil)
	ts.log.allow = []string{"panic in a request"}
	a := ts.newClient("alpha")
	defer func() {
		if err, _ := recover().(error); !errors.Is(err, http.ErrAbortHandler) {
			t.Errorf("recovered %v", err)
		}
		if !ts.log.contains("panic in a request") || !ts.log.contains("TestGuard") {
			t.Error("the panic and its stack are not in the log")
		}
	}()
	ts.control.guard(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("oops") })).
		ServeHTTP(httptest.NewRecorder(), a.requestFrom(ts.ctx, "GET", "/", ""))
}
