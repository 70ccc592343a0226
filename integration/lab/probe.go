package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// Do runs f with the calling thread in the host's network namespace and returns its error. Sockets
// that f itself opens stay in the namespace wherever they are used later; goroutines that f starts
// are outside. f must not end the test.
func (h *Host) Do(f func() error) error { return h.ns.do(f) }

// Dial connects from the host. address must have a literal IP address: names would be looked up
// outside.
func (h *Host) Dial(ctx context.Context, network, address string) (c net.Conn, err error) {
	if _, err := netip.ParseAddrPort(address); err != nil {
		return nil, fmt.Errorf("lab: dial from %s: %w", h.name, err)
	}
	err = h.Do(func() (err error) {
		c, err = new(net.Dialer).DialContext(ctx, network, address)
		return err
	})
	return c, err
}

// Listen listens on the host.
func (h *Host) Listen(network, address string) (ln net.Listener, err error) {
	err = h.Do(func() (err error) {
		ln, err = net.Listen(network, address)
		return err
	})
	return ln, err
}

// ListenPacket opens a packet socket on the host.
func (h *Host) ListenPacket(network, address string) (pc net.PacketConn, err error) {
	err = h.Do(func() (err error) {
		pc, err = net.ListenPacket(network, address)
		return err
	})
	return pc, err
}

// ServeHTTP serves handler on the host at address until the test ends. A nil handler answers every
// request with "hello from NAME, you are IP", which tells a test whom it reached, and as whom.
func (h *Host) ServeHTTP(address string, handler http.Handler) {
	h.l.t.Helper()
	if handler == nil {
		handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			host, _, _ := net.SplitHostPort(r.RemoteAddr)
			fmt.Fprintf(w, "hello from %s, you are %s\n", h.name, host)
		})
	}
	ln, err := h.Listen("tcp", address)
	if err != nil {
		h.l.t.Fatalf("lab: HTTP server on %s: %v", h.name, err)
	}
	srv := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(ln) }()
	h.l.t.Cleanup(func() { srv.Close(); <-done })
}

// Get fetches an http URL with a literal IP address from the host and returns the body. An answer
// other than 200 is an error.
func (h *Host) Get(timeout time.Duration, url string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	tr := &http.Transport{DialContext: h.Dial, DisableKeepAlives: true}
	res, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		return "", err
	}
	if res.StatusCode != http.StatusOK {
		return string(body), fmt.Errorf("%s: %s", url, res.Status)
	}
	return string(body), nil
}

var pingID atomic.Uint32

// Ping sends ICMP echo requests to addr, five a second, until one is answered or timeout has passed,
// and returns the answered one's round trip.
func (h *Host) Ping(timeout time.Duration, addr netip.Addr) (time.Duration, error) {
	p, err := h.pinger(addr)
	if err != nil {
		return 0, err
	}
	defer p.conn.Close()
	deadline := time.Now().Add(timeout)
	for seq := 1; ; seq++ {
		sent := time.Now()
		last := p.send(seq)
		until := sent.Add(200 * time.Millisecond)
		if until.After(deadline) {
			until = deadline
		}
		got, err := p.receive(until)
		if err == nil && got <= seq && got > 0 {
			return time.Since(sent) + time.Duration(seq-got)*200*time.Millisecond, nil
		}
		if time.Now().After(deadline) {
			if last == nil {
				last = errors.New("no answer")
			}
			return 0, fmt.Errorf("ping %s from %s: %w within %v", addr, h.name, last, timeout)
		}
		time.Sleep(time.Until(until))
	}
}

type pinger struct {
	conn net.PacketConn
	dst  net.Addr
	id   int
	v6   bool
}

func (h *Host) pinger(addr netip.Addr) (*pinger, error) {
	network, any := "ip4:icmp", "0.0.0.0"
	if addr.Is6() {
		network, any = "ip6:ipv6-icmp", "::"
	}
	p := &pinger{dst: &net.IPAddr{IP: addr.AsSlice()}, id: int(pingID.Add(1) & 0xffff), v6: addr.Is6()}
	err := h.Do(func() (err error) {
		p.conn, err = icmp.ListenPacket(network, any)
		return err
	})
	return p, err
}

func (p *pinger) send(seq int) error {
	m := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: p.id, Seq: seq, Data: []byte("skein network lab")}}
	if p.v6 {
		m.Type = ipv6.ICMPTypeEchoRequest
	}
	b, err := m.Marshal(nil)
	if err != nil {
		return err
	}
	_, err = p.conn.WriteTo(b, p.dst)
	return err
}

// receive returns the sequence number of the first answer to this pinger before the deadline.
func (p *pinger) receive(deadline time.Time) (seq int, err error) {
	if err := p.conn.SetReadDeadline(deadline); err != nil {
		return 0, err
	}
	proto, want := 1, icmp.Type(ipv4.ICMPTypeEchoReply)
	if p.v6 {
		proto, want = 58, ipv6.ICMPTypeEchoReply
	}
	buf := make([]byte, 1500)
	for {
		n, from, err := p.conn.ReadFrom(buf)
		if err != nil {
			return 0, err
		}
		m, err := icmp.ParseMessage(proto, buf[:n])
		if err != nil || m.Type != want || from.String() != p.dst.String() {
			continue
		}
		if e, ok := m.Body.(*icmp.Echo); ok && e.ID == p.id {
			return e.Seq, nil
		}
	}
}

// Beat is a stream of pings to one address, to see whether and how long traffic stopped.
type Beat struct {
	stop chan struct{}
	done chan struct{}
	p    *pinger
	// Owned by the goroutine until done is closed.
	answered []time.Time // when each answer came
	held     []span      // when the pings themselves were late, because the machine had no time for them
	sent     int
	started  time.Time
}

type span struct{ from, to time.Time }

// overlap is how much of the time between from and to the span covers.
func (s span) overlap(from, to time.Time) time.Duration {
	if s.from.After(from) {
		from = s.from
	}
	if s.to.Before(to) {
		to = s.to
	}
	return max(0, to.Sub(from))
}

// BeatEvery is the time between two pings of a Beat, and so the resolution of its gaps.
const BeatEvery = 50 * time.Millisecond

// Beat starts pinging addr every 50 ms. Stop must be called.
func (h *Host) Beat(addr netip.Addr) *Beat {
	h.l.t.Helper()
	p, err := h.pinger(addr)
	if err != nil {
		h.l.t.Fatalf("lab: ping %s from %s: %v", addr, h.name, err)
	}
	b := &Beat{stop: make(chan struct{}), done: make(chan struct{}), p: p, started: time.Now()}
	go b.run()
	return b
}

func (b *Beat) run() {
	defer close(b.done)
	defer b.p.conn.Close()
	next := time.Now()
	for {
		select {
		case <-b.stop:
			return
		default:
		}
		if now := time.Now(); now.Sub(next) > BeatEvery {
			b.held = append(b.held, span{next, now})
			next = now
		}
		b.sent++
		_ = b.p.send(b.sent) // unreachable counts like no answer
		next = next.Add(BeatEvery)
		for {
			if _, err := b.p.receive(next); err != nil {
				break
			}
			b.answered = append(b.answered, time.Now())
		}
	}
}

// Stop ends the pings and returns how many were sent and answered, and the longest time without an
// answer, counted from the start to the end but for the time in which no ping was sent because the
// machine was busy.
func (b *Beat) Stop() (sent, answered int, longestGap time.Duration) {
	close(b.stop)
	<-b.done
	return b.sent, len(b.answered), longest(b.started, append(b.answered, time.Now()), b.held)
}

// longest is the longest time from one of the given times to the next, without what held covers.
func longest(last time.Time, times []time.Time, held []span) (gap time.Duration) {
	for _, at := range times {
		d := at.Sub(last)
		for _, h := range held {
			d -= h.overlap(last, at)
		}
		gap = max(gap, d)
		last = at
	}
	return gap
}

// childEnv asks a re-executed test binary to do one thing in the namespaces it was started in.
const childEnv = "SKEIN_LAB_CHILD"

func init() {
	if os.Getenv(childEnv) == "lookup" {
		childLookup()
	}
}

// childLookup resolves the name in the last argument with the system's resolver settings, prints
// JSON and exits.
func childLookup() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	name := os.Args[len(os.Args)-1]
	addrs, err := (&net.Resolver{PreferGo: true}).LookupHost(ctx, name)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	_ = json.NewEncoder(os.Stdout).Encode(addrs)
	os.Exit(0)
}

// Lookup resolves name on the host the way a program there does, by its resolv.conf.
func (h *Host) Lookup(name string) ([]netip.Addr, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	res := h.run(ctx, []string{childEnv + "=lookup"}, self, name)
	if res.Err != nil {
		return nil, fmt.Errorf("lookup %s on %s: %s", name, h.name, strings.TrimSpace(res.Stderr))
	}
	var addrs []netip.Addr
	if err := json.Unmarshal([]byte(res.Stdout), &addrs); err != nil {
		return nil, err
	}
	return addrs, nil
}

// MappedAddr asks an echo on each of the given hosts under which address and port it sees one UDP
// socket of h. Behind an EasyNAT all answers are equal, behind a HardNAT they differ.
func (h *Host) MappedAddr(port uint16, via ...*Host) ([]netip.AddrPort, error) {
	pc, err := h.ListenPacket("udp4", fmt.Sprintf("0.0.0.0:%d", port))
	if err != nil {
		return nil, err
	}
	defer pc.Close()
	var seen []netip.AddrPort
	for _, v := range via {
		ap, err := mappedAt(pc, v)
		if err != nil {
			return nil, fmt.Errorf("from %s via %s: %w", h.name, v.name, err)
		}
		seen = append(seen, ap)
	}
	return seen, nil
}

func mappedAt(pc net.PacketConn, v *Host) (netip.AddrPort, error) {
	echo, err := v.ListenPacket("udp4", "0.0.0.0:0")
	if err != nil {
		return netip.AddrPort{}, err
	}
	defer echo.Close()
	to := net.UDPAddrFromAddrPort(netip.AddrPortFrom(v.outer, uint16(echo.LocalAddr().(*net.UDPAddr).Port)))
	if _, err := pc.WriteTo([]byte("who am I"), to); err != nil {
		return netip.AddrPort{}, err
	}
	deadline := time.Now().Add(2 * time.Second)
	if err := errors.Join(echo.SetReadDeadline(deadline), pc.SetReadDeadline(deadline)); err != nil {
		return netip.AddrPort{}, err
	}
	buf := make([]byte, 100)
	_, from, err := echo.ReadFrom(buf)
	if err != nil {
		return netip.AddrPort{}, err
	}
	if _, err := echo.WriteTo([]byte("you"), from); err != nil {
		return netip.AddrPort{}, err
	}
	if _, _, err := pc.ReadFrom(buf); err != nil {
		return netip.AddrPort{}, fmt.Errorf("no way back: %w", err)
	}
	return from.(*net.UDPAddr).AddrPort(), nil
}
