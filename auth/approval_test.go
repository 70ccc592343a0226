package auth

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/types/key"

	"github.com/skein-vpn/skein/policy"
	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

func (e *env) settings(s tailnet.Settings) {
	e.t.Helper()
	e.update(func(tx *state.Tx) error { return tx.SetSettings(s) })
}

func (e *env) status(id tailnet.UserID, s tailnet.UserStatus) {
	e.t.Helper()
	e.update(func(tx *state.Tx) error {
		u := *tx.User(id)
		u.Status = s
		return tx.PutUser(&u)
	})
}

func (e *env) policy(text string) {
	e.t.Helper()
	p, err := policy.Parse([]byte(text))
	if err != nil {
		e.t.Fatal(err)
	}
	e.update(func(tx *state.Tx) error { return tx.SetPolicy(p, "", "") })
}

// Where devices need approval, a new node waits unless its key or an administrator says otherwise; one that is in stays in.
func TestDeviceApproval(t *testing.T) {
	e := newEnv(t, nil)
	plain, _ := e.key(KeyRequest{Reusable: true})
	approved, _ := e.key(KeyRequest{Reusable: true, Preapproved: true})
	before := newDevice("before").authKey(plain)
	e.in(before)
	e.settings(tailnet.Settings{DeviceApproval: true})
	if n := e.in(before.fresh()); !n.Authorized {
		t.Error("a node that was in waits after it has logged in again")
	}
	waits := newDevice("waits").authKey(plain)
	n := e.in(waits)
	if n.Authorized || e.st.Snapshot().Node(n.ID).Active() {
		t.Error("a new node does not wait")
	}
	if m := e.in(waits); m.Authorized {
		t.Error("asking again approves a node")
	}
	if m := e.in(waits.fresh().authKey(approved)); m.ID != n.ID || !m.Authorized {
		t.Errorf("a pre-approved key on a node that waits gives %+v", m)
	}
	if m := e.in(newDevice("ready").authKey(approved)); !m.Authorized {
		t.Error("a node with a pre-approved key waits")
	}
	if m := e.complete(e.pending(newDevice("by hand")), e.junyao); !m.Authorized {
		t.Error("a node that an administrator registered waits")
	}
	id, err := e.a.Complete(ctx, e.pending(newDevice("by its user")), Completion{User: e.junyao, Method: "oidc"})
	if err != nil || e.node(id).Authorized || e.node(id).RegisterMethod != "oidc" {
		t.Errorf("registered by its user: %+v, %v", e.node(id), err)
	}
	e.settings(tailnet.Settings{})
	if e.node(id).Authorized {
		t.Error("switching approval off lets in who waits")
	}
}

// Nodes of a user who waits may join and wait as well. Nobody joins as a suspended user, by whatever way; what is in is in, and cut off.
func TestUserApproval(t *testing.T) {
	e := newEnv(t, nil)
	if s := (tailnet.Settings{UserApproval: true}).NewUserStatus(); s != tailnet.UserWaiting {
		t.Errorf("a new user is %q", s)
	}
	e.status(e.junyao, tailnet.UserWaiting)
	secret, _ := e.key(KeyRequest{Reusable: true})
	d := newDevice("nas").authKey(secret)
	n := e.in(d)
	if e.st.Snapshot().Node(n.ID).Active() {
		t.Error("the node of a user who waits takes part")
	}
	e.status(e.junyao, tailnet.UserActive)
	if !e.st.Snapshot().Node(n.ID).Active() {
		t.Error("the node of a user who was approved takes no part")
	}
	login := e.pending(newDevice("other"))
	e.status(e.junyao, tailnet.UserSuspended)
	if _, err := e.a.CompleteLogin(ctx, login, e.junyao); tailnet.CodeOf(err) != tailnet.Denied {
		t.Errorf("a login was completed for a suspended user: %v", err)
	}
	if err := e.a.o.Store.DeleteLogin(ctx, tailnet.DefaultID, login); err != nil {
		t.Fatal(err)
	}
	e.denied(newDevice("third").authKey(secret), tailnet.Denied, "suspended")
	e.denied(d.fresh(), tailnet.Denied, "suspended")
	if m := e.in(d); m.ID != n.ID { // so that its client goes on asking, and is back when its user is
		t.Error("a restart of a suspended user's node finds another one")
	}
}

// A key's life is the tailnet's rule, or the configuration's where that has none; never for tags and where an administrator says so.
func TestKeyDuration(t *testing.T) {
	e := newEnv(t, func(o *Options) { o.NodeExpiry = 24 * time.Hour })
	secret, _ := e.key(KeyRequest{Reusable: true})
	tags, _ := e.key(KeyRequest{Reusable: true, Tags: []string{"tag:web"}})
	d := newDevice("nas").authKey(secret)
	ends := func(n *tailnet.Node, in time.Duration) {
		t.Helper()
		want := time.Time{}
		if in > 0 {
			want = e.now().Add(in)
		}
		if !n.Expiry.Equal(want) {
			t.Errorf("the key ends %v, want %v", n.Expiry, want)
		}
	}
	ends(e.in(d), 24*time.Hour)
	e.settings(tailnet.Settings{KeyDuration: time.Hour})
	ends(e.in(d.fresh()), time.Hour)
	ends(e.in(d.fresh().expires(e.now().Add(time.Minute))), time.Minute)
	ends(e.in(d.fresh().expires(e.now().Add(2*time.Hour))), time.Hour)
	ends(e.in(newDevice("web").authKey(tags)), 0)
	n := e.in(d)
	e.update(func(tx *state.Tx) error {
		n := tx.Node(n.ID).Clone()
		n.NeverExpires, n.Expiry = true, time.Time{}
		return tx.PutNode(n)
	})
	ends(e.in(d.fresh()), 0)
	e.settings(tailnet.Settings{KeyDuration: tailnet.KeyForever})
	ends(e.in(newDevice("mac").authKey(secret)), 0)
	short, _ := e.key(KeyRequest{Reusable: true, KeyDuration: time.Hour})
	ends(e.in(newDevice("short").authKey(short)), time.Hour)
	e.settings(tailnet.Settings{KeyDuration: time.Minute})
	ever, _ := e.key(KeyRequest{KeyDuration: tailnet.KeyForever})
	ends(e.in(newDevice("ever").authKey(ever)), 0)
	if _, _, err := e.a.CreatePreAuthKey(ctx, KeyRequest{User: e.junyao, KeyDuration: time.Second}); tailnet.CodeOf(err) != tailnet.Invalid {
		t.Errorf("a key for nodes of a second: %v", err)
	}
	if err := e.st.Update(ctx, "", func(tx *state.Tx) error { return tx.SetSettings(tailnet.Settings{KeyDuration: time.Second}) }); tailnet.CodeOf(err) != tailnet.Invalid {
		t.Errorf("a key duration of a second: %v", err)
	}
}

// A user's node that renews its key with a key for tags, or by its user who asks for tags, becomes a node of the tags: same
// id, name, addresses. Somebody else who asks for tags there gets a node of their own.
func TestTagsForAUsersNode(t *testing.T) {
	e := newEnv(t, func(o *Options) { o.NodeExpiry = 24 * time.Hour })
	e.policy(`{"tagOwners": {"tag:web": ["junyao@", "other@"]}, "acls": []}`)
	mine, _ := e.key(KeyRequest{Reusable: true})
	others, _ := e.key(KeyRequest{Reusable: true, User: e.other})
	tagged, _ := e.key(KeyRequest{Reusable: true, Tags: []string{"tag:web"}})
	asks := func(r *tailcfg.RegisterRequest) { r.Hostinfo.RequestTags = []string{"tag:web"} }
	is := func(n *tailnet.Node) {
		t.Helper()
		if !slices.Equal(n.Tags, []string{"tag:web"}) || n.User != 0 || !n.Expiry.IsZero() {
			t.Errorf("tagged: %+v", n)
		}
	}

	d := newDevice("a")
	n := e.in(d.authKey(mine))
	m := e.in(d.fresh().authKey(tagged))
	same(t, n, m)
	is(m)

	d = newDevice("b")
	n = e.in(d.authKey(mine))
	m = e.in(d.fresh().with(asks).authKey(mine))
	same(t, n, m)
	is(m)

	d = newDevice("c")
	n = e.in(d.authKey(mine))
	m = e.in(d.fresh().with(asks).authKey(others))
	is(m)
	if m.ID == n.ID || e.node(n.ID).User != e.junyao {
		t.Errorf("somebody else's login took node %d over", n.ID)
	}

	// A tagged node that a person signs in stays tagged, and one that a user's key brings is another one.
	d = newDevice("d")
	n = e.in(d.authKey(tagged))
	m = e.complete(e.pending(d.fresh()), e.other)
	same(t, n, m)
	is(m)
	if m = e.in(d.fresh().authKey(mine)); m.ID == n.ID || m.Tagged() {
		t.Errorf("a user's key on a tagged node gives %+v", m)
	}
}

// A client that is in may ask for other tags, which whoever owns it must be allowed to give; what is refused is refused once.
func TestRetag(t *testing.T) {
	e := newEnv(t, func(o *Options) { o.NodeExpiry = 24 * time.Hour })
	e.policy(`{"tagOwners": {"tag:web": ["junyao@"], "tag:db": ["tag:web"], "tag:root": []}, "acls": []}`)
	mine, _ := e.key(KeyRequest{Reusable: true})
	others, _ := e.key(KeyRequest{Reusable: true, User: e.other})
	asks := func(d *device, tags ...string) *device {
		return d.with(func(r *tailcfg.RegisterRequest) { r.Hostinfo.RequestTags = tags })
	}
	d := newDevice("nas").authKey(mine)
	n := e.in(d)
	e.denied(asks(d, "tag:root"), tailnet.Denied, "[tag:root]")
	if m := e.in(asks(d, "tag:web")); m.ID != n.ID || m.User != 0 || !slices.Equal(m.Tags, []string{"tag:web"}) || !m.Expiry.IsZero() {
		t.Errorf("asked for a tag: %+v", m)
	}
	if m := e.in(asks(d, "tag:web")); !m.Tagged() {
		t.Errorf("asked again: %+v", m)
	}
	if m := e.in(asks(d, "tag:db")); !slices.Equal(m.Tags, []string{"tag:db"}) {
		t.Errorf("its tag may give the other one: %+v", m)
	}
	e.denied(asks(d, "tag:web"), tailnet.Denied, "[tag:web]") // tag:db owns nothing
	if m := e.in(d); !slices.Equal(m.Tags, []string{"tag:db"}) {
		t.Errorf("asking for no tags takes them away: %+v", m)
	}
	x := newDevice("x").authKey(others)
	e.in(x)
	e.denied(asks(x, "tag:web"), tailnet.Denied, "[tag:web]")
	// An administrator gives it other tags than those it asks for at each start.
	e.update(func(tx *state.Tx) error {
		n := tx.Node(n.ID).Clone()
		SetTags(n, []string{"tag:root"})
		return tx.PutNode(n)
	})
	if m := e.in(asks(d, "tag:db")); !slices.Equal(m.Tags, []string{"tag:root"}) {
		t.Errorf("a restart took back what an administrator did: %+v", m)
	}
}

// slowLogins lets others in between each look at the logins and the next.
type slowLogins struct {
	Store
}

func (s slowLogins) LoginByNodeKey(ctx context.Context, id tailnet.ID, k key.NodePublic) (*tailnet.Login, error) {
	l, err := s.Store.LoginByNodeKey(ctx, id, k)
	time.Sleep(time.Millisecond)
	return l, err
}

func (s slowLogins) CountLogins(ctx context.Context, id tailnet.ID) (int, error) {
	n, err := s.Store.CountLogins(ctx, id)
	time.Sleep(time.Millisecond)
	return n, err
}

// However many requests come at once, one key has one login, and there are not more than MaxLogins.
func TestPendingAtOnce(t *testing.T) {
	e := newEnv(t, func(o *Options) { o.MaxLogins, o.Store = 5, slowLogins{Store: o.Store} })
	d := newDevice("nas")
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			r := d
			if i%2 == 1 {
				r = newDevice("another")
			}
			_, _ = e.register(r)
		})
	}
	wg.Wait()
	ls, err := e.a.Logins(ctx)
	mine := 0
	for _, l := range ls {
		if l.NodeKey == d.r.NodeKey {
			mine++
		}
	}
	if err != nil || len(ls) != 5 || mine > 1 {
		t.Errorf("%d logins, %d of them of one key, %v; want 5, one at the most", len(ls), mine, err)
	}
}
