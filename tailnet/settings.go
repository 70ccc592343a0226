package tailnet

import (
	"net/mail"
	"strings"
	"time"
)

// Settings are what administrators decide for a whole tailnet, beside its policy. The zero value is what a tailnet begins
// with. They are stored as one JSON object, so that a new field needs no migration: its zero value must be what was so
// before there was the field. Settings are comparable, and must remain so.
type Settings struct {
	// DeviceApproval: a new node takes no part until an administrator has approved it, unless it brings a pre-auth key that
	// says otherwise or an administrator registers it. Nodes that are in stay in when it is switched on, and those that wait go
	// on waiting when it is switched off.
	DeviceApproval bool `json:"deviceApproval,omitempty"`
	// UserApproval: a user who signs in for the first time is a UserWaiting.
	UserApproval bool `json:"userApproval,omitempty"`
	// KeyDuration is how long the key of a node lives from the time it logs in. Zero: as the configuration says (node.expiry);
	// KeyForever: it does not end.
	KeyDuration time.Duration `json:"keyDuration,omitempty"`
	// DNS is what was set about names; nil: everything is as the configuration says.
	DNS *DNS `json:"dns,omitempty"`
	// Contacts are whom people turn to.
	Contacts Contacts `json:"contacts,omitzero"`
}

// Contacts are mail addresses of people behind the tailnet; empty ones are not known.
type Contacts struct {
	Account  string `json:"account,omitempty"`  // whoever answers for the tailnet
	Support  string `json:"support,omitempty"`  // whoever helps its users: shown on the web pages
	Security string `json:"security,omitempty"` // whoever is told of weaknesses
}

// maxMail is the longest address that mail can be sent to (RFC 5321, section 4.5.3.1.3).
const maxMail = 254

// Check returns nil or an Invalid error that says which address is none.
func (c Contacts) Check() error {
	for _, one := range []struct{ kind, addr string }{{"account", c.Account}, {"support", c.Support}, {"security", c.Security}} {
		if one.addr == "" {
			continue
		}
		a, err := mail.ParseAddress(one.addr)
		if err != nil || a.Address != one.addr || len(one.addr) > maxMail || strings.ContainsAny(one.addr, " \"<>") {
			return Errorf(Invalid, "the %s contact %q is not a mail address such as ops@example.com", one.kind, CleanText(one.addr))
		}
	}
	return nil
}

// KeyForever is the KeyDuration of keys that do not end.
const KeyForever time.Duration = -1

// Bounds of a KeyDuration.
const (
	MinKeyDuration = time.Minute
	MaxKeyDuration = 10 * 366 * 24 * time.Hour
)

// Check returns nil or an Invalid error that says which setting is wrong.
func (s Settings) Check() error {
	if d := s.KeyDuration; d != 0 && d != KeyForever && (d < MinKeyDuration || d > MaxKeyDuration) {
		return Errorf(Invalid, "the key duration %s is not between a minute and ten years", d)
	}
	return s.Contacts.Check()
}

// NewUserStatus is the status of a user who signs in for the first time.
func (s Settings) NewUserStatus() UserStatus {
	if s.UserApproval {
		return UserWaiting
	}
	return UserActive
}

// UserStatus says whether a user takes part. The nodes of one who does not are cut off from all others, but stay what they are.
type UserStatus string

// The statuses of a user.
const (
	UserActive    UserStatus = ""               // the zero value
	UserWaiting   UserStatus = "needs-approval" // signed in, and no administrator has approved that yet
	UserSuspended UserStatus = "suspended"      // by an administrator
)

// MayJoin returns nil if nodes may join as u's, or else an Error for the person who tries. Nodes of a user who waits may join,
// and wait as well.
func (u *User) MayJoin() error {
	if u.Status == UserSuspended {
		return Errorf(Denied, "the account %s is suspended; ask an administrator", u.Name)
	}
	return nil
}
