package api

import (
	"net/url"
	"strings"
	"testing"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/policy"
	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

func TestSSHChecks(t *testing.T) {
	w := newWorld(t)
	u := w.user("junyao")
	laptop, nas := w.node(u, "laptop"), w.node(u, "nas")
	p, err := policy.Parse([]byte(`{"ssh": [{"action": "check", "checkPeriod": "always", "src": ["junyao@"], "dst": ["autogroup:self"], "users": ["root"]}]}`))
	if err != nil {
		t.Fatal(err)
	}
	if err := w.st.Update(w.ctx(), "test", func(tx *state.Tx) error { return tx.SetPolicy(p, "", "") }); err != nil {
		t.Fatal(err)
	}
	if _, body := w.call("GET", "/api/v1/sshcheck", ""); body != "{\"sshChecks\":[]}\n" {
		t.Errorf("an empty list is %s", body)
	}
	var ids []string
	for range 2 {
		a, err := w.auth.SSH(w.ctx(), auth.SSHQuestion{Src: laptop, Dst: nas, SSHUser: "root", LocalUser: "toor"})
		if err != nil {
			t.Fatal(err)
		}
		at, err := url.Parse(a.HoldAndDelegate)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, at.Query().Get("check"))
	}
	list, err := w.client.ListSSHChecks(w.ctx())
	if err != nil || len(list) != 2 {
		t.Fatalf("%v, %v", list, err)
	}
	for _, k := range list {
		if k.Source != "laptop" || k.SourceID != ID(laptop) || k.SourceUser != "junyao" || k.Destination != "nas" || k.DestID != ID(nas) ||
			k.SSHUser != "root" || k.LocalUser != "toor" || k.CheckPeriod != "always" || k.CreatedAt == nil || k.ApprovedAt != nil || k.Denied {
			t.Errorf("waiting: %+v", k)
		}
	}
	if k, err := w.client.ApproveSSHCheck(w.ctx(), "https://skein.example/ssh/"+ids[0]+"/"); err != nil || k.ID != ids[0] || k.ApprovedAt == nil || k.DecidedBy == "" {
		t.Errorf("approved: %+v, %v", k, err)
	}
	if k, err := w.client.DenySSHCheck(w.ctx(), ids[1]); err != nil || k.ApprovedAt != nil || !k.Denied {
		t.Errorf("denied: %+v, %v", k, err)
	}
	if _, err := w.client.DenySSHCheck(w.ctx(), ids[0]); tailnet.CodeOf(err) != tailnet.Conflict {
		t.Errorf("denied after the approval: %v", err)
	}
	if list, err := w.client.ListSSHChecks(w.ctx()); err != nil || len(list) != 0 {
		t.Errorf("%v, %v", list, err)
	}
	for call, want := range map[string]int{
		"POST /api/v1/sshcheck/nothing/approve": 404,
		"POST /api/v1/sshcheck/%20/deny":        400,
		"GET /api/v1/sshcheck/x/deny":           405,
		"POST /api/v1/sshcheck/x/perhaps":       404,
		"DELETE /api/v1/sshcheck":               405,
	} {
		method, path, _ := strings.Cut(call, " ")
		if status, body := w.call(method, path, ""); status != want {
			t.Errorf("%s: %d %s", call, status, body)
		}
	}
}
