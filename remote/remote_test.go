package remote

import (
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

func prefixes(s string) (out []netip.Prefix) {
	for _, p := range strings.Fields(s) {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

// X-Forwarded-For is believed from trusted proxies alone, and from its end: what a client writes into it itself stands
// before what the proxies add.
func TestAddr(t *testing.T) {
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
		if got := Addr(r, prefixes(tt.trusted)); got.String() != tt.want {
			t.Errorf("from %s, forwarded %q, trusted %q: %s, want %s", tt.remote, tt.forwarded, tt.trusted, got, tt.want)
		}
	}
}

// Against a naive twin: write down the way that the request says it has come, and go back along it as long as the proxies
// are trusted.
func FuzzAddr(f *testing.F) {
	f.Add("10.1.2.3:1000", "203.0.113.9, 198.51.100.7, 10.9.9.9", "10.0.0.0/8")
	f.Add("[::1]:1", "fe80::1%eth0,::ffff:10.0.0.1", "::1/128 10.0.0.0/8")
	f.Add("@", ",,,", "0.0.0.0/0")
	f.Add("192.0.2.1:1", "1.2.3.4:5678", "192.0.2.0/24")
	f.Fuzz(func(t *testing.T, remote, forwarded, trusted string) {
		var nets []netip.Prefix
		for s := range strings.FieldsSeq(trusted) {
			if p, err := netip.ParsePrefix(s); err == nil {
				nets = append(nets, p)
			}
		}
		got := Addr(&http.Request{RemoteAddr: remote, Header: http.Header{"X-Forwarded-For": {forwarded}}}, nets)

		conn, err := netip.ParseAddrPort(remote)
		if err != nil {
			if got.IsValid() {
				t.Errorf("%q has the address %v", remote, got)
			}
			return
		}
		way := []netip.Addr{conn.Addr().Unmap()}
		hops := strings.Split(forwarded, ",")
		slices.Reverse(hops)
		for _, h := range hops {
			a, err := netip.ParseAddr(strings.TrimSpace(h))
			if err != nil {
				break
			}
			way = append(way, a.Unmap())
		}
		i := slices.IndexFunc(way, func(a netip.Addr) bool {
			return !slices.ContainsFunc(nets, func(p netip.Prefix) bool { return p.Contains(a) })
		})
		if i < 0 {
			i = len(way) - 1
		}
		if got != way[i] {
			t.Errorf("%q, forwarded %q, trusted %q: %v, want %v", remote, forwarded, trusted, got, way[i])
		}
	})
}

// What one site does costs another nothing, asking too early costs nothing, and who has been quiet is forgotten.
func TestLimiter(t *testing.T) {
	l := NewLimiter(30, 60)
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	a, b := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("192.0.2.2")
	for i := range 60 {
		if w := l.Wait(a, now); w != 0 {
			t.Fatalf("request %d of a burst of 60 would wait %v", i, w)
		}
		if w := l.Take(a, now); w != 0 {
			t.Fatalf("request %d of a burst of 60 waits %v", i, w)
		}
	}
	for range 3 {
		if w := l.Wait(netip.MustParseAddr("2001:db8::2"), now); w != 2*time.Second {
			t.Errorf("a neighbour in the same /64 would wait %v, want 2 s", w)
		}
		if w := l.Take(a, now); w != 2*time.Second {
			t.Errorf("one more waits %v, want 2 s", w)
		}
	}
	if w := l.Take(b, now); w != 0 {
		t.Errorf("another address waits %v", w)
	}
	if w := l.Wait(a, now.Add(2*time.Second)); w != 0 {
		t.Errorf("after 2 s it still waits %v", w)
	}
	l.Take(b, now.Add(90*time.Second)) // b's bucket is full by now, a's is not
	if len(l.rates) != 2 {
		t.Errorf("%d rates are kept, want a's and b's new one", len(l.rates))
	}
	l.Take(a, now.Add(time.Hour))
	if len(l.rates) != 1 {
		t.Errorf("%d rates are kept after an hour, want the newest", len(l.rates))
	}
}
