package state

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/skein-vpn/skein/state/statetest"
	"github.com/skein-vpn/skein/tailnet"
)

// offering is a tagged node that says it hosts a service.
func offering(t *testing.T, st *State, hostname, service string) tailnet.NodeID {
	t.Helper()
	id := addNode(t, st, hostname, 0, func(n *tailnet.Node) { n.Tags = []string{"tag:web"} })
	must(t, st, func(tx *Tx) error {
		return change(tx, id, func(n *tailnet.Node) {
			tx.SetOffers(n, "hash", []tailnet.Hosting{{Service: service, Offered: true, Active: true, Ports: []string{"tcp:80"}}})
		})
	})
	return id
}

// newService makes a service.
func newService(t *testing.T, st *State, name string) *tailnet.Service {
	t.Helper()
	must(t, st, func(tx *Tx) error {
		s, err := tx.NewService(name, netip.Addr{})
		if err != nil {
			return err
		}
		return tx.PutService(s)
	})
	return st.Snapshot().Service(name)
}

// filters is what the node lets in.
func filters(st *State, id tailnet.NodeID) string {
	sn := st.Snapshot()
	return fmt.Sprint(sn.Policy.FilterFor(sn.Node(id).Node))
}

// A service comes and goes: its addresses are taken and given back, its hosts are approved, carry it and let others in, and the policy
// that names it means it as soon as there is one.
func TestService(t *testing.T) {
	store := statetest.New()
	st := open(t, options(store))
	ann := addUser(t, st, "ann")
	laptop := addNode(t, st, "laptop", ann, nil)
	p := parsePolicy(`{"tagOwners": {"tag:web": []}, "autoApprovers": {"services": {"svc:web": ["tag:web"]}},
		"acls": [{"action": "accept", "src": ["ann@"], "dst": ["svc:web:80", "svc:db:*"]}]}`)
	must(t, st, func(tx *Tx) error { return tx.SetPolicy(p, "test", "") })
	host := offering(t, st, "rack1", "svc:web")
	if f := filters(st, host); f != "[]" {
		t.Errorf("without a service the host lets in %s", f)
	}
	if h, _ := st.Snapshot().Node(host).Hosting("svc:web"); h.Approval != "" {
		t.Errorf("a service that does not exist is approved: %+v", h)
	}

	web := newService(t, st, "svc:web")
	sn := st.Snapshot()
	if h, _ := sn.Node(host).Hosting("svc:web"); h.Approval != tailnet.ApprovedByPolicy || h.IPv4 != web.IPv4 {
		t.Errorf("it is not approved by the policy: %+v", h)
	}
	must(t, st, func(tx *Tx) error { tx.SetOnline(host, true); return nil })
	if sn = st.Snapshot(); !sn.Carries(sn.Node(host), web) {
		t.Errorf("the host does not carry it: %v", sn.Node(host).Primary)
	}
	if f := filters(st, host); !strings.Contains(f, web.IPv4.String()) || !strings.Contains(f, web.IPv6.String()) || strings.Contains(f, sn.Node(host).IPv4.String()) {
		t.Errorf("the host lets in %s", f)
	}
	if !sn.Policy.SeesNode(sn.Node(laptop).Node, sn.Node(host).Node) || !sn.Policy.UsesService(sn.Node(laptop).Class, web.IPv4) {
		t.Error("who may use the service does not see its host")
	}
	// The address is taken, for nodes and other services, and the name as well.
	other := newService(t, st, "svc:db")
	namesake := addNode(t, st, "web", ann, nil)
	if n := st.Snapshot().Node(namesake); n.Name == "web" || n.IPv4 == web.IPv4 || n.IPv4 == other.IPv4 || other.IPv4 == web.IPv4 {
		t.Errorf("%s has %s, the services %s and %s", n.Name, n.IPv4, web.IPv4, other.IPv4)
	}
	for what, f := range map[string]func(*Tx) error{
		"the address of a service": func(tx *Tx) error {
			return change(tx, laptop, func(n *tailnet.Node) { n.IPv4, n.IPv6 = web.IPv4, web.IPv6 })
		},
		"the name of a service": func(tx *Tx) error { return change(tx, laptop, func(n *tailnet.Node) { n.Name = "web" }) },
		"the name of a node": func(tx *Tx) error {
			s, err := tx.NewService("svc:laptop", netip.Addr{})
			if err != nil {
				return err
			}
			return tx.PutService(s)
		},
		"an address that is taken": func(tx *Tx) error { _, err := tx.NewService("svc:x", web.IPv4); return err },
	} {
		if err := st.Update(ctx, "test", f); tailnet.CodeOf(err) != tailnet.Conflict {
			t.Errorf("%s: %v", what, err)
		}
	}
	// An administrator's word counts more than the policy's, and outlasts the offer.
	must(t, st, func(tx *Tx) error { return tx.ApproveService(host, "svc:web", false) })
	if sn = st.Snapshot(); len(sn.Node(host).ActiveRoutes()) != 0 || filters(st, host) != "[]" {
		t.Errorf("one that was refused carries %v", sn.Node(host).ActiveRoutes())
	}
	must(t, st, func(tx *Tx) error {
		return change(tx, host, func(n *tailnet.Node) { tx.SetOffers(n, "", nil) })
	})
	must(t, st, func(tx *Tx) error {
		return change(tx, host, func(n *tailnet.Node) {
			tx.SetOffers(n, "again", []tailnet.Hosting{{Service: "svc:web", Offered: true, Active: true}})
		})
	})
	if h, _ := st.Snapshot().Node(host).Hosting("svc:web"); h.Approval != tailnet.Refused {
		t.Errorf("it was forgotten: %+v", h)
	}
	must(t, st, func(tx *Tx) error { return tx.ApproveService(host, "svc:web", true) })
	if f := filters(st, host); !strings.Contains(f, web.IPv4.String()) {
		t.Errorf("approved again, it lets in %s", f)
	}
	// A node that belongs to a user hosts nothing.
	must(t, st, func(tx *Tx) error { return change(tx, host, func(n *tailnet.Node) { n.Tags, n.User = nil, ann }) })
	if rs := st.Snapshot().Node(host).ActiveRoutes(); len(rs) != 0 {
		t.Errorf("a node of a user carries %v", rs)
	}
	must(t, st, func(tx *Tx) error {
		return change(tx, host, func(n *tailnet.Node) { n.Tags, n.User = []string{"tag:web"}, 0 })
	})

	again := open(t, options(statetest.NewWith(store.Contents()))) // what a restart reads
	if f := filters(again, host); f != filters(st, host) || again.Snapshot().ServiceByAddr(web.IPv6) == nil {
		t.Errorf("after a restart it lets in %s", f)
	}
	next := addNode(t, again, "next", ann, nil)
	if n := again.Snapshot().Node(next); n.IPv4 == web.IPv4 || n.IPv4 == other.IPv4 {
		t.Errorf("after a restart a node gets the address %s of a service", n.IPv4)
	}

	must(t, st, func(tx *Tx) error { return tx.DeleteService("svc:web") })
	sn = st.Snapshot()
	if h, _ := sn.Node(host).Hosting("svc:web"); h.Approval != "" || h.IPv4.IsValid() || !h.Offered || filters(st, host) != "[]" || sn.Service("svc:web") != nil {
		t.Errorf("after the end of the service: %+v, %s", h, filters(st, host))
	}
	if id := addNode(t, st, "reuse", ann, nil); st.Snapshot().Node(id).IPv4 != web.IPv4 {
		t.Error("its address is not given out again")
	}
	actions := map[string]bool{}
	for _, e := range store.Commits() {
		for _, a := range e.Changes.Audit {
			actions[a.Action+" "+a.Target] = true
		}
	}
	if !actions["service.create svc:web"] || !actions["service.delete svc:web"] || !actions["node.update rack1"] {
		t.Errorf("the audit log says %v", actions)
	}
}

// Of two hosts one carries the service, and the other one when that goes, or says that it takes no more connections.
func TestServiceFailover(t *testing.T) {
	st := open(t, options(statetest.New()))
	s := newService(t, st, "svc:web")
	a, b := offering(t, st, "a", s.Name), offering(t, st, "b", s.Name)
	for _, id := range []tailnet.NodeID{a, b} {
		must(t, st, func(tx *Tx) error { tx.SetOnline(id, true); return tx.ApproveService(id, s.Name, true) })
	}
	carrier := func() (ids []tailnet.NodeID) {
		for _, n := range st.Snapshot().Nodes() {
			if st.Snapshot().Carries(n, s) {
				ids = append(ids, n.ID)
			}
		}
		return ids
	}
	want := func(what string, id tailnet.NodeID) {
		t.Helper()
		if got := carrier(); len(got) != 1 || got[0] != id {
			t.Errorf("%s %v carry it, want %d", what, got, id)
		}
	}
	want("at first", a)
	if n := len(st.Snapshot().Redundant()); n != 2 {
		t.Errorf("%d hosts are worth probing", n)
	}
	must(t, st, func(tx *Tx) error { tx.SetOnline(a, false); return nil })
	want("without the first", b)
	must(t, st, func(tx *Tx) error { tx.SetOnline(a, true); return nil })
	want("with the first back", b)
	must(t, st, func(tx *Tx) error {
		return change(tx, b, func(n *tailnet.Node) { tx.SetOffers(n, "drained", []tailnet.Hosting{{Service: s.Name, Offered: true}}) })
	})
	want("with the second drained", a)
}
