package state

import (
	"maps"
	"testing"

	"pgregory.net/rapid"
)

// A table is a map, whatever is changed in whichever order, and older ones stay what they were.
func TestTable(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type version struct {
			t table[int, int]
			m map[int]int
		}
		is := func(v version) bool {
			for k := range 400 {
				if v.t.get(k) != v.m[k] {
					return false
				}
			}
			return maps.Equal(v.t.merged(same), v.m)
		}
		now := version{table[int, int]{base: map[int]int{}}, map[int]int{}}
		var before []version
		for range rapid.IntRange(1, 60).Draw(t, "changes") {
			before = append(before, now)
			changes := rapid.MapOfN(rapid.IntRange(0, 399), rapid.IntRange(0, 2), 0, 30).Draw(t, "change")
			now = version{now.t.with(changes, same), maps.Clone(now.m)}
			for k, v := range changes {
				if v == 0 {
					delete(now.m, k)
				} else {
					now.m[k] = v
				}
			}
			if limit := overRoom + len(now.t.base)/overShare; len(now.t.over) > limit {
				t.Fatalf("%d entries are not merged, with %d below", len(now.t.over), len(now.t.base))
			}
		}
		for i, v := range append(before, now) {
			if !is(v) {
				t.Fatalf("version %d is %v over %v, want %v", i, v.t.over, v.t.base, v.m)
			}
		}
	})
}
