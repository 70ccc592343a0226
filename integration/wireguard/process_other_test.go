//go:build !linux

package wireguard

import "os/exec"

// start starts cmd; ended gets what Wait returns.
func start(cmd *exec.Cmd) (ended <-chan error, err error) {
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	end := make(chan error, 1)
	go func() { end <- cmd.Wait() }()
	return end, nil
}
