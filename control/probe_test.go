package control

import (
	"net/netip"
	"testing"
	"time"

	"tailscale.com/tailcfg"

	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// After a start of the server a router that has not come back is presumed well: its stand-in, which is back and answers,
// must not take over before the grace time is over.
func TestProbeLeavesPresumedRoutersAlone(t *testing.T) {
	lan := netip.MustParsePrefix("192.168.199.0/24")
	quick := func(o *Options) {
		o.Probe = ProbeOptions{Every: 5 * time.Millisecond, Fail: 20 * time.Millisecond}
		o.OfflineAfter = time.Hour
	}
	ts := newServer(t, func(o *Options) { quick(o); o.Probe.Fail = time.Hour })
	first, second := ts.joined("first"), ts.joined("second")
	for _, c := range []*client{first, second} {
		ts.change(c.id(), func(n *tailnet.Node) {
			n.Hostinfo = &tailcfg.Hostinfo{Hostname: c.host, RoutableIPs: []netip.Prefix{lan}}
			n.ApprovedRoutes = []netip.Prefix{lan}
		})
		c.stream().first()
		ts.until(c.host+" is online", func(sn *state.Snapshot) bool { return sn.Node(c.id()).Online })
	}
	if got := ts.state.Snapshot().Routes.Primary(lan); got != first.id() {
		t.Fatalf("the primary is node %d", got)
	}
	ts.stop()
	ts.start(quick)
	second.dial(0)
	s := second.stream()
	s.first()
	probes := 0
	for m := range s.msgs { // silent, so that it fails: proof that the prober has had its time
		if m.PingRequest != nil {
			probes++
		}
		if probes > 10 {
			break
		}
	}
	ts.until("the silent stand-in fails", func(sn *state.Snapshot) bool { return sn.Node(second.id()).Failing })
	sn := ts.state.Snapshot()
	if n := sn.Node(first.id()); n.Failing || !n.Online {
		t.Errorf("the router that has not come back: failing %v, online %v; want it presumed as it was", n.Failing, n.Online)
	}
	if got := sn.Routes.Primary(lan); got != first.id() {
		t.Errorf("the primary is node %d, want still %d", got, first.id())
	}
}
