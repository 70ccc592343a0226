package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// spec is the OpenAPI document as somebody else reads it: as JSON, with another library than the one that made it.
type spec struct {
	doc     map[string]any
	schemas *jsonschema.Compiler // of strict, a copy of doc in which no object has keys that it does not tell

	mu       sync.Mutex
	compiled map[string]*jsonschema.Schema
	seen     map[string]map[int]bool // statuses that operations have answered with, by "METHOD /path"
}

func readSpec(t testing.TB, document []byte) *spec {
	t.Helper()
	sp := &spec{compiled: map[string]*jsonschema.Schema{}, seen: map[string]map[int]bool{}}
	if err := json.Unmarshal(document, &sp.doc); err != nil {
		t.Fatal(err)
	}
	strict, err := jsonschema.UnmarshalJSON(bytes.NewReader(document))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range at(strict, "components", "schemas").(map[string]any) {
		if s := s.(map[string]any); s["properties"] != nil {
			s["additionalProperties"] = false
		}
	}
	sp.schemas = jsonschema.NewCompiler()
	sp.schemas.DefaultDraft(jsonschema.Draft2020)
	sp.schemas.AssertFormat()
	if err := sp.schemas.AddResource("openapi.json", strict); err != nil {
		t.Fatal(err)
	}
	return sp
}

// specOf is the document that a server with these options tells.
func specOf(t testing.TB, o Options) *spec {
	t.Helper()
	rec := httptest.NewRecorder()
	NewServer(o).ServeHTTP(rec, httptest.NewRequest("GET", SpecPath, nil))
	return readSpec(t, rec.Body.Bytes())
}

// at is what stands in v under these keys; nil if there is nothing.
func at(v any, keys ...string) any {
	for _, k := range keys {
		m, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = m[k]
	}
	return v
}

// schema is what stands in the document at these keys as a schema.
func (sp *spec) schema(keys ...string) (*jsonschema.Schema, error) {
	pointer := "openapi.json#"
	for _, k := range keys {
		pointer += "/" + url.PathEscape(strings.NewReplacer("~", "~0", "/", "~1").Replace(k))
	}
	if s := sp.compiled[pointer]; s != nil {
		return s, nil
	}
	s, err := sp.schemas.Compile(pointer)
	if err == nil {
		sp.compiled[pointer] = s
	}
	return s, err
}

// path is the path of the document that a request's matches; empty: none. One without variables goes before others.
func (sp *spec) path(method, escaped string) string {
	var found string
	for p, methods := range sp.doc["paths"].(map[string]any) {
		re := regexp.MustCompile("^" + Prefix + regexp.MustCompile(`\\\{[a-z]+\\\}`).ReplaceAllString(regexp.QuoteMeta(p), "[^/]+") + "$")
		if at(methods, method) != nil && re.MatchString(escaped) && (found == "" || strings.Count(p, "{") < strings.Count(found, "{")) {
			found = p
		}
	}
	return found
}

// holds says what an answer has that the document does not tell; nil if it is as it should be. Requests to nowhere must be answered
// with a problem, too.
func (sp *spec) holds(method, escaped string, status int, header http.Header, body []byte) error {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	media, _, err := mime.ParseMediaType(header.Get("Content-Type"))
	if err != nil {
		return fmt.Errorf("Content-Type: %w", err)
	}
	m := strings.ToLower(method)
	p := sp.path(m, escaped)
	keys := []string{"components", "schemas", "Problem"}
	if at(sp.doc, "paths", p, m) == nil {
		if status != http.StatusNotFound && status != http.StatusMethodNotAllowed && status != http.StatusUnauthorized || media != "application/problem+json" {
			return fmt.Errorf("%d %s, and there is no such operation", status, media)
		}
	} else {
		op := method + " " + p
		if sp.seen[op] == nil {
			sp.seen[op] = map[int]bool{}
		}
		sp.seen[op][status] = true
		keys = []string{"paths", p, m, "responses", fmt.Sprint(status), "content", media, "schema"}
		if at(sp.doc, keys...) == nil {
			return fmt.Errorf("%s answers with %d %s, which the document does not tell", op, status, media)
		}
	}
	if media == "text/event-stream" {
		return nil
	}
	s, err := sp.schema(keys...)
	if err != nil {
		return err
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("the answer is not JSON: %w: %.200s", err, body)
	}
	if err := s.Validate(v); err != nil {
		return fmt.Errorf("%s %s: %d %.600s\n%w", method, escaped, status, body, err)
	}
	return nil
}

// fits says what a request's body has that the document does not tell.
func (sp *spec) fits(method, path string, body []byte) error {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	s, err := sp.schema("paths", path, strings.ToLower(method), "requestBody", "content", "application/json", "schema")
	if err != nil {
		return err
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(body))
	if err != nil {
		return err
	}
	return s.Validate(v)
}

// tell answers by h and holds every answer against the document: so all tests of this package do.
func (sp *spec) tell(t testing.TB, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		escaped := r.URL.EscapedPath()
		if escaped == SpecPath || escaped == DocsPath || strings.HasPrefix(escaped, PrefixV2) || r.Method == http.MethodHead {
			h.ServeHTTP(w, r)
			return
		}
		c := &copied{ResponseWriter: w, status: http.StatusOK}
		h.ServeHTTP(c, r)
		if err := sp.holds(r.Method, escaped, c.status, w.Header(), c.body.Bytes()); err != nil {
			t.Errorf("%s %s: %v", r.Method, r.URL, err)
		}
	})
}

// copied keeps what is answered.
type copied struct {
	http.ResponseWriter
	status int
	body   bytes.Buffer
}

func (c *copied) WriteHeader(status int) {
	c.status = status
	c.ResponseWriter.WriteHeader(status)
}

func (c *copied) Write(b []byte) (int, error) {
	c.body.Write(b)
	return c.ResponseWriter.Write(b)
}

func (c *copied) Unwrap() http.ResponseWriter { return c.ResponseWriter }

// Flush is what streams ask for.
func (c *copied) Flush() { _ = http.NewResponseController(c.ResponseWriter).Flush() }

// page is one of the two pages, from behind the gate without a key.
func (w *world) page(path string) *httptest.ResponseRecorder {
	w.Helper()
	rec := httptest.NewRecorder()
	w.behindGate().ServeHTTP(rec, httptest.NewRequest("GET", path, nil))
	if rec.Code != 200 {
		w.Fatalf("%s: %d %s", path, rec.Code, rec.Body)
	}
	return rec
}

// The document is complete: everything has a name and says what it is, every schema can be read, and nothing points nowhere.
func TestOpenAPIDocument(t *testing.T) {
	w := newWorld(t)
	rec := w.page(SpecPath)
	sp := readSpec(t, rec.Body.Bytes())
	if v := sp.doc["openapi"]; v != "3.1.0" || rec.Header().Get("Content-Type") != "application/json" || at(sp.doc, "info", "version") != "1.2.3" {
		t.Errorf("OpenAPI %v, %v, %v", v, rec.Header(), sp.doc["info"])
	}
	ids := map[string]bool{}
	ops := w.ops()
	for _, o := range ops {
		m := strings.ToLower(o.method)
		in := at(sp.doc, "paths", o.path, m)
		id, _ := at(in, "operationId").(string)
		if id == "" || ids[id] || at(in, "summary") == "" || nouns[o.noun()] == "" {
			t.Errorf("%s %s: id %q, summary %q, noun %q", o.method, o.path, id, at(in, "summary"), nouns[o.noun()])
		}
		ids[id] = true
		params, _ := at(in, "parameters").([]any)
		for _, p := range params {
			if at(p, "in") != "query" && at(p, "description") == nil {
				t.Errorf("%s %s: %v says nothing of itself", o.method, o.path, at(p, "name"))
			}
		}
		if _, err := sp.schema("paths", o.path, m, "responses", "200", "content", map[bool]string{true: "text/event-stream", false: "application/json"}[o.stream], "schema"); err != nil {
			t.Error(err)
		}
		if o.scope != "" && !strings.Contains(fmt.Sprint(at(in, "security")), o.scope) {
			t.Errorf("%s %s does not tell its scope", o.method, o.path)
		}
	}
	n := 0
	for _, item := range sp.doc["paths"].(map[string]any) {
		n += len(item.(map[string]any))
	}
	if n != len(ops) {
		t.Errorf("%d operations in the document, %d in the server", n, len(ops))
	}
	for name, s := range at(sp.doc, "components", "schemas").(map[string]any) {
		if at(s, "description") == "" || at(s, "description") == nil && !strings.HasPrefix(name, "DERP") && name != "Resolver" {
			t.Errorf("the type %s says nothing of itself: is its file in comments.go?", name)
		}
		if _, err := sp.schema("components", "schemas", name); err != nil {
			t.Error(err)
		}
	}
	// What the API is known for: null is told where it can come, unknown keys are not forbidden, and no $schema is in the way.
	for _, part := range []string{`"additionalProperties": false`, `"$schema"`} {
		if schemas, _, _ := strings.Cut(rec.Body.String(), `"ChangeDNSRequest"`); strings.Count(schemas, part) > 1 {
			t.Errorf("the document has %s", part)
		}
	}
	if u := fmt.Sprint(at(sp.doc, "components", "schemas", "Node", "properties", "preAuthKey", "anyOf")); !strings.Contains(u, "null") {
		t.Errorf("a node's preAuthKey is never null: %s", u)
	}
}

// The examples of bodies in the document are such that the operations understand them.
func TestExamplesAreUnderstood(t *testing.T) {
	w := seed(t)
	doc := openAPI(w.ops(), "")
	sp := readSpec(t, w.page(SpecPath).Body.Bytes())
	for _, o := range w.ops() {
		if !o.hasBody() {
			continue
		}
		body := example(doc.Components.Schemas, operationAt(doc, o).RequestBody.Content["application/json"].Schema)
		if err := sp.fits(o.method, o.path, body); err != nil {
			t.Errorf("%s %s: %s: %v", o.method, o.path, body, err)
		}
		path := variable.ReplaceAllStringFunc(o.path, func(v string) string {
			return map[string]string{"{node}": "2", "{user}": "junyao", "{name}": "custom:tier", "{new}": "new"}[v]
		})
		// What the example names may not exist here, and the webhooks are not at work; but it is not misunderstood.
		if status, answer := w.call(o.method, Prefix+path, string(body)); status == 400 && !strings.Contains(answer, "waits under this key") {
			t.Errorf("%s %s: %s: %s", o.method, o.path, body, answer)
		}
	}
}

// The two pages are there for everybody, change only with the program, and load nothing.
func TestDocsPage(t *testing.T) {
	w := newWorld(t)
	rec := w.page(DocsPath)
	body := rec.Body.String()
	for _, o := range w.ops() {
		if !strings.Contains(body, `id="`+o.id()+`"`) || !strings.Contains(body, "<code>"+o.path+"</code>") {
			t.Errorf("the page does not have %s %s", o.method, o.path)
		}
	}
	var ids, links []string
	for _, m := range regexp.MustCompile(` id="([^"]+)"`).FindAllStringSubmatch(body, -1) {
		if slices.Contains(ids, m[1]) {
			t.Errorf("the id %s is there twice", m[1])
		}
		ids = append(ids, m[1])
	}
	for _, m := range regexp.MustCompile(`href="#([^"]+)"`).FindAllStringSubmatch(body, -1) {
		links = append(links, m[1])
	}
	for _, l := range links {
		if !slices.Contains(ids, l) {
			t.Errorf("a link leads to #%s, which is not there", l)
		}
	}
	if len(links) < 100 || strings.Contains(body, "<script") || regexp.MustCompile(`(src|href)="?https?:`).MatchString(body) {
		t.Errorf("%d links, or something is loaded", len(links))
	}
	csp := rec.Header().Get("Content-Security-Policy")
	if !strings.HasPrefix(csp, "default-src 'none'") || strings.Contains(csp, "unsafe") || !strings.Contains(csp, "style-src 'sha256-") {
		t.Errorf("policy %q", csp)
	}
	for _, path := range []string{DocsPath, SpecPath} {
		first := w.page(path)
		again := httptest.NewRequest("GET", path, nil)
		again.Header.Set("If-None-Match", first.Header().Get("ETag"))
		rec := httptest.NewRecorder()
		w.handler.ServeHTTP(rec, again)
		if rec.Code != http.StatusNotModified {
			t.Errorf("%s again: %d", path, rec.Code)
		}
		head := httptest.NewRecorder()
		w.handler.ServeHTTP(head, httptest.NewRequest("HEAD", path, nil))
		if n, _ := io.Copy(io.Discard, head.Result().Body); head.Code != 200 || n != 0 {
			t.Errorf("HEAD %s: %d, %d bytes", path, head.Code, n)
		}
		if status, body := w.call("POST", path, ""); status != 405 || !strings.Contains(body, "only GET, HEAD") {
			t.Errorf("POST %s: %d %s", path, status, body)
		}
	}
}
