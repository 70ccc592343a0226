package config

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Validate returns Faults for everything that is wrong with the settings, or nil. Load has called it. It looks at nothing but the
// settings themselves; see CheckFiles.
func (c *Config) Validate() error { return c.check().err() }

// checker collects faults with the place a value came from.
type checker struct {
	c      *Config
	faults Faults
}

func (k *checker) fault(key, format string, args ...any) {
	o := k.c.origin[key]
	k.faults = append(k.faults, Fault{Key: key, Place: o.place, Line: o.line, Text: fmt.Sprintf(format, args...)})
}

func (c *Config) check() Faults {
	k := &checker{c: c}
	k.listeners()
	k.serverURL()
	k.prefixes()
	k.derp()
	k.dns()
	k.oidc()
	k.backup()
	k.rest()
	return k.faults
}

func (k *checker) backup() {
	b := k.c.Backup
	if b.Every.Std() < time.Minute {
		k.fault("backup.every", "%v: want one minute at the least, such as 1d", b.Every)
	}
	if b.Keep < 0 {
		k.fault("backup.keep", "%d: want how many backups to keep, or 0 for all", b.Keep)
	}
	if b.PassphrasePath != "" && b.Dir == "" {
		k.fault("backup.passphrase_path", "is set, but backup.dir is not: no backups are made")
	}
}

func (k *checker) listeners() {
	c := k.c
	k.hostPort("listen_addr", c.ListenAddr, false)
	k.hostPort("metrics_listen_addr", c.MetricsListenAddr, true)
	k.hostPort("tls_fallback_listen_addr", c.TLSFallbackListenAddr, true)
	if c.ListenAddr == c.MetricsListenAddr && !strings.HasSuffix(c.ListenAddr, ":0") {
		k.fault("metrics_listen_addr", "%q is listen_addr as well: metrics need a port of their own, such as 127.0.0.1:9090", c.MetricsListenAddr)
	}
	// unix(7): sun_path holds 108 bytes, the last one zero.
	if n := len(c.UnixSocket); n > 107 {
		k.fault("unix_socket", "the path has %d bytes, more than the 107 a socket may have: want a shorter one", n)
	}
	if c.UnixSocketPermission > 0o777 {
		k.fault("unix_socket_permission", "%v: want a file mode in octal, such as 0660", c.UnixSocketPermission)
	}
	if (c.TLSCertPath == "") != (c.TLSKeyPath == "") {
		given, missing := "tls_cert_path", "tls_key_path"
		if c.TLSCertPath == "" {
			given, missing = missing, given
		}
		k.fault(given, "is set, but %s is not: want both or neither", missing)
	}
}

// hostPort checks an address to listen on.
func (k *checker) hostPort(key, s string, mayBeEmpty bool) {
	if s == "" {
		if !mayBeEmpty {
			k.fault(key, "is empty: want host:port, such as :8080")
		}
		return
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		k.fault(key, "%q: want host:port, such as :8080, 127.0.0.1:8080 or [::1]:8080", s)
		return
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		k.fault(key, "%q: port %q is not a number from 0 (any free one) to 65535", s, port)
	}
	if _, err := netip.ParseAddr(host); host != "" && err != nil && !isDomain(strings.ToLower(host)) {
		k.fault(key, "%q: %q is not an address or host name", s, host)
	}
}

func (k *checker) serverURL() {
	s := k.c.ServerURL
	if s == "" {
		return
	}
	const want = "want http:// or https://, a host and perhaps a port, such as https://skein.example.com"
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.Opaque != "" {
		k.fault("server_url", "%q: %s", s, want)
		return
	}
	if u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.Trim(u.Path, "/") != "" {
		k.fault("server_url", "%q has more than scheme, host and port: %s", s, want)
	}
	if p := u.Port(); p != "" {
		if n, err := strconv.ParseUint(p, 10, 16); err != nil || n == 0 {
			k.fault("server_url", "%q: port %s is not between 1 and 65535", s, p)
		}
	}
	host := strings.TrimSuffix(strings.ToLower(u.Hostname()), ".")
	if a, err := netip.ParseAddr(host); err == nil {
		if a.IsUnspecified() || a.Zone() != "" || a.IsMulticast() {
			k.fault("server_url", "%q: clients cannot reach %s; want the address or name they use", s, host)
		}
		return
	}
	if !isDomain(host) {
		k.fault("server_url", "%q: %q is not a host name; %s", s, host, want)
		return
	}
	// Clients would ask MagicDNS for the server's name and not find it.
	if base := k.c.DNS.BaseDomain; k.c.DNS.MagicDNS && (host == base || strings.HasSuffix(host, "."+base)) {
		k.fault("dns.base_domain", "the server's own name %s lies inside %q, where clients look for nodes only: want another domain", host, base)
	}
}

func (k *checker) prefixes() {
	p := k.c.Prefixes
	if !p.V4.IsValid() && !p.V6.IsValid() {
		k.fault("prefixes.v4", "prefixes.v4 and prefixes.v6 are both empty: want at least one, such as 100.64.0.0/10")
	}
	if p.V4.IsValid() && (!p.V4.Addr().Is4() || p.V4.Bits() > 29) {
		k.fault("prefixes.v4", "%s: want an IPv4 network of at least 8 addresses, such as 100.64.0.0/10", p.V4)
	}
	if p.V6.IsValid() && (!p.V6.Addr().Is6() || p.V6.Addr().Is4In6() || p.V6.Bits() > 125) {
		k.fault("prefixes.v6", "%s: want an IPv6 network of at least 8 addresses, such as fd7a:115c:a1e0::/48", p.V6)
	}
	k.oneOf("prefixes.allocation", p.Allocation, "sequential", "random")
}

func (k *checker) oneOf(key, value string, allowed ...string) {
	if slices.Contains(allowed, value) {
		return
	}
	text := fmt.Sprintf("%q: want %s", value, strings.Join(allowed, " or "))
	if n := nearest(value, allowed); n != "" {
		text += fmt.Sprintf("; did you mean %s?", n)
	}
	k.fault(key, "%s", text)
}

func (k *checker) derp() {
	d, s := k.c.DERP, k.c.DERP.Server
	if s.RegionID < 1 || s.RegionID > 65535 {
		k.fault("derp.server.region_id", "%d: want a number from 1 to 65535, 900 to 999 by convention", s.RegionID)
	}
	if s.RegionCode == "" || len(s.RegionCode) > 63 {
		k.fault("derp.server.region_code", "%q: want a short code, such as home", s.RegionCode)
	}
	k.hostPort("derp.server.stun_listen_addr", s.STUNListenAddr, true)
	literal := func(key, v, family string, is func(netip.Addr) bool) {
		if v == "" || v == "none" {
			return
		}
		if a, err := netip.ParseAddr(v); err != nil || !is(a) || a.Zone() != "" || a.IsUnspecified() {
			k.fault(key, "%q: want an %s address that clients reach, or none, or nothing", v, family)
		}
	}
	literal("derp.server.ipv4", s.IPv4, "IPv4", netip.Addr.Is4)
	literal("derp.server.ipv6", s.IPv6, "IPv6", netip.Addr.Is6)
	if s.IPv4 == "none" && s.IPv6 == "none" {
		k.fault("derp.server.ipv4", "derp.server.ipv4 and derp.server.ipv6 are both none: no client could reach the relay")
	}
	switch noMaps := len(d.URLs) == 0 && len(d.Paths) == 0; {
	case noMaps && !s.Enabled:
		k.fault("derp.server.enabled", "there is no relay at all, and without one clients never get beyond \"starting\": want true, or relays in derp.urls or derp.paths")
	case noMaps && !s.AutomaticallyAddEmbeddedDERPRegion:
		k.fault("derp.server.automatically_add_embedded_derp_region", "false leaves the DERP map empty: want true, or the relay described in derp.paths")
	}
	for _, u := range d.URLs {
		if p, err := url.Parse(u); err != nil || p.Scheme != "http" && p.Scheme != "https" || p.Host == "" {
			k.fault("derp.urls", "%q: want http:// or https:// addresses of DERP maps in JSON", u)
		}
	}
	for _, p := range d.Paths {
		if p == "" {
			k.fault("derp.paths", "an entry is empty: want file names")
		}
	}
	if d.UpdateFrequency.Std() < time.Minute {
		k.fault("derp.update_frequency", "%v: want at least 1m; derp.auto_update_enabled: false switches updates off", d.UpdateFrequency)
	}
}

func (k *checker) dns() {
	d := k.c.DNS
	// NAME.BASE_DOMAIN must fit: 63 for the name and a dot, of 253 in all.
	if !isDomain(d.BaseDomain) || len(d.BaseDomain) > 189 {
		k.fault("dns.base_domain", "%q: want a domain in lower case without a dot at the end, such as skein.internal", d.BaseDomain)
	}
	if d.OverrideLocalDNS && len(d.Nameservers.Global) == 0 {
		k.fault("dns.override_local_dns", "true would leave clients without any resolver: want addresses in dns.nameservers.global, or false")
	}
	resolvers := func(key string, list []string) {
		for _, r := range list {
			if !isResolver(r) {
				k.fault(key, "%q: want an address such as 1.1.1.1 or [2606:4700::1111]:53, or an https:// address of a resolver", r)
			}
		}
	}
	resolvers("dns.nameservers.global", d.Nameservers.Global)
	for _, domain := range slices.Sorted(maps.Keys(d.Nameservers.Split)) {
		if !isDomain(strings.TrimSuffix(strings.ToLower(domain), ".")) {
			k.fault("dns.nameservers.split", "%q is not a domain: want one such as corp.example.com", domain)
		}
		if len(d.Nameservers.Split[domain]) == 0 {
			k.fault("dns.nameservers.split", "%s has no resolvers: want at least one address", domain)
		}
		resolvers("dns.nameservers.split", d.Nameservers.Split[domain])
	}
	for _, s := range d.SearchDomains {
		if !isDomain(strings.ToLower(s)) {
			k.fault("dns.search_domains", "%q is not a domain: want one such as corp.example.com", s)
		}
	}
	for _, r := range d.ExtraRecords {
		k.record(r)
	}
}

func (k *checker) record(r Record) {
	const key = "dns.extra_records"
	if !isDomain(strings.TrimSuffix(strings.ToLower(r.Name), ".")) {
		k.fault(key, "name %q: want a full name, such as nas.skein.internal", r.Name)
		return
	}
	a, err := netip.ParseAddr(r.Value)
	switch {
	case r.Type != "" && r.Type != "A" && r.Type != "AAAA":
		k.fault(key, "%s: type %q: clients take A and AAAA only", r.Name, r.Type)
	case err != nil || a.Zone() != "":
		k.fault(key, "%s: value %q: want an address", r.Name, r.Value)
	case r.Type == "A" && !a.Is4() || r.Type == "AAAA" && !a.Is6():
		k.fault(key, "%s: %s does not fit type %s", r.Name, r.Value, r.Type)
	}
}

func (k *checker) database() {
	d, p := k.c.Database, k.c.Database.Postgres
	if d.Type != "sqlite3" && d.Type != "postgresql" { // what some are used to write
		k.oneOf("database.type", d.Type, "sqlite", "postgres")
	}
	if p.Port < 1 || p.Port > 65535 {
		k.fault("database.postgres.port", "%d: want a number from 1 to 65535, such as 5432", p.Port)
	}
	k.oneOf("database.postgres.ssl", p.SSL, sslModes...)
	if p.MaxOpenConns != 0 && p.MaxOpenConns < 3 {
		k.fault("database.postgres.max_open_conns", "%d: want at least 3, or 0 for the default", p.MaxOpenConns)
	}
	if d.IsPostgres() && p.URL == "" && (p.Host == "" || p.Name == "" || p.User == "") {
		k.fault("database.postgres.host", "want database.postgres.host, .name and .user, or all in database.postgres.url")
	}
	if a := k.c.Cluster.StepAsideAfter.Std(); a < 5*time.Second || a > time.Hour {
		k.fault("cluster.step_aside_after", "%v: want 5s to 1h", k.c.Cluster.StepAsideAfter)
	}
}

func (k *checker) rest() {
	c := k.c
	k.database()
	if c.Policy.Mode != "" {
		k.oneOf("policy.mode", c.Policy.Mode, "file", "database")
	}
	if c.Policy.Mode == "file" && c.Policy.Path == "" {
		k.fault("policy.path", "is empty, and policy.mode is file: want the path of the policy, or policy.mode: database")
	}
	if c.Policy.Mode == "database" && c.Policy.Path != "" {
		k.fault("policy.path", "would not be read, because policy.mode is database: want policy.mode: file, or no path")
	}
	if d := c.Node.Ephemeral.InactivityTimeout; d.Std() < time.Second {
		k.fault("node.ephemeral.inactivity_timeout", "%v: want at least 1s, such as 30m", d)
	}
	if d := c.Node.Expiry; d != 0 && d.Std() < time.Minute {
		k.fault("node.expiry", "%v: want at least 1m, or 0 for never", d)
	}
	if d := c.Routes.FailoverAfter.Std(); d < 500*time.Millisecond || d > time.Hour {
		k.fault("routes.failover_after", "%v: want 500ms to 1h", c.Routes.FailoverAfter)
	}
	if d := c.Routes.RestartGrace.Std(); d > time.Hour {
		k.fault("routes.restart_grace", "%v: want 0 to 1h", c.Routes.RestartGrace)
	}
	if c.Log.Level == "trace" {
		k.fault("log.level", "trace: the most that can be had is debug")
	} else {
		k.oneOf("log.level", c.Log.Level, "debug", "info", "warn", "error")
	}
	k.oneOf("log.format", c.Log.Format, "auto", "text", "json")
	for _, l := range []struct {
		key string
		n   int
	}{
		{"limits.pending_registrations", c.Limits.PendingRegistrations},
		{"limits.registrations_per_minute", c.Limits.RegistrationsPerMinute},
		{"limits.connections_per_address", c.Limits.ConnectionsPerAddress},
	} {
		if l.n < 0 {
			k.fault(l.key, "%d: want a number, or 0 for no limit", l.n)
		}
	}
}

// isResolver: tailcfg's dnstype.Resolver.Addr.
func isResolver(s string) bool {
	if a, err := netip.ParseAddr(s); err == nil {
		return a.Zone() == ""
	}
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return ap.Port() != 0 && ap.Addr().Zone() == ""
	}
	u, err := url.Parse(s)
	return err == nil && u.Scheme == "https" && u.Host != ""
}

// isDomain reports whether s is a host name in lower case: labels of 1 to 63 letters, digits and inner hyphens, 253 in all. An
// underscore may start a label, as in _acme-challenge.
func isDomain(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		label = strings.TrimPrefix(label, "_")
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, r := range label {
			if !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-') {
				return false
			}
		}
	}
	return true
}

// tailnetRanges are the addresses that clients take for those of a tailnet (net/tsaddr:IsTailscaleIP).
var tailnetRanges = []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("fd7a:115c:a1e0::/48")}

// Warnings returns what is allowed but probably a mistake, for serve and "config check" to print.
func (c *Config) Warnings() Faults {
	k := &checker{c: c}
	for i, p := range []netip.Prefix{c.Prefixes.V4, c.Prefixes.V6} {
		r := tailnetRanges[i]
		if p.IsValid() && !(r.Contains(p.Addr()) && p.Bits() >= r.Bits()) {
			k.fault([]string{"prefixes.v4", "prefixes.v6"}[i], "%s is not inside %s: clients take only addresses in there for nodes, and some things will not work", p, r)
		}
	}
	for _, p := range c.TrustedProxies {
		if p.Bits() == 0 {
			k.fault("trusted_proxies", "%s believes everybody who claims to forward for somebody else", p)
		}
	}
	if c.DERP.Server.Enabled && !c.DERP.Server.VerifyClients {
		k.fault("derp.server.verify_clients", "false lets strangers use the relay")
	}
	if c.Logtail.Enabled {
		k.fault("logtail.enabled", "true makes clients send their logs to Tailscale Inc.")
	}
	return k.faults
}

// CheckFiles returns a fault for each file that is named in the settings and cannot be read by this process. Files that Skein
// makes itself are not looked for.
func (c *Config) CheckFiles() Faults {
	k := &checker{c: c}
	readable := func(key, path string) {
		if path == "" {
			return
		}
		f, err := os.Open(path)
		if err != nil {
			k.fault(key, "cannot be read: %v", err)
			return
		}
		defer f.Close()
		if fi, err := f.Stat(); err == nil && fi.IsDir() {
			k.fault(key, "%s is a folder: want a file", path)
		}
	}
	readable("tls_cert_path", c.TLSCertPath)
	readable("tls_key_path", c.TLSKeyPath)
	readable("policy.path", c.Policy.Path)
	readable("database.postgres.pass_path", c.Database.Postgres.PassPath)
	for _, p := range c.DERP.Paths {
		readable("derp.paths", p)
	}
	for i, p := range c.OIDC.All() {
		key := "oidc.providers"
		if i == 0 && c.OIDC.Issuer != "" {
			key = "oidc.client_secret_path"
		}
		readable(key, p.secretPath())
	}
	return k.faults
}

// URL returns ServerURL, nil when it is empty.
func (c *Config) URL() *url.URL {
	if c.ServerURL == "" {
		return nil
	}
	u, err := url.Parse(c.ServerURL)
	if err != nil {
		return nil // not after Validate
	}
	u.Path = ""
	return u
}
