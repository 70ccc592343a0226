package web

import (
	"cmp"
	"net/http"
	"time"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/tailnet"
)

func (h *Handler) accountPages() []page {
	return []page{
		{path: "/account", get: (*visit).serveAccount},
		{path: "/account/password", post: (*visit).changePassword},
		{path: "/account/sessions", post: (*visit).endSessions},
		{path: "/account/passkeys", post: (*visit).removePasskey},
		{path: "/account/passkeys/begin", post: (*visit).beginAddPasskey},
		{path: "/account/passkeys/finish", post: (*visit).finishAddPasskey},
	}
}

// accountPage is what account.html shows.
type accountPage struct {
	Name, Login, Role string
	Local             bool // it has a password or a passkey here
	HasPassword       bool
	PasswordSet       time.Time
	MinPassword       int
	Passkeys          []*tailnet.Passkey
	AddPasskeys       bool
	NoPasskeys        string // why not
	Sessions          []sessionRow
}

// sessionRow is a session in the list.
type sessionRow struct {
	ID, Method, Remote, Agent, Begun, Seen string
	This                                   bool
}

func (v *visit) serveAccount() error {
	if !v.signedIn() {
		return nil
	}
	notices := map[string]string{
		"password": "Your password was changed, and all other sessions have ended.", "passkey": "The passkey was added.",
		"removed": "The passkey was removed.", "sessions": "The sessions have ended.",
	}
	return v.showAccount(http.StatusOK, notices[v.r.URL.Query().Get("done")], nil)
}

func (v *visit) showAccount(status int, notice string, faults []fault) error {
	acc, err := v.h.o.Accounts.Account(v.r.Context(), v.user)
	if err != nil {
		return err
	}
	p := accountPage{Name: v.user.Name, Login: v.user.LoginName(), Role: string(v.user.Role), Local: acc != nil, MinPassword: auth.MinPassword, AddPasskeys: true}
	if p.Role == "" {
		p.Role = "member"
	}
	if acc != nil {
		p.HasPassword, p.PasswordSet, p.Passkeys = acc.Password != "", acc.PasswordSet, acc.Passkeys
	}
	if err := v.h.o.Accounts.PasskeysError(); err != nil {
		p.AddPasskeys, p.NoPasskeys = false, sentence(err.Error())
	}
	ss, err := v.h.o.Accounts.Sessions(v.r.Context(), v.user)
	if err != nil {
		return err
	}
	now := v.h.o.Now()
	methods := map[string]string{"password": "a password", "passkey": "a passkey", "link": "a one-time link"}
	for _, s := range ss {
		p.Sessions = append(p.Sessions, sessionRow{
			ID: s.ID, Method: cmp.Or(methods[s.Method], s.Method), Remote: s.Remote, Agent: browserName(s.Agent), Begun: ago(now, s.Created), Seen: ago(now, s.Seen), This: s.ID == v.session.ID,
		})
	}
	w := view{Title: "Your account", Place: "account", Token: v.token(), Notice: notice, Faults: faults, Page: p}
	if p.Local && p.AddPasskeys {
		w.Passkey = "add"
	}
	return v.render(status, "account", w)
}

func (v *visit) changePassword() error {
	if !v.signedIn() {
		return nil
	}
	f := v.r.PostForm
	var faults []fault
	if err := auth.CheckPassword(v.user.Name, f.Get("password")); err != nil {
		faults = append(faults, fault{"password", sentence(err.Error())})
	} else if f.Get("password") != f.Get("repeat") {
		faults = append(faults, fault{"repeat", "The two passwords differ."})
	}
	if len(faults) > 0 {
		return v.showAccount(http.StatusBadRequest, "", faults)
	}
	err := v.h.o.Accounts.ChangePassword(v.r.Context(), v.user, f.Get("old"), f.Get("password"), v.session.ID, v.remote())
	if err != nil {
		if status, f, ok := faultOf("old", err); ok && !v.wantsJSON() {
			v.retryAfter(err)
			return v.showAccount(status, "", []fault{f})
		}
		return err
	}
	v.redirect("/account?done=password")
	return nil
}

// endSessions ends one session, or all but this one.
func (v *visit) endSessions() error {
	if !v.signedIn() {
		return nil
	}
	id := v.r.PostForm.Get("session")
	var err error
	switch id {
	case "":
		return tailnet.Errorf(tailnet.Invalid, "the form does not say which session to end")
	case "others":
		err = v.h.o.Accounts.EndSessions(v.r.Context(), v.user, v.session.ID)
	case v.session.ID:
		return v.signOut()
	default:
		err = v.h.o.Accounts.EndSession(v.r.Context(), v.user, id)
	}
	if err != nil {
		return err
	}
	v.redirect("/account?done=sessions")
	return nil
}

func (v *visit) removePasskey() error {
	if !v.signedIn() {
		return nil
	}
	if err := v.h.o.Accounts.RemovePasskey(v.r.Context(), v.user, v.r.PostForm.Get("passkey")); err != nil {
		if status, f, ok := faultOf("", err); ok && !v.wantsJSON() {
			return v.showAccount(status, "", []fault{f})
		}
		return err
	}
	v.redirect("/account?done=removed")
	return nil
}

func (v *visit) beginAddPasskey() error {
	if !v.signedIn() {
		return nil
	}
	c, err := v.h.o.Accounts.BeginAddPasskey(v.r.Context(), v.browser, v.user)
	if err != nil {
		return err
	}
	return v.json(c)
}

func (v *visit) finishAddPasskey() error {
	if !v.signedIn() {
		return nil
	}
	a, err := v.passkeyAnswer()
	if err != nil {
		return err
	}
	if err := v.h.o.Accounts.FinishAddPasskey(v.r.Context(), v.browser, v.user, a.State, a.Response, a.Name); err != nil {
		return err
	}
	return v.json(next{"/account?done=passkey"})
}
