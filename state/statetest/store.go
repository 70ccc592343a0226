// Package statetest is a store in memory for tests. It keeps the contract of state.Store (and, with Logins, of auth.Store)
// and can be made slow, broken, or one of several servers' stores:
//
//	Block       commits wait until they are let go: updates gather behind one
//	FailCommits commits fail, as if the disk were full
//	Intrude     another server commits something, so that the next commit of ours is a conflict
//
// Only tests may import it. It imports nothing of ours but tailnet, so that tests inside state can use it.
package statetest

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/types/key"

	"github.com/skein-vpn/skein/tailnet"
)

// ErrFailed is what a commit that was told to fail returns.
var ErrFailed = errors.New("statetest: told to fail")

// Commit is one commit that the store has taken.
type Commit struct {
	Rev     tailnet.Rev
	Changes *tailnet.Changes // with copies of its rows
	Foreign bool             // made by Intrude
}

// Store holds one tailnet in memory. What it is given and what it returns are copies, as with a database. It is safe for
// concurrent use; use New.
type Store struct {
	mu       sync.Mutex
	c        contents // guarded by mu, like all that follows
	commits  []Commit
	keep     bool
	saves    []map[tailnet.NodeID]tailnet.Presence
	deleted  map[key.NodePublic]*tailnet.Node
	taken    map[unique]tailnet.NodeID
	fail     int
	failSave int
	seq      int64 // of saves of presence
	failLoad int
	before   func(known tailnet.Rev, ch *tailnet.Changes) error
	gate     chan struct{}
	waiting  int
}

// contents is tailnet.Contents with its rows under their ids.
type contents struct {
	rev      tailnet.Rev
	tailnet  tailnet.Tailnet
	nodes    map[tailnet.NodeID]*tailnet.Node
	users    map[tailnet.UserID]*tailnet.User
	keys     map[tailnet.PreAuthKeyID]*tailnet.PreAuthKey
	creds    map[string]*tailnet.Credential
	services map[string]*tailnet.Service
	presence map[tailnet.NodeID]tailnet.Presence
	policies []*tailnet.PolicyVersion // oldest first
}

// New returns a store with an empty tailnet tailnet.DefaultID.
func New() *Store {
	return NewWith(&tailnet.Contents{Tailnet: tailnet.Tailnet{ID: tailnet.DefaultID, Name: tailnet.DefaultName}})
}

// NewWith returns a store that holds a copy of c.
func NewWith(c *tailnet.Contents) *Store {
	s := &Store{keep: true, deleted: map[key.NodePublic]*tailnet.Node{}, taken: map[unique]tailnet.NodeID{}}
	s.c = contents{
		rev: c.Rev, tailnet: c.Tailnet, presence: maps.Clone(c.Presence),
		nodes: map[tailnet.NodeID]*tailnet.Node{}, users: map[tailnet.UserID]*tailnet.User{}, keys: map[tailnet.PreAuthKeyID]*tailnet.PreAuthKey{},
		creds: map[string]*tailnet.Credential{}, services: map[string]*tailnet.Service{},
	}
	if s.c.presence == nil {
		s.c.presence = map[tailnet.NodeID]tailnet.Presence{}
	}
	for _, n := range c.Nodes {
		s.c.nodes[n.ID] = copyNode(n)
	}
	s.noteLocked(c.Nodes)
	for _, u := range c.Users {
		s.c.users[u.ID] = copyOf(u)
	}
	for _, k := range c.PreAuthKeys {
		s.c.keys[k.ID] = copyOf(k)
	}
	for _, k := range c.Credentials {
		s.c.creds[k.ID] = copyOf(k)
	}
	for _, v := range c.Services {
		s.c.services[v.Name] = copyOf(v)
	}
	if c.Policy != nil {
		s.c.policies = append(s.c.policies, copyOf(c.Policy))
	}
	return s
}

func copyOf[T any](v *T) *T {
	c := *v
	return &c
}

func copyNode(n *tailnet.Node) *tailnet.Node {
	c := *n
	c.Hostinfo = n.Hostinfo.Clone()
	c.Tags = slices.Clone(n.Tags)
	c.Endpoints = slices.Clone(n.Endpoints)
	c.EndpointTypes = slices.Clone(n.EndpointTypes)
	c.ApprovedRoutes = slices.Clone(n.ApprovedRoutes)
	c.KeySignature = slices.Clone(n.KeySignature)
	return &c
}

// Forget stops keeping the commits, for benchmarks.
func (s *Store) Forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keep, s.commits = false, nil
}

// FailCommits makes the next n commits fail with ErrFailed.
func (s *Store) FailCommits(n int) { s.set(func() { s.fail = n }) }

// FailSaves makes the next n SavePresence fail with ErrFailed.
func (s *Store) FailSaves(n int) { s.set(func() { s.failSave = n }) }

// FailLoads makes the next n Load or Sinces fail with ErrFailed.
func (s *Store) FailLoads(n int) { s.set(func() { s.failLoad = n }) }

// BeforeCommit has f called before each commit of ours, with nothing locked: it may Intrude, and an error of it is the
// commit's. nil takes it away.
func (s *Store) BeforeCommit(f func(known tailnet.Rev, ch *tailnet.Changes) error) {
	s.set(func() { s.before = f })
}

func (s *Store) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

// Block makes commits wait until release is called.
func (s *Store) Block() (release func()) {
	gate := make(chan struct{})
	s.set(func() { s.gate = gate })
	return sync.OnceFunc(func() {
		s.set(func() { s.gate = nil })
		close(gate)
	})
}

// Waiting is the number of commits that wait for the release of Block.
func (s *Store) Waiting() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.waiting
}

// Commits are the commits so far.
func (s *Store) Commits() []Commit {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.commits)
}

// Saves is what SavePresence was given, oldest first.
func (s *Store) Saves() []map[tailnet.NodeID]tailnet.Presence {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.saves)
}

// Presence is what is saved of the node.
func (s *Store) Presence(id tailnet.NodeID) tailnet.Presence {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.c.presence[id]
}

// Contents is a copy of all that the store holds.
func (s *Store) Contents() *tailnet.Contents {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.c.copy()
}

func (c *contents) copy() *tailnet.Contents {
	out := &tailnet.Contents{Rev: c.rev, Tailnet: c.tailnet, Presence: maps.Clone(c.presence)}
	for _, id := range slices.Sorted(maps.Keys(c.nodes)) {
		out.Nodes = append(out.Nodes, copyNode(c.nodes[id]))
	}
	for _, id := range slices.Sorted(maps.Keys(c.users)) {
		out.Users = append(out.Users, copyOf(c.users[id]))
	}
	for _, id := range slices.Sorted(maps.Keys(c.keys)) {
		out.PreAuthKeys = append(out.PreAuthKeys, copyOf(c.keys[id]))
	}
	for _, id := range slices.Sorted(maps.Keys(c.creds)) {
		out.Credentials = append(out.Credentials, copyOf(c.creds[id]))
	}
	for _, name := range slices.Sorted(maps.Keys(c.services)) {
		out.Services = append(out.Services, copyOf(c.services[name]))
	}
	if len(c.policies) > 0 {
		out.Policy = copyOf(c.policies[len(c.policies)-1])
	}
	return out
}

// Policies implements state.Store.
func (s *Store) Policies(_ context.Context, _ tailnet.ID, limit int, before tailnet.PolicyID) (out []*tailnet.PolicyVersion, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, v := range slices.Backward(s.c.policies) {
		if len(out) < limit && (before == 0 || v.ID < before) {
			out = append(out, copyOf(v))
		}
	}
	return out, nil
}

// Policy implements state.Store.
func (s *Store) Policy(_ context.Context, _ tailnet.ID, version tailnet.PolicyID) (*tailnet.PolicyVersion, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, v := range s.c.policies {
		if v.ID == version {
			return copyOf(v), nil
		}
	}
	return nil, tailnet.Errorf(tailnet.NotFound, "the policy has no version %d", version)
}

// Load implements state.Store.
func (s *Store) Load(ctx context.Context, id tailnet.ID) (*tailnet.Contents, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failLoad > 0 {
		s.failLoad--
		return nil, ErrFailed
	}
	if id != s.c.tailnet.ID {
		return nil, tailnet.Errorf(tailnet.NotFound, "there is no tailnet %d", id)
	}
	return s.c.copy(), nil
}

// Commit implements state.Store.
func (s *Store) Commit(ctx context.Context, id tailnet.ID, known tailnet.Rev, ch *tailnet.Changes) (tailnet.Rev, error) {
	s.mu.Lock()
	before := s.before
	s.mu.Unlock()
	if before != nil {
		if err := before(known, ch); err != nil {
			return 0, err
		}
	}
	if err := s.wait(ctx); err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail > 0 {
		s.fail--
		return 0, ErrFailed
	}
	if id != s.c.tailnet.ID {
		return 0, fmt.Errorf("there is no tailnet %d", id)
	}
	if known != s.c.rev {
		return 0, tailnet.ErrConflict
	}
	return s.commitLocked(ch, false)
}

// wait holds a commit up while the store is blocked.
func (s *Store) wait(ctx context.Context) error {
	s.mu.Lock()
	gate := s.gate
	if gate == nil {
		s.mu.Unlock()
		return nil
	}
	s.waiting++
	s.mu.Unlock()
	defer s.set(func() { s.waiting-- })
	select {
	case <-gate:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Intrude commits what f makes of the contents, as another server would; f may change neither its argument nor the rows
// in it. It panics if the changes are wrong in themselves.
func (s *Store) Intrude(f func(c *tailnet.Contents) *tailnet.Changes) tailnet.Rev {
	s.mu.Lock()
	defer s.mu.Unlock()
	rev, err := s.commitLocked(f(s.c.copy()), true)
	if err != nil {
		panic(fmt.Sprintf("statetest: Intrude: %v", err))
	}
	return rev
}

// commitLocked checks ch and takes it; s.mu must be held.
func (s *Store) commitLocked(ch *tailnet.Changes, foreign bool) (tailnet.Rev, error) {
	next := contents{
		rev: s.c.rev + 1, tailnet: s.c.tailnet, nodes: s.c.nodes, users: s.c.users, keys: s.c.keys, presence: s.c.presence,
		policies: s.c.policies, creds: s.c.creds, services: s.c.services,
	}
	if ch.Empty() {
		return 0, errors.New("statetest: an empty commit")
	}
	if ch.When.IsZero() && !foreign {
		return 0, errors.New("statetest: a commit without a time")
	}
	if ch.Tailnet != nil {
		next.tailnet = *ch.Tailnet
	}
	if err := s.checkLocked(&next, ch); err != nil {
		return 0, err
	}
	for _, id := range ch.DeleteNodes {
		n := next.nodes[id]
		s.deleted[n.NodeKey] = n
		delete(next.nodes, id)
		delete(next.presence, id)
	}
	for _, id := range ch.DeletePreAuth {
		delete(next.keys, id)
	}
	for _, id := range ch.DeleteCredentials {
		delete(next.creds, id)
	}
	for _, name := range ch.DeleteServices {
		delete(next.services, name)
	}
	for _, id := range ch.DeleteUsers {
		delete(next.users, id)
	}
	for _, u := range ch.PutUsers {
		next.users[u.ID] = copyOf(u)
	}
	for _, k := range ch.PutPreAuthKeys {
		next.keys[k.ID] = copyOf(k)
	}
	for _, k := range ch.PutCredentials {
		next.creds[k.ID] = copyOf(k)
	}
	for _, v := range ch.PutServices {
		next.services[v.Name] = copyOf(v)
	}
	for _, n := range ch.PutNodes {
		next.nodes[n.ID] = copyNode(n)
	}
	if ch.PutPolicy != nil {
		next.policies = append(slices.Clone(next.policies), copyOf(ch.PutPolicy))
	}
	s.c = next
	if s.keep {
		s.commits = append(s.commits, Commit{Rev: next.rev, Changes: copyChanges(ch), Foreign: foreign})
	}
	return next.rev, nil
}

func copyChanges(ch *tailnet.Changes) *tailnet.Changes {
	c := *ch
	c.PutNodes = nil
	for _, n := range ch.PutNodes {
		c.PutNodes = append(c.PutNodes, copyNode(n))
	}
	if ch.Tailnet != nil {
		c.Tailnet = copyOf(ch.Tailnet)
	}
	c.Why = slices.Clone(ch.Why)
	return &c
}

// checkLocked returns an error if ch breaks what a database would not let pass either: unique values, references. It
// costs what ch holds, except for a user's deletion.
func (s *Store) checkLocked(c *contents, ch *tailnet.Changes) error {
	for _, id := range ch.DeleteNodes {
		if c.nodes[id] == nil {
			return fmt.Errorf("statetest: node %d is deleted but is not there", id)
		}
	}
	for i, n := range ch.PutNodes {
		switch {
		case n == nil, n.Hostinfo == nil, n.StableID == "", n.Name == "":
			return fmt.Errorf("statetest: node %d of the commit is not complete: %+v", i, n)
		case n.ID > c.tailnet.LastNodeID:
			return fmt.Errorf("statetest: node %d is above the counter %d", n.ID, c.tailnet.LastNodeID)
		case n.User != 0 && !s.hasUser(c, ch, n.User):
			return fmt.Errorf("statetest: node %d belongs to user %d, who is not there", n.ID, n.User)
		}
	}
	for _, id := range ch.DeleteUsers {
		for _, n := range c.nodes {
			if n.User == id && !slices.Contains(ch.DeleteNodes, n.ID) && !slices.ContainsFunc(ch.PutNodes, func(p *tailnet.Node) bool { return p.ID == n.ID }) {
				return fmt.Errorf("statetest: user %d is deleted but has node %d", id, n.ID)
			}
		}
	}
	if err := uniqueUsers(c, ch); err != nil {
		return err
	}
	return s.uniqueNodesLocked(ch)
}

func (s *Store) hasUser(c *contents, ch *tailnet.Changes, id tailnet.UserID) bool {
	return !slices.Contains(ch.DeleteUsers, id) &&
		(c.users[id] != nil || slices.ContainsFunc(ch.PutUsers, func(u *tailnet.User) bool { return u.ID == id }))
}

func uniqueUsers(c *contents, ch *tailnet.Changes) error {
	if len(ch.PutUsers) == 0 {
		return nil
	}
	after := maps.Clone(c.users)
	for _, id := range ch.DeleteUsers {
		delete(after, id)
	}
	for _, u := range ch.PutUsers {
		after[u.ID] = u
	}
	names := map[string]bool{}
	for _, u := range after {
		if names[u.Name] {
			return fmt.Errorf("statetest: two users are called %q", u.Name)
		}
		names[u.Name] = true
	}
	return nil
}

// unique is a value that no two nodes may have.
type unique struct {
	what string
	v    any
}

func uniques(n *tailnet.Node) []unique {
	out := []unique{{"key", n.NodeKey}, {"name", n.Name}, {"stable id", n.StableID}}
	for _, a := range n.Addrs() {
		out = append(out, unique{"address", a})
	}
	return out
}

// uniqueNodesLocked checks the values of the nodes of ch and, if they are free, takes note of them. s.mu must be held.
func (s *Store) uniqueNodesLocked(ch *tailnet.Changes) error {
	seen, given := map[unique]bool{}, map[tailnet.NodeID]bool{} // given: ids that give their values up
	for _, id := range ch.DeleteNodes {
		given[id] = true
	}
	for _, n := range ch.PutNodes {
		given[n.ID] = true
	}
	for _, n := range ch.PutNodes {
		for _, u := range uniques(n) {
			if seen[u] {
				return fmt.Errorf("statetest: the commit gives %s %v to two nodes", u.what, u.v)
			}
			seen[u] = true
			if id := s.taken[u]; id != 0 && !given[id] {
				return fmt.Errorf("statetest: %s %v belongs to node %d", u.what, u.v, id)
			}
		}
	}
	for id := range given {
		if old := s.c.nodes[id]; old != nil {
			for _, u := range uniques(old) {
				delete(s.taken, u)
			}
		}
	}
	s.noteLocked(ch.PutNodes)
	return nil
}

// noteLocked enters the values of nodes; s.mu must be held.
func (s *Store) noteLocked(nodes []*tailnet.Node) {
	for _, n := range nodes {
		for _, u := range uniques(n) {
			s.taken[u] = n.ID
		}
	}
}

// Since implements state.Store. Of presence it tells everything whenever there is something new.
func (s *Store) Since(ctx context.Context, id tailnet.ID, known tailnet.Rev, presence int64) (*tailnet.Step, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failLoad > 0 {
		s.failLoad--
		return nil, ErrFailed
	}
	if !s.keep || known > s.c.rev {
		return nil, tailnet.ErrGap
	}
	step := &tailnet.Step{Rev: s.c.rev, PresenceSeq: s.seq}
	nodes, users, keys := map[tailnet.NodeID]bool{}, map[tailnet.UserID]bool{}, map[tailnet.PreAuthKeyID]bool{}
	creds, services := map[string]bool{}, map[string]bool{}
	seen := tailnet.Rev(0)
	for _, c := range s.commits {
		if c.Rev <= known {
			continue
		}
		seen++
		ch := c.Changes
		for _, n := range ch.PutNodes {
			nodes[n.ID] = true
		}
		for _, u := range ch.PutUsers {
			users[u.ID] = true
		}
		for _, k := range ch.PutPreAuthKeys {
			keys[k.ID] = true
		}
		for _, n := range ch.DeleteNodes {
			nodes[n] = true
		}
		for _, u := range ch.DeleteUsers {
			users[u] = true
		}
		for _, k := range ch.DeletePreAuth {
			keys[k] = true
		}
		for _, c := range ch.PutCredentials {
			creds[c.ID] = true
		}
		for _, c := range ch.DeleteCredentials {
			creds[c] = true
		}
		for _, v := range ch.PutServices {
			services[v.Name] = true
		}
		for _, name := range ch.DeleteServices {
			services[name] = true
		}
		if ch.Tailnet != nil {
			step.Changes.Tailnet = copyOf(&s.c.tailnet)
			if n := len(s.c.policies); n > 0 {
				step.Changes.PutPolicy = copyOf(s.c.policies[n-1])
			}
		}
	}
	if seen != s.c.rev-known {
		return nil, tailnet.ErrGap
	}
	step.Changes.PutNodes, step.Changes.DeleteNodes = since(nodes, s.c.nodes, copyNode)
	step.Changes.PutUsers, step.Changes.DeleteUsers = since(users, s.c.users, copyOf[tailnet.User])
	step.Changes.PutPreAuthKeys, step.Changes.DeletePreAuth = since(keys, s.c.keys, copyOf[tailnet.PreAuthKey])
	step.Changes.PutCredentials, step.Changes.DeleteCredentials = since(creds, s.c.creds, copyOf[tailnet.Credential])
	step.Changes.PutServices, step.Changes.DeleteServices = since(services, s.c.services, copyOf[tailnet.Service])
	if presence != s.seq {
		for _, id := range slices.Sorted(maps.Keys(s.c.presence)) {
			step.Presence = append(step.Presence, tailnet.NodeOnline{Node: id, Presence: s.c.presence[id]})
		}
	}
	return step, nil
}

// since are copies of those touched that are there, sorted by id, and the ids of the others.
func since[K cmp.Ordered, V any](touched map[K]bool, rows map[K]*V, copyRow func(*V) *V) (there []*V, gone []K) {
	for _, id := range slices.Sorted(maps.Keys(touched)) {
		if v := rows[id]; v != nil {
			there = append(there, copyRow(v))
		} else {
			gone = append(gone, id)
		}
	}
	return there, gone
}

// SavePresence implements state.Store.
func (s *Store) SavePresence(ctx context.Context, id tailnet.ID, server string, p map[tailnet.NodeID]tailnet.Presence) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failSave > 0 {
		s.failSave--
		return ErrFailed
	}
	s.seq++
	for nid, v := range p {
		old := s.c.presence[nid]
		switch {
		case s.c.nodes[nid] == nil:
		case v.Server != server:
			old.Primary = v.Primary
			s.c.presence[nid] = old
		case v.Online || old.Server == v.Server || !old.Online:
			s.c.presence[nid] = v
		}
	}
	if s.keep {
		s.saves = append(s.saves, maps.Clone(p))
	}
	return nil
}

// DeletedNode implements state.Store.
func (s *Store) DeletedNode(ctx context.Context, id tailnet.ID, k key.NodePublic) (*tailnet.Node, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := s.deleted[k]; n != nil {
		return copyNode(n), nil
	}
	return nil, nil
}

// Tailnet is the contents of a tailnet with n nodes that belong to one user, named node-1 and so on, with the addresses
// that sequential allocation would give them. They are published: each has a disco key, an endpoint and a home relay.
func Tailnet(n int) *tailnet.Contents {
	c := &tailnet.Contents{
		Rev: 1,
		Tailnet: tailnet.Tailnet{
			ID: tailnet.DefaultID, Name: tailnet.DefaultName, LastNodeID: tailnet.NodeID(n), LastUserID: 1,
		},
		Users:    []*tailnet.User{{ID: 1, Name: "junyao", Created: Epoch}},
		Presence: map[tailnet.NodeID]tailnet.Presence{},
	}
	v4, v6 := netip.MustParseAddr("100.64.0.0"), netip.MustParseAddr("fd7a:115c:a1e0::")
	for i := 1; i <= n; i++ {
		v4, v6 = v4.Next(), v6.Next()
		name := fmt.Sprintf("node-%d", i)
		n := &tailnet.Node{
			ID: tailnet.NodeID(i), StableID: fmt.Sprintf("n%016d", i),
			User: 1, Hostname: name, Name: name, IPv4: v4, IPv6: v6, Created: Epoch, Authorized: true,
			Hostinfo:  &tailcfg.Hostinfo{Hostname: name, OS: "linux", IPNVersion: "1.102.5"},
			Endpoints: []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)}), 41641)},
			HomeDERP:  901, Capver: tailcfg.CurrentCapabilityVersion, RegisterMethod: tailnet.RegisteredByKey,
		}
		randomKey("mkey:", &n.MachineKey)
		randomKey("nodekey:", &n.NodeKey)
		randomKey("discokey:", &n.DiscoKey)
		c.Nodes = append(c.Nodes, n)
	}
	return c
}

// randomKey makes k a public key to which nobody has the private one, which is much cheaper than a real one.
func randomKey(prefix string, k encoding.TextUnmarshaler) {
	var b [32]byte
	_, _ = rand.Read(b[:])
	if err := k.UnmarshalText([]byte(prefix + hex.EncodeToString(b[:]))); err != nil {
		panic(err)
	}
}

// Epoch is when the nodes of Tailnet were created.
var Epoch = time.Date(2026, 11, 20, 15, 0, 0, 0, time.UTC)
