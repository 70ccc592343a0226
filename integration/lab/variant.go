package lab

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// Variant is another skein than that of this tree as it is: one that was built before (Built), or one that is built from this tree with something about its source replaced (go build -overlay), for what cannot be
// had otherwise: a machine with a clock of its own, or the next version.
type Variant struct {
	path  string // of the program; empty: build it
	name  string
	race  bool // with the race detector, where the other one has it
	files func() (map[string]string, error)
}

// Built is a skein that is there already, such as the last release.
func Built(path string) *Variant { return &Variant{path: path} }

// OtherClock is a skein whose whole process, every library included, reads a clock that is as many seconds ahead as the environment
// variable SKEIN_LAB_CLOCK says. All processes on one kernel have the same clock otherwise: time namespaces do not move it. It is built
// without the race detector, because all there is has to be compiled for it.
var OtherClock = &Variant{name: "skein-clock", files: func() (map[string]string, error) {
	const now, read = "func Now() Time {\n\tsec, nsec, mono := runtimeNow()\n", "import (\n"
	path := filepath.Join(runtime.GOROOT(), "src", "time", "time.go") //nolint:staticcheck // the test runs where it was built
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	text := string(b)
	if strings.Count(text, now) != 1 || !strings.Contains(text, read) {
		return nil, fmt.Errorf("%s is not what it was: time.Now has to be found another way", path)
	}
	text = strings.Replace(text, now, now+"\tsec += labAhead\n", 1)
	text = strings.Replace(text, read, read+"\t\"syscall\"\n", 1)
	return map[string]string{path: text + `
var labAhead = func() (ahead int64) {
	text, _ := syscall.Getenv("SKEIN_LAB_CLOCK")
	sign := int64(1)
	for i, c := range []byte(text) {
		if i == 0 && c == '-' {
			sign = -1
			continue
		}
		ahead = ahead*10 + int64(c-'0')
	}
	return sign * ahead
}()
`}, nil
}}

// NextVersion is a skein that knows one more migration, which adds a column to the tables that matter.
var NextVersion = &Variant{name: "skein-next", race: true, files: func() (map[string]string, error) {
	dir, err := goOutput("list", "-f", "{{.Dir}}", "github.com/skein-vpn/skein/db")
	if err != nil {
		return nil, err
	}
	return map[string]string{filepath.Join(strings.TrimSpace(dir), "zz_next.go"): `package db

func init() {
	sql := ""
	for _, table := range []string{"tailnets", "users", "nodes", "pre_auth_keys", "logins", "revisions", "presence", "servers", "leases", "ssh_checks"} {
		sql += "ALTER TABLE " + table + " ADD COLUMN next_version TEXT NOT NULL DEFAULT '';\n"
	}
	migrations = append(migrations, migration{version: int64(len(migrations)) + 1, name: "next version", sql: sql})
}
`}, nil
}}

// NextNumber is the version that NextVersion calls itself.
const NextNumber = "99.0.0-next"

// Build builds the variant, once per test process, which may take minutes: a test that has no lab yet keeps none from others meanwhile.
func (v *Variant) Build(t testing.TB) {
	t.Helper()
	Need(t)
	v.binary(t)
}

func (v *Variant) binary(t testing.TB) string {
	t.Helper()
	if v.path != "" {
		return v.path
	}
	files, err := v.files()
	if err != nil {
		t.Fatalf("lab: %s: %v", v.name, err)
	}
	dir, err := workDir("")
	if err != nil {
		t.Fatalf("lab: %v", err)
	}
	replace := map[string]string{}
	for path, text := range files {
		to := filepath.Join(dir, v.name+"-"+filepath.Base(path))
		if err := os.WriteFile(to, []byte(text), 0o600); err != nil {
			t.Fatalf("lab: %v", err)
		}
		replace[path] = to
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatalf("lab: %v", err)
	}
	path := filepath.Join(dir, v.name+".json")
	if err := os.WriteFile(path, overlay, 0o600); err != nil {
		t.Fatalf("lab: %v", err)
	}
	args := []string{"-overlay", path}
	if v == NextVersion {
		args = append(args, "-ldflags=-X main.versionNumber="+NextNumber)
	}
	return buildOwn(t, v.name, "skein", v.race && wantRace(), args...)
}
