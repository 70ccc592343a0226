package control

import (
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/time/rate"
)

func prefixes(s string) (out []netip.Prefix) {
	for _, p := range strings.Fields(s) {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

// X-Forwarded-For is believed from trusted proxies alone, and from its end: what a client writes into it itself stands
// before what the proxies add.
func TestRemoteAddr(t *testing.T) {
	const proxies = "10.0.0.0/8 ::1/128 2001:db8:1::/48"
	for _, tt := range []struct{ remote, forwarded, trusted, want string }{
		{"192.0.2.1:1000", "", "", "192.0.2.1"},
		{"192.0.2.1:1000", "198.51.100.7", "", "192.0.2.1"},
		{"192.0.2.1:1000", "198.51.100.7", proxies, "192.0.2.1"},
		{"10.1.2.3:1000", "", proxies, "10.1.2.3"},
		{"10.1.2.3:1000", "198.51.100.7", proxies, "198.51.100.7"},
		{"10.1.2.3:1000", " 198.51.100.7 ", proxies, "198.51.100.7"},
		{"10.1.2.3:1000", "203.0.113.9, 198.51.100.7", proxies, "198.51.100.7"},            // the first is the client's word
		{"10.1.2.3:1000", "203.0.113.9, 198.51.100.7, 10.9.9.9", proxies, "198.51.100.7"},  // two proxies
		{"10.1.2.3:1000", "203.0.113.9 | 198.51.100.7, 10.9.9.9", proxies, "198.51.100.7"}, // in two header lines
		{"10.1.2.3:1000", "10.7.7.7, 10.9.9.9", proxies, "10.7.7.7"},                       // nothing but proxies
		{"10.1.2.3:1000", "198.51.100.7, rubbish", proxies, "10.1.2.3"},
		{"10.1.2.3:1000", "198.51.100.7, , 10.9.9.9", proxies, "10.9.9.9"},
		{"10.1.2.3:1000", "unknown", proxies, "10.1.2.3"},
		{"10.1.2.3:1000", "::ffff:198.51.100.7", proxies, "198.51.100.7"},
		{"10.1.2.3:1000", "2001:db8:2::1", proxies, "2001:db8:2::1"},
		{"[::1]:1000", "203.0.113.9, 2001:db8:1::5", proxies, "203.0.113.9"},
		{"[::ffff:10.1.2.3]:1000", "198.51.100.7", proxies, "198.51.100.7"},
		{"[2001:db8:2::1]:1000", "198.51.100.7", proxies, "2001:db8:2::1"},
		{"@", "198.51.100.7", proxies, "invalid IP"},
		{"", "198.51.100.7", "0.0.0.0/0 ::/0", "invalid IP"},
		{"10.1.2.3:1000", "198.51.100.7, 203.0.113.9", "0.0.0.0/0", "198.51.100.7"},
	} {
		r := &http.Request{RemoteAddr: tt.remote, Header: http.Header{}}
		for line := range strings.SplitSeq(tt.forwarded, "|") {
			r.Header.Add("X-Forwarded-For", line)
		}
		if got := remoteAddr(r, prefixes(tt.trusted)); got.String() != tt.want {
			t.Errorf("from %s, forwarded %q, trusted %q: %s, want %s", tt.remote, tt.forwarded, tt.trusted, got, tt.want)
		}
	}
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
	if _, ok := l.conns[site(a("192.0.2.1"))]; ok {
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
	l.swept = time.Now().Add(-time.Hour)
	l.rates[site(b)] = rate.NewLimiter(0.5, 60) // its bucket is full: b has been quiet for long
	l.register(netip.MustParseAddr("192.0.2.3"))
	if len(l.rates) != 2 || l.rates[site(b)] != nil || l.rates[site(a)] == nil {
		t.Errorf("%d rates are kept; want those of the busy address and of the newest", len(l.rates))
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
