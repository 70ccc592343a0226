package wireguard

import (
	"bytes"
	"context"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// skein is a running server of the binary built from this tree.
type skein struct {
	t    *testing.T
	bin  string
	data string // its data folder
	url  string
}

// startSkein builds the binary and starts a server on a free loopback port, with nothing configured that clients see.
func startSkein(t *testing.T) *skein {
	t.Helper()
	s := &skein{t: t, bin: filepath.Join(t.TempDir(), "skein"), data: t.TempDir()}
	build := exec.CommandContext(t.Context(), "go", "build", "-o", s.bin, "github.com/skein-vpn/skein/cmd/skein")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building skein: %v\n%s", err, out)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	s.url = "http://" + addr

	var log bytes.Buffer // written to until Wait returns
	cmd := exec.Command(s.bin, "serve", "--data-dir", s.data, "--listen", addr, "--server-url", s.url, "--stun-listen", "", "--metrics-listen", "")
	cmd.Env = append(environ(), "SKEIN_TLS_FALLBACK_LISTEN_ADDR=")
	cmd.Stdout, cmd.Stderr = &log, &log
	ended, err := start(cmd)
	if err != nil {
		t.Fatalf("starting skein: %v", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("skein ended with %v", err)
			}
		case <-time.After(patience):
			_ = cmd.Process.Kill()
			<-ended
			t.Error("skein did not end on SIGTERM")
		}
		if t.Failed() {
			t.Logf("the server's log:\n%s", log.String())
		}
	})
	deadline := time.Now().Add(patience)
	for !s.answers() {
		if time.Now().After(deadline) {
			t.Fatalf("skein does not answer within %v", patience)
		}
		time.Sleep(20 * time.Millisecond)
	}
	return s
}

func (s *skein) answers() bool {
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, s.url+"/key?v=142", nil)
	if err != nil {
		s.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// run runs a command against the server and returns what it prints, without the white space around it.
func (s *skein) run(args ...string) string {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.bin, append([]string{"--data-dir", s.data}, args...)...)
	cmd.Env = environ()
	var out, fault bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &fault
	if err := cmd.Run(); err != nil {
		s.t.Fatalf("skein %s: %v\n%s%s", strings.Join(args, " "), err, out.String(), fault.String())
	}
	return strings.TrimSpace(out.String())
}

// environ is ours without settings for another Skein.
func environ() (out []string) {
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "SKEIN_") {
			out = append(out, e)
		}
	}
	return out
}
