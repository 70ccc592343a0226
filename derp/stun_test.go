package derp

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"tailscale.com/net/stun"
)

// askSTUN sends one request and returns what the server saw as the sender. Loopback loses nothing, so there is no retry.
func askSTUN(t *testing.T, network, server string) (saw, local netip.AddrPort) {
	t.Helper()
	c, err := net.Dial(network, server) // connected: answers from another address are not delivered
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	tx := stun.NewTxID()
	for _, junk := range [][]byte{{}, []byte("hello"), make([]byte, 1400), stun.Request(tx)[:19]} {
		if _, err := c.Write(junk); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.Write(stun.Request(tx)); err != nil {
		t.Fatal(err)
	}
	c.SetReadDeadline(time.Now().Add(patience))
	var buf [1500]byte
	n, err := c.Read(buf[:])
	if err != nil {
		t.Fatal(err)
	}
	got, saw, err := stun.ParseResponse(buf[:n])
	if err != nil || got != tx {
		t.Fatalf("answer for %v, %v", got, err)
	}
	return saw, c.LocalAddr().(*net.UDPAddr).AddrPort()
}

func TestSTUN(t *testing.T) {
	s, err := ListenSTUN(":0", nil)
	if err != nil {
		t.Fatal(err)
	}
	port := s.Addr().Port()
	// 127.0.0.2 is another address of the same machine: the answer has to come from there.
	for _, host := range []string{"127.0.0.1", "127.0.0.2"} {
		saw, local := askSTUN(t, "udp4", fmt.Sprintf("%s:%d", host, port))
		if saw != local {
			t.Errorf("%s: told %v, is %v", host, saw, local)
		}
	}
	if len(s.socks) == 2 { // this machine has IPv6
		if saw, local := askSTUN(t, "udp6", fmt.Sprintf("[::1]:%d", port)); saw != local {
			t.Errorf("told %v, is %v", saw, local)
		}
	} else {
		t.Log("no IPv6 on this machine")
	}
	until(t, "counters", func() bool { return s.Answered() >= 2 && s.Ignored() >= 6 })

	if _, err := ListenSTUN(fmt.Sprintf("127.0.0.1:%d", port), nil); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("UDP port %d is already in use", port)) {
		t.Errorf("port in use: %v", err)
	}
	if _, err := ListenSTUN(fmt.Sprintf(":%d", port), nil); err == nil || !strings.Contains(err.Error(), "already in use") {
		t.Errorf("port in use: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	again, err := ListenSTUN(fmt.Sprintf(":%d", port), nil)
	if err != nil {
		t.Fatalf("after Close: %v", err)
	}
	again.Close()
}

func TestSTUNAddress(t *testing.T) {
	for _, bad := range []string{"", "3478", "1.2.3.4", ":70000", ":stun", "[::1", "256.1.1.1:1"} {
		if s, err := ListenSTUN(bad, nil); err == nil {
			s.Close()
			t.Errorf("%q was accepted", bad)
		}
	}
	for _, good := range []string{"127.0.0.1:0", "localhost:0", "0.0.0.0:0"} {
		s, err := ListenSTUN(good, nil)
		if err != nil {
			t.Errorf("%s: %v", good, err)
			continue
		}
		s.Close()
	}
}

// TestSTUNAnswersAreSmall: no use as an amplifier.
func TestSTUNAnswersAreSmall(t *testing.T) {
	tx := stun.NewTxID()
	ask, answer := stun.Request(tx), stun.Response(tx, netip.MustParseAddrPort("[2001:db8::1]:1"))
	if len(answer) > 2*len(ask) {
		t.Errorf("%d bytes asked, %d answered", len(ask), len(answer))
	}
}
