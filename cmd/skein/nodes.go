package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/skein-vpn/skein/api"
)

func newNodesCommand(c *cli) *cobra.Command {
	return group("nodes", []string{"node", "machines", "machine"}, "The machines in the tailnet",
		`  skein nodes list
  skein nodes register --namespace junyao --key KEY    # KEY: the last part of the URL that tailscale up printed
  skein nodes rename -i 2 nas`,
		c.nodesList(), c.nodesShow(), c.nodesRegister(), c.nodesRename(), c.nodesMove(), c.nodesTag(), c.nodesExpire(),
		c.nodesDelete(), c.nodesRoutes())
}

func nodesTable(nodes ...*api.Node) *table {
	t := &table{
		head: []string{"ID", "Hostname", "Name", "NodeKey", "Namespace", "IP addresses", "Ephemeral", "Last seen", "Online", "Expired"},
		hint: "There are no nodes yet. On a machine: tailscale up --login-server URL; without a person: skein preauthkeys create",
	}
	for _, n := range nodes {
		online := "offline"
		if n.Online {
			online = "online"
		}
		t.add(n.ID.String(), n.Name, n.GivenName, n.ShortNodeKey(), n.Namespace(), strings.Join(n.IPAddresses, ", "),
			fmt.Sprint(n.Ephemeral), clock(n.LastSeen, "never"), online, yesNo(n.Expired))
	}
	return t
}

func nodeTable(n *api.Node) *table { return nodesTable(n) }

// nodeFlag is the way to name a node: -i, or the first argument.
type nodeFlag struct{ ref string }

func (c *cli) addNodeFlag(cmd *cobra.Command) *nodeFlag {
	f := &nodeFlag{}
	cmd.Flags().StringVarP(&f.ref, "identifier", "i", "", "the `NODE`, by id or name")
	must(cmd.RegisterFlagCompletionFunc("identifier", forFlag(c.completeNodes)))
	return f
}

// split is the node and the arguments behind it.
func (f *nodeFlag) split(cmd *cobra.Command, args []string) (api.Ref, []string, error) {
	if cmd.Flags().Changed("identifier") {
		if strings.TrimSpace(f.ref) == "" {
			return "", nil, usagef("-i must name a node")
		}
		return api.Ref(f.ref), args, nil
	}
	if len(args) == 0 || strings.TrimSpace(args[0]) == "" {
		return "", nil, usagef("%q needs a node: -i NODE, by id or name", cmd.CommandPath())
	}
	return api.Ref(args[0]), args[1:], nil
}

// only is split for a command that wants a node and nothing else.
func (f *nodeFlag) only(cmd *cobra.Command, args []string) (api.Ref, error) {
	ref, rest, err := f.split(cmd, args)
	if err != nil {
		return "", err
	}
	return ref, wantArgs()(cmd, rest)
}

// addNamespaceFlag lets a command take a namespace, under either of its names.
func (c *cli) addNamespaceFlag(cmd *cobra.Command, to *string, what string) {
	cmd.Flags().StringVarP(to, "namespace", "n", "", what)
	cmd.Flags().StringVarP(to, "user", "u", "", what)
	must(cmd.Flags().MarkHidden("user"))
	for _, name := range []string{"namespace", "user"} {
		must(cmd.RegisterFlagCompletionFunc(name, forFlag(c.completeNamespaces)))
	}
}

func (c *cli) nodesList() *cobra.Command {
	var namespace string
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "Show all nodes, or those of a namespace",
		Example: `  skein nodes list
  skein nodes list -n junyao -o json`,
		Args: wantArgs(), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			nodes, err := cl.ListNodes(cmd.Context(), api.Ref(namespace))
			if err != nil {
				return err
			}
			return c.print(nodes, nodesTable(nodes...))
		},
	}
	c.addNamespaceFlag(cmd, &namespace, "only the nodes of this `NAMESPACE`")
	return cmd
}

// nodeCommand is a command about one node that f does and that prints the node as it is then. names are the arguments
// behind the node, nil if f looks at them itself; show makes the table.
func (c *cli) nodeCommand(cmd *cobra.Command, names []string, show func(*api.Node) *table, f func(cmd *cobra.Command, cl *api.Client, node api.Ref, rest []string) (*api.Node, error)) *cobra.Command {
	node := c.addNodeFlag(cmd)
	if cmd.ValidArgsFunction == nil {
		cmd.ValidArgsFunction = c.completeNodes
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ref, rest, err := node.split(cmd, args)
		if err != nil {
			return err
		}
		if names != nil {
			if err := wantArgs(names...)(cmd, rest); err != nil {
				return err
			}
		}
		cl, err := c.client()
		if err != nil {
			return err
		}
		n, err := f(cmd, cl, ref, rest)
		if err != nil {
			return err
		}
		return c.print(n, show(n))
	}
	return cmd
}

var nothing = []string{}

func (c *cli) nodesShow() *cobra.Command {
	return c.nodeCommand(&cobra.Command{
		Use: "show NODE", Aliases: []string{"get"}, Short: "Show all about one node",
		Example: `  skein nodes show homeds
  skein nodes show -i 2 -o yaml`,
	}, nothing, nodeDetails, func(cmd *cobra.Command, cl *api.Client, node api.Ref, _ []string) (*api.Node, error) {
		return cl.GetNode(cmd.Context(), node)
	})
}

// nodeDetails is one node as a table of two columns.
func nodeDetails(n *api.Node) *table {
	t := &table{head: []string{"Field", "Value"}}
	add := func(field, value string) {
		if value != "" {
			t.add(field, value)
		}
	}
	add("ID", n.ID.String())
	add("Hostname", n.Name)
	add("Name", n.GivenName)
	add("Full name", n.FQDN)
	add("Namespace", n.Namespace())
	add("Tags", strings.Join(n.Tags, ", "))
	add("IP addresses", strings.Join(n.IPAddresses, ", "))
	add("Online", yesNo(n.Online))
	add("Last seen", clock(n.LastSeen, "never"))
	add("Created", clock(n.CreatedAt, ""))
	add("Expiry", clock(n.Expiry, "never"))
	add("Expired", yesNo(n.Expired))
	add("Ephemeral", fmt.Sprint(n.Ephemeral))
	add("Registered by", strings.ToLower(strings.TrimPrefix(n.RegisterMethod, "REGISTER_METHOD_")))
	add("Routes advertised", strings.Join(n.AvailableRoutes, ", "))
	add("Routes enabled", strings.Join(n.ApprovedRoutes, ", "))
	add("Routes carried", strings.Join(n.SubnetRoutes, ", "))
	add("System", n.OS)
	add("Client version", n.ClientVersion)
	add("Endpoints", strings.Join(n.Endpoints, ", "))
	if n.HomeDERP != 0 {
		add("Home relay", fmt.Sprintf("region %d", n.HomeDERP))
	}
	add("Machine key", n.MachineKey)
	add("Node key", n.NodeKey)
	add("Disco key", n.DiscoKey)
	add("Stable ID", n.StableID)
	return t
}

func (c *cli) nodesRegister() *cobra.Command {
	var req api.RegisterNodeRequest
	var namespace string
	cmd := &cobra.Command{
		Use: "register --namespace NAMESPACE --key KEY", Aliases: []string{"approve"}, Short: "Let in a machine that waits",
		Long: `Let in a machine on which "tailscale up --login-server URL" has printed an address and waits. KEY is the last part of that
address; the whole address will do as well. The machine comes up by itself.`,
		Example: `  skein nodes register --namespace junyao --key 5kZQdCbqz2vGJ1Yx`,
		Args:    wantArgs(), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if namespace == "" || req.Key == "" {
				return usagef("%q needs --namespace and --key", cmd.CommandPath())
			}
			if _, err := api.LoginID(req.Key); err != nil {
				return usagef("%v", err)
			}
			cl, err := c.client()
			if err != nil {
				return err
			}
			req.User = api.Ref(namespace)
			n, err := cl.RegisterNode(cmd.Context(), req)
			if err != nil {
				return err
			}
			return c.print(n, nodesTable(n))
		},
	}
	c.addNamespaceFlag(cmd, &namespace, "`NAMESPACE` that will own the node")
	cmd.Flags().StringVarP(&req.Key, "key", "k", "", "`KEY` or address that the machine printed")
	must(cmd.RegisterFlagCompletionFunc("key", c.completeLogins))
	return cmd
}

func (c *cli) nodesRename() *cobra.Command {
	return c.nodeCommand(&cobra.Command{
		Use: "rename NODE NEW-NAME", Aliases: []string{"mv"}, Short: "Give a node another name",
		Long: "Give a node another MagicDNS name. It keeps that name whatever its machine calls itself later.",
		Example: `  skein nodes rename -i 2 nas
  skein nodes rename homeds nas`,
	}, []string{"NEW-NAME"}, nodeTable, func(cmd *cobra.Command, cl *api.Client, node api.Ref, rest []string) (*api.Node, error) {
		return cl.RenameNode(cmd.Context(), node, rest[0])
	})
}

func (c *cli) nodesMove() *cobra.Command {
	var namespace string
	cmd := c.nodeCommand(&cobra.Command{
		Use: "move NODE --namespace NAMESPACE", Short: "Give a node to another namespace",
		Long: "Give a node to another namespace. A tagged node loses its tags.",
		Example: `  skein nodes move -i 2 -n junyao
  skein nodes move homeds -n junyao`,
	}, nothing, nodeTable, func(cmd *cobra.Command, cl *api.Client, node api.Ref, _ []string) (*api.Node, error) {
		if namespace == "" {
			return nil, usagef("%q needs --namespace", cmd.CommandPath())
		}
		return cl.MoveNode(cmd.Context(), node, api.Ref(namespace))
	})
	c.addNamespaceFlag(cmd, &namespace, "`NAMESPACE` that will own the node")
	return cmd
}

func (c *cli) nodesTag() *cobra.Command {
	var tags []string
	cmd := c.nodeCommand(&cobra.Command{
		Use: "tag NODE --tags TAG[,TAG…]", Aliases: []string{"tags"}, Short: "Replace the tags of a node",
		Long: `Replace the tags of a node. A tagged node belongs to its tags instead of to a namespace, and its key does not expire.
"skein nodes move" gives it back to a namespace.`,
		Example: `  skein nodes tag -i 2 -t tag:router,tag:home
  skein nodes tag homeds tag:router`,
	}, nil, nodeTable, func(cmd *cobra.Command, cl *api.Client, node api.Ref, rest []string) (*api.Node, error) {
		all := append(tags, rest...)
		if len(all) == 0 {
			return nil, usagef("%q needs --tags; to take all tags away, move the node to a namespace", cmd.CommandPath())
		}
		return cl.TagNode(cmd.Context(), node, all)
	})
	cmd.Flags().StringSliceVarP(&tags, "tags", "t", nil, "`TAG`s, such as tag:router, separated by commas or repeated")
	return cmd
}

func (c *cli) nodesExpire() *cobra.Command {
	var at string
	var disable bool
	cmd := c.nodeCommand(&cobra.Command{
		Use: "expire NODE", Aliases: []string{"logout"}, Short: "End the key of a node, so that its machine has to log in again",
		Example: `  skein nodes expire -i 2                          # now
  skein nodes expire homeds --at 2027-01-31
  skein nodes expire homeds --at 90d
  skein nodes expire homeds --disable              # never`,
	}, nothing, nodeTable, func(cmd *cobra.Command, cl *api.Client, node api.Ref, _ []string) (*api.Node, error) {
		req := api.ExpireNodeRequest{DisableExpiry: disable}
		if cmd.Flags().Changed("at") {
			if disable {
				return nil, usagef("--at and --disable contradict each other")
			}
			t, err := parseWhen(at)
			if err != nil {
				return nil, usagef("--at: %v", err)
			}
			req.Expiry = &t
		}
		return cl.ExpireNode(cmd.Context(), node, req)
	})
	cmd.Flags().StringVar(&at, "at", "", "`TIME` at which it ends (2027-01-31T12:00:00Z), or in how long (24h, 90d)")
	cmd.Flags().BoolVar(&disable, "disable", false, "never")
	return cmd
}

func (c *cli) nodesDelete() *cobra.Command {
	cmd := &cobra.Command{
		Use: "delete NODE", Aliases: []string{"rm", "remove"}, Short: "Remove a node from the tailnet for good",
		Example: `  skein nodes delete -i 2 --yes
  skein nodes delete homeds`,
		ValidArgsFunction: c.completeNodes,
	}
	node := c.addNodeFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ref, err := node.only(cmd, args)
		if err != nil {
			return err
		}
		cl, err := c.client()
		if err != nil {
			return err
		}
		n, err := cl.GetNode(cmd.Context(), ref)
		if err != nil {
			return err
		}
		if err := c.confirm(cmd, fmt.Sprintf("Delete node %s (%s) of %s?", n.GivenName, n.ID, n.Namespace())); err != nil {
			return err
		}
		if err := cl.DeleteNode(cmd.Context(), api.Ref(n.ID.String())); err != nil {
			return err
		}
		return c.done("Node %s (%s) is deleted.", n.GivenName, n.ID)
	}
	return cmd
}

// nodesRoutes is "routes list" where people who think of the node look for it.
func (c *cli) nodesRoutes() *cobra.Command {
	cmd := c.routesList()
	cmd.Use, cmd.Aliases = "routes [NODE]", nil
	cmd.Short = "Show the routes of a node, or of all (as \"skein routes list\")"
	cmd.Example = "  skein nodes routes homeds"
	return cmd
}
