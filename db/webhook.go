package db

import (
	"context"

	"gorm.io/gorm"

	"github.com/skein-vpn/skein/tailnet"
)

type webhookRow struct {
	TailnetID  int64  `gorm:"primaryKey;autoIncrement:false"`
	ID         string `gorm:"primaryKey"`
	URL        string `gorm:"column:url"`
	Provider   string
	Events     *string // JSON
	Secret     string
	Creator    string
	CreatedAt  string
	ModifiedAt string
}

func (webhookRow) TableName() string { return "webhooks" }

type webhookStateRow struct {
	TailnetID int64  `gorm:"primaryKey;autoIncrement:false"`
	ID        string `gorm:"primaryKey"`
	Rev       int64
	Seq       int64
	Failures  int64
	NextTry   *string
	LastError string
	LastOK    *string `gorm:"column:last_ok"`
	Sent      int64
	Dropped   int64
}

func (webhookStateRow) TableName() string { return "webhook_states" }

// Webhooks are the webhooks of the tailnet, oldest first.
func (d *DB) Webhooks(ctx context.Context, id tailnet.ID) ([]*tailnet.Webhook, error) {
	var rows []webhookRow
	if err := d.read.WithContext(ctx).Where("tailnet_id = ?", id).Order("created_at, id").Find(&rows).Error; err != nil {
		return nil, d.explain(err)
	}
	out := make([]*tailnet.Webhook, len(rows))
	for i := range rows {
		r := &rows[i]
		f := &fields{table: "webhooks", tailnet: r.TailnetID, id: r.ID}
		out[i] = &tailnet.Webhook{
			ID: r.ID, Tailnet: id, URL: r.URL, Provider: r.Provider, Events: parseList[string](f, "events", r.Events), Secret: r.Secret,
			Creator: r.Creator, Created: f.parseTime("created_at", &r.CreatedAt), Modified: f.parseTime("modified_at", &r.ModifiedAt),
		}
		if err := f.err(); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// PutWebhook stores a webhook in place of one with the same ID. It is durable when PutWebhook returns.
func (d *DB) PutWebhook(ctx context.Context, w *tailnet.Webhook) error {
	f := &fields{table: "webhooks", tailnet: int64(w.Tailnet), id: w.ID}
	r := webhookRow{
		TailnetID: int64(w.Tailnet), ID: w.ID, URL: w.URL, Provider: w.Provider, Events: list(f, "events", w.Events), Secret: w.Secret,
		Creator: w.Creator, CreatedAt: f.mustTime("created_at", w.Created), ModifiedAt: f.mustTime("modified_at", w.Modified),
	}
	if err := f.err(); err != nil {
		return &tailnet.Error{Code: tailnet.Internal, Message: "the webhook cannot be stored: " + err.Error(), Cause: err}
	}
	return d.transact(ctx, durable, func(tx *gorm.DB) error { return upsert(tx, []webhookRow{r}) })
}

// DeleteWebhook removes a webhook and what is known of its deliveries. It is no error if there is none.
func (d *DB) DeleteWebhook(ctx context.Context, id tailnet.ID, webhook string) error {
	return d.transact(ctx, durable, func(tx *gorm.DB) error {
		if err := tx.Exec("DELETE FROM webhook_states WHERE tailnet_id = ? AND id = ?", id, webhook).Error; err != nil {
			return err
		}
		return tx.Exec("DELETE FROM webhooks WHERE tailnet_id = ? AND id = ?", id, webhook).Error
	})
}

// SaveWebhookState notes how far a webhook has got, without waiting for the disk.
func (d *DB) SaveWebhookState(ctx context.Context, id tailnet.ID, webhook string, s tailnet.WebhookState) error {
	f := &fields{table: "webhook_states", tailnet: int64(id), id: webhook}
	r := webhookStateRow{
		TailnetID: int64(id), ID: webhook, Rev: int64(s.Pos.Rev), Seq: int64(s.Pos.Seq), Failures: int64(s.Failures), NextTry: f.time("next_try", s.NextTry),
		LastError: s.LastError, LastOK: f.time("last_ok", s.LastOK), Sent: s.Sent, Dropped: s.Dropped,
	}
	if err := f.err(); err != nil {
		return err
	}
	return d.transact(ctx, soft, func(tx *gorm.DB) error { return upsert(tx, []webhookStateRow{r}) })
}

// WebhookStates says how far webhooks have got.
func (d *DB) WebhookStates(ctx context.Context, id tailnet.ID) (map[string]tailnet.WebhookState, error) {
	var rows []webhookStateRow
	if err := d.read.WithContext(ctx).Where("tailnet_id = ?", id).Find(&rows).Error; err != nil {
		return nil, d.explain(err)
	}
	out := make(map[string]tailnet.WebhookState, len(rows))
	for i := range rows {
		r := &rows[i]
		f := &fields{table: "webhook_states", tailnet: r.TailnetID, id: r.ID}
		out[r.ID] = tailnet.WebhookState{
			Pos: tailnet.AuditPos{Rev: tailnet.Rev(r.Rev), Seq: int(r.Seq)}, Failures: int(r.Failures), NextTry: f.parseTime("next_try", r.NextTry),
			LastError: r.LastError, LastOK: f.parseTime("last_ok", r.LastOK), Sent: r.Sent, Dropped: r.Dropped,
		}
		if err := f.err(); err != nil {
			return nil, err
		}
	}
	return out, nil
}
