package tailnet

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"
)

func TestNormalizeDNS(t *testing.T) {
	yes := true
	many := make([]Resolver, maxResolvers+1)
	for i := range many {
		many[i].Addr = "1.1.1.1"
	}
	addr := netip.MustParseAddr
	for _, c := range []struct {
		name     string
		in, want *DNS
		err      string
	}{
		{"nothing", nil, nil, ""},
		{"nothing set", &DNS{}, nil, ""},
		{"the last record is gone", &DNS{Records: []DNSRecord{}}, nil, ""},
		{"none is a choice", &DNS{Nameservers: []Resolver{}, Search: []string{}}, &DNS{Nameservers: []Resolver{}, Search: []string{}}, ""},
		{"as given", &DNS{MagicDNS: &yes}, &DNS{MagicDNS: &yes}, ""},
		{"domains", &DNS{Search: []string{"Corp.Example.com.", "corp.example.com"}, Split: map[string][]Resolver{"LAN.": {{Addr: "[::1]:53"}}}},
			&DNS{Search: []string{"corp.example.com"}, Split: map[string][]Resolver{"lan": {{Addr: "[::1]:53"}}}}, ""},
		{"records", &DNS{Records: []DNSRecord{{"b.x", addr("10.0.0.2")}, {"A.x", addr("::ffff:10.0.0.1")}, {"a.x.", addr("10.0.0.1")}}},
			&DNS{Records: []DNSRecord{{"a.x", addr("10.0.0.1")}, {"b.x", addr("10.0.0.2")}}}, ""},
		{"resolver", &DNS{Nameservers: []Resolver{{Addr: "one.one.one.one"}}}, nil, `nameservers: "one.one.one.one" is not a resolver`},
		{"port 0", &DNS{Nameservers: []Resolver{{Addr: "1.1.1.1:0"}}}, nil, "not a resolver"},
		{"http", &DNS{Nameservers: []Resolver{{Addr: "http://dns.example"}}}, nil, "not a resolver"},
		{"too many", &DNS{Nameservers: many}, nil, "too many"},
		{"split without", &DNS{Split: map[string][]Resolver{"a.b": nil}}, nil, "a.b has no resolvers"},
		{"split domain", &DNS{Split: map[string][]Resolver{"a..b": {{Addr: "1.1.1.1"}}}}, nil, `"a..b" is not a domain`},
		{"search", &DNS{Search: []string{"b c"}}, nil, "not a domain"},
		{"record name", &DNS{Records: []DNSRecord{{"", addr("1.1.1.1")}}}, nil, "not a domain"},
		{"record without address", &DNS{Records: []DNSRecord{{"a.b", netip.Addr{}}}}, nil, "no address"},
		{"zone", &DNS{Records: []DNSRecord{{"a.b", addr("fe80::1%eth0")}}}, nil, "no address"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := c.in.Normalize()
			if c.err != "" {
				if err == nil || CodeOf(err) != Invalid || !strings.Contains(err.Error(), c.err) {
					t.Errorf("error %v, want %q", err, c.err)
				}
				return
			}
			if err != nil || !reflect.DeepEqual(got, c.want) {
				t.Errorf("%+v, %v, want %+v", got, err, c.want)
			}
		})
	}
}
