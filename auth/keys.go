package auth

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// Key is anything that lets somebody in: a key for nodes, or a credential for programs. All kinds share one space of ids, which are
// text. Exactly one field is set.
type Key struct {
	PreAuth    *tailnet.PreAuthKey
	Credential *tailnet.Credential
}

// PreAuthKeyID is the id of a pre-auth key as text: the part of the key that may be shown, or, for one of another make, its number.
func PreAuthKeyID(k *tailnet.PreAuthKey) string {
	if id, ok := strings.CutPrefix(k.Prefix, keyPrefix); ok && id != "" {
		return id
	}
	return strconv.FormatInt(int64(k.ID), 10)
}

// ID is the id of the key as text.
func (k Key) ID() string {
	if k.PreAuth != nil {
		return PreAuthKeyID(k.PreAuth)
	}
	return k.Credential.ID
}

// Scope is the scope that lets its bearer manage such keys; Read of it lists them.
func (k Key) Scope() string {
	if k.PreAuth != nil {
		return ScopeAuthKeys
	}
	return keyScope(k.Credential.Kind)
}

// Ended reports whether the key is of no use at now any more, whatever the reason.
func (k Key) Ended(now time.Time) bool {
	if k.PreAuth != nil {
		return k.PreAuth.Usable(now) != nil
	}
	return k.Credential.Ended(now) != nil
}

// Keys are all keys that p may see: pre-auth keys by number, then credentials by id.
func Keys(sn *state.Snapshot, p *Principal) (out []Key) {
	for _, k := range sn.PreAuthKeys() {
		out = append(out, Key{PreAuth: k})
	}
	for _, c := range sn.Credentials() {
		out = append(out, Key{Credential: c})
	}
	n := 0
	for _, k := range out {
		if p.Allow(Read(k.Scope())) == nil || k.Credential != nil && k.Credential.ID == p.Credential {
			out[n] = k
			n++
		}
	}
	return out[:n]
}

// FindKey is the key with this id, as p may see it: a credential can always see itself. The error is NotFound or Denied.
func FindKey(sn *state.Snapshot, p *Principal, id string) (Key, error) {
	if c := sn.Credential(id); c != nil {
		if p != nil && p.Credential == id {
			return Key{Credential: c}, nil
		}
		return Key{Credential: c}, p.Allow(Read(keyScope(c.Kind)))
	}
	for _, k := range sn.PreAuthKeys() {
		if PreAuthKeyID(k) == id {
			return Key{PreAuth: k}, p.Allow(Read(ScopeAuthKeys))
		}
	}
	return Key{}, noCredential(id)
}

// RevokeKey ends the key with this id for good, whatever its kind; it stays in the list. Revoking it again is no error.
func (a *Auth) RevokeKey(ctx context.Context, p *Principal, id string) error {
	if a.st.Snapshot().Credential(id) != nil {
		return a.RevokeCredential(ctx, p, id)
	}
	for _, k := range a.st.Snapshot().PreAuthKeys() {
		if PreAuthKeyID(k) == id {
			if err := p.Allow(ScopeAuthKeys); err != nil {
				return err
			}
			return a.RevokePreAuthKey(ctx, k.ID)
		}
	}
	return noCredential(id)
}

// RevokePreAuthKey ends a pre-auth key for good; nodes that joined with it stay.
func (a *Auth) RevokePreAuthKey(ctx context.Context, id tailnet.PreAuthKeyID) error {
	return a.st.Update(ctx, "pre-auth key revoked", func(tx *state.Tx) error {
		k := tx.PreAuthKey(id)
		if k == nil {
			return tailnet.Errorf(tailnet.NotFound, "there is no pre-auth key %d", id)
		}
		if k.Revoked {
			return nil
		}
		c := *k
		c.Revoked = true
		if c.Expires.IsZero() || c.Expires.After(tx.Now()) {
			c.Expires = tx.Now()
		}
		tx.PutPreAuthKey(&c)
		return nil
	})
}
