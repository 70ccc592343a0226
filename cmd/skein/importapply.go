package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/skein-vpn/skein/api"
)

// cloudStep is what became of one part at the server.
type cloudStep struct {
	What    string `json:"what"`    // users, policy, dns, settings
	Is      string `json:"is"`      // in words
	Changed bool   `json:"changed"` // or, with --dry-run, would be
}

func (r *cloudReport) step(changed bool, what, format string, args ...any) {
	r.Applied = append(r.Applied, cloudStep{what, fmt.Sprintf(format, args...), changed})
}

// applyCloud gives the server what was fetched, in the order in which the parts need each other: who the policy names, the policy, the rest.
// What is there already is left alone. The first failure ends it; what was done before stays and is in the report.
func (c *cli) applyCloud(ctx context.Context, h *cloudImport, r *cloudReport) error {
	if len(r.Policy.Faults) > 0 {
		return errors.New("the policy cannot be used as it is, so nothing is changed: fetch it with --out, mend it and set it with \"skein policy set\"")
	}
	cl, err := c.client()
	if err != nil {
		return err
	}
	if h.users {
		if err := r.applyUsers(ctx, cl); err != nil {
			return err
		}
	}
	for _, part := range []func(context.Context, *api.Client) error{r.applyPolicy, r.applyDNS, r.applySettings} {
		if err := part(ctx, cl); err != nil {
			return err
		}
	}
	return nil
}

// applyUsers makes a namespace for each owner of a device that has none.
func (r *cloudReport) applyUsers(ctx context.Context, cl *api.Client) error {
	have, err := cl.ListUsers(ctx, api.UserFilter{})
	if err != nil {
		return err
	}
	var missing []string
	for _, u := range r.Users {
		name := strings.ToLower(u)
		is := func(h *api.User) bool { return h.Name == name || strings.EqualFold(h.Email, name) }
		if !slices.ContainsFunc(have, is) && !slices.Contains(missing, name) {
			missing = append(missing, name)
		}
	}
	if len(missing) == 0 {
		r.step(false, "users", "all %d are there", len(r.Users))
		return nil
	}
	for _, name := range missing {
		if r.DryRun {
			continue
		}
		if _, err := cl.CreateUser(ctx, api.CreateUserRequest{Name: name}); err != nil {
			return fmt.Errorf("the namespace %s: %w", name, err)
		}
	}
	r.step(true, "users", "made: %s", strings.Join(missing, ", "))
	return nil
}

func (r *cloudReport) applyPolicy(ctx context.Context, cl *api.Client) error {
	now, err := cl.Policy(ctx)
	if err != nil {
		return err
	}
	switch {
	case now.Text == r.policyIs:
		r.step(false, "policy", "is the same")
		return nil
	case now.Source == api.FromFile:
		return errors.New("the server's policy is a file (policy.path of its configuration): fetch Tailscale's with --out and put it there")
	}
	if r.DryRun {
		// It may fail for its tests, or for users that are misspelt: say so now.
		answer, err := cl.CheckPolicy(ctx, api.PolicyRequest{Text: r.policyIs, AllowUnknownUsers: true})
		if err != nil {
			return err
		}
		for _, f := range answer.Faults {
			r.Policy.Faults = append(r.Policy.Faults, f.String())
		}
		if len(answer.Faults) > 0 {
			return errors.New("the policy would be refused")
		}
	} else if _, err := cl.SetPolicy(ctx, api.SetPolicyRequest{Text: r.policyIs, Comment: "from Tailscale", IfMatch: api.Ref(now.Version.String()), AllowUnknownUsers: true}); err != nil {
		return fmt.Errorf("the policy: %w", err)
	}
	r.step(true, "policy", "set, in place of version %s", now.Version)
	return nil
}

func (r *cloudReport) applyDNS(ctx context.Context, cl *api.Client) error {
	now, err := cl.GetDNS(ctx)
	if err != nil {
		return err
	}
	parts := map[string]any{}
	if now.MagicDNS != r.DNS.MagicDNS {
		parts["magicDNS"] = r.DNS.MagicDNS
	}
	if o := r.DNS.OverrideLocal; o != nil && now.OverrideLocal != *o {
		parts["overrideLocal"] = *o
	}
	if !slices.Equal(now.Nameservers, r.DNS.Nameservers) {
		parts["nameservers"] = r.DNS.Nameservers
	}
	if !slices.Equal(now.Search, r.DNS.Search) {
		parts["search"] = r.DNS.Search
	}
	if !reflect.DeepEqual(now.Split, r.DNS.Split) {
		parts["split"] = r.DNS.Split
	}
	if len(parts) == 0 {
		r.step(false, "dns", "is the same")
		return nil
	}
	if !r.DryRun {
		if _, err := cl.SetDNS(ctx, parts); err != nil {
			return fmt.Errorf("the DNS settings: %w", err)
		}
	}
	r.step(true, "dns", "set: %s", strings.Join(slices.Sorted(maps.Keys(parts)), ", "))
	return nil
}

func (r *cloudReport) applySettings(ctx context.Context, cl *api.Client) error {
	if r.Settings == nil {
		return nil // it is told that they could not be read
	}
	now, err := cl.GetSettings(ctx)
	if err != nil {
		return err
	}
	var req api.ChangeSettingsRequest
	var words []string
	if want := r.Settings.DeviceApproval; now.DeviceApproval != want {
		req.DeviceApproval, words = &want, append(words, "approval of devices "+onOff(want))
	}
	if want := r.Settings.UserApproval; now.UserApproval != want {
		req.UserApproval, words = &want, append(words, "approval of users "+onOff(want))
	}
	if want := int64(r.Settings.KeyDurationDays) * 24 * 60 * 60; want > 0 && now.EffectiveKeyDurationSeconds != want {
		req.KeyDurationSeconds, words = &want, append(words, "keys live "+count(r.Settings.KeyDurationDays, "day"))
	}
	if len(words) == 0 {
		r.step(false, "settings", "are the same")
		return nil
	}
	if !r.DryRun {
		if _, err := cl.ChangeSettings(ctx, req); err != nil {
			return fmt.Errorf("the settings: %w", err)
		}
	}
	r.step(true, "settings", "set: %s", strings.Join(words, ", "))
	return nil
}
