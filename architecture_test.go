package skein_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/skein-vpn/skein/"

// allowed are the imports between our packages; docs/architecture.md draws them. What is not listed is forbidden. "*" is
// everything but the packages that only cmd may import.
var allowed = map[string][]string{
	"tailnet":               {},
	"remote":                {},
	"config":                {},
	"derp":                  {},
	"policy":                {"tailnet"},
	"routes":                {"tailnet"},
	"dns":                   {"tailnet"},
	"db":                    {"tailnet"},
	"db/pgtest":             {},
	"cluster":               {"tailnet"},
	"state":                 {"tailnet", "policy", "routes", "dns"},
	"state/statetest":       {"tailnet", "state"},
	"netmap":                {"tailnet", "policy", "state", "dns"},
	"auth":                  {"tailnet", "state"},
	"auth/oidc":             {"tailnet", "state"},
	"control":               {"tailnet", "state", "netmap", "auth", "control/h2", "remote"},
	"control/h2":            {},
	"api":                   {"tailnet", "policy", "state", "auth", "remote", "webhook"},
	"webhook":               {"tailnet", "state"},
	"web":                   {"tailnet", "state", "auth"},
	"integration":           {"integration/lab", "integration/oidc"},
	"backup":                {},
	"takeover":              {"tailnet", "policy", "dns"},
	"integration/lab":       {"api", "db/pgtest"},
	"integration/oidc":      {},
	"integration/sim":       {"tailnet"},
	"integration/wireguard": {},
	"cmd/skein":             {"cluster", "tailnet", "policy", "routes", "dns", "state", "netmap", "auth", "auth/oidc", "control", "api", "web", "derp", "db", "config", "remote", "takeover", "backup", "webhook"},
	"packaging/sbom":        {},
	"examples/onboard":      {"api", "tailnet"},
	"cmd/skeinsim":          {"integration/sim"},
}

// foreign are packages of others that only some of ours may import.
var foreign = map[string][]string{
	"gorm.io/gorm":           {"db"},
	"github.com/jackc/pgx":   {"db", "db/pgtest", "takeover"},
	"net/http":               {"remote", "webhook", "auth/oidc", "control", "control/h2", "api", "web", "derp", "cmd/skein", "integration", "integration/lab", "integration/sim", "integration/wireguard"},
	"os/exec":                {"cmd/skein", "db/pgtest", "integration", "integration/lab", "integration/oidc", "integration/sim", "integration/wireguard"},
	"golang.org/x/net/http2": {"control/h2", "integration/sim"},
}

// pure packages start no goroutine and read no clock.
var pure = []string{"tailnet", "policy", "routes", "dns"}

type source struct {
	pkg  string // folder
	path string
	file *ast.File
	test bool
}

func sources(t *testing.T) (out []source) {
	t.Helper()
	fset := token.NewFileSet()
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "node_modules" || d.Name() == "skein-data") {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(path, ".go") {
			return nil
		}
		f, err := parser.ParseFile(fset, path, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		out = append(out, source{filepath.Dir(path), path, f, strings.HasSuffix(path, "_test.go")})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(out) < 40 {
		t.Fatalf("only %d source files found: the walk is broken", len(out))
	}
	return out
}

func imports(f *ast.File) (out []string) {
	for _, i := range f.Imports {
		out = append(out, strings.Trim(i.Path.Value, `"`))
	}
	return out
}

func TestImports(t *testing.T) {
	for _, s := range sources(t) {
		if s.pkg == "." || s.test { // tests may use what they need
			continue
		}
		ok, known := allowed[s.pkg]
		if !known {
			t.Errorf("%s: package %s is not in the table of allowed imports", s.path, s.pkg)
			continue
		}
		for _, i := range imports(s.file) {
			if ours, is := strings.CutPrefix(i, module); is && !slices.Contains(ok, ours) {
				t.Errorf("%s: %s must not import %s", s.path, s.pkg, ours)
			}
			for prefix, who := range foreign {
				if (i == prefix || strings.HasPrefix(i, prefix+"/")) && !slices.Contains(who, s.pkg) && prefix != "net/http" ||
					prefix == "net/http" && i == prefix && !slices.Contains(who, s.pkg) {
					t.Errorf("%s: %s must not import %s", s.path, s.pkg, i)
				}
			}
		}
	}
}

func TestPurePackages(t *testing.T) {
	for _, s := range sources(t) {
		if s.test || !slices.Contains(pure, s.pkg) {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.GoStmt:
				t.Errorf("%s: a pure package starts a goroutine", s.path)
			case *ast.SelectorExpr:
				if x, ok := n.X.(*ast.Ident); ok && x.Name == "time" && slices.Contains([]string{"Now", "Since", "Until", "Sleep", "After"}, n.Sel.Name) {
					t.Errorf("%s: a pure package reads the clock (time.%s)", s.path, n.Sel.Name)
				}
			}
			return true
		})
	}
}

// TestPackageComments wants exactly one package comment per package: the page that a newcomer reads first.
func TestPackageComments(t *testing.T) {
	count := map[string]int{}
	for _, s := range sources(t) {
		if s.test {
			continue
		}
		if s.file.Doc != nil && !strings.HasPrefix(s.file.Doc.Text(), "go:build") {
			count[s.pkg]++
		} else {
			count[s.pkg] += 0
		}
	}
	for pkg, n := range count {
		if n != 1 {
			t.Errorf("package %s has %d package comments, not one", pkg, n)
		}
	}
}

// TestFileLength keeps files readable: about 800 lines.
func TestFileLength(t *testing.T) {
	for _, s := range sources(t) {
		b, err := os.ReadFile(s.path)
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(string(b), "\n"); n > 850 && !s.test {
			t.Errorf("%s has %d lines: split it by subject", s.path, n)
		}
	}
}
