package h2

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/http2"
	"tailscale.com/control/controlbase"
	"tailscale.com/types/key"
)

// call is a request and what its handler is to do, made from a seed.
type call struct {
	method, path string
	header       http.Header
	body         []byte
	length       bool // told
	read         int  // bytes of the body that the handler reads; -1: all
	closeBody    bool
	status       int // 0: none told
	answer       http.Header
	pieces       []int // that it writes, or flushes if 0
	panics       bool
}

func newCall(r *rand.Rand) *call {
	c := &call{
		method: []string{"GET", "POST", "PUT", "HEAD", "DELETE", "PATCH", "OPTIONS"}[r.IntN(7)],
		path:   []string{"/", "/a/b?c=d&e=%20", "/%2f/x", "/machine/map", "/?q"}[r.IntN(5)],
		header: http.Header{}, answer: http.Header{}, length: r.IntN(2) == 0, read: -1, closeBody: r.IntN(8) == 0,
		panics: r.IntN(20) == 0,
	}
	size := func() int {
		return []int{0, 1, 9, 500, 5000, 16384, 16385, 40_000, 65_535, 70_000, 300_000}[r.IntN(11)]
	}
	if r.IntN(2) == 0 {
		c.body = make([]byte, size())
		for i := range c.body {
			c.body[i] = byte(r.Uint32())
		}
	}
	if r.IntN(10) == 0 {
		c.read = r.IntN(len(c.body) + 1)
	}
	for range r.IntN(5) {
		k := []string{"X-One", "X-Two", "Accept", "Cookie", "Content-Type", "User-Agent", "Te", "If-Match"}[r.IntN(8)]
		v := []string{"", "a", "b; c=d", "trailers", strings.Repeat("long ", 300)}[r.IntN(5)]
		if k == "Te" {
			v = "trailers"
		}
		if k != "Te" && k != "User-Agent" || c.header[k] == nil {
			c.header.Add(k, v)
		}
	}
	if len(c.body) > 0 && r.IntN(10) == 0 {
		c.header.Set("Expect", "100-continue")
	}
	if r.IntN(2) == 0 {
		c.status = []int{200, 201, 204, 304, 400, 404, 413, 500, 599}[r.IntN(9)]
	}
	for range r.IntN(5) {
		k := []string{"X-One", "X-Two", "Content-Type", "Content-Encoding", "Etag", "Connection", "Set-Cookie", "bad name"}[r.IntN(8)]
		c.answer.Add(k, []string{"", "a", "text/x", strings.Repeat("long ", 300), "bad\nvalue"}[r.IntN(5)])
	}
	for range r.IntN(6) {
		c.pieces = append(c.pieces, size()*r.IntN(2))
	}
	if r.IntN(6) == 0 {
		sum := 0
		for _, p := range c.pieces {
			sum += p
		}
		c.answer.Set("Content-Length", strconv.Itoa(sum))
	}
	if r.IntN(30) == 0 {
		c.answer.Set("X-Huge", strings.Repeat("h", 20_000)) // needs CONTINUATION
	}
	return c
}

// outcome is what came of a call, as both ends see it.
type outcome struct {
	handler, client string
	length          int64 // as the response told it
	size            int
	failed          bool
}

// calls is the handler of calls, which it finds by their number.
type calls struct {
	list []*call
	mu   sync.Mutex
	seen map[int]string // guarded by mu
}

func (cs *calls) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	i, _ := strconv.Atoi(r.Header.Get("X-Call"))
	c := cs.list[i]
	var saw strings.Builder
	fmt.Fprintln(&saw, r.Method, r.URL, r.RequestURI, r.Host, r.Proto, r.ProtoMajor, r.ContentLength, r.Trailer)
	for _, k := range slices.Sorted(maps.Keys(r.Header)) {
		fmt.Fprintf(&saw, "%s: %q\n", k, r.Header[k])
	}
	var body []byte
	var err error
	if c.read < 0 {
		body, err = io.ReadAll(r.Body)
	} else {
		body, err = io.ReadAll(io.LimitReader(r.Body, int64(c.read)))
	}
	fmt.Fprintf(&saw, "body %x %v\n", sha256.Sum256(body), err)
	if c.closeBody {
		fmt.Fprintln(&saw, r.Body.Close())
	}
	maps.Copy(w.Header(), c.answer)
	if c.status != 0 {
		w.WriteHeader(c.status)
		w.Header().Set("X-Late", "without effect")
		w.WriteHeader(299)
	}
	for i, n := range c.pieces {
		if n == 0 {
			w.(http.Flusher).Flush()
			continue
		}
		k, err := w.Write(bytes.Repeat([]byte{'a' + byte(i)}, n))
		if r.Method != http.MethodHead { // the library lets those fail once the header has gone
			fmt.Fprintln(&saw, k, err)
		}
	}
	cs.mu.Lock()
	cs.seen[i] = saw.String()
	cs.mu.Unlock()
	if c.panics {
		panic(http.ErrAbortHandler)
	}
}

// run makes all calls, several at a time, on one connection that serve serves.
func (cs *calls) run(t *testing.T, client, server net.Conn, serve func(context.Context, net.Conn, http.Handler)) []outcome {
	t.Helper()
	cs.seen = map[int]string{}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { serve(ctx, server, cs) })
	cc, err := (&http2.Transport{AllowHTTP: true, DisableCompression: true}).NewClientConn(client)
	if err != nil {
		t.Fatal(err)
	}
	out := make([]outcome, len(cs.list))
	var calling sync.WaitGroup
	next := make(chan int)
	for range 8 {
		calling.Go(func() {
			for i := range next {
				out[i] = cs.list[i].do(cc, i)
			}
		})
	}
	for i := range cs.list {
		next <- i
	}
	close(next)
	calling.Wait()
	cc.Close()
	client.Close()
	cancel()
	wg.Wait()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) { // the library does not wait for handlers
		cs.mu.Lock()
		n := len(cs.seen)
		cs.mu.Unlock()
		if n == len(cs.list) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("only %d of %d handlers have ended", n, len(cs.list))
		}
	}
	for i := range out {
		out[i].handler = cs.seen[i]
	}
	return out
}

func (c *call) do(cc *http2.ClientConn, i int) (o outcome) {
	var body io.Reader
	if c.body != nil {
		body = bytes.NewReader(c.body)
		if !c.length {
			body = io.MultiReader(body)
		}
	}
	r, err := http.NewRequest(c.method, "http://skein.example"+c.path, body)
	if err != nil {
		panic(err)
	}
	maps.Copy(r.Header, c.header)
	r.Header.Set("X-Call", strconv.Itoa(i))
	resp, err := cc.RoundTrip(r)
	if err != nil {
		return outcome{client: "no response", failed: true}
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	o = outcome{failed: err != nil, size: len(b), length: resp.ContentLength}
	var s strings.Builder
	fmt.Fprintln(&s, resp.Status, resp.Proto)
	for _, k := range slices.Sorted(maps.Keys(resp.Header)) {
		if k == "Date" {
			continue
		}
		if k != "Content-Length" {
			fmt.Fprintf(&s, "%s: %q\n", k, resp.Header[k])
		}
	}
	if err == nil {
		fmt.Fprintf(&s, "body %x", sha256.Sum256(b))
	}
	o.client = s.String()
	return o
}

// What handlers and clients see of random requests and responses is what they see with the library's server.
func TestLikeTheLibrary(t *testing.T) {
	current := goleak.IgnoreCurrent()
	defer goleak.VerifyNone(t, current)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	cs := &calls{}
	for range 400 {
		cs.list = append(cs.list, newCall(r))
	}
	got := map[string][]outcome{}
	for name, serve := range servers {
		a, b := pipe(t)
		got[name] = cs.run(t, a, b, serve)
	}
	a, b := noise(t)
	got["h2 in Noise"] = cs.run(t, a, b, servers["h2"])
	compare(t, cs, got)
}

func compare(t *testing.T, cs *calls, got map[string][]outcome) {
	for i, c := range cs.list {
		want := got["library"][i]
		for _, name := range []string{"h2", "h2 in Noise"} {
			o := got[name][i]
			early := c.read >= 0 || c.closeBody // then it is a matter of time what the client had sent, and saw
			if o.handler != want.handler && !(early && o.failed != want.failed) && !c.panics {
				t.Errorf("%s: %s %s: the handler saw\n%swant\n%s", name, c.method, c.path, o.handler, want.handler)
			}
			if c.panics { // how much of the response was seen before its end is a matter of time
				if o.failed != want.failed && c.method != "HEAD" {
					t.Errorf("%s: %s %s with a panic: failed %v, want %v", name, c.method, c.path, o.failed, want.failed)
				}
				continue
			}
			if early && (o.failed || want.failed) {
				continue
			}
			if o.failed != want.failed || o.client != want.client {
				t.Errorf("%s: %s %s %+v: the client saw (failed %v)\n%.600s\nwant (failed %v)\n%.600s", name, c.method, c.path, c.pieces, o.failed, o.client, want.failed, want.client)
			}
			if o.length >= 0 && c.method != "HEAD" && bodyAllowed(max(c.status, 200)) && o.length != int64(o.size) {
				t.Errorf("%s: a length of %d was told, %d bytes came", name, o.length, o.size)
			}
			if want.length >= 0 && o.length != want.length { // we tell the length of larger bodies too
				t.Errorf("%s: %s %v: length %d, want %d", name, c.method, c.pieces, o.length, want.length)
			}
		}
		if t.Failed() {
			return
		}
	}
}

// noise is the two ends of a connection as Tailscale's clients make it.
func noise(t testing.TB) (client, server net.Conn) {
	t.Helper()
	a, b := pipe(t)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	serverKey := key.NewMachine()
	type result struct {
		nc  *controlbase.Conn
		err error
	}
	done := make(chan result, 1)
	go func() {
		nc, err := controlbase.Server(ctx, b, serverKey, nil)
		done <- result{nc, err}
	}()
	init, cont, err := controlbase.ClientDeferred(key.NewMachine(), serverKey.Public(), 142)
	if err == nil {
		_, err = a.Write(init)
	}
	if err != nil {
		t.Fatal(err)
	}
	nc, err := cont(ctx, a)
	s := <-done
	if err = errors.Join(err, s.err); err != nil {
		t.Fatal(err)
	}
	return nc, s.nc
}
