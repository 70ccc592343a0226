package api

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/skein-vpn/skein/dns"
	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

func TestDNS(t *testing.T) {
	w := newWorldWith(t, func(so *state.Options, _ *Options) {
		so.DNS = &dns.Settings{MagicDNS: true, Base: "skein.internal", Nameservers: dns.Resolvers("192.0.2.53"), Search: []string{"corp.example"}}
	})
	ask := func(want string, set ...string) func(*DNS, error) {
		return func(d *DNS, err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
			got, _ := json.Marshal(w.st.Snapshot().DNS.Config())
			if string(got) != want {
				t.Errorf("clients are told\n%s, want\n%s", got, want)
			}
			if set = append([]string{}, set...); !slices.Equal(d.Set, set) {
				t.Errorf("set: %v, want %v", d.Set, set)
			}
		}
	}
	ask(`{"FallbackResolvers":[{"Addr":"192.0.2.53"}],"Domains":["skein.internal","corp.example"],"Proxied":true}`)(w.client.GetDNS(w.ctx()))
	ask(`{"Resolvers":[{"Addr":"1.1.1.1","UseWithExitNode":true}],"Domains":["skein.internal"],"Proxied":true}`, "nameservers", "overrideLocal", "search")(
		w.client.SetDNS(w.ctx(), map[string]any{
			"nameservers": []tailnet.Resolver{{Addr: "1.1.1.1", UseWithExitNode: true}}, "overrideLocal": true, "search": []string{},
		}))
	rev := w.st.Snapshot().Rev
	ask(`{"Resolvers":[{"Addr":"1.1.1.1","UseWithExitNode":true}],"Domains":["skein.internal"],"Proxied":true}`, "nameservers", "overrideLocal", "search")(
		w.client.SetDNS(w.ctx(), map[string]any{"overrideLocal": true}))
	if now := w.st.Snapshot().Rev; now != rev {
		t.Errorf("setting what is set was committed: revision %d after %d", now, rev)
	}
	ask(`{"Resolvers":[{"Addr":"1.1.1.1","UseWithExitNode":true}],"Routes":{"lan":[{"Addr":"10.0.0.53"}]}}`,
		"magicDNS", "nameservers", "overrideLocal", "search", "split")(
		w.client.SetDNS(w.ctx(), map[string]any{"magicDNS": false, "split": map[string]any{"lan": []map[string]string{{"addr": "10.0.0.53"}}}}))
	ask(`{"FallbackResolvers":[{"Addr":"192.0.2.53"}],"Domains":["skein.internal","corp.example"],"Proxied":true}`)(
		w.client.SetDNS(w.ctx(), map[string]any{"magicDNS": nil, "split": nil, "nameservers": nil, "overrideLocal": nil, "search": nil}))
	ask(`{"FallbackResolvers":[{"Addr":"192.0.2.53"}],"Domains":["skein.internal","corp.example"],"Proxied":true,"ExtraRecords":[{"Name":"nas.skein.internal","Type":"A","Value":"100.64.0.4"}]}`, "records")(
		w.client.AddDNSRecord(w.ctx(), "NAS.skein.internal.", "100.64.0.4"))
	ask(`{"FallbackResolvers":[{"Addr":"192.0.2.53"}],"Domains":["skein.internal","corp.example"],"Proxied":true}`)(
		w.client.RemoveDNSRecord(w.ctx(), "nas.skein.internal", ""))
}

func TestBadDNS(t *testing.T) {
	w := newWorld(t)
	before := w.st.Snapshot()
	for _, c := range []struct{ method, path, body, want string }{
		{"PATCH", "/dns", `{}`, "nothing to set"},
		{"PATCH", "/dns", ``, "nothing to set"},
		{"PATCH", "/dns", `{"baseDomain": "x"}`, `"baseDomain" cannot be set`},
		{"PATCH", "/dns", `{"nameservers": ["1.1.1.1"]}`, "an object"},
		{"PATCH", "/dns", `{"nameservers": [{"addr": "x"}]}`, `"x" is not a resolver`},
		{"PATCH", "/dns", `{"magicDNS": "yes"}`, "true or false"},
		{"PATCH", "/dns", `{"magicDNS": false, "search": ["a b"]}`, `"a b" is not a domain`},
		{"PATCH", "/dns", `{"records": []}`, `"records" cannot be set`},
		{"POST", "/dns/records", `{"name": "a.b", "value": "c"}`, "not an address"},
		{"POST", "/dns/records", `{"name": "a.b", "value": "::1", "type": "A"}`, "its type is AAAA"},
		{"POST", "/dns/records", `{"value": "::1"}`, "not a domain"},
		{"DELETE", "/dns/records?name=a.b", ``, "no record a.b"},
	} {
		t.Run(c.method+" "+c.body, func(t *testing.T) {
			code, body := w.call(c.method, Prefix+c.path, c.body)
			if code < 400 || code >= 500 || !strings.Contains(body, strings.ReplaceAll(c.want, `"`, `\"`)) {
				t.Errorf("%d %s, want %q", code, body, c.want)
			}
		})
	}
	if after := w.st.Snapshot(); !reflect.DeepEqual(after.Tailnet, before.Tailnet) {
		t.Errorf("failed calls have changed %+v to %+v", before.Tailnet, after.Tailnet)
	}
}
