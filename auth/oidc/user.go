package oidc

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// store makes or renews the user of an identity.
//
// The user is found by its ProviderID. On the first sign-in a user that an administrator has made with the same mail address
// beforehand becomes this one, if the provider says that the address is verified; else a new one is made. Afterwards mail
// address, display name, picture and groups follow the provider; the name and the role are the administrators' business. A
// user who was deleted comes back as a new one.
func (m *Manager) store(ctx context.Context, p *provider, id *Identity) (*tailnet.User, error) {
	var u *tailnet.User
	err := m.st.Update(ctx, "signed in by "+p.o.ID, func(tx *state.Tx) error {
		u = tx.UserByProviderID(id.Identifier)
		if u == nil && id.EmailVerified {
			if known := tx.UserByEmail(id.Email); known != nil && known.ProviderID == "" {
				u = known
			}
		}
		var c tailnet.User
		if u == nil {
			c = *tx.NewUser(freeName(tx, id))
			c.Status = tx.Tailnet().Settings.NewUserStatus()
		} else {
			c = *u
		}
		c.Provider, c.ProviderID = p.o.ID, id.Identifier
		c.Email, c.Picture, c.Groups = id.Email, id.Picture, id.Groups
		if id.Name != "" {
			c.DisplayName = id.Name
		}
		if u != nil && sameUser(u, &c) {
			return nil
		}
		u = &c
		return tx.PutUser(u)
	})
	return u, err
}

// sameUser reports whether nothing of what a provider says differs.
func sameUser(a, b *tailnet.User) bool {
	return a.Provider == b.Provider && a.ProviderID == b.ProviderID && a.Email == b.Email && a.DisplayName == b.DisplayName &&
		a.Picture == b.Picture && slices.Equal(a.Groups, b.Groups)
}

// freeName is a name for a new user: the first that is valid and free of the user name at the provider, the local part of the
// mail address, the display name, and "user", if need be with a number. It never has an "@": policies take such a name for a mail
// address, and people choose their user names themselves at many providers.
func freeName(tx *state.Tx, id *Identity) string {
	for _, s := range []string{id.Username, id.Email, id.Name, "user"} {
		local, _, _ := strings.Cut(s, "@")
		name := userName(local)
		if name == "" {
			continue
		}
		for i := 1; ; i++ {
			numbered := name
			if i > 1 || name == "user" {
				numbered = fmt.Sprintf("%s-%d", name, i)
			}
			if tx.UserByName(numbered) == nil {
				return numbered
			}
		}
	}
	panic("unreachable: \"user\" is a name")
}

// maxUserName leaves room for a number, and fits into a line of a list.
const maxUserName = 50

// userName is s as far as it can be a user's name: lower-case letters, digits, and ". _ -" in between; empty if little is left.
func userName(s string) string {
	var b strings.Builder
	for _, r := range strings.ToLower(s) {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', strings.ContainsRune("._-", r):
			b.WriteRune(r)
		case r == ' ', r == '+':
			b.WriteByte('-')
		}
		if b.Len() >= maxUserName {
			break
		}
	}
	name := strings.Trim(b.String(), "._-")
	if tailnet.CheckUserName(name) != nil {
		return ""
	}
	return name
}
