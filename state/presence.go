package state

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/skein-vpn/skein/tailnet"
)

// saveDelay is how long a change of presence may stay unsaved, so that a fleet that reconnects is written in one go.
const saveDelay = time.Second

// markDirty says that the presence of these nodes is to be saved. Their snapshot must have been published.
func (st *State) markDirty(ids ...tailnet.NodeID) {
	if len(ids) == 0 {
		return
	}
	st.dirtyMu.Lock()
	for _, id := range ids {
		st.dirty[id] = struct{}{}
	}
	st.dirtyMu.Unlock()
	select {
	case st.wake <- struct{}{}:
	default:
	}
}

// savePresence writes changed presence to the store until run ends and the writer has published its last; then once more.
func (st *State) savePresence(run context.Context) {
	for {
		select {
		case <-st.wake:
		case <-run.Done():
			<-st.gone
			st.saveDirty()
			return
		}
		select {
		case <-time.After(st.saveDelay):
		case <-run.Done():
		}
		st.saveDirty()
	}
}

func (st *State) saveDirty() {
	st.dirtyMu.Lock()
	ids := slices.Collect(maps.Keys(st.dirty))
	st.saving, st.dirty = st.dirty, map[tailnet.NodeID]struct{}{}
	st.dirtyMu.Unlock()
	defer func() {
		st.dirtyMu.Lock()
		st.saving = nil
		st.dirtyMu.Unlock()
	}()
	sn := st.Snapshot()
	save := make(map[tailnet.NodeID]tailnet.Presence, len(ids))
	for _, id := range ids {
		if n := sn.Node(id); n != nil {
			save[id] = n.Presence()
		}
	}
	if len(save) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), commitTimeout)
	defer cancel()
	if err := st.store.SavePresence(ctx, st.id, st.server, save); err != nil {
		st.log.Warn("saving who is online failed; it will be tried again", "err", err)
		st.markDirty(ids...)
		return
	}
	st.changed()
}

// unsaved reports whether the store does not have the node's presence as the snapshot does.
func (st *State) unsaved(id tailnet.NodeID) bool {
	st.dirtyMu.Lock()
	defer st.dirtyMu.Unlock()
	_, dirty := st.dirty[id]
	_, saving := st.saving[id]
	return dirty || saving
}

// endGrace takes nodes offline that were online before the start and have not come back within grace.
func (st *State) endGrace(run context.Context, grace time.Duration) {
	for wait := grace; ; wait = saveDelay {
		select {
		case <-time.After(wait):
		case <-run.Done():
			return
		}
		err := st.Update(run, "grace time after the start is over", func(tx *Tx) error {
			for id := range st.presumed { // the writer runs this, so it may read what the writer owns
				tx.SetOnline(id, false)
			}
			return nil
		})
		if err == nil || run.Err() != nil {
			return
		}
		st.log.Error("nodes that did not come back could not be taken offline; it will be tried again", "err", err)
	}
}

// reapEphemeral deletes ephemeral nodes that have been offline for timeout.
func (st *State) reapEphemeral(run context.Context, timeout time.Duration) {
	every := min(max(timeout/4, 250*time.Millisecond), 30*time.Second)
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-run.Done():
			return
		}
		if !st.leads() || len(st.Snapshot().idleEphemeral(st.now(), timeout)) == 0 {
			continue
		}
		err := st.Update(run, "ephemeral nodes were inactive", func(tx *Tx) error {
			for _, id := range st.Snapshot().idleEphemeral(tx.now, timeout) {
				if p := tx.presenceOf(id); !p.online {
					tx.DeleteNode(id)
				}
			}
			return nil
		})
		if err != nil && run.Err() == nil {
			st.log.Error("inactive ephemeral nodes could not be deleted", "err", err)
		}
	}
}

// idleEphemeral are the ephemeral nodes that have been offline since now-timeout at least.
func (sn *Snapshot) idleEphemeral(now time.Time, timeout time.Duration) (out []tailnet.NodeID) {
	for _, n := range sn.nodes {
		last := n.LastSeen
		if last.Before(n.Created) {
			last = n.Created
		}
		if n.Ephemeral && !n.Online && now.Sub(last) >= timeout {
			out = append(out, n.ID)
		}
	}
	return out
}
