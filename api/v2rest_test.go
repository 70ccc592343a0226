package api

import (
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	ts "tailscale.com/client/tailscale/v2"
)

// ask sends a request with a key, and returns status and body.
func (w *v2World) ask(t *testing.T, key, method, path, body string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(w.ctx(), method, w.url.String()+PrefixV2+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth(key, "")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if !json.Valid(b) {
		t.Errorf("%s %s: %d with what is not JSON: %s", method, path, resp.StatusCode, b)
	}
	return resp.StatusCode, string(b)
}

func TestV2Contacts(t *testing.T) {
	w := newV2World(t)
	key, ctx := w.apiKey(0), w.ctx()
	c := w.tailscale(key)
	if got, err := c.Contacts().Get(ctx); err != nil || *got != (ts.Contacts{}) {
		t.Errorf("%+v, %v", got, err)
	}
	mail := "help@example.com"
	if err := c.Contacts().Update(ctx, ts.ContactSupport, ts.UpdateContactRequest{Email: &mail}); err != nil {
		t.Fatal(err)
	}
	if got, err := c.Contacts().Get(ctx); err != nil || *got != (ts.Contacts{Support: ts.Contact{Email: mail}}) {
		t.Errorf("%+v, %v", got, err)
	}
	bad := "Help <help@example.com>"
	if err := c.Contacts().Update(ctx, ts.ContactSupport, ts.UpdateContactRequest{Email: &bad}); status(err) != 400 {
		t.Errorf("not an address: %v", err)
	}
	if err := c.Contacts().Update(ctx, "sales", ts.UpdateContactRequest{Email: &mail}); status(err) != 404 {
		t.Errorf("no such contact: %v", err)
	}
	if err := c.Contacts().Update(ctx, ts.ContactSupport, ts.UpdateContactRequest{}); err != nil {
		t.Errorf("a change of nothing: %v", err)
	}
	if got := w.st.Snapshot().Tailnet.Settings.Contacts.Support; got != mail {
		t.Errorf("it is %q now", got)
	}
	if code, body := w.ask(t, key, "POST", "/tailnet/-/contacts/support/resend-verification-email", ""); code != 501 {
		t.Errorf("%d %s", code, body)
	}
}

func TestV2ConfigurationLog(t *testing.T) {
	w := newV2World(t)
	key, ctx := w.apiKey(0), w.ctx()
	c := w.tailscale(key)
	mail := "help@example.com"
	for range 8 { // some entries by somebody with a name
		mail = "x" + mail
		if err := c.Contacts().Update(ctx, ts.ContactSupport, ts.UpdateContactRequest{Email: &mail}); err != nil {
			t.Fatal(err)
		}
	}
	type entry struct {
		EventTime            time.Time
		Type, Origin, Action string
		Actor, Target        struct{ ID, Type, Name, DisplayName string }
		Old, New             json.RawMessage
	}
	type answer struct {
		Version, Tailnet string
		Logs             []entry
	}
	get := func(query url.Values) (a answer) {
		t.Helper()
		code, body := w.ask(t, key, "GET", "/tailnet/-/logging/configuration?"+query.Encode(), "")
		if code != 200 {
			t.Fatalf("%d %s", code, body)
		}
		if err := json.Unmarshal([]byte(body), &a); err != nil {
			t.Fatal(err)
		}
		return a
	}
	all := url.Values{"start": {"2000-01-01T00:00:00Z"}, "end": {"2100-01-01T00:00:00Z"}}
	a := get(all)
	if a.Version != "1.1" || a.Tailnet != "default" || len(a.Logs) < 8 {
		t.Fatalf("%+v", a)
	}
	last := a.Logs[len(a.Logs)-1]
	if last.Type != "CONFIG" || last.Action != "UPDATE" || last.Target.Type != "TAILNET" || last.Origin != "CONFIG_API" ||
		!strings.Contains(string(last.New), mail) || !slices.IsSortedFunc(a.Logs, func(a, b entry) int {
		return a.EventTime.Compare(b.EventTime)
	}) {
		t.Errorf("%+v", last)
	}
	only := url.Values{"start": all["start"], "end": all["end"], "target": {"NODE"}}
	for _, e := range get(only).Logs {
		if e.Target.Type != "NODE" {
			t.Errorf("asked for nodes: %+v", e)
		}
	}
	if n := len(get(url.Values{"start": {"2000-01-01T00:00:00Z"}, "end": {"2000-01-02T00:00:00Z"}}).Logs); n != 0 {
		t.Errorf("%d entries of a day without any", n)
	}
	for _, q := range []string{"", "?start=2000-01-01T00:00:00Z", "?start=today&end=tomorrow", "?start=2001-01-01T00:00:00Z&end=2000-01-01T00:00:00Z"} {
		if code, body := w.ask(t, key, "GET", "/tailnet/-/logging/configuration"+q, ""); code != 400 {
			t.Errorf("%q: %d %s", q, code, body)
		}
	}
}
