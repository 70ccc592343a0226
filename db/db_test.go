package db

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"gorm.io/gorm"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"

	"github.com/skein-vpn/skein/db/pgtest"
	"github.com/skein-vpn/skein/tailnet"
)

var ctx = context.Background()

// t0 is when tests happen.
var t0 = time.Date(2026, 11, 20, 15, 0, 0, 123456789, time.UTC)

// envChild makes the test binary be one of children instead of running tests.
const envChild = "SKEIN_DB_TEST_CHILD"

var children = map[string]func(path string) error{
	"hold":    childHold,
	"commit":  childCommit,
	"migrate": childMigrate,
}

func TestMain(m *testing.M) {
	if name := os.Getenv(envChild); name != "" {
		if err := children[name](os.Args[1]); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	flag.Parse()
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		pgtest.StopShared()
		os.Exit(code)
	}), goleak.IgnoreAnyFunction("github.com/skein-vpn/skein/db/pgtest.(*Server).Run.func1"))
}

// child is a process of this binary that works on a database.
type child struct {
	*exec.Cmd
	out *bufio.Scanner
}

func startChild(t *testing.T, name, path string) *child {
	t.Helper()
	c := exec.Command(os.Args[0], path)
	c.Env = append(os.Environ(), envChild+"="+name)
	c.Stderr = os.Stderr
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Process.Kill(); c.Wait() })
	return &child{c, bufio.NewScanner(out)}
}

// line is the next line that the child prints.
func (c *child) line(t *testing.T) string {
	t.Helper()
	if !c.out.Scan() {
		t.Fatalf("the child has ended: %v", c.out.Err())
	}
	if s, bad := strings.CutPrefix(c.out.Text(), "error: "); bad {
		t.Fatal(s)
	}
	return c.out.Text()
}

// kill ends the child with SIGKILL and returns what it had printed by then.
func (c *child) kill(t *testing.T) (rest []string) {
	t.Helper()
	if err := c.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for c.out.Scan() {
		rest = append(rest, c.out.Text())
	}
	c.Wait()
	return rest
}

func options(path string) Options {
	o := Options{Path: path, Now: func() time.Time { return t0 }}
	if strings.HasPrefix(path, "postgres://") {
		o.URL = path
	}
	return o
}

// newPath is where a new database may be: a file, or the URL of an empty database on PostgreSQL.
func newPath(t testing.TB) string {
	if onPostgres() {
		return pgtest.Database(t)
	}
	return filepath.Join(t.TempDir(), "skein.db")
}

// openTest opens the database at path, or else a new one, and closes it with the test.
func openTest(t testing.TB, path ...string) *DB {
	t.Helper()
	path = append(path, newPath(t))
	d, err := Open(ctx, options(path[0]))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func mustLoad(t testing.TB, d *DB, id tailnet.ID) *tailnet.Contents {
	t.Helper()
	c, err := d.Load(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func mustCommit(t testing.TB, d *DB, known tailnet.Rev, ch *tailnet.Changes) tailnet.Rev {
	t.Helper()
	rev, err := d.Commit(ctx, 1, known, ch)
	if err != nil {
		t.Fatal(err)
	}
	if rev != known+1 {
		t.Fatalf("Commit took %d to %d", known, rev)
	}
	return rev
}

// mustExec runs SQL on the writing connection, as an administrator with a sqlite3 shell might.
func mustExec(t testing.TB, d *DB, sql string, args ...any) {
	t.Helper()
	if err := d.write.Exec(sql, args...).Error; err != nil {
		t.Fatal(err)
	}
}

// diff is empty if a and b are equal in every field, exported or not.
func diff(a, b any) string {
	if reflect.DeepEqual(a, b) {
		return ""
	}
	return cmp.Diff(a, b, cmp.Exporter(func(reflect.Type) bool { return true })) + "(not deeply equal)"
}

// wantErr fails unless err says all of words.
func wantErr(t testing.TB, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error; want one with %q", words)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q does not say %q", err, w)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	sqliteOnly(t)
	dir := t.TempDir()
	write := func(name, content string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	unwritable := filepath.Join(dir, "unwritable")
	if err := os.Mkdir(unwritable, 0o500); err != nil {
		t.Fatal(err)
	}
	if os.Getuid() == 0 { // whom modes do not stop
		unwritable = "/sys"
	}
	foreign := func(name string, stmts ...string) string {
		p := filepath.Join(dir, name)
		db, err := sql.Open("sqlite", p)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		for _, s := range stmts {
			if _, err := db.Exec(s); err != nil {
				t.Fatal(err)
			}
		}
		return p
	}
	for _, tt := range []struct {
		name, path string
		words      []string
	}{
		{"no path", "", []string{"no path"}},
		{"no folder", filepath.Join(dir, "none", "skein.db"), []string{"none/skein.db", "folder", "no such file"}},
		{"folder is a file", filepath.Join(write("file", ""), "skein.db"), []string{"file/skein.db", "not a directory"}},
		{"unwritable folder", filepath.Join(unwritable, "skein.db"), []string{unwritable + "/skein.db", "cannot be written", "permission denied"}},
		{"is a folder", dir, []string{dir, "is a directory"}},
		{"not a database", write("text", strings.Repeat("this is a text, not a database\n", 100)), []string{"text", "not a SQLite database"}},
		{"headscale's", foreign("hs.sqlite", "CREATE TABLE machines (id)", "CREATE TABLE migrations (id)", "CREATE TABLE pre_auth_keys (id)"),
			[]string{"hs.sqlite", "headscale", "machines", "another path"}},
		{"somebody else's", foreign("rails.sqlite", "CREATE TABLE schema_migrations (version)", "CREATE TABLE posts (id)"),
			[]string{"rails.sqlite", "another program", "posts"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before, _ := os.ReadFile(tt.path)
			d, err := Open(ctx, options(tt.path))
			if err == nil {
				d.Close()
			}
			wantErr(t, err, tt.words...)
			if after, _ := os.ReadFile(tt.path); string(before) != string(after) {
				t.Error("the file was changed")
			}
		})
	}
}

// TestOpenOddPath has everything in the path that means something in a URI.
func TestOpenOddPath(t *testing.T) {
	sqliteOnly(t)
	dir := filepath.Join(t.TempDir(), "a b?mode=ro&x#%41 ü")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "sk?ein.db")
	mustCommit(t, openTest(t, path), 0, &tailnet.Changes{Why: []string{"test"}})
	if fi, err := os.Stat(path); err != nil || fi.Size() == 0 {
		t.Errorf("the database is elsewhere: %v", err)
	}
}

func TestFileModes(t *testing.T) {
	sqliteOnly(t)
	defer syscall.Umask(syscall.Umask(0))
	path := newPath(t)
	d := openTest(t, path)
	mustCommit(t, d, 0, &tailnet.Changes{})
	if err := d.CopyTo(ctx, path+".copy"); err != nil {
		t.Fatal(err)
	}
	for _, suffix := range []string{"", "-wal", "-shm", ".lock", ".copy"} {
		if fi, err := os.Stat(path + suffix); err != nil {
			t.Error(err)
		} else if fi.Mode() != 0o600 {
			t.Errorf("%s has mode %v", fi.Name(), fi.Mode())
		}
	}
}

func TestWorldReadableWarns(t *testing.T) {
	sqliteOnly(t)
	path := newPath(t)
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	o := options(path)
	o.Log = slog.New(slog.NewTextHandler(&log, nil))
	d, err := Open(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if !strings.Contains(log.String(), "chmod 600") {
		t.Errorf("log: %s", log.String())
	}
}

func childHold(path string) error {
	if _, err := Open(ctx, options(path)); err != nil {
		return err
	}
	fmt.Println("open")
	select {}
}

func TestSecondProcess(t *testing.T) {
	sqliteOnly(t)
	path := newPath(t)
	c := startChild(t, "hold", path)
	c.line(t)
	link := filepath.Join(filepath.Dir(path), "link.db")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{path, link} {
		_, err := Open(ctx, options(p))
		wantErr(t, err, path, "another skein is running on this database", fmt.Sprintf("(pid %d)", c.Process.Pid))
	}
	c.kill(t)
	d := openTest(t, path) // a lock that was not given back is no obstacle
	_, err := Open(ctx, options(path))
	wantErr(t, err, fmt.Sprintf("(pid %d)", os.Getpid()))
	if err := d.Health(ctx); err != nil {
		t.Error(err)
	}
}

func TestClose(t *testing.T) {
	path := newPath(t)
	d := openTest(t, path)
	mustCommit(t, d, 0, &tailnet.Changes{})
	for range 2 {
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(path + "-wal"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the write-ahead log is still there: %v", err)
	}
	_, err := d.Commit(ctx, 1, 1, &tailnet.Changes{})
	wantErr(t, err, "the database is closed")
	if err := d.Health(ctx); err == nil {
		t.Error("healthy after Close")
	}
	if rev := mustLoad(t, openTest(t, path), 1).Rev; rev != 1 {
		t.Errorf("rev %d after reopening", rev)
	}
}

func canceled() context.Context {
	c, cancel := context.WithCancel(ctx)
	cancel()
	return c
}

// TestDamagedFile overwrites one page after the other. What cannot be read is an error that says what to do, and whatever can be
// read is right.
func TestDamagedFile(t *testing.T) {
	sqliteOnly(t)
	path := newPath(t)
	d := openTest(t, path)
	fill(t, d, 40)
	want := mustLoad(t, d, 1)
	d.Close()
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	const page = 4096
	damaged := 0
	for off := 0; off < len(whole); off += page {
		b := slices.Clone(whole)
		copy(b[off:], strings.Repeat("damage! ", page/8))
		path := newPath(t)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		d, err := Open(ctx, options(path))
		if err == nil {
			var c *tailnet.Contents
			if c, err = d.Load(ctx, 1); err == nil {
				if diff := diff(want, c); diff != "" {
					t.Errorf("page %d: %s", off/page, diff)
				}
			}
			d.Close() // it may have something to say, too
		}
		if err != nil {
			damaged++
			if s := err.Error(); !strings.Contains(s, "damaged; stop the server") && !strings.Contains(s, "not a SQLite database") {
				t.Errorf("page %d: %v", off/page, err)
			}
		}
	}
	if damaged < 5 {
		t.Errorf("only %d of %d pages matter", damaged, len(whole)/page)
	}
}

// TestLockedByShell has somebody hold a transaction open in a sqlite3 shell.
func TestLockedByShell(t *testing.T) {
	sqliteOnly(t)
	path := newPath(t)
	d := openTest(t, path)
	mustExec(t, d, "PRAGMA busy_timeout=1")
	shell, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer shell.Close()
	shell.SetMaxOpenConns(1)
	if _, err := shell.Exec("BEGIN IMMEDIATE"); err != nil {
		t.Fatal(err)
	}
	_, err = d.Commit(ctx, 1, 0, &tailnet.Changes{})
	wantErr(t, err, path, "locked by another program")
	if tailnet.CodeOf(err) != tailnet.Unavailable {
		t.Errorf("code %v", tailnet.CodeOf(err))
	}
	if err := d.Health(ctx); err != nil { // reading goes on
		t.Error(err)
	}
	if _, err := shell.Exec("ROLLBACK"); err != nil {
		t.Fatal(err)
	}
	mustCommit(t, d, 0, &tailnet.Changes{})
}

func TestHealth(t *testing.T) {
	sqliteOnly(t)
	path := newPath(t)
	d := openTest(t, path)
	if err := d.Health(ctx); err != nil {
		t.Fatal(err)
	}
	if err := d.Health(canceled()); err == nil {
		t.Error("healthy although nobody waited")
	}

	// A full disk, as far as SQLite can tell.
	nodes, rev := fill(t, d, 1)
	mustExec(t, d, "PRAGMA max_page_count=1")
	big := nodes[0].Clone()
	big.Hostinfo = &tailcfg.Hostinfo{Hostname: strings.Repeat("x", 1<<20)}
	_, err := d.Commit(ctx, 1, rev, &tailnet.Changes{PutNodes: []*tailnet.Node{big}})
	wantErr(t, err, path, "disk is full")
	if tailnet.CodeOf(err) != tailnet.Unavailable {
		t.Errorf("code %v", tailnet.CodeOf(err))
	}
	wantErr(t, d.Health(ctx), "last write failed", "disk is full")
	mustExec(t, d, "PRAGMA max_page_count=1000000")
	mustCommit(t, d, rev, &tailnet.Changes{PutNodes: []*tailnet.Node{big}})
	if err := d.Health(ctx); err != nil {
		t.Error(err)
	}

	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	wantErr(t, d.Health(ctx), path, "gone")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	wantErr(t, d.Health(ctx), path, "replaced")
	if err := os.Rename(path+".old", path); err != nil {
		t.Fatal(err)
	}
}

func TestCopyTo(t *testing.T) {
	sqliteOnly(t)
	d := openTest(t)
	_, rev := fill(t, d, 10)
	path := newPath(t)
	if err := d.CopyTo(ctx, path); err != nil {
		t.Fatal(err)
	}
	mustCommit(t, d, rev, &tailnet.Changes{DeleteNodes: []tailnet.NodeID{1}})
	wantErr(t, d.CopyTo(ctx, path), path, "exists")
	wantErr(t, d.CopyTo(ctx, filepath.Join(path, "x")), path, "not a directory")
	c := mustLoad(t, openTest(t, path), 1)
	if c.Rev != rev || len(c.Nodes) != 10 {
		t.Errorf("the copy has %d nodes at rev %d", len(c.Nodes), c.Rev)
	}
	if left, _ := filepath.Glob(path + "*.part"); left != nil {
		t.Errorf("left over: %v", left)
	}
}

// TestDurability checks what the connection that commits is set to; the effect itself would need a power cut.
func TestDurability(t *testing.T) {
	sqliteOnly(t)
	d := openTest(t)
	nodes, rev := fill(t, d, 1)
	want := func(how durability, level int) {
		t.Helper()
		var got int
		if err := d.transact(ctx, how, func(tx *gorm.DB) error { return tx.Raw("PRAGMA synchronous").Scan(&got).Error }); err != nil {
			t.Fatal(err)
		}
		if got != level {
			t.Errorf("synchronous is %d for %s", got, how.pragma())
		}
	}
	want(durable, 2)
	if err := d.SavePresence(ctx, 1, "", map[tailnet.NodeID]tailnet.Presence{nodes[0].ID: {Online: true}}); err != nil {
		t.Fatal(err)
	}
	want(soft, 1)
	mustCommit(t, d, rev, &tailnet.Changes{})
	want(durable, 2)
}

// childCommit commits for ever; what a commit did can be told from its Rev.
func childCommit(path string) error {
	d, err := Open(ctx, options(path))
	if err != nil {
		return err
	}
	c, err := d.Load(ctx, 1)
	if err != nil {
		return err
	}
	n := &tailnet.Node{ID: 1, StableID: "n1", NodeKey: key.NewNode().Public(), Name: "n", Hostinfo: new(tailcfg.Hostinfo)}
	for rev := c.Rev; ; {
		n.HomeDERP = int(rev) + 1
		u := &tailnet.User{ID: tailnet.UserID(rev) + 1, Name: fmt.Sprintf("u%d", rev+1)}
		if rev, err = d.Commit(ctx, 1, rev, &tailnet.Changes{PutNodes: []*tailnet.Node{n}, PutUsers: []*tailnet.User{u}}); err != nil {
			return err
		}
		fmt.Println(rev)
		if rev%3 == 0 {
			if err := d.SavePresence(ctx, 1, "", map[tailnet.NodeID]tailnet.Presence{1: {Online: true, LastSeen: t0}}); err != nil {
				return err
			}
		}
	}
}

// TestKill kills the process in the middle of commits, again and again: what it has acknowledged is there, and nothing is half
// there.
func TestKill(t *testing.T) {
	path := newPath(t)
	var acked tailnet.Rev
	for round := range 8 {
		c := startChild(t, "commit", path)
		var lines []string
		for range 5 + 17*round {
			lines = append(lines, c.line(t))
		}
		lines = append(lines, c.kill(t)...)
		for _, s := range lines {
			var rev tailnet.Rev
			if n, _ := fmt.Sscanf(s+"\n", "%d\n", &rev); n == 1 {
				acked = max(acked, rev)
			}
		}
		d := openTest(t, path)
		got := mustLoad(t, d, 1)
		if got.Rev < acked || got.Rev > acked+1 {
			t.Fatalf("round %d: rev is %d, acknowledged was %d", round, got.Rev, acked)
		}
		if n := got.Nodes[0].HomeDERP; n != int(got.Rev) {
			t.Fatalf("round %d: the node is of rev %d, the tailnet of rev %d", round, n, got.Rev)
		}
		if len(got.Users) != int(got.Rev) {
			t.Fatalf("round %d: %d users at rev %d", round, len(got.Users), got.Rev)
		}
		revs, err := d.Revisions(ctx, 1, 0, 1<<20)
		if err != nil || len(revs) != int(got.Rev) {
			t.Fatalf("round %d: %d revisions at rev %d, %v", round, len(revs), got.Rev, err)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d commits", acked)
}

func TestConcurrentUse(t *testing.T) {
	d := openTest(t)
	nodes, rev := fill(t, d, 50)
	stop := make(chan struct{})
	errs := make(chan error, 8)
	run := func(f func(i int) error) {
		go func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					errs <- nil
					return
				default:
				}
				if err := f(i); err != nil {
					errs <- err
					return
				}
			}
		}()
	}
	run(func(int) error { _, err := d.Load(ctx, 1); return err })
	run(func(int) error { return d.Health(ctx) })
	run(func(i int) error { _, err := d.DeletedNode(ctx, 1, nodes[i%50].NodeKey); return err })
	run(func(i int) error {
		return d.SavePresence(ctx, 1, "", map[tailnet.NodeID]tailnet.Presence{nodes[i%50].ID: {Online: i%2 == 0, LastSeen: t0}})
	})
	run(func(i int) error { return d.PutLogin(ctx, testLogin(fmt.Sprint(i%10), t0)) })
	run(func(int) error { _, err := d.Logins(ctx, 1); return err })
	run(func(int) error { // waits that are given up must not take the writer with them
		c, cancel := context.WithTimeout(ctx, 100*time.Microsecond)
		defer cancel()
		d.PutLogin(c, testLogin("x", t0))
		return nil
	})
	for range 50 {
		n := nodes[int(rev)%50].Clone()
		n.HomeDERP = int(rev)
		rev = mustCommit(t, d, rev, &tailnet.Changes{PutNodes: []*tailnet.Node{n}})
	}
	close(stop)
	for range 7 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

// netipMust keeps tables short.
var (
	addrOf   = netip.MustParseAddr
	prefixOf = netip.MustParsePrefix
)

func ids[T any, ID any](vs []T, id func(T) ID) (out []ID) {
	for _, v := range vs {
		out = append(out, id(v))
	}
	return out
}

func names(c *tailnet.Contents) []string {
	return slices.Concat(ids(c.Users, func(u *tailnet.User) string { return u.Name }), ids(c.Nodes, func(n *tailnet.Node) string { return n.Name }))
}
