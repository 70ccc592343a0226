package derp

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// One TCP port for plain HTTP and TLS:
//
//	Accept ──► Conn, nothing read yet ──first Read/Write, in the goroutine that serves it──► first byte
//	                                                 0x16 (TLS handshake record) ──► handshake ──► TLS
//	                                                 anything else ────────────────────────────► plain
//
// Accept never reads, so a client that connects and stays silent costs the others nothing: it holds one connection of its own
// until FirstByteTimeout. No goroutine is started here, so there is none to bound or to leak.

// recordTypeHandshake is the first byte of every TLS connection (RFC 8446, section 5.1). No HTTP method starts with it.
const recordTypeHandshake = 0x16

// Time limits where ListenerOptions gives none.
const (
	DefaultFirstByteTimeout = 10 * time.Second
	DefaultHandshakeTimeout = 10 * time.Second
)

// ListenerOptions says how NewListener treats connections.
type ListenerOptions struct {
	// TLS is used for connections that start with a TLS handshake. Required. It must not offer h2: /derp and /ts2021 take the
	// connection over, which HTTP/2 cannot do. Certificate.TLSConfig is right.
	TLS *tls.Config

	FirstByteTimeout time.Duration // zero: DefaultFirstByteTimeout
	HandshakeTimeout time.Duration // zero: DefaultHandshakeTimeout

	// PerAddress is the most connections at a time from one IPv4 address or one IPv6 /64; more are closed at once. Zero: no limit.
	PerAddress int

	// Exempt reports whether an address is free of that limit, such as a trusted proxy's. Nil: loopback is.
	Exempt func(netip.Addr) bool
}

// Listener yields connections of type *Conn. An http.Server serves it as it is; see PrepareServer.
type Listener struct {
	net.Listener
	o       ListenerOptions
	refused atomic.Int64

	mu      sync.Mutex
	perAddr map[netip.Prefix]int
}

// NewListener wraps l. Closing the Listener closes l; connections already accepted live on.
func NewListener(l net.Listener, o ListenerOptions) *Listener {
	if o.FirstByteTimeout == 0 {
		o.FirstByteTimeout = DefaultFirstByteTimeout
	}
	if o.HandshakeTimeout == 0 {
		o.HandshakeTimeout = DefaultHandshakeTimeout
	}
	if o.Exempt == nil {
		o.Exempt = netip.Addr.IsLoopback
	}
	return &Listener{Listener: l, o: o, perAddr: map[netip.Prefix]int{}}
}

// PrepareServer lets srv's handlers see Request.TLS for connections of a Listener that turned out to be TLS: net/http fills it in
// for *tls.Conn only. Set srv.Handler first, call this once, then srv.Serve each Listener.
func PrepareServer(srv *http.Server) {
	next := srv.Handler
	if next == nil {
		next = http.DefaultServeMux
	}
	srv.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c, ok := r.Context().Value(connKey{}).(*Conn); ok {
			r.TLS = c.TLS()
		}
		next.ServeHTTP(w, r)
	})
	outer := srv.ConnContext
	srv.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		if outer != nil {
			ctx = outer(ctx, c)
		}
		return context.WithValue(ctx, connKey{}, c)
	}
}

type connKey struct{}

// Accept waits for the next connection. It does not read from it.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		raw, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		from, ok := l.enter(raw.RemoteAddr())
		if !ok {
			l.refused.Add(1)
			raw.Close()
			continue
		}
		return &Conn{raw: raw, l: l, from: from}, nil
	}
}

// Refused returns how many connections were closed since the start because of PerAddress.
func (l *Listener) Refused() int64 { return l.refused.Load() }

// enter counts a connection. The prefix is zero when it is not counted.
func (l *Listener) enter(remote net.Addr) (netip.Prefix, bool) {
	tcp, ok := remote.(*net.TCPAddr)
	if !ok || l.o.PerAddress <= 0 {
		return netip.Prefix{}, true
	}
	addr := tcp.AddrPort().Addr().Unmap().WithZone("")
	if !addr.IsValid() || l.o.Exempt(addr) {
		return netip.Prefix{}, true
	}
	bits := 32
	if addr.Is6() {
		bits = 64 // one customer's network: addresses inside it cost nothing
	}
	from := netip.PrefixFrom(addr, bits).Masked()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.perAddr[from] >= l.o.PerAddress {
		return netip.Prefix{}, false
	}
	l.perAddr[from]++
	return from, true
}

func (l *Listener) leave(from netip.Prefix) {
	if !from.IsValid() {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.perAddr[from]--; l.perAddr[from] <= 0 {
		delete(l.perAddr, from)
	}
}

// Conn is a connection that finds out at its first Read or Write whether it is TLS.
type Conn struct {
	raw  net.Conn
	l    *Listener
	from netip.Prefix // where it is counted; zero: nowhere

	left    sync.Once
	settled atomic.Pointer[settled] // nil until the first byte (and the TLS handshake) is done
	settle1 sync.Mutex              // held while finding out

	mu     sync.Mutex
	rd, wd time.Time // deadlines set by the user; zero: none
	limit  time.Time // our own deadline while finding out; zero: not now
}

// settled is what a Conn turned out to be.
type settled struct {
	conn net.Conn  // the plain or the TLS side; nil when err is set
	tls  *tls.Conn // nil: plain
	err  error
}

// settle reads the first byte and completes a TLS handshake if there is one. Only the first caller does so; the others wait.
func (c *Conn) settle() (*settled, error) {
	if s := c.settled.Load(); s != nil {
		return s, s.err
	}
	c.settle1.Lock()
	defer c.settle1.Unlock()
	if s := c.settled.Load(); s != nil {
		return s, s.err
	}
	s := c.find()
	c.settled.Store(s)
	return s, s.err
}

func (c *Conn) find() *settled {
	defer c.setLimit(time.Time{})
	c.setLimit(time.Now().Add(c.l.o.FirstByteTimeout))
	first := &firstByteConn{Conn: c.raw}
	var b [1]byte
	if _, err := c.raw.Read(b[:]); err != nil {
		return &settled{err: err}
	}
	first.b, first.has = b[0], true
	if b[0] != recordTypeHandshake {
		return &settled{conn: first}
	}
	c.setLimit(time.Now().Add(c.l.o.HandshakeTimeout))
	t := tls.Server(first, c.l.o.TLS)
	if err := t.Handshake(); err != nil {
		// As a read error of the network it is expected trouble: net/http then hangs up without an answer and without a log line.
		return &settled{err: &net.OpError{Op: "read", Net: "tcp", Source: c.raw.LocalAddr(), Addr: c.raw.RemoteAddr(), Err: err}}
	}
	return &settled{conn: t, tls: t}
}

// Read implements net.Conn.
func (c *Conn) Read(p []byte) (int, error) {
	s, err := c.settle()
	if err != nil {
		return 0, err
	}
	return s.conn.Read(p)
}

// Write implements net.Conn. Before the first byte came in it waits for that: only then is it known how to speak.
func (c *Conn) Write(p []byte) (int, error) {
	s, err := c.settle()
	if err != nil {
		return 0, err
	}
	return s.conn.Write(p)
}

// TLS returns the TLS state, or nil for plain connections and those of which nothing is known yet.
func (c *Conn) TLS() *tls.ConnectionState {
	s := c.settled.Load()
	if s == nil || s.tls == nil {
		return nil
	}
	state := s.tls.ConnectionState()
	return &state
}

// NetConn returns the TCP connection below, for closing it without a farewell and for looking at it. Do not read or write it.
func (c *Conn) NetConn() net.Conn { return c.raw }

// Close implements net.Conn.
func (c *Conn) Close() error {
	c.left.Do(func() { c.l.leave(c.from) })
	if s := c.settled.Load(); s != nil && s.conn != nil {
		return s.conn.Close()
	}
	return c.raw.Close()
}

// CloseWrite ends the sending direction; net/http uses it so that the client still reads an error answer.
func (c *Conn) CloseWrite() error {
	s := c.settled.Load()
	if s == nil || s.err != nil {
		return errors.New("nothing was received yet")
	}
	if s.tls != nil {
		return s.tls.CloseWrite()
	}
	if cw, ok := c.raw.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return errors.ErrUnsupported
}

// LocalAddr implements net.Conn.
func (c *Conn) LocalAddr() net.Addr { return c.raw.LocalAddr() }

// RemoteAddr implements net.Conn.
func (c *Conn) RemoteAddr() net.Addr { return c.raw.RemoteAddr() }

// SetDeadline implements net.Conn.
func (c *Conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// SetReadDeadline implements net.Conn.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rd = t
	return c.raw.SetReadDeadline(earlier(t, c.limit))
}

// SetWriteDeadline implements net.Conn.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wd = t
	return c.raw.SetWriteDeadline(earlier(t, c.limit))
}

// setLimit puts our own deadline beside the user's; the earlier one counts.
func (c *Conn) setLimit(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.limit = t
	// Fails only on a closed connection, which the next Read tells.
	_ = c.raw.SetReadDeadline(earlier(c.rd, t))
	_ = c.raw.SetWriteDeadline(earlier(c.wd, t))
}

// earlier treats a zero time as never.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// firstByteConn gives back the byte that was read ahead. Only one goroutine reads it at a time.
type firstByteConn struct {
	net.Conn
	b   byte
	has bool
}

func (c *firstByteConn) Read(p []byte) (int, error) {
	if c.has && len(p) > 0 {
		c.has = false
		p[0] = c.b
		return 1, nil
	}
	return c.Conn.Read(p)
}
