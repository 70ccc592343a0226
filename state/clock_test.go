package state

import (
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/types/key"

	"github.com/skein-vpn/skein/state/statetest"
	"github.com/skein-vpn/skein/tailnet"
)

// A key ends at its moment, without a commit and without anybody asking; the node gives up what it carries, and takes part
// again when its key is prolonged.
func TestKeyEndsByItself(t *testing.T) {
	store := statetest.New()
	bubble(t, options(store), func(t *testing.T, st *State) {
		lan := netip.MustParsePrefix("192.168.199.0/24")
		user := addUser(t, st, "junyao")
		router := func(n *tailnet.Node) {
			n.Hostinfo = &tailcfg.Hostinfo{RoutableIPs: []netip.Prefix{lan}}
			n.ApprovedRoutes = n.Hostinfo.RoutableIPs
		}
		first := addNode(t, st, "first", user, func(n *tailnet.Node) { router(n); n.Expiry = time.Now().Add(time.Hour) })
		second := addNode(t, st, "second", user, func(n *tailnet.Node) { router(n); n.Expiry = time.Now().Add(2 * time.Hour) })
		setOnline(t, st, first, true)
		setOnline(t, st, second, true)
		time.Sleep(time.Hour - time.Nanosecond)
		synctest.Wait()
		before := st.Snapshot()
		if n := before.Node(first); n.Ended || !n.Active() || !slices.Equal(n.Primary, []netip.Prefix{lan}) {
			t.Errorf("before its end the first router is %+v", n)
		}
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		sn := st.Snapshot()
		if n := sn.Node(first); !n.Ended || n.Active() || len(n.Primary) != 0 {
			t.Errorf("at its end the first router is %+v", n)
		}
		if n := sn.Node(second); n.Ended || !slices.Equal(n.Primary, []netip.Prefix{lan}) {
			t.Errorf("the second router has not taken over: %+v", n)
		}
		if sn.Rev != before.Rev || sn.Seq != before.Seq+1 {
			t.Errorf("rev %d, seq %d after rev %d, seq %d: want one snapshot more and no commit", sn.Rev, sn.Seq, before.Rev, before.Seq)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := st.Snapshot().Node(second); !n.Ended || st.Snapshot().Routes.Len() != 0 {
			t.Errorf("both have ended, and somebody carries the route: %+v", n)
		}
		must(t, st, func(tx *Tx) error {
			return change(tx, first, func(n *tailnet.Node) { n.Expiry = tx.Now().Add(time.Hour) })
		})
		if n := st.Snapshot().Node(first); n.Ended || !slices.Equal(n.Primary, []netip.Prefix{lan}) {
			t.Errorf("prolonged, the first router is %+v", n)
		}
		checkScratch(t, st, store)
		seq := st.Snapshot().Seq
		time.Sleep(59 * time.Minute)
		synctest.Wait()
		if st.Snapshot().Seq != seq {
			t.Error("a snapshot was published though nothing changed")
		}
	})
}

// A key that ends while the server is down has ended when it is back.
func TestKeyEndedMeanwhile(t *testing.T) {
	store := statetest.New()
	synctest.Test(t, func(t *testing.T) {
		st, err := Open(ctx, options(store))
		if err != nil {
			t.Fatal(err)
		}
		id := addNode(t, st, "nas", addUser(t, st, "junyao"), func(n *tailnet.Node) { n.Expiry = time.Now().Add(time.Hour) })
		later := addNode(t, st, "mac", 1, func(n *tailnet.Node) { n.Expiry = time.Now().Add(3 * time.Hour) })
		st.Close()
		time.Sleep(2 * time.Hour)
		if st, err = Open(ctx, options(store)); err != nil {
			t.Fatal(err)
		}
		defer st.Close()
		if sn := st.Snapshot(); !sn.Node(id).Ended || sn.Node(later).Ended {
			t.Errorf("after the start %+v, %+v", sn.Node(id), sn.Node(later))
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if !st.Snapshot().Node(later).Ended {
			t.Error("a key that ends after the start does not")
		}
	})
}

// Peers know a node under its old key until it uses the new one, and not for longer than keyPatience; both may use the relay.
func TestNewKeyIsShownWhenUsed(t *testing.T) {
	store := statetest.New()
	bubble(t, options(store), func(t *testing.T, st *State) {
		id := addNode(t, st, "nas", addUser(t, st, "junyao"), nil)
		renew := func() (old, k key.NodePublic) {
			k = key.NewNode().Public()
			must(t, st, func(tx *Tx) error {
				n := tx.Node(id).Clone()
				old = n.NodeKey
				tx.NewKey(n, k)
				return tx.PutNode(n)
			})
			return old, k
		}
		shows := func(when string, want key.NodePublic) {
			t.Helper()
			synctest.Wait()
			if n := st.Snapshot().Node(id); n.Shown != want {
				t.Errorf("%s peers know it as %v, want %v", when, n.Shown.ShortString(), want.ShortString())
			}
			checkScratch(t, st, store)
		}
		old, k := renew()
		shows("offline", k)
		if st.Snapshot().Using(old) != nil {
			t.Error("an old key that nobody is shown may still be used")
		}
		setOnline(t, st, id, true)
		old, k = renew()
		shows("renewed", old)
		if sn := st.Snapshot(); sn.Using(old) != sn.Node(id) || sn.Using(k) != sn.Node(id) || sn.NodeByKey(old) != nil {
			t.Error("not both keys may be used, or the old one may register")
		}
		time.Sleep(time.Second)
		must(t, st, func(tx *Tx) error { return tx.KeyInUse(id) })
		shows("at once", old)
		time.Sleep(KeySettles)
		shows("a moment after it used the new key", k)
		if st.Snapshot().Using(old) != nil {
			t.Error("the old key may still be used")
		}
		rev := st.Snapshot().Rev
		must(t, st, func(tx *Tx) error { return tx.KeyInUse(id) })
		if st.Snapshot().Rev != rev {
			t.Error("saying again that the key is in use is a change")
		}
		old, k = renew()
		time.Sleep(keyPatience - time.Nanosecond)
		shows("unused", old)
		time.Sleep(time.Nanosecond)
		shows("unused for long", k)
		must(t, st, func(tx *Tx) error { return change(tx, id, func(n *tailnet.Node) { n.Expiry = tx.Now() }) })
		_, k = renew()
		shows("after its end", k)
	})
}

// The nodes of a user who is suspended, or not approved yet, take no part and change in the same step as the user.
func TestUserStatus(t *testing.T) {
	store := statetest.New()
	st := open(t, options(store))
	user, other := addUser(t, st, "junyao"), addUser(t, st, "other")
	id, tagged := addNode(t, st, "nas", user, nil), addNode(t, st, "web", user, func(n *tailnet.Node) { n.User, n.Tags = 0, []string{"tag:web"} })
	theirs := addNode(t, st, "mac", other, nil)
	for _, tc := range []struct {
		status tailnet.UserStatus
		want   bool
	}{{tailnet.UserSuspended, false}, {tailnet.UserActive, true}, {tailnet.UserWaiting, false}, {"nonsense", false}} {
		must(t, st, func(tx *Tx) error {
			u := *tx.User(user)
			u.Status = tc.status
			return tx.PutUser(&u)
		})
		sn := st.Snapshot()
		if n := sn.Node(id); n.Active() != tc.want || n.Published() != tc.want {
			t.Errorf("%q: the node takes part: %v, want %v", tc.status, n.Active(), tc.want)
		}
		if !sn.Node(tagged).Active() || !sn.Node(theirs).Active() {
			t.Errorf("%q: a node of somebody else is cut off", tc.status)
		}
		checkScratch(t, st, store)
	}
}

// An attribute ends at its moment: the policy forgets it, and so does the store.
func TestAttributeEndsByItself(t *testing.T) {
	store := statetest.New()
	bubble(t, options(store), func(t *testing.T, st *State) {
		user := addUser(t, st, "ann")
		laptop := addNode(t, st, "laptop", user, func(n *tailnet.Node) {
			n.Attributes = []tailnet.Attribute{
				{Name: "custom:deploys", Value: "true", Kind: "bool", Expires: time.Now().Add(time.Hour)},
				{Name: "custom:tier", Value: "gold", Kind: "string"},
				{Name: "custom:visits", Value: "1", Kind: "number", Expires: time.Now().Add(2 * time.Hour)},
			}
		})
		server := addNode(t, st, "server", user, nil)
		p := parsePolicy(`{"postures": {"posture:deploys": ["custom:deploys == true"]},
			"acls": [{"action": "accept", "src": ["ann@"], "srcPosture": ["posture:deploys"], "dst": ["ann@:22"]}]}`)
		must(t, st, func(tx *Tx) error { return tx.SetPolicy(p, "test", "") })
		sees := func() bool {
			sn := st.Snapshot()
			return sn.Policy.SeesNode(sn.Node(laptop).Node, sn.Node(server).Node)
		}
		names := func() (out []string) {
			for _, a := range st.Snapshot().Node(laptop).Attributes {
				out = append(out, a.Name)
			}
			return out
		}
		time.Sleep(time.Hour - time.Nanosecond)
		synctest.Wait()
		if !sees() || len(names()) != 3 {
			t.Errorf("before its end: sees %v, has %v", sees(), names())
		}
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		if sees() || !slices.Equal(names(), []string{"custom:tier", "custom:visits"}) {
			t.Errorf("at its end: sees %v, has %v", sees(), names())
		}
		if n := store.Contents().Nodes[0]; len(n.Attributes) != 2 {
			t.Errorf("stored are %v", n.Attributes)
		}
		commits := store.Commits()
		if e := commits[len(commits)-1].Changes.Audit; len(e) != 1 || e[0].Action != "node.update" || e[0].Actor != "server" {
			t.Errorf("the audit log says %+v", e)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if !slices.Equal(names(), []string{"custom:tier"}) {
			t.Errorf("at the end of the next: has %v", names())
		}
	})
}
