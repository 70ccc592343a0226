package lab

import (
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// dnsServer answers A questions for a few names over UDP, so that clients find a name server that
// works and says quickly that a name does not exist.
type dnsServer struct {
	pc   net.PacketConn
	done chan struct{}

	mu    sync.Mutex
	names map[string][]netip.Addr // lower case, with the final dot
}

func startDNS(h *Host) (*dnsServer, error) {
	pc, err := h.ListenPacket("udp4", h.addr.String()+":53")
	if err != nil {
		return nil, err
	}
	s := &dnsServer{pc: pc, done: make(chan struct{}), names: map[string][]netip.Addr{}}
	go s.run()
	return s, nil
}

func (s *dnsServer) set(name string, addrs []netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.names[strings.ToLower(strings.TrimSuffix(name, "."))+"."] = addrs
}

// close stops the server and waits for it. It may be called on a nil server.
func (s *dnsServer) close() {
	if s == nil {
		return
	}
	s.pc.Close()
	<-s.done
}

func (s *dnsServer) run() {
	defer close(s.done)
	buf := make([]byte, 1500)
	for {
		n, from, err := s.pc.ReadFrom(buf)
		if err != nil {
			return
		}
		if answer := s.answer(buf[:n]); answer != nil {
			_ = s.pc.SetWriteDeadline(time.Now().Add(time.Second))
			_, _ = s.pc.WriteTo(answer, from) // lost answers are part of DNS
		}
	}
}

// answer returns the reply to a query, nil if it is not a query.
func (s *dnsServer) answer(query []byte) []byte {
	var p dnsmessage.Parser
	head, err := p.Start(query)
	if err != nil || head.Response {
		return nil
	}
	q, err := p.Question()
	if err != nil {
		return nil
	}
	m := dnsmessage.Message{
		Header: dnsmessage.Header{
			ID: head.ID, Response: true, Authoritative: true,
			RecursionDesired: head.RecursionDesired, RecursionAvailable: true,
		},
		Questions: []dnsmessage.Question{q},
	}
	s.mu.Lock()
	addrs, ok := s.names[strings.ToLower(q.Name.String())]
	s.mu.Unlock()
	switch {
	case !ok:
		m.RCode = dnsmessage.RCodeNameError
	case q.Type == dnsmessage.TypeA:
		for _, addr := range addrs {
			m.Answers = append(m.Answers, dnsmessage.Resource{
				Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 1},
				Body:   &dnsmessage.AResource{A: addr.As4()},
			})
		}
	}
	b, err := m.Pack()
	if err != nil {
		return nil
	}
	return b
}
