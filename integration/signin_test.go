package integration

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/skein-vpn/skein/integration/lab"
	"github.com/skein-vpn/skein/integration/oidc"
)

// signInNet is the network with an identity provider on the host in the cloud.
type signInNet struct {
	*lab.Seed
	srv      *lab.Server
	provider *lab.Process
	chromium string
	node     string
}

func newSignInNet(t *testing.T, config string) *signInNet {
	t.Helper()
	lab.Need(t)
	chromium := oidc.NeedBrowser(t)
	node, err := exec.LookPath("node")
	if err != nil {
		t.Fatal(err)
	}
	t.Parallel()
	n := &signInNet{Seed: lab.NewSeed(t, lab.EasyNAT), chromium: chromium, node: node}
	server := fmt.Sprintf("http://%s:8080", n.ServerHost.Addr())
	n.provider = n.Cloud.StartProcess("provider", node, oidc.Args(oidc.Options{
		Listen: n.Cloud.Addr().String() + ":9000", ClientID: "skein", ClientSecret: "s3cret", RedirectURIs: []string{server + "/oidc/callback"}, Stay: true,
	})...)
	waitProvider(n.Lab, n.provider)
	n.srv = n.ServerHost.StartServer(lab.ServerOptions{Config: fmt.Sprintf(`
oidc:
  name: Our company
  issuer: http://%s:9000/
  client_id: skein
  client_secret: s3cret
  scope: [openid, email, profile, groups]
%s`, n.Cloud.Addr(), config)})
	return n
}

// waitProvider waits until the provider takes requests. A server that starts before it tries again by itself, but its pages say for a
// while that one cannot sign in there.
func waitProvider(l *lab.Lab, provider *lab.Process) {
	l.Wait(patient, "the provider is ready", func() (bool, string) {
		text := provider.Log()
		return strings.Contains(text, "ready "), text
	})
}

// visit is a person at the host who opens the address that a client has printed.
func (n *signInNet) visit(t *testing.T, h *lab.Host, v oidc.Visit) *oidc.Seen {
	t.Helper()
	v.Chromium, v.Provider, v.Shots = n.chromium, cmp.Or(v.Provider, "Our company"), h.Dir()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	r := h.Command(ctx, n.node, oidc.VisitArgs(v)...)
	var s oidc.Seen
	if err := json.Unmarshal([]byte(r.Stdout), &s); err != nil {
		t.Fatalf("%v\n%v", err, r)
	}
	if s.Error != "" {
		t.Fatalf("%s\nthe last page: %+v\nthe server:\n%s\nthe provider:\n%s", s.Error, s.Pages[len(s.Pages)-1], n.srv.Tail(20), n.provider.Tail(20))
	}
	if len(s.Faults) > 0 || len(s.Cookies) > 0 && v.Steps == "" {
		t.Errorf("the browser complains: %q; cookies left: %v", s.Faults, s.Cookies)
	}
	return &s
}

// A person runs tailscale up, signs in with the company's provider in a browser, and is asked before the machine is added; the
// client comes up by itself. The policy knows the group that the provider says the person is in.
func TestSignInWithProvider(t *testing.T) {
	n := newSignInNet(t, "  expiry: 30d\n")
	n.srv.Skein("namespaces", "create", "servers")
	nas := n.NAS.StartTailscaled(lab.NodeOptions{})
	nas.Up(n.srv.URL, "--auth-key="+n.srv.Key("servers"))

	mac := n.Mac.StartTailscaled(lab.NodeOptions{})
	lg := mac.Login(n.srv.URL)
	s := n.visit(t, n.Mac, oidc.Visit{URL: lg.URL, Name: "anna"})
	lg.Wait(patient)
	mac.WaitRunning(soon)
	for i, want := range [][]string{
		{"junyao", "Do you know this machine?", "Continue with Our company"},
		{"Add this machine to Anna?", "junyao", "Add it only if you have just run tailscale up on it"},
		{"was added"},
	} {
		for _, w := range want {
			if !strings.Contains(s.Pages[i].Text, w) {
				t.Errorf("the page %s does not say %q:\n%s", s.Pages[i].Name, w, s.Pages[i].Text)
			}
		}
	}
	if st := mac.Status(); st.User[st.Self.UserID].LoginName != "anna@example.com" || st.User[st.Self.UserID].DisplayName != "Anna" ||
		st.User[st.Self.UserID].ProfilePicURL != "https://example.com/anna.png" {
		t.Errorf("the client is %+v", st.User[st.Self.UserID])
	}
	if st := mac.Status(); st.Self.KeyExpiry == nil || time.Until(*st.Self.KeyExpiry) > 31*24*time.Hour || time.Until(*st.Self.KeyExpiry) < 29*24*time.Hour {
		t.Errorf("the key ends at %v, want 30 days from now (oidc.expiry)", st.Self.KeyExpiry)
	}
	if row := n.srv.Node("junyao"); row == nil || !strings.Contains(fmt.Sprint(row), "anna") {
		t.Errorf("listed as %v", row)
	}
	mac.Ping(soon, nas.IP4())

	// A second machine of the same person, on a narrow screen and without scripts: the same user.
	cloud := n.Cloud.StartTailscaled(lab.NodeOptions{})
	lg = cloud.Login(n.srv.URL)
	n.visit(t, n.Cloud, oidc.Visit{URL: lg.URL, Name: "anna", Width: 390, NoScript: true})
	lg.Wait(patient)
	cloud.WaitRunning(soon)
	_, users := n.srv.Table("namespaces", "list")
	if len(users) != 2 {
		t.Errorf("the users are %v", users)
	}
}

// Nobody gets in whom the configuration turns away, or who does not answer the question; nothing is registered.
func TestSignInRefused(t *testing.T) {
	n := newSignInNet(t, "  allowed_groups: [managers]\n")
	mac := n.Mac.StartTailscaled(lab.NodeOptions{})
	lg := mac.Login(n.srv.URL)
	s := n.visit(t, n.Mac, oidc.Visit{URL: lg.URL, Name: "eve", Steps: "signin"})
	if last := s.Pages[len(s.Pages)-1]; !strings.Contains(last.Text, "none of your groups at Our company is allowed") {
		t.Errorf("the page says:\n%s", last.Text)
	}
	if row := n.srv.Node("junyao"); row != nil {
		t.Errorf("registered: %v", row)
	}
	if st := mac.Status(); st.BackendState == "Running" {
		t.Error("the client is up")
	}
}

// The walk-through of docs/sign-in.md, as it stands there: the provider's and the server's command line, and the client.
func TestSignInDoc(t *testing.T) {
	lab.Need(t)
	chromium := oidc.NeedBrowser(t)
	text, err := os.ReadFile("../docs/sign-in.md")
	if err != nil {
		t.Fatal(err)
	}
	line := func(with string) string {
		t.Helper()
		for l := range strings.Lines(string(text)) {
			if l, ok := strings.CutPrefix(l, "    "); ok && strings.Contains(l, with) {
				return strings.TrimSpace(l)
			}
		}
		t.Fatalf("docs/sign-in.md has no line with %q any more", with)
		return ""
	}
	t.Parallel()
	s := lab.NewSeed(t, lab.EasyNAT)
	h := s.ServerHost
	provider := line("node provider.mjs")
	waitProvider(s.Lab, h.StartProcess("provider", "/bin/sh", "-c", "cd '"+oidc.Dir()+"' && exec "+provider))

	settings, args, ok := strings.Cut(line(" skein serve "), " skein serve ")
	if !ok {
		t.Fatal("the line has no command")
	}
	f := strings.Fields(args)
	if len(f) != 4 || f[0] != "--server-url" || f[2] != "--listen" {
		t.Fatalf("the arguments are %q", f)
	}
	srv := h.StartServer(lab.ServerOptions{URL: f[1], Args: f[2:], Env: strings.Fields(settings)})
	if up := line("tailscale up --login-server"); up != "tailscale up --login-server "+f[1] {
		t.Errorf("the client's line is %q", up)
	}
	mac := h.StartTailscaled(lab.NodeOptions{})
	lg := mac.Login(f[1])
	node, err := exec.LookPath("node")
	if err != nil {
		t.Fatal(err)
	}
	n := &signInNet{Seed: s, srv: srv, chromium: chromium, node: node}
	n.provider = srv.Process
	n.visit(t, h, oidc.Visit{URL: lg.URL, Provider: "Test", Name: "anna"})
	lg.Wait(patient)
	mac.WaitRunning(soon)
	if got := mac.MustCLI("status"); !strings.Contains(got, "anna@") {
		t.Errorf("tailscale status says\n%s", got)
	}
	if got := srv.Skein("namespaces", "list"); !strings.Contains(got, "anna") {
		t.Errorf("skein namespaces list says\n%s", got)
	}
}
