package main

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	"go4.org/mem"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"

	"github.com/skein-vpn/skein/api"
	"github.com/skein-vpn/skein/config"
	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// addTestNode makes a node that takes part, with the first address that is free.
func addTestNode(t *testing.T, st *state.State, name string, b byte) tailnet.NodeID {
	t.Helper()
	var id tailnet.NodeID
	err := st.Update(t.Context(), "test", func(tx *state.Tx) error {
		u := tx.UserByName("junyao")
		if u == nil {
			u = tx.NewUser("junyao")
			if err := tx.PutUser(u); err != nil {
				return err
			}
		}
		n, err := tx.NewNode(name)
		if err != nil {
			return err
		}
		raw := mem.B(bytes.Repeat([]byte{b}, 32))
		n.StableID, n.NodeKey, n.MachineKey, n.DiscoKey = "n"+name, key.NodePublicFromRaw32(raw), key.MachinePublicFromRaw32(raw), key.DiscoPublicFromRaw32(raw)
		n.User, n.Authorized, n.RegisterMethod = u.ID, true, tailnet.RegisteredByCLI
		n.Hostinfo = &tailcfg.Hostinfo{Hostname: name, OS: "linux"}
		id = n.ID
		return tx.PutNode(n)
	})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// The page of a whole server, and the map that it would send: what a client's own reader makes of it, for old ones and new ones.
func TestStatusAndNetmapOfAServer(t *testing.T) {
	s := startServer(t, func(c *config.Config) { c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")} })
	a := addTestNode(t, s.state, "a", 1)
	addTestNode(t, s.state, "b", 2)
	cl := api.NewUnixClient(s.cfg.UnixSocket)
	st, err := cl.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if st.Server.Key != s.noise.Public().String() || st.Server.URL != s.cfg.ServerURL || !strings.HasPrefix(st.Server.Database, "SQLite /") || st.Server.StartedAt == nil ||
		len(st.Checks) != 4 || st.Nodes.Total != 2 || len(st.Relays) != 1 || len(st.Warnings) != 1 || !strings.Contains(st.Warnings[0].Remedy, "trusted_proxies") {
		t.Errorf("%+v", st)
	}
	for _, capver := range []int{0, 90, 142} {
		m, err := cl.Netmap(t.Context(), api.Ref(a.String()), capver)
		if err != nil {
			t.Fatal(err)
		}
		var res tailcfg.MapResponse
		if err := json.Unmarshal(m.Map, &res); err != nil {
			t.Fatal(err)
		}
		if res.Node == nil || res.Node.ID != a.Tailcfg() || len(res.Peers) != 1 || res.Peers[0].Hostinfo.Hostname() != "b" || res.DERPMap == nil || m.Bytes != len(m.Map) {
			t.Errorf("capver %d: %s", capver, m.Map)
		}
		if capver != 0 && m.Capver != capver {
			t.Errorf("capver %d is %d", capver, m.Capver)
		}
		if strings.Contains(string(m.Map), "privkey") {
			t.Error("there is a private key in the map")
		}
	}
	var out, errs bytes.Buffer
	if code := run([]string{"debug", "netmap", "a", "--socket", s.cfg.UnixSocket}, nil, &out, &errs); code != exitOK || !strings.Contains(out.String(), "\n  \"Peers\": [\n") {
		t.Errorf("%d %s %s", code, out.String(), errs.String())
	}
	err = s.state.Update(t.Context(), "test", func(tx *state.Tx) error {
		n := tx.Node(a).Clone()
		n.Authorized = false
		return tx.PutNode(n)
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cl.Netmap(t.Context(), "a", 0); tailnet.CodeOf(err) != tailnet.Conflict || !strings.Contains(err.Error(), "needs-approval") {
		t.Error(err)
	}
}
