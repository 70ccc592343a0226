package web

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"io/fs"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/tailnet"
)

//go:embed templates static
var files embed.FS

// static are the files that pages load, by name, and version changes with any of them: browsers may keep them for ever.
var static, version = func() (map[string][]byte, string) {
	m := map[string][]byte{}
	sum := sha256.New()
	entries, err := fs.ReadDir(files, "static")
	if err != nil {
		panic(err)
	}
	for _, e := range entries {
		b, err := files.ReadFile("static/" + e.Name())
		if err != nil {
			panic(err)
		}
		m[e.Name()] = b
		sum.Write(b)
	}
	return m, hex.EncodeToString(sum.Sum(nil))[:12]
}()

func staticHandler() http.Handler {
	types := map[string]string{".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := path.Base(r.URL.Path)
		b, ok := static[name]
		if !ok || path.Dir(r.URL.Path) != "/web" {
			http.NotFound(w, r)
			return
		}
		h := w.Header()
		h.Set("Content-Type", types[path.Ext(name)])
		h.Set("Cache-Control", "public, max-age=300")
		if r.URL.RawQuery == version {
			h.Set("Cache-Control", "public, max-age=31536000, immutable")
		}
		http.ServeContent(w, r, name, time.Time{}, bytes.NewReader(b))
	})
}

// templates are the pages by name, each with the layout around it.
var templates = func() map[string]*template.Template {
	layout := template.Must(template.New("layout.html").Funcs(template.FuncMap{
		"file": func(name string) string { return "/web/" + name + "?" + version },
		"time": func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 UTC") },
		"iso":  func(t time.Time) string { return t.UTC().Format(time.RFC3339) },
	}).ParseFS(files, "templates/layout.html", "templates/parts.html"))
	m := map[string]*template.Template{}
	names, err := fs.Glob(files, "templates/*.html")
	if err != nil {
		panic(err)
	}
	for _, n := range names {
		m[strings.TrimSuffix(path.Base(n), ".html")] = template.Must(template.Must(layout.Clone()).ParseFS(files, n))
	}
	return m
}()

// view is what the layout shows; Page is what the page inside it does.
type view struct {
	Title   string
	User    *tailnet.User // who has signed in; nil: nobody
	Place   string        // which entry of the menu is the page's
	Token   string        // for forms; empty: the page has none
	Faults  []fault       // of the form that was sent
	Notice  string        // what has just been done
	Passkey string        // script that the page needs: empty, or a reason for it
	Support string        // mail address of who helps; empty: nobody is known
	Page    any
}

// fault is something wrong with a form.
type fault struct {
	Field   string // id of the field; empty: the whole form
	Message string
}

// Of is the fault of a field, empty if there is none.
func (w view) Of(field string) string {
	for _, f := range w.Faults {
		if f.Field == field {
			return f.Message
		}
	}
	return ""
}

// render answers with a page.
func (v *visit) render(status int, name string, w view) error {
	w.User = v.user
	w.Support = v.h.o.State.Snapshot().Tailnet.Settings.Contacts.Support
	if v.user != nil && w.Token == "" {
		w.Token = v.token() // of the button that signs out
	}
	var b bytes.Buffer
	if err := templates[name].ExecuteTemplate(&b, "layout.html", w); err != nil {
		return fmt.Errorf("page %s: %w", name, err)
	}
	v.w.Header().Set("Content-Type", "text/html; charset=utf-8")
	v.w.WriteHeader(status)
	_, _ = v.w.Write(b.Bytes()) // the reader is gone if it fails
	return nil
}

// json answers with v for our own script.
func (v *visit) json(value any) error {
	b, err := json.Marshal(value)
	if err != nil {
		return err
	}
	v.w.Header().Set("Content-Type", "application/json")
	_, _ = v.w.Write(b)
	return nil
}

// kind is how one tailnet.Code looks to people.
type kind struct {
	status int
	title  string
}

var kinds = map[tailnet.Code]kind{
	tailnet.Invalid:         {http.StatusBadRequest, "That did not work"},
	tailnet.NotFound:        {http.StatusNotFound, "Nothing is here"},
	tailnet.Conflict:        {http.StatusConflict, "That is not possible any more"},
	tailnet.Unauthenticated: {http.StatusForbidden, "That is not allowed"},
	tailnet.Denied:          {http.StatusForbidden, "That is not allowed"},
	tailnet.Exhausted:       {http.StatusTooManyRequests, "Too much at once"},
	tailnet.Unavailable:     {http.StatusServiceUnavailable, "Not possible at the moment"},
}

// problem is how err looks outside: its sentence if it has one for people.
func problem(err error) (kind, string) {
	var e *tailnet.Error
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return kind{http.StatusRequestEntityTooLarge, "That was too much"}, fmt.Sprintf("the form is larger than %d KiB", tooLarge.Limit>>10)
	case errors.As(err, &e):
		if k, ok := kinds[e.Code]; ok {
			return k, e.Message
		}
	}
	return kind{http.StatusInternalServerError, "Something went wrong"}, "the server has failed; its log says why"
}

// fail answers with an error: a page, or JSON (RFC 9457).
func (v *visit) fail(err error) {
	k, message := problem(err)
	if k.status == http.StatusInternalServerError {
		v.h.o.Log.Error("a page failed", "path", v.r.URL.Path, "remote", v.remote(), "err", err)
	}
	v.answer(k, message, err)
}

// answer answers with a failure.
func (v *visit) answer(k kind, message string, err error) {
	v.retryAfter(err)
	if v.wantsJSON() {
		b, _ := json.Marshal(map[string]any{"status": k.status, "title": k.title, "detail": message}) // cannot fail
		v.w.Header().Set("Content-Type", "application/problem+json")
		v.w.WriteHeader(k.status)
		_, _ = v.w.Write(b)
		return
	}
	if e := v.render(k.status, "error", view{Title: k.title, Page: sentence(message)}); e != nil {
		v.h.o.Log.Error("a page about an error failed", "err", e)
	}
}

func (v *visit) retryAfter(err error) {
	var wait *auth.WaitError
	if errors.As(err, &wait) {
		v.w.Header().Set("Retry-After", strconv.Itoa(int(wait.Wait.Seconds())))
	}
}

func (v *visit) methodNotAllowed(p page) {
	allow := "GET, HEAD"
	switch {
	case p.get == nil:
		allow = "POST"
	case p.post != nil:
		allow += ", POST"
	}
	v.w.Header().Set("Allow", allow)
	v.answer(kind{http.StatusMethodNotAllowed, "That is not possible here"}, "this address knows "+allow+" only", nil)
}

// sentence is an error's message as a sentence of its own.
func sentence(s string) string {
	if s == "" {
		return s
	}
	s = strings.ToUpper(s[:1]) + s[1:]
	if !strings.ContainsAny(s[len(s)-1:], ".!?") {
		s += "."
	}
	return s
}

// faultOf is err as something to show above a form; ok is false if it is none of the person's doing.
func faultOf(field string, err error) (status int, f fault, ok bool) {
	k, message := problem(err)
	switch tailnet.CodeOf(err) {
	case tailnet.Invalid, tailnet.Denied, tailnet.Conflict, tailnet.Exhausted:
		return k.status, fault{Field: field, Message: sentence(message)}, true
	}
	return 0, fault{}, false
}

// ago is how long ago t was, for people.
func ago(now, t time.Time) string {
	d := now.Sub(t)
	plural := func(n int, unit string) string {
		if n == 1 {
			return "1 " + unit + " ago"
		}
		return fmt.Sprintf("%d %ss ago", n, unit)
	}
	switch {
	case t.IsZero():
		return "never"
	case d < time.Minute:
		return "just now"
	case d < time.Hour:
		return plural(int(d.Minutes()), "minute")
	case d < 48*time.Hour:
		return plural(int(d.Hours()), "hour")
	}
	return plural(int(d.Hours()/24), "day")
}

// signInPath is the sign-in page that leads back to p.
func signInPath(p string) string { return "/login?to=" + url.QueryEscape(place(p)) }

// signInPath is signInPath, or empty where nobody can sign in.
func (v *visit) signInPath(p string) string {
	if v.h.o.NoSignIn {
		return ""
	}
	return signInPath(p)
}
