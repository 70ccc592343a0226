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

// pageData is what page.html shows: a waiting machine, or a message.
type pageData struct {
	Title   string
	Message string         // shown in place of a login
	Login   *tailnet.Login // nil: only the message
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
