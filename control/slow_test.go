package control

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"tailscale.com/control/controlbase"
	"tailscale.com/tailcfg"

	"github.com/skein-vpn/skein/state"
)

// slowClient opens a map session by hand and then reads no more of it than it is told to. window is how many bytes of the
// stream it lets the server send, by HTTP/2's flow control.
func (c *client) slowClient(window uint32) (*controlbase.Conn, *http2.Framer) {
	ts := c.ts
	ts.t.Helper()
	nc := ts.noise(c.machine)
	ts.t.Cleanup(func() { nc.Close() })
	var out bytes.Buffer
	out.WriteString(http2.ClientPreface)
	fr := http2.NewFramer(&out, nc)
	ts.must(fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: window}))
	ts.must(fr.WriteWindowUpdate(0, 1<<30))
	body, err := json.Marshal(c.streamRequest())
	ts.must(err)
	var head bytes.Buffer
	enc := hpack.NewEncoder(&head)
	for _, f := range [][2]string{{":method", "POST"}, {":scheme", "https"}, {":authority", "skein"}, {":path", "/machine/map"}} {
		ts.must(enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}))
	}
	ts.must(fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: head.Bytes(), EndHeaders: true}))
	ts.must(fr.WriteData(1, true, body))
	_, err = nc.Write(out.Bytes())
	ts.must(err)
	return nc, fr
}

// chatter makes the node c report endpoints that do not compress, so that sessions have something to send, until stop,
// which is asked after each report, says so.
func (c *client) chatter(stop func() bool) {
	c.ts.t.Helper()
	deadline := time.Now().Add(patience)
	for time.Now().Before(deadline) {
		r := c.lite()
		for range 60 {
			var b [16]byte
			_, _ = rand.Read(b[:])
			b[0] = 0x20
			r.Endpoints = append(r.Endpoints, netip.AddrPortFrom(netip.AddrFrom16(b), 41641))
		}
		c.report(r)
		if stop() {
			return
		}
	}
	c.ts.t.Fatalf("the slow session has not ended within %v", patience)
}

// A client that stops reading does not delay the others, and its session ends once a write has taken too long: whether it
// still reads its connection but gives the stream no credit, or has stopped altogether as a frozen machine does.
func TestSlowReader(t *testing.T) {
	for _, frozen := range []bool{false, true} {
		t.Run(fmt.Sprintf("frozen=%v", frozen), func(t *testing.T) {
			ts := newServer(t, func(o *Options) { o.WriteTimeout = 100 * time.Millisecond })
			ts.sendBuffer.Store(4096)
			slow, fast, chatty := ts.joined("slow"), ts.joined("fast"), ts.joined("chatty")
			window := uint32(1 << 30)
			if !frozen {
				window = 20_000
			}
			_, fr := slow.slowClient(window)
			reset := make(chan struct{})
			if !frozen {
				go func() {
					defer close(reset)
					for {
						f, err := fr.ReadFrame()
						if _, ok := f.(*http2.RSTStreamFrame); ok || err != nil && !errors.As(err, new(http2.StreamError)) {
							return
						}
					}
				}()
			}
			ts.until("slow is online", func(sn *state.Snapshot) bool { return sn.Node(slow.id()).Online })
			s := fast.stream()
			s.first()
			chatty.chatter(func() bool {
				s.patch("the newest endpoints", chatty.id(), func(p *tailcfg.PeerChange) bool { return len(p.Endpoints) > 0 })
				return ts.control.Sessions() == 1
			})
			ts.until("slow is offline", func(sn *state.Snapshot) bool { return !sn.Node(slow.id()).Online })
			if !frozen {
				<-reset
			}
			n := &ts.control.Counters().H2
			counted(t, "stuck or starved", func() bool {
				return frozen && n.Stuck.Load() == 1 || !frozen && n.StarvedStreams.Load() == 1
			})
		})
	}
}

// counted waits until one connection or stream is counted as what, which is done when its handlers have ended.
func counted(t *testing.T, what string, one func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !one(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Errorf("none, or more than one, is counted as %s", what)
			return
		}
	}
}

// A machine that lost its power does not answer, and nothing tells us so. Its session ends when it has been silent for too
// long; that of a client with nothing to say goes on.
func TestSilentClient(t *testing.T) {
	const silent = 2 * time.Second
	ts := newServer(t, func(o *Options) { o.SilentAfter = silent })
	dead, quiet := ts.joined("dead"), ts.joined("quiet")
	dead.slowClient(1 << 30) // sends its request and never again reads or writes
	s := quiet.stream()
	s.first()
	ts.until("both are online", func(sn *state.Snapshot) bool { return sn.Node(dead.id()).Online && sn.Node(quiet.id()).Online })
	s.patch("the dead one is offline", dead.id(), func(p *tailcfg.PeerChange) bool { return p.Online != nil && !*p.Online })
	counted(t, "silent", func() bool { return ts.control.Counters().H2.Silent.Load() == 1 })
	began := time.Now()
	for time.Since(began) < silent+silent/2 { // another ping, and time to be cut for not answering it
		if !s.alive() {
			t.Fatal("the session of the quiet client has ended too")
		}
		time.Sleep(20 * time.Millisecond)
	}
}
