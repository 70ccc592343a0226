// Package dns makes the names of nodes and the resolver settings that clients are sent. It is pure.
//
// A node is reached as LABEL.BASE (MagicDNS), where BASE is the tailnet's base domain and LABEL is what Label makes of the
// name that the machine gives itself, with a number behind it if another node has that label already.
package dns

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"tailscale.com/tailcfg"
	"tailscale.com/types/dnstype"
	"tailscale.com/util/dnsname"
)

// MaxLabel is the longest label DNS allows, in bytes (RFC 1035, 2.3.4).
const MaxLabel = 63

// Fallback is the label of a node whose own name has nothing that DNS allows.
const Fallback = "node"

// Label turns a machine's name into a DNS label the way Tailscale does: lower case, separators become "-", everything
// else that DNS does not allow is dropped. `Joe's Mac mini` gives joes-mac-mini, a name without a usable letter Fallback.
func Label(hostname string) string {
	if l := dnsname.SanitizeHostname(hostname); l != "" {
		return l
	}
	return Fallback
}

// Unique returns label, or label with the first free number behind it: homeds, homeds-1, homeds-2. A long label is cut so
// that the number fits.
func Unique(label string, taken func(string) bool) string {
	for i, try := 0, label; ; try = numbered(label, i) {
		if !taken(try) {
			return try
		}
		i++
	}
}

func numbered(label string, i int) string {
	suffix := "-" + strconv.Itoa(i)
	if len(label)+len(suffix) > MaxLabel {
		label = strings.TrimRight(label[:MaxLabel-len(suffix)], "-")
	}
	return label + suffix
}

// Record is an extra record that clients answer themselves.
type Record struct {
	Name string
	Addr netip.Addr // gives an A or an AAAA record
}

// Settings are the DNS settings of a tailnet. The zero value has no MagicDNS and leaves clients' DNS alone.
type Settings struct {
	MagicDNS      bool
	Base          string // base domain without dots at its ends, such as skein.internal
	OverrideLocal bool   // Nameservers replace the resolvers of the client's own network
	Nameservers   []string
	Split         map[string][]string // suffix → resolvers; with an empty list clients answer it themselves, from Records
	Search        []string
	Records       []Record
}

// FQDN is the full name of a node, with the dot at its end (tailcfg.Node.Name).
func (s *Settings) FQDN(label string) string { return label + "." + s.Base + "." }

// Config is what clients are sent (tailcfg.MapResponse.DNSConfig). It is never nil: an absent one would keep what an
// earlier server had sent.
func (s *Settings) Config() *tailcfg.DNSConfig {
	c := &tailcfg.DNSConfig{Proxied: s.MagicDNS}
	if s.MagicDNS {
		c.Domains = append(c.Domains, s.Base)
	}
	for _, d := range s.Search {
		if !slices.Contains(c.Domains, d) {
			c.Domains = append(c.Domains, d)
		}
	}
	resolvers := resolvers(s.Nameservers)
	if s.OverrideLocal {
		c.Resolvers = resolvers
	} else {
		c.FallbackResolvers = resolvers
	}
	if len(s.Split) > 0 {
		c.Routes = make(map[string][]*dnstype.Resolver, len(s.Split))
		for suffix, rs := range s.Split {
			c.Routes[suffix] = nameserversOf(rs)
		}
	}
	for _, r := range s.Records {
		rec := tailcfg.DNSRecord{Name: r.Name, Type: "A", Value: r.Addr.String()}
		if r.Addr.Is6() {
			rec.Type = "AAAA"
		}
		c.ExtraRecords = append(c.ExtraRecords, rec)
	}
	return c
}

// nameserversOf is never nil: in tailcfg.DNSConfig.Routes an empty list means "answer it yourself", nil is no statement.
func nameserversOf(addrs []string) []*dnstype.Resolver {
	if rs := resolvers(addrs); rs != nil {
		return rs
	}
	return []*dnstype.Resolver{}
}

func resolvers(addrs []string) (out []*dnstype.Resolver) {
	for _, a := range addrs {
		out = append(out, &dnstype.Resolver{Addr: a})
	}
	return out
}
