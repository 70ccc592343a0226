package web

import (
	"net/http"
	"slices"
	"strconv"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/tailnet"
)

func (h *Handler) registerPages() []page {
	return []page{{path: "/register/{id}", get: (*visit).serveRegister, post: (*visit).register}}
}

// machine is what people are shown of a registration that waits.
type machine struct {
	ID     string
	Name   string // as the machine calls itself
	OS     string
	Model  string
	Key    string // machine key, as short as people compare it
	Remote string
	Asked  string
	Tags   []string // that it asks for
}

func (v *visit) machine(l *tailnet.Login) machine {
	m := machine{ID: l.ID, Key: l.MachineKey.ShortString(), Remote: l.Remote, Asked: ago(v.h.o.Now(), l.Created), Name: "a machine without a name"}
	if h := l.Hostinfo; h != nil {
		if h.Hostname != "" {
			m.Name = h.Hostname
		}
		m.OS, m.Model, m.Tags = h.OS, h.DeviceModel, h.RequestTags
		if h.OSVersion != "" {
			m.OS += " " + h.OSVersion
		}
	}
	return m
}

// registerPage is what register.html shows.
type registerPage struct {
	machine
	Login     string // path of the sign-in page
	Providers []providerLink
	Owners    []owner // whom the machine may be added to; one: there is no choice
	Chosen    tailnet.UserID
	MayDeny   bool
}

// owner is somebody whom a machine may be added to.
type owner struct {
	ID   tailnet.UserID
	Name string
}

// pending is the registration that the path names.
func (v *visit) pending() (*tailnet.Login, error) {
	l, err := v.h.o.Auth.Login(v.r.Context(), v.r.PathValue("id"))
	if tailnet.CodeOf(err) == tailnet.NotFound {
		return nil, tailnet.Errorf(tailnet.NotFound, "no machine waits to join under this address. Either it has been let in already, or it waited too long: "+
			"then run tailscale up on it once more")
	}
	return l, err
}

// owners are the users that the visitor may add a machine to: itself, and for who looks after machines everybody.
func (v *visit) owners() (out []owner) {
	if v.user == nil {
		return nil
	}
	if !v.mayManage() {
		return []owner{{v.user.ID, v.user.Title()}}
	}
	for _, u := range v.h.o.State.Snapshot().Users() {
		o := owner{u.ID, u.Name}
		if u.DisplayName != "" && u.DisplayName != u.Name {
			o.Name = u.DisplayName + " (" + u.Name + ")"
		}
		out = append(out, o)
	}
	return out
}

// serveRegister is where the URL leads that a client prints.
func (v *visit) serveRegister() error {
	l, err := v.pending()
	if err != nil {
		return err
	}
	return v.showRegister(http.StatusOK, l, nil)
}

func (v *visit) showRegister(status int, l *tailnet.Login, faults []fault) error {
	here := "/register/" + l.ID
	p := registerPage{machine: v.machine(l), Login: v.signInPath(here), Owners: v.owners(), MayDeny: v.mayManage()}
	title := "A machine wants to join"
	w := view{Title: title, Faults: faults, Page: p}
	if v.user == nil {
		p.Providers = v.providerLinks(here)
	} else {
		p.Chosen = v.user.ID
		w.Token = v.token()
	}
	w.Page = p
	return v.render(status, "register", w)
}

// register adds the machine, or sends it away.
func (v *visit) register() error {
	if !v.signedIn() {
		return nil
	}
	l, err := v.pending()
	if err != nil {
		return err
	}
	if v.r.PostForm.Get("action") == "deny" {
		return v.deny(l)
	}
	n, err := strconv.ParseInt(v.r.PostForm.Get("owner"), 10, 64)
	id := tailnet.UserID(n)
	if err != nil || !slices.ContainsFunc(v.owners(), func(o owner) bool { return o.ID == id }) {
		return v.showRegister(http.StatusBadRequest, l, []fault{{"owner", "Choose who shall own the machine."}})
	}
	c := auth.Completion{User: id, Method: tailnet.RegisteredByWeb, Approved: v.mayManage()}
	if id == v.user.ID {
		c.Ends = v.session.NodesEnd
	}
	node, err := v.h.o.Auth.Complete(v.r.Context(), l.ID, c)
	if err != nil {
		if status, f, ok := faultOf("", err); ok && !v.wantsJSON() {
			return v.showRegister(status, l, []fault{f})
		}
		return err
	}
	v.h.o.Log.Info("machine added on the pages", "node", node, "user", v.user.Name, "owner", id, "remote", v.remote())
	v.redirect("/machines/" + node.String() + "?added=1")
	return nil
}

// deny forgets the registration.
func (v *visit) deny(l *tailnet.Login) error {
	if !v.mayManage() {
		return tailnet.Errorf(tailnet.Denied, "only who looks after the machines of this network may send one away; if you do not know it, close the page")
	}
	if err := v.h.o.Auth.DenyLogin(v.r.Context(), l.ID); err != nil {
		return err
	}
	v.h.o.Log.Info("machine sent away on the pages", "machine", l.MachineKey.ShortString(), "user", v.user.Name, "remote", v.remote())
	return v.render(http.StatusOK, "done", view{Title: "The machine was sent away", Place: "machines", Page: donePage{
		Text: v.machine(l).Name + " was not added. If it asks again, it does so under another address.", Next: "/admin", NextText: "All machines",
	}})
}

// donePage is what done.html shows.
type donePage struct {
	Text, Next, NextText string
	Other, OtherText     string // a second way to go; empty: none
}
