package auth

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/types/key"

	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// Outcome is the answer to a registration; exactly one of Node, Login, NewKey and LoggedOut says what it is.
type Outcome struct {
	Node      *tailnet.Node // it is in
	Login     string        // id of the pending login that a person must complete
	NewKey    bool          // its node key has ended: it must come back with a new one
	LoggedOut bool
}

// Register decides about a tailcfg.RegisterRequest from the machine whose key Noise has proven. It does not wait: see
// Wait. An *tailnet.Error is meant for the client's user.
func (a *Auth) Register(ctx context.Context, machine key.MachinePublic, r *tailcfg.RegisterRequest, remote string) (Outcome, error) {
	if r.NodeKey.IsZero() {
		return Outcome{}, tailnet.Errorf(tailnet.Invalid, "the registration has no node key")
	}
	if want, ok := strings.CutPrefix(r.Tailnet, "required:"); ok && want != a.st.Snapshot().Tailnet.Name {
		return Outcome{}, tailnet.Errorf(tailnet.Denied, "this server does not hold the tailnet %q", tailnet.CleanText(want))
	}
	known := a.st.Snapshot().NodeByKey(r.NodeKey)
	if known != nil && known.MachineKey != machine {
		return Outcome{}, tailnet.Errorf(tailnet.Denied, "this node key belongs to another machine")
	}
	now := a.o.Now()
	if !r.Expiry.IsZero() && r.Expiry.Before(now) {
		return Outcome{LoggedOut: true}, a.logout(ctx, known)
	}
	if known != nil {
		if known.Expired(now) {
			return Outcome{NewKey: true}, nil
		}
		// A restart: the key it brings, if any, was used when it joined.
		n, err := a.retag(ctx, known.Node, r.Hostinfo)
		if err != nil {
			return Outcome{}, err
		}
		n, err = a.shorten(ctx, n, r.Expiry)
		return Outcome{Node: n}, err
	}
	if r.Auth != nil && r.Auth.AuthKey != "" {
		n, err := a.joinByKey(ctx, machine, r)
		return Outcome{Node: n}, err
	}
	id, err := a.pend(ctx, machine, r, remote)
	return Outcome{Login: id}, err
}

// logout ends the key of n at once, and an ephemeral node altogether. A nil n is no error: the client forgets it anyway.
func (a *Auth) logout(ctx context.Context, n *state.Node) error {
	if n == nil {
		return nil
	}
	return a.st.Update(ctx, "node logged out", func(tx *state.Tx) error {
		row := tx.Node(n.ID)
		if row == nil || row.NodeKey != n.NodeKey {
			return nil
		}
		if row.Ephemeral {
			tx.DeleteNode(row.ID)
			return nil
		}
		if row.Expired(tx.Now()) {
			return nil
		}
		row = row.Clone()
		row.Expiry = tx.Now()
		return tx.PutNode(row)
	})
}

// shorten lets the key of n end at asked if that is earlier than it would (controlclient.Direct.SetExpirySooner); a zero
// asked is no wish. It returns the node as it then is.
func (a *Auth) shorten(ctx context.Context, n *tailnet.Node, asked time.Time) (*tailnet.Node, error) {
	sooner := func(n *tailnet.Node) bool { return !asked.IsZero() && (n.Expiry.IsZero() || asked.Before(n.Expiry)) }
	if !sooner(n) {
		return n, nil
	}
	err := a.st.Update(ctx, "node asked for an earlier end of its key", func(tx *state.Tx) error {
		row := tx.Node(n.ID)
		if row == nil || row.NodeKey != n.NodeKey || !sooner(row) {
			return nil
		}
		row = row.Clone()
		row.Expiry = asked
		n = row
		return tx.PutNode(row)
	})
	return n, err
}

// joinByKey registers a node that brings a pre-auth key.
func (a *Auth) joinByKey(ctx context.Context, machine key.MachinePublic, r *tailcfg.RegisterRequest) (n *tailnet.Node, err error) {
	foreign, err := a.foreignKey(ctx, r.Auth.AuthKey)
	if err != nil {
		return nil, err
	}
	err = a.st.Update(ctx, "node joined with a pre-auth key", func(tx *state.Tx) error {
		k := preAuthKey(tx, r.Auth.AuthKey, foreign)
		if k == nil {
			return tailnet.Errorf(tailnet.Denied, "this auth key is not known here; check that it was copied whole, or ask for a new one")
		}
		j := joining{
			machine: machine, key: r.NodeKey, oldKey: r.OldNodeKey, nlKey: r.NLKey, hostinfo: r.Hostinfo, capver: r.Version,
			expiry: r.Expiry, ephemeral: r.Ephemeral || k.Ephemeral, user: k.User, tags: k.Tags, preAuth: k.ID, approved: k.Preapproved, life: k.KeyDuration,
			signature: r.NodeKeySignature, method: tailnet.RegisteredByKey,
		}
		if u := tx.User(k.User); u != nil {
			if err := u.MayJoin(); err != nil {
				return err
			}
		}
		if err := j.tag(tx); err != nil {
			return err
		}
		// The same machine coming back with the key it joined with (a container whose command line holds the key):
		// the key has done its work for this node already.
		again := j.existing(tx)
		if again == nil || again.PreAuthKey != k.ID || again.Expired(tx.Now()) || k.Revoked {
			if err := k.Usable(tx.Now()); err != nil {
				return err
			}
			if !k.Used {
				used := *k
				used.Used = true
				tx.PutPreAuthKey(&used)
			}
		}
		n, err = a.join(tx, j)
		return err
	})
	if err != nil {
		return nil, err
	}
	return n, nil
}

// tag settles which tags the node gets: those of its key, and those that it asks for (tailscale up --advertise-tags) if the
// policy lets its user, or the key's tags, give them. A node with tags has no user.
func (j *joining) tag(tx *state.Tx) error {
	if j.hostinfo == nil {
		return nil
	}
	if err := mayHave(tx, j.user, j.tags, j.hostinfo.RequestTags); err != nil {
		return err
	}
	j.person = j.user
	if tags := sortedUnique(append(slices.Clone(j.tags), j.hostinfo.RequestTags...)); len(tags) > 0 {
		j.tags, j.user = tags, 0
	}
	return nil
}

// mayHave returns nil if the policy lets whoever is user, or if that is 0 has the tags have, give a node the tags want;
// otherwise a Denied error with the first that it may not.
func mayHave(tx *state.Tx, user tailnet.UserID, have, want []string) error {
	for _, t := range sortedUnique(want) {
		ok := slices.Contains(have, t)
		switch {
		case ok:
		case user == 0:
			ok = tx.Policy().MayRetag(have, t)
		default:
			u := tx.User(user)
			ok = u != nil && tx.Policy().MayTag(u, t)
		}
		if !ok {
			return tailnet.Errorf(tailnet.Denied, "requested tags [%s] are invalid or not permitted", tailnet.CleanText(t))
		}
	}
	return nil
}

// retag gives n the tags that its client asks for now, if it asks for others than before, and returns it as it then is.
func (a *Auth) retag(ctx context.Context, n *tailnet.Node, h *tailcfg.Hostinfo) (*tailnet.Node, error) {
	if !otherTags(n, h) {
		return n, nil
	}
	err := a.st.Update(ctx, "node asked for other tags", func(tx *state.Tx) error {
		row := tx.Node(n.ID)
		if row == nil || row.NodeKey != n.NodeKey || !otherTags(row, h) {
			return nil
		}
		n = row.Clone()
		if err := Retag(tx, n, h); err != nil {
			return err
		}
		n.Hostinfo = n.Hostinfo.Clone()
		n.Hostinfo.RequestTags = sortedUnique(h.RequestTags) // answered: asking again for the same changes nothing
		return tx.PutNode(n)
	})
	return n, err
}

// otherTags reports whether h asks for tags that n does not have and has not asked for before.
func otherTags(n *tailnet.Node, h *tailcfg.Hostinfo) bool {
	if h == nil || len(h.RequestTags) == 0 {
		return false // a node gets rid of its tags by an administrator alone
	}
	want := sortedUnique(h.RequestTags)
	return !slices.Equal(want, n.Tags) && !slices.Equal(want, sortedUnique(n.Hostinfo.RequestTags))
}

// Retag gives n, a clone whose Hostinfo is still the one before, the tags that h asks for (tailscale up --advertise-tags) if
// they are others than it asked for before. The owner must be one of each tag's, or its present tags must be; the error is
// Denied if not, and n is as it was.
func Retag(tx *state.Tx, n *tailnet.Node, h *tailcfg.Hostinfo) error {
	if !otherTags(n, h) {
		return nil
	}
	if err := mayHave(tx, n.User, n.Tags, h.RequestTags); err != nil {
		return err
	}
	SetTags(n, sortedUnique(h.RequestTags))
	return nil
}

// SetTags makes n, a clone, a node of its tags, which has no user and whose key does not end.
func SetTags(n *tailnet.Node, tags []string) {
	n.Tags, n.User, n.Expiry = tags, 0, time.Time{}
}

// joining is a node on its way in.
type joining struct {
	machine   key.MachinePublic
	key       key.NodePublic
	oldKey    key.NodePublic
	nlKey     key.NLPublic
	hostinfo  *tailcfg.Hostinfo
	capver    tailcfg.CapabilityVersion
	expiry    time.Time // as the client asked; zero: no wish
	ephemeral bool
	user      tailnet.UserID // or
	tags      []string
	person    tailnet.UserID // who signs in, if it is not a key with tags: the same as user unless the node gets tags
	approved  bool           // needs no further approval
	ends      time.Time      // of its key, in place of the tailnet's rule; zero: by life
	life      time.Duration  // of its key, as tailnet.PreAuthKey.KeyDuration
	preAuth   tailnet.PreAuthKeyID
	signature []byte
	method    string
}

// existing is the node that this machine has already and that this login goes on with, or nil:
//
//   - of the same owner: the one whose key it renews, or else any;
//   - a tagged node that a person signs in again stays what it is: its tags are not that person's to take away;
//   - a node of a user that renews its key with a key for tags, or by that same user, becomes a node of the tags.
func (j *joining) existing(tx *state.Tx) *tailnet.Node {
	var same *tailnet.Node
	for _, n := range tx.NodesByMachine(j.machine) {
		owned := n.Tagged() == (len(j.tags) > 0) && n.User == j.user
		signedIn := n.Tagged() && len(j.tags) == 0 && j.method != tailnet.RegisteredByKey
		tagged := !n.Tagged() && len(j.tags) > 0 && (j.person == 0 || j.person == n.User)
		if !owned && !signedIn && !tagged {
			continue
		}
		if n.NodeKey == j.oldKey || n.NodeKey == j.key {
			return n
		}
		if owned {
			same = n
		}
	}
	return same
}

// join stores the node: the one the machine has already, with a new key, or a new one.
func (a *Auth) join(tx *state.Tx, j joining) (*tailnet.Node, error) {
	h := tailnet.CleanHostinfo(j.hostinfo)
	n := j.existing(tx)
	if n != nil {
		n = n.Clone()
		SetHostname(tx, n, h.Hostname)
	} else {
		var err error
		if n, err = tx.NewNode(h.Hostname); err != nil {
			return nil, err
		}
		n.User, n.Tags = j.user, j.tags
		n.Authorized = !tx.Tailnet().Settings.DeviceApproval
		if err := tx.UsePool(n); err != nil {
			return nil, err
		}
	}
	if len(j.tags) > 0 {
		n.Tags, n.User = j.tags, 0
	}
	n.Authorized = n.Authorized || j.approved
	tx.NewKey(n, j.key)
	n.MachineKey, n.NLKey = j.machine, j.nlKey
	n.KeySignature = j.signature
	n.Hostinfo, n.Capver, n.Ephemeral = h, j.capver, j.ephemeral
	n.RegisterMethod, n.PreAuthKey = j.method, j.preAuth
	tx.AutoApprove(n)
	ends := j.ends
	if ends.IsZero() {
		ends = a.keyEnds(tx, j.life)
	}
	n.Expiry = expiry(tx.Now(), n, ends, j.expiry)
	if err := tx.PutNode(n); err != nil {
		return nil, err
	}
	return n, nil
}

// KeyDuration is how long the key of a node lives from now on in a tailnet with these settings; 0: for ever.
func (a *Auth) KeyDuration(s tailnet.Settings) time.Duration {
	switch s.KeyDuration {
	case 0:
		return a.o.NodeExpiry
	case tailnet.KeyForever:
		return 0
	}
	return s.KeyDuration
}

// Renew lets the key of n, a clone, live as long as if the node had just logged in.
func (a *Auth) Renew(tx *state.Tx, n *tailnet.Node) {
	n.Expiry = expiry(tx.Now(), n, a.keyEnds(tx, 0), time.Time{})
}

// keyEnds is when a key ends that begins now and lives as long as life says (as tailnet.PreAuthKey.KeyDuration), or by the tailnet's
// rule if that is 0; zero: never.
func (a *Auth) keyEnds(tx *state.Tx, life time.Duration) time.Time {
	s := tx.Tailnet().Settings
	if life != 0 {
		s.KeyDuration = life
	}
	if d := a.KeyDuration(s); d > 0 {
		return tx.Now().Add(d)
	}
	return time.Time{}
}

// expiry is when the key of n ends, which is at ends if neither n nor its client has another wish: never for a tagged node, or
// where an administrator said so; the client may only ask for less.
func expiry(now time.Time, n *tailnet.Node, ends, asked time.Time) time.Time {
	switch {
	case n.Tagged() || n.NeverExpires:
		return time.Time{}
	case asked.After(now) && (ends.IsZero() || asked.Before(ends)):
		return asked
	}
	return ends
}

// SetHostname takes over the name that a machine gives itself. The MagicDNS name follows unless an administrator chose it.
func SetHostname(tx *state.Tx, n *tailnet.Node, hostname string) {
	if hostname == n.Hostname || hostname == "" {
		return
	}
	n.Hostname = hostname
	if !n.NameFixed {
		n.Name = tx.FreeName(hostname, n.ID)
	}
}

// pend keeps the request until a person completes it, and returns the id of the login. A client that asks again with the
// same keys gets the same one.
func (a *Auth) pend(ctx context.Context, machine key.MachinePublic, r *tailcfg.RegisterRequest, remote string) (string, error) {
	a.pending.Lock() // so that two requests for one key get one login, and MaxLogins holds
	defer a.pending.Unlock()
	if l, err := a.o.Store.LoginByNodeKey(ctx, a.o.Tailnet, r.NodeKey); err != nil {
		return "", fmt.Errorf("looking for a pending registration: %w", err)
	} else if l != nil && l.MachineKey == machine && a.o.Now().Sub(l.Created) < a.o.LoginTTL {
		return l.ID, nil
	}
	n, err := a.o.Store.CountLogins(ctx, a.o.Tailnet)
	if err != nil {
		return "", fmt.Errorf("counting pending registrations: %w", err)
	}
	if n >= a.o.MaxLogins {
		return "", tailnet.Errorf(tailnet.Exhausted, "too many registrations are pending; try again later")
	}
	l := &tailnet.Login{
		ID: randomText(24), Tailnet: a.o.Tailnet, MachineKey: machine, NodeKey: r.NodeKey, OldNodeKey: r.OldNodeKey, NLKey: r.NLKey,
		Hostinfo: tailnet.CleanHostinfo(r.Hostinfo), Expiry: r.Expiry, Ephemeral: r.Ephemeral, Capver: r.Version,
		Remote: remote, Created: a.o.Now(),
	}
	if err := a.o.Store.PutLogin(ctx, l); err != nil {
		return "", fmt.Errorf("storing the pending registration: %w", err)
	}
	return l.ID, nil
}

// Wait returns the node once k is registered, by whatever way; its error is ctx's.
func (a *Auth) Wait(ctx context.Context, k key.NodePublic) (*tailnet.Node, error) {
	for {
		sn := a.st.Snapshot()
		if n := sn.NodeByKey(k); n != nil {
			return n.Node, nil
		}
		select {
		case <-sn.Superseded():
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
