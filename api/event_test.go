package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// events follows what happens in st until the test ends.
func (w *world) events(st *state.State) *Events {
	e := NewEvents(EventsOptions{State: st, AuditLog: w.auth.AuditLog, Now: func() time.Time { return noon }, Log: slog.New(slog.DiscardHandler)})
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		e.Run(ctx)
	}()
	w.Cleanup(func() { stop(); <-done })
	return e
}

// listener is a stream that a test reads.
type listener struct {
	*world
	events chan *Event
	end    chan error
	stop   context.CancelFunc
}

// listen begins a stream and waits until it has begun, unless that is too soon because of f.
func (w *world) listen(c *Client, f EventFilter) *listener {
	w.Helper()
	ctx, stop := context.WithCancel(context.Background())
	l := &listener{w, make(chan *Event, 10000), make(chan error, 1), stop}
	go func() {
		l.end <- c.Events(ctx, f, func(e *Event) error { l.events <- e; return nil })
	}()
	w.Cleanup(stop)
	if f.Since == "" {
		l.want(EventBegan)
	}
	return l
}

// next is the next event.
func (l *listener) next() *Event {
	l.Helper()
	select {
	case e := <-l.events:
		return e
	case err := <-l.end:
		l.Fatalf("the stream has ended: %v", err)
	case <-time.After(time.Minute):
		l.Fatal("no event comes")
	}
	return nil
}

// want says which types come next, and returns the last of them.
func (l *listener) want(types ...string) (e *Event) {
	l.Helper()
	for _, want := range types {
		if e = l.next(); e.Type != want {
			l.Fatalf("%s (%s) comes, want %s", e.Type, e.Message, want)
		}
	}
	return e
}

// ended is why the stream has ended.
func (l *listener) ended() error {
	l.Helper()
	select {
	case err := <-l.end:
		return err
	case <-time.After(time.Minute):
		l.Fatal("the stream goes on")
	}
	return nil
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

func TestEvents(t *testing.T) {
	w := newWorld(t)
	l := w.listen(w.client, EventFilter{})
	junyao := w.user("junyao")
	first := l.want("user.created")
	if first.ID == "" || first.Target != (AuditTarget{"user", "1", "junyao"}) || first.Actor == "" || !strings.Contains(string(first.After), `"junyao"`) {
		t.Errorf("%+v", first)
	}
	id := w.node(junyao, "homeDS", "192.168.199.0/24")
	l.want("node.registered")
	if e := l.want("routes.advertised"); e.Message != "node homeds offers 192.168.199.0/24" || e.ID != "" {
		t.Errorf("%+v", e)
	}
	w.online(id)
	if e := l.want("node.online"); e.Target != (AuditTarget{"node", "1", "homeds"}) {
		t.Errorf("%+v", e)
	}
	_, err := w.client.EnableRoutes(w.ctx(), RoutesRequest{Node: "homeds", All: true})
	w.must(err)
	if e := l.want("routes.enabled"); e.Message != "node homeds may carry 192.168.199.0/24" {
		t.Errorf("%+v", e)
	}
	l.want("routes.primary")
	_, err = w.client.RenameNode(w.ctx(), "homeds", "nas")
	w.must(err)
	if e := l.want("node.renamed"); e.Message != "node homeds is called nas now" {
		t.Errorf("%+v", e)
	}
	yes := true
	_, err = w.client.ChangeSettings(w.ctx(), ChangeSettingsRequest{DeviceApproval: &yes})
	w.must(err)
	l.want("settings.updated")
	w.must(w.client.DeleteNode(w.ctx(), "nas"))
	last := l.want("node.deleted")

	// What has an id is told again to who asks for what came behind one.
	since := w.listen(w.client, EventFilter{Since: first.ID, Types: []string{"node", "routes.enabled"}})
	since.want("node.registered", "routes.enabled", "node.renamed")
	if e := since.want("node.deleted"); e.ID != last.ID {
		t.Errorf("%+v, want %+v", e, last)
	}
	since.want(EventBegan)
	w.user("anna")
	w.node(junyao, "late")
	since.want("node.registered") // and not the user
	var got []string
	w.must(w.client.Events(w.ctx(), EventFilter{Since: noon.Add(-time.Hour).Format(time.RFC3339), Types: []string{"user"}, Once: true}, func(e *Event) error {
		got = append(got, e.Message)
		return nil
	}))
	if want := []string{"user junyao was created", "user anna was created"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	w.must(w.client.Events(w.ctx(), EventFilter{Since: noon.Add(time.Hour).Format(time.RFC3339), Once: true}, func(e *Event) error { return errors.New(e.Type) }))
	if l := w.listen(w.client, EventFilter{Since: "99999.0"}); l.next().Type != EventMissed {
		t.Error("an id that is not there yet goes unnoticed")
	}

	// One node only.
	one := w.listen(w.client, EventFilter{Node: "late"})
	w.online(w.node(junyao, "other"))
	w.online(2)
	one.want("node.online")
	// Several changes in one entry have one id, at the last.
	w.must(w.st.Update(w.ctx(), "test", func(tx *state.Tx) error {
		n := tx.Node(2).Clone()
		n.Name, n.Authorized, n.Tags, n.User = "later", false, []string{"tag:x"}, 0
		return tx.PutNode(n)
	}))
	one.want("node.renamed", "node.unapproved", "node.tagged", "node.moved")
}

// Each kind asks for the scope of reading what it is about, and a key that ends ends its streams.
func TestEventScopes(t *testing.T) {
	w := newWorld(t)
	h := NewServer(Options{State: w.st, Auth: w.auth, Gate: NewGate(w.auth, nil, nil), Events: w.events(w.st), Log: slog.New(slog.DiscardHandler)})
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	client := func(scopes ...string) (*Client, string) {
		secret := w.apiKey(0, scopes...)
		c, err := NewClient(srv.URL, secret)
		w.must(err)
		return c, strings.Split(secret, "-")[2]
	}
	// All keys are made before anybody asks for events, or their making might be told.
	nothing, _ := client(auth.Read(auth.ScopeFlowLogs))
	c, id := client(auth.Read(auth.ScopeDevices))
	all, _ := client(auth.Read(auth.ScopeAll))
	for _, f := range []EventFilter{{}, {Types: []string{"node"}}} {
		if err := nothing.Events(w.ctx(), f, nil); tailnet.CodeOf(err) != tailnet.Denied {
			t.Errorf("%+v: %v", f, err)
		}
	}
	if err := c.Events(w.ctx(), EventFilter{Types: []string{"user", "policy.updated"}}, nil); tailnet.CodeOf(err) != tailnet.Denied {
		t.Error(err)
	}
	l := w.listen(c, EventFilter{})
	la := w.listen(all, EventFilter{})
	w.node(w.user("junyao"), "homeDS", "10.0.0.0/8")
	l.want("node.registered")
	la.want("user.created", "node.registered", "routes.advertised")
	w.must(w.client.RevokeAPIKey(w.ctx(), id))
	if err := l.ended(); tailnet.CodeOf(err) != tailnet.Unauthenticated {
		t.Error(err)
	}
	la.want("api_key.updated")
	// The role of the key's user counts, too.
	w.setRole(1, tailnet.RoleAdmin)
	la.want("user.role_changed")
	mine, err := NewClient(srv.URL, w.apiKey(1))
	w.must(err)
	la.want("api_key.created")
	lm := w.listen(mine, EventFilter{})
	w.setRole(1, tailnet.RoleMember)
	if err := lm.ended(); tailnet.CodeOf(err) != tailnet.Denied {
		t.Error(err)
	}
}

// When the server ends, streams end, and say so.
func TestEventsEndWithTheServer(t *testing.T) {
	w := newWorld(t)
	e := NewEvents(EventsOptions{State: w.st, AuditLog: w.auth.AuditLog, Log: slog.New(slog.DiscardHandler)})
	ctx, stop := context.WithCancel(w.ctx())
	done := make(chan struct{})
	go func() {
		defer close(done)
		e.Run(ctx)
	}()
	c := w.serve(NewServer(Options{State: w.st, Auth: w.auth, Events: e, Log: slog.New(slog.DiscardHandler)}))
	l := w.listen(c, EventFilter{})
	stop()
	if err := l.ended(); tailnet.CodeOf(err) != tailnet.Unavailable || !strings.Contains(err.Error(), "shutting down") {
		t.Error(err)
	}
	<-done
	if err := c.Events(w.ctx(), EventFilter{}, func(*Event) error { return nil }); tailnet.CodeOf(err) != tailnet.Unavailable {
		t.Error(err)
	}
}

// What another server on the same database does is told here.
func TestEventsOfAnotherServer(t *testing.T) {
	w := newWorld(t)
	sn := w.st.Snapshot()
	st, err := state.Open(w.ctx(), state.Options{
		Store: w.db, Server: "b", DNS: sn.DNS, DERP: sn.DERP, Now: func() time.Time { return noon }, Log: slog.New(slog.DiscardHandler),
	})
	w.must(err)
	t.Cleanup(st.Close)
	l := w.listen(w.serve(NewServer(Options{State: st, Auth: w.auth, Events: w.events(st), Log: slog.New(slog.DiscardHandler)})), EventFilter{})
	w.user("junyao")
	w.must(st.Follow(w.ctx()))
	l.want("user.created")
}

// stuck is a reader that takes nothing until it is let.
type stuck struct {
	mu     sync.Mutex
	open   chan struct{}
	header http.Header
	body   bytes.Buffer // guarded by mu
}

func (s *stuck) Header() http.Header { return s.header }
func (s *stuck) WriteHeader(int)     {}
func (s *stuck) Flush()              {}
func (s *stuck) Write(b []byte) (int, error) {
	if !bytes.HasPrefix(b, []byte("retry")) && !bytes.HasPrefix(b, []byte("id: 0.0\n")) { // so that it begins
		<-s.open
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.body.Write(b)
}

func (s *stuck) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.body.String()
}

// A reader that is too slow is told so, and goes on; nothing is kept for it.
func TestSlowEventReader(t *testing.T) {
	w := newWorld(t)
	ctx, stop := context.WithCancel(w.ctx())
	s := &stuck{open: make(chan struct{}), header: http.Header{}}
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.handler.ServeHTTP(s, httptest.NewRequest(http.MethodGet, "/api/v1/events", nil).WithContext(ctx))
	}()
	until := func(what string, ok func() bool) {
		t.Helper()
		for end := time.Now().Add(time.Minute); !ok(); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s does not happen: %.2000s", what, s.text())
			}
		}
	}
	until("the stream begins", func() bool { return strings.Contains(s.text(), EventBegan) })
	witness := w.listen(w.client, EventFilter{})
	const users = ringSize + 300
	for at := 0; at < users; at += 100 {
		w.must(w.st.Update(w.ctx(), "test", func(tx *state.Tx) error {
			for i := at; i < min(at+100, users); i++ {
				if err := tx.PutUser(tx.NewUser(fmt.Sprintf("u%d", i))); err != nil {
					return err
				}
			}
			return nil
		}))
	}
	for range users {
		witness.want("user.created")
	}
	close(s.open)
	until("the last event", func() bool { return strings.Contains(s.text(), fmt.Sprintf("user u%d was created", users-1)) })
	stop()
	<-done
	if !strings.Contains(s.text(), EventMissed) {
		t.Error("it was not told that something may be missing")
	}
	seen := map[string]int{}
	for line := range strings.Lines(s.text()) {
		if data, ok := strings.CutPrefix(line, "data: "); ok {
			var e Event
			w.must(json.Unmarshal([]byte(data), &e))
			seen[e.Message]++
		}
	}
	for i := range users {
		if n := seen[fmt.Sprintf("user u%d was created", i)]; n != 1 {
			t.Fatalf("u%d was told %d times", i, n)
		}
	}
}

// There is a limit to streams, and whoever goes makes room.
func TestTooManyEventStreams(t *testing.T) {
	w := newWorld(t)
	var ls []*listener
	for range maxStreams {
		ls = append(ls, w.listen(w.client, EventFilter{}))
	}
	if err := w.client.Events(w.ctx(), EventFilter{}, nil); tailnet.CodeOf(err) != tailnet.Exhausted {
		t.Error(err)
	}
	ls[0].stop()
	<-ls[0].end
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		err := w.client.Events(w.ctx(), EventFilter{Once: true, Since: "0.0"}, func(*Event) error { return nil })
		if err == nil {
			break
		} else if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}
