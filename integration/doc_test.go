// Package integration holds the scenarios: stock tailscaled processes in a network of namespaces
// (package lab) against the skein binary built from this tree. Every test builds a network of its
// own and may run beside one other. They need root; see package lab for the environment variables.
//
// One scenario, with its log:
//
//	sudo SKEIN_LAB_REQUIRED=1 go test -count=1 -v -run 'TestSeedDay$' ./integration
//
// A failed test prints the end of every log and keeps them. Times that matter to users (how long a
// failover takes, how soon a client comes up) are logged with "measured:"; a test fails on them
// only far beyond what they should be, because the machine may be busy.
package integration

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/skein-vpn/skein/integration/lab"
	"tailscale.com/ipn/ipnstate"
)

const (
	// soon bounds what should be there within a second or two.
	soon = 20 * time.Second
	// patient bounds what hangs on a client's own backoff, which goes up to 30 seconds.
	patient = 90 * time.Second
	// never is how long something is tried that must not work.
	never = time.Second
	// hiccup bounds how long a busy machine may hold up traffic that nothing was done to.
	hiccup = 2 * time.Second

	homeLAN = "192.168.199.0/24"
)

// net is the seed day's network with a running server and the namespace junyao.
type net struct {
	*lab.Seed
	srv *lab.Server
}

func newNet(t *testing.T, nat lab.NAT, o lab.ServerOptions) *net {
	t.Helper()
	t.Parallel()
	s := lab.NewSeed(t, nat)
	n := &net{Seed: s, srv: s.ServerHost.StartServer(o)}
	n.srv.Skein("namespaces", "create", "junyao")
	return n
}

// join starts a tailscaled on the host and brings it up with a fresh one-time key of junyao.
func (n *net) join(h *lab.Host, args ...string) *lab.Node {
	return n.joinAs(h, lab.NodeOptions{}, args...)
}

func (n *net) joinAs(h *lab.Host, o lab.NodeOptions, args ...string) *lab.Node {
	node := h.StartTailscaled(o)
	node.Up(n.srv.URL, append([]string{"--auth-key=" + n.srv.Key("junyao")}, args...)...)
	return node
}

// measured logs a time that users feel.
func (n *net) measured(what string, d time.Duration) {
	n.Logf("measured: %s: %v", what, d.Round(time.Millisecond))
}

// id returns the number of the node with that Hostname in "nodes list".
func (n *net) id(t *testing.T, hostname string) string {
	t.Helper()
	row := n.srv.Node(hostname)
	if row == nil {
		t.Fatalf("no node %s in:\n%s", hostname, n.srv.Skein("nodes", "list"))
	}
	return row["ID"]
}

// direct makes traffic between two nodes, which has them look for a direct path, and waits until each
// has found one: either may still answer over the relay when the other has. It returns the address
// and port of the second. A "tailscale ping" alone does not make them look.
func direct(from, to *lab.Node) netip.AddrPort {
	from.Ping(soon, to.IP4())
	to.WaitDirect(soon, from.IP4())
	return from.WaitDirect(soon, to.IP4())
}

// enable waits until the node has advertised the route, and enables it.
func (n *net) enable(t *testing.T, hostname, route string) {
	t.Helper()
	id := n.id(t, hostname)
	n.Wait(soon, hostname+" has advertised "+route, func() (bool, string) {
		s := n.routeEnabled(t, id, route)
		return s == "false", s
	})
	n.srv.Skein("routes", "enable", "-i", id, "-r", route)
}

// routeEnabled reports what "routes list" says about one route of a node.
func (n *net) routeEnabled(t *testing.T, id, route string) string {
	t.Helper()
	_, rows := n.srv.Table("routes", "list", "-i", id)
	for _, r := range rows {
		if r["Route"] == route {
			return r["Enabled"]
		}
	}
	return "not listed"
}

// carries reports whether the peer is a way to the prefix.
func carries(prefix string) func(*ipnstate.PeerStatus) bool {
	return func(p *ipnstate.PeerStatus) bool {
		if p.AllowedIPs == nil {
			return false
		}
		for _, a := range p.AllowedIPs.AsSlice() {
			if a.String() == prefix {
				return true
			}
		}
		return false
	}
}

func not(f func(*ipnstate.PeerStatus) bool) func(*ipnstate.PeerStatus) bool {
	return func(p *ipnstate.PeerStatus) bool { return !f(p) }
}

// allRelayed fails the test unless there are answers and all came through a relay.
func allRelayed(t *testing.T, vias []string, r lab.Result) {
	t.Helper()
	if len(vias) == 0 {
		t.Fatalf("no answer: %v", r)
	}
	for _, v := range vias {
		if !strings.HasPrefix(v, "DERP(") {
			t.Errorf("an answer came via %s, want only the relay: %v", v, r)
		}
	}
}
