package main

import (
	"fmt"
	"strconv"

	"github.com/spf13/cobra"
	"tailscale.com/tailcfg"

	"github.com/skein-vpn/skein/api"
)

// versionNumber is the version of this program. A release sets it (packaging/build).
var versionNumber = "0.1.0-dev"

// version is versionNumber, with the commit behind it where the build has recorded one.
func version() string {
	v := api.BuildVersion(versionNumber)
	if len(v.Commit) < 12 {
		return v.Version
	}
	s := v.Version + "+" + v.Commit[:12]
	if v.Dirty {
		s += ".dirty"
	}
	return s
}

func newVersionCommand(c *cli) *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Show the version of this program",
		Example: "  skein version -o json",
		Args:    wantArgs(), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(*cobra.Command, []string) error {
			v := api.BuildVersion(versionNumber)
			if c.output != "" {
				return c.print(v, nil)
			}
			_, err := fmt.Fprintf(c.out, "skein %s (%s, %s/%s)\n", version(), v.Go.Version, v.Go.OS, v.Go.Arch)
			return err
		},
	}
}

func newHealthCommand(c *cli) *cobra.Command {
	return &cobra.Command{
		Use: "health", Short: "Ask the running server whether it is well",
		Long:    "Ask the running server whether it is well, its database included. The exit code is 0 if it is, else 1.",
		Example: "  skein health",
		Args:    wantArgs(), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			h, err := cl.Health(cmd.Context())
			if err != nil {
				return err
			}
			if c.output != "" {
				return c.print(h, nil)
			}
			_, err = fmt.Fprintln(c.out, "ok")
			return err
		},
	}
}

func newDERPCommand(c *cli) *cobra.Command {
	return group("derp", []string{"relay"}, "The relays that clients are told of", "  skein derp map", &cobra.Command{
		Use: "map", Short: "Show the relays that clients are told of",
		Example: `  skein derp map
  skein derp map -o json`,
		Args: wantArgs(), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			m, err := cl.DERPMap(cmd.Context())
			if err != nil {
				return err
			}
			return c.print(m, derpTable(m))
		},
	})
}

func derpTable(m *tailcfg.DERPMap) *table {
	t := &table{
		head: []string{"Region", "Code", "Region name", "Relay", "Host", "IPv4", "IPv6", "DERP port", "STUN port"},
		hint: "There are no relays, and clients do not come up without one: see derp in the configuration.",
	}
	for _, id := range m.RegionIDs() {
		r := m.Regions[id]
		if r == nil {
			continue
		}
		for _, n := range r.Nodes {
			t.add(strconv.Itoa(id), r.RegionCode, r.RegionName, n.Name, n.HostName, n.IPv4, n.IPv6, derpPort(n), stunPort(n))
		}
	}
	return t
}

// derpPort is the TCP port of a relay (tailcfg.DERPNode.DERPPort: 0 is 443).
func derpPort(n *tailcfg.DERPNode) string {
	switch {
	case n.STUNOnly:
		return "none"
	case n.DERPPort == 0:
		return "443"
	}
	return strconv.Itoa(n.DERPPort)
}

// stunPort is the UDP port for STUN (tailcfg.DERPNode.STUNPort: 0 is 3478, below 0 is none).
func stunPort(n *tailcfg.DERPNode) string {
	switch {
	case n.STUNPort < 0:
		return "none"
	case n.STUNPort == 0:
		return "3478"
	}
	return strconv.Itoa(n.STUNPort)
}
