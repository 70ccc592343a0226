// Package tailnet holds the words every other package of Skein shares: tailnets, users, nodes, keys, revisions and the
// changes between two revisions. It is plain data: no I/O, no clock, no goroutine, nothing of SQL and nothing of the wire
// format beyond the vocabulary of tailcfg and types/key.
//
// # Words
//
// A Tailnet is the unit of isolation: it has its own nodes, users, policy, addresses and DNS zone. A User owns nodes (the
// command line calls it a namespace); it isolates nothing by itself. A Node is one login of one machine: the machine is
// known by its MachineKey, the login by its NodeKey (the WireGuard key), so that two profiles on one machine are two nodes.
// A PreAuthKey lets a node join without a person. A Login is a registration that waits for a person. A Rev numbers the
// committed changes of one tailnet, and Changes says what one such commit does.
//
// # Invariants
//
// Values are immutable once they have been handed to anybody else: to change a Node, take Clone, change the copy and put
// it back through state.Tx. Pointers may therefore be compared: the same pointer is the same value. Ids are never used
// again, not even after deletion. Zero times mean "never" (expiry) or "unknown" (last seen).
package tailnet

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

type (
	// ID identifies a tailnet on one installation. The first one, DefaultID, is made by the first migration.
	ID int64
	// NodeID identifies a node within its tailnet: above zero, below 1<<53, never used again (tailcfg.Node.ID).
	NodeID int64
	// UserID identifies a user within its tailnet: above zero, never used again.
	UserID int64
	// PreAuthKeyID identifies a pre-auth key within its tailnet.
	PreAuthKeyID int64
	// PolicyID numbers the versions of a tailnet's policy, from 1.
	PolicyID int64
	// Rev numbers the committed changes of one tailnet. It grows by one with each commit; 0 is "nothing committed yet".
	Rev int64
)

func (id NodeID) String() string { return strconv.FormatInt(int64(id), 10) }
func (id UserID) String() string { return strconv.FormatInt(int64(id), 10) }

// Tailcfg is the id as clients see it.
func (id NodeID) Tailcfg() tailcfg.NodeID { return tailcfg.NodeID(id) }

// Tailcfg is the id as clients see it.
func (id UserID) Tailcfg() tailcfg.UserID { return tailcfg.UserID(id) }

// DefaultID is the tailnet that every installation has.
const DefaultID ID = 1

// DefaultName is the name of the tailnet that every installation has.
const DefaultName = "default"

// TaggedDevices is the owner that clients are shown for tagged nodes, which have no user of their own. The number is the
// one headscale shows, so that a taken-over network keeps it (tailcfg.Node.User must have a profile).
const TaggedDevices UserID = 2147455555

// TaggedDevicesName is the login name shown for TaggedDevices.
const TaggedDevicesName = "tagged-devices"

// Tailnet is the unit of isolation and its settings.
type Tailnet struct {
	ID       ID
	Name     string
	Settings Settings
	// Counters of the ids handed out so far; the next one is one higher.
	LastNodeID       NodeID
	LastUserID       UserID
	LastPreAuthKeyID PreAuthKeyID
	LastPolicyID     PolicyID
}

// User owns nodes.
type User struct {
	ID          UserID
	Name        string // unique in the tailnet, lower case; what the command line calls the namespace
	DisplayName string // free text, may be empty
	Email       string // may be empty
	Role        Role   // what policies know as autogroup:ROLE; empty: RoleMember
	Status      UserStatus
	Created     time.Time

	// What an identity provider says. ProviderID is who it is there, see JoinProviderID: unique in the tailnet; empty for a
	// user that only administrators know. Provider is the id of the provider in the configuration, "oidc" if there is but one.
	Provider   string
	ProviderID string
	Picture    string   // https URL, may be empty
	Groups     []string // at the provider, sorted, as the provider spells them; shared between copies: replace, do not write
}

// Role is what a user may do in the tailnet as an administrator. A user has exactly one.
type Role string

// The roles, named as in policies (autogroup:admin and so on). Each user is a member whatever else it is.
const (
	RoleMember       Role = "" // no administrator; the zero value
	RoleOwner        Role = "owner"
	RoleAdmin        Role = "admin"
	RoleITAdmin      Role = "it-admin"
	RoleNetworkAdmin Role = "network-admin"
	RoleBillingAdmin Role = "billing-admin"
	RoleAuditor      Role = "auditor"
)

// LoginName is the user's name as clients store and show it; it is never empty, because a client does not save a profile
// without one (tailcfg.Login.LoginName).
func (u *User) LoginName() string {
	if u.Email != "" {
		return u.Email
	}
	return u.Name
}

// Title is what people are shown: the display name, or else the name.
func (u *User) Title() string {
	if u.DisplayName != "" {
		return u.DisplayName
	}
	return u.Name
}

// How a node was registered; kept for people to read.
const (
	RegisteredByKey = "auth_key"
	RegisteredByCLI = "cli"
	RegisteredByWeb = "web" // its user, or an administrator, on the pages
)

// Node is one login of one machine.
type Node struct {
	ID       NodeID
	StableID string // never empty, unique on the installation; clients store it (exit node choice, profile)

	MachineKey  key.MachinePublic // proven by Noise on every connection
	NodeKey     key.NodePublic    // WireGuard key; unique on the installation
	OldNodeKey  key.NodePublic    // the key before the last rotation, zero if none: its open map session may still finish
	OldKeyUntil time.Time         // when peers stop knowing it under OldNodeKey; zero, or past: they know NodeKey
	DiscoKey    key.DiscoPublic   // zero until the first lite update

	User UserID   // owner; zero if the node is tagged
	Tags []string // "tag:NAME", sorted; a tagged node has no user

	Hostname  string // as the machine calls itself
	Name      string // MagicDNS label: unique in the tailnet, valid in DNS
	NameFixed bool   // an administrator chose Name: a new Hostname does not change it

	IPv4 netip.Addr // zero if the tailnet has no IPv4 prefix
	IPv6 netip.Addr // zero if the tailnet has no IPv6 prefix

	Ephemeral      bool
	RegisterMethod string
	PreAuthKey     PreAuthKeyID // the key that it joined with, which may be gone since; 0 if none

	Created      time.Time
	Expiry       time.Time // end of the NodeKey; zero: never
	NeverExpires bool      // an administrator decided so: no login gives it an Expiry
	Authorized   bool      // approved by an administrator where approval is asked for

	Hostinfo       *tailcfg.Hostinfo // never nil; without RoutableIPs' order meaning anything
	Endpoints      []netip.AddrPort
	EndpointTypes  []tailcfg.EndpointType
	HomeDERP       int                       // region; 0: not known yet
	Capver         tailcfg.CapabilityVersion // of its last request
	ApprovedRoutes []netip.Prefix            // sorted; kept while the node does not advertise them
	Attributes     []Attribute               // given by administrators, sorted by name

	Hostings     []Hosting // services that it hosts, or may host; sorted by service
	ServicesHash string    // tailcfg.Hostinfo.ServicesHash for which Hostings was read from the client; empty: never, or it hosts none

	NLKey        key.NLPublic // tailnet lock key; zero if the client has none
	KeySignature []byte       // tailnet lock signature of NodeKey
}

// Clone returns a copy that may be changed. Slices and Hostinfo are shared with the original: replace them, do not write
// into them.
func (n *Node) Clone() *Node {
	c := *n
	return &c
}

// Tagged reports whether the node belongs to its tags instead of to a user.
func (n *Node) Tagged() bool { return len(n.Tags) > 0 }

// Owner is the user that clients are shown for the node.
func (n *Node) Owner() UserID {
	if n.Tagged() {
		return TaggedDevices
	}
	return n.User
}

// Expired reports whether the node's key has ended at now.
func (n *Node) Expired(now time.Time) bool { return !n.Expiry.IsZero() && !n.Expiry.After(now) }

// Addrs are the node's own addresses, IPv4 first.
func (n *Node) Addrs() []netip.Addr {
	out := make([]netip.Addr, 0, 2)
	if n.IPv4.IsValid() {
		out = append(out, n.IPv4)
	}
	if n.IPv6.IsValid() {
		out = append(out, n.IPv6)
	}
	return out
}

// AdvertisedRoutes are the subnet and exit routes that the node offers.
func (n *Node) AdvertisedRoutes() []netip.Prefix {
	if n.Hostinfo == nil {
		return nil
	}
	return n.Hostinfo.RoutableIPs
}

// ActiveRoutes are the routes that are both advertised and approved, and the addresses of the services that it hosts and is approved
// for, sorted. Only these can ever be used.
func (n *Node) ActiveRoutes() []netip.Prefix {
	var out []netip.Prefix
	for _, p := range n.ApprovedRoutes {
		if slices.Contains(n.AdvertisedRoutes(), p) {
			out = append(out, p)
		}
	}
	if len(n.Hostings) == 0 || !n.Tagged() { // only tagged nodes can host services
		return out
	}
	for i := range n.Hostings {
		out = append(out, n.Hostings[i].routes()...)
	}
	return SortPrefixes(out)
}

// Presence is what is known of a node's connection: soft state, which may be some seconds old after a restart.
type Presence struct {
	Online   bool
	LastSeen time.Time      // while Online: when it came online
	Primary  []netip.Prefix // routes that it carries, sorted
	Server   string         // instance that holds, or held last, its map session; empty where there is one server only
	Failing  bool           // online, but as a router it does not answer probes
	Steady   bool           // usable for so long that it may take back what it was first to carry
}

// ForeignPreAuthKey begins the pre-auth keys that headscale makes since its version 0.28: hskey-auth-, 12 characters that may be
// shown, a "-", and 64 that may not.
const ForeignPreAuthKey = "hskey-auth-"

// PreAuthKey lets nodes join without a person. The secret is not kept, only its SHA-256: it has 128 random bits and more.
type PreAuthKey struct {
	ID          PreAuthKeyID
	Prefix      string // the part of the key that may be shown, to tell keys apart
	Hash        [32]byte
	Bcrypt      []byte   // instead of Hash, of a key that headscale made: of what follows Prefix and a "-"; gone once the key was used
	User        UserID   // owner of the nodes that join with it; zero if Tags are set
	Tags        []string // given to the nodes that join with it
	Reusable    bool
	Ephemeral   bool
	Preapproved bool          // its nodes need no approval of an administrator
	Description string        // free text, may be empty
	KeyDuration time.Duration // how long the keys of its nodes live; 0: as the tailnet's settings say; KeyForever: they do not end
	Used        bool          // a node has joined with it
	Created     time.Time
	Expires     time.Time // zero: never
	Revoked     bool
}

// Usable returns nil if a new node may join with the key at now, or else an Error that says why not.
func (k *PreAuthKey) Usable(now time.Time) error {
	switch {
	case k.Revoked:
		return Errorf(Denied, "this auth key has been revoked; ask for a new one")
	case !k.Expires.IsZero() && !k.Expires.After(now):
		return Errorf(Denied, "this auth key expired at %s; ask for a new one", k.Expires.UTC().Format(time.RFC3339))
	case k.Used && !k.Reusable:
		return Errorf(Denied, "this auth key can be used once only and has been used; ask for a new one")
	}
	return nil
}

// PolicyVersion is a text that is or was the tailnet's policy. Versions are never changed or removed.
type PolicyVersion struct {
	ID      PolicyID
	Text    string // HuJSON, as it was given
	Author  string // who set it, for people to read
	Comment string // why, for people to read; may be empty
	Created time.Time
}

// Login is a registration that waits for a person. It is not part of a snapshot: it lives in its own table until
// somebody completes it or its time is over.
type Login struct {
	ID         string // random, unguessable; the last path element of the URL that the client prints
	Tailnet    ID
	MachineKey key.MachinePublic
	NodeKey    key.NodePublic
	OldNodeKey key.NodePublic
	NLKey      key.NLPublic
	Hostinfo   *tailcfg.Hostinfo
	Expiry     time.Time // as the client asked for; zero if it did not
	Ephemeral  bool
	Capver     tailcfg.CapabilityVersion
	Remote     string // address the request came from, for people to read
	Created    time.Time
}

// SSHCheck is an SSH session that the policy lets begin only once a person has confirmed it. Like a Login it is not part of
// a snapshot. Once decided it is kept for as long as its Period may ask for.
//
//	waiting ──┬─ Approved: that session begins, and others like it for Period
//	          ├─ Denied:   it ends
//	          └─ nobody decides until its time is over: it ends
type SSHCheck struct {
	ID        string // random, unguessable; the last path element of the URL that the SSH client prints
	Tailnet   ID
	Src, Dst  NodeID
	SrcUser   UserID        // who owned Src when it was asked
	SSHUser   string        // who Src wants to be
	LocalUser string        // whom Dst makes of that
	Period    time.Duration // how long the policy let an approval hold when it was asked; 0: for that session alone
	Created   time.Time
	Approved  time.Time // zero: not approved
	Denied    bool
	DecidedBy string // who approved or denied it, for people to read
}

// Waiting reports whether nobody has decided yet.
func (c *SSHCheck) Waiting() bool { return c.Approved.IsZero() && !c.Denied }

// Changes is what one commit does to a tailnet: the rows as they are afterwards.
type Changes struct {
	Tailnet *Tailnet // set if its settings or counters changed

	PutNodes       []*Node
	DeleteNodes    []NodeID
	PutUsers       []*User
	DeleteUsers    []UserID
	PutPreAuthKeys []*PreAuthKey
	DeletePreAuth  []PreAuthKeyID
	PutPolicy      *PolicyVersion // nil: the policy stays

	PutCredentials    []*Credential
	DeleteCredentials []string

	PutServices    []*Service
	DeleteServices []string // names

	Audit []*AuditEntry // what these changes leave in the audit log, in order

	Why  []string  // one entry per change that was grouped into this commit
	When time.Time // of the commit
}

// Empty reports whether there is nothing to commit.
func (c *Changes) Empty() bool {
	return c.Tailnet == nil && c.PutPolicy == nil && len(c.PutNodes)+len(c.DeleteNodes)+len(c.PutUsers)+len(c.DeleteUsers)+
		len(c.PutPreAuthKeys)+len(c.DeletePreAuth)+len(c.PutCredentials)+len(c.DeleteCredentials)+
		len(c.PutServices)+len(c.DeleteServices)+len(c.Audit) == 0
}

// Contents is everything a tailnet holds at one Rev, as the store reads it at start.
type Contents struct {
	Rev         Rev
	Tailnet     Tailnet
	Nodes       []*Node // sorted by id
	Users       []*User // sorted by id
	PreAuthKeys []*PreAuthKey
	Credentials []*Credential       // sorted by id
	Services    []*Service          // sorted by name
	Policy      *PolicyVersion      // the newest; nil if none was ever set
	Presence    map[NodeID]Presence // as saved last
	PresenceSeq int64               // of the newest save of presence in it
}

// Step is what happened to a tailnet since a Rev and a save of presence that somebody knew.
type Step struct {
	Rev     Rev     // as it is now; the known one if nothing was committed
	Changes Changes // from the known Rev to Rev: rows as they are now, without Why and When

	PresenceSeq int64        // of the newest save of presence in it
	Presence    []NodeOnline // saved since, the oldest first
}

// NodeOnline is the presence of one node.
type NodeOnline struct {
	Node NodeID
	Presence
}

// Server is one of several servers on one database.
type Server struct {
	ID      string // random, new with each start
	Name    string // chosen by people, unique among those that run
	Info    string // what the others must know of it, in a form that is theirs
	Started time.Time
	Beat    time.Time // when it was last heard of, by the database's clock
	Alive   bool      // it was heard of lately enough

	Skew time.Duration // how far its machine's clock is ahead of the database's; negative: behind
}

// FormatPrefixes writes prefixes the way people read them, separated by ", ".
func FormatPrefixes(ps []netip.Prefix) string {
	s := ""
	for i, p := range ps {
		if i > 0 {
			s += ", "
		}
		s += p.String()
	}
	return s
}

// SortPrefixes sorts prefixes by address, then by length, and drops repetitions. It works in place.
func SortPrefixes(ps []netip.Prefix) []netip.Prefix {
	slices.SortFunc(ps, func(a, b netip.Prefix) int {
		if c := a.Addr().Compare(b.Addr()); c != 0 {
			return c
		}
		return a.Bits() - b.Bits()
	})
	return slices.Compact(ps)
}

// ParseRoute reads a prefix that a node may route: host bits must be zero. The error says what would be right.
func ParseRoute(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		if a, aerr := netip.ParseAddr(s); aerr == nil && a.Zone() == "" {
			return netip.Prefix{}, Errorf(Invalid, "%q is an address, not a prefix: write %s", s, netip.PrefixFrom(a, a.BitLen()))
		}
		return netip.Prefix{}, Errorf(Invalid, "%q is not a prefix such as 192.168.199.0/24", s)
	}
	if p.Addr().Is4In6() {
		return netip.Prefix{}, Errorf(Invalid, "%q is IPv4 written as IPv6: write it as IPv4, such as 192.168.199.0/24", s)
	}
	if m := p.Masked(); m != p {
		return netip.Prefix{}, Errorf(Invalid, "%s has bits set behind its length: the prefix is %s", s, m)
	}
	return p, nil
}

// IsExitRoute reports whether p is one of the two routes of an exit node.
func IsExitRoute(p netip.Prefix) bool { return p.Bits() == 0 }

// ShortName describes a node in a sentence: `homeds (2)`.
func (n *Node) ShortName() string { return fmt.Sprintf("%s (%d)", n.Name, n.ID) }
