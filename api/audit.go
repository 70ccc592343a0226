package api

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/tailnet"
)

// How many entries of the audit log are told at once.
const (
	defaultEntries = 100
	maxEntries     = 1000
)

// AuditEntry is one entry of the audit log.
type AuditEntry struct {
	ID     string      `json:"id"` // for AuditFilter.Before and After
	Time   *time.Time  `json:"time"`
	Actor  AuditActor  `json:"actor"`
	Action string      `json:"action"` // such as node.update
	Target AuditTarget `json:"target"`
	Why    string      `json:"why"`
	// Before and After hold what is different: of what is new everything stands in After, of what is gone in Before.
	Before json.RawMessage `json:"before"`
	After  json.RawMessage `json:"after"`
}

// AuditActor is who made a change.
type AuditActor struct {
	Kind   string `json:"kind"` // "socket", "api-key", "token", "user", "client" or "server"
	Name   string `json:"name"`
	ID     string `json:"id"`     // of the credential, user or machine; may be empty
	Origin string `json:"origin"` // "cli", "api", "web", "client", "policy file" or "server"
	Remote string `json:"remote"` // address; may be empty
}

// AuditTarget is what was changed.
type AuditTarget struct {
	Kind string `json:"kind"`
	ID   string `json:"id"`
	Name string `json:"name"`
}

// AuditJSON is e as this API tells it.
func AuditJSON(e *tailnet.AuditEntry) *AuditEntry {
	null := func(b json.RawMessage) json.RawMessage {
		if b == nil {
			return json.RawMessage("null")
		}
		return b
	}
	return &AuditEntry{
		ID: e.ID(), Time: timestamp(e.At), Actor: AuditActor{e.ActorKind, e.Actor, e.ActorID, e.Origin, e.Remote},
		Action: e.Action, Target: AuditTarget{e.TargetKind, e.TargetID, e.Target}, Why: e.Why, Before: null(e.Before), After: null(e.After),
	}
}

type (
	// AuditFilter chooses entries; zero fields choose all.
	AuditFilter struct {
		Since, Until time.Time
		Actor        string // its id, or part of its name
		Target       string // its kind, id, KIND:ID, or part of its name
		Action       string // such as node.update, or node for all that is done to nodes
		Origin       string
		Before       string // id of an entry: only older ones
		After        string // id of an entry, or "0.0": only newer ones, the oldest first
		Limit        int    // 0: as many as the server tells at once
	}
	// AuditList is the answer to ListAudit: the newest first, unless After was given.
	AuditList struct {
		Entries []*AuditEntry `json:"entries"`
		Next    string        `json:"next"` // for Before, or After if that was given, to get more; empty: there are no more
	}
)

func (s *server) auditRoutes() []route {
	return []route{{"/audit", ops{http.MethodGet: {auth.Read(auth.ScopeLogs), s.listAudit}}}}
}

func (s *server) listAudit(r *http.Request) (any, error) {
	q := tailnet.AuditQuery{Actor: query(r, "actor"), Target: query(r, "target"), Action: query(r, "action"), Origin: query(r, "origin"), Limit: defaultEntries}
	for name, t := range map[string]*time.Time{"since": &q.Since, "until": &q.Until} {
		if v := query(r, name); v != "" {
			var err error
			if *t, err = ParseTime(v); err != nil {
				return nil, err
			}
		}
	}
	for name, p := range map[string]**tailnet.AuditPos{"before": &q.Before, "after": &q.After} {
		if v := query(r, name); v != "" {
			pos, err := tailnet.ParseAuditPos(v)
			if err != nil {
				return nil, err
			}
			*p = &pos
		}
	}
	if v := query(r, "limit"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 || n > maxEntries {
			return nil, tailnet.Errorf(tailnet.Invalid, "limit=%q is not a number from 1 to %d", clip(v), maxEntries)
		}
		q.Limit = n
	}
	limit := q.Limit
	q.Limit++ // to know whether there are more
	es, err := s.Auth.AuditLog(r.Context(), q)
	if err != nil {
		return nil, err
	}
	out := AuditList{Entries: []*AuditEntry{}}
	if len(es) > limit {
		es = es[:limit]
		out.Next = es[limit-1].ID()
	}
	for _, e := range es {
		out.Entries = append(out.Entries, AuditJSON(e))
	}
	return out, nil
}

// ListAudit is one page of the audit log.
func (c *Client) ListAudit(ctx context.Context, f AuditFilter) (*AuditList, error) {
	q := url.Values{}
	for name, v := range map[string]string{"actor": f.Actor, "target": f.Target, "action": f.Action, "origin": f.Origin, "before": f.Before, "after": f.After} {
		if v != "" {
			q.Set(name, v)
		}
	}
	for name, t := range map[string]time.Time{"since": f.Since, "until": f.Until} {
		if !t.IsZero() {
			q.Set(name, t.UTC().Format(time.RFC3339))
		}
	}
	if f.Limit > 0 {
		q.Set("limit", strconv.Itoa(f.Limit))
	}
	out := new(AuditList)
	err := c.do(ctx, http.MethodGet, c.path("audit").query(q), nil, out)
	return out, err
}
