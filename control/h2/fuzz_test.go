package h2

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// tape is a connection whose client has said everything in advance, and says it in pieces.
type tape struct {
	in    []byte
	piece int

	mu     sync.Mutex
	out    bytes.Buffer // guarded by mu
	closed bool         // guarded by mu
}

func (c *tape) Read(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return 0, net.ErrClosed
	}
	if len(c.in) == 0 {
		return 0, io.EOF
	}
	n := copy(p, c.in[:min(len(c.in), c.piece)])
	c.in = c.in[n:]
	return n, nil
}

func (c *tape) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return 0, net.ErrClosed
	}
	return c.out.Write(p)
}

func (c *tape) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	return nil
}

func (c *tape) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (c *tape) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (c *tape) SetDeadline(time.Time) error      { return nil }
func (c *tape) SetReadDeadline(time.Time) error  { return nil }
func (c *tape) SetWriteDeadline(time.Time) error { return nil }

// FuzzServe sends arbitrary bytes behind the preface. Nothing panics, everything ends, little is kept, and what the server
// says are frames that another implementation understands and that the client has given credit for.
func FuzzServe(f *testing.F) {
	add := func(frames ...[]byte) {
		f.Add(bytes.Join(append([][]byte{appendFrame(nil, http2.FrameSettings, 0, 0)}, frames...), nil), uint16(1000))
	}
	add(headers(1, endStream, block()), headers(3, endStream, request("GET", "/hold")), frame32(http2.FrameRSTStream, 3, 8))
	add(headers(1, 0, request("POST", "/echo", "content-length", "3")), data(1, endStream, "abc"), appendFrame(nil, http2.FramePing, 0, 0, make([]byte, 8)...))
	add(headers(1, 0, request("POST", "/echo", "expect", "100-continue")), data(1, padded, "\x01abc\x00"), headers(1, endStream, block("", "", "x", "y")))
	add(setting(http2.SettingInitialWindowSize, 3), headers(1, 0, request("POST", "/echo")), data(1, endStream, "abcdefghij"), frame32(http2.FrameWindowUpdate, 1, 4))
	add(appendFrame(nil, http2.FrameHeaders, endStream, 1, block()[:3]...), appendFrame(nil, http2.FrameContinuation, endHeaders, 1, block()[3:]...))
	add(headers(1, endStream, request("GET", "/long")), setting(http2.SettingInitialWindowSize, 1<<20), frame32(http2.FrameWindowUpdate, 0, 1<<20))
	add(headers(1, endStream, request("GET", "/panic")), appendFrame(nil, http2.FrameGoAway, 0, 0, make([]byte, 8)...))
	add(rapidReset(20)...)
	add(appendFrame(nil, http2.FrameSettings, http2.FlagSettingsAck, 0), appendFrame(nil, http2.FramePriority, 0, 1, 0, 0, 0, 0, 0), appendFrame(nil, 0x55, 0, 0))
	f.Fuzz(func(t *testing.T, in []byte, piece uint16) {
		nc := &tape{in: append([]byte(http2.ClientPreface), in...), piece: int(piece) + 1}
		o := Options{MaxStreams: 10, WriteTimeout: time.Minute, OnPanic: func(_ *http.Request, v any, _ []byte) {
			if s, _ := v.(string); s != "as asked" && !strings.HasPrefix(s, "a client that gives no credit") {
				t.Errorf("panic: %v", v)
			}
		}}
		c := newConn(context.Background(), nc, http.HandlerFunc(testHandler), o)
		c.timer = time.AfterFunc(time.Hour, c.tick)
		c.mu.Lock()
		c.greetLocked()
		c.done()
		err := c.read()
		c.mu.Lock()
		if len(c.ctl) > maxQueued || len(c.streams) > 10 || c.live > 10 || len(c.dec.table) > initialTable/fieldOverhead || c.dec.size > initialTable {
			t.Errorf("kept: %d bytes of control frames, %d streams, %d handlers, %d fields", len(c.ctl), len(c.streams), c.live, len(c.dec.table))
		}
		total := 0
		for _, st := range c.streams {
			if total += cap(st.body); len(st.body) > streamWindow {
				t.Errorf("a body of %d bytes is kept", len(st.body))
			}
		}
		if total > 4*connWindow {
			t.Errorf("%d bytes of bodies are kept", total)
		}
		if c.open != nil && cap(c.open.block) > 2*maxBlock*c.o.MaxHeaderBytes {
			t.Errorf("%d bytes of a header block are kept", cap(c.open.block))
		}
		c.failLocked(err)
		c.done()
		c.timer.Stop()
		c.handlers.Wait()
		checkOutput(t, nc.out.Bytes(), in)
	})
}

// checkOutput reads what a server has said with the library.
func checkOutput(t *testing.T, out, in []byte) {
	fr := http2.NewFramer(nil, bytes.NewReader(out))
	fr.ReadMetaHeaders = hpack.NewDecoder(0, nil)
	credit := map[uint32]int64{}
	var settings int64 = 65535
	for b := in; len(b) >= frameHeader; { // the most that the client can have given
		n := int(b[0])<<16 | int(b[1])<<8 | int(b[2])
		t, id := http2.FrameType(b[3]), binary.BigEndian.Uint32(b[5:])&maxWindow
		if b = b[frameHeader:]; n > len(b) {
			break
		}
		p := b[:n]
		switch {
		case t == http2.FrameWindowUpdate && n == 4:
			credit[id] += int64(binary.BigEndian.Uint32(p) & maxWindow)
		case t == http2.FrameSettings:
			for ; len(p) >= 6; p = p[6:] {
				if binary.BigEndian.Uint16(p) == uint16(http2.SettingInitialWindowSize) {
					settings = max(settings, int64(binary.BigEndian.Uint32(p[2:])))
				}
			}
		}
		b = b[n:]
	}
	sent := map[uint32]int64{}
	ended := map[uint32]bool{}
	for first := true; ; first = false {
		f, err := fr.ReadFrame()
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) { // a write may have been cut
				t.Fatalf("the server said something that is not HTTP/2: %v", err)
			}
			return
		}
		id := f.Header().StreamID
		if _, ok := f.(*http2.SettingsFrame); first && !ok {
			t.Fatalf("the server's first frame is %v", f)
		}
		switch f := f.(type) {
		case *http2.DataFrame:
			sent[0] += int64(f.Length)
			sent[id] += int64(f.Length)
			if ended[id] || sent[0] > 65535+credit[0] || sent[id] > settings+credit[id] {
				t.Fatalf("DATA on stream %d without credit, or after its end", id)
			}
			ended[id] = f.StreamEnded()
		case *http2.MetaHeadersFrame:
			if ended[id] {
				t.Fatalf("HEADERS on stream %d after its end", id)
			}
			ended[id] = f.StreamEnded()
		}
	}
}

// FuzzHPACK reads two header blocks, the second after a change of the table's size, as the library does.
func FuzzHPACK(f *testing.F) {
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	for _, h := range []hpack.HeaderField{{Name: ":method", Value: "POST"}, {Name: ":path", Value: "/machine/map"}, {Name: "x", Value: "y"}, {Name: "x", Value: "y", Sensitive: true}} {
		_ = e.WriteField(h)
	}
	f.Add(b.Bytes(), slices.Concat([]byte{0x20}, block("a", "b")), true)
	f.Add(b.Bytes(), []byte{0xbe, 0xbf}, false)
	f.Add(b.Bytes(), []byte{0x3f, 0x30, 0x30}, false)
	f.Fuzz(func(t *testing.T, one, two []byte, forbid bool) {
		d := decoder{max: initialTable, limit: initialTable}
		lib := hpack.NewDecoder(initialTable, nil)
		for i, b := range [][]byte{one, two} {
			l := fieldList{limit: 1 << 30}
			err := d.decode(b, &l)
			want, wantErr := lib.DecodeFull(b)
			if err != nil {
				return // the library takes size updates in the middle and longer integers
			}
			if wantErr != nil && strings.Contains(wantErr.Error(), "size update MUST") {
				return // the second of two in front, which RFC 7541 section 4.2 allows
			}
			if wantErr != nil {
				t.Fatalf("block %d: %v, but the library says %v", i, l.fields, wantErr)
			}
			if len(want) != len(l.fields) {
				t.Fatalf("block %d: %v, want %v", i, l.fields, want)
			}
			for k, w := range want {
				if (l.fields[k] != field{w.Name, w.Value}) {
					t.Fatalf("block %d: %v, want %v", i, l.fields, want)
				}
			}
			size := 0
			for _, f := range d.table {
				size += f.size()
			}
			if size != d.size || size > d.max || d.max > initialTable {
				t.Fatalf("the table has %d bytes, counted as %d, of %d", size, d.size, d.max)
			}
			if forbid {
				d.forbidTable()
				lib.SetMaxDynamicTableSize(0)
				lib.SetAllowedMaxDynamicTableSize(0)
			}
		}
	})
}

// What the library's encoder writes we read, whatever it does with its table, and what we write the library reads.
func TestHPACK(t *testing.T) {
	for i := 1; i < len(staticTable); i++ {
		f, err := hpack.NewDecoder(0, nil).DecodeFull(appendInt(nil, 0x80, 7, i))
		if err != nil || len(f) != 1 || f[0].Name != staticTable[i].name || f[0].Value != staticTable[i].value {
			t.Fatalf("static entry %d is %v (%v), not %v", i, f, err, staticTable[i])
		}
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 2))
	text := func() string { return strings.Repeat(string(rune(' '+r.IntN(90))), r.IntN(1+r.IntN(3000))) }
	var b bytes.Buffer
	enc := hpack.NewEncoder(&b)
	d := decoder{max: initialTable, limit: initialTable}
	lib := hpack.NewDecoder(0, nil)
	for range 3000 {
		b.Reset()
		if r.IntN(10) == 0 {
			enc.SetMaxDynamicTableSize(uint32(r.IntN(initialTable + 1)))
		}
		var want []field
		var ours []byte
		for range r.IntN(20) {
			f := field{[]string{"x-" + text(), "cookie", ":path", "date", "etag"}[r.IntN(5)], text()}
			if r.IntN(3) == 0 {
				f = staticTable[1+r.IntN(61)]
			}
			want = append(want, f)
			_ = enc.WriteField(hpack.HeaderField{Name: f.name, Value: f.value, Sensitive: r.IntN(10) == 0})
			ours = appendField(ours, f.name, f.value)
		}
		l := fieldList{limit: 1 << 30}
		if err := d.decode(b.Bytes(), &l); err != nil || !reflect.DeepEqual(l.fields, want) {
			t.Fatalf("got %v (%v), want %v", l.fields, err, want)
		}
		got, err := lib.DecodeFull(ours)
		if err != nil || len(got) != len(want) {
			t.Fatalf("the library read %v (%v), want %v", got, err, want)
		}
		for i, g := range got {
			if (field{g.Name, g.Value}) != want[i] {
				t.Fatalf("the library read %v, want %v", g, want[i])
			}
		}
	}
	for code := 100; code < 1000; code++ {
		f, err := lib.DecodeFull(appendStatus(nil, code))
		if err != nil || f[0].Name != ":status" || f[0].Value != http.StatusText(code)[:0]+string(rune('0'+code/100))+string(rune('0'+code/10%10))+string(rune('0'+code%10)) {
			t.Fatalf("status %d reads as %v (%v)", code, f, err)
		}
	}
}
