package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/skein-vpn/skein/api"
)

func newRoutesCommand(c *cli) *cobra.Command {
	return group("routes", []string{"route"}, "Networks behind nodes, and exit nodes",
		`  skein routes list -i homeds
  skein routes enable -i homeds -r 192.168.199.0/24
  skein routes disable -i homeds -a`,
		c.routesList(), c.routesEnable(), c.routesDisable())
}

// enabled is the cell of the column Enabled.
func enabled(r *api.Route) string {
	if r.Enabled && !r.Advertised {
		return "true (not advertised now)"
	}
	return fmt.Sprint(r.Enabled)
}

// routesTable is the routes of one node.
func routesTable(routes []*api.Route) *table {
	t := &table{
		head: []string{"Route", "Enabled"},
		hint: "The node offers no routes. On that machine: tailscale set --advertise-routes=PREFIX",
	}
	for _, r := range routes {
		t.add(r.Prefix, enabled(r))
	}
	return t
}

// allRoutesTable is the routes of all nodes.
func allRoutesTable(routes []*api.Route) *table {
	t := &table{
		head: []string{"ID", "Node", "Route", "Enabled", "Primary"},
		hint: "No node offers routes. On a router: tailscale set --advertise-routes=PREFIX",
	}
	for _, r := range routes {
		t.add(r.NodeID.String(), r.NodeName, r.Prefix, enabled(r), fmt.Sprint(r.IsPrimary))
	}
	return t
}

// listRoutes prints the routes that f chooses.
func (c *cli) listRoutes(cmd *cobra.Command, f api.RouteFilter) error {
	cl, err := c.client()
	if err != nil {
		return err
	}
	routes, err := cl.ListRoutes(cmd.Context(), f)
	if err != nil {
		return err
	}
	if f.Node == "" {
		return c.print(routes, filtered(cmd, allRoutesTable(routes)))
	}
	return c.print(routes, routesTable(routes))
}

func (c *cli) routesList() *cobra.Command {
	var f api.RouteFilter
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls", "show"}, Short: "Show the routes of all nodes, or of one, or some",
		Example: `  skein routes list
  skein routes list -i homeds
  skein routes list --enabled=false     # what waits: skein routes enable
  skein routes list --prefix 10.8.3.4   # through which routes an address is reached`,
		ValidArgsFunction: c.completeNodes,
	}
	node := c.addNodeFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 && !cmd.Flags().Changed("identifier") {
			return c.listRoutes(cmd, f)
		}
		ref, err := node.only(cmd, args)
		if err != nil {
			return err
		}
		f.Node = ref
		return c.listRoutes(cmd, f)
	}
	yesNoFlag(cmd, &f.Enabled, "enabled", "only routes that are enabled, or with --enabled=false those that are not")
	yesNoFlag(cmd, &f.Advertised, "advertised", "only routes that their node offers, or with --advertised=false does not")
	yesNoFlag(cmd, &f.Primary, "primary", "only routes that their node carries now, or with --primary=false does not")
	yesNoFlag(cmd, &f.Exit, "exit", "only routes of exit nodes, or with --exit=false others")
	cmd.Flags().StringVar(&f.Prefix, "prefix", "", "only this `PREFIX`, or of an address those that it lies in")
	must(cmd.RegisterFlagCompletionFunc("prefix", cobra.NoFileCompletions))
	return cmd
}

// routesChange makes cmd one that changes the routes of one node; call does it once the request is complete.
func (c *cli) routesChange(cmd *cobra.Command, call func(ctx context.Context, cl *api.Client, req api.RoutesRequest) ([]*api.Route, error)) *cobra.Command {
	var req api.RoutesRequest
	node := c.addNodeFlag(cmd)
	cmd.ValidArgsFunction = c.completeNodes
	cmd.Flags().StringSliceVarP(&req.Routes, "route", "r", nil, "`PREFIX`es, separated by commas or repeated")
	cmd.Flags().StringSliceVar(&req.Routes, "routes", nil, "the same as --route")
	must(cmd.Flags().MarkHidden("routes"))
	cmd.Flags().BoolVarP(&req.All, "all", "a", false, "all routes of the node")
	for _, name := range []string{"route", "routes"} {
		must(cmd.RegisterFlagCompletionFunc(name, c.completeRoutes(node)))
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ref, err := node.only(cmd, args)
		if err != nil {
			return err
		}
		req.Node = ref
		switch {
		case req.All && len(req.Routes) > 0:
			return usagef("-a and -r contradict each other")
		case !req.All && len(req.Routes) == 0:
			return usagef("%q needs -r PREFIX or -a", cmd.CommandPath())
		}
		if f := cmd.Flags().Lookup("force"); f != nil {
			req.AllowUnadvertised = f.Value.String() == "true"
		}
		cl, err := c.client()
		if err != nil {
			return err
		}
		routes, err := call(cmd.Context(), cl, req)
		if err != nil {
			return err
		}
		return c.print(routes, routesTable(routes))
	}
	return cmd
}

func (c *cli) routesEnable() *cobra.Command {
	var exactly bool
	cmd := c.routesChange(&cobra.Command{
		Use: "enable -i NODE -r PREFIX", Aliases: []string{"approve"}, Short: "Let a node carry routes that it offers",
		Long: `Let a node carry routes that it offers, in addition to those that are enabled already. The routes of an exit node, 0.0.0.0/0 and
::/0, are enabled together, whichever of them is named. A route stays enabled while the node does not offer it.`,
		Example: `  skein routes enable -i homeds -r 192.168.199.0/24
  skein routes enable -i 2 -r 10.1.0.0/16,10.2.0.0/16
  skein routes enable -i 2 -a                           # all that it offers
  skein routes enable -i 2 -r 10.1.0.0/16 --exactly     # this one and no other`,
	}, func(ctx context.Context, cl *api.Client, req api.RoutesRequest) ([]*api.Route, error) {
		if exactly && !req.All {
			return cl.ExactRoutes(ctx, req)
		}
		if !exactly {
			return cl.EnableRoutes(ctx, req)
		}
		// All and no other: what the node offers now.
		req.All = false
		routes, err := cl.ListRoutes(ctx, api.RouteFilter{Node: req.Node})
		if err != nil {
			return nil, err
		}
		for _, r := range routes {
			if r.Advertised {
				req.Routes = append(req.Routes, r.Prefix)
			}
		}
		return cl.ExactRoutes(ctx, req)
	})
	cmd.Flags().BoolVar(&exactly, "exactly", false, "disable all other routes of the node")
	cmd.Flags().Bool("force", false, "enable it although the node does not offer it (yet)")
	return cmd
}

func (c *cli) routesDisable() *cobra.Command {
	return c.routesChange(&cobra.Command{
		Use: "disable -i NODE -r PREFIX", Short: "Take routes away from a node",
		Long: `Take routes away from a node, at once and for all clients. The routes of an exit node, 0.0.0.0/0 and ::/0, are disabled together.`,
		Example: `  skein routes disable -i homeds -r 192.168.199.0/24
  skein routes disable -i 2 -a`,
	}, func(ctx context.Context, cl *api.Client, req api.RoutesRequest) ([]*api.Route, error) {
		return cl.DisableRoutes(ctx, req)
	})
}
