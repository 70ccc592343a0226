package netmap

import (
	"fmt"
	"io"
	"testing"

	"tailscale.com/tailcfg"

	"github.com/skein-vpn/skein/dns"
	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/state/statetest"
	"github.com/skein-vpn/skein/tailnet"
)

// benchWorld is a world of n published nodes, online in part.
func benchWorld(b *testing.B, n int) *world {
	store := statetest.NewWith(statetest.Tailnet(n))
	store.Forget()
	w := newWorld(b, store)
	w.update(func(tx *state.Tx) error {
		for id := tailnet.NodeID(1); id <= tailnet.NodeID(n); id += 2 {
			tx.SetOnline(id, true)
		}
		return nil
	})
	return w
}

// The first full map of a tailnet: every block is encoded.
func BenchmarkFullFirst(b *testing.B) {
	for _, n := range []int{200, 1000, 10000} {
		b.Run(fmt.Sprint("nodes=", n), func(b *testing.B) {
			w := benchWorld(b, n)
			sn := w.snapshot()
			b.ReportAllocs()
			var size int
			for b.Loop() {
				f, _ := New(Options{Taildrop: true}, nil).Full(sn, Viewer{Node: 1, Capver: 142, Compress: true})
				size = f.Size()
			}
			b.ReportMetric(float64(size)/float64(n), "bytes/peer")
		})
	}
}

// Another full map of the same snapshot, as when a fleet connects: only the viewer's own part and block are encoded.
func BenchmarkFullCached(b *testing.B) {
	for _, n := range []int{200, 1000, 10000} {
		b.Run(fmt.Sprint("nodes=", n), func(b *testing.B) {
			w := benchWorld(b, n)
			sn := w.snapshot()
			w.full(sn, Viewer{Node: 1, Capver: 142, Compress: true})
			b.ReportAllocs()
			id := 0
			for b.Loop() {
				id = id%n + 1
				f, _ := w.enc.Full(sn, Viewer{Node: tailnet.NodeID(id), Capver: 142, Compress: true})
				if _, err := f.WriteTo(io.Discard); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// A full map after each change of one node: one block is encoded anew.
func BenchmarkFullAfterChange(b *testing.B) {
	for _, n := range []int{200, 1000, 10000} {
		b.Run(fmt.Sprint("nodes=", n), func(b *testing.B) {
			w := benchWorld(b, n)
			snaps := []*state.Snapshot{w.snapshot(), nil}
			w.edit(tailnet.NodeID(n/2), func(_ *state.Tx, n *tailnet.Node) { n.HomeDERP = 7 })
			snaps[1] = w.snapshot()
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				i++
				w.enc.views = nil // as if each snapshot were new
				if _, ok := w.enc.Full(snaps[i%2], Viewer{Node: 1, Capver: 142, Compress: true}); !ok {
					b.Fatal("no full map")
				}
			}
		})
	}
}

// One node's endpoints change, and all viewers are sent it: one operation is the whole fan-out, without the network.
func BenchmarkDeltaEndpoints(b *testing.B) {
	for _, viewers := range []int{200, 1000, 10000} {
		b.Run(fmt.Sprint("viewers=", viewers), func(b *testing.B) {
			w := benchWorld(b, viewers)
			from := w.snapshot()
			w.edit(1, func(_ *state.Tx, n *tailnet.Node) { n.Endpoints = epSet })
			fanOut(b, w, from, w.snapshot(), viewers)
		})
	}
}

// One node joins and becomes visible: the same.
func BenchmarkDeltaJoin(b *testing.B) {
	for _, viewers := range []int{200, 1000} {
		b.Run(fmt.Sprint("viewers=", viewers), func(b *testing.B) {
			w := benchWorld(b, viewers)
			from := w.snapshot()
			id := w.join("new", 1)
			w.edit(id, func(_ *state.Tx, n *tailnet.Node) { n.DiscoKey = from.Node(1).DiscoKey })
			fanOut(b, w, from, w.snapshot(), viewers)
		})
	}
}

// The base domain changes, so that every node looks different to every other and to itself: the worst there is.
func BenchmarkDeltaBaseDomain(b *testing.B) {
	for _, viewers := range []int{200, 1000} {
		b.Run(fmt.Sprint("viewers=", viewers), func(b *testing.B) {
			w := benchWorld(b, viewers)
			from := w.snapshot()
			w.update(func(tx *state.Tx) error { tx.SetDNS(&dns.Settings{MagicDNS: true, Base: "other.example"}); return nil })
			fanOut(b, w, from, w.snapshot(), viewers)
		})
	}
}

func fanOut(b *testing.B, w *world, from, to *state.Snapshot, viewers int) {
	b.ReportAllocs()
	sent := 0
	for b.Loop() {
		e := New(Options{Taildrop: true}, nil)
		for id := 2; id <= viewers; id++ {
			f, ok := e.Delta(from, to, Viewer{Node: tailnet.NodeID(id), Capver: tailcfg.CurrentCapabilityVersion, Compress: true})
			if !ok {
				b.Fatal("no delta")
			}
			n, _ := f.WriteTo(io.Discard)
			sent += int(n)
		}
	}
	b.ReportMetric(float64(sent)/float64(b.N)/float64(viewers-1), "bytes/viewer")
}
