package control

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"path"
	"testing"

	"tailscale.com/tailcfg"

	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// answerServices answers the next question for services with a list.
func (c *client) answerServices(s *stream, hash string, services ...*tailcfg.VIPService) {
	c.ts.t.Helper()
	p := s.next("a question for services", func(m *message) bool { return m.PingRequest != nil }).PingRequest
	if p.Types != "c2n" || string(p.Payload) != getServices {
		c.ts.t.Fatalf("asked for %s %q", p.Types, p.Payload)
	}
	b, err := json.Marshal(tailcfg.C2NVIPServicesResponse{VIPServices: services, ServicesHash: hash})
	c.ts.must(err)
	c.pong(p, fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(b), b))
}

func (c *client) pong(p *tailcfg.PingRequest, answer string) {
	c.ts.t.Helper()
	if status, body, _ := c.do("POST", "/machine/ping/"+path.Base(p.URL), answer); status != 204 {
		c.ts.t.Fatalf("the answer got status %d: %s", status, body)
	}
}

// announce sends a lite update whose Hostinfo has the hash of a list of services.
func (c *client) announce(hash string) {
	c.ts.t.Helper()
	r := c.lite()
	r.Hostinfo.ServicesHash = hash
	c.report(r)
}

// A node's services are asked for when it says that they are others, and when it comes back; and are gone when it says so.
func TestServicesAreFetched(t *testing.T) {
	ts := newServer(t, nil)
	a := ts.joined("alpha")
	id := a.id()
	hosting := func(what string, ok func(h tailnet.Hosting, is bool) bool) {
		t.Helper()
		ts.until(what, func(sn *state.Snapshot) bool { return ok(sn.Node(id).Hosting("svc:web")) })
	}
	web := func(active bool) *tailcfg.VIPService {
		return &tailcfg.VIPService{Name: "svc:web", Active: active, Ports: []tailcfg.ProtoPortRange{{Proto: 6, Ports: tailcfg.PortRange{First: 80, Last: 80}}}}
	}
	a.announce("one") // nobody can be asked yet
	s := a.stream()
	s.first()
	a.answerServices(s, "one", web(true), &tailcfg.VIPService{Name: "svc:Not a name"}, nil, &tailcfg.VIPService{Name: "web"})
	hosting("it hosts a service", func(h tailnet.Hosting, _ bool) bool {
		return h.Offered && h.Active && len(h.Ports) == 1 && h.Ports[0] == "tcp:80" && h.Approval == ""
	})
	if n := ts.state.Snapshot().Node(id); n.ServicesHash != "one" || len(n.Hostings) != 1 {
		t.Errorf("%q %+v", n.ServicesHash, n.Hostings)
	}
	ts.update(func(tx *state.Tx) error {
		svc, err := tx.NewService("svc:web", netip.Addr{})
		if err != nil {
			return err
		}
		n := tx.Node(id).Clone()
		n.User, n.Tags = 0, []string{"tag:web"}
		if err := tx.PutNode(n); err != nil {
			return err
		}
		if err := tx.PutService(svc); err != nil {
			return err
		}
		return tx.ApproveService(id, "svc:web", true)
	})
	self := s.next("the addresses of the service", func(m *message) bool { return m.Node != nil && len(m.Node.CapMap[tailcfg.NodeAttrServiceHost]) > 0 }).Node
	var at tailcfg.ServiceIPMappings
	ts.must(json.Unmarshal([]byte(self.CapMap[tailcfg.NodeAttrServiceHost][0]), &at))
	if v := ts.state.Snapshot().Service("svc:web"); len(at["svc:web"]) != 2 || at["svc:web"][0] != v.IPv4 {
		t.Errorf("it is told %v", at)
	}
	// What is no list is no news; it is asked again.
	a.announce("two")
	p := s.next("a question", func(m *message) bool { return m.PingRequest != nil }).PingRequest
	a.pong(p, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{{{")
	a.answerServices(s, "two", web(false))
	hosting("it takes no more connections", func(h tailnet.Hosting, _ bool) bool {
		return h.Offered && !h.Active && h.Approval == tailnet.ApprovedByAdmin
	})
	// Another stream changes nothing, and an empty list needs no question.
	a.announce("")
	hosting("it hosts nothing", func(h tailnet.Hosting, is bool) bool {
		return is && !h.Offered && h.Approval == tailnet.ApprovedByAdmin
	})
	ctx, cancel := context.WithTimeout(ts.ctx, patience)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := ts.control.c2n(ctx, id, echo)
		done <- err
	}()
	if p := s.next("an echo", func(m *message) bool { return m.PingRequest != nil }).PingRequest; string(p.Payload) != echo {
		t.Errorf("asked %q though nothing is new", p.Payload)
	} else {
		a.pong(p, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
	}
	ts.must(<-done)
}

// A router that forwards no packets is written down when it begins to say so, once whatever else happens, and when it does again.
func TestForwardingIsNoted(t *testing.T) {
	ts := newServer(t, nil)
	a := ts.joined("alpha")
	id := a.id()
	report := func(off bool, routes ...string) {
		t.Helper()
		r := a.lite()
		for _, p := range routes {
			r.Hostinfo.RoutableIPs = append(r.Hostinfo.RoutableIPs, netip.MustParsePrefix(p))
		}
		if off {
			r.DebugFlags = []string{"warn-router-unhealthy", forwardingOff}
		}
		a.report(r)
	}
	logged := func() (out string) {
		es, err := ts.auth.AuditLog(ts.ctx, tailnet.AuditQuery{Target: "node:" + id.String(), After: &tailnet.AuditPos{}})
		ts.must(err)
		for _, e := range es {
			if e.Action == actionForwardingOff || e.Action == actionForwardingOn {
				out += e.Action[len("node.ip_forwarding_"):] + string(e.After) + " "
			}
		}
		return out
	}
	report(true) // no router
	report(false, "10.0.0.0/8")
	if got := logged(); got != "" {
		t.Errorf("at first: %s", got)
	}
	report(true, "10.0.0.0/8")
	report(true, "10.0.0.0/8", "0.0.0.0/0")
	const off = `off{"subnets":true,"exitNode":false} `
	if got := logged(); got != off {
		t.Errorf("off: %s", got)
	}
	ts.control.mu.Lock() // as after a start
	clear(ts.control.forwarding)
	ts.control.mu.Unlock()
	report(true, "10.0.0.0/8")
	if got := logged(); got != off {
		t.Errorf("after a start: %s", got)
	}
	report(false, "10.0.0.0/8")
	report(false, "10.0.0.0/8")
	report(true, "0.0.0.0/0", "::/0")
	if got, want := logged(), off+`onnull `+`off{"subnets":false,"exitNode":true} `; got != want && got != off+`on `+`off{"subnets":false,"exitNode":true} ` {
		t.Errorf("%s, want %s", got, want)
	}
}
