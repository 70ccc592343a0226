// Package db is the durable store: everything a tailnet must still know after a restart, a kill -9 or a power cut, in one
// SQLite file or, for several servers at once, in a PostgreSQL database. It implements state.Store and auth.Store; SQL and
// gorm end at its door. Statements are written so that both engines take them; the same tests run on both.
//
// # Words
//
// A commit takes a tailnet from one Rev to the next in one transaction. A tombstone is what is left of a deleted node: enough
// to tell its client what happened. Presence is soft: it may be some seconds old after a crash, everything else may not.
//
// # Files
//
//	PATH             the database, mode 0600
//	PATH-wal, -shm   SQLite's write-ahead log and its index; gone after a clean Close
//	PATH.lock        held (flock) by the process that has the database open, its pid inside
//	PATH.before-vN   copy of the database as it was before migration N ran on it
//
// # How it reads and writes
//
// One connection writes, and whoever wants to write waits for it in Go, not in SQLite's busy handler, which sleeps. Every
// write transaction is BEGIN IMMEDIATE: a transaction that reads first and upgrades later fails with SQLITE_BUSY. A second
// pool, opened read-only, reads: in WAL mode neither side waits for the other. A commit is answered after fsync
// (synchronous=FULL); with NORMAL, SQLite's usual choice for WAL, a power cut may take the last commits back, and clients
// would have been told what the server then does not know. Presence is written with NORMAL.
//
// # PostgreSQL
//
// All connections read and write. A transaction whose connection breaks before its COMMIT was sent runs again, for some
// seconds: a database that restarts is waited for. When the connection breaks on COMMIT itself, Commit looks afterwards
// whether its revision is there, known by a random id, so that no commit is lost or done twice. A query that nobody answers
// fails after a while, so that a paused database or a cut cable hangs nobody.
//
// # Encoding
//
// Rows are plain enough to be read with the sqlite3 shell or psql, and are the same on both engines: keys in their text form
// (nodekey:…), addresses as text, lists and Hostinfo as JSON, bytes as hex, absent values as NULL. Times are text in UTC of one
// fixed width, 2006-01-02T15:04:05.000000000Z: that sorts as text on every engine, keeps the nanoseconds that clients have
// been sent (PostgreSQL's timestamptz would round them), and needs no arithmetic to be read by a person. An empty list is
// read back as nil.
//
// # Order of the files
//
// db.go opens and closes; postgres.go is what differs on PostgreSQL; lock.go keeps a second process out; migrate.go and migration_NNN.go make the schema; rows.go is the
// schema as Go structs; convert.go goes from rows to domain values and back; load.go, commit.go, presence.go, history.go and
// login.go are the operations.
package db

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/glebarez/sqlite"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/skein-vpn/skein/tailnet"
)

// Our choices for SQLite.
const (
	busyTimeout    = 5 * time.Second        // patience with another program, such as a sqlite3 shell, that holds a lock
	readers        = 4                      // connections that read
	maxIdleWAL     = 16 << 20               // bytes that the write-ahead log keeps after a burst of writes
	slowWrite      = 500 * time.Millisecond // a write that takes longer is logged
	healthPatience = 3 * time.Second        // for PostgreSQL to answer a health check
	fileMode       = os.FileMode(0o600)     // of every file we make: they hold pending logins and hashes of keys
)

// Options says which database to open.
type Options struct {
	Path string // of the SQLite file; its folder must exist
	URL  string // of a PostgreSQL database, as libpq writes it (postgres://… or host=…); then Path is not used

	MaxConns int // to PostgreSQL; 0: 10

	Now func() time.Time // nil: time.Now
	Log *slog.Logger     // nil: silent
}

// DB is an open database. Its methods may be called from any goroutine.
type DB struct {
	path string    // absolute, without symbolic links; on PostgreSQL, name and address of the database, for people
	pg   *postgres // nil: SQLite
	now  func() time.Time
	log  *slog.Logger
	lock *fileLock
	file os.FileInfo // of the database as it was opened, to notice that it has been replaced

	write  *gorm.DB // one connection
	read   *gorm.DB // several, read-only
	closeW func() error
	closeR func() error

	writing   chan struct{}         // holds one token while somebody writes
	how       durability            // of the writing connection; belongs to who holds the token
	writeFail atomic.Pointer[error] // why the last write failed, if the disk or the file was to blame

	closed    chan struct{} // closed once nobody may begin to write
	closeOnce sync.Once
	closeErr  error
}

// Open opens the database, makes it if there is none, and brings its schema up to date. It fails with a sentence for the
// administrator if the file or its folder cannot be used, if another process has it open, if it belongs to another program
// or if it was written by a newer Skein. Nothing is changed then.
func Open(ctx context.Context, o Options) (*DB, error) { return open(ctx, o, migrations) }

func open(ctx context.Context, o Options, ms []migration) (_ *DB, err error) {
	d := &DB{now: o.Now, log: o.Log, writing: make(chan struct{}, 1), closed: make(chan struct{})}
	if d.now == nil {
		d.now = time.Now
	}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	if o.URL != "" {
		if err := d.openPostgres(ctx, o, ms); err != nil {
			_ = d.closeAll() // err says what matters
			return nil, err
		}
		return d, nil
	}
	if d.path, err = resolve(o.Path); err != nil {
		return nil, err
	}
	if d.lock, err = lockFile(d.path+".lock", d.path); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = d.closeAll() // err says what matters
		}
	}()
	if err = d.createFile(); err != nil {
		return nil, err
	}
	have, err := d.inspect(ctx, ms[len(ms)-1].version)
	if err != nil {
		return nil, d.explain(err)
	}
	if err = d.openWriter(); err != nil {
		return nil, d.explain(err)
	}
	if err = d.migrate(ctx, have, ms); err != nil {
		return nil, d.explain(err)
	}
	if err = d.openReaders(); err != nil {
		return nil, d.explain(err)
	}
	return d, nil
}

// resolve makes path absolute and follows symbolic links, so that two ways to one file find one lock.
func resolve(path string) (string, error) {
	if path == "" {
		return "", errors.New("database: no path is given")
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("database %s: %w", path, err)
	}
	dir, err := filepath.EvalSymlinks(filepath.Dir(abs))
	if err != nil {
		return "", fmt.Errorf("database %s: its folder cannot be used: %w", path, err)
	}
	abs = filepath.Join(dir, filepath.Base(abs))
	if target, err := filepath.EvalSymlinks(abs); err == nil {
		abs = target
	}
	return abs, nil
}

// createFile makes an empty database file if there is none. SQLite would make it with the mode that the umask leaves, and
// gives -wal and -shm the mode of the database.
func (d *DB) createFile() error {
	f, err := os.OpenFile(d.path, os.O_RDWR|os.O_CREATE, fileMode)
	if err != nil {
		return fmt.Errorf("database %s cannot be opened for writing: %w", d.path, unwrapPath(err))
	}
	defer f.Close()
	if d.file, err = f.Stat(); err != nil {
		return fmt.Errorf("database %s: %w", d.path, unwrapPath(err))
	}
	if !d.file.Mode().IsRegular() {
		return fmt.Errorf("database %s is not a regular file", d.path)
	}
	if m := d.file.Mode().Perm(); m&0o077 != 0 {
		d.log.Warn("other users of this machine may open the database; chmod 600 keeps them out", "path", d.path, "mode", m.String())
	}
	return nil
}

// unwrapPath takes operation and path off an error of package os, for sentences that name the path already.
func unwrapPath(err error) error {
	var pe *os.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

// dsn is the data source name for the driver. The path is escaped, because SQLite takes it for a URI.
func (d *DB) dsn(params ...string) string {
	q := url.Values{}
	for i := 0; i < len(params); i += 2 {
		q.Add(params[i], params[i+1])
	}
	return "file:" + (&url.URL{Path: d.path}).EscapedPath() + "?" + q.Encode()
}

func (d *DB) openWriter() (err error) {
	d.write, d.closeW, err = openPool(1, d.dsn(
		"_pragma", fmt.Sprintf("busy_timeout(%d)", busyTimeout.Milliseconds()),
		"_pragma", "journal_mode(WAL)",
		"_pragma", "synchronous(FULL)",
		"_pragma", fmt.Sprintf("journal_size_limit(%d)", maxIdleWAL),
		"_pragma", "foreign_keys(1)",
		"_txlock", "immediate"))
	return err
}

func (d *DB) openReaders() (err error) {
	d.read, d.closeR, err = openPool(readers, d.dsn(
		"mode", "ro",
		"_pragma", fmt.Sprintf("busy_timeout(%d)", busyTimeout.Milliseconds())))
	return err
}

// openFile opens a SQLite file when it is used first.
func openFile(dsn string) (*sql.DB, error) { return sql.Open(sqlite.DriverName, dsn) }

func openPool(conns int, dsn string) (*gorm.DB, func() error, error) {
	pool, err := openFile(dsn)
	if err != nil {
		return nil, nil, err
	}
	pool.SetMaxOpenConns(conns)
	pool.SetMaxIdleConns(conns)
	g, err := gorm.Open(&sqlite.Dialector{Conn: pool}, &gorm.Config{
		Logger:                 logger.Discard, // errors are returned, and statements would show keys
		SkipDefaultTransaction: true,
		QueryFields:            true, // as on PostgreSQL
		DisableAutomaticPing:   true,
	})
	if err != nil {
		return nil, nil, errors.Join(err, pool.Close())
	}
	return g, pool.Close, nil
}

// Close finishes the write that is under way, moves the write-ahead log into the database and lets the file go. Calls after
// the first return what the first one returned.
func (d *DB) Close() error {
	d.closeOnce.Do(func() {
		close(d.closed)
		d.writing <- struct{}{} // not given back
		d.closeErr = d.closeAll()
	})
	return d.closeErr
}

func (d *DB) closeAll() error {
	if d.pg != nil {
		if d.pg.pool == nil {
			return nil
		}
		return d.pg.pool.Close()
	}
	var errs []error
	if d.closeR != nil {
		errs = append(errs, d.closeR())
	}
	if d.closeW != nil {
		if d.closeR != nil { // fully opened
			errs = append(errs, d.write.Exec("PRAGMA wal_checkpoint(TRUNCATE)").Error)
		}
		errs = append(errs, d.closeW())
	}
	errs = append(errs, d.lock.unlock())
	return d.explain(errors.Join(errs...))
}

// Health returns nil if the database answers, is still the file that was opened, and took the last write.
func (d *DB) Health(ctx context.Context) error {
	var version int64
	if d.pg != nil {
		ctx, cancel := context.WithTimeout(ctx, healthPatience)
		defer cancel()
		return d.explain(d.read.WithContext(ctx).Raw("SELECT max(version) FROM schema_migrations").Row().Scan(&version))
	}
	if fi, err := os.Stat(d.path); err != nil {
		return fmt.Errorf("database %s is gone: %w", d.path, unwrapPath(err))
	} else if !os.SameFile(fi, d.file) {
		return fmt.Errorf("database %s has been replaced while it was open; restart to use the new file", d.path)
	}
	if why := d.writeFail.Load(); why != nil {
		return fmt.Errorf("database %s: the last write failed: %w", d.path, *why)
	}
	return d.explain(d.read.WithContext(ctx).Raw("SELECT max(version) FROM schema_migrations").Row().Scan(&version))
}

// CopyTo writes a complete copy of the database, as it is at one moment, to a new file with mode 0600. It is durable when
// CopyTo returns, and path does not exist before it is complete. Reading and committing go on meanwhile. It is an error if
// path exists, and on PostgreSQL, which has programs of its own for that.
func (d *DB) CopyTo(ctx context.Context, path string) error {
	if d.pg != nil {
		return tailnet.Errorf(tailnet.Invalid, "the database is %s, on PostgreSQL: pg_dump makes a copy of it", d.path)
	}
	if exists(path) {
		return fmt.Errorf("copy of the database: %s exists already", path)
	}
	return d.copyTo(d.read.WithContext(ctx), path)
}

// copyTo replaces path by a copy of what from reads.
func (d *DB) copyTo(from *gorm.DB, path string) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("copy of the database to %s: %w", path, unwrapPath(d.explain(err)))
		}
	}()
	part := path + ".part"
	f, err := os.OpenFile(part, os.O_RDWR|os.O_CREATE|os.O_TRUNC, fileMode) // SQLite accepts an empty file as new
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(part) }() // after Rename there is none
	defer f.Close()
	if err := f.Chmod(fileMode); err != nil { // it may have been there
		return err
	}
	if err := from.Exec("VACUUM INTO ?", part).Error; err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(part, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// syncDir makes names in a folder durable.
func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// durability is how sure a write is.
type durability int

const (
	durable durability = iota // on disk when it returns
	soft                      // a crash of the machine may lose it
)

func (how durability) pragma() string {
	if how == soft {
		return "NORMAL"
	}
	return "FULL"
}

var errClosed = tailnet.Errorf(tailnet.Unavailable, "the database is closed")

// transact runs f in one write transaction, after those who came first. ctx is asked only while it waits: what has begun is
// finished, so that the answer is never "perhaps" (on PostgreSQL it may be, if the connection breaks on COMMIT: errUnknown). f
// must do nothing but use tx, because it may run again.
func (d *DB) transact(ctx context.Context, how durability, f func(tx *gorm.DB) error) error {
	if d.pg != nil {
		return d.transactPostgres(ctx, how, f)
	}
	select {
	case d.writing <- struct{}{}:
		defer func() { <-d.writing }()
	case <-ctx.Done():
		return ctx.Err()
	case <-d.closed:
		return errClosed
	}
	select { // of several that are ready, select takes any
	case <-ctx.Done():
		return ctx.Err()
	case <-d.closed:
		return errClosed
	default:
	}
	w := d.write.WithContext(context.WithoutCancel(ctx))
	if how != d.how { // the pragma has no effect inside a transaction
		if err := w.Exec("PRAGMA synchronous=" + how.pragma()).Error; err != nil {
			return d.explain(err)
		}
		d.how = how
	}

	start := time.Now()
	err := w.Transaction(f)
	if err != nil {
		// After a COMMIT that fails, SQLite keeps the transaction open while database/sql takes it for closed.
		// Mostly there is none left, and the error that says so is of no interest.
		w.Exec("ROLLBACK")
	}
	if took := time.Since(start); took > slowWrite {
		d.log.Warn("slow write to the database", "took", took)
	}
	err = d.explain(err)
	switch {
	case err == nil:
		d.writeFail.Store(nil)
	case isFault(err):
		d.writeFail.Store(&err)
	}
	return err
}
