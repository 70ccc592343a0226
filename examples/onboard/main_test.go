package main

import (
	"bytes"
	"context"
	"log/slog"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"tailscale.com/tailcfg"

	"github.com/skein-vpn/skein/api"
	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/db"
	"github.com/skein-vpn/skein/dns"
	"github.com/skein-vpn/skein/state"
)

func TestOnboard(t *testing.T) {
	ctx := context.Background()
	d, err := db.Open(ctx, db.Options{Path: filepath.Join(t.TempDir(), "db")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	st, err := state.Open(ctx, state.Options{
		Store: d, DNS: &dns.Settings{}, DERP: &state.DERPMaps{Current: &tailcfg.DERPMap{}}, Log: slog.New(slog.DiscardHandler),
		Addressing: state.Addressing{Prefix4: netip.MustParsePrefix("100.64.0.0/10")},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(st.Close)
	a := auth.New(auth.Options{State: st, Store: d})
	srv := httptest.NewServer(api.NewHandler(api.Options{State: st, Auth: a, Gate: api.NewGate(a, nil, nil)}))
	t.Cleanup(srv.Close)
	key, _, err := a.CreateAPIKey(ctx, auth.SocketPrincipal("test"), auth.APIKeyRequest{
		Scopes: []string{auth.ScopeUsers, auth.ScopeAuthKeys, auth.ScopePolicy},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("SKEIN_API_KEY", key)
	t.Setenv("SKEIN_SERVER", srv.URL)

	for _, args := range [][]string{
		{"-name", "junyao", "-network", "192.168.199.0/24"}, {"-name", "junyao", "-network", "192.168.199.0/24"},
		{"-name", "junyao", "-network", "10.8.0.0/16"}, {"-name", "anna", "-network", "10.8.0.0/16"},
	} {
		var out bytes.Buffer
		if err := run(ctx, args, &out); err != nil {
			t.Fatalf("%v: %v", args, err)
		}
		if !strings.HasPrefix(out.String(), "tailscale up --login-server "+srv.URL+" --auth-key tskey-auth-") {
			t.Errorf("it says %s", out.String())
		}
	}
	sn := st.Snapshot()
	if len(sn.Users()) != 2 || len(sn.PreAuthKeys()) != 4 || sn.Text.ID != 3 {
		t.Errorf("%d users, %d keys, policy version %d", len(sn.Users()), len(sn.PreAuthKeys()), sn.Text.ID)
	}
	for _, want := range []string{`"192.168.199.0/24": ["junyao@"]`, `"anna@"`, `"onboarding`} {
		if !strings.Contains(sn.Text.Text+`"`+sn.Text.Comment, want) {
			t.Errorf("the policy lacks %s:\n%s", want, sn.Text.Text)
		}
	}
	if err := run(ctx, []string{"-name", "x", "-network", "192.168.199.1/24"}, &bytes.Buffer{}); err == nil || !strings.Contains(err.Error(), "192.168.199.0/24") {
		t.Errorf("a network with host bits: %v", err)
	}
}
