package policy

import (
	"slices"
	"strings"
	"testing"

	"github.com/skein-vpn/skein/tailnet"
)

// TestSyncedGroups: groups of an identity provider, as sources, destinations and owners of tags, and inside other groups.
func TestSyncedGroups(t *testing.T) {
	const text = `{
		"groups": {"group:all": ["group:Admin Team@example.com", "eve@other.org"], "group:own@example.com": ["bob@example.com"]},
		"tagOwners": {"tag:server": ["group:Admin Team@example.com"], "tag:router": []},
		"acls": [
			{"action": "accept", "src": ["group:all"], "dst": ["tag:server:22"]},
			{"action": "accept", "src": ["group:ops@"], "dst": ["tag:server:80"]},
			{"action": "accept", "src": ["group:kc/ops@example.com"], "dst": ["tag:server:81"]},
			{"action": "accept", "src": ["group:own@example.com"], "dst": ["tag:server:82"]},
			{"action": "accept", "src": ["group:nobody@example.com"], "dst": ["group:ops@:443"]},
		],
		"tests": [{"src": "group:Admin Team@example.com", "accept": ["tag:server:22"], "deny": ["tag:server:81"]}],
	}`
	c, nodes := small(t, text, Options{})
	users := map[string]*tailnet.User{}
	for _, u := range c.users {
		users[u.user.Name] = u.user
	}
	bob := nodes["bob-1"]
	reaches := func(port uint16) bool { return c.Explain(bob, nodes["server"].IPv4, 6, port).Allowed }
	in := func(groups ...string) {
		u := *users["bob"]
		u.Groups = groups
		c, users["bob"] = c.WithUser(users["bob"], &u), &u
	}
	for _, x := range []struct {
		groups []string
		ports  []uint16
	}{
		{nil, []uint16{82}}, // by name, as the policy says
		{[]string{"Admin Team"}, []uint16{22, 82}},
		{[]string{"admin team", "group:ops", "ops@example.com"}, []uint16{82}},
		{[]string{"ops"}, []uint16{80, 82}},
		{[]string{"/kc/ops"}, []uint16{81, 82}},
		{[]string{"/ops", "x"}, []uint16{80, 82}},
		{nil, []uint16{82}},
	} {
		in(x.groups...)
		var got []uint16
		for _, p := range []uint16{22, 80, 81, 82} {
			if reaches(p) {
				got = append(got, p)
			}
		}
		if !slices.Equal(got, x.ports) {
			t.Errorf("in %q: ports %v, want %v", x.groups, got, x.ports)
		}
	}
	// Not by being in the provider's group of the same name.
	ada := *users["ada"]
	ada.Groups = []string{"own", "Admin Team"}
	if d := c.WithUser(users["ada"], &ada); d.Explain(nodes["ada-1"], nodes["server"].IPv4, 6, 82).Allowed || !d.Explain(nodes["ada-1"], nodes["server"].IPv4, 6, 22).Allowed {
		t.Error("what the policy defines holds alone")
	}
	if err := c.Test(); err != nil {
		t.Error(err)
	}
	in("ops")
	var missing []string
	for _, w := range c.UnknownUsers() {
		missing = append(missing, w.Text)
	}
	if got := strings.Join(missing, "\n"); !strings.Contains(got, "define \"group:nobody@example.com\"") || !strings.Contains(got, `"group:Admin Team@example.com"`) || strings.Contains(got, `"group:ops@"`) {
		t.Errorf("unknown are:\n%s", got)
	}
}

func TestSyncedGroupNames(t *testing.T) {
	for _, g := range []string{"group:a", "group:@example.com", "group:@", "group:a@b*"} {
		if _, err := Parse([]byte(`{"acls": [{"action": "accept", "src": ["` + g + `"], "dst": ["*:*"]}]}`)); err == nil || !strings.Contains(err.Error(), "group not found") {
			t.Errorf("%s: %v", g, err)
		}
	}
}
