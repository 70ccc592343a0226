package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	"tailscale.com/tailcfg"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// What happens in the tailnet, as it happens.
//
//	commit ──► audit log ──┐
//	                       ├──► Events: one reader ──► ring ──┬──► stream (its own place in the ring, no queue of its own)
//	snapshot after         │    for all streams               └──► stream …
//	snapshot ──────────────┘
//
// What was committed comes from the audit log, whoever did it and at whichever server, and has an id: a stream that begins with one
// is told everything behind it first. What is not committed (who is online, who carries a route, what a node offers) is the
// difference of two snapshots, and is told to those only who listen.
//
// A stream that is slower than the ring goes on from the audit log, and is told that it may have missed what has no id.

// Event is something that happened.
type Event struct {
	ID      string      `json:"id"` // for EventFilter.Since: the audit log's; empty for what is told while it happens only
	Time    *time.Time  `json:"time"`
	Type    string      `json:"type"` // KIND.WHAT, such as node.online
	Target  AuditTarget `json:"target"`
	Actor   string      `json:"actor"` // who did it; empty for what nobody did
	Message string      `json:"message"`
	// Before and After hold what is different, or null.
	Before json.RawMessage `json:"before"`
	After  json.RawMessage `json:"after"`
}

// Types of events that are about the stream itself. They are sent whatever was asked for; only the first has an id.
const (
	EventBegan  = "stream.began"  // what happened before has been told; what follows happens now
	EventMissed = "stream.missed" // something may have been left out
	EventEnded  = "stream.ended"  // this stream ends now; the message says why
)

// EventKinds are the kinds of events, which are the parts of types before the dot, sorted, with the scope that each asks for.
var EventKinds = map[string]string{
	"node":               auth.Read(auth.ScopeDevices),
	"routes":             auth.Read(auth.ScopeRoutes),
	"relays":             auth.Read(auth.ScopeDevices),
	state.TargetUser:     auth.Read(auth.ScopeUsers),
	state.TargetPolicy:   auth.Read(auth.ScopePolicy),
	state.TargetSettings: auth.Read(auth.ScopeFeatures),
	state.TargetService:  auth.Read(auth.ScopeServices),
	"dns":                auth.Read(auth.ScopeDNS),
	state.TargetAuthKey:  auth.Read(auth.ScopeAuthKeys),
	"api_key":            auth.Read(auth.ScopeAPIKeys),
	"oauth_client":       auth.Read(auth.ScopeOAuthKeys),
	"federated_identity": auth.Read(auth.ScopeFederated),
	"webhook":            auth.Read(auth.ScopeWebhooks),
	otherEvents:          auth.Read(auth.ScopeLogs),
}

// otherEvents stands for all kinds that the audit log has beside those.
const otherEvents = "other"

// eventKind is the kind in EventKinds that typ belongs to.
func eventKind(typ string) string {
	kind, _, _ := strings.Cut(typ, ".")
	if _, ok := EventKinds[kind]; !ok {
		return otherEvents
	}
	return kind
}

// EventFilter chooses events; zero fields choose all that the caller may know of.
type EventFilter struct {
	Types []string `query:"types"` // kinds, such as node, or types, such as node.online; may be joined by commas
	Node  Ref      `query:"node"`  // only what is about this node
	Since string   `query:"since"` // id of an event or entry of the audit log: what came behind it is told first; a time does as well
	Once  bool     `query:"once"`  // end when what happened until now has been told
}

// eventChoice is a filter as the server has read it.
type eventChoice struct {
	types []string
	node  string // id; empty: all
}

// wants reports whether e was asked for.
func (c eventChoice) wants(e *Event) bool {
	if c.node != "" && (e.Target.Kind != state.TargetNode || e.Target.ID != c.node) {
		return false
	}
	return len(c.types) == 0 || slices.ContainsFunc(c.types, func(t string) bool { return t == e.Type || t == eventKind(e.Type) })
}

// parseTypes reads kinds and types, separated by commas.
func parseTypes(values []string) (out []string, err error) {
	for _, v := range values {
		for _, t := range strings.Split(v, ",") {
			t = strings.TrimSpace(t)
			if t == "" {
				continue
			}
			if kind := eventKind(t); kind == otherEvents && t != otherEvents {
				kinds := make([]string, 0, len(EventKinds))
				for k := range EventKinds {
					kinds = append(kinds, k)
				}
				slices.Sort(kinds)
				return nil, tailnet.Errorf(tailnet.Invalid, "%q is not a kind of events: use one of %s, or a type such as node.online", clip(t), strings.Join(kinds, ", "))
			}
			out = append(out, t)
		}
	}
	return out, nil
}

// eventsOfEntry are what an entry of the audit log tells: mostly one event, several if several things about a node were changed at
// once, none for what snapshots tell better.
func eventsOfEntry(e *tailnet.AuditEntry) []*Event {
	j := AuditJSON(e)
	event := func(typ, message string, args ...any) *Event {
		return &Event{ID: j.ID, Time: j.Time, Type: typ, Target: j.Target, Actor: j.Actor.Name, Message: fmt.Sprintf(message, args...), Before: j.Before, After: j.After}
	}
	kind, verb, _ := strings.Cut(e.Action, ".")
	switch e.Action {
	case "node.create":
		return []*Event{event("node.registered", "node %s was registered", e.Target)}
	case "node.update":
		return nodeEvents(e, event)
	case "node.key_expired": // told by snapshots, at once
		return nil
	case "node.key_expiring":
		return []*Event{event("node.expiring", "the key of node %s ends in a day", e.Target)}
	case "node.ip_forwarding_off":
		return []*Event{event("node.misconfigured", "node %s offers routes, but IP forwarding is off there", e.Target)}
	case "node.ip_forwarding_on":
		return []*Event{event("node.configured", "node %s forwards packets again", e.Target)}
	case "user.update":
		return []*Event{userEvent(e, event)}
	case "settings.update":
		return settingsEvents(e, event)
	case "policy.reload":
		return []*Event{event("policy.updated", "the policy was changed in its file")}
	case "policy.update":
		return []*Event{event("policy.updated", "the policy was changed")}
	}
	past := verb
	switch verb {
	case "create", "update", "delete", "revoke", "rotate":
		past = verb + "d"
	}
	return []*Event{event(kind+"."+past, "%s %s was %s", strings.ReplaceAll(kind, "_", " "), e.Target, strings.ReplaceAll(past, "_", " "))}
}

// fieldsOf are the keys of an entry's before or after.
func fieldsOf(raw json.RawMessage) map[string]json.RawMessage {
	m := map[string]json.RawMessage{}
	_ = json.Unmarshal(raw, &m) // null, or what another version wrote, has none
	return m
}

func nodeEvents(e *tailnet.AuditEntry, event func(typ, message string, args ...any) *Event) (out []*Event) {
	before, after := fieldsOf(e.Before), fieldsOf(e.After)
	has := func(k string) bool { _, ok := after[k]; return ok }
	if has("name") {
		var old string
		_ = json.Unmarshal(before["name"], &old)
		out = append(out, event("node.renamed", "node %s is called %s now", old, e.Target))
	}
	if has("approved") {
		if string(after["approved"]) == "true" {
			out = append(out, event("node.approved", "node %s was approved", e.Target))
		} else {
			out = append(out, event("node.unapproved", "the approval of node %s was taken back", e.Target))
		}
	}
	if has("routes") {
		var was, is []string
		_ = json.Unmarshal(before["routes"], &was)
		_ = json.Unmarshal(after["routes"], &is)
		if more := without(is, was); len(more) > 0 {
			out = append(out, event("routes.enabled", "node %s may carry %s", e.Target, strings.Join(more, ", ")))
		}
		if less := without(was, is); len(less) > 0 {
			out = append(out, event("routes.disabled", "node %s may not carry %s any more", e.Target, strings.Join(less, ", ")))
		}
	}
	for _, f := range []struct{ field, typ, message string }{
		{"tags", "node.tagged", "the tags of node %s were changed"}, {"user", "node.moved", "node %s belongs to somebody else"},
		{"nodeKey", "node.key_renewed", "node %s has a new key"}, {"expires", "node.expiry_changed", "the key of node %s ends at another time"},
		{"neverExpires", "node.expiry_changed", "the key of node %s ends at another time"}, {"addresses", "node.readdressed", "node %s has other addresses"},
	} {
		last := len(out) > 0 && out[len(out)-1].Type == f.typ
		if has(f.field) && !last {
			out = append(out, event(f.typ, f.message, e.Target))
		}
	}
	if len(out) == 0 {
		out = append(out, event("node.updated", "node %s was changed", e.Target))
	}
	return out
}

// without are those of a that are not in b.
func without(a, b []string) (out []string) {
	for _, s := range a {
		if !slices.Contains(b, s) {
			out = append(out, s)
		}
	}
	return out
}

func userEvent(e *tailnet.AuditEntry, event func(typ, message string, args ...any) *Event) *Event {
	var before, after struct{ Name, Role, Status string }
	_ = json.Unmarshal(e.Before, &before)
	_ = json.Unmarshal(e.After, &after)
	switch {
	case after.Status == string(tailnet.UserSuspended):
		return event("user.suspended", "user %s was suspended", e.Target)
	case after.Status == "active" && before.Status == string(tailnet.UserSuspended):
		return event("user.restored", "user %s may take part again", e.Target)
	case after.Status == "active" && before.Status == string(tailnet.UserWaiting):
		return event("user.approved", "user %s was approved", e.Target)
	case after.Role != "":
		return event("user.role_changed", "user %s is %s now", e.Target, after.Role)
	case after.Name != "":
		return event("user.renamed", "user %s is called %s now", before.Name, after.Name)
	}
	return event("user.updated", "user %s was changed", e.Target)
}

func settingsEvents(e *tailnet.AuditEntry, event func(typ, message string, args ...any) *Event) (out []*Event) {
	before, after := fieldsOf(e.Before), fieldsOf(e.After)
	_, dns1 := before["dns"]
	_, dns2 := after["dns"]
	names := len(before)
	for k := range after {
		if _, ok := before[k]; !ok {
			names++
		}
	}
	if dns1 || dns2 {
		out = append(out, event("dns.updated", "the DNS settings were changed"))
		names--
	}
	if names > 0 {
		out = append(out, event("settings.updated", "the settings were changed"))
	}
	return out
}

// eventsBetween are what happened from one snapshot to the next and is not in the audit log.
func eventsBetween(from, to *state.Snapshot, now time.Time) (out []*Event) {
	target := AuditTarget{}
	add := func(typ string, before, after any, message string, args ...any) {
		out = append(out, &Event{Time: timestamp(now), Type: typ, Target: target, Message: fmt.Sprintf(message, args...), Before: anyJSON(before), After: anyJSON(after)})
	}
	for _, n := range to.Nodes() {
		old := from.Node(n.ID)
		if old == n {
			continue
		}
		var was state.Node // of a new node: nothing
		if old != nil {
			was = *old
		}
		target = AuditTarget{Kind: state.TargetNode, ID: n.ID.String(), Name: n.Name}
		switch {
		case n.Online && !was.Online:
			add("node.online", nil, nil, "node %s is online", n.Name)
		case !n.Online && was.Online:
			add("node.offline", nil, nil, "node %s is offline", n.Name)
		}
		if old != nil && n.Ended && !was.Ended {
			add("node.expired", nil, nil, "the key of node %s has ended", n.Name)
		}
		var offered []netip.Prefix
		if old != nil {
			offered = old.AdvertisedRoutes()
		}
		a, b := routeTexts(offered), routeTexts(n.AdvertisedRoutes())
		if !slices.Equal(a, b) {
			add("routes.advertised", a, b, "node %s offers %s", n.Name, orNothing(b))
		}
		if a, b := routeTexts(was.Primary), routeTexts(n.Primary); !slices.Equal(a, b) {
			add("routes.primary", a, b, "node %s carries %s", n.Name, orNothing(b))
		}
	}
	target = AuditTarget{Kind: "relays", Name: "relays"}
	if from.DERP != to.DERP && !reflect.DeepEqual(relayMap(from), relayMap(to)) {
		add("relays.updated", nil, nil, "the relay map was changed")
	}
	target = AuditTarget{Kind: "dns", Name: "dns"}
	if from.DNS != to.DNS && !reflect.DeepEqual(from.DNS, to.DNS) && from.Tailnet.Settings.DNS == to.Tailnet.Settings.DNS {
		add("dns.updated", nil, nil, "the DNS settings were changed in the configuration or in a file")
	}
	return out
}

// relayMap is the relay map of sn; nil if there is none.
func relayMap(sn *state.Snapshot) *tailcfg.DERPMap {
	if sn.DERP == nil {
		return nil
	}
	return sn.DERP.Current
}

func routeTexts(ps []netip.Prefix) []string {
	out := []string{}
	for _, p := range tailnet.SortPrefixes(slices.Clone(ps)) {
		out = append(out, p.String())
	}
	return out
}

func orNothing(ss []string) string {
	if len(ss) == 0 {
		return "no routes"
	}
	return strings.Join(ss, ", ")
}

func anyJSON(v any) json.RawMessage {
	b, err := json.Marshal(v)
	if err != nil { // a mistake of ours, which shall not end anybody's stream
		return json.RawMessage("null")
	}
	return b
}

func (s *server) eventOperations() []operation {
	return []operation{
		get("/events", auth.ScopeNone, "what happens, as it happens, of which the key may read: see [below](#events)", s.events).streaming(reflect.TypeFor[Event]()),
	}
}

// events begins a stream. What it tells is what the caller may read otherwise: each kind asks for a scope of its own.
func (s *server) events(r *http.Request, f *EventFilter) (*eventStream, error) {
	if s.Events == nil {
		return nil, tailnet.Errorf(tailnet.Unavailable, "this server tells no events")
	}
	types, err := parseTypes(f.Types)
	if err != nil {
		return nil, err
	}
	st := &eventStream{s: s, choice: eventChoice{types: types}, once: f.Once}
	if f.Node != "" {
		n, err := findNode(s.State.Snapshot(), f.Node)
		if err != nil {
			return nil, err
		}
		st.choice.node = n.ID.String()
	}
	if err := st.allow(auth.PrincipalOf(r.Context())); err != nil {
		return nil, err
	}
	since := r.Header.Get("Last-Event-ID") // of a stream that broke off; it knows more than the URL, which stays the same
	if since == "" {
		since = f.Since
	}
	if since != "" {
		if st.since, st.sinceTime, err = parseSince(since); err != nil {
			return nil, err
		}
	}
	if err := s.Events.join(r.Context()); err != nil {
		return nil, err
	}
	return st, nil
}

// parseSince reads a place in the audit log, or a time.
func parseSince(text string) (*tailnet.AuditPos, time.Time, error) {
	if pos, err := tailnet.ParseAuditPos(text); err == nil {
		return &pos, time.Time{}, nil
	}
	t, err := ParseTime(text)
	if err != nil {
		return nil, t, tailnet.Errorf(tailnet.Invalid, "%q is neither the id of an event, such as 4711.0, nor a time such as 2026-01-31T12:00:00Z", clip(text))
	}
	return new(tailnet.AuditPos), t, nil
}

// Events hands what happens to f until ctx ends, f fails, or the stream breaks off, which is an Unavailable error; nil if f.Once was
// given and everything was told. EventBegan and EventMissed are handed on; EventEnded becomes an error with the server's
// code and sentence.
func (c *Client) Events(ctx context.Context, f EventFilter, do func(*Event) error) error {
	return c.stream(ctx, c.path("events").query(values(f)), f.Once, do)
}
