package control

import (
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"tailscale.com/control/tsp"
	"tailscale.com/tailcfg"

	"github.com/skein-vpn/skein/state"
)

// idle is how many idle clients the benchmarks have.
const idle = 200

// fleet is a number of idle clients, each Tailscale's own, with an open map session over Noise on loopback.
type fleet struct {
	ts *testServer
	mu sync.Mutex
	// seen is told of each message that a client has read, and when; guarded by mu.
	seen func(c *client, m *tailcfg.MapResponse, at time.Time)
}

func (f *fleet) watch(seen func(*client, *tailcfg.MapResponse, time.Time)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seen = seen
}

// newFleet starts a server and n clients that all know that all are online.
func newFleet(b *testing.B, n int) *fleet {
	f := &fleet{ts: newServer(b, nil)}
	authKey := f.ts.authKey(true, false)
	for i := range n {
		c := f.ts.newClient(fmt.Sprintf("idle-%d", i)).join(authKey)
		ms, err := c.tsp.Map(f.ts.ctx, tsp.MapOpts{NodeKey: c.node, Stream: true, Hostinfo: c.hostinfo()})
		f.ts.must(err)
		var wg sync.WaitGroup
		wg.Go(func() {
			var m tailcfg.MapResponse
			for ms.NextInto(&m) == nil {
				at := time.Now()
				f.mu.Lock()
				if f.seen != nil {
					f.seen(c, &m, at)
				}
				f.mu.Unlock()
			}
		})
		b.Cleanup(func() { ms.Close(); wg.Wait() })
	}
	f.ts.until("all are online", func(sn *state.Snapshot) bool {
		return !slices.ContainsFunc(sn.Nodes(), func(n *state.Node) bool { return !n.Online })
	})
	return f
}

// all waits until every client has read a message that ok accepts, after do, and returns how long each has waited for it.
func (f *fleet) all(n int, what string, ok func(*tailcfg.MapResponse) bool, do func()) []time.Duration {
	took := map[*client]time.Duration{}
	done := make(chan struct{})
	var began time.Time
	f.watch(func(c *client, m *tailcfg.MapResponse, at time.Time) {
		if _, had := took[c]; had || !ok(m) {
			return
		}
		took[c] = at.Sub(began)
		if len(took) == n {
			close(done)
		}
	})
	f.mu.Lock()
	began = time.Now()
	f.mu.Unlock()
	do()
	select {
	case <-done:
	case <-time.After(patience):
		f.ts.t.Fatalf("not all clients have seen %s", what)
	}
	f.watch(nil)
	out := make([]time.Duration, 0, n)
	for _, d := range took {
		out = append(out, d)
	}
	return out
}

// cpu is the time that this process, server and clients together, has computed.
func cpu() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func report(b *testing.B, took []time.Duration, used time.Duration, per string) {
	slices.Sort(took)
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	b.ReportMetric(ms(took[len(took)/2]), "ms-p50")
	b.ReportMetric(ms(took[len(took)*99/100]), "ms-p99")
	b.ReportMetric(ms(took[len(took)-1]), "ms-max")
	b.ReportMetric(ms(used)/float64(b.N), "cpu-ms/"+per) // of server and clients
	b.ReportMetric(0, "ns/op")
}

// BenchmarkJoin is one node joining an idle tailnet of 200: from the register request, on a connection that is yet to be
// made, to the first map.
func BenchmarkJoin(b *testing.B) {
	f := newFleet(b, idle)
	ts := f.ts
	authKey := ts.authKey(true, false)
	var took []time.Duration
	var used time.Duration
	for b.Loop() {
		c := ts.newClient("newcomer")
		runtime.GC()
		used -= cpu()
		began := time.Now()
		_, err := c.tsp.Register(ts.ctx, tsp.RegisterOpts{NodeKey: c.node, AuthKey: authKey, Hostinfo: c.hostinfo()})
		ts.must(err)
		ms, err := c.tsp.Map(ts.ctx, tsp.MapOpts{NodeKey: c.node, Stream: true, Hostinfo: c.hostinfo()})
		ts.must(err)
		m, err := ms.Next()
		took = append(took, time.Since(began))
		ts.must(err)
		if len(m.Peers) != idle {
			b.Fatalf("the newcomer sees %d peers, want %d", len(m.Peers), idle)
		}
		id := c.id().Tailcfg()
		f.all(idle, "the newcomer", func(m *tailcfg.MapResponse) bool {
			return slices.ContainsFunc(m.PeersChanged, func(n *tailcfg.Node) bool { return n.ID == id })
		}, func() {
			ts.must(c.tsp.SendMapUpdate(ts.ctx, tsp.SendMapUpdateOpts{NodeKey: c.node, DiscoKey: c.disco.Public(), Hostinfo: c.hostinfo()}))
		})
		used += cpu()
		f.all(idle, "the newcomer go", func(m *tailcfg.MapResponse) bool { return slices.Contains(m.PeersRemoved, id) }, func() {
			nid := c.id()
			ts.update(func(tx *state.Tx) error { tx.DeleteNode(nid); return nil })
		})
		ms.Close()
		c.tsp.Close()
	}
	report(b, took, used, "join")
}

// BenchmarkEndpoints is one node's new endpoints, from its request to each of 200 idle clients having read them.
func BenchmarkEndpoints(b *testing.B) {
	f := newFleet(b, idle)
	c := f.ts.joined("roaming")
	var took []time.Duration
	id := c.id().Tailcfg()
	port := uint16(0)
	started := cpu()
	for b.Loop() {
		port++
		ep := netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), port)
		r := c.lite(ep.String())
		took = append(took, f.all(idle, "the endpoints", func(m *tailcfg.MapResponse) bool {
			return slices.ContainsFunc(m.PeersChangedPatch, func(p *tailcfg.PeerChange) bool {
				return p.NodeID == id && slices.Contains(p.Endpoints, ep)
			})
		}, func() { c.report(r) })...)
	}
	report(b, took, cpu()-started, "change")
}
