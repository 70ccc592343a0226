package takeover

import (
	"context"
	"database/sql"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/crypto/bcrypt"
	"tailscale.com/types/key"

	"github.com/skein-vpn/skein/db/pgtest"
	"github.com/skein-vpn/skein/tailnet"
)

// load makes a database of a dump.
func load(t *testing.T, dump string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", "headscale", dump))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "db.sqlite")
	exec(t, path, string(text))
	return path
}

// exec runs statements on a database.
func exec(t *testing.T, path, text string, args ...any) {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec(text, args...); err != nil {
		t.Fatalf("%v in %.200s", err, text)
	}
}

func plan(t *testing.T, path string) *Plan {
	t.Helper()
	s, err := Open(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	p, err := s.Translate(context.Background(), nil)
	if err != nil {
		t.Fatal(err)
	}
	check(t, p)
	return p
}

// check wants what state.Tx.PutNode and the database's unique keys want, and that every row is accounted for.
func check(t *testing.T, p *Plan) {
	t.Helper()
	users, names := map[tailnet.UserID]bool{}, map[string]bool{}
	for _, u := range p.Users {
		if users[u.ID] || names[u.Name] || u.ID > p.LastUser {
			t.Errorf("user %d %q is there twice, or above the last id %d", u.ID, u.Name, p.LastUser)
		}
		if err := tailnet.CheckUserName(u.Name); err != nil {
			t.Errorf("user %d: %v", u.ID, err)
		}
		users[u.ID], names[u.Name] = true, true
	}
	ids, labels, keys, addrs := map[tailnet.NodeID]bool{}, map[string]bool{}, map[key.NodePublic]bool{}, map[netip.Addr]bool{}
	for _, n := range p.Nodes {
		if ids[n.ID] || labels[n.Name] || keys[n.NodeKey] || n.ID > p.LastNode {
			t.Errorf("node %d %q is there twice, or above the last id %d", n.ID, n.Name, p.LastNode)
		}
		ids[n.ID], labels[n.Name], keys[n.NodeKey] = true, true, true
		if n.StableID != n.ID.String() || n.Name == "" || n.Hostinfo == nil || n.MachineKey.IsZero() || n.NodeKey.IsZero() || !n.Authorized {
			t.Errorf("node %d is not complete: %+v", n.ID, n)
		}
		if n.Tagged() == (n.User != 0) || n.User != 0 && !users[n.User] {
			t.Errorf("node %d belongs to user %d and tags %v", n.ID, n.User, n.Tags)
		}
		if len(n.Addrs()) == 0 {
			t.Errorf("node %d has no address", n.ID)
		}
		for _, a := range n.Addrs() {
			if addrs[a] {
				t.Errorf("address %s is there twice", a)
			}
			addrs[a] = true
		}
	}
	for _, k := range p.PreAuthKeys {
		if (k.User != 0) == (len(k.Tags) > 0) || k.User != 0 && !users[k.User] || k.ID > p.LastPreKey || (len(k.Bcrypt) > 0) == (k.Hash != [32]byte{}) {
			t.Errorf("key %d is not complete: %+v", k.ID, k)
		}
	}
	r := &p.Report
	seen := map[string]bool{}
	for _, c := range p.Credentials {
		if seen[c.ID] || len(c.Hash) == 0 || c.HashKind == "" {
			t.Errorf("credential %q is not complete, or there twice: %+v", c.ID, c)
		}
		seen[c.ID] = true
	}
	lost := (r.APIKeys.Found - r.APIKeys.Taken) + (r.OAuth.Found - r.OAuth.Taken) + (r.Users.Found - r.Users.Taken) + (r.Nodes.Found - r.Nodes.Taken) + (r.PreAuthKeys.Found - r.PreAuthKeys.Taken)
	for _, n := range r.Notes {
		if strings.Contains(n, "is new") {
			lost++
		}
	}
	if told := len(r.Skipped); lost != told {
		t.Errorf("%d rows are not taken over and %d are told: %.2000s", lost, told, fmt.Sprint(r))
	}
}

func node(t *testing.T, p *Plan, id tailnet.NodeID) *tailnet.Node {
	t.Helper()
	for _, n := range p.Nodes {
		if n.ID == id {
			return n
		}
	}
	t.Fatalf("no node %d", id)
	return nil
}

// The dumps, with what headscale's own tests expect of its migrations.
func TestDumps(t *testing.T) {
	for name, want := range map[string][3]int{ // users, nodes, API keys
		"failing-node-preauth-constraint_dump.sql":     {1, 6, 2},
		"headscale_0.26.0-beta.1_dump.sql":             {},
		"headscale_0.26.0-beta.2_dump.sql":             {},
		"headscale_0.26.1_dump.sql":                    {},
		"headscale_0.26.1_dump-litestream.sql":         {},
		"recover_null_tags_user_id_migration_test.sql": {3, 4, 0},
		"request_tags_migration_test.sql":              {3, 7, 0},
		"schema_main_f20f1f12.sql":                     {},
	} {
		t.Run(name, func(t *testing.T) {
			p := plan(t, load(t, name))
			if got := [3]int{len(p.Users), len(p.Nodes), p.Report.APIKeys.Taken}; got != want {
				t.Errorf("users, nodes, API keys: %v, want %v", got, want)
			}
		})
	}
	older := plan(t, load(t, "failing-node-preauth-constraint_dump.sql"))
	for _, n := range older.Nodes {
		if n.PreAuthKey != 0 || n.DiscoKey.IsZero() || !n.Expiry.IsZero() || n.Ephemeral {
			t.Errorf("node %d: %+v", n.ID, n)
		}
	}
	if n := node(t, older, 1); n.Name != "given_name1" || n.IPv4 != netip.MustParseAddr("100.64.0.1") || n.IPv6 != netip.MustParseAddr("fd7a:115c:a1e0::1") {
		t.Errorf("node 1: %+v", n)
	}
}

func TestRequestTags(t *testing.T) {
	p := plan(t, load(t, "request_tags_migration_test.sql"))
	want := [][]string{{"tag:server"}, nil, {"tag:client", "tag:existing"}, {"tag:server"}, nil, {"tag:admin"}, {"tag:server"}}
	for i, tags := range want {
		if n := node(t, p, tailnet.NodeID(i+1)); !slices.Equal(n.Tags, tags) {
			t.Errorf("node %d has tags %v, want %v", n.ID, n.Tags, tags)
		}
	}
	if p.Report.Policy.From != "database" || len(p.Report.Policy.Faults) > 0 || !strings.Contains(string(p.Policy), `"tag:admin": ["group:admins"]`) {
		t.Errorf("the policy: %+v %s", p.Report.Policy, p.Policy)
	}
}

func TestLostUsers(t *testing.T) {
	p := plan(t, load(t, "recover_null_tags_user_id_migration_test.sql"))
	if n := node(t, p, 1); n.User != 2 {
		t.Errorf("node 1 belongs to %d, want user 2 again", n.User)
	}
	if n := node(t, p, 2); !n.Tagged() {
		t.Errorf("node 2 is not tagged: %+v", n)
	}
	if n := node(t, p, 3); n.User != 3 || p.Users[2].Name != "without-owner" {
		t.Errorf("node 3 belongs to %d of %+v", n.User, p.Users[2])
	}
	if n := node(t, p, 4); n.User != 1 {
		t.Errorf("node 4 belongs to %d", n.User)
	}
}

// The source is not touched: not its bytes, not its times, and no file appears beside it. What only its log holds is read.
func TestSourceUntouched(t *testing.T) {
	path := load(t, "recover_null_tags_user_id_migration_test.sql")
	db, err := sql.Open("sqlite", path+"?_pragma=journal_mode(WAL)&_pragma=wal_autocheckpoint(0)")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec("UPDATE users SET name = 'in-the-log' WHERE id = 1"); err != nil {
		t.Fatal(err)
	}
	look := func() (out string) {
		entries, err := os.ReadDir(filepath.Dir(path))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			b, _ := os.ReadFile(filepath.Join(filepath.Dir(path), e.Name()))
			fi, _ := e.Info()
			out += fmt.Sprintf("%s %v %d %x\n", e.Name(), fi.ModTime(), len(b), b[:min(len(b), 4096)])
		}
		return out
	}
	before := look()
	if p := plan(t, path); p.Users[0].Name != "in-the-log" {
		t.Errorf("user 1 is called %s: the write-ahead log was not read", p.Users[0].Name)
	}
	if after := look(); after != before {
		t.Errorf("the source has changed from\n%s\nto\n%s", before, after)
	}
}

// What is no database of a headscale that can be read is refused, with what to do.
func TestRefusals(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	old := filepath.Join(dir, "machines.sqlite")
	exec(t, old, "CREATE TABLE machines (id integer); CREATE TABLE namespaces (id integer)")
	listed := filepath.Join(dir, "022.sqlite")
	exec(t, listed, "CREATE TABLE nodes (id integer, node_key text, ip_addresses text); CREATE TABLE users (id integer); CREATE TABLE migrations (id text)")
	other := filepath.Join(dir, "other.sqlite")
	exec(t, other, "CREATE TABLE songs (id integer)")
	ours := filepath.Join(dir, "ours.sqlite")
	exec(t, ours, "CREATE TABLE schema_migrations (version integer); CREATE TABLE tailnets (id integer)")
	torn := load(t, "request_tags_migration_test.sql")
	b, err := os.ReadFile(torn)
	if err != nil {
		t.Fatal(err)
	}
	for i := 4096; i < len(b); i += 2 {
		b[i] ^= 0x5a
	}
	for _, c := range []struct{ path, want string }{
		{old, "start headscale 0.25.1 once"},
		{listed, "start headscale 0.25.1 once"},
		{other, "is not a database of headscale"},
		{ours, "is a database of Skein"},
		{file("empty", ""), "it has no tables"},
		{file("text", "this is not a database, although it is long enough to be looked at"), "cannot be read as a SQLite database"},
		{file("torn", string(b)), ""},
		{filepath.Join(dir, "missing"), "there is no such file"},
		{dir, "is not a file"},
		{"postgres://skein:very-secret@127.0.0.1:1/headscale?connect_timeout=1", "127.0.0.1:1/headscale"},
		{"host=127.0.0.1 port=1 password=very-secret dbname=headscale connect_timeout=1", "host=127.0.0.1 port=1 dbname=headscale"},
	} {
		s, err := Open(context.Background(), c.path)
		if err == nil {
			s.Close()
			t.Errorf("%s was opened", c.path)
			continue
		}
		if !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %q", c.path, err, c.want)
		}
		if strings.Contains(err.Error(), "very-secret") {
			t.Errorf("the error shows the password: %v", err)
		}
	}
}

func mustBcrypt(t *testing.T, secret string, cost int) string {
	t.Helper()
	h, err := bcrypt.GenerateFromPassword([]byte(secret), cost)
	if err != nil {
		t.Fatal(err)
	}
	return string(h)
}

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }
