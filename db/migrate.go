package db

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"gorm.io/gorm"
)

// migration takes the schema from version-1 to version. Once released, a migration never changes again.
type migration struct {
	version int64
	name    string
	sql     string // statements for both engines, separated by ";" at the end of a line

	postgres string // instead of sql on PostgreSQL, for what the two cannot say alike; mostly empty
}

// migrations are all of them, in order; each has its file.
var migrations = []migration{migration001, migration002, migration003, migration004, migration005, migration006, migration007, migration008, migration009, migration010, migration011, migration012, migration013, migration014}

const createMigrations = `
CREATE TABLE schema_migrations (
	version    BIGINT NOT NULL PRIMARY KEY,
	name       TEXT   NOT NULL,
	applied_at TEXT   NOT NULL
)`

// inspect returns the version of the database's schema, 0 if it is empty. It is an error if the database belongs to another
// program or to a Skein with a newer schema than newest. It only reads: opening for writing would turn on WAL mode in a
// database that is not ours.
func (d *DB) inspect(ctx context.Context, newest int64) (int64, error) {
	r, closeR, err := openPool(1, d.dsn("mode", "ro"))
	if err != nil {
		return 0, err
	}
	have, err := d.version(r.WithContext(ctx))
	if err := errors.Join(err, closeR()); err != nil || have <= newest {
		return have, err
	}
	or := ""
	if old := fmt.Sprintf("%s.before-v%d", d.path, newest+1); exists(old) {
		or = ", or stop and put the copy from before the upgrade, " + old + ", in its place"
	}
	return 0, fmt.Errorf("database %s was written by a newer skein: its schema is version %d and this one knows versions up to %d; "+
		"run the newer skein%s", d.path, have, newest, or)
}

// migrate brings the schema from version have up to the last of ms. Before the first one runs on a database that holds something,
// the database is copied to PATH.before-vN. Each migration is one transaction together with its row in schema_migrations, so that
// one which fails or is interrupted leaves the version before it.
func (d *DB) migrate(ctx context.Context, have int64, ms []migration) error {
	w := d.write.WithContext(ctx)
	newest := ms[len(ms)-1].version
	if have == newest {
		return nil
	}
	if have > 0 {
		to := fmt.Sprintf("%s.before-v%d", d.path, have+1)
		if err := d.copyTo(w, to); err != nil {
			return err
		}
		d.log.Info("copied the database before migrating it", "path", to)
	}

	// A table is rebuilt under its old name in SQLite, which foreign keys would not survive; they are checked below instead.
	// The pragma has no effect inside a transaction.
	if err := w.Exec("PRAGMA foreign_keys=OFF").Error; err != nil {
		return err
	}
	for _, m := range ms {
		if m.version <= have {
			continue
		}
		if err := w.Transaction(func(tx *gorm.DB) error { return d.apply(tx, m) }); err != nil {
			w.Exec("ROLLBACK") // as in transact
			return fmt.Errorf("database %s: migration %d (%s): %w", d.path, m.version, m.name, err)
		}
		d.tellMigrated(m, have)
	}
	return w.Exec("PRAGMA foreign_keys=ON").Error
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// tellMigrated logs a step; those of a new database are nothing to tell.
func (d *DB) tellMigrated(m migration, from int64) {
	if from == 0 {
		d.log.Debug("made the database", "version", m.version, "name", m.name)
		return
	}
	d.log.Info("migrated the database", "version", m.version, "name", m.name)
}

// apply runs one migration inside tx.
func (d *DB) apply(tx *gorm.DB, m migration) error {
	if m.version == 1 {
		if err := tx.Exec(createMigrations).Error; err != nil {
			return err
		}
	}
	now := formatTime(d.now())
	stmts := m.sql
	if d.pg != nil && m.postgres != "" {
		stmts = m.postgres
	}
	for _, s := range strings.Split(stmts, ";\n") {
		if s = strings.TrimSpace(s); s == "" {
			continue
		}
		var args []any
		for range strings.Count(s, "?") { // the only value a migration may need
			args = append(args, now)
		}
		if err := tx.Exec(s, args...).Error; err != nil {
			return fmt.Errorf("%w, in: %s", err, s)
		}
	}
	if d.pg == nil { // PostgreSQL never switches foreign keys off
		if faults, err := foreignKeyFaults(tx); err != nil {
			return err
		} else if len(faults) > 0 {
			return errors.New(strings.Join(faults, "; "))
		}
	}
	return tx.Exec("INSERT INTO schema_migrations (version, name, applied_at) VALUES (?, ?, ?)", m.version, m.name, now).Error
}

// version is the schema's: 0 for an empty database. A database of another program is an error.
func (d *DB) version(tx *gorm.DB) (int64, error) {
	var tables []string
	query, own := "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY name", "file of its own, so name another path"
	if d.pg != nil {
		query = "SELECT CAST(table_name AS TEXT) FROM information_schema.tables WHERE table_schema = current_schema() ORDER BY table_name"
		own = "database (or schema) of its own, so name another one"
	}
	err := tx.Raw(query).Scan(&tables).Error
	if err != nil {
		return 0, err
	}
	if len(tables) == 0 {
		return 0, nil
	}
	if !slices.Contains(tables, "schema_migrations") || !slices.Contains(tables, "tailnets") {
		whose := "another program"
		if slices.Contains(tables, "pre_auth_keys") && slices.Contains(tables, "migrations") {
			whose = "headscale"
		}
		return 0, fmt.Errorf("database %s belongs to %s (it has the tables %s); skein needs a %s",
			d.path, whose, strings.Join(tables[:min(len(tables), 8)], ", "), own)
	}
	var v int64
	if err := tx.Raw("SELECT coalesce(max(version), 0) FROM schema_migrations").Scan(&v).Error; err != nil {
		return 0, err
	}
	if v < 1 {
		return 0, fmt.Errorf("database %s has tables, but its schema_migrations is empty; put a copy in its place", d.path)
	}
	return v, nil
}

// foreignKeyFaults are sentences about rows that refer to rows which do not exist.
func foreignKeyFaults(tx *gorm.DB) ([]string, error) {
	rows, err := tx.Raw("PRAGMA foreign_key_check").Rows()
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	var out []string
	for rows.Next() && len(out) < maxFaults {
		var table, parent string
		var rowid *int64
		var index int64
		if err := rows.Scan(&table, &rowid, &parent, &index); err != nil {
			return nil, err
		}
		at := "a row"
		if rowid != nil {
			at = fmt.Sprintf("the row with rowid %d", *rowid)
		}
		out = append(out, fmt.Sprintf("%s of %s refers to a row that is not in %s", at, table, parent))
	}
	return out, rows.Err()
}

// timeFormat is how times are stored: see the package comment.
const timeFormat = "2006-01-02T15:04:05.000000000Z"

func formatTime(t time.Time) string { return t.UTC().Format(timeFormat) }
