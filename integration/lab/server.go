package lab

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// Server is a skein process on a host.
type Server struct {
	*Process
	Host *Host
	// URL is what clients get as --login-server.
	URL     string
	bin     string
	dataDir string
}

// ServerOptions are the variations of a server; the zero value listens on port 8080 and is
// configured by flags alone.
type ServerOptions struct {
	// URL is the address clients use; empty is http://ADDRESS:8080 with the host's address.
	URL string
	// Config is the text of a config.yaml; empty: no file.
	Config string
	// Env are settings by environment variable, as "SKEIN_LOG_LEVEL=debug".
	Env []string
	// Args are further arguments of "skein serve".
	Args []string
	// Variant is which skein it is; nil: that of this tree as it is.
	Variant *Variant
}

// serverFaults are lines that no test may produce, whatever it does: crashes, and secrets.
var serverFaults = regexp.MustCompile(`(?m)^(panic: |fatal error: |WARNING: DATA RACE|http: panic serving).*$` +
	`|(tskey-[a-z]+-\w+-\w{16,}|hskey-[a-z]+-[\w-]{12}-[\w-]{16,}|privkey:[0-9a-f]{16,})`)

// StartServer builds skein if need be, starts "skein serve" on the host and waits until it is
// healthy.
func (h *Host) StartServer(o ServerOptions) *Server {
	h.l.t.Helper()
	bin := skeinBinary(h.l.t)
	s := &Server{Host: h, URL: o.URL, bin: bin, dataDir: filepath.Join(h.dir, "data")}
	if s.URL == "" {
		s.URL = "http://" + netip.AddrPortFrom(h.addr, 8080).String()
	}
	args := []string{"serve", "--data-dir", s.dataDir, "--listen", ":8080", "--server-url", s.URL}
	if o.Config != "" {
		path := filepath.Join(h.dir, "config.yaml")
		if err := os.WriteFile(path, []byte(o.Config), 0o644); err != nil {
			h.l.t.Fatalf("lab: %v", err)
		}
		args = append(args, "--config", path)
	}
	if o.Variant != nil {
		bin = o.Variant.binary(h.l.t)
	}
	env := append([]string{"SKEIN_LOG_FORMAT=text"}, o.Env...)              // for whoever reads a failed test
	s.Process = h.newProcess("skein", env, bin, append(args, o.Args...)...) // the commands are always ours
	s.faults = serverFaults
	s.StartAgain()
	return s
}

// StartAgain starts the server after Kill or Stop, over the same data, and waits until it is healthy.
func (s *Server) StartAgain() {
	s.Host.l.t.Helper()
	if err := s.Start(); err != nil {
		s.Host.l.t.Fatal(err)
	}
	url := "http://127.0.0.1:8080/health"
	s.Host.l.Wait(30*time.Second, s.name+" is healthy", func() (bool, string) {
		if !s.Running() {
			return false, "it has ended:\n" + s.Tail(20)
		}
		_, err := s.Host.Get(2*time.Second, url)
		return err == nil, fmt.Sprint(err)
	})
}

// Become makes the server another skein from the next start on; nil: that of this tree as it is.
func (s *Server) Become(v *Variant) {
	s.Host.l.t.Helper()
	if s.path = s.bin; v != nil {
		s.path = v.binary(s.Host.l.t)
	}
}

// Try runs a skein command against the server, for at most 30 seconds.
func (s *Server) Try(args ...string) Result {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return s.Host.Command(ctx, s.bin, append(args, "--data-dir", s.dataDir)...)
}

// Skein runs a skein command against the server, ends the test if it fails, and returns stdout.
func (s *Server) Skein(args ...string) string {
	s.Host.l.t.Helper()
	r := s.Try(args...)
	if r.Err != nil {
		s.Host.l.t.Fatal(r)
	}
	return r.Stdout
}

// Key makes a pre-auth key for a user with "skein preauthkeys create" and returns it.
func (s *Server) Key(user string, args ...string) string {
	s.Host.l.t.Helper()
	return strings.TrimSpace(s.Skein(append([]string{"preauthkeys", "create", "-n", user}, args...)...))
}

// Row is one line of a table that a skein command printed, by column title.
type Row map[string]string

// Table runs a skein command that prints a table and returns its titles and rows.
func (s *Server) Table(args ...string) (titles []string, rows []Row) {
	s.Host.l.t.Helper()
	titles, rows, err := parseTable(s.Skein(args...))
	if err != nil {
		s.Host.l.t.Fatalf("skein %s: %v", strings.Join(args, " "), err)
	}
	return titles, rows
}

// parseTable reads a table of the form "A | B" with one row per line.
func parseTable(text string) (titles []string, rows []Row, err error) {
	for i, line := range strings.Split(strings.TrimRight(text, "\n"), "\n") {
		var cells []string
		for c := range strings.SplitSeq(line, "|") {
			cells = append(cells, strings.TrimSpace(c))
		}
		if i == 0 {
			titles = cells
			continue
		}
		if len(cells) != len(titles) {
			return nil, nil, fmt.Errorf("line %d has %d cells, the head has %d:\n%s", i+1, len(cells), len(titles), text)
		}
		row := Row{}
		for j, c := range cells {
			row[titles[j]] = c
		}
		rows = append(rows, row)
	}
	return titles, rows, nil
}

// Node returns the row of "skein nodes list" whose Hostname is the given one, nil if there is none.
func (s *Server) Node(hostname string) Row {
	s.Host.l.t.Helper()
	_, rows := s.Table("nodes", "list")
	for _, r := range rows {
		if r["Hostname"] == hostname {
			return r
		}
	}
	return nil
}

// WaitNode waits until the row of that Hostname fulfils cond; the row is nil while there is none.
func (s *Server) WaitNode(timeout time.Duration, hostname, what string, cond func(Row) bool) {
	s.Host.l.t.Helper()
	s.Host.l.Wait(timeout, hostname+" in nodes list: "+what, func() (bool, string) {
		r := s.Node(hostname)
		return cond(r), fmt.Sprint(r)
	})
}
