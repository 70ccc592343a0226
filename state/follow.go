package state

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"

	"github.com/skein-vpn/skein/tailnet"
)

// What other servers do to the tailnet arrives here, on the writer goroutine, and takes the same last steps as a change of
// our own: a Tx that holds it, derive, publish.
//
//	another server commits ──► cluster hears of it ──► Follow ──► Store.Since ──► adopt ──► derive ──► publish
//	our own commit is a conflict ────────────────────────────────────┘
//
// Who is online is told by the server that holds the node's map session. Of rows about nodes that have a session here, those that
// say otherwise are older than what we know, or mistaken about us; then ours is saved again.

// Follow takes over what other servers have committed and saved. It returns once that is published.
func (st *State) Follow(ctx context.Context) error {
	return st.enqueue(ctx, &op{ctx: ctx, done: make(chan error, 1)})
}

// follow answers those of group who only want to take over what other servers have done, and returns the others and the newest
// snapshot.
func (st *State) follow(ctx context.Context, group []*op) ([]*op, *Snapshot) {
	base := st.snapshot.Load()
	var rest []*op
	var err error
	done := false
	for _, o := range group {
		if o.f != nil {
			rest = append(rest, o)
			continue
		}
		if !done {
			done = true
			var next *Snapshot
			if next, err = st.catchUp(ctx, base); err == nil {
				base = next
			}
		}
		o.stage.CompareAndSwap(opWaiting, opTaken)
		o.done <- err
	}
	return rest, base
}

// catchUp publishes what has happened at other servers since base, the newest snapshot, and returns the newest then.
func (st *State) catchUp(ctx context.Context, base *Snapshot) (*Snapshot, error) {
	step, err := st.store.Since(ctx, st.id, base.Rev, st.seq)
	if errors.Is(err, tailnet.ErrGap) || err == nil && st.otherPolicy(base, step) {
		c, err := st.store.Load(ctx, st.id)
		if err != nil {
			return base, fmt.Errorf("reading the tailnet again: %w", err)
		}
		loaded := st.load(c, base, st.reloadPolicy(ctx, c, base))
		st.publish(base, loaded)
		return loaded, nil
	}
	if err != nil {
		return base, fmt.Errorf("reading what other servers have done: %w", err)
	}
	tx := newTx(st, base, st.now())
	tx.follows = true
	tx.adopt(&step.Changes)
	again := tx.adoptPresence(step.Presence)
	st.seq = step.PresenceSeq
	if step.Rev == base.Rev && len(tx.presence) == 0 && len(tx.claims) == 0 {
		st.markDirty(again...)
		return base, nil
	}
	next := st.derive(base, tx, step.Rev)
	st.lowHost = tx.lowHost
	st.publish(base, next)
	st.markDirty(again...)
	return next, nil
}

// otherPolicy reports whether the step brings a policy that is not in force yet.
func (st *State) otherPolicy(base *Snapshot, step *tailnet.Step) bool {
	p := step.Changes.PutPolicy
	return p != nil && (base.Text == nil || base.Text.ID != p.ID)
}

// adopt lays changes that are committed already over the base. They are free of contradictions as a whole, but not one by one:
// two nodes may have swapped their names.
func (tx *Tx) adopt(ch *tailnet.Changes) {
	if ch.Tailnet != nil {
		tx.tailnet = *ch.Tailnet
		if reflect.DeepEqual(tx.tailnet.Settings, tx.base.Tailnet.Settings) { // mostly a counter moved; then DNS stays the same value
			tx.tailnet.Settings = tx.base.Tailnet.Settings
		}
	}
	for _, n := range ch.PutNodes {
		if old := tx.Node(n.ID); old != nil {
			tx.unindex(old)
		}
	}
	for _, id := range ch.DeleteNodes {
		tx.DeleteNode(id)
	}
	for _, n := range ch.PutNodes {
		tx.index(n)
	}
	for _, id := range ch.DeleteUsers {
		put(tx, tx.users, id, nil)
	}
	for _, u := range ch.PutUsers {
		put(tx, tx.users, u.ID, u)
	}
	for _, id := range ch.DeleteCredentials {
		tx.DeleteCredential(id)
	}
	for _, c := range ch.PutCredentials {
		put(tx, tx.creds, c.ID, c)
	}
	for _, name := range ch.DeleteServices {
		if old := tx.Service(name); old != nil {
			put(tx, tx.services, name, nil)
			tx.freeService(old)
		}
	}
	for _, s := range ch.PutServices {
		tx.layService(tx.Service(s.Name), s)
	}
	for _, id := range ch.DeletePreAuth {
		tx.DeletePreAuthKey(id)
	}
	for _, k := range ch.PutPreAuthKeys {
		tx.PutPreAuthKey(k)
	}
}

// adoptPresence takes over who is online where, and who carries what. It returns the nodes whose presence has to be saved again,
// because the store is mistaken about them.
func (tx *Tx) adoptPresence(ps []tailnet.NodeOnline) (again []tailnet.NodeID) {
	st := tx.st
	for _, p := range ps {
		n := tx.Node(p.Node)
		if n == nil {
			continue
		}
		unsaved := st.unsaved(p.Node)
		if _, here := st.here[p.Node]; here {
			switch {
			case unsaved: // ours comes later, and counts
			case !p.Online: // somebody took us for dead, or the node left another server for us
				again = append(again, p.Node)
			case p.Server != st.server:
				tx.setPresence(p)
			}
		} else if p.Server != st.server || !p.Online {
			tx.setPresence(p)
		}
		if unsaved {
			continue
		}
		for _, r := range p.Primary {
			if !tailnet.IsExitRoute(r) && slices.Contains(n.ActiveRoutes(), r) && tx.base.Routes.Primary(r) != p.Node {
				if tx.claims == nil {
					tx.claims = map[netip.Prefix]tailnet.NodeID{}
				}
				tx.claims[r] = p.Node
			}
		}
	}
	return again
}

func (tx *Tx) setPresence(p tailnet.NodeOnline) {
	next := presence{online: p.Online, failing: p.Failing, steady: p.Steady, lastSeen: p.LastSeen, server: p.Server}
	if tx.presenceOf(p.Node) != next {
		put(tx, tx.presence, p.Node, next)
	}
}

// presence is the part of the node that a Tx may change without a commit.
func (n *Node) presence() presence {
	return presence{online: n.Online, failing: n.Failing, steady: n.Steady, lastSeen: n.LastSeen, server: n.Server}
}
