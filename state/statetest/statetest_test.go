package statetest_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/state/statetest"
)

var (
	_ state.Store = (*statetest.Store)(nil)
	_ auth.Store  = (*statetest.Logins)(nil)
)

// TestOnlyTestsImportIt keeps the fake out of the programs.
func TestOnlyTestsImportIt(t *testing.T) {
	const self = `"github.com/skein-vpn/skein/state/statetest"`
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return nil //nolint:nilerr // the compiler says it better
		}
		for _, imp := range f.Imports {
			if imp.Path.Value == self {
				t.Errorf("%s imports statetest: only tests may", path)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
