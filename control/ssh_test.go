package control

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"tailscale.com/tailcfg"

	"github.com/skein-vpn/skein/policy"
	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// setPolicy puts a policy in force.
func (ts *testServer) setPolicy(text string) {
	ts.t.Helper()
	p, err := policy.Parse([]byte(text))
	ts.must(err)
	ts.update(func(tx *state.Tx) error { return tx.SetPolicy(p, "", "") })
}

const sshCheckPolicy = `{"ssh": [{"action": "check", "checkPeriod": "1h", "src": ["alice@"], "dst": ["autogroup:self"], "users": ["root", "autogroup:nonroot"]}]}`

func sshPath(src, dst tailnet.NodeID, user string) string {
	return fmt.Sprintf("/machine/ssh/action/%d/to/%d?local_user=%[3]s&ssh_user=%[3]s", src, dst, url.QueryEscape(user))
}

// askSSH asks as the node's machine and returns the action that it gets.
func (c *client) askSSH(ctx context.Context, path string) (a tailcfg.SSHAction, err error) {
	status, answer, _, err := c.try(ctx, http.MethodGet, path, nil)
	if err != nil {
		return a, err
	}
	if status != http.StatusOK {
		return a, fmt.Errorf("status %d: %s", status, answer)
	}
	return a, json.Unmarshal([]byte(answer), &a)
}

// heldSSH is the path of the second question about a session that has to be held.
func (c *client) heldSSH(path string) (next, check string) {
	c.ts.t.Helper()
	a, err := c.askSSH(c.ts.ctx, path)
	c.ts.must(err)
	next, ours := strings.CutPrefix(a.HoldAndDelegate, c.ts.url)
	u, err := url.Parse(next)
	c.ts.must(err)
	if check = u.Query().Get("check"); a.Accept || a.Reject || !ours || check == "" || !strings.Contains(a.Message, c.ts.url+"/ssh/"+check) {
		c.ts.t.Fatalf("not held: %+v", a)
	}
	return next, check
}

// The questions of a session: held, an approval that wakes it, and no question the next time, after a restart of the server too.
func TestSSHCheckMode(t *testing.T) {
	ts := newServer(t, nil)
	laptop, server := ts.joined("laptop"), ts.joined("server")
	src, dst := laptop.id(), server.id()
	ts.setPolicy(sshCheckPolicy)
	path := sshPath(src, dst, "root")
	next, check := server.heldSSH(path)

	answer := make(chan tailcfg.SSHAction, 1)
	go func() {
		a, err := server.askSSH(ts.ctx, next)
		if err != nil {
			t.Error(err)
		}
		answer <- a
	}()
	_, err := ts.auth.ApproveSSH(ts.ctx, check, "test")
	ts.must(err)
	if a := <-answer; !a.Accept {
		t.Errorf("after the approval: %+v", a)
	}
	ts.stop()
	ts.start(nil)
	server.dial(0)
	if a, err := server.askSSH(ts.ctx, path); err != nil || !a.Accept {
		t.Errorf("after a restart: %+v, %v", a, err)
	}
}

// Only the node itself may ask about sessions on it, whatever it knows.
func TestSSHWrongMachine(t *testing.T) {
	ts := newServer(t, nil)
	laptop, server := ts.joined("laptop"), ts.joined("server")
	src, dst := laptop.id(), server.id()
	ts.setPolicy(sshCheckPolicy)
	next, check := server.heldSSH(sshPath(src, dst, "root"))
	_, err := ts.auth.ApproveSSH(ts.ctx, check, "test")
	ts.must(err)
	for path, want := range map[string]int{
		sshPath(src, dst, "root"): 403,
		next:                      403,
		sshPath(src, 99, "root"):  403,
		"/machine/ssh/action/x/to/" + fmt.Sprint(dst):              400,
		"/machine/ssh/action/1/to/99999999999999999999":            400,
		"/machine/ssh/action/1/to/" + fmt.Sprint(dst) + "/further": 404,
	} {
		if status, answer, _ := laptop.do(http.MethodGet, path, nil); status != want {
			t.Errorf("%s: %d %s, want %d", path, status, answer, want)
		}
	}
	// The approval of one session is none for another.
	other := sshPath(src, dst, "backup") + "&check=" + check
	if a, err := server.askSSH(ts.ctx, other); err != nil || !a.Reject {
		t.Errorf("another user: %+v, %v", a, err)
	}
	if a, err := server.askSSH(ts.ctx, sshPath(99, dst, "root")); err != nil || !a.Reject {
		t.Errorf("from nowhere: %+v, %v", a, err)
	}
}

// A server that ends lets go of the questions that it holds.
func TestSSHHeldAtShutdown(t *testing.T) {
	ts := newServer(t, nil)
	laptop, server := ts.joined("laptop"), ts.joined("server")
	src, dst := laptop.id(), server.id()
	ts.setPolicy(sshCheckPolicy)
	next, _ := server.heldSSH(sshPath(src, dst, "root"))
	ended := make(chan error, 1)
	go func() {
		_, err := server.askSSH(ts.ctx, next)
		ended <- err
	}()
	eventually(t, "the question is held", func() bool { return runs("waitSSH") })
	ts.stop()
	if err := <-ended; err == nil {
		t.Error("the question was answered by a server that ends")
	}
}
