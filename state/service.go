package state

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/skein-vpn/skein/policy"
	"github.com/skein-vpn/skein/tailnet"
)

// Services are names and addresses that several nodes can host. Of those that do (tailnet.Hosting) one carries the addresses, elected
// as the routers of a prefix are: to the rest of this package the addresses of a service are routes of its hosts.
//
// A node's hostings hold the addresses of their services, so that a node says alone what it can carry. PutService and
// DeleteService keep them true.

// aService stands in the index of addresses for those that services have.
const aService tailnet.NodeID = -1

// Services are all services, sorted by name. The slice must not be changed.
func (sn *Snapshot) Services() []*tailnet.Service { return sn.services }

// Service is the one with this name, or nil.
func (sn *Snapshot) Service(name string) *tailnet.Service {
	i, ok := slices.BinarySearchFunc(sn.services, name, func(s *tailnet.Service, name string) int { return cmp.Compare(s.Name, name) })
	if !ok {
		return nil
	}
	return sn.services[i]
}

// ServiceByAddr is the service with this address, or nil.
func (sn *Snapshot) ServiceByAddr(a netip.Addr) *tailnet.Service {
	if sn.byAddr.get(a) != aService {
		return nil
	}
	for _, s := range sn.services {
		if s.IPv4 == a || s.IPv6 == a {
			return s
		}
	}
	return nil
}

// Hosts are the nodes that have something to do with a service (tailnet.Hosting), sorted by id. It costs O(nodes).
func (sn *Snapshot) Hosts(service string) (out []*Node) {
	for _, n := range sn.nodes {
		if _, ok := n.Hosting(service); ok {
			out = append(out, n)
		}
	}
	return out
}

// Carries reports whether n is the host that carries the service now.
func (sn *Snapshot) Carries(n *Node, s *tailnet.Service) bool {
	for _, a := range s.Addrs() {
		if sn.Routes.Primary(netip.PrefixFrom(a, a.BitLen())) == n.ID {
			return true
		}
	}
	return false
}

// Services are all of them with the changes so far, sorted by name.
func (tx *Tx) Services() []*tailnet.Service {
	return overlay(tx.base.services, tx.services, func(s *tailnet.Service) string { return s.Name })
}

// Service is the one with this name, or nil.
func (tx *Tx) Service(name string) *tailnet.Service {
	if s, ok := tx.services[name]; ok {
		return s
	}
	return tx.base.Service(name)
}

// NewService is a service with free addresses, which is not stored yet. v4, if it is valid, is the IPv4 address that it shall have;
// the error is Invalid if it cannot, and Exhausted if no addresses are left.
func (tx *Tx) NewService(name string, v4 netip.Addr) (*tailnet.Service, error) {
	s := &tailnet.Service{Name: name, Created: tx.now, Updated: tx.now}
	if !v4.IsValid() {
		var err error
		s.IPv4, s.IPv6, err = tx.freeAddrs()
		return s, err
	}
	var probe tailnet.Node
	if err := tx.SetIPv4(&probe, v4); err != nil {
		return nil, err
	}
	h, _ := tx.st.addressing.host(v4)
	if !tx.free(h) {
		return nil, tailnet.Errorf(tailnet.Conflict, "the address %s, or the IPv6 address that goes with it, is in use", v4)
	}
	s.IPv4, s.IPv6 = tx.st.addressing.at(h)
	return s, nil
}

// PutService stores s, which is new (from NewService) or a changed Clone. The error is Invalid if a field is wrong, and a Conflict
// if a node has its name or one of its addresses.
func (tx *Tx) PutService(s *tailnet.Service) error {
	if err := s.Check(); err != nil {
		return err
	}
	if n := tx.NodeByName(s.Label()); n != nil {
		return tailnet.Errorf(tailnet.Conflict, "the name %q belongs to node %d: a service cannot have it as well", s.Label(), n.ID)
	}
	old := tx.Service(s.Name)
	for _, a := range s.Addrs() {
		if owner := lookup(tx.byAddr, tx.base.byAddr, a); owner != 0 && (owner != aService || old == nil || !slices.Contains(old.Addrs(), a)) {
			return tailnet.Errorf(tailnet.Conflict, "the address %s is in use", a)
		}
	}
	tx.touched(touchService, 0, s.Name, old)
	tx.layService(old, s)
	return tx.eachHosting(s.Name, func(n *tailnet.Node, h tailnet.Hosting) {
		h.IPv4, h.IPv6 = s.IPv4, s.IPv6
		n.Hostings = tailnet.WithHosting(n.Hostings, h)
		tx.AutoApprove(n)
	})
}

// DeleteService removes a service and what was decided about its hosts; it is not an error if there is none.
func (tx *Tx) DeleteService(name string) error {
	old := tx.Service(name)
	if old == nil {
		return nil
	}
	tx.touched(touchService, 0, name, old)
	put(tx, tx.services, name, nil)
	tx.freeService(old)
	return tx.eachHosting(name, func(n *tailnet.Node, h tailnet.Hosting) {
		h.IPv4, h.IPv6, h.Approval = netip.Addr{}, netip.Addr{}, ""
		n.Hostings = tailnet.WithHosting(n.Hostings, h)
	})
}

// layService puts s in place of old, which may be nil.
func (tx *Tx) layService(old, s *tailnet.Service) {
	if old != nil {
		tx.freeService(old)
	}
	put(tx, tx.services, s.Name, s)
	for _, a := range s.Addrs() {
		put(tx, tx.byAddr, a, aService)
	}
}

// freeService gives the addresses of s back.
func (tx *Tx) freeService(s *tailnet.Service) {
	for _, a := range s.Addrs() {
		put(tx, tx.byAddr, a, 0)
		if h, ok := tx.st.addressing.host(a); ok && h < tx.lowHost {
			tx.lowHost = h
		}
	}
}

// eachHosting runs f on clones of the nodes that have something to do with a service, and stores them. It costs O(nodes).
func (tx *Tx) eachHosting(service string, f func(*tailnet.Node, tailnet.Hosting)) error {
	for _, n := range tx.allNodes() {
		h, ok := n.Hosting(service)
		if !ok {
			continue
		}
		next := n.Clone()
		f(next, h)
		if err := tx.PutNode(next); err != nil {
			return err
		}
	}
	return nil
}

// SetOffers notes which services n, a clone, says it hosts (tailnet.CleanOffers), by its Hostinfo with the given hash. What was
// decided about them stays, and what the policy approves is approved.
func (tx *Tx) SetOffers(n *tailnet.Node, hash string, offers []tailnet.Hosting) {
	var next []tailnet.Hosting
	for _, h := range n.Hostings {
		h.Offered, h.Active, h.Ports = false, false, nil
		next = tailnet.WithHosting(next, h)
	}
	for _, o := range offers {
		if had, ok := n.Hosting(o.Service); ok {
			o.Approval = had.Approval
		}
		if s := tx.Service(o.Service); s != nil {
			o.IPv4, o.IPv6 = s.IPv4, s.IPv6
		}
		next = tailnet.WithHosting(next, o)
	}
	n.Hostings, n.ServicesHash = next, hash
	tx.AutoApprove(n)
}

// ApproveService decides that the node may host the service, or may not, whatever the policy says. The error is NotFound if there is
// no such node or service.
func (tx *Tx) ApproveService(id tailnet.NodeID, service string, approve bool) error {
	n, s := tx.Node(id), tx.Service(service)
	switch {
	case n == nil:
		return tailnet.Errorf(tailnet.NotFound, "there is no node %d", id)
	case s == nil:
		return tailnet.Errorf(tailnet.NotFound, "there is no service %q", tailnet.CleanText(service))
	}
	h, _ := n.Hosting(service)
	h.Service, h.IPv4, h.IPv6, h.Approval = service, s.IPv4, s.IPv6, tailnet.Refused
	if approve {
		h.Approval = tailnet.ApprovedByAdmin
	}
	n = n.Clone()
	n.Hostings = tailnet.WithHosting(n.Hostings, h)
	return tx.PutNode(n)
}

// autoApproveServices is autoApprove for the services that n offers.
func autoApproveServices(c *policy.Compiled, n *tailnet.Node, service func(name string) *tailnet.Service) (any bool) {
	for _, h := range n.Hostings {
		if !n.Tagged() || !h.Offered || h.Approval != "" {
			continue
		}
		if s := service(h.Service); s != nil && c.ApprovesService(n, s.Name, s.Tags) {
			h.Approval = tailnet.ApprovedByPolicy
			n.Hostings = tailnet.WithHosting(n.Hostings, h)
			any = true
		}
	}
	return any
}

// serviceAddrs are the addresses of services by name, for policies.
func serviceAddrs(ss []*tailnet.Service) map[string][]netip.Addr {
	if len(ss) == 0 {
		return nil
	}
	m := make(map[string][]netip.Addr, len(ss))
	for _, s := range ss {
		m[s.Name] = s.Addrs()
	}
	return m
}

// movesServices reports whether a service that the policy names has other addresses than in base.
func (tx *Tx) movesServices() bool {
	for name, s := range tx.services {
		var was, is []netip.Addr
		if old := tx.base.Service(name); old != nil {
			was = old.Addrs()
		}
		if s != nil {
			is = s.Addrs()
		}
		if !slices.Equal(was, is) && tx.base.Policy.NamesService(name) {
			return true
		}
	}
	return false
}
