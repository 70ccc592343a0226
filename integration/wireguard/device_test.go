package wireguard

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.zx2c4.com/wireguard/conn"
	wg "golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/netstack"
	"tailscale.com/types/key"
)

// echoPort answers on every address of a device, by TCP and UDP.
const echoPort = 7

// device is a stock WireGuard device with a network stack in user space, which echoes on all its addresses.
type device struct {
	wg    *wg.Device
	net   *netstack.Net
	peers map[key.NodePublic]bool // configured so far

	// heard counts what came in for each address: datagrams and connections.
	heard map[netip.Addr]*atomic.Int64

	stop []io.Closer
	wait sync.WaitGroup
}

// newDevice starts a device without a key and without peers.
func newDevice(t *testing.T, addrs []netip.Addr) *device {
	t.Helper()
	tun, stack, err := netstack.CreateNetTUN(addrs, nil, 1280)
	if err != nil {
		t.Fatal(err)
	}
	d := &device{
		wg: wg.NewDevice(tun, conn.NewDefaultBind(), wg.NewLogger(wg.LogLevelSilent, "")), net: stack,
		peers: map[key.NodePublic]bool{}, heard: map[netip.Addr]*atomic.Int64{},
	}
	t.Cleanup(func() {
		for _, c := range d.stop {
			c.Close()
		}
		d.wait.Wait()
		d.wg.Close()
	})
	if err := d.wg.Up(); err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		d.echo(t, netip.AddrPortFrom(a, echoPort))
	}
	return d
}

// echo answers at addr with what comes in.
func (d *device) echo(t *testing.T, addr netip.AddrPort) {
	t.Helper()
	heard := &atomic.Int64{}
	d.heard[addr.Addr()] = heard
	l, err := d.net.ListenTCPAddrPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	u, err := d.net.ListenUDPAddrPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	d.stop = append(d.stop, l, u)
	d.wait.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			heard.Add(1)
			d.wait.Go(func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(patience))
				_, _ = io.Copy(c, c)
			})
		}
	})
	d.wait.Go(func() {
		b := make([]byte, 2000)
		for {
			n, from, err := u.ReadFrom(b)
			if err != nil {
				return
			}
			heard.Add(1)
			_, _ = u.WriteTo(b[:n], from)
		}
	})
}

// configure makes the device what a network map says: its own private key, and each peer's public key, allowed IPs and
// endpoint. Peers that are gone from the map go.
func (d *device) configure(self key.NodePrivate, peers []*peerEntry) error {
	var b strings.Builder
	fmt.Fprintf(&b, "private_key=%s\n", self.UntypedHexString())
	next := map[key.NodePublic]bool{}
	for _, p := range peers {
		next[p.Key] = true
	}
	for k := range d.peers {
		if !next[k] {
			fmt.Fprintf(&b, "public_key=%s\nremove=true\n", k.UntypedHexString())
		}
	}
	for _, p := range peers {
		fmt.Fprintf(&b, "public_key=%s\nreplace_allowed_ips=true\n", p.Key.UntypedHexString())
		for _, a := range p.AllowedIPs {
			fmt.Fprintf(&b, "allowed_ip=%s\n", a)
		}
		if len(p.Endpoints) > 0 {
			fmt.Fprintf(&b, "endpoint=%s\n", p.Endpoints[0])
		}
	}
	d.peers = next
	return d.wg.IpcSet(b.String())
}

// setting is the values of a key in the device's configuration.
func (d *device) setting(name string) (out []string) {
	all, err := d.wg.IpcGet()
	if err != nil {
		return nil
	}
	for line := range strings.Lines(all) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), name+"="); ok {
			out = append(out, v)
		}
	}
	return out
}

// port is the UDP port that the device listens on.
func (d *device) port() uint16 {
	v := d.setting("listen_port")
	if len(v) != 1 {
		return 0
	}
	p, _ := strconv.ParseUint(v[0], 10, 16)
	return uint16(p)
}

// has reports whether the device has this peer.
func (d *device) has(k key.NodePublic) bool {
	for _, v := range d.setting("public_key") {
		if v == k.UntypedHexString() {
			return true
		}
	}
	return false
}

// rebind moves the device to another port.
func (d *device) rebind(t *testing.T) {
	t.Helper()
	c, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := c.LocalAddr().(*net.UDPAddr).Port
	c.Close()
	if err := d.wg.IpcSet(fmt.Sprintf("listen_port=%d\n", port)); err != nil {
		t.Fatal(err)
	}
}

// reach passes TCP, UDP and pings to an address of the other device and back.
func (d *device) reach(t *testing.T, to netip.Addr) {
	t.Helper()
	d.reachFrom(t, netip.Addr{}, to)
	if err := d.tcp(to, patience); err != nil {
		t.Errorf("TCP to %s: %v", to, err)
	}
	if err := d.ping(to); err != nil {
		t.Errorf("ping to %s: %v", to, err)
	}
}

// reachFrom passes UDP from one of our addresses (zero: any) to an address of the other device and back.
func (d *device) reachFrom(t *testing.T, from, to netip.Addr) {
	t.Helper()
	if _, err := d.udp(from, to); err != nil {
		t.Fatalf("UDP from %v to %s: %v", from, to, err)
	}
}

func (d *device) tcp(to netip.Addr, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	c, err := d.net.DialContextTCPAddrPort(ctx, netip.AddrPortFrom(to, echoPort))
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(limit))
	sent := make([]byte, 200_000) // many segments, more than a window
	_, _ = rand.Read(sent)
	wrote := make(chan error, 1)
	go func() {
		_, err := c.Write(sent)
		wrote <- errors.Join(err, c.CloseWrite())
	}()
	got, err := io.ReadAll(c)
	if err := errors.Join(err, <-wrote); err != nil {
		return err
	}
	if !bytes.Equal(got, sent) {
		return fmt.Errorf("%d bytes came back of %d, or not the same", len(got), len(sent))
	}
	return nil
}

// udp sends a datagram until it comes back, and returns how often that was.
func (d *device) udp(from, to netip.Addr) (sent int, err error) {
	c, err := d.dialUDP(from, to)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	token := make([]byte, 1000)
	_, _ = rand.Read(token)
	got := make([]byte, 2000)
	for deadline := time.Now().Add(patience); ; {
		if _, err := c.Write(token); err != nil {
			return sent, err
		}
		sent++
		_ = c.SetReadDeadline(time.Now().Add(time.Second))
		n, err := c.Read(got)
		if err == nil && bytes.Equal(got[:n], token) {
			return sent, nil
		}
		if time.Now().After(deadline) {
			return sent, fmt.Errorf("no echo within %v", patience)
		}
	}
}

// dialUDP is a socket to the echo of another device, from one of our addresses (zero: any).
func (d *device) dialUDP(from, to netip.Addr) (net.Conn, error) {
	var local netip.AddrPort
	if from.IsValid() {
		local = netip.AddrPortFrom(from, 0)
	}
	return d.net.DialUDPAddrPort(local, netip.AddrPortFrom(to, echoPort))
}

// pinger pings one address. Its socket has a flaw: what arrives while nobody is about to read wakes nobody up later. So a
// goroutine reads all the time, and one ping alone proves nothing.
type pinger struct {
	c    net.Conn
	ping []byte
	got  chan []byte
	wait sync.WaitGroup
}

func (d *device) pinger(to netip.Addr) (*pinger, error) {
	c, err := d.net.DialPingAddr(netip.Addr{}, to)
	if err != nil {
		return nil, err
	}
	m := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{Seq: 4711, Data: []byte("are you there, " + to.String())}}
	if to.Is6() {
		m.Type = ipv6.ICMPTypeEchoRequest
	}
	b, err := m.Marshal(nil)
	if err != nil {
		c.Close()
		return nil, err
	}
	p := &pinger{c: c, ping: b, got: make(chan []byte, 1000)}
	_ = c.SetReadDeadline(time.Now().Add(2 * patience))
	p.wait.Go(func() {
		for {
			b := make([]byte, 2000)
			n, err := c.Read(b)
			if err != nil {
				return
			}
			p.got <- b[:n]
		}
	})
	return p, nil
}

func (p *pinger) send() error {
	_, err := p.c.Write(p.ping)
	return err
}

func (p *pinger) Close() {
	p.c.Close()
	p.wait.Wait()
}

// ping pings an address until it answers.
func (d *device) ping(to netip.Addr) error {
	p, err := d.pinger(to)
	if err != nil {
		return err
	}
	defer p.Close()
	const head = 8 // type, code, checksum, id, sequence number
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		if err := p.send(); err != nil {
			return err
		}
		select {
		case got := <-p.got:
			if len(got) != len(p.ping) || !bytes.Equal(got[head:], p.ping[head:]) {
				return fmt.Errorf("the answer is %q", got)
			}
			return nil
		case <-time.After(200 * time.Millisecond):
		}
	}
	return fmt.Errorf("no answer within %v", patience)
}

// denied checks that nothing sent to an address of the other device arrives there. What is sent afterwards to the fence,
// an address that is reached, comes in behind it, so that there is nothing to wait for.
func (d *device) denied(t *testing.T, other *device, to, fence netip.Addr) {
	t.Helper()
	before := other.heard[to].Load()
	u, err := d.dialUDP(netip.Addr{}, to)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	if _, err := u.Write([]byte("is anybody there?")); err != nil {
		t.Fatal(err)
	}
	p, err := d.pinger(to)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for range 3 {
		if err := p.send(); err != nil {
			t.Fatal(err)
		}
		d.reachFrom(t, netip.Addr{}, fence)
	}
	if len(p.got) > 0 {
		t.Errorf("%s answers pings", to)
	}
	if err := d.tcp(to, 300*time.Millisecond); err == nil {
		t.Errorf("TCP reaches %s", to)
	}
	if now := other.heard[to].Load(); now != before {
		t.Errorf("%s was reached %d times", to, now-before)
	}
}

// deniedFrom checks that the other device takes nothing that comes from one of our addresses, though it takes what comes
// from the fence, another one of ours.
func (d *device) deniedFrom(t *testing.T, other *device, from, to, fence netip.Addr) {
	t.Helper()
	heard := other.heard[to].Load()
	u, err := d.dialUDP(from, to)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	if _, err := u.Write([]byte("may I come in?")); err != nil {
		t.Fatal(err)
	}
	sent, err := d.udp(fence, to)
	if err != nil {
		t.Fatalf("UDP from %v to %s: %v", fence, to, err)
	}
	if now := other.heard[to].Load(); now != heard+int64(sent) {
		t.Errorf("%s takes what comes from %v", to, from)
	}
}

// silent checks that the other device, which has not this one as a peer any more, hears nothing. Here nothing can come
// behind as a fence: it is a matter of a moment.
func (d *device) silent(t *testing.T, other *device, to netip.Addr) {
	t.Helper()
	before := other.heard[to].Load()
	if err := d.tcp(to, 500*time.Millisecond); err == nil || other.heard[to].Load() != before {
		t.Errorf("TCP reaches %s", to)
	}
}
