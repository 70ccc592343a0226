package h2

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/http2"
)

// patience bounds every wait for something that must happen.
const patience = 20 * time.Second

// pipe is the two ends of a loopback connection, with its buffers.
func pipe(t testing.TB) (client, server net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err = net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	server, err = l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

// serve serves h on nc until the test ends or stop is called, which returns what Serve has returned.
func serve(t testing.TB, nc net.Conn, h http.HandlerFunc, o Options) (stop func() error) {
	t.Helper()
	current := goleak.IgnoreCurrent()
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- Serve(ctx, nc, h, o) }()
	done := false
	var err error
	stop = func() error {
		cancel()
		if !done {
			select {
			case err = <-served:
			case <-time.After(patience):
				t.Error("Serve has not returned")
			}
			done = true
		}
		return err
	}
	t.Cleanup(func() {
		_ = stop()
		if !t.Failed() {
			goleak.VerifyNone(t, current)
		}
	})
	return stop
}

// client is a connection of the library's client to h.
func client(t testing.TB, h http.HandlerFunc, o Options) *http2.ClientConn {
	t.Helper()
	cc, _ := clientAndStop(t, h, o)
	return cc
}

func clientAndStop(t testing.TB, h http.HandlerFunc, o Options) (*http2.ClientConn, func() error) {
	t.Helper()
	a, b := pipe(t)
	stop := serve(t, b, h, o)
	cc, err := (&http2.Transport{AllowHTTP: true, DisableCompression: true}).NewClientConn(a)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cc.Close() })
	return cc, stop
}

func do(t testing.TB, cc *http2.ClientConn, method, path string, body io.Reader) (*http.Response, string) {
	t.Helper()
	r, err := http.NewRequest(method, "http://skein"+path, body)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := cc.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(b)
}

func TestRequests(t *testing.T) {
	cc := client(t, func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Errorf("reading the body: %v", err)
		}
		_, _ = fmt.Fprintf(w, "%s %s %s %d", r.Method, r.URL, r.Host, len(b))
	}, Options{})
	for _, tt := range []struct {
		method string
		size   int
	}{{"GET", 0}, {"GET", 5}, {"POST", 1 << 20}, {"PUT", streamWindow}, {"HEAD", 0}} {
		resp, body := do(t, cc, tt.method, "/x?y=1", strings.NewReader(strings.Repeat("a", tt.size)))
		want := fmt.Sprintf("%s /x?y=1 skein %d", tt.method, tt.size)
		if resp.StatusCode != 200 || resp.ContentLength != int64(len(want)) || resp.Header.Get("Date") == "" ||
			!strings.HasPrefix(resp.Header.Get("Content-Type"), "text/plain") || body != want && tt.method != "HEAD" {
			t.Errorf("%s with %d bytes: %v %q", tt.method, tt.size, resp, body)
		}
	}
}

// An informational response comes before the response.
func TestInformational(t *testing.T) {
	cc := client(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "</x>")
		w.WriteHeader(http.StatusEarlyHints)
		_, _ = io.WriteString(w, "body")
	}, Options{})
	var got []string
	trace := &httptrace.ClientTrace{
		Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
			got = append(got, fmt.Sprint(code, h))
			return nil
		},
	}
	r, err := http.NewRequestWithContext(httptrace.WithClientTrace(t.Context(), trace), "GET", "http://skein/", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := cc.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); string(b) != "body" || err != nil {
		t.Errorf("got %q, %v", b, err)
	}
	if !slices.Equal(got, []string{"103 map[Link:[</x>]]"}) {
		t.Errorf("informational responses %v", got)
	}
}

// A panic is told with its request and stack, unless the handler has only given up.
func TestPanics(t *testing.T) {
	told := make(chan string, 10)
	cc := client(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/quiet" {
			panic(http.ErrAbortHandler)
		}
		panic("oops")
	}, Options{OnPanic: func(r *http.Request, v any, stack []byte) {
		told <- fmt.Sprint(r.URL.Path, v, strings.Contains(string(stack), "TestPanics"))
	}})
	for _, path := range []string{"/quiet", "/loud"} {
		r, _ := http.NewRequest("GET", "http://skein"+path, nil)
		if resp, err := cc.RoundTrip(r); err == nil {
			resp.Body.Close()
			t.Errorf("%s was answered", path)
		}
	}
	if got := <-told; got != "/loudoopstrue" || len(told) > 0 {
		t.Errorf("told %q and %d more", got, len(told))
	}
}

// What is used after the handler's return does no harm.
func TestAfterReturn(t *testing.T) {
	type kept struct {
		w http.ResponseWriter
		r *http.Request
	}
	keep := make(chan kept, 1)
	cc := client(t, func(w http.ResponseWriter, r *http.Request) { keep <- kept{w, r} }, Options{})
	do(t, cc, "POST", "/", strings.NewReader("abc"))
	k := <-keep
	<-k.r.Context().Done()
	for deadline := time.Now().Add(patience); ; { // the context ends a moment before the handler's stream
		_, err := k.w.Write([]byte("x"))
		if err != nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("Write works on")
		}
	}
	rc := http.NewResponseController(k.w)
	if rc.Flush() == nil || rc.SetWriteDeadline(time.Now()) == nil {
		t.Error("Flush or SetWriteDeadline works on")
	}
	if _, err := k.r.Body.Read(make([]byte, 10)); err == nil {
		t.Error("the body can still be read")
	}
	k.w.WriteHeader(500)
	do(t, cc, "GET", "/", nil)
}

// A response that is shorter than its Content-Length is not passed off as whole.
func TestShortResponse(t *testing.T) {
	cc := client(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "10")
		_, _ = io.WriteString(w, "12345")
		_ = http.NewResponseController(w).Flush()
	}, Options{})
	r, _ := http.NewRequest("GET", "http://skein/", nil)
	resp, err := cc.RoundTrip(r)
	if err == nil {
		_, err = io.ReadAll(resp.Body)
		resp.Body.Close()
	}
	var se http2.StreamError
	if !errors.As(err, &se) || se.Code != http2.ErrCodeInternal {
		t.Errorf("the client saw %v", err)
	}
}

// Continue goes on with the response when the handler has returned, as often as it is asked to; a panic there costs the
// stream alone.
func TestContinueResponse(t *testing.T) {
	told := make(chan any, 1)
	cc := client(t, func(w http.ResponseWriter, r *http.Request) {
		defer func() { _, _ = io.WriteString(w, "one ") }()
		ctx := r.Context()
		Continue(w, func() {
			_, _ = io.WriteString(w, "two ")
			if err := errors.Join(http.NewResponseController(w).Flush(), ctx.Err()); err != nil {
				t.Error(err)
			}
			Continue(w, func() { _, _ = io.WriteString(w, "three") })
			if r.URL.Path == "/panic" {
				panic("oops")
			}
		})
	}, Options{OnPanic: func(r *http.Request, v any, _ []byte) {
		if r != nil {
			t.Error("told the request of a continuation")
		}
		told <- v
	}})
	if _, body := do(t, cc, "GET", "/", nil); body != "one two three" {
		t.Errorf("got %q", body)
	}
	r, _ := http.NewRequest("GET", "http://skein/panic", nil)
	resp, err := cc.RoundTrip(r)
	if err == nil {
		_, err = io.ReadAll(resp.Body)
		resp.Body.Close()
	}
	if err == nil || <-told != "oops" {
		t.Errorf("a panic was not told, or the response has ended in order: %v", err)
	}
	if Continue(httptest.NewRecorder(), func() {}) {
		t.Error("a recorder can continue")
	}
}

// broken is a connection that panics when it has been read for a while.
type broken struct {
	net.Conn
	reads int
}

func (b *broken) Read(p []byte) (int, error) {
	if b.reads--; b.reads < 0 {
		panic("oops")
	}
	return b.Conn.Read(p)
}

// A panic in the read loop goes up, but leaves no handler behind.
func TestPanicOfConnection(t *testing.T) {
	a, b := pipe(t)
	ended := make(chan error, 1)
	var up any
	go func() {
		defer func() {
			up = recover()
			close(ended)
		}()
		_ = Serve(t.Context(), &broken{b, 4}, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			<-r.Context().Done()
			ended <- r.Context().Err()
		}), Options{})
	}()
	_, _ = a.Write(slices.Concat([]byte(http2.ClientPreface), appendFrame(nil, http2.FrameSettings, 0, 0), headers(1, endStream, block())))
	for range 2 { // the handler, and Serve
		select {
		case <-ended:
		case <-time.After(patience):
			t.Fatal("something waits on")
		}
	}
	if up != "oops" {
		t.Errorf("recovered %v", up)
	}
}
