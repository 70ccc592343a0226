package main

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/creack/pty"
	"go4.org/mem"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"

	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// addNodes makes n nodes with names of all lengths.
func (a *admin) addNodes(t *testing.T, n int) {
	t.Helper()
	err := a.st.Update(t.Context(), "test", func(tx *state.Tx) error {
		u := tx.NewUser("junyao")
		if err := tx.PutUser(u); err != nil {
			return err
		}
		for i := range n {
			name := fmt.Sprintf("machine-%d%s", i, strings.Repeat("-long", i%9))
			if i%50 == 7 {
				name = fmt.Sprintf("机器%d", i)
			}
			x, err := tx.NewNode(name)
			if err != nil {
				return err
			}
			raw := mem.B(append(bytes.Repeat([]byte{7}, 30), byte(i>>8), byte(i)))
			x.StableID, x.NodeKey, x.MachineKey = fmt.Sprintf("n%d", i), key.NodePublicFromRaw32(raw), key.MachinePublicFromRaw32(raw)
			x.User, x.Authorized, x.RegisterMethod = u.ID, true, tailnet.RegisteredByCLI
			x.Hostinfo = &tailcfg.Hostinfo{Hostname: name, OS: "linux"}
			if err := tx.PutNode(x); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// 300 nodes are a table: one line for each, as wide as the terminal at the most, with its columns below each other.
func TestTableOf300Nodes(t *testing.T) {
	dir := t.TempDir()
	a, err := startAdmin(dir, t.Cleanup)
	if err != nil {
		t.Fatal(err)
	}
	a.addNodes(t, 300)
	for _, name := range []string{envServer, envAPIKey, envAPIKeyFile} {
		t.Setenv(name, "")
	}
	t.Setenv("SKEIN_SOCKET", dir+"/"+socketName)
	t.Setenv("NO_COLOR", "1")
	for _, tt := range []struct {
		columns int
		head    string // of the columns that must be there
	}{
		{0, "ID Hostname Name NodeKey Namespace IP addresses Ephemeral Last seen Online Expired"},
		{300, "ID Hostname Name NodeKey Namespace IP addresses Ephemeral Last seen Online Expired"},
		{140, "ID Name Namespace IP addresses Last seen Online Expired"},
		{80, "ID Name Namespace IP addresses Online"},
		{60, "ID Name Namespace IP addresses Online"},
	} {
		shown, code := onTerminalOf(t, &pty.Winsize{Rows: 24, Cols: uint16(tt.columns)}, "", "nodes", "list")
		if code != exitOK {
			t.Fatalf("exit code %d: %s", code, shown)
		}
		lines := strings.Split(strings.TrimSuffix(shown, "\n"), "\n")
		if last := lines[len(lines)-1]; strings.HasPrefix(last, "(") {
			if tt.columns == 0 || tt.columns == 300 || !strings.Contains(last, "-o json") {
				t.Errorf("%d columns: %s", tt.columns, last)
			}
			lines = lines[:len(lines)-1]
		}
		if len(lines) != 301 {
			t.Fatalf("%d columns: %d lines", tt.columns, len(lines))
		}
		var head []string
		for _, cell := range strings.Split(lines[0], "|") {
			head = append(head, strings.TrimSpace(cell))
		}
		have := strings.Join(head, " ")
		for _, want := range strings.Fields(tt.head) {
			if !strings.Contains(have, want) {
				t.Errorf("%d columns: there is no %s in %s", tt.columns, want, have)
			}
		}
		bars := func(line string) (at []int) {
			cells := strings.SplitAfter(line, separator)
			for i := 1; i < len(cells); i++ {
				at = append(at, displayWidth(strings.Join(cells[:i], "")))
			}
			return at
		}
		want := fmt.Sprint(bars(lines[0]))
		for _, line := range lines {
			if tt.columns > 0 && displayWidth(line) > tt.columns {
				t.Errorf("%d columns: a line has %d: %s", tt.columns, displayWidth(line), line)
			}
			if got := fmt.Sprint(bars(line)); got != want {
				t.Errorf("%d columns: the columns of %q are at %s, want %s", tt.columns, line, got, want)
			}
		}
	}
}

// What cannot fit is as narrow as it gets, and a cut never parts a letter.
func TestCut(t *testing.T) {
	for _, tt := range []struct {
		s     string
		width int
		want  string
	}{{"abc", 3, "abc"}, {"abcd", 3, "ab…"}, {"安娜", 4, "安娜"}, {"安娜x", 4, "安…"}, {"安娜", 3, "安…"}, {"安娜", 2, "…"}, {"", 0, ""}} {
		if got := cutTo(tt.s, tt.width); got != tt.want || displayWidth(got) > tt.width {
			t.Errorf("%q in %d is %q, want %q", tt.s, tt.width, got, tt.want)
		}
	}
}
