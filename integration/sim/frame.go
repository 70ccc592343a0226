package sim

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"strconv"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"
)

// Reading map responses. Many clients get the same bytes, so what was read once is kept by the hash of its compressed form:
//
//	body ── one zstd frame ─────────────▶ message, shared by all who get it
//	     ── several (a glued full map):
//	          head │ block │ , │ block │ … │ tail
//	          each block that is a list of peers is read once and shared; the rest, with {"":1} where a block
//	          stood, is small and read for each client
//
// Only what the scenarios ask for is looked at.

// sighting is what a map response says about one peer.
type sighting struct {
	id        int64  // NodeID
	who       int32  // which of our clients it is; stranger if none
	online    int8   // 1: online, -1: offline, 0: not said
	patch     bool   // about a peer that the viewer has already (a patch), otherwise the whole peer
	endpoints []byte // JSON; nil: not said
	routes    []byte // AllowedIPs, JSON; nil: not said
}

// stranger stands for nodes that are not ours.
const stranger int32 = -1

// message is what a map response says. It is shared and must not be written to.
type message struct {
	keepAlive bool
	self      bool  // Node is there
	selfID    int64 // its id
	gone      bool  // its key has expired: the server does not know this node any more
	complete  bool  // peers is the complete list
	peers     [][]sighting
	removed   []int32 // our clients
}

// registry knows which node is which client: by node key, because nobody tells a client its NodeID before its first map,
// and by the NodeID once that has been seen beside the key.
type registry struct {
	mu    sync.RWMutex
	byKey map[string]int32 // guarded by mu
	byID  map[int64]int32  // guarded by mu
}

func newRegistry() *registry { return &registry{byKey: map[string]int32{}, byID: map[int64]int32{}} }

// add announces a client before it registers; key is the node key as text.
func (r *registry) add(key string, who int32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.byKey[key] = who
}

// who is the client with this node key, or this id if there is no key.
func (r *registry) who(key []byte, id int64) int32 {
	r.mu.RLock()
	known, ok := r.byID[id]
	who, byKey := r.byKey[string(key)]
	r.mu.RUnlock()
	switch {
	case len(key) == 0 && ok:
		return known
	case len(key) == 0 || !byKey:
		return stranger
	case !ok || known != who:
		r.mu.Lock()
		r.byID[id] = who
		r.mu.Unlock()
	}
	return who
}

const (
	maxFrame  = 64 << 20  // bytes of one compressed map response
	maxText   = 256 << 20 // bytes of one part of it, decompressed
	keepText  = 32 << 20  // bytes of text kept for those who get the same; twice as much at the most
	wholeSize = 32 << 10  // compressed glued responses of more bytes are read block by block
)

// decoder reads map responses. It is safe for concurrent use.
type decoder struct {
	zstd *zstd.Decoder
	seed maphash.Seed
	reg  *registry

	mu         sync.Mutex
	young, old map[uint64]*reading // guarded by mu: two generations; what is asked for again gets young again
	kept       int                 // guarded by mu: bytes of text in young
}

// reading is a part of a response, read by the first who gets it.
type reading struct {
	once sync.Once
	err  error
	text []byte
	list []sighting // if isList
	// isList: the part is nothing but whole peers, separated by commas.
	isList bool
	msg    *message // if read as a whole response
}

func newDecoder(reg *registry) *decoder {
	z, err := zstd.NewReader(nil, zstd.WithDecoderMaxMemory(maxText), zstd.WithDecoderLowmem(true), zstd.WithDecoderConcurrency(0))
	if err != nil {
		panic("sim: " + err.Error()) // options are constant
	}
	return &decoder{zstd: z, seed: maphash.MakeSeed(), reg: reg, young: map[uint64]*reading{}, old: map[uint64]*reading{}}
}

func (d *decoder) close() { d.zstd.Close() }

// decode reads a whole response and hands it to use, after which the message must not be used any more.
func (d *decoder) decode(body []byte, use func(*message)) error {
	n, err := frameSize(body)
	if err != nil {
		return err
	}
	if n < len(body) && len(body) > wholeSize {
		g := d.newGlued()
		if err := g.takeAll(body); err != nil {
			return err
		}
		return g.finish(use)
	}
	r := d.read(body, func(r *reading) {
		if r.msg = parse(r.text, nil, d.reg); r.msg == nil {
			r.err = errNotMap(r.text)
		}
	})
	if r.err == nil {
		use(r.msg)
	}
	return r.err
}

func errNotMap(text []byte) error {
	return fmt.Errorf("a map response is not the JSON that is expected: %.200q", text)
}

// glued is a response in several zstd frames that is read while it arrives. finish must be called in the end.
type glued struct {
	d     *decoder
	parts int
	text  *[]byte      // what was not shared; from scratch
	lists [][]sighting // what stood where text has {"":1}, {"":2}, ...
}

// scratch holds the text of glued responses while they are looked at.
var scratch = sync.Pool{New: func() any { return new([]byte) }}

func (d *decoder) newGlued() *glued {
	g := &glued{d: d, text: scratch.Get().(*[]byte)}
	*g.text = (*g.text)[:0]
	return g
}

// take reads the zstd frames that are complete and returns how many bytes they are.
func (g *glued) take(b []byte) (used int, err error) {
	for {
		n, err := frameSize(b[used:])
		if errors.Is(err, errShort) {
			return used, nil
		}
		if err == nil {
			err = g.part(b[used : used+n])
		}
		if err != nil {
			return used, err
		}
		used += n
	}
}

// takeAll reads the rest of the response.
func (g *glued) takeAll(b []byte) error {
	used, err := g.take(b)
	if err == nil && used < len(b) {
		err = errZstd
	}
	return err
}

// smallPart is up to how many bytes a part is not worth sharing.
const smallPart = 128

func (g *glued) part(p []byte) (err error) {
	if g.parts++; g.parts == 1 || len(p) < smallPart {
		*g.text, err = g.d.zstd.DecodeAll(p, *g.text)
		return err
	}
	r := g.d.read(p, func(r *reading) { r.list, r.isList = parseList(r.text, g.d.reg) })
	switch {
	case r.err != nil:
		return r.err
	case r.isList:
		g.lists = append(g.lists, r.list)
		*g.text = append(*g.text, `{"":`...)
		*g.text = strconv.AppendInt(*g.text, int64(len(g.lists)), 10)
		*g.text = append(*g.text, '}')
	default:
		*g.text = append(*g.text, r.text...)
	}
	if len(*g.text) > maxText {
		return errors.New("a map response is too large")
	}
	return nil
}

// finish reads what has been put together.
func (g *glued) finish(use func(*message)) error {
	defer scratch.Put(g.text)
	m := parse(*g.text, g.lists, g.d.reg)
	if m == nil {
		return errNotMap(*g.text)
	}
	use(m)
	return nil
}

// response is the sink for one stream's responses: small ones are read whole, glued ones part by part, so that a fleet
// that gets its full maps at once does not hold them all in memory.
type response struct {
	d     *decoder
	glued *glued // nil: none has begun
	use   func(*message)
}

// take gets what has arrived of a response and was not used; left bytes are still to come.
func (r *response) take(b []byte, left int) (used int, err error) {
	if r.glued == nil {
		if left == 0 {
			return len(b), r.d.decode(b, r.use)
		}
		if len(b)+left <= wholeSize {
			return 0, nil
		}
		n, err := frameSize(b)
		if errors.Is(err, errShort) || err == nil && n == len(b)+left {
			return 0, nil
		}
		if err != nil {
			return 0, err
		}
		r.glued = r.d.newGlued()
	}
	if left > 0 {
		return r.glued.take(b)
	}
	g := r.glued
	r.glued = nil
	err = g.takeAll(b)
	if err == nil {
		err = g.finish(r.use)
	}
	return len(b), err
}

// read decompresses b and has f look at the text, unless somebody had the same bytes before.
func (d *decoder) read(b []byte, f func(*reading)) *reading {
	h := maphash.Bytes(d.seed, b)
	d.mu.Lock()
	r := d.young[h]
	if r == nil {
		if r = d.old[h]; r == nil {
			r = &reading{}
		}
		d.young[h] = r
	}
	d.mu.Unlock()
	r.once.Do(func() {
		if r.text, r.err = d.zstd.DecodeAll(b, nil); r.err != nil {
			r.err = fmt.Errorf("decompressing a map response: %w", r.err)
			return
		}
		f(r)
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.kept += len(r.text) + 256; d.kept > keepText {
			d.young, d.old, d.kept = map[uint64]*reading{}, d.young, 0
		}
	})
	return r
}

// parseList reads text as peers separated by commas and reports whether it is that.
func parseList(text []byte, reg *registry) (list []sighting, ok bool) {
	c := &cursor{b: text}
	for {
		if c.peek() != '{' {
			return nil, false
		}
		s, ref := peer(c, "ID", reg)
		if c.bad || s.id == 0 || ref != 0 {
			return nil, false
		}
		list = append(list, s)
		if c.peek() == 0 {
			return list, c.i == len(text)
		}
		if !c.take(',') {
			return nil, false
		}
	}
}

// parse reads a response; {"":n} among its peers stands for lists[n-1]. It is nil if text is not a response.
func parse(text []byte, lists [][]sighting, reg *registry) *message {
	m := &message{}
	c := &cursor{b: text}
	if c.peek() != '{' {
		return nil
	}
	peers := func(patch bool, idKey string) {
		var list []sighting
		c.array(func() {
			s, ref := peer(c, idKey, reg)
			s.patch = patch
			switch {
			case ref > 0 && ref <= len(lists):
				m.peers = append(m.peers, lists[ref-1])
			case s.id != 0:
				list = append(list, s)
			}
		})
		if len(list) > 0 {
			m.peers = append(m.peers, list)
		}
	}
	c.object(func(key []byte) {
		switch string(key) {
		case "KeepAlive":
			m.keepAlive = string(c.raw()) == "true"
		case "Node":
			m.readSelf(c)
		case "Peers":
			before := len(m.peers)
			peers(false, "ID")
			m.complete = len(m.peers) > before // an empty list says nothing: controlclient.updateStateFromResponse
		case "PeersChanged":
			peers(false, "ID")
		case "PeersChangedPatch":
			peers(true, "NodeID")
		case "PeersRemoved":
			c.array(func() {
				if w := reg.who(nil, c.num()); w != stranger {
					m.removed = append(m.removed, w)
				}
			})
		case "OnlineChange":
			var list []sighting
			c.object(func(id []byte) {
				s := sighting{id: parseInt(id), patch: true, online: boolean(c.raw())}
				s.who = reg.who(nil, s.id)
				list = append(list, s)
			})
			if len(list) > 0 {
				m.peers = append(m.peers, list)
			}
		default:
			c.raw()
		}
	})
	if c.bad || c.peek() != 0 {
		return nil
	}
	return m
}

// readSelf reads the viewer's own node.
func (m *message) readSelf(c *cursor) {
	if c.peek() != '{' {
		c.raw() // null is no node
		return
	}
	m.self = true
	c.object(func(key []byte) {
		switch string(key) {
		case "ID":
			m.selfID = c.num()
		case "KeyExpiry":
			t, err := time.Parse(time.RFC3339, string(c.str()))
			m.gone = err == nil && t.Year() > 1 && t.Before(time.Now())
		default:
			c.raw()
		}
	})
}

// peer reads one peer or patch, whose id is called idKey, or a reference to a list.
func peer(c *cursor, idKey string, reg *registry) (s sighting, ref int) {
	var key []byte
	c.object(func(k []byte) {
		switch string(k) {
		case idKey:
			s.id = c.num()
		case "":
			ref = int(c.num())
		case "Key":
			key = c.str()
		case "Online":
			s.online = boolean(c.raw())
		case "Endpoints":
			s.endpoints = list(c.raw())
		case "AllowedIPs":
			s.routes = list(c.raw())
		default:
			c.raw()
		}
	})
	if idKey != "ID" {
		key = nil // a patch with a key tells a new one
	}
	s.who = reg.who(key, s.id)
	return s, ref
}

// list is b, or nil if it is null.
func list(b []byte) []byte {
	if string(b) == "null" {
		return nil
	}
	return b
}

func boolean(b []byte) int8 {
	switch string(b) {
	case "true":
		return 1
	case "false":
		return -1
	}
	return 0
}

var (
	errZstd  = errors.New("a map response is not compressed with zstd, or is cut off")
	errShort = fmt.Errorf("%w: bytes are missing", errZstd)
)

// frameSize is the number of bytes of the zstd frame that b begins with (RFC 8878, section 3.1), which is found without
// decompressing it. errShort: b does not hold all of it.
func frameSize(b []byte) (int, error) {
	if len(b) < 5 {
		return 0, errShort
	}
	magic := binary.LittleEndian.Uint32(b)
	if magic&0xfffffff0 == 0x184d2a50 { // skippable
		if len(b) < 8 {
			return 0, errShort
		}
		n := 8 + int64(binary.LittleEndian.Uint32(b[4:]))
		if n > int64(len(b)) {
			return 0, errShort
		}
		return int(n), nil
	}
	if magic != 0xfd2fb528 {
		return 0, errZstd
	}
	// The descriptor says how long the header is: window, dictionary, content size.
	desc := b[4]
	single := desc>>5&1 == 1
	n := 5
	if !single {
		n++
	}
	n += []int{0, 1, 2, 4}[desc&3]
	content := []int{0, 2, 4, 8}[desc>>6]
	if content == 0 && single {
		content = 1
	}
	n += content
	for last := false; !last; {
		if n+3 > len(b) {
			return 0, errShort
		}
		h := uint32(b[n]) | uint32(b[n+1])<<8 | uint32(b[n+2])<<16
		last = h&1 == 1
		size := int(h >> 3)
		switch h >> 1 & 3 {
		case 1: // one byte, repeated
			size = 1
		case 3:
			return 0, errZstd
		}
		n += 3 + size
	}
	if desc>>2&1 == 1 { // checksum
		n += 4
	}
	if n > len(b) {
		return 0, errShort
	}
	return n, nil
}
