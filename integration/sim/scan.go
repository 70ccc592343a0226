package sim

import "bytes"

// cursor walks over JSON in one pass and looks only at what is asked for. It trusts the text to be JSON: on valid JSON it
// finds what encoding/json finds, on anything else it sets bad or finds nonsense, but it always ends.
type cursor struct {
	b   []byte
	i   int
	bad bool
}

// peek is the next byte that is not white space, 0 at the end.
func (c *cursor) peek() byte {
	for c.i < len(c.b) {
		switch b := c.b[c.i]; b {
		case ' ', '\t', '\n', '\r':
			c.i++
		default:
			return b
		}
	}
	return 0
}

// take consumes b if it is next.
func (c *cursor) take(b byte) bool {
	if c.peek() != b {
		return false
	}
	c.i++
	return true
}

// object walks over an object; field must consume the value of each key. Anything else than an object is passed over.
// Keys are as they are written, with their escapes.
func (c *cursor) object(field func(key []byte)) {
	if c.peek() != '{' {
		c.raw()
		return
	}
	c.i++
	if c.take('}') {
		return
	}
	for !c.bad {
		if c.peek() != '"' {
			c.bad = true
			return
		}
		key := c.str()
		if !c.take(':') {
			c.bad = true
			return
		}
		field(key)
		if c.take(',') {
			continue
		}
		c.bad = c.bad || !c.take('}')
		return
	}
}

// array walks over an array; elem must consume each element. Anything else than an array is passed over.
func (c *cursor) array(elem func()) {
	if c.peek() != '[' {
		c.raw()
		return
	}
	c.i++
	if c.take(']') {
		return
	}
	for !c.bad {
		elem()
		if c.take(',') {
			continue
		}
		c.bad = c.bad || !c.take(']')
		return
	}
}

// str is a string without its quotes and with its escapes; of anything else it is the text.
func (c *cursor) str() []byte {
	if c.peek() != '"' {
		return c.raw()
	}
	from := c.i + 1
	c.skipString()
	if c.bad {
		return nil
	}
	return c.b[from : c.i-1]
}

// skipString passes over a string that begins here.
func (c *cursor) skipString() {
	for c.i++; c.i < len(c.b); {
		k := bytes.IndexByte(c.b[c.i:], '"')
		if k < 0 {
			break
		}
		if e := bytes.IndexByte(c.b[c.i:c.i+k], '\\'); e >= 0 {
			c.i += e + 2 // the escaped byte may be a quote
			continue
		}
		c.i += k + 1
		return
	}
	c.i, c.bad = len(c.b), true
}

// raw passes over any value and returns its text.
func (c *cursor) raw() []byte {
	first := c.peek()
	from := c.i
	switch first {
	case '"':
		c.skipString()
	case '{', '[':
		for depth := 1; depth > 0 && !c.bad; {
			if c.i++; c.i >= len(c.b) {
				c.bad = true
				break
			}
			switch c.b[c.i] {
			case '"':
				c.skipString()
				c.i-- // onto its closing quote
			case '{', '[':
				depth++
			case '}', ']':
				depth--
			}
		}
		c.i++
	default: // a number, true, false, null
		for c.i < len(c.b) && bytes.IndexByte([]byte(",]} \t\r\n:\"[{"), c.b[c.i]) < 0 {
			c.i++
		}
		c.bad = c.bad || c.i == from
	}
	if c.bad {
		return nil
	}
	return c.b[from:c.i]
}

// num is a whole number; of anything else it is 0.
func (c *cursor) num() int64 { return parseInt(c.raw()) }

// parseInt is the whole number that b writes, or 0.
func parseInt(b []byte) (n int64) {
	if len(b) == 0 || len(b) > 18 {
		return 0
	}
	for _, d := range b {
		if d < '0' || d > '9' {
			return 0
		}
		n = n*10 + int64(d-'0')
	}
	return n
}
