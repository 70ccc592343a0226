package takeover

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skein-vpn/skein/tailnet"
)

// generations are schemas of headscale, each by a dump that has it.
var generations = map[string]string{
	"0.25": "failing-node-preauth-constraint_dump.sql",
	"0.26": "headscale_0.26.1_dump.sql",
	"0.27": "request_tags_migration_test.sql",
	"0.29": "recover_null_tags_user_id_migration_test.sql",
	"0.30": "schema_main_f20f1f12.sql",
}

// generator fills a schema of any generation: it knows all columns and writes those that are there.
type generator struct {
	t       *testing.T
	tx      *sql.Tx
	rnd     *rand.Rand
	columns map[string][]string
	hash    string // a bcrypt hash; one for all, because it takes long
}

// put inserts a row of those values whose columns there are.
func (g *generator) put(table string, values map[string]any) {
	g.t.Helper()
	cols, ok := g.columns[table]
	if !ok {
		rows, err := g.tx.Query("SELECT name FROM pragma_table_info('" + table + "')")
		if err != nil {
			g.t.Fatal(err)
		}
		for rows.Next() {
			var c string
			if err := rows.Scan(&c); err != nil {
				g.t.Fatal(err)
			}
			cols = append(cols, c)
		}
		rows.Close()
		g.columns[table] = cols
	}
	var names, marks []string
	var args []any
	for _, c := range cols {
		if v, ok := values[c]; ok {
			names, marks, args = append(names, c), append(marks, "?"), append(args, v)
		}
	}
	if len(names) == 0 {
		return
	}
	if _, err := g.tx.Exec(fmt.Sprintf("INSERT INTO %s (%s) VALUES (%s)", table, strings.Join(names, ","), strings.Join(marks, ",")), args...); err != nil {
		g.t.Fatalf("%s %v: %v", table, values, err)
	}
}

func (g *generator) pick(values ...any) any { return values[g.rnd.IntN(len(values))] }

func (g *generator) times() any {
	return g.pick(nil, "", "0001-01-01 00:00:00+00:00", "2024-05-06 07:08:09.123456789+00:00", "2024-05-06T07:08:09Z", "2024-05-06 07:08:09.5 +0200 CEST m=+1.5",
		"2031-01-02 03:04:05", "yesterday", "2024-13-45 00:00:00+00:00", int64(1700000000))
}

func randomKey(g *generator, prefix string) string {
	var b [32]byte
	for i := range b {
		b[i] = byte(g.rnd.Uint32())
	}
	return fmt.Sprintf("%s:%x", prefix, b)
}

// fill writes n nodes, a tenth as many users and keys, with values as ugly as columns allow.
func (g *generator) fill(n int) {
	users := max(1, n/10)
	for i := 1; i <= users; i++ {
		g.put("users", map[string]any{
			"id":           i,
			"name":         g.pick(fmt.Sprintf("user%d", i), fmt.Sprintf("User.%d", i), fmt.Sprintf("Zoë %d", i), fmt.Sprintf("%d", 1000+i), fmt.Sprintf("u%d@example.com", i), fmt.Sprintf("-%d-", i), strings.Repeat("x", 200)+fmt.Sprint(i)),
			"display_name": g.pick(nil, "", "Zoë\x00\n", strings.Repeat("y", 500)), "email": g.pick(nil, "", "who@example.com"),
			"provider_identifier": g.pick(nil, fmt.Sprintf("https://id.example.com//%d", i)), "provider": g.pick(nil, "", "oidc"),
			"created_at": g.times(), "deleted_at": g.pick(nil, nil, nil, nil, "2024-05-06 07:08:09+00:00"),
		})
		g.put("pre_auth_keys", map[string]any{
			"id": i, "key": g.pick(nil, "", fmt.Sprintf("%048x", i), fmt.Sprintf("%048x", i), fmt.Sprintf("%048x", i)), "prefix": fmt.Sprintf("aB-_%08d", i), "hash": g.pick(nil, []byte(g.hash), []byte("nothing")),
			"user_id": g.pick(nil, i, users+7), "reusable": g.pick(0, 1, "true", "false", nil), "ephemeral": g.pick(0, 1, "false"), "used": g.pick(0, 1),
			"tags": g.pick(nil, "", "null", "[]", `["tag:a"]`, `["tag:B","nonsense","tag:a"]`, `["nonsense"]`, "{", `[1]`), "expiration": g.times(), "created_at": g.times(),
			"revoked": g.pick(nil, nil, "2024-05-06 07:08:09+00:00"),
		})
		g.put("api_keys", map[string]any{"id": i, "prefix": fmt.Sprintf("p-%010d", i), "hash": g.pick(nil, []byte(g.hash), "x"), "expiration": g.times(), "created_at": g.times()})
		g.put("oauth_clients", map[string]any{"id": i, "client_id": fmt.Sprintf("c%d", i), "secret_hash": g.pick("x", nil), "scopes": `["all"]`, "tags": `["tag:a"]`})
	}
	var last string
	for i := 1; i <= n; i++ {
		nk := randomKey(g, "nodekey")
		if i%97 == 0 {
			nk = last // two rows with one key
		}
		last = nk
		g.put("nodes", map[string]any{
			"id": i, "machine_key": g.pick(randomKey(g, "mkey"), randomKey(g, "mkey"), randomKey(g, "mkey"), randomKey(g, "mkey"), "", "mkey:00", nil), "node_key": g.pick(nk, nk, nk, nk, nk, nk, "", "nodekey:zz"),
			"disco_key": g.pick(randomKey(g, "discokey"), "", nil, "discokey:1"),
			"hostname":  g.pick("host", "", nil, "a b"), "given_name": g.pick(fmt.Sprintf("node-%d", i), "host", "Host", "", nil, "a_b", "ünïcode", strings.Repeat("z", 80), "-x-", "a.b"),
			"user_id": g.pick(1+g.rnd.IntN(users), 1+g.rnd.IntN(users), nil, users+5, 0), "register_method": g.pick("cli", "authkey", "oidc", nil, "magic"),
			"tags": g.pick(nil, "", "null", "[]", `["tag:x","tag:x"]`, `["TAG:x"]`, "[", `{"a":1}`), "forced_tags": g.pick(nil, "null", `["tag:y"]`, "nonsense"),
			"auth_key_id": g.pick(nil, 0, 1+g.rnd.IntN(users), 99999), "last_seen": g.times(), "expiry": g.times(),
			"host_info": g.pick(`{"Hostname":"host","RoutableIPs":["10.1.0.0/16","0.0.0.0/0"],"RequestTags":["tag:q"],"NetInfo":{"PreferredDERP":7}}`, `{}`, "", nil, "null", `{"Hostname":1}`, `{"RoutableIPs":["x"]}`, strings.Repeat("[", 2000)),
			"endpoints": g.pick(nil, "[]", `["192.0.2.1:41641","[::1]:1","nonsense"]`, "null", "{}", `["0.0.0.0:0"]`),
			"ipv4":      g.pick(fmt.Sprintf("100.64.%d.%d", i/250, i%250), "100.64.0.1", "", nil, "fd7a:115c:a1e0::1", "1.2.3"), "ipv6": g.pick(fmt.Sprintf("fd7a:115c:a1e0::%x", i), nil, "fd7a:115c:a1e0::1", "100.64.0.9", "fe80::1%eth0"),
			"approved_routes": g.pick(nil, "", "null", `["10.1.0.0/16"]`, `["10.1.0.1/16","x","0.0.0.0/0","::/0"]`, "["), "created_at": g.times(), "updated_at": g.times(),
			"deleted_at": g.pick(nil, nil, nil, nil, nil, nil, nil, nil, "2024-05-06 07:08:09+00:00", "nonsense"),
		})
		g.put("routes", map[string]any{"id": i, "node_id": 1 + g.rnd.IntN(n), "prefix": g.pick("10.1.0.0/16", "0.0.0.0/0", "x", nil), "enabled": g.pick(0, 1, "true"), "advertised": 1, "is_primary": 0})
	}
	g.put("policies", map[string]any{"id": 1, "data": `{"acls": []}`, "deleted_at": nil})
	g.put("policies", map[string]any{"id": 2, "data": `{"tagOwners": {"tag:q": ["user1@"]}, /* newest */ "acls": [{"action": "accept", "src": ["gone@"], "dst": ["*:*"]}]}`})
	g.put("policies", map[string]any{"id": 3, "data": `nonsense`, "deleted_at": "2024-05-06 07:08:09+00:00"})
}

// generate makes a database of a generation with n nodes in it.
func generate(t *testing.T, generation string, n int, seed uint64) string {
	t.Helper()
	path := load(t, generations[generation])
	db, err := sql.Open("sqlite", path+"?_pragma=foreign_keys(0)")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for _, table := range []string{"users", "nodes", "pre_auth_keys", "api_keys", "policies", "routes"} {
		_, _ = db.Exec("DELETE FROM " + table) // some have no such table
	}
	tx, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	// Only the newest schemas keep names unique in themselves; ugly ones are unique here all the same.
	g := &generator{t: t, tx: tx, rnd: rand.New(rand.NewPCG(seed, 1)), columns: map[string][]string{}, hash: mustBcrypt(t, "secret", 4)}
	g.fill(n)
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	return path
}

// Every generation with many rows: whatever is in them, the plan holds what the store and the state demand, and every row is in
// it or told of; and reading twice gives the same.
func TestGenerated(t *testing.T) {
	for generation := range generations {
		for seed := range uint64(2) {
			t.Run(fmt.Sprint(generation, "/", seed), func(t *testing.T) {
				path := generate(t, generation, 300, seed)
				p := plan(t, path)
				if p.Report.Users.Taken < 20 || p.Report.Nodes.Taken < 80 || p.Report.PreAuthKeys.Taken < 2 {
					t.Errorf("too little was taken over: %+v %+v %+v", p.Report.Users, p.Report.Nodes, p.Report.PreAuthKeys)
				}
				if len(p.Report.Policy.Faults) > 0 || !strings.Contains(string(p.Policy), "newest") || len(p.Report.Policy.Warnings) == 0 {
					t.Errorf("the policy: %+v", p.Report.Policy)
				}
				one, err := json.Marshal(p)
				if err != nil {
					t.Fatal(err)
				}
				two, err := json.Marshal(plan(t, path))
				if err != nil {
					t.Fatal(err)
				}
				if string(one) != string(two) {
					t.Error("reading it twice gives two plans")
				}
			})
		}
	}
}

// What ordinary rows become, field by field.
func TestFields(t *testing.T) {
	path := load(t, "schema_main_f20f1f12.sql")
	hash := mustBcrypt(t, strings.Repeat("s", 64), 4)
	exec(t, path, `INSERT INTO users (id, name, display_name, email, provider, provider_identifier, created_at) VALUES
		(3, 'anna', 'Anna', 'anna@example.com', 'oidc', 'https://id.example.com/7', '2024-01-02 03:04:05+00:00'), (9, 'gone', '', '', NULL, NULL, NULL)`)
	exec(t, path, `UPDATE users SET deleted_at = '2024-01-01 00:00:00+00:00' WHERE id = 9`)
	exec(t, path, `INSERT INTO pre_auth_keys (id, key, prefix, hash, user_id, reusable, ephemeral, used, tags, expiration) VALUES
		(4, NULL, 'Ab-_Ab-_Ab-_', ?, 3, 1, 1, 1, '[]', '2034-01-02 03:04:05+00:00'), (5, 'plain-text', NULL, NULL, NULL, 0, 0, 0, '["tag:x"]', NULL)`, []byte(hash))
	exec(t, path, `INSERT INTO nodes (id, machine_key, node_key, disco_key, endpoints, host_info, ipv4, ipv6, hostname, given_name, user_id, register_method, tags,
		auth_key_id, last_seen, expiry, approved_routes, created_at) VALUES
		(17, ?, ?, ?, '["192.0.2.7:41641"]', '{"Hostname":"NAS","OS":"linux","RoutableIPs":["192.168.1.0/24"],"NetInfo":{"PreferredDERP":999}}', '100.64.0.7', 'fd7a:115c:a1e0::7', 'nas', 'nas-x1y2z3',
		3, 'authkey', '[]', 4, '2024-03-04 05:06:07+00:00', '2034-01-02 03:04:05.123456789+00:00', '["192.168.1.0/24"]', '2024-01-02 03:04:06+00:00')`,
		"mkey:"+strings.Repeat("a1", 32), "nodekey:"+strings.Repeat("b2", 32), "discokey:"+strings.Repeat("c3", 32))
	p := plan(t, path)
	if u := p.Users[0]; len(p.Users) != 1 || u.ID != 3 || u.Name != "anna" || u.Email != "anna@example.com" || u.DisplayName != "Anna" ||
		u.Provider != "oidc" || u.ProviderID != "https://id.example.com/7" || !u.Created.Equal(time.Date(2024, 1, 2, 3, 4, 5, 0, time.UTC)) {
		t.Errorf("users: %+v", u)
	}
	if p.LastUser != 9 || p.LastNode != 17 || p.LastPreKey != 5 {
		t.Errorf("last ids: %d %d %d", p.LastUser, p.LastNode, p.LastPreKey)
	}
	n := p.Nodes[0]
	if n.MachineKey.String() != "mkey:"+strings.Repeat("a1", 32) || n.NodeKey.String() != "nodekey:"+strings.Repeat("b2", 32) || n.DiscoKey.String() != "discokey:"+strings.Repeat("c3", 32) {
		t.Errorf("keys: %v %v %v", n.MachineKey, n.NodeKey, n.DiscoKey)
	}
	if n.ID != 17 || n.StableID != "17" || n.User != 3 || n.Hostname != "NAS" || n.Name != "nas-x1y2z3" || !n.NameFixed || n.IPv4.String() != "100.64.0.7" ||
		n.IPv6.String() != "fd7a:115c:a1e0::7" || !n.Ephemeral || n.RegisterMethod != tailnet.RegisteredByKey || n.PreAuthKey != 4 || n.HomeDERP != 999 ||
		!n.Expiry.Equal(time.Date(2034, 1, 2, 3, 4, 5, 123456789, time.UTC)) || tailnet.FormatPrefixes(n.ActiveRoutes()) != "192.168.1.0/24" ||
		len(n.Endpoints) != 1 || n.Hostinfo.OS != "linux" {
		t.Errorf("node: %+v", n)
	}
	if pr := p.Presence[17]; !pr.Online || !pr.LastSeen.Equal(time.Date(2024, 3, 4, 5, 6, 7, 0, time.UTC)) {
		t.Errorf("presence: %+v", pr)
	}
	if k := p.PreAuthKeys[0]; k.ID != 4 || k.User != 3 || k.Prefix != "hskey-auth-Ab-_Ab-_Ab-_" || string(k.Bcrypt) != hash || !k.Reusable || !k.Ephemeral || !k.Used || k.Expires.Year() != 2034 {
		t.Errorf("key: %+v", k)
	}
	if k := p.PreAuthKeys[1]; k.ID != 5 || k.User != 0 || !slices.Equal(k.Tags, []string{"tag:x"}) || k.Hash != sha256.Sum256([]byte("plain-text")) || !k.Expires.IsZero() || k.Reusable {
		t.Errorf("key: %+v", k)
	}
}

// 0.23 kept the tags of pre-auth keys in a table of their own, and routes in one until 0.25.
func TestOlderTables(t *testing.T) {
	path := load(t, "failing-node-preauth-constraint_dump.sql")
	exec(t, path, `CREATE TABLE pre_auth_key_acl_tags (id integer, pre_auth_key_id integer, tag text)`)
	exec(t, path, `ALTER TABLE pre_auth_keys DROP COLUMN tags`)
	exec(t, path, `INSERT INTO pre_auth_keys (id, key, user_id, reusable) VALUES (1, 'one', 1, 1), (2, 'two', 1, 0)`)
	exec(t, path, `INSERT INTO pre_auth_key_acl_tags VALUES (1, 1, 'tag:b'), (2, 1, 'tag:a'), (3, 9, 'tag:lost')`)
	exec(t, path, `INSERT INTO routes (id, node_id, prefix, advertised, enabled) VALUES (1, 2, '10.0.0.0/24', 1, 1), (2, 2, '10.1.0.0/24', 1, 0), (3, 3, '0.0.0.0/0', 1, 1)`)
	exec(t, path, `INSERT INTO routes (id, node_id, prefix, enabled, deleted_at) VALUES (4, 2, '10.2.0.0/24', 1, '2024-01-01 00:00:00+00:00')`)
	p := plan(t, path)
	if k := p.PreAuthKeys; len(k) != 2 || !slices.Equal(k[0].Tags, []string{"tag:a", "tag:b"}) || k[0].User != 0 || k[1].User != 1 || len(k[1].Tags) != 0 {
		t.Errorf("keys: %+v %+v", k[0], k[1])
	}
	if got := tailnet.FormatPrefixes(node(t, p, 2).ApprovedRoutes); got != "10.0.0.0/24" {
		t.Errorf("node 2 has the routes %s", got)
	}
	if got := tailnet.FormatPrefixes(node(t, p, 3).ApprovedRoutes); got != "0.0.0.0/0" {
		t.Errorf("node 3 has the routes %s", got)
	}
}

// Of two rows with one node key the one that was seen later stays, with its name and addresses.
func TestSameNodeKey(t *testing.T) {
	for _, c := range []struct {
		seen [2]string
		want tailnet.NodeID
	}{{[2]string{"2024-01-01 00:00:00+00:00", "2024-01-02 00:00:00+00:00"}, 2}, {[2]string{"2024-01-02 00:00:00+00:00", "2024-01-01 00:00:00+00:00"}, 1}} {
		path := load(t, "schema_main_f20f1f12.sql")
		exec(t, path, "INSERT INTO users (id, name) VALUES (1, 'anna')")
		for i, at := range c.seen {
			exec(t, path, "INSERT INTO nodes (id, machine_key, node_key, ipv4, given_name, user_id, last_seen) VALUES (?, ?, ?, '100.64.0.1', 'same', 1, ?)",
				i+1, "mkey:"+strings.Repeat("a1", 32), "nodekey:"+strings.Repeat("b2", 32), at)
		}
		p := plan(t, path)
		if len(p.Nodes) != 1 || p.Nodes[0].ID != c.want || p.Nodes[0].Name != "same" || p.Nodes[0].IPv4.String() != "100.64.0.1" {
			t.Errorf("nodes: %+v, want %d as it was", p.Nodes, c.want)
		}
	}
}

// A policy that Skein cannot use is told with its place and costs nothing else.
func TestPolicyWithFaults(t *testing.T) {
	path := load(t, "request_tags_migration_test.sql")
	s, err := Open(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	p, err := s.Translate(context.Background(), &PolicyFile{Name: "mine.hujson", Text: []byte("{\n  \"acls\": [{\"action\": \"perhaps\"}],\n}")})
	if err != nil {
		t.Fatal(err)
	}
	check(t, p)
	if f := p.Report.Policy.Faults; len(f) == 0 || !strings.Contains(f[0], "2:") || p.Report.Policy.From != "mine.hujson" || len(p.Nodes) != 7 {
		t.Errorf("the policy: %+v", p.Report.Policy)
	}
}

// No row may make the reader panic.
func FuzzNode(f *testing.F) {
	f.Add("mkey:"+strings.Repeat("a1", 32), "nodekey:"+strings.Repeat("b2", 32), `{"Hostname":"x","RoutableIPs":["10.0.0.0/8"]}`, "name", "100.64.0.1", `["tag:a"]`, `["10.0.0.0/8"]`, "2024-01-02 03:04:05+00:00")
	f.Fuzz(func(t *testing.T, mkey, nkey, host, name, ip, tags, routes, at string) {
		tr := &translation{plan: &Plan{Presence: map[tailnet.NodeID]tailnet.Presence{}}, users: map[int64]*tailnet.User{}, keys: map[int64]row{}, wishes: true}
		tr.report = &tr.plan.Report
		tr.takeUsers([]row{{"id": "1", "name": name, "email": tags, "provider_identifier": host, "created_at": at}, {"id": "2", "name": name}})
		one := row{"id": "1", "machine_key": mkey, "node_key": nkey, "host_info": host, "given_name": name, "hostname": tags, "ipv4": ip, "ipv6": ip, "tags": tags,
			"approved_routes": routes, "endpoints": routes, "last_seen": at, "expiry": at, "user_id": "1"}
		two := row{"id": "2", "machine_key": mkey, "node_key": "nodekey:" + strings.Repeat("b3", 32), "given_name": name, "ipv4": ip, "user_id": "9"}
		tr.takeNodes([]row{two, one}, nil)
		tr.takePreAuthKeys([]row{{"id": "1", "key": name, "tags": tags, "user_id": "1", "expiration": at}, {"id": "2", "prefix": name, "hash": host, "tags": tags}})
		tr.plan.finish()
		check(t, tr.plan)
	})
}
