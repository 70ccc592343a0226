package control

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/netip"
	"path"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"tailscale.com/control/tsp"
	"tailscale.com/tailcfg"

	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// echoing opens a map session with Tailscale's client that answers pings while answer holds; other messages can be
// waited for on the stream.
func (c *client) echoing(answer *atomic.Bool) *stream {
	c.ts.t.Helper()
	ms, err := c.tsp.Map(c.ts.ctx, tsp.MapOpts{NodeKey: c.node, Stream: true, Hostinfo: c.hostinfo()})
	c.ts.must(err)
	return c.read(func() (*message, error) {
		for {
			m := &message{}
			if err := ms.NextInto(&m.MapResponse); err != nil || m.PingRequest == nil {
				return m, err
			}
			if answer.Load() {
				c.tsp.AnswerC2NPing(c.ts.ctx, m.PingRequest, ms.NoiseRoundTrip)
			}
		}
	}, func() { _ = ms.Close() })
}

func TestC2N(t *testing.T) {
	ts := newServer(t, nil)
	a := ts.joined("alpha")
	ctx, cancel := context.WithTimeout(ts.ctx, patience)
	defer cancel()
	if _, err := ts.control.c2n(ctx, a.id(), echo); !errors.Is(err, errNoStream) {
		t.Errorf("without a stream: %v", err)
	}
	if _, err := ts.control.c2n(ctx, 4711, echo); !errors.Is(err, errNoStream) {
		t.Errorf("a node that does not exist: %v", err)
	}
	var answer atomic.Bool
	answer.Store(true)
	s := a.echoing(&answer)
	s.first()
	for range 3 {
		status, err := ts.control.c2n(ctx, a.id(), echo)
		if status != 200 || err != nil {
			t.Errorf("an echo answered %d, %v", status, err)
		}
	}
	answer.Store(false)
	short, cancel2 := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel2()
	if _, err := ts.control.c2n(short, a.id(), echo); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("no answer: %v", err)
	}
	ts.control.pings.mu.Lock()
	defer ts.control.pings.mu.Unlock()
	if n := len(ts.control.pings.waiting); n != 0 {
		t.Errorf("%d calls are still waiting", n)
	}
}

// Only the machine that was asked may answer, once, and with something that is an HTTP response.
func TestPong(t *testing.T) {
	ts := newServer(t, nil)
	a, thief := ts.joined("alpha"), ts.joined("thief")
	s := a.rawStream(a.streamRequest())
	s.first()
	type result struct {
		status int
		err    error
	}
	ctx, cancel := context.WithTimeout(ts.ctx, patience)
	defer cancel()
	got := make(chan result, 1)
	go func() {
		status, err := ts.control.c2n(ctx, a.id(), "GET /x HTTP/1.1\r\n\r\n")
		got <- result{status, err}
	}()
	p := s.next("a ping", func(m *message) bool { return m.PingRequest != nil }).PingRequest
	if !strings.HasPrefix(p.URL, "https://"+strings.TrimPrefix(ts.url, "http://")+"/") || !p.URLIsNoise || p.Types != "c2n" ||
		string(p.Payload) != "GET /x HTTP/1.1\r\n\r\n" {
		t.Errorf("the ping is %+v", p)
	}
	pong := "/machine/ping/" + path.Base(p.URL)
	ok := "HTTP/1.1 418 I'm a teapot\r\nContent-Length: 0\r\n\r\n"
	for name, tt := range map[string]struct {
		c            *client
		method, path string
		body         any
		status       int
	}{
		"another machine": {thief, "POST", pong, ok, 404},
		"unknown":         {a, "POST", pong + "x", ok, 404},
		"no id":           {a, "POST", "/machine/ping/", ok, 404},
		"GET":             {a, "GET", pong, nil, 405},
		"empty":           {a, "POST", pong, "", 400},
		"HEAD":            {a, "HEAD", pong, nil, 400},
		"garbage":         {a, "POST", pong, "garbage\x00\r\n\r\n", 400},
		"a request":       {a, "POST", pong, "GET / HTTP/1.1\r\n\r\n", 400},
		"endless header":  {a, "POST", pong, io.LimitReader(endless{}, 3<<20), 400},
	} {
		if status, body, _ := tt.c.do(tt.method, tt.path, tt.body); status != tt.status {
			t.Errorf("%s: status %d %s, want %d", name, status, body, tt.status)
		}
	}
	if status, body, _ := a.do("POST", pong, ok); status != http.StatusNoContent {
		t.Errorf("the answer: status %d %s", status, body)
	}
	if r := <-got; r.status != 418 || r.err != nil {
		t.Errorf("the call returned %+v", r)
	}
	if status, _, _ := a.do("POST", pong, ok); status != http.StatusNotFound {
		t.Errorf("the answer again: status %d, want 404", status)
	}
}

// endless is a response whose header never ends.
type endless struct{}

func (endless) Read(p []byte) (int, error) {
	return copy(p, "HTTP/1.1 200 OK\r\nX: "+strings.Repeat("x", max(0, len(p)-21))), nil
}

// The prober notices a router that is connected and does not answer, and gives the prefix back when it has been well for
// a while.
func TestFailover(t *testing.T) {
	lan := netip.MustParsePrefix("192.168.199.0/24")
	ts := newServer(t, func(o *Options) {
		o.Probe = ProbeOptions{Every: 10 * time.Millisecond, Fail: 200 * time.Millisecond, Steady: 150 * time.Millisecond}
	})
	viewer, first, second := ts.joined("viewer"), ts.joined("first"), ts.joined("second")
	sv := viewer.stream()
	sv.first()
	var answers [2]atomic.Bool
	for i, c := range []*client{first, second} {
		answers[i].Store(true)
		r := c.lite()
		r.Hostinfo.RoutableIPs = []netip.Prefix{lan}
		c.report(r)
		ts.change(c.id(), func(n *tailnet.Node) { n.ApprovedRoutes = []netip.Prefix{lan} })
		c.echoing(&answers[i]).first()
		ts.until(c.host+" is online", func(sn *state.Snapshot) bool { return sn.Node(c.id()).Online })
	}
	carries := func(c *client) {
		t.Helper()
		ts.until(c.host+" is primary", func(sn *state.Snapshot) bool { return sn.Routes.Primary(lan) == c.id() })
	}
	carries(first)
	answers[0].Store(false)
	carries(second)
	sv.peer("the second router with the prefix", func(n *tailcfg.Node) bool {
		return n.ID == second.id().Tailcfg() && len(n.PrimaryRoutes) == 1 && n.PrimaryRoutes[0] == lan
	})
	if n := ts.state.Snapshot().Node(first.id()); !n.Online || !n.Failing {
		t.Errorf("the failed router: online %v, failing %v; want both", n.Online, n.Failing)
	}
	answers[0].Store(true)
	carries(first)
	sv.peer("the first router with the prefix", func(n *tailcfg.Node) bool {
		return n.ID == first.id().Tailcfg() && len(n.PrimaryRoutes) == 1
	})
}

// Routers without a stand-in are not probed, nor is anybody else.
func TestProbeOnlyRedundant(t *testing.T) {
	ts := newServer(t, func(o *Options) { o.Probe.Every = time.Millisecond; o.KeepAlive = 100 * time.Millisecond })
	a := ts.joined("alpha")
	r := a.lite()
	r.Hostinfo.RoutableIPs = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
	a.report(r)
	ts.change(a.id(), func(n *tailnet.Node) { n.ApprovedRoutes = n.AdvertisedRoutes() })
	s := a.stream()
	s.first()
	s.next("a keep-alive", func(m *message) bool {
		if m.PingRequest != nil {
			t.Error("a lone router was probed")
		}
		return m.KeepAlive
	})
}

// The verdict on a router, for answers at given times.
func TestHealth(t *testing.T) {
	o := ProbeOptions{Fail: 3 * time.Second, Steady: 60 * time.Second}
	start := time.Unix(1_000_000_000, 0)
	at := func(s float64) time.Time { return start.Add(time.Duration(s * float64(time.Second))) }
	type look struct {
		at              float64
		failing, steady bool
	}
	for name, tt := range map[string]struct {
		answers []float64 // when they come
		looks   []look
	}{
		"never answers":         {nil, []look{{0, false, false}, {2.9, false, false}, {3, true, false}, {100, true, false}}},
		"answers all the time":  {every(1, 70), []look{{10, false, false}, {59.9, false, false}, {60, false, true}, {69, false, true}}},
		"a short gap":           {append(every(1, 30), 32.5, 33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61), []look{{31.9, false, false}, {61, false, true}}},
		"fails, then is steady": {append(every(1, 5), shift(every(1, 70), 20)...), []look{{7.9, false, false}, {8, true, false}, {20, true, false}, {21, false, false}, {80.9, false, false}, {81, false, true}}},
	} {
		h := newHealth(start)
		i := 0
		for _, l := range tt.looks {
			for i < len(tt.answers) && tt.answers[i] <= l.at {
				// The prober looks at every tick, so also right before an answer.
				h.state(at(tt.answers[i]), o)
				h.answered(at(tt.answers[i]))
				i++
			}
			if failing, steady := h.state(at(l.at), o); failing != l.failing || steady != l.steady {
				t.Errorf("%s: after %v s failing %v, steady %v; want %v, %v", name, l.at, failing, steady, l.failing, l.steady)
			}
		}
	}
}

// every is step, 2*step … up to end.
func every(step, end float64) (out []float64) {
	for x := step; x <= end; x += step {
		out = append(out, x)
	}
	return out
}

func shift(xs []float64, by float64) (out []float64) {
	for _, x := range xs {
		out = append(out, x+by)
	}
	return out
}
