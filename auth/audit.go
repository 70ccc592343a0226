package auth

import (
	"context"
	"fmt"
	"time"

	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// AuditStore reads the audit log, which the state writes with its commits.
type AuditStore interface {
	// AuditLog are the entries that q chooses: the newest first, or, with q.After, the oldest first.
	AuditLog(ctx context.Context, id tailnet.ID, q tailnet.AuditQuery) ([]*tailnet.AuditEntry, error)
}

// AuditLog are the entries of the audit log that q chooses: the newest first, or, with q.After, the oldest first.
func (a *Auth) AuditLog(ctx context.Context, q tailnet.AuditQuery) ([]*tailnet.AuditEntry, error) {
	es, err := a.o.Store.AuditLog(ctx, a.o.Tailnet, q)
	if err != nil {
		return nil, fmt.Errorf("reading the audit log: %w", err)
	}
	return es, nil
}

// Note adds an entry to the audit log for something that is no change of the tailnet's state.
func (a *Auth) Note(ctx context.Context, why string, e tailnet.AuditEntry) error {
	return a.st.Update(ctx, why, func(tx *state.Tx) error {
		tx.Audit(e)
		return nil
	})
}

// streamEvery is how often an AuditStream looks for entries even if nothing has woken it.
const streamEvery = time.Minute

// streamPage is how many entries it reads at once.
const streamPage = 500

// StreamAudit hands entries that stand behind pos in the log to write, in order, until ctx ends or write fails; then its error is
// returned. It wakes with every commit.
func (a *Auth) StreamAudit(ctx context.Context, pos tailnet.AuditPos, write func([]*tailnet.AuditEntry) error) error {
	tick := time.NewTicker(streamEvery)
	defer tick.Stop()
	for {
		sn := a.st.Snapshot() // taken first: what is committed after it wakes us
		for {
			es, err := a.AuditLog(ctx, tailnet.AuditQuery{After: &pos, Limit: streamPage})
			if err != nil {
				if ctx.Err() == nil {
					a.log.Warn("the audit log cannot be read at the moment", "err", err)
				}
				break
			}
			if len(es) > 0 {
				if err := write(es); err != nil {
					return err
				}
				pos = es[len(es)-1].Pos()
			}
			if len(es) < streamPage {
				break
			}
		}
		rev := sn.Rev
		for a.st.Snapshot().Rev == rev {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-a.st.Snapshot().Superseded(): // presence as well, which changes no Rev
			case <-tick.C:
				rev = -1
			}
		}
	}
}
