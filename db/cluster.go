package db

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"gorm.io/gorm"

	"github.com/skein-vpn/skein/tailnet"
)

// What several servers share beside the tailnets. All times are the database's, so that clocks of servers may differ.

// notifyChannel is where PostgreSQL wakes servers (LISTEN, NOTIFY).
const notifyChannel = "skein"

// clock is the time of the database as SQL, in milliseconds since 1970.
func (d *DB) clock() string {
	if d.pg != nil {
		return "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)"
	}
	return "CAST(unixepoch('subsec') * 1000 AS INTEGER)"
}

// Time is what the database's clock says.
func (d *DB) Time(ctx context.Context) (time.Time, error) {
	var micro int64
	q := "SELECT CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT)"
	if d.pg == nil {
		q = "SELECT CAST(unixepoch('subsec') * 1000 AS INTEGER) * 1000"
	}
	if err := d.read.WithContext(ctx).Raw(q).Row().Scan(&micro); err != nil {
		return time.Time{}, d.explain(err)
	}
	return time.UnixMicro(micro).UTC(), nil
}

// Beat says that the server is there; it is entered if it is not known yet. It is durable, so that a primary that has lost its standby
// takes it from nobody.
func (d *DB) Beat(ctx context.Context, s tailnet.Server) error {
	return d.transact(ctx, durable, func(tx *gorm.DB) error {
		return tx.Exec("INSERT INTO servers (id, name, info, clock_skew, started, beat) VALUES (?, ?, ?, ?, "+d.clock()+", "+d.clock()+") "+
			"ON CONFLICT (id) DO UPDATE SET name = excluded.name, info = excluded.info, clock_skew = excluded.clock_skew, beat = excluded.beat",
			s.ID, s.Name, s.Info, s.Skew.Milliseconds()).Error
	})
}

// Servers are all servers that are entered, sorted by name and id; those that were heard of within ttl are alive.
func (d *DB) Servers(ctx context.Context, ttl time.Duration) ([]tailnet.Server, error) {
	var rows []struct {
		ID, Name, Info                string
		Started, Beat, Now, ClockSkew int64
	}
	err := d.read.WithContext(ctx).Raw("SELECT id, name, info, clock_skew, started, beat, " + d.clock() + " AS now FROM servers ORDER BY name, id").Scan(&rows).Error
	if err != nil {
		return nil, d.explain(err)
	}
	out := make([]tailnet.Server, len(rows))
	for i, r := range rows {
		out[i] = tailnet.Server{
			ID: r.ID, Name: r.Name, Info: r.Info, Started: time.UnixMilli(r.Started).UTC(), Beat: time.UnixMilli(r.Beat).UTC(),
			Alive: r.Now-r.Beat < ttl.Milliseconds(), Skew: time.Duration(r.ClockSkew) * time.Millisecond,
		}
	}
	return out, nil
}

// LeaveServer gives the leases of a server up and makes it one that was heard of ttl ago for the last time.
func (d *DB) LeaveServer(ctx context.Context, id string, ttl time.Duration) error {
	return d.transact(ctx, soft, func(tx *gorm.DB) error {
		if err := tx.Exec("DELETE FROM leases WHERE holder = ?", id).Error; err != nil {
			return err
		}
		return tx.Exec("UPDATE servers SET beat = "+d.clock()+" - ? WHERE id = ?", ttl.Milliseconds(), id).Error
	})
}

// ForgetServers takes out servers that have not been heard of for so long.
func (d *DB) ForgetServers(ctx context.Context, age time.Duration) error {
	return d.transact(ctx, soft, func(tx *gorm.DB) error {
		return tx.Exec("DELETE FROM servers WHERE beat < "+d.clock()+" - ?", age.Milliseconds()).Error
	})
}

// Lease gives the holder a lease, or renews it, until ttl from now; it reports false if somebody else holds it.
func (d *DB) Lease(ctx context.Context, name, holder string, ttl time.Duration) (held bool, err error) {
	err = d.transact(ctx, soft, func(tx *gorm.DB) error {
		res := tx.Exec("INSERT INTO leases (name, holder, expires) VALUES (?, ?, "+d.clock()+" + ?) ON CONFLICT (name) DO UPDATE SET "+
			"holder = excluded.holder, expires = excluded.expires WHERE leases.holder = excluded.holder OR leases.expires < "+d.clock(),
			name, holder, ttl.Milliseconds())
		held = res.RowsAffected > 0
		return res.Error
	})
	return held && err == nil, err
}

// LeaseHolder is who holds a lease; empty if nobody does.
func (d *DB) LeaseHolder(ctx context.Context, name string) (holder string, err error) {
	err = d.read.WithContext(ctx).Raw("SELECT holder FROM leases WHERE name = ? AND expires >= "+d.clock(), name).Scan(&holder).Error
	return holder, d.explain(err)
}

// Secret is what all servers know under a name. The first who asks stores what fresh returns.
func (d *DB) Secret(ctx context.Context, name string, fresh func() (string, error)) (value string, err error) {
	get := func(tx *gorm.DB) error {
		value = ""
		return tx.Raw("SELECT value FROM secrets WHERE name = ?", name).Scan(&value).Error
	}
	if err := get(d.read.WithContext(ctx)); err != nil || value != "" {
		return value, d.explain(err)
	}
	v, err := fresh()
	if err != nil {
		return "", err
	}
	err = d.transact(ctx, durable, func(tx *gorm.DB) error {
		if err := tx.Exec("INSERT INTO secrets (name, value, created_at) VALUES (?, ?, ?) ON CONFLICT (name) DO NOTHING", name, v, formatTime(d.now())).Error; err != nil {
			return err
		}
		return get(tx)
	})
	return value, err
}

// Notify wakes all who Listen, this process included.
func (d *DB) Notify(ctx context.Context, payload string) error {
	if d.pg == nil {
		return errNoNotify
	}
	return d.explain(d.write.WithContext(ctx).Exec("SELECT pg_notify(?, ?)", notifyChannel, payload).Error)
}

var errNoNotify = errors.New("only PostgreSQL can wake other servers")

// Listen calls f with what was given to Notify, after a first call with an empty text once it hears everything, until ctx ends or
// the connection breaks; the error says which. Between two looks at whether the connection is still there pass check at the most.
func (d *DB) Listen(ctx context.Context, check time.Duration, f func(payload string)) error {
	if d.pg == nil {
		return errNoNotify
	}
	cfg := d.pg.config.Copy()
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = connectTimeout
	}
	cfg.RuntimeParams["application_name"] = "skein listens"
	c, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return d.explain(err)
	}
	defer func() {
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = c.Close(end)
	}()
	if _, err := c.Exec(ctx, "LISTEN "+notifyChannel); err != nil {
		return d.explain(err)
	}
	f("")
	for {
		wait, cancel := context.WithTimeout(ctx, check)
		n, err := c.WaitForNotification(wait)
		cancel()
		switch {
		case err == nil:
			f(n.Payload)
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, context.DeadlineExceeded):
			wait, cancel := context.WithTimeout(ctx, check)
			err := c.Ping(wait)
			cancel()
			if err != nil {
				return fmt.Errorf("the connection that listens is gone: %w", d.explain(err))
			}
		default:
			return d.explain(err)
		}
	}
}
