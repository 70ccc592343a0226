package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"tailscale.com/tailcfg"
)

// errSelfSource is what autogroup:self as a destination asks of the source.
const errSelfSource = "autogroup:self can only be used with users, groups, or supported autogroups"

// sources understands src. Some autogroups are destinations only.
func (p *Policy) sources(v value) []target {
	ts := p.targets(v, "src=")
	for _, t := range ts {
		switch t.kind {
		case kindSelf:
			v.fail("%q not valid on the src side of a rule", "autogroup:self")
		case kindInternet:
			v.fail("%q not valid on the src side of a rule", "autogroup:internet")
		case kindService:
			v.fail("%q not valid on the src side of a rule", t.name)
		}
	}
	return ts
}

// checkDestination says why t cannot be a destination of a rule with these sources.
func checkDestination(t target, src []target, star bool) error {
	switch t.kind {
	case kindAll, kindShared:
		return fmt.Errorf("%q not valid on the dst side of a rule", map[kind]string{kindAll: "autogroup:danger-all", kindShared: "autogroup:shared"}[t.kind])
	case kindAddr:
		for _, n := range t.nets {
			if n.Bits() == 0 && !strings.HasPrefix(t.name, "ipset:") {
				return fmt.Errorf("dst %q: to allow all IP addresses, use \"*\" or \"autogroup:internet\"", t.name)
			}
		}
	case kindSelf:
		for _, s := range src {
			if !s.owner() && !(star && s.kind == kindStar) {
				return fmt.Errorf("%s", errSelfSource)
			}
		}
	}
	return nil
}

func (p *Policy) decodeACLs(v value) {
	for i, e := range v.elements() {
		a := &access{off: e.off(), label: fmt.Sprintf("acls[%d]", i), postures: p.defaultPosture}
		action, protos := "", []int(nil)
		var dst value
		p.fields(e, []string{"action", "src", "proto", "dst", "srcPosture", "users", "ports"}, func(key string, v value) {
			switch key {
			case "action":
				action = v.str()
			case "src", "users": // users and ports: older names
				a.src = p.sources(v)
			case "proto":
				n, err := parseProto(v.str())
				if err != nil {
					v.fail("%v", err)
				}
				protos = n
			case "dst", "ports":
				dst = v
			case "srcPosture":
				a.postures = p.postureNames(v)
			}
		})
		if action != "accept" {
			e.fail("action=%q is not supported; the one action is \"accept\"", clip(action))
		}
		if dst.v != nil {
			p.decodeDst(a, dst, protos)
		}
		p.rules = append(p.rules, a)
	}
}

// decodeDst reads the destinations of an acl, HOST:PORTS each.
func (p *Policy) decodeDst(a *access, v value, protos []int) {
	for _, w := range v.words() {
		host, port, err := splitPort(w.text)
		if err != nil {
			p.d.fail(w.off, w.path, "dst=%q: %v", clip(w.text), err)
			continue
		}
		r, err := parsePorts(port)
		if err == nil {
			err = checkPorts(protos, r)
		}
		if err != nil {
			p.d.fail(w.off, w.path, "dst=%q: %v", clip(w.text), err)
			continue
		}
		p.addDst(a, w, host, []ports{{protos, r}}, true)
	}
}

// addDst understands one destination. star: the source "*" may go with autogroup:self, as it may in acls.
func (p *Policy) addDst(a *access, w word, host string, open []ports, star bool) {
	t, err := p.target(host)
	if err != nil {
		p.d.fail(w.off, w.path, "dst=%v", err)
		return
	}
	if err := checkDestination(t, a.src, star); err != nil {
		p.d.fail(w.off, w.path, "%v", err)
		return
	}
	p.note(t, w)
	a.dst = append(a.dst, destination{t, open})
}

func (p *Policy) decodeGrants(v value) {
	for i, e := range v.elements() {
		a := &access{off: e.off(), label: fmt.Sprintf("grants[%d]", i), postures: p.defaultPosture}
		var dst []word
		var open []ports
		p.fields(e, []string{"src", "dst", "ip", "app", "via", "srcPosture"}, func(key string, v value) {
			switch key {
			case "src":
				a.src = p.sources(v)
			case "dst":
				dst = v.words()
			case "ip":
				open = p.decodeIP(v)
			case "app":
				a.app = p.decodeApp(v)
			case "via":
				for _, w := range v.words() {
					if !strings.HasPrefix(w.text, "tag:") {
						p.d.fail(w.off, w.path, "%q: via names routers by their tags, such as tag:router", clip(w.text))
					} else if _, ok := p.tagOwners[w.text]; !ok {
						p.d.fail(w.off, w.path, "tag %q not found", clip(w.text))
					}
					a.via = append(a.via, w.text)
				}
			case "srcPosture":
				a.postures = p.postureNames(v)
			}
		})
		if len(open) == 0 && len(a.app) == 0 {
			e.fail("ip and app can not both be empty")
		}
		for _, w := range dst {
			p.addDst(a, w, w.text, open, false)
			if w.text == "autogroup:internet" && len(a.app) > 0 {
				p.d.fail(w.off, w.path, "cannot use app grants with autogroup:internet")
			}
		}
		p.rules = append(p.rules, a)
	}
}

// decodeIP reads a grant's ip, one element for each protocol in the order in which they appear.
func (p *Policy) decodeIP(v value) (out []ports) {
	for _, w := range v.words() {
		one, err := parseIP(w.text)
		if err != nil {
			p.d.fail(w.off, w.path, "%v", err)
			continue
		}
		i := slices.IndexFunc(out, func(o ports) bool { return slices.Equal(o.protos, one.protos) })
		if i < 0 {
			out = append(out, one)
		} else {
			out[i].ranges = append(out[i].ranges, one.ranges...)
		}
	}
	return out
}

// Capabilities of applications that policies may grant although their names are Tailscale's.
var grantable = map[tailcfg.PeerCapability]bool{
	"tailscale.com/cap/drive":      true,
	"tailscale.com/cap/golink":     true,
	"tailscale.com/cap/kubernetes": true,
	"tailscale.com/cap/relay":      true,
	"tailscale.com/cap/secrets":    true,
	"tailscale.com/cap/tsidp":      true,
	"tailscale.com/cap/webui":      true,
}

// CapTaildrop is what policies grant to let the source send files to the destination, also between users. The hosted
// service has no name for it.
const CapTaildrop tailcfg.PeerCapability = "github.com/skein-vpn/taildrop"

func (p *Policy) decodeApp(v value) tailcfg.PeerCapMap {
	out := tailcfg.PeerCapMap{}
	for _, m := range v.members() {
		name := tailcfg.PeerCapability(m.key)
		domain, path, ok := strings.Cut(m.key, "/")
		hint := ""
		if strings.Contains(m.key, "tailscale.com/cap/file-s") {
			hint = fmt.Sprintf("; to let devices of others send files, grant %s", CapTaildrop)
		}
		switch {
		case !ok || path == "" || !validDomain(domain):
			p.d.fail(m.off, m.path, "capability name must have the form {domain}/{path}, such as example.com/cap/name%s", hint)
		case (domain == "tailscale.com" || strings.HasSuffix(domain, ".tailscale.com")) && !grantable[name]:
			p.d.fail(m.off, m.path, "capability name must not be in the tailscale.com domain%s", hint)
		}
		vals := []tailcfg.RawMessage{}
		for _, e := range m.elements() {
			vals = append(vals, tailcfg.RawMessage(e.raw()))
		}
		out[name] = vals
	}
	return out
}

// validDomain reports whether s looks like a domain name: labels of letters, digits and dashes.
func validDomain(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, r := range label {
			if !(r == '-' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z') {
				return false
			}
		}
	}
	return true
}

// Bounds of checkPeriod.
const (
	defaultCheckPeriod = 12 * time.Hour
	minCheckPeriod     = time.Minute
	maxCheckPeriod     = 168 * time.Hour
)

func (p *Policy) decodeSSH(v value) {
	for i, e := range v.elements() {
		r := &sshRule{off: e.off(), label: fmt.Sprintf("ssh[%d]", i), period: defaultCheckPeriod}
		action, users := "", []word(nil)
		var dst, period value
		fields := []string{"action", "src", "dst", "users", "checkPeriod", "acceptEnv", "recorder", "enforceRecorder", "srcPosture"}
		p.fields(e, fields, func(key string, v value) {
			switch key {
			case "action":
				action = v.str()
			case "src":
				r.src = p.sources(v)
				for _, t := range r.src {
					if !t.owner() && t.kind != kindTag && t.kind != kindTagged && t.kind != kindSelf && t.kind != kindInternet {
						v.fail("%q not valid on the src side of an ssh rule: want users, groups, tags or autogroups of these", sourceName(t))
					}
				}
			case "dst":
				dst = v
			case "users":
				users = v.words()
			case "checkPeriod":
				period = v
			case "acceptEnv":
				for _, w := range v.words() {
					r.acceptEnv = append(r.acceptEnv, w.text)
				}
			case "recorder":
				r.recorders = p.targets(v, "recorder=")
				for _, t := range r.recorders {
					if t.kind != kindTag && t.kind != kindAddr {
						v.fail("a recorder is a tag or an address")
					}
				}
			case "enforceRecorder":
				r.enforce = v.boolean()
			case "srcPosture":
				r.postures = p.postureNames(v)
			}
		})
		switch action {
		case "accept":
		case "check":
			r.check = true
		default:
			e.fail("%q is not a valid action; want \"accept\" or \"check\"", clip(action))
		}
		p.decodeSSHUsers(r, e, users)
		if r.check {
			for _, t := range r.src {
				if t.kind == kindTag || t.kind == kindTagged {
					e.fail("action \"check\" asks a person, and devices with tags have none: tags cannot be sources of it")
					break
				}
			}
		}
		if period.v != nil && period.str() != "" {
			r.period = p.decodePeriod(period)
			if !r.check {
				p.d.warn(period.off(), "checkPeriod has no effect on an ssh rule that does not check")
			}
		}
		if dst.v != nil {
			p.decodeSSHDst(r, dst)
		}
		p.ssh = append(p.ssh, r)
	}
}

func sourceName(t target) string {
	switch t.kind {
	case kindStar:
		return "*"
	case kindAll:
		return "autogroup:danger-all"
	case kindShared:
		return "autogroup:shared"
	}
	return t.name
}

func (p *Policy) decodePeriod(v value) time.Duration {
	s := v.str()
	if s == "always" {
		return 0
	}
	d, err := time.ParseDuration(s)
	switch {
	case err != nil:
		v.fail("%v; want a duration such as 12h, or \"always\"", err)
	case d < minCheckPeriod || d > maxCheckPeriod:
		v.fail("checkPeriod %s is out of range; want 1m to 168h, or \"always\"", s)
	}
	return d
}

func (p *Policy) decodeSSHUsers(r *sshRule, rule value, users []word) {
	if len(users) == 0 {
		rule.fail("users must be specified")
	}
	for _, w := range users {
		switch local, ok := strings.CutPrefix(w.text, "localpart:*@"); {
		case w.text == "" || w.text == "*":
			p.d.fail(w.off, w.path, "user %q is not valid", w.text)
		case w.text == "autogroup:nonroot":
			r.nonroot = true
		case ok && local == "":
			p.d.fail(w.off, w.path, "%q lacks its domain: \"\" is not associated with this Tailnet and cannot be used in user:*@<domain> expressions", w.text)
		case ok:
			p.domains = append(p.domains, word{local, w.off, w.path})
			r.domains = append(r.domains, local)
		default:
			r.users = append(r.users, w.text)
		}
	}
}

// decodeSSHDst reads the devices that an ssh rule leads to: those of tags, of the source's own user, or of a user who is
// also the only source.
func (p *Policy) decodeSSHDst(r *sshRule, v value) {
	for _, w := range v.words() {
		t, err := p.target(w.text)
		if err != nil {
			p.d.fail(w.off, w.path, "dst=%v", err)
			continue
		}
		switch t.kind {
		case kindTag, kindTagged:
		case kindSelf:
			for _, s := range r.src {
				if !s.owner() {
					p.d.fail(w.off, w.path, "%s", errSelfSource)
					break
				}
			}
		case kindUser:
			for _, s := range r.src {
				if s.kind != kindUser || s.name != t.name {
					p.d.fail(w.off, w.path, "the dst user %q must be the only src too; write autogroup:self for the devices of each source", t.name)
					break
				}
			}
		default:
			p.d.fail(w.off, w.path, "%q not valid on the dst side of an ssh rule: want tags, autogroup:tagged, autogroup:self or a user", clip(w.text))
			continue
		}
		p.note(t, w)
		r.dst = append(r.dst, t)
	}
}

// covers reports whether one of the prefixes holds all of n.
func covers(nets []netip.Prefix, n netip.Prefix) bool {
	return slices.ContainsFunc(nets, func(x netip.Prefix) bool { return x.Bits() <= n.Bits() && x.Contains(n.Addr()) })
}

// overlaps reports whether one of the prefixes shares addresses with n.
func overlaps(nets []netip.Prefix, n netip.Prefix) bool {
	return slices.ContainsFunc(nets, func(x netip.Prefix) bool { return x.Overlaps(n) })
}
