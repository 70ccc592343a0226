package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Result is what a finished command left.
type Result struct {
	Stdout, Stderr string
	Code           int   // exit status; -1 if it did not run or was killed
	Err            error // nil exactly if Code is 0
}

// String shows the whole result, for messages of tests.
func (r Result) String() string {
	s := fmt.Sprintf("exit %d", r.Code)
	if r.Err != nil {
		s = r.Err.Error()
	}
	return fmt.Sprintf("%s\nstdout:\n%s\nstderr:\n%s", s, indent(r.Stdout), indent(r.Stderr))
}

// Command runs a program on the host to its end. name is looked up in the machine's PATH; the
// program is killed when ctx ends.
func (h *Host) Command(ctx context.Context, name string, args ...string) Result {
	return h.run(ctx, nil, name, args...)
}

func (h *Host) run(ctx context.Context, env []string, name string, args ...string) Result {
	cmd := exec.CommandContext(ctx, name, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := h.start(cmd, env)
	if err == nil {
		err = cmd.Wait()
	}
	r := Result{Stdout: stdout.String(), Stderr: stderr.String(), Err: err}
	if err != nil {
		r.Code = -1
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			r.Code = exit.ExitCode()
		}
		r.Err = fmt.Errorf("%s %s on %s: %w", filepath.Base(name), strings.Join(args, " "), h.name, err)
		if ctx.Err() != nil {
			r.Err = fmt.Errorf("%w (%w)", r.Err, ctx.Err())
		}
	}
	return r
}

// start starts cmd in the host's namespaces, with env added to a small environment.
func (h *Host) start(cmd *exec.Cmd, env []string) (err error) {
	cmd.Dir = h.dir
	cmd.WaitDelay = 2 * time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	// Nothing of the machine's environment but the path: a proxy variable or an XDG directory would
	// lead a client out of the lab.
	cmd.Env = append([]string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + h.dir, "TMPDIR=" + h.dir, "LANG=C.UTF-8",
		"GORACE=atexit_sleep_ms=0", // otherwise each command of a skein with race detector takes a second
	}, env...)
	h.ns.onThread(func() { err = cmd.Start() })
	return err
}

// Process is a long-running program on a host. Its output goes to one log file, appended to over
// restarts.
type Process struct {
	h       *Host
	name    string // for messages: program and host
	logPath string
	path    string
	args    []string
	env     []string
	faults  *regexp.Regexp // lines that must not occur in the log; nil: none

	mu   sync.Mutex
	cmd  *exec.Cmd
	done chan struct{} // closed when cmd has ended
	err  error         // of cmd.Wait, valid after done
}

// newProcess registers a program with the lab without starting it.
func (h *Host) newProcess(what string, env []string, path string, args ...string) *Process {
	p := &Process{
		h: h, name: what + " on " + h.name, path: path, args: args, env: env,
		logPath: filepath.Join(h.dir, what+".log"),
	}
	h.l.mu.Lock()
	h.l.procs = append(h.l.procs, p)
	h.l.mu.Unlock()
	return p
}

// Start starts the program; it must not be running.
func (p *Process) Start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.done != nil && !isClosed(p.done) {
		return fmt.Errorf("lab: %s is running already", p.name)
	}
	log, err := os.OpenFile(p.logPath, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	fmt.Fprintf(log, "--- lab: %s start %s %s\n", time.Now().Format("15:04:05.000"), p.path, strings.Join(p.args, " "))
	cmd := exec.Command(p.path, p.args...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := p.h.start(cmd, p.env); err != nil {
		return fmt.Errorf("lab: start %s: %w", p.name, err)
	}
	done := make(chan struct{})
	p.cmd, p.done = cmd, done
	go func() { // ends with the process, which shutdown makes sure of
		err := cmd.Wait()
		p.mu.Lock()
		p.err = err
		p.mu.Unlock()
		close(done)
	}()
	return nil
}

// Memory is how many bytes of memory the program takes now (VmRSS); 0 if it does not run.
func (p *Process) Memory() (bytes int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil || p.cmd.Process == nil {
		return 0
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if k, v, _ := strings.Cut(line, ":"); k == "VmRSS" {
			_, _ = fmt.Sscan(v, &bytes)
		}
	}
	return bytes << 10
}

// Running reports whether the program runs.
func (p *Process) Running() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.done != nil && !isClosed(p.done)
}

// Pid is the process id, 0 before the first start.
func (p *Process) Pid() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return 0
	}
	return p.cmd.Process.Pid
}

// WaitEnd waits until the program has ended by itself and returns the error it ended with.
func (p *Process) WaitEnd(timeout time.Duration) error {
	p.h.l.t.Helper()
	p.mu.Lock()
	done := p.done
	p.mu.Unlock()
	select {
	case <-done:
	case <-time.After(timeout):
		p.h.l.t.Fatalf("%s: still running after %v:\n%s", p.name, timeout, p.Log())
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// Kill kills the program as kill -9 does and waits for its end.
func (p *Process) Kill() { p.signal(syscall.SIGKILL, 10*time.Second) }

// Stop asks the program to end (SIGTERM), waits up to timeout and kills it then. It reports whether
// the program ended by itself.
func (p *Process) Stop(timeout time.Duration) bool { return p.signal(syscall.SIGTERM, timeout) }

// Hangup sends SIGHUP, on which a server reads its configuration again.
func (p *Process) Hangup() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd != nil {
		_ = p.cmd.Process.Signal(syscall.SIGHUP) // it may have ended just now, which the test will notice
	}
}

func (p *Process) signal(sig syscall.Signal, timeout time.Duration) bool {
	p.mu.Lock()
	cmd, done := p.cmd, p.done
	p.mu.Unlock()
	if done == nil || isClosed(done) {
		return true
	}
	_ = cmd.Process.Signal(sig) // it may have ended just now
	select {
	case <-done:
		return true
	case <-time.After(timeout):
	}
	_ = cmd.Process.Kill()
	<-done
	return false
}

// shutdown ends the program at the end of a test.
func (p *Process) shutdown() { p.Stop(5 * time.Second) }

// Tail returns the last n lines of the log.
func (p *Process) Tail(n int) string {
	lines := strings.Split(strings.TrimRight(p.Log(), "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// Log returns the whole log.
func (p *Process) Log() string {
	b, err := os.ReadFile(p.logPath)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// findFault returns the part of the log around the first line that must not be there, or "".
func (p *Process) findFault() string {
	if p.faults == nil {
		return ""
	}
	log := p.Log()
	at := p.faults.FindStringIndex(log)
	if at == nil {
		return ""
	}
	return indent(log[at[0]:min(len(log), at[0]+4000)])
}

func isClosed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

// StartProcess starts a program of the test's own on the host, and ends it with the lab; what names its log.
func (h *Host) StartProcess(what, path string, args ...string) *Process {
	h.l.t.Helper()
	p := h.newProcess(what, nil, path, args...)
	if err := p.Start(); err != nil {
		h.l.t.Fatal(err)
	}
	return p
}
