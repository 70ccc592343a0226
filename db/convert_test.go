package db

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"

	"github.com/skein-vpn/skein/tailnet"
)

// Samples in which no field is zero: see TestEveryFieldIsStored.

func sampleNode() *tailnet.Node {
	return &tailnet.Node{
		ID: 7, StableID: "nSeven", MachineKey: key.NewMachine().Public(), NodeKey: key.NewNode().Public(), OldNodeKey: key.NewNode().Public(), OldKeyUntil: t0.Add(time.Minute),
		Attributes: []tailnet.Attribute{{Name: "custom:tier", Value: "gold", Kind: "string", Expires: t0.Truncate(time.Second)}},
		Hostings: []tailnet.Hosting{{Service: "svc:web", Offered: true, Active: true, Ports: []string{"tcp:443"}, Approval: tailnet.ApprovedByPolicy,
			IPv4: addrOf("100.64.0.9"), IPv6: addrOf("fd7a:115c:a1e0::9")}}, ServicesHash: "00ff",
		DiscoKey: key.NewDisco().Public(), User: 2, Tags: []string{"tag:a", "tag:\u2028\"b"}, Hostname: "Häns's PC", Name: "haens-pc", NameFixed: true,
		IPv4: addrOf("100.64.0.7"), IPv6: addrOf("fd7a:115c:a1e0::7"), Ephemeral: true, RegisterMethod: tailnet.RegisteredByCLI, PreAuthKey: 3,
		Created: t0, Expiry: t0.AddDate(100, 0, 0), NeverExpires: true, Authorized: true, Hostinfo: &tailcfg.Hostinfo{OS: "linux"},
		Endpoints:     []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("[2001:db8::1]:65535")},
		EndpointTypes: []tailcfg.EndpointType{tailcfg.EndpointLocal, tailcfg.EndpointSTUN}, HomeDERP: 900, Capver: 130,
		ApprovedRoutes: []netip.Prefix{prefixOf("0.0.0.0/0"), prefixOf("::/0")}, NLKey: key.NewNLPrivate().Public(), KeySignature: []byte{0, 1, 255},
	}
}

func sampleUser() *tailnet.User {
	return &tailnet.User{ID: 2, Name: "hans", DisplayName: "Hans Ö", Email: "hans@example.com", Role: tailnet.RoleAdmin, Status: tailnet.UserSuspended, Created: t0,
		Provider: "hydra", ProviderID: "https://hydra.example.com/hans", Picture: "https://example.com/hans.png", Groups: []string{"admins", "staff"}}
}

func sampleKey() *tailnet.PreAuthKey {
	return &tailnet.PreAuthKey{ID: 3, Prefix: "abc", Hash: [32]byte{1, 31: 255}, User: 2, Tags: []string{"tag:x"}, Reusable: true, Ephemeral: true,
		Preapproved: true, Description: "for CI", KeyDuration: time.Hour, Used: true, Created: t0, Expires: t0.Add(1), Revoked: true}
}

func sampleCredential() *tailnet.Credential {
	return &tailnet.Credential{ID: "kAbc", Kind: tailnet.FederatedIdentity, HashKind: tailnet.HashBcrypt, Hash: []byte{0, 1, 255}, User: 2,
		Scopes: []string{"dns", "users:read"}, Tags: []string{"tag:x"}, Description: "CI", Created: t0, Expires: t0.Add(1), Revoked: t0.Add(2),
		Issuer: "https://issuer.example", Subject: "repo:*", Audience: "aud", Claims: map[string]string{"ref": "main"}}
}

func samplePolicy() *tailnet.PolicyVersion {
	return &tailnet.PolicyVersion{ID: 4, Text: "// nothing\n{}", Author: "hans", Comment: "opens all", Created: t0}
}

func samplePresence() tailnet.Presence {
	return tailnet.Presence{Online: true, LastSeen: t0, Primary: []netip.Prefix{prefixOf("192.168.199.0/24")}, Server: "s1", Failing: true, Steady: true}
}

func sampleChanges() *tailnet.Changes {
	return &tailnet.Changes{
		Tailnet: &tailnet.Tailnet{ID: 1, Name: "office", Settings: tailnet.Settings{DeviceApproval: true, UserApproval: true, KeyDuration: 90 * 24 * time.Hour},
			LastNodeID: 7, LastUserID: 2, LastPreAuthKeyID: 3, LastPolicyID: 4},
		PutNodes: []*tailnet.Node{sampleNode()}, PutUsers: []*tailnet.User{sampleUser()}, PutPreAuthKeys: []*tailnet.PreAuthKey{sampleKey()},
		PutCredentials: []*tailnet.Credential{sampleCredential()}, PutServices: []*tailnet.Service{sampleService()},
		PutPolicy: samplePolicy(), Why: []string{"a node joined", "sample"}, When: t0,
	}
}

func sampleService() *tailnet.Service {
	return &tailnet.Service{Name: "svc:web", IPv4: netip.MustParseAddr("100.64.0.9"), IPv6: netip.MustParseAddr("fd7a:115c:a1e0::9"), DisplayName: "The web",
		Comment: "of the office", Annotations: map[string]string{"owner": "ops"}, Ports: []string{"tcp:443"}, Tags: []string{"tag:web"}, Created: t0, Updated: t0}
}

func testLogin(id string, created time.Time) *tailnet.Login {
	return &tailnet.Login{ID: id, Tailnet: 1, MachineKey: key.NewMachine().Public(), NodeKey: key.NewNode().Public(), OldNodeKey: key.NewNode().Public(),
		NLKey: key.NewNLPrivate().Public(), Hostinfo: &tailcfg.Hostinfo{Hostname: "new"}, Expiry: t0.AddDate(1, 0, 0), Ephemeral: true, Capver: 130,
		Remote: "192.0.2.1:5000", Created: created}
}

// TestEveryFieldIsStored fails when a field is added to a domain type and not here, in rows.go, convert.go and a migration.
func TestEveryFieldIsStored(t *testing.T) {
	d := openTest(t)
	ch := sampleChanges()
	login := testLogin("secret", t0)
	for _, v := range []any{*ch.Tailnet, *ch.PutNodes[0], *ch.PutUsers[0], *ch.PutPreAuthKeys[0], *ch.PutCredentials[0], *ch.PutServices[0], *ch.PutPolicy, samplePresence(), *login} {
		rv := reflect.ValueOf(v)
		for i := range rv.NumField() {
			if rv.Field(i).IsZero() && rv.Type().Field(i).Name != "Bcrypt" { // stands in place of Hash: TestBcryptKey
				t.Errorf("the sample of %T has no %s: set it here, and store it", v, rv.Type().Field(i).Name)
			}
		}
	}
	mustCommit(t, d, 0, ch)
	if err := d.SavePresence(ctx, 1, samplePresence().Server, map[tailnet.NodeID]tailnet.Presence{7: samplePresence()}); err != nil {
		t.Fatal(err)
	}
	if err := d.PutLogin(ctx, login); err != nil {
		t.Fatal(err)
	}
	want := &tailnet.Contents{Rev: 1, PresenceSeq: 1, Tailnet: *ch.Tailnet, Nodes: ch.PutNodes, Users: ch.PutUsers, PreAuthKeys: ch.PutPreAuthKeys,
		Credentials: ch.PutCredentials, Services: ch.PutServices, Policy: ch.PutPolicy,
		Presence: map[tailnet.NodeID]tailnet.Presence{7: samplePresence()}}
	if diff := diff(want, mustLoad(t, d, 1)); diff != "" {
		t.Error(diff)
	}
	got, err := d.Login(ctx, 1, "secret")
	if err != nil {
		t.Fatal(err)
	}
	if diff := diff(login, got); diff != "" {
		t.Error(diff)
	}
}

// TestZeroValues stores as little as possible.
func TestZeroValues(t *testing.T) {
	d := openTest(t)
	n := &tailnet.Node{ID: 1, NodeKey: key.NewNode().Public(), Tags: []string{}, Endpoints: []netip.AddrPort{}}
	mustCommit(t, d, 0, &tailnet.Changes{PutNodes: []*tailnet.Node{n}, PutUsers: []*tailnet.User{{ID: 1}}, PutPreAuthKeys: []*tailnet.PreAuthKey{{ID: 1}}})
	c := mustLoad(t, d, 1)
	want := &tailnet.Node{ID: 1, NodeKey: n.NodeKey, Hostinfo: new(tailcfg.Hostinfo)} // never nil
	if diff := diff(want, c.Nodes[0]); diff != "" {
		t.Error(diff)
	}
	if diff := diff(&tailnet.User{ID: 1}, c.Users[0]); diff != "" {
		t.Error(diff)
	}
	if diff := diff(&tailnet.PreAuthKey{ID: 1}, c.PreAuthKeys[0]); diff != "" {
		t.Error(diff)
	}
	if c.Presence == nil {
		t.Error("Presence is nil")
	}
}

func TestCannotBeStored(t *testing.T) {
	d := openTest(t)
	far := sampleNode()
	far.Expiry = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)
	keyless := sampleNode()
	keyless.NodeKey = key.NodePublic{}
	_, err := d.Commit(ctx, 1, 0, &tailnet.Changes{PutNodes: []*tailnet.Node{far, keyless}})
	wantErr(t, err, "nodes", "id 7", "expires_at", "year", "node_key", "must not be empty")
	if rev := mustLoad(t, d, 1).Rev; rev != 0 {
		t.Errorf("rev %d", rev)
	}
	login := testLogin("x", t0)
	login.NodeKey = key.NodePublic{}
	wantErr(t, d.PutLogin(ctx, login), "logins", "node_key")
	wantErr(t, d.SavePresence(ctx, 1, "", map[tailnet.NodeID]tailnet.Presence{4: {LastSeen: far.Expiry}}), "presence", "id 4", "last_seen")
}

// TestCorruptRows writes nonsense into one column after the other: Load names table, id and column.
func TestCorruptRows(t *testing.T) {
	sqliteOnly(t)
	free := map[string]bool{ // any text is fine there
		"tailnets.name": true, "users.name": true, "users.display_name": true, "users.email": true, "users.role": true, "users.status": true, "users.provider": true, "users.provider_id": true,
		"users.picture": true, "presence.server": true, "pre_auth_keys.prefix": true, "pre_auth_keys.description": true,
		"nodes.stable_id": true, "nodes.hostname": true, "nodes.name": true, "nodes.register_method": true, "nodes.services_hash": true,
	}
	for _, table := range []string{"tailnets", "users", "pre_auth_keys", "nodes", "presence"} {
		d := openTest(t)
		mustCommit(t, d, 0, sampleChanges())
		if err := d.SavePresence(ctx, 1, samplePresence().Server, map[tailnet.NodeID]tailnet.Presence{7: samplePresence()}); err != nil {
			t.Fatal(err)
		}
		mustExec(t, d, "PRAGMA foreign_keys=OFF")
		var columns []string
		d.read.Raw("SELECT name FROM pragma_table_info(?)", table).Scan(&columns)
		for _, c := range columns {
			if free[table+"."+c] || table == "tailnets" && (c == "id" || c == "created_at") || c == "tailnet_id" {
				continue
			}
			var old any
			if err := d.read.Raw("SELECT " + c + " FROM " + table).Row().Scan(&old); err != nil {
				t.Fatal(err)
			}
			mustExec(t, d, "UPDATE "+table+" SET "+c+" = 'nonsense'")
			_, err := d.Load(ctx, 1)
			id := map[string]string{"tailnets": "id 1", "users": "id 2", "pre_auth_keys": "id 3", "nodes": "id 7", "presence": "id 7"}[table]
			if c == "id" || c == "node_id" {
				id = "id nonsense"
			}
			t.Log(err)
			wantErr(t, err, "table "+table, id, c)
			mustExec(t, d, "UPDATE "+table+" SET "+c+" = ?", old)
		}
		mustLoad(t, d, 1)
	}
	d := openTest(t)
	nodes, _ := fill(t, d, 30)
	mustExec(t, d, "UPDATE nodes SET hostinfo = '{', ipv4 = 'x' || id")
	_, err := d.Load(ctx, 1)
	wantErr(t, err, fmt.Sprintf("id %d", nodes[0].ID), "and 20 more")
}

func TestHandwrittenTime(t *testing.T) {
	d := openTest(t)
	mustCommit(t, d, 0, sampleChanges())
	mustExec(t, d, "UPDATE nodes SET expires_at = '2030-01-02T03:04:05+02:00'")
	if got, want := mustLoad(t, d, 1).Nodes[0].Expiry, time.Date(2030, 1, 2, 1, 4, 5, 0, time.UTC); got != want {
		t.Errorf("%v", got)
	}
}

// Generators. Names, addresses and keys are given out by TestModel, because they are unique.

var (
	genText    = rapid.Map(genAnyText, storable)
	genAnyText = rapid.OneOf(rapid.String(), rapid.SampledFrom([]string{"", "\x00", "'; DROP TABLE nodes; --", "?", "@p", "\u2028", "<&>", "😀"}))
	genBool    = rapid.Bool()
	genTime    = rapid.Custom(func(t *rapid.T) time.Time {
		if rapid.IntRange(0, 3).Draw(t, "zero") == 0 {
			return time.Time{}
		}
		return time.Unix(rapid.Int64Range(-62135596800+1, 253402300799).Draw(t, "s"), rapid.Int64Range(0, 999999999).Draw(t, "ns")).UTC()
	})
	genAddr = rapid.Custom(func(t *rapid.T) netip.Addr {
		if genBool.Draw(t, "v4") {
			return netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "a")))
		}
		a := netip.AddrFrom16([16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "a")))
		if rapid.IntRange(0, 3).Draw(t, "zone") == 0 {
			a = a.WithZone("eth0")
		}
		return a
	})
	genAddrPort = rapid.Custom(func(t *rapid.T) netip.AddrPort {
		return netip.AddrPortFrom(genAddr.Draw(t, "addr"), rapid.Uint16().Draw(t, "port"))
	})
	genPrefix = rapid.Custom(func(t *rapid.T) netip.Prefix {
		a := genAddr.Draw(t, "addr").WithZone("")
		return netip.PrefixFrom(a, rapid.IntRange(0, a.BitLen()).Draw(t, "bits")).Masked()
	})
	genTags     = rapid.Map(genText, func(s string) string { return "tag:" + s })
	genHostinfo = rapid.Custom(func(t *rapid.T) *tailcfg.Hostinfo {
		h := &tailcfg.Hostinfo{
			IPNVersion: genText.Draw(t, "version"), OS: genText.Draw(t, "os"), Hostname: genText.Draw(t, "hostname"), ShieldsUp: genBool.Draw(t, "shields"),
			RoutableIPs: some(t, genPrefix), RequestTags: some(t, genTags), AppConnector: "true", Userspace: "false",
		}
		if genBool.Draw(t, "netinfo") {
			h.NetInfo = &tailcfg.NetInfo{PreferredDERP: rapid.Int().Draw(t, "derp"), WorkingUDP: "true",
				DERPLatency: map[string]float64{genText.Draw(t, "region"): rapid.Float64Range(0, 1e9).Draw(t, "latency")}}
		}
		if genBool.Draw(t, "services") {
			h.Services = []tailcfg.Service{{Proto: tailcfg.PeerAPI4, Port: rapid.Uint16().Draw(t, "port"), Description: genText.Draw(t, "description")}}
		}
		return h
	})
)

// some is a list that is nil when it is empty.
func some[T any](t *rapid.T, g *rapid.Generator[T]) []T {
	v := rapid.SliceOfN(g, 0, 3).Draw(t, "list")
	if len(v) == 0 {
		return nil
	}
	return v
}

// model is what the store should hold.
type model struct {
	tailnet  tailnet.Tailnet
	rev      tailnet.Rev
	nodes    map[tailnet.NodeID]*tailnet.Node
	users    map[tailnet.UserID]*tailnet.User
	keys     map[tailnet.PreAuthKeyID]*tailnet.PreAuthKey
	presence map[tailnet.NodeID]tailnet.Presence
	deleted  map[tailnet.NodeID]bool // at some time
	pool     []*tailnet.Node         // unique fields to give out: few, so that they are swapped and taken over
}

func values[K cmp.Ordered, V any](m map[K]V) (out []V) {
	ks := make([]K, 0, len(m))
	for k := range m {
		ks = append(ks, k)
	}
	slices.Sort(ks)
	for _, k := range ks {
		out = append(out, m[k])
	}
	return out
}

func (m *model) contents() *tailnet.Contents {
	return &tailnet.Contents{Rev: m.rev, Tailnet: m.tailnet, Nodes: values(m.nodes), Users: values(m.users), PreAuthKeys: values(m.keys), Presence: m.presence}
}

// TestModel makes random changes, among them such as give one row what another one had, and compares with what is read back.
func TestModel(t *testing.T) {
	path := newPath(t)
	d := openTest(t, path)
	rapid.Check(t, func(t *rapid.T) {
		for _, table := range []string{"presence_seq", "nodes", "pre_auth_keys", "users", "revisions", "deleted_nodes"} {
			if err := d.write.Exec("DELETE FROM " + table).Error; err != nil {
				t.Fatal(err)
			}
		}
		m := &model{tailnet: tailnet.Tailnet{ID: 1, Name: "default"}, nodes: map[tailnet.NodeID]*tailnet.Node{}, users: map[tailnet.UserID]*tailnet.User{},
			keys: map[tailnet.PreAuthKeyID]*tailnet.PreAuthKey{}, presence: map[tailnet.NodeID]tailnet.Presence{}, deleted: map[tailnet.NodeID]bool{}}
		if err := d.write.Exec("UPDATE tailnets SET rev = 0, name = 'default', settings = '{}', last_node_id = 0, last_user_id = 0, last_pre_auth_key_id = 0, last_policy_id = 0").Error; err != nil {
			t.Fatal(err)
		}
		follower := m.contents()
		follower.Presence = map[tailnet.NodeID]tailnet.Presence{}
		for i := range 6 {
			m.pool = append(m.pool, &tailnet.Node{Name: fmt.Sprintf("name-%d", i), StableID: fmt.Sprintf("s%d", i), NodeKey: key.NewNode().Public(),
				IPv4: addrOf(fmt.Sprintf("100.64.0.%d", i)), IPv6: addrOf(fmt.Sprintf("fd7a::%d", i))})
		}
		for range rapid.IntRange(1, 6).Draw(t, "commits") {
			ch := m.change(t)
			if got, err := d.Commit(ctx, 1, m.rev-1, ch); err != nil || got != m.rev {
				t.Fatalf("Commit: %d, %v; want %d", got, err, m.rev)
			}
			if genBool.Draw(t, "save presence") {
				m.savePresence(t, d)
			}
			got, err := d.Load(ctx, 1)
			if err != nil {
				t.Fatal(err)
			}
			if genBool.Draw(t, "follow") { // else in one step with the next
				s, err := d.Since(ctx, 1, follower.Rev, follower.PresenceSeq)
				if err != nil {
					t.Fatal(err)
				}
				apply(follower, s)
				want := *got
				want.Presence = maps.Clone(got.Presence)
				for id := range m.deleted { // no id is used again but here, so Since does not care
					delete(follower.Presence, id)
					delete(want.Presence, id)
				}
				if diff := diff(&want, follower); diff != "" {
					t.Fatal("what Since says does not add up to what Load says: ", diff)
				}
			}
			got.PresenceSeq = 0
			if diff := diff(m.contents(), got); diff != "" {
				t.Fatal(diff)
			}
		}
	})
}

// apply does a step to c, as a server that follows others does.
func apply(c *tailnet.Contents, s *tailnet.Step) {
	c.Rev, c.PresenceSeq = s.Rev, s.PresenceSeq
	if s.Changes.Tailnet != nil {
		c.Tailnet, c.Policy = *s.Changes.Tailnet, s.Changes.PutPolicy
	}
	c.Nodes = applyRows(c.Nodes, s.Changes.PutNodes, s.Changes.DeleteNodes, func(n *tailnet.Node) tailnet.NodeID { return n.ID })
	c.Users = applyRows(c.Users, s.Changes.PutUsers, s.Changes.DeleteUsers, func(u *tailnet.User) tailnet.UserID { return u.ID })
	c.PreAuthKeys = applyRows(c.PreAuthKeys, s.Changes.PutPreAuthKeys, s.Changes.DeletePreAuth, func(k *tailnet.PreAuthKey) tailnet.PreAuthKeyID { return k.ID })
	c.Credentials = applyRows(c.Credentials, s.Changes.PutCredentials, s.Changes.DeleteCredentials, func(c *tailnet.Credential) string { return c.ID })
	c.Services = applyRows(c.Services, s.Changes.PutServices, s.Changes.DeleteServices, func(v *tailnet.Service) string { return v.Name })
	c.Presence = maps.Clone(c.Presence)
	for _, id := range s.Changes.DeleteNodes {
		delete(c.Presence, id)
	}
	for _, p := range s.Presence {
		c.Presence[p.Node] = p.Presence
	}
}

func applyRows[T any, ID cmp.Ordered](rows, put []*T, gone []ID, id func(*T) ID) []*T {
	m := map[ID]*T{}
	for _, v := range slices.Concat(rows, put) {
		m[id(v)] = v
	}
	for _, g := range gone {
		delete(m, g)
	}
	return values(m)
}

// change draws a commit and does it to the model.
func (m *model) change(t *rapid.T) *tailnet.Changes {
	ch := &tailnet.Changes{When: t0.Add(time.Duration(m.rev)), Why: some(t, genText)}
	m.rev++
	if genBool.Draw(t, "settings") {
		m.tailnet.Name = genText.Draw(t, "name")
		m.tailnet.LastNodeID = tailnet.NodeID(rapid.Int64Range(0, 1<<53).Draw(t, "last id"))
		settings := m.tailnet
		ch.Tailnet = &settings
	}
	var names []string
	for i := range 4 {
		names = append(names, fmt.Sprintf("user-%d", i))
	}
	for id := tailnet.UserID(1); id <= 4; id++ { // the first is never deleted
		switch rapid.IntRange(0, 2).Draw(t, "user") {
		case 0:
			u := &tailnet.User{ID: id, DisplayName: genText.Draw(t, "display"), Email: genText.Draw(t, "email"), Created: genTime.Draw(t, "created")}
			ch.PutUsers, m.users[id] = append(ch.PutUsers, u), u
		case 1:
			if id > 1 {
				ch.DeleteUsers = append(ch.DeleteUsers, id)
				delete(m.users, id)
			}
		}
	}
	if m.users[1] == nil {
		u := &tailnet.User{ID: 1}
		ch.PutUsers, m.users[1] = append(ch.PutUsers, u), u
	}
	for _, u := range m.users { // names that stay are not to be had
		if !slices.Contains(ch.PutUsers, u) {
			names = slices.DeleteFunc(names, func(s string) bool { return s == u.Name })
		}
	}
	names = rapid.Permutation(names).Draw(t, "names")
	for i, u := range ch.PutUsers {
		u.Name = names[i]
	}
	m.changeKeys(t, ch)
	m.changeNodes(t, ch)
	return ch
}

// owner draws one of the users there are, sometimes none.
func (m *model) owner(t *rapid.T) tailnet.UserID {
	us := values(m.users)
	i := rapid.IntRange(-1, len(us)-1).Draw(t, "owner")
	if i < 0 {
		return 0
	}
	return us[i].ID
}

func (m *model) changeKeys(t *rapid.T, ch *tailnet.Changes) {
	for id := tailnet.PreAuthKeyID(1); id <= 3; id++ {
		k := m.keys[id]
		orphan := k != nil && m.users[k.User] == nil && k.User != 0
		switch what := rapid.IntRange(0, 2).Draw(t, "key"); {
		case what == 0 || orphan:
			k := &tailnet.PreAuthKey{ID: id, Prefix: genText.Draw(t, "prefix"), Description: genText.Draw(t, "description"), User: m.owner(t), Tags: some(t, genTags), Reusable: genBool.Draw(t, "reusable"),
				Used: genBool.Draw(t, "used"), Created: genTime.Draw(t, "created"), Expires: genTime.Draw(t, "expires")}
			copy(k.Hash[:], rapid.SliceOfN(rapid.Byte(), 0, 32).Draw(t, "hash"))
			ch.PutPreAuthKeys, m.keys[id] = append(ch.PutPreAuthKeys, k), k
		case what == 1:
			ch.DeletePreAuth = append(ch.DeletePreAuth, id)
			delete(m.keys, id)
		}
	}
}

func (m *model) changeNodes(t *rapid.T, ch *tailnet.Changes) {
	for id := tailnet.NodeID(1); id <= 6; id++ {
		n := m.nodes[id]
		orphan := n != nil && m.users[n.User] == nil && n.User != 0
		switch what := rapid.IntRange(0, 2).Draw(t, "node"); {
		case what == 0 || orphan:
			n := &tailnet.Node{
				ID: id, User: m.owner(t), Tags: some(t, genTags), Hostname: genText.Draw(t, "hostname"), NameFixed: genBool.Draw(t, "fixed"),
				Ephemeral: genBool.Draw(t, "ephemeral"), RegisterMethod: genText.Draw(t, "method"), PreAuthKey: tailnet.PreAuthKeyID(rapid.Int64Range(0, 9).Draw(t, "key")),
				Created: genTime.Draw(t, "created"), Expiry: genTime.Draw(t, "expiry"), Authorized: genBool.Draw(t, "authorized"), NeverExpires: genBool.Draw(t, "never"), OldKeyUntil: genTime.Draw(t, "old"), Hostinfo: genHostinfo.Draw(t, "hostinfo"),
				Endpoints: some(t, genAddrPort), EndpointTypes: some(t, rapid.Custom(func(t *rapid.T) tailcfg.EndpointType { return tailcfg.EndpointType(rapid.Int().Draw(t, "type")) })),
				HomeDERP: rapid.Int().Draw(t, "derp"), Capver: tailcfg.CapabilityVersion(rapid.Int().Draw(t, "capver")), ApprovedRoutes: some(t, genPrefix), KeySignature: some(t, rapid.Byte()),
			}
			if genBool.Draw(t, "keys") {
				n.MachineKey, n.OldNodeKey, n.DiscoKey, n.NLKey = key.NewMachine().Public(), key.NewNode().Public(), key.NewDisco().Public(), key.NewNLPrivate().Public()
			}
			ch.PutNodes, m.nodes[id] = append(ch.PutNodes, n), n
		case what == 1:
			ch.DeleteNodes = append(ch.DeleteNodes, id)
			delete(m.nodes, id)
			delete(m.presence, id)
			m.deleted[id] = true
		}
	}
	// Each unique field is given out by a permutation of its own.
	deal := func(what string, field func(*tailnet.Node) any, set func(to, from *tailnet.Node)) {
		left := slices.Clone(m.pool)
		for _, n := range m.nodes {
			if !slices.Contains(ch.PutNodes, n) {
				left = slices.DeleteFunc(left, func(p *tailnet.Node) bool { return field(p) == field(n) })
			}
		}
		left = rapid.Permutation(left).Draw(t, what)
		for i, n := range ch.PutNodes {
			set(n, left[i])
		}
	}
	deal("name", func(n *tailnet.Node) any { return n.Name }, func(to, from *tailnet.Node) { to.Name = from.Name })
	deal("stable id", func(n *tailnet.Node) any { return n.StableID }, func(to, from *tailnet.Node) { to.StableID = from.StableID })
	deal("node key", func(n *tailnet.Node) any { return n.NodeKey }, func(to, from *tailnet.Node) { to.NodeKey = from.NodeKey })
	if !genBool.Draw(t, "no IPv4") {
		deal("ipv4", func(n *tailnet.Node) any { return n.IPv4 }, func(to, from *tailnet.Node) { to.IPv4 = from.IPv4 })
	}
	deal("ipv6", func(n *tailnet.Node) any { return n.IPv6 }, func(to, from *tailnet.Node) { to.IPv6 = from.IPv6 })
}

func (m *model) savePresence(t *rapid.T, d *DB) {
	save := map[tailnet.NodeID]tailnet.Presence{}
	for id := tailnet.NodeID(1); id <= 7; id++ { // some do not exist
		if genBool.Draw(t, "presence") {
			save[id] = tailnet.Presence{Online: genBool.Draw(t, "online"), LastSeen: genTime.Draw(t, "last seen"), Primary: some(t, genPrefix)}
			if m.nodes[id] != nil {
				m.presence[id] = save[id]
			}
		}
	}
	if err := d.SavePresence(ctx, 1, "", save); err != nil {
		t.Fatal(err)
	}
}

// FuzzNodeRow reads rows that somebody else has written: an error or a node, never a panic.
func FuzzNodeRow(f *testing.F) {
	f.Add("nodekey:00", "[1]", "100.64.0.1", "2026-11-20T15:00:00.000000000Z", "{}", "00")
	f.Fuzz(func(t *testing.T, k, list, addr, at, hostinfo, hex string) {
		r := nodeRow{ID: 1, NodeKey: k, MachineKey: &k, OldNodeKey: &k, DiscoKey: &k, NLKey: &k, Tags: &list, Endpoints: &list, EndpointTypes: &list,
			ApprovedRoutes: &list, IPv4: &addr, IPv6: &addr, CreatedAt: &at, ExpiresAt: &at, Hostinfo: hostinfo, KeySignature: &hex}
		n, err := r.domain()
		if err != nil {
			if !strings.Contains(err.Error(), "table nodes") {
				t.Error(err)
			}
			return
		}
		if n.Hostinfo == nil {
			t.Error("Hostinfo is nil")
		}
	})
}

// A taken-over key has bcrypt's hash in place of ours.
func TestBcryptKey(t *testing.T) {
	d := openTest(t)
	k := sampleKey()
	k.Hash, k.Bcrypt = [32]byte{}, []byte("$2a$10$abcdefghijklmnopqrstuv")
	mustCommit(t, d, 0, &tailnet.Changes{PutUsers: []*tailnet.User{sampleUser()}, PutPreAuthKeys: []*tailnet.PreAuthKey{k}})
	if diff := diff(k, mustLoad(t, d, 1).PreAuthKeys[0]); diff != "" {
		t.Error(diff)
	}
}
