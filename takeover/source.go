package takeover

import (
	"context"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	_ "github.com/glebarez/go-sqlite"  // the driver "sqlite"
	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"
)

// Source is a database of headscale, opened for reading.
type Source struct {
	name     string // for people; without a password
	postgres bool
	tx       *sql.Tx
	close    []func() error
	columns  map[string][]column // by table
}

type column struct {
	name   string
	binary bool // PostgreSQL's bytea
}

// row is one row, every value as text; NULL is absent. Binary values of PostgreSQL are bytes.
type row map[string]string

// IsDSN reports whether s names a PostgreSQL database and not a file.
func IsDSN(s string) bool {
	return strings.HasPrefix(s, "postgres://") || strings.HasPrefix(s, "postgresql://") || strings.Contains(s, "dbname=") || strings.Contains(s, "host=")
}

// Open opens a SQLite file, or a PostgreSQL database named by a URL or a connection string. The error says what would be right;
// it never contains a password.
func Open(ctx context.Context, name string) (*Source, error) {
	s := &Source{name: name, columns: map[string][]column{}}
	open := s.openSQLite
	if IsDSN(name) {
		s.postgres, s.name = true, Redact(name)
		open = s.openPostgres
	}
	err := open(ctx, name)
	if err == nil {
		err = s.inspect(ctx)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", s.name, err), s.Close())
	}
	return s, nil
}

// Close lets the database go and removes the copy.
func (s *Source) Close() error {
	var errs []error
	for _, f := range slices.Backward(s.close) {
		errs = append(errs, f())
	}
	s.close = nil
	return errors.Join(errs...)
}

// Redact takes the password out of a name of a database.
func Redact(dsn string) string {
	if u, err := url.Parse(dsn); err == nil && u.Scheme != "" {
		q := u.Query()
		q.Del("password")
		u.RawQuery = q.Encode()
		return u.Redacted()
	}
	var out []string
	for f := range strings.FieldsSeq(dsn) { // a quoted password with a blank in it loses its end, too
		k, _, ok := strings.Cut(f, "=")
		if ok && slices.Contains([]string{"host", "port", "dbname", "user", "sslmode"}, k) {
			out = append(out, f)
		}
	}
	return strings.Join(out, " ")
}

func (s *Source) openPostgres(ctx context.Context, dsn string) error {
	db, err := sql.Open("pgx", dsn)
	if err != nil {
		return errors.New("is not the name of a PostgreSQL database such as postgres://user:password@host/headscale")
	}
	s.close = append(s.close, db.Close)
	if s.tx, err = db.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true}); err != nil {
		return err
	}
	s.close = append(s.close, s.tx.Rollback)
	_, err = s.tx.ExecContext(ctx, "SET LOCAL TimeZone TO 'UTC'")
	return err
}

func (s *Source) openSQLite(ctx context.Context, path string) error {
	dir, err := os.MkdirTemp("", "skein-import-")
	if err != nil {
		return err
	}
	s.close = append(s.close, func() error { return os.RemoveAll(dir) })
	copied := filepath.Join(dir, "db.sqlite")
	if err := copyDatabase(path, copied); err != nil {
		return err
	}
	db, err := sql.Open("sqlite", "file:"+(&url.URL{Path: copied}).EscapedPath()+"?_pragma=foreign_keys(0)")
	if err != nil {
		return err
	}
	s.close = append(s.close, db.Close)
	if s.tx, err = db.BeginTx(ctx, nil); err != nil {
		return fmt.Errorf("cannot be read as a SQLite database: %w", err)
	}
	s.close = append(s.close, s.tx.Rollback)
	var check string
	if err := s.tx.QueryRowContext(ctx, "PRAGMA quick_check(1)").Scan(&check); err != nil {
		return fmt.Errorf("cannot be read as a SQLite database: %w", err)
	}
	if check != "ok" {
		return fmt.Errorf("is damaged (%s): stop headscale before it is read, or mend it with sqlite3's .recover", check)
	}
	return nil
}

// copyDatabase copies a SQLite database with what its write-ahead log holds. If somebody writes meanwhile, it starts again.
func copyDatabase(from, to string) error {
	for range 5 {
		before, err := sizes(from)
		if err != nil {
			return err
		}
		for _, suffix := range []string{"", "-wal"} {
			if err := copyFile(from+suffix, to+suffix); err != nil && (suffix == "" || !errors.Is(err, os.ErrNotExist)) {
				return err
			}
		}
		after, err := sizes(from)
		if err != nil {
			return err
		}
		if before == after {
			return nil
		}
	}
	return errors.New("is being written to all the time: stop headscale first")
}

// sizes tells whether a database or its log have been written to.
func sizes(path string) (string, error) {
	out := ""
	for _, suffix := range []string{"", "-wal"} {
		fi, err := os.Stat(path + suffix)
		switch {
		case err == nil && !fi.Mode().IsRegular():
			return "", errors.New("is not a file")
		case err == nil:
			out += fmt.Sprint(fi.Size(), " ", fi.ModTime().UnixNano(), ";")
		case suffix == "" && errors.Is(err, os.ErrNotExist):
			return "", errors.New("there is no such file")
		case !errors.Is(err, os.ErrNotExist):
			return "", unwrapPath(err)
		}
	}
	return out, nil
}

func unwrapPath(err error) error {
	var pe *os.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return unwrapPath(err)
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// tables are those that are read, each with a column without which it is of no use.
var tables = map[string]string{
	"users": "id", "nodes": "id", "pre_auth_keys": "id", "api_keys": "id", "policies": "data", "routes": "node_id", "migrations": "id",
	"oauth_clients": "client_id", "pre_auth_key_acl_tags": "pre_auth_key_id", "database_versions": "version",
}

// inspect finds out which tables and columns there are, and refuses what is not a database that can be read.
func (s *Source) inspect(ctx context.Context) error {
	query := "SELECT m.name, p.name, '' FROM sqlite_master m, pragma_table_info(m.name) p WHERE m.type = 'table' ORDER BY m.name, p.cid"
	if s.postgres {
		query = "SELECT table_name, column_name, data_type FROM information_schema.columns WHERE table_schema = current_schema() ORDER BY table_name, ordinal_position"
	}
	rows, err := s.tx.QueryContext(ctx, query)
	if err != nil {
		return fmt.Errorf("its tables cannot be listed: %w", err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var table, name, typ string
		if err := rows.Scan(&table, &name, &typ); err != nil {
			return err
		}
		s.columns[table] = append(s.columns[table], column{name, typ == "bytea"})
	}
	if err := rows.Err(); err != nil {
		return err
	}
	const step = "start headscale 0.25.1 once with it (on a copy), then import what that made of it"
	switch {
	case s.has("machines", ""):
		return errors.New("is of headscale 0.22 or older, which kept its nodes in a table machines: " + step)
	case len(s.columns) == 0:
		return errors.New("is empty: it has no tables")
	case s.has("schema_migrations", "") && s.has("tailnets", ""):
		return errors.New("is a database of Skein, not of headscale")
	case !s.has("nodes", "") || !s.has("users", "") || !s.has("migrations", ""):
		return errors.New("is not a database of headscale: it has no tables users, nodes and migrations")
	case !s.has("nodes", "ipv4") || !s.has("nodes", "node_key"):
		return errors.New("is of headscale 0.22 or older: " + step)
	}
	return nil
}

// has reports whether there is a table, with a column of this name if one is given.
func (s *Source) has(table, name string) bool {
	cols, ok := s.columns[table]
	return ok && (name == "" || slices.ContainsFunc(cols, func(c column) bool { return c.name == name }))
}

// rows reads all rows of a table, sorted by its first known column; none if there is no such table.
func (s *Source) rows(ctx context.Context, table string) (out []row, err error) {
	key := tables[table]
	if !s.has(table, key) {
		return nil, nil
	}
	cols := s.columns[table]
	var exprs []string
	for _, c := range cols {
		quoted := `"` + strings.ReplaceAll(c.name, `"`, `""`) + `"`
		if c.binary {
			exprs = append(exprs, "encode("+quoted+", 'hex')")
		} else {
			exprs = append(exprs, "CAST("+quoted+" AS TEXT)")
		}
	}
	rows, err := s.tx.QueryContext(ctx, "SELECT "+strings.Join(exprs, ", ")+` FROM "`+table+`" ORDER BY "`+key+`"`)
	if err != nil {
		return nil, fmt.Errorf("%s: table %s: %w", s.name, table, err)
	}
	defer func() { _ = rows.Close() }()
	values := make([]sql.NullString, len(cols))
	into := make([]any, len(cols))
	for i := range values {
		into[i] = &values[i]
	}
	for rows.Next() {
		if err := rows.Scan(into...); err != nil {
			return nil, fmt.Errorf("%s: table %s: %w", s.name, table, err)
		}
		r := row{}
		for i, c := range cols {
			if !values[i].Valid {
				continue
			}
			r[c.name] = values[i].String
			if c.binary {
				b, err := hex.DecodeString(values[i].String)
				if err != nil {
					return nil, fmt.Errorf("%s: table %s, column %s: %w", s.name, table, c.name, err)
				}
				r[c.name] = string(b)
			}
		}
		out = append(out, r)
	}
	return out, rows.Err()
}

// lastID is the highest id that a table has ever given out, as far as the database remembers; 0 if it does not.
func (s *Source) lastID(ctx context.Context, table string) (id int64) {
	var err error
	if s.postgres {
		var exists sql.NullString // a failing statement would end the transaction
		if err = s.tx.QueryRowContext(ctx, "SELECT to_regclass($1)::text", table+"_id_seq").Scan(&exists); err == nil && exists.Valid {
			err = s.tx.QueryRowContext(ctx, `SELECT last_value FROM "`+table+`_id_seq"`).Scan(&id)
		}
	} else {
		err = s.tx.QueryRowContext(ctx, "SELECT seq FROM sqlite_sequence WHERE name = ?", table).Scan(&id)
	}
	if err != nil {
		return 0
	}
	return id
}
