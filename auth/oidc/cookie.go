package oidc

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"time"
)

const (
	// signInTTL is how long a person may take at the provider.
	signInTTL = 15 * time.Minute

	cookieStart = "skein-oidc-"
	maxCookie   = 8 << 10 // bytes
)

// started is what the cookie holds between the halves of a sign-in.
type started struct {
	State    string `json:"s"`
	Nonce    string `json:"n"`
	Verifier string `json:"v,omitempty"` // PKCE
	Provider string `json:"p"`
	Flow     Flow   `json:"f"`
	Until    int64  `json:"u"` // Unix seconds
}

// sealer encrypts and authenticates cookies.
type sealer struct{ aead cipher.AEAD }

func newSealer(key [32]byte) (sealer, error) {
	b, err := aes.NewCipher(key[:])
	if err != nil {
		return sealer{}, err
	}
	a, err := cipher.NewGCMWithRandomNonce(b)
	return sealer{a}, err
}

// seal is s as the value of the cookie called name.
func (s sealer) seal(name string, v *started) (string, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return "", err
	}
	return base64.RawURLEncoding.EncodeToString(s.bytes(name, b)), nil
}

// bytes is b encrypted, for a place called name.
func (s sealer) bytes(name string, b []byte) []byte { return s.aead.Seal(nil, nil, b, []byte(name)) }

// open is the opposite of bytes.
func (s sealer) open(name string, b []byte) ([]byte, error) {
	return s.aead.Open(nil, nil, b, []byte(name))
}

var errSeal = errors.New("the cookie was not made by this server")

// unseal is the opposite of seal.
func (s sealer) unseal(name, value string) (*started, error) {
	if len(value) > maxCookie {
		return nil, errSeal
	}
	b, err := base64.RawURLEncoding.DecodeString(value)
	if err != nil {
		return nil, errSeal
	}
	if b, err = s.open(name, b); err != nil {
		return nil, errSeal
	}
	v := new(started)
	return v, json.Unmarshal(b, v)
}

// cookieName is the cookie of a state. Several sign-ins in one browser do not disturb each other.
func (m *Manager) cookieName(state string) string {
	h := sha256.Sum256([]byte(state))
	name := cookieStart + hex.EncodeToString(h[:8])
	if m.secure() {
		return "__Host-" + name // no neighbour under the same domain can plant one (RFC 6265bis, section 4.1.3.2)
	}
	return name
}

// secure reports whether people reach the server over TLS.
func (m *Manager) secure() bool { return strings.HasPrefix(m.o.ServerURL, "https://") }

// cookie holds v until the sign-in is over; an empty value removes it. It must come along when the provider sends the
// browser back, which is a visit from another site: hence SameSite=Lax.
func (m *Manager) cookie(name, value string) *http.Cookie {
	c := &http.Cookie{
		Name: name, Value: value, Path: "/", HttpOnly: true, Secure: m.secure(), SameSite: http.SameSiteLaxMode,
		MaxAge: int(signInTTL / time.Second),
	}
	if value == "" {
		c.MaxAge = -1
	}
	return c
}

// use marks a state as brought back, and reports whether it was the first time.
func (m *Manager) use(state string, until time.Time) bool {
	m.usedMu.Lock()
	defer m.usedMu.Unlock()
	now := m.o.Now()
	for s, t := range m.used {
		if now.After(t) {
			delete(m.used, s)
		}
	}
	if _, again := m.used[state]; again {
		return false
	}
	m.used[state] = until
	return true
}
