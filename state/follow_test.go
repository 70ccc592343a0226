package state

import (
	"net/netip"
	"testing"

	"github.com/skein-vpn/skein/state/statetest"
	"github.com/skein-vpn/skein/tailnet"
)

// Two servers on one store: the second takes over what the first has done, and nodes that did not change stay the same values.
func TestFollow(t *testing.T) {
	store := statetest.New()
	at := func(server string) *State {
		o := options(store)
		o.Server = server
		return open(t, o)
	}
	a, b := at("a"), at("b")
	user := addUser(t, a, "junyao")
	var ids []tailnet.NodeID
	for range 3 {
		ids = append(ids, addNode(t, a, "n", user, nil))
	}
	follow := func() {
		t.Helper()
		if err := b.Follow(ctx); err != nil {
			t.Fatal(err)
		}
		if got, want := b.Snapshot().Rev, a.Snapshot().Rev; got != want {
			t.Fatalf("rev %d, want %d", got, want)
		}
	}
	follow()
	before := b.Snapshot()
	if len(before.Nodes()) != 3 || before.User(user) == nil {
		t.Fatalf("%d nodes", len(before.Nodes()))
	}
	if follow(); b.Snapshot() != before {
		t.Error("a new snapshot although nothing has happened")
	}

	// Two nodes swap names and addresses, the third goes.
	must(t, a, func(tx *Tx) error {
		x, y := tx.Node(ids[0]).Clone(), tx.Node(ids[1]).Clone()
		tx.DeleteNode(ids[2])
		tx.DeleteNode(x.ID)
		tx.DeleteNode(y.ID)
		x.Name, y.Name = y.Name, x.Name
		x.IPv4, y.IPv4 = y.IPv4, x.IPv4
		if err := tx.PutNode(x); err != nil {
			return err
		}
		return tx.PutNode(y)
	})
	follow()
	sn := b.Snapshot()
	for _, id := range ids[:2] {
		n, want := sn.Node(id), a.Snapshot().Node(id)
		if n == nil || n.Name != want.Name || sn.NodeByName(want.Name) != n || sn.NodeByAddr(want.IPv4) != n {
			t.Errorf("node %d is %+v", id, n)
		}
	}
	if sn.Node(ids[2]) != nil || len(sn.Nodes()) != 2 {
		t.Error("the third is still there")
	}

	// The second server's own change is a conflict first, and takes over what it did not know.
	id := addNode(t, a, "more", user, nil)
	other := addNode(t, b, "more", user, nil)
	if id == other || b.Snapshot().Node(id) == nil || b.Snapshot().Node(id).Name == b.Snapshot().Node(other).Name {
		t.Errorf("nodes %d and %d", id, other)
	}
	if b.Snapshot().Node(ids[0]) != sn.Node(ids[0]) {
		t.Error("a conflict has made a node that did not change another value")
	}
}

// What the store says of a node that has its session here does not count; then ours is saved again.
func TestPresenceIsToldByItsServer(t *testing.T) {
	store := statetest.New()
	o := options(store)
	o.Server = "b"
	b := open(t, o)
	id := addNode(t, b, "n", addUser(t, b, "junyao"), func(n *tailnet.Node) {
		n.ApprovedRoutes = []netip.Prefix{netip.MustParsePrefix("192.168.199.0/24")}
	})
	must(t, b, func(tx *Tx) error { tx.SetOnline(id, true); return nil })
	saved := func(online bool) func() bool {
		return func() bool {
			c, err := store.Load(ctx, tailnet.DefaultID)
			return err == nil && c.Presence[id].Server == "b" && c.Presence[id].Online == online
		}
	}
	eventually(t, "saved", saved(true))
	save := func(p tailnet.Presence) {
		t.Helper()
		if err := store.SavePresence(ctx, tailnet.DefaultID, p.Server, map[tailnet.NodeID]tailnet.Presence{id: p}); err != nil {
			t.Fatal(err)
		}
		if err := b.Follow(ctx); err != nil {
			t.Fatal(err)
		}
	}
	save(tailnet.Presence{Server: "b", Online: false}) // the leader took us for dead
	if !b.Snapshot().Node(id).Online {
		t.Error("offline though it has a session here")
	}
	eventually(t, "saved again", saved(true))
	save(tailnet.Presence{Server: "c", Online: true}) // it has moved
	if n := b.Snapshot().Node(id); !n.Online || n.Server != "c" {
		t.Errorf("%v at %s", n.Online, n.Server)
	}
	must(t, b, func(tx *Tx) error { tx.SetOnline(id, false); return nil }) // its old session ends late
	if n := b.Snapshot().Node(id); !n.Online || n.Server != "c" {
		t.Errorf("%v at %s", n.Online, n.Server)
	}
}
