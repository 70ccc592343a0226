package db

import (
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/skein-vpn/skein/db/pgtest"
	"github.com/skein-vpn/skein/tailnet"
)

// TestSchemaGrowsUnderneath has a newer server add columns to all tables while this one works, as in an upgrade of one server after
// the other: nothing fails, on none of its connections. (PostgreSQL refuses statements that it has prepared if their columns are
// others now.)
func TestSchemaGrowsUnderneath(t *testing.T) {
	sqliteOnly(t)
	url := pgtest.Database(t)
	d := openTest(t, url)
	rev := mustCommit(t, d, 0, sampleChanges())
	work := func() {
		t.Helper()
		var wg sync.WaitGroup
		for range 2 * defaultConns { // all connections of the pool
			wg.Go(func() {
				for range 5 {
					if _, err := d.Load(ctx, 1); err != nil {
						t.Error(err)
					}
					if _, err := d.Since(ctx, 1, rev-1, 0); err != nil {
						t.Error(err)
					}
					if _, err := d.SSHChecks(ctx, 1, time.Time{}); err != nil {
						t.Error(err)
					}
					if _, err := d.AuditLog(ctx, 1, tailnet.AuditQuery{Limit: 10}); err != nil {
						t.Error(err)
					}
					if err := d.Beat(ctx, tailnet.Server{ID: "a", Name: "a"}); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
	}
	work()
	newer := openTest(t, url)
	var tables []string
	if err := newer.read.Raw("SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'").Scan(&tables).Error; err != nil || len(tables) < 15 {
		t.Fatal(tables, err)
	}
	for _, name := range tables {
		mustExec(t, newer, "ALTER TABLE "+name+" ADD COLUMN newer TEXT NOT NULL DEFAULT ''")
	}
	work()
	ch := sampleChanges()
	ch.PutNodes[0].Name = "other"
	mustCommit(t, d, rev, &tailnet.Changes{PutNodes: ch.PutNodes[:1]})
	c := mustLoad(t, d, 1)
	if c.Rev != rev+1 {
		t.Errorf("rev %d", c.Rev)
	}
}

// TestMigrationMeetsReader has a migration and a server at work wait for each other: PostgreSQL takes the migration back, which has
// waited for longer, and it is done all the same.
func TestMigrationMeetsReader(t *testing.T) {
	sqliteOnly(t)
	d := openTest(t, pgtest.Database(t))
	newest := migrations[len(migrations)-1].version
	next := migration{version: newest + 1, name: "next", sql: "ALTER TABLE tailnets ADD COLUMN newer TEXT;\nALTER TABLE revisions ADD COLUMN newer TEXT"}
	reader := d.read.Begin()
	defer reader.Rollback()
	if err := reader.Exec("SELECT 1 FROM revisions").Error; err != nil {
		t.Fatal(err)
	}
	migrated := make(chan error)
	go func() { migrated <- d.migratePostgres(ctx, append(slices.Clone(migrations), next)) }()
	waiting := func() (n int) {
		if err := d.read.Raw("SELECT count(*) FROM pg_locks WHERE NOT granted").Scan(&n).Error; err != nil {
			t.Fatal(err)
		}
		return n
	}
	for end := time.Now().Add(time.Minute); waiting() == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the migration waits for nothing")
		}
	}
	if err := reader.Exec("SELECT 1 FROM tailnets").Error; err != nil && !asksForRetry(err) {
		t.Error(err)
	}
	reader.Rollback()
	if err := <-migrated; err != nil {
		t.Error(err)
	}
	if have, err := d.version(d.read); err != nil || have != next.version {
		t.Errorf("version %d: %v", have, err)
	}
}
