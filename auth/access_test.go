package auth

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/skein-vpn/skein/policy"
	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

func TestGrants(t *testing.T) {
	for _, tt := range []struct {
		have, want string
		ok         bool
	}{
		{"", ScopeNone, true}, {"", "dns", false}, {"", "dns:read", false},
		{"dns", "dns", true}, {"dns", "dns:read", true}, {"dns:read", "dns:read", true}, {"dns:read", "dns", false},
		{"dns", "users", false}, {"dns", "users:read", false}, {"users dns:read", "dns", false},
		{"all", "dns", true}, {"all", "dns:read", true}, {"all", "all", true}, {"all", "all:read", true},
		{"all:read", "dns:read", true}, {"all:read", "dns", false}, {"all:read", "all", false}, {"all:read", "all:read", true},
		{"devices:core", "devices:routes", false}, {"devices:core", "devices:core:read", true}, {"logs:network", "logs:network:read", true},
		{"logs:configuration:read", "logs:network:read", false}, {"dns", "dns:read:read", false},
	} {
		if got := grants(strings.Fields(tt.have), tt.want); got != tt.ok {
			t.Errorf("grants(%q, %q) = %v", tt.have, tt.want, got)
		}
	}
}

func TestCheckScopes(t *testing.T) {
	got, err := CheckScopes([]string{" dns ", "all:read", "dns"})
	if err != nil || !slices.Equal(got, []string{"all:read", "dns"}) {
		t.Errorf("%q %v", got, err)
	}
	for _, bad := range []string{"", "DNS", "dns:write", "devices", "dns:read:read", strings.Repeat("x", 1000)} {
		if _, err := CheckScopes([]string{"dns", bad}); tailnet.CodeOf(err) != tailnet.Invalid || !strings.Contains(err.Error(), "policy_file") || len(err.Error()) > 600 {
			t.Errorf("%.20q: %v", bad, err)
		}
	}
	for _, s := range Scopes() {
		if _, err := CheckScopes([]string{s}); err != nil {
			t.Error(err)
		}
	}
}

// docs/access.md shows the same table.
func TestRolesAreDocumented(t *testing.T) {
	b, err := os.ReadFile("../docs/access.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string][]string{}
	for line := range strings.Lines(string(b)) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		name := strings.Trim(strings.TrimSpace(cells[0]), "`")
		if len(cells) != 3 || !slices.ContainsFunc(Roles(), func(r tailnet.Role) bool { return roleName(r) == name }) {
			continue
		}
		documented[name] = strings.Fields(strings.NewReplacer("`", "", ",", " ", "none", "").Replace(cells[1]))
	}
	for _, r := range Roles() {
		want := RoleScopes(r)
		if got, ok := documented[roleName(r)]; !ok || !slices.Equal(slices.Sorted(slices.Values(got)), slices.Sorted(slices.Values(want))) {
			t.Errorf("docs/access.md says of the role %s: %q, the code: %q", roleName(r), got, want)
		}
	}
	for _, s := range append(slices.Clone(scopes), ScopeAll, Read(ScopeAll)) {
		if !strings.Contains(string(b), "`"+s+"`") {
			t.Errorf("docs/access.md does not mention the scope %s", s)
		}
	}
}

// Nobody deals with more than they have.
func TestAllowRole(t *testing.T) {
	as := func(r tailnet.Role) *Principal {
		return &Principal{Kind: KindUser, User: 1, Role: r, Scopes: []string{ScopeAll}}
	}
	for _, tt := range []struct {
		p    *Principal
		role tailnet.Role
		ok   bool
	}{
		{SocketPrincipal("root"), tailnet.RoleOwner, true},
		{as(tailnet.RoleOwner), tailnet.RoleOwner, true},
		{as(tailnet.RoleAdmin), tailnet.RoleOwner, false},
		{as(tailnet.RoleAdmin), tailnet.RoleAdmin, true},
		{as(tailnet.RoleITAdmin), tailnet.RoleAdmin, false},
		{as(tailnet.RoleITAdmin), tailnet.RoleNetworkAdmin, false},
		{as(tailnet.RoleITAdmin), tailnet.RoleITAdmin, true},
		{as(tailnet.RoleITAdmin), tailnet.RoleAuditor, true},
		{as(tailnet.RoleITAdmin), tailnet.RoleMember, true},
		{&Principal{Kind: KindAPIKey, Scopes: []string{ScopeUsers}}, tailnet.RoleAdmin, false},
		{&Principal{Kind: KindAPIKey, Scopes: []string{ScopeUsers}}, tailnet.RoleMember, true},
		{&Principal{Kind: KindAPIKey, Scopes: []string{ScopeAll}}, tailnet.RoleOwner, true},
		{nil, tailnet.RoleOwner, false},
		{&Principal{}, tailnet.RoleAuditor, false},
	} {
		if err := tt.p.AllowRole(tt.role); (err == nil) != tt.ok {
			t.Errorf("%+v and the role %q: %v", tt.p, tt.role, err)
		}
	}
}

// What is bound to tags gives those, and those that they own.
func TestAllowTags(t *testing.T) {
	e := newEnv(t, nil)
	p, err := policy.Parse([]byte(`{"tagOwners":{"tag:ci":[],"tag:web":["tag:ci"],"tag:db":["junyao@"]}}`))
	if err != nil {
		t.Fatal(err)
	}
	e.update(func(tx *state.Tx) error { return tx.SetPolicy(p, "", "") })
	sn := e.st.Snapshot()
	bound := &Principal{Kind: KindToken, Scopes: []string{ScopeAuthKeys}, TagBound: true, Tags: []string{"tag:ci"}}
	free := SocketPrincipal("root")
	for _, tt := range []struct {
		p    *Principal
		tags string
		ok   bool
	}{
		{bound, "tag:ci", true}, {bound, "tag:web", true}, {bound, "tag:ci tag:web", true}, {bound, "tag:db", false}, {bound, "tag:ci tag:db", false},
		{bound, "", false}, {free, "tag:db", true}, {free, "", true},
	} {
		if err := tt.p.AllowKeyFor(sn, 0, strings.Fields(tt.tags)); (err == nil) != tt.ok {
			t.Errorf("%s gives %q: %v", tt.p.Kind, tt.tags, err)
		}
	}
	if err := (&Principal{Kind: KindUser, User: e.junyao, Role: tailnet.RoleNetworkAdmin, Scopes: []string{ScopeAll}}).AllowKeyFor(sn, e.other, nil); err == nil {
		t.Error("a network administrator makes keys for nodes of others")
	}
	var nobody *Principal
	if nobody.Allow(ScopeNone) == nil || nobody.AllowTags(sn, nil) == nil || PrincipalOf(ctx) != nil {
		t.Error("nobody may do something")
	}
}
