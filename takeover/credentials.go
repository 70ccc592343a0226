package takeover

import (
	"slices"
	"strings"

	"github.com/skein-vpn/skein/tailnet"
)

// all is the scope that lets a credential do everything (auth.ScopeAll), which is what headscale's API keys may.
const all = "all"

// takeAPIKeys makes API keys: bcrypt hashes of what follows the prefix, in either generation of keys.
func (t *translation) takeAPIKeys(rows []row) {
	for _, r := range rows {
		t.report.APIKeys.Found++
		c := &tailnet.Credential{Kind: tailnet.APIKey, ID: r["prefix"], HashKind: tailnet.HashBcrypt, Hash: []byte(r["hash"]), Scopes: []string{all}}
		what := "API key " + shown(r["id"]) + " (" + shown(r["prefix"]) + ")"
		if why := badBcrypt(r["hash"]); why != "" {
			t.report.skipped(what, "%s", why)
			continue
		}
		var ok bool
		if c.Expires, ok = r.time("expiration"); !ok {
			t.report.skipped(what, "its expiration %q is not a time", shown(r["expiration"]))
			continue
		}
		t.credential(c, r, what)
	}
}

// takeClients makes OAuth clients. Access tokens, which live for an hour, are left behind.
func (t *translation) takeClients(rows []row) {
	for _, r := range rows {
		t.report.OAuth.Found++
		what := "OAuth client " + shown(r["client_id"])
		c := &tailnet.Credential{Kind: tailnet.OAuthClient, ID: r["client_id"], Hash: []byte(r["secret_hash"]), HashKind: tailnet.HashArgon2}
		if !strings.HasPrefix(r["secret_hash"], "$argon2id$") || len(r["secret_hash"]) > 200 {
			c.HashKind = tailnet.HashBcrypt
			if why := badBcrypt(r["secret_hash"]); why != "" {
				t.report.skipped(what, "%s", why)
				continue
			}
		}
		scopes, ok := r.list("scopes")
		if !ok { // as OAuth writes them
			scopes = strings.Fields(r["scopes"])
		}
		slices.Sort(scopes)
		c.Scopes = slices.Compact(scopes)
		tags, ok := r.list("tags")
		if !ok {
			t.report.skipped(what, "its tags cannot be read: %s", shown(r["tags"]))
			continue
		}
		c.Tags, c.Description = t.cleanTags(tags, what), tailnet.CleanText(r["description"])
		if at, ok := r.time("revoked"); !ok || !at.IsZero() {
			t.report.skipped(what, "it has been revoked")
			continue
		}
		t.credential(c, r, what)
	}
}

// credential adds c, which belongs to nobody: headscale's credentials act for the server's administrator, whoever made them.
func (t *translation) credential(c *tailnet.Credential, r row, what string) {
	if c.ID == "" || tailnet.CleanText(c.ID) != c.ID || len(c.ID) > 64 {
		t.report.skipped(what, "it has no prefix to find it by")
		return
	}
	if slices.ContainsFunc(t.plan.Credentials, func(o *tailnet.Credential) bool { return o.ID == c.ID }) {
		t.report.skipped(what, "another credential has the same prefix")
		return
	}
	c.Created, _ = r.time("created_at")
	t.plan.Credentials = append(t.plan.Credentials, c)
}
