package lab

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"tailscale.com/control/tsp"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// Load is a process on a host that registers light nodes. It goes on over failures: what the server
// has answered is what counts.
type Load struct{ *Process }

// StartLoad starts registrations one after the other, ten a second, for as long as the process runs.
// authKey must be a reusable pre-auth key.
func (h *Host) StartLoad(serverURL, authKey string) *Load {
	h.l.t.Helper()
	return h.startLoad("load", serverURL, authKey)
}

// StartBurst starts n registrations at the same moment.
func (h *Host) StartBurst(serverURL, authKey string, n int) *Load {
	h.l.t.Helper()
	return h.startLoad("burst", serverURL, authKey, strconv.Itoa(n))
}

func (h *Host) startLoad(kind string, args ...string) *Load {
	h.l.t.Helper()
	self, err := os.Executable()
	if err != nil {
		h.l.t.Fatalf("lab: %v", err)
	}
	p := h.newProcess(kind, []string{childEnv + "=" + kind}, self, args...)
	if err := p.Start(); err != nil {
		h.l.t.Fatal(err)
	}
	return &Load{p}
}

// StartSimulator starts the simulator (cmd/skeinsim) on the host, with these flags. What it says is in its log.
func (h *Host) StartSimulator(args ...string) *Process {
	h.l.t.Helper()
	p := h.newProcess("skeinsim", nil, ownBinary(h.l.t, "skeinsim", false), args...)
	if err := p.Start(); err != nil {
		h.l.t.Fatal(err)
	}
	return p
}

var loadLine = regexp.MustCompile(`(?m)^registered (\S+)$`)

// Registered returns the host names for which the server has answered that they are registered.
func (ld *Load) Registered() (names []string) {
	for _, m := range loadLine.FindAllStringSubmatch(ld.Log(), -1) {
		names = append(names, m[1])
	}
	return names
}

func init() {
	switch args := os.Args; os.Getenv(childEnv) {
	case "load":
		childLoad(args[len(args)-2], args[len(args)-1])
	case "burst":
		childBurst(args[len(args)-3], args[len(args)-2], args[len(args)-1])
		os.Exit(0)
	}
}

// childBurst is the main of the burst process.
func childBurst(serverURL, authKey, count string) {
	n, err := strconv.Atoi(count)
	if err != nil {
		panic(err)
	}
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			name := fmt.Sprintf("burst-%d", i)
			if err := registerLight(serverURL, authKey, name); err != nil {
				fmt.Printf("failed %s: %v\n", name, err)
				return
			}
			fmt.Printf("registered %s\n", name)
		})
	}
	wg.Wait()
}

// childLoad is the re-executed test binary's main in the load process; it runs until killed.
func childLoad(serverURL, authKey string) {
	var (
		wg    sync.WaitGroup
		count atomic.Int64
		tick  = time.Tick(100 * time.Millisecond)
	)
	for range 4 {
		wg.Go(func() {
			for range tick {
				name := fmt.Sprintf("load-%d", count.Add(1))
				if err := registerLight(serverURL, authKey, name); err != nil {
					fmt.Printf("failed %s: %v\n", name, err)
					continue
				}
				fmt.Printf("registered %s\n", name)
			}
		})
	}
	wg.Wait()
}

// registerLight registers one node over a connection of its own.
func registerLight(serverURL, authKey, name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	serverKey, err := tsp.DiscoverServerKey(ctx, serverURL)
	if err != nil {
		return err
	}
	c, err := tsp.NewClient(tsp.ClientOpts{ServerURL: serverURL, MachineKey: key.NewMachine()})
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetControlPublicKey(serverKey)
	_, err = c.Register(ctx, tsp.RegisterOpts{
		NodeKey: key.NewNode(), AuthKey: authKey, Hostinfo: &tailcfg.Hostinfo{Hostname: name, OS: "linux"},
	})
	return err
}
