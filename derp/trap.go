package derp

import (
	"fmt"
	"net/netip"
	"net/url"
)

// ForcesTLS reports whether running clients of a server with this URL come back by TLS on port 443 only.
//
// The client takes a dial within two minutes of the last one for a sign that something tampers with plain HTTP, and then uses
// TLS on port 443 (control/controlhttp:Dialer.forceNoise443, health:Tracker.LastNoiseDialWasRecent; the same from v1.80.3 to
// v1.102.5). As each try counts as a dial, it never returns to HTTP while it keeps trying. It leaves port 443 alone only if the
// host is a private or loopback address, or "localhost" (control/ts2021:NewClient). A name counts as public whatever it
// resolves to, and so do 100.64.0.0/10 and link-local addresses.
func ForcesTLS(server *url.URL) bool {
	if server.Scheme != "http" || server.Port() == "443" { // 443 is served then, by TLS as well
		return false
	}
	host := server.Hostname()
	a, _ := netip.ParseAddr(host)
	return !(a.IsPrivate() || a.IsLoopback() || host == "localhost")
}

// PlainHTTPWarning returns what to tell the administrator at the start, "" when clients will find their way back: it is the trap
// of ForcesTLS. fallback is the error of listening on port 443 of all addresses (tls_fallback_listen_addr), nil if that works;
// pass an error such as errors.New("switched off in the configuration") when it was not tried.
func PlainHTTPWarning(server *url.URL, fallback error) string {
	if fallback == nil || !ForcesTLS(server) {
		return ""
	}
	return fmt.Sprintf(`WARNING: clients will not find this server again after a restart.
  The server URL %s is plain HTTP on an address that clients take for public. A client that has to reconnect insists on
  TLS on port 443 of %s, and Skein cannot answer there: %v.
  New clients can join, but those already connected stay away until their tailscaled is restarted. Do one of these:
  - let Skein use port 443: run it as root, or give it the right with "setcap cap_net_bind_service=+ep" on the binary or
    "AmbientCapabilities=CAP_NET_BIND_SERVICE" in its systemd unit; if another program has the port, stop that one;
  - forward TCP port 443 of %s to Skein's HTTP port, which speaks TLS as well: no certificate is needed;
  - use an https:// server URL with a certificate, or a reverse proxy that has one;
  - or, if all clients are on your own network, a server URL with a private address instead of a name.
`, server, server.Hostname(), fallback, server.Hostname())
}
