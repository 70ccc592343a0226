package main

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestWatchdogInterval(t *testing.T) {
	for _, c := range []struct {
		usec, pid string
		want      time.Duration
	}{{"", "", 0}, {"30000000", "", 30 * time.Second}, {"30000000", "7", 30 * time.Second}, {"30000000", "8", 0}, {"x", "7", 0}, {"-1", "", 0}} {
		env := map[string]string{"WATCHDOG_USEC": c.usec, "WATCHDOG_PID": c.pid}
		if got := watchdogInterval(func(k string) string { return env[k] }, 7); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}

// systemd hears of the server while it answers, and no more once it does not.
func TestWatchdog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_USEC", "300000")
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/version" {
			http.NotFound(w, r)
		}
	}))
	s := &server{listeners: []net.Listener{web.Listener}, log: slog.New(slog.DiscardHandler)}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.watchdog(ctx)
	}()
	buf := make([]byte, 100)
	for range 3 {
		if err := l.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		n, err := l.Read(buf)
		if err != nil || !strings.HasPrefix(string(buf[:n]), "WATCHDOG=1") {
			t.Fatalf("%q %v", buf[:n], err)
		}
	}
	web.Close()
	if err := s.alive(ctx, time.Minute); err == nil {
		t.Error("a server that is gone is alive")
	}
	stop()
	<-done
}
