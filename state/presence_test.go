package state

import (
	"context"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"tailscale.com/tailcfg"

	"github.com/skein-vpn/skein/state/statetest"
	"github.com/skein-vpn/skein/tailnet"
)

// bubble runs f with a State inside a synctest bubble, where time passes only while everybody waits.
func bubble(t *testing.T, o Options, f func(t *testing.T, st *State)) {
	synctest.Test(t, func(t *testing.T) {
		st, err := Open(ctx, o)
		if err != nil {
			t.Fatal(err)
		}
		defer st.Close()
		f(t, st)
	})
}

func setOnline(t testing.TB, st *State, id tailnet.NodeID, online bool) {
	t.Helper()
	must(t, st, func(tx *Tx) error { tx.SetOnline(id, online); return nil })
}

// Presence is published at once and without a commit, and saved after saveDelay: many changes in one write.
func TestPresenceIsSavedLater(t *testing.T) {
	store := statetest.NewWith(statetest.Tailnet(10))
	bubble(t, options(store), func(t *testing.T, st *State) {
		for id := range tailnet.NodeID(10) {
			sn := st.Snapshot()
			setOnline(t, st, id+1, true)
			if next := st.Snapshot(); !next.Node(id+1).Online || next.Rev != sn.Rev || next.Seq != sn.Seq+1 {
				t.Fatal("a change of presence is not published as a snapshot of its own")
			}
		}
		start := time.Now()
		if len(store.Commits()) != 0 || len(store.Saves()) != 0 {
			t.Errorf("%d commits and %d saves at once, want none", len(store.Commits()), len(store.Saves()))
		}
		time.Sleep(saveDelay)
		synctest.Wait()
		if n := len(store.Saves()); n != 1 {
			t.Fatalf("%d saves after %v, want 1", n, time.Since(start))
		}
		for id, p := range store.Saves()[0] {
			if !p.Online || !p.LastSeen.Equal(start) {
				t.Errorf("saved of node %d: %+v", id, p)
			}
		}
		time.Sleep(time.Hour)
		if n := len(store.Saves()); n != 1 {
			t.Errorf("%d saves in an hour without changes, want none but the first", n)
		}
	})
}

// blockingStore lets a test act in the middle of a save.
type blockingStore struct {
	*statetest.Store
	during func()
}

func (s *blockingStore) SavePresence(c context.Context, id tailnet.ID, server string, p map[tailnet.NodeID]tailnet.Presence) error {
	if f := s.during; f != nil {
		s.during = nil
		f()
	}
	return s.Store.SavePresence(c, id, server, p)
}

// A change while a save is under way is saved soon after, and a save that failed is tried again without a new change.
func TestPresenceChangedDuringSave(t *testing.T) {
	store := &blockingStore{Store: statetest.NewWith(statetest.Tailnet(2))}
	bubble(t, options(store), func(t *testing.T, st *State) {
		store.during = func() { setOnline(t, st, 2, true); setOnline(t, st, 1, false) }
		setOnline(t, st, 1, true)
		time.Sleep(3 * saveDelay)
		synctest.Wait()
		if store.Presence(1).Online || !store.Presence(2).Online {
			t.Errorf("saved: 1 %v, 2 %v", store.Presence(1), store.Presence(2))
		}
		store.FailSaves(3)
		setOnline(t, st, 2, false)
		time.Sleep(3 * saveDelay)
		if !store.Presence(2).Online {
			t.Fatal("saved though the store fails")
		}
		time.Sleep(2 * saveDelay)
		synctest.Wait()
		if store.Presence(2).Online {
			t.Error("not saved after the store works again")
		}
	})
}

// Close saves what is not saved yet, the last update's included.
func TestCloseSavesPresence(t *testing.T) {
	store := statetest.NewWith(statetest.Tailnet(2))
	bubble(t, options(store), func(t *testing.T, st *State) {
		setOnline(t, st, 1, true)
		setOnline(t, st, 2, true)
		setOnline(t, st, 2, false)
		st.Close()
		if !store.Presence(1).Online || store.Presence(2).Online || store.Presence(2).LastSeen.IsZero() {
			t.Errorf("saved: 1 %+v, 2 %+v", store.Presence(1), store.Presence(2))
		}
	})
}

// lan is the route of the failover tests.
var lan = netip.MustParsePrefix("192.168.199.0/24")

// twoRouters is a tailnet of which nodes 1 and 2 both route lan and are exit nodes, and node 3 is nothing.
func twoRouters() *tailnet.Contents {
	c := statetest.Tailnet(3)
	for _, n := range c.Nodes[:2] {
		n.Hostinfo.RoutableIPs = prefixes("0.0.0.0/0", lan.String(), "::/0")
		n.ApprovedRoutes = prefixes("0.0.0.0/0", lan.String(), "::/0")
	}
	return c
}

// A restart moves no route: who was online is presumed to be, and who carried a prefix carries it, until the grace time is
// over. Who has come back by then stays.
func TestRestartGrace(t *testing.T) {
	store := statetest.NewWith(twoRouters())
	o := options(store)
	o.RestartGrace = time.Minute
	var seen time.Time
	bubble(t, o, func(t *testing.T, st *State) {
		setOnline(t, st, 2, true) // the one created second carries lan
		setOnline(t, st, 1, true)
		setOnline(t, st, 3, true)
		time.Sleep(time.Second)
		setOnline(t, st, 3, false)
		seen = time.Now()
	})
	if p := store.Presence(2); len(p.Primary) != 3 {
		t.Fatalf("node 2 is saved as carrying %v", p.Primary)
	}
	bubble(t, o, func(t *testing.T, st *State) {
		sn := st.Snapshot()
		if !sn.Node(1).Online || !sn.Node(2).Online || sn.Node(3).Online || sn.Routes.Primary(lan) != 2 {
			t.Errorf("after the restart: %s", describe(sn, st.routers))
		}
		if !sn.Node(3).LastSeen.Equal(seen) {
			t.Errorf("node 3 was last seen %v, want %v", sn.Node(3).LastSeen, seen)
		}
		if n := sn.Routes.Len(); n != 1 {
			t.Errorf("%d prefixes are carried, want lan alone: exit routes are not elected", n)
		}
		time.Sleep(59 * time.Second)
		setOnline(t, st, 2, true) // it is back: nothing to publish
		if st.Snapshot() != sn {
			t.Error("the return of a node that was presumed online published something")
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		sn = st.Snapshot()
		if sn.Node(1).Online || !sn.Node(2).Online || sn.Routes.Primary(lan) != 2 {
			t.Errorf("after the grace time: %s", describe(sn, st.routers))
		}
		time.Sleep(time.Hour)
		if st.Snapshot() != sn {
			t.Error("something happened long after the grace time")
		}
	})
}

// A router that does not come back loses its prefix at the end of the grace time, to one that did.
func TestRestartGraceFailover(t *testing.T) {
	store := statetest.NewWith(twoRouters())
	o := options(store)
	o.RestartGrace = time.Minute
	bubble(t, o, func(t *testing.T, st *State) {
		setOnline(t, st, 1, true)
		setOnline(t, st, 2, true)
	})
	bubble(t, o, func(t *testing.T, st *State) {
		setOnline(t, st, 2, true)
		if p := st.Snapshot().Routes.Primary(lan); p != 1 {
			t.Errorf("primary %d before the grace time is over, want 1", p)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if p := st.Snapshot().Routes.Primary(lan); p != 2 {
			t.Errorf("primary %d after the grace time, want 2", p)
		}
	})
}

// A node that went offline during the grace time in an update that was not stored is still only presumed, and is taken
// offline at its end.
func TestGraceAfterFailedUpdate(t *testing.T) {
	store := statetest.NewWith(twoRouters())
	o := options(store)
	o.RestartGrace = time.Minute
	bubble(t, o, func(t *testing.T, st *State) { setOnline(t, st, 1, true) })
	bubble(t, o, func(t *testing.T, st *State) {
		store.FailCommits(1)
		err := st.Update(ctx, "online with a new version", func(tx *Tx) error {
			tx.SetOnline(1, true)
			return change(tx, 1, func(n *tailnet.Node) { n.Capver++ })
		})
		if err == nil {
			t.Fatal("the commit did not fail")
		}
		if err := st.Update(ctx, "refused", func(tx *Tx) error { tx.SetOnline(1, true); return errRefused }); err == nil {
			t.Fatal("the update did not fail")
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if st.Snapshot().Node(1).Online {
			t.Error("the node is online for ever")
		}
	})
}

// The end of the grace time is tried again if it meets a store that fails.
func TestGraceEndsInTheEnd(t *testing.T) {
	store := statetest.NewWith(twoRouters())
	o := options(store)
	bubble(t, o, func(t *testing.T, st *State) { setOnline(t, st, 1, true) })
	o.RestartGrace = time.Minute
	bubble(t, o, func(t *testing.T, st *State) {
		release := store.Block() // so that the end of the grace time is grouped with a commit that fails
		first, second := make(chan error), make(chan error)
		go func() { first <- st.Update(ctx, "slow", func(tx *Tx) error { return tx.PutUser(tx.NewUser("a")) }) }()
		synctest.Wait()
		time.Sleep(30 * time.Second)
		go func() { second <- st.Update(ctx, "fails", func(tx *Tx) error { return tx.PutUser(tx.NewUser("b")) }) }()
		store.BeforeCommit(func(tailnet.Rev, *tailnet.Changes) error { store.BeforeCommit(nil); return statetest.ErrFailed })
		time.Sleep(29*time.Second + 999*time.Millisecond)
		synctest.Wait()
		time.Sleep(time.Millisecond) // commitTimeout and the grace time end together
		synctest.Wait()
		release()
		<-first
		<-second
		time.Sleep(10 * saveDelay)
		synctest.Wait()
		if st.Snapshot().Node(1).Online {
			t.Error("the node is online for ever")
		}
	})
}

// Without a grace time nobody is presumed online.
func TestNoGrace(t *testing.T) {
	store := statetest.NewWith(twoRouters())
	o := options(store)
	o.RestartGrace = 0
	bubble(t, o, func(t *testing.T, st *State) { setOnline(t, st, 1, true) })
	bubble(t, o, func(t *testing.T, st *State) {
		synctest.Wait()
		if st.Snapshot().Node(1).Online {
			t.Error("the node is presumed online")
		}
	})
}

// Failover from end to end: offline, failing and steady move the prefix, and both ends' entries with it.
func TestFailover(t *testing.T) {
	store := statetest.NewWith(twoRouters())
	st := open(t, options(store))
	step := func(what string, want tailnet.NodeID, f func(*Tx)) {
		t.Helper()
		must(t, st, func(tx *Tx) error { f(tx); return nil })
		sn := st.Snapshot()
		if p := sn.Routes.Primary(lan); p != want {
			t.Errorf("%s: primary %d, want %d", what, p, want)
		}
		for _, n := range sn.Nodes() {
			carries := len(n.Primary) == 3
			if n.ID != 3 && (carries != (n.ID == want) || len(n.Primary) < 2) {
				t.Errorf("%s: node %d carries %v", what, n.ID, n.Primary)
			}
		}
		checkScratch(t, st, store)
	}
	step("nobody is online: it stays with the first", 1, func(tx *Tx) {})
	step("the second comes", 2, func(tx *Tx) { tx.SetOnline(2, true) })
	step("the first comes, but may be gone again", 2, func(tx *Tx) { tx.SetOnline(1, true) })
	step("the first is steady", 1, func(tx *Tx) { tx.SetSteady(1) })
	step("the second is steady, too", 1, func(tx *Tx) { tx.SetSteady(2) })
	step("the first fails its probes", 2, func(tx *Tx) { tx.SetFailing(1, true) })
	step("a failing one cannot be steady", 2, func(tx *Tx) { tx.SetSteady(1) })
	step("the first answers again", 2, func(tx *Tx) { tx.SetFailing(1, false) })
	step("for long enough", 1, func(tx *Tx) { tx.SetSteady(1) })
	step("the first goes", 2, func(tx *Tx) { tx.SetOnline(1, false) })
	step("both are gone: it stays", 2, func(tx *Tx) { tx.SetOnline(2, false) })
	step("the first is back alone", 1, func(tx *Tx) { tx.SetOnline(1, true) })

	if got := st.Snapshot().Redundant(); len(got) != 1 || got[0].ID != 1 {
		t.Errorf("worth probing: %v, want node 1", got)
	}
	setOnline(t, st, 2, true)
	if got := st.Snapshot().Redundant(); len(got) != 2 {
		t.Errorf("worth probing: %v, want nodes 1 and 2", got)
	}
	// Taken away from the only usable one, the prefix goes to the other; from both, it is nobody's.
	edit := func(id tailnet.NodeID, f func(*tailnet.Node)) func(tx *Tx) {
		return func(tx *Tx) {
			if err := change(tx, id, f); err != nil {
				t.Error(err)
			}
		}
	}
	must(t, st, func(tx *Tx) error {
		edit(1, func(n *tailnet.Node) { n.ApprovedRoutes = nil })(tx)
		return nil
	})
	if sn := st.Snapshot(); sn.Routes.Primary(lan) != 2 || len(sn.Node(1).Primary) != 0 || len(sn.Redundant()) != 0 {
		t.Errorf("after the first lost its approval: %s", describe(sn, st.routers))
	}
	must(t, st, func(tx *Tx) error {
		edit(2, func(n *tailnet.Node) { n.Hostinfo = &tailcfg.Hostinfo{} })(tx)
		return nil
	})
	if sn := st.Snapshot(); sn.Routes.Primary(lan) != 0 || sn.Routes.Len() != 0 || len(sn.Node(2).ApprovedRoutes) != 3 {
		t.Errorf("after the second stopped advertising: %s", describe(sn, st.routers))
	}
	must(t, st, func(tx *Tx) error {
		edit(2, func(n *tailnet.Node) { n.Hostinfo = &tailcfg.Hostinfo{RoutableIPs: prefixes(lan.String())} })(tx)
		return nil
	})
	if sn := st.Snapshot(); sn.Routes.Primary(lan) != 2 {
		t.Error("a route that was approved does not come back with its advertisement")
	}
	must(t, st, func(tx *Tx) error { tx.DeleteNode(2); return nil })
	if sn := st.Snapshot(); sn.Routes.Len() != 0 {
		t.Error("a deleted node still carries a prefix")
	}
	checkScratch(t, st, store)
}

// A prefix that a saved presence names but that its node may not carry any more stays out of the table.
func TestStalePrimaryIsForgotten(t *testing.T) {
	c := twoRouters()
	c.Presence[3] = tailnet.Presence{Primary: prefixes("10.9.9.0/24", lan.String())}
	c.Presence[2] = tailnet.Presence{Primary: prefixes("0.0.0.0/0", lan.String())}
	st := open(t, options(statetest.NewWith(c)))
	if sn := st.Snapshot(); sn.Routes.Len() != 1 || sn.Routes.Primary(lan) != 2 || sn.Routes.Primary(netip.MustParsePrefix("0.0.0.0/0")) != 0 {
		t.Errorf("%d prefixes, lan is carried by %d", sn.Routes.Len(), sn.Routes.Primary(lan))
	}
}

// Ephemeral nodes go after their time offline; others and those that are online stay.
func TestEphemeral(t *testing.T) {
	c := statetest.Tailnet(5)
	for _, n := range c.Nodes[:4] {
		n.Ephemeral = true
	}
	synctest.Test(t, func(t *testing.T) {
		for _, n := range c.Nodes {
			n.Created = time.Now()
		}
		store := statetest.NewWith(c)
		o := options(store)
		o.EphemeralTimeout = 10 * time.Minute
		st, err := Open(ctx, o)
		if err != nil {
			t.Fatal(err)
		}
		defer st.Close()
		there := func() (ids []tailnet.NodeID) {
			synctest.Wait()
			for _, n := range st.Snapshot().Nodes() {
				ids = append(ids, n.ID)
			}
			return ids
		}
		want := func(what string, n int) {
			t.Helper()
			if ids := there(); len(ids) != n {
				t.Errorf("%s: %v are there, want %d", what, ids, n)
			}
		}
		setOnline(t, st, 1, true) // stays online
		setOnline(t, st, 2, true)
		time.Sleep(9 * time.Minute)
		setOnline(t, st, 2, false) // its time begins now
		setOnline(t, st, 3, true)  // came just in time; 4 never comes
		want("before the time", 5)
		time.Sleep(90 * time.Second)
		want("4 never came", 4)
		time.Sleep(8 * time.Minute)
		want("2 has half a minute left", 4)
		time.Sleep(time.Minute)
		want("2 is gone", 3)
		time.Sleep(24 * time.Hour)
		want("1 and 3 are online, 5 is not ephemeral", 3)
		if st.Snapshot().Node(2) != nil || st.Snapshot().Node(4) != nil {
			t.Error("the wrong ones are gone")
		}
		last := store.Commits()[len(store.Commits())-1]
		if len(last.Changes.Why) != 1 {
			t.Errorf("reasons: %q", last.Changes.Why)
		}
	})
}

// An ephemeral node that comes back in the very commit that would reap it stays.
func TestEphemeralComesBackInTime(t *testing.T) {
	c := statetest.Tailnet(1)
	c.Nodes[0].Ephemeral = true
	c.Nodes[0].Created = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC) // when the clock of a bubble starts
	store := statetest.NewWith(c)
	o := options(store)
	o.EphemeralTimeout = time.Minute
	bubble(t, o, func(t *testing.T, st *State) {
		time.Sleep(50 * time.Second)
		release := store.Block()
		errs := make(chan error, 2)
		go func() { errs <- st.Update(ctx, "slow", func(tx *Tx) error { return tx.PutUser(tx.NewUser("a")) }) }()
		synctest.Wait()
		go func() { errs <- st.Update(ctx, "online", func(tx *Tx) error { tx.SetOnline(1, true); return nil }) }()
		synctest.Wait()
		time.Sleep(20 * time.Second) // the reaper looks meanwhile and waits behind
		release()
		<-errs
		<-errs
		synctest.Wait()
		if st.Snapshot().Node(1) == nil {
			t.Error("it was reaped though it is online")
		}
	})
}

// Seen moves LastSeen of a node without a session, and of no other.
func TestSeen(t *testing.T) {
	now := statetest.Epoch
	o := options(statetest.NewWith(statetest.Tailnet(2)))
	o.Now = func() time.Time { return now }
	st := open(t, o)
	setOnline(t, st, 2, true)
	now = now.Add(time.Hour)
	must(t, st, func(tx *Tx) error { tx.Seen(1); tx.Seen(2); tx.Seen(99); return nil })
	if sn := st.Snapshot(); !sn.Node(1).LastSeen.Equal(now) || sn.Node(1).Online || sn.Node(2).LastSeen.Equal(now) {
		t.Errorf("last seen: 1 %v, 2 %v", sn.Node(1).LastSeen, sn.Node(2).LastSeen)
	}
}
