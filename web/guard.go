package web

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"net/http"
	"net/netip"
	"regexp"
	"runtime/debug"
	"strings"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// maxBody is how many bytes of a request are read at the most: the answer of a passkey is the largest.
const maxBody = 64 << 10

// transportSecurity is how long browsers that have seen a page over TLS come by TLS only (RFC 6797).
const transportSecurity = "max-age=15552000"

// setHeaders are the headers of every answer. secure: people reach the server over TLS, with a certificate that they accept.
//
// Referrer-Policy must not be no-referrer: browsers then send "Origin: null" with our own forms, and over plain HTTP the origin is all that they
// tell (https://fetch.spec.whatwg.org/#append-a-request-origin-header). form-action holds for redirects after a form as well, which is
// why providers are reached by links.
func setHeaders(h http.Header, secure bool) {
	if secure {
		h.Set("Strict-Transport-Security", transportSecurity)
	}
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; "+
		"form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
	h.Set("X-Frame-Options", "DENY")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "same-origin")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Permissions-Policy", "camera=(), geolocation=(), microphone=(), payment=(), usb=(), "+
		"publickey-credentials-create=(self), publickey-credentials-get=(self)")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Robots-Tag", "noindex")
}

// visit is one request and who makes it.
type visit struct {
	h *Handler
	w http.ResponseWriter
	r *http.Request

	session *tailnet.WebSession // nil: nobody has signed in
	user    *tailnet.User       // nil exactly if session is
	browser string              // what tokens are bound to: the session's id, or a cookie of its own; empty: none yet
}

// dispatch does what all pages have in common.
func (h *Handler) dispatch(p page) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		v := &visit{h: h, w: w, r: r}
		defer func() {
			if e := recover(); e != nil {
				if err, ok := e.(error); ok && errors.Is(err, http.ErrAbortHandler) {
					panic(e)
				}
				h.o.Log.Error("panic in a page", "path", p.path, "remote", h.o.Remote(r), "err", e, "stack", string(debug.Stack()))
				v.fail(tailnet.Errorf(tailnet.Internal, "panic"))
			}
		}()
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		serve := p.get
		if r.Method == http.MethodPost {
			serve = p.post
		}
		if serve == nil || r.Method != http.MethodGet && r.Method != http.MethodHead && r.Method != http.MethodPost {
			v.methodNotAllowed(p)
			return
		}
		if err := v.identify(); err != nil {
			v.fail(err)
			return
		}
		v.act()
		if r.Method == http.MethodPost {
			if err := v.checkForgery(); err != nil {
				v.fail(err)
				return
			}
		}
		if err := serve(v); err != nil {
			v.fail(err)
		}
	})
}

// act names the visitor as who makes changes, for the audit log.
func (v *visit) act() {
	a := state.Actor{Kind: "visitor", Name: "sign-in page", Origin: "web"}
	if addr := v.remote(); addr.IsValid() {
		a.Remote = addr.String()
	}
	if v.user != nil {
		a.Kind, a.Name, a.ID = string(auth.KindUser), v.user.LoginName(), v.user.ID.String()
	}
	v.r = v.r.WithContext(state.WithActor(v.r.Context(), a))
}

// secure reports whether the browser reaches us over TLS.
func (v *visit) secure() bool { return v.h.https || v.r.TLS != nil }

const (
	sessionCookie = "skein"
	visitCookie   = "skein-visit" // before anybody has signed in
)

// cookieName adds the prefix that keeps neighbours under the same domain, and plain HTTP, from planting a cookie
// (RFC 6265bis, section 4.1.3.2).
func (v *visit) cookieName(name string) string {
	if v.secure() {
		return "__Host-" + name
	}
	return name
}

func (v *visit) setCookie(name, value string, maxAge int) {
	http.SetCookie(v.w, &http.Cookie{
		Name: v.cookieName(name), Value: value, Path: "/", MaxAge: maxAge, HttpOnly: true, Secure: v.secure(), SameSite: http.SameSiteLaxMode,
	})
}

func (v *visit) cookie(name string) string {
	c, err := v.r.Cookie(v.cookieName(name))
	if err != nil {
		return ""
	}
	return c.Value
}

// signOutPath is the one path that the cookie for signing out at a provider is sent to.
const signOutPath = "/logout"

// providerCookieName is the name of the cookie that says with which provider somebody has signed in, and what that has said.
func (v *visit) providerCookieName() string {
	if v.secure() {
		return "__Secure-skein-provider" // __Host- would need the path /
	}
	return "skein-provider"
}

// maxProviderCookie bounds that cookie, in bytes: browsers keep 4096 with its name.
const maxProviderCookie = 3500

// setProviderCookie keeps a provider's id and its ID token, with a blank between, for the day of signing out; an empty value forgets them. A
// token that is too long is left out: the provider asks more questions then.
func (v *visit) setProviderCookie(value string) {
	age := int(auth.SessionTTL.Seconds())
	if value == "" {
		age = -1
	}
	if base64.RawURLEncoding.EncodedLen(len(value)) > maxProviderCookie {
		value, _, _ = strings.Cut(value, " ")
	}
	http.SetCookie(v.w, &http.Cookie{
		Name: v.providerCookieName(), Value: base64.RawURLEncoding.EncodeToString([]byte(value)), Path: signOutPath, MaxAge: age, HttpOnly: true, Secure: v.secure(), SameSite: http.SameSiteLaxMode,
	})
}

// providerCookie is what setProviderCookie has kept; empty: nothing. It is the browser's word.
func (v *visit) providerCookie() string {
	c, err := v.r.Cookie(v.providerCookieName())
	if err != nil {
		return ""
	}
	b, err := base64.RawURLEncoding.DecodeString(c.Value)
	if err != nil {
		return ""
	}
	return string(b)
}

var randomCookie = regexp.MustCompile(`^[A-Za-z0-9_-]{32}$`)

// identify finds out whose browser this is.
func (v *visit) identify() (err error) {
	if v.h.o.NoSignIn {
		return nil // nobody
	}
	if v.session, v.user, err = v.h.o.Accounts.Session(v.r.Context(), v.cookie(sessionCookie)); err != nil {
		return err
	}
	if v.session != nil {
		v.browser = "session " + v.session.ID
	} else if c := v.cookie(visitCookie); randomCookie.MatchString(c) {
		v.browser = "visit " + c
	}
	return nil
}

// known makes sure that the browser has something that tokens can be bound to. It must be called before the answer begins.
func (v *visit) known() string {
	if v.browser == "" {
		b := make([]byte, 24)
		if _, err := rand.Read(b); err != nil {
			panic("no randomness: " + err.Error())
		}
		c := base64.RawURLEncoding.EncodeToString(b)
		v.setCookie(visitCookie, c, 0)
		v.browser = "visit " + c
	}
	return v.browser
}

// token is what forms must carry.
func (v *visit) token() string {
	m := hmac.New(sha256.New, v.h.o.Secret)
	m.Write([]byte("form\x00" + v.known()))
	return hex.EncodeToString(m.Sum(nil))
}

// tokenHeader carries the token of requests that are not forms.
const tokenHeader = "X-Skein-Token"

// checkForgery returns nil if the request comes from a page of ours in this browser.
func (v *visit) checkForgery() error {
	if err := v.h.origin.Check(v.r); err != nil {
		v.h.o.Log.Warn("a form came from another site", "path", v.r.URL.Path, "remote", v.remote(), "err", err)
		return tailnet.Errorf(tailnet.Denied, "this request came from another site")
	}
	token := v.r.Header.Get(tokenHeader)
	if token == "" {
		if err := v.r.ParseForm(); err != nil {
			return badForm(err)
		}
		token = v.r.PostForm.Get("token")
	}
	if v.browser == "" || subtle.ConstantTimeCompare([]byte(token), []byte(v.token())) != 1 {
		return tailnet.Errorf(tailnet.Denied, "this form is out of date, or your browser keeps no cookies; go back, reload the page and try again")
	}
	return nil
}

func badForm(err error) error {
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return err
	}
	return tailnet.Errorf(tailnet.Invalid, "the form cannot be read: it is not encoded as browsers do it")
}

// remote is where the request comes from.
func (v *visit) remote() netip.Addr { return v.h.o.Remote(v.r) }

// begin begins a session, in place of the one that there was.
func (v *visit) begin(r auth.SessionRequest) error {
	r.Remote, r.Agent = v.remote(), v.r.UserAgent()
	if v.session != nil {
		if err := v.h.o.Accounts.EndSession(v.r.Context(), v.user, v.session.ID); err != nil {
			return err
		}
	}
	secret, s, err := v.h.o.Accounts.BeginSession(v.r.Context(), r)
	if err != nil {
		return err
	}
	v.setCookie(sessionCookie, secret, int(auth.SessionTTL.Seconds()))
	if v.cookie(visitCookie) != "" {
		v.setCookie(visitCookie, "", -1)
	}
	v.setProviderCookie("") // of an earlier sign-in; finishProvider sets the new one
	v.session, v.user, v.browser = s, r.User, "session "+s.ID
	return nil
}

// end ends the session.
func (v *visit) end() error {
	if v.session != nil {
		if err := v.h.o.Accounts.EndSession(v.r.Context(), v.user, v.session.ID); err != nil {
			return err
		}
	}
	v.setCookie(sessionCookie, "", -1)
	v.session, v.user, v.browser = nil, nil, ""
	return nil
}

// signedIn reports whether somebody has signed in; otherwise it sends the browser to the sign-in page, and back here afterwards.
func (v *visit) signedIn() bool {
	if v.user != nil {
		return true
	}
	if v.wantsJSON() {
		v.fail(errNobody)
		return false
	}
	v.redirect(signInPath(v.r.URL.Path))
	return false
}

var errNobody = tailnet.Errorf(tailnet.Denied, "sign in first")

// places are the paths that a sign-in may lead back to: all that people can have been at before.
var places = regexp.MustCompile(`^(/admin|/account|/(register|ssh)/[A-Za-z0-9]{1,200}|/machines/[0-9]{1,19})$`)

// place is p if a sign-in may lead there, else the overview.
func place(p string) string {
	if !places.MatchString(p) {
		return "/admin"
	}
	return p
}

// redirect answers with the address of another page of ours; a form that was posted is not posted there.
func (v *visit) redirect(to string) {
	http.Redirect(v.w, v.r, to, http.StatusSeeOther)
}

// wantsJSON reports whether the answer is to be read by a program.
func (v *visit) wantsJSON() bool {
	a := v.r.Header.Get("Accept")
	return strings.Contains(a, "json") && !strings.Contains(a, "text/html")
}
