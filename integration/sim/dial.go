package sim

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"tailscale.com/control/controlbase"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// target is the server under load.
type target struct {
	url  *url.URL
	addr string // host:port
	key  key.MachinePublic
}

// newTarget looks at a URL. Unless remote, it must lead to this machine and nowhere else: load is not for strangers.
func newTarget(ctx context.Context, raw string, remote bool) (*target, error) {
	u, err := url.Parse(raw)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" {
		return nil, fmt.Errorf("-url %q is not the address of a server, such as http://127.0.0.1:8080", raw)
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	if !remote {
		ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", u.Hostname())
		if err != nil {
			return nil, fmt.Errorf("-url: %w", err)
		}
		for _, ip := range ips {
			if ip = ip.Unmap(); !ip.IsLoopback() {
				return nil, fmt.Errorf("-url: %s is not on this machine (%s); if its owner agrees to the load, say -allow-remote", u.Hostname(), ip)
			}
		}
	}
	return &target{url: u, addr: net.JoinHostPort(u.Hostname(), port)}, nil
}

// fetchKey asks for the server's Noise key.
func (t *target) fetchKey(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	u := t.url.JoinPath("key")
	u.RawQuery = "v=" + strconv.Itoa(int(tailcfg.CurrentCapabilityVersion))
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return err
	}
	res, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: insecure}}).Do(req)
	if err != nil {
		return fmt.Errorf("asking the server for its key: %w", err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, 64<<10))
	if err != nil {
		return fmt.Errorf("asking the server for its key: %w", err)
	}
	var answer tailcfg.OverTLSPublicKeyResponse
	if res.StatusCode != http.StatusOK || json.Unmarshal(b, &answer) != nil || answer.PublicKey.IsZero() {
		return fmt.Errorf("%s is not a coordination server: status %d, %.100q", u, res.StatusCode, b)
	}
	t.key = answer.PublicKey
	return nil
}

// insecure: whom we talk to is proven by Noise; clients only log what is wrong with a certificate there.
var insecure = &tls.Config{InsecureSkipVerify: true}

// handshakeTimeout is how long TCP, upgrade and Noise may take together, as in ts2021.Client.dial.
const handshakeTimeout = 10 * time.Second

// statusError is an answer to the upgrade that is not 101.
type statusError struct {
	status string
	after  time.Duration // Retry-After; 0: not said
}

func (e *statusError) Error() string { return "the server refused the connection: " + e.status }

// dial opens a Noise connection: one HTTP request with the handshake in it (controlhttp.Dialer.tryURLUpgrade), plainly to
// the address in the URL and nowhere else. rx and tx count the bytes on the wire.
func (t *target) dial(ctx context.Context, machine key.MachinePrivate, rx, tx *atomic.Int64) (*controlbase.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	raw, err := new(net.Dialer).DialContext(ctx, "tcp", t.addr)
	if err != nil {
		return nil, err
	}
	var nc net.Conn = &wire{Conn: raw, rx: rx, tx: tx}
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	conn, err := t.upgrade(ctx, nc, machine)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		raw.Close()
		return nil, err
	}
	return conn, nil
}

func (t *target) upgrade(ctx context.Context, nc net.Conn, machine key.MachinePrivate) (*controlbase.Conn, error) {
	if t.url.Scheme == "https" {
		c := tls.Client(nc, &tls.Config{InsecureSkipVerify: true, ServerName: t.url.Hostname()})
		if err := c.HandshakeContext(ctx); err != nil {
			return nil, err
		}
		nc = &wire{Conn: c, rx: new(atomic.Int64), tx: new(atomic.Int64)}
	}
	hello, proceed, err := controlbase.ClientDeferred(machine, t.key, uint16(tailcfg.CurrentCapabilityVersion))
	if err != nil {
		return nil, err
	}
	_, err = io.WriteString(nc, "POST /ts2021 HTTP/1.1\r\nHost: "+t.url.Host+"\r\nUser-Agent: Go-http-client/1.1\r\nContent-Length: 0\r\n"+
		"Connection: upgrade\r\nUpgrade: tailscale-control-protocol\r\nX-Tailscale-Handshake: "+
		base64.StdEncoding.EncodeToString(hello)+"\r\n\r\n")
	if err != nil {
		return nil, err
	}
	if err := readUpgrade(nc); err != nil {
		return nil, err
	}
	return proceed(ctx, nc)
}

// readUpgrade reads the answer to the upgrade up to its empty line and not a byte more.
func readUpgrade(r io.Reader) error {
	var head []byte
	var b [1]byte
	for !strings.HasSuffix(string(head[max(0, len(head)-4):]), "\r\n\r\n") {
		if len(head) > 8<<10 {
			return errors.New("the server's answer to the upgrade has no end")
		}
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return err
		}
		head = append(head, b[0])
	}
	status, fields, _ := strings.Cut(string(head), "\r\n")
	_, status, _ = strings.Cut(status, " ")
	if strings.HasPrefix(status, "101 ") || status == "101" {
		return nil
	}
	e := &statusError{status: status}
	for line := range strings.SplitSeq(fields, "\r\n") {
		if k, v, _ := strings.Cut(line, ":"); strings.EqualFold(k, "Retry-After") {
			seconds, _ := strconv.Atoi(strings.TrimSpace(v))
			e.after = min(time.Duration(max(seconds, 0))*time.Second, time.Hour)
		}
	}
	return e
}

// wire is a connection that counts bytes. Its small buffer takes a whole small record from the kernel at once: Noise reads
// the three bytes of a record's head by themselves.
type wire struct {
	net.Conn
	rx, tx *atomic.Int64
	buf    [1024]byte
	r, n   int // buf[r:n] is not read yet
}

func (w *wire) Read(p []byte) (int, error) {
	if w.r == w.n {
		if len(p) >= len(w.buf) {
			n, err := w.Conn.Read(p)
			w.rx.Add(int64(n))
			return n, err
		}
		n, err := w.Conn.Read(w.buf[:])
		w.rx.Add(int64(n))
		w.r, w.n = 0, n
		if n == 0 {
			return 0, err
		}
	}
	n := copy(p, w.buf[w.r:w.n])
	w.r += n
	return n, nil
}

func (w *wire) Write(p []byte) (int, error) {
	n, err := w.Conn.Write(p)
	w.tx.Add(int64(n))
	return n, err
}
