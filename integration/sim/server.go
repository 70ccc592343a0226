package sim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// ProcessOptions say how to run a server. In all commands, which a shell runs, these stand for what is known then:
//
//	{dir}      a folder for the server's data, removed in the end
//	{port}     a free port on 127.0.0.1; the server must listen there
//	{metrics}  another one
//	{url}      http://127.0.0.1:{port}
type ProcessOptions struct {
	// Skein is the path of a Skein binary: it stands for all commands below, with limits out of the way. Layout says who the
	// clients are, and Clients how many; nil is the open one.
	Skein   string
	Layout  *Layout
	Clients int
	// Command runs the server in the foreground.
	Command string
	// KeyCommand prints a reusable pre-auth key, EphemeralKeyCommand one for ephemeral nodes. If both are empty, the first
	// word of Command is taken for a Skein binary, which makes them.
	KeyCommand, EphemeralKeyCommand string
	// Env is added to the server's environment.
	Env []string
	// Keep leaves the folder in place.
	Keep bool
}

// Process is a server that the simulator runs.
type Process struct {
	URL          string
	Keys         []string // of the clients, to be used in turn; several only if the Layout asks for that
	EphemeralKey string
	Admin        *Admin // nil: it is no Skein
	Dir          string // its data
	LogPath      string // what it says
	o            ProcessOptions
	vars         *strings.Replacer
	log          *os.File

	mu   sync.Mutex
	cmd  *exec.Cmd     // guarded by mu
	done chan struct{} // guarded by mu: closed when the process has ended
}

// startTimeout is how long a server may take until it answers for the first time.
const startTimeout = 60 * time.Second

// StartProcess starts a server in a new folder, waits until it answers and makes keys. The caller must call Stop.
func StartProcess(ctx context.Context, o ProcessOptions) (_ *Process, err error) {
	if o.Skein != "" {
		bin, err := filepath.Abs(o.Skein)
		if err != nil {
			return nil, err
		}
		if _, err := os.Stat(bin); err != nil {
			return nil, fmt.Errorf("-skein: %w", err)
		}
		o.Command = quote(bin) + " serve --data-dir {dir} --listen 127.0.0.1:{port} --server-url {url} --stun-listen '' --metrics-listen 127.0.0.1:{metrics}"
		o.Env = append([]string{
			"SKEIN_TLS_FALLBACK_LISTEN_ADDR=", "SKEIN_LOG_LEVEL=warn",
			"SKEIN_LIMITS_PENDING_REGISTRATIONS=0", "SKEIN_LIMITS_REGISTRATIONS_PER_MINUTE=0", "SKEIN_LIMITS_CONNECTIONS_PER_ADDRESS=0",
		}, o.Env...)
	}
	p := &Process{o: o}
	if p.Dir, err = os.MkdirTemp("", "skeinsim-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			p.Stop()
		}
	}()
	port, err1 := freePort()
	metrics, err2 := freePort()
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	p.URL = "http://127.0.0.1:" + port
	p.vars = strings.NewReplacer("{dir}", quote(p.Dir), "{port}", port, "{metrics}", metrics, "{url}", p.URL)
	p.LogPath = filepath.Join(p.Dir, "server.log")
	if p.log, err = os.Create(p.LogPath); err != nil {
		return nil, err
	}
	if err := p.Start(); err != nil {
		return nil, err
	}
	if err := p.await(ctx); err != nil {
		return nil, err
	}
	return p, p.makeKeys(ctx)
}

// quote makes one word of s for a shell.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// freePort is a port on 127.0.0.1 on which nobody listens at this moment.
func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port), nil
}

// PID is the process now, 0 if there is none.
func (p *Process) PID() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return 0
	}
	return p.cmd.Process.Pid
}

// Start starts the server over the same data. It does not wait until it serves.
func (p *Process) Start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	cmd := exec.Command("sh", "-c", "exec "+p.vars.Replace(p.o.Command)) // exec: the process is the server, not the shell
	cmd.Env = append(os.Environ(), p.o.Env...)
	cmd.Stdout, cmd.Stderr = p.log, p.log
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting the server: %w", err)
	}
	done := make(chan struct{})
	go func() { // ends with the process, which Stop ends
		_ = cmd.Wait()
		close(done)
	}()
	p.cmd, p.done = cmd, done
	return nil
}

// Kill ends the server as a crash would, and waits until it has ended.
func (p *Process) Kill() error { return p.signal(syscall.SIGKILL, 10*time.Second) }

func (p *Process) signal(sig syscall.Signal, patience time.Duration) error {
	p.mu.Lock()
	cmd, done := p.cmd, p.done
	p.mu.Unlock()
	if cmd == nil {
		return errors.New("the server does not run")
	}
	_ = cmd.Process.Signal(sig) // it may have ended
	select {
	case <-done:
		return nil
	case <-time.After(patience):
		return fmt.Errorf("the server (process %d) does not end", cmd.Process.Pid)
	}
}

// Stop ends the server and removes its folder.
func (p *Process) Stop() {
	if p.PID() != 0 && p.signal(syscall.SIGTERM, 15*time.Second) != nil {
		_ = p.Kill()
	}
	if p.log != nil {
		p.log.Close()
	}
	if !p.o.Keep {
		os.RemoveAll(p.Dir)
	}
}

// await waits until the server answers.
func (p *Process) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	p.mu.Lock()
	done := p.done
	p.mu.Unlock()
	t, err := newTarget(ctx, p.URL, false)
	if err != nil {
		return err
	}
	for {
		err := t.fetchKey(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-done:
			return fmt.Errorf("the server has ended:\n%s", p.Tail())
		case <-ctx.Done():
			return fmt.Errorf("the server does not answer: %w\n%s", err, p.Tail())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Tail is the end of what the server said, a few lines.
func (p *Process) Tail() string {
	b, err := os.ReadFile(p.LogPath)
	if err != nil {
		return err.Error()
	}
	lines := strings.SplitAfter(strings.TrimSpace(string(b[max(0, len(b)-8000):])), "\n")
	return strings.Join(lines[max(0, len(lines)-15):], "")
}

// makeKeys makes the pre-auth keys.
func (p *Process) makeKeys(ctx context.Context) (err error) {
	if p.o.Skein != "" {
		l := p.o.Layout
		if l == nil {
			if l, err = NewLayout(LayoutOpen, 1, 1); err != nil {
				return err
			}
		}
		p.Admin = NewAdmin(filepath.Join(p.Dir, "skein.sock"))
		if p.Keys, err = p.Admin.SetUp(ctx, l, max(p.o.Clients, 1)); err == nil {
			p.EphemeralKey, err = p.Admin.EphemeralKey(ctx, l)
		}
		return err
	}
	one, ephemeral := p.o.KeyCommand, p.o.EphemeralKeyCommand
	if one == "" && ephemeral == "" {
		bin := p.o.Command
		if f := strings.Fields(bin); len(f) > 0 {
			bin = f[0]
		}
		if _, err := p.output(ctx, bin+" namespaces create sim --data-dir {dir}"); err != nil {
			return fmt.Errorf("%w\n(if the server is not Skein, say how to make a key: -key-cmd)", err)
		}
		one = bin + " preauthkeys create -n sim --reusable --data-dir {dir}"
		ephemeral = one + " --ephemeral"
	}
	if one != "" {
		key, err := p.output(ctx, one)
		if err != nil {
			return err
		}
		p.Keys = []string{key}
	}
	if ephemeral != "" {
		p.EphemeralKey, err = p.output(ctx, ephemeral)
	}
	return err
}

// output runs a command and returns the last line of what it prints.
func (p *Process) output(ctx context.Context, command string) (string, error) {
	out, err := shell(ctx, p.vars.Replace(command))
	lines := strings.Split(strings.TrimSpace(out), "\n")
	return strings.TrimSpace(lines[len(lines)-1]), err
}

// commandTimeout bounds a command that the simulator runs.
const commandTimeout = 2 * time.Minute

// shell runs a command; its error holds what the command said.
func shell(ctx context.Context, command string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-c", command)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w\n%s", command, err, strings.TrimSpace(said.String()))
	}
	return out.String(), nil
}

// ApproveCommand approves routes by a command, in which {id}, {name} and {route} stand for the node's id and name and the
// route, and what is known of p, which may be nil.
func ApproveCommand(command string, p *Process) func(context.Context, int64, string, netip.Prefix) error {
	return func(ctx context.Context, node int64, name string, route netip.Prefix) error {
		c := strings.NewReplacer("{id}", strconv.FormatInt(node, 10), "{name}", name, "{route}", route.String()).Replace(command)
		_, err := shell(ctx, p.expand(c))
		return err
	}
}

// PolicyCommand changes the policy by a command, in which {n} stands for 1, 2, 3, ...
func PolicyCommand(command string, p *Process) func(context.Context, int) error {
	return func(ctx context.Context, n int) error {
		_, err := shell(ctx, p.expand(strings.ReplaceAll(command, "{n}", strconv.Itoa(n))))
		return err
	}
}

func (p *Process) expand(command string) string {
	if p == nil {
		return command
	}
	return p.vars.Replace(command)
}

// Foreign is a server that somebody else runs: it is measured, not killed.
type Foreign int

// PID is the process.
func (f Foreign) PID() int { return int(f) }

// Kill does nothing.
func (f Foreign) Kill() error { return errors.ErrUnsupported }

// Start does nothing.
func (f Foreign) Start() error { return errors.ErrUnsupported }
