package integration

import (
	"strings"
	"testing"

	"github.com/skein-vpn/skein/integration/lab"
)

// "tailscale up" with an OAuth client's secret makes itself a key over /api/v2, for the tags of the client and no others.
func TestJoinWithOAuthSecret(t *testing.T) {
	n := newNet(t, lab.EasyNAT, lab.ServerOptions{})
	secret := strings.TrimSpace(n.srv.Skein("oauth-clients", "create", "--scopes", "auth_keys", "--tags", "tag:ci"))
	nas := n.NAS.StartTailscaled(lab.NodeOptions{})
	with := "--auth-key=" + secret + "?ephemeral=true&preauthorized=true&baseURL=" + n.srv.URL
	r := nas.CLI(soon, "up", "--login-server="+n.srv.URL, with, "--advertise-tags=tag:other", "--timeout=5s")
	if row := n.srv.Node("homeDS"); r.Err == nil || row != nil {
		t.Errorf("with a tag that is not the client's: %v, %v", r, row)
	}
	nas.Up(n.srv.URL, with, "--advertise-tags=tag:ci")
	if row := n.srv.Node("homeDS"); row["Namespace"] != "tagged-devices" || row["Ephemeral"] != "true" {
		t.Errorf("%v", row)
	}
}
