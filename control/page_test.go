package control

import (
	"html"
	"io"
	"net/http"
	"path"
	"strings"
	"testing"

	"tailscale.com/tailcfg"
)

// get fetches a page as a browser does.
func (ts *testServer) get(url string) (*http.Response, string) {
	ts.t.Helper()
	req, err := http.NewRequestWithContext(ts.ctx, "GET", url, nil)
	ts.must(err)
	resp, err := http.DefaultClient.Do(req)
	ts.must(err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	ts.must(err)
	return resp, string(b)
}

func (ts *testServer) checkPage(resp *http.Response, status int) {
	ts.t.Helper()
	if resp.StatusCode != status {
		ts.t.Errorf("status %d, want %d", resp.StatusCode, status)
	}
	h := resp.Header
	if csp := h.Get("Content-Security-Policy"); !strings.Contains(csp, "default-src 'none'") || strings.Contains(csp, "script") {
		ts.t.Errorf("Content-Security-Policy is %q", csp)
	}
	for k, want := range map[string]string{
		"Content-Type": "text/html; charset=utf-8", "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
	} {
		if h.Get(k) != want {
			ts.t.Errorf("%s is %q, want %q", k, h.Get(k), want)
		}
	}
}

// The page shows what wants in and the command that lets it in, whatever the machine calls itself.
func TestRegisterPage(t *testing.T) {
	ts := newServer(t, nil)
	evil := `<script>alert("x")</script>'"&{{.ID}}`
	a := ts.newClient("alpha")
	url := a.register(tailcfg.RegisterRequest{Hostinfo: &tailcfg.Hostinfo{Hostname: evil, OS: "<b>linux", OSVersion: "6</dd>"}}).AuthURL
	resp, body := ts.get(url)
	ts.checkPage(resp, 200)
	if want := "skein nodes register --namespace NAME --key " + path.Base(url) + "<"; !strings.Contains(body, want) {
		t.Errorf("the page does not have %q:\n%s", want, body)
	}
	for _, bad := range []string{"<script", "<b>linux", "6</dd>", a.machine.Public().String()} {
		if strings.Contains(body, bad) {
			t.Errorf("the page has %q in it", bad)
		}
	}
	for _, want := range []string{evil, "127.0.0.1", a.machine.Public().ShortString()} {
		if !strings.Contains(html.UnescapeString(body), want) {
			t.Errorf("the page does not have %q", want)
		}
	}

	_, err := ts.auth.CompleteLogin(ts.ctx, path.Base(url), ts.user)
	ts.must(err)
	resp, body = ts.get(url)
	ts.checkPage(resp, 404)
	if !strings.Contains(body, "let in already") || strings.Contains(body, "script") {
		t.Errorf("the page of a completed login is:\n%s", body)
	}
}

func TestUnknownPages(t *testing.T) {
	ts := newServer(t, nil)
	for _, id := range []string{"nothing", strings.Repeat("a", 5000), "%3Cscript%3E", "%00", "%27%3B%20DROP%20TABLE%20logins--"} {
		resp, body := ts.get(ts.url + "/register/" + id)
		ts.checkPage(resp, 404)
		if strings.Contains(body, "script") || strings.Contains(body, "DROP") {
			t.Errorf("the page repeats %q", id)
		}
	}
	resp, body := ts.get(ts.url + "/admin")
	ts.checkPage(resp, 200)
	if !strings.Contains(body, "skein") {
		t.Errorf("/admin is:\n%s", body)
	}
}
