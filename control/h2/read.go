package h2

import (
	"encoding/binary"
	"io"
	"slices"
	"sync"

	"golang.org/x/net/http2"
)

// Inbound flow: preface → frames, one at a time → streams' bodies, credit and handlers. All of it is one goroutine, that of
// Serve, which most of the time waits in read for the nine bytes of a frame's header and then holds no buffer.

// framePool has the buffers for frames that are being read.
var framePool = sync.Pool{New: func() any { return new([maxFrame]byte) }}

// frame is the header of one.
type frame struct {
	t      http2.FrameType
	flags  http2.Flags
	stream uint32
	n      int // length of the payload
}

func (f frame) has(flag http2.Flags) bool { return f.flags&flag != 0 }

// openBlock is a header block that waits for its CONTINUATIONs.
type openBlock struct {
	f     frame // the HEADERS
	block []byte
}

// read serves what the client sends until the connection ends, and returns why.
func (c *conn) read() error {
	if err := c.preface(); err != nil {
		return err
	}
	for first := true; ; first = false {
		if _, err := io.ReadFull(c.nc, c.header[:]); err != nil {
			return err
		}
		if err := c.frame(first); err != nil {
			return err
		}
	}
}

// preface reads the client's preface (RFC 9113 section 3.4).
func (c *conn) preface() error {
	buf := make([]byte, len(http2.ClientPreface))
	if _, err := io.ReadFull(c.nc, buf); err != nil {
		return err
	}
	if string(buf) != http2.ClientPreface {
		return connError{http2.ErrCodeProtocol, "the client does not speak HTTP/2"}
	}
	return nil
}

// greetLocked queues our own preface.
func (c *conn) greetLocked() {
	var b []byte
	for _, s := range []http2.Setting{
		{ID: http2.SettingHeaderTableSize, Val: 0},
		{ID: http2.SettingMaxConcurrentStreams, Val: uint32(c.o.MaxStreams)},
		{ID: http2.SettingMaxHeaderListSize, Val: uint32(c.o.MaxHeaderBytes)},
	} {
		b = binary.BigEndian.AppendUint16(b, uint16(s.ID))
		b = binary.BigEndian.AppendUint32(b, s.Val)
	}
	c.queueLocked(http2.FrameSettings, 0, 0, b...)
	c.queue32Locked(http2.FrameWindowUpdate, 0, connWindow-streamWindow)
}

// frame reads the rest of the frame whose header is in c.header and obeys it.
func (c *conn) frame(first bool) error {
	h := c.header[:]
	f := frame{
		n: int(h[0])<<16 | int(h[1])<<8 | int(h[2]), t: http2.FrameType(h[3]), flags: http2.Flags(h[4]),
		stream: binary.BigEndian.Uint32(h[5:]) & (1<<31 - 1),
	}
	switch {
	case first && (f.t != http2.FrameSettings || f.has(http2.FlagSettingsAck)): // RFC 9113 section 3.4
		return connError{http2.ErrCodeProtocol, "the first frame is not SETTINGS"}
	case f.n > maxFrame: // section 4.2
		return connError{http2.ErrCodeFrameSize, "a frame is too large"}
	case c.open != nil && (f.t != http2.FrameContinuation || f.stream != c.open.f.stream): // section 6.10
		return connError{http2.ErrCodeProtocol, "a header block is interrupted"}
	}
	var payload []byte
	if f.n > 0 {
		buf := framePool.Get().(*[maxFrame]byte)
		defer framePool.Put(buf)
		payload = buf[:f.n]
		if _, err := io.ReadFull(c.nc, payload); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
	}
	c.mu.Lock()
	c.lastRead = c.now()
	if first {
		c.ready = true
		c.scheduleLocked()
	}
	c.mu.Unlock()
	switch f.t {
	case http2.FrameData:
		return c.onData(f, payload)
	case http2.FrameHeaders:
		return c.onHeaders(f, payload)
	case http2.FrameContinuation:
		return c.onContinuation(f, payload)
	case http2.FrameRSTStream:
		return c.onReset(f, payload)
	case http2.FrameSettings:
		return c.onSettings(f, payload)
	case http2.FramePing:
		return c.onPing(f, payload)
	case http2.FrameGoAway:
		return c.onGoAway(f)
	case http2.FrameWindowUpdate:
		return c.onWindowUpdate(f, payload)
	case http2.FramePriority: // section 6.3: without meaning by now
		if f.stream == 0 {
			return connError{http2.ErrCodeProtocol, "PRIORITY without a stream"}
		}
		return c.charge(1)
	case http2.FramePushPromise: // section 8.4
		return connError{http2.ErrCodeProtocol, "PUSH_PROMISE from a client"}
	}
	return c.charge(1) // section 4.1: unknown types are ignored
}

// unpad returns the payload without its padding (RFC 9113 sections 6.1 and 6.2).
func unpad(f frame, p []byte) ([]byte, error) {
	if !f.has(http2.FlagDataPadded) { // the same bit in HEADERS
		return p, nil
	}
	if len(p) == 0 {
		return nil, connError{http2.ErrCodeFrameSize, "a padded frame without a length of its padding"}
	}
	pad := int(p[0])
	if p = p[1:]; pad > len(p) {
		return nil, connError{http2.ErrCodeProtocol, "a frame has more padding than content"}
	}
	return p[:len(p)-pad], nil
}

// streamLocked is the stream with this id, or nil if it is closed. Many streams are rare.
func (c *conn) streamLocked(id uint32) *stream {
	for i := len(c.streams) - 1; i >= 0; i-- {
		if c.streams[i].id == id {
			return c.streams[i]
		}
	}
	return nil
}

// idleLocked reports whether the client has not begun the stream yet: few frames may come on such a one (RFC 9113 section 5.1).
func (c *conn) idleLocked(id uint32) bool { return id%2 == 0 || id > c.lastID }

// lateLocked reports whether frames may still be under way on a closed stream, because it was us who closed it.
func (c *conn) lateLocked(id uint32) bool { return slices.Contains(c.late[:], id) }

func (c *conn) endedByUsLocked(id uint32) {
	c.late[c.nlate%uint8(len(c.late))] = id
	c.nlate++
}

// onData is RFC 9113 section 6.1.
func (c *conn) onData(f frame, p []byte) error {
	data, err := unpad(f, p)
	if err != nil {
		return err
	}
	if len(data) == 0 && !f.has(http2.FlagDataEndStream) {
		if err := c.charge(1); err != nil {
			return err
		}
	}
	c.mu.Lock()
	defer c.done()
	if c.idleLocked(f.stream) {
		return connError{http2.ErrCodeProtocol, "DATA on a stream that is not open"}
	}
	if f.n > int(c.recvWindow) { // section 6.9.1: padding counts
		return connError{http2.ErrCodeFlowControl, "more DATA than the connection has credit for"}
	}
	c.recvWindow -= int64(f.n)
	st := c.streamLocked(f.stream)
	switch {
	case st == nil && c.lateLocked(f.stream):
		c.returnLocked(f.n)
		return nil
	case st == nil || st.remoteDone: // section 5.1: half-closed (remote), closed
		c.returnLocked(f.n)
		return c.refuseLocked(f.stream, http2.ErrCodeStreamClosed)
	case f.n > int(st.recvWindow):
		c.returnLocked(f.n)
		return c.refuseLocked(f.stream, http2.ErrCodeFlowControl)
	}
	st.recvWindow -= int64(f.n)
	st.received += int64(len(data))
	end := f.has(http2.FlagDataEndStream)
	if st.declared >= 0 && (st.received > st.declared || end && st.received != st.declared) { // section 8.1.1
		c.returnLocked(f.n)
		return c.refuseLocked(f.stream, http2.ErrCodeProtocol)
	}
	c.returnLocked(f.n - len(data))
	if st.bodyErr != nil { // nobody wants it
		c.returnLocked(len(data))
	} else {
		st.returnLocked(f.n - len(data))
		st.body = append(st.body, data...)
	}
	if end {
		st.endBodyLocked()
	}
	st.cond.Broadcast()
	return nil
}

// refuseLocked ends a stream for a fault of the client (RFC 9113 section 5.4.2).
func (c *conn) refuseLocked(id uint32, code http2.ErrCode) error {
	if st := c.streamLocked(id); st != nil {
		st.resetLocked(code, streamError{code})
	} else {
		c.queue32Locked(http2.FrameRSTStream, id, uint32(code))
		c.endedByUsLocked(id)
	}
	return c.charge(1)
}

// onHeaders is RFC 9113 section 6.2.
func (c *conn) onHeaders(f frame, p []byte) error {
	if f.stream%2 == 0 { // section 5.1.1
		return connError{http2.ErrCodeProtocol, "HEADERS on a stream that no client can open"}
	}
	p, err := unpad(f, p)
	if err != nil {
		return err
	}
	if f.has(http2.FlagHeadersPriority) {
		if len(p) < 5 {
			return connError{http2.ErrCodeFrameSize, "HEADERS are too short"}
		}
		p = p[5:]
	}
	if f.has(http2.FlagHeadersEndHeaders) {
		return c.onBlock(f, p)
	}
	c.open = &openBlock{f, slices.Clone(p)}
	return c.charge(1)
}

// onContinuation is RFC 9113 section 6.10.
func (c *conn) onContinuation(f frame, p []byte) error {
	o := c.open
	if o == nil {
		return connError{http2.ErrCodeProtocol, "CONTINUATION of nothing"}
	}
	if len(o.block)+len(p) > maxBlock*c.o.MaxHeaderBytes { // section 10.5.1
		return connError{http2.ErrCodeEnhanceYourCalm, "a header block is too large"}
	}
	if len(p) < maxFrame { // a long block needs few frames
		if err := c.charge(4); err != nil {
			return err
		}
	}
	o.block = append(o.block, p...)
	if !f.has(http2.FlagContinuationEndHeaders) {
		return nil
	}
	c.open = nil
	return c.onBlock(o.f, o.block)
}

// onBlock is a whole header block: a request, or its trailers, which we ignore.
func (c *conn) onBlock(f frame, block []byte) error {
	l := fieldList{limit: c.o.MaxHeaderBytes}
	if err := c.dec.decode(block, &l); err != nil { // RFC 9113 section 4.3: even if nobody wants the fields
		return connError{http2.ErrCodeCompression, err.Error()}
	}
	end := f.has(http2.FlagHeadersEndStream)
	c.mu.Lock()
	defer c.done()
	if st := c.streamLocked(f.stream); st != nil {
		switch {
		case st.remoteDone: // section 5.1
			return c.refuseLocked(f.stream, http2.ErrCodeStreamClosed)
		case !end, slices.ContainsFunc(l.fields, field.pseudo): // section 8.1
			return c.refuseLocked(f.stream, http2.ErrCodeProtocol)
		case st.declared >= 0 && st.received != st.declared: // section 8.1.1
			return c.refuseLocked(f.stream, http2.ErrCodeProtocol)
		}
		st.endBodyLocked()
		return nil
	}
	if f.stream <= c.lastID {
		if c.lateLocked(f.stream) {
			return nil
		}
		return connError{http2.ErrCodeProtocol, "HEADERS on a stream that is closed"} // section 5.1.1
	}
	c.lastID = f.stream
	if c.draining || c.live >= c.o.MaxStreams { // section 5.1.2
		c.o.Counters.RefusedStreams.Add(1)
		return c.refuseLocked(f.stream, http2.ErrCodeRefusedStream)
	}
	r, ok := newRequest(&l, end)
	if !ok { // section 8.1.1
		return c.refuseLocked(f.stream, http2.ErrCodeProtocol)
	}
	c.beginLocked(f.stream, r, l.tooLarge, end)
	return nil
}

// onReset is RFC 9113 section 6.4. Each request that is taken back has cost us a handler (CVE-2023-44487).
func (c *conn) onReset(f frame, p []byte) error {
	if f.n != 4 {
		return connError{http2.ErrCodeFrameSize, "RST_STREAM has a wrong size"}
	}
	c.mu.Lock()
	defer c.done()
	if c.idleLocked(f.stream) {
		return connError{http2.ErrCodeProtocol, "RST_STREAM on a stream that is not open"}
	}
	st := c.streamLocked(f.stream)
	if st == nil {
		return c.charge(1)
	}
	c.removeLocked(st)
	st.abortLocked(streamError{http2.ErrCode(binary.BigEndian.Uint32(p))})
	return c.charge(4)
}

// onSettings is RFC 9113 section 6.5.
func (c *conn) onSettings(f frame, p []byte) error {
	ack := f.has(http2.FlagSettingsAck)
	switch {
	case f.stream != 0:
		return connError{http2.ErrCodeProtocol, "SETTINGS on a stream"}
	case f.n%6 != 0, ack && f.n != 0:
		return connError{http2.ErrCodeFrameSize, "SETTINGS have a wrong size"}
	}
	c.mu.Lock()
	defer c.done()
	if ack {
		if c.acked {
			return connError{http2.ErrCodeProtocol, "settings are acknowledged that were not sent"}
		}
		c.acked = true
		c.dec.forbidTable()
		return nil
	}
	for ; len(p) > 0; p = p[6:] {
		v := binary.BigEndian.Uint32(p[2:])
		switch http2.SettingID(binary.BigEndian.Uint16(p)) { // section 6.5.2; we push nothing, have no table, and send small frames
		case http2.SettingEnablePush:
			if v > 1 {
				return connError{http2.ErrCodeProtocol, "a bad setting of ENABLE_PUSH"}
			}
		case http2.SettingMaxFrameSize:
			if v < maxFrame || v > 1<<24-1 {
				return connError{http2.ErrCodeProtocol, "a bad setting of MAX_FRAME_SIZE"}
			}
		case http2.SettingInitialWindowSize:
			if v > maxWindow {
				return connError{http2.ErrCodeFlowControl, "a bad setting of INITIAL_WINDOW_SIZE"}
			}
			more := int64(v) - c.initWindow
			c.initWindow = int64(v)
			for _, st := range c.streams { // section 6.9.2
				if st.sendWindow += more; st.sendWindow > maxWindow {
					return connError{http2.ErrCodeFlowControl, "INITIAL_WINDOW_SIZE gives a stream too much credit"}
				}
				st.cond.Broadcast()
			}
		}
	}
	c.queueLocked(http2.FrameSettings, http2.FlagSettingsAck, 0)
	return c.charge(1 + f.n/60)
}

// onPing is RFC 9113 section 6.7.
func (c *conn) onPing(f frame, p []byte) error {
	switch {
	case f.n != 8:
		return connError{http2.ErrCodeFrameSize, "PING has a wrong size"}
	case f.stream != 0:
		return connError{http2.ErrCodeProtocol, "PING on a stream"}
	case !f.has(http2.FlagPingAck):
		c.mu.Lock()
		c.queueLocked(http2.FramePing, http2.FlagPingAck, 0, p...)
		c.done()
	}
	return c.charge(1)
}

// onGoAway is RFC 9113 section 6.8: the client will open no more streams.
func (c *conn) onGoAway(f frame) error {
	switch {
	case f.stream != 0:
		return connError{http2.ErrCodeProtocol, "GOAWAY on a stream"}
	case f.n < 8:
		return connError{http2.ErrCodeFrameSize, "GOAWAY is too short"}
	}
	c.drain(false)
	return c.charge(1)
}

// onWindowUpdate is RFC 9113 section 6.9.
func (c *conn) onWindowUpdate(f frame, p []byte) error {
	if f.n != 4 {
		return connError{http2.ErrCodeFrameSize, "WINDOW_UPDATE has a wrong size"}
	}
	n := int64(binary.BigEndian.Uint32(p) & maxWindow)
	c.mu.Lock()
	defer c.done()
	if c.earned > 0 {
		c.earned--
	} else if err := c.charge(1); err != nil {
		return err
	}
	if f.stream == 0 {
		if n == 0 {
			return connError{http2.ErrCodeProtocol, "an empty WINDOW_UPDATE"}
		}
		if c.sendWindow += n; c.sendWindow > maxWindow {
			return connError{http2.ErrCodeFlowControl, "too much credit for the connection"}
		}
		for _, st := range c.streams {
			if st.starved {
				st.cond.Broadcast()
			}
		}
		return nil
	}
	if c.idleLocked(f.stream) {
		return connError{http2.ErrCodeProtocol, "WINDOW_UPDATE on a stream that is not open"}
	}
	st := c.streamLocked(f.stream)
	if st == nil {
		return nil
	}
	if n == 0 {
		return c.refuseLocked(f.stream, http2.ErrCodeProtocol)
	}
	if st.sendWindow += n; st.sendWindow > maxWindow {
		return c.refuseLocked(f.stream, http2.ErrCodeFlowControl)
	}
	st.cond.Broadcast()
	return nil
}
