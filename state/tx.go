package state

import (
	"cmp"
	"crypto/rand"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	"tailscale.com/types/key"

	"github.com/skein-vpn/skein/dns"
	"github.com/skein-vpn/skein/policy"
	"github.com/skein-vpn/skein/tailnet"
)

// Tx is what a function given to State.Update works on: the newest state, with the changes made so far laid over it. It
// is used by the writer alone and is gone when the function returns. If the function fails, its changes are taken back.
type Tx struct {
	base *Snapshot
	st   *State
	now  time.Time

	tailnet  tailnet.Tailnet
	nodes    map[tailnet.NodeID]*tailnet.Node // nil: deleted
	users    map[tailnet.UserID]*tailnet.User
	keys     map[tailnet.PreAuthKeyID]*tailnet.PreAuthKey
	creds    map[string]*tailnet.Credential
	services map[string]*tailnet.Service // nil: deleted
	presence map[tailnet.NodeID]presence
	dns      *dns.Settings        // nil: as before
	records  *[]tailnet.DNSRecord // of a file; nil: as before
	derp     *DERPMaps            // nil: as before

	rules *policy.Compiled       // the new rules, without the changes of this transaction; nil: as before
	text  *tailnet.PolicyVersion // what rules were made from, if that is to be stored

	// The index as the changes leave it; 0 means taken out. byMachine holds whole lists, sorted by id.
	byKey     map[key.NodePublic]tailnet.NodeID
	byMachine map[key.MachinePublic][]tailnet.NodeID
	byName    map[string]tailnet.NodeID
	byAddr    map[netip.Addr]tailnet.NodeID

	lowHost uint64                          // as State.lowHost, with the changes so far
	heard   []heard                         // said to be online or offline: no longer presumed
	follows bool                            // the changes are another server's: committed, and saved, already
	claims  map[netip.Prefix]tailnet.NodeID // who carries what according to other servers
	dirty   []tailnet.NodeID                // whose presence is to be saved, once derive has run

	touches []touch               // by the function that runs
	own     []*tailnet.AuditEntry // of the function that runs
	audit   []*tailnet.AuditEntry // of all functions so far

	undo []func()
}

// presence is the soft part of a Node that a Tx may change.
type presence struct {
	online, failing, steady bool
	lastSeen                time.Time
	server                  string // that holds, or held last, the map session
}

// heard is what was said of a node's map session here.
type heard struct {
	id     tailnet.NodeID
	online bool
}

func newTx(st *State, base *Snapshot, now time.Time) *Tx {
	return &Tx{
		base: base, st: st, now: now, tailnet: base.Tailnet,
		nodes:     map[tailnet.NodeID]*tailnet.Node{},
		users:     map[tailnet.UserID]*tailnet.User{},
		keys:      map[tailnet.PreAuthKeyID]*tailnet.PreAuthKey{},
		creds:     map[string]*tailnet.Credential{},
		services:  map[string]*tailnet.Service{},
		presence:  map[tailnet.NodeID]presence{},
		byKey:     map[key.NodePublic]tailnet.NodeID{},
		byMachine: map[key.MachinePublic][]tailnet.NodeID{},
		byName:    map[string]tailnet.NodeID{},
		byAddr:    map[netip.Addr]tailnet.NodeID{},
		lowHost:   st.lowHost,
	}
}

// run calls the function of o, writes down what it has changed, and takes its changes back if it fails or panics.
func (tx *Tx) run(o *op) (err error) {
	tx.undo, tx.touches, tx.own = tx.undo[:0], tx.touches[:0], tx.own[:0]
	before := *tx
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic in update: %v", p)
			tx.st.log.Error("panic in an update", "err", p, "stack", stack())
		}
		if err == nil {
			return
		}
		for _, u := range slices.Backward(tx.undo) {
			u()
		}
		tx.tailnet, tx.dns, tx.records, tx.derp, tx.rules, tx.text = before.tailnet, before.dns, before.records, before.derp, before.rules, before.text
		tx.lowHost, tx.heard, tx.audit = before.lowHost, before.heard, before.audit
	}()
	if err := o.f(tx); err != nil {
		return err
	}
	tx.record(o, &before)
	return nil
}

// put writes m[k] = v so that it can be taken back.
func put[K comparable, V any](tx *Tx, m map[K]V, k K, v V) {
	old, had := m[k]
	tx.undo = append(tx.undo, func() {
		if had {
			m[k] = old
		} else {
			delete(m, k)
		}
	})
	m[k] = v
}

// Now is the time of the transaction, the same for all its functions.
func (tx *Tx) Now() time.Time { return tx.now }

// Tailnet are the tailnet's settings.
func (tx *Tx) Tailnet() tailnet.Tailnet { return tx.tailnet }

// SetSettings replaces the tailnet's settings; the error is Invalid if they cannot be.
func (tx *Tx) SetSettings(s tailnet.Settings) error {
	if err := s.Check(); err != nil {
		return err
	}
	if before := tx.tailnet.Settings.DNS; s.DNS != before {
		names, err := s.DNS.Normalize()
		if err != nil {
			return err
		}
		if s.DNS = names; reflect.DeepEqual(names, before) {
			s.DNS = before
		}
	}
	tx.tailnet.Settings = s
	return nil
}

// Node is the node with this id, or nil.
func (tx *Tx) Node(id tailnet.NodeID) *tailnet.Node {
	if n, ok := tx.nodes[id]; ok {
		return n
	}
	if n := tx.base.Node(id); n != nil {
		return n.Node
	}
	return nil
}

// NodeByKey is the node with this NodeKey, or nil.
func (tx *Tx) NodeByKey(k key.NodePublic) *tailnet.Node {
	return tx.Node(lookup(tx.byKey, tx.base.byKey, k))
}

// NodeByName is the node with this label, or nil.
func (tx *Tx) NodeByName(label string) *tailnet.Node {
	return tx.Node(lookup(tx.byName, tx.base.byName, label))
}

// NodesByMachine are the nodes of one machine, sorted by id.
func (tx *Tx) NodesByMachine(k key.MachinePublic) (out []*tailnet.Node) {
	for _, id := range lookup(tx.byMachine, tx.base.byMachine, k) {
		out = append(out, tx.Node(id))
	}
	return out
}

func lookup[K comparable, V any](over map[K]V, base table[K, V], k K) V {
	if v, ok := over[k]; ok {
		return v
	}
	return base.get(k)
}

// PutNode stores n, which is new (from NewNode) or a changed Clone. It fails with a Conflict if another node has its key,
// name or one of its addresses.
func (tx *Tx) PutNode(n *tailnet.Node) error {
	if err := checkNode(n); err != nil {
		return err
	}
	old := tx.Node(n.ID)
	if other := tx.NodeByKey(n.NodeKey); other != nil && other.ID != n.ID {
		return tailnet.Errorf(tailnet.Conflict, "this node key belongs to node %s", other.ShortName())
	}
	if other := tx.NodeByName(n.Name); other != nil && other.ID != n.ID {
		return tailnet.Errorf(tailnet.Conflict, "the name %q belongs to node %d", n.Name, other.ID)
	}
	if s := tx.Service(tailnet.ServicePrefix + n.Name); s != nil && (old == nil || old.Name != n.Name) {
		return tailnet.Errorf(tailnet.Conflict, "the name %q belongs to the service %s", n.Name, s.Name)
	}
	for _, a := range n.Addrs() {
		id := lookup(tx.byAddr, tx.base.byAddr, a)
		if id == aService {
			return tailnet.Errorf(tailnet.Conflict, "the address %s belongs to a service", a)
		}
		if id != 0 && id != n.ID {
			return tailnet.Errorf(tailnet.Conflict, "the address %s belongs to node %d", a, id)
		}
	}
	tx.touched(touchNode, int64(n.ID), "", old)
	if old != nil {
		tx.unindex(old)
	}
	tx.index(n)
	return nil
}

// index stores n and makes it known under all its names.
func (tx *Tx) index(n *tailnet.Node) {
	put(tx, tx.nodes, n.ID, n)
	put(tx, tx.byKey, n.NodeKey, n.ID)
	put(tx, tx.byName, n.Name, n.ID)
	for _, a := range n.Addrs() {
		put(tx, tx.byAddr, a, n.ID)
	}
	ids := slices.Clone(lookup(tx.byMachine, tx.base.byMachine, n.MachineKey))
	i, _ := slices.BinarySearch(ids, n.ID)
	put(tx, tx.byMachine, n.MachineKey, slices.Insert(ids, i, n.ID))
}

// checkNode refuses a node that would break an invariant of the tailnet; it guards against our own mistakes.
func checkNode(n *tailnet.Node) error {
	switch {
	case n.ID <= 0, n.StableID == "", n.Name == "", n.NodeKey.IsZero(), n.MachineKey.IsZero(), n.Hostinfo == nil,
		n.Tagged() == (n.User != 0):
		return fmt.Errorf("node %d is not complete: name %q, stable id %q, user %d, tags %q", n.ID, n.Name, n.StableID, n.User, n.Tags)
	}
	return nil
}

func (tx *Tx) unindex(n *tailnet.Node) {
	tx.released(n)
	put(tx, tx.byKey, n.NodeKey, 0)
	put(tx, tx.byName, n.Name, 0)
	for _, a := range n.Addrs() {
		put(tx, tx.byAddr, a, 0)
	}
	ids := lookup(tx.byMachine, tx.base.byMachine, n.MachineKey)
	put(tx, tx.byMachine, n.MachineKey, slices.DeleteFunc(slices.Clone(ids), func(id tailnet.NodeID) bool { return id == n.ID }))
}

// DeleteNode removes the node; it is not an error if there is none.
func (tx *Tx) DeleteNode(id tailnet.NodeID) {
	if n := tx.Node(id); n != nil {
		tx.touched(touchNode, int64(id), "", n)
		tx.unindex(n)
		put(tx, tx.nodes, id, nil)
	}
}

// NewNode is an empty node with the next id, a stable id, a free pair of addresses and a free name made from hostname. It
// is not stored yet. The error is Exhausted if there is no address left.
func (tx *Tx) NewNode(hostname string) (*tailnet.Node, error) {
	v4, v6, err := tx.freeAddrs()
	if err != nil {
		return nil, err
	}
	tx.tailnet.LastNodeID++
	return &tailnet.Node{
		ID:       tx.tailnet.LastNodeID,
		StableID: "n" + rand.Text()[:16],
		Hostname: hostname,
		Name:     tx.FreeName(hostname, 0),
		IPv4:     v4,
		IPv6:     v6,
		Created:  tx.now,
	}, nil
}

// FreeName is the MagicDNS label for a node that calls itself hostname; self, if not 0, may have it already.
func (tx *Tx) FreeName(hostname string, self tailnet.NodeID) string {
	return dns.Unique(dns.Label(hostname), func(label string) bool {
		n := tx.NodeByName(label)
		return n != nil && n.ID != self || tx.Service(tailnet.ServicePrefix+label) != nil
	})
}

// User is the user with this id, or nil.
func (tx *Tx) User(id tailnet.UserID) *tailnet.User {
	if u, ok := tx.users[id]; ok {
		return u
	}
	if id == tailnet.TaggedDevices {
		return nil
	}
	return tx.base.User(id)
}

// UserByName is the user with this name, or nil.
func (tx *Tx) UserByName(name string) *tailnet.User {
	for _, u := range tx.users {
		if u != nil && u.Name == name {
			return u
		}
	}
	if u := tx.base.UserByName(name); u != nil {
		if _, changed := tx.users[u.ID]; !changed {
			return u
		}
	}
	return nil
}

// UserByProviderID is the user with this ProviderID, or nil; there is none without one. It costs O(users).
func (tx *Tx) UserByProviderID(id string) *tailnet.User {
	return tx.findUser(func(u *tailnet.User) bool { return id != "" && u.ProviderID == id })
}

// UserByEmail is a user with this mail address, or nil; upper and lower case are the same. It costs O(users).
func (tx *Tx) UserByEmail(email string) *tailnet.User {
	return tx.findUser(func(u *tailnet.User) bool { return email != "" && strings.EqualFold(u.Email, email) })
}

// findUser is the user with the lowest id for which ok holds, or nil.
func (tx *Tx) findUser(ok func(*tailnet.User) bool) (found *tailnet.User) {
	look := func(u *tailnet.User) {
		if u != nil && ok(u) && (found == nil || u.ID < found.ID) {
			found = u
		}
	}
	for _, u := range tx.base.Users() {
		if _, changed := tx.users[u.ID]; !changed {
			look(u)
		}
	}
	for _, u := range tx.users {
		look(u)
	}
	return found
}

// NewUser is a user with the next id. It is not stored yet.
func (tx *Tx) NewUser(name string) *tailnet.User {
	tx.tailnet.LastUserID++
	return &tailnet.User{ID: tx.tailnet.LastUserID, Name: name, Created: tx.now}
}

// PutUser stores u. It fails with a Conflict if another user has its name or its ProviderID.
func (tx *Tx) PutUser(u *tailnet.User) error {
	if other := tx.UserByName(u.Name); other != nil && other.ID != u.ID {
		return tailnet.Errorf(tailnet.Conflict, "there is a namespace %q already", u.Name)
	}
	if other := tx.UserByProviderID(u.ProviderID); other != nil && other.ID != u.ID {
		return tailnet.Errorf(tailnet.Conflict, "the namespace %q belongs to this user of the identity provider already", other.Name)
	}
	tx.touched(touchUser, int64(u.ID), "", tx.User(u.ID))
	put(tx, tx.users, u.ID, u)
	return nil
}

// DeleteUser removes a user that has no nodes, and its keys.
func (tx *Tx) DeleteUser(id tailnet.UserID) error {
	for _, n := range tx.allNodes() {
		if n.User == id {
			return tailnet.Errorf(tailnet.Conflict, "the namespace still has nodes, such as %s: delete or move them first", n.ShortName())
		}
	}
	for _, k := range tx.PreAuthKeys() {
		if k.User == id {
			tx.DeletePreAuthKey(k.ID)
		}
	}
	for _, c := range tx.Credentials() {
		if c.User == id {
			tx.DeleteCredential(c.ID)
		}
	}
	tx.touched(touchUser, int64(id), "", tx.User(id))
	put(tx, tx.users, id, nil)
	return nil
}

// allNodes is every node with the changes so far; it costs O(nodes).
func (tx *Tx) allNodes() []*tailnet.Node {
	var out []*tailnet.Node
	for _, n := range tx.base.nodes {
		if _, changed := tx.nodes[n.ID]; !changed {
			out = append(out, n.Node)
		}
	}
	for _, n := range tx.nodes {
		if n != nil {
			out = append(out, n)
		}
	}
	return out
}

// PreAuthKeys are all keys with the changes so far, sorted by id.
func (tx *Tx) PreAuthKeys() []*tailnet.PreAuthKey {
	out := slices.DeleteFunc(slices.Clone(tx.base.keys), func(k *tailnet.PreAuthKey) bool { _, c := tx.keys[k.ID]; return c })
	for _, k := range tx.keys {
		if k != nil {
			out = append(out, k)
		}
	}
	slices.SortFunc(out, func(a, b *tailnet.PreAuthKey) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// PreAuthKey is the key with this id, or nil.
func (tx *Tx) PreAuthKey(id tailnet.PreAuthKeyID) *tailnet.PreAuthKey {
	if k, ok := tx.keys[id]; ok {
		return k
	}
	return tx.base.PreAuthKey(id)
}

// PreAuthKeyByHash is the key whose secret has this SHA-256, or nil.
func (tx *Tx) PreAuthKeyByHash(h [32]byte) *tailnet.PreAuthKey {
	for _, k := range tx.keys {
		if k != nil && k.Hash == h && len(k.Bcrypt) == 0 {
			return k
		}
	}
	for _, k := range tx.base.keys {
		if k.Hash == h && len(k.Bcrypt) == 0 {
			return tx.PreAuthKey(k.ID)
		}
	}
	return nil
}

// NewPreAuthKey is a key with the next id. It is not stored yet.
func (tx *Tx) NewPreAuthKey() *tailnet.PreAuthKey {
	tx.tailnet.LastPreAuthKeyID++
	return &tailnet.PreAuthKey{ID: tx.tailnet.LastPreAuthKeyID, Created: tx.now}
}

// PutPreAuthKey stores k.
func (tx *Tx) PutPreAuthKey(k *tailnet.PreAuthKey) {
	tx.touched(touchKey, int64(k.ID), "", tx.PreAuthKey(k.ID))
	put(tx, tx.keys, k.ID, k)
}

// DeletePreAuthKey removes the key; it is not an error if there is none.
func (tx *Tx) DeletePreAuthKey(id tailnet.PreAuthKeyID) {
	tx.touched(touchKey, int64(id), "", tx.PreAuthKey(id))
	put(tx, tx.keys, id, nil)
}

// Presence changes: soft state that is published like everything else but saved later.

func (tx *Tx) presenceOf(id tailnet.NodeID) presence {
	if p, ok := tx.presence[id]; ok {
		return p
	}
	if n := tx.base.Node(id); n != nil {
		return n.presence()
	}
	return presence{}
}

// SetOnline says whether the node has a map session at this server. A node that comes online is neither failing nor steady yet.
// One that has a session at another server stays online when the one here ends.
func (tx *Tx) SetOnline(id tailnet.NodeID, online bool) {
	tx.heard = append(tx.heard, heard{id, online})
	p := tx.presenceOf(id)
	switch {
	case tx.Node(id) == nil, !online && !p.online, !online && p.server != tx.st.server:
	case online && p.online && p.server != tx.st.server: // it has moved here
		p.server = tx.st.server
		put(tx, tx.presence, id, p)
	case p.online != online:
		put(tx, tx.presence, id, presence{online: online, lastSeen: tx.now, server: tx.st.server})
	}
}

// Seen says that the node has just been heard of though it has no map session: peers believe a new disco key of an offline
// node only if it was seen since the old one.
func (tx *Tx) Seen(id tailnet.NodeID) {
	if p := tx.presenceOf(id); !p.online && tx.Node(id) != nil {
		p.lastSeen, p.server = tx.now, tx.st.server
		put(tx, tx.presence, id, p)
	}
}

// SetFailing says whether a router that is online fails its probes.
func (tx *Tx) SetFailing(id tailnet.NodeID, failing bool) {
	if p := tx.presenceOf(id); p.failing != failing && tx.Node(id) != nil {
		p.failing, p.steady = failing, false
		put(tx, tx.presence, id, p)
	}
}

// SetSteady says that a router has been usable for long enough to take back what it was first to carry.
func (tx *Tx) SetSteady(id tailnet.NodeID) {
	if p := tx.presenceOf(id); !p.steady && p.online && !p.failing && tx.Node(id) != nil {
		p.steady = true
		put(tx, tx.presence, id, p)
	}
}

// SetDNS replaces the DNS settings of the configuration, which are not stored. What administrators have set beside them stays
// in force (tailnet.Settings.DNS).
func (tx *Tx) SetDNS(s *dns.Settings) { tx.dns = s }

// SetFileRecords replaces the DNS records that come from a file, on top of those of SetDNS, and reports whether they differ from
// those so far. They are not stored.
func (tx *Tx) SetFileRecords(rs []tailnet.DNSRecord) (changed bool) {
	before := tx.base.fileRecords
	if tx.records != nil {
		before = *tx.records
	}
	if slices.Equal(before, rs) {
		return false
	}
	tx.records = &rs
	return true
}

// SetDERP replaces the relay map, which comes from configuration and is not stored.
func (tx *Tx) SetDERP(m *DERPMaps) { tx.derp = m }

// changes is what the transaction would commit. Rows that are what they were are left out.
func (tx *Tx) changes() *tailnet.Changes {
	ch := &tailnet.Changes{When: tx.now, PutPolicy: tx.text, Audit: tx.audit}
	if tx.tailnet != tx.base.Tailnet {
		ch.Tailnet = &tx.tailnet
	}
	for _, id := range slices.Sorted(maps.Keys(tx.nodes)) {
		n, before := tx.nodes[id], tx.base.Node(id)
		switch {
		case n != nil && (before == nil || before.Node != n):
			ch.PutNodes = append(ch.PutNodes, n)
		case n == nil && before != nil:
			ch.DeleteNodes = append(ch.DeleteNodes, id)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(tx.users)) {
		if u := tx.users[id]; u != nil {
			ch.PutUsers = append(ch.PutUsers, u)
		} else if tx.base.User(id) != nil {
			ch.DeleteUsers = append(ch.DeleteUsers, id)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(tx.keys)) {
		if k := tx.keys[id]; k != nil {
			ch.PutPreAuthKeys = append(ch.PutPreAuthKeys, k)
		} else if tx.base.PreAuthKey(id) != nil {
			ch.DeletePreAuth = append(ch.DeletePreAuth, id)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(tx.creds)) {
		if c := tx.creds[id]; c != nil {
			ch.PutCredentials = append(ch.PutCredentials, c)
		} else if tx.base.Credential(id) != nil {
			ch.DeleteCredentials = append(ch.DeleteCredentials, id)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(tx.services)) {
		if s := tx.services[name]; s != nil {
			ch.PutServices = append(ch.PutServices, s)
		} else if tx.base.Service(name) != nil {
			ch.DeleteServices = append(ch.DeleteServices, name)
		}
	}
	return ch
}
