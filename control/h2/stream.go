package h2

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/net/http/httpguts"
	"golang.org/x/net/http2"
)

// stream is one request and its response. It is open to frames from its HEADERS until one of
//
//	the response has ended          retireLocked: by the handler's return
//	the client resets it            removeLocked + abortLocked
//	we reset it                     resetLocked: a fault of the client, a deadline, a panic
//	the connection ends             failLocked
//
// and lives until its handler has returned.
type stream struct {
	c      *conn
	id     uint32
	ctx    context.Context
	cancel context.CancelFunc

	// Of the handler; see response.go.
	method   string
	fields   http.Header // nil: none yet
	status   int         // 0: not told yet
	declared int64       // guarded by c.mu: the length of the request's body, or -1
	promised int64       // the length of the response's body, or -1
	written  int64       // of it
	head     []byte      // the header block while it has not gone
	auto     autoFields
	out      *output // nil: nothing is buffered
	n        int     // bytes of data in out
	next     func()  // of Continue, or nil
	over     bool    // the handler has returned

	// Guarded by c.mu, as are those that follow.
	cond       sync.Cond // anything of these has changed
	err        error     // why the stream was ended before its response
	headSent   bool
	endSent    bool // or decided
	retired    bool // does not count as live any more
	starved    bool // waits for credit
	remoteDone bool // the client has ended its side
	continues  bool // the client waits for "100 Continue" before it sends its body

	sendWindow int64
	recvWindow int64
	unreturned int    // as in conn
	body       []byte // what has come of the request's body and is not read
	read       int    // how much of body is read
	bodyErr    error  // what comes after body; nil: more
	received   int64  // of the request's body in all

	deadline *time.Timer // of SetWriteDeadline, or nil
	stalled  *time.Timer // runs since the handler waits for credit, or nil
}

// streamError is why a stream was reset, by whichever side.
type streamError struct{ code http2.ErrCode }

func (e streamError) Error() string { return fmt.Sprintf("the stream was reset (%s)", e.code) }

var (
	errOver   = errors.New("the request is over")
	errShort  = errors.New("the response is shorter than it promised")
	errClosed = errors.New("the body is closed")
)

// beginLocked starts the handler of a request. c.mu must be held.
func (c *conn) beginLocked(id uint32, r *http.Request, tooLarge, end bool) {
	st := &stream{
		c: c, id: id, method: r.Method, declared: r.ContentLength, promised: -1,
		sendWindow: c.initWindow, recvWindow: streamWindow, remoteDone: end,
	}
	st.cond.L = &c.mu
	st.ctx, st.cancel = context.WithCancel(c.base)
	if c.draining {
		st.cancel()
	}
	h := c.h
	if tooLarge {
		h = http.HandlerFunc(headerTooLarge)
	}
	if !end {
		r.Body = (*requestBody)(st)
		if st.continues = httpguts.HeaderValuesContainsToken(r.Header["Expect"], "100-continue"); st.continues {
			r.Header.Del("Expect")
		}
	}
	r.RemoteAddr = c.remote
	c.streams = append(c.streams, st)
	c.live++
	c.handlers.Add(1)
	go st.serve(h, r.WithContext(st.ctx)) // Serve waits for it
}

// headerTooLarge answers a request whose header fields we have not kept (RFC 9113 section 10.5.1).
func headerTooLarge(w http.ResponseWriter, _ *http.Request) {
	http.Error(w, "the header fields of the request are too large", http.StatusRequestHeaderFieldsTooLarge)
}

// serve runs the handler, and what it has left to be continued. A panic costs the stream alone.
func (st *stream) serve(h http.Handler, r *http.Request) {
	returned := false
	defer func() {
		if !returned {
			if v := recover(); v != nil && v != any(http.ErrAbortHandler) { //nolint:errorlint // as net/http compares it
				st.panicked(r, v)
			}
			st.reset(http2.ErrCodeInternal, errOver)
		}
		st.finish()
		st.c.handlers.Done()
	}()
	h.ServeHTTP((*responseWriter)(st), r)
	r = nil
	for st.next != nil {
		next := st.next
		st.next = nil
		next()
	}
	returned = true
}

// Continue lets f go on with the response w once its handler has returned, and reports true; or it does nothing and reports
// false, if w is no ResponseWriter of this package. A response that takes days waits so on an empty stack, and without its
// request and whatever routers know of it, which is some 6 KB. Only the handler, or f, may call it.
func Continue(w http.ResponseWriter, f func()) bool {
	rw, ok := w.(*responseWriter)
	if ok {
		rw.next = f
	}
	return ok
}

func (st *stream) panicked(r *http.Request, v any) {
	stack := debug.Stack()
	switch o := &st.c.o; {
	case o.OnPanic != nil:
		o.OnPanic(r, v, stack)
	default:
		o.Log.Error("panic in a request", "remote", st.c.remote, "err", v, "stack", string(stack))
	}
}

// finish ends the response and the stream.
func (st *stream) finish() {
	if st.status == 0 {
		(*responseWriter)(st).WriteHeader(http.StatusOK)
	}
	if st.promised > st.written && st.method != http.MethodHead && bodyAllowed(st.status) { // RFC 9113 section 8.1.1
		st.reset(http2.ErrCodeInternal, errShort)
	}
	_ = st.push(true) // the client is gone if it fails
	c := st.c
	c.mu.Lock()
	st.over = true
	if c.streamLocked(st.id) == st { // the answer to HEAD, which has ended before its handler
		c.removeLocked(st)
		if !st.remoteDone {
			c.queue32Locked(http2.FrameRSTStream, st.id, uint32(http2.ErrCodeNo))
			c.endedByUsLocked(st.id)
		}
	}
	c.retireLocked(st)
	if st.err == nil {
		st.abortLocked(errOver)
	}
	c.done()
}

// removeLocked closes the stream to frames. c.mu must be held.
func (c *conn) removeLocked(st *stream) {
	for i, s := range c.streams {
		if s == st {
			last := len(c.streams) - 1
			copy(c.streams[i:], c.streams[i+1:])
			c.streams[last] = nil
			if c.streams = c.streams[:last]; last == 0 && cap(c.streams) > 4 {
				c.streams = nil
			}
			return
		}
	}
}

// retireLocked lets the client open another stream in place of this one. c.mu must be held.
func (c *conn) retireLocked(st *stream) {
	if st.retired {
		return
	}
	st.retired = true
	if c.live--; c.live == 0 {
		c.idleSince = c.now()
		c.scheduleLocked()
	}
}

// abortLocked ends whatever the handler waits for; err is what it sees. c.mu must be held.
func (st *stream) abortLocked(err error) {
	if st.err == nil {
		st.err = err
	}
	if st.bodyErr == nil || st.read < len(st.body) {
		st.bodyErr = st.err // not the io.EOF that was to come behind what is dropped now
	}
	st.dropBodyLocked()
	for _, t := range []*time.Timer{st.deadline, st.stalled} {
		if t != nil {
			t.Stop()
		}
	}
	st.cancel()
	st.cond.Broadcast()
	st.c.free.Broadcast()
}

// resetLocked ends a stream that is open to frames, for both sides. c.mu must be held.
func (st *stream) resetLocked(code http2.ErrCode, err error) {
	c := st.c
	if c.writer == st { // its write may be stuck in nc, which nothing but the connection's end could free
		_ = c.nc.SetWriteDeadline(time.Now().Add(stuckAfter))
		c.armed = 0
	}
	if c.streamLocked(st.id) != st {
		return
	}
	c.removeLocked(st)
	c.queue32Locked(http2.FrameRSTStream, st.id, uint32(code))
	c.endedByUsLocked(st.id)
	st.abortLocked(err)
}

// stuckAfter is how long a write to the connection may still take when its stream was to end at once: any that is not stuck
// is much quicker.
const stuckAfter = 50 * time.Millisecond

func (st *stream) reset(code http2.ErrCode, err error) {
	st.c.mu.Lock()
	st.resetLocked(code, err)
	st.c.done()
}

// requestBody is what a handler reads: an http.Request's Body.
type requestBody stream

// Read waits for data, or the end of the body or the stream.
func (b *requestBody) Read(p []byte) (int, error) {
	st := (*stream)(b)
	c := st.c
	c.mu.Lock()
	defer c.done()
	if st.continues && !st.headSent && st.bodyErr == nil && len(st.body) == 0 {
		st.continues = false
		c.queueLocked(http2.FrameHeaders, http2.FlagHeadersEndHeaders, st.id, c.blockLocked(appendStatus(nil, http.StatusContinue))...)
		c.done()
		c.mu.Lock()
	}
	for st.read == len(st.body) {
		if st.bodyErr != nil {
			return 0, st.bodyErr
		}
		if len(p) == 0 {
			return 0, nil
		}
		st.cond.Wait()
	}
	n := copy(p, st.body[st.read:])
	if st.read += n; st.read == len(st.body) {
		st.body, st.read = st.body[:0], 0
		if st.bodyErr != nil {
			st.body = nil
		}
	}
	c.returnLocked(n)
	st.returnLocked(n)
	return n, nil
}

// Close drops the rest of the body.
func (b *requestBody) Close() error {
	st := (*stream)(b)
	st.c.mu.Lock()
	defer st.c.done()
	st.dropBodyLocked()
	st.bodyErr = errClosed
	st.cond.Broadcast()
	return nil
}

// dropBodyLocked gives back the credit for what will not be read. c.mu must be held.
func (st *stream) dropBodyLocked() {
	st.c.returnLocked(len(st.body) - st.read)
	st.body, st.read = nil, 0
}

// returnLocked gives the client credit for n bytes that have left our buffers (RFC 9113 section 6.9.1), not each time, but
// when it is worth a frame. c.mu must be held.
func (c *conn) returnLocked(n int) {
	if c.unreturned += n; c.unreturned >= connWindow/2 {
		c.queue32Locked(http2.FrameWindowUpdate, 0, uint32(c.unreturned))
		c.recvWindow += int64(c.unreturned)
		c.unreturned = 0
	}
}

// returnLocked is the same for one stream.
func (st *stream) returnLocked(n int) {
	if st.unreturned += n; st.unreturned >= streamWindow/2 && !st.remoteDone && st.err == nil {
		st.c.queue32Locked(http2.FrameWindowUpdate, st.id, uint32(st.unreturned))
		st.recvWindow += int64(st.unreturned)
		st.unreturned = 0
	}
}

// endBodyLocked is the client's END_STREAM. c.mu must be held.
func (st *stream) endBodyLocked() {
	st.remoteDone = true
	if st.bodyErr == nil {
		st.bodyErr = io.EOF
	}
	if st.read == len(st.body) {
		st.body, st.read = nil, 0
	}
	st.cond.Broadcast()
}
