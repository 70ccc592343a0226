package api

import (
	"maps"
	"net/http"
	"slices"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

func (s *server) v2DNSRoutes() []route {
	const base = "/tailnet/{tailnet}/dns"
	both := func(get, set handler) ops {
		return ops{http.MethodGet: {auth.Read(auth.ScopeDNS), get}, http.MethodPost: {auth.ScopeDNS, set}}
	}
	return []route{
		{base + "/nameservers", both(s.v2Nameservers, s.v2SetNameservers)},
		{base + "/preferences", both(s.v2Preferences, s.v2SetPreferences)},
		{base + "/searchpaths", both(s.v2SearchPaths, s.v2SetSearchPaths)},
		{base + "/configuration", both(s.v2DNSConfig, s.v2SetDNSConfig)},
		{base + "/split-dns", ops{
			http.MethodGet: {auth.Read(auth.ScopeDNS), s.v2SplitDNS}, http.MethodPut: {auth.ScopeDNS, s.v2PutSplitDNS},
			http.MethodPatch: {auth.ScopeDNS, s.v2PatchSplitDNS},
		}},
	}
}

type (
	v2NameserverList struct {
		DNS      []string `json:"dns"`
		MagicDNS *bool    `json:"magicDNS,omitempty"` // after a change only
	}
	v2DNSPreferences struct {
		MagicDNS bool `json:"magicDNS"`
	}
	v2SearchPathList struct {
		SearchPaths []string `json:"searchPaths"`
	}
	v2Resolver struct {
		Address         string `json:"address"`
		UseWithExitNode bool   `json:"useWithExitNode,omitempty"`
	}
	v2DNSConfiguration struct {
		Nameservers []v2Resolver            `json:"nameservers"`
		SplitDNS    map[string][]v2Resolver `json:"splitDNS"`
		SearchPaths []string                `json:"searchPaths"`
		Preferences struct {
			OverrideLocalDNS bool `json:"overrideLocalDNS"`
			MagicDNS         bool `json:"magicDNS"`
		} `json:"preferences"`
	}
)

func addrsOf(rs []tailnet.Resolver) []string {
	out := make([]string, 0, len(rs))
	for _, r := range rs {
		out = append(out, r.Addr)
	}
	return out
}

// resolversOf are resolvers at addrs; each that was in old keeps how it is used.
func resolversOf(addrs []string, old []tailnet.Resolver) []tailnet.Resolver {
	out := make([]tailnet.Resolver, 0, len(addrs))
	for _, a := range addrs {
		r := tailnet.Resolver{Addr: a}
		if i := slices.IndexFunc(old, func(o tailnet.Resolver) bool { return o.Addr == a }); i >= 0 {
			r = old[i]
		}
		out = append(out, r)
	}
	return out
}

func (s *server) v2Nameservers(*http.Request) (any, error) {
	return v2NameserverList{addrsOf(s.State.Snapshot().DNS.Nameservers), nil}, nil
}

func (s *server) v2SetNameservers(r *http.Request) (any, error) {
	var req struct {
		DNS *[]string `json:"dns"`
	}
	if err := readV2(r, &req); err != nil {
		return nil, err
	}
	if req.DNS == nil {
		return nil, tailnet.Errorf(tailnet.Invalid, `"dns" is missing: a list of addresses`)
	}
	old := s.State.Snapshot().DNS.Nameservers
	if _, err := s.changeDNS(r, "set DNS", func(d *tailnet.DNS, _ *state.Tx) error {
		d.Nameservers = resolversOf(*req.DNS, old)
		return nil
	}); err != nil {
		return nil, err
	}
	d := s.State.Snapshot().DNS
	return v2NameserverList{addrsOf(d.Nameservers), &d.MagicDNS}, nil
}

func (s *server) v2Preferences(*http.Request) (any, error) {
	return v2DNSPreferences{s.State.Snapshot().DNS.MagicDNS}, nil
}

func (s *server) v2SetPreferences(r *http.Request) (any, error) {
	var req struct {
		MagicDNS *bool `json:"magicDNS"`
	}
	if err := readV2(r, &req); err != nil {
		return nil, err
	}
	if req.MagicDNS == nil {
		return nil, tailnet.Errorf(tailnet.Invalid, `"magicDNS" is missing: true or false`)
	}
	if err := s.magicDNSPossible(*req.MagicDNS); err != nil {
		return nil, err
	}
	if _, err := s.changeDNS(r, "set DNS", func(d *tailnet.DNS, _ *state.Tx) error { d.MagicDNS = req.MagicDNS; return nil }); err != nil {
		return nil, err
	}
	return s.v2Preferences(r)
}

// magicDNSPossible returns an error if MagicDNS is to be on and there is no domain for it.
func (s *server) magicDNSPossible(on bool) error {
	if on && s.State.Snapshot().DNS.Base == "" {
		return tailnet.Errorf(tailnet.Invalid, "there can be no MagicDNS without a base domain (dns.base_domain in the configuration)")
	}
	return nil
}

func (s *server) v2SearchPaths(*http.Request) (any, error) {
	return v2SearchPathList{list(s.State.Snapshot().DNS.Search)}, nil
}

func (s *server) v2SetSearchPaths(r *http.Request) (any, error) {
	var req struct {
		SearchPaths *[]string `json:"searchPaths"`
	}
	if err := readV2(r, &req); err != nil {
		return nil, err
	}
	if req.SearchPaths == nil {
		return nil, tailnet.Errorf(tailnet.Invalid, `"searchPaths" is missing: a list of domains`)
	}
	if _, err := s.changeDNS(r, "set DNS", func(d *tailnet.DNS, _ *state.Tx) error { d.Search = list(*req.SearchPaths); return nil }); err != nil {
		return nil, err
	}
	return s.v2SearchPaths(r)
}

func (s *server) v2SplitDNS(*http.Request) (any, error) {
	out := map[string][]string{}
	for suffix, rs := range s.State.Snapshot().DNS.Split {
		out[suffix] = addrsOf(rs)
	}
	return out, nil
}

func (s *server) v2PutSplitDNS(r *http.Request) (any, error)   { return s.v2SetSplitDNS(r, false) }
func (s *server) v2PatchSplitDNS(r *http.Request) (any, error) { return s.v2SetSplitDNS(r, true) }

// v2SetSplitDNS replaces all domains, or those that the request names; one without resolvers is removed.
func (s *server) v2SetSplitDNS(r *http.Request, patch bool) (any, error) {
	req := map[string][]string{}
	if err := readV2(r, &req); err != nil {
		return nil, err
	}
	old := s.State.Snapshot().DNS.Split
	_, err := s.changeDNS(r, "set DNS", func(d *tailnet.DNS, _ *state.Tx) error {
		split := map[string][]tailnet.Resolver{}
		if patch {
			maps.Copy(split, old)
		}
		for suffix, addrs := range req {
			name, err := tailnet.CheckDomain(suffix)
			if err != nil {
				return err
			}
			if delete(split, name); len(addrs) > 0 {
				split[name] = resolversOf(addrs, old[name])
			}
		}
		d.Split = split
		return nil
	})
	if err != nil {
		return nil, err
	}
	return s.v2SplitDNS(r)
}

func v2Resolvers(rs []tailnet.Resolver) []v2Resolver {
	out := make([]v2Resolver, 0, len(rs))
	for _, r := range rs {
		out = append(out, v2Resolver{r.Addr, r.UseWithExitNode})
	}
	return out
}

func (s *server) v2DNSConfig(*http.Request) (any, error) {
	d := s.State.Snapshot().DNS
	out := v2DNSConfiguration{Nameservers: v2Resolvers(d.Nameservers), SplitDNS: map[string][]v2Resolver{}, SearchPaths: list(d.Search)}
	for suffix, rs := range d.Split {
		out.SplitDNS[suffix] = v2Resolvers(rs)
	}
	out.Preferences.MagicDNS, out.Preferences.OverrideLocalDNS = d.MagicDNS, d.OverrideLocal
	return out, nil
}

func (s *server) v2SetDNSConfig(r *http.Request) (any, error) {
	var req v2DNSConfiguration
	if err := readV2(r, &req); err != nil {
		return nil, err
	}
	if err := s.magicDNSPossible(req.Preferences.MagicDNS); err != nil {
		return nil, err
	}
	in := func(rs []v2Resolver) []tailnet.Resolver {
		out := make([]tailnet.Resolver, 0, len(rs))
		for _, one := range rs {
			out = append(out, tailnet.Resolver{Addr: one.Address, UseWithExitNode: one.UseWithExitNode})
		}
		return out
	}
	_, err := s.changeDNS(r, "set DNS", func(d *tailnet.DNS, _ *state.Tx) error {
		*d = tailnet.DNS{
			Nameservers: in(req.Nameservers), Search: list(req.SearchPaths), Split: map[string][]tailnet.Resolver{}, Records: d.Records,
			MagicDNS: &req.Preferences.MagicDNS, OverrideLocal: &req.Preferences.OverrideLocalDNS,
		}
		for suffix, rs := range req.SplitDNS {
			if len(rs) > 0 {
				d.Split[suffix] = in(rs)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return s.v2DNSConfig(r)
}
