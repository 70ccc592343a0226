package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/skein-vpn/skein/tailnet"
)

// ID is an id as grpc-gateway writes 64-bit numbers: a decimal string. A number is read as well.
type ID int64

func (id ID) String() string { return strconv.FormatInt(int64(id), 10) }

func (id ID) MarshalJSON() ([]byte, error) { return []byte(`"` + id.String() + `"`), nil }

func (id *ID) UnmarshalJSON(b []byte) error {
	var r Ref
	if err := r.UnmarshalJSON(b); err != nil {
		return err
	}
	n, err := strconv.ParseInt(string(r), 10, 64)
	if err != nil && r != "" {
		return tailnet.Errorf(tailnet.Invalid, "%q is not an id: a whole number is asked for", clip(string(r)))
	}
	*id = ID(n)
	return nil
}

// Ref names something by its id or by its name. In JSON it may be a string or a whole number; null and absent are "".
type Ref string

func (r *Ref) UnmarshalJSON(b []byte) error {
	s := string(b)
	if s == "null" {
		*r = ""
		return nil
	}
	if strings.HasPrefix(s, `"`) {
		var t string
		if err := json.Unmarshal(b, &t); err != nil {
			return err
		}
		*r = Ref(strings.TrimSpace(t))
		return nil
	}
	n, err := strconv.ParseUint(s, 10, 63)
	if err != nil {
		return tailnet.Errorf(tailnet.Invalid, "%s is neither an id nor a name", clip(s))
	}
	*r = Ref(strconv.FormatUint(n, 10))
	return nil
}

// id is the reference as an id, and whether it is one.
func (r Ref) id() (int64, bool) {
	n, err := strconv.ParseUint(string(r), 10, 63)
	return int64(n), err == nil
}

// timestamp is t for JSON: nil, which is written as null, if t is zero.
func timestamp(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

// readJSON decodes the request's body into v. No body at all leaves v as it is; unknown keys are ignored, for the sake of
// newer callers. The errors name the key and the position.
func readJSON(r *http.Request, v any) error {
	b, err := readBody(r)
	if err != nil {
		return err
	}
	if at := notUTF8(b); at >= 0 { // it would be replaced silently
		return tailnet.Errorf(tailnet.Invalid, "the request is not valid UTF-8 at byte %d (0x%02x)", at+1, b[at])
	}
	return decodeJSON(b, v)
}

// notUTF8 is where b is not UTF-8; -1: nowhere.
func notUTF8(b []byte) int {
	for at := 0; at < len(b); {
		c, n := utf8.DecodeRune(b[at:])
		if c == utf8.RuneError && n <= 1 {
			return at
		}
		at += n
	}
	return -1
}

func readBody(r *http.Request) ([]byte, error) {
	b, err := io.ReadAll(r.Body)
	if err != nil {
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			return nil, err
		}
		return nil, &tailnet.Error{Code: tailnet.Invalid, Message: "the request's body ended early", Cause: err}
	}
	return b, nil
}

func decodeJSON(b []byte, v any) error {
	if strings.TrimSpace(string(b)) == "" {
		return nil
	}
	err := json.Unmarshal(b, v)
	var (
		syntax *json.SyntaxError
		typ    *json.UnmarshalTypeError
		te     *tailnet.Error
		tim    *time.ParseError
	)
	switch {
	case err == nil:
		return nil
	case errors.As(err, &te):
		return te
	case errors.As(err, &syntax):
		return tailnet.Errorf(tailnet.Invalid, "the request is not valid JSON at byte %d: %s", syntax.Offset, syntax.Error())
	case errors.As(err, &typ):
		where := "the request"
		if typ.Field != "" {
			where = fmt.Sprintf("%q", typ.Field)
		}
		return tailnet.Errorf(tailnet.Invalid, "%s at byte %d is a JSON %s; %s is asked for", where, typ.Offset, typ.Value, jsonName(typ.Type.Kind().String()))
	case errors.As(err, &tim):
		return tailnet.Errorf(tailnet.Invalid, "%q is not a time such as 2026-01-31T12:00:00Z", clip(tim.Value))
	case strings.HasPrefix(err.Error(), "Time.UnmarshalJSON"): // not a string at all
		return tailnet.Errorf(tailnet.Invalid, `a time must be a string such as "2026-01-31T12:00:00Z"`)
	}
	return &tailnet.Error{Code: tailnet.Invalid, Message: "the request's JSON cannot be read: " + clip(err.Error()), Cause: err}
}

// jsonName says a Go kind in the words of JSON.
func jsonName(kind string) string {
	switch kind {
	case "string":
		return "a string"
	case "bool":
		return "true or false"
	case "slice", "array":
		return "a list"
	case "struct", "map":
		return "an object"
	}
	return "a number"
}

// list is xs, never nil: an empty list is written as [].
func list[T any](xs []T) []T {
	if xs == nil {
		return []T{}
	}
	return xs
}

// ParseTime reads a time given in a query or by a person: RFC 3339, or the same without a zone, which is UTC then.
func ParseTime(s string) (time.Time, error) {
	for _, layout := range []string{time.RFC3339, "2006-01-02T15:04:05", "2006-01-02 15:04:05", "2006-01-02 15:04", "2006-01-02"} {
		if t, err := time.Parse(layout, s); err == nil {
			return t.UTC(), nil
		}
	}
	return time.Time{}, tailnet.Errorf(tailnet.Invalid, "%q is not a time such as 2026-01-31T12:00:00Z", clip(s))
}
