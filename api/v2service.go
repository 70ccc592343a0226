package api

import (
	"net/http"
	"slices"
	"strings"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// v2Service is a service (Service of the Go client).
type v2Service struct {
	Name        string            `json:"name"`
	DisplayName string            `json:"displayName,omitempty"`
	Addrs       []string          `json:"addrs"` // IPv4 first
	Comment     string            `json:"comment,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Ports       []string          `json:"ports,omitempty"`
	Tags        []string          `json:"tags,omitempty"`
}

// v2ServiceHost is a node that offers a service.
type v2ServiceHost struct {
	StableNodeID  string `json:"stableNodeID"`
	ApprovalLevel string `json:"approvalLevel"` // not-approved, approved:auto, approved:manual
	Configured    string `json:"configured"`    // ready: it serves what the service asks for; or else what is missing
}

// v2Approved is what was decided about one node.
type v2Approved struct {
	Approved     bool `json:"approved"`
	AutoApproved bool `json:"autoApproved"`
}

// v2ServiceRoutes are under both names that Tailscale's service has for them.
func (s *server) v2ServiceRoutes() (out []route) {
	read, write := auth.Read(auth.ScopeServices), auth.ScopeServices
	for _, all := range []string{"/tailnet/{tailnet}/vip-services", "/tailnet/{tailnet}/services"} {
		one := all + "/{service}"
		out = append(out,
			route{all, ops{http.MethodGet: {read, s.v2ListServices}}},
			route{one, ops{http.MethodGet: {read, s.v2GetService}, http.MethodPut: {write, s.v2PutService}, http.MethodDelete: {write, s.v2DeleteService}}},
			route{one + "/devices", ops{http.MethodGet: {read, s.v2ServiceHosts}}},
			route{one + "/device/{device}/approved", ops{http.MethodGet: {read, s.v2ServiceApproved}, http.MethodPost: {write, s.v2ApproveService}}},
		)
	}
	return out
}

func v2ServiceJSON(v *tailnet.Service) *v2Service {
	out := &v2Service{
		Name: v.Name, DisplayName: v.DisplayName, Addrs: []string{}, Comment: v.Comment, Annotations: v.Annotations, Ports: v.Ports, Tags: v.Tags,
	}
	for _, a := range v.Addrs() {
		out.Addrs = append(out.Addrs, a.String())
	}
	return out
}

func (s *server) v2ListServices(*http.Request) (any, error) {
	out := struct {
		Services []*v2Service `json:"vipServices"`
	}{[]*v2Service{}}
	for _, v := range s.State.Snapshot().Services() {
		out.Services = append(out.Services, v2ServiceJSON(v))
	}
	return out, nil
}

func (s *server) v2GetService(r *http.Request) (any, error) {
	_, v, err := s.pathService(r)
	if err != nil {
		return nil, err
	}
	return v2ServiceJSON(v), nil
}

// v2PutService makes a service what the body says: what is left out is empty, but the addresses stay.
func (s *server) v2PutService(r *http.Request) (any, error) {
	name, err := serviceName(r)
	if err != nil {
		return nil, err
	}
	var req v2Service
	if err := readV2(r, &req); err != nil {
		return nil, err
	}
	if req.Name != "" && req.Name != name {
		return nil, tailnet.Errorf(tailnet.Invalid, "name: the service is %s by the path and %q in the body; a service cannot be renamed", clip(name), clip(req.Name))
	}
	put := ServiceRequest{
		DisplayName: &req.DisplayName, Comment: &req.Comment, Annotations: req.Annotations, Ports: append([]string{}, req.Ports...),
		Tags: append([]string{}, req.Tags...),
	}
	if put.Annotations == nil {
		put.Annotations = map[string]string{}
	}
	var v6 []string
	for _, a := range req.Addrs {
		switch {
		case strings.Contains(a, ":"):
			v6 = append(v6, a)
		case put.IPv4 == nil:
			put.IPv4 = &a
		default:
			return nil, tailnet.Errorf(tailnet.Invalid, "addrs: a service has one IPv4 address, and not both %s and %q", *put.IPv4, clip(a))
		}
	}
	// The IPv6 address goes with the other; one that the service has may be sent back.
	if have := s.State.Snapshot().Service(name); len(v6) > 0 && put.IPv4 == nil && (have == nil || !slices.Equal(v6, []string{have.IPv6.String()})) {
		return nil, tailnet.Errorf(tailnet.Invalid, "addrs: the IPv6 address follows from the IPv4 address: give that, or none")
	}
	if err := s.putService(r, name, put); err != nil {
		return nil, err
	}
	return s.v2GetService(r)
}

func (s *server) v2DeleteService(r *http.Request) (any, error) { return s.deleteService(r, nil) }

func (s *server) v2ServiceHosts(r *http.Request) (any, error) {
	sn, v, err := s.pathService(r)
	if err != nil {
		return nil, err
	}
	out := struct {
		Hosts []*v2ServiceHost `json:"hosts"`
	}{[]*v2ServiceHost{}}
	for _, n := range sn.Hosts(v.Name) {
		h, _ := n.Hosting(v.Name)
		if !h.Offered {
			continue
		}
		host := &v2ServiceHost{StableNodeID: n.StableID, ApprovalLevel: "not-approved", Configured: "ready"}
		if h.Approved() {
			host.ApprovalLevel = "approved:" + string(h.Approval)
		}
		switch {
		case !h.Serves(v.Ports):
			host.Configured = "wrong-ports"
		case !h.Active:
			host.Configured = "drained"
		}
		out.Hosts = append(out.Hosts, host)
	}
	return out, nil
}

// v2Host are the service and the node that the path names.
func (s *server) v2Host(r *http.Request) (*tailnet.Service, *state.Node, error) {
	_, v, err := s.pathService(r)
	if err != nil {
		return nil, nil, err
	}
	n, err := s.v2Node(r)
	return v, n, err
}

func (s *server) v2ServiceApproved(r *http.Request) (any, error) {
	v, n, err := s.v2Host(r)
	if err != nil {
		return nil, err
	}
	h, _ := n.Hosting(v.Name)
	return v2Approved{h.Approved(), h.Approved() && h.Approval == tailnet.ApprovedByPolicy}, nil
}

func (s *server) v2ApproveService(r *http.Request) (any, error) {
	v, n, err := s.v2Host(r)
	if err != nil {
		return nil, err
	}
	var req struct {
		Approved *bool `json:"approved"`
	}
	if err := readV2(r, &req); err != nil {
		return nil, err
	}
	if req.Approved == nil {
		return nil, tailnet.Errorf(tailnet.Invalid, "approved is missing: true or false")
	}
	if err := s.decideHost(r, n, v, *req.Approved); err != nil {
		return nil, err
	}
	return s.v2ServiceApproved(r)
}
