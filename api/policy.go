package api

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/tailscale/hujson"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/policy"
	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// maxPolicyBody is how many bytes of a request with a policy are read: JSON may need two for one of the text.
const maxPolicyBody = 2*policy.MaxSize + 1<<20

// defaultVersions is how many versions of the policy are told at once if nobody asks for more.
const defaultVersions = 50

// maxFailures is how many failing tests are told of one policy.
const maxFailures = 50

// PolicyText is a policy: the newest, or a version of it.
type PolicyText struct {
	Text      string     `json:"policy"`    // HuJSON as it was given; empty: none, everybody reaches everybody
	UpdatedAt *time.Time `json:"updatedAt"` // null: nobody has set one, or it comes from a file
	Version   ID         `json:"version"`   // from "1"; "0": nobody has set one, or it comes from a file
	Author    string     `json:"author"`
	Comment   string     `json:"comment"`
	ETag      string     `json:"etag"` // of the text but for its formatting; without the quotes that a header wants
	Source    string     `json:"source" enum:"database,file"`
	InForce   bool       `json:"inForce"` // false for older versions, and for a newest one that this server cannot use
}

// Values of PolicyText.Source.
const (
	FromDatabase = "database"
	FromFile     = "file"
)

// header makes the etag known where HTTP has it.
func (p *PolicyText) header(h http.Header) { h.Set("ETag", `"`+p.ETag+`"`) }

// PolicyFault is something that is wrong with a policy and where it stands: a fault of the text, or a test of it that fails.
type PolicyFault struct {
	Line   int    `json:"line"`   // from 1; 0: not at one place
	Column int    `json:"column"` // in bytes, from 1; 0: the whole line
	Path   string `json:"path"`   // such as acls[2].src[0], or tests[1] for a test; empty at the top
	Text   string `json:"text"`   // what is wrong and what would be right
}

func (f PolicyFault) String() string {
	s := f.Text
	if f.Path != "" {
		s = f.Path + ": " + s
	}
	switch {
	case f.Line > 0 && f.Column > 0:
		s = fmt.Sprintf("line %d, column %d: %s", f.Line, f.Column, s)
	case f.Line > 0:
		s = fmt.Sprintf("line %d: %s", f.Line, s)
	}
	return s
}

// PolicyError refuses a policy. It is a tailnet.Invalid, and in a Problem has all its faults.
type PolicyError struct {
	Message string
	Faults  []PolicyFault
}

func (e *PolicyError) Error() string { return e.Message }
func (e *PolicyError) Unwrap() error { return tailnet.Errorf(tailnet.Invalid, "%s", e.Message) }

// newPolicyError is the error for faults; what begins the message if they are several.
func newPolicyError(what string, faults []PolicyFault) *PolicyError {
	lines := make([]string, 0, 1+len(faults))
	if len(faults) > 1 {
		lines = append(lines, fmt.Sprintf("%d %s:", len(faults), what))
	}
	for _, f := range faults {
		lines = append(lines, f.String())
	}
	return &PolicyError{Message: strings.Join(lines, "\n"), Faults: faults}
}

// policyError makes errors of package policy, also where state has wrapped them, a PolicyError. Others stay what they are.
func policyError(err error) error {
	var (
		faults   policy.Errors
		failures policy.Failures
		out      []PolicyFault
	)
	switch {
	case errors.As(err, &faults):
		for _, f := range faults {
			out = append(out, PolicyFault{f.Line, f.Column, f.Path, f.Text})
		}
		return newPolicyError("faults in the policy", out)
	case errors.As(err, &failures):
		for _, f := range failures[:min(len(failures), maxFailures)] {
			out = append(out, PolicyFault{Line: f.Line, Path: f.Test, Text: f.Text})
		}
		if len(out) == 1 {
			return &PolicyError{Message: "a test of the policy fails: " + out[0].String(), Faults: out}
		}
		return newPolicyError("tests of the policy fail", out)
	}
	return err
}

// ParsePolicy is policy.Parse with an error that is a PolicyError, as the server would answer.
func ParsePolicy(text string) (*policy.Policy, error) {
	p, err := policy.Parse([]byte(text))
	if err != nil {
		return nil, policyError(err)
	}
	return p, nil
}

// TestPolicy compiles a policy for a tailnet without users and nodes and runs its tests; the error is a PolicyError.
func TestPolicy(p *policy.Policy) error {
	c, err := policy.Compile(p, nil, nil, policy.Options{})
	if err == nil {
		err = c.Test()
	}
	return policyError(err)
}

type (
	// PolicyWarning is something a policy says that has no effect.
	PolicyWarning struct {
		Line int    `json:"line"`
		Text string `json:"text"`
	}
	// PolicyChange is something that one policy allows and another does not.
	PolicyChange struct {
		Opens bool     `json:"opens"` // or else it closes
		Src   []string `json:"src"`
		Dst   []string `json:"dst"`
		What  string   `json:"what"` // "tcp 22", "everything"
		Text  string   `json:"text"` // all of it in words
	}
	// PolicyRequest is a policy to check, or to compare with the one in force: Text, or none at all, or an old Version.
	PolicyRequest struct {
		Text    string `json:"policy" required:"false" example:"{\"acls\": [{\"action\": \"accept\", \"src\": [\"*\"], \"dst\": [\"*:22\"]}]}"`
		None    bool   `json:"none,omitempty"`
		Version ID     `json:"version,omitempty"`

		AllowUnknownUsers bool `json:"allowUnknownUsers,omitempty"` // as of SetPolicyRequest
	}
	// CheckPolicyRequest is a PolicyRequest. A policy that would be refused is a failure with its faults, as headscale has it, or
	// with Report an answer like any other.
	CheckPolicyRequest struct {
		PolicyRequest
		Report bool `json:"report,omitempty" example:"true"`
	}
	// SetPolicyRequest replaces the policy. An empty Text is refused, because it would open everything: None asks for that.
	SetPolicyRequest struct {
		Text    string `json:"policy" required:"false" example:"{\"acls\": [{\"action\": \"accept\", \"src\": [\"*\"], \"dst\": [\"*:22\"]}]}"`
		None    bool   `json:"none,omitempty"`
		Comment string `json:"comment,omitempty"`
		Author  string `json:"author,omitempty"`  // for whom it is done; who called is added
		IfMatch Ref    `json:"ifMatch,omitempty"` // version or etag of the text to replace; another one is refused with 412
		Changes bool   `json:"changes,omitempty"` // tell what opens and closes

		// Names of users that do not exist are faults, since most are misspelt; with this they are warnings. Mail
		// addresses are warnings anyway where people sign in by an identity provider.
		AllowUnknownUsers bool `json:"allowUnknownUsers,omitempty"`
	}
	// RollbackPolicyRequest makes the text of an old version the newest one.
	RollbackPolicyRequest struct {
		Version ID     `json:"version" example:"1"`
		Comment string `json:"comment,omitempty"`
		Author  string `json:"author,omitempty"`
		IfMatch Ref    `json:"ifMatch,omitempty"`
		Changes bool   `json:"changes,omitempty"`
	}
	// SetPolicyAnswer is the policy in force from now on.
	SetPolicyAnswer struct {
		PolicyText
		Changed  bool            `json:"changed"` // false: it was the same text; there is no new version
		Warnings []PolicyWarning `json:"warnings"`
		Changes  []PolicyChange  `json:"changes"` // empty unless asked for
		More     bool            `json:"more"`    // there are further changes
		Further  int             `json:"further"` // how many; 0 with More: nobody counted
	}
	// CheckPolicyAnswer says whether a policy would be accepted.
	CheckPolicyAnswer struct {
		Valid    bool            `json:"valid"`
		Faults   []PolicyFault   `json:"faults"`
		Warnings []PolicyWarning `json:"warnings"`
	}
	// DiffPolicyAnswer is what a policy would change. With Faults, it would be refused nevertheless: its tests fail.
	DiffPolicyAnswer struct {
		Version  ID              `json:"version"` // that it was compared with
		Changes  []PolicyChange  `json:"changes"`
		More     bool            `json:"more"`    // there are further changes
		Further  int             `json:"further"` // how many; 0 with More: nobody counted
		Faults   []PolicyFault   `json:"faults"`
		Warnings []PolicyWarning `json:"warnings"`
	}
	// PolicyVersion is a version of the policy without its text.
	PolicyVersion struct {
		Version   ID         `json:"version"`
		UpdatedAt *time.Time `json:"updatedAt"`
		Author    string     `json:"author"`
		Comment   string     `json:"comment"`
		Bytes     int        `json:"bytes"` // of the text; 0: no policy, everybody reaches everybody
		InForce   bool       `json:"inForce"`
	}
	// PolicyHistoryFilter chooses a part of the versions. Without Limit it is 50.
	PolicyHistoryFilter struct {
		Page
	}
	// PolicyHistory are versions of the policy, the newest first.
	PolicyHistory struct {
		Versions []*PolicyVersion `json:"versions"`
		NextPage string           `json:"nextPage,omitempty"` // the version to ask for those before it
	}
)

func (s *server) policyOperations() []operation {
	read, change := auth.Read(auth.ScopePolicy), auth.ScopePolicy
	return []operation{
		get("/policy", read, "the policy, with its ETag", s.getPolicy),
		put("/policy", change, "replaces the policy; `If-Match`", s.setPolicy).withIfMatch(),
		post("/policy/check", read, "says whether a policy would be accepted: 400 with the faults if not, or, with `{\"report\": true}`, 200 with `valid`", s.checkPolicy),
		post("/policy/diff", read, "says what a policy would open and close", s.diffPolicy),
		get("/policy/history", read, "lists versions, the newest first", s.policyHistory),
		get("/policy/version/{version}", read, "one version", s.policyVersion),
		post("/policy/rollback", change, "makes an old version the newest; `If-Match`", s.rollbackPolicy).withIfMatch(),
		get("/policy/explain", read, "says why somebody reaches something, or does not", s.explain),
		post("/policy/explain", read, "the same, with the question in the body", s.explain),
	}
}

// author is who is written down for a change: who called, on behalf of whom the caller claims to act.
func (s *server) author(r *http.Request, claimed string) string {
	caller := auth.PrincipalOf(r.Context()).Name
	switch claimed {
	case "", caller:
		return caller
	}
	return claimed + " (by " + caller + ")"
}

// etagOf is the same for texts that differ in their formatting only.
func etagOf(text string) string {
	b, err := hujson.Format([]byte(text))
	if err != nil {
		b = []byte(text)
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// textInForce is the text that c was made from.
func textInForce(c *policy.Compiled) string {
	if p := c.Policy(); p != nil {
		return string(p.Text())
	}
	return ""
}

// policyJSON is v, nil for no version at all, as a part of sn.
func (s *server) policyJSON(sn *state.Snapshot, v *tailnet.PolicyVersion) *PolicyText {
	out := &PolicyText{Source: FromDatabase}
	newest := sn.Text == nil
	if v != nil {
		out.Text, out.UpdatedAt, out.Version, out.Author, out.Comment = v.Text, timestamp(v.Created), ID(v.ID), v.Author, v.Comment
		newest = sn.Text != nil && v.ID == sn.Text.ID
	}
	out.ETag = etagOf(out.Text)
	out.InForce = newest && s.PolicyFile == "" && textInForce(sn.Policy) == out.Text
	return out
}

func (s *server) getPolicy(*http.Request, *Empty) (*PolicyText, error) {
	sn := s.State.Snapshot()
	if s.PolicyFile != "" {
		text := textInForce(sn.Policy)
		return &PolicyText{Text: text, ETag: etagOf(text), Source: FromFile, InForce: true}, nil
	}
	return s.policyJSON(sn, sn.Text), nil
}

// Policy is the newest policy, comments and all.
func (c *Client) Policy(ctx context.Context) (*PolicyText, error) {
	var out PolicyText
	err := c.do(ctx, http.MethodGet, c.path("policy"), nil, &out)
	return &out, err
}

// policyOf is the policy that a request asks for; nil, without an error, for none.
func policyOf(text string, none bool) (*policy.Policy, error) {
	switch {
	case none && text != "":
		return nil, tailnet.Errorf(tailnet.Invalid, "a policy and none contradict each other: give one of them")
	case none:
		return nil, nil
	case strings.TrimSpace(text) == "":
		return nil, tailnet.Errorf(tailnet.Invalid, `the policy is empty. That would let everybody reach everybody: ask for it with "none": true if it is meant`)
	}
	return ParsePolicy(text)
}

func (s *server) setPolicy(r *http.Request, req *SetPolicyRequest) (*SetPolicyAnswer, error) {
	p, err := policyOf(req.Text, req.None)
	if err != nil {
		return nil, err
	}
	return s.putPolicy(r, p, *req)
}

// putPolicy puts p in force. req.Text counts no more.
func (s *server) putPolicy(r *http.Request, p *policy.Policy, req SetPolicyRequest) (*SetPolicyAnswer, error) {
	for what, text := range map[string]string{"comment": req.Comment, "author": req.Author} {
		if err := checkText(what, text); err != nil {
			return nil, err
		}
	}
	wanted, err := preconditions(r.Header.Values("If-Match"), req.IfMatch)
	if err != nil {
		return nil, err
	}
	text := ""
	if p != nil {
		text = string(p.Text())
	}
	var was, is *policy.Compiled
	var stored *tailnet.PolicyVersion
	var unknown policy.Errors
	tolerate := s.tolerates(req.AllowUnknownUsers)
	author := s.author(r, req.Author)
	err = s.update(r, "set the policy", func(tx *state.Tx) error {
		old := tx.PolicyText()
		was, stored = tx.Policy(), old
		if err := tx.SetPolicy(p, author, req.Comment); err != nil {
			return err
		}
		if err := matches(wanted, old); err != nil {
			return err
		}
		if oldText(old) == text && textInForce(was) == text {
			return errUnchanged
		}
		is, stored = tx.Policy(), tx.PolicyText()
		if unknown = is.UnknownUsers(); len(faultsOf(unknown, tolerate)) > 0 {
			return faultsOf(unknown, tolerate)
		}
		return is.Test()
	})
	unchanged := errors.Is(err, errUnchanged)
	if err != nil && !unchanged {
		return nil, policyError(err)
	}
	out := &SetPolicyAnswer{Changed: !unchanged, Warnings: warningsOf(p, unknown), Changes: []PolicyChange{}}
	out.PolicyText = *s.policyJSON(s.State.Snapshot(), stored)
	if req.Changes && !unchanged {
		out.Changes, out.More, out.Further = changesOf(was, is)
	}
	return out, nil
}

// errUnchanged takes back an update that would make a version like the one before.
var errUnchanged = errors.New("the policy is the same already")

func oldText(v *tailnet.PolicyVersion) string {
	if v == nil {
		return ""
	}
	return v.Text
}

// preconditions are the conditions of the header and the body; one of each list must hold. "*" is no condition, since there
// is always a policy, if only none.
func preconditions(header []string, body Ref) (out [][]string, err error) {
	lists := [][]string{{string(body)}}
	if len(header) > 0 {
		lists = append(lists, strings.Split(strings.Join(header, ","), ","))
	}
	for _, list := range lists {
		var any []string
		for _, one := range list {
			one = strings.TrimSpace(one)
			value := strings.Trim(strings.TrimPrefix(one, "W/"), `"`)
			_, version := Ref(value).id()
			raw, herr := hex.DecodeString(value)
			switch {
			case one == "", one == "*":
				any = nil
			case version, herr == nil && len(raw) == sha256.Size:
				any = append(any, strings.ToLower(value))
				continue
			default:
				return nil, tailnet.Errorf(tailnet.Invalid, "%q is neither the version of a policy, such as 3, nor its etag", clip(one))
			}
			break
		}
		if len(any) > 0 {
			out = append(out, any)
		}
	}
	return out, nil
}

// matches returns nil if v, nil for no version, is what somebody wanted to replace.
func matches(wanted [][]string, v *tailnet.PolicyVersion) error {
	version := "0"
	if v != nil {
		version = ID(v.ID).String()
	}
	etag := ""
	for _, list := range wanted {
		if slices.Contains(list, version) {
			continue
		}
		if etag == "" {
			etag = etagOf(oldText(v))
		}
		if slices.Contains(list, etag) {
			continue
		}
		if v == nil {
			return &preconditionError{"the policy to be replaced is not there: nobody has set one yet"}
		}
		asked := "not the text with that etag"
		if _, is := Ref(list[0]).id(); is {
			asked = "not " + list[0]
		}
		return &preconditionError{fmt.Sprintf("the policy was changed meanwhile: it is version %s by now, set by %s at %s, %s; get it and make the change there",
			version, v.Author, v.Created.UTC().Format(time.RFC3339), asked)}
	}
	return nil
}

// SetPolicy replaces the policy. An error in it is a *PolicyError; then nothing has changed.
func (c *Client) SetPolicy(ctx context.Context, req SetPolicyRequest) (*SetPolicyAnswer, error) {
	if err := checkSent(req.Text); err != nil {
		return nil, err
	}
	var out SetPolicyAnswer
	err := c.do(ctx, http.MethodPut, c.path("policy"), req, &out)
	return &out, err
}

// checkSent refuses what JSON cannot carry as it is, with the fault that package policy finds.
func checkSent(text string) error {
	if utf8.ValidString(text) {
		return nil
	}
	_, err := ParsePolicy(text)
	return err
}

// warningsOf are what p says without effect, and the users it names that nobody is yet.
func warningsOf(p *policy.Policy, unknown policy.Errors) []PolicyWarning {
	out := []PolicyWarning{}
	if p != nil {
		for _, w := range p.Warnings() {
			out = append(out, PolicyWarning{w.Line, w.Text})
		}
	}
	for _, e := range unknown[:min(len(unknown), maxUnknown)] {
		out = append(out, PolicyWarning{e.Line, e.Text})
	}
	if n := len(unknown) - maxUnknown; n > 0 {
		out = append(out, PolicyWarning{unknown[maxUnknown].Line, fmt.Sprintf("and %d more users are unknown", n)})
	}
	slices.SortStableFunc(out, func(a, b PolicyWarning) int { return a.Line - b.Line })
	return out
}

// maxUnknown is how many unknown users are told of one policy.
const maxUnknown = 20

// tolerates says which users may be unknown: all if the request allows it; mail addresses if people sign in by an identity
// provider, since they are users only from then on.
func (s *server) tolerates(all bool) func(name string) bool {
	return func(name string) bool {
		_, domain, _ := strings.Cut(name, "@")
		return all || s.SignIn && domain != ""
	}
}

// faultsOf are the unknown users that must not be, with what would be right.
func faultsOf(unknown policy.Errors, tolerated func(name string) bool) (out policy.Errors) {
	for _, e := range unknown {
		if tolerated(e.User) || len(out) >= maxUnknown {
			continue
		}
		f := *e
		if !strings.Contains(f.Text, "did you mean") && !strings.HasPrefix(f.User, "*@") {
			f.Text += "; create the user first, or allow unknown users (--allow-unknown-users) if somebody is still to come"
		}
		out = append(out, &f)
	}
	return out
}

// changesOf is what opens and closes from one policy to another, closing first: that is what breaks.
func changesOf(was, is *policy.Compiled) (out []PolicyChange, more bool, further int) {
	out = []PolicyChange{}
	changes, rest := policy.Diff(was, is)
	for _, opens := range []bool{false, true} {
		for _, ch := range changes {
			if ch.Opens == opens {
				out = append(out, PolicyChange{ch.Opens, list(ch.Src), list(ch.Dst), ch.What, ch.String()})
			}
		}
	}
	return out, rest != 0, max(rest, 0)
}

// trial is what a policy would be in this tailnet.
type trial struct {
	was, is *policy.Compiled
	stored  *tailnet.PolicyVersion // that was was made from
}

// try compiles p, nil for none, with the users and nodes and settings that it would meet. It looks at a snapshot: nothing
// waits for it.
func (s *server) try(p *policy.Policy) (*trial, error) {
	sn := s.State.Snapshot()
	is, err := s.State.TryPolicy(sn, p)
	if err != nil {
		return nil, policyError(err)
	}
	return &trial{was: sn.Policy, is: is, stored: sn.Text}, nil
}

// faults are the users that must not be unknown, or else the tests that fail; and the warnings.
func (s *server) faults(t *trial, p *policy.Policy, allowUnknown bool) ([]PolicyFault, []PolicyWarning, error) {
	unknown := t.is.UnknownUsers()
	var err error
	if fs := faultsOf(unknown, s.tolerates(allowUnknown)); len(fs) > 0 {
		err, unknown = fs, nil
	} else {
		err = t.is.Test()
	}
	faults, err := faultsIn(policyError(err))
	return faults, warningsOf(p, unknown), err
}

// requested is the policy that a request for check or diff names, and whether it may name unknown users.
func (s *server) requested(ctx context.Context, req *PolicyRequest) (p *policy.Policy, allowUnknown bool, err error) {
	if req.Version == 0 {
		p, err = policyOf(req.Text, req.None)
		return p, req.AllowUnknownUsers, err
	}
	if req.Text != "" || req.None {
		return nil, false, tailnet.Errorf(tailnet.Invalid, "a policy and a version contradict each other: give one of them")
	}
	p, err = s.parseVersion(ctx, req.Version)
	return p, true, err // who has been in force once is no slip of the pen
}

// parseVersion is an old version as this program understands it; nil if there was none in force.
func (s *server) parseVersion(ctx context.Context, id ID) (*policy.Policy, error) {
	v, err := s.State.PolicyVersion(ctx, tailnet.PolicyID(id))
	if err != nil || v.Text == "" {
		return nil, err
	}
	return ParsePolicy(v.Text)
}

func (s *server) checkPolicy(r *http.Request, req *CheckPolicyRequest) (*CheckPolicyAnswer, error) {
	out := &CheckPolicyAnswer{Faults: []PolicyFault{}, Warnings: []PolicyWarning{}}
	p, allowUnknown, err := s.requested(r.Context(), &req.PolicyRequest)
	if err == nil {
		var t *trial
		out.Warnings = warningsOf(p, nil)
		if t, err = s.try(p); err == nil {
			out.Faults, out.Warnings, err = s.faults(t, p, allowUnknown)
		}
	}
	if err != nil {
		if out.Faults, err = faultsIn(err); err != nil {
			return nil, err
		}
	}
	if out.Valid = len(out.Faults) == 0; !out.Valid && !req.Report {
		return nil, newPolicyError("faults in the policy", out.Faults)
	}
	return out, nil
}

// faultsIn are the faults of a PolicyError, none for nil; other errors are returned.
func faultsIn(err error) ([]PolicyFault, error) {
	var pe *PolicyError
	if errors.As(err, &pe) {
		return pe.Faults, nil
	}
	return []PolicyFault{}, err
}

// CheckPolicy says whether a policy would be accepted. Nothing is changed.
func (c *Client) CheckPolicy(ctx context.Context, req PolicyRequest) (*CheckPolicyAnswer, error) {
	out := CheckPolicyAnswer{Warnings: []PolicyWarning{}}
	faults, err := faultsIn(checkSent(req.Text))
	if len(faults) > 0 || err != nil {
		out.Faults = faults
		return &out, err
	}
	err = c.do(ctx, http.MethodPost, c.path("policy", "check"), CheckPolicyRequest{req, true}, &out)
	return &out, err
}

func (s *server) diffPolicy(r *http.Request, req *PolicyRequest) (*DiffPolicyAnswer, error) {
	p, allowUnknown, err := s.requested(r.Context(), req)
	if err != nil {
		return nil, err
	}
	t, err := s.try(p)
	if err != nil {
		return nil, err
	}
	out := new(DiffPolicyAnswer)
	if t.stored != nil && s.PolicyFile == "" {
		out.Version = ID(t.stored.ID)
	}
	out.Changes, out.More, out.Further = changesOf(t.was, t.is)
	if out.Faults, out.Warnings, err = s.faults(t, p, allowUnknown); err != nil {
		return nil, err
	}
	return out, nil
}

// DiffPolicy says what a policy would open and close. Nothing is changed.
func (c *Client) DiffPolicy(ctx context.Context, req PolicyRequest) (*DiffPolicyAnswer, error) {
	if err := checkSent(req.Text); err != nil {
		return nil, err
	}
	var out DiffPolicyAnswer
	err := c.do(ctx, http.MethodPost, c.path("policy", "diff"), req, &out)
	return &out, err
}

func (s *server) policyHistory(r *http.Request, f *PolicyHistoryFilter) (*PolicyHistory, error) {
	before, ok := Ref(f.After).id()
	if f.After != "" && !ok {
		return nil, notANextPage(f.After)
	}
	limit := cmp.Or(f.Limit, defaultVersions)
	versions, err := s.State.Policies(r.Context(), limit+1, tailnet.PolicyID(before))
	if err != nil {
		return nil, err
	}
	out := &PolicyHistory{Versions: []*PolicyVersion{}}
	if len(versions) > limit {
		versions = versions[:limit]
		if f.Page != (Page{}) {
			out.NextPage = ID(versions[limit-1].ID).String()
		}
	}
	sn := s.State.Snapshot()
	for _, v := range versions {
		newest := sn.Text != nil && v.ID == sn.Text.ID
		out.Versions = append(out.Versions, &PolicyVersion{
			Version: ID(v.ID), UpdatedAt: timestamp(v.Created), Author: v.Author, Comment: v.Comment, Bytes: len(v.Text),
			InForce: newest && s.PolicyFile == "" && textInForce(sn.Policy) == v.Text,
		})
	}
	return out, nil
}

// PolicyHistory are the versions of the policy, the newest first, at most limit of them; 0: as many as the server likes.
func (c *Client) PolicyHistory(ctx context.Context, limit int) ([]*PolicyVersion, error) {
	q := url.Values{}
	if limit > 0 {
		q.Set("limit", strconv.Itoa(limit))
	}
	var out PolicyHistory
	err := c.do(ctx, http.MethodGet, c.path("policy", "history").query(q), nil, &out)
	return out.Versions, err
}

func (s *server) policyVersion(r *http.Request, _ *Empty) (*PolicyText, error) {
	ref, err := pathVar(r, "version")
	if err != nil {
		return nil, err
	}
	id, ok := Ref(ref).id()
	if !ok {
		return nil, tailnet.Errorf(tailnet.Invalid, "%q is not a version: a whole number is asked for", clip(ref))
	}
	v, err := s.State.PolicyVersion(r.Context(), tailnet.PolicyID(id))
	if err != nil {
		return nil, err
	}
	return s.policyJSON(s.State.Snapshot(), v), nil
}

// PolicyVersion is one version of the policy with its text.
func (c *Client) PolicyVersion(ctx context.Context, version ID) (*PolicyText, error) {
	var out PolicyText
	err := c.do(ctx, http.MethodGet, c.path("policy", "version", version.String()), nil, &out)
	return &out, err
}

func (s *server) rollbackPolicy(r *http.Request, req *RollbackPolicyRequest) (*SetPolicyAnswer, error) {
	if req.Version == 0 {
		return nil, tailnet.Errorf(tailnet.Invalid, "no version is given: give the number of one in the history")
	}
	if err := checkText("comment", req.Comment); err != nil {
		return nil, err
	}
	p, err := s.parseVersion(r.Context(), req.Version)
	if err != nil {
		return nil, err
	}
	comment := "rollback to version " + req.Version.String()
	if req.Comment != "" {
		comment += ": " + req.Comment
		if len(comment) > maxText {
			comment = req.Comment
		}
	}
	return s.putPolicy(r, p, SetPolicyRequest{Comment: comment, Author: req.Author, IfMatch: req.IfMatch, Changes: req.Changes, AllowUnknownUsers: true})
}

// RollbackPolicy makes the text of an old version the newest one.
func (c *Client) RollbackPolicy(ctx context.Context, req RollbackPolicyRequest) (*SetPolicyAnswer, error) {
	var out SetPolicyAnswer
	err := c.do(ctx, http.MethodPost, c.path("policy", "rollback"), req, &out)
	return &out, err
}
