package policy

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"go4.org/netipx"
	"tailscale.com/tailcfg"
)

// Policy is a policy as its text says it: names are understood, but not yet who they are. It is immutable; Compile makes
// it usable.
type Policy struct {
	d *decoder

	groups    map[string]*group
	hosts     map[string][]netip.Prefix
	ipsets    map[string]*ipset
	tagOwners map[string][]target

	rules    []*access // grants, then acls: the order of their filter rules
	open     bool      // neither acls nor grants: everybody reaches everybody
	ssh      []*sshRule
	attrs    []*attrRule
	routes   []routeApprover
	exit     []target
	services map[string][]target

	postures       map[string][]condition
	defaultPosture []string
	randomizePort  bool
	disableIPv4    bool
	oneCGNAT       string // "", "mac-always" or "mac-never"
	tests          []*accessTest
	sshTests       []*sshTest
	domains        []word // of user:*@DOMAIN and localpart:*@DOMAIN, to be checked against the tailnet's
	users          []word // that are named anywhere but in tests
	testUsers      []word // that tests name
	synced         []word // groups of identity providers that are named anywhere
}

// Text is the policy as it was given to Parse.
func (p *Policy) Text() []byte { return slices.Clone(p.d.src) }

// Warnings are what the policy says without effect here.
func (p *Policy) Warnings() []Warning { return slices.Clone(p.d.warnings) }

type group struct {
	off    int
	users  []target // kindUser and kindDomain
	groups []string
}

type ipset struct {
	off   int
	parts []word
	nets  []netip.Prefix
	state int // 0: not looked at, 1: being resolved, 2: done
}

// access is one rule of acls or grants.
type access struct {
	off      int
	label    string // acls[3]
	src      []target
	dst      []destination
	postures []string // of which the source must satisfy one; none: any source
	via      []string // tags of routers; none: any
	app      tailcfg.PeerCapMap
}

// destination is one element of dst and what of it is opened.
type destination struct {
	target
	open []ports
}

type sshRule struct {
	off       int
	label     string
	check     bool
	period    time.Duration // of a check; 0: each time
	src, dst  []target
	postures  []string
	users     []string // literal names
	nonroot   bool     // autogroup:nonroot
	domains   []string // of localpart:*@DOMAIN
	acceptEnv []string
	recorders []target
	enforce   bool
}

type attrRule struct {
	off     int
	targets []target
	attrs   tailcfg.NodeCapMap
	pool    []netip.Prefix
}

type routeApprover struct {
	prefix netip.Prefix
	by     []target
}

// accessTest is one element of tests, in words: a name that nobody has makes the test fail, not the policy.
type accessTest struct {
	off          int
	label        string
	src, proto   word
	accept, deny []word
	attrs        map[string]string // posture attributes of the source; nil: those of its devices
}

type sshTest struct {
	off                 int
	label               string
	src                 word
	dst                 []word
	accept, check, deny []word
	attrs               map[string]string // as of accessTest
}

func newPolicy(d *decoder) *Policy {
	return &Policy{
		d: d, groups: map[string]*group{}, hosts: map[string][]netip.Prefix{}, ipsets: map[string]*ipset{},
		tagOwners: map[string][]target{}, services: map[string][]target{}, postures: map[string][]condition{},
	}
}

// sections are the names at the top of a policy, each before those that refer to it.
var sections = []struct {
	name   string
	decode func(*Policy, value)
}{
	{"groups", (*Policy).decodeGroups},
	{"hosts", (*Policy).decodeHosts},
	{"ipsets", (*Policy).decodeIPSets},
	{"postures", (*Policy).decodePostures},
	{"tagOwners", (*Policy).decodeTagOwners},
	{"defaultSrcPosture", func(p *Policy, v value) { p.defaultPosture = p.postureNames(v) }},
	{"grants", (*Policy).decodeGrants},
	{"acls", (*Policy).decodeACLs},
	{"ssh", (*Policy).decodeSSH},
	{"nodeAttrs", (*Policy).decodeAttrs},
	{"autoApprovers", (*Policy).decodeApprovers},
	{"tests", (*Policy).decodeTests},
	{"sshTests", (*Policy).decodeSSHTests},
	{"randomizeClientPort", func(p *Policy, v value) { p.randomizePort = v.boolean() }},
	{"disableIPv4", func(p *Policy, v value) { p.disableIPv4 = v.boolean() }},
	{"OneCGNATRoute", (*Policy).decodeOneCGNAT},
	{"derpMap", func(p *Policy, v value) {
		p.d.warn(v.off(), "derpMap has no effect here: the relays are named in the server's configuration")
	}},
}

func (p *Policy) decode(v value) {
	given := map[string]member{}
	var names []string
	for _, s := range sections {
		names = append(names, s.name)
	}
	for _, m := range v.members() {
		i := slices.IndexFunc(names, func(n string) bool { return strings.EqualFold(n, m.key) })
		if i < 0 {
			m.unknown(names...)
			continue
		}
		if first, dup := given[names[i]]; dup {
			p.d.fail(m.off, m.path, "duplicate key %q: it stands in line %d already", m.key, p.d.line(first.off))
			continue
		}
		given[names[i]] = m
	}
	if tags, ok := given["tagOwners"]; ok && !tags.null() { // tags own tags: all must be known before the first owner is read
		for _, m := range tags.members() {
			if err := tailcfg.CheckTag(m.key); err != nil {
				p.d.fail(m.off, "", "tagOwners[%q]: %v", clip(m.key), err)
			}
			p.tagOwners[m.key] = nil
		}
		if len(p.d.errs) > 0 {
			return
		}
	}
	_, acls := given["acls"]
	_, grants := given["grants"]
	p.open = !acls && !grants
	for _, s := range sections {
		if m, ok := given[s.name]; ok && !m.null() {
			s.decode(p, m.value)
		}
	}
}

// fields calls f for each name of an object; f reports whether it knows the name.
func (p *Policy) fields(v value, known []string, f func(key string, v value)) {
	var seen []string
	for _, m := range v.members() {
		i := slices.IndexFunc(known, func(n string) bool { return strings.EqualFold(n, m.key) })
		if i < 0 {
			m.unknown(known...)
			continue
		}
		if slices.Contains(seen, known[i]) {
			p.d.fail(m.off, m.path, "duplicate key %q", m.key)
			continue
		}
		seen = append(seen, known[i])
		f(known[i], m.value)
	}
}

// targets understands the words of a list; side is what errors call it, such as "src=".
func (p *Policy) targets(v value, side string) []target {
	var out []target
	for _, w := range v.words() {
		t, err := p.target(w.text)
		if err != nil {
			p.d.fail(w.off, w.path, "%s%v", side, err)
			continue
		}
		p.note(t, w)
		out = append(out, t)
	}
	return out
}

// note keeps what only the tailnet can judge.
func (p *Policy) note(t target, w word) {
	switch t.kind {
	case kindDomain:
		p.domains = append(p.domains, word{t.name, w.off, w.path})
	case kindUser:
		p.users = append(p.users, word{t.name, w.off, w.path})
	case kindGroup:
		if p.groups[t.name] == nil {
			p.synced = append(p.synced, word{t.name, w.off, w.path})
		}
	}
}

func (p *Policy) decodeGroups(v value) {
	ms := v.members()
	for _, m := range ms {
		if !strings.HasPrefix(m.key, "group:") || len(m.key) == len("group:") {
			p.d.fail(m.off, m.path, "group names start with 'group:', such as \"group:%s\"", clip(strings.TrimPrefix(m.key, "group:")))
		}
		p.groups[m.key] = &group{off: m.off}
	}
	for _, m := range ms {
		g := p.groups[m.key]
		for _, w := range m.words() {
			t, err := p.target(w.text)
			switch {
			case err != nil:
				p.d.fail(w.off, w.path, "%v", err)
			case t.kind == kindUser, t.kind == kindDomain:
				p.note(t, w)
				g.users = append(g.users, t)
			case t.kind == kindGroup:
				p.note(t, w)
				g.groups = append(g.groups, t.name)
			default:
				p.d.fail(w.off, w.path, "%q cannot be in a group: groups hold users and groups", clip(w.text))
			}
		}
	}
	p.checkCycles()
}

// checkCycles reports groups that hold themselves. It walks with a stack of its own: chains may be long.
func (p *Policy) checkCycles() {
	state := map[string]int{} // 1: on the stack, 2: done
	type frame struct {
		name string
		next int
	}
	names := make([]string, 0, len(p.groups))
	for n := range p.groups {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, start := range names {
		if state[start] != 0 {
			continue
		}
		stack := []frame{{name: start}}
		state[start] = 1
		for len(stack) > 0 {
			top := &stack[len(stack)-1]
			if g := p.groups[top.name]; g != nil && top.next < len(g.groups) {
				child := g.groups[top.next]
				top.next++
				switch state[child] {
				case 0:
					state[child] = 1
					stack = append(stack, frame{name: child})
				case 1:
					p.d.fail(p.groups[child].off, fmt.Sprintf("groups[%q]", clip(child)), "group cycle: %s holds itself through %s", child, top.name)
					return
				}
				continue
			}
			state[top.name] = 2
			stack = stack[:len(stack)-1]
		}
	}
}

func (p *Policy) decodeHosts(v value) {
	for _, m := range v.members() {
		if m.key == "" || strings.ContainsAny(m.key, ":/@* ") {
			p.d.fail(m.off, m.path, "%q cannot name a host: the name must not hold any of : / @ * or blanks", clip(m.key))
			continue
		}
		w := m.word()
		n, err := parseNet(w.text)
		if err != nil {
			p.d.fail(w.off, w.path, "%v", err)
			continue
		}
		p.hosts[m.key] = []netip.Prefix{n}
	}
}

func (p *Policy) decodeIPSets(v value) {
	ms := v.members()
	for _, m := range ms {
		if !strings.HasPrefix(m.key, "ipset:") || len(m.key) == len("ipset:") {
			p.d.fail(m.off, m.path, "ipset names start with 'ipset:', such as \"ipset:%s\"", clip(strings.TrimPrefix(m.key, "ipset:")))
		}
		p.ipsets[m.key] = &ipset{off: m.off, parts: m.words()}
	}
	for _, m := range ms {
		p.resolveIPSet(m.key, 0)
	}
}

// maxIPSets is how many ipsets may hold each other in a row.
const maxIPSets = 64

func (p *Policy) resolveIPSet(name string, depth int) *netipx.IPSet {
	s := p.ipsets[name]
	empty := &netipx.IPSet{}
	switch {
	case s.state == 1:
		p.d.fail(s.off, fmt.Sprintf("ipsets[%q]", clip(name)), "ipset cycle: %s holds itself", clip(name))
		return empty
	case depth > maxIPSets:
		p.d.fail(s.off, fmt.Sprintf("ipsets[%q]", clip(name)), "more than %d ipsets inside each other", maxIPSets)
		return empty
	case s.state == 2:
		var b netipx.IPSetBuilder
		for _, n := range s.nets {
			b.AddPrefix(n)
		}
		set, _ := b.IPSet()
		return set
	}
	s.state = 1
	var b netipx.IPSetBuilder
	for _, w := range s.parts {
		verb, name, ok := strings.Cut(w.text, " ")
		if !ok || verb != "add" && verb != "remove" {
			verb, name = "add", w.text
		}
		set, err := p.ipsetPart(strings.TrimSpace(name), depth)
		switch {
		case err != nil:
			p.d.fail(w.off, w.path, "%v", err)
		case verb == "add":
			b.AddSet(set)
		default:
			b.RemoveSet(set)
		}
	}
	set, err := b.IPSet()
	if err != nil {
		set = empty
	}
	s.nets, s.state = set.Prefixes(), 2
	return set
}

// ipsetPart is what one element of an ipset stands for.
func (p *Policy) ipsetPart(name string, depth int) (*netipx.IPSet, error) {
	var b netipx.IPSetBuilder
	switch {
	case strings.HasPrefix(name, "ipset:"):
		if p.ipsets[name] == nil {
			return nil, fmt.Errorf("ipset not found: %q", clip(name))
		}
		return p.resolveIPSet(name, depth+1), nil
	case name == "autogroup:internet":
		for _, n := range internet {
			b.AddPrefix(n)
		}
	case p.hosts[strings.TrimPrefix(name, "host:")] != nil:
		for _, n := range p.hosts[strings.TrimPrefix(name, "host:")] {
			b.AddPrefix(n)
		}
	case strings.Contains(name, "-"):
		r, err := netipx.ParseIPRange(name)
		if err != nil {
			return nil, fmt.Errorf("%q: invalid range; it is written FIRST-LAST", clip(name))
		}
		b.AddRange(r)
	default:
		n, err := parseNet(name)
		if err != nil {
			return nil, fmt.Errorf("%q cannot be in an ipset: ipsets hold addresses, prefixes, ranges, names of hosts, "+
				"autogroup:internet and ipsets, each after \"add\" or \"remove\"", clip(name))
		}
		b.AddPrefix(n)
	}
	return b.IPSet()
}

// posturesName is how postures are called.
var posturesName = regexp.MustCompile(`^posture:[A-Za-z0-9_.-]+$`)

func (p *Policy) decodePostures(v value) {
	for _, m := range v.members() {
		if !posturesName.MatchString(m.key) {
			p.d.fail(m.off, m.path, "posture names start with 'posture:', such as \"posture:latestMac\"")
		}
		cs := []condition{}
		for _, w := range m.words() {
			c, err := parseCondition(w.text)
			if err != nil {
				p.d.fail(w.off, w.path, "%v", err)
				continue
			}
			if !knownAttribute(c.attr) {
				p.d.warn(w.off, "nothing here knows the attribute %s: it counts as not set", clip(c.attr))
			}
			cs = append(cs, c)
		}
		p.postures[m.key] = cs
	}
}

func (p *Policy) postureNames(v value) (out []string) {
	for _, w := range v.words() {
		if _, ok := p.postures[w.text]; !ok {
			p.d.fail(w.off, w.path, "posture not found: %q", clip(w.text))
			continue
		}
		out = append(out, w.text)
	}
	return out
}

func (p *Policy) decodeTagOwners(v value) {
	for _, m := range v.members() {
		for i, t := range p.targets(m.value, "") {
			if !t.owner() && t.kind != kindTag && t.kind != kindTagged {
				p.d.fail(m.off, m.path, "element %d cannot own a tag: owners are users, groups, autogroups of users, and tags", i)
			}
			p.tagOwners[m.key] = append(p.tagOwners[m.key], t)
		}
	}
}

func (p *Policy) decodeOneCGNAT(v value) {
	p.oneCGNAT = v.str()
	if !slices.Contains([]string{"", "mac-always", "mac-never"}, p.oneCGNAT) {
		v.fail("%q is not valid; want \"mac-always\", \"mac-never\" or \"\"", clip(p.oneCGNAT))
	}
}

func (p *Policy) decodeAttrs(v value) {
	for _, e := range v.elements() {
		r := &attrRule{off: e.off(), attrs: tailcfg.NodeCapMap{}}
		p.fields(e, []string{"target", "attr", "app", "ipPool"}, func(key string, v value) {
			switch key {
			case "target":
				r.targets = p.targets(v, "")
				for _, t := range r.targets {
					if t.kind == kindInternet || t.kind == kindSelf || t.kind == kindAll || t.kind == kindService {
						v.fail("a target of nodeAttrs is a user, group, tag, address, \"*\" or an autogroup of devices")
						break
					}
				}
			case "attr":
				for _, w := range v.words() {
					if w.text == "" {
						p.d.fail(w.off, w.path, "an attribute has a name")
						continue
					}
					r.attrs[tailcfg.NodeCapability(w.text)] = nil
				}
			case "app":
				for _, m := range v.members() {
					vals := []tailcfg.RawMessage{}
					for _, x := range m.elements() {
						vals = append(vals, tailcfg.RawMessage(x.raw()))
					}
					r.attrs[tailcfg.NodeCapability(m.key)] = vals
				}
			case "ipPool":
				r.pool = p.decodePool(v)
			}
		})
		p.attrs = append(p.attrs, r)
	}
}

// cgnat is the range that addresses of nodes come from.
var cgnat = netip.MustParsePrefix("100.64.0.0/10")

func (p *Policy) decodePool(v value) (out []netip.Prefix) {
	for _, w := range v.words() {
		n, err := parseNet(w.text)
		if err == nil && (!n.Addr().Is4() || !cgnat.Contains(n.Addr()) || n.Bits() < cgnat.Bits()) {
			err = fmt.Errorf("%q is outside of %s, where addresses come from", clip(w.text), cgnat)
		}
		if err != nil {
			p.d.fail(w.off, w.path, "%v", err)
			continue
		}
		out = append(out, n)
	}
	return out
}

func (p *Policy) decodeApprovers(v value) {
	by := func(v value) []target {
		ts := p.targets(v, "")
		for i, t := range ts {
			if !t.owner() && t.kind != kindTag && t.kind != kindTagged {
				v.fail("element %d cannot approve: approvers are users, groups, tags, and autogroups of these", i)
			}
		}
		return ts
	}
	p.fields(v, []string{"routes", "exitNode", "services"}, func(key string, v value) {
		switch key {
		case "routes":
			for _, m := range v.members() {
				n, err := parseNet(m.key)
				if err != nil {
					p.d.fail(m.off, m.path, "%v", err)
				}
				p.routes = append(p.routes, routeApprover{n, by(m.value)})
			}
		case "exitNode":
			p.exit = by(v)
		case "services":
			for _, m := range v.members() {
				switch t, err := p.target(m.key); {
				case err != nil:
					p.d.fail(m.off, m.path, "%v", err)
				case t.kind != kindService && t.kind != kindTag:
					p.d.fail(m.off, m.path, "services are written svc:NAME or tag:NAME")
				}
				p.services[m.key] = by(m.value)
			}
		}
	})
}

func (p *Policy) decodeTests(v value) {
	for i, e := range v.elements() {
		t := &accessTest{off: e.off(), label: fmt.Sprintf("tests[%d]", i)}
		p.fields(e, []string{"src", "proto", "accept", "deny", "allow", "srcPostureAttrs", "user"}, func(key string, v value) {
			switch key {
			case "src", "user":
				t.src = v.word()
			case "proto":
				t.proto = v.word()
			case "accept", "allow":
				t.accept = append(t.accept, v.words()...)
			case "deny":
				t.deny = v.words()
			case "srcPostureAttrs":
				t.attrs = testAttributes(v)
			}
		})
		p.noteTest(t.src, false)
		for _, w := range slices.Concat(t.accept, t.deny) {
			p.noteTest(w, true)
		}
		p.tests = append(p.tests, t)
	}
}

// noteTest keeps a user that a test names. Other faults of its words make the test fail, not the policy.
func (p *Policy) noteTest(w word, port bool) {
	text := w.text
	if host, _, err := splitPort(text); port && err == nil {
		text = host
	}
	if t, err := p.target(text); err == nil && t.kind == kindUser {
		p.testUsers = append(p.testUsers, word{t.name, w.off, w.path})
	}
}

// testAttributes are the posture attributes that a test gives its source.
func testAttributes(v value) map[string]string {
	out := map[string]string{}
	for _, m := range v.members() {
		switch kind := m.v.Value.Kind(); kind {
		case '"':
			out[m.key] = m.str()
		case 't', 'f', '0': // 0 stands for all numbers
			out[m.key] = m.raw()
		default:
			m.fail("a posture attribute is a string, a number, or true or false; this is %s", m.is())
		}
	}
	return out
}

func (p *Policy) decodeSSHTests(v value) {
	for i, e := range v.elements() {
		t := &sshTest{off: e.off(), label: fmt.Sprintf("sshTests[%d]", i)}
		p.fields(e, []string{"src", "dst", "accept", "check", "deny", "srcPostureAttrs"}, func(key string, v value) {
			switch key {
			case "src":
				t.src = v.word()
			case "dst":
				t.dst = v.words()
				for _, w := range t.dst {
					if w.text == "*" || strings.HasPrefix(w.text, "autogroup:") || strings.Contains(w.text, "/") {
						p.d.fail(w.off, w.path, "SSH tests dst contains disallowed element %q; want a user, a group, a tag, a host or an address", clip(w.text))
					}
				}
			case "accept":
				t.accept = v.words()
			case "check":
				t.check = v.words()
			case "deny":
				t.deny = v.words()
			case "srcPostureAttrs":
				t.attrs = testAttributes(v)
			}
		})
		p.noteTest(t.src, false)
		for _, w := range t.dst {
			p.noteTest(w, false)
		}
		p.sshTests = append(p.sshTests, t)
	}
}
