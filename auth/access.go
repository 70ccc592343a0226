package auth

import (
	"context"
	"maps"
	"slices"
	"strings"

	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// Who may act. Every operation names one scope; a Principal is allowed it if both its role and what it acts with hold it.
//
//	unix socket ─────────────────────────────┐
//	API key (of a user, or of the server) ───┤
//	access token (of an OAuth client) ───────┼──► Principal ──► Allow(scope) ──► the operation
//	web session of a user ───────────────────┘     = scopes of its user's role ∩ scopes of the key, session or token
//
// Scopes are named as in Tailscale's API. A scope lets its bearer write and read; with ":read" behind it, only read. "all" and
// "all:read" stand for all of them. A role is nothing but a list of scopes (roleScopes); docs/access.md holds the same table.

// Scopes that operations ask for. Read makes the reading half of one.
const (
	ScopeAll       = "all"
	ScopeDevices   = "devices:core" // nodes: approve, rename, tag, expire, move, delete
	ScopeRoutes    = "devices:routes"
	ScopePosture   = "devices:posture_attributes"
	ScopeAuthKeys  = "auth_keys"         // keys for nodes
	ScopeAPIKeys   = "api_access_tokens" // API keys
	ScopeOAuthKeys = "oauth_keys"        // OAuth clients
	ScopeFederated = "federated_keys"    // federated identities
	ScopeUsers     = "users"
	ScopePolicy    = "policy_file"
	ScopeDNS       = "dns"
	ScopeFeatures  = "feature_settings" // settings of the tailnet
	ScopeServices  = "services"
	ScopeWebhooks  = "webhooks"
	ScopeLogStream = "log_streaming"
	ScopeLogs      = "logs:configuration" // the audit log; can only be read
	ScopeFlowLogs  = "logs:network"       // can only be read
	ScopeAccount   = "account_settings"
	// ScopeNone is asked for by operations that anybody may call who has a credential at all.
	ScopeNone = ""
)

// scopes are all but "all".
var scopes = []string{
	ScopeDevices, ScopeRoutes, ScopePosture, ScopeAuthKeys, ScopeAPIKeys, ScopeOAuthKeys, ScopeFederated, ScopeUsers, ScopePolicy,
	ScopeDNS, ScopeFeatures, ScopeServices, ScopeWebhooks, ScopeLogStream, ScopeLogs, ScopeFlowLogs, ScopeAccount,
}

const readSuffix = ":read"

// Read is the scope that lets its bearer read what scope lets it write.
func Read(scope string) string { return scope + readSuffix }

// Scopes are all scopes that exist, for people to choose from.
func Scopes() []string {
	out := []string{ScopeAll, Read(ScopeAll)}
	for _, s := range scopes {
		out = append(out, s, Read(s))
	}
	return out
}

// roleScopes is the one table of roles. docs/access.md says the same.
var roleScopes = map[tailnet.Role][]string{
	tailnet.RoleOwner: {ScopeAll},
	tailnet.RoleAdmin: {ScopeAll},
	tailnet.RoleNetworkAdmin: {
		Read(ScopeAll), ScopeRoutes, ScopeAuthKeys, ScopeAPIKeys, ScopePolicy, ScopeDNS, ScopeServices,
	},
	tailnet.RoleITAdmin: {
		Read(ScopeAll), ScopeDevices, ScopeRoutes, ScopePosture, ScopeAuthKeys, ScopeAPIKeys, ScopeUsers, ScopeFeatures, ScopeWebhooks, ScopeLogStream,
	},
	tailnet.RoleBillingAdmin: {ScopeAccount, Read(ScopeUsers)},
	tailnet.RoleAuditor:      {Read(ScopeAll), ScopeAPIKeys},
	tailnet.RoleMember:       {},
}

// RoleScopes are the scopes of a role; none for a role that does not exist.
func RoleScopes(r tailnet.Role) []string { return slices.Clone(roleScopes[r]) }

// Roles are all roles, sorted by name; the member's is empty.
func Roles() []tailnet.Role { return slices.Sorted(maps.Keys(roleScopes)) }

// CheckScopes returns the scopes sorted and without repetitions. The error names one that does not exist.
func CheckScopes(ss []string) ([]string, error) {
	var out []string
	known := Scopes()
	for _, s := range ss {
		s = strings.TrimSpace(s)
		if !slices.Contains(known, s) {
			if len(s) > 80 {
				s = s[:80] + "…"
			}
			return nil, tailnet.Errorf(tailnet.Invalid, "%q is not a scope: use %s, each also with \"%s\" behind it", s,
				strings.Join(append([]string{ScopeAll}, scopes...), ", "), readSuffix)
		}
		out = append(out, s)
	}
	return sortedUnique(out), nil
}

// grants reports whether have lets its bearer do what want names.
func grants(have []string, want string) bool {
	if want == ScopeNone {
		return true
	}
	read := strings.HasSuffix(want, readSuffix)
	for _, h := range have {
		if h == want || h == ScopeAll || read && (h+readSuffix == want || h == Read(ScopeAll)) {
			return true
		}
	}
	return false
}

// Kind says what a Principal came in with.
type Kind string

// The kinds of principals.
const (
	KindServer Kind = "server"  // the server itself, for what it does unasked
	KindSocket Kind = "socket"  // the unix socket, whose file mode decides who may open it
	KindAPIKey Kind = "api-key" // an API key
	KindToken  Kind = "token"   // an access token
	KindUser   Kind = "user"    // a user's web session
	KindClient Kind = "client"  // a node, for what its machine's user does there
)

// Principal is who acts. It is made anew for each request, so that a change of role or a suspension takes effect at once. The
// zero Principal, and nil, may do nothing.
type Principal struct {
	Kind       Kind
	Name       string         // for people to read, in the audit log among other places
	User       tailnet.UserID // for whom it acts; 0: for the server's administrator
	Role       tailnet.Role   // of User, if that is not 0
	Scopes     []string       // of what it came in with; the role may hold less
	Credential string         // id of the API key or OAuth client; may be empty
	Remote     string         // address that it comes from; may be empty

	// TagBound says that it may give no tags but Tags and those that they own in the policy (tagOwners).
	TagBound bool
	Tags     []string
}

// ServerPrincipal is the server itself; what names the part of it that acts.
func ServerPrincipal(what string) *Principal {
	return &Principal{Kind: KindServer, Name: what, Scopes: []string{ScopeAll}}
}

// SocketPrincipal is somebody who could open the unix socket; name is the account of the operating system.
func SocketPrincipal(name string) *Principal {
	return &Principal{Kind: KindSocket, Name: name, Scopes: []string{ScopeAll}}
}

// UserPrincipal is a user who has signed in. The error says why such a user may not act, as with Active.
func UserPrincipal(u *tailnet.User) (*Principal, error) {
	if err := Active(u); err != nil {
		return nil, err
	}
	return &Principal{Kind: KindUser, Name: u.LoginName(), User: u.ID, Role: u.Role, Scopes: []string{ScopeAll}}, nil
}

// Active returns nil if u may act at all: not if it is nil, which is what a deleted user is, suspended, or waits for approval.
func Active(u *tailnet.User) error {
	switch {
	case u == nil:
		return tailnet.Errorf(tailnet.Unauthenticated, "the user does not exist any more")
	case u.Status == tailnet.UserSuspended:
		return tailnet.Errorf(tailnet.Unauthenticated, "the user %s is suspended", u.LoginName())
	case u.Status != tailnet.UserActive:
		return tailnet.Errorf(tailnet.Unauthenticated, "the user %s waits for an administrator's approval", u.LoginName())
	}
	return nil
}

// Allow returns nil if p may do what scope names, or else a Denied error that says what is missing.
func (p *Principal) Allow(scope string) error {
	if p == nil || p.Kind == "" {
		return tailnet.Errorf(tailnet.Unauthenticated, "nobody has signed in")
	}
	if !grants(p.Scopes, scope) {
		return tailnet.Errorf(tailnet.Denied, "%s lacks the scope %s; it has %s", p.with(), scope, orNone(p.Scopes))
	}
	if p.User != 0 && !grants(roleScopes[p.Role], scope) {
		return tailnet.Errorf(tailnet.Denied, "the role %s lacks the scope %s", roleName(p.Role), scope)
	}
	return nil
}

// AllowRole returns nil if p may make a user r, or take r away from one: nobody deals with more than they have, and only an
// owner with owners.
func (p *Principal) AllowRole(r tailnet.Role) error {
	if r == tailnet.RoleOwner && p != nil && p.User != 0 && p.Role != tailnet.RoleOwner {
		return tailnet.Errorf(tailnet.Denied, "only an owner may make or change an owner")
	}
	for _, s := range roleScopes[r] {
		if err := p.Allow(s); err != nil {
			return tailnet.Errorf(tailnet.Denied, "the role %s may do more than you: %w", roleName(r), err)
		}
	}
	return nil
}

// AllowTags returns nil if p may give these tags, or else a Denied error that names the one that it may not: a credential that is
// bound to tags gives those and the ones that they own in the policy (tagOwners).
func (p *Principal) AllowTags(sn *state.Snapshot, tags []string) error {
	if p == nil {
		return tailnet.Errorf(tailnet.Unauthenticated, "nobody has signed in")
	}
	if !p.TagBound {
		return nil
	}
	for _, t := range tags {
		if !slices.Contains(p.Tags, t) && !sn.Policy.MayRetag(p.Tags, t) {
			return tailnet.Errorf(tailnet.Denied, "%s may not give the tag %s, only %s and what the policy lets those give (tagOwners)",
				p.with(), tailnet.CleanText(t), orNone(p.Tags))
		}
	}
	return nil
}

// AllowKeyFor returns nil if p may make a key with which nodes join that belong to user, or, if that is 0, to tags: for others
// than oneself it takes the scope devices:core, and what is bound to tags can make keys for tags only.
func (p *Principal) AllowKeyFor(sn *state.Snapshot, user tailnet.UserID, tags []string) error {
	if err := p.Allow(ScopeAuthKeys); err != nil {
		return err
	}
	if len(tags) > 0 {
		return p.AllowTags(sn, tags)
	}
	if p.TagBound {
		return tailnet.Errorf(tailnet.Denied, "%s can make keys with tags only: name some of %s", p.with(), orNone(p.Tags))
	}
	if p.User != 0 && p.User != user {
		return p.Allow(ScopeDevices)
	}
	return nil
}

// with is what p came in with, for the beginning of a sentence.
func (p *Principal) with() string {
	switch p.Kind {
	case KindAPIKey:
		return "this API key"
	case KindToken:
		return "this access token"
	}
	return "this session"
}

func roleName(r tailnet.Role) string {
	if r == tailnet.RoleMember {
		return "member"
	}
	return string(r)
}

func orNone(ss []string) string {
	if len(ss) == 0 {
		return "none"
	}
	return strings.Join(ss, ", ")
}

type principalKey struct{}

// WithPrincipal is ctx with who acts in it, for the audit log as well.
func WithPrincipal(ctx context.Context, p *Principal) context.Context {
	id := p.Credential
	if id == "" && p.User != 0 {
		id = p.User.String()
	}
	ctx = state.WithActor(ctx, state.Actor{Kind: string(p.Kind), Name: p.Name, ID: id, Origin: origins[p.Kind], Remote: p.Remote})
	return context.WithValue(ctx, principalKey{}, p)
}

// origins is where the audit log says that somebody's changes come from.
var origins = map[Kind]string{
	KindServer: "server", KindSocket: "cli", KindAPIKey: "api", KindToken: "api", KindUser: "web", KindClient: "client",
}

// PrincipalOf is who acts in ctx; nil, who may do nothing, if nobody was named.
func PrincipalOf(ctx context.Context) *Principal {
	p, _ := ctx.Value(principalKey{}).(*Principal)
	return p
}
