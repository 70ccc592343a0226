package main

import (
	"bytes"
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skein-vpn/skein/api"
	"github.com/skein-vpn/skein/auth"
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
	if code, out, e := skein("--dry-run"); code != exitOK || !strings.Contains(out, "devices      2\n") || strings.Contains(out, "Written") || !strings.Contains(out, "the settings cannot be read") {
		t.Errorf("dry run: %d %s %s", code, out, e)
	}
	if code, _, e := skein("--users", "--out", dir); code != exitUsage || !strings.Contains(e, "--apply") {
		t.Errorf("users without apply: %d %s", code, e)
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
		"skein namespaces create 'anna@example.com'\n", "skein preauthkeys create --reusable --tags 'tag:web'\n",
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

// One server's /api/v2, which is Tailscale's as far as their client can tell, is the source, another server the target.
func TestImportTailscaleApply(t *testing.T) {
	dir := t.TempDir()
	start := func(name string) *admin {
		a, err := startAdmin(filepath.Join(dir, name), t.Cleanup)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	from, to := start("from"), start("to")
	source := httptest.NewServer(api.NewHandler(api.Options{State: from.st, Auth: from.auth, Gate: api.NewGate(from.auth, nil, nil), Log: slog.New(slog.DiscardHandler)}))
	t.Cleanup(source.Close)
	key, _, err := from.auth.CreateAPIKey(context.Background(), auth.SocketPrincipal("test"), auth.APIKeyRequest{})
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("TAILSCALE_API_KEY", key)
	at := func(name string, args ...string) (string, string) {
		t.Helper()
		code, out, e := skein(append(args, "--socket", filepath.Join(dir, name, socketName))...)
		if code != exitOK {
			t.Fatalf("%v: %d %s %s", args, code, out, e)
		}
		return out, e
	}
	text := "// ours\n{\"grants\": [{\"src\": [\"anna@example.org\", \"tag:web\"], \"dst\": [\"*\"], \"ip\": [\"22\"]}], \"tagOwners\": {\"tag:web\": []}}\n"
	policyFile := filepath.Join(dir, "p.hujson")
	if err := os.WriteFile(policyFile, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	at("from", "namespaces", "create", "anna@example.org")
	if err := from.addNode("anna@example.org", "laptop", "abcde", 7); err != nil {
		t.Fatal(err)
	}
	at("from", "policy", "set", policyFile)
	at("from", "dns", "set", "--nameservers", "1.1.1.1", "--override-local", "--split", "lan=192.168.199.1", "--search", "corp.example")
	at("from", "settings", "set", "--device-approval", "on", "--key-duration", "30d")

	imports := []string{"import", "tailscale", "--base-url", source.URL, "--apply", "--users"}
	before := to.st.Snapshot().Rev
	out, _ := at("to", append(imports, "--dry-run")...)
	for _, want := range []string{"At the server there would be:\n", "users       made: anna@example.org\n", "policy      set, in place of version 0\n", "dns         set: nameservers, overrideLocal, search, split\n", "approval of devices on, keys live 30 days\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("the dry run lacks %q:\n%s", want, out)
		}
	}
	if to.st.Snapshot().Rev != before {
		t.Error("a dry run has changed something")
	}
	at("to", imports...)
	sn, was := to.st.Snapshot(), from.st.Snapshot()
	if sn.Text == nil || sn.Text.Text != text || len(sn.Users()) != 1 || sn.Users()[0].LoginName() != "anna@example.org" {
		t.Errorf("policy %+v, users %+v", sn.Text, sn.Users())
	}
	if d, old := sn.DNS, was.DNS; !d.OverrideLocal || d.Nameservers[0] != old.Nameservers[0] || d.Split["lan"][0] != old.Split["lan"][0] || d.Search[0] != "corp.example" {
		t.Errorf("DNS %+v", d)
	}
	if set := sn.Tailnet.Settings; !set.DeviceApproval || set.KeyDuration != was.Tailnet.Settings.KeyDuration {
		t.Errorf("settings %+v", set)
	}
	again, _ := at("to", imports...)
	for _, want := range []string{"users       all 1 are there\n", "policy      is the same\n", "dns         is the same\n", "settings    are the same\n"} {
		if !strings.Contains(again, want) {
			t.Errorf("once more lacks %q:\n%s", want, again)
		}
	}
	if to.st.Snapshot().Rev != sn.Rev {
		t.Error("once more has changed something")
	}
}
