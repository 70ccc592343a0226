package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"tailscale.com/types/key"

	"github.com/skein-vpn/skein/api"
	"github.com/skein-vpn/skein/config"
	"github.com/skein-vpn/skein/db"
)

// finding is one line of the doctor's.
type finding struct {
	Level  level  `json:"level"`
	Check  string `json:"check"`
	Text   string `json:"text"`
	Remedy string `json:"remedy"` // what to do; empty if there is nothing to do
}

// level is how bad a finding is.
type level string

const (
	levelOK      level = "ok"
	levelWarning level = "warning"
	levelFault   level = "fault"
)

// diagnosis is what the doctor says, for -o.
type diagnosis struct {
	Faults   int       `json:"faults"`
	Warnings int       `json:"warnings"`
	Findings []finding `json:"findings"`
}

// doctor looks at everything that a server needs. Nothing that it does changes anything.
type doctor struct {
	findings []finding
	ntp      string // host:port of a time server; empty: none is asked
	now      func() time.Time

	cfg    *config.Config // nil: of a server elsewhere, or it has faults
	client *api.Client    // nil: the server does not run, or not here
	st     *api.Status    // nil: as client, or it may not be read
	url    *url.URL       // nil: not known
	key    key.MachinePublic
}

func (d *doctor) say(l level, check, remedy, text string, args ...any) {
	d.findings = append(d.findings, finding{l, check, fmt.Sprintf(text, args...), remedy})
}

func (d *doctor) ok(check, text string, args ...any) { d.say(levelOK, check, "", text, args...) }

func newDoctorCommand(c *cli) *cobra.Command {
	var ntp string
	cmd := &cobra.Command{
		Use: "doctor", Short: "Find what is wrong, and say how to mend it",
		Long: `Find what is wrong with a server and say how to mend it: its configuration, files and database, the clock, its ports, and what clients
see: whether server_url leads to this very server, the certificate, the protocol that clients speak (a proxy may not let it through),
the relays and STUN. Nothing is changed.

Run it on the machine of the server, as root or as the server's user; it works when the server does not run, too. With --server it
looks at a server elsewhere as clients on this machine see it.

Each line is ok, a warning or a fault. The exit code is 1 if there is a fault. The clock is compared with a time server on the
Internet if one can be reached; --ntp "" asks none.`,
		Example: `  skein doctor
  skein doctor -o json
  skein doctor --server https://skein.example.com --api-key-file key`,
		Args: wantArgs(), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d := &doctor{ntp: ntp, now: time.Now}
			if err := c.examine(cmd.Context(), d); err != nil {
				return err
			}
			out := diagnosis{Findings: d.findings}
			for _, f := range d.findings {
				switch f.Level {
				case levelFault:
					out.Faults++
				case levelWarning:
					out.Warnings++
				}
			}
			if err := c.printDiagnosis(&out); err != nil {
				return err
			}
			if out.Faults > 0 {
				return errors.New(plural(out.Faults, "fault") + ", " + plural(out.Warnings, "warning"))
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&ntp, "ntp", "pool.ntp.org", "compare the clock with that of this `HOST`; empty: with none")
	return cmd
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func (c *cli) printDiagnosis(d *diagnosis) error {
	if c.output != "" {
		return writeValue(c.out, c.output, d)
	}
	var b strings.Builder
	for _, f := range d.Findings {
		fmt.Fprintf(&b, "%-8s %-14s %s\n", f.Level, f.Check, printable(f.Text))
		if f.Remedy != "" {
			fmt.Fprintf(&b, "%-8s %-14s → %s\n", "", "", printable(f.Remedy))
		}
	}
	if d.Faults+d.Warnings == 0 {
		b.WriteString("\nNothing is wrong.\n")
	}
	_, err := io.WriteString(c.out, b.String())
	return err
}

// examine looks at everything, one after the other. An error is wrong usage.
func (c *cli) examine(ctx context.Context, d *doctor) error {
	elsewhere := c.server != "" || os.Getenv(envServer) != "" && c.socket == "" && c.dataDir == ""
	if !elsewhere {
		c.besideSocket()
		c.examineConfig(d)
		d.examineFiles()
	}
	cl, err := c.client()
	var usage *usageError
	if errors.As(err, &usage) {
		return err
	}
	d.client = cl
	d.examineServer(ctx, err)
	if d.cfg != nil {
		d.examineDatabase(ctx)
		d.examinePorts()
	}
	d.examineClock(ctx)
	d.examineURL(ctx)
	d.examineRelays(ctx)
	return nil
}

// besideSocket takes the folder of a socket that was named, and nothing else, for the data folder, where sockets are by default.
func (c *cli) besideSocket() {
	socket := c.socket
	if socket == "" {
		socket = os.Getenv(envSocket)
	}
	if c.config == "" && c.dataDir == "" && filepath.Base(socket) == socketName {
		c.dataDir, c.socket = filepath.Dir(socket), socket
	}
}

// examineConfig looks at the configuration that a server on this machine would use.
func (c *cli) examineConfig(d *doctor) {
	const check = "configuration"
	cfg, err := c.loadConfig()
	if err != nil {
		var faults config.Faults
		if !errors.As(err, &faults) {
			d.say(levelFault, check, "name the file with -c", "%v", err)
			return
		}
		for _, f := range faults {
			d.say(levelFault, check, "skein config check", "%s", f.Error())
		}
		return
	}
	d.cfg = cfg
	before := len(d.findings)
	for _, f := range cfg.CheckFiles() {
		d.say(levelFault, check, "mend the path or its permissions; run this as root or as the server's user", "%s", f.Error())
	}
	for _, f := range cfg.Warnings() {
		d.say(levelWarning, check, "", "%s", f.Error())
	}
	if len(d.findings) == before {
		where := cfg.File()
		if where == "" {
			where = "no file, defaults"
		}
		d.ok(check, "%s", where)
	}
	if cfg.ServerURL == "" {
		cfg.ServerURL = deriveServerURL(cfg.ListenAddr)
	}
	d.url, _ = url.Parse(cfg.ServerURL)
	if k, err := readNoiseKey(cfg.Noise.PrivateKeyPath); err == nil {
		d.key = k.Public()
	}
}

// Free space on the disk below which the doctor warns, and takes it for a fault.
const (
	spaceWarning = 1 << 30
	spaceFault   = 100 << 20
)

// examineFiles looks at the data folder and at who may read what is secret in it.
func (d *doctor) examineFiles() {
	if d.cfg == nil {
		return
	}
	const check = "files"
	dir := d.cfg.DataDir
	fi, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		d.say(levelWarning, check, "skein serve makes it; or name another with --data-dir or -c", "there is no data folder %s yet", dir)
		return
	case err != nil:
		d.say(levelFault, check, "run this as root or as the server's user", "the data folder cannot be looked at: %v", err)
		return
	case !fi.IsDir():
		d.say(levelFault, check, "name a folder as data_dir", "%s is no folder", dir)
		return
	}
	before := len(d.findings)
	if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
		d.say(levelWarning, check, "run this as root or as the server's user; if you are: chown it to the server's user", "you may not write in %s", dir)
	}
	secrets := []string{dir, d.cfg.Noise.PrivateKeyPath, d.cfg.DERP.Server.PrivateKeyPath, filepath.Join(dir, "self_signed.pem"), d.cfg.TLSKeyPath}
	if !d.cfg.Database.IsPostgres() {
		secrets = append(secrets, d.cfg.Database.SQLite.Path)
	} else {
		secrets = append(secrets, d.cfg.Database.Postgres.PassPath)
	}
	for _, path := range secrets {
		if path == "" {
			continue
		}
		if fi, err := os.Stat(path); err == nil && fi.Mode().Perm()&0o007 != 0 {
			d.say(levelFault, check, fmt.Sprintf("chmod o= %s", path), "everybody on this machine may open %s (mode %04o)", path, fi.Mode().Perm())
		}
	}
	if fi, err := os.Stat(d.cfg.UnixSocket); err == nil && fi.Mode().Perm()&0o006 != 0 {
		d.say(levelFault, check, "unix_socket_permission: \"0770\" in the configuration", "everybody on this machine may administer the server by %s (mode %04o)", d.cfg.UnixSocket, fi.Mode().Perm())
	}
	var vfs unix.Statfs_t
	if err := unix.Statfs(dir, &vfs); err == nil {
		free := vfs.Bavail * uint64(vfs.Bsize)
		text := fmt.Sprintf("%d MiB are free on the disk of %s", free>>20, dir)
		switch {
		case free < spaceFault:
			d.say(levelFault, check, "make room: without it no change can be stored", "%s", text)
		case free < spaceWarning:
			d.say(levelWarning, check, "make room", "%s", text)
		case len(d.findings) == before:
			d.ok(check, "only the server's user may read the keys; %s", text)
		}
	}
}

// examineServer asks the server itself. notThere is why it cannot be asked.
func (d *doctor) examineServer(ctx context.Context, notThere error) {
	const check = "server"
	if notThere != nil {
		d.say(levelFault, check, "start it: systemctl start skein, or skein serve", "%s", strings.Join(strings.Fields(strings.SplitN(notThere.Error(), "\nStart one", 2)[0]), " "))
		return
	}
	begin := d.now()
	st, err := d.client.Status(ctx)
	if err != nil {
		d.say(levelFault, check, "look into its log: journalctl -u skein", "%v", err)
		return
	}
	round := d.now().Sub(begin)
	d.st = st
	d.ok(check, "skein %s runs, %s", st.Server.Version, uptime(time.Duration(st.Server.UptimeSeconds)*time.Second))
	if st.Server.Version != version() {
		d.say(levelWarning, check, "systemctl restart skein, after an upgrade", "this program is %s, the server is %s", version(), st.Server.Version)
	}
	for _, w := range st.Warnings {
		d.say(levelWarning, check, w.Remedy, "%s", w.Text)
	}
	if u, err := url.Parse(st.Server.URL); err == nil && u.Host != "" {
		d.url = u
	}
	_ = d.key.UnmarshalText([]byte(st.Server.Key)) // empty from a server that does not say
	if off := st.Time.Sub(begin) - round/2; math.Abs(off.Seconds()) > clockTolerance.Seconds()+round.Seconds()/2 {
		d.say(levelFault, "clock", "set both clocks by NTP", "the server's clock and that of this machine are %s apart", off.Abs().Round(time.Second))
	}
}

// clockTolerance is how far clocks may be apart: what clients sign and tokens tell is good for a minute at the least.
const clockTolerance = 5 * time.Second

// databasePatience is how long a look at the database may take.
const databasePatience = time.Minute

func (d *doctor) examineDatabase(ctx context.Context) {
	const check = "database"
	if d.cfg.Database.IsPostgres() {
		if d.st != nil { // its health check has asked
			d.ok(check, "%s answers the server", d.st.Server.Database)
			return
		}
		p := d.cfg.Database.Postgres
		if p.URL != "" {
			return
		}
		c, err := (&net.Dialer{Timeout: netPatience}).DialContext(ctx, "tcp", net.JoinHostPort(p.Host, fmt.Sprint(p.Port)))
		if err != nil {
			d.say(levelFault, check, "start PostgreSQL, or let this machine reach it (database.postgres)", "PostgreSQL at %s does not answer: %v", p.Host, netError(err))
			return
		}
		_ = c.Close()
		d.ok(check, "PostgreSQL at %s accepts connections", p.Host)
		return
	}
	path := d.cfg.Database.SQLite.Path
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		d.say(levelWarning, check, "skein serve makes it", "there is no database %s yet", path)
		return
	case err != nil:
		d.say(levelFault, check, "run this as root or as the server's user; if you are: chown it to the server's user, or mount its disk for writing", "the database cannot be written: %v", err)
		return
	}
	_ = f.Close()
	ctx, cancel := context.WithTimeout(ctx, databasePatience)
	defer cancel()
	switch err := db.CheckFile(ctx, path); {
	case errors.Is(err, context.DeadlineExceeded):
		d.say(levelWarning, check, "", "%s could not be read through within %s", path, databasePatience)
	case err != nil:
		d.say(levelFault, check, "stop the server and go back to a backup: skein restore FILE", "%v", err)
	default:
		d.ok(check, "%s can be written and is not damaged", path)
	}
}

// examinePorts looks at the ports of the configuration: are they free, if the server is down, or does it listen there?
func (d *doctor) examinePorts() {
	const check = "ports"
	if d.client != nil {
		if d.st != nil && d.st.Server.Listen != "" {
			d.examineListener(d.st.Server.Listen)
		}
		return
	}
	before := len(d.findings)
	try := func(key, network, addr string) {
		if addr == "" {
			return
		}
		if err := tryListen(network, addr); err != nil {
			remedy := "stop what has it, or choose another (" + key + ")"
			if errors.Is(err, fs.ErrPermission) {
				remedy = "run it as root, or with CAP_NET_BIND_SERVICE"
			}
			d.say(levelFault, check, remedy, "%s %s cannot be listened on: %s", strings.ToUpper(network), addr, netError(err))
		}
	}
	try("listen_addr", "tcp", d.cfg.ListenAddr)
	try("metrics_listen_addr", "tcp", d.cfg.MetricsListenAddr)
	if s := d.cfg.DERP.Server; s.Enabled {
		try("derp.server.stun_listen_addr", "udp", s.STUNListenAddr)
	}
	if len(d.findings) == before {
		d.ok(check, "those of the configuration are free")
	}
}

// examineListener asks the server at its own port.
func (d *doctor) examineListener(addr string) {
	const check = "ports"
	c, err := net.DialTimeout("tcp", here(addr), netPatience)
	if err != nil {
		d.say(levelFault, check, "look into its log, and restart it", "the server does not answer on %s: %s", addr, netError(err))
		return
	}
	_ = c.Close()
	_, has, _ := net.SplitHostPort(addr)
	if _, want, _ := net.SplitHostPort(d.cfg.ListenAddr); want != has && want != "0" {
		d.say(levelWarning, check, "look with the server's own configuration (-c FILE), or restart it",
			"the server listens on %s, and not on %s as this configuration says", addr, d.cfg.ListenAddr)
		return
	}
	d.ok(check, "the server answers on %s", addr)
}

func tryListen(network, addr string) error {
	if network == "udp" {
		p, err := net.ListenPacket("udp", addr)
		if err != nil {
			return err
		}
		return p.Close()
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	return l.Close()
}

// here is addr as this machine itself reaches it.
func here(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if ip := net.ParseIP(host); err == nil && (host == "" || ip != nil && ip.IsUnspecified()) {
		return net.JoinHostPort("localhost", port)
	}
	return addr
}
