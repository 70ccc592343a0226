package api

import (
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/skein-vpn/skein/tailnet"
)

// How an operation of /api/v1 is declared, which is the only place where it is: in a list of its noun's file, as
//
//	post("/user/{user}/role", auth.ScopeUsers, "gives a user a role, not above one's own", s.setRole)
//
// with a handler of the form
//
//	func (s *server) setRole(r *http.Request, req *SetRoleRequest) (*UserAnswer, error)
//
// Method, path and scope are checked before the handler runs; the two types say what the request may hold and what is answered, and
// with the comments on their fields they are what the OpenAPI document says (openapi.go). A new operation is added to docs/api.md by
// `go test ./api -run Documented -update`, a new noun to nouns in openapi.go, and a new file with types to the list in comments.go.
//
// A field of the request type with the tag query:"name" is read from behind the "?", others from the JSON of the body, and one with
// both tags from the body if it is there. GET and DELETE have no body.

// operation is one operation of /api/v1.
type operation struct {
	method, path string
	scope        string // that it asks for (auth.Principal.Allow)
	does         string // in the third person, without a full stop
	in, out      reflect.Type
	stream       bool  // what is answered are server-sent events, each with an out
	ifMatch      bool  // it looks at If-Match
	fails        []int // statuses that do not follow from the rest (failures)
	do           handler
}

// streaming is o with an answer that goes on: server-sent events, the data of each of which is of the type event.
func (o operation) streaming(event reflect.Type) operation {
	o.out, o.stream = event, true
	return o
}

// Each of these declares an operation.
func get[In, Out any](path, scope, does string, do func(*http.Request, *In) (*Out, error)) operation {
	return declare(http.MethodGet, path, scope, does, do)
}

func post[In, Out any](path, scope, does string, do func(*http.Request, *In) (*Out, error)) operation {
	return declare(http.MethodPost, path, scope, does, do)
}

func put[In, Out any](path, scope, does string, do func(*http.Request, *In) (*Out, error)) operation {
	return declare(http.MethodPut, path, scope, does, do)
}

func patch[In, Out any](path, scope, does string, do func(*http.Request, *In) (*Out, error)) operation {
	return declare(http.MethodPatch, path, scope, does, do)
}

func del[In, Out any](path, scope, does string, do func(*http.Request, *In) (*Out, error)) operation {
	return declare(http.MethodDelete, path, scope, does, do)
}

func declare[In, Out any](method, path, scope, does string, do func(*http.Request, *In) (*Out, error)) operation {
	o := operation{method: method, path: path, scope: scope, does: does, in: reflect.TypeFor[In](), out: reflect.TypeFor[Out]()}
	params, body := paramsOf(o.in), o.hasBody()
	o.do = func(r *http.Request) (any, error) {
		in := new(In)
		if err := readQuery(r, params, reflect.ValueOf(in).Elem()); err != nil {
			return nil, err
		}
		if body {
			if err := readJSON(r, in); err != nil {
				return nil, err
			}
		}
		return do(r, in)
	}
	return o
}

// withIfMatch is o as an operation that looks at If-Match.
func (o operation) withIfMatch() operation {
	o.ifMatch = true
	return o
}

// failing is o with further statuses with which it may fail (failures).
func (o operation) failing(statuses ...int) operation {
	o.fails = statuses
	return o
}

// hasBody reports whether the operation reads JSON.
func (o operation) hasBody() bool {
	if o.method == http.MethodGet || o.method == http.MethodDelete {
		return false
	}
	if o.in.Kind() != reflect.Struct {
		return true
	}
	return slices.ContainsFunc(reflect.VisibleFields(o.in), func(f reflect.StructField) bool {
		name := f.Tag.Get("json")
		return name != "" && name != "-"
	})
}

// table is the operations by path, as they are mounted.
func table(all []operation) (out []route) {
	at := map[string]int{}
	for _, o := range all {
		i, ok := at[o.path]
		if !ok {
			i = len(out)
			at[o.path] = i
			out = append(out, route{o.path, ops{}})
		}
		out[i].methods[o.method] = op{o.scope, o.do}
	}
	return out
}

// param is a parameter behind the "?".
type param struct {
	name     string // in camelCase
	field    reflect.StructField
	min, max int64    // of a number; 0, 0: any
	enum     []string // what a text can be; nil: anything
}

// paramsOf are the parameters of a request type.
func paramsOf(t reflect.Type) (out []param) {
	if t.Kind() != reflect.Struct {
		return nil
	}
	for _, f := range reflect.VisibleFields(t) {
		if name := f.Tag.Get("query"); name != "" {
			p := param{name: name, field: f}
			p.min, _ = strconv.ParseInt(f.Tag.Get("minimum"), 10, 64)
			p.max, _ = strconv.ParseInt(f.Tag.Get("maximum"), 10, 64)
			if e := f.Tag.Get("enum"); e != "" {
				p.enum = strings.Split(e, ",")
			}
			out = append(out, p)
		}
	}
	return out
}

// readQuery sets the fields of v that r's query names. Every parameter may be written as grpc-gateway does, too: pre_auth_key for
// preAuthKey. An empty one is as good as none. One that the operation does not know is an error: a filter that is misspelt would
// choose everything.
func readQuery(r *http.Request, params []param, v reflect.Value) error {
	given := r.URL.Query()
	for _, p := range params {
		for _, name := range []string{p.name, snake(p.name)} {
			vals := slices.DeleteFunc(given[name], func(s string) bool { return s == "" })
			if len(vals) > 0 {
				if err := p.set(v.FieldByIndex(p.field.Index), vals); err != nil {
					return err
				}
			}
			delete(given, name)
		}
	}
	for name := range given {
		return unknownParam(name, params)
	}
	return nil
}

func unknownParam(name string, params []param) error {
	if len(params) == 0 {
		return tailnet.Errorf(tailnet.Invalid, "the parameter %q is not known: there are none here", clip(name))
	}
	names := make([]string, 0, len(params))
	for _, p := range params {
		names = append(names, p.name)
	}
	return tailnet.Errorf(tailnet.Invalid, "the parameter %q is not known: use %s", clip(name), strings.Join(names, ", "))
}

// set reads vals, of which there is at least one, into the field f.
func (p param) set(f reflect.Value, vals []string) error {
	text := vals[0]
	switch f.Addr().Interface().(type) {
	case *[]string:
		f.Set(reflect.ValueOf(vals))
		return nil
	case *ID:
		id, ok := Ref(text).id()
		if !ok {
			if p.name != "id" {
				return tailnet.Errorf(tailnet.Invalid, "%s=%q is not a whole number", p.name, clip(text))
			}
			return tailnet.Errorf(tailnet.Invalid, "id=%q is not an id: a whole number is asked for", clip(text))
		}
		f.SetInt(id)
		return nil
	case *time.Time, **time.Time:
		t, err := ParseTime(text)
		if err != nil {
			return tailnet.Errorf(tailnet.Invalid, "%s=%w", p.name, err)
		}
		if f.Kind() == reflect.Pointer {
			f.Set(reflect.ValueOf(&t))
		} else {
			f.Set(reflect.ValueOf(t))
		}
		return nil
	}
	if f.Kind() == reflect.Pointer {
		f.Set(reflect.New(f.Type().Elem()))
		f = f.Elem()
	}
	switch f.Kind() {
	case reflect.String:
		text = strings.TrimSpace(text)
		if p.enum != nil && !slices.Contains(p.enum, text) {
			return tailnet.Errorf(tailnet.Invalid, "%s=%q is none of %s", p.name, clip(text), strings.Join(p.enum, ", "))
		}
		f.SetString(text)
	case reflect.Bool:
		if text != "true" && text != "false" {
			return tailnet.Errorf(tailnet.Invalid, "%s=%q is neither true nor false", p.name, clip(text))
		}
		f.SetBool(text == "true")
	case reflect.Int, reflect.Int64:
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil || p.max > 0 && (n < p.min || n > p.max) {
			if p.max > 0 {
				return tailnet.Errorf(tailnet.Invalid, "%s=%q is not a number from %d to %d", p.name, clip(text), p.min, p.max)
			}
			return tailnet.Errorf(tailnet.Invalid, "%s=%q is not a whole number", p.name, clip(text))
		}
		f.SetInt(n)
	default:
		panic(fmt.Sprintf("the parameter %s is of type %s, which cannot be read from a query", p.name, f.Type()))
	}
	return nil
}

// snake is camelCase as camel_case.
func snake(camel string) string {
	var out strings.Builder
	for _, c := range camel {
		if 'A' <= c && c <= 'Z' {
			out.WriteByte('_')
			c += 'a' - 'A'
		}
		out.WriteRune(c)
	}
	return out.String()
}
