package api

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// expiringSoon is how long before its end a status tells of a key.
const expiringSoon = 7 * 24 * time.Hour

// clockTolerance is how far clocks may be apart without a warning.
const clockTolerance = 5 * time.Second

type (
	// Status is how everything is, on one page.
	Status struct {
		Time     *time.Time      `json:"time"` // by the server's clock
		Server   StatusServer    `json:"server"`
		Servers  []ClusterServer `json:"servers"` // that share the database; none if there is one server only
		Users    StatusUsers     `json:"users"`
		Nodes    StatusNodes     `json:"nodes"`
		Routes   StatusRoutes    `json:"routes"`
		Relays   []*StatusRelay  `json:"relays"`
		Policy   StatusPolicy    `json:"policy"`
		Checks   []HealthCheck   `json:"checks"`
		Warnings []StatusWarning `json:"warnings"`
	}
	// StatusServer is the server that answers.
	StatusServer struct {
		Version       string     `json:"version"`
		StartedAt     *time.Time `json:"startedAt"`
		UptimeSeconds int64      `json:"uptimeSeconds"`
		URL           string     `json:"url"`    // as clients reach it
		Key           string     `json:"key"`    // that clients know it by; public
		Listen        string     `json:"listen"` // address and port for clients
		Database      string     `json:"database"`
		Revision      ID         `json:"revision"` // number of the last change
	}
	// StatusUsers counts users.
	StatusUsers struct {
		Total     int `json:"total"`
		Waiting   int `json:"waiting"` // for approval
		Suspended int `json:"suspended"`
	}
	// StatusNodes counts nodes. One that waits or has expired is not online to others, whatever its connection.
	StatusNodes struct {
		Total      int           `json:"total"`
		Online     int           `json:"online"`
		Waiting    []*StatusNode `json:"waiting"`  // for approval, of itself or of its user
		Expiring   []*StatusNode `json:"expiring"` // their keys end within a week; the next first
		Expired    []*StatusNode `json:"expired"`
		Registered int           `json:"logins"` // machines that wait to be let in
	}
	// StatusNode is a node that there is something to say about.
	StatusNode struct {
		ID     ID         `json:"id"`
		Name   string     `json:"name"`
		User   string     `json:"user"`
		Expiry *time.Time `json:"expiry"`
	}
	// StatusRoutes counts routes, each exit node as one.
	StatusRoutes struct {
		Carried  int            `json:"carried"`  // prefixes that a node carries now
		Exits    int            `json:"exits"`    // exit nodes that are enabled and online
		Disabled []*StatusRoute `json:"disabled"` // offered, and not enabled
		Down     []*StatusRoute `json:"down"`     // enabled, and all nodes that offer them are away or do not answer
	}
	// StatusRoute is a prefix, or "exit node", and who offers it.
	StatusRoute struct {
		Prefix string   `json:"prefix"`
		Nodes  []string `json:"nodes"`
	}
	// StatusRelay is a region of the relay map.
	StatusRelay struct {
		Region int    `json:"region"`
		Code   string `json:"code"`
		Name   string `json:"name"`
		Relays int    `json:"relays"`
		Nodes  int    `json:"nodes"` // that have their home there and are online
	}
	// StatusPolicy says which policy counts.
	StatusPolicy struct {
		Source    string     `json:"source"`  // "database", "file" or "none": everybody reaches everybody
		Version   ID         `json:"version"` // "0" unless it is in the database
		UpdatedAt *time.Time `json:"updatedAt"`
		Author    string     `json:"author"`
		InForce   bool       `json:"inForce"` // false: the newest one cannot be used, and an older one counts
	}
	// StatusWarning is something that somebody should look at, and what to do.
	StatusWarning struct {
		Text   string `json:"text"`
		Remedy string `json:"remedy"` // a command or setting; may be empty
	}

	// About is what the server knows of itself that is not in the tailnet's state.
	About struct {
		URL, Key, Listen, Database string // as of StatusServer
		Started                    time.Time
		Warnings                   []StatusWarning // about how it was started
	}
)

func (s *server) statusOperations() []operation {
	return []operation{get("/status", auth.Read(auth.ScopeDevices), "how everything is, on one page: server, nodes, routes, relays, policy, warnings", s.status)}
}

func (s *server) status(r *http.Request, _ *Empty) (*Status, error) {
	sn, now := s.State.Snapshot(), s.Now()
	about := s.About()
	st := &Status{
		Time: timestamp(now), Servers: []ClusterServer{}, Checks: list(s.Health(r.Context())), Warnings: list(about.Warnings),
		Server: StatusServer{
			Version: s.Version, StartedAt: timestamp(about.Started), URL: about.URL, Key: about.Key, Listen: about.Listen, Database: about.Database, Revision: ID(sn.Rev),
		},
		Nodes: statusNodes(sn, now), Routes: statusRoutes(sn), Relays: statusRelays(sn), Policy: s.statusPolicy(sn),
	}
	if !about.Started.IsZero() {
		st.Server.UptimeSeconds = int64(now.Sub(about.Started) / time.Second)
	}
	for _, u := range sn.Users() {
		st.Users.Total++
		switch u.Status {
		case tailnet.UserWaiting:
			st.Users.Waiting++
		case tailnet.UserSuspended:
			st.Users.Suspended++
		}
	}
	logins, err := s.Auth.Logins(r.Context())
	if err != nil {
		return nil, err
	}
	st.Nodes.Registered = len(logins)
	if s.Cluster != nil {
		c, err := s.cluster(r, nil)
		if err != nil {
			return nil, err
		}
		st.Servers = list(c.Servers)
	}
	st.warn()
	return st, nil
}

// Status is how everything is.
func (c *Client) Status(ctx context.Context) (*Status, error) {
	out := new(Status)
	if err := c.do(ctx, http.MethodGet, c.path("status"), nil, out); err != nil {
		return nil, err
	}
	return out, nil
}

func statusNodes(sn *state.Snapshot, now time.Time) StatusNodes {
	out := StatusNodes{Waiting: []*StatusNode{}, Expiring: []*StatusNode{}, Expired: []*StatusNode{}}
	for _, n := range sn.Nodes() {
		out.Total++
		if n.Online {
			out.Online++
		}
		j := &StatusNode{ID: ID(n.ID), Name: n.Name, Expiry: timestamp(n.Expiry)}
		if u := sn.User(n.Owner()); u != nil {
			j.User = u.Name
		}
		switch status := nodeStatus(sn, n); {
		case status == statusWaits || status == statusUserWaits:
			out.Waiting = append(out.Waiting, j)
		case status == statusExpired:
			out.Expired = append(out.Expired, j)
		case !n.Expiry.IsZero() && n.Expiry.Sub(now) < expiringSoon:
			out.Expiring = append(out.Expiring, j)
		}
	}
	slices.SortStableFunc(out.Expiring, func(a, b *StatusNode) int { return a.Expiry.Compare(*b.Expiry) })
	return out
}

func statusRoutes(sn *state.Snapshot) StatusRoutes {
	out := StatusRoutes{Disabled: []*StatusRoute{}, Down: []*StatusRoute{}}
	disabled, enabled := map[string][]string{}, map[netip.Prefix][]string{}
	up := map[netip.Prefix]bool{}
	for _, n := range sn.Nodes() {
		if !n.Active() {
			continue
		}
		for _, p := range n.AdvertisedRoutes() {
			if !slices.Contains(n.ApprovedRoutes, p) {
				name := p.String()
				if tailnet.IsExitRoute(p) {
					name = "exit node"
				}
				if !slices.Contains(disabled[name], n.Name) {
					disabled[name] = append(disabled[name], n.Name)
				}
			}
		}
		exit := false
		for _, p := range n.ActiveRoutes() {
			if tailnet.IsExitRoute(p) {
				exit = true
				continue
			}
			enabled[p] = append(enabled[p], n.Name)
			up[p] = up[p] || n.Online && !n.Failing
		}
		if exit && n.Online {
			out.Exits++
		}
	}
	for p, nodes := range enabled {
		if up[p] {
			out.Carried++
		} else {
			out.Down = append(out.Down, &StatusRoute{Prefix: p.String(), Nodes: nodes})
		}
	}
	for p, nodes := range disabled {
		out.Disabled = append(out.Disabled, &StatusRoute{Prefix: p, Nodes: nodes})
	}
	for _, rs := range [][]*StatusRoute{out.Down, out.Disabled} {
		slices.SortFunc(rs, func(a, b *StatusRoute) int { return strings.Compare(a.Prefix, b.Prefix) })
	}
	return out
}

func statusRelays(sn *state.Snapshot) []*StatusRelay {
	out := []*StatusRelay{}
	m := relayMap(sn)
	if m == nil {
		return out
	}
	home := map[int]int{}
	for _, n := range sn.Nodes() {
		if n.Online {
			home[n.HomeDERP]++
		}
	}
	for _, id := range m.RegionIDs() {
		if r := m.Regions[id]; r != nil {
			out = append(out, &StatusRelay{Region: id, Code: r.RegionCode, Name: r.RegionName, Relays: len(r.Nodes), Nodes: home[id]})
		}
	}
	return out
}

func (s *server) statusPolicy(sn *state.Snapshot) StatusPolicy {
	if s.PolicyFile != "" {
		return StatusPolicy{Source: FromFile, InForce: true}
	}
	t := s.policyJSON(sn, sn.Text)
	out := StatusPolicy{Source: FromDatabase, Version: t.Version, UpdatedAt: t.UpdatedAt, Author: t.Author, InForce: t.InForce}
	if t.Text == "" {
		out.Source, out.InForce = "none", true
	}
	return out
}

// warn adds what follows from the rest.
func (st *Status) warn() {
	add := func(remedy, text string, args ...any) {
		st.Warnings = append(st.Warnings, StatusWarning{fmt.Sprintf(text, args...), remedy})
	}
	for _, c := range st.Checks {
		if c.Error != "" {
			add("skein doctor", "the server is not well: %s: %s", c.Name, c.Error)
		}
	}
	if len(st.Relays) == 0 {
		add("derp.server.enabled: true, or derp.urls, in the configuration", "there is no relay at all, and clients do not come up without one")
	}
	if !st.Policy.InForce {
		add("skein policy get, skein policy set", "the newest policy, version %s, cannot be used; an older one is in force", st.Policy.Version)
	}
	if n := st.Nodes.Registered; n > 0 {
		add("skein nodes register", "%s to be let in", counted(n, "machine waits", "machines wait"))
	}
	if n := len(st.Nodes.Waiting); n > 0 {
		add("skein nodes list --waiting; skein nodes approve NODE", "%s for approval", counted(n, "node waits", "nodes wait"))
	}
	if n := st.Users.Waiting; n > 0 {
		add("skein namespaces approve NAME", "%s for approval", counted(n, "user waits", "users wait"))
	}
	if n := len(st.Nodes.Expired); n > 0 {
		add("tailscale up on the machine, or skein nodes expire NODE --never", "%s ended", counted(n, "node's key has", "nodes' keys have"))
	}
	if n := len(st.Nodes.Expiring); n > 0 {
		add("tailscale up --force-reauth on the machine", "%s within a week", counted(n, "node's key ends", "nodes' keys end"))
	}
	for _, r := range st.Routes.Down {
		add("", "no node carries %s: %s away or not answering", r.Prefix, isAre(r.Nodes))
	}
	if n := len(st.Routes.Disabled); n > 0 {
		add("skein routes list; skein routes enable -i NODE -r PREFIX", "%s offered and not enabled", counted(n, "route is", "routes are"))
	}
	for _, c := range st.Servers {
		switch {
		case !c.Alive:
			add("", "the server %s is gone", c.Name)
		case math.Abs(c.ClockAhead) > clockTolerance.Seconds():
			add("set its clock, by NTP", "the clock of the server %s is off by %.0f s", c.Name, c.ClockAhead)
		case c.Relay == "unreached":
			add("let the servers reach each other at listen_addr", "the relay of the server %s is not reached", c.Name)
		}
	}
}

func counted(n int, one, more string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, more)
}

func isAre(names []string) string {
	if len(names) == 1 {
		return names[0] + " is"
	}
	return strings.Join(names, ", ") + " are"
}
