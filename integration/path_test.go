package integration

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	stdnet "net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skein-vpn/skein/integration/lab"
)

// Two hosts behind easy NATs find a direct path, both ways.
func TestDirectPath(t *testing.T) {
	n := newNet(t, lab.EasyNAT, lab.ServerOptions{})
	mac, nas := n.join(n.Mac), n.join(n.NAS)
	mac.WaitPeer(soon, "homeDS", nil)
	begin := time.Now()
	mac.Ping(soon, nas.IP4())
	n.measured("first ping between two new nodes", time.Since(begin))
	if at := mac.WaitDirect(soon, nas.IP4()); at.Addr() != n.Home.Public {
		t.Errorf("direct by %v, want %v", at, n.Home.Public)
	}
	n.measured("direct path found", time.Since(begin))
	if at := nas.WaitDirect(soon, mac.IP4()); at.Addr() != n.Office.Public {
		t.Errorf("direct by %v, want %v", at, n.Office.Public)
	}
	mac.Ping(soon, nas.IP6())
}

// Without UDP everything goes through the server's relay: with a plain http address, public or
// private, no certificate authority and no environment variable on the clients.
func TestRelayOnly(t *testing.T) {
	for name, place := range map[string]func(*lab.Seed) *lab.Host{
		"public":  func(s *lab.Seed) *lab.Host { return s.ServerHost },
		"private": func(s *lab.Seed) *lab.Host { return s.Private("server-inside") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := lab.NewSeed(t, lab.EasyNAT)
			n := &net{Seed: s, srv: place(s).StartServer(lab.ServerOptions{})}
			n.srv.Skein("namespaces", "create", "junyao")
			n.Mac.Block(lab.UDP)
			n.NAS.Block(lab.UDP)
			mac, nas := n.join(n.Mac, "--accept-routes"), n.join(n.NAS, "--advertise-routes="+homeLAN)
			mac.WaitPeer(soon, "homeDS", nil)
			begin := time.Now()
			mac.Ping(soon, nas.IP4())
			n.measured("first ping over the relay", time.Since(begin))
			vias, r := mac.Vias(soon, "-c=3", nas.IP4().String())
			allRelayed(t, vias, r)

			n.enable(t, "homeDS", homeLAN)
			mac.Ping(soon, n.Router.Addr())
			if _, err := n.Mac.Get(soon, "http://192.168.199.1/"); err != nil {
				t.Error(err)
			}

			// The relay is the server: without it nothing goes, and it must come back by itself.
			n.srv.Kill()
			if _, err := n.Mac.Ping(never, nas.IP4()); err == nil {
				t.Error("a ping was answered while the only relay was away")
			}
			n.srv.StartAgain()
			begin = time.Now()
			mac.Ping(patient, nas.IP4())
			n.measured("relayed traffic goes on after kill -9 of the server", time.Since(begin))
		})
	}
}

// Behind two hard NATs clients cannot reach each other directly; the relay carries them.
func TestHardNAT(t *testing.T) {
	n := newNet(t, lab.HardNAT, lab.ServerOptions{})
	mac, nas, vm := n.join(n.Mac), n.join(n.NAS), n.join(n.Cloud)
	mac.WaitPeer(soon, "homeDS", nil)
	mac.Ping(soon, nas.IP4())
	vias, r := mac.Vias(soon, "-c=3", nas.IP4().String())
	allRelayed(t, vias, r)
	// One side with an address of its own is enough for a direct path.
	mac.WaitPeer(soon, "VM-0-2-centos", nil)
	direct(mac, vm)
}

// A path that was direct survives on the relay when UDP is dropped, and becomes direct again.
func TestDirectToRelayAndBack(t *testing.T) {
	n := newNet(t, lab.EasyNAT, lab.ServerOptions{})
	mac, nas := n.join(n.Mac), n.join(n.NAS)
	mac.WaitPeer(soon, "homeDS", nil)
	direct(mac, nas)
	n.NAS.Block(lab.UDP)
	begin := time.Now()
	mac.Ping(patient, nas.IP4())
	n.measured("ping goes on over the relay", time.Since(begin))
	vias, r := mac.Vias(soon, "-c=2", "--until-direct=false", nas.IP4().String())
	allRelayed(t, vias, r)
	n.NAS.Unblock()
	begin = time.Now()
	mac.Ping(soon, nas.IP4())
	mac.WaitDirect(patient, nas.IP4())
	n.measured("direct again", time.Since(begin))
}

// Relays that are described in a file: here the server has none of its own, and the one of another
// server serves its clients, pinned certificate included. What is changed in the file reaches the
// clients without a restart; a file with a fault changes nothing.
func TestRelayElsewhere(t *testing.T) {
	t.Parallel()
	s := lab.NewSeed(t, lab.EasyNAT)
	other := s.Lab.Cloud("relay").StartServer(lab.ServerOptions{Env: []string{
		"SKEIN_DERP_SERVER_VERIFY_CLIENTS=false", "SKEIN_DERP_SERVER_REGION_ID=901", "SKEIN_DERP_SERVER_REGION_CODE=far",
	}})
	described := other.Skein("derp", "map", "-o", "json")
	file := filepath.Join(s.ServerHost.Dir(), "derp.json")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(described)
	n := &net{Seed: s, srv: s.ServerHost.StartServer(lab.ServerOptions{
		Env: []string{"SKEIN_DERP_SERVER_ENABLED=false", "SKEIN_DERP_PATHS=" + file},
	})}
	n.srv.Skein("namespaces", "create", "junyao")
	n.Mac.Block(lab.UDP)
	mac, nas := n.join(n.Mac), n.join(n.NAS)
	mac.WaitPeer(soon, "homeDS", nil)
	mac.Ping(soon, nas.IP4())
	vias, r := mac.Vias(soon, "-c=2", "--until-direct=false", nas.IP4().String())
	if allRelayed(t, vias, r); vias[0] != "DERP(far)" {
		t.Errorf("the answers came via %q, want DERP(far)", vias)
	}

	knows := func(code string) {
		t.Helper()
		n.Wait(soon, "the laptop knows the relay "+code, func() (bool, string) {
			m := mac.MustCLI("debug", "derp-map")
			return strings.Contains(m, `"`+code+`"`), m
		})
	}
	write(strings.ReplaceAll(described, `"far"`, `"near"`))
	begin := time.Now()
	n.srv.Hangup()
	knows("near")
	n.measured("changed relay file has reached the laptop after SIGHUP", time.Since(begin))
	write(strings.ReplaceAll(described, `"far"`, `"broken`))
	n.srv.Hangup()
	n.Wait(soon, "the fault is told", func() (bool, string) {
		log := n.srv.Log()
		return strings.Contains(log, file+":"), n.srv.Tail(5)
	})
	knows("near")
	mac.Ping(soon, nas.IP4())
}

// A server with a certificate of an authority that the clients trust: the relay on the same port shows
// that one too, and both work again after a restart.
func TestHTTPS(t *testing.T) {
	t.Parallel()
	s := lab.NewSeed(t, lab.EasyNAT)
	roots, cert, key := certificate(t, s.ServerHost)
	n := &net{Seed: s, srv: s.ServerHost.StartServer(lab.ServerOptions{
		URL: "https://" + netip.AddrPortFrom(s.ServerHost.Addr(), 8080).String(),
		Env: []string{"SKEIN_TLS_CERT_PATH=" + cert, "SKEIN_TLS_KEY_PATH=" + key},
	})}
	n.srv.Skein("namespaces", "create", "junyao")
	n.Mac.Block(lab.UDP)
	trusting := lab.NodeOptions{Env: []string{"SSL_CERT_FILE=" + roots}}
	mac, nas := n.joinAs(n.Mac, trusting), n.joinAs(n.NAS, trusting)
	mac.WaitPeer(soon, "homeDS", nil)
	mac.Ping(soon, nas.IP4())
	vias, r := mac.Vias(soon, "-c=2", "--until-direct=false", nas.IP4().String())
	allRelayed(t, vias, r)

	n.srv.Kill()
	n.srv.StartAgain()
	begin := time.Now()
	mac.Ping(patient, nas.IP4())
	n.measured("relayed traffic goes on after kill -9 of the server", time.Since(begin))
	n.joinAs(n.Cloud, trusting)
	mac.WaitPeer(patient, "VM-0-2-centos", nil)
	n.measured("laptop is back", time.Since(begin))
}

// certificate makes an authority and a certificate of it for the host's address, and returns the names
// of the files with the authority's certificate, the host's, and its key.
func certificate(t *testing.T, h *lab.Host) (roots, cert, key string) {
	t.Helper()
	file := func(name, kind string, der []byte) string {
		path := filepath.Join(h.Dir(), name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "lab authority"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "server"}, NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []stdnet.IP{h.Addr().AsSlice()}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	caDER, err1 := x509.CreateCertificate(rand.Reader, ca, ca, priv.Public(), priv) // one key for both is good enough here
	leafDER, err2 := x509.CreateCertificate(rand.Reader, leaf, ca, priv.Public(), priv)
	keyDER, err3 := x509.MarshalPKCS8PrivateKey(priv)
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	return file("roots.pem", "CERTIFICATE", caDER), file("cert.pem", "CERTIFICATE", leafDER), file("key.pem", "PRIVATE KEY", keyDER)
}
