package h2

import (
	"encoding/binary"

	"golang.org/x/net/http2"
)

// Frames, RFC 9113 section 4.1: length (3 bytes), type, flags, stream (4 bytes), and the payload.

const frameHeader = 9

// putHeader writes a frame's header into b.
func putHeader(b []byte, n int, t http2.FrameType, flags http2.Flags, stream uint32) {
	_ = b[8]
	b[0], b[1], b[2], b[3], b[4] = byte(n>>16), byte(n>>8), byte(n), byte(t), byte(flags)
	binary.BigEndian.PutUint32(b[5:], stream)
}

// appendFrame appends a frame with the payload.
func appendFrame(b []byte, t http2.FrameType, flags http2.Flags, stream uint32, payload ...byte) []byte {
	b = append(b, make([]byte, frameHeader)...)
	putHeader(b[len(b)-frameHeader:], len(payload), t, flags, stream)
	return append(b, payload...)
}

// appendBlock appends a header block as HEADERS and as many CONTINUATIONs as it needs.
func appendBlock(b []byte, flags http2.Flags, stream uint32, block []byte) []byte {
	t := http2.FrameHeaders
	for {
		n := min(len(block), maxFrame)
		if n == len(block) {
			flags |= http2.FlagHeadersEndHeaders // the same bit in CONTINUATION
		}
		b = appendFrame(b, t, flags, stream, block[:n]...)
		if block = block[n:]; len(block) == 0 {
			return b
		}
		t, flags = http2.FrameContinuation, 0
	}
}

// queueLocked queues a control frame, which done writes. c.mu must be held. Who reads no answers may not go on asking.
func (c *conn) queueLocked(t http2.FrameType, flags http2.Flags, stream uint32, payload ...byte) {
	if c.err != nil {
		return
	}
	if len(c.ctl)+frameHeader+len(payload) > maxQueued {
		c.failLocked(errQueue)
		return
	}
	c.ctl = appendFrame(c.ctl, t, flags, stream, payload...)
}

func (c *conn) queue32Locked(t http2.FrameType, stream uint32, v uint32) {
	c.queueLocked(t, 0, stream, byte(v>>24), byte(v>>16), byte(v>>8), byte(v))
}

// takeControlLocked returns the queued frames, to be copied before c.mu is unlocked.
func (c *conn) takeControlLocked() []byte {
	b := c.ctl
	if c.ctl = b[:0]; cap(b) > 64 {
		c.ctl = nil
	}
	return b
}

func (c *conn) goAwayLocked(code http2.ErrCode) {
	var b [8]byte
	binary.BigEndian.PutUint32(b[:], c.lastID)
	binary.BigEndian.PutUint32(b[4:], uint32(code))
	c.queueLocked(http2.FrameGoAway, 0, 0, b[:]...)
}
