package config

import (
	"cmp"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"
)

// OIDC is sign-in with identity providers. The keys of the one provider that most have stand in the section itself, as
// headscale has them; more than one go into the list, or all of them.
type OIDC struct {
	OIDCProvider

	// OnlyStartIfOIDCIsAvailable makes a server not start that cannot reach a provider. Else it starts, says so on the sign-in page,
	// and tries again.
	OnlyStartIfOIDCIsAvailable bool `key:"only_start_if_oidc_is_available"`

	// Providers are further providers; each needs an id.
	Providers []OIDCProvider `key:"providers" path:"true"`
}

// OIDCProvider is one OpenID Connect provider. An empty Issuer: none.
type OIDCProvider struct {
	// ID stands in the callback address, SERVER_URL/oidc/callback/ID. The provider of the section itself has none:
	// SERVER_URL/oidc/callback.
	ID string `key:"id"`

	// Name stands on the button of the sign-in page. Empty: the host name of the issuer.
	Name string `key:"name"`

	// Issuer is the provider's address, with or without a slash at its end.
	Issuer   string `key:"issuer"`
	ClientID string `key:"client_id"`

	// ClientSecret, or what stands in the file at ClientSecretPath. None of them: a public client.
	ClientSecret     string `key:"client_secret" secret:"true"`
	ClientSecretPath string `key:"client_secret_path" path:"true"`

	// TokenEndpointAuthMethod is how the secret is sent: client_secret_basic, client_secret_post. Empty: what the provider supports.
	TokenEndpointAuthMethod string `key:"token_endpoint_auth_method"`

	Scope []string `key:"scope"`

	// ExtraParams are added to the address that browsers are sent to, such as domain_hint.
	ExtraParams map[string]string `key:"extra_params"`

	// Who may sign in; empty lists let everybody in, and all that are not empty must agree.
	AllowedDomains []string `key:"allowed_domains"`
	AllowedUsers   []string `key:"allowed_users"`
	AllowedGroups  []string `key:"allowed_groups"`

	// GroupsClaim lists the groups of a user. Empty: groups are not read.
	GroupsClaim string `key:"groups_claim"`

	// EmailVerifiedRequired turns away people whose mail address the provider does not call verified.
	EmailVerifiedRequired bool `key:"email_verified_required"`

	// Expiry is how long nodes last that join by this provider. 0: as node.expiry says.
	Expiry             Duration `key:"expiry"`
	UseExpiryFromToken bool     `key:"use_expiry_from_token"` // as long as the provider's ID token instead

	// CheckEvery is how often the provider is asked whether a user is still there, if Scope or ExtraParams ask for a refresh token. 0: never.
	CheckEvery Duration `key:"check_every"`

	PKCE PKCE `key:"pkce"`
}

// PKCE ties an authorization code to who asked for it.
type PKCE struct {
	Enabled bool   `key:"enabled"`
	Method  string `key:"method"` // S256, plain
}

// defaultOIDC is a provider about which nothing is said.
func defaultOIDC() OIDCProvider {
	return OIDCProvider{
		Scope: []string{"openid", "profile", "email"}, GroupsClaim: "groups", EmailVerifiedRequired: true,
		CheckEvery: Duration(time.Hour), PKCE: PKCE{Enabled: true, Method: "S256"},
	}
}

// All are the providers that are configured: first the one of the section itself, then those of the list.
func (o *OIDC) All() []OIDCProvider {
	if o.Issuer == "" {
		return o.Providers
	}
	return slices.Concat([]OIDCProvider{o.OIDCProvider}, o.Providers)
}

// Secret is the client secret, from wherever it is kept; empty for a public client.
func (p *OIDCProvider) Secret() (string, error) {
	if p.ClientSecretPath == "" {
		return p.ClientSecret, nil
	}
	b, err := readLimited(p.secretPath())
	if err != nil {
		return "", fmt.Errorf("the client secret cannot be read (client_secret_path): %w", err)
	}
	s := strings.TrimSpace(string(b))
	if s == "" {
		return "", fmt.Errorf("the client secret cannot be read (client_secret_path): %s is empty", p.secretPath())
	}
	return s, nil
}

// secretPath is ClientSecretPath with the variables of the environment in it filled in: systemd says where its credentials are
// in CREDENTIALS_DIRECTORY.
func (p *OIDCProvider) secretPath() string { return os.ExpandEnv(p.ClientSecretPath) }

// maxProviders is how long the list may be: people have to find theirs on one page.
const maxProviders = 20

// reservedParams belong to the sign-in itself.
var reservedParams = []string{
	"client_id", "client_secret", "code_challenge", "code_challenge_method", "nonce", "redirect_uri", "response_mode", "response_type", "scope", "state",
}

func (k *checker) oidc() {
	o := &k.c.OIDC
	if o.ID != "" {
		k.fault("oidc.id", "%q: the provider of this section has no id; those of oidc.providers do", o.ID)
	}
	if o.Issuer == "" {
		for key, set := range map[string]bool{
			"oidc.client_id": o.ClientID != "", "oidc.client_secret": o.ClientSecret != "", "oidc.client_secret_path": o.ClientSecretPath != "",
		} {
			if set {
				k.fault(key, "is set, but oidc.issuer is not: want the address of the provider there, such as https://login.example.com")
			}
		}
	} else {
		k.oidcProvider("oidc.", "", &o.OIDCProvider)
	}
	if len(o.All()) > 0 && !k.c.Web.Enabled {
		k.fault("web.enabled", "false: the sign-in with a provider (oidc) needs the pages; take one of them out")
	}
	if o.OnlyStartIfOIDCIsAvailable && len(o.All()) == 0 {
		k.fault("oidc.only_start_if_oidc_is_available", "true, but there is no provider: want oidc.issuer, or false")
	}
	seen := map[string]bool{}
	for i := range o.Providers {
		p := &o.Providers[i]
		who := fmt.Sprintf("entry %d (%s): ", i+1, cmp.Or(p.ID, p.Issuer, "without a name"))
		if p.ID == "" || p.ID == "oidc" || len(p.ID) > 63 || strings.Trim(p.ID, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			k.fault("oidc.providers", "%sid %q: want a-z, 0-9 and hyphens, and not oidc, such as google", who, p.ID)
		} else if seen[p.ID] {
			k.fault("oidc.providers", "%sanother one has this id: want different ones", who)
		}
		seen[p.ID] = true
		if p.Issuer == "" {
			k.fault("oidc.providers", "%sissuer is missing: want the address of the provider, such as https://login.example.com", who)
			continue
		}
		k.oidcProvider("", who, p)
	}
}

// oidcProvider checks a provider: that of the section, whose keys begin with prefix, or else one of the list, called who.
func (k *checker) oidcProvider(prefix, who string, p *OIDCProvider) {
	fault := func(key, format string, args ...any) {
		text := fmt.Sprintf(format, args...)
		if prefix == "" {
			k.fault("oidc.providers", "%s%s: %s", who, key, text)
		} else {
			k.fault(prefix+key, "%s", text)
		}
	}
	u, err := url.Parse(p.Issuer)
	switch {
	case err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil:
		fault("issuer", "%q: want the address of the provider, such as https://login.example.com", p.Issuer)
	case strings.Contains(u.Path, "/.well-known/"):
		fault("issuer", "%q: want the address without /.well-known and what follows", p.Issuer)
	}
	if p.ClientID == "" {
		fault("client_id", "is empty: want the id under which the provider knows this server")
	}
	if p.ClientSecret != "" && p.ClientSecretPath != "" {
		fault("client_secret_path", "is set, and client_secret as well: want one of them")
	}
	switch m := p.TokenEndpointAuthMethod; {
	case !slices.Contains([]string{"", "client_secret_basic", "client_secret_post", "none"}, m):
		fault("token_endpoint_auth_method", "%q: want client_secret_basic or client_secret_post, or nothing", m)
	case m == "none" && p.hasSecret():
		fault("token_endpoint_auth_method", "none, but there is a client secret: want another method, or no secret")
	case m != "" && m != "none" && !p.hasSecret():
		fault("token_endpoint_auth_method", "%q, but there is no client secret: want client_secret or client_secret_path", m)
	}
	if !slices.Contains(p.Scope, "openid") {
		fault("scope", "%s: want openid among them, such as [openid, profile, email]", strings.Join(p.Scope, ", "))
	}
	for name := range p.ExtraParams {
		if slices.Contains(reservedParams, strings.ToLower(name)) {
			fault("extra_params", "%s belongs to the sign-in itself: want other names", name)
		}
	}
	for _, d := range p.AllowedDomains {
		if !isDomain(strings.ToLower(d)) {
			fault("allowed_domains", "%q: want a domain, such as example.com", d)
		}
	}
	for _, a := range p.AllowedUsers {
		if !strings.Contains(strings.Trim(a, "@"), "@") {
			fault("allowed_users", "%q: want mail addresses, such as hans@example.com", a)
		}
	}
	if len(p.AllowedGroups) > 0 && p.GroupsClaim == "" {
		fault("allowed_groups", "nobody could sign in, because groups_claim is empty: want the claim that lists groups, such as groups")
	}
	if d := p.Expiry; d != 0 && d.Std() < time.Minute {
		fault("expiry", "%v: want at least 1m, or 0 for what node.expiry says", d)
	}
	if d := p.CheckEvery; d != 0 && d.Std() < time.Minute {
		fault("check_every", "%v: want at least 1m, or 0 for never", d)
	}
	if !slices.Contains([]string{"S256", "plain"}, p.PKCE.Method) {
		fault("pkce.method", "%q: want S256 or plain", p.PKCE.Method)
	}
	if !p.PKCE.Enabled && !p.hasSecret() {
		fault("pkce.enabled", "false, but there is no client secret either: want true, or client_secret or client_secret_path")
	}
}

func (p *OIDCProvider) hasSecret() bool { return p.ClientSecret != "" || p.ClientSecretPath != "" }

// The list of providers as YAML, in both directions.

var oidcKeys = listKeys(reflect.TypeFor[OIDCProvider](), "", nil)

// assignOIDC reads an entry of the list.
func assignOIDC(v reflect.Value, n *yaml.Node) Faults {
	v.Set(reflect.ValueOf(defaultOIDC()))
	return assignBelow(v, n, "")
}

// assignBelow reads the keys of one section of an entry; "" is the entry itself.
func assignBelow(v reflect.Value, n *yaml.Node, section string) (faults Faults) {
	n = resolve(n)
	if n.Kind != yaml.MappingNode {
		return Faults{{Line: n.Line, Text: "want a provider: {id: google, issuer: https://accounts.google.com, client_id: …}"}}
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content) && len(faults) <= maxFaults; i += 2 {
		key, val := n.Content[i], n.Content[i+1]
		name := section + key.Value
		at := slices.IndexFunc(oidcKeys, func(k keyInfo) bool { return k.name == name })
		switch {
		case seen[name]:
			faults = append(faults, Fault{Line: key.Line, Text: fmt.Sprintf("%s stands here twice: want it once", name)})
		case at >= 0:
			if r := resolve(val); r.Kind == yaml.ScalarNode && r.ShortTag() == "!!null" {
				break
			}
			field := reflect.New(v.FieldByIndex(oidcKeys[at].index).Type()).Elem() // without the default
			for _, f := range assignValue(field, val) {
				f.Text = name + ": " + f.Text
				faults = append(faults, f)
			}
			if isEmpty(field) {
				field.SetZero()
			}
			v.FieldByIndex(oidcKeys[at].index).Set(field)
		case name == "pkce":
			faults = append(faults, assignBelow(v, val, "pkce.")...)
		default:
			var names []string
			for _, k := range oidcKeys {
				names = append(names, k.name)
			}
			faults = append(faults, Fault{Line: key.Line, Text: fmt.Sprintf("%q in a provider: %s", name, unknownText(name, names))})
		}
		seen[name] = true
	}
	return faults
}

// oidcNode is an entry of the list as YAML.
func oidcNode(p OIDCProvider) *yaml.Node {
	root := &yaml.Node{Kind: yaml.MappingNode}
	for _, k := range oidcKeys {
		parent, name := root, k.name
		if section, rest, ok := strings.Cut(k.name, "."); ok {
			parent, name = child(root, section), rest
		}
		parent.Content = append(parent.Content, node(reflect.ValueOf(name)), node(reflect.ValueOf(p).FieldByIndex(k.index)))
	}
	return root
}

// textMap is names with values as YAML.
func textMap(m map[string]string) *yaml.Node {
	n := &yaml.Node{Kind: yaml.MappingNode, Style: yaml.FlowStyle}
	for _, k := range sortedKeys(m) {
		n.Content = append(n.Content, node(reflect.ValueOf(k)), node(reflect.ValueOf(m[k])))
	}
	return n
}

func sortedKeys(m map[string]string) []string {
	var out []string
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// hidden stands for a secret where others may read along.
const hidden = "(hidden)"

// WithoutSecrets is c with all secrets replaced by a word, to be shown.
func (c *Config) WithoutSecrets() *Config {
	out := *c
	out.OIDC.Providers = slices.Clone(c.OIDC.Providers)
	for i := range out.OIDC.Providers {
		hide(&out.OIDC.Providers[i].ClientSecret)
	}
	for _, k := range keyList {
		if k.secret {
			hide(out.field(k).Addr().Interface().(*string))
		}
	}
	return &out
}

func hide(s *string) {
	if *s != "" {
		*s = hidden
	}
}

// underFolder is a path as it was meant in a file in dir.
func underFolder(dir, path string) string {
	if path == "" || filepath.IsAbs(path) || strings.HasPrefix(path, "$") {
		return path
	}
	return filepath.Join(dir, path)
}
