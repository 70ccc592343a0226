package state

import "maps"

// table is a map that is never written to: a changed one shares nearly all of it with the one before. It has two layers, of
// which only the small one is copied for a change; when that has grown it is merged into the large one.
//
//	base: key → value     over: key → value, or the zero value for a key that has gone from base
type table[K comparable, V any] struct {
	base, over map[K]V
}

const (
	overRoom  = 64 // entries that over may have in any case,
	overShare = 16 // and beyond that, as many as this part of base
)

// get is the value of k, or the zero value.
func (t table[K, V]) get(k K) V {
	if v, ok := t.over[k]; ok {
		return v
	}
	return t.base[k]
}

// with is t with other values for some keys; the zero value takes a key out. same compares values.
func (t table[K, V]) with(changes map[K]V, same func(a, b V) bool) table[K, V] {
	copied := false
	for k, v := range changes {
		if same(t.get(k), v) {
			continue
		}
		if !copied {
			over := make(map[K]V, len(t.over)+len(changes))
			maps.Copy(over, t.over)
			t.over, copied = over, true
		}
		t.over[k] = v
	}
	if len(t.over) > overRoom+len(t.base)/overShare {
		t.base, t.over = t.merged(same), nil
	}
	return t
}

// merged is the table as one map.
func (t table[K, V]) merged(same func(a, b V) bool) map[K]V {
	var gone V
	out := make(map[K]V, len(t.base)+len(t.over))
	maps.Copy(out, t.base)
	for k, v := range t.over {
		if same(v, gone) {
			delete(out, k)
		} else {
			out[k] = v
		}
	}
	return out
}

func same[V comparable](a, b V) bool { return a == b }
