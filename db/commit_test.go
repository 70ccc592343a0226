package db

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"tailscale.com/types/key"

	"github.com/skein-vpn/skein/tailnet"
)

func TestConflict(t *testing.T) {
	d := openTest(t)
	nodes, rev := fill(t, d, 2)
	want := mustLoad(t, d, 1)
	for _, known := range []tailnet.Rev{rev - 1, rev + 1, -1} {
		n := nodes[0].Clone()
		n.Name = "changed"
		got, err := d.Commit(ctx, 1, known, &tailnet.Changes{PutNodes: []*tailnet.Node{n}, DeleteNodes: []tailnet.NodeID{2}, Tailnet: &tailnet.Tailnet{ID: 1, Name: "x"}})
		if !errors.Is(err, tailnet.ErrConflict) || got != 0 {
			t.Errorf("known %d: rev %d, %v", known, got, err)
		}
	}
	if diff := diff(want, mustLoad(t, d, 1)); diff != "" {
		t.Error(diff)
	}
	mustCommit(t, d, rev, &tailnet.Changes{})
}

func TestUnknownTailnet(t *testing.T) {
	d := openTest(t)
	_, err := d.Load(ctx, 2)
	wantErr(t, err, "no tailnet 2")
	if tailnet.CodeOf(err) != tailnet.NotFound {
		t.Errorf("code %v", tailnet.CodeOf(err))
	}
	_, err = d.Commit(ctx, 2, 0, &tailnet.Changes{})
	wantErr(t, err, "no tailnet 2")
	if tailnet.CodeOf(err) != tailnet.NotFound {
		t.Errorf("code %v", tailnet.CodeOf(err))
	}
}

// TestFaultyChanges commits what contradicts itself: it fails with words and leaves nothing, and the next commit works.
func TestFaultyChanges(t *testing.T) {
	d := openTest(t)
	nodes, rev := fill(t, d, 3)
	mustExec(t, d, "INSERT INTO tailnets (id, name, rev, last_node_id, last_user_id, last_pre_auth_key_id, last_policy_id) VALUES (2, 'other', 0, 0, 0, 0, 0)")
	change := func(f func(n *tailnet.Node)) *tailnet.Changes {
		n := nodes[0].Clone()
		f(n)
		return &tailnet.Changes{PutNodes: []*tailnet.Node{n}}
	}
	want := mustLoad(t, d, 1)
	for name, tt := range map[string]struct {
		ch    *tailnet.Changes
		words []string
	}{
		"name":         {change(func(n *tailnet.Node) { n.Name = nodes[1].Name }), []string{"two rows", "nodes.name"}},
		"IPv4":         {change(func(n *tailnet.Node) { n.IPv4 = nodes[1].IPv4 }), []string{"two rows", "nodes.ipv4"}},
		"IPv6":         {change(func(n *tailnet.Node) { n.IPv6 = nodes[1].IPv6 }), []string{"two rows", "nodes.ipv6"}},
		"node key":     {change(func(n *tailnet.Node) { n.NodeKey = nodes[1].NodeKey }), []string{"two rows", "nodes.node_key"}},
		"user":         {change(func(n *tailnet.Node) { n.User = 99 }), []string{"user that does not exist"}},
		"user deleted": {&tailnet.Changes{DeleteUsers: []tailnet.UserID{1}}, []string{"user that does not exist"}},
		"user's name":  {&tailnet.Changes{PutUsers: []*tailnet.User{{ID: 2, Name: "junyao"}}}, []string{"two rows", "users.name"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := d.Commit(ctx, 1, rev, tt.ch)
			wantErr(t, err, tt.words...)
			if errors.Is(err, tailnet.ErrConflict) || tailnet.CodeOf(err) != tailnet.Internal {
				t.Errorf("code %v", tailnet.CodeOf(err))
			}
			if err := d.Health(ctx); err != nil {
				t.Error(err)
			}
			if diff := diff(want, mustLoad(t, d, 1)); diff != "" {
				t.Error(diff)
			}
		})
	}
	foreign := nodes[0].Clone()
	foreign.User = 0
	_, err := d.Commit(ctx, 2, 0, &tailnet.Changes{PutNodes: []*tailnet.Node{foreign}})
	wantErr(t, err, "node 1 ", "another tailnet (1)")
	if errors.Is(err, tailnet.ErrConflict) || tailnet.CodeOf(err) != tailnet.Conflict {
		t.Errorf("%v", err)
	}
	mustCommit(t, d, rev, change(func(n *tailnet.Node) { n.Name = "free" }))
}

// TestTailnetsAreApart gives two tailnets the same ids, names and addresses.
func TestTailnetsAreApart(t *testing.T) {
	d := openTest(t)
	fill(t, d, 2)
	mustExec(t, d, "INSERT INTO tailnets (id, name, rev, last_node_id, last_user_id, last_pre_auth_key_id, last_policy_id) VALUES (2, 'other', 0, 0, 0, 0, 0)")
	other := benchNode(1)
	other.StableID = "other"
	ch := &tailnet.Changes{PutNodes: []*tailnet.Node{other}, PutUsers: []*tailnet.User{{ID: 1, Name: "junyao"}}}
	if rev, err := d.Commit(ctx, 2, 0, ch); err != nil || rev != 1 {
		t.Fatal(rev, err)
	}
	if err := d.SavePresence(ctx, 2, "", map[tailnet.NodeID]tailnet.Presence{1: {Online: true}, 2: {Online: true}}); err != nil {
		t.Fatal(err)
	}
	before := mustLoad(t, d, 1)
	if len(before.Presence) != 0 || len(before.Nodes) != 2 {
		t.Errorf("%d nodes, presence %v", len(before.Nodes), before.Presence)
	}
	if _, err := d.Commit(ctx, 2, 1, &tailnet.Changes{DeleteNodes: []tailnet.NodeID{1, 2}, DeleteUsers: []tailnet.UserID{1}}); err != nil {
		t.Fatal(err)
	}
	if diff := diff(before, mustLoad(t, d, 1)); diff != "" {
		t.Error(diff)
	}
	if n, err := d.DeletedNode(ctx, 1, other.NodeKey); n != nil || err != nil {
		t.Errorf("tailnet 1 knows of the other's node: %v %v", n, err)
	}
	if n, err := d.DeletedNode(ctx, 2, other.NodeKey); n == nil || err != nil {
		t.Errorf("no tombstone: %v", err)
	}
}

func TestSwap(t *testing.T) {
	d := openTest(t)
	nodes, rev := fill(t, d, 3)
	a, b, c := nodes[0].Clone(), nodes[1].Clone(), nodes[2].Clone()
	a.Name, b.Name, c.Name = b.Name, c.Name, a.Name
	a.IPv4, b.IPv4 = b.IPv4, a.IPv4
	a.IPv6, b.IPv6 = b.IPv6, a.IPv6
	a.NodeKey, b.NodeKey = b.NodeKey, a.NodeKey
	a.StableID, c.StableID = c.StableID, a.StableID
	rev = mustCommit(t, d, rev, &tailnet.Changes{PutNodes: []*tailnet.Node{a, b, c}, PutUsers: []*tailnet.User{{ID: 1, Name: "x"}, {ID: 2, Name: "junyao"}}})
	got := mustLoad(t, d, 1)
	if diff := diff([]*tailnet.Node{a, b, c}, got.Nodes); diff != "" {
		t.Error(diff)
	}
	if want := []string{"x", "junyao"}; !slices.Equal(names(got)[:2], want) {
		t.Errorf("names %v", names(got))
	}

	// A freed name, address and key go to a new node in the same commit, and a user goes while its node moves.
	n := c.Clone()
	n.ID, n.User = 4, 2
	a, b = a.Clone(), b.Clone()
	a.User, b.User = 2, 2
	mustCommit(t, d, rev, &tailnet.Changes{DeleteNodes: []tailnet.NodeID{3}, DeleteUsers: []tailnet.UserID{1}, PutNodes: []*tailnet.Node{n, a, b}})
	if diff := diff([]*tailnet.Node{a, b, n}, mustLoad(t, d, 1).Nodes); diff != "" {
		t.Error(diff)
	}
}

// TestManyRows crosses all batch sizes.
func TestManyRows(t *testing.T) {
	d := openTest(t)
	nodes, rev := fill(t, d, 1234)
	p := map[tailnet.NodeID]tailnet.Presence{}
	var del []tailnet.NodeID
	for i, n := range nodes {
		p[n.ID] = tailnet.Presence{Online: i%2 == 0, LastSeen: t0.Add(time.Duration(i))}
		if i >= 10 {
			del = append(del, n.ID)
		}
	}
	if err := d.SavePresence(ctx, 1, "", p); err != nil {
		t.Fatal(err)
	}
	c := mustLoad(t, d, 1)
	if diff := diff(nodes, c.Nodes); diff != "" {
		t.Error(diff)
	}
	if diff := diff(p, c.Presence); diff != "" {
		t.Error(diff)
	}
	mustCommit(t, d, rev, &tailnet.Changes{DeleteNodes: del})
	if c := mustLoad(t, d, 1); len(c.Nodes) != 10 || len(c.Presence) != 10 {
		t.Errorf("%d nodes, %d presences", len(c.Nodes), len(c.Presence))
	}
	for _, n := range []*tailnet.Node{nodes[10], nodes[1233]} {
		if n, err := d.DeletedNode(ctx, 1, n.NodeKey); n == nil || err != nil {
			t.Errorf("no tombstone: %v", err)
		}
	}
}

func TestCommitCanceled(t *testing.T) {
	d := openTest(t)
	if _, err := d.Commit(canceled(), 1, 0, &tailnet.Changes{}); !errors.Is(err, canceled().Err()) {
		t.Error(err)
	}
	mustCommit(t, d, 0, &tailnet.Changes{})
}

func TestTombstones(t *testing.T) {
	d := openTest(t)
	mustCommit(t, d, 0, sampleChanges())
	n := mustLoad(t, d, 1).Nodes[0]
	if got, err := d.DeletedNode(ctx, 1, n.NodeKey); got != nil || err != nil {
		t.Errorf("%v %v", got, err)
	}
	mustCommit(t, d, 1, &tailnet.Changes{DeleteNodes: []tailnet.NodeID{7, 8}, When: t0})
	got, err := d.DeletedNode(ctx, 1, n.NodeKey)
	if err != nil || got == nil {
		t.Fatal(got, err)
	}
	want := &tailnet.Node{ID: n.ID, StableID: n.StableID, MachineKey: n.MachineKey, NodeKey: n.NodeKey, User: n.User, Tags: n.Tags, Hostname: n.Hostname,
		Name: n.Name, IPv4: n.IPv4, IPv6: n.IPv6, Ephemeral: n.Ephemeral, Created: n.Created, Expiry: n.Expiry, Hostinfo: got.Hostinfo}
	if diff := diff(want, got); diff != "" {
		t.Error(diff)
	}

	// The machine comes back with the same key as another node, and is deleted again: the newer one counts.
	again := n.Clone()
	again.ID = 9
	mustCommit(t, d, 2, &tailnet.Changes{PutNodes: []*tailnet.Node{again}, When: t0.Add(time.Hour)})
	mustCommit(t, d, 3, &tailnet.Changes{DeleteNodes: []tailnet.NodeID{9}, When: t0.Add(time.Hour)})
	if got, err := d.DeletedNode(ctx, 1, n.NodeKey); err != nil || got == nil || got.ID != 9 {
		t.Errorf("%v %v", got, err)
	}
	if n, err := d.PurgeDeletedNodes(ctx, t0.Add(time.Minute)); n != 1 || err != nil {
		t.Errorf("purged %d, %v", n, err)
	}
	if got, err := d.DeletedNode(ctx, 1, n.NodeKey); err != nil || got == nil || got.ID != 9 {
		t.Errorf("%v %v", got, err)
	}
	if n, err := d.PurgeDeletedNodes(ctx, t0.Add(2*time.Hour)); n != 1 || err != nil {
		t.Errorf("purged %d, %v", n, err)
	}
	if got, err := d.DeletedNode(ctx, 1, n.NodeKey); got != nil || err != nil {
		t.Errorf("%v %v", got, err)
	}
	if got, err := d.DeletedNode(ctx, 1, key.NodePublic{}); got != nil || err != nil {
		t.Errorf("%v %v", got, err)
	}
}

func TestRevisions(t *testing.T) {
	d := openTest(t)
	ch := sampleChanges()
	mustCommit(t, d, 0, ch)
	mustCommit(t, d, 1, &tailnet.Changes{DeleteNodes: []tailnet.NodeID{7}, DeletePreAuth: []tailnet.PreAuthKeyID{3}, DeleteUsers: []tailnet.UserID{2},
		DeleteCredentials: []string{"kAbc"}, DeleteServices: []string{"svc:web"}, Why: []string{"gone"}})
	mustCommit(t, d, 2, &tailnet.Changes{When: t0.Add(time.Hour)})
	got, err := d.Revisions(ctx, 1, 0, 10)
	if err != nil {
		t.Fatal(err)
	}
	want := []*Revision{
		{Rev: 1, At: t0, Why: ch.Why, Settings: true, PutNodes: []tailnet.NodeID{7}, PutUsers: []tailnet.UserID{2}, PutPreAuthKeys: []tailnet.PreAuthKeyID{3},
			PutCredentials: []string{"kAbc"}, PutServices: []string{"svc:web"}},
		{Rev: 2, At: t0, Why: []string{"gone"}, DeleteNodes: []tailnet.NodeID{7}, DeleteUsers: []tailnet.UserID{2}, DeletePreAuth: []tailnet.PreAuthKeyID{3},
			DeleteCredentials: []string{"kAbc"}, DeleteServices: []string{"svc:web"}},
		{Rev: 3, At: t0.Add(time.Hour)},
	}
	if diff := diff(want, got); diff != "" {
		t.Error(diff)
	}
	if got, err := d.Revisions(ctx, 1, 1, 1); err != nil || len(got) != 1 || got[0].Rev != 2 {
		t.Errorf("%v %v", got, err)
	}
	if n, err := d.PurgeRevisions(ctx, t0.Add(time.Minute)); n != 2 || err != nil {
		t.Errorf("purged %d, %v", n, err)
	}
	if got, err := d.Revisions(ctx, 1, 0, 10); err != nil || len(got) != 1 || got[0].Rev != 3 {
		t.Errorf("%v %v", got, err)
	}
}

func TestPurgeMany(t *testing.T) {
	d := openTest(t)
	mustExec(t, d, "WITH RECURSIVE c (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 2500) "+
		"INSERT INTO revisions (tailnet_id, rev, at, settings) SELECT 1, x, '2020', FALSE FROM c")
	if n, err := d.PurgeRevisions(ctx, t0); n != 2500 || err != nil {
		t.Errorf("purged %d, %v", n, err)
	}
	if _, err := d.PurgeRevisions(canceled(), t0); err == nil {
		t.Error("no error")
	}
}

func TestLogins(t *testing.T) {
	d := openTest(t)
	var all []*tailnet.Login
	for i := range 5 {
		l := testLogin(fmt.Sprintf("login%d", i), t0.Add(time.Duration(5-i)*time.Minute))
		if err := d.PutLogin(ctx, l); err != nil {
			t.Fatal(err)
		}
		all = append([]*tailnet.Login{l}, all...) // the last one made is the oldest
	}
	got, err := d.Logins(ctx, 1)
	if err != nil {
		t.Fatal(err)
	}
	if diff := diff(all, got); diff != "" {
		t.Error(diff)
	}

	replaced := *all[0]
	replaced.Remote, replaced.NodeKey = "elsewhere", all[1].NodeKey
	if err := d.PutLogin(ctx, &replaced); err != nil {
		t.Fatal(err)
	}
	if got, err := d.Login(ctx, 1, replaced.ID); err != nil || diff(&replaced, got) != "" {
		t.Errorf("%v %v", got, err)
	}
	if got, err := d.LoginByNodeKey(ctx, 1, replaced.NodeKey); err != nil || got.ID != all[1].ID {
		t.Errorf("not the newest of two: %v %v", got, err)
	}
	if got, err := d.LoginByNodeKey(ctx, 1, all[0].NodeKey); got != nil || err != nil {
		t.Errorf("%v %v", got, err)
	}
	for _, bad := range []struct {
		id    tailnet.ID
		login string
	}{{1, "nonsense"}, {2, replaced.ID}, {1, ""}} {
		if _, err := d.Login(ctx, bad.id, bad.login); tailnet.CodeOf(err) != tailnet.NotFound {
			t.Errorf("%v: %v", bad, err)
		}
	}

	for range 2 {
		if err := d.DeleteLogin(ctx, 1, replaced.ID); err != nil {
			t.Error(err)
		}
	}
	count := func(want int) {
		t.Helper()
		if n, err := d.CountLogins(ctx, 1); n != want || err != nil {
			t.Errorf("%d logins, %v; want %d", n, err, want)
		}
	}
	count(4)
	if n, err := d.DeleteLoginsBefore(ctx, all[2].Created); n != 1 || err != nil {
		t.Errorf("deleted %d, %v", n, err)
	}
	count(3)
	if n, err := d.CountLogins(ctx, 2); n != 0 || err != nil {
		t.Errorf("%d logins, %v", n, err)
	}

	mustExec(t, d, "UPDATE logins SET machine_key = 'nonsense'")
	_, err = d.Logins(ctx, 1)
	wantErr(t, err, "table logins", "machine_key")
	_, err = d.Login(ctx, 1, all[3].ID)
	wantErr(t, err, "table logins", "machine_key")
}
