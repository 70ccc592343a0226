package db

import (
	"encoding"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/types/key"

	"github.com/skein-vpn/skein/tailnet"
)

// maxFaults bounds how many faults an error lists.
const maxFaults = 10

// fields converts the fields of one row, in either direction, and remembers what was wrong with them.
type fields struct {
	table   string
	tailnet int64
	id      any
	faults  []error
}

func (f *fields) fail(column string, err error) {
	if err != nil {
		f.faults = append(f.faults, fmt.Errorf("table %s, tailnet %d, id %v, column %s: %w", f.table, f.tailnet, f.id, column, err))
	}
}

func (f *fields) err() error { return errors.Join(f.faults...) }

// The types that are stored as text.
type textual interface {
	encoding.TextMarshaler
	IsZero() bool
}

// addr is netip.Addr as textual.
type addr struct{ netip.Addr }

func (a addr) IsZero() bool { return !a.IsValid() }

// text is v in its text form, nil if v is zero.
func text[T textual](f *fields, column string, v T) *string {
	if v.IsZero() {
		return nil
	}
	b, err := v.MarshalText()
	f.fail(column, err)
	s := string(b)
	return &s
}

// mustText is text for columns that are never NULL.
func mustText[T textual](f *fields, column string, v T) string {
	s := text(f, column, v)
	if s == nil {
		f.fail(column, errors.New("must not be empty"))
		return ""
	}
	return *s
}

// parse is the opposite of text.
func parse[T any, P interface {
	*T
	encoding.TextUnmarshaler
}](f *fields, column string, s *string) (v T) {
	if s != nil {
		if err := P(&v).UnmarshalText([]byte(*s)); err != nil {
			f.fail(column, fmt.Errorf("%.100q cannot be read: %w", *s, err))
		}
	}
	return v
}

// list is v as JSON, nil if v is empty.
func list[T any](f *fields, column string, v []T) *string {
	if len(v) == 0 {
		return nil
	}
	s := toJSON(f, column, v)
	return &s
}

// parseList is the opposite of list.
func parseList[T any](f *fields, column string, s *string) (v []T) {
	if s != nil {
		fromJSON(f, column, *s, &v)
	}
	if len(v) == 0 {
		return nil
	}
	return v
}

func toJSON(f *fields, column string, v any) string {
	b, err := json.Marshal(v)
	f.fail(column, err)
	return string(b)
}

func fromJSON(f *fields, column string, s string, v any) {
	if err := json.Unmarshal([]byte(s), v); err != nil {
		f.fail(column, fmt.Errorf("%.100q is not the JSON expected: %w", s, err))
	}
}

// hostinfo is h as JSON; nil is stored like an empty one.
func hostinfo(f *fields, column string, h *tailcfg.Hostinfo) string {
	if h == nil {
		h = new(tailcfg.Hostinfo)
	}
	return toJSON(f, column, h)
}

// parseHostinfo is the opposite of hostinfo and never returns nil.
func parseHostinfo(f *fields, column, s string) *tailcfg.Hostinfo {
	h := new(tailcfg.Hostinfo)
	fromJSON(f, column, s, h)
	return h
}

// mustTime is t as text that sorts. Years of other than four digits would not.
func (f *fields) mustTime(column string, t time.Time) string {
	if y := t.UTC().Year(); y < 0 || y > 9999 {
		f.fail(column, fmt.Errorf("the time %v is not between the years 0 and 9999", t))
	}
	return formatTime(t)
}

// time is mustTime, or nil if t is zero.
func (f *fields) time(column string, t time.Time) *string {
	if t.IsZero() {
		return nil
	}
	s := f.mustTime(column, t)
	return &s
}

// parseTime is the opposite of time. It takes what a person may have written by hand, too: any RFC 3339.
func (f *fields) parseTime(column string, s *string) time.Time {
	if s == nil {
		return time.Time{}
	}
	t, err := time.Parse(time.RFC3339Nano, *s)
	if err != nil {
		f.fail(column, fmt.Errorf("%.100q is not a time like %s", *s, timeFormat))
	}
	return t.UTC()
}

// hex is b in hexadecimal, nil if b is empty.
func (f *fields) hex(b []byte) *string {
	if len(b) == 0 {
		return nil
	}
	s := hex.EncodeToString(b)
	return &s
}

// parseHex is the opposite of hex. Other lengths than size are a fault, unless size is -1.
func (f *fields) parseHex(column string, s *string, size int) []byte {
	if s == nil {
		return nil
	}
	b, err := hex.DecodeString(*s)
	switch {
	case err != nil:
		f.fail(column, err)
	case size >= 0 && len(b) != size:
		f.fail(column, fmt.Errorf("has %d bytes instead of %d", len(b), size))
	}
	return b
}

// ref is an id, nil if it is zero.
func ref[T ~int64](id T) *int64 {
	if id == 0 {
		return nil
	}
	n := int64(id)
	return &n
}

// parseRef is the opposite of ref.
func parseRef[T ~int64](n *int64) T {
	if n == nil {
		return 0
	}
	return T(*n)
}

func (r *tailnetRow) domain() (tailnet.Tailnet, error) {
	f := &fields{table: "tailnets", tailnet: r.ID, id: r.ID}
	t := tailnet.Tailnet{
		ID:               tailnet.ID(r.ID),
		Name:             r.Name,
		LastNodeID:       tailnet.NodeID(r.LastNodeID),
		LastUserID:       tailnet.UserID(r.LastUserID),
		LastPreAuthKeyID: tailnet.PreAuthKeyID(r.LastPreAuthKeyID),
		LastPolicyID:     tailnet.PolicyID(r.LastPolicyID),
	}
	fromJSON(f, "settings", r.Settings, &t.Settings)
	return t, f.err()
}

func makeUserRow(id tailnet.ID, u *tailnet.User) (userRow, error) {
	f := &fields{table: "users", tailnet: int64(id), id: u.ID}
	return userRow{
		TailnetID:   int64(id),
		ID:          int64(u.ID),
		Name:        u.Name,
		DisplayName: u.DisplayName,
		Email:       u.Email,
		Role:        string(u.Role),
		Status:      string(u.Status),
		CreatedAt:   f.time("created_at", u.Created),
		Provider:    u.Provider,
		ProviderID:  u.ProviderID,
		Picture:     u.Picture,
		Groups:      list(f, "idp_groups", u.Groups),
	}, f.err()
}

func (r *userRow) domain() (*tailnet.User, error) {
	f := &fields{table: "users", tailnet: r.TailnetID, id: r.ID}
	return &tailnet.User{
		ID:          tailnet.UserID(r.ID),
		Name:        r.Name,
		DisplayName: r.DisplayName,
		Email:       r.Email,
		Role:        tailnet.Role(r.Role),
		Status:      tailnet.UserStatus(r.Status),
		Created:     f.parseTime("created_at", r.CreatedAt),
		Provider:    r.Provider,
		ProviderID:  r.ProviderID,
		Picture:     r.Picture,
		Groups:      parseList[string](f, "idp_groups", r.Groups),
	}, f.err()
}

func makePolicyRow(id tailnet.ID, v *tailnet.PolicyVersion) (policyRow, error) {
	f := &fields{table: "policies", tailnet: int64(id), id: v.ID}
	return policyRow{
		TailnetID: int64(id),
		ID:        int64(v.ID),
		Text:      v.Text,
		Author:    v.Author,
		Comment:   v.Comment,
		CreatedAt: f.time("created_at", v.Created),
	}, f.err()
}

func (r *policyRow) domain() (*tailnet.PolicyVersion, error) {
	f := &fields{table: "policies", tailnet: r.TailnetID, id: r.ID}
	return &tailnet.PolicyVersion{
		ID:      tailnet.PolicyID(r.ID),
		Text:    r.Text,
		Author:  r.Author,
		Comment: r.Comment,
		Created: f.parseTime("created_at", r.CreatedAt),
	}, f.err()
}

func makePreAuthKeyRow(id tailnet.ID, k *tailnet.PreAuthKey) (preAuthKeyRow, error) {
	f := &fields{table: "pre_auth_keys", tailnet: int64(id), id: k.ID}
	return preAuthKeyRow{
		TailnetID:   int64(id),
		ID:          int64(k.ID),
		Prefix:      k.Prefix,
		Hash:        preAuthKeyHash(k),
		UserID:      ref(k.User),
		Tags:        list(f, "tags", k.Tags),
		Reusable:    k.Reusable,
		Ephemeral:   k.Ephemeral,
		Preapproved: k.Preapproved,
		Description: k.Description,
		KeyDuration: int64(k.KeyDuration),
		Used:        k.Used,
		CreatedAt:   f.time("created_at", k.Created),
		ExpiresAt:   f.time("expires_at", k.Expires),
		Revoked:     k.Revoked,
	}, f.err()
}

func (r *preAuthKeyRow) domain() (*tailnet.PreAuthKey, error) {
	f := &fields{table: "pre_auth_keys", tailnet: r.TailnetID, id: r.ID}
	k := &tailnet.PreAuthKey{
		ID:          tailnet.PreAuthKeyID(r.ID),
		Prefix:      r.Prefix,
		User:        parseRef[tailnet.UserID](r.UserID),
		Tags:        parseList[string](f, "tags", r.Tags),
		Reusable:    r.Reusable,
		Ephemeral:   r.Ephemeral,
		Preapproved: r.Preapproved,
		Description: r.Description,
		KeyDuration: time.Duration(r.KeyDuration),
		Used:        r.Used,
		Created:     f.parseTime("created_at", r.CreatedAt),
		Expires:     f.parseTime("expires_at", r.ExpiresAt),
		Revoked:     r.Revoked,
	}
	if strings.HasPrefix(r.Hash, "$") {
		k.Bcrypt = []byte(r.Hash)
	} else {
		copy(k.Hash[:], f.parseHex("hash", &r.Hash, len(k.Hash)))
	}
	return k, f.err()
}

// preAuthKeyHash is either hash of a key: SHA-256 in hexadecimal, or bcrypt in its own text form, which begins with a "$".
func preAuthKeyHash(k *tailnet.PreAuthKey) string {
	if len(k.Bcrypt) > 0 {
		return string(k.Bcrypt)
	}
	return hex.EncodeToString(k.Hash[:])
}

func makeNodeRow(id tailnet.ID, n *tailnet.Node) (nodeRow, error) {
	f := &fields{table: "nodes", tailnet: int64(id), id: n.ID}
	return nodeRow{
		TailnetID:      int64(id),
		ID:             int64(n.ID),
		StableID:       n.StableID,
		MachineKey:     text(f, "machine_key", n.MachineKey),
		NodeKey:        mustText(f, "node_key", n.NodeKey),
		OldNodeKey:     text(f, "old_node_key", n.OldNodeKey),
		OldKeyUntil:    f.time("old_key_until", n.OldKeyUntil),
		Attributes:     list(f, "attributes", n.Attributes),
		Hostings:       list(f, "hostings", n.Hostings),
		ServicesHash:   n.ServicesHash,
		DiscoKey:       text(f, "disco_key", n.DiscoKey),
		UserID:         ref(n.User),
		Tags:           list(f, "tags", n.Tags),
		Hostname:       n.Hostname,
		Name:           n.Name,
		NameFixed:      n.NameFixed,
		IPv4:           text(f, "ipv4", addr{n.IPv4}),
		IPv6:           text(f, "ipv6", addr{n.IPv6}),
		Ephemeral:      n.Ephemeral,
		RegisterMethod: n.RegisterMethod,
		PreAuthKeyID:   ref(n.PreAuthKey),
		CreatedAt:      f.time("created_at", n.Created),
		ExpiresAt:      f.time("expires_at", n.Expiry),
		NeverExpires:   n.NeverExpires,
		Authorized:     n.Authorized,
		Hostinfo:       hostinfo(f, "hostinfo", n.Hostinfo),
		Endpoints:      list(f, "endpoints", n.Endpoints),
		EndpointTypes:  list(f, "endpoint_types", n.EndpointTypes),
		HomeDERP:       int64(n.HomeDERP),
		Capver:         int64(n.Capver),
		ApprovedRoutes: list(f, "approved_routes", n.ApprovedRoutes),
		NLKey:          text(f, "nl_key", n.NLKey),
		KeySignature:   f.hex(n.KeySignature),
	}, f.err()
}

func (r *nodeRow) domain() (*tailnet.Node, error) {
	f := &fields{table: "nodes", tailnet: r.TailnetID, id: r.ID}
	return &tailnet.Node{
		ID:             tailnet.NodeID(r.ID),
		StableID:       r.StableID,
		MachineKey:     parse[key.MachinePublic](f, "machine_key", r.MachineKey),
		NodeKey:        parse[key.NodePublic](f, "node_key", &r.NodeKey),
		OldNodeKey:     parse[key.NodePublic](f, "old_node_key", r.OldNodeKey),
		OldKeyUntil:    f.parseTime("old_key_until", r.OldKeyUntil),
		Attributes:     parseList[tailnet.Attribute](f, "attributes", r.Attributes),
		Hostings:       parseList[tailnet.Hosting](f, "hostings", r.Hostings),
		ServicesHash:   r.ServicesHash,
		DiscoKey:       parse[key.DiscoPublic](f, "disco_key", r.DiscoKey),
		User:           parseRef[tailnet.UserID](r.UserID),
		Tags:           parseList[string](f, "tags", r.Tags),
		Hostname:       r.Hostname,
		Name:           r.Name,
		NameFixed:      r.NameFixed,
		IPv4:           parse[netip.Addr](f, "ipv4", r.IPv4),
		IPv6:           parse[netip.Addr](f, "ipv6", r.IPv6),
		Ephemeral:      r.Ephemeral,
		RegisterMethod: r.RegisterMethod,
		PreAuthKey:     parseRef[tailnet.PreAuthKeyID](r.PreAuthKeyID),
		Created:        f.parseTime("created_at", r.CreatedAt),
		Expiry:         f.parseTime("expires_at", r.ExpiresAt),
		NeverExpires:   r.NeverExpires,
		Authorized:     r.Authorized,
		Hostinfo:       parseHostinfo(f, "hostinfo", r.Hostinfo),
		Endpoints:      parseList[netip.AddrPort](f, "endpoints", r.Endpoints),
		EndpointTypes:  parseList[tailcfg.EndpointType](f, "endpoint_types", r.EndpointTypes),
		HomeDERP:       int(r.HomeDERP),
		Capver:         tailcfg.CapabilityVersion(r.Capver),
		ApprovedRoutes: parseList[netip.Prefix](f, "approved_routes", r.ApprovedRoutes),
		NLKey:          parse[key.NLPublic](f, "nl_key", r.NLKey),
		KeySignature:   f.parseHex("key_signature", r.KeySignature, -1),
	}, f.err()
}

func makePresenceRow(id tailnet.ID, n tailnet.NodeID, p tailnet.Presence) (presenceRow, error) {
	f := &fields{table: "presence", tailnet: int64(id), id: n}
	return presenceRow{
		TailnetID:     int64(id),
		NodeID:        int64(n),
		Online:        p.Online,
		LastSeen:      f.time("last_seen", p.LastSeen),
		PrimaryRoutes: list(f, "primary_routes", p.Primary),
		Server:        p.Server,
		Failing:       p.Failing,
		Steady:        p.Steady,
	}, f.err()
}

func (r *presenceRow) domain() (tailnet.Presence, error) {
	f := &fields{table: "presence", tailnet: r.TailnetID, id: r.NodeID}
	return tailnet.Presence{
		Online:   r.Online,
		LastSeen: f.parseTime("last_seen", r.LastSeen),
		Primary:  parseList[netip.Prefix](f, "primary_routes", r.PrimaryRoutes),
		Server:   r.Server,
		Failing:  r.Failing,
		Steady:   r.Steady,
	}, f.err()
}

// domain is the node as far as its tombstone tells.
func (r *deletedNodeRow) domain() (*tailnet.Node, error) {
	f := &fields{table: "deleted_nodes", tailnet: r.TailnetID, id: r.ID}
	return &tailnet.Node{
		ID:         tailnet.NodeID(r.ID),
		StableID:   r.StableID,
		MachineKey: parse[key.MachinePublic](f, "machine_key", r.MachineKey),
		NodeKey:    parse[key.NodePublic](f, "node_key", &r.NodeKey),
		User:       parseRef[tailnet.UserID](r.UserID),
		Tags:       parseList[string](f, "tags", r.Tags),
		Hostname:   r.Hostname,
		Name:       r.Name,
		IPv4:       parse[netip.Addr](f, "ipv4", r.IPv4),
		IPv6:       parse[netip.Addr](f, "ipv6", r.IPv6),
		Ephemeral:  r.Ephemeral,
		Created:    f.parseTime("created_at", r.CreatedAt),
		Expiry:     f.parseTime("expires_at", r.ExpiresAt),
		Hostinfo:   &tailcfg.Hostinfo{Hostname: r.Hostname},
	}, f.err()
}

func makeRevisionRow(id tailnet.ID, rev tailnet.Rev, ch *tailnet.Changes, at time.Time) (revisionRow, error) {
	f := &fields{table: "revisions", tailnet: int64(id), id: rev}
	nodes := make([]tailnet.NodeID, len(ch.PutNodes))
	for i, n := range ch.PutNodes {
		nodes[i] = n.ID
	}
	users := make([]tailnet.UserID, len(ch.PutUsers))
	for i, u := range ch.PutUsers {
		users[i] = u.ID
	}
	keys := make([]tailnet.PreAuthKeyID, len(ch.PutPreAuthKeys))
	for i, k := range ch.PutPreAuthKeys {
		keys[i] = k.ID
	}
	creds := make([]string, len(ch.PutCredentials))
	for i, c := range ch.PutCredentials {
		creds[i] = c.ID
	}
	services := make([]string, len(ch.PutServices))
	for i, s := range ch.PutServices {
		services[i] = s.Name
	}
	return revisionRow{
		TailnetID:          int64(id),
		Rev:                int64(rev),
		At:                 f.mustTime("at", at),
		Why:                list(f, "why", ch.Why),
		Settings:           ch.Tailnet != nil,
		PutNodes:           list(f, "put_nodes", nodes),
		DeletedNodes:       list(f, "deleted_nodes", ch.DeleteNodes),
		PutUsers:           list(f, "put_users", users),
		DeletedUsers:       list(f, "deleted_users", ch.DeleteUsers),
		PutPreAuthKeys:     list(f, "put_pre_auth_keys", keys),
		DeletedPreAuthKeys: list(f, "deleted_pre_auth_keys", ch.DeletePreAuth),
		PutCredentials:     list(f, "put_credentials", creds),
		DeletedCredentials: list(f, "deleted_credentials", ch.DeleteCredentials),
		PutServices:        list(f, "put_services", services),
		DeletedServices:    list(f, "deleted_services", ch.DeleteServices),
	}, f.err()
}

func (r *revisionRow) domain() (*Revision, error) {
	f := &fields{table: "revisions", tailnet: r.TailnetID, id: r.Rev}
	return &Revision{
		Rev:            tailnet.Rev(r.Rev),
		At:             f.parseTime("at", &r.At),
		Why:            parseList[string](f, "why", r.Why),
		Settings:       r.Settings,
		PutNodes:       parseList[tailnet.NodeID](f, "put_nodes", r.PutNodes),
		DeleteNodes:    parseList[tailnet.NodeID](f, "deleted_nodes", r.DeletedNodes),
		PutUsers:       parseList[tailnet.UserID](f, "put_users", r.PutUsers),
		DeleteUsers:    parseList[tailnet.UserID](f, "deleted_users", r.DeletedUsers),
		PutPreAuthKeys: parseList[tailnet.PreAuthKeyID](f, "put_pre_auth_keys", r.PutPreAuthKeys),
		DeletePreAuth:  parseList[tailnet.PreAuthKeyID](f, "deleted_pre_auth_keys", r.DeletedPreAuthKeys),

		PutCredentials:    parseList[string](f, "put_credentials", r.PutCredentials),
		DeleteCredentials: parseList[string](f, "deleted_credentials", r.DeletedCredentials),
		PutServices:       parseList[string](f, "put_services", r.PutServices),
		DeleteServices:    parseList[string](f, "deleted_services", r.DeletedServices),
	}, f.err()
}

func makeLoginRow(l *tailnet.Login) (loginRow, error) {
	f := &fields{table: "logins", tailnet: int64(l.Tailnet), id: "of node key " + l.NodeKey.ShortString()}
	return loginRow{
		TailnetID:  int64(l.Tailnet),
		ID:         l.ID,
		MachineKey: text(f, "machine_key", l.MachineKey),
		NodeKey:    mustText(f, "node_key", l.NodeKey),
		OldNodeKey: text(f, "old_node_key", l.OldNodeKey),
		NLKey:      text(f, "nl_key", l.NLKey),
		Hostinfo:   hostinfo(f, "hostinfo", l.Hostinfo),
		ExpiresAt:  f.time("expires_at", l.Expiry),
		Ephemeral:  l.Ephemeral,
		Capver:     int64(l.Capver),
		Remote:     l.Remote,
		CreatedAt:  f.mustTime("created_at", l.Created),
	}, f.err()
}

func (r *loginRow) domain() (*tailnet.Login, error) {
	f := &fields{table: "logins", tailnet: r.TailnetID, id: "of " + r.NodeKey} // its own id is a secret
	return &tailnet.Login{
		ID:         r.ID,
		Tailnet:    tailnet.ID(r.TailnetID),
		MachineKey: parse[key.MachinePublic](f, "machine_key", r.MachineKey),
		NodeKey:    parse[key.NodePublic](f, "node_key", &r.NodeKey),
		OldNodeKey: parse[key.NodePublic](f, "old_node_key", r.OldNodeKey),
		NLKey:      parse[key.NLPublic](f, "nl_key", r.NLKey),
		Hostinfo:   parseHostinfo(f, "hostinfo", r.Hostinfo),
		Expiry:     f.parseTime("expires_at", r.ExpiresAt),
		Ephemeral:  r.Ephemeral,
		Capver:     tailcfg.CapabilityVersion(r.Capver),
		Remote:     r.Remote,
		Created:    f.parseTime("created_at", &r.CreatedAt),
	}, f.err()
}

func makeSSHCheckRow(c *tailnet.SSHCheck) (sshCheckRow, error) {
	f := &fields{table: "ssh_checks", tailnet: int64(c.Tailnet), id: c.ID}
	return sshCheckRow{
		TailnetID:  int64(c.Tailnet),
		ID:         c.ID,
		Src:        int64(c.Src),
		Dst:        int64(c.Dst),
		SrcUser:    int64(c.SrcUser),
		SSHUser:    c.SSHUser,
		LocalUser:  c.LocalUser,
		Period:     int64(c.Period),
		CreatedAt:  f.mustTime("created_at", c.Created),
		ApprovedAt: f.time("approved_at", c.Approved),
		Denied:     c.Denied,
		DecidedBy:  c.DecidedBy,
	}, f.err()
}

func (r *sshCheckRow) domain() (*tailnet.SSHCheck, error) {
	f := &fields{table: "ssh_checks", tailnet: r.TailnetID, id: r.ID}
	return &tailnet.SSHCheck{
		ID:        r.ID,
		Tailnet:   tailnet.ID(r.TailnetID),
		Src:       tailnet.NodeID(r.Src),
		Dst:       tailnet.NodeID(r.Dst),
		SrcUser:   tailnet.UserID(r.SrcUser),
		SSHUser:   r.SSHUser,
		LocalUser: r.LocalUser,
		Period:    time.Duration(r.Period),
		Created:   f.parseTime("created_at", &r.CreatedAt),
		Approved:  f.parseTime("approved_at", r.ApprovedAt),
		Denied:    r.Denied,
		DecidedBy: r.DecidedBy,
	}, f.err()
}
