package oidc

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

func (e *env) update(f func(*state.Tx) error) {
	e.t.Helper()
	if err := e.st.Update(ctx, "test", f); err != nil {
		e.t.Fatal(err)
	}
}

// as signs in as somebody whom nobody has seen.
func (e *env) as(subject string, claims ...any) *tailnet.User {
	e.t.Helper()
	e.h.subject = subject
	e.h.session = map[string]any{}
	for i := 0; i+1 < len(claims); i += 2 {
		e.h.session[claims[i].(string)] = claims[i+1]
	}
	return e.signIn().User
}

func TestNames(t *testing.T) {
	e := newEnv(t, newHydra(t, 2), func(po *ProviderOptions) { po.UnverifiedEmail = true })
	for i, c := range []struct {
		want   string
		claims []any
	}{
		{"anna", []any{"preferred_username", "Anna", "email", "other@example.com"}},
		{"anna-2", []any{"preferred_username", "anna"}},
		{"anna-3", []any{"email", "anna@example.com"}},
		{"boss", []any{"preferred_username", "boss@example.com"}}, // never with the @: policies would take it for a mail address
		{"jorg.schmidt", []any{"preferred_username", "Jörg.Schmidt", "name", "x"}},
		{"max-mustermann", []any{"name", "Max Mustermann"}},
		{"hans", []any{"preferred_username", "1234", "email", "hans@example.com"}}, // would look like an id
		{"user-1", []any{"preferred_username", "用户", "name", "../"}},
		{"user-2", nil},
		{"tagged-devices-2", []any{"preferred_username", "tagged-devices-2"}},
		{"foo-bar", []any{"email", "foo+bar@example.com"}},
		{strings.Repeat("x", maxUserName), []any{"preferred_username", strings.Repeat("x", 200)}},
		{strings.Repeat("x", maxUserName) + "-2", []any{"preferred_username", strings.Repeat("x", 200)}},
	} {
		want := c.want
		if want == "jorg.schmidt" {
			want = "jrg.schmidt"
		}
		u := e.as(fmt.Sprint("subject-", i), c.claims...)
		if u.Name != want {
			t.Errorf("%v is called %s, want %s", c.claims, u.Name, want)
		}
		if err := tailnet.CheckUserName(u.Name); err != nil {
			t.Error(err)
		}
	}
	if u := e.as("tagged", "preferred_username", tailnet.TaggedDevicesName, "email", "t@example.com"); u.Name != "t" {
		t.Error(u.Name)
	}
}

// TestKnownBeforehand: a user whom an administrator has made with a mail address is the one who signs in with it, if the
// provider vouches for the address.
func TestKnownBeforehand(t *testing.T) {
	e := newEnv(t, newHydra(t, 2), func(po *ProviderOptions) { po.UnverifiedEmail = true })
	e.update(func(tx *state.Tx) error {
		u := tx.NewUser("chief")
		u.Email, u.Role, u.DisplayName = "Chief@example.com", tailnet.RoleAdmin, "The chief"
		return tx.PutUser(u)
	})
	if u := e.as("thief", "email", "chief@example.com"); u.Name != "chief-2" || u.Role != tailnet.RoleMember {
		t.Errorf("an address that nobody has verified gave %s to a thief", u.Name)
	}
	u := e.as("real", "email", "chief@example.com", "email_verified", true)
	if u.Name != "chief" || u.Role != tailnet.RoleAdmin || u.DisplayName != "The chief" || u.ProviderID != e.h.srv.URL+"/real" {
		t.Errorf("%+v", u)
	}
	if u := e.as("second", "email", "chief@example.com", "email_verified", true); u.Name == "chief" {
		t.Error("a user who has signed in was given to another")
	}
}

// TestChanges: the provider's word changes what is the provider's.
func TestChanges(t *testing.T) {
	e := newEnv(t, newHydra(t, 2), nil)
	u := e.as("s1", "email", "a@example.com", "email_verified", true, "name", "A", "groups", []string{"x"}, "preferred_username", "a")
	e.update(func(tx *state.Tx) error {
		c := *tx.User(u.ID)
		c.Name, c.Role = "renamed", tailnet.RoleAuditor
		return tx.PutUser(&c)
	})
	v := e.as("s1", "email", "b@example.com", "email_verified", true, "groups", []string{"y", "x"}, "preferred_username", "b", "picture", "http://insecure")
	if v.ID != u.ID || v.Name != "renamed" || v.Role != tailnet.RoleAuditor || v.Email != "b@example.com" || v.DisplayName != "A" ||
		!slices.Equal(v.Groups, []string{"x", "y"}) || v.Picture != "" {
		t.Errorf("%+v", v)
	}
	v = e.as("s1", "email", "b@example.com", "email_verified", true)
	if len(v.Groups) != 0 {
		t.Errorf("groups are left: %q", v.Groups)
	}
	e.update(func(tx *state.Tx) error { return tx.DeleteUser(u.ID) })
	if w := e.as("s1", "email", "b@example.com", "email_verified", true, "preferred_username", "b"); w.ID == u.ID || w.Name != "b" || w.Role != tailnet.RoleMember {
		t.Errorf("a deleted user came back: %+v", w)
	}
}

// TestUserApproval: somebody new waits where that is asked for, and a suspended one stays so.
func TestUserApproval(t *testing.T) {
	e := newEnv(t, newHydra(t, 2), nil)
	e.update(func(tx *state.Tx) error { return tx.SetSettings(tailnet.Settings{UserApproval: true}) })
	u := e.signIn().User
	if u.Status != tailnet.UserWaiting {
		t.Errorf("%+v", u)
	}
	e.update(func(tx *state.Tx) error {
		c := *tx.User(u.ID)
		c.Status = tailnet.UserSuspended
		return tx.PutUser(&c)
	})
	e.h.session["name"] = "New Name"
	if u := e.signIn().User; u.Status != tailnet.UserSuspended || u.DisplayName != "New Name" {
		t.Errorf("%+v", u)
	}
}

// TestOneProviderID: two users are never one person.
func TestOneProviderID(t *testing.T) {
	e := newEnv(t, newHydra(t, 2), nil)
	u := e.signIn().User
	err := e.st.Update(ctx, "test", func(tx *state.Tx) error {
		c := tx.NewUser("other")
		c.ProviderID = u.ProviderID
		return tx.PutUser(c)
	})
	if tailnet.CodeOf(err) != tailnet.Conflict {
		t.Error(err)
	}
}
