package takeover

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"
)

// Settings is what headscale's configuration says.
type Settings struct {
	Database   string // SQLite file or PostgreSQL connection string
	NoiseKey   string // file
	DERPKey    string // file; empty: none is named
	PolicyPath string // file; empty: there is none, or the policy is in the database
	ACMECert   string // file with the certificate that headscale has ordered, and its key; with "+rsa" at the end for old ones

	Ours  []Setting // what goes into our configuration, sorted by key
	Notes []string
}

// Setting is one of headscale's settings under our name. The value has the types of YAML.
type Setting struct {
	Key   string
	Value any
	From  string // headscale's key; empty: it is headscale's default, which is not ours
}

// maxConfig bounds the file that is read, in bytes.
const maxConfig = 1 << 20

// renamed are keys that mean the same under another name.
var renamed = map[string]string{
	"ephemeral_node_inactivity_timeout": "node.ephemeral.inactivity_timeout",
	"log_level":                         "log.level",
	"dns_config.magic_dns":              "dns.magic_dns",
	"dns_config.base_domain":            "dns.base_domain",
	"dns_config.override_local_dns":     "dns.override_local_dns",
	"dns_config.nameservers":            "dns.nameservers.global",
	"dns_config.restricted_nameservers": "dns.nameservers.split",
	"dns_config.domains":                "dns.search_domains",
	"dns_config.extra_records":          "dns.extra_records",
}

// files are keys that name files; a relative name counts from the folder of the configuration.
var files = []string{
	"tls_cert_path", "tls_key_path", "derp.paths", "oidc.client_secret_path", "dns.extra_records_path", "tls_letsencrypt_cache_dir",
}

// used are keys that tell where to read and have no place in our configuration.
var used = []string{
	"noise.private_key_path", "private_key_path", "derp.server.private_key_path", "database.type", "database.sqlite.path", "database.postgres.*",
	"policy.path", "acl_policy_path", "unix_socket", "db_type", "db_path", "db_host", "db_port", "db_name", "db_user", "db_pass", "db_ssl",
}

// maps that are values, not sections.
var mapValues = []string{"dns.nameservers.split", "dns_config.restricted_nameservers", "oidc.extra_params", "derp.server.stun"}

// ReadConfig reads headscale's configuration file. env is the environment, as os.Environ: HEADSCALE_KEY wins over the file where the
// database's password is concerned, which is what people keep there.
func ReadConfig(path string, env []string) (*Settings, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("headscale's configuration %s: %w", path, unwrapPath(err))
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err != nil {
		return nil, fmt.Errorf("headscale's configuration %s: %w", path, unwrapPath(err))
	}
	if len(text) > maxConfig {
		return nil, fmt.Errorf("headscale's configuration %s has more than %d bytes", path, maxConfig)
	}
	dir, err := filepath.Abs(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	s, err := parseConfig(text, dir, env)
	if err != nil {
		return nil, fmt.Errorf("headscale's configuration %s: %w", path, err)
	}
	return s, nil
}

// flat is a configuration by dotted keys in lower case, as headscale reads them.
type flat struct {
	values map[string]any
	dir    string
}

func parseConfig(text []byte, dir string, env []string) (*Settings, error) {
	var tree map[string]any
	if err := yaml.Unmarshal(text, &tree); err != nil {
		return nil, fmt.Errorf("is not YAML: %w", err)
	}
	c := &flat{map[string]any{}, dir}
	c.flatten("", tree)
	s := &Settings{NoiseKey: c.file("noise.private_key_path"), DERPKey: c.file("derp.server.private_key_path")}
	if s.NoiseKey == "" {
		return nil, errors.New("names no noise.private_key_path, so it is of no headscale that ran: every version since 0.20 needs it")
	}
	if err := c.database(s, env); err != nil {
		return nil, err
	}
	if host := c.text("tls_letsencrypt_hostname"); host != "" && c.text("tls_cert_path") == "" {
		dir := c.file("tls_letsencrypt_cache_dir")
		if dir == "" {
			dir = "/var/www/.cache" // headscale's default
		}
		s.ACMECert = filepath.Join(dir, filepath.Base(strings.ToLower(host)))
	}
	mode := c.text("policy.mode")
	if path := c.file("policy.path"); path != "" && mode != "database" {
		s.PolicyPath = path
	} else if path := c.file("acl_policy_path"); path != "" && mode != "database" {
		s.PolicyPath = path
	}
	c.translate(s)
	c.defaults(s)
	slices.SortFunc(s.Ours, func(a, b Setting) int { return strings.Compare(a.Key, b.Key) })
	return s, nil
}

func (c *flat) flatten(prefix string, tree map[string]any) {
	for k, v := range tree {
		key := prefix + strings.ToLower(k)
		if m, ok := v.(map[string]any); ok && !slices.Contains(mapValues, key) {
			c.flatten(key+".", m)
			continue
		}
		c.values[key] = v
	}
}

// text is a value as text, "" if there is none.
func (c *flat) text(key string) string {
	v, ok := c.values[key]
	if !ok || v == nil {
		return ""
	}
	return fmt.Sprint(v)
}

func (c *flat) set(key string) bool { v, ok := c.values[key]; return ok && v != nil }

// file is a file's name, relative ones from the folder of the configuration.
func (c *flat) file(key string) string { return c.absolute(c.text(key)) }

func (c *flat) absolute(path string) string {
	if path == "" || filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(c.dir, path)
}

// database says where the database is.
func (c *flat) database(s *Settings, env []string) error {
	first := func(keys ...string) string {
		for _, k := range keys {
			if t := c.text(k); t != "" {
				return t
			}
		}
		return ""
	}
	switch typ := first("database.type", "db_type"); typ {
	case "", "sqlite", "sqlite3":
		if s.Database = c.absolute(first("database.sqlite.path", "db_path")); s.Database == "" {
			return errors.New("names no database.sqlite.path; give the database with --db")
		}
	case "postgres":
		u := url.URL{Scheme: "postgres", Host: first("database.postgres.host", "db_host"), Path: "/" + first("database.postgres.name", "db_name")}
		q := url.Values{}
		if strings.HasPrefix(u.Host, "/") { // a folder with a socket
			q.Set("host", u.Host)
			u.Host = ""
		}
		if port := first("database.postgres.port", "db_port"); port != "" && port != "0" {
			if u.Host == "" {
				q.Set("port", port)
			} else {
				u.Host = net.JoinHostPort(u.Host, port)
			}
		}
		pass := first("database.postgres.pass", "db_pass")
		for _, e := range env {
			if v, ok := strings.CutPrefix(e, "HEADSCALE_DATABASE_POSTGRES_PASS="); ok {
				pass = v
			}
		}
		u.User = url.UserPassword(first("database.postgres.user", "db_user"), pass)
		q.Set("sslmode", sslMode(first("database.postgres.ssl", "db_ssl")))
		u.RawQuery = q.Encode()
		s.Database = u.String()
	default:
		return fmt.Errorf("database.type: %q is neither sqlite nor postgres", typ)
	}
	return nil
}

// sslMode is headscale's switch or word in PostgreSQL's words.
func sslMode(s string) string {
	if on, err := strconv.ParseBool(s); err == nil && on {
		return "require"
	} else if err == nil || s == "" {
		return "disable"
	}
	return s
}

// translate puts everything that has a value under our names. Whether we have a key of that name the caller knows.
func (c *flat) translate(s *Settings) {
	for _, key := range slices.Sorted(maps.Keys(c.values)) {
		v := c.values[key]
		if v == nil || slices.ContainsFunc(used, func(u string) bool {
			section, all := strings.CutSuffix(u, "*")
			return u == key || all && strings.HasPrefix(key, section)
		}) {
			continue
		}
		ours := key
		if to, ok := renamed[key]; ok {
			ours = to
		}
		switch {
		case slices.Contains(files, key):
			v = c.names(v)
		case key == "unix_socket_permission":
			v = strings.Replace(fmt.Sprint(v), "0o", "0", 1)
			if n, ok := c.values[key].(int); ok { // YAML reads 0770 as a number
				v = fmt.Sprintf("%#o", n)
			}
		case key == "policy.mode":
			if c.text("policy.path") == "" && v == "file" {
				continue // headscale's way to say that there is no policy
			}
		case strings.HasPrefix(key, "ip_prefixes"):
			c.prefixes(s, v)
			continue
		}
		s.Ours = append(s.Ours, Setting{ours, v, key})
	}
}

// names makes names of files absolute.
func (c *flat) names(v any) any {
	switch v := v.(type) {
	case string:
		return c.absolute(v)
	case []any:
		out := make([]any, len(v))
		for i, e := range v {
			out[i] = c.absolute(fmt.Sprint(e))
		}
		return out
	}
	return v
}

// prefixes are those of old: a list.
func (c *flat) prefixes(s *Settings, v any) {
	list, _ := v.([]any)
	for _, p := range list {
		key := "prefixes.v4"
		if strings.Contains(fmt.Sprint(p), ":") {
			key = "prefixes.v6"
		}
		s.Ours = append(s.Ours, Setting{key, p, "ip_prefixes"})
	}
}

// defaults adds what headscale does without being told and we do not.
func (c *flat) defaults(s *Settings) {
	add := func(key string, v any) {
		if !slices.ContainsFunc(s.Ours, func(o Setting) bool { return o.Key == key }) {
			s.Ours = append(s.Ours, Setting{key, v, ""})
		}
	}
	add("derp.server.enabled", false)
	add("node.ephemeral.inactivity_timeout", "2m")
	if c.set("dns.nameservers.global") {
		add("dns.override_local_dns", true)
	}
	has := func(key string) bool {
		return slices.ContainsFunc(s.Ours, func(o Setting) bool { return o.Key == key })
	}
	if has("prefixes.v4") != has("prefixes.v6") { // nodes have addresses of one family
		add("prefixes.v4", "")
		add("prefixes.v6", "")
	}
	if v := c.text("unix_socket"); v != "" {
		s.Notes = append(s.Notes, "unix_socket is not taken over, so that the two servers cannot be taken for each other: Skein's socket is skein.sock in its data folder.")
	}
}

// YAML is settings as a configuration file, with the comment above it.
func YAML(settings []Setting, comment string) ([]byte, error) {
	root := &yaml.Node{Kind: yaml.MappingNode}
	for _, s := range settings {
		parent := root
		parts := strings.Split(s.Key, ".")
		for _, p := range parts[:len(parts)-1] {
			parent = section(parent, p)
		}
		v := new(yaml.Node)
		if err := v.Encode(s.Value); err != nil {
			return nil, fmt.Errorf("%s: %w", s.Key, err)
		}
		if s.From == "" {
			v.LineComment = "headscale's default"
		} else if s.From != s.Key {
			v.LineComment = s.From
		}
		parent.Content = append(parent.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: parts[len(parts)-1]}, v)
	}
	var out strings.Builder
	for line := range strings.SplitSeq(strings.TrimSpace(comment), "\n") {
		out.WriteString(strings.TrimRight("# "+line, " ") + "\n")
	}
	out.WriteString("\n")
	if len(root.Content) > 0 {
		text, err := yaml.Dump(root)
		if err != nil {
			return nil, err
		}
		out.Write(text)
	}
	return []byte(out.String()), nil
}

// section finds or adds the mapping of that name.
func section(parent *yaml.Node, name string) *yaml.Node {
	for i := 0; i+1 < len(parent.Content); i += 2 {
		if parent.Content[i].Value == name && parent.Content[i+1].Kind == yaml.MappingNode {
			return parent.Content[i+1]
		}
	}
	m := &yaml.Node{Kind: yaml.MappingNode}
	parent.Content = append(parent.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: name}, m)
	return m
}
