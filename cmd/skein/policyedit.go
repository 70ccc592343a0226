package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/skein-vpn/skein/api"
)

// firstPolicy is what the editor shows where there is no policy yet.
const firstPolicy = `// There is no policy yet: everybody reaches everybody. This one says the same in words.
{
	"acls": [
		{"action": "accept", "src": ["*"], "dst": ["*:*"]},
	],
}
`

func (c *cli) policyEdit() *cobra.Command {
	var req api.SetPolicyRequest
	cmd := &cobra.Command{
		Use: "edit", Short: "Change the policy in an editor",
		Long: `Change the policy in the editor that VISUAL or EDITOR names, or else in vi. What would open and close is shown and must be
confirmed; faults are shown and can be mended. If somebody else changes the policy meanwhile, nothing is overwritten and
your text is kept.`,
		Example: `  skein policy edit
  EDITOR=nano skein policy edit -m "room for anna"`,
		Args: wantArgs(), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !isTerminal(c.in) || !isTerminal(c.out) {
				return usagef("%q needs a terminal; without one: skein policy get > FILE, then skein policy set FILE", cmd.CommandPath())
			}
			cl, err := c.client()
			if err != nil {
				return err
			}
			return c.editPolicy(cmd, cl, req)
		},
	}
	unknownFlag(cmd, &req.AllowUnknownUsers)
	cmd.Flags().StringVarP(&req.Comment, "comment", "m", "", "`TEXT` for the history: why")
	return cmd
}

// editPolicy edits a copy until it is in force or given up. The copy is kept if work would be lost otherwise.
// req is what to ask for when it is put in force, but for the text.
func (c *cli) editPolicy(cmd *cobra.Command, cl *api.Client, req api.SetPolicyRequest) (err error) {
	old, err := cl.Policy(cmd.Context())
	if err != nil {
		return err
	}
	if old.Source == api.FromFile {
		return errors.New("the policy is read from a file (policy.path): change it there and reload, or set policy.mode to database")
	}
	before := old.Text
	if before == "" {
		before = firstPolicy
	}
	dir, err := os.MkdirTemp("", "skein-policy-")
	if err != nil {
		return fmt.Errorf("making a copy to edit: %w", err)
	}
	file := filepath.Join(dir, "policy.hujson")
	keep := false
	defer func() {
		if keep {
			err = fmt.Errorf("%w\nYour text is kept in %s", err, file)
		} else {
			_ = os.RemoveAll(dir)
		}
	}()
	if err := os.WriteFile(file, []byte(before), 0o600); err != nil {
		return fmt.Errorf("making a copy to edit: %w", err)
	}
	for {
		if err := c.runEditor(file); err != nil {
			text, rerr := os.ReadFile(file)
			keep = rerr == nil && string(text) != before
			return err
		}
		text, err := c.readPolicy(file)
		if err != nil {
			return err
		}
		if text == before {
			fmt.Fprintln(c.errOut, "Nothing is changed.")
			return nil
		}
		keep = true
		again, err := c.review(cmd, cl, file, api.PolicyRequest{Text: text, AllowUnknownUsers: req.AllowUnknownUsers})
		if err != nil {
			return err
		}
		if again {
			continue
		}
		req.Text, req.Author, req.IfMatch = text, onBehalf(), api.Ref(old.Version.String())
		a, err := cl.SetPolicy(cmd.Context(), req)
		if err != nil {
			return c.refused(file, err)
		}
		keep = false
		if c.output != "" {
			return writeValue(c.out, c.output, a)
		}
		fmt.Fprintf(c.errOut, "Version %s is in force.\n", a.Version)
		return nil
	}
}

// review shows what the policy would do, or what is wrong with it, and asks how to go on: nil is to put it in force, again is to
// edit it once more.
func (c *cli) review(cmd *cobra.Command, cl *api.Client, file string, req api.PolicyRequest) (again bool, err error) {
	d, err := cl.DiffPolicy(cmd.Context(), req)
	var pe *api.PolicyError
	switch {
	case errors.As(err, &pe):
		d = &api.DiffPolicyAnswer{Faults: pe.Faults}
	case err != nil:
		return false, err
	}
	if len(d.Faults) > 0 {
		c.tellFaults(file, d.Faults)
		if c.ask("Edit again? [Y/n] ", "y") == "y" {
			return true, nil
		}
		return false, fmt.Errorf("%s; nothing is changed", countFaults(d.Faults))
	}
	c.tellWarnings(file, d.Warnings)
	_ = tellChanges(c.errOut, d.Changes, d.More, d.Further, 2*shortChanges)
	if len(d.Changes) == 0 {
		fmt.Fprintln(c.errOut, noChanges)
	}
	if c.yes {
		return false, nil
	}
	switch c.ask("Put it in force? [y/N/e to edit again] ", "n") {
	case "y":
		return false, nil
	case "e":
		return true, nil
	}
	return false, errors.New("nothing is changed")
}

// ask is the first letter of the answer, in lower case; usual if there is none, and n if nobody is there any more.
func (c *cli) ask(question, usual string) string {
	fmt.Fprint(c.errOut, question)
	answer, err := bufio.NewReader(c.in).ReadString('\n')
	answer = strings.ToLower(strings.TrimSpace(answer))
	switch {
	case err != nil && answer == "":
		fmt.Fprintln(c.errOut)
		return "n"
	case answer == "":
		return usual
	}
	return answer[:1]
}

// runEditor lets the user edit a file. VISUAL and EDITOR may have arguments.
func (c *cli) runEditor(file string) error {
	editor := "vi"
	for _, name := range []string{"EDITOR", "VISUAL"} {
		if v := strings.TrimSpace(os.Getenv(name)); v != "" {
			editor = v
		}
	}
	// An interrupt is the editor's while it runs.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt)
	defer signal.Stop(signals)
	cmd := exec.Command("/bin/sh", "-c", editor+` "$1"`, "sh", file)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = c.in, c.out, c.errOut
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("the editor %q failed: %w; VISUAL or EDITOR may name another", editor, err)
	}
	return nil
}
