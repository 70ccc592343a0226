package api

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"tailscale.com/types/key"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// Node is a node as administrators see it. The keys down to SubnetRoutes are headscale's, the rest is ours.
type Node struct {
	ID             ID          `json:"id"`
	MachineKey     string      `json:"machineKey"`
	NodeKey        string      `json:"nodeKey"`
	DiscoKey       string      `json:"discoKey"` // empty until the node has sent one
	IPAddresses    []string    `json:"ipAddresses"`
	Name           string      `json:"name"`      // as the machine calls itself
	GivenName      string      `json:"givenName"` // MagicDNS label
	User           *User       `json:"user"`      // tagged-devices if the node is tagged
	LastSeen       *time.Time  `json:"lastSeen"`  // now, if it is online; null: never
	Expiry         *time.Time  `json:"expiry"`    // null: never
	PreAuthKey     *PreAuthKey `json:"preAuthKey"`
	CreatedAt      *time.Time  `json:"createdAt"`
	RegisterMethod string      `json:"registerMethod"`
	ForcedTags     []string    `json:"forcedTags"`  // the same as Tags
	InvalidTags    []string    `json:"invalidTags"` // always empty
	ValidTags      []string    `json:"validTags"`   // the same as Tags
	Tags           []string    `json:"tags"`
	Online         bool        `json:"online"`
	// Routes: those an administrator approved, those the node advertises, and those it carries now.
	ApprovedRoutes  []string `json:"approvedRoutes"`
	AvailableRoutes []string `json:"availableRoutes"`
	SubnetRoutes    []string `json:"subnetRoutes"`

	StableID      string   `json:"stableId"`
	FQDN          string   `json:"fqdn"` // empty if there is no MagicDNS
	Ephemeral     bool     `json:"ephemeral"`
	Expired       bool     `json:"expired"`
	Authorized    bool     `json:"authorized"`                                                                     // an administrator has approved it, or none needs to
	Status        string   `json:"status" enum:"active,needs-approval,user-needs-approval,user-suspended,expired"` // whether it takes part, and if not, why (NodeStatuses)
	NeverExpires  bool     `json:"neverExpires"`                                                                   // its key does not end, whatever the rule
	OS            string   `json:"os"`
	ClientVersion string   `json:"clientVersion"`
	Endpoints     []string `json:"endpoints"`
	HomeDERP      int      `json:"homeDerp"` // region; 0: not known yet

	Attributes map[string]any `json:"attributes"` // what postures can ask for
}

// Namespace is the name of the node's owner.
func (n *Node) Namespace() string {
	if n.User == nil {
		return ""
	}
	return n.User.Name
}

// ShortNodeKey is the node key as people compare it, such as [kEPjO].
func (n *Node) ShortNodeKey() string {
	var k key.NodePublic
	if k.UnmarshalText([]byte(n.NodeKey)) != nil {
		return n.NodeKey
	}
	return k.ShortString()
}

// NodeStatuses are what a Node's Status can be: it takes part; an administrator has to approve it, or its user; its user is
// suspended; its key has ended, so that its machine has to log in.
var NodeStatuses = []string{statusActive, statusWaits, statusUserWaits, statusUserSuspended, statusExpired}

const (
	statusActive        = "active"
	statusWaits         = "needs-approval"
	statusUserWaits     = "user-needs-approval"
	statusUserSuspended = "user-suspended"
	statusExpired       = "expired"
)

// nodeStatus is the first of NodeStatuses that keeps n apart, or else statusActive.
func nodeStatus(sn *state.Snapshot, n *state.Node) string {
	u := sn.User(n.User)
	switch {
	case n.User != 0 && (u == nil || u.Status != tailnet.UserActive && u.Status != tailnet.UserWaiting):
		return statusUserSuspended
	case n.User != 0 && u.Status == tailnet.UserWaiting:
		return statusUserWaits
	case !n.Authorized:
		return statusWaits
	case n.Ended:
		return statusExpired
	}
	return statusActive
}

// nodeJSON is the one place that makes a Node.
func nodeJSON(sn *state.Snapshot, n *state.Node, now time.Time) *Node {
	out := &Node{
		ID: ID(n.ID), MachineKey: n.MachineKey.String(), NodeKey: n.NodeKey.String(),
		IPAddresses: []string{}, Name: n.Hostname, GivenName: n.Name, User: userOf(sn, n.Owner()),
		LastSeen: timestamp(n.LastSeen), Expiry: timestamp(n.Expiry), CreatedAt: timestamp(n.Created),
		RegisterMethod: "REGISTER_METHOD_" + strings.ToUpper(n.RegisterMethod),
		ForcedTags:     list(n.Tags), InvalidTags: []string{}, ValidTags: list(n.Tags), Tags: list(n.Tags),
		Online:          n.Online,
		ApprovedRoutes:  prefixStrings(n.ApprovedRoutes),
		AvailableRoutes: prefixStrings(tailnet.SortPrefixes(slices.Clone(n.AdvertisedRoutes()))),
		SubnetRoutes:    prefixStrings(slices.DeleteFunc(slices.Clone(n.Primary), tailnet.IsServiceRoute)),
		StableID:        n.StableID, Ephemeral: n.Ephemeral, Expired: n.Expired(now), Authorized: n.Authorized,
		Status: nodeStatus(sn, n), NeverExpires: n.NeverExpires,
		OS: n.Hostinfo.OS, Endpoints: []string{}, HomeDERP: n.HomeDERP,
		Attributes: attributesJSON(n.Node),
	}
	if n.RegisterMethod == "" {
		out.RegisterMethod = "REGISTER_METHOD_UNSPECIFIED"
	}
	out.ClientVersion, _, _ = strings.Cut(n.Hostinfo.IPNVersion, "-") // 1.102.5-tf3a…: the rest names a build
	if !n.DiscoKey.IsZero() {
		out.DiscoKey = n.DiscoKey.String()
	}
	if n.Online {
		out.LastSeen = timestamp(now)
	}
	for _, a := range n.Addrs() {
		out.IPAddresses = append(out.IPAddresses, a.String())
	}
	for _, e := range n.Endpoints {
		out.Endpoints = append(out.Endpoints, e.String())
	}
	if sn.DNS != nil && sn.DNS.MagicDNS {
		out.FQDN = strings.TrimSuffix(sn.DNS.FQDN(n.Name), ".")
	}
	if k := sn.PreAuthKey(n.PreAuthKey); n.PreAuthKey != 0 && k != nil {
		out.PreAuthKey = preAuthKeyJSON(sn, k, now)
	}
	return out
}

func prefixStrings(ps []netip.Prefix) []string {
	out := make([]string, 0, len(ps))
	for _, p := range ps {
		out = append(out, p.String())
	}
	return out
}

type (
	// NodeFilter chooses nodes that are all that its fields say; empty ones choose all.
	NodeFilter struct {
		User      Ref      `query:"user"` // namespace, or tagged-devices
		Tags      []string `query:"tag"`  // may be repeated: nodes with one of them
		Online    *bool    `query:"online"`
		Expired   *bool    `query:"expired"` // its key has ended
		Ephemeral *bool    `query:"ephemeral"`
		OS        string   `query:"os"`   // such as linux, whatever the case
		Name      string   `query:"name"` // part of the MagicDNS name or of what the machine calls itself
		Status    string   `query:"status" enum:"active,needs-approval,user-needs-approval,user-suspended,expired"`
		Page
	}
	// NodeList is the answer to ListNodes.
	NodeList struct {
		Nodes    []*Node `json:"nodes"`
		NextPage string  `json:"nextPage,omitempty"`
	}
	// NodeAnswer is one node.
	NodeAnswer struct {
		Node *Node `json:"node"`
	}
	// RegisterNodeRequest lets a node in that waits for it. Key is the last element of the URL that the client printed.
	RegisterNodeRequest struct {
		User Ref    `json:"user,omitempty" query:"user" example:"anna"`
		Key  string `json:"key,omitempty" query:"key" example:"KEY"`
	}
	// ExpireNodeRequest ends a node's key: now, or at Expiry. DisableExpiry lets it live for ever instead, over later logins
	// too; Renew lets it live as long as if the node had just logged in, and takes DisableExpiry back.
	ExpireNodeRequest struct {
		Expiry        *time.Time `json:"expiry,omitempty" query:"expiry" example:"2030-01-31T12:00:00Z"`
		DisableExpiry bool       `json:"disableExpiry,omitempty" query:"disableExpiry"`
		Renew         bool       `json:"renew,omitempty"`
	}
	// ApproveNodeRequest lets a node that waits take part, or, if Approved is false, no more. Without Approved it is true.
	ApproveNodeRequest struct {
		Approved *bool `json:"approved,omitempty" example:"true"`
	}
	// SetTagsRequest replaces the tags of a node, which then belongs to nobody. Tags must not be empty: MoveNode takes tags
	// away, because a node needs an owner.
	SetTagsRequest struct {
		Tags []string `json:"tags" example:"tag:ci"`
	}
	// MoveNodeRequest gives a node to a namespace.
	MoveNodeRequest struct {
		User Ref `json:"user,omitempty" query:"user" example:"anna"`
	}
)

func (s *server) nodeOperations() []operation {
	read, change, one := auth.Read(auth.ScopeDevices), auth.ScopeDevices, "/node/{node}"
	return []operation{
		get("/node", read, "lists nodes", s.listNodes),
		post("/node/register", change, "lets a node in that waits", s.registerNode),
		get(one, read, "one node", s.getNode),
		del(one, change, "deletes a node", s.deleteNode),
		post(one+"/approve", change, "lets a node take part that waits for it, or, with `{\"approved\": false}`, no more", s.approveNode),
		post(one+"/expire", change, "ends a node's key, now or at a time; or never, or as if it had just logged in", s.expireNode),
		post(one+"/rename/{new}", change, "renames a node", s.renameNode),
		post(one+"/tags", change, "replaces a node's tags", s.setTags),
		post(one+"/user", change, "gives a node to a user", s.moveNode),
	}
}

func (s *server) pathNode(r *http.Request) (*state.Node, error) {
	ref, err := pathVar(r, "node")
	if err != nil {
		return nil, err
	}
	return findNode(s.State.Snapshot(), Ref(ref))
}

// answerNode answers with the node as it is now.
func (s *server) answerNode(id tailnet.NodeID) (*NodeAnswer, error) {
	sn := s.State.Snapshot()
	n := sn.Node(id)
	if n == nil {
		return nil, tailnet.Errorf(tailnet.NotFound, "node %d was deleted meanwhile", id)
	}
	return &NodeAnswer{nodeJSON(sn, n, s.Now())}, nil
}

// changeNode runs f on a copy of the node that r's path names, stores it unless f says that nothing changes, and answers
// with it. why names the change.
func (s *server) changeNode(r *http.Request, why string, f func(tx *state.Tx, n *tailnet.Node) (changed bool, err error)) (*NodeAnswer, error) {
	found, err := s.pathNode(r)
	if err != nil {
		return nil, err
	}
	if err := s.updateNode(r, why+" of node "+found.ShortName(), found.ID, f); err != nil {
		return nil, err
	}
	return s.answerNode(found.ID)
}

// updateNode runs f on a copy of a node and stores it unless f says that nothing changes.
func (s *server) updateNode(r *http.Request, why string, id tailnet.NodeID, f func(tx *state.Tx, n *tailnet.Node) (changed bool, err error)) error {
	return s.update(r, why, func(tx *state.Tx) error {
		n, err := nodeIn(tx, id)
		if err != nil {
			return err
		}
		n = n.Clone()
		changed, err := f(tx, n)
		if err != nil || !changed {
			return err
		}
		return tx.PutNode(n)
	})
}

func (s *server) listNodes(_ *http.Request, f *NodeFilter) (*NodeList, error) {
	sn, now := s.State.Snapshot(), s.Now()
	nodes := sn.Nodes()
	if f.User != "" {
		owner := tailnet.TaggedDevices
		if f.User != tailnet.TaggedDevicesName {
			u, err := findUser(sn, f.User)
			if err != nil {
				return nil, err
			}
			owner = u.ID
		}
		nodes = sn.NodesOf(owner)
	}
	fits, err := f.nodes(sn, now)
	if err != nil {
		return nil, err
	}
	var chosen []*state.Node
	for _, n := range nodes {
		if fits(n) {
			chosen = append(chosen, n)
		}
	}
	chosen, next, err := cut(chosen, f.Page, func(n *state.Node) string { return byNumber(n.ID) })
	out := &NodeList{Nodes: make([]*Node, 0, len(chosen)), NextPage: next}
	for _, n := range chosen {
		out.Nodes = append(out.Nodes, nodeJSON(sn, n, now))
	}
	return out, err
}

// nodes says which nodes f chooses, User apart.
func (f *NodeFilter) nodes(sn *state.Snapshot, now time.Time) (func(*state.Node) bool, error) {
	tags, err := parseTags(f.Tags)
	if err != nil {
		return nil, err
	}
	name := strings.ToLower(f.Name)
	return func(n *state.Node) bool {
		return (len(tags) == 0 || slices.ContainsFunc(n.Tags, func(t string) bool { return slices.Contains(tags, t) })) &&
			chosen(f.Online, n.Online) && chosen(f.Expired, n.Expired(now)) && chosen(f.Ephemeral, n.Ephemeral) &&
			(f.OS == "" || strings.EqualFold(n.Hostinfo.OS, f.OS)) &&
			(name == "" || strings.Contains(n.Name, name) || strings.Contains(strings.ToLower(n.Hostname), name)) &&
			(f.Status == "" || nodeStatus(sn, n) == f.Status)
	}, nil
}

// ListNodes are the nodes that f chooses, sorted by id.
func (c *Client) ListNodes(ctx context.Context, f NodeFilter) ([]*Node, error) {
	var out NodeList
	err := c.do(ctx, http.MethodGet, c.path("node").query(values(f)), nil, &out)
	return out.Nodes, err
}

func (s *server) getNode(r *http.Request, _ *Empty) (*NodeAnswer, error) {
	n, err := s.pathNode(r)
	if err != nil {
		return nil, err
	}
	return s.answerNode(n.ID)
}

// GetNode is one node.
func (c *Client) GetNode(ctx context.Context, node Ref) (*Node, error) {
	return c.nodeAnswer(ctx, http.MethodGet, c.path("node", string(node)), nil)
}

func (c *Client) nodeAnswer(ctx context.Context, method string, t target, in any) (*Node, error) {
	var out NodeAnswer
	err := c.do(ctx, method, t, in, &out)
	return out.Node, err
}

func (s *server) registerNode(r *http.Request, req *RegisterNodeRequest) (*NodeAnswer, error) {
	u, err := findUser(s.State.Snapshot(), req.User)
	if err != nil {
		return nil, err
	}
	id, err := LoginID(req.Key)
	if err != nil {
		return nil, err
	}
	node, err := s.Auth.CompleteLogin(r.Context(), id, u.ID)
	if err != nil {
		return nil, err
	}
	return s.answerNode(node)
}

// RegisterNode lets a node in that waits for it.
func (c *Client) RegisterNode(ctx context.Context, req RegisterNodeRequest) (*Node, error) {
	return c.nodeAnswer(ctx, http.MethodPost, c.path("node", "register").query(values(req)), nil)
}

func (s *server) deleteNode(r *http.Request, _ *Empty) (*Empty, error) {
	n, err := s.pathNode(r)
	if err != nil {
		return nil, err
	}
	return &Empty{}, s.dropNode(r, n)
}

// dropNode removes n for good.
func (s *server) dropNode(r *http.Request, n *state.Node) error {
	return s.update(r, "delete node "+n.ShortName(), func(tx *state.Tx) error {
		if _, err := nodeIn(tx, n.ID); err != nil {
			return err
		}
		tx.DeleteNode(n.ID)
		return nil
	})
}

// DeleteNode removes a node from the tailnet for good.
func (c *Client) DeleteNode(ctx context.Context, node Ref) error {
	return c.do(ctx, http.MethodDelete, c.path("node", string(node)), nil, nil)
}

func (s *server) expireNode(r *http.Request, req *ExpireNodeRequest) (*NodeAnswer, error) {
	if req.DisableExpiry && (req.Renew || req.Expiry != nil) || req.Renew && req.Expiry != nil {
		return nil, tailnet.Errorf(tailnet.Invalid, "expiry, disableExpiry and renew contradict each other: give one of them")
	}
	if req.Expiry != nil && (req.Expiry.Year() < 2000 || req.Expiry.Year() > 9999) {
		return nil, tailnet.Errorf(tailnet.Invalid, "expiry: %s is not a time at which a key can end; for ever is disableExpiry", req.Expiry.Format(time.RFC3339))
	}
	return s.changeNode(r, "change expiry", func(tx *state.Tx, n *tailnet.Node) (bool, error) {
		before, never := n.Expiry, n.NeverExpires
		n.NeverExpires = req.DisableExpiry
		switch {
		case req.DisableExpiry:
			n.Expiry = time.Time{}
		case req.Renew:
			s.Auth.Renew(tx, n)
		case req.Expiry != nil:
			n.Expiry = req.Expiry.UTC()
		case !n.Expired(tx.Now()): // what has ended stays ended when it did
			n.Expiry = tx.Now()
		}
		return !n.Expiry.Equal(before) || n.NeverExpires != never, nil
	})
}

// ExpireNode ends the key of a node, so that its machine has to log in again.
func (c *Client) ExpireNode(ctx context.Context, node Ref, req ExpireNodeRequest) (*Node, error) {
	return c.nodeAnswer(ctx, http.MethodPost, c.path("node", string(node), "expire"), req)
}

func (s *server) approveNode(r *http.Request, req *ApproveNodeRequest) (*NodeAnswer, error) {
	yes, why := req.Approved == nil || *req.Approved, "approve"
	if !yes {
		why = "take back the approval"
	}
	return s.changeNode(r, why, approval(yes))
}

// approval is the change of a node that approves it, or takes that back.
func approval(yes bool) func(*state.Tx, *tailnet.Node) (bool, error) {
	return func(_ *state.Tx, n *tailnet.Node) (bool, error) {
		changed := n.Authorized != yes
		n.Authorized = yes
		return changed, nil
	}
}

// ApproveNode lets a node that waits take part, or one that takes part no more.
func (c *Client) ApproveNode(ctx context.Context, node Ref, approved bool) (*Node, error) {
	return c.nodeAnswer(ctx, http.MethodPost, c.path("node", string(node), "approve"), ApproveNodeRequest{&approved})
}

func (s *server) renameNode(r *http.Request, _ *Empty) (*NodeAnswer, error) {
	name, err := pathVar(r, "new")
	if err != nil {
		return nil, err
	}
	return s.changeNode(r, "change name", renameTo(name))
}

// renameTo gives a node a name that it keeps.
func renameTo(name string) func(*state.Tx, *tailnet.Node) (bool, error) {
	return func(tx *state.Tx, n *tailnet.Node) (bool, error) {
		if err := checkNodeName(tx, n.ID, name); err != nil {
			return false, err
		}
		changed := n.Name != name || !n.NameFixed
		n.Name, n.NameFixed = name, true
		return changed, nil
	}
}

// checkNodeName returns nil if node id may be called name: if a machine that called itself so would be given that very name.
func checkNodeName(tx *state.Tx, id tailnet.NodeID, name string) error {
	free := tx.FreeName(name, id)
	if free == name {
		return nil
	}
	if other := tx.NodeByName(name); other != nil && other.ID != id {
		return tailnet.Errorf(tailnet.Conflict, "the name %q belongs to node %d; %s is free", name, other.ID, free)
	}
	return tailnet.Errorf(tailnet.Invalid, "%q is not a name for a node: use 1 to 63 of a-z, 0-9 and \"-\", not first or last, such as %s", clip(name), free)
}

// RenameNode gives a node another MagicDNS name, which it keeps whatever its machine calls itself.
func (c *Client) RenameNode(ctx context.Context, node Ref, name string) (*Node, error) {
	return c.nodeAnswer(ctx, http.MethodPost, c.path("node", string(node), "rename", name), nil)
}

func (s *server) setTags(r *http.Request, req *SetTagsRequest) (*NodeAnswer, error) {
	change, why, err := s.retag(r, req.Tags)
	if err != nil {
		return nil, err
	}
	return s.changeNode(r, why, change)
}

// retag is the change of a node's tags that r asks for, and its name.
func (s *server) retag(r *http.Request, to []string) (change func(*state.Tx, *tailnet.Node) (bool, error), why string, err error) {
	tags, err := parseTags(to)
	if err != nil {
		return nil, "", err
	}
	if len(tags) == 0 {
		return nil, "", tailnet.Errorf(tailnet.Invalid, "a node without tags needs an owner: move it to a namespace to take its tags away")
	}
	if err := auth.PrincipalOf(r.Context()).AllowTags(s.State.Snapshot(), tags); err != nil {
		return nil, "", err
	}
	return func(_ *state.Tx, n *tailnet.Node) (bool, error) {
		changed := !slices.Equal(n.Tags, tags)
		if expiry := n.Expiry; n.Tagged() {
			auth.SetTags(n, tags)
			n.Expiry = expiry // an administrator's
		} else {
			auth.SetTags(n, tags) // what belongs to nobody has nobody to log it in again
		}
		return changed, nil
	}, fmt.Sprintf("change tags to %s", strings.Join(tags, ",")), nil
}

// TagNode replaces the tags of a node.
func (c *Client) TagNode(ctx context.Context, node Ref, tags []string) (*Node, error) {
	return c.nodeAnswer(ctx, http.MethodPost, c.path("node", string(node), "tags"), SetTagsRequest{Tags: tags})
}

func (s *server) moveNode(r *http.Request, req *MoveNodeRequest) (*NodeAnswer, error) {
	u, err := findUser(s.State.Snapshot(), req.User)
	if err != nil {
		return nil, err
	}
	return s.changeNode(r, "change owner to "+u.Name, func(tx *state.Tx, n *tailnet.Node) (bool, error) {
		if _, err := userIn(tx, u.ID); err != nil {
			return false, err
		}
		changed, tagged := n.User != u.ID || n.Tagged(), n.Tagged()
		n.User, n.Tags = u.ID, nil
		if tagged && n.Expiry.IsZero() {
			s.Auth.Renew(tx, n) // from here on it has somebody to log it in again
		}
		return changed, nil
	})
}

// MoveNode gives a node to a namespace; a tagged one loses its tags.
func (c *Client) MoveNode(ctx context.Context, node, user Ref) (*Node, error) {
	return c.nodeAnswer(ctx, http.MethodPost, c.path("node", string(node), "user"), MoveNodeRequest{User: user})
}
