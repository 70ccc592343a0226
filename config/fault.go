package config

import (
	"fmt"
	"strings"
)

// Fault is one thing wrong with the configuration.
type Fault struct {
	Key   string // dotted, or the name of an unknown key; empty if the fault is about the whole file
	Place string // where the value came from: a file, an environment variable, a flag; empty for a default
	Line  int    // in the file; 0 if it did not come from one
	Text  string // what is wrong and what would be right, safe for users
}

// Error is one line: "config.yaml:12: dns.base_domain: …".
func (f Fault) Error() string {
	var b strings.Builder
	if f.Place != "" {
		b.WriteString(f.Place)
		if f.Line > 0 {
			fmt.Fprintf(&b, ":%d", f.Line)
		}
		b.WriteString(": ")
	}
	if f.Key != "" {
		b.WriteString(clip(f.Key) + ": ")
	}
	return b.String() + clip(f.Text)
}

// clip shortens what quotes an oversized value.
func clip(s string) string {
	const most = 400
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most/2], "") + " … " + strings.ToValidUTF8(s[len(s)-most/2:], "")
}

// Faults are all things wrong, in the order of the file and then of the keys. It is never empty when used as an error.
type Faults []Fault

// Error is one line for each fault.
func (fs Faults) Error() string {
	lines := make([]string, len(fs))
	for i, f := range fs {
		lines[i] = f.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap gives errors.Is and errors.As the single faults.
func (fs Faults) Unwrap() []error {
	errs := make([]error, len(fs))
	for i, f := range fs {
		errs[i] = f
	}
	return errs
}

// err returns nil for no faults.
func (fs Faults) err() error {
	if len(fs) == 0 {
		return nil
	}
	return fs
}

// nearest returns the candidate that s was probably meant to be, or "". Dots count like underscores, and a candidate that starts
// or ends with s is near: people leave out the section or the end.
func nearest(s string, candidates []string) string {
	plain := strings.NewReplacer(".", "_", "-", "_").Replace
	want := plain(strings.ToLower(s))
	best, bestDist := "", len(want)/3+2 // one more than allowed
	for _, c := range candidates {
		have := plain(strings.ToLower(c))
		d := editDistance(want, have, bestDist)
		if strings.HasSuffix(have, "_"+want) || strings.HasPrefix(have, want+"_") {
			d = min(d, 1)
		}
		if d < bestDist {
			best, bestDist = c, d
		}
	}
	return best
}

// editDistance counts insertions, deletions, replacements and swaps of neighbours, giving up at limit.
func editDistance(a, b string, limit int) int {
	if d := len(a) - len(b); d >= limit || -d >= limit || len(a) > 200 {
		return limit
	}
	prev2, prev, cur := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				cur[j] = min(cur[j], prev2[j-2]+1)
			}
		}
		prev2, prev, cur = prev, cur, prev2
	}
	return min(prev[len(b)], limit)
}
