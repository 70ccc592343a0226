package auth

import (
	"context"
	"encoding/base64"
	"errors"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/bcrypt"

	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// role makes user id what r says.
func (e *env) role(id tailnet.UserID, r tailnet.Role, s tailnet.UserStatus) {
	e.t.Helper()
	e.update(func(tx *state.Tx) error {
		u := *tx.User(id)
		u.Role, u.Status = r, s
		return tx.PutUser(&u)
	})
}

func (e *env) apiKey(p *Principal, r APIKeyRequest) (string, *tailnet.Credential) {
	e.t.Helper()
	secret, c, err := e.a.CreateAPIKey(ctx, p, r)
	if err != nil {
		e.t.Fatal(err)
	}
	return secret, c
}

// wantRefused checks that secret lets nobody in, for a reason that says want.
func (e *env) wantRefused(secret, want string) {
	e.t.Helper()
	p, err := e.a.Authenticate(ctx, secret)
	if p != nil || tailnet.CodeOf(err) != tailnet.Unauthenticated || !strings.Contains(err.Error(), want) {
		e.t.Errorf("Authenticate: %+v, %v; want Unauthenticated: %s", p, err, want)
	}
}

func TestAPIKey(t *testing.T) {
	e := newEnv(t, nil)
	root := SocketPrincipal("root")
	secret, c := e.apiKey(root, APIKeyRequest{Expires: e.now().Add(time.Hour), Description: "test"})
	if !strings.HasPrefix(secret, "tskey-api-"+c.ID+"-") || strings.Contains(string(c.Hash), secret) || !c.Created.Equal(e.now()) {
		t.Errorf("%s %+v", secret, c)
	}
	p, err := e.a.Authenticate(ctx, secret)
	if err != nil || p.Kind != KindAPIKey || p.User != 0 || p.Credential != c.ID || p.Allow(ScopeDNS) != nil {
		t.Fatalf("%+v %v", p, err)
	}
	for _, bad := range []string{"", "x", "tskey-api-", "tskey-api-" + c.ID, "tskey-api-" + c.ID + "-", secret + "x", secret[:len(secret)-1], c.ID + "." + secret,
		strings.Replace(secret, "tskey-api-", "tskey-client-", 1), strings.Replace(secret, "tskey-api-", "hskey-api-", 1), strings.Repeat("x.", 1000), "tskey-api-a\x00-b"} {
		e.wantRefused(bad, "not known here")
	}
	e.pass(time.Hour)
	e.wantRefused(secret, "expired at")

	secret, c = e.apiKey(root, APIKeyRequest{})
	if err := e.a.RevokeCredential(ctx, root, c.ID); err != nil {
		t.Fatal(err)
	}
	e.wantRefused(secret, "revoked")
	secret, c = e.apiKey(root, APIKeyRequest{})
	if err := e.a.ExpireCredential(ctx, root, c.ID); err != nil {
		t.Fatal(err)
	}
	e.wantRefused(secret, "expired")
	secret, c = e.apiKey(root, APIKeyRequest{})
	if err := e.a.DeleteCredential(ctx, root, c.ID); err != nil {
		t.Fatal(err)
	}
	e.wantRefused(secret, "not known")
	for _, end := range []func(context.Context, *Principal, string) error{e.a.ExpireCredential, e.a.RevokeCredential, e.a.DeleteCredential} {
		if err := end(ctx, root, c.ID); tailnet.CodeOf(err) != tailnet.NotFound {
			t.Errorf("ending what is gone: %v", err)
		}
	}
}

// A change of role, a suspension and a deletion take effect with the next request.
func TestAPIKeyFollowsItsUser(t *testing.T) {
	e := newEnv(t, nil)
	e.role(e.junyao, tailnet.RoleAdmin, tailnet.UserActive)
	secret, _ := e.apiKey(SocketPrincipal("root"), APIKeyRequest{User: e.junyao})
	may := func(scope string) bool {
		t.Helper()
		p, err := e.a.Authenticate(ctx, secret)
		return err == nil && p.Allow(scope) == nil
	}
	if !may(ScopePolicy) {
		t.Error("an admin's key may not do what an admin may")
	}
	e.role(e.junyao, tailnet.RoleAuditor, tailnet.UserActive)
	if may(ScopePolicy) || !may(Read(ScopePolicy)) {
		t.Error("the key does not follow the role")
	}
	e.role(e.junyao, tailnet.RoleMember, tailnet.UserActive)
	if may(Read(ScopePolicy)) || !may(ScopeNone) {
		t.Error("the key of a member may do something, or not even be a key")
	}
	e.role(e.junyao, tailnet.RoleAdmin, tailnet.UserSuspended)
	e.wantRefused(secret, "suspended")
	e.role(e.junyao, tailnet.RoleAdmin, tailnet.UserWaiting)
	e.wantRefused(secret, "approval")
	e.role(e.junyao, tailnet.RoleAdmin, tailnet.UserActive)
	if !may(ScopePolicy) {
		t.Error("the key does not come back with its user")
	}
	e.update(func(tx *state.Tx) error { return tx.DeleteUser(e.junyao) })
	e.wantRefused(secret, "not known")
}

// A key never does more than its maker.
func TestAPIKeyIsNoLadder(t *testing.T) {
	e := newEnv(t, nil)
	e.role(e.junyao, tailnet.RoleITAdmin, tailnet.UserActive)
	e.role(e.other, tailnet.RoleOwner, tailnet.UserActive)
	it := &Principal{Kind: KindUser, User: e.junyao, Role: tailnet.RoleITAdmin, Scopes: []string{ScopeAll}}
	narrow := &Principal{Kind: KindAPIKey, User: e.junyao, Role: tailnet.RoleITAdmin, Scopes: []string{ScopeAPIKeys, Read(ScopeUsers)}}
	member := &Principal{Kind: KindUser, User: e.junyao, Scopes: []string{ScopeAll}}
	for name, tt := range map[string]struct {
		p *Principal
		r APIKeyRequest
	}{
		"for somebody else":         {it, APIKeyRequest{User: e.other}},
		"a scope its role lacks":    {it, APIKeyRequest{Scopes: []string{ScopePolicy}}},
		"a scope its key lacks":     {narrow, APIKeyRequest{Scopes: []string{ScopeUsers}}},
		"all with a narrow key":     {narrow, APIKeyRequest{Scopes: []string{ScopeAll}}},
		"by a member":               {member, APIKeyRequest{}},
		"by nobody":                 {nil, APIKeyRequest{}},
		"by a key without the word": {&Principal{Kind: KindAPIKey, Scopes: []string{ScopeUsers}}, APIKeyRequest{}},
	} {
		if _, _, err := e.a.CreateAPIKey(ctx, tt.p, tt.r); tailnet.CodeOf(err) != tailnet.Denied && tailnet.CodeOf(err) != tailnet.Unauthenticated {
			t.Errorf("%s: %v", name, err)
		}
	}
	secret, c := e.apiKey(narrow, APIKeyRequest{})
	if p, err := e.a.Authenticate(ctx, secret); err != nil || p.User != e.junyao || p.Allow(ScopeUsers) == nil || p.Allow(Read(ScopeUsers)) != nil {
		t.Errorf("%+v %v", p, err)
	}
	auditor := &Principal{Kind: KindUser, User: e.other, Role: tailnet.RoleAuditor, Scopes: []string{ScopeAll}}
	if err := e.a.RevokeCredential(ctx, auditor, c.ID); tailnet.CodeOf(err) != tailnet.Denied {
		t.Errorf("an auditor revokes the key of somebody else: %v", err)
	}
	for name, r := range map[string]APIKeyRequest{
		"expired":     {Expires: e.now()},
		"scope":       {Scopes: []string{"everything"}},
		"description": {Description: "a\x1b[2J"},
		"user":        {User: 99},
	} {
		if _, _, err := e.a.CreateAPIKey(ctx, SocketPrincipal("root"), r); tailnet.CodeOf(err) != tailnet.Invalid && tailnet.CodeOf(err) != tailnet.NotFound {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Keys that headscale has made, in both of their forms, live on.
func TestImportedAPIKeys(t *testing.T) {
	e := newEnv(t, nil)
	for id, secret := range map[string]string{"abcdefg": "abcdefg.0123456789abcdef0123456789abcdef", "abcdefghijkl": "hskey-api-abcdefghijkl-" + strings.Repeat("0123456789abcdef", 4),
		"a-_d-f-_ijk-": "hskey-api-a-_d-f-_ijk---" + strings.Repeat("-_2345678.abcdef", 4)[1:], "-_cdefg": "-_cdefg.-.23456789abcdef0123456789abcdef"} {
		hash, err := bcrypt.GenerateFromPassword([]byte(strings.TrimPrefix(secret, "hskey-api-")[len(id)+1:]), bcrypt.MinCost)
		if err != nil {
			t.Fatal(err)
		}
		e.update(func(tx *state.Tx) error {
			return tx.PutCredential(&tailnet.Credential{ID: id, Kind: tailnet.APIKey, HashKind: tailnet.HashBcrypt, Hash: hash, Scopes: []string{ScopeAll}, Created: tx.Now()})
		})
		for range 2 { // the second time from memory
			if p, err := e.a.Authenticate(ctx, secret); err != nil || p.Credential != id {
				t.Errorf("%s: %+v %v", secret, p, err)
			}
		}
		e.wantRefused(secret+"x", "not known")
		e.wantRefused(id+".x", "not known")
		if err := e.a.RevokeCredential(ctx, SocketPrincipal("root"), id); err != nil {
			t.Fatal(err)
		}
		e.wantRefused(secret, "revoked")
	}
}

// When a key was used is known at once, and saved about once a minute.
func TestCredentialUses(t *testing.T) {
	e := newEnv(t, nil)
	secret, c := e.apiKey(SocketPrincipal("root"), APIKeyRequest{})
	if uses, err := e.a.CredentialUses(ctx); err != nil || len(uses) != 0 {
		t.Errorf("%v %v", uses, err)
	}
	use := func() {
		t.Helper()
		if _, err := e.a.Authenticate(ctx, secret); err != nil {
			t.Fatal(err)
		}
	}
	saved := func() time.Time {
		uses, err := e.logins.CredentialUses(ctx, tailnet.DefaultID)
		if err != nil {
			t.Fatal(err)
		}
		return uses[c.ID]
	}
	use()
	first := e.now()
	if uses, _ := e.a.CredentialUses(ctx); !uses[c.ID].Equal(first) || !saved().IsZero() {
		t.Errorf("%v, saved %v", uses, saved())
	}
	e.a.saveUses(ctx)
	if !saved().Equal(first) {
		t.Errorf("saved %v", saved())
	}
	e.pass(30 * time.Second)
	use()
	e.a.saveUses(ctx)
	if !saved().Equal(first) {
		t.Errorf("saved again within a minute: %v", saved())
	}
	e.pass(31 * time.Second)
	use()
	e.logins.Fail(errors.New("disk on fire"))
	if _, err := e.a.CredentialUses(ctx); err == nil {
		t.Error("no error")
	}
	e.a.saveUses(ctx)
	e.logins.Fail(nil)
	e.a.saveUses(ctx) // what could not be saved is not lost
	if !saved().Equal(e.now()) {
		t.Errorf("saved %v, want %v", saved(), e.now())
	}

	// Run saves what there is when it ends.
	e.pass(2 * time.Minute)
	use()
	run, stop := context.WithCancel(ctx)
	stop()
	e.a.Run(run)
	if !saved().Equal(e.now()) {
		t.Errorf("after the end saved %v, want %v", saved(), e.now())
	}
}

// OAuth clients that headscale has made live on.
func TestImportedOAuthClients(t *testing.T) {
	e := newEnv(t, nil)
	secret := "hskey-client-abcdefghijkl-" + strings.Repeat("0123456789abcdef", 2)
	salt := []byte("0123456789abcdef")
	b64 := base64.RawStdEncoding.EncodeToString
	hash := "$argon2id$v=19$m=64,t=1,p=1$" + b64(salt) + "$" + b64(argon2.IDKey([]byte(afterID(secret, "abcdefghijkl")), salt, 1, 64, 1, 32))
	put := func(hash string) {
		e.update(func(tx *state.Tx) error {
			return tx.PutCredential(&tailnet.Credential{ID: "abcdefghijkl", Kind: tailnet.OAuthClient, HashKind: tailnet.HashArgon2, Hash: []byte(hash), Scopes: []string{ScopeDNS}})
		})
	}
	put(hash)
	token, _, err := e.a.ClientToken(ctx, secret, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	p, err := e.a.Authenticate(ctx, token)
	if err != nil || p.Kind != KindToken || p.Allow(ScopeDNS) != nil || p.Allow(ScopeUsers) == nil {
		t.Errorf("%+v %v", p, err)
	}
	e.pass(TokenLife)
	e.wantRefused(token, "expired")
	for _, bad := range []string{"", "$", hash[:len(hash)-30], strings.Replace(hash, "m=64", "m=99999999", 1), strings.Replace(hash, "t=1", "t=0", 1),
		strings.Replace(hash, "p=1", "p=0", 1), strings.Replace(hash, "p=1", "p=x", 1), strings.Replace(hash, "v=19", "v=16", 1), hash + "!", "$argon2id$v=19$m=64,t=1,p=1$$"} {
		put(bad)
		if _, _, err := e.a.ClientToken(ctx, secret, nil, nil); tailnet.CodeOf(err) != tailnet.Unauthenticated {
			t.Errorf("hash %q: %v", bad, err)
		}
	}
}

// What a client loses, its tokens lose at once.
func TestTokensFollowTheirClient(t *testing.T) {
	e := newEnv(t, nil)
	root := SocketPrincipal("root")
	secret, c, err := e.a.CreateOAuthClient(ctx, root, ClientRequest{Scopes: []string{ScopeDNS, ScopeAuthKeys}, Tags: []string{"tag:a", "tag:b"}})
	if err != nil {
		t.Fatal(err)
	}
	token, _, err := e.a.ClientToken(ctx, secret, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.a.UpdateClient(ctx, root, c.ID, ClientRequest{Scopes: []string{ScopeAuthKeys}, Tags: []string{"tag:b"}}); err != nil {
		t.Fatal(err)
	}
	p, err := e.a.Authenticate(ctx, token)
	if err != nil || p.Allow(ScopeDNS) == nil || p.Allow(ScopeAuthKeys) != nil || p.AllowTags(e.st.Snapshot(), []string{"tag:a"}) == nil ||
		p.AllowTags(e.st.Snapshot(), []string{"tag:b"}) != nil {
		t.Errorf("%+v %v", p, err)
	}
	narrow := &Principal{Kind: KindAPIKey, Scopes: []string{ScopeOAuthKeys, ScopeAuthKeys}, TagBound: true, Tags: []string{"tag:b"}}
	for _, r := range []ClientRequest{{Scopes: []string{ScopeDNS}}, {Scopes: []string{ScopeAuthKeys}, Tags: []string{"tag:a"}}} {
		if _, err := e.a.UpdateClient(ctx, narrow, c.ID, r); tailnet.CodeOf(err) != tailnet.Denied {
			t.Errorf("%+v: %v", r, err)
		}
	}
	if _, err := e.a.UpdateClient(ctx, root, "none", ClientRequest{Scopes: []string{ScopeDNS}}); tailnet.CodeOf(err) != tailnet.NotFound {
		t.Error(err)
	}
}

func TestMatchText(t *testing.T) {
	for _, tt := range []struct {
		pattern, s string
		ok         bool
	}{
		{"", "", true}, {"a", "a", true}, {"a", "ab", false}, {"*", "", true}, {"*", "x/y", true}, {"a*", "abc", true}, {"*c", "abc", true}, {"a*c", "ac", true},
		{"a*a", "a", false}, {"a*b*c", "aXbYc", true}, {"a*b*c", "acb", false}, {"a**", "a", true}, {"*b*", "abc", true}, {"*b*", "ac", false}, {"A", "a", false},
		{"ab*bc", "abc", false},
	} {
		if got := matchText(tt.pattern, tt.s); got != tt.ok {
			t.Errorf("matchText(%q, %q) = %v", tt.pattern, tt.s, got)
		}
	}
}

// Whatever a stranger sends as a secret or a token, it is refused in peace.
func FuzzSecrets(f *testing.F) {
	for _, s := range []string{"", "tskey-api-a-b", "hskey-client-a-b", "a.b", "e30.e30.e30", "tskey-api--", "..", "\x00"} {
		f.Add(s)
	}
	e := newEnv(f, nil)
	f.Fuzz(func(t *testing.T, s string) {
		if p, err := e.a.Authenticate(ctx, s); p != nil || tailnet.CodeOf(err) != tailnet.Unauthenticated {
			t.Errorf("%q: %+v %v", s, p, err)
		}
		if _, _, err := e.a.ClientToken(ctx, s, nil, nil); tailnet.CodeOf(err) != tailnet.Unauthenticated {
			t.Errorf("%q: %v", s, err)
		}
		if iss, err := issuerOf(s); iss != "" && err != nil {
			t.Errorf("%q: %q %v", s, iss, err)
		}
	})
}
