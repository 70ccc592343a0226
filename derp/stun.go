package derp

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"tailscale.com/net/stun"
)

// STUN answers binding requests: it tells the sender which address and port its packet came from. Answers leave from the address
// that was asked, which matters on a server with several: a client behind NAT hears no other.
type STUN struct {
	socks   []*net.UDPConn
	running sync.WaitGroup
	log     *slog.Logger

	answered atomic.Int64
	ignored  atomic.Int64
}

// ListenSTUN opens the UDP port and starts to answer. addr is "host:port"; an empty host means all addresses, IPv4 and IPv6, and
// either family may be missing on this machine. Errors name the port. Close ends it.
func ListenSTUN(addr string, log *slog.Logger) (*STUN, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("STUN address %q: want host:port or :port, such as :3478", addr)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil {
		return nil, fmt.Errorf("STUN address %q: %q is not a port, want 0 to 65535 (0 picks a free one)", addr, port)
	} else {
		port = strconv.FormatUint(n, 10)
	}
	s := &STUN{log: log}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	var failed error
	for _, network := range stunNetworks(host) {
		pc, err := net.ListenPacket(network, net.JoinHostPort(host, port))
		if err != nil {
			if errors.Is(err, syscall.EADDRINUSE) {
				err = fmt.Errorf("STUN: UDP port %s is already in use by another program (address %s): stop that program, or choose another derp.server.stun_listen_addr", port, addr)
			} else {
				err = fmt.Errorf("STUN: cannot listen on UDP %s: %w", addr, err)
			}
			if failed = errors.Join(failed, err); missingFamily(err) {
				continue
			}
			return nil, errors.Join(err, s.Close())
		}
		sock := pc.(*net.UDPConn)
		if port == "0" {
			port = strconv.Itoa(sock.LocalAddr().(*net.UDPAddr).Port) // the same for both families
		}
		s.socks = append(s.socks, sock)
	}
	if len(s.socks) == 0 {
		return nil, failed
	}
	for _, sock := range s.socks {
		s.running.Go(func() { s.serve(sock) })
	}
	return s, nil
}

func stunNetworks(host string) []string {
	ip, err := netip.ParseAddr(host)
	switch {
	case host == "" || err == nil && ip == netip.IPv6Unspecified():
		return []string{"udp4", "udp6"}
	case err != nil:
		return []string{"udp"}
	case ip.Is4():
		return []string{"udp4"}
	default:
		return []string{"udp6"}
	}
}

// missingFamily reports whether an address family is not there at all, as with IPv6 switched off in the kernel.
func missingFamily(err error) bool {
	return errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, syscall.EADDRNOTAVAIL)
}

// Addr returns the address listened on; with several, the first.
func (s *STUN) Addr() netip.AddrPort { return s.socks[0].LocalAddr().(*net.UDPAddr).AddrPort() }

// Answered and Ignored count packets since the start: answered, and thrown away because they were no STUN binding request.
func (s *STUN) Answered() int64 { return s.answered.Load() }

// Ignored: see Answered.
func (s *STUN) Ignored() int64 { return s.ignored.Load() }

// Close frees the port and waits until nothing is answered any more.
func (s *STUN) Close() error {
	var errs []error
	for _, sock := range s.socks {
		errs = append(errs, sock.Close())
	}
	s.running.Wait()
	return errors.Join(errs...)
}

// serve answers on one socket until it is closed.
func (s *STUN) serve(sock *net.UDPConn) {
	read := packetReader(sock)
	var buf [1500]byte // a request is 40 bytes; what is longer than this is none
	for {
		n, from, answer, err := read(buf[:])
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			// Such as an ICMP error for an earlier answer. The next read waits for the next packet, so this does not spin.
			s.log.Debug("STUN read", "err", err)
			continue
		}
		txID, err := stun.ParseBindingRequest(buf[:n])
		if err != nil || !from.IsValid() {
			s.ignored.Add(1)
			continue
		}
		if err := answer(stun.Response(txID, netip.AddrPortFrom(from.Addr().Unmap(), from.Port()))); err != nil {
			s.log.Debug("STUN answer", "remote", from, "err", err)
			continue
		}
		s.answered.Add(1)
	}
}

// packetReader returns a function that reads a packet, says who sent it, and gives back how to answer from the address it was
// sent to. Where the system cannot tell that address, it chooses one.
func packetReader(sock *net.UDPConn) func([]byte) (int, netip.AddrPort, func([]byte) error, error) {
	if sock.LocalAddr().(*net.UDPAddr).IP.To4() != nil {
		pc := ipv4.NewPacketConn(sock)
		if pc.SetControlMessage(ipv4.FlagDst, true) == nil {
			return func(b []byte) (int, netip.AddrPort, func([]byte) error, error) {
				n, cm, from, err := pc.ReadFrom(b)
				return n, addrPort(from), func(p []byte) error {
					var out *ipv4.ControlMessage
					if cm != nil {
						out = &ipv4.ControlMessage{Src: cm.Dst}
					}
					_, err := pc.WriteTo(p, out, from)
					return err
				}, err
			}
		}
	} else {
		pc := ipv6.NewPacketConn(sock)
		if pc.SetControlMessage(ipv6.FlagDst, true) == nil {
			return func(b []byte) (int, netip.AddrPort, func([]byte) error, error) {
				n, cm, from, err := pc.ReadFrom(b)
				return n, addrPort(from), func(p []byte) error {
					var out *ipv6.ControlMessage
					if cm != nil {
						out = &ipv6.ControlMessage{Src: cm.Dst}
					}
					_, err := pc.WriteTo(p, out, from)
					return err
				}, err
			}
		}
	}
	return func(b []byte) (int, netip.AddrPort, func([]byte) error, error) {
		n, from, err := sock.ReadFromUDPAddrPort(b)
		return n, from, func(p []byte) error {
			_, err := sock.WriteToUDPAddrPort(p, from)
			return err
		}, err
	}
}

func addrPort(a net.Addr) netip.AddrPort {
	if u, ok := a.(*net.UDPAddr); ok {
		return u.AddrPort()
	}
	return netip.AddrPort{}
}
