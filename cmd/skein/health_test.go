package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/skein-vpn/skein/api"
)

// A real server is well, until one of its parts does not answer.
func TestHealth(t *testing.T) {
	s := startServer(t, nil)
	var mu sync.Mutex
	now := time.Now()
	later := func() { mu.Lock(); defer mu.Unlock(); now = now.Add(healthKept) }
	s.health.now = func() time.Time { mu.Lock(); defer mu.Unlock(); return now } // before anybody asks
	get := func() (int, string) {
		res, err := http.Get("http://" + s.listeners[0].Addr().String() + "/health")
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, _ := io.ReadAll(res.Body)
		return res.StatusCode, string(b)
	}
	if code, text := get(); code != http.StatusOK || text != "{\"status\":\"pass\"}\n" {
		t.Fatalf("%d %q", code, text)
	}
	var names []string
	for _, c := range s.health.check(t.Context()) {
		names = append(names, c.Name)
	}
	if got := strings.Join(names, " "); got != "database changes relay stun" {
		t.Errorf("it checks %s", got)
	}
	s.stun.Close()
	if code, _ := get(); code != http.StatusOK {
		t.Error("a verdict is not kept")
	}
	later()
	if code, text := get(); code != http.StatusServiceUnavailable || text != "{\"status\":\"fail\"}\n" {
		t.Errorf("without STUN: %d %q", code, text)
	}
	_, err := api.NewUnixClient(s.cfg.UnixSocket).Health(t.Context())
	if err == nil || !strings.Contains(err.Error(), "the server is not well: stun: ") {
		t.Error(err)
	}
}

// However many ask, it is looked once, and the log says a thing once.
func TestHealthIsCheap(t *testing.T) {
	var looks atomic.Int64
	var fail atomic.Bool
	var log bytes.Buffer
	release := make(chan struct{})
	now := time.Now()
	h := &health{now: func() time.Time { return now }, log: slog.New(slog.NewTextHandler(&log, nil)), look: make(chan struct{}, 1)}
	h.checks = []healthCheck{{"database", func(context.Context) error {
		looks.Add(1)
		<-release
		if fail.Load() {
			return errors.New("disk on fire")
		}
		return nil
	}}}
	ask := func(n int) {
		var wg sync.WaitGroup
		for range n {
			wg.Go(func() {
				if err := api.Unwell(h.check(t.Context())); (err != nil) != fail.Load() {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	go close(release)
	ask(100)
	if n := looks.Load(); n != 1 {
		t.Errorf("it was looked %d times", n)
	}
	fail.Store(true)
	for range 3 {
		now = now.Add(healthKept)
		ask(10)
	}
	fail.Store(false)
	now = now.Add(healthKept)
	ask(1)
	if n := looks.Load(); n != 5 {
		t.Errorf("it was looked %d times", n)
	}
	if text := log.String(); strings.Count(text, "not well") != 1 || strings.Count(text, "well again") != 1 {
		t.Errorf("the log says\n%s", text)
	}
}
