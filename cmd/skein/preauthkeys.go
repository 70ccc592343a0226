package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/skein-vpn/skein/api"
	"github.com/skein-vpn/skein/config"
)

func newPreAuthKeysCommand(c *cli) *cobra.Command {
	return group("preauthkeys", []string{"preauthkey", "authkeys", "authkey", "pre-auth-keys"}, "Keys that let machines join without a person",
		`  skein preauthkeys create -n junyao
  tailscale up --login-server URL --auth-key $(skein preauthkeys create -n junyao)
  skein preauthkeys list`,
		c.keysCreate(), c.keysList(), c.keysExpire(), c.keysDelete())
}

func (c *cli) keysCreate() *cobra.Command {
	var req api.CreatePreAuthKeyRequest
	var namespace, expiration, life string
	cmd := &cobra.Command{
		Use: "create --namespace NAMESPACE", Aliases: []string{"new", "add"}, Short: "Make a key and print it, this once",
		Long: `Make a key and print it. It is shown this once and can not be told again. Without --reusable one machine can join with it.
The nodes that join with a key with tags belong to the tags; then no namespace is needed.`,
		Example: `  skein preauthkeys create -n junyao
  skein preauthkeys create -n junyao --reusable --expiration 90d
  skein preauthkeys create --tags tag:ci --ephemeral --reusable --expiration never`,
		Args: wantArgs(), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if namespace == "" && len(req.ACLTags) == 0 {
				return usagef("%q needs --namespace, or --tags", cmd.CommandPath())
			}
			req.User = api.Ref(namespace)
			switch expiration {
			case "never", "0":
				req.Expiration = &time.Time{}
			default:
				t, err := parseWhen(expiration)
				if err != nil {
					return usagef("--expiration: %v", err)
				}
				req.Expiration = &t
			}
			var err error
			if req.KeyDurationSeconds, err = parseKeyDuration(life); err != nil {
				return usagef("--node-expiry: %v", err)
			}
			cl, err := c.client()
			if err != nil {
				return err
			}
			k, err := cl.CreatePreAuthKey(cmd.Context(), req)
			if err != nil {
				return err
			}
			if c.output == "" {
				_, err := fmt.Fprintln(c.out, k.Key)
				return err
			}
			return c.print(k, nil)
		},
	}
	c.addNamespaceFlag(cmd, &namespace, "`NAMESPACE` that will own the nodes")
	f := cmd.Flags()
	f.BoolVar(&req.Reusable, "reusable", false, "any number of machines can join with it")
	f.BoolVar(&req.Ephemeral, "ephemeral", false, "its nodes are removed when they have been offline for a while")
	f.BoolVar(&req.Preapproved, "pre-approved", false, "its nodes need no approval (skein settings set --device-approval on)")
	f.StringVar(&life, "node-expiry", "default", "how `LONG` its nodes stay logged in: 90d, never, or default, which is what \"skein settings get\" says")
	f.StringVar(&req.Description, "description", "", "what it is for, a `TEXT`")
	f.StringVarP(&expiration, "expiration", "e", config.Duration(api.DefaultKeyLife).String(), "how long it lives (24h, 90d), until `WHEN` (2027-01-31), or \"never\"")
	f.StringSliceVar(&req.ACLTags, "tags", nil, "`TAG`s that its nodes get, such as tag:ci, separated by commas or repeated")
	return cmd
}

func (c *cli) keysList() *cobra.Command {
	var f api.PreAuthKeyFilter
	var namespace string
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls", "show"}, Short: "Show all keys, or some",
		Long:    "Show all keys, or those that are all that the flags say. Of a key only its beginning is known.",
		Example: "  skein preauthkeys list -n junyao\n  skein preauthkeys list --state usable",
		Args:    wantArgs(), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			f.User = api.Ref(namespace)
			keys, err := cl.ListPreAuthKeys(cmd.Context(), f)
			if err != nil {
				return err
			}
			t := &table{
				head:  []string{"ID", "Key", "Namespace", "Tags", "Reusable", "Ephemeral", "Pre-approved", "Used", "Expiration", "Created", "Usable"},
				spare: []string{"Pre-approved", "Created", "Ephemeral", "Used", "Reusable"},
				hint:  "There are no pre-auth keys. Make one: skein preauthkeys create -n NAMESPACE",
			}
			for _, k := range keys {
				t.add(k.ID.String(), k.Key, k.Namespace(), strings.Join(k.ACLTags, ", "), fmt.Sprint(k.Reusable), fmt.Sprint(k.Ephemeral), fmt.Sprint(k.Preapproved),
					fmt.Sprint(k.Used), clock(k.Expiration, "never"), clock(k.CreatedAt, ""), yesNo(k.Usable))
			}
			return c.print(keys, filtered(cmd, t))
		},
	}
	cmd.Flags().StringSliceVar(&f.Tags, "tag", nil, "only keys that give one of these `TAG`s")
	must(cmd.RegisterFlagCompletionFunc("tag", cobra.NoFileCompletions))
	choiceFlag(cmd, &f.State, "state", "only keys in this `STATE`", []string{"usable", "used", "expired", "revoked"})
	c.addNamespaceFlag(cmd, &namespace, "only the keys of this `NAMESPACE`")
	return cmd
}

// keyRequest names a key as the command line does: by its id, or by the key itself or its beginning.
func keyRequest(arg string) api.ExpirePreAuthKeyRequest {
	if id, err := strconv.ParseInt(arg, 10, 64); err == nil {
		return api.ExpirePreAuthKeyRequest{ID: api.ID(id)}
	}
	return api.ExpirePreAuthKeyRequest{Key: arg}
}

// keyCommand is a command about one key.
func (c *cli) keyCommand(cmd *cobra.Command, f func(cmd *cobra.Command, cl *api.Client, req api.ExpirePreAuthKeyRequest) error) *cobra.Command {
	var ref string
	cmd.Flags().StringVarP(&ref, "identifier", "i", "", "the `KEY`, by id or as \"list\" shows it")
	must(cmd.RegisterFlagCompletionFunc("identifier", forFlag(c.completeKeys)))
	cmd.ValidArgsFunction = c.completeKeys
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if cmd.Flags().Changed("identifier") {
			args = append([]string{ref}, args...)
		}
		if err := wantArgs("KEY")(cmd, args); err != nil {
			return err
		}
		cl, err := c.client()
		if err != nil {
			return err
		}
		return f(cmd, cl, keyRequest(args[0]))
	}
	return cmd
}

func (c *cli) keysExpire() *cobra.Command {
	return c.keyCommand(&cobra.Command{
		Use: "expire KEY", Aliases: []string{"revoke"}, Short: "End a key; nodes that joined with it stay",
		Example: "  skein preauthkeys expire 3",
	}, func(cmd *cobra.Command, cl *api.Client, req api.ExpirePreAuthKeyRequest) error {
		if err := cl.ExpirePreAuthKey(cmd.Context(), req); err != nil {
			return err
		}
		return c.done("Nobody can join with this key any more.")
	})
}

func (c *cli) keysDelete() *cobra.Command {
	return c.keyCommand(&cobra.Command{
		Use: "delete KEY", Aliases: []string{"rm", "remove"}, Short: "Remove a key from the list; nodes that joined with it stay",
		Example: "  skein preauthkeys delete 3 --yes",
	}, func(cmd *cobra.Command, cl *api.Client, req api.ExpirePreAuthKeyRequest) error {
		if err := c.confirm(cmd, "Delete this key?"); err != nil {
			return err
		}
		if err := cl.DeletePreAuthKey(cmd.Context(), req); err != nil {
			return err
		}
		return c.done("The key is deleted.")
	})
}

// parseWhen reads a moment: a time, or how long from now.
func parseWhen(s string) (time.Time, error) {
	if d, err := config.ParseDuration(s); err == nil && d > 0 {
		return time.Now().Add(d.Std()), nil
	}
	if t, err := api.ParseTime(s); err == nil {
		return t, nil
	}
	return time.Time{}, fmt.Errorf("%q is neither a time such as 2027-01-31T12:00:00Z nor a duration such as 24h or 90d", s)
}
