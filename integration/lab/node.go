package lab

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"regexp"
	"sort"
	"strings"
	"time"

	"tailscale.com/client/local"
	"tailscale.com/ipn/ipnstate"
)

// Node is a stock tailscaled on a host, with its own state directory. It starts out logged out and
// gets its identity from Up or Login.
type Node struct {
	*Process
	Host     *Host
	client   *Client
	socket   string
	local    local.Client
	logins   int
	commands int // started with StartCLI
}

// NodeOptions are the variations of a tailscaled; the zero value is the pinned version with nothing
// special.
type NodeOptions struct {
	Client *Client  // nil: PinnedClient
	Args   []string // further arguments of tailscaled
	Env    []string // environment variables of tailscaled, as "NAME=value"
}

// StartTailscaled starts a tailscaled with a real TUN device on the host and waits until it answers.
// One per host.
func (h *Host) StartTailscaled(o NodeOptions) *Node {
	h.l.t.Helper()
	if o.Client == nil {
		o.Client = PinnedClient(h.l.t)
	}
	n := &Node{Host: h, client: o.Client, socket: filepath.Join(h.dir, "ts.sock")}
	args := append([]string{
		"--verbose=1", "--no-logs-no-support", "--tun=tailscale0",
		"--statedir=" + filepath.Join(h.dir, "state"), "--socket=" + n.socket,
	}, o.Args...)
	n.Process = h.newProcess("tailscaled", o.Env, filepath.Join(o.Client.dir, "tailscaled"), args...)
	n.local = local.Client{Socket: n.socket, UseSocketOnly: true}
	n.StartAgain()
	return n
}

// StartAgain starts the tailscaled after Kill or Stop, with the state it had, and waits until it
// answers on its socket.
func (n *Node) StartAgain() {
	n.Host.l.t.Helper()
	if err := n.Start(); err != nil {
		n.Host.l.t.Fatal(err)
	}
	n.Host.l.Wait(20*time.Second, n.name+" answers", func() (bool, string) {
		if !n.Running() {
			return false, "it has ended:\n" + n.Tail(10)
		}
		_, err := n.status()
		return err == nil, fmt.Sprint(err)
	})
}

// CLI runs the tailscale command against this node, for at most timeout.
func (n *Node) CLI(timeout time.Duration, args ...string) Result {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return n.Host.Command(ctx, n.cliPath(), append([]string{"--socket=" + n.socket}, args...)...)
}

// MustCLI runs the tailscale command with a generous time limit and ends the test if it fails. It
// returns stdout.
func (n *Node) MustCLI(args ...string) string {
	n.Host.l.t.Helper()
	r := n.CLI(60*time.Second, args...)
	if r.Err != nil {
		n.Host.l.t.Fatal(r)
	}
	return r.Stdout
}

func (n *Node) cliPath() string { return filepath.Join(n.client.dir, "tailscale") }

// Up runs "tailscale up" with the given login server and arguments and waits until it is through,
// which needs a pre-auth key among them or a node that is logged in.
func (n *Node) Up(loginServer string, args ...string) {
	n.Host.l.t.Helper()
	n.MustCLI(append([]string{"up", "--login-server=" + loginServer, "--timeout=50s"}, args...)...)
}

// Login is a "tailscale up" that waits for somebody to approve it.
type Login struct {
	URL string // printed by the command
	Key string // last path element of URL, what "skein nodes register --key" takes
	p   *Process
}

var authURL = regexp.MustCompile(`To authenticate, visit:\s+(https?://\S+)`)

// Login starts "tailscale up" without a key and returns once it has printed the address to visit.
func (n *Node) Login(loginServer string, args ...string) *Login {
	n.Host.l.t.Helper()
	args = append([]string{"--socket=" + n.socket, "up", "--login-server=" + loginServer}, args...)
	n.logins++
	p := n.Host.newProcess(fmt.Sprintf("up%d", n.logins), nil, n.cliPath(), args...)
	if err := p.Start(); err != nil {
		n.Host.l.t.Fatal(err)
	}
	lg := &Login{p: p}
	n.Host.l.Wait(30*time.Second, "tailscale up on "+n.Host.name+" prints an address", func() (bool, string) {
		if m := authURL.FindStringSubmatch(p.Log()); m != nil {
			lg.URL = m[1]
			return true, ""
		}
		return false, "it has printed:\n" + p.Log()
	})
	lg.Key = lg.URL[strings.LastIndex(lg.URL, "/")+1:]
	return lg
}

// Wait waits until the command has ended well and returns how long that took.
func (lg *Login) Wait(timeout time.Duration) time.Duration {
	l := lg.p.h.l
	l.t.Helper()
	begin := time.Now()
	select {
	case <-lg.p.done:
	case <-time.After(timeout):
		l.t.Fatalf("%s: still waiting after %v:\n%s", lg.p.name, timeout, lg.p.Log())
	}
	if lg.p.err != nil {
		l.t.Fatalf("%s: %v:\n%s", lg.p.name, lg.p.err, lg.p.Log())
	}
	return time.Since(begin)
}

// StartCLI starts a tailscale command against this node and does not wait for it.
func (n *Node) StartCLI(args ...string) *Process {
	n.Host.l.t.Helper()
	n.commands++
	p := n.Host.newProcess(fmt.Sprintf("%s%d", args[0], n.commands), nil, n.cliPath(), append([]string{"--socket=" + n.socket}, args...)...)
	if err := p.Start(); err != nil {
		n.Host.l.t.Fatal(err)
	}
	return p
}

// Status returns the node's view of itself and its peers.
func (n *Node) Status() *ipnstate.Status {
	n.Host.l.t.Helper()
	st, err := n.status()
	if err != nil {
		n.Host.l.t.Fatalf("%s: status: %v", n.name, err)
	}
	return st
}

func (n *Node) status() (*ipnstate.Status, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return n.local.Status(ctx)
}

// WaitFor waits until the node's status fulfils cond and returns that status.
func (n *Node) WaitFor(timeout time.Duration, what string, cond func(*ipnstate.Status) bool) (st *ipnstate.Status) {
	n.Host.l.t.Helper()
	n.Host.l.Wait(timeout, n.Host.name+": "+what, func() (bool, string) {
		var err error
		if st, err = n.status(); err != nil {
			return false, err.Error()
		}
		return cond(st), Brief(st)
	})
	return st
}

// WaitRunning waits until the node is connected and up.
func (n *Node) WaitRunning(timeout time.Duration) {
	n.Host.l.t.Helper()
	n.WaitState(timeout, "Running")
}

// WaitState waits for one of the client's states, such as "Running" or "NeedsLogin".
func (n *Node) WaitState(timeout time.Duration, state string) {
	n.Host.l.t.Helper()
	n.WaitFor(timeout, "state "+state, func(st *ipnstate.Status) bool { return st.BackendState == state })
}

// WaitPeer waits until the node lists a peer with the given host name that fulfils cond; a nil cond
// is fulfilled by every peer. It returns that peer.
func (n *Node) WaitPeer(timeout time.Duration, hostname string, cond func(*ipnstate.PeerStatus) bool) (p *ipnstate.PeerStatus) {
	n.Host.l.t.Helper()
	n.WaitFor(timeout, "peer "+hostname, func(st *ipnstate.Status) bool {
		p = Peer(st, hostname)
		return p != nil && (cond == nil || cond(p))
	})
	return p
}

// WaitNoPeer waits until the node lists no peer with the given host name.
func (n *Node) WaitNoPeer(timeout time.Duration, hostname string) {
	n.Host.l.t.Helper()
	n.WaitFor(timeout, "no peer "+hostname, func(st *ipnstate.Status) bool { return Peer(st, hostname) == nil })
}

// Peer returns the peer with the given host name, nil if there is none. Of several it is any.
func Peer(st *ipnstate.Status, hostname string) *ipnstate.PeerStatus {
	for _, p := range st.Peer {
		if p.HostName == hostname {
			return p
		}
	}
	return nil
}

// IP4 is the node's Tailscale address. The node must have one.
func (n *Node) IP4() netip.Addr { n.Host.l.t.Helper(); return n.ip(netip.Addr.Is4) }

// IP6 is the node's IPv6 Tailscale address. The node must have one.
func (n *Node) IP6() netip.Addr { n.Host.l.t.Helper(); return n.ip(netip.Addr.Is6) }

func (n *Node) ip(fits func(netip.Addr) bool) netip.Addr {
	n.Host.l.t.Helper()
	st := n.Status()
	for _, a := range st.TailscaleIPs {
		if fits(a) {
			return a
		}
	}
	n.Host.l.t.Fatalf("%s has no address of that family: %s", n.name, Brief(st))
	return netip.Addr{}
}

// Ping sends ICMP pings through the node's host to addr, see Host.Ping, and ends the test if none is
// answered.
func (n *Node) Ping(timeout time.Duration, addr netip.Addr) time.Duration {
	n.Host.l.t.Helper()
	rtt, err := n.Host.Ping(timeout, addr)
	if err != nil {
		n.Host.l.t.Fatalf("%s %v", time.Now().Format("15:04:05.000"), err)
	}
	return rtt
}

var pongVia = regexp.MustCompile(`pong from \S+ \([^)]*\) via (\S+) in`)

// Vias runs "tailscale ping" with the given arguments and returns the ways the answers came: an
// address and port for a direct path, "DERP(code)" for the relay.
func (n *Node) Vias(timeout time.Duration, args ...string) ([]string, Result) {
	r := n.CLI(timeout, append([]string{"ping"}, args...)...)
	var vias []string
	for _, m := range pongVia.FindAllStringSubmatch(r.Stdout, -1) {
		vias = append(vias, m[1])
	}
	return vias, r
}

// WaitDirect waits until "tailscale ping" says that the path to addr is direct and returns the
// peer's address and port on it.
func (n *Node) WaitDirect(timeout time.Duration, addr netip.Addr) netip.AddrPort {
	n.Host.l.t.Helper()
	var at netip.AddrPort
	n.Host.l.Wait(timeout, fmt.Sprintf("direct path from %s to %s", n.Host.name, addr), func() (bool, string) {
		vias, r := n.Vias(10*time.Second, "-c=1", "--timeout=2s", addr.String())
		for _, v := range vias {
			if ap, err := netip.ParseAddrPort(v); err == nil {
				at = ap
				return true, ""
			}
		}
		return false, r.String()
	})
	return at
}

// Brief is a status in a few lines, for messages of tests.
func Brief(st *ipnstate.Status) string {
	if st == nil {
		return "no status"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s %v", st.BackendState, st.TailscaleIPs)
	if st.AuthURL != "" {
		fmt.Fprintf(&b, " auth %s", st.AuthURL)
	}
	for _, h := range st.Health {
		fmt.Fprintf(&b, "\n    health: %s", h)
	}
	var peers []string
	for _, p := range st.Peer {
		line := fmt.Sprintf("\n    peer %s %v", p.HostName, p.TailscaleIPs)
		if p.AllowedIPs != nil {
			line += fmt.Sprintf(" allowed %v", p.AllowedIPs.AsSlice())
		}
		peers = append(peers, fmt.Sprintf("%s online %v direct %q relay %q expired %v", line, p.Online, p.CurAddr, p.Relay, p.Expired))
	}
	sort.Strings(peers)
	return b.String() + strings.Join(peers, "")
}
