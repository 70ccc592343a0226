package db

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/skein-vpn/skein/tailnet"
)

// Accounts, passkeys, links and sessions are what was stored, over a restart too, and go with their user.
func TestAccounts(t *testing.T) {
	path := newPath(t)
	d := openTest(t, path)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	users := &tailnet.Changes{When: t0}
	for id := tailnet.UserID(1); id <= 2; id++ {
		users.PutUsers = append(users.PutUsers, &tailnet.User{ID: id, Name: "u" + id.String(), Created: t0})
	}
	rev := mustCommit(t, d, 0, users)
	acc := &tailnet.Account{Tailnet: 1, User: 1, Handle: []byte{1, 2, 255}, Password: "$argon2id$x", PasswordSet: t0, Created: t0}
	must(d.PutAccount(ctx, acc))
	must(d.PutAccount(ctx, &tailnet.Account{Tailnet: 1, User: 2, Created: t0}))
	if err := d.PutAccount(ctx, &tailnet.Account{Tailnet: 1, User: 99, Created: t0}); err == nil {
		t.Error("an account of nobody")
	}
	key := &tailnet.Passkey{ID: "k1", Name: "phone", Data: []byte(`{"x":1}`), Created: t0}
	must(d.PutPasskey(ctx, 1, 1, key))
	if err := d.PutPasskey(ctx, 1, 2, key); tailnet.CodeOf(err) != tailnet.Conflict {
		t.Errorf("a passkey of two accounts: %v", err)
	}
	key.Used = t0.Add(time.Hour)
	must(d.PutPasskey(ctx, 1, 1, key))
	must(d.SignedIn(ctx, 1, 1, t0.Add(time.Minute)))
	acc.SignedIn, acc.Passkeys = t0.Add(time.Minute), []*tailnet.Passkey{key}
	link := &tailnet.AccountLink{ID: "l1", Tailnet: 1, User: 2, Created: t0, Expires: t0.Add(time.Hour)}
	must(d.PutAccountLink(ctx, link))
	must(d.PutAccountLink(ctx, &tailnet.AccountLink{ID: "l2", Tailnet: 1, Name: "x", Role: "owner", First: true, Created: t0, Expires: t0.Add(2 * time.Hour)}))
	s := &tailnet.WebSession{ID: "s1", Tailnet: 1, User: 1, Method: "password", NodesEnd: t0.Add(time.Hour), Remote: "192.0.2.1", Agent: "x", Created: t0, Seen: t0, Expires: t0.Add(time.Hour)}
	must(d.PutWebSession(ctx, s))
	must(d.PutWebSession(ctx, &tailnet.WebSession{ID: "s2", Tailnet: 1, User: 1, Created: t0.Add(1), Seen: t0, Expires: t0.Add(3 * time.Hour)}))
	must(d.PutWebSession(ctx, &tailnet.WebSession{ID: "s3", Tailnet: 1, User: 2, Created: t0, Seen: t0, Expires: t0.Add(3 * time.Hour)}))
	must(d.TouchWebSession(ctx, 1, "s1", t0.Add(time.Minute)))
	s.Seen = t0.Add(time.Minute)
	d.Close()
	d = openTest(t, path)

	got, err := d.Account(ctx, 1, 1)
	must(err)
	if diff := cmp.Diff(acc, got); diff != "" {
		t.Error(diff)
	}
	if gs, err := d.WebSession(ctx, 1, "s1"); err != nil || cmp.Diff(s, gs) != "" {
		t.Errorf("%+v, %v", gs, err)
	}
	if gl, err := d.AccountLink(ctx, 1, "l1"); err != nil || cmp.Diff(link, gl) != "" {
		t.Errorf("%+v, %v", gl, err)
	}
	for i, want := range []bool{true, false} {
		if first, err := d.UseAccountLink(ctx, 1, "l1", t0); err != nil || first != want {
			t.Errorf("use %d: %v, %v", i, first, err)
		}
	}
	if _, err := d.UseAccountLink(ctx, 1, "l1", time.Time{}); err != nil {
		t.Error(err)
	}
	if first, err := d.UseAccountLink(ctx, 1, "l1", t0); err != nil || !first {
		t.Errorf("after it was made usable again: %v, %v", first, err)
	}
	if n, err := d.DeleteAccountLinksBefore(ctx, t0.Add(90*time.Minute)); err != nil || n != 1 {
		t.Errorf("%d old links, %v", n, err)
	}
	if n, err := d.DeleteWebSessionsBefore(ctx, t0.Add(2*time.Hour), t0.Add(-time.Hour)); err != nil || n != 1 {
		t.Errorf("%d sessions whose time is over, %v", n, err)
	}
	if n, err := d.DeleteWebSessionsBefore(ctx, t0, t0.Add(time.Second)); err != nil || n != 2 {
		t.Errorf("%d idle sessions, %v", n, err)
	}
	must(d.PutWebSession(ctx, s))
	must(d.DeleteWebSessions(ctx, 1, 1, "s1"))
	if ss, err := d.WebSessions(ctx, 1, 1); err != nil || len(ss) != 1 {
		t.Errorf("%d sessions, %v", len(ss), err)
	}
	must(d.DeleteAccountLinks(ctx, 1, 0))
	if l, err := d.AccountLink(ctx, 1, "l2"); l != nil || err != nil {
		t.Errorf("%+v, %v", l, err)
	}
	// What a user signs in with goes with the user.
	mustCommit(t, d, rev, &tailnet.Changes{When: t0, DeleteUsers: []tailnet.UserID{1}})
	if as, err := d.Accounts(ctx, 1); err != nil || len(as) != 1 || as[0].User != 2 {
		t.Errorf("%+v, %v", as, err)
	}
	if s, err := d.WebSession(ctx, 1, "s1"); s != nil || err != nil {
		t.Errorf("%+v, %v", s, err)
	}
	if found, err := d.DeletePasskey(ctx, 1, 1, "k1"); found || err != nil {
		t.Errorf("%v, %v", found, err)
	}
}
