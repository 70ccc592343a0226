package main

import (
	"context"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/skein-vpn/skein/api"
)

// completionTimeout is how long a shell's user waits for suggestions at the most.
const completionTimeout = 2 * time.Second

// complete asks the server for suggestions; without one there are none.
func (c *cli) complete(cmd *cobra.Command, ask func(ctx context.Context, cl *api.Client) ([]cobra.Completion, error)) ([]cobra.Completion, cobra.ShellCompDirective) {
	parent := cmd.Context()
	if parent == nil {
		parent = context.Background()
	}
	ctx, cancel := context.WithTimeout(parent, completionTimeout)
	defer cancel()
	cl, err := c.client()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	out, err := ask(ctx, cl)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

// forFlag is a completion of the first argument made one of a flag, which does not care what arguments there are.
func forFlag(f cobra.CompletionFunc) cobra.CompletionFunc {
	return func(cmd *cobra.Command, _ []string, toComplete string) ([]cobra.Completion, cobra.ShellCompDirective) {
		return f(cmd, nil, toComplete)
	}
}

// completeNodes suggests the names of nodes for the first argument, unless -i names one already.
func (c *cli) completeNodes(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if f := cmd.Flags().Lookup("identifier"); len(args) > 0 || f != nil && f.Changed && f.Value.String() != "" {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return c.complete(cmd, func(ctx context.Context, cl *api.Client) (out []cobra.Completion, err error) {
		nodes, err := cl.ListNodes(ctx, api.NodeFilter{})
		for _, n := range nodes {
			out = append(out, cobra.CompletionWithDesc(n.GivenName, "node "+n.ID.String()+" of "+n.Namespace()))
		}
		return out, err
	})
}

func (c *cli) completeNamespaces(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return c.complete(cmd, func(ctx context.Context, cl *api.Client) (out []cobra.Completion, err error) {
		users, err := cl.ListUsers(ctx, api.UserFilter{})
		for _, u := range users {
			out = append(out, u.Name)
		}
		return out, err
	})
}

func (c *cli) completeKeys(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return c.complete(cmd, func(ctx context.Context, cl *api.Client) (out []cobra.Completion, err error) {
		keys, err := cl.ListPreAuthKeys(ctx, api.PreAuthKeyFilter{})
		for _, k := range keys {
			out = append(out, cobra.CompletionWithDesc(k.ID.String(), k.Key))
		}
		return out, err
	})
}

func (c *cli) completeAPIKeys(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return c.complete(cmd, func(ctx context.Context, cl *api.Client) (out []cobra.Completion, err error) {
		keys, err := cl.ListAPIKeys(ctx, api.APIKeyFilter{})
		for _, k := range keys {
			out = append(out, cobra.CompletionWithDesc(k.Prefix, k.Description))
		}
		return out, err
	})
}

func (c *cli) completeOAuthClients(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return c.complete(cmd, func(ctx context.Context, cl *api.Client) (out []cobra.Completion, err error) {
		clients, err := cl.ListOAuthClients(ctx, api.OAuthClientFilter{})
		for _, k := range clients {
			out = append(out, cobra.CompletionWithDesc(k.ID, k.Description))
		}
		return out, err
	})
}

// completeLogins suggests the registrations that wait.
func (c *cli) completeLogins(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return c.complete(cmd, func(ctx context.Context, cl *api.Client) (out []cobra.Completion, err error) {
		logins, err := cl.ListLogins(ctx)
		for _, l := range logins {
			out = append(out, cobra.CompletionWithDesc(l.Key, l.Name+" from "+l.Remote))
		}
		return out, err
	})
}

// completeSSHChecks suggests the SSH sessions that wait.
func (c *cli) completeSSHChecks(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return c.complete(cmd, func(ctx context.Context, cl *api.Client) (out []cobra.Completion, err error) {
		checks, err := cl.ListSSHChecks(ctx)
		for _, k := range checks {
			out = append(out, cobra.CompletionWithDesc(k.ID, k.Source+" to "+k.Destination+" as "+k.SSHUser))
		}
		return out, err
	})
}

// policyTag is a tag that a policy names.
var policyTag = regexp.MustCompile(`"(tag:[A-Za-z0-9-]+)"`)

// completeTags suggests the tags that nodes have and the policy names, for the last part of a list with commas.
func (c *cli) completeTags(cmd *cobra.Command, _ []string, toComplete string) ([]cobra.Completion, cobra.ShellCompDirective) {
	before := toComplete[:strings.LastIndex(toComplete, ",")+1]
	return c.complete(cmd, func(ctx context.Context, cl *api.Client) (out []cobra.Completion, err error) {
		var tags []string
		nodes, err := cl.ListNodes(ctx, api.NodeFilter{})
		for _, n := range nodes {
			tags = append(tags, n.Tags...)
		}
		if p, err := cl.Policy(ctx); err == nil {
			for _, m := range policyTag.FindAllStringSubmatch(p.Text, -1) {
				tags = append(tags, m[1])
			}
		}
		slices.Sort(tags)
		for _, t := range slices.Compact(tags) {
			if !slices.Contains(strings.Split(before, ","), t) {
				out = append(out, before+t)
			}
		}
		return out, err
	})
}

// completeTagFlags lets all flags of cmd, and of those below it, that take tags suggest them.
func (c *cli) completeTagFlags(cmd *cobra.Command) {
	if cmd.Flags().Lookup("tags") != nil {
		must(cmd.RegisterFlagCompletionFunc("tags", c.completeTags))
	}
	for _, sub := range cmd.Commands() {
		c.completeTagFlags(sub)
	}
}

// completeRoutes suggests the routes of the node that the command line names already.
func (c *cli) completeRoutes(node *nodeFlag) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		ref, _, err := node.split(cmd, args)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return c.complete(cmd, func(ctx context.Context, cl *api.Client) (out []cobra.Completion, err error) {
			routes, err := cl.ListRoutes(ctx, api.RouteFilter{Node: ref})
			for _, r := range routes {
				out = append(out, r.Prefix)
			}
			return out, err
		})
	}
}
