package netmap

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/types/key"

	"github.com/skein-vpn/skein/dns"
	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/state/statetest"
	"github.com/skein-vpn/skein/tailnet"
)

// pairWorld is a world of two published nodes of one user, viewer and peer.
func pairWorld(t testingT) (w *world, viewer, peer tailnet.NodeID) {
	w = newWorld(t, statetest.New())
	user := w.user("junyao")
	viewer, peer = w.join("viewer", user), w.join("peer", user)
	for _, id := range []tailnet.NodeID{viewer, peer} {
		w.edit(id, func(_ *state.Tx, n *tailnet.Node) { n.DiscoKey, n.Endpoints = key.NewDisco().Public(), epSet[:1] })
	}
	return w, viewer, peer
}

// byTag is a policy under which nodes carry capabilities of their own for the filters of others.
const byTag = `{"tagOwners": {"tag:web": []}, "acls": [{"action": "accept", "src": ["junyao@"], "dst": ["junyao@:*", "tag:web:*"]}]}`

// The ways in which the protocol loses an update, each on purpose: a client that was told every step must know what the
// last full map says. The model and the real client are both asked.
func TestTraps(t *testing.T) {
	type step func(w *world, peer tailnet.NodeID)
	online := func(yes bool) step {
		return func(w *world, peer tailnet.NodeID) {
			w.update(func(tx *state.Tx) error { tx.SetOnline(peer, yes); return nil })
		}
	}
	edit := func(f func(n *tailnet.Node)) step {
		return func(w *world, peer tailnet.NodeID) {
			w.edit(peer, func(tx *state.Tx, n *tailnet.Node) { f(n) })
		}
	}
	newDisco := func(n *tailnet.Node) { n.DiscoKey = key.NewDisco().Public() }
	later := func(w *world, _ tailnet.NodeID) { w.pass(90 * time.Second) }
	both := func(a ...step) step {
		return func(w *world, peer tailnet.NodeID) {
			for _, s := range a {
				s(w, peer)
			}
		}
	}
	ends := func(w *world, _ tailnet.NodeID) {
		w.pass(2 * time.Minute)
		if err := w.st.Tick(ctx); err != nil {
			w.t.Fatal(err)
		}
	}
	renew := func(w *world, peer tailnet.NodeID) {
		w.edit(peer, func(tx *state.Tx, n *tailnet.Node) { tx.NewKey(n, key.NewNode().Public()) })
	}
	status := func(s tailnet.UserStatus) step {
		return func(w *world, peer tailnet.NodeID) {
			if w.snapshot().UserByName("friend") == nil {
				w.user("friend")
			}
			id := w.snapshot().UserByName("friend").ID
			w.edit(peer, func(_ *state.Tx, n *tailnet.Node) { n.User = id })
			w.update(func(tx *state.Tx) error {
				u := *tx.User(id)
				u.Status = s
				return tx.PutUser(&u)
			})
		}
	}
	derp := func(home int, regions ...int) step {
		return func(w *world, _ tailnet.NodeID) {
			w.update(func(tx *state.Tx) error {
				tx.SetDERP(&state.DERPMaps{Current: relays(regions...), Home: home})
				return nil
			})
		}
	}
	for name, steps := range map[string][]step{
		"a new disco key of a node that went offline in the second in which it was seen": {
			online(true), online(false), online(true), both(online(false), edit(newDisco)),
		},
		"a new disco key of an offline node that was just seen": {
			online(true), online(false), func(w *world, peer tailnet.NodeID) {
				w.edit(peer, func(tx *state.Tx, n *tailnet.Node) { newDisco(n); tx.Seen(peer) })
			},
		},
		"a new disco key of an offline node": {online(true), online(false), both(later, edit(newDisco))},
		"offline, then seen later":           {online(true), online(false), both(later, func(w *world, p tailnet.NodeID) { w.update(func(tx *state.Tx) error { tx.Seen(p); return nil }) })},
		"no endpoints any more":              {edit(func(n *tailnet.Node) { n.Endpoints = nil })},
		"no signature any more": {
			edit(func(n *tailnet.Node) { n.KeySignature = []byte("sig") }), edit(func(n *tailnet.Node) { n.KeySignature = nil }),
		},
		"no endpoints and no capabilities any more": {
			func(w *world, _ tailnet.NodeID) {
				w.update(func(tx *state.Tx) error { return tx.SetPolicy(parsePolicy(byTag), "", "") })
			},
			edit(func(n *tailnet.Node) { n.KeySignature = []byte("sig"); n.ApprovedRoutes = []netip.Prefix{exit4, exit6} }),
			func(w *world, peer tailnet.NodeID) {
				w.update(func(tx *state.Tx) error {
					n := tx.Node(peer).Clone()
					n.Endpoints, n.KeySignature = nil, nil
					if err := tx.PutNode(n); err != nil {
						return err
					}
					tx.SetOnline(peer, true)
					return tx.SetPolicy(nil, "", "")
				})
			},
			online(false),
		},
		"no expiry any more": {
			edit(func(n *tailnet.Node) { n.Expiry = statetest.Epoch }), edit(func(n *tailnet.Node) { n.Expiry = time.Time{} }),
		},
		"a key that ends, and is prolonged": {
			online(true), edit(func(n *tailnet.Node) { n.Expiry = statetest.Epoch.Add(time.Minute) }), ends, edit(newDisco), online(false), online(true),
			edit(func(n *tailnet.Node) { n.Endpoints, n.HomeDERP = epSet, 902 }), edit(func(n *tailnet.Node) { n.Expiry = time.Time{} }),
		},
		"a key that ends, and a new one": {
			online(true), edit(func(n *tailnet.Node) { n.Expiry = statetest.Epoch.Add(time.Minute) }), ends,
			edit(func(n *tailnet.Node) {
				n.OldNodeKey, n.NodeKey, n.Expiry = n.NodeKey, key.NewNode().Public(), time.Time{}
				newDisco(n)
			}),
		},
		"a new key, and its use":          {online(true), renew, func(w *world, p tailnet.NodeID) { w.update(func(tx *state.Tx) error { return tx.KeyInUse(p) }) }, ends},
		"a new key that is never used":    {online(true), renew, ends},
		"the user suspended and restored": {status(tailnet.UserSuspended), edit(newDisco), status(tailnet.UserActive)},
		"no tags, no routes any more": {
			edit(func(n *tailnet.Node) { n.User, n.Tags = 0, []string{"tag:web"} }),
			edit(func(n *tailnet.Node) {
				n.Hostinfo = &tailcfg.Hostinfo{RoutableIPs: []netip.Prefix{exit4, aLAN, exit6}}
				n.ApprovedRoutes = n.Hostinfo.RoutableIPs
			}),
			edit(func(n *tailnet.Node) { n.User, n.Tags, n.ApprovedRoutes = 1, nil, nil }),
		},
		"hidden and shown again between two looks": {
			both(edit(func(n *tailnet.Node) { n.Authorized = false }), edit(func(n *tailnet.Node) { n.Authorized, n.HomeDERP = true, 902 })),
		},
		"hidden and shown again": {
			edit(func(n *tailnet.Node) { n.Authorized = false }), edit(func(n *tailnet.Node) { n.Authorized = true; newDisco(n) }),
		},
		"the last peer goes": {func(w *world, p tailnet.NodeID) { w.update(func(tx *state.Tx) error { tx.DeleteNode(p); return nil }) }},
		"one relay more, one relay less": {
			derp(0, 901, 902), derp(902, 902), derp(0), derp(901, 901),
		},
		"another base domain": {func(w *world, _ tailnet.NodeID) {
			w.update(func(tx *state.Tx) error { tx.SetDNS(&dns.Settings{Base: "home.example"}); return nil })
		}},
		"another user of the same name tag": {
			func(w *world, p tailnet.NodeID) {
				u := w.user("other")
				w.edit(p, func(_ *state.Tx, n *tailnet.Node) { n.User = u })
			},
			func(w *world, p tailnet.NodeID) {
				w.update(func(tx *state.Tx) error {
					u := *tx.UserByName("other")
					u.Name, u.Email = "renamed", "renamed@example.net"
					return tx.PutUser(&u)
				})
			},
		},
		"a new key and all that comes with it": {edit(func(n *tailnet.Node) {
			n.NodeKey, n.Expiry, n.Endpoints, n.HomeDERP, n.Capver = key.NewNode().Public(), statetest.Epoch, nil, 903, 200
			newDisco(n)
		})},
	} {
		t.Run(name, func(t *testing.T) {
			w, viewer, peer := pairWorld(t)
			v := Viewer{Node: viewer, Capver: tailcfg.CurrentCapabilityVersion, Compress: true}
			last := w.snapshot()
			real := newDevice(t)
			s := real.poll(nil)
			f, _ := w.enc.Full(last, v)
			known, model := s.send(t, f), w.full(last, v)
			for i, do := range steps {
				do(w, peer)
				sn := w.snapshot()
				if f, ok := w.enc.Delta(last, sn, v); ok {
					known = s.send(t, f)
					if err := model.receive(f); err != nil {
						t.Fatal(err)
					}
				}
				last = sn
				want := w.full(sn, v)
				if err := model.sameAs(want); err != nil {
					t.Errorf("step %d: the model: %v", i, err)
				}
				want.profiles = known.profiles // the real one has those of visible users only
				if err := known.sameAs(want); err != nil {
					t.Errorf("step %d: the client: %v", i, err)
				}
			}
			s.close()
		})
	}
}

// only returns the fields of a message that say something.
func only(t testing.TB, f Frame, compress bool) (*tailcfg.MapResponse, []string) {
	t.Helper()
	r, err := decodeFrame(frameBytes(f), compress)
	if err != nil {
		t.Fatal(err)
	}
	var keys []string
	for _, k := range []struct {
		name string
		set  bool
	}{
		{"Node", r.Node != nil}, {"Peers", r.Peers != nil}, {"PeersChanged", r.PeersChanged != nil}, {"PeersRemoved", r.PeersRemoved != nil},
		{"PeersChangedPatch", r.PeersChangedPatch != nil}, {"PacketFilter", r.PacketFilter != nil}, {"DNSConfig", r.DNSConfig != nil},
		{"Domain", r.Domain != ""}, {"DERPMap", r.DERPMap != nil}, {"UserProfiles", r.UserProfiles != nil},
	} {
		if k.set {
			keys = append(keys, k.name)
		}
	}
	return r, keys
}

// A delta says no more than it has to.
func TestDeltasAreSmall(t *testing.T) {
	w, viewer, peer := pairWorld(t)
	v := Viewer{Node: viewer, Capver: 142}
	last := w.snapshot()
	for _, tc := range []struct {
		name  string
		do    func()
		wants []string
	}{
		{"endpoints", func() { w.edit(peer, func(_ *state.Tx, n *tailnet.Node) { n.Endpoints = epSet }) }, []string{"PeersChangedPatch"}},
		{"own endpoints", func() { w.edit(viewer, func(_ *state.Tx, n *tailnet.Node) { n.Endpoints = epSet }) }, nil},
		{"online", func() { w.update(func(tx *state.Tx) error { tx.SetOnline(peer, true); return nil }) }, []string{"PeersChangedPatch"}},
		{"own online", func() { w.update(func(tx *state.Tx) error { tx.SetOnline(viewer, true); return nil }) }, nil},
		{"key", func() { w.edit(peer, func(_ *state.Tx, n *tailnet.Node) { n.NodeKey = key.NewNode().Public() }) }, []string{"PeersChangedPatch"}},
		{"own key expiry", func() {
			w.edit(viewer, func(_ *state.Tx, n *tailnet.Node) { n.Expiry = statetest.Epoch.AddDate(1, 0, 0) })
		}, []string{"Node"}},
		{"name", func() { w.edit(peer, func(_ *state.Tx, n *tailnet.Node) { n.Name = "other" }) }, []string{"PeersChanged", "UserProfiles"}},
		{"hostinfo that is nobody's business", func() {
			w.edit(peer, func(_ *state.Tx, n *tailnet.Node) {
				n.Hostinfo = n.Hostinfo.Clone()
				n.Hostinfo.DeviceModel, n.Hostinfo.RoutableIPs = "NAS", []netip.Prefix{aLAN}
			})
		}, nil},
		{"a join that is not published", func() { w.join("third", 1) }, nil},
		{"a user without nodes", func() { w.user("other") }, nil},
		{"an auth key", func() { w.update(func(tx *state.Tx) error { tx.PutPreAuthKey(tx.NewPreAuthKey()); return nil }) }, nil},
		{"the same DNS settings again", func() {
			w.update(func(tx *state.Tx) error {
				s := *last.DNS
				tx.SetDNS(&s)
				return nil
			})
		}, nil},
		{"a name server", func() {
			w.update(func(tx *state.Tx) error {
				s := *last.DNS
				s.Nameservers = dns.Resolvers("192.0.2.53")
				tx.SetDNS(&s)
				return nil
			})
		}, []string{"DNSConfig"}},
		{"the same relay map again", func() {
			w.update(func(tx *state.Tx) error {
				tx.SetDERP(&state.DERPMaps{Current: relays(901), Home: 901})
				return nil
			})
		}, nil},
		{"a policy that says the same", func() {
			w.update(func(tx *state.Tx) error { return tx.SetPolicy(nil, "", "") })
		}, nil},
		{"an approved route", func() {
			w.edit(peer, func(_ *state.Tx, n *tailnet.Node) { n.ApprovedRoutes = []netip.Prefix{aLAN} })
		}, []string{"PeersChanged", "UserProfiles"}},
		{"an own advertised route", func() {
			w.edit(viewer, func(_ *state.Tx, n *tailnet.Node) {
				n.Hostinfo = n.Hostinfo.Clone()
				n.Hostinfo.RoutableIPs = []netip.Prefix{aNet}
			})
		}, []string{"PacketFilter"}},
		{"an own approved route", func() {
			w.edit(viewer, func(_ *state.Tx, n *tailnet.Node) { n.ApprovedRoutes = []netip.Prefix{aNet} })
		}, []string{"Node", "PacketFilter"}},
		{"the route disabled", func() {
			w.edit(peer, func(_ *state.Tx, n *tailnet.Node) { n.ApprovedRoutes = nil })
		}, []string{"PeersChanged", "UserProfiles"}},
		{"a peer leaves", func() { w.update(func(tx *state.Tx) error { tx.DeleteNode(peer); return nil }) }, []string{"PeersRemoved"}},
	} {
		tc.do()
		sn := w.snapshot()
		f, ok := w.enc.Delta(last, sn, v)
		last = sn
		if !ok {
			if tc.wants != nil {
				t.Errorf("%s: nothing is sent, want %v", tc.name, tc.wants)
			}
			continue
		}
		r, keys := only(t, f, false)
		if !slices.Equal(keys, tc.wants) {
			t.Errorf("%s: %v is sent, want %v: %s", tc.name, keys, tc.wants, asText(r))
		}
	}
}

// Viewers who see a change alike are sent the same bytes, encoded once.
func TestDeltasAreShared(t *testing.T) {
	w, a, peer := pairWorld(t)
	b := w.join("b", 1)
	from := w.snapshot()
	w.edit(peer, func(_ *state.Tx, n *tailnet.Node) { n.Endpoints = epSet })
	to := w.snapshot()
	frame := func(v Viewer) Frame {
		f, ok := w.enc.Delta(from, to, v)
		if !ok || len(f.parts) != 1 {
			t.Fatalf("delta for %v: %v", v, ok)
		}
		return f
	}
	same := func(x, y Frame) bool { return &x.parts[0][0] == &y.parts[0][0] }
	if !same(frame(Viewer{Node: a, Capver: 142}), frame(Viewer{Node: b, Capver: 113})) {
		t.Error("two viewers are sent bytes of their own")
	}
	if same(frame(Viewer{Node: a, Compress: true}), frame(Viewer{Node: a})) {
		t.Error("two encodings are the same bytes")
	}
	if !same(frame(Viewer{Node: a, Compress: true}), frame(Viewer{Node: b, Compress: true})) {
		t.Error("two compressed viewers are sent bytes of their own")
	}
}

// The encoder remembers few steps, however many there were.
func TestStepsAreForgotten(t *testing.T) {
	w, viewer, peer := pairWorld(t)
	v := Viewer{Node: viewer}
	first := w.snapshot()
	last := first
	for i := range 3 * maxSteps {
		w.edit(peer, func(_ *state.Tx, n *tailnet.Node) { n.HomeDERP = i + 1 })
		sn := w.snapshot()
		if _, ok := w.enc.Delta(last, sn, v); !ok {
			t.Fatal("no delta")
		}
		last = sn
	}
	if n := len(w.enc.steps); n > maxSteps {
		t.Errorf("%d steps are kept, at most %d should be", n, maxSteps)
	}
	f, ok := w.enc.Delta(first, last, v)
	if r, _ := only(t, f, false); !ok || len(r.PeersChangedPatch) != 1 || r.PeersChangedPatch[0].DERPRegion != 3*maxSteps {
		t.Errorf("from the first to the last: %s", asText(r))
	}
}
