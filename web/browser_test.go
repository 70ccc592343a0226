package web

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tailscale.com/tailcfg"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/tailnet"
)

// step is something that a person with a browser does (testdata/person.mjs).
type step struct {
	Do   string `json:"do"`
	Name string `json:"name,omitempty"`
	Text string `json:"text,omitempty"`
	See  string `json:"see,omitempty"` // text that appears then
}

// seen is what the browser showed.
type seen struct {
	Steps  []struct{ URL, Title, Text, Focus string }
	Faults []string // of the console, and of what would be in the way of people
	Error  string
}

// person makes a person with Chromium do the steps. It skips the test where there is no Chromium, or fails it with SKEIN_LAB_REQUIRED=1.
// Screenshots go to the folder SKEIN_SHOTS.
func person(t *testing.T, scripts bool, steps ...step) *seen {
	t.Helper()
	modules, err := filepath.Abs("../integration/oidc/node_modules/playwright-core/index.mjs")
	if err == nil {
		_, err = os.Stat(modules)
	}
	chromium, err1 := exec.LookPath("chromium")
	node, err2 := exec.LookPath("node")
	for _, err := range []error{err, err1, err2} {
		if err == nil {
			continue
		}
		why := fmt.Sprintf("needs chromium, node, and \"npm ci\" in integration/oidc: %v", err)
		if os.Getenv("SKEIN_LAB_REQUIRED") == "1" {
			t.Fatal("SKEIN_LAB_REQUIRED=1, but this test " + why)
		}
		t.Skip(why)
	}
	arg, err := json.Marshal(map[string]any{
		"playwright": modules, "chromium": chromium, "scripts": scripts, "steps": steps, "shots": os.Getenv("SKEIN_SHOTS"),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 8*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, node, "testdata/person.mjs", string(arg))
	cmd.WaitDelay = 10 * time.Second
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	s := new(seen)
	if json.Unmarshal(out, s) != nil {
		t.Fatalf("the browser: %v\n%s%s", err, out, stderr.String())
	}
	if s.Error != "" {
		last := s.Steps[len(s.Steps)-1]
		t.Fatalf("step %d: %s\nat %s:\n%s", len(s.Steps), s.Error, last.URL, last.Text)
	}
	for _, f := range s.Faults {
		t.Errorf("the browser: %s", f)
	}
	return s
}

// onLocalhost makes a site reachable under a name, which passkeys need.
func onLocalhost(s *site) { s.url = strings.Replace(s.url, "127.0.0.1", "localhost", 1) }

// All pages in a real browser: the first administrator by a link, a machine, what goes wrong, the account; none of them scrolls sideways on a phone,
// has a field without a label, or something too small for a finger.
func TestBrowser(t *testing.T) {
	s := newSite(t, nil)
	link, _, err := s.acc.FirstLink(ctx)
	if err != nil {
		t.Fatal(err)
	}
	login, _ := s.waiting(&tailcfg.Hostinfo{Hostname: "junyao-macbook-pro", OS: "macOS", OSVersion: "26.1", DeviceModel: "MacBookPro18,3"})
	s.waiting(&tailcfg.Hostinfo{Hostname: strings.Repeat("unbreakable-", 20), OS: "linux"})
	register := s.url + "/register/" + login
	out := person(t, true,
		step{Do: "open", Text: s.url + "/", See: "tailscale up"}, step{Do: "look", Name: "front"},
		step{Do: "open", Text: s.url + "/login", See: "Nobody can sign in here yet"}, step{Do: "look", Name: "nobody"},
		step{Do: "open", Text: register, See: "Do you know this machine?"}, step{Do: "look", Name: "register"},
		step{Do: "open", Text: link, See: "You are about to become the owner"}, step{Do: "look", Name: "setup"},
		step{Do: "type", Name: "Name", Text: "Anna Bell"}, step{Do: "type", Name: "Password", Text: "short"}, step{Do: "type", Name: "The same password again", Text: "short"},
		step{Do: "press", Name: "Use this password", See: "There is a problem"}, step{Do: "look", Name: "setup-faults"},
		step{Do: "type", Name: "Name", Text: "anna"}, step{Do: "type", Name: "Password", Text: password}, step{Do: "type", Name: "The same password again", Text: password},
		step{Do: "press", Name: "Use this password", See: "Waiting to join"}, step{Do: "look", Name: "admin-empty"},
		step{Do: "press", Name: "Sign out", See: "You have signed out"}, step{Do: "look", Name: "signed-out"},
		step{Do: "open", Text: register}, step{Do: "follow", Name: "Sign in", See: "Then you can add the machine"}, step{Do: "look", Name: "login"},
		step{Do: "type", Name: "Name", Text: "anna"}, step{Do: "type", Name: "Password", Text: "wrong password"},
		step{Do: "press", Name: "Sign in", See: "The name or the password is wrong"}, step{Do: "look", Name: "login-faults"},
		step{Do: "type", Name: "Password", Text: password},
		step{Do: "press", Name: "Sign in", See: "Add this machine to anna?"}, step{Do: "look", Name: "confirm"},
		step{Do: "press", Name: "Add the machine", See: "was added"}, step{Do: "look", Name: "added"},
		step{Do: "type", Name: "Name in the network", Text: "a b"}, step{Do: "press", Name: "Rename", See: "There is a problem"}, step{Do: "look", Name: "machine-faults"},
		step{Do: "type", Name: "Name in the network", Text: "laptop"}, step{Do: "press", Name: "Rename", See: "The machine is called laptop now"},
		step{Do: "unfold", Name: "Remove this machine", See: "It loses its addresses"}, step{Do: "look", Name: "machine"},
		step{Do: "follow", Name: "Machines", See: "Waiting to join"}, step{Do: "look", Name: "admin"},
		step{Do: "follow", Name: "Account", See: "Where you are signed in"}, step{Do: "look", Name: "account"},
		step{Do: "open", Text: s.url + "/register/nothing", See: "No machine waits"}, step{Do: "look", Name: "nothing"},
	)
	if n := s.st.Snapshot().NodeByName("laptop"); n == nil {
		t.Error("the machine is not in, or was not renamed")
	}
	for _, st := range out.Steps {
		if strings.Contains(st.Text, "There is a problem") && (!strings.HasPrefix(st.Title, "Error: ") || st.Focus != "faults" && st.Focus != "password" && st.Focus != "name" && st.Focus != "repeat") {
			t.Errorf("%s: after a fault the title is %q and the focus on %q", st.URL, st.Title, st.Focus)
		}
	}
}

// The same without JavaScript, with two people who may own the machine.
func TestBrowserWithoutScripts(t *testing.T) {
	s := newSite(t, nil)
	s.user("anna", tailnet.RoleAdmin, password)
	ben := s.user("ben", tailnet.RoleMember, "")
	login, _ := s.waiting(&tailcfg.Hostinfo{Hostname: "nas", OS: "linux"})
	person(t, false,
		step{Do: "open", Text: s.url + "/register/" + login}, step{Do: "follow", Name: "Sign in", See: "Name"},
		step{Do: "type", Name: "Name", Text: "anna"}, step{Do: "type", Name: "Password", Text: password}, step{Do: "press", Name: "Sign in", See: "Add this machine?"},
		step{Do: "look", Name: "confirm-admin"},
		step{Do: "choose", Name: "It will belong to", Text: "ben"}, step{Do: "press", Name: "Add the machine", See: "was added"},
		step{Do: "unfold", Name: "Remove this machine"}, step{Do: "tick", Name: "Remove nas from this network"}, step{Do: "press", Name: "Remove", See: "not in this network any more"},
		step{Do: "open", Text: s.url + "/account"}, step{Do: "type", Name: "Present password", Text: password}, step{Do: "type", Name: "New password", Text: "another good one"},
		step{Do: "type", Name: "The same password again", Text: "another good one"}, step{Do: "press", Name: "Change the password", See: "Your password was changed"},
	)
	if n := len(s.st.Snapshot().NodesOf(ben.ID)); n != 0 {
		t.Errorf("ben has %d nodes", n)
	}
	if _, err := s.acc.SignIn(ctx, "anna", "another good one", netip.MustParseAddr("192.0.2.1")); err != nil {
		t.Error(err)
	}
}

// A passkey in place of a password: made with a one-time link, used to sign in, another one added and removed. The device is Chromium's own
// virtual one.
func TestPasskeys(t *testing.T) {
	s := newSite(t, nil)
	onLocalhost(s)
	s.acc = auth.NewAccounts(auth.AccountsOptions{State: s.st, Store: s.db, ServerURL: s.url, Secret: []byte("secret"), Now: s.now})
	s.serve(nil)
	link, _, err := s.acc.FirstLink(ctx)
	if err != nil {
		t.Fatal(err)
	}
	login, _ := s.waiting(&tailcfg.Hostinfo{Hostname: "laptop", OS: "linux"})
	person(t, true,
		step{Do: "open", Text: s.url + "/login"}, step{Do: "authenticator"},
		step{Do: "open", Text: link, See: "Use a passkey"}, step{Do: "look", Name: "setup-passkey"},
		step{Do: "type", Name: "Name", Text: "Anna Bell"}, step{Do: "press", Name: "Use a passkey", See: "is not a name for a namespace"},
		step{Do: "type", Name: "Name", Text: "anna"}, step{Do: "press", Name: "Use a passkey", See: "Waiting to join"},
		step{Do: "press", Name: "Sign out", See: "You have signed out"},
		step{Do: "open", Text: s.url + "/register/" + login}, step{Do: "follow", Name: "Sign in", See: "Sign in with a passkey"}, step{Do: "look", Name: "login-passkey"},
		step{Do: "press", Name: "Sign in with a passkey", See: "Add this machine to anna?"},
		step{Do: "press", Name: "Add the machine", See: "was added"},
		step{Do: "follow", Name: "Account", See: "Passkey of 20 November 2026"}, step{Do: "look", Name: "account-passkey"},
		step{Do: "press", Name: "Add a passkey", See: "This device has a passkey for this account already."},
		step{Do: "press", Name: "Remove Passkey of 20 November 2026", See: "This is your only way to sign in"}, step{Do: "look", Name: "account-last-passkey"},
		step{Do: "type", Name: "New password", Text: password}, step{Do: "type", Name: "The same password again", Text: password},
		step{Do: "press", Name: "Set a password", See: "Your password was changed"},
		step{Do: "press", Name: "Remove Passkey of 20 November 2026", See: "The passkey was removed."},
		step{Do: "type", Name: "Name of the new passkey", Text: "blue key"}, step{Do: "press", Name: "Add a passkey", See: "The passkey was added."},
		step{Do: "press", Name: "Sign out", See: "You have signed out"},
		step{Do: "follow", Name: "Sign in again"}, step{Do: "press", Name: "Sign in with a passkey", See: "Waiting to join"},
	)
	u := s.st.Snapshot().UserByName("anna")
	acc, err := s.acc.Account(ctx, u)
	if err != nil || u.Role != tailnet.RoleOwner || len(acc.Passkeys) != 1 || acc.Passkeys[0].Name != "blue key" || acc.Passkeys[0].Used.IsZero() {
		t.Errorf("%+v, %+v, %v", u, acc, err)
	}
	if n := s.st.Snapshot().NodeByName("laptop"); n == nil || n.User != u.ID {
		t.Errorf("the machine is %+v", n)
	}
}
