package derp

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"tailscale.com/tailcfg"
)

const mapYAML = `
# two relays of our own
regions:
  900:
    regionid: 900
    regioncode: home
    regionname: Home
    nodes:
      - name: 900a
        regionid: 900
        hostname: relay.example.com
        ipv4: 192.0.2.1
        ipv6: "2001:db8::1"
        stunport: 0
        stunonly: false
        derpport: 8443
  901:
    RegionCode: far
    NoMeasureNoHome: true
    Nodes: [{Name: 901a, HostName: far.example.com, IPv6: none, certname: "sha256-raw:` + pinOfA + `"}]
  1: null
homeparams: {regionscore: {900: 0.5}}
`

const pinOfA = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

func TestParseMap(t *testing.T) {
	want := &tailcfg.DERPMap{
		HomeParams: &tailcfg.DERPHomeParams{RegionScore: map[int]float64{900: 0.5}},
		Regions: map[int]*tailcfg.DERPRegion{
			900: {RegionID: 900, RegionCode: "home", RegionName: "Home", Nodes: []*tailcfg.DERPNode{{
				Name: "900a", RegionID: 900, HostName: "relay.example.com", IPv4: "192.0.2.1", IPv6: "2001:db8::1", DERPPort: 8443,
			}}},
			901: {RegionID: 901, RegionCode: "far", RegionName: "far", NoMeasureNoHome: true, Nodes: []*tailcfg.DERPNode{{
				Name: "901a", RegionID: 901, HostName: "far.example.com", IPv6: "none", CertName: pinPrefix + pinOfA,
			}}},
			1: nil,
		},
	}
	got, err := ParseMap([]byte(mapYAML))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %s\nwant %s", asJSON(got), asJSON(want))
	}
	// The same as JSON, in Go's own spelling and with tabs.
	indented, err := json.MarshalIndent(want, "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{string(asJSON(want)), string(indented)} {
		if got, err = ParseMap([]byte(text)); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("as JSON: %s, %v", asJSON(got), err)
		}
		if got, err = parseFetchedMap([]byte(text)); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("as fetched: %s, %v", asJSON(got), err)
		}
	}
}

func asJSON(v any) []byte {
	b, _ := json.Marshal(v)
	return b
}

func TestParseMapFaults(t *testing.T) {
	// one wraps a node into a region 900.
	one := func(node string) string {
		return "regions:\n  900:\n    regioncode: a\n    nodes:\n    - {name: n, hostname: h, " + node + "}\n"
	}
	for _, tt := range []struct{ text, want string }{
		{"", "no regions"},
		{"# nothing", "no regions"},
		{"regions:", "no regions"},
		{"regions: [1]", "line 1: regions: want region ids as keys"},
		{"- a", "line 1: want keys and values"},
		{"regions: {", "not YAML or JSON"},
		{"regions: {}\n---\nregions: {}", "a second document"},
		{"region:\n  900: {}", `line 1: unknown key "region"; known here: homeparams, omitdefaultregions, regions`},
		{"regions:\n  nine: {}", `line 2: regions: "nine" is not a region id`},
		{"regions:\n  900:\n    regionid: 901\n    regioncode: a\n    nodes: [{name: n, hostname: h}]", "line 3: regions.900.regionid: the region id 901 is not the key 900"},
		{"regions:\n  0: {regioncode: a, nodes: [{name: n, hostname: h}]}", "line 2: regions.0: region id 0: want 1 to 65535"},
		{"regions:\n  70000: {regioncode: a, nodes: [{name: n, hostname: h}]}", "want 1 to 65535"},
		{"regions:\n  900: {regioncode: a}", "line 2: regions.900.nodes: no nodes"},
		{"regions:\n  900: {regioncode: a, nodes: [null]}", "regions.900.nodes[0]: empty"},
		{"regions:\n  900: {regioncode: a, nodes: {}}", "regions.900.nodes: want a list"},
		{"regions:\n  900:\n    nodes: [{name: n, hostname: h}]", "line 3: regions.900.regioncode: missing"},
		{"regions:\n  900: {regioncode: a, nodes: [{hostname: h}]}", "regions.900.nodes[0].name: missing"},
		{"regions:\n  900: {regioncode: a, nodes: [{name: n}]}", "regions.900.nodes[0].hostname: missing"},
		{"regions:\n  900: {regioncode: a, nodes: [{name: n, hostname: h}]}\n  901: {regioncode: b, nodes: [{name: n, hostname: h}]}", `line 3: regions.901.nodes[0].name: "n" is used by regions.900.nodes[0].name as well`},
		{one("regionid: 7"), "line 5: regions.900.nodes[0].regionid: 7 is not the region 900"},
		{one("ipv4: x"), `line 5: regions.900.nodes[0].ipv4: "x": want an IPv4 address`},
		{one("ipv6: 192.0.2.1"), "want an IPv6 address"},
		{one("ipv4: none, ipv6: none"), "both ipv4 and ipv6 are none"},
		{one("derpport: 70000"), "want a port, or 0 for 443"},
		{one("derpport: https"), `"https" is not a whole number`},
		{one("derpport: 1e3"), "not a whole number"},
		{one("stunport: -2"), "-1 for no STUN"},
		{one("stunonly: maybe"), "want true or false"},
		{one("certname: 'sha256-raw:AA'"), "64 hex digits"},
		{one("DerpPort: 1, derpport: 2"), "regions.900.nodes[0].derpport: stands here twice"},
		{"regions:\n  900: {}\n  0900: {}", "line 3: regions.900: this id stands here twice"},
		{one("ipv4: " + strings.Repeat("x", 100_000)), "want an"},
		{one("insecure: true"), `unknown key "insecure"`},
		{strings.Replace(one(""), "hostname: h", "hostname: 'https://h/'", 1), "is not a DNS name or address"},
		{strings.Replace(one(""), "name: n", "name: [n]", 1), "want a single value"},
		{"regions:\n  900: {regioncode: a, latitude: .nan, nodes: [{name: n, hostname: h}]}", "is not a number"},
		{"homeparams: {regionscore: {1: -1}}\nregions:\n  900: {regioncode: a, nodes: [{name: n, hostname: h}]}", "line 1: homeparams.regionscore.1: want a positive number"},
		{strings.Repeat("#", maxMapBytes+1), "more than the"},
	} {
		_, err := ParseMap([]byte(tt.text))
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%.200s\n got: %v\nwant: %s", tt.text, err, tt.want)
		}
	}
	for _, tt := range []struct{ text, want string }{
		{"", "not a DERP map in JSON"},
		{"<html>", "not a DERP map in JSON"},
		{"{}", "no regions"},
		{`{"Regions":{"1":{"RegionID":2,"RegionCode":"a"}}}`, "the region id 2 is not the key 1"},
	} {
		if _, err := parseFetchedMap([]byte(tt.text)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("fetched %s: got %v, want %s", tt.text, err, tt.want)
		}
	}
}

// TestParseMapBomb: aliases that multiply and long lists of mistakes end early.
func TestParseMapBomb(t *testing.T) {
	var b strings.Builder
	b.WriteString("regions:\n  1: &r {regioncode: a, nodes: &n [")
	for i := range 2000 {
		fmt.Fprintf(&b, "{name: n%d, hostname: h},", i)
	}
	b.WriteString("]}\n")
	for i := range 10000 {
		fmt.Fprintf(&b, "  %d: *r\n", i+2)
	}
	_, err := ParseMap([]byte(b.String()))
	if err == nil || !strings.Contains(err.Error(), "values in one DERP map") {
		t.Errorf("%.300v", err)
	}
	_, err = ParseMap([]byte("regions: {1: {nodes: [" + strings.Repeat("{a: b},", 10000) + "]}}"))
	if err == nil || len(err.Error()) > 20_000 {
		t.Errorf("%.300v", err)
	}
	if _, err = ParseMap([]byte("regions: &a {1: *a}")); err == nil {
		t.Error("a map inside itself was accepted")
	}
}

func FuzzParseMap(f *testing.F) {
	f.Add([]byte(mapYAML))
	f.Add([]byte(`{"Regions":{"1":{"RegionID":1,"RegionCode":"a","Nodes":[{"Name":"n","HostName":"h"}]}}}`))
	f.Add([]byte("regions: &a {1: {regioncode: x, nodes: [&n {name: n, hostname: h}, *n]}}"))
	f.Add([]byte("regions: {1: }"))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := ParseMap(data)
		if err != nil {
			return
		}
		// What is accepted can go onto the wire, is accepted again, and has a spelling for old clients.
		wire, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		again, err := parseFetchedMap(wire)
		if err != nil {
			t.Fatalf("%v\n%s", err, wire)
		}
		if !reflect.DeepEqual(m.RegionIDs(), again.RegionIDs()) {
			t.Fatalf("%s became %s", wire, asJSON(again))
		}
		g := &mergedMap{m: &tailcfg.DERPMap{Regions: map[int]*tailcfg.DERPRegion{}}, from: map[int]string{}}
		g.add(m, "fuzz", discard)
		for id, r := range newMaps(g.m, 0).Legacy.Regions {
			if r.NoMeasureNoHome && !r.Avoid {
				t.Fatalf("region %d would become a home of older clients", id)
			}
		}
	})
}
