package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/types/key"

	"github.com/skein-vpn/skein/config"
)

// patient is a server, or the place of one, that a doctor looks at.
type patient struct {
	*testing.T
	file string // its configuration
	s    *server
}

// newPatient writes a configuration with server_url and further lines; %s in the URL is where it listens.
func newPatient(t *testing.T, serverURL string, lines ...string) *patient {
	t.Helper()
	for _, name := range []string{envServer, envAPIKey, envAPIKeyFile, envSocket} {
		t.Setenv(name, "")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	if strings.Contains(serverURL, "%s") {
		serverURL = fmt.Sprintf(serverURL, addr)
	}
	dir := t.TempDir()
	p := &patient{T: t, file: filepath.Join(dir, "config.yaml")}
	text := fmt.Sprintf("server_url: %s\nlisten_addr: %q\nmetrics_listen_addr: \"\"\ntls_fallback_listen_addr: \"\"\ndata_dir: %s\n%s\n",
		serverURL, addr, filepath.Join(dir, "d"), strings.Join(lines, "\n"))
	if err := os.WriteFile(p.file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

// stunOnLoopback is the line that most patients have.
const stunOnLoopback = `derp: {server: {stun_listen_addr: "127.0.0.1:0", ipv4: 127.0.0.1}}`

// start starts its server.
func (p *patient) start() *patient {
	p.Helper()
	cfg, err := config.Load(config.Options{File: p.file})
	if err != nil {
		p.Fatal(err)
	}
	if p.s, err = openServer(p.Context(), cfg, slog.New(slog.DiscardHandler)); err != nil {
		p.Fatal(err)
	}
	p.Cleanup(func() { p.s.Close() })
	return p
}

// seeDoctor is what the doctor says.
func (p *patient) seeDoctor(args ...string) diagnosis {
	p.Helper()
	var out, errs bytes.Buffer
	code := run(append([]string{"doctor", "-c", p.file, "-o", "json"}, args...), nil, &out, &errs)
	var d diagnosis
	if err := json.Unmarshal(out.Bytes(), &d); err != nil {
		p.Fatalf("%v: %s%s", err, out.String(), errs.String())
	}
	if (code == exitOK) != (d.Faults == 0) {
		p.Errorf("exit code %d with %d faults", code, d.Faults)
	}
	return d
}

// has wants a finding, with part of its text, and a remedy unless it is ok.
func (d diagnosis) has(t *testing.T, l level, check, text string) {
	t.Helper()
	for _, f := range d.Findings {
		if f.Level == l && f.Check == check && strings.Contains(f.Text, text) {
			if l == levelFault && f.Remedy == "" {
				t.Errorf("no remedy for %q", f.Text)
			}
			return
		}
	}
	t.Errorf("no %s of %s says %q:\n%s", l, check, text, d)
}

func (d diagnosis) String() string {
	var b strings.Builder
	for _, f := range d.Findings {
		fmt.Fprintf(&b, "%s %s: %s → %s\n", f.Level, f.Check, f.Text, f.Remedy)
	}
	return b.String()
}

// timeServer answers SNTP with a clock that is off.
func timeServer(t *testing.T, off time.Duration) string {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 1500)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			if n != 48 {
				continue
			}
			var res [48]byte
			res[0], res[1] = 4<<3|4, 1
			copy(res[24:32], buf[40:48])
			now := time.Now().Add(off)
			for _, at := range []int{32, 40} {
				binary.BigEndian.PutUint32(res[at:], uint32(now.Unix()+2208988800))
				binary.BigEndian.PutUint32(res[at+4:], uint32(int64(now.Nanosecond())<<32/1e9))
			}
			c.WriteTo([]byte("noise"), from)
			c.WriteTo(res[:], from)
		}
	}()
	t.Cleanup(func() { c.Close(); <-done })
	return c.LocalAddr().String()
}

// A server that is well: the doctor goes all the ways of a client, with the real handshakes.
func TestDoctorOfAHealthyServer(t *testing.T) {
	p := newPatient(t, "http://%s", stunOnLoopback).start()
	d := p.seeDoctor("--ntp", timeServer(t, 0))
	for _, want := range [][2]string{
		{"configuration", "config.yaml"}, {"files", "only the server's user"}, {"server", "runs"}, {"database", "not damaged"}, {"ports", "answers on 127.0.0.1"},
		{"clock", "right to within"}, {"server_url", "leads to this server"}, {"protocol", "Noise handshake"}, {"relay", "999-embedded (region 999) answers"},
		{"stun", "sees this machine as 127.0.0.1"},
	} {
		d.has(t, levelOK, want[0], want[1])
	}
	d.has(t, levelWarning, "server_url", "this machine itself")
	if d.Faults != 0 || d.Warnings != 1 {
		t.Errorf("%s", d)
	}
	// As administrators elsewhere see it.
	var out, errs bytes.Buffer
	run([]string{"apikeys", "create", "--scopes", "all:read", "-c", p.file}, nil, &out, &errs)
	t.Setenv(envAPIKey, strings.TrimSpace(out.String()))
	d = p.seeDoctor("--server", p.s.cfg.ServerURL, "--ntp", "")
	for _, check := range []string{"server", "server_url", "protocol", "relay", "stun"} {
		d.has(t, levelOK, check, "")
	}
	if d.Faults != 0 || strings.Contains(d.String(), "database") {
		t.Errorf("%s", d)
	}
}

func TestDoctorFindsFaults(t *testing.T) {
	t.Run("clock", func(t *testing.T) {
		p := newPatient(t, "http://%s", stunOnLoopback).start()
		p.seeDoctor("--ntp", timeServer(t, time.Hour)).has(t, levelFault, "clock", "off by 1h0m0")
	})
	t.Run("no time server", func(t *testing.T) {
		c, err := net.ListenPacket("udp", "127.0.0.1:0") // says nothing
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		d := newPatient(t, "http://%s", stunOnLoopback).start().seeDoctor("--ntp", c.LocalAddr().String())
		d.has(t, levelOK, "clock", "")
	})
	t.Run("files", func(t *testing.T) {
		p := newPatient(t, "http://%s", stunOnLoopback).start()
		if err := os.Chmod(p.s.cfg.Noise.PrivateKeyPath, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(p.s.cfg.UnixSocket, 0o777); err != nil {
			t.Fatal(err)
		}
		d := p.seeDoctor("--ntp", "")
		d.has(t, levelFault, "files", "may open "+p.s.cfg.Noise.PrivateKeyPath+" (mode 0644)")
		d.has(t, levelFault, "files", "may administer the server")
	})
	t.Run("relay", func(t *testing.T) {
		p := newPatient(t, "http://%s", `derp: {server: {stun_listen_addr: "127.0.0.1:0", ipv4: 127.0.0.1, verify_clients: false}}`).start()
		p.s.stun.Close()
		d := p.seeDoctor("--ntp", "")
		d.has(t, levelWarning, "configuration", "lets strangers use the relay")
		d.has(t, levelWarning, "relay", "lets strangers use it")
		d.has(t, levelWarning, "stun", "does not answer")
	})
	t.Run("down", func(t *testing.T) {
		p := newPatient(t, "http://%s", stunOnLoopback)
		d := p.seeDoctor("--ntp", "")
		d.has(t, levelFault, "server", "no server answers at")
		d.has(t, levelOK, "ports", "free")
		d.has(t, levelWarning, "server_url", "nobody listens there")
		d.has(t, levelWarning, "files", "no data folder")
		cfg, err := config.Load(config.Options{File: p.file})
		if err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen("tcp", cfg.ListenAddr)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		p.seeDoctor("--ntp", "").has(t, levelFault, "ports", "cannot be listened on")
	})
	t.Run("configuration", func(t *testing.T) {
		p := newPatient(t, "http://%s", "magic: true", "log: {level: loud}")
		d := p.seeDoctor("--ntp", "")
		d.has(t, levelFault, "configuration", "magic")
		d.has(t, levelFault, "configuration", "log.level")
	})
	t.Run("name", func(t *testing.T) {
		p := newPatient(t, "http://nowhere.invalid:8080", stunOnLoopback).start()
		d := p.seeDoctor("--ntp", "")
		if !strings.Contains(d.String(), "nowhere.invalid") || d.Faults == 0 {
			t.Errorf("%s", d)
		}
	})
}

// keyServer answers /key with a key, and hands everything else to next.
func keyServer(k key.MachinePublic, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/key" {
			json.NewEncoder(w).Encode(tailcfg.OverTLSPublicKeyResponse{PublicKey: k})
			return
		}
		next.ServeHTTP(w, r)
	})
}

// What stands at server_url is not this server, or does not let through what clients speak.
func TestDoctorAtTheURL(t *testing.T) {
	other := httptest.NewServer(keyServer(key.NewMachine().Public(), http.NotFoundHandler()))
	defer other.Close()
	d := newPatient(t, other.URL, stunOnLoopback).start().seeDoctor("--ntp", "")
	d.has(t, levelFault, "server_url", "leads to another server")

	some := httptest.NewServer(http.NotFoundHandler())
	defer some.Close()
	d = newPatient(t, some.URL, stunOnLoopback).start().seeDoctor("--ntp", "")
	d.has(t, levelFault, "server_url", "is no Skein")

	// A proxy that knows no Upgrade, with TLS that nobody trusts: both are told.
	var target *url.URL
	proxy := &httputil.ReverseProxy{ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo), Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(target)
		r.Out.Header.Del("Upgrade")
		r.Out.Header.Del("Connection")
	}}
	front := httptest.NewUnstartedServer(proxy)
	front.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
	front.StartTLS()
	defer front.Close()
	p := newPatient(t, front.URL, stunOnLoopback).start()
	target = &url.URL{Scheme: "http", Host: p.s.listeners[0].Addr().String()}
	d = p.seeDoctor("--ntp", "")
	d.has(t, levelFault, "certificate", "clients will not trust it")
	d.has(t, levelOK, "server_url", "leads to this server")
	d.has(t, levelFault, "protocol", "not to what clients speak")
}

// The year 2036 is not the end.
func TestNTPTime(t *testing.T) {
	for _, want := range []time.Time{time.Date(2026, 11, 20, 12, 0, 0, 5e8, time.UTC), time.Date(2040, 1, 1, 0, 0, 0, 0, time.UTC)} {
		var b [8]byte
		binary.BigEndian.PutUint32(b[:], uint32(want.Unix()+2208988800))
		binary.BigEndian.PutUint32(b[4:], uint32(int64(want.Nanosecond())<<32/1e9))
		if got := ntpTime(b[:]); !got.Equal(want) {
			t.Errorf("%s is %s", want, got.UTC())
		}
	}
	if _, err := askNTP(context.Background(), "127.0.0.1:1", time.Now); err == nil {
		t.Error("nobody tells the time")
	}
}
