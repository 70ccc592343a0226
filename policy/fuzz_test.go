package policy

import (
	"errors"
	"testing"

	"github.com/skein-vpn/skein/tailnet"
)

func seeds(f *testing.F) {
	for _, c := range loadCases(f) {
		f.Add([]byte(c.Policy))
	}
	f.Add([]byte(explainText))
	f.Add([]byte(`{"postures": {"posture:a": ["node:os IN ['x', \"y\"]"]}, "ipsets": {"ipset:a": ["add 10.0.0.0/8", "remove 10.1.0.0-10.2.0.0"]}, /* c */}`))
}

// FuzzParse: whatever is thrown at it, Parse answers, and with a place in the text.
func FuzzParse(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := Parse(text)
		if (p == nil) == (err == nil) {
			t.Fatalf("policy %v, error %v", p, err)
		}
		if err == nil {
			return
		}
		var es Errors
		if !errors.As(err, &es) || len(es) == 0 {
			t.Fatalf("error is %T: %v", err, err)
		}
		for _, e := range es {
			if e.Text == "" || len(e.Error()) > 4000 {
				t.Fatalf("error of %d bytes: %.200s", len(e.Error()), e.Error())
			}
		}
	})
}

// FuzzCompile: what Parse accepts can be compiled and asked about everything.
func FuzzCompile(f *testing.F) {
	seeds(f)
	cases := loadCases(f)
	users, nodes := caseTailnet(&cases[len(cases)-1])
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := Parse(text)
		if err != nil {
			return
		}
		c, err := Compile(p, users, nodes[1:], Options{})
		if err != nil {
			return
		}
		d := c.With(nil, nodes[0])
		d = d.WithUser(users[0], &tailnet.User{ID: users[0].ID, Name: "other"})
		_ = d.Test()
		for _, n := range nodes {
			d.FilterFor(n)
			d.Filters(n, 142)
			d.SSHFor(n)
			d.AttrsFor(n)
			d.PoolFor(n)
			d.SourceCaps(d.ClassOf(n))
			for _, r := range n.AdvertisedRoutes() {
				d.Approves(n, r)
			}
			for _, m := range nodes[:3] {
				d.SeesNode(n, m)
				d.Routes(d.ClassOf(n), m, firstCreated(nodes))
				d.SSH(n, m, "root")
				d.Explain(n, m.IPv4, 6, 22)
				d.ExplainSSH(n, m)
				d.ExplainCapabilities(n, m)
			}
		}
		d.UnknownUsers()
		Diff(c, d)
	})
}
