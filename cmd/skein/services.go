package main

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"github.com/skein-vpn/skein/api"
)

func newServicesCommand(c *cli) *cobra.Command {
	return group("services", []string{"service", "svc"}, "Names and addresses that several nodes can host",
		`  skein services set web --ports tcp:80 --comment "the intranet"
  skein services list
  skein services approve web -i rack1     # where "tailscale serve --service=svc:web --http=80 localhost:8080" runs`,
		c.servicesList(), c.servicesGet(), c.servicesSet(), c.servicesDelete(),
		c.servicesDecide("approve", "Let a node host a service, whatever the policy says", (*api.Client).ApproveServiceHost),
		c.servicesDecide("refuse", "Keep a node from hosting a service, whatever the policy says", (*api.Client).RefuseServiceHost))
}

func servicesTable(services ...*api.Service) *table {
	t := &table{
		head: []string{"Service", "Name", "Addresses", "Ports", "Tags", "Hosts", "Comment"},
		hint: "There are no services. Make one: skein services set NAME --ports tcp:443",
	}
	for _, s := range services {
		var hosts []string
		for _, h := range s.Hosts {
			hosts = append(hosts, h.NodeName+" ("+hostState(h)+")")
		}
		t.add(s.Name, s.DNSName, strings.Join(s.Addresses, ", "), strings.Join(s.Ports, ", "), strings.Join(s.Tags, ", "), strings.Join(hosts, ", "), s.Comment)
	}
	return t
}

// hostState is what a host is doing, in a word or two.
func hostState(h *api.ServiceHost) string {
	switch {
	case h.Approval == "refused":
		return "refused"
	case !h.Offered:
		return "not offering it"
	case h.Approval == "":
		return "needs approval"
	case !h.Ready:
		return "wrong ports"
	case !h.Active:
		return "drained"
	case h.Carries:
		return "serving"
	case !h.Online:
		return "offline"
	}
	return "standing by"
}

func hostsTable(s *api.Service) *table {
	t := &table{
		head: []string{"ID", "Node", "State", "Approval", "Ports"},
		hint: "No node hosts the service. On a tagged one: tailscale serve --service=" + s.Name + " --http=80 localhost:8080",
	}
	for _, h := range s.Hosts {
		t.add(h.NodeID.String(), h.NodeName, hostState(h), h.Approval, strings.Join(h.Ports, ", "))
	}
	return t
}

// completeServices suggests the names of services for the first argument.
func (c *cli) completeServices(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return c.complete(cmd, func(ctx context.Context, cl *api.Client) (out []cobra.Completion, err error) {
		services, err := cl.ListServices(ctx)
		for _, s := range services {
			out = append(out, cobra.CompletionWithDesc(s.Name, s.Comment))
		}
		return out, err
	})
}

func (c *cli) servicesList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "Show all services and their hosts",
		Example: "  skein services list",
		Args:    wantArgs(), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			services, err := cl.ListServices(cmd.Context())
			if err != nil {
				return err
			}
			return c.print(services, servicesTable(services...))
		},
	}
}

func (c *cli) servicesGet() *cobra.Command {
	return &cobra.Command{
		Use: "get SERVICE", Aliases: []string{"show", "hosts"}, Short: "Show the hosts of a service",
		Example: "  skein services get web",
		Args:    wantArgs("SERVICE"), ValidArgsFunction: c.completeServices,
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			s, err := cl.GetService(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return c.print(s, hostsTable(s))
		},
	}
}

func (c *cli) servicesSet() *cobra.Command {
	var ipv4, display, comment string
	var ports, tags, notes []string
	cmd := &cobra.Command{
		Use: "set SERVICE", Aliases: []string{"create", "add"}, Short: "Make a service, or change one",
		Long: `Make a service, or change one: what is not named stays. A service has a name in MagicDNS and addresses of its own. Nodes with a tag
host it ("tailscale serve --service=svc:NAME …") once the policy (autoApprovers.services) or "skein services approve" lets them;
clients are sent to one of them, and to another when that one fails. Policies name it svc:NAME, or by its address.`,
		Example: `  skein services set web --ports tcp:80,tcp:443
  skein services set db --ports tcp:5432 --tags tag:db --ipv4 100.64.100.1
  skein services set web --comment "the intranet"`,
		Args: wantArgs("SERVICE"), ValidArgsFunction: c.completeServices,
	}
	f := cmd.Flags()
	f.StringSliceVar(&ports, "ports", nil, "`PORT`s that its hosts must serve: tcp:443, tcp:8000-8010 or do-not-validate")
	f.StringSliceVar(&tags, "tags", nil, "`TAG`s of the service, for autoApprovers.services")
	f.StringVar(&comment, "comment", "", "`TEXT` for people")
	f.StringVar(&display, "display-name", "", "`NAME` for people")
	f.StringSliceVar(&notes, "annotations", nil, "`KEY=VALUE` of other programs, all of them")
	f.StringVar(&ipv4, "ipv4", "", "`ADDRESS` that it shall have (default: a free one)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var req api.ServiceRequest
		given := func(name string, value *string) *string {
			if !f.Changed(name) {
				return nil
			}
			return value
		}
		req.IPv4, req.DisplayName, req.Comment = given("ipv4", &ipv4), given("display-name", &display), given("comment", &comment)
		if f.Changed("ports") {
			req.Ports = append([]string{}, ports...)
		}
		if f.Changed("tags") {
			req.Tags = append([]string{}, tags...)
		}
		if f.Changed("annotations") {
			req.Annotations = map[string]string{}
			for _, n := range notes {
				key, value, ok := strings.Cut(n, "=")
				if !ok {
					return usagef("--annotations: %q is not KEY=VALUE", n)
				}
				req.Annotations[key] = value
			}
		}
		cl, err := c.client()
		if err != nil {
			return err
		}
		s, err := cl.SetService(cmd.Context(), args[0], req)
		if err != nil {
			return err
		}
		return c.print(s, servicesTable(s))
	}
	return cmd
}

func (c *cli) servicesDelete() *cobra.Command {
	return &cobra.Command{
		Use: "delete SERVICE", Aliases: []string{"rm", "remove"}, Short: "Delete a service; its addresses become free",
		Example: "  skein services delete web",
		Args:    wantArgs("SERVICE"), ValidArgsFunction: c.completeServices,
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			s, err := cl.GetService(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if err := c.confirm(cmd, "Delete the service "+s.Name+"?"); err != nil {
				return err
			}
			if err := cl.DeleteService(cmd.Context(), s.Name); err != nil {
				return err
			}
			return c.done("The service %s is deleted.", s.Name)
		},
	}
}

// servicesDecide is the command that decides about one host.
func (c *cli) servicesDecide(verb, short string, call func(*api.Client, context.Context, string, api.Ref) (*api.Service, error)) *cobra.Command {
	cmd := &cobra.Command{
		Use: verb + " SERVICE -i NODE", Short: short,
		Example:           "  skein services " + verb + " web -i rack1",
		Args:              wantArgs("SERVICE"),
		ValidArgsFunction: c.completeServices,
	}
	node := c.addNodeFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ref, err := node.only(cmd, nil)
		if err != nil {
			return err
		}
		cl, err := c.client()
		if err != nil {
			return err
		}
		s, err := call(cl, cmd.Context(), args[0], ref)
		if err != nil {
			return err
		}
		return c.print(s, hostsTable(s))
	}
	return cmd
}
