package derp

import (
	"bytes"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestSelfSigned(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cert.pem")
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	clock := func() time.Time { return now }
	hosts := []string{"192.0.2.1", "skein.example.com", "2001:db8::1"}
	c, err := SelfSigned(path, hosts, clock)
	if err != nil {
		t.Fatal(err)
	}
	first := c.pin()
	if !strings.HasPrefix(first, pinPrefix) || len(first) != len(pinPrefix)+64 || c.FromFiles() {
		t.Errorf("pin %q", first)
	}
	for _, h := range hosts {
		if err := c.Leaf().VerifyHostname(h); err != nil {
			t.Error(err)
		}
	}
	if leaf := c.Leaf(); leaf.NotBefore.Year() != 1970 || leaf.NotAfter.Sub(now) != selfSignedValid {
		t.Errorf("valid from %v to %v", leaf.NotBefore, leaf.NotAfter)
	}
	if leaf := c.Leaf(); bytes.Equal(leaf.RawSubject, leaf.RawIssuer) {
		t.Errorf("the issuer is the subject, %s: clients warn of an intercepted connection then", leaf.Issuer)
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", fi.Mode(), err)
	}

	again, err := SelfSigned(path, hosts[:2], clock)
	if err != nil || again.pin() != first {
		t.Errorf("a second start with fewer names: %v, another certificate: %v", err, again.pin() != first)
	}
	now = now.Add(selfSignedValid - selfSignedRenew - time.Hour)
	if changed, err := again.Renew(); changed || err != nil {
		t.Errorf("before it is due: changed %v, %v", changed, err)
	}
	now = now.Add(2 * time.Hour)
	if changed, err := again.Renew(); !changed || err != nil || again.pin() == first {
		t.Errorf("when it is due: changed %v, %v", changed, err)
	}
	second := again.pin()
	other, err := SelfSigned(path, []string{"other.example.com"}, clock)
	if err != nil || other.pin() == second {
		t.Errorf("another name: %v, the old certificate: %v", err, other.pin() == second)
	}

	if err := os.WriteFile(path, []byte("rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := SelfSigned(path, hosts, clock); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("rubbish in the file: %v", err)
	}
	if changed, err := other.Renew(); changed || err == nil || other.Leaf() == nil {
		t.Errorf("rubbish while running: changed %v, %v; want the old one kept", changed, err)
	}
	if _, err := SelfSigned(filepath.Join(path, "x"), hosts, clock); err == nil {
		t.Error("a folder that is a file")
	}
	if _, err := SelfSigned(path, nil, clock); err == nil {
		t.Error("no names")
	}
}

func TestLoadCertificate(t *testing.T) {
	dir := t.TempDir()
	certPath, keyPath := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	write := func(hosts ...string) {
		t.Helper()
		pem, err := makeSelfSigned(hosts, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		i := bytes.Index(pem, []byte("-----BEGIN PRIVATE"))
		for p, b := range map[string][]byte{certPath: pem[:i], keyPath: pem[i:]} {
			if err := os.WriteFile(p, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := LoadCertificate(certPath, keyPath); err == nil || !strings.Contains(err.Error(), certPath) {
		t.Errorf("missing: %v", err)
	}
	write("a.example.com")
	c, err := LoadCertificate(certPath, keyPath)
	if err != nil || !c.FromFiles() || !strings.HasPrefix(c.pin(), pinPrefix) {
		t.Fatalf("%v, pin %q", err, c.pin())
	}
	first := c.pin()
	if changed, err := c.Renew(); changed || err != nil {
		t.Errorf("unchanged: %v, %v", changed, err)
	}
	write("b.example.com")
	if changed, err := c.Renew(); !changed || err != nil || c.pin() == first {
		t.Errorf("changed: %v, %v", changed, err)
	}
	// From a self-signed one to files and back, in place.
	made, err := SelfSigned(filepath.Join(dir, "made.pem"), []string{"a.example.com"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	conf, before := made.TLSConfig(), made.pin()
	if !made.Adopt(c) || made.pin() != c.pin() || !made.FromFiles() {
		t.Error("files were not adopted")
	}
	if shown, err := conf.GetCertificate(nil); err != nil || !bytes.Equal(shown.Certificate[0], c.Leaf().Raw) {
		t.Errorf("the listener does not show the adopted certificate: %v", err)
	}
	back, err := SelfSigned(filepath.Join(dir, "made.pem"), []string{"a.example.com"}, nil)
	if err != nil || !made.Adopt(back) || made.pin() != before || made.FromFiles() {
		t.Errorf("not back to the self-signed one: %v", err)
	}
	if changed, err := made.Renew(); changed || err != nil {
		t.Errorf("renewed without need: %v, %v", changed, err)
	}
	// A chain cannot be pinned.
	pem, _ := os.ReadFile(certPath)
	if err := os.WriteFile(certPath, append(pem, pem...), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Renew(); err != nil || c.pin() != "" {
		t.Errorf("a chain: %v, pin %q", err, c.pin())
	}
	if err := os.WriteFile(keyPath, []byte("no key"), 0o600); err != nil {
		t.Fatal(err)
	}
	if changed, err := c.Renew(); changed || err == nil || !strings.Contains(err.Error(), keyPath) {
		t.Errorf("bad key: %v, %v", changed, err)
	}
}

func TestCertHosts(t *testing.T) {
	for in, want := range map[string][]string{
		"http://192.0.2.1:8080": {"192.0.2.1"},
		"http://a.example.com":  {"a.example.com"},
		"http://[fd00::1]:8080": {"fd00::1", ipv6Name},
	} {
		u, err := url.Parse(in)
		if err != nil {
			t.Fatal(err)
		}
		if got := CertHosts(u); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", in, got, want)
		}
	}
}
