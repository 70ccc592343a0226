package api

import (
	"context"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// Route is one prefix of one node: advertised by it, or enabled for it, or both.
type Route struct {
	NodeID     ID     `json:"nodeId"`
	NodeName   string `json:"nodeName"` // MagicDNS label
	Prefix     string `json:"prefix"`
	Advertised bool   `json:"advertised"`
	Enabled    bool   `json:"enabled"`   // approved by an administrator
	IsPrimary  bool   `json:"isPrimary"` // the node carries it now
	Exit       bool   `json:"exit"`      // one of the two routes of an exit node
}

type (
	// RouteList is the answer to all operations on routes.
	RouteList struct {
		Routes   []*Route `json:"routes"`
		NextPage string   `json:"nextPage,omitempty"`
	}
	// RouteFilter chooses routes that are all that its fields say; empty ones choose all.
	RouteFilter struct {
		Node       Ref    `query:"node"`
		Enabled    *bool  `query:"enabled"`
		Advertised *bool  `query:"advertised"`
		Primary    *bool  `query:"primary"` // its node carries it now
		Exit       *bool  `query:"exit"`
		Prefix     string `query:"prefix"` // this very one; of an address: those it lies in
		Page
	}
	// RoutesRequest says which routes of a node to enable or to disable. All stands for every route that the node
	// advertises (enable) or that is enabled (disable). Exit routes go in a pair, whichever of them is named.
	//
	// A route that the node does not advertise is refused unless AllowUnadvertised is set.
	RoutesRequest struct {
		Node              Ref      `json:"node" example:"homeds"`
		Routes            []string `json:"routes" required:"false" example:"10.8.0.0/16"`
		All               bool     `json:"all,omitempty"`
		AllowUnadvertised bool     `json:"allowUnadvertised,omitempty"`
	}
	// ApproveRoutesRequest is a RoutesRequest for the node that the path names.
	ApproveRoutesRequest struct {
		Routes            []string `json:"routes" required:"false" example:"10.8.0.0/16"`
		All               bool     `json:"all,omitempty"`
		AllowUnadvertised bool     `json:"allowUnadvertised,omitempty"`
	}
)

func (s *server) routeOperations() []operation {
	read, change := auth.Read(auth.ScopeRoutes), auth.ScopeRoutes
	return []operation{
		get("/routes", read, "lists routes", s.listRoutes),
		post("/routes/enable", change, "enables routes of a node", s.routesHandler("enable routes", enableRoutes)),
		post("/routes/disable", change, "disables routes of a node", s.routesHandler("disable routes", disableRoutes)),
		post("/routes/exact", change, "replaces the enabled routes of a node", s.routesHandler("replace routes", exactRoutes)),
		get("/node/{node}/routes", read, "routes of one node", s.listNodeRoutes),
		post("/node/{node}/approve_routes", change, "the same as exact, in headscale's shape", s.approveRoutes),
	}
}

// routesJSON are the routes of n, sorted by prefix.
func routesJSON(n *state.Node) []*Route {
	all := tailnet.SortPrefixes(slices.Concat(n.AdvertisedRoutes(), n.ApprovedRoutes))
	out := make([]*Route, 0, len(all))
	for _, p := range all {
		out = append(out, &Route{
			NodeID: ID(n.ID), NodeName: n.Name, Prefix: p.String(), Advertised: slices.Contains(n.AdvertisedRoutes(), p),
			Enabled: slices.Contains(n.ApprovedRoutes, p), IsPrimary: slices.Contains(n.Primary, p), Exit: tailnet.IsExitRoute(p),
		})
	}
	return out
}

func (s *server) listRoutes(_ *http.Request, f *RouteFilter) (*RouteList, error) {
	sn := s.State.Snapshot()
	nodes := sn.Nodes()
	if f.Node != "" {
		n, err := findNode(sn, f.Node)
		if err != nil {
			return nil, err
		}
		nodes = []*state.Node{n}
	}
	about, err := prefixFilter(f.Prefix)
	if err != nil {
		return nil, err
	}
	out := &RouteList{Routes: []*Route{}}
	for _, n := range nodes {
		for _, rt := range routesJSON(n) {
			if chosen(f.Enabled, rt.Enabled) && chosen(f.Advertised, rt.Advertised) && chosen(f.Primary, rt.IsPrimary) && chosen(f.Exit, rt.Exit) && about(rt) {
				out.Routes = append(out.Routes, rt)
			}
		}
	}
	out.Routes, out.NextPage, err = cut(out.Routes, f.Page, func(rt *Route) string { return byNumber(rt.NodeID) + " " + rt.Prefix })
	return out, err
}

// prefixFilter says which routes RouteFilter.Prefix chooses.
func prefixFilter(text string) (func(*Route) bool, error) {
	if text == "" {
		return func(*Route) bool { return true }, nil
	}
	if a, err := netip.ParseAddr(text); err == nil {
		return func(rt *Route) bool { return netip.MustParsePrefix(rt.Prefix).Contains(a.Unmap()) }, nil
	}
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return nil, tailnet.Errorf(tailnet.Invalid, "prefix=%q is neither a prefix such as 10.0.0.0/8 nor an address", clip(text))
	}
	return func(rt *Route) bool { return rt.Prefix == p.Masked().String() }, nil
}

func (s *server) listNodeRoutes(r *http.Request, _ *Empty) (*RouteList, error) {
	n, err := s.pathNode(r)
	if err != nil {
		return nil, err
	}
	return &RouteList{Routes: routesJSON(n)}, nil
}

// ListRoutes are the routes that f chooses, sorted by node and prefix.
func (c *Client) ListRoutes(ctx context.Context, f RouteFilter) ([]*Route, error) {
	var out RouteList
	err := c.do(ctx, http.MethodGet, c.path("routes").query(values(f)), nil, &out)
	return out.Routes, err
}

// routesHandler is the operation that makes the approved routes of a node what f says.
func (s *server) routesHandler(why string, f func(*tailnet.Node, RoutesRequest) ([]netip.Prefix, error)) func(*http.Request, *RoutesRequest) (*RouteList, error) {
	return func(r *http.Request, req *RoutesRequest) (*RouteList, error) {
		n, err := s.setRoutes(r, why, *req, f)
		if err != nil {
			return nil, err
		}
		return &RouteList{Routes: routesJSON(n)}, nil
	}
}

// approveRoutes is exactRoutes in headscale's shape.
func (s *server) approveRoutes(r *http.Request, in *ApproveRoutesRequest) (*NodeAnswer, error) {
	ref, err := pathVar(r, "node")
	if err != nil {
		return nil, err
	}
	req := RoutesRequest{Node: Ref(ref), Routes: in.Routes, All: in.All, AllowUnadvertised: in.AllowUnadvertised}
	n, err := s.setRoutes(r, "replace routes", req, exactRoutes)
	if err != nil {
		return nil, err
	}
	return s.answerNode(n.ID)
}

func (s *server) setRoutes(r *http.Request, why string, req RoutesRequest, f func(*tailnet.Node, RoutesRequest) ([]netip.Prefix, error)) (*state.Node, error) {
	found, err := findNode(s.State.Snapshot(), req.Node)
	if err != nil {
		return nil, err
	}
	err = s.update(r, why+" of node "+found.ShortName(), func(tx *state.Tx) error {
		n, err := nodeIn(tx, found.ID)
		if err != nil {
			return err
		}
		want, err := f(n, req)
		if err != nil || slices.Equal(want, n.ApprovedRoutes) {
			return err
		}
		n = n.Clone()
		n.ApprovedRoutes = want
		return tx.PutNode(n)
	})
	if err != nil {
		return nil, err
	}
	return findNode(s.State.Snapshot(), Ref(found.ID.String()))
}

func enableRoutes(n *tailnet.Node, req RoutesRequest) ([]netip.Prefix, error) {
	if req.All {
		if len(req.Routes) > 0 {
			return nil, errAllAndSome
		}
		if len(n.AdvertisedRoutes()) == 0 {
			return nil, tailnet.Errorf(tailnet.NotFound, "node %s advertises no routes", n.ShortName())
		}
		return tailnet.SortPrefixes(slices.Concat(n.ApprovedRoutes, withPairs(n.AdvertisedRoutes()))), nil
	}
	if len(req.Routes) == 0 {
		return nil, errNoRoutes
	}
	add, err := parseRoutes(n, req)
	if err != nil {
		return nil, err
	}
	return tailnet.SortPrefixes(slices.Concat(n.ApprovedRoutes, add)), nil
}

func disableRoutes(n *tailnet.Node, req RoutesRequest) ([]netip.Prefix, error) {
	if req.All {
		if len(req.Routes) > 0 {
			return nil, errAllAndSome
		}
		return nil, nil
	}
	if len(req.Routes) == 0 {
		return nil, errNoRoutes
	}
	req.AllowUnadvertised = false // there is nothing to take away from what the node never had
	drop, err := parseRoutes(n, req)
	if err != nil {
		return nil, err
	}
	var keep []netip.Prefix
	for _, p := range n.ApprovedRoutes {
		if !slices.Contains(drop, p) {
			keep = append(keep, p)
		}
	}
	return keep, nil
}

func exactRoutes(n *tailnet.Node, req RoutesRequest) ([]netip.Prefix, error) {
	if req.All {
		return nil, tailnet.Errorf(tailnet.Invalid, "all routes cannot be meant exactly: name them")
	}
	return parseRoutes(n, req)
}

var (
	errAllAndSome = tailnet.Errorf(tailnet.Invalid, "all routes and some routes contradict each other: give one of them")
	errNoRoutes   = tailnet.Errorf(tailnet.Invalid, "no routes are given: name them, such as 192.168.199.0/24, or ask for all")
)

// parseRoutes reads req.Routes, sorted and with exit routes in pairs, and refuses what n neither advertises nor has approved.
func parseRoutes(n *tailnet.Node, req RoutesRequest) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, text := range req.Routes {
		p, err := tailnet.ParseRoute(strings.TrimSpace(clip(text)))
		if err != nil {
			return nil, err
		}
		if len(tailnet.CleanRoutes([]netip.Prefix{p})) == 0 {
			return nil, tailnet.Errorf(tailnet.Invalid, "%s lies within the addresses of the nodes themselves and cannot be routed", p)
		}
		known := slices.Contains(n.AdvertisedRoutes(), p) || slices.Contains(n.ApprovedRoutes, p) ||
			tailnet.IsExitRoute(p) && slices.ContainsFunc(n.AdvertisedRoutes(), tailnet.IsExitRoute)
		if !known && !req.AllowUnadvertised {
			return nil, notAdvertised(n, p)
		}
		out = append(out, p)
	}
	return tailnet.SortPrefixes(withPairs(out)), nil
}

func notAdvertised(n *tailnet.Node, p netip.Prefix) error {
	if has := tailnet.SortPrefixes(slices.Clone(n.AdvertisedRoutes())); len(has) > 0 {
		return tailnet.Errorf(tailnet.NotFound, "node %s does not advertise %s, only %s", n.ShortName(), p, tailnet.FormatPrefixes(has))
	}
	flag := "--advertise-routes=" + p.String()
	if tailnet.IsExitRoute(p) {
		flag = "--advertise-exit-node"
	}
	return tailnet.Errorf(tailnet.NotFound, "node %s does not advertise %s, nor any other route; on that machine: tailscale set %s", n.ShortName(), p, flag)
}

// exitRoutes are approved together: an exit node that carries one family only would let the other one out beside it.
var exitRoutes = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}

func withPairs(ps []netip.Prefix) []netip.Prefix {
	if slices.ContainsFunc(ps, tailnet.IsExitRoute) {
		return slices.Concat(ps, exitRoutes)
	}
	return ps
}

func (c *Client) routesAnswer(ctx context.Context, verb string, req RoutesRequest) ([]*Route, error) {
	var out RouteList
	err := c.do(ctx, http.MethodPost, c.path("routes", verb), req, &out)
	return out.Routes, err
}

// EnableRoutes adds to the enabled routes of a node. Like its siblings it returns all routes of the node.
func (c *Client) EnableRoutes(ctx context.Context, req RoutesRequest) ([]*Route, error) {
	return c.routesAnswer(ctx, "enable", req)
}

// DisableRoutes takes from the enabled routes of a node.
func (c *Client) DisableRoutes(ctx context.Context, req RoutesRequest) ([]*Route, error) {
	return c.routesAnswer(ctx, "disable", req)
}

// ExactRoutes replaces the enabled routes of a node; none may be given.
func (c *Client) ExactRoutes(ctx context.Context, req RoutesRequest) ([]*Route, error) {
	return c.routesAnswer(ctx, "exact", req)
}
