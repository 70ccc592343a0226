package tailnet

import (
	"encoding/json"
	"slices"
	"strings"
	"time"
)

// Attribute is something that administrators or other programs say of a node, for the postures of policies.
type Attribute struct {
	Name  string `json:"name"`  // "custom:" and what CheckAttribute allows behind it
	Value string `json:"value"` // as policies compare it
	Kind  string `json:"kind"`  // AttributeString, AttributeNumber or AttributeBool: how Value was given

	Expires time.Time `json:"expires,omitzero"` // when the node has it no more, in whole seconds of UTC; zero: never
}

// Expired reports whether the node has the attribute no more at now.
func (a Attribute) Expired(now time.Time) bool { return !a.Expires.IsZero() && !a.Expires.After(now) }

// LiveAttributes are those of as that a node has at now still; as itself if it has all.
func LiveAttributes(as []Attribute, now time.Time) []Attribute {
	if !slices.ContainsFunc(as, func(a Attribute) bool { return a.Expired(now) }) {
		return as
	}
	return slices.DeleteFunc(slices.Clone(as), func(a Attribute) bool { return a.Expired(now) })
}

// The kinds of values.
const (
	AttributeString = "string"
	AttributeNumber = "number"
	AttributeBool   = "bool"
)

// attributePrefix begins the name of every attribute that can be set.
const attributePrefix = "custom:"

// Limits of the hosted service.
const (
	maxAttributes    = 50
	maxAttributeText = 50 // bytes of a name with its prefix, and of a value
)

// NewAttribute is the attribute called name with a value as JSON has it: a string, a number or a boolean. An Invalid error says what
// is wrong.
func NewAttribute(name string, value json.RawMessage) (Attribute, error) {
	rest, ok := strings.CutPrefix(name, attributePrefix)
	bad := strings.IndexFunc(rest, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '_')
	})
	if !ok || rest == "" || bad >= 0 || len(name) > maxAttributeText {
		return Attribute{}, Errorf(Invalid, "%q is not the name of an attribute: it is custom: and then letters, digits and _, at most %d in all",
			CleanText(name), maxAttributeText)
	}
	var v any
	dec := json.NewDecoder(strings.NewReader(string(value)))
	dec.UseNumber()
	if err := dec.Decode(&v); err != nil {
		return Attribute{}, Errorf(Invalid, "the value of %s is missing: a string, a number, true or false", name)
	}
	a := Attribute{Name: name}
	switch v := v.(type) {
	case string:
		a.Value, a.Kind = v, AttributeString
		ok = CleanText(v) == v && v != ""
	case json.Number:
		a.Value, a.Kind = v.String(), AttributeNumber
	case bool:
		a.Value, a.Kind = "false", AttributeBool
		if v {
			a.Value = "true"
		}
	default:
		ok = false
	}
	if !ok || len(a.Value) > maxAttributeText {
		return Attribute{}, Errorf(Invalid, "the value of %s must be a string of 1 to %d letters, a number, true or false", name, maxAttributeText)
	}
	return a, nil
}

// JSON is the value as it was given.
func (a Attribute) JSON() any {
	switch a.Kind {
	case AttributeNumber:
		return json.Number(a.Value)
	case AttributeBool:
		return a.Value == "true"
	}
	return a.Value
}

// WithAttribute are the attributes as, sorted by name, with a put in. An Invalid error says that there are too many.
func WithAttribute(as []Attribute, a Attribute) ([]Attribute, error) {
	out := WithoutAttribute(as, a.Name)
	if len(out) >= maxAttributes {
		return nil, Errorf(Invalid, "a node can have %d attributes and has them", maxAttributes)
	}
	out = append(out, a)
	slices.SortFunc(out, func(a, b Attribute) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// WithoutAttribute are the attributes as without the one called name. as is not written to.
func WithoutAttribute(as []Attribute, name string) []Attribute {
	return slices.DeleteFunc(slices.Clone(as), func(a Attribute) bool { return a.Name == name })
}
