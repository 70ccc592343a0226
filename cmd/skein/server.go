package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/mux"
	"tailscale.com/types/key"

	"github.com/skein-vpn/skein/api"
	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/auth/oidc"
	"github.com/skein-vpn/skein/cluster"
	"github.com/skein-vpn/skein/config"
	"github.com/skein-vpn/skein/control"
	"github.com/skein-vpn/skein/db"
	"github.com/skein-vpn/skein/derp"
	"github.com/skein-vpn/skein/dns"
	"github.com/skein-vpn/skein/netmap"
	"github.com/skein-vpn/skein/policy"
	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
	"github.com/skein-vpn/skein/web"
	"github.com/skein-vpn/skein/webhook"
)

// The seams between packages that do not know each other.
var (
	_ state.Store   = (*db.DB)(nil)
	_ auth.Store    = (*db.DB)(nil)
	_ api.Registrar = (*auth.Auth)(nil)
	_ webhook.Store = (*db.DB)(nil)

	_ auth.AccountStore = (*db.DB)(nil)
)

// server is a running Skein: everything that serve opens, in the order in which it is opened. Close closes it in reverse.
type server struct {
	cfg     *config.Config // at the start; never written to after openFiles
	current *config.Config // as reloaded last; belongs to the goroutine that reloads
	log     *slog.Logger
	url     *url.URL // as clients reach us

	clock     *cluster.Clock // by which everything is decided
	db        *db.DB
	hooks     *webhook.Manager
	events    *api.Events
	health    *health
	auditFile *api.AuditFile // nil: none
	cert      *derp.Certificate
	stun      *derp.STUN // nil: off
	sources   *derp.Sources
	state     *state.State
	auth      *auth.Auth
	oidc      *oidc.Manager
	accounts  *auth.Accounts
	pages     *web.Handler
	encoder   *netmap.Encoder
	control   *control.Server
	relay     *derp.Server // nil: off

	listeners   []net.Listener // of the main port and, if it could be had, of the fallback port
	fallbackErr error          // why the fallback port is not open; nil if it is
	public      *http.Server
	apiHandler  http.Handler // of the public server, for who has a key
	socket      net.Listener
	metricsAddr net.Listener // nil: off

	noise   key.MachinePrivate // the server's identity
	started time.Time

	cluster    *cluster.Cluster // nil: this is the only server
	serverName string           // of this one among others; empty: there are none
	meet       chan struct{}    // one slot: peers is new
	peersMu    sync.Mutex
	peers      []serverInfo // guarded by peersMu: the other servers

	stop context.CancelFunc // ends what runs beside the servers
	wg   sync.WaitGroup

	closers []func() error
}

// openServer opens everything and starts serving. An error leaves nothing open.
func openServer(ctx context.Context, cfg *config.Config, log *slog.Logger) (_ *server, err error) {
	s := &server{cfg: cfg, current: cfg, started: time.Now(), log: log, clock: cluster.NewClock(nil, nil)}
	defer func() {
		if err != nil {
			_ = s.Close()
		}
	}()
	steps := []func(context.Context) error{
		s.openFiles, s.openPorts, s.openCluster, s.openState, s.openRelay, s.openControl, s.openWeb, s.serve,
	}
	for _, step := range steps {
		if err = step(ctx); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// onClose adds a step to Close; the last one added runs first.
func (s *server) onClose(f func() error) { s.closers = append(s.closers, f) }

// Close ends everything: first the streams, so that clients connect again at once (to another server, or to the next
// start of this one), then the ports, then what they used.
func (s *server) Close() error {
	var errs []error
	for _, f := range slices.Backward(s.closers) {
		if err := f(); !errors.Is(err, net.ErrClosed) { // a server closes its listener itself
			errs = append(errs, err)
		}
	}
	s.closers = nil
	return errors.Join(errs...)
}

// openFiles opens the data folder, the database and the certificate.
func (s *server) openFiles(ctx context.Context) (err error) {
	if err := os.MkdirAll(s.cfg.DataDir, 0o700); err != nil {
		return fmt.Errorf("the data folder cannot be made (data_dir): %w", err)
	}
	o := db.Options{Path: s.cfg.Database.SQLite.Path, Now: s.clock.Now, Log: s.log}
	if d := s.cfg.Database; d.IsPostgres() {
		if o.URL, err = d.Postgres.DSN(); err != nil {
			return err
		}
		o.MaxConns = d.Postgres.MaxOpenConns
	}
	if s.db, err = db.Open(ctx, o); err != nil {
		return err
	}
	s.onClose(s.db.Close)
	if s.cfg.ServerURL == "" {
		s.cfg.ServerURL = deriveServerURL(s.cfg.ListenAddr)
	}
	if s.url, err = url.Parse(s.cfg.ServerURL); err != nil {
		return fmt.Errorf("server_url: %w", err)
	}
	if s.cfg.Audit.File != "" {
		if s.auditFile, err = api.OpenAuditFile(s.cfg.Audit.File); err != nil {
			return fmt.Errorf("%w (audit.file)", err)
		}
	}
	s.cert, err = s.openCertificate(s.cfg)
	return err
}

// openCertificate reads the certificate that cfg names, or else our own, which is made on the first start.
func (s *server) openCertificate(cfg *config.Config) (*derp.Certificate, error) {
	if cfg.TLSCertPath != "" {
		return derp.LoadCertificate(cfg.TLSCertPath, cfg.TLSKeyPath)
	}
	return derp.SelfSigned(filepath.Join(s.cfg.DataDir, "self_signed.pem"), derp.CertHosts(s.url), nil)
}

// deriveServerURL is the address under which clients in the same network reach us when nobody has said one.
func deriveServerURL(listen string) string {
	host, port, _ := net.SplitHostPort(listen)
	if a, err := netip.ParseAddr(host); host == "" || err == nil && a.IsUnspecified() {
		host = localAddr()
	}
	return "http://" + net.JoinHostPort(host, port)
}

// localAddr is an address of this machine that others can reach: the one it would reach them from, or else any that is
// not loopback.
func localAddr() string {
	if c, err := net.Dial("udp4", "192.0.2.1:9"); err == nil { // sends nothing: UDP only picks the source address
		defer c.Close()
		return c.LocalAddr().(*net.UDPAddr).IP.String()
	}
	addrs, _ := net.InterfaceAddrs()
	best := "127.0.0.1"
	for _, a := range addrs {
		p, err := netip.ParsePrefix(a.String())
		if err == nil && p.Addr().IsGlobalUnicast() && (p.Addr().Is4() || best == "127.0.0.1") {
			best = p.Addr().String()
			if p.Addr().Is4() {
				break
			}
		}
	}
	return best
}

// clientPort is how to listen for clients: the kernel asks for signs of life only where we ourselves say nothing, which is less than
// every 15 s, as Go would have it. Each would wake a phone.
var clientPort = net.ListenConfig{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 2 * time.Minute, Interval: 30 * time.Second, Count: 4}}

// openPorts listens everywhere, before anything is served, so that a port in use is told at once.
func (s *server) openPorts(ctx context.Context) error {
	o := derp.ListenerOptions{TLS: s.cert.TLSConfig(), PerAddress: s.cfg.Limits.ConnectionsPerAddress, Exempt: s.exempt}
	l, err := clientPort.Listen(ctx, "tcp", s.cfg.ListenAddr)
	if err != nil {
		return fmt.Errorf("cannot listen for clients on %s (listen_addr, --listen): %w", s.cfg.ListenAddr, err)
	}
	s.listeners = append(s.listeners, derp.NewListener(l, o))
	s.onClose(l.Close)

	s.fallbackErr = errors.New("switched off in the configuration")
	if strings.HasSuffix(s.cfg.ListenAddr, ":443") {
		s.fallbackErr = nil // the main port is it
	} else if addr := s.cfg.TLSFallbackListenAddr; addr != "" && addr != s.cfg.ListenAddr {
		l, err := clientPort.Listen(ctx, "tcp", addr)
		s.fallbackErr = err
		if err == nil {
			s.listeners = append(s.listeners, derp.NewListener(l, o))
			s.onClose(l.Close)
		}
	}
	if s.cfg.MetricsListenAddr != "" {
		if s.metricsAddr, err = net.Listen("tcp", s.cfg.MetricsListenAddr); err != nil {
			return fmt.Errorf("cannot listen for metrics on %s (metrics_listen_addr, --metrics-listen; empty switches it off): %w",
				s.cfg.MetricsListenAddr, err)
		}
		s.onClose(s.metricsAddr.Close)
	}
	if s.cfg.DERP.Server.Enabled && s.cfg.DERP.Server.STUNListenAddr != "" {
		if s.stun, err = derp.ListenSTUN(s.cfg.DERP.Server.STUNListenAddr, s.log); err != nil {
			return err
		}
		s.onClose(s.stun.Close)
	}
	if s.socket, err = api.ListenUnix(s.cfg.UnixSocket, os.FileMode(s.cfg.UnixSocketPermission)); err != nil {
		return err
	}
	s.onClose(s.socket.Close)
	return nil
}

// exempt reports whether an address may open any number of connections.
func (s *server) exempt(a netip.Addr) bool {
	return a.IsLoopback() || slices.ContainsFunc(s.cfg.TrustedProxies, func(p netip.Prefix) bool { return p.Contains(a) })
}

// sourcesOptions says where the relay map comes from.
func (s *server) sourcesOptions(cfg *config.Config) derp.SourcesOptions {
	o := derp.SourcesOptions{Paths: cfg.DERP.Paths, URLs: cfg.DERP.URLs, CacheDir: cfg.DataDir, OnChange: s.derpChanged, Log: s.log}
	if cfg.DERP.AutoUpdateEnabled {
		o.Every = cfg.DERP.UpdateFrequency.Std()
	}
	if d := cfg.DERP.Server; s.cfg.DERP.Server.Enabled && d.AutomaticallyAddEmbeddedDERPRegion {
		o.Embedded = &derp.Embedded{
			ServerURL: s.url, RegionID: d.RegionID, Code: d.RegionCode, Name: d.RegionName, IPv4: d.IPv4, IPv6: d.IPv6, Cert: s.cert,
		}
		if s.stun != nil {
			o.Embedded.STUNPort = int(s.stun.Addr().Port())
		}
		s.setAddresses(o.Embedded)
	}
	return o
}

// derpMaps puts the relay map into the words of state.
func derpMaps(m *derp.Maps) *state.DERPMaps {
	out := &state.DERPMaps{Current: m.Current, Old: m.Legacy, OldBelow: derp.CapVerPinnedCert}
	homes := 0
	for id, r := range m.Current.Regions {
		if r != nil && !r.NoMeasureNoHome {
			out.Home, homes = id, homes+1
		}
	}
	if homes != 1 {
		out.Home = 0
	}
	return out
}

// derpChanged publishes a new relay map.
func (s *server) derpChanged(m *derp.Maps) {
	if s.state == nil {
		return // not open yet: it begins with the current map
	}
	maps := derpMaps(m)
	maps.Dial = s.dialPlan()
	err := s.state.Update(context.Background(), "relay map changed", func(tx *state.Tx) error {
		tx.SetDERP(maps)
		return nil
	})
	if err != nil && !errors.Is(err, state.ErrClosed) {
		s.log.Error("a new relay map could not be published", "err", err)
	}
}

func dnsSettings(cfg *config.Config) (*dns.Settings, error) {
	d := cfg.DNS
	s := &dns.Settings{
		MagicDNS: d.MagicDNS, Base: strings.Trim(d.BaseDomain, "."), OverrideLocal: d.OverrideLocalDNS,
		Nameservers: dns.Resolvers(d.Nameservers.Global...), Search: d.SearchDomains,
	}
	for suffix, addrs := range d.Nameservers.Split {
		if s.Split == nil {
			s.Split = map[string][]tailnet.Resolver{}
		}
		s.Split[suffix] = dns.Resolvers(addrs...)
	}
	for _, r := range d.ExtraRecords {
		a, err := netip.ParseAddr(r.Value)
		if err != nil {
			return nil, fmt.Errorf("dns.extra_records: %q is not an address", r.Value)
		}
		s.Records = append(s.Records, tailnet.DNSRecord{Name: r.Name, Addr: a})
	}
	return s, nil
}

// clusterSaveDelay is how long a change of presence waits for others to be saved with it, where other servers wait for it.
const clusterSaveDelay = 20 * time.Millisecond

// openState reads the relay map and the tailnet.
func (s *server) openState(ctx context.Context) (err error) {
	if s.sources, err = derp.NewSources(ctx, s.sourcesOptions(s.cfg)); err != nil {
		return err
	}
	settings, err := dnsSettings(s.cfg)
	if err != nil {
		return err
	}
	file, err := policyFile(s.cfg)
	if err != nil {
		return err
	}
	var records []tailnet.DNSRecord
	if path := s.cfg.DNS.ExtraRecordsPath; path != "" {
		if records, err = readRecords(path); err != nil {
			return fmt.Errorf("the DNS records in %s have faults (dns.extra_records_path): %w", path, err)
		}
	}
	relays := derpMaps(s.sources.Current())
	relays.Dial = s.dialPlan()
	o := state.Options{
		PolicyFromFile: s.cfg.Policy.FromFile(), PolicyFile: file,
		PolicyOptions: policy.Options{CheckURL: strings.TrimRight(s.cfg.ServerURL, "/")},
		Store:         s.db, Now: s.clock.Now, DNS: settings, Records: records, DERP: relays,
		Addressing: state.Addressing{
			Prefix4: s.cfg.Prefixes.V4, Prefix6: s.cfg.Prefixes.V6, Random: s.cfg.Prefixes.Allocation == "random",
		},
		RestartGrace: s.cfg.Routes.RestartGrace.Std(), EphemeralTimeout: s.cfg.Node.Ephemeral.InactivityTimeout.Std(), Log: s.log,
	}
	if c := s.cluster; c != nil {
		o.Server, o.SaveDelay, o.Changed, o.Leads = c.ID(), clusterSaveDelay, c.Changed, c.Leads
	}
	st, err := state.Open(ctx, o)
	if err != nil {
		return err
	}
	s.state = st
	s.onClose(func() error { st.Close(); return nil })
	s.tellPolicyFile()
	return nil
}

// openRelay opens the embedded relay for registered nodes.
func (s *server) openRelay(ctx context.Context) (err error) {
	d := s.cfg.DERP.Server
	if !d.Enabled {
		return nil
	}
	o := derp.Options{KeyPath: d.PrivateKeyPath, Log: s.log, Bootstrap: &derp.Bootstrap{
		Names: []string{s.url.Hostname()},
		Lookup: func(ctx context.Context, name string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", name)
		},
	}}
	if d.VerifyClients {
		o.Admit = s.registered
	}
	if s.relay, err = derp.New(o); err != nil {
		return err
	}
	if s.cluster != nil {
		secret, err := s.meshKey(ctx)
		if err == nil {
			err = s.relay.SetMeshKey(secret)
		}
		if err != nil {
			return err
		}
	}
	s.onClose(s.relay.Close)
	return nil
}

// registered reports whether k is in use by a node of ours that takes part.
func (s *server) registered(k key.NodePublic) bool {
	n := s.state.Snapshot().Using(k)
	return n != nil && n.Active()
}

// openControl opens what clients talk to.
func (s *server) openControl(ctx context.Context) error {
	noise, err := s.noiseKey(ctx)
	if err != nil {
		return err
	}
	s.noise = noise
	s.auth = auth.New(auth.Options{
		Decided:  s.decided,
		Leads:    s.leads,
		Verifier: oidc.NewVerifier(nil, s.clock.Now),
		State:    s.state, Store: s.db, Now: s.clock.Now, ServerURL: strings.TrimRight(s.cfg.ServerURL, "/"),
		NodeExpiry: s.cfg.Node.Expiry.Std(), MaxLogins: orUnlimited(s.cfg.Limits.PendingRegistrations), Log: s.log,
	})
	s.hooks = webhook.New(webhook.Options{
		State: s.state, Store: s.db, Now: s.clock.Now, ServerURL: strings.TrimRight(s.cfg.ServerURL, "/"), AllowLoopback: s.cfg.Webhooks.AllowLoopback, Log: s.log,
	})
	s.events = api.NewEvents(api.EventsOptions{State: s.state, AuditLog: s.auth.AuditLog, Now: s.clock.Now, Log: s.log})
	if err := s.openOIDC(ctx); err != nil {
		return err
	}
	s.encoder = netmap.New(netmap.Options{
		Taildrop: s.cfg.Taildrop.Enabled, LogCollection: s.cfg.Logtail.Enabled, RandomizeClientPort: s.cfg.RandomizeClientPort,
	}, s.clock.Now)
	s.control = control.New(control.Options{
		State: s.state, Auth: s.auth, NoiseKey: noise, ServerURL: strings.TrimRight(s.cfg.ServerURL, "/"),
		Encoder:      s.encoder,
		OfflineAfter: s.cfg.Routes.FailoverAfter.Std(),
		Probe:        control.ProbeOptions{Fail: s.cfg.Routes.FailoverAfter.Std()},
		Limits:       control.Limits{RegistrationsPerMinute: orUnlimited(s.cfg.Limits.RegistrationsPerMinute), Connections: math.MaxInt}, // derp.Listener counts those
		Proxies:      s.cfg.TrustedProxies, Log: s.log,
	})
	return nil
}

// orUnlimited is a limit of the configuration, where zero means none, for packages where zero means their default.
func orUnlimited(n int) int {
	if n == 0 {
		return math.MaxInt32
	}
	return n
}

// loadNoiseKey reads the key that is the server's identity, or makes it on the first start.
func loadNoiseKey(path string) (k key.MachinePrivate, err error) {
	if k, err = readNoiseKey(path); !errors.Is(err, os.ErrNotExist) {
		return k, err
	}
	k = key.NewMachine()
	text, err := k.MarshalText()
	if err != nil {
		return k, err
	}
	tmp := path + ".new"
	if err := os.WriteFile(tmp, append(text, '\n'), 0o600); err != nil {
		return k, fmt.Errorf("writing the server's key (noise.private_key_path): %w", err)
	}
	return k, os.Rename(tmp, path)
}

func readNoiseKey(path string) (k key.MachinePrivate, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return k, fmt.Errorf("reading the server's key (noise.private_key_path): %w", err)
	}
	if err := k.UnmarshalText([]byte(strings.TrimSpace(string(b)))); err != nil {
		return k, fmt.Errorf("%s does not hold a key such as privkey:… (noise.private_key_path): %w", path, err)
	}
	return k, nil
}

// serve starts the servers and what runs beside them.
func (s *server) serve(context.Context) error {
	s.health = s.newHealth()
	o := s.apiOptions()
	o.Gate = api.NewGate(s.auth, s.cfg.TrustedProxies, s.clock.Now)
	s.apiHandler = api.NewHandler(o)
	s.public = &http.Server{
		Handler: s.publicHandler(), ReadHeaderTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	derp.PrepareServer(s.public)
	admin := &http.Server{Handler: api.NewHandler(s.apiOptions()), ReadHeaderTimeout: 30 * time.Second}
	inner := &http.Server{Handler: s.metricsHandler(), ReadHeaderTimeout: 30 * time.Second}

	run, stop := context.WithCancel(context.Background())
	s.stop = stop
	for _, l := range s.listeners {
		s.goServe(s.public, l)
	}
	s.goServe(admin, s.socket)
	if s.metricsAddr != nil {
		s.goServe(inner, s.metricsAddr)
	}
	s.goRun(func() { s.sources.Run(run) })
	s.goRun(func() { s.auth.Run(run) })
	s.goRun(func() { s.events.Run(run) })
	s.goRun(func() { s.oidc.Run(run) })
	s.goRun(func() { s.accounts.Run(run) })
	s.goRun(func() { s.recheckRelay(run) })
	if path := s.cfg.DNS.ExtraRecordsPath; path != "" {
		s.goRun(func() { s.followRecords(run, path) })
	}
	s.goRun(func() { s.purge(run) })
	s.goRun(func() { s.hooks.Run(run, s.leads) })
	if s.cfg.Backup.Dir != "" {
		s.goRun(func() { s.backups(run) })
	}
	if s.cluster != nil {
		s.goRun(func() { s.cluster.Run(run, s.state.Follow) })
		s.goRun(func() { s.meetServers(run) })
	}
	if s.auditFile != nil {
		s.goRun(func() { s.writeAudit(run) })
	}
	s.goRun(func() { trimMemory(run) })
	s.goRun(func() { s.watchdog(run) })
	s.onClose(func() error {
		s.control.Close()
		stop()
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		err := errors.Join(s.public.Shutdown(ctx), admin.Shutdown(ctx), inner.Shutdown(ctx))
		if errors.Is(err, context.DeadlineExceeded) { // requests that do not end, such as a slow download of the relay page
			err = errors.Join(s.public.Close(), admin.Close(), inner.Close())
		}
		s.wg.Wait()
		return err
	})
	return nil
}

func (s *server) apiOptions() api.Options {
	o := api.Options{State: s.state, Auth: s.auth, Accounts: s.accounts, Webhooks: s.hooks, Events: s.events, Now: s.clock.Now, Version: version(), Health: s.health.check, About: s.about, Netmap: s.nodeMap, Cluster: s.clusterStatus(), Log: s.log}
	o.SignIn = len(s.cfg.OIDC.All()) > 0
	if !s.cfg.Web.Enabled {
		o.Accounts = nil
	}
	if s.cfg.Policy.FromFile() {
		o.PolicyFile = s.cfg.Policy.Path
	}
	return o
}

func (s *server) goServe(srv *http.Server, l net.Listener) {
	s.goRun(func() {
		if err := srv.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
			s.log.Error("a server stopped", "listen", l.Addr(), "err", err)
		}
	})
}

func (s *server) goRun(f func()) {
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		f()
	}()
}

// recheckRelay cuts relay sessions of nodes that are gone or take no part any more: the relay asks only when a session begins. It looks once a
// second at the most.
func (s *server) recheckRelay(ctx context.Context) {
	if s.relay == nil || !s.cfg.DERP.Server.VerifyClients {
		return
	}
	for {
		select {
		case <-s.state.Snapshot().Superseded():
		case <-ctx.Done():
			return
		}
		s.relay.Recheck()
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return
		}
	}
}

// writeAudit writes the audit log to its file as it grows. A file that cannot be written is tried again; nothing is lost.
func (s *server) writeAudit(ctx context.Context) {
	for {
		err := s.auth.StreamAudit(ctx, s.auditFile.Pos(), s.auditFile.Write)
		if ctx.Err() != nil {
			return
		}
		s.log.Error("the audit log's file cannot be written; it is tried again in a minute (audit.file)", "err", err)
		select {
		case <-time.After(time.Minute):
		case <-ctx.Done():
			return
		}
	}
}

// leads reports whether this server does what only one of several may do.
func (s *server) leads() bool { return s.cluster == nil || s.cluster.Leads() }

// purge forgets, once a day, what nobody will ask for again.
func (s *server) purge(ctx context.Context) {
	for {
		if !s.leads() {
			select {
			case <-time.After(time.Hour):
				continue
			case <-ctx.Done():
				return
			}
		}
		now := s.clock.Now()
		_, err1 := s.db.PurgeDeletedNodes(ctx, now.Add(-db.TombstoneAge))
		_, err2 := s.db.PurgeRevisions(ctx, now.Add(-db.TombstoneAge))
		if keep := s.cfg.Audit.Retention.Std(); keep > 0 {
			_, err := s.db.PurgeAuditLog(ctx, now.Add(-keep))
			err2 = errors.Join(err2, err)
		}
		if err := errors.Join(err1, err2); err != nil && ctx.Err() == nil {
			s.log.Warn("old rows could not be removed", "err", err)
		}
		select {
		case <-time.After(24 * time.Hour):
		case <-ctx.Done():
			return
		}
	}
}

// publicHandler is everything that strangers can reach.
func (s *server) publicHandler() http.Handler {
	r := mux.NewRouter()
	s.control.Mount(r)
	if s.relay != nil {
		for _, p := range derp.Paths {
			r.Handle(p, s.relay.Handler())
		}
	}
	api.NewTokens(s.auth, s.cfg.TrustedProxies, s.clock.Now, s.log).Mount(r)
	r.PathPrefix(api.Prefix + "/").Handler(s.apiHandler)
	r.PathPrefix(api.PrefixV2 + "/").Handler(s.apiHandler)
	r.Handle("/verify", derp.VerifyHandler(s.registered)).Methods(http.MethodPost)
	r.HandleFunc("/health", s.serveHealth).Methods(http.MethodGet, http.MethodHead)
	r.HandleFunc("/version", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, "{\"version\":%q}\n", version())
	}).Methods(http.MethodGet)
	r.HandleFunc("/robots.txt", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "User-agent: *\nDisallow: /\n")
	}).Methods(http.MethodGet)
	for _, p := range web.Paths {
		r.PathPrefix(p).Handler(s.pages)
	}
	r.Handle("/", s.pages)
	r.NotFoundHandler = s.pages
	return r
}
