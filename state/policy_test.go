package state

import (
	"errors"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"tailscale.com/tailcfg"

	"github.com/skein-vpn/skein/policy"
	"github.com/skein-vpn/skein/state/statetest"
	"github.com/skein-vpn/skein/tailnet"
)

var (
	openPolicy   = parsePolicy(`{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}`)
	closedPolicy = parsePolicy(`{"acls": []}`)
	lanPolicy    = parsePolicy(`{"tagOwners": {"tag:router": []}, "autoApprovers": {"routes": {"192.168.0.0/16": ["tag:router"]}},
		"acls": [{"action": "accept", "src": ["junyao@"], "dst": ["192.168.199.0/24:*"]}]}`)
)

// sees reports whether node a is told about node b.
func sees(st *State, a, b tailnet.NodeID) bool {
	sn := st.Snapshot()
	return sn.Policy.SeesNode(sn.Node(a).Node, sn.Node(b).Node)
}

// A policy is stored as a version and published with its commit; taken away, everybody reaches everybody again.
func TestSetPolicy(t *testing.T) {
	store := statetest.New()
	st := open(t, options(store))
	user := addUser(t, st, "junyao")
	a, b := addNode(t, st, "a", user, nil), addNode(t, st, "b", user, nil)
	if !sees(st, a, b) {
		t.Error("without a policy a does not see b")
	}
	set := func(p *policy.Policy) {
		t.Helper()
		must(t, st, func(tx *Tx) error { return tx.SetPolicy(p, "admin", "why not") })
		checkScratch(t, st, store)
	}
	set(closedPolicy)
	if sees(st, a, b) {
		t.Error("under a closed policy a sees b")
	}
	set(openPolicy)
	if !sees(st, a, b) {
		t.Error("under an open policy a does not see b")
	}
	c := addNode(t, st, "c", user, nil)
	if !sees(st, a, c) || !sees(st, c, a) {
		t.Error("a node that joined later is not seen")
	}
	set(nil)
	if sn := st.Snapshot(); sn.Policy != policy.AllowAll() || sn.Text.ID != 3 || sn.Text.Text != "" {
		t.Errorf("taken away: %+v", sn.Text)
	}
	versions, err := st.Policies(ctx, 2, 0)
	if err != nil || len(versions) != 2 || versions[0].ID != 3 || versions[1].Text != string(openPolicy.Text()) || versions[1].Author != "admin" || versions[1].Comment != "why not" {
		t.Errorf("versions %+v, %v", versions, err)
	}
	if v, err := st.PolicyVersion(ctx, 1); err != nil || v.Text != string(closedPolicy.Text()) {
		t.Errorf("version 1: %+v, %v", v, err)
	}
	if _, err := st.PolicyVersion(ctx, 9); tailnet.CodeOf(err) != tailnet.NotFound {
		t.Errorf("version 9: %v", err)
	}
}

// An update that fails after it has set a policy leaves no trace, not even in the next one of the group.
func TestSetPolicyUndone(t *testing.T) {
	store := statetest.New()
	st := open(t, options(store))
	addUser(t, st, "junyao")
	errs := group(st,
		func(tx *Tx) error { return errors.Join(tx.SetPolicy(closedPolicy, "x", ""), errRefused) },
		func(tx *Tx) error {
			if tx.Policy() != policy.AllowAll() || tx.PolicyText() != nil || tx.Tailnet().LastPolicyID != 0 {
				t.Error("the next update sees the policy of one that failed")
			}
			return tx.PutUser(tx.NewUser("other"))
		})
	if errs[0] == nil || errs[1] != nil {
		t.Fatal(errs)
	}
	if sn := st.Snapshot(); sn.Policy != policy.AllowAll() || sn.Text != nil {
		t.Error("the policy of a failed update is in force")
	}
	checkScratch(t, st, store)
}

// With the policy in a file, the file's is in force from the start and after a reload, and nothing else can be set. It is
// put in force without a commit.
func TestPolicyFromFile(t *testing.T) {
	store := statetest.New()
	o := options(store)
	o.PolicyFromFile, o.PolicyFile = true, closedPolicy
	st := open(t, o)
	user := addUser(t, st, "junyao")
	a, b := addNode(t, st, "a", user, nil), addNode(t, st, "b", user, nil)
	if sees(st, a, b) {
		t.Error("the file's policy is not in force")
	}
	if err := st.Update(ctx, "test", func(tx *Tx) error { return tx.SetPolicy(openPolicy, "", "") }); tailnet.CodeOf(err) != tailnet.Conflict || !strings.Contains(err.Error(), "policy.path") {
		t.Errorf("setting another one: %v", err)
	}
	commits := len(store.Commits())
	for _, tc := range []struct {
		p    *policy.Policy
		sees bool
	}{{openPolicy, true}, {closedPolicy, false}, {nil, true}} {
		must(t, st, func(tx *Tx) error { return tx.UsePolicyFile(tc.p) })
		if sees(st, a, b) != tc.sees {
			t.Errorf("after a reload a sees b: %v, want %v", !tc.sees, tc.sees)
		}
	}
	for _, c := range store.Commits()[commits:] { // the audit log alone tells of them
		if ch := c.Changes; ch.PutPolicy != nil || len(ch.Audit) != 1 || ch.Audit[0].Action != "policy.reload" {
			t.Errorf("a policy from a file was stored: %+v", ch)
		}
	}
	if n := len(store.Commits()) - commits; n != 3 {
		t.Errorf("%d commits tell of three other files", n)
	}
}

// A stored policy that is not understood must neither stop the start nor open what the one before it closed.
func TestUnusableStoredPolicy(t *testing.T) {
	versions := func(texts ...string) *statetest.Store {
		store := statetest.NewWith(statetest.Tailnet(2))
		for i, text := range texts {
			store.Intrude(func(c *tailnet.Contents) *tailnet.Changes {
				c.Tailnet.LastPolicyID = tailnet.PolicyID(i + 1)
				return &tailnet.Changes{Tailnet: &c.Tailnet, PutPolicy: &tailnet.PolicyVersion{ID: c.Tailnet.LastPolicyID, Text: text}}
			})
		}
		return store
	}
	shut, open2, bad := string(closedPolicy.Text()), string(openPolicy.Text()), `{"acls": "from the future"}`
	for _, tc := range []struct {
		name  string
		texts []string
		sees  bool
	}{
		{"none", nil, true},
		{"a good one", []string{shut}, false},
		{"the newest counts", []string{shut, open2}, true},
		{"taken away", []string{shut, ""}, true},
		{"a bad one after a closed one", []string{open2, shut, bad}, false},
		{"a bad one after an open one", []string{shut, open2, bad}, true},
		{"two bad ones", []string{open2, bad, bad}, true},
		{"a bad one after none", []string{"", bad}, true},
		{"only bad ones", []string{bad, bad}, false},
	} {
		st := open(t, options(versions(tc.texts...)))
		if got := sees(st, 1, 2); got != tc.sees {
			t.Errorf("%s: a sees b: %v, want %v", tc.name, got, tc.sees)
		}
		if sn := st.Snapshot(); len(tc.texts) > 0 && sn.Text.Text != tc.texts[len(tc.texts)-1] {
			t.Errorf("%s: the text is %q", tc.name, sn.Text.Text)
		}
	}
}

// A policy that another server sets is in force here once it is known, and this server's own changes go on under it.
func TestPolicyOfAnotherServer(t *testing.T) {
	store := statetest.NewWith(statetest.Tailnet(2))
	st := open(t, options(store))
	once := sync.OnceFunc(func() {
		store.Intrude(func(c *tailnet.Contents) *tailnet.Changes {
			c.Tailnet.LastPolicyID = 1
			return &tailnet.Changes{Tailnet: &c.Tailnet, PutPolicy: &tailnet.PolicyVersion{ID: 1, Text: string(closedPolicy.Text())}}
		})
	})
	store.BeforeCommit(func(tailnet.Rev, *tailnet.Changes) error { once(); return nil })
	id := addNode(t, st, "third", 1, nil)
	if sees(st, 1, 2) || sees(st, 1, id) {
		t.Error("the other server's policy is not in force")
	}
	checkScratch(t, st, store)
}

// Routes that a policy approves by itself are approved when it is set and, with AutoApprove, as they are advertised; what
// was approved stays.
func TestAutoApprove(t *testing.T) {
	store := statetest.New()
	st := open(t, options(store))
	addUser(t, st, "junyao")
	router := func(n *tailnet.Node) {
		n.Tags, n.User = []string{"tag:router"}, 0
		n.Hostinfo = &tailcfg.Hostinfo{RoutableIPs: prefixes("10.0.0.0/8", "192.168.199.0/24")}
	}
	id := addNode(t, st, "nas", 0, router)
	other := addNode(t, st, "laptop", 1, func(n *tailnet.Node) {
		n.Hostinfo = &tailcfg.Hostinfo{RoutableIPs: prefixes("192.168.199.0/24")}
	})
	must(t, st, func(tx *Tx) error { return tx.SetPolicy(lanPolicy, "", "") })
	sn := st.Snapshot()
	if got := tailnet.FormatPrefixes(sn.Node(id).ApprovedRoutes); got != "192.168.199.0/24" || len(sn.Node(other).ApprovedRoutes) != 0 {
		t.Errorf("approved: %q and %q", got, sn.Node(other).ApprovedRoutes)
	}
	if p := sn.Routes.Primary(lan); p != id {
		t.Errorf("primary %d, want %d", p, id)
	}
	must(t, st, func(tx *Tx) error {
		n := tx.Node(id).Clone()
		n.Hostinfo = &tailcfg.Hostinfo{RoutableIPs: prefixes("192.168.7.0/24", "172.16.0.0/12")}
		if !tx.AutoApprove(n) || tx.AutoApprove(n) {
			t.Error("AutoApprove does not say whether it approved anything")
		}
		return tx.PutNode(n)
	})
	if got := tailnet.FormatPrefixes(st.Snapshot().Node(id).ApprovedRoutes); got != "192.168.7.0/24, 192.168.199.0/24" {
		t.Errorf("approved: %q", got)
	}
	must(t, st, func(tx *Tx) error { return tx.SetPolicy(nil, "", "") })
	if got := len(st.Snapshot().Node(id).ApprovedRoutes); got != 2 {
		t.Errorf("%d routes are approved after the policy is gone, want 2", got)
	}
	checkScratch(t, st, store)
}

// Of several routers, Carrier is the primary where viewers may use it, and else the first that is usable.
func TestCarrier(t *testing.T) {
	c := statetest.Tailnet(3)
	for _, n := range c.Nodes {
		n.Hostinfo.RoutableIPs, n.ApprovedRoutes = []netip.Prefix{lan}, []netip.Prefix{lan}
	}
	st := open(t, options(statetest.NewWith(c)))
	must(t, st, func(tx *Tx) error { tx.SetOnline(1, true); tx.SetOnline(3, true); return nil })
	sn := st.Snapshot()
	ids := func(is ...tailnet.NodeID) []tailnet.NodeID { return is }
	for _, tc := range []struct {
		among []tailnet.NodeID
		want  tailnet.NodeID
	}{{nil, 1}, {ids(2, 1), 1}, {ids(2, 3), 3}, {ids(2), 2}, {[]tailnet.NodeID{}, 0}} {
		if got := sn.Carrier(lan, tc.among); got != tc.want {
			t.Errorf("among %v: %d, want %d", tc.among, got, tc.want)
		}
	}
}
