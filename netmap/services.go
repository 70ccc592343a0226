package netmap

import (
	"net/netip"

	"tailscale.com/tailcfg"

	"github.com/skein-vpn/skein/state"
)

// A service reaches clients in three places: its hosts are told its addresses (tailcfg.NodeAttrServiceHost), peers see them among
// the AllowedIPs of the host that carries it, as they see routes, and its name is an extra record of the DNS configuration for those who
// may use it.

// setServices tells n the addresses of the services that it is approved to host. Those that it does not take connections for are among
// them: it may have open ones still.
func setServices(m tailcfg.NodeCapMap, n *state.Node) {
	delete(m, tailcfg.NodeAttrServiceHost)
	at := tailcfg.ServiceIPMappings{}
	for i := range n.Hostings {
		if h := &n.Hostings[i]; n.Tagged() && h.Offered && h.Approved() {
			at[tailcfg.ServiceName(h.Service)] = h.Addrs()
		}
	}
	if len(at) > 0 {
		m[tailcfg.NodeAttrServiceHost] = []tailcfg.RawMessage{tailcfg.RawMessage(marshal(at))}
	}
}

// dnsConfig is what viewers of an audience are told about names.
func dnsConfig(sn *state.Snapshot, a audience) *tailcfg.DNSConfig {
	c := sn.DNS.Config()
	if a.blind {
		return c
	}
	for _, s := range sn.Services() {
		for _, addr := range s.Addrs() {
			if sn.Policy.UsesService(a.class, addr) {
				c.ExtraRecords = append(c.ExtraRecords, record(sn.DNS.FQDN(s.Label()), addr))
			}
		}
	}
	return c
}

func record(fqdn string, a netip.Addr) tailcfg.DNSRecord {
	r := tailcfg.DNSRecord{Name: fqdn[:len(fqdn)-1], Type: "A", Value: a.String()}
	if a.Is6() {
		r.Type = "AAAA"
	}
	return r
}

// sameServices reports whether two snapshots have the same services, so that names of services can differ for no viewer who stays in
// its audience under the same rules.
func sameServices(from, to *state.Snapshot) bool {
	a, b := from.Services(), to.Services()
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}
