package policy

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/tailscale/hujson"
)

// Variations of recorded policies that say the same in other words: the answer must stay what was recorded. They show where the
// compiler follows the words of a case and not the language.

// doc is a policy as plain JSON.
type doc map[string]any

func (d doc) rules(section string) []map[string]any {
	var out []map[string]any
	list, _ := d[section].([]any)
	for _, r := range list {
		out = append(out, r.(map[string]any))
	}
	return out
}

func (d doc) section(name string) map[string]any {
	m, ok := d[name].(map[string]any)
	if !ok {
		m = map[string]any{}
		d[name] = m
	}
	return m
}

func stringsOf(v any) (out []string) {
	list, _ := v.([]any)
	for _, s := range list {
		out = append(out, s.(string))
	}
	return out
}

// words replaces each src and dst of acls and grants by what f makes of it. side is src or dst; ports of acls are not part of the
// word. No word, no change.
func (d doc) words(f func(rule map[string]any, side, word string) []string) {
	for _, section := range []string{"acls", "grants"} {
		for _, r := range d.rules(section) {
			for _, side := range []string{"src", "dst"} {
				if r[side] == nil {
					continue
				}
				var out []any
				for _, w := range stringsOf(r[side]) {
					word, port := w, ""
					if side == "dst" && section == "acls" {
						i := strings.LastIndexByte(w, ':')
						word, port = w[:i], w[i:]
					}
					next := f(r, side, word)
					if next == nil {
						next = []string{word}
					}
					for _, n := range next {
						out = append(out, n+port)
					}
				}
				r[side] = out
			}
		}
	}
}

// variations are the ways of saying the same. Each reports whether it has changed anything.
var variations = map[string]func(c *recordedCase, d doc) bool{
	"acls as grants": func(_ *recordedCase, d doc) bool {
		var grants []any
		for _, a := range d.rules("acls") {
			for _, dst := range stringsOf(a["dst"]) {
				host, list, err := splitPort(dst)
				if err != nil || host == "autogroup:self" && slices.Contains(stringsOf(a["src"]), "*") {
					return false
				}
				var ip []any
				for port := range strings.SplitSeq(list, ",") {
					if proto, ok := a["proto"].(string); ok && proto != "" {
						port = proto + ":" + port
					}
					ip = append(ip, port)
				}
				grants = append(grants, map[string]any{"src": a["src"], "dst": []any{host}, "ip": ip})
			}
		}
		if grants == nil {
			return false
		}
		old, _ := d["grants"].([]any)
		d["grants"] = append(grants, old...)
		delete(d, "acls")
		return true
	},
	"users as groups": func(_ *recordedCase, d doc) (changed bool) {
		groups := d.section("groups")
		d.words(func(_ map[string]any, _, w string) []string {
			if !strings.Contains(w, "@") || strings.Contains(w, "*") {
				return nil
			}
			changed = true
			name := "group:only-" + strings.NewReplacer("@", "-at-", ".", "-").Replace(w)
			groups[name] = []any{w}
			return []string{name}
		})
		return changed
	},
	"groups as users": func(_ *recordedCase, d doc) (changed bool) {
		groups := d.section("groups")
		d.words(func(_ map[string]any, _, w string) []string {
			members := stringsOf(groups[w])
			changed = changed || len(members) > 0
			return members
		})
		return changed
	},
	"groups in groups": func(_ *recordedCase, d doc) (changed bool) {
		groups := d.section("groups")
		d.words(func(_ map[string]any, _, w string) []string {
			if !strings.HasPrefix(w, "group:") {
				return nil
			}
			changed = true
			groups[w+"-outer"], groups[w+"-outermost"] = []any{w}, []any{w + "-outer", w}
			return []string{w + "-outermost"}
		})
		return changed
	},
	"members as users": func(c *recordedCase, d doc) (changed bool) {
		d.words(func(_ map[string]any, _, w string) (out []string) {
			if w == "autogroup:member" {
				for _, u := range c.Users {
					out = append(out, u.Login)
				}
				changed = true
			}
			return out
		})
		return changed
	},
	"tagged as tags": func(c *recordedCase, d doc) (changed bool) {
		d.words(func(_ map[string]any, _, w string) []string {
			if w != "autogroup:tagged" {
				return nil
			}
			changed = true
			return slices.Sorted(maps.Keys(d.section("tagOwners")))
		})
		return changed
	},
	"hosts as addresses": func(_ *recordedCase, d doc) (changed bool) {
		hosts := d.section("hosts")
		d.words(func(_ map[string]any, _, w string) []string {
			a, ok := hosts[w].(string)
			if !ok {
				return nil
			}
			changed = true
			return []string{a}
		})
		return changed
	},
	"addresses as hosts": func(_ *recordedCase, d doc) (changed bool) {
		hosts := d.section("hosts")
		d.words(func(_ map[string]any, _, w string) []string {
			if _, err := parseNet(w); err != nil {
				return nil
			}
			changed = true
			name := fmt.Sprintf("alias-%d", len(hosts))
			hosts[name] = w
			return []string{name}
		})
		return changed
	},
	"addresses as ipsets": func(_ *recordedCase, d doc) (changed bool) {
		sets := d.section("ipsets")
		d.words(func(_ map[string]any, _, w string) []string {
			n, err := parseNet(w)
			if err != nil {
				return nil
			}
			changed = true
			name := fmt.Sprintf("ipset:set-%d", len(sets))
			parts := []any{"add " + w}
			if n.Addr().Is4() && n.IsSingleIP() { // more than is meant, and the rest away again
				wide := netip.PrefixFrom(n.Addr(), 30).Masked()
				parts = []any{"add " + wide.String()}
				for a := wide.Addr(); wide.Contains(a); a = a.Next() {
					if a != n.Addr() {
						parts = append(parts, "remove "+a.String())
					}
				}
			}
			sets[name] = parts
			return []string{name}
		})
		return changed
	},
	"one rule for each pair": func(_ *recordedCase, d doc) (changed bool) {
		for _, section := range []string{"acls", "grants"} {
			var out []any
			for _, r := range d.rules(section) {
				srcs, dsts := stringsOf(r["src"]), stringsOf(r["dst"])
				if len(srcs)*len(dsts) == 0 {
					out = append(out, r)
					continue
				}
				changed = changed || len(srcs)*len(dsts) > 1
				for _, src := range srcs {
					for _, dst := range dsts {
						one := maps.Clone(r)
						one["src"], one["dst"] = []any{src}, []any{dst}
						out = append(out, one)
					}
				}
			}
			if _, ok := d[section]; ok {
				d[section] = append([]any{}, out...)
			}
		}
		return changed
	},
	"every rule twice": func(_ *recordedCase, d doc) (changed bool) {
		for _, section := range []string{"acls", "grants"} {
			if list, ok := d[section].([]any); ok && len(list) > 0 {
				d[section] = append(slices.Clone(list), list...)
				changed = true
			}
		}
		return changed
	},
	"rules the other way round": func(_ *recordedCase, d doc) (changed bool) {
		for _, section := range []string{"acls", "grants"} {
			if list, ok := d[section].([]any); ok && len(list) > 1 {
				slices.Reverse(list)
				changed = true
			}
		}
		return changed
	},
	"every word twice": func(_ *recordedCase, d doc) (changed bool) {
		d.words(func(_ map[string]any, _, w string) []string { changed = true; return []string{w, " " + w} })
		return changed
	},
	"ranges in two": func(_ *recordedCase, d doc) (changed bool) {
		for _, r := range d.rules("acls") {
			var out []any
			for _, w := range stringsOf(r["dst"]) {
				host, list, _ := splitPort(w)
				if lo, hi, ok := strings.Cut(list, "-"); ok && !strings.Contains(list, ",") {
					var first int
					_, _ = fmt.Sscan(lo, &first)
					list = fmt.Sprintf("%d,%d-%s", first, first+1, hi)
					changed = true
				}
				out = append(out, host+":"+list)
			}
			r["dst"] = out
		}
		return changed
	},
	"protocols as numbers": func(_ *recordedCase, d doc) (changed bool) {
		for _, r := range d.rules("acls") {
			for name, number := range map[string]string{"tcp": "6", "udp": "17"} {
				if r["proto"] == name {
					r["proto"], changed = number, true
				}
			}
		}
		for _, r := range d.rules("grants") {
			list, _ := r["ip"].([]any)
			for i, v := range list {
				next := strings.NewReplacer("tcp:", "6:", "udp:", "17:").Replace(v.(string))
				changed = changed || next != v
				list[i] = next
			}
		}
		return changed
	},
	"a posture that all satisfy": func(_ *recordedCase, d doc) (changed bool) {
		d.section("postures")["posture:any"] = []any{"node:os == 'linux'"}
		for _, section := range []string{"acls", "grants"} {
			for _, r := range d.rules(section) {
				nodes := true // sources that are addresses or everything stand for routes too, which satisfy nothing
				for _, w := range stringsOf(r["src"]) {
					_, err := parseNet(w)
					nodes = nodes && err != nil && w != "*" && w != "autogroup:danger-all" && d.section("hosts")[w] == nil
				}
				if nodes && r["src"] != nil {
					r["srcPosture"], changed = []any{"posture:any"}, true
				}
			}
		}
		return changed
	},
}

// TestVariations: what recorded policies mean does not depend on how they say it.
func TestVariations(t *testing.T) {
	counts := map[string]int{}
	for _, c := range loadCases(t) {
		if c.SkipReason != "" {
			continue
		}
		for _, name := range slices.Sorted(maps.Keys(variations)) {
			var d doc
			std, err := hujson.Standardize([]byte(c.Policy))
			if err != nil || json.Unmarshal(std, &d) != nil {
				break
			}
			// A rule that is refused for its words is no rule to say otherwise.
			if c.Expect.HTTPStatus != 200 && c.Expect.ErrorMessage != "test(s) failed" || !variations[name](&c, d) {
				continue
			}
			b, err := json.Marshal(d)
			if err != nil {
				t.Fatal(err)
			}
			v := c
			v.Policy = string(b)
			counts[name]++
			got := runCase(&v)
			if (got.err == nil) != (c.Expect.HTTPStatus == 200) {
				t.Errorf("%s: %s: %v; recorded was %d\n%s\n%s", c.ID, name, got.err, c.Expect.HTTPStatus, c.Policy, v.Policy)
				continue
			}
			if got.err != nil {
				continue
			}
			for _, n := range c.Nodes {
				want, ok := c.Expect.PerNode[n.Hostname]
				if !ok {
					continue
				}
				have := got.state[n.Hostname]
				withStanding(&want, &have)
				for field, diff := range compareStates(want, have) {
					if !slices.Contains(c.Doubt.Fields, field) {
						t.Errorf("%s: %s: %s: %s: %s\n%s\n%s", c.ID, name, n.Hostname, field, diff, c.Policy, v.Policy)
					}
				}
			}
			if t.Failed() && counts[name] > 400 {
				return
			}
		}
	}
	for name := range variations {
		if counts[name] == 0 {
			t.Errorf("%s: no policy is varied", name)
		}
	}
	t.Log(counts)
}
