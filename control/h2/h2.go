// Package h2 serves HTTP/2 (RFC 9113) on one connection: what runs inside the Noise connection of a client. The client knows
// that it is HTTP/2; TLS, upgrades, priorities, pushes and trailers are left out, because no client uses them here.
//
// # Why not golang.org/x/net/http2
//
// Its server is made for many short requests. Ours are map sessions: one stream per connection, open for days, on which now
// and then some hundred bytes go out, to all clients in the same moment. There the library's third goroutine, the buffers it
// keeps and the turns that each frame takes between its goroutines are most of what a client costs. Per idle connection with
// one stream, both ends of its TCP socket included, and for telling 200 bytes to each of 1,000 of them (BenchmarkIdle and
// BenchmarkTell, two cores):
//
//	                      heap     stacks   goroutines   CPU to tell all
//	golang.org/x/net    14.2 KB   15.5 KB            3            9.6 ms
//	this package         3.8 KB    8.0 KB            2            4.9 ms    most of it the kernel's
//
// # How it works
//
//	client ──frames──▶ read loop ──▶ streams' bodies, credit ──▶ handlers      one goroutine: Serve's
//	client ◀──frames── whoever has something to say                          one goroutine per request: its handler
//
// There is no writer: a handler's Flush puts its frames together in a buffer from a pool and writes them to the connection
// itself, once, while others wait for their turn (conn.busy). Frames that answer the client's are queued, and written at
// once unless somebody is writing, who then takes them along; so the read loop never waits behind a blocked handler. The
// queue is bounded: who does not read answers may not go on asking. One timer per connection does all that time demands.
//
// conn.mu guards nearly everything, is never held while the connection is written or closed, and is released by conn.done.
//
// What clients may cost us is bounded: 128 KiB of request bodies per connection, 64 KiB of header blocks, MaxStreams
// handlers even if the client resets their streams at once, and an allowance for frames without use (conn.charge).
package h2

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/net/http2"
)

// Options bound what one connection may take. 0 is the default, or, for the durations, no limit.
type Options struct {
	MaxStreams     int // requests at once, those included that the client has given up but whose handler still runs; 0: 100
	MaxHeaderBytes int // of the fields of one request, by the count of RFC 9113 section 6.5.2; 0: 16 KiB

	IdleTimeout  time.Duration // the connection ends when it has had no request for this long
	ReadIdle     time.Duration // a client that has sent nothing for this long is sent a PING,
	PingTimeout  time.Duration // and the connection is cut when nothing comes within this time after it; 0: 15 s
	WriteTimeout time.Duration // the connection is cut when it takes no more for this long, a stream reset that gets no credit; 0: a minute

	// Grace is how long after the end of the context streams have to end by themselves before the connection is closed.
	Grace time.Duration

	Counters *Counters // nil: nothing is counted

	// OnPanic is told of a panic in a handler, which has cost the stream; nil logs it. http.ErrAbortHandler is not told. r is
	// nil if the handler had returned; see Continue.
	OnPanic func(r *http.Request, v any, stack []byte)
	Log     *slog.Logger // nil: slog.Default
}

// Our own choices; those of the protocol are named in RFC 9113.
const (
	defaultMaxStreams   = 100
	defaultHeaderBytes  = 16 << 10
	defaultPingTimeout  = 15 * time.Second
	defaultWriteTimeout = time.Minute
	prefaceTimeout      = 10 * time.Second // for the client's preface and settings

	// The client may have this much of one request's body under way, and of all bodies of a connection: what it may have
	// before it knows better (RFC 9113 section 6.9.2), and twice that.
	streamWindow = 65535
	connWindow   = 2 * streamWindow

	maxFrame     = 16384     // the smallest limit that RFC 9113 section 4.2 allows, in both directions
	maxWindow    = 1<<31 - 1 // section 6.9.1
	maxBlock     = 4         // a header block may have this many times MaxHeaderBytes on the wire
	lingerTime   = 100 * time.Millisecond
	lingerBytes  = 1 << 20
	maxQueued    = 8 << 10 // bytes of control frames that wait for a writer
	never        = math.MaxInt64
	tokenBurst   = 2000 // see conn.charge
	tokensPerSec = 200
)

// instant is the time since the connection began.
type instant = time.Duration

// conn is one connection. Whoever holds mu releases it with done, which writes what is queued.
type conn struct {
	nc     net.Conn
	h      http.Handler
	o      Options
	base   context.Context // of the requests: the values of Serve's, but not its end
	remote string
	epoch  time.Time
	timer  *time.Timer // runs tick

	// The reader's own.
	dec     decoder
	header  [frameHeader]byte
	open    *openBlock // a header block that is not complete
	tokens  int        // see charge
	charged instant    // when tokens was last filled up

	handlers sync.WaitGroup

	mu       sync.Mutex
	free     sync.Cond // busy has become false, or a stream that waits for it has ended
	err      error     // guarded by mu: why the connection has ended
	shut     bool      // guarded by mu: nc is closed or about to be
	draining bool      // guarded by mu: GOAWAY is sent; ends with its last stream
	ready    bool      // guarded by mu: the client's preface and settings are here
	acked    bool      // guarded by mu: it has acknowledged ours
	switched bool      // guarded by mu: tableGone is sent

	streams []*stream // guarded by mu: open to frames, oldest first
	live    int       // guarded by mu: handlers whose response has not ended
	lastID  uint32    // guarded by mu: the newest stream of the client
	late    [8]uint32 // guarded by mu: streams that we have ended lately, while the client could still send on them
	nlate   uint8     // guarded by mu: where the next one goes

	busy   bool    // guarded by mu: somebody writes to nc
	writer *stream // guarded by mu: who, if a stream does
	armed  instant // guarded by mu: when the write deadline was last set; 0: it must be
	ctl    []byte  // guarded by mu: control frames that wait for a writer

	sendWindow int64 // guarded by mu: credit for all streams
	initWindow int64 // guarded by mu: credit that a stream begins with
	recvWindow int64 // guarded by mu: what the client may send
	unreturned int   // guarded by mu: what was taken out of recvWindow, read, and not given back
	earned     int   // guarded by mu: WINDOW_UPDATEs that the client may send for what it was sent

	lastRead  instant // guarded by mu, as are those that follow: the last frame came
	pinged    instant // the last PING of ours went
	idleSince instant // when live became 0
	closeAt   instant // or 0
	due       instant // when timer fires
}

// connError ends the connection with a GOAWAY frame (RFC 9113 section 5.4.1).
type connError struct {
	code   http2.ErrCode
	reason string
}

func (e connError) Error() string { return fmt.Sprintf("%s (%s)", e.reason, e.code) }

// Why a connection has ended.
var (
	errEnded    = errors.New("the connection has ended")
	errNoAnswer = errors.New("the client has not answered a PING")
	errPreface  = errors.New("the client has not begun to speak HTTP/2")
	errQueue    = errors.New("the client does not read the answers to what it sends")
	errGrace    = errors.New("streams have not ended in time")
	errPanic    = errors.New("a panic has ended the connection")
)

// Serve serves the requests that come on nc with h until the connection ends, which it closes, and all handlers have
// returned. The end of ctx ends the contexts of all requests and refuses new ones. Serve returns nil after an orderly end:
// that of ctx, of idleness, or the client's own between two requests.
//
// Handlers get an HTTP/2 request as net/http's server would give it, but without trailers. Their ResponseWriter is an
// http.Flusher and an io.StringWriter, and has FlushError, SetWriteDeadline and EnableFullDuplex for an
// http.ResponseController. What was written goes out at a Flush, at the handler's end, or when there are 16 KiB of it;
// between that the connection keeps no buffer for a stream. Trailers, Push and Hijack are not supported.
func Serve(ctx context.Context, nc net.Conn, h http.Handler, o Options) error {
	c := newConn(ctx, nc, h, o)
	c.mu.Lock()
	c.timer = time.AfterFunc(prefaceTimeout, c.tick)
	c.greetLocked()
	c.done()
	defer context.AfterFunc(ctx, func() { c.drain(true) })()
	reading := true
	defer func() {
		if reading { // a panic; the handlers would wait for ever
			c.mu.Lock()
			c.failLocked(errPanic)
			c.done()
			c.handlers.Wait()
		}
	}()
	err := c.read()
	reading = false
	c.mu.Lock()
	fault := connError{}
	switch {
	case c.err != nil:
		err = c.err // nc is closed, and that is what has ended read
	case errors.Is(err, io.EOF) && c.live == 0:
		err = errEnded
	case errors.Is(err, io.EOF):
		err = io.ErrUnexpectedEOF // it is not the end of any request's body
	case errors.As(err, &fault):
		if c.busy { // let what is half written go out first, if it does
			c.armed = 0
			_ = c.nc.SetWriteDeadline(time.Now().Add(stuckAfter))
		}
		for c.busy {
			c.free.Wait()
		}
		c.goAwayLocked(fault.code)
		c.done()
		c.mu.Lock()
		c.shut = true // by linger
	}
	c.failLocked(err)
	c.timer.Stop()
	c.done()
	if fault.reason != "" {
		c.linger()
	}
	c.handlers.Wait()
	if errors.Is(err, errEnded) {
		return nil
	}
	c.o.Counters.ended(err)
	return err
}

// linger closes nc after a GOAWAY. What the client goes on sending is read for a moment, because closing a connection with
// something unread takes back what is on its way to the client.
func (c *conn) linger() {
	_ = c.nc.SetReadDeadline(time.Now().Add(lingerTime))
	_, _ = io.CopyN(io.Discard, c.nc, lingerBytes)
	_ = c.nc.Close()
}

func newConn(ctx context.Context, nc net.Conn, h http.Handler, o Options) *conn {
	if o.MaxStreams == 0 {
		o.MaxStreams = defaultMaxStreams
	}
	if o.MaxHeaderBytes == 0 {
		o.MaxHeaderBytes = defaultHeaderBytes
	}
	if o.PingTimeout == 0 {
		o.PingTimeout = defaultPingTimeout
	}
	if o.WriteTimeout == 0 {
		o.WriteTimeout = defaultWriteTimeout
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Counters == nil {
		o.Counters = &Counters{}
	}
	c := &conn{
		nc: nc, h: h, o: o, base: context.WithoutCancel(ctx), epoch: time.Now(),
		dec: decoder{max: initialTable, limit: initialTable}, tokens: tokenBurst,
		sendWindow: 65535, initWindow: 65535, recvWindow: connWindow, // RFC 9113 section 6.9.2
		due: prefaceTimeout,
	}
	if a := nc.RemoteAddr(); a != nil {
		c.remote = a.String()
	}
	c.free.L = &c.mu
	return c
}

func (c *conn) now() instant { return time.Since(c.epoch) }

// failLocked ends the connection, whose streams see err. c.mu must be held, done closes nc.
func (c *conn) failLocked(err error) {
	if c.err != nil {
		return
	}
	c.err = err
	c.ctl = nil
	for _, st := range c.streams {
		st.abortLocked(err)
	}
	c.streams = nil
	c.free.Broadcast()
}

// done unlocks c.mu, after writing the queued control frames unless somebody is writing, who will do it then. Nothing else
// unlocks it for long: so no frame is forgotten, a connection that has drained ends, and nobody closes nc under the lock.
func (c *conn) done() {
	for len(c.ctl) > 0 && !c.busy && c.err == nil {
		out := outPool.Get().(*output)
		n := copy(out[:], c.takeControlLocked())
		c.acquireLocked(nil)
		c.mu.Unlock()
		_, err := c.nc.Write(out[:n])
		outPool.Put(out)
		c.mu.Lock()
		c.releaseLocked(err)
	}
	if c.draining && c.live == 0 && !c.busy {
		c.failLocked(errEnded)
	}
	shut := c.err != nil && !c.shut
	c.shut = c.shut || shut
	c.mu.Unlock()
	if shut {
		_ = c.nc.Close()
	}
}

// acquireLocked makes st, or no stream, the one who writes to nc. c.mu must be held, and nobody be writing.
func (c *conn) acquireLocked(st *stream) {
	c.busy, c.writer = true, st
	// The deadline is set anew only now and then, because it costs more than the rest of a small write.
	if at, t := c.now(), c.o.WriteTimeout; c.armed == 0 || at-c.armed > t/8 {
		c.armed = at
		_ = c.nc.SetWriteDeadline(time.Now().Add(t + t/8))
	}
}

// releaseLocked is the end of a write, with err. c.mu must be held.
func (c *conn) releaseLocked(err error) {
	c.busy, c.writer = false, nil
	c.free.Broadcast()
	if err != nil {
		c.failLocked(err)
	}
}

// drain tells the client to open no more streams here (RFC 9113 section 6.8); the connection ends with the last one. With
// cancel, those that are open are asked to end.
func (c *conn) drain(cancel bool) {
	c.mu.Lock()
	defer c.done()
	c.drainLocked()
	if cancel && c.err == nil {
		for _, st := range c.streams {
			st.cancel()
		}
		if c.closeAt == 0 && c.o.Grace > 0 {
			c.closeAt = c.now() + c.o.Grace
			c.scheduleLocked()
		}
	}
}

func (c *conn) drainLocked() {
	if !c.draining && c.err == nil {
		c.draining = true
		c.goAwayLocked(http2.ErrCodeNo)
	}
}

// tick is run by the timer and does what is due.
func (c *conn) tick() {
	c.mu.Lock()
	defer c.done()
	if c.err != nil {
		return
	}
	t := c.now()
	switch {
	case c.closeAt != 0 && t >= c.closeAt:
		c.failLocked(errGrace)
		return
	case !c.ready && t >= prefaceTimeout:
		c.failLocked(errPreface)
		return
	case c.pinged > c.lastRead && t >= c.pinged+c.o.PingTimeout:
		c.failLocked(errNoAnswer)
		return
	case c.o.IdleTimeout > 0 && c.live == 0 && t >= c.idleSince+c.o.IdleTimeout:
		c.drainLocked()
		return
	case c.o.ReadIdle > 0 && c.ready && c.pinged <= c.lastRead && t >= c.lastRead+c.o.ReadIdle:
		c.pinged = t
		c.queueLocked(http2.FramePing, 0, 0, make([]byte, 8)...)
	}
	c.due = never
	c.scheduleLocked()
}

// scheduleLocked lets tick run at the next time at which it has something to do. c.mu must be held.
func (c *conn) scheduleLocked() {
	next := instant(never)
	if !c.ready {
		next = prefaceTimeout
	}
	if c.closeAt != 0 {
		next = min(next, c.closeAt)
	}
	if c.o.IdleTimeout > 0 && c.live == 0 {
		next = min(next, c.idleSince+c.o.IdleTimeout)
	}
	if c.pinged > c.lastRead {
		next = min(next, c.pinged+c.o.PingTimeout)
	} else if c.o.ReadIdle > 0 && c.ready {
		next = min(next, c.lastRead+c.o.ReadIdle)
	}
	if next < c.due {
		c.due = next
		c.timer.Reset(next - c.now())
	}
}

// charge counts n of the frames that cost us something and the client nothing: a few are normal, a flood is an attack
// (RFC 9113 section 10.5). They are paid out of an allowance that fills up with time. For the reader.
func (c *conn) charge(n int) error {
	if c.tokens -= n; c.tokens >= 0 {
		return nil
	}
	t := c.now()
	if c.tokens += int((t - c.charged) * tokensPerSec / time.Second); c.tokens < 0 {
		return connError{http2.ErrCodeEnhanceYourCalm, "a flood of frames without use"}
	}
	c.tokens, c.charged = min(c.tokens, tokenBurst), t
	return nil
}
