package api

import (
	"context"
	"net/http"

	"tailscale.com/tailcfg"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/tailnet"
)

func (s *server) derpOperations() []operation {
	return []operation{get("/derp/map", auth.Read(auth.ScopeDevices), "the relay map", s.derpMap)}
}

func (s *server) derpMap(*http.Request, *Empty) (*tailcfg.DERPMap, error) {
	d := s.State.Snapshot().DERP
	if d == nil || d.Current == nil {
		return nil, tailnet.Errorf(tailnet.Unavailable, "there is no relay map yet")
	}
	return d.Current, nil
}

// DERPMap is the relay map that clients are given now, in the shape that they see.
func (c *Client) DERPMap(ctx context.Context) (*tailcfg.DERPMap, error) {
	out := new(tailcfg.DERPMap)
	if err := c.do(ctx, http.MethodGet, c.path("derp", "map"), nil, out); err != nil {
		return nil, err
	}
	return out, nil
}
