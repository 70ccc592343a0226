package main

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"tailscale.com/types/key"

	"github.com/skein-vpn/skein/config"
	"github.com/skein-vpn/skein/db"
	"github.com/skein-vpn/skein/tailnet"
	"github.com/skein-vpn/skein/takeover"
)

func newImportCommand(c *cli) *cobra.Command {
	return group("import", nil, "Take over another control server's users, nodes and settings",
		`  skein import headscale --config /etc/headscale/config.yaml --dry-run`, c.importHeadscale(), c.importTailscale())
}

// headscaleImport is one run of import headscale.
type headscaleImport struct {
	config, db, noiseKey, derpKey, policy string // as given
	to                                    string // PostgreSQL database of the target; empty: SQLite in dir
	dryRun, force                         bool

	dir      string // data folder of the target
	settings *takeover.Settings
	plan     *takeover.Plan
	mark     string // says of a revision that it is this import
	report   importReport
}

// importReport is what is printed, for -o.
type importReport struct {
	takeover.Report
	DryRun  bool            `json:"dryRun"`
	Done    bool            `json:"done"`    // false: it is not there
	Again   bool            `json:"again"`   // it was there already, and nothing was written
	DataDir string          `json:"dataDir"` // where it goes
	To      string          `json:"to"`      // the PostgreSQL database for the rows, without its password; empty: db.sqlite in DataDir
	Files   []string        `json:"files"`   // written, in DataDir
	Dropped []importSetting `json:"settingsNotTaken"`
}

type importSetting struct {
	Key string `json:"key"`
	Why string `json:"why"`
}

func (c *cli) importHeadscale() *cobra.Command {
	h := &headscaleImport{}
	cmd := &cobra.Command{
		Use: "headscale (--config FILE | --db FILE|DSN --noise-key FILE)", Short: "Take over a headscale server, without its clients noticing",
		Long: `Take over a headscale server (0.23 to 0.30): users, nodes with their ids, keys, addresses, names and routes, pre-auth keys and API
keys, the policy, the server's keys, and its configuration, from which a config.yaml is written beside the data. Start Skein under the
same URL afterwards, and clients go on without a login.

Stop headscale first. Nothing of it is changed: start it again to go back. What goes into the data folder is printed before, with
everything that cannot stay as it was and why; --dry-run stops there. The command may be repeated; over a server that holds
something else it refuses, unless --force puts that aside. With --to everything but the files goes into a PostgreSQL database, which
has to be empty.

A policy that Skein cannot use stops the import, with its faults: mend a copy and name it with --policy.`,
		Example: `  skein import headscale --config /etc/headscale/config.yaml --dry-run
  skein import headscale --config /etc/headscale/config.yaml --data-dir /var/lib/skein
  skein import headscale --db db.sqlite --noise-key noise_private.key --data-dir ./skein-data
  skein import headscale --db postgres://headscale@db.example.com/headscale --noise-key noise_private.key
  skein import headscale --config /etc/headscale/config.yaml --to postgres://skein@db.example.com/skein`,
		Args: wantArgs(), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if h.config == "" && (h.db == "" || h.noiseKey == "") {
				return usagef("name headscale's configuration with --config, or its database with --db and its key with --noise-key")
			}
			return c.runImport(cmd.Context(), h)
		},
	}
	f := cmd.Flags()
	f.StringVar(&h.config, "config", "", "headscale's configuration `FILE`; it names the database and the keys")
	f.StringVar(&h.db, "db", "", "headscale's database, a `FILE` of SQLite or a URL of PostgreSQL")
	f.StringVar(&h.noiseKey, "noise-key", "", "headscale's key, a `FILE` (noise.private_key_path)")
	f.StringVar(&h.derpKey, "derp-key", "", "key of headscale's relay, a `FILE` (derp.server.private_key_path)")
	f.StringVar(&h.policy, "policy", "", "policy `FILE` instead of headscale's")
	f.StringVar(&h.to, "to", "", "PostgreSQL database that it goes to, a `URL` or connection string (default: SQLite in the data folder); the password may be in PGPASSWORD")
	f.BoolVar(&h.dryRun, "dry-run", false, "only say what would be taken over")
	f.BoolVar(&h.force, "force", false, "put aside what is in the data folder")
	return cmd
}

func (c *cli) runImport(ctx context.Context, h *headscaleImport) (err error) {
	if h.dir = c.dataDir; h.dir == "" {
		h.dir = config.DefaultDataDir()
	}
	if h.dir, err = filepath.Abs(h.dir); err != nil {
		return err
	}
	if err := h.read(ctx); err != nil {
		return err
	}
	stage, err := os.MkdirTemp("", "skein-import-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(stage) }()
	files, err := h.stage(stage)
	if err != nil {
		return err
	}
	h.report.Report, h.report.DryRun, h.report.DataDir, h.report.Files = h.plan.Report, h.dryRun, h.dir, files
	h.report.To = takeover.Redact(h.to)
	if len(h.report.Policy.Faults) > 0 {
		err = errors.New("the policy cannot be used as it is, so nothing is written: mend a copy of it and name that with --policy")
	} else if !h.dryRun {
		if h.report.Again, err = h.write(ctx, stage, files); err == nil {
			h.report.Done = true
		}
	}
	if perr := c.printImport(h); perr != nil {
		return perr
	}
	switch {
	case err != nil || h.dryRun || c.output != "":
		return err
	case h.report.Again:
		return c.done("It is all there already; nothing is changed.")
	}
	start := "skein serve --data-dir " + h.dir
	if slices.Contains(files, importConfig) {
		start = "skein serve -c " + filepath.Join(h.dir, importConfig)
	}
	return c.done("Done. Start it under headscale's URL: %s", start)
}

// Names in the data folder.
const (
	importDB     = "db.sqlite"
	importNoise  = "noise_private.key"
	importDERP   = "derp_server_private.key"
	importPolicy = "policy.hujson"
	importConfig = "config.yaml"
	importTLS    = "tls.pem"
)

// read reads everything of headscale's.
func (h *headscaleImport) read(ctx context.Context) (err error) {
	h.settings = &takeover.Settings{}
	if h.config != "" {
		if h.settings, err = takeover.ReadConfig(h.config, os.Environ()); err != nil {
			return err
		}
	}
	for _, o := range []struct {
		given string
		to    *string
	}{{h.db, &h.settings.Database}, {h.noiseKey, &h.settings.NoiseKey}, {h.derpKey, &h.settings.DERPKey}, {h.policy, &h.settings.PolicyPath}} {
		if o.given != "" {
			*o.to = o.given
		}
	}
	src, err := takeover.Open(ctx, h.settings.Database)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	var file *takeover.PolicyFile
	if h.settings.PolicyPath != "" {
		text, err := os.ReadFile(h.settings.PolicyPath)
		if err != nil {
			return fmt.Errorf("the policy cannot be read: %w", err)
		}
		file = &takeover.PolicyFile{Name: h.settings.PolicyPath, Text: text}
	}
	if h.plan, err = src.Translate(ctx, file); err != nil {
		return err
	}
	h.plan.Report.Notes = append(h.plan.Report.Notes, h.settings.Notes...)
	b, err := json.Marshal([]any{h.plan.Users, h.plan.Nodes, h.plan.PreAuthKeys, h.plan.Credentials, h.plan.Policy})
	if err != nil {
		return err
	}
	h.mark = fmt.Sprintf("taken over from headscale (%.16x)", sha256.Sum256(b))
	return nil
}

// stage makes all files but the database in a folder of their own, and returns their names.
func (h *headscaleImport) stage(dir string) (files []string, err error) {
	put := func(name string, text []byte) error {
		files = append(files, name)
		return os.WriteFile(filepath.Join(dir, name), text, 0o600)
	}
	noise, err := readMachineKey(h.settings.NoiseKey)
	if err != nil {
		return nil, fmt.Errorf("headscale's key (noise.private_key_path): %w", err)
	}
	if err := put(importNoise, noise); err != nil {
		return nil, err
	}
	if h.settings.DERPKey != "" {
		relay, err := readMachineKey(h.settings.DERPKey)
		switch {
		case err == nil:
			if err := put(importDERP, relay); err != nil {
				return nil, err
			}
		case errors.Is(err, os.ErrNotExist) && h.derpKey == "":
			h.plan.Report.Notes = append(h.plan.Report.Notes, "headscale has no key for a relay ("+h.settings.DERPKey+"); Skein makes one.")
		default:
			return nil, fmt.Errorf("the relay's key (derp.server.private_key_path): %w", err)
		}
	}
	if h.config == "" {
		h.plan.Report.Notes = append(h.plan.Report.Notes, "No configuration is written: set server_url to headscale's, and prefixes and dns.base_domain if they were not the usual ones.")
		return files, nil
	}
	if h.settings.PolicyPath != "" && h.plan.Policy != nil {
		if err := put(importPolicy, h.plan.Policy); err != nil {
			return nil, err
		}
	}
	if cert := h.certificate(); cert != nil {
		if err := put(importTLS, cert); err != nil {
			return nil, err
		}
	}
	text, err := h.configuration(dir)
	if err != nil {
		return nil, err
	}
	return files, put(importConfig, text)
}

// readMachineKey reads a key file, which must hold a key.
func readMachineKey(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 1024))
	if err != nil {
		return nil, err
	}
	var k key.MachinePrivate
	if err := k.UnmarshalText([]byte(strings.TrimSpace(string(b)))); err != nil || k.IsZero() {
		return nil, fmt.Errorf("%s does not hold a key such as privkey:… with 64 hexadecimal digits", path)
	}
	return b, nil
}

// certificate is the one that headscale has ordered by itself, with its key, if it is still good. Skein orders none, so it serves for
// as long as it is valid.
func (h *headscaleImport) certificate() []byte {
	if h.settings.ACMECert == "" {
		return nil
	}
	note := func(format string, args ...any) {
		h.plan.Report.Notes = append(h.plan.Report.Notes, fmt.Sprintf(format, args...))
	}
	b, err := os.ReadFile(h.settings.ACMECert)
	if errors.Is(err, os.ErrNotExist) {
		b, err = os.ReadFile(h.settings.ACMECert + "+rsa")
	}
	var pair tls.Certificate
	if err == nil {
		pair, err = tls.X509KeyPair(b, b)
	}
	if err != nil {
		note("headscale orders its certificate by itself, and none was found (%v): Skein needs tls_cert_path and tls_key_path.", err)
		return nil
	}
	if end := pair.Leaf.NotAfter; time.Now().After(end) {
		note("headscale's certificate has ended %s: Skein needs tls_cert_path and tls_key_path.", end.Format(time.DateOnly))
		return nil
	}
	path := filepath.Join(h.dir, importTLS)
	h.settings.Ours = append(h.settings.Ours, takeover.Setting{Key: "tls_cert_path", Value: path, From: "tls_letsencrypt_cache_dir"},
		takeover.Setting{Key: "tls_key_path", Value: path, From: "tls_letsencrypt_cache_dir"})
	note("headscale's certificate is taken over and valid until %s. Skein does not order a new one: let another program do so (certbot, lego) before that day.",
		pair.Leaf.NotAfter.Format(time.DateOnly))
	return b
}

// configuration makes our config.yaml. What our configuration does not know or not accept is left out and told.
func (h *headscaleImport) configuration(scratch string) ([]byte, error) {
	ours := []takeover.Setting{{Key: "data_dir", Value: h.dir, From: "data_dir"}}
	for _, s := range h.settings.Ours {
		if s.Key != "policy.mode" {
			ours = append(ours, s)
		}
	}
	if h.plan.Policy != nil && h.settings.PolicyPath != "" {
		ours = append(ours, takeover.Setting{Key: "policy.mode", Value: "file", From: "policy.mode"},
			takeover.Setting{Key: "policy.path", Value: filepath.Join(h.dir, importPolicy), From: "policy.path"})
	} else {
		ours = append(ours, takeover.Setting{Key: "policy.mode", Value: "database", From: "policy.mode"})
	}
	if h.to != "" {
		ours = append(ours, takeover.Setting{Key: "database.type", Value: "postgres", From: "database.type"},
			takeover.Setting{Key: "database.postgres.url", Value: h.to, From: "database.postgres.url"})
		if os.Getenv("PGPASSWORD") != "" {
			h.plan.Report.Notes = append(h.plan.Report.Notes, "The password of the PostgreSQL database is not in config.yaml: the server needs PGPASSWORD, too, or the password in database.postgres.url.")
		}
	}
	path := filepath.Join(scratch, "try.yaml")
	defer func() { _ = os.Remove(path) }()
	for {
		text, err := takeover.YAML(ours, fmt.Sprintf("Made by \"skein import headscale\" from %s.\nconfig.yaml of the distribution describes every setting.", h.config))
		if err != nil {
			return nil, err
		}
		if err := os.WriteFile(path, text, 0o600); err != nil {
			return nil, err
		}
		_, err = config.Load(config.Options{File: path})
		var faults config.Faults
		if !errors.As(err, &faults) {
			return text, err
		}
		before := len(ours)
		for _, f := range faults {
			ours = slices.DeleteFunc(ours, func(s takeover.Setting) bool {
				hit := s.Key == f.Key || strings.HasPrefix(s.Key, f.Key+".") || strings.HasPrefix(f.Key, s.Key+".")
				if hit && s.From != "" { // headscale's defaults are nobody's wish
					h.report.Dropped = append(h.report.Dropped, importSetting{s.From, f.Text})
				}
				return hit
			})
		}
		if len(ours) == before {
			return nil, fmt.Errorf("no configuration could be made of %s: %w", h.config, err)
		}
	}
}

// write fills the data folder. It reports whether everything was there already. The database comes last: an import that was
// interrupted is repeated.
func (h *headscaleImport) write(ctx context.Context, stage string, files []string) (again bool, err error) {
	if err := os.MkdirAll(h.dir, 0o700); err != nil {
		return false, fmt.Errorf("the data folder cannot be made: %w", err)
	}
	full, same, err := h.target(ctx)
	if err != nil {
		return false, err
	}
	if same {
		return true, nil
	}
	switch {
	case full && h.to != "":
		return false, fmt.Errorf("the database %s holds a server already; name an empty one", h.report.To)
	case full && !h.force:
		return false, fmt.Errorf("%s holds a server already, which --force puts aside: its database becomes %s.before-import-…", h.dir, importDB)
	}
	names := slices.Clone(files)
	if h.to == "" {
		if err := h.fill(ctx, db.Options{Path: filepath.Join(stage, importDB)}); err != nil {
			return false, err
		}
		names = append(names, importDB)
	}
	now := time.Now().UTC().Format("20060102T150405Z")
	for _, name := range names {
		if err := place(filepath.Join(stage, name), filepath.Join(h.dir, name), ".before-import-"+now); err != nil {
			return false, err
		}
	}
	h.report.Files = names
	if h.to == "" {
		return false, nil
	}
	return false, h.fill(ctx, db.Options{URL: h.to})
}

// target reports whether the data folder, or the PostgreSQL database, holds a server that knows anybody, and whether that is what this
// import has made.
func (h *headscaleImport) target(ctx context.Context) (full, same bool, err error) {
	o := db.Options{URL: h.to}
	if h.to == "" {
		o.Path = filepath.Join(h.dir, importDB)
		if fi, err := os.Stat(o.Path); errors.Is(err, os.ErrNotExist) || err == nil && fi.Size() == 0 {
			return false, false, nil
		}
	}
	d, err := db.Open(ctx, o)
	if err != nil {
		return false, false, err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	c, err := d.Load(ctx, tailnet.DefaultID)
	if err != nil {
		return false, false, err
	}
	if c.Rev == 1 {
		revs, err := d.Revisions(ctx, tailnet.DefaultID, 0, 1)
		if err != nil {
			return false, false, err
		}
		same = len(revs) == 1 && slices.Contains(revs[0].Why, h.mark)
	}
	return c.Rev > 0, same, nil
}

// fill makes a database that holds the plan; there is none yet, or it is empty.
func (h *headscaleImport) fill(ctx context.Context, o db.Options) (err error) {
	d, err := db.Open(ctx, o)
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, d.Close()); o.URL == "" {
			_ = os.Remove(o.Path + ".lock")
		}
	}()
	c, err := d.Load(ctx, tailnet.DefaultID)
	if err != nil {
		return err
	}
	p, now := h.plan, time.Now()
	t := c.Tailnet
	t.LastNodeID, t.LastUserID, t.LastPreAuthKeyID = p.LastNode, p.LastUser, p.LastPreKey
	ch := &tailnet.Changes{
		PutUsers: p.Users, PutNodes: p.Nodes, PutPreAuthKeys: p.PreAuthKeys, PutCredentials: p.Credentials, When: now, Why: []string{h.mark},
	}
	if p.Policy != nil && h.settings.PolicyPath == "" || h.config == "" && p.Policy != nil {
		t.LastPolicyID++
		ch.PutPolicy = &tailnet.PolicyVersion{ID: t.LastPolicyID, Text: string(p.Policy), Author: "headscale", Comment: "taken over", Created: now}
	}
	ch.Tailnet = &t
	if _, err := d.Commit(ctx, tailnet.DefaultID, c.Rev, ch); err != nil {
		return fmt.Errorf("the database could not be filled: %w", err)
	}
	return d.SavePresence(ctx, tailnet.DefaultID, "", p.Presence)
}

// place puts a file where it belongs, over file systems too, and what is there aside.
func place(from, to, aside string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	old, err := os.ReadFile(to)
	_, logged := os.Stat(to + "-wal")
	if same := err == nil && string(old) == string(b); same && logged != nil {
		return nil //nolint:nilerr // that no log is beside it is what is wanted
	}
	if err == nil {
		for _, suffix := range []string{"", "-wal", "-shm"} {
			if err := os.Rename(to+suffix, to+aside+suffix); err != nil && (suffix == "" || !errors.Is(err, os.ErrNotExist)) {
				return err
			}
		}
	}
	part := to + ".new"
	if err := writeSynced(part, b); err != nil {
		return err
	}
	return os.Rename(part, to)
}

// writeSynced writes a file of ours that is on the disk when writeSynced returns.
func writeSynced(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// printImport prints the report.
func (c *cli) printImport(h *headscaleImport) error {
	r := &h.report
	if r.Dropped == nil {
		r.Dropped = []importSetting{}
	}
	if c.output != "" {
		return writeValue(c.out, c.output, r)
	}
	var b strings.Builder
	line := func(format string, args ...any) { b.WriteString(printable(fmt.Sprintf(format, args...)) + "\n") }
	line("headscale %s in %s", r.Headscale, r.Source)
	for _, k := range []struct {
		name string
		n    takeover.Count
	}{{"namespaces", r.Users}, {"nodes", r.Nodes}, {"pre-auth keys", r.PreAuthKeys}, {"API keys", r.APIKeys}, {"OAuth clients", r.OAuth}} {
		if k.n.Taken > k.n.Found {
			line("  %-15s%d, and %d made", k.name, k.n.Found, k.n.Taken-k.n.Found)
			continue
		}
		line("  %-15s%d of %d", k.name, k.n.Taken, k.n.Found)
	}
	switch {
	case r.Policy.From == "":
		line("  %-15snone: everybody reaches everybody", "policy")
	default:
		line("  %-15s%d bytes from %s", "policy", r.Policy.Bytes, r.Policy.From)
	}
	part := func(title string, lines []string) {
		if len(lines) == 0 {
			return
		}
		line("")
		line("%s", title)
		for _, l := range lines {
			line("  %s", l)
		}
	}
	changes := func(list []takeover.Change) (out []string) {
		for _, ch := range list {
			out = append(out, ch.What+": "+ch.Text)
		}
		return out
	}
	part("The policy has faults:", r.Policy.Faults)
	part("The policy is read so that", r.Policy.Warnings)
	access := r.Policy.Access
	switch n := r.Policy.MoreAccess; {
	case n < 0:
		access = append(slices.Clone(access), "and many more")
	case n > 0:
		access = append(slices.Clone(access), fmt.Sprintf("and %d more", n))
	}
	part("headscale reads the policy otherwise. With Skein it", access)
	part("Left out:", changes(r.Skipped))
	part("Not as it was:", changes(r.Changes))
	var dropped []string
	for _, d := range r.Dropped {
		dropped = append(dropped, d.Key+": "+d.Why)
	}
	part("Settings that are not taken over:", dropped)
	part("Note:", r.Notes)
	and := ""
	if r.To != "" {
		and = "; everything else to " + r.To
	}
	if line(""); r.Done && !r.Again {
		line("Written to %s: %s%s", r.DataDir, strings.Join(r.Files, ", "), and)
	} else if !r.Done {
		files := slices.Clone(r.Files)
		if r.To == "" {
			files = append(files, importDB)
		}
		line("Nothing was written. It would go to %s: %s%s", r.DataDir, strings.Join(files, ", "), and)
	}
	_, err := io.WriteString(c.out, b.String())
	return err
}
