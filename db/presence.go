package db

import (
	"context"
	"maps"
	"slices"
	"strings"

	"gorm.io/gorm"

	"github.com/skein-vpn/skein/tailnet"
)

// maxPresence bounds the rows of one presence transaction, so that a commit which comes meanwhile waits for little.
const maxPresence = 500

// SavePresence writes soft state, without a new Rev and without waiting for the disk. Unknown ids are ignored. Several
// transactions may be needed; after an error some of it may be there.
func (d *DB) SavePresence(ctx context.Context, id tailnet.ID, p map[tailnet.NodeID]tailnet.Presence) error {
	for ids := range slices.Chunk(slices.Sorted(maps.Keys(p)), maxPresence) {
		rows := make([]presenceRow, len(ids))
		for i, n := range ids {
			var err error
			if rows[i], err = makePresenceRow(id, n, p[n]); err != nil {
				return &tailnet.Error{Code: tailnet.Internal, Message: "presence cannot be stored: " + err.Error(), Cause: err}
			}
		}
		if err := d.transact(ctx, soft, func(tx *gorm.DB) error { return putPresence(tx, rows) }); err != nil {
			return err
		}
	}
	return nil
}

// putPresence upserts those rows whose node exists.
func putPresence(tx *gorm.DB, rows []presenceRow) error {
	const columns = 4
	for batch := range slices.Chunk(rows, maxArgs/columns) {
		args := make([]any, 0, 1+columns*len(batch))
		for i := range batch {
			r := &batch[i]
			args = append(args, r.NodeID, r.Online, r.LastSeen, r.PrimaryRoutes)
		}
		args = append(args, batch[0].TailnetID)
		err := tx.Exec("WITH v (node_id, online, last_seen, primary_routes) AS (VALUES "+
			strings.TrimSuffix(strings.Repeat("(?, ?, ?, ?), ", len(batch)), ", ")+") "+
			"INSERT INTO presence (tailnet_id, node_id, online, last_seen, primary_routes) "+
			"SELECT nodes.tailnet_id, v.node_id, v.online, v.last_seen, v.primary_routes FROM v JOIN nodes ON nodes.tailnet_id = ? AND nodes.id = v.node_id "+
			"WHERE true ON CONFLICT (tailnet_id, node_id) DO UPDATE SET "+
			"online = excluded.online, last_seen = excluded.last_seen, primary_routes = excluded.primary_routes", args...).Error
		if err != nil {
			return err
		}
	}
	return nil
}
