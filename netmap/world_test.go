package netmap

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"pgregory.net/rapid"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"

	"github.com/skein-vpn/skein/dns"
	"github.com/skein-vpn/skein/policy"
	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/state/statetest"
	"github.com/skein-vpn/skein/tailnet"
)

var ctx = context.Background()

// testing is what tests, benchmarks and rapid have in common.
type testingT interface {
	Helper()
	Fatal(...any)
	Fatalf(string, ...any)
	Cleanup(func())
}

// relays is a relay map with the given regions.
func relays(regions ...int) *tailcfg.DERPMap {
	m := &tailcfg.DERPMap{Regions: map[int]*tailcfg.DERPRegion{}}
	for _, r := range regions {
		m.Regions[r] = &tailcfg.DERPRegion{RegionID: r, RegionCode: fmt.Sprint("r", r), RegionName: fmt.Sprint("Region ", r)}
	}
	return m
}

// world is a State with a clock of its own and an encoder.
type world struct {
	t     testingT
	clock atomic.Pointer[time.Time] // which state's own goroutine reads as well
	st    *state.State
	enc   *Encoder
}

func (w *world) now() time.Time       { return *w.clock.Load() }
func (w *world) setNow(t time.Time)   { w.clock.Store(&t) }
func (w *world) pass(d time.Duration) { w.setNow(w.now().Add(d)) }

func newWorld(t testingT, store state.Store) *world {
	w := &world{t: t}
	w.setNow(statetest.Epoch)
	w.enc = New(Options{Taildrop: true}, w.now)
	var err error
	w.st, err = state.Open(ctx, state.Options{
		Store: store, Now: w.now, RestartGrace: 1000 * time.Hour,
		Addressing: state.Addressing{Prefix4: netip.MustParsePrefix("100.64.0.0/10"), Prefix6: netip.MustParsePrefix("fd7a:115c:a1e0::/48")},
		DNS:        &dns.Settings{MagicDNS: true, Base: "skein.internal"},
		DERP:       &state.DERPMaps{Current: relays(901), Home: 901},
		Log:        slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.st.Close)
	return w
}

// snapshot is the newest snapshot.
func (w *world) snapshot() *state.Snapshot { return w.st.Snapshot() }

// update changes the state; it must succeed.
func (w *world) update(f func(*state.Tx) error) {
	w.t.Helper()
	if err := w.st.Update(ctx, "test", f); err != nil {
		w.t.Fatal(err)
	}
}

// edit changes one node.
func (w *world) edit(id tailnet.NodeID, f func(tx *state.Tx, n *tailnet.Node)) {
	w.t.Helper()
	w.update(func(tx *state.Tx) error {
		n := tx.Node(id).Clone()
		f(tx, n)
		return tx.PutNode(n)
	})
}

// join adds a node that is not published yet; zero user: tagged.
func (w *world) join(hostname string, user tailnet.UserID) (id tailnet.NodeID) {
	w.t.Helper()
	w.update(func(tx *state.Tx) error {
		n, err := tx.NewNode(hostname)
		if err != nil {
			return err
		}
		if n.User = user; user == 0 {
			n.Tags = []string{"tag:web"}
		}
		n.MachineKey, n.NodeKey, n.Authorized = key.NewMachine().Public(), key.NewNode().Public(), true
		n.Hostinfo, n.Capver = &tailcfg.Hostinfo{Hostname: hostname, OS: "linux"}, 142
		id = n.ID
		return tx.PutNode(n)
	})
	return id
}

func (w *world) user(name string) (id tailnet.UserID) {
	w.t.Helper()
	w.update(func(tx *state.Tx) error {
		u := tx.NewUser(name)
		id = u.ID
		return tx.PutUser(u)
	})
	return id
}

// full is a client that has just been sent the full map of sn.
func (w *world) full(sn *state.Snapshot, v Viewer) *client {
	w.t.Helper()
	c := newClient(v)
	f, ok := w.enc.Full(sn, v)
	if !ok {
		w.t.Fatalf("no full map for node %d", v.Node)
	}
	if err := c.receive(f); err != nil {
		w.t.Fatalf("the full map of node %d: %v", v.Node, err)
	}
	return c
}

var (
	aLAN     = netip.MustParsePrefix("192.168.199.0/24")
	aNet     = netip.MustParsePrefix("10.0.0.0/8")
	exit4    = netip.MustParsePrefix("0.0.0.0/0")
	exit6    = netip.MustParsePrefix("::/0")
	routeSet = []netip.Prefix{exit4, aNet, aLAN, netip.MustParsePrefix("fd00::/64"), exit6}
	epSet    = []netip.AddrPort{
		netip.MustParseAddrPort("192.0.2.1:41641"), netip.MustParseAddrPort("192.0.2.2:41641"), netip.MustParseAddrPort("[2001:db8::1]:41641"),
	}
	nameSet = []string{"nas", "homeDS", "Joe's Mac mini", "laptop"}
)

// somePolicies tell nodes apart by all that a policy can look at; nil is none.
var somePolicies = []*policy.Policy{
	nil,
	parsePolicy(`{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}`),
	parsePolicy(`{"acls": [{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:*"]}]}`),
	parsePolicy(`{"tagOwners": {"tag:web": [], "tag:db": []}, "acls": [
		{"action": "accept", "src": ["user-0@", "user-1@"], "dst": ["tag:web:80,443"]},
		{"action": "accept", "src": ["tag:web"], "dst": ["tag:db:5432"]},
		{"action": "accept", "src": ["user-0@"], "dst": ["192.168.199.0/24:*"]}]}`),
	parsePolicy(`{"tagOwners": {"tag:web": [], "tag:db": []}, "acls": [
		{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:*", "autogroup:internet:*"]},
		{"action": "accept", "src": ["100.64.0.2"], "dst": ["10.0.0.0/8:22", "tag:web:*"]}],
		"autoApprovers": {"routes": {"10.0.0.0/8": ["tag:web"]}, "exitNode": ["tag:db"]}}`),
	parsePolicy(`{"tagOwners": {"tag:web": [], "tag:db": []}, "grants": [
		{"src": ["user-0@", "tag:db"], "dst": ["192.168.199.0/24"], "ip": ["*"], "via": ["tag:web"]},
		{"src": ["user-1@"], "dst": ["192.168.199.0/24", "10.0.0.0/8"], "ip": ["tcp:22"], "via": ["tag:db"]},
		{"src": ["autogroup:admin"], "dst": ["*"], "ip": ["*"]}]}`),
	parsePolicy(`{"tagOwners": {"tag:web": [], "tag:db": []}, "groups": {"group:few": ["user-1@", "user-2@"]},
		"postures": {"posture:nas": ["node:os == 'linux'", "node:tsVersion >= '1.90'"]}, "hosts": {"home": "192.168.199.7"},
		"acls": [
			{"action": "accept", "src": ["group:few"], "srcPosture": ["posture:nas"], "dst": ["home:*", "tag:db:*"]},
			{"action": "accept", "proto": "icmp", "src": ["autogroup:tagged"], "dst": ["autogroup:member:*"]}],
		"grants": [{"src": ["tag:web"], "dst": ["tag:db"], "app": {"example.com/cap/x": [{"a": 1}]}}],
		"ssh": [{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self"], "users": ["autogroup:nonroot"]},
			{"action": "accept", "src": ["group:few"], "dst": ["tag:web"], "users": ["root"]}],
		"nodeAttrs": [{"target": ["tag:web", "user-0@"], "attr": ["funnel", "randomize-client-port"]}]}`),
	parsePolicy(`{"tagOwners": {"tag:web": [], "tag:db": []}, "autoApprovers": {"services": {"svc:a": ["tag:web"], "tag:db": ["tag:db"]}},
		"acls": [{"action": "accept", "src": ["user-0@", "tag:db"], "dst": ["svc:a:80", "tag:db:22"]}],
		"grants": [{"src": ["user-1@"], "dst": ["svc:b"], "ip": ["443"], "app": {"example.com/cap/x": [{"a": 1}]}}]}`),
	parsePolicy(`{"acls": []}`),
}

// someServices are offered and made at random.
var someServices = []string{"svc:a", "svc:b", "svc:nas"}

func parsePolicy(text string) *policy.Policy {
	p, err := policy.Parse([]byte(text))
	if err != nil {
		panic(err)
	}
	return p
}

// subset draws some of vs, in order.
func subset[T any](t *rapid.T, label string, vs []T) (out []T) {
	mask := rapid.IntRange(0, 1<<len(vs)-1).Draw(t, label)
	for i, v := range vs {
		if mask>>i&1 == 1 {
			out = append(out, v)
		}
	}
	return out
}

// randomChange makes one random change of the world and returns what it was.
func (w *world) randomChange(t *rapid.T) string {
	w.pass(time.Duration(rapid.SampledFrom([]int{0, 0, 0, 300, 1000, 90000, 3600000}).Draw(t, "ms")) * time.Millisecond)
	sn := w.st.Snapshot()
	kinds := []string{"join", "join", "user", "dns", "derp", "policy", "service", "service", "nothing"}
	if len(sn.Nodes()) > 0 {
		kinds = append(kinds, "lite", "lite", "lite", "lite", "hostinfo", "rotate", "owner", "rename", "advertise", "advertise", "approve",
			"approve", "approve", "online", "online", "online", "online", "failing", "steady", "seen", "expire", "delete", "authorize",
			"signature", "capver", "rename user", "relogin", "offer", "offer", "decide", "status", "renew", "renew", "use key")
	}
	kind := rapid.SampledFrom(kinds).Draw(t, "change")
	id := tailnet.NodeID(0)
	if n := len(sn.Nodes()); n > 0 {
		id = sn.Nodes()[rapid.IntRange(0, n-1).Draw(t, "node")].ID
	}
	yes := rapid.Bool().Draw(t, "yes")
	name := rapid.SampledFrom(nameSet).Draw(t, "name")
	owner := func() tailnet.UserID {
		if us := sn.Users(); len(us) > 0 && rapid.IntRange(0, 3).Draw(t, "owner") > 0 {
			return us[rapid.IntRange(0, len(us)-1).Draw(t, "user")].ID
		}
		return 0
	}
	switch kind {
	case "nothing":
	case "status":
		if us := sn.Users(); len(us) > 0 {
			u := *us[rapid.IntRange(0, len(us)-1).Draw(t, "user")]
			u.Status = rapid.SampledFrom([]tailnet.UserStatus{tailnet.UserActive, tailnet.UserActive, tailnet.UserWaiting, tailnet.UserSuspended}).Draw(t, "status")
			w.update(func(tx *state.Tx) error { return tx.PutUser(&u) })
		}
	case "service":
		service := rapid.SampledFrom(someServices).Draw(t, "service")
		err := w.st.Update(ctx, "test", func(tx *state.Tx) error {
			s := tx.Service(service)
			if s != nil && yes {
				return tx.DeleteService(service)
			}
			if s == nil {
				var err error
				if s, err = tx.NewService(service, netip.Addr{}); err != nil {
					return err
				}
			}
			s = s.Clone()
			s.Tags = []string{"tag:" + []string{"web", "db"}[len(name)%2]}
			return tx.PutService(s)
		})
		if err != nil && tailnet.CodeOf(err) != tailnet.Conflict { // a node has the name
			t.Fatal(err)
		}
	case "offer":
		var offers []tailnet.Hosting
		for _, s := range subset(t, "offers", someServices) {
			offers = append(offers, tailnet.Hosting{Service: s, Offered: true, Active: yes || s == "svc:b", Ports: []string{"tcp:80"}})
		}
		w.edit(id, func(tx *state.Tx, n *tailnet.Node) { tx.SetOffers(n, fmt.Sprint(len(offers), yes), offers) })
	case "decide":
		service := rapid.SampledFrom(someServices).Draw(t, "service")
		if sn.Service(service) != nil {
			w.update(func(tx *state.Tx) error { return tx.ApproveService(id, service, yes || name == "nas") })
		}
	case "renew": // as auth does
		w.edit(id, func(tx *state.Tx, n *tailnet.Node) { tx.NewKey(n, key.NewNode().Public()) })
	case "use key":
		w.update(func(tx *state.Tx) error { return tx.KeyInUse(id) })
	case "user":
		w.user(fmt.Sprint("user-", len(sn.Users())))
	case "rename user":
		if us := sn.Users(); len(us) > 0 {
			u := *us[rapid.IntRange(0, len(us)-1).Draw(t, "user")]
			u.DisplayName = name
			u.Role = rapid.SampledFrom([]tailnet.Role{tailnet.RoleMember, tailnet.RoleAdmin}).Draw(t, "role")
			w.update(func(tx *state.Tx) error { return tx.PutUser(&u) })
		}
	case "join":
		id := w.join(name, owner())
		if rapid.IntRange(0, 3).Draw(t, "authorized") == 0 {
			w.edit(id, func(_ *state.Tx, n *tailnet.Node) { n.Authorized = false })
		}
		if yes {
			w.edit(id, func(_ *state.Tx, n *tailnet.Node) { n.DiscoKey = key.NewDisco().Public() })
		}
	case "lite":
		eps := subset(t, "endpoints", epSet)
		home := rapid.IntRange(0, 3).Draw(t, "home")
		disco := rapid.IntRange(0, 2).Draw(t, "disco") == 0
		w.edit(id, func(tx *state.Tx, n *tailnet.Node) {
			n.Endpoints = eps
			if home != 0 {
				n.HomeDERP = 900 + home
			}
			if disco || n.DiscoKey.IsZero() {
				n.DiscoKey = key.NewDisco().Public()
				tx.Seen(id)
			}
		})
	case "hostinfo":
		services := []tailcfg.Service{{Proto: "peerapi4", Port: 1}, {Proto: tailcfg.TCP, Port: 22}}[:rapid.IntRange(0, 2).Draw(t, "services")]
		w.edit(id, func(tx *state.Tx, n *tailnet.Node) {
			h := n.Hostinfo.Clone()
			h.Hostname, h.Services = name, services
			h.IPNVersion = rapid.SampledFrom([]string{"", "1.80.3", "1.102.5"}).Draw(t, "version")
			h.DeviceModel = fmt.Sprint(yes) // of no interest to peers
			n.Hostinfo, n.Hostname, n.Name = h, name, tx.FreeName(name, id)
		})
	case "rotate":
		w.edit(id, func(_ *state.Tx, n *tailnet.Node) { n.OldNodeKey, n.NodeKey = n.NodeKey, key.NewNode().Public() })
	case "relogin": // much at once, as after a logout
		w.edit(id, func(_ *state.Tx, n *tailnet.Node) {
			n.OldNodeKey, n.NodeKey, n.DiscoKey = n.NodeKey, key.NewNode().Public(), key.NewDisco().Public()
			n.Endpoints, n.Expiry, n.KeySignature = nil, time.Time{}, nil
		})
	case "owner":
		o := owner()
		w.edit(id, func(_ *state.Tx, n *tailnet.Node) {
			if n.User, n.Tags = o, nil; o == 0 {
				n.Tags = []string{"tag:" + []string{"web", "db"}[len(name)%2]}
			}
		})
	case "rename":
		w.edit(id, func(tx *state.Tx, n *tailnet.Node) { n.Name = tx.FreeName(name, id) })
	case "advertise":
		rs := subset(t, "routes", routeSet)
		w.edit(id, func(_ *state.Tx, n *tailnet.Node) {
			h := n.Hostinfo.Clone()
			h.RoutableIPs = rs
			n.Hostinfo = h
		})
	case "approve":
		rs := subset(t, "routes", routeSet)
		if yes {
			rs = routeSet
		}
		w.edit(id, func(_ *state.Tx, n *tailnet.Node) { n.ApprovedRoutes = tailnet.SortPrefixes(slices.Clone(rs)) })
	case "online":
		w.update(func(tx *state.Tx) error { tx.SetOnline(id, yes); return nil })
	case "failing":
		w.update(func(tx *state.Tx) error { tx.SetFailing(id, yes); return nil })
	case "steady":
		w.update(func(tx *state.Tx) error { tx.SetSteady(id); return nil })
	case "seen":
		w.update(func(tx *state.Tx) error { tx.Seen(id); return nil })
	case "expire":
		by := time.Duration(rapid.IntRange(-2, 2).Draw(t, "hours")) * time.Hour
		w.edit(id, func(tx *state.Tx, n *tailnet.Node) {
			if n.Expiry = tx.Now().Add(by); by == 0 {
				n.Expiry = time.Time{}
			}
		})
	case "delete":
		w.update(func(tx *state.Tx) error { tx.DeleteNode(id); return nil })
	case "authorize":
		w.edit(id, func(_ *state.Tx, n *tailnet.Node) { n.Authorized = yes })
	case "signature":
		w.edit(id, func(_ *state.Tx, n *tailnet.Node) {
			if n.KeySignature = nil; yes {
				n.KeySignature = []byte(name)
			}
		})
	case "capver":
		w.edit(id, func(_ *state.Tx, n *tailnet.Node) { n.Capver = tailcfg.CapabilityVersion(100 + len(name)) })
	case "dns":
		s := *sn.DNS
		s.Base = rapid.SampledFrom([]string{"skein.internal", "skein.internal", "home.example"}).Draw(t, "base")
		s.Nameservers = subset(t, "nameservers", dns.Resolvers("192.0.2.53", "2001:db8::53"))
		s.MagicDNS = yes
		w.update(func(tx *state.Tx) error { tx.SetDNS(&s); return nil })
	case "derp":
		m := *sn.DERP
		if rapid.Bool().Draw(t, "current") {
			regions := subset(t, "regions", []int{901, 902, 903})
			m.Current = relays(regions...)
			if m.Home = 0; len(regions) == 1 {
				m.Home = regions[0]
			}
			if yes {
				m.Current.HomeParams = &tailcfg.DERPHomeParams{RegionScore: map[int]float64{901: 2}}
			}
		}
		if m.Old, m.OldBelow = nil, 0; rapid.Bool().Draw(t, "old") {
			m.Old, m.OldBelow = relays(904), 131
		}
		w.update(func(tx *state.Tx) error { tx.SetDERP(&m); return nil })
	case "policy":
		p := rapid.SampledFrom(somePolicies).Draw(t, "policy")
		w.update(func(tx *state.Tx) error { return tx.SetPolicy(p, "tester", "") })
	}
	if err := w.st.Tick(ctx); err != nil { // as happens by itself with a clock that runs
		t.Fatal(err)
	}
	return kind
}
