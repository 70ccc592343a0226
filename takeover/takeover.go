// Package takeover reads an installation of headscale so that its clients can go on with Skein and not notice: they pin the
// server's URL, its Noise key and nothing else, and find themselves by node key, node id and address.
//
//	headscale's database ──Open──▶ Source ──Translate──▶ Plan    users, nodes, keys and the policy, as package tailnet has them
//	headscale's config.yaml ──ReadConfig──▶ Settings              where the rest is, and our keys for its keys
//
// # Which versions
//
// The schema is read by the columns that are there, not by a version: every headscale from 0.23 on has tables that can be
// told apart this way. Of what came before, the error says which headscale has to be started once on it.
//
//	until 0.23   a table pre_auth_key_acl_tags: a tag of a pre-auth key in each row
//	until 0.25   a table routes; a row that is enabled is an approved route
//	from 0.26    nodes.approved_routes
//	until 0.27   nodes.forced_tags; tags that a node asked for stand in its host info alone, and count if the policy lets its user
//	             give them; pre-auth keys in plain text
//	from 0.28    nodes.tags; pre-auth keys as prefix and bcrypt hash
//	from 0.29    a tagged node has no user_id
//
// # Invariants
//
// Nothing is written to the source: of SQLite a copy is read, of PostgreSQL a read-only transaction. Ids, keys, addresses and
// valid names stay as they are. What cannot stay is in the Plan's report, each change with its reason; no row is left out
// silently. A value that cannot be read costs its field, or its row where the row is of no use without it, never the whole.
//
// # Left to others
//
// Writing the Plan and the files is cmd's.
package takeover

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/skein-vpn/skein/tailnet"
)

// Plan is what a Skein server is to hold.
type Plan struct {
	Users       []*tailnet.User       // sorted by id, as are the others
	Nodes       []*tailnet.Node       //
	PreAuthKeys []*tailnet.PreAuthKey //
	Credentials []*tailnet.Credential // API keys and OAuth clients
	Presence    map[tailnet.NodeID]tailnet.Presence
	Policy      []byte // as it was; nil: there is none

	// The highest ids that were ever given out.
	LastNode   tailnet.NodeID
	LastUser   tailnet.UserID
	LastPreKey tailnet.PreAuthKeyID

	Report Report
}

// Report says what was found and what became of it. Its JSON is part of the command line's interface.
type Report struct {
	Source      string   `json:"source"`    // file or database, without a password
	Headscale   string   `json:"headscale"` // what its schema looks like, such as "0.26"
	Users       Count    `json:"users"`
	Nodes       Count    `json:"nodes"`
	PreAuthKeys Count    `json:"preAuthKeys"`
	APIKeys     Count    `json:"apiKeys"`
	OAuth       Count    `json:"oauthClients"`
	Policy      PolicyIs `json:"policy"`
	Changes     []Change `json:"changes"` // rows that are not quite as they were
	Skipped     []Change `json:"skipped"` // rows that are left out
	Notes       []string `json:"notes"`
}

// Count is how many rows of a kind there are, and how many of them are taken over.
type Count struct {
	Found int `json:"found"`
	Taken int `json:"taken"`
}

// Change is something that is not as it was.
type Change struct {
	What string `json:"what"` // "user 3 (anna)"
	Text string `json:"text"`
}

// PolicyIs says what is known of the policy.
type PolicyIs struct {
	From     string   `json:"from"` // "database", a file, or empty: there is none
	Bytes    int      `json:"bytes"`
	Faults   []string `json:"faults"`   // why Skein cannot use it; then it must be mended first
	Warnings []string `json:"warnings"` // what Skein reads otherwise
	// Access is who gains or loses what with Skein, because headscale read the policy otherwise; MoreAccess is how many further such
	// changes there are, -1 if they are too many to be counted.
	Access     []string `json:"access"`
	MoreAccess int      `json:"moreAccess"`
}

func (r *Report) changed(what, format string, args ...any) {
	r.Changes = append(r.Changes, Change{what, fmt.Sprintf(format, args...)})
}

func (r *Report) skipped(what, format string, args ...any) {
	r.Skipped = append(r.Skipped, Change{what, fmt.Sprintf(format, args...)})
}

func (r *Report) note(format string, args ...any) {
	r.Notes = append(r.Notes, fmt.Sprintf(format, args...))
}

// finish sorts what was collected and fills in the counters of ids.
func (p *Plan) finish() {
	slices.SortFunc(p.Users, func(a, b *tailnet.User) int { return cmp.Compare(a.ID, b.ID) })
	slices.SortFunc(p.Nodes, func(a, b *tailnet.Node) int { return cmp.Compare(a.ID, b.ID) })
	slices.SortFunc(p.PreAuthKeys, func(a, b *tailnet.PreAuthKey) int { return cmp.Compare(a.ID, b.ID) })
	p.Report.Users.Taken, p.Report.Nodes.Taken, p.Report.PreAuthKeys.Taken = len(p.Users), len(p.Nodes), len(p.PreAuthKeys)
	slices.SortFunc(p.Credentials, func(a, b *tailnet.Credential) int { return cmp.Compare(a.ID, b.ID) })
	for _, c := range p.Credentials {
		if c.Kind == tailnet.APIKey {
			p.Report.APIKeys.Taken++
		} else {
			p.Report.OAuth.Taken++
		}
	}
	for _, list := range []*[]string{&p.Report.Policy.Faults, &p.Report.Policy.Warnings, &p.Report.Policy.Access, &p.Report.Notes} {
		if *list == nil {
			*list = []string{}
		}
	}
	for _, list := range []*[]Change{&p.Report.Changes, &p.Report.Skipped} {
		if *list == nil {
			*list = []Change{}
		}
	}
}
