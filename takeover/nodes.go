package takeover

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/types/key"

	"github.com/skein-vpn/skein/dns"
	"github.com/skein-vpn/skein/tailnet"
)

// approvedRoutes are the enabled rows of the table routes (until 0.25), by node.
func approvedRoutes(rows []row) map[int64][]string {
	out := map[int64][]string{}
	for _, r := range rows {
		if r.flag("enabled") && !r.deleted() {
			out[r.id("node_id")] = append(out[r.id("node_id")], r["prefix"])
		}
	}
	return out
}

// takeNodes makes nodes, oldest first, so that of two that cannot both stay as they are the older one does.
func (t *translation) takeNodes(rows []row, routes map[int64][]string) {
	names, addrs, stable := map[string]tailnet.NodeID{}, map[netip.Addr]tailnet.NodeID{}, map[key.NodePublic]*tailnet.Node{}
	slices.SortStableFunc(rows, func(a, b row) int { return cmp.Compare(a.id("id"), b.id("id")) })
	for _, r := range rows {
		id := r.id("id")
		t.plan.LastNode = max(t.plan.LastNode, tailnet.NodeID(min(id, maxID)))
		if r.deleted() {
			continue
		}
		t.report.Nodes.Found++
		what := fmt.Sprintf("node %s (%s)", shown(r["id"]), shown(r["given_name"]))
		n, why := t.node(r, what)
		if n == nil {
			t.report.skipped(what, "%s", why)
			continue
		}
		if other := stable[n.NodeKey]; other != nil {
			// A client polls with one of them; which, only time could tell.
			if !t.seen(r).After(t.plan.Presence[other.ID].LastSeen) {
				t.report.skipped(what, "node %d has the same node key and was seen later", other.ID)
				continue
			}
			t.report.skipped(fmt.Sprintf("node %d (%s)", other.ID, other.Name), "node %d has the same node key and was seen later", n.ID)
			t.plan.Nodes = slices.DeleteFunc(t.plan.Nodes, func(o *tailnet.Node) bool { return o == other })
			delete(t.plan.Presence, other.ID)
			delete(names, other.Name)
			for _, a := range other.Addrs() {
				delete(addrs, a)
			}
		}
		stable[n.NodeKey] = n
		t.name(n, r, names, what)
		t.address(n, r, addrs, what)
		t.approve(n, r, routes[id], what)
		t.plan.Nodes = append(t.plan.Nodes, n)
		t.plan.Presence[n.ID] = tailnet.Presence{LastSeen: t.seen(r)}
	}
	t.presume()
	t.readdress(addrs)
}

func (t *translation) seen(r row) time.Time {
	at, _ := r.time("last_seen")
	return at
}

// node is a row without name, addresses and approved routes; nil, with the reason, if it is of no use.
func (t *translation) node(r row, what string) (*tailnet.Node, string) {
	id := r.id("id")
	if id == 0 || id > maxID {
		return nil, "its id cannot be used"
	}
	n := &tailnet.Node{ID: tailnet.NodeID(id), Authorized: true}
	n.StableID = n.ID.String()
	if err := n.MachineKey.UnmarshalText([]byte(r["machine_key"])); err != nil || n.MachineKey.IsZero() {
		return nil, "its machine key cannot be read, so no client could use it"
	}
	if err := n.NodeKey.UnmarshalText([]byte(r["node_key"])); err != nil || n.NodeKey.IsZero() {
		return nil, "its node key cannot be read, so no client could use it"
	}
	if s := r["disco_key"]; s != "" && n.DiscoKey.UnmarshalText([]byte(s)) != nil {
		n.DiscoKey = key.DiscoPublic{} // the client tells it again with its next request
	}
	h := new(tailcfg.Hostinfo)
	if s := r["host_info"]; s != "" {
		if err := json.Unmarshal([]byte(s), h); err != nil {
			h = new(tailcfg.Hostinfo)
			t.report.changed(what, "its host info cannot be read; the client tells it again")
		}
	}
	n.Hostinfo = tailnet.CleanHostinfo(h)
	n.Hostname = n.Hostinfo.Hostname
	if n.Hostname == "" {
		n.Hostname = tailnet.CleanText(r["hostname"])
	}
	if n.Hostinfo.NetInfo != nil {
		n.HomeDERP = max(0, n.Hostinfo.NetInfo.PreferredDERP)
	}
	t.endpoints(n, r, what)
	n.Created, _ = r.time("created_at")
	n.RegisterMethod = map[string]string{"authkey": tailnet.RegisteredByKey, "cli": tailnet.RegisteredByCLI, "oidc": "oidc"}[r["register_method"]]
	if k := t.keys[r.id("auth_key_id")]; k != nil {
		n.PreAuthKey, n.Ephemeral = tailnet.PreAuthKeyID(r.id("auth_key_id")), k.flag("ephemeral")
	}
	t.own(n, r, what)
	var ok bool
	if n.Expiry, ok = r.time("expiry"); !ok {
		t.report.changed(what, "its key ends now, because its expiry %q is not a time; it has to log in again", shown(r["expiry"]))
		n.Expiry = time.Unix(1, 0).UTC()
	}
	if n.Tagged() && !n.Expiry.IsZero() {
		n.Expiry = time.Time{} // tagged nodes do not expire
	}
	return n, ""
}

func (t *translation) endpoints(n *tailnet.Node, r row, what string) {
	eps, ok := r.list("endpoints")
	if !ok {
		t.report.changed(what, "its endpoints cannot be read; the client tells them again")
	}
	var out []netip.AddrPort
	for _, s := range eps {
		if ap, err := netip.ParseAddrPort(s); err == nil {
			out = append(out, ap)
		}
	}
	n.Endpoints, n.EndpointTypes = tailnet.CleanEndpoints(out, nil)
}

// own settles whom a node belongs to: its tags, or its user. Until 0.27 the tags that it asks for count if the policy lets its
// user give them. A node without a user may have lost it to a fault of 0.29.0; its pre-auth key still knows.
func (t *translation) own(n *tailnet.Node, r row, what string) {
	var tags []string
	for _, column := range []string{"tags", "forced_tags"} {
		list, ok := r.list(column)
		if !ok {
			t.report.changed(what, "its tags cannot be read: %s", shown(r[column]))
		}
		tags = append(tags, list...)
	}
	u := t.users[r.id("user_id")]
	if t.wishes {
		for _, tag := range n.Hostinfo.RequestTags {
			if slices.Contains(tags, tag) {
				continue
			}
			if u != nil && t.rules != nil && t.rules.MayTag(u, tag) {
				tags = append(tags, tag)
				continue
			}
			t.report.changed(what, "asks for %s, which the policy does not let its user give", shown(tag))
		}
	}
	if n.Tags = t.cleanTags(tags, what); len(n.Tags) > 0 {
		if t.wishes && u != nil {
			t.report.changed(what, "belongs to its tags now, and no longer to %s", u.Name)
		}
		return
	}
	if u == nil {
		if k := t.keys[r.id("auth_key_id")]; k != nil {
			if u = t.users[k.id("user_id")]; u != nil {
				t.report.changed(what, "has lost its user; it belongs to %s, for whom its pre-auth key was made", u.Name)
			}
		}
	}
	if u == nil {
		u = t.owner()
		t.report.changed(what, "has lost its user; it belongs to %s", u.Name)
	}
	n.User = u.ID
}

// resolvable are names that clients find in DNS. They do not mind "_", which we give to no node (dnsname.ToFQDN).
var resolvable = regexp.MustCompile(`^[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?$`)

// name keeps the node's name, as far as it is a name in DNS and no older node has it.
func (t *translation) name(n *tailnet.Node, r row, taken map[string]tailnet.NodeID, what string) {
	was := r["given_name"]
	if was == "" {
		was = n.Hostname
	}
	label, why := was, "an older node has that name"
	if !resolvable.MatchString(was) {
		label, why = dns.Label(was), "its name is not one in DNS"
	}
	n.Name = dns.Unique(label, func(label string) bool { return taken[label] != 0 })
	taken[n.Name] = n.ID
	if n.Name != r["given_name"] {
		t.report.changed(what, "is called %s now, because %s", n.Name, why)
	}
	n.NameFixed = n.Name != dns.Label(n.Hostname) // otherwise a new host name renames it, as it did
}

// address keeps the node's addresses, but for those that an older node has.
func (t *translation) address(n *tailnet.Node, r row, taken map[netip.Addr]tailnet.NodeID, what string) {
	for _, f := range []struct {
		column string
		to     *netip.Addr
		fits   func(netip.Addr) bool
	}{{"ipv4", &n.IPv4, netip.Addr.Is4}, {"ipv6", &n.IPv6, netip.Addr.Is6}} {
		s := r[f.column]
		if s == "" {
			continue
		}
		a, err := netip.ParseAddr(s)
		switch {
		case err != nil || !f.fits(a) || a.Zone() != "":
			t.report.changed(what, "loses the address %s, which is none", shown(s))
		case taken[a] != 0:
			t.report.changed(what, "loses the address %s, which node %d has, too", a, taken[a])
		default:
			taken[a], *f.to = n.ID, a
		}
	}
}

// reserved are those of the first addresses that clients keep for themselves (net/tsaddr).
var reserved = []netip.Prefix{
	netip.MustParsePrefix("100.100.0.0/24"), netip.MustParsePrefix("100.100.100.0/24"), netip.MustParsePrefix("100.115.92.0/23"),
}

// readdress gives an address to nodes that have none: a node without any cannot be reached.
func (t *translation) readdress(taken map[netip.Addr]tailnet.NodeID) {
	next := netip.MustParseAddr("100.64.0.1")
	for _, n := range t.plan.Nodes {
		if n.IPv4.IsValid() || n.IPv6.IsValid() {
			continue
		}
		for taken[next] != 0 || slices.ContainsFunc(reserved, func(p netip.Prefix) bool { return p.Contains(next) }) {
			next = next.Next()
		}
		n.IPv4, taken[next] = next, n.ID
		t.report.changed(fmt.Sprintf("node %d (%s)", n.ID, n.Name), "has the address %s now, because it has none of its own", next)
	}
}

// approve takes over the approved routes, of the node's own column and of the table routes.
func (t *translation) approve(n *tailnet.Node, r row, older []string, what string) {
	list, ok := r.list("approved_routes")
	if !ok {
		t.report.changed(what, "its approved routes cannot be read: %s", shown(r["approved_routes"]))
	}
	for _, s := range append(list, older...) {
		p, err := tailnet.ParseRoute(s)
		if err != nil {
			t.report.changed(what, "loses an approved route: %v", err)
			continue
		}
		n.ApprovedRoutes = append(n.ApprovedRoutes, p)
	}
	n.ApprovedRoutes = tailnet.SortPrefixes(n.ApprovedRoutes)
}

// presume says who counts as online until it has had time to come back: who was seen shortly before the end, and every router,
// so that no route moves because its router is the last to return.
func (t *translation) presume() {
	var newest time.Time
	for _, p := range t.plan.Presence {
		if p.LastSeen.After(newest) {
			newest = p.LastSeen
		}
	}
	for _, n := range t.plan.Nodes {
		p := t.plan.Presence[n.ID]
		p.Online = len(n.ActiveRoutes()) > 0 || !p.LastSeen.IsZero() && newest.Sub(p.LastSeen) < recent
		t.plan.Presence[n.ID] = p
	}
}
