package main

import (
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"

	"go.yaml.in/yaml/v4"

	"github.com/skein-vpn/skein/config"
)

// Every metric of ours is in docs/operations.md, and no other.
func TestMetricsAreDocumented(t *testing.T) {
	s := startServer(t, nil)
	res, err := http.Get("http://" + s.metricsAddr.Addr().String() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("status %d, %v", res.StatusCode, err)
	}
	doc, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	names := func(pattern string, b []byte) (out []string) {
		for _, m := range regexp.MustCompile(pattern).FindAllSubmatch(b, -1) {
			out = append(out, string(m[1]))
		}
		slices.Sort(out)
		return out
	}
	is, says := names(`(?m)^# TYPE (skein_\w+) `, text), names("(?m)^\\| `(skein_\\w+)` \\|", doc)
	if len(is) < 30 || !slices.Equal(is, says) {
		t.Errorf("/metrics has\n%q, the docs\n%q", is, says)
	}
	for _, name := range []string{"grafana.json", "alerts.yaml"} {
		b, err := os.ReadFile("../../monitoring/" + name)
		if err != nil {
			t.Fatal(err)
		}
		used := names(`\b(skein_\w+)`, b)
		if len(used) < 5 {
			t.Errorf("%s uses no metrics of ours", name)
		}
		for _, u := range used {
			if !slices.Contains(is, u) {
				t.Errorf("%s uses %s, which does not exist", name, u)
			}
		}
		var v any
		if err := yaml.Unmarshal(b, &v); err != nil { // JSON is YAML, too
			t.Errorf("%s: %v", name, err)
		}
	}
}

// startServer opens a whole server on ports of its own, without the fallback port, until the test ends.
func startServer(t *testing.T, change func(*config.Config)) *server {
	t.Helper()
	cfg := config.Default()
	cfg.DataDir = t.TempDir()
	cfg.ListenAddr, cfg.MetricsListenAddr, cfg.TLSFallbackListenAddr = "127.0.0.1:0", "127.0.0.1:0", ""
	cfg.DERP.Server.STUNListenAddr, cfg.ServerURL = "127.0.0.1:0", "http://127.0.0.1:8080" // whoever may listen there: nobody is asked
	cfg.UnixSocket = filepath.Join(cfg.DataDir, "s")
	cfg.Database.SQLite.Path = filepath.Join(cfg.DataDir, "db")
	cfg.Noise.PrivateKeyPath = filepath.Join(cfg.DataDir, "noise")
	cfg.DERP.Server.PrivateKeyPath = filepath.Join(cfg.DataDir, "derp")
	if change != nil {
		change(cfg)
	}
	s, err := openServer(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}
