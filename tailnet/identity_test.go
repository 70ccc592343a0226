package tailnet_test

import (
	"testing"

	"github.com/skein-vpn/skein/tailnet"
)

func TestJoinProviderID(t *testing.T) {
	for _, c := range []struct{ issuer, subject, want string }{
		{"https://hydra.example.com/", "foo@example.com", "https://hydra.example.com/foo@example.com"},
		{"https://hydra.example.com", "foo@example.com", "https://hydra.example.com/foo@example.com"},
		{"HTTPS://a.example/realms/x", "f3c9", "https://a.example/realms/x/f3c9"},
		{"https://a.example/realms/x///", "f3c9", "https://a.example/realms/x/f3c9"},
		{"https://x.auth0.com/", "auth0|12", "https://x.auth0.com/auth0%7C12"},
		{"https://a.example", "a b", "https://a.example/a%20b"},
		{"https://a.example", "team/7", "https://a.example/team/7"},
		{"https://a.example", "/7", "https://a.example/%2F7"},
		{"https://a.example", "7/", "https://a.example/7%2F"},
		{"https://a.example", "x/../7", "https://a.example/x%2F%2E%2E%2F7"},
		{"https://a.example", "..", "https://a.example/%2E%2E"},
		{"https://a.example", "%37", "https://a.example/%2537"},
		{"https://a.example", "a?b#c", "https://a.example/a%3Fb%23c"},
	} {
		if got := tailnet.JoinProviderID(c.issuer, c.subject); got != c.want {
			t.Errorf("%s and %s: got %s, want %s", c.issuer, c.subject, got, c.want)
		}
	}
}

func TestCleanProviderID(t *testing.T) {
	for in, want := range map[string]string{
		"https://hydra.example.com//foo@example.com": "https://hydra.example.com/foo@example.com",
		"https://a.example/realms/x/f3c9":            "https://a.example/realms/x/f3c9",
		"oddity":                                     "oddity",
		"":                                           "",
	} {
		if got := tailnet.CleanProviderID(in); got != want {
			t.Errorf("%s: got %s, want %s", in, got, want)
		}
	}
}
