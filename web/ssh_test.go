package web

import (
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/policy"
	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

const checkPolicy = `{
	"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}],
	"ssh": [{"action": "check", "src": ["autogroup:member"], "dst": ["autogroup:self"], "users": ["autogroup:nonroot", "root"], "checkPeriod": "1h"}],
}`

// heldSSH is an SSH session of ben from one of his machines to another that waits to be confirmed.
func (s *site) heldSSH(from, to *tailnet.Node, as string) (check string) {
	s.t.Helper()
	a, err := s.auth.SSH(ctx, auth.SSHQuestion{Src: from.ID, Dst: to.ID, SSHUser: as, LocalUser: as})
	if err != nil || a.HoldAndDelegate == "" {
		s.t.Fatalf("%+v, %v", a, err)
	}
	u, err := url.Parse(a.HoldAndDelegate)
	if err != nil {
		s.t.Fatal(err)
	}
	return u.Query().Get("check")
}

func (s *site) setPolicy(text string) {
	s.t.Helper()
	p, err := policy.Parse([]byte(text))
	if err == nil {
		err = s.st.Update(ctx, "test", func(tx *state.Tx) error { return tx.SetPolicy(p, "test", "") })
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// An SSH session is decided by the person whose it is, once the person has signed in lately, or by an administrator, and by nobody else; once.
func TestSSHPages(t *testing.T) {
	s := newSite(t, nil)
	s.user("anna", tailnet.RoleAdmin, password)
	ben := s.user("ben", tailnet.RoleMember, password)
	s.user("cleo", tailnet.RoleMember, password)
	s.setPolicy(checkPolicy)
	laptop, server := s.node(ben, "laptop"), s.node(ben, "server")
	check := s.heldSSH(laptop, server, "root")
	here := "/ssh/" + check

	s.browser().get(here).wants(t, 200, "laptop", "ben", "server", "root", "1h0m0s", "skein auth approve "+check+"<", "Is this your session?")
	cleo := s.browser().signIn("cleo")
	cleo.get(here).wants(t, 200, "Only the person whose session it is")
	cleo.submit(here, here, "action", "approve").wants(t, 403, "Only the person whose session it is")
	if a := cleo.get("/admin"); strings.Contains(a.body, check) {
		t.Error("somebody else's overview lists the session")
	}

	b := s.browser().signIn("ben")
	b.get("/admin").wants(t, 200, "laptop → server", here)
	b.submit(here, here, "action", "maybe").wants(t, 400)
	s.pass(30 * time.Minute)
	check2 := s.heldSSH(laptop, server, "ubuntu")
	b.get("/ssh/"+check2).wants(t, 200, "You signed in a while ago", "Sign in once more", "Deny it")
	a := b.submit("/ssh/"+check2, "/ssh/"+check2, "action", "approve")
	a.wants(t, 200, "Confirm that it is you.")
	if c, err := s.auth.SSHCheck(ctx, check2); err != nil || !c.Waiting() {
		t.Errorf("approved by an old session: %+v, %v", c, err)
	}
	b.submit("/login?to=/ssh/"+check2+"&again=1", "/login", "to", "/ssh/"+check2, "name", "ben", "password", password).wants(t, 200, "Let it begin")
	token := b.token("/admin")
	b.post("/ssh/"+check2, url.Values{"token": {token}, "action": {"approve"}}).wants(t, 200, "The session was approved", "from laptop to server as ubuntu")
	b.post("/ssh/"+check2, url.Values{"token": {token}, "action": {"deny"}}).wants(t, 404, "done already")
	if c, err := s.auth.SSHCheck(ctx, check2); err != nil || c.Approved.IsZero() || c.Denied || c.DecidedBy != "ben" {
		t.Errorf("%+v, %v", c, err)
	}

	anna := s.browser().signIn("anna")
	anna.get("/admin").wants(t, 200, here)
	anna.submit(here, here, "action", "deny").wants(t, 200, "The session was denied")
	b.get(here).wants(t, 404)
}

// The names of users on the other side come from a stranger's keyboard.
func TestHostileSSHUser(t *testing.T) {
	s := newSite(t, nil)
	ben := s.user("ben", tailnet.RoleMember, password)
	s.setPolicy(checkPolicy)
	laptop, server := s.node(ben, "laptop"), s.node(ben, "server")
	evil := `<script>alert("x")</script>`
	check := s.heldSSH(laptop, server, evil)
	for _, a := range []answer{s.browser().get("/ssh/" + check), s.browser().signIn("ben").get("/ssh/" + check)} {
		a.wants(t, 200, evil)
		if strings.Contains(a.body, "<script>alert") {
			t.Errorf("the page is:\n%s", a.body)
		}
	}
}
