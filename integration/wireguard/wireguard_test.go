// Package wireguard checks what Skein hands out against plain WireGuard. Two scripted clients join a running skein binary;
// from the network maps that they are served, and from nothing else, stock WireGuard devices (golang.zx2c4.com/wireguard,
// each with a network stack in user space) get their private keys, peers, allowed IPs and endpoints, and then traffic
// either passes or does not. No root, no interface, nothing beyond loopback.
//
//	skein_test.go     the skein binary: its server, its commands
//	node_test.go      a scripted client: registers, reports, keeps its network map
//	device_test.go    a WireGuard device made of such a map, and traffic through it
package wireguard

import (
	"net/netip"
	"slices"
	"strconv"
	"testing"
	"time"
)

// patience bounds every wait for something that must happen. A WireGuard handshake that got lost is tried again after 5 s.
const patience = 30 * time.Second

var (
	lan    = netip.MustParsePrefix("192.168.199.0/24") // behind the router, enabled in the course of the test
	lan6   = netip.MustParsePrefix("fdc7:1999::/64")   // likewise
	secret = netip.MustParsePrefix("10.77.0.0/24")     // behind the router, never enabled

	lanHost    = netip.MustParseAddr("192.168.199.1")
	lanHost6   = netip.MustParseAddr("fdc7:1999::1")
	secretHost = netip.MustParseAddr("10.77.0.1")
)

// TestPlainWireGuard is one story; each step stands on the ones before.
func TestPlainWireGuard(t *testing.T) {
	s := startSkein(t)
	s.run("namespaces", "create", "junyao")
	authKey := s.run("preauthkeys", "create", "-n", "junyao", "--reusable")

	laptop, router := newNode(s, "laptop"), newNode(s, "homeds")
	router.routes = []netip.Prefix{lan}
	for _, n := range []*node{laptop, router} {
		n.register(authKey)
		n.stream()
	}
	// The router's stack owns hosts behind it, too. A host behind a disabled route is as good as one behind none.
	laptop.plug(newDevice(t, laptop.addrs()))
	router.plug(newDevice(t, append(router.addrs(), lanHost, lanHost6, secretHost)))
	for _, n := range []*node{laptop, router} {
		n.report()
	}
	sees := func(n, peer *node, what string, ok func(*peerEntry) bool) {
		t.Helper()
		n.until(what, func(m *netmap) bool {
			p := m.peer(peer)
			return p != nil && p.Key == peer.key.Public() && slices.Contains(p.Endpoints, peer.endpoint()) && ok(p)
		})
	}
	listed := func(*peerEntry) bool { return true }
	sees(laptop, router, "homeds with its key and endpoint", listed)
	sees(router, laptop, "laptop with its key and endpoint", listed)
	router.routes = append(router.routes, lan6, secret)
	router.report()

	bothWays := func(t *testing.T) {
		t.Helper()
		for _, a := range router.addrs() {
			laptop.dev.reach(t, a)
		}
		for _, a := range laptop.addrs() {
			router.dev.reach(t, a)
		}
	}
	step := func(name string, f func(t *testing.T)) {
		if !t.Run(name, f) {
			t.FailNow()
		}
	}

	step("between tailnet addresses", bothWays)
	step("no route is enabled", func(t *testing.T) {
		for _, h := range []netip.Addr{lanHost, lanHost6, secretHost} {
			laptop.dev.denied(t, router.dev, h, router.addrs()[0])
		}
	})

	id := strconv.FormatInt(int64(router.self().ID), 10)
	carried := func(ps ...netip.Prefix) func(*peerEntry) bool {
		return func(p *peerEntry) bool {
			want := ps
			for _, a := range router.addrs() {
				want = append(want, netip.PrefixFrom(a, a.BitLen()))
			}
			return equalSets(p.AllowedIPs, want) && equalSets(p.PrimaryRoutes, ps)
		}
	}
	step("enabled routes", func(t *testing.T) {
		s.run("routes", "enable", "-i", id, "-r", lan.String(), "-r", lan6.String())
		sees(laptop, router, "homeds with the enabled routes and no other", carried(lan, lan6))
		router.until("its own enabled routes", func(m *netmap) bool {
			return slices.Contains(m.self.AllowedIPs, lan) && slices.Contains(m.self.AllowedIPs, lan6)
		})
		bothWays(t)
		laptop.dev.reach(t, lanHost)
		laptop.dev.reach(t, lanHost6)
		router.dev.reachFrom(t, lanHost, laptop.addrs()[0])
		router.dev.reachFrom(t, lanHost6, laptop.addrs()[1])
		laptop.dev.denied(t, router.dev, secretHost, router.addrs()[0])
	})
	step("a disabled route", func(t *testing.T) {
		s.run("routes", "disable", "-i", id, "-r", lan.String())
		sees(laptop, router, "homeds without the disabled route", carried(lan6))
		laptop.dev.denied(t, router.dev, lanHost, lanHost6)
		laptop.dev.denied(t, router.dev, secretHost, lanHost6)
		router.dev.deniedFrom(t, laptop.dev, lanHost, laptop.addrs()[0], router.addrs()[0])
		bothWays(t)
	})
	step("an endpoint moves", func(t *testing.T) {
		before := laptop.endpoint()
		laptop.dev.rebind(t)
		if laptop.endpoint() == before {
			t.Fatal("the port is the same")
		}
		laptop.report()
		sees(router, laptop, "laptop at its new endpoint, and there alone", func(p *peerEntry) bool { return len(p.Endpoints) == 1 })
		bothWays(t)
	})
	step("a node key is renewed", func(t *testing.T) {
		old := laptop.key.Public()
		was := laptop.self()
		laptop.renew(authKey)
		laptop.stream()
		if now := laptop.self(); now.ID != was.ID || !slices.Equal(now.Addresses, was.Addresses) {
			t.Errorf("with its new key laptop is node %d with %v; it was %d with %v", now.ID, now.Addresses, was.ID, was.Addresses)
		}
		sees(router, laptop, "laptop with its new key", listed)
		if router.dev.has(old) || !router.dev.has(laptop.key.Public()) {
			t.Error("the router's device has the old key, or has not the new one")
		}
		bothWays(t)
		laptop.dev.reach(t, lanHost6)
	})
	step("a node is deleted", func(t *testing.T) {
		s.run("nodes", "delete", "-i", strconv.FormatInt(int64(laptop.self().ID), 10), "--yes")
		router.until("laptop to go", func(m *netmap) bool { return len(m.peers) == 0 })
		if router.dev.has(laptop.key.Public()) {
			t.Error("the router's device still has the peer")
		}
		// The laptop keeps what it had; the router does not talk to it any more.
		laptop.dev.silent(t, router.dev, router.addrs()[0])
	})
}

func equalSets(a, b []netip.Prefix) bool {
	if len(a) != len(b) {
		return false
	}
	for _, p := range a {
		if !slices.Contains(b, p) {
			return false
		}
	}
	return true
}
