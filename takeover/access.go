package takeover

import (
	"encoding/json"
	"slices"
	"strings"

	"github.com/tailscale/hujson"

	"github.com/skein-vpn/skein/policy"
)

// maxAccess bounds the lines that a report has about who gains or loses access.
const maxAccess = 50

// readings are what versions of headscale read otherwise than Tailscale and Skein do, as their sources show. Only differences are here
// that change what a node may do at another.
type readings struct {
	noRules  bool // a policy without rules allows nothing, instead of everything (until 0.25; 0.26 too, which cannot be told from 0.27)
	noChecks bool // an SSH rule that asks for a check lets in without one (before 0.29)
	noGrants bool // grants are not known (before 0.29)
}

// readingsOf are those of a generation (Report.Headscale).
func readingsOf(generation string) readings {
	old := strings.Contains(generation, "0.25") || strings.Contains(generation, "0.27") || strings.HasPrefix(generation, "0.28")
	return readings{noRules: strings.Contains(generation, "0.25"), noChecks: old, noGrants: old}
}

// compareAccess fills in what becomes different when Skein reads the policy: it compiles the policy as it is, and a policy that says in
// Skein's words what headscale has made of it, for the same users and nodes.
func (t *translation) compareAccess() {
	p := &t.report.Policy
	if t.rules == nil || len(p.Faults) > 0 {
		return
	}
	theirs, differs := readingsOf(t.report.Headscale).rewrite(t.plan.Policy)
	if !differs {
		return
	}
	compile := func(text []byte) (*policy.Compiled, error) {
		parsed, err := policy.Parse(text)
		if err != nil {
			return nil, err
		}
		return policy.Compile(parsed, t.plan.Users, t.plan.Nodes, policy.Options{})
	}
	was, err := compile(theirs)
	if err != nil {
		t.report.note("What headscale made of the policy could not be compared: %v", err)
		return
	}
	is, err := compile(t.plan.Policy)
	if err != nil {
		t.report.note("What headscale made of the policy could not be compared: %v", err)
		return
	}
	changes, more := policy.Diff(was, is)
	for _, ch := range changes[:min(len(changes), maxAccess)] {
		p.Access = append(p.Access, ch.String())
	}
	p.MoreAccess = max(0, len(changes)-maxAccess)
	if more < 0 {
		p.MoreAccess = -1
	} else {
		p.MoreAccess += more
	}
}

// rewrite is a policy that says in our words what headscale makes of text, and whether it says anything else.
func (r readings) rewrite(text []byte) (out []byte, differs bool) {
	std, err := hujson.Standardize(slices.Clone(text))
	if err != nil {
		return nil, false
	}
	var p map[string]any
	if json.Unmarshal(std, &p) != nil {
		return nil, false
	}
	if key, v := member(p, "grants"); r.noGrants && v != nil {
		delete(p, key)
		differs = true
	}
	_, acls := member(p, "acls")
	if _, grants := member(p, "grants"); r.noRules && acls == nil && grants == nil {
		p["acls"] = []any{}
		differs = true
	}
	if _, ssh := member(p, "ssh"); r.noChecks {
		for _, rule := range rulesIn(ssh) {
			if key, v := member(rule, "action"); v == "check" {
				rule[key] = "accept"
				period, _ := member(rule, "checkPeriod")
				delete(rule, period)
				differs = true
			}
		}
	}
	for _, tests := range []string{"tests", "sshTests"} { // they are about ours
		key, _ := member(p, tests)
		delete(p, key)
	}
	out, err = json.Marshal(p)
	return out, differs && err == nil
}

// member is the member of an object of that name, in whatever case it is written; the name itself if there is none.
func member(m map[string]any, name string) (key string, v any) {
	for k, v := range m {
		if strings.EqualFold(k, name) {
			return k, v
		}
	}
	return name, nil
}

// rulesIn are the objects in a list.
func rulesIn(v any) (out []map[string]any) {
	list, _ := v.([]any)
	for _, e := range list {
		if m, ok := e.(map[string]any); ok {
			out = append(out, m)
		}
	}
	return out
}
