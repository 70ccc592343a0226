package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestOIDCFaults(t *testing.T) {
	const ok = "oidc:\n  issuer: https://login.example.com/\n  client_id: skein\n"
	tests := []struct{ name, file, want string }{
		{"flat", ok + "  client_secret: x\n", ""},
		{"public client", ok, ""},
		{"headscale's keys", ok + "  client_secret_path: ${CREDENTIALS_DIRECTORY}/secret\n  only_start_if_oidc_is_available: true\n  scope: [openid, email]\n" +
			"  extra_params: {domain_hint: example.com}\n  allowed_domains: [example.com]\n  allowed_groups: [/vpn]\n  allowed_users: [a@example.com]\n" +
			"  expiry: 180d\n  use_expiry_from_token: false\n  email_verified_required: false\n  pkce: {enabled: true, method: plain}\n", ""},
		{"list", "oidc: {providers: [{id: a, issuer: https://a, client_id: b}, {id: c, issuer: http://c, client_id: d, pkce: {method: plain}}]}\n", ""},
		{"no client", "oidc: {issuer: https://a.example}\n", "oidc.client_id: is empty: want the id"},
		{"no issuer", "oidc: {client_id: a}\n", "config.yaml:1: oidc.client_id: is set, but oidc.issuer is not"},
		{"issuer", "oidc: {client_id: a, issuer: login.example.com}\n", "oidc.issuer: \"login.example.com\": want the address"},
		{"well-known", "oidc: {client_id: a, issuer: \"https://a/.well-known/openid-configuration\"}\n", "without /.well-known"},
		{"no pages", "web: {enabled: false}\n" + ok, "config.yaml:1: web.enabled: false: the sign-in with a provider (oidc) needs the pages"},
		{"two secrets", ok + "  client_secret: x\n  client_secret_path: y\n", "client_secret_path: is set, and client_secret as well"},
		{"method", ok + "  client_secret: x\n  token_endpoint_auth_method: basic\n", "want client_secret_basic or client_secret_post"},
		{"method without secret", ok + "  token_endpoint_auth_method: client_secret_post\n", "there is no client secret"},
		{"none with secret", ok + "  client_secret: x\n  token_endpoint_auth_method: none\n", "but there is a client secret"},
		{"scope", ok + "  scope: [email]\n", "want openid among them"},
		{"extra", ok + "  extra_params: {State: x}\n", "State belongs to the sign-in itself"},
		{"extra is a list", ok + "  extra_params: [a]\n", "want names, each with a value"},
		{"domain", ok + "  allowed_domains: [\"@example.com\"]\n", "want a domain, such as example.com"},
		{"user", ok + "  allowed_users: [hans]\n", "want mail addresses"},
		{"groups", ok + "  allowed_groups: [a]\n  groups_claim: \"\"\n", "nobody could sign in"},
		{"expiry", ok + "  expiry: 1s\n", "want at least 1m"},
		{"check", ok + "  check_every: 10s\n", "want at least 1m, or 0 for never"},
		{"pkce method", ok + "  pkce: {method: s256}\n", "want S256 or plain"},
		{"no proof at all", ok + "  pkce: {enabled: false}\n", "there is no client secret either"},
		{"id outside the list", ok + "  id: x\n", "has no id"},
		{"only start without", "oidc: {only_start_if_oidc_is_available: true}\n", "there is no provider"},
		{"typo", ok + "  isuer: x\n", "did you mean oidc.issuer?"},
		{"list, no id", "oidc: {providers: [{issuer: https://a, client_id: b}]}\n", "entry 1 (https://a): id \"\": want a-z"},
		{"list, same id", "oidc: {providers: [{id: a, issuer: https://a, client_id: b}, {id: a, issuer: https://c, client_id: d}]}\n", "entry 2 (a): another one has this id"},
		{"list, no issuer", "oidc: {providers: [{id: a, client_id: b}]}\n", "entry 1 (a): issuer is missing"},
		{"list, no client", "oidc: {providers: [{id: a, issuer: https://a}]}\n", "entry 1 (a): client_id: is empty"},
		{"list, typo", "oidc:\n  providers:\n  - id: a\n    isuer: https://a\n", "config.yaml:4: oidc.providers: \"isuer\" in a provider: unknown key; did you mean issuer?"},
		{"list, twice", "oidc:\n  providers:\n  - id: a\n    id: b\n", "config.yaml:4: oidc.providers: id stands here twice"},
		{"list, value", "oidc:\n  providers:\n  - id: a\n    email_verified_required: maybe\n", "oidc.providers: email_verified_required: \"maybe\": want true or false"},
		{"list, pkce", "oidc:\n  providers:\n  - id: a\n    pkce: yes\n", "want a provider"},
		{"list, too long", "oidc: {providers: [" + strings.Repeat("{id: a},", 21) + "]}\n", "21 entries, more than the 20 allowed"},
		{"not a list", "oidc: {providers: a}\n", "want a list"},
	}
	for _, tt := range tests {
		_, err := loadText(t, tt.file)
		if got := place(err); tt.want == "" && got != "" || !strings.Contains(got, tt.want) {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}

// TestOIDCDefaults: an entry of the list has the defaults of the section.
func TestOIDCDefaults(t *testing.T) {
	c, err := loadText(t, "oidc:\n  issuer: https://a\n  client_id: a\n  client_secret_path: s\n  providers:\n  - {id: b, issuer: https://b, client_id: b, client_secret_path: s}\n")
	if err != nil {
		t.Fatal(err)
	}
	all := c.OIDC.All()
	if len(all) != 2 {
		t.Fatal(all)
	}
	for _, p := range all {
		if !p.EmailVerifiedRequired || p.GroupsClaim != "groups" || len(p.Scope) != 3 || !p.PKCE.Enabled || p.PKCE.Method != "S256" {
			t.Errorf("%+v", p)
		}
		if !filepath.IsAbs(p.ClientSecretPath) {
			t.Errorf("%s: %s is not relative to the file", p.ID, p.ClientSecretPath)
		}
	}
}

func TestOIDCSecret(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
	if err := os.WriteFile(filepath.Join(dir, "secret"), []byte("s3cr3t\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := loadText(t, "oidc: {issuer: https://a, client_id: a, client_secret_path: \"${CREDENTIALS_DIRECTORY}/secret\", providers: [{id: b, issuer: https://b, client_id: b, client_secret: hush}]}\n")
	if err != nil {
		t.Fatal(err)
	}
	if s, err := c.OIDC.Secret(); s != "s3cr3t" || err != nil {
		t.Errorf("%q, %v", s, err)
	}
	if f := c.CheckFiles(); len(f) > 0 {
		t.Error(f)
	}
	if err := os.Remove(filepath.Join(dir, "secret")); err != nil {
		t.Fatal(err)
	}
	if _, err := c.OIDC.Secret(); err == nil || !strings.Contains(err.Error(), "client_secret_path") {
		t.Error(err)
	}
	if f := c.CheckFiles(); len(f) != 1 || f[0].Key != "oidc.client_secret_path" {
		t.Error(f)
	}

	c.OIDC.ClientSecret = "hush"
	text, err := c.WithoutSecrets().YAML(true)
	if err != nil || strings.Contains(string(text), "hush") || strings.Count(string(text), hidden) != 2 {
		t.Errorf("%v\n%s", err, text)
	}
	if c.OIDC.ClientSecret != "hush" || c.OIDC.Providers[0].ClientSecret != "hush" {
		t.Error("the settings themselves have lost their secrets")
	}
}

func TestOIDCByEnvironment(t *testing.T) {
	c, err := Load(Options{Search: []string{}, Env: []string{
		"SKEIN_OIDC_ISSUER=https://a", "SKEIN_OIDC_CLIENT_ID=b", "SKEIN_OIDC_CLIENT_SECRET=c,d", "SKEIN_OIDC_SCOPE=openid, email",
		"SKEIN_OIDC_EXTRA_PARAMS={prompt: login}", "SKEIN_OIDC_PKCE_METHOD=plain", "SKEIN_OIDC_PROVIDERS=[{id: x, issuer: https://x, client_id: y}]",
	}})
	if err != nil {
		t.Fatal(err)
	}
	o := c.OIDC
	if o.Issuer != "https://a" || o.ClientSecret != "c,d" || len(o.Scope) != 2 || o.ExtraParams["prompt"] != "login" || o.PKCE.Method != "plain" || o.Providers[0].ID != "x" {
		t.Errorf("%+v", o)
	}
}
