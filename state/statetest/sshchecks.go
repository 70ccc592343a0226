package statetest

import (
	"context"
	"slices"
	"time"

	"github.com/skein-vpn/skein/tailnet"
)

// PutSSHCheck implements auth.SSHStore.
func (s *Logins) PutSSHCheck(ctx context.Context, c *tailnet.SSHCheck) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	s.checks = slices.DeleteFunc(s.checks, func(o *tailnet.SSHCheck) bool { return o.ID == c.ID })
	s.checks = append(s.checks, copyOf(c))
	return nil
}

// DecideSSHCheck implements auth.SSHStore.
func (s *Logins) DecideSSHCheck(ctx context.Context, c *tailnet.SSHCheck) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return false, s.err
	}
	for i, o := range s.checks {
		if o.ID == c.ID && o.Tailnet == c.Tailnet && o.Waiting() {
			s.checks[i] = copyOf(c)
			return true, nil
		}
	}
	return false, nil
}

// SSHCheck implements auth.SSHStore.
func (s *Logins) SSHCheck(ctx context.Context, id tailnet.ID, check string) (*tailnet.SSHCheck, error) {
	found, err := s.sshChecks(func(c *tailnet.SSHCheck) bool { return c.Tailnet == id && c.ID == check })
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, tailnet.Errorf(tailnet.NotFound, "there is no such SSH session waiting")
	}
	return found[0], nil
}

// LastSSHCheck implements auth.SSHStore.
func (s *Logins) LastSSHCheck(ctx context.Context, c *tailnet.SSHCheck) (*tailnet.SSHCheck, error) {
	found, err := s.sshChecks(func(o *tailnet.SSHCheck) bool {
		return o.Tailnet == c.Tailnet && o.Src == c.Src && o.Dst == c.Dst && o.SrcUser == c.SrcUser && o.SSHUser == c.SSHUser && !o.Approved.IsZero() && !o.Denied
	})
	if err != nil || len(found) == 0 {
		return nil, err
	}
	return slices.MaxFunc(found, func(a, b *tailnet.SSHCheck) int { return a.Approved.Compare(b.Approved) }), nil
}

// SSHChecks implements auth.SSHStore.
func (s *Logins) SSHChecks(ctx context.Context, id tailnet.ID, t time.Time) ([]*tailnet.SSHCheck, error) {
	return s.sshChecks(func(c *tailnet.SSHCheck) bool { return c.Tailnet == id && c.Created.After(t) && c.Waiting() })
}

// DeleteSSHChecksBefore implements auth.SSHStore.
func (s *Logins) DeleteSSHChecksBefore(ctx context.Context, t time.Time) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return 0, s.err
	}
	n := len(s.checks)
	s.checks = slices.DeleteFunc(s.checks, func(c *tailnet.SSHCheck) bool { return c.Created.Before(t) })
	return n - len(s.checks), nil
}

// sshChecks are those that are the ones, in the order in which they were stored.
func (s *Logins) sshChecks(is func(*tailnet.SSHCheck) bool) (out []*tailnet.SSHCheck, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return nil, s.err
	}
	for _, c := range s.checks {
		if is(c) {
			out = append(out, copyOf(c))
		}
	}
	return out, nil
}
