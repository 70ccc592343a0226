package policy

import (
	"cmp"
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"tailscale.com/tailcfg"

	"github.com/skein-vpn/skein/tailnet"
)

// Class is a set of nodes that a compiled policy does not tell apart, but for autogroup:self, which is a matter between
// the devices of one user. Classes mean the same in all Compiled values that have the same rules (SameRules), and nothing
// in others.
type Class int32

// NoClass is the class of nodes that a policy does not know. They see nobody and nobody sees them.
const NoClass Class = -1

// Compiled is a policy ready for use: rules resolved for users, and which nodes they hold. It is immutable and safe for
// concurrent use; With makes the next one, which shares nearly everything with it. The zero value is not valid.
type Compiled struct {
	allowAll bool // AllowAll: nothing below is set
	rules    *rules

	users   []userBits // sorted by id
	entries []*entry   // all nodes, sorted by id
	owned   []*entry   // untagged nodes, sorted by user and id
	members []*bucket  // class → its nodes; nil and missing ones are empty
	hashes  []hash128  // set → which nodes are in it
	lists   []*list    // set → the addresses of its nodes
	subnets []subnet   // approved subnet routes, sorted

	memo *memo
}

type userBits struct {
	user *tailnet.User
	in   bits
}

// entry is a node as far as policies care.
type entry struct {
	id      tailnet.NodeID
	user    tailnet.UserID // 0 if tagged
	tags    []string
	addrs   []netip.Addr // without IPv4 where it is disabled
	strs    []string     // addrs
	routes  []netip.Prefix
	created time.Time
	attrs   map[string]string // for postures; nil if the policy has none
	class   Class
	node    *tailnet.Node // as it was when something last changed that the policy looks at
}

// class is what the nodes of one class have in common.
type class struct {
	in     bits           // sets that hold the node itself
	named  bits           // of these, the ones that hold it by what it is, not by one of its addresses
	over   bits           // sets of literal addresses that meet its subnet routes
	tagged bool           // belongs to tags
	noV4   bool           // IPv4 is disabled
	exit   bool           // an approved exit node
	routes []netip.Prefix // approved subnet routes, sorted
	src    bits           // items of which it is a source
	dst    bits           // items of which it is a destination, autogroup:self apart
	self   bool           // it is a source of items for autogroup:self
	items  []int          // dst, as numbers
	attrs  tailcfg.NodeCapMap
}

// bucket is the nodes of one class, sorted by id.
type bucket struct{ nodes []*entry }

// registry numbers the classes of one set of rules. It only grows: a class stays when its last node goes.
type registry struct {
	classes atomic.Pointer[[]*class] // readers need no lock

	mu    sync.Mutex
	byKey map[string]Class // guarded by mu
}

func (g *registry) find(k *class) (Class, bool) {
	key := k.key()
	g.mu.Lock()
	defer g.mu.Unlock()
	id, ok := g.byKey[key]
	return id, ok
}

// number is the number of k, a new one if there is none; k is then the registry's.
func (g *registry) number(r *rules, k *class) Class {
	key := k.key()
	g.mu.Lock()
	defer g.mu.Unlock()
	if id, ok := g.byKey[key]; ok {
		return id
	}
	r.facts(k)
	all := append(*g.classes.Load(), k)
	g.classes.Store(&all)
	id := Class(len(all) - 1)
	g.byKey[key] = id
	return id
}

// class is what the nodes of a class have in common; nil for NoClass.
func (c *Compiled) class(id Class) *class {
	if all := *c.rules.registry.classes.Load(); id >= 0 && int(id) < len(all) {
		return all[id]
	}
	return nil
}

// bucketOf is a copy of the bucket of a class, put in place of it; c is not shared yet.
func (c *Compiled) bucketOf(id Class) *bucket {
	for int(id) >= len(c.members) {
		c.members = append(c.members, nil)
	}
	b := &bucket{}
	if c.members[id] != nil {
		*b = *c.members[id]
	}
	c.members[id] = b
	return b
}

type subnet struct {
	net   netip.Prefix
	nodes int // that carry it or stand by
}

// AllowAll is the policy of a tailnet that has none: everybody reaches everybody, and every approved route.
func AllowAll() *Compiled { return allowAll }

var allowAll = &Compiled{allowAll: true}

// SameRules reports whether c and o differ in nothing but users and nodes: classes of one mean the same in the other.
func (c *Compiled) SameRules(o *Compiled) bool { return c == o || o != nil && c.rules == o.rules }

// Policy is the policy that c was compiled from; nil for AllowAll.
func (c *Compiled) Policy() *Policy {
	if c.rules == nil {
		return nil
	}
	return c.rules.policy
}

// With is c after a node has become new; old is nil for one that is new, new is nil for one that is gone. It is c itself if nothing that
// the policy looks at is different. It costs O(rules) and copies of a few slices of pointers, whatever the number of
// nodes.
func (c *Compiled) With(old, new *tailnet.Node) *Compiled {
	if c.allowAll {
		return c
	}
	var was, is *entry
	if old != nil {
		was = c.entry(old.ID)
	}
	if new != nil {
		if was == nil {
			was = c.entry(new.ID)
		}
		is = &entry{}
	}
	n := *c
	if is != nil {
		n.classify(is, new)
		if was != nil && was.same(is) {
			return c
		}
	}
	if was == nil && is == nil {
		return c
	}
	n.memo = &memo{}
	n.hashes, n.lists, n.members = slices.Clone(c.hashes), slices.Clone(c.lists), slices.Clone(c.members)
	if was != nil {
		n.take(was)
	}
	if is != nil {
		n.put(is)
	}
	return &n
}

// WithUser is c after a user has become new; old is nil for one that is new, new is nil for one that is gone. The
// user's nodes change their classes with it.
func (c *Compiled) WithUser(old, new *tailnet.User) *Compiled {
	if c.allowAll || old == nil && new == nil {
		return c
	}
	n := *c
	id := tailnet.UserID(0)
	if old != nil {
		id = old.ID
	} else {
		id = new.ID
	}
	i, found := slices.BinarySearchFunc(c.users, id, func(u userBits, id tailnet.UserID) int { return cmp.Compare(u.user.ID, id) })
	var repl []userBits
	if new != nil {
		repl = []userBits{{new, c.rules.userSets(new)}}
		if found && slices.Equal(c.users[i].in, repl[0].in) && c.users[i].user.LoginName() == new.LoginName() &&
			slices.Equal(c.users[i].user.Groups, new.Groups) {
			return c
		}
	}
	end := i
	if found {
		end++
	}
	n.users = slices.Concat(c.users[:i], repl, c.users[end:])
	n.memo = &memo{}
	out := &n
	for _, e := range c.ownedBy(id) {
		out = out.With(e.node, e.node)
	}
	return out
}

// load puts all nodes in, when there are none yet.
func (c *Compiled) load(nodes []*tailnet.Node) {
	for _, n := range nodes {
		e := &entry{}
		c.classify(e, n)
		c.entries = append(c.entries, e)
		if e.user != 0 {
			c.owned = append(c.owned, e)
		}
		for _, r := range e.routes {
			if isSubnet(r) {
				c.subnets = append(c.subnets, subnet{r, 1})
			}
		}
		for int(e.class) >= len(c.members) {
			c.members = append(c.members, &bucket{})
		}
		b := c.members[e.class]
		b.nodes = append(b.nodes, e)
		c.class(e.class).in.each(func(set int) { c.hashes[set].toggle(e.id) })
	}
	slices.SortFunc(c.entries, byID)
	slices.SortFunc(c.owned, byOwner)
	for _, b := range c.members {
		slices.SortFunc(b.nodes, byID)
	}
	slices.SortFunc(c.subnets, func(a, b subnet) int { return comparePrefix(a.net, b.net) })
	out := c.subnets[:0]
	for _, s := range c.subnets {
		if len(out) > 0 && out[len(out)-1].net == s.net {
			out[len(out)-1].nodes++
		} else {
			out = append(out, s)
		}
	}
	c.subnets = out
}

// isSubnet reports whether r is neither an exit route nor the address of a service, which is in the tailnet's own ranges.
func isSubnet(r netip.Prefix) bool { return !tailnet.IsExitRoute(r) && !tailnet.IsServiceRoute(r) }

func byID(a, b *entry) int { return cmp.Compare(a.id, b.id) }
func byOwner(a, b *entry) int {
	return cmp.Or(cmp.Compare(a.user, b.user), cmp.Compare(a.id, b.id))
}

func comparePrefix(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

// each calls f for each number in b.
func (b bits) each(f func(int)) {
	for i, w := range b {
		for j := 0; w != 0; j++ {
			if w&1 != 0 {
				f(i*64 + j)
			}
			w >>= 1
		}
	}
}

// insert and remove copy s, which is sorted by order, with e in or out.
func insert(s []*entry, e *entry, order func(a, b *entry) int) []*entry {
	i, _ := slices.BinarySearchFunc(s, e, order)
	out := make([]*entry, 0, len(s)+1)
	return append(append(append(out, s[:i]...), e), s[i:]...)
}

func remove(s []*entry, e *entry, order func(a, b *entry) int) []*entry {
	i, ok := slices.BinarySearchFunc(s, e, order)
	if !ok {
		return s
	}
	out := make([]*entry, 0, len(s))
	return append(append(out, s[:i]...), s[i+1:]...)
}

// take removes a node; c is not shared yet.
func (c *Compiled) take(e *entry) {
	c.entries = remove(c.entries, e, byID)
	if e.user != 0 {
		c.owned = remove(c.owned, e, byOwner)
	}
	b := c.bucketOf(e.class)
	b.nodes = remove(b.nodes, e, byID)
	c.touch(e, -1)
}

// put adds a node; c is not shared yet.
func (c *Compiled) put(e *entry) {
	c.entries = insert(c.entries, e, byID)
	if e.user != 0 {
		c.owned = insert(c.owned, e, byOwner)
	}
	b := c.bucketOf(e.class)
	b.nodes = insert(b.nodes, e, byID)
	c.touch(e, 1)
}

// touch tells the sets that e is in that it came (1) or went (-1).
func (c *Compiled) touch(e *entry, delta int) {
	c.class(e.class).in.each(func(set int) {
		c.hashes[set].toggle(e.id)
		c.lists[set] = &list{}
	})
	for _, r := range e.routes {
		if !isSubnet(r) {
			continue
		}
		i, ok := slices.BinarySearchFunc(c.subnets, r, func(s subnet, r netip.Prefix) int { return comparePrefix(s.net, r) })
		c.subnets = slices.Clone(c.subnets)
		if !ok {
			c.subnets = slices.Insert(c.subnets, i, subnet{net: r})
		}
		if c.subnets[i].nodes += delta; c.subnets[i].nodes <= 0 {
			c.subnets = slices.Delete(c.subnets, i, i+1)
		}
	}
}

func (c *Compiled) entry(id tailnet.NodeID) *entry {
	i, ok := slices.BinarySearchFunc(c.entries, id, func(e *entry, id tailnet.NodeID) int { return cmp.Compare(e.id, id) })
	if !ok {
		return nil
	}
	return c.entries[i]
}

// ownedBy are the untagged nodes of a user.
func (c *Compiled) ownedBy(id tailnet.UserID) []*entry {
	if id == 0 {
		return nil
	}
	at := func(id tailnet.UserID) int {
		i, _ := slices.BinarySearchFunc(c.owned, id, func(e *entry, id tailnet.UserID) int { return cmp.Compare(e.user, id) })
		return i
	}
	return c.owned[at(id):at(id+1)]
}

func (c *Compiled) user(id tailnet.UserID) *userBits {
	i, ok := slices.BinarySearchFunc(c.users, id, func(u userBits, id tailnet.UserID) int { return cmp.Compare(u.user.ID, id) })
	if !ok {
		return nil
	}
	return &c.users[i]
}

func (e *entry) same(o *entry) bool {
	return e.class == o.class && e.user == o.user && slices.Equal(e.addrs, o.addrs) && slices.Equal(e.routes, o.routes) &&
		slices.Equal(e.tags, o.tags) && e.created.Equal(o.created) && maps.Equal(e.attrs, o.attrs)
}

// fill takes over what n says.
func (e *entry) fill(n *tailnet.Node) {
	e.id, e.tags, e.addrs, e.routes, e.created, e.node = n.ID, n.Tags, n.Addrs(), n.ActiveRoutes(), n.Created, n
	if !n.Tagged() {
		e.user = n.User
	}
}

// classify finds the class of n and fills e.
func (c *Compiled) classify(e *entry, n *tailnet.Node) {
	e.fill(n)
	e.class = c.rules.registry.number(c.rules, c.signature(e, n))
	for _, a := range e.addrs {
		e.strs = append(e.strs, a.String())
	}
}

// signature is the class that n would be in, without the facts that follow from it.
func (c *Compiled) signature(e *entry, n *tailnet.Node) *class {
	r := c.rules
	k := &class{in: newBits(len(r.sets)), over: newBits(len(r.sets)), tagged: n.Tagged()}
	k.in.or(r.every)
	switch {
	case k.tagged:
		k.in.or(r.byToken[keyTagged])
		for _, t := range n.Tags {
			k.in.or(r.byToken[target{kind: kindTag, name: t}.key()])
		}
	default:
		k.in.or(r.byToken[keyMember])
		if u := c.user(n.User); u != nil {
			k.in.or(u.in)
		}
	}
	k.named = slices.Clone(k.in)
	r.addressed(k.in, e.addrs)
	if r.disablesIPv4(k.in) {
		k.noV4 = true
		e.addrs = slices.DeleteFunc(slices.Clone(e.addrs), netip.Addr.Is4)
		k.in = slices.Clone(k.named)
		r.addressed(k.in, e.addrs)
	}
	for _, p := range e.routes {
		if tailnet.IsExitRoute(p) {
			k.exit = true
			continue
		}
		k.routes = append(k.routes, p)
		for _, s := range r.prefix {
			if s.net.Overlaps(p) {
				k.over.set(s.set)
			}
		}
	}
	if len(r.posture) > 0 {
		e.attrs = attributes(n, r.opts.Custom)
		for _, id := range r.posture {
			if !r.satisfies(r.sets[id].postures, e.attrs) {
				k.in.clear(id)
				k.named.clear(id)
			}
			k.over.clear(id) // what is behind a router has no posture
		}
	}
	return k
}

// addressed adds the sets that name one of the addresses.
func (r *rules) addressed(in bits, addrs []netip.Addr) {
	for _, a := range addrs {
		for _, id := range r.single[a] {
			in.set(id)
		}
		for _, s := range r.prefix {
			if s.net.IsSingleIP() {
				break
			}
			if s.net.Contains(a) {
				in.set(s.set)
			}
		}
	}
}

var (
	keyTagged = target{kind: kindTagged}.key()
	keyMember = target{kind: kindMember}.key()
)

// satisfies reports whether the attributes meet all conditions of one of the postures.
func (r *rules) satisfies(postures []string, attrs map[string]string) bool {
	return slices.ContainsFunc(postures, func(name string) bool {
		for _, cond := range r.policy.postures[name] {
			if !cond.holds(attrs) {
				return false
			}
		}
		return true
	})
}

func (r *rules) disablesIPv4(in bits) bool {
	return slices.ContainsFunc(r.attrs, func(a attrItem) bool {
		_, ok := a.rule.attrs[attrDisableIPv4]
		return ok && in.has(a.set)
	})
}

// key is the same for classes that are the same.
func (k *class) key() string {
	b := make([]byte, 0, 16*len(k.in)+2+24*len(k.routes))
	for _, w := range k.in {
		b = binary.LittleEndian.AppendUint64(b, w)
	}
	for i, w := range k.named { // where only one of two addresses is in a set, it is another class
		if w != k.in[i] {
			b = binary.LittleEndian.AppendUint32(b, uint32(i))
			b = binary.LittleEndian.AppendUint64(b, w)
		}
	}
	b = append(b, 0xff, byte(b2i(k.tagged)), byte(b2i(k.exit)), byte(b2i(k.noV4)))
	for _, p := range k.routes { // over follows from the routes
		b = append(b, p.Addr().AsSlice()...)
		b = append(b, byte(p.Bits()), byte(p.Addr().BitLen()))
	}
	return string(b)
}

// facts derives the rest of k.
func (r *rules) facts(k *class) {
	k.src, k.dst = newBits(len(r.items)), newBits(len(r.items))
	for i := range r.items {
		it := &r.items[i]
		if k.isSource(it.src) {
			k.src.set(i)
			k.self = k.self || it.self && !k.tagged
		}
		if !it.self && k.isDestination(r, it) {
			k.dst.set(i)
			k.items = append(k.items, i)
		}
	}
	k.attrs = r.attributesOf(k)
}

// isSource reports whether the node, or what is behind it, is in the set.
func (k *class) isSource(set int) bool { return k.in.has(set) || k.over.has(set) }

// isDestination reports whether the node has anything to do with it.
func (k *class) isDestination(r *rules, it *item) bool {
	if it.via >= 0 && !k.in.has(it.via) {
		return false
	}
	for _, d := range it.dst {
		if it.via >= 0 {
			if k.routed(r, d.set) {
				return true
			}
		} else if k.in.has(d.set) || k.over.has(d.set) || k.exit && r.sets[d.set].internet && it.caps == nil {
			return true
		}
	}
	return false
}

// routed reports whether the node's routes lead to the set. That is all that via is about.
func (k *class) routed(r *rules, set int) bool {
	s := r.sets[set]
	return k.over.has(set) || k.exit && (s.internet || s.star) || s.star && len(k.routes) > 0
}

// list is the addresses of a set's nodes, made when first asked for.
type list struct {
	once  sync.Once
	addrs []string
}

// ClassOf is the class of n, which must be in c (Compile, With); if n is not as it is in c, the class that it would have, or
// NoClass if no node has that.
func (c *Compiled) ClassOf(n *tailnet.Node) Class {
	if c.allowAll {
		return 0
	}
	if e := c.entry(n.ID); e != nil && e.node == n {
		return e.class
	}
	var e entry
	e.fill(n)
	if id, ok := c.rules.registry.find(c.signature(&e, n)); ok {
		return id
	}
	return NoClass
}
