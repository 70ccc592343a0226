package policy

import (
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"tailscale.com/tailcfg"

	"github.com/skein-vpn/skein/tailnet"
)

// checkPath is what nodes append to Options.CheckURL to ask about a session; clients fill in the parts with a dollar.
const checkPath = "/machine/ssh/action/$SRC_NODE_ID/to/$DST_NODE_ID?local_user=$LOCAL_USER&ssh_user=$SSH_USER"

// recorderPort is where recorders listen.
const recorderPort = 80

// SSHFor is who may open SSH sessions on n. It is never nil: empty rules let nobody in (tailcfg.MapResponse.SSHPolicy).
// Rules that check come before those that accept, whatever their order in the policy: the first that matches decides.
//
// Root is mapped in each rule, to nobody where the rule does not name it, because older clients let "=" match root too.
func (c *Compiled) SSHFor(n *tailnet.Node) *tailcfg.SSHPolicy {
	out := &tailcfg.SSHPolicy{Rules: []*tailcfg.SSHRule{}}
	if c.allowAll {
		return out
	}
	e := c.entry(n.ID)
	if e == nil {
		return out
	}
	k := c.class(e.class)
	for i, it := range c.rules.ssh {
		action := c.sshAction(it)
		named := it.dst >= 0 && k.in.has(it.dst)
		if named {
			out.Rules = append(out.Rules, c.sshRules(it, action, c.sshSources(i))...)
		}
		if c.sshOwn(e, it, named) {
			out.Rules = append(out.Rules, c.sshRules(it, action, c.ownSources(e, it))...)
		}
	}
	return out
}

// HasSSH reports whether SSHFor has any rules. It makes none of them.
func (c *Compiled) HasSSH(n *tailnet.Node) bool {
	if c.allowAll {
		return false
	}
	e := c.entry(n.ID)
	if e == nil {
		return false
	}
	k := c.class(e.class)
	for i, it := range c.rules.ssh {
		named := it.dst >= 0 && k.in.has(it.dst)
		if named && len(c.sshSources(i)) > 0 || c.sshOwn(e, it, named) && len(c.ownSources(e, it)) > 0 {
			return true
		}
	}
	return false
}

// sshOwn reports whether a rule reaches the devices of e's own user; named says that it reaches e in particular. A rule for
// localpart:*@DOMAIN reaches the sources' own devices too, as it does at the hosted service.
func (c *Compiled) sshOwn(e *entry, it *sshItem, named bool) bool {
	return e.user != 0 && (it.self || !named && len(it.rule.domains) > 0)
}

// sshSource is the devices of one user, or (user 0) all tagged ones.
type sshSource struct {
	user  tailnet.UserID
	addrs []string
}

type sshSources struct {
	once sync.Once
	list []sshSource
}

// ownSources are the sources of a rule that belong to e's user, in the form of sshSources.
func (c *Compiled) ownSources(e *entry, it *sshItem) []sshSource {
	if addrs := c.selfSources(e, it.src); len(addrs) > 0 {
		return []sshSource{{e.user, addrs}}
	}
	return nil
}

// sshSources are the sources of SSH rule i by user, in the order of the users; tagged devices come first. A device is listed once
// for each of its tags that the rule names, as the hosted service does. They are shared and must not be written to.
func (c *Compiled) sshSources(i int) []sshSource {
	c.memo.ssh.Do(func() { c.memo.sources = make([]sshSources, len(c.rules.ssh)) })
	m := &c.memo.sources[i]
	m.once.Do(func() { m.list = c.findSSHSources(c.rules.ssh[i]) })
	return m.list
}

func (c *Compiled) findSSHSources(it *sshItem) (out []sshSource) {
	tagged := sshSource{}
	byUser := map[tailnet.UserID]int{}
	for _, e := range c.nodesIn(it.src) {
		if e.user == 0 {
			for range max(1, c.timesTagged(e, it.rule.src)) {
				tagged.addrs = append(tagged.addrs, e.strs...)
			}
			continue
		}
		i, ok := byUser[e.user]
		if !ok {
			i = len(out)
			byUser[e.user] = i
			out = append(out, sshSource{user: e.user})
		}
		out[i].addrs = append(out[i].addrs, e.strs...)
	}
	out = slices.DeleteFunc(out, func(s sshSource) bool { return len(s.addrs) == 0 })
	slices.SortFunc(out, func(a, b sshSource) int { return int(a.user - b.user) })
	if len(tagged.addrs) > 0 {
		out = slices.Insert(out, 0, tagged)
	}
	return out
}

func (c *Compiled) timesTagged(e *entry, src []target) (n int) {
	for _, t := range src {
		switch {
		case t.kind == kindTagged:
			n += len(e.tags)
		case t.kind == kindTag && slices.Contains(e.tags, t.name):
			n++
		}
	}
	return n
}

func (c *Compiled) sshRules(it *sshItem, action *tailcfg.SSHAction, from []sshSource) (out []*tailcfg.SSHRule) {
	rule := func(users map[string]string, addrs ...string) {
		if len(addrs) == 0 {
			return
		}
		r := &tailcfg.SSHRule{SSHUsers: users, Action: action, AcceptEnv: it.rule.acceptEnv}
		for _, a := range addrs {
			r.Principals = append(r.Principals, &tailcfg.SSHPrincipal{NodeIP: a})
		}
		out = append(out, r)
	}
	if len(it.rule.domains) == 0 {
		var all []string
		for _, s := range from {
			all = append(all, s.addrs...)
		}
		rule(it.rule.sshUsers(), all...)
		return out
	}
	for _, s := range from {
		rule(it.rule.sshUsers(), s.addrs...)
		if u := c.user(s.user); u != nil {
			if local, ok := it.rule.localUser(u.user); ok {
				rule(map[string]string{local: local}, s.addrs...)
			}
		}
	}
	return out
}

// sshUsers maps the names that may be asked for to local users.
func (r *sshRule) sshUsers() map[string]string {
	out := map[string]string{"root": ""}
	for _, u := range r.users {
		out[u] = u
	}
	if r.nonroot {
		out["*"] = "="
	}
	return out
}

// localUser is the local user that localpart:*@DOMAIN gives u; never root, which has to be named.
func (r *sshRule) localUser(u *tailnet.User) (string, bool) {
	local, domain, ok := strings.Cut(u.LoginName(), "@")
	return local, ok && local != "" && local != "root" && slices.Contains(r.domains, domain)
}

func (c *Compiled) sshAction(it *sshItem) *tailcfg.SSHAction {
	if it.rule.check {
		return &tailcfg.SSHAction{HoldAndDelegate: c.rules.opts.CheckURL + checkPath}
	}
	return c.acceptAction(it)
}

// acceptAction lets a session begin.
func (c *Compiled) acceptAction(it *sshItem) *tailcfg.SSHAction {
	a := &tailcfg.SSHAction{Accept: true, AllowAgentForwarding: true, AllowLocalPortForwarding: true, AllowRemotePortForwarding: true}
	if it.rec >= 0 {
		for _, s := range c.addresses(it.rec) {
			if addr, err := netip.ParseAddr(s); err == nil {
				a.Recorders = append(a.Recorders, netip.AddrPortFrom(addr, recorderPort))
			}
		}
		if it.rule.enforce {
			a.OnRecordingFailure = &tailcfg.SSHRecorderFailureAction{
				RejectSessionWithMessage:    "This session has to be recorded and no recorder answers. Ask an administrator.",
				TerminateSessionWithMessage: "This session has to be recorded and the recorder is gone. Ask an administrator.",
			}
		}
	}
	return a
}

// SSHDecision is what the policy says about one session.
type SSHDecision struct {
	Allowed bool
	Check   bool          // a person has to confirm it first
	Period  time.Duration // for how long a confirmation holds; 0: for this session alone
	Line    int           // of the rule
	// Action lets the session begin, when the check is passed (or none is needed); nil if it is not allowed.
	Action *tailcfg.SSHAction
}

// SSH says whether src may open a session on dst as the user that it asks for. It follows the same rules as SSHFor.
func (c *Compiled) SSH(src, dst *tailnet.Node, sshUser string) SSHDecision {
	if c.allowAll {
		return SSHDecision{}
	}
	s, d := c.entry(src.ID), c.entry(dst.ID)
	if s == nil || d == nil {
		return SSHDecision{}
	}
	for _, it := range c.rules.ssh {
		if !c.leadsTo(it, s, d) {
			continue
		}
		var u *tailnet.User
		if ub := c.user(s.user); ub != nil {
			u = ub.user
		}
		if it.rule.permits(sshUser, u) {
			return SSHDecision{
				Allowed: true, Check: it.rule.check, Period: it.rule.period, Line: c.rules.policy.d.line(it.rule.off), Action: c.acceptAction(it),
			}
		}
	}
	return SSHDecision{}
}

// leadsTo reports whether the rule is about sessions from s on d.
func (c *Compiled) leadsTo(it *sshItem, s, d *entry) bool {
	from, at := c.inOf(s), c.inOf(d)
	if from == nil || at == nil || !from.has(it.src) {
		return false
	}
	own := (it.self || len(it.rule.domains) > 0) && s.user != 0 && s.user == d.user
	return own || it.dst >= 0 && at.has(it.dst)
}

// permits reports whether the rule lets its sources be the user; u is the owner of the source, nil for tagged ones.
func (r *sshRule) permits(sshUser string, u *tailnet.User) bool {
	if slices.Contains(r.users, sshUser) {
		return true
	}
	if sshUser == "root" {
		return false
	}
	if r.nonroot && sshUser != "" {
		return true
	}
	if u == nil {
		return false
	}
	local, ok := r.localUser(u)
	return ok && local == sshUser
}
