package tailnet

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"tailscale.com/tailcfg"
)

func prefixes(ss ...string) (out []netip.Prefix) {
	for _, s := range ss {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func TestCleanText(t *testing.T) {
	for in, want := range map[string]string{
		"":                      "",
		"Joe's Mac mini":        "Joe's Mac mini",
		"我的电脑":                  "我的电脑",
		"a\x00b\nc\x7fd\u0085e": "abcde",
		"\x1b[31mred":           "[31mred",
		"a\xffb\xc3":            "ab",
		"a\ufffdb":              "ab",
		"tab\there":             "tabhere",
	} {
		if got := CleanText(in); got != want {
			t.Errorf("CleanText(%q) = %q, want %q", in, got, want)
		}
	}
	for _, r := range []string{"a", "é", "电", "😀"} {
		got := CleanText(strings.Repeat(r, 300))
		if len(got) > maxText || len(got) <= maxText-len(r) || !utf8.ValidString(got) {
			t.Errorf("300 times %q are cut to %d bytes", r, len(got))
		}
	}
}

func FuzzCleanText(f *testing.F) {
	f.Add("Joe's Mac mini")
	f.Add("a\xff\x00" + strings.Repeat("电", 100))
	f.Fuzz(func(t *testing.T, s string) {
		got := CleanText(s)
		if len(got) > maxText || !utf8.ValidString(got) || strings.ContainsFunc(got, unicode.IsControl) {
			t.Errorf("%q became %q", s, got)
		}
		if again := CleanText(got); again != got {
			t.Errorf("%q became %q and then %q", s, got, again)
		}
		if utf8.ValidString(s) && len(s) <= maxText && !strings.ContainsFunc(s, func(r rune) bool { return unicode.IsControl(r) || r == utf8.RuneError }) && got != s {
			t.Errorf("%q was clean and became %q", s, got)
		}
	})
}

func TestCleanRoutes(t *testing.T) {
	in := append(prefixes(
		"192.168.199.7/24", "192.168.199.0/24", "10.0.0.0/8", "::/0", "0.0.0.0/0", "fd00::1/64",
		"100.64.0.0/10", "100.64.0.7/32", "100.100.100.100/32", "fd7a:115c:a1e0::/48", "fd7a:115c:a1e0:ab12::/64", "fd7a:115c:a1e0::53/128", // the tailnet's own
		"fd7a:115c:a1e0:b1a:0:7:c0a8:100/120",                // 4via6 is a route
		"fd7a:115c:a1e0:b1a::/64", "fd7a:115c:a1e0:b1b::/64", // and so is all of it, but not its neighbour
		"100.0.0.0/8",          // wider than the tailnet: the addresses of nodes are more exact
		"::ffff:10.0.0.0/104",  // IPv4 in disguise
		"100.128.0.0/10",       // just behind
		"fd7a:115c:a1e1::/48"), // just behind
		netip.Prefix{}, netip.PrefixFrom(netip.MustParseAddr("10.0.0.1"), 77))
	want := prefixes("0.0.0.0/0", "10.0.0.0/8", "100.0.0.0/8", "100.128.0.0/10", "192.168.199.0/24", "::/0", "fd00::/64",
		"fd7a:115c:a1e0:b1a::/64", "fd7a:115c:a1e0:b1a:0:7:c0a8:100/120", "fd7a:115c:a1e1::/48")
	before := slices.Clone(in)
	if got := CleanRoutes(in); !slices.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	if !slices.Equal(in, before) {
		t.Error("the argument was changed")
	}
	var many []netip.Prefix
	for i := range 2 * maxRoutes {
		many = append(many, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24))
	}
	if got := CleanRoutes(many); len(got) != maxRoutes {
		t.Errorf("%d routes are left of %d", len(got), len(many))
	}
}

func TestCleanHostinfo(t *testing.T) {
	if h := CleanHostinfo(nil); h == nil || !h.Equal(&tailcfg.Hostinfo{}) {
		t.Errorf("of none: %+v", h)
	}
	in := &tailcfg.Hostinfo{
		Hostname: "nas\x00", OS: "lin\nux", DeviceModel: strings.Repeat("x", 1000), RoutableIPs: prefixes("10.0.0.1/8", "100.64.0.1/32"),
		NetInfo: &tailcfg.NetInfo{PreferredDERP: 7}, Services: make([]tailcfg.Service, 10000), RequestTags: []string{"tag:x"},
	}
	before := in.Clone()
	h := CleanHostinfo(in)
	if h.Hostname != "nas" || h.OS != "linux" || len(h.DeviceModel) != maxText || len(h.Services) != maxServices ||
		!slices.Equal(h.RoutableIPs, prefixes("10.0.0.0/8")) || h.NetInfo.PreferredDERP != 7 || len(h.RequestTags) != 1 {
		t.Errorf("got %+v", h)
	}
	if !in.Equal(before) {
		t.Error("the argument was changed")
	}
	if again := CleanHostinfo(h); !again.Equal(h) {
		t.Error("what is clean is cleaned again")
	}
}

func TestCleanEndpoints(t *testing.T) {
	const stun, local = tailcfg.EndpointSTUN, tailcfg.EndpointLocal
	for _, tc := range []struct {
		ep   string
		good bool
	}{
		{"192.0.2.1:41641", true},
		{"10.0.0.1:1", true},
		{"169.254.1.1:41641", true},
		{"[2001:db8::1]:41641", true},
		{"[fd00::1]:41641", true},
		{"[fe80::1]:41641", false},
		{"[fe80::1%eth0]:41641", false},
		{"[2001:db8::1%eth0]:41641", false},
		{"192.0.2.1:0", false},
		{"0.0.0.0:41641", false},
		{"[::]:41641", false},
		{"224.0.0.1:41641", false},
		{"[ff02::1]:41641", false},
	} {
		eps, types := CleanEndpoints([]netip.AddrPort{netip.MustParseAddrPort(tc.ep)}, []tailcfg.EndpointType{stun})
		if (len(eps) == 1) != tc.good || len(types) != len(eps) {
			t.Errorf("%s: %v %v", tc.ep, eps, types)
		}
	}
	ep := netip.MustParseAddrPort
	eps, types := CleanEndpoints(
		[]netip.AddrPort{ep("[fe80::1]:1"), ep("192.0.2.1:1"), {}, ep("192.0.2.1:1"), ep("192.0.2.2:1"), ep("192.0.2.3:1")},
		[]tailcfg.EndpointType{local, stun, local, local, local})
	if !slices.Equal(eps, []netip.AddrPort{ep("192.0.2.1:1"), ep("192.0.2.2:1"), ep("192.0.2.3:1")}) ||
		!slices.Equal(types, []tailcfg.EndpointType{stun, local, tailcfg.EndpointUnknownType}) {
		t.Errorf("types have moved: %v %v", eps, types)
	}
	var many []netip.AddrPort
	for i := range 1000 {
		many = append(many, netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), uint16(i+1)))
	}
	if eps, types := CleanEndpoints(many, nil); len(eps) != maxEndpoints || len(types) != maxEndpoints || eps[0] != many[0] {
		t.Errorf("%d endpoints and %d types are left", len(eps), len(types))
	}
	if eps, types := CleanEndpoints(nil, []tailcfg.EndpointType{stun}); eps != nil || types != nil {
		t.Errorf("of none: %v %v", eps, types)
	}
}

func TestParseRoute(t *testing.T) {
	for _, s := range []string{"192.168.199.0/24", "0.0.0.0/0", "::/0", "10.1.2.3/32", "fd00::/64"} {
		if p, err := ParseRoute(s); err != nil || p.String() != s {
			t.Errorf("%s: %v, %v", s, p, err)
		}
	}
	for s, says := range map[string]string{
		"":                        `"" is not a prefix such as 192.168.199.0/24`,
		"lan":                     `"lan" is not a prefix such as 192.168.199.0/24`,
		"192.168.199.1":           `"192.168.199.1" is an address, not a prefix: write 192.168.199.1/32`,
		"fd00::1":                 `"fd00::1" is an address, not a prefix: write fd00::1/128`,
		"192.168.199.1/24":        `192.168.199.1/24 has bits set behind its length: the prefix is 192.168.199.0/24`,
		"192.168.199.0/33":        `"192.168.199.0/33" is not a prefix such as 192.168.199.0/24`,
		"192.168.199.0/24 ":       `"192.168.199.0/24 " is not a prefix such as 192.168.199.0/24`,
		"fe80::%eth0/64":          `"fe80::%eth0/64" is not a prefix such as 192.168.199.0/24`,
		"::ffff:192.168.1.0/120":  `"::ffff:192.168.1.0/120" is IPv4 written as IPv6: write it as IPv4, such as 192.168.199.0/24`,
		"192.168.199.0/24\x1b[2J": `"192.168.199.0/24\x1b[2J" is not a prefix such as 192.168.199.0/24`,
	} {
		if p, err := ParseRoute(s); CodeOf(err) != Invalid || err.Error() != says || p.IsValid() {
			t.Errorf("%q: %v, %v", s, p, err)
		}
	}
}

func FuzzParseRoute(f *testing.F) {
	for _, s := range []string{"192.168.199.0/24", "::/0", "10.0.0.1", "fe80::1%eth0/64", "::ffff:1.2.3.4/120", "1/2/3"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParseRoute(s)
		if err != nil {
			if CodeOf(err) != Invalid || p.IsValid() || strings.ContainsFunc(err.Error(), unicode.IsControl) {
				t.Errorf("%q: %v, %q", s, p, err)
			}
			return
		}
		again, err := ParseRoute(p.String())
		if err != nil || again != p || p.Masked() != p || p.Addr().Zone() != "" || p.Addr().Is4In6() {
			t.Errorf("%q: %v, and then %v, %v", s, p, again, err)
		}
	})
}

func TestPrefixes(t *testing.T) {
	ps := prefixes("::/0", "10.0.0.0/16", "192.168.0.0/24", "10.0.0.0/8", "10.0.0.0/16")
	if got := FormatPrefixes(SortPrefixes(ps)); got != "10.0.0.0/8, 10.0.0.0/16, 192.168.0.0/24, ::/0" {
		t.Errorf("sorted: %s", got)
	}
	if FormatPrefixes(nil) != "" || SortPrefixes(nil) != nil {
		t.Error("none is something")
	}
	for s, want := range map[string]bool{"0.0.0.0/0": true, "::/0": true, "0.0.0.0/1": false, "10.0.0.0/8": false} {
		if IsExitRoute(netip.MustParsePrefix(s)) != want {
			t.Errorf("%s is an exit route: %v", s, !want)
		}
	}
}

func TestCheckTag(t *testing.T) {
	for s, good := range map[string]bool{
		"tag:web": true, "tag:web-1": true, "tag:Web": false, "web": false, "tag:": false, "tag:1x": false, "tag:a b": false, "": false, "tag:é": false, "TAG:web": false,
	} {
		err := CheckTag(s)
		if (err == nil) != good || err != nil && (CodeOf(err) != Invalid || !strings.Contains(err.Error(), "tag:NAME")) {
			t.Errorf("%q: %v", s, err)
		}
	}
	if err := CheckTag("tag:\x1b[2J"); strings.ContainsFunc(err.Error(), unicode.IsControl) {
		t.Errorf("the error has control characters: %q", err)
	}
}

func TestNode(t *testing.T) {
	now := time.Date(2026, 11, 20, 15, 0, 0, 0, time.UTC)
	n := &Node{
		ID: 2, Name: "homeds", User: 7, IPv4: netip.MustParseAddr("100.64.0.2"), IPv6: netip.MustParseAddr("fd7a:115c:a1e0::2"),
		Hostinfo:       &tailcfg.Hostinfo{RoutableIPs: prefixes("192.168.199.0/24", "0.0.0.0/0")},
		ApprovedRoutes: prefixes("0.0.0.0/0", "10.0.0.0/8", "192.168.199.0/24"),
	}
	if got := FormatPrefixes(n.ActiveRoutes()); got != "0.0.0.0/0, 192.168.199.0/24" {
		t.Errorf("active routes: %s", got)
	}
	if n.ShortName() != "homeds (2)" || n.Tagged() || n.Owner() != 7 || len(n.Addrs()) != 2 || !n.Addrs()[0].Is4() {
		t.Errorf("%s, %v, %v, %v", n.ShortName(), n.Tagged(), n.Owner(), n.Addrs())
	}
	if n.Expired(now) {
		t.Error("a node without an end has expired")
	}
	c := n.Clone()
	c.Tags, c.User, c.Expiry, c.Hostinfo, c.IPv4 = []string{"tag:web"}, 0, now, nil, netip.Addr{}
	if !c.Tagged() || c.Owner() != TaggedDevices || !c.Expired(now) || c.Expired(now.Add(-time.Nanosecond)) || c.AdvertisedRoutes() != nil ||
		c.ActiveRoutes() != nil || len(c.Addrs()) != 1 {
		t.Errorf("%+v", c)
	}
	if n.Tagged() || n.Hostinfo == nil {
		t.Error("the original was changed")
	}
	if n.ID.Tailcfg() != 2 || n.ID.String() != "2" || n.User.Tailcfg() != 7 || n.User.String() != "7" {
		t.Error("ids")
	}
}

func TestUser(t *testing.T) {
	for _, tc := range []struct {
		u            User
		login, title string
	}{
		{User{Name: "junyao"}, "junyao", "junyao"},
		{User{Name: "junyao", Email: "j@example.net", DisplayName: "Jun Yao"}, "j@example.net", "Jun Yao"},
	} {
		if tc.u.LoginName() != tc.login || tc.u.Title() != tc.title {
			t.Errorf("%+v: %s, %s", tc.u, tc.u.LoginName(), tc.u.Title())
		}
	}
}

func TestPreAuthKeyUsable(t *testing.T) {
	now := time.Date(2026, 11, 20, 15, 0, 0, 0, time.UTC)
	for _, tc := range []struct {
		k    PreAuthKey
		says string
	}{
		{PreAuthKey{}, ""},
		{PreAuthKey{Reusable: true, Used: true}, ""},
		{PreAuthKey{Expires: now.Add(time.Second)}, ""},
		{PreAuthKey{Used: true}, "used once"},
		{PreAuthKey{Expires: now}, "2026-11-20T15:00:00Z"},
		{PreAuthKey{Reusable: true, Revoked: true}, "revoked"},
	} {
		err := tc.k.Usable(now)
		if (err == nil) != (tc.says == "") || err != nil && (CodeOf(err) != Denied || !strings.Contains(err.Error(), tc.says)) {
			t.Errorf("%+v: %v", tc.k, err)
		}
	}
}

func TestErrors(t *testing.T) {
	cause := fs.ErrNotExist
	err := fmt.Errorf("opening: %w", Errorf(NotFound, "there is no node %d: %w", 7, cause))
	var e *Error
	if !errors.As(err, &e) || e.Error() != "there is no node 7: file does not exist" || !errors.Is(err, cause) || CodeOf(err) != NotFound {
		t.Errorf("%v", err)
	}
	if CodeOf(nil) != "" || CodeOf(cause) != Internal || CodeOf(Errorf(Denied, "no")) != Denied {
		t.Error("codes")
	}
	hidden := &Error{Code: Unavailable, Message: "the change could not be stored", Cause: cause}
	if strings.Contains(hidden.Error(), "exist") || !errors.Is(hidden, cause) {
		t.Errorf("%v shows its cause, or hides it from us", hidden)
	}
}

// Every kind of change makes Changes worth a commit; a reason and a time alone do not.
func TestChangesEmpty(t *testing.T) {
	if c := (&Changes{Why: []string{"x"}, When: time.Now()}); !c.Empty() {
		t.Error("a reason without a change is not empty")
	}
	typ := reflect.TypeFor[Changes]()
	for i := range typ.NumField() {
		f := typ.Field(i)
		if f.Name == "Why" || f.Name == "When" {
			continue
		}
		c := &Changes{}
		switch v := reflect.ValueOf(c).Elem().Field(i); f.Type.Kind() {
		case reflect.Slice:
			v.Set(reflect.MakeSlice(f.Type, 1, 1))
		case reflect.Pointer:
			v.Set(reflect.New(f.Type.Elem()))
		default:
			t.Errorf("field %s: this test does not know how to set a %s", f.Name, f.Type)
		}
		if c.Empty() {
			t.Errorf("with %s set there is nothing to commit", f.Name)
		}
	}
}
