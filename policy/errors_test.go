package policy

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/skein-vpn/skein/tailnet"
)

// TestErrors: each fault is reported with its place, what is wrong and what would be right.
func TestErrors(t *testing.T) {
	for _, x := range []struct{ text, want string }{
		{``, `line 1, column 1: the policy is empty; the smallest one is {}`},
		{`[]`, `line 1, column 1: this is an array, want an object {…}`},
		{`{"acls": {}}`, `line 1, column 10: acls: this is an object, want an array […]`},
		{"{\n  \"acl\": []\n}", `line 2, column 3: acl: unknown field "acl"; did you mean "acls"?`},
		{`{"bogus": 1}`, `line 1, column 2: bogus: unknown field "bogus"; known are groups, hosts,`},
		{`{"acls": [], "acls": []}`, `line 1, column 14: acls: duplicate key "acls": it stands in line 1 already`},
		{`{"acls": [], "ACLs": []}`, `duplicate key "ACLs"`},
		{`{"acls": [{"action": "accept", "source": ["*"]}]}`, `acls[0].source: unknown field "source"; known are action, src`},
		{`{"acls": [{"action": "accept", "src": "*"}]}`, `line 1, column 39: acls[0].src: this is a string, want an array […]`},
		{`{"acls": [{"action": "accept", "src": [1]}]}`, `acls[0].src[0]: this is a number, want a string`},
		{`{"randomizeClientPort": "yes"}`, `this is a string, want true or false`},
		{`{"acls": [{"src": ["*"]}]}`, `action="" is not supported; the one action is "accept"`},
		{`{"acls": [{"action": "accept", "src": ["nobody"]}]}`, `src="nobody": invalid address; want a user`},
		{`{"acls": [{"action": "accept", "src": ["10.0.0.1/8"]}]}`, `"10.0.0.1/8" has bits set behind its length: the prefix is 10.0.0.0/8`},
		{`{"acls": [{"action": "accept", "dst": ["100.64.0.1"]}]}`, `dst="100.64.0.1": hostport must contain a colon (":"); write 100.64.0.1:* for all ports`},
		{`{"acls": [{"action": "accept", "dst": ["*:0"]}]}`, `dst="*:0": port range "0": first port must be >0, or use '*' for wildcard`},
		{`{"acls": [{"action": "accept", "dst": ["*:70000"]}]}`, `port range "70000": invalid first integer; ports are numbers from 1 to 65535`},
		{`{"acls": [{"action": "accept", "dst": ["*:90-80"]}]}`, `port range "90-80": first port must be >= last port`},
		{`{"acls": [{"action": "accept", "dst": ["*:"]}]}`, `invalid port list: ""`},
		{`{"acls": [{"action": "accept", "dst": ["*:22,"]}]}`, `invalid port list: ""`},
		{`{"acls": [{"action": "accept", "dst": ["*:1-2-3"]}]}`, `port range "1-2-3": too many dashes(-)`},
		{`{"acls": [{"action": "accept", "dst": ["*:-5"]}]}`, `port range "-5": invalid first integer`},
		{`{"acls": [{"action": "accept", "dst": ["*:65536"]}]}`, `port range "65536": invalid first integer`},
		{`{"acls": [{"action": "accept", "dst": ["*:1-65536"]}]}`, `port range "1-65536": invalid last integer`},
		{`{"acls": [{"action": "accept", "dst": ["*:0-5"]}]}`, `port range "0-5": first port must be >0, or use '*' for wildcard`},
		{`{"acls": [{"action": "accept", "proto": "0", "dst": ["*:*"]}]}`, `protocol 0 says nothing`},
		{`{"acls": [{"action": "accept", "proto": "256", "dst": ["*:*"]}]}`, `proto name "256" not known; use protocol number 0-255`},
		{`{"grants": [{"src": ["*"], "dst": ["*"], "ip": [""]}]}`, `empty string`},
		{`{"grants": [{"src": ["*"], "dst": ["*"], "app": {"https://tailscale.com/cap/file-send": []}}]}`, `must have the form {domain}/{path}, such as example.com/cap/name; to let devices of others send files, grant github.com/skein-vpn/taildrop`},
		{`{"grants": [{"src": ["*"], "dst": ["*"], "app": {"tailscale.com/cap/file-sharing-target": []}}]}`, `must not be in the tailscale.com domain; to let devices`},
		{`{"grants": [{"src": ["*"], "dst": ["*"], "ip": [":80"]}]}`, `empty protocol`},
		{`{"grants": [{"src": ["*"], "dst": ["*"], "ip": ["tcp:"]}]}`, `invalid port list: ""`},
		{`{"grants": [{"src": ["*"], "dst": ["*"], "ip": ["80,443"]}]}`, `port range "80,443": invalid first integer; ports are`},
		{`{"grants": [{"src": ["*"], "dst": ["*"], "ip": ["80,443"]}]}`, `give each port an element of its own`},
		{`{"grants": [{"src": ["*"], "dst": ["*"], "ip": ["tcp,udp:53"]}]}`, `host cannot contain a comma (",")`},
		{`{"grants": [{"src": ["*"], "dst": ["*"], "ip": ["tpc:53"]}]}`, `proto name "tpc" not known; use protocol number 0-255`},
		{`{"grants": [{"src": ["*"], "dst": ["*"], "ip": ["gre:80"]}]}`, `protocol 47 does not have ports`},
		{`{"ssh": [{"action": "accept", "src": ["a@b.c"], "dst": ["autogroup:self"], "users": ["localpart:*@"]}]}`, `"" is not associated with this Tailnet and cannot be used in user:*@<domain> expressions`},
		{`{"ssh": [{"action": "check", "checkPeriod": "7d", "src": [], "users": ["root"]}]}`, `time: unknown unit "d" in duration "7d"`},
		{`{"ssh": [{"action": "check", "checkPeriod": "59s", "src": [], "users": ["root"]}]}`, `checkPeriod 59s is out of range`},
		{`{"ssh": [{"action": "check", "checkPeriod": "-1h", "src": [], "users": ["root"]}]}`, `checkPeriod -1h is out of range`},
		{`{"sshTests": [{"src": "a@b.c", "dst": ["*"], "accept": ["root"]}]}`, `SSH tests dst contains disallowed element "*"`},
		{`{"sshTests": [{"src": "a@b.c", "dst": ["autogroup:member"], "accept": ["root"]}]}`, `SSH tests dst contains disallowed element "autogroup:member"`},
		{`{"acls": [{"action": "accept", "dst": ["*:80-x"]}]}`, `port range "80-x": invalid last integer`},
		{`{"acls": [{"action": "accept", "proto": "icmp", "dst": ["*:80"]}]}`, `protocol 1 does not have ports; only '*' is allowed`},
		{`{"acls": [{"action": "accept", "proto": "foo", "dst": ["*:*"]}]}`, `proto name "foo" not known; use protocol number 0-255`},
		{`{"acls": [{"action": "accept", "src": ["group:x"]}]}`, `src=group not found: "group:x"`},
		{`{"acls": [{"action": "accept", "src": ["autogroup:x"]}]}`, `src=autogroup not found: "autogroup:x"`},
		{`{"acls": [{"action": "accept", "src": ["ipset:x"]}]}`, `src=ipset not found: "ipset:x"`},
		{`{"acls": [{"action": "accept", "dst": ["autogroup:danger-all:*"]}]}`, `"autogroup:danger-all" not valid on the dst side of a rule`},
		{`{"groups": {"x": []}}`, `group names start with 'group:', such as "group:x"`},
		{`{"groups": {"group:a": ["group:b"], "group:b": ["group:a"]}}`, `group cycle: group:a holds itself through group:b`},
		{`{"groups": {"group:a": ["tag:x"]}, "tagOwners": {"tag:x": []}}`, `"tag:x" cannot be in a group: groups hold users and groups`},
		{`{"hosts": {"a:b": "10.0.0.1"}}`, `"a:b" cannot name a host`},
		{`{"hosts": {"a": "b"}}`, `hosts.a: "b": invalid address`},
		{`{"ipsets": {"ipset:a": ["ipset:b"], "ipset:b": ["ipset:a"]}}`, `ipset cycle: ipset:a holds itself`},
		{`{"ipsets": {"ipset:a": ["tag:x"]}}`, `"tag:x" cannot be in an ipset: ipsets hold addresses`},
		{`{"tagOwners": {"tag:1": []}}`, `tagOwners["tag:1"]: tag names must start with a letter, after 'tag:'`},
		{`{"tagOwners": {"tag:a": ["100.64.0.1"]}}`, `cannot own a tag`},
		{`{"postures": {"p": []}}`, `posture names start with 'posture:'`},
		{`{"postures": {"posture:a": ["node:os = 'linux'"]}}`, `"node:os = 'linux'" is not a condition such as`},
		{`{"defaultSrcPosture": ["posture:a"]}`, `posture not found: "posture:a"`},
		{`{"nodeAttrs": [{"target": ["*"], "ipPool": ["10.0.0.0/8"]}]}`, `"10.0.0.0/8" is outside of 100.64.0.0/10, where addresses come from`},
		{`{"nodeAttrs": [{"target": ["autogroup:self"], "attr": ["x"]}]}`, `a target of nodeAttrs is`},
		{`{"autoApprovers": {"routes": {"10.0.0.1/8": []}}}`, `has bits set behind its length`},
		{`{"autoApprovers": {"exitNode": ["*"]}}`, `cannot approve`},
		{`{"autoApprovers": {"services": {"svc:": []}}}`, `"svc:" is not a valid service name: must not be empty after the 'svc:' prefix`},
		{`{"autoApprovers": {"services": {"svc:a b": []}}}`, `"a b" is not a valid DNS label`},
		{`{"autoApprovers": {"services": {"tag:x": []}}}`, `tag not found: "tag:x"`},
		{`{"autoApprovers": {"services": {"a@b.c": []}}}`, `services are written svc:NAME or tag:NAME`},
		{`{"grants": [{"src": ["svc:web"], "dst": ["*"], "ip": ["*"]}]}`, `"svc:web" not valid on the src side of a rule`},
		{`{"grants": [{"src": ["*"], "dst": ["svc:"], "ip": ["*"]}]}`, `dst="svc:" is not a valid service name`},
		{`{"OneCGNATRoute": "always"}`, `"always" is not valid; want "mac-always", "mac-never" or ""`},
		{`{"ssh": [{"action": "check", "checkPeriod": "200h", "src": [], "dst": [], "users": ["root"]}]}`, `checkPeriod 200h is out of range; want 1m to 168h, or "always"`},
		{`{"ssh": [{"action": "accept", "src": ["*"], "users": ["root"]}]}`, `"*" not valid on the src side of an ssh rule`},
		{`{"ssh": [{"action": "accept", "src": ["a@b.c"], "dst": ["d@b.c"], "users": ["root"]}]}`, `the dst user "d@b.c" must be the only src too`},
		{`{"grants": [{"src": ["*"], "dst": ["*"], "ip": ["*"], "via": ["group:x"]}]}`, `via names routers by their tags`},
		{`{"acls": [`, `line 1, column 11: not valid HuJSON:`},
		{"{\"acls\": [\xff]}", `line 1, column 11: byte 0xff is not valid UTF-8; save the policy as UTF-8`},
		{strings.Repeat("[", 100_000), `more than 64 objects and arrays inside each other`},
		{`{"acls": [` + strings.Repeat("1,", maxValues+1) + `]}`, `more than 500000 elements in one policy`},
		{strings.Repeat(" ", MaxSize+1), `the policy has 10485761 bytes; the limit is 10485760`},
	} {
		_, err := Parse([]byte(x.text))
		if err == nil {
			t.Errorf("%.80s: accepted, want %q", x.text, x.want)
		} else if !strings.Contains(err.Error(), x.want) {
			t.Errorf("%.80s:\n got %s\nwant %s", x.text, err, x.want)
		}
	}
}

// TestErrorsTogether: all faults at once, in the order of the text.
func TestErrorsTogether(t *testing.T) {
	_, err := Parse([]byte("{\n\"acls\": [{\"action\": \"deny\", \"src\": [\"tag:x\"]}],\n\"bogus\": 1,\n\"groups\": {\"g\": []},\n}"))
	var es Errors
	if !errors.As(err, &es) || len(es) != 4 {
		t.Fatalf("got %v", err)
	}
	for i, want := range []int{2, 2, 3, 4} {
		if es[i].Line != want || es[i].Column == 0 {
			t.Errorf("fault %d stands in line %d, want %d: %v", i, es[i].Line, want, es[i])
		}
	}
}

func TestWarnings(t *testing.T) {
	p, err := Parse([]byte(`{
		"derpMap": {"regions": {}}, // not ours
		"postures": {"posture:x": ["intune:compliance == 'yes'"]},
		"grants": [{"src": ["*"], "dst": ["svc:web"], "ip": ["443"]}], "autoApprovers": {"services": {"svc:web": ["autogroup:member"]}},
	}`))
	if err != nil {
		t.Fatal(err)
	}
	if w := p.Warnings(); len(w) != 2 || w[0].Line+w[1].Line != 5 {
		t.Errorf("got %v", w)
	}
	if !strings.Contains(string(p.Text()), "// not ours") {
		t.Error("the text lost its comments")
	}
}

func TestUnknownUsers(t *testing.T) {
	c, _ := small(t, `{"groups": {"group:a": ["ada@example.com", "eve@example.com"]},
		"acls": [{"action": "accept", "src": ["bob@", "adda@example.com"], "dst": ["eve@example.com:22"]}],
		"ssh": [{"action": "accept", "src": ["user:*@example.com"], "dst": ["autogroup:self"], "users": ["localpart:*@example.net"]}],
		"tests": [{"src": "bob@", "deny": ["mal@example.com:22", "tag:gone:22"]}]}`, Options{})
	want := `line 1, column 44: groups["group:a"][1]: no user is called "eve@example.com"
line 2, column 49: acls[0].src[1]: no user is called "adda@example.com"; did you mean "ada@example.com"?
line 3, column 100: ssh[0].users[0]: example.net is not associated with this Tailnet and cannot be used in user:*@<domain> expressions: nobody's login ends so
line 4, column 38: tests[0].deny[0]: no user is called "mal@example.com"`
	got := c.UnknownUsers()
	if got.Error() != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if len(got) != 4 || got[0].User != "eve@example.com" {
		t.Errorf("%+v", got)
	}
	if AllowAll().UnknownUsers() != nil {
		t.Error("no policy names nobody")
	}
}

func TestDomains(t *testing.T) {
	p, err := Parse([]byte(`{"grants": [{"src": ["user:*@b.example"], "dst": ["*"], "ip": ["*"]}]}`))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Compile(p, nil, nil, Options{Domains: []string{"a.example"}}); err == nil || !strings.Contains(err.Error(), "line 1, column 22: grants[0].src[0]: b.example is not associated with this Tailnet") {
		t.Error(err)
	}
	if _, err := Compile(p, nil, nil, Options{}); err != nil {
		t.Error(err)
	}
}

// TestFailures: a failing test says which one it is and why.
func TestFailures(t *testing.T) {
	c, _ := small(t, `{`+owners+`
		"acls": [{"action": "accept", "src": ["bob@example.com"], "dst": ["tag:server:22"]}],
		"tests": [
			{"src": "bob@example.com", "accept": ["tag:server:22"]},
			{"src": "ada@example.com", "accept": ["tag:server:22"]},
			{"src": "bob@example.com", "proto": "tcp", "deny": ["tag:server:22", "tag:router:22"]},
			{"src": "nobody@example.com", "deny": ["100.64.0.4:22"]},
			{"src": "tag:none", "accept": ["tag:server:22"]},
			{"src": "bob@example.com", "proto": "icmp", "accept": ["tag:server:0"]},
		],
		"sshTests": [{"src": "bob@example.com", "dst": ["tag:server"], "accept": ["root"]}],
	}`, Options{})
	err := c.Test()
	var fs Failures
	if !errors.As(err, &fs) {
		t.Fatal(err)
	}
	want := []string{
		"test(s) failed",
		`line 5: tests[1]: ada@example.com to tag:server:22: want accepted, got denied`,
		`line 6: tests[2]: bob@example.com to tag:server:22: want denied, got accepted`,
		`line 8: tests[4]: src tag not found: "tag:none"`,
		`line 9: tests[5]: bob@example.com to tag:server:0: want accepted, got denied`,
		`line 11: sshTests[0]: bob@example.com to tag:server as root: want accept, got deny`,
	}
	if got := fs.Error(); got != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
}

// TestHostile: what is made to hurt is refused or read in bounded memory and time.
func TestHostile(t *testing.T) {
	chain := func(n int) string { // groups that hold each other in a row
		var b strings.Builder
		b.WriteString(`{"groups": {"group:0": ["u@x.y"]`)
		for i := range n {
			fmt.Fprintf(&b, `,"group:%d": ["group:%d"]`, i+1, i)
		}
		fmt.Fprintf(&b, `}, "acls": [{"action": "accept", "src": ["group:%d"], "dst": ["*:*"]}]}`, n)
		return b.String()
	}
	for name, text := range map[string]string{
		"deep comments": strings.Repeat("/*", 5<<20),
		"many strings":  `{"groups": {"group:a": [` + strings.Repeat(`"a@b.c",`, 400_000) + `]}}`,
		"many keys": func() string {
			var b strings.Builder
			b.WriteString(`{"hosts": {`)
			for i := range 200_000 {
				fmt.Fprintf(&b, `"h%d": "10.0.0.1",`, i)
			}
			return b.String() + `}}`
		}(),
		"long chain":    chain(50_000),
		"long name":     `{"acls": [{"action": "accept", "src": ["` + strings.Repeat("x", 8<<20) + `"]}]}`,
		"quotes":        strings.Repeat(`"`, 5<<20),
		"many faults":   `{"acls": [` + strings.Repeat(`{},`, 100_000) + `]}`,
		"wide ports":    `{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:` + strings.Repeat("1,", 200_000) + `1"]}]}`,
		"many ip parts": `{"grants": [{"src": ["*"], "dst": ["*"], "ip": [` + strings.Repeat(`"tcp:1",`, 200_000) + `]}]}`,
	} {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			start := time.Now()
			p, err := Parse([]byte(text))
			if err == nil {
				_, err = Compile(p, []*tailnet.User{{ID: 1, Name: "u", Email: "u@x.y"}}, []*tailnet.Node{{ID: 1, User: 1, IPv4: addr("100.64.0.1")}}, Options{})
			}
			runtime.ReadMemStats(&after)
			if err != nil && len(err.Error()) > 20_000 {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
			t.Logf("%d bytes of text: %v, %d MB allocated, %v", len(text), time.Since(start).Round(time.Millisecond), (after.TotalAlloc-before.TotalAlloc)>>20, err != nil)
			if got := (after.TotalAlloc - before.TotalAlloc) >> 20; got > 1000 {
				t.Errorf("%d MB were allocated", got)
			}
		})
	}
}
