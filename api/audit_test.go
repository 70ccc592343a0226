package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skein-vpn/skein/tailnet"
)

func TestAudit(t *testing.T) {
	w := seed(t)
	srv := httptest.NewServer(w.behindGate())
	t.Cleanup(srv.Close)
	c, err := NewClient(srv.URL, w.apiKey(0))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.RenameNode(w.ctx(), "junyao", "desk"); err != nil {
		t.Fatal(err)
	}
	l, err := c.ListAudit(w.ctx(), AuditFilter{})
	if err != nil || len(l.Entries) == 0 || l.Next != "" {
		t.Fatalf("%+v %v", l, err)
	}
	e := l.Entries[0]
	if e.Action != "node.update" || e.Target != (AuditTarget{"node", "1", "desk"}) || string(e.Before) != `{"name":"junyao"}` || string(e.After) != `{"name":"desk"}` ||
		e.Actor.Kind != "api-key" || e.Actor.Origin != "api" || e.Actor.Remote != "127.0.0.1" || !strings.HasPrefix(e.Actor.Name, "API key k") || e.Actor.ID == "" ||
		!e.Time.Equal(noon) {
		t.Errorf("%+v", e)
	}
	by := l.Entries[len(l.Entries)-1].Actor // the first namespace, made over the socket
	if by.Kind != "socket" || by.Origin != "cli" || by.Name == "" {
		t.Errorf("%+v", by)
	}
	// Page by page, in both directions, it is the same.
	var back, forth []string
	for f := (AuditFilter{Limit: 2}); ; {
		p, err := c.ListAudit(w.ctx(), f)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range p.Entries {
			back = append(back, e.ID)
		}
		if f.Before = p.Next; p.Next == "" {
			break
		}
	}
	for f := (AuditFilter{Limit: 2, After: "0.0"}); ; {
		p, err := c.ListAudit(w.ctx(), f)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range p.Entries {
			forth = append([]string{e.ID}, forth...)
		}
		if f.After = p.Next; p.Next == "" {
			break
		}
	}
	if len(back) != len(l.Entries) || fmt.Sprint(back) != fmt.Sprint(forth) {
		t.Errorf("%v and %v, in all %d", back, forth, len(l.Entries))
	}
	for q, want := range map[string]int{"since=x": 400, "limit=0": 400, "limit=9999": 400, "before=x": 400, "after=1": 400, "until=2026-01-01": 200, "actor=%25": 200} {
		if status, body := w.call("GET", "/api/v1/audit?"+q, ""); status != want {
			t.Errorf("%s: %d %s", q, status, body)
		}
	}
}

// The file follows the log, across restarts and when it is moved away, without a gap.
func TestAuditFile(t *testing.T) {
	w := seed(t)
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	ids := func(paths ...string) (out []string) {
		for _, p := range paths {
			b, err := os.ReadFile(p)
			if err != nil {
				return nil
			}
			for line := range strings.Lines(string(b)) {
				var e AuditEntry
				if err := json.Unmarshal([]byte(line), &e); err != nil {
					t.Fatal(err)
				}
				out = append(out, e.ID)
			}
		}
		return out
	}
	all := func() (out []string) {
		es, err := w.auth.AuditLog(w.ctx(), tailnet.AuditQuery{After: &tailnet.AuditPos{}})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range es {
			out = append(out, e.ID())
		}
		return out
	}
	run := func() (stop func()) {
		f, err := OpenAuditFile(path)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(w.ctx())
		done := make(chan error, 1)
		go func() { done <- w.auth.StreamAudit(ctx, f.Pos(), f.Write) }()
		return func() {
			cancel()
			if err := <-done; !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		}
	}
	follow := func(paths ...string) {
		t.Helper()
		deadline := time.Now().Add(time.Minute)
		for fmt.Sprint(ids(paths...)) != fmt.Sprint(all()) {
			if time.Now().After(deadline) {
				t.Fatalf("%v, want %v", ids(paths...), all())
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	stop := run()
	follow(path)
	w.user("new")
	follow(path)
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	w.user("newer")
	follow(path+".1", path)
	stop()
	w.user("while-away")
	stop = run()
	follow(path+".1", path)
	stop()
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", fi, err)
	}
	if err := os.WriteFile(path+".pos", []byte("rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenAuditFile(path); err == nil || !strings.Contains(err.Error(), path+".pos") {
		t.Error(err)
	}
	if _, err := OpenAuditFile(filepath.Join(t.TempDir(), "no", "such")); err == nil {
		t.Error("no error")
	}
}
