package h2

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
)

// timed is a client, by net.Pipe, of a server in a synctest bubble. It reads everything until it is told to freeze.
type timed struct {
	t      *testing.T
	nc     net.Conn
	began  time.Time
	frames chan http2.Frame // pings, GOAWAYs, resets; closed when the connection ends
	freeze chan struct{}
	thaw   chan struct{}
	err    chan error // what Serve returned
	cancel context.CancelFunc
}

func newTimed(t *testing.T, h http.HandlerFunc, o Options, hello ...[]byte) *timed {
	a, b := net.Pipe()
	c := &timed{t: t, nc: a, began: time.Now(), frames: make(chan http2.Frame, 100), freeze: make(chan struct{}), thaw: make(chan struct{}), err: make(chan error, 1)}
	ctx, cancel := context.WithCancel(t.Context())
	c.cancel = cancel
	go func() { c.err <- Serve(ctx, b, h, o) }()
	go c.read()
	for _, f := range hello {
		c.send(f)
	}
	return c
}

func (c *timed) read() {
	defer close(c.frames)
	fr := http2.NewFramer(nil, c.nc)
	for {
		select {
		case <-c.freeze:
			<-c.thaw
			return
		default:
		}
		f, err := fr.ReadFrame()
		if err != nil {
			return
		}
		switch f := f.(type) {
		case *http2.PingFrame:
			copied := *f
			c.frames <- &copied
		case *http2.GoAwayFrame, *http2.RSTStreamFrame:
			c.frames <- f
		}
	}
}

func (c *timed) send(b []byte) {
	c.t.Helper()
	if _, err := c.nc.Write(b); err != nil {
		c.t.Fatal(err)
	}
}

// stop makes the client read no more.
func (c *timed) stop() {
	c.t.Helper()
	synctest.Wait()
	close(c.freeze)
	c.send(appendFrame(nil, http2.FramePing, 0, 0, make([]byte, 8)...)) // the answer is the last that read sees
	synctest.Wait()
}

// at wants the next frame to come after exactly this time since the beginning, and returns it; nil is the end.
func (c *timed) at(want time.Duration) http2.Frame {
	c.t.Helper()
	f := <-c.frames
	if got := time.Since(c.began); got != want {
		c.t.Errorf("%v after %v, want it after %v", f, got, want)
	}
	return f
}

var hello = append([]byte(http2.ClientPreface), appendFrame(nil, http2.FrameSettings, 0, 0)...)

func TestPrefaceTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTimed(t, nil, Options{}, hello[:30])
		c.at(prefaceTimeout)
		if err := <-c.err; !errors.Is(err, errPreface) {
			t.Errorf("Serve returned %v", err)
		}
	})
}

func TestIdleTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTimed(t, func(http.ResponseWriter, *http.Request) { time.Sleep(7 * time.Second) }, Options{IdleTimeout: 5 * time.Second}, hello)
		time.Sleep(3 * time.Second)
		c.send(headers(1, endStream, block()))
		if g, ok := c.at(15 * time.Second).(*http2.GoAwayFrame); !ok || g.ErrCode != http2.ErrCodeNo {
			t.Errorf("got %v, want GOAWAY", g)
		}
		if c.at(15*time.Second) != nil {
			t.Error("the connection goes on")
		}
		if err := <-c.err; err != nil {
			t.Errorf("Serve returned %v", err)
		}
	})
}

func TestPing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTimed(t, nil, Options{ReadIdle: 30 * time.Second, PingTimeout: 10 * time.Second}, hello)
		p, ok := c.at(30 * time.Second).(*http2.PingFrame)
		if !ok {
			t.Fatal("no PING")
		}
		time.Sleep(5 * time.Second)
		c.send(appendFrame(nil, http2.FramePing, http2.FlagPingAck, 0, p.Data[:]...))
		_ = c.at(65 * time.Second)
		time.Sleep(5 * time.Second)
		c.send(appendFrame(nil, 0x99, 0, 0)) // any frame is a sign of life
		_ = c.at(100 * time.Second)
		if c.at(110*time.Second) != nil {
			t.Error("the connection goes on without an answer")
		}
		if err := <-c.err; !errors.Is(err, errNoAnswer) {
			t.Errorf("Serve returned %v", err)
		}
	})
}

// Streams have a time of grace when the server ends.
func TestGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTimed(t, func(_ http.ResponseWriter, r *http.Request) {
			<-r.Context().Done()
			time.Sleep(time.Minute)
		}, Options{Grace: 2 * time.Second}, hello, headers(1, endStream, block()))
		time.Sleep(time.Second)
		c.cancel()
		if g, ok := c.at(time.Second).(*http2.GoAwayFrame); !ok || g.LastStreamID != 1 {
			t.Errorf("got %v, want GOAWAY", g)
		}
		if c.at(3*time.Second) != nil {
			t.Error("the connection goes on")
		}
		if err := <-c.err; !errors.Is(err, errGrace) {
			t.Errorf("Serve returned %v", err)
		}
		if d := time.Since(c.began); d != 61*time.Second {
			t.Errorf("Serve returned after %v, not with its last handler", d)
		}
	})
}

// A client that takes no byte costs its connection, and all its handlers end, when WriteTimeout has passed.
func TestFrozenClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var failed time.Duration
		began := time.Now()
		c := newTimed(t, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/other" {
				<-r.Context().Done()
				return
			}
			time.Sleep(time.Second)
			_, _ = w.Write(make([]byte, 30000))
			if err := http.NewResponseController(w).Flush(); err == nil {
				t.Error("Flush succeeded")
			}
			failed = time.Since(began)
		}, Options{WriteTimeout: 8 * time.Second}, hello, headers(1, endStream, block()), headers(3, endStream, request("GET", "/other")))
		c.stop()
		err := <-c.err
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Serve returned %v", err)
		}
		if failed < 8*time.Second || failed > 11*time.Second {
			t.Errorf("the write failed after %v", failed)
		}
		close(c.thaw)
	})
}

// A stream that gets no credit is reset when WriteTimeout has passed; others go on.
func TestStalledStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var err error
		c := newTimed(t, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/other" {
				<-r.Context().Done()
				return
			}
			_, err = w.Write(make([]byte, 100_000))
		}, Options{WriteTimeout: 8 * time.Second}, hello, headers(1, endStream, block()), headers(3, endStream, request("GET", "/other")))
		time.Sleep(3 * time.Second)
		c.send(frame32(http2.FrameWindowUpdate, 1, 5)) // too little to help
		if f, ok := c.at(8 * time.Second).(*http2.RSTStreamFrame); !ok || f.StreamID != 1 {
			t.Errorf("got %v, want RST_STREAM", f)
		}
		synctest.Wait()
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Write returned %v", err)
		}
		time.Sleep(time.Hour)
		c.send(frame32(http2.FrameRSTStream, 3, 8))
		c.cancel()
		if _, ok := c.at(time.Hour + 8*time.Second).(*http2.GoAwayFrame); !ok {
			t.Error("the connection has not gone on")
		}
		if err := <-c.err; err != nil {
			t.Errorf("Serve returned %v", err)
		}
	})
}

// A past write deadline frees a handler whose write is stuck in the connection, at the price of that, and one that only
// waits behind such a write, at no price.
func TestDeadlineWhileStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var waits error
		waited := make(chan struct{})
		stuck := make(chan error, 1)
		now := func() time.Duration { return time.Since(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)) }
		c := newTimed(t, func(w http.ResponseWriter, r *http.Request) {
			rc := http.NewResponseController(w)
			if r.URL.Path == "/behind" {
				time.Sleep(2 * time.Second)
				time.AfterFunc(time.Second, func() { _ = rc.SetWriteDeadline(time.Now()) })
				_, _ = w.Write([]byte("x"))
				waits = rc.Flush()
				if now() != 3*time.Second {
					t.Errorf("the write behind failed after %v", now())
				}
				close(waited)
				return
			}
			time.Sleep(time.Second)
			_ = rc.SetWriteDeadline(time.Now().Add(5 * time.Second))
			_, err := w.Write(make([]byte, 30000))
			stuck <- err
			if now() != 6*time.Second+stuckAfter {
				t.Errorf("the stuck write failed after %v", now())
			}
		}, Options{WriteTimeout: time.Hour}, hello, headers(1, endStream, block()), headers(3, endStream, request("GET", "/behind")))
		c.stop()
		<-waited
		if !errors.Is(waits, os.ErrDeadlineExceeded) {
			t.Errorf("the write behind failed with %v", waits)
		}
		if err := <-stuck; !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the stuck write failed with %v", err)
		}
		if err := <-c.err; !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Serve returned %v", err)
		}
		close(c.thaw)
	})
}

// A client that asks and asks but does not read is cut when the answers to its frames pile up.
func TestAnswersPileUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		write := make(chan struct{})
		c := newTimed(t, func(w http.ResponseWriter, r *http.Request) {
			<-write
			_, _ = w.Write(make([]byte, 30000))
		}, Options{WriteTimeout: time.Hour}, hello, headers(1, endStream, block()))
		c.stop()
		close(write)
		synctest.Wait()
		n := 0
		for ; n < 2*maxQueued/17; n++ {
			if _, err := c.nc.Write(appendFrame(nil, http2.FramePing, 0, 0, make([]byte, 8)...)); err != nil {
				break
			}
		}
		if err := <-c.err; !errors.Is(err, errQueue) {
			t.Errorf("Serve returned %v after %d pings", err, n)
		}
		close(c.thaw)
	})
}

// What was not read of a body when its stream is reset is not passed off as its end.
func TestBodyOfResetStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		type result struct {
			body string
			err  error
		}
		got := make(chan result, 2)
		c := newTimed(t, func(_ http.ResponseWriter, r *http.Request) {
			time.Sleep(time.Second)
			b, err := io.ReadAll(r.Body)
			got <- result{string(b), err}
		}, Options{}, hello, headers(1, 0, request("POST", "/")), data(1, endStream, "all"), headers(3, 0, request("POST", "/")), data(3, endStream, "all"))
		c.send(frame32(http2.FrameRSTStream, 3, 8))
		for range 2 {
			if r := <-got; r.body != "all" && r.err == nil || r.body == "all" && r.err != nil {
				t.Errorf("the handler read %q, %v", r.body, r.err)
			}
		}
		c.cancel()
		<-c.err
	})
}

// The connection's end ends whatever a handler waits for.
func TestConnectionEnds(t *testing.T) {
	for name, wait := range map[string]func(w http.ResponseWriter, r *http.Request) error{
		"body":    func(_ http.ResponseWriter, r *http.Request) error { _, err := io.ReadAll(r.Body); return err },
		"credit":  func(w http.ResponseWriter, _ *http.Request) error { _, err := w.Write(make([]byte, 1<<20)); return err },
		"context": func(_ http.ResponseWriter, r *http.Request) error { <-r.Context().Done(); return r.Context().Err() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				got := make(chan error, 1)
				c := newTimed(t, func(w http.ResponseWriter, r *http.Request) { got <- wait(w, r) }, Options{}, hello, headers(1, 0, request("POST", "/")))
				time.Sleep(time.Second)
				c.nc.Close()
				if err := <-got; err == nil {
					t.Error("the handler has seen no error")
				}
				if err := <-c.err; err == nil {
					t.Error("Serve has returned nil though a request was open")
				}
			})
		})
	}
}
