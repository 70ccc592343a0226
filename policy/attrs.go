package policy

import (
	"maps"
	"net/netip"
	"slices"

	"tailscale.com/tailcfg"

	"github.com/skein-vpn/skein/tailnet"
)

// Node attributes that the policy or the client treat in a way of their own.
const (
	attrDisableIPv4  tailcfg.NodeCapability = "disable-ipv4"
	attrFunnel       tailcfg.NodeCapability = "funnel"
	attrFunnelPorts  tailcfg.NodeCapability = "https://tailscale.com/cap/funnel-ports?ports=443,8443,10000"
	attrFunnelHTTPS  tailcfg.NodeCapability = "https://tailscale.com/cap/warn-funnel-no-https"
	attrOneCGNATOn   tailcfg.NodeCapability = "one-cgnat?v=true"
	attrOneCGNATOff  tailcfg.NodeCapability = "one-cgnat?v=false"
	attrAppConnector tailcfg.NodeCapability = "tailscale.com/app-connectors"
)

// attributesOf are the attributes that the policy gives to nodes of a class.
func (r *rules) attributesOf(k *class) tailcfg.NodeCapMap {
	out := tailcfg.NodeCapMap{}
	if k.noV4 {
		out[attrDisableIPv4] = nil
	}
	for _, a := range r.attrs {
		if !k.in.has(a.set) {
			continue
		}
		for name, vals := range a.rule.attrs {
			out[name] = append(out[name], vals...)
			if name == attrFunnel {
				out[attrFunnelPorts] = nil
				if !r.opts.HTTPS {
					out[attrFunnelHTTPS] = nil
				}
			}
		}
	}
	return out
}

// AttrsFor are the attributes that the policy gives to n itself (tailcfg.Node.CapMap of the self node). The map is the
// caller's.
func (c *Compiled) AttrsFor(n *tailnet.Node) tailcfg.NodeCapMap {
	if c.allowAll {
		return tailcfg.NodeCapMap{}
	}
	k := c.class(c.ClassOf(n))
	if k == nil {
		return tailcfg.NodeCapMap{}
	}
	out := maps.Clone(k.attrs)
	if n.Hostinfo != nil && n.Hostinfo.OS == "macOS" { // OneCGNATRoute is about Macs alone
		switch c.rules.policy.oneCGNAT {
		case "mac-always":
			out[attrOneCGNATOn] = nil
		case "mac-never":
			out[attrOneCGNATOff] = nil
		}
	}
	return out
}

// AddrsOf are the addresses of n that its tailnet knows: all that it has, or without IPv4 where the policy disables that.
func (c *Compiled) AddrsOf(n *tailnet.Node) []netip.Addr {
	if c.allowAll {
		return n.Addrs()
	}
	if k := c.class(c.ClassOf(n)); k != nil && k.noV4 {
		return slices.DeleteFunc(n.Addrs(), netip.Addr.Is4)
	}
	return n.Addrs()
}

// PoolFor are the prefixes that the IPv4 address of a new node like n is to be taken from: those of the first rule with a
// pool that names it. Nil: any. n need not be in c.
func (c *Compiled) PoolFor(n *tailnet.Node) []netip.Prefix {
	if c.allowAll {
		return nil
	}
	in := c.in(n)
	for _, a := range c.rules.attrs {
		if len(a.rule.pool) > 0 && in.has(a.set) {
			return a.rule.pool
		}
	}
	return nil
}

// in are the sets that hold n, whether it is in c or not.
func (c *Compiled) in(n *tailnet.Node) bits {
	var e entry
	e.fill(n)
	return c.signature(&e, n).in
}

// Approves reports whether the policy approves the route p of n by itself. Exit routes are a matter of
// autoApprovers.exitNode alone; another route is approved by every prefix of autoApprovers.routes that holds it.
func (c *Compiled) Approves(n *tailnet.Node, p netip.Prefix) bool {
	if c.allowAll {
		return false
	}
	r := c.rules
	in := c.in(n)
	if tailnet.IsExitRoute(p) {
		return in.has(r.set(r.policy.exit, nil))
	}
	for _, a := range r.policy.routes {
		if covers([]netip.Prefix{a.prefix}, p) && in.has(r.set(a.by, nil)) {
			return true
		}
	}
	return false
}

// ApprovesService reports whether the policy lets n offer a service without an administrator. svc is its name with svc:;
// tags are those of the service.
func (c *Compiled) ApprovesService(n *tailnet.Node, svc string, tags []string) bool {
	if c.allowAll {
		return false
	}
	in := c.in(n)
	for name, by := range c.rules.policy.services {
		if (name == svc || slices.Contains(tags, name)) && in.has(c.rules.set(by, nil)) {
			return true
		}
	}
	return false
}

// MayTag reports whether u may give a device the tag. Administrators may use every tag that the policy knows.
func (c *Compiled) MayTag(u *tailnet.User, tag string) bool {
	if c.allowAll || u == nil {
		return false
	}
	owners, ok := c.rules.policy.tagOwners[tag]
	if !ok {
		return false
	}
	switch u.Role {
	case tailnet.RoleOwner, tailnet.RoleAdmin, tailnet.RoleNetworkAdmin:
		return true
	}
	return c.owns(c.rules.tokens(u), owners)
}

// MayRetag reports whether a device with the tags have may give itself the tag: one of its tags owns it.
func (c *Compiled) MayRetag(have []string, tag string) bool {
	if c.allowAll {
		return false
	}
	var tokens []string
	for _, t := range have {
		tokens = append(tokens, target{kind: kindTag, name: t}.key())
	}
	return slices.Contains(have, tag) || c.owns(tokens, c.rules.policy.tagOwners[tag])
}

func (c *Compiled) owns(tokens []string, owners []target) bool {
	return slices.ContainsFunc(owners, func(t target) bool { return slices.Contains(tokens, t.key()) })
}

// KnowsTag reports whether the policy has the tag among its tagOwners.
func (c *Compiled) KnowsTag(tag string) bool {
	if c.allowAll {
		return false
	}
	_, ok := c.rules.policy.tagOwners[tag]
	return ok
}
