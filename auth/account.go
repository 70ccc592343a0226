package auth

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// AccountStore keeps accounts, the links that begin them, and web sessions. db.DB is the one in use. Of what is asked for and is not there
// it returns nil and no error.
type AccountStore interface {
	PutAccount(ctx context.Context, a *tailnet.Account) error // without passkeys
	SetPassword(ctx context.Context, id tailnet.ID, user tailnet.UserID, password string, at time.Time) error
	SignedIn(ctx context.Context, id tailnet.ID, user tailnet.UserID, at time.Time) error
	Account(ctx context.Context, id tailnet.ID, user tailnet.UserID) (*tailnet.Account, error)
	Accounts(ctx context.Context, id tailnet.ID) ([]*tailnet.Account, error)
	DeleteAccount(ctx context.Context, id tailnet.ID, user tailnet.UserID) error // with passkeys, links and sessions

	PutPasskey(ctx context.Context, id tailnet.ID, user tailnet.UserID, k *tailnet.Passkey) error
	DeletePasskey(ctx context.Context, id tailnet.ID, user tailnet.UserID, passkey string) (bool, error)

	PutAccountLink(ctx context.Context, l *tailnet.AccountLink) error
	AccountLink(ctx context.Context, id tailnet.ID, link string) (*tailnet.AccountLink, error)
	// UseAccountLink marks a link as used and reports whether it was not so before; a zero time makes it unused again.
	UseAccountLink(ctx context.Context, id tailnet.ID, link string, at time.Time) (bool, error)
	// DeleteAccountLinks removes the links for a user; for 0, those made because there was no administrator.
	DeleteAccountLinks(ctx context.Context, id tailnet.ID, user tailnet.UserID) error
	DeleteAccountLinksBefore(ctx context.Context, t time.Time) (int, error)

	PutWebSession(ctx context.Context, s *tailnet.WebSession) error
	TouchWebSession(ctx context.Context, id tailnet.ID, session string, seen time.Time) error
	WebSession(ctx context.Context, id tailnet.ID, session string) (*tailnet.WebSession, error)
	WebSessions(ctx context.Context, id tailnet.ID, user tailnet.UserID) ([]*tailnet.WebSession, error)
	DeleteWebSession(ctx context.Context, id tailnet.ID, session string) error
	DeleteWebSessions(ctx context.Context, id tailnet.ID, user tailnet.UserID, keep string) error
	DeleteWebSessionsBefore(ctx context.Context, expired, idle time.Time) (int, error)
}

// AccountsOptions is what an Accounts is made of. State, Store, ServerURL and Secret are required.
type AccountsOptions struct {
	State     *state.State
	Store     AccountStore
	Tailnet   tailnet.ID // 0: tailnet.DefaultID
	ServerURL string     // as people reach the server, without a slash at its end
	Secret    []byte     // the same at all servers of the tailnet: what is under way between two requests is sealed with it

	Leads func() bool      // reports whether this server, of several, removes what is old; nil: it does
	Now   func() time.Time // nil: time.Now
	Log   *slog.Logger     // nil: slog.Default
}

// LinkTTL is how long a one-time link may be used.
const LinkTTL = time.Hour

// Accounts are the people who sign in on the web pages with a password or a passkey, and the sessions of everybody who has signed in,
// by whatever way.
//
//	skein serve, skein admins create-link ──► link ──(once, within LinkTTL)──► password or passkey ──► sign in ──► session
//
// What a user may do there follows from the user's role.
type Accounts struct {
	o        AccountsOptions
	attempts *attempts
	hashing  chan struct{} // as many slots as passwords may be hashed at a time: each takes 19 MiB
	passkeys *relyingParty // nil: not possible under this address
	noKeys   error         // why passkeys is nil
}

// NewAccounts returns an Accounts.
func NewAccounts(o AccountsOptions) *Accounts {
	if o.Tailnet == 0 {
		o.Tailnet = tailnet.DefaultID
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	a := &Accounts{o: o, attempts: newAttempts(), hashing: make(chan struct{}, 2)}
	a.passkeys, a.noKeys = newRelyingParty(o.ServerURL)
	return a
}

// LinkRequest says for whom a one-time link is.
type LinkRequest struct {
	User tailnet.UserID // who gets another way to sign in; or, if 0:
	Name string         // of the user to make; empty: whoever uses the link chooses
	Role tailnet.Role   // of the user to make

	first bool
}

// CreateLink makes a one-time link and returns its address, which is not kept.
func (a *Accounts) CreateLink(ctx context.Context, r LinkRequest) (string, *tailnet.AccountLink, error) {
	now := a.o.Now()
	sn := a.o.State.Snapshot()
	switch {
	case r.User != 0 && sn.User(r.User) == nil:
		return "", nil, tailnet.Errorf(tailnet.NotFound, "there is no namespace with id %d", r.User)
	case r.User == 0 && r.Name != "":
		if err := tailnet.CheckUserName(r.Name); err != nil {
			return "", nil, err
		}
		if sn.UserByName(r.Name) != nil {
			return "", nil, tailnet.Errorf(tailnet.Conflict, "there is a namespace called %q already", r.Name)
		}
	}
	secret := randomText(32)
	l := &tailnet.AccountLink{
		ID: secretHash(secret), Tailnet: a.o.Tailnet, User: r.User, Name: r.Name, Role: r.Role, First: r.first, Created: now, Expires: now.Add(LinkTTL),
	}
	if err := a.o.Store.PutAccountLink(ctx, l); err != nil {
		return "", nil, fmt.Errorf("storing a one-time link: %w", err)
	}
	return a.o.ServerURL + "/setup/" + secret, l, nil
}

// FirstLink makes a link for the owner of the network if nobody can sign in as an administrator yet; otherwise the address is empty.
// Earlier links of the kind cease to work.
func (a *Accounts) FirstLink(ctx context.Context) (string, *tailnet.AccountLink, error) {
	admins, err := a.Admins(ctx)
	if err != nil || len(admins) > 0 {
		return "", nil, err
	}
	if err := a.o.Store.DeleteAccountLinks(ctx, a.o.Tailnet, 0); err != nil {
		return "", nil, fmt.Errorf("removing old one-time links: %w", err)
	}
	return a.CreateLink(ctx, LinkRequest{Role: tailnet.RoleOwner, first: true})
}

// secretHash is what is kept of a secret: it has 128 random bits and more.
func secretHash(secret string) string {
	h := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(h[:])
}

// Link is the link with this secret; a NotFound error if there is none, it has been used, or its time is over.
func (a *Accounts) Link(ctx context.Context, secret string) (*tailnet.AccountLink, error) {
	l, err := a.o.Store.AccountLink(ctx, a.o.Tailnet, secretHash(secret))
	if err != nil {
		return nil, fmt.Errorf("reading a one-time link: %w", err)
	}
	if l == nil || !l.Used.IsZero() || !a.o.Now().Before(l.Expires) || l.User != 0 && a.o.State.Snapshot().User(l.User) == nil {
		return nil, errNoLink
	}
	return l, nil
}

var errNoLink = tailnet.Errorf(tailnet.NotFound, "this link does not work any more: it has been used, or is older than %s", LinkTTL)

// LinkName is the name of the user that l is for, or will make; empty if whoever uses it chooses.
func (a *Accounts) LinkName(l *tailnet.AccountLink) string {
	if u := a.o.State.Snapshot().User(l.User); l.User != 0 && u != nil {
		return u.Name
	}
	return l.Name
}

// checkNewUser returns nil if l may make a user called name.
func (a *Accounts) checkNewUser(l *tailnet.AccountLink, name string) error {
	if l.User != 0 {
		return nil
	}
	if l.Name != "" && name != l.Name {
		return tailnet.Errorf(tailnet.Invalid, "this link is for %q", l.Name)
	}
	if err := tailnet.CheckUserName(name); err != nil {
		return err
	}
	if a.o.State.Snapshot().UserByName(name) != nil && !l.First {
		return tailnet.Errorf(tailnet.Conflict, "there is a namespace called %q already; choose another name", name)
	}
	return nil
}

// UseLink uses the link up and gives its user a password. name is heeded if the link makes a user. The first administrator may take over a
// namespace that exists.
func (a *Accounts) UseLink(ctx context.Context, secret, name, password string) (*tailnet.User, error) {
	l, err := a.Link(ctx, secret)
	if err != nil {
		return nil, err
	}
	if err := a.checkNewUser(l, name); err != nil {
		return nil, err
	}
	if l.User != 0 {
		name = a.LinkName(l)
	}
	if err := CheckPassword(name, password); err != nil {
		return nil, err
	}
	hash, err := a.hash(ctx, password)
	if err != nil {
		return nil, err
	}
	return a.useLink(ctx, l, name, hash, nil)
}

// useLink marks l as used, makes its user if need be, and stores what the user signs in with. It makes l usable again if that fails.
func (a *Accounts) useLink(ctx context.Context, l *tailnet.AccountLink, name, hash string, k *newPasskey) (u *tailnet.User, err error) {
	now := a.o.Now()
	first, err := a.o.Store.UseAccountLink(ctx, a.o.Tailnet, l.ID, now)
	if err != nil {
		return nil, fmt.Errorf("using a one-time link: %w", err)
	}
	if !first {
		return nil, errNoLink
	}
	defer func() {
		if err != nil {
			_, _ = a.o.Store.UseAccountLink(context.WithoutCancel(ctx), a.o.Tailnet, l.ID, time.Time{})
		}
	}()
	if u, err = a.linkUser(ctx, l, name); err != nil {
		return nil, err
	}
	acc, err := a.o.Store.Account(ctx, a.o.Tailnet, u.ID)
	if err != nil {
		return nil, fmt.Errorf("reading an account: %w", err)
	}
	if acc == nil {
		acc = &tailnet.Account{Tailnet: a.o.Tailnet, User: u.ID, Handle: newHandle(), Created: now}
		if k != nil {
			acc.Handle = k.handle
		}
	}
	if hash != "" {
		acc.Password, acc.PasswordSet = hash, now
	}
	if err := a.o.Store.PutAccount(ctx, acc); err != nil {
		return nil, fmt.Errorf("storing an account: %w", err)
	}
	if k != nil {
		if err := a.o.Store.PutPasskey(ctx, a.o.Tailnet, u.ID, k.Passkey); err != nil {
			return nil, err
		}
	}
	a.o.Log.Info("one-time link used", "user", u.Name, "role", u.Role)
	return u, nil
}

// linkUser is the user that l is for, made if need be.
func (a *Accounts) linkUser(ctx context.Context, l *tailnet.AccountLink, name string) (u *tailnet.User, err error) {
	if l.User != 0 {
		if u = a.o.State.Snapshot().User(l.User); u == nil {
			return nil, errNoLink
		}
		return u, nil
	}
	err = a.o.State.Update(ctx, "administrator created by a one-time link", func(tx *state.Tx) error {
		if u = tx.UserByName(name); u != nil && !l.First {
			return tailnet.Errorf(tailnet.Conflict, "there is a namespace called %q already; choose another name", name)
		}
		if u == nil {
			u = tx.NewUser(name)
		} else {
			c := *u
			u = &c
		}
		u.Role = l.Role
		return tx.PutUser(u)
	})
	return u, err
}

// errSignIn tells nobody whether the name exists.
var errSignIn = tailnet.Errorf(tailnet.Denied, "the name or the password is wrong")

// SignIn is the user with this name and password. The error is Denied if there is none, and a *WaitError after too many attempts. A name that
// does not exist takes as long as a wrong password.
func (a *Accounts) SignIn(ctx context.Context, name, password string, remote netip.Addr) (*tailnet.User, error) {
	name = strings.ToLower(strings.TrimSpace(name))
	if len(name) > 300 || len(password) > MaxPassword {
		name, password = "", ""
	}
	succeed, err := a.attempts.begin(a.o.Now(), remote, name)
	if err != nil {
		a.o.Log.Warn("too many attempts to sign in", "user", tailnet.CleanText(name), "remote", remote)
		return nil, err
	}
	u := a.o.State.Snapshot().UserByName(name)
	hash := ""
	if u != nil {
		acc, err := a.o.Store.Account(ctx, a.o.Tailnet, u.ID)
		if err != nil {
			return nil, fmt.Errorf("reading an account: %w", err)
		}
		if acc != nil {
			hash = acc.Password
		}
	}
	known := hash != ""
	if !known {
		hash = dummyHash
	}
	ok, err := a.verify(ctx, hash, password)
	if err != nil {
		return nil, err
	}
	if !ok || !known {
		a.o.Log.Info("sign-in refused", "user", tailnet.CleanText(name), "remote", remote)
		return nil, errSignIn
	}
	succeed()
	a.noteSignIn(ctx, u, "password", remote)
	return u, nil
}

func (a *Accounts) noteSignIn(ctx context.Context, u *tailnet.User, how string, remote netip.Addr) {
	a.o.Log.Info("signed in", "user", u.Name, "method", how, "remote", remote)
	if err := a.o.Store.SignedIn(ctx, a.o.Tailnet, u.ID, a.o.Now()); err != nil {
		a.o.Log.Warn("the time of a sign-in could not be stored", "user", u.Name, "err", err)
	}
}

// hash hashes a password when it is its turn.
func (a *Accounts) hash(ctx context.Context, password string) (string, error) {
	select {
	case a.hashing <- struct{}{}:
		defer func() { <-a.hashing }()
		return hashPassword(password), nil
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

func (a *Accounts) verify(ctx context.Context, hash, password string) (bool, error) {
	select {
	case a.hashing <- struct{}{}:
		defer func() { <-a.hashing }()
		return verifyPassword(hash, password), nil
	case <-ctx.Done():
		return false, ctx.Err()
	}
}

// ChangePassword gives a user another password, or a first one if old is empty and there is none. All other sessions of the user end but keep.
func (a *Accounts) ChangePassword(ctx context.Context, u *tailnet.User, old, password, keep string, remote netip.Addr) error {
	acc, err := a.o.Store.Account(ctx, a.o.Tailnet, u.ID)
	if err != nil {
		return fmt.Errorf("reading an account: %w", err)
	}
	if acc == nil {
		return errNoAccount
	}
	if acc.Password != "" {
		succeed, err := a.attempts.begin(a.o.Now(), remote, u.Name)
		if err != nil {
			return err
		}
		ok, err := a.verify(ctx, acc.Password, old)
		if err != nil {
			return err
		}
		if !ok {
			return tailnet.Errorf(tailnet.Denied, "the present password is wrong")
		}
		succeed()
	}
	if err := CheckPassword(u.Name, password); err != nil {
		return err
	}
	hash, err := a.hash(ctx, password)
	if err != nil {
		return err
	}
	if err := a.o.Store.SetPassword(ctx, a.o.Tailnet, u.ID, hash, a.o.Now()); err != nil {
		return fmt.Errorf("storing a password: %w", err)
	}
	a.o.Log.Info("password changed", "user", u.Name, "remote", remote)
	return a.EndSessions(ctx, u, keep)
}

var errNoAccount = tailnet.Errorf(tailnet.Denied, "you sign in with a provider, which keeps your password")

// Account is the user's account, nil if it has none.
func (a *Accounts) Account(ctx context.Context, u *tailnet.User) (*tailnet.Account, error) {
	acc, err := a.o.Store.Account(ctx, a.o.Tailnet, u.ID)
	if err != nil {
		return nil, fmt.Errorf("reading an account: %w", err)
	}
	return acc, nil
}

// Ways reports whether there is anybody who could sign in with a password, and with a passkey.
func (a *Accounts) Ways(ctx context.Context) (password, passkey bool, err error) {
	accs, err := a.o.Store.Accounts(ctx, a.o.Tailnet)
	if err != nil {
		return false, false, fmt.Errorf("reading the accounts: %w", err)
	}
	for _, acc := range accs {
		password = password || acc.Password != ""
		passkey = passkey || len(acc.Passkeys) > 0
	}
	return password, passkey && a.noKeys == nil, nil
}

// Admin is somebody who can sign in without a provider.
type Admin struct {
	User     *tailnet.User
	Account  *tailnet.Account
	Sessions int
}

// Admins are the users with an account that they can sign in with, by id.
func (a *Accounts) Admins(ctx context.Context) ([]*Admin, error) {
	accs, err := a.o.Store.Accounts(ctx, a.o.Tailnet)
	if err != nil {
		return nil, fmt.Errorf("reading the accounts: %w", err)
	}
	sn := a.o.State.Snapshot()
	var out []*Admin
	for _, acc := range accs {
		u := sn.User(acc.User)
		if u == nil || acc.Password == "" && len(acc.Passkeys) == 0 {
			continue
		}
		ss, err := a.Sessions(ctx, u)
		if err != nil {
			return nil, err
		}
		out = append(out, &Admin{User: u, Account: acc, Sessions: len(ss)})
	}
	return out, nil
}

// DeleteAccount takes from a user all ways to sign in without a provider, and ends its sessions. User and nodes stay. The error is NotFound
// if the user has no account.
func (a *Accounts) DeleteAccount(ctx context.Context, u *tailnet.User) error {
	acc, err := a.Account(ctx, u)
	if err != nil {
		return err
	}
	if acc == nil {
		return tailnet.Errorf(tailnet.NotFound, "%q has no account to sign in with", u.Name)
	}
	if err := a.o.Store.DeleteAccount(ctx, a.o.Tailnet, u.ID); err != nil {
		return fmt.Errorf("removing an account: %w", err)
	}
	a.o.Log.Info("account removed", "user", u.Name)
	return nil
}

// ResetAccount takes from a user all ways to sign in without a provider, ends its sessions, and returns a one-time link to begin anew.
func (a *Accounts) ResetAccount(ctx context.Context, u *tailnet.User) (string, *tailnet.AccountLink, error) {
	if err := a.DeleteAccount(ctx, u); err != nil {
		return "", nil, err
	}
	return a.CreateLink(ctx, LinkRequest{User: u.ID})
}

// Run removes links and sessions whose time is over, until ctx ends.
func (a *Accounts) Run(ctx context.Context) {
	tick := time.NewTicker(10 * time.Minute)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if a.o.Leads != nil && !a.o.Leads() {
				continue
			}
			now := a.o.Now()
			_, err1 := a.o.Store.DeleteAccountLinksBefore(ctx, now)
			_, err2 := a.o.Store.DeleteWebSessionsBefore(ctx, now, now.Add(-SessionIdle))
			for _, err := range []error{err1, err2} {
				if err != nil && ctx.Err() == nil {
					a.o.Log.Warn("old web sessions and links could not be removed", "err", err)
				}
			}
		}
	}
}

// secureOrigin is the origin of rawURL if browsers allow passkeys there.
func secureOrigin(rawURL string) (host, origin string, err error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return "", "", err
	}
	host = u.Hostname()
	if _, err := netip.ParseAddr(host); err == nil {
		return "", "", tailnet.Errorf(tailnet.Unavailable, "passkeys need a server_url with a name instead of an address")
	}
	if u.Scheme != "https" && host != "localhost" && !strings.HasSuffix(host, ".localhost") {
		return "", "", tailnet.Errorf(tailnet.Unavailable, "passkeys need a server_url with https")
	}
	return host, u.Scheme + "://" + u.Host, nil
}
