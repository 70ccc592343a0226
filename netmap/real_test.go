package netmap

import (
	"errors"
	"io"
	"net/http"
	"testing"
	"time"

	"pgregory.net/rapid"
	"tailscale.com/control/controlclient"
	"tailscale.com/health"
	"tailscale.com/net/netmon"
	"tailscale.com/net/tsdial"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
	tsnetmap "tailscale.com/types/netmap"
	"tailscale.com/types/persist"
	"tailscale.com/types/views"
	"tailscale.com/util/eventbus"
	"tailscale.com/wgengine/filter"

	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/state/statetest"
	"github.com/skein-vpn/skein/tailnet"
)

// device is Tailscale's own control client (of the pinned release) without a network: its map requests are answered with
// the frames that are written to it.
type device struct {
	direct *controlclient.Direct
	body   chan io.Reader // answer to the next map request
}

func newDevice(t testing.TB) *device {
	t.Helper()
	bus := eventbus.New()
	tracker := health.NewTracker(bus)
	dialer := tsdial.NewDialer(netmon.NewStatic())
	dialer.SetBus(bus)
	d := &device{body: make(chan io.Reader, 1)}
	machine := key.NewMachine()
	var err error
	d.direct, err = controlclient.NewDirect(controlclient.Options{
		ServerURL:            "https://skein.example",
		Persist:              persist.Persist{PrivateNodeKey: key.NewNode()},
		Hostinfo:             &tailcfg.Hostinfo{BackendLogID: "none", Hostname: "device"},
		GetMachinePrivateKey: func() (key.MachinePrivate, error) { return machine, nil },
		NoiseTestClient:      &http.Client{Transport: d},
		HTTPTestClient:       &http.Client{Transport: d},
		HealthTracker:        tracker, Dialer: dialer, Bus: bus, Logf: func(string, ...any) {},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.direct.Close(); err != nil {
			t.Error(err)
		}
		_ = dialer.Close()
		bus.Close()
	})
	return d
}

// RoundTrip answers the device's map request.
func (d *device) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Path != "/machine/map" {
		return nil, errors.New("unexpected request to " + r.URL.Path)
	}
	body := <-d.body
	return &http.Response{StatusCode: 200, Body: io.NopCloser(body), Header: http.Header{}, Request: r}, nil
}

// stream is one map poll of a device.
type stream struct {
	w    *io.PipeWriter
	maps chan *tsnetmap.NetworkMap // one for each message
	end  chan error
}

// poll begins a map poll; what frames make of it goes to u or, if that is nil, to the stream's maps.
func (d *device) poll(u controlclient.NetmapUpdater) *stream {
	r, w := io.Pipe()
	s := &stream{w: w, maps: make(chan *tsnetmap.NetworkMap, 1), end: make(chan error, 1)}
	if u == nil {
		u = s
	}
	d.body <- r
	go func() {
		s.end <- d.direct.PollNetMap(ctx, u)
		_ = r.Close()
	}()
	return s
}

// UpdateFullNetmap implements controlclient.NetmapUpdater.
func (s *stream) UpdateFullNetmap(nm *tsnetmap.NetworkMap) { s.maps <- nm }

// send writes one frame and returns what the client then knows.
func (s *stream) send(t fataler, f Frame) *client {
	t.Helper()
	if _, err := f.WriteTo(s.w); err != nil {
		t.Fatalf("the device took no frame: %v; its poll: %v", err, <-s.end)
	}
	select {
	case nm := <-s.maps:
		return fromNetmap(nm)
	case err := <-s.end:
		t.Fatalf("the device gave up: %v", err)
		return nil
	}
}

func (s *stream) close() {
	_ = s.w.Close()
	<-s.end
}

type fataler interface {
	Helper()
	Fatalf(string, ...any)
}

// fromNetmap is nm in the words of the model.
func fromNetmap(nm *tsnetmap.NetworkMap) *client {
	own := func(v tailcfg.NodeView) *tailcfg.Node {
		n := v.AsStruct()
		n.ComputedName, n.ComputedNameWithHost = "", ""
		return n
	}
	dns := nm.DNS
	c := &client{
		self: own(nm.SelfNode), peers: map[tailcfg.NodeID]*tailcfg.Node{}, profiles: map[tailcfg.UserID]tailcfg.UserProfile{},
		derp: nm.DERPMap, dns: &dns, domain: nm.Domain, ssh: nm.SSHPolicy, services: nm.CollectServices,
		filters: map[string][]tailcfg.FilterRule{"base": nm.PacketFilterRules.AsSlice()},
	}
	for _, p := range nm.Peers {
		c.peers[p.ID()] = own(p)
	}
	for id, p := range nm.UserProfiles {
		c.profiles[id] = *p.AsStruct()
	}
	return c
}

// The real client takes our frames, knows from deltas what it knows from the next full map, and agrees with our model of it
// in every step.
func TestRealClient(t *testing.T) {
	a, b := newDevice(t), newDevice(t)
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t, statetest.New())
		user := w.user("junyao")
		id := w.join("viewer", user)
		v := Viewer{Node: id, Capver: tailcfg.CurrentCapabilityVersion, Compress: true}
		full := func(sn *state.Snapshot) Frame {
			f, ok := w.enc.Full(sn, v)
			if !ok {
				t.Fatal("no full map")
			}
			return f
		}
		last := w.snapshot()
		s := a.poll(nil)
		defer s.close()
		s.send(t, full(last))
		model := w.full(last, v)
		for range rapid.IntRange(1, 15).Draw(t, "changes") {
			change := w.randomChange(t)
			sn := w.snapshot()
			if sn.Node(id) == nil {
				return
			}
			f, ok := w.enc.Delta(last, sn, v)
			last = sn
			if !ok {
				continue
			}
			known := s.send(t, f)
			if err := model.receive(f); err != nil {
				t.Fatal(err)
			}
			fresh := b.poll(nil)
			want := fresh.send(t, full(sn))
			fresh.close()
			if err := known.sameAs(want); err != nil {
				t.Fatalf("after %q: %v", change, err)
			}
			if err := model.sameAs(known); err != nil { // known has the profiles of visible users only
				t.Fatalf("the model is wrong after %q: %v", change, err)
			}
		}
	})
}

// cheap is a client that takes changes of peers without building a whole netmap, as real ones do.
type cheap struct {
	full, deltas int
	mutations    []tsnetmap.NodeMutation
	took         chan struct{}
}

func (c *cheap) UpdateFullNetmap(*tsnetmap.NetworkMap) { c.full++; c.took <- struct{}{} }
func (c *cheap) UpdateNetmapDelta(m []tsnetmap.NodeMutation) bool {
	c.deltas++
	c.mutations = m
	c.took <- struct{}{}
	return true
}
func (c *cheap) UpdatePacketFilter(views.Slice[tailcfg.FilterRule], []filter.Match) bool { return true }
func (c *cheap) UpdateUserProfiles(map[tailcfg.UserID]tailcfg.UserProfileView) bool      { return true }

// What happens all day (endpoints, home relay, online, joins, leaves) does not make a client rebuild its netmap.
func TestRealClientTakesTheCheapPath(t *testing.T) {
	w := newWorld(t, statetest.New())
	user := w.user("junyao")
	viewer, peer := w.join("viewer", user), w.join("peer", user)
	disco := func(id tailnet.NodeID) {
		w.edit(id, func(_ *state.Tx, n *tailnet.Node) { n.DiscoKey = key.NewDisco().Public() })
	}
	disco(viewer)
	disco(peer)
	v := Viewer{Node: viewer, Capver: tailcfg.CurrentCapabilityVersion, Compress: true}
	last := w.snapshot()
	c := &cheap{took: make(chan struct{}, 1)}
	s := newDevice(t).poll(c)
	defer s.close()
	send := func(f Frame) {
		t.Helper()
		if _, err := f.WriteTo(s.w); err != nil {
			t.Fatal(err, <-s.end)
		}
		select {
		case <-c.took:
		case err := <-s.end:
			t.Fatal(err)
		}
	}
	f, _ := w.enc.Full(last, v)
	send(f)
	third := tailnet.NodeID(0)
	for _, step := range []struct {
		name string
		do   func()
	}{
		{"endpoints", func() { w.edit(peer, func(_ *state.Tx, n *tailnet.Node) { n.Endpoints = epSet }) }},
		{"no endpoints", func() { w.edit(peer, func(_ *state.Tx, n *tailnet.Node) { n.Endpoints = nil }) }},
		{"home", func() { w.edit(peer, func(_ *state.Tx, n *tailnet.Node) { n.HomeDERP = 7 }) }},
		{"online", func() { w.update(func(tx *state.Tx) error { tx.SetOnline(peer, true); return nil }) }},
		{"offline", func() { w.update(func(tx *state.Tx) error { tx.SetOnline(peer, false); return nil }) }},
		{"join", func() { third = w.join("third", user); disco(third) }},
		{"join of another user", func() { disco(w.join("fourth", w.user("other"))) }},
		{"rename", func() { w.edit(third, func(_ *state.Tx, n *tailnet.Node) { n.Name = "other" }) }},
		{"delete", func() { w.update(func(tx *state.Tx) error { tx.DeleteNode(third); return nil }) }},
	} {
		full, deltas := c.full, c.deltas
		step.do()
		w.pass(time.Second)
		sn := w.snapshot()
		f, ok := w.enc.Delta(last, sn, v)
		if last = sn; !ok {
			t.Fatalf("%s: no delta", step.name)
		}
		send(f)
		if c.full != full || c.deltas != deltas+1 || len(c.mutations) == 0 {
			t.Errorf("%s: %d full netmaps and %d deltas, with %d mutations", step.name, c.full-full, c.deltas-deltas, len(c.mutations))
		}
	}
	// The viewer's own roaming is no news to itself at all.
	w.edit(viewer, func(_ *state.Tx, n *tailnet.Node) { n.Endpoints = epSet })
	w.update(func(tx *state.Tx) error { tx.SetOnline(viewer, true); return nil })
	if _, ok := w.enc.Delta(last, w.snapshot(), v); ok {
		t.Error("a node is told of its own endpoints")
	}
}

// The real client keeps its stream over keep-alives and takes the map of a deleted node: its key has ended.
func TestRealClientGone(t *testing.T) {
	w := newWorld(t, statetest.New())
	w.setNow(time.Now())
	id := w.join("viewer", w.user("junyao"))
	v := Viewer{Node: id, Capver: tailcfg.CurrentCapabilityVersion, Compress: true}
	sn := w.snapshot()
	f, _ := w.enc.Full(sn, v)
	d := newDevice(t)
	s := d.poll(nil)
	s.send(t, f)
	for range 3 {
		if _, err := KeepAlive(v).WriteTo(s.w); err != nil {
			t.Fatal(err, <-s.end)
		}
	}
	w.update(func(tx *state.Tx) error { tx.DeleteNode(id); return nil })
	gone := w.enc.Gone(w.snapshot(), sn.Node(id).Node, v)
	if c := s.send(t, gone); !c.self.KeyExpiry.Before(time.Now()) || c.self.KeyExpiry.IsZero() {
		t.Errorf("in the open stream the key ends %v", c.self.KeyExpiry)
	}
	s.close()
	s = d.poll(nil) // and as the first message of a new one
	defer s.close()
	c := s.send(t, gone)
	if !c.self.KeyExpiry.Before(time.Now()) || c.self.KeyExpiry.IsZero() || c.self.ID != id.Tailcfg() || c.self.StableID == "" {
		t.Errorf("a new stream says %s", asText(c.self))
	}
	if len(c.peers) != 0 || len(c.filters["base"]) != 0 {
		t.Error("a node that is gone is told of peers or lets something in")
	}
}
