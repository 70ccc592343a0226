package api

import (
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/skein-vpn/skein/auth"
)

// The OpenAPI document of /api/v1 is made from the declarations of the operations (operation.go): huma turns their types into schemas,
// and the comments on types and fields are the descriptions (comments.go). Nothing of it is written by hand beside them; the tests hold
// what the server answers against it.

func init() {
	huma.DefaultArrayNullable = false // our lists are never null
}

const schemaPrefix = "#/components/schemas/"

// pathVars say what the variables in paths are.
var pathVars = map[string]string{
	"user":    "id or name of a user",
	"node":    "id, MagicDNS name, address or stable id of a node",
	"new":     "the new name",
	"name":    "name of the attribute, such as custom:tier",
	"prefix":  "id of the API key, which is its part that may be shown, or the key itself",
	"client":  "id of the OAuth client or federated identity",
	"id":      "id of the SSH session, or the URL that the SSH client printed, escaped",
	"version": "number of the version",
	"webhook": "id of the webhook",
	"service": "name of the service, such as svc:web, or without svc:",
}

// nouns say what operations are about.
var nouns = map[string]string{
	"user":        "Users, on the command line namespaces: they own nodes.",
	"node":        "Nodes: the machines of the tailnet.",
	"routes":      "Prefixes that nodes offer to carry, and which of them may.",
	"preauthkey":  "Keys with which nodes join without a person.",
	"apikey":      "Keys for this API.",
	"oauthclient": "OAuth clients and federated identities, which get access tokens.",
	"login":       "Registrations of nodes that wait for a person.",
	"sshcheck":    "SSH sessions that wait to be confirmed.",
	"admin":       "Who signs in on the web pages without an identity provider.",
	"policy":      "Who reaches whom: the policy, its history, what it means.",
	"audit":       "What was changed, by whom.",
	"events":      "What happens, as it happens.",
	"webhook":     "Addresses that are told what happens.",
	"service":     "Services, which several nodes host under one name and address.",
	"settings":    "Settings of the tailnet.",
	"dns":         "What clients are told about names.",
	"derp":        "The relays.",
	"cluster":     "The servers that share the database.",
	"health":      "Whether the server is well.",
	"status":      "How everything is, on one page.",
	"version":     "Which program this is.",
	"auth":        "What waits for a person, as headscale names it.",
	"debug":       "What headscale has for its own tests.",
}

// openAPI describes operations as an OpenAPI document. version is that of the server.
func openAPI(all []operation, version string) *huma.OpenAPI {
	d := &document{registry: huma.NewMapRegistry(schemaPrefix, huma.DefaultSchemaNamer), comments: comments()}
	out := &huma.OpenAPI{
		OpenAPI: "3.1.0",
		Info: &huma.Info{
			Title: "Skein", Version: version,
			Description: "Administration of a tailnet. Keys are in camelCase, ids are decimal strings (numbers are accepted), times are RFC 3339 or null. " +
				"Keys of a request's body that an operation does not know are ignored, parameters that it does not know are refused. " +
				"A failed call has changed nothing. Answers may get further keys in later versions.",
		},
		Servers:  []*huma.Server{{URL: Prefix}},
		Security: []map[string][]string{{"key": {}}},
		Components: &huma.Components{SecuritySchemes: map[string]*huma.SecurityScheme{
			"key":   {Type: "http", Scheme: "bearer", Description: "an API key or an access token; over the unix socket none is needed"},
			"basic": {Type: "http", Scheme: "basic", Description: "the same as the user, with an empty password"},
		}},
	}
	problem := d.registry.Schema(reflect.TypeFor[Problem](), true, "")
	for _, o := range all {
		if tag := o.noun(); !slices.ContainsFunc(out.Tags, func(t *huma.Tag) bool { return t.Name == tag }) {
			out.Tags = append(out.Tags, &huma.Tag{Name: tag, Description: nouns[tag]})
		}
		out.AddOperation(d.operation(o, problem))
	}
	d.finish()
	out.Components.Schemas = d.registry
	return out
}

// document is an OpenAPI document in the making.
type document struct {
	registry huma.Registry
	comments map[string]string
}

func (d *document) operation(o operation, problem *huma.Schema) *huma.Operation {
	out := &huma.Operation{
		Method: o.method, Path: o.path, OperationID: o.id(), Tags: []string{o.noun()},
		Summary:    plainText(o.does),
		Parameters: d.params(o),
		Responses:  map[string]*huma.Response{"200": d.answer(o)},
		Security:   []map[string][]string{{"key": {}}, {"basic": {}}},
	}
	if o.scope != auth.ScopeNone {
		out.Description = "Needs the scope `" + o.scope + "`."
		out.Security = []map[string][]string{{"key": {o.scope}}, {"basic": {o.scope}}}
	}
	if o.hasBody() {
		out.RequestBody = &huma.RequestBody{
			Content:  map[string]*huma.MediaType{"application/json": {Schema: d.registry.Schema(o.in, true, "")}},
			Required: d.needsBody(o.in),
		}
	}
	for _, status := range o.failures() {
		out.Responses[strconv.Itoa(status)] = &huma.Response{
			Description: http.StatusText(status), Content: map[string]*huma.MediaType{"application/problem+json": {Schema: problem}},
		}
	}
	return out
}

// needsBody reports whether a request of type t must have some key.
func (d *document) needsBody(t reflect.Type) bool {
	s := d.registry.Schema(t, false, "")
	return len(s.Required) > 0
}

func (d *document) answer(o operation) *huma.Response {
	media := "application/json"
	if o.stream {
		media = "text/event-stream"
	}
	out := &huma.Response{Description: http.StatusText(http.StatusOK)}
	out.Content = map[string]*huma.MediaType{media: {Schema: d.registry.Schema(o.out, true, "")}}
	if reflect.PointerTo(o.out).Implements(reflect.TypeFor[interface{ header(http.Header) }]()) {
		out.Headers = map[string]*huma.Param{"ETag": {Schema: &huma.Schema{Type: huma.TypeString}, Description: "for If-Match"}}
	}
	return out
}

// params are what o's path and query hold, and the header that it looks at.
func (d *document) params(o operation) (out []*huma.Param) {
	for _, name := range variables(o.path) {
		out = append(out, &huma.Param{Name: name, In: "path", Required: true, Description: pathVars[name], Schema: &huma.Schema{Type: huma.TypeString}})
	}
	for _, p := range paramsOf(o.in) {
		s := huma.SchemaFromField(d.registry, p.field, "")
		s.Nullable = false
		must := p.field.Tag.Get("required") == "true"
		out = append(out, &huma.Param{Name: p.name, In: "query", Description: d.fieldComment(o.in, p.field), Required: must, Schema: s})
	}
	if o.ifMatch {
		out = append(out, &huma.Param{
			Name: "If-Match", In: "header", Schema: &huma.Schema{Type: huma.TypeString},
			Description: "ETag or version of what is to be replaced; if it is something else by now, the call fails with 412",
		})
	}
	return out
}

// finish gives all schemas their descriptions, says what may be null, and leaves them open for more keys.
func (d *document) finish() {
	for name, s := range d.registry.Map() {
		t := d.registry.TypeFromRef(schemaPrefix + name)
		s.AdditionalProperties = nil
		if t == nil || t.Kind() != reflect.Struct {
			continue
		}
		s.Description = d.comments[t.Name()]
		for _, f := range reflect.VisibleFields(t) {
			key, opts, _ := strings.Cut(f.Tag.Get("json"), ",")
			p := s.Properties[key]
			if p == nil || f.Anonymous {
				continue
			}
			text := d.fieldComment(t, f)
			if f.Type.Kind() == reflect.Pointer && p.Ref != "" && !strings.Contains(opts, "omit") {
				p = &huma.Schema{AnyOf: []*huma.Schema{{Ref: p.Ref}, {Type: "null"}}}
				s.Properties[key] = p
			}
			if text != "" {
				p.Description = text
			}
		}
	}
}

// fieldComment is the comment on a field of t, which may stand in an embedded type.
func (d *document) fieldComment(t reflect.Type, f reflect.StructField) string {
	for _, i := range f.Index[:len(f.Index)-1] {
		t = t.Field(i).Type
		if t.Kind() == reflect.Pointer {
			t = t.Elem()
		}
	}
	return d.comments[t.Name()+"."+f.Name]
}

// Schema implements huma.SchemaProvider.
func (ID) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeString, Pattern: `^-?[0-9]+$`}
}

// Schema implements huma.SchemaProvider.
func (Ref) Schema(huma.Registry) *huma.Schema { return &huma.Schema{Type: huma.TypeString} }

// Schema implements huma.SchemaProvider: what may be set is what DNS shows, but for the records.
func (ChangeDNSRequest) Schema(r huma.Registry) *huma.Schema {
	s := &huma.Schema{Type: huma.TypeObject, Properties: map[string]*huma.Schema{}, Description: comments()["ChangeDNSRequest"], AdditionalProperties: false}
	all := huma.SchemaFromType(r, reflect.TypeFor[DNS]())
	for _, part := range DNSParts {
		p := *all.Properties[part]
		p.Nullable = true
		s.Properties[part] = &p
	}
	s.Properties["nameservers"].Examples = []any{[]any{map[string]any{"addr": "9.9.9.9"}}}
	return s
}

var (
	variable  = regexp.MustCompile(`\{([a-z]+)\}`)
	codeMarks = strings.NewReplacer("`", "", "[", "", "](#events)", "")
)

func variables(path string) (out []string) {
	for _, m := range variable.FindAllStringSubmatch(path, -1) {
		out = append(out, m[1])
	}
	return out
}

// plainText is a line of Markdown as text.
func plainText(markdown string) string { return codeMarks.Replace(markdown) }

// noun is what an operation is about: the first element of its path.
func (o operation) noun() string {
	noun, _, _ := strings.Cut(strings.TrimPrefix(o.path, "/"), "/")
	return noun
}

// id is the operation's name in programs that are made from the document: getNode, postNodeExpire, deleteNodeByNode.
func (o operation) id() string {
	var b strings.Builder
	b.WriteString(strings.ToLower(o.method))
	parts := strings.FieldsFunc(o.path, func(c rune) bool { return c == '/' || c == '_' })
	for i, p := range parts {
		name := strings.Trim(p, "{}")
		if name != p {
			if i < len(parts)-1 {
				continue
			}
			b.WriteString("By")
		}
		b.WriteString(strings.ToUpper(name[:1]) + name[1:])
	}
	return b.String()
}

// failures are the statuses with which o may fail.
func (o operation) failures() []int {
	out := append([]int{
		http.StatusBadRequest, http.StatusUnauthorized, http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusServiceUnavailable,
	}, o.fails...)
	if o.scope != auth.ScopeNone {
		out = append(out, http.StatusForbidden)
	}
	if o.names() {
		out = append(out, http.StatusNotFound)
	}
	if o.method != http.MethodGet {
		out = append(out, http.StatusConflict)
	}
	if o.hasBody() {
		out = append(out, http.StatusRequestEntityTooLarge)
	}
	if o.ifMatch {
		out = append(out, http.StatusPreconditionFailed)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// names reports whether a request names something that may not exist.
func (o operation) names() bool {
	if len(variables(o.path)) > 0 {
		return true
	}
	if o.in.Kind() != reflect.Struct {
		return false
	}
	return slices.ContainsFunc(reflect.VisibleFields(o.in), func(f reflect.StructField) bool {
		return f.Type == reflect.TypeFor[Ref]() || f.Type == reflect.TypeFor[ID]()
	})
}

// example is a body for o as one might send it: the keys that are required, and those for which a value is suggested.
func example(r huma.Registry, s *huma.Schema) json.RawMessage {
	if s.Ref != "" {
		s = r.SchemaFromRef(s.Ref)
	}
	body := map[string]any{}
	for name, p := range s.Properties {
		if len(p.Examples) > 0 {
			body[name] = p.Examples[0]
		} else if slices.Contains(s.Required, name) {
			body[name] = sample(p)
		}
	}
	b, err := json.Marshal(body)
	if err != nil {
		panic(fmt.Sprintf("an example of %v: %v", s.Description, err))
	}
	return b
}

// sample is some value that fits s.
func sample(s *huma.Schema) any {
	switch {
	case len(s.Enum) > 0:
		return s.Enum[0]
	case s.Type == huma.TypeBoolean:
		return true
	case s.Type == huma.TypeInteger, s.Type == huma.TypeNumber:
		return 1
	case s.Type == huma.TypeArray:
		return []any{sample(s.Items)}
	case s.Type == huma.TypeObject:
		return map[string]any{}
	case s.Format == "date-time":
		return time.Date(2030, 1, 31, 12, 0, 0, 0, time.UTC)
	case s.Pattern != "":
		return "1"
	}
	return "text"
}
