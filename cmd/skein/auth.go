package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/skein-vpn/skein/api"
)

func newAuthCommand(c *cli) *cobra.Command {
	return group("auth", nil, "SSH sessions that wait to be confirmed",
		`  skein auth list
  skein auth approve 5kZQdCbqz2vGJ1YxT0aPq4Lm
  skein auth deny 5kZQdCbqz2vGJ1YxT0aPq4Lm`,
		c.authList(), c.authApprove(), c.authDeny())
}

func sshChecksTable(checks ...*api.SSHCheck) *table {
	t := &table{
		head: []string{"ID", "From", "Namespace", "To", "User", "Holds for", "Asked"},
		hint: "No SSH session waits to be confirmed.",
	}
	for _, k := range checks {
		holds := k.CheckPeriod
		if holds == "always" {
			holds = "this session"
		}
		t.add(k.ID, k.Source, k.SourceUser, k.Destination, k.SSHUser, holds, clock(k.CreatedAt, ""))
	}
	return t
}

func (c *cli) authList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls", "show"}, Short: "Show the SSH sessions that wait",
		Long: `Show the SSH sessions that wait because a rule of the policy says "check" and nobody has confirmed one like them lately.`,
		Example: `  skein auth list
  skein auth list -o json`,
		Args: wantArgs(), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			checks, err := cl.ListSSHChecks(cmd.Context())
			if err != nil {
				return err
			}
			return c.print(checks, sshChecksTable(checks...))
		},
	}
}

func (c *cli) authApprove() *cobra.Command {
	return c.authDecide(&cobra.Command{
		Use: "approve ID", Short: "Let a waiting SSH session begin",
		Long: `Let a waiting SSH session begin, and others from the same node to the same node as the same user for as long as the rule's
checkPeriod. ID is what the SSH client has printed; the whole address will do as well.`,
		Example: "  skein auth approve 5kZQdCbqz2vGJ1YxT0aPq4Lm",
	}, (*api.Client).ApproveSSHCheck, "The session of %s on %s as %s may begin.")
}

func (c *cli) authDeny() *cobra.Command {
	return c.authDecide(&cobra.Command{
		Use: "deny ID", Aliases: []string{"reject"}, Short: "End a waiting SSH session",
		Example: "  skein auth deny 5kZQdCbqz2vGJ1YxT0aPq4Lm",
	}, (*api.Client).DenySSHCheck, "The session of %s on %s as %s is denied.")
}

// authDecide makes cmd one that decides about one session.
func (c *cli) authDecide(cmd *cobra.Command, call func(*api.Client, context.Context, string) (*api.SSHCheck, error), done string) *cobra.Command {
	cmd.Args, cmd.ValidArgsFunction = wantArgs("ID"), c.completeSSHChecks
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if _, err := api.SSHCheckID(args[0]); err != nil {
			return usagef("%v", err)
		}
		cl, err := c.client()
		if err != nil {
			return err
		}
		k, err := call(cl, cmd.Context(), args[0])
		if err != nil {
			return err
		}
		if c.output != "" {
			return c.print(k, nil)
		}
		return c.done(done, k.Source, k.Destination, k.SSHUser)
	}
	return cmd
}
