package db

import (
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// notice has the kernel end a connection whose other end has not confirmed for so long to have received what was sent (RFC 5482). A
// database that is busy or paused does confirm; a host that is gone does not, and TCP would try for a quarter of an hour.
func notice(c net.Conn, after time.Duration) {
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return // a Unix socket
	}
	if raw, err := tcp.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(after.Milliseconds()))
		})
	}
}
