package db

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"time"

	"github.com/skein-vpn/skein/tailnet"
)

type auditRow struct {
	TailnetID  int64 `gorm:"primaryKey;autoIncrement:false"`
	Rev        int64 `gorm:"primaryKey;autoIncrement:false"`
	Seq        int64 `gorm:"primaryKey;autoIncrement:false"`
	At         string
	ActorKind  string
	Actor      string
	ActorID    string
	Origin     string
	Remote     string
	Action     string
	TargetKind string
	TargetID   string
	Target     string
	Why        string
	Before     *string // JSON
	After      *string // JSON
}

func (auditRow) TableName() string { return "audit_log" }

// makeAuditRows makes the rows of the entries of one commit; at is for those without a time of their own.
func makeAuditRows(id tailnet.ID, rev tailnet.Rev, es []*tailnet.AuditEntry, at time.Time) ([]auditRow, error) {
	rows := make([]auditRow, len(es))
	var errs []error
	for i, e := range es {
		f := &fields{table: "audit_log", tailnet: int64(id), id: rev}
		when := e.At
		if when.IsZero() {
			when = at
		}
		rows[i] = auditRow{
			TailnetID: int64(id), Rev: int64(rev), Seq: int64(i), At: f.mustTime("at", when),
			ActorKind: e.ActorKind, Actor: e.Actor, ActorID: e.ActorID, Origin: e.Origin, Remote: e.Remote,
			Action: e.Action, TargetKind: e.TargetKind, TargetID: e.TargetID, Target: e.Target, Why: e.Why,
			Before: rawText(e.Before), After: rawText(e.After),
		}
		errs = append(errs, f.err())
	}
	return rows, errors.Join(errs...)
}

func rawText(b json.RawMessage) *string {
	if b == nil {
		return nil
	}
	s := string(b)
	return &s
}

func (r *auditRow) domain() (*tailnet.AuditEntry, error) {
	f := &fields{table: "audit_log", tailnet: r.TailnetID, id: r.Rev}
	raw := func(s *string) json.RawMessage {
		if s == nil {
			return nil
		}
		return json.RawMessage(*s)
	}
	return &tailnet.AuditEntry{
		Rev: tailnet.Rev(r.Rev), Seq: int(r.Seq), At: f.parseTime("at", &r.At),
		ActorKind: r.ActorKind, Actor: r.Actor, ActorID: r.ActorID, Origin: r.Origin, Remote: r.Remote,
		Action: r.Action, TargetKind: r.TargetKind, TargetID: r.TargetID, Target: r.Target, Why: r.Why,
		Before: raw(r.Before), After: raw(r.After),
	}, f.err()
}

// like is a pattern for LIKE with ESCAPE '\' that finds text anywhere.
func like(text string) string {
	return "%" + strings.NewReplacer(`\`, `\\`, "%", `\%`, "_", `\_`).Replace(strings.ToLower(text)) + "%"
}

// AuditLog are the entries that q chooses: the newest first, or, with q.After, the oldest first.
func (d *DB) AuditLog(ctx context.Context, id tailnet.ID, q tailnet.AuditQuery) ([]*tailnet.AuditEntry, error) {
	tx := d.read.WithContext(ctx).Where("tailnet_id = ?", id)
	if !q.Since.IsZero() {
		tx = tx.Where("at >= ?", formatTime(q.Since))
	}
	if !q.Until.IsZero() {
		tx = tx.Where("at < ?", formatTime(q.Until))
	}
	if q.Actor != "" {
		tx = tx.Where(`actor_id = ? OR lower(actor) LIKE ? ESCAPE '\'`, q.Actor, like(q.Actor))
	}
	if q.Target != "" {
		kind, one, _ := strings.Cut(q.Target, ":")
		tx = tx.Where(`target_kind = ? OR target_id = ? OR target_kind = ? AND target_id = ? OR lower(target) LIKE ? ESCAPE '\'`,
			q.Target, q.Target, kind, one, like(q.Target))
	}
	if q.Action != "" {
		tx = tx.Where(`action = ? OR action LIKE ? ESCAPE '\'`, q.Action, strings.TrimPrefix(like(q.Action+"."), "%"))
	}
	if q.Origin != "" {
		tx = tx.Where("origin = ?", q.Origin)
	}
	if p := q.Before; p != nil {
		tx = tx.Where("rev < ? OR rev = ? AND seq < ?", p.Rev, p.Rev, p.Seq)
	}
	order := "rev DESC, seq DESC"
	if p := q.After; p != nil {
		tx = tx.Where("rev > ? OR rev = ? AND seq > ?", p.Rev, p.Rev, p.Seq)
		order = "rev, seq"
	}
	if q.Limit > 0 {
		tx = tx.Limit(q.Limit)
	}
	var rows []auditRow
	if err := tx.Order(order).Find(&rows).Error; err != nil {
		return nil, d.explain(err)
	}
	out := make([]*tailnet.AuditEntry, len(rows))
	for i := range rows {
		var err error
		if out[i], err = rows[i].domain(); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// PurgeAuditLog forgets entries of all tailnets that were made before t, and returns how many.
func (d *DB) PurgeAuditLog(ctx context.Context, t time.Time) (int, error) {
	return d.purge(ctx, "DELETE FROM audit_log WHERE (tailnet_id, rev, seq) IN (SELECT tailnet_id, rev, seq FROM audit_log WHERE at < ? LIMIT ?)", t)
}
