package db

import (
	"errors"
	"testing"

	"github.com/skein-vpn/skein/db/pgtest"
	"github.com/skein-vpn/skein/tailnet"
)

// Another database takes over that has other commits under the same numbers, or fewer: nothing is built on what we know, and all is read
// anew.
func TestAnotherHistory(t *testing.T) {
	sqliteOnly(t)
	url := pgtest.Database(t)
	d := openTest(t, url)
	rev := mustCommit(t, d, 0, userNamed(0))
	rev = mustCommit(t, d, rev, userNamed(rev))
	step := func(want error) {
		t.Helper()
		if _, err := d.Since(ctx, 1, rev, 0); !errors.Is(err, want) {
			t.Errorf("%v, want %v", err, want)
		}
	}
	step(nil)
	other := openTest(t, url)
	mustExec(t, other, "UPDATE revisions SET commit_id = 'another' WHERE rev = ?", rev)
	step(tailnet.ErrGap)
	if _, err := d.Commit(ctx, 1, rev, userNamed(rev)); !errors.Is(err, tailnet.ErrConflict) {
		t.Errorf("a commit on top of another history: %v", err)
	}
	wantUsers(t, d, rev) // reads it all
	step(nil)
	rev = mustCommit(t, d, rev, userNamed(rev))
	rev = mustCommit(t, other, rev, userNamed(rev))
	if s, err := d.Since(ctx, 1, rev-1, 0); err != nil || s.Rev != rev {
		t.Error(s, err)
	}
	mustExec(t, other, "UPDATE revisions SET commit_id = 'another' WHERE rev = ?", rev)
	step(tailnet.ErrGap)

	// Presence has a number of its own.
	wantUsers(t, d, rev)
	if _, err := d.Since(ctx, 1, rev, 7); !errors.Is(err, tailnet.ErrGap) {
		t.Errorf("saves of presence that are not there: %v", err)
	}
}
