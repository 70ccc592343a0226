package api

import (
	"strings"
	"testing"

	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

func TestServices(t *testing.T) {
	w := seed(t)
	c, ctx := w.client, w.ctx()
	text, tags := "the intranet", []string{"web"}
	s, err := c.SetService(ctx, "web", ServiceRequest{Comment: &text, Tags: tags, Ports: []string{"tcp:80"}})
	if err != nil || s.Name != "svc:web" || s.DNSName != "web.skein.internal" || len(s.Addresses) != 2 || s.Tags[0] != "tag:web" || len(s.Hosts) != 0 {
		t.Fatalf("%+v, %v", s, err)
	}
	empty := ""
	again, err := c.SetService(ctx, "svc:web", ServiceRequest{Comment: &empty})
	if err != nil || again.Comment != "" || again.Ports[0] != "tcp:80" || again.Addresses[0] != s.Addresses[0] {
		t.Errorf("what is left out does not stay: %+v, %v", again, err)
	}
	explain := func(dst Ref) *Explanation {
		t.Helper()
		a, err := c.ExplainPolicy(ctx, ExplainRequest{Src: "junyao", Dst: dst})
		if err != nil || len(a.Explanations) != 1 {
			t.Fatalf("%+v, %v", a, err)
		}
		return a.Explanations[0]
	}
	if x := explain("svc:web:80"); x.Allowed || x.Why != "no node that is approved for it hosts the service svc:web" {
		t.Errorf("%+v", x)
	}
	w.must(w.st.Update(ctx, "test", func(tx *state.Tx) error {
		n := tx.Node(2).Clone()
		n.User, n.Tags = 0, []string{"tag:web"}
		tx.SetOffers(n, "hash", []tailnet.Hosting{{Service: "svc:web", Offered: true, Active: true, Ports: []string{"tcp:443"}}})
		return tx.PutNode(n)
	}))
	s, err = c.ApproveServiceHost(ctx, "web", "homeds")
	if err != nil || len(s.Hosts) != 1 || s.Hosts[0].Approval != "manual" || s.Hosts[0].Ready || !s.Hosts[0].Offered {
		t.Errorf("%+v, %v", s, err)
	}
	if x := explain("svc:web:80"); !x.Allowed || len(x.Through) != 1 || x.Through[0].Name != "homeds" || len(x.Dst.Addresses) != 2 {
		t.Errorf("%+v", x)
	}
	if _, err := c.ExplainPolicy(ctx, ExplainRequest{Src: "junyao", Dst: "svc:none"}); err == nil || !strings.Contains(err.Error(), `there is no service "svc:none"`) {
		t.Error(err)
	}
	for path, want := range map[string]int{"/service?node=homeds": 1, "/service?node=vm": 0, "/service?tag=tag:web": 1, "/service?tag=tag:x": 0} {
		if _, body := w.call("GET", Prefix+path, ""); strings.Count(body, `"svc:web"`) != want {
			t.Errorf("%s: %s", path, body)
		}
	}
	// The addresses of services are routes of their hosts, but not among those that people see.
	if n, err := c.GetNode(ctx, "homeds"); err != nil || strings.Contains(strings.Join(n.SubnetRoutes, " "), s.Addresses[0]) {
		t.Errorf("%+v, %v", n, err)
	}
}
