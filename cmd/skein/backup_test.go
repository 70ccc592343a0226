package main

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/skein-vpn/skein/config"
	"github.com/skein-vpn/skein/db"
)

// The server makes a backup when none is recent, keeps as many as it is told, and leaves other files alone.
func TestScheduledBackups(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	cfg, err := config.Load(config.Options{Flags: map[string]string{"data_dir": filepath.Join(dir, "data"), "backup.dir": filepath.Join(dir, "backups"), "backup.keep": "2"}, Search: []string{}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(cfg.DataDir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(cfg.Backup.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := loadNoiseKey(cfg.Noise.PrivateKeyPath); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"skein-20200101T000000Z.tar.gz", "skein-20200102T000000Z.tar.gz.age", "skein-mine.tar.gz", "other"} {
		if err := os.WriteFile(filepath.Join(cfg.Backup.Dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	d, err := db.Open(ctx, db.Options{Path: cfg.Database.SQLite.Path})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	s := &server{cfg: cfg, db: d, log: slog.New(slog.DiscardHandler)}
	run, stop := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.backups(run)
	}()
	deadline := time.Now().Add(time.Minute)
	for {
		names := ownBackups(cfg.Backup.Dir)
		if len(names) == 2 && names[0] == "skein-20200102T000000Z.tar.gz.age" {
			if at, ok := backupMade(names[1]); !ok || time.Since(at) > 2*time.Minute {
				t.Errorf("the new one is %s", names[1])
			}
			if _, err := restore(ctx, filepath.Join(cfg.Backup.Dir, names[1]), filepath.Join(dir, "back"), "", false, time.Now()); err != nil {
				t.Error(err)
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("there is %v", names)
		}
		time.Sleep(20 * time.Millisecond)
	}
	stop()
	<-done
	for _, name := range []string{"skein-mine.tar.gz", "other"} {
		if _, err := os.Stat(filepath.Join(cfg.Backup.Dir, name)); err != nil {
			t.Errorf("%s is gone: %v", name, err)
		}
	}
}
