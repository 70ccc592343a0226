// Package pgtest runs a real PostgreSQL for tests: Debian's package, a folder of its own under the temporary one, a Unix user that
// is not root, a free port of loopback (or of a network namespace), and no more than the test binary's life.
//
//	func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }     stops the shared one
//	url := pgtest.Database(t)                                   a new, empty database in the shared one
//	s := pgtest.Start(t, pgtest.Options{})                      one of its own, to be stopped, paused and killed
//
// Where PostgreSQL is missing tests skip, unless SKEIN_LAB_REQUIRED=1 says that nothing may be skipped. Only tests may import it.
package pgtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// How long PostgreSQL may take to start or to stop, on a machine under load.
const patience = time.Minute

// Options say how PostgreSQL runs.
type Options struct {
	Durable bool   // with fsync, for measurements; without it a kill -9 still loses nothing, only a power cut would
	Addr    string // to listen on; empty: 127.0.0.1
	Port    int    // 0: a free one
	Trust   string // network that may connect without a password; empty: loopback only
}

// Server is one PostgreSQL.
type Server struct {
	Addr string // host:port
	o    Options
	dir  string
	cred *syscall.Credential // nil: as this process
	cmd  *exec.Cmd
	done chan struct{} // closed when cmd has ended
	log  *os.File
	n    atomic.Int64 // databases made
}

// Start runs a PostgreSQL until the test ends.
func Start(t testing.TB, o Options) *Server {
	t.Helper()
	s, err := start(o)
	if err != nil {
		unavailable(t, err)
	}
	t.Cleanup(s.remove)
	return s
}

// unavailable skips the test, or fails it where nothing may be skipped or something other than a missing package is to blame.
func unavailable(t testing.TB, err error) {
	t.Helper()
	if errors.Is(err, errMissing) && os.Getenv("SKEIN_LAB_REQUIRED") == "" {
		t.Skip("no test with PostgreSQL: ", err)
	}
	t.Fatal("PostgreSQL: ", err)
}

var errMissing = errors.New("it is not installed (apt-get install postgresql)")

// program is the path of one of PostgreSQL's own programs, which Debian does not put on the path.
func program(name string) (string, error) {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/" + name)
	if len(found) > 0 {
		slices.Sort(found)
		return found[len(found)-1], nil
	}
	if p, err := exec.LookPath(name); err == nil {
		return p, nil
	}
	return "", errMissing
}

func start(o Options) (*Server, error) {
	s, err := initialize(o)
	if err != nil {
		return nil, err
	}
	if err := s.Run(); err != nil {
		s.remove()
		return nil, err
	}
	return s, nil
}

// Files are those of a PostgreSQL that somebody else runs, as root in a network namespace. They are removed with the test.
type Files struct {
	Command []string // that runs it
	s       *Server
}

// Prepare makes the files of a PostgreSQL. The database "postgres" is there, and the user skein may do anything in it.
func Prepare(t testing.TB, o Options) *Files {
	t.Helper()
	s, err := initialize(o)
	if err != nil {
		unavailable(t, err)
	}
	return s.files(t)
}

// Copy is a place for a copy of f that follows it (a standby), reached at source, a connection string. The command copies makes it, once
// f runs; as Files.Command it is for root.
func (f *Files) Copy(t testing.TB, source string) (standby *Files, copies []string) {
	t.Helper()
	s, err := newServer(f.s.o)
	if err != nil {
		unavailable(t, err)
	}
	return s.files(t), append(s.as(t, "pg_basebackup"), "-D", s.data(), "-d", source, "-R", "--checkpoint=fast", "--no-sync")
}

func (s *Server) files(t testing.TB) *Files {
	t.Helper()
	t.Cleanup(s.remove)
	return &Files{Command: append(s.as(t, "postgres"), s.args()...), s: s}
}

// as is how root runs one of PostgreSQL's programs, which want to be somebody else.
func (s *Server) as(t testing.TB, name string) (command []string) {
	t.Helper()
	path, err := program(name)
	if err != nil {
		unavailable(t, err)
	}
	if s.cred != nil {
		command = []string{"/usr/bin/setpriv", "--reuid=" + strconv.Itoa(int(s.cred.Uid)), "--regid=" + strconv.Itoa(int(s.cred.Gid)), "--clear-groups", "--pdeathsig=KILL"}
	}
	return append(command, path)
}

// newServer finds a folder and a port.
func newServer(o Options) (_ *Server, err error) {
	if o.Addr == "" {
		o.Addr = "127.0.0.1"
	}
	if o.Port == 0 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		o.Port = l.Addr().(*net.TCPAddr).Port
		l.Close()
	}
	s := &Server{o: o, Addr: net.JoinHostPort(o.Addr, strconv.Itoa(o.Port))}
	if s.dir, err = os.MkdirTemp("", "skein-postgres-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.remove()
		}
	}()
	if s.log, err = os.Create(filepath.Join(s.dir, "log")); err != nil {
		return nil, err
	}
	return s, s.owner()
}

// initialize makes the files.
func initialize(o Options) (_ *Server, err error) {
	initdb, err := program("initdb")
	if err != nil {
		return nil, err
	}
	s, err := newServer(o)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.remove()
		}
	}()
	cmd := exec.Command(initdb, "-D", s.data(), "-U", "skein", "--auth=trust", "--no-sync", "-E", "UTF8", "--locale=C.UTF-8")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.cred}
	cmd.Dir = s.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("initdb: %w: %s", err, bytes.TrimSpace(out))
	}
	if o.Trust != "" {
		f, err := os.OpenFile(filepath.Join(s.data(), "pg_hba.conf"), os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(f, "host all all %s trust\nhost replication all %s trust\n", o.Trust, o.Trust)
		f.Close()
	}
	return s, nil
}

func (s *Server) data() string { return filepath.Join(s.dir, "data") }

// owner finds a user for PostgreSQL, which refuses to run as root, and gives it the folder.
func (s *Server) owner() error {
	if os.Getuid() != 0 {
		return nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		if u, err = user.Lookup("nobody"); err != nil {
			return err
		}
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	s.cred = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	return os.Chown(s.dir, int(uid), int(gid))
}

// Run starts PostgreSQL, again if it was stopped, and returns once it answers.
func (s *Server) Run() error {
	postgres, err := program("postgres")
	if err != nil {
		return err
	}
	cmd := exec.Command(postgres, s.args()...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = s.dir, s.log, s.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.cred, Pdeathsig: syscall.SIGQUIT, Setpgid: true}
	s.cmd, s.done = cmd, make(chan struct{})
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // Pdeathsig is about the thread that starts the child
		started <- cmd.Start()
		if cmd.Process != nil {
			_ = cmd.Wait()
		}
		close(s.done)
	}()
	if err := <-started; err != nil {
		return err
	}
	return s.waitAnswer()
}

func (s *Server) args() []string {
	fsync := "off"
	if s.o.Durable {
		fsync = "on"
	}
	return []string{"-D", s.data(), "-p", strconv.Itoa(s.o.Port), "-k", "", "-c", "listen_addresses=" + s.o.Addr, "-c", "fsync=" + fsync,
		"-c", "max_connections=200", "-c", "shared_buffers=32MB"}
}

// waitAnswer waits until a query is answered.
func (s *Server) waitAnswer() error {
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		err := s.exec("SELECT 1")
		if err == nil {
			return nil
		}
		select {
		case <-s.done:
			return fmt.Errorf("it ended at once: %s", s.tail())
		default:
		}
		if time.Now().After(end) {
			return fmt.Errorf("no answer: %w: %s", err, s.tail())
		}
	}
}

func (s *Server) tail() string {
	b, _ := os.ReadFile(s.log.Name())
	return string(b[max(0, len(b)-800):])
}

func (s *Server) exec(sql string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := pgx.Connect(ctx, s.URL("postgres"))
	if err != nil {
		return err
	}
	defer func() { _ = c.Close(ctx) }()
	_, err = c.Exec(ctx, sql)
	return err
}

// URL names a database of the server.
func (s *Server) URL(database string) string {
	return "postgres://skein@" + s.Addr + "/" + database + "?sslmode=disable"
}

// NewDatabase makes an empty database and returns its URL.
func (s *Server) NewDatabase(t testing.TB) string {
	t.Helper()
	name := fmt.Sprintf("t%d", s.n.Add(1))
	if err := s.exec("CREATE DATABASE " + name); err != nil {
		t.Fatal(err)
	}
	return s.URL(name)
}

// Stop ends PostgreSQL in good order, connections or not.
func (s *Server) Stop() { s.end(syscall.SIGINT) }

// Kill ends PostgreSQL as a power cut would: nothing is written any more.
func (s *Server) Kill() { s.end(syscall.SIGKILL) }

func (s *Server) end(sig syscall.Signal) {
	if s.cmd == nil || s.cmd.Process == nil {
		return
	}
	select {
	case <-s.done:
		return
	default:
	}
	pids := s.processes()
	if sig == syscall.SIGKILL {
		for _, pid := range pids {
			_ = syscall.Kill(pid, sig)
		}
	} else {
		_ = syscall.Kill(pids[0], sig)
	}
	select {
	case <-s.done:
	case <-time.After(patience):
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		<-s.done
	}
	for _, pid := range pids[1:] {
		if sig != syscall.SIGKILL {
			break // nobody starts it again
		}
		// processes of the server leave by themselves, but not at once
		for end := time.Now().Add(5 * time.Second); runs(pid) && time.Now().Before(end); {
			time.Sleep(5 * time.Millisecond)
		}
	}
}

// runs reports whether there is such a process and it is more than a name that nobody has collected.
func runs(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	return len(f) > 0 && f[0] != "Z"
}

// processes are the server's process and its children.
func (s *Server) processes() []int { return Processes(s.cmd.Process.Pid) }

// Processes are the process of a PostgreSQL and its children.
func Processes(server int) []int {
	pids := []int{server}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, name := range stats {
		b, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
		if len(f) > 1 && f[1] == strconv.Itoa(pids[0]) && f[0] != "Z" {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(name)))
			pids = append(pids, pid)
		}
	}
	return pids
}

// Pause stops all processes of PostgreSQL where they are: connections stay open and nothing answers. Resume lets them go on.
func (s *Server) Pause() {
	for _, pid := range s.processes() {
		_ = syscall.Kill(pid, syscall.SIGSTOP)
	}
}

// Resume ends Pause.
func (s *Server) Resume() {
	for _, pid := range slices.Backward(s.processes()) {
		_ = syscall.Kill(pid, syscall.SIGCONT)
	}
}

func (s *Server) remove() {
	if s.cmd != nil {
		s.Resume()
		s.end(syscall.SIGQUIT)
	}
	if s.log != nil {
		s.log.Close()
	}
	_ = os.RemoveAll(s.dir)
}

var shared struct {
	once sync.Once
	s    *Server
	err  error
}

// Shared is one PostgreSQL for all tests of a binary. Main, or StopShared, ends it.
func Shared(t testing.TB) *Server {
	t.Helper()
	shared.once.Do(func() { shared.s, shared.err = start(Options{}) })
	if shared.err != nil {
		unavailable(t, shared.err)
	}
	return shared.s
}

// Database is the URL of a new, empty database in the shared PostgreSQL.
func Database(t testing.TB) string {
	t.Helper()
	return Shared(t).NewDatabase(t)
}

// StopShared ends the shared PostgreSQL, if there is one.
func StopShared() {
	if shared.s != nil {
		shared.s.remove()
	}
}

// Main runs the tests and then ends the shared PostgreSQL.
func Main(m *testing.M) int {
	defer StopShared()
	return m.Run()
}
