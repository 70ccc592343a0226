package db

import (
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
