package state

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"

	"github.com/skein-vpn/skein/dns"
	"github.com/skein-vpn/skein/policy"
	"github.com/skein-vpn/skein/state/statetest"
	"github.com/skein-vpn/skein/tailnet"
)

// An action is one random change, drawn before it runs, so that it can run again and in another State.
type action struct {
	kind    string
	node    int // of those that exist, modulo their number
	user    int
	name    string
	routes  []netip.Prefix
	yes     bool
	number  int
	machine key.MachinePublic
	nodeKey key.NodePublic
	fail    string // "error" or "panic": at its end
}

var (
	someNames  = []string{"nas", "homeDS", "Joe's Mac mini", "nas-1", "laptop"}
	someRoutes = prefixes("0.0.0.0/0", "10.0.0.0/8", "192.168.199.0/24", "fd00::/64", "::/0")
)

// somePolicies tell nodes apart by all that a policy can look at; nil takes the policy away.
var somePolicies = []*policy.Policy{
	nil,
	parsePolicy(`{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}`),
	parsePolicy(`{"tagOwners": {"tag:web": []}, "acls": [
		{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:*"]},
		{"action": "accept", "src": ["user-1@", "user-2@"], "dst": ["tag:web:80"]}]}`),
	parsePolicy(`{"tagOwners": {"tag:web": []}, "groups": {"group:few": ["user-3@", "user-4@"]}, "acls": [
		{"action": "accept", "src": ["group:few"], "dst": ["10.0.0.0/8:*", "autogroup:internet:*"]},
		{"action": "accept", "src": ["100.64.0.2"], "dst": ["tag:web:*"]}],
		"autoApprovers": {"routes": {"10.0.0.0/8": ["tag:web"]}, "exitNode": ["user-1@"]}}`),
	parsePolicy(`{"tagOwners": {"tag:web": []}, "autoApprovers": {"services": {"svc:a": ["tag:web"]}},
		"acls": [{"action": "accept", "src": ["*"], "dst": ["svc:a:80", "svc:b:*"]}]}`),
	parsePolicy(`{"acls": []}`),
}

func parsePolicy(text string) *policy.Policy {
	p, err := policy.Parse([]byte(text))
	if err != nil {
		panic(err)
	}
	return p
}

func drawAction(t *rapid.T) *action {
	return &action{
		kind: rapid.SampledFrom([]string{
			"join", "join", "join", "endpoints", "rotate", "hostname", "rename", "own", "advertise", "advertise", "approve", "approve",
			"online", "online", "online", "failing", "steady", "seen", "delete", "readdress", "new user", "rename user", "delete user",
			"new key", "use key", "delete key", "dns", "derp", "policy", "policy", "policy file", "service", "service", "delete service", "offer", "offer", "decide", "nothing",
		}).Draw(t, "kind"),
		node:    rapid.IntRange(0, 20).Draw(t, "node"),
		user:    rapid.IntRange(0, 3).Draw(t, "user"),
		name:    rapid.SampledFrom(someNames).Draw(t, "name"),
		routes:  tailnet.SortPrefixes(rapid.SliceOfN(rapid.SampledFrom(someRoutes), 0, 4).Draw(t, "routes")),
		yes:     rapid.Bool().Draw(t, "yes"),
		number:  rapid.IntRange(1, 9).Draw(t, "number"),
		machine: key.NewMachine().Public(), nodeKey: key.NewNode().Public(),
		fail: rapid.SampledFrom([]string{"", "", "", "", "", "error", "panic"}).Draw(t, "fail"),
	}
}

// service is a name of a service, at times that of a node.
func (a *action) service() string { return []string{"svc:a", "svc:b", "svc:nas"}[a.number%3] }

func (a *action) run(tx *Tx) error {
	if err := a.do(tx); err != nil {
		return err
	}
	switch a.fail {
	case "error":
		return errRefused
	case "panic":
		panic("by the test")
	}
	return nil
}

func (a *action) do(tx *Tx) error {
	nodes := tx.allNodes()
	slices.SortFunc(nodes, func(x, y *tailnet.Node) int { return int(x.ID - y.ID) })
	users := slices.DeleteFunc(slices.Clone(tx.base.users), func(u *tailnet.User) bool { return tx.User(u.ID) == nil })
	keys := tx.PreAuthKeys()
	own := func(n *tailnet.Node) {
		if n.User, n.Tags = 0, []string{"tag:web"}; len(users) > 0 && a.yes {
			n.User, n.Tags = users[a.user%len(users)].ID, nil
		}
	}
	switch a.kind {
	case "nothing":
		return nil
	case "join":
		n, err := fresh(tx, a.name, 0)
		if err != nil {
			return err
		}
		own(n)
		n.MachineKey, n.NodeKey = a.machine, a.nodeKey
		n.DiscoKey = key.DiscoPublic{}
		if a.number < 4 && len(nodes) > 0 { // another profile on a machine
			n.MachineKey = nodes[a.node%len(nodes)].MachineKey
		}
		return tx.PutNode(n)
	case "new user":
		return tx.PutUser(tx.NewUser(fmt.Sprint("user-", a.number)))
	case "new key":
		k := tx.NewPreAuthKey()
		k.Hash, k.Tags = [32]byte{byte(k.ID)}, []string{"tag:web"}
		tx.PutPreAuthKey(k)
		return nil
	case "service":
		s := tx.Service(a.service())
		if s == nil {
			var v4 netip.Addr
			if a.yes {
				v4, _ = wide.at(uint64(a.number)) // taken, often
			}
			var err error
			if s, err = tx.NewService(a.service(), v4); err != nil {
				return err
			}
		}
		s = s.Clone()
		s.Comment = a.name
		return tx.PutService(s)
	case "delete service":
		return tx.DeleteService(a.service())
	case "dns":
		tx.SetDNS(&dns.Settings{Base: fmt.Sprint("d", a.number)})
		return nil
	case "derp":
		tx.SetDERP(&DERPMaps{Current: &tailcfg.DERPMap{}, Home: a.number})
		return nil
	case "policy":
		return tx.SetPolicy(somePolicies[a.number%len(somePolicies)], "tester", a.name)
	case "policy file":
		return tx.UsePolicyFile(somePolicies[a.number%len(somePolicies)])
	case "rename user", "delete user":
		if len(users) == 0 {
			return nil
		}
		u := *users[a.user%len(users)]
		if a.kind == "delete user" {
			return tx.DeleteUser(u.ID)
		}
		u.Name = fmt.Sprint("user-", a.number)
		return tx.PutUser(&u)
	case "use key", "delete key":
		if len(keys) == 0 {
			return nil
		}
		k := *keys[a.node%len(keys)]
		if a.kind == "delete key" {
			tx.DeletePreAuthKey(k.ID)
			return nil
		}
		k.Used = true
		tx.PutPreAuthKey(&k)
		return nil
	}
	if len(nodes) == 0 {
		return nil
	}
	id := nodes[a.node%len(nodes)].ID
	switch a.kind {
	case "online":
		tx.SetOnline(id, a.yes)
		return nil
	case "failing":
		tx.SetFailing(id, a.yes)
		return nil
	case "steady":
		tx.SetSteady(id)
		return nil
	case "seen":
		tx.Seen(id)
		return nil
	case "delete":
		tx.DeleteNode(id)
		return nil
	case "decide":
		return tx.ApproveService(id, a.service(), a.yes)
	}
	return change(tx, id, func(n *tailnet.Node) {
		switch a.kind {
		case "offer":
			tx.SetOffers(n, a.name, []tailnet.Hosting{{Service: a.service(), Offered: true, Active: a.yes}})
		case "endpoints":
			n.HomeDERP = a.number
		case "rotate":
			n.NodeKey = a.nodeKey
		case "hostname":
			n.Name = tx.FreeName(a.name, n.ID)
		case "rename":
			n.Name = dns.Label(a.name) // taken, often
		case "own":
			own(n)
		case "advertise":
			n.Hostinfo = &tailcfg.Hostinfo{RoutableIPs: a.routes}
		case "approve":
			n.ApprovedRoutes = a.routes
		case "readdress":
			n.IPv4, n.IPv6 = wide.at(uint64(a.number)) // taken, often
		default:
			panic("unknown action " + a.kind)
		}
	})
}

// twins are two States that are given the same changes, except that only one of them is given those that fail.
type twins struct {
	t      *rapid.T
	now    time.Time
	a, b   *State
	sa, sb *statetest.Store
}

func newTwins(t *rapid.T) *twins {
	tw := &twins{t: t, now: statetest.Epoch}
	open := func(s *statetest.Store) *State {
		o := options(s)
		o.Now = func() time.Time { return tw.now }
		st, err := Open(ctx, o)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(st.Close)
		return st
	}
	tw.sa, tw.sb = statetest.New(), statetest.New()
	tw.a, tw.b = open(tw.sa), open(tw.sb)
	return tw
}

// step runs one group of random actions.
func (tw *twins) step() {
	t := tw.t
	tw.now = tw.now.Add(time.Duration(rapid.IntRange(0, 2).Draw(t, "seconds")) * time.Second)
	if rapid.IntRange(0, 9).Draw(t, "intruder") == 0 {
		for _, s := range []*statetest.Store{tw.sa, tw.sb} {
			if len(s.Contents().Nodes) > 0 {
				s.Intrude(func(c *tailnet.Contents) *tailnet.Changes {
					n := c.Nodes[0].Clone()
					n.HomeDERP++
					return &tailnet.Changes{PutNodes: []*tailnet.Node{n}}
				})
			}
		}
	}
	var acts []*action
	var fs []func(*Tx) error
	for range rapid.IntRange(1, 4).Draw(t, "group") {
		a := drawAction(t)
		acts, fs = append(acts, a), append(fs, a.run)
	}
	broken := rapid.IntRange(0, 9).Draw(t, "broken") == 0
	if broken {
		tw.sa.FailCommits(1)
	}
	fs2 := []func(*Tx) error{}
	for i, err := range group(tw.a, fs...) {
		if err == nil {
			fs2 = append(fs2, fs[i])
		} else if tailnet.CodeOf(err) == tailnet.Internal && !errors.Is(err, errRefused) && acts[i].fail != "panic" {
			t.Fatalf("%s: %v", acts[i].kind, err)
		}
	}
	tw.sa.FailCommits(0)
	for i, err := range group(tw.b, fs2...) {
		if err != nil {
			t.Fatalf("update %d succeeded behind others that failed, but without them: %v", i, err)
		}
	}
}

// A function that fails, by an error, a panic, a conflict with what exists or a broken store, leaves no trace.
func TestFailuresLeaveNoTrace(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tw := newTwins(t)
		for range rapid.IntRange(1, 25).Draw(t, "steps") {
			tw.step()
			a, b := tw.a.Snapshot(), tw.b.Snapshot()
			if a.Rev != b.Rev { // a failed commit may have met another server's change before the twin does
				continue
			}
			if x, y := describe(a, tw.a.routers), describe(b, tw.b.routers); x != y {
				t.Fatalf("with failures and without: %s", firstDifference(x, y))
			}
			if x, y := nextAddr(tw.a), nextAddr(tw.b); x != y {
				t.Fatalf("the next node would get %s, without failures %s", x, y)
			}
		}
	})
}

// nextAddr is what the next node would get.
func nextAddr(st *State) netip.Addr {
	v4, _, err := newTx(st, st.Snapshot(), time.Time{}).freeAddrs()
	if err != nil {
		panic(err)
	}
	return v4
}

// What is published after random updates is what a restart would make of the store's contents: derived parts are renewed
// wherever they have to be.
func TestSnapshotEqualsRestart(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tw := newTwins(t)
		for range rapid.IntRange(1, 25).Draw(t, "steps") {
			before := tw.a.Snapshot()
			old := describe(before, nil)
			tw.step()
			if now := describe(before, nil); now != old {
				t.Fatalf("a published snapshot changed: %s", firstDifference(old, now))
			}
			if sn := tw.a.Snapshot(); sn.Rev == tw.sa.Contents().Rev { // else another server's change is not known yet
				checkScratch(t, tw.a, tw.sa)
			}
			lowest := netip.Addr{}
			for h := uint64(1); !lowest.IsValid(); h++ {
				v4, v6 := wide.at(h)
				if sn := tw.a.Snapshot(); wide.usable(h) && sn.NodeByAddr(v4) == nil && sn.NodeByAddr(v6) == nil && sn.ServiceByAddr(v4) == nil && sn.ServiceByAddr(v6) == nil {
					lowest = v4
				}
			}
			if got := nextAddr(tw.a); got != lowest {
				t.Fatalf("the next node would get %s, but %s is free", got, lowest)
			}
		}
	})
}
