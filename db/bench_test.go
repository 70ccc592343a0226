package db

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/types/key"

	"github.com/skein-vpn/skein/tailnet"
)

// benchNode is a node as a laptop would make it.
func benchNode(id int) *tailnet.Node {
	return &tailnet.Node{
		ID: tailnet.NodeID(id), StableID: fmt.Sprintf("n%dCNTRL", id),
		MachineKey: key.NewMachine().Public(), NodeKey: key.NewNode().Public(), DiscoKey: key.NewDisco().Public(),
		User: 1, Hostname: fmt.Sprintf("laptop-%d", id), Name: fmt.Sprintf("laptop-%d", id),
		IPv4:    netip.AddrFrom4([4]byte{100, 64, byte(id >> 8), byte(id)}),
		IPv6:    netip.MustParseAddr(fmt.Sprintf("fd7a:115c:a1e0::%x", id)),
		Created: t0, Expiry: t0.AddDate(0, 6, 0), Authorized: true, RegisterMethod: tailnet.RegisteredByKey,
		Hostinfo: &tailcfg.Hostinfo{
			IPNVersion: "1.102.5-t0123456789-g0123456789", OS: "linux", OSVersion: "6.1.0", Hostname: fmt.Sprintf("laptop-%d", id),
			Distro: "debian", DistroVersion: "12", GoArch: "amd64", GoVersion: "go1.26.8", BackendLogID: "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
			Services: []tailcfg.Service{{Proto: tailcfg.PeerAPI4, Port: 41234}, {Proto: tailcfg.PeerAPI6, Port: 41234}},
			NetInfo:  &tailcfg.NetInfo{PreferredDERP: 1, WorkingUDP: "true", DERPLatency: map[string]float64{"1-v4": 0.01, "2-v4": 0.02, "3-v4": 0.03}},
		},
		Endpoints:     []netip.AddrPort{netip.MustParseAddrPort("203.0.113.7:41641"), netip.MustParseAddrPort("192.168.1.7:41641")},
		EndpointTypes: []tailcfg.EndpointType{tailcfg.EndpointSTUN, tailcfg.EndpointLocal}, HomeDERP: 1, Capver: 130,
	}
}

// fill commits n nodes and returns them with the Rev.
func fill(b testing.TB, d *DB, n int) ([]*tailnet.Node, tailnet.Rev) {
	nodes := make([]*tailnet.Node, n)
	for i := range nodes {
		nodes[i] = benchNode(i + 1)
	}
	rev, err := d.Commit(ctx, 1, 0, &tailnet.Changes{PutUsers: []*tailnet.User{{ID: 1, Name: "junyao", Created: t0}}, PutNodes: nodes, When: t0})
	if err != nil {
		b.Fatal(err)
	}
	return nodes, rev
}

// BenchmarkCommit is one commit of new endpoints for some nodes among 1000, as the group commit of a busy server makes it.
// FULL is what Commit does; NORMAL shows what fsync costs.
func BenchmarkCommit(b *testing.B) {
	for _, how := range []durability{durable, soft} {
		for _, group := range []int{1, 16, 128} {
			b.Run(fmt.Sprintf("%s/nodes=%d", how.pragma(), group), func(b *testing.B) {
				d := openTest(b)
				nodes, rev := fill(b, d, 1000)
				port := uint16(1)
				var took []time.Duration
				b.ResetTimer()
				for b.Loop() {
					port++
					start := time.Now()
					ch := &tailnet.Changes{When: t0, Why: []string{"endpoints"}}
					for i := range group {
						n := nodes[(int(port)*group+i)%len(nodes)].Clone()
						n.Endpoints = []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, 113, 7}), port)}
						ch.PutNodes = append(ch.PutNodes, n)
					}
					c, err := d.prepare(1, rev, ch)
					if err != nil {
						b.Fatal(err)
					}
					if err := d.transact(ctx, how, c.run); err != nil {
						b.Fatal(err)
					}
					rev++
					took = append(took, time.Since(start))
				}
				slices.Sort(took)
				b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
				b.ReportMetric(float64(took[len(took)-1].Microseconds()), "max-µs")
				b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*group), "µs/node")
			})
		}
	}
}

func BenchmarkLoad(b *testing.B) {
	d := openTest(b)
	fill(b, d, 1000)
	b.ResetTimer()
	for b.Loop() {
		if _, err := d.Load(ctx, 1); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSavePresence(b *testing.B) {
	d := openTest(b)
	nodes, _ := fill(b, d, 1000)
	p := map[tailnet.NodeID]tailnet.Presence{}
	for _, n := range nodes {
		p[n.ID] = tailnet.Presence{Online: true, LastSeen: t0}
	}
	b.ResetTimer()
	for b.Loop() {
		if err := d.SavePresence(ctx, 1, "", p); err != nil {
			b.Fatal(err)
		}
	}
}
