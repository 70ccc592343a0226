package statetest

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/skein-vpn/skein/tailnet"
)

// Grants are providers' permissions in memory. The zero value is empty.
type Grants struct {
	mu sync.Mutex
	m  map[tailnet.UserID]tailnet.ProviderGrant
}

// PutProviderGrant stores g in place of the user's earlier one.
func (s *Grants) PutProviderGrant(_ context.Context, g *tailnet.ProviderGrant) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.m == nil {
		s.m = map[tailnet.UserID]tailnet.ProviderGrant{}
	}
	s.m[g.User] = *g
	return nil
}

// ProviderGrants are those of a provider that were checked before t, the longest ago first, at most limit of them.
func (s *Grants) ProviderGrants(_ context.Context, id tailnet.ID, provider string, t time.Time, limit int) (out []*tailnet.ProviderGrant, _ error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range s.m {
		if g.Tailnet == id && g.Provider == provider && g.Checked.Before(t) {
			out = append(out, &g)
		}
	}
	slices.SortFunc(out, func(a, b *tailnet.ProviderGrant) int {
		return cmp.Or(a.Checked.Compare(b.Checked), cmp.Compare(a.User, b.User))
	})
	return out[:min(limit, len(out))], nil
}

// DeleteProviderGrant removes the user's.
func (s *Grants) DeleteProviderGrant(_ context.Context, _ tailnet.ID, user tailnet.UserID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.m, user)
	return nil
}
