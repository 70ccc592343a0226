package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/skein-vpn/skein/api"
)

func newNodesCommand(c *cli) *cobra.Command {
	return group("nodes", []string{"node", "machines", "machine"}, "The machines in the tailnet",
		`  skein nodes list
  skein nodes register --namespace junyao --key KEY    # KEY: the last part of the URL that tailscale up printed
  skein nodes rename -i 2 nas`,
		c.nodesList(), c.nodesShow(), c.nodesRegister(), c.nodesApprove(), c.nodesRename(), c.nodesMove(), c.nodesTag(), c.nodesUntag(), c.nodesExpire(),
		c.nodesDelete(), c.nodesRoutes())
}

func nodesTable(nodes ...*api.Node) *table {
	t := &table{
		head:  []string{"ID", "Hostname", "Name", "NodeKey", "Namespace", "IP addresses", "Ephemeral", "Last seen", "Online", "Expired"},
		spare: []string{"Ephemeral", "NodeKey", "Hostname", "Expired", "Last seen"},
		hint:  "There are no nodes yet. On a machine: tailscale up --login-server URL; without a person: skein preauthkeys create",
	}
	for _, n := range nodes {
		online := "offline"
		if n.Online {
			online = "online"
		}
		t.add(n.ID.String(), n.Name, n.GivenName, n.ShortNodeKey(), n.Namespace(), strings.Join(n.IPAddresses, ", "),
			fmt.Sprint(n.Ephemeral), clock(n.LastSeen, "never"), online, yesNo(n.Expired))
	}
	if slices.ContainsFunc(nodes, waits) { // a column that is there only when it says something
		t.head = append(t.head, "Status")
		for i, n := range nodes {
			t.rows[i] = append(t.rows[i], n.Status)
		}
	}
	return t
}

// waits reports whether somebody has to do something for the node to take part, besides a login.
func waits(n *api.Node) bool { return n.Status != "active" && n.Status != "expired" }

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
	var f api.NodeFilter
	var namespace string
	var waiting bool
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "Show all nodes, or some",
		Long: `Show all nodes, or those that are all that the flags say. If some wait for approval, of themselves or of their namespace, or
belong to a suspended namespace, there is a column that says so.`,
		Example: `  skein nodes list
  skein nodes list -n junyao -o json
  skein nodes list --tag tag:ci --online
  skein nodes list --online=false --os windows
  skein nodes list --waiting            # who waits for: skein nodes approve`,
		Args: wantArgs(), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			if f.User = api.Ref(namespace); waiting {
				f.Status = "needs-approval"
			}
			nodes, err := cl.ListNodes(cmd.Context(), f)
			if err != nil {
				return err
			}
			return c.print(nodes, filtered(cmd, nodesTable(nodes...)))
		},
	}
	cmd.Flags().StringSliceVar(&f.Tags, "tag", nil, "only nodes with one of these `TAG`s")
	yesNoFlag(cmd, &f.Online, "online", "only nodes that are online, or with --online=false those that are not")
	yesNoFlag(cmd, &f.Expired, "expired", "only nodes whose key has ended, or with --expired=false has not")
	yesNoFlag(cmd, &f.Ephemeral, "ephemeral", "only ephemeral nodes, or with --ephemeral=false others")
	cmd.Flags().StringVar(&f.OS, "os", "", "only nodes with this `SYSTEM`, such as linux")
	cmd.Flags().StringVar(&f.Name, "name", "", "only nodes with this `TEXT` in their name")
	choiceFlag(cmd, &f.Status, "status", "only nodes with this `STATUS`", api.NodeStatuses)
	must(cmd.RegisterFlagCompletionFunc("tag", cobra.NoFileCompletions))
	must(cmd.RegisterFlagCompletionFunc("name", cobra.NoFileCompletions))
	must(cmd.RegisterFlagCompletionFunc("os", cobra.FixedCompletions([]string{"linux", "windows", "macOS", "iOS", "android"}, cobra.ShellCompDirectiveNoFileComp)))
	cmd.Flags().BoolVar(&waiting, "waiting", false, "only the nodes that wait for approval")
	cmd.MarkFlagsMutuallyExclusive("waiting", "status")
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
	add("Status", n.Status)
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
		Use: "register --namespace NAMESPACE --key KEY", Short: "Let in a machine that waits",
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

func (c *cli) nodesApprove() *cobra.Command {
	var revoke bool
	cmd := c.nodeCommand(&cobra.Command{
		Use: "approve NODE", Aliases: []string{"authorize"}, Short: "Let a node take part that waits for approval",
		Long: `Let a node take part that waits for approval, which new nodes do where "skein settings set --device-approval on" was said. Until then
it sees nobody, nobody sees it, and its client says that it waits. --revoke takes an approval back: the node is cut off at once.

A machine on which "tailscale up" has printed an address is not a node yet: let it in with "skein nodes register".`,
		Example: `  skein nodes list --waiting
  skein nodes approve -i 2
  skein nodes approve homeds
  skein nodes approve homeds --revoke`,
	}, nothing, nodeTable, func(cmd *cobra.Command, cl *api.Client, node api.Ref, _ []string) (*api.Node, error) {
		return cl.ApproveNode(cmd.Context(), node, !revoke)
	})
	cmd.Flags().BoolVar(&revoke, "revoke", false, "take the approval back")
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
"skein nodes untag" gives it back to a namespace.`,
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

func (c *cli) nodesUntag() *cobra.Command {
	var namespace string
	cmd := c.nodeCommand(&cobra.Command{
		Use: "untag NODE [TAG…]", Short: "Take tags away from a node",
		Long: `Take tags away from a node: those that are named, or all. A node that loses its last tag needs a namespace that owns it from then
on (--namespace), and its key lives as long as if it had logged in now.`,
		Example: `  skein nodes untag homeds tag:router
  skein nodes untag -i 2 -n junyao                 # all of them`,
	}, nil, nodeTable, func(cmd *cobra.Command, cl *api.Client, node api.Ref, rest []string) (*api.Node, error) {
		n, err := cl.GetNode(cmd.Context(), node)
		if err != nil {
			return nil, err
		}
		for _, t := range rest {
			if !slices.Contains(n.Tags, t) {
				return nil, fmt.Errorf("%s does not have %s; it has %s", n.GivenName, t, cmp.Or(strings.Join(n.Tags, ", "), "no tags"))
			}
		}
		keep := slices.DeleteFunc(n.Tags, func(t string) bool { return len(rest) == 0 || slices.Contains(rest, t) })
		ref := api.Ref(n.ID.String())
		switch {
		case len(keep) > 0 && namespace != "":
			return nil, usagef("%s keeps %s, so that it belongs to no namespace: leave --namespace out, or take all tags away", n.GivenName, strings.Join(keep, ", "))
		case len(keep) > 0:
			return cl.TagNode(cmd.Context(), ref, keep)
		case namespace == "":
			return nil, usagef("without tags %s needs a namespace that owns it: --namespace", n.GivenName)
		}
		return cl.MoveNode(cmd.Context(), ref, api.Ref(namespace))
	})
	c.addNamespaceFlag(cmd, &namespace, "`NAMESPACE` that will own the node")
	return cmd
}

func (c *cli) nodesExpire() *cobra.Command {
	var at string
	var disable, renew bool
	cmd := c.nodeCommand(&cobra.Command{
		Use: "expire NODE", Aliases: []string{"logout", "set-expiry"}, Short: "End the key of a node, so that its machine has to log in again",
		Long: `End the key of a node, now or at a time: it is cut off at that moment, and comes back with its number, name and addresses when
its machine logs in again. --never lets the key live for ever, whatever the machine does later; --renew lets it live as long as if
the machine had logged in now.`,
		Example: `  skein nodes expire -i 2                          # now
  skein nodes expire homeds --at 2027-01-31
  skein nodes expire homeds --at 90d
  skein nodes expire homeds --never
  skein nodes expire homeds --renew`,
	}, nothing, nodeTable, func(cmd *cobra.Command, cl *api.Client, node api.Ref, _ []string) (*api.Node, error) {
		req := api.ExpireNodeRequest{DisableExpiry: disable, Renew: renew}
		if disable && renew {
			return nil, usagef("--never and --renew contradict each other")
		}
		if cmd.Flags().Changed("at") {
			if disable || renew {
				return nil, usagef("--at contradicts --never and --renew")
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
	cmd.Flags().BoolVar(&disable, "never", false, "let it live for ever")
	cmd.Flags().BoolVar(&disable, "disable", false, "the same as --never")
	must(cmd.Flags().MarkHidden("disable"))
	cmd.Flags().BoolVar(&renew, "renew", false, "let it live as long as if the machine had logged in now")
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
