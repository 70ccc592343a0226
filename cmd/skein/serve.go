package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/skein-vpn/skein/config"
	"github.com/skein-vpn/skein/derp"
	"github.com/skein-vpn/skein/state"
)

// serveFlags are the flags of serve that stand for a key of the configuration.
var serveFlags = []struct{ flag, key, help string }{
	{"listen", "listen_addr", "`host:port` for clients, HTTP and TLS alike"},
	{"server-url", "server_url", "`URL` under which clients reach the server (default: an address of this machine)"},
	{"stun-listen", "derp.server.stun_listen_addr", "`host:port` (UDP) for STUN; empty switches it off"},
	{"metrics-listen", "metrics_listen_addr", "`host:port` for metrics and profiles; empty switches it off"},
}

func newServeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the server",
		Long: `Run the server until SIGTERM or SIGINT ends it.

Nothing has to be configured: keys and database are made in the data folder on the first start
(/var/lib/skein, or ./skein-data where that cannot be written). SIGHUP reads the configuration
again and says what needs a restart. A flag wins over the environment (SKEIN_LISTEN_ADDR, ...),
the environment over the configuration file, and that over the defaults.`,
		Example: `  skein serve
  skein serve --server-url https://vpn.example.com -c /etc/skein/config.yaml
  skein serve --data-dir /srv/skein --listen :8080`,
		Args: cobra.NoArgs,
	}
	values := map[string]*string{}
	for _, f := range serveFlags {
		values[f.flag] = cmd.Flags().String(f.flag, "", f.help)
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		load := func() (*config.Config, error) {
			o := config.Options{Env: os.Environ(), Flags: map[string]string{}, FlagNames: map[string]string{"data_dir": "--data-dir", "unix_socket": "--socket"}}
			o.File, _ = cmd.Flags().GetString("config")
			for _, g := range []struct{ flag, key string }{{"data-dir", "data_dir"}, {"socket", "unix_socket"}} {
				if v, err := cmd.Flags().GetString(g.flag); err == nil && cmd.Flags().Changed(g.flag) {
					o.Flags[g.key] = v
				}
			}
			for _, f := range serveFlags {
				o.FlagNames[f.key] = "--" + f.flag
				if cmd.Flags().Changed(f.flag) {
					o.Flags[f.key] = *values[f.flag]
				}
			}
			return config.Load(o)
		}
		return runServe(cmd.Context(), load, cmd.OutOrStdout(), cmd.ErrOrStderr())
	}
	return cmd
}

// runServe runs the server until ctx or a signal ends it. load is called again on SIGHUP.
func runServe(ctx context.Context, load func() (*config.Config, error), stdout, stderr io.Writer) error {
	cfg, err := load()
	if err != nil {
		return err
	}
	var level slog.LevelVar
	log, err := newLog(cfg, &level, stderr)
	if err != nil {
		return err
	}
	// From here on a signal ends or reloads the server in good order, also while it is still starting.
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, os.Interrupt)
	defer stop()
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)

	for _, w := range cfg.Warnings() {
		log.Warn(w.Error())
	}
	s, err := openServer(ctx, cfg, log)
	if err != nil {
		return err
	}
	s.greet(stdout)
	s.greetAdmin(ctx, stdout)
	notify("READY=1")
	for {
		select {
		case <-hup:
			notify("RELOADING=1")
			s.reload(ctx, load, &level)
			notify("READY=1")
		case <-ctx.Done():
			notify("STOPPING=1")
			log.Info("shutting down")
			return s.Close()
		}
	}
}

// newLog makes the server's log: text for people at a terminal, JSON for machines, unless the configuration says otherwise.
func newLog(cfg *config.Config, level *slog.LevelVar, w io.Writer) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(cfg.Log.Level)); err != nil {
		return nil, fmt.Errorf("log.level: %w", err)
	}
	level.Set(l)
	o := &slog.HandlerOptions{Level: level}
	if cfg.Log.Format == "json" || cfg.Log.Format == "auto" && !isTerminal(w) {
		return slog.New(slog.NewJSONHandler(w, o)), nil
	}
	return slog.New(slog.NewTextHandler(w, o)), nil
}

// greet prints what to type on a client and where to go on.
func (s *server) greet(w io.Writer) {
	fmt.Fprintf(w, `Skein %s is running.
  data        %s
  clients     %s
  admin       %s

Let a machine join:
  1. here:            skein namespaces create NAME
  2. on the machine:  tailscale up --login-server %s
  3. here:            skein nodes register --namespace NAME --key KEY    (the last part of the URL that it prints)
See who is there with "skein nodes list"; enable a network behind a node with "skein routes enable".
`, version(), s.cfg.DataDir, s.cfg.ServerURL, s.cfg.UnixSocket, s.cfg.ServerURL)
	if s.relay == nil {
		fmt.Fprintln(w, "\nThe embedded relay is off (derp.server.enabled): clients need a relay from derp.paths or derp.urls.")
	} else if warn := derp.PlainHTTPWarning(s.url, s.fallbackErr); warn != "" {
		fmt.Fprintf(w, "\nWarning: %s\n", warn)
	}
	if len(s.sources.Current().Current.Regions) == 0 {
		fmt.Fprintln(w, "\nWarning: there is no relay at all, and clients do not come up without one: enable derp.server or set derp.urls.")
	}
}

// reload takes over what can be changed while running, and says what cannot. A configuration with faults changes nothing.
func (s *server) reload(ctx context.Context, load func() (*config.Config, error), level *slog.LevelVar) {
	next, err := load()
	if err != nil {
		s.log.Error("the configuration has faults; everything stays as it was", "err", err)
		return
	}
	if next.ServerURL == "" {
		next.ServerURL = s.cfg.ServerURL // derived at the start
	}
	settings, err := dnsSettings(next)
	if err != nil {
		s.log.Error("the configuration has faults; everything stays as it was", "err", err)
		return
	}
	live, restart := config.Diff(s.current, next)
	_ = level.UnmarshalText([]byte(next.Log.Level)) // Load has checked it
	if changed, err := s.renewCertificate(next); err != nil {
		s.log.Error("the certificate could not be read again; the old one stays", "err", err)
	} else if changed {
		s.log.Info("certificate replaced")
	}
	if err := s.sources.Reconfigure(ctx, s.sourcesOptions(next)); err != nil {
		s.log.Error("the relay map could not be renewed; the old one stays", "err", err)
	}
	err = s.state.Update(ctx, "configuration reloaded", func(tx *state.Tx) error {
		tx.SetDNS(settings)
		return nil
	})
	if err != nil {
		s.log.Error("DNS settings could not be published", "err", err)
	}
	s.reloadPolicy(ctx)
	s.current = next
	s.log.Info("configuration reloaded", "changed", live)
	if len(restart) > 0 {
		s.log.Warn("these settings need a restart", "keys", restart)
	}
}

// renewCertificate reads the certificate again, from where cfg says.
func (s *server) renewCertificate(cfg *config.Config) (changed bool, err error) {
	if cfg.TLSCertPath == s.current.TLSCertPath && cfg.TLSKeyPath == s.current.TLSKeyPath {
		return s.cert.Renew()
	}
	c, err := s.openCertificate(cfg)
	if err != nil {
		return false, err
	}
	return s.cert.Adopt(c), nil
}

// notify tells systemd how the service is doing (sd_notify); without systemd it does nothing.
func notify(state string) {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return
	}
	if err := sendDatagram(name, state); err != nil && !errors.Is(err, os.ErrNotExist) {
		slog.Debug("systemd could not be told", "state", strings.TrimSpace(state), "err", err)
	}
}
