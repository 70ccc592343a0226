package sim

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"sync"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// h2conn is one client's HTTP/2 connection, as small as it can be: one goroutine reads (loop) and calls back, requests are
// single records with a body that fits one frame, and nothing is kept while the connection is idle. What the server gets
// to see is what x/net's Transport sends, window updates included, because they cost the server something, too.
type h2conn struct {
	rw        io.ReadWriteCloser
	authority string

	// These belong to the goroutine in loop.
	head   [9]byte
	began  bool
	unsent uint32 // bytes that were read and not yet given back to the connection's window
	hdec   *hpack.Decoder
	block  block // that is being decoded

	wmu     sync.Mutex
	next    uint32               // guarded by wmu: id of the next stream
	window  int64                // guarded by wmu: bytes of bodies that the server lets us send
	pending map[uint32]*exchange // guarded by wmu; nil: the connection has ended
}

// block is a header block, which may come in several frames.
type block struct {
	stream uint32 // 0: none
	last   bool   // the response has no body
	size   int
	status int // 0: trailers
}

// exchange is a request and what comes back for it. Its functions run in loop's goroutine.
type exchange struct {
	// done is called once, when the response is complete or cannot come any more (err). Its error ends the connection.
	done func(status int, body []byte, err error) error
	// sink, if not nil, gets the length-prefixed messages of a response with status 200, instead of done getting the body.
	sink sink

	status int
	body   []byte
	unsent uint32
	part   assembler
}

const (
	frameLimit   = 16384   // SETTINGS_MAX_FRAME_SIZE unless somebody says otherwise: RFC 9113, section 6.5.2
	streamWindow = 4 << 20 // as x/net's Transport announces it
	connWindow   = 1 << 30 // as x/net's Transport announces it, above 65535
	refresh      = 4 << 10 // as x/net's Transport: windows are renewed in steps of this at least
	maxAnswer    = 64 << 10
	maxHeaders   = 64 << 10
)

var (
	errEnded   = errors.New("the connection has ended")
	errPadding = errors.New("an HTTP/2 frame that is all padding")
)

// newH2 begins HTTP/2 on rw. The caller must run loop.
func newH2(rw io.ReadWriteCloser, authority string) (*h2conn, error) {
	c := &h2conn{rw: rw, authority: authority, next: 1, window: 65535, pending: map[uint32]*exchange{}}
	c.hdec = hpack.NewDecoder(4096, func(f hpack.HeaderField) {
		if f.Name == ":status" {
			c.block.status, _ = strconv.Atoi(f.Value)
		}
	})
	b := []byte(http2.ClientPreface)
	var set []byte
	for _, s := range []http2.Setting{
		{ID: http2.SettingEnablePush, Val: 0},
		{ID: http2.SettingInitialWindowSize, Val: streamWindow},
		{ID: http2.SettingMaxHeaderListSize, Val: 10 << 20},
	} {
		set = binary.BigEndian.AppendUint16(set, uint16(s.ID))
		set = binary.BigEndian.AppendUint32(set, s.Val)
	}
	b = appendFrame(b, http2.FrameSettings, 0, 0, set)
	b = appendFrame(b, http2.FrameWindowUpdate, 0, 0, binary.BigEndian.AppendUint32(nil, connWindow))
	_, err := rw.Write(b)
	return c, err
}

// appendFrame appends a frame: length, type, flags, stream, payload (RFC 9113, section 4.1).
func appendFrame(b []byte, t http2.FrameType, flags http2.Flags, stream uint32, payload []byte) []byte {
	b = append(b, byte(len(payload)>>16), byte(len(payload)>>8), byte(len(payload)), byte(t), byte(flags))
	b = binary.BigEndian.AppendUint32(b, stream)
	return append(b, payload...)
}

// post sends a request with a JSON body. ex.done is called unless post returns an error.
func (c *h2conn) post(path string, headers [][2]string, body []byte, ex *exchange) error {
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for _, h := range append([][2]string{
		{":authority", c.authority}, {":method", "POST"}, {":path", path}, {":scheme", "https"},
		{"content-type", "application/json"}, {"content-length", strconv.Itoa(len(body))}, {"user-agent", "Go-http-client/2.0"},
	}, headers...) {
		// Sensitive fields never enter the dynamic table, so that no encoder has to be kept.
		_ = enc.WriteField(hpack.HeaderField{Name: h[0], Value: h[1], Sensitive: true})
	}
	if len(body) > frameLimit || block.Len() > frameLimit {
		return fmt.Errorf("a request to %s is larger than one frame: %d bytes", path, len(body))
	}
	c.wmu.Lock()
	defer c.wmu.Unlock()
	if c.pending == nil {
		return errEnded
	}
	if int64(len(body)) > c.window {
		return fmt.Errorf("the server takes no more requests: its window is %d bytes", c.window)
	}
	c.window -= int64(len(body))
	id := c.next
	c.next += 2
	c.pending[id] = ex
	b := appendFrame(make([]byte, 0, block.Len()+len(body)+18), http2.FrameHeaders, http2.FlagHeadersEndHeaders, id, block.Bytes())
	b = appendFrame(b, http2.FrameData, http2.FlagDataEndStream, id, body)
	if _, err := c.rw.Write(b); err != nil {
		delete(c.pending, id)
		return err
	}
	return nil
}

// write sends control frames.
func (c *h2conn) write(b []byte) error {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	_, err := c.rw.Write(b)
	return err
}

// close ends the connection and, by that, loop.
func (c *h2conn) close() { c.rw.Close() }

// loop reads until the connection ends and says why. What is pending then has failed.
func (c *h2conn) loop() (err error) {
	for err == nil {
		err = c.readFrame()
	}
	c.rw.Close()
	c.wmu.Lock()
	left := c.pending
	c.pending = nil
	c.wmu.Unlock()
	for _, ex := range left {
		_ = ex.done(ex.status, nil, err)
	}
	return err
}

// earlyPayload begins what a server may say before HTTP/2 (ts2021.EarlyPayloadMagic).
const earlyPayload = "\xff\xff\xffTS"

func (c *h2conn) readFrame() error {
	if _, err := io.ReadFull(c.rw, c.head[:]); err != nil {
		return err
	}
	if !c.began {
		c.began = true
		if string(c.head[:5]) == earlyPayload {
			n := int64(binary.BigEndian.Uint32(c.head[5:]))
			if n > 1<<20 {
				return fmt.Errorf("an early payload of %d bytes", n)
			}
			_, err := io.CopyN(io.Discard, c.rw, n)
			return err
		}
	}
	size := int(c.head[0])<<16 | int(c.head[1])<<8 | int(c.head[2])
	kind, flags := http2.FrameType(c.head[3]), http2.Flags(c.head[4])
	stream := binary.BigEndian.Uint32(c.head[5:]) & (1<<31 - 1)
	if size > frameLimit {
		return fmt.Errorf("an HTTP/2 frame of %d bytes; more than %d were not agreed on", size, frameLimit)
	}
	if c.block.stream != 0 && (kind != http2.FrameContinuation || stream != c.block.stream) {
		return fmt.Errorf("a frame of type %v in the middle of a header block", kind)
	}
	if kind == http2.FrameData {
		return c.readData(size, flags, stream)
	}
	payload := make([]byte, size) // these are rare
	if _, err := io.ReadFull(c.rw, payload); err != nil {
		return err
	}
	switch kind {
	case http2.FrameHeaders:
		return c.readHeaders(payload, flags, stream)
	case http2.FrameContinuation:
		if c.block.stream == 0 {
			return errors.New("a continuation of no header block")
		}
		return c.decodeHeaders(payload, flags.Has(http2.FlagContinuationEndHeaders))
	case http2.FrameSettings:
		if !flags.Has(http2.FlagSettingsAck) {
			return c.write(appendFrame(nil, http2.FrameSettings, http2.FlagSettingsAck, 0, nil))
		}
	case http2.FramePing:
		if !flags.Has(http2.FlagPingAck) && size == 8 {
			return c.write(appendFrame(nil, http2.FramePing, http2.FlagPingAck, 0, payload))
		}
	case http2.FrameWindowUpdate:
		if size == 4 && stream == 0 {
			c.wmu.Lock()
			c.window += int64(binary.BigEndian.Uint32(payload) & (1<<31 - 1))
			c.wmu.Unlock()
		}
	case http2.FrameRSTStream:
		if size == 4 {
			return c.finish(stream, fmt.Errorf("the server broke the request off: %v", http2.ErrCode(binary.BigEndian.Uint32(payload))))
		}
	case http2.FrameGoAway:
		if size >= 8 {
			return fmt.Errorf("the server said good-bye: %v %.100q", http2.ErrCode(binary.BigEndian.Uint32(payload[4:])), payload[8:])
		}
		return errEnded
	case http2.FramePushPromise:
		return errors.New("the server pushes although it may not")
	}
	return nil
}

func (c *h2conn) readHeaders(b []byte, flags http2.Flags, stream uint32) error {
	if stream == 0 {
		return errors.New("headers that belong to no stream")
	}
	pad := 0
	if flags.Has(http2.FlagHeadersPadded) {
		if len(b) == 0 {
			return errPadding
		}
		pad, b = int(b[0]), b[1:]
	}
	if flags.Has(http2.FlagHeadersPriority) {
		b = b[min(5, len(b)):]
	}
	if pad > len(b) {
		return errPadding
	}
	c.block = block{stream: stream, last: flags.Has(http2.FlagHeadersEndStream)}
	return c.decodeHeaders(b[:len(b)-pad], flags.Has(http2.FlagHeadersEndHeaders))
}

// decodeHeaders reads a piece of the header block, and acts when it is the last one.
func (c *h2conn) decodeHeaders(b []byte, end bool) error {
	if c.block.size += len(b); c.block.size > maxHeaders {
		return fmt.Errorf("headers of more than %d bytes", maxHeaders)
	}
	if _, err := c.hdec.Write(b); err != nil {
		return fmt.Errorf("decoding headers: %w", err)
	}
	if !end {
		return nil
	}
	if err := c.hdec.Close(); err != nil {
		return fmt.Errorf("decoding headers: %w", err)
	}
	done := c.block
	c.block = block{}
	if ex := c.exchange(done.stream); ex != nil && done.status >= 200 { // not 1xx, not trailers
		ex.status = done.status
	}
	if done.last {
		return c.finish(done.stream, nil)
	}
	return nil
}

// exchange is the one on this stream, nil if it is over.
func (c *h2conn) exchange(stream uint32) *exchange {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	return c.pending[stream]
}

// finish tells the exchange on this stream, if there still is one, that it is over.
func (c *h2conn) finish(stream uint32, err error) error {
	c.wmu.Lock()
	ex := c.pending[stream]
	delete(c.pending, stream)
	c.wmu.Unlock()
	if ex == nil {
		return nil
	}
	return ex.done(ex.status, ex.body, err)
}

// readData reads a DATA frame and gives what was read back to the windows.
func (c *h2conn) readData(size int, flags http2.Flags, stream uint32) error {
	ex := c.exchange(stream)
	pad, left := 0, size
	if flags.Has(http2.FlagDataPadded) {
		if size == 0 {
			return errPadding
		}
		if _, err := io.ReadFull(c.rw, c.head[:1]); err != nil {
			return err
		}
		pad, left = int(c.head[0]), size-1
	}
	if pad > left {
		return errPadding
	}
	left -= pad
	var err error
	switch {
	case ex == nil:
		_, err = io.CopyN(io.Discard, c.rw, int64(left))
	case ex.sink != nil && ex.status == 200:
		err = ex.part.read(c.rw, left, ex.sink)
	default:
		keep := min(left, maxAnswer-len(ex.body))
		ex.body = append(ex.body, make([]byte, keep)...)
		if _, err = io.ReadFull(c.rw, ex.body[len(ex.body)-keep:]); err == nil {
			_, err = io.CopyN(io.Discard, c.rw, int64(left-keep))
		}
	}
	if err == nil && pad > 0 {
		_, err = io.CopyN(io.Discard, c.rw, int64(pad))
	}
	if err != nil {
		return err
	}
	last := flags.Has(http2.FlagDataEndStream)
	var b []byte
	if c.unsent += uint32(size); c.unsent >= refresh {
		b = appendFrame(b, http2.FrameWindowUpdate, 0, 0, binary.BigEndian.AppendUint32(nil, c.unsent))
		c.unsent = 0
	}
	if ex != nil && !last {
		if ex.unsent += uint32(size); ex.unsent >= refresh {
			b = appendFrame(b, http2.FrameWindowUpdate, 0, stream, binary.BigEndian.AppendUint32(nil, ex.unsent))
			ex.unsent = 0
		}
	}
	if len(b) > 0 {
		if err := c.write(b); err != nil {
			return err
		}
	}
	if last {
		return c.finish(stream, nil)
	}
	return nil
}

// sink takes messages while they arrive.
type sink interface {
	// take gets what has arrived of a message and was not used before; left bytes are still to come. It returns how many
	// bytes it does not need again, which is all if nothing is left. It may not keep b. Its error ends the connection.
	take(b []byte, left int) (used int, err error)
}

// assembler puts length-prefixed messages together: four bytes, little endian, then the message.
type assembler struct {
	head [4]byte
	have int     // bytes of head
	body *[]byte // what the sink has not used, from messages; nil: the head is not complete
	left int     // bytes of the message that are still to come
}

// messages are buffers for messages that are being received.
var messages = sync.Pool{New: func() any { return new([]byte) }}

// read takes n bytes from r.
func (a *assembler) read(r io.Reader, n int, to sink) error {
	for n > 0 {
		if a.body == nil {
			k := min(n, len(a.head)-a.have)
			if _, err := io.ReadFull(r, a.head[a.have:a.have+k]); err != nil {
				return err
			}
			n -= k
			if a.have += k; a.have < len(a.head) {
				return nil
			}
			a.left = int(binary.LittleEndian.Uint32(a.head[:]))
			if a.left == 0 || a.left > maxFrame {
				return fmt.Errorf("a map response of %d bytes", a.left)
			}
			a.body = messages.Get().(*[]byte)
			*a.body = (*a.body)[:0]
		}
		k := min(n, a.left)
		at := len(*a.body)
		*a.body = slices.Grow(*a.body, k)[:at+k]
		if _, err := io.ReadFull(r, (*a.body)[at:]); err != nil {
			return err
		}
		n, a.left = n-k, a.left-k
		if k == 0 {
			continue // the message begins in the next frame
		}
		used, err := to.take(*a.body, a.left)
		if err != nil {
			return err
		}
		*a.body = (*a.body)[:copy(*a.body, (*a.body)[used:])]
		if a.left == 0 {
			messages.Put(a.body)
			a.body, a.have = nil, 0
		}
	}
	return nil
}
