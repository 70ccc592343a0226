package oidc

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/types/key"

	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/state/statetest"
	"github.com/skein-vpn/skein/tailnet"
)

// rechecked is an env whose users are asked after every five minutes, with somebody who has signed in and has a node.
func rechecked(t *testing.T, edit func(*ProviderOptions)) (e *env, gone *[]string, node tailnet.NodeID) {
	t.Helper()
	h := newHydra(t, 2)
	e = newEnv(t, h, func(po *ProviderOptions) {
		po.Scopes, po.CheckEvery = []string{"openid", "email", "profile", "offline_access"}, 5*time.Minute
		if edit != nil {
			edit(po)
		}
	})
	o := e.m.o
	o.Grants, gone = &statetest.Grants{}, &[]string{}
	o.Gone = func(_ context.Context, u *tailnet.User) error { *gone = append(*gone, u.Name); return nil }
	var err error
	if e.m, err = New(o); err != nil {
		t.Fatal(err)
	}
	u := e.signIn().User
	e.update(func(tx *state.Tx) error {
		add := func(owner tailnet.UserID, tags ...string) tailnet.NodeID {
			n, err := tx.NewNode("laptop")
			if err != nil {
				t.Fatal(err)
			}
			n.User, n.Tags, n.MachineKey, n.NodeKey = owner, tags, key.NewMachine().Public(), key.NewNode().Public()
			n.Hostinfo, n.Authorized = &tailcfg.Hostinfo{}, true
			if err := tx.PutNode(n); err != nil {
				t.Fatal(err)
			}
			return n.ID
		}
		node = add(u.ID)
		add(0, "tag:server")
		return nil
	})
	return e, gone, node
}

func (e *env) grants() int {
	gs, err := e.m.o.Grants.ProviderGrants(ctx, tailnet.DefaultID, DefaultID, e.now().Add(time.Hour), 10)
	if err != nil {
		e.t.Fatal(err)
	}
	for _, g := range gs {
		if strings.Contains(string(g.Token), "ory_rt_") {
			e.t.Error("a refresh token is stored as it is")
		}
	}
	return len(gs)
}

func (e *env) expired() (out []tailnet.NodeID) {
	for _, n := range e.st.Snapshot().Nodes() {
		if n.Expired(time.Now().Add(time.Minute)) {
			out = append(out, n.ID)
		}
	}
	return out
}

// TestRecheck: nothing before its time; then what the provider says now holds; and who is gone loses the keys.
func TestRecheck(t *testing.T) {
	e, gone, node := rechecked(t, nil)
	if n := e.grants(); n != 1 {
		t.Fatalf("%d refresh tokens are kept", n)
	}
	requests := len(e.h.basic)
	if err := e.m.Recheck(ctx); err != nil || len(e.h.basic) != requests {
		t.Errorf("asked before its time: %v", err)
	}
	for range 3 { // refresh tokens are turned over
		e.pass(6 * time.Minute)
		e.h.session["groups"] = []string{"new"}
		if err := e.m.Recheck(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if u := e.st.Snapshot().Users()[0]; !slices.Equal(u.Groups, []string{"new"}) || len(e.expired()) != 0 || len(*gone) != 0 {
		t.Errorf("%+v, %v expired", u, e.expired())
	}

	e.h.set(func() { // the account is closed
		for k := range e.h.flows {
			if strings.HasPrefix(k, "ory_rt_") {
				delete(e.h.flows, k)
			}
		}
	})
	e.pass(6 * time.Minute)
	if err := e.m.Recheck(ctx); err != nil {
		t.Fatal(err)
	}
	if got := e.expired(); !slices.Equal(got, []tailnet.NodeID{node}) || !slices.Equal(*gone, []string{"foo"}) || e.grants() != 0 {
		t.Errorf("expired %v, gone %v, %d refresh tokens", got, *gone, e.grants())
	}
}

// TestRecheckNotAllowed: who left the group that may sign in is gone as well.
func TestRecheckNotAllowed(t *testing.T) {
	e, gone, node := rechecked(t, func(po *ProviderOptions) { po.AllowedGroups = []string{"vpn"} })
	e.h.session["groups"] = []string{"staff"}
	e.pass(6 * time.Minute)
	if err := e.m.Recheck(ctx); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(e.expired(), []tailnet.NodeID{node}) || len(*gone) != 1 {
		t.Errorf("expired %v, gone %v", e.expired(), *gone)
	}
}

// TestRecheckTrouble: a provider that is away, or talks nonsense, costs nobody anything.
func TestRecheckTrouble(t *testing.T) {
	e, gone, _ := rechecked(t, nil)
	for _, trouble := range []func(){
		func() { e.h.down = true },
		func() {
			e.h.token = func(w http.ResponseWriter) bool {
				w.WriteHeader(http.StatusServiceUnavailable)
				return true
			}
		},
		func() {
			e.h.token = func(w http.ResponseWriter) bool {
				e.h.json(w, 401, map[string]string{"error": "invalid_client"})
				return true
			}
		},
		func() { e.h.edit = func(c map[string]any) { c["aud"] = "another" } },
		func() { e.h.edit = func(c map[string]any) { c["sub"] = "another" } },
		func() { e.h.edit = func(c map[string]any) { c["email"] = "nonsense" } },
	} {
		e.h.set(trouble)
		e.pass(6 * time.Minute)
		if err := e.m.Recheck(ctx); err == nil {
			t.Error("no error")
		}
		if len(e.expired()) != 0 || len(*gone) != 0 || e.grants() != 1 {
			t.Fatalf("expired %v, gone %v, %d refresh tokens", e.expired(), *gone, e.grants())
		}
		e.h.set(func() { e.h.down, e.h.token, e.h.edit = false, nil, nil })
	}
	e.pass(6 * time.Minute)
	if err := e.m.Recheck(ctx); err != nil {
		t.Error(err)
	}
}

// TestRecheckOff: without the scope, or with no interval, nothing is kept.
func TestRecheckOff(t *testing.T) {
	for _, edit := range []func(*ProviderOptions){
		func(po *ProviderOptions) { po.CheckEvery = 0 },
		func(po *ProviderOptions) { po.Scopes = nil },
	} {
		if e, _, _ := rechecked(t, edit); e.grants() != 0 {
			t.Error("a refresh token is kept")
		}
	}
}

// TestRecheckOtherKey: what was sealed with another key is thrown away, and nobody is gone for that.
func TestRecheckOtherKey(t *testing.T) {
	e, gone, _ := rechecked(t, nil)
	o := e.m.o
	o.Key = [32]byte{9}
	var err error
	if e.m, err = New(o); err != nil {
		t.Fatal(err)
	}
	e.pass(6 * time.Minute)
	if err := e.m.Recheck(ctx); err != nil || len(*gone) != 0 || len(e.expired()) != 0 || e.grants() != 0 {
		t.Errorf("%v, %v", err, *gone)
	}
}
