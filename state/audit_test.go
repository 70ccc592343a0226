package state

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/types/key"

	"github.com/skein-vpn/skein/state/statetest"
	"github.com/skein-vpn/skein/tailnet"
)

// lastAudit are the entries of the newest commit, as "ACTION ID BEFORE → AFTER".
func lastAudit(store *statetest.Store) (out []string) {
	cs := store.Commits()
	if len(cs) == 0 {
		return nil
	}
	for _, e := range cs[len(cs)-1].Changes.Audit {
		out = append(out, strings.TrimSpace(fmt.Sprintf("%s %s %s → %s", e.Action, e.TargetID, e.Before, e.After)))
	}
	return out
}

func TestAudit(t *testing.T) {
	store := statetest.New()
	st := open(t, options(store))
	user := addUser(t, st, "junyao")
	node := addNode(t, st, "laptop", user, nil)
	for _, tt := range []struct {
		what string
		f    func(tx *Tx) error
		want []string // parts of each entry
	}{
		{"rename", func(tx *Tx) error { return change(tx, node, func(n *tailnet.Node) { n.Name = "desk" }) },
			[]string{`node.update 1 {"name":"laptop"} → {"name":"desk"}`}},
		{"routes", func(tx *Tx) error {
			return change(tx, node, func(n *tailnet.Node) { n.ApprovedRoutes = prefixes("10.0.0.0/8") })
		}, []string{`node.update 1 {"routes":[]} → {"routes":["10.0.0.0/8"]}`}},
		{"expiry", func(tx *Tx) error {
			return change(tx, node, func(n *tailnet.Node) { n.Expiry = time.Date(2027, 1, 2, 3, 4, 5, 0, time.UTC) })
		}, []string{`node.update 1 {"expires":null} → {"expires":"2027-01-02T03:04:05Z"}`}},
		{"there and back", func(tx *Tx) error {
			for _, name := range []string{"x", "desk"} {
				if err := change(tx, node, func(n *tailnet.Node) { n.Name = name }); err != nil {
					return err
				}
			}
			tx.SetOnline(node, true)
			return nil
		}, nil},
		{"role and rename at once", func(tx *Tx) error {
			u := *tx.User(user)
			u.Role = tailnet.RoleAdmin
			if err := tx.PutUser(&u); err != nil {
				return err
			}
			u2 := u
			u2.Name = "jun"
			return tx.PutUser(&u2)
		}, []string{`user.update 1 {"name":"junyao","role":"member"} → {"name":"jun","role":"admin"}`}},
		{"settings", func(tx *Tx) error {
			s := tx.Tailnet().Settings
			s.DeviceApproval = true
			return tx.SetSettings(s)
		}, []string{`settings.update  {} → {"deviceApproval":true}`}},
		{"policy", func(tx *Tx) error { return tx.SetPolicy(openPolicy, "me", "why not") },
			[]string{`policy.update 1  → {"author":"me"`}},
		{"key", func(tx *Tx) error {
			k := tx.NewPreAuthKey()
			k.Prefix, k.Hash, k.User = "tskey-auth-abc", [32]byte{1, 2, 3}, user
			tx.PutPreAuthKey(k)
			return nil
		}, []string{`auth_key.create 1`}},
		{"credential", func(tx *Tx) error {
			return tx.PutCredential(&tailnet.Credential{ID: "kX", Kind: tailnet.APIKey, HashKind: tailnet.HashSHA256, Hash: []byte("secret hash"), Scopes: []string{"all"}})
		}, []string{`api_key.create kX`}},
		{"own entry", func(tx *Tx) error {
			tx.Audit(tailnet.AuditEntry{Action: "client.DISCONNECT_NODE", TargetID: "1"})
			return nil
		}, []string{"client.DISCONNECT_NODE 1"}},
		{"all gone", func(tx *Tx) error {
			tx.DeleteNode(node)
			if err := tx.DeleteUser(user); err != nil {
				return err
			}
			tx.DeleteCredential("kX")
			tx.DeleteCredential("kX")
			return nil
		}, []string{`node.delete 1 {`, `auth_key.delete 1`, `user.delete 1`, `api_key.delete kX`}},
	} {
		before := len(store.Commits())
		by := WithActor(ctx, Actor{Kind: "user", Name: "anna", ID: "7", Origin: "web", Remote: "192.0.2.1"})
		if err := st.Update(by, tt.what, tt.f); err != nil {
			t.Fatalf("%s: %v", tt.what, err)
		}
		if len(tt.want) == 0 && len(store.Commits()) > before && len(lastAudit(store)) > 0 {
			t.Errorf("%s: %q", tt.what, lastAudit(store))
		}
		if len(tt.want) == 0 {
			continue
		}
		got := lastAudit(store)
		if len(got) != len(tt.want) {
			t.Errorf("%s: %q, want %q", tt.what, got, tt.want)
			continue
		}
		for i := range got {
			if !strings.HasPrefix(got[i], tt.want[i]) {
				t.Errorf("%s: %s, want %s", tt.what, got[i], tt.want[i])
			}
		}
		cs := store.Commits()
		for _, e := range cs[len(cs)-1].Changes.Audit {
			b, _ := json.Marshal(e)
			if e.Actor != "anna" || e.ActorKind != "user" || e.ActorID != "7" || e.Origin != "web" || e.Remote != "192.0.2.1" || e.Why != tt.what || e.At.IsZero() {
				t.Errorf("%s: %s", tt.what, b)
			}
			if strings.Contains(string(b), "secret hash") || strings.Contains(string(b), `"hash"`) || strings.Contains(strings.ToLower(string(e.After)), "hash") {
				t.Errorf("%s: a hash is in the audit log: %s", tt.what, b)
			}
		}
	}
}

// What running clients report all the time costs no entry, and what fails leaves none.
func TestAuditLeavesOut(t *testing.T) {
	store := statetest.New()
	st := open(t, options(store))
	node := addNode(t, st, "laptop", addUser(t, st, "junyao"), nil)
	must(t, st, func(tx *Tx) error {
		return change(tx, node, func(n *tailnet.Node) {
			n.Endpoints, n.DiscoKey, n.HomeDERP, n.Capver = []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:1")}, key.NewDisco().Public(), 901, 130
			n.Hostinfo = &tailcfg.Hostinfo{Hostname: "laptop", OS: "linux", RoutableIPs: prefixes("10.0.0.0/8")}
		})
	})
	if got := lastAudit(store); len(got) > 0 {
		t.Errorf("a client's report is audited: %q", got)
	}
	before := len(store.Commits())
	err := st.Update(ctx, "test", func(tx *Tx) error {
		tx.Audit(tailnet.AuditEntry{Action: "x.y"})
		_ = change(tx, node, func(n *tailnet.Node) { n.Name = "other" })
		return errors.New("no")
	})
	if err == nil || len(store.Commits()) != before {
		t.Errorf("%v: what failed left %q", err, lastAudit(store))
	}
	err = st.Update(ctx, "test", func(tx *Tx) error { panic("oh") })
	if err == nil || len(store.Commits()) != before {
		t.Errorf("%v", err)
	}
	// Who acts is told per function, even in one commit.
	release := store.Block()
	done := make(chan error, 3)
	go func() {
		done <- st.Update(ctx, "first", func(tx *Tx) error { tx.Audit(tailnet.AuditEntry{Action: "a.a"}); return nil })
	}()
	eventually(t, "a commit waits", func() bool { return store.Waiting() == 1 })
	for _, name := range []string{"anna", "bert"} {
		by := WithActor(context.Background(), Actor{Name: name})
		go func() {
			done <- st.Update(by, name, func(tx *Tx) error { tx.Audit(tailnet.AuditEntry{Action: "b." + name}); return nil })
		}()
	}
	waitOps(t, st, 2)
	release()
	for range 3 {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	cs := store.Commits()
	es := cs[len(cs)-1].Changes.Audit
	if len(es) != 2 || es[0].Action != "b."+es[0].Actor || es[1].Action != "b."+es[1].Actor || es[0].Actor == es[1].Actor {
		t.Errorf("%+v", lastAudit(store))
	}
}

// A fleet of nodes in one function must not be told in full.
func TestAuditIsBounded(t *testing.T) {
	n := &tailnet.Node{Name: "n"}
	for i := range 4000 {
		n.ApprovedRoutes = append(n.ApprovedRoutes, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24))
	}
	if b := rawJSON(nodeFields(n)); len(b) > 5000 || !strings.Contains(string(b), "and 3900 more") {
		t.Errorf("%d bytes", len(b))
	}
}
