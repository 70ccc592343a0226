package h2

import (
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http/httpguts"
	"golang.org/x/net/http2"
)

// Outbound flow: Write → output, a buffer of the pool → push, which waits for credit and for its turn → one write to the
// connection of all that may go: queued control frames, HEADERS, DATA. What stands in the buffer is never copied again:
// the headers of its frames are put before it, the second and later ones over data that has gone.

// output is the buffer of one stream between a Write and the next Flush, or of control frames for one write.
//
//	0            ≤ maxHead       frontRoom                        +maxFrame      +resetRoom
//	| head block |   … HEADERS DATA| data                            | RST_STREAM |
//
// The head block is written on the left as soon as it is known and moved to where the data begins when it goes.
type output [frontRoom + maxFrame + resetRoom]byte

const (
	frontRoom = 1024
	resetRoom = frameHeader + 4
	maxHead   = frontRoom - 2*frameHeader - 1 // a larger one is put together elsewhere
)

// outPool has outputs; nobody keeps one while idle.
var outPool = sync.Pool{New: func() any { return new(output) }}

// autoFields are header fields that a response gets unless its handler has set them, or forbidden them by a nil value.
type autoFields struct{ length, ctype, date bool }

// responseWriter is a stream as its handler sees it.
type responseWriter stream

// Header is as in http.ResponseWriter. After WriteHeader it is without effect.
func (w *responseWriter) Header() http.Header {
	if w.fields == nil {
		w.fields = http.Header{}
	}
	return w.fields
}

// WriteHeader is as in http.ResponseWriter; an informational status is sent at once.
func (w *responseWriter) WriteHeader(code int) {
	st := (*stream)(w)
	if code < 100 || code > 999 {
		panic("h2: no status code: " + strconv.Itoa(code))
	}
	if st.status != 0 || st.over {
		return
	}
	if code < 200 {
		st.inform(code)
		return
	}
	st.status = code
	st.auto = autoFields{length: bodyAllowed(code), ctype: bodyAllowed(code), date: true}
	st.head = st.appendFields(appendStatus(st.buffer()[:0:maxHead], code))
	st.fields = nil
}

// inform sends an informational response (RFC 9113 section 8.1).
func (st *stream) inform(code int) {
	c := st.c
	block := st.appendFields(appendStatus(nil, code))
	c.mu.Lock()
	defer c.done()
	if st.err != nil || len(block) >= maxHead {
		return
	}
	if code == http.StatusContinue {
		st.continues = false
	}
	c.queueLocked(http2.FrameHeaders, http2.FlagHeadersEndHeaders, st.id, c.blockLocked(block)...)
}

// blockLocked is a header block that may be the first of the connection. c.mu must be held, and the block be sent.
func (c *conn) blockLocked(b []byte) []byte {
	if c.switched {
		return b
	}
	c.switched = true
	return append([]byte{tableGone}, b...)
}

// appendFields appends the handler's header fields, without those that HTTP/2 does not have (RFC 9113 section 8.2.2).
func (st *stream) appendFields(b []byte) []byte {
	for key, values := range st.fields {
		name := strings.ToLower(key)
		switch name {
		case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade", "trailer":
			continue
		case "content-length":
			st.auto.length = false
			if len(values) > 0 {
				n, err := strconv.ParseInt(values[0], 10, 64)
				if err != nil || n < 0 {
					continue
				}
				st.promised, values = n, values[:1]
			}
		case "content-type":
			st.auto.ctype = false
		case "content-encoding":
			if len(values) > 0 && values[0] != "" {
				st.auto.ctype = false
			}
		case "date":
			st.auto.date = false
		}
		if !httpguts.ValidHeaderFieldName(name) {
			continue
		}
		for _, v := range values {
			if httpguts.ValidHeaderFieldValue(v) {
				b = appendField(b, name, v)
			}
		}
	}
	return b
}

// completeHead adds the fields that only now can be told; end says whether the whole body is in the buffer.
func (st *stream) completeHead(end bool) {
	data := st.out[frontRoom : frontRoom+st.n]
	if st.auto.ctype && len(data) > 0 {
		st.head = appendField(st.head, "content-type", http.DetectContentType(data))
	}
	if st.auto.length && end && (len(data) > 0 || st.method != http.MethodHead) {
		st.head = appendField(st.head, "content-length", strconv.Itoa(len(data)))
	}
	if st.auto.date {
		st.head = appendField(st.head, "date", time.Now().UTC().Format(http.TimeFormat))
	}
}

func bodyAllowed(code int) bool {
	return code >= 200 && code != http.StatusNoContent && code != http.StatusNotModified
}

// buffer is the stream's output.
func (st *stream) buffer() *output {
	if st.out == nil {
		st.out = outPool.Get().(*output)
	}
	return st.out
}

// Write is as in http.ResponseWriter.
func (w *responseWriter) Write(p []byte) (int, error) { return write((*stream)(w), p) }

// WriteString is Write.
func (w *responseWriter) WriteString(s string) (int, error) { return write((*stream)(w), s) }

func write[T string | []byte](st *stream, p T) (n int, err error) {
	if st.over {
		return 0, errOver
	}
	if st.status == 0 {
		(*responseWriter)(st).WriteHeader(http.StatusOK)
	}
	if !bodyAllowed(st.status) {
		return 0, http.ErrBodyNotAllowed
	}
	if st.written += int64(len(p)); st.promised >= 0 && st.written > st.promised {
		return 0, http.ErrContentLength
	}
	for n < len(p) {
		if st.n == maxFrame {
			if err := st.push(false); err != nil {
				return n, err
			}
		}
		k := copy(st.buffer()[frontRoom+st.n:frontRoom+maxFrame], p[n:])
		st.n += k
		n += k
	}
	return n, nil
}

// Flush is as in http.Flusher.
func (w *responseWriter) Flush() { _ = w.FlushError() }

// FlushError sends what was written, or at least the header, and waits until the connection has taken it.
func (w *responseWriter) FlushError() error {
	st := (*stream)(w)
	if st.over {
		return errOver
	}
	if st.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	err := st.push(false)
	st.release()
	return err
}

func (st *stream) release() {
	if st.out != nil {
		outPool.Put(st.out)
		st.out = nil
	}
}

// EnableFullDuplex is for http.ResponseController. HTTP/2 is never anything else.
func (w *responseWriter) EnableFullDuplex() error { return nil }

// SetWriteDeadline resets the stream at the time t, whatever its handler waits for then; no time is never. A time that has
// passed resets it now. It may be called from any goroutine.
func (w *responseWriter) SetWriteDeadline(t time.Time) error {
	st := (*stream)(w)
	c := st.c
	c.mu.Lock()
	defer c.done()
	if st.err != nil {
		return st.err
	}
	if st.deadline != nil {
		st.deadline.Stop()
		st.deadline = nil
	}
	switch wait := time.Until(t); {
	case t.IsZero():
	case wait <= 0:
		st.resetLocked(http2.ErrCodeInternal, os.ErrDeadlineExceeded)
	default:
		st.deadline = time.AfterFunc(wait, st.late)
	}
	return nil
}

func (st *stream) late() { st.reset(http2.ErrCodeInternal, os.ErrDeadlineExceeded) }

// push sends the head, unless it has gone, the data in the buffer, and the end of the response if end. It leaves an empty
// buffer, after an error too, or none.
func (st *stream) push(end bool) error {
	if st.head != nil {
		st.completeHead(end)
	}
	at, rest := frontRoom, st.n
	if st.method == http.MethodHead {
		rest = 0
	}
	c := st.c
	c.mu.Lock()
	err := st.err
	for err == nil && !st.endSent && (st.head != nil || rest > 0 || end) {
		var n int
		if n, err = st.waitLocked(rest); err != nil {
			break
		}
		c.acquireLocked(st)
		b := st.assembleLocked(at, n, end, n == rest)
		c.mu.Unlock()
		_, err = c.nc.Write(b)
		c.mu.Lock()
		c.releaseLocked(err)
		at, rest = at+n, rest-n
		if rest == 0 {
			break
		}
	}
	if st.stalled != nil {
		st.stalled.Stop()
		st.stalled = nil
	}
	c.done()
	st.n, st.head = 0, nil // it stands in out, which may go now
	if end {
		st.release()
	}
	return err
}

// waitLocked waits for its turn to write and for credit for some of the rest of the data, and returns for how much of it. A
// head goes without waiting for credit. c.mu must be held, and is meanwhile free.
func (st *stream) waitLocked(rest int) (n int, err error) {
	c := st.c
	for {
		n = max(0, int(min(int64(rest), st.sendWindow, c.sendWindow)))
		switch {
		case st.err != nil:
			return 0, st.err
		case n == 0 && rest > 0 && st.headSent:
			if len(c.ctl) > 0 && !c.busy { // queued during our last write, for us to take along
				c.done()
				c.mu.Lock()
				continue
			}
			if st.stalled == nil {
				st.stalled = time.AfterFunc(c.o.WriteTimeout, func() {
					c.o.Counters.StarvedStreams.Add(1)
					st.late()
				})
			}
			st.starved = true
			st.cond.Wait()
			st.starved = false
		case c.busy:
			c.free.Wait()
		default:
			return n, nil
		}
	}
}

// assembleLocked returns what is to be written now: control frames, the head unless it has gone, and the n bytes of data at
// at. rest says that there are no more in the buffer, end that there will be no more. c.mu must be held.
func (st *stream) assembleLocked(at, n int, end, rest bool) []byte {
	c, out := st.c, st.buffer()
	c.sendWindow -= int64(n)
	st.sendWindow -= int64(n)
	c.earned = min(c.earned+2+n/1024, tokenBurst)
	var last http2.Flags
	if rest && (end || st.method == http.MethodHead) {
		st.endSent, last = true, http2.FlagDataEndStream // the same bit in HEADERS
	}
	from, to := at, at+n
	if n > 0 || st.headSent {
		from -= frameHeader
		putHeader(out[from:], n, http2.FrameData, last, st.id)
		last = 0
	}
	if st.endSent && end {
		c.removeLocked(st)
		c.retireLocked(st)
		if !st.remoteDone { // section 8.1: what the client still sends of its body will not be read
			to += copy(out[to:], appendFrame(nil, http2.FrameRSTStream, 0, st.id, 0, 0, 0, byte(http2.ErrCodeNo)))
			c.endedByUsLocked(st.id)
		}
	}
	head := st.head
	st.head, st.headSent = nil, true
	if len(head) > maxHead {
		head = appendBlock(nil, last, st.id, c.blockLocked(head))
		return slices.Concat(c.takeControlLocked(), head, out[from:to])
	}
	if head != nil {
		from -= len(head)
		copy(out[from:], head) // from the left end of the same buffer
		n = len(head)
		if !c.switched {
			c.switched = true
			from, n = from-1, n+1
			out[from] = tableGone
		}
		from -= frameHeader
		putHeader(out[from:], n, http2.FrameHeaders, last|http2.FlagHeadersEndHeaders, st.id)
	}
	ctl := c.takeControlLocked()
	if len(ctl) > from {
		return slices.Concat(ctl, out[from:to])
	}
	from -= copy(out[from-len(ctl):], ctl)
	return out[from:to]
}
