package derp

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Validity of certificates we make. Clients compare a pinned certificate by its hash and check its dates with their own clock
// (net/tlsdial:SetConfigExpectedCertHash). It starts in 1970 because a device without a battery clock thinks it is then, until it
// has reached a time server, perhaps by way of this relay.
const (
	selfSignedValid = 10 * 365 * 24 * time.Hour
	selfSignedRenew = 365 * 24 * time.Hour // left over when a new one is made
)

var selfSignedFrom = time.Unix(0, 0)

// Certificate is what the TLS side of the port shows: from files, or made by us. It may be replaced while in use.
type Certificate struct {
	cur atomic.Pointer[tls.Certificate] // Leaf is set

	mu sync.Mutex // held while replacing
	certSource
}

// certSource is where a certificate comes from.
type certSource struct {
	certPath, keyPath string   // files; both empty for a self-signed one
	madePath          string   // where ours is kept
	hosts             []string // names and addresses ours must cover
	now               func() time.Time
}

// LoadCertificate reads a certificate chain and its key from PEM files, such as a certificate authority gave. Errors name the file.
func LoadCertificate(certPath, keyPath string) (*Certificate, error) {
	c := &Certificate{certSource: certSource{certPath: certPath, keyPath: keyPath, now: time.Now}}
	if _, err := c.Renew(); err != nil {
		return nil, err
	}
	return c, nil
}

// SelfSigned reads the certificate that an earlier call made and kept at path, or makes one. It is made anew when it does not cover
// all of hosts (names or addresses), has less than a year to go, or names itself as its issuer (see makeSelfSigned). Certificate and key share one file, mode 0600. A nil now is
// time.Now.
func SelfSigned(path string, hosts []string, now func() time.Time) (*Certificate, error) {
	if len(hosts) == 0 {
		return nil, errors.New("derp: a self-signed certificate needs a host name or address")
	}
	if now == nil {
		now = time.Now
	}
	c := &Certificate{certSource: certSource{madePath: path, hosts: slices.Clone(hosts), now: now}}
	if _, err := c.Renew(); err != nil {
		return nil, err
	}
	return c, nil
}

// Renew reads certificate files again, or replaces a self-signed certificate when that is due. It reports whether the certificate
// is another one now. On error the old one stays in use.
func (c *Certificate) Renew() (changed bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var next *tls.Certificate
	if c.madePath == "" {
		next, err = loadFiles(c.certPath, c.keyPath)
	} else {
		next, err = c.loadOrMake()
	}
	if err != nil {
		return false, err
	}
	return c.show(next), nil
}

// Adopt changes to the certificate and the source of another Certificate, which was just opened and is not used for anything else.
// It reports whether the certificate is another one now.
func (c *Certificate) Adopt(other *Certificate) (changed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.certSource = other.certSource
	return c.show(other.cur.Load())
}

// show reports whether next is another certificate than the one shown so far.
func (c *Certificate) show(next *tls.Certificate) (changed bool) {
	old := c.cur.Swap(next)
	return old == nil || !bytes.Equal(old.Certificate[0], next.Certificate[0])
}

// Leaf returns the certificate shown at present.
func (c *Certificate) Leaf() *x509.Certificate { return c.cur.Load().Leaf }

// FromFiles reports whether the certificate comes from files rather than from us.
func (c *Certificate) FromFiles() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.madePath == ""
}

// pin returns the value for tailcfg.DERPNode.CertName that makes clients accept exactly this certificate, "" when that is not
// possible. Clients that pin refuse a chain of more than one (net/tlsdial:SetConfigExpectedCertHash).
func (c *Certificate) pin() string {
	cert := c.cur.Load()
	if len(cert.Certificate) != 1 {
		return ""
	}
	sum := sha256.Sum256(cert.Certificate[0])
	return pinPrefix + hex.EncodeToString(sum[:])
}

// pinPrefix: tailcfg.DERPNode.CertName.
const pinPrefix = "sha256-raw:"

// TLSConfig returns a server configuration that always shows the current certificate. It offers HTTP/1.1 only: /derp and /ts2021
// take the connection over, and a client that was given h2 could not use them. DERP's own "meta certificate" is left out, because
// clients before v1.84 refuse to pin when a second certificate comes along.
func (c *Certificate) TLSConfig() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return c.cur.Load(), nil
		},
	}
}

func loadFiles(certPath, keyPath string) (*tls.Certificate, error) {
	certPEM, err := os.ReadFile(certPath)
	if err != nil {
		return nil, fmt.Errorf("cannot read the TLS certificate: %w", err)
	}
	keyPEM, err := os.ReadFile(keyPath)
	if err != nil {
		return nil, fmt.Errorf("cannot read the TLS key: %w", err)
	}
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("the TLS certificate %s and the key %s do not work together: %w", certPath, keyPath, err)
	}
	return &cert, nil
}

func (c *certSource) loadOrMake() (*tls.Certificate, error) {
	data, err := os.ReadFile(c.madePath)
	replace := err == nil
	switch {
	case err == nil:
		cert, err := tls.X509KeyPair(data, data)
		if err != nil {
			return nil, fmt.Errorf("%s does not hold a certificate and its key (%w); move the file away to have a new one made", c.madePath, err)
		}
		if c.good(cert.Leaf) {
			return &cert, nil
		}
	case !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("cannot read the self-signed certificate: %w", err)
	}
	data, err = makeSelfSigned(c.hosts, c.now())
	if err != nil {
		return nil, err
	}
	if err := writeSecret(c.madePath, data, replace); errors.Is(err, fs.ErrExist) {
		if data, err = os.ReadFile(c.madePath); err != nil { // another process was faster: use what it made
			return nil, fmt.Errorf("cannot read the self-signed certificate: %w", err)
		}
	} else if err != nil {
		return nil, fmt.Errorf("cannot save the self-signed certificate: %w", err)
	}
	cert, err := tls.X509KeyPair(data, data)
	if err != nil {
		return nil, err
	}
	return &cert, nil
}

func (c *certSource) good(leaf *x509.Certificate) bool {
	if c.now().Add(selfSignedRenew).After(leaf.NotAfter) || bytes.Equal(leaf.RawSubject, leaf.RawIssuer) {
		return false
	}
	for _, h := range c.hosts {
		if leaf.VerifyHostname(h) != nil {
			return false
		}
	}
	return true
}

// makeSelfSigned returns certificate and key as PEM.
func makeSelfSigned(hosts []string, now time.Time) ([]byte, error) {
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	tmpl := &x509.Certificate{
		SerialNumber:          serial.Add(serial, big.NewInt(1)),
		Subject:               pkix.Name{CommonName: "Skein relay"},
		NotBefore:             selfSignedFrom,
		NotAfter:              now.Add(selfSignedValid),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	for _, h := range hosts {
		if ip, err := netip.ParseAddr(h); err == nil {
			tmpl.IPAddresses = append(tmpl.IPAddresses, ip.WithZone("").AsSlice())
		} else {
			tmpl.DNSNames = append(tmpl.DNSNames, strings.TrimSuffix(h, "."))
		}
	}
	// A certificate that names itself as its issuer makes clients of a plain http server say "likely intercepted connection" in
	// their status from the first reconnect on, although they go on well (net/tlsdial:certIsSelfSigned looks at nothing but the
	// names). So ours names an issuer, which exists nowhere else.
	issuer := &x509.Certificate{Subject: pkix.Name{CommonName: "Skein"}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, issuer, priv.Public(), priv)
	if err != nil {
		return nil, fmt.Errorf("cannot make a certificate for %s: %w", strings.Join(hosts, ", "), err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(priv)
	if err != nil {
		return nil, err
	}
	return append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})...), nil
}
