package takeover

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The values of a row. headscale's columns have had several types and spellings; what cannot be read is as good as absent, and
// the callers say so where it matters.

func (r row) id(column string) int64 {
	n, err := strconv.ParseInt(strings.TrimSpace(r[column]), 10, 64)
	if err != nil || n < 0 {
		return 0
	}
	return n
}

// flag is a column of SQLite's numeric, which holds 0 and 1 or the words, or PostgreSQL's boolean.
func (r row) flag(column string) bool {
	return slices.Contains([]string{"1", "1.0", "t", "true"}, strings.ToLower(strings.TrimSpace(r[column])))
}

var timeLayouts = []string{
	"2006-01-02 15:04:05.999999999-07:00", "2006-01-02 15:04:05.999999999-07", time.RFC3339Nano,
	"2006-01-02 15:04:05.999999999 -0700 MST", "2006-01-02 15:04:05.999999999", "2006-01-02T15:04:05.999999999", "2006-01-02",
}

// time is a time, zero if there is none: headscale writes the year 1 for "never", too. Go's own form may end in a monotonic
// reading.
func (r row) time(column string) (t time.Time, ok bool) {
	text := strings.TrimSpace(r[column])
	if text == "" {
		return t, true
	}
	text, _, _ = strings.Cut(text, " m=")
	for _, layout := range timeLayouts {
		if t, err := time.Parse(layout, text); err == nil {
			t = t.UTC()
			if t.Year() <= 1 {
				return time.Time{}, true
			}
			return t, t.Year() < 10000
		}
	}
	return time.Time{}, false
}

// list is a JSON list of strings; null, an empty string and NULL are none.
func (r row) list(column string) (out []string, ok bool) {
	text := strings.TrimSpace(r[column])
	if text == "" {
		return nil, true
	}
	if err := json.Unmarshal([]byte(text), &out); err != nil {
		return nil, false
	}
	return out, true
}

// deleted reports whether a row is only kept as a memory.
func (r row) deleted() bool {
	t, ok := r.time("deleted_at")
	return !ok || !t.IsZero()
}
