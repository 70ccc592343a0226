package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/skein-vpn/skein/api"
)

func newOAuthClientsCommand(c *cli) *cobra.Command {
	return group("oauth-clients", []string{"oauth-client", "oauthclients"}, "What gets access tokens: OAuth clients and federated identities",
		`  skein oauth-clients create --scopes auth_keys --tags tag:ci
  skein oauth-clients create --scopes auth_keys --tags tag:ci --issuer https://token.actions.githubusercontent.com --subject "repo:me/app:*"
  skein oauth-clients list`,
		c.oauthClientsCreate(), c.oauthClientsList(),
		c.oauthClientEnd("revoke CLIENT", "End a client and its tokens for good; it stays in the list", "The client is revoked.", nil, (*api.Client).RevokeOAuthClient),
		c.oauthClientEnd("delete CLIENT", "Remove a client, which ends with that, as do its tokens", "The client is deleted.", []string{"rm", "remove"}, (*api.Client).DeleteOAuthClient))
}

func (c *cli) oauthClientsCreate() *cobra.Command {
	var req api.CreateOAuthClientRequest
	cmd := &cobra.Command{
		Use: "create --scopes SCOPES", Aliases: []string{"new", "add"}, Short: "Make an OAuth client and print its secret, this once",
		Long: `Make an OAuth client and print its secret, this once. With the secret a program gets access tokens that live for an hour;
"tailscale up --auth-key SECRET" knows how. A client with the scope auth_keys or devices:core gives nodes tags, so it must have tags.

With --issuer it is a federated identity: it has no secret, and a program gets access tokens for a token that the issuer has
signed, such as a CI job's. Then its id is printed, which is the client id.`,
		Example: `  skein oauth-clients create --scopes auth_keys --tags tag:ci --description "CI"
  skein oauth-clients create --scopes all:read --description "exporter"
  skein oauth-clients create --scopes auth_keys --tags tag:ci --issuer https://token.actions.githubusercontent.com --subject "repo:me/app:*" --claim ref=refs/heads/main`,
		Args: wantArgs(), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(req.Scopes) == 0 {
				return usagef("%q needs --scopes", cmd.CommandPath())
			}
			cl, err := c.client()
			if err != nil {
				return err
			}
			k, err := cl.CreateOAuthClient(cmd.Context(), req)
			if err != nil {
				return err
			}
			if c.output != "" {
				return c.print(k, nil)
			}
			if k.Secret == "" {
				fmt.Fprintf(c.errOut, "The issuer's tokens must be for the audience %s.\n", k.Audience)
				_, err = fmt.Fprintln(c.out, k.ID)
				return err
			}
			_, err = fmt.Fprintln(c.out, k.Secret)
			return err
		},
	}
	f := cmd.Flags()
	scopesFlag(cmd, &req.Scopes, "`SCOPE`s that it has, separated by commas or repeated")
	f.StringSliceVar(&req.Tags, "tags", nil, "`TAG`s that it may give to nodes, separated by commas or repeated")
	f.StringVar(&req.Description, "description", "", "`TEXT` for people to read")
	f.StringVar(&req.Issuer, "issuer", "", "`URL` of an issuer whose tokens are good enough, instead of a secret")
	f.StringVar(&req.Subject, "subject", "", "`TEXT` that the issuer's tokens must have as their subject; * stands for any text")
	f.StringVar(&req.Audience, "audience", "", "`TEXT` that the issuer's tokens must have as their audience (default: made up)")
	f.StringToStringVar(&req.Claims, "claim", nil, "further `NAME=TEXT` that the issuer's tokens must have; * stands for any text")
	return cmd
}

func (c *cli) oauthClientsList() *cobra.Command {
	var f api.OAuthClientFilter
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls", "show"}, Short: "Show all clients, or some",
		Example: "  skein oauth-clients list",
		Args:    wantArgs(), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			clients, err := cl.ListOAuthClients(cmd.Context(), f)
			if err != nil {
				return err
			}
			t := &table{
				head:  []string{"ID", "Kind", "Scopes", "Tags", "Issuer", "Created", "Last used", "Usable", "Description"},
				spare: []string{"Created", "Kind", "Issuer", "Last used"},
				hint:  "There are no OAuth clients. Make one: skein oauth-clients create --scopes SCOPES",
			}
			for _, k := range clients {
				t.add(k.ID, k.Kind, strings.Join(k.Scopes, ", "), strings.Join(k.Tags, ", "), k.Issuer, clock(k.CreatedAt, ""),
					clock(k.LastSeen, "never"), yesNo(k.Usable), k.Description)
			}
			return c.print(clients, filtered(cmd, t))
		},
	}
	choiceFlag(cmd, &f.Kind, "kind", "only clients of this `KIND`", []string{"client", "federated"})
	choiceFlag(cmd, &f.State, "state", "only clients in this `STATE`", []string{"usable", "expired", "revoked"})
	return cmd
}

// oauthClientEnd is a command that ends one client.
func (c *cli) oauthClientEnd(use, short, done string, aliases []string, end func(*api.Client, context.Context, string) error) *cobra.Command {
	verb, _, _ := strings.Cut(use, " ")
	return &cobra.Command{
		Use: use, Aliases: aliases, Short: short, Example: "  skein oauth-clients " + verb + " k3aVhUE1Cbfd",
		Args: wantArgs("CLIENT"), ValidArgsFunction: c.completeOAuthClients,
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			if err := c.confirm(cmd, fmt.Sprintf("%s this client?", strings.ToUpper(verb[:1])+verb[1:])); err != nil {
				return err
			}
			if err := end(cl, cmd.Context(), args[0]); err != nil {
				return err
			}
			return c.done("%s", done)
		},
	}
}
