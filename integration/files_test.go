package integration

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tailscale.com/ipn/ipnstate"

	"github.com/skein-vpn/skein/integration/lab"
)

// filesNet is a network under a policy file, with the laptop of junyao in the office, a machine of guest beside it, one of
// stranger in the cloud, and the NAS at home.
func filesNet(t *testing.T, policy string) (n *net, file string, nodes map[string]*lab.Node) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "policy.hujson")
	if err := os.WriteFile(file, []byte(policy), 0o600); err != nil {
		t.Fatal(err)
	}
	n = newNet(t, lab.EasyNAT, lab.ServerOptions{Env: []string{"SKEIN_POLICY_PATH=" + file}})
	nodes = map[string]*lab.Node{"junyao": n.join(n.Mac)}
	for user, host := range map[string]*lab.Host{"guest": n.Office.Host("guest-laptop", "10.8.99.46"), "stranger": n.Cloud} {
		n.srv.Skein("namespaces", "create", user)
		nodes[user] = host.StartTailscaled(lab.NodeOptions{})
		nodes[user].Up(n.srv.URL, "--auth-key="+n.srv.Key(user))
	}
	return n, file, nodes
}

// request sends an HTTP request from a host and returns status and body; status 0 with the reason if there was no answer.
func request(h *lab.Host, method, url, body string) (status int, answer string) {
	ctx, cancel := context.WithTimeout(context.Background(), soon)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return 0, err.Error()
	}
	tr := &http.Transport{DialContext: h.Dial, DisableKeepAlives: true}
	res, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		return 0, err.Error()
	}
	return res.StatusCode, string(b)
}

// A grant lets the machines of one person send files to those of another: not the other way, and nobody else. Without it
// files go between one's own machines only.
func TestTaildropByGrant(t *testing.T) {
	const policy = `{
		"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}],
		"grants": [%s],
	}`
	const grant = `{"src": ["junyao@"], "dst": ["guest@"], "app": {"github.com/skein-vpn/taildrop": [{}]}}`
	n, file, nodes := filesNet(t, fmt.Sprintf(policy, grant))
	mac, guest, stranger := nodes["junyao"], nodes["guest"], nodes["stranger"]
	for _, from := range []*lab.Node{mac, stranger} {
		from.WaitPeer(soon, "guest-laptop", func(p *ipnstate.PeerStatus) bool { return p.Online && len(p.PeerAPIURL) > 0 })
	}
	guest.WaitPeer(soon, "junyao", func(p *ipnstate.PeerStatus) bool { return p.Online && len(p.PeerAPIURL) > 0 })

	letter := filepath.Join(t.TempDir(), "letter.txt")
	if err := os.WriteFile(letter, []byte("for the guest\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	send := func(from *lab.Node, to string) lab.Result { return from.CLI(soon, "file", "cp", letter, to+":") }

	begin := time.Now()
	n.Wait(soon, "the grant lets the file through", func() (bool, string) { r := send(mac, "guest-laptop"); return r.Err == nil, r.String() })
	n.measured("file sent by a grant", time.Since(begin))
	inbox := t.TempDir()
	guest.MustCLI("file", "get", "--conflict=overwrite", inbox)
	if got, err := os.ReadFile(filepath.Join(inbox, "letter.txt")); err != nil || string(got) != "for the guest\n" {
		t.Errorf("the guest received %q, %v", got, err)
	}
	if out := mac.MustCLI("file", "cp", "--targets"); !strings.Contains(out, "guest-laptop") {
		t.Errorf("the guest is not among the targets:\n%s", out)
	}

	for what, r := range map[string]lab.Result{
		"against the grant's direction": send(guest, "junyao"),
		"from a third person":           send(stranger, "guest-laptop"),
	} {
		if r.Err == nil || !strings.Contains(r.Stderr, "owned by a different user") {
			t.Errorf("%s: %v", what, r)
		}
	}
	for _, node := range []*lab.Node{guest, stranger} {
		if out := node.MustCLI("file", "cp", "--targets"); strings.Contains(out, "junyao") || strings.Contains(out, "guest-laptop") {
			t.Errorf("%s is offered targets:\n%s", node.Host.Name(), out)
		}
	}

	// A client that does not ask whether it may is refused by the receiver.
	url := lab.Peer(stranger.Status(), "guest-laptop").PeerAPIURL[0] + "/v0/put/sneaked.txt"
	if status, answer := request(n.Cloud, http.MethodPut, url, "x"); status != http.StatusForbidden {
		t.Errorf("the receiver answers whom has no grant with %d: %s", status, answer)
	}
	if status, answer := request(n.Mac, http.MethodPut, url, "x"); status != http.StatusOK {
		t.Errorf("the receiver answers who may send with %d: %s", status, answer)
	}

	if err := os.WriteFile(file, []byte(fmt.Sprintf(policy, "")), 0o600); err != nil {
		t.Fatal(err)
	}
	n.srv.Hangup()
	n.Wait(soon, "the guest is no target any more", func() (bool, string) { r := send(mac, "guest-laptop"); return r.Err != nil, r.String() })
}

// Grants for Taildrive: one person reads and writes a folder of the NAS, another only reads it, and a third does not see it.
// A changed policy takes effect at once.
func TestTaildriveByGrant(t *testing.T) {
	const policy = `{
		"tagOwners": {"tag:nas": ["junyao@"]},
		"nodeAttrs": [
			{"target": ["tag:nas"], "attr": ["drive:share"]},
			{"target": ["autogroup:member"], "attr": ["drive:access"]},
		],
		"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}],
		"grants": [
			{"src": ["junyao@"], "dst": ["tag:nas"], "app": {"tailscale.com/cap/drive": [{"shares": ["papers"], "access": "rw"}]}},
			{"src": ["guest@"], "dst": ["tag:nas"], "app": {"tailscale.com/cap/drive": [{"shares": ["papers"], "access": "%s"}]}},
		],
	}`
	if _, err := exec.LookPath("su"); err != nil {
		t.Skip("tailscaled serves folders as their user by way of su:", err)
	}
	n, file, nodes := filesNet(t, fmt.Sprintf(policy, "ro"))
	nas := n.join(n.NAS, "--advertise-tags=tag:nas")
	folder := filepath.Join(n.NAS.Dir(), "papers")
	other := filepath.Join(n.NAS.Dir(), "private")
	for _, dir := range []string{folder, other} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "note.txt"), []byte("from home\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	nas.MustCLI("drive", "share", "papers", folder)
	nas.MustCLI("drive", "share", "private", other)

	domain := nas.Status().CurrentTailnet.Name
	at := func(share, name string) string {
		return "http://100.100.100.100:8080/" + domain + "/homeds/" + share + "/" + name
	}
	begin := time.Now()
	for _, user := range []string{"junyao", "guest"} {
		node := nodes[user]
		node.WaitPeer(soon, "homeDS", func(p *ipnstate.PeerStatus) bool { return p.Online })
		node.Ping(soon, nas.IP4())
		n.Wait(soon, user+" reads the folder", func() (bool, string) {
			status, answer := request(node.Host, http.MethodGet, at("papers", "note.txt"), "")
			return status == http.StatusOK && answer == "from home\n", fmt.Sprint(status, answer)
		})
	}
	n.measured("two read a file of a shared folder", time.Since(begin))

	put := func(user, share, name string) int {
		status, _ := request(nodes[user].Host, http.MethodPut, at(share, name), "by "+user)
		return status
	}
	if status := put("junyao", "papers", "reply.txt"); status/100 != 2 {
		t.Errorf("who may write is answered %d", status)
	}
	if got, err := os.ReadFile(filepath.Join(folder, "reply.txt")); err != nil || string(got) != "by junyao" {
		t.Errorf("the NAS has %q, %v", got, err)
	}
	refused := func(what string, status int) {
		t.Helper()
		if status < 400 {
			t.Errorf("%s is answered %d", what, status)
		}
	}
	refused("writing by whom may read only", put("guest", "papers", "graffiti.txt"))
	refused("writing to a folder that no grant names", put("junyao", "private", "x.txt"))
	status, _ := request(nodes["junyao"].Host, http.MethodGet, at("private", "note.txt"), "")
	refused("reading a folder that no grant names", status)
	nodes["stranger"].Ping(soon, nas.IP4())
	status, _ = request(nodes["stranger"].Host, http.MethodGet, at("papers", "note.txt"), "")
	refused("reading without a grant", status)
	if _, err := os.Stat(filepath.Join(folder, "graffiti.txt")); err == nil {
		t.Error("whom may read only has written")
	}
	// The NAS itself refuses, not only the client's view of who shares.
	nodes["stranger"].WaitPeer(soon, "homeDS", func(p *ipnstate.PeerStatus) bool { return len(p.PeerAPIURL) > 0 })
	direct := lab.Peer(nodes["stranger"].Status(), "homeDS").PeerAPIURL[0] + "/v0/drive/papers/note.txt"
	if status, answer := request(n.Cloud, http.MethodGet, direct, ""); status != http.StatusForbidden {
		t.Errorf("the NAS itself answers whom has no grant with %d: %s", status, answer)
	}

	if err := os.WriteFile(file, []byte(fmt.Sprintf(policy, "rw")), 0o600); err != nil {
		t.Fatal(err)
	}
	n.srv.Hangup()
	n.Wait(soon, "the guest may write", func() (bool, string) { s := put("guest", "papers", "thanks.txt"); return s/100 == 2, fmt.Sprint(s) })
}
