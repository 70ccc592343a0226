package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"tailscale.com/tailcfg"

	"github.com/skein-vpn/skein/api"
	"github.com/skein-vpn/skein/config"
	"github.com/skein-vpn/skein/derp"
	"github.com/skein-vpn/skein/netmap"
	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// certificateSoon is how long before its end a certificate is warned of.
const certificateSoon = 14 * 24 * time.Hour

// about is what a status page tells of how the server was started.
func (s *server) about() api.About {
	a := api.About{URL: s.cfg.ServerURL, Key: s.noise.Public().String(), Listen: s.listeners[0].Addr().String(), Database: databaseText(s.cfg), Started: s.started}
	warn := func(remedy, text string) {
		a.Warnings = append(a.Warnings, api.StatusWarning{Text: text, Remedy: remedy})
	}
	for _, f := range s.cfg.Warnings() {
		warn(f.Key+" in the configuration", f.Text)
	}
	if s.relay != nil && derp.PlainHTTPWarning(s.url, s.fallbackErr) != "" {
		warn("let Skein listen on port 443, or use an https:// server_url (skein doctor says more)",
			"clients that are connected will not find this server again after a restart: "+s.cfg.ServerURL+" is plain HTTP on a public address, and nobody answers on port 443")
	}
	if s.cert.FromFiles() {
		if end := s.cert.Leaf().NotAfter; time.Until(end) < certificateSoon {
			warn("renew it, then: systemctl reload skein", "the certificate of tls_cert_path ends at "+end.UTC().Format(time.RFC3339))
		}
	}
	return a
}

// databaseText says which database cfg means, without a password.
func databaseText(cfg *config.Config) string {
	d := cfg.Database
	if !d.IsPostgres() {
		return "SQLite " + d.SQLite.Path
	}
	if d.Postgres.URL == "" {
		return fmt.Sprintf("PostgreSQL %s/%s", net.JoinHostPort(d.Postgres.Host, fmt.Sprint(d.Postgres.Port)), d.Postgres.Name)
	}
	u, err := url.Parse(d.Postgres.URL)
	if err != nil || u.Host == "" {
		return "PostgreSQL"
	}
	return "PostgreSQL " + u.Host + u.Path
}

// nodeMap is the map that a client would be sent.
func (s *server) nodeMap(sn *state.Snapshot, id tailnet.NodeID, capver tailcfg.CapabilityVersion) (json.RawMessage, error) {
	f, ok := s.encoder.Full(sn, netmap.Viewer{Node: id, Capver: capver})
	if !ok {
		return nil, tailnet.Errorf(tailnet.NotFound, "node %d was deleted meanwhile", id)
	}
	var b bytes.Buffer
	if _, err := f.WriteTo(&b); err != nil {
		return nil, err
	}
	b.Next(4) // its length
	return b.Bytes(), nil
}

func newStatusCommand(c *cli) *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show how everything is, on one page",
		Long: `Show how everything is, on one page: the server, nodes, routes, relays, the policy, and what somebody should look at. "skein doctor"
looks at the machine as well, and at what clients see from outside.`,
		Example: `  skein status
  skein status -o json`,
		Args: wantArgs(), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			st, err := cl.Status(cmd.Context())
			if err != nil {
				return err
			}
			if c.output != "" {
				return c.print(st, nil)
			}
			_, err = io.WriteString(c.out, statusPage(st))
			return err
		},
	}
}

// maxNamed is how many things a line of the status page names.
const maxNamed = 6

// statusPage is st for people.
func statusPage(st *api.Status) string {
	var b strings.Builder
	line := func(what, format string, args ...any) {
		fmt.Fprintf(&b, "%-10s %s\n", what, strings.TrimRight(printable(fmt.Sprintf(format, args...)), " "))
	}
	up := ""
	if st.Server.StartedAt != nil {
		up = ", up " + uptime(time.Duration(st.Server.UptimeSeconds)*time.Second)
	}
	line("Server", "skein %s%s", st.Server.Version, up)
	line("", "%s", st.Server.URL)
	if st.Server.Database != "" {
		line("", "%s, revision %s", st.Server.Database, st.Server.Revision)
	}
	for _, s := range st.Servers {
		how := "gone since " + clock(s.LastSeen, "?")
		if s.Alive {
			how = fmt.Sprintf("%d nodes", s.Nodes)
			if s.Leads {
				how += ", leader"
			}
			if s.Self {
				how += ", this one"
			}
		}
		line("", "%s: %s", s.Name, how)
	}
	n := st.Nodes
	line("Nodes", "%d, %d online%s", n.Total, n.Online, also(
		amount{len(n.Waiting), "waiting for approval"}, amount{n.Registered, "waiting to be let in"}, amount{len(n.Expiring), "expiring within a week"}, amount{len(n.Expired), "expired"}))
	for _, g := range []struct {
		what  string
		nodes []*api.StatusNode
	}{{"waiting", n.Waiting}, {"expiring", n.Expiring}, {"expired", n.Expired}} {
		if len(g.nodes) > 0 {
			line("", "%s: %s", g.what, named(g.nodes, func(n *api.StatusNode) string {
				if g.what == "expiring" {
					return n.Name + " (" + n.Expiry.UTC().Format("2006-01-02") + ")"
				}
				return n.Name
			}))
		}
	}
	line("Users", "%d%s", st.Users.Total, also(amount{st.Users.Waiting, "waiting for approval"}, amount{st.Users.Suspended, "suspended"}))
	r := st.Routes
	line("Routes", "%d carried, %d exit nodes online%s", r.Carried, r.Exits, also(amount{len(r.Down), "down"}, amount{len(r.Disabled), "offered and not enabled"}))
	byRoute := func(r *api.StatusRoute) string { return r.Prefix + " of " + strings.Join(r.Nodes, ", ") }
	if len(r.Down) > 0 {
		line("", "down: %s", named(r.Down, byRoute))
	}
	if len(r.Disabled) > 0 {
		line("", "not enabled: %s", named(r.Disabled, byRoute))
	}
	what := "Relays"
	for _, d := range st.Relays {
		line(what, "%d %s (%s): home of %d nodes online", d.Region, d.Code, d.Name, d.Nodes)
		what = ""
	}
	if len(st.Relays) == 0 {
		line(what, "none")
	}
	switch p := st.Policy; p.Source {
	case "none":
		line("Policy", "none: everybody reaches everybody")
	case api.FromFile:
		line("Policy", "from a file")
	default:
		line("Policy", "version %s of %s by %s", p.Version, clock(p.UpdatedAt, "?"), p.Author)
	}
	b.WriteByte('\n')
	if len(st.Warnings) == 0 {
		b.WriteString("Nothing needs to be looked at.\n")
	}
	for _, w := range st.Warnings {
		fmt.Fprintf(&b, "Warning: %s\n", printable(w.Text))
		if w.Remedy != "" {
			fmt.Fprintf(&b, "         → %s\n", printable(w.Remedy))
		}
	}
	return b.String()
}

// amount is how many of something there are.
type amount struct {
	n    int
	what string
}

// also is those of counts that are not zero, behind something else.
func also(counts ...amount) (out string) {
	for _, c := range counts {
		if c.n > 0 {
			out += fmt.Sprintf(", %d %s", c.n, c.what)
		}
	}
	return out
}

// named is the names of the first few of xs.
func named[T any](xs []T, name func(T) string) string {
	var out []string
	for i, x := range xs {
		if i == maxNamed {
			return strings.Join(out, ", ") + fmt.Sprintf(" and %d more", len(xs)-i)
		}
		out = append(out, name(x))
	}
	return strings.Join(out, ", ")
}

// uptime is d for people: days and hours, or hours and minutes.
func uptime(d time.Duration) string {
	switch h, m := int(d.Hours()), int(d.Minutes()); {
	case h >= 48:
		return fmt.Sprintf("%d days %d h", h/24, h%24)
	case h > 0:
		return fmt.Sprintf("%d h %d min", h, m%60)
	case m > 0:
		return fmt.Sprintf("%d min", m)
	}
	return fmt.Sprintf("%d s", int(d.Seconds()))
}
