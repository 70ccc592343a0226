package db

import (
	"context"
	"errors"
	"time"

	"gorm.io/gorm"
	"tailscale.com/types/key"

	"github.com/skein-vpn/skein/tailnet"
)

// PutLogin stores a pending registration in place of one with the same ID. It is durable when PutLogin returns.
func (d *DB) PutLogin(ctx context.Context, l *tailnet.Login) error {
	r, err := makeLoginRow(l)
	if err != nil {
		return &tailnet.Error{Code: tailnet.Internal, Message: "the login cannot be stored: " + err.Error(), Cause: err}
	}
	return d.transact(ctx, durable, func(tx *gorm.DB) error { return upsert(tx, []loginRow{r}) })
}

// Login is the pending registration with this ID; a tailnet.NotFound error if there is none.
func (d *DB) Login(ctx context.Context, id tailnet.ID, login string) (*tailnet.Login, error) {
	l, err := d.takeLogin(d.read.WithContext(ctx).Where("tailnet_id = ? AND id = ?", id, login))
	if err == nil && l == nil {
		return nil, tailnet.Errorf(tailnet.NotFound, "there is no such login waiting; it may have been completed or its time is over")
	}
	return l, err
}

// LoginByNodeKey is the newest pending registration of this NodeKey, or nil if there is none.
func (d *DB) LoginByNodeKey(ctx context.Context, id tailnet.ID, k key.NodePublic) (*tailnet.Login, error) {
	text, err := k.MarshalText()
	if err != nil {
		return nil, err
	}
	return d.takeLogin(d.read.WithContext(ctx).Where("tailnet_id = ? AND node_key = ?", id, string(text)).Order("created_at DESC, id"))
}

func (d *DB) takeLogin(q *gorm.DB) (*tailnet.Login, error) {
	var r loginRow
	if err := q.Take(&r).Error; errors.Is(err, gorm.ErrRecordNotFound) {
		return nil, nil
	} else if err != nil {
		return nil, d.explain(err)
	}
	return r.domain()
}

// Logins are the pending registrations of the tailnet, oldest first.
func (d *DB) Logins(ctx context.Context, id tailnet.ID) ([]*tailnet.Login, error) {
	var rows []loginRow
	if err := d.read.WithContext(ctx).Where("tailnet_id = ?", id).Order("created_at, id").Find(&rows).Error; err != nil {
		return nil, d.explain(err)
	}
	out := make([]*tailnet.Login, len(rows))
	for i := range rows {
		var err error
		if out[i], err = rows[i].domain(); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// CountLogins is how many pending registrations the tailnet has.
func (d *DB) CountLogins(ctx context.Context, id tailnet.ID) (int, error) {
	var n int64
	err := d.read.WithContext(ctx).Model(&loginRow{}).Where("tailnet_id = ?", id).Count(&n).Error
	return int(n), d.explain(err)
}

// DeleteLogin removes a pending registration. It is no error if there is none.
func (d *DB) DeleteLogin(ctx context.Context, id tailnet.ID, login string) error {
	return d.transact(ctx, durable, func(tx *gorm.DB) error {
		return tx.Exec("DELETE FROM logins WHERE tailnet_id = ? AND id = ?", id, login).Error
	})
}

// DeleteLoginsBefore removes the pending registrations of all tailnets that were made before t, and returns how many.
func (d *DB) DeleteLoginsBefore(ctx context.Context, t time.Time) (int, error) {
	return d.purge(ctx, "DELETE FROM logins WHERE (tailnet_id, id) IN (SELECT tailnet_id, id FROM logins WHERE created_at < ? LIMIT ?)", t)
}
