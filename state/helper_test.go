package state

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"

	"github.com/skein-vpn/skein/dns"
	"github.com/skein-vpn/skein/policy"
	"github.com/skein-vpn/skein/state/statetest"
	"github.com/skein-vpn/skein/tailnet"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var ctx = context.Background()

// wide is the addressing of an installation without configuration.
var wide = Addressing{Prefix4: netip.MustParsePrefix("100.64.0.0/10"), Prefix6: netip.MustParsePrefix("fd7a:115c:a1e0::/48")}

// oneRelay is a relay map with one region.
var oneRelay = &DERPMaps{Current: &tailcfg.DERPMap{Regions: map[int]*tailcfg.DERPRegion{901: {RegionID: 901}}}, Home: 901}

// options are those of a State that does nothing by itself: the grace time does not end.
func options(store Store) Options {
	return Options{
		Store: store, Addressing: wide, DNS: &dns.Settings{MagicDNS: true, Base: "skein.internal"}, DERP: oneRelay,
		RestartGrace: 1000 * time.Hour, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
}

// open opens a State that is closed with the test.
func open(t testing.TB, o Options) *State {
	t.Helper()
	st, err := Open(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(st.Close)
	return st
}

// must runs an update that has to succeed.
func must(t testing.TB, st *State, f func(*Tx) error) {
	t.Helper()
	if err := st.Update(ctx, "test", f); err != nil {
		t.Fatal(err)
	}
}

// addUser makes a user.
func addUser(t testing.TB, st *State, name string) (id tailnet.UserID) {
	t.Helper()
	must(t, st, func(tx *Tx) error {
		u := tx.NewUser(name)
		id = u.ID
		return tx.PutUser(u)
	})
	return id
}

// fresh is a complete new node of user, not stored yet.
func fresh(tx *Tx, hostname string, user tailnet.UserID) (*tailnet.Node, error) {
	n, err := tx.NewNode(hostname)
	if err != nil {
		return nil, err
	}
	n.User, n.Authorized = user, true
	n.MachineKey, n.NodeKey, n.DiscoKey = key.NewMachine().Public(), key.NewNode().Public(), key.NewDisco().Public()
	n.Hostinfo = &tailcfg.Hostinfo{Hostname: hostname}
	return n, nil
}

// addNode joins a node; edit, if not nil, may change it first.
func addNode(t testing.TB, st *State, hostname string, user tailnet.UserID, edit func(*tailnet.Node)) (id tailnet.NodeID) {
	t.Helper()
	must(t, st, func(tx *Tx) error {
		n, err := fresh(tx, hostname, user)
		if err != nil {
			return err
		}
		if edit != nil {
			edit(n)
		}
		id = n.ID
		return tx.PutNode(n)
	})
	return id
}

// change changes a node.
func change(tx *Tx, id tailnet.NodeID, edit func(*tailnet.Node)) error {
	n := tx.Node(id)
	if n == nil {
		return fmt.Errorf("there is no node %d", id)
	}
	n = n.Clone()
	edit(n)
	return tx.PutNode(n)
}

// eventually waits until ok says so.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 20 s", what)
		}
	}
}

// waitOps waits until n updates wait behind the one that the writer is busy with.
func waitOps(t testing.TB, st *State, n int) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d waiting updates", n), func() bool { return len(st.ops) == n })
}

func prefixes(ss ...string) (out []netip.Prefix) {
	for _, s := range ss {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

var errRefused = errors.New("refused by the test")

// describe writes down all that sn says, indexes and routers included, so that two states can be compared as text. The
// stable ids are random and left out; so is what counts snapshots.
func describe(sn *Snapshot, r routers) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	text := func(v any) []byte {
		j, err := json.Marshal(v)
		if err != nil {
			panic(err)
		}
		return j
	}
	line("tailnet %s", text(sn.Tailnet))
	line("dns %s", text(sn.DNS))
	line("derp %d %s", sn.DERP.Home, text(sn.DERP.Current))
	for _, u := range sn.users {
		line("user %s", text(u))
	}
	for _, k := range sn.keys {
		line("key %s", text(k))
	}
	for _, n := range sn.nodes {
		row := n.Node.Clone()
		row.StableID = ""
		line("node %d %s online=%v seen=%v failing=%v steady=%v primary=%v approved=%v ended=%v shown=%v", n.ID, text(row),
			n.Online, n.LastSeen.UTC(), n.Failing, n.Steady, n.Primary, n.Approved, n.Ended, n.Shown.ShortString())
	}
	if sn.Text != nil {
		line("policy %s", text(sn.Text))
	}
	if p := sn.Policy.Policy(); p != nil { // classes are numbered as they come; what they mean is compared
		line("rules %s", p.Text())
		for _, a := range sn.nodes {
			var sees []tailnet.NodeID
			for _, b := range sn.nodes {
				if sn.Policy.SeesNode(a.Node, b.Node) {
					sees = append(sees, b.ID)
				}
			}
			line("node %d sees %v and lets in %s", a.ID, sees, text(sn.Policy.FilterFor(a.Node)))
		}
	}
	lines := func(what string, m map[string]any) {
		for _, k := range slices.Sorted(maps.Keys(m)) {
			line("%s %s → %v", what, k, m[k])
		}
	}
	lines("by key", strung(sn.byKey.merged(same)))
	lines("by machine", strung(sn.byMachine.merged(slices.Equal)))
	lines("by name", strung(sn.byName.merged(same)))
	lines("by addr", strung(sn.byAddr.merged(same)))
	carried := map[string]any{}
	offered := map[string]any{}
	for p, ns := range r {
		var ids []tailnet.NodeID
		for _, n := range ns {
			ids = append(ids, n.ID)
		}
		offered[p.String()] = ids
		carried[p.String()] = sn.Routes.Primary(p)
		if tailnet.IsExitRoute(p) {
			delete(carried, p.String())
		}
	}
	lines("offered", offered)
	lines("carried", carried)
	line("%d carried", sn.Routes.Len())
	return b.String()
}

func strung[K comparable, V any](m map[K]V) map[string]any {
	out := map[string]any{}
	for k, v := range m {
		out[fmt.Sprint(k)] = v
	}
	return out
}

// firstDifference is the first line in which a and b differ, for test failures.
func firstDifference(a, b string) string {
	as, bs := strings.Split(a, "\n"), strings.Split(b, "\n")
	for i := range max(len(as), len(bs)) {
		x, y := "(nothing)", "(nothing)"
		if i < len(as) {
			x = as[i]
		}
		if i < len(bs) {
			y = bs[i]
		}
		if x != y {
			return fmt.Sprintf("line %d:\n  %s\n  %s", i, x, y)
		}
	}
	return "none"
}

// scratch is the snapshot, and the routers, that a restart would make of what the store holds and of the presence in like.
// Failing and Steady are not kept over a restart; they are taken from like.
func scratch(c *tailnet.Contents, like *Snapshot, now func() time.Time) (*Snapshot, routers) {
	st := &State{now: now}
	c.Presence = map[tailnet.NodeID]tailnet.Presence{}
	prev := &Snapshot{Policy: like.Policy, dnsBase: like.dnsBase, fileRecords: like.fileRecords, DERP: like.DERP}
	for _, n := range like.nodes {
		c.Presence[n.ID] = n.Presence()
		if n.Failing || n.Steady {
			prev.nodes = append(prev.nodes, n)
		}
	}
	slices.SortFunc(prev.nodes, func(a, b *Node) int { return cmp.Compare(a.ID, b.ID) })
	return st.load(c, prev, like.Policy), st.routers
}

// checkPolicy fails if the snapshot's policy, which was kept up with every change, or the classes of its nodes are not what
// compiling it anew gives.
func checkPolicy(t interface {
	Helper()
	Fatalf(string, ...any)
}, sn *Snapshot) {
	t.Helper()
	p := sn.Policy.Policy()
	if p == nil {
		return
	}
	var rows []*tailnet.Node
	for _, n := range sn.nodes {
		rows = append(rows, n.Node)
	}
	fresh, err := policy.Compile(p, sn.users, rows, policy.Options{Services: serviceAddrs(sn.services)})
	if err != nil {
		t.Fatalf("the policy in force does not compile: %v", err)
	}
	for _, a := range sn.nodes {
		if is := sn.Policy.ClassOf(a.Node); is != a.Class {
			t.Fatalf("node %d is of class %d, its entry says %d", a.ID, is, a.Class)
		}
		got, _ := json.Marshal(sn.Policy.FilterFor(a.Node))
		want, _ := json.Marshal(fresh.FilterFor(a.Node))
		if string(got) != string(want) {
			t.Fatalf("the filter of node %d is\n  %s, compiled anew\n  %s", a.ID, got, want)
		}
		for _, b := range sn.nodes {
			if x, y := sn.Policy.SeesNode(a.Node, b.Node), fresh.SeesNode(a.Node, b.Node); x != y {
				t.Fatalf("node %d sees node %d: %v, compiled anew %v", a.ID, b.ID, x, y)
			}
		}
	}
}

// checkScratch fails if the published snapshot is not what a restart would make of the store.
func checkScratch(t interface {
	Helper()
	Fatalf(string, ...any)
}, st *State, store *statetest.Store) {
	t.Helper()
	sn := st.Snapshot()
	want, r := scratch(store.Contents(), sn, st.now)
	got := describe(sn, st.routers)
	if want := describe(want, r); got != want {
		t.Fatalf("the snapshot is not what a restart would read: %s", firstDifference(got, want))
	}
	checkPolicy(t, sn)
	if c := store.Contents(); sn.Rev != c.Rev {
		t.Fatalf("the snapshot has rev %d, the store %d", sn.Rev, c.Rev)
	}
}
