package db

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"

	"gorm.io/gorm"
	"gorm.io/gorm/clause"

	"github.com/skein-vpn/skein/tailnet"
)

// Sizes of statements. The driver looks up the arguments of a statement in quadratic time, so bigger is not better:
// BenchmarkCommit.
const (
	maxArgs = 600 // of an upsert
	maxIDs  = 300 // in a list of ids
)

// Commit writes ch as one transaction that takes the tailnet from Rev known to the Rev returned, and appends to its revisions.
// It is durable when Commit returns. If it fails nothing is written; if that is because the tailnet is no longer at known, the
// error is tailnet.ErrConflict. Deletions come first, so that what a deleted row held may be given to another one, and rows may
// swap names, addresses and keys. Deleted nodes leave a tombstone; ids to delete that do not exist are ignored.
//
// A unique key that is taken is never a conflict: whoever took it within the tailnet would have moved its Rev, so the fault is
// in ch itself, or a node of another tailnet has the key (then the code is tailnet.Conflict), and to load and try again would not help.
//
// If the connection to PostgreSQL breaks, Commit finds out what became of the transaction. Only if the database stays away for
// long does it give up; then the code is tailnet.Unavailable and the commit may be there or not, which Load tells.
func (d *DB) Commit(ctx context.Context, id tailnet.ID, known tailnet.Rev, ch *tailnet.Changes) (tailnet.Rev, error) {
	c, err := d.prepare(id, known, ch)
	if err != nil {
		return 0, err
	}
	err = d.transact(ctx, durable, c.run)
	if isUnique(err) {
		// Perhaps one row wants what another row of this commit gives up. Rare, so only now it is worth the trouble.
		c.park = true
		err = d.transact(ctx, durable, c.run)
	}
	for errors.Is(err, errUnknown) {
		if err = d.settle(ctx, c); errors.Is(err, errNotThere) {
			err = d.transact(ctx, durable, c.run)
		}
	}
	if err != nil {
		return 0, d.explainCommit(ctx, c, err)
	}
	if d.pg != nil {
		d.pg.tips.saw(id, c.rev, c.revision.CommitID)
	}
	return c.rev, nil
}

// commit is one Commit as rows, made before the transaction begins so that the database is held for as short as possible.
type commit struct {
	id    tailnet.ID
	known tailnet.Rev
	rev   tailnet.Rev // known+1
	base  string      // by which commit we know known; empty: not known
	ch    *tailnet.Changes
	park  bool // first move rows that will be put out of each other's way

	at       string
	nodes    []nodeRow
	users    []userRow
	keys     []preAuthKeyRow
	creds    []credentialRow
	services []serviceRow
	audit    []auditRow
	policies []policyRow // one at the most
	revision revisionRow
	settings string // of ch.Tailnet, if that is set
}

func (d *DB) prepare(id tailnet.ID, known tailnet.Rev, ch *tailnet.Changes) (*commit, error) {
	at, unique := ch.When, rand.Text()
	if at.IsZero() {
		at = d.now()
	}
	c := &commit{id: id, known: known, rev: known + 1, base: d.pgTip(id, known), ch: ch, at: formatTime(at)}
	var errs [9]error
	c.nodes, errs[0] = makeRows(id, ch.PutNodes, makeNodeRow)
	c.users, errs[1] = makeRows(id, ch.PutUsers, makeUserRow)
	c.keys, errs[2] = makeRows(id, ch.PutPreAuthKeys, makePreAuthKeyRow)
	c.creds, errs[5] = makeRows(id, ch.PutCredentials, makeCredentialRow)
	c.services, errs[8] = makeRows(id, ch.PutServices, makeServiceRow)
	c.audit, errs[7] = makeAuditRows(id, c.rev, ch.Audit, at)
	c.revision, errs[3] = makeRevisionRow(id, c.rev, ch, at)
	c.revision.CommitID = &unique
	if ch.PutPolicy != nil {
		c.policies, errs[4] = makeRows(id, []*tailnet.PolicyVersion{ch.PutPolicy}, makePolicyRow)
	}
	if t := ch.Tailnet; t != nil {
		f := &fields{table: "tailnets", tailnet: int64(id), id: id}
		c.settings = toJSON(f, "settings", t.Settings)
		errs[6] = f.err()
	}
	if err := errors.Join(errs[:]...); err != nil {
		return nil, &tailnet.Error{Code: tailnet.Internal, Message: "the change cannot be stored: " + err.Error(), Cause: err}
	}
	return c, nil
}

func makeRows[T, R any](id tailnet.ID, vs []*T, row func(tailnet.ID, *T) (R, error)) ([]R, error) {
	rows := make([]R, len(vs))
	var errs []error
	for i, v := range vs {
		var err error
		if rows[i], err = row(id, v); err != nil && len(errs) < maxFaults {
			errs = append(errs, err)
		}
	}
	return rows, errors.Join(errs...)
}

// run does the commit inside tx.
func (c *commit) run(tx *gorm.DB) error {
	if err := c.advance(tx); err != nil {
		return err
	}
	if err := c.deletes(tx); err != nil {
		return err
	}
	if c.park {
		if err := c.moveAside(tx); err != nil {
			return err
		}
	}
	if err := upsert(tx, c.users); err != nil {
		return err
	}
	if err := upsert(tx, c.keys); err != nil {
		return err
	}
	if err := upsert(tx, c.creds); err != nil {
		return err
	}
	if err := upsert(tx, c.services); err != nil {
		return err
	}
	if err := upsert(tx, c.nodes); err != nil {
		return err
	}
	if err := upsert(tx, c.policies); err != nil {
		return err
	}
	for rows := range slices.Chunk(c.audit, maxArgs/16) {
		if err := tx.Create(&rows).Error; err != nil {
			return err
		}
	}
	return tx.Create(&c.revision).Error
}

// advance takes the tailnet to the next Rev; this is where a conflict shows, and on engines with several writers the
// tailnet's row is locked from here on.
func (c *commit) advance(tx *gorm.DB) error {
	var res *gorm.DB
	if c.base != "" {
		if at, err := commitOf(tx, c.id, c.known); err != nil {
			return err
		} else if at != nil && *at != c.base {
			return tailnet.ErrConflict
		}
	}
	if t := c.ch.Tailnet; t != nil {
		res = tx.Exec("UPDATE tailnets SET rev = ?, name = ?, settings = ?, last_node_id = ?, last_user_id = ?, last_pre_auth_key_id = ?, last_policy_id = ? WHERE id = ? AND rev = ?",
			c.rev, t.Name, c.settings, t.LastNodeID, t.LastUserID, t.LastPreAuthKeyID, t.LastPolicyID, c.id, c.known)
	} else {
		res = tx.Exec("UPDATE tailnets SET rev = ? WHERE id = ? AND rev = ?", c.rev, c.id, c.known)
	}
	if res.Error != nil {
		return res.Error
	}
	if res.RowsAffected == 1 {
		return nil
	}
	var n int64
	if err := tx.Raw("SELECT count(*) FROM tailnets WHERE id = ?", c.id).Scan(&n).Error; err != nil {
		return err
	}
	if n == 0 {
		return tailnet.Errorf(tailnet.NotFound, "there is no tailnet %d", c.id)
	}
	return tailnet.ErrConflict
}

func (c *commit) deletes(tx *gorm.DB) error {
	const kept = "stable_id, machine_key, node_key, user_id, tags, hostname, name, ipv4, ipv6, ephemeral, created_at, expires_at"
	for ids := range slices.Chunk(c.ch.DeleteNodes, maxIDs) {
		err := tx.Exec("INSERT INTO deleted_nodes (tailnet_id, rev, id, deleted_at, "+kept+") "+
			"SELECT tailnet_id, CAST(? AS BIGINT), id, CAST(? AS TEXT), "+kept+" FROM nodes WHERE tailnet_id = ? AND id IN ?", c.rev, c.at, c.id, ids).Error
		if err != nil {
			return err
		}
		if err := tx.Exec("DELETE FROM nodes WHERE tailnet_id = ? AND id IN ?", c.id, ids).Error; err != nil {
			return err
		}
	}
	for ids := range slices.Chunk(c.ch.DeletePreAuth, maxIDs) {
		if err := tx.Exec("DELETE FROM pre_auth_keys WHERE tailnet_id = ? AND id IN ?", c.id, ids).Error; err != nil {
			return err
		}
	}
	for ids := range slices.Chunk(c.ch.DeleteCredentials, maxIDs) {
		if err := tx.Exec("DELETE FROM credentials WHERE tailnet_id = ? AND id IN ?", c.id, ids).Error; err != nil {
			return err
		}
	}
	for names := range slices.Chunk(c.ch.DeleteServices, maxIDs) {
		if err := tx.Exec("DELETE FROM services WHERE tailnet_id = ? AND id IN ?", c.id, names).Error; err != nil {
			return err
		}
	}
	for ids := range slices.Chunk(c.ch.DeleteUsers, maxIDs) {
		if err := tx.Exec("DELETE FROM users WHERE tailnet_id = ? AND id IN ?", c.id, ids).Error; err != nil {
			return err
		}
	}
	return nil
}

// moveAside gives the rows that are about to be put unique values that nobody else can have: a name with a space is no label.
func (c *commit) moveAside(tx *gorm.DB) error {
	for rows := range slices.Chunk(c.nodes, maxIDs) {
		ids := make([]int64, len(rows))
		for i := range rows {
			ids[i] = rows[i].ID
		}
		err := tx.Exec("UPDATE nodes SET stable_id = 'moved aside ' || tailnet_id || ' ' || id, node_key = 'moved aside ' || tailnet_id || ' ' || id, "+
			"name = 'moved aside ' || id, ipv4 = NULL, ipv6 = NULL WHERE tailnet_id = ? AND id IN ?", c.id, ids).Error
		if err != nil {
			return err
		}
	}
	for rows := range slices.Chunk(c.users, maxIDs) {
		ids := make([]int64, len(rows))
		for i := range rows {
			ids[i] = rows[i].ID
		}
		if err := tx.Exec("UPDATE users SET name = 'moved aside ' || id WHERE tailnet_id = ? AND id IN ?", c.id, ids).Error; err != nil {
			return err
		}
	}
	return nil
}

// upsert puts rows with as few statements as is good.
func upsert[R any](tx *gorm.DB, rows []R) error {
	if len(rows) == 0 {
		return nil
	}
	stmt := &gorm.Statement{DB: tx}
	if err := stmt.Parse(&rows[0]); err != nil {
		return err
	}
	onConflict := clause.OnConflict{UpdateAll: true}
	for _, f := range stmt.Schema.PrimaryFields {
		onConflict.Columns = append(onConflict.Columns, clause.Column{Name: f.DBName})
	}
	for batch := range slices.Chunk(rows, max(1, maxArgs/len(stmt.Schema.DBNames))) {
		if err := tx.Clauses(onConflict).Create(&batch).Error; err != nil {
			return err
		}
	}
	return nil
}

// explainCommit makes the error of a failed commit one that its reader can act on.
func (d *DB) explainCommit(ctx context.Context, c *commit, err error) error {
	switch {
	case isUnique(err):
		if who := d.takenElsewhere(ctx, c); who != "" {
			return &tailnet.Error{Code: tailnet.Conflict, Cause: err, Message: who}
		}
		return &tailnet.Error{Code: tailnet.Internal, Cause: err,
			Message: "the change gives one name, address or key to two rows: " + constraint(err)}
	case isForeignKey(err):
		return &tailnet.Error{Code: tailnet.Internal, Cause: err,
			Message: "the change leaves a node or an auth key with a user that does not exist"}
	}
	return err
}

// takenElsewhere says which node of c has a key or stable id that belongs to a node of another tailnet.
func (d *DB) takenElsewhere(ctx context.Context, c *commit) string {
	for _, r := range c.nodes {
		var other int64
		err := d.read.WithContext(ctx).Raw("SELECT tailnet_id FROM nodes WHERE tailnet_id <> ? AND (node_key = ? OR stable_id = ?)",
			c.id, r.NodeKey, r.StableID).Scan(&other).Error
		if err == nil && other != 0 {
			return fmt.Sprintf("node %d has the key of a node in another tailnet (%d)", r.ID, other)
		}
	}
	return ""
}

// constraint is the part of the engine's message that names the columns.
func constraint(err error) string {
	if pe := pgError(err); pe != nil { // indexes are named TABLE_COLUMN
		return pe.TableName + "." + strings.TrimPrefix(pe.ConstraintName, pe.TableName+"_")
	}
	s := err.Error()
	if i := strings.Index(s, "failed: "); i >= 0 {
		s = s[i+len("failed: "):]
	}
	return strings.TrimRight(s, ")")
}
