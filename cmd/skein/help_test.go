package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// commands are all commands that people see.
func commands(t *testing.T) (out []*cobra.Command) {
	t.Helper()
	var walk func(*cobra.Command)
	walk = func(cmd *cobra.Command) {
		out = append(out, cmd)
		for _, sub := range cmd.Commands() {
			if sub.Name() != "help" && cmd.Name() != "completion" { // those of cobra's own
				walk(sub)
			}
		}
	}
	walk(newRootCommand(&cli{}))
	return out
}

// Every command says what it does, at length and with examples.
func TestEveryCommandIsExplained(t *testing.T) {
	var paths []string
	for _, cmd := range commands(t) {
		name := cmd.CommandPath()
		_, path, _ := strings.Cut(name, " ")
		paths = append(paths, path)
		if cmd.Long == "" {
			t.Errorf("%s has no long description", name)
		}
		for _, line := range strings.Split(cmd.Long, "\n") {
			if n := len([]rune(line)); n > helpWidth && !strings.HasPrefix(line, " ") {
				t.Errorf("%s: a line of the long description has %d characters: %s", name, n, line)
			}
		}
		if cmd.Example == "" && cmd.Name() != "socket" { // a page of text
			t.Errorf("%s has no example", name)
		}
	}
	for path := range longTexts {
		if !slices.Contains(paths, path) {
			t.Errorf("%q is explained and does not exist", path)
		}
	}
}

// words are the arguments of a line of an example, which is for a shell; nil if it is not one of skein alone.
func words(line string) (out []string) {
	word, in, has := "", rune(0), false
	for _, r := range strings.TrimSpace(line) {
		switch {
		case in != 0 && r == in:
			in = 0
		case in == 0 && (r == '"' || r == '\''):
			in, has = r, true
		case in == 0 && (r == '#' && word == "" || strings.ContainsRune("|>;<", r)):
			return out
		case in == 0 && (r == ' ' || r == '\t'):
			if word != "" || has {
				out = append(out, word)
			}
			word, has = "", false
		default:
			word += string(r)
		}
	}
	return append(out, word)
}

// Each example is of a command that there is, with flags that it has.
func TestExamplesAreCommands(t *testing.T) {
	n := 0
	for _, cmd := range commands(t) {
		for line := range strings.Lines(cmd.Example) {
			args := words(line)
			if len(args) == 0 || args[0] != "skein" {
				continue
			}
			n++
			of, rest, err := newRootCommand(&cli{}).Find(args[1:])
			if err == nil && of.HasSubCommands() && len(of.Flags().Args()) == 0 && len(rest) > 0 && !strings.HasPrefix(rest[0], "-") {
				t.Errorf("%s: %s: there is no command %q", cmd.CommandPath(), line, rest[0])
			}
			if err == nil {
				err = of.ParseFlags(rest)
			}
			if err != nil {
				t.Errorf("%s: %s: %v", cmd.CommandPath(), line, err)
			}
		}
	}
	if n < 100 {
		t.Errorf("only %d examples were looked at", n)
	}
}

// There is a page for each command, and what is indented in a help text stays in lines.
func TestManPages(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "man1")
	if code := run([]string{"man", "--dir", dir}, nil, t.Output(), t.Output()); code != exitOK {
		t.Fatal(code)
	}
	for _, cmd := range commands(t) {
		if cmd.Name() == "completion" {
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, strings.ReplaceAll(cmd.CommandPath(), " ", "-")+".1"))
		if err != nil {
			t.Error(err)
			continue
		}
		text := string(b)
		if !strings.Contains(text, ".SH NAME") || !strings.Contains(text, ".SH DESCRIPTION") && cmd.Name() != "socket" || strings.Contains(text, "Auto generated") {
			t.Errorf("the page of %s is\n%s", cmd.CommandPath(), text)
		}
	}
	b, err := os.ReadFile(filepath.Join(dir, "skein-socket.1"))
	if err != nil || !strings.Contains(string(b), "\n  --data-dir DIR             DIR/skein.sock\n") {
		t.Errorf("%v %s", err, b)
	}
}
