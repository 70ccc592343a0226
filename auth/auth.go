// Package auth decides who may join and who may act.
//
// # How a node joins
//
//	RegisterRequest ──► Register ──┬─ its node key is known ───────────► it is in (or its key has ended: make a new one)
//	                               ├─ it brings a pre-auth key ────────► checked, used up, it is in
//	                               └─ neither: a pending Login is kept ► AuthURL … a person … CompleteLogin ► it is in
//
// A Login is kept in the store until somebody completes it, so that a restart of the server loses none. The client's
// second request waits for its node key to appear in a snapshot: that is how it comes up by itself.
//
// # How an SSH session is confirmed
//
// The node at which a session wants to begin asks, because a rule of the policy says "check" (SSH). If nobody has confirmed
// such a session lately, an SSHCheck is kept and the node told to ask again about it; that second question waits until
// a person decides (ApproveSSH, DenySSH), here or at another server on the same store.
//
// # Who may act
//
// access.go decides what anybody may do; apikey.go and oauth.go say who sends a request.
//
// A machine that joins again keeps its node (id, addresses, name) if the owner is the same, and gets a second one if not.
// The machine key, proven by Noise, is what makes it the same machine; an old node key alone proves nothing.
package auth

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"math/big"
	"slices"
	"strings"
	"sync"
	"time"

	"tailscale.com/types/key"

	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// Store keeps pending logins. db.DB is the one in use.
type Store interface {
	// PutLogin stores l, in place of one with the same id.
	PutLogin(ctx context.Context, l *tailnet.Login) error
	// Login is the login with this id; a NotFound error if there is none.
	Login(ctx context.Context, id tailnet.ID, login string) (*tailnet.Login, error)
	// LoginByNodeKey is the login that would register this key, or nil.
	LoginByNodeKey(ctx context.Context, id tailnet.ID, k key.NodePublic) (*tailnet.Login, error)
	// Logins are all logins, oldest first.
	Logins(ctx context.Context, id tailnet.ID) ([]*tailnet.Login, error)
	// DeleteLogin removes a login; it is not an error if there is none.
	DeleteLogin(ctx context.Context, id tailnet.ID, login string) error
	// DeleteLoginsBefore removes logins made before t and returns how many those were.
	DeleteLoginsBefore(ctx context.Context, t time.Time) (int, error)
	// CountLogins is the number of logins.
	CountLogins(ctx context.Context, id tailnet.ID) (int, error)

	SSHStore
	CredentialStore
	AuditStore
}

// Options is what an Auth is made of. State and Store are required.
type Options struct {
	State      *state.State
	Store      Store
	Tailnet    tailnet.ID    // 0: tailnet.DefaultID
	NodeExpiry time.Duration // how long a login lasts; 0: for ever
	LoginTTL   time.Duration // how long a login may wait for a person; 0: DefaultLoginTTL
	MaxLogins  int           // pending at once; 0: DefaultMaxLogins
	ServerURL  string        // as people reach the server, without a slash at its end: where SSH sessions are sent to

	SSHCheckTTL time.Duration // how long an SSH session may wait for a person; 0: DefaultSSHCheckTTL

	// Decided is told when somebody has decided about an SSH check here; other servers LookAgain then. It must be quick. nil: nobody
	// is told.
	Decided func(ctx context.Context)

	Leads func() bool // reports whether this server, of several, removes what is old; nil: it does

	Verifier TokenVerifier // nil: tokens of other issuers are not exchanged

	Now func() time.Time // nil: time.Now
	Log *slog.Logger     // nil: slog.Default
}

const (
	DefaultLoginTTL  = 24 * time.Hour
	DefaultMaxLogins = 1000
)

// Auth makes the decisions for one tailnet.
type Auth struct {
	o   Options
	st  *state.State
	log *slog.Logger

	pending sync.Mutex // held while a login is made
	uses    uses
	slow    slowHashes

	sshMu   sync.Mutex // held while an SSH check is made, so that two questions at once make one
	wakeMu  sync.Mutex
	hashing chan struct{} // holds one token while a slow hash is computed
	decided chan struct{} // guarded by wakeMu: closed, and made anew, when somebody decides about an SSH check
}

// New returns an Auth.
func New(o Options) *Auth {
	if o.Tailnet == 0 {
		o.Tailnet = tailnet.DefaultID
	}
	if o.LoginTTL == 0 {
		o.LoginTTL = DefaultLoginTTL
	}
	if o.MaxLogins == 0 {
		o.MaxLogins = DefaultMaxLogins
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Decided == nil {
		o.Decided = func(context.Context) {}
	}
	if o.Leads == nil {
		o.Leads = func() bool { return true }
	}
	if o.SSHCheckTTL == 0 {
		o.SSHCheckTTL = DefaultSSHCheckTTL
	}
	return &Auth{o: o, st: o.State, log: o.Log, hashing: make(chan struct{}, 1), decided: make(chan struct{})}
}

// KeyRequest says what a new pre-auth key may do. Either User or Tags must be set.
type KeyRequest struct {
	User        tailnet.UserID
	Tags        []string
	Reusable    bool
	Ephemeral   bool
	Preapproved bool          // its nodes need no approval (tailnet.Settings.DeviceApproval)
	Description string        // free text, may be empty
	KeyDuration time.Duration // how long the keys of its nodes live, as tailnet.Settings.KeyDuration; 0: as that says
	Expires     time.Time     // zero: never
}

// keyPrefix begins every pre-auth key; secret scanners know the family.
const keyPrefix = "tskey-auth-"

// CreatePreAuthKey makes a pre-auth key. The secret is returned this once and not kept.
func (a *Auth) CreatePreAuthKey(ctx context.Context, r KeyRequest) (secret string, k *tailnet.PreAuthKey, err error) {
	if r.User == 0 && len(r.Tags) == 0 {
		return "", nil, tailnet.Errorf(tailnet.Invalid, "a key needs a namespace or tags to give to its nodes")
	}
	if err := (tailnet.Settings{KeyDuration: r.KeyDuration}).Check(); err != nil {
		return "", nil, err
	}
	for _, t := range r.Tags {
		if err := tailnet.CheckTag(t); err != nil {
			return "", nil, err
		}
	}
	if err := checkDescription(r.Description); err != nil {
		return "", nil, err
	}
	shown := randomText(12)
	secret = keyPrefix + shown + "-" + randomText(40)
	err = a.st.Update(ctx, "pre-auth key created", func(tx *state.Tx) error {
		if !r.Expires.IsZero() && !r.Expires.After(tx.Now()) {
			return tailnet.Errorf(tailnet.Invalid, "the expiration %s is in the past", r.Expires.UTC().Format(time.RFC3339))
		}
		k = tx.NewPreAuthKey()
		k.Prefix, k.Hash = keyPrefix+shown, sha256.Sum256([]byte(secret))
		k.Reusable, k.Ephemeral, k.Preapproved, k.KeyDuration, k.Expires, k.Description = r.Reusable, r.Ephemeral, r.Preapproved, r.KeyDuration, r.Expires, r.Description
		if len(r.Tags) > 0 {
			k.Tags = sortedUnique(r.Tags)
		} else {
			if tx.User(r.User) == nil {
				return tailnet.Errorf(tailnet.NotFound, "there is no namespace with id %d", r.User)
			}
			k.User = r.User
		}
		tx.PutPreAuthKey(k)
		return nil
	})
	if err != nil {
		return "", nil, err
	}
	return secret, k, nil
}

func sortedUnique(ss []string) []string {
	ss = slices.Clone(ss)
	slices.Sort(ss)
	return slices.Compact(ss)
}

// randomText is n random letters and digits, about 5.95 bits each.
func randomText(n int) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
	var b strings.Builder
	for range n {
		i, err := rand.Int(rand.Reader, big.NewInt(int64(len(alphabet))))
		if err != nil {
			panic("no randomness: " + err.Error())
		}
		b.WriteByte(alphabet[i.Int64()])
	}
	return b.String()
}

// Logins are the pending logins, oldest first.
func (a *Auth) Logins(ctx context.Context) ([]*tailnet.Login, error) {
	return a.o.Store.Logins(ctx, a.o.Tailnet)
}

// Login is the pending login with this id; a NotFound error if there is none, or its time is over.
func (a *Auth) Login(ctx context.Context, id string) (*tailnet.Login, error) {
	l, err := a.o.Store.Login(ctx, a.o.Tailnet, id)
	if tailnet.CodeOf(err) == tailnet.NotFound || err == nil && a.o.Now().Sub(l.Created) >= a.o.LoginTTL {
		return nil, tailnet.Errorf(tailnet.NotFound, "no registration waits under this key: it was completed, or is older than %s; "+
			"run `tailscale up` on the machine once more and use the key that it prints then", a.o.LoginTTL)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the pending registration: %w", err)
	}
	return l, nil
}

// CompleteLogin is Complete by an administrator, which approves the node as well.
func (a *Auth) CompleteLogin(ctx context.Context, id string, user tailnet.UserID) (tailnet.NodeID, error) {
	return a.Complete(ctx, id, Completion{User: user, Method: tailnet.RegisteredByCLI, Approved: true})
}

// Completion is the end of a pending login.
type Completion struct {
	User     tailnet.UserID // who will own the node
	Method   string         // how the person was known, such as tailnet.RegisteredByCLI
	Approved bool           // an administrator does it: the node needs no further approval
	Ends     time.Time      // when its key ends, in place of the tailnet's rule, as an identity provider says; zero: by that rule
}

// Complete registers the node of a pending login. The waiting client comes up by itself, or is told that it waits for approval.
func (a *Auth) Complete(ctx context.Context, id string, c Completion) (tailnet.NodeID, error) {
	l, err := a.Login(ctx, id)
	if err != nil {
		return 0, err
	}
	var node *tailnet.Node
	why := "node registered by its user"
	if c.Approved {
		why = "node registered by an administrator"
	}
	err = a.st.Update(ctx, why, func(tx *state.Tx) error {
		u := tx.User(c.User)
		if u == nil {
			return tailnet.Errorf(tailnet.NotFound, "there is no namespace with id %d", c.User)
		}
		if err := u.MayJoin(); err != nil {
			return err
		}
		j := joining{
			machine: l.MachineKey, key: l.NodeKey, oldKey: l.OldNodeKey, nlKey: l.NLKey, hostinfo: l.Hostinfo, capver: l.Capver,
			expiry: l.Expiry, ephemeral: l.Ephemeral, user: c.User, method: c.Method, approved: c.Approved, ends: c.Ends,
		}
		if err := j.tag(tx); err != nil {
			return err
		}
		node, err = a.join(tx, j)
		return err
	})
	if err != nil {
		return 0, err
	}
	if err := a.o.Store.DeleteLogin(ctx, a.o.Tailnet, id); err != nil {
		a.log.Warn("a completed registration could not be removed; it ends by itself", "err", err)
	}
	return node.ID, nil
}

// Run removes what has had its time (logins, SSH checks that no period can reach back to, access tokens) and saves when keys were
// used, until ctx ends.
func (a *Auth) Run(ctx context.Context) {
	tick := time.NewTicker(min(a.o.LoginTTL, 10*time.Minute))
	defer tick.Stop()
	save := time.NewTicker(usesEvery)
	defer save.Stop()
	for {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
			defer cancel()
			a.saveUses(last)
			return
		case <-save.C:
			a.saveUses(ctx)
		case <-tick.C:
			if !a.o.Leads() {
				continue
			}
			if _, err := a.o.Store.DeleteAccessTokensBefore(ctx, a.o.Now()); err != nil && ctx.Err() == nil {
				a.log.Warn("old access tokens could not be removed", "err", err)
			}
			if _, err := a.o.Store.DeleteLoginsBefore(ctx, a.o.Now().Add(-a.o.LoginTTL)); err != nil && ctx.Err() == nil {
				a.log.Warn("old registrations could not be removed", "err", err)
			}
			if _, err := a.o.Store.DeleteSSHChecksBefore(ctx, a.o.Now().Add(-keepSSHChecks-a.o.SSHCheckTTL)); err != nil && ctx.Err() == nil {
				a.log.Warn("old SSH checks could not be removed", "err", err)
			}
		}
	}
}
