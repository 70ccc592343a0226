package db

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"gorm.io/gorm"

	"github.com/skein-vpn/skein/tailnet"
)

// Load reads everything the tailnet holds, at one Rev. Rows that cannot be understood are an error that names table, id and
// column of the first of them; nothing is left out silently.
func (d *DB) Load(ctx context.Context, id tailnet.ID) (*tailnet.Contents, error) {
	var c *tailnet.Contents
	err := d.readAtOnce(ctx, func(tx *gorm.DB) (err error) {
		if c, err = load(tx, id); err != nil {
			return err
		}
		return d.sawTip(tx, id, c.Rev)
	})
	if err != nil {
		return nil, err
	}
	return c, nil
}

// readAtOnce runs f in a transaction that reads everything as it was at one moment, again if the connection breaks or PostgreSQL
// asks for it.
func (d *DB) readAtOnce(ctx context.Context, f func(tx *gorm.DB) error) error {
	o := &sql.TxOptions{ReadOnly: true} // SQLite's transactions are of one moment by themselves
	if d.pg != nil {
		o.Isolation = sql.LevelRepeatableRead
	}
	err := d.read.WithContext(ctx).Transaction(f, o)
	for end := time.Now().Add(readPatience); d.pg != nil && (isLost(err) || asksForRetry(err)) && ctx.Err() == nil && time.Now().Before(end); {
		select {
		case <-time.After(readAgain):
		case <-ctx.Done():
		case <-d.closed:
			return errClosed
		}
		err = d.read.WithContext(ctx).Transaction(f, o)
	}
	return d.explain(err)
}

func load(tx *gorm.DB, id tailnet.ID) (*tailnet.Contents, error) {
	var t tailnetRow
	if err := tx.Take(&t, "id = ?", id).Error; errors.Is(err, gorm.ErrRecordNotFound) {
		return nil, tailnet.Errorf(tailnet.NotFound, "there is no tailnet %d", id)
	} else if err != nil {
		return nil, fmt.Errorf("table tailnets, id %d: %w", id, err)
	}
	c := &tailnet.Contents{Rev: tailnet.Rev(t.Rev)}
	var faults []error
	var err error
	if c.Tailnet, err = t.domain(); err != nil {
		faults = append(faults, err)
	}
	c.Users, faults = loadAll(tx, id, "id", faults, (*userRow).domain)
	c.PreAuthKeys, faults = loadAll(tx, id, "id", faults, (*preAuthKeyRow).domain)
	c.Credentials, faults = loadAll(tx, id, "id", faults, (*credentialRow).domain)
	c.Services, faults = loadAll(tx, id, "id", faults, (*serviceRow).domain)
	c.Nodes, faults = loadAll(tx, id, "id", faults, (*nodeRow).domain)

	newest, faults := policies(tx, id, 1, faults)
	if len(newest) > 0 {
		c.Policy = newest[0]
	}

	type pair struct {
		node tailnet.NodeID
		p    tailnet.Presence
	}
	pairs, faults := loadAll(tx, id, "node_id", faults, func(r *presenceRow) (pair, error) {
		p, err := r.domain()
		return pair{tailnet.NodeID(r.NodeID), p}, err
	})
	if len(faults) > maxFaults {
		faults = append(faults[:maxFaults], fmt.Errorf("and %d more", len(faults)-maxFaults))
	}
	if err := errors.Join(faults...); err != nil {
		return nil, err
	}
	c.Presence = make(map[tailnet.NodeID]tailnet.Presence, len(pairs))
	for _, p := range pairs {
		c.Presence[p.node] = p.p
	}
	c.PresenceSeq, err = presenceSeq(tx, id)
	return c, err
}

// loadAll reads all rows of type R that belong to the tailnet, sorted by the column order, and appends to faults what is wrong
// with them.
func loadAll[R, T any](tx *gorm.DB, id tailnet.ID, order string, faults []error, domain func(*R) (T, error)) ([]T, []error) {
	var rows []R
	if err := tx.Where("tailnet_id = ?", id).Order(order).Find(&rows).Error; err != nil {
		return nil, append(faults, findBadRow[R](tx, id, order, err))
	}
	if len(rows) == 0 {
		return nil, faults
	}
	out := make([]T, len(rows))
	for i := range rows {
		v, err := domain(&rows[i])
		if err != nil {
			faults = append(faults, err)
		}
		out[i] = v
	}
	return out, faults
}

// findBadRow reads the rows again one by one to say which of them failed with err: a value that does not even fit the type of
// its column, which SQLite allows.
func findBadRow[R any](tx *gorm.DB, id tailnet.ID, order string, err error) error {
	table := any(*new(R)).(interface{ TableName() string }).TableName()
	var ids []string
	if err := tx.Table(table).Where("tailnet_id = ?", id).Order(order).Pluck("CAST("+order+" AS TEXT)", &ids).Error; err != nil {
		return fmt.Errorf("table %s: %w", table, err)
	}
	for _, one := range ids {
		var r R
		if err := tx.Where("tailnet_id = ? AND CAST("+order+" AS TEXT) = ?", id, one).Take(&r).Error; err != nil {
			return fmt.Errorf("table %s, tailnet %d, id %s: %w", table, id, one, err)
		}
	}
	return fmt.Errorf("table %s: %w", table, err)
}
