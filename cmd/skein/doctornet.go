package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"tailscale.com/control/controlhttp"
	tsderp "tailscale.com/derp"
	"tailscale.com/derp/derphttp"
	"tailscale.com/net/netmon"
	"tailscale.com/net/stun"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"

	"github.com/skein-vpn/skein/derp"
)

// What the doctor sees from outside, as clients do.

// netPatience is how long somebody on the network may take to answer.
const netPatience = 5 * time.Second

// netError is why nobody answers, in a few words.
func netError(err error) string {
	var dns *net.DNSError
	var op *net.OpError
	var ue *url.Error
	switch {
	case errors.As(err, &dns) && dns.IsNotFound:
		return "there is no such name as " + dns.Name
	case errors.Is(err, syscall.ECONNREFUSED):
		return "nobody listens there (connection refused)"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return "there is no way there from this machine"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return "no answer"
	case errors.As(err, &ue):
		return netError(ue.Err)
	case errors.As(err, &op):
		return op.Err.Error()
	}
	return err.Error()
}

// examineClock compares the clock with what keeps it right: the kernel's own word, and a time server, if there is one.
func (d *doctor) examineClock(ctx context.Context) {
	const check = "clock"
	for _, f := range d.findings {
		if f.Check == check {
			return // found already
		}
	}
	if d.ntp != "" {
		if off, err := askNTP(ctx, d.ntp, d.now); err == nil {
			if math.Abs(off.Seconds()) > clockTolerance.Seconds() {
				d.say(levelFault, check, "timedatectl set-ntp true", "the clock of this machine is off by %s, says %s", off.Abs().Round(time.Millisecond), d.ntp)
			} else {
				d.ok(check, "right to within %s, says %s", off.Abs().Round(time.Millisecond), d.ntp)
			}
			return
		}
	}
	var t unix.Timex
	if state, err := unix.Adjtimex(&t); err == nil && state != unix.TIME_ERROR && t.Status&unix.STA_UNSYNC == 0 {
		d.ok(check, "kept right by this machine's time service")
		return
	}
	d.ok(check, "not compared: no time server is reached")
}

// askNTP is how far a time server (SNTP, RFC 4330) is ahead of our clock.
func askNTP(ctx context.Context, host string, now func() time.Time) (time.Duration, error) {
	if _, _, err := net.SplitHostPort(host); err != nil {
		host = net.JoinHostPort(host, "123")
	}
	ctx, cancel := context.WithTimeout(ctx, netPatience/2)
	defer cancel()
	c, err := (&net.Dialer{}).DialContext(ctx, "udp", host)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	end, _ := ctx.Deadline()
	_ = c.SetDeadline(end)
	var req, res [48]byte
	req[0] = 4<<3 | 3 // version 4, client
	sent := now()
	binary.BigEndian.PutUint64(req[40:], uint64(sent.UnixNano())) // any number, which comes back
	if _, err := c.Write(req[:]); err != nil {
		return 0, err
	}
	for {
		n, err := c.Read(res[:])
		if err != nil {
			return 0, err
		}
		back := now()
		if n == len(res) && res[0]&7 == 4 && res[1] != 0 && [8]byte(res[24:32]) == [8]byte(req[40:48]) { // of a server that knows the time, to us
			return (ntpTime(res[32:]).Sub(sent) + ntpTime(res[40:]).Sub(back)) / 2, nil
		}
	}
}

// ntpTime is seconds and their fraction since 1900, in the era that begins then or, from 2036 on, the next.
func ntpTime(b []byte) time.Time {
	const to1970 = 2208988800
	sec, frac := int64(binary.BigEndian.Uint32(b)), int64(binary.BigEndian.Uint32(b[4:]))
	if sec < to1970 {
		sec += 1 << 32
	}
	return time.Unix(sec-to1970, frac*1e9>>32)
}

// examineURL goes the way of a client to the server: name, port, certificate, key, and the protocol behind it.
func (d *doctor) examineURL(ctx context.Context) {
	const check = "server_url"
	if d.url == nil {
		return
	}
	host := d.url.Hostname()
	if a, err := netip.ParseAddr(host); host == "localhost" || err == nil && a.IsLoopback() {
		d.say(levelWarning, check, "set server_url to an address that others reach", "%s is this machine itself: no other can join", d.url)
	}
	got, err := fetchKey(ctx, d.url, &tls.Config{})
	if d.url.Scheme == "https" {
		d.examineCertificate(ctx, err)
		if tlsFault(err) { // go on behind it
			got, err = fetchKey(ctx, d.url, &tls.Config{InsecureSkipVerify: true}) // which server it is, Noise proves
		}
	}
	switch {
	case err != nil:
		d.say(d.unreached(err), check, remedyFor(err, d.url), "%s does not lead to the server, seen from this machine: %s", d.url, netError(err))
		return
	case d.key.IsZero():
		d.ok(check, "%s answers; whether it is this server cannot be said", d.url)
	case got != d.key:
		d.say(levelFault, check, "make the name, the port forwarding or the proxy lead here; or set server_url to where this server is", "%s leads to another server: its key is %s, and not %s", d.url, short12(got), short12(d.key))
		return
	default:
		d.ok(check, "%s leads to this server", d.url)
	}
	if err := dialNoise(ctx, d.url, got); err != nil {
		d.say(levelFault, "protocol", "let the proxy pass on POST /ts2021 with \"Upgrade: tailscale-control-protocol\", unbuffered (docs/operations.md, TLS and reverse proxies)",
			"the server answers at %s, but not to what clients speak: %s", d.url, netError(err))
	} else {
		d.ok("protocol", "clients get through (Noise handshake at /ts2021)")
	}
	if derp.ForcesTLS(d.url) {
		d.examineTrap(ctx, got)
	}
}

// unreached is how bad it is that nobody answers: from inside a network, its public address is often not to be reached.
func (d *doctor) unreached(err error) level {
	if d.client == nil { // which is the fault
		return levelWarning
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) {
		return levelWarning
	}
	return levelFault
}

func remedyFor(err error, u *url.URL) string {
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns):
		return "make a DNS record for " + u.Hostname() + ", or mend this machine's resolver"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return "forward the port to this machine and open the firewall; it may still work from outside: try from there"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "start the server, or the proxy in front of it; is the port in server_url the right one?"
	}
	return "look at what answers there"
}

func short12(k key.MachinePublic) string {
	s := k.String()
	return s[:min(len(s), len("mkey:")+12)] + "…"
}

// fetchKey asks for the server's key, as clients do first.
func fetchKey(ctx context.Context, u *url.URL, tc *tls.Config) (k key.MachinePublic, err error) {
	ctx, cancel := context.WithTimeout(ctx, netPatience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimRight(u.String(), "/")+fmt.Sprintf("/key?v=%d", tailcfg.CurrentCapabilityVersion), nil)
	if err != nil {
		return k, err
	}
	t := &http.Transport{DisableKeepAlives: true, TLSClientConfig: tc}
	res, err := t.RoundTrip(req)
	if err != nil {
		return k, err
	}
	defer res.Body.Close()
	var keys tailcfg.OverTLSPublicKeyResponse
	if err := json.NewDecoder(io.LimitReader(res.Body, 1<<16)).Decode(&keys); err != nil || keys.PublicKey.IsZero() {
		return k, fmt.Errorf("what answers (%s) is no Skein", res.Status)
	}
	return keys.PublicKey, nil
}

// tlsFault reports whether err is about the certificate.
func tlsFault(err error) bool {
	var v *tls.CertificateVerificationError
	return errors.As(err, &v)
}

// examineCertificate says what clients think of the certificate. err is what came of asking with it.
func (d *doctor) examineCertificate(ctx context.Context, err error) {
	const check = "certificate"
	var (
		invalid x509.CertificateInvalidError
		name    x509.HostnameError
		unknown x509.UnknownAuthorityError
	)
	if tlsFault(err) {
		remedy := "renew it and reload: systemctl reload skein"
		switch {
		case errors.As(err, &invalid):
		case errors.As(err, &name):
			remedy = "get one for " + d.url.Hostname()
		case errors.As(err, &unknown):
			remedy = "get one that all machines trust, with its chain in tls_cert_path (fullchain.pem)"
		}
		d.say(levelFault, check, remedy, "clients will not trust it: %v", errors.Unwrap(err))
		return
	}
	if err != nil {
		return // told as server_url
	}
	port := d.url.Port()
	if port == "" {
		port = "443"
	}
	ctx, cancel := context.WithTimeout(ctx, netPatience)
	defer cancel()
	c, err := (&tls.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort(d.url.Hostname(), port))
	if err != nil {
		return
	}
	defer c.Close()
	end := c.(*tls.Conn).ConnectionState().PeerCertificates[0].NotAfter
	if end.Sub(d.now()) < certificateSoon {
		d.say(levelWarning, check, "renew it and reload: systemctl reload skein", "it ends at %s", end.UTC().Format(time.DateOnly))
		return
	}
	d.ok(check, "trusted, until %s", end.UTC().Format(time.DateOnly))
}

// dialNoise shakes hands as a client does.
func dialNoise(ctx context.Context, u *url.URL, server key.MachinePublic) error {
	ctx, cancel := context.WithTimeout(ctx, netPatience)
	defer cancel()
	a := &controlhttp.Dialer{
		Hostname: u.Hostname(), MachineKey: key.NewMachine(), ControlKey: server, ProtocolVersion: uint16(tailcfg.CurrentCapabilityVersion),
		HTTPPort: "80", HTTPSPort: controlhttp.NoPort,
	}
	only := "80"
	if p := u.Port(); p != "" {
		a.HTTPPort, only = p, p
	}
	if u.Scheme == "https" {
		a.HTTPPort, a.HTTPSPort, only = "80", "443", "443"
		if p := u.Port(); p != "" {
			a.HTTPSPort, only = p, p
		}
	}
	a.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if _, port, _ := net.SplitHostPort(addr); port != only {
			return nil, errors.New("only the port of server_url is tried")
		}
		return new(net.Dialer).DialContext(ctx, network, addr)
	}
	c, err := a.Dial(ctx)
	if err != nil {
		return err
	}
	return c.Close()
}

// examineTrap looks whether clients find back (derp.ForcesTLS): by TLS on port 443, whatever the certificate.
func (d *doctor) examineTrap(ctx context.Context, want key.MachinePublic) {
	u := &url.URL{Scheme: "https", Host: net.JoinHostPort(d.url.Hostname(), "443")}
	got, err := fetchKey(ctx, u, &tls.Config{InsecureSkipVerify: true}) // as clients do on this way: Noise proves the server
	switch {
	case err != nil:
		d.say(levelWarning, "port 443", "let Skein listen there (CAP_NET_BIND_SERVICE), forward it to listen_addr, or use an https:// server_url",
			"clients that were connected come back by TLS on port 443 of %s only, and there: %s", d.url.Hostname(), netError(err))
	case got != want:
		d.say(levelFault, "port 443", "forward it to listen_addr, or use an https:// server_url", "clients that were connected come back by port 443 of %s only, which leads to another server", d.url.Hostname())
	default:
		d.ok("port 443", "clients find back there")
	}
}

// examineRelays goes to every relay, and asks each for our own address, as clients do.
func (d *doctor) examineRelays(ctx context.Context) {
	if d.client == nil {
		return
	}
	m, err := d.client.DERPMap(ctx)
	if err != nil {
		d.say(levelFault, "relays", "derp.server.enabled: true, or derp.urls, in the configuration", "%v", err)
		return
	}
	type result struct{ relay, stun []finding }
	ids := m.RegionIDs()
	results := make([]result, len(ids))
	var wg sync.WaitGroup
	var mu sync.Mutex // guards what results hold
	add := func(to *[]finding, f finding) { mu.Lock(); defer mu.Unlock(); *to = append(*to, f) }
	for i, id := range ids {
		r := m.Regions[id]
		if r == nil {
			continue
		}
		own := d.cfg != nil && d.cfg.DERP.Server.Enabled && d.cfg.DERP.Server.RegionID == id
		for _, n := range r.Nodes {
			if !n.STUNOnly {
				wg.Go(func() { add(&results[i].relay, examineRelay(ctx, r, n, own)) })
			}
			if n.STUNPort >= 0 {
				wg.Go(func() { add(&results[i].stun, examineSTUN(ctx, n, own)) })
			}
		}
	}
	wg.Wait()
	for _, r := range results {
		d.findings = append(d.findings, r.relay...)
		d.findings = append(d.findings, r.stun...)
	}
}

// relayLevel is how bad it is that a relay does not answer: what is not ours may be none of our business.
func relayLevel(own bool) level {
	if own {
		return levelFault
	}
	return levelWarning
}

// examineRelay connects to a relay until it has shown its key. A stranger gets no further, or should not.
func examineRelay(ctx context.Context, r *tailcfg.DERPRegion, n *tailcfg.DERPNode, own bool) finding {
	ctx, cancel := context.WithTimeout(ctx, netPatience)
	defer cancel()
	one := *r
	one.Nodes = []*tailcfg.DERPNode{n}
	c := derphttp.NewRegionClient(key.NewNode(), func(string, ...any) {}, netmon.NewStatic(), func() *tailcfg.DERPRegion { return &one })
	defer func() { _ = c.Close() }()
	where := fmt.Sprintf("%s (region %d)", n.Name, r.RegionID)
	if err := c.Connect(ctx); err != nil {
		return finding{relayLevel(own), "relay", fmt.Sprintf("%s does not answer to clients at %s: %s", where, relayAddr(n), netError(err)),
			"let clients reach that port; a proxy in between must pass on \"Upgrade: DERP\""}
	}
	f := finding{Level: levelOK, Check: "relay", Text: where + " answers to clients"}
	if own && admits(ctx, c) {
		f = finding{levelWarning, "relay", where + " lets strangers use it", "derp.server.verify_clients: true in the configuration"}
	}
	return f
}

// admits reports whether a relay takes a key that nobody knows.
func admits(ctx context.Context, c *derphttp.Client) bool {
	got := make(chan bool, 1)
	go func() { // ends when c is closed at the latest
		m, err := c.Recv()
		_, info := m.(tsderp.ServerInfoMessage)
		got <- err == nil && info
	}()
	select {
	case yes := <-got:
		return yes
	case <-ctx.Done():
		return false
	}
}

func relayAddr(n *tailcfg.DERPNode) string {
	host := n.HostName
	if n.IPv4 != "" && n.IPv4 != "none" {
		host = n.IPv4
	}
	return net.JoinHostPort(host, derpPort(n))
}

func examineSTUN(ctx context.Context, n *tailcfg.DERPNode, own bool) finding {
	ctx, cancel := context.WithTimeout(ctx, netPatience)
	defer cancel()
	host := n.HostName
	for _, ip := range []string{n.IPv4, n.IPv6} {
		if _, err := netip.ParseAddr(ip); err == nil {
			host = ip
			break
		}
	}
	addr := net.JoinHostPort(host, stunPort(n))
	var err error
	for range 3 { // packets get lost
		try, end := context.WithTimeout(ctx, netPatience/4)
		var me netip.AddrPort
		me, err = askSTUNAt(try, addr)
		end()
		if err == nil {
			return finding{Level: levelOK, Check: "stun", Text: fmt.Sprintf("%s answers, and sees this machine as %s", addr, me.Addr())}
		}
	}
	l := levelWarning // without it, direct paths are fewer
	return finding{l, "stun", fmt.Sprintf("%s does not answer: %s", addr, netError(err)), stunRemedy(own)}
}

func stunRemedy(own bool) string {
	if own {
		return "open and forward that UDP port (derp.server.stun_listen_addr); without it clients find fewer direct paths"
	}
	return ""
}

// askSTUNAt is our own address as whoever answers STUN at addr sees it.
func askSTUNAt(ctx context.Context, addr string) (me netip.AddrPort, err error) {
	c, err := (&net.Dialer{}).DialContext(ctx, "udp", addr)
	if err != nil {
		return me, err
	}
	defer c.Close()
	if end, ok := ctx.Deadline(); ok {
		_ = c.SetDeadline(end)
	}
	tx := stun.NewTxID()
	if _, err := c.Write(stun.Request(tx)); err != nil {
		return me, err
	}
	buf := make([]byte, 1500)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return me, err
		}
		if got, me, err := stun.ParseResponse(buf[:n]); err == nil && got == tx {
			return me, nil
		}
	}
}
