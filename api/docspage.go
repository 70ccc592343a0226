package api

import (
	"bytes"
	"crypto/sha256"
	_ "embed" // the page
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"html/template"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/tailnet"
)

// Where the API describes itself, to everybody: a document for programs and a page for people. The page needs no other file and no
// script.
const (
	SpecPath = Prefix + "/openapi.json"
	DocsPath = Prefix + "/docs"
)

//go:embed docs.html
var docsHTML string

// described answers SpecPath and DocsPath, which need no key, and leaves everything else to next.
func (s *server) described(next http.Handler) http.Handler {
	pages := sync.OnceValue(func() map[string]page {
		doc := openAPI(s.operations(), s.Version)
		b, err := json.MarshalIndent(doc, "", "  ")
		if err != nil {
			panic(fmt.Sprintf("the OpenAPI document cannot be written as JSON: %v", err))
		}
		return map[string]page{
			SpecPath: newPage("application/json", append(b, '\n'), "default-src 'none'"),
			DocsPath: docsPage(s.operations(), doc),
		}
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path != SpecPath && r.URL.Path != DocsPath:
			next.ServeHTTP(w, r)
		case r.Method != http.MethodGet && r.Method != http.MethodHead:
			w.Header().Set("Allow", "GET, HEAD")
			s.writeError(w, r, &methodError{method: r.Method, allowed: []string{http.MethodGet, http.MethodHead}})
		default:
			pages()[r.URL.Path].serve(w, r)
		}
	})
}

// page is something that stays the same as long as the program runs.
type page struct {
	contentType, policy, etag string
	body                      []byte
}

func newPage(contentType string, body []byte, policy string) page {
	sum := sha256.Sum256(body)
	return page{contentType: contentType, policy: policy, etag: `"` + hex.EncodeToString(sum[:16]) + `"`, body: body}
}

func (p page) serve(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Type", p.contentType)
	h.Set("Content-Security-Policy", p.policy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cache-Control", "no-cache")
	h.Set("ETag", p.etag)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(p.body))
}

// What docs.html is filled with.
type (
	docsData struct {
		Version  string
		Nouns    []*docsNoun
		Types    []docsType
		Failures []docsFailure
	}
	docsNoun struct {
		Name, Text string
		Operations []docsOperation
	}
	docsOperation struct {
		ID, Method, Path, Scope string
		Does                    template.HTML
		Params                  []docsField
		Body, Answer            template.HTML // links to types; empty: none
		Stream                  bool
		Statuses                string
		Curl                    string
	}
	docsType struct {
		Name, Text string
		Fields     []docsField
	}
	docsField struct {
		Name, In, Text string
		Type           template.HTML
		Must           bool
	}
	docsFailure struct {
		Status      int
		Reason, Why string
	}
)

// docsPage is doc, the description of all, for people.
func docsPage(all []operation, doc *huma.OpenAPI) page {
	data := docsData{Version: doc.Info.Version, Failures: docsFailures()}
	for _, o := range all {
		i := slices.IndexFunc(data.Nouns, func(n *docsNoun) bool { return n.Name == o.noun() })
		if i < 0 {
			i = len(data.Nouns)
			data.Nouns = append(data.Nouns, &docsNoun{Name: o.noun(), Text: nouns[o.noun()]})
		}
		data.Nouns[i].Operations = append(data.Nouns[i].Operations, docsOf(o, doc))
	}
	schemas := doc.Components.Schemas.Map()
	for _, name := range sortedKeys(schemas) {
		data.Types = append(data.Types, docsType{Name: name, Text: schemas[name].Description, Fields: docsFields(schemas[name])})
	}
	t := template.Must(template.New("docs").Parse(docsHTML))
	var b bytes.Buffer
	if err := t.Execute(&b, data); err != nil {
		panic(err)
	}
	style := regexp.MustCompile(`(?s)<style>(.*?)</style>`).FindSubmatch(b.Bytes())
	sum := sha256.Sum256(style[1])
	policy := "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
	return newPage("text/html; charset=utf-8", b.Bytes(), policy)
}

func docsOf(o operation, doc *huma.OpenAPI) docsOperation {
	in := operationAt(doc, o)
	out := docsOperation{ID: o.id(), Method: o.method, Path: o.path, Scope: o.scope, Does: codeHTML(o.does), Stream: o.stream, Curl: curl(o, doc, in)}
	for _, p := range in.Parameters {
		out.Params = append(out.Params, docsField{Name: p.Name, In: p.In, Text: p.Description, Type: typeHTML(p.Schema), Must: p.Required})
	}
	if in.RequestBody != nil {
		out.Body = typeHTML(in.RequestBody.Content["application/json"].Schema)
	}
	for _, c := range in.Responses["200"].Content {
		out.Answer = typeHTML(c.Schema)
	}
	var statuses []string
	for _, s := range o.failures() {
		statuses = append(statuses, strconv.Itoa(s))
	}
	out.Statuses = strings.Join(statuses, ", ")
	return out
}

// operationAt is o in doc.
func operationAt(doc *huma.OpenAPI, o operation) *huma.Operation {
	at := doc.Paths[o.path]
	return map[string]*huma.Operation{
		http.MethodGet: at.Get, http.MethodPost: at.Post, http.MethodPut: at.Put, http.MethodPatch: at.Patch, http.MethodDelete: at.Delete,
	}[o.method]
}

// curl calls o as one would by hand.
func curl(o operation, doc *huma.OpenAPI, in *huma.Operation) string {
	path := variable.ReplaceAllStringFunc(o.path, func(v string) string { return strings.ToUpper(strings.Trim(v, "{}")) })
	var b strings.Builder
	b.WriteString(`curl -H "Authorization: Bearer $SKEIN_API_KEY"`)
	if o.stream {
		b.WriteString(" -N")
	}
	if o.method != http.MethodGet && (o.method != http.MethodPost || in.RequestBody == nil) {
		b.WriteString(" -X " + o.method)
	}
	if in.RequestBody != nil {
		body := example(doc.Components.Schemas, in.RequestBody.Content["application/json"].Schema)
		b.WriteString(" \\\n  -d '" + strings.ReplaceAll(string(body), "'", `'\''`) + "'")
	}
	b.WriteString(" \\\n  \"$SKEIN_SERVER" + Prefix + path)
	sep := "?"
	for _, p := range in.Parameters {
		if p.In == "query" && len(p.Schema.Examples) > 0 && in.RequestBody == nil {
			fmt.Fprintf(&b, "%s%s=%v", sep, p.Name, p.Schema.Examples[0])
			sep = "&"
		}
	}
	b.WriteString(`"`)
	return b.String()
}

func docsFields(s *huma.Schema) (out []docsField) {
	for _, name := range sortedKeys(s.Properties) {
		p := s.Properties[name]
		out = append(out, docsField{Name: name, Type: typeHTML(p), Text: p.Description, Must: slices.Contains(s.Required, name)})
	}
	return out
}

// typeHTML is the type of s in words, with links to others.
func typeHTML(s *huma.Schema) template.HTML {
	escape := template.HTMLEscapeString
	text := ""
	switch {
	case s.Ref != "":
		name := escape(strings.TrimPrefix(s.Ref, schemaPrefix))
		text = `<a href="#type-` + name + `">` + name + `</a>`
	case len(s.AnyOf) == 2:
		return typeHTML(s.AnyOf[0]) + " or null"
	case len(s.Enum) > 0:
		for i, e := range s.Enum {
			if i > 0 {
				text += ", "
			}
			text += "<code>" + escape(e.(string)) + "</code>"
		}
		text = "one of " + text
	case s.Type == huma.TypeArray:
		text = "list of " + string(typeHTML(s.Items))
	case s.Type == huma.TypeObject:
		text = "object"
		if of, ok := s.AdditionalProperties.(*huma.Schema); ok {
			text = "object of " + string(typeHTML(of))
		}
	case s.Type == "":
		text = "anything"
	case s.Format == "date-time":
		text = "time"
	case s.Pattern != "":
		text = "id"
	default:
		text = escape(s.Type)
	}
	if s.Nullable {
		text += " or null"
	}
	return template.HTML(text) //nolint:gosec // made of our own names, escaped
}

var codeSpan = regexp.MustCompile("`([^`]*)`")

// codeHTML is a line of ours in Markdown with its code marked as such, without its links.
func codeHTML(markdown string) template.HTML {
	text := template.HTMLEscapeString(strings.NewReplacer("[", "", "](#events)", "").Replace(markdown))
	return template.HTML(codeSpan.ReplaceAllString(text, "<code>$1</code>")) //nolint:gosec // escaped
}

// docsFailures are the statuses of failures, each once.
func docsFailures() (out []docsFailure) {
	for code, k := range kinds {
		out = append(out, docsFailure{k.status, string(code), k.title})
	}
	out = append(out,
		docsFailure{http.StatusMethodNotAllowed, string(tailnet.Invalid), "Wrong method; Allow says which are right"},
		docsFailure{http.StatusPreconditionFailed, string(tailnet.Conflict), "It has changed meanwhile (If-Match)"},
		docsFailure{http.StatusRequestEntityTooLarge, string(tailnet.Invalid), "The request is too large"})
	slices.SortFunc(out, func(a, b docsFailure) int { return a.Status - b.Status })
	return out
}

// Anyone is what asks for no scope.
func (o docsOperation) Anyone() bool { return o.Scope == auth.ScopeNone }

func sortedKeys[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}
