package db

import (
	"os"
	"path/filepath"
	"testing"
)

// A file is looked through while it is open and afterwards, leaves nothing beside it, and damage is found.
func TestCheckFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "d b?.sqlite")
	d, err := Open(t.Context(), Options{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	if err := CheckFile(t.Context(), path); err != nil {
		t.Errorf("open: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	before, _ := os.ReadDir(dir)
	if err := CheckFile(t.Context(), path); err != nil {
		t.Errorf("closed: %v", err)
	}
	if after, _ := os.ReadDir(dir); len(after) != len(before) {
		t.Errorf("there are %d files, there were %d", len(after), len(before))
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	fi, _ := f.Stat()
	for at := int64(4096); at < fi.Size(); at += 4096 { // of each page but the first
		if _, err := f.WriteAt([]byte("damage, damage, damage"), at); err != nil {
			t.Fatal(err)
		}
	}
	f.Close()
	if err := CheckFile(t.Context(), path); err == nil {
		t.Error("damage is not found")
	}
	if err := CheckFile(t.Context(), filepath.Join(dir, "none")); err == nil {
		t.Error("a file that is not there is well")
	}
}
