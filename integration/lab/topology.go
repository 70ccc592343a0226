package lab

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// NAT is how a LAN's router translates addresses.
type NAT int

const (
	// EasyNAT keeps the inner source port, so everyone outside sees a host under the same address
	// and port, and two hosts behind such routers can find a direct path.
	EasyNAT NAT = iota
	// HardNAT draws a new source port for every destination, so what a STUN server sees is of no
	// use to a peer.
	HardNAT
)

// Host is one machine of the lab: its own network, mounts and host name. A Host without an uplink is
// the internet itself.
type Host struct {
	l    *Lab
	name string
	addr netip.Addr
	// outer is the address under which the host's gateway forwards its packets: addr, but for the
	// router of a LAN its public one.
	outer netip.Addr
	dir   string
	ns    *namespace
	nl    *netlink.Handle // of the network namespace

	gateway  *Host  // forwards this host's traffic; nil for the internet
	gwLink   string // the gateway's end of this host's cable
	blocks   []blockRule
	blockers []*Host // on a gateway: the hosts it blocks something for
}

// LAN is a private network behind a translating router.
type LAN struct {
	l      *Lab
	prefix netip.Prefix
	// Router has the first address of the LAN inside and a public address outside. It runs no
	// Tailscale unless a test starts one there.
	Router *Host
	// Public is the router's outer address, the one under which the rest of the lab sees the LAN.
	Public netip.Addr
	ports  int
}

// Name is the host's name, which is also what os.Hostname says to programs on it.
func (h *Host) Name() string { return h.name }

// Addr is the host's underlay address: in its LAN for hosts of a LAN and for routers.
func (h *Host) Addr() netip.Addr { return h.addr }

// Dir is the host's folder in the lab's directory.
func (h *Host) Dir() string { return h.dir }

// Cloud adds a host with a public address of its own.
func (l *Lab) Cloud(name string) *Host {
	l.t.Helper()
	return l.site(name, "203.0.113.0")
}

// Private adds a host with a private address (10.77.0.0/16) that is routed in the whole lab, like a
// server inside a company's network.
func (l *Lab) Private(name string) *Host {
	l.t.Helper()
	return l.site(name, "10.77.0.0")
}

// site adds a host at the end of a point-to-point link to the internet. Each site gets the next /30
// of the network that begins at base.
func (l *Lab) site(name, base string) *Host {
	l.t.Helper()
	l.sites++
	n := l.sites
	if base != "203.0.113.0" {
		l.privateSites++
		n = l.privateSites - 1
	}
	if n > 63 {
		l.t.Fatalf("lab: no address left for %s", name)
	}
	b := netip.MustParseAddr(base).As4()
	at := func(i int) netip.Prefix {
		a := b
		a[3] = byte(4*n + i)
		return netip.PrefixFrom(netip.AddrFrom4(a), 30)
	}
	h := l.newHost(name, at(2).Addr())
	if err := l.attach(h, fmt.Sprintf("site%d", l.sites), at(1), at(2)); err != nil {
		l.t.Fatalf("lab: connect %s: %v", name, err)
	}
	return h
}

func (l *Lab) attach(h *Host, link string, gwAddr, addr netip.Prefix) error {
	if err := cable(l.internet, link, h, "eth0"); err != nil {
		return err
	}
	if err := l.internet.addrAdd(link, gwAddr); err != nil {
		return err
	}
	if err := h.addrAdd("eth0", addr); err != nil {
		return err
	}
	return h.defaultRoute(gwAddr.Addr())
}

// LAN adds a private network with the given prefix, whose router has the prefix's first address and
// is called name.
func (l *Lab) LAN(name, prefix string, nat NAT) *LAN {
	l.t.Helper()
	p := netip.MustParsePrefix(prefix)
	router := l.site(name, "203.0.113.0")
	lan := &LAN{l: l, prefix: p, Router: router, Public: router.addr}
	router.addr = p.Addr().Next()
	if err := lan.build(nat); err != nil {
		l.t.Fatalf("lab: LAN %s: %v", name, err)
	}
	return lan
}

func (lan *LAN) build(nat NAT) error {
	r := lan.Router
	if err := r.forward(); err != nil {
		return err
	}
	br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "lan0"}}
	if err := r.nl.LinkAdd(br); err != nil {
		return fmt.Errorf("add bridge: %w", err)
	}
	if err := r.addrAdd("lan0", netip.PrefixFrom(r.addr, lan.prefix.Bits())); err != nil {
		return err
	}
	return natRules(r.ns.netFD, "eth0", nat)
}

// Host adds a host to the LAN.
func (lan *LAN) Host(name, addr string) *Host {
	lan.l.t.Helper()
	a := netip.MustParseAddr(addr)
	if !lan.prefix.Contains(a) {
		lan.l.t.Fatalf("lab: %s with %s is not in %s", name, a, lan.prefix)
	}
	h := lan.l.newHost(name, a)
	if err := lan.plug(h); err != nil {
		lan.l.t.Fatalf("lab: connect %s: %v", name, err)
	}
	return h
}

func (lan *LAN) plug(h *Host) error {
	lan.ports++
	port := fmt.Sprintf("port%d", lan.ports)
	if err := cable(lan.Router, port, h, "eth0"); err != nil {
		return err
	}
	br, err := lan.Router.nl.LinkByName("lan0")
	if err != nil {
		return err
	}
	pl, err := lan.Router.nl.LinkByName(port)
	if err != nil {
		return err
	}
	if err := lan.Router.nl.LinkSetMaster(pl, br); err != nil {
		return fmt.Errorf("join bridge: %w", err)
	}
	if err := h.addrAdd("eth0", netip.PrefixFrom(h.addr, lan.prefix.Bits())); err != nil {
		return err
	}
	return h.defaultRoute(lan.Router.addr)
}

// newHost makes a host without any cable; its loopback is up.
func (l *Lab) newHost(name string, addr netip.Addr) *Host {
	l.t.Helper()
	h := &Host{l: l, name: name, addr: addr, outer: addr}
	if err := h.open(); err != nil {
		l.t.Fatalf("lab: host %s: %v", name, err)
	}
	l.mu.Lock()
	l.hosts = append(l.hosts, h)
	l.mu.Unlock()
	return h
}

func (h *Host) open() (err error) {
	if h.dir, err = h.l.hostDir(h.name); err != nil {
		return err
	}
	etc := filepath.Join(h.dir, "etc")
	if err := privateEtc(etc, h.name, "203.0.113.1"); err != nil {
		return err
	}
	if h.ns, err = newNamespace(h.name, etc); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			h.ns.close()
		}
	}()
	if h.nl, err = netlink.NewHandleAt(netns.NsHandle(h.ns.netFD)); err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	lo, err := h.nl.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := h.nl.LinkSetUp(lo); err != nil {
		return err
	}
	// A strict reverse-path filter copied from the machine would drop what comes in on a tunnel.
	for _, dev := range []string{"all", "default"} {
		if err := h.sysctl("net/ipv4/conf/"+dev+"/rp_filter", "0"); err != nil {
			return err
		}
	}
	return nil
}

func (h *Host) close() {
	h.nl.Close()
	h.ns.close()
}

// sysctl writes one network setting of the host; name is the path below /proc/sys.
func (h *Host) sysctl(name, value string) error {
	return h.ns.do(func() error {
		return os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0o644)
	})
}

// forward makes the host a router.
func (h *Host) forward() error { return h.sysctl("net/ipv4/ip_forward", "1") }

// Forward switches on forwarding of IPv4 and IPv6, which a subnet router or exit node needs.
func (h *Host) Forward() {
	h.l.t.Helper()
	for _, name := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
		if err := h.sysctl(name, "1"); err != nil {
			h.l.t.Fatalf("lab: %s: %v", h.name, err)
		}
	}
}

// cable connects two hosts by a pair of interfaces, gw's end named gwLink, and sets both up.
func cable(gw *Host, gwLink string, h *Host, link string) error {
	veth := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: gwLink},
		PeerName:      link,
		PeerNamespace: netlink.NsFd(h.ns.netFD),
	}
	if err := gw.nl.LinkAdd(veth); err != nil {
		return fmt.Errorf("add cable: %w", err)
	}
	h.gateway, h.gwLink = gw, gwLink
	if err := gw.linkUp(gwLink, true); err != nil {
		return err
	}
	return h.linkUp(link, true)
}

func (h *Host) linkUp(name string, up bool) error {
	link, err := h.nl.LinkByName(name)
	if err != nil {
		return fmt.Errorf("interface %s of %s: %w", name, h.name, err)
	}
	if up {
		return h.nl.LinkSetUp(link)
	}
	return h.nl.LinkSetDown(link)
}

func (h *Host) addrAdd(name string, p netip.Prefix) error {
	link, err := h.nl.LinkByName(name)
	if err != nil {
		return fmt.Errorf("interface %s of %s: %w", name, h.name, err)
	}
	if err := h.nl.LinkSetUp(link); err != nil {
		return err
	}
	a, err := netlink.ParseAddr(p.String())
	if err != nil {
		return err
	}
	if err := h.nl.AddrAdd(link, a); err != nil {
		return fmt.Errorf("add %s to %s of %s: %w", p, name, h.name, err)
	}
	return nil
}

func (h *Host) defaultRoute(via netip.Addr) error {
	if err := h.nl.RouteAdd(&netlink.Route{Gw: via.AsSlice()}); err != nil {
		return fmt.Errorf("default route of %s via %s: %w", h.name, via, err)
	}
	return nil
}

// CutCable pulls the host's cable out at the far end: the host loses carrier but keeps its address
// and routes, as a machine does.
func (h *Host) CutCable() { h.setCable(false) }

// PlugCable undoes CutCable.
func (h *Host) PlugCable() { h.setCable(true) }

func (h *Host) setCable(up bool) {
	h.l.t.Helper()
	if err := h.gateway.linkUp(h.gwLink, up); err != nil {
		h.l.t.Fatalf("lab: cable of %s: %v", h.name, err)
	}
}
