package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// namespace is an operating system thread in network, mount and UTS namespaces of its own. The
// thread lives until close and is the parent of every process started in the namespace: those
// processes get SIGKILL from the kernel when it ends (Pdeathsig), also if the test process crashes.
type namespace struct {
	tid   int
	netFD int         // the network namespace
	calls chan func() // run on the thread, one at a time
	ended chan struct{}
	once  sync.Once
}

// newNamespace starts the thread. etc becomes its /etc, hostname its host name. The loopback
// interface is still down.
func newNamespace(hostname, etc string) (*namespace, error) {
	ns := &namespace{netFD: -1, calls: make(chan func()), ended: make(chan struct{})}
	ready := make(chan error, 1)
	go ns.run(hostname, etc, ready)
	if err := <-ready; err != nil {
		return nil, err
	}
	return ns, nil
}

func (ns *namespace) run(hostname, etc string, ready chan<- error) {
	// Never unlocked: a thread in foreign namespaces must not be handed to another goroutine, and
	// the runtime ends it together with this goroutine.
	runtime.LockOSThread()
	if unix.Gettid() == os.Getpid() {
		// The main thread outlives its goroutine, and with it the namespace would. It is held here
		// until the successor has a thread.
		held := make(chan error, 1)
		go ns.run(hostname, etc, held)
		err := <-held
		runtime.UnlockOSThread()
		ready <- err
		return
	}
	defer close(ns.ended)
	if err := ns.enter(hostname, etc); err != nil {
		ready <- err
		return
	}
	ready <- nil
	for f := range ns.calls {
		f()
	}
	unix.Close(ns.netFD)
}

// enter moves the calling thread into its new namespaces.
func (ns *namespace) enter(hostname, etc string) error {
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWUTS); err != nil {
		return fmt.Errorf("unshare network, mount and UTS namespaces: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount(etc, "/etc", "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount a private /etc: %w", err)
	}
	// A tailscaled that finds D-Bus in /run would hand its DNS settings to the machine's own
	// systemd-resolved or NetworkManager.
	if err := unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "size=4m,mode=755"); err != nil {
		return fmt.Errorf("mount a private /run: %w", err)
	}
	// Otherwise /sys/class/net shows the machine's interfaces. Where a container forbids the mount,
	// the lab works without it.
	_ = unix.Mount("sysfs", "/sys", "sysfs", unix.MS_RDONLY, "")
	if err := unix.Sethostname([]byte(hostname)); err != nil {
		return fmt.Errorf("set host name %q: %w", hostname, err)
	}
	ns.tid = unix.Gettid()
	fd, err := unix.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", ns.tid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open the network namespace: %w", err)
	}
	ns.netFD = fd
	return nil
}

// onThread runs f on the namespace's own thread and waits for it. f must be short: other callers
// wait. A process that f starts lives in the namespaces and dies with the thread.
func (ns *namespace) onThread(f func()) {
	done := make(chan struct{})
	ns.calls <- func() { defer close(done); f() }
	<-done
}

// do runs f on a thread that is in the network namespace only, and waits for it. Sockets that f
// itself opens belong to the namespace for as long as they exist; goroutines that f starts do not
// run in it. f must not end the test.
func (ns *namespace) do(f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := unix.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			runtime.UnlockOSThread()
			result <- err
			return
		}
		defer unix.Close(home)
		if err := unix.Setns(ns.netFD, unix.CLONE_NEWNET); err != nil {
			runtime.UnlockOSThread()
			result <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
		err = f()
		if unix.Setns(home, unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		} // else the thread stays locked and ends with this goroutine
		result <- err
	}()
	return <-result
}

// close ends the thread and waits for it. The processes started on it are killed by the kernel; what those have started
// themselves and left behind (the file servers of Taildrive, behind su) is found by its network namespace and killed here.
func (ns *namespace) close() {
	ns.once.Do(func() {
		for _, pid := range ns.strays() {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		close(ns.calls)
	})
	<-ns.ended
}

// strays are the processes in the network namespace.
func (ns *namespace) strays() (pids []int) {
	mine, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", ns.netFD)) // net:[4026532008]
	if err != nil {
		return nil
	}
	links, _ := filepath.Glob("/proc/[0-9]*/ns/net")
	for _, link := range links {
		if at, err := os.Readlink(link); err != nil || at != mine {
			continue
		}
		if pid, err := strconv.Atoi(strings.Split(link, "/")[2]); err == nil && pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	return pids
}

// privateEtc fills dir with the files that programs in the lab expect in /etc.
func privateEtc(dir, hostname, nameserver string) error {
	files := map[string]string{
		"hosts":         "127.0.0.1 localhost " + hostname + "\n::1 localhost\n",
		"hostname":      hostname + "\n",
		"resolv.conf":   "nameserver " + nameserver + "\n",
		"nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
		"passwd":        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
		"group":         "root:x:0:\nnogroup:x:65534:\n",
		"os-release":    "ID=debian\nNAME=lab\nPRETTY_NAME=\"network lab\"\n",
		// tailscaled serves Taildrive's folders as their user, by way of su.
		"pam.d/su": "auth sufficient pam_rootok.so\naccount sufficient pam_permit.so\nsession sufficient pam_permit.so\n",
	}
	if err := os.MkdirAll(filepath.Join(dir, "pam.d"), 0o755); err != nil {
		return err
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// canBuild reports once per process why labs cannot be built here; nil means they can.
var canBuild = sync.OnceValue(func() error {
	if os.Getuid() != 0 {
		return fmt.Errorf("the network lab needs root, this is uid %d", os.Getuid())
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		return fmt.Errorf("the network lab needs TUN devices: %w", err)
	}
	dir, err := os.MkdirTemp("", "skeinlab-need")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := privateEtc(dir, "probe", "127.0.0.1"); err != nil {
		return err
	}
	ns, err := newNamespace("probe", dir)
	if err != nil {
		return fmt.Errorf("the network lab needs namespaces: %w", err)
	}
	defer ns.close()
	if err := ns.do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		return unix.Close(fd)
	}); err != nil {
		return fmt.Errorf("the network lab needs TUN devices: %w", err)
	}
	if err := natRules(ns.netFD, "lo", EasyNAT); err != nil {
		return fmt.Errorf("the network lab needs nftables with NAT: %w", err)
	}
	return nil
})

// Need skips the test, with the reason, where a lab cannot be built: without root, TUN devices,
// namespaces or nftables. With SKEIN_LAB_REQUIRED=1 it fails the test instead.
func Need(t testing.TB) {
	t.Helper()
	if err := canBuild(); err != nil {
		if os.Getenv("SKEIN_LAB_REQUIRED") == "1" {
			t.Fatalf("SKEIN_LAB_REQUIRED=1, but: %v", err)
		}
		t.Skip(err)
	}
}
