package api

import (
	"testing"
	"time"

	"github.com/skein-vpn/skein/tailnet"
)

// A change of settings changes what it names, for good and at once; the rest stays.
func TestSettings(t *testing.T) {
	w := seed(t)
	on, off, month, forever := true, false, int64(30*86400), int64(KeyForever)
	for _, tc := range []struct {
		req  ChangeSettingsRequest
		want tailnet.Settings
		life int64
	}{
		{ChangeSettingsRequest{}, tailnet.Settings{}, 0},
		{ChangeSettingsRequest{DeviceApproval: &on}, tailnet.Settings{DeviceApproval: true}, 0},
		{ChangeSettingsRequest{KeyDurationSeconds: &month}, tailnet.Settings{DeviceApproval: true, KeyDuration: 30 * 24 * time.Hour}, month},
		{ChangeSettingsRequest{UserApproval: &on, DeviceApproval: &off}, tailnet.Settings{UserApproval: true, KeyDuration: 30 * 24 * time.Hour}, month},
		{ChangeSettingsRequest{KeyDurationSeconds: &forever}, tailnet.Settings{UserApproval: true, KeyDuration: tailnet.KeyForever}, 0},
	} {
		s, err := w.client.ChangeSettings(w.ctx(), tc.req)
		if err != nil {
			t.Fatal(err)
		}
		if got := w.st.Snapshot().Tailnet.Settings; got != tc.want || s.DeviceApproval != got.DeviceApproval || s.UserApproval != got.UserApproval ||
			s.EffectiveKeyDurationSeconds != tc.life {
			t.Errorf("after %+v the settings are %+v, shown as %+v", tc.req, got, s)
		}
	}
	if s, err := w.client.GetSettings(w.ctx()); err != nil || s.KeyDurationSeconds != KeyForever || !s.UserApproval {
		t.Errorf("the settings are %+v, %v", s, err)
	}
}

// What keeps a node apart is told in one word, and approving does away with it.
func TestNodeStatus(t *testing.T) {
	w := seed(t)
	is := func(want string) {
		t.Helper()
		if n, err := w.client.GetNode(w.ctx(), "2"); err != nil || n.Status != want {
			t.Errorf("the node is %+v, %v; want %s", n, err, want)
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	is("active")
	_, err := w.client.ApproveNode(w.ctx(), "2", false)
	must(err)
	is("needs-approval")
	_, err = w.client.ApproveNode(w.ctx(), "2", true)
	must(err)
	is("active")
	_, err = w.client.ExpireNode(w.ctx(), "2", ExpireNodeRequest{})
	must(err)
	is("expired")
	_, err = w.client.SuspendUser(w.ctx(), "junyao")
	must(err)
	is("user-suspended")
	_, err = w.client.ApproveUser(w.ctx(), "junyao")
	must(err)
	n, err := w.client.ExpireNode(w.ctx(), "2", ExpireNodeRequest{DisableExpiry: true})
	must(err)
	is("active")
	if n.Expiry != nil || !n.NeverExpires {
		t.Errorf("a node that never expires is %+v", n)
	}
}
