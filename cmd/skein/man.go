package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"github.com/skein-vpn/skein/api"
)

func newManCommand(c *cli) *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use: "man [COMMAND...]", Short: "Show the manual page of a command, or write all pages",
		Long: `Show the manual page of a command, made from its help. On a terminal "man" shows it; elsewhere it is printed as roff. With --dir all
pages are written into a folder, as skein.1, skein-nodes-list.1 and so on; the Debian package does so.`,
		Example: `  skein man nodes list
  skein man --dir /usr/local/share/man/man1`,
		ValidArgsFunction: completeCommands,
	}
	cmd.Flags().StringVar(&dir, "dir", "", "write all pages into `DIR`, which is made if need be")
	must(cmd.MarkFlagDirname("dir"))
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		root := cmd.Root()
		if dir != "" {
			if len(args) > 0 {
				return usagef("--dir writes all pages: a command contradicts it")
			}
			manText(root)
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return fmt.Errorf("the folder for the pages cannot be made: %w", err)
			}
			return writeMan(root, dir)
		}
		of, rest, err := root.Find(args)
		if err != nil || len(rest) > 0 {
			return usagef("there is no command %q", strings.Join(args, " "))
		}
		manText(of)
		var page bytes.Buffer
		if err := doc.GenMan(of, manHeader(), &page); err != nil {
			return fmt.Errorf("making the manual page: %w", err)
		}
		return c.showPage(page.Bytes())
	}
	return cmd
}

// writeMan writes the pages of root and of all below it, pages of text among them, into dir.
func writeMan(root *cobra.Command, dir string) error {
	if err := doc.GenManTree(root, manHeader(), dir); err != nil {
		return fmt.Errorf("writing the manual pages: %w", err)
	}
	for _, sub := range root.Commands() {
		if !sub.IsAdditionalHelpTopicCommand() || sub.Hidden {
			continue
		}
		var page bytes.Buffer
		err := doc.GenMan(sub, manHeader(), &page)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, "skein-"+sub.Name()+".1"), page.Bytes(), 0o644)
		}
		if err != nil {
			return fmt.Errorf("writing the manual pages: %w", err)
		}
	}
	return nil
}

// showPage lets man show a page, where there is a terminal and man.
func (c *cli) showPage(page []byte) error {
	if man, err := exec.LookPath("man"); err == nil && isTerminal(c.out) {
		f, err := os.CreateTemp("", "skein-*.1")
		if err != nil {
			return fmt.Errorf("the page cannot be shown: %w", err)
		}
		defer func() { _ = os.Remove(f.Name()) }()
		_, err = f.Write(page)
		if closed := f.Close(); err != nil || closed != nil {
			return fmt.Errorf("the page cannot be shown: %w", err)
		}
		m := exec.Command(man, f.Name())
		m.Stdin, m.Stdout, m.Stderr = c.in, c.out, c.errOut
		return m.Run()
	}
	_, err := c.out.Write(page)
	return err
}

// manHeader is what stands above and below each page.
func manHeader() *doc.GenManHeader {
	h := &doc.GenManHeader{Section: "1", Source: "skein " + versionNumber, Manual: "Skein"}
	if t, err := time.Parse(time.RFC3339, api.BuildVersion(versionNumber).BuildTime); err == nil {
		h.Date = &t
	}
	if os.Getenv("SOURCE_DATE_EPOCH") != "" {
		h.Date = nil // GenMan reads it
	}
	return h
}

// manText makes the help of cmd and of all below it what pages are made from, which is Markdown: what is indented stays as it is, and
// nothing else means anything.
func manText(cmd *cobra.Command) {
	cmd.DisableAutoGenTag = true
	plain := strings.NewReplacer("\\", "\\\\", "*", "\\*", "_", "\\_", "<", "\\<", "`", "\\`")
	var b strings.Builder
	indented := false
	for line := range strings.Lines(cmd.Long) {
		is := strings.HasPrefix(line, "  ")
		if is != indented && b.Len() > 0 {
			b.WriteByte('\n')
		}
		if indented = is; is {
			b.WriteString("    " + line)
		} else {
			b.WriteString(plain.Replace(line))
		}
	}
	cmd.Long = b.String()
	for _, sub := range cmd.Commands() {
		manText(sub)
	}
}

// completeCommands suggests the commands below those that are named already.
func completeCommands(cmd *cobra.Command, args []string, _ string) (out []cobra.Completion, _ cobra.ShellCompDirective) {
	of, rest, err := cmd.Root().Find(args)
	if err == nil && len(rest) == 0 {
		for _, sub := range of.Commands() {
			if sub.IsAvailableCommand() {
				out = append(out, cobra.CompletionWithDesc(sub.Name(), sub.Short))
			}
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}
