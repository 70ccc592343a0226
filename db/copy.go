package db

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"strings"

	"gorm.io/gorm"
)

// CopyFile writes a complete copy of the SQLite database at path, as it is at one moment, to a new file with mode 0600. Another
// process may have it open and go on. The database is not changed, and not brought up to date either.
func CopyFile(ctx context.Context, path, to string) (err error) {
	d := &DB{}
	if d.path, err = resolve(path); err != nil {
		return err
	}
	if !exists(d.path) {
		return fmt.Errorf("database %s: there is none", path)
	}
	if exists(to) {
		return fmt.Errorf("copy of the database: %s exists already", to)
	}
	r, closeR, err := openPool(1, d.dsn("mode", "ro", "_pragma", fmt.Sprintf("busy_timeout(%d)", busyTimeout.Milliseconds())))
	if err != nil {
		return err
	}
	if _, err = d.version(r.WithContext(ctx)); err == nil {
		err = d.copyTo(r.WithContext(ctx), to)
	}
	return errors.Join(err, closeR())
}

// Lock keeps servers from opening the SQLite database at path, which need not exist, until it is closed. It fails if one has it open.
func Lock(path string) (io.Closer, error) {
	path, err := resolve(path)
	if err != nil {
		return nil, err
	}
	l, err := lockFile(path+".lock", path)
	if err != nil {
		return nil, err
	}
	return l.f, nil
}

// copyBatch is how many rows one statement of CopyAll carries at the most; maxArgs bounds it for wide tables.
const copyBatch = 100

// CopyAll copies everything into another database, which must be as new: of any tailnet it may hold nothing. The schemas are the same,
// because both have been opened. It is one transaction; on an error nothing has been written. Counts says how many rows each table
// had.
func (d *DB) CopyAll(ctx context.Context, to *DB) (counts map[string]int, err error) {
	if d.pg != nil {
		return nil, errors.New("copying is from SQLite to PostgreSQL")
	}
	counts = map[string]int{}
	err = d.read.WithContext(ctx).Transaction(func(from *gorm.DB) error {
		var tables []string
		if err := from.Raw("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' AND name NOT LIKE '\\_litestream%' ESCAPE '\\' " +
			"AND name <> 'schema_migrations' ORDER BY rowid").Scan(&tables).Error; err != nil {
			return err
		}
		return to.transact(ctx, durable, func(tx *gorm.DB) error {
			var used int64
			if err := tx.Raw("SELECT count(*) FROM tailnets WHERE rev > 0").Row().Scan(&used); err != nil {
				return err
			}
			if used > 0 {
				return errors.New("the target holds a tailnet already: name an empty database")
			}
			if err := tx.Exec("DELETE FROM tailnets").Error; err != nil { // the one that the first migration makes
				return err
			}
			for _, t := range tables {
				n, err := copyTable(from, tx, t)
				if err != nil {
					return fmt.Errorf("table %s: %w", t, err)
				}
				counts[t] = n
			}
			return nil
		})
	}, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return nil, fmt.Errorf("copying the database: %w", err)
	}
	return counts, nil
}

// copyTable copies the rows of one table. SQLite has no booleans, so the declared type says which numbers are some.
func copyTable(from, to *gorm.DB, table string) (n int, err error) {
	rows, err := from.Raw("SELECT * FROM " + table).Rows()
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	types, err := rows.ColumnTypes()
	if err != nil {
		return 0, err
	}
	var names []string
	for _, t := range types {
		names = append(names, t.Name())
	}
	mark := "(" + strings.TrimSuffix(strings.Repeat("?,", len(names)), ",") + ")"
	var marks []string
	var args []any
	flush := func() error {
		if len(marks) == 0 {
			return nil
		}
		err := to.Exec("INSERT INTO "+table+" ("+strings.Join(names, ",")+") VALUES "+strings.Join(marks, ","), args...).Error
		marks, args = nil, nil
		return err
	}
	values, into := make([]any, len(names)), make([]any, len(names))
	for i := range values {
		into[i] = &values[i]
	}
	for rows.Next() {
		if err := rows.Scan(into...); err != nil {
			return n, err
		}
		for i, v := range values {
			if b, ok := v.(int64); ok && strings.EqualFold(types[i].DatabaseTypeName(), "BOOLEAN") {
				v = b != 0
			}
			args = append(args, v)
		}
		marks = append(marks, mark)
		n++
		if len(marks) >= copyBatch || len(args)+len(names) > maxArgs {
			if err := flush(); err != nil {
				return n, err
			}
		}
	}
	return n, errors.Join(rows.Err(), flush())
}
