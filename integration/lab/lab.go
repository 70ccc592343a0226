// Package lab builds small networks out of Linux network namespaces and runs real tailscaled
// processes in them against a real skein server. It is for tests only and needs root.
//
// # The network
//
// The middle of every lab is one namespace, "the internet", which only forwards. Each site hangs on
// it by a point-to-point link of its own, so two sites share no wire and see of each other only what
// is routed:
//
//	                      internet (forwards, answers DNS on 203.0.113.1)
//	   ┌──────────────┬──────────┴───┬─────────────────┬──────────────────┐
//	203.0.113.6    203.0.113.10   203.0.113.14      203.0.113.18      10.77.0.2
//	router home    router office  cloud host        server host       host with a private,
//	 NAT            NAT                                               routed address
//	 192.168.199.1  10.8.99.1
//	 │ bridge       │ bridge
//	 NAS .186       laptop .45
//
// A LAN sits behind a router that masquerades. An EasyNAT router keeps the source port, so that a
// host is seen under one address and port by everyone; a HardNAT router draws a new port for every
// destination. Both drop what nobody inside asked for. Underlay addresses are IPv4 only.
//
// # Words
//
// Lab: one network with everything that runs in it. Host: a namespace triple (network, mounts, host
// name) with one address. LAN: a router and the hosts behind it. Node: a tailscaled on a Host.
// Server: a skein process on a Host.
//
// # Nothing leaks
//
// A Host is an operating system thread, kept for that purpose, which has unshared its network, mount
// and UTS namespaces. The namespaces have no name and no mount point: the kernel removes them when
// the thread and the processes started from it are gone, and those processes are killed by the
// kernel when the thread ends, however the test process dies. Hence there is nothing to sweep up.
// In a Host's mounts /etc is a private directory with a handful of files and /run an empty tmpfs, so
// that no tailscaled can touch the machine's resolv.conf or reach its D-Bus. To look into a running
// host from outside, run "nsenter -t TID -n -m" with the thread id in the lab's log.
//
// # Environment
//
// SKEIN_LAB_REQUIRED=1 turns the reasons for skipping into failures. SKEIN_LAB_RACE=1 builds the
// server with the race detector even if the test has none; a race that it reports fails the test.
// SKEIN_LAB_OLD_SERVER names a skein of an earlier version, for the test of upgrades.
// SKEIN_LAB_KEEP=1 keeps the directory with states and logs, which otherwise only a failed test
// leaves behind. SKEIN_LAB_DIR
// names the folder in which these directories are made (default: the system's temporary folder; a
// long path breaks unix sockets).
package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// Lab is one network and everything that runs in it. It belongs to one test and is torn down by
// that test's Cleanup. Its methods end the test when the network cannot be built; they may be
// called from the test's goroutine only.
type Lab struct {
	t   testing.TB
	dir string // states, sockets, logs

	internet *Host
	dns      *dnsServer

	sites        int // point-to-point links handed out, public and private together
	privateSites int

	mu    sync.Mutex // guards what follows
	hosts []*Host
	procs []*Process
}

// slots bounds how many labs of one test process exist at a time: a lab with four nodes keeps about
// one core busy while they join.
var slots = make(chan struct{}, 2)

// New returns an empty lab: the internet, and nothing attached to it. It skips the test where Need
// does, waits while too many other labs of this process exist, and registers the clean-up.
func New(t testing.TB) *Lab {
	t.Helper()
	Need(t)
	slots <- struct{}{}

	dir, err := workDir(os.Getenv("SKEIN_LAB_DIR"))
	if err != nil {
		<-slots
		t.Fatalf("lab: %v", err)
	}
	l := &Lab{t: t, dir: dir}
	t.Cleanup(l.close)

	l.internet = l.newHost("internet", netip.MustParseAddr("203.0.113.1"))
	if err := l.internet.forward(); err != nil {
		t.Fatalf("lab: internet: %v", err)
	}
	if err := l.internet.addrAdd("lo", netip.MustParsePrefix("203.0.113.1/32")); err != nil {
		t.Fatalf("lab: internet: %v", err)
	}
	if l.dns, err = startDNS(l.internet); err != nil {
		t.Fatalf("lab: name server: %v", err)
	}
	return l
}

// Name makes the lab's own name server answer name with these addresses, in this order, for every host whose resolver still
// points there. A name it does not know does not exist.
func (l *Lab) Name(name string, addrs ...netip.Addr) { l.dns.set(name, addrs) }

// Dir is the lab's directory: one folder for each host, with the state and the logs of what ran
// there.
func (l *Lab) Dir() string { return l.dir }

// Logf writes to the test's log, with the time since the epoch's last minute in front so that it
// can be laid beside the logs of the processes.
func (l *Lab) Logf(format string, args ...any) {
	l.t.Helper()
	l.t.Logf("%s "+format, append([]any{time.Now().Format("15:04:05.000")}, args...)...)
}

// close ends what runs, reports, and lets the namespaces go. It is the lab's only clean-up, so that
// the order does not depend on what a test did when.
func (l *Lab) close() {
	defer func() { <-slots }()
	l.mu.Lock()
	procs, hosts := l.procs, l.hosts
	l.mu.Unlock()

	for i := len(procs) - 1; i >= 0; i-- {
		procs[i].shutdown()
	}
	for _, p := range procs {
		if bad := p.findFault(); bad != "" {
			l.t.Errorf("lab: the log of %s contains a fault:\n%s", p.name, bad)
		}
	}
	if l.t.Failed() {
		for _, p := range procs {
			l.t.Logf("lab: end of the log of %s (%s):\n%s", p.name, p.logPath, indent(p.Tail(60)))
		}
	}
	l.dns.close()
	for i := len(hosts) - 1; i >= 0; i-- {
		hosts[i].close()
	}
	if l.t.Failed() || os.Getenv("SKEIN_LAB_KEEP") != "" {
		l.keep()
		return
	}
	if err := os.RemoveAll(l.dir); err != nil {
		l.t.Logf("lab: %v", err)
	}
}

// keep gives the directory a name under which later processes do not remove it.
func (l *Lab) keep() {
	kept := filepath.Join(filepath.Dir(l.dir), "skeinlab-kept-"+cleanName(l.t.Name()))
	if err := errors.Join(os.RemoveAll(kept), os.Rename(l.dir, kept)); err != nil {
		l.t.Logf("lab: %v", err)
		kept = l.dir
	}
	l.t.Logf("lab: states and logs are kept in %s", kept)
}

// Wait returns once cond reports true. It asks about every 50 ms, and ends the test with what was
// waited for and cond's last explanation when timeout has passed.
func (l *Lab) Wait(timeout time.Duration, what string, cond func() (ok bool, why string)) {
	l.t.Helper()
	if why, ok := poll(timeout, cond); !ok {
		l.t.Fatalf("%s waited %v for: %s; last seen: %s", time.Now().Format("15:04:05.000"), timeout, what, why)
	}
}

// poll asks cond about every 50 ms until it reports true or timeout has passed, and returns its last
// explanation and verdict. cond is asked at least once.
func poll(timeout time.Duration, cond func() (bool, string)) (why string, ok bool) {
	deadline := time.Now().Add(timeout)
	for {
		if ok, why = cond(); ok {
			return why, true
		}
		if time.Now().After(deadline) {
			return why, false
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// hostDir makes the folder of the host called name, unique even if two hosts share the name.
func (l *Lab) hostDir(name string) (string, error) {
	clean := cleanName(name)
	for i := 0; ; i++ {
		dir := filepath.Join(l.dir, clean)
		if i > 0 {
			dir = fmt.Sprintf("%s.%d", dir, i)
		}
		err := os.Mkdir(dir, 0o755)
		if err == nil {
			return dir, nil
		}
		if !os.IsExist(err) {
			return "", err
		}
	}
}

// cleanName makes a name fit for a file.
func cleanName(name string) string {
	return strings.Map(func(r rune) rune {
		if r == '/' || r <= ' ' || r > '~' {
			return '_'
		}
		return r
	}, name)
}

func indent(s string) string {
	return "    " + strings.ReplaceAll(strings.TrimRight(s, "\n"), "\n", "\n    ")
}
