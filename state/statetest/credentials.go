package statetest

import (
	"context"
	"maps"
	"time"

	"github.com/skein-vpn/skein/tailnet"
)

// SaveCredentialUses implements auth.CredentialStore.
func (s *Logins) SaveCredentialUses(ctx context.Context, id tailnet.ID, uses map[string]time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	if s.uses == nil {
		s.uses = map[string]time.Time{}
	}
	maps.Copy(s.uses, uses)
	return nil
}

// CredentialUses implements auth.CredentialStore.
func (s *Logins) CredentialUses(ctx context.Context, id tailnet.ID) (map[string]time.Time, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.uses), s.err
}

// PutAccessToken implements auth.CredentialStore.
func (s *Logins) PutAccessToken(ctx context.Context, t *tailnet.AccessToken) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	if s.tokens == nil {
		s.tokens = map[[32]byte]*tailnet.AccessToken{}
	}
	s.tokens[t.Hash] = copyOf(t)
	return nil
}

// AccessToken implements auth.CredentialStore.
func (s *Logins) AccessToken(ctx context.Context, id tailnet.ID, hash [32]byte) (*tailnet.AccessToken, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.tokens[hash]; t != nil && t.Tailnet == id && s.err == nil {
		return copyOf(t), nil
	}
	return nil, s.err
}

// DeleteAccessTokensBefore implements auth.CredentialStore.
func (s *Logins) DeleteAccessTokensBefore(ctx context.Context, t time.Time) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.tokens)
	maps.DeleteFunc(s.tokens, func(_ [32]byte, x *tailnet.AccessToken) bool { return x.Expires.Before(t) })
	return n - len(s.tokens), s.err
}

// AuditLog implements auth.AuditStore: there is none.
func (s *Logins) AuditLog(ctx context.Context, id tailnet.ID, q tailnet.AuditQuery) ([]*tailnet.AuditEntry, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return nil, s.err
}
