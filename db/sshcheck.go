package db

import (
	"context"
	"errors"
	"time"

	"gorm.io/gorm"

	"github.com/skein-vpn/skein/tailnet"
)

// PutSSHCheck stores an SSH check in place of one with the same ID. It is durable when PutSSHCheck returns.
func (d *DB) PutSSHCheck(ctx context.Context, c *tailnet.SSHCheck) error {
	r, err := makeSSHCheckRow(c)
	if err != nil {
		return &tailnet.Error{Code: tailnet.Internal, Message: "the SSH check cannot be stored: " + err.Error(), Cause: err}
	}
	return d.transact(ctx, durable, func(tx *gorm.DB) error { return upsert(tx, []sshCheckRow{r}) })
}

// DecideSSHCheck stores what c says of approval and denial, if nobody has decided yet; it reports whether that was so.
func (d *DB) DecideSSHCheck(ctx context.Context, c *tailnet.SSHCheck) (first bool, err error) {
	r, err := makeSSHCheckRow(c)
	if err != nil {
		return false, &tailnet.Error{Code: tailnet.Internal, Message: "the decision cannot be stored: " + err.Error(), Cause: err}
	}
	err = d.transact(ctx, durable, func(tx *gorm.DB) error {
		q := tx.Exec("UPDATE ssh_checks SET approved_at = ?, denied = ?, decided_by = ? "+
			"WHERE tailnet_id = ? AND id = ? AND approved_at IS NULL AND NOT denied", r.ApprovedAt, r.Denied, r.DecidedBy, r.TailnetID, r.ID)
		first = q.RowsAffected > 0
		return q.Error
	})
	return first && err == nil, err
}

// SSHCheck is the SSH check with this ID; a tailnet.NotFound error if there is none.
func (d *DB) SSHCheck(ctx context.Context, id tailnet.ID, check string) (*tailnet.SSHCheck, error) {
	c, err := d.takeSSHCheck(d.read.WithContext(ctx).Where("tailnet_id = ? AND id = ?", id, check))
	if err == nil && c == nil {
		return nil, tailnet.Errorf(tailnet.NotFound, "there is no such SSH session waiting")
	}
	return c, err
}

// LastSSHCheck is the newest approved SSH check of sessions like c (same nodes, owner of the source and user), or nil.
func (d *DB) LastSSHCheck(ctx context.Context, c *tailnet.SSHCheck) (*tailnet.SSHCheck, error) {
	return d.takeSSHCheck(d.read.WithContext(ctx).
		Where("tailnet_id = ? AND src = ? AND dst = ? AND src_user = ? AND ssh_user = ?", c.Tailnet, c.Src, c.Dst, c.SrcUser, c.SSHUser).
		Where("approved_at IS NOT NULL AND NOT denied").Order("approved_at DESC, id"))
}

func (d *DB) takeSSHCheck(q *gorm.DB) (*tailnet.SSHCheck, error) {
	var r sshCheckRow
	if err := q.Take(&r).Error; errors.Is(err, gorm.ErrRecordNotFound) {
		return nil, nil
	} else if err != nil {
		return nil, d.explain(err)
	}
	return r.domain()
}

// SSHChecks are the SSH checks of the tailnet that were made after t and that nobody has decided yet, oldest first.
func (d *DB) SSHChecks(ctx context.Context, id tailnet.ID, t time.Time) ([]*tailnet.SSHCheck, error) {
	var rows []sshCheckRow
	err := d.read.WithContext(ctx).Where("tailnet_id = ? AND created_at > ? AND approved_at IS NULL AND NOT denied", id, formatTime(t)).
		Order("created_at, id").Find(&rows).Error
	if err != nil {
		return nil, d.explain(err)
	}
	out := make([]*tailnet.SSHCheck, len(rows))
	for i := range rows {
		if out[i], err = rows[i].domain(); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// DeleteSSHChecksBefore removes the SSH checks of all tailnets that were made before t, and returns how many.
func (d *DB) DeleteSSHChecksBefore(ctx context.Context, t time.Time) (int, error) {
	return d.purge(ctx, "DELETE FROM ssh_checks WHERE (tailnet_id, id) IN (SELECT tailnet_id, id FROM ssh_checks WHERE created_at < ? LIMIT ?)", t)
}
