package db

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	gormpg "gorm.io/driver/postgres"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/skein-vpn/skein/tailnet"
)

// Our choices for PostgreSQL.
const (
	defaultConns   = 10               // connections at the most
	connectTimeout = 5 * time.Second  // for one connection
	nextTimeout    = 2 * time.Second  // the same where the address names several hosts, before the next one is tried
	unheard        = 5 * time.Second  // a host that does not even confirm to have received something for so long is gone
	hung           = 3 * time.Second  // who waited for so long in vain warns of the other connections of that time
	writePatience  = 10 * time.Second // how long a write waits for a database that is away, before it fails
	readPatience   = 5 * time.Second  // the same for reading a tailnet
	readAgain      = 50 * time.Millisecond
	settlePatience = 20 * time.Second // how long a commit whose connection broke waits to learn what became of it
	silence        = 15 * time.Second // a query that is not answered for so long has lost its connection
	openSilence    = 10 * time.Minute // the same while the schema is made: a migration may have much to do
	idleInTx       = 5 * time.Second  // PostgreSQL ends a transaction whose server says nothing more for so long
	migrateTries   = 20               // how often a migration is tried again that got in the way of servers at work
	migrateLock    = 7236531          // number of the advisory lock that one server holds while it migrates
)

// postgres is what a DB on PostgreSQL has beside its pool.
type postgres struct {
	pool    *sql.DB
	config  *pgx.ConnConfig // of a connection outside the pool
	silence atomic.Int64    // nanoseconds
	tips    tips
	hung    atomic.Int64 // when a connection last gave no answer, in nanoseconds since 1970: older ones are not to be trusted
}

// openPostgres opens the database at url and brings its schema up to date; several servers may do so at once.
func (d *DB) openPostgres(ctx context.Context, o Options, ms []migration) error {
	if err := d.connectPostgres(o); err != nil {
		return err
	}
	if err := d.migratePostgres(ctx, ms); err != nil {
		return d.explain(err)
	}
	d.pg.silence.Store(int64(silence))
	return nil
}

// connectPostgres makes the pool; it does not connect yet.
func (d *DB) connectPostgres(o Options) error {
	cfg, err := pgx.ParseConfig(o.URL)
	if err != nil {
		return fmt.Errorf("the address of the PostgreSQL database is not right: %w", err) // pgx leaves the password out
	}
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = connectTimeout
		if severalHosts(cfg) {
			cfg.ConnectTimeout = nextTimeout
		}
	}
	if cfg.RuntimeParams["application_name"] == "" {
		cfg.RuntimeParams["application_name"] = "skein"
	}
	d.path = fmt.Sprintf("%s at %s", cfg.Database, net.JoinHostPort(cfg.Host, fmt.Sprint(cfg.Port)))
	d.pg = &postgres{config: cfg.Copy()}
	d.pg.silence.Store(int64(openSilence))
	dial := cfg.DialFunc
	cfg.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		notice(c, unheard)
		return &impatient{Conn: c, pg: d.pg}, nil
	}
	conns := o.MaxConns
	if conns == 0 {
		conns = defaultConns
	}
	// A server that is cut off in the middle of a transaction holds its locks, of the tailnet's row among them, until PostgreSQL
	// gives it up; TCP would take hours. Not a start-up parameter, because poolers refuse those that they do not know.
	d.pg.pool = stdlib.OpenDB(*cfg, stdlib.OptionAfterConnect(func(ctx context.Context, c *pgx.Conn) error {
		c.PgConn().CustomData()[bornKey] = time.Now()
		_, err := c.Exec(ctx, fmt.Sprintf("SET idle_in_transaction_session_timeout = %d", idleInTx.Milliseconds()))
		return err
	}), stdlib.OptionShouldPing(func(_ context.Context, p stdlib.ShouldPingParams) bool {
		return p.IdleDuration > time.Second && !d.pg.suspect(p.Conn)
	}), stdlib.OptionResetSession(func(_ context.Context, c *pgx.Conn) error {
		if d.pg.suspect(c) {
			return driver.ErrBadConn
		}
		return nil
	}))
	d.pg.pool.SetMaxOpenConns(conns)
	d.pg.pool.SetMaxIdleConns(conns)
	d.pg.pool.SetConnMaxIdleTime(5 * time.Minute)
	d.write, err = gorm.Open(gormpg.New(gormpg.Config{Conn: d.pg.pool}), &gorm.Config{
		Logger:                 logger.Discard, // errors are returned, and statements would show keys
		SkipDefaultTransaction: true,
		QueryFields:            true, // no "SELECT *", which PostgreSQL refuses once a newer server has added a column
		DisableAutomaticPing:   true,
	})
	if err != nil {
		return d.explain(err)
	}
	d.read = d.write
	return nil
}

// severalHosts reports whether the address names more than one host.
func severalHosts(cfg *pgx.ConnConfig) bool {
	for _, f := range cfg.Fallbacks {
		if f.Host != cfg.Host || f.Port != cfg.Port {
			return true
		}
	}
	return false
}

// bornKey is under what a connection knows when it was made.
const bornKey = "skein born"

// suspect reports whether c was made before another connection was left without an answer. If the database's host is gone, all of
// the pool are dead, and each would have to be waited for.
func (p *postgres) suspect(c *pgx.Conn) bool {
	born, ok := c.PgConn().CustomData()[bornKey].(time.Time)
	return ok && born.UnixNano() < p.hung.Load()
}

// migratePostgres is inspect and migrate in one: each migration is a transaction which holds a lock and looks first at what is
// there, so that of several servers that start at once one migrates and the others find it done.
func (d *DB) migratePostgres(ctx context.Context, ms []migration) error {
	newest := ms[len(ms)-1].version
	w := d.write.WithContext(ctx)
	have, err := d.version(w)
	if err != nil {
		return err
	}
	if have > newest {
		return fmt.Errorf("database %s was written by a newer skein: its schema is version %d and this one knows versions up to %d; run the newer skein",
			d.path, have, newest)
	}
	if have > 0 && have < newest {
		d.log.Warn("migrating the database; a backup of it is up to you: pg_dump", "database", d.path, "from", have, "to", newest)
	}
	for _, m := range ms {
		if m.version <= have {
			continue
		}
		err := d.migrateOnce(w, m)
		for try := 0; asksForRetry(err) && try < migrateTries; try++ {
			d.log.Debug("a migration is tried again", "version", m.version, "err", err)
			err = d.migrateOnce(w, m)
		}
		if err != nil {
			return fmt.Errorf("database %s: migration %d (%s): %w", d.path, m.version, m.name, err)
		}
		d.tellMigrated(m, have)
	}
	return nil
}

// migrateOnce tries one migration. Servers that work meanwhile lock the same tables in an order of their own, so one of the two may be
// told that they wait for each other; such a migration has left nothing.
func (d *DB) migrateOnce(w *gorm.DB, m migration) error {
	return w.Transaction(func(tx *gorm.DB) error {
		if err := tx.Exec("SELECT pg_advisory_xact_lock(?)", migrateLock).Error; err != nil {
			return err
		}
		if now, err := d.version(tx); err != nil || now >= m.version {
			return err
		}
		return d.apply(tx, m)
	})
}

// errUnknown marks a transaction that may have been committed or not: the connection broke on COMMIT.
var errUnknown = errors.New("it is not known whether the change was stored: the connection to the database broke")

// transactPostgres runs f in one transaction, again if the connection broke before its COMMIT was sent or PostgreSQL asks for it.
// It waits for a database that is away, for writePatience at the most.
func (d *DB) transactPostgres(ctx context.Context, how durability, f func(tx *gorm.DB) error) error {
	deadline := time.Now().Add(writePatience)
	for wait := 25 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-d.closed:
			return errClosed
		default:
		}
		err := d.oncePostgres(context.WithoutCancel(ctx), deadline, how, f)
		if err == nil || errors.Is(err, errUnknown) || !isLost(err) && !asksForRetry(err) || time.Until(deadline) < wait {
			return d.explain(err)
		}
		d.log.Debug("a transaction is tried again", "err", err)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return ctx.Err()
		case <-d.closed:
			return errClosed
		}
	}
}

// oncePostgres tries one transaction. The error is errUnknown (among others) exactly if the outcome is not known.
func (d *DB) oncePostgres(ctx context.Context, deadline time.Time, how durability, f func(tx *gorm.DB) error) (err error) {
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	start := time.Now()
	tx := d.write.WithContext(ctx).Begin()
	if tx.Error != nil {
		return tx.Error
	}
	done := false
	defer func() {
		if !done {
			tx.Rollback()
		}
	}()
	if how == soft {
		if err := tx.Exec("SET LOCAL synchronous_commit = off").Error; err != nil {
			return err
		}
	}
	if err := f(tx); err != nil {
		return err
	}
	done = true
	if err := tx.Commit().Error; err != nil {
		if isLost(err) {
			return fmt.Errorf("%w (%w)", errUnknown, err)
		}
		return err
	}
	if took := time.Since(start); took > slowWrite {
		d.log.Warn("slow write to the database", "took", took)
	}
	return nil
}

// settle finds out what became of a commit whose connection broke: nil if it is there, errNotThere if it is not and never will
// be, ErrConflict if another one took its place. The old transaction, if it still runs, holds the tailnet's row; so once we
// have that row its fate is sealed. And it is durable: a commit that waited for a standby is in the database, for all to see, once nobody
// waits any more; it counts only when the standby has it.
func (d *DB) settle(ctx context.Context, c *commit) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settlePatience)
	defer cancel()
	for {
		err := d.transactPostgres(ctx, durable, func(tx *gorm.DB) error {
			var rev int64
			if err := tx.Raw("SELECT rev FROM tailnets WHERE id = ? FOR UPDATE", c.id).Row().Scan(&rev); err != nil {
				return err
			}
			if rev == int64(c.known) {
				return errNotThere
			}
			var id *string
			err := tx.Raw("SELECT commit_id FROM revisions WHERE tailnet_id = ? AND rev = ?", c.id, c.rev).Row().Scan(&id)
			if errors.Is(err, sql.ErrNoRows) || err == nil && (id == nil || *id != *c.revision.CommitID) {
				return tailnet.ErrConflict
			}
			return err
		})
		if err == nil || errors.Is(err, errNotThere) || errors.Is(err, tailnet.ErrConflict) || ctx.Err() != nil {
			return err
		}
	}
}

var errNotThere = errors.New("the commit is not in the database")

// pgError is what PostgreSQL says is wrong, nil if err is nothing of its.
func pgError(err error) *pgconn.PgError {
	var pe *pgconn.PgError
	errors.As(err, &pe)
	return pe
}

// SQLSTATE codes that we tell apart (PostgreSQL's documentation, appendix A).
const (
	stateUnique     = "23505"
	stateForeignKey = "23503"
	stateBadText    = "22021"
	stateSerialize  = "40001"
	stateDeadlock   = "40P01"
	stateReadOnly   = "25006" // of a standby
	stateIdleInTx   = "25P03" // see idleInTx
)

// asksForRetry reports whether PostgreSQL has taken a transaction back for the sake of another one.
func asksForRetry(err error) bool {
	pe := pgError(err)
	return pe != nil && (pe.Code == stateSerialize || pe.Code == stateDeadlock)
}

// isLost reports whether the connection to PostgreSQL is to blame, or a server that starts, stops or is no primary now.
func isLost(err error) bool {
	if pe := pgError(err); pe != nil {
		return strings.HasPrefix(pe.Code, "08") || strings.HasPrefix(pe.Code, "57P") || strings.HasPrefix(pe.Code, "53") ||
			pe.Code == stateReadOnly || pe.Code == stateIdleInTx
	}
	var connect *pgconn.ConnectError
	var ne net.Error
	var no syscall.Errno
	return errors.As(err, &connect) || errors.As(err, &ne) || errors.As(err, &no) || pgconn.SafeToRetry(err) || pgconn.Timeout(err) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, driver.ErrBadConn) ||
		errors.Is(err, sql.ErrConnDone) || errors.Is(err, context.DeadlineExceeded) || err != nil && err.Error() == "conn closed"
}

// explainPostgres is explain for PostgreSQL.
func (d *DB) explainPostgres(err error) error {
	var te *tailnet.Error
	if err == nil || errors.As(err, &te) {
		return err
	}
	say := func(code tailnet.Code, what string) error {
		return &tailnet.Error{Code: code, Message: fmt.Sprintf("database %s %s (%v)", d.path, what, err), Cause: err}
	}
	pe := pgError(err)
	switch {
	case errors.Is(err, errUnknown):
		return say(tailnet.Unavailable, "does not answer")
	case pe != nil && (pe.Code == "28P01" || pe.Code == "28000"):
		return say(tailnet.Unavailable, "does not let us in: check user and password (database.postgres.user, .pass)")
	case pe != nil && pe.Code == "3D000":
		return say(tailnet.Unavailable, "does not exist: make it with createdb, or name another one (database.postgres.name)")
	case pe != nil && pe.Code == stateBadText:
		return say(tailnet.Invalid, "takes no text with zero bytes or bytes that are not UTF-8")
	case errors.Is(err, context.Canceled):
		return err
	case isLost(err):
		return say(tailnet.Unavailable, "does not answer")
	case pe != nil && !strings.Contains(err.Error(), d.path):
		return say(tailnet.Internal, "failed")
	}
	return err
}

// impatient is a connection whose reads fail once nothing has come for a while, even where nobody has set a deadline: a database
// that is paused, or behind a cable that was cut, answers neither yes nor no.
type impatient struct {
	net.Conn
	pg *postgres

	mu  sync.Mutex
	own bool // somebody has set a deadline; guarded by mu
}

func (c *impatient) Read(b []byte) (int, error) {
	c.mu.Lock()
	if !c.own {
		_ = c.Conn.SetReadDeadline(time.Now().Add(time.Duration(c.pg.silence.Load())))
	}
	c.mu.Unlock()
	begin := time.Now()
	n, err := c.Conn.Read(b)
	var ne net.Error
	if err != nil && errors.As(err, &ne) && ne.Timeout() && time.Since(begin) > hung {
		c.pg.hung.Store(time.Now().UnixNano())
	}
	return n, err
}

func (c *impatient) SetDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.own = !t.IsZero()
	return c.Conn.SetDeadline(t)
}

func (c *impatient) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.own = !t.IsZero()
	return c.Conn.SetReadDeadline(t)
}
