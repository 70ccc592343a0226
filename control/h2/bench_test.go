package h2

import (
	"context"
	"net"
	"net/http"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// servers are this package and the library that it stands in for.
var servers = map[string]func(ctx context.Context, nc net.Conn, h http.Handler){
	"h2": func(ctx context.Context, nc net.Conn, h http.Handler) {
		_ = Serve(ctx, nc, h, Options{IdleTimeout: time.Hour, ReadIdle: time.Hour, PingTimeout: time.Minute, WriteTimeout: time.Minute})
	},
	"library": func(ctx context.Context, nc net.Conn, h http.Handler) {
		s := &http2.Server{IdleTimeout: time.Hour, ReadIdleTimeout: time.Hour, PingTimeout: time.Minute, WriteByteTimeout: time.Minute}
		s.ServeConn(nc, &http2.ServeConnOpts{Context: ctx, Handler: h, BaseConfig: &http.Server{}})
	},
}

// raceEnabled says that the race detector makes everything larger.
var raceEnabled bool

// crowd is a number of connections with one stream each, whose handlers write a message whenever they are told to.
type crowd struct {
	conns   sync.WaitGroup
	mu      sync.Mutex
	next    chan struct{} // guarded by mu: closed to have all write
	wrote   atomic.Int64
	ready   atomic.Int64
	clients []net.Conn
}

func (cr *crowd) wait() chan struct{} {
	cr.mu.Lock()
	defer cr.mu.Unlock()
	return cr.next
}

func (cr *crowd) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	msg := make([]byte, 200)
	next := cr.wait()
	rc := http.NewResponseController(w)
	_ = rc.Flush()
	cr.ready.Add(1)
	for {
		select {
		case <-next:
		case <-r.Context().Done():
			return
		}
		next = cr.wait()
		_, _ = w.Write(msg[:4])
		_, _ = w.Write(msg[4:])
		_ = rc.Flush()
		cr.wrote.Add(1)
	}
}

func newCrowd(b testing.TB, n int, serve func(context.Context, net.Conn, http.Handler)) *crowd {
	cr := &crowd{next: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		cancel()
		l.Close()
		for _, c := range cr.clients {
			c.Close()
		}
		cr.conns.Wait()
	})
	hello := []byte(http2.ClientPreface)
	hello = append(hello, setting(http2.SettingInitialWindowSize, maxWindow)...)
	hello = append(hello, frame32(http2.FrameWindowUpdate, 0, 1<<30)...)
	hello = append(hello, headers(1, 0, request("POST", "/machine/map", "content-type", "application/json", "user-agent", "Go-http-client/2.0", "accept-encoding", "gzip"))...)
	hello = append(hello, data(1, endStream, string(make([]byte, 500)))...)
	hello = append(hello, appendFrame(nil, http2.FrameSettings, http2.FlagSettingsAck, 0)...)
	for range n {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			b.Fatal(err)
		}
		cr.clients = append(cr.clients, c)
		s, err := l.Accept()
		if err != nil {
			b.Fatal(err)
		}
		cr.conns.Go(func() { serve(ctx, s, cr) })
		if _, err := c.Write(hello); err != nil {
			b.Fatal(err)
		}
	}
	for cr.ready.Load() < int64(n) {
		time.Sleep(time.Millisecond)
	}
	return cr
}

func (cr *crowd) all() {
	cr.mu.Lock()
	was := cr.next
	cr.next = make(chan struct{})
	cr.wrote.Store(0)
	cr.mu.Unlock()
	close(was)
	for cr.wrote.Load() < int64(len(cr.clients)) {
		time.Sleep(100 * time.Microsecond)
	}
}

func usage() (cpu time.Duration) {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// idleCost is what an idle connection with one stream holds, the sockets of both of its ends included.
func idleCost(b testing.TB, n int, serve func(context.Context, net.Conn, http.Handler)) (heap, stacks, goroutines float64) {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&before)
	count := runtime.NumGoroutine()
	newCrowd(b, n, serve)
	for range 5 { // stacks shrink by half at a time
		runtime.GC()
	}
	runtime.ReadMemStats(&after)
	per := func(x float64) float64 { return x / float64(n) }
	return per(float64(after.HeapAlloc) - float64(before.HeapAlloc)), per(float64(after.StackInuse) - float64(before.StackInuse)),
		per(float64(runtime.NumGoroutine() - count))
}

func BenchmarkIdle(b *testing.B) {
	for name, serve := range servers {
		b.Run(name, func(b *testing.B) {
			heap, stacks, goroutines := idleCost(b, 2000, serve)
			b.ReportMetric(heap, "heap-B")
			b.ReportMetric(stacks, "stack-B")
			b.ReportMetric(goroutines, "goroutines")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// An idle connection stays small.
func TestIdleCost(t *testing.T) {
	heap, stacks, goroutines := idleCost(t, 300, servers["h2"])
	t.Logf("%.0f bytes of heap, %.0f of stacks, %.2f goroutines", heap, stacks, goroutines)
	if heap > 6<<10 && !raceEnabled || goroutines > 2.01 {
		t.Errorf("an idle connection holds %.0f bytes of heap and %.2f goroutines", heap, goroutines)
	}
}

// BenchmarkTell is one message of 200 bytes to each of 1,000 streams on as many connections.
func BenchmarkTell(b *testing.B) {
	for name, serve := range servers {
		b.Run(name, func(b *testing.B) {
			const n = 1000
			cr := newCrowd(b, n, serve)
			cr.all()
			runtime.GC()
			b.ReportAllocs()
			began := usage()
			for b.Loop() {
				cr.all()
			}
			b.ReportMetric(float64((usage()-began).Microseconds())/1000/float64(b.N), "cpu-ms/op")
			b.ReportMetric(0, "ns/op")
		})
	}
}
