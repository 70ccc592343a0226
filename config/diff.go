package config

import "reflect"

// Diff compares the settings before and after a reload and returns the keys whose values differ: those that a running server
// takes over, and those that need a restart. Where values came from does not count.
func Diff(old, new *Config) (live, restart []string) {
	for _, k := range keyList {
		a, b := old.field(k), new.field(k)
		if reflect.DeepEqual(a.Interface(), b.Interface()) || isEmpty(a) && isEmpty(b) {
			continue
		}
		if k.live {
			live = append(live, k.name)
		} else {
			restart = append(restart, k.name)
		}
	}
	return live, restart
}

// isEmpty treats a nil list as an empty one.
func isEmpty(v reflect.Value) bool {
	return (v.Kind() == reflect.Slice || v.Kind() == reflect.Map) && v.Len() == 0
}
