package state

import (
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"
	"tailscale.com/net/tsaddr"

	"github.com/skein-vpn/skein/state/statetest"
	"github.com/skein-vpn/skein/tailnet"
)

// joined is a node that has just joined.
func joined(t testing.TB, st *State, user tailnet.UserID) *Node {
	t.Helper()
	id := addNode(t, st, "n", user, nil)
	return st.Snapshot().Node(id)
}

// pair is what the host part h gives in wide.
func pair(h uint64) (v4, v6 netip.Addr) { return wide.at(h) }

func TestAddressPairs(t *testing.T) {
	for h, want := range map[uint64][2]string{
		1:         {"100.64.0.1", "fd7a:115c:a1e0::1"},
		4:         {"100.64.0.4", "fd7a:115c:a1e0::4"},
		256:       {"100.64.1.0", "fd7a:115c:a1e0::100"},
		1<<22 - 2: {"100.127.255.254", "fd7a:115c:a1e0::3f:fffe"},
	} {
		v4, v6 := pair(h)
		if v4.String() != want[0] || v6.String() != want[1] {
			t.Errorf("host part %d is %s and %s, want %s", h, v4, v6, want)
		}
		for _, a := range []netip.Addr{v4, v6} {
			if back, ok := wide.host(a); !ok || back != h {
				t.Errorf("the host part of %s is %d, %v; want %d", a, back, ok, h)
			}
		}
	}
	if _, ok := wide.host(netip.MustParseAddr("10.0.0.1")); ok {
		t.Error("10.0.0.1 has a host part")
	}
}

// No address is given out that clients keep for themselves, whatever the prefixes are.
func TestReservedAddresses(t *testing.T) {
	for _, s := range []string{"100.64.0.0", "100.127.255.255", "100.100.100.100", "100.100.100.1", "100.115.92.0", "100.115.93.255", "100.100.0.7"} {
		h, ok := wide.host(netip.MustParseAddr(s))
		if !ok || wide.usable(h) {
			t.Errorf("%s may be given out", s)
		}
	}
	six := Addressing{Prefix6: wide.Prefix6}
	for h, usable := range map[uint64]bool{0: false, 0x52: true, 0x53: false, 0x54: true, six.hosts() - 1: true} {
		if six.usable(h) != usable {
			t.Errorf("with IPv6 alone, host part %x usable: %v, want %v", h, !usable, usable)
		}
	}
	via := Addressing{Prefix6: netip.MustParsePrefix("fd7a:115c:a1e0:b1a::/64")}
	if via.usable(1) {
		t.Error("an address of the 4via6 range may be given out")
	}
	rapid.Check(t, func(t *rapid.T) {
		h := rapid.Uint64Range(0, wide.hosts()-1).Draw(t, "h")
		if v4, v6 := pair(h); wide.usable(h) && (!tsaddr.IsTailscaleIP(v4) || !tsaddr.IsTailscaleIP(v6) || v4 == tsaddr.TailscaleServiceIP() || v6 == tsaddr.TailscaleServiceIPv6()) {
			t.Fatalf("host part %d gives %s and %s, which clients do not take for a node's", h, v4, v6)
		}
	})
}

// Many goroutines join at once; nobody gets an id, address or name twice, and no host part is left out.
func TestConcurrentJoins(t *testing.T) {
	store := statetest.New()
	st := open(t, options(store))
	user := addUser(t, st, "junyao")
	const workers, each = 20, 20
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for range each {
				err := st.Update(ctx, "join", func(tx *Tx) error {
					n, err := fresh(tx, fmt.Sprintf("host-%d", w%3), user)
					if err != nil {
						return err
					}
					return tx.PutNode(n)
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	nodes := st.Snapshot().Nodes()
	if len(nodes) != workers*each {
		t.Fatalf("%d nodes, want %d", len(nodes), workers*each)
	}
	names, hosts := map[string]bool{}, map[uint64]bool{}
	for i, n := range nodes {
		h4, _ := wide.host(n.IPv4)
		h6, _ := wide.host(n.IPv6)
		if h4 != h6 || n.ID != tailnet.NodeID(i+1) || names[n.Name] || hosts[h4] {
			t.Errorf("node %d %s has %s and %s", n.ID, n.Name, n.IPv4, n.IPv6)
		}
		names[n.Name], hosts[h4] = true, true
	}
	last := uint64(0)
	for free := 0; free < workers*each; {
		if last++; wide.usable(last) {
			if free++; !hosts[last] {
				t.Errorf("host part %d was left out", last)
			}
		}
	}
	checkScratch(t, st, store)
}

// The lowest free pair is taken: those of deleted nodes, and those that a failed update or commit did not use after all.
func TestLowestFreePair(t *testing.T) {
	store := statetest.New()
	st := open(t, options(store))
	user := addUser(t, st, "junyao")
	join := func() string {
		t.Helper()
		return joined(t, st, user).IPv4.String()
	}
	want := func(what, got, want string) {
		t.Helper()
		if got != want {
			t.Errorf("%s: got %s, want %s", what, got, want)
		}
	}
	put2 := func(fail error) func(*Tx) error {
		return func(tx *Tx) error {
			for range 2 {
				n, err := fresh(tx, "n", user)
				if err != nil {
					return err
				}
				if err := tx.PutNode(n); err != nil {
					return err
				}
			}
			return fail
		}
	}
	for i := 1; i <= 5; i++ {
		want("in order", join(), fmt.Sprintf("100.64.0.%d", i))
	}
	if err := st.Update(ctx, "fails", put2(errRefused)); err == nil {
		t.Fatal("it did not fail")
	}
	want("after an update that failed", join(), "100.64.0.6")
	store.FailCommits(1)
	if err := st.Update(ctx, "fails", put2(nil)); err == nil {
		t.Fatal("it did not fail")
	}
	want("after a commit that failed", join(), "100.64.0.7")
	must(t, st, func(tx *Tx) error { tx.DeleteNode(2); tx.DeleteNode(4); return nil })
	if err := st.Update(ctx, "fails", func(tx *Tx) error { tx.DeleteNode(1); return errRefused }); err == nil {
		t.Fatal("it did not fail")
	}
	want("the first of two deleted", join(), "100.64.0.2")
	want("the second of two deleted", join(), "100.64.0.4")
	want("after all gaps", join(), "100.64.0.8")

	// A node that gives up its address in the same update makes room for another.
	must(t, st, func(tx *Tx) error {
		if err := change(tx, 1, func(n *tailnet.Node) { n.IPv4, n.IPv6 = pair(99) }); err != nil {
			return err
		}
		n, err := fresh(tx, "n", user)
		if err != nil {
			return err
		}
		want("in the same update", n.IPv4.String(), "100.64.0.1")
		return tx.PutNode(n)
	})

	// One family of a pair in use is a pair in use: addresses were chosen otherwise once.
	must(t, st, func(tx *Tx) error {
		return change(tx, 1, func(n *tailnet.Node) { _, n.IPv6 = pair(9); n.IPv4, _ = pair(200) })
	})
	want("with ::9 in use", join(), "100.64.0.10")
	st.Close()
	st = open(t, options(store))
	want("after a restart", join(), "100.64.0.11")
	checkScratch(t, st, store)
}

// A range that is used up says so, names the prefixes, and works again when an address is given back.
func TestExhausted(t *testing.T) {
	for _, tc := range []struct {
		name string
		a    Addressing
		room int
	}{
		{"sequential /29", Addressing{Prefix4: netip.MustParsePrefix("100.64.0.0/29"), Prefix6: netip.MustParsePrefix("fd7a:115c:a1e0::/48")}, 6},
		{"random /29", Addressing{Prefix4: netip.MustParsePrefix("100.64.0.0/29"), Prefix6: netip.MustParsePrefix("fd7a:115c:a1e0::/48"), Random: true}, 6},
		{"IPv4 alone", Addressing{Prefix4: netip.MustParsePrefix("100.64.7.0/30")}, 2},
		{"IPv6 alone", Addressing{Prefix6: netip.MustParsePrefix("fd7a:115c:a1e0::/126")}, 3},
		{"around the reserved ones", Addressing{Prefix6: netip.MustParsePrefix("fd7a:115c:a1e0::50/125")}, 6},
		{"all reserved", Addressing{Prefix4: netip.MustParsePrefix("100.100.100.0/24")}, 0},
		{"a single address", Addressing{Prefix4: netip.MustParsePrefix("100.64.0.1/32")}, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o := options(statetest.New())
			o.Addressing = tc.a
			st := open(t, o)
			user := addUser(t, st, "junyao")
			seen := map[netip.Addr]bool{}
			for range tc.room {
				n := joined(t, st, user)
				for _, a := range n.Addrs() {
					if seen[a] || !tc.a.Prefix4.Contains(a) && !tc.a.Prefix6.Contains(a) {
						t.Errorf("node %d got %s", n.ID, a)
					}
					seen[a] = true
				}
				if (n.IPv4.IsValid() != tc.a.Prefix4.IsValid()) || (n.IPv6.IsValid() != tc.a.Prefix6.IsValid()) {
					t.Errorf("node %d got %v", n.ID, n.Addrs())
				}
			}
			full := st.Update(ctx, "one too many", func(tx *Tx) error { _, err := tx.NewNode("n"); return err })
			if tailnet.CodeOf(full) != tailnet.Exhausted {
				t.Fatalf("error %v, want Exhausted", full)
			}
			for _, p := range validPrefixes(tc.a.Prefix4, tc.a.Prefix6) {
				if !strings.Contains(full.Error(), p.String()) {
					t.Errorf("the error does not name %s: %v", p, full)
				}
			}
			if tc.room == 0 {
				return
			}
			gone := st.Snapshot().Node(1).IPv4
			must(t, st, func(tx *Tx) error { tx.DeleteNode(1); return nil })
			if n := joined(t, st, user); n.IPv4 != gone {
				t.Errorf("after a deletion the node got %s, want %s", n.IPv4, gone)
			}
		})
	}
}

// In random mode host parts match and are spread; the lowest pair is nothing special.
func TestRandomAddresses(t *testing.T) {
	o := options(statetest.New())
	o.Addressing.Random = true
	st := open(t, o)
	user := addUser(t, st, "junyao")
	low := 0
	for range 50 {
		n := joined(t, st, user)
		h4, ok4 := wide.host(n.IPv4)
		h6, ok6 := wide.host(n.IPv6)
		if !ok4 || !ok6 || h4 != h6 || !wide.usable(h4) {
			t.Errorf("node %d got %v", n.ID, n.Addrs())
		}
		if h4 < 1000 {
			low++
		}
	}
	if low > 10 { // one in 4,000 is expected
		t.Errorf("%d of 50 random addresses are among the lowest 1000", low)
	}
}
