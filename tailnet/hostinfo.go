package tailnet

import (
	"net/netip"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"tailscale.com/net/tsaddr"
	"tailscale.com/tailcfg"
)

// Limits on what a client says of itself; beyond them it is cut, not refused, so that an odd client still joins.
const (
	maxText      = 255  // bytes of a text such as the host name
	maxRoutes    = 4096 // advertised routes (app connectors learn many)
	maxEndpoints = 64
	maxServices  = 256
	maxTags      = 64   // requested
	maxHostKeys  = 16   // of the machine's SSH server
	maxHostKey   = 2048 // bytes of one
)

// CleanHostinfo is h fit to be stored and shown: nil becomes an empty one, texts lose control characters and are cut to
// 255 bytes, routes are masked, sorted and unique, and routes that are inside the tailnet's own ranges are dropped,
// because they could take over the addresses of others. h is not changed.
func CleanHostinfo(h *tailcfg.Hostinfo) *tailcfg.Hostinfo {
	if h == nil {
		return &tailcfg.Hostinfo{}
	}
	h = h.Clone()
	for _, s := range []*string{&h.Hostname, &h.OS, &h.OSVersion, &h.IPNVersion, &h.DeviceModel, &h.Distro, &h.DistroVersion,
		&h.ServicesHash, &h.BackendLogID, &h.FrontendLogID, &h.App, &h.Package, &h.GoArch, &h.GoVersion, &h.Machine} {
		*s = CleanText(*s)
	}
	h.RoutableIPs = CleanRoutes(h.RoutableIPs)
	h.Services = h.Services[:min(len(h.Services), maxServices)]
	for i := range h.Services {
		h.Services[i].Description = CleanText(h.Services[i].Description)
	}
	h.RequestTags = h.RequestTags[:min(len(h.RequestTags), maxTags)]
	h.SSH_HostKeys = slices.DeleteFunc(h.SSH_HostKeys, func(k string) bool { return len(k) > maxHostKey })
	h.SSH_HostKeys = h.SSH_HostKeys[:min(len(h.SSH_HostKeys), maxHostKeys)]
	if l := h.Location; l != nil {
		for _, s := range []*string{&l.Country, &l.CountryCode, &l.City, &l.CityCode} {
			*s = CleanText(*s)
		}
	}
	return h
}

// CleanText drops control characters and invalid UTF-8 and cuts s to 255 bytes.
func CleanText(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == utf8.RuneError {
			return -1
		}
		return r
	}, s)
	for len(s) > maxText {
		_, size := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-size]
	}
	return s
}

// CleanRoutes are the usable ones among the routes that a client advertises, masked, sorted and unique. IPv4 written as
// IPv6 (::ffff:0:0/96) is none: clients route and filter it as neither.
func CleanRoutes(ps []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range ps {
		if !p.IsValid() || p.Addr().Is4In6() || insideTailnet(p) {
			continue
		}
		out = append(out, p.Masked())
	}
	out = SortPrefixes(out)
	if len(out) > maxRoutes {
		out = out[:maxRoutes]
	}
	return out
}

// insideTailnet reports whether p lies in the ranges that nodes have their addresses from. 4via6 routes lie in the IPv6
// range and are routes all the same (tsaddr.MapVia).
func insideTailnet(p netip.Prefix) bool {
	if via := tsaddr.TailscaleViaRange(); via.Contains(p.Addr()) && p.Bits() >= via.Bits() {
		return false
	}
	for _, r := range []netip.Prefix{tsaddr.CGNATRange(), tsaddr.TailscaleULARange()} {
		if r.Contains(p.Addr()) && p.Bits() >= r.Bits() {
			return true
		}
	}
	return false
}

// CleanEndpoints drops what no peer could use: zoned and link-local IPv6 addresses, unspecified ones and port 0. types is
// parallel to eps and stays so; a missing type is unknown.
func CleanEndpoints(eps []netip.AddrPort, types []tailcfg.EndpointType) ([]netip.AddrPort, []tailcfg.EndpointType) {
	var outE []netip.AddrPort
	var outT []tailcfg.EndpointType
	for i, ep := range eps {
		a := ep.Addr()
		if !ep.IsValid() || ep.Port() == 0 || a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() ||
			a.Is6() && a.IsLinkLocalUnicast() || len(outE) == maxEndpoints || slices.Contains(outE, ep) {
			continue
		}
		t := tailcfg.EndpointUnknownType
		if i < len(types) {
			t = types[i]
		}
		outE, outT = append(outE, ep), append(outT, t)
	}
	return outE, outT
}

// CheckTag returns nil if s is a tag as policies write it, "tag:NAME", or else an Error that says what would be right.
func CheckTag(s string) error {
	if err := tailcfg.CheckTag(s); err != nil || s != strings.ToLower(s) {
		return Errorf(Invalid, "%q is not a tag: write tag:NAME with a-z, 0-9 and \"-\", beginning with a letter", CleanText(s))
	}
	return nil
}
