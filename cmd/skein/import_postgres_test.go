package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"database/sql"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib"

	"github.com/skein-vpn/skein/config"
	"github.com/skein-vpn/skein/db"
	"github.com/skein-vpn/skein/db/pgtest"
	"github.com/skein-vpn/skein/tailnet"
)

// skein runs a command line and returns how it ended and what it printed.
func skein(args ...string) (code int, out, errOut string) {
	var o, e bytes.Buffer
	code = run(args, strings.NewReader(""), &o, &e)
	return code, o.String(), e.String()
}

// A headscale goes into PostgreSQL: looked at, written, found again, never over something else; and the configuration leads there.
func TestImportIntoPostgres(t *testing.T) {
	url := pgtest.Database(t)
	dir := t.TempDir()
	hs, to := filepath.Join(dir, "hs"), filepath.Join(dir, "new")
	if err := writeHeadscale(hs); err != nil {
		t.Fatal(err)
	}
	imports := []string{"import", "headscale", "--config", filepath.Join(hs, "config.yaml"), "--data-dir", to, "--to", url}
	if code, out, e := skein(append(imports, "--dry-run")...); code != exitOK || !strings.Contains(out, "; everything else to postgres://") {
		t.Fatalf("dry run: %d %s %s", code, out, e)
	}
	if _, err := os.Stat(to); err == nil {
		t.Error("a dry run has written something")
	}
	code, out, e := skein(imports...)
	if code != exitOK || !strings.Contains(out, "Written to "+to) || strings.Contains(out, "db.sqlite,") {
		t.Fatalf("%d %s %s", code, out, e)
	}
	if _, err := os.Stat(filepath.Join(to, importDB)); err == nil {
		t.Error("there is a SQLite database too")
	}
	cfg, err := config.Load(config.Options{File: filepath.Join(to, importConfig)})
	if err != nil || !cfg.Database.IsPostgres() {
		t.Fatalf("the configuration: %v", err)
	}
	dsn, err := cfg.Database.Postgres.DSN()
	if err != nil {
		t.Fatal(err)
	}
	d, err := db.Open(context.Background(), db.Options{URL: dsn})
	if err != nil {
		t.Fatal(err)
	}
	c, err := d.Load(context.Background(), tailnet.DefaultID)
	if err != nil || len(c.Users) != 1 || c.Users[0].ID != 3 || len(c.Nodes) != 1 || c.Nodes[0].IPv4.String() != "100.64.0.7" || c.Rev != 1 {
		t.Errorf("in the database: %+v, %v", c, err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if code, _, e := skein(imports...); code != exitOK || !strings.Contains(e, "all there already") {
		t.Errorf("again: %d %s", code, e)
	}
	if err := runSQL(filepath.Join(hs, "db.sqlite"), "UPDATE users SET display_name = 'Anna B.'"); err != nil {
		t.Fatal(err)
	}
	for _, more := range [][]string{nil, {"--force"}} {
		if code, _, e := skein(append(imports, more...)...); code != exitFailed || !strings.Contains(e, "holds a server already; name an empty one") {
			t.Errorf("another one with %v: %d %s", more, code, e)
		}
	}
}

// A headscale whose database is PostgreSQL is named by its address.
func TestImportFromPostgres(t *testing.T) {
	url := pgtest.Database(t)
	pg, err := sql.Open("pgx", url)
	if err != nil {
		t.Fatal(err)
	}
	defer pg.Close()
	for _, q := range []string{
		`CREATE TABLE migrations (id text PRIMARY KEY)`,
		`CREATE TABLE users (id BIGSERIAL PRIMARY KEY, name text, display_name text, email text, provider_identifier text, provider text, profile_pic_url text, created_at timestamptz, deleted_at timestamptz)`,
		`CREATE TABLE pre_auth_keys (id BIGSERIAL PRIMARY KEY, key text, user_id bigint, reusable boolean, ephemeral boolean, used boolean, tags text, expiration timestamptz, created_at timestamptz)`,
		`CREATE TABLE api_keys (id BIGSERIAL PRIMARY KEY, prefix text, hash bytea, created_at timestamptz, expiration timestamptz, last_seen timestamptz)`,
		`CREATE TABLE nodes (id BIGSERIAL PRIMARY KEY, machine_key text, node_key text, disco_key text, endpoints text, host_info text, ipv4 text, ipv6 text, hostname text, given_name text,
			user_id bigint, register_method text, forced_tags text, auth_key_id bigint, last_seen timestamptz, expiry timestamptz, approved_routes text, created_at timestamptz, deleted_at timestamptz)`,
		`CREATE TABLE policies (id BIGSERIAL PRIMARY KEY, created_at timestamptz, deleted_at timestamptz, data text)`,
		`INSERT INTO users (name) VALUES ('anna')`,
		`INSERT INTO nodes (machine_key, node_key, ipv4, given_name, hostname, user_id) VALUES ('mkey:` + strings.Repeat("a1", 32) + `', 'nodekey:` + strings.Repeat("b2", 32) + `', '100.64.0.7', 'laptop', 'laptop', 1)`,
	} {
		if _, err := pg.Exec(q); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	key := filepath.Join(dir, "noise.key")
	if err := os.WriteFile(key, []byte("privkey:"+strings.Repeat("a1", 32)), 0o600); err != nil {
		t.Fatal(err)
	}
	code, out, e := skein("import", "headscale", "--db", url, "--noise-key", key, "--data-dir", filepath.Join(dir, "new"))
	if code != exitOK || !strings.Contains(out, "nodes          1 of 1") || !strings.Contains(out, "Written to") {
		t.Errorf("%d %s %s", code, out, e)
	}
}

// The certificate that headscale has ordered serves on, as long as it is valid.
func TestImportCertificate(t *testing.T) {
	dir := t.TempDir()
	hs := filepath.Join(dir, "hs")
	if err := writeHeadscale(hs); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(hs, "config.yaml")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	more := strings.Replace(string(text), "http://vpn.example.com:8080", "https://vpn.example.com", 1) + "tls_letsencrypt_hostname: VPN.example.com\ntls_letsencrypt_cache_dir: cache\n"
	if err := os.WriteFile(path, []byte(more), 0o600); err != nil {
		t.Fatal(err)
	}
	try := func(name string, end time.Time) (string, *config.Config) {
		t.Helper()
		cache := filepath.Join(hs, "cache", "vpn.example.com")
		if !end.IsZero() {
			if err := os.MkdirAll(filepath.Dir(cache), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(cache, selfSigned(t, end), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		to := filepath.Join(dir, name)
		code, out, e := skein("import", "headscale", "--config", path, "--data-dir", to)
		if code != exitOK {
			t.Fatalf("%s: %d %s %s", name, code, out, e)
		}
		cfg, err := config.Load(config.Options{File: filepath.Join(to, importConfig)})
		if err != nil {
			t.Fatal(err)
		}
		return out, cfg
	}
	if out, cfg := try("none", time.Time{}); cfg.TLSCertPath != "" || !strings.Contains(out, "none was found") {
		t.Errorf("without one: %s", out)
	}
	if out, cfg := try("old", time.Now().Add(-time.Hour)); cfg.TLSCertPath != "" || !strings.Contains(out, "has ended") {
		t.Errorf("an old one: %s", out)
	}
	out, cfg := try("good", time.Now().Add(1000*time.Hour))
	if want := filepath.Join(dir, "good", importTLS); cfg.TLSCertPath != want || cfg.TLSKeyPath != want || !strings.Contains(out, "Skein does not order a new one") {
		t.Errorf("%+v\n%s", cfg, out)
	}
}

// selfSigned is a certificate with its key, in one file as headscale keeps them.
func selfSigned(t *testing.T, end time.Time) []byte {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "vpn.example.com"}, DNSNames: []string{"vpn.example.com"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: end.Add(-2000 * time.Hour), NotAfter: end,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return append(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: key}), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
}
