// Package routes decides which node carries a prefix. It is pure; health.go says when a router counts as gone.
//
// A route is advertised by a node, approved by an administrator (the command line says enabled) and then carried by one
// node at a time, its primary: of several routers of one prefix the one created first, and another one only while that
// one is gone or not yet steady again. Exit routes (0.0.0.0/0, ::/0) have no primary: the client picks its exit node.
package routes

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/skein-vpn/skein/tailnet"
)

// Candidate is one router of one prefix: it advertises the prefix and is approved for it.
type Candidate struct {
	Node   tailnet.NodeID
	Usable bool // online and answering
	Steady bool // usable for so long that it may take the prefix back from a usable one
}

// Table says who carries what. A nil Table is empty. It is immutable.
type Table struct {
	primary map[netip.Prefix]tailnet.NodeID
}

// Primary is the node that carries p; 0 if none does.
func (t *Table) Primary(p netip.Prefix) tailnet.NodeID {
	if t == nil {
		return 0
	}
	return t.primary[p]
}

// Len is the number of prefixes that are carried.
func (t *Table) Len() int {
	if t == nil {
		return 0
	}
	return len(t.primary)
}

// NewTable is a table with the given primaries; nil is an empty one.
func NewTable(primary map[netip.Prefix]tailnet.NodeID) *Table {
	return &Table{primary: maps.Clone(primary)}
}

// With is the table after somebody else has found these nodes to be primaries; a nil map changes nothing.
func (t *Table) With(primary map[netip.Prefix]tailnet.NodeID) *Table {
	if len(primary) == 0 {
		return t
	}
	next := map[netip.Prefix]tailnet.NodeID{}
	if t != nil {
		maps.Copy(next, t.primary)
	}
	maps.Copy(next, primary)
	return &Table{primary: next}
}

// Elect returns the table after the prefixes in cands have these candidates and no others, listed in the order in which
// the nodes were created; prefixes not in cands stay as they are. A prefix without candidates leaves the table. The result is prev itself if nothing changes.
//
// A primary stays while it is usable, except that a steady candidate created before it takes over. If nobody is usable
// the prefix stays where it is: a router that cannot reach us may still be reached by its peers.
func Elect(prev *Table, cands map[netip.Prefix][]Candidate) *Table {
	var next map[netip.Prefix]tailnet.NodeID
	set := func(p netip.Prefix, id tailnet.NodeID) {
		if prev.Primary(p) == id {
			return
		}
		if next == nil {
			next = map[netip.Prefix]tailnet.NodeID{}
			if prev != nil {
				maps.Copy(next, prev.primary)
			}
		}
		if id == 0 {
			delete(next, p)
		} else {
			next[p] = id
		}
	}
	for p, cs := range cands {
		set(p, elect(prev.Primary(p), cs))
	}
	if next == nil {
		return prev
	}
	return &Table{primary: next}
}

// elect picks among the candidates of one prefix; current is its primary so far, 0 if none. 0 means nobody.
func elect(current tailnet.NodeID, cs []Candidate) tailnet.NodeID {
	i := slices.IndexFunc(cs, func(c Candidate) bool { return c.Node == current })
	if i >= 0 && cs[i].Usable {
		for _, c := range cs[:i] {
			if c.Usable && c.Steady {
				return c.Node
			}
		}
		return current
	}
	for _, c := range cs {
		if c.Usable {
			return c.Node
		}
	}
	switch {
	case i >= 0:
		return current
	case len(cs) > 0:
		return cs[0].Node
	}
	return 0
}
