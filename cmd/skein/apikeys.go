package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/skein-vpn/skein/api"
	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/config"
)

func newAPIKeysCommand(c *cli) *cobra.Command {
	return group("apikeys", []string{"apikey", "api-keys"}, "Keys that let programs use the API",
		`  skein apikeys create --description "Headplane"
  SKEIN_API_KEY=$(skein apikeys create) skein --server https://skein.example.com nodes list
  skein apikeys create --namespace junyao --scopes devices:core:read --expiration 1y
  skein apikeys list`,
		c.apiKeysCreate(), c.apiKeysList(),
		c.apiKeyEnd("expire KEY", "End a key as if its time were over", "The key has expired.", nil, (*api.Client).ExpireAPIKey),
		c.apiKeyEnd("revoke KEY", "End a key for good; it stays in the list", "The key is revoked.", nil, (*api.Client).RevokeAPIKey),
		c.apiKeyEnd("delete KEY", "Remove a key, which ends with that", "The key is deleted.", []string{"rm", "remove"}, (*api.Client).DeleteAPIKey))
}

// expirationFlag adds --expiration with a default; the func it returns is what to send: nil for the default.
func expirationFlag(cmd *cobra.Command, normal time.Duration) func() (*time.Time, error) {
	var text string
	cmd.Flags().StringVarP(&text, "expiration", "e", config.Duration(normal).String(), "how long it lives (24h, 90d), until `WHEN` (2027-01-31), or \"never\"")
	return func() (*time.Time, error) {
		if !cmd.Flags().Changed("expiration") {
			return nil, nil
		}
		if text == "never" || text == "0" {
			return &time.Time{}, nil
		}
		t, err := parseWhen(text)
		if err != nil {
			return nil, usagef("--expiration: %v", err)
		}
		return &t, nil
	}
}

// scopesFlag adds --scopes.
func scopesFlag(cmd *cobra.Command, scopes *[]string, what string) {
	cmd.Flags().StringSliceVar(scopes, "scopes", nil, what)
	must(cmd.RegisterFlagCompletionFunc("scopes", cobra.FixedCompletions(auth.Scopes(), cobra.ShellCompDirectiveNoFileComp)))
}

func (c *cli) apiKeysCreate() *cobra.Command {
	var req api.CreateAPIKeyRequest
	var owner string
	cmd := &cobra.Command{
		Use: "create", Aliases: []string{"new", "add"}, Short: "Make a key and print it, this once",
		Long: `Make a key and print it. It is shown this once and can not be told again. Whoever has it may do what its scopes say, but never
more than the role of its user allows at the time; without --namespace it acts for whom you act, on the server itself for the
administrator. Scopes are ` + strings.Join(auth.Scopes(), ", ") + `.`,
		Example: `  skein apikeys create --description "backup script" --scopes all:read --expiration 1y
  skein apikeys create --namespace junyao`,
		Args: wantArgs(), ValidArgsFunction: cobra.NoFileCompletions,
	}
	expiration := expirationFlag(cmd, api.DefaultAPIKeyLife)
	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		if req.Expiration, err = expiration(); err != nil {
			return err
		}
		req.User = api.Ref(owner)
		cl, err := c.client()
		if err != nil {
			return err
		}
		k, err := cl.CreateAPIKey(cmd.Context(), req)
		if err != nil {
			return err
		}
		if c.output == "" {
			_, err := fmt.Fprintln(c.out, k.APIKey)
			return err
		}
		return c.print(k, nil)
	}
	c.addNamespaceFlag(cmd, &owner, "`NAMESPACE` for whom the key acts")
	cmd.Flags().StringVar(&req.Description, "description", "", "`TEXT` for people to read")
	scopesFlag(cmd, &req.Scopes, "`SCOPE`s, separated by commas or repeated (default: all that you have)")
	return cmd
}

func (c *cli) apiKeysList() *cobra.Command {
	var f api.APIKeyFilter
	var namespace string
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls", "show"}, Short: "Show all keys, or some",
		Long: `Show all keys, ended ones among them, or those that are all that the flags say. Of a key only its prefix is known; it names the
key in other commands.`,
		Example: "  skein apikeys list\n  skein apikeys list --state expired",
		Args:    wantArgs(), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			f.User = api.Ref(namespace)
			keys, err := cl.ListAPIKeys(cmd.Context(), f)
			if err != nil {
				return err
			}
			t := &table{
				head:  []string{"Prefix", "User", "Scopes", "Expiration", "Created", "Last used", "Usable", "Description"},
				spare: []string{"Created", "Last used", "User"},
				hint:  "There are no API keys. Make one: skein apikeys create",
			}
			for _, k := range keys {
				t.add(k.Prefix, k.Namespace(), strings.Join(k.Scopes, ", "), clock(k.Expiration, "never"), clock(k.CreatedAt, ""),
					clock(k.LastSeen, "never"), yesNo(k.Usable), k.Description)
			}
			return c.print(keys, filtered(cmd, t))
		},
	}
	choiceFlag(cmd, &f.State, "state", "only keys in this `STATE`", []string{"usable", "expired", "revoked"})
	c.addNamespaceFlag(cmd, &namespace, "only the keys of this `NAMESPACE`")
	return cmd
}

// apiKeyEnd is a command that ends one key.
func (c *cli) apiKeyEnd(use, short, done string, aliases []string, end func(*api.Client, context.Context, string) error) *cobra.Command {
	verb, _, _ := strings.Cut(use, " ")
	var prefix string
	cmd := &cobra.Command{
		Use: use, Aliases: aliases, Short: short, Example: "  skein apikeys " + verb + " k3aVhUE1Cbfd",
		Long:              short + ". KEY is its prefix as \"list\" shows it, or the key itself.",
		ValidArgsFunction: c.completeAPIKeys,
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("prefix") {
				args = append([]string{prefix}, args...)
			}
			if err := wantArgs("KEY")(cmd, args); err != nil {
				return err
			}
			cl, err := c.client()
			if err != nil {
				return err
			}
			if verb != "expire" {
				if err := c.confirm(cmd, fmt.Sprintf("%s this key?", strings.ToUpper(verb[:1])+verb[1:])); err != nil {
					return err
				}
			}
			if err := end(cl, cmd.Context(), args[0]); err != nil {
				return err
			}
			return c.done("%s", done)
		},
	}
	cmd.Flags().StringVarP(&prefix, "prefix", "p", "", "the `KEY`, as \"list\" shows it")
	return cmd
}
