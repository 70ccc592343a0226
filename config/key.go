package config

import (
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"
)

// keyInfo is what the struct tags say about a key.
type keyInfo struct {
	name  string
	index []int // for reflect.Value.FieldByIndex
	path  bool
	live  bool

	secret bool // not to be shown
}

var (
	keyList = listKeys(reflect.TypeFor[Config](), "", nil)
	byKey   = indexKeys()
	byEnv   = indexEnv()
	// sections are the names that have keys below them.
	sections = indexSections()
)

func listKeys(t reflect.Type, prefix string, index []int) []keyInfo {
	var list []keyInfo
	for i := range t.NumField() {
		f := t.Field(i)
		name := f.Tag.Get("key")
		at := append(slices.Clone(index), i)
		if f.Anonymous {
			list = append(list, listKeys(f.Type, prefix, at)...)
		}
		if name == "" {
			continue
		}
		if f.Type.Kind() == reflect.Struct && f.Type != reflect.TypeFor[netip.Prefix]() {
			list = append(list, listKeys(f.Type, prefix+name+".", at)...)
			continue
		}
		list = append(list, keyInfo{prefix + name, at, f.Tag.Get("path") != "", f.Tag.Get("live") != "", f.Tag.Get("secret") != ""})
	}
	return list
}

func indexKeys() map[string]keyInfo {
	m := map[string]keyInfo{}
	for _, k := range keyList {
		m[k.name] = k
	}
	return m
}

func indexEnv() map[string]keyInfo {
	m := map[string]keyInfo{}
	for _, k := range keyList {
		m[EnvName(k.name)] = k
	}
	return m
}

func indexSections() map[string]bool {
	m := map[string]bool{}
	for _, k := range keyList {
		for i, c := range k.name {
			if c == '.' {
				m[k.name[:i]] = true
			}
		}
	}
	return m
}

// Keys returns the names of all settings, in the order of Config.
func Keys() []string {
	names := make([]string, len(keyList))
	for i, k := range keyList {
		names[i] = k.name
	}
	return names
}

// EnvName returns the environment variable of a key: SKEIN_DNS_BASE_DOMAIN for dns.base_domain.
func EnvName(key string) string {
	return EnvPrefix + strings.ToUpper(strings.ReplaceAll(key, ".", "_"))
}

// Get returns the value of a key, of the type its field has. It reports false for an unknown key.
func (c *Config) Get(key string) (any, bool) {
	k, ok := byKey[key]
	if !ok {
		return nil, false
	}
	return c.field(k).Interface(), true
}

func (c *Config) field(k keyInfo) reflect.Value {
	return reflect.ValueOf(c).Elem().FieldByIndex(k.index)
}

// assign stores a YAML value in a key. The faults it returns have text and line; the key is filled in where it is empty, with the
// place, by the caller.
func (c *Config) assign(k keyInfo, n *yaml.Node) Faults {
	v := reflect.New(c.field(k).Type()).Elem()
	faults := assignValue(v, n)
	if len(faults) == 0 {
		c.field(k).Set(v)
	}
	return faults
}

func assignValue(v reflect.Value, n *yaml.Node) Faults {
	n = resolve(n)
	one := func(format string, args ...any) Faults {
		return Faults{{Line: n.Line, Text: fmt.Sprintf(format, args...)}}
	}
	switch v.Kind() {
	case reflect.Slice:
		if n.Kind != yaml.SequenceNode {
			return one("want a list, such as [a, b] or lines that start with \"- \"")
		}
		most := maxListLen
		if v.Type().Elem() == reflect.TypeFor[OIDCProvider]() {
			most = maxProviders // aliases could multiply the lists in them
		}
		if len(n.Content) > most {
			return one("%d entries, more than the %d allowed", len(n.Content), most)
		}
		var faults Faults
		for _, item := range n.Content {
			e := reflect.New(v.Type().Elem()).Elem()
			faults = append(faults, assignValue(e, item)...)
			v.Set(reflect.Append(v, e))
		}
		return faults
	case reflect.Map:
		if n.Kind != yaml.MappingNode {
			if v.Type().Elem().Kind() == reflect.String {
				return one("want names, each with a value: \"domain_hint: example.com\"")
			}
			return one("want names, each with a list: \"example.com: [10.0.0.1]\"")
		}
		if len(n.Content)/2 > maxListLen {
			return one("%d entries, more than the %d allowed", len(n.Content)/2, maxListLen)
		}
		v.Set(reflect.MakeMap(v.Type()))
		texts := v.Type().Elem().Kind() == reflect.String
		var faults Faults
		total := 0
		for i := 0; i+1 < len(n.Content); i += 2 {
			name := reflect.ValueOf(n.Content[i].Value)
			if v.MapIndex(name).IsValid() {
				faults = append(faults, Fault{Line: n.Content[i].Line, Text: fmt.Sprintf("%s stands here twice: want it once", name)})
			}
			e := reflect.New(v.Type().Elem()).Elem()
			faults = append(faults, assignValue(e, n.Content[i+1])...)
			v.SetMapIndex(name, e)
			if texts {
				continue
			}
			if total += e.Len(); total > maxListLen { // aliases could multiply lists
				return one("more than %d entries in all", maxListLen)
			}
		}
		return faults
	}
	switch v.Type() {
	case reflect.TypeFor[Record]():
		return assignRecord(v, n)
	case reflect.TypeFor[OIDCProvider]():
		return assignOIDC(v, n)
	}
	if n.Kind != yaml.ScalarNode {
		return one("want a single value")
	}
	if n.ShortTag() == "!!null" && v.Kind() != reflect.String { // an empty entry in a list
		return one("the value is missing")
	}
	if err := assignText(v, n.Value); err != nil {
		return one("%s", err)
	}
	return nil
}

// assignText stores a scalar.
func assignText(v reflect.Value, s string) error {
	switch p := v.Addr().Interface().(type) {
	case *string:
		if strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return fmt.Errorf("%q contains a control character", s)
		}
		*p = s
		return nil
	case *bool:
		switch strings.ToLower(s) {
		case "true", "yes", "on", "1":
			*p = true
		case "false", "no", "off", "0":
			*p = false
		default:
			return fmt.Errorf("%q: want true or false", s)
		}
		return nil
	case *int:
		n, err := strconv.ParseInt(s, 10, 32)
		if err != nil {
			return fmt.Errorf("%q: want a whole number", s)
		}
		*p = int(n)
		return nil
	case *Duration:
		return parseInto(p, s, ParseDuration)
	case *FileMode:
		return parseInto(p, s, parseFileMode)
	case *netip.Prefix:
		if s != "" && !strings.Contains(s, "/") {
			return parseInto(p, s, parseAddr)
		}
		return parseInto(p, s, parsePrefix)
	}
	return fmt.Errorf("cannot be set here")
}

func parseInto[T any](p *T, s string, parse func(string) (T, error)) error {
	v, err := parse(s)
	if err == nil {
		*p = v
	}
	return err
}

func assignRecord(v reflect.Value, n *yaml.Node) Faults {
	if n.Kind != yaml.MappingNode {
		return Faults{{Line: n.Line, Text: "want a record: {name: host.example.com, type: A, value: 100.64.0.1}"}}
	}
	var faults Faults
	r := v.Addr().Interface().(*Record)
	fields := map[string]*string{"name": &r.Name, "type": &r.Type, "value": &r.Value}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, val := n.Content[i], resolve(n.Content[i+1])
		p, ok := fields[k.Value]
		if !ok {
			text := fmt.Sprintf("unknown key %q in a record: want name, type and value", k.Value)
			faults = append(faults, Fault{Line: k.Line, Text: text})
			continue
		}
		if val.Kind != yaml.ScalarNode {
			faults = append(faults, Fault{Line: val.Line, Text: k.Value + ": want a single value"})
			continue
		}
		if err := assignText(reflect.ValueOf(p).Elem(), val.Value); err != nil {
			faults = append(faults, Fault{Line: val.Line, Text: k.Value + ": " + err.Error()})
		}
	}
	return faults
}

// resolve follows an alias.
func resolve(n *yaml.Node) *yaml.Node {
	for n.Kind == yaml.AliasNode && n.Alias != nil {
		n = n.Alias
	}
	return n
}

// node is the reverse of assign: a value as YAML.
func node(v reflect.Value) *yaml.Node {
	switch x := v.Interface().(type) {
	case string:
		n := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: x}
		if x == "" {
			n.Style = yaml.DoubleQuotedStyle
		}
		return n
	case bool:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!bool", Value: strconv.FormatBool(x)}
	case int:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!int", Value: strconv.Itoa(x)}
	case netip.Prefix:
		if !x.IsValid() {
			return node(reflect.ValueOf(""))
		}
		return node(reflect.ValueOf(x.String()))
	case Record:
		n := &yaml.Node{Kind: yaml.MappingNode, Style: yaml.FlowStyle}
		for _, f := range [][2]string{{"name", x.Name}, {"type", x.Type}, {"value", x.Value}} {
			n.Content = append(n.Content, node(reflect.ValueOf(f[0])), node(reflect.ValueOf(f[1])))
		}
		return n
	case OIDCProvider:
		return oidcNode(x)
	case map[string]string:
		return textMap(x)
	case fmt.Stringer: // Duration, FileMode
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: x.String(), Style: yaml.DoubleQuotedStyle}
	case map[string][]string:
		n := &yaml.Node{Kind: yaml.MappingNode}
		if len(x) == 0 {
			n.Style = yaml.FlowStyle
		}
		for _, k := range slices.Sorted(maps.Keys(x)) {
			n.Content = append(n.Content, node(reflect.ValueOf(k)), node(reflect.ValueOf(x[k])))
		}
		return n
	}
	n := &yaml.Node{Kind: yaml.SequenceNode, Style: yaml.FlowStyle}
	for i := range v.Len() {
		n.Content = append(n.Content, node(v.Index(i)))
	}
	return n
}

// YAML returns all settings as a file that Load reads back. With origins, each line says where its value came from.
func (c *Config) YAML(origins bool) ([]byte, error) {
	root := &yaml.Node{Kind: yaml.MappingNode}
	for _, k := range keyList {
		parent := root
		parts := strings.Split(k.name, ".")
		for _, section := range parts[:len(parts)-1] {
			parent = child(parent, section)
		}
		v := node(c.field(k))
		if origins {
			v.LineComment = c.Origin(k.name)
		}
		parent.Content = append(parent.Content, node(reflect.ValueOf(parts[len(parts)-1])), v)
	}
	return yaml.Dump(root)
}

// child finds or adds the mapping of that name. Keys of a section stand together in Config, so it is the last one if it exists.
func child(parent *yaml.Node, name string) *yaml.Node {
	if i := len(parent.Content) - 2; i >= 0 && parent.Content[i].Value == name {
		return parent.Content[i+1]
	}
	m := &yaml.Node{Kind: yaml.MappingNode}
	parent.Content = append(parent.Content, node(reflect.ValueOf(name)), m)
	return m
}
