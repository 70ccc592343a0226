package api

import (
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"tailscale.com/types/opt"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// v2Device is a node (Device of the Go client). Fields behind Distro come with ?fields=all only.
type v2Device struct {
	Addresses                 []string `json:"addresses"`
	ID                        string   `json:"id"`     // the number
	NodeID                    string   `json:"nodeId"` // the stable id
	User                      string   `json:"user"`
	Name                      string   `json:"name"` // in full
	Hostname                  string   `json:"hostname"`
	ClientVersion             string   `json:"clientVersion"`
	UpdateAvailable           bool     `json:"updateAvailable"`
	OS                        string   `json:"os"`
	Created                   string   `json:"created"`
	ConnectedToControl        bool     `json:"connectedToControl"`
	LastSeen                  string   `json:"lastSeen,omitempty"` // not while it is connected
	KeyExpiryDisabled         bool     `json:"keyExpiryDisabled"`
	Expires                   string   `json:"expires"`
	Authorized                bool     `json:"authorized"`
	IsExternal                bool     `json:"isExternal"`
	MachineKey                string   `json:"machineKey"`
	NodeKey                   string   `json:"nodeKey"`
	BlocksIncomingConnections bool     `json:"blocksIncomingConnections"`
	TailnetLockKey            string   `json:"tailnetLockKey"`
	TailnetLockError          string   `json:"tailnetLockError"`
	Tags                      []string `json:"tags,omitempty"`
	IsEphemeral               bool     `json:"isEphemeral"`
	SSHEnabled                bool     `json:"sshEnabled"`

	Distro             *v2Distro       `json:"distro,omitempty"`
	EnabledRoutes      []string        `json:"enabledRoutes,omitzero"`
	AdvertisedRoutes   []string        `json:"advertisedRoutes,omitzero"`
	ClientConnectivity *v2Connectivity `json:"clientConnectivity,omitempty"`
}

type v2Distro struct {
	Name     string `json:"name"`
	Version  string `json:"version"`
	CodeName string `json:"codeName"`
}

type v2Connectivity struct {
	Endpoints             []string             `json:"endpoints"`
	DERP                  string               `json:"derp"`
	MappingVariesByDestIP bool                 `json:"mappingVariesByDestIP"`
	Latency               map[string]v2Latency `json:"latency"` // by the name of the region
	ClientSupports        map[string]any       `json:"clientSupports"`
}

type v2Latency struct {
	Preferred bool    `json:"preferred,omitempty"`
	MS        float64 `json:"latencyMs"`
}

func (s *server) v2DeviceRoutes() []route {
	const one = "/device/{device}"
	read, write := auth.Read(auth.ScopeDevices), auth.ScopeDevices
	return []route{
		{"/tailnet/{tailnet}/devices", ops{http.MethodGet: {read, s.v2Devices}}},
		{one, ops{http.MethodGet: {read, s.v2GetDevice}, http.MethodDelete: {write, s.v2DeleteDevice}}},
		{one + "/authorized", ops{http.MethodPost: {write, s.v2Authorize}}},
		{one + "/name", ops{http.MethodPost: {write, s.v2Rename}}},
		{one + "/tags", ops{http.MethodPost: {write, s.v2SetTags}}},
		{one + "/key", ops{http.MethodPost: {write, s.v2SetKey}}},
		{one + "/ip", ops{http.MethodPost: {write, s.v2SetAddress}}},
		{"/tailnet/{tailnet}/device-attributes", ops{http.MethodPatch: {auth.ScopePosture, s.v2PatchAttributes}}},
		{one + "/attributes", ops{http.MethodGet: {auth.Read(auth.ScopePosture), s.v2Attributes}}},
		{one + "/attributes/{name}", ops{
			http.MethodPost: {auth.ScopePosture, s.v2SetAttribute}, http.MethodDelete: {auth.ScopePosture, s.v2RemoveAttribute},
		}},
		{one + "/expire", ops{http.MethodPost: {write, s.v2Expire}}},
		{one + "/routes", ops{http.MethodGet: {auth.Read(auth.ScopeRoutes), s.v2GetRoutes}, http.MethodPost: {auth.ScopeRoutes, s.v2SetRoutes}}},
	}
}

// v2DeviceJSON is the one place that makes a v2Device.
func v2DeviceJSON(sn *state.Snapshot, n *state.Node, all bool) *v2Device {
	d := &v2Device{
		Addresses: []string{}, ID: n.ID.String(), NodeID: n.StableID, Name: n.Name, Hostname: n.Hostname, OS: n.Hostinfo.OS,
		Created: v2Time(n.Created), ConnectedToControl: n.Online, KeyExpiryDisabled: n.Expiry.IsZero(), Expires: v2Time(n.Expiry),
		Authorized: n.Authorized, MachineKey: n.MachineKey.String(), NodeKey: n.NodeKey.String(),
		BlocksIncomingConnections: n.Hostinfo.ShieldsUp, Tags: n.Tags, IsEphemeral: n.Ephemeral, SSHEnabled: len(n.Hostinfo.SSH_HostKeys) > 0,
		ClientVersion: n.Hostinfo.IPNVersion,
	}
	for _, a := range n.Addrs() {
		d.Addresses = append(d.Addresses, a.String())
	}
	if sn.DNS.MagicDNS {
		d.Name = strings.TrimSuffix(sn.DNS.FQDN(n.Name), ".")
	}
	if u := sn.User(n.User); u != nil {
		d.User = u.LoginName()
	} else if n.Tagged() {
		d.User = tailnet.TaggedDevicesName
	}
	if !n.Online {
		if d.LastSeen = v2Time(n.LastSeen); d.LastSeen == "" {
			d.LastSeen = d.Created // programs expect one
		}
	}
	if !n.NLKey.IsZero() {
		d.TailnetLockKey = n.NLKey.CLIString()
	}
	if !all {
		return d
	}
	d.EnabledRoutes, d.AdvertisedRoutes = prefixStrings(n.ApprovedRoutes), prefixStrings(tailnet.SortPrefixes(slices.Clone(n.AdvertisedRoutes())))
	if h := n.Hostinfo; h.Distro != "" {
		d.Distro = &v2Distro{h.Distro, h.DistroVersion, h.DistroCodeName}
	}
	d.ClientConnectivity = v2ConnectivityJSON(sn, n)
	return d
}

func v2ConnectivityJSON(sn *state.Snapshot, n *state.Node) *v2Connectivity {
	c := &v2Connectivity{Endpoints: []string{}, Latency: map[string]v2Latency{}, ClientSupports: map[string]any{}}
	for _, e := range n.Endpoints {
		c.Endpoints = append(c.Endpoints, e.String())
	}
	region := func(id int) string {
		if r := sn.DERP.Current.Regions[id]; r != nil {
			return r.RegionName
		}
		return strconv.Itoa(id)
	}
	if n.HomeDERP != 0 {
		c.DERP = region(n.HomeDERP)
	}
	ni := n.Hostinfo.NetInfo
	if ni == nil {
		return c
	}
	c.MappingVariesByDestIP, _ = ni.MappingVariesByDestIP.Get()
	for name, seconds := range ni.DERPLatency { // "999-v4"
		number, _, _ := strings.Cut(name, "-")
		id, err := strconv.Atoi(number)
		if err != nil {
			continue
		}
		l := v2Latency{Preferred: id == ni.PreferredDERP, MS: seconds * 1000}
		if have, ok := c.Latency[region(id)]; !ok || l.MS < have.MS {
			c.Latency[region(id)] = l
		}
	}
	for name, b := range map[string]opt.Bool{"ipv6": ni.WorkingIPv6, "udp": ni.WorkingUDP, "upnp": ni.UPnP, "pmp": ni.PMP, "pcp": ni.PCP} {
		if v, known := b.Get(); known {
			c.ClientSupports[name] = v
		}
	}
	return c
}

// v2Fields reports whether all fields are asked for.
func v2Fields(r *http.Request) (all bool, err error) {
	switch v := r.URL.Query().Get("fields"); v {
	case "", "default":
		return false, nil
	case "all":
		return true, nil
	default:
		return false, tailnet.Errorf(tailnet.Invalid, "fields=%q is neither all nor default", clip(v))
	}
}

func (s *server) v2Devices(r *http.Request) (any, error) {
	all, err := v2Fields(r)
	if err != nil {
		return nil, err
	}
	sn := s.State.Snapshot()
	out := struct {
		Devices []*v2Device `json:"devices"`
	}{[]*v2Device{}}
	filters := r.URL.Query()
	delete(filters, "fields")
	for key := range filters {
		if _, ok := v2Filter(&v2Device{}, key); !ok {
			return nil, tailnet.Errorf(tailnet.Invalid, "devices cannot be chosen by %q", clip(key))
		}
	}
	for _, n := range sn.Nodes() {
		d := v2DeviceJSON(sn, n, all)
		if v2Matches(d, filters) {
			out.Devices = append(out.Devices, d)
		}
	}
	return out, nil
}

// v2Matches reports whether a device has, for each key, one of its values.
func v2Matches(d *v2Device, filters map[string][]string) bool {
	for key, values := range filters {
		have, _ := v2Filter(d, key)
		if !slices.ContainsFunc(values, func(v string) bool { return slices.Contains(have, v) }) {
			return false
		}
	}
	return true
}

// v2Filter are the values of a device that a filter of this name looks at; false if there is no such filter.
func v2Filter(d *v2Device, key string) (have []string, ok bool) {
	switch key {
	case "id":
		return []string{d.ID, d.NodeID}, true
	case "nodeId":
		return []string{d.NodeID}, true
	case "name":
		return []string{d.Name}, true
	case "hostname":
		return []string{d.Hostname}, true
	case "user":
		return []string{d.User}, true
	case "os":
		return []string{d.OS}, true
	case "clientVersion":
		return []string{d.ClientVersion}, true
	case "tags":
		return d.Tags, true
	case "addresses":
		return d.Addresses, true
	case "machineKey":
		return []string{d.MachineKey}, true
	case "nodeKey":
		return []string{d.NodeKey}, true
	case "authorized":
		return []string{strconv.FormatBool(d.Authorized)}, true
	case "isEphemeral":
		return []string{strconv.FormatBool(d.IsEphemeral)}, true
	case "isExternal":
		return []string{strconv.FormatBool(d.IsExternal)}, true
	case "keyExpiryDisabled":
		return []string{strconv.FormatBool(d.KeyExpiryDisabled)}, true
	case "connectedToControl":
		return []string{strconv.FormatBool(d.ConnectedToControl)}, true
	case "blocksIncomingConnections":
		return []string{strconv.FormatBool(d.BlocksIncomingConnections)}, true
	case "updateAvailable":
		return []string{strconv.FormatBool(d.UpdateAvailable)}, true
	case "sshEnabled":
		return []string{strconv.FormatBool(d.SSHEnabled)}, true
	}
	return nil, false
}

func (s *server) v2GetDevice(r *http.Request) (any, error) {
	all, err := v2Fields(r)
	if err != nil {
		return nil, err
	}
	n, err := s.v2Node(r)
	if err != nil {
		return nil, err
	}
	return v2DeviceJSON(s.State.Snapshot(), n, all), nil
}

func (s *server) v2DeleteDevice(r *http.Request) (any, error) {
	n, err := s.v2Node(r)
	if err != nil {
		return nil, err
	}
	return Empty{}, s.dropNode(r, n)
}

func (s *server) v2Authorize(r *http.Request) (any, error) {
	var req struct {
		Authorized *bool `json:"authorized"`
	}
	if err := readV2(r, &req); err != nil {
		return nil, err
	}
	if req.Authorized == nil {
		return nil, tailnet.Errorf(tailnet.Invalid, `"authorized" is missing: true or false`)
	}
	return s.changeV2Node(r, "change approval", approval(*req.Authorized))
}

func (s *server) v2Rename(r *http.Request) (any, error) {
	var req struct {
		Name string `json:"name"`
	}
	if err := readV2(r, &req); err != nil {
		return nil, err
	}
	sn := s.State.Snapshot()
	name := strings.TrimSuffix(req.Name, ".") // in full, too
	if base := "." + sn.DNS.Base; base != "." {
		name = strings.TrimSuffix(name, base)
	}
	if name == "" { // as the machine calls itself
		return s.changeV2Node(r, "reset name", func(tx *state.Tx, n *tailnet.Node) (bool, error) {
			free := tx.FreeName(n.Hostname, n.ID)
			changed := n.NameFixed || n.Name != free
			n.Name, n.NameFixed = free, false
			return changed, nil
		})
	}
	return s.changeV2Node(r, "change name", renameTo(name))
}

func (s *server) v2SetTags(r *http.Request) (any, error) {
	var req SetTagsRequest
	if err := readV2(r, &req); err != nil {
		return nil, err
	}
	change, why, err := s.retag(r, req.Tags)
	if err != nil {
		return nil, err
	}
	return s.changeV2Node(r, why, change)
}

func (s *server) v2SetKey(r *http.Request) (any, error) {
	var req struct {
		KeyExpiryDisabled *bool `json:"keyExpiryDisabled"`
	}
	if err := readV2(r, &req); err != nil {
		return nil, err
	}
	if req.KeyExpiryDisabled == nil {
		return nil, tailnet.Errorf(tailnet.Invalid, `"keyExpiryDisabled" is missing: true or false`)
	}
	return s.changeV2Node(r, "change expiry", func(tx *state.Tx, n *tailnet.Node) (bool, error) {
		changed := n.NeverExpires != *req.KeyExpiryDisabled
		n.NeverExpires = *req.KeyExpiryDisabled
		if n.NeverExpires {
			n.Expiry = time.Time{}
		} else if changed {
			s.Auth.Renew(tx, n)
		}
		return changed, nil
	})
}

func (s *server) v2SetAddress(r *http.Request) (any, error) {
	var req struct {
		IPv4 string `json:"ipv4"`
	}
	if err := readV2(r, &req); err != nil {
		return nil, err
	}
	a, err := netip.ParseAddr(req.IPv4)
	if err != nil {
		return nil, tailnet.Errorf(tailnet.Invalid, "%q is not an address such as 100.64.0.9", clip(req.IPv4))
	}
	return s.changeV2Node(r, "change address", func(tx *state.Tx, n *tailnet.Node) (bool, error) {
		if a == n.IPv4 {
			return false, nil
		}
		return true, tx.SetIPv4(n, a)
	})
}

func (s *server) v2Expire(r *http.Request) (any, error) {
	discard(r)
	return s.changeV2Node(r, "change expiry", func(tx *state.Tx, n *tailnet.Node) (bool, error) {
		if n.Expired(tx.Now()) { // what has ended stays ended when it did
			return false, nil
		}
		n.Expiry = tx.Now().Truncate(time.Second)
		return true, nil
	})
}

// v2Routes are the routes of a device.
type v2Routes struct {
	Advertised []string `json:"advertisedRoutes"`
	Enabled    []string `json:"enabledRoutes"`
}

func (s *server) v2GetRoutes(r *http.Request) (any, error) {
	n, err := s.v2Node(r)
	if err != nil {
		return nil, err
	}
	return v2Routes{prefixStrings(tailnet.SortPrefixes(slices.Clone(n.AdvertisedRoutes()))), prefixStrings(n.ApprovedRoutes)}, nil
}

func (s *server) v2SetRoutes(r *http.Request) (any, error) {
	var req struct {
		Routes []string `json:"routes"`
	}
	if err := readV2(r, &req); err != nil {
		return nil, err
	}
	n, err := s.v2Node(r)
	if err != nil {
		return nil, err
	}
	// They may be approved before the node advertises them.
	if _, err := s.setRoutes(r, "replace routes", RoutesRequest{Node: Ref(n.ID.String()), Routes: req.Routes, AllowUnadvertised: true}, exactRoutes); err != nil {
		return nil, err
	}
	return s.v2GetRoutes(r)
}

func (s *server) v2Attributes(r *http.Request) (any, error) {
	n, err := s.v2Node(r)
	if err != nil {
		return nil, err
	}
	ends := map[string]string{}
	for _, a := range n.Attributes {
		if !a.Expires.IsZero() {
			ends[a.Name] = v2Time(a.Expires)
		}
	}
	return struct {
		Attributes map[string]any    `json:"attributes"`
		Expiries   map[string]string `json:"expiries"`
	}{attributesJSON(n.Node), ends}, nil
}

// v2PatchAttributes changes attributes of several devices, all or none.
func (s *server) v2PatchAttributes(r *http.Request) (any, error) {
	var req struct {
		Nodes   map[string]map[string]*SetAttributeRequest `json:"nodes"` // null takes one away
		Comment string                                     `json:"comment"`
	}
	if err := readV2(r, &req); err != nil {
		return nil, err
	}
	if err := checkText("comment", req.Comment); err != nil {
		return nil, err
	}
	if len(req.Nodes) == 0 {
		return nil, tailnet.Errorf(tailnet.Invalid, "nodes is missing: attributes by the id of a device")
	}
	why := "set attributes"
	if req.Comment != "" {
		why += " (" + req.Comment + ")"
	}
	sn := s.State.Snapshot()
	return Empty{}, s.update(r, why, func(tx *state.Tx) error {
		for _, ref := range slices.Sorted(maps.Keys(req.Nodes)) {
			found, err := v2NodeNamed(sn, ref)
			if err != nil {
				return err
			}
			n, err := nodeIn(tx, found.ID)
			if err != nil {
				return err
			}
			n = n.Clone()
			for _, name := range slices.Sorted(maps.Keys(req.Nodes[ref])) {
				set := req.Nodes[ref][name]
				if set == nil {
					n.Attributes = tailnet.WithoutAttribute(n.Attributes, name)
					continue
				}
				a, err := tailnet.NewAttribute(name, set.Value)
				if err != nil {
					return err
				}
				if a.Expires, err = set.expiry(tx.Now()); err != nil {
					return err
				}
				if n.Attributes, err = tailnet.WithAttribute(n.Attributes, a); err != nil {
					return err
				}
			}
			if err := tx.PutNode(n); err != nil {
				return err
			}
		}
		return nil
	})
}

func (s *server) v2SetAttribute(r *http.Request) (any, error) {
	change, why, err := attributeChange(r)
	if err != nil {
		return nil, err
	}
	if _, err := s.changeV2Node(r, why, change); err != nil {
		return nil, err
	}
	return s.v2Attributes(r)
}

func (s *server) v2RemoveAttribute(r *http.Request) (any, error) {
	change, why, err := attributeRemoval(r)
	if err != nil {
		return nil, err
	}
	return s.changeV2Node(r, why, change)
}
