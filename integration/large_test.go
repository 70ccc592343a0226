package integration

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/skein-vpn/skein/integration/lab"
	"tailscale.com/ipn/ipnstate"
)

// Real clients in a tailnet of 2,000 simulated nodes: they know all of them, stay on line while those roam and come back as a
// herd, and notice when they are gone.
func TestTwoThousandNodes(t *testing.T) {
	const nodes = 2000
	s := lab.NewSeed(t, lab.EasyNAT) // not beside another scenario: it takes the whole machine for a while
	n := &net{Seed: s, srv: s.ServerHost.StartServer(lab.ServerOptions{Env: []string{"SKEIN_LIMITS_REGISTRATIONS_PER_MINUTE=0"}})}
	n.srv.Skein("namespaces", "create", "junyao")
	n.srv.Skein("namespaces", "create", "sim")
	mac, nas := n.join(n.Mac), n.join(n.NAS)
	alone := mac.Memory()

	begin := time.Now()
	sim := s.ServerHost.StartSimulator("-url", "http://127.0.0.1:8080", "-key", n.srv.Key("sim", "--reusable"), "-n", fmt.Sprint(nodes),
		"-c", "64", "-scenario", "join,idle,change,herd", "-idle", "15s", "-changes", "5", "-timeout", "5m")
	said := func(what string) {
		t.Helper()
		done := regexp.MustCompile(`(?m)^` + what + `: `)
		s.Wait(10*time.Minute, "the simulator is done with "+what, func() (bool, string) {
			return done.MatchString(sim.Log()) || !sim.Running(), sim.Tail(3)
		})
		if log := sim.Log(); !done.MatchString(log) || strings.Contains(log, "FAILED") || strings.Contains(log, "fault: ") {
			t.Fatalf("the simulator:\n%s", sim.Tail(20))
		}
	}
	healthy := func(when string) {
		t.Helper()
		mac.WaitFor(patient, "all peers are there and online "+when, func(st *ipnstate.Status) bool {
			return st.BackendState == "Running" && len(st.Peer) == nodes+1 && onlinePeers(st) == nodes+1
		})
		mac.Ping(soon, nas.IP4())
	}
	said("join")
	n.measured("2,000 nodes join", time.Since(begin))
	healthy("after the join")
	n.measured("… until a real client sees all", time.Since(begin))
	complete(t, mac, nodes)
	n.Logf("measured: memory of tailscaled: %d MB with two nodes, %d MB with 2,002; of the server: %d MB",
		alone>>20, mac.Memory()>>20, n.srv.Memory()>>20)

	said("endpoint change")
	said("herd")
	healthy("after the herd")

	s.Wait(patient, "the simulator ends", func() (bool, string) { return !sim.Running(), sim.Tail(3) })
	begin = time.Now()
	mac.WaitFor(patient, "the simulated nodes are offline", func(st *ipnstate.Status) bool {
		return st.BackendState == "Running" && len(st.Peer) == nodes+1 && onlinePeers(st) == 1
	})
	n.measured("2,000 nodes gone", time.Since(begin))
	nas.Ping(soon, mac.IP4())
}

func onlinePeers(st *ipnstate.Status) (n int) {
	for _, p := range st.Peer {
		if p.Online {
			n++
		}
	}
	return n
}

// complete checks that the command line tells everything about each simulated node.
func complete(t *testing.T, node *lab.Node, nodes int) {
	t.Helper()
	var st ipnstate.Status
	if err := json.Unmarshal([]byte(node.MustCLI("status", "--json")), &st); err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	faulty := 0
	for _, p := range st.Peer {
		if p.HostName == "" || p.DNSName == "" || len(p.TailscaleIPs) != 2 || p.OS == "" || p.UserID == 0 {
			if faulty++; faulty == 1 {
				t.Errorf("an incomplete peer: %+v", p)
			}
		}
		names[p.HostName] = true
	}
	// The client's status names the users of the last whole map only (ipnlocal.LocalBackend.populatePeerStatusLocked); whois
	// knows those that came since.
	if who := node.MustCLI("whois", st.Peer[st.Peers()[0]].TailscaleIPs[0].String()); !strings.Contains(who, "sim") && !strings.Contains(who, "junyao") {
		t.Errorf("whois knows no user of a peer:\n%s", who)
	}
	if faulty > 0 {
		t.Errorf("%d of %d peers are incomplete", faulty, len(st.Peer))
	}
	for i := range nodes {
		if name := fmt.Sprintf("sim-%d", i+1); !names[name] {
			t.Errorf("tailscale status does not list %s", name)
		}
	}
}
