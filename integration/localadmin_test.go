package integration

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/skein-vpn/skein/integration/lab"
	"github.com/skein-vpn/skein/integration/oidc"
)

// action is something that a person with a browser does (web/testdata/person.mjs).
type action struct {
	Do   string `json:"do"`
	Name string `json:"name,omitempty"`
	Text string `json:"text,omitempty"`
	See  string `json:"see,omitempty"`
}

// browse lets a person with Chromium do the actions on the host, and returns the text of the last page.
func browse(t *testing.T, h *lab.Host, actions ...action) string {
	t.Helper()
	chromium := oidc.NeedBrowser(t)
	node, err := exec.LookPath("node")
	if err != nil {
		t.Fatal(err)
	}
	script, err := filepath.Abs("../web/testdata/person.mjs")
	if err != nil {
		t.Fatal(err)
	}
	shots := os.Getenv("SKEIN_SHOTS")
	if shots == "" {
		shots = h.Dir()
	}
	arg, err := json.Marshal(map[string]any{
		"playwright": filepath.Join(oidc.Dir(), "node_modules", "playwright-core", "index.mjs"), "chromium": chromium, "steps": actions, "shots": shots,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	r := h.Command(ctx, node, script, string(arg))
	var said struct {
		Steps  []struct{ URL, Text string }
		Faults []string
		Error  string
	}
	if err := json.Unmarshal([]byte(r.Stdout), &said); err != nil {
		t.Fatalf("%v\n%v", err, r)
	}
	last := said.Steps[len(said.Steps)-1]
	if said.Error != "" {
		t.Fatalf("step %d: %s\nat %s:\n%s", len(said.Steps), said.Error, last.URL, last.Text)
	}
	for _, f := range said.Faults {
		t.Errorf("the browser: %s", f)
	}
	return last.Text
}

var setupLink = regexp.MustCompile(`http://\S+/setup/\S+`)

// The walk through docs/sign-in.md without a provider: the link that serve prints, the first administrator, a machine that comes up because
// somebody says yes in a browser; one that is sent away; a member whose machine an administrator approves; a machine that is removed.
func TestLocalAdministrator(t *testing.T) {
	lab.Need(t)
	oidc.NeedBrowser(t)
	t.Parallel()
	n := lab.NewSeed(t, lab.EasyNAT)
	srv := n.ServerHost.StartServer(lab.ServerOptions{})
	var link string
	n.Wait(soon, "the server prints a link", func() (bool, string) {
		link = setupLink.FindString(srv.Log())
		return link != "", srv.Log()
	})
	const password = "seven brown foxes"
	mac := n.Mac.StartTailscaled(lab.NodeOptions{})
	lg := mac.Login(srv.URL)
	// Over plain http, and to an address: Chromium sends no Sec-Fetch-Site there, and keeps no cookie with the prefix __Host-.
	browse(t, n.Mac,
		action{Do: "open", Text: link, See: "You are about to become the owner"},
		action{Do: "type", Name: "Name", Text: "anna"}, action{Do: "type", Name: "Password", Text: password},
		action{Do: "type", Name: "The same password again", Text: password},
		action{Do: "press", Name: "Use this password", See: "Waiting to join"},
		action{Do: "follow", Name: "junyao", See: "Add this machine to anna?"}, action{Do: "look", Name: "lab-confirm"},
		action{Do: "press", Name: "Add the machine", See: "was added"},
	)
	lg.Wait(patient)
	mac.WaitRunning(soon)
	if st := mac.Status(); st.User[st.Self.UserID].LoginName != "anna" {
		t.Errorf("the client is %+v", st.User[st.Self.UserID])
	}

	// A member, who comes by a link of the command line, in a network that wants machines approved.
	srv.Skein("settings", "set", "--device-approval", "on")
	link = strings.TrimSpace(srv.Skein("admins", "create-link", "ben", "--role", "member"))
	nas := n.NAS.StartTailscaled(lab.NodeOptions{})
	lg = nas.Login(srv.URL)
	browse(t, n.NAS,
		action{Do: "open", Text: link}, action{Do: "type", Name: "Password", Text: password}, action{Do: "type", Name: "The same password again", Text: password},
		action{Do: "press", Name: "Use this password", See: "You have no machines yet"},
		action{Do: "open", Text: lg.URL, See: "Add this machine to ben?"},
		action{Do: "press", Name: "Add the machine", See: "An administrator has to approve it"},
	)
	nas.WaitState(soon, "NeedsMachineAuth")
	browse(t, n.Mac,
		action{Do: "open", Text: srv.URL + "/login"}, action{Do: "type", Name: "Name", Text: "anna"}, action{Do: "type", Name: "Password", Text: password},
		action{Do: "press", Name: "Sign in", See: "Waiting for approval"}, action{Do: "look", Name: "lab-approval"},
		action{Do: "follow", Name: "homeds", See: "Approve this machine?"}, action{Do: "press", Name: "Approve", See: "online"},
	)
	lg.Wait(patient)
	nas.WaitRunning(soon)
	mac.WaitPeer(soon, "homeDS", nil)
	mac.Ping(soon, nas.IP4())

	// Sent away; and removed.
	cloud := n.Cloud.StartTailscaled(lab.NodeOptions{})
	lg = cloud.Login(srv.URL)
	browse(t, n.Cloud,
		action{Do: "open", Text: lg.URL}, action{Do: "follow", Name: "Sign in"},
		action{Do: "type", Name: "Name", Text: "anna"}, action{Do: "type", Name: "Password", Text: password},
		action{Do: "press", Name: "Sign in", See: "Add this machine?"}, action{Do: "press", Name: "Send it away", See: "was not added"},
		action{Do: "open", Text: srv.URL + "/admin"}, action{Do: "follow", Name: "junyao", See: "Machine key"},
		action{Do: "unfold", Name: "Remove this machine"}, action{Do: "tick", Name: "Remove junyao from this network"},
		action{Do: "press", Name: "Remove", See: "not in this network any more"},
	)
	mac.WaitState(soon, "NeedsLogin")
	if row := srv.Node("VM-0-2-centos"); row != nil {
		t.Errorf("it was sent away and is in: %v", row)
	}
}
