package sim

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"tailscale.com/control/controlhttp/controlhttpserver"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// fake is a coordination server of the simplest kind: it answers each change with a whole new map, and it can be told to
// do things wrong.
type fake struct {
	refuse string // registrations are answered with this error
	early  bool   // an early payload comes before HTTP/2
	busy   bool   // every other connection is refused with 503
	deaf   bool   // nothing is sent after the first map
	mirror bool   // nodes are sent themselves as peers
	drop   bool   // streams end after the first map
	split  bool   // nodes with even ids and nodes with odd ids do not see each other
	forget bool   // the first map says that the node's key has expired

	key key.MachinePrivate
	t   *testing.T

	mu      sync.Mutex
	dials   int
	nodes   []*tailcfg.Node
	changed chan struct{} // closed at each change
}

// start returns the server's URL. It ends with the test.
func (f *fake) start(t *testing.T) string {
	f.key, f.changed, f.t = key.NewMachine(), make(chan struct{}), t
	mux := http.NewServeMux()
	mux.HandleFunc("/key", func(w http.ResponseWriter, r *http.Request) {
		_ = json.NewEncoder(w).Encode(tailcfg.OverTLSPublicKeyResponse{PublicKey: f.key.Public()})
	})
	mux.HandleFunc("/ts2021", f.noise)
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return s.URL
}

func (f *fake) noise(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	f.dials++
	refused := f.busy && f.dials%2 == 1
	f.mu.Unlock()
	if refused {
		http.Error(w, "busy", http.StatusServiceUnavailable)
		return
	}
	var early func(int, io.Writer) error
	if f.early {
		early = func(_ int, w io.Writer) error {
			_, err := w.Write(append(binary.BigEndian.AppendUint32([]byte(earlyPayload), 2), "{}"...))
			return err
		}
	}
	conn, err := controlhttpserver.AcceptHTTP(r.Context(), w, r, f.key, early)
	if err != nil {
		return
	}
	defer conn.Close()
	new(http2.Server).ServeConn(conn, &http2.ServeConnOpts{Handler: http.HandlerFunc(f.machine), BaseConfig: &http.Server{ErrorLog: log.New(io.Discard, "", 0)}})
}

func (f *fake) machine(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/machine/register" {
		var req tailcfg.RegisterRequest
		_ = json.NewDecoder(r.Body).Decode(&req)
		f.mu.Lock()
		defer f.mu.Unlock()
		if req.Expiry.IsZero() && f.refuse == "" {
			online := false
			f.nodes = append(slices.Clone(f.nodes), &tailcfg.Node{ID: tailcfg.NodeID(len(f.nodes) + 1), Key: req.NodeKey, Online: &online})
		}
		_ = json.NewEncoder(w).Encode(tailcfg.RegisterResponse{Error: f.refuse, MachineAuthorized: true})
		return
	}
	var req tailcfg.MapRequest
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		return
	}
	online := true
	if !req.Stream {
		f.update(req.NodeKey, func(n *tailcfg.Node) { n.Endpoints, n.DiscoKey = req.Endpoints, req.DiscoKey })
		return
	}
	f.update(req.NodeKey, func(n *tailcfg.Node) { n.Online = &online })
	for ever := true; ever; ever = !f.drop {
		f.mu.Lock()
		nodes, changed := f.nodes, f.changed
		f.mu.Unlock()
		var m tailcfg.MapResponse
		self := nodes[slices.IndexFunc(nodes, func(n *tailcfg.Node) bool { return n.Key == req.NodeKey })].ID
		for _, n := range nodes {
			if f.split && (n.ID-self)%2 != 0 {
				continue
			}
			if n.Key == req.NodeKey {
				self := *n
				if f.forget {
					self.KeyExpiry = time.Now().Add(-time.Hour)
				}
				m.Node = &self
			}
			if n.Key != req.NodeKey || f.mirror {
				m.Peers = append(m.Peers, n)
			}
		}
		b, _ := json.Marshal(m)
		body := sealed(string(b))
		_, _ = w.Write(append(binary.LittleEndian.AppendUint32(nil, uint32(len(body))), body...))
		_ = http.NewResponseController(w).Flush()
		if f.deaf {
			changed = nil
		}
		select {
		case <-changed:
		case <-r.Context().Done():
			offline := false
			f.update(req.NodeKey, func(n *tailcfg.Node) { n.Online = &offline })
			return
		}
	}
}

// update changes a copy of a node and wakes all streams.
func (f *fake) update(k key.NodePublic, change func(*tailcfg.Node)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.nodes = slices.Clone(f.nodes)
	for i, n := range f.nodes {
		if n.Key == k {
			n = n.Clone()
			change(n)
			f.nodes[i] = n
		}
	}
	close(f.changed)
	f.changed = make(chan struct{})
}

// against runs scenarios against f with a few clients.
func against(t *testing.T, f *fake, timeout time.Duration, scenarios ...string) (*Report, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	concurrency := 0
	if f.deaf {
		concurrency = 4 // so that the first have their map before the last come
	}
	return Run(ctx, Options{
		URL: f.start(t), Keys: []string{"k"}, Clients: 12, Concurrency: concurrency, Partial: f.split, Changes: 3, Flips: 2, Burst: 6, Joins: 1, Idle: 50 * time.Millisecond,
		Timeout: timeout, quiet: 40 * time.Millisecond, Scenarios: scenarios, Log: t.Output(),
	})
}
