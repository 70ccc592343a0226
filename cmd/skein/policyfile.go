package main

import (
	"context"
	"fmt"
	"os"

	"github.com/skein-vpn/skein/config"
	"github.com/skein-vpn/skein/policy"
	"github.com/skein-vpn/skein/state"
)

// maxToldFaults is how many unknown users and failing tests of a policy file are written to the log.
const maxToldFaults = 20

// policyFile reads the policy if it comes from a file; otherwise it is nil.
func policyFile(cfg *config.Config) (*policy.Policy, error) {
	if !cfg.Policy.FromFile() {
		return nil, nil
	}
	b, err := os.ReadFile(cfg.Policy.Path)
	if err != nil {
		return nil, fmt.Errorf("the policy cannot be read (policy.path): %w", err)
	}
	p, err := policy.Parse(b)
	if err != nil {
		return nil, fmt.Errorf("the policy %s has faults:\n%w", cfg.Policy.Path, err)
	}
	return p, nil
}

// reloadPolicy reads the policy again if it comes from a file. One with faults, or whose tests fail, changes nothing.
func (s *server) reloadPolicy(ctx context.Context) {
	file, err := policyFile(s.cfg)
	if err == nil && file != nil {
		by := state.WithActor(ctx, state.Actor{Kind: "server", Name: "policy file " + s.cfg.Policy.Path, Origin: "policy file"})
		err = s.state.Update(by, "policy reloaded", func(tx *state.Tx) error {
			if err := tx.UsePolicyFile(file); err != nil {
				return err
			}
			return tx.Policy().Test()
		})
	}
	if err != nil {
		s.log.Error("the policy has faults; the old one stays in force", "err", err)
	} else if file != nil {
		s.warnOfPolicy(s.state.Snapshot().Policy)
	}
}

// tellPolicyFile says in the log what of the policy that the server begins with will surprise: there is no older one that could
// stay in force, so that failing tests do not stop it.
func (s *server) tellPolicyFile() {
	if !s.cfg.Policy.FromFile() {
		return
	}
	c := s.state.Snapshot().Policy
	s.warnOfPolicy(c)
	if err := c.Test(); err != nil {
		s.log.Error("tests of the policy fail; it is in force nevertheless, because there is no other", "err", err)
	}
}

// warnOfPolicy writes to the log which users of a policy do not exist, and what of it has no effect.
func (s *server) warnOfPolicy(c *policy.Compiled) {
	unknown := c.UnknownUsers()
	for i, e := range unknown {
		if i >= maxToldFaults {
			s.log.Warn("the policy names further users that do not exist", "count", len(unknown)-i)
			break
		}
		s.log.Warn("the policy names a user that does not exist (yet)", "user", e.User, "line", e.Line, "column", e.Column)
	}
	if p := c.Policy(); p != nil {
		for _, w := range p.Warnings() {
			s.log.Warn("the policy says something without effect", "line", w.Line, "text", w.Text)
		}
	}
}
