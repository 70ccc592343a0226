package db

import (
	"path/filepath"
	"testing"

	"github.com/skein-vpn/skein/db/pgtest"
	"github.com/skein-vpn/skein/tailnet"
)

// A copy of a database that somebody has open is whole, and the database is not touched.
func TestCopyFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db.sqlite")
	d, err := Open(ctx, Options{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	ch := sampleChanges()
	mustCommit(t, d, 0, ch)
	to := path + ".copy"
	if err := CopyFile(ctx, path, to); err != nil {
		t.Fatal(err)
	}
	wantErr(t, CopyFile(ctx, path, to), to, "exists already")
	wantErr(t, CopyFile(ctx, path+"x", to+"x"), "there is none")
	if _, err := Lock(path); err == nil {
		t.Error("the lock of an open database was given out")
	}
	c, err := Open(ctx, Options{Path: to})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if diff := diff(mustLoad(t, d, 1), mustLoad(t, c, 1)); diff != "" {
		t.Error(diff)
	}
}

// Everything in SQLite is in PostgreSQL afterwards, and can be worked with; a database that is in use is not written over.
func TestCopyAll(t *testing.T) {
	d := openTest(t, filepath.Join(t.TempDir(), "db.sqlite"))
	ch := sampleChanges()
	mustCommit(t, d, 0, ch)
	if err := d.SavePresence(ctx, 1, samplePresence().Server, map[tailnet.NodeID]tailnet.Presence{7: samplePresence()}); err != nil {
		t.Fatal(err)
	}
	if err := d.PutLogin(ctx, testLogin("secret", t0)); err != nil {
		t.Fatal(err)
	}
	to := openTest(t, pgtest.Database(t))
	counts, err := d.CopyAll(ctx, to)
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range []string{"tailnets", "nodes", "users", "pre_auth_keys", "credentials", "policies", "presence", "revisions", "logins"} {
		if counts[table] == 0 {
			t.Errorf("table %s: nothing was copied", table)
		}
	}
	if diff := diff(mustLoad(t, d, 1), mustLoad(t, to, 1)); diff != "" {
		t.Error(diff)
	}
	if l, err := to.Login(ctx, 1, "secret"); err != nil || l.Remote == "" {
		t.Errorf("%+v %v", l, err)
	}
	mustCommit(t, to, 1, &tailnet.Changes{PutUsers: []*tailnet.User{{ID: 99, Name: "new"}}})
	_, err = d.CopyAll(ctx, to)
	wantErr(t, err, "holds a tailnet already")
	if got := mustLoad(t, to, 1); got.Rev != 2 {
		t.Errorf("Rev is %d after the refusal", got.Rev)
	}
}

// Litestream keeps two tables of its own in the database: they disturb nothing, and no copy into PostgreSQL has them.
func TestLitestreamTables(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db.sqlite")
	d := openTest(t, path)
	for _, s := range []string{"CREATE TABLE _litestream_seq (id INTEGER PRIMARY KEY, seq INTEGER)", "CREATE TABLE _litestream_lock (id INTEGER)", "INSERT INTO _litestream_seq VALUES (1, 7)"} {
		if err := d.write.Exec(s).Error; err != nil {
			t.Fatal(err)
		}
	}
	mustCommit(t, d, 0, sampleChanges())
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := Open(ctx, Options{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	mustLoad(t, again, 1)
	if err := CopyFile(ctx, path, path+".copy"); err != nil {
		t.Error(err)
	}
	counts, err := again.CopyAll(ctx, openTest(t, pgtest.Database(t)))
	if err != nil || counts["tailnets"] != 1 || counts["_litestream_seq"] != 0 {
		t.Errorf("%v %v", counts, err)
	}
}
