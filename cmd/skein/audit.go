package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/skein-vpn/skein/api"
	"github.com/skein-vpn/skein/config"
)

func newAuditCommand(c *cli) *cobra.Command {
	return group("audit", nil, "Who changed what",
		`  skein audit list --since 24h
  skein audit list --actor junyao --target node -o json
  skein audit list --target node:3`,
		c.auditList())
}

func (c *cli) auditList() *cobra.Command {
	var f api.AuditFilter
	var since, until string
	var limit int
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls", "show"}, Short: "Show the audit log, the newest entry first",
		Long: `Show the audit log, the newest entry first: who changed what, from where, and what was before. Every change leaves an entry,
whoever makes it: the command line, the API, a web page, a client or the server itself. What running clients report all the time
(endpoints, when they were seen) does not. "-o json" shows everything of an entry.`,
		Example: `  skein audit list --since 7d --actor anna
  skein audit list --since 2026-11-01 --until 2026-12-01 --action policy --limit 0
  skein audit list --target node:3 -o json-line`,
		Args: wantArgs(), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if f.Since, err = parseAgo("--since", since); err != nil {
				return err
			}
			if f.Until, err = parseAgo("--until", until); err != nil {
				return err
			}
			if limit < 0 {
				return usagef("--limit must not be negative; 0 is no limit")
			}
			cl, err := c.client()
			if err != nil {
				return err
			}
			entries := []*api.AuditEntry{}
			for page := f; ; {
				if left := limit - len(entries); limit > 0 && left < 1000 {
					page.Limit = left
				} else {
					page.Limit = 1000
				}
				l, err := cl.ListAudit(cmd.Context(), page)
				if err != nil {
					return err
				}
				entries = append(entries, l.Entries...)
				if page.Before = l.Next; l.Next == "" || limit > 0 && len(entries) >= limit {
					break
				}
			}
			t := &table{head: []string{"Time", "Actor", "From", "Action", "Target", "Change"}, hint: "There are no such entries."}
			for _, e := range entries {
				from := e.Actor.Origin
				if e.Actor.Remote != "" {
					from += " " + e.Actor.Remote
				}
				target := e.Target.Name
				if e.Target.ID != "" && e.Target.ID != target {
					target += " (" + e.Target.ID + ")"
				}
				t.add(clock(e.Time, ""), e.Actor.Name, from, e.Action, target, changeText(e))
			}
			return c.print(entries, t)
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&since, "since", "", "only entries from `WHEN` on: a time (2026-11-01) or how long ago (24h, 7d)")
	fl.StringVar(&until, "until", "", "only entries before `WHEN`")
	fl.StringVar(&f.Actor, "actor", "", "only what `WHO` did: part of a name, or an id")
	fl.StringVar(&f.Target, "target", "", "only what was done to `WHAT`: a kind such as node or user, KIND:ID, an id, or part of a name")
	fl.StringVar(&f.Action, "action", "", "only this `ACTION`, such as node.update, or node for all that is done to nodes")
	fl.StringVar(&f.Origin, "origin", "", "only what came from `WHERE`: cli, api, web, client, \"policy file\" or server")
	fl.IntVar(&limit, "limit", 100, "at most `N` entries; 0 is no limit")
	must(cmd.RegisterFlagCompletionFunc("origin", cobra.FixedCompletions([]string{"cli", "api", "web", "client", "policy file", "server"}, cobra.ShellCompDirectiveNoFileComp)))
	return cmd
}

// parseAgo reads a moment in the past: a time, or how long ago; the zero time if s is empty.
func parseAgo(flag, s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if d, err := config.ParseDuration(s); err == nil && d > 0 {
		return time.Now().Add(-d.Std()), nil
	}
	t, err := api.ParseTime(s)
	if err != nil {
		return time.Time{}, usagef("%s: %q is neither a time such as 2026-01-31T12:00:00Z nor how long ago, such as 24h or 7d", flag, s)
	}
	return t, nil
}

// maxChange is how many characters a table shows of a change.
const maxChange = 120

// changeText is what is different, on one line.
func changeText(e *api.AuditEntry) string {
	s := ""
	switch before, after := string(e.Before), string(e.After); {
	case before == "null" && after == "null":
	case before == "null":
		s = after
	case after == "null":
		s = before
	default:
		s = fmt.Sprintf("%s → %s", before, after)
	}
	if r := []rune(s); len(r) > maxChange {
		s = string(r[:maxChange-1]) + "…"
	}
	return s
}
