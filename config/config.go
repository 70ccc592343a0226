// Package config is the one description of Skein's settings: names, meaning, defaults, where a value comes from, and what is wrong
// with it.
//
// Words. A key is the dotted name of a setting, such as dns.base_domain, as it stands in config.yaml. Its value is the first of:
//
//	a flag                 --listen :8080            (cmd hands over key and text)
//	the environment        SKEIN_LISTEN_ADDR=:8080   (SKEIN_, the key in upper case, "." as "_"; lists separated by commas)
//	the file               listen_addr: ":8080"      (-c FILE, else the first of SearchPaths that exists, else none)
//	the default            Default()
//
// Invariants. Load either returns a Config that passes Validate, or Faults that name everything wrong at once: key, place, what is
// wrong, what would be right. No key is accepted and ignored. Config.yaml at the top of the repository mentions every key, with
// its default; a test keeps it so. Names are headscale's where the meaning is the same; keys of headscale that Skein does not have
// get an answer of their own.
//
// Left to others: everything that a setting does. Only cmd reads a Config; other packages take small Options.
package config

import (
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"
)

// Config holds all settings. The key tag is the name in config.yaml. A path tag marks file names: a relative one that comes from
// the file is relative to the file's folder, from elsewhere to the working directory. A live tag marks what a reload (SIGHUP)
// applies; anything else needs a restart.
type Config struct {
	// ServerURL is the address clients use, http:// or https://, without a path. Empty: serve derives http://ADDRESS:PORT from an
	// address of this machine and listen_addr.
	ServerURL string `key:"server_url"`

	// ListenAddr is host:port of the one TCP port for clients, plain HTTP and TLS alike. An empty host means all addresses.
	ListenAddr string `key:"listen_addr"`

	// MetricsListenAddr is host:port for metrics and profiles, which show what strangers must not see. Empty: off.
	MetricsListenAddr string `key:"metrics_listen_addr"`

	// UnixSocket is where commands on this machine reach the server. Empty: skein.sock in DataDir.
	UnixSocket string `key:"unix_socket" path:"true"`

	// UnixSocketPermission is the mode of the socket: who may open it may administer.
	UnixSocketPermission FileMode `key:"unix_socket_permission"`

	// DataDir holds keys, database, certificate and socket. Empty: see DefaultDataDir.
	DataDir string `key:"data_dir" path:"true"`

	Noise Noise `key:"noise"`

	Prefixes Prefixes `key:"prefixes"`

	DERP DERP `key:"derp"`

	Database Database `key:"database"`

	Cluster Cluster `key:"cluster"`

	Backup Backup `key:"backup"`

	// TLSCertPath and TLSKeyPath are a certificate chain and its key, PEM. Both or neither. Without them a self-signed certificate
	// serves the relay, and the server URL is plain http or a reverse proxy's.
	TLSCertPath string `key:"tls_cert_path" path:"true" live:"true"`
	TLSKeyPath  string `key:"tls_key_path" path:"true" live:"true"`

	// TLSFallbackListenAddr is a second port with the same contents as ListenAddr. Clients of a plain http server on a public
	// address insist on port 443 when they reconnect. Empty: off. Not being able to listen there is a warning, not an error.
	TLSFallbackListenAddr string `key:"tls_fallback_listen_addr"`

	Policy Policy `key:"policy"`

	DNS DNS `key:"dns"`

	// TrustedProxies are the addresses whose X-Forwarded-For and the like are believed. Empty: nobody's.
	TrustedProxies []netip.Prefix `key:"trusted_proxies"`

	Web Web `key:"web"`

	OIDC OIDC `key:"oidc"`

	Node Node `key:"node"`

	Routes Routes `key:"routes"`

	Logtail Logtail `key:"logtail"`

	// RandomizeClientPort tells clients to use a random UDP port for WireGuard instead of 41641, for firewalls that mix up two
	// clients behind one address.
	RandomizeClientPort bool `key:"randomize_client_port"`

	Taildrop Taildrop `key:"taildrop"`

	Log Log `key:"log"`

	Audit Audit `key:"audit"`

	Webhooks Webhooks `key:"webhooks"`

	Limits Limits `key:"limits"`

	origin map[string]origin // by key; a key that is missing has its default
	file   string
}

// File is the configuration file that was read, empty if there was none.
func (c *Config) File() string { return c.file }

// Noise is about the connection clients make to the server.
type Noise struct {
	// PrivateKeyPath is the server's identity. A running client never accepts another one: keep a copy. Empty:
	// noise_private.key in DataDir.
	PrivateKeyPath string `key:"private_key_path" path:"true"`
}

// Prefixes are where node addresses come from. One of V4 and V6 may be empty.
type Prefixes struct {
	V4 netip.Prefix `key:"v4"`
	V6 netip.Prefix `key:"v6"`

	// Allocation is "sequential" (the lowest free address) or "random".
	Allocation string `key:"allocation"`
}

// DERP is about relays.
type DERP struct {
	Server DERPServer `key:"server"`

	// URLs serve DERP maps in JSON; Paths are files with DERP maps in YAML or JSON. Files win over URLs, the embedded relay over both.
	URLs  []string `key:"urls" live:"true"`
	Paths []string `key:"paths" path:"true" live:"true"`

	// AutoUpdateEnabled reads URLs and Paths again every UpdateFrequency.
	AutoUpdateEnabled bool     `key:"auto_update_enabled" live:"true"`
	UpdateFrequency   Duration `key:"update_frequency" live:"true"`
}

// DERPServer is the relay in this process.
type DERPServer struct {
	// Enabled runs the relay and STUN.
	Enabled bool `key:"enabled"`

	RegionID   int    `key:"region_id" live:"true"` // 1 to 65535
	RegionCode string `key:"region_code" live:"true"`
	RegionName string `key:"region_name" live:"true"`

	// VerifyClients lets only registered nodes use the relay.
	VerifyClients bool `key:"verify_clients"`

	// STUNListenAddr is host:port, UDP. Empty: no STUN.
	STUNListenAddr string `key:"stun_listen_addr"`

	// PrivateKeyPath is the relay's identity. Empty: derp_server_private.key in DataDir.
	PrivateKeyPath string `key:"private_key_path" path:"true"`

	// IPv4 and IPv6 are this relay's public addresses, for clients whose DNS does not work. Empty: found by the server URL's host.
	// "none": the family is not offered.
	IPv4 string `key:"ipv4" live:"true"`
	IPv6 string `key:"ipv6" live:"true"`

	// AutomaticallyAddEmbeddedDERPRegion puts the relay into the DERP map. Without it, describe it in one of DERP.Paths.
	AutomaticallyAddEmbeddedDERPRegion bool `key:"automatically_add_embedded_derp_region" live:"true"`
}

// Backup is about backups that the server makes by itself.
type Backup struct {
	// Dir is the folder that they go to. Empty: none are made.
	Dir   string   `key:"dir" path:"true"`
	Every Duration `key:"every"`
	Keep  int      `key:"keep"` // how many; older ones are removed. Zero: all

	// PassphrasePath is a file whose first line encrypts them, in the format of age. Empty: they are not encrypted.
	PassphrasePath string `key:"passphrase_path" path:"true"`
}

// Web is the pages that people open in a browser.
type Web struct {
	// Enabled lets people sign in there. Off, the addresses that clients print lead to pages that show the command for the server's
	// terminal, and nothing else is there.
	Enabled bool `key:"enabled"`
}

// Database is where everything is kept.
type Database struct {
	Type     string   `key:"type"` // "sqlite" or "postgres"
	SQLite   SQLite   `key:"sqlite"`
	Postgres Postgres `key:"postgres"`
}

// SQLite is the database in a file.
type SQLite struct {
	Path string `key:"path" path:"true"` // empty: db.sqlite in DataDir
}

// Postgres is a database on a PostgreSQL server. Several servers may share it.
type Postgres struct {
	// URL says everything at once, as libpq writes it: postgres://user:password@host:5432/name?sslmode=verify-full. Several hosts
	// with target_session_attrs=read-write are tried in turn. Empty: the settings below.
	URL string `key:"url"`

	Host string `key:"host"` // a name, an address or the folder of a Unix socket
	Port int    `key:"port"`
	Name string `key:"name"`
	User string `key:"user"`
	Pass string `key:"pass"`

	// PassPath is a file with the password, which wins over Pass.
	PassPath string `key:"pass_path" path:"true"`

	// SSL is a mode of libpq (disable, allow, prefer, require, verify-ca, verify-full) or, as in headscale, true (require) or false
	// (disable).
	SSL string `key:"ssl"`

	// MaxOpenConns bounds the connections of this server. Zero: 10.
	MaxOpenConns int `key:"max_open_conns"`
}

// IsPostgres reports whether the database is on a PostgreSQL server.
func (d *Database) IsPostgres() bool { return d.Type == "postgres" || d.Type == "postgresql" }

// DSN is the address of the database for its driver, password included. It reads PassPath.
func (p *Postgres) DSN() (string, error) {
	if p.URL != "" {
		return p.URL, nil
	}
	pass := p.Pass
	if p.PassPath != "" {
		b, err := os.ReadFile(p.PassPath)
		if err != nil {
			return "", fmt.Errorf("the password cannot be read (database.postgres.pass_path): %w", err)
		}
		pass = strings.TrimRight(string(b), "\r\n")
	}
	mode := p.SSL
	switch mode {
	case "true":
		mode = "require"
	case "false":
		mode = "disable"
	}
	var b strings.Builder
	for _, kv := range [][2]string{{"host", p.Host}, {"port", strconv.Itoa(p.Port)}, {"dbname", p.Name}, {"user", p.User}, {"password", pass}, {"sslmode", mode}} {
		if kv[1] != "" {
			fmt.Fprintf(&b, "%s='%s' ", kv[0], strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(kv[1]))
		}
	}
	return strings.TrimSpace(b.String()), nil
}

// sslModes are those of libpq and headscale's two.
var sslModes = []string{"disable", "allow", "prefer", "require", "verify-ca", "verify-full", "true", "false"}

// Cluster is about several servers on one PostgreSQL database.
type Cluster struct {
	// Name tells this server from the others. Empty: the name of the machine.
	Name string `key:"name"`

	// TellClients gives running clients the addresses of all servers (derp.server.ipv4 and ipv6 of each, or else the address it
	// has), so that they find another one by themselves. Not for servers that clients reach through a proxy only.
	TellClients bool `key:"tell_clients"`

	// StepAsideAfter is how long a server that does not reach its database goes on serving what it knows. Then it ends its streams,
	// so that clients go to another server.
	StepAsideAfter Duration `key:"step_aside_after"`
}

// Policy says who may reach whom. Without one everybody may reach everybody.
type Policy struct {
	// Mode is "file" (Path, read at start and on reload) or "database" (set by command or API). Empty: file if Path is set.
	Mode string `key:"mode"`

	// Path is the policy file, HuJSON.
	Path string `key:"path" path:"true"`
}

// DNS is what clients are told about names.
type DNS struct {
	// MagicDNS gives each node the name NAME.BaseDomain.
	MagicDNS   bool   `key:"magic_dns" live:"true"`
	BaseDomain string `key:"base_domain" live:"true"`

	// OverrideLocalDNS sends all look-ups of clients to Nameservers.Global instead of the resolvers they have.
	OverrideLocalDNS bool        `key:"override_local_dns" live:"true"`
	Nameservers      Nameservers `key:"nameservers"`

	SearchDomains []string `key:"search_domains" live:"true"`
	ExtraRecords  []Record `key:"extra_records" live:"true"`

	// ExtraRecordsPath is a file with more records, JSON, which is followed while the server runs.
	ExtraRecordsPath string `key:"extra_records_path" path:"true"`
}

// Nameservers are addresses ("1.1.1.1", "[2606:4700::1111]:53") or DNS-over-HTTPS URLs.
type Nameservers struct {
	Global []string `key:"global" live:"true"`

	// Split maps a domain to the resolvers that know it.
	Split map[string][]string `key:"split" live:"true"`
}

// Record is a DNS record of our own: Name is a full name, Value an address, Type A or AAAA ("" for what Value is).
type Record struct {
	Name, Type, Value string
}

// FromFile reports whether the policy is the file at Path.
func (p *Policy) FromFile() bool { return p.Mode == "file" || p.Mode == "" && p.Path != "" }

// Node is about the life of nodes.
type Node struct {
	// Expiry is how long a login lasts before the node has to log in again. Zero: for ever, as people at home expect.
	Expiry Duration `key:"expiry"`

	Ephemeral Ephemeral `key:"ephemeral"`
}

// Ephemeral is about nodes that joined to be forgotten.
type Ephemeral struct {
	// InactivityTimeout is how long one may be away before it is deleted.
	InactivityTimeout Duration `key:"inactivity_timeout"`
}

// Routes is about several routers of one network.
type Routes struct {
	// FailoverAfter is how long the primary router may be silent before another takes over.
	FailoverAfter Duration `key:"failover_after"`

	// RestartGrace is how long after a start of the server every router counts as it was, so that they can come back.
	RestartGrace Duration `key:"restart_grace"`
}

// Logtail is about clients' logs.
type Logtail struct {
	Enabled bool `key:"enabled"` // clients send their logs to Tailscale Inc.
}

// Taildrop is about sending files between one's own nodes.
type Taildrop struct {
	Enabled bool `key:"enabled"`
}

// Audit is about the audit log, which says who changed what. It is kept in the database.
type Audit struct {
	// Retention is how long entries are kept. Zero: for ever.
	Retention Duration `key:"retention"`

	// File gets every entry as well, one in JSON a line. Empty: none.
	File string `key:"file" path:"true"`
}

// Webhooks are about telling other programs what happens.
type Webhooks struct {
	// AllowLoopback lets webhooks go to this very machine, where services may listen that trust it.
	AllowLoopback bool `key:"allow_loopback"`
}

// Log is about the server's own log, on stderr.
type Log struct {
	Level  string `key:"level" live:"true"` // debug, info, warn, error
	Format string `key:"format"`            // auto, text, json
}

// Limits protect the server from strangers. Zero: no limit.
type Limits struct {
	PendingRegistrations   int `key:"pending_registrations"`    // logins waiting for approval, in all
	RegistrationsPerMinute int `key:"registrations_per_minute"` // from one address; more are told to come back later
	ConnectionsPerAddress  int `key:"connections_per_address"`  // open at a time; loopback and trusted proxies are free
}

// Default returns the settings of a server without any configuration. The paths that follow from DataDir are empty; Load fills
// them in, and DataDir as well.
func Default() *Config {
	return &Config{
		ListenAddr:           ":8080",
		MetricsListenAddr:    "127.0.0.1:9090",
		UnixSocketPermission: 0o660,
		Prefixes: Prefixes{
			V4:         netip.MustParsePrefix("100.64.0.0/10"),
			V6:         netip.MustParsePrefix("fd7a:115c:a1e0::/48"),
			Allocation: "sequential",
		},
		DERP: DERP{
			Server: DERPServer{
				Enabled:                            true,
				RegionID:                           999,
				RegionCode:                         "skein",
				RegionName:                         "Skein",
				VerifyClients:                      true,
				STUNListenAddr:                     ":3478",
				AutomaticallyAddEmbeddedDERPRegion: true,
			},
			AutoUpdateEnabled: true,
			UpdateFrequency:   Duration(24 * time.Hour),
		},
		Database:              Database{Type: "sqlite", Postgres: Postgres{Host: "localhost", Port: 5432, Name: "skein", User: "skein", SSL: "prefer"}},
		Cluster:               Cluster{TellClients: true, StepAsideAfter: Duration(30 * time.Second)},
		Backup:                Backup{Every: Duration(24 * time.Hour), Keep: 7},
		TLSFallbackListenAddr: ":443",
		DNS:                   DNS{MagicDNS: true, BaseDomain: "skein.internal"},
		Web:                   Web{Enabled: true},
		OIDC:                  OIDC{OIDCProvider: defaultOIDC()},
		Node:                  Node{Ephemeral: Ephemeral{InactivityTimeout: Duration(30 * time.Minute)}},
		Routes:                Routes{FailoverAfter: Duration(3 * time.Second), RestartGrace: Duration(30 * time.Second)},
		Taildrop:              Taildrop{Enabled: true},
		Log:                   Log{Level: "info", Format: "auto"},
		Audit:                 Audit{Retention: Duration(365 * 24 * time.Hour)},
		Limits:                Limits{PendingRegistrations: 1000, RegistrationsPerMinute: 600, ConnectionsPerAddress: 1000},
	}
}
