package db

import (
	"context"
	"encoding/hex"
	"errors"
	"maps"
	"slices"
	"time"

	"gorm.io/gorm"

	"github.com/skein-vpn/skein/tailnet"
)

type credentialRow struct {
	TailnetID   int64  `gorm:"primaryKey;autoIncrement:false"`
	ID          string `gorm:"primaryKey"`
	Kind        string
	HashKind    string
	Hash        *string // hex
	UserID      *int64
	Scopes      *string // JSON
	Tags        *string // JSON
	Description string
	CreatedAt   *string
	ExpiresAt   *string
	RevokedAt   *string
	Issuer      string
	Subject     string
	Audience    string
	Claims      *string // JSON
}

func (credentialRow) TableName() string { return "credentials" }

type credentialUseRow struct {
	TailnetID int64  `gorm:"primaryKey;autoIncrement:false"`
	ID        string `gorm:"primaryKey"`
	UsedAt    string
}

func (credentialUseRow) TableName() string { return "credential_uses" }

type accessTokenRow struct {
	TailnetID    int64  `gorm:"primaryKey;autoIncrement:false"`
	Hash         string `gorm:"primaryKey"` // hex
	CredentialID string
	Scopes       *string // JSON
	Tags         *string // JSON
	CreatedAt    string
	ExpiresAt    string
}

func (accessTokenRow) TableName() string { return "access_tokens" }

func makeCredentialRow(id tailnet.ID, c *tailnet.Credential) (credentialRow, error) {
	f := &fields{table: "credentials", tailnet: int64(id), id: c.ID}
	r := credentialRow{
		TailnetID:   int64(id),
		ID:          c.ID,
		Kind:        string(c.Kind),
		HashKind:    c.HashKind,
		Hash:        f.hex(c.Hash),
		UserID:      ref(c.User),
		Scopes:      list(f, "scopes", c.Scopes),
		Tags:        list(f, "tags", c.Tags),
		Description: c.Description,
		CreatedAt:   f.time("created_at", c.Created),
		ExpiresAt:   f.time("expires_at", c.Expires),
		RevokedAt:   f.time("revoked_at", c.Revoked),
		Issuer:      c.Issuer,
		Subject:     c.Subject,
		Audience:    c.Audience,
	}
	if len(c.Claims) > 0 {
		s := toJSON(f, "claims", c.Claims)
		r.Claims = &s
	}
	return r, f.err()
}

func (r *credentialRow) domain() (*tailnet.Credential, error) {
	f := &fields{table: "credentials", tailnet: r.TailnetID, id: r.ID}
	c := &tailnet.Credential{
		ID:          r.ID,
		Kind:        tailnet.CredentialKind(r.Kind),
		HashKind:    r.HashKind,
		User:        parseRef[tailnet.UserID](r.UserID),
		Scopes:      parseList[string](f, "scopes", r.Scopes),
		Tags:        parseList[string](f, "tags", r.Tags),
		Description: r.Description,
		Created:     f.parseTime("created_at", r.CreatedAt),
		Expires:     f.parseTime("expires_at", r.ExpiresAt),
		Revoked:     f.parseTime("revoked_at", r.RevokedAt),
		Issuer:      r.Issuer,
		Subject:     r.Subject,
		Audience:    r.Audience,
	}
	if r.Hash != nil {
		b, err := hex.DecodeString(*r.Hash)
		f.fail("hash", err)
		c.Hash = b
	}
	if r.Claims != nil {
		fromJSON(f, "claims", *r.Claims, &c.Claims)
	}
	return c, f.err()
}

// SaveCredentialUses notes when credentials were used last, without a new Rev and without waiting for the disk. Uses of
// credentials that are gone go with the next purge.
func (d *DB) SaveCredentialUses(ctx context.Context, id tailnet.ID, uses map[string]time.Time) error {
	if len(uses) == 0 {
		return nil
	}
	var rows []credentialUseRow
	for _, c := range slices.Sorted(maps.Keys(uses)) {
		rows = append(rows, credentialUseRow{TailnetID: int64(id), ID: c, UsedAt: formatTime(uses[c])})
	}
	return d.transact(ctx, soft, func(tx *gorm.DB) error {
		if err := upsert(tx, rows); err != nil {
			return err
		}
		return tx.Exec("DELETE FROM credential_uses WHERE tailnet_id = ? AND id NOT IN (SELECT id FROM credentials WHERE tailnet_id = ?)", id, id).Error
	})
}

// CredentialUses says when credentials were used last, as saved.
func (d *DB) CredentialUses(ctx context.Context, id tailnet.ID) (map[string]time.Time, error) {
	var rows []credentialUseRow
	if err := d.read.WithContext(ctx).Where("tailnet_id = ?", id).Find(&rows).Error; err != nil {
		return nil, d.explain(err)
	}
	out := make(map[string]time.Time, len(rows))
	for i := range rows {
		f := &fields{table: "credential_uses", tailnet: int64(id), id: rows[i].ID}
		out[rows[i].ID] = f.parseTime("used_at", &rows[i].UsedAt)
		if err := f.err(); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// PutAccessToken stores a new token. It is durable when PutAccessToken returns.
func (d *DB) PutAccessToken(ctx context.Context, t *tailnet.AccessToken) error {
	f := &fields{table: "access_tokens", tailnet: int64(t.Tailnet), id: "of credential " + t.Credential}
	r := accessTokenRow{
		TailnetID: int64(t.Tailnet), Hash: hex.EncodeToString(t.Hash[:]), CredentialID: t.Credential,
		Scopes: list(f, "scopes", t.Scopes), Tags: list(f, "tags", t.Tags),
		CreatedAt: f.mustTime("created_at", t.Created), ExpiresAt: f.mustTime("expires_at", t.Expires),
	}
	if err := f.err(); err != nil {
		return &tailnet.Error{Code: tailnet.Internal, Message: "the access token cannot be stored: " + err.Error(), Cause: err}
	}
	return d.transact(ctx, durable, func(tx *gorm.DB) error { return tx.Create(&r).Error })
}

// AccessToken is the token with this SHA-256, expired or not; nil if there is none.
func (d *DB) AccessToken(ctx context.Context, id tailnet.ID, hash [32]byte) (*tailnet.AccessToken, error) {
	var r accessTokenRow
	err := d.read.WithContext(ctx).Where("tailnet_id = ? AND hash = ?", id, hex.EncodeToString(hash[:])).Take(&r).Error
	if errors.Is(err, gorm.ErrRecordNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, d.explain(err)
	}
	f := &fields{table: "access_tokens", tailnet: r.TailnetID, id: "of credential " + r.CredentialID}
	return &tailnet.AccessToken{
		Hash: hash, Tailnet: tailnet.ID(r.TailnetID), Credential: r.CredentialID,
		Scopes: parseList[string](f, "scopes", r.Scopes), Tags: parseList[string](f, "tags", r.Tags),
		Created: f.parseTime("created_at", &r.CreatedAt), Expires: f.parseTime("expires_at", &r.ExpiresAt),
	}, f.err()
}

// DeleteAccessTokensBefore removes the tokens of all tailnets that expired before t, and returns how many.
func (d *DB) DeleteAccessTokensBefore(ctx context.Context, t time.Time) (int, error) {
	return d.purge(ctx, "DELETE FROM access_tokens WHERE (tailnet_id, hash) IN (SELECT tailnet_id, hash FROM access_tokens WHERE expires_at < ? LIMIT ?)", t)
}
