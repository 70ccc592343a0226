package db

import (
	"context"
	"errors"
	"fmt"

	"gorm.io/gorm"

	"github.com/skein-vpn/skein/tailnet"
)

// Policies are the versions of the tailnet's policy, the newest first, at most limit of them, and only those before a version; 0: all.
func (d *DB) Policies(ctx context.Context, id tailnet.ID, limit int, before tailnet.PolicyID) ([]*tailnet.PolicyVersion, error) {
	tx := d.read.WithContext(ctx)
	if before > 0 {
		tx = tx.Where("id < ?", before)
	}
	out, faults := policies(tx, id, limit, nil)
	if err := errors.Join(faults...); err != nil {
		return nil, d.explain(err)
	}
	return out, nil
}

// Policy is one version of the tailnet's policy; a NotFound error if there is none with this number.
func (d *DB) Policy(ctx context.Context, id tailnet.ID, version tailnet.PolicyID) (*tailnet.PolicyVersion, error) {
	var r policyRow
	err := d.read.WithContext(ctx).Take(&r, "tailnet_id = ? AND id = ?", id, version).Error
	if errors.Is(err, gorm.ErrRecordNotFound) {
		return nil, tailnet.Errorf(tailnet.NotFound, "the policy has no version %d", version)
	}
	if err != nil {
		return nil, d.explain(fmt.Errorf("table policies, id %d: %w", version, err))
	}
	return r.domain()
}

// policies reads versions, the newest first, and appends to faults what is wrong with them.
func policies(tx *gorm.DB, id tailnet.ID, limit int, faults []error) ([]*tailnet.PolicyVersion, []error) {
	var rows []policyRow
	if err := tx.Where("tailnet_id = ?", id).Order("id DESC").Limit(limit).Find(&rows).Error; err != nil {
		return nil, append(faults, fmt.Errorf("table policies: %w", err))
	}
	var out []*tailnet.PolicyVersion
	for i := range rows {
		v, err := rows[i].domain()
		if err != nil {
			faults = append(faults, err)
		}
		out = append(out, v)
	}
	return out, faults
}
