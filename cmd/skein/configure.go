package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v4"

	"github.com/skein-vpn/skein/config"
)

func newConfigCommand(c *cli) *cobra.Command {
	return group("config", nil, "The configuration of the server, without a running one",
		`  skein config check
  skein config print -c /etc/skein/config.yaml`, c.configCheck(), c.configPrint())
}

func (c *cli) loadConfig() (*config.Config, error) {
	o := config.Options{File: c.config, Env: os.Environ(), Flags: map[string]string{}, FlagNames: map[string]string{}}
	for key, g := range map[string]struct{ flag, value string }{
		"data_dir": {"--data-dir", c.dataDir}, "unix_socket": {"--socket", c.socket},
	} {
		if o.FlagNames[key] = g.flag; g.value != "" {
			o.Flags[key] = g.value
		}
	}
	return config.Load(o)
}

// report is what config check finds, for -o.
type report struct {
	Valid    bool          `json:"valid"`
	Faults   []reportEntry `json:"faults"`
	Warnings []reportEntry `json:"warnings"`
}

type reportEntry struct {
	Key   string `json:"key"`
	Place string `json:"place"`
	Line  int    `json:"line"`
	Text  string `json:"text"`
}

func entries(fs config.Faults) []reportEntry {
	out := []reportEntry{}
	for _, f := range fs {
		out = append(out, reportEntry{f.Key, f.Place, f.Line, f.Text})
	}
	return out
}

func (c *cli) configCheck() *cobra.Command {
	return &cobra.Command{
		Use: "check [FILE]", Aliases: []string{"test"}, Short: "Tell all that is wrong with the configuration",
		Long: `Tell all that is wrong with the configuration that "skein serve" would use, one fault a line. The exit code is 1 if there is any.
Without -c the file is looked for in /etc/skein, in the user's configuration folder and in the working directory.`,
		Example: `  skein config check
  skein config check -c config.yaml`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				if c.config != "" {
					return usagef("-c and FILE contradict each other")
				}
				c.config = args[0]
			}
			cfg, err := c.loadConfig()
			var faults, warnings config.Faults
			if err != nil && !errors.As(err, &faults) {
				return err
			}
			if cfg != nil {
				faults, warnings = cfg.CheckFiles(), cfg.Warnings()
			}
			if c.output != "" {
				if err := c.print(report{len(faults) == 0, entries(faults), entries(warnings)}, nil); err != nil {
					return err
				}
			}
			for _, w := range warnings {
				fmt.Fprintf(c.errOut, "warning: %s\n", w)
			}
			if len(faults) > 0 {
				for _, f := range faults {
					fmt.Fprintln(c.errOut, f)
				}
				return fmt.Errorf("the configuration has %s", count(len(faults), "fault"))
			}
			if c.output == "" {
				fmt.Fprintln(c.out, "The configuration is valid.")
			}
			return nil
		},
	}
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func (c *cli) configPrint() *cobra.Command {
	var origins bool
	cmd := &cobra.Command{
		Use: "print", Aliases: []string{"show", "dump"}, Short: "Print all settings as \"skein serve\" would use them",
		Example: `  skein config print
  skein config print --origins        # and where each comes from`,
		Args: wantArgs(), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(*cobra.Command, []string) error {
			cfg, err := c.loadConfig()
			if err != nil {
				return err
			}
			text, err := cfg.WithoutSecrets().YAML(origins)
			if err != nil {
				return fmt.Errorf("writing the configuration: %w", err)
			}
			if c.output != "" && c.output != "yaml" {
				var v map[string]any
				if err := yaml.Unmarshal(text, &v); err != nil {
					return fmt.Errorf("writing the configuration: %w", err)
				}
				return c.print(v, nil)
			}
			_, err = c.out.Write(text)
			return err
		},
	}
	cmd.Flags().BoolVar(&origins, "origins", false, "say behind each setting where its value comes from")
	return cmd
}
