package auth

import (
	"context"
	"crypto/sha256"
	"strings"

	"golang.org/x/crypto/bcrypt"

	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// Pre-auth keys that headscale has made (since its version 0.28) were taken over as bcrypt hashes:
//
//	hskey-auth-PPPPPPPPPPPP-SSSS…   12 characters that may be shown, 64 that are hashed; either may have "-" in it
//
// bcrypt is slow on purpose, so nothing is computed for a key whose shown part is not known, one computation runs at a time, and
// never in the writer. The first node that joins with a key turns its hash into SHA-256, so that each is computed once.
const (
	foreignShown  = len(tailnet.ForeignPreAuthKey) + 12 // bytes of a key that may be shown
	foreignSecret = 64                                  // bytes of a key that may not
)

// foreignKey is the taken-over key whose secret this is, 0 if there is none. It waits for its turn to compute, but not beyond ctx.
func (a *Auth) foreignKey(ctx context.Context, secret string) (tailnet.PreAuthKeyID, error) {
	if len(secret) != foreignShown+1+foreignSecret || !strings.HasPrefix(secret, tailnet.ForeignPreAuthKey) || secret[foreignShown] != '-' {
		return 0, nil
	}
	for _, k := range a.st.Snapshot().PreAuthKeys() {
		if k.Prefix != secret[:foreignShown] || len(k.Bcrypt) == 0 {
			continue
		}
		select {
		case a.hashing <- struct{}{}:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
		err := bcrypt.CompareHashAndPassword(k.Bcrypt, []byte(secret[foreignShown+1:]))
		<-a.hashing
		if err == nil {
			return k.ID, nil
		}
	}
	return 0, nil
}

// preAuthKey is the key whose secret this is, or nil. foreign is what foreignKey has said about it; such a key is given the hash
// that the others have.
func preAuthKey(tx *state.Tx, secret string, foreign tailnet.PreAuthKeyID) *tailnet.PreAuthKey {
	hash := sha256.Sum256([]byte(secret))
	k := tx.PreAuthKeyByHash(hash)
	if k != nil || foreign == 0 {
		return k
	}
	if k = tx.PreAuthKey(foreign); k == nil || len(k.Bcrypt) == 0 {
		return nil
	}
	quick := *k
	quick.Hash, quick.Bcrypt = hash, nil
	tx.PutPreAuthKey(&quick)
	return &quick
}
