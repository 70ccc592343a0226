package policy

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"tailscale.com/tailcfg"

	"github.com/skein-vpn/skein/tailnet"
)

// RuleRef names a rule of the policy.
type RuleRef struct {
	Label string // acls[3]; empty for the rule that a policy without acls and grants has
	Line  int    // 0 if Label is empty
	Opens string // protocols and ports, such as "tcp 22, 80-443"; for the pair that was asked about
}

func (r RuleRef) String() string {
	if r.Label == "" {
		return "the policy has neither acls nor grants, so that everybody reaches everybody"
	}
	return fmt.Sprintf("%s in line %d opens %s", r.Label, r.Line, r.Opens)
}

// Explanation says whether one connection is allowed, and by what.
type Explanation struct {
	Allowed bool
	By      []RuleRef        // the rules that allow it, in the order of the policy
	Near    []RuleRef        // rules that open other ports or protocols for the same two
	Through []tailnet.NodeID // routers or exit nodes that dst lies behind; none if it is a node
	Node    tailnet.NodeID   // that has dst; 0 if it lies behind a router or nowhere
	Why     string           // if it is not allowed: what is missing, for people
}

const noRule = "no rule has this source and this destination"

// Explain says whether src may reach port of dst by a protocol (its number; 0: TCP or UDP), and by which rules. dst is an address
// of a node, or one behind a router or exit node. Protocols without ports ignore port.
func (c *Compiled) Explain(src *tailnet.Node, dst netip.Addr, proto int, port uint16) Explanation {
	var x Explanation
	if c.allowAll {
		return Explanation{Allowed: true, By: []RuleRef{{}}}
	}
	s := c.entry(src.ID)
	if s == nil {
		x.Why = "the source is not a node of this tailnet"
		return x
	}
	protos := []int{proto}
	if proto == 0 {
		protos = []int{6, 17}
	}
	holders := c.holders(dst, &x)
	if len(holders) == 0 {
		x.Why = fmt.Sprintf("no node has the address %s and no approved route leads there", dst)
		return x
	}
	for i := range c.rules.items {
		it := &c.rules.items[i]
		if it.caps != nil || !c.sends(s, it.src, dst.Is4()) {
			continue
		}
		for _, d := range it.dst {
			if !slices.ContainsFunc(holders, func(h *entry) bool { return c.holds(s, h, it, d.set, dst) }) {
				continue
			}
			ref := c.ruleRef(it, d.ranges)
			if (ports{it.protos, d.ranges}).admitsAny(protos, port) {
				x.By = append(x.By, ref)
			} else {
				x.Near = append(x.Near, ref)
			}
		}
	}
	x.Allowed = len(x.By) > 0
	switch {
	case x.Allowed:
	case len(x.Near) > 0:
		x.Why = "rules allow these two other ports or protocols only"
	default:
		x.Why = noRule
	}
	return x
}

// Session is an ssh rule that lets one node open sessions on another.
type Session struct {
	Label  string        // ssh[2]
	Line   int           // of the rule
	Users  []string      // as whom: literal names, "any user but root", "NAME, the user of one's own name"
	Check  bool          // a person has to confirm it first
	Period time.Duration // for how long a confirmation holds; 0: for one session
}

func (s Session) String() string {
	how := ""
	switch {
	case s.Check && s.Period == 0:
		how = ", after a check each time"
	case s.Check:
		how = ", after a check that holds for " + s.PeriodText()
	}
	return fmt.Sprintf("%s in line %d lets in as %s%s", s.Label, s.Line, strings.Join(s.Users, ", "), how)
}

// PeriodText is Period as policies write it: 12h, 1h30m, always.
func (s Session) PeriodText() string {
	if s.Period == 0 {
		return "always"
	}
	text := s.Period.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

// ExplainSSH are the ssh rules for sessions from src on dst, in the order in which they are looked at: the first that has the
// user decides. It follows the same rules as SSH.
func (c *Compiled) ExplainSSH(src, dst *tailnet.Node) (out []Session) {
	if c.allowAll {
		return nil
	}
	s, d := c.entry(src.ID), c.entry(dst.ID)
	if s == nil || d == nil {
		return nil
	}
	for _, it := range c.rules.ssh {
		if !c.leadsTo(it, s, d) {
			continue
		}
		x := Session{Label: it.rule.label, Line: c.rules.policy.d.line(it.rule.off), Users: slices.Clone(it.rule.users), Check: it.rule.check, Period: it.rule.period}
		if it.rule.nonroot {
			x.Users = append(x.Users, anyName)
		}
		if u := c.user(s.user); u != nil {
			if local, ok := it.rule.localUser(u.user); ok {
				x.Users = append(x.Users, local+", "+ownName)
			}
		}
		if len(x.Users) > 0 {
			out = append(out, x)
		}
	}
	return out
}

// Capability is a grant of an application's capability to one node at another.
type Capability struct {
	Label  string // grants[2]
	Line   int    // of the rule
	Name   string // example.com/cap/name
	Values []tailcfg.RawMessage
}

func (g Capability) String() string {
	values := ""
	for _, v := range g.Values {
		values += " " + string(v)
	}
	return fmt.Sprintf("%s in line %d grants %s%s", g.Label, g.Line, g.Name, values)
}

// ExplainCapabilities are what src is granted at dst, in the order of the policy. Companions, which tell a client what it was
// granted, are not among them.
func (c *Compiled) ExplainCapabilities(src, dst *tailnet.Node) (out []Capability) {
	if c.allowAll {
		return nil
	}
	s, d := c.entry(src.ID), c.entry(dst.ID)
	if s == nil || d == nil {
		return nil
	}
	from, at := c.inOf(s), c.inOf(d)
	for i := range c.rules.items {
		it := &c.rules.items[i]
		if it.caps == nil || it.back || !from.has(it.src) {
			continue
		}
		reached := it.self && s.user != 0 && s.user == d.user
		for _, x := range it.dst {
			reached = reached || !it.self && at.has(x.set)
		}
		if !reached {
			continue
		}
		for _, name := range slices.Sorted(maps.Keys(it.rule.app)) {
			x := Capability{it.rule.label, c.rules.policy.d.line(it.rule.off), string(name), it.rule.app[name]}
			if !slices.ContainsFunc(out, func(o Capability) bool { return o.Label == x.Label && o.Name == x.Name }) {
				out = append(out, x)
			}
		}
	}
	return out
}

// admitsAny is admits, with protocols that have no ports let through whatever the port.
func (o ports) admitsAny(protos []int, port uint16) bool {
	for _, p := range protos {
		n := port
		if !slices.Contains(hasPorts, p) && len(o.ranges) > 0 {
			n = o.ranges[0].First
		}
		if o.admits([]int{p}, n) {
			return true
		}
	}
	return false
}

// holders are the nodes that packets for dst go to: the one that has it, or else the routers of the routes that hold it.
func (c *Compiled) holders(dst netip.Addr, x *Explanation) (out []*entry) {
	for _, e := range c.entries {
		if slices.Contains(e.addrs, dst) {
			x.Node = e.id
			return []*entry{e}
		}
	}
	public := slices.ContainsFunc(internet, func(n netip.Prefix) bool { return n.Contains(dst) })
	for _, e := range c.entries {
		k := c.class(e.class)
		if slices.ContainsFunc(k.routes, func(p netip.Prefix) bool { return p.Contains(dst) }) || k.exit && public {
			out = append(out, e)
			x.Through = append(x.Through, e.id)
		}
	}
	return out
}

// sends reports whether packets from e in a family have a source that the set holds.
func (c *Compiled) sends(e *entry, set int, is4 bool) bool {
	k, s := c.class(e.class), c.rules.sets[set]
	if !k.in.has(set) {
		return false
	}
	return slices.ContainsFunc(e.addrs, func(a netip.Addr) bool {
		return a.Is4() == is4 && (k.named.has(set) || slices.ContainsFunc(s.nets, func(n netip.Prefix) bool { return n.Contains(a) }))
	})
}

// holds reports whether the set, as a destination of it for src, holds dst at h.
func (c *Compiled) holds(src, h *entry, it *item, set int, dst netip.Addr) bool {
	k, s := c.class(h.class), c.rules.sets[set]
	own := slices.Contains(h.addrs, dst)
	switch {
	case it.self:
		return own && src.user != 0 && src.user == h.user
	case it.via >= 0:
		if own || !k.in.has(it.via) {
			return false
		}
	}
	switch {
	case s.star:
		return true
	case s.internet:
		return k.exit && slices.ContainsFunc(internet, func(n netip.Prefix) bool { return n.Contains(dst) })
	case len(s.nets) > 0:
		return slices.ContainsFunc(s.nets, func(n netip.Prefix) bool { return n.Contains(dst) }) && (own || k.over.has(set))
	}
	return own && k.in.has(set)
}

func (c *Compiled) ruleRef(it *item, ranges []tailcfg.PortRange) RuleRef {
	if it.rule.label == "" {
		return RuleRef{}
	}
	return RuleRef{Label: it.rule.label, Line: c.rules.policy.d.line(it.rule.off), Opens: opens(it.protos, ranges)}
}

// opens says protocols and ports in words.
func opens(protos []int, ranges []tailcfg.PortRange) string {
	names := ""
	for _, p := range protos {
		if names != "" {
			names += "+"
		}
		names += protoName(p)
	}
	all := slices.Contains(ranges, tailcfg.PortRangeAny)
	if all && names == "" {
		return "everything"
	}
	if all {
		return names
	}
	text := ""
	for i, r := range ranges {
		if i > 0 {
			text += ", "
		}
		if r.First == r.Last {
			text += fmt.Sprint(r.First)
		} else {
			text += fmt.Sprintf("%d-%d", r.First, r.Last)
		}
	}
	if names == "" {
		return "port " + text
	}
	return names + " " + text
}

func protoName(p int) string {
	switch p {
	case 1:
		return "icmp"
	case 6:
		return "tcp"
	case 17:
		return "udp"
	case 58:
		return "icmpv6"
	case 132:
		return "sctp"
	}
	return fmt.Sprintf("protocol %d", p)
}

// Named are the nodes that a name of the policy's language stands for, by id: a user, group, tag, autogroup of devices, address,
// prefix, host or ipset. The error says why it stands for none.
func (c *Compiled) Named(name string) (out []tailnet.NodeID, err error) {
	if c.allowAll {
		return nil, fmt.Errorf("%q means something in a policy only, and there is none", clip(name))
	}
	t, err := c.rules.policy.target(name)
	if err != nil {
		return nil, err
	}
	switch t.kind {
	case kindSelf, kindInternet, kindShared, kindService:
		return nil, fmt.Errorf("%q is not a set of nodes", clip(name))
	}
	for _, e := range c.entries {
		a := actor{node: e, nodes: []*entry{e}}
		if t.kind == kindStar || t.kind == kindAll || t.kind == kindAddr && a.within(t.nets, true) || slices.Contains(c.tokensOf(a), t.key()) {
			out = append(out, e.id)
		}
	}
	return out, nil
}
