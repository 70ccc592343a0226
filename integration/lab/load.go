package lab

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"sync"
	"sync/atomic"
	"time"

	"tailscale.com/control/tsp"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// Load is a process on a host that registers one light node after the other, ten a second, for as
// long as it runs. It goes on over failures: what the server has answered is what counts.
type Load struct{ *Process }

// StartLoad starts the registrations. authKey must be a reusable pre-auth key.
func (h *Host) StartLoad(serverURL, authKey string) *Load {
	h.l.t.Helper()
	self, err := os.Executable()
	if err != nil {
		h.l.t.Fatalf("lab: %v", err)
	}
	p := h.newProcess("load", []string{childEnv + "=load"}, self, serverURL, authKey)
	if err := p.Start(); err != nil {
		h.l.t.Fatal(err)
	}
	return &Load{p}
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
	if os.Getenv(childEnv) == "load" {
		childLoad(os.Args[len(os.Args)-2], os.Args[len(os.Args)-1])
	}
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
