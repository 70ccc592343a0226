package control

import (
	"sync/atomic"

	"github.com/skein-vpn/skein/control/h2"
)

// Counters count since the start. What is normal in small numbers is counted and not logged.
type Counters struct {
	Connections     atomic.Int64 // open Noise connections, now
	Handshakes      atomic.Int64 // that have succeeded
	BadHandshakes   atomic.Int64 // that have not
	RefusedConns    atomic.Int64 // over Limits.Connections
	Registrations   atomic.Int64 // answered with a node
	RejectedRegs    atomic.Int64 // answered with an error: an unknown key, say
	RefusedRegs     atomic.Int64 // over Limits.RegistrationsPerMinute
	FullMaps        atomic.Int64 // begun to be sent
	Deltas          atomic.Int64 // sent
	KeepAlives      atomic.Int64 // sent
	Reports         atomic.Int64 // of nodes, in which something was new
	HeldBack        atomic.Int64 // maps and reports of nodes that want too many; see Limits
	TooMany         atomic.Int64 // refused, because they would have had to wait for too long
	Rounds          atomic.Int64 // see rounds.go
	Woken           atomic.Int64 // map sessions, by rounds
	RoundNanos      atomic.Int64 // that they took, of those with many sessions
	ForeignNodes    atomic.Int64 // requests for a node of another machine
	ReplacedStreams atomic.Int64 // ended by a newer one of the same node

	H2 h2.Counters // what clients did wrong inside their connections
}

// Counters are the server's.
func (s *Server) Counters() *Counters { return &s.counters }
