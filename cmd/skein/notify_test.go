package main

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The program as systemd runs it (Type=notify, WatchdogSec): it says when it is ready, that it lives, that it reads its configuration
// again, and that it stops.
func TestNotify(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "skein")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	socket := filepath.Join(dir, "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.CommandContext(t.Context(), program, "serve", "--data-dir", filepath.Join(dir, "data"), "--listen", "127.0.0.1:0", "--metrics-listen", "", "--stun-listen", "", "--server-url", "http://127.0.0.1:8080")
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+socket, "WATCHDOG_USEC=500000", "SKEIN_TLS_FALLBACK_LISTEN_ADDR=")
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	over := make(chan error, 1)
	go func() { over <- cmd.Wait() }()
	defer func() { _ = cmd.Process.Kill() }()
	// next returns the next message whose first line is one of want; signs of life in between are passed over.
	next := func(want ...string) string {
		t.Helper()
		buf := make([]byte, 4096)
		for {
			if err := l.SetReadDeadline(time.Now().Add(2 * time.Minute)); err != nil {
				t.Fatal(err)
			}
			n, err := l.Read(buf)
			if err != nil {
				text, _ := os.ReadFile(log.Name())
				t.Fatalf("waiting for %v: %v\n%s", want, err, text)
			}
			first, _, _ := strings.Cut(string(buf[:n]), "\n")
			if slices.Contains(want, first) {
				return string(buf[:n])
			}
			if first != "WATCHDOG=1" {
				t.Fatalf("%q, want one of %v", buf[:n], want)
			}
		}
	}
	next("READY=1")
	next("WATCHDOG=1")
	next("WATCHDOG=1")
	if err := cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	_, usec, ok := strings.Cut(next("RELOADING=1"), "MONOTONIC_USEC=")
	if n, err := strconv.ParseInt(usec, 10, 64); !ok || err != nil || n <= 0 {
		t.Errorf("a reload begins at %q", usec)
	}
	next("READY=1")
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	next("STOPPING=1")
	if err := <-over; err != nil {
		t.Errorf("it ended with %v", err)
	}
}
