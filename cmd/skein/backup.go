package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/skein-vpn/skein/backup"
	"github.com/skein-vpn/skein/config"
	"github.com/skein-vpn/skein/db"
)

// envPassphrase holds the passphrase of a backup where no file is named.
const envPassphrase = "SKEIN_BACKUP_PASSPHRASE"

// passphrase is what encrypts a backup; the file wins over the environment.
func passphrase(file string) (string, error) {
	if file == "" {
		return os.Getenv(envPassphrase), nil
	}
	var b []byte
	var err error
	if file == "-" {
		line, rerr := bufio.NewReader(os.Stdin).ReadString('\n')
		if b, err = []byte(line), rerr; errors.Is(err, io.EOF) {
			err = nil
		}
	} else {
		b, err = os.ReadFile(file)
	}
	if err != nil {
		return "", fmt.Errorf("the passphrase cannot be read: %w", err)
	}
	p := strings.TrimRight(string(b), "\r\n")
	if p == "" {
		return "", fmt.Errorf("the passphrase in %s is empty", file)
	}
	return p, nil
}

func newBackupCommand(c *cli) *cobra.Command {
	var passFile string
	var force bool
	cmd := &cobra.Command{
		Use: "backup FILE", Short: "Write database, keys and configuration into one file",
		Long: `Write database, keys and configuration into one file, readable for you alone. The server may run meanwhile; run it as root or as the
user that the server runs as. With a name that ends in .gz it is compressed. With a passphrase (--passphrase-file, or
` + envPassphrase + ` in the environment) it is encrypted in the format of the program age.

A PostgreSQL database is not in it: pg_dump copies that. Certificates that tls_cert_path names are not in it either.
Backups at regular times are made by the server itself: backup.dir in the configuration.`,
		Example: `  skein backup skein-$(date +%F).tar.gz
  skein backup --passphrase-file /root/passphrase /mnt/usb/skein.tar.gz.age
  skein restore skein-2026-01-31.tar.gz`,
		Args: wantArgs("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := c.loadConfig()
			if err != nil {
				return err
			}
			pass, err := passphrase(passFile)
			if err != nil {
				return err
			}
			copyDB := func(ctx context.Context, to string) error { return db.CopyFile(ctx, cfg.Database.SQLite.Path, to) }
			n, err := writeBackup(cmd.Context(), cfg, args[0], pass, force, time.Now(), copyDB)
			if err != nil {
				return err
			}
			if cfg.Database.IsPostgres() {
				fmt.Fprintln(c.errOut, "The PostgreSQL database is not in it. Copy it with: pg_dump --format=custom --file=skein.dump "+pgName(cfg))
			}
			return c.done("%s written to %s.", count(n, "file"), args[0])
		},
	}
	cmd.Flags().StringVar(&passFile, "passphrase-file", "", "encrypt with the passphrase in `FILE` (-: the standard input)")
	cmd.Flags().BoolVar(&force, "force", false, "replace FILE")
	return cmd
}

// pgName names the database for pg_dump, without a password.
func pgName(cfg *config.Config) string {
	p := cfg.Database.Postgres
	if p.URL != "" {
		return "\"$DATABASE_URL\"   (database.postgres.url)"
	}
	return fmt.Sprintf("--host=%s --port=%d --username=%s %s", p.Host, p.Port, p.User, p.Name)
}

// writeBackup makes a backup of the server of cfg and returns how many files are in it. copyDB writes a copy of the SQLite database to
// a new file.
func writeBackup(ctx context.Context, cfg *config.Config, to, pass string, replace bool, now time.Time, copyDB func(context.Context, string) error) (int, error) {
	m := backup.Manifest{Skein: version(), Created: now.UTC(), Database: "sqlite", DataDir: cfg.DataDir}
	files, err := dataFiles(cfg)
	if err != nil {
		return 0, err
	}
	for name, path := range map[string]string{backup.NoiseKey: cfg.Noise.PrivateKeyPath, backup.DERPKey: cfg.DERP.Server.PrivateKeyPath, backup.Policy: cfg.Policy.Path, backup.Config: cfg.File()} {
		if path == "" {
			continue
		}
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) && name != backup.NoiseKey {
			continue // made on the first start
		} else if err != nil {
			return 0, fmt.Errorf("there is no server to back up at %s (data_dir): %w", cfg.DataDir, err)
		}
		files = append(files, backup.File{Name: name, Path: path})
	}
	m.Config, m.Policy = cfg.File(), cfg.Policy.Path
	if cfg.Database.IsPostgres() {
		m.Database = "postgres"
	} else {
		// Beside the backup, where there is room for it.
		dir, err := os.MkdirTemp(filepath.Dir(to), ".skein-backup-")
		if err != nil {
			return 0, fmt.Errorf("the backup cannot be written: %w", err)
		}
		defer func() { _ = os.RemoveAll(dir) }()
		copied := filepath.Join(dir, backup.Database)
		if err := copyDB(ctx, copied); err != nil {
			return 0, err
		}
		files = append(files, backup.File{Name: backup.Database, Path: copied})
	}
	slices.SortFunc(files, func(a, b backup.File) int { return strings.Compare(a.Name, b.Name) })
	o := backup.Options{Passphrase: pass, Compress: strings.HasSuffix(strings.TrimSuffix(to, ".age"), ".gz")}
	return len(files), backup.WriteFile(to, m, files, o, replace)
}

// maxDataFile bounds the files of the data folder that go into a backup, in bytes: keys and certificates are far smaller.
const maxDataFile = 16 << 20

// dataFiles are the files of the data folder beside the database, its keys and earlier backups.
func dataFiles(cfg *config.Config) (files []backup.File, err error) {
	skip := []string{cfg.Database.SQLite.Path, cfg.Noise.PrivateKeyPath, cfg.DERP.Server.PrivateKeyPath, cfg.UnixSocket, cfg.Policy.Path, cfg.Backup.Dir}
	err = filepath.WalkDir(cfg.DataDir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if path == cfg.DataDir {
			return nil
		}
		base := d.Name()
		if slices.Contains(skip, path) || strings.HasPrefix(base, ".") {
			if d.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		if !d.Type().IsRegular() || strings.HasPrefix(path, cfg.Database.SQLite.Path) || strings.Contains(base, ".before-") ||
			strings.HasSuffix(base, ".lock") || strings.HasSuffix(base, ".new") || strings.HasSuffix(base, ".part") || base == backup.Config {
			return nil
		}
		if fi, err := d.Info(); err != nil || fi.Size() > maxDataFile {
			return err
		}
		rel, err := filepath.Rel(cfg.DataDir, path)
		if err != nil {
			return err
		}
		files = append(files, backup.File{Name: backup.Data + filepath.ToSlash(rel), Path: path})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("the data folder cannot be read (data_dir): %w", err)
	}
	return files, nil
}

func newRestoreCommand(c *cli) *cobra.Command {
	var passFile string
	var force bool
	cmd := &cobra.Command{
		Use: "restore FILE", Short: "Put back what a backup holds",
		Long: `Put back what a backup holds into the data folder (--data-dir, or as the configuration says): database, keys, policy, and the
configuration as config.yaml. The server must not run. Over data it refuses, unless --force puts that aside under
another name. The database is brought up to date on the way; a backup by a newer Skein is refused.`,
		Example: `  skein restore skein-2026-01-31.tar.gz --data-dir /var/lib/skein
  skein restore --passphrase-file /root/passphrase skein.tar.gz.age`,
		Args: wantArgs("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir := c.dataDir
			if dir == "" {
				if cfg, err := c.loadConfig(); err == nil {
					dir = cfg.DataDir
				} else {
					dir = config.DefaultDataDir()
				}
			}
			dir, err := filepath.Abs(dir)
			if err != nil {
				return err
			}
			pass, err := passphrase(passFile)
			if err != nil {
				return err
			}
			m, err := restore(cmd.Context(), args[0], dir, pass, force, time.Now())
			if err != nil {
				return err
			}
			if m.Database == "postgres" {
				fmt.Fprintln(c.errOut, "The PostgreSQL database is not in it. Put that back with pg_restore.")
			}
			if m.Config != "" {
				fmt.Fprintf(c.errOut, "The configuration was at %s and is at %s now.\n", m.Config, filepath.Join(dir, backup.Config))
			}
			return c.done("Restored %s of %s into %s.", count(len(m.Files), "file"), m.Created.Local().Format("2006-01-02 15:04:05"), dir)
		},
	}
	cmd.Flags().StringVar(&passFile, "passphrase-file", "", "the passphrase is in `FILE` (-: the standard input)")
	cmd.Flags().BoolVar(&force, "force", false, "put aside what is in the data folder")
	return cmd
}

// restore unpacks a backup and puts its files where they belong in dir, the database last.
func restore(ctx context.Context, from, dir, pass string, force bool, now time.Time) (*backup.Manifest, error) {
	f, err := os.Open(from)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("the data folder cannot be made: %w", err)
	}
	lock, err := db.Lock(filepath.Join(dir, backup.Database))
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	stage, err := os.MkdirTemp(dir, ".restore-")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(stage) }()
	m, err := backup.Read(f, stage, pass)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", from, err)
	}
	if slices.Contains(m.Files, backup.Database) {
		d, err := db.Open(ctx, db.Options{Path: filepath.Join(stage, backup.Database)})
		if err != nil {
			return nil, fmt.Errorf("%s: %w", from, err)
		}
		if err := d.Close(); err != nil {
			return nil, fmt.Errorf("%s: %w", from, err)
		}
	}
	target := func(name string) string {
		return filepath.Join(dir, filepath.FromSlash(strings.TrimPrefix(name, backup.Data)))
	}
	for _, name := range m.Files {
		if _, err := os.Lstat(target(name)); err == nil && !force {
			return nil, fmt.Errorf("%s is there already: --force puts it and the other files aside", target(name))
		}
	}
	aside := ".before-restore-" + now.UTC().Format("20060102T150405Z")
	order := slices.Clone(m.Files)
	slices.SortStableFunc(order, func(a, b string) int { return boolInt(a == backup.Database) - boolInt(b == backup.Database) })
	for _, name := range order {
		if err := os.MkdirAll(filepath.Dir(target(name)), 0o700); err != nil {
			return nil, err
		}
		if err := place(filepath.Join(stage, filepath.FromSlash(name)), target(name), aside); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// Names of the backups that the server makes by itself.
const (
	backupPrefix = "skein-"
	backupSuffix = ".tar.gz"
	backupTime   = "20060102T150405Z"
)

// backups makes a backup every so often and removes the oldest beyond those that are kept.
func (s *server) backups(ctx context.Context) {
	b := s.cfg.Backup
	for {
		var wait time.Duration
		if last := newestBackup(b.Dir); !last.IsZero() {
			wait = time.Until(last.Add(b.Every.Std()))
		}
		if wait > 0 {
			select {
			case <-time.After(wait):
			case <-ctx.Done():
				return
			}
		}
		if err := s.backup(ctx); err != nil && ctx.Err() == nil {
			s.log.Error("the backup failed; the next attempt is in an hour at the latest", "err", err)
			select {
			case <-time.After(min(b.Every.Std(), time.Hour)):
			case <-ctx.Done():
				return
			}
		}
	}
}

// backup makes one backup into backup.dir.
func (s *server) backup(ctx context.Context) error {
	b := s.cfg.Backup
	if err := os.MkdirAll(b.Dir, 0o700); err != nil {
		return fmt.Errorf("backup.dir: %w", err)
	}
	pass := ""
	if b.PassphrasePath != "" {
		var err error
		if pass, err = passphrase(b.PassphrasePath); err != nil {
			return fmt.Errorf("backup.passphrase_path: %w", err)
		}
	}
	name := backupPrefix + time.Now().UTC().Format(backupTime) + backupSuffix
	if pass != "" {
		name += ".age"
	}
	begin := time.Now()
	if _, err := writeBackup(ctx, s.cfg, filepath.Join(b.Dir, name), pass, true, begin, s.db.CopyTo); err != nil {
		return err
	}
	s.log.Info("backup written", "file", filepath.Join(b.Dir, name), "took", time.Since(begin).Round(time.Millisecond))
	return removeOldBackups(b.Dir, b.Keep, s.log)
}

// ownBackups are the names of the backups in dir that the server has made, oldest first.
func ownBackups(dir string) (names []string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if _, ok := backupMade(e.Name()); ok {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	return names
}

// backupMade is when the backup of that name was made, and whether it is one of ours.
func backupMade(name string) (time.Time, bool) {
	stem, ok := strings.CutPrefix(strings.TrimSuffix(name, ".age"), backupPrefix)
	if !ok {
		return time.Time{}, false
	}
	stem, ok = strings.CutSuffix(stem, backupSuffix)
	t, err := time.Parse(backupTime, stem)
	return t, ok && err == nil
}

// newestBackup is when the newest backup in dir was made, zero if there is none.
func newestBackup(dir string) time.Time {
	names := ownBackups(dir)
	if len(names) == 0 {
		return time.Time{}
	}
	t, _ := backupMade(names[len(names)-1])
	return t
}

// removeOldBackups keeps the newest ones; 0 keeps all.
func removeOldBackups(dir string, keep int, log *slog.Logger) error {
	names := ownBackups(dir)
	if keep == 0 || len(names) <= keep {
		return nil
	}
	var errs []error
	for _, n := range names[:len(names)-keep] {
		errs = append(errs, os.Remove(filepath.Join(dir, n)))
		log.Debug("old backup removed", "file", n)
	}
	return errors.Join(errs...)
}
