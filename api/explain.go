package api

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/skein-vpn/skein/policy"
	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// maxPairs is how many pairs of nodes one question about users or tags may be about.
const maxPairs = 100

// maxLine is how many bytes of a line of the policy are quoted.
const maxLine = 200

type (
	// ExplainRequest asks whether Src may reach Dst. Src is a node (as everywhere), a user, "user:NAME" where a node has
	// the same name, a tag, a group or an autogroup; all but a node stand for their nodes. Dst is one of these, a service (svc:NAME), or an
	// address behind a router or exit node, with ":PORT" behind it or not; with an IPv6 address, "[ADDRESS]:PORT".
	ExplainRequest struct {
		Src   Ref `json:"src,omitempty" query:"src" example:"homeds"`
		Dst   Ref `json:"dst,omitempty" query:"dst" example:"vm:22"`
		Port  ID  `json:"port,omitempty" query:"port"`   // 0: the one in Dst, or else whatever is open
		Proto Ref `json:"proto,omitempty" query:"proto"` // tcp, udp, icmp, icmpv6, sctp or a number; empty: TCP or UDP
	}
	// ExplainEnd is one end of a connection.
	ExplainEnd struct {
		Node      ID       `json:"node"` // "0": it lies behind a router or nowhere
		Name      string   `json:"name"` // MagicDNS label of the node
		Addresses []string `json:"addresses"`
	}
	// PolicyRule is a rule of the policy.
	PolicyRule struct {
		Rule   string `json:"rule"`   // such as acls[3]; empty where there are no rules
		Line   int    `json:"line"`   // 0: there are no rules
		Opens  string `json:"opens"`  // protocols and ports, such as "tcp 22, 80-443"
		Text   string `json:"text"`   // all of it in words
		Source string `json:"source"` // that line of the policy
	}
	// ExplainedSSH is a rule that lets Src open sessions on Dst. Of several the first that has the user decides.
	ExplainedSSH struct {
		PolicyRule
		Users       []string `json:"users"`       // as whom: names, "any user but root"
		Action      string   `json:"action"`      // accept or check
		CheckPeriod string   `json:"checkPeriod"` // of check: such as 12h, or always; empty: none
	}
	// ExplainedCapability is a capability of an application that Src is granted at Dst.
	ExplainedCapability struct {
		PolicyRule
		Name   string            `json:"name"`
		Values []json.RawMessage `json:"values"`
	}
	// Explanation says whether one node may reach another, or an address.
	Explanation struct {
		Src     ExplainEnd    `json:"src"`
		Dst     ExplainEnd    `json:"dst"`
		Port    int           `json:"port"`  // 0: any that is open
		Proto   string        `json:"proto"` // empty: TCP or UDP
		Allowed bool          `json:"allowed"`
		Rules   []PolicyRule  `json:"rules"`   // that allow it
		Near    []PolicyRule  `json:"near"`    // that open other ports or protocols for the same two
		Through []*ExplainEnd `json:"through"` // routers or exit nodes that Dst lies behind
		Why     string        `json:"why"`     // if there is no rule to tell

		SSH          []ExplainedSSH        `json:"ssh"`          // where Dst is a node; empty if another port was asked about
		Capabilities []ExplainedCapability `json:"capabilities"` // where Dst is a node
		Notes        []string              `json:"notes"`        // what keeps them apart beside the policy
	}
	// ExplainAnswer has an Explanation for each pair of nodes.
	ExplainAnswer struct {
		Allowed      bool           `json:"allowed"` // all of them
		Version      ID             `json:"version"` // of the policy
		Explanations []*Explanation `json:"explanations"`
		More         bool           `json:"more"` // there are further pairs
	}
)

// question is an ExplainRequest understood.
type question struct {
	sn    *state.Snapshot
	lines []string // of the policy
	port  uint16   // 0: any
	proto int      // 0: TCP or UDP
	name  string   // of proto
}

// destination is a node, or an address behind one.
type destination struct {
	node  *state.Node // nil: an address behind a router
	addrs []netip.Addr
}

func (s *server) explain(_ *http.Request, req *ExplainRequest) (*ExplainAnswer, error) {
	q := &question{sn: s.State.Snapshot()}
	q.lines = strings.Split(textInForce(q.sn.Policy), "\n")
	sources, err := nodesNamed(q.sn, string(req.Src), "source")
	if err != nil {
		return nil, err
	}
	name, err := q.read(*req)
	if err != nil {
		return nil, err
	}
	dests, err := q.destinations(name)
	if err != nil {
		return nil, err
	}
	out := &ExplainAnswer{Allowed: true, Explanations: []*Explanation{}}
	if q.sn.Text != nil && s.PolicyFile == "" {
		out.Version = ID(q.sn.Text.ID)
	}
	one := len(sources) == 1 && len(dests) == 1
	for _, src := range sources {
		for _, dst := range dests {
			if dst.node == src && !one {
				continue
			}
			if len(out.Explanations) >= maxPairs {
				out.More = true
				return out, nil
			}
			for _, x := range s.explainPair(q, src, dst) {
				out.Allowed = out.Allowed && x.Allowed
				out.Explanations = append(out.Explanations, x)
			}
		}
	}
	return out, nil
}

// ExplainPolicy says whether one node may reach another, and by which lines of the policy.
func (c *Client) ExplainPolicy(ctx context.Context, req ExplainRequest) (*ExplainAnswer, error) {
	var out ExplainAnswer
	err := c.do(ctx, http.MethodPost, c.path("policy", "explain"), req, &out)
	return &out, err
}

// read fills port and protocol, and returns the destination without its port.
func (q *question) read(req ExplainRequest) (string, error) {
	name, port, err := splitPort(string(req.Dst))
	if err != nil {
		return "", err
	}
	if req.Port < 0 || req.Port > 65535 {
		return "", badPort(req.Port.String())
	}
	if port != 0 && req.Port != 0 && port != uint16(req.Port) {
		return "", tailnet.Errorf(tailnet.Invalid, "the port is given twice, as %d and %d", port, req.Port)
	}
	q.port = max(port, uint16(req.Port))
	if q.proto, q.name, err = parseProto(string(req.Proto)); err != nil {
		return "", err
	}
	switch q.proto {
	case 6, 17, 132:
		if q.port == 0 {
			return "", tailnet.Errorf(tailnet.Invalid, "%s needs a port: write %s:22, say", q.name, clip(name))
		}
	}
	return name, nil
}

// splitPort takes a port off the end of a destination; 0 if there is none.
func splitPort(s string) (name string, port uint16, err error) {
	if a, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		return a.String(), 0, nil
	}
	if ap, err := netip.ParseAddrPort(s); err == nil && ap.Port() != 0 {
		return ap.Addr().String(), ap.Port(), nil
	}
	i := strings.LastIndexByte(s, ':')
	prefix := ""
	if i >= 0 {
		prefix = s[:i]
	}
	if i < 0 || prefix == "tag" || prefix == "user" || prefix == "group" || prefix == "autogroup" || prefix == "svc" {
		return s, 0, nil
	}
	port, err = parsePort(s[i+1:])
	return prefix, port, err
}

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, badPort(s)
	}
	return uint16(n), nil
}

func badPort(s string) error {
	return tailnet.Errorf(tailnet.Invalid, "%q is not a port: a number from 1 to 65535 is asked for", clip(s))
}

// protocols are those with a name.
var protocols = map[string]int{"icmp": 1, "igmp": 2, "ipv4": 4, "tcp": 6, "egp": 8, "igp": 9, "udp": 17, "gre": 47, "esp": 50, "ah": 51, "icmpv6": 58, "ipv6-icmp": 58, "sctp": 132}

func parseProto(s string) (number int, name string, err error) {
	s = strings.ToLower(strings.TrimSpace(s))
	if s == "" {
		return 0, "", nil
	}
	if n, ok := protocols[s]; ok {
		return n, s, nil
	}
	n, err := strconv.ParseUint(s, 10, 8)
	if err != nil || n == 0 {
		return 0, "", tailnet.Errorf(tailnet.Invalid, "%q is not a protocol: use tcp, udp, icmp, icmpv6, sctp, or a number from 1 to 255", clip(s))
	}
	for name, number := range protocols {
		if number == int(n) && name != "ipv6-icmp" {
			return number, name, nil
		}
	}
	return int(n), "protocol " + s, nil
}

// nodesNamed are the nodes that name stands for: one, those of a user, or those with a tag. what is its part in the question.
func nodesNamed(sn *state.Snapshot, name, what string) ([]*state.Node, error) {
	if name == "" {
		return nil, tailnet.Errorf(tailnet.Invalid, "no %s is given: name a node, a user, a tag or a group", what)
	}
	if strings.HasPrefix(name, "group:") || strings.HasPrefix(name, "autogroup:") || name == "*" {
		ids, err := sn.Policy.Named(name)
		if err != nil {
			return nil, tailnet.Errorf(tailnet.Invalid, "the %s: %w", what, err)
		}
		var out []*state.Node
		for _, id := range ids {
			if n := sn.Node(id); n != nil {
				out = append(out, n)
			}
		}
		if len(out) == 0 {
			return nil, tailnet.Errorf(tailnet.NotFound, "there are no nodes in %q", clip(name))
		}
		return out, nil
	}
	if strings.HasPrefix(name, "tag:") {
		var out []*state.Node
		for _, n := range sn.Nodes() {
			if slices.Contains(n.Tags, name) {
				out = append(out, n)
			}
		}
		if len(out) == 0 {
			return nil, tailnet.Errorf(tailnet.NotFound, "no node has the tag %q", clip(name))
		}
		return out, nil
	}
	login, userOnly := strings.CutPrefix(name, "user:")
	if !userOnly {
		if n, err := findNode(sn, Ref(name)); err == nil {
			return []*state.Node{n}, nil
		}
	}
	u := userNamed(sn, login)
	if u == nil {
		return nil, tailnet.Errorf(tailnet.NotFound, "there is no node, user or tag %q", clip(name))
	}
	var out []*state.Node
	for _, n := range sn.NodesOf(u.ID) {
		if !n.Tagged() {
			out = append(out, n)
		}
	}
	if len(out) == 0 {
		return nil, tailnet.Errorf(tailnet.NotFound, "the user %s has no nodes", u.Name)
	}
	return out, nil
}

// userNamed is the user with this name or mail address, which may end in @ as policies write it; nil if there is none. An id
// is a node's here.
func userNamed(sn *state.Snapshot, name string) *tailnet.User {
	name = strings.ToLower(name)
	for _, u := range sn.Users() {
		if u.Name == name || u.Name == strings.TrimSuffix(name, "@") || u.Email != "" && strings.EqualFold(u.Email, name) {
			return u
		}
	}
	return nil
}

func (q *question) destinations(name string) (out []destination, err error) {
	if a, err := netip.ParseAddr(name); err == nil {
		a = a.Unmap()
		if a.Zone() != "" {
			return nil, tailnet.Errorf(tailnet.Invalid, "%q has a zone, which means nothing in a tailnet", clip(name))
		}
		return []destination{{q.sn.NodeByAddr(a), []netip.Addr{a}}}, nil
	}
	if strings.HasPrefix(name, tailnet.ServicePrefix) {
		v := q.sn.Service(name)
		if v == nil {
			return nil, tailnet.Errorf(tailnet.NotFound, "there is no service %q", clip(name))
		}
		return []destination{{nil, v.Addrs()}}, nil
	}
	nodes, err := nodesNamed(q.sn, name, "destination")
	for _, n := range nodes {
		out = append(out, destination{n, q.sn.Policy.AddrsOf(n.Node)})
	}
	return out, err
}

// explainPair is one explanation, or several if the addresses of dst differ in it.
func (s *server) explainPair(q *question, src *state.Node, dst destination) (out []*Explanation) {
	if dst.node == src {
		x := q.empty(src, dst)
		x.Allowed, x.Why, x.Dst.Addresses = true, "a node reaches itself without the network", addrStrings(dst.addrs)
		return []*Explanation{x}
	}
	mine := q.sn.Policy.AddrsOf(src.Node)
	for _, a := range dst.addrs {
		spoken := slices.ContainsFunc(mine, func(m netip.Addr) bool { return m.Is4() == a.Is4() })
		if !spoken && len(dst.addrs) > 1 {
			continue // the other one will be used
		}
		x := q.empty(src, dst)
		x.Notes = s.notes(src, dst)
		q.ask(x, src, a)
		same := func(o *Explanation) bool {
			return o.Allowed == x.Allowed && o.Why == x.Why && slices.Equal(o.Rules, x.Rules) && slices.Equal(o.Near, x.Near)
		}
		if i := slices.IndexFunc(out, same); i >= 0 {
			out[i].Dst.Addresses = append(out[i].Dst.Addresses, a.String())
			continue
		}
		x.Dst.Addresses = []string{a.String()}
		out = append(out, x)
	}
	if dst.node != nil && len(out) > 0 { // sessions and capabilities are a matter of nodes, not of addresses
		q.askNode(out[0], src, dst.node)
	}
	return out
}

func (q *question) empty(src *state.Node, dst destination) *Explanation {
	x := &Explanation{Src: *endOf(src), Port: int(q.port), Proto: q.name, Rules: []PolicyRule{}, Near: []PolicyRule{}, Through: []*ExplainEnd{}, Notes: []string{},
		SSH: []ExplainedSSH{}, Capabilities: []ExplainedCapability{}}
	if dst.node != nil {
		x.Dst = *endOf(dst.node)
	}
	return x
}

func endOf(n *state.Node) *ExplainEnd {
	return &ExplainEnd{Node: ID(n.ID), Name: n.Name, Addresses: addrStrings(n.Addrs())}
}

func addrStrings(as []netip.Addr) []string {
	out := make([]string, 0, len(as))
	for _, a := range as {
		out = append(out, a.String())
	}
	return out
}

// ask fills x with what the policy says about an address.
func (q *question) ask(x *Explanation, src *state.Node, dst netip.Addr) {
	e := q.sn.Policy.Explain(src.Node, dst, q.proto, q.port)
	if x.Dst.Node == 0 {
		through := e.Through
		if q.sn.Policy.Policy() == nil {
			through = routersOf(q.sn, dst)
		}
		for _, id := range through {
			if n := q.sn.Node(id); n != nil {
				x.Through = append(x.Through, endOf(n))
			}
		}
	}
	x.Allowed, x.Why = e.Allowed, e.Why
	x.Rules, x.Near = q.rules(e.By), q.rules(e.Near)
	if q.port == 0 && q.proto == 0 && len(x.Near) > 0 { // whatever is open was asked for
		x.Allowed, x.Why = true, ""
		x.Rules, x.Near = append(x.Rules, x.Near...), []PolicyRule{}
		slices.SortStableFunc(x.Rules, func(a, b PolicyRule) int { return a.Line - b.Line })
	}
	if x.Dst.Node == 0 && len(x.Through) == 0 {
		x.Allowed, x.Rules = false, []PolicyRule{}
		x.Why = fmt.Sprintf("no node has the address %s and no approved route leads there", dst)
		if v := q.sn.ServiceByAddr(dst); v != nil {
			x.Why = fmt.Sprintf("no node that is approved for it hosts the service %s", v.Name)
		}
	}
}

// routersOf are the nodes with an approved route to dst; exit nodes only if there is no other.
func routersOf(sn *state.Snapshot, dst netip.Addr) (out []tailnet.NodeID) {
	var exits []tailnet.NodeID
	for _, n := range sn.Nodes() {
		for _, p := range n.ActiveRoutes() {
			switch {
			case !p.Contains(dst):
			case tailnet.IsExitRoute(p):
				exits = append(exits, n.ID)
			default:
				out = append(out, n.ID)
			}
		}
	}
	if len(out) == 0 && !dst.IsPrivate() {
		out = exits
	}
	return slices.Compact(out)
}

// sshPort is where SSH sessions begin.
const sshPort = 22

// askNode fills x with what the policy says beside the network: sessions of SSH, and capabilities.
func (q *question) askNode(x *Explanation, src, dst *state.Node) {
	for _, g := range q.sn.Policy.ExplainCapabilities(src.Node, dst.Node) {
		values := []json.RawMessage{}
		for _, v := range g.Values {
			values = append(values, json.RawMessage(v))
		}
		rule := PolicyRule{Rule: g.Label, Line: g.Line, Text: g.String(), Source: q.line(g.Line)}
		x.Capabilities = append(x.Capabilities, ExplainedCapability{rule, g.Name, values})
	}
	if !x.Allowed && len(x.Near) == 0 && len(x.Capabilities) > 0 {
		x.Why = "no rule opens ports between these two"
	}
	if q.port != 0 && q.port != sshPort || q.proto != 0 && q.proto != 6 {
		return
	}
	for _, r := range q.sn.Policy.ExplainSSH(src.Node, dst.Node) {
		one := ExplainedSSH{PolicyRule: PolicyRule{Rule: r.Label, Line: r.Line, Text: r.String(), Source: q.line(r.Line)}, Users: list(r.Users), Action: "accept"}
		if r.Check {
			one.Action, one.CheckPeriod = "check", r.PeriodText()
		}
		x.SSH = append(x.SSH, one)
	}
	if len(x.SSH) == 0 {
		return
	}
	if dst.Hostinfo == nil || len(dst.Hostinfo.SSH_HostKeys) == 0 {
		x.Notes = append(x.Notes, fmt.Sprintf("%s does not serve SSH sessions of the tailnet: tailscale set --ssh, there", dst.ShortName()))
	}
	for _, a := range q.sn.Policy.AddrsOf(dst.Node) {
		if q.sn.Policy.Explain(src.Node, a, 6, sshPort).Allowed {
			return
		}
	}
	x.Notes = append(x.Notes, "no rule of acls or grants opens tcp 22 between them, which a session needs")
}

// line is that line of the policy, shortened; empty if there is none.
func (q *question) line(n int) string {
	if n < 1 || n > len(q.lines) {
		return ""
	}
	s := strings.TrimSpace(q.lines[n-1])
	if len(s) > maxLine {
		s = strings.ToValidUTF8(s[:maxLine], "") + "…"
	}
	return s
}

func (q *question) rules(refs []policy.RuleRef) []PolicyRule {
	out := []PolicyRule{}
	for _, ref := range refs {
		rule := PolicyRule{Rule: ref.Label, Line: ref.Line, Opens: ref.Opens, Text: ref.String()}
		if ref.Label == "" {
			rule.Opens = "everything"
			if q.sn.Policy.Policy() == nil {
				rule.Text = "no policy is set, so that everybody reaches everybody"
			}
		}
		rule.Source = q.line(ref.Line)
		out = append(out, rule)
	}
	return out
}

// notes say what keeps two nodes apart whatever the policy says.
func (s *server) notes(src *state.Node, dst destination) []string {
	out := []string{}
	for _, n := range []*state.Node{src, dst.node} {
		switch {
		case n == nil:
		case n.Expired(s.Now()):
			out = append(out, fmt.Sprintf("the key of %s has expired: it takes part again once it has logged in", n.ShortName()))
		case !n.Approved:
			what := map[string]string{statusUserWaits: "belongs to a namespace that has not been approved yet", statusUserSuspended: "belongs to a suspended namespace"}
			out = append(out, fmt.Sprintf("%s %s", n.ShortName(), cmp.Or(what[nodeStatus(s.State.Snapshot(), n)], "has not been approved yet")))
		case !n.Online:
			out = append(out, fmt.Sprintf("%s is offline now", n.ShortName()))
		}
	}
	return out
}
