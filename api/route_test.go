package api

import (
	"context"
	"strings"
	"testing"

	"github.com/skein-vpn/skein/tailnet"
)

// show writes routes as people read them: + enabled, - not; * carried; ? not advertised.
func show(rs []*Route) string {
	var out []string
	for _, r := range rs {
		s := "-"
		if r.Enabled {
			s = "+"
		}
		s += r.Prefix
		if r.IsPrimary {
			s += "*"
		}
		if !r.Advertised {
			s += "?"
		}
		out = append(out, s)
	}
	return strings.Join(out, " ")
}

func TestRoutes(t *testing.T) {
	w := seed(t)
	c := w.client
	type call func(context.Context, RoutesRequest) ([]*Route, error)
	for _, step := range []struct {
		what   string
		call   call
		node   Ref
		routes string
		all    bool
		force  bool
		want   string
	}{
		{"one", c.EnableRoutes, "2", "192.168.199.0/24", false, false, "-10.8.0.0/16 +192.168.199.0/24*"},
		{"it adds", c.EnableRoutes, "homeds", "10.8.0.0/16", false, false, "+10.8.0.0/16* +192.168.199.0/24*"},
		{"again", c.EnableRoutes, "2", "10.8.0.0/16", false, false, "+10.8.0.0/16* +192.168.199.0/24*"},
		{"take one away", c.DisableRoutes, "2", "192.168.199.0/24", false, false, "+10.8.0.0/16* -192.168.199.0/24"},
		{"again", c.DisableRoutes, "2", "192.168.199.0/24", false, false, "+10.8.0.0/16* -192.168.199.0/24"},
		{"replace", c.ExactRoutes, "2", "192.168.199.0/24", false, false, "-10.8.0.0/16 +192.168.199.0/24*"},
		{"all", c.EnableRoutes, "2", "", true, false, "+10.8.0.0/16* +192.168.199.0/24*"},
		{"one to come", c.EnableRoutes, "2", "10.9.0.0/16", false, true, "+10.8.0.0/16* +10.9.0.0/16? +192.168.199.0/24*"},
		{"an approved one may be named", c.ExactRoutes, "2", "10.9.0.0/16", false, false, "-10.8.0.0/16 +10.9.0.0/16? -192.168.199.0/24"},
		{"and taken away", c.DisableRoutes, "2", "10.9.0.0/16", false, false, "-10.8.0.0/16 -192.168.199.0/24"},
		{"none", c.ExactRoutes, "2", "", false, false, "-10.8.0.0/16 -192.168.199.0/24"},
		{"all away", c.DisableRoutes, "2", "", true, false, "-10.8.0.0/16 -192.168.199.0/24"},
		{"exit routes in a pair", c.EnableRoutes, "3", "::/0", false, false, "+0.0.0.0/0* +::/0*"},
		{"and away in a pair", c.DisableRoutes, "3", "0.0.0.0/0", false, false, "-0.0.0.0/0 -::/0"},
		{"all of an exit node", c.EnableRoutes, "vm", "", true, false, "+0.0.0.0/0* +::/0*"},
	} {
		req := RoutesRequest{Node: step.node, All: step.all, AllowUnadvertised: step.force}
		if step.routes != "" {
			req.Routes = strings.Split(step.routes, ",")
		}
		rs, err := step.call(w.ctx(), req)
		if err != nil || show(rs) != step.want {
			t.Errorf("%s: %s, %v; want %s", step.what, show(rs), err, step.want)
		}
		if again, err := c.ListRoutes(w.ctx(), RouteFilter{Node: step.node}); err != nil || show(again) != step.want {
			t.Errorf("%s: listed as %s, %v", step.what, show(again), err)
		}
	}
	all, err := c.ListRoutes(w.ctx(), RouteFilter{})
	if err != nil || show(all) != "-10.8.0.0/16 -192.168.199.0/24 +0.0.0.0/0* +::/0*" || all[0].NodeName != "homeds" || all[3].NodeID != 3 || !all[3].Exit {
		t.Errorf("all routes: %s, %v", show(all), err)
	}
	if _, body := w.call("GET", "/api/v1/node/1/routes", ""); body != "{\"routes\":[]}\n" {
		t.Errorf("no routes are %s", body)
	}
}

// Of two routers the one created first carries the prefix.
func TestPrimaryIsShown(t *testing.T) {
	w := seed(t)
	w.node(w.user("x"), "spare", "192.168.199.0/24")
	for _, node := range []Ref{"spare", "homeds"} {
		if _, err := w.client.EnableRoutes(w.ctx(), RoutesRequest{Node: node, Routes: []string{"192.168.199.0/24"}}); err != nil {
			t.Fatal(err)
		}
	}
	w.online(2)
	if rs, err := w.client.ListRoutes(w.ctx(), RouteFilter{Node: "homeds"}); err != nil || show(rs) != "-10.8.0.0/16 +192.168.199.0/24*" {
		t.Errorf("first router: %s, %v", show(rs), err)
	}
	if rs, err := w.client.ListRoutes(w.ctx(), RouteFilter{Node: "spare"}); err != nil || show(rs) != "+192.168.199.0/24" {
		t.Errorf("second router: %s, %v", show(rs), err)
	}
}

// headscale's operation takes the whole list, as its user interfaces send it.
func TestApproveRoutes(t *testing.T) {
	w := seed(t)
	status, body := w.call("POST", "/api/v1/node/2/approve_routes", `{"routes":["192.168.199.0/24"]}`)
	if status != 200 || !strings.Contains(body, `"approvedRoutes":["192.168.199.0/24"],"availableRoutes":["10.8.0.0/16","192.168.199.0/24"],"subnetRoutes":["192.168.199.0/24"]`) {
		t.Errorf("%d %s", status, body)
	}
	status, body = w.call("POST", "/api/v1/node/2/approve_routes", `{"routes":[]}`)
	if status != 200 || !strings.Contains(body, `"approvedRoutes":[]`) {
		t.Errorf("%d %s", status, body)
	}
	rev := w.st.Snapshot().Rev
	if w.call("POST", "/api/v1/node/2/approve_routes", `{"routes":[]}`); w.st.Snapshot().Rev != rev {
		t.Error("the same routes committed something")
	}
	if n := w.st.Snapshot().Node(tailnet.NodeID(2)); len(n.ApprovedRoutes) != 0 {
		t.Errorf("approved: %v", n.ApprovedRoutes)
	}
}
