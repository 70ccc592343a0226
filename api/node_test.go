package api

import (
	"bytes"
	"encoding/json"
	"flag"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/types/key"

	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

var update = flag.Bool("update", false, "write testdata anew")

// The keys of a node in JSON are what other people's tools read.
func TestNodeJSON(t *testing.T) {
	w := seed(t)
	k, err := w.client.CreatePreAuthKey(w.ctx(), CreatePreAuthKeyRequest{User: "junyao", Reusable: true})
	if err != nil {
		t.Fatal(err)
	}
	err = w.st.Update(w.ctx(), "test", func(tx *state.Tx) error {
		n := tx.Node(2).Clone()
		n.PreAuthKey, n.RegisterMethod, n.Expiry, n.HomeDERP = tailnet.PreAuthKeyID(k.ID), tailnet.RegisteredByKey, noon.Add(time.Hour), 999
		return tx.PutNode(n)
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.client.EnableRoutes(w.ctx(), RoutesRequest{Node: "2", Routes: []string{"192.168.199.0/24"}}); err != nil {
		t.Fatal(err)
	}
	w.online(2)
	if _, err := w.client.TagNode(w.ctx(), "3", []string{"tag:cloud", "exit"}); err != nil {
		t.Fatal(err)
	}
	_, body := w.call("GET", "/api/v1/node", "")
	var got bytes.Buffer
	if err := json.Indent(&got, []byte(strings.ReplaceAll(body, k.Key[:len("tskey-auth-")+12], "tskey-auth-PREFIX")), "", "  "); err != nil {
		t.Fatal(err)
	}
	const golden = "testdata/nodes.json"
	if *update {
		if err := os.WriteFile(golden, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), want) {
		t.Errorf("nodes in JSON differ from %s (-update writes it anew):\n%s", golden, got.String())
	}
	if strings.Contains(body, k.Key) {
		t.Error("the secret of a pre-auth key can be read")
	}
}

// A node can be named in many ways, and an id wins.
func TestNodeReferences(t *testing.T) {
	w := seed(t)
	u := w.user("x")
	twelve := w.node(u, "12") // node 4 is called 12
	for w.st.Snapshot().Node(12) == nil {
		w.node(u, "filler")
	}
	for ref, want := range map[Ref]tailnet.NodeID{
		"2": 2, "homeds": 2, "homeDS": 2, "homeds.skein.internal": 2, "homeds.skein.internal.": 2, "100.64.0.2": 2, "fd7a:115c:a1e0::2": 2, "n2": 2,
		"12": 12, "100.64.0.4": twelve,
	} {
		n, err := w.client.GetNode(w.ctx(), ref)
		if err != nil || n.ID != ID(want) {
			t.Errorf("node %q: %+v, %v; want %d", ref, n, err, want)
		}
	}
	if err := w.client.DeleteNode(w.ctx(), "12"); err != nil {
		t.Fatal(err)
	}
	if n, err := w.client.GetNode(w.ctx(), "12"); err != nil || n.ID != ID(twelve) {
		t.Errorf("node 12 by name: %+v, %v", n, err)
	}
}

// A node may even be called like an operation.
func TestNodeCalledRegister(t *testing.T) {
	w := newWorld(t)
	w.node(w.user("x"), "register")
	if n, err := w.client.GetNode(w.ctx(), "register"); err != nil || n.ID != 1 {
		t.Errorf("%+v, %v", n, err)
	}
}

func TestListNodes(t *testing.T) {
	w := seed(t)
	if _, err := w.client.TagNode(w.ctx(), "1", []string{"tag:a"}); err != nil {
		t.Fatal(err)
	}
	for user, want := range map[Ref][]ID{"": {1, 2, 3}, "junyao": {2}, "1": {2}, "2": {3}, "tagged-devices": {1}} {
		nodes, err := w.client.ListNodes(w.ctx(), NodeFilter{User: user})
		var got []ID
		for _, n := range nodes {
			got = append(got, n.ID)
		}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("nodes of %q: %v, %v; want %v", user, got, err, want)
		}
	}
	if _, body := newWorld(t).call("GET", "/api/v1/node", ""); body != "{\"nodes\":[]}\n" {
		t.Errorf("an empty list is %s", body)
	}
}

func TestLastSeen(t *testing.T) {
	w := seed(t)
	if n, _ := w.client.GetNode(w.ctx(), "2"); n.LastSeen != nil || n.Online {
		t.Errorf("a node never seen: %v", n.LastSeen)
	}
	w.online(2)
	if n, _ := w.client.GetNode(w.ctx(), "2"); n.LastSeen == nil || !n.LastSeen.Equal(noon) || !n.Online {
		t.Errorf("a node that is online was seen at %v", n.LastSeen)
	}
}

func TestRenameNode(t *testing.T) {
	w := seed(t)
	for _, name := range []string{"nas", "nas", "homeds", "a-1", "0", strings.Repeat("a", 63)} {
		n, err := w.client.RenameNode(w.ctx(), "2", name)
		if err != nil || n.GivenName != name || n.Name != "homeDS" || n.FQDN != name+".skein.internal" {
			t.Errorf("rename to %q: %+v, %v", name, n, err)
		}
	}
	if !w.st.Snapshot().Node(2).NameFixed {
		t.Error("the name would change with the next hostname")
	}
	rev := w.st.Snapshot().Rev
	if _, err := w.client.RenameNode(w.ctx(), "2", strings.Repeat("a", 63)); err != nil || w.st.Snapshot().Rev != rev {
		t.Errorf("a rename to the same name committed something: %v", err)
	}
}

func TestExpireNode(t *testing.T) {
	w := seed(t)
	later := noon.Add(48 * time.Hour)
	for _, step := range []struct {
		req     ExpireNodeRequest
		want    *time.Time
		expired bool
	}{
		{ExpireNodeRequest{Expiry: &later}, &later, false},
		{ExpireNodeRequest{}, &noon, true},
		{ExpireNodeRequest{}, &noon, true}, // again: no change
		{ExpireNodeRequest{DisableExpiry: true}, nil, false},
	} {
		n, err := w.client.ExpireNode(w.ctx(), "2", step.req)
		if err != nil || n.Expired != step.expired || (n.Expiry == nil) != (step.want == nil) || n.Expiry != nil && !n.Expiry.Equal(*step.want) {
			t.Errorf("%+v: expiry %v, expired %v, %v", step.req, n.Expiry, n.Expired, err)
		}
	}
	// The other spellings: in the query, as headscale's interface has it.
	for _, q := range []string{"?expiry=2030-01-01T00:00:00Z", "?disableExpiry=true", "?disable_expiry=true", ""} {
		if status, body := w.call("POST", "/api/v1/node/homeds/expire"+q, ""); status != 200 {
			t.Errorf("expire%s: %d %s", q, status, body)
		}
	}
	if n, _ := w.client.GetNode(w.ctx(), "2"); !n.Expired {
		t.Error("not expired")
	}
}

func TestTagsAndMove(t *testing.T) {
	w := seed(t)
	later := noon.Add(time.Hour)
	if _, err := w.client.ExpireNode(w.ctx(), "2", ExpireNodeRequest{Expiry: &later}); err != nil {
		t.Fatal(err)
	}
	n, err := w.client.TagNode(w.ctx(), "2", []string{"tag:router", "home", "tag:router"})
	if err != nil || !slices.Equal(n.Tags, []string{"tag:home", "tag:router"}) || !slices.Equal(n.ForcedTags, n.Tags) || n.Namespace() != tailnet.TaggedDevicesName || n.Expiry != nil {
		t.Fatalf("tagged: %+v, %v", n, err)
	}
	if row := w.st.Snapshot().Node(2); row.User != 0 {
		t.Errorf("a tagged node belongs to user %d", row.User)
	}
	rev := w.st.Snapshot().Rev
	if _, err := w.client.TagNode(w.ctx(), "2", []string{"tag:home", "tag:router"}); err != nil || w.st.Snapshot().Rev != rev {
		t.Errorf("the same tags committed something: %v", err)
	}
	n, err = w.client.MoveNode(w.ctx(), "homeds", "anna@example.org")
	if err != nil || len(n.Tags) != 0 || n.Namespace() != "anna@example.org" {
		t.Errorf("moved: %+v, %v", n, err)
	}
	if status, body := w.call("POST", "/api/v1/node/2/user", `{"user":1}`); status != 200 || !strings.Contains(body, `"name":"junyao"`) {
		t.Errorf("moved by number: %d %s", status, body)
	}
}

func TestDeleteNode(t *testing.T) {
	w := seed(t)
	if err := w.client.DeleteNode(w.ctx(), "homeds"); err != nil {
		t.Fatal(err)
	}
	if err := w.client.DeleteNode(w.ctx(), "2"); tailnet.CodeOf(err) != tailnet.NotFound {
		t.Errorf("deleted twice: %v", err)
	}
}

func TestRegisterNode(t *testing.T) {
	w := newWorld(t)
	w.user("junyao")
	node, machine := key.NewNode().Public(), key.NewMachine().Public()
	out, err := w.auth.Register(w.ctx(), machine, &tailcfg.RegisterRequest{
		Version: 142, NodeKey: node, Hostinfo: &tailcfg.Hostinfo{Hostname: "homeDS", OS: "linux"},
	}, "192.0.2.9:1234")
	if err != nil || out.Login == "" {
		t.Fatalf("%+v, %v", out, err)
	}
	logins, err := w.client.ListLogins(w.ctx())
	if err != nil || len(logins) != 1 || logins[0].Key != out.Login || logins[0].Name != "homeDS" {
		t.Fatalf("pending: %+v, %v", logins, err)
	}
	n, err := w.client.RegisterNode(w.ctx(), RegisterNodeRequest{User: "junyao", Key: "http://192.0.2.1:8080/register/" + out.Login + "/"})
	if err != nil || n.NodeKey != node.String() || n.GivenName != "homeds" || n.Namespace() != "junyao" || n.ShortNodeKey() != node.ShortString() {
		t.Fatalf("registered: %+v, %v", n, err)
	}
	if n.RegisterMethod != "REGISTER_METHOD_CLI" {
		t.Errorf("register method %s", n.RegisterMethod)
	}
	if _, err := w.client.RegisterNode(w.ctx(), RegisterNodeRequest{User: "junyao", Key: out.Login}); tailnet.CodeOf(err) != tailnet.NotFound {
		t.Errorf("registered twice: %v", err)
	}
	if logins, err := w.client.ListLogins(w.ctx()); err != nil || len(logins) != 0 {
		t.Errorf("pending afterwards: %+v, %v", logins, err)
	}
}

func TestLoginID(t *testing.T) {
	for in, want := range map[string]string{
		"abc": "abc", " abc\n": "abc", "/register/abc": "abc", "http://x/register/abc/": "abc", "https://x:8080/register/abc?x=y": "abc",
	} {
		if got, err := LoginID(in); err != nil || got != want {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "/", "a b", "ä", strings.Repeat("a", 300)} {
		if got, err := LoginID(in); err == nil {
			t.Errorf("%q: %q", in, got)
		}
	}
}

func TestPathsAreEscaped(t *testing.T) {
	c := &Client{}
	for _, name := range []string{"a/b", "a?b", "a%b", "a b", "ä", ".."} {
		got := string(c.path("node", name))
		u, err := url.Parse(got)
		if err != nil || u.RawQuery != "" || u.Path != Prefix+"/node/"+name {
			t.Errorf("%q: %s, %v", name, got, err)
		}
	}
}
