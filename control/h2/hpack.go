package h2

import (
	"errors"

	"golang.org/x/net/http2/hpack"
)

// HPACK, RFC 7541: how requests' header fields are read and those of responses written.
//
// Reading: we allow the peer no dynamic table (SETTINGS_HEADER_TABLE_SIZE 0), but it may fill one of the initial 4,096
// bytes until it has heard so. Writing: the static table only, and nothing that the peer should remember.

// initialTable is the size of a dynamic table before any setting (RFC 9113 section 6.5.2).
const initialTable = 4096

// fieldOverhead is what a field counts beyond its characters (RFC 7541 section 4.1, RFC 9113 section 6.5.2).
const fieldOverhead = 32

type field struct{ name, value string }

func (f field) size() int { return len(f.name) + len(f.value) + fieldOverhead }

// fieldList is a decoded header block. It keeps nothing of a list that is larger than limit.
type fieldList struct {
	fields   []field
	size     int
	limit    int
	tooLarge bool
}

func (l *fieldList) add(f field) {
	l.size += f.size()
	if l.size > l.limit {
		l.tooLarge, l.fields = true, nil
	}
	if !l.tooLarge {
		l.fields = append(l.fields, f)
	}
}

// decoder holds what the header blocks of one connection have in common.
type decoder struct {
	table []field // the dynamic table, newest last
	size  int     // of table (RFC 7541 section 4.1)
	max   int     // the size that the peer's encoder has chosen
	limit int     // the size that we allow it to choose
}

var errHPACK = errors.New("a header block that is not HPACK")

// forbidTable is to be called when the peer has heard that we allow no dynamic table.
func (d *decoder) forbidTable() {
	d.limit = 0
	d.resize(0)
}

func (d *decoder) resize(n int) {
	d.max = n
	d.evict(0)
}

// evict makes room for an entry of the size n, or as much as there can be.
func (d *decoder) evict(n int) {
	k := 0
	for k < len(d.table) && d.size+n > d.max {
		d.size -= d.table[k].size()
		k++
	}
	switch {
	case k == 0:
	case k == len(d.table):
		d.table = nil
	default:
		rest := copy(d.table, d.table[k:])
		clear(d.table[rest:])
		d.table = d.table[:rest]
	}
}

func (d *decoder) insert(f field) {
	d.evict(f.size())
	if d.size+f.size() <= d.max { // RFC 7541 section 4.4: a larger one only empties the table
		d.table = append(d.table, f)
		d.size += f.size()
	}
}

// at is the entry i of both tables (RFC 7541 section 2.3.3).
func (d *decoder) at(i int) (f field, ok bool) {
	switch {
	case i <= 0:
		return f, false
	case i < len(staticTable):
		return staticTable[i], true
	}
	i = len(d.table) - (i - len(staticTable)) - 1
	if i < 0 {
		return f, false
	}
	return d.table[i], true
}

// decode reads one whole header block into l. After an error the connection cannot go on.
func (d *decoder) decode(b []byte, l *fieldList) error {
	for first := true; len(b) > 0; {
		c := b[0]
		var f field
		var n int
		var err error
		switch {
		case c&0x80 != 0: // RFC 7541 section 6.1
			if n, b, err = readInt(b, 7); err != nil {
				return err
			}
			var ok bool
			if f, ok = d.at(n); !ok {
				return errHPACK
			}
		case c&0xe0 == 0x20: // section 6.3; only in front (section 4.2)
			if n, b, err = readInt(b, 5); err != nil || !first || n > d.limit {
				return errHPACK
			}
			d.resize(n)
			continue
		case c&0xc0 == 0x40: // section 6.2.1
			if f, b, err = d.literal(b, 6); err != nil {
				return err
			}
			d.insert(f)
		default: // sections 6.2.2 and 6.2.3
			if f, b, err = d.literal(b, 4); err != nil {
				return err
			}
		}
		first = false
		l.add(f)
	}
	return nil
}

// literal reads a literal field whose first byte has an index of the given number of bits.
func (d *decoder) literal(b []byte, bits uint) (f field, rest []byte, err error) {
	i, b, err := readInt(b, bits)
	if err != nil {
		return f, nil, err
	}
	if i != 0 {
		named, ok := d.at(i)
		if !ok {
			return f, nil, errHPACK
		}
		f.name = named.name
	} else if f.name, b, err = readString(b); err != nil {
		return f, nil, err
	}
	f.value, b, err = readString(b)
	return f, b, err
}

// readInt reads an integer with a prefix of bits bits (RFC 7541 section 5.1). Ours all fit in 21 bits.
func readInt(b []byte, bits uint) (n int, rest []byte, err error) {
	if len(b) == 0 {
		return 0, nil, errHPACK
	}
	mask := 1<<bits - 1
	n, b = int(b[0])&mask, b[1:]
	if n < mask {
		return n, b, nil
	}
	for shift := 0; shift < 28; shift += 7 {
		if len(b) == 0 {
			return 0, nil, errHPACK
		}
		c := b[0]
		b = b[1:]
		n += int(c&0x7f) << shift
		if c&0x80 == 0 {
			return n, b, nil
		}
	}
	return 0, nil, errHPACK
}

// readString reads a string (RFC 7541 section 5.2). Names that are in the static table cost no memory.
func readString(b []byte) (s string, rest []byte, err error) {
	if len(b) == 0 {
		return "", nil, errHPACK
	}
	huffman := b[0]&0x80 != 0
	n, b, err := readInt(b, 7)
	if err != nil || n > len(b) {
		return "", nil, errHPACK
	}
	if huffman {
		s, err = hpack.HuffmanDecodeToString(b[:n])
		if err != nil {
			return "", nil, errHPACK
		}
	} else if i, ok := staticNames[string(b[:n])]; ok {
		s = staticTable[i].name
	} else {
		s = string(b[:n])
	}
	return s, b[n:], nil
}

// appendInt appends n with a prefix of bits bits, whose other bits are those of first.
func appendInt(b []byte, first byte, bits uint, n int) []byte {
	mask := 1<<bits - 1
	if n < mask {
		return append(b, first|byte(n))
	}
	b = append(b, first|byte(mask))
	for n -= mask; n >= 0x80; n >>= 7 {
		b = append(b, byte(n)|0x80)
	}
	return append(b, byte(n))
}

// appendField appends a field, whose name must be lower case, as a literal without indexing (RFC 7541 section 6.2.2).
func appendField(b []byte, name, value string) []byte {
	if i, ok := staticNames[name]; ok {
		b = appendInt(b, 0, 4, i)
	} else {
		b = appendInt(append(b, 0), 0, 7, len(name))
		b = append(b, name...)
	}
	b = appendInt(b, 0, 7, len(value))
	return append(b, value...)
}

// appendStatus appends the field ":status", which must be the first one.
func appendStatus(b []byte, code int) []byte {
	value := string([]byte{'0' + byte(code/100), '0' + byte(code/10%10), '0' + byte(code%10)})
	for i := 8; i <= 14; i++ {
		if staticTable[i].value == value {
			return append(b, 0x80|byte(i))
		}
	}
	return appendField(b, ":status", value)
}

// tableGone is a size update to 0 (RFC 7541 section 6.3): we use no dynamic table, whatever the peer allows.
const tableGone = 0x20

// staticNames has the first index of each name in the static table.
var staticNames = func() map[string]int {
	m := map[string]int{}
	for i := len(staticTable) - 1; i > 0; i-- {
		m[staticTable[i].name] = i
	}
	return m
}()

// staticTable is RFC 7541 appendix A. Its first index is 1.
var staticTable = [...]field{
	{},
	{":authority", ""}, {":method", "GET"}, {":method", "POST"}, {":path", "/"}, {":path", "/index.html"},
	{":scheme", "http"}, {":scheme", "https"},
	{":status", "200"}, {":status", "204"}, {":status", "206"}, {":status", "304"}, {":status", "400"}, {":status", "404"}, {":status", "500"},
	{"accept-charset", ""}, {"accept-encoding", "gzip, deflate"}, {"accept-language", ""}, {"accept-ranges", ""}, {"accept", ""},
	{"access-control-allow-origin", ""}, {"age", ""}, {"allow", ""}, {"authorization", ""}, {"cache-control", ""},
	{"content-disposition", ""}, {"content-encoding", ""}, {"content-language", ""}, {"content-length", ""}, {"content-location", ""},
	{"content-range", ""}, {"content-type", ""}, {"cookie", ""}, {"date", ""}, {"etag", ""}, {"expect", ""}, {"expires", ""}, {"from", ""},
	{"host", ""}, {"if-match", ""}, {"if-modified-since", ""}, {"if-none-match", ""}, {"if-range", ""}, {"if-unmodified-since", ""},
	{"last-modified", ""}, {"link", ""}, {"location", ""}, {"max-forwards", ""}, {"proxy-authenticate", ""}, {"proxy-authorization", ""},
	{"range", ""}, {"referer", ""}, {"refresh", ""}, {"retry-after", ""}, {"server", ""}, {"set-cookie", ""},
	{"strict-transport-security", ""}, {"transfer-encoding", ""}, {"user-agent", ""}, {"vary", ""}, {"via", ""}, {"www-authenticate", ""},
}
