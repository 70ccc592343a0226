package netmap

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"io"
	"slices"
	"strconv"
	"sync"

	"github.com/klauspost/compress/zstd"
	"tailscale.com/util/zstdframe"
)

// Frame is one encoded map response: a length and a body, the body in parts that other frames may share. It is immutable.
type Frame struct {
	parts [][]byte
	size  int // of the body in bytes
}

// Size is the number of bytes WriteTo writes.
func (f Frame) Size() int { return 4 + f.size }

// WriteTo writes the frame as clients read it: the length of the body as four bytes, little endian, and the body
// (controlclient.Direct.sendMapRequest reads it).
func (f Frame) WriteTo(w io.Writer) (n int64, err error) {
	var head [4]byte
	binary.LittleEndian.PutUint32(head[:], uint32(f.size))
	k, err := w.Write(head[:])
	n = int64(k)
	for _, p := range f.parts {
		if err != nil {
			break
		}
		k, err = w.Write(p)
		n += int64(k)
	}
	return n, err
}

func newFrame(parts ...[]byte) Frame {
	f := Frame{parts: parts}
	for _, p := range parts {
		f.size += len(p)
	}
	return f
}

// seal compresses one part of a frame. Parts that are sealed apart may be written one behind the other.
func seal(compress bool, b []byte) []byte {
	if !compress {
		return b
	}
	room := sealPool.Get().(*[]byte) // the encoder wants as much as it could need, and the result may be kept for long
	*room = zstdframe.AppendEncode((*room)[:0], b, zstdframe.EncoderLevel(zstd.SpeedFastest))
	out := bytes.Clone(*room)
	sealPool.Put(room)
	return out
}

var sealPool = sync.Pool{New: func() any { return new([]byte) }}

// marshal is json.Marshal for our own and tailcfg's types, which cannot fail.
func marshal(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic("netmap: " + err.Error())
	}
	return b
}

// object writes a JSON object field by field, so that parts encoded before can be put in as they are, and so that an
// empty list can be said where tailcfg's structs would leave it out.
type object struct{ b []byte }

// key starts a field; its value must follow.
func (o *object) key(name string) {
	sep := byte(',')
	if len(o.b) == 0 {
		sep = '{'
	}
	o.b = append(o.b, sep)
	o.b = strconv.AppendQuote(o.b, name)
	o.b = append(o.b, ':')
}

// set writes a field.
func (o *object) set(name string, v any) {
	o.key(name)
	o.b = append(o.b, marshal(v)...)
}

// list writes a field whose elements are encoded already; an empty list is left out.
func (o *object) list(name string, elems [][]byte) {
	if len(elems) == 0 {
		return
	}
	o.key(name)
	o.b = append(o.b, '[')
	o.b = appendJoined(o.b, elems)
	o.b = append(o.b, ']')
}

// empty reports whether no field has been written.
func (o *object) empty() bool { return len(o.b) == 0 }

// close is the whole object.
func (o *object) close() []byte {
	if len(o.b) == 0 {
		return []byte("{}")
	}
	return append(o.b, '}')
}

func appendJoined(b []byte, elems [][]byte) []byte {
	n := len(elems)
	for _, e := range elems {
		n += len(e)
	}
	b = slices.Grow(b, n)
	for i, e := range elems {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, e...)
	}
	return b
}
