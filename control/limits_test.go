package control

import (
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skein-vpn/skein/remote"
)

func prefixes(s string) (out []netip.Prefix) {
	for _, p := range strings.Fields(s) {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

// Connections of one IPv6 network count together, as one subscriber has all of it.
func TestConnectionsBySite(t *testing.T) {
	l := newLimiter(Limits{Connections: 2})
	a := netip.MustParseAddr
	for _, tt := range []struct {
		addr string
		want bool
	}{
		{"192.0.2.1", true}, {"::ffff:192.0.2.1", true}, {"192.0.2.1", false}, {"192.0.2.2", true},
		{"2001:db8::1", true}, {"2001:db8::ffff:1", true}, {"2001:db8:0:0:9::1", false}, {"2001:db8:0:1::1", true},
		{"fe80::1%eth0", true}, {"fe80::1%eth1", true}, {"fe80::2", false},
	} {
		if got := l.connect(a(tt.addr)); got != tt.want {
			t.Errorf("connect(%s) = %v, want %v", tt.addr, got, tt.want)
		}
	}
	l.disconnect(a("192.0.2.1"))
	if !l.connect(a("192.0.2.1")) {
		t.Error("what is given back cannot be taken again")
	}
	l.disconnect(a("192.0.2.1"))
	l.disconnect(a("192.0.2.1"))
	for i, want := range []bool{true, true, false} {
		if got := l.connect(netip.Addr{}); got != want {
			t.Errorf("connection %d from nowhere: %v, want %v", i, got, want)
		}
	}
	if _, ok := l.conns[remote.Site(a("192.0.2.1"))]; ok {
		t.Error("an address without connections is still kept")
	}
}

func TestRegistrationsBySite(t *testing.T) {
	l := newLimiter(Limits{RegistrationsPerMinute: 30})
	a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	for i := range 60 {
		if w := l.register(a); w != 0 {
			t.Fatalf("request %d of a burst of 60 waits %v", i, w)
		}
	}
	for range 3 { // asking too early costs nothing
		if w := l.register(a); w <= 0 || w > 2*time.Second {
			t.Errorf("one more waits %v, want up to 2 s", w)
		}
	}
	if w := l.register(b); w != 0 {
		t.Errorf("another address waits %v", w)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 100 {
				l.register(a)
				if l.connect(a) {
					l.disconnect(a)
				}
			}
		})
	}
	wg.Wait()
}
