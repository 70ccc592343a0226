package api

import (
	"context"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// Service is a name and a pair of addresses that several nodes can host (tailnet.Service).
type Service struct {
	Name        string            `json:"name"`    // svc:LABEL
	DNSName     string            `json:"dnsName"` // its full name in MagicDNS
	Addresses   []string          `json:"addresses"`
	DisplayName string            `json:"displayName"`
	Comment     string            `json:"comment"`
	Annotations map[string]string `json:"annotations"`
	Ports       []string          `json:"ports"` // that its hosts must serve: tcp:443, tcp:80-90, do-not-validate
	Tags        []string          `json:"tags"`
	CreatedAt   *time.Time        `json:"createdAt"`
	UpdatedAt   *time.Time        `json:"updatedAt"`
	Hosts       []*ServiceHost    `json:"hosts"` // sorted by node id
}

// ServiceHost is a node that offers a service, or about which that was decided.
type ServiceHost struct {
	NodeID   ID       `json:"nodeId"`
	NodeName string   `json:"nodeName"` // MagicDNS label
	Offered  bool     `json:"offered"`  // the node says that it hosts it
	Active   bool     `json:"active"`   // and that it takes new connections
	Online   bool     `json:"online"`
	Approval string   `json:"approval"` // "auto" by the policy, "manual" or "refused" by an administrator; empty: it waits
	Ports    []string `json:"ports"`    // that it serves
	Ready    bool     `json:"ready"`    // it serves all that the service asks for
	Carries  bool     `json:"carries"`  // clients are sent to it now
}

type (
	// ServiceFilter chooses services that are all that its fields say; empty ones choose all.
	ServiceFilter struct {
		Node Ref    `query:"node"` // that has something to do with it
		Tag  string `query:"tag"`
		Page
	}
	// ServiceList is the answer to ListServices.
	ServiceList struct {
		Services []*Service `json:"services"`
		NextPage string     `json:"nextPage,omitempty"`
	}
	// ServiceAnswer is one service.
	ServiceAnswer struct {
		Service *Service `json:"service"`
	}
	// ServiceRequest is what a service is to be. Of an existing one, what is null stays.
	ServiceRequest struct {
		// IPv4 is the address that it shall have; the IPv6 address goes with it. Null: a free one, or that which it has.
		IPv4        *string           `json:"ipv4,omitempty"`
		DisplayName *string           `json:"displayName,omitempty" example:"Web"`
		Comment     *string           `json:"comment,omitempty"`
		Annotations map[string]string `json:"annotations,omitzero"`
		Ports       []string          `json:"ports,omitzero" example:"tcp:443"`
		Tags        []string          `json:"tags,omitzero"`
	}
	// ServiceNodeRequest names a node that may host a service, or may not.
	ServiceNodeRequest struct {
		Node Ref `json:"node" example:"homeds"`
	}
)

func (s *server) serviceOperations() []operation {
	const one = "/service/{service}"
	read, change := auth.Read(auth.ScopeServices), auth.ScopeServices
	return []operation{
		get("/service", read, "lists services and their hosts", s.listServices),
		get(one, read, "one service; its name may be given without `svc:`", s.getService),
		put(one, change, "makes a service, or changes it: what is left out stays", s.setService),
		del(one, change, "deletes one; its addresses become free", s.deleteService),
		post(one+"/approve", change, "lets a node host it, whatever the policy says", s.decideService(true)),
		post(one+"/refuse", change, "keeps a node from hosting it, whatever the policy says", s.decideService(false)),
	}
}

func (s *server) serviceJSON(sn *state.Snapshot, v *tailnet.Service) *Service {
	out := &Service{
		Name: v.Name, DNSName: strings.TrimSuffix(sn.DNS.FQDN(v.Label()), "."), Addresses: []string{}, DisplayName: v.DisplayName, Comment: v.Comment,
		Annotations: v.Annotations, Ports: list(v.Ports), Tags: list(v.Tags), CreatedAt: timestamp(v.Created), UpdatedAt: timestamp(v.Updated),
		Hosts: []*ServiceHost{},
	}
	if out.Annotations == nil {
		out.Annotations = map[string]string{}
	}
	for _, a := range v.Addrs() {
		out.Addresses = append(out.Addresses, a.String())
	}
	for _, n := range sn.Hosts(v.Name) {
		h, _ := n.Hosting(v.Name)
		out.Hosts = append(out.Hosts, &ServiceHost{
			NodeID: ID(n.ID), NodeName: n.Name, Offered: h.Offered, Active: h.Active, Online: n.Online, Approval: string(h.Approval), Ports: list(h.Ports),
			Ready: h.Offered && h.Serves(v.Ports), Carries: sn.Carries(n, v),
		})
	}
	return out
}

// serviceName is the name of the service that the path names; the prefix may be left out.
func serviceName(r *http.Request) (string, error) {
	name, err := pathVar(r, "service")
	if err != nil {
		return "", err
	}
	if !strings.HasPrefix(name, tailnet.ServicePrefix) {
		name = tailnet.ServicePrefix + name
	}
	return name, nil
}

// pathService is the service that the path names.
func (s *server) pathService(r *http.Request) (*state.Snapshot, *tailnet.Service, error) {
	name, err := serviceName(r)
	if err != nil {
		return nil, nil, err
	}
	sn := s.State.Snapshot()
	v := sn.Service(name)
	if v == nil {
		return nil, nil, tailnet.Errorf(tailnet.NotFound, "there is no service %q", clip(name))
	}
	return sn, v, nil
}

func (s *server) listServices(_ *http.Request, f *ServiceFilter) (*ServiceList, error) {
	sn := s.State.Snapshot()
	var host *state.Node
	if f.Node != "" {
		var err error
		if host, err = findNode(sn, f.Node); err != nil {
			return nil, err
		}
	}
	out := &ServiceList{Services: []*Service{}}
	for _, v := range sn.Services() {
		if host != nil {
			if _, ok := host.Hosting(v.Name); !ok {
				continue
			}
		}
		if f.Tag == "" || slices.Contains(v.Tags, f.Tag) {
			out.Services = append(out.Services, s.serviceJSON(sn, v))
		}
	}
	var err error
	out.Services, out.NextPage, err = cut(out.Services, f.Page, func(v *Service) string { return v.Name })
	return out, err
}

// ListServices are all services, sorted by name.
func (c *Client) ListServices(ctx context.Context) ([]*Service, error) {
	var out ServiceList
	err := c.do(ctx, http.MethodGet, c.path("service"), nil, &out)
	return out.Services, err
}

func (s *server) getService(r *http.Request, _ *Empty) (*ServiceAnswer, error) {
	sn, v, err := s.pathService(r)
	if err != nil {
		return nil, err
	}
	return &ServiceAnswer{s.serviceJSON(sn, v)}, nil
}

// GetService is one service. Its name may be given without svc:.
func (c *Client) GetService(ctx context.Context, name string) (*Service, error) {
	return c.serviceAnswer(ctx, http.MethodGet, c.path("service", name), nil)
}

func (c *Client) serviceAnswer(ctx context.Context, method string, t target, in any) (*Service, error) {
	var out ServiceAnswer
	err := c.do(ctx, method, t, in, &out)
	return out.Service, err
}

func (s *server) setService(r *http.Request, req *ServiceRequest) (*ServiceAnswer, error) {
	name, err := serviceName(r)
	if err != nil {
		return nil, err
	}
	if err := s.putService(r, name, *req); err != nil {
		return nil, err
	}
	return s.getService(r, nil)
}

// putService makes a service, or changes it.
func (s *server) putService(r *http.Request, name string, req ServiceRequest) error {
	if err := tailnet.CheckServiceName(name); err != nil {
		return err
	}
	var v4 netip.Addr
	if req.IPv4 != nil && *req.IPv4 != "" {
		var err error
		if v4, err = netip.ParseAddr(*req.IPv4); err != nil || !v4.Is4() {
			return tailnet.Errorf(tailnet.Invalid, "%q is not an IPv4 address such as 100.64.0.99", clip(*req.IPv4))
		}
	}
	tags, err := parseTags(req.Tags)
	if err != nil {
		return err
	}
	if err := auth.PrincipalOf(r.Context()).AllowTags(s.State.Snapshot(), tags); err != nil {
		return err
	}
	return s.update(r, "set service "+name, func(tx *state.Tx) error {
		v := tx.Service(name)
		if v == nil || v4.IsValid() && v4 != v.IPv4 {
			fresh, err := tx.NewService(name, v4)
			if err != nil {
				return err
			}
			if v != nil {
				addrs := fresh
				fresh = v.Clone()
				fresh.IPv4, fresh.IPv6 = addrs.IPv4, addrs.IPv6
			}
			v = fresh
		} else {
			v = v.Clone()
		}
		if req.DisplayName != nil {
			v.DisplayName = *req.DisplayName
		}
		if req.Comment != nil {
			v.Comment = *req.Comment
		}
		if req.Annotations != nil {
			v.Annotations = maps.Clone(req.Annotations)
		}
		if req.Ports != nil {
			v.Ports = slices.Clone(req.Ports)
		}
		if req.Tags != nil {
			v.Tags = tags
		}
		v.Updated = tx.Now()
		return tx.PutService(v)
	})
}

// SetService makes a service, or changes one: then what req leaves out stays as it is.
func (c *Client) SetService(ctx context.Context, name string, req ServiceRequest) (*Service, error) {
	return c.serviceAnswer(ctx, http.MethodPut, c.path("service", name), req)
}

func (s *server) deleteService(r *http.Request, _ *Empty) (*Empty, error) {
	_, v, err := s.pathService(r)
	if err != nil {
		return nil, err
	}
	return &Empty{}, s.update(r, "delete service "+v.Name, func(tx *state.Tx) error { return tx.DeleteService(v.Name) })
}

// DeleteService deletes a service.
func (c *Client) DeleteService(ctx context.Context, name string) error {
	return c.do(ctx, http.MethodDelete, c.path("service", name), nil, &Empty{})
}

// decideService is the operation that lets a node host a service, or keeps it from that.
func (s *server) decideService(approve bool) func(*http.Request, *ServiceNodeRequest) (*ServiceAnswer, error) {
	return func(r *http.Request, req *ServiceNodeRequest) (*ServiceAnswer, error) {
		sn, v, err := s.pathService(r)
		if err != nil {
			return nil, err
		}
		n, err := findNode(sn, req.Node)
		if err != nil {
			return nil, err
		}
		if err := s.decideHost(r, n, v, approve); err != nil {
			return nil, err
		}
		return s.getService(r, nil)
	}
}

// decideHost lets n host v, or keeps it from that. Only tagged nodes can host services, as their clients ask for.
func (s *server) decideHost(r *http.Request, n *state.Node, v *tailnet.Service, approve bool) error {
	if approve && !n.Tagged() {
		return tailnet.Errorf(tailnet.Invalid, "node %s belongs to a user: only tagged nodes can host services", n.ShortName())
	}
	why := "refuse"
	if approve {
		why = "approve"
	}
	return s.update(r, why+" node "+n.ShortName()+" as a host of "+v.Name, func(tx *state.Tx) error { return tx.ApproveService(n.ID, v.Name, approve) })
}

// ApproveServiceHost lets a node host a service, whatever the policy says.
func (c *Client) ApproveServiceHost(ctx context.Context, name string, node Ref) (*Service, error) {
	return c.serviceAnswer(ctx, http.MethodPost, c.path("service", name, "approve"), ServiceNodeRequest{node})
}

// RefuseServiceHost keeps a node from hosting a service, whatever the policy says.
func (c *Client) RefuseServiceHost(ctx context.Context, name string, node Ref) (*Service, error) {
	return c.serviceAnswer(ctx, http.MethodPost, c.path("service", name, "refuse"), ServiceNodeRequest{node})
}
