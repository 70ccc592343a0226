package db

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"slices"

	"gorm.io/gorm"

	"github.com/skein-vpn/skein/tailnet"
)

// maxStep is how many commits Since goes through; beyond that reading everything is about as cheap.
const maxStep = 500

// Since is what happened to the tailnet after the Rev and the save of presence given, at one moment. The error is tailnet.ErrGap
// if that cannot be told row by row, because too much happened or its history is gone: then Load tells.
func (d *DB) Since(ctx context.Context, id tailnet.ID, known tailnet.Rev, presence int64) (*tailnet.Step, error) {
	var s *tailnet.Step
	err := d.readAtOnce(ctx, func(tx *gorm.DB) (err error) {
		if same, err := d.sameHistory(tx, id, known); err != nil || !same {
			return cmp.Or(err, tailnet.ErrGap)
		}
		if s, err = since(tx, id, known, presence); err != nil || s.Rev == known {
			return err
		}
		return d.sawTip(tx, id, s.Rev)
	})
	if err != nil {
		return nil, err
	}
	return s, nil
}

func since(tx *gorm.DB, id tailnet.ID, known tailnet.Rev, presence int64) (*tailnet.Step, error) {
	var t tailnetRow
	if err := tx.Take(&t, "id = ?", id).Error; errors.Is(err, gorm.ErrRecordNotFound) {
		return nil, tailnet.Errorf(tailnet.NotFound, "there is no tailnet %d", id)
	} else if err != nil {
		return nil, err
	}
	s := &tailnet.Step{Rev: tailnet.Rev(t.Rev), PresenceSeq: presence}
	if s.Rev != known {
		if s.Rev < known || s.Rev-known > maxStep {
			return nil, tailnet.ErrGap
		}
		var rows []revisionRow
		if err := tx.Where("tailnet_id = ? AND rev > ? AND rev <= ?", id, known, s.Rev).Order("rev").Find(&rows).Error; err != nil {
			return nil, err
		}
		if len(rows) != int(s.Rev-known) {
			return nil, tailnet.ErrGap
		}
		if err := readChanges(tx, &t, rows, &s.Changes); err != nil {
			return nil, err
		}
	}
	seq, err := presenceSeq(tx, id)
	if err != nil || seq == presence {
		return s, err
	}
	if seq < presence { // a standby that lacks the last
		return nil, tailnet.ErrGap
	}
	s.PresenceSeq = seq
	var online []presenceRow
	if err := tx.Where("tailnet_id = ? AND seq > ?", id, presence).Order("seq, node_id").Find(&online).Error; err != nil {
		return nil, err
	}
	var faults []error
	for i := range online {
		p, err := online[i].domain()
		faults = append(faults, err)
		s.Presence = append(s.Presence, tailnet.NodeOnline{Node: tailnet.NodeID(online[i].NodeID), Presence: p})
	}
	return s, errors.Join(faults...)
}

// presenceSeq is the number of the newest save of presence.
func presenceSeq(tx *gorm.DB, id tailnet.ID) (seq int64, err error) {
	err = tx.Raw("SELECT seq FROM presence_seq WHERE tailnet_id = ?", id).Row().Scan(&seq)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil
	}
	return seq, err
}

// readChanges collects what the revisions touched, as it is now.
func readChanges(tx *gorm.DB, t *tailnetRow, revs []revisionRow, ch *tailnet.Changes) error {
	var nodes []tailnet.NodeID
	var users []tailnet.UserID
	var keys []tailnet.PreAuthKeyID
	var creds, services []string
	settings := false
	for i := range revs {
		r, err := revs[i].domain()
		if err != nil {
			return err
		}
		settings = settings || r.Settings
		nodes = append(append(nodes, r.PutNodes...), r.DeleteNodes...)
		users = append(append(users, r.PutUsers...), r.DeleteUsers...)
		keys = append(append(keys, r.PutPreAuthKeys...), r.DeletePreAuth...)
		creds = append(append(creds, r.PutCredentials...), r.DeleteCredentials...)
		services = append(append(services, r.PutServices...), r.DeleteServices...)
	}
	var errs [6]error
	ch.PutNodes, ch.DeleteNodes, errs[0] = readRows(tx, t.ID, nodes, (*nodeRow).domain, func(n *tailnet.Node) tailnet.NodeID { return n.ID })
	ch.PutUsers, ch.DeleteUsers, errs[1] = readRows(tx, t.ID, users, (*userRow).domain, func(u *tailnet.User) tailnet.UserID { return u.ID })
	ch.PutPreAuthKeys, ch.DeletePreAuth, errs[2] = readRows(tx, t.ID, keys, (*preAuthKeyRow).domain, func(k *tailnet.PreAuthKey) tailnet.PreAuthKeyID { return k.ID })
	ch.PutCredentials, ch.DeleteCredentials, errs[4] = readRows(tx, t.ID, creds, (*credentialRow).domain, func(c *tailnet.Credential) string { return c.ID })
	ch.PutServices, ch.DeleteServices, errs[5] = readRows(tx, t.ID, services, (*serviceRow).domain, func(s *tailnet.Service) string { return s.Name })
	if settings { // the counter of policies is one of them
		tn, err := t.domain()
		if err != nil {
			return err
		}
		ch.Tailnet = &tn
		newest, faults := policies(tx, tailnet.ID(t.ID), 1, nil)
		errs[3] = errors.Join(faults...)
		if len(newest) > 0 {
			ch.PutPolicy = newest[0]
		}
	}
	return errors.Join(errs[:]...)
}

// readRows are those of ids that exist, as values sorted by id, and those that do not.
func readRows[R, T any, ID cmp.Ordered](tx *gorm.DB, tn int64, ids []ID, domain func(*R) (*T, error), idOf func(*T) ID) (there []*T, gone []ID, err error) {
	slices.Sort(ids)
	ids = slices.Compact(ids)
	for chunk := range slices.Chunk(ids, maxIDs) {
		var rows []R
		if err := tx.Where("tailnet_id = ? AND id IN ?", tn, chunk).Order("id").Find(&rows).Error; err != nil {
			return nil, nil, err
		}
		for i := range rows {
			v, err := domain(&rows[i])
			if err != nil {
				return nil, nil, err
			}
			there = append(there, v)
		}
	}
	for _, id := range ids {
		if _, ok := slices.BinarySearchFunc(there, id, func(v *T, id ID) int { return cmp.Compare(idOf(v), id) }); !ok {
			gone = append(gone, id)
		}
	}
	return there, gone, nil
}
