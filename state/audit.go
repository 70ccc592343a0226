package state

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"time"

	"github.com/skein-vpn/skein/policy"
	"github.com/skein-vpn/skein/tailnet"
)

// Every function given to Update leaves its entries in the audit log, in the commit that makes its changes: one for each row that is
// different in what administrators care about, with what it was before and is now. Nobody has to think of it, and nothing is
// written for what running clients report all the time (endpoints, disco key, home DERP, Hostinfo, presence).

// Actor is who makes a change, for the audit log.
type Actor struct {
	Kind   string // such as "socket", "api-key", "user", "client", "server"
	Name   string // for people to read
	ID     string // of the credential, user or machine; may be empty
	Origin string // "cli", "api", "web", "client", "policy file" or "server"
	Remote string // address; may be empty
}

// serverActor is whose changes are those that nobody asked for.
var serverActor = Actor{Kind: "server", Name: "server", Origin: "server"}

type actorKey struct{}

// WithActor is ctx with who makes the changes that Update is called for with it.
func WithActor(ctx context.Context, a Actor) context.Context {
	return context.WithValue(ctx, actorKey{}, a)
}

// ActorOf is who makes changes with ctx: the server itself, if nobody is named.
func ActorOf(ctx context.Context) Actor {
	if a, ok := ctx.Value(actorKey{}).(Actor); ok {
		return a
	}
	return serverActor
}

// The kinds of things that entries of the audit log are about.
const (
	TargetNode     = "node"
	TargetUser     = "user"
	TargetAuthKey  = "auth_key"
	TargetPolicy   = "policy"
	TargetSettings = "settings"
	TargetService  = "service"
)

// targetOf is what a credential is called in the audit log.
func targetOf(k tailnet.CredentialKind) string {
	switch k {
	case tailnet.APIKey:
		return "api_key"
	case tailnet.OAuthClient:
		return "oauth_client"
	}
	return "federated_identity"
}

// touch is a row that a function has put or deleted, and what it was before.
type touch struct {
	kind   touchKind
	id     int64
	name   string // instead of id
	before any    // a pointer, which may be nil
}

type touchKind uint8

const (
	touchNode touchKind = iota
	touchUser
	touchKey
	touchCredential
	touchService
)

// touched notes that a row is put or deleted.
func (tx *Tx) touched(kind touchKind, id int64, name string, before any) {
	tx.touches = append(tx.touches, touch{kind, id, name, before})
}

// Audit adds an entry of its own to the audit log, for what is no change of a row. Who acts and when are filled in.
func (tx *Tx) Audit(e tailnet.AuditEntry) { tx.own = append(tx.own, &e) }

// record writes down what the function of o has changed since before.
func (tx *Tx) record(o *op, before *Tx) {
	if len(tx.touches)+len(tx.own) == 0 && tx.tailnet.Settings == before.tailnet.Settings && tx.text == before.text && tx.rules == before.rules {
		return
	}
	actor := ActorOf(o.ctx)
	add := func(e *tailnet.AuditEntry) {
		e.At, e.ActorKind, e.Actor, e.ActorID, e.Origin, e.Remote = tx.now, actor.Kind, actor.Name, actor.ID, actor.Origin, actor.Remote
		e.Why = cmp.Or(e.Why, o.why)
		tx.audit = append(tx.audit, e)
	}
	type row struct {
		kind touchKind
		id   int64
		name string
	}
	var seen map[row]bool // only the first touch knows what was before
	if len(tx.touches) > 1 {
		seen = make(map[row]bool, len(tx.touches))
	}
	for _, t := range tx.touches {
		r := row{t.kind, t.id, t.name}
		if seen[r] {
			continue
		}
		if seen != nil {
			seen[r] = true
		}
		if e := tx.difference(t); e != nil {
			add(e)
		}
	}
	if a, b := before.tailnet.Settings, tx.tailnet.Settings; a != b {
		if e := entry(TargetSettings, "", "settings", fieldsOf(a), fieldsOf(b)); e != nil {
			add(e)
		}
	}
	switch {
	case tx.text != before.text:
		var a, b map[string]any
		if old := before.PolicyText(); old != nil {
			a = policyFields(old)
		}
		b = policyFields(tx.text)
		e := entry(TargetPolicy, strconv.FormatInt(int64(tx.text.ID), 10), "policy", a, b)
		e.Action = TargetPolicy + ".update"
		add(e)
	case tx.rules != before.rules: // of a file, which is not stored
		a, b := fileFields(before.Policy().Policy()), fileFields(tx.rules.Policy())
		if a["sha256"] != b["sha256"] {
			add(&tailnet.AuditEntry{Action: TargetPolicy + ".reload", TargetKind: TargetPolicy, Target: "policy", Before: rawJSON(a), After: rawJSON(b)})
		}
	}
	for _, e := range tx.own {
		add(e)
	}
}

// difference is the entry for one row; nil if nothing is different that is written down.
func (tx *Tx) difference(t touch) *tailnet.AuditEntry {
	switch t.kind {
	case touchNode:
		a, b := t.before.(*tailnet.Node), tx.Node(tailnet.NodeID(t.id))
		if a == b || a != nil && b != nil && sameForAudit(a, b) {
			return nil
		}
		return entry(TargetNode, strconv.FormatInt(t.id, 10), name(a, b, func(n *tailnet.Node) string { return n.Name }), nodeFields(a), nodeFields(b))
	case touchUser:
		a, b := t.before.(*tailnet.User), tx.User(tailnet.UserID(t.id))
		return entry(TargetUser, strconv.FormatInt(t.id, 10), name(a, b, func(u *tailnet.User) string { return u.Name }), userFields(a), userFields(b))
	case touchKey:
		a, b := t.before.(*tailnet.PreAuthKey), tx.PreAuthKey(tailnet.PreAuthKeyID(t.id))
		return entry(TargetAuthKey, strconv.FormatInt(t.id, 10), name(a, b, func(k *tailnet.PreAuthKey) string { return k.Prefix }), keyFields(a), keyFields(b))
	}
	if t.kind == touchService {
		a, b := t.before.(*tailnet.Service), tx.Service(t.name)
		return entry(TargetService, t.name, t.name, serviceFields(a), serviceFields(b))
	}
	a, b := t.before.(*tailnet.Credential), tx.Credential(t.name)
	kind := ""
	for _, c := range []*tailnet.Credential{a, b} {
		if c != nil {
			kind = targetOf(c.Kind)
		}
	}
	return entry(kind, t.name, name(a, b, func(c *tailnet.Credential) string { return cmp.Or(c.Description, c.ID) }), credentialFields(a), credentialFields(b))
}

// name is what the row is called, afterwards if it still is there.
func name[T any](a, b *T, of func(*T) string) string {
	switch {
	case b != nil:
		return of(b)
	case a != nil:
		return of(a)
	}
	return ""
}

// entry is the entry for something with the fields a before and b now, nil standing for nothing; nil if both say the same.
func entry(kind, id, name string, a, b map[string]any) *tailnet.AuditEntry {
	verb := "update"
	switch {
	case a == nil && b == nil:
		return nil
	case a == nil:
		verb = "create"
	case b == nil:
		verb = "delete"
	default:
		for k := range a {
			if v, ok := b[k]; ok && reflect.DeepEqual(a[k], v) {
				delete(a, k)
				delete(b, k)
			}
		}
		if len(a)+len(b) == 0 {
			return nil
		}
	}
	return &tailnet.AuditEntry{Action: kind + "." + verb, TargetKind: kind, TargetID: id, Target: name, Before: rawJSON(a), After: rawJSON(b)}
}

func rawJSON(m map[string]any) json.RawMessage {
	if m == nil {
		return nil
	}
	b, err := json.Marshal(m)
	if err != nil { // a mistake of ours, which shall not keep anybody from a change
		b, _ = json.Marshal(map[string]string{"error": err.Error()})
	}
	return b
}

// maxListed is how many elements of a list the audit log tells.
const maxListed = 100

func listed[T fmt.Stringer](xs []T) []string {
	out := make([]string, 0, min(len(xs), maxListed+1))
	for i, x := range xs {
		if i == maxListed {
			return append(out, fmt.Sprintf("and %d more", len(xs)-i))
		}
		out = append(out, x.String())
	}
	return out
}

// moment is t for the audit log: null if there is none.
func moment(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return t.UTC().Format(time.RFC3339)
}

// sameForAudit reports whether nodeFields says the same of both. It is asked about every request of a client.
func sameForAudit(a, b *tailnet.Node) bool {
	return a.User == b.User && a.Name == b.Name && a.NodeKey == b.NodeKey && a.MachineKey == b.MachineKey && a.IPv4 == b.IPv4 && a.IPv6 == b.IPv6 &&
		a.Ephemeral == b.Ephemeral && a.Authorized == b.Authorized && a.NeverExpires == b.NeverExpires && a.Expiry.Equal(b.Expiry) &&
		sameList(a.Tags, b.Tags) && sameList(a.ApprovedRoutes, b.ApprovedRoutes) && sameList(a.Attributes, b.Attributes) &&
		(len(a.Hostings)+len(b.Hostings) == 0 || slices.Equal(decided(a), decided(b)))
}

// decided are the services that were approved or refused for n, for people.
func decided(n *tailnet.Node) []string {
	out := []string{}
	for _, h := range n.Hostings {
		if h.Approval != "" {
			out = append(out, h.Service+" "+string(h.Approval))
		}
	}
	return out
}

func sameList[T comparable](a, b []T) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

func nodeFields(n *tailnet.Node) map[string]any {
	if n == nil {
		return nil
	}
	return map[string]any{
		"name": n.Name, "user": int64(n.User), "tags": append([]string{}, n.Tags...), "nodeKey": n.NodeKey.String(), "machineKey": n.MachineKey.String(),
		"addresses": listed[netip.Addr](n.Addrs()), "ephemeral": n.Ephemeral, "approved": n.Authorized, "expires": moment(n.Expiry),
		"neverExpires": n.NeverExpires, "routes": listed(n.ApprovedRoutes), "services": decided(n), "attributes": attributes(n),
	}
}

// attributes are those that n was given, for people.
func attributes(n *tailnet.Node) []string {
	out := []string{}
	for _, a := range n.Attributes {
		text := a.Name + "=" + a.Value
		if !a.Expires.IsZero() {
			text += " until " + a.Expires.UTC().Format(time.RFC3339)
		}
		out = append(out, text)
	}
	return out
}

func serviceFields(s *tailnet.Service) map[string]any {
	if s == nil {
		return nil
	}
	return map[string]any{
		"addresses": listed(s.Addrs()), "displayName": s.DisplayName, "comment": s.Comment, "ports": append([]string{}, s.Ports...),
		"tags": append([]string{}, s.Tags...), "annotations": maps.Clone(s.Annotations),
	}
}

func userFields(u *tailnet.User) map[string]any {
	if u == nil {
		return nil
	}
	role, status := string(u.Role), string(u.Status)
	return map[string]any{
		"name": u.Name, "displayName": u.DisplayName, "email": u.Email, "role": cmp.Or(role, "member"), "status": cmp.Or(status, "active"),
		"provider": u.Provider, "providerId": u.ProviderID, "groups": append([]string{}, u.Groups...),
	}
}

func keyFields(k *tailnet.PreAuthKey) map[string]any {
	if k == nil {
		return nil
	}
	return map[string]any{
		"prefix": k.Prefix, "user": int64(k.User), "tags": append([]string{}, k.Tags...), "reusable": k.Reusable, "ephemeral": k.Ephemeral,
		"preapproved": k.Preapproved, "used": k.Used, "expires": moment(k.Expires), "revoked": k.Revoked,
	}
}

func credentialFields(c *tailnet.Credential) map[string]any {
	if c == nil {
		return nil
	}
	m := map[string]any{
		"user": int64(c.User), "scopes": append([]string{}, c.Scopes...), "tags": append([]string{}, c.Tags...), "description": c.Description,
		"expires": moment(c.Expires), "revoked": moment(c.Revoked),
	}
	if c.Kind == tailnet.FederatedIdentity {
		m["issuer"], m["subject"], m["audience"], m["claims"] = c.Issuer, c.Subject, c.Audience, c.Claims
	}
	return m
}

func policyFields(v *tailnet.PolicyVersion) map[string]any {
	return map[string]any{"version": int64(v.ID), "author": v.Author, "comment": v.Comment, "bytes": len(v.Text)}
}

// fileFields says which policy a file holds.
func fileFields(p *policy.Policy) map[string]any {
	if p == nil {
		return map[string]any{"sha256": "", "bytes": 0}
	}
	text := p.Text()
	return map[string]any{"sha256": fmt.Sprintf("%x", sha256.Sum256(text)), "bytes": len(text)}
}

// fieldsOf is a plain value as its JSON has it.
func fieldsOf(v any) map[string]any {
	b, err := json.Marshal(v)
	if err != nil {
		return map[string]any{"error": err.Error()}
	}
	m := map[string]any{}
	_ = json.Unmarshal(b, &m) // what Marshal has made can be read
	return m
}
