package lab

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// Headscale is a headscale process on a host, for tests of moving over from it. It listens where a Server does.
type Headscale struct {
	*Process
	Host   *Host
	URL    string
	Config string // its configuration file
	Cert   string // file with its certificate, which clients must trust (SSL_CERT_FILE)
	bin    string
}

// headscaleConfig has what every version since 0.26 demands: %[1]s is a folder, %[2]s the URL. The relay is there because a map without one is
// refused, and TLS because clients use a relay in no other way.
const headscaleConfig = `
server_url: %[2]s
listen_addr: 0.0.0.0:8080
metrics_listen_addr: 127.0.0.1:9091
grpc_listen_addr: 127.0.0.1:50443
grpc_allow_insecure: true
noise: {private_key_path: %[1]s/noise_private.key}
prefixes: {v4: 100.64.0.0/10, v6: "fd7a:115c:a1e0::/48", allocation: sequential}
derp:
  server: {enabled: true, region_id: 999, region_code: hs, region_name: headscale, stun_listen_addr: "0.0.0.0:3478", private_key_path: %[1]s/derp.key,
    automatically_add_embedded_derp_region: true, verify_clients: true}
  urls: []
  paths: []
  auto_update_enabled: false
disable_check_updates: true
ephemeral_node_inactivity_timeout: 30m
database: {type: sqlite, sqlite: {path: %[1]s/db.sqlite, write_ahead_log: true}}
tls_cert_path: %[1]s/tls.crt
tls_key_path: %[1]s/tls.key
log: {level: info, format: text}
policy: {mode: database}
dns: {magic_dns: true, base_domain: headscale.example, override_local_dns: false, nameservers: {global: []}}
unix_socket: %[1]s/hs.sock
unix_socket_permission: "0770"
logtail: {enabled: false}
`

// StartHeadscale builds that version of headscale, such as "v0.26.1", if need be, starts it and waits until it is healthy.
func (h *Host) StartHeadscale(version string) *Headscale {
	h.l.t.Helper()
	hs := &Headscale{Host: h, URL: "https://" + netip.AddrPortFrom(h.addr, 8080).String(), bin: headscaleBinary(h.l.t, version)}
	dir := filepath.Join(h.dir, "headscale")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		h.l.t.Fatal(err)
	}
	hs.Config = filepath.Join(dir, "config.yaml")
	if err := os.WriteFile(hs.Config, fmt.Appendf(nil, headscaleConfig, dir, hs.URL), 0o644); err != nil {
		h.l.t.Fatal(err)
	}
	hs.Cert = filepath.Join(dir, "tls.crt")
	if err := selfSign(h.addr, hs.Cert, filepath.Join(dir, "tls.key")); err != nil {
		h.l.t.Fatal(err)
	}
	hs.Process = h.newProcess("headscale", nil, hs.bin, "-c", hs.Config, "serve")
	if err := hs.Start(); err != nil {
		h.l.t.Fatal(err)
	}
	h.l.Wait(60*time.Second, hs.name+" is healthy", func() (bool, string) {
		if !hs.Running() {
			return false, "it has ended:\n" + hs.Tail(20)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		r := h.Command(ctx, "curl", "-sSf", "--cacert", hs.Cert, hs.URL+"/health")
		return r.Err == nil, r.String()
	})
	return hs
}

// selfSign makes a certificate for addr that is its own authority.
func selfSign(addr netip.Addr, certPath, keyPath string) error {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "lab"}, IPAddresses: []net.IP{addr.AsSlice()}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, k.Public(), k)
	if err != nil {
		return err
	}
	kder, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(certPath, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644),
		os.WriteFile(keyPath, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: kder}), 0o600))
}

// CLI runs a headscale command, ends the test if it fails, and returns the last line of what it prints.
func (hs *Headscale) CLI(args ...string) string {
	hs.Host.l.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	r := hs.Host.Command(ctx, hs.bin, append([]string{"-c", hs.Config}, args...)...)
	if r.Err != nil {
		hs.Host.l.t.Fatal(r)
	}
	lines := strings.Split(strings.TrimSpace(r.Stdout), "\n")
	return strings.TrimSpace(lines[len(lines)-1])
}

// Skein runs a skein command on the host that needs no running server, ends the test if it fails, and returns stdout.
func (h *Host) Skein(args ...string) string {
	h.l.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	r := h.Command(ctx, skeinBinary(h.l.t), args...)
	if r.Err != nil {
		h.l.t.Fatal(r)
	}
	return r.Stdout
}

// DataDir is the data folder of a server that StartServer starts on this host.
func (h *Host) DataDir() string { return filepath.Join(h.dir, "data") }

// headscaleBinary builds headscale from its module with this Go, once per version and machine. From cold that takes minutes.
func headscaleBinary(t testing.TB, version string) string {
	t.Helper()
	builds.mu.Lock()
	defer builds.mu.Unlock()
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	dir := filepath.Join(cache, "skein-lab", fmt.Sprintf("headscale-%s-%s", version, runtime.Version()))
	if err := buildOnce(dir, func(dir string) error { return buildHeadscale(version, dir) }); err != nil {
		t.Fatalf("lab: build headscale %s: %v", version, err)
	}
	return filepath.Join(dir, "headscale")
}

// buildHeadscale makes a module around headscale, with the checksums that headscale's own module has for what it needs.
func buildHeadscale(version, dir string) error {
	const module = "github.com/juanfont/headscale"
	work, err := os.MkdirTemp("", "skein-lab-headscale-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	for name, text := range map[string]string{
		"go.mod":  "module lab\n\ngo 1.26\n\nrequire " + module + " " + version + "\n",
		"tool.go": "//go:build tools\n\npackage lab\n\nimport _ \"" + module + "/cmd/headscale\"\n",
	} {
		if err := os.WriteFile(filepath.Join(work, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	run := func(args ...string) (string, error) {
		cmd := exec.Command("go", args...)
		cmd.Dir = work
		cmd.Env = append(os.Environ(), "GOWORK=off", "GOTOOLCHAIN=local", "GOFLAGS=-mod=mod")
		var out strings.Builder
		cmd.Stdout = &out
		err := runQuiet(cmd)
		return strings.TrimSpace(out.String()), err
	}
	if _, err := run("mod", "download", module+"@"+version); err != nil {
		return err
	}
	modules, err := run("env", "GOMODCACHE")
	if err != nil {
		return err
	}
	sums, err := os.ReadFile(filepath.Join(modules, module+"@"+version, "go.sum"))
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(work, "go.sum"), sums, 0o644); err != nil {
		return err
	}
	if _, err := run("mod", "tidy"); err != nil {
		return err
	}
	_, err = run("build", "-ldflags=-s -w", "-o", filepath.Join(dir, "headscale"), module+"/cmd/headscale")
	return err
}
