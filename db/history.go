package db

import (
	"context"
	"errors"
	"time"

	"gorm.io/gorm"
	"tailscale.com/types/key"

	"github.com/skein-vpn/skein/tailnet"
)

// TombstoneAge is how long a deleted node is remembered by default, for PurgeDeletedNodes.
const TombstoneAge = 90 * 24 * time.Hour

// purgeBatch bounds the rows that one transaction of a purge deletes, so that commits get in between.
const purgeBatch = 1000

// Revision says which rows one commit touched, and why.
type Revision struct {
	Rev      tailnet.Rev
	At       time.Time
	Why      []string
	Settings bool // the tailnet's own row: name, counters

	PutNodes       []tailnet.NodeID
	DeleteNodes    []tailnet.NodeID
	PutUsers       []tailnet.UserID
	DeleteUsers    []tailnet.UserID
	PutPreAuthKeys []tailnet.PreAuthKeyID
	DeletePreAuth  []tailnet.PreAuthKeyID

	PutCredentials    []string
	DeleteCredentials []string
	PutServices       []string
	DeleteServices    []string
}

// Revisions returns up to limit commits after the Rev given, in order. Old ones may have been purged: a reader who finds that
// the first is not after+1 has to Load.
func (d *DB) Revisions(ctx context.Context, id tailnet.ID, after tailnet.Rev, limit int) ([]*Revision, error) {
	var rows []revisionRow
	if err := d.read.WithContext(ctx).Where("tailnet_id = ? AND rev > ?", id, after).Order("rev").Limit(limit).Find(&rows).Error; err != nil {
		return nil, d.explain(err)
	}
	out := make([]*Revision, len(rows))
	for i := range rows {
		var err error
		if out[i], err = rows[i].domain(); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// DeletedNode is the node that was deleted last while it had this NodeKey, or nil if there was none (or it has been purged).
// Only what a tombstone keeps is set: ids, keys, owner, names, addresses, creation and expiry.
func (d *DB) DeletedNode(ctx context.Context, id tailnet.ID, k key.NodePublic) (*tailnet.Node, error) {
	text, err := k.MarshalText()
	if err != nil {
		return nil, err
	}
	var r deletedNodeRow
	err = d.read.WithContext(ctx).Where("tailnet_id = ? AND node_key = ?", id, string(text)).Order("rev DESC").Take(&r).Error
	if errors.Is(err, gorm.ErrRecordNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, d.explain(err)
	}
	return r.domain()
}

// PurgeDeletedNodes forgets nodes of all tailnets that were deleted before t, and returns how many.
func (d *DB) PurgeDeletedNodes(ctx context.Context, t time.Time) (int, error) {
	return d.purge(ctx, "DELETE FROM deleted_nodes WHERE (tailnet_id, rev, id) IN "+
		"(SELECT tailnet_id, rev, id FROM deleted_nodes WHERE deleted_at < ? LIMIT ?)", t)
}

// PurgeRevisions forgets commits of all tailnets that were made before t, and returns how many.
func (d *DB) PurgeRevisions(ctx context.Context, t time.Time) (int, error) {
	return d.purge(ctx, "DELETE FROM revisions WHERE (tailnet_id, rev) IN "+
		"(SELECT tailnet_id, rev FROM revisions WHERE at < ? LIMIT ?)", t)
}

// purge repeats a statement that deletes up to a number of rows older than t, until there are none.
func (d *DB) purge(ctx context.Context, stmt string, t time.Time) (total int, err error) {
	for {
		var n int64
		err := d.transact(ctx, soft, func(tx *gorm.DB) error {
			res := tx.Exec(stmt, formatTime(t), purgeBatch)
			n = res.RowsAffected
			return res.Error
		})
		if err != nil {
			return total, err
		}
		total += int(n)
		if n < purgeBatch {
			return total, nil
		}
	}
}
