package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"tailscale.com/tailcfg"

	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// What services a node hosts it tells only when asked (capver >= 108): its Hostinfo has a hash of the list (ServicesHash), and when
// that is another one than the list we have was read with, the list is fetched.
//
//	lite update, or stream begins ── another hash ──► wanted ──► c2n GET /vip-services ──► state.Update(SetOffers)
//	                                                    ▲                 │ no answer, or not the latest hash
//	                                                    └── later ◄───────┘

// announcements are the nodes whose list is to be fetched.
type announcements struct {
	wake chan struct{} // one slot

	mu     sync.Mutex
	wanted map[tailnet.NodeID]*announcement // guarded by mu
}

// announcement is one list that is to be fetched.
type announcement struct {
	due   time.Time
	tries int
	busy  bool
}

func newAnnouncements() *announcements {
	return &announcements{wake: make(chan struct{}, 1), wanted: map[tailnet.NodeID]*announcement{}}
}

const (
	fetchTimeout  = 10 * time.Second
	fetchAtOnce   = 8                // lists
	fetchAgain    = 2 * time.Second  // after the first failure, then twice as long each time
	fetchAgainMax = 10 * time.Minute // at the most
)

// announcesOthers reports whether n says that it hosts other services than we know of.
func announcesOthers(n *tailnet.Node) bool { return n.Hostinfo.ServicesHash != n.ServicesHash }

// checkServices has the list of a node fetched if it is another one than the one we have.
func (s *Server) checkServices(id tailnet.NodeID) {
	n := s.o.State.Snapshot().Node(id)
	if n == nil || !announcesOthers(n.Node) {
		return
	}
	a := s.announced
	a.mu.Lock()
	if w := a.wanted[id]; w == nil {
		a.wanted[id] = &announcement{}
	} else {
		w.due, w.tries = time.Time{}, 0
	}
	a.mu.Unlock()
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// fetchServices fetches lists until ctx ends.
func (s *Server) fetchServices(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, fetchAtOnce)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		next := time.Hour
		for id, wait := range s.announced.dueAt(time.Now()) {
			if wait > 0 {
				next = min(next, wait)
				continue
			}
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				return
			}
			wg.Go(func() {
				err := s.fetchOffers(ctx, id)
				<-slots
				s.fetched(id, err, time.Now())
			})
		}
		timer.Reset(next)
		select {
		case <-s.announced.wake:
		case <-timer.C:
		case <-ctx.Done():
			return
		}
	}
}

// dueAt says for each wanted list in how long it is to be fetched; those that are due become busy.
func (a *announcements) dueAt(now time.Time) map[tailnet.NodeID]time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := map[tailnet.NodeID]time.Duration{}
	for id, w := range a.wanted {
		if w.busy {
			continue
		}
		wait := w.due.Sub(now)
		w.busy = wait <= 0
		out[id] = wait
	}
	return out
}

// fetched notes how a fetch went: the list is wanted again if it failed, or is not the latest. A node without a map session is left
// alone: it is asked when it comes back.
func (s *Server) fetched(id tailnet.NodeID, err error, now time.Time) {
	n := s.o.State.Snapshot().Node(id)
	a := s.announced
	a.mu.Lock()
	w := a.wanted[id]
	w.busy = false
	if n == nil || !announcesOthers(n.Node) || errors.Is(err, errNoStream) {
		delete(a.wanted, id)
	} else {
		w.due = now.Add(min(fetchAgain<<min(w.tries, 20), fetchAgainMax))
		w.tries++
	}
	a.mu.Unlock()
	if err != nil && !errors.Is(err, errNoStream) && s.ctx.Err() == nil {
		s.log.Debug("a node did not say which services it hosts", "node", id, "err", err)
	}
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

const getServices = "GET /vip-services HTTP/1.1\r\nHost: c2n\r\n\r\n"

// fetchOffers asks a node which services it hosts and stores what it says.
func (s *Server) fetchOffers(ctx context.Context, id tailnet.NodeID) error {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	status, b, err := s.call(ctx, id, getServices)
	if err != nil {
		return err
	}
	if status != http.StatusOK {
		return fmt.Errorf("it answered with status %d", status)
	}
	var list tailcfg.C2NVIPServicesResponse
	if err := json.NewDecoder(bytes.NewReader(b)).Decode(&list); err != nil {
		return fmt.Errorf("its answer is not the JSON expected: %w", err)
	}
	offers, hash := tailnet.CleanOffers(list.VIPServices), tailnet.CleanText(list.ServicesHash)
	n := s.o.State.Snapshot().Node(id)
	if n == nil {
		return nil
	}
	actor := state.Actor{Kind: "client", Name: n.Name, ID: n.MachineKey.ShortString(), Origin: "client"}
	return s.o.State.Update(state.WithActor(ctx, actor), "node announced services", func(tx *state.Tx) error {
		n := tx.Node(id)
		if n == nil || n.ServicesHash == hash {
			return nil
		}
		n = n.Clone()
		tx.SetOffers(n, hash, offers)
		return tx.PutNode(n)
	})
}
