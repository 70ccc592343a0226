package main

import (
	"bufio"
	"io"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
	"time"
)

// follower is a command line that goes on by itself.
type follower struct {
	*testing.T
	lines chan string
	code  chan int
	out   *io.PipeReader
}

func follow(t *testing.T, args ...string) *follower {
	out, in := io.Pipe()
	f := &follower{t, make(chan string, 1000), make(chan int, 1), out}
	go func() {
		f.code <- run(args, nil, in, in)
		in.Close()
	}()
	go func() {
		defer close(f.lines)
		for sc := bufio.NewScanner(out); sc.Scan(); {
			f.lines <- sc.Text()
		}
	}()
	t.Cleanup(func() { out.Close() }) // its next line ends it
	return f
}

// want says what the next line is.
func (f *follower) want(pattern string) {
	f.Helper()
	select {
	case line := <-f.lines:
		if !regexp.MustCompile(pattern).MatchString(line) {
			f.Fatalf("%q does not match %s", line, pattern)
		}
	case <-time.After(time.Minute):
		f.Fatalf("nothing comes, want %s", pattern)
	}
}

// events --follow tells what happens, goes on after the server was away with what it has not told yet, and ends when its key does.
func TestFollowEvents(t *testing.T) {
	for _, name := range []string{envServer, envAPIKey, envAPIKeyFile, envSocket} {
		t.Setenv(name, "")
	}
	dir := filepath.Join(t.TempDir(), "d")
	var closers []func()
	stop := func() {
		for _, f := range slices.Backward(closers) {
			f()
		}
		closers = nil
	}
	t.Cleanup(stop)
	start := func() *admin {
		a, err := startAdmin(dir, func(f func()) { closers = append(closers, f) })
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	a := start()
	socket := filepath.Join(dir, socketName)
	skein := func(args ...string) {
		t.Helper()
		if code := run(append(args, "--socket", socket), nil, io.Discard, t.Output()); code != exitOK {
			t.Fatalf("%q ends with %d", args, code)
		}
	}
	skein("namespaces", "create", "junyao")
	if err := a.addNode("junyao", "homeDS", "kEPjO", 1); err != nil {
		t.Fatal(err)
	}
	f := follow(t, "events", "--follow", "--since", "1.0", "--socket", socket)
	f.want(`^2022-09-15 02:39:21 \| node.registered \| node homeds was registered \(server\)$`)
	if err := a.setOnline("homeds", true); err != nil {
		t.Fatal(err)
	}
	f.want(`node.online \| node homeds is online$`)
	skein("nodes", "rename", "homeds", "nas")
	f.want(`node.renamed \| node homeds is called nas now \(.+\)$`)
	stop()
	f.want(`^skein: the (stream of the server at .* broke off|server ended the stream: .*); trying again$`)
	start()
	skein("nodes", "rename", "nas", "nas2")
	for again := false; !again; {
		select {
		case line := <-f.lines:
			switch {
			case regexp.MustCompile(`trying again$`).MatchString(line):
			case regexp.MustCompile(`node.renamed \| node nas is called nas2 now`).MatchString(line):
				again = true
			default:
				t.Fatal(line)
			}
		case <-time.After(time.Minute):
			t.Fatal("it does not come back")
		}
	}
}

// A server that is not there at all is told at once.
func TestFollowNobody(t *testing.T) {
	t.Setenv(envServer, "")
	f := follow(t, "events", "--follow", "--socket", filepath.Join(t.TempDir(), "none"))
	f.want("no server answers")
	select {
	case code := <-f.code:
		if code != exitFailed {
			t.Error(code)
		}
	case <-time.After(time.Minute):
		t.Fatal("it goes on")
	}
}
