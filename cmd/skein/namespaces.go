package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/skein-vpn/skein/api"
	"github.com/skein-vpn/skein/tailnet"
)

func newNamespacesCommand(c *cli) *cobra.Command {
	return group("namespaces", []string{"namespace", "ns", "users", "user"}, "Who owns nodes",
		`  skein namespaces create junyao
  skein namespaces list
  skein users list -o json          # the same: a namespace is a user`,
		c.namespacesCreate(), c.namespacesList(), c.namespacesRename(), c.namespacesSetRole(),
		c.namespacesDo("approve", "Let a namespace take part whose owner has signed in and waits for it", "takes part now", (*api.Client).ApproveUser),
		c.namespacesDo("suspend", "Cut the nodes of a namespace off, and let none join, until it is restored", "is suspended: its nodes are cut off", (*api.Client).SuspendUser),
		c.namespacesDo("restore", "Let a suspended namespace take part again", "takes part again", (*api.Client).RestoreUser),
		c.namespacesShow(),
		c.namespacesDelete())
}

func namespacesTable(users ...*api.User) *table {
	t := &table{
		head: []string{"ID", "Name", "Display name", "Email", "Created"},
		hint: "There are no namespaces yet. Make one: skein namespaces create NAME",
	}
	for _, u := range users {
		t.add(u.ID.String(), u.Name, u.DisplayName, u.Email, clock(u.CreatedAt, ""))
	}
	if slices.ContainsFunc(users, func(u *api.User) bool { return u.Status != "active" }) { // a column that is there only when it says something
		t.head = append(t.head, "Status")
		for i, u := range users {
			t.rows[i] = append(t.rows[i], u.Status)
		}
	}
	return t
}

func (c *cli) namespacesCreate() *cobra.Command {
	var req api.CreateUserRequest
	cmd := &cobra.Command{
		Use: "create NAME", Aliases: []string{"add", "new"}, Short: "Make a namespace",
		Long: "Make a namespace. Its name is made of a-z, 0-9 and . _ - @, and is not a number.",
		Example: `  skein namespaces create junyao
  skein namespaces create junyao --display-name "Jun Yao" --email junyao@example.org`,
		Args: wantArgs("NAME"), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			req.Name = args[0]
			u, err := cl.CreateUser(cmd.Context(), req)
			if err != nil {
				return err
			}
			return c.print(u, namespacesTable(u))
		},
	}
	cmd.Flags().StringVar(&req.DisplayName, "display-name", "", "`NAME` that people are shown")
	cmd.Flags().StringVar(&req.Email, "email", "", "mail `ADDRESS`, which clients show as the account")
	return cmd
}

func (c *cli) namespacesShow() *cobra.Command {
	return &cobra.Command{
		Use: "show NAME", Aliases: []string{"get"}, Short: "Show all about one namespace",
		Example: "  skein namespaces show junyao",
		Args:    wantArgs("NAME"), ValidArgsFunction: c.completeNamespaces,
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			users, err := cl.ListUsers(cmd.Context(), api.UserFilter{})
			if err != nil {
				return err
			}
			var found *api.User
			for _, u := range users {
				if u.ID.String() == args[0] {
					found = u // an id wins over a name that looks like one
					break
				}
				if u.Name == strings.ToLower(args[0]) {
					found = u
				}
			}
			if found == nil {
				return tailnet.Errorf(tailnet.NotFound, "there is no namespace %q", args[0])
			}
			t := &table{head: []string{"Field", "Value"}}
			for _, f := range [][2]string{
				{"ID", found.ID.String()}, {"Name", found.Name}, {"Display name", found.DisplayName}, {"Email", found.Email}, {"Role", found.Role}, {"Status", found.Status},
				{"Provider", found.Provider}, {"Created", clock(found.CreatedAt, "")},
			} {
				if f[1] != "" {
					t.add(f[0], f[1])
				}
			}
			return c.print(found, t)
		},
	}
}

func (c *cli) namespacesList() *cobra.Command {
	var f api.UserFilter
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "Show all namespaces, or some",
		Example: "  skein namespaces list\n  skein namespaces list --status needs-approval",
		Args:    wantArgs(), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			users, err := cl.ListUsers(cmd.Context(), f)
			if err != nil {
				return err
			}
			return c.print(users, filtered(cmd, namespacesTable(users...)))
		},
	}
	choiceFlag(cmd, &f.Role, "role", "only namespaces with this `ROLE`", api.Roles)
	choiceFlag(cmd, &f.Status, "status", "only namespaces with this `STATUS`", []string{"active", "needs-approval", "suspended"})
	return cmd
}

func (c *cli) namespacesRename() *cobra.Command {
	return &cobra.Command{
		Use: "rename NAMESPACE NEW-NAME", Aliases: []string{"mv"}, Short: "Give a namespace another name",
		Example: "  skein namespaces rename junyao jun",
		Args:    wantArgs("NAMESPACE", "NEW-NAME"), ValidArgsFunction: c.completeNamespaces,
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			u, err := cl.RenameUser(cmd.Context(), api.Ref(args[0]), args[1])
			if err != nil {
				return err
			}
			return c.print(u, namespacesTable(u))
		},
	}
}

func (c *cli) namespacesSetRole() *cobra.Command {
	return &cobra.Command{
		Use: "set-role NAMESPACE ROLE", Aliases: []string{"role"}, Short: "Say what a user is to the policy, such as admin",
		Long: `Say what a user is to the policy, which calls those with a role autogroup:ROLE. ROLE is one of ` + strings.Join(api.Roles, ", ") + `.
Everybody is a member beside that. "skein namespaces list -o json" shows the roles.`,
		Example: "  skein namespaces set-role junyao admin",
		Args:    wantArgs("NAMESPACE", "ROLE"),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, toComplete string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if len(args) == 1 {
				return api.Roles, cobra.ShellCompDirectiveNoFileComp
			}
			return c.completeNamespaces(cmd, args, toComplete)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if !slices.Contains(api.Roles, args[1]) {
				return usagef("%q is not a role: use %s", args[1], strings.Join(api.Roles, ", "))
			}
			cl, err := c.client()
			if err != nil {
				return err
			}
			u, err := cl.SetUserRole(cmd.Context(), api.Ref(args[0]), args[1])
			if err != nil {
				return err
			}
			if c.output != "" {
				return writeValue(c.out, c.output, u)
			}
			fmt.Fprintf(c.errOut, "%s is %s now.\n", u.Name, u.Role)
			return nil
		},
	}
}

// namespacesDo is a command that changes what one namespace may do.
func (c *cli) namespacesDo(name, short, done string, f func(*api.Client, context.Context, api.Ref) (*api.User, error)) *cobra.Command {
	return &cobra.Command{
		Use: name + " NAMESPACE", Short: short,
		Example: "  skein namespaces " + name + " junyao",
		Args:    wantArgs("NAMESPACE"), ValidArgsFunction: c.completeNamespaces,
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			u, err := f(cl, cmd.Context(), api.Ref(args[0]))
			if err != nil {
				return err
			}
			if c.output != "" {
				return writeValue(c.out, c.output, u)
			}
			fmt.Fprintf(c.errOut, "%s %s.\n", u.Name, done)
			return nil
		},
	}
}

func (c *cli) namespacesDelete() *cobra.Command {
	return &cobra.Command{
		Use: "delete NAMESPACE", Aliases: []string{"rm", "remove", "destroy"}, Short: "Delete a namespace that has no nodes, with its pre-auth keys",
		Example: "  skein namespaces delete junyao --yes",
		Args:    wantArgs("NAMESPACE"), ValidArgsFunction: c.completeNamespaces,
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			if err := c.confirm(cmd, fmt.Sprintf("Delete the namespace %s with its pre-auth keys?", args[0])); err != nil {
				return err
			}
			if err := cl.DeleteUser(cmd.Context(), api.Ref(args[0])); err != nil {
				return err
			}
			return c.done("Namespace %s is deleted.", args[0])
		},
	}
}
