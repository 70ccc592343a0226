package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestReadRecords(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct{ text, want, err string }{
		{"", "", ""},
		{"[]", "", ""},
		{`[{"name": "NAS.x.", "type": "A", "value": "100.64.0.4"}, {"name": "nas.x", "value": "fd7a::4"}]`, "nas.x 100.64.0.4, nas.x fd7a::4", ""},
		{`{"name": "a"}`, "", "it is not a list"},
		{`[{"name": "a.b", "type": "CNAME", "value": "1.1.1.1"}]`, "", `record 1 ("a.b"): type "CNAME"`},
		{`[{"name": "a.b", "type": "AAAA", "value": "1.1.1.1"}]`, "", "does not fit type AAAA"},
		{`[{"name": "a.b", "value": "1.1.1"}]`, "", `value "1.1.1" is not an address`},
		{`[{"name": "a b", "value": "1.1.1.1"}]`, "", `"a b" is not a domain`},
		{strings.Repeat(" ", maxRecordsFile+1), "", "larger than 4 MiB"},
	} {
		path := filepath.Join(dir, "records.json")
		if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		rs, err := readRecords(path)
		var got []string
		for _, r := range rs {
			got = append(got, r.Name+" "+r.Addr.String())
		}
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%.60q: error %v, want %q", c.text, err, c.err)
			}
		} else if s := strings.Join(got, ", "); err != nil || s != c.want {
			t.Errorf("%.60q: %q, %v", c.text, s, err)
		}
	}
	if rs, err := readRecords(filepath.Join(dir, "none")); len(rs) > 0 || err != nil {
		t.Errorf("no file: %v, %v", rs, err)
	}
}

func FuzzParseRecords(f *testing.F) {
	f.Add([]byte(`[{"name": "nas.x", "type": "A", "value": "100.64.0.4"}]`))
	f.Fuzz(func(t *testing.T, b []byte) {
		rs, err := parseRecords(b)
		if err != nil && len(rs) > 0 {
			t.Error("records beside an error")
		}
	})
}
