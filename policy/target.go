package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"go4.org/netipx"
	"tailscale.com/tailcfg"
)

// kind says what a target names.
type kind uint8

const (
	kindStar     kind = iota // "*": the tailnet and, as a source, its approved subnet routes
	kindAll                  // autogroup:danger-all: every address there is
	kindInternet             // autogroup:internet: what exit nodes lead to
	kindSelf                 // autogroup:self: the devices of the source's user
	kindMember               // autogroup:member: devices that belong to a user
	kindTagged               // autogroup:tagged: devices that belong to tags
	kindShared               // autogroup:shared: users of other tailnets; nobody here
	kindRole                 // autogroup:ROLE
	kindGroup
	kindTag
	kindUser
	kindDomain  // user:*@DOMAIN
	kindAddr    // addresses: literal, by a name of hosts, or an ipset
	kindService // svc:NAME
)

// target is one name of a src, dst, owner or approver list, understood.
type target struct {
	kind kind
	name string         // tag, group, user, domain, role or service; kindAddr: as written
	nets []netip.Prefix // kindAddr
}

// key is the same for targets that mean the same.
func (t target) key() string {
	if t.kind == kindAddr {
		var b strings.Builder
		b.WriteString("addr")
		for _, n := range t.nets {
			b.WriteString(" " + n.String())
		}
		return b.String()
	}
	return strconv.Itoa(int(t.kind)) + " " + t.name
}

// owner reports whether the target names users, whose devices autogroup:self can stand for.
func (t target) owner() bool {
	switch t.kind {
	case kindMember, kindRole, kindGroup, kindUser, kindDomain:
		return true
	}
	return false
}

// autogroup reports whether the target was written as autogroup:….
func (t target) autogroup() bool {
	switch t.kind {
	case kindAll, kindInternet, kindSelf, kindMember, kindTagged, kindShared, kindRole:
		return true
	}
	return false
}

var autogroups = map[string]target{
	"autogroup:member":        {kind: kindMember},
	"autogroup:members":       {kind: kindMember}, // an older spelling
	"autogroup:tagged":        {kind: kindTagged},
	"autogroup:self":          {kind: kindSelf},
	"autogroup:internet":      {kind: kindInternet},
	"autogroup:danger-all":    {kind: kindAll},
	"autogroup:shared":        {kind: kindShared},
	"autogroup:owner":         {kind: kindRole, name: "owner"},
	"autogroup:admin":         {kind: kindRole, name: "admin"},
	"autogroup:it-admin":      {kind: kindRole, name: "it-admin"},
	"autogroup:network-admin": {kind: kindRole, name: "network-admin"},
	"autogroup:billing-admin": {kind: kindRole, name: "billing-admin"},
	"autogroup:auditor":       {kind: kindRole, name: "auditor"},
}

// target understands s. The error has no place in it.
func (p *Policy) target(s string) (target, error) {
	prefix, name, _ := strings.Cut(s, ":")
	switch prefix {
	case "*":
		if s == "*" {
			return target{kind: kindStar}, nil
		}
	case "autogroup":
		if t, ok := autogroups[s]; ok {
			return t, nil
		}
		return target{}, fmt.Errorf("autogroup not found: %q", clip(s))
	case "group":
		if p.groups[s] == nil && !synced(name) {
			return target{}, fmt.Errorf("group not found: %q", clip(s))
		}
		return target{kind: kindGroup, name: s}, nil
	case "tag":
		if _, ok := p.tagOwners[s]; !ok {
			return target{}, fmt.Errorf("tag not found: %q", clip(s))
		}
		return target{kind: kindTag, name: s}, nil
	case "ipset":
		set := p.ipsets[s]
		if set == nil {
			return target{}, fmt.Errorf("ipset not found: %q", clip(s))
		}
		return target{kind: kindAddr, name: s, nets: set.nets}, nil
	case "svc":
		if err := tailcfg.ServiceName(s).Validate(); err != nil {
			return target{}, fmt.Errorf("%w; a service is written svc:NAME", err)
		}
		return target{kind: kindService, name: s}, nil
	case "user":
		if domain, ok := strings.CutPrefix(name, "*@"); ok && domain != "" {
			return target{kind: kindDomain, name: domain}, nil
		}
		return target{}, fmt.Errorf("%q: users of a domain are written user:*@DOMAIN", clip(s))
	}
	if nets, ok := p.hosts[strings.TrimPrefix(s, "host:")]; ok {
		return target{kind: kindAddr, name: s, nets: nets}, nil
	}
	if strings.Contains(s, "@") && !strings.ContainsAny(s, " \t:/,\"*") {
		return target{kind: kindUser, name: s}, nil
	}
	n, err := parseNet(s)
	if err != nil {
		return target{}, err
	}
	return target{kind: kindAddr, name: s, nets: []netip.Prefix{n}}, nil
}

// synced reports whether a group that the policy does not define is one of an identity provider: NAME@DOMAIN, where DOMAIN is that
// of its members' mail addresses, or NAME@ for members whatever their address.
func synced(name string) bool {
	at := strings.LastIndexByte(name, '@')
	return at > 0 && !strings.ContainsAny(name[at:], ":/*")
}

// parseNet reads an address or a prefix.
func parseNet(s string) (netip.Prefix, error) {
	if strings.Contains(s, "/") {
		n, err := netip.ParsePrefix(s)
		if err != nil {
			return n, fmt.Errorf("%q: invalid prefix; it is written ADDRESS/LENGTH, such as 10.0.0.0/8", clip(s))
		}
		if m := n.Masked(); m != n {
			return n, fmt.Errorf("%q has bits set behind its length: the prefix is %s", s, m)
		}
		if n.Addr().Is4In6() {
			return n, fmt.Errorf("%q: write IPv4 addresses in IPv4's way", s)
		}
		return n, nil
	}
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" {
		return netip.Prefix{}, fmt.Errorf("%q: invalid address; want a user (with an @), group:, tag:, autogroup:, ipset:, "+
			"a name of hosts, an address or a prefix", clip(s))
	}
	a = a.Unmap()
	return netip.PrefixFrom(a, a.BitLen()), nil
}

// netString is n as filters write it: a single address without its length.
func netString(n netip.Prefix) string {
	if n.IsSingleIP() {
		return n.Addr().String()
	}
	return n.String()
}

// internet is what autogroup:internet stands for: all addresses that are not private, link-local or Tailscale's. It
// holds 0.0.0.0 and 2000::, which exit nodes' DNS asks for.
var internet = func() []netip.Prefix {
	var b netipx.IPSetBuilder
	b.AddPrefix(netip.MustParsePrefix("0.0.0.0/0"))
	b.AddPrefix(netip.MustParsePrefix("2000::/3"))
	for _, s := range []string{
		"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "100.64.0.0/10", // private, link-local, CGNAT
		"fc00::/7", "fe80::/10", "fd7a:115c:a1e0::/48",
	} {
		b.RemovePrefix(netip.MustParsePrefix(s))
	}
	set, err := b.IPSet()
	if err != nil {
		panic(err)
	}
	return set.Prefixes()
}()

// internetRanges is internet as filters write it.
var internetRanges = func() (out []string) {
	var b netipx.IPSetBuilder
	for _, n := range internet {
		b.AddPrefix(n)
	}
	set, err := b.IPSet()
	if err != nil {
		panic(err)
	}
	for _, r := range set.Ranges() {
		out = append(out, r.String())
	}
	return out
}()

// tailnetRanges is what the source "*" stands for beside subnet routes: all addresses that nodes can have. The gap is
// Chrome OS's.
var tailnetRanges = []string{"100.64.0.0-100.115.91.255", "100.115.94.0-100.127.255.255", "fd7a:115c:a1e0::/48"}

// ports are what a rule opens: port ranges, and the protocols they hold for (nil: TCP, UDP and ICMP).
type ports struct {
	protos []int
	ranges []tailcfg.PortRange
}

// parsePorts reads "*", "22", "80-443" and lists of these.
func parsePorts(s string) ([]tailcfg.PortRange, error) {
	if s == "*" {
		return []tailcfg.PortRange{tailcfg.PortRangeAny}, nil
	}
	var out []tailcfg.PortRange
	for part := range strings.SplitSeq(s, ",") {
		r, err := parsePortRange(strings.TrimSpace(part))
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, nil
}

// parsePortRange reads "*", "22" and "80-443". What is wrong is said in the words of tailcfg.ParseHostPortRange, as the hosted
// service says it, and then what would be right.
func parsePortRange(s string) (tailcfg.PortRange, error) {
	var out tailcfg.PortRange
	lo, hi, isRange := strings.Cut(s, "-")
	first, err := strconv.ParseUint(lo, 10, 16)
	switch {
	case s == "*":
		return tailcfg.PortRangeAny, nil
	case s == "":
		return out, fmt.Errorf(`invalid port list: ""; ports are numbers from 1 to 65535, ranges such as 80-443, or '*'`)
	case strings.Count(s, "-") > 1:
		return out, fmt.Errorf("port range %q: too many dashes(-); a range is written 80-443", clip(s))
	case err != nil:
		return out, fmt.Errorf("port range %q: invalid first integer; ports are numbers from 1 to 65535, ranges such as 80-443, or '*'", clip(s))
	}
	last := first
	if isRange {
		if last, err = strconv.ParseUint(hi, 10, 16); err != nil {
			return out, fmt.Errorf("port range %q: invalid last integer; ports are numbers from 1 to 65535", clip(s))
		}
	}
	switch {
	case first == 0:
		return out, fmt.Errorf("port range %q: first port must be >0, or use '*' for wildcard", clip(s))
	case last < first: // the words are meant the other way round
		return out, fmt.Errorf("port range %q: first port must be >= last port (and the last one not below the first); write %d-%d", clip(s), last, first)
	}
	return tailcfg.PortRange{First: uint16(first), Last: uint16(last)}, nil
}

// protocols are the names of protocols, with the numbers that they stand for.
var protocols = map[string][]int{
	"icmp": {1, 58}, "icmpv4": {1}, "igmp": {2}, "ipv4": {4}, "ip-in-ip": {4}, "tcp": {6}, "egp": {8}, "igp": {9}, "udp": {17},
	"dccp": {33}, "gre": {47}, "esp": {50}, "ah": {51}, "ipv6-icmp": {58}, "icmpv6": {58}, "tsmp": {99}, "sctp": {132}, "fc": {133},
}

// hasPorts are the protocols whose packets have ports.
var hasPorts = []int{6, 17, 132}

// parseProto reads the name or the number of a protocol. The empty name is nil: TCP, UDP and ICMP.
func parseProto(s string) ([]int, error) {
	if s == "" || s == "*" {
		return nil, nil
	}
	if n, ok := protocols[strings.ToLower(s)]; ok {
		return n, nil
	}
	n, err := strconv.ParseUint(s, 10, 8)
	switch {
	case err == nil && n == 0:
		return nil, fmt.Errorf("protocol 0 says nothing: leave it out for TCP, UDP and ICMP, or give a number from 1 to 255")
	case err != nil: // the words of ipproto.Proto.UnmarshalText
		names := make([]string, 0, len(protocols))
		for k := range protocols {
			names = append(names, k)
		}
		slices.Sort(names)
		return nil, fmt.Errorf("proto name %q not known; use protocol number 0-255 or a name: %s", clip(s), strings.Join(names, ", "))
	}
	return []int{int(n)}, nil
}

// checkPorts says why protos cannot be limited to ranges.
func checkPorts(protos []int, ranges []tailcfg.PortRange) error {
	for _, n := range protos {
		if slices.Contains(hasPorts, n) {
			continue
		}
		for _, r := range ranges {
			if r != tailcfg.PortRangeAny {
				return fmt.Errorf("protocol %d does not have ports; only '*' is allowed", n)
			}
		}
	}
	return nil
}

// parseIP reads one element of a grant's ip, as tailcfg.ParseProtoPortRanges does: "*", "443", "tcp:443-445", "udp:*",
// "icmp:*". Unlike in the dst of acls, lists of ports are several elements.
func parseIP(s string) (ports, error) {
	if s == "" {
		return ports{}, fmt.Errorf(`empty string; want "*", ports, or PROTOCOL:PORTS such as "tcp:443"`)
	}
	proto, rest := "*", s
	if i := strings.LastIndexByte(s, ':'); i >= 0 {
		proto, rest = s[:i], s[i+1:]
	}
	switch {
	case proto == "":
		return ports{}, fmt.Errorf(`empty protocol in %q; want PROTOCOL:PORTS such as "tcp:443"`, clip(s))
	case strings.Contains(proto, ","):
		return ports{}, fmt.Errorf(`host cannot contain a comma (","): %q; give each protocol an element of its own`, clip(s))
	}
	protos, err := parseProto(proto)
	if err != nil {
		return ports{}, err
	}
	r, err := parsePortRange(rest)
	if err != nil {
		if strings.Contains(rest, ",") {
			err = fmt.Errorf("%w; give each port an element of its own", err)
		}
		return ports{}, err
	}
	one := []tailcfg.PortRange{r}
	return ports{protos, one}, checkPorts(protos, one)
}

// splitPort cuts HOST:PORTS at the last colon. An IPv6 address may stand in brackets.
func splitPort(s string) (host, port string, err error) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return "", "", fmt.Errorf(`hostport must contain a colon (":"); write %s:* for all ports`, clip(s))
	}
	host, port = s[:i], s[i+1:]
	if strings.HasPrefix(host, "[") && strings.HasSuffix(host, "]") {
		host = host[1 : len(host)-1]
	}
	return strings.TrimSpace(host), strings.TrimSpace(port), nil
}
