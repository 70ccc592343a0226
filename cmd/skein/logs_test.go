package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/skein-vpn/skein/config"
)

// syncBuffer may be written to and read by several.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer // guarded by mu
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}
func (s *syncBuffer) String() string { s.mu.Lock(); defer s.mu.Unlock(); return s.b.String() }

// A whole server, administered in all ways that have secrets, with the most that it logs: JSON where there is no terminal, more and
// less at run time, and no secret in any line.
func TestLogs(t *testing.T) {
	for _, name := range []string{envServer, envAPIKey, envAPIKeyFile, envSocket} {
		t.Setenv(name, "")
	}
	dir := t.TempDir()
	probe, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := probe.Addr().String()
	probe.Close()
	file := filepath.Join(dir, "config.yaml")
	level := func(l string) {
		t.Helper()
		text := fmt.Sprintf("server_url: http://%s\nlisten_addr: %q\nmetrics_listen_addr: \"\"\ntls_fallback_listen_addr: \"\"\ndata_dir: %s\n"+
			"derp: {server: {stun_listen_addr: \"127.0.0.1:0\"}}\nwebhooks: {allow_loopback: true}\nlog: {level: %s}\n", addr, addr, filepath.Join(dir, "d"), l)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	level("info")
	load := func() (*config.Config, error) { return config.Load(config.Options{File: file}) }
	var log syncBuffer
	done := make(chan error, 1)
	go func() { done <- runServe(t.Context(), load, io.Discard, &log) }()
	until := func(what string, ok func() bool) {
		t.Helper()
		for end := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
			select {
			case err := <-done:
				t.Fatalf("the server has ended (%v): %s", err, log.String())
			default:
			}
			if time.Now().After(end) {
				t.Fatalf("%s does not happen:\n%s", what, log.String())
			}
		}
	}
	base := "http://" + addr
	ask := func(method, path, body string, header ...string) string {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, base+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i+1 < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			return ""
		}
		defer res.Body.Close()
		b, _ := io.ReadAll(res.Body)
		return string(b)
	}
	until("it answers", func() bool { return strings.Contains(ask("GET", "/health", ""), "pass") })
	level("debug")
	hup := func(mark string) {
		t.Helper()
		n := strings.Count(log.String(), mark)
		if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		until("the reload", func() bool { return strings.Count(log.String(), mark) > n })
	}
	hup("configuration reloaded")

	var secrets []string
	skein := func(args ...string) string {
		t.Helper()
		var out, errs bytes.Buffer
		run(append(args, "--socket", filepath.Join(dir, "d", socketName)), nil, &out, &errs)
		return out.String() + errs.String()
	}
	secret := func(prefix string, args ...string) string {
		t.Helper()
		for _, word := range strings.Fields(skein(args...)) {
			if strings.HasPrefix(word, prefix) {
				secrets = append(secrets, word)
				return word
			}
		}
		t.Fatalf("%q tells no secret: %s", args, skein(args...))
		return ""
	}
	skein("namespaces", "create", "junyao")
	secret("tskey-auth-", "preauthkeys", "create", "-n", "junyao")
	key := secret("tskey-api-", "apikeys", "create", "--scopes", "all")
	client := secret("tskey-client-", "oauth-clients", "create", "--scopes", "devices:core", "--tags", "tag:ci")
	secret("tskey-webhook-", "webhooks", "create", "http://127.0.0.1:1/", "--events", "nodeCreated")
	link := secret("http", "admins", "create-link", "anna")
	secrets[len(secrets)-1] = link[strings.LastIndex(link, "/")+1:]
	skein("webhooks", "test", "1")
	var token struct {
		Token string `json:"access_token"`
	}
	text := ask("POST", "/oauth/token", url.Values{"grant_type": {"client_credentials"}, "client_secret": {client}}.Encode(), "Content-Type", "application/x-www-form-urlencoded")
	if err := json.Unmarshal([]byte(text), &token); err != nil || token.Token == "" {
		t.Fatalf("%q %v", text, err)
	}
	secrets = append(secrets, token.Token)
	for _, wrong := range []string{key, client, token.Token} {
		for _, h := range [][]string{{"Authorization", "Bearer " + wrong}, {"Authorization", "Bearer " + wrong + "x"}, {"Authorization", wrong}} {
			ask("GET", "/api/v1/node", "", h...)
			ask("GET", "/api/v2/tailnet/-/devices", "", h...)
			ask("POST", "/api/v1/node/register?user=junyao&key="+wrong, "{", h...)
			ask("POST", "/api/v1/preauthkey", `{"user":"`+wrong+`"}`, h...)
		}
		ask("POST", "/oauth/token", url.Values{"grant_type": {"client_credentials"}, "client_secret": {wrong + "x"}}.Encode(), "Content-Type", "application/x-www-form-urlencoded")
		ask("POST", "/oauth/token-exchange", url.Values{"client_id": {"x"}, "jwt": {wrong}}.Encode(), "Content-Type", "application/x-www-form-urlencoded")
		ask("GET", "/register/"+wrong, "")
		ask("POST", "/ts2021", wrong)
	}
	ask("GET", "/admin/link/"+link[strings.LastIndex(link, "/")+1:], "")
	skein("events", "--since", "1h")
	skein("audit", "list", "-o", "json")
	noise, err := os.ReadFile(filepath.Join(dir, "d", "noise_private.key"))
	if err != nil {
		t.Fatal(err)
	}
	secrets = append(secrets, strings.TrimSpace(string(noise)))

	level("error")
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	until("silence", func() bool {
		n := len(log.String())
		ask("POST", "/ts2021", "")
		return len(log.String()) == n
	})
	if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	for line := range strings.Lines(log.String()) {
		var v struct{ Time, Level, Msg string }
		if err := json.Unmarshal([]byte(line), &v); err != nil || v.Time == "" || v.Level == "" || v.Msg == "" {
			t.Errorf("not a line in JSON: %s", line)
		}
	}
	if n := strings.Count(log.String(), `"level":"DEBUG"`); n == 0 {
		t.Errorf("no line is DEBUG after the reload:\n%s", log.String())
	}
	for _, s := range secrets {
		if strings.Contains(log.String(), s) {
			t.Errorf("the log holds the secret %s", s)
		}
		if cut := strings.LastIndex(s, "-"); cut >= 0 && len(s)-cut > 16 && strings.Contains(log.String(), s[cut+1:]) {
			t.Errorf("the log holds the secret part of %s", s)
		}
	}
	for _, prefix := range []string{"privkey:", "tskey-webhook-"} {
		if strings.Contains(log.String(), prefix) {
			t.Errorf("the log has something with %s", prefix)
		}
	}
}
