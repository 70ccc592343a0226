package db

import (
	"testing"
	"time"

	"github.com/skein-vpn/skein/tailnet"
)

func TestProviderGrants(t *testing.T) {
	d := openTest(t)
	rev := mustCommit(t, d, 0, &tailnet.Changes{PutUsers: []*tailnet.User{{ID: 1, Name: "a"}, {ID: 2, Name: "b"}, {ID: 3, Name: "c"}}})
	put := func(user tailnet.UserID, provider string, checked time.Time) *tailnet.ProviderGrant {
		t.Helper()
		g := &tailnet.ProviderGrant{Tailnet: 1, User: user, Provider: provider, Token: []byte{0, 255, byte(user)}, Created: t0, Checked: checked}
		if err := d.PutProviderGrant(ctx, g); err != nil {
			t.Fatal(err)
		}
		return g
	}
	want := func(limit int, before time.Time, gs ...*tailnet.ProviderGrant) {
		t.Helper()
		got, err := d.ProviderGrants(ctx, 1, "oidc", before, limit)
		if err != nil {
			t.Fatal(err)
		}
		if diff := diff(gs, got); diff != "" {
			t.Error(diff)
		}
	}
	a, b := put(1, "oidc", t0.Add(2*time.Hour)), put(2, "oidc", t0.Add(time.Hour))
	put(3, "other", t0)
	want(10, t0.Add(3*time.Hour), b, a)
	want(1, t0.Add(3*time.Hour), b)
	want(10, t0.Add(2*time.Hour), b)
	b = put(2, "oidc", t0.Add(4*time.Hour))
	want(10, t0.Add(9*time.Hour), a, b)
	if err := d.DeleteProviderGrant(ctx, 1, 1); err != nil {
		t.Fatal(err)
	}
	if err := d.DeleteProviderGrant(ctx, 1, 1); err != nil {
		t.Error(err)
	}
	want(10, t0.Add(9*time.Hour), b)
	mustCommit(t, d, rev, &tailnet.Changes{DeleteUsers: []tailnet.UserID{2}}) // it goes with the user
	if got, err := d.ProviderGrants(ctx, 1, "oidc", t0.Add(9*time.Hour), 10); err != nil || len(got) != 0 {
		t.Errorf("%v, %v", got, err)
	}
}
