package tailnet

import (
	"maps"
	"net/netip"
	"net/url"
	"slices"
	"strings"
)

// DNS is what administrators have set about names, beside the configuration of the server: each part that is set takes the
// place of the configuration's, each that is nil leaves it. An empty list is set: it says "none". Records are the exception,
// they come on top of the configuration's. It is immutable.
type DNS struct {
	MagicDNS      *bool                 `json:"magicDNS,omitempty"`
	OverrideLocal *bool                 `json:"overrideLocal,omitempty"`
	Nameservers   []Resolver            `json:"nameservers,omitzero"`
	Split         map[string][]Resolver `json:"split,omitzero"` // suffix → resolvers, never none
	Search        []string              `json:"search,omitzero"`
	Records       []DNSRecord           `json:"records,omitzero"` // sorted by name, then address
}

// Resolver is one that clients ask.
type Resolver struct {
	// Addr is an address ("1.1.1.1"), one with a port ("[2606:4700::1111]:53") or an https:// URL (dnstype.Resolver.Addr).
	Addr string `json:"addr"`
	// UseWithExitNode: asked too while an exit node is in use, where clients otherwise ask the exit node
	// (dnstype.Resolver.UseWithExitNode).
	UseWithExitNode bool `json:"useWithExitNode,omitempty"`
}

// DNSRecord is a record that clients answer themselves: an A or an AAAA record, as Addr is.
type DNSRecord struct {
	Name string     `json:"name"` // full name in lower case, without a dot at the end
	Addr netip.Addr `json:"addr"`
}

// Bounds on what clients are sent in every full map.
const (
	maxResolvers = 64
	maxDomains   = 1000
	maxRecords   = 10_000
)

// Normalize returns d as it is stored: domains in lower case without a dot at the end, records sorted and without repetitions;
// nil if nothing is set. An Invalid error says what is wrong and what would be right.
func (d *DNS) Normalize() (*DNS, error) {
	if d == nil {
		return nil, nil
	}
	c := *d
	if err := checkResolvers("nameservers", c.Nameservers); err != nil {
		return nil, err
	}
	if len(c.Split) > maxDomains || len(c.Search) > maxDomains || len(c.Records) > maxRecords {
		return nil, Errorf(Invalid, "these are too many: at most %d domains and %d records can be kept", maxDomains, maxRecords)
	}
	if d.Split != nil {
		c.Split = make(map[string][]Resolver, len(d.Split))
		for _, domain := range slices.Sorted(maps.Keys(d.Split)) {
			name, err := CheckDomain(domain)
			if err != nil {
				return nil, err
			}
			if len(d.Split[domain]) == 0 {
				return nil, Errorf(Invalid, "%s has no resolvers: give at least one address", name)
			}
			if err := checkResolvers(name, d.Split[domain]); err != nil {
				return nil, err
			}
			c.Split[name] = d.Split[domain]
		}
	}
	if d.Search != nil {
		c.Search = make([]string, 0, len(d.Search))
		for _, s := range d.Search {
			name, err := CheckDomain(s)
			if err != nil {
				return nil, err
			}
			if !slices.Contains(c.Search, name) {
				c.Search = append(c.Search, name)
			}
		}
	}
	if d.Records != nil {
		c.Records = slices.Clone(d.Records)
		for i, r := range c.Records {
			name, err := CheckDomain(r.Name)
			if err != nil {
				return nil, err
			}
			if !r.Addr.IsValid() || r.Addr.Zone() != "" {
				return nil, Errorf(Invalid, "the record %s has no address: give one such as 100.64.0.4 or fd7a:115c:a1e0::4", name)
			}
			c.Records[i] = DNSRecord{name, r.Addr.Unmap()}
		}
		slices.SortFunc(c.Records, DNSRecord.compare)
		c.Records = slices.Compact(c.Records)
	}
	if c.MagicDNS == nil && c.OverrideLocal == nil && c.Nameservers == nil && c.Split == nil && c.Search == nil && len(c.Records) == 0 {
		return nil, nil
	}
	return &c, nil
}

func (r DNSRecord) compare(o DNSRecord) int {
	if c := strings.Compare(r.Name, o.Name); c != 0 {
		return c
	}
	return r.Addr.Compare(o.Addr)
}

func checkResolvers(where string, rs []Resolver) error {
	if len(rs) > maxResolvers {
		return Errorf(Invalid, "%s: %d resolvers are too many: give at most %d", where, len(rs), maxResolvers)
	}
	for _, r := range rs {
		if !r.valid() {
			return Errorf(Invalid, "%s: %q is not a resolver: give an address such as 1.1.1.1 or [2606:4700::1111]:53, or an https:// address", where, r.Addr)
		}
	}
	return nil
}

func (r Resolver) valid() bool {
	if a, err := netip.ParseAddr(r.Addr); err == nil {
		return a.Zone() == ""
	}
	if ap, err := netip.ParseAddrPort(r.Addr); err == nil {
		return ap.Port() != 0 && ap.Addr().Zone() == ""
	}
	u, err := url.Parse(r.Addr)
	return err == nil && u.Scheme == "https" && u.Host != "" && len(r.Addr) <= 1000
}

// CheckDomain returns the domain in lower case and without a dot at its end, or an Invalid error. An underscore may begin a
// label, as in _acme-challenge.
func CheckDomain(s string) (string, error) {
	name := strings.ToLower(strings.TrimSuffix(s, "."))
	bad := func() (string, error) {
		return "", Errorf(Invalid, "%q is not a domain: give one such as corp.example.com", s)
	}
	if name == "" || len(name) > 253 {
		return bad()
	}
	for label := range strings.SplitSeq(name, ".") {
		label = strings.TrimPrefix(label, "_")
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return bad()
		}
		for _, r := range label {
			if !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-') {
				return bad()
			}
		}
	}
	return name, nil
}
