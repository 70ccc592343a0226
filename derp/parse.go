package derp

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"
	"tailscale.com/tailcfg"
)

// Limits of a DERP map from outside. Tailscale's own has about 30 regions and 40 KB.
const (
	maxMapBytes  = 1 << 20
	maxMapValues = 50_000 // YAML values looked at, aliases counted each time they are used
	maxFaults    = 20     // reported at once
)

// mapFault is one thing wrong in a DERP map.
type mapFault struct {
	path string // such as regions.900.nodes[0].ipv4
	line int    // 0: not known
	text string
}

func (f mapFault) Error() string {
	s := f.text
	if len(s) > 400 { // it quotes an oversized value
		s = strings.ToValidUTF8(s[:200], "") + " … " + strings.ToValidUTF8(s[len(s)-200:], "")
	}
	if f.path != "" {
		s = f.path + ": " + s
	}
	if f.line > 0 {
		s = fmt.Sprintf("line %d: %s", f.line, s)
	}
	return s
}

func joinFaults(faults []mapFault) error {
	var errs []error
	for i, f := range faults {
		if i == maxFaults {
			errs = append(errs, fmt.Errorf("and %d more", len(faults)-i))
			break
		}
		errs = append(errs, f)
	}
	return errors.Join(errs...)
}

// ParseMap reads a DERP map written by an administrator, as YAML or JSON. Keys are the field names of tailcfg.DERPMap in any case
// (RegionID, regionid). An unknown key is an error, so that a typing mistake does not go unseen; each error says where it is. A
// region may be null: a map so marked takes that region out of maps that came before it (see Sources). A region id that is
// missing inside a region or node is filled in from the key above it.
func ParseMap(data []byte) (*tailcfg.DERPMap, error) {
	if len(data) > maxMapBytes {
		return nil, fmt.Errorf("the DERP map has %d bytes, more than the %d allowed", len(data), maxMapBytes)
	}
	var docs []yaml.Node
	if err := yaml.Load(data, &docs, yaml.WithAllDocuments()); err != nil {
		var le *yaml.LoadError
		if errors.As(err, &le) {
			return nil, fmt.Errorf("line %d: not YAML or JSON: %s", le.Mark.Line, le.Message)
		}
		return nil, fmt.Errorf("not YAML or JSON: %w", err)
	}
	if len(docs) > 1 {
		return nil, fmt.Errorf("line %d: a second document starts here (\"---\"): want one", docs[1].Line)
	}
	m := new(tailcfg.DERPMap)
	w := mapWalker{lines: map[string]int{}}
	if len(docs) == 1 && len(docs[0].Content) == 1 {
		w.value(docs[0].Content[0], reflect.ValueOf(m).Elem(), "")
	}
	faults := w.faults
	if len(faults) == 0 {
		if len(m.Regions) == 0 {
			return nil, errors.New("no regions: want \"regions:\" with at least one region id below it")
		}
		faults = checkMap(m)
		for i := range faults {
			faults[i].line = w.line(faults[i].path)
		}
	}
	if len(faults) > 0 {
		return nil, joinFaults(faults)
	}
	return m, nil
}

// parseFetchedMap reads a DERP map as a URL serves it: JSON, where unknown keys are those of a newer version and harmless.
func parseFetchedMap(data []byte) (*tailcfg.DERPMap, error) {
	m := new(tailcfg.DERPMap)
	if err := json.Unmarshal(data, m); err != nil {
		return nil, fmt.Errorf("not a DERP map in JSON: %w", err)
	}
	if len(m.Regions) == 0 {
		return nil, errors.New("the DERP map has no regions")
	}
	if faults := checkMap(m); len(faults) > 0 {
		return nil, joinFaults(faults)
	}
	return m, nil
}

// mapWalker fills the types of a DERP map from YAML and remembers where each value stood.
type mapWalker struct {
	seen   int
	lines  map[string]int
	faults []mapFault
}

func (w *mapWalker) fault(n *yaml.Node, path, format string, args ...any) {
	w.faults = append(w.faults, mapFault{path, n.Line, fmt.Sprintf(format, args...)})
}

// line finds the line of path, or of the nearest thing around it.
func (w *mapWalker) line(path string) int {
	for path != "" {
		if l := w.lines[path]; l > 0 {
			return l
		}
		path = path[:max(0, strings.LastIndexAny(path, ".["))]
	}
	return 0
}

// value stores n in v. Recursion ends with the types of v, whatever aliases n contains.
func (w *mapWalker) value(n *yaml.Node, v reflect.Value, path string) {
	if w.seen++; w.seen > maxMapValues || len(w.faults) > maxFaults {
		if w.seen == maxMapValues+1 {
			w.fault(n, path, "more than %d values in one DERP map", maxMapValues)
		}
		return
	}
	for n.Kind == yaml.AliasNode && n.Alias != nil {
		n = n.Alias
	}
	if _, ok := w.lines[path]; !ok {
		w.lines[path] = n.Line
	}
	if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" {
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		w.value(n, v.Elem(), path)
	case reflect.Struct:
		w.structure(n, v, path)
	case reflect.Map:
		w.mapping(n, v, path)
	case reflect.Slice:
		if n.Kind != yaml.SequenceNode {
			w.fault(n, path, "want a list")
			return
		}
		for i, item := range n.Content {
			e := reflect.New(v.Type().Elem()).Elem()
			w.value(item, e, fmt.Sprintf("%s[%d]", path, i))
			v.Set(reflect.Append(v, e))
		}
	default:
		w.scalar(n, v, path)
	}
}

func (w *mapWalker) structure(n *yaml.Node, v reflect.Value, path string) {
	if n.Kind != yaml.MappingNode {
		w.fault(n, path, "want keys and values")
		return
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content) && len(w.faults) <= maxFaults; i += 2 {
		k := n.Content[i]
		if lower := strings.ToLower(k.Value); seen[lower] {
			w.fault(k, joinPath(path, lower), "stands here twice")
			continue
		} else {
			seen[lower] = true
		}
		field, ok := v.Type().FieldByNameFunc(func(name string) bool { return strings.EqualFold(name, k.Value) })
		if !ok {
			w.fault(k, path, "unknown key %q; known here: %s", k.Value, strings.Join(fieldNames(v.Type()), ", "))
			continue
		}
		w.value(n.Content[i+1], v.FieldByIndex(field.Index), joinPath(path, strings.ToLower(field.Name)))
	}
}

// mapping reads a map with numbers as keys: regions, region scores.
func (w *mapWalker) mapping(n *yaml.Node, v reflect.Value, path string) {
	if n.Kind != yaml.MappingNode {
		w.fault(n, path, "want region ids as keys, such as 900:")
		return
	}
	v.Set(reflect.MakeMap(v.Type()))
	for i := 0; i+1 < len(n.Content) && len(w.faults) <= maxFaults; i += 2 {
		k := n.Content[i]
		id, err := strconv.ParseInt(k.Value, 10, 32)
		if err != nil {
			w.fault(k, path, "%q is not a region id: want a number such as 900", k.Value)
			continue
		}
		at := joinPath(path, strconv.FormatInt(id, 10))
		if v.MapIndex(reflect.ValueOf(int(id))).IsValid() {
			w.fault(k, at, "this id stands here twice")
			continue
		}
		e := reflect.New(v.Type().Elem()).Elem()
		w.value(n.Content[i+1], e, at)
		v.SetMapIndex(reflect.ValueOf(int(id)), e)
	}
}

func (w *mapWalker) scalar(n *yaml.Node, v reflect.Value, path string) {
	if n.Kind != yaml.ScalarNode {
		w.fault(n, path, "want a single value")
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(n.Value)
	case reflect.Int:
		i, err := strconv.ParseInt(n.Value, 10, 32)
		if err != nil {
			w.fault(n, path, "%q is not a whole number", n.Value)
			return
		}
		v.SetInt(i)
	case reflect.Float64:
		f, err := strconv.ParseFloat(n.Value, 64)
		if err != nil || f != f || f > 1e9 || f < -1e9 { // JSON has no NaN and no infinity
			w.fault(n, path, "%q is not a number", n.Value)
			return
		}
		v.SetFloat(f)
	case reflect.Bool:
		switch n.Value {
		case "true":
			v.SetBool(true)
		case "false":
			v.SetBool(false)
		default:
			w.fault(n, path, "%q: want true or false", n.Value)
		}
	default:
		w.fault(n, path, "this key cannot be set here")
	}
}

func fieldNames(t reflect.Type) []string {
	var names []string
	for i := range t.NumField() {
		names = append(names, strings.ToLower(t.Field(i).Name))
	}
	slices.Sort(names)
	return names
}

func joinPath(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// checkMap checks and completes what a client would stumble over. Paths are those of ParseMap.
func checkMap(m *tailcfg.DERPMap) []mapFault {
	var faults []mapFault
	names := map[string]string{} // node name → where
	for _, id := range m.RegionIDs() {
		r := m.Regions[id]
		if r == nil {
			continue
		}
		faults = append(faults, checkRegion(id, r)...)
		for i, n := range r.Nodes {
			if n == nil || n.Name == "" {
				continue
			}
			at := fmt.Sprintf("regions.%d.nodes[%d].name", id, i)
			if first, ok := names[n.Name]; ok {
				faults = append(faults, mapFault{path: at, text: fmt.Sprintf("%q is used by %s as well: names must be unique in the whole map", n.Name, first)})
			} else {
				names[n.Name] = at
			}
		}
	}
	if m.HomeParams != nil {
		for id, score := range m.HomeParams.RegionScore {
			if score < 0 { // tailcfg.DERPHomeParams: positive; 0 and 1 mean no change
				faults = append(faults, mapFault{path: fmt.Sprintf("homeparams.regionscore.%d", id), text: "want a positive number"})
			}
		}
	}
	return faults
}

// checkRegion checks one region and fills in region ids and the name that are missing.
func checkRegion(id int, r *tailcfg.DERPRegion) []mapFault {
	at := fmt.Sprintf("regions.%d", id)
	var faults []mapFault
	bad := func(path, format string, args ...any) {
		faults = append(faults, mapFault{path: path, text: fmt.Sprintf(format, args...)})
	}
	// The legacy form of a peer's home relay carries the id as a port number: "127.3.3.40:900".
	if id < 1 || id > 65535 {
		bad(at, "region id %d: want 1 to 65535", id)
	}
	if r.RegionID == 0 {
		r.RegionID = id
	}
	if r.RegionID != id {
		bad(at+".regionid", "the region id %d is not the key %d above it: make them the same", r.RegionID, id)
	}
	if r.RegionCode == "" {
		bad(at+".regioncode", "missing: want a short code such as \"home\"")
	}
	if r.RegionName == "" {
		r.RegionName = r.RegionCode
	}
	if len(r.Nodes) == 0 {
		bad(at+".nodes", "no nodes: a region needs at least one relay")
	}
	for i, n := range r.Nodes {
		path := fmt.Sprintf("%s.nodes[%d]", at, i)
		if n == nil {
			bad(path, "empty: want a relay with name and hostname")
			continue
		}
		if n.RegionID == 0 {
			n.RegionID = id
		}
		checkNode(n, id, path, bad)
	}
	return faults
}

func checkNode(n *tailcfg.DERPNode, region int, path string, bad func(path, format string, args ...any)) {
	if n.RegionID != region {
		bad(path+".regionid", "%d is not the region %d the node stands in", n.RegionID, region)
	}
	if n.Name == "" {
		bad(path+".name", "missing: want a name that is unique in the map, such as \"%d%c\"", region, 'a')
	}
	switch {
	case n.HostName == "":
		bad(path+".hostname", "missing: want the relay's DNS name or address")
	case len(n.HostName) > 253 || strings.ContainsAny(n.HostName, " \t\r\n/@[]\"\\"):
		bad(path+".hostname", "%q is not a DNS name or address (no scheme, no path, no brackets)", n.HostName)
	}
	checkFamily := func(field, s, family string, is func(netip.Addr) bool) {
		if s == "" || s == "none" {
			return
		}
		if a, err := netip.ParseAddr(s); err != nil || !is(a) || a.Zone() != "" {
			bad(path+"."+field, "%q: want an %s address, or none, or nothing", s, family)
		}
	}
	checkFamily("ipv4", n.IPv4, "IPv4", netip.Addr.Is4)
	checkFamily("ipv6", n.IPv6, "IPv6", netip.Addr.Is6)
	if n.IPv4 == "none" && n.IPv6 == "none" {
		bad(path, "both ipv4 and ipv6 are none: no client could reach it")
	}
	if n.STUNPort < -1 || n.STUNPort > 65535 {
		bad(path+".stunport", "%d: want a port, 0 for 3478, or -1 for no STUN", n.STUNPort)
	}
	if n.DERPPort < 0 || n.DERPPort > 65535 {
		bad(path+".derpport", "%d: want a port, or 0 for 443", n.DERPPort)
	}
	if pin, ok := strings.CutPrefix(n.CertName, pinPrefix); ok {
		// net/tlsdial compares the text, lower case.
		if b, err := hex.DecodeString(pin); err != nil || len(b) != 32 || pin != strings.ToLower(pin) {
			bad(path+".certname", "want %s and 64 hex digits in lower case: the SHA-256 of the certificate", pinPrefix)
		}
	}
}
