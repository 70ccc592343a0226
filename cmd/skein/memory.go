package main

import (
	"context"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	trimEvery = 10 * time.Second
	trimAbove = 4 << 20 // bytes
)

// trimMemory gives memory back to the system when a burst (a fleet that connects, say) is over: the runtime would keep as
// much again as is in use, and let it go only slowly. It does nothing while the process is allocating, and an idle process
// is left alone once it is lean.
func trimMemory(ctx context.Context) {
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}, {Name: "/memory/classes/heap/free:bytes"},
		{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/gc/heap/live:bytes"}}
	tick := time.NewTicker(trimEvery)
	defer tick.Stop()
	var before uint64
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		metrics.Read(sample)
		allocated, free := sample[0].Value.Uint64(), sample[1].Value.Uint64()
		garbage := sample[2].Value.Uint64() - min(sample[2].Value.Uint64(), sample[3].Value.Uint64())
		quiet := allocated-before < trimAbove
		before = allocated
		if quiet && free+garbage > trimAbove {
			runtime.GC() // what lies in pools goes with the second collection only
			debug.FreeOSMemory()
		}
	}
}
