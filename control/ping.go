package control

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/mux"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"

	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// pings are the control-to-node calls ("c2n") that wait for their answer. Such a call is an HTTP request carried to the
// node inside a map response (tailcfg.PingRequest), whose HTTP answer the node posts to /machine/ping/ID.
type pings struct {
	mu      sync.Mutex
	waiting map[string]*pending // guarded by mu
}

type pending struct {
	machine key.MachinePublic   // who may answer
	answer  chan *http.Response // one slot
}

func newPings() *pings { return &pings{waiting: map[string]*pending{}} }

// errNoStream is what c2n returns for a node without a map session.
var errNoStream = errors.New("the node has no map session")

// c2n sends req to the node and returns the status of its answer. The error is ctx's if the node does not answer.
func (s *Server) c2n(ctx context.Context, id tailnet.NodeID, req string) (status int, err error) {
	status, _, err = s.call(ctx, id, req)
	return status, err
}

// call is c2n with the body of the answer, or as much of it as has come.
func (s *Server) call(ctx context.Context, id tailnet.NodeID, req string) (status int, body []byte, err error) {
	n := s.o.State.Snapshot().Node(id)
	if n == nil {
		return 0, nil, errNoStream
	}
	p := &pending{machine: n.MachineKey, answer: make(chan *http.Response, 1)}
	token := rand.Text() // a fresh URL each time: clients drop repetitions (controlclient.Auto)
	s.pings.mu.Lock()
	s.pings.waiting[token] = p
	s.pings.mu.Unlock()
	defer func() {
		s.pings.mu.Lock()
		delete(s.pings.waiting, token)
		s.pings.mu.Unlock()
	}()
	s.mu.Lock()
	ms := s.sessions[id]
	s.mu.Unlock()
	if ms == nil {
		return 0, nil, errNoStream
	}
	call := s.pingRequest(token, "c2n")
	call.Payload = []byte(req)
	select {
	case ms.pings <- call:
	default:
		return 0, nil, fmt.Errorf("the last call to node %d has not been sent yet", id)
	}
	select {
	case resp := <-p.answer:
		body, _ := io.ReadAll(resp.Body) // from memory
		return resp.StatusCode, body, nil
	case <-ctx.Done():
		return 0, nil, ctx.Err()
	}
}

// pingRequest is a request whose answer is posted under token.
func (s *Server) pingRequest(token, types string) *tailcfg.PingRequest {
	// Over Noise the URL must be https whatever the server's own is, and with the same host it shares the connection.
	_, host, _ := strings.Cut(s.o.ServerURL, "://")
	return &tailcfg.PingRequest{URL: "https://" + host + "/machine/ping/" + token, URLIsNoise: true, Types: types}
}

// newKeyPing begins the tokens of requests whose answer nobody waits for (mapSession.tryKeys).
const newKeyPing = "new-key-"

// maxTries is up to how many sessions peers are asked to try new keys: a handshake with each of thousands would cost more than a
// few seconds of silence with some.
const maxTries = 100

// keyTries are the waits before each message of tryKeys. A client puts a peer's new key into its WireGuard device a moment after it
// was told of it, and what it is asked to send before that moment goes to the old key and is lost.
var keyTries = []time.Duration{250 * time.Millisecond, 750 * time.Millisecond, 2 * time.Second}

// tryKeys has the client, which has just been told what happened between two snapshots, soon send something to the peers that use a
// new key since. Only it can begin a session with them: what such a peer itself tried when it changed its key was lost, because
// nobody knew that key, and it tries again only after five seconds (WireGuard's REKEY_TIMEOUT).
func (ms *mapSession) tryKeys(before, now *state.Snapshot) {
	for _, n := range before.Settled(now) {
		if n.ID != ms.viewer.Node && !slices.Contains(ms.newKeys, n.ID) {
			ms.newKeys = append(ms.newKeys, n.ID)
		}
		ms.tries, ms.nextTry = 0, time.After(keyTries[0])
	}
}

// tryAgain is when nextTry has come.
func (ms *mapSession) tryAgain() error {
	now := ms.s.o.State.Snapshot()
	self := now.Node(ms.viewer.Node)
	for _, id := range ms.newKeys {
		n := now.Node(id)
		if self == nil || !self.Active() || n == nil || len(n.Addrs()) == 0 || ms.s.Sessions() > maxTries || !now.Policy.SeesNode(self.Node, n.Node) {
			continue
		}
		p := ms.s.pingRequest(newKeyPing+rand.Text(), string(tailcfg.PingTSMP))
		p.IP = n.Addrs()[0]
		if err := ms.send(ms.s.o.Encoder.Seal(ms.viewer, &tailcfg.MapResponse{PingRequest: p})); err != nil {
			return err
		}
	}
	if ms.tries++; ms.tries < len(keyTries) {
		ms.nextTry = time.After(keyTries[ms.tries])
	} else {
		ms.newKeys, ms.nextTry = nil, nil
	}
	return nil
}

// servePong takes the answer to a c2n call.
func (s *Server) servePong(w http.ResponseWriter, r *http.Request) {
	if strings.HasPrefix(mux.Vars(r)["id"], newKeyPing) {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	s.pings.mu.Lock()
	p := s.pings.waiting[mux.Vars(r)["id"]]
	s.pings.mu.Unlock()
	if p == nil || p.machine != peerOf(r).machine {
		http.Error(w, "nobody waits for this answer", http.StatusNotFound)
		return
	}
	resp, err := http.ReadResponse(bufio.NewReader(http.MaxBytesReader(w, r.Body, maxBody)), nil)
	if err != nil {
		http.Error(w, "the answer is not an HTTP response", http.StatusBadRequest)
		return
	}
	body, _ := io.ReadAll(resp.Body) // one that breaks off is a sign of life all the same
	resp.Body.Close()
	resp.Body = io.NopCloser(bytes.NewReader(body))
	select {
	case p.answer <- resp:
	default: // answered already
	}
	w.WriteHeader(http.StatusNoContent)
}

// echo is the c2n request that any client answers; it serves as the sign of life of a router.
const echo = "POST /echo HTTP/1.1\r\nHost: c2n\r\nContent-Length: 2\r\n\r\nok"

// ProbeOptions say when a router that has a stand-in counts as gone.
type ProbeOptions struct {
	Every  time.Duration // between probes; 0: DefaultProbeEvery
	Fail   time.Duration // without an answer for this long it has failed; 0: DefaultProbeFail
	Steady time.Duration // answering for this long it may take its prefixes back; 0: DefaultProbeSteady
}

const (
	DefaultProbeEvery  = time.Second
	DefaultProbeFail   = 3 * time.Second
	DefaultProbeSteady = time.Minute
)

// probe asks routers that have a stand-in for a sign of life, so that a cut cable or a hung machine is noticed long before
// its connection ends. Nodes without a stand-in are left alone: nothing would follow from it. So are nodes without a map
// session: they go offline by themselves soon, and after a start of the server they are presumed well until the grace time is over.
func (s *Server) probe(ctx context.Context) {
	o := s.o.Probe
	setDefault(&o.Every, DefaultProbeEvery)
	setDefault(&o.Fail, DefaultProbeFail)
	setDefault(&o.Steady, DefaultProbeSteady)
	var wg sync.WaitGroup
	defer wg.Wait()
	tick := time.NewTicker(o.Every)
	defer tick.Stop()
	// Judging is cheap, and a verdict that waits for the next probe would add up to a whole interval to each failover.
	verdict := time.NewTicker(max(o.Every/4, time.Millisecond))
	defer verdict.Stop()
	health := map[tailnet.NodeID]*health{}
	for {
		select {
		case <-verdict.C:
			for id, h := range health {
				s.judge(ctx, id, h, o)
			}
			continue
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		probed := map[tailnet.NodeID]bool{}
		for _, n := range s.o.State.Snapshot().Redundant() {
			if !s.streaming(n.ID) {
				continue
			}
			probed[n.ID] = true
			h := health[n.ID]
			if h == nil {
				h = newHealth(time.Now())
				health[n.ID] = h
			}
			wg.Add(1)
			go func() {
				defer wg.Done()
				ctx, cancel := context.WithTimeout(ctx, o.Fail)
				defer cancel()
				if status, err := s.c2n(ctx, n.ID, echo); err == nil && status < 500 {
					h.answered(time.Now())
				}
			}()
		}
		for id := range health {
			if !probed[id] {
				delete(health, id)
			}
		}
	}
}

// streaming reports whether the node has a map session.
func (s *Server) streaming(id tailnet.NodeID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sessions[id] != nil
}

func setDefault(d *time.Duration, v time.Duration) {
	if *d == 0 {
		*d = v
	}
}

// judge publishes what the answers so far say about a router.
func (s *Server) judge(ctx context.Context, id tailnet.NodeID, h *health, o ProbeOptions) {
	failing, steady := h.state(time.Now(), o)
	n := s.o.State.Snapshot().Node(id)
	if n == nil || !n.Online || n.Failing == failing && (n.Steady || !steady) {
		return
	}
	if n.Failing != failing {
		s.log.Info("router probed", "node", id, "name", n.Name, "failing", failing)
	}
	if err := s.o.State.Update(ctx, "router probed", setHealth(id, failing, steady)); err != nil && ctx.Err() == nil {
		s.log.Error("the health of a router could not be published", "node", id, "err", err)
	}
}
