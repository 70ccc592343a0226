package main

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skein-vpn/skein/config"
	"github.com/skein-vpn/skein/policy"
)

// cloud answers as Tailscale's API does to the official client.
func cloud(t *testing.T) *httptest.Server {
	t.Helper()
	answers := map[string]string{
		"/api/v2/tailnet/-/acl":             "// ours\n{\"grants\": [{\"src\": [\"tag:web\"], \"dst\": [\"*\"], \"ip\": [\"*\"]}], \"tagOwners\": {\"tag:web\": []}}\n",
		"/api/v2/tailnet/-/dns/preferences": `{"magicDNS": true}`,
		"/api/v2/tailnet/-/dns/nameservers": `{"dns": ["1.1.1.1"]}`,
		"/api/v2/tailnet/-/dns/searchpaths": `{"searchPaths": ["corp.example.com"]}`,
		"/api/v2/tailnet/-/dns/split-dns":   `{"corp.example.com": ["10.0.0.53"]}`,
		"/api/v2/tailnet/-/devices": `{"devices": [
			{"name": "web.tail1234.ts.net", "hostname": "web", "user": "anna@example.com", "tags": ["tag:web"], "addresses": ["100.64.0.9"], "enabledRoutes": ["10.0.0.0/24"]},
			{"name": "laptop.tail1234.ts.net", "hostname": "Anna's laptop", "user": "Anna@example.com", "addresses": ["100.64.0.7", "fd7a:115c:a1e0::7"]},
			{"name": "theirs.other.ts.net", "user": "bob@example.org", "isExternal": true}]}`,
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, _, _ := r.BasicAuth(); user != "tskey-api-secret" {
			w.WriteHeader(http.StatusUnauthorized)
			w.Write([]byte(`{"message": "API token invalid"}`))
			return
		}
		a, ok := answers[r.URL.Path]
		if !ok || r.Method != http.MethodGet {
			w.WriteHeader(http.StatusNotFound)
			w.Write([]byte(`{"message": "not found"}`))
			return
		}
		if strings.HasSuffix(r.URL.Path, "/acl") && r.Header.Get("Accept") != "application/hujson" {
			t.Errorf("the policy is asked for as %s", r.Header.Get("Accept"))
		}
		w.Write([]byte(a))
	}))
	t.Cleanup(srv.Close)
	return srv
}

func TestImportTailscale(t *testing.T) {
	srv := cloud(t)
	dir := filepath.Join(t.TempDir(), "move")
	skein := func(args ...string) (int, string, string) {
		var out, errOut bytes.Buffer
		code := run(append([]string{"import", "tailscale", "--base-url", srv.URL}, args...), strings.NewReader(""), &out, &errOut)
		return code, out.String(), errOut.String()
	}
	t.Setenv("TAILSCALE_API_KEY", "")
	if code, _, e := skein("--out", dir); code != exitFailed && code != exitUsage || !strings.Contains(e, "TAILSCALE_API_KEY") {
		t.Errorf("without a key: %d %s", code, e)
	}
	t.Setenv("TAILSCALE_API_KEY", "tskey-api-wrong")
	if code, _, e := skein("--out", dir); code != exitFailed || !strings.Contains(e, "API token invalid") {
		t.Errorf("with a wrong key: %d %s", code, e)
	}
	t.Setenv("TAILSCALE_API_KEY", "tskey-api-secret")
	if code, _, e := skein(); code != exitUsage || !strings.Contains(e, "--out") {
		t.Errorf("without a folder: %d %s", code, e)
	}
	if code, out, e := skein("--dry-run"); code != exitOK || !strings.Contains(out, "devices      2\n") || strings.Contains(out, "Written") {
		t.Errorf("dry run: %d %s %s", code, out, e)
	}
	code, out, e := skein("--out", dir, "--server-url", "https://skein.example.net")
	if code != exitOK || !strings.Contains(out, "users        Anna@example.com\n") || !strings.Contains(out, "theirs.other.ts.net is shared") || !strings.Contains(out, "Written to "+dir) {
		t.Fatalf("%d %s %s", code, out, e)
	}
	read := func(name string) string {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	if text := read("policy.hujson"); !strings.HasPrefix(text, "// ours\n") {
		t.Errorf("the policy is not byte for byte: %s", text)
	} else if _, err := policy.Parse([]byte(text)); err != nil {
		t.Error(err)
	}
	c, err := config.Load(config.Options{File: filepath.Join(dir, "dns.yaml")})
	if err != nil || !c.DNS.MagicDNS || len(c.DNS.Nameservers.Global) != 1 || c.DNS.Nameservers.Split["corp.example.com"][0] != "10.0.0.53" || c.DNS.SearchDomains[0] != "corp.example.com" {
		t.Errorf("the DNS settings: %v %+v", err, c)
	}
	steps := read("steps.txt")
	for _, want := range []string{
		"skein namespaces create 'anna@example.com'\n",
		"tailscale up --login-server='https://skein.example.net' --force-reauth --hostname='laptop'\n",
		"--hostname='web' --advertise-tags='tag:web' --advertise-routes='10.0.0.0/24'\n", "skein routes enable -i 'web' -r '10.0.0.0/24'",
	} {
		if !strings.Contains(steps, want) {
			t.Errorf("the steps lack %q:\n%s", want, steps)
		}
	}
	if code, _, e := skein("--out", dir); code != exitFailed || !strings.Contains(e, "is there already") {
		t.Errorf("once more: %d %s", code, e)
	}
	if code, out, e := skein("--out", dir, "--force", "-o", "json"); code != exitOK || !strings.Contains(out, `"files": [`) {
		t.Errorf("with --force: %d %s %s", code, out, e)
	}
}
