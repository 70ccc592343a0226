package api

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/skein-vpn/skein/auth"
)

// Tailscale's Kubernetes operator with our server: see testdata/operator. Its sources are those of the module that go.mod pins, so that
// nothing of it lies here, and its dependencies are those of its own go.mod. It takes minutes to build when nothing of it is in the
// build cache, hence only where it is asked for.
func TestV2Operator(t *testing.T) {
	if os.Getenv("SKEIN_LAB_REQUIRED") == "" && os.Getenv("SKEIN_OPERATOR") == "" {
		t.Skip("building the Kubernetes operator takes minutes: SKEIN_OPERATOR=1 runs this test")
	}
	w := newV2World(t)
	secret, c, err := w.auth.CreateOAuthClient(w.ctx(), auth.SocketPrincipal("test"), auth.ClientRequest{
		Scopes: []string{"devices:core", "auth_keys", "services"}, Tags: []string{"tag:k8s"}, Description: "operator",
	})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(w.ctx(), "go", "test", "-mod=mod", "-count=1", "-v", ".")
	cmd.Dir = operatorSources(t)
	cmd.Env = append(os.Environ(), "SKEIN_URL="+w.url.String(), "SKEIN_CLIENT_ID="+c.ID, "SKEIN_CLIENT_SECRET="+secret, "SKEIN_DEVICE="+w.st.Snapshot().Node(3).StableID)
	out, err := cmd.CombinedOutput()
	if n := strings.Count(string(out), "\n--- PASS: TestOperator"); err != nil || n != 3 {
		t.Fatalf("%d tests passed, %v\n%s", n, err, out)
	}
	if w.st.Snapshot().Node(3) != nil {
		t.Error("the device is still there")
	}
}

// operatorSources is a module made of the operator's program, our test of it, and its dependencies.
func operatorSources(t *testing.T) string {
	t.Helper()
	var mod struct{ Dir, Version string }
	list, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-json", "tailscale.com").Output()
	if err == nil {
		err = json.Unmarshal(list, &mod)
	}
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	read := func(path ...string) string {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(path...))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const program = "cmd/k8s-operator"
	files, err := filepath.Glob(filepath.Join(mod.Dir, program, "*.go"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no sources in %s: %v", mod.Dir, err)
	}
	for _, f := range files {
		if !strings.HasSuffix(f, "_test.go") {
			write(filepath.Base(f), read(f))
		}
	}
	if err := os.CopyFS(filepath.Join(dir, "deploy/manifests"), os.DirFS(filepath.Join(mod.Dir, program, "deploy/manifests"))); err != nil {
		t.Fatal(err)
	}
	write("operator_test.go", read("testdata/operator/operator_test.go"))
	text := regexp.MustCompile(`(?m)^module .*$`).ReplaceAllString(read(mod.Dir, "go.mod"), "module operator")
	write("go.mod", text+"\nrequire tailscale.com "+mod.Version+"\n")
	write("go.sum", read(mod.Dir, "go.sum")+read("..", "go.sum"))
	return dir
}
