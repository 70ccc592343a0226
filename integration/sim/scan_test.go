package sim

import (
	"bytes"
	"encoding/json"
	"testing"
)

// copyOf writes the JSON value that c is at by walking through it.
func copyOf(c *cursor, out *bytes.Buffer) {
	switch c.peek() {
	case '{':
		out.WriteByte('{')
		n := 0
		c.object(func(key []byte) {
			if n++; n > 1 {
				out.WriteByte(',')
			}
			out.WriteByte('"')
			out.Write(key)
			out.WriteString(`":`)
			copyOf(c, out)
		})
		out.WriteByte('}')
	case '[':
		out.WriteByte('[')
		n := 0
		c.array(func() {
			if n++; n > 1 {
				out.WriteByte(',')
			}
			copyOf(c, out)
		})
		out.WriteByte(']')
	case '"':
		out.WriteByte('"')
		out.Write(c.str())
		out.WriteByte('"')
	default:
		out.Write(c.raw())
	}
}

// FuzzCursor compares what the cursor finds with what encoding/json finds.
func FuzzCursor(f *testing.F) {
	for _, s := range []string{
		`{}`, `[]`, `null`, `-1.5e3`, `"a\"b\\"`, ` { "a" : [ 1 , {"b":"}]"} , [ ] ] , "c\\" : false } `,
		`{"Peers":[{"ID":1,"Key":"nodekey:00","Online":true}],"":{"":1}}`, `{"a"`, `[1,`, `"\`, `{"a":}`, `]`, `[}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		raw := &cursor{b: b}
		text := raw.raw()
		walk := &cursor{b: b}
		var got bytes.Buffer
		if len(b) < 1<<12 { // copyOf is recursive
			copyOf(walk, &got)
		}
		if !json.Valid(b) {
			return
		}
		if raw.bad || raw.peek() != 0 {
			t.Fatalf("valid JSON was not passed over: %q, left %q", b, b[raw.i:])
		}
		if want := bytes.Trim(b, " \t\r\n"); !bytes.Equal(text, want) {
			t.Fatalf("raw is %q, want %q", text, want)
		}
		if len(b) >= 1<<12 {
			return
		}
		var want bytes.Buffer
		if err := json.Compact(&want, b); err != nil {
			t.Fatal(err)
		}
		if walk.bad || !bytes.Equal(got.Bytes(), want.Bytes()) {
			t.Fatalf("walked through %q as %q, want %q", b, got.Bytes(), want.Bytes())
		}
	})
}

func TestParseInt(t *testing.T) {
	for in, want := range map[string]int64{"0": 0, "17": 17, "9007199254740991": 1<<53 - 1, "": 0, "-1": 0, "1.5": 0, "null": 0, "99999999999999999999": 0} {
		if got := parseInt([]byte(in)); got != want {
			t.Errorf("parseInt(%q) = %d, want %d", in, got, want)
		}
	}
}
