package state

import (
	"context"
	"net/netip"
	"slices"

	"github.com/skein-vpn/skein/policy"
	"github.com/skein-vpn/skein/tailnet"
)

// Policy is the policy in force, as this transaction leaves it but for its changes of nodes and users.
func (tx *Tx) Policy() *policy.Compiled {
	if tx.rules != nil {
		return tx.rules
	}
	return tx.base.Policy
}

// PolicyText is the version of the policy that is stored; nil if none was ever set.
func (tx *Tx) PolicyText() *tailnet.PolicyVersion {
	if tx.text != nil {
		return tx.text
	}
	return tx.base.Text
}

// SetPolicy puts p in force and keeps its text as a new version; a nil p takes the policy away, so that everybody reaches
// everybody. Routes that it approves by itself are approved. It fails for what cannot be used in this tailnet, and if the
// policy comes from a file.
func (tx *Tx) SetPolicy(p *policy.Policy, author, comment string) error {
	if tx.st.policyFromFile {
		return tailnet.Errorf(tailnet.Conflict, "the policy is read from a file (policy.path): change it there and reload, or set policy.mode to database")
	}
	if err := tx.usePolicy(p); err != nil {
		return err
	}
	tx.tailnet.LastPolicyID++
	tx.text = &tailnet.PolicyVersion{ID: tx.tailnet.LastPolicyID, Author: author, Comment: comment, Created: tx.now}
	if p != nil {
		tx.text.Text = string(p.Text())
	}
	return nil
}

// UsePolicyFile puts p in force, which was read from the file that policies come from; nothing is stored.
func (tx *Tx) UsePolicyFile(p *policy.Policy) error { return tx.usePolicy(p) }

func (tx *Tx) usePolicy(p *policy.Policy) error {
	nodes := tx.allNodes()
	c, err := tx.st.compile(p, tx.allUsers(), nodes, tx.Services())
	if err != nil {
		return tailnet.Errorf(tailnet.Invalid, "the policy cannot be used: %w", err)
	}
	tx.rules = c
	for _, n := range nodes {
		if next := n.Clone(); tx.AutoApprove(next) {
			if err := tx.PutNode(next); err != nil {
				return err
			}
		}
	}
	return nil
}

// AutoApprove approves the advertised routes of n, and the services that it offers, that the policy approves by itself, and reports whether there were any.
// n is changed, so it must be a Clone or new.
func (tx *Tx) AutoApprove(n *tailnet.Node) (any bool) {
	return autoApprove(tx.Policy(), n, tx.Service)
}

func autoApprove(c *policy.Compiled, n *tailnet.Node, service func(name string) *tailnet.Service) (any bool) {
	for _, p := range n.AdvertisedRoutes() {
		if !slices.Contains(n.ApprovedRoutes, p) && c.Approves(n, p) {
			n.ApprovedRoutes = tailnet.SortPrefixes(append(slices.Clone(n.ApprovedRoutes), p))
			any = true
		}
	}
	return autoApproveServices(c, n, service) || any
}

// allUsers is every user with the changes so far.
func (tx *Tx) allUsers() []*tailnet.User {
	return overlay(tx.base.users, tx.users, func(u *tailnet.User) tailnet.UserID { return u.ID })
}

// compile is p for these users and nodes; a nil p is no policy.
func (st *State) compile(p *policy.Policy, users []*tailnet.User, nodes []*tailnet.Node, services []*tailnet.Service) (*policy.Compiled, error) {
	if p == nil {
		return policy.AllowAll(), nil
	}
	o := st.policyOptions
	o.Services = serviceAddrs(services)
	return policy.Compile(p, users, nodes, o)
}

// derivePolicy is the policy with the transaction's users and nodes in it. It costs O(rules) for each that changed, and a
// compilation only where the rules are new.
func (st *State) derivePolicy(base *Snapshot, tx *Tx, users []*tailnet.User) *policy.Compiled {
	if tx.rules != nil || tx.movesServices() {
		c, err := st.compile(tx.Policy().Policy(), users, tx.allNodes(), tx.Services())
		if err == nil {
			return c
		}
		// Impossible: it was compiled a moment ago, and only domains can fail. The old rules go on.
		st.log.Error("a policy that was accepted cannot be used; the one before stays in force", "err", err)
	}
	c := base.Policy
	for id, u := range tx.users {
		if old := base.User(id); old != nil || u != nil {
			c = c.WithUser(old, u)
		}
	}
	for id, row := range tx.nodes {
		var old *tailnet.Node
		if n := base.Node(id); n != nil {
			old = n.Node
		}
		if old != nil || row != nil {
			c = c.With(old, row)
		}
	}
	return c
}

// loadPolicy is the policy to begin with: the file's, or else the newest stored one that can be used. A policy that was
// stored by another version of Skein and is not understood any more must not stop the server, and must not open what the
// one before it closed.
func (st *State) loadPolicy(ctx context.Context, c *tailnet.Contents, file *policy.Policy) *policy.Compiled {
	use := func(p *policy.Policy) *policy.Compiled {
		compiled, err := st.compile(p, c.Users, c.Nodes, c.Services)
		if err != nil {
			st.log.Error("the policy cannot be used", "err", err)
			return nil
		}
		return compiled
	}
	if st.policyFromFile {
		if compiled := use(file); compiled != nil {
			return compiled
		}
		return use(denyAll)
	}
	if c.Policy == nil {
		return policy.AllowAll()
	}
	versions := []*tailnet.PolicyVersion{c.Policy}
	for i := 0; i < len(versions); i++ {
		v := versions[i]
		if v.Text == "" {
			return policy.AllowAll()
		}
		p, err := policy.Parse([]byte(v.Text))
		if err == nil {
			if compiled := use(p); compiled != nil {
				return compiled
			}
		}
		st.log.Error("THE STORED POLICY CANNOT BE USED; the newest one that can be takes its place until it is mended with `skein policy set`",
			"version", v.ID, "err", err)
		if i == 0 {
			older, err := st.store.Policies(ctx, st.id, maxOlderPolicies, 0)
			if err != nil {
				st.log.Error("older versions of the policy cannot be read", "err", err)
			}
			versions = append(versions, slices.DeleteFunc(older, func(o *tailnet.PolicyVersion) bool { return o.ID >= v.ID })...)
		}
	}
	st.log.Error("NO STORED POLICY CAN BE USED: nobody reaches anybody until one is set with `skein policy set`")
	return use(denyAll)
}

// reloadPolicy is the policy after somebody else has changed the tailnet to c: the stored one if that is new, otherwise the
// one in force, for the new users and nodes.
func (st *State) reloadPolicy(ctx context.Context, c *tailnet.Contents, base *Snapshot) *policy.Compiled {
	if same := c.Policy == nil && base.Text == nil || c.Policy != nil && base.Text != nil && c.Policy.ID == base.Text.ID; same || st.policyFromFile {
		if compiled, err := st.compile(base.Policy.Policy(), c.Users, c.Nodes, c.Services); err == nil {
			return compiled
		}
	}
	return st.loadPolicy(ctx, c, base.Policy.Policy())
}

// maxOlderPolicies is how far back a usable policy is looked for.
const maxOlderPolicies = 100

// denyAll lets nobody reach anybody.
var denyAll = func() *policy.Policy {
	p, err := policy.Parse([]byte(`{"acls": []}`))
	if err != nil {
		panic(err)
	}
	return p
}()

// Policies are the versions of the policy, the newest first, at most limit of them, and only those before a version; 0: all.
func (st *State) Policies(ctx context.Context, limit int, before tailnet.PolicyID) ([]*tailnet.PolicyVersion, error) {
	return st.store.Policies(ctx, st.id, limit, before)
}

// PolicyVersion is one version of the policy; a NotFound error if there is none with this number.
func (st *State) PolicyVersion(ctx context.Context, id tailnet.PolicyID) (*tailnet.PolicyVersion, error) {
	return st.store.Policy(ctx, st.id, id)
}

// TryPolicy is p, nil for none, as it would be in force over sn: with its users and nodes, and the routes approved that it approves
// by itself. Nothing is changed and no writer waits. The error is that of Tx.SetPolicy.
func (st *State) TryPolicy(sn *Snapshot, p *policy.Policy) (*policy.Compiled, error) {
	rows := make([]*tailnet.Node, len(sn.nodes))
	for i, n := range sn.nodes {
		rows[i] = n.Node
	}
	c, err := st.compile(p, sn.users, rows, sn.services)
	if err != nil {
		return nil, tailnet.Errorf(tailnet.Invalid, "the policy cannot be used: %w", err)
	}
	for _, n := range rows {
		if next := n.Clone(); autoApprove(c, next, sn.Service) {
			c = c.With(n, next)
		}
	}
	return c, nil
}

// Carrier says which of several routers of a prefix carries it (policy.Carrier): the primary, or for viewers that a policy
// steers to some of the routers only, the first of those that is usable.
func (sn *Snapshot) Carrier(p netip.Prefix, among []tailnet.NodeID) tailnet.NodeID {
	primary := sn.Routes.Primary(p)
	if among == nil || slices.Contains(among, primary) {
		return primary
	}
	for _, id := range among {
		if n := sn.Node(id); n != nil && n.usable() {
			return id
		}
	}
	if len(among) > 0 {
		return among[0]
	}
	return 0
}
