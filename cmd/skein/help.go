package main

import (
	"strings"

	"github.com/spf13/cobra"
)

// helpWidth is how wide help texts are: a terminal's least width.
const helpWidth = 80

// longTexts describes commands at length that have no description beside their code, because one sentence says it, and nouns as a
// whole.
var longTexts = map[string]string{
	"admins": `People who sign in on the web pages of the server without an identity provider, by password or passkey. What they may do there follows
from the role of their namespace.`,
	"admins list": `Show who can sign in on the web pages without an identity provider, how, and when they did so last.`,
	"admins reset": `Take password, passkeys and sessions of a namespace away, and print an address where its owner sets up a way to sign in anew. Its role
and its nodes stay.`,
	"apikeys": `Keys with which programs, and this command line from elsewhere (--server), use the API. A key may do what its scopes and the role of
its namespace allow; docs/access.md has the table.`,
	"audit":     `The audit log: who changed what, when, from where, and what was before. It is kept for audit.retention.`,
	"auth":      `SSH sessions that the policy lets begin only after somebody has confirmed them ("action": "check").`,
	"auth deny": `End an SSH session that waits to be confirmed. Whoever asked for it is told so.`,
	"cluster":   `Servers that share one PostgreSQL database. Clients may be on any of them, and go to another one when theirs is gone.`,
	"config":    `The configuration that "skein serve" would use: checked, or shown with where each setting comes from. No server has to run.`,
	"config print": `Show every setting that is in force, and whether it comes from a flag, the environment, the file or is the default. Secrets are left
out.`,
	"db":    `The server's database, without a running server.`,
	"debug": `What the server tells clients. For everybody else there are status, events and doctor.`,
	"derp":  `The relays that clients are told of: this server's own, and those of derp.paths and derp.urls.`,
	"derp map": `Show the relays that clients are told of now. Clients choose the nearest one as their home, where others reach them before there is a
direct path.`,
	"dns": `Names: MagicDNS, nameservers, search domains and records. What is set here takes the place of the configuration's; running clients
know within a moment.`,
	"dns get":            `Show the DNS settings that clients are given, and where each part comes from: the configuration, a file, or "skein dns set".`,
	"dns records":        `Names with addresses that all nodes can look up, beside those of the nodes themselves.`,
	"dns records add":    `Add a name with an IPv4 or IPv6 address. One name may have several: add it again with another address.`,
	"dns records delete": `Delete a name with all its addresses, or one of them. Records of the configuration and of files stay: they are changed there.`,
	"dns records list":   `Show all records, and whether they come from the configuration, a file, or "skein dns records add".`,
	"import":             `Bring a tailnet from elsewhere: a headscale server's data, or what can be read from Tailscale's own service.`,
	"namespaces": `Namespaces, which are the users: who owns nodes. A namespace isolates nothing by itself; the policy says who reaches whom. Users who
sign in by an identity provider get theirs by themselves.`,
	"namespaces approve": `Let a user take part who signed in and waits for approval (user approval is a setting: skein settings). Its nodes take part at once.`,
	"namespaces delete":  `Delete a namespace with its pre-auth keys and API keys. It must not own nodes: move or delete them first.`,
	"namespaces list":    `Show all namespaces with their roles.`,
	"namespaces rename":  `Give a namespace another name. Its nodes stay; a policy that names it must be changed as well.`,
	"namespaces restore": `Take a suspension back: the namespace's nodes take part again at once.`,
	"namespaces show":    `Show everything about one namespace. "skein nodes list -n NAME" shows its nodes.`,
	"namespaces suspend": `Cut the nodes of a namespace off from all others at once, and let nobody join or sign in for it, until "skein namespaces restore".`,
	"nodes": `Machines that have joined. A node is named by its id, its name, an address, or its stable id; an id wins over a name that looks like
one.`,
	"nodes delete": `Delete nodes. They are gone for all others at once; their machines have to log in again, as new nodes with new addresses.`,
	"nodes routes": `Show the routes of a node, as "skein routes list -i NODE" does.`,
	"nodes show":   `Show everything about one node.`,
	"oauth-clients": `OAuth clients and federated identities, for programs: they get access tokens that live for an hour. Tailscale's GitHub action,
Kubernetes operator and "tailscale up" join with the secret of one.`,
	"oauth-clients delete": `Delete a client for good. Its tokens end at once; nodes that joined with them stay.`,
	"oauth-clients list":   `Show OAuth clients and federated identities, and when they were used last. Secrets cannot be shown again.`,
	"oauth-clients revoke": `End a client and its tokens at once. It stays in the list, for whoever wonders later.`,
	"policy": `Who reaches what: access rules, tests, groups, tags and more in HuJSON. Without a policy everybody reaches everybody. Each change is a
version, and can be taken back.`,
	"policy history":     `Show the versions of the policy, the newest first: when they were set, by whom, and why. "skein policy rollback" goes back to one.`,
	"preauthkeys":        `Keys with which machines join without a person: tailscale up --login-server URL --auth-key KEY.`,
	"preauthkeys delete": `Delete a key. Nodes that joined with it stay.`,
	"preauthkeys expire": `End a key, so that nobody joins with it any more. Nodes that joined with it stay; the key stays in the list.`,
	"routes": `Networks behind nodes, and exit nodes. A node offers routes (tailscale set --advertise-routes); they count once they are enabled here,
or by autoApprovers in the policy.`,
	"routes list":      `Show the routes that nodes offer and those that are enabled, for all nodes or for one, and which node carries each now.`,
	"services":         `Services: names with addresses of their own, which several nodes host. Clients are sent to one of them, and to another when that one fails.`,
	"services approve": `Let a node host a service. It does so once it offers it: tailscale serve --service=svc:NAME …`,
	"services delete":  `Delete a service. Its name and addresses are gone for clients at once.`,
	"services get":     `Show which nodes offer a service, which of them may host it, and which one clients are sent to.`,
	"services list":    `Show all services with their names, addresses, ports and hosts.`,
	"services refuse":  `Let a node not host a service any more. Clients are sent to another host at once.`,
	"settings":         `Settings of the tailnet that administrators change while it runs: approval of nodes and users, how long keys live.`,
	"settings get":     `Show the settings of the tailnet.`,
	"version":          `Show the version of this program. That of the running server is in "skein status".`,
	"webhooks":         `Other programs that are told what happens: events are posted to their URLs, signed as Tailscale signs them.`,
	"webhooks delete":  `Delete a webhook. What it has not been told yet is not told any more.`,
	"webhooks list":    `Show webhooks, and how they do: what was delivered last, and what has failed since.`,
	"webhooks rotate":  `Give a webhook a new secret and print it, this once. The old one ends at once.`,
	"webhooks set":     `Change the URL, the events or the shape of the messages of a webhook. What is not named stays.`,
	"webhooks test":    `Send a test event to a webhook now, and tell what its receiver answered.`,
}

// explain gives cmd and all below it their descriptions, in lines that fit.
func explain(cmd *cobra.Command) {
	if cmd.Long == "" {
		_, path, _ := strings.Cut(cmd.CommandPath(), " ")
		cmd.Long = longTexts[path]
	}
	cmd.Long = reflow(cmd.Long, helpWidth)
	for _, sub := range cmd.Commands() {
		explain(sub)
	}
}

// reflow breaks the paragraphs of text anew, at width. Lines that are indented stay as they are, and part paragraphs.
func reflow(text string, width int) string {
	var out, para []string
	flush := func() {
		line := ""
		for _, word := range para {
			switch {
			case line == "":
				line = word
			case len([]rune(line))+1+len([]rune(word)) > width:
				out = append(out, line)
				line = word
			default:
				line += " " + word
			}
		}
		if line != "" {
			out = append(out, line)
		}
		para = nil
	}
	for _, line := range strings.Split(text, "\n") {
		if line == "" || line[0] == ' ' {
			flush()
			out = append(out, line)
			continue
		}
		para = append(para, strings.Fields(line)...)
	}
	flush()
	return strings.TrimRight(strings.Join(out, "\n"), "\n")
}
