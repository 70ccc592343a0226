package auth

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/types/key"

	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/state/statetest"
	"github.com/skein-vpn/skein/tailnet"
)

// The interactive way: a login waits, a person completes it, and the client that waits is woken.
func TestInteractive(t *testing.T) {
	e := newEnv(t, func(o *Options) { o.NodeExpiry = 24 * time.Hour })
	d := newDevice("homeDS").with(func(r *tailcfg.RegisterRequest) { r.Ephemeral, r.NLKey = true, key.NewNLPrivate().Public() })
	login := e.pending(d)
	ls, err := e.a.Logins(ctx)
	if err != nil || len(ls) != 1 {
		t.Fatalf("%d logins, %v", len(ls), err)
	}
	if l := ls[0]; l.ID != login || l.MachineKey != d.machine || l.NodeKey != d.r.NodeKey || l.Hostinfo.Hostname != "homeDS" || l.Remote != "192.0.2.7" ||
		!l.Created.Equal(e.now()) || l.Capver != 142 || l.Tailnet != tailnet.DefaultID {
		t.Errorf("the login is %+v", l)
	}
	if len(login) < 22 {
		t.Errorf("the id %q can be guessed", login)
	}
	e.count(0)

	woken := make(chan *tailnet.Node, 1)
	go func() {
		n, err := e.a.Wait(ctx, d.r.NodeKey)
		if err != nil {
			t.Error(err)
		}
		woken <- n
	}()
	e.pass(time.Hour)
	n := e.complete(login, e.junyao)
	if w := <-woken; w.ID != n.ID {
		t.Errorf("woken for node %d, want %d", w.ID, n.ID)
	}
	if n.User != e.junyao || n.Name != "homeds" || n.RegisterMethod != tailnet.RegisteredByCLI || n.PreAuthKey != 0 || !n.Authorized || !n.Ephemeral ||
		n.NLKey != d.r.NLKey || !n.Expiry.Equal(e.now().Add(24*time.Hour)) {
		t.Errorf("the node is %+v", n)
	}
	if ls, _ := e.a.Logins(ctx); len(ls) != 0 {
		t.Error("a completed login is still pending")
	}
	if m := e.in(d); m.ID != n.ID { // its second request, with Followup
		t.Errorf("it is in as node %d, want %d", m.ID, n.ID)
	}
	if _, err := e.a.CompleteLogin(ctx, login, e.junyao); tailnet.CodeOf(err) != tailnet.NotFound {
		t.Errorf("completed twice: %v", err)
	}
}

// A client that asks again is given the same login, so that the URL on its screen stays good. Another machine, or another
// key, is another login.
func TestPendingLoginIsReused(t *testing.T) {
	e := newEnv(t, func(o *Options) { o.LoginTTL = time.Hour })
	d := newDevice("nas")
	login := e.pending(d)
	e.pass(time.Hour - time.Second)
	if again := e.pending(d.with(func(r *tailcfg.RegisterRequest) { r.Followup = "https://x/register/" + login })); again != login {
		t.Error("the same request gets another login")
	}
	if other := e.pending(d.forgetful()); other == login {
		t.Error("another node key gets the same login")
	}
	thief := d.with(func(*tailcfg.RegisterRequest) {})
	thief.machine = key.NewMachine().Public()
	if other := e.pending(thief); other == login {
		t.Error("another machine gets the same login")
	}
	e.pass(time.Second) // its time is over
	late := e.pending(d)
	if late == login {
		t.Error("a login whose time is over is given out again")
	}
	if _, err := e.a.CompleteLogin(ctx, login, e.junyao); tailnet.CodeOf(err) != tailnet.NotFound || !strings.Contains(err.Error(), "1h0m0s") {
		t.Errorf("a login whose time is over: %v", err)
	}
	e.complete(late, e.junyao)
	e.count(1)
}

func TestPendingLoginLimit(t *testing.T) {
	e := newEnv(t, func(o *Options) { o.MaxLogins = 3 })
	var ds []*device
	for range 3 {
		d := newDevice("nas")
		e.pending(d)
		ds = append(ds, d)
	}
	if out, err := e.register(newDevice("one too many")); tailnet.CodeOf(err) != tailnet.Exhausted || out.Login != "" {
		t.Errorf("%+v, %v; want Exhausted", out, err)
	}
	e.complete(e.pending(ds[0]), e.junyao) // those who wait are not locked out
	e.pending(newDevice("there is room again"))
	secret, _ := e.key(KeyRequest{})
	e.in(newDevice("with a key there always is").authKey(secret))
}

func TestCompleteLoginRefuses(t *testing.T) {
	e := newEnv(t, nil)
	if _, err := e.a.CompleteLogin(ctx, "nonsense", e.junyao); tailnet.CodeOf(err) != tailnet.NotFound {
		t.Errorf("an unknown login: %v", err)
	}
	d := newDevice("nas")
	login := e.pending(d)
	if _, err := e.a.CompleteLogin(ctx, login, 99); tailnet.CodeOf(err) != tailnet.NotFound || !strings.Contains(err.Error(), "99") {
		t.Errorf("an unknown user: %v", err)
	}
	e.store.FailCommits(1)
	if _, err := e.a.CompleteLogin(ctx, login, e.junyao); tailnet.CodeOf(err) != tailnet.Unavailable {
		t.Errorf("a broken store: %v", err)
	}
	e.logins.Fail(errors.New("disk full"))
	if _, err := e.a.CompleteLogin(ctx, login, e.junyao); tailnet.CodeOf(err) != tailnet.Internal {
		t.Errorf("a broken store of logins: %v", err)
	}
	e.logins.Fail(nil)
	e.count(0)
	if e.pending(d) != login { // none of it has cost the login
		t.Error("the login is gone")
	}
	e.complete(login, e.junyao)
}

// Two administrators complete one login at the same time: it is one node, and belongs to one of them.
func TestCompleteLoginTwice(t *testing.T) {
	e := newEnv(t, nil)
	login := e.pending(newDevice("nas"))
	var wg sync.WaitGroup
	var mu sync.Mutex
	done := map[tailnet.NodeID]int{}
	for i := range 10 {
		user := []tailnet.UserID{e.junyao, e.other}[i%2]
		wg.Go(func() {
			if id, err := e.a.CompleteLogin(ctx, login, user); err == nil {
				mu.Lock()
				done[id]++
				mu.Unlock()
			} else if c := tailnet.CodeOf(err); c != tailnet.NotFound && c != tailnet.Conflict {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if len(done) != 1 {
		t.Errorf("nodes by how often they were registered: %v", done)
	}
	e.count(1)
}

// Signing in again: the same person's machine is the same node, another person's a second one, and a tagged node stays
// what it is.
func TestInteractiveRejoin(t *testing.T) {
	e := newEnv(t, nil)
	d := newDevice("nas")
	n := e.complete(e.pending(d), e.junyao)
	d = d.fresh()
	m := e.complete(e.pending(d), e.junyao)
	same(t, n, m)
	if m.OldNodeKey != n.NodeKey || m.NodeKey != d.r.NodeKey {
		t.Errorf("renewed: %+v", m)
	}
	o := e.complete(e.pending(d.fresh()), e.other)
	if o.ID == n.ID || o.User != e.other || e.node(n.ID).NodeKey != m.NodeKey {
		t.Errorf("another person got %+v", o)
	}
	e.count(2)

	secret, _ := e.key(KeyRequest{Tags: []string{"tag:web"}})
	d = newDevice("web").authKey(secret)
	w := e.in(d)
	again := e.complete(e.pending(d.fresh().with(func(r *tailcfg.RegisterRequest) { r.Auth = nil })), e.junyao)
	same(t, w, again)
	if !slices.Equal(again.Tags, []string{"tag:web"}) || again.User != 0 {
		t.Errorf("a person took the tags away: %+v", again)
	}
	// Without the key it had, it is a new node of that person: nothing says that it is the tagged one.
	fresh := e.complete(e.pending(d.forgetful().with(func(r *tailcfg.RegisterRequest) { r.Auth = nil })), e.junyao)
	if fresh.ID == w.ID || fresh.User != e.junyao {
		t.Errorf("got %+v", fresh)
	}
}

// A node that joined with a key while its login was pending: completing the login later does no harm.
func TestLoginOvertakenByKey(t *testing.T) {
	e := newEnv(t, nil)
	d := newDevice("nas")
	login := e.pending(d)
	secret, _ := e.key(KeyRequest{})
	n := e.in(d.authKey(secret))
	m := e.complete(login, e.junyao)
	same(t, n, m)
	login = e.pending(d.fresh())
	if _, err := e.a.CompleteLogin(ctx, login, e.other); err != nil {
		t.Error(err)
	}
	e.count(2)
}

// Wait ends with its context, and is not woken by others.
func TestWait(t *testing.T) {
	e := newEnv(t, nil)
	short, cancel := context.WithCancel(ctx)
	k := key.NewNode().Public()
	errs := make(chan error, 1)
	go func() {
		n, err := e.a.Wait(short, k)
		if n != nil {
			t.Errorf("woken for %+v", n)
		}
		errs <- err
	}()
	secret, _ := e.key(KeyRequest{Reusable: true})
	for range 10 {
		e.in(newDevice("other").authKey(secret))
	}
	select {
	case err := <-errs:
		t.Errorf("Wait ended with %v", err)
	default:
	}
	cancel()
	if err := <-errs; !errors.Is(err, context.Canceled) {
		t.Errorf("Wait ended with %v", err)
	}
	d := newDevice("there already").authKey(secret)
	n := e.in(d)
	if w, err := e.a.Wait(short, d.r.NodeKey); err != nil || w.ID != n.ID { // even though its context has ended
		t.Errorf("%v, %v", w, err)
	}
}

func TestCreatePreAuthKey(t *testing.T) {
	e := newEnv(t, nil)
	for name, tc := range map[string]struct {
		r    KeyRequest
		code tailnet.Code
		says string
	}{
		"for nobody":         {KeyRequest{}, tailnet.Invalid, "namespace or tags"},
		"for an unknown one": {KeyRequest{User: 77}, tailnet.NotFound, "77"},
		"a bad tag":          {KeyRequest{Tags: []string{"web"}}, tailnet.Invalid, `"web"`},
		"an upper-case tag":  {KeyRequest{Tags: []string{"tag:Web"}}, tailnet.Invalid, "tag:Web"},
		"over already":       {KeyRequest{User: e.junyao, Expires: statetest.Epoch}, tailnet.Invalid, "in the past"},
	} {
		if secret, k, err := e.a.CreatePreAuthKey(ctx, tc.r); tailnet.CodeOf(err) != tc.code || !strings.Contains(err.Error(), tc.says) || secret != "" || k != nil {
			t.Errorf("%s: %q, %v, %v", name, secret, k, err)
		}
	}
	if n := len(e.st.Snapshot().PreAuthKeys()); n != 0 {
		t.Fatalf("%d keys were made by requests that failed", n)
	}
	seen := map[string]bool{}
	for range 20 {
		secret, k, err := e.a.CreatePreAuthKey(ctx, KeyRequest{User: e.junyao, Reusable: true, Ephemeral: true, Expires: e.now().Add(time.Hour)})
		if err != nil {
			t.Fatal(err)
		}
		stored, err := json.Marshal(e.store.Contents().PreAuthKeys)
		if err != nil {
			t.Fatal(err)
		}
		hidden := strings.TrimPrefix(secret, k.Prefix)
		if seen[secret] || k.Hash != sha256.Sum256([]byte(secret)) || !strings.HasPrefix(secret, k.Prefix) || len(hidden) < 30 || strings.Contains(string(stored), hidden) {
			t.Errorf("key %+v with secret %q", k, secret)
		}
		// The command line of tailscale takes keys with these for something else.
		if strings.HasPrefix(secret, "tskey-client-") || strings.Contains(secret, "--TL") {
			t.Errorf("clients misunderstand %q", secret)
		}
		seen[secret] = true
		if k.User != e.junyao || !k.Reusable || !k.Ephemeral || !k.Created.Equal(e.now()) || !k.Expires.Equal(e.now().Add(time.Hour)) {
			t.Errorf("key %+v", k)
		}
	}
}

// Run takes logins away whose time is over, and goes on over a store that fails.
func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		logins := &statetest.Logins{}
		a := New(Options{Store: logins, LoginTTL: time.Hour})
		ctx, cancel := context.WithCancel(ctx)
		done := make(chan struct{})
		go func() { a.Run(ctx); close(done) }()
		for _, id := range []string{"first", "second"} {
			if err := logins.PutLogin(ctx, &tailnet.Login{ID: id, Tailnet: tailnet.DefaultID, Created: time.Now()}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(30 * time.Minute)
		}
		logins.Fail(errors.New("disk full"))
		time.Sleep(11 * time.Minute)
		logins.Fail(nil)
		count := func() int {
			synctest.Wait()
			n, _ := logins.CountLogins(ctx, tailnet.DefaultID)
			return n
		}
		if n := count(); n != 2 {
			t.Errorf("%d logins while the store fails, want 2", n)
		}
		time.Sleep(10 * time.Minute)
		if n := count(); n != 1 {
			t.Errorf("%d logins, want the second one", n)
		}
		time.Sleep(time.Hour)
		if n := count(); n != 0 {
			t.Errorf("%d logins, want none", n)
		}
		cancel()
		<-done
	})
}

// SetHostname follows the machine unless somebody chose the name, and keeps names unique.
func TestSetHostname(t *testing.T) {
	e := newEnv(t, nil)
	secret, _ := e.key(KeyRequest{Reusable: true})
	a := e.in(newDevice("nas").authKey(secret))
	b := e.in(newDevice("nas").authKey(secret))
	set := func(id tailnet.NodeID, hostname string) *tailnet.Node {
		e.update(func(tx *state.Tx) error {
			n := tx.Node(id).Clone()
			SetHostname(tx, n, hostname)
			return tx.PutNode(n)
		})
		return e.node(id)
	}
	for _, tc := range []struct{ hostname, wantHostname, wantName string }{
		{"", "nas", "nas-1"},
		{"nas", "nas", "nas-1"},
		{"homeDS", "homeDS", "homeds"},
		{"nas", "nas", "nas-1"},
		{"我的电脑", "我的电脑", "node"},
	} {
		if n := set(b.ID, tc.hostname); n.Hostname != tc.wantHostname || n.Name != tc.wantName {
			t.Errorf("%q gives %q and %q, want %q and %q", tc.hostname, n.Hostname, n.Name, tc.wantHostname, tc.wantName)
		}
	}
	e.update(func(tx *state.Tx) error {
		n := tx.Node(a.ID).Clone()
		n.NameFixed = true
		return tx.PutNode(n)
	})
	if n := set(a.ID, "other"); n.Hostname != "other" || n.Name != "nas" {
		t.Errorf("a chosen name became %q", n.Name)
	}
}
