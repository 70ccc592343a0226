package tailnet

import (
	"maps"
	"slices"
	"time"
)

// CredentialKind says what a Credential is.
type CredentialKind string

// The kinds of credentials.
const (
	APIKey            CredentialKind = "api"       // its secret is sent with each request
	OAuthClient       CredentialKind = "client"    // its secret buys access tokens
	FederatedIdentity CredentialKind = "federated" // a token of another issuer buys access tokens; there is no secret
)

// How the secret of a Credential is kept.
const (
	HashSHA256 = "sha256" // of the whole secret, which has 128 random bits and more
	HashBcrypt = "bcrypt" // of what follows the id in the secret; keys that were made by headscale
	HashArgon2 = "argon2" // of what follows the id in the secret, in the text form $argon2id$v=…; clients made by headscale
)

// Credential lets a program act over HTTP. Its id is part of its secret and may be shown; the secret is not kept.
type Credential struct {
	ID          string // never empty, unique in the tailnet, never used again
	Kind        CredentialKind
	HashKind    string   // empty: no secret (FederatedIdentity)
	Hash        []byte   // as HashKind says
	User        UserID   // for whom it acts; 0: for the server's administrator
	Scopes      []string // what it may do at the most, sorted; package auth knows the words
	Tags        []string // that it may give, if it has tag-limited scopes; sorted
	Description string   // free text, may be empty
	Created     time.Time
	Expires     time.Time // zero: never
	Revoked     time.Time // zero: it is not

	// What a token must say that is exchanged for an access token (FederatedIdentity).
	Issuer   string            // URL, without a slash at its end
	Subject  string            // "*" stands for any text
	Audience string            // empty: the credential's own
	Claims   map[string]string // further claims, by name; "*" stands for any text
}

// Clone returns a copy that may be changed. Slices and the map are shared: replace them.
func (c *Credential) Clone() *Credential {
	n := *c
	return &n
}

// Equal reports whether both say the same.
func (c *Credential) Equal(o *Credential) bool {
	return c.ID == o.ID && c.Kind == o.Kind && c.HashKind == o.HashKind && slices.Equal(c.Hash, o.Hash) && c.User == o.User &&
		slices.Equal(c.Scopes, o.Scopes) && slices.Equal(c.Tags, o.Tags) && c.Description == o.Description &&
		c.Created.Equal(o.Created) && c.Expires.Equal(o.Expires) && c.Revoked.Equal(o.Revoked) &&
		c.Issuer == o.Issuer && c.Subject == o.Subject && c.Audience == o.Audience && maps.Equal(c.Claims, o.Claims)
}

// Ended returns nil if the credential may be used at now, or else an Error that says why not.
func (c *Credential) Ended(now time.Time) error {
	switch {
	case !c.Revoked.IsZero():
		return Errorf(Unauthenticated, "this %s has been revoked", c.Kind.Noun())
	case !c.Expires.IsZero() && !c.Expires.After(now):
		return Errorf(Unauthenticated, "this %s expired at %s", c.Kind.Noun(), c.Expires.UTC().Format(time.RFC3339))
	}
	return nil
}

// Noun is what people call such a credential.
func (k CredentialKind) Noun() string {
	switch k {
	case APIKey:
		return "API key"
	case OAuthClient:
		return "OAuth client"
	case FederatedIdentity:
		return "federated identity"
	}
	return "credential"
}

// AccessToken is what an OAuthClient or a FederatedIdentity has got for a while. It is not part of a snapshot.
type AccessToken struct {
	Hash       [32]byte // SHA-256 of the token
	Tailnet    ID
	Credential string   // that it was made for; with that it ends
	Scopes     []string // of those of the credential
	Tags       []string // of those of the credential
	Created    time.Time
	Expires    time.Time
}
