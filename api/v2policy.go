package api

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/tailscale/hujson"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/policy"
	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// defaultPolicy is what a tailnet shows whose policy nobody has set: it means the same.
const defaultPolicy = `// Everybody reaches everybody: no policy has been set yet.
{
	"acls": [
		{"action": "accept", "src": ["*"], "dst": ["*:*"]},
	],
}
`

// defaultTag is the entity tag that stands for a policy that was never changed, or was reset.
const defaultTag = "ts-default"

const typeHuJSON = "application/hujson"

func (s *server) v2PolicyRoutes() []route {
	const base = "/tailnet/{tailnet}/acl"
	return []route{
		{base, ops{http.MethodGet: {auth.Read(auth.ScopePolicy), s.v2GetPolicy}, http.MethodPost: {auth.ScopePolicy, s.v2SetPolicy}}},
		{base + "/validate", ops{http.MethodPost: {auth.Read(auth.ScopePolicy), s.v2ValidatePolicy}}},
		{base + "/preview", ops{http.MethodPost: {auth.Read(auth.ScopePolicy), s.v2PreviewPolicy}}},
	}
}

// v2PolicyText is the policy as v2 shows it, and the version that a change of it replaces.
func (s *server) v2PolicyText() (text string, version string) {
	sn := s.State.Snapshot()
	if s.PolicyFile != "" {
		text, version = textInForce(sn.Policy), "file"
	} else if sn.Text != nil {
		text, version = sn.Text.Text, ID(sn.Text.ID).String()
	} else {
		version = "0"
	}
	if strings.TrimSpace(text) == "" {
		text = defaultPolicy
	}
	return text, version
}

// v2PolicyAnswer is text as r wants to read it: as it was written, or as JSON.
func v2PolicyAnswer(r *http.Request, text string) (any, error) {
	etag := etagOf(text)
	if accept := r.Header.Get("Accept"); strings.Contains(accept, typeHuJSON) || accept == "" || strings.HasPrefix(accept, "*/*") {
		return &plain{typeHuJSON, []byte(text), etag}, nil
	}
	b, err := hujson.Standardize([]byte(text))
	if err != nil {
		return nil, err // what is stored has been parsed
	}
	var v any
	if err := json.Unmarshal(b, &v); err != nil {
		return nil, err
	}
	return &tagged{v, etag}, nil
}

func (s *server) v2GetPolicy(r *http.Request) (any, error) {
	if r.URL.Query().Get("details") != "" {
		return nil, &unsupported{"the details of a policy; POST …/acl/validate tells what is wrong with one"}
	}
	text, _ := s.v2PolicyText()
	return v2PolicyAnswer(r, text)
}

// v2SetPolicy replaces the policy; no body at all sets none.
func (s *server) v2SetPolicy(r *http.Request) (any, error) {
	b, err := readBody(r)
	if err != nil {
		return nil, err
	}
	text := string(b)
	var p *policy.Policy
	if strings.TrimSpace(text) != "" {
		if p, err = ParsePolicy(text); err != nil {
			return nil, policyError(err)
		}
	}
	now, version := s.v2PolicyText()
	// Programs set what somebody has written for people who may still be to come, and have no way to say so.
	req := SetPolicyRequest{AllowUnknownUsers: true}
	if match := r.Header.Get("If-Match"); match != "" {
		want := strings.Trim(strings.TrimPrefix(strings.TrimSpace(match), "W/"), `"`)
		// What was reset counts as never changed, or nobody could apply again what was destroyed.
		if fresh := now == defaultPolicy; want == defaultTag && fresh || want != defaultTag && strings.EqualFold(want, etagOf(now)) {
			req.IfMatch = Ref(version)
		} else if want != "*" {
			return nil, &preconditionError{"the policy was changed meanwhile: get it and make the change there"}
		}
		r.Header.Del("If-Match") // it is in req now, as the version that it means
	}
	if _, err := s.putPolicy(r, p, req); err != nil {
		return nil, err
	}
	now, _ = s.v2PolicyText()
	return v2PolicyAnswer(r, now)
}

// v2ValidatePolicy tries a policy, or tests against the policy in force. What is wrong with them is an answer and no failure.
func (s *server) v2ValidatePolicy(r *http.Request) (any, error) {
	b, err := readBody(r)
	if err != nil {
		return nil, err
	}
	text := strings.TrimSpace(string(b))
	if text == "" {
		return nil, tailnet.Errorf(tailnet.Invalid, "the request has no body: send a policy, or a list of tests")
	}
	if text, err = s.withTests(text); err != nil {
		return nil, err
	}
	p, err := ParsePolicy(text)
	if err == nil {
		var t *trial
		if t, err = s.try(p); err == nil {
			err = t.is.Test()
		}
	}
	var pe *PolicyError
	if err = policyError(err); errors.As(err, &pe) {
		return v2Error{Message: pe.Message, Data: v2PolicyFaults(pe), Status: http.StatusBadRequest}, nil
	}
	return Empty{}, err
}

// withTests is text, or, if that is a list of tests, the policy in force with those tests.
func (s *server) withTests(text string) (string, error) {
	tests, ok := testsIn(text)
	if !ok {
		return text, nil // the parser says what is wrong with it, if something is
	}
	now, _ := s.v2PolicyText()
	std, err := hujson.Standardize([]byte(now))
	if err != nil {
		return "", err
	}
	var all map[string]json.RawMessage
	if err := json.Unmarshal(std, &all); err != nil {
		return "", err
	}
	for key := range all {
		if strings.EqualFold(key, "tests") || strings.EqualFold(key, "sshTests") {
			delete(all, key)
		}
	}
	if all["tests"], err = json.Marshal(tests); err != nil {
		return "", err
	}
	out, err := json.Marshal(all)
	return string(out), err
}

// testsIn are the tests in text, and whether it is a list of such.
func testsIn(text string) (tests []json.RawMessage, ok bool) {
	b, err := hujson.Standardize([]byte(text))
	if err == nil {
		err = json.Unmarshal(b, &tests)
	}
	return tests, err == nil
}

// v2PolicyFaults are the faults of a policy as v2 tells them.
func v2PolicyFaults(pe *PolicyError) []v2ErrorData {
	d := v2ErrorData{Errors: []string{}}
	for _, f := range pe.Faults {
		d.Errors = append(d.Errors, f.String())
	}
	return []v2ErrorData{d}
}

// v2Match is a rule of a policy that is about somebody, or about an address.
type v2Match struct {
	Users      []string `json:"users"`
	Ports      []string `json:"ports"` // destinations with ports; of a grant each with each of its ip
	LineNumber int      `json:"lineNumber"`
	Via        []string `json:"via,omitempty"`
	Postures   []string `json:"postures,omitempty"`
}

// v2PreviewPolicy says which rules of the policy in the body, or of that in force if there is none, are about a user (type=user) or
// open an address and port (type=ipport).
func (s *server) v2PreviewPolicy(r *http.Request) (any, error) {
	b, err := readBody(r)
	if err != nil {
		return nil, err
	}
	kind, about := r.URL.Query().Get("type"), r.URL.Query().Get("previewFor")
	text := string(b)
	if strings.TrimSpace(text) == "" {
		text, _ = s.v2PolicyText()
	}
	p, err := ParsePolicy(text)
	if err != nil {
		return nil, policyError(err)
	}
	t, err := s.try(p)
	if err != nil {
		return nil, err
	}
	var rules []policy.RuleRef
	switch kind {
	case "user":
		u, err := v2PreviewUser(s.State.Snapshot(), about)
		if err != nil {
			return nil, err
		}
		rules = t.is.RulesFrom(u)
	case "ipport":
		ap, err := netip.ParseAddrPort(about)
		if err != nil {
			return nil, tailnet.Errorf(tailnet.Invalid, "previewFor=%q is not an address with a port such as 100.64.0.1:22", clip(about))
		}
		rules = t.is.RulesTo(ap.Addr().Unmap(), ap.Port())
	default:
		return nil, tailnet.Errorf(tailnet.Invalid, "type=%q is neither user nor ipport", clip(kind))
	}
	out := struct {
		Matches    []*v2Match `json:"matches"`
		Type       string     `json:"type"`
		PreviewFor string     `json:"previewFor"`
	}{[]*v2Match{}, kind, about}
	for _, ref := range rules {
		m, err := v2MatchOf(text, ref)
		if err != nil {
			return nil, err
		}
		out.Matches = append(out.Matches, m)
	}
	return out, nil
}

// v2PreviewUser is the user with this login, mail address or name.
func v2PreviewUser(sn *state.Snapshot, login string) (*tailnet.User, error) {
	for _, u := range sn.Users() {
		if strings.EqualFold(login, u.LoginName()) || u.Email != "" && strings.EqualFold(login, u.Email) {
			return u, nil
		}
	}
	u, err := findUser(sn, Ref(strings.TrimSuffix(login, "@")))
	if err != nil {
		return nil, tailnet.Errorf(tailnet.NotFound, "previewFor: there is no user %q", clip(login))
	}
	return u, nil
}

// v2MatchOf is the rule of a policy's text that ref names.
func v2MatchOf(text string, ref policy.RuleRef) (*v2Match, error) {
	m := &v2Match{Users: []string{"*"}, Ports: []string{"*:*"}, LineNumber: ref.Line}
	list, index, ok := strings.Cut(strings.TrimSuffix(ref.Label, "]"), "[")
	if !ok {
		return m, nil // a policy without rules
	}
	std, err := hujson.Standardize([]byte(text))
	if err != nil {
		return nil, err
	}
	var all map[string]json.RawMessage
	if err := json.Unmarshal(std, &all); err != nil {
		return nil, err
	}
	var rules []struct {
		Src, Users, Dst, Ports, IP, Via, SrcPosture []string
	}
	for key, raw := range all {
		if strings.EqualFold(key, list) {
			_ = json.Unmarshal(raw, &rules) // the app of a grant is not among the fields; what is, has been parsed
		}
	}
	i, err := strconv.Atoi(index)
	if err != nil {
		return nil, err // labels are ours
	}
	if i >= len(rules) {
		return m, nil
	}
	rule := rules[i]
	m.Users, m.Ports = slices.Concat(rule.Src, rule.Users), slices.Concat(rule.Dst, rule.Ports)
	m.Via, m.Postures = rule.Via, rule.SrcPosture
	if len(rule.IP) > 0 {
		m.Ports = nil
		for _, dst := range rule.Dst {
			for _, ip := range rule.IP {
				m.Ports = append(m.Ports, dst+":"+ip)
			}
		}
	}
	return m, nil
}
