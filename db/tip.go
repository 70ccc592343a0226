package db

import (
	"sync"

	"gorm.io/gorm"

	"github.com/skein-vpn/skein/tailnet"
)

// A standby that takes over may lack the last commits of the primary, or have others under their numbers: where commits are not waited
// for at the standby, or where a server went on with a primary that was cut off. So a DB on PostgreSQL remembers by which commit it knows
// the newest revision that it has seen, and takes a revision of the same number by another commit for what it is: another history, of
// which everything has to be read anew.

// tips are the newest revisions seen, by tailnet.
type tips struct {
	mu sync.Mutex
	m  map[tailnet.ID]tip // guarded by mu
}

type tip struct {
	rev    tailnet.Rev
	commit string // revisionRow.CommitID
}

func (t *tips) saw(id tailnet.ID, rev tailnet.Rev, commit *string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if commit == nil {
		delete(t.m, id)
		return
	}
	if t.m == nil {
		t.m = map[tailnet.ID]tip{}
	}
	t.m[id] = tip{rev, *commit}
}

// at is by which commit we know a revision; empty: not known.
func (t *tips) at(id tailnet.ID, rev tailnet.Rev) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if x := t.m[id]; x.rev == rev {
		return x.commit
	}
	return ""
}

// commitOf is the commit that made a revision; nil if its row is gone, or from before commits had ids.
func commitOf(tx *gorm.DB, id tailnet.ID, rev tailnet.Rev) (commit *string, err error) {
	var rows []*string
	err = tx.Raw("SELECT commit_id FROM revisions WHERE tailnet_id = ? AND rev = ?", id, rev).Scan(&rows).Error
	if len(rows) == 1 {
		commit = rows[0]
	}
	return commit, err
}

// sameHistory reports whether the database knows rev by the commit by which we do. tx is a transaction.
func (d *DB) sameHistory(tx *gorm.DB, id tailnet.ID, rev tailnet.Rev) (bool, error) {
	ours := d.pgTip(id, rev)
	if ours == "" {
		return true, nil
	}
	theirs, err := commitOf(tx, id, rev)
	return theirs == nil || *theirs == ours, err
}

// pgTip is tips.at where there may be another history; empty on SQLite.
func (d *DB) pgTip(id tailnet.ID, rev tailnet.Rev) string {
	if d.pg == nil {
		return ""
	}
	return d.pg.tips.at(id, rev)
}

// sawTip takes note of the newest revision that tx sees.
func (d *DB) sawTip(tx *gorm.DB, id tailnet.ID, rev tailnet.Rev) error {
	if d.pg == nil {
		return nil
	}
	commit, err := commitOf(tx, id, rev)
	if err == nil {
		d.pg.tips.saw(id, rev, commit)
	}
	return err
}
