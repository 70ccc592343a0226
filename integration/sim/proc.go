package sim

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// clockTicks is what the kernel counts CPU time in, per second: USER_HZ, 100 on every Linux.
const clockTicks = 100

// cpuOf is the CPU time that a process has used, in seconds: utime and stime of /proc/PID/stat.
func cpuOf(pid int) (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The second field is the command in parentheses and may hold anything.
	i := strings.LastIndexByte(string(b), ')')
	fields := strings.Fields(string(b[i+1:]))
	if i < 0 || len(fields) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat is not as expected: %.200q", pid, b)
	}
	user, err1 := strconv.ParseInt(fields[11], 10, 64)
	system, err2 := strconv.ParseInt(fields[12], 10, 64)
	return float64(user+system) / clockTicks, errors.Join(err1, err2)
}

// memoryOf is the memory of a process in bytes: VmRSS and its peak, VmHWM.
func memoryOf(pid int) (now, peak int64, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(b)) {
		k, v, _ := strings.Cut(line, ":")
		f := strings.Fields(v)
		if len(f) == 0 {
			continue
		}
		n, _ := strconv.ParseInt(f[0], 10, 64)
		switch k {
		case "VmRSS":
			now = n << 10
		case "VmHWM":
			peak = n << 10
		}
	}
	return now, peak, nil
}

// resetPeak sets the peak back to what the process uses now. Not every kernel permits it; then the peak is that since the
// process began.
func resetPeak(pid int) { _ = os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0) }

// usage is what everything has cost so far.
type usage struct {
	serverCPU, simCPU         float64 // seconds
	serverMemory, serverPeak  int64   // bytes
	received, sent            int64   // bytes on the wire, all clients
	frames, keepAlives, simMB int64
	lost                      int64
}

func (s *Sim) serverCPU() float64 {
	if s.o.Server == nil {
		return 0
	}
	cpu, _ := cpuOf(s.o.Server.PID()) // 0 while it is down
	return cpu
}

func (s *Sim) usage() (u usage) {
	u.serverCPU = s.serverCPU()
	if s.o.Server != nil {
		u.serverMemory, u.serverPeak, _ = memoryOf(s.o.Server.PID())
	}
	u.simCPU, _ = cpuOf(os.Getpid())
	mem, _, _ := memoryOf(os.Getpid())
	u.simMB = mem >> 20
	for _, c := range s.clients {
		u.received += c.rx.Load()
		u.sent += c.tx.Load()
	}
	u.frames, u.keepAlives, u.lost = s.frames.Load(), s.keepAlives.Load(), s.lost.Load()
	return u
}

// raiseFileLimit lets the process have as many files open as it may, which must be n at least.
func raiseFileLimit(n int) error {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return fmt.Errorf("asking for the limit of open files: %w", err)
	}
	if l.Cur < l.Max {
		l.Cur = l.Max
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
			return fmt.Errorf("raising the limit of open files: %w", err)
		}
	}
	if l.Cur < uint64(n) {
		return fmt.Errorf("so many clients need %d open files, and this process may have %d: raise the limit (ulimit -Hn, LimitNOFILE), for the server too", n, l.Cur)
	}
	return nil
}
