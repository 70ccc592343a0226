// Command skein is the server and its command line.
//
// `skein serve` runs the server; every other command asks the running one over its unix socket, by package api, and prints
// what it answers. No command writes to the database of a running server; backup
// reads a copy of it, and import, restore and db copy refuse while one runs.
//
// # Conventions of every command
//
// Data goes to stdout, everything else to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage. Tables are "A | B" with one row
// a line; on a terminal they are padded. -o json, yaml and json-line print what the API answers, with the same keys.
// Nodes and namespaces may be given by id or by name; an id wins over a name that looks like one. Commands that destroy ask
// first on a terminal, and need --yes without one.
//
// # Files
//
// main.go runs a command line; connect.go finds the server's socket; output.go prints; one more file per noun. serve.go wires
// the server.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
)

func main() {
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

// cli is one run of the command line: its streams and the global flags.
type cli struct {
	in          io.Reader
	out, errOut io.Writer

	config  string
	socket  string
	server  string
	apiKey  string
	keyFile string
	dataDir string
	output  string
	yes     bool
	noColor bool

	started bool // a command has begun its work: from here on errors are failures, before they are wrong usage
}

// usageError is a command line that cannot be meant; it ends with exitUsage.
type usageError struct{ msg string }

func (e *usageError) Error() string { return e.msg }

func usagef(format string, args ...any) error { return &usageError{fmt.Sprintf(format, args...)} }

// run runs one command line and returns its exit code.
func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	c := &cli{in: stdin, out: stdout, errOut: stderr}
	root := newRootCommand(c)
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	cmd, err := root.ExecuteC()
	if err == nil {
		return exitOK
	}
	fmt.Fprintf(stderr, "skein: %s\n", strings.TrimSpace(err.Error()))
	var usage *usageError
	if errors.As(err, &usage) || !c.started {
		fmt.Fprintf(stderr, "Run `%s --help` to see how it is used.\n", cmd.CommandPath())
		return exitUsage
	}
	return exitFailed
}

func newRootCommand(c *cli) *cobra.Command {
	root := &cobra.Command{
		Use:   "skein",
		Short: "A coordination server for Tailscale clients",
		Long: `skein is a self-hosted coordination server for stock Tailscale clients.

"skein serve" runs the server. All other commands ask the running server: over its unix socket, if you run them on the same
machine as a user who may open the socket, or from anywhere with --server and an API key.`,
		Example: `  skein serve                                    # start the server
  skein namespaces create junyao                 # make somebody who owns nodes
  skein preauthkeys create -n junyao             # a key for: tailscale up --login-server URL --auth-key KEY
  skein nodes list
  skein routes enable -i homeds -r 192.168.199.0/24`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			return unknownCommand(cmd, args[0])
		},
		SuggestionsMinimumDistance: 2,
	}
	f := root.PersistentFlags()
	f.StringVarP(&c.config, "config", "c", "", "configuration `FILE` of the server")
	f.StringVar(&c.socket, "socket", "", "unix socket of the server, a `PATH` (default: see \"skein help socket\")")
	f.StringVar(&c.server, "server", "", "`URL` of a server elsewhere, as its clients know it; needs an API key (see \"skein help socket\")")
	f.StringVar(&c.apiKey, "api-key", "", "API `KEY` for --server; others on this machine can see it, SKEIN_API_KEY and --api-key-file are better")
	f.StringVar(&c.keyFile, "api-key-file", "", "`FILE` that holds the API key for --server")
	f.StringVar(&c.dataDir, "data-dir", "", "data `DIR` of the server; its socket is DIR/"+socketName)
	f.StringVarP(&c.output, "output", "o", "", "print as `FORMAT` instead of a table: json, yaml or json-line")
	f.BoolVarP(&c.yes, "yes", "y", false, "do not ask before something is destroyed")
	f.BoolVar(&c.noColor, "no-color", false, "no bold type on a terminal (as does NO_COLOR)")
	must(root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(formats, cobra.ShellCompDirectiveNoFileComp)))

	root.AddCommand(
		newServeCommand(),
		newStatusCommand(c),
		newDoctorCommand(c),
		newNamespacesCommand(c),
		newNodesCommand(c),
		newRoutesCommand(c),
		newServicesCommand(c),
		newPreAuthKeysCommand(c),
		newAdminsCommand(c),
		newAPIKeysCommand(c),
		newOAuthClientsCommand(c),
		newAuditCommand(c),
		newEventsCommand(c),
		newWebhooksCommand(c),
		newPolicyCommand(c),
		newSettingsCommand(c),
		newDNSCommand(c),
		newClusterCommand(c),
		newAuthCommand(c),
		newDERPCommand(c),
		newConfigCommand(c),
		newImportCommand(c),
		newBackupCommand(c),
		newRestoreCommand(c),
		newDBCommand(c),
		newHealthCommand(c),
		newDebugCommand(c),
		newVersionCommand(c),
		newManCommand(c),
		newSocketHelp(),
	)
	root.InitDefaultCompletionCmd()
	for _, sub := range root.Commands() {
		if sub.Name() == "completion" {
			sub.Example = "  skein completion bash > /etc/bash_completion.d/skein\n  source <(skein completion zsh)"
			asGroup(sub)
		}
	}
	explain(root)
	c.completeTagFlags(root)
	c.watch(root)
	return root
}

// watch notes when a command begins its work, and checks the global flags before.
func (c *cli) watch(cmd *cobra.Command) {
	if f := cmd.RunE; f != nil {
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			if err := c.checkOutput(); err != nil {
				return err
			}
			c.started = true
			return f(cmd, args)
		}
	}
	for _, sub := range cmd.Commands() {
		c.watch(sub)
	}
}

// group is a command that only has commands below it.
func group(use string, aliases []string, short, example string, subs ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Aliases: aliases, Short: short, Example: example}
	cmd.AddCommand(subs...)
	return asGroup(cmd)
}

// asGroup makes cmd refuse to be run without one of its commands; cobra would print help and call that success.
func asGroup(cmd *cobra.Command) *cobra.Command {
	cmd.SuggestionsMinimumDistance = 2
	cmd.Args = cobra.ArbitraryArgs
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return unknownCommand(cmd, args[0])
		}
		var names []string
		for _, sub := range cmd.Commands() {
			if sub.IsAvailableCommand() {
				names = append(names, sub.Name())
			}
		}
		return usagef("%q needs a command: %s", cmd.CommandPath(), strings.Join(names, ", "))
	}
	return cmd
}

func unknownCommand(cmd *cobra.Command, name string) error {
	hint := ""
	if s := cmd.SuggestionsFor(name); len(s) > 0 {
		hint = "; did you mean " + strings.Join(s, " or ") + "?"
	}
	return usagef("%q has no command %q%s", cmd.CommandPath(), name, hint)
}

// wantArgs is what stands behind a command, named as in its help: exactly these.
func wantArgs(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < len(names):
			return usagef("%q needs %s", cmd.CommandPath(), strings.Join(names[len(args):], " and "))
		case len(args) > len(names):
			return usagef("%q does not know what to do with %q", cmd.CommandPath(), args[len(names)])
		}
		for i, a := range args {
			if a == "" {
				return usagef("%s must not be empty", names[i])
			}
		}
		return nil
	}
}

// must is for mistakes that every run of the program would show.
func must(err error) {
	if err != nil {
		panic(err)
	}
}
