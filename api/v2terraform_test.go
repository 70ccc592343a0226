package api

import (
	"context"
	"encoding/json"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	ts "tailscale.com/client/tailscale/v2"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/dns"
	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// tfResource is a resource of Tailscale's Terraform provider: the calls that it makes for it, with the client that it is built on.
// The provider itself is not run here, because no module of ours can have it: what its source calls was read, and what must hold for
// its plans is checked: after an apply a refresh shows what was applied (no changes are planned), an import shows the same, and what
// was destroyed is gone.
type tfResource struct {
	name    string
	create  func(context.Context) (id string, err error)
	read    func(ctx context.Context, id string) (any, error)
	want    any // what read finds after create
	update  func(ctx context.Context, id string) error
	changed any // what read finds after update
	destroy func(ctx context.Context, id string) error
	gone    any // what read finds after destroy; nil: not found
}

// tfSet is a create of a resource whose id the server does not know.
func tfSet(f func(context.Context) error) func(context.Context) (string, error) {
	return func(ctx context.Context) (string, error) { return "", f(ctx) }
}

func (res tfResource) run(t *testing.T) {
	ctx := t.Context()
	see := func(when, id string, want any) {
		t.Helper()
		for range 2 { // a refresh changes nothing
			got, err := res.read(ctx, id)
			if err != nil {
				t.Fatalf("%s: %v", when, err)
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("%s: a plan would have changes:\n got %+v\nwant %+v", when, got, want)
			}
		}
	}
	id, err := res.create(ctx)
	if err != nil {
		t.Fatalf("create: %v", err)
	}
	see("after create", id, res.want)
	if res.update != nil {
		if err := res.update(ctx, id); err != nil {
			t.Fatalf("update: %v", err)
		}
		see("after update", id, res.changed)
		if err := res.update(ctx, id); err != nil {
			t.Errorf("the same again: %v", err)
		}
		see("after the same again", id, res.changed)
	}
	if res.destroy == nil {
		return
	}
	if err := res.destroy(ctx, id); err != nil {
		t.Fatalf("destroy: %v", err)
	}
	if res.gone != nil {
		see("after destroy", id, res.gone)
	} else if got, err := res.read(ctx, id); !ts.IsNotFound(err) {
		t.Errorf("after destroy: %+v, %v", got, err)
	}
}

func TestV2Terraform(t *testing.T) {
	w := newV2World(t)
	secret, client, err := w.auth.CreateOAuthClient(w.ctx(), auth.SocketPrincipal("test"), auth.ClientRequest{Scopes: []string{"all"}, Tags: []string{"tag:tf", "tag:other"}, Description: "Terraform"})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]*ts.Client{
		"API key":      {BaseURL: w.url, APIKey: w.apiKey(0), Tailnet: "-"},
		"OAuth client": {BaseURL: w.url, Tailnet: "-", Auth: &ts.OAuth{ClientID: client.ID, ClientSecret: secret}},
	} {
		for _, list := range [][]tfResource{tfPolicy(c), tfDNS(c), tfKeys(c), tfSettings(c), tfServices(c), tfDevices(t, w, c)} {
			for _, res := range list {
				t.Run(name+"/"+res.name, res.run)
			}
		}
	}
}

func tfPolicy(c *ts.Client) []tfResource {
	const first, second = `{"grants": [{"src": ["*"], "dst": ["*"], "ip": ["22"]}]}`, "// new\n{\"acls\": [{\"action\": \"accept\", \"src\": [\"*\"], \"dst\": [\"*:80\"]}]}"
	raw := func(ctx context.Context, _ string) (any, error) {
		p, err := c.PolicyFile().Raw(ctx)
		if err != nil {
			return nil, err
		}
		return p.HuJSON, nil
	}
	return []tfResource{{
		name: "acl with reset_acl_on_destroy",
		create: tfSet(func(ctx context.Context) error { // not overwrite_existing_content: it insists on an untouched policy
			if err := c.PolicyFile().Validate(ctx, first); err != nil { // while it plans
				return err
			}
			return c.PolicyFile().Set(ctx, first, defaultTag)
		}),
		read: raw, want: first,
		update:  func(ctx context.Context, _ string) error { return c.PolicyFile().Set(ctx, second, "") },
		changed: second,
		destroy: func(ctx context.Context, _ string) error { return c.PolicyFile().Set(ctx, "", "") },
		gone:    defaultPolicy,
	}, {
		name: "acl as data source",
		create: tfSet(func(ctx context.Context) error { // and after a reset it is untouched again
			return c.PolicyFile().Set(ctx, second, defaultTag)
		}),
		read: func(ctx context.Context, _ string) (any, error) {
			acl, err := c.PolicyFile().Get(ctx)
			if err != nil {
				return nil, err
			}
			return acl.ACLs[0].Destination, nil
		},
		want: []string{"*:80"}, destroy: func(ctx context.Context, _ string) error { return c.PolicyFile().Set(ctx, "", "") }, gone: []string{"*:*"},
	}}
}

func tfDNS(c *ts.Client) []tfResource {
	d := c.DNS()
	config := ts.DNSConfiguration{
		Nameservers: []ts.DNSConfigurationResolver{{Address: "9.9.9.9", UseWithExitNode: true}, {Address: "1.1.1.1"}},
		SplitDNS:    map[string][]ts.DNSConfigurationResolver{"corp.example": {{Address: "10.0.0.9"}}},
		SearchPaths: []string{"b.example", "a.example"}, Preferences: ts.DNSConfigurationPreferences{OverrideLocalDNS: true, MagicDNS: true},
	}
	other := ts.DNSConfiguration{
		Nameservers: []ts.DNSConfigurationResolver{{Address: "2606:4700:4700::1111"}}, SplitDNS: map[string][]ts.DNSConfigurationResolver{},
		SearchPaths: []string{}, Preferences: ts.DNSConfigurationPreferences{MagicDNS: true},
	}
	none := ts.DNSConfiguration{Nameservers: []ts.DNSConfigurationResolver{}, SplitDNS: map[string][]ts.DNSConfigurationResolver{}, SearchPaths: []string{}}
	split := func(addrs ...string) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := d.UpdateSplitDNS(ctx, ts.SplitDNSRequest{"split.example": addrs})
			return err
		}
	}
	return []tfResource{{
		name:    "dns_nameservers",
		create:  tfSet(func(ctx context.Context) error { return d.SetNameservers(ctx, []string{"8.8.8.8", "1.1.1.1"}) }),
		read:    func(ctx context.Context, _ string) (any, error) { return d.Nameservers(ctx) },
		want:    []string{"8.8.8.8", "1.1.1.1"}, // in this order: it is a list
		update:  func(ctx context.Context, _ string) error { return d.SetNameservers(ctx, []string{"1.1.1.1"}) },
		changed: []string{"1.1.1.1"},
		destroy: func(ctx context.Context, _ string) error { return d.SetNameservers(ctx, []string{}) }, gone: []string{},
	}, {
		name:    "dns_preferences",
		create:  tfSet(func(ctx context.Context) error { return d.SetPreferences(ctx, ts.DNSPreferences{MagicDNS: true}) }),
		read:    func(ctx context.Context, _ string) (any, error) { return d.Preferences(ctx) },
		want:    &ts.DNSPreferences{MagicDNS: true},
		update:  func(ctx context.Context, _ string) error { return d.SetPreferences(ctx, ts.DNSPreferences{}) },
		changed: &ts.DNSPreferences{},
		destroy: func(ctx context.Context, _ string) error { return d.SetPreferences(ctx, ts.DNSPreferences{}) }, gone: &ts.DNSPreferences{},
	}, {
		name:    "dns_search_paths",
		create:  tfSet(func(ctx context.Context) error { return d.SetSearchPaths(ctx, []string{"b.example", "a.example"}) }),
		read:    func(ctx context.Context, _ string) (any, error) { return d.SearchPaths(ctx) },
		want:    []string{"b.example", "a.example"},
		update:  func(ctx context.Context, _ string) error { return d.SetSearchPaths(ctx, []string{"c.example"}) },
		changed: []string{"c.example"},
		destroy: func(ctx context.Context, _ string) error { return d.SetSearchPaths(ctx, []string{}) }, gone: []string{},
	}, {
		name:   "dns_split_nameservers",
		create: tfSet(split("10.0.0.2", "10.0.0.1")),
		read: func(ctx context.Context, _ string) (any, error) {
			all, err := d.SplitDNS(ctx)
			slices.Sort(all["split.example"]) // it is a set
			return all["split.example"], err
		},
		want: []string{"10.0.0.1", "10.0.0.2"}, update: func(ctx context.Context, _ string) error { return split("10.0.0.3")(ctx) }, changed: []string{"10.0.0.3"},
		destroy: func(ctx context.Context, _ string) error { return split()(ctx) }, gone: []string(nil),
	}, {
		name:   "dns_configuration",
		create: tfSet(func(ctx context.Context) error { return d.SetConfiguration(ctx, config) }),
		read: func(ctx context.Context, _ string) (any, error) {
			got, err := d.Configuration(ctx)
			if err != nil {
				return nil, err
			}
			return *got, nil
		},
		want: config, update: func(ctx context.Context, _ string) error { return d.SetConfiguration(ctx, other) }, changed: other,
		destroy: func(ctx context.Context, _ string) error { return d.SetConfiguration(ctx, ts.DNSConfiguration{}) }, gone: none,
	}}
}

func tfKeys(c *ts.Client) []tfResource {
	k := c.Keys()
	destroy := func(ctx context.Context, id string) error {
		if err := k.Delete(ctx, id); err != nil {
			return err
		}
		if err := k.Delete(ctx, id); err != nil && !ts.IsNotFound(err) { // it may be gone already
			return err
		}
		return nil
	}
	var key ts.CreateKeyRequest
	key.Capabilities.Devices.Create.Reusable, key.Capabilities.Devices.Create.Preauthorized = true, true
	key.Capabilities.Devices.Create.Tags = []string{"tag:tf"}
	key.ExpirySeconds, key.Description = 7200, "a key"
	read := func(ctx context.Context, id string) (any, error) {
		got, err := k.Get(ctx, id)
		if err != nil {
			return nil, err
		}
		// What the provider compares. A key that is not valid any more is made anew, if so it is asked for.
		out := map[string]any{"type": got.KeyType, "description": got.Description, "scopes": got.Scopes, "tags": got.Tags, "invalid": got.Invalid}
		switch got.KeyType {
		case "auth":
			if out["capabilities"] = got.Capabilities.Devices.Create; got.Invalid {
				break // its life is what it was
			}
			out["expiry"] = int64(*got.ExpirySeconds) // seconds, whatever their type says
		case "federated":
			out["issuer"], out["subject"], out["audience"], out["claims"] = got.Issuer, got.Subject, got.Audience, got.CustomClaimRules
		}
		return out, nil
	}
	with := func(m map[string]any, kv ...any) map[string]any {
		out := map[string]any{"scopes": []string(nil), "tags": []string(nil), "invalid": false}
		maps.Copy(out, m)
		for i := 0; i < len(kv); i += 2 {
			out[kv[i].(string)] = kv[i+1]
		}
		return out
	}
	auth := map[string]any{"type": "auth", "description": "a key", "capabilities": key.Capabilities.Devices.Create, "expiry": int64(7200)}
	ended := maps.Clone(auth)
	delete(ended, "expiry")
	oauth := map[string]any{"type": "client", "description": "ci", "scopes": []string{"auth_keys"}, "tags": []string{"tag:tf"}}
	fed := map[string]any{
		"type": "federated", "description": "", "scopes": []string{"dns"}, "issuer": "https://token.example.com", "subject": "repo:me/*", "audience": "mine",
		"claims": map[string]string(nil),
	}
	return []tfResource{{
		name: "tailnet_key",
		create: func(ctx context.Context) (string, error) {
			got, err := k.CreateAuthKey(ctx, key)
			if err != nil {
				return "", err
			}
			return got.ID, nil
		},
		read: read, want: with(auth), destroy: destroy, gone: with(ended, "invalid", true),
	}, {
		name: "oauth_client",
		create: func(ctx context.Context) (string, error) {
			got, err := k.CreateOAuthClient(ctx, ts.CreateOAuthClientRequest{Description: "ci", Scopes: []string{"auth_keys"}, Tags: []string{"tag:tf"}})
			if err != nil {
				return "", err
			}
			return got.ID, nil
		},
		read: read, want: with(oauth),
		update: func(ctx context.Context, id string) error {
			_, err := k.SetOAuthClient(ctx, id, ts.SetOAuthClientRequest{Description: "", Scopes: []string{"dns:read"}})
			return err
		},
		changed: with(oauth, "description", "", "scopes", []string{"dns:read"}, "tags", []string(nil)),
		destroy: destroy, gone: with(oauth, "description", "", "scopes", []string{"dns:read"}, "tags", []string(nil), "invalid", true),
	}, {
		name: "federated_identity",
		create: func(ctx context.Context) (string, error) {
			got, err := k.CreateFederatedIdentity(ctx, ts.CreateFederatedIdentityRequest{
				Scopes: []string{"dns"}, Tags: []string{}, Issuer: "https://token.example.com", Subject: "repo:me/*", Audience: "mine", CustomClaimRules: map[string]string{},
			})
			if err != nil {
				return "", err
			}
			return got.ID, nil
		},
		read: read, want: with(fed),
		update: func(ctx context.Context, id string) error {
			_, err := k.SetFederatedIdentity(ctx, id, ts.SetFederatedIdentityRequest{
				Scopes: []string{"dns"}, Tags: []string{}, Issuer: "https://token.example.com", Subject: "repo:me/x", Audience: "mine", CustomClaimRules: map[string]string{"ref": "main"},
			})
			return err
		},
		changed: with(fed, "subject", "repo:me/x", "claims", map[string]string{"ref": "main"}), destroy: destroy,
		gone: with(fed, "subject", "repo:me/x", "claims", map[string]string{"ref": "main"}, "invalid", true),
	}}
}

func tfSettings(c *ts.Client) []tfResource {
	// What a configuration does not name is not sent, or as it was read before; what Skein does not have stays off.
	off := ts.UpdateTailnetSettingsRequest{
		ACLsExternallyManagedOn: ts.PointerTo(false), ACLsExternalLink: ts.PointerTo(""), DevicesAutoUpdatesOn: ts.PointerTo(false),
		UsersRoleAllowedToJoinExternalTailnets: ts.PointerTo(ts.RoleAllowedToJoinExternalTailnetsNone), NetworkFlowLoggingOn: ts.PointerTo(false),
		RegionalRoutingOn: ts.PointerTo(false), PostureIdentityCollectionOn: ts.PointerTo(false), HTTPSEnabled: ts.PointerTo(false),
	}
	set := func(approval bool, days int) func(context.Context) error {
		req := off
		req.DevicesApprovalOn, req.UsersApprovalOn, req.DevicesKeyDurationDays = &approval, &approval, &days
		return func(ctx context.Context) error { return c.TailnetSettings().Update(ctx, req) }
	}
	is := func(approval bool, days int) ts.TailnetSettings {
		return ts.TailnetSettings{DevicesApprovalOn: approval, UsersApprovalOn: approval, DevicesKeyDurationDays: days, UsersRoleAllowedToJoinExternalTailnets: ts.RoleAllowedToJoinExternalTailnetsNone}
	}
	events := func(hook *ts.Webhook) any {
		return []any{hook.EndpointURL, hook.ProviderType, slices.Sorted(slices.Values(hook.Subscriptions)), hook.Secret == nil || *hook.Secret == ""}
	}
	return []tfResource{{
		name: "tailnet_settings", create: tfSet(set(true, 30)),
		read: func(ctx context.Context, _ string) (any, error) {
			got, err := c.TailnetSettings().Get(ctx)
			if err != nil {
				return nil, err
			}
			return *got, nil
		},
		want: is(true, 30), update: func(ctx context.Context, _ string) error { return set(false, 90)(ctx) }, changed: is(false, 90),
	}, {
		name: "webhook",
		create: func(ctx context.Context) (string, error) {
			hook, err := c.Webhooks().Create(ctx, ts.CreateWebhookRequest{
				EndpointURL: "https://hooks.example.com/a", ProviderType: ts.WebhookSlackProviderType, Subscriptions: []ts.WebhookSubscriptionType{ts.WebhookNodeCreated, ts.WebhookPolicyUpdate},
			})
			if err != nil {
				return "", err
			}
			return hook.EndpointID, nil
		},
		read: func(ctx context.Context, id string) (any, error) {
			hook, err := c.Webhooks().Get(ctx, id)
			if err != nil {
				return nil, err
			}
			return events(hook), nil
		},
		want: []any{"https://hooks.example.com/a", ts.WebhookSlackProviderType, []ts.WebhookSubscriptionType{ts.WebhookNodeCreated, ts.WebhookPolicyUpdate}, true},
		update: func(ctx context.Context, id string) error {
			_, err := c.Webhooks().Update(ctx, id, []ts.WebhookSubscriptionType{ts.WebhookCategoryTailnetManagement, ts.WebhookExitNodeIPForwardingNotEnabled})
			return err
		},
		changed: []any{"https://hooks.example.com/a", ts.WebhookSlackProviderType, []ts.WebhookSubscriptionType{ts.WebhookCategoryTailnetManagement, ts.WebhookExitNodeIPForwardingNotEnabled}, true},
		destroy: func(ctx context.Context, id string) error { return c.Webhooks().Delete(ctx, id) },
	}}
}

func tfServices(c *ts.Client) []tfResource {
	v := c.VIPServices()
	var addrs []string // what the server gave it: the provider sends it back with each change
	put := func(ctx context.Context, comment string, ports []string, tags []string) error {
		return v.CreateOrUpdate(ctx, ts.VIPService{Name: "svc:web", Addrs: addrs, Comment: comment, Ports: ports, Tags: tags})
	}
	is := func(comment string, ports, tags []string) any { return []any{"svc:web", comment, ports, tags, 2} }
	mail := func(account, support, security string) func(context.Context) error {
		return func(ctx context.Context) error {
			for kind, address := range map[ts.ContactType]string{ts.ContactAccount: account, ts.ContactSupport: support, ts.ContactSecurity: security} {
				if err := c.Contacts().Update(ctx, kind, ts.UpdateContactRequest{Email: &address}); err != nil {
					return err
				}
			}
			return nil
		}
	}
	return []tfResource{{
		name: "service",
		create: func(ctx context.Context) (string, error) {
			addrs = nil
			if err := put(ctx, "", []string{"tcp:443"}, []string{}); err != nil {
				return "", err
			}
			got, err := v.Get(ctx, "svc:web")
			if err != nil {
				return "", err
			}
			addrs = got.Addrs
			return got.Name, nil
		},
		read: func(ctx context.Context, id string) (any, error) {
			got, err := v.Get(ctx, id)
			if err != nil {
				return nil, err
			}
			slices.Sort(got.Ports)
			return []any{got.Name, got.Comment, got.Ports, append([]string{}, got.Tags...), len(got.Addrs)}, nil
		},
		want: is("", []string{"tcp:443"}, []string{}),
		update: func(ctx context.Context, _ string) error {
			return put(ctx, "the site", []string{"tcp:80", "tcp:443"}, []string{"tag:tf"})
		},
		changed: is("the site", []string{"tcp:443", "tcp:80"}, []string{"tag:tf"}),
		destroy: v.Delete,
	}, {
		name: "contacts", create: tfSet(mail("a@example.com", "b@example.com", "c@example.com")),
		read: func(ctx context.Context, _ string) (any, error) {
			got, err := c.Contacts().Get(ctx)
			if err != nil {
				return nil, err
			}
			return []string{got.Account.Email, got.Support.Email, got.Security.Email}, nil
		},
		want: []string{"a@example.com", "b@example.com", "c@example.com"}, update: func(ctx context.Context, _ string) error {
			return mail("a@example.com", "d@example.com", "c@example.com")(ctx)
		},
		changed: []string{"a@example.com", "d@example.com", "c@example.com"}, // and destroying it does nothing there
	}}
}

func tfDevices(t *testing.T, w *v2World, c *ts.Client) []tfResource {
	d := c.Devices()
	node := func(hostname string, routes ...string) string {
		id := w.node(&User{ID: 1}, hostname, routes...)
		return w.st.Snapshot().Node(id).StableID
	}
	get := func(f func(*ts.Device) any) func(context.Context, string) (any, error) {
		return func(ctx context.Context, id string) (any, error) {
			got, err := d.Get(ctx, id)
			if err != nil {
				return nil, err
			}
			return f(got), nil
		}
	}
	at := func(id string, f func(context.Context, string) error) func(context.Context) (string, error) {
		return func(ctx context.Context) (string, error) { return id, f(ctx, id) }
	}
	waiting, plain, router := node("waiting"), node("plain"), node("router", "192.168.7.0/24", "10.7.0.0/16")
	if err := d.SetAuthorized(t.Context(), waiting, false); err != nil {
		t.Fatal(err)
	}
	key := func(never bool) func(context.Context, string) error {
		return func(ctx context.Context, id string) error {
			return d.SetKey(ctx, id, ts.DeviceKey{KeyExpiryDisabled: never})
		}
	}
	tags := func(to ...string) func(context.Context, string) error {
		return func(ctx context.Context, id string) error { return d.SetTags(ctx, id, to) }
	}
	routes := func(to ...string) func(context.Context, string) error {
		return func(ctx context.Context, id string) error {
			return d.SetSubnetRoutes(ctx, id, append([]string{}, to...))
		}
	}
	return []tfResource{{
		name:   "device_authorization",
		create: at(waiting, func(ctx context.Context, id string) error { return d.SetAuthorized(ctx, id, true) }),
		read:   get(func(d *ts.Device) any { return []any{d.NodeID, d.Authorized} }), want: []any{waiting, true},
		destroy: func(ctx context.Context, id string) error { return d.Delete(ctx, id) }, // older providers do
	}, {
		name: "device_key", create: at(plain, key(true)),
		read: get(func(d *ts.Device) any { return d.KeyExpiryDisabled }), want: true,
		update: key(false), changed: false, destroy: key(false), gone: false,
	}, {
		name: "device_subnet_routes", create: at(router, routes("192.168.7.0/24")),
		read: func(ctx context.Context, id string) (any, error) {
			r, err := d.SubnetRoutes(ctx, id)
			if err != nil {
				return nil, err
			}
			return r.Enabled, nil
		},
		want: []string{"192.168.7.0/24"}, update: routes("10.7.0.0/16", "192.168.7.0/24"), changed: []string{"10.7.0.0/16", "192.168.7.0/24"},
		destroy: routes(), gone: []string{},
	}, {
		name: "device_tags", create: at(plain, tags("tag:tf")),
		read: get(func(d *ts.Device) any { return d.Tags }), want: []string{"tag:tf"},
		update: tags("tag:tf", "tag:other"), changed: []string{"tag:other", "tag:tf"},
		// To take all of them away is refused: what has no tags needs an owner.
		destroy: func(ctx context.Context, id string) error {
			if err := d.SetTags(ctx, id, []string{}); status(err) != 400 || !strings.Contains(err.Error(), "owner") {
				t.Errorf("a node that nobody owns: %v", err)
			}
			return nil
		},
		gone: []string{"tag:other", "tag:tf"},
	}}
}

// Data sources of the provider: what they look for is there.
func TestV2TerraformData(t *testing.T) {
	w := newV2World(t)
	c, ctx := w.tailscale(w.apiKey(0)), t.Context()
	ds, err := c.Devices().List(ctx)
	if err != nil || len(ds) != 3 {
		t.Fatalf("%d devices, %v", len(ds), err)
	}
	for _, d := range ds {
		var times struct{ Created, Expires string }
		b, _ := json.Marshal(d)
		if err := json.Unmarshal(b, &times); err != nil {
			t.Error(err)
		}
		if d.ID == "" || d.NodeID == "" || d.Name == "" || d.Hostname == "" || d.User == "" || d.OS == "" || d.ClientVersion == "" || len(d.Addresses) != 2 ||
			d.Created.IsZero() || d.MachineKey == "" || d.NodeKey == "" || d.LastSeen == nil && !d.ConnectedToControl {
			t.Errorf("%+v", d)
		}
	}
	// "users" asks with empty filters when none are configured.
	none, nobody := ts.UserType(""), ts.UserRole("")
	us, err := c.Users().List(ctx, &none, &nobody)
	if err != nil || len(us) != 2 {
		t.Fatalf("%d users, %v", len(us), err)
	}
	shared := ts.UserTypeShared
	if us, err := c.Users().List(ctx, &shared, &nobody); err != nil || len(us) != 0 {
		t.Errorf("shared: %+v, %v", us, err)
	}
	w.setRole(2, tailnet.RoleAdmin)
	member, admin := ts.UserTypeMember, ts.UserRoleAdmin
	if us, err := c.Users().List(ctx, &member, &admin); err != nil || len(us) != 1 || us[0].LoginName != "anna@example.org" {
		t.Errorf("administrators: %+v, %v", us, err)
	}
	u, err := c.Users().Get(ctx, us[0].ID)
	if err != nil || u.LoginName != us[0].LoginName || u.TailnetID == "" || u.Created.IsZero() || u.LastSeen.IsZero() || u.Type != ts.UserTypeMember {
		t.Errorf("%+v, %v", u, err)
	}
}

// MagicDNS without a domain is refused by each operation that could switch it on.
func TestV2NoMagicDNS(t *testing.T) {
	w := newWorldWith(t, func(so *state.Options, _ *Options) { so.DNS = &dns.Settings{} })
	w.handler = NewV2Server(Options{State: w.st, Auth: w.auth, Log: slog.New(slog.DiscardHandler)})
	for path, body := range map[string]string{
		"preferences": `{"magicDNS": true}`, "configuration": `{"nameservers": [{"address": "1.1.1.1"}], "preferences": {"magicDNS": true}}`,
	} {
		if status, res := w.call("POST", "/api/v2/tailnet/-/dns/"+path, body); status != 400 || !strings.Contains(res, "dns.base_domain") {
			t.Errorf("%s: %d %s", path, status, res)
		}
	}
	if d := w.st.Snapshot().DNS; d.MagicDNS || len(d.Nameservers) != 0 {
		t.Errorf("changed: %+v", d)
	}
}
