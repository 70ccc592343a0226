package sim

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// serveH2 serves HTTP/2 with x/net's server, which is what Skein uses, and returns a connection to it whose loop runs.
func serveH2(t *testing.T, h http.HandlerFunc) (c *h2conn, ended chan error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		nc, err := l.Accept()
		if err == nil {
			new(http2.Server).ServeConn(nc, &http2.ServeConnOpts{Handler: h})
		}
	}()
	nc, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if c, err = newH2(nc, "skein.example"); err != nil {
		t.Fatal(err)
	}
	ended = make(chan error, 1)
	go func() { ended <- c.loop() }()
	t.Cleanup(func() { nc.Close() })
	return c, ended
}

// whole is a sink for whole messages.
type whole func([]byte) error

func (f whole) take(b []byte, left int) (int, error) {
	if left > 0 {
		return 0, nil
	}
	return len(b), f(b)
}

type answer struct {
	status int
	body   string
	err    error
}

// ask posts and returns what comes back.
func ask(t *testing.T, c *h2conn, path, body string) answer {
	t.Helper()
	ch := make(chan answer, 1)
	err := c.post(path, [][2]string{{"ts-lb", "x"}}, []byte(body), &exchange{done: func(status int, body []byte, err error) error {
		ch <- answer{status, string(body), err}
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	select {
	case a := <-ch:
		return a
	case <-time.After(30 * time.Second):
		t.Fatal("no answer")
		return answer{}
	}
}

func TestH2Requests(t *testing.T) {
	c, _ := serveH2(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		switch r.URL.Path {
		case "/echo":
			w.Header().Set("X-Long", strings.Repeat("h", 40000)) // needs a continuation
			fmt.Fprintf(w, "%s %s %s %s %d %s", r.Method, r.Host, r.Header.Get("Ts-Lb"), r.Header.Get("Content-Type"), r.ContentLength, b)
		case "/large":
			_, _ = w.Write(bytes.Repeat([]byte("x"), 1<<20))
		case "/abort":
			panic(http.ErrAbortHandler)
		default:
			http.Error(w, "no", http.StatusTeapot)
		}
	})
	if a := ask(t, c, "/echo", `{"a":1}`); a.err != nil || a.status != 200 || a.body != `POST skein.example x application/json 7 {"a":1}` {
		t.Errorf("%+v", a)
	}
	if a := ask(t, c, "/nothing", ""); a.status != http.StatusTeapot || a.body != "no\n" {
		t.Errorf("%+v", a)
	}
	if a := ask(t, c, "/large", ""); a.status != 200 || len(a.body) != maxAnswer {
		t.Errorf("of a large answer %d bytes are kept, status %d", len(a.body), a.status)
	}
	if a := ask(t, c, "/abort", ""); a.err == nil {
		t.Errorf("a request that was broken off has no error: %+v", a)
	}
	for range 300 { // more than the first window of the connection holds
		if a := ask(t, c, "/echo", strings.Repeat("b", 1000)); a.status != 200 {
			t.Fatalf("%+v", a)
		}
	}
	if err := c.post("/echo", nil, make([]byte, frameLimit+1), &exchange{}); err == nil {
		t.Error("a body that does not fit a frame was taken")
	}
}

// TestH2Stream sends more than the windows hold, in messages that are cut anywhere.
func TestH2Stream(t *testing.T) {
	const total = 3 * streamWindow
	c, ended := serveH2(t, func(w http.ResponseWriter, r *http.Request) {
		for i, sent := 0, 0; sent < total; i++ {
			m := bytes.Repeat([]byte{byte(i)}, 1+i*37%300000)
			b := append(binary.LittleEndian.AppendUint32(nil, uint32(len(m))), m...)
			cut := i % len(b)
			_, _ = w.Write(b[:cut])
			if i%5 == 0 {
				_ = http.NewResponseController(w).Flush()
			}
			if _, err := w.Write(b[cut:]); err != nil {
				return
			}
			sent += len(b)
		}
	})
	var n, bytesRead int
	done := make(chan answer, 1)
	stop := errors.New("stop")
	err := c.post("/", nil, nil, &exchange{
		sink: whole(func(m []byte) error {
			if len(m) != 1+n*37%300000 || m[0] != byte(n) || m[len(m)-1] != byte(n) {
				return fmt.Errorf("message %d has %d bytes of %d", n, len(m), m[0])
			}
			n, bytesRead = n+1, bytesRead+len(m)+4
			return nil
		}),
		done: func(status int, body []byte, err error) error {
			done <- answer{status, string(body), err}
			return stop
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	select {
	case a := <-done:
		if a.err != nil || a.status != 200 || bytesRead < total {
			t.Fatalf("after %d messages and %d bytes: %+v", n, bytesRead, a)
		}
	case <-time.After(60 * time.Second):
		t.Fatal("the stream hangs")
	}
	if err := <-ended; !errors.Is(err, stop) {
		t.Errorf("the connection ended with %v", err)
	}
	if err := c.post("/", nil, nil, &exchange{}); !errors.Is(err, errEnded) {
		t.Errorf("a request on a connection that has ended: %v", err)
	}
}

// TestH2Ends checks that what is pending fails when the connection ends.
func TestH2Ends(t *testing.T) {
	c, ended := serveH2(t, func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	failed := make(chan error, 1)
	if err := c.post("/", nil, nil, &exchange{done: func(_ int, _ []byte, err error) error { failed <- err; return nil }}); err != nil {
		t.Fatal(err)
	}
	c.close()
	if err := <-failed; err == nil {
		t.Error("what was pending has no error")
	}
	<-ended
}

// garbage reads from a fixed text and takes everything.
type garbage struct{ *bytes.Reader }

func (garbage) Write(b []byte) (int, error) { return len(b), nil }
func (garbage) Close() error                { return nil }

// FuzzH2 feeds a connection with anything: it must end, and not take more memory than what it was sent is worth.
func FuzzH2(f *testing.F) {
	frames := appendFrame(nil, http2.FrameSettings, 0, 0, nil)
	frames = appendFrame(frames, http2.FrameHeaders, http2.FlagHeadersEndHeaders, 1, []byte{0x88})
	f.Add(frames)
	f.Add(appendFrame(bytes.Clone(frames), http2.FrameData, 0, 1, []byte{2, 0, 0, 0, 'a', 'b', 255, 255, 255, 1}))
	f.Add(appendFrame(bytes.Clone(frames), http2.FrameData, http2.FlagDataPadded, 1, []byte{200}))
	f.Add(appendFrame(bytes.Clone(frames), http2.FrameHeaders, http2.FlagHeadersPadded|http2.FlagHeadersPriority, 1, []byte{3, 1}))
	f.Add([]byte(earlyPayload + "\x00\x00\x00\x02{}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := newH2(garbage{bytes.NewReader(b)}, "x")
		if err != nil {
			t.Fatal(err)
		}
		done := 0
		ex := &exchange{
			sink: whole(func(m []byte) error {
				if len(m) > len(b) {
					t.Fatalf("a message of %d bytes out of %d", len(m), len(b))
				}
				return nil
			}),
			done: func(int, []byte, error) error { done++; return nil },
		}
		if err := c.post("/", nil, nil, ex); err != nil {
			t.Fatal(err)
		}
		if c.loop() == nil || done != 1 {
			t.Fatalf("the connection did not end, or done was called %d times", done)
		}
	})
}
