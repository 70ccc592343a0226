package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/skein-vpn/skein/api"
	"github.com/skein-vpn/skein/tailnet"
)

func newDNSCommand(c *cli) *cobra.Command {
	records := group("records", []string{"record"}, "Names of your own that clients answer themselves",
		`  skein dns records add nas.skein.internal 100.64.0.4
  skein dns records list
  skein dns records delete nas.skein.internal`,
		c.recordsList(), c.recordsAdd(), c.recordsDelete())
	return group("dns", nil, "Resolvers, search domains and names that clients are told",
		`  skein dns get
  skein dns set --nameservers 1.1.1.1,9.9.9.9 --override-local
  skein dns set --split corp.example.com=10.0.0.53
  skein dns reset nameservers              # as the configuration says
  skein dns records add nas.skein.internal 100.64.0.4`,
		c.dnsGet(), c.dnsSet(), c.dnsReset(), records)
}

func dnsTable(d *api.DNS) *table {
	t := &table{head: []string{"Setting", "Value", "Set by"}}
	row := func(part, name, value string) {
		by := "configuration"
		if slices.Contains(d.Set, part) {
			by = "administrator"
		}
		t.add(name, value, by)
	}
	row("magicDNS", "magic-dns", onOff(d.MagicDNS))
	row("", "base-domain", d.BaseDomain)
	row("overrideLocal", "override-local", onOff(d.OverrideLocal))
	row("nameservers", "nameservers", resolverText(d.Nameservers))
	var split []string
	for _, suffix := range slices.Sorted(maps.Keys(d.Split)) {
		split = append(split, suffix+"="+resolverText(d.Split[suffix]))
	}
	row("split", "split", strings.Join(split, "; "))
	row("search", "search", strings.Join(d.Search, ", "))
	row("records", "records", fmt.Sprint(len(d.Records)))
	return t
}

func onOff(b bool) string {
	if b {
		return "on"
	}
	return "off"
}

func resolverText(rs []tailnet.Resolver) string {
	var out []string
	for _, r := range rs {
		s := r.Addr
		if r.UseWithExitNode {
			s += " (with exit node too)"
		}
		out = append(out, s)
	}
	return strings.Join(out, ", ")
}

func (c *cli) printDNS(d *api.DNS) error { return c.print(d, dnsTable(d)) }

func (c *cli) dnsGet() *cobra.Command {
	return &cobra.Command{
		Use: "get", Aliases: []string{"show", "list", "ls"}, Short: "Show what clients are told about names",
		Example: "  skein dns get",
		Args:    wantArgs(), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			d, err := cl.GetDNS(cmd.Context())
			if err != nil {
				return err
			}
			return c.printDNS(d)
		},
	}
}

func (c *cli) dnsSet() *cobra.Command {
	var (
		magic, override, withExit bool
		nameservers, search       []string
		split                     []string
	)
	cmd := &cobra.Command{
		Use: "set", Short: "Set parts of what clients are told; each takes the place of the configuration's",
		Long: `Set parts of what clients are told about names. A part that is set takes the place of the configuration's until it is
reset; running clients know within a moment. An empty list says "none": --search "".`,
		Example: `  skein dns set --nameservers 1.1.1.1,9.9.9.9 --override-local
  skein dns set --split corp.example.com=10.0.0.53,10.0.0.54 --split lan=192.168.199.1
  skein dns set --search corp.example.com
  skein dns set --magic-dns=false`,
		Args: wantArgs(), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			parts := map[string]any{}
			resolvers := func(addrs []string) []tailnet.Resolver {
				out := []tailnet.Resolver{}
				for _, a := range addrs {
					if a != "" {
						out = append(out, tailnet.Resolver{Addr: a, UseWithExitNode: withExit})
					}
				}
				return out
			}
			for flag, set := range map[string]func() error{
				"magic-dns":      func() error { parts["magicDNS"] = magic; return nil },
				"override-local": func() error { parts["overrideLocal"] = override; return nil },
				"nameservers":    func() error { parts["nameservers"] = resolvers(nameservers); return nil },
				"search": func() error {
					parts["search"] = slices.DeleteFunc(search, func(s string) bool { return s == "" })
					return nil
				},
				"split": func() error {
					m := map[string][]tailnet.Resolver{}
					for _, s := range split {
						suffix, addrs, ok := strings.Cut(s, "=")
						if s == "" {
							continue
						}
						if !ok {
							return usagef("--split %q: want DOMAIN=ADDRESS,…, such as corp.example.com=10.0.0.53", s)
						}
						m[suffix] = resolvers(strings.Split(addrs, ","))
					}
					parts["split"] = m
					return nil
				},
			} {
				if cmd.Flags().Changed(flag) {
					if err := set(); err != nil {
						return err
					}
				}
			}
			if len(parts) == 0 {
				return usagef("nothing to set: give --nameservers, --split, --search, --magic-dns or --override-local")
			}
			cl, err := c.client()
			if err != nil {
				return err
			}
			d, err := cl.SetDNS(cmd.Context(), parts)
			if err != nil {
				return err
			}
			return c.printDNS(d)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&magic, "magic-dns", true, "give each node the name NAME.BASE-DOMAIN")
	f.BoolVar(&override, "override-local", true, "clients use the nameservers instead of those they have")
	f.StringSliceVar(&nameservers, "nameservers", nil, "resolvers for everything: `ADDRESS,…` or https:// URLs")
	f.StringArrayVar(&split, "split", nil, "resolvers for one domain, `DOMAIN=ADDRESS,…` (can be repeated)")
	f.StringSliceVar(&search, "search", nil, "`DOMAIN,…` that clients try behind a short name")
	f.BoolVar(&withExit, "use-with-exit-node", false, "clients ask these resolvers even while they use an exit node")
	return cmd
}

// dnsParts are the parts as the command line calls them, with their keys.
var dnsParts = map[string]string{
	"magic-dns": "magicDNS", "override-local": "overrideLocal", "nameservers": "nameservers", "split": "split", "search": "search",
}

func (c *cli) dnsReset() *cobra.Command {
	names := slices.Sorted(maps.Keys(dnsParts))
	return &cobra.Command{
		Use: "reset [PART…]", Short: "Give parts back to the configuration; without PART all but the records",
		Long:    "Give parts back to the configuration: " + strings.Join(names, ", ") + ". Without PART it is all of them; records stay.",
		Example: "  skein dns reset nameservers\n  skein dns reset",
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
			return names, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			parts := map[string]any{}
			for _, a := range args {
				key, ok := dnsParts[a]
				if !ok {
					return usagef("%q is no part of DNS: use %s", a, strings.Join(names, ", "))
				}
				parts[key] = nil
			}
			if len(args) == 0 {
				for _, key := range dnsParts {
					parts[key] = nil
				}
			}
			cl, err := c.client()
			if err != nil {
				return err
			}
			d, err := cl.SetDNS(cmd.Context(), parts)
			if err != nil {
				return err
			}
			return c.printDNS(d)
		},
	}
}

func recordsTable(d *api.DNS) *table {
	t := &table{
		head: []string{"Name", "Type", "Value", "Set by"},
		hint: "There are no records. Add one: skein dns records add NAME ADDRESS",
	}
	for _, r := range d.Records {
		by := "administrator"
		if r.Fixed {
			by = "configuration"
		}
		t.add(r.Name, r.Type, r.Value, by)
	}
	return t
}

func (c *cli) recordsList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls", "get"}, Short: "Show all records",
		Example: "  skein dns records list",
		Args:    wantArgs(), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			d, err := cl.GetDNS(cmd.Context())
			if err != nil {
				return err
			}
			return c.print(d.Records, recordsTable(d))
		},
	}
}

func (c *cli) recordsAdd() *cobra.Command {
	return &cobra.Command{
		Use: "add NAME ADDRESS", Aliases: []string{"create", "new"}, Short: "Add a record: A or AAAA, as the address is",
		Example: "  skein dns records add nas.skein.internal 100.64.0.4\n  skein dns records add nas.skein.internal fd7a:115c:a1e0::4",
		Args:    wantArgs("NAME", "ADDRESS"), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			d, err := cl.AddDNSRecord(cmd.Context(), args[0], args[1])
			if err != nil {
				return err
			}
			return c.print(d.Records, recordsTable(d))
		},
	}
}

func (c *cli) recordsDelete() *cobra.Command {
	return &cobra.Command{
		Use: "delete NAME [ADDRESS]", Aliases: []string{"rm", "remove"}, Short: "Remove the records of a name, or the one with this address",
		Example: "  skein dns records delete nas.skein.internal",
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
			cl, err := c.client()
			if err != nil || len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			d, err := cl.GetDNS(cmd.Context())
			if err != nil {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			var names []string
			for _, r := range d.Records {
				if !r.Fixed {
					names = append(names, r.Name)
				}
			}
			return slices.Compact(names), cobra.ShellCompDirectiveNoFileComp
		},
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			value := ""
			if len(args) == 2 {
				value = args[1]
			}
			d, err := cl.RemoveDNSRecord(cmd.Context(), args[0], value)
			if err != nil {
				return err
			}
			return c.print(d.Records, recordsTable(d))
		},
	}
}
