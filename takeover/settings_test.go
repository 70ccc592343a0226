package takeover

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

const example = `
server_url: https://vpn.example.com
listen_addr: 127.0.0.1:8080
metrics_listen_addr: 127.0.0.1:9090
grpc_listen_addr: 127.0.0.1:50443
noise:
  private_key_path: noise.key
prefixes: {v4: 100.64.0.0/10}
derp:
  server:
    enabled: true
    region_id: 999
    private_key_path: /var/lib/headscale/derp.key
  urls: [https://controlplane.tailscale.com/derpmap/default]
  paths: [derp.yaml]
database:
  type: sqlite
  sqlite: {path: db.sqlite, write_ahead_log: true}
policy: {mode: file, path: acl.hujson}
ephemeral_node_inactivity_timeout: 30m
unix_socket: /var/run/headscale/headscale.sock
unix_socket_permission: "0770"
dns:
  base_domain: example.org
  nameservers:
    global: [1.1.1.1]
    split: {corp.example.com: [10.0.0.53]}
oidc: {client_secret_path: secret}
tuning: null
`

func TestConfig(t *testing.T) {
	s, err := parseConfig([]byte(example), "/etc/headscale", nil)
	if err != nil {
		t.Fatal(err)
	}
	if s.Database != "/etc/headscale/db.sqlite" || s.NoiseKey != "/etc/headscale/noise.key" || s.DERPKey != "/var/lib/headscale/derp.key" || s.PolicyPath != "/etc/headscale/acl.hujson" {
		t.Errorf("%+v", s)
	}
	got := map[string]string{}
	for _, o := range s.Ours {
		got[o.Key] = fmt.Sprint(o.Value)
	}
	for key, want := range map[string]string{
		"server_url": "https://vpn.example.com", "prefixes.v4": "100.64.0.0/10", "prefixes.v6": "", "derp.server.enabled": "true", "derp.paths": "[/etc/headscale/derp.yaml]",
		"node.ephemeral.inactivity_timeout": "30m", "dns.override_local_dns": "true", "dns.nameservers.split": "map[corp.example.com:[10.0.0.53]]",
		"oidc.client_secret_path": "/etc/headscale/secret", "unix_socket_permission": "0770", "grpc_listen_addr": "127.0.0.1:50443",
	} {
		if v, ok := got[key]; !ok || v != want {
			t.Errorf("%s is %q, %v; want %q", key, v, ok, want)
		}
	}
	for _, key := range []string{"unix_socket", "noise.private_key_path", "database.type", "database.sqlite.path", "policy.path", "tuning", "ephemeral_node_inactivity_timeout"} {
		if _, ok := got[key]; ok {
			t.Errorf("%s is taken over", key)
		}
	}
	text, err := YAML(s.Ours, "made of\nit")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"# made of\n# it\n\n", "server_url: https://vpn.example.com\n", "    inactivity_timeout: 30m # ephemeral_node_inactivity_timeout\n", "  override_local_dns: true # headscale's default\n"} {
		if !strings.Contains(string(text), line) {
			t.Errorf("the file lacks %q:\n%s", line, text)
		}
	}
}

func TestConfigDatabases(t *testing.T) {
	const head = "noise: {private_key_path: /n}\n"
	for _, c := range []struct{ text, want string }{
		{"database: {type: sqlite3, sqlite: {path: /x/db}}", "/x/db"},
		{"db_type: sqlite3\ndb_path: old.sqlite", "/etc/headscale/old.sqlite"},
		{"database: {type: postgres, postgres: {host: h, port: 5433, name: n, user: u, pass: 'p w@', ssl: true}}", "postgres://u:env%2F1@h:5433/n?sslmode=require"},
		{"database: {type: postgres, postgres: {host: /run/pg, port: 5433, name: n, user: u, ssl: verify-full}}", "postgres://u:env%2F1@/n?host=%2Frun%2Fpg&port=5433&sslmode=verify-full"},
		{"database: {type: postgres, postgres: {host: h, name: n, user: u}}", "postgres://u:env%2F1@h/n?sslmode=disable"},
	} {
		s, err := parseConfig([]byte(head+c.text), "/etc/headscale", []string{"X=y", "HEADSCALE_DATABASE_POSTGRES_PASS=env/1"})
		if err != nil || s.Database != c.want {
			t.Errorf("%s: %v %+v", c.text, err, s)
		}
		if strings.HasPrefix(c.want, "postgres") && strings.Contains(Redact(c.want), "env") {
			t.Errorf("the password is shown: %s", Redact(c.want))
		}
	}
	for text, want := range map[string]string{
		"": "names no noise.private_key_path", "noise: [": "is not YAML", "- a": "is not YAML", head + "database: {type: mysql}": `"mysql" is neither`, head: "names no database.sqlite.path",
	} {
		if _, err := parseConfig([]byte(text), "/", nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v; want %q", text, err, want)
		}
	}
}

func FuzzConfig(f *testing.F) {
	f.Add(example)
	f.Add("noise: {private_key_path: 1}\nip_prefixes: [1, {a: b}]\nderp: {paths: {a: b}}\ndatabase: {type: postgres}")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := parseConfig([]byte(text), "/etc/headscale", nil)
		if err != nil {
			return
		}
		if !slices.IsSortedFunc(s.Ours, func(a, b Setting) int { return strings.Compare(a.Key, b.Key) }) {
			t.Error("the settings are not sorted")
		}
		_, _ = YAML(s.Ours, "")
	})
}
