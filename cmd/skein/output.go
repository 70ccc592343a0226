package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v4"
	"golang.org/x/term"
	"golang.org/x/text/width"
)

// formats are the values of --output; empty is a table.
var formats = []string{"json", "yaml", "json-line"}

func (c *cli) checkOutput() error {
	if c.output != "" && !slices.Contains(formats, c.output) {
		return usagef("--output %q is not known: use %s", c.output, strings.Join(formats, ", "))
	}
	return nil
}

// table is what people read. It is printed as `A | B`, one row a line.
type table struct {
	head  []string
	rows  [][]string
	hint  string   // what to do next if there are no rows; told on a terminal only
	spare []string // columns that are left out where the terminal is too narrow, the first one first
}

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

// print writes v in the format asked for, or t if that is a table.
func (c *cli) print(v any, t *table) error {
	if c.output != "" {
		return writeValue(c.out, c.output, v)
	}
	return c.printTable(t)
}

func (c *cli) printTable(t *table) error {
	w := bufio.NewWriter(c.out)
	tty := isTerminal(c.out)
	var widths []int
	var left []string
	if tty {
		widths = t.widths()
		if columns, _, err := term.GetSize(int(c.out.(*os.File).Fd())); err == nil && columns > 0 {
			left = t.fit(widths, columns)
			widths = slices.DeleteFunc(widths, func(n int) bool { return n == 0 })
		}
	}
	bold, plain := "", ""
	if tty && !c.noColor && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" {
		bold, plain = "\x1b[1m", "\x1b[0m"
	}
	fmt.Fprintf(w, "%s%s%s\n", bold, joinCells(t.head, widths), plain)
	for _, row := range t.rows {
		fmt.Fprintln(w, joinCells(row, widths))
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("writing the table: %w", err)
	}
	if len(t.rows) == 0 && t.hint != "" && tty {
		fmt.Fprintln(c.errOut, t.hint)
	}
	if len(left) > 0 && len(t.rows) > 0 {
		fmt.Fprintf(c.errOut, "(Without room for %s; -o json shows everything.)\n", strings.Join(left, ", "))
	}
	return nil
}

// separator stands between cells.
const separator = " | "

// narrowest is how narrow a column may become before the terminal has to break lines.
const narrowest = 6

// widths are how wide the columns want to be.
func (t *table) widths() []int {
	out := make([]int, len(t.head))
	for _, row := range append([][]string{t.head}, t.rows...) {
		for i, cell := range row {
			out[i] = max(out[i], displayWidth(printable(cell)))
		}
	}
	return out
}

// fit makes the table fit into columns: it leaves out spare columns, whose widths become 0, and returns their names; if that does not
// do, the widest ones become narrower.
func (t *table) fit(widths []int, columns int) (left []string) {
	total := func() int {
		n := -len(separator)
		for _, w := range widths {
			if w > 0 {
				n += w + len(separator)
			}
		}
		return n
	}
	drop := make([]bool, len(widths))
	for _, name := range t.spare {
		if i := slices.Index(t.head, name); i >= 0 && total() > columns {
			widths[i], drop[i] = 0, true
			left = append(left, name)
		}
	}
	for total() > columns {
		widest := 0
		for i := range widths {
			if widths[i] > widths[widest] {
				widest = i
			}
		}
		if widths[widest] <= narrowest {
			break
		}
		widths[widest]--
	}
	keep := func(row []string) []string {
		var out []string
		for i, cell := range row {
			if !drop[i] {
				out = append(out, cell)
			}
		}
		return out
	}
	if len(left) > 0 {
		t.head = keep(t.head)
		for i := range t.rows {
			t.rows[i] = keep(t.rows[i])
		}
	}
	return left
}

// joinCells is one line of a table; with widths, cells that are too long are cut, and all but the last are padded.
func joinCells(cells []string, widths []int) string {
	var b strings.Builder
	for i, cell := range cells {
		if i > 0 {
			b.WriteString(separator)
		}
		cell = printable(cell)
		if widths != nil {
			cell = cutTo(cell, widths[i])
		}
		b.WriteString(cell)
		if widths != nil && i < len(cells)-1 {
			b.WriteString(strings.Repeat(" ", widths[i]-displayWidth(cell)))
		}
	}
	return b.String()
}

// cutTo is s if it takes no more than width columns, or else its beginning with a mark.
func cutTo(s string, width int) string {
	if displayWidth(s) <= width {
		return s
	}
	n := 0
	for i, r := range s {
		if n += displayWidth(string(r)); n > width-1 {
			return s[:i] + "…"
		}
	}
	return s
}

// printable is s without anything that could move a terminal's cursor or turn its text around.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) {
			return -1
		}
		return r
	}, s)
}

// displayWidth is how many columns s takes on a terminal.
func displayWidth(s string) (n int) {
	for _, r := range s {
		switch k := width.LookupRune(r).Kind(); {
		case unicode.In(r, unicode.Mn, unicode.Me, unicode.Cf):
		case k == width.EastAsianWide || k == width.EastAsianFullwidth:
			n += 2
		default:
			n++
		}
	}
	return n
}

// writeValue writes v as JSON (indented, or on one line) or as YAML with the same keys in the same order.
func writeValue(w io.Writer, format string, v any) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if format == "json" {
		enc.SetIndent("", "  ")
	}
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("writing %T as JSON: %w", v, err)
	}
	out := b.Bytes()
	if format == "yaml" {
		var err error
		if out, err = yamlFromJSON(out); err != nil {
			return fmt.Errorf("writing %T as YAML: %w", v, err)
		}
	}
	_, err := w.Write(out)
	return err
}

// yamlFromJSON writes a JSON text as YAML in block style.
func yamlFromJSON(text []byte) ([]byte, error) {
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.UseNumber()
	n, err := yamlNode(dec)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := enc.Encode(n); err != nil {
		return nil, err
	}
	if err := enc.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// yamlNode reads the next JSON value. Tags are set, so that the string "12" does not become a number.
func yamlNode(dec *json.Decoder) (*yaml.Node, error) {
	tok, err := dec.Token()
	if err != nil {
		return nil, err
	}
	scalar := func(tag, value string) (*yaml.Node, error) {
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: tag, Value: value}, nil
	}
	switch t := tok.(type) {
	case json.Delim:
		n := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
		if t == '[' {
			n = &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq"}
		}
		for dec.More() {
			child, err := yamlNode(dec) // of an object: its keys and its values in turn
			if err != nil {
				return nil, err
			}
			n.Content = append(n.Content, child)
		}
		if len(n.Content) == 0 {
			n.Style = yaml.FlowStyle
		}
		_, err := dec.Token() // the closing one
		return n, err
	case string:
		return scalar("!!str", t)
	case json.Number:
		if strings.ContainsAny(t.String(), ".eE") {
			return scalar("!!float", t.String())
		}
		return scalar("!!int", t.String())
	case bool:
		return scalar("!!bool", fmt.Sprint(t))
	}
	return scalar("!!null", "null")
}

func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// confirm returns nil if the administrator wants what question asks for; without a terminal, only --yes says so.
func (c *cli) confirm(cmd *cobra.Command, question string) error {
	if c.yes {
		return nil
	}
	if !isTerminal(c.in) || !isTerminal(c.errOut) {
		return usagef("%q destroys something and there is no terminal to ask at: add --yes", cmd.CommandPath())
	}
	fmt.Fprintf(c.errOut, "%s [y/N] ", question)
	answer, err := bufio.NewReader(c.in).ReadString('\n')
	if err != nil && answer == "" {
		fmt.Fprintln(c.errOut)
		return fmt.Errorf("no answer, nothing is changed")
	}
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return nil
	}
	return fmt.Errorf("nothing is changed")
}

// done tells that something is gone: in words, or as the empty object that the API answers with.
func (c *cli) done(format string, args ...any) error {
	if c.output != "" {
		return writeValue(c.out, c.output, struct{}{})
	}
	fmt.Fprintf(c.errOut, format+"\n", args...)
	return nil
}

// clock is t as tables show it, in UTC; never stands for no time at all.
func clock(t *time.Time, never string) string {
	if t == nil {
		return never
	}
	return t.UTC().Format("2006-01-02 15:04:05")
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
