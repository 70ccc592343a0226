package sim

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// aspect is what a goal waits for.
type aspect int8

const (
	appears   aspect = iota // the node is among the peers
	vanishes                // it is not any more
	online                  // it is said to be online
	offline                 // it is said to be offline
	endpoints               // its endpoints hold the mark
	routed                  // its routes hold the mark
	told                    // anything but a keep-alive was sent; about no node
	fullMap                 // the viewer has had a full map since the beginning and sees as many as it should; about no node
)

// goal is something that viewers shall see, and when each did.
type goal struct {
	aspect aspect
	node   int32  // which client's node it is about
	mark   []byte // what its endpoints or routes hold, as JSON
	want   []int  // fullMap: how many peers each viewer should see
	begin  time.Time

	met  []atomic.Int64 // by viewer: nanoseconds from begin, at least 1; 0: not yet, notAsked
	left atomic.Int64   // viewers that have not met it
	done chan struct{}  // closed when left is 0
}

// notAsked marks viewers from whom a goal is not expected.
const notAsked = -1

// newGoal makes a goal for the viewers for which asked is true.
func newGoal(a aspect, node int32, mark string, viewers []*client, asked func(*client) bool) *goal {
	g := &goal{aspect: a, node: node, mark: []byte(mark), met: make([]atomic.Int64, len(viewers)), done: make(chan struct{}), begin: time.Now()}
	for i, v := range viewers {
		if v.index == node || !asked(v) {
			g.met[i].Store(notAsked)
		} else {
			g.left.Add(1)
		}
	}
	if g.left.Load() == 0 {
		close(g.done)
	}
	return g
}

// hit notes that a viewer has met the goal.
func (g *goal) hit(viewer int32, now time.Time) {
	if g.met[viewer].CompareAndSwap(0, max(1, int64(now.Sub(g.begin)))) && g.left.Add(-1) == 0 {
		close(g.done)
	}
}

// latencies are the times of those who have met it, unsorted.
func (g *goal) latencies() (out []time.Duration) {
	for i := range g.met {
		if ns := g.met[i].Load(); ns > 0 {
			out = append(out, time.Duration(ns))
		}
	}
	return out
}

// missing names the viewers that have not met it, the first few of them; "" if all have.
func (g *goal) missing(viewers []*client) string {
	var names []string
	n := 0
	for i := range g.met {
		if g.met[i].Load() == 0 {
			if n++; n <= 3 {
				names = append(names, viewers[i].name)
			}
		}
	}
	if n == 0 {
		return ""
	}
	if n > len(names) {
		names = append(names, "...")
	}
	return fmt.Sprintf("%d of %d clients (%s)", n, len(viewers), strings.Join(names, ", "))
}

// matches reports whether s is what the goal waits for.
func (g *goal) matches(s *sighting) bool {
	switch g.aspect {
	case appears:
		return !s.patch
	case online:
		return s.online > 0
	case offline:
		return s.online < 0
	case endpoints:
		return contains(s.endpoints, g.mark)
	case routed:
		return contains(s.routes, g.mark)
	}
	return false
}

// board holds the goals that are being waited for. Viewers look at it with each response.
type board struct {
	mu  sync.Mutex // serialises changes
	now atomic.Pointer[goals]
}

// goals are immutable.
type goals struct {
	node  map[int32][]*goal
	other []*goal // fullMap, told
}

func (b *board) change(f func(*goals)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	next := &goals{node: map[int32][]*goal{}}
	if old := b.now.Load(); old != nil {
		for k, v := range old.node {
			next.node[k] = v
		}
		next.other = old.other
	}
	f(next)
	if len(next.node) == 0 && len(next.other) == 0 {
		next = nil
	}
	b.now.Store(next)
}

// add puts goals on the board; remove must follow.
func (b *board) add(list ...*goal) {
	b.change(func(gs *goals) {
		for _, g := range list {
			if g.aspect == fullMap || g.aspect == told {
				gs.other = append(slices.Clone(gs.other), g)
			} else {
				gs.node[g.node] = append(slices.Clone(gs.node[g.node]), g)
			}
		}
	})
}

func (b *board) remove(list ...*goal) {
	b.change(func(gs *goals) {
		is := func(g *goal) bool { return slices.Contains(list, g) }
		gs.other = slices.DeleteFunc(slices.Clone(gs.other), is)
		for _, g := range list {
			if rest := slices.DeleteFunc(slices.Clone(gs.node[g.node]), is); len(rest) > 0 {
				gs.node[g.node] = rest
			} else {
				delete(gs.node, g.node)
			}
		}
	})
}

// wait waits until all goals are met and reports whether they are.
func wait(ctx context.Context, list ...*goal) bool {
	for _, g := range list {
		select {
		case <-g.done:
		case <-ctx.Done():
			return false
		}
	}
	return true
}
