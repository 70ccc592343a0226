package sim

import (
	"fmt"
	"slices"
	"strings"
)

// Layout is who the clients are and which policy is in force.
type Layout struct {
	Name  string
	Users []string // namespaces
	// Owner is whom the client with this index belongs to: a user, or tags.
	Owner func(i int) Owner
	// Policy is the policy with one of its rules changed n times; "" for n = 0 is none.
	Policy func(n int) string
	// Partial: the policy keeps clients from each other.
	Partial bool
}

// Owner is a user, or else tags.
type Owner struct {
	User string
	Tag  string
}

// The layouts.
const (
	LayoutOpen    = "open"    // one user and no policy: everybody sees everybody
	LayoutSelf    = "self"    // users who see their own devices only (autogroup:self)
	LayoutCompany = "company" // a policy as a company has it
	LayoutTeams   = "teams"   // teams of 101: everybody sees 100 others
)

// Layouts are the names of all layouts.
var Layouts = []string{LayoutOpen, LayoutSelf, LayoutCompany, LayoutTeams}

// Sizes of the layouts.
const (
	userDevices   = 3   // devices of a user, until all have so many; then they get more
	serverOf      = 10  // every so manieth client is a server
	companyGroups = 50  // a user is in three
	companyTags   = 30  // a server has one; a group reaches three
	teamSize      = 101 // members of a team
)

// NewLayout makes a layout for so many clients; users is the number of users that self and company have.
func NewLayout(name string, clients, users int) (*Layout, error) {
	switch name {
	case "", LayoutOpen:
		return &Layout{
			Name: LayoutOpen, Users: []string{"sim"}, Owner: func(int) Owner { return Owner{User: "sim"} },
			Policy: func(n int) string {
				if n == 0 {
					return ""
				}
				return fmt.Sprintf(`{"acls": [
	{"action": "accept", "src": ["*"], "dst": ["*:*"]},
	{"action": "accept", "src": ["sim@"], "dst": ["*:%d"]},
]}`, 8000+n)
			},
		}, nil
	case LayoutSelf:
		return &Layout{
			Name: name, Users: companyUsers(users), Owner: func(i int) Owner { return Owner{User: userName(i / userDevices % users)} },
			Policy: func(n int) string {
				ports := "*"
				if n > 0 {
					ports = fmt.Sprintf("1-%d", 65535-n)
				}
				return fmt.Sprintf(`{"acls": [{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:%s"]}]}`, ports)
			},
			Partial: true,
		}, nil
	case LayoutCompany:
		return &Layout{
			Name: name, Users: companyUsers(users), Owner: func(i int) Owner { return companyOwner(i, users) },
			Policy: func(n int) string { return companyPolicy(n, users) }, Partial: true,
		}, nil
	case LayoutTeams:
		return &Layout{
			Name: name, Users: []string{"sim"}, Owner: func(i int) Owner { return Owner{Tag: fmt.Sprintf("tag:team%d", i/teamSize)} },
			Policy: func(n int) string { return teamsPolicy(n, clients) }, Partial: true,
		}, nil
	}
	return nil, fmt.Errorf("there is no layout %q; there are: %s", name, strings.Join(Layouts, ", "))
}

func userName(i int) string { return fmt.Sprintf("user%d", i) }

func companyUsers(n int) (out []string) {
	for i := range n {
		out = append(out, userName(i))
	}
	return out
}

// companyOwner: of ten clients one is a server, with one of the tags; the others are devices of users.
func companyOwner(i, users int) Owner {
	if i%serverOf == serverOf-1 {
		return Owner{Tag: companyTag(i / serverOf)}
	}
	device := i - i/serverOf
	return Owner{User: userName(device / userDevices % users)}
}

func companyTag(i int) string { return fmt.Sprintf("tag:s%d", i%companyTags) }

// companyPolicy: users reach their own devices and, by their groups, some of the servers; servers reach the next kind of
// servers; the first group administers them all. Change n moves a port of one rule.
func companyPolicy(n, users int) string {
	members := make([][]string, companyGroups)
	for u := range users {
		for _, g := range []int{u, 7*u + 3, u/companyGroups + 11} {
			if g %= companyGroups; !slices.Contains(members[g], userName(u)+"@") {
				members[g] = append(members[g], userName(u)+"@")
			}
		}
	}
	var b strings.Builder
	list := func(name string, items []string) {
		fmt.Fprintf(&b, "\t\t%q: [", name)
		for _, item := range items {
			fmt.Fprintf(&b, "%q, ", item)
		}
		b.WriteString("],\n")
	}
	b.WriteString("{\n\t\"groups\": {\n")
	for g, m := range members {
		list(fmt.Sprintf("group:g%d", g), m)
	}
	b.WriteString("\t},\n\t\"tagOwners\": {\n")
	for t := range companyTags {
		list(companyTag(t), []string{"group:g0"})
	}
	b.WriteString("\t},\n\t\"acls\": [\n")
	rule := func(src, dst string) {
		fmt.Fprintf(&b, "\t\t{\"action\": \"accept\", \"src\": [%q], \"dst\": [%q]},\n", src, dst)
	}
	rule("autogroup:member", "autogroup:self:*")
	for t := range companyTags {
		rule("group:g0", companyTag(t)+":*")
		port := 5432
		if t == 0 {
			port += n
		}
		rule(companyTag(t), fmt.Sprintf("%s:%d", companyTag(t+1), port))
	}
	for g := range companyGroups {
		rule(fmt.Sprintf("group:g%d", g), companyTag(g)+":22,80")
		rule(fmt.Sprintf("group:g%d", g), companyTag(7*g+1)+":443")
		rule(fmt.Sprintf("group:g%d", g), companyTag(11*g+2)+":3306,8080")
	}
	b.WriteString("\t],\n\t\"ssh\": [\n" +
		"\t\t{\"action\": \"accept\", \"src\": [\"autogroup:member\"], \"dst\": [\"autogroup:self\"], \"users\": [\"autogroup:nonroot\"]},\n")
	for t := range companyTags {
		fmt.Fprintf(&b, "\t\t{\"action\": \"accept\", \"src\": [\"group:g0\"], \"dst\": [%q], \"users\": [\"root\"]},\n", companyTag(t))
	}
	b.WriteString("\t],\n}\n")
	return b.String()
}

// teamsPolicy: the members of a team reach each other. Change n is one of the first team's rule.
func teamsPolicy(n, clients int) string {
	var b strings.Builder
	teams := (clients-1)/teamSize + 1
	b.WriteString("{\n\t\"tagOwners\": {\n")
	for t := range teams {
		fmt.Fprintf(&b, "\t\t\"tag:team%d\": [],\n", t)
	}
	b.WriteString("\t},\n\t\"acls\": [\n")
	for t := range teams {
		ports := "*"
		if t == 0 && n > 0 {
			ports = fmt.Sprintf("1-%d", 65535-n)
		}
		fmt.Fprintf(&b, "\t\t{\"action\": \"accept\", \"src\": [\"tag:team%d\"], \"dst\": [\"tag:team%d:%s\"]},\n", t, t, ports)
	}
	b.WriteString("\t],\n}\n")
	return b.String()
}
