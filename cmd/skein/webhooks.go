package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/skein-vpn/skein/api"
	"github.com/skein-vpn/skein/webhook"
)

func newWebhooksCommand(c *cli) *cobra.Command {
	return group("webhooks", []string{"webhook"}, "Other programs that are told what happens",
		`  skein webhooks create https://hooks.example.com/skein --events nodeCreated,nodeNeedsApproval
  skein webhooks list
  skein webhooks test wABCDEFGHIJKL`,
		c.webhooksCreate(), c.webhooksList(), c.webhooksSet(),
		c.webhookCommand("test WEBHOOK", "Send a test event now", "", nil, func(ctx context.Context, cl *api.Client, id string) error {
			if err := cl.TestWebhook(ctx, id); err != nil {
				return err
			}
			return c.done("The test event has arrived.")
		}),
		c.webhookCommand("rotate WEBHOOK", "Give a webhook a new secret and print it, this once; the old one ends", "Replace this webhook's secret?", nil,
			func(ctx context.Context, cl *api.Client, id string) error {
				h, err := cl.RotateWebhook(ctx, id)
				if err != nil {
					return err
				}
				return c.printSecret(h)
			}),
		c.webhookCommand("delete WEBHOOK", "Remove a webhook", "Delete this webhook?", []string{"rm", "remove"}, func(ctx context.Context, cl *api.Client, id string) error {
			if err := cl.DeleteWebhook(ctx, id); err != nil {
				return err
			}
			return c.done("The webhook is deleted.")
		}))
}

// printSecret prints the secret of a webhook, or all of it in the format asked for.
func (c *cli) printSecret(h *api.Webhook) error {
	if c.output != "" {
		return c.print(h, nil)
	}
	_, err := fmt.Fprintln(c.out, h.Secret)
	return err
}

// webhookFlags are those that say what a webhook is told.
func webhookFlags(cmd *cobra.Command, req *api.WebhookRequest) {
	cmd.Flags().StringSliceVar(&req.Events, "events", nil, "`EVENT`s that it is told, separated by commas or repeated")
	must(cmd.RegisterFlagCompletionFunc("events", cobra.FixedCompletions(webhook.EventTypes(), cobra.ShellCompDirectiveNoFileComp)))
	cmd.Flags().StringVar(&req.Provider, "provider", "", "chat that the receiver is: slack, mattermost, googlechat or discord (default: signed events in JSON)")
	must(cmd.RegisterFlagCompletionFunc("provider", cobra.FixedCompletions(webhook.Providers[1:], cobra.ShellCompDirectiveNoFileComp)))
}

func (c *cli) webhooksCreate() *cobra.Command {
	var req api.WebhookRequest
	cmd := &cobra.Command{
		Use: "create URL --events EVENTS", Aliases: []string{"new", "add"}, Short: "Make a webhook and print its secret, this once",
		Long: `Make a webhook and print its secret, this once. Events are posted in JSON, signed with the secret as Tailscale signs them
(Tailscale-Webhook-Signature). What cannot be delivered is tried again for a day. Events are ` + strings.Join(webhook.EventTypes(), ", ") + `.
Never sent, because there is no occasion: ` + strings.Join(webhook.NeverSent(), ", ") + `.`,
		Example: `  skein webhooks create https://hooks.example.com/skein --events categoryTailnetManagement
  skein webhooks create https://chat.example.com/hooks/x --provider mattermost --events nodeNeedsApproval,userNeedsApproval`,
		Args: wantArgs("URL"), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(req.Events) == 0 {
				return usagef("%q needs --events", cmd.CommandPath())
			}
			req.URL = args[0]
			cl, err := c.client()
			if err != nil {
				return err
			}
			h, err := cl.CreateWebhook(cmd.Context(), req)
			if err != nil {
				return err
			}
			return c.printSecret(h)
		},
	}
	webhookFlags(cmd, &req)
	return cmd
}

func webhooksTable(hooks ...*api.Webhook) *table {
	t := &table{
		head:  []string{"ID", "URL", "Provider", "Events", "Sent", "Dropped", "Last success", "Last error"},
		spare: []string{"Dropped", "Sent", "Provider"},
		hint:  "There are no webhooks. Make one: skein webhooks create URL --events EVENTS",
	}
	for _, h := range hooks {
		t.add(h.ID, h.URL, h.Provider, strings.Join(h.Events, ", "), fmt.Sprint(h.Sent), fmt.Sprint(h.Dropped), clock(h.LastOK, "never"), h.LastError)
	}
	return t
}

func (c *cli) webhooksList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls", "show"}, Short: "Show all webhooks and how they do",
		Example: "  skein webhooks list",
		Args:    wantArgs(), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			hooks, err := cl.ListWebhooks(cmd.Context())
			if err != nil {
				return err
			}
			return c.print(hooks, webhooksTable(hooks...))
		},
	}
}

func (c *cli) webhooksSet() *cobra.Command {
	var req api.WebhookRequest
	cmd := c.webhookCommand("set WEBHOOK", "Change what a webhook is told, and where", "", []string{"update"}, func(ctx context.Context, cl *api.Client, id string) error {
		h, err := cl.UpdateWebhook(ctx, id, req)
		if err != nil {
			return err
		}
		return c.print(h, webhooksTable(h))
	})
	cmd.Example = "  skein webhooks set wABCDEFGHIJKL --events policyUpdate"
	cmd.Flags().StringVar(&req.URL, "url", "", "`URL` of the receiver; --provider goes with it")
	webhookFlags(cmd, &req)
	return cmd
}

// webhookCommand is a command about one webhook, which asks the question first unless that is empty.
func (c *cli) webhookCommand(use, short, question string, aliases []string, do func(ctx context.Context, cl *api.Client, id string) error) *cobra.Command {
	verb, _, _ := strings.Cut(use, " ")
	return &cobra.Command{
		Use: use, Aliases: aliases, Short: short, Example: "  skein webhooks " + verb + " wABCDEFGHIJKL",
		Args: wantArgs("WEBHOOK"),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return c.complete(cmd, func(ctx context.Context, cl *api.Client) (out []cobra.Completion, err error) {
				hooks, err := cl.ListWebhooks(ctx)
				for _, h := range hooks {
					out = append(out, cobra.CompletionWithDesc(h.ID, h.URL))
				}
				return out, err
			})
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			if question != "" {
				if err := c.confirm(cmd, question); err != nil {
					return err
				}
			}
			return do(cmd.Context(), cl, args[0])
		},
	}
}
