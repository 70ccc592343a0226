package sim

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// The scenario abuse: clients that misbehave beside others that do not. What counts is how long changes of the latter take,
// against the row in which nobody misbehaves, and what the server needs meanwhile; none of them may lose its stream.

// abuses are the ways to misbehave.
var abuses = []struct {
	what string
	run  func(*abuser)
}{
	{"nobody misbehaves", func(*abuser) {}},
	{"50 streams are read at 1 KB a second", func(a *abuser) { a.readers(50, 1024, 1) }},
	{"50 clients ask for 20 maps each and read nothing", func(a *abuser) { a.readers(50, 0, 20) }},
	{"50 clients vanish: they never read or answer again", func(a *abuser) { a.readers(50, 0, 0) }},
	{"10 nodes ask for maps in a loop", func(a *abuser) { a.mapLoops(10) }},
	{"5 nodes report other endpoints in a loop", func(a *abuser) { a.reportLoops(5) }},
	{"300 streams for one node", func(a *abuser) { a.manyStreams(3, 100) }},
	{"2000 connections that say nothing", func(a *abuser) { a.silent(2000) }},
	{"handshakes in a loop, 8 at a time", func(a *abuser) { a.handshakes(8) }},
	{"registrations with a bad key in a loop, 8 at a time", func(a *abuser) { a.badKeys(8) }},
	{"requests taken back at once, 8 connections at a time", func(a *abuser) { a.resets(8) }},
}

// abuseFiles is how many connections they need at the most.
const abuseFiles = 2100

// abuser is those who misbehave in one way.
type abuser struct {
	s   *Sim
	ctx context.Context // until when
	wg  sync.WaitGroup

	done, refused atomic.Int64 // things that the server did for them, and that it did not
	err           atomic.Pointer[error]
	rx, tx        atomic.Int64
}

// abuse lets them misbehave in one way after the other.
func (s *Sim) abuse(ctx context.Context) (rows []Row) {
	for _, kind := range abuses {
		if ctx.Err() != nil {
			break
		}
		var p problems
		lost := s.lost.Load()
		m := s.measure(ctx)
		until, stop := context.WithCancel(ctx)
		a := &abuser{s: s, ctx: until}
		kind.run(a)
		list := s.roamFor(ctx, s.o.AbuseTime, &p)
		m.reached()
		u := s.usage()
		stop()
		a.wg.Wait()
		row := m.row(ctx, kind.what, len(list))
		row.ServerCPU, row.MemoryAfter = u.serverCPU-m.u.serverCPU, u.serverMemory // while they were there
		row.PerChange = 0
		row.fanOut(list)
		if n := s.lost.Load() - lost; n > 0 {
			p.add("%d clients that did nothing wrong lost their streams", n)
		}
		row.Missing = p.String()
		row.Note = fmt.Sprintf("%d things done for them, %d not", a.done.Load(), a.refused.Load())
		if err := a.err.Load(); err != nil {
			row.Note += fmt.Sprintf(", such as: %v", *err)
		}
		rows = append(rows, row)
	}
	return rows
}

// count notes what came of one thing.
func (a *abuser) count(err error) {
	if err == nil {
		a.done.Add(1)
	} else if a.ctx.Err() == nil {
		a.refused.Add(1)
		a.err.Store(&err)
	}
}

// loop runs n goroutines that do the same thing again and again, and rest for a moment when it fails.
func (a *abuser) loop(n int, f func() error) {
	for range n {
		a.wg.Go(func() {
			for a.ctx.Err() == nil {
				err := f()
				a.count(err)
				if err != nil {
					_ = sleep(a.ctx, 10*time.Millisecond)
				}
			}
		})
	}
}

// throttled is a connection that is read slowly, or no more, once slow is set.
type throttled struct {
	io.ReadWriteCloser
	ctx  context.Context
	rate int // bytes in a second; 0: none
	slow atomic.Bool
}

func (t *throttled) Read(p []byte) (int, error) {
	if t.slow.Load() {
		if t.rate == 0 {
			<-t.ctx.Done()
			return 0, t.ctx.Err()
		}
		p = p[:min(len(p), t.rate/10)]
		if err := sleep(t.ctx, 100*time.Millisecond); err != nil {
			return 0, err
		}
	}
	return t.ReadWriteCloser.Read(p)
}

// connect opens a connection for a client; it is read until it ends or they stop.
func (a *abuser) connect(c *client) (*h2conn, *throttled, error) {
	nc, err := a.s.target.dial(a.ctx, c.machine, &a.rx, &a.tx)
	if err != nil {
		return nil, nil, err
	}
	t := &throttled{ReadWriteCloser: nc, ctx: a.ctx}
	h, err := newH2(t, a.s.target.url.Host)
	if err != nil {
		nc.Close()
		return nil, nil, err
	}
	stop := context.AfterFunc(a.ctx, h.close)
	a.wg.Go(func() {
		defer stop()
		_ = h.loop()
	})
	return h, t, nil
}

// join registers a node, of which nobody is told because it has no disco key yet.
func (a *abuser) join() (*client, *h2conn, *throttled, error) {
	c := a.s.newExtra(a.s.o.Keys[0], false)
	h, t, err := a.connect(c)
	if err != nil {
		return nil, nil, nil, err
	}
	in := make(chan struct{})
	if err := c.register(h, time.Time{}, func() error { close(in); return nil }); err != nil {
		return nil, nil, nil, err
	}
	select {
	case <-in:
		return c, h, t, nil
	case <-a.ctx.Done():
	case <-time.After(handshakeTimeout):
	}
	return nil, nil, nil, errors.New("a registration was not answered")
}

// nodes joins n nodes and lets each do something.
func (a *abuser) nodes(n int, f func(*client, *h2conn, *throttled)) {
	for range n {
		a.wg.Go(func() {
			c, h, t, err := a.join()
			a.count(err)
			if err == nil {
				f(c, h, t)
			}
		})
	}
}

// swallow takes responses and does not look at them.
type swallow struct{}

func (swallow) take(b []byte, _ int) (int, error) { return len(b), nil }

// mapRequest asks for the map of a client; done is called when the response is complete.
func (a *abuser) mapRequest(c *client, h *h2conn, stream bool, done func(status int, err error)) error {
	body, err := json.Marshal(&tailcfg.MapRequest{
		Version: tailcfg.CurrentCapabilityVersion, Compress: "zstd", KeepAlive: true, Stream: stream, ReadOnly: !stream, NodeKey: c.node,
	})
	if err != nil {
		return err
	}
	return h.post("/machine/map", c.lbHeader(), body, &exchange{sink: swallow{}, done: func(status int, _ []byte, err error) error {
		if done != nil {
			done(status, err)
		}
		return nil
	}})
}

// readers are n nodes with a stream that they read at the rate; before that they ask for more maps.
func (a *abuser) readers(n, rate, more int) {
	a.nodes(n, func(c *client, h *h2conn, t *throttled) {
		if more == 0 { // it vanishes while its stream is open and it has its map
			a.count(a.mapRequest(c, h, true, nil))
			_ = sleep(a.ctx, time.Second)
			t.rate = rate
			t.slow.Store(true)
			return
		}
		t.rate = rate
		t.slow.Store(true)
		a.count(a.mapRequest(c, h, true, nil))
		for range more - 1 {
			a.count(a.mapRequest(c, h, false, nil))
		}
	})
}

// mapLoops are n nodes that ask for their map again as soon as they have it.
func (a *abuser) mapLoops(n int) {
	a.nodes(n, func(c *client, h *h2conn, _ *throttled) {
		for a.ctx.Err() == nil {
			a.count(a.wait(func(answer func(error)) error {
				return a.mapRequest(c, h, false, func(status int, err error) {
					if err == nil && status != 200 {
						err = fmt.Errorf("status %d", status)
					}
					answer(err)
				})
			}))
		}
	})
}

// wait waits for the answer to what f asks.
func (a *abuser) wait(f func(answer func(error)) error) error {
	got := make(chan error, 1)
	if err := f(func(err error) { got <- err }); err != nil {
		_ = sleep(a.ctx, 10*time.Millisecond)
		return err
	}
	select {
	case err := <-got:
		return err
	case <-a.ctx.Done():
		return a.ctx.Err()
	}
}

// reportLoops are n nodes that have other endpoints in each report, which all others are to be told.
func (a *abuser) reportLoops(n int) {
	a.nodes(n, func(c *client, h *h2conn, _ *throttled) {
		for a.ctx.Err() == nil {
			a.count(a.wait(func(answer func(error)) error {
				c.mu.Lock()
				c.version++
				c.mu.Unlock()
				return c.report(h, func(err error) error { answer(err); return nil })
			}))
		}
	})
}

// manyStreams are connections for one node, each with many streams.
func (a *abuser) manyStreams(conns, streams int) {
	a.nodes(1, func(c *client, h *h2conn, _ *throttled) {
		for i := range conns {
			if i > 0 {
				var err error
				if h, _, err = a.connect(c); err != nil {
					a.count(err)
					continue
				}
			}
			for range streams {
				a.count(a.mapRequest(c, h, true, func(status int, err error) {
					if err == nil && status != 200 {
						err = fmt.Errorf("status %d", status)
					}
					if err != nil {
						a.count(err)
					}
				}))
			}
		}
	})
}

// silent are connections that never say anything; one that is closed is opened again.
func (a *abuser) silent(n int) {
	for range n {
		a.wg.Go(func() {
			for a.ctx.Err() == nil {
				nc, err := new(net.Dialer).DialContext(a.ctx, "tcp", a.s.target.addr)
				a.count(err)
				if err != nil {
					_ = sleep(a.ctx, time.Second)
					continue
				}
				stop := context.AfterFunc(a.ctx, func() { nc.Close() })
				_, _ = io.Copy(io.Discard, nc)
				stop()
				nc.Close()
			}
		})
	}
}

// handshakes connects and closes.
func (a *abuser) handshakes(n int) {
	a.loop(n, func() error {
		nc, err := a.s.target.dial(a.ctx, key.NewMachine(), &a.rx, &a.tx)
		if err == nil {
			nc.Close()
		}
		return err
	})
}

// badKeys registers with a key that does not exist.
func (a *abuser) badKeys(n int) {
	a.loop(n, func() error {
		c := a.s.newExtra(fmt.Sprintf("skein-key-%d", rand.Uint64()), false)
		nc, err := a.s.target.dial(a.ctx, c.machine, &a.rx, &a.tx)
		if err != nil {
			return err
		}
		h, err := newH2(nc, a.s.target.url.Host)
		if err != nil {
			nc.Close()
			return err
		}
		defer context.AfterFunc(a.ctx, h.close)()
		if err := c.register(h, time.Time{}, func() error { return errors.New("a bad key was accepted") }); err != nil {
			nc.Close()
			return err
		}
		err = h.loop() // ends with the refusal
		if re := (*refusal)(nil); errors.As(err, &re) {
			return nil
		}
		return err
	})
}

// resets opens requests and takes them back at once, until the connection is cut (CVE-2023-44487).
func (a *abuser) resets(n int) {
	a.loop(n, func() error {
		nc, err := a.s.target.dial(a.ctx, key.NewMachine(), &a.rx, &a.tx)
		if err != nil {
			return err
		}
		defer nc.Close()
		defer context.AfterFunc(a.ctx, func() { nc.Close() })()
		if _, err := newH2(nc, a.s.target.url.Host); err != nil {
			return err
		}
		var head headerBlock
		for _, f := range [][2]string{{":method", "POST"}, {":scheme", "https"}, {":authority", "x"}, {":path", "/machine/map"}} {
			head.add(f[0], f[1])
		}
		a.wg.Go(func() {
			_, _ = io.Copy(io.Discard, nc)
			nc.Close()
		})
		for id := uint32(1); ; {
			var b []byte
			for range 20 {
				b = appendFrame(b, http2.FrameHeaders, http2.FlagHeadersEndHeaders, id, head.b)
				b = appendFrame(b, http2.FrameRSTStream, 0, id, binary.BigEndian.AppendUint32(nil, uint32(http2.ErrCodeCancel)))
				id += 2
			}
			if _, err := nc.Write(b); err != nil {
				return nil //nolint:nilerr // cut, as it should be
			}
			a.done.Add(20)
		}
	})
}

// headerBlock is header fields as HPACK writes them without a table.
type headerBlock struct{ b []byte }

func (h *headerBlock) Write(p []byte) (int, error) {
	h.b = append(h.b, p...)
	return len(p), nil
}

func (h *headerBlock) add(name, value string) {
	_ = hpack.NewEncoder(h).WriteField(hpack.HeaderField{Name: name, Value: value, Sensitive: true})
}
