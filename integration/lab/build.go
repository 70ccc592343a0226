package lab

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// Client is one version of the stock client: the folder with its tailscale and tailscaled.
type Client struct {
	Version string // with the v, as "v1.102.5"
	dir     string
}

// builds serialises and remembers what was built in this process, by name.
var builds struct {
	mu     sync.Mutex
	own    map[string]*ownBuild
	client map[string]*Client
}

// clientTags leave out of the clients what lets them keep their state in AWS or Kubernetes: no test has
// use for it, and it takes long to compile.
const clientTags = "-tags=ts_omit_aws,ts_omit_kube"

// PinnedClient builds tailscale and tailscaled of the version that go.mod pins, once per version and
// machine: the binaries stay in the user's cache directory. They are built with the flags that tests
// are built with, so that packages that both need are compiled once.
func PinnedClient(t testing.TB) *Client {
	t.Helper()
	version, err := goOutput("list", "-m", "-f", "{{.Version}}", "tailscale.com")
	if err != nil {
		t.Fatalf("lab: version of tailscale.com: %v", err)
	}
	return client(t, strings.TrimSpace(version), "go.mod", func(dir string) error {
		_, err := goOutput("build", clientTags, "-ldflags=-s -w", "-o", dir+"/",
			"tailscale.com/cmd/tailscale", "tailscale.com/cmd/tailscaled")
		return err
	})
}

// OldClient builds the given version, such as "v1.80.3", from its own module with this Go. From cold
// that takes minutes.
func OldClient(t testing.TB, version string) *Client {
	t.Helper()
	return client(t, version, "release", func(dir string) error {
		cmd := exec.Command("go", "install", clientTags, "-ldflags=-s -w",
			"tailscale.com/cmd/tailscale@"+version, "tailscale.com/cmd/tailscaled@"+version)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GOBIN="+dir, "GOTOOLCHAIN=local", "GOWORK=off")
		return runQuiet(cmd)
	})
}

// client returns the built client from the cache, or has build make it.
func client(t testing.TB, version, kind string, build func(dir string) error) *Client {
	t.Helper()
	builds.mu.Lock()
	defer builds.mu.Unlock()
	if c := builds.client[version]; c != nil {
		return c
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	dir := filepath.Join(cache, "skein-lab", fmt.Sprintf("tailscale-%s-%s-%s", version, kind, runtime.Version()))
	if err := buildOnce(dir, build); err != nil {
		t.Fatalf("lab: build tailscale %s: %v", version, err)
	}
	c := &Client{Version: version, dir: dir}
	if builds.client == nil {
		builds.client = map[string]*Client{}
	}
	builds.client[version] = c
	return c
}

// buildOnce has build fill dir unless an earlier process did. Processes exclude each other by a lock
// on a file beside it, one build at a time, and dir appears only when complete.
func buildOnce(dir string, build func(dir string) error) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	lock, err := os.OpenFile(filepath.Join(filepath.Dir(dir), "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return err
	}
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	part := dir + ".part"
	if err := os.RemoveAll(part); err != nil {
		return err
	}
	if err := os.Mkdir(part, 0o755); err != nil {
		return err
	}
	if err := build(part); err != nil {
		return err
	}
	return os.Rename(part, dir)
}

// skeinBinary builds the server from this tree, once per test process, with the race detector if the
// test has it or SKEIN_LAB_RACE is 1. The next test process removes the binary.
func skeinBinary(t testing.TB) string {
	t.Helper()
	return ownBinary(t, "skein", wantRace())
}

// wantRace reports whether servers are built with the race detector.
func wantRace() bool { return raceEnabled || os.Getenv("SKEIN_LAB_RACE") == "1" }

// ownBinary builds a command of this tree, once per test process.
func ownBinary(t testing.TB, name string, race bool) string {
	t.Helper()
	return buildOwn(t, name, name, race)
}

// buildOwn builds a command of this tree under a name, once per test process.
func buildOwn(t testing.TB, name, command string, race bool, more ...string) string {
	t.Helper()
	builds.mu.Lock()
	if builds.own == nil {
		builds.own = map[string]*ownBuild{}
	}
	b := builds.own[name]
	if b == nil {
		b = &ownBuild{}
		builds.own[name] = b
	}
	builds.mu.Unlock()
	b.once.Do(func() { b.path, b.err = buildCommand(name, command, race, more) }) // who needs another one does not wait for this one
	if b.err != nil {
		t.Fatalf("lab: %v", b.err)
	}
	return b.path
}

// ownBuild is a command of this tree, built or about to be.
type ownBuild struct {
	once sync.Once
	path string
	err  error
}

func buildCommand(name, command string, race bool, more []string) (string, error) {
	dir, err := workDir("")
	if err != nil {
		return "", err
	}
	bin := filepath.Join(dir, name)
	args := []string{"build", "-o", bin}
	if race {
		args = append(args, "-race")
	}
	args = append(args, more...)
	if _, err := goOutput(append(args, "github.com/skein-vpn/skein/cmd/"+command)...); err != nil {
		return "", fmt.Errorf("build %s: %w", name, err)
	}
	return bin, nil
}

// workDir makes a directory in base (empty: the system's temporary folder) that carries this
// process's id, and removes those of processes that are gone.
func workDir(base string) (string, error) {
	if base == "" {
		base = os.TempDir()
	}
	left, err := filepath.Glob(filepath.Join(base, "skeinlab-*-*"))
	if err != nil {
		return "", err
	}
	for _, path := range left {
		var pid int
		if _, err := fmt.Sscanf(filepath.Base(path), "skeinlab-%d-", &pid); err != nil {
			continue // kept by a failed test
		}
		if syscall.Kill(pid, 0) == syscall.ESRCH {
			os.RemoveAll(path)
		}
	}
	return os.MkdirTemp(base, fmt.Sprintf("skeinlab-%d-", os.Getpid()))
}

// goOutput runs the go command in the module of the test.
func goOutput(args ...string) (string, error) {
	cmd := exec.Command("go", args...)
	var stdout bytes.Buffer
	cmd.Stdout = &stdout
	err := runQuiet(cmd)
	return stdout.String(), err
}

// runQuiet runs cmd and puts what it says on stderr into the error.
func runQuiet(cmd *exec.Cmd) error {
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, indent(stderr.String()))
	}
	return nil
}
