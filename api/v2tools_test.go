package api

import (
	"encoding/pem"
	"log/slog"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gorilla/mux"

	"github.com/skein-vpn/skein/auth"
)

// tool builds a command of Tailscale's, as go.mod pins it.
func tool(t *testing.T, name string) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), name)
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", bin, "tailscale.com/cmd/"+name).CombinedOutput(); err != nil {
		t.Fatalf("building %s: %v\n%s", name, err, out)
	}
	return bin
}

// Tailscale's own tools with our server: gitops-pusher, which speaks https only, and get-authkey.
func TestV2Tools(t *testing.T) {
	w := seed(t)
	m := mux.NewRouter()
	NewTokens(w.auth, nil, nil, slog.New(slog.DiscardHandler)).Mount(m)
	m.PathPrefix("/").Handler(NewHandler(Options{State: w.st, Auth: w.auth, Gate: NewGate(w.auth, nil, nil), Log: slog.New(slog.DiscardHandler)}))
	srv := httptest.NewTLSServer(m)
	t.Cleanup(srv.Close)
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	cert := file("cert.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})))
	run := func(bin string, env []string, args ...string) (string, error) {
		cmd := exec.CommandContext(t.Context(), bin, args...)
		cmd.Dir = dir
		cmd.Env = append(env, "SSL_CERT_FILE="+cert, "HOME="+dir, "PATH="+os.Getenv("PATH"))
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	secret, client, err := w.auth.CreateOAuthClient(w.ctx(), auth.SocketPrincipal("test"), auth.ClientRequest{
		Scopes: []string{"policy_file", "auth_keys"}, Tags: []string{"tag:ci"}, Description: "CI",
	})
	if err != nil {
		t.Fatal(err)
	}

	t.Run("gitops-pusher", func(t *testing.T) {
		pusher := tool(t, "gitops-pusher")
		host := strings.TrimPrefix(srv.URL, "https://")
		good := file("policy.hujson", "// ours\n{\"acls\": [{\"action\": \"accept\", \"src\": [\"*\"], \"dst\": [\"*:22\"]}]}\n")
		bad := file("bad.hujson", `{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:99999"]}]}`)
		for _, creds := range [][]string{
			{"TS_TAILNET=-", "TS_API_KEY=" + w.apiKey(0)},
			{"TS_TAILNET=-", "TS_OAUTH_ID=" + client.ID, "TS_OAUTH_SECRET=" + secret},
		} {
			push := func(policy, verb string) (string, error) {
				return run(pusher, creds, "--api-server", host, "--policy-file", policy, "--github-syntax=false", "--cache-file", filepath.Join(dir, "cache.json"), verb)
			}
			if out, err := push(good, "test"); err != nil {
				t.Errorf("test: %v\n%s", err, out)
			}
			if out, err := push(bad, "test"); err == nil || !strings.Contains(out, "99999") {
				t.Errorf("test of a fault: %v\n%s", err, out)
			}
			if out, err := push(good, "apply"); err != nil {
				t.Errorf("apply: %v\n%s", err, out)
			}
			if text := w.st.Snapshot().Text; text == nil || !strings.HasPrefix(text.Text, "// ours") {
				t.Fatalf("it was not applied: %+v", text)
			}
			if out, err := push(good, "apply"); err != nil || !strings.Contains(out, "no update needed") {
				t.Errorf("apply again: %v\n%s", err, out)
			}
			if out, err := push(bad, "apply"); err == nil {
				t.Errorf("a fault was applied:\n%s", out)
			}
		}
	})
	t.Run("get-authkey", func(t *testing.T) {
		get := tool(t, "get-authkey")
		env := []string{"TS_BASE_URL=" + srv.URL, "TS_API_CLIENT_ID=" + client.ID, "TS_API_CLIENT_SECRET=" + secret}
		out, err := run(get, env, "-reusable", "-tags", "tag:ci")
		if key := strings.TrimSpace(out); err != nil || !strings.HasPrefix(key, "tskey-auth-") {
			t.Fatalf("%v\n%s", err, out)
		}
		ks := w.st.Snapshot().PreAuthKeys()
		if k := ks[len(ks)-1]; !k.Reusable || !k.Preapproved || k.Tags[0] != "tag:ci" {
			t.Errorf("%+v", k)
		}
		if out, err := run(get, env, "-tags", "tag:other"); err == nil || !strings.Contains(out, "tag:other") {
			t.Errorf("a tag that is not its own: %v\n%s", err, out)
		}
	})
}
