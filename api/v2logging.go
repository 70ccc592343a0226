package api

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/tailnet"
)

// v2LogPage is how many entries of the audit log are read at once.
const v2LogPage = 500

// v2LogEntry is an entry of the audit log as Tailscale's service tells it.
type v2LogEntry struct {
	EventTime    string          `json:"eventTime"`
	Type         string          `json:"type"` // CONFIG
	EventGroupID string          `json:"eventGroupID"`
	Origin       string          `json:"origin"`
	Actor        v2LogActor      `json:"actor"`
	Target       v2LogTarget     `json:"target"`
	Action       string          `json:"action"`
	Details      string          `json:"actionDetails,omitempty"`
	Old          json.RawMessage `json:"old,omitempty"`
	New          json.RawMessage `json:"new,omitempty"`
}

type v2LogActor struct {
	ID          string `json:"id"`
	Type        string `json:"type"`
	LoginName   string `json:"loginName,omitempty"`
	DisplayName string `json:"displayName"`
}

type v2LogTarget struct {
	ID   string `json:"id"`
	Name string `json:"name"`
	Type string `json:"type"`
}

func (s *server) v2LoggingRoutes() []route {
	return []route{{"/tailnet/{tailnet}/logging/configuration", ops{http.MethodGet: {auth.Read(auth.ScopeLogs), s.v2ConfigurationLog}}}}
}

// v2ConfigurationLog are the entries from start to end, the oldest first. Their service has no pages here, so that the log is written
// as it is read.
func (s *server) v2ConfigurationLog(r *http.Request) (any, error) {
	params := r.URL.Query()
	q := tailnet.AuditQuery{After: &tailnet.AuditPos{}, Limit: v2LogPage}
	for name, t := range map[string]*time.Time{"start": &q.Since, "end": &q.Until} {
		v := params.Get(name)
		if v == "" {
			return nil, tailnet.Errorf(tailnet.Invalid, "%s is missing: a time such as 2026-07-24T15:04:05Z", name)
		}
		var err error
		if *t, err = time.Parse(time.RFC3339, v); err != nil {
			return nil, tailnet.Errorf(tailnet.Invalid, "%s=%q is not a time such as 2026-07-24T15:04:05Z", name, clip(v))
		}
	}
	if q.Until.Before(q.Since) {
		return nil, tailnet.Errorf(tailnet.Invalid, "end is before start")
	}
	wanted := func(name string, values ...string) bool {
		for _, want := range params[name] {
			if !slices.ContainsFunc(values, func(v string) bool { return strings.EqualFold(v, want) }) {
				return false
			}
		}
		return true
	}
	page, err := s.Auth.AuditLog(r.Context(), q)
	if err != nil {
		return nil, err
	}
	name := s.State.Snapshot().Tailnet.Name
	return streamed(func(w http.ResponseWriter) { // nothing below can be told to the client but by breaking off
		head, _ := json.Marshal(name) // a string
		h := w.Header()
		h.Set("Content-Type", "application/json")
		h.Set("Cache-Control", "no-store")
		_, _ = w.Write([]byte(`{"version":"1.1","tailnet":` + string(head) + `,"logs":[`))
		comma := ""
		for len(page) > 0 {
			for _, e := range page {
				out := v2LogJSON(e)
				if !wanted("actor", e.ActorID, e.Actor, out.Actor.Type) || !wanted("target", e.TargetID, e.Target, out.Target.Type) ||
					!wanted("event", out.Target.Type+"."+out.Action, e.Action) {
					continue
				}
				b, err := json.Marshal(out)
				if err != nil {
					s.Log.Error("an entry of the audit log cannot be told", "entry", e.ID(), "err", err)
					panic(http.ErrAbortHandler) // half an answer must not look whole
				}
				_, _ = w.Write(append([]byte(comma), b...))
				comma = ","
			}
			if len(page) < q.Limit {
				break
			}
			pos := page[len(page)-1].Pos()
			q.After = &pos
			if page, err = s.Auth.AuditLog(r.Context(), q); err != nil {
				if r.Context().Err() == nil {
					s.Log.Error("the audit log cannot be read on", "err", withCause(err))
				}
				panic(http.ErrAbortHandler)
			}
		}
		_, _ = w.Write([]byte("]}\n"))
	}), nil
}

// v2LogJSON is e in the words of Tailscale's service; where it has none, in ours in capitals.
func v2LogJSON(e *tailnet.AuditEntry) *v2LogEntry {
	word := func(table map[string]string, ours string) string {
		if theirs, ok := table[ours]; ok {
			return theirs
		}
		return strings.ToUpper(strings.NewReplacer("-", "_", " ", "_").Replace(ours))
	}
	kind, verb, _ := strings.Cut(e.Action, ".")
	out := &v2LogEntry{
		EventTime: e.At.UTC().Format(time.RFC3339Nano), Type: "CONFIG", EventGroupID: e.ID(),
		Origin: word(map[string]string{"cli": "CONFIG_API", "api": "CONFIG_API", "web": "ADMIN_CONSOLE", "client": "NODE", "server": "CONTROL", "policy file": "CONTROL"}, e.Origin),
		Actor: v2LogActor{ID: e.ActorID, Type: word(map[string]string{"client": "NODE", "server": "AUTOMATED_WORKER", "token": "OAUTH_CLIENT"}, e.ActorKind),
			DisplayName: e.Actor},
		Target: v2LogTarget{ID: e.TargetID, Name: e.Target, Type: word(map[string]string{"settings": "TAILNET", "policy": "TAILNET"}, e.TargetKind)},
		Action: word(nil, verb), Details: e.Why, Old: e.Before, New: e.After,
	}
	if e.ActorKind == "user" {
		out.Actor.LoginName = e.Actor
	}
	if kind == "policy" {
		out.Action = "UPDATE"
	}
	return out
}
