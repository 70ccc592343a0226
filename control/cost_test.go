package control

import (
	"net"
	"net/netip"
	"sync/atomic"
	"testing"

	"tailscale.com/control/controlbase"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"

	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// BenchmarkNoiseAccept is a Noise handshake, both sides of it, without the network and HTTP.
func BenchmarkNoiseAccept(b *testing.B) {
	server, client := key.NewMachine(), key.NewMachine()
	b.ReportAllocs()
	for b.Loop() {
		here, there := net.Pipe()
		done := make(chan error, 1)
		go func() {
			_, err := controlbase.Client(b.Context(), there, client, server.Public(), uint16(tailcfg.CurrentCapabilityVersion))
			done <- err
		}()
		conn, err := controlbase.Server(b.Context(), here, server, nil)
		if err != nil {
			b.Fatal(err)
		}
		if err := <-done; err != nil {
			b.Fatal(err)
		}
		conn.Close()
		there.Close()
	}
}

// BenchmarkDurableRegistrations registers nodes, 64 at a time, on SQLite: each is durable when it is answered.
func BenchmarkDurableRegistrations(b *testing.B) {
	ts := newServer(b, nil)
	authKey := ts.authKey(true, false)
	b.SetParallelism(32)
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			_, err := ts.auth.Register(ts.ctx, key.NewMachine().Public(), &tailcfg.RegisterRequest{
				Version: tailcfg.CurrentCapabilityVersion, NodeKey: key.NewNode().Public(),
				Auth: &tailcfg.RegisterResponseAuth{AuthKey: authKey}, Hostinfo: &tailcfg.Hostinfo{Hostname: "laptop", OS: "linux"},
			}, "192.0.2.1")
			if err != nil {
				b.Error(err)
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "registrations/s")
}

// BenchmarkDurableReports stores new endpoints of 1,000 nodes, 64 at a time.
func BenchmarkDurableReports(b *testing.B) {
	ts := newServer(b, nil)
	authKey := ts.authKey(true, false)
	const nodes = 1000
	for range nodes {
		_, err := ts.auth.Register(ts.ctx, key.NewMachine().Public(), &tailcfg.RegisterRequest{
			Version: tailcfg.CurrentCapabilityVersion, NodeKey: key.NewNode().Public(),
			Auth: &tailcfg.RegisterResponseAuth{AuthKey: authKey}, Hostinfo: &tailcfg.Hostinfo{Hostname: "laptop", OS: "linux"},
		}, "192.0.2.1")
		ts.must(err)
	}
	var count atomic.Uint32
	b.SetParallelism(32)
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			i := count.Add(1)
			err := ts.state.Update(ts.ctx, "report", func(tx *state.Tx) error {
				n := tx.Node(tailnet.NodeID(i%nodes + 1)).Clone()
				n.Endpoints = []netip.AddrPort{netip.AddrPortFrom(n.IPv4, uint16(i))}
				return tx.PutNode(n)
			})
			if err != nil {
				b.Error(err)
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "reports/s")
}
