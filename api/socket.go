package api

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/skein-vpn/skein/tailnet"
)

// maxSocketPath is the longest path the kernel takes, in bytes (sun_path in unix(7), less its final zero).
const maxSocketPath = len(syscall.RawSockaddrUnix{}.Path) - 1

// probeTimeout is how long another server may take to accept a connection; locally that is the kernel's work.
const probeTimeout = time.Second

// ListenUnix listens on a unix socket at path with the given mode, which decides who may administer. A socket that a killed
// server has left behind is removed. It is an error, Conflict, if a server answers there, or if path is something else than
// a socket. Closing the listener removes the socket.
func ListenUnix(path string, mode os.FileMode) (net.Listener, error) {
	if len(path) > maxSocketPath {
		return nil, tailnet.Errorf(tailnet.Invalid, "the path of the unix socket is too long, %d bytes where %d are possible: %s; choose another one (unix_socket)",
			len(path), maxSocketPath, path)
	}
	if err := removeStale(path); err != nil {
		return nil, err
	}
	// The socket is made under another name and moved when its mode is right: nobody can connect before.
	dir, err := os.MkdirTemp(filepath.Dir(path), ".s")
	if err != nil {
		return nil, fmt.Errorf("making the unix socket %s: %w", path, err)
	}
	defer func() { _ = os.RemoveAll(dir) }() // empty, unless moving failed
	tmp := filepath.Join(dir, "s")
	if len(tmp) > maxSocketPath {
		return listenInPlace(path, mode)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: tmp, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listening on the unix socket %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false) // it would remove tmp
	if err = os.Chmod(tmp, mode); err == nil {
		err = os.Rename(tmp, path)
	}
	return newSocket(l, path, err)
}

// listenInPlace is ListenUnix for a path so long that no other name fits beside it: the mode comes a moment late.
func listenInPlace(path string, mode os.FileMode) (net.Listener, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listening on the unix socket %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false)
	return newSocket(l, path, os.Chmod(path, mode))
}

// removeStale makes room at path, unless something is there that is in use or is not ours.
func removeStale(path string) error {
	fi, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("looking at the unix socket %s: %w", path, err)
	case fi.Mode().Type() != fs.ModeSocket:
		return tailnet.Errorf(tailnet.Conflict, "%s is in the way: it is no socket; remove it, or choose another path (unix_socket)", path)
	}
	c, err := net.DialTimeout("unix", path, probeTimeout)
	if err == nil {
		_ = c.Close()
		return tailnet.Errorf(tailnet.Conflict, "another skein is running: it answers at %s", path)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return tailnet.Errorf(tailnet.Conflict, "there is a socket at %s, and it is not clear whether another skein uses it: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing the unix socket that an earlier server left at %s: %w", path, err)
	}
	return nil
}

// socket is a listener that removes its file when it is closed, unless another server has put its own there.
type socket struct {
	*net.UnixListener
	path string
	info os.FileInfo
}

// newSocket makes l the socket at path, unless err says that something went wrong before.
func newSocket(l *net.UnixListener, path string, err error) (net.Listener, error) {
	var info os.FileInfo
	if err == nil {
		info, err = os.Lstat(path)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("making the unix socket %s: %w", path, err), l.Close())
	}
	return &socket{UnixListener: l, path: path, info: info}, nil
}

// Accept returns connections that say who is at the other end: their RemoteAddr is "uid 1000".
func (s *socket) Accept() (net.Conn, error) {
	c, err := s.AcceptUnix()
	if err != nil {
		return nil, err
	}
	if uid, ok := peerUID(c); ok {
		return &peerConn{c, peerAddr(peerPrefix + strconv.FormatUint(uint64(uid), 10))}, nil
	}
	return c, nil
}

// peerPrefix begins the RemoteAddr of a request that came over a unix socket; the number of the user follows.
const peerPrefix = "uid "

// peerConn is a connection over the socket of a user that the kernel vouches for.
type peerConn struct {
	*net.UnixConn
	peer peerAddr
}

func (c *peerConn) RemoteAddr() net.Addr { return c.peer }

type peerAddr string

func (peerAddr) Network() string  { return "unix" }
func (a peerAddr) String() string { return string(a) }

func (s *socket) Close() error {
	err := s.UnixListener.Close()
	if now, serr := os.Lstat(s.path); serr == nil && os.SameFile(now, s.info) {
		_ = os.Remove(s.path)
	}
	return err
}

// Addr is where clients find the socket.
func (s *socket) Addr() net.Addr { return &net.UnixAddr{Name: s.path, Net: "unix"} }
