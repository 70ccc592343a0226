package statetest

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"tailscale.com/types/key"

	"github.com/skein-vpn/skein/tailnet"
)

// Logins keeps pending logins, SSH checks and access tokens in memory: an auth.Store. The zero value is ready.
type Logins struct {
	mu     sync.Mutex
	logins []*tailnet.Login
	checks []*tailnet.SSHCheck
	uses   map[string]time.Time
	tokens map[[32]byte]*tailnet.AccessToken
	err    error
}

// Fail makes every call fail with err until it is called with nil.
func (s *Logins) Fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

// PutLogin implements auth.Store.
func (s *Logins) PutLogin(ctx context.Context, l *tailnet.Login) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	s.logins = slices.DeleteFunc(s.logins, func(o *tailnet.Login) bool { return o.ID == l.ID })
	s.logins = append(s.logins, copyOf(l))
	slices.SortFunc(s.logins, func(a, b *tailnet.Login) int {
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.ID, b.ID))
	})
	return nil
}

// Login implements auth.Store.
func (s *Logins) Login(ctx context.Context, id tailnet.ID, login string) (*tailnet.Login, error) {
	l, err := s.find(func(l *tailnet.Login) bool { return l.Tailnet == id && l.ID == login })
	if err == nil && l == nil {
		err = tailnet.Errorf(tailnet.NotFound, "there is no such login")
	}
	return l, err
}

// LoginByNodeKey implements auth.Store.
func (s *Logins) LoginByNodeKey(ctx context.Context, id tailnet.ID, k key.NodePublic) (*tailnet.Login, error) {
	return s.find(func(l *tailnet.Login) bool { return l.Tailnet == id && l.NodeKey == k })
}

// find is the newest login that is the one.
func (s *Logins) find(is func(*tailnet.Login) bool) (*tailnet.Login, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return nil, s.err
	}
	for _, l := range slices.Backward(s.logins) {
		if is(l) {
			return copyOf(l), nil
		}
	}
	return nil, nil
}

// Logins implements auth.Store.
func (s *Logins) Logins(ctx context.Context, id tailnet.ID) ([]*tailnet.Login, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return nil, s.err
	}
	var out []*tailnet.Login
	for _, l := range s.logins {
		if l.Tailnet == id {
			out = append(out, copyOf(l))
		}
	}
	return out, nil
}

// DeleteLogin implements auth.Store.
func (s *Logins) DeleteLogin(ctx context.Context, id tailnet.ID, login string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	s.logins = slices.DeleteFunc(s.logins, func(l *tailnet.Login) bool { return l.Tailnet == id && l.ID == login })
	return nil
}

// DeleteLoginsBefore implements auth.Store.
func (s *Logins) DeleteLoginsBefore(ctx context.Context, t time.Time) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return 0, s.err
	}
	n := len(s.logins)
	s.logins = slices.DeleteFunc(s.logins, func(l *tailnet.Login) bool { return l.Created.Before(t) })
	return n - len(s.logins), nil
}

// CountLogins implements auth.Store.
func (s *Logins) CountLogins(ctx context.Context, id tailnet.ID) (int, error) {
	ls, err := s.Logins(ctx, id)
	return len(ls), err
}
