// Package dns makes the names of nodes and the resolver settings that clients are sent. It is pure.
//
// A node is reached as LABEL.BASE (MagicDNS), where BASE is the tailnet's base domain and LABEL is what Label makes of the
// name that the machine gives itself, with a number behind it if another node has that label already.
package dns

import (
	"slices"
	"strconv"
	"strings"

	"tailscale.com/tailcfg"
	"tailscale.com/types/dnstype"
	"tailscale.com/util/dnsname"

	"github.com/skein-vpn/skein/tailnet"
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

// Settings are the DNS settings of a tailnet. The zero value has no MagicDNS and leaves clients' DNS alone.
type Settings struct {
	MagicDNS      bool
	Base          string // base domain without dots at its ends, such as skein.internal
	OverrideLocal bool   // Nameservers replace the resolvers of the client's own network
	Nameservers   []tailnet.Resolver
	Split         map[string][]tailnet.Resolver // suffix → resolvers; with an empty list clients answer it themselves, from Records
	Search        []string
	Records       []tailnet.DNSRecord
}

// With are the settings with what administrators have set put in; s itself if that is nothing.
func (s *Settings) With(set *tailnet.DNS) *Settings {
	if set == nil {
		return s
	}
	c := *s
	if set.MagicDNS != nil {
		c.MagicDNS = *set.MagicDNS && s.Base != ""
	}
	if set.Nameservers != nil {
		c.Nameservers = set.Nameservers
	}
	if set.OverrideLocal != nil {
		c.OverrideLocal = *set.OverrideLocal
	}
	c.OverrideLocal = c.OverrideLocal && len(c.Nameservers) > 0 // else clients would be left without any resolver
	if set.Split != nil {
		c.Split = set.Split
	}
	if set.Search != nil {
		c.Search = set.Search
	}
	c.Records = slices.Concat(s.Records, set.Records)
	return &c
}

// Resolvers are plain resolvers at these addresses.
func Resolvers(addrs ...string) []tailnet.Resolver {
	out := make([]tailnet.Resolver, 0, len(addrs))
	for _, a := range addrs {
		out = append(out, tailnet.Resolver{Addr: a})
	}
	return out
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
func nameserversOf(addrs []tailnet.Resolver) []*dnstype.Resolver {
	if rs := resolvers(addrs); rs != nil {
		return rs
	}
	return []*dnstype.Resolver{}
}

func resolvers(rs []tailnet.Resolver) (out []*dnstype.Resolver) {
	for _, r := range rs {
		out = append(out, &dnstype.Resolver{Addr: r.Addr, UseWithExitNode: r.UseWithExitNode})
	}
	return out
}
