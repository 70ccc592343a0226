package api

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"

	"tailscale.com/tailcfg"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

type (
	// NetmapFilter says as whom a node asks for its map.
	NetmapFilter struct {
		Capver int `query:"capver" minimum:"1" maximum:"100000"` // capability version; 0: the node's own
	}
	// Netmap is what a node is told.
	Netmap struct {
		Capver   int             `json:"capver"`
		Bytes    int             `json:"bytes"`    // of the map as it is sent to who does not ask for compression
		Revision ID              `json:"revision"` // of what it tells
		Map      json.RawMessage `json:"map"`      // a MapResponse as clients read it; there are no private keys in it
	}
)

func (s *server) netmapOperations() []operation {
	// A map tells a part of everything: users, policy, names.
	return []operation{get("/node/{node}/netmap", auth.Read(auth.ScopeAll), "the map that a node is given when it connects", s.netmap).failing(http.StatusConflict)}
}

func (s *server) netmap(r *http.Request, f *NetmapFilter) (*Netmap, error) {
	n, err := s.pathNode(r)
	if err != nil {
		return nil, err
	}
	if s.Netmap == nil {
		return nil, tailnet.Errorf(tailnet.Unavailable, "this server makes no maps")
	}
	if !n.Active() {
		return nil, tailnet.Errorf(tailnet.Conflict, "node %s takes no part (%s), and is told nothing", n.Name, nodeStatus(s.State.Snapshot(), n))
	}
	v := tailcfg.CapabilityVersion(f.Capver)
	if v == 0 {
		v = n.Capver
	}
	if v == 0 {
		v = tailcfg.CurrentCapabilityVersion
	}
	sn := s.State.Snapshot()
	m, err := s.Netmap(sn, n.ID, v)
	if err != nil {
		return nil, err
	}
	return &Netmap{Capver: int(v), Bytes: len(m), Revision: ID(sn.Rev), Map: m}, nil
}

// NetmapFunc is the map that a client of the given capability version is sent for the node; an error if sn does not hold it.
type NetmapFunc func(sn *state.Snapshot, node tailnet.NodeID, capver tailcfg.CapabilityVersion) (json.RawMessage, error)

// Netmap is the map that a node is given; with capver 0 for the version that it has.
func (c *Client) Netmap(ctx context.Context, node Ref, capver int) (*Netmap, error) {
	q := url.Values{}
	if capver != 0 {
		q.Set("capver", strconv.Itoa(capver))
	}
	out := new(Netmap)
	if err := c.do(ctx, http.MethodGet, c.path("node", string(node), "netmap").query(q), nil, out); err != nil {
		return nil, err
	}
	return out, nil
}
