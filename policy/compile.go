package policy

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"tailscale.com/tailcfg"

	"github.com/skein-vpn/skein/tailnet"
)

// Options are the parts of a tailnet that policies refer to and that are neither users nor nodes.
type Options struct {
	// Domains are the domains of the tailnet's users: user:*@DOMAIN and localpart:*@DOMAIN may name no other. Nil: any.
	Domains []string

	// CheckURL is where nodes ask whether a checked SSH session may go on (tailcfg.SSHAction.HoldAndDelegate), without
	// the path, such as https://skein.example.com.
	CheckURL string

	// Custom are attributes of a node beside those that its client tells, for postures. Names begin with "custom:". Nil:
	// none. A change of them takes effect with the next With of the node.
	Custom func(*tailnet.Node) map[string]string

	// Services are the addresses of the tailnet's services by name (svc:NAME). Those that are missing have none yet.
	Services map[string][]netip.Addr

	// HTTPS says that nodes can get certificates; without it, Funnel is granted with a warning for the client.
	HTTPS bool
}

// bits is a set of small numbers.
type bits []uint64

func newBits(n int) bits { return make(bits, (n+63)/64) }

func (b bits) set(i int)      { b[i/64] |= 1 << (i % 64) }
func (b bits) clear(i int)    { b[i/64] &^= 1 << (i % 64) }
func (b bits) has(i int) bool { return b[i/64]&(1<<(i%64)) != 0 }

func (b bits) or(c bits) {
	for i, w := range c {
		b[i] |= w
	}
}

func (b bits) meets(c bits) bool {
	for i, w := range b {
		if w&c[i] != 0 {
			return true
		}
	}
	return false
}

// set is a list of targets as it stands on one side of a rule, together with postures. Rules with the same list share it.
type set struct {
	targets  []target
	postures []string
	star     bool           // "*" without postures: the whole tailnet and its subnet routes
	all      bool           // autogroup:danger-all without postures
	internet bool           // autogroup:internet
	nets     []netip.Prefix // literal addresses, without repetitions
}

// rules are a policy compiled against users and options: all that does not depend on nodes. They are shared by all
// Compiled values that differ in users and nodes only, and but for the registry never written to once Compile has returned.
type rules struct {
	policy *Policy
	opts   Options

	sets    []*set
	setID   map[string]int
	byToken map[string]bits // sets that name a token: a key of target, see tokens
	single  map[netip.Addr][]int
	prefix  []netSet
	posture []int // sets with postures
	every   bits  // sets that hold every node: "*" and danger-all

	items []item
	ssh   []*sshItem
	attrs []attrItem
	selfs []int // items whose destination is autogroup:self
	first []int // item → the first with the same set of sources, protocols and via

	registry registry

	parents map[string][]string // group → groups that hold it
	direct  map[string][]string // token of users → groups that name them
}

type netSet struct {
	net netip.Prefix
	set int
}

// item is a piece of a rule that makes one filter rule: sources, and what they get where.
type item struct {
	rule   *access
	src    int // set
	self   bool
	via    int   // set of routers; -1: none
	dst    []dst // none if self
	protos []int
	ranges []tailcfg.PortRange // of self
	caps   tailcfg.PeerCapMap  // instead of ports
	back   bool                // a companion: it grants the other way
}

// dst is one destination of an item.
type dst struct {
	set    int
	ranges []tailcfg.PortRange
}

type sshItem struct {
	rule *sshRule
	src  int
	dst  int // set without self; -1: none
	self bool
	rec  int // set of recorders; -1: none
}

type attrItem struct {
	rule *attrRule
	set  int
}

// Compile makes p usable for these users and nodes. It fails only for what Parse cannot know: a domain that is not the
// tailnet's. It costs O(rules + users + nodes).
func Compile(p *Policy, users []*tailnet.User, nodes []*tailnet.Node, opts Options) (*Compiled, error) {
	if opts.Domains != nil {
		for _, w := range p.domains {
			if !slices.Contains(opts.Domains, w.text) {
				l, c := p.d.position(w.off)
				return nil, Errors{{Line: l, Column: c, Path: w.path, Text: fmt.Sprintf("%s is not associated with this Tailnet and cannot be used in user:*@<domain> expressions; its domains are %s",
					clip(w.text), strings.Join(opts.Domains, ", "))}}
			}
		}
	}
	r := &rules{policy: p, opts: opts, setID: map[string]int{}}
	r.groups()
	r.build()
	r.index()
	r.registry.byKey = map[string]Class{}
	r.registry.classes.Store(&[]*class{})
	c := &Compiled{rules: r, hashes: make([]hash128, len(r.sets)), lists: make([]*list, len(r.sets)), memo: &memo{}}
	for i := range c.lists {
		c.lists[i] = &list{}
	}
	c.users = make([]userBits, 0, len(users))
	for _, u := range users {
		c.users = append(c.users, userBits{u, r.userSets(u)})
	}
	slices.SortFunc(c.users, func(a, b userBits) int { return cmp.Compare(a.user.ID, b.user.ID) })
	c.load(nodes)
	return c, nil
}

// UnknownUsers are the users, the domains of users, and the groups of identity providers, that the policy or its tests name and
// the tailnet does not have, each once, where it stands first. They may be misspelt, or people who are yet to come: which of the two the caller must know.
func (c *Compiled) UnknownUsers() (out Errors) {
	if c.allowAll {
		return nil
	}
	known := map[string]bool{}
	var names []string
	for _, u := range c.users {
		for _, t := range c.rules.tokens(u.user) {
			known[t] = true
		}
		for _, n := range userNames(u.user) {
			if strings.Contains(n, "@") { // policies can name no others
				names = append(names, n)
			}
		}
	}
	p := c.rules.policy
	for _, w := range slices.Concat(p.users, p.testUsers) {
		key := target{kind: kindUser, name: w.text}.key()
		if known[key] {
			continue
		}
		known[key] = true
		text := fmt.Sprintf("no user is called %q", clip(w.text))
		if len(out) < maxErrors { // a guess costs a look at all users
			if best := closest(w.text, names); best != "" {
				text += fmt.Sprintf("; did you mean %q?", best)
			}
		}
		l, col := p.d.position(w.off)
		out = append(out, &Error{Line: l, Column: col, Path: w.path, Text: text, User: w.text})
	}
	for _, w := range p.domains {
		key := target{kind: kindDomain, name: w.text}.key()
		if known[key] {
			continue
		}
		known[key] = true
		l, col := p.d.position(w.off)
		out = append(out, &Error{Line: l, Column: col, Path: w.path, User: "*@" + w.text, Text: fmt.Sprintf(
			"%s is not associated with this Tailnet and cannot be used in user:*@<domain> expressions: nobody's login ends so", clip(w.text))})
	}
	for _, w := range p.synced {
		key := target{kind: kindGroup, name: w.text}.key()
		if known[key] {
			continue
		}
		known[key] = true
		l, col := p.d.position(w.off)
		out = append(out, &Error{Line: l, Column: col, Path: w.path, User: w.text, Text: fmt.Sprintf(
			"the policy does not define %q, and nobody is in such a group at the identity provider", clip(w.text))})
	}
	slices.SortStableFunc(out, func(a, b *Error) int { return cmp.Or(a.Line-b.Line, a.Column-b.Column) })
	return out
}

// groups turns the groups around: who asks is a user, who answers are the groups that hold it.
func (r *rules) groups() {
	r.parents, r.direct = map[string][]string{}, map[string][]string{}
	for name, g := range r.policy.groups {
		for _, u := range g.users {
			r.direct[u.key()] = append(r.direct[u.key()], name)
		}
		for _, child := range g.groups {
			r.parents[child] = append(r.parents[child], name)
		}
	}
}

// userNames are the names by which policies may call u.
func userNames(u *tailnet.User) []string {
	names := []string{u.LoginName()}
	if u.Email != "" && u.Email != names[0] {
		names = append(names, u.Email)
	}
	if strings.Contains(u.Name, "@") {
		return append(names, u.Name)
	}
	return append(names, u.Name+"@")
}

// tokens are the keys of the targets that name u. A name matches the login, the e-mail address, and the user's name
// followed by an @, as other control servers write it.
func (r *rules) tokens(u *tailnet.User) []string {
	var out []string
	for _, n := range userNames(u) {
		out = append(out, target{kind: kindUser, name: n}.key())
	}
	_, domain, ok := strings.Cut(u.LoginName(), "@")
	if ok {
		out = append(out, target{kind: kindDomain, name: domain}.key())
	}
	groups := r.syncedGroups(u, domain)
	for _, t := range out {
		groups = append(groups, r.direct[t]...)
	}
	out = append(out, r.groupTokens(groups)...)
	if u.Role != tailnet.RoleMember {
		out = append(out, target{kind: kindRole, name: string(u.Role)}.key())
	}
	return out
}

// syncedGroups are the names in policies of the groups that u is in at its identity provider. What the policy itself defines
// under such a name holds alone. Keycloak writes groups as paths: the slash in front may be left out.
func (r *rules) syncedGroups(u *tailnet.User, domain string) (out []string) {
	for _, g := range u.Groups {
		names := []string{g}
		if short, ok := strings.CutPrefix(g, "/"); ok && short != "" {
			names = append(names, short)
		}
		for _, n := range names {
			for _, name := range []string{"group:" + n + "@", "group:" + n + "@" + domain} {
				if r.policy.groups[name] == nil && !slices.Contains(out, name) {
					out = append(out, name)
				}
			}
		}
	}
	return out
}

// groupTokens are the keys of the groups, of all groups that hold them, and of autogroup:member.
func (r *rules) groupTokens(queue []string) (out []string) {
	seen := map[string]bool{}
	for len(queue) > 0 {
		g := queue[0]
		queue = queue[1:]
		if !seen[g] {
			seen[g] = true
			out = append(out, target{kind: kindGroup, name: g}.key())
			queue = append(queue, r.parents[g]...)
		}
	}
	return append(out, keyMember)
}

// userSets are the sets that hold the devices of u.
func (r *rules) userSets(u *tailnet.User) bits {
	b := newBits(len(r.sets))
	for _, t := range r.tokens(u) {
		b.or(r.byToken[t])
	}
	return b
}

// set returns the number of the set of these targets.
func (r *rules) set(ts []target, postures []string) int {
	keys := make([]string, len(ts))
	for i, t := range ts {
		keys[i] = t.key()
	}
	slices.Sort(keys)
	keys = slices.Compact(keys)
	key := strings.Join(keys, "\n") + "\x00" + strings.Join(postures, "\n")
	if id, ok := r.setID[key]; ok {
		return id
	}
	s := &set{targets: ts, postures: postures}
	for _, t := range ts {
		switch t.kind {
		case kindStar:
			s.star = len(postures) == 0
		case kindAll:
			s.all = len(postures) == 0
		case kindInternet:
			s.internet = true
		case kindAddr:
			for _, n := range t.nets {
				if !slices.Contains(s.nets, n) {
					s.nets = append(s.nets, n)
				}
			}
		case kindService: // its hosts carry its addresses as they do routes
			s.nets = append(s.nets, prefixes(r.opts.Services[t.name])...)
		}
	}
	id := len(r.sets)
	r.sets, r.setID[key] = append(r.sets, s), id
	return id
}

// build makes the items.
func (r *rules) build() {
	p := r.policy
	if p.open {
		star := []target{{kind: kindStar}}
		r.access(&access{src: star, dst: []destination{{star[0], []ports{{nil, []tailcfg.PortRange{tailcfg.PortRangeAny}}}}}})
	}
	for _, a := range p.rules {
		r.access(a)
	}
	for _, s := range p.ssh {
		it := &sshItem{rule: s, src: r.set(s.src, s.postures), dst: -1, rec: -1}
		var others []target
		for _, t := range s.dst {
			if t.kind == kindSelf {
				it.self = true
			} else {
				others = append(others, t)
			}
		}
		if len(others) > 0 {
			it.dst = r.set(others, nil)
		}
		if len(s.recorders) > 0 {
			it.rec = r.set(s.recorders, nil)
		}
		r.ssh = append(r.ssh, it)
	}
	slices.SortStableFunc(r.ssh, func(a, b *sshItem) int { // checks come first: the first match decides, and a check is the stricter one
		return map[bool]int{true: 0, false: 1}[a.rule.check] - map[bool]int{true: 0, false: 1}[b.rule.check]
	})
	if p.randomizePort {
		r.attr(&attrRule{targets: []target{{kind: kindStar}}, attrs: tailcfg.NodeCapMap{tailcfg.NodeAttrRandomizeClientPort: nil}})
	}
	if p.disableIPv4 {
		r.attr(&attrRule{targets: []target{{kind: kindStar}}, attrs: tailcfg.NodeCapMap{attrDisableIPv4: nil}})
	}
	for _, a := range p.attrs {
		r.attr(a)
	}
	for _, a := range p.routes {
		r.set(a.by, nil)
	}
	r.set(p.exit, nil)
	for _, by := range p.services {
		r.set(by, nil)
	}
	seen := map[string]int{}
	for i, it := range r.items {
		if it.self {
			r.selfs = append(r.selfs, i)
		}
		key := fmt.Sprint(it.src, it.protos, it.via)
		if j, ok := seen[key]; ok {
			r.first = append(r.first, j)
			continue
		}
		r.first = append(r.first, i)
		if !it.self && it.caps == nil {
			seen[key] = i
		}
	}
}

func (r *rules) attr(a *attrRule) { r.attrs = append(r.attrs, attrItem{a, r.set(a.targets, nil)}) }

// access makes the items of one rule. Destinations that are autogroups get items of their own, after the others: the
// order of filter rules is that of the hosted service.
func (r *rules) access(a *access) {
	via := -1
	if len(a.via) > 0 {
		var ts []target
		for _, t := range a.via {
			ts = append(ts, target{kind: kindTag, name: t})
		}
		via = r.set(ts, nil)
	}
	src := r.set(a.src, a.postures)
	var runs [][]destination
	var plain []destination
	for _, d := range a.dst {
		if !d.autogroup() {
			plain = append(plain, d)
		}
	}
	if len(plain) > 0 {
		runs = append(runs, plain)
	}
	for _, d := range a.dst {
		if d.autogroup() {
			runs = append(runs, []destination{d})
		}
	}
	for _, run := range runs {
		for _, protos := range protocolsOf(run) {
			it := item{rule: a, src: src, via: via, protos: protos, self: run[0].kind == kindSelf}
			for _, d := range run {
				for _, o := range d.open {
					if slices.Equal(o.protos, protos) {
						it.dst = append(it.dst, dst{r.set([]target{d.target}, nil), o.ranges})
						it.ranges = o.ranges
					}
				}
			}
			r.items = append(r.items, it)
		}
	}
	if len(a.app) == 0 {
		return
	}
	app := clientNames(a.app)
	companions := companionsOf(app)
	for _, run := range runs {
		it := item{rule: a, src: src, via: via, caps: app, self: run[0].kind == kindSelf}
		for _, d := range run {
			it.dst = append(it.dst, dst{set: r.set([]target{d.target}, nil)})
		}
		r.items = append(r.items, it)
	}
	for _, name := range companions {
		caps := tailcfg.PeerCapMap{name: nil}
		for _, run := range runs {
			it := item{rule: a, caps: caps, via: -1, back: true}
			if it.self = run[0].kind == kindSelf; it.self {
				it.src = src
			} else {
				var ts []target
				for _, d := range run {
					ts = append(ts, d.target)
				}
				it.src = r.set(ts, nil)
				for _, t := range a.src {
					it.dst = append(it.dst, dst{set: r.set([]target{t}, a.postures)})
				}
			}
			r.items = append(r.items, it)
		}
	}
}

// protocolsOf are the protocol lists of the destinations, each once.
func protocolsOf(run []destination) (out [][]int) {
	for _, d := range run {
		for _, o := range d.open {
			if !slices.ContainsFunc(out, func(p []int) bool { return slices.Equal(p, o.protos) }) {
				out = append(out, o.protos)
			}
		}
	}
	return out
}

// clientNames is app with our own names replaced by those that clients know.
func clientNames(app tailcfg.PeerCapMap) tailcfg.PeerCapMap {
	if _, ok := app[CapTaildrop]; !ok {
		return app
	}
	out := tailcfg.PeerCapMap{}
	for k, v := range app {
		if k == CapTaildrop {
			k, v = capFileSend, nil
		}
		out[k] = v
	}
	return out
}

// Peer capabilities that come in pairs: who is granted the left one is shown the right one by the other side, or its
// client does not know that it may.
const (
	capDrive         tailcfg.PeerCapability = "tailscale.com/cap/drive"
	capDriveSharer   tailcfg.PeerCapability = "tailscale.com/cap/drive-sharer"
	capRelay         tailcfg.PeerCapability = "tailscale.com/cap/relay"
	capRelayTarget   tailcfg.PeerCapability = "tailscale.com/cap/relay-target"
	capFileSend      tailcfg.PeerCapability = "https://tailscale.com/cap/file-send"
	capSharingTarget tailcfg.PeerCapability = "https://tailscale.com/cap/file-sharing-target"
)

func companionsOf(app tailcfg.PeerCapMap) (out []tailcfg.PeerCapability) {
	for _, pair := range [][2]tailcfg.PeerCapability{{capDrive, capDriveSharer}, {capRelay, capRelayTarget}, {capFileSend, capSharingTarget}} {
		if _, ok := app[pair[0]]; ok {
			out = append(out, pair[1])
		}
	}
	return out
}

// index prepares finding the sets that hold a node.
func (r *rules) index() {
	n := len(r.sets)
	r.byToken, r.single, r.every = map[string]bits{}, map[netip.Addr][]int{}, newBits(n)
	for id, s := range r.sets {
		if len(s.postures) > 0 {
			r.posture = append(r.posture, id)
		}
		for _, t := range s.targets {
			if t.kind == kindStar || t.kind == kindAll {
				r.every.set(id)
				continue
			}
			k := t.key()
			if t.kind == kindAddr {
				continue
			}
			if r.byToken[k] == nil {
				r.byToken[k] = newBits(n)
			}
			r.byToken[k].set(id)
		}
		for _, net := range s.nets {
			if net.IsSingleIP() {
				r.single[net.Addr()] = append(r.single[net.Addr()], id)
			}
			r.prefix = append(r.prefix, netSet{net, id})
		}
	}
	slices.SortStableFunc(r.prefix, func(a, b netSet) int { // the wide ones first, so that single addresses can be left out
		return cmp.Compare(b2i(a.net.IsSingleIP()), b2i(b.net.IsSingleIP()))
	})
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// hash128 tells sets with different members apart.
type hash128 [2]uint64

func (h *hash128) toggle(id tailnet.NodeID) {
	h[0] ^= mix(uint64(id) + 0x9e3779b97f4a7c15)
	h[1] ^= mix(uint64(id) ^ 0xd1b54a32d192ed03)
}

// mix spreads x over all 64 bits (the last step of SplitMix64).
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// memo keeps what is derived from a Compiled when it is first asked for.
type memo struct {
	order   sync.Once
	first   []int // item → the first item with the same sources and protocols
	routers sync.Once
	byRoute map[netip.Prefix][]*entry // routers of each subnet route, in the order of creation
	ssh     sync.Once
	sources []sshSources // of each SSH rule
}
