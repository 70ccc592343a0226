package db

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

// CheckFile looks for damage in a SQLite file, which a server may have open; it changes nothing. The error says what is damaged. It
// reads the whole file.
func CheckFile(ctx context.Context, path string) (err error) {
	d := &DB{}
	if d.path, err = resolve(path); err != nil {
		return err
	}
	params := []string{"mode", "ro", "_pragma", fmt.Sprintf("busy_timeout(%d)", busyTimeout.Milliseconds())}
	if _, err := os.Stat(d.path + "-wal"); errors.Is(err, fs.ErrNotExist) {
		params = append(params, "immutable", "1") // nobody has it open; otherwise SQLite would make files beside it
	}
	pool, err := openFile(d.dsn(params...))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, pool.Close()) }()
	rows, err := pool.QueryContext(ctx, "PRAGMA quick_check(5)")
	if err != nil {
		return d.explain(err)
	}
	defer func() { _ = rows.Close() }()
	var damage []string
	for rows.Next() {
		var line string
		if err := rows.Scan(&line); err != nil {
			return d.explain(err)
		}
		if line != "ok" {
			damage = append(damage, line)
		}
	}
	if err := rows.Err(); err != nil {
		return d.explain(err)
	}
	if len(damage) > 0 {
		return fmt.Errorf("the database %s is damaged: %s", d.path, strings.Join(damage, "; "))
	}
	return nil
}
