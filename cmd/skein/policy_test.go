package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/skein-vpn/skein/api"
)

// An editor is any program that changes the file; here it is a shell script that copies one over it.
func TestPolicyEdit(t *testing.T) {
	dir := t.TempDir()
	if _, err := startAdmin(dir, t.Cleanup); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, socketName)
	t.Setenv("SKEIN_SOCKET", socket)
	t.Setenv("TMPDIR", t.TempDir())
	cl := api.NewUnixClient(socket)
	ctx := context.Background()
	write := func(name, text string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
		return path
	}
	editor := func(script string) {
		t.Helper()
		t.Setenv("VISUAL", "/bin/sh "+write("editor", script))
	}
	edit := func(typed string, want ...string) (string, int) {
		t.Helper()
		got, code := onTerminal(t, typed, "policy", "edit", "-m", "why")
		for _, w := range want {
			if !regexp.MustCompile(w).MatchString(got) {
				t.Errorf("no %q in what is shown:\n%s", w, got)
			}
		}
		return got, code
	}
	inForce := func(want string, version int) {
		t.Helper()
		p, err := cl.Policy(ctx)
		if err != nil || p.Text != want || p.Version != api.ID(version) {
			t.Errorf("in force: version %s %q, %v; want version %d %q", p.Version, p.Text, err, version, want)
		}
	}
	copies := func() []string {
		t.Helper()
		found, err := filepath.Glob(filepath.Join(os.Getenv("TMPDIR"), "*", "*"))
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	if _, err := cl.CreateUser(ctx, api.CreateUserRequest{Name: "anna"}); err != nil {
		t.Fatal(err)
	}
	const one, two = "{\"acls\": []} // one\n", "{\"acls\": []} // two\n"
	good, other, bad, blank := write("good", one), write("other", two), write("bad", "{\n  \"acl\": []}\n"), write("blank", "\n")

	// The first time there is something to begin with.
	editor(`grep -q 'There is no policy yet' "$1" && cp ` + good + ` "$1"`)
	if _, code := edit("y\n", "Put it in force\\?", "Version 1 is in force"); code != 0 {
		t.Errorf("exit code %d", code)
	}
	inForce(one, 1)
	if h, err := cl.PolicyHistory(ctx, 1); err != nil || h[0].Comment != "why" {
		t.Errorf("%+v, %v", h, err)
	}

	// Faults are shown, and the text is there to go on with.
	editor(`if grep -q 'one' "$1"; then cp ` + bad + ` "$1"; else grep -q acl\" "$1" && cp ` + other + ` "$1"; fi`)
	if _, code := edit("\ny\n", `policy.hujson:2:3: acl: `, "Edit again", "Nobody gains or loses anything", "Version 2 is in force"); code != 0 {
		t.Errorf("exit code %d", code)
	}
	inForce(two, 2)

	// Nothing done, nothing changed.
	editor("exit 0")
	if _, code := edit("", "Nothing is changed."); code != 0 {
		t.Errorf("exit code %d", code)
	}
	editor("exit 3")
	if _, code := edit("", "the editor .* failed: exit status 3"); code != 1 {
		t.Errorf("exit code %d", code)
	}
	editor("cp " + blank + ` "$1"`)
	if _, code := edit("", "is empty. To let everybody reach everybody: skein policy set --none"); code != 1 {
		t.Errorf("exit code %d", code)
	}
	if left := copies(); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}

	// Given up: the text is kept.
	editor("cp " + good + ` "$1"`)
	for _, typed := range []string{"n\n", "\n", "\x04"} {
		if _, code := edit(typed, "nothing is changed\nYour text is kept in .*/policy.hujson"); code != 1 {
			t.Errorf("exit code %d", code)
		}
	}
	editor("cp " + bad + ` "$1"`)
	if _, code := edit("n\n", "the policy has a fault; nothing is changed\nYour text is kept in"); code != 1 {
		t.Errorf("exit code %d", code)
	}
	if left := copies(); len(left) != 4 {
		t.Errorf("kept: %v", left)
	}
	inForce(two, 2)

	// Somebody else was faster.
	started, goOn := filepath.Join(dir, "started"), filepath.Join(dir, "go")
	editor(fmt.Sprintf(`touch %s; while [ ! -e %s ]; do sleep 0.02; done; cp %s "$1"`, started, goOn, good))
	done := make(chan error, 1)
	go func() {
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			if _, err := os.Stat(started); err == nil || time.Now().After(deadline) {
				break
			}
		}
		_, err := cl.SetPolicy(ctx, api.SetPolicyRequest{Text: "{}"})
		done <- err
		_ = os.WriteFile(goOn, nil, 0o600)
	}()
	_, code := edit("y\n", "the policy was changed meanwhile: it is version 3 by now", "Your text is kept in")
	if err := <-done; err != nil || code != 1 {
		t.Errorf("exit code %d, %v", code, err)
	}
	inForce("{}", 3)
	if text, err := os.ReadFile(copies()[0]); err != nil || string(text) == "" {
		t.Errorf("kept: %q, %v", text, err)
	}
}

// Whatever the files hold, the command line says what is wrong with them.
func TestPolicyFiles(t *testing.T) {
	dir := t.TempDir()
	if _, err := startAdmin(dir, t.Cleanup); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SKEIN_SOCKET", filepath.Join(dir, socketName))
	file := filepath.Join(dir, "p")
	for _, tt := range []struct {
		name, text, want string
	}{
		{"too large", "{}" + strings.Repeat(" ", 11<<20), "p is too large: a policy has at most 10 MiB"},
		{"as large as can be", "{}" + strings.Repeat("\n", 10<<20-2), ""},
		{"no text", "{} // \xff\xfe", "p:1:7: "},
		{"a picture", "\x89PNG\r\n\x1a\n\x00\x00", "p:1:1: "},
		{"deep", strings.Repeat("[", 100_000), "p:1:"},
		{"escape sequences", "{\"\x1b[2J\": 1}", "p:1:"},
		{"blank", " \n\t\n", "p is empty"},
	} {
		if err := os.WriteFile(file, []byte(tt.text), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, verb := range []string{"check", "diff", "set"} {
			var out, errOut strings.Builder
			code := run([]string{"policy", verb, file}, strings.NewReader(""), &out, &errOut)
			if (code == 0) != (tt.want == "") || code > 1 || !strings.Contains(errOut.String(), tt.want) || strings.Contains(errOut.String(), "\x1b") || errOut.Len() > 2000 {
				t.Errorf("%s: %s: exit code %d, %.2000s; want %q", tt.name, verb, code, errOut.String(), tt.want)
			}
		}
	}
}
