package sim

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
	"tailscale.com/util/zstdframe"
)

func sealed(s string) []byte {
	return zstdframe.AppendEncode(nil, []byte(s), zstdframe.EncoderLevel(zstd.SpeedFastest))
}

// decoded reads a response and returns what must outlive it.
func decoded(t *testing.T, d *decoder, body []byte) (m message, all []sighting) {
	t.Helper()
	err := d.decode(body, func(got *message) {
		m = *got
		for _, l := range got.peers {
			for _, s := range l {
				s.endpoints, s.routes = bytes.Clone(s.endpoints), bytes.Clone(s.routes)
				all = append(all, s)
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return m, all
}

func TestDecodeKinds(t *testing.T) {
	reg := newRegistry()
	k := key.NewNode().Public()
	reg.add(k.String(), 4)
	d := newDecoder(reg)
	defer d.close()

	if m, _ := decoded(t, d, sealed(`{"KeepAlive":true}`)); !m.keepAlive {
		t.Error("a keep-alive is not known as one")
	}
	first, err := json.Marshal(&tailcfg.MapResponse{
		Node:         &tailcfg.Node{ID: 9, KeyExpiry: time.Now().Add(time.Hour)},
		Peers:        []*tailcfg.Node{{ID: 7, Key: k}, {ID: 8, Key: key.NewNode().Public()}},
		PacketFilter: tailcfg.FilterAllowAll,
	})
	if err != nil {
		t.Fatal(err)
	}
	m, all := decoded(t, d, sealed(string(first)))
	if !m.self || m.selfID != 9 || m.gone || !m.complete || len(all) != 2 || all[0].who != 4 || all[1].who != stranger || all[0].patch {
		t.Errorf("first map: %+v %+v", m, all)
	}
	m, all = decoded(t, d, sealed(`{"PeersChangedPatch":[{"NodeID":7,"Endpoints":["198.18.0.1:1"],"Online":false}],"PeersRemoved":[7,8],"OnlineChange":{"7":true}}`))
	if len(all) != 2 || !all[0].patch || all[0].who != 4 || all[0].online != -1 || string(all[0].endpoints) != `["198.18.0.1:1"]` || all[1].online != 1 {
		t.Errorf("patch: %+v", all)
	}
	if !reflect.DeepEqual(m.removed, []int32{4}) || m.complete {
		t.Errorf("patch: %+v", m)
	}
	if m, _ := decoded(t, d, sealed(`{"Node":{"ID":9,"KeyExpiry":"2020-01-01T00:00:00Z"},"Peers":[],"PacketFilter":null}`)); !m.gone || m.complete {
		t.Errorf("expired: %+v", m)
	}
	for _, bad := range []string{`[]`, `{"Peers":[`, `{"Peers":[{"ID":1}`, `{"a":1}{"b":2}`, ``} {
		if err := d.decode(sealed(bad), func(*message) {}); err == nil {
			t.Errorf("%q was read as a response", bad)
		}
	}
	if err := d.decode([]byte(`{"KeepAlive":true}`), func(*message) {}); err == nil {
		t.Error("a response that is not compressed was read")
	}
}

// TestGlued checks that a full map in parts says the same as in one piece, and that its blocks are read once.
func TestGlued(t *testing.T) {
	reg := newRegistry()
	var blocks []string
	id := 0
	for range 12 {
		var peers []string
		for range 64 {
			id++
			n := &tailcfg.Node{ID: tailcfg.NodeID(id), Key: key.NewNode().Public(), DiscoKey: key.NewDisco().Public(), Name: fmt.Sprintf("n-%d.x.", id)}
			if id%3 > 0 {
				reg.add(n.Key.String(), int32(id))
			}
			b, err := json.Marshal(n)
			if err != nil {
				t.Fatal(err)
			}
			peers = append(peers, string(b))
		}
		blocks = append(blocks, strings.Join(peers, ","))
	}
	head, tail := `{"Node":{"ID":1},"Peers":[`, `],"PeersRemoved":[1]}`
	glued := sealed(head)
	for i, b := range blocks {
		if i > 0 {
			glued = append(glued, sealed(",")...)
		}
		glued = append(glued, sealed(b)...)
	}
	glued = append(glued, sealed(tail)...)
	if len(glued) < wholeSize {
		t.Fatalf("the map of %d bytes is too small to be read in parts", len(glued))
	}
	d := newDecoder(reg)
	defer d.close()
	_, want := decoded(t, d, sealed(head+strings.Join(blocks, ",")+tail))
	m, got := decoded(t, d, glued)
	if len(want) != id || !reflect.DeepEqual(got, want) || !m.complete || !m.self {
		t.Fatalf("in parts: %d peers, in one piece: %d; %+v", len(got), len(want), m)
	}
	before := len(d.young) + len(d.old)
	decoded(t, d, append(sealed(`{"Node":{"ID":2},"Peers":[`), glued[len(sealed(head)):]...))
	if after := len(d.young) + len(d.old); after != before {
		t.Errorf("blocks were read again: %d readings, then %d", before, after)
	}
}

// TestForgetting checks that the readings that are kept are bounded.
func TestForgetting(t *testing.T) {
	d := newDecoder(newRegistry())
	defer d.close()
	text := strings.Repeat(" ", 1<<20)
	for i := range 200 {
		decoded(t, d, sealed(fmt.Sprintf(`{"Domain":"%d"}%s`, i, text)))
	}
	if n := len(d.young) + len(d.old); n > 2*keepText>>20+2 {
		t.Errorf("%d readings of 1 MB are kept", n)
	}
}

// TestArriving feeds responses in pieces of all sizes: what is said must not depend on it.
func TestArriving(t *testing.T) {
	reg := newRegistry()
	d := newDecoder(reg)
	defer d.close()
	var peers []string
	for i := range 3000 {
		k := key.NewNode().Public()
		reg.add(k.String(), int32(i))
		peers = append(peers, fmt.Sprintf(`{"ID":%d,"Key":%q,"DiscoKey":%q}`, i+1, k, key.NewDisco().Public()))
	}
	glued := sealed(`{"Node":{"ID":1},"Peers":[` + peers[0])
	for p := range slices.Chunk(peers[1:], 64) {
		glued = append(append(glued, sealed(",")...), sealed(strings.Join(p, ","))...)
	}
	glued = append(glued, sealed("]}")...)
	for name, body := range map[string][]byte{
		"glued":       glued,
		"large":       sealed(`{"Node":{"ID":1},"Peers":[` + strings.Join(peers, ",") + "]}"),
		"small":       sealed(`{"Node":{"ID":1},"Peers":[{"ID":1}]}`),
		"small parts": append(sealed(`{"Node":{"ID":1},"Peers":[`), sealed(`{"ID":1}]}`)...),
	} {
		_, want := decoded(t, d, body)
		for _, step := range []int{1, 7, 500, 4077, 16384, len(body)} {
			if step == 1 && len(body) > 1000 {
				continue
			}
			var got []sighting
			messages, most := 0, 0
			r := response{d: d, use: func(m *message) {
				messages++
				for _, l := range m.peers {
					got = append(got, l...)
				}
			}}
			stream := append(binary.LittleEndian.AppendUint32(nil, uint32(len(body))), body...)
			stream = append(stream, stream...)
			var a assembler
			for from := 0; from < len(stream); from += step {
				n := min(step, len(stream)-from)
				if err := a.read(bytes.NewReader(stream[from:from+n]), n, &r); err != nil {
					t.Fatalf("%s in steps of %d: %v", name, step, err)
				}
				if a.body != nil {
					most = max(most, len(*a.body))
				}
			}
			if messages != 2 || len(got) != 2*len(want) {
				t.Fatalf("%s in steps of %d: %d messages, %d peers, want %d", name, step, messages, len(got), 2*len(want))
			}
			for i, s := range got {
				if w := want[i%len(want)]; s.id != w.id || s.who != w.who {
					t.Fatalf("%s in steps of %d: peer %d is %+v, want %+v", name, step, i, s, w)
				}
			}
			if name == "glued" && most > len(body)/4 && step < len(body)/8 {
				t.Errorf("in steps of %d, %d of %d bytes were held", step, most, len(body))
			}
		}
	}
}

// FuzzFrameSize checks that what is cut decodes to the same as the whole, and that nothing panics.
func FuzzFrameSize(f *testing.F) {
	z, err := zstd.NewReader(nil, zstd.WithDecoderMaxMemory(1<<20), zstd.WithDecoderConcurrency(1))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(sealed("a"))
	f.Add(append(sealed(""), sealed(strings.Repeat("abc", 1000))...))
	f.Add([]byte{0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 7})
	f.Add([]byte{0x28, 0xb5, 0x2f, 0xfd, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		whole, err := z.DecodeAll(b, nil)
		if err != nil {
			_, _ = frameSize(b)
			return
		}
		var got []byte
		for len(b) > 0 {
			n, err := frameSize(b)
			if err != nil {
				t.Fatalf("what decodes is not understood: %v", err)
			}
			if _, err := frameSize(b[:n-1]); !errors.Is(err, errShort) {
				t.Fatalf("a byte is missing, and the error is %v", err)
			}
			if got, err = z.DecodeAll(b[:n], got); err != nil {
				t.Fatalf("a part of what decodes does not decode: %v", err)
			}
			b = b[n:]
		}
		if !bytes.Equal(got, whole) {
			t.Fatal("the parts decode to something else")
		}
	})
}

// FuzzParse checks that no response makes the reader panic.
func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"Node":{"ID":1},"Peers":[{"":1},{"ID":2,"Key":"k","AllowedIPs":null}],"OnlineChange":{"3":true},"PeersRemoved":[1,"x"]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		reg := newRegistry()
		reg.add("k", 0)
		parse(b, [][]sighting{{{id: 1}}}, reg)
		parseList(b, reg)
	})
}
