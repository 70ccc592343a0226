package db

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"gorm.io/gorm"

	"github.com/skein-vpn/skein/tailnet"
)

// Before a schema is released: go test ./db -run TestFixtures -write-fixture
var writeFixture = flag.Bool("write-fixture", false, "write testdata/vNNN.sql for the newest schema")

// next are migrations of a Skein to come.
var next = append(migrations[:len(migrations):len(migrations)], migration{version: int64(len(migrations)) + 1, name: "test", sql: `
CREATE TABLE nodes_new (tailnet_id BIGINT NOT NULL, id BIGINT NOT NULL, name TEXT, PRIMARY KEY (tailnet_id, id));
INSERT INTO nodes_new SELECT tailnet_id, id, name FROM nodes;
DROP TABLE nodes;
ALTER TABLE nodes_new RENAME TO nodes`})

var newVersion = next[len(next)-1].version

func TestMigrationsAreNumbered(t *testing.T) {
	for i, m := range migrations {
		if m.version != int64(i+1) || m.name == "" || m.sql == "" {
			t.Errorf("migration %d: %+v", i+1, m)
		}
	}
}

func TestMigrate(t *testing.T) {
	sqliteOnly(t)
	path := newPath(t)
	d := openTest(t, path)
	nodes, rev := fill(t, d, 3)
	if err := d.SavePresence(ctx, 1, "", map[tailnet.NodeID]tailnet.Presence{nodes[0].ID: {Online: true}}); err != nil {
		t.Fatal(err)
	}
	want := mustLoad(t, d, 1)
	d.Close()

	d, err := open(ctx, options(path), next)
	if err != nil {
		t.Fatal(err)
	}
	var n, on int64
	d.read.Raw("SELECT count(*) FROM nodes").Scan(&n)
	if n != 3 {
		t.Errorf("%d nodes", n)
	}
	d.read.Raw("SELECT count(*) FROM presence").Scan(&n)
	if n != 1 {
		t.Errorf("rebuilding nodes lost presence")
	}
	d.write.Raw("PRAGMA foreign_keys").Scan(&on)
	if on != 1 {
		t.Error("foreign keys are off after a migration")
	}
	d.Close()

	// An older one refuses it, says what to do, and the copy works.
	before := fmt.Sprintf("%s.before-v%d", path, newVersion)
	_, err = Open(ctx, options(path))
	wantErr(t, err, path, "newer skein", fmt.Sprintf("version %d", newVersion), fmt.Sprintf("up to %d", newVersion-1), before)
	if fi, err := os.Stat(before); err != nil || fi.Mode() != 0o600 {
		t.Errorf("%v %v", fi, err)
	}
	old := openTest(t, before)
	if d := diff(want, mustLoad(t, old, 1)); d != "" {
		t.Error(d)
	}
	mustCommit(t, old, rev, &tailnet.Changes{})
	os.Remove(before)
	_, err = Open(ctx, options(path))
	wantErr(t, err, "newer skein")
	if strings.Contains(err.Error(), "before-v") {
		t.Errorf("%v: names a copy that is not there", err)
	}
}

func TestMigrationFails(t *testing.T) {
	sqliteOnly(t)
	for name, last := range map[string]string{
		"bad SQL":              "INSERT INTO nowhere VALUES (1)",
		"breaks a foreign key": "DELETE FROM users",
	} {
		t.Run(name, func(t *testing.T) {
			path := newPath(t)
			d := openTest(t, path)
			fill(t, d, 3)
			want := mustLoad(t, d, 1)
			d.Close()
			for range 2 { // the copy of the first try is no obstacle to the second
				bad := next[len(next)-1]
				bad.sql = "CREATE TABLE half (id BIGINT);\n" + last
				_, err := open(ctx, options(path), append(migrations[:len(migrations):len(migrations)], bad))
				wantErr(t, err, path, fmt.Sprintf("migration %d (test)", newVersion))
				if strings.Count(err.Error(), path) != 1 {
					t.Errorf("%v: names the database more than once", err)
				}
				d := openTest(t, path)
				if d := diff(want, mustLoad(t, d, 1)); d != "" {
					t.Error(d)
				}
				if d.write.Migrator().HasTable("half") {
					t.Error("half of the migration is there")
				}
				d.Close()
			}
		})
	}
}

// childMigrate is caught in the middle of a migration for ever.
func childMigrate(path string) error {
	endless := next[len(next)-1]
	endless.sql = "DELETE FROM presence;\nALTER TABLE nodes ADD COLUMN half TEXT;\nUPDATE nodes SET half = 'half';\n" +
		"CREATE TABLE t AS WITH RECURSIVE c (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT max(x) FROM c"
	_, err := open(ctx, options(path), append(migrations[:len(migrations):len(migrations)], endless))
	return err
}

func TestKillDuringMigration(t *testing.T) {
	sqliteOnly(t)
	path := newPath(t)
	d := openTest(t, path)
	fill(t, d, 100)
	want := mustLoad(t, d, 1)
	d.Close()
	c := startChild(t, "migrate", path)
	for !exists(fmt.Sprintf("%s.before-v%d", path, newVersion)) {
		if err := c.Process.Signal(syscall.Signal(0)); err != nil {
			t.Fatal("the child has ended: ", err)
		}
	}
	c.kill(t)
	d = openTest(t, path)
	if d := diff(want, mustLoad(t, d, 1)); d != "" {
		t.Error(d)
	}
}

// TestFixtures opens the database of each released schema, as testdata/vNNN.sql has it, and compares the outcome with a new
// database; and checks that the helpers which write such a file and read it do so without loss.
func TestFixtures(t *testing.T) {
	sqliteOnly(t)
	d := openTest(t)
	fill(t, d, 3)
	mustCommit(t, d, 1, sampleChanges())
	newest := dump(t, d.write, true)
	want := mustLoad(t, d, 1)
	again := openTest(t, restore(t, newest))
	if d := diff(want, mustLoad(t, again, 1)); d != "" {
		t.Error(d)
	}
	if *writeFixture {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(fmt.Sprintf("testdata/v%03d.sql", len(migrations)), []byte(newest), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	files, err := filepath.Glob("testdata/v*.sql")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			up := openTest(t, restore(t, string(b)))
			if c := mustLoad(t, up, 1); len(c.Nodes) == 0 || len(c.Users) == 0 || len(c.PreAuthKeys) == 0 {
				t.Errorf("%d nodes, %d users, %d keys", len(c.Nodes), len(c.Users), len(c.PreAuthKeys))
			}
			if got, want := dump(t, up.write, false), dump(t, d.write, false); got != want {
				t.Errorf("the schema is\n%s\nbut a new database has\n%s", got, want)
			}
		})
	}
}

// dump is a database as SQL: its schema and, if wanted, its rows.
func dump(t testing.TB, db *gorm.DB, rows bool) string {
	t.Helper()
	type object struct{ Type, Name, SQL string }
	var objects []object
	err := db.Raw("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY type DESC, rowid").Scan(&objects).Error
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, o := range objects {
		fmt.Fprintf(&b, "%s;\n", o.SQL)
	}
	if !rows {
		return b.String()
	}
	for _, o := range objects {
		if o.Type != "table" {
			continue
		}
		var columns, lines []string
		if err := db.Raw("SELECT 'quote(' || name || ')' FROM pragma_table_info(?)", o.Name).Scan(&columns).Error; err != nil {
			t.Fatal(err)
		}
		if err := db.Raw("SELECT " + strings.Join(columns, " || ', ' || ") + " FROM " + o.Name).Scan(&lines).Error; err != nil {
			t.Fatal(err)
		}
		for _, l := range lines {
			fmt.Fprintf(&b, "INSERT INTO %s VALUES (%s);\n", o.Name, l)
		}
	}
	return b.String()
}

// restore makes a database of what dump wrote and returns its path.
func restore(t testing.TB, sql string) string {
	t.Helper()
	path := newPath(t)
	d := &DB{path: path}
	if err := d.openWriter(); err != nil {
		t.Fatal(err)
	}
	defer d.closeW()
	err := d.write.Transaction(func(tx *gorm.DB) error { return tx.Exec("PRAGMA defer_foreign_keys=1;\n" + sql).Error })
	if err != nil {
		t.Fatal(err)
	}
	return path
}
