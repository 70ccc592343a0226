package takeover

import (
	"context"
	"database/sql"
	"encoding/json"
	"strings"
	"testing"

	"github.com/skein-vpn/skein/db/pgtest"
)

// A headscale on PostgreSQL gives the same plan as one on SQLite with the same rows, and is only read.
func TestPostgres(t *testing.T) {
	url := pgtest.Database(t)
	pg, err := sql.Open("pgx", url)
	if err != nil {
		t.Fatal(err)
	}
	defer pg.Close()
	hash := mustBcrypt(t, strings.Repeat("s", 64), 4)
	schema := `CREATE TABLE migrations (id text PRIMARY KEY);
		CREATE TABLE users (id SERIAL PRIMARY KEY, name text, display_name text, email text, provider_identifier text, provider text, profile_pic_url text, created_at TIME, updated_at TIME, deleted_at TIME);
		CREATE TABLE pre_auth_keys (id SERIAL PRIMARY KEY, key text, prefix text, hash BYTES, user_id bigint, reusable boolean, ephemeral boolean, used boolean, tags text, expiration TIME, created_at TIME);
		CREATE TABLE api_keys (id SERIAL PRIMARY KEY, prefix text, hash BYTES, created_at TIME, expiration TIME, last_seen TIME);
		CREATE TABLE nodes (id SERIAL PRIMARY KEY, machine_key text, node_key text, disco_key text, endpoints text, host_info text, ipv4 text, ipv6 text, hostname text, given_name text,
			user_id bigint, register_method text, tags text, auth_key_id bigint, last_seen TIME, expiry TIME, approved_routes text, created_at TIME, updated_at TIME, deleted_at TIME);
		CREATE TABLE policies (id SERIAL PRIMARY KEY, created_at TIME, updated_at TIME, deleted_at TIME, data text);`
	inPG := strings.NewReplacer("SERIAL", "BIGSERIAL", "TIME", "timestamptz", "BYTES", "bytea").Replace(schema)
	inSQLite := strings.NewReplacer("SERIAL PRIMARY KEY", "integer PRIMARY KEY AUTOINCREMENT", "TIME", "datetime", "BYTES", "blob").Replace(schema)
	rows := []string{
		`INSERT INTO migrations (id) VALUES ('202601121700-migrate-hostinfo-request-tags')`,
		`INSERT INTO users (name, display_name, email, provider_identifier, created_at) VALUES ('anna', 'Anna', 'anna@example.com', 'https://id.example.com/7', '2024-01-02 03:04:05.123456+00:00'), ('Böse', '', '', NULL, NULL)`,
		`INSERT INTO pre_auth_keys (key, user_id, reusable, ephemeral, used, expiration) VALUES ('plain', 1, true, false, true, '2034-01-02 03:04:05+00:00')`,
		`INSERT INTO nodes (machine_key, node_key, disco_key, endpoints, host_info, ipv4, ipv6, hostname, given_name, user_id, register_method, tags, auth_key_id, last_seen, expiry, approved_routes) VALUES
			('mkey:` + strings.Repeat("a1", 32) + `', 'nodekey:` + strings.Repeat("b2", 32) + `', '', '["192.0.2.7:41641"]', '{"Hostname":"NAS","RoutableIPs":["10.0.0.0/24"]}', '100.64.0.1', 'fd7a:115c:a1e0::1', 'nas', 'nas',
			1, 'cli', '[]', NULL, '2024-03-04 05:06:07.5+00:00', '0001-01-01 00:00:00+00:00', '["10.0.0.0/24"]'),
			('mkey:` + strings.Repeat("a2", 32) + `', 'nodekey:` + strings.Repeat("b3", 32) + `', NULL, NULL, NULL, '100.64.0.2', NULL, 'x', 'x', NULL, 'authkey', '["tag:x"]', 1, NULL, NULL, NULL)`,
		`DELETE FROM nodes WHERE id = 2`,
		`INSERT INTO policies (data) VALUES ('{"acls": []}')`,
	}
	path := t.TempDir() + "/db.sqlite"
	exec(t, path, inSQLite)
	if _, err := pg.Exec(inPG); err != nil {
		t.Fatal(err)
	}
	for _, r := range rows {
		exec(t, path, r)
		if _, err := pg.Exec(r); err != nil {
			t.Fatal(err)
		}
	}
	const keys = `INSERT INTO pre_auth_keys (prefix, hash, user_id, reusable, ephemeral, used, tags) VALUES ('abcdefghijkl', $1, 1, false, true, false, '["tag:y"]')`
	exec(t, path, keys, []byte(hash))
	const api = `INSERT INTO api_keys (prefix, hash) VALUES ('abcdefg', $1)`
	exec(t, path, api, []byte(hash))
	for _, q := range []string{keys, api} {
		if _, err := pg.Exec(q, []byte(hash)); err != nil {
			t.Fatal(err)
		}
	}
	a, b := plan(t, path), plan(t, url)
	if b.LastNode != 2 || len(b.Nodes) != 1 || len(b.PreAuthKeys) != 2 || len(b.Credentials) != 1 || string(b.PreAuthKeys[1].Bcrypt) != hash {
		t.Errorf("the plan: %+v", b)
	}
	if strings.Contains(b.Report.Source, "password") {
		t.Errorf("the source is called %s", b.Report.Source)
	}
	a.Report.Source, b.Report.Source = "", ""
	one, _ := json.Marshal(a)
	two, _ := json.Marshal(b)
	if string(one) != string(two) {
		t.Errorf("SQLite gives\n%s\nPostgreSQL gives\n%s", one, two)
	}
	s, err := Open(context.Background(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.tx.Exec("UPDATE users SET name = 'x'"); err == nil || !strings.Contains(err.Error(), "read-only") {
		t.Errorf("writing to the source: %v", err)
	}
}
