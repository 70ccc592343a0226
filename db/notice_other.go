//go:build !linux

package db

import (
	"net"
	"time"
)

// notice is left out here: silence ends such connections, later.
func notice(net.Conn, time.Duration) {}
