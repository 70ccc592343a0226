package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/skein-vpn/skein/integration/lab"
)

// sshNet is a network under a policy, with the laptop, the NAS that lets SSH sessions in, and somebody else's machine.
func sshNet(t *testing.T, rules string) (n *net, file string, mac, nas, guest *lab.Node) {
	t.Helper()
	if _, err := exec.LookPath("ssh"); err != nil {
		t.Skip("tailscale ssh needs the program ssh:", err)
	}
	file = filepath.Join(t.TempDir(), "policy.hujson")
	writeSSHPolicy(t, file, rules)
	n = newNet(t, lab.EasyNAT, lab.ServerOptions{Env: []string{"SKEIN_POLICY_PATH=" + file}})
	n.srv.Skein("namespaces", "create", "guest")
	mac, nas = n.join(n.Mac), n.join(n.NAS, "--ssh", "--advertise-tags=tag:nas")
	guest = n.Cloud.StartTailscaled(lab.NodeOptions{})
	guest.Up(n.srv.URL, "--auth-key="+n.srv.Key("guest"))
	for _, node := range []*lab.Node{mac, guest} {
		node.WaitPeer(soon, "homeDS", nil)
		node.Ping(soon, nas.IP4())
	}
	return n, file, mac, nas, guest
}

func writeSSHPolicy(t *testing.T, file, rules string) {
	t.Helper()
	text := `{
		"tagOwners": {"tag:nas": ["junyao@"]},
		"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}],
		"ssh": [` + rules + `],
	}`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// A rule that accepts lets its sources in as its users, and nobody else.
func TestSSHAccept(t *testing.T) {
	n, _, mac, _, guest := sshNet(t, `{"action": "accept", "src": ["junyao@"], "dst": ["tag:nas"], "users": ["root"]}`)
	begin := time.Now()
	if out := mac.MustCLI("ssh", "root@homeds", "echo", "$USER at $(hostname)"); strings.TrimSpace(out) != "root at homeDS" {
		t.Errorf("the session printed %q", out)
	}
	n.measured("session that a rule accepts, from start to end", time.Since(begin))
	for what, r := range map[string]lab.Result{
		"as another user":     mac.CLI(soon, "ssh", "nobody@homeds", "true"),
		"from another's node": guest.CLI(soon, "ssh", "root@homeds", "true"),
	} {
		if r.Err == nil || !strings.Contains(r.Stderr, "tailnet policy does not permit") {
			t.Errorf("%s: %v", what, r)
		}
	}
}

var sshCheckURL = regexp.MustCompile(`(http://\S+)/ssh/(\S+)`)

// held waits until an SSH session has printed what to do, and returns the id under which it waits.
func held(n *net, p *lab.Process) (id string) {
	n.Wait(soon, "the session prints an address", func() (bool, string) {
		m := sshCheckURL.FindStringSubmatch(p.Log())
		if m != nil {
			id = strings.TrimSpace(m[2])
		}
		return m != nil, p.Log()
	})
	return id
}

// A rule that checks holds sessions until a person confirms them, over restarts of the server too; what was confirmed
// holds for the period, over restarts too; and what the policy has taken away meanwhile is not given.
func TestSSHCheck(t *testing.T) {
	const rule = `{"action": "check", "checkPeriod": "1h", "src": ["autogroup:member"], "dst": ["tag:nas"], "users": ["root"]}`
	n, file, mac, _, guest := sshNet(t, rule)
	begin := time.Now()
	p := mac.StartCLI("ssh", "root@homeds", "echo", "in as $(id -un)")
	id := held(n, p)
	n.measured("session is held and has printed the address", time.Since(begin))
	if !strings.Contains(p.Log(), "skein auth approve "+id) {
		t.Errorf("the command is not in what the session printed:\n%s", p.Log())
	}
	page, err := n.Cloud.Get(soon, n.srv.URL+"/ssh/"+id)
	if err != nil || !strings.Contains(page, "skein auth approve "+id) || !strings.Contains(page, "homeds") {
		t.Errorf("the page is %q, %v", page, err)
	}
	_, rows := n.srv.Table("auth", "list")
	if len(rows) != 1 || rows[0]["ID"] != id || rows[0]["To"] != "homeds" || rows[0]["User"] != "root" || rows[0]["Namespace"] != "junyao" {
		t.Errorf("auth list says %v", rows)
	}
	if !p.Running() || strings.Contains(p.Log(), "in as root") {
		t.Fatalf("the session was not held:\n%s", p.Log())
	}
	begin = time.Now()
	n.srv.Skein("auth", "approve", id)
	if err := p.WaitEnd(soon); err != nil || !strings.Contains(p.Log(), "in as root") {
		t.Fatalf("after the approval: %v\n%s", err, p.Log())
	}
	n.measured("from the approval to the end of the session", time.Since(begin))

	straight := func(when string) {
		t.Helper()
		begin := time.Now()
		if r := mac.CLI(soon, "ssh", "root@homeds", "true"); r.Err != nil || strings.Contains(r.Stderr, "auth approve") {
			t.Fatalf("%s: %v", when, r)
		}
		n.measured("session "+when, time.Since(begin))
	}
	straight("within the period")
	n.srv.Kill()
	n.srv.StartAgain()
	straight("within the period, after the server was killed and started again")

	// Somebody else has to ask for himself; his question survives the restart, and he is denied.
	p = guest.StartCLI("ssh", "root@homeds", "echo", "in as $(id -un)")
	id = held(n, p)
	n.srv.Kill()
	n.srv.StartAgain()
	begin = time.Now()
	n.srv.Skein("auth", "deny", id)
	if err := p.WaitEnd(patient); err == nil || !strings.Contains(p.Log(), "was denied") {
		t.Errorf("after the denial: %v\n%s", err, p.Log())
	}
	n.measured("from the denial, after a restart, to the end of the session", time.Since(begin))

	p = guest.StartCLI("ssh", "root@homeds", "echo", "in as $(id -un)")
	held(n, p)
	writeSSHPolicy(t, file, strings.Replace(rule, "autogroup:member", "junyao@", 1))
	n.srv.Hangup()
	begin = time.Now()
	if err := p.WaitEnd(soon); err == nil || strings.Contains(p.Log(), "in as root") {
		t.Errorf("the policy has changed: %v\n%s", err, p.Log())
	}
	n.measured("from the change of the policy to the end of a session that waited", time.Since(begin))
}
