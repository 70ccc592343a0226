package api

import (
	"cmp"
	"context"
	"encoding/json"
	"net/http"
	"time"

	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/tailnet"
)

// defaultEntries is how many entries of the audit log are told at once if nobody asks for more.
const defaultEntries = 100

// AuditEntry is one entry of the audit log.
type AuditEntry struct {
	ID     string      `json:"id"` // for ?before= and ?after=
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
		Since  time.Time `query:"since"`
		Until  time.Time `query:"until"`
		Actor  string    `query:"actor"`  // its id, or part of its name
		Target string    `query:"target"` // its kind, id, KIND:ID, or part of its name
		Action string    `query:"action"` // such as node.update, or node for all that is done to nodes
		Origin string    `query:"origin"`
		Before string    `query:"before"`                           // id of an entry: only older ones
		After  string    `query:"after"`                            // id of an entry, or "0.0": only newer ones, the oldest first
		Limit  int       `query:"limit" minimum:"1" maximum:"1000"` // 0: 100
	}
	// AuditList is the answer to ListAudit: the newest first, unless After was given.
	AuditList struct {
		Entries []*AuditEntry `json:"entries"`
		Next    string        `json:"next"` // for Before, or After if that was given, to get more; empty: there are no more
	}
)

func (s *server) auditOperations() []operation {
	return []operation{get("/audit", auth.Read(auth.ScopeLogs), "the audit log, the newest first; `before=` or `after=` an entry's id for the next page", s.listAudit)}
}

func (s *server) listAudit(r *http.Request, f *AuditFilter) (*AuditList, error) {
	q := tailnet.AuditQuery{
		Since: f.Since, Until: f.Until, Actor: f.Actor, Target: f.Target, Action: f.Action, Origin: f.Origin, Limit: cmp.Or(f.Limit, defaultEntries),
	}
	for _, p := range []struct {
		text string
		pos  **tailnet.AuditPos
	}{{f.Before, &q.Before}, {f.After, &q.After}} {
		if p.text != "" {
			pos, err := tailnet.ParseAuditPos(p.text)
			if err != nil {
				return nil, err
			}
			*p.pos = &pos
		}
	}
	limit := q.Limit
	q.Limit++ // to know whether there are more
	es, err := s.Auth.AuditLog(r.Context(), q)
	if err != nil {
		return nil, err
	}
	out := &AuditList{Entries: []*AuditEntry{}}
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
	out := new(AuditList)
	err := c.do(ctx, http.MethodGet, c.path("audit").query(values(f)), nil, out)
	return out, err
}
