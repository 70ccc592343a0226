package derp

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// httpPort serves a handler on a Listener on loopback and returns its address.
func httpPort(t *testing.T, h http.Handler, o ListenerOptions) (*Listener, string) {
	t.Helper()
	raw, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if o.TLS == nil {
		cert, err := SelfSigned(filepath.Join(t.TempDir(), "c.pem"), []string{"127.0.0.1", "localhost"}, nil)
		if err != nil {
			t.Fatal(err)
		}
		o.TLS = cert.TLSConfig()
	}
	l := NewListener(raw, o)
	srv := &http.Server{Handler: h}
	PrepareServer(srv)
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	t.Cleanup(func() {
		srv.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("Serve: %v", err)
		}
	})
	return l, raw.Addr().String()
}

var anyCert = &tls.Config{InsecureSkipVerify: true}

// get asks once, on a connection of its own.
func get(t *testing.T, url string) (string, error) {
	t.Helper()
	hc := &http.Client{Transport: &http.Transport{TLSClientConfig: anyCert, DisableKeepAlives: true}, Timeout: patience}
	res, err := hc.Get(url)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return string(b), err
}

var sayScheme = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	if r.TLS != nil {
		fmt.Fprintf(w, "tls %s %s", tls.VersionName(r.TLS.Version), r.TLS.NegotiatedProtocol)
	} else {
		io.WriteString(w, "plain")
	}
})

func TestOnePortTwoProtocols(t *testing.T) {
	_, addr := httpPort(t, sayScheme, ListenerOptions{})
	for url, want := range map[string]string{"http://" + addr: "plain", "https://" + addr: "tls TLS 1.3 "} {
		if got, err := get(t, url); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", url, got, err, want)
		}
	}
	// A client that asks for h2 and h1 is given h1; one that asks for h2 only is refused.
	c, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2", "http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if p := c.ConnectionState().NegotiatedProtocol; p != "http/1.1" {
		t.Errorf("ALPN gave %q", p)
	}
	if c, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}); err == nil {
		c.Close()
		t.Error("h2 alone was accepted")
	}
}

// TestSilentClients: connections that send nothing, or half a handshake, hold up nobody.
func TestSilentClients(t *testing.T) {
	_, addr := httpPort(t, sayScheme, ListenerOptions{FirstByteTimeout: time.Hour, HandshakeTimeout: time.Hour})
	for i := range 300 {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		switch i % 3 {
		case 1:
			c.Write([]byte{recordTypeHandshake})
		case 2:
			c.Write([]byte("G"))
		}
	}
	for _, scheme := range []string{"http://", "https://"} {
		if got, err := get(t, scheme+addr); err != nil || got == "" {
			t.Errorf("%s: %q, %v", scheme, got, err)
		}
	}
}

func TestTimeouts(t *testing.T) {
	const short = 50 * time.Millisecond
	for name, tt := range map[string]struct {
		o    ListenerOptions
		send string
	}{
		"first byte": {ListenerOptions{FirstByteTimeout: short, HandshakeTimeout: time.Hour}, ""},
		"handshake":  {ListenerOptions{FirstByteTimeout: time.Hour, HandshakeTimeout: short}, "\x16\x03\x01"},
	} {
		t.Run(name, func(t *testing.T) {
			_, addr := httpPort(t, sayScheme, tt.o)
			c, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			io.WriteString(c, tt.send)
			c.SetReadDeadline(time.Now().Add(patience))
			if b, err := io.ReadAll(c); errors.Is(err, os.ErrDeadlineExceeded) || len(b) > 0 && b[0] != 0x15 { // a TLS alert is fine
				t.Errorf("got %q, %v; want the server to hang up", b, err)
			}
		})
	}
}

// TestGarbage: what is neither HTTP nor TLS gets an answer of the protocol it looks like, or none, and does no harm.
func TestGarbage(t *testing.T) {
	_, addr := httpPort(t, sayScheme, ListenerOptions{})
	for _, send := range []string{"\x00", "\x16", "\x16garbage garbage garbage", "\x15\x03\x01\x00\x02\x01\x00", "SSH-2.0-x\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", strings.Repeat("\xff", 1<<16)} {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, send)
		c.(*net.TCPConn).CloseWrite()
		c.SetReadDeadline(time.Now().Add(patience))
		if b, err := io.ReadAll(c); errors.Is(err, os.ErrDeadlineExceeded) || strings.Contains(string(b), "200 OK") {
			t.Errorf("%.20q: got %.60q, %v", send, b, err)
		}
		c.Close()
	}
	if got, err := get(t, "https://"+addr); err != nil || got == "" {
		t.Errorf("afterwards: %q, %v", got, err)
	}
}

// TestHijack: after a take-over, both kinds of connection carry bytes both ways, deadlines work, and none of ours is left.
func TestHijack(t *testing.T) {
	ended := make(chan error, 2)
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, brw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			ended <- err
			return
		}
		defer c.Close()
		if own := c.(*Conn); !own.limit.IsZero() {
			ended <- errors.New("the time limit for the first byte or the handshake is still set")
			return
		}
		fmt.Fprintf(brw, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: Upgrade\r\n\r\n")
		brw.Flush()
		line, err := brw.ReadString('\n')
		if err == nil {
			io.WriteString(brw, line)
			brw.Flush()
		}
		c.SetReadDeadline(time.Now())
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			ended <- fmt.Errorf("deadline: %w", err)
			return
		}
		c.SetDeadline(time.Time{})
		_, err = c.Read(make([]byte, 1)) // until the peer hangs up
		if errors.Is(err, io.EOF) {
			err = nil
		}
		ended <- err
	})
	_, addr := httpPort(t, h, ListenerOptions{})
	for _, dial := range []func() (net.Conn, error){
		func() (net.Conn, error) { return net.Dial("tcp", addr) },
		func() (net.Conn, error) { return tls.Dial("tcp", addr, anyCert) },
	} {
		c, err := dial()
		if err != nil {
			t.Fatal(err)
		}
		// The line comes along with the request, so it is in the server's buffer at the take-over.
		fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nhello\n")
		br := bufio.NewReader(c)
		res, err := http.ReadResponse(br, nil)
		if err != nil || res.StatusCode != 101 {
			t.Fatalf("%v, %v", res, err)
		}
		if line, err := br.ReadString('\n'); line != "hello\n" {
			t.Errorf("echo %q, %v", line, err)
		}
		c.Close()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

func TestPerAddressLimit(t *testing.T) {
	l, addr := httpPort(t, sayScheme, ListenerOptions{PerAddress: 2, Exempt: func(netip.Addr) bool { return false }})
	var held []net.Conn
	for range 2 {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, c)
	}
	third, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer third.Close()
	third.SetReadDeadline(time.Now().Add(patience))
	if _, err := third.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the third connection: %v, want it closed", err)
	}
	if l.Refused() != 1 {
		t.Errorf("refused %d", l.Refused())
	}
	for _, c := range held {
		c.Close()
	}
	until(t, "room again", func() bool { got, err := get(t, "http://"+addr); return err == nil && got == "plain" })
	until(t, "nothing counted", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.perAddr) == 0
	})

	// IPv6 is counted by network, exempt addresses not at all.
	l = NewListener(nil, ListenerOptions{PerAddress: 1})
	for _, tt := range []struct {
		addr string
		ok   bool
	}{
		{"[2001:db8::1]:1", true}, {"[2001:db8::2]:1", false}, {"[2001:db8:0:1::2]:1", true}, {"[::1]:1", true}, {"[::1]:2", true},
		{"192.0.2.1:1", true}, {"[::ffff:192.0.2.1]:2", false}, {"192.0.2.2:1", true}, {"127.0.0.1:1", true}, {"127.0.0.1:1", true},
	} {
		if _, ok := l.enter(net.TCPAddrFromAddrPort(netip.MustParseAddrPort(tt.addr))); ok != tt.ok {
			t.Errorf("%s: %v, want %v", tt.addr, ok, tt.ok)
		}
	}
}

func TestCloseWakesAccept(t *testing.T) {
	raw, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := NewListener(raw, ListenerOptions{TLS: anyCert})
	errc := make(chan error, 1)
	go func() {
		_, err := l.Accept()
		errc <- err
	}()
	l.Close()
	if err := <-errc; !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}

// TestConnConcurrency: whoever comes first finds out what the connection is; Close ends a wait.
func TestConnConcurrency(t *testing.T) {
	ours, theirs := net.Pipe()
	defer theirs.Close()
	c := &Conn{raw: ours, l: NewListener(nil, ListenerOptions{TLS: anyCert})}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if _, err := c.Read(make([]byte, 1)); err == nil {
				t.Error("read from a closed connection")
			}
		})
		wg.Go(func() {
			if _, err := c.Write([]byte("x")); err == nil {
				t.Error("wrote to a closed connection")
			}
		})
		wg.Go(func() { c.SetDeadline(time.Now().Add(time.Hour)) })
	}
	if c.TLS() != nil {
		t.Error("TLS before anything was received")
	}
	c.Close()
	wg.Wait()
	if err := c.CloseWrite(); err == nil {
		t.Error("CloseWrite on nothing")
	}
}
