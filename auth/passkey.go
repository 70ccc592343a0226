package auth

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/go-webauthn/webauthn/protocol"
	"github.com/go-webauthn/webauthn/webauthn"

	"github.com/skein-vpn/skein/tailnet"
)

// Passkeys. A ceremony has two requests: Begin… returns the options for the browser's navigator.credentials and a state, and Finish… takes what the
// browser's device has signed, and that state. Between them nothing is kept here: the state is sealed, and bound to the browser and to
// what it was made for. A challenge is good once at each server.

const (
	passkeyTTL  = 5 * time.Minute // from Begin to Finish
	maxPasskeys = 20              // of one user
)

// relyingParty is what WebAuthn calls a server that checks passkeys.
type relyingParty struct {
	w *webauthn.WebAuthn

	mu   sync.Mutex
	used map[string]time.Time // guarded by mu: challenges that were answered, and when they end anyway
}

func newRelyingParty(serverURL string) (*relyingParty, error) {
	host, origin, err := secureOrigin(serverURL)
	if err != nil {
		return nil, err
	}
	w, err := webauthn.New(&webauthn.Config{
		RPID: host, RPDisplayName: "Skein", RPOrigins: []string{origin}, AttestationPreference: protocol.PreferNoAttestation,
		AuthenticatorSelection: protocol.AuthenticatorSelection{
			ResidentKey: protocol.ResidentKeyRequirementRequired, RequireResidentKey: protocol.ResidentKeyRequired(),
			UserVerification: protocol.VerificationRequired, // the passkey is the only factor
		},
	})
	if err != nil {
		return nil, tailnet.Errorf(tailnet.Unavailable, "passkeys are not possible under this server_url: %w", err)
	}
	return &relyingParty{w: w, used: map[string]time.Time{}}, nil
}

// PasskeysError is nil if passkeys can be used under the server's address, or else an Error that says why not.
func (a *Accounts) PasskeysError() error { return a.noKeys }

// Ceremony is the first half of what is done with a passkey.
type Ceremony struct {
	Options any    `json:"options"` // for the browser, as JSON
	State   string `json:"state"`   // comes back with its answer
}

// keyHolder is a user as WebAuthn knows it.
type keyHolder struct {
	user   *tailnet.User // nil: it is not made yet
	name   string
	handle []byte
	keys   []*tailnet.Passkey
	creds  []webauthn.Credential // of keys
}

func (h *keyHolder) WebAuthnID() []byte          { return h.handle }
func (h *keyHolder) WebAuthnName() string        { return h.name }
func (h *keyHolder) WebAuthnDisplayName() string { return h.name }
func (h *keyHolder) WebAuthnCredentials() []webauthn.Credential {
	return h.creds
}

// newHolder is u with the passkeys of acc; either may be nil.
func newHolder(u *tailnet.User, name string, acc *tailnet.Account) (*keyHolder, error) {
	h := &keyHolder{user: u, name: name}
	if acc == nil {
		h.handle = newHandle()
		return h, nil
	}
	h.handle, h.keys = acc.Handle, acc.Passkeys
	for _, k := range h.keys {
		var c webauthn.Credential
		if err := json.Unmarshal(k.Data, &c); err != nil {
			return nil, fmt.Errorf("the stored passkey %q of %s cannot be read: %w", k.Name, name, err)
		}
		h.creds = append(h.creds, c)
	}
	return h, nil
}

// newHandle is a tailnet.Account.Handle.
func newHandle() []byte {
	b := make([]byte, 32)
	if _, err := rand.Read(b); err != nil {
		panic("no randomness: " + err.Error())
	}
	return b
}

// sealed is what goes through the browser.
type sealed struct {
	Session webauthn.SessionData
	Ends    time.Time
}

func (a *Accounts) aead() cipher.AEAD {
	k := sha256.Sum256(append([]byte("passkey ceremonies\x00"), a.o.Secret...))
	block, err := aes.NewCipher(k[:])
	if err != nil {
		panic(err) // the key has the right length
	}
	g, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic(err)
	}
	return g
}

// seal packs a session so that only purpose can unpack it.
func (a *Accounts) seal(s *webauthn.SessionData, purpose string) (string, error) {
	b, err := json.Marshal(sealed{*s, a.o.Now().Add(passkeyTTL)})
	if err != nil {
		return "", err
	}
	return base64.RawURLEncoding.EncodeToString(a.aead().Seal(nil, nil, b, []byte(purpose))), nil
}

var errCeremony = tailnet.Errorf(tailnet.Invalid, "this took too long, or was begun elsewhere; try again")

func (a *Accounts) unseal(state, purpose string) (*webauthn.SessionData, error) {
	b, err := base64.RawURLEncoding.DecodeString(state)
	if err != nil {
		return nil, errCeremony
	}
	if b, err = a.aead().Open(nil, nil, b, []byte(purpose)); err != nil {
		return nil, errCeremony
	}
	var s sealed
	if err := json.Unmarshal(b, &s); err != nil || !a.o.Now().Before(s.Ends) {
		return nil, errCeremony
	}
	return &s.Session, nil
}

// once reports whether challenge was not answered before.
func (p *relyingParty) once(challenge string, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c, end := range p.used {
		if now.After(end) {
			delete(p.used, c)
		}
	}
	if _, again := p.used[challenge]; again {
		return false
	}
	p.used[challenge] = now.Add(passkeyTTL)
	return true
}

// BeginPasskeySignIn begins a sign-in in the browser that browser identifies.
func (a *Accounts) BeginPasskeySignIn(browser string) (*Ceremony, error) {
	if a.passkeys == nil {
		return nil, a.noKeys
	}
	opts, s, err := a.passkeys.w.BeginDiscoverableLogin(webauthn.WithUserVerification(protocol.VerificationRequired))
	if err != nil {
		return nil, fmt.Errorf("beginning a sign-in with a passkey: %w", err)
	}
	return a.ceremony(opts, s, "sign in\x00"+browser)
}

func (a *Accounts) ceremony(opts any, s *webauthn.SessionData, purpose string) (*Ceremony, error) {
	state, err := a.seal(s, purpose)
	if err != nil {
		return nil, fmt.Errorf("beginning with a passkey: %w", err)
	}
	return &Ceremony{Options: opts, State: state}, nil
}

var errPasskey = tailnet.Errorf(tailnet.Denied, "this passkey is not known here, or its signature is wrong")

// FinishPasskeySignIn is the user whose passkey has signed. Its errors are those of SignIn, and Invalid.
func (a *Accounts) FinishPasskeySignIn(ctx context.Context, browser, state string, response []byte, remote netip.Addr) (*tailnet.User, error) {
	if a.passkeys == nil {
		return nil, a.noKeys
	}
	succeed, err := a.attempts.begin(a.o.Now(), remote, "")
	if err != nil {
		return nil, err
	}
	s, err := a.unseal(state, "sign in\x00"+browser)
	if err != nil {
		return nil, err
	}
	parsed, err := protocol.ParseCredentialRequestResponseBytes(response)
	if err != nil {
		return nil, tailnet.Errorf(tailnet.Invalid, "what the browser sent is not the answer of a passkey")
	}
	var fault error // of ours
	who, cred, err := a.passkeys.w.ValidatePasskeyLogin(func(_, handle []byte) (webauthn.User, error) {
		h, err := a.holder(ctx, handle)
		if h == nil {
			fault = err
			return nil, errPasskey
		}
		return h, nil
	}, *s, parsed)
	switch {
	case fault != nil:
		return nil, fault
	case err != nil || !a.passkeys.once(s.Challenge, a.o.Now()):
		a.o.Log.Info("sign-in with a passkey refused", "remote", remote, "err", explainWebAuthn(err))
		return nil, errPasskey
	}
	h := who.(*keyHolder)
	succeed()
	a.updatePasskey(ctx, h, cred)
	a.noteSignIn(ctx, h.user, "passkey", remote)
	return h.user, nil
}

// explainWebAuthn is what the library keeps out of the error's sentence.
func explainWebAuthn(err error) any {
	var pe *protocol.Error
	if errors.As(err, &pe) {
		return pe.Details + " " + pe.DevInfo
	}
	return err
}

// holder is the user with this handle; nil if there is none.
func (a *Accounts) holder(ctx context.Context, handle []byte) (*keyHolder, error) {
	accs, err := a.o.Store.Accounts(ctx, a.o.Tailnet)
	if err != nil {
		return nil, fmt.Errorf("reading the accounts: %w", err)
	}
	sn := a.o.State.Snapshot()
	for _, acc := range accs {
		u := sn.User(acc.User)
		if u != nil && subtle.ConstantTimeCompare(acc.Handle, handle) == 1 {
			return newHolder(u, u.Name, acc)
		}
	}
	return nil, nil
}

// updatePasskey stores the signature counter of a passkey and when it was used.
func (a *Accounts) updatePasskey(ctx context.Context, h *keyHolder, cred *webauthn.Credential) {
	for i, k := range h.keys {
		if string(h.creds[i].ID) != string(cred.ID) {
			continue
		}
		if cred.Authenticator.CloneWarning {
			a.o.Log.Warn("a passkey counts backwards: there may be a copy of it", "user", h.name, "passkey", k.Name)
		}
		b, err := json.Marshal(cred)
		if err == nil {
			c := *k
			c.Data, c.Used = b, a.o.Now()
			err = a.o.Store.PutPasskey(ctx, a.o.Tailnet, h.user.ID, &c)
		}
		if err != nil {
			a.o.Log.Warn("the use of a passkey could not be stored", "user", h.name, "err", err)
		}
	}
}

// BeginAddPasskey begins to add a passkey to the account of u.
func (a *Accounts) BeginAddPasskey(ctx context.Context, browser string, u *tailnet.User) (*Ceremony, error) {
	acc, err := a.Account(ctx, u)
	if err != nil {
		return nil, err
	}
	switch {
	case acc == nil:
		return nil, tailnet.Errorf(tailnet.Denied, "you sign in with a provider; passkeys are for local accounts")
	case len(acc.Passkeys) >= maxPasskeys:
		return nil, tailnet.Errorf(tailnet.Exhausted, "there are %d passkeys already; remove one first", maxPasskeys)
	}
	return a.beginRegistration(browser+"\x00add\x00"+u.ID.String(), u, u.Name, acc)
}

func (a *Accounts) beginRegistration(purpose string, u *tailnet.User, name string, acc *tailnet.Account) (*Ceremony, error) {
	if a.passkeys == nil {
		return nil, a.noKeys
	}
	h, err := newHolder(u, name, acc)
	if err != nil {
		return nil, err
	}
	opts, s, err := a.passkeys.w.BeginRegistration(h, webauthn.WithExclusions(webauthn.Credentials(h.WebAuthnCredentials()).CredentialDescriptors()))
	if err != nil {
		return nil, fmt.Errorf("beginning to make a passkey: %w", err)
	}
	return a.ceremony(opts, s, purpose)
}

// newPasskey is a passkey that was made just now, and the handle under which the device has stored it.
type newPasskey struct {
	*tailnet.Passkey
	handle []byte
}

// finishRegistration is the new passkey.
func (a *Accounts) finishRegistration(purpose, state string, response []byte, u *tailnet.User, name, keyName string, acc *tailnet.Account) (*newPasskey, error) {
	if a.passkeys == nil {
		return nil, a.noKeys
	}
	s, err := a.unseal(state, purpose)
	if err != nil {
		return nil, err
	}
	parsed, err := protocol.ParseCredentialCreationResponseBytes(response)
	if err != nil {
		return nil, tailnet.Errorf(tailnet.Invalid, "what the browser sent is not a new passkey")
	}
	h, err := newHolder(u, name, acc)
	if err != nil {
		return nil, err
	}
	h.handle = s.UserID
	cred, err := a.passkeys.w.CreateCredential(h, *s, parsed)
	now := a.o.Now()
	if err != nil || !a.passkeys.once(s.Challenge, now) {
		a.o.Log.Info("new passkey refused", "user", name, "err", explainWebAuthn(err))
		return nil, tailnet.Errorf(tailnet.Invalid, "the new passkey could not be verified; try again")
	}
	data, err := json.Marshal(cred)
	if err != nil {
		return nil, err
	}
	if keyName = tailnet.CleanText(keyName); keyName == "" {
		keyName = "Passkey of " + now.UTC().Format("2 January 2006")
	}
	k := &tailnet.Passkey{ID: base64.RawURLEncoding.EncodeToString(cred.ID), Name: keyName, Data: data, Created: now}
	return &newPasskey{k, h.handle}, nil
}

// FinishAddPasskey adds the passkey that the browser's device has made. keyName may be empty.
func (a *Accounts) FinishAddPasskey(ctx context.Context, browser string, u *tailnet.User, state string, response []byte, keyName string) error {
	acc, err := a.Account(ctx, u)
	if err != nil {
		return err
	}
	if acc == nil {
		return errNoAccount
	}
	k, err := a.finishRegistration(browser+"\x00add\x00"+u.ID.String(), state, response, u, u.Name, keyName, acc)
	if err != nil {
		return err
	}
	if err := a.o.Store.PutPasskey(ctx, a.o.Tailnet, u.ID, k.Passkey); err != nil {
		return err
	}
	a.o.Log.Info("passkey added", "user", u.Name, "passkey", k.Name)
	return nil
}

// RemovePasskey removes a passkey of u. The error is Conflict if u could not sign in any more, and NotFound if there is no such passkey.
func (a *Accounts) RemovePasskey(ctx context.Context, u *tailnet.User, id string) error {
	acc, err := a.Account(ctx, u)
	if err != nil {
		return err
	}
	if acc != nil && acc.Password == "" && len(acc.Passkeys) == 1 && acc.Passkeys[0].ID == id {
		return tailnet.Errorf(tailnet.Conflict, "this is your only way to sign in; set a password or add another passkey first")
	}
	found, err := a.o.Store.DeletePasskey(ctx, a.o.Tailnet, u.ID, id)
	if err != nil {
		return fmt.Errorf("removing a passkey: %w", err)
	}
	if !found {
		return tailnet.Errorf(tailnet.NotFound, "this passkey is gone already")
	}
	a.o.Log.Info("passkey removed", "user", u.Name)
	return nil
}

// BeginLinkPasskey begins to use a one-time link with a passkey instead of a password.
func (a *Accounts) BeginLinkPasskey(ctx context.Context, browser, secret, name string) (*Ceremony, error) {
	_, u, name, acc, err := a.linkHolder(ctx, secret, name)
	if err != nil {
		return nil, err
	}
	return a.beginRegistration(browser+"\x00link\x00"+secretHash(secret)+"\x00"+name, u, name, acc)
}

// FinishLinkPasskey uses the link up and gives its user the passkey.
func (a *Accounts) FinishLinkPasskey(ctx context.Context, browser, secret, name, state string, response []byte) (*tailnet.User, error) {
	l, u, name, acc, err := a.linkHolder(ctx, secret, name)
	if err != nil {
		return nil, err
	}
	k, err := a.finishRegistration(browser+"\x00link\x00"+secretHash(secret)+"\x00"+name, state, response, u, name, "", acc)
	if err != nil {
		return nil, err
	}
	return a.useLink(ctx, l, name, "", k)
}

// linkHolder is whom the link is for: nil and the name if the user is to be made.
func (a *Accounts) linkHolder(ctx context.Context, secret, name string) (l *tailnet.AccountLink, u *tailnet.User, _ string, acc *tailnet.Account, err error) {
	if l, err = a.Link(ctx, secret); err != nil {
		return nil, nil, "", nil, err
	}
	if err := a.checkNewUser(l, name); err != nil {
		return nil, nil, "", nil, err
	}
	if l.User != 0 {
		if u = a.o.State.Snapshot().User(l.User); u == nil {
			return nil, nil, "", nil, errNoLink
		}
		name = u.Name
		if acc, err = a.Account(ctx, u); err != nil {
			return nil, nil, "", nil, err
		}
	}
	return l, u, name, acc, nil
}
