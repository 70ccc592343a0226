package api

import (
	"context"
	"net/http"
	"time"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/tailnet"
)

// Cluster says which servers share the database.
type Cluster struct {
	Servers []ClusterServer `json:"servers"` // sorted by name; those that are gone are listed for a day
}

// ClusterServer is one of them.
type ClusterServer struct {
	ID       string     `json:"id"` // new with each start
	Name     string     `json:"name"`
	Version  string     `json:"version"`
	Alive    bool       `json:"alive"`
	Leads    bool       `json:"leads"` // does what only one may do
	Self     bool       `json:"self"`  // answers this request
	Nodes    int        `json:"nodes"` // online there
	Started  *time.Time `json:"startedAt"`
	LastSeen *time.Time `json:"lastSeen"`

	ClockAhead float64 `json:"clockAheadSeconds"` // how far its machine's clock is ahead of the database's; negative: behind
	Relay      string  `json:"relay"`             // its relay, as the server that answers sees it: reached, unreached, or empty: none, or its own
}

func (s *server) clusterOperations() []operation {
	return []operation{get("/cluster", auth.Read(auth.ScopeDevices), "the servers that share the database; 404 where there is one only", s.cluster).failing(http.StatusNotFound)}
}

func (s *server) cluster(r *http.Request, _ *Empty) (*Cluster, error) {
	if s.Cluster == nil {
		return nil, tailnet.Errorf(tailnet.NotFound, "this server is alone: several servers need a PostgreSQL database (database.type)")
	}
	servers, err := s.Cluster(r.Context())
	if err != nil {
		return nil, err
	}
	count := map[string]int{}
	for _, n := range s.State.Snapshot().Nodes() {
		if n.Online {
			count[n.Server]++
		}
	}
	for i := range servers {
		servers[i].Nodes = count[servers[i].ID]
	}
	return &Cluster{Servers: servers}, nil
}

// Cluster is which servers share the database; a NotFound error if there is only one.
func (c *Client) Cluster(ctx context.Context) (*Cluster, error) {
	out := new(Cluster)
	if err := c.do(ctx, http.MethodGet, c.path("cluster"), nil, out); err != nil {
		return nil, err
	}
	return out, nil
}
