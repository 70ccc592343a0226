package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/skein-vpn/skein/db"
)

// envDatabaseURL names the target of db copy without showing its password to everybody on the machine.
const envDatabaseURL = "SKEIN_DATABASE_POSTGRES_URL"

func newDBCommand(c *cli) *cobra.Command {
	return group("db", nil, "The database, while no server runs on it",
		"  skein db copy --to postgres://skein@db.example.com/skein", c.dbCopy())
}

func (c *cli) dbCopy() *cobra.Command {
	var to, path string
	cmd := &cobra.Command{
		Use: "copy --to URL", Short: "Copy the SQLite database into PostgreSQL",
		Long: `Copy everything in the SQLite database into an empty PostgreSQL database, in one transaction. The server must not run; the SQLite
database stays as it is. Set database.type and database.postgres in the configuration afterwards.

The URL may also come from ` + envDatabaseURL + ` in the environment, where others on this machine do not see its password.`,
		Example: `  createdb skein
  skein db copy --to postgres://skein@db.example.com/skein
  skein db copy --data-dir /var/lib/skein --to "host=/run/postgresql dbname=skein"`,
		Args: wantArgs(), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if to == "" {
				to = os.Getenv(envDatabaseURL)
			}
			if to == "" {
				return usagef("name the PostgreSQL database with --to")
			}
			if path == "" {
				cfg, err := c.loadConfig()
				if err != nil {
					return err
				}
				path = cfg.Database.SQLite.Path
			}
			if _, err := os.Stat(path); err != nil {
				return fmt.Errorf("there is no SQLite database to copy: %w", err)
			}
			from, err := db.Open(cmd.Context(), db.Options{Path: path})
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, from.Close()) }()
			target, err := db.Open(cmd.Context(), db.Options{URL: to})
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, target.Close()) }()
			counts, err := from.CopyAll(cmd.Context(), target)
			if err != nil {
				return err
			}
			t := &table{head: []string{"Table", "Rows"}}
			for _, name := range slices.Sorted(maps.Keys(counts)) {
				t.add(name, strconv.Itoa(counts[name]))
			}
			if err := c.print(counts, t); err != nil || c.output != "" {
				return err
			}
			return c.done("Copied. Set database.type to postgres and say where it is (database.postgres), then start the server.")
		},
	}
	cmd.Flags().StringVar(&to, "to", "", "the PostgreSQL database, a `URL` or connection string")
	cmd.Flags().StringVar(&path, "from", "", "the SQLite database, a `FILE` (default: as the configuration says)")
	return cmd
}
