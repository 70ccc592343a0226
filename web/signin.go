package web

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strings"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/tailnet"
)

func (h *Handler) signInPages() []page {
	return []page{
		{path: "/{$}", get: (*visit).serveFront},
		{path: "/login", get: (*visit).serveSignIn, post: (*visit).signIn},
		{path: "/login/passkey/begin", post: (*visit).beginPasskeySignIn},
		{path: "/login/passkey/finish", post: (*visit).finishPasskeySignIn},
		{path: "/login/with/{provider}", get: (*visit).beginProvider},
		{path: CallbackPath, get: (*visit).finishProvider},
		{path: CallbackPath + "/{provider}", get: (*visit).finishProvider},
		{path: "/logout", post: (*visit).signOut},
		{path: "/setup/{secret}", get: (*visit).serveSetup, post: (*visit).setUp},
		{path: "/setup/{secret}/passkey/begin", post: (*visit).beginSetupPasskey},
		{path: "/setup/{secret}/passkey/finish", post: (*visit).finishSetupPasskey},
	}
}

// frontPage is what front.html shows.
type frontPage struct {
	ServerURL string
	SignIn    bool // people can
}

// serveFront is the server's bare address: a page for people, a line for curl.
func (v *visit) serveFront() error {
	if !strings.Contains(v.r.Header.Get("Accept"), "text/html") {
		v.w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = v.w.Write([]byte("This is a Skein server. Join it with:\n\n    tailscale up --login-server " + v.h.o.ServerURL + "\n"))
		return nil
	}
	return v.render(http.StatusOK, "front", view{Title: "Skein", Page: frontPage{v.h.o.ServerURL, !v.h.o.NoSignIn}})
}

// signInPage is what signin.html shows.
type signInPage struct {
	Name      string
	To        string
	Again     bool // somebody has signed in, and is asked to do it once more
	Purpose   string
	Providers []providerLink
	Local     bool // there is somebody who can sign in with a password or a passkey
	Passkeys  bool
}

// providerLink is one way to sign in elsewhere.
type providerLink struct {
	Name  string
	URL   string
	Fault string // why it cannot be used now; empty: it can
}

func (v *visit) providerLinks(to string) (out []providerLink) {
	if v.h.o.Providers == nil {
		return nil
	}
	for _, p := range v.h.o.Providers.Providers() {
		l := providerLink{Name: p.Name, URL: "/login/with/" + url.PathEscape(p.ID) + "?to=" + url.QueryEscape(to)}
		if p.Err != nil {
			_, message := problem(p.Err)
			l.Fault = sentence(message)
		}
		out = append(out, l)
	}
	return out
}

func (v *visit) signInPage(to string) (signInPage, error) {
	passwords, passkeys, err := v.h.o.Accounts.Ways(v.r.Context())
	if err != nil {
		return signInPage{}, err
	}
	return signInPage{
		To: to, Again: v.user != nil, Providers: v.providerLinks(to), Local: passwords || passkeys, Passkeys: passkeys, Purpose: purpose(to),
	}, nil
}

// purpose says what a sign-in that leads to a path is for.
func purpose(to string) string {
	switch {
	case strings.HasPrefix(to, "/register/"):
		return "Then you can add the machine that waits."
	case strings.HasPrefix(to, "/ssh/"):
		return "Then you can decide about the SSH session that waits."
	}
	return ""
}

// serveSignIn shows the ways to sign in. Whoever has signed in goes on, unless the page wants it once more (again).
func (v *visit) serveSignIn() error {
	to := place(v.r.URL.Query().Get("to"))
	if v.user != nil && v.r.URL.Query().Get("again") == "" {
		v.redirect(to)
		return nil
	}
	return v.showSignIn(http.StatusOK, to, "", nil)
}

func (v *visit) showSignIn(status int, to, name string, faults []fault) error {
	p, err := v.signInPage(to)
	if err != nil {
		return err
	}
	p.Name = name
	if p.Name == "" && v.user != nil {
		p.Name = v.user.Name
	}
	w := view{Title: "Sign in", Token: v.token(), Faults: faults, Page: p}
	if p.Passkeys {
		w.Passkey = "sign in"
	}
	return v.render(status, "signin", w)
}

func (v *visit) signIn() error {
	f := v.r.PostForm
	to, name, password := place(f.Get("to")), strings.TrimSpace(f.Get("name")), f.Get("password")
	var faults []fault
	if name == "" {
		faults = append(faults, fault{"name", "Enter your name."})
	}
	if password == "" {
		faults = append(faults, fault{"password", "Enter your password."})
	}
	if len(faults) > 0 {
		return v.showSignIn(http.StatusBadRequest, to, tailnet.CleanText(name), faults)
	}
	u, err := v.h.o.Accounts.SignIn(v.r.Context(), name, password, v.remote())
	if err != nil {
		status, f, ok := faultOf("password", err)
		if !ok || v.wantsJSON() {
			return err
		}
		v.retryAfter(err)
		return v.showSignIn(status, to, tailnet.CleanText(name), []fault{f})
	}
	if err := v.begin(auth.SessionRequest{User: u, Method: "password"}); err != nil {
		return err
	}
	v.redirect(to)
	return nil
}

// signOut ends the session.
func (v *visit) signOut() error {
	if err := v.end(); err != nil {
		return err
	}
	done := donePage{Text: "You have signed out in this browser.", Next: "/login", NextText: "Sign in again"}
	// At the provider nobody is signed out without being asked: that ends the sign-ins elsewhere, too.
	provider, idToken, _ := strings.Cut(v.providerCookie(), " ")
	if provider != "" && v.h.o.Providers != nil {
		if to, name := v.h.o.Providers.SignOutURL(provider, idToken); to != "" {
			done.Text += " At " + name + " you are still signed in."
			done.Other, done.OtherText = to, "Sign out at "+name+", too"
		}
	}
	v.setProviderCookie("")
	return v.render(http.StatusOK, "done", view{Title: "Signed out", Page: done})
}

// passkeyAnswer is what our script posts.
type passkeyAnswer struct {
	To       string          `json:"to"`
	Name     string          `json:"name"`
	State    string          `json:"state"`
	Response json.RawMessage `json:"response"`
}

func (v *visit) passkeyAnswer() (a passkeyAnswer, err error) {
	err = json.NewDecoder(v.r.Body).Decode(&a)
	var tooLarge *http.MaxBytesError
	if err != nil && !errors.As(err, &tooLarge) {
		err = tailnet.Errorf(tailnet.Invalid, "the request is not the JSON that is expected here")
	}
	return a, err
}

// next is the answer to our script that sends the browser on.
type next struct {
	Next string `json:"next"`
}

func (v *visit) beginPasskeySignIn() error {
	c, err := v.h.o.Accounts.BeginPasskeySignIn(v.browser)
	if err != nil {
		return err
	}
	return v.json(c)
}

func (v *visit) finishPasskeySignIn() error {
	a, err := v.passkeyAnswer()
	if err != nil {
		return err
	}
	u, err := v.h.o.Accounts.FinishPasskeySignIn(v.r.Context(), v.browser, a.State, a.Response, v.remote())
	if err != nil {
		return err
	}
	if err := v.begin(auth.SessionRequest{User: u, Method: "passkey"}); err != nil {
		return err
	}
	return v.json(next{place(a.To)})
}

// beginProvider sends the browser to a provider.
func (v *visit) beginProvider() error {
	if v.h.o.Providers == nil {
		return errNoProvider
	}
	to := place(v.r.URL.Query().Get("to"))
	f := Flow{Kind: "login", ReturnTo: to}
	for kind, prefix := range map[string]string{"node": "/register/", "ssh": "/ssh/"} {
		if id, ok := strings.CutPrefix(to, prefix); ok {
			f.Kind, f.LoginID = kind, id
		}
	}
	redirect, cookie, err := v.h.o.Providers.Begin(v.r.Context(), v.r.PathValue("provider"), f)
	if err != nil {
		return err
	}
	if cookie != nil {
		http.SetCookie(v.w, cookie)
	}
	http.Redirect(v.w, v.r, redirect, http.StatusSeeOther)
	return nil
}

var errNoProvider = tailnet.Errorf(tailnet.NotFound, "no identity provider is set up on this server")

// finishProvider begins a session for whom a provider knows. Nothing is done yet about what the person signed in for: the page there asks.
func (v *visit) finishProvider() error {
	if v.h.o.Providers == nil {
		return errNoProvider
	}
	in, err := v.h.o.Providers.Finish(v.r.Context(), v.r)
	if err != nil {
		return err
	}
	for _, c := range in.Cookies {
		if c != nil {
			http.SetCookie(v.w, c)
		}
	}
	if err := v.begin(auth.SessionRequest{User: in.User, Method: in.Method, NodesEnd: in.NodeExpiry}); err != nil {
		return err
	}
	v.setProviderCookie(in.Provider + " " + in.IDToken)
	v.redirect(place(in.Flow.ReturnTo))
	return nil
}

// setupPage is what setup.html shows.
type setupPage struct {
	Name        string // typed, or given
	Fixed       bool   // Name cannot be chosen
	First       bool   // the first administrator
	Role        string
	MinPassword int
	Passkeys    bool
	NoPasskeys  string // why not
	Secret      string
	Ends        string
}

func (v *visit) showSetup(status int, l *tailnet.AccountLink, name string, faults []fault) error {
	p := setupPage{
		Name: name, First: l.First, Role: string(l.Role), MinPassword: auth.MinPassword, Secret: v.r.PathValue("secret"), Passkeys: true,
		Ends: l.Expires.UTC().Format("15:04 UTC"),
	}
	if fixed := v.h.o.Accounts.LinkName(l); fixed != "" {
		p.Name, p.Fixed = fixed, true
	}
	if err := v.h.o.Accounts.PasskeysError(); err != nil {
		p.Passkeys, p.NoPasskeys = false, sentence(err.Error())
	}
	w := view{Title: "Set up your account", Token: v.token(), Faults: faults, Page: p}
	if p.First {
		w.Title = "Set up the first administrator"
	}
	if p.Passkeys {
		w.Passkey = "set up"
	}
	return v.render(status, "setup", w)
}

// serveSetup is where a one-time link leads. Looking at it does not use it up: programs that preview links do.
func (v *visit) serveSetup() error {
	l, err := v.h.o.Accounts.Link(v.r.Context(), v.r.PathValue("secret"))
	if err != nil {
		return err
	}
	return v.showSetup(http.StatusOK, l, "", nil)
}

func (v *visit) setUp() error {
	secret, f := v.r.PathValue("secret"), v.r.PostForm
	l, err := v.h.o.Accounts.Link(v.r.Context(), secret)
	if err != nil {
		return err
	}
	name := strings.TrimSpace(f.Get("name"))
	var faults []fault
	if v.h.o.Accounts.LinkName(l) == "" {
		if err := tailnet.CheckUserName(name); err != nil {
			faults = append(faults, fault{"name", sentence(err.Error())})
		}
	}
	if err := auth.CheckPassword(name, f.Get("password")); err != nil {
		faults = append(faults, fault{"password", sentence(err.Error())})
	} else if f.Get("password") != f.Get("repeat") {
		faults = append(faults, fault{"repeat", "The two passwords differ."})
	}
	if len(faults) > 0 {
		return v.showSetup(http.StatusBadRequest, l, tailnet.CleanText(name), faults)
	}
	u, err := v.h.o.Accounts.UseLink(v.r.Context(), secret, name, f.Get("password"))
	if err != nil {
		if status, f, ok := faultOf("name", err); ok && !v.wantsJSON() {
			return v.showSetup(status, l, tailnet.CleanText(name), []fault{f})
		}
		return err
	}
	if err := v.begin(auth.SessionRequest{User: u, Method: "link"}); err != nil {
		return err
	}
	v.redirect("/admin")
	return nil
}

func (v *visit) beginSetupPasskey() error {
	a, err := v.passkeyAnswer()
	if err != nil {
		return err
	}
	c, err := v.h.o.Accounts.BeginLinkPasskey(v.r.Context(), v.browser, v.r.PathValue("secret"), strings.TrimSpace(a.Name))
	if err != nil {
		return err
	}
	return v.json(c)
}

func (v *visit) finishSetupPasskey() error {
	a, err := v.passkeyAnswer()
	if err != nil {
		return err
	}
	u, err := v.h.o.Accounts.FinishLinkPasskey(v.r.Context(), v.browser, v.r.PathValue("secret"), strings.TrimSpace(a.Name), a.State, a.Response)
	if err != nil {
		return err
	}
	if err := v.begin(auth.SessionRequest{User: u, Method: "link"}); err != nil {
		return err
	}
	return v.json(next{"/admin"})
}
