package main

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"
)

func newDebugCommand(c *cli) *cobra.Command {
	return group("debug", nil, "What the server tells clients, for who looks for a fault", "  skein debug netmap homeds", c.debugNetmap())
}

func (c *cli) debugNetmap() *cobra.Command {
	var capver int
	cmd := &cobra.Command{
		Use: "netmap NODE", Short: "Show the map that a node is given when it connects",
		Long: `Show the map that a node is given when it connects, in JSON: its own entry, its peers as it sees them, packet filters, names,
relays, users. It is what the server would send this moment; a client shows what it holds with "tailscale debug netmap". Older
clients are told some things differently: --capver asks as a client of another capability version. There are no private keys in a
map. Reading one takes the scope all:read.`,
		Example: `  skein debug netmap homeds
  skein debug netmap homeds --capver 106                 # as an older client gets it
  skein debug netmap homeds | jq '.Peers[].Name'`,
		ValidArgsFunction: c.completeNodes,
	}
	node := c.addNodeFlag(cmd)
	cmd.Flags().IntVar(&capver, "capver", 0, "capability version of the client that asks, a `NUMBER` (default: the node's own)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ref, err := node.only(cmd, args)
		if err != nil {
			return err
		}
		if cmd.Flags().Changed("capver") && capver < 1 {
			return usagef("--capver must be a capability version, such as 142")
		}
		cl, err := c.client()
		if err != nil {
			return err
		}
		m, err := cl.Netmap(cmd.Context(), ref, capver)
		if err != nil {
			return err
		}
		if c.output == "yaml" || c.output == "json-line" {
			return c.print(m.Map, nil)
		}
		var b bytes.Buffer
		if err := json.Indent(&b, m.Map, "", "  "); err != nil {
			return fmt.Errorf("the map cannot be read: %w", err)
		}
		b.WriteByte('\n')
		_, err = c.out.Write(b.Bytes())
		return err
	}
	return cmd
}
