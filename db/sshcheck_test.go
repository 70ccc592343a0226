package db

import (
	"testing"
	"time"

	"github.com/skein-vpn/skein/tailnet"
)

// SSH checks are what was stored, over a restart too; the first decision counts.
func TestSSHChecks(t *testing.T) {
	path := newPath(t)
	d := openTest(t, path)
	check := func(id string, src tailnet.NodeID, created time.Time) *tailnet.SSHCheck {
		c := &tailnet.SSHCheck{
			ID: id, Tailnet: 1, Src: src, Dst: 2, SrcUser: 3, SSHUser: "root", LocalUser: "toor", Period: time.Hour, Created: created,
		}
		if err := d.PutSSHCheck(ctx, c); err != nil {
			t.Fatal(err)
		}
		return c
	}
	b, a := check("b", 1, t0.Add(time.Minute)), check("a", 1, t0)
	other := check("c", 9, t0.Add(2*time.Minute))
	if got, err := d.SSHCheck(ctx, 1, "a"); err != nil || *got != *a {
		t.Errorf("%+v, %v", got, err)
	}
	ids := func(after time.Time) (out string) {
		cs, err := d.SSHChecks(ctx, 1, after)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range cs {
			out += c.ID
		}
		return out
	}
	if got := ids(time.Time{}); got != "abc" {
		t.Errorf("waiting: %s", got)
	}
	if got := ids(t0); got != "bc" {
		t.Errorf("waiting since: %s", got)
	}
	if last, err := d.LastSSHCheck(ctx, a); last != nil || err != nil {
		t.Errorf("approved: %+v, %v", last, err)
	}
	decide := func(c *tailnet.SSHCheck, want bool) {
		t.Helper()
		if first, err := d.DecideSSHCheck(ctx, c); err != nil || first != want {
			t.Errorf("decided first: %v, %v", first, err)
		}
	}
	a.Approved, a.DecidedBy = t0.Add(time.Hour), "anna"
	decide(a, true)
	late := *a
	late.Approved, late.Denied = time.Time{}, true
	decide(&late, false)
	b.Denied = true
	decide(b, true)
	decide(&tailnet.SSHCheck{ID: "none", Tailnet: 1, Created: t0}, false)

	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	d = openTest(t, path)
	if got, err := d.LastSSHCheck(ctx, &late); err != nil || got == nil || *got != *a {
		t.Errorf("approved: %+v, %v", got, err)
	}
	for _, change := range []func(c *tailnet.SSHCheck){
		func(c *tailnet.SSHCheck) { c.Tailnet = 2 }, func(c *tailnet.SSHCheck) { c.Src = 2 }, func(c *tailnet.SSHCheck) { c.Dst = 1 },
		func(c *tailnet.SSHCheck) { c.SrcUser = 4 }, func(c *tailnet.SSHCheck) { c.SSHUser = "toor" },
	} {
		c := *a
		change(&c)
		if got, err := d.LastSSHCheck(ctx, &c); got != nil || err != nil {
			t.Errorf("%+v is like %+v, %v", c, got, err)
		}
	}
	if got := ids(time.Time{}); got != "c" {
		t.Errorf("waiting: %s", got)
	}
	if n, err := d.DeleteSSHChecksBefore(ctx, other.Created); n != 2 || err != nil {
		t.Errorf("removed %d, %v", n, err)
	}
	if _, err := d.SSHCheck(ctx, 1, "a"); tailnet.CodeOf(err) != tailnet.NotFound {
		t.Errorf("removed: %v", err)
	}
}
