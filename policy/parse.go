package policy

import (
	"bytes"
	"fmt"
	"sort"
	"strings"
	"unicode/utf8"

	"github.com/tailscale/hujson"
)

// Limits of what Parse reads. They are far beyond what anybody writes and keep a hostile file from eating the server.
const (
	MaxSize   = 10 << 20 // bytes of a policy
	maxDepth  = 64       // objects and arrays inside each other
	maxValues = 500_000  // elements of objects and arrays, all together
	maxErrors = 20       // faults reported of one policy
	maxEcho   = 120      // bytes of the policy's own text quoted in an error
)

// Error is one fault of a policy and where it stands.
type Error struct {
	Line, Column int    // from 1; columns count bytes. Zero: the fault is not at one place
	Path         string // such as acls[2].src[0]; empty at the top
	Text         string // what is wrong and what would be right
	User         string // Compiled.UnknownUsers: the name that nobody has
}

func (e *Error) Error() string {
	var b strings.Builder
	if e.Line > 0 {
		fmt.Fprintf(&b, "line %d, column %d: ", e.Line, e.Column)
	}
	if e.Path != "" {
		b.WriteString(e.Path + ": ")
	}
	b.WriteString(e.Text)
	return b.String()
}

// Errors are the faults of one policy, in the order of the text; there is at least one. The sentences are safe for users.
type Errors []*Error

func (es Errors) Error() string {
	lines := make([]string, len(es))
	for i, e := range es {
		lines[i] = e.Error()
	}
	return strings.Join(lines, "\n")
}

// Warning is something a policy says that is accepted and has no effect.
type Warning struct {
	Line int
	Text string
}

// Parse reads a policy. The text is HuJSON: JSON with comments and trailing commas. An error is Errors, with all faults
// that were found (up to a limit); nothing of src is kept but a copy.
func Parse(src []byte) (*Policy, error) {
	if len(src) > MaxSize {
		return nil, Errors{{Text: fmt.Sprintf("the policy has %d bytes; the limit is %d", len(src), MaxSize)}}
	}
	d := &decoder{src: bytes.Clone(src)}
	for i, b := range d.src {
		if b == '\n' {
			d.newlines = append(d.newlines, i)
		}
	}
	if !d.scan() {
		return nil, Errors(d.errs)
	}
	if len(bytes.TrimSpace(d.src)) == 0 {
		return nil, Errors{{Line: 1, Column: 1, Text: "the policy is empty; the smallest one is {}"}}
	}
	v, err := hujson.Parse(d.src)
	if err != nil {
		return nil, Errors{d.syntax(err)}
	}
	p := newPolicy(d)
	p.decode(value{d, &v, ""})
	if len(d.errs) > 0 {
		sort.SliceStable(d.errs, func(i, j int) bool {
			a, b := d.errs[i], d.errs[j]
			return a.Line < b.Line || a.Line == b.Line && a.Column < b.Column
		})
		return nil, Errors(d.errs)
	}
	return p, nil
}

// decoder knows the text and collects the faults.
type decoder struct {
	src      []byte
	newlines []int // offsets
	errs     []*Error
	warnings []Warning
}

func (d *decoder) position(off int) (line, column int) {
	i := sort.SearchInts(d.newlines, off)
	if i == 0 {
		return 1, off + 1
	}
	return i + 1, off - d.newlines[i-1]
}

func (d *decoder) line(off int) int { l, _ := d.position(off); return l }

func (d *decoder) fail(off int, path, format string, args ...any) {
	if len(d.errs) >= maxErrors {
		return
	}
	l, c := d.position(off)
	d.errs = append(d.errs, &Error{Line: l, Column: c, Path: path, Text: fmt.Sprintf(format, args...)})
}

func (d *decoder) warn(off int, format string, args ...any) {
	if len(d.warnings) < maxErrors {
		d.warnings = append(d.warnings, Warning{d.line(off), fmt.Sprintf(format, args...)})
	}
}

// syntax puts a fault that hujson found into our words; it counts columns as we do.
func (d *decoder) syntax(err error) *Error {
	e := &Error{}
	text := strings.TrimPrefix(err.Error(), "hujson: ")
	if n, _ := fmt.Sscanf(text, "line %d, column %d:", &e.Line, &e.Column); n == 2 {
		if _, rest, ok := strings.Cut(text, ": "); ok {
			text = rest
		}
	}
	e.Text = "not valid HuJSON: " + clip(text)
	return e
}

// scan looks at the raw text before anything recursive does: whether it is UTF-8, how deep it nests, how much it holds.
func (d *decoder) scan() bool {
	src := d.src
	if !utf8.Valid(src) {
		for i := 0; i < len(src); {
			r, n := utf8.DecodeRune(src[i:])
			if r == utf8.RuneError && n == 1 {
				d.fail(i, "", "byte 0x%02x is not valid UTF-8; save the policy as UTF-8", src[i])
				return false
			}
			i += n
		}
	}
	depth, values := 0, 0
	for i := 0; i < len(src); i++ {
		switch src[i] {
		case '"':
			for i++; i < len(src) && src[i] != '"'; i++ {
				if src[i] == '\\' {
					i++
				}
			}
		case '/':
			i = skipComment(src, i)
		case '{', '[':
			if depth++; depth > maxDepth {
				d.fail(i, "", "more than %d objects and arrays inside each other", maxDepth)
				return false
			}
		case '}', ']':
			depth--
		case ',', ':':
			if values++; values > maxValues {
				d.fail(i, "", "more than %d elements in one policy", maxValues)
				return false
			}
		}
	}
	return true
}

// skipComment returns the last byte of the comment that begins at i, or i if none does.
func skipComment(src []byte, i int) int {
	rest := src[i:]
	switch {
	case bytes.HasPrefix(rest, []byte("//")):
		if n := bytes.IndexByte(rest, '\n'); n >= 0 {
			return i + n
		}
		return len(src)
	case bytes.HasPrefix(rest, []byte("/*")):
		if n := bytes.Index(rest[2:], []byte("*/")); n >= 0 {
			return i + n + 3
		}
		return len(src)
	}
	return i
}

// clip shortens text of the policy for an error.
func clip(s string) string {
	if len(s) <= maxEcho {
		return s
	}
	n := maxEcho
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}

// word is a string of the policy, without the blanks around it, and where it stands.
type word struct {
	text string
	off  int
	path string
}

// value is a JSON value of the policy.
type value struct {
	d    *decoder
	v    *hujson.Value
	path string
}

func (v value) off() int { return v.v.StartOffset }

func (v value) fail(format string, args ...any) { v.d.fail(v.off(), v.path, format, args...) }

func (v value) null() bool {
	l, ok := v.v.Value.(hujson.Literal)
	return ok && l.Kind() == 'n'
}

// is names the value's type in an error.
func (v value) is() string {
	switch v.v.Value.Kind() {
	case '{':
		return "an object"
	case '[':
		return "an array"
	case '"':
		return "a string"
	case 't', 'f':
		return "true or false"
	case 'n':
		return "null"
	default:
		return "a number"
	}
}

// member is one name of an object. Names are taken once whatever their case, as encoding/json does.
type member struct {
	key string
	off int // of the key
	value
}

// members are the names of an object, in order; none for null. A name given twice is a fault.
func (v value) members() []member {
	if v.null() {
		return nil
	}
	obj, ok := v.v.Value.(*hujson.Object)
	if !ok {
		v.fail("this is %s, want an object {…}", v.is())
		return nil
	}
	out := make([]member, 0, len(obj.Members))
	seen := make(map[string]int, len(obj.Members))
	for i := range obj.Members {
		m := &obj.Members[i]
		lit, _ := m.Name.Value.(hujson.Literal)
		key := lit.String()
		path := key
		if v.path != "" {
			path = v.path + "." + key
			if strings.ContainsAny(key, ".:/*[]\" ") {
				path = v.path + "[" + fmt.Sprintf("%q", clip(key)) + "]"
			}
		}
		if first, dup := seen[key]; dup {
			v.d.fail(m.Name.StartOffset, clip(path), "duplicate key %q: it stands in line %d already", clip(key), v.d.line(first))
			continue
		}
		seen[key] = m.Name.StartOffset
		out = append(out, member{key, m.Name.StartOffset, value{v.d, &m.Value, clip(path)}})
	}
	return out
}

// unknown reports a name that the language does not have.
func (m member) unknown(known ...string) {
	text := fmt.Sprintf("unknown field %q", clip(m.key))
	if best := closest(m.key, known); best != "" {
		text += fmt.Sprintf("; did you mean %q?", best)
	} else if len(known) > 0 {
		text += "; known are " + strings.Join(known, ", ")
	}
	m.d.fail(m.off, m.path, "%s", text)
}

// elements are the values of an array; none for null.
func (v value) elements() []value {
	if v.null() {
		return nil
	}
	arr, ok := v.v.Value.(*hujson.Array)
	if !ok {
		v.fail("this is %s, want an array […]", v.is())
		return nil
	}
	out := make([]value, len(arr.Elements))
	for i := range arr.Elements {
		out[i] = value{v.d, &arr.Elements[i], fmt.Sprintf("%s[%d]", v.path, i)}
	}
	return out
}

// str is a string without the blanks around it; null is the empty one.
func (v value) str() string { return v.word().text }

func (v value) word() word {
	w := word{off: v.off(), path: v.path}
	if v.null() {
		return w
	}
	lit, ok := v.v.Value.(hujson.Literal)
	if !ok || lit.Kind() != '"' {
		v.fail("this is %s, want a string", v.is())
		return w
	}
	w.text = strings.TrimSpace(lit.String())
	return w
}

func (v value) words() []word {
	es := v.elements()
	out := make([]word, len(es))
	for i, e := range es {
		out[i] = e.word()
	}
	return out
}

func (v value) boolean() bool {
	if v.null() {
		return false
	}
	lit, ok := v.v.Value.(hujson.Literal)
	if !ok || lit.Kind() != 't' && lit.Kind() != 'f' {
		v.fail("this is %s, want true or false", v.is())
		return false
	}
	return lit.Bool()
}

// raw is the value as plain JSON.
func (v value) raw() string {
	c := v.v.Clone()
	c.Minimize()
	return string(c.Pack())
}

// closest is the known name that s was probably meant to be; empty if none is near.
func closest(s string, known []string) string {
	best, dist := "", 3
	for _, k := range known {
		if len(s) > 40 {
			break
		}
		if n := distance(strings.ToLower(s), strings.ToLower(k)); n < dist {
			best, dist = k, n
		}
	}
	return best
}

// distance is the number of letters to change, add or drop to get from a to b.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		prev := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			prev, row[j] = row[j], min(row[j]+1, row[j-1]+1, prev+cost)
		}
	}
	return row[len(b)]
}
