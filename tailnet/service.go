package tailnet

import (
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"tailscale.com/tailcfg"
)

// Service is a name and a pair of addresses that several nodes can host: clients reach whichever of them carries it.
type Service struct {
	Name        string // "svc:LABEL", unique in the tailnet; LABEL is its name in MagicDNS
	IPv4        netip.Addr
	IPv6        netip.Addr
	DisplayName string            // free text, may be empty
	Comment     string            // free text, may be empty
	Annotations map[string]string // of other programs; shared between copies: replace, do not write
	Ports       []string          // "tcp:443", "tcp:80-90" or AnyPort: what its hosts must serve
	Tags        []string          // sorted; autoApprovers.services of the policy may name them
	Created     time.Time
	Updated     time.Time
}

// AnyPort among the ports of a service: what its hosts serve is their business.
const AnyPort = "do-not-validate"

// ServicePrefix begins the names of services.
const ServicePrefix = "svc:"

// Bounds on what administrators and other programs may keep in a service.
const (
	maxServicePorts       = 100
	maxServiceText        = 1000 // bytes of a comment
	maxDisplayName        = 64   // bytes, as the hosted service has it
	maxServiceAnnotations = 64
	maxAnnotation         = 4096 // bytes of a key with its value
	maxHostedServices     = 256  // of one node
	maxHostedPorts        = 256  // of one of them
)

// Clone returns a copy that may be changed; slices and maps are shared with the original.
func (s *Service) Clone() *Service {
	c := *s
	return &c
}

// Label is the name without its prefix.
func (s *Service) Label() string { return strings.TrimPrefix(s.Name, ServicePrefix) }

// Addrs are the addresses of the service, IPv4 first.
func (s *Service) Addrs() (out []netip.Addr) {
	for _, a := range []netip.Addr{s.IPv4, s.IPv6} {
		if a.IsValid() {
			out = append(out, a)
		}
	}
	return out
}

// CheckServiceName returns nil if name can be that of a service, or else an Error that says what would be right.
func CheckServiceName(name string) error {
	if tailcfg.ServiceName(name).Validate() != nil || name != strings.ToLower(name) {
		return Errorf(Invalid, "%q is not the name of a service: write svc:NAME with a-z, 0-9 and \"-\"", CleanText(name))
	}
	return nil
}

// Check returns nil or an Invalid error that says which field is wrong. It puts ports and tags in order.
func (s *Service) Check() error {
	if err := CheckServiceName(s.Name); err != nil {
		return err
	}
	for field, text := range map[string]struct {
		text string
		max  int
	}{"displayName": {s.DisplayName, maxDisplayName}, "comment": {s.Comment, maxServiceText}} {
		if len(text.text) > text.max || strings.ContainsRune(text.text, 0) {
			return Errorf(Invalid, "%s: it is longer than %d bytes, or holds what is no text", field, text.max)
		}
	}
	if len(s.Ports) > maxServicePorts {
		return Errorf(Invalid, "ports: these are too many: at most %d", maxServicePorts)
	}
	ports := make([]string, 0, len(s.Ports))
	for _, p := range s.Ports {
		clean, err := checkServicePort(p)
		if err != nil {
			return err
		}
		ports = append(ports, clean)
	}
	s.Ports = slices.Compact(ports)
	tags := slices.Clone(s.Tags)
	for _, t := range tags {
		if err := CheckTag(t); err != nil {
			return err
		}
	}
	slices.Sort(tags)
	s.Tags = slices.Compact(tags)
	if len(s.Tags) > maxTags || len(s.Annotations) > maxServiceAnnotations {
		return Errorf(Invalid, "these are too many: at most %d tags and %d annotations", maxTags, maxServiceAnnotations)
	}
	for _, k := range slices.Sorted(maps.Keys(s.Annotations)) {
		if v := s.Annotations[k]; k == "" || len(k)+len(v) > maxAnnotation || strings.ContainsRune(k+v, 0) {
			return Errorf(Invalid, "annotations: %q has no name, or is longer than %d bytes", CleanText(k), maxAnnotation)
		}
	}
	return nil
}

// checkServicePort is p as it is stored.
func checkServicePort(p string) (string, error) {
	if p == AnyPort {
		return p, nil
	}
	if proto, ports, ok := strings.Cut(p, ":"); ok && strings.EqualFold(proto, "tcp") {
		first, last, isRange := strings.Cut(ports, "-")
		if !isRange {
			last = first
		}
		a, err := strconv.ParseUint(first, 10, 16)
		b, err2 := strconv.ParseUint(last, 10, 16)
		if err == nil && err2 == nil && 0 < a && a <= b {
			return "tcp:" + ports, nil
		}
	}
	return "", Errorf(Invalid, "ports: %q is not a port such as tcp:443 or tcp:8000-8010, nor %s", CleanText(p), AnyPort)
}

// Hosting is what a node has to do with a service.
//
//	offered ──┬─ approved by the policy, or by an administrator, while there is such a service ─► it may carry it, while Active
//	          └─ otherwise: it waits
//
// What administrators have decided stays while the node does not offer it.
type Hosting struct {
	Service  string   `json:"service"`
	Offered  bool     `json:"offered,omitempty"`  // the node says so (tailcfg.C2NVIPServicesResponse)
	Active   bool     `json:"active,omitempty"`   // it takes new connections (tailcfg.VIPService.Active)
	Ports    []string `json:"ports,omitempty"`    // that it serves, as tailcfg.ProtoPortRange writes them
	Approval Approval `json:"approval,omitempty"` // empty: nobody has decided

	// The addresses of the service; invalid while there is none of this name. state keeps them true.
	IPv4 netip.Addr `json:"ipv4,omitzero"`
	IPv6 netip.Addr `json:"ipv6,omitzero"`
}

// Approval is what was decided about a node that wants to host a service.
type Approval string

// The decisions. A node that was refused is not approved by the policy again.
const (
	ApprovedByPolicy Approval = "auto"
	ApprovedByAdmin  Approval = "manual"
	Refused          Approval = "refused"
)

// Approved reports whether the node may host the service.
func (h *Hosting) Approved() bool {
	return (h.Approval == ApprovedByPolicy || h.Approval == ApprovedByAdmin) && (h.IPv4.IsValid() || h.IPv6.IsValid())
}

// Addrs are the addresses of the service, IPv4 first.
func (h *Hosting) Addrs() (out []netip.Addr) {
	for _, a := range []netip.Addr{h.IPv4, h.IPv6} {
		if a.IsValid() {
			out = append(out, a)
		}
	}
	return out
}

// routes are the addresses as prefixes, if the node could carry them now.
func (h *Hosting) routes() (out []netip.Prefix) {
	if !h.Offered || !h.Active || !h.Approved() {
		return nil
	}
	for _, a := range h.Addrs() {
		out = append(out, netip.PrefixFrom(a, a.BitLen()))
	}
	return out
}

// Serves reports whether the ports that a service wants are among those that the host serves.
func (h *Hosting) Serves(ports []string) bool {
	if slices.Contains(ports, AnyPort) {
		return true
	}
	has, err := tailcfg.ParseProtoPortRanges(h.Ports)
	if err != nil {
		return false
	}
	wants, err := tailcfg.ParseProtoPortRanges(ports)
	if err != nil {
		return false
	}
	for _, w := range wants {
		if !slices.ContainsFunc(has, func(p tailcfg.ProtoPortRange) bool {
			return (p.Proto == 0 || p.Proto == w.Proto) && p.Ports.First <= w.Ports.First && w.Ports.Last <= p.Ports.Last
		}) {
			return false
		}
	}
	return true
}

// Hosting is what the node has to do with the service; false if nothing.
func (n *Node) Hosting(service string) (Hosting, bool) {
	for _, h := range n.Hostings {
		if h.Service == service {
			return h, true
		}
	}
	return Hosting{}, false
}

// WithHosting are the hostings hs, sorted by service, with h put in, or without that of its service if it says nothing.
func WithHosting(hs []Hosting, h Hosting) []Hosting {
	out := slices.DeleteFunc(slices.Clone(hs), func(o Hosting) bool { return o.Service == h.Service })
	if h.Offered || h.Approval != "" {
		out = append(out, h)
		slices.SortFunc(out, func(a, b Hosting) int { return strings.Compare(a.Service, b.Service) })
	}
	return out
}

// CleanOffers are the services that a client says it hosts, fit to be stored: what is no name of a service is dropped, and what is
// too much is cut.
func CleanOffers(vs []*tailcfg.VIPService) (out []Hosting) {
	for _, v := range vs {
		if v == nil || CheckServiceName(string(v.Name)) != nil || len(out) == maxHostedServices ||
			slices.ContainsFunc(out, func(h Hosting) bool { return h.Service == string(v.Name) }) {
			continue
		}
		h := Hosting{Service: string(v.Name), Offered: true, Active: v.Active}
		for _, p := range v.Ports[:min(len(v.Ports), maxHostedPorts)] {
			h.Ports = append(h.Ports, p.String())
		}
		out = append(out, h)
	}
	return out
}

// IsServiceRoute reports whether p is the address of a service, as a route of the node that carries it. Nodes cannot advertise such
// routes themselves (CleanRoutes).
func IsServiceRoute(p netip.Prefix) bool { return p.IsSingleIP() && insideTailnet(p) }
