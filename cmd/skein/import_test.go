package main

import (
	"context"
	"database/sql"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skein-vpn/skein/db"
	"github.com/skein-vpn/skein/tailnet"
	"github.com/skein-vpn/skein/takeover"
)

func runSQL(path, statement string) error {
	d, err := sql.Open("sqlite", path)
	if err != nil {
		return err
	}
	defer d.Close()
	_, err = d.Exec(statement)
	return err
}

// writeHeadscale makes the files of a headscale server with one user and one node.
func writeHeadscale(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for name, text := range map[string]string{
		"noise.key": "privkey:" + strings.Repeat("a1", 32) + "\n", "derp.key": "privkey:" + strings.Repeat("b2", 32), "acl.hujson": "{\"grants\": [],}\n",
		"config.yaml": "server_url: http://vpn.example.com:8080\nlisten_addr: 127.0.0.1:8080\ngrpc_listen_addr: 127.0.0.1:50443\nnoise: {private_key_path: noise.key}\n" +
			"derp: {server: {enabled: true, private_key_path: derp.key}}\ndatabase: {type: sqlite, sqlite: {path: db.sqlite}}\npolicy: {mode: file, path: acl.hujson}\n" +
			"ephemeral_node_inactivity_timeout: 30m\nunix_socket: /run/headscale.sock\ndns: {base_domain: example.org, magic_dns: true}\nprefixes: {v4: 100.64.0.0/10}\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	schema, err := os.ReadFile("../../takeover/testdata/headscale/schema_main_f20f1f12.sql")
	if err != nil {
		return err
	}
	return runSQL(filepath.Join(dir, "db.sqlite"), string(schema)+`
		INSERT INTO users (id, name) VALUES (3, 'anna');
		INSERT INTO nodes (id, machine_key, node_key, host_info, ipv4, given_name, user_id, tags, last_seen) VALUES
			(1, 'mkey:`+strings.Repeat("a1", 32)+`', 'nodekey:`+strings.Repeat("b2", 32)+`', '{"Hostname":"Laptop"}', '100.64.0.7', 'Laptop', 3, '[]', '2024-01-02 03:04:05+00:00');`)
}

// What is in headscale's database is in ours afterwards, from all dumps.
func TestImportedDatabases(t *testing.T) {
	dumps, err := filepath.Glob("../../takeover/testdata/headscale/*.sql")
	if err != nil || len(dumps) < 8 {
		t.Fatalf("%d dumps, %v", len(dumps), err)
	}
	for _, dump := range dumps {
		t.Run(filepath.Base(dump), func(t *testing.T) {
			dir := t.TempDir()
			text, err := os.ReadFile(dump)
			if err != nil {
				t.Fatal(err)
			}
			old := filepath.Join(dir, "hs.sqlite")
			if err := runSQL(old, string(text)); err != nil {
				t.Fatal(err)
			}
			src, err := takeover.Open(context.Background(), old)
			if err != nil {
				t.Fatal(err)
			}
			defer src.Close()
			h := &headscaleImport{settings: &takeover.Settings{}, mark: "test"}
			if h.plan, err = src.Translate(context.Background(), nil); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, "db.sqlite")
			if err := h.fill(context.Background(), db.Options{Path: path}); err != nil {
				t.Fatal(err)
			}
			d, err := db.Open(context.Background(), db.Options{Path: path})
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			c, err := d.Load(context.Background(), tailnet.DefaultID)
			if err != nil {
				t.Fatal(err)
			}
			if len(c.Users) != len(h.plan.Users) || len(c.Nodes) != len(h.plan.Nodes) || len(c.PreAuthKeys) != len(h.plan.PreAuthKeys) ||
				len(c.Credentials) != len(h.plan.Credentials) || len(c.Presence) != len(h.plan.Nodes) || (c.Policy != nil) != (h.plan.Policy != nil) {
				t.Errorf("in the database: %+v", c)
			}
			if c.Tailnet.LastNodeID != h.plan.LastNode || c.Tailnet.LastUserID != h.plan.LastUser || c.Rev != 1 {
				t.Errorf("counters: %+v", c.Tailnet)
			}
		})
	}
}
