package db

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/skein-vpn/skein/db/pgtest"
)

// envEngine makes all tests of this package run on PostgreSQL.
const envEngine = "SKEIN_DB_TEST_ENGINE"

func onPostgres() bool { return os.Getenv(envEngine) == "postgres" }

// sqliteOnly skips a test on PostgreSQL, because it is about files, PRAGMAs or types that SQLite does not check.
func sqliteOnly(t *testing.T) {
	t.Helper()
	if onPostgres() {
		t.Skip("about SQLite")
	}
}

// storable is s as far as both engines take it: PostgreSQL has no zero bytes in text, and refuses what is not UTF-8.
func storable(s string) string {
	if onPostgres() {
		return strings.ToValidUTF8(strings.ReplaceAll(s, "\x00", ""), "")
	}
	return s
}

// TestOnPostgreSQL runs all other tests of this package a second time, on PostgreSQL.
func TestOnPostgreSQL(t *testing.T) {
	if onPostgres() {
		t.Skip("this is the second time")
	}
	pgtest.Shared(t) // skips where there is none
	cmd := exec.Command(os.Args[0], "-test.timeout=10m", "-test.v", "-rapid.checks=30")
	cmd.Env = append(os.Environ(), envEngine+"=postgres")
	out, err := cmd.CombinedOutput()
	passed := bytes.Count(out, []byte("--- PASS"))
	if err != nil || passed < 15 {
		t.Fatalf("%v, %d passed:\n%s", err, passed, out)
	}
	t.Logf("%d tests and subtests passed on PostgreSQL", passed)
}

// TestSameSchema compares tables, columns, keys and indexes of both engines: what a migration makes on one it must make on the other.
func TestSameSchema(t *testing.T) {
	sqliteOnly(t)
	lite, err := Open(ctx, options(newPath(t)))
	if err != nil {
		t.Fatal(err)
	}
	defer lite.Close()
	pg, err := Open(ctx, options(pgtest.Database(t)))
	if err != nil {
		t.Fatal(err)
	}
	defer pg.Close()

	scan := func(d *DB, sql string) string {
		t.Helper()
		rows, err := d.read.Raw(sql).Rows()
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		var lines []string
		for rows.Next() {
			cols, _ := rows.Columns()
			vals := make([]string, len(cols))
			ptrs := make([]any, len(cols))
			for i := range vals {
				ptrs[i] = &vals[i]
			}
			if err := rows.Scan(ptrs...); err != nil {
				t.Fatal(err)
			}
			lines = append(lines, strings.Join(vals, " "))
		}
		return strings.Join(lines, "\n")
	}
	for what, sql := range map[string][2]string{
		"columns": {
			`SELECT m.name, c.name, lower(c.type), c."notnull", c.pk FROM sqlite_master m, pragma_table_info(m.name) c
			 WHERE m.type = 'table' ORDER BY 1, 2`,
			`SELECT c.table_name, c.column_name, c.data_type, CASE c.is_nullable WHEN 'NO' THEN 1 ELSE 0 END, coalesce(k.ordinal_position, 0)
			 FROM information_schema.columns c LEFT JOIN (information_schema.key_column_usage k JOIN information_schema.table_constraints p
			   ON p.constraint_name = k.constraint_name AND p.table_schema = k.table_schema AND p.constraint_type = 'PRIMARY KEY')
			   ON k.table_name = c.table_name AND k.column_name = c.column_name AND k.table_schema = c.table_schema
			 WHERE c.table_schema = current_schema() ORDER BY c.table_name COLLATE "C", c.column_name COLLATE "C"`,
		},
		"indexes": {
			`SELECT m.name, i.name, i."unique", group_concat(c.name, ',') FROM sqlite_master m, pragma_index_list(m.name) i, pragma_index_info(i.name) c
			 WHERE m.type = 'table' AND i.origin = 'c' GROUP BY 1, 2, 3 ORDER BY 1, 2`,
			`SELECT t.relname, i.relname, CASE WHEN x.indisunique THEN 1 ELSE 0 END, string_agg(a.attname, ',' ORDER BY array_position(x.indkey::int[], a.attnum::int))
			 FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_class t ON t.oid = x.indrelid JOIN pg_namespace n ON n.oid = t.relnamespace
			   JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = ANY (x.indkey)
			 WHERE n.nspname = current_schema() AND NOT x.indisprimary AND NOT EXISTS (SELECT 1 FROM pg_constraint c WHERE c.conindid = i.oid AND c.contype = 'u')
			 GROUP BY t.relname, i.relname, x.indisunique ORDER BY t.relname COLLATE "C", i.relname COLLATE "C"`,
		},
		"references": {
			`SELECT m.name, f."table", count(*) FROM sqlite_master m, pragma_foreign_key_list(m.name) f WHERE m.type = 'table' GROUP BY m.name, f.id, f."table" ORDER BY 1, 2, 3`,
			`SELECT t.relname, r.relname, array_length(c.conkey, 1) FROM pg_constraint c JOIN pg_class t ON t.oid = c.conrelid JOIN pg_class r ON r.oid = c.confrelid
			   JOIN pg_namespace n ON n.oid = t.relnamespace
			 WHERE c.contype = 'f' AND n.nspname = current_schema() ORDER BY t.relname COLLATE "C", r.relname COLLATE "C", 3`,
		},
	} {
		a, b := scan(lite, sql[0]), scan(pg, sql[1])
		if a == "" || a != b {
			t.Errorf("%s differ; SQLite has\n%s\nPostgreSQL has\n%s\nfirst difference: %s", what, a, b, firstDifference(a, b))
		}
	}
}

func firstDifference(a, b string) string {
	as, bs := strings.Split(a, "\n"), strings.Split(b, "\n")
	for i := range min(len(as), len(bs)) {
		if as[i] != bs[i] {
			return fmt.Sprintf("%q here, %q there", as[i], bs[i])
		}
	}
	return "one has more lines"
}
