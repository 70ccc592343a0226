package main

import (
	"strconv"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Flags of commands that list: what they choose is chosen by the server (api.NodeFilter and others).

// yesNoValue is a flag that was not given, or is true, or false.
type yesNoValue struct{ to **bool }

func (v yesNoValue) String() string {
	if v.to == nil || *v.to == nil {
		return ""
	}
	return strconv.FormatBool(**v.to)
}

func (v yesNoValue) Set(s string) error {
	b, err := strconv.ParseBool(s)
	*v.to = &b
	return err
}

func (yesNoValue) Type() string { return "" }

// yesNoFlag adds a flag that sets to if it is given: --name, or --name=false.
func yesNoFlag(cmd *cobra.Command, to **bool, name, usage string) {
	cmd.Flags().VarPF(yesNoValue{to}, name, "", usage).NoOptDefVal = "true"
}

// choiceFlag adds a flag that is one of choices, of which the server knows more.
func choiceFlag(cmd *cobra.Command, to *string, name, usage string, choices []string) {
	cmd.Flags().StringVar(to, name, "", usage)
	must(cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(choices, cobra.ShellCompDirectiveNoFileComp)))
}

// filtered is t with a word for the case that nothing fits the flags of cmd.
func filtered(cmd *cobra.Command, t *table) *table {
	cmd.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
		if f.Changed {
			t.hint = "Nothing fits. Without flags, all are shown: " + cmd.CommandPath()
		}
	})
	return t
}
