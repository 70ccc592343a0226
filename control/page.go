package control

import (
	_ "embed"
	"html/template"
	"net/http"
	"time"

	"github.com/gorilla/mux"

	"github.com/skein-vpn/skein/tailnet"
)

//go:embed page.html
var pageText string

var page = template.Must(template.New("page").Parse(pageText))

// pageData is what page.html shows: a waiting machine, a waiting SSH session, or a message.
type pageData struct {
	Title   string
	Message string         // shown in place of a login
	Login   *tailnet.Login // or
	SSH     *sshPage       // both nil: only the message
	Waiting time.Duration
}

// serveRegisterPage is where the URL that a client prints leads: it shows what is joining and what to type.
func (s *Server) serveRegisterPage(w http.ResponseWriter, r *http.Request) {
	l, err := s.o.Auth.Login(r.Context(), mux.Vars(r)["id"])
	switch {
	case tailnet.CodeOf(err) == tailnet.NotFound:
		writePage(w, http.StatusNotFound, pageData{Title: "Nothing waits here", Message: "No machine waits to join under this " +
			"address. Either it has been let in already, or it waited too long: then run tailscale up on it once more."})
	case err != nil:
		s.log.Error("a registration page failed", "err", err)
		writePage(w, http.StatusInternalServerError, pageData{Title: "Something went wrong", Message: "The server could not look this up. Try again."})
	default:
		writePage(w, http.StatusOK, pageData{Title: "A machine wants to join", Login: l, Waiting: time.Since(l.Created).Round(time.Second)})
	}
}

// sshPage is what page.html shows of a tailnet.SSHCheck.
type sshPage struct {
	*tailnet.SSHCheck
	From, Owner, To string // names
	Holds           string
}

// serveSSHPage is where the URL leads that an SSH client prints in check mode.
func (s *Server) serveSSHPage(w http.ResponseWriter, r *http.Request) {
	c, err := s.o.Auth.SSHCheck(r.Context(), mux.Vars(r)["id"])
	switch {
	case tailnet.CodeOf(err) == tailnet.NotFound || err == nil && !c.Waiting():
		writePage(w, http.StatusNotFound, pageData{Title: "Nothing waits here", Message: "No SSH session waits to be confirmed under this " +
			"address. Either that is done already, or it waited too long: then open the session once more."})
	case err != nil:
		s.log.Error("a page about an SSH session failed", "err", err)
		writePage(w, http.StatusInternalServerError, pageData{Title: "Something went wrong", Message: "The server could not look this up. Try again."})
	default:
		sn := s.o.State.Snapshot()
		p := &sshPage{SSHCheck: c, From: "a node that is gone", To: "a node that is gone", Holds: "this session only"}
		if n := sn.Node(c.Src); n != nil {
			p.From = n.Name
		}
		if n := sn.Node(c.Dst); n != nil {
			p.To = n.Name
		}
		if u := sn.User(c.SrcUser); u != nil {
			p.Owner = u.LoginName()
		}
		if c.Period > 0 {
			p.Holds = "this session, and others like it for " + c.Period.String()
		}
		writePage(w, http.StatusOK, pageData{Title: "An SSH session wants to begin", SSH: p, Waiting: time.Since(c.Created).Round(time.Second)})
	}
}

// serveAdminPage is where `tailscale up` sends people who wait for approval.
func (s *Server) serveAdminPage(w http.ResponseWriter, r *http.Request) {
	writePage(w, http.StatusOK, pageData{Title: "Skein", Message: "This network is administered on the server, with the command skein."})
}

func writePage(w http.ResponseWriter, status int, d pageData) {
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
	h.Set("Cache-Control", "no-store")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_ = page.Execute(w, d) // the reader is gone if it fails
}
