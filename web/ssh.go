package web

import (
	"net/http"
	"time"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/tailnet"
)

func (h *Handler) sshPages() []page {
	return []page{{path: "/ssh/{id}", get: (*visit).serveSSH, post: (*visit).decideSSH}}
}

// freshSignIn is how long before an SSH session is approved somebody must have signed in, unless it was after the session asked: that it is the
// same person now is what a check is about.
const freshSignIn = 10 * time.Minute

// sshSession is what people are shown of an SSH session that waits.
type sshSession struct {
	ID, From, Owner, To, SSHUser, LocalUser, Asked, Holds string
}

func (v *visit) sshSession(c *tailnet.SSHCheck) sshSession {
	sn := v.h.o.State.Snapshot()
	s := sshSession{
		ID: c.ID, From: "a machine that is gone", To: "a machine that is gone", SSHUser: c.SSHUser, Asked: ago(v.h.o.Now(), c.Created),
		Holds: "this session only",
	}
	if c.LocalUser != c.SSHUser {
		s.LocalUser = c.LocalUser
	}
	if n := sn.Node(c.Src); n != nil {
		s.From = n.Name
	}
	if n := sn.Node(c.Dst); n != nil {
		s.To = n.Name
	}
	if u := sn.User(c.SrcUser); u != nil {
		s.Owner = u.LoginName()
	}
	if c.Period > 0 {
		s.Holds = "this session, and others like it for " + c.Period.String()
	}
	return s
}

// sshPage is what ssh.html shows.
type sshPage struct {
	sshSession
	Login     string // path of the sign-in page
	Providers []providerLink
	MayDecide bool
	Again     string // path of the sign-in page if the person must sign in once more; empty: it need not
}

// waitingSSH is the session that the path names.
func (v *visit) waitingSSH() (*tailnet.SSHCheck, error) {
	c, err := v.h.o.Auth.SSHCheck(v.r.Context(), v.r.PathValue("id"))
	if tailnet.CodeOf(err) == tailnet.NotFound || err == nil && !c.Waiting() {
		return nil, tailnet.Errorf(tailnet.NotFound, "no SSH session waits to be confirmed under this address. Either that is done already, or it waited too long: "+
			"then open the session once more")
	}
	return c, err
}

// mayDecide reports whether the visitor may decide about c: whose session it is, and who looks after machines.
func (v *visit) mayDecide(c *tailnet.SSHCheck) bool {
	return auth.Active(v.user) == nil && (c.SrcUser != 0 && c.SrcUser == v.user.ID || v.mayManage())
}

func (v *visit) isFresh(c *tailnet.SSHCheck) bool {
	return v.session.Created.After(c.Created) || v.h.o.Now().Sub(v.session.Created) < freshSignIn
}

func (v *visit) serveSSH() error {
	c, err := v.waitingSSH()
	if err != nil {
		return err
	}
	here := "/ssh/" + c.ID
	p := sshPage{sshSession: v.sshSession(c), Login: v.signInPath(here), MayDecide: v.mayDecide(c)}
	w := view{Title: "An SSH session wants to begin"}
	if v.user == nil {
		p.Providers = v.providerLinks(here)
	} else {
		w.Token = v.token()
		if !v.isFresh(c) {
			p.Again = signInPath(here) + "&again=1"
		}
	}
	w.Page = p
	return v.render(http.StatusOK, "ssh", w)
}

func (v *visit) decideSSH() error {
	if !v.signedIn() {
		return nil
	}
	c, err := v.waitingSSH()
	if err != nil {
		return err
	}
	if !v.mayDecide(c) {
		return tailnet.Errorf(tailnet.Denied, "only the person whose session it is, and administrators, may decide about it")
	}
	what := "approved"
	switch v.r.PostForm.Get("action") {
	case "approve":
		if !v.isFresh(c) {
			v.redirect(signInPath("/ssh/"+c.ID) + "&again=1")
			return nil
		}
		c, err = v.h.o.Auth.ApproveSSH(v.r.Context(), c.ID, v.user.LoginName())
	case "deny":
		what = "denied"
		c, err = v.h.o.Auth.DenySSH(v.r.Context(), c.ID, v.user.LoginName())
	default:
		return tailnet.Errorf(tailnet.Invalid, "the form does not say whether to approve or to deny")
	}
	if err != nil {
		return err
	}
	s := v.sshSession(c)
	return v.render(http.StatusOK, "done", view{Title: "The session was " + what, Page: donePage{
		Text: "The session from " + s.From + " to " + s.To + " as " + s.SSHUser + " was " + what + ". You can close this page.", Next: "/admin", NextText: "Overview",
	}})
}
