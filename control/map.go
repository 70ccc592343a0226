package control

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"slices"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/types/key"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/control/h2"
	"github.com/skein-vpn/skein/netmap"
	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// goneStream is how long a client whose node is gone is kept waiting on its stream, so that it does not ask in a loop.
const goneStream = 10 * time.Minute

// serveMap answers tailcfg.MapRequest in its three kinds: stream, lite update, and one map without side effects.
func (s *Server) serveMap(w http.ResponseWriter, r *http.Request) {
	var req tailcfg.MapRequest
	if !decode(w, r, &req) {
		return
	}
	if req.NodeKey.IsZero() {
		http.Error(w, "the request has no node key", http.StatusBadRequest)
		return
	}
	v := netmap.Viewer{Capver: req.Version, Compress: req.Compress == "zstd"}
	if req.Stream && s.o.State.Snapshot().NodeByKey(req.NodeKey) == nil {
		s.serveGone(w, r, req.NodeKey, v)
		return
	}
	n := s.nodeOf(w, r, req.NodeKey)
	if n == nil {
		return
	}
	v.Node = n.ID
	switch {
	case req.Stream:
		s.noteForwarding(r.Context(), n.ID, &req)
		s.serveStream(w, r, n, v)
	case req.ReadOnly:
		if err := s.hold(r.Context(), s.limits.maps, n.ID, nil); err != nil {
			s.fail(w, r, "sending a map", err)
			return
		}
		s.counters.FullMaps.Add(1)
		if f, ok := s.o.Encoder.Full(s.o.State.Snapshot(), v); ok {
			_, _ = f.WriteTo(w)
		}
	default:
		s.serveLite(w, r, n.ID, &req)
		s.noteForwarding(r.Context(), n.ID, &req)
	}
}

// serveLite stores what a client says of itself. A request that changes nothing writes nothing.
func (s *Server) serveLite(w http.ResponseWriter, r *http.Request, id tailnet.NodeID, req *tailcfg.MapRequest) {
	n := s.o.State.Snapshot().Node(id)
	if n == nil || applyLite(n.Node, req) == nil {
		return
	}
	if err := s.hold(r.Context(), s.limits.reports, id, nil); err != nil {
		s.fail(w, r, "storing a node's report", err)
		return
	}
	s.counters.Reports.Add(1)
	defer s.work()()
	var refused error
	err := s.o.State.Update(asClient(r, n.Name), "node reported itself", func(tx *state.Tx) error {
		n := tx.Node(id)
		if n == nil || n.NodeKey != req.NodeKey {
			return nil // deleted or renewed meanwhile
		}
		next := applyLite(n, req)
		if next == nil {
			return nil
		}
		if next.DiscoKey != n.DiscoKey {
			tx.Seen(id)
		}
		tagged := n.Clone()
		if refused = auth.Retag(tx, tagged, req.Hostinfo); refused == nil {
			next.Tags, next.User, next.Expiry = tagged.Tags, tagged.User, tagged.Expiry
		}
		auth.SetHostname(tx, next, next.Hostinfo.Hostname)
		if next.Hostinfo.ServicesHash == "" && next.ServicesHash != "" {
			tx.SetOffers(next, "", nil)
		}
		tx.AutoApprove(next)
		return tx.PutNode(next)
	})
	if err != nil {
		s.fail(w, r, "storing a node's report", err)
	} else if refused != nil { // it stays what it is; `tailscale up` is told the same when it logs in
		s.log.Warn("a node asks for tags that it may not have", "node", id, "err", refused)
	}
	if req.Hostinfo != nil {
		s.checkServices(id)
	}
}

// applyLite is n as the request says it is, or nil if that is no change.
func applyLite(n *tailnet.Node, req *tailcfg.MapRequest) *tailnet.Node {
	out := n.Clone()
	if !req.DiscoKey.IsZero() {
		out.DiscoKey = req.DiscoKey
	}
	out.Endpoints, out.EndpointTypes = tailnet.CleanEndpoints(req.Endpoints, req.EndpointTypes)
	if req.Version != 0 {
		out.Capver = req.Version
	}
	sameHost := true
	if req.Hostinfo != nil {
		h := tailnet.CleanHostinfo(req.Hostinfo)
		if sameHost = h.Equal(n.Hostinfo); !sameHost {
			out.Hostinfo = h
		}
		if h.NetInfo != nil && h.NetInfo.PreferredDERP != 0 {
			out.HomeDERP = h.NetInfo.PreferredDERP
		}
	}
	if sameHost && out.DiscoKey == n.DiscoKey && out.Capver == n.Capver && out.HomeDERP == n.HomeDERP &&
		slices.Equal(out.Endpoints, n.Endpoints) && slices.Equal(out.EndpointTypes, n.EndpointTypes) {
		return nil
	}
	return out
}

// mapSession is one client's open stream.
type mapSession struct {
	s        *Server
	w        http.ResponseWriter
	rc       *http.ResponseController
	viewer   netmap.Viewer
	key      key.NodePublic
	replaced chan struct{}             // closed when a newer stream of the node begins
	pings    chan *tailcfg.PingRequest // one slot; what does not fit is dropped
	place    place

	newKeys []tailnet.NodeID // peers with a new key, see tryKeys
	tries   int              // how often they were tried
	nextTry <-chan time.Time // nil: there are none
}

func newMapSession(s *Server, w http.ResponseWriter, v netmap.Viewer, k key.NodePublic) *mapSession {
	return &mapSession{
		s: s, w: w, rc: http.NewResponseController(w), viewer: v, key: k,
		replaced: make(chan struct{}), pings: make(chan *tailcfg.PingRequest, 1), place: place{wake: make(chan *round, 1)},
	}
}

// serveStream runs a map session until the client, the server or the node goes.
func (s *Server) serveStream(w http.ResponseWriter, r *http.Request, n *state.Node, v netmap.Viewer) {
	ms := newMapSession(s, w, v, n.NodeKey)
	ctx, remote := r.Context(), peerOf(r).remote
	session := func() {
		s.addSession(ms)
		defer s.removeSession(ms)
		s.log.Debug("map session begins", "node", v.Node, "remote", remote, "capver", v.Capver)
		err := ms.run(ctx)
		s.log.Debug("map session ends", "node", v.Node, "remote", remote, "err", err)
	}
	if !h2.Continue(w, session) {
		session()
	}
}

// run sends the first map and then whatever follows. The error says why it ended; there is always one or nil for an
// orderly end.
func (ms *mapSession) run(ctx context.Context) error {
	sn, err := ms.begin(ctx)
	if sn == nil || err != nil {
		return err
	}
	ms.s.enter(ms, sn)
	defer ms.s.exit(ms)
	keepAlive := time.NewTimer(ms.s.keepAliveIn())
	defer keepAlive.Stop()
	for {
		sent := true
		select {
		case r := <-ms.place.wake:
			var goesOn bool
			goesOn, sent, err = ms.follow()
			r.leave()
			if err != nil || !goesOn {
				return err
			}
		case p := <-ms.pings:
			err = ms.send(ms.s.o.Encoder.Seal(ms.viewer, &tailcfg.MapResponse{PingRequest: p}))
		case <-ms.nextTry:
			err = ms.tryAgain()
		case <-keepAlive.C:
			err = ms.send(netmap.KeepAlive(ms.viewer))
			ms.s.counters.KeepAlives.Add(1)
		case <-ms.replaced:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
		if err != nil {
			return err
		}
		if sent {
			keepAlive.Reset(ms.s.keepAliveIn())
		}
	}
}

// follow sends what is new, if anything, and waits again; goesOn is false if the stream is to end.
func (ms *mapSession) follow() (goesOn, sent bool, err error) {
	known, next := ms.place.known, ms.s.o.State.Snapshot()
	self := next.Node(ms.viewer.Node)
	if self == nil {
		return false, true, ms.send(ms.s.o.Encoder.Gone(next, known.Node(ms.viewer.Node).Node, ms.viewer))
	}
	if self.NodeKey != ms.key {
		if self.Shown != ms.key {
			return false, false, nil // renewed: the client goes on with its new key
		}
		ms.s.wait(ms, known, next) // it is about to: until its new stream begins it keeps this one, with what it has been told
		return true, false, nil
	}
	f, sent := ms.s.o.Encoder.Delta(known, next, ms.viewer)
	if sent {
		ms.s.counters.Deltas.Add(1)
		err = ms.send(f)
		ms.tryKeys(known, next)
	}
	ms.s.wait(ms, next, next)
	return true, sent, err
}

// begin sends the first map and takes the node online. The snapshot is what was sent; nil if there is nobody to send it to.
func (ms *mapSession) begin(ctx context.Context) (*state.Snapshot, error) {
	switch err := ms.s.hold(ctx, ms.s.limits.maps, ms.viewer.Node, ms.replaced); {
	case errors.Is(err, errTooMany):
		ms.w.Header().Set("Retry-After", "60")
		http.Error(ms.w, errTooMany.Message, http.StatusTooManyRequests)
		return nil, err
	case err != nil:
		return nil, err
	}
	defer ms.s.work()()
	sn, f, ok := ms.fullMap(ctx)
	if !ok {
		return nil, nil
	}
	ms.s.counters.FullMaps.Add(1)
	if err := ms.send(f); err != nil {
		return nil, err
	}
	return sn, ms.s.cameOnline(ctx, ms)
}

// fullMap makes a full map when it is this session's turn: of a fleet that connects at once, as many as there are processors
// are served at a time, in the order in which they came. Deltas and keep-alives of others go on meanwhile, and so does writing:
// a slow reader holds up nobody. The map is of the snapshot that is the newest by then; ok is false if there is nobody to send
// it to.
func (ms *mapSession) fullMap(ctx context.Context) (sn *state.Snapshot, f netmap.Frame, ok bool) {
	s := ms.s
	select {
	case s.turns <- struct{}{}: // senders that wait are let in in order
	case <-ctx.Done():
		return nil, f, false
	}
	defer func() { <-s.turns }()
	sn = s.o.State.Snapshot()
	if n := sn.Node(ms.viewer.Node); n == nil || n.NodeKey != ms.key {
		return nil, f, false // deleted or renewed this moment; the client asks again and is told
	}
	f, ok = s.o.Encoder.Full(sn, ms.viewer)
	return sn, f, ok
}

// keepAliveIn is when an idle stream says something: jitter keeps clients out of step.
func (s *Server) keepAliveIn() time.Duration { return s.o.KeepAlive + rand.N(s.o.KeepAlive/6) }

// send writes f. That a client takes nothing for longer than WriteTimeout is an error of the connection (h2.Options).
func (ms *mapSession) send(f netmap.Frame) error {
	if _, err := f.WriteTo(ms.w); err != nil {
		return err
	}
	return ms.rc.Flush()
}

// addSession makes ms the stream of its node and ends the one before.
func (s *Server) addSession(ms *mapSession) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := ms.viewer.Node
	if old := s.sessions[id]; old != nil {
		close(old.replaced)
		s.counters.ReplacedStreams.Add(1)
	}
	s.sessions[id] = ms
	s.stopOfflineLocked(id)
}

// stopOfflineLocked takes back that the node goes offline. s.mu must be held.
func (s *Server) stopOfflineLocked(id tailnet.NodeID) {
	if t := s.offline[id]; t != nil {
		if t.Stop() {
			s.wg.Done()
		}
		delete(s.offline, id)
	}
}

// removeSession ends ms; its node goes offline unless another stream begins soon.
func (s *Server) removeSession(ms *mapSession) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := ms.viewer.Node
	if s.sessions[id] != ms {
		return
	}
	delete(s.sessions, id)
	if s.closed || s.ctx.Err() != nil || s.asideSince() {
		return
	}
	s.wg.Add(1)
	var t *time.Timer
	t = time.AfterFunc(s.o.OfflineAfter, func() {
		defer s.wg.Done()
		s.mu.Lock()
		mine := s.offline[id] == t && s.sessions[id] == nil
		if mine {
			delete(s.offline, id)
		}
		s.mu.Unlock()
		if mine {
			s.wentOffline(id)
		}
	})
	s.offline[id] = t
}

// cameOnline publishes that the node of ms has a stream, and with which version, unless a newer stream has begun meanwhile:
// that one speaks for itself, and may even have ended again.
func (s *Server) cameOnline(ctx context.Context, ms *mapSession) error {
	id, capver := ms.viewer.Node, ms.viewer.Capver
	defer s.checkServices(id)
	return s.o.State.Update(ctx, "node came online", func(tx *state.Tx) error {
		s.mu.Lock()
		current := s.sessions[id] == ms
		s.mu.Unlock()
		n := tx.Node(id)
		if n == nil || !current {
			return nil
		}
		tx.SetOnline(id, true)
		if n.Capver != capver && capver != 0 {
			n = n.Clone()
			n.Capver = capver
			if err := tx.PutNode(n); err != nil {
				return err
			}
		}
		if n.NodeKey == ms.key {
			return tx.KeyInUse(id)
		}
		return nil
	})
}

// wentOffline publishes that the node has no stream, unless a new one has begun meanwhile.
func (s *Server) wentOffline(id tailnet.NodeID) {
	err := s.o.State.Update(s.ctx, "node went offline", func(tx *state.Tx) error {
		s.mu.Lock()
		back := s.sessions[id] != nil
		s.mu.Unlock()
		if !back {
			tx.SetOnline(id, false)
		}
		return nil
	})
	if err != nil && s.ctx.Err() == nil {
		s.log.Error("a node could not be taken offline", "node", id, "err", err)
	}
}

// serveGone answers the stream of a node that does not exist: it is told that its key has ended, which is the only thing
// that makes a client ask its user to log in.
func (s *Server) serveGone(w http.ResponseWriter, r *http.Request, k key.NodePublic, v netmap.Viewer) {
	machine := peerOf(r).machine
	for _, n := range s.o.State.Snapshot().NodesByMachine(machine) {
		if n.OldNodeKey == k {
			http.Error(w, "this node key has been replaced", http.StatusConflict)
			return
		}
	}
	n, err := s.o.State.DeletedNode(r.Context(), k)
	if err != nil {
		s.fail(w, r, "looking for a deleted node", err)
		return
	}
	if n == nil || n.MachineKey != machine {
		n = &tailnet.Node{ID: unknownNode, StableID: "gone-" + k.UntypedHexString()[:12], Name: "unknown", NodeKey: k}
	}
	ms := newMapSession(s, w, v, k)
	if ms.send(s.o.Encoder.Gone(s.o.State.Snapshot(), n, v)) != nil {
		return
	}
	replaced, done := s.addGone(machine)
	if replaced == nil {
		return // it asks again soon, as clients do
	}
	defer done()
	end := time.After(goneStream)
	for {
		select {
		case <-replaced:
			return
		case <-time.After(s.keepAliveIn()):
			if ms.send(netmap.KeepAlive(v)) != nil {
				return
			}
		case <-end:
			return
		case <-r.Context().Done():
			return
		}
	}
}

// maxGone is how many streams are kept for nodes that do not exist: they cost memory, and anybody can ask for one.
const maxGone = 1000

// addGone keeps the stream of a machine whose node is gone: one for each machine, so that a newer one closes replaced. It is
// nil if there are too many. done must be called when the stream ends.
func (s *Server) addGone(machine key.MachinePublic) (replaced chan struct{}, done func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.gone[machine]; old != nil {
		close(old)
		delete(s.gone, machine)
	}
	if len(s.gone) >= maxGone {
		return nil, nil
	}
	replaced = make(chan struct{})
	s.gone[machine] = replaced
	return replaced, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.gone[machine] == replaced {
			delete(s.gone, machine)
		}
	}
}

// unknownNode is the id told to a node that we know nothing of; no real node reaches it.
const unknownNode tailnet.NodeID = 1<<53 - 1
