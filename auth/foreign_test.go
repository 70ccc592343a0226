package auth

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// foreign makes a key as headscale would have made it.
func (e *env) foreign(shown, secret string, edit func(*tailnet.PreAuthKey)) (string, tailnet.PreAuthKeyID) {
	e.t.Helper()
	hash, err := bcrypt.GenerateFromPassword([]byte(secret), bcrypt.MinCost)
	if err != nil {
		e.t.Fatal(err)
	}
	var id tailnet.PreAuthKeyID
	e.update(func(tx *state.Tx) error {
		k := tx.NewPreAuthKey()
		k.Prefix, k.Bcrypt, k.User = tailnet.ForeignPreAuthKey+shown, hash, e.junyao
		if edit != nil {
			edit(k)
		}
		tx.PutPreAuthKey(k)
		id = k.ID
		return nil
	})
	return tailnet.ForeignPreAuthKey + shown + "-" + secret, id
}

// Pre-auth keys that headscale has made are accepted, with everything they say, and slow only once.
func TestForeignPreAuthKey(t *testing.T) {
	e := newEnv(t, nil)
	secret, id := e.foreign("a-_d-f-_ijk-", strings.Repeat("-_2345678.abcdef", 4), func(k *tailnet.PreAuthKey) { k.Reusable = true })
	for i := range 2 {
		d := newDevice("laptop")
		d = d.authKey(secret)
		n := e.in(d)
		if n.User != e.junyao || n.PreAuthKey != id {
			t.Errorf("node: %+v", n)
		}
		k := e.st.Snapshot().PreAuthKey(id)
		if !k.Used || len(k.Bcrypt) != 0 || k.Hash == [32]byte{} {
			t.Errorf("after %d nodes the key is %+v", i+1, k)
		}
	}
	once, _ := e.foreign("oncennnnnnnn", strings.Repeat("s", 64), nil)
	tagged, _ := e.foreign("tagged_nnnnn", strings.Repeat("t", 64), func(k *tailnet.PreAuthKey) { k.User, k.Tags, k.Ephemeral = 0, []string{"tag:x"}, true })
	ended, _ := e.foreign("ended_nnnnnn", strings.Repeat("u", 64), func(k *tailnet.PreAuthKey) { k.Expires = e.now().Add(-time.Hour) })
	d := newDevice("once")
	d = d.authKey(once)
	e.in(d)
	d = newDevice("twice")
	d = d.authKey(once)
	e.denied(d, tailnet.Denied, "used once only")
	d = newDevice("tagged")
	d = d.authKey(tagged)
	if n := e.in(d); !n.Tagged() || !n.Ephemeral || n.User != 0 {
		t.Errorf("node: %+v", n)
	}
	d = newDevice("late")
	d = d.authKey(ended)
	e.denied(d, tailnet.Denied, "expired")
	for _, bad := range []string{
		secret[:len(secret)-1], secret + "x", secret[:len(secret)-1] + "X", strings.Replace(secret, "a-_d", "b-_d", 1), tailnet.ForeignPreAuthKey,
		strings.Repeat("s", 64), "oncennnnnnnn", "hskey-auth-oncennnnnnnn-" + strings.Repeat("S", 64), "", "hskey-auth-oncennnnnnnn_" + strings.Repeat("s", 64),
	} {
		if bad == "" {
			continue
		}
		d := newDevice("guest")
		d = d.authKey(bad)
		e.denied(d, tailnet.Denied, "not known")
	}
}

// Guesses wait for each other and give up with their request; nobody else waits for them.
func TestForeignKeyIsNoLever(t *testing.T) {
	e := newEnv(t, nil)
	secret, _ := e.foreign("shownnnnnnnn", strings.Repeat("s", 64), nil)
	e.a.hashing <- struct{}{} // a guess that takes for ever
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if _, err := e.a.foreignKey(short, secret); err == nil {
				t.Error("two hashes are computed at once")
			}
		})
	}
	ours, _ := e.key(KeyRequest{})
	d := newDevice("laptop")
	d = d.authKey(ours)
	e.in(d)
	wg.Wait()
	<-e.a.hashing
	d = newDevice("other")
	d = d.authKey(secret)
	e.in(d)
}
