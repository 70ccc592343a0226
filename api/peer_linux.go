package api

import (
	"net"
	"syscall"
)

// peerUID is the user at the other end of c, who connected (SO_PEERCRED in unix(7)).
func peerUID(c *net.UnixConn) (uid uint32, ok bool) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, false
	}
	err = raw.Control(func(fd uintptr) {
		cred, cerr := syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
		if cerr == nil {
			uid, ok = cred.Uid, true
		}
	})
	return uid, ok && err == nil
}
