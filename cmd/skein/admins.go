package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/skein-vpn/skein/api"
)

func newAdminsCommand(c *cli) *cobra.Command {
	return group("admins", []string{"admin"}, "Who signs in on the web pages without an identity provider",
		`  skein admins create-link anna
  skein admins list
  skein admins reset anna`,
		c.adminsCreateLink(), c.adminsList(), c.adminsReset(), c.adminsDelete())
}

func (c *cli) adminsCreateLink() *cobra.Command {
	var role string
	cmd := &cobra.Command{
		Use: "create-link [NAMESPACE]", Aliases: []string{"create", "link", "invite"}, Short: "Print an address where somebody sets up a way to sign in",
		Long: `Print an address, for a browser, where somebody sets up a password or a passkey: once, and within the hour. For a namespace that
exists it adds a way to sign in and leaves the role as it is. Otherwise the namespace is made when the address is used, with the role
of --role; without NAMESPACE its name can be chosen there. What the roles may do: docs/access.md.`,
		Example: `  skein admins create-link
  skein admins create-link ben --role network-admin`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			return wantArgs("NAMESPACE")(cmd, args)
		},
		ValidArgsFunction: c.completeNamespaces,
	}
	cmd.Flags().StringVar(&role, "role", "", "`ROLE` of the namespace that is made: "+strings.Join(api.Roles, ", ")+" (default admin; owner if nobody can sign in yet)")
	must(cmd.RegisterFlagCompletionFunc("role", cobra.FixedCompletions(api.Roles, cobra.ShellCompDirectiveNoFileComp)))
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		cl, err := c.client()
		if err != nil {
			return err
		}
		req := api.CreateAdminLinkRequest{Role: role}
		if len(args) == 1 {
			users, err := cl.ListUsers(cmd.Context(), api.UserFilter{})
			if err != nil {
				return err
			}
			req.Name = args[0]
			for _, u := range users {
				if u.Name == args[0] || u.ID.String() == args[0] {
					req.User, req.Name = api.Ref(u.ID.String()), ""
				}
			}
		}
		l, err := cl.CreateAdminLink(cmd.Context(), req)
		if err != nil {
			return err
		}
		return c.printLink(l)
	}
	return cmd
}

// printLink prints the address alone to stdout, so that it can be used by other commands.
func (c *cli) printLink(l *api.AdminLink) error {
	if c.output != "" {
		return c.print(l, nil)
	}
	fmt.Fprintln(c.out, l.URL)
	fmt.Fprintf(c.errOut, "Open it in a browser. It works once, until %s.\n", clock(l.ExpiresAt, ""))
	return nil
}

func (c *cli) adminsList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls", "show"}, Short: "Show who can sign in without an identity provider",
		Example: `  skein admins list
  skein admins list -o json`,
		Args: wantArgs(), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			admins, err := cl.ListAdmins(cmd.Context())
			if err != nil {
				return err
			}
			t := &table{
				head: []string{"Namespace", "Role", "Password", "Passkeys", "Sessions", "Last sign-in"},
				hint: "Nobody can sign in without an identity provider yet. Invite somebody: skein admins create-link",
			}
			for _, a := range admins {
				t.add(a.User.Name, a.User.Role, yesNo(a.Password), strings.Join(a.Passkeys, ", "), fmt.Sprint(a.Sessions), clock(a.SignedIn, "never"))
			}
			return c.print(admins, t)
		},
	}
}

func (c *cli) adminsReset() *cobra.Command {
	return &cobra.Command{
		Use: "reset NAMESPACE", Short: "Take away password, passkeys and sessions, and print an address to begin anew",
		Example: "  skein admins reset anna",
		Args:    wantArgs("NAMESPACE"), ValidArgsFunction: c.completeNamespaces,
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			if err := c.confirm(cmd, fmt.Sprintf("Take away password, passkeys and sessions of %s?", args[0])); err != nil {
				return err
			}
			l, err := cl.ResetAdmin(cmd.Context(), api.Ref(args[0]))
			if err != nil {
				return err
			}
			return c.printLink(l)
		},
	}
}

func (c *cli) adminsDelete() *cobra.Command {
	return &cobra.Command{
		Use: "delete NAMESPACE", Aliases: []string{"rm", "remove"}, Short: "Take away password, passkeys and sessions",
		Long: `Take away password, passkeys and sessions of a namespace. The namespace, its role and its nodes stay; "skein namespaces set-role"
takes the role away, which counts for identity providers and API keys too.`,
		Example: "  skein admins delete anna",
		Args:    wantArgs("NAMESPACE"), ValidArgsFunction: c.completeNamespaces,
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			if err := c.confirm(cmd, fmt.Sprintf("Take away password, passkeys and sessions of %s?", args[0])); err != nil {
				return err
			}
			if err := cl.DeleteAdmin(cmd.Context(), api.Ref(args[0])); err != nil {
				return err
			}
			return c.done("%s can not sign in without an identity provider any more.", args[0])
		},
	}
}
