package derp

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/http2"
	"tailscale.com/control/controlhttp/controlhttpserver"
	"tailscale.com/control/ts2021"
	"tailscale.com/health"
	"tailscale.com/net/tsdial"
	"tailscale.com/types/key"
	"tailscale.com/util/eventbus/eventbustest"
)

// noiseServer answers /ts2021 and can drop its clients, as a restart does.
type noiseServer struct {
	priv key.MachinePrivate

	mu    sync.Mutex
	conns map[io.Closer]bool
}

func (s *noiseServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c, err := controlhttpserver.AcceptHTTP(r.Context(), w, r, s.priv, nil)
	if err != nil {
		return
	}
	s.mu.Lock()
	s.conns[c] = true
	s.mu.Unlock()
	(&http2.Server{}).ServeConn(c, &http2.ServeConnOpts{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "hello "+r.URL.Path)
	})})
}

func (s *noiseServer) dropAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.Close()
		delete(s.conns, c)
	}
}

// TestTrap: the client of the module does what ForcesTLS says, and our port, listening on 443 as well, brings it back.
func TestTrap(t *testing.T) {
	for _, server := range []string{"http://203.0.113.7:8080", "http://203.0.113.7", "http://skein.example.com:8080", "http://100.64.0.1:8080", "http://192.168.1.5:8080", "http://localhost:8080"} {
		t.Run(server, func(t *testing.T) {
			u, err := url.Parse(server)
			if err != nil {
				t.Fatal(err)
			}
			srv := &noiseServer{priv: key.NewMachine(), conns: map[io.Closer]bool{}}
			_, addr := httpPort(t, srv, ListenerOptions{})
			t.Cleanup(srv.dropAll)

			var mu sync.Mutex
			var ports []string
			dialer := new(tsdial.Dialer)
			dialer.SetBus(eventbustest.NewBus(t))
			dialer.SetSystemDialerForTest(func(ctx context.Context, network, to string) (net.Conn, error) {
				_, port, _ := net.SplitHostPort(to)
				mu.Lock()
				ports = append(ports, port)
				mu.Unlock()
				return new(net.Dialer).DialContext(ctx, network, addr)
			})
			defer dialer.Close()
			nc, err := ts2021.NewClient(ts2021.ClientOpts{
				ServerURL:     server,
				PrivKey:       key.NewMachine(),
				ServerPubKey:  srv.priv.Public(),
				Dialer:        dialer,
				DNSCache:      staticDNS(u.Hostname()),
				HealthTracker: health.NewTracker(eventbustest.NewBus(t)),
				Logf:          func(string, ...any) {},
			})
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			// ask makes a request and returns the ports that were dialled for it.
			ask := func() ([]string, error) {
				t.Helper()
				mu.Lock()
				ports = nil
				mu.Unlock()
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				req, err := http.NewRequestWithContext(ctx, "GET", "https://"+u.Host+"/machine/whoami", nil)
				if err != nil {
					t.Fatal(err)
				}
				res, err := nc.Do(req)
				if err != nil {
					return nil, err
				}
				defer res.Body.Close()
				if b, err := io.ReadAll(res.Body); string(b) != "hello /machine/whoami" {
					t.Errorf("%q, %v", b, err)
				}
				mu.Lock()
				defer mu.Unlock()
				return slices.Clone(ports), nil
			}
			plain := u.Port()
			if plain == "" {
				plain = "80"
			}
			if first, err := ask(); err != nil || len(first) == 0 || first[0] != plain {
				t.Fatalf("first dial on ports %v, want %s first; %v", first, plain, err)
			}
			for range 2 {
				srv.dropAll()
				// Until the client has noticed, a request may still go out on the old connection, and fail with it.
				var again []string
				until(t, "the client dials again", func() bool {
					var err error
					again, err = ask()
					return err == nil && len(again) > 0
				})
				want := plain
				if ForcesTLS(u) {
					want = "443"
				}
				if !slices.Equal(again, []string{want}) {
					t.Errorf("dials again on ports %v, want %s only", again, want)
				}
			}
		})
	}
}

func TestPlainHTTPWarning(t *testing.T) {
	inUse := errors.New("listen tcp :443: bind: permission denied")
	for server, trapped := range map[string]bool{
		"http://203.0.113.7:8080": true, "http://203.0.113.7": true, "http://skein.example.com": true, "http://[2001:db8::1]:8080": true,
		"http://100.64.0.1": true, "http://169.254.1.1": true, "http://nas.lan": true,
		"http://10.0.0.1:8080": false, "http://192.168.1.1": false, "http://172.16.0.1": false, "http://[fd00::1]:8080": false,
		"http://127.0.0.1:8080": false, "http://[::1]": false, "http://localhost:8080": false, "http://203.0.113.7:443": false, "https://203.0.113.7": false, "https://a.example.com": false,
	} {
		u, err := url.Parse(server)
		if err != nil {
			t.Fatal(err)
		}
		if got := ForcesTLS(u); got != trapped {
			t.Errorf("%s: trapped %v, want %v", server, got, trapped)
		}
		if w := PlainHTTPWarning(u, nil); w != "" {
			t.Errorf("%s with port 443: %s", server, w)
		}
		w := PlainHTTPWarning(u, inUse)
		if (w != "") != trapped {
			t.Errorf("%s without port 443: %q", server, w)
		}
		if trapped && (!strings.Contains(w, server) || !strings.Contains(w, inUse.Error()) || !strings.Contains(w, "setcap")) {
			t.Errorf("the warning lacks the URL, the reason or the cure: %s", w)
		}
	}
}
