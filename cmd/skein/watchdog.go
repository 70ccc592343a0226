package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"time"
)

// watchdogInterval is how often systemd wants a sign of life (WATCHDOG_USEC), 0 if it wants none of this process.
func watchdogInterval(getenv func(string) string, pid int) time.Duration {
	us, err := strconv.ParseInt(getenv("WATCHDOG_USEC"), 10, 64)
	if p := getenv("WATCHDOG_PID"); err != nil || us <= 0 || p != "" && p != strconv.Itoa(pid) {
		return 0
	}
	return time.Duration(us) * time.Microsecond
}

// watchdog gives systemd its sign of life (WatchdogSec) for as long as the server answers on its own port. A database that is away
// is no reason to be killed: a restart would not bring it back.
func (s *server) watchdog(ctx context.Context) {
	every := watchdogInterval(os.Getenv, os.Getpid())
	if every == 0 {
		return
	}
	tick := time.NewTicker(every / 3)
	defer tick.Stop()
	for {
		if err := s.alive(ctx, every/3); err == nil {
			notify("WATCHDOG=1")
		} else if ctx.Err() == nil {
			s.log.Error("the server does not answer itself; systemd will restart it if that goes on", "err", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// alive asks the server for its version, over the network as clients do.
func (s *server) alive(ctx context.Context, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return s.ask(ctx, "/version")
}

// ask gets path from the server's own port.
func (s *server) ask(ctx context.Context, path string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.listeners[0].Addr().String()+path, nil)
	if err != nil {
		return err
	}
	t := &http.Transport{DisableKeepAlives: true}
	resp, err := t.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("it answers %s", resp.Status)
	}
	return nil
}
