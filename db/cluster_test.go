package db

import (
	"context"
	"testing"
	"time"

	"github.com/skein-vpn/skein/tailnet"
)

func TestServers(t *testing.T) {
	d := openTest(t)
	for _, s := range []tailnet.Server{{ID: "b", Name: "two", Info: "{}"}, {ID: "a", Name: "one"}, {ID: "b", Name: "zwei", Info: "new", Skew: -1500 * time.Millisecond}} {
		if err := d.Beat(ctx, s); err != nil {
			t.Fatal(err)
		}
	}
	got, err := d.Servers(ctx, time.Hour)
	if err != nil || len(got) != 2 || got[0].ID != "a" || got[1].Name != "zwei" || got[1].Info != "new" || got[1].Skew != -1500*time.Millisecond || !got[0].Alive {
		t.Errorf("%+v, %v", got, err)
	}
	if since := time.Since(got[0].Beat); since < -time.Minute || since > time.Hour {
		t.Errorf("heard of at %v", got[0].Beat)
	}
	if at, err := d.Time(ctx); err != nil || time.Since(at).Abs() > time.Hour {
		t.Errorf("the database's clock says %v, %v", at, err)
	}
	mustExec(t, d, "UPDATE servers SET beat = beat - 20000 WHERE id = 'a'")
	if got, _ := d.Servers(ctx, 10*time.Second); got[0].Alive || !got[1].Alive {
		t.Errorf("%+v", got)
	}
	if err := d.LeaveServer(ctx, "b", time.Minute); err != nil {
		t.Fatal(err)
	}
	if got, _ := d.Servers(ctx, 10*time.Second); got[1].Alive {
		t.Errorf("%+v", got)
	}
	if err := d.ForgetServers(ctx, 30*time.Second); err != nil {
		t.Fatal(err)
	}
	if got, _ := d.Servers(ctx, time.Hour); len(got) != 1 || got[0].ID != "a" {
		t.Errorf("%+v", got)
	}
}

func TestLease(t *testing.T) {
	d := openTest(t)
	lease := func(holder string, want bool) {
		t.Helper()
		if got, err := d.Lease(ctx, "x", holder, time.Hour); err != nil || got != want {
			t.Errorf("%s: %v, %v", holder, got, err)
		}
	}
	lease("a", true)
	lease("b", false)
	lease("a", true)
	if h, err := d.LeaseHolder(ctx, "x"); h != "a" || err != nil {
		t.Errorf("%q, %v", h, err)
	}
	mustExec(t, d, "UPDATE leases SET expires = expires - 7200000")
	if h, err := d.LeaseHolder(ctx, "x"); h != "" || err != nil {
		t.Errorf("%q, %v", h, err)
	}
	lease("b", true)
	lease("a", false)
	if err := d.LeaveServer(ctx, "b", time.Minute); err != nil {
		t.Fatal(err)
	}
	lease("a", true)
}

func TestSecret(t *testing.T) {
	d := openTest(t)
	for _, fresh := range []string{"one", "two"} {
		if v, err := d.Secret(ctx, "key", func() (string, error) { return fresh, nil }); v != "one" || err != nil {
			t.Errorf("%q, %v", v, err)
		}
	}
}

func TestListen(t *testing.T) {
	d := openTest(t)
	if !onPostgres() {
		if err := d.Notify(ctx, "x"); err == nil {
			t.Error("SQLite notifies")
		}
		return
	}
	c, cancel := context.WithCancel(ctx)
	heard, done := make(chan string, 9), make(chan error)
	go func() { done <- d.Listen(c, 20*time.Millisecond, func(s string) { heard <- s }) }()
	if s := <-heard; s != "" {
		t.Errorf("first %q", s)
	}
	time.Sleep(50 * time.Millisecond) // it looks whether the connection is there meanwhile
	if err := d.Notify(ctx, "hello"); err != nil {
		t.Fatal(err)
	}
	if s := <-heard; s != "hello" {
		t.Errorf("heard %q", s)
	}
	mustExec(t, d, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'skein listens' AND datname = current_database()")
	if err := <-done; tailnet.CodeOf(err) != tailnet.Unavailable {
		t.Errorf("%v", err)
	}
	cancel()
}

// TestPresenceOfServers has two servers claim a node: the newest claim counts, and only the one who holds it takes it offline.
func TestPresenceOfServers(t *testing.T) {
	d := openTest(t)
	fill(t, d, 2)
	save := func(server string, p tailnet.Presence) {
		t.Helper()
		if err := d.SavePresence(ctx, 1, server, map[tailnet.NodeID]tailnet.Presence{1: p}); err != nil {
			t.Fatal(err)
		}
	}
	want := func(server string, online bool) {
		t.Helper()
		if p := mustLoad(t, d, 1).Presence[1]; p.Server != server || p.Online != online {
			t.Errorf("%+v", p)
		}
	}
	save("a", tailnet.Presence{Online: true, Server: "a"})
	save("b", tailnet.Presence{Online: true, Server: "b"})
	save("a", tailnet.Presence{Online: false, Server: "a"}) // late
	want("b", true)
	save("a", tailnet.Presence{Online: false, Server: "b", Primary: samplePresence().Primary}) // only the route is a's to tell
	want("b", true)
	if p := mustLoad(t, d, 1).Presence[1]; len(p.Primary) != 1 {
		t.Errorf("%+v", p)
	}
	if s, err := d.OnlineServers(ctx, 1); err != nil || len(s) != 1 || s[0] != "b" {
		t.Errorf("%v, %v", s, err)
	}
	if n, err := d.TakeOffline(ctx, 1, "a", t0); n != 0 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if n, err := d.TakeOffline(ctx, 1, "b", t0); n != 1 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	want("b", false)
	save("a", tailnet.Presence{Online: false, Server: "a", LastSeen: t0}) // nobody holds it: anybody may say when it was seen
	want("a", false)
}
