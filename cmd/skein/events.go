package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/skein-vpn/skein/api"
	"github.com/skein-vpn/skein/tailnet"
)

// How long `events --follow` waits before it asks a server again that has gone.
const (
	followAgain    = time.Second
	followAgainMax = 30 * time.Second
)

func newEventsCommand(c *cli) *cobra.Command {
	var f api.EventFilter
	var follow bool
	var since string
	cmd := &cobra.Command{
		Use: "events", Short: "Show what happens in the tailnet, as it happens",
		Long: `Show what happened in the tailnet, and with --follow what happens from now on: nodes that join, are approved or renamed, come
online, go or expire; routes that are offered, enabled and carried; users, policy, names, settings, keys. What is committed is told
whichever server it happened at, and can be looked at afterwards (--since); who was online and who carried a route is told while it
happens only.

With --follow, a server that goes away is asked again until it is back, and what was committed meanwhile is told. "-o json-line"
prints one event a line, for other programs.`,
		Example: `  skein events --follow
  skein events --follow --type node.online,node.offline
  skein events --since 24h --type policy,user
  skein events --follow -i homeds -o json-line`,
		Args: wantArgs(), ValidArgsFunction: cobra.NoFileCompletions,
	}
	fl := cmd.Flags()
	fl.BoolVarP(&follow, "follow", "f", false, "go on with what happens from now on")
	fl.StringVar(&since, "since", "", "begin at `WHEN`: a time (2026-11-01), how long ago (24h, 7d), or behind an event by its id (default: 24h, or now with --follow)")
	fl.StringSliceVar(&f.Types, "type", nil, "only `TYPE`s: kinds such as node, or types such as node.online; separated by commas or repeated")
	fl.StringVarP((*string)(&f.Node), "identifier", "i", "", "only what is about one `NODE`, by name, id or address")
	must(cmd.RegisterFlagCompletionFunc("identifier", forFlag(c.completeNodes)))
	must(cmd.RegisterFlagCompletionFunc("type", cobra.FixedCompletions(eventTypes(), cobra.ShellCompDirectiveNoFileComp)))
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var err error
		if f.Since, err = eventsSince(since, follow); err != nil {
			return err
		}
		cl, err := c.client()
		if err != nil {
			return err
		}
		f.Once = !follow
		return c.events(cmd.Context(), cl, f)
	}
	return cmd
}

// eventTypes are what --type suggests.
func eventTypes() []string {
	out := []string{"node.online", "node.offline", "node.registered", "node.approved", "node.deleted", "node.renamed", "node.expired", "routes.advertised", "routes.enabled", "routes.primary"}
	for k := range api.EventKinds {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// eventsSince is where to begin, as the server knows it.
func eventsSince(text string, follow bool) (string, error) {
	if text == "" && !follow {
		text = "24h"
	}
	if _, err := tailnet.ParseAuditPos(text); err == nil {
		return text, nil
	}
	t, err := parseAgo("--since", text)
	if err != nil || t.IsZero() {
		return "", err
	}
	return t.UTC().Format(time.RFC3339), nil
}

// events prints events: those until now, or with a filter that is not Once for as long as it is let.
func (c *cli) events(ctx context.Context, cl *api.Client, f api.EventFilter) error {
	var all []*api.Event
	show := func(e *api.Event) error {
		switch e.Type {
		case api.EventBegan:
			return nil
		case api.EventMissed:
			fmt.Fprintf(c.errOut, "skein: %s\n", e.Message)
			return nil
		}
		if f.Once && (c.output == "json" || c.output == "yaml") {
			all = append(all, e)
			return nil
		}
		return c.showEvent(e)
	}
	if f.Once {
		if err := cl.Events(ctx, f, show); err != nil {
			return err
		}
		if c.output == "json" || c.output == "yaml" {
			return writeValue(c.out, c.output, append([]*api.Event{}, all...))
		}
		return nil
	}
	reached, wait := false, followAgain
	for {
		err := cl.Events(ctx, f, func(e *api.Event) error {
			reached, wait = true, followAgain
			if e.ID != "" {
				f.Since = e.ID
			}
			return show(e)
		})
		var te *tailnet.Error
		if ctx.Err() != nil || !errors.As(err, &te) || te.Code != tailnet.Unavailable || !reached {
			return err
		}
		fmt.Fprintf(c.errOut, "skein: %s; trying again\n", te.Message)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return ctx.Err()
		}
		wait = min(2*wait, followAgainMax)
	}
}

// eventWidth is how wide the column with the type is: the types that happen all the time fit.
const eventWidth = 18

// showEvent prints one event at once.
func (c *cli) showEvent(e *api.Event) error {
	switch c.output {
	case "json", "json-line":
		return writeValue(c.out, c.output, e)
	case "yaml":
		if _, err := fmt.Fprintln(c.out, "---"); err != nil {
			return err
		}
		return writeValue(c.out, c.output, e)
	}
	by := ""
	if e.Actor != "" {
		by = " (" + e.Actor + ")"
	}
	typ := e.Type
	if isTerminal(c.out) {
		typ = fmt.Sprintf("%-*s", eventWidth, typ)
	}
	_, err := fmt.Fprintf(c.out, "%s | %s | %s%s\n", clock(e.Time, ""), typ, printable(e.Message), printable(by))
	return err
}
