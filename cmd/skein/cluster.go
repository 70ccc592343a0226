package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"

	"github.com/skein-vpn/skein/api"
	"github.com/skein-vpn/skein/cluster"
	"github.com/skein-vpn/skein/config"
	"github.com/skein-vpn/skein/db"
	"github.com/skein-vpn/skein/derp"
	"github.com/skein-vpn/skein/tailnet"
)

var _ cluster.Store = (*db.DB)(nil)

// serverInfo is what servers tell each other (tailnet.Server.Info).
type serverInfo struct {
	Version string            `json:"version"`
	Addrs   []netip.Addr      `json:"addrs,omitempty"` // where clients reach the server; none if they are not to be told
	Relay   *tailcfg.DERPNode `json:"relay,omitempty"` // as clients are told
	Mesh    *tailcfg.DERPNode `json:"mesh,omitempty"`  // as the other relays reach it: without a proxy between
}

// openCluster makes this server one of those on the database, if that is on PostgreSQL.
func (s *server) openCluster(ctx context.Context) error {
	if !s.cfg.Database.IsPostgres() {
		return nil
	}
	name := s.cfg.Cluster.Name
	if name == "" {
		name, _ = os.Hostname()
	}
	info, err := s.serverInfo(name)
	if err != nil {
		return err
	}
	text, err := json.Marshal(info)
	if err != nil {
		return err
	}
	s.serverName, s.meet = name, make(chan struct{}, 1)
	s.cluster = cluster.New(cluster.Options{
		Store: s.db, Name: name, Info: string(text), StepAside: s.cfg.Cluster.StepAsideAfter.Std(), StartGrace: s.cfg.Routes.RestartGrace.Std(),
		Clock: s.clock, OnServers: s.knowServers, OnWord: s.hear, OnAside: s.stepAside, Log: s.log,
	})
	if err := s.clock.Start(ctx, s.db.Time); err != nil {
		return err
	}
	return s.cluster.Join(ctx)
}

// clusterAddrs are the addresses under which others reach this server itself.
func clusterAddrs(cfg *config.Config) (out []netip.Addr) {
	d := cfg.DERP.Server
	for _, text := range []string{d.IPv4, d.IPv6} {
		if a, err := netip.ParseAddr(text); err == nil {
			out = append(out, a)
		}
	}
	if len(out) == 0 {
		if a, err := netip.ParseAddr(localAddr()); err == nil {
			out = append(out, a)
		}
	}
	return out
}

// serverInfo describes this server to the others.
func (s *server) serverInfo(name string) (*serverInfo, error) {
	info := &serverInfo{Version: version()}
	if s.cfg.Cluster.TellClients {
		info.Addrs = clusterAddrs(s.cfg)
	}
	s.serverName = name
	e := s.sourcesOptions(s.cfg).Embedded
	if e == nil {
		return info, nil
	}
	var err error
	if info.Relay, err = e.Relay(); err != nil {
		return nil, err
	}
	_, port, _ := net.SplitHostPort(s.cfg.ListenAddr)
	n, _ := strconv.Atoi(port)
	info.Mesh = e.MeshRelay(n)
	if a, err := netip.ParseAddr(localAddr()); err == nil && info.Mesh != nil && !s.cfg.Cluster.TellClients {
		info.Mesh.IPv4, info.Mesh.IPv6 = a.String(), "none" // what clients are told is a proxy
		if a.Is6() {
			info.Mesh.IPv4, info.Mesh.IPv6 = "none", a.String()
		}
	}
	return info, nil
}

// setAddresses gives the relay of one of several servers an address of its own: all share the name in the URL.
func (s *server) setAddresses(e *derp.Embedded) {
	if s.serverName == "" {
		return
	}
	e.Node = s.serverName
	if e.IPv4 == "" && e.IPv6 == "" {
		for _, a := range clusterAddrs(s.cfg) {
			if a.Is4() {
				e.IPv4, e.IPv6 = a.String(), "none"
			} else {
				e.IPv4, e.IPv6 = "none", a.String()
			}
		}
	}
	s.peersMu.Lock()
	defer s.peersMu.Unlock()
	e.Others = nil
	for _, p := range s.peers {
		if p.Relay != nil && p.Relay.RegionID == e.RegionID {
			e.Others = append(e.Others, p.Relay)
		}
	}
}

// knowServers takes note of the servers there are; meetServers does what follows.
func (s *server) knowServers(servers []tailnet.Server) {
	var peers []serverInfo
	for _, o := range servers {
		var info serverInfo
		if err := json.Unmarshal([]byte(o.Info), &info); err != nil {
			s.log.Error("what another server says of itself cannot be read; it is left out of what clients are told", "server", o.Name, "err", err)
			continue
		}
		if o.Name != s.serverName {
			peers = append(peers, info)
		}
	}
	s.peersMu.Lock()
	s.peers = peers
	s.peersMu.Unlock()
	select {
	case s.meet <- struct{}{}:
	default:
	}
}

// meetServers tells clients and the relay of the servers there are, whenever those are others, until ctx ends.
func (s *server) meetServers(ctx context.Context) {
	for {
		select {
		case <-s.meet:
		case <-ctx.Done():
			return
		}
		if e := s.sourcesOptions(s.cfg).Embedded; e != nil {
			if err := s.sources.SetOthers(e.Others); err != nil {
				s.log.Error("the relays of other servers could not be entered into the relay map", "err", err)
			}
		}
		s.derpChanged(s.sources.Current()) // for the dial plan
		if s.relay != nil {
			var nodes []*tailcfg.DERPNode
			s.peersMu.Lock()
			for _, p := range s.peers {
				if p.Mesh != nil {
					nodes = append(nodes, p.Mesh)
				}
			}
			s.peersMu.Unlock()
			s.relay.Mesh(nodes)
		}
	}
}

// How clients go through the addresses of the servers.
const (
	dialNext         = 0.3 // seconds that the server of now is ahead of the next one, and so on
	candidateTimeout = 5   // seconds for each
)

// dialPlan tells running clients where all servers are, this one first, so that they find another one when it is gone. With one
// server, or if clients are not to be told, it is empty: they look the name up. nil without a cluster.
func (s *server) dialPlan() *tailcfg.ControlDialPlan {
	if s.cluster == nil {
		return nil
	}
	s.peersMu.Lock()
	defer s.peersMu.Unlock()
	plan := &tailcfg.ControlDialPlan{}
	if len(s.peers) == 0 || !s.cfg.Cluster.TellClients {
		return plan
	}
	delay := 0.0
	for i, p := range append([]serverInfo{{Addrs: clusterAddrs(s.cfg)}}, s.peers...) {
		for _, a := range p.Addrs {
			plan.Candidates = append(plan.Candidates, tailcfg.ControlIPCandidate{IP: a, DialStartDelaySec: delay, DialTimeoutSec: candidateTimeout, Priority: len(s.peers) - i})
		}
		delay += dialNext
	}
	return plan
}

// wordDecided is what servers say when somebody has decided about an SSH session.
const wordDecided = "ssh"

// hear takes what another server says.
func (s *server) hear(word string) {
	if word == wordDecided {
		s.auth.LookAgain()
	}
}

// decided tells the other servers that somebody has decided about an SSH session.
func (s *server) decided(ctx context.Context) {
	if s.cluster != nil {
		s.cluster.Say(ctx, wordDecided)
	}
}

// stepAside sends clients away, and takes them again.
func (s *server) stepAside(aside bool) {
	if s.control == nil {
		return
	}
	if aside {
		s.control.StepAside()
	} else {
		s.control.Return(s.cfg.Routes.RestartGrace.Std())
	}
}

// noiseKey is the server's identity. Servers on one database have one together: that of the first, which may bring it in its file.
func (s *server) noiseKey(ctx context.Context) (k key.MachinePrivate, err error) {
	path := s.cfg.Noise.PrivateKeyPath
	if s.cluster == nil {
		return loadNoiseKey(path)
	}
	own, err := readNoiseKey(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return k, err
	}
	text, err := s.db.Secret(ctx, "noise private key", func() (string, error) {
		if own.IsZero() {
			own = key.NewMachine()
		}
		b, err := own.MarshalText()
		return string(b), err
	})
	if err != nil {
		return k, err
	}
	if err := k.UnmarshalText([]byte(text)); err != nil {
		return k, fmt.Errorf("the servers' key in the database cannot be read: %w", err)
	}
	if !own.IsZero() && !own.Equal(k) {
		return k, fmt.Errorf("%s holds another key than the database, where all servers have theirs from, and clients accept only one: move the file away (noise.private_key_path)", path)
	}
	return k, nil
}

// meshKey is what the relays of all servers know each other by.
func (s *server) meshKey(ctx context.Context) (string, error) {
	return s.db.Secret(ctx, "relay mesh key", func() (string, error) {
		var b [32]byte
		_, _ = rand.Read(b[:])
		return hex.EncodeToString(b[:]), nil
	})
}

// clusterStatus is who shares the database, for people; nil if this server is alone.
func (s *server) clusterStatus() func(context.Context) ([]api.ClusterServer, error) {
	if s.cluster == nil {
		return nil
	}
	return func(ctx context.Context) ([]api.ClusterServer, error) {
		st, err := s.cluster.Status(ctx)
		if err != nil {
			return nil, err
		}
		out := []api.ClusterServer{}
		for _, o := range st.Servers {
			var info serverInfo
			_ = json.Unmarshal([]byte(o.Info), &info) // of another version, perhaps
			out = append(out, api.ClusterServer{
				ID: o.ID, Name: o.Name, Version: info.Version, Alive: o.Alive, Leads: o.ID == st.Leader, Self: o.ID == st.Self,
				Started: &o.Started, LastSeen: &o.Beat, ClockAhead: o.Skew.Seconds(), Relay: s.relayState(o, info.Mesh),
			})
		}
		return out, nil
	}
}

// relayState is how our relay gets on with that of another server.
func (s *server) relayState(o tailnet.Server, n *tailcfg.DERPNode) string {
	if s.relay == nil || n == nil || !o.Alive || o.Name == s.serverName {
		return ""
	}
	if s.relay.Reaches(n.Name) {
		return "reached"
	}
	return "unreached"
}

// clockText is how far a clock is ahead, for people.
func clockText(ahead float64) string {
	d := time.Duration(ahead * float64(time.Second))
	switch {
	case d.Abs() <= cluster.MaxSkew:
		return "right"
	case d > 0:
		return d.Round(time.Second).String() + " ahead"
	}
	return (-d).Round(time.Second).String() + " behind"
}

func newClusterCommand(c *cli) *cobra.Command {
	status := &cobra.Command{
		Use: "status", Aliases: []string{"show", "list", "ls"}, Short: "Show the servers that share the database",
		Long: `Show the servers that share the PostgreSQL database: which are there, which one leads (does what only
one may do), and how many nodes are online at each. A server that is gone is listed for a day.

Clock: whether the machine's clock agrees with the database's, by which all servers go.
Relay: whether the relay of the server that answers reaches the others'. Where it does not, clients at one that find no direct
path do not reach those at the other.`,
		Example: "  skein cluster status",
		Args:    wantArgs(), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			st, err := cl.Cluster(cmd.Context())
			if err != nil {
				return err
			}
			t := &table{head: []string{"Server", "State", "Role", "Nodes", "Clock", "Relay", "Version", "Started", "Last seen"}}
			for _, s := range st.Servers {
				state, role := "gone", ""
				if s.Alive {
					state = "alive"
				}
				var roles []string
				if s.Leads {
					roles = append(roles, "leader")
				}
				if s.Self {
					roles = append(roles, "this one")
				}
				role = strings.Join(roles, ", ")
				t.add(s.Name, state, role, strconv.Itoa(s.Nodes), clockText(s.ClockAhead), s.Relay, s.Version, clock(s.Started, ""), clock(s.LastSeen, ""))
			}
			return c.print(st, t)
		},
	}
	return group("cluster", nil, "Several servers on one PostgreSQL database", "  skein cluster status", status)
}
