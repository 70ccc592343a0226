package control

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"testing"

	"tailscale.com/control/controlbase"
	"tailscale.com/types/key"
)

// countedConn counts what is written, and fails from a number of writes on.
type countedConn struct {
	net.Conn
	writes, failFrom int
}

var errCounted = errors.New("as asked")

func (c *countedConn) Write(p []byte) (int, error) {
	if c.writes++; c.failFrom > 0 && c.writes >= c.failFrom {
		return 0, errCounted
	}
	return c.Conn.Write(p)
}

// noisePair is both ends of a Noise connection; that of the server gathers what it writes to the counted one.
func noisePair(t *testing.T) (*controlbase.Conn, *noiseConn, *countedConn) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	a, b := net.Pipe()
	t.Cleanup(func() { a.Close(); b.Close() })
	counted := &countedConn{Conn: b}
	below := &gatherConn{Conn: counted}
	serverKey := key.NewMachine()
	client := make(chan *controlbase.Conn, 1)
	go func() {
		c, err := controlbase.Client(ctx, a, key.NewMachine(), serverKey.Public(), 142)
		if err != nil {
			t.Errorf("handshake: %v", err)
		}
		client <- c
	}()
	nc, err := controlbase.Server(ctx, below, serverKey, nil)
	if err != nil {
		t.Fatal(err)
	}
	counted.writes = 0
	return <-client, &noiseConn{nc, below}, counted
}

// What is written arrives, whatever its size, in one write to the socket for each 18 KB.
func TestGather(t *testing.T) {
	client, server, counted := noisePair(t)
	for _, size := range []int{0, 1, maxRecord - 1, maxRecord, maxRecord + 1, 2 * maxRecord, 17_421, 18 << 10, 100_000, 1 << 20} {
		want := make([]byte, size)
		for i := range want {
			want[i] = byte(rand.Uint32())
		}
		counted.writes = 0
		wrote := make(chan error, 1)
		go func() {
			n, err := server.Write(want)
			if n != size && err == nil {
				err = io.ErrShortWrite
			}
			wrote <- err
		}()
		got := make([]byte, size)
		if _, err := io.ReadFull(client, got); err != nil {
			t.Fatal(err)
		}
		if err := <-wrote; err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%d bytes have not arrived: %v", size, err)
		}
		records := (size + maxRecord - 1) / maxRecord
		if most := (records + 3) / 4; counted.writes > most {
			t.Errorf("%d bytes took %d writes, want at most %d", size, counted.writes, most)
		}
	}
}

// An error of the socket is one of the write, whether it comes at its end or in its middle.
func TestGatherFails(t *testing.T) {
	for _, from := range []int{1, 2} {
		client, server, counted := noisePair(t)
		go func() { _, _ = io.Copy(io.Discard, client) }()
		counted.failFrom = from
		if _, err := server.Write(make([]byte, 5*maxRecord)); !errors.Is(err, errCounted) {
			t.Errorf("a write that failed at write %d returned %v", from, err)
		}
	}
}
