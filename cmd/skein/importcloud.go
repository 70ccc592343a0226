package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	tsapi "tailscale.com/client/tailscale/v2"

	"github.com/skein-vpn/skein/policy"
	"github.com/skein-vpn/skein/tailnet"
	"github.com/skein-vpn/skein/takeover"
)

// cloudImport is one run of import tailscale.
type cloudImport struct {
	out, tailnet, keyFile, base, server string
	force, dryRun                       bool
	apply, users                        bool // change the server; make namespaces there, too
}

// cloudReport is what is printed, for -o.
type cloudReport struct {
	Policy   importPolicyReport `json:"policy"`
	DNS      cloudDNS           `json:"dns"`
	Settings *cloudSettings     `json:"settings"` // null: they could not be read
	Devices  []cloudDevice      `json:"devices"`
	Users    []string           `json:"users"` // who own devices
	Tags     []string           `json:"tags"`  // that devices have
	Folder   string             `json:"folder"`
	Files    []string           `json:"files"` // written there; none with --dry-run
	Dropped  []string           `json:"left"`  // what Skein has no place for
	DryRun   bool               `json:"dryRun"`
	Applied  []cloudStep        `json:"applied"` // what was, or with DryRun would be, changed at the server
	policyIs string
}

// cloudSettings are the settings that Skein has, too.
type cloudSettings struct {
	DeviceApproval  bool `json:"deviceApproval"`
	UserApproval    bool `json:"userApproval"`
	KeyDurationDays int  `json:"keyDurationDays"`
}

type importPolicyReport struct {
	Bytes    int      `json:"bytes"`
	Faults   []string `json:"faults"`
	Warnings []string `json:"warnings"`
}

type cloudDNS struct {
	MagicDNS      bool                          `json:"magicDNS"`
	OverrideLocal *bool                         `json:"overrideLocalDNS"` // null: not known
	Nameservers   []tailnet.Resolver            `json:"nameservers"`
	Search        []string                      `json:"searchPaths"`
	Split         map[string][]tailnet.Resolver `json:"splitDNS"`
}

type cloudDevice struct {
	Name      string   `json:"name"`
	Hostname  string   `json:"hostname"`
	User      string   `json:"user"`
	Tags      []string `json:"tags"`
	Addresses []string `json:"addresses"`
	Routes    []string `json:"enabledRoutes"`
}

// What an answer of the API may be at the most, and how long one may take.
const (
	maxCloudAnswer = 32 << 20
	cloudTimeout   = time.Minute
)

func (c *cli) importTailscale() *cobra.Command {
	h := &cloudImport{}
	cmd := &cobra.Command{
		Use: "tailscale (--out DIR | --apply)", Short: "Fetch policy, DNS, settings and the list of devices from Tailscale",
		Long: `Fetch the policy, the DNS settings and the list of devices of a tailnet from Tailscale's API, and write them into a folder: the policy
as it is (policy.hujson), the DNS settings as configuration (dns.yaml), the devices (devices.json), and the steps that are left, device by
device (steps.txt). Nothing is changed there. Devices cannot be taken over: their keys belong to Tailscale, so each
logs in once more.

With --apply the running server gets the policy, the DNS settings, and the settings that Skein has too (approval of devices and users,
how long keys live); with --users also a namespace for everybody who owns a device, for servers without an identity provider. What is
there already is left alone, so that it may be repeated; --dry-run says what would change.

The API key comes from --api-key-file or TAILSCALE_API_KEY, or TAILSCALE_OAUTH_CLIENT_ID and TAILSCALE_OAUTH_CLIENT_SECRET; it has
to be allowed to read policy, DNS, devices and settings.`,
		Example: `  TAILSCALE_API_KEY=tskey-api-… skein import tailscale --out move --server-url https://skein.example.com
  skein import tailscale --api-key-file key --apply --dry-run
  skein policy check move/policy.hujson && skein policy set move/policy.hujson`,
		Args: wantArgs(), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case h.out == "" && !h.dryRun && !h.apply:
				return usagef("name a folder for what is fetched with --out, change the server with --apply, or look only with --dry-run")
			case h.users && !h.apply:
				return usagef("--users makes namespaces at the server, which --apply is for")
			}
			return c.runCloudImport(cmd.Context(), h)
		},
	}
	f := cmd.Flags()
	f.StringVar(&h.out, "out", "", "folder that is written to, a `DIR`")
	f.StringVar(&h.tailnet, "tailnet", "-", "`NAME` of the tailnet (-: that of the key)")
	f.StringVar(&h.keyFile, "api-key-file", "", "the API key is in `FILE`")
	f.StringVar(&h.base, "base-url", "https://api.tailscale.com", "`URL` of the API")
	f.StringVar(&h.server, "server-url", "https://skein.example.com", "`URL` of your Skein server, for the steps")
	f.BoolVar(&h.apply, "apply", false, "give policy, DNS and settings to the running server")
	f.BoolVar(&h.users, "users", false, "with --apply: make a namespace for everybody who owns a device")
	f.BoolVar(&h.dryRun, "dry-run", false, "only say what there is, and what would change")
	f.BoolVar(&h.force, "force", false, "replace files in the folder")
	return cmd
}

// client makes a client of the API.
func (h *cloudImport) client() (*tsapi.Client, error) {
	base, err := url.Parse(strings.TrimRight(h.base, "/"))
	if err != nil || base.Host == "" {
		return nil, usagef("--base-url %q is not a URL such as https://api.tailscale.com", h.base)
	}
	cl := &tsapi.Client{BaseURL: base, Tailnet: h.tailnet, UserAgent: "skein", APIKey: os.Getenv("TAILSCALE_API_KEY"),
		HTTP: &http.Client{Timeout: cloudTimeout, Transport: boundedTransport{http.DefaultTransport}}}
	if h.keyFile != "" {
		b, err := os.ReadFile(h.keyFile)
		if err != nil {
			return nil, fmt.Errorf("the API key cannot be read: %w", err)
		}
		cl.APIKey = strings.TrimSpace(string(b))
	}
	if id, secret := os.Getenv("TAILSCALE_OAUTH_CLIENT_ID"), os.Getenv("TAILSCALE_OAUTH_CLIENT_SECRET"); cl.APIKey == "" && id != "" && secret != "" {
		cl.Auth = &tsapi.OAuth{ClientID: id, ClientSecret: secret}
	} else if cl.APIKey == "" {
		return nil, usagef("there is no API key: set TAILSCALE_API_KEY, or name a file with --api-key-file")
	}
	return cl, nil
}

// boundedTransport cuts answers that are longer than any can be.
type boundedTransport struct{ next http.RoundTripper }

func (t boundedTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := t.next.RoundTrip(r)
	if err == nil {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(resp.Body, maxCloudAnswer), resp.Body}
	}
	return resp, err
}

func (c *cli) runCloudImport(ctx context.Context, h *cloudImport) error {
	cl, err := h.client()
	if err != nil {
		return err
	}
	r := &cloudReport{DryRun: h.dryRun, Folder: h.out, Files: []string{}, Dropped: []string{}, Applied: []cloudStep{}}
	if err := r.fetch(ctx, cl); err != nil {
		return err
	}
	r.check()
	if !h.dryRun && h.out != "" {
		if err := r.write(h); err != nil {
			return err
		}
	}
	var failed error
	if h.apply {
		failed = c.applyCloud(ctx, h, r)
	}
	if c.output != "" {
		return errors.Join(writeValue(c.out, c.output, r), failed)
	}
	_, err = io.WriteString(c.out, r.text())
	return errors.Join(err, failed)
}

// fetch asks the API for everything.
func (r *cloudReport) fetch(ctx context.Context, cl *tsapi.Client) error {
	raw, err := cl.PolicyFile().Raw(ctx)
	if err != nil {
		return fmt.Errorf("the policy cannot be fetched: %w", err)
	}
	r.policyIs = raw.HuJSON
	if err := r.fetchDNS(ctx, cl.DNS()); err != nil {
		return err
	}
	r.fetchSettings(ctx, cl)
	devices, err := cl.Devices().ListWithAllFields(ctx)
	if err != nil {
		return fmt.Errorf("the devices cannot be fetched: %w", err)
	}
	for _, d := range devices {
		if d.IsExternal {
			r.Dropped = append(r.Dropped, fmt.Sprintf("%s is shared by another tailnet", d.Name))
			continue
		}
		name, _, _ := strings.Cut(d.Name, ".")
		r.Devices = append(r.Devices, cloudDevice{name, d.Hostname, d.User, d.Tags, d.Addresses, d.EnabledRoutes})
		if len(d.Tags) == 0 && d.User != "" {
			r.Users = append(r.Users, d.User)
		}
		r.Tags = append(r.Tags, d.Tags...)
	}
	slices.SortFunc(r.Devices, func(a, b cloudDevice) int { return strings.Compare(a.Name, b.Name) })
	slices.Sort(r.Users)
	slices.Sort(r.Tags)
	r.Users, r.Tags = slices.Compact(r.Users), slices.Compact(r.Tags)
	return nil
}

// fetchDNS asks for everything at once, and one by one where that is not possible.
func (r *cloudReport) fetchDNS(ctx context.Context, cl *tsapi.DNSResource) error {
	resolvers := func(in []tsapi.DNSConfigurationResolver) []tailnet.Resolver {
		out := []tailnet.Resolver{}
		for _, one := range in {
			out = append(out, tailnet.Resolver{Addr: one.Address, UseWithExitNode: one.UseWithExitNode})
		}
		return out
	}
	r.DNS = cloudDNS{Nameservers: []tailnet.Resolver{}, Search: []string{}, Split: map[string][]tailnet.Resolver{}}
	if all, err := cl.Configuration(ctx); err == nil {
		r.DNS.MagicDNS, r.DNS.OverrideLocal = all.Preferences.MagicDNS, &all.Preferences.OverrideLocalDNS
		r.DNS.Nameservers, r.DNS.Search = resolvers(all.Nameservers), append(r.DNS.Search, all.SearchPaths...)
		for domain, in := range all.SplitDNS {
			r.DNS.Split[domain] = resolvers(in)
		}
		return nil
	}
	plain := func(addrs []string) []tailnet.Resolver {
		out := []tailnet.Resolver{}
		for _, a := range addrs {
			out = append(out, tailnet.Resolver{Addr: a})
		}
		return out
	}
	prefs, err := cl.Preferences(ctx)
	if err != nil {
		return fmt.Errorf("the DNS preferences cannot be fetched: %w", err)
	}
	servers, err := cl.Nameservers(ctx)
	if err != nil {
		return fmt.Errorf("the nameservers cannot be fetched: %w", err)
	}
	search, err := cl.SearchPaths(ctx)
	if err != nil {
		return fmt.Errorf("the search paths cannot be fetched: %w", err)
	}
	split, err := cl.SplitDNS(ctx)
	if err != nil {
		return fmt.Errorf("the split DNS cannot be fetched: %w", err)
	}
	r.DNS.MagicDNS, r.DNS.Nameservers, r.DNS.Search = prefs.MagicDNS, plain(servers), append(r.DNS.Search, search...)
	for domain, addrs := range split {
		r.DNS.Split[domain] = plain(addrs)
	}
	return nil
}

// fetchSettings asks for the settings. They are few: a key that may not read them is told of and no fault.
func (r *cloudReport) fetchSettings(ctx context.Context, cl *tsapi.Client) {
	s, err := cl.TailnetSettings().Get(ctx)
	if err != nil {
		r.Dropped = append(r.Dropped, "the settings cannot be read: "+err.Error())
		return
	}
	r.Settings = &cloudSettings{s.DevicesApprovalOn, s.UsersApprovalOn, s.DevicesKeyDurationDays}
	for what, on := range map[string]bool{
		"automatic updates": s.DevicesAutoUpdatesOn, "network flow logs": s.NetworkFlowLoggingOn, "regional routing": s.RegionalRoutingOn,
		"the collection of serial numbers": s.PostureIdentityCollectionOn, "HTTPS certificates for devices": s.HTTPSEnabled,
	} {
		if on {
			r.Dropped = append(r.Dropped, "Skein does not have "+what+", which is switched on at Tailscale")
		}
	}
	slices.Sort(r.Dropped)
}

// check finds out what Skein makes of the policy.
func (r *cloudReport) check() {
	r.Policy = importPolicyReport{Bytes: len(r.policyIs), Faults: []string{}, Warnings: []string{}}
	p, err := policy.Parse([]byte(r.policyIs))
	var list policy.Errors
	switch {
	case errors.As(err, &list):
		for _, e := range list {
			r.Policy.Faults = append(r.Policy.Faults, e.Error())
		}
	case err != nil:
		r.Policy.Faults = []string{err.Error()}
	default:
		for _, w := range p.Warnings() {
			r.Policy.Warnings = append(r.Policy.Warnings, fmt.Sprintf("line %d: %s", w.Line, w.Text))
		}
		is, err := policy.Compile(p, nil, nil, policy.Options{})
		for _, tag := range r.Tags {
			if err == nil && !is.KnowsTag(tag) {
				r.Policy.Warnings = append(r.Policy.Warnings, tag+", which devices have, is not in tagOwners: only administrators can give it")
			}
		}
	}
}

// addrs are the addresses of resolvers.
func addrs(in []tailnet.Resolver) (out []string) {
	for _, r := range in {
		out = append(out, r.Addr)
	}
	return out
}

// write writes the files.
func (r *cloudReport) write(h *cloudImport) error {
	dns := []takeover.Setting{{Key: "dns.magic_dns", Value: r.DNS.MagicDNS, From: "dns.magic_dns"}}
	if r.DNS.OverrideLocal != nil {
		dns = append(dns, takeover.Setting{Key: "dns.override_local_dns", Value: *r.DNS.OverrideLocal, From: "dns.override_local_dns"})
	}
	if len(r.DNS.Nameservers) > 0 {
		dns = append(dns, takeover.Setting{Key: "dns.nameservers.global", Value: addrs(r.DNS.Nameservers), From: "dns.nameservers.global"})
	}
	if len(r.DNS.Split) > 0 {
		split := map[string][]string{}
		for domain, in := range r.DNS.Split {
			split[domain] = addrs(in)
		}
		dns = append(dns, takeover.Setting{Key: "dns.nameservers.split", Value: split, From: "dns.nameservers.split"})
	}
	if len(r.DNS.Search) > 0 {
		dns = append(dns, takeover.Setting{Key: "dns.search_domains", Value: r.DNS.Search, From: "dns.search_domains"})
	}
	settings, err := takeover.YAML(dns, "DNS settings of the tailnet, for config.yaml of Skein.")
	if err != nil {
		return err
	}
	devices, err := json.MarshalIndent(r.Devices, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(h.out, 0o700); err != nil {
		return err
	}
	files := []struct {
		name string
		text []byte
	}{{"policy.hujson", []byte(r.policyIs)}, {"dns.yaml", settings}, {"devices.json", append(devices, '\n')}, {"steps.txt", []byte(r.steps(h.server))}}
	for _, f := range files {
		if _, err := os.Lstat(filepath.Join(h.out, f.name)); err == nil && !h.force {
			return fmt.Errorf("%s is there already; --force replaces it", filepath.Join(h.out, f.name))
		}
	}
	for _, f := range files {
		if err := writeSynced(filepath.Join(h.out, f.name), f.text); err != nil {
			return err
		}
		r.Files = append(r.Files, f.name)
	}
	return nil
}

// word is s as one word of a shell.
func word(s string) string { return "'" + strings.ReplaceAll(printable(s), "'", `'\''`) + "'" }

// steps is what is left to do by hand.
func (r *cloudReport) steps(server string) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("On the server, once:\n")
	line("  skein policy set policy.hujson")
	for _, u := range r.Users {
		line("  skein namespaces create %s", word(strings.ToLower(u)))
	}
	var made []string
	for _, d := range r.Devices {
		if tags := strings.Join(d.Tags, ","); tags != "" && !slices.Contains(made, tags) {
			made = append(made, tags)
			line("  skein preauthkeys create --reusable --tags %s", word(tags))
		}
	}
	line("\nOn each device. It asks for a login, or takes a key from \"skein preauthkeys create\":\n")
	for _, d := range r.Devices {
		owner := d.User
		if len(d.Tags) > 0 {
			owner = strings.Join(d.Tags, ", ")
		}
		line("  # %s of %s, %s", printable(d.Name), printable(owner), printable(strings.Join(d.Addresses, ", ")))
		args := ""
		if len(d.Tags) > 0 {
			args += " --advertise-tags=" + word(strings.Join(d.Tags, ","))
		}
		if len(d.Routes) > 0 {
			args += " --advertise-routes=" + word(strings.Join(d.Routes, ","))
		}
		line("  tailscale up --login-server=%s --force-reauth --hostname=%s%s", word(server), word(d.Name), args)
		for _, p := range d.Routes {
			line("  skein routes enable -i %s -r %s        # on the server, afterwards", word(d.Name), word(p))
		}
		line("")
	}
	return b.String()
}

func (r *cloudReport) text() string {
	var b strings.Builder
	line := func(format string, args ...any) { b.WriteString(printable(fmt.Sprintf(format, args...)) + "\n") }
	line("policy       %d bytes", r.Policy.Bytes)
	line("DNS          MagicDNS %s, %s, %s, %s", yesNo(r.DNS.MagicDNS), count(len(r.DNS.Nameservers), "nameserver"), count(len(r.DNS.Search), "search domain"), count(len(r.DNS.Split), "split domain"))
	if s := r.Settings; s != nil {
		line("settings     approval of devices %s, of users %s, keys live %s", onOff(s.DeviceApproval), onOff(s.UserApproval), count(s.KeyDurationDays, "day"))
	}
	line("devices      %d", len(r.Devices))
	line("users        %s", strings.Join(r.Users, ", "))
	line("tags         %s", strings.Join(r.Tags, ", "))
	for _, part := range []struct {
		title string
		lines []string
	}{{"The policy has faults, which have to be mended first:", r.Policy.Faults}, {"The policy is read so that", r.Policy.Warnings}, {"Left out:", r.Dropped}} {
		if len(part.lines) > 0 {
			line("")
			line("%s", part.title)
		}
		for _, l := range part.lines {
			line("  %s", l)
		}
	}
	if len(r.Applied) > 0 {
		line("")
		line("%s", map[bool]string{false: "At the server:", true: "At the server there would be:"}[r.DryRun])
	}
	for _, s := range r.Applied {
		line("  %-12s%s", s.What, s.Is)
	}
	if len(r.Files) > 0 {
		line("")
		line("Written to %s: %s", r.Folder, strings.Join(r.Files, ", "))
	}
	return b.String()
}
