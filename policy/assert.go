package policy

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"tailscale.com/tailcfg"

	"github.com/skein-vpn/skein/tailnet"
)

// Failure is one assertion of tests or sshTests that does not hold.
type Failure struct {
	Line int    // of the test
	Test string // such as tests[2]
	Text string // what was asserted and why it does not hold
}

func (f Failure) String() string { return fmt.Sprintf("line %d: %s: %s", f.Line, f.Test, f.Text) }

// Failures are what Test found; there is at least one.
type Failures []Failure

func (fs Failures) Error() string {
	lines := []string{"test(s) failed"}
	for _, f := range fs {
		lines = append(lines, f.String())
	}
	return strings.Join(lines, "\n")
}

// Test runs the policy's tests and sshTests. The error is Failures.
//
// A test names users and tags whether they have devices or not, so that it says the same in an empty tailnet as in a full
// one; addresses are looked up among the nodes. A source that is several (a group) is all of them; so is a
// destination: to be accepted each may reach each, to be denied none may reach any.
func (c *Compiled) Test() error {
	if c.allowAll {
		return nil
	}
	var fs Failures
	for _, t := range c.rules.policy.tests {
		for _, text := range c.runTest(t) {
			fs = append(fs, Failure{c.rules.policy.d.line(t.off), t.label, text})
		}
	}
	for _, t := range c.rules.policy.sshTests {
		for _, text := range c.runSSHTest(t) {
			fs = append(fs, Failure{c.rules.policy.d.line(t.off), t.label, text})
		}
	}
	if len(fs) == 0 {
		return nil
	}
	return fs
}

// actor is one end of a connection in a test: a user, the devices of a tag, or an address.
type actor struct {
	name  string
	user  *tailnet.User
	tag   string
	group string     // a group without users: somebody who would be in it
	addr  netip.Addr // of an address
	node  *entry     // that has addr
	nodes []*entry   // of the user or the tag
	attrs map[string]string

	service string // of a service, whose address addr is then, if there is such a service
}

// actors are who w names. Tests may name more than one by a group or an autogroup of users.
func (c *Compiled) actors(w string) ([]actor, error) {
	t, err := c.rules.policy.target(w)
	if err != nil {
		return nil, err
	}
	switch t.kind {
	case kindUser:
		return []actor{c.userActor(t.name)}, nil
	case kindTag:
		a := actor{name: t.name, tag: t.name}
		for _, e := range c.entries {
			if slices.Contains(e.tags, t.name) {
				a.nodes = append(a.nodes, e)
			}
		}
		return []actor{a}, nil
	case kindTagged:
		var out []actor
		for _, tag := range slices.Sorted(maps.Keys(c.rules.policy.tagOwners)) {
			as, err := c.actors(tag)
			if err != nil {
				return nil, err
			}
			out = append(out, as...)
		}
		return out, nil
	case kindGroup, kindDomain, kindMember, kindRole:
		out := c.memberActors(t)
		if len(out) == 0 && t.kind == kindGroup {
			out = []actor{{name: t.name, group: t.name}}
		}
		return out, nil
	case kindAddr:
		if len(t.nets) != 1 || !t.nets[0].IsSingleIP() {
			return nil, fmt.Errorf("%q is more than one address; a test is about one", clip(w))
		}
		a := actor{name: w, addr: t.nets[0].Addr()}
		for _, e := range c.entries {
			if slices.Contains(e.addrs, a.addr) {
				a.node = e
			}
		}
		return []actor{a}, nil
	}
	return nil, fmt.Errorf("%q cannot be tested: want a user, a group, a tag, a host or an address", clip(w))
}

// destinationActors are who w names as a destination, which services can be, too.
func (c *Compiled) destinationActors(w string) ([]actor, error) {
	t, err := c.rules.policy.target(w)
	if err != nil || t.kind != kindService {
		return c.actors(w)
	}
	a := actor{name: w, service: t.name}
	if addrs := c.rules.opts.Services[t.name]; len(addrs) > 0 {
		a.addr = addrs[0]
	}
	return []actor{a}, nil
}

// userActor is the user with this login, who need not be known yet.
func (c *Compiled) userActor(login string) actor {
	key := target{kind: kindUser, name: login}.key()
	for _, u := range c.users {
		if slices.Contains(c.rules.tokens(u.user), key) {
			return actor{name: login, user: u.user, nodes: c.ownedBy(u.user.ID)}
		}
	}
	return actor{name: login, user: &tailnet.User{Name: strings.TrimSuffix(login, "@"), Email: login}}
}

// memberActors are the users of a group or an autogroup; those that a group names by themselves need not be known.
func (c *Compiled) memberActors(t target) (out []actor) {
	seen := map[string]bool{}
	add := func(a actor) {
		if id := a.user.LoginName(); !seen[id] {
			seen[id] = true
			out = append(out, a)
		}
	}
	for _, u := range c.users {
		if slices.Contains(c.rules.tokens(u.user), t.key()) {
			add(actor{name: u.user.LoginName(), user: u.user, nodes: c.ownedBy(u.user.ID)})
		}
	}
	if t.kind != kindGroup {
		return out
	}
	queue, done := []string{t.name}, map[string]bool{t.name: true}
	for len(queue) > 0 {
		g := c.rules.policy.groups[queue[0]]
		queue = queue[1:]
		if g == nil { // of an identity provider
			continue
		}
		for _, u := range g.users {
			if u.kind == kindUser {
				add(c.userActor(u.name))
			}
		}
		for _, child := range g.groups {
			if !done[child] {
				done[child] = true
				queue = append(queue, child)
			}
		}
	}
	return out
}

// tokensOf are the keys of targets that name a by what it is.
func (c *Compiled) tokensOf(a actor) []string {
	switch {
	case a.user != nil:
		return c.rules.tokens(a.user)
	case a.tag != "":
		return []string{target{kind: kindTag, name: a.tag}.key(), keyTagged}
	case a.group != "":
		return c.rules.groupTokens([]string{a.group})
	case a.node != nil && a.node.user == 0:
		out := []string{keyTagged}
		for _, t := range a.node.tags {
			out = append(out, target{kind: kindTag, name: t}.key())
		}
		return out
	case a.node != nil:
		if u := c.user(a.node.user); u != nil {
			return c.rules.tokens(u.user)
		}
		return []string{keyMember}
	}
	return nil
}

func (a actor) owner() tailnet.UserID {
	switch {
	case a.user != nil:
		return a.user.ID
	case a.node != nil:
		return a.node.user
	}
	return 0
}

// covers reports whether the targets hold a: all of it, or (some) at least a part.
func (c *Compiled) covers(ts []target, a actor, some bool) bool {
	tokens := c.tokensOf(a)
	for _, t := range ts {
		switch t.kind {
		case kindAll, kindStar:
			return true
		case kindInternet:
			if a.addr.IsValid() && slices.ContainsFunc(internet, func(n netip.Prefix) bool { return n.Contains(a.addr) }) {
				return true
			}
		case kindAddr:
			if a.within(t.nets, some) {
				return true
			}
		case kindService:
			if a.service == t.name || a.addr.IsValid() && slices.Contains(c.rules.opts.Services[t.name], a.addr) {
				return true
			}
		default:
			if slices.Contains(tokens, t.key()) {
				return true
			}
		}
	}
	return false
}

// within reports whether the addresses hold all devices of a, or (some) one of them. Of a device one address is enough.
func (a actor) within(nets []netip.Prefix, some bool) bool {
	if a.addr.IsValid() {
		return slices.ContainsFunc(nets, func(n netip.Prefix) bool { return n.Contains(a.addr) })
	}
	in := func(e *entry) bool {
		return slices.ContainsFunc(e.addrs, func(x netip.Addr) bool {
			return slices.ContainsFunc(nets, func(n netip.Prefix) bool { return n.Contains(x) })
		})
	}
	if some {
		return slices.ContainsFunc(a.nodes, in)
	}
	return len(a.nodes) > 0 && !slices.ContainsFunc(a.nodes, func(e *entry) bool { return !in(e) })
}

// reaches reports whether a rule lets src reach port on dst by one of the protocols.
func (c *Compiled) reaches(src, dst actor, protos []int, port uint16, some bool) bool {
	for _, a := range c.rules.policy.rules {
		if !c.covers(a.src, src, some) || !c.postured(a.postures, src, some) {
			continue
		}
		for _, d := range a.dst {
			if d.kind == kindSelf {
				if src.owner() == 0 || src.owner() != dst.owner() {
					continue
				}
			} else if !c.covers([]target{d.target}, dst, some) {
				continue
			}
			for _, o := range d.open {
				if o.admits(protos, port) {
					return true
				}
			}
		}
	}
	return c.rules.policy.open
}

// postured reports whether src satisfies one of the postures.
func (c *Compiled) postured(postures []string, src actor, some bool) bool {
	if len(postures) == 0 {
		return true
	}
	if src.attrs != nil {
		return c.rules.satisfies(postures, src.attrs)
	}
	nodes := src.nodes
	if src.node != nil {
		nodes = []*entry{src.node}
	}
	ok := func(e *entry) bool { return c.rules.satisfies(postures, e.attrs) }
	if some {
		return slices.ContainsFunc(nodes, ok)
	}
	return len(nodes) > 0 && !slices.ContainsFunc(nodes, func(e *entry) bool { return !ok(e) })
}

// defaultProtos are what a rule without protocols is about.
var defaultProtos = []int{6, 17, 1, 58}

func (o ports) admits(protos []int, port uint16) bool {
	own := o.protos
	if len(own) == 0 {
		own = defaultProtos
	}
	return slices.ContainsFunc(protos, func(p int) bool { return slices.Contains(own, p) }) &&
		slices.ContainsFunc(o.ranges, func(r tailcfg.PortRange) bool { return r.Contains(port) })
}

func (c *Compiled) runTest(t *accessTest) (fails []string) {
	fail := func(format string, args ...any) { fails = append(fails, fmt.Sprintf(format, args...)) }
	if t.src.text == "" {
		return []string{"the test has no src"}
	}
	if len(t.accept)+len(t.deny) == 0 {
		return []string{"the test asserts nothing: it has neither accept nor deny"}
	}
	srcs, err := c.actors(t.src.text)
	if err == nil && len(srcs) == 0 {
		err = fmt.Errorf("%q is nobody", t.src.text)
	}
	if err != nil {
		return []string{"src " + err.Error()}
	}
	for i := range srcs {
		srcs[i].attrs = t.attrs
	}
	protos, err := parseProto(t.proto.text)
	if err != nil {
		return []string{err.Error()}
	}
	if protos == nil {
		protos = []int{6, 17}
	}
	check := func(w word, want bool) {
		dsts, port, err := c.testDst(w.text, protos)
		if err != nil {
			fail("%s %q: %v", map[bool]string{true: "accept", false: "deny"}[want], clip(w.text), err)
			return
		}
		for _, src := range srcs {
			for _, dst := range dsts {
				if got := c.reaches(src, dst, protos, port, !want); got != want {
					fail("%s to %s:%d: want %s, got %s", src.name, dst.name, port, verdict(want), verdict(got))
					return
				}
			}
		}
	}
	for _, w := range t.accept {
		check(w, true)
	}
	for _, w := range t.deny {
		check(w, false)
	}
	return fails
}

func verdict(ok bool) string {
	if ok {
		return "accepted"
	}
	return "denied"
}

// testDst reads HOST:PORT of a test. The port is a single one; 0 where the protocol has none.
func (c *Compiled) testDst(s string, protos []int) ([]actor, uint16, error) {
	host, port, err := splitPort(s)
	if err != nil {
		return nil, 0, err
	}
	n, err := strconv.ParseUint(port, 10, 16)
	portless := !slices.ContainsFunc(protos, func(p int) bool { return slices.Contains(hasPorts, p) })
	if err != nil || n == 0 && !portless {
		return nil, 0, fmt.Errorf("port %q: a test is about a single port, 1 to 65535", clip(port))
	}
	dsts, err := c.destinationActors(host)
	if err == nil && len(dsts) == 0 {
		err = fmt.Errorf("%q is nobody", clip(host))
	}
	return dsts, uint16(n), err
}

func (c *Compiled) runSSHTest(t *sshTest) (fails []string) {
	if t.src.text == "" {
		return []string{"the test has no src"}
	}
	if len(t.accept)+len(t.check)+len(t.deny) == 0 {
		return []string{"the test asserts nothing: it has none of accept, check, deny"}
	}
	srcs, err := c.actors(t.src.text)
	if err == nil && len(srcs) == 0 {
		err = fmt.Errorf("%q is nobody", t.src.text)
	}
	if err != nil {
		return []string{"src " + err.Error()}
	}
	for i := range srcs {
		srcs[i].attrs = t.attrs
	}
	if len(t.dst) == 0 {
		return []string{"the test has no dst"}
	}
	for _, w := range t.dst {
		dsts, err := c.actors(w.text)
		if err == nil && len(dsts) == 0 {
			err = fmt.Errorf("%q is nobody", clip(w.text))
		}
		if err != nil {
			fails = append(fails, "dst "+err.Error())
			continue
		}
		for _, src := range srcs {
			for _, dst := range dsts {
				fails = append(fails, c.sshVerdicts(t, src, dst)...)
			}
		}
	}
	return fails
}

func (c *Compiled) sshVerdicts(t *sshTest, src, dst actor) (fails []string) {
	for _, list := range []struct {
		users []word
		want  string
	}{{t.accept, "accept"}, {t.check, "check"}, {t.deny, "deny"}} {
		for _, u := range list.users {
			if u.text == "" {
				fails = append(fails, fmt.Sprintf("%s: a user has a name", list.want))
				continue
			}
			if got := c.sshVerdict(src, dst, u.text); got != list.want {
				fails = append(fails, fmt.Sprintf("%s to %s as %s: want %s, got %s", src.name, dst.name, clip(u.text), list.want, got))
			}
		}
	}
	return fails
}

// sshVerdict is what the first rule that matches says.
func (c *Compiled) sshVerdict(src, dst actor, user string) string {
	owner := src.user
	if owner == nil && src.node != nil {
		if u := c.user(src.node.user); u != nil {
			owner = u.user
		}
	}
	for _, it := range c.rules.ssh {
		if !c.covers(it.rule.src, src, false) || !c.postured(it.rule.postures, src, false) {
			continue
		}
		match := (it.self || len(it.rule.domains) > 0) && src.owner() != 0 && src.owner() == dst.owner()
		for _, t := range it.rule.dst {
			match = match || t.kind != kindSelf && c.covers([]target{t}, dst, false)
		}
		if match && it.rule.permits(user, owner) {
			if it.rule.check {
				return "check"
			}
			return "accept"
		}
	}
	return "deny"
}
