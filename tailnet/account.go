package tailnet

import (
	"strings"
	"time"
)

// maxUserName is in bytes; a mail address fits.
const maxUserName = 128

// CheckUserName returns nil if a user may be called name: lower-case letters, digits and ". _ - @", beginning and ending with a
// letter or digit, and not digits alone, because that would look like an id. Otherwise the Error says what would be right.
func CheckUserName(name string) error {
	const rule = "use a-z, 0-9 and . _ - @, with a letter or digit first and last"
	switch {
	case name == "":
		return Errorf(Invalid, "a namespace needs a name")
	case len(name) > maxUserName:
		return Errorf(Invalid, "the name %q is longer than %d characters", clip(name), maxUserName)
	case name == TaggedDevicesName:
		return Errorf(Invalid, "the name %q is what the owner of tagged nodes is shown as; take another one", name)
	case strings.ToLower(name) != name && CheckUserName(strings.ToLower(name)) == nil:
		return Errorf(Invalid, "%q is not a name for a namespace: write it in lower case, %s", name, strings.ToLower(name))
	}
	alnum := func(c byte) bool { return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' }
	digits := true
	for i := range len(name) {
		if !alnum(name[i]) && !strings.ContainsRune("._-@", rune(name[i])) {
			return Errorf(Invalid, "%q is not a name for a namespace: %s", clip(name), rule)
		}
		digits = digits && '0' <= name[i] && name[i] <= '9'
	}
	if !alnum(name[0]) || !alnum(name[len(name)-1]) {
		return Errorf(Invalid, "%q is not a name for a namespace: %s", name, rule)
	}
	if digits {
		return Errorf(Invalid, "%q is not a name for a namespace: digits alone would look like an id", name)
	}
	return nil
}

// clip shortens foreign text for an error message.
func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}

// Account is how a user signs in on the web pages without a provider: with a password, a passkey, or either. Like a Login it is
// not part of a snapshot. What the user may do there follows from its Role, not from having an account.
type Account struct {
	Tailnet     ID
	User        UserID
	Handle      []byte    // what passkeys know the user by: random, and the same for all of them
	Password    string    // argon2id, in the PHC string format; empty: none
	PasswordSet time.Time // when; zero: never
	Passkeys    []*Passkey
	Created     time.Time
	SignedIn    time.Time // last; zero: never
}

// Passkey is a public key whose private half a person's device or security key keeps.
type Passkey struct {
	ID      string // of the credential, base64url; unique in the tailnet
	Name    string // as the person calls it
	Data    []byte // JSON of the library that checks signatures
	Created time.Time
	Used    time.Time // last; zero: never
}

// AccountLink lets whoever holds its secret choose how to sign in, once.
type AccountLink struct {
	ID      string // hex SHA-256 of the secret
	Tailnet ID
	User    UserID // whose account; 0: the user is made when the link is used
	Name    string // of the user that is made; empty: whoever uses the link chooses
	Role    Role   // of the user that is made
	First   bool   // the server has made it because there was no administrator
	Created time.Time
	Expires time.Time
	Used    time.Time // zero: not yet
}

// WebSession is one browser in which a user has signed in.
type WebSession struct {
	ID       string // hex SHA-256 of the secret in the cookie
	Tailnet  ID
	User     UserID
	Method   string    // how the user signed in: "password", "passkey", "link", or what a provider is called
	NodesEnd time.Time // when nodes end that join by this sign-in, as the provider says; zero: by the tailnet's rule
	Remote   string    // address that it signed in from, for people to read
	Agent    string    // User-Agent, for people to read
	Created  time.Time
	Seen     time.Time // last request, to a minute
	Expires  time.Time
}
