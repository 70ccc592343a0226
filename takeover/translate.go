package takeover

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/crypto/bcrypt"

	"github.com/skein-vpn/skein/policy"
	"github.com/skein-vpn/skein/tailnet"
)

// PolicyFile is a policy that does not come from the database.
type PolicyFile struct {
	Name string
	Text []byte
}

// Translate reads the database and makes of it what Skein is to hold. A policy file takes the place of the database's policy; nil: the
// database's newest. A policy that Skein cannot use is no error but Plan.Report.Policy.Faults.
func (s *Source) Translate(ctx context.Context, file *PolicyFile) (*Plan, error) {
	t := &translation{plan: &Plan{Presence: map[tailnet.NodeID]tailnet.Presence{}}, users: map[int64]*tailnet.User{}, keys: map[int64]row{}}
	t.report = &t.plan.Report
	t.report.Source, t.report.Headscale = s.name, s.generation()
	var err error
	read := func(table string) (rows []row) {
		if err == nil {
			rows, err = s.rows(ctx, table)
		}
		return rows
	}
	users, nodes, keys, apiKeys := read("users"), read("nodes"), read("pre_auth_keys"), read("api_keys")
	routes, policies, migrations, clients := read("routes"), read("policies"), read("migrations"), read("oauth_clients")
	keyTags := read("pre_auth_key_acl_tags")
	if err != nil {
		return nil, err
	}
	t.plan.LastUser = tailnet.UserID(s.lastID(ctx, "users"))
	t.plan.LastNode = tailnet.NodeID(s.lastID(ctx, "nodes"))
	t.plan.LastPreKey = tailnet.PreAuthKeyID(s.lastID(ctx, "pre_auth_keys"))

	t.takeUsers(users)
	t.takePolicy(policies, file)
	for _, r := range keys {
		t.keys[r.id("id")] = r
	}
	giveTags(t.keys, keyTags)
	t.wishes = !slices.ContainsFunc(migrations, func(r row) bool { return r["id"] == tagsMigrated })
	t.takeNodes(nodes, approvedRoutes(routes))
	t.compareAccess()
	t.takePreAuthKeys(keys)
	t.takeAPIKeys(apiKeys)
	t.takeClients(clients)
	t.plan.finish()
	return t.plan, nil
}

// giveTags puts tags of pre-auth keys, which were rows of their own until 0.23, where they stand since: into a list in JSON.
func giveTags(keys map[int64]row, tags []row) {
	byKey := map[int64][]string{}
	for _, r := range tags {
		id := r.id("pre_auth_key_id")
		byKey[id] = append(byKey[id], r["tag"])
	}
	for id, list := range byKey {
		if k := keys[id]; k != nil && k["tags"] == "" {
			b, _ := json.Marshal(list) // texts always can be
			k["tags"] = string(b)
		}
	}
}

// tagsMigrated is headscale's migration (0.28) that made tags of nodes out of those that they ask for.
const tagsMigrated = "202601121700-migrate-hostinfo-request-tags"

// generation is the version of headscale that has such a schema.
func (s *Source) generation() string {
	switch {
	case s.has("oauth_clients", ""):
		return "0.30"
	case s.has("database_versions", ""):
		return "0.29"
	case s.has("nodes", "tags"):
		return "0.28 or 0.29"
	case s.has("pre_auth_keys", "prefix"):
		return "0.27, on the way to 0.28"
	case s.has("nodes", "approved_routes"):
		return "0.26 or 0.27"
	}
	return "0.23 to 0.25"
}

// translation is one run of Translate.
type translation struct {
	plan   *Plan
	report *Report
	users  map[int64]*tailnet.User // by headscale's id, which is ours
	keys   map[int64]row           // pre-auth keys, also those that are not taken over
	rules  *policy.Compiled        // nil: no policy, or none that can be used
	wishes bool                    // tags that a node asks for are not among its tags yet
	orphan *tailnet.User           // owner of nodes that have lost theirs; nil: none needed
}

// maxID is what clients can count to (tailcfg.NodeID in JavaScript's numbers); ids of real installations are far below.
const maxID = 1<<53 - 1

var notInNames = regexp.MustCompile(`[^a-z0-9._@-]+`)

// takeUsers makes users. Names are unique here; headscale lets users of different providers share one, or have none.
func (t *translation) takeUsers(rows []row) {
	taken := map[string]bool{tailnet.TaggedDevicesName: true}
	var later []*tailnet.User // those that need another name take it after all who keep theirs
	var was []string
	for _, r := range rows {
		id := r.id("id")
		what := fmt.Sprintf("user %s (%s)", shown(r["id"]), shown(r["name"]))
		t.plan.LastUser = max(t.plan.LastUser, tailnet.UserID(min(id, maxID)))
		if r.deleted() {
			continue
		}
		t.report.Users.Found++
		if id == 0 || id > maxID || tailnet.UserID(id) == tailnet.TaggedDevices {
			t.report.skipped(what, "its id cannot be used")
			continue
		}
		u := &tailnet.User{
			ID: tailnet.UserID(id), Name: r["name"], DisplayName: tailnet.CleanText(r["display_name"]), Email: tailnet.CleanText(r["email"]),
		}
		u.Created, _ = r.time("created_at")
		t.identify(u, r, what)
		t.users[id] = u
		t.plan.Users = append(t.plan.Users, u)
		if tailnet.CheckUserName(u.Name) == nil && !taken[u.Name] {
			taken[u.Name] = true
			continue
		}
		later, was = append(later, u), append(was, what)
	}
	for i, u := range later {
		old := u.Name
		u.Name = freeUserName(u, taken)
		taken[u.Name] = true
		t.report.changed(was[i], "is called %s now, because %s; where the policy names it, name it so", u.Name, whyRenamed(old))
	}
}

func whyRenamed(old string) string {
	if err := tailnet.CheckUserName(old); err != nil {
		return err.Error()
	}
	return "another user has that name already"
}

// freeUserName is a name that can be used, as near to what the user was called as possible.
func freeUserName(u *tailnet.User, taken map[string]bool) string {
	base := ""
	local, _, _ := strings.Cut(u.Email, "@")
	for _, try := range []string{u.Name, u.Email, local, u.DisplayName, "user-" + u.ID.String()} {
		base = strings.Trim(notInNames.ReplaceAllString(strings.ToLower(try), "-"), "._-@")
		base = strings.Trim(base[:min(len(base), 100)], "._-@")
		if tailnet.CheckUserName(base) == nil && base != tailnet.TaggedDevicesName {
			break
		}
	}
	for i := 1; ; i++ {
		name := base
		if i > 1 {
			name += "-" + strconv.Itoa(i)
		}
		if !taken[name] {
			return name
		}
	}
}

// owner is the user that owns nodes which have lost theirs.
func (t *translation) owner() *tailnet.User {
	if t.orphan == nil {
		t.plan.LastUser++
		t.orphan = &tailnet.User{ID: t.plan.LastUser}
		taken := map[string]bool{}
		for _, u := range t.plan.Users {
			taken[u.Name] = true
		}
		t.orphan.Name = "without-owner"
		if taken[t.orphan.Name] {
			t.orphan.Name = freeUserName(t.orphan, taken)
		}
		t.plan.Users = append(t.plan.Users, t.orphan)
		t.report.note("The namespace %s is new: it holds nodes whose owner headscale has lost. Move them with \"skein nodes move\".", t.orphan.Name)
	}
	return t.orphan
}

// takePolicy keeps the text and finds out what Skein makes of it.
func (t *translation) takePolicy(rows []row, file *PolicyFile) {
	p := &t.report.Policy
	if file != nil {
		p.From, t.plan.Policy = file.Name, file.Text
	} else {
		newest := int64(-1)
		for _, r := range rows {
			if id := r.id("id"); !r.deleted() && id > newest {
				newest, t.plan.Policy, p.From = id, []byte(r["data"]), "database"
			}
		}
	}
	p.Bytes = len(t.plan.Policy)
	if len(strings.TrimSpace(string(t.plan.Policy))) == 0 {
		t.plan.Policy, p.From = nil, ""
		return
	}
	parsed, err := policy.Parse(t.plan.Policy)
	if err == nil {
		t.rules, err = policy.Compile(parsed, t.plan.Users, nil, policy.Options{})
	}
	if err != nil {
		p.Faults = faults(err)
		return
	}
	for _, w := range parsed.Warnings() {
		p.Warnings = append(p.Warnings, fmt.Sprintf("line %d: %s", w.Line, w.Text))
	}
	for _, e := range t.rules.UnknownUsers() {
		p.Warnings = append(p.Warnings, e.Error())
	}
}

func faults(err error) (out []string) {
	var list policy.Errors
	if !errors.As(err, &list) {
		return []string{err.Error()}
	}
	for _, e := range list {
		out = append(out, e.Error())
	}
	return out
}

// takePreAuthKeys makes pre-auth keys. What was kept in plain text is hashed; a bcrypt hash stays one until the key is used.
func (t *translation) takePreAuthKeys(rows []row) {
	for _, r := range rows {
		id := r.id("id")
		what := "pre-auth key " + shown(r["id"])
		t.report.PreAuthKeys.Found++
		t.plan.LastPreKey = max(t.plan.LastPreKey, tailnet.PreAuthKeyID(min(id, maxID)))
		k := &tailnet.PreAuthKey{ID: tailnet.PreAuthKeyID(id), Reusable: r.flag("reusable"), Ephemeral: r.flag("ephemeral"), Used: r.flag("used")}
		if id == 0 || id > maxID {
			t.report.skipped(what, "its id cannot be used")
			continue
		}
		switch hash := r["hash"]; {
		case r["prefix"] != "" && hash != "":
			if why := badBcrypt(hash); why != "" {
				t.report.skipped(what, "%s", why)
				continue
			}
			k.Prefix, k.Bcrypt = tailnet.ForeignPreAuthKey+tailnet.CleanText(r["prefix"]), []byte(hash)
		case r["key"] != "":
			k.Prefix, k.Hash = tailnet.CleanText(r["key"][:min(len(r["key"]), 8)]), sha256.Sum256([]byte(r["key"]))
		default:
			t.report.skipped(what, "its secret is not there, so nobody can join with it")
			continue
		}
		if !t.keyOwner(k, r, what) {
			continue
		}
		var ok bool
		k.Created, _ = r.time("created_at")
		if k.Expires, ok = r.time("expiration"); !ok {
			k.Revoked = true
			t.report.changed(what, "is revoked, because its expiration %q is not a time", shown(r["expiration"]))
		}
		if at, ok := r.time("revoked"); !ok || !at.IsZero() {
			k.Revoked = true
		}
		t.plan.PreAuthKeys = append(t.plan.PreAuthKeys, k)
	}
}

// keyOwner settles whom nodes belong to that join with k: its tags, or else its user.
func (t *translation) keyOwner(k *tailnet.PreAuthKey, r row, what string) bool {
	tags, ok := r.list("tags")
	if !ok {
		t.report.skipped(what, "its tags cannot be read: %s", shown(r["tags"]))
		return false
	}
	if k.Tags = t.cleanTags(tags, what); len(k.Tags) > 0 {
		return true
	}
	if len(tags) > 0 {
		t.report.skipped(what, "none of its tags can be used")
		return false
	}
	if u := t.users[r.id("user_id")]; u != nil {
		k.User = u.ID
		return true
	}
	t.report.skipped(what, "its user is gone, and it has no tags")
	return false
}

// cleanTags are the tags that can be used, sorted and unique.
func (t *translation) cleanTags(tags []string, what string) (out []string) {
	for _, tag := range tags {
		if err := tailnet.CheckTag(tag); err != nil {
			if low := strings.ToLower(strings.TrimSpace(tag)); tailnet.CheckTag(low) == nil {
				t.report.changed(what, "its tag %s is written %s", shown(tag), low)
				out = append(out, low)
				continue
			}
			t.report.changed(what, "loses a tag: %v", err)
			continue
		}
		out = append(out, tag)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// maxBcryptCost bounds what one check of a key may cost: 14 takes about a second. headscale uses 10.
const maxBcryptCost = 14

// badBcrypt says why a hash is of no use, "" if it is.
func badBcrypt(hash string) string {
	cost, err := bcrypt.Cost([]byte(hash))
	switch {
	case err != nil || len(hash) != 60:
		return "its hash is not bcrypt"
	case cost > maxBcryptCost:
		return fmt.Sprintf("its hash has a cost of %d, which would take too long to check (at most %d)", cost, maxBcryptCost)
	}
	return ""
}

// shown is foreign text for a message.
func shown(s string) string {
	s = tailnet.CleanText(s)
	if len(s) > 60 {
		s = strings.ToValidUTF8(s[:60], "") + "…"
	}
	return s
}

// recent is how shortly before the database's newest sign of life a node must have been seen to count as online.
const recent = 10 * time.Minute

// identify says who the user is at the identity provider.
func (t *translation) identify(u *tailnet.User, r row, what string) {
	id := tailnet.CleanProviderID(r["provider_identifier"])
	if id == "" {
		return
	}
	for _, o := range t.plan.Users {
		if o.ProviderID == id {
			t.report.changed(what, "cannot sign in with its identity provider, because user %d (%s) is the same person there", o.ID, o.Name)
			return
		}
	}
	u.Provider, u.ProviderID = "oidc", id
	if p := tailnet.CleanText(r["profile_pic_url"]); strings.HasPrefix(p, "https://") {
		u.Picture = p
	}
}
