package db

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"gorm.io/gorm"

	"github.com/skein-vpn/skein/tailnet"
)

// PutAccount stores an account, without its passkeys, in place of the user's earlier one. It is durable when PutAccount returns.
func (d *DB) PutAccount(ctx context.Context, a *tailnet.Account) error {
	f := &fields{table: "accounts", tailnet: int64(a.Tailnet), id: int64(a.User)}
	r := accountRow{
		TailnetID: int64(a.Tailnet), UserID: int64(a.User), Handle: hex.EncodeToString(a.Handle), Password: a.Password, PasswordSetAt: f.time("password_set_at", a.PasswordSet),
		CreatedAt: f.mustTime("created_at", a.Created), SignedInAt: f.time("signed_in_at", a.SignedIn),
	}
	if err := f.err(); err != nil {
		return err
	}
	return d.transact(ctx, durable, func(tx *gorm.DB) error { return upsert(tx, []accountRow{r}) })
}

// SetPassword stores a password of an account that exists, and when it was set; an empty one takes it away.
func (d *DB) SetPassword(ctx context.Context, id tailnet.ID, user tailnet.UserID, password string, at time.Time) error {
	return d.transact(ctx, durable, func(tx *gorm.DB) error {
		return tx.Exec("UPDATE accounts SET password = ?, password_set_at = ? WHERE tailnet_id = ? AND user_id = ?",
			password, formatTime(at), id, user).Error
	})
}

// SignedIn notes when the user has signed in last.
func (d *DB) SignedIn(ctx context.Context, id tailnet.ID, user tailnet.UserID, at time.Time) error {
	return d.transact(ctx, soft, func(tx *gorm.DB) error {
		return tx.Exec("UPDATE accounts SET signed_in_at = ? WHERE tailnet_id = ? AND user_id = ?", formatTime(at), id, user).Error
	})
}

// Account is the account of a user with its passkeys, oldest first; nil if it has none.
func (d *DB) Account(ctx context.Context, id tailnet.ID, user tailnet.UserID) (*tailnet.Account, error) {
	out, err := d.accounts(d.read.WithContext(ctx).Where("tailnet_id = ? AND user_id = ?", id, user))
	if err != nil || len(out) == 0 {
		return nil, err
	}
	return out[0], nil
}

// Accounts are all accounts of the tailnet, by user.
func (d *DB) Accounts(ctx context.Context, id tailnet.ID) ([]*tailnet.Account, error) {
	return d.accounts(d.read.WithContext(ctx).Where("tailnet_id = ?", id))
}

func (d *DB) accounts(q *gorm.DB) ([]*tailnet.Account, error) {
	q = q.Session(&gorm.Session{})
	var rows []accountRow
	if err := q.Order("user_id").Find(&rows).Error; err != nil {
		return nil, d.explain(err)
	}
	var keys []passkeyRow
	if err := q.Order("created_at, id").Find(&keys).Error; err != nil {
		return nil, d.explain(err)
	}
	var out []*tailnet.Account
	for _, r := range rows {
		f := &fields{table: "accounts", tailnet: r.TailnetID, id: r.UserID}
		a := &tailnet.Account{
			Tailnet: tailnet.ID(r.TailnetID), User: tailnet.UserID(r.UserID), Password: r.Password,
			PasswordSet: f.parseTime("password_set_at", r.PasswordSetAt), Created: f.parseTime("created_at", &r.CreatedAt),
			SignedIn: f.parseTime("signed_in_at", r.SignedInAt),
		}
		var err error
		if a.Handle, err = hex.DecodeString(r.Handle); err != nil {
			return nil, fmt.Errorf("the handle of the account of user %d cannot be read: %w", r.UserID, err)
		}
		for _, k := range keys {
			if k.UserID != r.UserID {
				continue
			}
			a.Passkeys = append(a.Passkeys, &tailnet.Passkey{
				ID: k.ID, Name: k.Name, Data: []byte(k.Data), Created: f.parseTime("passkeys.created_at", &k.CreatedAt),
				Used: f.parseTime("passkeys.used_at", k.UsedAt),
			})
		}
		if err := f.err(); err != nil {
			return nil, err
		}
		out = append(out, a)
	}
	return out, nil
}

// DeleteAccount removes an account with its passkeys, the links for it and the user's web sessions. It is no error if there is none.
func (d *DB) DeleteAccount(ctx context.Context, id tailnet.ID, user tailnet.UserID) error {
	return d.transact(ctx, durable, func(tx *gorm.DB) error {
		for _, table := range []string{"passkeys", "accounts", "account_links", "web_sessions"} {
			if err := tx.Exec("DELETE FROM "+table+" WHERE tailnet_id = ? AND user_id = ?", id, user).Error; err != nil {
				return err
			}
		}
		return nil
	})
}

// PutPasskey stores a passkey of an account that exists, in place of the user's earlier one with the same id. It is a
// tailnet.Conflict error if the key belongs to somebody else.
func (d *DB) PutPasskey(ctx context.Context, id tailnet.ID, user tailnet.UserID, k *tailnet.Passkey) error {
	f := &fields{table: "passkeys", tailnet: int64(id), id: k.Name}
	r := passkeyRow{
		TailnetID: int64(id), ID: k.ID, UserID: int64(user), Name: k.Name, Data: string(k.Data),
		CreatedAt: f.mustTime("created_at", k.Created), UsedAt: f.time("used_at", k.Used),
	}
	if err := f.err(); err != nil {
		return err
	}
	return d.transact(ctx, durable, func(tx *gorm.DB) error {
		var owner []int64
		if err := tx.Raw("SELECT user_id FROM passkeys WHERE tailnet_id = ? AND id = ?", r.TailnetID, r.ID).Scan(&owner).Error; err != nil {
			return err
		}
		if len(owner) > 0 && owner[0] != r.UserID {
			return tailnet.Errorf(tailnet.Conflict, "this passkey belongs to another account")
		}
		return upsert(tx, []passkeyRow{r})
	})
}

// DeletePasskey removes a passkey of a user and reports whether there was one.
func (d *DB) DeletePasskey(ctx context.Context, id tailnet.ID, user tailnet.UserID, passkey string) (found bool, err error) {
	err = d.transact(ctx, durable, func(tx *gorm.DB) error {
		q := tx.Exec("DELETE FROM passkeys WHERE tailnet_id = ? AND user_id = ? AND id = ?", id, user, passkey)
		found = q.RowsAffected > 0
		return q.Error
	})
	return found && err == nil, err
}

// PutAccountLink stores a link. It is durable when PutAccountLink returns.
func (d *DB) PutAccountLink(ctx context.Context, l *tailnet.AccountLink) error {
	f := &fields{table: "account_links", tailnet: int64(l.Tailnet), id: int64(l.User)}
	r := accountLinkRow{
		TailnetID: int64(l.Tailnet), ID: l.ID, Name: l.Name, Role: string(l.Role), First: l.First,
		CreatedAt: f.mustTime("created_at", l.Created), ExpiresAt: f.mustTime("expires_at", l.Expires), UsedAt: f.time("used_at", l.Used),
	}
	if l.User != 0 {
		u := int64(l.User)
		r.UserID = &u
	}
	if err := f.err(); err != nil {
		return err
	}
	return d.transact(ctx, durable, func(tx *gorm.DB) error { return upsert(tx, []accountLinkRow{r}) })
}

// AccountLink is the link with this id; nil if there is none.
func (d *DB) AccountLink(ctx context.Context, id tailnet.ID, link string) (*tailnet.AccountLink, error) {
	var r accountLinkRow
	err := d.read.WithContext(ctx).Where("tailnet_id = ? AND id = ?", id, link).Take(&r).Error
	if errors.Is(err, gorm.ErrRecordNotFound) {
		return nil, nil
	} else if err != nil {
		return nil, d.explain(err)
	}
	f := &fields{table: "account_links", tailnet: r.TailnetID, id: r.Name}
	l := &tailnet.AccountLink{
		ID: r.ID, Tailnet: tailnet.ID(r.TailnetID), Name: r.Name, Role: tailnet.Role(r.Role), First: r.First,
		Created: f.parseTime("created_at", &r.CreatedAt), Expires: f.parseTime("expires_at", &r.ExpiresAt), Used: f.parseTime("used_at", r.UsedAt),
	}
	if r.UserID != nil {
		l.User = tailnet.UserID(*r.UserID)
	}
	return l, f.err()
}

// UseAccountLink marks a link as used, and reports whether it was not so before. A zero time makes it unused again.
func (d *DB) UseAccountLink(ctx context.Context, id tailnet.ID, link string, at time.Time) (first bool, err error) {
	err = d.transact(ctx, durable, func(tx *gorm.DB) error {
		stmt, args := "UPDATE account_links SET used_at = ? WHERE tailnet_id = ? AND id = ? AND used_at IS NULL", []any{formatTime(at), id, link}
		if at.IsZero() {
			stmt, args = "UPDATE account_links SET used_at = NULL WHERE tailnet_id = ? AND id = ?", args[1:]
		}
		q := tx.Exec(stmt, args...)
		first = q.RowsAffected > 0
		return q.Error
	})
	return first && err == nil, err
}

// DeleteAccountLinks removes the links for a user; for 0, those that a server made because there was no administrator.
func (d *DB) DeleteAccountLinks(ctx context.Context, id tailnet.ID, user tailnet.UserID) error {
	return d.transact(ctx, durable, func(tx *gorm.DB) error {
		if user == 0 {
			return tx.Exec("DELETE FROM account_links WHERE tailnet_id = ? AND first", id).Error
		}
		return tx.Exec("DELETE FROM account_links WHERE tailnet_id = ? AND user_id = ?", id, user).Error
	})
}

// DeleteAccountLinksBefore removes the links of all tailnets whose time was over at t, and returns how many.
func (d *DB) DeleteAccountLinksBefore(ctx context.Context, t time.Time) (int, error) {
	return d.purge(ctx, "DELETE FROM account_links WHERE (tailnet_id, id) IN (SELECT tailnet_id, id FROM account_links WHERE expires_at < ? LIMIT ?)", t)
}

// PutWebSession stores a session in place of one with the same id.
func (d *DB) PutWebSession(ctx context.Context, s *tailnet.WebSession) error {
	f := &fields{table: "web_sessions", tailnet: int64(s.Tailnet), id: int64(s.User)}
	r := webSessionRow{
		TailnetID: int64(s.Tailnet), ID: s.ID, UserID: int64(s.User), Method: s.Method, Remote: s.Remote, Agent: s.Agent, NodesEndAt: f.time("nodes_end_at", s.NodesEnd),
		CreatedAt: f.mustTime("created_at", s.Created), SeenAt: f.mustTime("seen_at", s.Seen), ExpiresAt: f.mustTime("expires_at", s.Expires),
	}
	if err := f.err(); err != nil {
		return err
	}
	return d.transact(ctx, durable, func(tx *gorm.DB) error { return upsert(tx, []webSessionRow{r}) })
}

// TouchWebSession notes when a session was last used.
func (d *DB) TouchWebSession(ctx context.Context, id tailnet.ID, session string, seen time.Time) error {
	return d.transact(ctx, soft, func(tx *gorm.DB) error {
		return tx.Exec("UPDATE web_sessions SET seen_at = ? WHERE tailnet_id = ? AND id = ?", formatTime(seen), id, session).Error
	})
}

// WebSession is the session with this id; nil if there is none.
func (d *DB) WebSession(ctx context.Context, id tailnet.ID, session string) (*tailnet.WebSession, error) {
	out, err := d.webSessions(d.read.WithContext(ctx).Where("tailnet_id = ? AND id = ?", id, session))
	if err != nil || len(out) == 0 {
		return nil, err
	}
	return out[0], nil
}

// WebSessions are the sessions of a user, oldest first.
func (d *DB) WebSessions(ctx context.Context, id tailnet.ID, user tailnet.UserID) ([]*tailnet.WebSession, error) {
	return d.webSessions(d.read.WithContext(ctx).Where("tailnet_id = ? AND user_id = ?", id, user))
}

func (d *DB) webSessions(q *gorm.DB) ([]*tailnet.WebSession, error) {
	var rows []webSessionRow
	if err := q.Order("created_at, id").Find(&rows).Error; err != nil {
		return nil, d.explain(err)
	}
	out := make([]*tailnet.WebSession, len(rows))
	for i, r := range rows {
		f := &fields{table: "web_sessions", tailnet: r.TailnetID, id: r.UserID}
		out[i] = &tailnet.WebSession{
			ID: r.ID, Tailnet: tailnet.ID(r.TailnetID), User: tailnet.UserID(r.UserID), Method: r.Method, Remote: r.Remote, Agent: r.Agent,
			NodesEnd: f.parseTime("nodes_end_at", r.NodesEndAt),
			Created:  f.parseTime("created_at", &r.CreatedAt), Seen: f.parseTime("seen_at", &r.SeenAt), Expires: f.parseTime("expires_at", &r.ExpiresAt),
		}
		if err := f.err(); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// DeleteWebSession removes a session. It is no error if there is none.
func (d *DB) DeleteWebSession(ctx context.Context, id tailnet.ID, session string) error {
	return d.transact(ctx, durable, func(tx *gorm.DB) error {
		return tx.Exec("DELETE FROM web_sessions WHERE tailnet_id = ? AND id = ?", id, session).Error
	})
}

// DeleteWebSessions removes all sessions of a user but keep, which may be empty.
func (d *DB) DeleteWebSessions(ctx context.Context, id tailnet.ID, user tailnet.UserID, keep string) error {
	return d.transact(ctx, durable, func(tx *gorm.DB) error {
		return tx.Exec("DELETE FROM web_sessions WHERE tailnet_id = ? AND user_id = ? AND id <> ?", id, user, keep).Error
	})
}

// DeleteWebSessionsBefore removes the sessions of all tailnets whose time was over at expired, or which were last used before
// idle, and returns how many.
func (d *DB) DeleteWebSessionsBefore(ctx context.Context, expired, idle time.Time) (int, error) {
	const stmt = "DELETE FROM web_sessions WHERE (tailnet_id, id) IN (SELECT tailnet_id, id FROM web_sessions WHERE "
	n, err := d.purge(ctx, stmt+"expires_at < ? LIMIT ?)", expired)
	if err != nil {
		return n, err
	}
	m, err := d.purge(ctx, stmt+"seen_at < ? LIMIT ?)", idle)
	return n + m, err
}
