package integration

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"tailscale.com/tailcfg"

	"github.com/skein-vpn/skein/integration/lab"
)

// What the server tells about real clients: events of their coming, route and going; the map that it says a client has been given,
// against what the client holds; and a doctor who finds nothing.
func TestWatch(t *testing.T) {
	n := newNet(t, lab.EasyNAT, lab.ServerOptions{})
	mac, nas := n.join(n.Mac), n.join(n.NAS, "--advertise-routes="+homeLAN)
	n.enable(t, "homeDS", homeLAN)
	mac.WaitPeer(soon, "homeDS", nil)
	past := n.srv.Skein("events", "--since", "1h")
	for _, want := range []string{"| node.registered | node homeds was registered", "| routes.enabled | node homeds may carry " + homeLAN} {
		if !strings.Contains(past, want) {
			t.Errorf("no %s in\n%s", want, past)
		}
	}

	var given tailcfg.MapResponse
	if err := json.Unmarshal([]byte(n.srv.Skein("debug", "netmap", "homeds")), &given); err != nil {
		t.Fatal(err)
	}
	held := nas.Status()
	if given.Node == nil || given.Node.Key != held.Self.PublicKey || len(given.Peers) != len(held.Peer) {
		t.Errorf("the server says that it has told of %d peers, the client holds %d", len(given.Peers), len(held.Peer))
	}
	for _, p := range given.Peers {
		has := held.Peer[p.Key]
		if has == nil || !slices.Equal(has.TailscaleIPs, []netip.Addr{p.Addresses[0].Addr(), p.Addresses[1].Addr()}) {
			t.Errorf("peer %s: %+v", p.Name, has)
		}
	}
	if out := n.srv.Skein("doctor", "--ntp", ""); !strings.Contains(out, "protocol       clients get through") {
		t.Errorf("the doctor says\n%s", out)
	}
}
