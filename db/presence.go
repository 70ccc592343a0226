package db

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"gorm.io/gorm"

	"github.com/skein-vpn/skein/tailnet"
)

// maxPresence bounds the rows of one presence transaction, so that a commit which comes meanwhile waits for little.
const maxPresence = 500

// SavePresence writes soft state, without a new Rev and without waiting for the disk, on behalf of a server (empty: the only
// one). Of nodes whose map session that server holds it writes everything, unless the node is offline and another server has
// taken it over meanwhile; of other nodes, which only their own server may speak for, it writes the routes that they carry.
// Unknown ids are ignored. Several transactions may be needed; after an error some of it may be there.
func (d *DB) SavePresence(ctx context.Context, id tailnet.ID, server string, p map[tailnet.NodeID]tailnet.Presence) error {
	for ids := range slices.Chunk(slices.Sorted(maps.Keys(p)), maxPresence) {
		var own, others []presenceRow
		for _, n := range ids {
			r, err := makePresenceRow(id, n, p[n])
			if err != nil {
				return &tailnet.Error{Code: tailnet.Internal, Message: "presence cannot be stored: " + err.Error(), Cause: err}
			}
			if p[n].Server == server {
				own = append(own, r)
			} else {
				others = append(others, r)
			}
		}
		save := func(tx *gorm.DB) error {
			seq, err := nextPresence(tx, id)
			if err != nil {
				return err
			}
			if err := putPresence(tx, seq, own); err != nil {
				return err
			}
			for _, r := range others {
				if err := tx.Exec("UPDATE presence SET primary_routes = ?, seq = ? WHERE tailnet_id = ? AND node_id = ?",
					r.PrimaryRoutes, seq, r.TailnetID, r.NodeID).Error; err != nil {
					return err
				}
			}
			return nil
		}
		err := d.transact(ctx, soft, save)
		if isForeignKey(err) { // a node was deleted while we wrote
			err = d.transact(ctx, soft, save)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// nextPresence is the number of a save of presence. The row stays locked until the transaction ends, so that a save with a higher
// number is never seen before one with a lower number.
func nextPresence(tx *gorm.DB, id tailnet.ID) (seq int64, err error) {
	err = tx.Raw("INSERT INTO presence_seq (tailnet_id, seq) VALUES (?, 1) "+
		"ON CONFLICT (tailnet_id) DO UPDATE SET seq = presence_seq.seq + 1 RETURNING seq", id).Row().Scan(&seq)
	return seq, err
}

// putPresence upserts those rows whose node exists.
func putPresence(tx *gorm.DB, seq int64, rows []presenceRow) error {
	const columns = 7
	for batch := range slices.Chunk(rows, maxArgs/columns) {
		args := make([]any, 0, 2+columns*len(batch))
		for i := range batch {
			r := &batch[i]
			args = append(args, r.NodeID, r.Online, r.LastSeen, r.PrimaryRoutes, r.Server, r.Failing, r.Steady)
		}
		args = append(args, seq, batch[0].TailnetID)
		// The first row says of what types all are, which PostgreSQL would not know.
		err := tx.Exec("WITH v (node_id, online, last_seen, primary_routes, server, failing, steady) AS (VALUES "+
			"(CAST(? AS BIGINT), CAST(? AS BOOLEAN), CAST(? AS TEXT), CAST(? AS TEXT), CAST(? AS TEXT), CAST(? AS BOOLEAN), CAST(? AS BOOLEAN))"+
			strings.Repeat(", (?, ?, ?, ?, ?, ?, ?)", len(batch)-1)+") "+
			"INSERT INTO presence (tailnet_id, node_id, online, last_seen, primary_routes, server, failing, steady, seq) "+
			"SELECT nodes.tailnet_id, v.node_id, v.online, v.last_seen, v.primary_routes, v.server, v.failing, v.steady, CAST(? AS BIGINT) "+
			"FROM v JOIN nodes ON nodes.tailnet_id = ? AND nodes.id = v.node_id "+
			"WHERE true ON CONFLICT (tailnet_id, node_id) DO UPDATE SET "+
			"online = excluded.online, last_seen = excluded.last_seen, primary_routes = excluded.primary_routes, server = excluded.server, "+
			"failing = excluded.failing, steady = excluded.steady, seq = excluded.seq "+
			"WHERE excluded.online OR presence.server = excluded.server OR NOT presence.online", args...).Error
		if err != nil {
			return err
		}
	}
	return nil
}

// OnlineServers are the servers that nodes of the tailnet are online at, according to what was saved.
func (d *DB) OnlineServers(ctx context.Context, id tailnet.ID) (out []string, err error) {
	err = d.read.WithContext(ctx).Raw("SELECT DISTINCT server FROM presence WHERE tailnet_id = ? AND online ORDER BY server", id).Scan(&out).Error
	return out, d.explain(err)
}

// TakeOffline takes the nodes offline that are online at a server which is gone, and returns how many. A node that another
// server has taken over meanwhile stays as it is.
func (d *DB) TakeOffline(ctx context.Context, id tailnet.ID, server string, now time.Time) (n int, err error) {
	err = d.transact(ctx, soft, func(tx *gorm.DB) error {
		seq, err := nextPresence(tx, id)
		if err != nil {
			return err
		}
		res := tx.Exec("UPDATE presence SET online = FALSE, failing = FALSE, steady = FALSE, last_seen = ?, seq = ? WHERE tailnet_id = ? AND server = ? AND online",
			formatTime(now), seq, id, server)
		n = int(res.RowsAffected)
		return res.Error
	})
	return n, err
}
