package state

import (
	"context"
	"time"

	"tailscale.com/types/key"

	"github.com/skein-vpn/skein/tailnet"
)

// What follows from a node's row and the time: whether its key has ended, and under which key its peers know it. It is part
// of the snapshot like everything else. When time alone changes it, a snapshot without a commit is published: every server
// does that for itself, and after a restart it follows anew.

// judge settles what follows from the rows of n and its user at now.
func (n *Node) judge(sn *Snapshot, now time.Time) {
	n.Approved = n.Authorized
	if u := sn.User(n.User); n.User != 0 && (u == nil || u.Status != tailnet.UserActive) {
		n.Approved = false
	}
	n.Ended = n.Expired(now)
	n.Shown = n.NodeKey
	if n.OldKeyUntil.After(now) && !n.OldNodeKey.IsZero() {
		n.Shown = n.OldNodeKey
	}
}

// overdue reports whether n would be judged differently at now because of the time alone.
func (n *Node) overdue(now time.Time) bool {
	return n.Ended != n.Expired(now) || n.Shown != n.NodeKey && !n.OldKeyUntil.After(now)
}

// forgetful reports whether n has attributes that have ended at now.
func (n *Node) forgetful(now time.Time) bool {
	return len(n.Attributes) > 0 && len(tailnet.LiveAttributes(n.Attributes, now)) < len(n.Attributes)
}

// turns is when time alone will change how n is judged; zero: never.
func (n *Node) turns() (at time.Time) {
	if !n.Ended {
		at = n.Expiry
	}
	if n.Shown != n.NodeKey && (at.IsZero() || n.OldKeyUntil.Before(at)) {
		at = n.OldKeyUntil
	}
	for _, a := range n.Attributes {
		if !a.Expires.IsZero() && (at.IsZero() || a.Expires.Before(at)) {
			at = a.Expires
		}
	}
	return at
}

// renewing is old with what changed does to the nodes whose peers know them under the key before.
func renewing(base *Snapshot, changed map[tailnet.NodeID]*Node) map[key.NodePublic]tailnet.NodeID {
	over := map[key.NodePublic]tailnet.NodeID{}
	for id, n := range changed {
		if old := base.Node(id); old != nil && old.Shown != old.NodeKey {
			over[old.Shown] = 0
		}
		if n != nil && n.Shown != n.NodeKey {
			over[n.Shown] = id
		}
	}
	return overlayMap(base.renewing, over)
}

// wakeFor sees to it that the clock looks at the nodes again at the given time; zero: no matter.
func (st *State) wakeFor(at time.Time) {
	if at.IsZero() {
		return
	}
	st.alarmMu.Lock()
	earlier := st.alarm.IsZero() || at.Before(st.alarm)
	if earlier {
		st.alarm = at
	}
	st.alarmMu.Unlock()
	if earlier {
		select {
		case st.alarmSet <- struct{}{}:
		default:
		}
	}
}

// runClock publishes what time alone changes, at the moment at which it does.
func (st *State) runClock(run context.Context) {
	for {
		st.alarmMu.Lock()
		at := st.alarm
		st.alarmMu.Unlock()
		var due <-chan time.Time
		var timer *time.Timer
		if !at.IsZero() {
			timer = time.NewTimer(max(at.Sub(st.now()), 0))
			due = timer.C
		}
		select {
		case <-due:
			if err := st.Tick(run); err != nil && run.Err() == nil {
				st.log.Error("keys that have ended could not be taken out of use; it will be tried again", "err", err)
				st.wakeFor(st.now().Add(time.Second))
			}
		case <-st.alarmSet: // the next one is earlier
		case <-run.Done():
		}
		if timer != nil {
			timer.Stop()
		}
		if run.Err() != nil {
			return
		}
	}
}

// Tick publishes what the time has changed. It happens by itself; it costs O(nodes). Attributes that have ended are taken from their
// nodes for good, by a commit of whichever server is first.
func (st *State) Tick(ctx context.Context) error {
	st.alarmMu.Lock()
	st.alarm = time.Time{}
	st.alarmMu.Unlock()
	err := st.Update(ctx, "time has passed", func(tx *Tx) error {
		for _, n := range tx.base.nodes {
			if n.overdue(tx.now) && tx.Node(n.ID) != nil {
				put(tx, tx.presence, n.ID, tx.presenceOf(n.ID)) // the same, and judged anew
			}
			if now := tx.Node(n.ID); n.forgetful(tx.now) && now != nil {
				now = now.Clone()
				now.Attributes = tailnet.LiveAttributes(now.Attributes, tx.now)
				if err := tx.PutNode(now); err != nil {
					return err
				}
			}
		}
		return nil
	})
	for _, n := range st.Snapshot().nodes {
		st.wakeFor(n.turns())
	}
	return err
}

// Using is the node that peers know under k, or that may use k: by its own key, and while it is about to change keys by the
// one before as well; nil if there is none. It must be Active to be served.
func (sn *Snapshot) Using(k key.NodePublic) *Node {
	if n := sn.NodeByKey(k); n != nil {
		return n
	}
	return sn.Node(sn.renewing[k])
}

// Settled are the nodes that peers knew under an old key in sn and know under the new one in next, the newer of the two.
func (sn *Snapshot) Settled(next *Snapshot) (out []*Node) {
	for _, id := range sn.renewing {
		if n := next.Node(id); n != nil && n.Shown == n.NodeKey && n.Active() {
			out = append(out, n)
		}
	}
	return out
}

// KeyInUse says that the node uses its new key: soon its peers know it under that one. It is not needed if the key is not new.
func (tx *Tx) KeyInUse(id tailnet.NodeID) error {
	n := tx.Node(id)
	if n == nil || !n.OldKeyUntil.After(tx.now.Add(KeySettles)) {
		return nil
	}
	n = n.Clone()
	n.OldKeyUntil = tx.now.Add(KeySettles)
	return tx.PutNode(n)
}

// KeySettles is for how long peers go on with the old key of a node after it has shown that it has a new one: it puts the key
// into its WireGuard device a moment after it has said so, and a peer that tries the new key too early tries again only
// after five seconds (WireGuard's REKEY_TIMEOUT).
const KeySettles = 300 * time.Millisecond

// keyPatience is for how long peers know a node under its old key if it does not show that it uses the new one.
const keyPatience = 30 * time.Second

// NewKey gives n, a clone or new, the node key k. If it is in use under another one now, its peers learn of k when it uses it.
func (tx *Tx) NewKey(n *tailnet.Node, k key.NodePublic) {
	if n.NodeKey == k {
		return
	}
	if n.NodeKey.IsZero() {
		n.NodeKey = k
		return
	}
	n.OldKeyUntil = time.Time{}
	p := tx.presenceOf(n.ID)
	// A signature of Tailnet Lock is for one key.
	if p.online && !n.Expired(tx.now) && len(n.KeySignature) == 0 {
		n.OldKeyUntil = tx.now.Add(keyPatience)
	}
	n.OldNodeKey, n.NodeKey = n.NodeKey, k
}
