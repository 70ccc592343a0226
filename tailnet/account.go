package tailnet

import (
	"strings"
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
