package db

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/skein-vpn/skein/db/pgtest"
	"github.com/skein-vpn/skein/tailnet"
)

// proxy stands between a DB and PostgreSQL and cuts connections.
//
//	beforeCommit  the server never sees COMMIT
//	afterCommit   the server does, but its answer does not arrive
//	atCommit      neither side hears of the other any more, and no connection is closed: a cable was cut
type proxy struct {
	l    net.Listener
	to   string
	next atomic.Int32 // what happens to the next COMMIT
	cuts atomic.Int64
	wg   sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]bool
}

const (
	beforeCommit = iota + 1
	afterCommit
	atCommit
)

func newProxy(t *testing.T, dbURL string) (*proxy, string) {
	t.Helper()
	u, err := url.Parse(dbURL)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{l: l, to: u.Host, conns: map[net.Conn]bool{}}
	p.wg.Go(p.serve)
	t.Cleanup(func() { l.Close(); p.cutAll(); p.wg.Wait() })
	u.Host = l.Addr().String()
	return p, u.String()
}

func (p *proxy) serve() {
	for {
		c, err := p.l.Accept()
		if err != nil {
			return
		}
		s, err := net.Dial("tcp", p.to)
		if err != nil {
			c.Close()
			continue
		}
		p.mu.Lock()
		p.conns[c], p.conns[s] = true, true
		p.mu.Unlock()
		var mute, cut atomic.Bool // the server's answers are dropped; and the connection stays nevertheless
		p.wg.Go(func() {
			defer p.drop(c, s)
			b := make([]byte, 64<<10)
			for {
				n, err := c.Read(b)
				if err != nil {
					return
				}
				what := int32(0)
				if bytes.Contains(bytes.ToLower(b[:n]), []byte("commit\x00")) {
					what = p.next.Swap(0)
				}
				switch what {
				case beforeCommit:
					p.cuts.Add(1)
					return
				case afterCommit:
					p.cuts.Add(1)
					mute.Store(true)
					c.Close() // the database goes on alone
				case atCommit:
					p.cuts.Add(1)
					cut.Store(true)
					mute.Store(true)
					_, _ = io.Copy(io.Discard, c)
					return
				}
				if _, err := s.Write(b[:n]); err != nil {
					return
				}
				if what == afterCommit {
					_, _ = io.Copy(io.Discard, io.LimitReader(s, 1)) // it has answered
					return
				}
			}
		})
		p.wg.Go(func() {
			defer p.drop(c, s)
			b := make([]byte, 64<<10)
			for !mute.Load() {
				n, err := s.Read(b)
				if cut.Load() {
					_, _ = io.Copy(io.Discard, s)
				}
				if err != nil || mute.Load() {
					return
				}
				if _, err := c.Write(b[:n]); err != nil {
					return
				}
			}
		})
	}
}

func (p *proxy) drop(conns ...net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range conns {
		c.Close()
		delete(p.conns, c)
	}
}

// cutAll ends all connections.
func (p *proxy) cutAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.Close()
	}
}

// userNamed is a commit that adds one user, by whose id and name it can be found again.
func userNamed(rev tailnet.Rev) *tailnet.Changes {
	return &tailnet.Changes{PutUsers: []*tailnet.User{{ID: tailnet.UserID(rev) + 1, Name: fmt.Sprintf("u%d", rev+1)}}}
}

// TestConnectionBreaksOnCommit breaks connections exactly when a commit is under way, before and after the database has heard of
// it. Each commit is done once: none is lost, none is refused as the conflict that it is not.
func TestConnectionBreaksOnCommit(t *testing.T) {
	sqliteOnly(t)
	p, url := newProxy(t, pgtest.Database(t))
	d := openTest(t, url)
	var rev tailnet.Rev
	for i := range 60 {
		p.next.Store(int32(i % 3))
		rev = mustCommit(t, d, rev, userNamed(rev))
	}
	if p.cuts.Load() < 30 {
		t.Errorf("only %d connections were cut", p.cuts.Load())
	}
	wantUsers(t, d, rev)

	// Somebody else is faster while the connection is away: that is a conflict, and ours is not there.
	other := openTest(t, pgURL(t, d, p))
	rev2 := mustCommit(t, other, rev, userNamed(rev))
	if _, err := d.Commit(ctx, 1, rev, userNamed(rev)); !errors.Is(err, tailnet.ErrConflict) {
		t.Errorf("%v", err)
	}
	p.next.Store(beforeCommit) // reading is tried again as well
	wantUsers(t, d, rev2)
}

// pgURL is the database of d without the proxy.
func pgURL(t *testing.T, d *DB, p *proxy) string {
	t.Helper()
	return fmt.Sprintf("postgres://skein@%s/%s?sslmode=disable", p.to, d.pg.config.Database)
}

// wantUsers fails unless the database is at rev and holds exactly what userNamed commits up to it made.
func wantUsers(t *testing.T, d *DB, rev tailnet.Rev) {
	t.Helper()
	c := mustLoad(t, d, 1)
	revs, err := d.Revisions(ctx, 1, 0, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	if c.Rev != rev || len(c.Users) != int(rev) || len(revs) != int(rev) {
		t.Errorf("rev %d, %d users, %d revisions; want %d of each", c.Rev, len(c.Users), len(revs), rev)
	}
}

// TestCutOffInTransaction cuts a server off from the database when it has the tailnet's row: the others can commit nevertheless,
// before their patience ends.
func TestCutOffInTransaction(t *testing.T) {
	sqliteOnly(t)
	p, url := newProxy(t, pgtest.Database(t))
	d := openTest(t, url)
	rev := mustCommit(t, d, 0, userNamed(0))
	p.next.Store(atCommit)
	lonely := make(chan error)
	go func() {
		_, err := d.Commit(ctx, 1, rev, userNamed(rev))
		lonely <- err
	}()
	for end := time.Now().Add(time.Minute); p.cuts.Load() == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("nothing was committed")
		}
	}
	mustCommit(t, openTest(t, pgURL(t, d, p)), rev, userNamed(rev))
	p.cutAll() // that is when it is heard of again
	if err := <-lonely; !errors.Is(err, tailnet.ErrConflict) {
		t.Errorf("the commit of the server that was cut off: %v", err)
	}
	wantUsers(t, d, rev+1)
}

// TestOutages has three writers race for revisions while all connections are cut again and again and PostgreSQL is killed,
// stopped, paused and started: what was acknowledged is there once, what failed is there at most once.
func TestOutages(t *testing.T) {
	sqliteOnly(t)
	pg := pgtest.Start(t, pgtest.Options{})
	p, url := newProxy(t, pg.NewDatabase(t))
	type done struct {
		rev  tailnet.Rev
		name string
	}
	var mu sync.Mutex
	var acked []done
	unknown := map[string]bool{}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for w := range 3 {
		d := openTest(t, url)
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				c, err := d.Load(ctx, 1)
				if err != nil {
					if tailnet.CodeOf(err) != tailnet.Unavailable {
						t.Errorf("Load: %v (%T)", err, err)
					}
					time.Sleep(10 * time.Millisecond)
					continue
				}
				name := fmt.Sprintf("w%d-%d", w, i)
				ch := &tailnet.Changes{PutUsers: []*tailnet.User{{ID: tailnet.UserID(c.Rev) + 1, Name: name}}}
				rev, err := d.Commit(ctx, 1, c.Rev, ch)
				mu.Lock()
				switch {
				case err == nil:
					acked = append(acked, done{rev, name})
				case errors.Is(err, tailnet.ErrConflict):
				case tailnet.CodeOf(err) == tailnet.Unavailable:
					unknown[name] = true
				default:
					t.Errorf("Commit: %v", err)
				}
				mu.Unlock()
			}
		})
	}
	count := func() int { mu.Lock(); defer mu.Unlock(); return len(acked) }
	progress := func(what string) {
		t.Helper()
		before := count()
		for end := time.Now().Add(time.Minute); count() < before+5; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("no commits after %s", what)
			}
		}
	}
	progress("the start")
	for i := range 9 {
		p.next.Store(int32(i % 3))
		time.Sleep(time.Duration(rand.IntN(20)) * time.Millisecond) // how long does not matter
		p.cutAll()
		progress("a cut")
	}
	for _, end := range []func(){pg.Kill, pg.Stop} {
		end()
		if err := pg.Run(); err != nil {
			t.Fatal(err)
		}
		progress("a restart of PostgreSQL")
	}
	pg.Pause()
	begin := time.Now()
	h := openTestless(url)
	defer h.pg.pool.Close()
	if err := h.Health(ctx); err == nil {
		t.Error("a paused database counts as healthy")
	}
	t.Logf("health check of a paused database failed after %v", time.Since(begin).Round(time.Millisecond))
	pg.Resume()
	progress("a pause")
	close(stop)
	wg.Wait()

	d := openTest(t, url)
	c := mustLoad(t, d, 1)
	byID := map[tailnet.UserID]string{}
	for _, u := range c.Users {
		byID[u.ID] = u.Name
	}
	for _, a := range acked {
		if byID[tailnet.UserID(a.rev)] != a.name {
			t.Errorf("rev %d was acknowledged for %s and is of %q", a.rev, a.name, byID[tailnet.UserID(a.rev)])
		}
		delete(byID, tailnet.UserID(a.rev))
	}
	for id, name := range byID {
		if !unknown[name] {
			t.Errorf("rev %d is of %s, which was told that it did not succeed", id, name)
		}
	}
	if len(c.Users) != int(c.Rev) {
		t.Errorf("%d users at rev %d", len(c.Users), c.Rev)
	}
	t.Logf("%d commits acknowledged, %d with unknown outcome of which %d are there; rev %d", len(acked), len(unknown), len(byID), c.Rev)
}

// openTestless is a DB on the pool of url that has not asked the database anything yet.
func openTestless(dbURL string) *DB {
	d := &DB{now: time.Now, pg: &postgres{}}
	u, _ := url.Parse(dbURL)
	d.path = u.Host
	if err := d.connectPostgres(Options{URL: dbURL}); err != nil {
		panic(err)
	}
	return d
}

// TestStartsAtOnce opens an empty database three times at once: one migrates, all are content.
func TestStartsAtOnce(t *testing.T) {
	sqliteOnly(t)
	url := pgtest.Database(t)
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			d, err := Open(ctx, options(url))
			if err != nil {
				t.Error(err)
				return
			}
			d.Close()
		})
	}
	wg.Wait()
}

// TestPostgresRefuses opens what cannot be opened: the sentence says what to do.
func TestPostgresRefuses(t *testing.T) {
	sqliteOnly(t)
	url := pgtest.Database(t)
	d := openTest(t, url)
	mustExec(t, d, "INSERT INTO schema_migrations VALUES (9999, 'later', '')")
	_, err := Open(ctx, options(url))
	wantErr(t, err, "newer skein", "version 9999")
	foreign := pgtest.Database(t)
	f := openTestless(foreign)
	defer f.pg.pool.Close()
	mustExec(t, f, "CREATE TABLE posts (id BIGINT)")
	_, err = Open(ctx, options(foreign))
	wantErr(t, err, "another program", "posts", "database")
	_, err = Open(ctx, options("postgres://skein@"+pgtest.Shared(t).Addr+"/nowhere?sslmode=disable"))
	wantErr(t, err, "nowhere", "does not exist", "createdb")
	_, err = Open(ctx, options("postgres://skein:secret@127.0.0.1:1/skein?sslmode=disable"))
	wantErr(t, err, "skein at 127.0.0.1:1", "does not answer")
	if bytes.Contains([]byte(err.Error()), []byte("secret")) {
		t.Errorf("the password is in %v", err)
	}
	c, cancel := context.WithCancel(ctx)
	cancel()
	if err := d.PutLogin(c, testLogin("x", t0)); err == nil {
		t.Error("nobody waited, and it was stored")
	}
}
