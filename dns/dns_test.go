package dns

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"
	"tailscale.com/util/dnsname"

	"github.com/skein-vpn/skein/tailnet"
)

func TestLabel(t *testing.T) {
	for in, want := range map[string]string{
		"homeDS":                       "homeds",
		"Joe's Mac mini":               "joes-mac-mini",
		"Joe’s Mac mini":               "joes-mac-mini", // as macOS writes it
		"我的电脑":                         "node",
		"我的 pc":                        "pc",
		"Müller":                       "mller",
		"":                             "node",
		".":                            "node",
		"---":                          "node",
		"DESKTOP-ABC123":               "desktop-abc123",
		"macbook.local":                "macbook",
		"macbook.lan":                  "macbook",
		"macbook.localdomain":          "macbook",
		"VM-0-2-centos":                "vm-0-2-centos",
		"ip-10-0-0-1.ec2.internal":     "ip-10-0-0-1-ec2-internal",
		"host.example.com":             "host-example-com",
		"a_b c@d":                      "a-b-c-d",
		"-leading":                     "leading",
		"trailing-":                    "trailing",
		"--a--b--":                     "a--b",
		"a\x00b\nc":                    "abc",
		"a\xffb":                       "ab",
		"node (2)":                     "node-2",
		strings.Repeat("a", 63):        strings.Repeat("a", 63),
		strings.Repeat("a", 64):        strings.Repeat("a", 63),
		strings.Repeat("a", 62) + "-b": strings.Repeat("a", 62), // not cut behind the dash
		strings.Repeat("电", 100) + "a": "node",                  // nothing usable where a label could begin
	} {
		if got := Label(in); got != want {
			t.Errorf("Label(%q) = %q, want %q", in, got, want)
		}
	}
}

func FuzzLabel(f *testing.F) {
	for _, s := range []string{"Joe's Mac mini", "我的电脑", "a.local", "-a-", strings.Repeat("a.", 60)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		l := Label(s)
		if err := CheckLabel(l); err != nil {
			t.Errorf("Label(%q) = %q: %v", s, l, err)
		}
		if again := Label(l); again != l {
			t.Errorf("Label(%q) = %q, and of that %q", s, l, again)
		}
	})
}

func TestUnique(t *testing.T) {
	long := strings.Repeat("a", 63)
	for _, tc := range []struct {
		label string
		taken []string
		want  string
	}{
		{"homeds", nil, "homeds"},
		{"homeds", []string{"homeds"}, "homeds-1"},
		{"homeds", []string{"homeds", "homeds-1", "homeds-3"}, "homeds-2"},
		{"homeds", []string{"homeds-1"}, "homeds"},
		{"nas-1", []string{"nas-1"}, "nas-1-1"},
		{long, []string{long}, long[:61] + "-1"},
		{long[:62] + "b", []string{long[:62] + "b", long[:61] + "-1"}, long[:61] + "-2"},
		{long[:60] + "-bc", []string{long[:60] + "-bc"}, long[:60] + "-1"}, // no two dashes where it was cut
	} {
		taken := map[string]bool{}
		for _, s := range tc.taken {
			taken[s] = true
		}
		if got := Unique(tc.label, func(s string) bool { return taken[s] }); got != tc.want {
			t.Errorf("%s, with %v taken: %s, want %s", tc.label, tc.taken, got, tc.want)
		}
	}
}

// However many nodes have one name, each gets another valid label.
func TestUniqueManyTimes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		host := rapid.SampledFrom([]string{"localhost", "", strings.Repeat("x", 80), strings.Repeat("x", 59) + "-yz", strings.Repeat("a-", 40)}).Draw(t, "host")
		taken := map[string]bool{}
		for range rapid.IntRange(1, 300).Draw(t, "n") {
			l := Unique(Label(host), func(s string) bool { return taken[s] })
			if err := CheckLabel(l); err != nil || taken[l] {
				t.Fatalf("%q: taken %v, %v", l, taken[l], err)
			}
			taken[l] = true
		}
	})
}

func TestCheckLabel(t *testing.T) {
	for _, s := range []string{"a", "homeds", "homeds-1", "1", "a--b", strings.Repeat("a", 63)} {
		if err := CheckLabel(s); err != nil {
			t.Errorf("%q: %v", s, err)
		}
	}
	for s, hint := range map[string]string{
		"": "node", "HomeDS": "homeds", "a_b": "a-b", "a.b": "a-b", "-a": "a", "a-": "a", "a b": "a-b", "电": "node", "a\x1b[2J": "a2j",
		strings.Repeat("a", 64): strings.Repeat("a", 63), strings.Repeat("\x00", 5000): "node",
	} {
		err := CheckLabel(s)
		if tailnet.CodeOf(err) != tailnet.Invalid || !strings.HasSuffix(err.Error(), "such as "+hint) || len(err.Error()) > 600 || strings.Contains(err.Error(), "\x1b") {
			t.Errorf("%.80q: %v", s, err)
		}
		if CheckLabel(hint) != nil {
			t.Errorf("the hint %q is no label either", hint)
		}
	}
}

func TestConfig(t *testing.T) {
	for _, tc := range []struct {
		name string
		s    Settings
		want string
	}{
		{"nothing", Settings{Base: "skein.internal"}, `{}`},
		{"MagicDNS", Settings{MagicDNS: true, Base: "skein.internal"}, `{"Domains":["skein.internal"],"Proxied":true}`},
		{"search domains", Settings{MagicDNS: true, Base: "skein.internal", Search: []string{"a.example", "skein.internal", "b.example", "a.example"}},
			`{"Domains":["skein.internal","a.example","b.example"],"Proxied":true}`},
		{"name servers beside the local ones", Settings{Nameservers: Resolvers("192.0.2.53")}, `{"FallbackResolvers":[{"Addr":"192.0.2.53"}]}`},
		{"instead of them", Settings{Nameservers: Resolvers("192.0.2.53", "https://dns.example/dns-query"), OverrideLocal: true},
			`{"Resolvers":[{"Addr":"192.0.2.53"},{"Addr":"https://dns.example/dns-query"}]}`},
		{"split", Settings{Split: map[string][]tailnet.Resolver{"corp.example": Resolvers("10.0.0.53"), "local.example": nil}},
			`{"Routes":{"corp.example":[{"Addr":"10.0.0.53"}],"local.example":[]}}`}, // [] is not null: clients answer it themselves
		{"records", Settings{Records: []tailnet.DNSRecord{{Name: "a.example", Addr: netip.MustParseAddr("10.0.0.1")}, {Name: "a.example", Addr: netip.MustParseAddr("fd00::1")}}},
			`{"ExtraRecords":[{"Name":"a.example","Type":"A","Value":"10.0.0.1"},{"Name":"a.example","Type":"AAAA","Value":"fd00::1"}]}`},
	} {
		c := tc.s.Config()
		if c == nil {
			t.Fatalf("%s: nil", tc.name)
		}
		got, err := json.Marshal(c)
		if err != nil || string(got) != tc.want {
			t.Errorf("%s: %s, %v\nwant %s", tc.name, got, err, tc.want)
		}
	}
}

// Clients take the suffix of the tailnet from the full name of their own node.
func TestFQDN(t *testing.T) {
	s := &Settings{Base: "skein.internal"}
	name := s.FQDN("homeds")
	if fqdn, err := dnsname.ToFQDN(name); name != "homeds.skein.internal." || err != nil || fmt.Sprint(fqdn) != name {
		t.Errorf("%q, %v", name, err)
	}
}

// CheckLabel is what a label must be, said in another way than Label makes one: nil, or an error with a label that would be right.
func CheckLabel(name string) error {
	if err := dnsname.ValidLabel(name); err != nil || name != strings.ToLower(name) || strings.Contains(name, "_") {
		return tailnet.Errorf(tailnet.Invalid, "%q is not a name for a node: use 1 to 63 of a-z, 0-9 and \"-\", such as %s",
			clip(name), Label(name))
	}
	return nil
}

// clip shortens foreign text for an error message.
func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}
