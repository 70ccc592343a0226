package api

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skein-vpn/skein/tailnet"
)

func TestListenUnix(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := ListenUnix(path, 0o660)
	if err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o660 {
		t.Errorf("mode %v, %v", fi.Mode(), err)
	}
	if l.Addr().String() != path {
		t.Errorf("address %s", l.Addr())
	}
	if _, err := ListenUnix(path, 0o660); tailnet.CodeOf(err) != tailnet.Conflict || !strings.Contains(err.Error(), "another skein is running") {
		t.Errorf("second server: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if left, _ := os.ReadDir(filepath.Dir(path)); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

// A killed server leaves its socket behind.
func TestListenUnixStale(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	dead.Close()
	l, err := ListenUnix(path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	// A server that is on its way out must not remove the socket of the next one.
	os.Remove(path)
	next, err := ListenUnix(path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	l.Close()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatalf("the next server's socket is gone: %v", err)
	}
	c.Close()
}

func TestListenUnixErrors(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		file:                            "it is no socket",
		dir:                             "it is no socket",
		filepath.Join(dir, "no", "s"):   "no such file",
		filepath.Join(file, "s"):        "not a directory",
		"/" + strings.Repeat("x/", 100): "too long",
		strings.Repeat("x", 108):        "too long",
	} {
		if l, err := ListenUnix(path, 0o600); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, %v; want %q", path, l, err, want)
		}
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "precious" {
		t.Errorf("the file is damaged: %q, %v", b, err)
	}
	// The longest path that is possible.
	t.Chdir(dir)
	l, err := ListenUnix(strings.Repeat("y", maxSocketPath), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
}
