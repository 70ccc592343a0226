package h2

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// raw is a client that sends frames of a test's making.
type raw struct {
	t  testing.TB
	nc net.Conn
	fr *http2.Framer // reads
}

// newRaw connects to testHandler and exchanges settings.
func newRaw(t testing.TB, o Options) (*raw, func() error) {
	t.Helper()
	a, b := pipe(t)
	stop := serve(t, b, testHandler, o)
	c := &raw{t: t, nc: a, fr: http2.NewFramer(nil, a)}
	c.fr.ReadMetaHeaders = hpack.NewDecoder(0, nil) // we are to use no dynamic table
	if err := a.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	c.send([]byte(http2.ClientPreface), appendFrame(nil, http2.FrameSettings, 0, 0))
	if _, ok := c.next().(*http2.SettingsFrame); !ok {
		t.Fatal("the first frame is not SETTINGS")
	}
	c.until("the settings are acknowledged", func(f http2.Frame) bool {
		s, ok := f.(*http2.SettingsFrame)
		return ok && s.IsAck()
	})
	c.send(appendFrame(nil, http2.FrameSettings, http2.FlagSettingsAck, 0))
	return c, stop
}

// testHandler answers the paths of the tests.
func testHandler(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/hold":
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	case "/mute":
		<-r.Context().Done()
	case "/echo":
		b, err := io.ReadAll(r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		_, _ = w.Write(b)
	case "/long":
		b := make([]byte, 1<<20)
		_, err := w.Write(b)
		if err == nil {
			err = http.NewResponseController(w).Flush()
		}
		if err == nil {
			panic("a client that gives no credit was sent all")
		}
	case "/panic":
		panic("as asked")
	default:
		_, _ = io.WriteString(w, "ok")
	}
}

func (c *raw) send(frames ...[]byte) {
	c.t.Helper()
	if _, err := c.nc.Write(bytes.Join(frames, nil)); err != nil {
		c.t.Fatal(err)
	}
}

func (c *raw) next() http2.Frame {
	c.t.Helper()
	f, err := c.fr.ReadFrame()
	if err != nil {
		c.t.Fatalf("reading a frame: %v", err)
	}
	return f
}

// until reads frames up to the one that ok accepts.
func (c *raw) until(what string, ok func(http2.Frame) bool) http2.Frame {
	c.t.Helper()
	for {
		f, err := c.fr.ReadFrame()
		if err != nil {
			c.t.Fatalf("%s: %v", what, err)
		}
		if ok(f) {
			return f
		}
	}
}

func (c *raw) reset(id uint32, code http2.ErrCode) {
	c.t.Helper()
	f := c.until("RST_STREAM", func(f http2.Frame) bool {
		if g, ok := f.(*http2.GoAwayFrame); ok {
			c.t.Fatalf("GOAWAY %v, want RST_STREAM %v", g.ErrCode, code)
		}
		_, ok := f.(*http2.RSTStreamFrame)
		return ok
	}).(*http2.RSTStreamFrame)
	if f.ErrCode != code || f.StreamID != id {
		c.t.Errorf("stream %d was reset with %v, want stream %d with %v", f.StreamID, f.ErrCode, id, code)
	}
}

// goAway wants the connection to end with this code.
func (c *raw) goAway(code http2.ErrCode) {
	c.t.Helper()
	f := c.until("GOAWAY", func(f http2.Frame) bool { _, ok := f.(*http2.GoAwayFrame); return ok }).(*http2.GoAwayFrame)
	if f.ErrCode != code {
		c.t.Errorf("GOAWAY %v, want %v", f.ErrCode, code)
	}
	_ = c.nc.(*net.TCPConn).CloseWrite() // for which the server waits a moment
	c.closed()
}

func (c *raw) closed() {
	c.t.Helper()
	for {
		if _, err := c.fr.ReadFrame(); err != nil {
			if ne := net.Error(nil); errors.As(err, &ne) && ne.Timeout() {
				c.t.Error("the connection is not closed")
			}
			return
		}
	}
}

// alive wants the connection to go on.
func (c *raw) alive() {
	c.t.Helper()
	c.send(appendFrame(nil, http2.FramePing, 0, 0, []byte("12345678")...))
	c.until("PING is answered", func(f http2.Frame) bool {
		switch f := f.(type) {
		case *http2.GoAwayFrame:
			c.t.Fatalf("GOAWAY %v", f.ErrCode)
		case *http2.PingFrame:
			return f.IsAck() && string(f.Data[:]) == "12345678"
		}
		return false
	})
}

// block is a header block: pairs of names and values behind those of a GET, or only the pairs if they begin with a
// pseudo-header field or, for trailers, with an empty pair.
func block(pairs ...string) []byte {
	if len(pairs) == 0 || pairs[0] != "" && pairs[0][0] != ':' {
		pairs = append([]string{":method", "GET", ":scheme", "http", ":path", "/", ":authority", "skein"}, pairs...)
	}
	var b []byte
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i] != "" {
			b = appendField(b, pairs[i], pairs[i+1])
		}
	}
	return b
}

func request(method, path string, more ...string) []byte {
	return block(append([]string{":method", method, ":scheme", "http", ":path", path, ":authority", "skein"}, more...)...)
}

const (
	endStream  = http2.FlagHeadersEndStream
	endHeaders = http2.FlagHeadersEndHeaders
	padded     = http2.FlagHeadersPadded
)

func headers(id uint32, flags http2.Flags, block []byte) []byte {
	return appendFrame(nil, http2.FrameHeaders, flags|endHeaders, id, block...)
}

func data(id uint32, flags http2.Flags, p string) []byte {
	return appendFrame(nil, http2.FrameData, flags, id, []byte(p)...)
}

func frame32(t http2.FrameType, id, v uint32) []byte {
	return appendFrame(nil, t, 0, id, binary.BigEndian.AppendUint32(nil, v)...)
}

func setting(id http2.SettingID, v uint32) []byte {
	b := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint16(nil, uint16(id)), v)
	return appendFrame(nil, http2.FrameSettings, 0, 0, b...)
}

// What RFC 9113 calls a connection error ends the connection with its code.
func TestConnectionErrors(t *testing.T) {
	hold := headers(1, endStream, request("GET", "/hold"))
	for name, tt := range map[string]struct {
		send [][]byte
		code http2.ErrCode
	}{
		"4.2 frame too large":                 {[][]byte{appendFrame(nil, http2.FrameData, 0, 1, make([]byte, maxFrame+1)...)}, http2.ErrCodeFrameSize},
		"4.2 unknown frame too large":         {[][]byte{{0xff, 0xff, 0xff, 0x99, 0, 0, 0, 0, 0}}, http2.ErrCodeFrameSize},
		"4.3 not HPACK":                       {[][]byte{headers(1, endStream, []byte{0x80})}, http2.ErrCodeCompression},
		"4.3 index too large":                 {[][]byte{headers(1, endStream, []byte{0xff, 0xff, 0xff, 0x01})}, http2.ErrCodeCompression},
		"4.3 table larger than allowed":       {[][]byte{headers(1, endStream, append([]byte{0x3f, 0xe1, 0x1f}, block()...))}, http2.ErrCodeCompression},
		"5.1 DATA on idle stream":             {[][]byte{data(1, 0, "x")}, http2.ErrCodeProtocol},
		"5.1 DATA on stream of server":        {[][]byte{data(2, 0, "x")}, http2.ErrCodeProtocol},
		"5.1 RST_STREAM on idle stream":       {[][]byte{frame32(http2.FrameRSTStream, 1, 0)}, http2.ErrCodeProtocol},
		"5.1 WINDOW_UPDATE on idle stream":    {[][]byte{frame32(http2.FrameWindowUpdate, 1, 1)}, http2.ErrCodeProtocol},
		"5.1.1 HEADERS on even stream":        {[][]byte{headers(2, endStream, block())}, http2.ErrCodeProtocol},
		"5.1.1 HEADERS on older stream":       {[][]byte{headers(5, endStream, request("GET", "/hold")), headers(3, endStream, block())}, http2.ErrCodeProtocol},
		"6.1 DATA on stream 0":                {[][]byte{data(0, 0, "x")}, http2.ErrCodeProtocol},
		"6.1 DATA with too much padding":      {[][]byte{headers(1, 0, request("POST", "/mute")), data(1, padded, "\x05abcd")}, http2.ErrCodeProtocol},
		"6.1 DATA padded without length":      {[][]byte{headers(1, 0, request("POST", "/mute")), data(1, padded, "")}, http2.ErrCodeFrameSize},
		"6.2 HEADERS on stream 0":             {[][]byte{headers(0, endStream, block())}, http2.ErrCodeProtocol},
		"6.2 HEADERS with too much padding":   {[][]byte{headers(1, endStream|padded, []byte{3, 0x82, 0x86})}, http2.ErrCodeProtocol},
		"6.2 HEADERS without priority":        {[][]byte{headers(1, endStream|http2.FlagHeadersPriority, []byte{0, 0, 0, 0})}, http2.ErrCodeFrameSize},
		"6.3 PRIORITY on stream 0":            {[][]byte{appendFrame(nil, http2.FramePriority, 0, 0, 0, 0, 0, 0, 0)}, http2.ErrCodeProtocol},
		"6.4 RST_STREAM on stream 0":          {[][]byte{frame32(http2.FrameRSTStream, 0, 0)}, http2.ErrCodeProtocol},
		"6.4 RST_STREAM of 3 bytes":           {[][]byte{hold, appendFrame(nil, http2.FrameRSTStream, 0, 1, 0, 0, 0)}, http2.ErrCodeFrameSize},
		"6.5 SETTINGS on a stream":            {[][]byte{appendFrame(nil, http2.FrameSettings, 0, 1)}, http2.ErrCodeProtocol},
		"6.5 SETTINGS of 5 bytes":             {[][]byte{appendFrame(nil, http2.FrameSettings, 0, 0, 0, 0, 0, 0, 0)}, http2.ErrCodeFrameSize},
		"6.5 SETTINGS acknowledged with more": {[][]byte{appendFrame(nil, http2.FrameSettings, http2.FlagSettingsAck, 0, make([]byte, 6)...)}, http2.ErrCodeFrameSize},
		"6.5 SETTINGS acknowledged twice":     {[][]byte{appendFrame(nil, http2.FrameSettings, http2.FlagSettingsAck, 0)}, http2.ErrCodeProtocol},
		"6.5.2 ENABLE_PUSH":                   {[][]byte{setting(http2.SettingEnablePush, 2)}, http2.ErrCodeProtocol},
		"6.5.2 INITIAL_WINDOW_SIZE":           {[][]byte{setting(http2.SettingInitialWindowSize, 1<<31)}, http2.ErrCodeFlowControl},
		"6.5.2 MAX_FRAME_SIZE too small":      {[][]byte{setting(http2.SettingMaxFrameSize, maxFrame-1)}, http2.ErrCodeProtocol},
		"6.5.2 MAX_FRAME_SIZE too large":      {[][]byte{setting(http2.SettingMaxFrameSize, 1<<24)}, http2.ErrCodeProtocol},
		"6.6 PUSH_PROMISE":                    {[][]byte{appendFrame(nil, http2.FramePushPromise, endHeaders, 1, 0, 0, 0, 2)}, http2.ErrCodeProtocol},
		"6.7 PING on a stream":                {[][]byte{appendFrame(nil, http2.FramePing, 0, 1, make([]byte, 8)...)}, http2.ErrCodeProtocol},
		"6.7 PING of 7 bytes":                 {[][]byte{appendFrame(nil, http2.FramePing, 0, 0, make([]byte, 7)...)}, http2.ErrCodeFrameSize},
		"6.8 GOAWAY on a stream":              {[][]byte{appendFrame(nil, http2.FrameGoAway, 0, 1, make([]byte, 8)...)}, http2.ErrCodeProtocol},
		"6.8 GOAWAY of 4 bytes":               {[][]byte{appendFrame(nil, http2.FrameGoAway, 0, 0, make([]byte, 4)...)}, http2.ErrCodeFrameSize},
		"6.9 WINDOW_UPDATE of 0":              {[][]byte{frame32(http2.FrameWindowUpdate, 0, 0)}, http2.ErrCodeProtocol},
		"6.9 WINDOW_UPDATE of 5 bytes":        {[][]byte{appendFrame(nil, http2.FrameWindowUpdate, 0, 0, 0, 0, 0, 1, 0)}, http2.ErrCodeFrameSize},
		"6.9.1 too much credit":               {[][]byte{frame32(http2.FrameWindowUpdate, 0, maxWindow)}, http2.ErrCodeFlowControl},
		"6.9.1 more DATA than credit": {append([][]byte{headers(1, 0, request("POST", "/mute")), headers(3, 0, request("POST", "/mute")), headers(5, 0, request("POST", "/mute"))},
			slices.Repeat([][]byte{data(1, 0, strings.Repeat("x", 13107)), data(3, 0, strings.Repeat("x", 13107)), data(5, 0, strings.Repeat("x", 13107))}, 4)...), http2.ErrCodeFlowControl},
		"6.9.2 settings give too much credit": {[][]byte{hold, frame32(http2.FrameWindowUpdate, 1, maxWindow-65535), setting(http2.SettingInitialWindowSize, 65536)}, http2.ErrCodeFlowControl},
		"6.10 CONTINUATION of nothing":        {[][]byte{appendFrame(nil, http2.FrameContinuation, endHeaders, 1)}, http2.ErrCodeProtocol},
		"6.10 CONTINUATION after the end":     {[][]byte{hold, appendFrame(nil, http2.FrameContinuation, endHeaders, 1)}, http2.ErrCodeProtocol},
		"6.10 block interrupted":              {[][]byte{appendFrame(nil, http2.FrameHeaders, endStream, 1), appendFrame(nil, http2.FramePing, 0, 0, make([]byte, 8)...)}, http2.ErrCodeProtocol},
		"6.10 block interrupted by unknown":   {[][]byte{appendFrame(nil, http2.FrameHeaders, endStream, 1), appendFrame(nil, 0x77, 0, 0)}, http2.ErrCodeProtocol},
		"6.10 CONTINUATION of another stream": {[][]byte{appendFrame(nil, http2.FrameHeaders, endStream, 1), appendFrame(nil, http2.FrameContinuation, endHeaders, 3)}, http2.ErrCodeProtocol},
		"10.5.1 endless block": {append([][]byte{appendFrame(nil, http2.FrameHeaders, endStream, 1)},
			slices.Repeat([][]byte{appendFrame(nil, http2.FrameContinuation, 0, 1, make([]byte, maxFrame)...)}, maxBlock+1)...), http2.ErrCodeEnhanceYourCalm},
		"10.5 flood of CONTINUATION": {append([][]byte{appendFrame(nil, http2.FrameHeaders, endStream, 1)},
			slices.Repeat([][]byte{appendFrame(nil, http2.FrameContinuation, 0, 1)}, tokenBurst)...), http2.ErrCodeEnhanceYourCalm},
		"10.5 flood of PING":          {slices.Repeat([][]byte{appendFrame(nil, http2.FramePing, http2.FlagPingAck, 0, make([]byte, 8)...)}, 3*tokenBurst), http2.ErrCodeEnhanceYourCalm},
		"10.5 flood of PRIORITY":      {slices.Repeat([][]byte{appendFrame(nil, http2.FramePriority, 0, 1, 0, 0, 0, 0, 0)}, 3*tokenBurst), http2.ErrCodeEnhanceYourCalm},
		"10.5 flood of unknown":       {slices.Repeat([][]byte{appendFrame(nil, 0x42, 0, 1)}, 3*tokenBurst), http2.ErrCodeEnhanceYourCalm},
		"10.5 flood of empty DATA":    {append([][]byte{headers(1, 0, request("POST", "/mute"))}, slices.Repeat([][]byte{data(1, 0, "")}, 3*tokenBurst)...), http2.ErrCodeEnhanceYourCalm},
		"10.5 flood of tiny credit":   {append([][]byte{hold}, slices.Repeat([][]byte{frame32(http2.FrameWindowUpdate, 1, 1)}, 3*tokenBurst)...), http2.ErrCodeEnhanceYourCalm},
		"10.5 flood of late DATA":     {append([][]byte{headers(1, endStream, block())}, slices.Repeat([][]byte{frame32(http2.FrameRSTStream, 1, 0)}, 3*tokenBurst)...), http2.ErrCodeEnhanceYourCalm},
		"10.5 rapid reset":            {rapidReset(tokenBurst), http2.ErrCodeEnhanceYourCalm},
		"3.4 flood of settings, read": {slices.Repeat([][]byte{setting(http2.SettingMaxConcurrentStreams, 1)}, 3*tokenBurst), http2.ErrCodeEnhanceYourCalm},
	} {
		t.Run(name, func(t *testing.T) {
			c, stop := newRaw(t, Options{})
			go func() { _, _ = c.nc.Write(bytes.Join(tt.send, nil)) }() // which may not be read to its end
			c.goAway(tt.code)
			err := stop()
			var ce connError
			if !errors.As(err, &ce) || ce.code != tt.code {
				t.Errorf("Serve returned %v", err)
			}
		})
	}
}

// rapidReset is n requests that are taken back at once.
func rapidReset(n int) (out [][]byte) {
	for id := uint32(1); id < uint32(2*n); id += 2 {
		out = append(out, headers(id, endStream, request("GET", "/mute")), frame32(http2.FrameRSTStream, id, uint32(http2.ErrCodeCancel)))
	}
	return out
}

// What RFC 9113 calls a stream error costs the stream alone.
func TestStreamErrors(t *testing.T) {
	for name, tt := range map[string]struct {
		send [][]byte
		code http2.ErrCode
	}{
		"5.1 DATA when half-closed":             {[][]byte{headers(1, endStream, request("GET", "/hold")), data(1, 0, "x")}, http2.ErrCodeStreamClosed},
		"5.1 HEADERS when half-closed":          {[][]byte{headers(1, endStream, request("GET", "/hold")), headers(1, endStream, block())}, http2.ErrCodeStreamClosed},
		"6.9 WINDOW_UPDATE of 0":                {[][]byte{headers(1, endStream, request("GET", "/hold")), frame32(http2.FrameWindowUpdate, 1, 0)}, http2.ErrCodeProtocol},
		"6.9.1 too much credit":                 {[][]byte{headers(1, endStream, request("GET", "/hold")), frame32(http2.FrameWindowUpdate, 1, maxWindow)}, http2.ErrCodeFlowControl},
		"6.9.1 more DATA than credit":           {append([][]byte{headers(1, 0, request("POST", "/mute"))}, slices.Repeat([][]byte{data(1, 0, strings.Repeat("x", 13108))}, 5)...), http2.ErrCodeFlowControl},
		"8.1 trailers without end":              {[][]byte{headers(1, 0, request("POST", "/mute")), headers(1, 0, block("", "", "x", "y"))}, http2.ErrCodeProtocol},
		"8.1 trailers with pseudo-header":       {[][]byte{headers(1, 0, request("POST", "/mute")), headers(1, endStream, block())}, http2.ErrCodeProtocol},
		"8.1.1 body longer than told":           {[][]byte{headers(1, 0, request("POST", "/mute", "content-length", "2")), data(1, 0, "abc")}, http2.ErrCodeProtocol},
		"8.1.1 body shorter than told":          {[][]byte{headers(1, 0, request("POST", "/mute", "content-length", "2")), data(1, endStream, "a")}, http2.ErrCodeProtocol},
		"8.1.1 trailers before the told length": {[][]byte{headers(1, 0, request("POST", "/mute", "content-length", "2")), headers(1, endStream, block("", "", "x", "y"))}, http2.ErrCodeProtocol},
		"8.1.1 no body where one is told":       {[][]byte{headers(1, endStream, request("POST", "/", "content-length", "2"))}, http2.ErrCodeProtocol},
		"8.1.1 two lengths":                     {[][]byte{headers(1, 0, request("POST", "/", "content-length", "2", "content-length", "2"))}, http2.ErrCodeProtocol},
		"8.1.1 negative length":                 {[][]byte{headers(1, 0, request("POST", "/", "content-length", "-2"))}, http2.ErrCodeProtocol},
		"8.2.1 upper case":                      {[][]byte{headers(1, endStream, block("X-Y", "z"))}, http2.ErrCodeProtocol},
		"8.2.1 bad name":                        {[][]byte{headers(1, endStream, block("x y", "z"))}, http2.ErrCodeProtocol},
		"8.2.1 empty name":                      {[][]byte{headers(1, endStream, append(block(), 0, 0, 0))}, http2.ErrCodeProtocol},
		"8.2.1 bad value":                       {[][]byte{headers(1, endStream, block("x", "a\r\nb: c"))}, http2.ErrCodeProtocol},
		"8.2.1 NUL in value":                    {[][]byte{headers(1, endStream, block("x", "a\x00"))}, http2.ErrCodeProtocol},
		"8.2.2 Connection":                      {[][]byte{headers(1, endStream, block("connection", "keep-alive"))}, http2.ErrCodeProtocol},
		"8.2.2 Transfer-Encoding":               {[][]byte{headers(1, endStream, block("transfer-encoding", "chunked"))}, http2.ErrCodeProtocol},
		"8.2.2 TE":                              {[][]byte{headers(1, endStream, block("te", "gzip"))}, http2.ErrCodeProtocol},
		"8.3 unknown pseudo-header":             {[][]byte{headers(1, endStream, request("GET", "/", ":x", "y"))}, http2.ErrCodeProtocol},
		"8.3 pseudo-header of a response":       {[][]byte{headers(1, endStream, request("GET", "/", ":status", "200"))}, http2.ErrCodeProtocol},
		"8.3 pseudo-header behind":              {[][]byte{headers(1, endStream, block("x", "y", ":path", "/"))}, http2.ErrCodeProtocol},
		"8.3.1 pseudo-header twice":             {[][]byte{headers(1, endStream, request("GET", "/", ":path", "/"))}, http2.ErrCodeProtocol},
		"8.3.1 authority twice":                 {[][]byte{headers(1, endStream, request("GET", "/", ":authority", ""))}, http2.ErrCodeProtocol},
		"8.3.1 empty path":                      {[][]byte{headers(1, endStream, request("GET", ""))}, http2.ErrCodeProtocol},
		"8.3.1 relative path":                   {[][]byte{headers(1, endStream, request("GET", "x"))}, http2.ErrCodeProtocol},
		"8.3.1 no path":                         {[][]byte{headers(1, endStream, block(":method", "GET", ":scheme", "http"))}, http2.ErrCodeProtocol},
		"8.3.1 no method":                       {[][]byte{headers(1, endStream, block(":path", "/", ":scheme", "http"))}, http2.ErrCodeProtocol},
		"8.3.1 no scheme":                       {[][]byte{headers(1, endStream, block(":path", "/", ":method", "GET"))}, http2.ErrCodeProtocol},
		"8.3.1 bad method":                      {[][]byte{headers(1, endStream, request("G T", "/"))}, http2.ErrCodeProtocol},
		"8.3.1 user in authority":               {[][]byte{headers(1, endStream, block(":method", "GET", ":scheme", "http", ":path", "/", ":authority", "u@h"))}, http2.ErrCodeProtocol},
		"8.5 CONNECT with path":                 {[][]byte{headers(1, endStream, request("CONNECT", "/"))}, http2.ErrCodeProtocol},
		"8.5 CONNECT without authority":         {[][]byte{headers(1, endStream, block(":method", "CONNECT"))}, http2.ErrCodeProtocol},
		"a panic":                               {[][]byte{headers(1, endStream, request("GET", "/panic"))}, http2.ErrCodeInternal},
	} {
		t.Run(name, func(t *testing.T) {
			c, _ := newRaw(t, Options{OnPanic: func(*http.Request, any, []byte) {}})
			c.send(tt.send...)
			c.reset(1, tt.code)
			c.alive()
			c.send(data(1, 0, "late"), headers(1, endStream, block("", "", "late", "trailer")), frame32(http2.FrameWindowUpdate, 1, 1), frame32(http2.FrameRSTStream, 1, 0))
			c.alive()
			c.send(headers(3, endStream, block()))
			c.until("another request is answered", func(f http2.Frame) bool {
				h, ok := f.(*http2.MetaHeadersFrame)
				return ok && h.StreamID == 3 && h.PseudoValue("status") == "200"
			})
		})
	}
}

// What is odd but allowed is taken.
func TestTolerated(t *testing.T) {
	for name, send := range map[string][][]byte{
		"PRIORITY":                        {appendFrame(nil, http2.FramePriority, 0, 9, 0, 0, 0, 1, 5)},
		"HEADERS with priority":           {headers(1, endStream|http2.FlagHeadersPriority, append([]byte{0x80, 0, 0, 1, 7}, block()...))},
		"HEADERS with padding":            {headers(1, endStream|padded, append(append([]byte{4}, block()...), 0, 0, 0, 0))},
		"DATA with nothing but padding":   {headers(1, 0, request("POST", "/echo")), data(1, padded|endStream, "\x03\x00\x00\x00")},
		"unknown frame":                   {appendFrame(nil, 0x99, 0xff, 7, 1, 2, 3)},
		"unknown setting":                 {setting(0x99, 5)},
		"PING answer":                     {appendFrame(nil, http2.FramePing, http2.FlagPingAck, 0, make([]byte, 8)...)},
		"reserved bit":                    {appendFrame(nil, http2.FrameHeaders, endStream|endHeaders, 1|1<<31, block()...)},
		"streams left out":                {headers(101, endStream, block())},
		"trailers":                        {headers(1, 0, request("POST", "/echo")), data(1, 0, "x"), headers(1, endStream, block("", "", "x", "y"))},
		"block in pieces":                 {appendFrame(nil, http2.FrameHeaders, endStream, 1, block()[:3]...), appendFrame(nil, http2.FrameContinuation, 0, 1, block()[3:5]...), appendFrame(nil, http2.FrameContinuation, endHeaders, 1, block()[5:]...)},
		"late WINDOW_UPDATE and RST":      {headers(1, endStream, request("GET", "/hold")), frame32(http2.FrameRSTStream, 1, 8), frame32(http2.FrameWindowUpdate, 1, 1), frame32(http2.FrameRSTStream, 1, 8)},
		"CONNECT":                         {headers(1, endStream, block(":method", "CONNECT", ":authority", "skein:1"))},
		"OPTIONS *":                       {headers(1, endStream, request("OPTIONS", "*"))},
		"te: trailers":                    {headers(1, endStream, block("te", "trailers"))},
		"window below zero":               {headers(1, endStream, request("GET", "/hold")), setting(http2.SettingInitialWindowSize, 0), setting(http2.SettingInitialWindowSize, maxWindow)},
		"table size 0":                    {headers(1, endStream, append([]byte{0x20, 0x20}, block()...))},
		"DATA and RST_STREAM of the body": {headers(1, 0, request("POST", "/echo")), data(1, 0, "x"), frame32(http2.FrameRSTStream, 1, 8)},
	} {
		t.Run(name, func(t *testing.T) {
			c, _ := newRaw(t, Options{})
			c.send(send...)
			c.alive()
		})
	}
}

// DATA on a stream that the client itself has ended is its mistake, though it costs nothing else.
func TestDataOnClosedStream(t *testing.T) {
	c, _ := newRaw(t, Options{})
	c.send(headers(1, endStream, block()))
	c.until("the answer ends", func(f http2.Frame) bool { d, ok := f.(*http2.DataFrame); return ok && d.StreamEnded() })
	c.send(data(1, 0, "x"))
	c.reset(1, http2.ErrCodeStreamClosed)
	c.alive()
	c.send(headers(1, endStream, block()))
	c.alive() // it was us who closed it last
	c.send(headers(3, endStream, block()))
	c.until("the answer ends", func(f http2.Frame) bool { d, ok := f.(*http2.DataFrame); return ok && d.StreamEnded() })
	c.send(headers(3, endStream, block()))
	c.goAway(http2.ErrCodeProtocol)
}

func TestBadPreface(t *testing.T) {
	for name, send := range map[string][]byte{
		"HTTP/1":                  []byte("GET / HTTP/1.1\r\nHost: skein.example\r\n\r\n"),
		"one letter":              bytes.Replace([]byte(http2.ClientPreface), []byte("SM"), []byte("SN"), 1),
		"no SETTINGS":             append([]byte(http2.ClientPreface), headers(1, endStream, block())...),
		"SETTINGS acknowledged":   append([]byte(http2.ClientPreface), appendFrame(nil, http2.FrameSettings, http2.FlagSettingsAck, 0)...),
		"nothing but the preface": []byte(http2.ClientPreface),
		"nothing":                 nil,
		"half":                    []byte(http2.ClientPreface)[:10],
	} {
		t.Run(name, func(t *testing.T) {
			a, b := pipe(t)
			stop := serve(t, b, testHandler, Options{})
			_ = a.SetDeadline(time.Now().Add(patience))
			_, _ = a.Write(send)
			if len(send) <= len(http2.ClientPreface) { // then the client goes away
				_ = a.(*net.TCPConn).CloseWrite()
			}
			if _, err := io.Copy(io.Discard, a); err != nil && strings.Contains(err.Error(), "timeout") {
				t.Error("the connection is still open")
			}
			_ = stop()
		})
	}
}

// A request with more header fields than allowed is told so; the state of HPACK stays right.
func TestHeaderBomb(t *testing.T) {
	a, b := pipe(t)
	serve(t, b, testHandler, Options{})
	var out bytes.Buffer
	out.WriteString(http2.ClientPreface)
	fr := http2.NewFramer(&out, a)
	var head bytes.Buffer
	enc := hpack.NewEncoder(&head) // with a dynamic table, since it has not seen our settings
	for _, f := range [][2]string{{":method", "GET"}, {":scheme", "http"}, {":path", "/"}, {":authority", "skein"}} {
		_ = enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
	}
	for range 10_000 { // each a single byte but for the first
		_ = enc.WriteField(hpack.HeaderField{Name: "bomb", Value: strings.Repeat("x", 3000)})
	}
	_ = fr.WriteSettings()
	_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: head.Bytes(), EndHeaders: true, EndStream: true})
	head.Reset()
	for _, f := range [][2]string{{":method", "GET"}, {":scheme", "http"}, {":path", "/"}, {":authority", "skein"}} {
		_ = enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
	}
	_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 3, BlockFragment: head.Bytes(), EndHeaders: true, EndStream: true})
	_ = a.SetDeadline(time.Now().Add(patience))
	if _, err := a.Write(out.Bytes()); err != nil {
		t.Fatal(err)
	}
	fr.ReadMetaHeaders = hpack.NewDecoder(0, nil)
	status := map[uint32]string{}
	for len(status) < 2 {
		f, err := fr.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if h, ok := f.(*http2.MetaHeadersFrame); ok {
			status[h.StreamID] = h.PseudoValue("status")
		}
	}
	if status[1] != "431" || status[3] != "200" {
		t.Errorf("answered with %v", status)
	}
}

// Streams beyond the limit are refused, and so is one whose client has given up others whose handlers still run.
func TestMaxStreams(t *testing.T) {
	c, _ := newRaw(t, Options{MaxStreams: 2})
	c.send(headers(1, endStream, request("GET", "/hold")), headers(3, endStream, request("GET", "/hold")), headers(5, endStream, block()))
	c.reset(5, http2.ErrCodeRefusedStream)
	c.send(frame32(http2.FrameRSTStream, 1, 8))
	for id := uint32(7); ; id += 2 { // there is room once the handler has noticed
		c.send(headers(id, endStream, block()))
		f := c.until("an answer", func(f http2.Frame) bool { return f.Header().StreamID == id })
		if _, ok := f.(*http2.MetaHeadersFrame); ok {
			break
		}
	}
	c.alive()
}

// GOAWAY, by either side, lets the open streams end and then closes the connection.
func TestDrain(t *testing.T) {
	t.Run("by the client", func(t *testing.T) {
		c, stop := newRaw(t, Options{})
		c.send(headers(1, 0, request("POST", "/echo")), appendFrame(nil, http2.FrameGoAway, 0, 0, make([]byte, 8)...))
		g := c.until("GOAWAY", func(f http2.Frame) bool { _, ok := f.(*http2.GoAwayFrame); return ok }).(*http2.GoAwayFrame)
		if g.ErrCode != http2.ErrCodeNo || g.LastStreamID != 1 {
			t.Errorf("GOAWAY %v of %d", g.ErrCode, g.LastStreamID)
		}
		c.send(headers(3, endStream, block()))
		c.reset(3, http2.ErrCodeRefusedStream)
		c.send(data(1, endStream, "hello"))
		d := c.until("DATA", func(f http2.Frame) bool { _, ok := f.(*http2.DataFrame); return ok }).(*http2.DataFrame)
		if string(d.Data()) != "hello" || !d.StreamEnded() {
			t.Errorf("the stream got %q", d.Data())
		}
		c.closed()
		if err := stop(); err != nil {
			t.Errorf("Serve returned %v", err)
		}
	})
	t.Run("by the end of the context", func(t *testing.T) {
		c, stop := newRaw(t, Options{})
		c.send(headers(1, endStream, request("GET", "/hold")))
		c.until("HEADERS", func(f http2.Frame) bool { _, ok := f.(*http2.MetaHeadersFrame); return ok })
		if err := stop(); err != nil {
			t.Errorf("Serve returned %v", err)
		}
		c.until("GOAWAY", func(f http2.Frame) bool { _, ok := f.(*http2.GoAwayFrame); return ok })
		c.until("the stream ends", func(f http2.Frame) bool { d, ok := f.(*http2.DataFrame); return ok && d.StreamEnded() })
		c.closed()
	})
}

// A stream that gets no credit waits without disturbing others and goes on with each bit of credit.
func TestFlowControl(t *testing.T) {
	c, _ := newRaw(t, Options{})
	c.send(setting(http2.SettingInitialWindowSize, 10), headers(1, 0, request("POST", "/echo")), data(1, endStream, strings.Repeat("abcdefghij", 10)))
	got := ""
	read := func(want string) {
		t.Helper()
		for len(got) < len(want) {
			d := c.until("DATA", func(f http2.Frame) bool { _, ok := f.(*http2.DataFrame); return ok }).(*http2.DataFrame)
			got += string(d.Data())
		}
		if got != want {
			t.Fatalf("got %q, want %q", got, want)
		}
		c.alive()
	}
	all := strings.Repeat("abcdefghij", 10)
	read(all[:10])
	c.send(frame32(http2.FrameWindowUpdate, 1, 5))
	read(all[:15])
	c.send(setting(http2.SettingInitialWindowSize, 3), frame32(http2.FrameWindowUpdate, 1, 5)) // 2 below zero
	c.alive()
	c.send(frame32(http2.FrameWindowUpdate, 1, 10))
	read(all[:23])
	c.send(headers(3, endStream, block(":method", "GET", ":scheme", "http", ":path", "/", ":authority", "skein")))
	c.until("another stream", func(f http2.Frame) bool {
		d, ok := f.(*http2.DataFrame)
		return ok && d.StreamID == 3 && string(d.Data()) == "ok"
	})
	c.send(setting(http2.SettingInitialWindowSize, 100))
	read(all)
}

// lingering is a connection on which a write of data takes until the peer's next bytes have been obeyed.
type lingering struct {
	net.Conn
	mu      sync.Mutex
	cond    sync.Cond
	reading int // bytes that were read when the newest Read began
	read    int
	until   int // guarded by mu, as all of it: a write of data waits until so much was read and obeyed; 0: none waits
}

func (l *lingering) Read(p []byte) (int, error) {
	l.mu.Lock()
	l.reading = l.read
	l.cond.Broadcast()
	l.mu.Unlock()
	n, err := l.Conn.Read(p)
	l.mu.Lock()
	l.read += n
	l.mu.Unlock()
	return n, err
}

func (l *lingering) Write(p []byte) (int, error) {
	n, err := l.Conn.Write(p)
	l.mu.Lock()
	defer l.mu.Unlock()
	for bytes.HasSuffix(p, []byte("abcdefghij")) && l.reading < l.until {
		l.cond.Wait()
	}
	return n, err
}

// A frame that comes while a stream writes, which then waits for credit, is answered all the same.
func TestAnswerDuringWrite(t *testing.T) {
	a, b := pipe(t)
	l := &lingering{Conn: b}
	l.cond.L = &l.mu
	serve(t, l, testHandler, Options{})
	c := &raw{t: t, nc: a, fr: http2.NewFramer(nil, a)}
	if err := a.SetDeadline(time.Now().Add(prefaceTimeout - time.Second)); err != nil { // when the timer would send it in any case
		t.Fatal(err)
	}
	send := bytes.Join([][]byte{
		[]byte(http2.ClientPreface), setting(http2.SettingInitialWindowSize, 10), headers(1, 0, request("POST", "/echo")),
		data(1, endStream, strings.Repeat("abcdefghij", 10)),
	}, nil)
	ping := appendFrame(nil, http2.FramePing, 0, 0, make([]byte, 8)...)
	l.until = len(send) + len(ping)
	c.send(send)
	c.until("DATA", func(f http2.Frame) bool { _, ok := f.(*http2.DataFrame); return ok })
	c.send(ping)
	c.until("PING is answered", func(f http2.Frame) bool { p, ok := f.(*http2.PingFrame); return ok && p.IsAck() })
	c.send(setting(http2.SettingInitialWindowSize, 1000))
	c.until("the end", func(f http2.Frame) bool { d, ok := f.(*http2.DataFrame); return ok && d.StreamEnded() })
}

// A client that waits for "100 Continue" is told so when its body is wanted, and not without need.
func TestContinue(t *testing.T) {
	c, _ := newRaw(t, Options{})
	status := func(id uint32) string {
		t.Helper()
		return c.until("HEADERS", func(f http2.Frame) bool {
			h, ok := f.(*http2.MetaHeadersFrame)
			return ok && h.StreamID == id
		}).(*http2.MetaHeadersFrame).PseudoValue("status")
	}
	c.send(headers(1, 0, request("POST", "/echo", "expect", "100-continue")))
	if s := status(1); s != "100" {
		t.Errorf("status %s, want 100", s)
	}
	c.send(data(1, endStream, "x"))
	if s := status(1); s != "200" {
		t.Errorf("status %s, want 200", s)
	}
	c.send(headers(3, 0, request("POST", "/", "expect", "100-continue")))
	if s := status(3); s != "200" {
		t.Errorf("status %s, want 200", s)
	}
}

// The connection's credit is shared, and none is lost with streams that are reset.
func TestConnectionCredit(t *testing.T) {
	c, _ := newRaw(t, Options{})
	body := strings.Repeat("x", 16000)
	for i := range uint32(40) { // of 640,000 bytes none is read by its handler
		id := 2*i + 1
		c.send(headers(id, 0, request("POST", "/mute")), data(id, 0, body), data(id, 0, body[:10]), frame32(http2.FrameRSTStream, id, 8), data(id, 0, body[:100]))
		c.reset(id, http2.ErrCodeStreamClosed)
	}
	for i := range uint32(40) { // nor of these by one that ends early
		id := 2*i + 101
		c.send(headers(id, 0, request("POST", "/")), data(id, 0, body))
		c.reset(id, http2.ErrCodeNo)
		c.send(data(id, endStream, body))
	}
	c.alive()
}

// A past write deadline resets the stream at once.
func TestWriteDeadline(t *testing.T) {
	for _, when := range []time.Duration{-1, 10 * time.Millisecond} {
		t.Run(fmt.Sprint(when), func(t *testing.T) {
			failed := make(chan error, 1)
			a, b := pipe(t)
			serve(t, b, func(w http.ResponseWriter, r *http.Request) {
				rc := http.NewResponseController(w)
				_ = rc.SetWriteDeadline(time.Now().Add(time.Hour))
				_ = rc.SetWriteDeadline(time.Time{})
				_ = rc.SetWriteDeadline(time.Now().Add(when))
				_, err := w.Write(make([]byte, 1<<20)) // more than there is credit for
				failed <- errors.Join(err, rc.Flush())
				<-r.Context().Done()
			}, Options{})
			_ = a.SetDeadline(time.Now().Add(patience))
			c := &raw{t: t, nc: a, fr: http2.NewFramer(nil, a)}
			c.send([]byte(http2.ClientPreface), appendFrame(nil, http2.FrameSettings, 0, 0), headers(1, endStream, block()))
			c.reset(1, http2.ErrCodeInternal)
			if err := <-failed; !errors.Is(err, context.DeadlineExceeded) && !strings.Contains(err.Error(), "timeout") {
				t.Errorf("Write returned %v", err)
			}
			c.alive()
		})
	}
}
