package routes

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/skein-vpn/skein/tailnet"
)

var (
	p1 = netip.MustParsePrefix("192.168.199.0/24")
	p2 = netip.MustParsePrefix("10.0.0.0/8")
)

// parse reads candidates as the tables below write them, in the order of their creation: "1+ 2 3-" is node 1, steady; node
// 2, usable; and node 3, not usable.
func parse(s string) (out []Candidate) {
	for _, f := range strings.Fields(s) {
		c := Candidate{Node: tailnet.NodeID(f[0] - '0'), Usable: !strings.HasSuffix(f, "-"), Steady: strings.HasSuffix(f, "+")}
		out = append(out, c)
	}
	return out
}

func TestElect(t *testing.T) {
	for _, tc := range []struct {
		what    string
		current tailnet.NodeID
		cands   string
		want    tailnet.NodeID
	}{
		{"nobody", 0, "", 0},
		{"the only one left", 1, "", 0},
		{"one", 0, "1", 1},
		{"one that is gone", 0, "1-", 1},
		{"the first of two", 0, "1 2", 1},
		{"the first is gone", 0, "1- 2", 2},
		{"it stays with the second until the first is steady", 2, "1 2", 2},
		{"the first is steady", 2, "1+ 2", 1},
		{"the first is steady, the second as well", 2, "1+ 2+", 1},
		{"a later one is steady", 1, "1 2+", 1},
		{"the primary goes", 1, "1- 2 3", 2},
		{"the primary goes, and the next is gone, too", 1, "1- 2- 3", 3},
		{"all are gone: it stays", 2, "1- 2- 3-", 2},
		{"all are gone, and the primary is none of them", 7, "1- 2-", 1},
		{"the primary is no candidate any more", 7, "1 2+", 1},
		{"steady but gone", 2, "1- 2", 2},
		{"the order is that of creation, not of ids", 0, "5 3 1", 5},
		{"the one created first takes it back, whatever its id", 1, "5+ 1", 5},
		{"of two steady ones the first", 3, "1+ 2+ 3", 1},
	} {
		prev := NewTable(nil)
		if tc.current != 0 {
			prev = NewTable(map[netip.Prefix]tailnet.NodeID{p1: tc.current})
		}
		cs := parse(tc.cands)
		for i := range cs { // "+" on a node that is gone means nothing
			cs[i].Steady = cs[i].Steady || !cs[i].Usable && tc.what == "steady but gone"
		}
		if got := Elect(prev, map[netip.Prefix][]Candidate{p1: cs}).Primary(p1); got != tc.want {
			t.Errorf("%s: %q with primary %d elects %d, want %d", tc.what, tc.cands, tc.current, got, tc.want)
		}
		if prev.Primary(p1) != tc.current {
			t.Errorf("%s: the table before has changed", tc.what)
		}
	}
}

func TestTable(t *testing.T) {
	var none *Table
	if none.Primary(p1) != 0 || none.Len() != 0 {
		t.Error("a nil table is not empty")
	}
	if Elect(none, nil) != none || Elect(none, map[netip.Prefix][]Candidate{p1: nil}) != none {
		t.Error("nothing became something")
	}
	m := map[netip.Prefix]tailnet.NodeID{p1: 1, p2: 2}
	tab := NewTable(m)
	m[p1] = 9
	if tab.Primary(p1) != 1 || tab.Len() != 2 {
		t.Error("the table shares its map")
	}
	// Prefixes that are not asked about stay; without a change the table is the same one.
	if next := Elect(tab, map[netip.Prefix][]Candidate{p1: parse("1 3")}); next != tab {
		t.Error("a table without a change is another one")
	}
	next := Elect(tab, map[netip.Prefix][]Candidate{p1: parse("1- 3")})
	if next.Primary(p1) != 3 || next.Primary(p2) != 2 || tab.Primary(p1) != 1 {
		t.Errorf("p1 %d, p2 %d", next.Primary(p1), next.Primary(p2))
	}
	if last := Elect(next, map[netip.Prefix][]Candidate{p1: nil}); last.Len() != 1 || last.Primary(p1) != 0 {
		t.Error("a prefix without candidates is still carried")
	}
}

// For any candidates: the elected one is a candidate, usable if anybody is; electing again changes nothing; and the prefix
// moves only for a reason.
func TestElectProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ids := rapid.Permutation([]tailnet.NodeID{1, 2, 3, 4, 5}).Draw(t, "ids")[:rapid.IntRange(0, 5).Draw(t, "n")]
		var cs []Candidate
		for _, id := range ids {
			cs = append(cs, Candidate{Node: id, Usable: rapid.Bool().Draw(t, "usable"), Steady: rapid.Bool().Draw(t, "steady")})
		}
		was := rapid.SampledFrom([]tailnet.NodeID{0, 1, 2, 3, 9}).Draw(t, "was")
		prev := NewTable(nil)
		if was != 0 {
			prev = NewTable(map[netip.Prefix]tailnet.NodeID{p1: was})
		}
		cands := map[netip.Prefix][]Candidate{p1: cs}
		tab := Elect(prev, cands)
		got := tab.Primary(p1)
		i := slices.IndexFunc(cs, func(c Candidate) bool { return c.Node == got })
		anybody := slices.ContainsFunc(cs, func(c Candidate) bool { return c.Usable })
		switch {
		case len(cs) == 0 && got != 0, len(cs) > 0 && i < 0:
			t.Fatalf("elected %d of %+v", got, cs)
		case i >= 0 && anybody && !cs[i].Usable:
			t.Fatalf("elected %d, which is not usable, of %+v", got, cs)
		}
		if again := Elect(tab, cands); again != tab {
			t.Fatalf("electing again gives %v after %v, of %+v", maps.Clone(again.primary), maps.Clone(tab.primary), cs)
		}
		j := slices.IndexFunc(cs, func(c Candidate) bool { return c.Node == was })
		if j >= 0 && got != was && cs[j].Usable && (i > j || !cs[i].Steady) {
			t.Fatalf("it moved from %d to %d without need, of %+v", was, got, cs)
		}
		if j >= 0 && !anybody && got != was {
			t.Fatalf("it moved from %d to %d though nobody is usable", was, got)
		}
	})
}
