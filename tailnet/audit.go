package tailnet

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// AuditEntry says who changed what. Entries are kept in the transaction that makes the change and are never changed. They hold no
// secrets.
type AuditEntry struct {
	Rev Rev // of the commit; set by the store
	Seq int // within the commit, from 0; set by the store
	At  time.Time

	ActorKind string // such as "socket", "api-key", "user", "client", "server"
	Actor     string // for people to read
	ActorID   string // of the credential, user or machine; empty if there is none
	Origin    string // "cli", "api", "web", "client", "policy file" or "server"
	Remote    string // address; empty if it is none

	Action     string // TARGET.VERB, such as node.update
	TargetKind string // such as "node"
	TargetID   string
	Target     string // its name, for people to read
	Why        string // what the change was called

	Before json.RawMessage // what it was like, as far as it changed; nil if there was nothing
	After  json.RawMessage // what it is like, as far as it changed; nil if there is nothing
}

// ID names the entry within its tailnet, and is in order for people, such as "4711.0".
func (e *AuditEntry) ID() string { return AuditPos{e.Rev, e.Seq}.String() }

// Pos is where the entry stands in the log.
func (e *AuditEntry) Pos() AuditPos { return AuditPos{e.Rev, e.Seq} }

// AuditPos is a place in the log. Entries follow each other by Rev, then by Seq.
type AuditPos struct {
	Rev Rev
	Seq int
}

func (p AuditPos) String() string { return fmt.Sprintf("%d.%d", p.Rev, p.Seq) }

// ParseAuditPos reads the ID of an entry.
func ParseAuditPos(s string) (AuditPos, error) {
	rev, seq, ok := strings.Cut(s, ".")
	r, err1 := strconv.ParseUint(rev, 10, 63)
	n, err2 := strconv.ParseUint(seq, 10, 31)
	if !ok || err1 != nil || err2 != nil {
		return AuditPos{}, Errorf(Invalid, "%q is not a place in the audit log such as 4711.0", CleanText(s))
	}
	return AuditPos{Rev(r), int(n)}, nil
}

// AuditQuery chooses entries; zero fields choose all.
type AuditQuery struct {
	Since, Until time.Time // Until is left out itself
	Actor        string    // its id, or part of its name
	Target       string    // its kind, id, KIND:ID, or part of its name
	Action       string    // the whole, or the part before the dot
	Origin       string

	After  *AuditPos // only those behind it, oldest first; else the newest first
	Before *AuditPos // only those before it
	Limit  int       // at most so many; 0: no limit
}
