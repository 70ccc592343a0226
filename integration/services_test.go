package integration

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skein-vpn/skein/api"
	"github.com/skein-vpn/skein/integration/lab"
)

// service is what the server says of a service.
func (n *net) service(t *testing.T, name string) *api.Service {
	t.Helper()
	var s api.Service
	if err := json.Unmarshal([]byte(n.srv.Skein("services", "get", name, "-o", "json")), &s); err != nil {
		t.Fatal(err)
	}
	return &s
}

// waitHost waits until a node is a host of the service as cond says.
func (n *net) waitHost(t *testing.T, service, node string, cond func(*api.ServiceHost) bool) {
	t.Helper()
	n.Wait(soon, node+" hosts "+service, func() (bool, string) {
		s := n.service(t, service)
		for _, h := range s.Hosts {
			if h.NodeName == node && cond(h) {
				return true, ""
			}
		}
		b, _ := json.Marshal(s.Hosts)
		return false, string(b)
	})
}

// answers waits until what listens at a service's address is that of a host.
func (n *net) answers(t *testing.T, from *lab.Host, addr netip.Addr, host string) {
	t.Helper()
	url := "http://" + netip.AddrPortFrom(addr, 80).String() + "/"
	n.Wait(patient, url+" is answered by "+host, func() (bool, string) {
		body, err := from.Get(3*time.Second, url)
		return err == nil && strings.HasPrefix(body, "hello from "+host), fmt.Sprint(body, err)
	})
}

// Two nodes host a service with "tailscale serve": others reach it by its name and its addresses, the other host takes over from one
// that fails, and who may not use it neither sees it nor reaches it.
func TestServices(t *testing.T) {
	file := filepath.Join(t.TempDir(), "policy.hujson")
	const policy = `{
		"groups":    {"group:home": ["junyao@"]},
		"tagOwners": {"tag:web": ["junyao@"]},
		"autoApprovers": {"services": {"svc:web": ["tag:web"]}},
		"acls": [{"action": "accept", "src": ["group:home"], "dst": ["svc:web:80", "svc:wiki:80"]}],
	}`
	if err := os.WriteFile(file, []byte(policy), 0o600); err != nil {
		t.Fatal(err)
	}
	n := newNet(t, lab.EasyNAT, lab.ServerOptions{Env: []string{"SKEIN_POLICY_PATH=" + file}})
	n.srv.Skein("namespaces", "create", "guest")
	n.join(n.Mac)
	nas := n.join(n.NAS, "--advertise-tags=tag:web")
	vm := n.join(n.Cloud, "--advertise-tags=tag:web")
	guestHost := n.Office.Host("guest-laptop", "10.8.99.46")
	guest := guestHost.StartTailscaled(lab.NodeOptions{})
	guest.Up(n.srv.URL, "--auth-key="+n.srv.Key("guest"))
	nasName, vmName := strings.ToLower(n.NAS.Name()), strings.ToLower(n.Cloud.Name())

	n.NAS.ServeHTTP("127.0.0.1:8080", nil)
	n.Cloud.ServeHTTP("127.0.0.1:8080", nil)
	serve := func(node *lab.Node, service string) {
		t.Helper()
		node.MustCLI("serve", "--service=svc:"+service, "--tcp=80", "tcp://127.0.0.1:8080")
	}
	// The node offers what there is no service for yet; making it is all it takes then.
	serve(nas, "web")
	begin := time.Now()
	n.srv.Skein("services", "set", "web", "--ports", "tcp:80")
	web := n.service(t, "web")
	v4, v6 := netip.MustParseAddr(web.Addresses[0]), netip.MustParseAddr(web.Addresses[1])
	n.waitHost(t, "web", nasName, func(h *api.ServiceHost) bool { return h.Approval == "auto" && h.Ready && h.Active && h.Carries })
	n.answers(t, n.Mac, v4, n.NAS.Name())
	n.measured("service answers after it was made", time.Since(begin))
	n.answers(t, n.Mac, v6, n.NAS.Name())
	resolves(t, n, "web", v4)
	resolves(t, n, web.DNSName, v6)

	if _, err := guestHost.Get(3*time.Second, "http://"+v4.String()+"/"); err == nil {
		t.Error("the guest reaches the service")
	}
	if addrs, err := guestHost.Lookup(web.DNSName); err == nil {
		t.Errorf("the guest is told the address of the service: %v", addrs)
	}
	if _, err := n.Mac.Get(3*time.Second, "http://"+nas.IP4().String()+"/"); err == nil {
		t.Error("who may use the service reaches its host")
	}

	// A second host stands by, and takes over.
	serve(vm, "web")
	n.waitHost(t, "web", vmName, func(h *api.ServiceHost) bool { return h.Approval == "auto" && h.Active && !h.Carries })
	n.answers(t, n.Mac, v4, n.NAS.Name())
	begin = time.Now()
	nas.Kill()
	n.answers(t, n.Mac, v4, n.Cloud.Name())
	n.measured("service answers after kill -9 of its host", time.Since(begin))
	nas.StartAgain()
	nas.WaitRunning(patient)
	n.waitHost(t, "web", nasName, func(h *api.ServiceHost) bool { return h.Online && h.Offered && h.Active && !h.Carries })
	n.answers(t, n.Mac, v4, n.Cloud.Name())

	// One that is drained gives way at once.
	begin = time.Now()
	vm.MustCLI("serve", "drain", "svc:web")
	n.answers(t, n.Mac, v4, n.NAS.Name())
	n.measured("service answers from the other host after drain", time.Since(begin))

	// Back again it stands by, until the other one is cut off.
	vm.MustCLI("serve", "advertise", "svc:web")
	n.waitHost(t, "web", vmName, func(h *api.ServiceHost) bool { return h.Active && !h.Carries })
	n.answers(t, n.Mac, v4, n.NAS.Name())
	begin = time.Now()
	n.NAS.CutCable()
	n.answers(t, n.Mac, v4, n.Cloud.Name())
	took := time.Since(begin)
	n.measured("service answers after a cut cable", took)
	if took > 15*time.Second {
		t.Errorf("it took %v until the other host had taken over", took)
	}
	n.NAS.PlugCable()

	// Where the policy does not, an administrator decides; and may take it back.
	n.srv.Skein("services", "set", "wiki", "--ports", "tcp:80")
	wiki := netip.MustParseAddr(n.service(t, "wiki").Addresses[0])
	serve(vm, "wiki")
	n.waitHost(t, "wiki", vmName, func(h *api.ServiceHost) bool { return h.Offered && h.Approval == "" && !h.Carries })
	if _, err := n.Mac.Get(3*time.Second, "http://"+wiki.String()+"/"); err == nil {
		t.Error("a host that nobody has approved is reached")
	}
	n.srv.Skein("services", "approve", "wiki", "-i", n.id(t, n.Cloud.Name()))
	n.answers(t, n.Mac, wiki, n.Cloud.Name())
	resolves(t, n, "wiki", wiki)
	n.srv.Skein("services", "refuse", "wiki", "-i", n.id(t, n.Cloud.Name()))
	n.Wait(soon, "the wiki answers no more", func() (bool, string) {
		body, err := n.Mac.Get(3*time.Second, "http://"+wiki.String()+"/")
		return err != nil, body
	})

	n.srv.Skein("services", "delete", "web", "--yes")
	n.Wait(soon, "the service answers no more, and has no name", func() (bool, string) {
		body, err := n.Mac.Get(3*time.Second, "http://"+v4.String()+"/")
		addrs, err2 := n.Mac.Lookup(web.DNSName)
		return err != nil && err2 != nil, fmt.Sprint(body, addrs)
	})
}

// A router whose system forwards no packets says so, and the audit log, which webhooks are made of, has it.
func TestForwardingOff(t *testing.T) {
	n := newNet(t, lab.EasyNAT, lab.ServerOptions{})
	n.join(n.Cloud, "--advertise-exit-node")
	noted := func(action string) {
		t.Helper()
		n.Wait(patient, action+" is in the audit log", func() (bool, string) {
			out := n.srv.Skein("audit", "list", "--action", action, "-o", "json")
			return strings.Contains(out, strings.ToLower(n.Cloud.Name())), out
		})
	}
	noted("node.ip_forwarding_off")
}
