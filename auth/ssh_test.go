package auth

import (
	"context"
	"errors"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"tailscale.com/tailcfg"

	"github.com/skein-vpn/skein/policy"
	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// sshEnv is a laptop of junyao's, a server with a tag, and a rule about sessions between them.
type sshEnv struct {
	*env
	laptop, server tailnet.NodeID
}

func newSSHEnv(t testing.TB, rule string) *sshEnv {
	t.Helper()
	e := &sshEnv{env: newEnv(t, func(o *Options) { o.ServerURL = "https://skein.example" })}
	key, _ := e.key(KeyRequest{})
	e.laptop = e.in(newDevice("laptop").authKey(key)).ID
	key, _ = e.key(KeyRequest{Tags: []string{"tag:server"}})
	e.server = e.in(newDevice("server").authKey(key)).ID
	e.rule(rule)
	return e
}

// rule puts one ssh rule in force; empty: none.
func (e *sshEnv) rule(rule string) {
	e.t.Helper()
	if rule != "" {
		rule = `{` + rule + `, "src": ["junyao@"], "dst": ["tag:server"], "users": ["root", "backup"]}`
	}
	p, err := policy.Parse([]byte(`{"tagOwners": {"tag:server": []}, "acls": [], "ssh": [` + rule + `]}`))
	if err != nil {
		e.t.Fatal(err)
	}
	e.update(func(tx *state.Tx) error { return tx.SetPolicy(p, "", "") })
}

func (e *sshEnv) question(check string) SSHQuestion {
	return SSHQuestion{Src: e.laptop, Dst: e.server, SSHUser: "root", LocalUser: "root", Check: check}
}

func (e *sshEnv) ask(q SSHQuestion) *tailcfg.SSHAction {
	e.t.Helper()
	a, err := e.a.SSH(ctx, q)
	if err != nil {
		e.t.Fatal(err)
	}
	return a
}

// held asks about a new session, which must be held, and returns its check.
func (e *sshEnv) held() string {
	e.t.Helper()
	a := e.ask(e.question(""))
	u, err := url.Parse(a.HoldAndDelegate)
	if err != nil || a.Accept || a.Reject || u.Query().Get("check") == "" {
		e.t.Fatalf("not held: %+v, %v", a, err)
	}
	return u.Query().Get("check")
}

func (e *sshEnv) accepted(q SSHQuestion) {
	e.t.Helper()
	if a := e.ask(q); !a.Accept || a.Reject || a.HoldAndDelegate != "" || !a.AllowAgentForwarding {
		e.t.Errorf("not accepted: %+v", a)
	}
}

func (e *sshEnv) rejected(q SSHQuestion, words string) {
	e.t.Helper()
	if a := e.ask(q); !a.Reject || a.Accept || a.HoldAndDelegate != "" || !strings.Contains(a.Message, words) || !strings.HasSuffix(a.Message, "\r\n") {
		e.t.Errorf("%+v; want a rejection with %q", a, words)
	}
}

func (e *sshEnv) approve(id string) {
	e.t.Helper()
	if _, err := e.a.ApproveSSH(ctx, id, "root"); err != nil {
		e.t.Fatal(err)
	}
}

const (
	hourly = `"action": "check", "checkPeriod": "1h"`
	always = `"action": "check", "checkPeriod": "always"`
)

// What the policy says alone.
func TestSSHByPolicy(t *testing.T) {
	e := newSSHEnv(t, `"action": "accept"`)
	e.accepted(e.question(""))
	q := e.question("")
	q.SSHUser = "ada"
	e.rejected(q, "does not permit")
	q = e.question("")
	q.Src, q.Dst = q.Dst, q.Src
	e.rejected(q, "does not permit")
	q = e.question("")
	q.Src = 99
	e.rejected(q, "not in this network")
	e.rule("")
	e.rejected(e.question(""), "does not permit")
	for _, user := range []string{strings.Repeat("a", 300), "a\x1b[2J", "a\nb"} {
		q = e.question("")
		q.SSHUser = user
		e.rejected(q, "cannot be shown")
	}
}

// An approval holds for the period, also after a restart over the same store, and no longer; and for the same
// session only: not for another user, node or owner.
func TestSSHPeriod(t *testing.T) {
	e := newSSHEnv(t, hourly)
	a := e.ask(e.question(""))
	id := e.held() // the same: the command on the screen stays good
	for _, want := range []string{"https://skein.example/ssh/" + id, "skein auth approve " + id} {
		if !strings.Contains(a.Message, want) {
			t.Errorf("the message does not have %q:\n%s", want, a.Message)
		}
	}
	if want := "https://skein.example/machine/ssh/action/1/to/2?check=" + id + "&local_user=root&ssh_user=root"; a.HoldAndDelegate != want {
		t.Errorf("it is held with %s, want %s", a.HoldAndDelegate, want)
	}
	if cs, err := e.a.SSHChecks(ctx); err != nil || len(cs) != 1 || cs[0].ID != id || cs[0].Src != e.laptop || cs[0].Dst != e.server ||
		cs[0].SrcUser != e.junyao || cs[0].SSHUser != "root" || cs[0].Period != time.Hour || !cs[0].Created.Equal(e.now()) {
		t.Errorf("waiting: %+v, %v", cs, err)
	}
	if len(id) < 22 {
		t.Errorf("the id %q can be guessed", id)
	}
	e.approve(id)
	if cs, _ := e.a.SSHChecks(ctx); len(cs) != 0 {
		t.Error("an approved session still waits")
	}
	e.accepted(e.question(id))
	o := e.a.o
	e.a = New(o)
	e.pass(time.Hour - time.Second)
	e.accepted(e.question(""))
	q := e.question("")
	q.SSHUser = "backup"
	if a := e.ask(q); a.HoldAndDelegate == "" {
		t.Errorf("another user: %+v", a)
	}
	e.pass(time.Second)
	again := e.held()
	if again == id {
		t.Error("a new check has the id of the old one")
	}
	e.approve(again)
	e.accepted(e.question(""))

	// What is somebody else's now has to ask for itself.
	e.update(func(tx *state.Tx) error {
		n := tx.Node(e.laptop).Clone()
		n.User = e.other
		return tx.PutNode(n)
	})
	e.rejected(e.question(""), "does not permit")
	p, err := policy.Parse([]byte(`{"tagOwners": {"tag:server": []}, "ssh": [{` + hourly + `, "src": ["autogroup:member"], "dst": ["tag:server"], "users": ["root"]}]}`))
	if err != nil {
		t.Fatal(err)
	}
	e.update(func(tx *state.Tx) error { return tx.SetPolicy(p, "", "") })
	e.held()
	e.rejected(e.question(again), "Nobody is asked")
}

// With "always" each session asks for itself, and an approval given so does not grow when the policy becomes generous.
func TestSSHEachTime(t *testing.T) {
	e := newSSHEnv(t, always)
	first, second := e.held(), e.held()
	if first == second {
		t.Fatal("two sessions wait under one id")
	}
	e.approve(first)
	e.accepted(e.question(first))
	if cs, _ := e.a.SSHChecks(ctx); len(cs) != 1 || cs[0].ID != second {
		t.Errorf("waiting: %v", cs)
	}
	e.held()
	e.rule(`"action": "check", "checkPeriod": "168h"`)
	e.held()
	e.pass(DefaultSSHCheckTTL)
	e.rejected(e.question(first), "in time")
	if cs, _ := e.a.SSHChecks(ctx); len(cs) != 0 {
		t.Errorf("waiting too long: %v", cs)
	}
	if _, err := e.a.ApproveSSH(ctx, second, ""); tailnet.CodeOf(err) != tailnet.NotFound {
		t.Errorf("approved too late: %v", err)
	}
}

// The second question waits, and is woken by an approval, a denial, a change of the policy, or another server's approval.
func TestSSHWait(t *testing.T) {
	for name, tt := range map[string]struct {
		act    func(e *sshEnv, id string)
		accept bool
		words  string
	}{
		"approved": {func(e *sshEnv, id string) { e.approve(id) }, true, ""},
		"denied": {func(e *sshEnv, id string) {
			if _, err := e.a.DenySSH(ctx, id, ""); err != nil {
				e.t.Error(err)
			}
		}, false, "was denied"},
		"approved at another server": {func(e *sshEnv, id string) {
			if _, err := New(e.a.o).ApproveSSH(ctx, id, ""); err != nil {
				e.t.Error(err)
			}
		}, true, ""},
		"rule gone":            {func(e *sshEnv, _ string) { e.rule("") }, false, "does not permit"},
		"rule gone, approved":  {func(e *sshEnv, id string) { e.rule(""); e.approve(id) }, false, "does not permit"},
		"rule accepts now":     {func(e *sshEnv, _ string) { e.rule(`"action": "accept"`) }, true, ""},
		"nobody cares":         {func(e *sshEnv, _ string) { e.pass(DefaultSSHCheckTTL) }, false, "in time"},
		"forgotten altogether": {func(e *sshEnv, _ string) { _, _ = e.logins.DeleteSSHChecksBefore(ctx, e.now().Add(time.Hour)) }, false, "Nobody is asked"},
	} {
		t.Run(name, func(t *testing.T) {
			e := newSSHEnv(t, always)
			id := e.held()
			answer := make(chan *tailcfg.SSHAction, 1)
			go func() {
				a, err := e.a.SSH(ctx, e.question(id))
				if err != nil {
					t.Error(err)
				}
				answer <- a
			}()
			tt.act(e, id)
			if a := <-answer; a.Accept != tt.accept || a.Reject == tt.accept || !strings.Contains(a.Message, tt.words) {
				t.Errorf("%+v", a)
			}
		})
	}
}

// A question that nobody answers ends with the server or the connection, and before the node gives up.
func TestSSHHoldEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newSSHEnv(t, always)
		defer e.st.Close()
		id := e.held()
		begin := time.Now()
		a := e.ask(e.question(id))
		if d := time.Since(begin); d != sshHold || !strings.Contains(a.HoldAndDelegate, "check="+id) || a.Message != "" {
			t.Errorf("after %v: %+v", d, a)
		}
		c, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		if a, err := e.a.SSH(c, e.question(id)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%+v, %v", a, err)
		}
	})
}

// A check is about one session: it opens no other.
func TestSSHForeignCheck(t *testing.T) {
	e := newSSHEnv(t, always)
	id := e.held()
	e.approve(id)
	q := e.question(id)
	q.SSHUser = "backup"
	e.rejected(q, "Nobody is asked")
	e.rejected(e.question("unknown"), "Nobody is asked")
	e.accepted(e.question(id))
	if _, err := e.a.DenySSH(ctx, id, "anna"); tailnet.CodeOf(err) != tailnet.Conflict || !strings.Contains(err.Error(), "approved already, by root") {
		t.Errorf("decided twice: %v", err)
	}
	if _, err := e.a.ApproveSSH(ctx, "unknown", ""); tailnet.CodeOf(err) != tailnet.NotFound {
		t.Errorf("unknown: %v", err)
	}
}

// One node cannot fill the list.
func TestSSHLimit(t *testing.T) {
	e := newSSHEnv(t, always)
	for range maxSSHChecks {
		e.held()
	}
	e.rejected(e.question(""), "Too many sessions")
	e.pass(DefaultSSHCheckTTL)
	e.held()
}

// Trouble with the store is no decision: the node has to ask again.
func TestSSHStoreFails(t *testing.T) {
	e := newSSHEnv(t, hourly)
	id := e.held()
	e.logins.Fail(errors.New("disk"))
	for _, check := range []string{"", id} {
		if a, err := e.a.SSH(ctx, e.question(check)); err == nil || a != nil {
			t.Errorf("%+v, %v", a, err)
		}
	}
	if _, err := e.a.ApproveSSH(ctx, id, ""); err == nil {
		t.Error("approved without a store")
	}
	e.logins.Fail(nil)
	e.approve(id)
	e.accepted(e.question(""))
}
