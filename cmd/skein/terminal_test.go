package main

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v4"
	"golang.org/x/sys/unix"
)

// onTerminal runs skein on a terminal where somebody types, and returns what is shown and the exit code.
func onTerminal(t *testing.T, typed string, args ...string) (string, int) {
	t.Helper()
	return onTerminalOf(t, nil, typed, args...)
}

// onTerminalOf is onTerminal on one of a size; nil or zero: it has none.
func onTerminalOf(t *testing.T, size *pty.Winsize, typed string, args ...string) (string, int) {
	t.Helper()
	master, tty, err := pty.Open()
	if err != nil {
		t.Skipf("no terminals here: %v", err)
	}
	defer master.Close()
	if size != nil {
		if err := pty.Setsize(tty, size); err != nil {
			t.Fatal(err)
		}
	}
	// Without the echo, which the kernel puts anywhere between what the program writes.
	mode, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	mode.Lflag &^= unix.ECHO
	if err := unix.IoctlSetTermios(int(tty.Fd()), unix.TCSETS, mode); err != nil {
		t.Fatal(err)
	}
	// What the kernel still holds when the last holder of tty closes it may be lost, so that the end is marked and waited for.
	const end = "\x00end"
	shown := make(chan string, 1)
	go func() {
		var b bytes.Buffer
		for buf := make([]byte, 4096); !bytes.HasSuffix(b.Bytes(), []byte(end)); {
			n, err := master.Read(buf)
			b.Write(buf[:n])
			if err != nil {
				break
			}
		}
		shown <- strings.TrimSuffix(b.String(), end)
	}()
	if _, err := io.WriteString(master, typed); err != nil {
		t.Fatal(err)
	}
	code := run(args, tty, tty, tty)
	if _, err := io.WriteString(tty, end); err != nil {
		t.Fatal(err)
	}
	defer tty.Close()
	select {
	case s := <-shown:
		return strings.ReplaceAll(s, "\r\n", "\n"), code
	case <-time.After(30 * time.Second):
		t.Fatal("the terminal does not end")
		return "", 0
	}
}

func TestTerminal(t *testing.T) {
	dir := t.TempDir()
	a, err := startAdmin(dir, t.Cleanup)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("SKEIN_SOCKET", dir+"/"+socketName)
	t.Setenv("NO_COLOR", "")
	t.Setenv("TERM", "xterm")

	expect := func(typed string, code int, want string, args ...string) {
		t.Helper()
		got, exit := onTerminal(t, typed, args...)
		if exit != code || got != want {
			t.Errorf("skein %s: exit code %d, want %d; shown:\n%q\nwant:\n%q", strings.Join(args, " "), exit, code, got, want)
		}
	}

	// An empty list says what to do next, but not to a program.
	expect("", 0, "\x1b[1mID | Name | Display name | Email | Created\x1b[0m\n"+
		"There are no namespaces yet. Make one: skein namespaces create NAME\n", "namespaces", "list")
	expect("", 0, "[]\n", "namespaces", "list", "-o", "json")
	var out, errOut bytes.Buffer
	if run([]string{"namespaces", "list"}, strings.NewReader(""), &out, &errOut) != 0 || out.String() != "ID | Name | Display name | Email | Created\n" || errOut.Len() > 0 {
		t.Errorf("to a program: %q, %q", out.String(), errOut.String())
	}

	// Columns are padded, also around wide letters; colour can be switched off.
	if run([]string{"namespaces", "create", "anna", "--display-name", "安娜"}, nil, io.Discard, os.Stderr) != 0 ||
		run([]string{"namespaces", "create", "longer-name", "--display-name", "x"}, nil, io.Discard, os.Stderr) != 0 {
		t.Fatal("cannot create")
	}
	table := "ID | Name        | Display name | Email | Created\n" +
		"1  | anna        | 安娜         |       | 2022-09-15 02:39:21\n" +
		"2  | longer-name | x            |       | 2022-09-15 02:39:21\n"
	head, rows, _ := strings.Cut(table, "\n")
	expect("", 0, "\x1b[1m"+head+"\x1b[0m\n"+rows, "namespaces", "list")
	expect("", 0, table, "namespaces", "list", "--no-color")
	t.Setenv("NO_COLOR", "1")
	expect("", 0, table, "namespaces", "list")

	// What destroys asks first.
	if err := a.addNode("anna", "nas", "kEPjO", 1); err != nil {
		t.Fatal(err)
	}
	question := "Delete node nas (1) of anna? [y/N] "
	expect("\n", 1, question+"skein: nothing is changed\n", "nodes", "delete", "nas")
	expect("n\n", 1, question+"skein: nothing is changed\n", "nodes", "delete", "nas")
	expect("\x04", 1, question+"\nskein: no answer, nothing is changed\n", "nodes", "delete", "nas")
	if a.st.Snapshot().Node(1) == nil {
		t.Fatal("the node is gone without a yes")
	}
	expect("y\n", 0, question+"Node nas (1) is deleted.\n", "nodes", "delete", "nas")
	expect("", 0, "Namespace longer-name is deleted.\n", "namespaces", "delete", "longer-name", "--yes")
}

// A name cannot move the cursor or turn the line around.
func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"homeDS": "homeDS", "a\x1b[2Jb": "a[2Jb", "a\nb\r\x00": "ab", "a\u202eb": "ab", "我的电脑": "我的电脑", "a\u009bb": "ab",
	} {
		if got := printable(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	for in, want := range map[string]int{"": 0, "ab": 2, "安娜": 4, "e\u0301": 1, "ß": 1, "Ａ": 2} {
		if got := displayWidth(in); got != want {
			t.Errorf("%q is %d columns wide, want %d", in, got, want)
		}
	}
}

// YAML is JSON in other words: read back it is the same value.
func FuzzYAML(f *testing.F) {
	for _, s := range []string{
		`{}`, `[]`, `null`, `""`, `{"a":"12","b":12,"c":"true","d":null,"e":"null","f":"~","g":"0x1f","h":"1e3","i":1.5,"j":"- x","k":"a: b","l":"#"}`,
		`{"a":[[],{},[{"b":[1]}]]," ":"","\n":"a\nb\n","t":"2022-09-15T02:39:21Z","y":"yes","=":"=","<<":"<<"}`, `["\u0000\u2028\ufeff😀\t\\"]`, `[-0,1e400,123456789012345678901234567890]`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var want any
		dec := json.NewDecoder(strings.NewReader(s))
		if dec.Decode(&want) != nil || len(s) > 1000 || strings.Count(s, "[")+strings.Count(s, "{") > 100 {
			return
		}
		var b bytes.Buffer
		if err := writeValue(&b, "yaml", want); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
		var got any
		if err := yaml.Unmarshal(b.Bytes(), &got); err != nil {
			t.Fatalf("%s:\n%s\n%v", s, b.String(), err)
		}
		again, err := json.Marshal(plainJSON(got))
		if err != nil {
			t.Fatal(err)
		}
		var back any
		if err := json.Unmarshal(again, &back); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(back, want) {
			t.Errorf("%s\nbecame\n%s\nwhich is read as %s", s, b.String(), again)
		}
	})
}

// plainJSON makes what yaml reads fit for encoding/json.
func plainJSON(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k, x := range v {
			v[k] = plainJSON(x)
		}
	case map[any]any:
		m := map[string]any{}
		for k, x := range v {
			m[k.(string)] = plainJSON(x)
		}
		return m
	case []any:
		for i, x := range v {
			v[i] = plainJSON(x)
		}
	}
	return v
}

// Every command has a help text with an example, and describes its flags.
func TestHelp(t *testing.T) {
	root := newRootCommand(&cli{})
	var walk func(path string, c *cobra.Command)
	walk = func(path string, c *cobra.Command) {
		for _, sub := range c.Commands() {
			name := path + " " + sub.Name()
			if sub.Short == "" || strings.HasSuffix(sub.Short, ".") {
				t.Errorf("%s: short help %q", name, sub.Short)
			}
			if sub.RunE != nil && sub.Example == "" && !strings.HasPrefix(name, "skein completion ") {
				t.Errorf("%s has no example", name)
			}
			walk(name, sub)
		}
	}
	walk("skein", root)
}
