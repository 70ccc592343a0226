package auth

import (
	"context"
	"fmt"
)

// DenyLogin forgets the pending login with this id; a NotFound error if there is none, or its time is over.
func (a *Auth) DenyLogin(ctx context.Context, id string) error {
	l, err := a.Login(ctx, id)
	if err != nil {
		return err
	}
	if err := a.o.Store.DeleteLogin(ctx, a.o.Tailnet, l.ID); err != nil {
		return fmt.Errorf("removing a pending registration: %w", err)
	}
	return nil
}
