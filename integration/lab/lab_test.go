package lab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const (
	soon  = 3 * time.Second        // an answer that must come
	never = 600 * time.Millisecond // an answer that must not come
)

func mustReach(t *testing.T, from *Host, to netip.Addr) {
	t.Helper()
	if _, err := from.Ping(soon, to); err != nil {
		t.Error(err)
	}
}

func mustNotReach(t *testing.T, from *Host, to netip.Addr) {
	t.Helper()
	if rtt, err := from.Ping(never, to); err == nil {
		t.Errorf("ping %s from %s was answered in %v", to, from.Name(), rtt)
	}
}

func TestSeedNetwork(t *testing.T) {
	s := NewSeed(t, EasyNAT)
	inside := []*Host{s.NAS, s.Mac}
	for _, h := range append(inside, s.Cloud) {
		mustReach(t, h, s.ServerHost.Addr())
	}
	mustReach(t, s.NAS, s.Router.Addr())
	mustNotReach(t, s.NAS, s.Mac.Addr())
	mustNotReach(t, s.Mac, s.NAS.Addr())
	mustNotReach(t, s.Mac, s.Router.Addr())
	mustNotReach(t, s.Cloud, s.NAS.Addr())
	mustNotReach(t, s.Cloud, s.Home.Public)

	body, err := s.NAS.Get(soon, "http://192.168.199.1/")
	if err != nil || body != "hello from home-router, you are 192.168.199.186\n" {
		t.Errorf("HTTP from the NAS to its router: %q, %v", body, err)
	}
	if body, err := s.Mac.Get(never, "http://192.168.199.1/"); err == nil {
		t.Errorf("HTTP from the office to the home router: %q", body)
	}
	s.ServerHost.ServeHTTP(":80", nil)
	body, err = s.Mac.Get(soon, "http://"+s.ServerHost.Addr().String()+"/")
	if want := "hello from server, you are " + s.Office.Public.String() + "\n"; err != nil || body != want {
		t.Errorf("HTTP through the NAT: %q, %v; want %q", body, err, want)
	}
}

func TestNATKinds(t *testing.T) {
	l := New(t)
	a, b := l.Cloud("a"), l.Cloud("b")
	easy := l.LAN("easy", "192.168.1.0/24", EasyNAT)
	hard := l.LAN("hard", "192.168.2.0/24", HardNAT)
	eh, hh := easy.Host("eh", "192.168.1.2"), hard.Host("hh", "192.168.2.2")

	seen, err := eh.MappedAddr(41641, a, b)
	if err != nil {
		t.Fatal(err)
	}
	if want := netip.AddrPortFrom(easy.Public, 41641); seen[0] != want || seen[1] != want {
		t.Errorf("easy NAT: seen as %v, want %v twice", seen, want)
	}
	if seen, err = hh.MappedAddr(41641, a, b); err != nil {
		t.Fatal(err)
	}
	if seen[0].Addr() != hard.Public || seen[1].Addr() != hard.Public || seen[0] == seen[1] {
		t.Errorf("hard NAT: seen as %v, want two ports of %v", seen, hard.Public)
	}
}

// Two hosts behind easy NATs that send to each other's outer address get through although the first
// packet arrives before the other side has sent.
func TestHolePunching(t *testing.T) {
	l := New(t)
	la, lb := l.LAN("la", "192.168.1.0/24", EasyNAT), l.LAN("lb", "192.168.2.0/24", EasyNAT)
	ha, hb := la.Host("ha", "192.168.1.2"), lb.Host("hb", "192.168.2.2")
	pa, err := ha.ListenPacket("udp4", ":1000")
	if err != nil {
		t.Fatal(err)
	}
	defer pa.Close()
	pb, err := hb.ListenPacket("udp4", ":1000")
	if err != nil {
		t.Fatal(err)
	}
	defer pb.Close()
	outer := func(lan *LAN) net.Addr { return net.UDPAddrFromAddrPort(netip.AddrPortFrom(lan.Public, 1000)) }
	if _, err := pa.WriteTo([]byte("dropped by lb"), outer(lb)); err != nil {
		t.Fatal(err)
	}
	for range 2 { // a's first packet may overtake b's
		if _, err := pb.WriteTo([]byte("b"), outer(la)); err != nil {
			t.Fatal(err)
		}
	}
	pa.SetReadDeadline(time.Now().Add(soon))
	buf := make([]byte, 10)
	if _, from, err := pa.ReadFrom(buf); err != nil || from.String() != outer(lb).String() {
		t.Errorf("got %v, %v; want a packet from %v", from, err, outer(lb))
	}
}

func TestBlockAndCable(t *testing.T) {
	s := NewSeed(t, EasyNAT)
	s.ServerHost.ServeHTTP(":80", nil)
	s.ServerHost.ServeHTTP(":81", nil)
	at := s.ServerHost.Addr().String()
	get := func(url string, want bool) {
		t.Helper()
		timeout := soon
		if !want {
			timeout = never
		}
		if _, err := s.NAS.Get(timeout, url); (err == nil) != want {
			t.Errorf("%s: %v, want to reach it: %v", url, err, want)
		}
	}
	udp := func(want bool) {
		t.Helper()
		if _, err := s.NAS.MappedAddr(2000, s.Cloud); (err == nil) != want {
			t.Errorf("UDP from the NAS: %v, want to get through: %v", err, want)
		}
	}
	udp(true)
	s.NAS.Block(UDP, TCPPort(81))
	udp(false)
	get("http://"+at+":80/", true)
	get("http://"+at+":81/", false)
	s.NAS.Unblock()
	udp(true)
	get("http://"+at+":81/", true)

	s.Router.Block(UDP) // the whole LAN
	udp(false)
	s.Router.Unblock()

	s.Cloud.Block(AnyTraffic)
	mustNotReach(t, s.Cloud, s.ServerHost.Addr())
	s.Cloud.Unblock()
	mustReach(t, s.Cloud, s.ServerHost.Addr())

	beat := s.Mac.Beat(s.ServerHost.Addr())
	mustReach(t, s.Mac, s.ServerHost.Addr())
	s.Mac.CutCable()
	mustNotReach(t, s.Mac, s.ServerHost.Addr())
	s.Mac.PlugCable()
	mustReach(t, s.Mac, s.ServerHost.Addr())
	sent, answered, gap := beat.Stop()
	// Pings sent meanwhile may wait in the host for its neighbour's address and be answered late.
	if answered == 0 || gap < never {
		t.Errorf("pings over a cut cable: %d of %d answered, longest gap %v", answered, sent, gap)
	}
}

func TestPrivateAndDNS(t *testing.T) {
	l := New(t)
	p := l.Private("company")
	c := l.Cloud("cloud")
	if !p.Addr().IsPrivate() {
		t.Errorf("%v is not private", p.Addr())
	}
	mustReach(t, c, p.Addr())
	l.Name("control.example.com", p.Addr())
	got, err := c.Lookup("control.example.com")
	if err != nil || len(got) != 1 || got[0] != p.Addr() {
		t.Errorf("lookup: %v, %v; want %v", got, err, p.Addr())
	}
	if got, err := c.Lookup("nobody.example.com"); err == nil {
		t.Errorf("lookup of an unknown name: %v", got)
	}
}

// What a program on a host writes to /etc and /run, and the host name it sees, are the lab's.
func TestIsolation(t *testing.T) {
	l := New(t)
	h := l.Cloud("VM-0-2-centos")
	before, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	r := h.Command(ctx, "/bin/sh", "-c", "echo nameserver 192.0.2.1 > /etc/resolv.conf.new && mv /etc/resolv.conf.new /etc/resolv.conf && touch /etc/lab-was-here /run/lab-was-here && uname -n")
	if r.Err != nil || strings.TrimSpace(r.Stdout) != "VM-0-2-centos" {
		t.Errorf("%v", r)
	}
	after, err := os.ReadFile("/etc/resolv.conf")
	if err != nil || string(after) != string(before) {
		t.Errorf("the machine's resolv.conf is now %q (%v)", after, err)
	}
	for _, path := range []string{"/etc/lab-was-here", "/run/lab-was-here"} {
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%s exists on the machine", path)
		}
	}
}

func TestProcess(t *testing.T) {
	l := New(t)
	h := l.Cloud("h")
	p := h.newProcess("sleeper", nil, "/bin/sh", "-c", "echo started; exec sleep 1000")
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	if err := p.Start(); err == nil {
		t.Error("second start did not fail")
	}
	l.Wait(soon, "output", func() (bool, string) { return strings.Contains(p.Log(), "\nstarted\n"), p.Log() })
	if !p.Stop(soon) || p.Running() {
		t.Error("still running after SIGTERM")
	}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	p.Kill()
	if p.Running() {
		t.Error("still running after SIGKILL")
	}
	if n := strings.Count(p.Log(), "--- lab:"); n != 2 {
		t.Errorf("%d starts in the log", n)
	}
}

func TestParseTable(t *testing.T) {
	titles, rows, err := parseTable("ID | Name\n1 | junyao \n2 | \n")
	if err != nil || len(titles) != 2 || len(rows) != 2 || rows[0]["Name"] != "junyao" || rows[1]["Name"] != "" {
		t.Errorf("%q %q %v", titles, rows, err)
	}
	if _, _, err := parseTable("ID | Name\n1\n"); err == nil {
		t.Error("a short line was accepted")
	}
}

// Directories of processes that are gone are removed, others are not.
func TestSweep(t *testing.T) {
	base := t.TempDir()
	gone := exec.Command("/bin/true")
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}
	mk := func(name string) string {
		dir := filepath.Join(base, name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	dead := mk(fmt.Sprintf("skeinlab-%d-1", gone.Process.Pid))
	keep := []string{mk(fmt.Sprintf("skeinlab-%d-1", os.Getpid())), mk("skeinlab-kept-TestX"), mk("other")}
	mine, err := workDir(base)
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range append(keep, mine) {
		if _, err := os.Stat(dir); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(dead); err == nil {
		t.Errorf("%s is still there", dead)
	}
}

func TestLongestGap(t *testing.T) {
	at := func(ms int) time.Time { return time.UnixMilli(int64(ms)) }
	answers := []time.Time{at(50), at(100), at(400), at(1000)}
	for _, tt := range []struct {
		held []span
		want time.Duration
	}{
		{nil, 600 * time.Millisecond},
		{[]span{{at(450), at(950)}}, 300 * time.Millisecond},
		{[]span{{at(300), at(600)}, {at(900), at(2000)}}, 300 * time.Millisecond},
	} {
		if got := longest(at(0), answers, tt.held); got != tt.want {
			t.Errorf("held %v: longest gap %v, want %v", tt.held, got, tt.want)
		}
	}
}
