package integration

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skein-vpn/skein/integration/lab"
)

// Names of nodes resolve, asked of the client and by the system's resolver, short and in full, and
// follow the host name of the machine, or what an administrator says.
func TestMagicDNS(t *testing.T) {
	file := filepath.Join(t.TempDir(), "records.json")
	n := newNet(t, lab.EasyNAT, lab.ServerOptions{Env: []string{"SKEIN_DNS_EXTRA_RECORDS_PATH=" + file}})
	mac, nas := n.join(n.Mac), n.join(n.NAS)
	mac.WaitPeer(soon, "homeDS", nil)
	want := nas.IP4()

	out := mac.MustCLI("dns", "query", "homeds.skein.internal")
	if !strings.Contains(out, want.String()) {
		t.Errorf("tailscale dns query does not say %v:\n%s", want, out)
	}
	for _, name := range []string{"homeds", "homeds.skein.internal", "homeds.skein.internal."} {
		resolves(t, n, name, want)
	}
	n.Lab.Name("www.example.com", n.Cloud.Addr())
	resolves(t, n, "www.example.com", n.Cloud.Addr())

	nas.MustCLI("set", "--hostname=Joe's Mac mini")
	resolves(t, n, "joes-mac-mini", want)
	nas.MustCLI("set", "--hostname=我的电脑")
	resolves(t, n, "node", want)
	nas.MustCLI("set", "--hostname=homeDS")
	resolves(t, n, "homeds", want)

	begin := time.Now()
	n.srv.Skein("nodes", "rename", "-i", n.id(t, "homeDS"), "nas")
	resolves(t, n, "nas", want)
	n.measured("new name resolves after nodes rename", time.Since(begin))
	if addrs, err := n.Mac.Lookup("homeds"); err == nil {
		t.Errorf("the old name still resolves to %v", addrs)
	}

	printer := netip.MustParseAddr("192.0.2.7")
	n.srv.Skein("dns", "records", "add", "printer.lan.example", printer.String())
	resolves(t, n, "printer.lan.example", printer)
	n.srv.Skein("dns", "set", "--search", "lan.example")
	resolves(t, n, "printer", printer)
	camera := netip.MustParseAddr("192.0.2.8")
	if err := os.WriteFile(file, []byte(`[{"name": "camera.lan.example", "type": "A", "value": "192.0.2.8"}]`), 0o600); err != nil {
		t.Fatal(err)
	}
	resolves(t, n, "camera", camera)
	n.srv.Skein("dns", "set", "--magic-dns=false")
	n.Wait(soon, "nas resolves no more", func() (bool, string) {
		addrs, err := n.Mac.Lookup("nas")
		return err != nil, strings.Join(texts(addrs), " ")
	})
	n.srv.Skein("dns", "reset")
	resolves(t, n, "nas", want)
}

func texts(addrs []netip.Addr) (out []string) {
	for _, a := range addrs {
		out = append(out, a.String())
	}
	return out
}

func resolves(t *testing.T, n *net, name string, want netip.Addr) {
	t.Helper()
	n.Wait(soon, name+" resolves to "+want.String(), func() (bool, string) {
		addrs, err := n.Mac.Lookup(name)
		if err != nil {
			return false, err.Error()
		}
		return slices.Contains(addrs, want), addrs[0].String()
	})
}

// A file goes from one node of a user to another.
func TestTaildrop(t *testing.T) {
	n := newNet(t, lab.EasyNAT, lab.ServerOptions{})
	mac, nas := n.join(n.Mac), n.join(n.NAS)
	mac.WaitPeer(soon, "homeDS", nil)
	nas.WaitPeer(soon, "junyao", nil)
	content := bytes.Repeat([]byte("skein "), 50_000)
	src := filepath.Join(n.Mac.Dir(), "holiday.txt")
	if err := os.WriteFile(src, content, 0o600); err != nil {
		t.Fatal(err)
	}
	n.Wait(soon, "homeDS is a target for files", func() (bool, string) {
		r := mac.CLI(soon, "file", "cp", "--targets")
		return r.Err == nil && strings.Contains(r.Stdout, nas.IP4().String()), r.String()
	})
	mac.MustCLI("file", "cp", src, "homeds:")
	inbox := filepath.Join(n.NAS.Dir(), "inbox")
	if err := os.Mkdir(inbox, 0o755); err != nil {
		t.Fatal(err)
	}
	nas.MustCLI("file", "get", "--wait", inbox)
	got, err := os.ReadFile(filepath.Join(inbox, "holiday.txt"))
	if err != nil || !bytes.Equal(got, content) {
		t.Errorf("received %d bytes of %d: %v", len(got), len(content), err)
	}
}
