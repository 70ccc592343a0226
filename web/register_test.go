package web

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"tailscale.com/tailcfg"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/tailnet"
)

// A stranger sees which machine waits and how to go on; after signing in, a page asks before anything happens; then the machine is in, and the
// page that the same form leads to a second time says so.
func TestAddMachine(t *testing.T) {
	s := newSite(t, nil)
	anna := s.user("anna", tailnet.RoleAdmin, password)
	login, machine := s.waiting(&tailcfg.Hostinfo{Hostname: "laptop", OS: "linux", OSVersion: "6.1"})
	b := s.browser()
	a := b.get("/register/" + login)
	a.wants(t, 200, "laptop", "linux 6.1", "192.0.2.7", machine.Public().ShortString(), "skein nodes register --namespace NAME --key "+login+"<",
		"/login?to=%2Fregister%2F"+login)
	if strings.Contains(a.body, "Add the machine") {
		t.Error("a stranger is offered the button")
	}
	a = b.submit("/login?to=/register/"+login, "/login", "to", "/register/"+login, "name", "Anna ", "password", password)
	a.wants(t, 200, "Add this machine to anna?", "Add the machine")
	if a.Request.URL.Path != "/register/"+login {
		t.Errorf("the sign-in led to %s", a.Request.URL)
	}
	if len(s.st.Snapshot().Nodes()) != 0 {
		t.Error("the machine is in before anybody was asked")
	}
	form := url.Values{"token": {b.token("/register/" + login)}, "owner": {anna.ID.String()}, "action": {"add"}}
	b.post("/register/"+login, form).wants(t, 200, "laptop was added", "100.64.0.1", "laptop.skein.internal")
	n := s.st.Snapshot().NodeByName("laptop")
	if n == nil || n.User != anna.ID || n.MachineKey != machine.Public() {
		t.Fatalf("the node is %+v", n)
	}
	es, err := s.db.AuditLog(t.Context(), tailnet.DefaultID, tailnet.AuditQuery{Action: "node.create"})
	if err != nil || len(es) != 1 || es[0].Actor != "anna" || es[0].ActorID != anna.ID.String() || es[0].Origin != "web" || es[0].Remote == "" {
		t.Errorf("the audit log says %+v, %v", es, err)
	}
	b.post("/register/"+login, form).wants(t, 404, "let in already")
	if len(s.st.Snapshot().Nodes()) != 1 {
		t.Error("a replayed form has added a node")
	}
}

// An administrator chooses among all users; a member adds machines to itself only, whatever its form says.
func TestOwners(t *testing.T) {
	s := newSite(t, nil)
	s.user("anna", tailnet.RoleOwner, password)
	ben := s.user("ben", tailnet.RoleMember, password)
	cleo := s.user("cleo", tailnet.RoleAuditor, password)
	login, _ := s.waiting(&tailcfg.Hostinfo{Hostname: "one"})
	admin := s.browser().signIn("anna")
	admin.get("/register/"+login).wants(t, 200, "Add this machine?", ">ben</option>", ">cleo</option>")
	admin.submit("/register/"+login, "/register/"+login, "owner", "99", "action", "add").wants(t, 400, "Choose who shall own the machine.")
	admin.submit("/register/"+login, "/register/"+login, "owner", ben.ID.String(), "action", "add").wants(t, 200, "one was added", "ben")

	for _, u := range []*tailnet.User{ben, cleo} {
		login, _ := s.waiting(&tailcfg.Hostinfo{Hostname: "two-" + u.Name})
		b := s.browser().signIn(u.Name)
		here := "/register/" + login
		a := b.get(here)
		a.wants(t, 200, "Add this machine to "+u.Name+"?")
		if strings.Contains(a.body, "<select") || strings.Contains(a.body, "Send it away") {
			t.Errorf("%s is offered more than a member may do", u.Name)
		}
		b.submit(here, here, "owner", "1", "action", "add").wants(t, 400, "Choose who shall own the machine.")
		b.submit(here, here, "action", "deny").wants(t, 403, "Only who looks after the machines")
		b.submit(here, here, "owner", u.ID.String(), "action", "add").wants(t, 200, "was added")
	}
	if got := len(s.st.Snapshot().NodesOf(ben.ID)); got != 2 {
		t.Errorf("ben has %d nodes", got)
	}
}

// Nobody adds a machine without having signed in.
func TestAddWithoutSession(t *testing.T) {
	s := newSite(t, nil)
	anna := s.user("anna", tailnet.RoleAdmin, password)
	login, _ := s.waiting(&tailcfg.Hostinfo{Hostname: "laptop"})
	b := s.browser()
	token := b.token("/login")
	a := b.post("/register/"+login, url.Values{"token": {token}, "owner": {anna.ID.String()}, "action": {"add"}})
	if a.Request.URL.Path != "/login" || len(s.st.Snapshot().Nodes()) != 0 {
		t.Errorf("%s at %s, %d nodes", a.Status, a.Request.URL, len(s.st.Snapshot().Nodes()))
	}
}

func TestDenyMachine(t *testing.T) {
	s := newSite(t, nil)
	s.user("anna", tailnet.RoleITAdmin, password)
	login, _ := s.waiting(&tailcfg.Hostinfo{Hostname: "laptop"})
	b := s.browser().signIn("anna")
	b.get("/admin").wants(t, 200, "laptop", "/register/"+login)
	b.submit("/register/"+login, "/register/"+login, "action", "deny").wants(t, 200, "laptop was not added")
	b.get("/register/"+login).wants(t, 404)
	if len(s.st.Snapshot().Nodes()) != 0 {
		t.Error("it is in")
	}
}

// Whatever a machine calls itself is shown as text.
func TestHostileMachine(t *testing.T) {
	s := newSite(t, nil)
	anna := s.user("anna", tailnet.RoleAdmin, password)
	b := s.browser().signIn("anna")
	evil := `<script>alert("x")</script>'"&{{.ID}}`
	for i, h := range []*tailcfg.Hostinfo{
		{Hostname: evil, OS: "<b>linux", OSVersion: "6</dd>", DeviceModel: `"><img src=x>`, RequestTags: []string{"<i>tag"}},
		{Hostname: strings.Repeat("long", 100000), OS: strings.Repeat("€", 100000)},
		{Hostname: "\x00\x1b[2J\u202eevil\n", OS: "\xff"},
		nil,
	} {
		login, _ := s.waiting(h)
		for _, a := range []answer{b.get("/register/" + login), b.get("/admin"), s.browser().get("/register/" + login)} {
			a.wants(t, 200)
			if len(a.body) > 20000 {
				t.Errorf("%d: a page of %d bytes", i, len(a.body))
			}
			for _, bad := range []string{"<script>alert", "<b>linux", "6</dd>", "<img src=x", "<i>tag", "\x00", "\x1b"} {
				if strings.Contains(a.body, bad) {
					t.Errorf("%d: %s has %q in it", i, a.Request.URL, bad)
				}
			}
		}
		if i == 0 {
			b.get("/register/"+login).wants(t, 200, evil, "6</dd>")
			// The policy knows no such tag: the reason is shown, and nothing is added.
			b.submit("/register/"+login, "/register/"+login, "owner", anna.ID.String(), "action", "add").wants(t, 403, "There is a problem", "<i>tag")
		}
	}
}

func TestUnknownMachines(t *testing.T) {
	s := newSite(t, nil)
	b := s.browser()
	for _, id := range []string{"nothing", strings.Repeat("a", 5000), "%3Cscript%3E", "%00", "%27%3B%20DROP%20TABLE%20logins--", "%2e%2e%2fadmin", "%FF"} {
		for _, kind := range []string{"/register/", "/ssh/", "/setup/"} {
			a := b.get(kind + id)
			a.wants(t, 404)
			if strings.Contains(a.body, "<script>") || strings.Contains(a.body, "DROP") {
				t.Errorf("the page repeats %q", id)
			}
		}
	}
	login, _ := s.waiting(&tailcfg.Hostinfo{Hostname: "laptop"})
	s.pass(25 * time.Hour)
	b.get("/register/"+login).wants(t, 404, "waited too long")
	// Programs get the same as JSON.
	b.header.Set("Accept", "application/json")
	a := b.get("/register/" + login)
	if a.StatusCode != 404 || a.Header.Get("Content-Type") != "application/problem+json" || !strings.Contains(a.body, `"status":404`) {
		t.Errorf("%s, %s: %s", a.Status, a.Header.Get("Content-Type"), a.body)
	}
}

// There is an end to what is shown of machines that anybody may make wait.
func TestManyMachines(t *testing.T) {
	s := newSite(t, nil)
	s.user("anna", tailnet.RoleAdmin, password)
	for i := range maxWaiting + 3 {
		s.waiting(&tailcfg.Hostinfo{Hostname: fmt.Sprint("m", i)})
	}
	s.browser().signIn("anna").get("/admin").wants(t, 200, "And 3 more")
}

// Where nobody signs in, the addresses that clients print lead to commands, and there is nothing else: not even for who has a session.
func TestNoSignIn(t *testing.T) {
	s := newSite(t, func(o *Options) { o.NoSignIn = true })
	login, _ := s.waiting(&tailcfg.Hostinfo{Hostname: "laptop"})
	b := s.browser()
	a := b.get("/register/" + login)
	a.wants(t, 200, "laptop", "<details open>", "skein nodes register --namespace NAME --key "+login)
	if strings.Contains(a.body, "Sign in") || strings.Contains(a.body, "/login") {
		t.Errorf("a way to sign in:\n%s", a.body)
	}
	b.get("/").wants(t, 200, "tailscale up --login-server")
	for _, path := range []string{"/login", "/admin", "/account", "/machines/1", "/setup/x", CallbackPath} {
		b.get(path).wants(t, 404)
	}
	u := s.user("dora", tailnet.RoleOwner, "")
	secret, _, err := s.acc.BeginSession(ctx, auth.SessionRequest{User: u, Method: "password"})
	if err != nil {
		t.Fatal(err)
	}
	b.header = http.Header{"Cookie": {sessionCookie + "=" + secret}}
	if a := b.get("/register/" + login); strings.Contains(a.body, "dora") {
		t.Errorf("an old session counts:\n%s", a.body)
	}
}
