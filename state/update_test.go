package state

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"tailscale.com/tailcfg"

	"github.com/skein-vpn/skein/dns"
	"github.com/skein-vpn/skein/state/statetest"
	"github.com/skein-vpn/skein/tailnet"
)

// Many updates that wait for one slow commit go into the next commit together.
func TestGroupCommit(t *testing.T) {
	store := statetest.New()
	st := open(t, options(store))
	user := addUser(t, st, "junyao")
	before := len(store.Commits())

	release := store.Block()
	defer release()
	const n = 100
	errs := make(chan error, n+1)
	join := func(i int) {
		errs <- st.Update(ctx, fmt.Sprintf("join %d", i), func(tx *Tx) error {
			node, err := fresh(tx, "laptop", user)
			if err != nil {
				return err
			}
			return tx.PutNode(node)
		})
	}
	go join(0)
	eventually(t, "the first commit", func() bool { return store.Waiting() == 1 })
	for i := range n {
		go join(i + 1)
	}
	waitOps(t, st, n)
	release()
	for range n + 1 {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
	commits := store.Commits()[before:]
	if len(commits) != 2 || len(commits[1].Changes.PutNodes) != n || len(commits[1].Changes.Why) != n {
		t.Errorf("%d updates took %d commits, the last with %d nodes and %d reasons; want 2, %d, %d",
			n+1, len(commits), len(commits[len(commits)-1].Changes.PutNodes), len(commits[len(commits)-1].Changes.Why), n, n)
	}
	if got := len(st.Snapshot().Nodes()); got != n+1 {
		t.Errorf("%d nodes, want %d", got, n+1)
	}
	checkScratch(t, st, store)
}

// Updates in one group see what stands before them, and one that fails takes nothing from the others.
func TestGroupMembersFailAlone(t *testing.T) {
	store := statetest.New()
	st := open(t, options(store))
	user := addUser(t, st, "junyao")
	before := len(store.Commits())
	var ids [3]tailnet.NodeID
	join := func(i int, fail error) func(*Tx) error {
		return func(tx *Tx) error {
			n, err := fresh(tx, "laptop", user)
			if err != nil {
				return err
			}
			ids[i] = n.ID
			return errors.Join(tx.PutNode(n), fail)
		}
	}
	errs := group(st, join(0, nil), join(1, errRefused), func(*Tx) error { panic("boom") }, join(2, nil))
	if errs[0] != nil || !errors.Is(errs[1], errRefused) || errs[2] == nil || !strings.Contains(errs[2].Error(), "boom") || errs[3] != nil {
		t.Fatalf("errors: %v", errs)
	}
	if tailnet.CodeOf(errs[2]) != tailnet.Internal {
		t.Errorf("a panic has the code %s, want internal", tailnet.CodeOf(errs[2]))
	}
	if n := len(store.Commits()) - before; n != 1 {
		t.Errorf("%d commits, want 1", n)
	}
	sn := st.Snapshot()
	if len(sn.Nodes()) != 2 || ids[2] != 2 || sn.Node(2).Name != "laptop-1" || sn.Node(2).IPv4.String() != "100.64.0.2" {
		t.Errorf("nodes after one failure between two joins: %s", describe(sn, st.routers))
	}
	checkScratch(t, st, store)
}

// group runs updates as one group commit and returns their errors. Nothing else may use st meanwhile.
func group(st *State, fs ...func(*Tx) error) []error {
	var ops []*op
	for i, f := range fs {
		ops = append(ops, &op{ctx: ctx, why: fmt.Sprint("update ", i), f: f, done: make(chan error, 1)})
	}
	st.commit(ops)
	var errs []error
	for _, o := range ops {
		errs = append(errs, <-o.done)
	}
	return errs
}

// A commit that fails fails all its updates; nothing is published, and the next one works as if it had not been.
func TestCommitFails(t *testing.T) {
	store := statetest.New()
	st := open(t, options(store))
	user := addUser(t, st, "junyao")
	sn := st.Snapshot()
	join := func(tx *Tx) error {
		n, err := fresh(tx, "laptop", user)
		if err != nil {
			return err
		}
		return tx.PutNode(n)
	}
	store.FailCommits(1)
	errs := group(st, join, func(*Tx) error { return errRefused }, join)
	for i, err := range errs {
		if i == 1 {
			if !errors.Is(err, errRefused) {
				t.Errorf("update 1: %v, want its own error", err)
			}
			continue
		}
		if tailnet.CodeOf(err) != tailnet.Unavailable || !errors.Is(err, statetest.ErrFailed) || strings.Contains(err.Error(), "statetest") {
			t.Errorf("update %d: %v; want Unavailable, with the cause for the log only", i, err)
		}
	}
	if st.Snapshot() != sn {
		t.Error("something was published though the commit failed")
	}
	select {
	case <-sn.Superseded():
		t.Error("the snapshot is superseded though the commit failed")
	default:
	}
	must(t, st, join)
	if n := st.Snapshot().Node(1); n == nil || n.IPv4.String() != "100.64.0.1" || n.Name != "laptop" {
		t.Errorf("after a failed commit the first node is %+v: its address or name was lost with the failure", n)
	}
	checkScratch(t, st, store)
}

// An update that changes nothing, presence included, publishes nothing and writes nothing.
func TestNothingChanges(t *testing.T) {
	store := statetest.New()
	st := open(t, options(store))
	id := addNode(t, st, "nas", addUser(t, st, "junyao"), nil)
	must(t, st, func(tx *Tx) error { tx.SetOnline(id, true); return nil })
	sn, commits := st.Snapshot(), len(store.Commits())
	must(t, st, func(tx *Tx) error {
		tx.SetOnline(id, true)
		tx.SetOnline(99, true)
		tx.DeleteNode(99)
		tx.SetFailing(id, false)
		tx.SetSteady(99)
		return tx.PutNode(tx.Node(id))
	})
	if n := len(store.Commits()) - commits; n != 0 {
		t.Errorf("%d commits, want none", n)
	}
	if st.Snapshot().Node(id).Node != sn.Node(id).Node {
		t.Error("the node's row has another pointer")
	}
}

// If another server was faster, its change is loaded and published, and the updates run again on top of it.
func TestConflict(t *testing.T) {
	store := statetest.New()
	st := open(t, options(store))
	user := addUser(t, st, "junyao")
	intruder := statetest.Tailnet(1).Nodes[0] // takes id 1, the first address, and the name node-1
	intruder.HomeDERP = 7
	once := sync.OnceFunc(func() {
		store.Intrude(func(c *tailnet.Contents) *tailnet.Changes {
			c.Tailnet.LastNodeID = 1
			return &tailnet.Changes{Tailnet: &c.Tailnet, PutNodes: []*tailnet.Node{intruder}}
		})
	})
	store.BeforeCommit(func(tailnet.Rev, *tailnet.Changes) error { once(); return nil })
	runs := 0
	must(t, st, func(tx *Tx) error {
		runs++
		n, err := fresh(tx, "node-1", user)
		if err != nil {
			return err
		}
		return tx.PutNode(n)
	})
	sn := st.Snapshot()
	if runs != 2 || len(sn.Nodes()) != 2 {
		t.Fatalf("%d runs, %d nodes; want 2 and 2", runs, len(sn.Nodes()))
	}
	if n := sn.Node(2); n.Name != "node-1-1" || n.IPv4.String() != "100.64.0.2" || n.IPv6.String() != "fd7a:115c:a1e0::2" {
		t.Errorf("the node that came second is %s %s", n.Name, n.Addrs())
	}
	checkScratch(t, st, store)
}

// What another server did is published even if our own update then fails, and the writer's own tables stay with it: a
// router that only the other server knew of must not trip a later change of presence.
func TestConflictThenFailure(t *testing.T) {
	for name, second := range map[string]func(s *statetest.Store) error{
		"the function refuses": func(*statetest.Store) error { return errRefused },
		"the store fails":      func(s *statetest.Store) error { s.FailCommits(1); return nil },
		"nothing is left":      nil,
	} {
		t.Run(name, func(t *testing.T) {
			store := statetest.New()
			st := open(t, options(store))
			user := addUser(t, st, "junyao")
			lan := prefixes("192.168.199.0/24")
			router := func(n *tailnet.Node) {
				n.Hostinfo.RoutableIPs, n.ApprovedRoutes = lan, lan
			}
			id := addNode(t, st, "nas", user, router)
			must(t, st, func(tx *Tx) error { tx.SetOnline(id, true); return nil })
			once := sync.OnceFunc(func() {
				store.Intrude(func(c *tailnet.Contents) *tailnet.Changes {
					n := statetest.Tailnet(2).Nodes[1]
					router(n)
					c.Tailnet.LastNodeID = 2
					return &tailnet.Changes{Tailnet: &c.Tailnet, PutNodes: []*tailnet.Node{n}}
				})
			})
			store.BeforeCommit(func(tailnet.Rev, *tailnet.Changes) error { once(); return nil })
			runs := 0
			err := st.Update(ctx, "rename", func(tx *Tx) error {
				runs++
				if runs > 1 && second == nil {
					return nil
				}
				if runs > 1 {
					if err := second(store); err != nil {
						return err
					}
				}
				return change(tx, id, func(n *tailnet.Node) { n.Name = "renamed" })
			})
			if runs != 2 || (err == nil) != (second == nil) {
				t.Fatalf("%d runs, error %v", runs, err)
			}
			if st.Snapshot().Node(2) == nil || st.Snapshot().Rev != store.Contents().Rev {
				t.Error("what the other server did was loaded but not published")
			}
			must(t, st, func(tx *Tx) error { tx.SetOnline(id, false); tx.SetOnline(2, true); return nil })
			if p := st.Snapshot().Routes.Primary(lan[0]); p != 2 {
				t.Errorf("primary is %d, want 2", p)
			}
			checkScratch(t, st, store)
		})
	}
}

// A load that fails after a conflict is an error like any other.
func TestConflictThenLoadFails(t *testing.T) {
	store := statetest.New()
	st := open(t, options(store))
	addUser(t, st, "junyao")
	once := sync.OnceFunc(func() {
		store.Intrude(func(c *tailnet.Contents) *tailnet.Changes {
			c.Tailnet.LastUserID = 7
			return &tailnet.Changes{Tailnet: &c.Tailnet, PutUsers: []*tailnet.User{{ID: 7, Name: "other"}}}
		})
		store.FailLoads(1)
	})
	store.BeforeCommit(func(tailnet.Rev, *tailnet.Changes) error { once(); return nil })
	put := func(tx *Tx) error { return tx.PutUser(tx.NewUser("third")) }
	if err := st.Update(ctx, "test", put); tailnet.CodeOf(err) != tailnet.Unavailable {
		t.Fatalf("error %v, want Unavailable", err)
	}
	must(t, st, put)
	if u := st.Snapshot().UserByName("third"); u == nil || u.ID != 8 {
		t.Errorf("user %+v, want id 8", u)
	}
	checkScratch(t, st, store)
}

// An update whose caller has gone before its turn does not run.
func TestCanceledUpdateDoesNotRun(t *testing.T) {
	store := statetest.New()
	st := open(t, options(store))
	release := store.Block()
	defer release()
	go func() {
		_ = st.Update(ctx, "first", func(tx *Tx) error { return tx.PutUser(tx.NewUser("first")) })
	}()
	eventually(t, "the first commit", func() bool { return store.Waiting() == 1 })
	gone, cancel := context.WithCancel(ctx)
	errs := make(chan error)
	go func() {
		errs <- st.Update(gone, "second", func(tx *Tx) error { return tx.PutUser(tx.NewUser("second")) })
	}()
	waitOps(t, st, 1)
	cancel()
	if err := <-errs; !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want canceled", err)
	}
	release()
	must(t, st, func(tx *Tx) error { return tx.PutUser(tx.NewUser("third")) })
	if st.Snapshot().UserByName("second") != nil {
		t.Error("an update ran though its caller had gone")
	}
}

// An update that the writer has taken up is waited for even if its caller's context ends, so that what it writes to the
// caller's variables races with nobody.
func TestTakenUpdateIsWaitedFor(t *testing.T) {
	store := statetest.New()
	st := open(t, options(store))
	release := store.Block()
	gone, cancel := context.WithCancel(ctx)
	errs := make(chan error, 1)
	go func() {
		errs <- st.Update(gone, "taken", func(tx *Tx) error { return tx.PutUser(tx.NewUser("taken")) })
	}()
	eventually(t, "the commit", func() bool { return store.Waiting() == 1 })
	cancel()
	select {
	case err := <-errs:
		t.Errorf("Update returned %v while the writer was at it", err)
	case <-time.After(50 * time.Millisecond):
	}
	release()
	if err := <-errs; err != nil || st.Snapshot().UserByName("taken") == nil {
		t.Errorf("after the commit: %v", err)
	}
}

// Close answers every update, whether it was taken or came too late, and can be called again.
func TestClose(t *testing.T) {
	for range 20 {
		store := statetest.New()
		st, err := Open(ctx, options(store))
		if err != nil {
			t.Fatal(err)
		}
		const n = 50
		start := make(chan struct{})
		errs := make(chan error, n)
		for i := range n {
			go func() {
				<-start
				errs <- st.Update(ctx, "test", func(tx *Tx) error { return tx.PutUser(tx.NewUser(fmt.Sprint("user-", i))) })
			}()
		}
		close(start)
		st.Close()
		done := 0
		for range n {
			switch err := <-errs; {
			case err == nil:
				done++
			case !errors.Is(err, ErrClosed):
				t.Fatalf("error %v, want ErrClosed", err)
			}
		}
		if got := len(store.Contents().Users); got != done {
			t.Fatalf("%d updates succeeded and %d are stored", done, got)
		}
		st.Close()
		if err := st.Update(ctx, "late", func(*Tx) error { return nil }); !errors.Is(err, ErrClosed) {
			t.Fatalf("after Close: %v, want ErrClosed", err)
		}
	}
}

// An update that is queued in the very moment in which the writer ends is answered too.
func TestCloseAnswersTheLastOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st, err := Open(ctx, options(statetest.New()))
		if err != nil {
			t.Fatal(err)
		}
		st.stop()
		st.wg.Wait()
		// As if Update had passed its first check before Close and queued after the writer's last look.
		live := &State{ops: st.ops, gone: st.gone, stopped: make(chan struct{})}
		if err := live.Update(ctx, "late", func(*Tx) error { return nil }); !errors.Is(err, ErrClosed) {
			t.Errorf("error %v, want ErrClosed", err)
		}
	})
}

// Open without a tailnet to open says so.
func TestOpenFails(t *testing.T) {
	store := statetest.New()
	o := options(store)
	o.Tailnet = 5
	if _, err := Open(ctx, o); tailnet.CodeOf(err) != tailnet.NotFound {
		t.Errorf("error %v, want NotFound", err)
	}
	store.FailLoads(1)
	if _, err := Open(ctx, options(store)); !errors.Is(err, statetest.ErrFailed) {
		t.Errorf("error %v, want the store's", err)
	}
}

// DNS settings and relay maps are published without a commit, and not at all if the function fails.
func TestConfigurationIsNotCommitted(t *testing.T) {
	store := statetest.New()
	st := open(t, options(store))
	commits := len(store.Commits())
	settings, relays := &dns.Settings{Base: "example.net"}, &DERPMaps{Current: &tailcfg.DERPMap{}}
	if err := st.Update(ctx, "reload", func(tx *Tx) error { tx.SetDNS(settings); tx.SetDERP(relays); return errRefused }); !errors.Is(err, errRefused) {
		t.Fatal(err)
	}
	if sn := st.Snapshot(); sn.DNS == settings || sn.DERP == relays {
		t.Error("settings of a failed update were published")
	}
	must(t, st, func(tx *Tx) error { tx.SetDNS(settings); tx.SetDERP(relays); return nil })
	if sn := st.Snapshot(); sn.DNS != settings || sn.DERP != relays || len(store.Commits()) != commits {
		t.Error("settings were not published, or were committed")
	}
}

// Superseded wakes all who wait, and Seq grows with every snapshot.
func TestSuperseded(t *testing.T) {
	st := open(t, options(statetest.New()))
	var wg sync.WaitGroup
	sn := st.Snapshot()
	for range 50 {
		wg.Go(func() {
			<-sn.Superseded()
			if next := st.Snapshot(); next.Seq <= sn.Seq || next.UserByName("junyao") == nil {
				t.Errorf("woken at seq %d, after %d", next.Seq, sn.Seq)
			}
		})
	}
	addUser(t, st, "junyao")
	wg.Wait()
}

// The deleted are remembered by their key.
func TestDeletedNode(t *testing.T) {
	store := statetest.New()
	st := open(t, options(store))
	id := addNode(t, st, "nas", addUser(t, st, "junyao"), nil)
	k := st.Snapshot().Node(id).NodeKey
	if n, err := st.DeletedNode(ctx, k); n != nil || err != nil {
		t.Errorf("before its deletion: %v, %v", n, err)
	}
	must(t, st, func(tx *Tx) error { tx.DeleteNode(id); return nil })
	if n, err := st.DeletedNode(ctx, k); err != nil || n == nil || n.ID != id {
		t.Errorf("after its deletion: %v, %v", n, err)
	}
	if again := addNode(t, st, "nas", 1, nil); again != id+1 {
		t.Errorf("the next node has id %d: ids are never used again", again)
	}
}

// Reads of the snapshot find what was put, and nothing of what was deleted.
func TestSnapshotReads(t *testing.T) {
	store := statetest.New()
	st := open(t, options(store))
	user := addUser(t, st, "junyao")
	a := addNode(t, st, "nas", user, nil)
	b := addNode(t, st, "phone", user, func(n *tailnet.Node) { n.MachineKey = st.Snapshot().Node(a).MachineKey })
	c := addNode(t, st, "tagged", 0, func(n *tailnet.Node) { n.Tags = []string{"tag:web"} })
	sn := st.Snapshot()
	na := sn.Node(a)
	if sn.NodeByKey(na.NodeKey) != na || sn.NodeByName("nas") != na || sn.NodeByAddr(na.IPv4) != na || sn.NodeByAddr(na.IPv6) != na {
		t.Error("a node is not found by its key, name or addresses")
	}
	if ns := sn.NodesByMachine(na.MachineKey); len(ns) != 2 || ns[0].ID != a || ns[1].ID != b {
		t.Errorf("nodes of the machine: %v", ns)
	}
	if ns := sn.NodesOf(user); len(ns) != 2 {
		t.Errorf("%d nodes of the user, want 2", len(ns))
	}
	if ns := sn.NodesOf(tailnet.TaggedDevices); len(ns) != 1 || ns[0].ID != c || sn.User(tailnet.TaggedDevices).LoginName() == "" {
		t.Errorf("tagged nodes: %v", ns)
	}
	// One that moved in the list of its machine comes back at its place.
	must(t, st, func(tx *Tx) error { return change(tx, a, func(n *tailnet.Node) { n.HomeDERP = 2 }) })
	if ns := st.Snapshot().NodesByMachine(na.MachineKey); ns[0].ID != a {
		t.Errorf("nodes of the machine after a change: %v", ns)
	}
	must(t, st, func(tx *Tx) error { tx.DeleteNode(a); return nil })
	sn = st.Snapshot()
	if sn.Node(a) != nil || sn.NodeByKey(na.NodeKey) != nil || sn.NodeByName("nas") != nil || sn.NodeByAddr(na.IPv4) != nil ||
		len(sn.NodesByMachine(na.MachineKey)) != 1 {
		t.Error("a deleted node is still found")
	}
	if sn.NodeByAddr(wide.Prefix4.Addr()) != nil || sn.NodeByName("") != nil || sn.User(77) != nil || sn.UserByName("x") != nil || sn.PreAuthKey(7) != nil {
		t.Error("something is found that was never there")
	}
}

// Users and keys: names are unique, a user with nodes stays, its keys go with it.
func TestUsersAndKeys(t *testing.T) {
	store := statetest.New()
	st := open(t, options(store))
	a, b := addUser(t, st, "anna"), addUser(t, st, "bert")
	conflict := func(what string, f func(*Tx) error) {
		t.Helper()
		if err := st.Update(ctx, "test", f); tailnet.CodeOf(err) != tailnet.Conflict {
			t.Errorf("%s: %v, want a Conflict", what, err)
		}
	}
	conflict("a second anna", func(tx *Tx) error { return tx.PutUser(tx.NewUser("anna")) })
	conflict("bert becomes anna", func(tx *Tx) error { u := *tx.User(b); u.Name = "anna"; return tx.PutUser(&u) })
	must(t, st, func(tx *Tx) error { // two swap their names in one update, by way of a third
		ua, ub := *tx.User(a), *tx.User(b)
		ua.Name = "aside"
		if err := tx.PutUser(&ua); err != nil {
			return err
		}
		ub.Name = "anna"
		if err := tx.PutUser(&ub); err != nil {
			return err
		}
		third := ua
		third.Name = "bert"
		return tx.PutUser(&third)
	})
	if sn := st.Snapshot(); sn.UserByName("anna").ID != b || sn.UserByName("bert").ID != a {
		t.Error("the names are not swapped")
	}
	var k *tailnet.PreAuthKey
	must(t, st, func(tx *Tx) error {
		k = tx.NewPreAuthKey()
		k.User, k.Hash = a, [32]byte{1}
		tx.PutPreAuthKey(k)
		if tx.PreAuthKeyByHash([32]byte{1}) != k {
			t.Error("a key put in this transaction is not found")
		}
		return nil
	})
	id := addNode(t, st, "nas", a, nil)
	conflict("a user with a node", func(tx *Tx) error { return tx.DeleteUser(a) })
	if st.Snapshot().PreAuthKey(k.ID) == nil {
		t.Error("a deletion that failed took the key")
	}
	must(t, st, func(tx *Tx) error { tx.DeleteNode(id); return tx.DeleteUser(a) })
	if sn := st.Snapshot(); sn.PreAuthKey(k.ID) != nil || sn.User(a) != nil {
		t.Error("the user or its key is still there")
	}
	must(t, st, func(tx *Tx) error {
		if tx.PreAuthKeyByHash([32]byte{1}) != nil || tx.UserByName("bert") != nil || len(tx.PreAuthKeys()) != 0 {
			t.Error("the next transaction still finds the user or its key")
		}
		return nil
	})
	if c := addUser(t, st, "bert"); c != b+1 {
		t.Errorf("the next user has id %d: ids are never used again", c)
	}
	checkScratch(t, st, store)
}

// PutNode refuses what would break the tailnet.
func TestPutNodeRefuses(t *testing.T) {
	st := open(t, options(statetest.New()))
	user := addUser(t, st, "junyao")
	id := addNode(t, st, "nas", user, nil)
	other := st.Snapshot().Node(id)
	for name, edit := range map[string]func(*tailnet.Node){
		"the key of another":          func(n *tailnet.Node) { n.NodeKey = other.NodeKey },
		"the name of another":         func(n *tailnet.Node) { n.Name = other.Name },
		"the IPv4 address of another": func(n *tailnet.Node) { n.IPv4 = other.IPv4 },
		"the IPv6 address of another": func(n *tailnet.Node) { n.IPv6 = other.IPv6 },
	} {
		err := st.Update(ctx, "test", func(tx *Tx) error {
			n, err := fresh(tx, "laptop", user)
			if err != nil {
				return err
			}
			edit(n)
			return tx.PutNode(n)
		})
		if tailnet.CodeOf(err) != tailnet.Conflict {
			t.Errorf("%s: %v, want a Conflict", name, err)
		}
	}
	for name, edit := range map[string]func(*tailnet.Node){
		"no id":            func(n *tailnet.Node) { n.ID = 0 },
		"no stable id":     func(n *tailnet.Node) { n.StableID = "" },
		"no name":          func(n *tailnet.Node) { n.Name = "" },
		"no node key":      func(n *tailnet.Node) { n.NodeKey = tailnet.Node{}.NodeKey },
		"no machine key":   func(n *tailnet.Node) { n.MachineKey = tailnet.Node{}.MachineKey },
		"no hostinfo":      func(n *tailnet.Node) { n.Hostinfo = nil },
		"neither owner":    func(n *tailnet.Node) { n.User = 0 },
		"a user and a tag": func(n *tailnet.Node) { n.Tags = []string{"tag:x"} },
	} {
		err := st.Update(ctx, "test", func(tx *Tx) error { return change(tx, id, edit) })
		if tailnet.CodeOf(err) != tailnet.Internal {
			t.Errorf("%s: %v, want an internal error", name, err)
		}
	}
	if n := len(st.Snapshot().Nodes()); n != 1 {
		t.Errorf("%d nodes, want 1", n)
	}
}

// Nodes that a change does not concern keep their entries; those that it does get new ones.
func TestEntriesKeepTheirIdentity(t *testing.T) {
	store := statetest.New()
	st := open(t, options(store))
	user := addUser(t, st, "junyao")
	lan := prefixes("192.168.199.0/24")
	router := func(n *tailnet.Node) { n.Hostinfo.RoutableIPs, n.ApprovedRoutes = lan, lan }
	first, second := addNode(t, st, "r1", user, router), addNode(t, st, "r2", user, router)
	other := addNode(t, st, "laptop", user, nil)
	step := func(what string, f func(*Tx) error, changed ...tailnet.NodeID) {
		t.Helper()
		before := st.Snapshot()
		must(t, st, f)
		for _, n := range st.Snapshot().Nodes() {
			if same := before.Node(n.ID) == n; same == slices.Contains(changed, n.ID) {
				t.Errorf("%s: node %d has the same entry: %v", what, n.ID, same)
			}
		}
	}
	step("first online", func(tx *Tx) error { tx.SetOnline(first, true); return nil }, first)
	step("second online", func(tx *Tx) error { tx.SetOnline(second, true); return nil }, second)
	step("endpoints", func(tx *Tx) error { return change(tx, other, func(n *tailnet.Node) { n.HomeDERP = 3 }) }, other)
	step("first offline: the route moves", func(tx *Tx) error { tx.SetOnline(first, false); return nil }, first, second)
	step("a user", func(tx *Tx) error { return tx.PutUser(tx.NewUser("x")) })
	step("first deleted", func(tx *Tx) error { tx.DeleteNode(first); return nil })
	step("dns", func(tx *Tx) error { tx.SetDNS(&dns.Settings{Base: "x"}); return nil })
	step("its hostinfo", func(tx *Tx) error {
		return change(tx, second, func(n *tailnet.Node) { n.Hostinfo = &tailcfg.Hostinfo{} })
	}, second)
	checkScratch(t, st, store)
}

// A commit that hangs does not hold up readers.
func TestReadsDoNotWait(t *testing.T) {
	store := statetest.New()
	st := open(t, options(store))
	release := store.Block()
	done := make(chan error)
	go func() { done <- st.Update(ctx, "slow", func(tx *Tx) error { return tx.PutUser(tx.NewUser("x")) }) }()
	eventually(t, "the commit", func() bool { return store.Waiting() == 1 })
	if st.Snapshot().UserByName("x") != nil {
		t.Error("an uncommitted user can be seen")
	}
	release()
	if err := <-done; err != nil || st.Snapshot().UserByName("x") == nil {
		t.Errorf("after the commit: %v", err)
	}
}

// A store that hangs fails the updates of the commit after commitTimeout.
func TestCommitTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := statetest.New()
		st, err := Open(ctx, options(store))
		if err != nil {
			t.Fatal(err)
		}
		defer st.Close()
		release := store.Block()
		start := time.Now()
		err = st.Update(ctx, "hangs", func(tx *Tx) error { return tx.PutUser(tx.NewUser("x")) })
		if tailnet.CodeOf(err) != tailnet.Unavailable || time.Since(start) != commitTimeout {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		release()
		if err := st.Update(ctx, "next", func(tx *Tx) error { return tx.PutUser(tx.NewUser("x")) }); err != nil {
			t.Error(err)
		}
	})
}
