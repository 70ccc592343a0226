package config

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// loadText loads a file with these contents and nothing else.
func loadText(t testing.TB, text string) (*Config, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return Load(Options{File: path})
}

// place strips the folder off the file names in a message.
func place(err error) string {
	if err == nil {
		return ""
	}
	return regexp.MustCompile(`(?m)^\S*/config\.yaml`).ReplaceAllString(err.Error(), "config.yaml")
}

const example = "../config.yaml"

// TestExampleLoads: the example is valid, and what it sets is the default.
func TestExampleLoads(t *testing.T) {
	c, err := Load(Options{File: example})
	if err != nil {
		t.Fatal(err)
	}
	want, err := Load(Options{Search: []string{}})
	if err != nil {
		t.Fatal(err)
	}
	live, restart := Diff(want, c)
	for _, key := range append(live, restart...) {
		got, _ := c.Get(key)
		def, _ := want.Get(key)
		t.Errorf("%s is %v (%s), the default is %v", key, got, c.Origin(key), def)
	}
}

var commentedKey = regexp.MustCompile(`(?m)^(\s*)#([a-z0-9_]+:)`)

// TestExampleComplete: with all examples switched on, the file is valid too and sets every key.
func TestExampleComplete(t *testing.T) {
	data, err := os.ReadFile(example)
	if err != nil {
		t.Fatal(err)
	}
	c, err := loadText(t, commentedKey.ReplaceAllString(string(data), "$1$2"))
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range Keys() {
		if c.Origin(key) == "default" {
			t.Errorf("config.yaml does not mention %s", key)
		}
	}
	if w := c.Warnings(); len(w) > 0 {
		t.Errorf("the example makes warnings:\n%v", w)
	}
}

func TestDefault(t *testing.T) {
	c, err := Load(Options{Search: []string{filepath.Join(t.TempDir(), "none.yaml")}})
	if err != nil {
		t.Fatal(err)
	}
	dir := c.DataDir
	if dir != SystemDataDir && dir != LocalDataDir {
		t.Errorf("data_dir %q", dir)
	}
	for got, want := range map[string]string{
		c.UnixSocket: "skein.sock", c.Noise.PrivateKeyPath: "noise_private.key",
		c.DERP.Server.PrivateKeyPath: "derp_server_private.key", c.Database.SQLite.Path: "db.sqlite",
	} {
		if got != filepath.Join(dir, want) {
			t.Errorf("%q, want %s in %s", got, want, dir)
		}
	}
	if len(c.Warnings()) > 0 || len(c.CheckFiles()) > 0 || c.Validate() != nil {
		t.Error("the defaults are not clean")
	}
	if c.URL() != nil {
		t.Error("URL without server_url")
	}
}

func TestPrecedence(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "config.yaml")
	text := "listen_addr: :1\nmetrics_listen_addr: :2\nserver_url: http://file\ndata_dir: data\npolicy: {path: p.hujson}\nderp: {paths: [a.yaml, /b.yaml]}\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Load(Options{
		File:      file,
		Env:       []string{"PATH=/bin", "SKEIN_LISTEN_ADDR=:9", "SKEIN_LISTEN_ADDR=:3", "SKEIN_SERVER_URL=http://env", "SKEIN_SOCKET=/x", "SKEIN_LAB_KEEP=1"},
		Flags:     map[string]string{"server_url": "http://flag:8080/"},
		FlagNames: map[string]string{"server_url": "--server-url"},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ key, value, origin string }{
		{"server_url", "http://flag:8080/", "--server-url"},
		{"listen_addr", ":3", "SKEIN_LISTEN_ADDR"},
		{"metrics_listen_addr", ":2", file + ":2"},
		{"log.level", "info", "default"},
		{"data_dir", filepath.Join(dir, "data"), file + ":4"},
		{"policy.path", filepath.Join(dir, "p.hujson"), file + ":5"},
		{"derp.paths", "[" + filepath.Join(dir, "a.yaml") + " /b.yaml]", file + ":6"},
		{"noise.private_key_path", filepath.Join(dir, "data", "noise_private.key"), "default"},
	} {
		v, ok := c.Get(tt.key)
		if !ok || fmt.Sprint(v) != tt.value || c.Origin(tt.key) != tt.origin {
			t.Errorf("%s = %v from %s, want %s from %s", tt.key, v, c.Origin(tt.key), tt.value, tt.origin)
		}
	}
	if u := c.URL(); u.String() != "http://flag:8080" {
		t.Errorf("URL %s", u)
	}
}

func TestEnv(t *testing.T) {
	c, err := Load(Options{Search: []string{}, Env: []string{
		"SKEIN_DNS_BASE_DOMAIN=home.arpa",
		"SKEIN_DNS_NAMESERVERS_GLOBAL=1.1.1.1, 8.8.8.8,",
		"SKEIN_DNS_NAMESERVERS_SPLIT={corp.example.com: [10.0.0.1]}",
		`SKEIN_DNS_EXTRA_RECORDS=[{"name": "nas.home.arpa", "type": "A", "value": "100.64.0.4"}]`,
		"SKEIN_TRUSTED_PROXIES=10.0.0.1,fd00::/8",
		"SKEIN_NODE_EXPIRY=180d",
		"SKEIN_UNIX_SOCKET_PERMISSION=0600",
		"SKEIN_DERP_SERVER_VERIFY_CLIENTS=false",
		"SKEIN_LIMITS_PENDING_REGISTRATIONS=5",
		"SKEIN_PREFIXES_V6=",
		"SKEIN_METRICS_LISTEN_ADDR=",
		"SKEIN_DERP_URLS=",
		"SKEIN_DATA_DIR=data",
	}})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ got, want any }{
		{c.DNS.BaseDomain, "home.arpa"},
		{c.DNS.Nameservers.Global, []string{"1.1.1.1", "8.8.8.8"}},
		{c.DNS.Nameservers.Split, map[string][]string{"corp.example.com": {"10.0.0.1"}}},
		{c.DNS.ExtraRecords, []Record{{"nas.home.arpa", "A", "100.64.0.4"}}},
		{c.TrustedProxies, []netip.Prefix{netip.MustParsePrefix("10.0.0.1/32"), netip.MustParsePrefix("fd00::/8")}},
		{c.Node.Expiry, Duration(180 * 24 * time.Hour)},
		{c.UnixSocketPermission, FileMode(0o600)},
		{c.DERP.Server.VerifyClients, false},
		{c.Limits.PendingRegistrations, 5},
		{c.Prefixes.V6, netip.Prefix{}},
		{c.MetricsListenAddr, ""},
		{len(c.DERP.URLs), 0},
		{c.DataDir, "data"},
	} {
		if !reflect.DeepEqual(tt.got, tt.want) {
			t.Errorf("got %#v, want %#v", tt.got, tt.want)
		}
	}
}

// TestFaults: what the error says, to the letter.
func TestFaults(t *testing.T) {
	tests := []struct {
		name  string
		file  string
		env   []string
		flags map[string]string
		want  []string
	}{
		{name: "empty", file: ""},
		{name: "comments only", file: "# nothing\n"},
		{name: "values left out", file: "server_url:\nderp:\n  urls:\ndns:\n"},
		{name: "several at once", file: "listen_addr: 8080\ndns:\n  base_domain: Bad..Name\n  magic_dns: perhaps\nlog: {level: inf}\n",
			env: []string{"SKEIN_NODE_EXPIRY=soon"}, flags: map[string]string{"metrics_listen_addr": ":x"}, want: []string{
				`config.yaml:1: listen_addr: "8080": want host:port, such as :8080, 127.0.0.1:8080 or [::1]:8080`,
				`config.yaml:3: dns.base_domain: "Bad..Name": want a domain in lower case without a dot at the end, such as skein.internal`,
				`config.yaml:4: dns.magic_dns: "perhaps": want true or false`,
				`config.yaml:5: log.level: "inf": want debug or info or warn or error; did you mean info?`,
				`SKEIN_NODE_EXPIRY: node.expiry: "soon": want a time such as 90s, 30m, 12h, 180d, 2w, 1y or 0`,
				`metrics_listen_addr: metrics_listen_addr: ":x": port "x" is not a number from 0 (any free one) to 65535`,
			}},
		{name: "unknown keys", file: "lisen_addr: :8080\ndns:\n  basedomain: a.b\n  zzzzzzzzzzzzz: 1\nderp:\n  servers: {enabled: false}\nbase_domain: a.b\n", want: []string{
			`config.yaml:1: lisen_addr: unknown key; did you mean listen_addr?`,
			`config.yaml:3: dns.basedomain: unknown key; did you mean dns.base_domain?`,
			`config.yaml:4: dns.zzzzzzzzzzzzz: unknown key; config.yaml of the distribution lists them all`,
			`config.yaml:6: derp.servers: unknown key; did you mean derp.server?`,
			`config.yaml:7: base_domain: unknown key; did you mean dns.base_domain?`,
		}},
		{name: "dotted key", file: "dns.base_domain: a.b\n", want: []string{
			`config.yaml:1: dns.base_domain: want a line for each part, one below the other: "dns:", then what is in it`,
		}},
		{name: "keys of headscale", file: "grpc_listen_addr: :1\nephemeral_node_inactivity_timeout: 30m\noidc:\n  map_legacy_users: true\n  strip_email_domain: true\ndatabase:\n  type: postgres\n  postgres: {host: h, max_idle_conns: 3}\n" +
			"  sqlite: {write_ahead_log: true}\ntls_letsencrypt_hostname: \"\"\ndns_config:\n  nameservers: [1.1.1.1]\n  foo: 1\ndisable_check_updates: true\n", want: []string{
			`config.yaml:1: grpc_listen_addr: not there: Skein has no gRPC; commands reach the server over unix_socket`,
			`config.yaml:2: ephemeral_node_inactivity_timeout: is called node.ephemeral.inactivity_timeout here`,
			`config.yaml:4: oidc.map_legacy_users: not there: a user with the same mail address that has not signed in yet becomes the one who signs in; take the line out`,
			`config.yaml:5: oidc.strip_email_domain: not there: the name of a user is what stands before the @ anyway; write mail addresses into policies; take the line out`,
			`config.yaml:8: database.postgres.max_idle_conns: not needed: connections that idle are kept for some minutes; take the line out`,
			`config.yaml:9: database.sqlite.write_ahead_log: not needed: write-ahead logging is always on; take the line out`,
			`config.yaml:10: tls_letsencrypt_hostname: not in this version: certificates cannot be ordered yet; use tls_cert_path and tls_key_path, or no certificate at all`,
			`config.yaml:12: dns_config.nameservers: is called dns.nameservers.global here`,
			`config.yaml:13: dns_config.foo: is called dns here, with names of its own; see config.yaml of the distribution`,
			`config.yaml:14: disable_check_updates: not needed: Skein never calls home to look for updates; take the line out`,
		}},
		{name: "environment", env: []string{"SKEIN_DNS_BASEDOMAIN=a", "SKEIN_SOKET=x", "SKEIN_QQQQQQQQQQQQQQQQ=1", "SKEIN_LOG_FORMAT="}, want: []string{
			`SKEIN_DNS_BASEDOMAIN: unknown environment variable; did you mean SKEIN_DNS_BASE_DOMAIN?`,
			`SKEIN_QQQQQQQQQQQQQQQQ: unknown environment variable: no setting has this name; unset it`,
			`SKEIN_SOKET: unknown environment variable; did you mean SKEIN_SOCKET?`,
			`SKEIN_LOG_FORMAT: log.format: "": want auto or text or json`,
		}},
		{name: "flag", flags: map[string]string{"listen": ":1"}, want: []string{`listen: listen: unknown key; did you mean listen_addr?`}},
		{name: "wrong kinds", file: "listen_addr: [a]\nderp:\n  urls: http://a\n  server: 1\n  update_frequency: {}\ndns:\n  nameservers:\n    split: [a]\n    global: {a: b}\n  extra_records: [{nam: a}, x, {name: [1]}]\ntrusted_proxies: [10.0.0.1/8, x]\n", want: []string{
			`config.yaml:1: listen_addr: want a single value`,
			`config.yaml:3: derp.urls: want a list, such as [a, b] or lines that start with "- "`,
			`config.yaml:4: derp.server: want settings below it, such as derp.server.enabled`,
			`config.yaml:5: derp.update_frequency: want a single value`,
			`config.yaml:8: dns.nameservers.split: want names, each with a list: "example.com: [10.0.0.1]"`,
			`config.yaml:9: dns.nameservers.global: want a list, such as [a, b] or lines that start with "- "`,
			`config.yaml:10: dns.extra_records: unknown key "nam" in a record: want name, type and value`,
			`config.yaml:10: dns.extra_records: want a record: {name: host.example.com, type: A, value: 100.64.0.1}`,
			`config.yaml:10: dns.extra_records: name: want a single value`,
			`config.yaml:11: trusted_proxies: "10.0.0.1/8" has bits set behind the /8: want 10.0.0.0/8`,
			`config.yaml:11: trusted_proxies: "x": want an address or a network such as 10.0.0.0/8`,
		}},
		{name: "twice", file: "log:\n  level: info\n  level: debug\nlog: {}\ndns:\n  nameservers:\n    split:\n      a.b: [1.1.1.1]\n      a.b: [::1]\n", want: []string{
			`config.yaml:3: log.level: stands here twice, on line 2 already: want it once`,
			`config.yaml:4: log: stands here twice, on line 1 already: want it once`,
			`config.yaml:9: dns.nameservers.split: a.b stands here twice: want it once`,
		}},
		{name: "not a mapping", file: "- a\n", want: []string{`config.yaml:1: want settings, one "key: value" to a line`}},
		{name: "two documents", file: "log: {level: info}\n---\nlog: {level: debug}\n", want: []string{`config.yaml:2: a second document starts here ("---"): want all settings in one`}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "config.yaml")
			if err := os.WriteFile(path, []byte(tt.file), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := Load(Options{File: path, Env: tt.env, Flags: tt.flags})
			if got := place(err); got != strings.Join(tt.want, "\n") {
				t.Errorf("got:\n%s\nwant:\n%s", got, strings.Join(tt.want, "\n"))
			}
			var faults Faults
			if err != nil && !errors.As(err, &faults) {
				t.Errorf("the error is a %T, want Faults", err)
			}
		})
	}
}

// TestValues: one setting at a time, good and bad. The text is what comes after the key's own name in the message.
func TestValues(t *testing.T) {
	tests := []struct{ key, value, fault string }{
		{"server_url", "https://skein.example.com", ""},
		{"server_url", "https://skein.example.com/", ""},
		{"server_url", "http://[fd00::1]:8080", ""},
		{"server_url", "http://192.0.2.1:8080", ""},
		{"server_url", "skein.example.com", "want http:// or https://"},
		{"server_url", "ftp://skein.example.com", "want http:// or https://"},
		{"server_url", "https://", "want http:// or https://"},
		{"server_url", "https://a/b", "more than scheme, host and port"},
		{"server_url", "https://u:p@a", "more than scheme, host and port"},
		{"server_url", "https://a?b=c", "more than scheme, host and port"},
		{"server_url", "https://a:0", "not between 1 and 65535"},
		{"server_url", "https://a:70000", "not between 1 and 65535"},
		{"server_url", "http://0.0.0.0:8080", "clients cannot reach 0.0.0.0"},
		{"server_url", "http://a b", "want http"},
		{"server_url", "http://host_name", "not a host name"},
		{"server_url", "https://skein.internal", "inside"},
		{"server_url", "https://vpn.skein.internal", "inside"},
		{"listen_addr", "127.0.0.1:0", ""},
		{"listen_addr", "[::]:8080", ""},
		{"listen_addr", "localhost:8080", ""},
		{"listen_addr", "", "is empty"},
		{"listen_addr", ":99999", "not a number from 0"},
		{"listen_addr", "::1:8080", "want host:port"},
		{"listen_addr", "a b:1", "not an address or host name"},
		{"listen_addr", "127.0.0.1:9090", "is listen_addr as well"},
		{"tls_fallback_listen_addr", "", ""},
		{"tls_fallback_listen_addr", "443", "want host:port"},
		{"unix_socket", "/run/" + strings.Repeat("a", 200), "more than the 107"},
		{"unix_socket_permission", "0770", ""},
		{"unix_socket_permission", "0o770", ""},
		{"unix_socket_permission", "888", "file mode in octal"},
		{"unix_socket_permission", "07777", "file mode in octal"},
		{"tls_cert_path", "/a", "tls_key_path is not"},
		{"tls_key_path", "/a", "tls_cert_path is not"},
		{"prefixes.v4", "100.64.1.0/24", ""},
		{"prefixes.v4", "", ""},
		{"prefixes.v4", "100.64.0.1/10", "want 100.64.0.0/10"},
		{"prefixes.v4", "100.64.0.0", "at least 8 addresses"},
		{"prefixes.v4", "100.64.0.0/30", "at least 8 addresses"},
		{"prefixes.v4", "fd7a:115c:a1e0::/48", "want an IPv4 network"},
		{"prefixes.v6", "100.64.0.0/10", "want an IPv6 network"},
		{"prefixes.v6", "none", "want an address or a network"},
		{"prefixes.allocation", "random", ""},
		{"prefixes.allocation", "rand", "did you mean random?"},
		{"derp.server.enabled", "false", "no relay at all"},
		{"derp.server.region_id", "900", ""},
		{"derp.server.region_id", "0", "1 to 65535"},
		{"derp.server.region_id", "many", "whole number"},
		{"derp.server.region_code", "", "short code"},
		{"derp.server.stun_listen_addr", "", ""},
		{"derp.server.stun_listen_addr", "3478", "want host:port"},
		{"derp.server.ipv4", "none", ""},
		{"derp.server.ipv4", "192.0.2.1", ""},
		{"derp.server.ipv4", "::1", "IPv4 address"},
		{"derp.server.ipv6", "192.0.2.1", "IPv6 address"},
		{"derp.server.automatically_add_embedded_derp_region", "false", "leaves the DERP map empty"},
		{"derp.urls", "ftp://a", "want http:// or https://"},
		{"derp.urls", "https://a, http://b", ""},
		{"derp.update_frequency", "30s", "at least 1m"},
		{"derp.update_frequency", "2w", ""},
		{"database.type", "sqlite3", ""},
		{"database.type", "mysql", "want sqlite"},
		{"database.type", "postgres", ""},
		{"database.postgres.ssl", "yes", "verify-full"},
		{"database.postgres.ssl", "true", ""},
		{"database.postgres.port", "0", "1 to 65535"},
		{"database.postgres.max_open_conns", "1", "at least 3"},
		{"cluster.step_aside_after", "1s", "5s to 1h"},
		{"policy.mode", "db", "want file or database"},
		{"dns.base_domain", "", "want a domain"},
		{"dns.base_domain", "internal", ""},
		{"dns.base_domain", "a.b.", "without a dot at the end"},
		{"dns.base_domain", strings.Repeat("a", 64) + ".b", "want a domain"},
		{"dns.override_local_dns", "true", "without any resolver"},
		{"dns.nameservers.global", "1.1.1.1,[2606:4700::1111]:53,https://dns.nextdns.io/abc", ""},
		{"dns.nameservers.global", "one.one.one.one", "want an address"},
		{"dns.nameservers.global", "http://dns", "want an address"},
		{"dns.nameservers.split", "{a.example: [1.1.1.1], 10.in-addr.arpa: ['::1']}", ""},
		{"dns.nameservers.split", "{a.example: []}", "has no resolvers"},
		{"dns.nameservers.split", "{a..b: [1.1.1.1]}", "not a domain"},
		{"dns.nameservers.split", "{a.example: [x]}", "want an address"},
		{"dns.nameservers.split", "{a", "not YAML"},
		{"dns.search_domains", "corp.example.com,b c", `"b c" is not a domain`},
		{"dns.extra_records", "[{name: a.b, value: 1.2.3.4}, {name: a.b, type: AAAA, value: '::1'}]", ""},
		{"dns.extra_records", "[{name: a.b, type: AAAA, value: 1.2.3.4}]", "does not fit type AAAA"},
		{"dns.extra_records", "[{name: a.b, type: CNAME, value: c}]", "A and AAAA only"},
		{"dns.extra_records", "[{name: a.b, type: A, value: c}]", "want an address"},
		{"dns.extra_records", "[{type: A, value: 1.2.3.4}]", "want a full name"},
		{"node.expiry", "0", ""},
		{"node.expiry", "1y", ""},
		{"node.expiry", "5s", "at least 1m"},
		{"node.expiry", "-1h", "want a time"},
		{"node.ephemeral.inactivity_timeout", "0", "at least 1s"},
		{"routes.failover_after", "100ms", "500ms to 1h"},
		{"routes.restart_grace", "0", ""},
		{"routes.restart_grace", "2h", "0 to 1h"},
		{"log.level", "trace", "debug"},
		{"log.level", "warn", ""},
		{"log.format", "xml", "want auto or text or json"},
		{"limits.connections_per_address", "-1", "0 for no limit"},
		{"limits.connections_per_address", "0", ""},
		{"taildrop.enabled", "no", ""},
		{"taildrop.enabled", "nope", "want true or false"},
		{"data_dir", "a\nb", "control character"},
	}
	for _, tt := range tests {
		t.Run(tt.key+"="+tt.value, func(t *testing.T) {
			flags := map[string]string{tt.key: tt.value}
			if strings.HasSuffix(tt.fault, "listen_addr as well") {
				flags["metrics_listen_addr"] = tt.value
			}
			_, err := Load(Options{Search: []string{}, Flags: flags})
			if tt.fault == "" && err != nil || tt.fault != "" && (err == nil || !strings.Contains(err.Error(), tt.fault)) {
				t.Errorf("error %v, want %q", err, tt.fault)
			}
			var faults Faults
			if errors.As(err, &faults) && len(faults) != 1 {
				t.Errorf("%d faults, want 1:\n%v", len(faults), err)
			}
		})
	}
}

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	first, second := write("xdg/skein/config.yaml", "listen_addr: :1"), write("config.yaml", "listen_addr: :2")

	if got, want := SearchPaths([]string{"XDG_CONFIG_HOME=" + dir}), []string{"/etc/skein/config.yaml", dir + "/skein/config.yaml", "config.yaml"}; !slices.Equal(got, want) {
		t.Errorf("search %v, want %v", got, want)
	}
	if got := SearchPaths([]string{"HOME=/h"})[1]; got != "/h/.config/skein/config.yaml" {
		t.Errorf("without XDG_CONFIG_HOME: %s", got)
	}
	c, err := Load(Options{Search: []string{filepath.Join(dir, "none"), first, second}})
	if err != nil || c.ListenAddr != ":1" {
		t.Errorf("%v, %v: want the first file that exists", c, err)
	}
	if _, err := Load(Options{File: filepath.Join(dir, "none")}); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), filepath.Join(dir, "none")) {
		t.Errorf("a file that was asked for is missing: %v", err)
	}
	if _, err := Load(Options{File: dir}); err == nil {
		t.Error("a folder was read as a file")
	}
	if _, err := Load(Options{File: write("big.yaml", strings.Repeat("#", maxFileBytes+1))}); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("an oversized file: %v", err)
	}
	c, err = loadText(t, "policy: {path: none.hujson}\nderp: {paths: [.]}\n")
	if err != nil {
		t.Fatal(err)
	}
	faults := c.CheckFiles()
	if len(faults) != 2 || faults[0].Key != "policy.path" || faults[0].Line != 1 || faults[1].Key != "derp.paths" {
		t.Errorf("files: %v", faults)
	}
}

func TestWarnings(t *testing.T) {
	c, err := loadText(t, "prefixes: {v4: 10.0.0.0/8}\ntrusted_proxies: [0.0.0.0/0]\nlogtail: {enabled: true}\nderp: {server: {verify_clients: false}}\n")
	if err != nil {
		t.Fatal(err)
	}
	var keys []string
	for _, w := range c.Warnings() {
		keys = append(keys, w.Key)
	}
	if want := []string{"prefixes.v4", "trusted_proxies", "derp.server.verify_clients", "logtail.enabled"}; !slices.Equal(keys, want) {
		t.Errorf("warnings about %v, want %v", keys, want)
	}
}

func TestDataDir(t *testing.T) {
	dir := t.TempDir()
	for _, tt := range []struct {
		system   string
		writable bool
		asked    string
		want     string
	}{
		{dir, true, dir, dir},
		{dir, false, dir, LocalDataDir},
		{filepath.Join(dir, "new"), true, dir, filepath.Join(dir, "new")},
		{filepath.Join(dir, "new"), false, dir, LocalDataDir},
	} {
		var asked string
		got := chooseDataDir(tt.system, func(d string) bool { asked = d; return tt.writable })
		if got != tt.want || asked != tt.asked {
			t.Errorf("%+v: got %s, asked about %s", tt, got, asked)
		}
	}
	if !writable(dir) || writable(filepath.Join(dir, "none")) {
		t.Error("writable")
	}
}

// TestYAMLRoundTrip: what YAML prints, Load reads back to the same settings.
func TestYAMLRoundTrip(t *testing.T) {
	data, err := os.ReadFile(example)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"defaults": "", "examples": commentedKey.ReplaceAllString(string(data), "$1$2")} {
		for _, origins := range []bool{false, true} {
			c, err := loadText(t, text)
			if err != nil {
				t.Fatal(err)
			}
			c.DataDir, c.UnixSocket = "/data", "/data/skein.sock"
			out, err := c.YAML(origins)
			if err != nil {
				t.Fatal(err)
			}
			back, err := loadText(t, string(out))
			if err != nil {
				t.Fatalf("%s: %v\n%s", name, err, out)
			}
			live, restart := Diff(c, back)
			for _, key := range append(live, restart...) {
				a, _ := c.Get(key)
				b, _ := back.Get(key)
				if f, ok := a.(string); ok && !filepath.IsAbs(f) { // relative to another folder now
					continue
				}
				t.Errorf("%s: %s was %v, is %v\n%s", name, key, a, b, out)
			}
			if origins != strings.Contains(string(out), "# default") && name == "defaults" {
				t.Errorf("origins %v:\n%s", origins, out)
			}
		}
	}
}

// TestOversized: long files and long values end in a short message.
func TestOversized(t *testing.T) {
	var keys strings.Builder
	for i := 0; keys.Len() < maxFileBytes/2; i++ {
		fmt.Fprintf(&keys, "dns_base_domain%d: 1\n", i)
	}
	for name, text := range map[string]string{
		"unknown keys":   keys.String(),
		"long value":     "listen_addr: " + strings.Repeat("ü", maxFileBytes/3),
		"long key":       strings.Repeat("a", maxFileBytes/2) + ": 1",
		"repeated key":   strings.Repeat("? a\n", 100_000),
		"long list":      "dns: {search_domains: [" + strings.Repeat("a,", maxListLen+1) + "]}",
		"deep":           strings.Repeat("[", maxFileBytes/2),
		"foreign keys":   "oidc: {" + strings.Repeat("a: 1, ", 10_000) + "}",
		"foreign below":  "dns_config: {" + strings.Repeat("a: 1, ", 10_000) + "}",
		"multiplication": "dns: {nameservers: {split: {a: &a [" + strings.Repeat("1.1.1.1,", maxListLen-1) + "], b: *a, c: *a}}}",
	} {
		_, err := loadText(t, text)
		if err == nil || len(err.Error()) > 100*1000 {
			t.Errorf("%s: %.300v", name, err)
		}
	}
}

func TestDiff(t *testing.T) {
	a, b := Default(), Default()
	b.DERP.URLs = []string{}
	if live, restart := Diff(a, b); len(live)+len(restart) > 0 {
		t.Errorf("nothing changed, got %v, %v", live, restart)
	}
	b.Log.Level = "debug"
	b.Policy.Path = "/p"
	b.DERP.URLs = []string{"https://a"}
	b.DNS.Nameservers.Split = map[string][]string{"a": {"1.1.1.1"}}
	b.Routes.FailoverAfter = 0
	b.TLSCertPath = "/c"
	b.ListenAddr = ":1"
	b.DERP.Server.STUNListenAddr = ":1"
	b.Prefixes.V4 = netip.Prefix{}
	live, restart := Diff(a, b)
	if want := []string{"derp.urls", "tls_cert_path", "dns.nameservers.split", "log.level"}; !slices.Equal(live, want) {
		t.Errorf("live %v, want %v", live, want)
	}
	if want := []string{"listen_addr", "prefixes.v4", "derp.server.stun_listen_addr", "policy.path", "routes.failover_after"}; !slices.Equal(restart, want) {
		t.Errorf("restart %v, want %v", restart, want)
	}
}

func TestKeys(t *testing.T) {
	env := map[string]string{}
	for _, k := range Keys() {
		if other, ok := env[EnvName(k)]; ok {
			t.Errorf("%s and %s share %s", k, other, EnvName(k))
		}
		env[EnvName(k)] = k
		if isOtherEnv(EnvName(k)) {
			t.Errorf("%s is hidden by a variable of another meaning", EnvName(k))
		}
		if foreign(k) != "" {
			t.Errorf("%s is one of our keys and in the list of foreign ones", k)
		}
		if _, ok := Default().Get(k); !ok {
			t.Errorf("Get(%s)", k)
		}
	}
	if EnvName("dns.base_domain") != "SKEIN_DNS_BASE_DOMAIN" {
		t.Error(EnvName("dns.base_domain"))
	}
	// What the table of foreign keys points to must exist.
	for k, text := range foreignKeys {
		if to, ok := strings.CutPrefix(text, "is called "); ok {
			to, _, _ = strings.Cut(to, " ")
			if _, ok := byKey[to]; !ok && !sections[to] {
				t.Errorf("%s is said to be %s, which does not exist", k, to)
			}
		}
	}
}

func TestDuration(t *testing.T) {
	const day = 24 * time.Hour
	for _, tt := range []struct {
		in   string
		want time.Duration
		out  string // "": as in
	}{
		{"0", 0, ""}, {"0s", 0, "0"}, {"90s", 90 * time.Second, "1m30s"}, {"30m", 30 * time.Minute, ""}, {"12h", 12 * time.Hour, ""},
		{"1d", day, ""}, {"2w", 14 * day, "14d"}, {"1y", 365 * day, "365d"}, {"1y2w3d4h", (365+14+3)*day + 4*time.Hour, "382d4h"},
		{"1d12h", 36 * time.Hour, ""}, {"1.5h", 90 * time.Minute, "1h30m"}, {"3s", 3 * time.Second, ""}, {"500ms", 500 * time.Millisecond, ""},
		{"10h0m5s", 10*time.Hour + 5*time.Second, ""},
	} {
		d, err := ParseDuration(tt.in)
		if err != nil || d.Std() != tt.want {
			t.Errorf("%s: %v, %v; want %v", tt.in, d.Std(), err, tt.want)
		}
		if tt.out == "" {
			tt.out = tt.in
		}
		if d.String() != tt.out {
			t.Errorf("%s prints as %s, want %s", tt.in, d, tt.out)
		}
	}
	for _, bad := range []string{"", "d", "1", "-1d", "1d-1h", "1.5d", "1d2y", "1y1y", "300y", "9999999999y", "1h1d", "soon", "-5s", "1 d"} {
		if d, err := ParseDuration(bad); err == nil {
			t.Errorf("%q was read as %v", bad, d)
		}
	}
	r := rand.New(rand.NewPCG(1, 2))
	for range 1000 {
		d := Duration(r.Int64())
		if back, err := ParseDuration(d.String()); err != nil || back != d {
			t.Fatalf("%d prints as %s, which reads as %v (%v)", d, d, back, err)
		}
	}
}

// FuzzLoad: whatever the file and the environment say, Load answers with a valid Config or with faults, and prints what it has so
// that it can be read again.
func FuzzLoad(f *testing.F) {
	data, err := os.ReadFile(example)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(data), "SKEIN_LISTEN_ADDR=:1")
	f.Add(commentedKey.ReplaceAllString(string(data), "$1$2"), "SKEIN_DNS_NAMESERVERS_SPLIT={a: [1.1.1.1]}")
	f.Add("a: &a [*a]\nb: *a\n", "SKEIN_=")
	f.Add("dns: &d {nameservers: {split: {a: &l [1.1.1.1], b: *l}}}\n", "SKEIN_DNS_EXTRA_RECORDS=[{name: a, value: 1.1.1.1}]")
	f.Add("---\n...\n---\n", "")
	f.Add("? [a]\n: b\n<<: {listen_addr: x}\n", "SKEIN_NODE_EXPIRY=1y1d")
	f.Add("\xff\xfe", "SKEIN_DNS_NAMESERVERS_SPLIT=&a {a: *a}")
	f.Fuzz(func(t *testing.T, text, env string) {
		c, err := func() (*Config, error) {
			path := filepath.Join(t.TempDir(), "config.yaml")
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			return Load(Options{File: path, Env: []string{env}})
		}()
		if err != nil {
			var faults Faults
			if !errors.As(err, &faults) || len(faults) == 0 {
				t.Fatalf("%T: %v", err, err)
			}
			return
		}
		if err := c.Validate(); err != nil {
			t.Fatal(err)
		}
		out, err := c.YAML(true)
		if err != nil {
			t.Fatal(err)
		}
		back, err := loadText(t, string(out))
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		for _, key := range Keys() {
			if byKey[key].path {
				continue // relative to another folder now
			}
			a, _ := c.Get(key)
			b, _ := back.Get(key)
			if !reflect.DeepEqual(a, b) && fmt.Sprint(a) != fmt.Sprint(b) {
				t.Fatalf("%s was %q, is %q\n%s", key, a, b, out)
			}
		}
	})
}
