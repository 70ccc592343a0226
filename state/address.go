package state

import (
	"crypto/rand"
	"encoding/binary"
	"math/big"
	"net/netip"
	"slices"

	"github.com/skein-vpn/skein/tailnet"
)

// Addressing says which addresses nodes get: one from each prefix that is set, with the same host part. Not all of a
// prefix is given out; see reserved.
type Addressing struct {
	Prefix4 netip.Prefix // within 100.64.0.0/10; zero: nodes get no IPv4 address
	Prefix6 netip.Prefix // within fd7a:115c:a1e0::/48; zero: nodes get no IPv6 address
	Random  bool         // any free pair instead of the lowest
}

// reserved are the parts of the tailnet range that clients keep for themselves (net/tsaddr): ChromeOS virtual machines,
// the MagicDNS resolver of each family, and 4via6.
var reserved = []netip.Prefix{
	netip.MustParsePrefix("100.115.92.0/23"),
	netip.MustParsePrefix("100.100.0.0/24"),
	netip.MustParsePrefix("100.100.100.0/24"),
	netip.MustParsePrefix("fd7a:115c:a1e0::53/128"),
	netip.MustParsePrefix("fd7a:115c:a1e0:b1a::/64"),
}

// hosts is the number of host parts: 0 to hosts-1, cut at 2^48 for a wide IPv6 prefix.
func (a *Addressing) hosts() uint64 {
	bits := 48
	if a.Prefix4.IsValid() {
		bits = min(bits, 32-a.Prefix4.Bits())
	}
	if a.Prefix6.IsValid() {
		bits = min(bits, 128-a.Prefix6.Bits())
	}
	return 1 << bits
}

// at is the pair with host part h.
func (a *Addressing) at(h uint64) (v4, v6 netip.Addr) {
	if a.Prefix4.IsValid() {
		b := a.Prefix4.Addr().As4()
		binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+uint32(h))
		v4 = netip.AddrFrom4(b)
	}
	if a.Prefix6.IsValid() {
		b := a.Prefix6.Addr().As16()
		binary.BigEndian.PutUint64(b[8:], binary.BigEndian.Uint64(b[8:])+h)
		v6 = netip.AddrFrom16(b)
	}
	return v4, v6
}

// host is the host part of an address, and whether it is from one of the prefixes.
func (a *Addressing) host(addr netip.Addr) (uint64, bool) {
	switch {
	case a.Prefix4.IsValid() && a.Prefix4.Contains(addr):
		x, p := addr.As4(), a.Prefix4.Addr().As4()
		return uint64(binary.BigEndian.Uint32(x[:]) - binary.BigEndian.Uint32(p[:])), true
	case a.Prefix6.IsValid() && a.Prefix6.Contains(addr):
		x, p := addr.As16(), a.Prefix6.Addr().As16()
		return binary.BigEndian.Uint64(x[8:]) - binary.BigEndian.Uint64(p[8:]), true
	}
	return 0, false
}

// usable reports whether h may be given out: not the network's own address, not IPv4's last one, nothing reserved.
func (a *Addressing) usable(h uint64) bool {
	if h == 0 || (a.Prefix4.IsValid() && h == a.hosts()-1) {
		return false
	}
	v4, v6 := a.at(h)
	for _, r := range reserved {
		if v4.IsValid() && r.Contains(v4) || v6.IsValid() && r.Contains(v6) {
			return false
		}
	}
	return true
}

// freeAddrs picks a pair that no node has.
func (tx *Tx) freeAddrs() (v4, v6 netip.Addr, err error) {
	a := &tx.st.addressing
	if a.Random {
		// A few throws find a free pair unless the range is nearly full; then the lowest free one will do.
		for range 20 {
			r, err := rand.Int(rand.Reader, new(big.Int).SetUint64(a.hosts()))
			if err != nil {
				return v4, v6, err
			}
			if h := r.Uint64(); a.usable(h) && tx.free(h) {
				v4, v6 = a.at(h)
				return v4, v6, nil
			}
		}
	}
	// Below lowHost everything is in use; released keeps that true when an address is given back.
	for h := tx.lowHost; h < a.hosts(); h++ {
		if a.usable(h) && tx.free(h) {
			tx.lowHost = h
			v4, v6 = a.at(h)
			return v4, v6, nil
		}
	}
	return v4, v6, tailnet.Errorf(tailnet.Exhausted, "all addresses of %s are in use: delete nodes, or configure wider prefixes (prefixes.v4, prefixes.v6)",
		tailnet.FormatPrefixes(validPrefixes(a.Prefix4, a.Prefix6)))
}

func validPrefixes(ps ...netip.Prefix) (out []netip.Prefix) {
	for _, p := range ps {
		if p.IsValid() {
			out = append(out, p)
		}
	}
	return out
}

// free reports whether no node has an address with host part h.
func (tx *Tx) free(h uint64) bool {
	v4, v6 := tx.st.addressing.at(h)
	return lookup(tx.byAddr, tx.base.byAddr, v4) == 0 && lookup(tx.byAddr, tx.base.byAddr, v6) == 0
}

// released lowers lowHost to the host parts that n gives back.
func (tx *Tx) released(n *tailnet.Node) {
	for _, addr := range n.Addrs() {
		if h, ok := tx.st.addressing.host(addr); ok && h < tx.lowHost {
			tx.lowHost = h
		}
	}
}

// UsePool moves the IPv4 address of a new node into the pool that the policy has for nodes like it, if there is one
// (nodeAttrs.ipPool). n is changed. The error is Exhausted if the pool is full.
func (tx *Tx) UsePool(n *tailnet.Node) error {
	pools := tx.Policy().PoolFor(n)
	if len(pools) == 0 || !n.IPv4.IsValid() {
		return nil
	}
	for _, p := range pools {
		for a := p.Masked().Addr(); p.Contains(a); a = a.Next() {
			if isReserved(a) || !tx.st.addressing.Prefix4.Contains(a) || lookup(tx.byAddr, tx.base.byAddr, a) != 0 {
				continue
			}
			n.IPv4 = a
			return nil
		}
	}
	return tailnet.Errorf(tailnet.Exhausted, "all addresses of the policy's pool %s are in use", tailnet.FormatPrefixes(pools))
}

// SetIPv4 gives n, a Clone, the address a. It is Invalid if no node may have it; PutNode refuses one that another node has.
func (tx *Tx) SetIPv4(n *tailnet.Node, a netip.Addr) error {
	p := tx.st.addressing.Prefix4
	h, ok := tx.st.addressing.host(a)
	switch {
	case !p.IsValid():
		return tailnet.Errorf(tailnet.Invalid, "the nodes of this tailnet have no IPv4 addresses (prefixes.v4)")
	case !a.Is4() || !ok || !tx.st.addressing.usable(h):
		return tailnet.Errorf(tailnet.Invalid, "%s is not an address that a node may have: give one of %s", a, p)
	}
	n.IPv4 = a
	return nil
}

func isReserved(a netip.Addr) bool {
	return slices.ContainsFunc(reserved, func(r netip.Prefix) bool { return r.Contains(a) })
}
