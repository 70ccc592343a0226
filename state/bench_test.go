package state

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/skein-vpn/skein/state/statetest"
	"github.com/skein-vpn/skein/tailnet"
)

var sizes = []int{200, 1000, 10000}

// benchState is a State over a store in memory that holds n nodes. Half of them route a prefix.
func benchState(b *testing.B, n int) *State {
	c := statetest.Tailnet(n)
	for i, node := range c.Nodes {
		if i%2 == 0 {
			p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24)
			node.Hostinfo.RoutableIPs, node.ApprovedRoutes = []netip.Prefix{p}, []netip.Prefix{p}
		}
	}
	store := statetest.NewWith(c)
	store.Forget()
	st := open(b, options(store))
	b.ReportAllocs()
	b.ResetTimer()
	return st
}

// One node reports other endpoints: from Update to the published snapshot.
func BenchmarkEndpoints(b *testing.B) {
	for _, n := range sizes {
		b.Run(fmt.Sprint("nodes=", n), func(b *testing.B) {
			st := benchState(b, n)
			port := uint16(0)
			for b.Loop() {
				port++
				must(b, st, func(tx *Tx) error {
					return change(tx, tailnet.NodeID(n/2), func(n *tailnet.Node) {
						n.Endpoints = []netip.AddrPort{netip.AddrPortFrom(n.IPv4, port)}
					})
				})
			}
		})
	}
}

// One router comes and goes; its prefix is elected anew.
func BenchmarkOnline(b *testing.B) {
	for _, n := range sizes {
		b.Run(fmt.Sprint("nodes=", n), func(b *testing.B) {
			st := benchState(b, n)
			online := false
			for b.Loop() {
				online = !online
				setOnline(b, st, 1, online)
			}
		})
	}
}

// One node joins and one leaves, so that the number of nodes stays.
func BenchmarkJoinAndLeave(b *testing.B) {
	for _, n := range sizes {
		b.Run(fmt.Sprint("nodes=", n), func(b *testing.B) {
			st := benchState(b, n)
			last := tailnet.NodeID(0)
			for b.Loop() {
				must(b, st, func(tx *Tx) error {
					tx.DeleteNode(last)
					node, err := fresh(tx, "laptop", 1)
					if err != nil {
						return err
					}
					last = node.ID
					return tx.PutNode(node)
				})
			}
		})
	}
}

// Many nodes report at once: what a group commit saves.
func BenchmarkEndpointsParallel(b *testing.B) {
	st := benchState(b, 1000)
	b.SetParallelism(100)
	b.RunParallel(func(pb *testing.PB) {
		port := uint16(0)
		for pb.Next() {
			port++
			err := st.Update(ctx, "endpoints", func(tx *Tx) error {
				return change(tx, tailnet.NodeID(port%1000+1), func(n *tailnet.Node) {
					n.Endpoints = []netip.AddrPort{netip.AddrPortFrom(n.IPv4, port)}
				})
			})
			if err != nil {
				b.Error(err)
			}
		}
	})
}

// The start of a server: from the store's contents to the first snapshot.
func BenchmarkOpen(b *testing.B) {
	for _, n := range sizes {
		b.Run(fmt.Sprint("nodes=", n), func(b *testing.B) {
			store := statetest.NewWith(statetest.Tailnet(n))
			b.ReportAllocs()
			for b.Loop() {
				st, err := Open(ctx, options(store))
				if err != nil {
					b.Fatal(err)
				}
				st.Close()
			}
		})
	}
}
