package policy

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"

	"tailscale.com/tailcfg"
)

// scope is what one policy lets kinds do at places, as rows of bits: a bit is one destination of one item (a leg), or one ssh
// rule.
type scope struct {
	c        *Compiled
	legs     []leg
	src, dst []bits // kind, place → legs
	own      bits   // legs of autogroup:self
	ssh      sshBits
	ids      map[string]int32 // row of bits → results
	results  []facts
	row      []byte
	logins   []string // kind → logins
	names    []string // users of sessions
	changed  bits     // legs that the other policy does not have just so
	sessions bool     // the other policy has other ssh rules
}

type leg struct {
	it  *item
	dst int // of it.dst; -1: autogroup:self
}

// sshBits are the ssh rules by kind.
type sshBits struct {
	src, dst []bits // kind → rules
	own      bits   // rules for the devices of the source's user
}

func newScope(c *Compiled, kinds []diffKind, places []place, names []string) *scope {
	r := &scope{c: c, names: names, ids: map[string]int32{}}
	if c.allowAll {
		all := facts{}
		all.open(nil, []tailcfg.PortRange{tailcfg.PortRangeAny})
		r.results = []facts{all}
		return r
	}
	for i := range c.rules.items {
		it := &c.rules.items[i]
		if it.back { // companions tell a client what it was granted; they grant nothing
			continue
		}
		if it.self {
			r.legs = append(r.legs, leg{it, -1})
		}
		for j := range it.dst {
			r.legs = append(r.legs, leg{it, j})
		}
	}
	r.own, r.ssh.own = newBits(len(r.legs)), newBits(len(c.rules.ssh))
	for l, leg := range r.legs {
		if leg.dst < 0 {
			r.own.set(l)
		}
	}
	for i, it := range c.rules.ssh {
		if it.self || len(it.rule.domains) > 0 {
			r.ssh.own.set(i)
		}
	}
	for _, k := range kinds {
		in := c.inOf(k.one[c])
		src, ssh, named := newBits(len(r.legs)), newBits(len(c.rules.ssh)), newBits(len(c.rules.ssh))
		for l, leg := range r.legs {
			if in != nil && in.has(leg.it.src) {
				src.set(l)
			}
		}
		for i, it := range c.rules.ssh {
			if in != nil && in.has(it.src) {
				ssh.set(i)
			}
			if in != nil && it.dst >= 0 && in.has(it.dst) {
				named.set(i)
			}
		}
		r.src, r.ssh.src, r.ssh.dst = append(r.src, src), append(r.ssh.src, ssh), append(r.ssh.dst, named)
		login := ""
		for u := range k.users {
			login = c.logins(u) // all users of a kind have the same
		}
		r.logins = append(r.logins, login)
	}
	for _, p := range places {
		dst := newBits(len(r.legs))
		for l, leg := range r.legs {
			if leg.dst >= 0 && c.reachesPlace(p, leg.it, leg.it.dst[leg.dst].set) {
				dst.set(l)
			}
		}
		r.dst = append(r.dst, dst)
	}
	return r
}

// inOf are the sets that hold e; nil if it is not in c.
func (c *Compiled) inOf(e *entry) bits {
	if e == nil || c.class(e.class) == nil {
		return nil
	}
	return c.class(e.class).in
}

func (c *Compiled) reachesPlace(p place, it *item, set int) bool {
	s := c.rules.sets[set]
	switch {
	case p.route.IsValid():
		return it.caps == nil && (s.star || overlaps(s.nets, p.route))
	case p.world:
		return it.caps == nil && (s.star || s.internet)
	case it.via >= 0:
		return false
	}
	in := c.inOf(p.kind.one[c])
	return in != nil && in.has(set)
}

// at is the number of the result for kind i at place j; own: between devices of one user.
func (r *scope) at(i, j int, own bool) int32 {
	if r.c.allowAll {
		return 0
	}
	nodes := j < len(r.src) // the places begin with the kinds
	r.row = r.row[:0]
	for w, s := range r.src[i] {
		d := r.dst[j][w]
		if own {
			d |= r.own[w]
		}
		r.row = binary.LittleEndian.AppendUint64(r.row, s&d)
	}
	if nodes && len(r.c.rules.ssh) > 0 {
		for w, s := range r.ssh.src[i] {
			d := r.ssh.dst[j][w]
			if own {
				d |= r.ssh.own[w]
			}
			r.row = binary.LittleEndian.AppendUint64(r.row, s&d)
		}
		r.row = append(r.row, r.logins[i]...)
	}
	if id, ok := r.ids[string(r.row)]; ok {
		return id
	}
	id := int32(len(r.results))
	r.ids[string(r.row)] = id
	r.results = append(r.results, r.facts(i, j, own))
	return id
}

// facts says a result in words.
func (r *scope) facts(i, j int, own bool) facts {
	f := facts{}
	for l, leg := range r.legs {
		if !r.src[i].has(l) || !r.dst[j].has(l) && !(own && r.own.has(l)) {
			continue
		}
		switch {
		case leg.it.caps != nil:
			for name := range leg.it.rule.app {
				f.add("capability " + string(name))
			}
		case leg.dst < 0:
			f.open(leg.it.protos, leg.it.ranges)
		default:
			f.open(leg.it.protos, leg.it.dst[leg.dst].ranges)
		}
	}
	if j >= len(r.src) {
		return f
	}
	for _, name := range r.names {
		for n, it := range r.c.rules.ssh {
			if !r.ssh.src[i].has(n) || !r.ssh.dst[j].has(n) && !(own && r.ssh.own.has(n)) {
				continue
			}
			ok := slices.Contains(it.rule.users, name) || it.rule.nonroot && name != "root"
			if name == ownName && strings.Contains(" "+r.logins[i], fmt.Sprint(" ", n, " ")) {
				ok = true
			}
			if !ok {
				continue
			}
			what := asName + name
			if it.rule.check {
				what += afterCheck
			}
			f.add(what)
			break // the first rule decides
		}
	}
	return f
}

// sshNames are the users that the ssh rules of both policies speak of.
func sshNames(cs ...*Compiled) []string {
	names := map[string]bool{}
	for _, c := range cs {
		if c.allowAll {
			continue
		}
		for _, it := range c.rules.ssh {
			for _, u := range it.rule.users {
				names[u] = true
			}
			if it.rule.nonroot {
				names[anyName] = true
			}
			if len(it.rule.domains) > 0 {
				names[ownName] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// compareScopes marks the legs that are not in both: a pair of kinds that no such leg is about has lost and gained nothing.
func compareScopes(was, is *scope) {
	if was.c.allowAll || is.c.allowAll {
		return
	}
	had, has := was.legKeys(), is.legKeys()
	mark := func(s *scope, mine []string, others []string) {
		known := map[string]bool{}
		for _, k := range others {
			known[k] = true
		}
		s.changed = newBits(len(mine))
		for l, k := range mine {
			if !known[k] {
				s.changed.set(l)
			}
		}
	}
	mark(was, had, has)
	mark(is, has, had)
	was.sessions = !slices.Equal(was.sessionKeys(), is.sessionKeys())
	is.sessions = was.sessions
}

// column appends for which of the rows the bit is set.
func column(out []byte, rows []bits, bit int) []byte {
	for i, r := range rows {
		if r.has(bit) {
			out = binary.AppendUvarint(out, uint64(i))
		}
	}
	return append(out, '|')
}

// legKeys say for each leg all that it allows.
func (r *scope) legKeys() []string {
	out := make([]string, len(r.legs))
	for l, leg := range r.legs {
		ranges := leg.it.ranges
		if leg.dst >= 0 {
			ranges = leg.it.dst[leg.dst].ranges
		}
		key := fmt.Appendf(nil, "%v %v %v %v|", leg.dst < 0, leg.it.protos, ranges, slices.Sorted(maps.Keys(leg.it.caps)))
		out[l] = string(column(column(key, r.src, l), r.dst, l))
	}
	return out
}

func (r *scope) sessionKeys() []string {
	out := make([]string, len(r.c.rules.ssh))
	for n, it := range r.c.rules.ssh {
		key := fmt.Appendf(nil, "%v %q %v %v|", it.rule.check, it.rule.users, it.rule.nonroot, r.ssh.own.has(n))
		for i, logins := range r.logins {
			if strings.Contains(" "+logins, fmt.Sprint(" ", n, " ")) {
				key = binary.AppendUvarint(key, uint64(i))
			}
		}
		out[n] = string(column(column(append(key, '|'), r.ssh.src, n), r.ssh.dst, n))
	}
	return out
}

// same reports whether no leg that the other policy does not have is about kind i at place j.
func (r *scope) same(i, j int, own bool) bool {
	if r.c.allowAll || r.changed == nil || r.sessions && j < len(r.src) {
		return false
	}
	for w, s := range r.src[i] {
		d := r.dst[j][w]
		if own {
			d |= r.own[w]
		}
		if s&d&r.changed[w] != 0 {
			return false
		}
	}
	return true
}
