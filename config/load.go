package config

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"
)

// Limits on a configuration file.
const (
	maxFileBytes = 1 << 20
	maxListLen   = 10_000
	maxFaults    = 100 // reported at once
)

// EnvPrefix starts the name of every environment variable that Skein reads.
const EnvPrefix = "SKEIN_"

// otherEnv are environment variables of Skein that are no settings; a name that ends in "*" stands for all that start so.
var otherEnv = []string{"SKEIN_SOCKET", "SKEIN_SERVER", "SKEIN_API_KEY", "SKEIN_API_KEY_FILE", "SKEIN_CONFIG", "SKEIN_BACKUP_PASSPHRASE", "SKEIN_CONFORMANCE", "SKEIN_LAB_*"}

// Options says where Load looks.
type Options struct {
	// File is the configuration file (-c). Empty: the first of Search that exists, or none.
	File string

	// Search are the files to look for. Nil: SearchPaths of Env.
	Search []string

	// Env is the environment as os.Environ gives it. Nil: nothing is taken from it.
	Env []string

	// Flags are values from the command line, by key. They are read like environment variables.
	Flags map[string]string

	// FlagNames says how a key is called on the command line ("--listen"), for messages. Keys that are missing are called by their
	// own name.
	FlagNames map[string]string
}

// SearchPaths are the files that are tried when none is given, the first that exists wins.
func SearchPaths(env []string) []string {
	paths := []string{"/etc/skein/config.yaml"}
	dir := lookup(env, "XDG_CONFIG_HOME")
	if home := lookup(env, "HOME"); dir == "" && home != "" {
		dir = filepath.Join(home, ".config")
	}
	if filepath.IsAbs(dir) { // the XDG rules: ignore a relative one
		paths = append(paths, filepath.Join(dir, "skein", "config.yaml"))
	}
	return append(paths, "config.yaml")
}

func lookup(env []string, name string) string {
	for _, e := range slices.Backward(env) { // the last one wins, as in a shell
		if v, ok := strings.CutPrefix(e, name+"="); ok {
			return v
		}
	}
	return ""
}

// origin is where a value came from.
type origin struct {
	place string // file, environment variable or flag
	line  int    // in a file
}

// Origin says where the value of a key came from: "config.yaml:12", "SKEIN_LISTEN_ADDR", "--listen" or "default".
func (c *Config) Origin(key string) string {
	o, ok := c.origin[key]
	switch {
	case !ok:
		return "default"
	case o.line > 0:
		return fmt.Sprintf("%s:%d", o.place, o.line)
	}
	return o.place
}

// Load puts the settings together and checks them. The error is Faults, except when a file that was asked for cannot be read.
// Nothing on disk is checked beyond the configuration file; see CheckFiles.
func Load(o Options) (*Config, error) {
	c, faults, err := load(o)
	if err != nil {
		return nil, err
	}
	if len(faults) > 0 {
		return nil, faults
	}
	return c, nil
}

// load returns the settings as far as they can be read, with all faults.
func load(o Options) (*Config, Faults, error) {
	path, data, err := findFile(o)
	if err != nil {
		return nil, nil, err
	}
	c := Default()
	c.origin, c.file = map[string]origin{}, path
	var faults Faults
	if path != "" {
		faults = c.readFile(path, data)
	}
	faults = append(faults, c.readEnv(o.Env)...)
	faults = append(faults, c.readFlags(o.Flags, o.FlagNames)...)
	c.complete()
	faults = append(faults, c.check()...)
	slices.SortStableFunc(faults, func(a, b Fault) int { // the file first, from top to bottom
		const last = math.MaxInt
		return cmp.Compare(cmp.Or(a.Line, last), cmp.Or(b.Line, last))
	})
	if len(faults) > maxFaults {
		faults = append(faults[:maxFaults:maxFaults], Fault{Text: "and more; these first"})
	}
	return c, faults, nil
}

// findFile returns the file to use and its contents; "" means none.
func findFile(o Options) (string, []byte, error) {
	if o.File != "" {
		data, err := readLimited(o.File)
		if err != nil {
			return "", nil, fmt.Errorf("cannot read the configuration: %w", err)
		}
		return o.File, data, nil
	}
	search := o.Search
	if search == nil {
		search = SearchPaths(o.Env)
	}
	for _, path := range search {
		data, err := readLimited(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", nil, fmt.Errorf("cannot read the configuration: %w", err)
		}
		return path, data, nil
	}
	return "", nil, nil
}

func readLimited(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err == nil && len(data) > maxFileBytes {
		err = fmt.Errorf("%s is larger than %d bytes", path, maxFileBytes)
	}
	return data, err
}

// readFile takes the settings of a file.
func (c *Config) readFile(path string, data []byte) Faults {
	var docs []yaml.Node
	if err := yaml.Load(data, &docs, yaml.WithAllDocuments()); err != nil {
		return Faults{yamlFault(path, err)}
	}
	if len(docs) == 0 { // nothing but comments
		return nil
	}
	if len(docs) > 1 {
		return Faults{{Place: path, Line: docs[1].Line, Text: "a second document starts here (\"---\"): want all settings in one"}}
	}
	var faults Faults
	c.readMapping(&docs[0], "", path, &faults)
	return faults
}

func yamlFault(path string, err error) Fault {
	f := Fault{Place: path, Text: "not YAML: " + err.Error()}
	var le *yaml.LoadError
	if errors.As(err, &le) {
		f.Line = le.Mark.Line
		f.Text = "not YAML: " + le.Message
	}
	return f
}

// readMapping takes the settings of one section; "" is the whole file.
func (c *Config) readMapping(n *yaml.Node, section, path string, faults *Faults) {
	if n.Kind == yaml.DocumentNode && len(n.Content) == 1 {
		n = n.Content[0]
	}
	n = resolve(n)
	fault := func(line int, key, format string, args ...any) {
		if len(*faults) <= maxFaults {
			*faults = append(*faults, Fault{Key: key, Place: path, Line: line, Text: fmt.Sprintf(format, args...)})
		}
	}
	if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" {
		return
	}
	if n.Kind != yaml.MappingNode {
		if section == "" {
			fault(n.Line, "", "want settings, one \"key: value\" to a line")
		} else {
			fault(n.Line, section, "want settings below it, such as %s", firstBelow(section))
		}
		return
	}
	first := map[string]int{} // the line of a key
	for i := 0; i+1 < len(n.Content) && len(*faults) <= maxFaults; i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		name := k.Value
		if section != "" {
			name = section + "." + name
		}
		if line, twice := first[k.Value]; twice {
			fault(k.Line, name, "stands here twice, on line %d already: want it once", line)
			continue
		}
		first[k.Value] = k.Line
		info, known := byKey[name]
		switch {
		case known && strings.Contains(k.Value, "."):
			fault(k.Line, name, "want a line for each part, one below the other: %q, then what is in it", k.Value[:strings.IndexByte(k.Value, '.')]+":")
		case known:
			// A key without a value is as good as absent: "urls:" with its entries commented out.
			if r := resolve(v); r.Kind == yaml.ScalarNode && r.ShortTag() == "!!null" {
				continue
			}
			c.set(info, v, origin{path, k.Line}, faults)
		case sections[name] && !strings.Contains(k.Value, "."):
			c.readMapping(v, name, path, faults)
		default:
			readUnknown(k, v, name, fault)
		}
	}
}

// readUnknown reports a key that does not exist, or the keys below it if those are better known.
func readUnknown(k, v *yaml.Node, name string, fault func(int, string, string, ...any)) {
	if text := foreign(name); text != "" {
		fault(k.Line, name, "%s", text)
		return
	}
	if v = resolve(v); v.Kind == yaml.MappingNode && hasForeignBelow(name) {
		for i := 0; i+1 < len(v.Content) && i < 2*maxFaults; i += 2 {
			sub := v.Content[i]
			if text := foreign(name + "." + sub.Value); text != "" {
				fault(sub.Line, name+"."+sub.Value, "%s", text)
			} else {
				fault(sub.Line, name+"."+sub.Value, "%s", unknownText(name+"."+sub.Value, Keys()))
			}
		}
		return
	}
	names := Keys()
	if resolve(v).Kind == yaml.MappingNode {
		names = append(names, slices.Collect(maps.Keys(sections))...)
		slices.Sort(names)
	}
	fault(k.Line, name, "%s", unknownText(name, names))
}

func unknownText(name string, known []string) string {
	if n := nearest(name, known); n != "" {
		return fmt.Sprintf("unknown key; did you mean %s?", n)
	}
	return "unknown key; config.yaml of the distribution lists them all"
}

func firstBelow(section string) string {
	for _, k := range keyList {
		if strings.HasPrefix(k.name, section+".") {
			return k.name
		}
	}
	return ""
}

// set stores one value and remembers where it came from.
func (c *Config) set(k keyInfo, n *yaml.Node, from origin, faults *Faults) {
	bad := c.assign(k, n)
	for _, f := range bad {
		f.Key, f.Place = k.name, from.place
		if from.line == 0 {
			f.Line = 0 // of a flag or variable
		}
		*faults = append(*faults, f)
	}
	if len(bad) > 0 {
		return
	}
	c.origin[k.name] = from
	if k.path && from.line > 0 {
		c.resolvePaths(k, filepath.Dir(from.place))
	}
}

// resolvePaths makes relative file names relative to dir.
func (c *Config) resolvePaths(k keyInfo, dir string) {
	fix := func(v reflect.Value) {
		v.SetString(underFolder(dir, v.String()))
	}
	switch v := c.field(k); v.Kind() {
	case reflect.String:
		fix(v)
	case reflect.Slice:
		if list, ok := v.Interface().([]OIDCProvider); ok {
			for i := range list {
				list[i].ClientSecretPath = underFolder(dir, list[i].ClientSecretPath)
			}
			return
		}
		for i := range v.Len() {
			fix(v.Index(i))
		}
	}
}

// readEnv takes the settings of the environment.
func (c *Config) readEnv(env []string) Faults {
	var faults Faults
	values := map[string]string{}
	for _, e := range env {
		if name, value, ok := strings.Cut(e, "="); ok && strings.HasPrefix(name, EnvPrefix) {
			values[name] = value // the last one wins
		}
	}
	for _, name := range slices.Sorted(maps.Keys(values)) {
		if isOtherEnv(name) {
			continue
		}
		k, ok := byEnv[name]
		if !ok {
			text := "unknown environment variable: no setting has this name; unset it"
			if n := nearest(name, append(slices.Sorted(maps.Keys(byEnv)), otherEnv[:3]...)); n != "" {
				text = fmt.Sprintf("unknown environment variable; did you mean %s?", n)
			}
			faults = append(faults, Fault{Place: name, Text: text})
			continue
		}
		c.setText(k, values[name], name, &faults)
	}
	return faults
}

func isOtherEnv(name string) bool {
	for _, o := range otherEnv {
		if prefix, any := strings.CutSuffix(o, "*"); name == o || any && strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// readFlags takes the settings of the command line.
func (c *Config) readFlags(flags, names map[string]string) Faults {
	var faults Faults
	for _, key := range slices.Sorted(maps.Keys(flags)) {
		place := names[key]
		if place == "" {
			place = key
		}
		k, ok := byKey[key]
		if !ok {
			faults = append(faults, Fault{Key: key, Place: place, Text: unknownText(key, Keys())})
			continue
		}
		c.setText(k, flags[key], place, &faults)
	}
	return faults
}

// setText stores a value given as plain text: lists are separated by commas, anything with names in it is YAML.
func (c *Config) setText(k keyInfo, text, place string, faults *Faults) {
	t := c.field(k).Type()
	n := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: text}
	switch {
	case t.Kind() == reflect.Map || t == reflect.TypeFor[[]Record]() || t == reflect.TypeFor[[]OIDCProvider]():
		var docs []yaml.Node
		if err := yaml.Load([]byte(text), &docs, yaml.WithAllDocuments()); err != nil || len(docs) > 1 {
			*faults = append(*faults, Fault{Key: k.name, Place: place, Text: "not YAML: want it as in the file, on one line in braces"})
			return
		}
		n = &yaml.Node{Kind: yaml.SequenceNode}
		if t.Kind() == reflect.Map {
			n.Kind = yaml.MappingNode
		}
		if len(docs) == 1 && len(docs[0].Content) == 1 && docs[0].Content[0].ShortTag() != "!!null" {
			n = docs[0].Content[0]
		}
	case t.Kind() == reflect.Slice:
		n = &yaml.Node{Kind: yaml.SequenceNode}
		for item := range strings.SplitSeq(text, ",") {
			if item = strings.TrimSpace(item); item != "" {
				n.Content = append(n.Content, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: item})
			}
		}
	}
	c.set(k, n, origin{place: place}, faults)
}

// Folders for data: a server that is installed uses the first, one that is tried out the second.
const (
	SystemDataDir = "/var/lib/skein"
	LocalDataDir  = "skein-data" // in the working directory
)

// DefaultDataDir returns SystemDataDir if this process can write there or create it, which takes root or an installed package;
// else LocalDataDir.
func DefaultDataDir() string { return chooseDataDir(SystemDataDir, writable) }

func chooseDataDir(system string, writable func(string) bool) string {
	dir := system
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		dir = filepath.Dir(dir)
	}
	if writable(dir) {
		return system
	}
	return LocalDataDir
}

// complete fills in what follows from other settings.
func (c *Config) complete() {
	if c.Database.Type == "sqlite3" { // headscale's older name
		c.Database.Type = "sqlite"
	}
	if c.DataDir == "" {
		c.DataDir = DefaultDataDir()
	}
	for p, name := range map[*string]string{
		&c.UnixSocket:                 "skein.sock",
		&c.Noise.PrivateKeyPath:       "noise_private.key",
		&c.DERP.Server.PrivateKeyPath: "derp_server_private.key",
		&c.Database.SQLite.Path:       "db.sqlite",
	} {
		if *p == "" {
			*p = filepath.Join(c.DataDir, name)
		}
	}
}
