package integration

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/skein-vpn/skein/integration/lab"
	"tailscale.com/ipn/ipnstate"
)

// headscales are the versions that are moved over from. SKEIN_LAB_HEADSCALE names others, such as "v0.26.1 v0.27.1 v0.28.0"; each is built
// from its module, which takes minutes the first time.
func headscales() []string {
	if s := os.Getenv("SKEIN_LAB_HEADSCALE"); s != "" {
		return strings.Fields(s)
	}
	return []string{"v0.29.1"}
}

// Real clients join a real headscale. Headscale stops, Skein takes over and starts under the same URL: the clients go on without
// a login, with their addresses, names and routes, and what headscale has handed out stays good.
func TestTakeOverFromHeadscale(t *testing.T) {
	for _, version := range headscales() {
		t.Run(version, func(t *testing.T) { takeOver(t, version) })
	}
}

func takeOver(t *testing.T, version string) {
	l := lab.New(t)
	host, laptop, nas := l.Cloud("server"), l.Cloud("Laptop"), l.Cloud("NAS")
	hs := host.StartHeadscale(version)
	hs.CLI("users", "create", "anna")
	authKey := hs.CLI("preauthkeys", "create", "--user", "1", "--reusable", "--expiration", "24h")
	apiKey := hs.CLI("apikeys", "create", "--expiration", "24h")
	trust := lab.NodeOptions{Env: []string{"SSL_CERT_FILE=" + hs.Cert}}
	a, b := laptop.StartTailscaled(trust), nas.StartTailscaled(trust)
	a.Up(hs.URL, "--auth-key="+authKey, "--accept-routes")
	b.Up(hs.URL, "--auth-key="+authKey, "--advertise-routes="+homeLAN)
	hs.CLI("nodes", "rename", "--identifier", "1", "my-laptop")
	hs.CLI("nodes", "approve-routes", "--identifier", "2", "--routes", homeLAN)
	a.WaitPeer(patient, "NAS", carries(homeLAN))
	a.WaitFor(patient, "its new name", func(st *ipnstate.Status) bool { return strings.HasPrefix(st.Self.DNSName, "my-laptop.") })
	a.Ping(soon, b.IP4())
	before, logged := [2]*ipnstate.Status{a.Status(), b.Status()}, [2]int{len(a.Log()), len(b.Log())}

	beat := laptop.Beat(b.IP4())
	stopped := time.Now()
	if !hs.Stop(30 * time.Second) {
		t.Log("headscale did not end by itself")
	}
	t.Log(host.Skein("import", "headscale", "--config", hs.Config, "--data-dir", host.DataDir()))
	srv := host.StartServer(lab.ServerOptions{URL: hs.URL, Args: []string{"-c", host.DataDir() + "/config.yaml"}})
	for _, name := range []string{"Laptop", "NAS"} {
		srv.WaitNode(patient, name, "online", func(r lab.Row) bool { return r != nil && r["Online"] == "online" })
	}
	l.Logf("from the end of headscale until both nodes are online at Skein: %v", time.Since(stopped))

	// A change that only Skein can have told shows that the clients listen to it.
	srv.Skein("nodes", "rename", "-i", "2", "storage")
	a.WaitPeer(patient, "NAS", func(p *ipnstate.PeerStatus) bool { return strings.HasPrefix(p.DNSName, "storage.") })
	a.WaitPeer(patient, "NAS", carries(homeLAN))
	for i, n := range []*lab.Node{a, b} {
		st := n.Status()
		if st.BackendState != "Running" || st.AuthURL != "" {
			t.Errorf("%s", lab.Brief(st))
		}
		was, is := before[i].Self, st.Self
		if was.ID != is.ID || was.PublicKey != is.PublicKey || was.UserID != is.UserID || was.TailscaleIPs[0] != is.TailscaleIPs[0] || was.TailscaleIPs[1] != is.TailscaleIPs[1] {
			t.Errorf("the node was\n%+v\nand is\n%+v", was, is)
		}
		if log := n.Log()[logged[i]:]; strings.Contains(log, "NeedsLogin") || strings.Contains(log, "TryLogin") {
			t.Errorf("the client wanted a login:\n%s", n.Tail(40))
		}
	}
	if name := a.Status().Self.DNSName; name != before[0].Self.DNSName {
		t.Errorf("the laptop was called %s and is called %s", before[0].Self.DNSName, name)
	}
	sent, answered, gap := beat.Stop()
	l.Logf("pings between the nodes meanwhile: %d of %d answered, longest gap %v", answered, sent, gap)
	if gap > hiccup {
		t.Errorf("traffic between the nodes stopped for %v", gap)
	}

	// Restarted, a client comes up by itself; a new one joins with headscale's key; a script goes on with headscale's API key.
	a.Stop(10 * time.Second)
	a.StartAgain()
	a.WaitRunning(patient)
	c := l.Cloud("new").StartTailscaled(trust)
	c.Up(hs.URL, "--auth-key="+authKey)
	a.WaitPeer(patient, "new", nil)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	r := laptop.Command(ctx, "curl", "-sS", "--cacert", hs.Cert, "-m", "20", "-H", "Authorization: Bearer "+apiKey, hs.URL+"/api/v1/node")
	if r.Err != nil || !strings.Contains(r.Stdout, `"my-laptop"`) {
		t.Errorf("headscale's API key: %v", r)
	}
}
