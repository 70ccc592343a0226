// Package oidc runs a real identity provider for tests: the npm package oidc-provider, by provider.mjs in this folder. Anybody
// may sign in there, with any password: NAME is the subject NAME with the mail address NAME@example.com, in the group staff.
//
// It needs Node.js and what "npm ci" fetches into this folder. Where that is missing, tests are skipped and say so; with
// SKEIN_LAB_REQUIRED=1 they fail.
package oidc

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Options are how a provider is set up.
type Options struct {
	Listen                 string   `json:"listen"` // ADDRESS:PORT; port 0: a free one
	Issuer                 string   `json:"issuer,omitempty"`
	ClientID               string   `json:"client_id"`
	ClientSecret           string   `json:"client_secret,omitempty"` // empty: a public client
	AuthMethod             string   `json:"auth_method,omitempty"`   // empty: client_secret_basic, or none without a secret
	RedirectURIs           []string `json:"redirect_uris"`
	PostLogoutRedirectURIs []string `json:"post_logout_redirect_uris,omitempty"`
	Stay                   bool     `json:"stay,omitempty"` // run although nobody holds its standard input
}

// Dir is this folder.
func Dir() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Dir(file)
}

// Need skips the test, with the reason, where the provider cannot run; with SKEIN_LAB_REQUIRED=1 it fails it.
func Need(t testing.TB) {
	t.Helper()
	_, err := exec.LookPath("node")
	if err == nil {
		_, err = os.Stat(filepath.Join(Dir(), "node_modules", "oidc-provider"))
	}
	if err == nil {
		return
	}
	why := fmt.Sprintf("the identity provider cannot run (run \"npm ci\" in integration/oidc): %v", err)
	if os.Getenv("SKEIN_LAB_REQUIRED") == "1" {
		t.Fatal("SKEIN_LAB_REQUIRED=1, but " + why)
	}
	t.Skip(why)
}

// Args are the arguments of node for a provider.
func Args(o Options) []string {
	b, err := json.Marshal(o)
	if err != nil {
		panic(err) // it is made of strings
	}
	return []string{filepath.Join(Dir(), "provider.mjs"), string(b)}
}

// Provider is one that runs until the test ends.
type Provider struct {
	Issuer string

	t     testing.TB
	in    io.WriteCloser
	lines chan string
}

// patience is for a machine under load.
const patience = 2 * time.Minute

// Start starts a provider.
func Start(t testing.TB, o Options) *Provider {
	t.Helper()
	Need(t)
	cmd := exec.Command("node", Args(o)...)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	runtime.LockOSThread() // Pdeathsig is about the thread that starts the process
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &Provider{t: t, in: in, lines: make(chan string, 100)}
	read := make(chan struct{})
	go func() { // ends with the process
		defer close(read)
		defer close(p.lines)
		s := bufio.NewScanner(out)
		for s.Scan() {
			p.lines <- s.Text()
		}
	}()
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Process.Kill()
		<-read
		_ = cmd.Wait()
		runtime.UnlockOSThread()
	})
	p.Issuer = strings.TrimPrefix(p.wait("ready "), "ready ")
	return p
}

// wait returns the next line that begins so.
func (p *Provider) wait(start string) string {
	p.t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case line, ok := <-p.lines:
			if !ok {
				p.t.Fatal("the identity provider has ended")
			}
			if strings.HasPrefix(line, start) {
				return line
			}
		case <-deadline:
			p.t.Fatalf("the identity provider did not say %q", start)
		}
	}
}

// Say changes what the provider says about somebody.
func (p *Provider) Say(name string, claims map[string]any) {
	p.t.Helper()
	p.change(map[string]any{"name": name, "claims": claims})
}

// Close closes somebody's account.
func (p *Provider) Close(name string) {
	p.t.Helper()
	p.change(map[string]any{"name": name, "gone": true})
}

func (p *Provider) change(v map[string]any) {
	p.t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		p.t.Fatal(err)
	}
	if _, err := p.in.Write(append(b, '\n')); err != nil {
		p.t.Fatal(err)
	}
	p.wait("changed ")
}

// NeedBrowser skips the test, with the reason, where no browser can run; with SKEIN_LAB_REQUIRED=1 it fails it. It returns
// Chromium's path.
func NeedBrowser(t testing.TB) string {
	t.Helper()
	Need(t)
	const debian = "/usr/lib/chromium/chromium" // what the script in the PATH starts, which wants Debian's /etc
	if _, err := os.Stat(debian); err == nil {
		return debian
	}
	path, err := exec.LookPath("chromium")
	if err == nil {
		return path
	}
	if os.Getenv("SKEIN_LAB_REQUIRED") == "1" {
		t.Fatalf("SKEIN_LAB_REQUIRED=1, but there is no browser: %v", err)
	}
	t.Skipf("there is no browser: %v", err)
	return ""
}

// Visit is what a person does in a browser: see browser.mjs.
type Visit struct {
	URL      string `json:"url"`      // where tailscale up has sent them
	Provider string `json:"provider"` // as the button calls it
	Name     string `json:"name"`     // whom they sign in as
	Chromium string `json:"chromium"`
	Shots    string `json:"shots,omitempty"` // folder for pictures; empty: none
	Width    int    `json:"width,omitempty"`
	Steps    string `json:"steps,omitempty"` // "signin": do not add the machine
	NoScript bool   `json:"-"`
}

// Seen is what they saw.
type Seen struct {
	Pages []struct{ Name, URL, Title, Text string }
	// Faults are errors of scripts and messages of the browser.
	Faults  []string
	Cookies []struct{ Name string } // of sign-ins that were not finished
	Error   string
}

// VisitArgs are the arguments of node for a visit.
func VisitArgs(v Visit) []string {
	b, err := json.Marshal(struct {
		Visit
		JavaScript bool `json:"javascript"`
	}{v, !v.NoScript})
	if err != nil {
		panic(err) // it is made of strings
	}
	return []string{filepath.Join(Dir(), "browser.mjs"), string(b)}
}
