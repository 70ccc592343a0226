package api

import (
	"context"
	"net/http"
	"strings"
	"time"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// Settings are the tailnet's settings (tailnet.Settings).
type Settings struct {
	DeviceApproval bool `json:"deviceApproval"` // new nodes wait for an administrator
	UserApproval   bool `json:"userApproval"`   // users who sign in for the first time wait for an administrator
	// KeyDurationSeconds is how long keys of nodes live that log in from now on; 0: as the configuration says; KeyForever: for ever.
	KeyDurationSeconds int64 `json:"keyDurationSeconds"`
	// EffectiveKeyDurationSeconds is what follows from it and the configuration; 0: for ever.
	EffectiveKeyDurationSeconds int64 `json:"effectiveKeyDurationSeconds"`
	// Contacts are mail addresses; that of Support is shown on the web pages.
	Contacts Contacts `json:"contacts"`
}

// Contacts are mail addresses of people behind the tailnet; empty ones are not known.
type Contacts struct {
	Account  string `json:"account"`  // whoever answers for the tailnet
	Support  string `json:"support"`  // whoever helps its users
	Security string `json:"security"` // whoever is told of weaknesses
}

// KeyForever is the KeyDurationSeconds of keys that do not end.
const KeyForever = -1

type (
	// SettingsAnswer are the settings.
	SettingsAnswer struct {
		Settings *Settings `json:"settings"`
	}
	// ChangeSettingsRequest changes the settings that are not null.
	ChangeSettingsRequest struct {
		DeviceApproval     *bool  `json:"deviceApproval,omitempty" example:"true"`
		UserApproval       *bool  `json:"userApproval,omitempty"`
		KeyDurationSeconds *int64 `json:"keyDurationSeconds,omitempty"`
		// Contacts changes the contacts in it that are not null; an empty address takes one away.
		Contacts *ChangeContacts `json:"contacts,omitempty"`
	}
	// ChangeContacts are new contacts; null leaves what there is.
	ChangeContacts struct {
		Account  *string `json:"account,omitempty"`
		Support  *string `json:"support,omitempty"`
		Security *string `json:"security,omitempty"`
	}
)

func (s *server) settingsOperations() []operation {
	return []operation{
		get("/settings", auth.Read(auth.ScopeFeatures), "the tailnet's settings: approval, how long keys live, contacts", s.getSettings),
		patch("/settings", auth.ScopeFeatures, "changes those that are named", s.changeSettings),
	}
}

func (s *server) getSettings(*http.Request, *Empty) (*SettingsAnswer, error) {
	v := s.State.Snapshot().Tailnet.Settings
	out := &Settings{
		DeviceApproval: v.DeviceApproval, UserApproval: v.UserApproval, KeyDurationSeconds: keyDurationSeconds(v.KeyDuration),
		EffectiveKeyDurationSeconds: int64(s.Auth.KeyDuration(v) / time.Second), Contacts: Contacts(v.Contacts),
	}
	return &SettingsAnswer{out}, nil
}

// GetSettings are the tailnet's settings.
func (c *Client) GetSettings(ctx context.Context) (*Settings, error) {
	var out SettingsAnswer
	err := c.do(ctx, http.MethodGet, c.path("settings"), nil, &out)
	return out.Settings, err
}

func (s *server) changeSettings(r *http.Request, req *ChangeSettingsRequest) (*SettingsAnswer, error) {
	var keys time.Duration
	if d := req.KeyDurationSeconds; d != nil {
		var err error
		if keys, err = keyDuration(*d); err != nil {
			return nil, err
		}
	}
	err := s.update(r, "change settings", func(tx *state.Tx) error {
		v := tx.Tailnet().Settings
		if req.DeviceApproval != nil {
			v.DeviceApproval = *req.DeviceApproval
		}
		if req.UserApproval != nil {
			v.UserApproval = *req.UserApproval
		}
		if req.KeyDurationSeconds != nil {
			v.KeyDuration = keys
		}
		v.Contacts = req.Contacts.apply(v.Contacts)
		return tx.SetSettings(v)
	})
	if err != nil {
		return nil, err
	}
	return s.getSettings(r, nil)
}

// apply is to with what c changes; c may be nil.
func (c *ChangeContacts) apply(to tailnet.Contacts) tailnet.Contacts {
	if c == nil {
		return to
	}
	for _, one := range []struct {
		from *string
		to   *string
	}{{c.Account, &to.Account}, {c.Support, &to.Support}, {c.Security, &to.Security}} {
		if one.from != nil {
			*one.to = strings.TrimSpace(*one.from)
		}
	}
	return to
}

// keyDuration is a keyDurationSeconds as a tailnet.Settings.KeyDuration.
func keyDuration(seconds int64) (time.Duration, error) {
	switch {
	case seconds == KeyForever:
		return tailnet.KeyForever, nil
	case seconds < 0 || seconds > int64(tailnet.MaxKeyDuration/time.Second):
		return 0, tailnet.Errorf(tailnet.Invalid, "keyDurationSeconds: %d is neither a number of seconds from %d to %d, nor 0 for the rule that "+
			"holds otherwise, nor %d for ever", seconds, int64(tailnet.MinKeyDuration/time.Second), int64(tailnet.MaxKeyDuration/time.Second), KeyForever)
	}
	return time.Duration(seconds) * time.Second, nil
}

// keyDurationSeconds is the opposite of keyDuration.
func keyDurationSeconds(d time.Duration) int64 {
	if d == tailnet.KeyForever {
		return KeyForever
	}
	return int64(d / time.Second)
}

// ChangeSettings changes the settings that req names and returns all.
func (c *Client) ChangeSettings(ctx context.Context, req ChangeSettingsRequest) (*Settings, error) {
	var out SettingsAnswer
	err := c.do(ctx, http.MethodPatch, c.path("settings"), req, &out)
	return out.Settings, err
}
