package db

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/skein-vpn/skein/tailnet"
)

func TestAuditLog(t *testing.T) {
	d := openTest(t)
	entry := func(i int, actor, kind, id, name, action string) *tailnet.AuditEntry {
		return &tailnet.AuditEntry{At: t0.Add(time.Duration(i) * time.Hour), ActorKind: "user", Actor: actor, ActorID: "7" + actor, Origin: "web", Remote: "192.0.2.1",
			Action: action, TargetKind: kind, TargetID: id, Target: name, Why: "why", Before: json.RawMessage(`{"a":1}`), After: json.RawMessage(`{"a":2}`)}
	}
	var all []*tailnet.AuditEntry
	for i, es := range [][]*tailnet.AuditEntry{
		{entry(0, "Anna", "node", "1", "laptop", "node.create"), entry(0, "Anna", "user", "1", "anna_x", "user.create")},
		{entry(1, "bert", "node", "11", "100%", "node.update")},
		{entry(2, "bert", "policy", "3", "policy", "policy.update")},
	} {
		mustCommit(t, d, tailnet.Rev(i), &tailnet.Changes{Audit: es, When: t0})
		for seq, e := range es {
			e.Rev, e.Seq = tailnet.Rev(i+1), seq
			all = append(all, e)
		}
	}
	pos := func(rev tailnet.Rev, seq int) *tailnet.AuditPos { return &tailnet.AuditPos{Rev: rev, Seq: seq} }
	for _, tt := range []struct {
		q    tailnet.AuditQuery
		want string
	}{
		{tailnet.AuditQuery{}, "3.0 2.0 1.1 1.0"},
		{tailnet.AuditQuery{Limit: 2}, "3.0 2.0"},
		{tailnet.AuditQuery{Before: pos(2, 0)}, "1.1 1.0"},
		{tailnet.AuditQuery{Before: pos(1, 1)}, "1.0"},
		{tailnet.AuditQuery{After: pos(0, 0)}, "1.0 1.1 2.0 3.0"},
		{tailnet.AuditQuery{After: pos(1, 0), Limit: 2}, "1.1 2.0"},
		{tailnet.AuditQuery{After: pos(3, 0)}, ""},
		{tailnet.AuditQuery{Since: t0.Add(time.Hour)}, "3.0 2.0"},
		{tailnet.AuditQuery{Until: t0.Add(time.Hour)}, "1.1 1.0"},
		{tailnet.AuditQuery{Actor: "anna"}, "1.1 1.0"},
		{tailnet.AuditQuery{Actor: "7bert"}, "3.0 2.0"},
		{tailnet.AuditQuery{Actor: "%"}, ""},
		{tailnet.AuditQuery{Target: "node"}, "2.0 1.0"},
		{tailnet.AuditQuery{Target: "node:1"}, "1.0"},
		{tailnet.AuditQuery{Target: "1"}, "2.0 1.1 1.0"}, // by id, and by part of the name 100%
		{tailnet.AuditQuery{Target: "%"}, "2.0"},
		{tailnet.AuditQuery{Target: "a_x"}, "1.1"},
		{tailnet.AuditQuery{Action: "node"}, "2.0 1.0"},
		{tailnet.AuditQuery{Action: "node.update"}, "2.0"},
		{tailnet.AuditQuery{Action: "nod"}, ""},
		{tailnet.AuditQuery{Origin: "api"}, ""},
		{tailnet.AuditQuery{Actor: "bert", Target: "policy", Since: t0}, "3.0"},
	} {
		es, err := d.AuditLog(ctx, 1, tt.q)
		if err != nil {
			t.Errorf("%+v: %v", tt.q, err)
			continue
		}
		got := ""
		for _, e := range es {
			got += " " + e.ID()
			for _, w := range all {
				if w.Pos() == e.Pos() {
					if diff := diff(w, e); diff != "" {
						t.Error(diff)
					}
				}
			}
		}
		if got != "" {
			got = got[1:]
		}
		if got != tt.want {
			t.Errorf("%s: %s, want %s", fmt.Sprintf("%+v", tt.q), got, tt.want)
		}
	}
	if es, err := d.AuditLog(ctx, 2, tailnet.AuditQuery{}); err != nil || len(es) != 0 {
		t.Errorf("another tailnet has %v, %v", es, err)
	}
	if n, err := d.PurgeAuditLog(ctx, t0.Add(30*time.Minute)); n != 2 || err != nil {
		t.Errorf("purged %d, %v", n, err)
	}
	if es, _ := d.AuditLog(ctx, 1, tailnet.AuditQuery{}); len(es) != 2 {
		t.Errorf("%d are left", len(es))
	}
}

// A commit that fails leaves no entry.
func TestAuditBelongsToItsCommit(t *testing.T) {
	d := openTest(t)
	es := []*tailnet.AuditEntry{{At: t0, Action: "x.y"}}
	if _, err := d.Commit(ctx, 1, 7, &tailnet.Changes{Audit: es, When: t0}); err == nil {
		t.Fatal("no conflict")
	}
	if _, err := d.Commit(ctx, 1, 0, &tailnet.Changes{Audit: es, When: t0, PutNodes: []*tailnet.Node{{ID: 1}}}); err == nil {
		t.Fatal("a node without a key is stored")
	}
	if got, err := d.AuditLog(ctx, 1, tailnet.AuditQuery{}); err != nil || len(got) != 0 {
		t.Errorf("%v %v", got, err)
	}
	many := make([]*tailnet.AuditEntry, 1500)
	for i := range many {
		many[i] = &tailnet.AuditEntry{At: t0, Action: "x.y"}
	}
	mustCommit(t, d, 0, &tailnet.Changes{Audit: many, When: t0})
	if got, err := d.AuditLog(ctx, 1, tailnet.AuditQuery{}); err != nil || len(got) != len(many) {
		t.Errorf("%d %v", len(got), err)
	}
}
