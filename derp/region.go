package derp

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"tailscale.com/tailcfg"
)

// CapVerPinnedCert is the first capability version whose clients understand a pinned certificate in DERPNode.CertName
// ("sha256-raw:…"), and DERPRegion.NoMeasureNoHome.
//
// Tried with derp/derphttp of the releases against this package: v1.80.3 (capver 113) takes the text for a DNS name and fails,
// v1.82.5 (115), v1.84.3, v1.86.5, v1.88.4, v1.90.9 and v1.102.5 pin. Older clients are told InsecureForTests instead: they
// skip the check of the relay's certificate. What they send through it stays encrypted end to end; an impostor could drop it or
// see who talks to whom.
const CapVerPinnedCert tailcfg.CapabilityVersion = 115

// Maps is one DERP map in the spelling of newer and of older clients. Both are immutable, and the same pointer when nothing
// differs.
type Maps struct {
	Current *tailcfg.DERPMap // CapVerPinnedCert and later
	Legacy  *tailcfg.DERPMap // before
}

// For returns the map for a client of capability version v.
func (m *Maps) For(v tailcfg.CapabilityVersion) *tailcfg.DERPMap {
	if v < CapVerPinnedCert {
		return m.Legacy
	}
	return m.Current
}

// newMaps spells m for older clients as well. Our own region is the only one whose pin becomes InsecureForTests there: whether to
// do without a check for relays elsewhere is for those to say who wrote them down. embedded is 0 without an embedded region.
func newMaps(m *tailcfg.DERPMap, embedded int) *Maps {
	var legacy *tailcfg.DERPMap
	for id, r := range m.Regions {
		pinned := id == embedded && slices.ContainsFunc(r.Nodes, isPinned)
		if !pinned && (!r.NoMeasureNoHome || r.Avoid) {
			continue
		}
		if legacy == nil {
			legacy = m.Clone()
		}
		lr := legacy.Regions[id]
		lr.Avoid = lr.Avoid || lr.NoMeasureNoHome
		for _, n := range lr.Nodes {
			if pinned && isPinned(n) {
				n.CertName, n.InsecureForTests = "", true
			}
		}
	}
	if legacy == nil {
		legacy = m
	}
	return &Maps{Current: m, Legacy: legacy}
}

func isPinned(n *tailcfg.DERPNode) bool { return strings.HasPrefix(n.CertName, pinPrefix) }

// Embedded describes the region that this process serves.
type Embedded struct {
	// ServerURL is where clients reach this server. The relay is on the same host and port, with TLS whatever the scheme says:
	// with http our port takes both (Listener), with https this server or a proxy in front of it speaks TLS there.
	ServerURL *url.URL

	RegionID int    // 1 to 65535; 900 to 999 are free for such use by convention
	Code     string // short, such as "skein"
	Name     string // for people

	// IPv4 and IPv6 are the addresses clients dial, "" to find them by the URL's host, "none" for a family not offered.
	IPv4, IPv6 string

	STUNPort int // 0: no STUN

	// Node names the relay where the region has several; empty: it is the only one. Others are those of other servers.
	Node   string
	Others []*tailcfg.DERPNode

	// Cert is what our TLS side shows. Clients are told to pin it when ServerURL is http and it is a single certificate. Nil, or
	// a chain, or https: they check it by their usual roots. It is renewed by Sources.Run.
	Cert *Certificate
}

// ipv6Name stands for an IPv6 address in DERPNode.HostName, where the address itself would give clients a URL without brackets
// that does not parse (netcheck:measureHTTPSLatency, derphttp:urlString). It is never looked up: the address is in IPv6.
const ipv6Name = "relay.skein.invalid"

// CertHosts returns the names and addresses that a self-signed certificate for this server must cover.
func CertHosts(server *url.URL) []string {
	host := server.Hostname()
	if a, err := netip.ParseAddr(host); err == nil && a.Is6() {
		return []string{host, ipv6Name}
	}
	return []string{host}
}

// region returns the embedded region for the map. Its relays are sorted by name, so that all servers tell clients the same.
func (e *Embedded) region() (*tailcfg.DERPRegion, error) {
	n, err := e.Relay()
	if err != nil {
		return nil, err
	}
	nodes := append([]*tailcfg.DERPNode{n}, e.Others...)
	slices.SortFunc(nodes, func(a, b *tailcfg.DERPNode) int { return strings.Compare(a.Name, b.Name) })
	r := &tailcfg.DERPRegion{RegionID: e.RegionID, RegionCode: e.Code, RegionName: e.Name, Nodes: nodes}
	if faults := checkRegion(e.RegionID, r); len(faults) > 0 {
		return nil, fmt.Errorf("the embedded relay's region: %w", faults[0])
	}
	return r, nil
}

// Relay describes this process's relay.
func (e *Embedded) Relay() (*tailcfg.DERPNode, error) {
	if e.ServerURL == nil || e.ServerURL.Hostname() == "" {
		return nil, errors.New("the embedded relay needs a server URL with a host")
	}
	host, plain := e.ServerURL.Hostname(), e.ServerURL.Scheme == "http"
	if !plain && e.ServerURL.Scheme != "https" {
		return nil, fmt.Errorf("server URL %s: want http:// or https://", e.ServerURL)
	}
	port := 443
	if plain {
		port = 80
	}
	if p := e.ServerURL.Port(); p != "" {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil || n == 0 {
			return nil, fmt.Errorf("server URL %s: port %q is not between 1 and 65535", e.ServerURL, p)
		}
		port = int(n)
	}
	n := &tailcfg.DERPNode{
		Name:     strconv.Itoa(e.RegionID) + "-" + cmp.Or(e.Node, "embedded"),
		RegionID: e.RegionID,
		HostName: host,
		IPv4:     e.IPv4,
		IPv6:     e.IPv6,
		STUNPort: e.STUNPort,
		DERPPort: port,
	}
	if n.STUNPort == 0 {
		n.STUNPort = -1 // tailcfg.DERPNode.STUNPort: zero would mean 3478
	}
	if plain && e.Cert != nil {
		n.CertName = e.Cert.pin()
	}
	if a, err := netip.ParseAddr(host); err == nil {
		if a.IsUnspecified() || a.Zone() != "" {
			return nil, fmt.Errorf("server URL %s: clients cannot reach %s; give an address or name they can", e.ServerURL, host)
		}
		if a = a.Unmap(); a.Is4() {
			setIfEmpty(&n.IPv4, a.String())
			setIfEmpty(&n.IPv6, "none")
		} else {
			setIfEmpty(&n.IPv4, "none")
			setIfEmpty(&n.IPv6, a.String())
			if n.CertName != "" {
				n.HostName = ipv6Name
			}
		}
	}
	// net/captivedetection: only of use with a literal address, and only if /generate_204 really is on port 80.
	if a, err := netip.ParseAddr(n.IPv4); err == nil && a.Is4() {
		n.CanPort80 = plain && port == 80
	}
	return n, nil
}

// MeshRelay describes this process's relay to other servers' relays, which come straight to its port, whatever is in front of it
// for clients; nil if it cannot be described.
func (e *Embedded) MeshRelay(port int) *tailcfg.DERPNode {
	n, err := e.Relay()
	if err != nil {
		return nil
	}
	if port != 0 {
		n.DERPPort = port
	}
	if e.Cert != nil {
		n.CertName = e.Cert.pin()
	}
	return n
}

func setIfEmpty(s *string, v string) {
	if *s == "" {
		*s = v
	}
}
