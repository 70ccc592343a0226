package main

import (
	"cmp"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/skein-vpn/skein/api"
	"github.com/skein-vpn/skein/config"
)

func newSettingsCommand(c *cli) *cobra.Command {
	return group("settings", []string{"setting"}, "What holds for the whole tailnet: approval, how long keys live, contacts",
		`  skein settings get
  skein settings set --device-approval on
  skein settings set --key-duration 90d`,
		c.settingsGet(), c.settingsSet())
}

func settingsTable(s *api.Settings) *table {
	t := &table{head: []string{"Setting", "Value"}}
	t.add("device-approval", onOff(s.DeviceApproval))
	t.add("user-approval", onOff(s.UserApproval))
	life := "never ends"
	if d := s.EffectiveKeyDurationSeconds; d > 0 {
		life = config.Duration(time.Duration(d) * time.Second).String()
	}
	if s.KeyDurationSeconds == 0 {
		life += " (node.expiry of the configuration)"
	}
	t.add("key-duration", life)
	t.add("contact-account", cmp.Or(s.Contacts.Account, "-"))
	t.add("contact-support", cmp.Or(s.Contacts.Support, "-"))
	t.add("contact-security", cmp.Or(s.Contacts.Security, "-"))
	return t
}

func (c *cli) settingsGet() *cobra.Command {
	return &cobra.Command{
		Use: "get", Aliases: []string{"list", "show"}, Short: "Show the settings",
		Example: "  skein settings get -o json",
		Args:    wantArgs(), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			s, err := cl.GetSettings(cmd.Context())
			if err != nil {
				return err
			}
			return c.print(s, settingsTable(s))
		},
	}
}

func (c *cli) settingsSet() *cobra.Command {
	var devices, users, life, account, support, security string
	cmd := &cobra.Command{
		Use: "set --SETTING VALUE…", Short: "Change settings, at once and for good",
		Long: `Change settings, at once and for good; those that are not named stay.

Device approval: a node that joins from now on waits until "skein nodes approve", unless it brings a key made with --pre-approved or
an administrator registers it. Nodes that are in stay in; switched off, those that wait go on waiting.
User approval: somebody who signs in for the first time waits until "skein namespaces approve", and so do the nodes of theirs.
Key duration: how long the key of a node lives that logs in from now on; "default" is what the configuration says (node.expiry).
Contacts: mail addresses of people behind the network; that for support is shown on the web pages. An empty one takes it away.`,
		Example: `  skein settings set --device-approval on --user-approval on
  skein settings set --key-duration 90d
  skein settings set --key-duration never
  skein settings set --contact-support help@example.com`,
		Args: wantArgs(), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var req api.ChangeSettingsRequest
			var err error
			if req.DeviceApproval, err = switchFlag(cmd, "device-approval", devices); err != nil {
				return err
			}
			if req.UserApproval, err = switchFlag(cmd, "user-approval", users); err != nil {
				return err
			}
			if cmd.Flags().Changed("key-duration") {
				seconds, err := parseKeyDuration(life)
				if err != nil {
					return usagef("--key-duration: %v", err)
				}
				req.KeyDurationSeconds = &seconds
			}
			var contacts api.ChangeContacts
			given := func(name string, value *string) *string {
				if !cmd.Flags().Changed(name) {
					return nil
				}
				req.Contacts = &contacts
				return value
			}
			contacts.Account, contacts.Support = given("contact-account", &account), given("contact-support", &support)
			contacts.Security = given("contact-security", &security)
			if req == (api.ChangeSettingsRequest{}) {
				return usagef("%q needs a setting: --device-approval, --user-approval, --key-duration or a contact", cmd.CommandPath())
			}
			cl, err := c.client()
			if err != nil {
				return err
			}
			s, err := cl.ChangeSettings(cmd.Context(), req)
			if err != nil {
				return err
			}
			return c.print(s, settingsTable(s))
		},
	}
	f := cmd.Flags()
	f.StringVar(&devices, "device-approval", "", "`on` or off: new nodes wait for an administrator")
	f.StringVar(&users, "user-approval", "", "`on` or off: users who sign in for the first time wait for an administrator")
	f.StringVar(&life, "key-duration", "", "how `LONG` keys of nodes live: 90d, never, or default")
	f.StringVar(&account, "contact-account", "", "`MAIL` of whoever answers for the network")
	f.StringVar(&support, "contact-support", "", "`MAIL` of whoever helps its users, shown on the web pages")
	f.StringVar(&security, "contact-security", "", "`MAIL` of whoever is told of weaknesses")
	for _, name := range []string{"device-approval", "user-approval"} {
		must(cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions([]string{"on", "off"}, cobra.ShellCompDirectiveNoFileComp)))
	}
	must(cmd.RegisterFlagCompletionFunc("key-duration", cobra.FixedCompletions([]string{"90d", "180d", "never", "default"}, cobra.ShellCompDirectiveNoFileComp)))
	return cmd
}

// parseKeyDuration reads how long keys of nodes live, in the seconds of the API.
func parseKeyDuration(s string) (int64, error) {
	switch s {
	case "never":
		return api.KeyForever, nil
	case "default":
		return 0, nil
	}
	d, err := config.ParseDuration(s)
	if err != nil || d.Std() < time.Second {
		return 0, fmt.Errorf("%q is neither a duration such as 90d or 12h, nor \"never\" or \"default\"", s)
	}
	return int64(d.Std() / time.Second), nil
}

// switchFlag is what a flag that can be on or off says; nil if it is not given.
func switchFlag(cmd *cobra.Command, name, value string) (*bool, error) {
	if !cmd.Flags().Changed(name) {
		return nil, nil
	}
	var on bool
	switch value {
	case "on", "true", "yes":
		on = true
	case "off", "false", "no":
	default:
		return nil, usagef("--%s: %q is neither on nor off", name, value)
	}
	return &on, nil
}
