package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/skein-vpn/skein/api"
	"github.com/skein-vpn/skein/policy"
)

// shortChanges is how many changes are told beside something else; `policy diff` tells all.
const shortChanges = 10

func newPolicyCommand(c *cli) *cobra.Command {
	return group("policy", []string{"acl", "policies"}, "Who reaches what",
		`  skein policy get > policy.hujson
  skein policy diff policy.hujson                   # what it would open and close
  skein policy set policy.hujson -m "room for anna"
  skein policy explain laptop homeds:22             # is it allowed, and by which line`,
		c.policyGet(), c.policySet(), c.policyCheck(), c.policyEdit(), c.policyDiff(), c.policyHistory(), c.policyRollback(), c.policyExplain())
}

func (c *cli) policyGet() *cobra.Command {
	var version int64
	cmd := &cobra.Command{
		Use: "get", Aliases: []string{"show", "cat"}, Short: "Print the policy, or an older version of it",
		Long: `Print the policy as it was set, with its comments, or an older version of it. Nothing is printed if there is none: then
everybody reaches everybody.`,
		Example: `  skein policy get > policy.hujson
  skein policy get --version 3
  skein policy get -o json              # with version, author and etag`,
		Args: wantArgs(), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			p, err := c.policyOrVersion(cmd, cl, version)
			if err != nil {
				return err
			}
			if c.output != "" {
				return writeValue(c.out, c.output, p)
			}
			switch {
			case p.Text == "" && cmd.Flags().Changed("version"):
				fmt.Fprintf(c.errOut, "Version %s is no policy: everybody reached everybody.\n", p.Version)
			case p.Text == "":
				fmt.Fprintln(c.errOut, "There is no policy: everybody reaches everybody.")
			case !p.InForce && !cmd.Flags().Changed("version"):
				fmt.Fprintln(c.errOut, "Warning: the server cannot use this policy; an older one is in force. `skein policy get | skein policy check -` says why.")
			}
			_, err = io.WriteString(c.out, p.Text)
			return err
		},
	}
	cmd.Flags().Int64Var(&version, "version", 0, "`NUMBER` of an older version, see skein policy history")
	must(cmd.RegisterFlagCompletionFunc("version", forFlag(c.completeVersions)))
	return cmd
}

// policyOrVersion is the newest policy, or the version that the flag of that name says.
func (c *cli) policyOrVersion(cmd *cobra.Command, cl *api.Client, version int64) (*api.PolicyText, error) {
	if !cmd.Flags().Changed("version") {
		return cl.Policy(cmd.Context())
	}
	if version < 1 {
		return nil, usagef("--version %d: versions are counted from 1", version)
	}
	return cl.PolicyVersion(cmd.Context(), api.ID(version))
}

// fileArg is the file argument of a command: FILE, or - for the standard input, or --file as some scripts have it.
type fileArg struct{ flag string }

func addFileArg(cmd *cobra.Command) *fileArg {
	f := new(fileArg)
	cmd.Flags().StringVarP(&f.flag, "file", "f", "", "the same as `FILE`")
	must(cmd.Flags().MarkHidden("file"))
	return f
}

// only is the file that the command line names; empty if it names none and need not.
func (f *fileArg) only(cmd *cobra.Command, args []string, optional bool) (string, error) {
	if f.flag != "" {
		args = append([]string{f.flag}, args...)
	}
	if optional && len(args) == 0 {
		return "", nil
	}
	if err := wantArgs("FILE")(cmd, args); err != nil {
		return "", err
	}
	return args[0], nil
}

// shown is the file's name in messages.
func shown(file string) string {
	if file == "-" {
		return "<stdin>"
	}
	return file
}

// readPolicy reads a policy that somebody has written.
func (c *cli) readPolicy(file string) (string, error) {
	in := c.in
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return "", err
		}
		defer f.Close()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, policy.MaxSize+1))
	switch {
	case err != nil:
		return "", fmt.Errorf("reading %s: %w", shown(file), err)
	case len(b) > policy.MaxSize:
		return "", fmt.Errorf("%s is too large: a policy has at most %d MiB", shown(file), policy.MaxSize>>20)
	case strings.TrimSpace(string(b)) == "":
		return "", fmt.Errorf("%s is empty. To let everybody reach everybody: skein policy set --none", shown(file))
	}
	return string(b), nil
}

// tellFaults prints faults as compilers do, so that editors find the places.
func (c *cli) tellFaults(file string, faults []api.PolicyFault) {
	for _, f := range faults {
		where := shown(file)
		if f.Line > 0 {
			where += ":" + strconv.Itoa(f.Line)
			if f.Column > 0 {
				where += ":" + strconv.Itoa(f.Column)
			}
		}
		if f.Path != "" {
			where += ": " + f.Path
		}
		fmt.Fprintf(c.errOut, "%s: %s\n", printable(where), printable(f.Text))
	}
}

func (c *cli) tellWarnings(file string, warnings []api.PolicyWarning) {
	for _, w := range warnings {
		fmt.Fprintf(c.errOut, "%s:%d: warning: %s\n", printable(shown(file)), w.Line, printable(w.Text))
	}
}

// refused is err for the end of a command; the faults of a policy are told before.
func (c *cli) refused(file string, err error) error {
	var pe *api.PolicyError
	if !errors.As(err, &pe) {
		return err
	}
	c.tellFaults(file, pe.Faults)
	return fmt.Errorf("%s; the policy stays as it is", countFaults(pe.Faults))
}

func countFaults(faults []api.PolicyFault) string {
	if len(faults) == 1 {
		return "the policy has a fault"
	}
	return fmt.Sprintf("the policy has %d faults", len(faults))
}

// tellChanges prints what opens and closes, one a line, at most limit of them; 0: all.
func tellChanges(w io.Writer, changes []api.PolicyChange, more bool, further, limit int) error {
	rest := further
	if limit > 0 && len(changes) > limit {
		rest += len(changes) - limit
		changes = changes[:limit]
	}
	for _, ch := range changes {
		if _, err := fmt.Fprintln(w, printable(ch.Text)); err != nil {
			return fmt.Errorf("writing the changes: %w", err)
		}
	}
	switch {
	case more && further == 0:
		fmt.Fprintln(w, "… and so much more that not everybody was looked at")
	case rest > 0:
		fmt.Fprintf(w, "… and %d more\n", rest)
	}
	return nil
}

// unknownFlag is --allow-unknown-users.
func unknownFlag(cmd *cobra.Command, allow *bool) {
	cmd.Flags().BoolVar(allow, "allow-unknown-users", false, "let the policy name users that do not exist yet; they are warned about")
}

const noChanges = "Nobody gains or loses anything."

// tellSet says what has been done.
func (c *cli) tellSet(file string, a *api.SetPolicyAnswer) error {
	c.tellWarnings(file, a.Warnings)
	if c.output != "" {
		return writeValue(c.out, c.output, a)
	}
	if !a.Changed {
		fmt.Fprintln(c.errOut, "It is the policy already; nothing is changed.")
		return nil
	}
	if err := tellChanges(c.out, a.Changes, a.More, a.Further, shortChanges); err != nil {
		return err
	}
	if len(a.Changes) == 0 && !a.More {
		fmt.Fprintln(c.errOut, noChanges)
	}
	note := ""
	if a.Text == "" {
		note = ": no policy, everybody reaches everybody"
	}
	fmt.Fprintf(c.errOut, "Version %s is in force%s.\n", a.Version, note)
	return nil
}

// onBehalf is who asked for a change with sudo; the server sees only root.
func onBehalf() string {
	if u := os.Getenv("SUDO_USER"); u != "root" {
		return u
	}
	return ""
}

func (c *cli) policySet() *cobra.Command {
	var req api.SetPolicyRequest
	var ifVersion int64
	cmd := &cobra.Command{
		Use: "set FILE|-", Short: "Replace the policy",
		Long: `Replace the policy by the text in FILE, or by what stands on the standard input. It is understood, compiled and its tests are
run first; if anything is wrong, the policy stays as it is. Comments and formatting are kept, and the old text stays in
the history. It takes effect at once, for connected clients too. What opened and closed is printed.

A user that does not exist is a fault, since most such names are misspelt: --allow-unknown-users makes it a warning. Where
people sign in by an identity provider, mail addresses of those who have not yet are warned about only.`,
		Example: `  skein policy set policy.hujson
  skein policy set policy.hujson -m "room for anna" --if-version 3
  skein policy set - < policy.hujson
  skein policy set --none                 # everybody reaches everybody`,
	}
	file := addFileArg(cmd)
	cmd.Flags().StringVarP(&req.Comment, "comment", "m", "", "`TEXT` for the history: why")
	cmd.Flags().Int64Var(&ifVersion, "if-version", 0, "only if the policy is version `NUMBER` (0: none was ever set), so that nobody's change is lost")
	cmd.Flags().BoolVar(&req.None, "none", false, "no policy: everybody reaches everybody")
	unknownFlag(cmd, &req.AllowUnknownUsers)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		name, err := file.only(cmd, args, req.None)
		if err != nil {
			return err
		}
		if req.None && name != "" {
			return usagef("--none and %s contradict each other", name)
		}
		if cmd.Flags().Changed("if-version") {
			if ifVersion < 0 {
				return usagef("--if-version %d: versions are counted from 1", ifVersion)
			}
			req.IfMatch = api.Ref(strconv.FormatInt(ifVersion, 10))
		}
		if !req.None {
			if req.Text, err = c.readPolicy(name); err != nil {
				return err
			}
		}
		cl, err := c.client()
		if err != nil {
			return err
		}
		if req.None {
			if err := c.confirm(cmd, "Take the policy away, so that everybody reaches everybody?"); err != nil {
				return err
			}
		}
		req.Changes, req.Author = true, onBehalf()
		a, err := cl.SetPolicy(cmd.Context(), req)
		if err != nil {
			return c.refused(name, err)
		}
		return c.tellSet(name, a)
	}
	return cmd
}

func (c *cli) policyCheck() *cobra.Command {
	var offline, allowUnknown bool
	cmd := &cobra.Command{
		Use: "check FILE|-", Aliases: []string{"validate", "test"}, Short: "Say whether a policy would be accepted",
		Long: `Say whether a policy would be accepted, and whether its tests hold for the users and nodes that there are. Nothing is changed.
Faults are printed as FILE:LINE:COLUMN.

With --offline no server is asked: the text is checked and its tests are run as if there were no users and nodes, so that
tests about addresses of nodes, unknown users, and what depends on the tailnet's domain or on the roles of users, cannot be
told.`,
		Example: `  skein policy check policy.hujson
  skein policy check --offline policy.hujson    # in a pipeline
  skein policy get | skein policy check -`,
	}
	file := addFileArg(cmd)
	cmd.Flags().BoolVar(&offline, "offline", false, "do not ask a server")
	unknownFlag(cmd, &allowUnknown)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		name, err := file.only(cmd, args, false)
		if err != nil {
			return err
		}
		text, err := c.readPolicy(name)
		if err != nil {
			return err
		}
		var a *api.CheckPolicyAnswer
		if offline {
			a, err = checkOffline(text)
		} else {
			var cl *api.Client
			if cl, err = c.client(); err != nil {
				return fmt.Errorf("%w\nWithout a server: skein policy check --offline", err)
			}
			a, err = cl.CheckPolicy(cmd.Context(), api.PolicyRequest{Text: text, AllowUnknownUsers: allowUnknown})
		}
		if err != nil {
			return err
		}
		c.tellFaults(name, a.Faults)
		c.tellWarnings(name, a.Warnings)
		if c.output != "" {
			if err := writeValue(c.out, c.output, a); err != nil {
				return err
			}
		}
		if !a.Valid {
			return errors.New(countFaults(a.Faults))
		}
		note := ""
		if offline {
			note = ", as far as can be told without the users and nodes of a server"
		}
		fmt.Fprintf(c.errOut, "%s is valid%s.\n", shown(name), note)
		return nil
	}
	return cmd
}

// checkOffline is CheckPolicy in a tailnet without users and nodes.
func checkOffline(text string) (*api.CheckPolicyAnswer, error) {
	a := &api.CheckPolicyAnswer{Faults: []api.PolicyFault{}, Warnings: []api.PolicyWarning{}}
	p, err := api.ParsePolicy(text)
	if err == nil {
		for _, w := range p.Warnings() {
			a.Warnings = append(a.Warnings, api.PolicyWarning{Line: w.Line, Text: w.Text})
		}
		err = api.TestPolicy(p)
	}
	var pe *api.PolicyError
	switch {
	case errors.As(err, &pe):
		a.Faults = pe.Faults
	case err != nil:
		return nil, err
	}
	a.Valid = len(a.Faults) == 0
	return a, nil
}

func (c *cli) policyDiff() *cobra.Command {
	var req api.PolicyRequest
	var version int64
	cmd := &cobra.Command{
		Use: "diff FILE|-", Aliases: []string{"preview"}, Short: "Say what a policy would open and close",
		Long: `Say in words what a policy would open and close, compared with the one in force, for the users, nodes and routes that there
are. Nothing is changed. Nodes that are treated alike are named by their user or tags.`,
		Example: `  skein policy diff policy.hujson
  skein policy diff --version 3           # what going back would change
  skein policy diff --none                # what no policy at all would open`,
	}
	file := addFileArg(cmd)
	cmd.Flags().Int64Var(&version, "version", 0, "compare with version `NUMBER` instead of a file")
	cmd.Flags().BoolVar(&req.None, "none", false, "compare with no policy instead of a file")
	unknownFlag(cmd, &req.AllowUnknownUsers)
	must(cmd.RegisterFlagCompletionFunc("version", forFlag(c.completeVersions)))
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		other := cmd.Flags().Changed("version")
		name, err := file.only(cmd, args, other || req.None)
		if err != nil {
			return err
		}
		switch {
		case other && req.None, name != "" && (other || req.None):
			return usagef("FILE, --version and --none contradict each other: give one of them")
		case other && version < 1:
			return usagef("--version %d: versions are counted from 1", version)
		}
		req.Version = api.ID(version)
		if name != "" {
			if req.Text, err = c.readPolicy(name); err != nil {
				return err
			}
		}
		cl, err := c.client()
		if err != nil {
			return err
		}
		d, err := cl.DiffPolicy(cmd.Context(), req)
		if err != nil {
			return c.refused(name, err)
		}
		if c.output != "" {
			err = writeValue(c.out, c.output, d)
		} else if err = tellChanges(c.out, d.Changes, d.More, d.Further, 0); err == nil && len(d.Changes) == 0 {
			fmt.Fprintln(c.errOut, noChanges)
		}
		if err != nil || len(d.Faults) == 0 {
			return err
		}
		if name == "" {
			name = "version " + req.Version.String()
		}
		c.tellFaults(name, d.Faults)
		return fmt.Errorf("it would be refused: %s", countFaults(d.Faults))
	}
	return cmd
}

func (c *cli) policyHistory() *cobra.Command {
	var limit int
	cmd := &cobra.Command{
		Use: "history", Aliases: []string{"log", "versions"}, Short: "Show the versions of the policy, the newest first",
		Example: `  skein policy history
  skein policy history -n 5 -o json`,
		Args: wantArgs(), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("limit") && limit < 1 {
				return usagef("--limit %d shows nothing", limit)
			}
			cl, err := c.client()
			if err != nil {
				return err
			}
			versions, err := cl.PolicyHistory(cmd.Context(), limit)
			if err != nil {
				return err
			}
			t := &table{
				head: []string{"Version", "Set", "Author", "Bytes", "In force", "Comment"},
				hint: "No policy was ever set: everybody reaches everybody. Set one: skein policy edit",
			}
			for _, v := range versions {
				t.add(v.Version.String(), clock(v.UpdatedAt, ""), v.Author, strconv.Itoa(v.Bytes), yesNo(v.InForce), v.Comment)
			}
			if err := c.print(versions, t); err != nil || len(versions) == 0 || versions[0].InForce {
				return err
			}
			p, err := cl.Policy(cmd.Context())
			if err != nil {
				return err
			}
			if p.Source == api.FromFile {
				fmt.Fprintln(c.errOut, "None of these is in force: the policy is read from a file (policy.path).")
			} else {
				fmt.Fprintln(c.errOut, "Warning: the server cannot use the newest version; an older one is in force. `skein policy get | skein policy check -` says why.")
			}
			return nil
		},
	}
	cmd.Flags().IntVarP(&limit, "limit", "n", 0, "at most `NUMBER` versions (default 50)")
	return cmd
}

func (c *cli) policyRollback() *cobra.Command {
	var req api.RollbackPolicyRequest
	cmd := &cobra.Command{
		Use: "rollback VERSION", Aliases: []string{"revert"}, Short: "Go back to the text of an older version",
		Long: `Go back to the text of an older version, as a new version: the history loses nothing. What opened and closed is printed;
skein policy diff --version VERSION says it before.`,
		Example: `  skein policy history
  skein policy rollback 3 -m "anna was locked out"`,
		Args: wantArgs("VERSION"), ValidArgsFunction: c.completeVersions,
		RunE: func(cmd *cobra.Command, args []string) error {
			version, err := strconv.ParseInt(args[0], 10, 64)
			if err != nil || version < 1 {
				return usagef("VERSION %q is not a number such as 3", args[0])
			}
			cl, err := c.client()
			if err != nil {
				return err
			}
			old, err := cl.PolicyVersion(cmd.Context(), api.ID(version))
			if err != nil {
				return err
			}
			if old.Text == "" {
				if err := c.confirm(cmd, "That version is no policy. Let everybody reach everybody?"); err != nil {
					return err
				}
			}
			req.Version, req.Changes, req.Author = old.Version, true, onBehalf()
			a, err := cl.RollbackPolicy(cmd.Context(), req)
			if err != nil {
				return c.refused("version "+args[0], err)
			}
			return c.tellSet("version "+args[0], a)
		},
	}
	cmd.Flags().StringVarP(&req.Comment, "comment", "m", "", "`TEXT` for the history: why")
	return cmd
}

// completeVersions suggests versions of the policy.
func (c *cli) completeVersions(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return c.complete(cmd, func(ctx context.Context, cl *api.Client) (out []cobra.Completion, err error) {
		versions, err := cl.PolicyHistory(ctx, 0)
		for _, v := range versions {
			out = append(out, cobra.CompletionWithDesc(v.Version.String(), strings.TrimSpace(clock(v.UpdatedAt, "")+" "+printable(v.Comment))))
		}
		return out, err
	})
}

func (c *cli) policyExplain() *cobra.Command {
	var req api.ExplainRequest
	cmd := &cobra.Command{
		Use: "explain SRC DST[:PORT]", Aliases: []string{"why", "trace"}, Short: "Say whether something is allowed, and by which line",
		Long: `Say whether SRC may reach DST, and by which lines of the policy or why not. Both are nodes, or users, tags, groups or
autogroups, which stand for all their nodes; user:NAME is the user where a node has the same name. DST may be an address
behind a router. Without a port, all that is open is told. Between nodes, the rules for SSH sessions and the capabilities
of applications are told too. Both answers, yes and no, end with exit code 0.`,
		Example: `  skein policy explain laptop homeds:22
  skein policy explain anna@example.org tag:server:443 --proto udp
  skein policy explain group:admins autogroup:tagged:22
  skein policy explain laptop 192.168.199.5
  skein policy explain laptop "[fd7a:115c:a1e0::2]:80"`,
		Args: wantArgs("SRC", "DST"),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, toComplete string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if len(args) > 1 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return c.completeNodes(cmd, nil, toComplete)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			req.Src, req.Dst = api.Ref(args[0]), api.Ref(args[1])
			a, err := cl.ExplainPolicy(cmd.Context(), req)
			if err != nil {
				return err
			}
			if c.output != "" {
				return writeValue(c.out, c.output, a)
			}
			for _, x := range a.Explanations {
				if _, err := io.WriteString(c.out, explained(x)); err != nil {
					return fmt.Errorf("writing the explanation: %w", err)
				}
			}
			if len(a.Explanations) == 0 {
				fmt.Fprintln(c.errOut, "There is nothing to explain: both are the same node.")
			}
			if a.More {
				fmt.Fprintln(c.errOut, "… and more pairs of nodes; name one of the nodes")
			}
			return nil
		},
	}
	cmd.Flags().StringVar((*string)(&req.Proto), "proto", "", "`PROTOCOL`: tcp, udp, icmp, sctp, or a number (default: TCP or UDP)")
	must(cmd.RegisterFlagCompletionFunc("proto", cobra.FixedCompletions([]string{"tcp", "udp", "icmp", "icmpv6", "sctp"}, cobra.ShellCompDirectiveNoFileComp)))
	return cmd
}

// explained is an explanation in words: the answer on a line, its reasons below.
func explained(x *api.Explanation) string {
	var b strings.Builder
	line := func(indent, format string, args ...any) {
		fmt.Fprintf(&b, "%s%s\n", indent, printable(fmt.Sprintf(format, args...)))
	}
	answer := "no"
	if x.Allowed {
		answer = "yes"
	}
	dst := strings.Join(x.Dst.Addresses, ", ")
	if x.Dst.Node != 0 {
		dst = fmt.Sprintf("%s (%s) at %s", x.Dst.Name, x.Dst.Node, dst)
	}
	what := x.Proto
	if x.Port != 0 {
		if what == "" {
			what = "port"
		}
		what += " " + strconv.Itoa(x.Port)
	}
	if what != "" {
		what = ", " + what
	}
	line("", "%s: %s (%s) → %s%s", answer, x.Src.Name, x.Src.Node, dst, what)
	for _, r := range x.Through {
		line("  ", "through %s (%s)", r.Name, r.Node)
	}
	if x.Why != "" {
		line("  ", "%s", x.Why)
	}
	for _, r := range append(x.Rules, x.Near...) {
		line("  ", "%s", r.Text)
		if r.Source != "" {
			line("    ", "%s", r.Source)
		}
	}
	var beside []api.PolicyRule
	for _, r := range x.SSH {
		beside = append(beside, r.PolicyRule)
	}
	for _, r := range x.Capabilities {
		beside = append(beside, r.PolicyRule)
	}
	for _, r := range beside {
		line("  ", "%s", r.Text)
		if r.Source != "" {
			line("    ", "%s", r.Source)
		}
	}
	for _, n := range x.Notes {
		line("  ", "but %s", n)
	}
	return b.String()
}
