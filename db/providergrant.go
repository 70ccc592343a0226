package db

import (
	"context"
	"time"

	"gorm.io/gorm"

	"github.com/skein-vpn/skein/tailnet"
)

// PutProviderGrant stores a provider's permission in place of the user's earlier one. It is durable when PutProviderGrant returns.
func (d *DB) PutProviderGrant(ctx context.Context, g *tailnet.ProviderGrant) error {
	f := &fields{table: "provider_grants", tailnet: int64(g.Tailnet), id: int64(g.User)}
	r := providerGrantRow{
		TailnetID: int64(g.Tailnet), UserID: int64(g.User), Provider: g.Provider, Token: f.hex(g.Token),
		CreatedAt: f.mustTime("created_at", g.Created), CheckedAt: f.mustTime("checked_at", g.Checked),
	}
	if err := f.err(); err != nil {
		return err
	}
	return d.transact(ctx, durable, func(tx *gorm.DB) error { return upsert(tx, []providerGrantRow{r}) })
}

// ProviderGrants are the permissions of a provider that were last used before t, the longest ago first, at most limit of them.
func (d *DB) ProviderGrants(ctx context.Context, id tailnet.ID, provider string, t time.Time, limit int) ([]*tailnet.ProviderGrant, error) {
	var rows []providerGrantRow
	err := d.read.WithContext(ctx).Where("tailnet_id = ? AND provider = ? AND checked_at < ?", id, provider, formatTime(t)).Order("checked_at, user_id").Limit(limit).Find(&rows).Error
	if err != nil {
		return nil, d.explain(err)
	}
	out := make([]*tailnet.ProviderGrant, len(rows))
	for i, r := range rows {
		f := &fields{table: "provider_grants", tailnet: r.TailnetID, id: r.UserID}
		out[i] = &tailnet.ProviderGrant{
			Tailnet: tailnet.ID(r.TailnetID), User: tailnet.UserID(r.UserID), Provider: r.Provider, Token: f.parseHex("token", r.Token, -1),
			Created: f.parseTime("created_at", &r.CreatedAt), Checked: f.parseTime("checked_at", &r.CheckedAt),
		}
		if err := f.err(); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// DeleteProviderGrant removes the user's permission. It is no error if there is none.
func (d *DB) DeleteProviderGrant(ctx context.Context, id tailnet.ID, user tailnet.UserID) error {
	return d.transact(ctx, durable, func(tx *gorm.DB) error {
		return tx.Exec("DELETE FROM provider_grants WHERE tailnet_id = ? AND user_id = ?", id, user).Error
	})
}
