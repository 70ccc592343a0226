package auth

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/crypto/argon2"
	"golang.org/x/text/unicode/norm"

	"github.com/skein-vpn/skein/tailnet"
)

// The cost of one password check: what OWASP's password storage guide names as the least for argon2id. More memory would be
// better and is not what a small server has; guesses are counted as well (attempts).
const (
	argonMemory  = 19 << 10 // KiB
	argonTime    = 2        // passes
	argonThreads = 1
	argonSalt    = 16 // bytes
	argonKey     = 32 // bytes

	maxArgonMemory = 256 << 10 // KiB; a stored hash that asks for more is not checked
	maxArgonTime   = 20
)

// What a password may be. Length is what makes one strong (NIST SP 800-63B 3.1.1.2); rules about kinds of characters do not.
const (
	MinPassword = 12   // characters
	MaxPassword = 1024 // bytes
	minDistinct = 5    // different characters
)

// CheckPassword returns nil if user name may have this password, or else an Error that says what is wrong with it.
func CheckPassword(name, password string) error {
	p := norm.NFC.String(password)
	switch {
	case !utf8.ValidString(password) || strings.ContainsFunc(p, unicode.IsControl):
		return tailnet.Errorf(tailnet.Invalid, "the password has characters that cannot be typed")
	case len(password) > MaxPassword:
		return tailnet.Errorf(tailnet.Invalid, "the password is longer than %d bytes", MaxPassword)
	case utf8.RuneCountInString(p) < MinPassword:
		return tailnet.Errorf(tailnet.Invalid, "the password has fewer than %d characters; several words are easy to remember", MinPassword)
	}
	distinct := map[rune]bool{}
	for _, r := range p {
		distinct[r] = true
	}
	if len(distinct) < minDistinct {
		return tailnet.Errorf(tailnet.Invalid, "the password repeats a few characters; use at least %d different ones", minDistinct)
	}
	plain := simplify(p)
	if simplify(name) != "" && strings.ReplaceAll(plain, simplify(name), "") == "" || commonPasswords[plain] || isRun(plain) {
		return tailnet.Errorf(tailnet.Invalid, "this password is one that is tried first; choose another one")
	}
	return nil
}

// simplify is what people who guess make of a password: without case, spaces and the usual characters at its end.
func simplify(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) {
			return -1
		}
		return unicode.ToLower(r)
	}, s)
	return strings.TrimRight(s, "!?.1234567890")
}

// commonPasswords are, as simplify leaves them, what is tried first against a server such as this one.
var commonPasswords = func() map[string]bool {
	m := map[string]bool{"": true}
	for _, w := range strings.Fields(`password passw0rd passwordpassword administrator adminadmin adminadminadmin administratoradministrator
		letmeinplease letmein welcome welcomewelcome changeme changemenow changemeplease iloveyou iloveyousomuch skein skeinskein
		tailscale tailscaletailscale headscale wireguard correcthorsebatterystaple qwertyqwerty secretsecret passwort geheimgeheim
		defaultpassword temporarypassword testtesttest thisisapassword mypassword mypasswordis trustno trustnoone supersecret`) {
		m[w] = true
	}
	return m
}()

// isRun reports whether s goes along the alphabet or the rows of a keyboard.
func isRun(s string) bool {
	for _, row := range []string{"abcdefghijklmnopqrstuvwxyz", "qwertyuiopasdfghjklzxcvbnm", "qwertzuiopasdfghjklyxcvbnm", "azertyuiopqsdfghjklmwxcvbn", "01234567890123456789"} {
		if strings.Contains(row+row, s) {
			return true
		}
	}
	return false
}

// hashPassword is the password as it is stored, in the PHC string format.
func hashPassword(password string) string {
	salt := make([]byte, argonSalt)
	if _, err := rand.Read(salt); err != nil {
		panic("no randomness: " + err.Error())
	}
	return formatHash(argonMemory, argonTime, argonThreads, salt,
		argon2.IDKey([]byte(norm.NFC.String(password)), salt, argonTime, argonMemory, argonThreads, argonKey))
}

func formatHash(memory, time uint32, threads uint8, salt, key []byte) string {
	b64 := base64.RawStdEncoding
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, memory, time, threads, b64.EncodeToString(salt), b64.EncodeToString(key))
}

// verifyPassword reports whether password is the one that hash was made of. It takes as long as the hash's parameters say,
// whatever the answer; a hash that is not ours is never right.
func verifyPassword(hash, password string) bool {
	var version, memory, time uint32
	var threads uint8
	parts := strings.Split(hash, "$")
	if len(parts) != 6 || parts[0] != "" || parts[1] != "argon2id" {
		return false
	}
	if _, err := fmt.Sscanf(parts[2]+" "+parts[3], "v=%d m=%d,t=%d,p=%d", &version, &memory, &time, &threads); err != nil {
		return false
	}
	salt, err1 := base64.RawStdEncoding.DecodeString(parts[4])
	key, err2 := base64.RawStdEncoding.DecodeString(parts[5])
	if err1 != nil || err2 != nil || version != argon2.Version || memory > maxArgonMemory || time < 1 || time > maxArgonTime || threads < 1 ||
		len(salt) < 8 || len(key) < 16 || len(key) > 64 {
		return false
	}
	got := argon2.IDKey([]byte(norm.NFC.String(password)), salt, time, memory, threads, uint32(len(key))) //nolint:gosec // at most 64
	return subtle.ConstantTimeCompare(got, key) == 1
}

// dummyHash is what a password is checked against if there is nothing to check it against, so that the answer takes as long.
var dummyHash = formatHash(argonMemory, argonTime, argonThreads, make([]byte, argonSalt), make([]byte, argonKey))
