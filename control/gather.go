package control

import (
	"bufio"
	"net"
	"net/http"
	"sync"

	"tailscale.com/control/controlbase"
)

// Noise records have at most 4 KB, and controlbase writes each to the socket as it makes it. A full map has fifty: written
// so, they cost the kernel more than making them costs us.

// maxRecord is how many bytes go into one record: 4,096 with a header of 3 and a tag of 16.
const maxRecord = 4096 - 3 - 16

// noiseConn is a Noise connection that hands what is longer than a record to the socket in one piece. It is written by one
// goroutine at a time (h2.Serve sees to it).
type noiseConn struct {
	*controlbase.Conn
	below *gatherConn
}

func (c *noiseConn) Write(p []byte) (int, error) {
	if len(p) <= maxRecord {
		return c.Conn.Write(p)
	}
	c.below.buf = gatherPool.Get().(*gathered)
	n, err := c.Conn.Write(p)
	if flushed := c.below.flush(); err == nil && flushed != nil {
		n, err = 0, flushed
	}
	gatherPool.Put(c.below.buf)
	c.below.buf = nil
	return n, err
}

// gatherConn is the connection below Noise.
type gatherConn struct {
	net.Conn
	buf *gathered // what is written goes here, unless nil
}

// gathered is enough for the largest write of h2 as records.
type gathered struct {
	n int
	b [18 << 10]byte
}

var gatherPool = sync.Pool{New: func() any { return new(gathered) }}

func (c *gatherConn) Write(p []byte) (int, error) {
	g := c.buf
	if g == nil {
		return c.Conn.Write(p)
	}
	if len(p) > len(g.b)-g.n {
		if err := c.flush(); err != nil {
			return 0, err
		}
	}
	if len(p) > len(g.b) {
		return c.Conn.Write(p)
	}
	g.n += copy(g.b[g.n:], p)
	return len(p), nil
}

func (c *gatherConn) flush() error {
	p := c.buf.b[:c.buf.n]
	c.buf.n = 0
	if len(p) == 0 {
		return nil
	}
	_, err := c.Conn.Write(p)
	return err
}

// gatherer is the ResponseWriter of an upgrade whose connection gathers.
type gatherer struct {
	http.ResponseWriter
	http.Hijacker
	conn *gatherConn // once it is hijacked
}

func (g *gatherer) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	nc, rw, err := g.Hijacker.Hijack()
	if err != nil {
		return nil, nil, err
	}
	g.conn = &gatherConn{Conn: nc}
	return g.conn, rw, nil
}
