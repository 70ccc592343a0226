//go:build unix

package config

import (
	"os"

	"golang.org/x/sys/unix"
)

// writable reports whether this process may create files in dir.
func writable(dir string) bool {
	fi, err := os.Stat(dir)
	return err == nil && fi.IsDir() && unix.Access(dir, unix.W_OK|unix.X_OK) == nil
}
