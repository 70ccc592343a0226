package derp

import (
	"bufio"
	"io"
	"log/slog"
	"net/netip"

	"tailscale.com/net/dnscache"
)

func newReadWriter(rw io.ReadWriter) *bufio.ReadWriter {
	return bufio.NewReadWriter(bufio.NewReader(rw), bufio.NewWriter(rw))
}

var discard = slog.New(slog.DiscardHandler)

// staticDNS resolves one name to an address that is not used: test dialers go elsewhere.
func staticDNS(host string) *dnscache.Resolver {
	return &dnscache.Resolver{SingleHost: host, SingleHostStaticResult: []netip.Addr{netip.MustParseAddr("203.0.113.7")}}
}
