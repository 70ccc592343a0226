package policy

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/skein-vpn/skein/tailnet"
)

// condition is one assertion of a posture: ATTRIBUTE OPERATOR VALUE.
//
//	node:os == 'macos'          custom:tier IN ['gold', 'silver']
//	node:tsVersion >= '1.80'    custom:tier NOT SET
type condition struct {
	attr string
	op   string   // == != < <= > >= IN "NOT IN" "IS SET" "NOT SET"; empty: the attribute is true
	vals []string // as they are written, without quotes
	num  bool     // of a comparison: vals[0] is a number without quotes
}

var (
	conditionForm = regexp.MustCompile(`^([A-Za-z][A-Za-z0-9_-]*:[A-Za-z0-9_./-]+)\s*(.*)$`)
	literalForm   = regexp.MustCompile(`^(?:'([^']*)'|"([^"]*)"|(true|false)|(-?[0-9]+(?:\.[0-9]+)?))$`)
)

func parseCondition(s string) (condition, error) {
	bad := fmt.Errorf("%q is not a condition such as \"node:os == 'macos'\", \"node:tsVersion >= '1.80'\", \"custom:x IN ['a', 'b']\" or \"custom:x IS SET\"", clip(s))
	m := conditionForm.FindStringSubmatch(s)
	if m == nil {
		return condition{}, bad
	}
	c := condition{attr: m[1]}
	rest := strings.TrimSpace(m[2])
	if rest == "" {
		return c, nil
	}
	for _, op := range []string{"IS SET", "NOT SET", "NOT IN", "IN", "==", "!=", "<=", ">=", "<", ">"} {
		arg, ok := strings.CutPrefix(rest, op)
		if !ok {
			continue
		}
		c.op, arg = op, strings.TrimSpace(arg)
		switch op {
		case "IS SET", "NOT SET":
			if arg != "" {
				return c, bad
			}
			return c, nil
		case "IN", "NOT IN":
			list, ok := strings.CutPrefix(arg, "[")
			list, ok2 := strings.CutSuffix(list, "]")
			if !ok || !ok2 {
				return c, bad
			}
			for part := range strings.SplitSeq(list, ",") {
				v, ok := literal(part)
				if !ok {
					return c, bad
				}
				c.vals = append(c.vals, v)
			}
			return c, nil
		default:
			v, ok := literal(arg)
			if !ok {
				return c, bad
			}
			c.vals, c.num = []string{v}, !strings.ContainsAny(arg, `'"`) && v != "true" && v != "false"
			return c, nil
		}
	}
	return c, bad
}

func literal(s string) (string, bool) {
	m := literalForm.FindStringSubmatch(strings.TrimSpace(s))
	if m == nil {
		return "", false
	}
	return m[1] + m[2] + m[3] + m[4], true
}

// knownAttribute reports whether anything here can ever set the attribute.
func knownAttribute(attr string) bool {
	return strings.HasPrefix(attr, "custom:") || slices.Contains([]string{
		"node:os", "node:osVersion", "node:tsVersion", "node:tsReleaseTrack", "node:tsAutoUpdate", "node:tsStateEncrypted", "node:hostname",
	}, attr)
}

// holds reports whether the attributes satisfy the condition. An attribute that is not set satisfies NOT SET, != and NOT
// IN, and nothing else.
func (c condition) holds(attrs map[string]string) bool {
	v, set := attrs[c.attr]
	switch c.op {
	case "":
		return v == "true"
	case "IS SET":
		return set
	case "NOT SET":
		return !set
	case "IN":
		return set && slices.Contains(c.vals, v)
	case "NOT IN":
		return !set || !slices.Contains(c.vals, v)
	case "==":
		return set && v == c.vals[0]
	case "!=":
		return !set || v != c.vals[0]
	}
	if !set {
		return false
	}
	switch n := c.compare(v); c.op {
	case "<":
		return n < 0
	case "<=":
		return n <= 0
	case ">":
		return n > 0
	default:
		return n >= 0
	}
}

// compare orders an attribute and the value: as numbers if the value is one, without quotes, and the attribute too; otherwise as
// versions.
func (c condition) compare(v string) int {
	if c.num {
		a, err := strconv.ParseFloat(v, 64)
		b, err2 := strconv.ParseFloat(c.vals[0], 64)
		if err == nil && err2 == nil {
			return cmp.Compare(a, b)
		}
	}
	return compareVersions(v, c.vals[0])
}

// compareVersions compares dotted numbers; what is not a number counts as its text. A missing part is 0.
func compareVersions(a, b string) int {
	as, bs := versionParts(a), versionParts(b)
	for i := range max(len(as), len(bs)) {
		x, y := "0", "0"
		if i < len(as) {
			x = as[i]
		}
		if i < len(bs) {
			y = bs[i]
		}
		m, errm := strconv.ParseUint(x, 10, 64)
		n, errn := strconv.ParseUint(y, 10, 64)
		switch {
		case errm == nil && errn == nil && m != n:
			if m < n {
				return -1
			}
			return 1
		case (errm != nil || errn != nil) && x != y:
			return strings.Compare(x, y)
		}
	}
	return 0
}

func versionParts(s string) []string {
	s, _, _ = strings.Cut(s, "-") // 1.80.0-tfe3e6d1e4
	return strings.Split(s, ".")
}

// Attributes are what postures can ask of n, by name: what its client says of itself and what administrators have given it.
func Attributes(n *tailnet.Node) map[string]string { return attributes(n, nil) }

// attributes are the posture attributes of n: what its client says of itself, and custom ones, whose names begin with
// custom:.
func attributes(n *tailnet.Node, custom func(*tailnet.Node) map[string]string) map[string]string {
	out := map[string]string{}
	if custom != nil {
		for k, v := range custom(n) {
			out[k] = v
		}
	}
	for _, a := range n.Attributes {
		out[a.Name] = a.Value
	}
	h := n.Hostinfo
	if h == nil {
		return out
	}
	set := func(k, v string) {
		if v != "" {
			out[k] = v
		}
	}
	set("node:os", osName(h.OS))
	set("node:osVersion", h.OSVersion)
	set("node:hostname", h.Hostname)
	if v, _, _ := strings.Cut(h.IPNVersion, "-"); v != "" {
		out["node:tsVersion"] = v
		out["node:tsReleaseTrack"] = "stable"
		if parts := strings.Split(v, "."); len(parts) > 1 {
			if minor, err := strconv.Atoi(parts[1]); err == nil && minor%2 == 1 {
				out["node:tsReleaseTrack"] = "unstable"
			}
		}
	}
	out["node:tsAutoUpdate"] = strconv.FormatBool(h.AllowsUpdate)
	if v, ok := h.StateEncrypted.Get(); ok {
		out["node:tsStateEncrypted"] = strconv.FormatBool(v)
	}
	return out
}

// osName is a client's operating system as policies call it.
func osName(s string) string {
	switch s {
	case "macOS":
		return "macos"
	case "iOS":
		return "ios"
	}
	return strings.ToLower(s)
}
