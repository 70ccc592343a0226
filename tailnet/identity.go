package tailnet

import (
	"net/url"
	"strings"
	"time"
)

// JoinProviderID is how a user of an OpenID Connect provider is known: issuer and subject with one slash between them. It
// is the same for an issuer with and without a slash at its end, and what headscale stores for ordinary subjects. Different
// subjects of one issuer never come out the same.
func JoinProviderID(issuer, subject string) string {
	issuer = strings.TrimRight(issuer, "/")
	if scheme, rest, ok := strings.Cut(issuer, "://"); ok {
		issuer = strings.ToLower(scheme) + "://" + rest
	}
	escaped := (&url.URL{Path: "/" + subject}).EscapedPath()[1:]
	for part := range strings.SplitSeq(escaped, "/") {
		if part == "" || part == "." || part == ".." { // would be cleaned away somewhere
			escaped = strings.NewReplacer("/", "%2F", ".", "%2E").Replace(escaped)
			break
		}
	}
	return issuer + "/" + escaped
}

// CleanProviderID takes out the empty path elements that old versions of headscale stored for issuers with a slash at their
// end.
func CleanProviderID(s string) string {
	scheme, rest, ok := strings.Cut(s, "://")
	if !ok {
		return s
	}
	parts := strings.FieldsFunc(rest, func(r rune) bool { return r == '/' })
	return strings.ToLower(scheme) + "://" + strings.Join(parts, "/")
}

// ProviderGrant is a provider's permission to ask it again about a user: a refresh token. Like a Login it is not part of a
// snapshot, and it goes with the user.
type ProviderGrant struct {
	Tailnet  ID
	User     UserID
	Provider string // User.Provider
	Token    []byte // encrypted
	Created  time.Time
	Checked  time.Time // when the provider was asked last
}
