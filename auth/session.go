package auth

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/skein-vpn/skein/tailnet"
)

// How long somebody stays signed in.
const (
	SessionIdle = 12 * time.Hour     // without a request
	SessionTTL  = 7 * 24 * time.Hour // altogether

	maxSessions = 20          // of one user; the oldest ends when one more begins
	touchEvery  = time.Minute // a session's last use is stored as often as that
)

// SessionRequest is what a session begins with.
type SessionRequest struct {
	User     *tailnet.User
	Method   string     // how the user has signed in (tailnet.WebSession.Method)
	NodesEnd time.Time  // tailnet.WebSession.NodesEnd
	Remote   netip.Addr // where from
	Agent    string     // of the browser
}

// BeginSession begins a session and returns the secret for the cookie, which is not kept. The error is Denied for a user who is suspended.
func (a *Accounts) BeginSession(ctx context.Context, r SessionRequest) (secret string, s *tailnet.WebSession, err error) {
	u, remote := r.User, r.Remote
	if err := u.MayJoin(); err != nil {
		return "", nil, err
	}
	now := a.o.Now()
	secret = randomText(43)
	s = &tailnet.WebSession{
		ID: secretHash(secret), Tailnet: a.o.Tailnet, User: u.ID, Method: r.Method, NodesEnd: r.NodesEnd, Agent: tailnet.CleanText(r.Agent),
		Created: now, Seen: now, Expires: now.Add(SessionTTL),
	}
	if remote.IsValid() {
		s.Remote = remote.String()
	}
	old, err := a.o.Store.WebSessions(ctx, a.o.Tailnet, u.ID)
	if err != nil {
		return "", nil, fmt.Errorf("reading web sessions: %w", err)
	}
	for i := range max(0, len(old)-maxSessions+1) {
		if err := a.o.Store.DeleteWebSession(ctx, a.o.Tailnet, old[i].ID); err != nil {
			return "", nil, fmt.Errorf("ending a web session: %w", err)
		}
	}
	if err := a.o.Store.PutWebSession(ctx, s); err != nil {
		return "", nil, fmt.Errorf("storing a web session: %w", err)
	}
	return secret, s, nil
}

// Session is the session with this secret and its user; nil, nil if there is none, or its time is over.
func (a *Accounts) Session(ctx context.Context, secret string) (*tailnet.WebSession, *tailnet.User, error) {
	if secret == "" || len(secret) > 200 {
		return nil, nil, nil
	}
	s, err := a.o.Store.WebSession(ctx, a.o.Tailnet, secretHash(secret))
	if err != nil {
		return nil, nil, fmt.Errorf("reading a web session: %w", err)
	}
	now := a.o.Now()
	if s == nil || !a.live(s, now) {
		return nil, nil, nil
	}
	u := a.o.State.Snapshot().User(s.User)
	if u == nil || u.Status == tailnet.UserSuspended { // who waits for approval may look, and add machines that wait as well
		return nil, nil, nil
	}
	if now.Sub(s.Seen) >= touchEvery {
		if err := a.o.Store.TouchWebSession(ctx, a.o.Tailnet, s.ID, now); err != nil {
			a.o.Log.Warn("the use of a web session could not be stored", "user", u.Name, "err", err)
		}
		s.Seen = now
	}
	return s, u, nil
}

func (a *Accounts) live(s *tailnet.WebSession, now time.Time) bool {
	return now.Before(s.Expires) && now.Sub(s.Seen) < SessionIdle
}

// Sessions are the user's sessions that go on, oldest first.
func (a *Accounts) Sessions(ctx context.Context, u *tailnet.User) ([]*tailnet.WebSession, error) {
	all, err := a.o.Store.WebSessions(ctx, a.o.Tailnet, u.ID)
	if err != nil {
		return nil, fmt.Errorf("reading web sessions: %w", err)
	}
	now := a.o.Now()
	var out []*tailnet.WebSession
	for _, s := range all {
		if a.live(s, now) {
			out = append(out, s)
		}
	}
	return out, nil
}

// EndSession ends one session of u; it is no error if u has none with this id.
func (a *Accounts) EndSession(ctx context.Context, u *tailnet.User, id string) error {
	s, err := a.o.Store.WebSession(ctx, a.o.Tailnet, id)
	if err == nil && s != nil && s.User == u.ID {
		err = a.o.Store.DeleteWebSession(ctx, a.o.Tailnet, id)
	}
	if err != nil {
		return fmt.Errorf("ending a web session: %w", err)
	}
	return nil
}

// EndSessions ends all sessions of u but the one with the id keep, which may be empty.
func (a *Accounts) EndSessions(ctx context.Context, u *tailnet.User, keep string) error {
	if err := a.o.Store.DeleteWebSessions(ctx, a.o.Tailnet, u.ID, keep); err != nil {
		return fmt.Errorf("ending web sessions: %w", err)
	}
	return nil
}
