package tailnet

import "time"

// Webhook is an address that is told what happens in the tailnet. It is not part of a snapshot.
type Webhook struct {
	ID       string // random
	Tailnet  ID
	URL      string   // http or https
	Provider string   // shape of the messages: "" (signed events in JSON), "slack", "mattermost", "googlechat" or "discord"
	Events   []string // types of events, sorted; categories stand for theirs
	Secret   string   // that events are signed with; kept as it is, because it is needed for that
	Creator  string   // for people to read
	Created  time.Time
	Modified time.Time
}

// WebhookState is how far a webhook has got. It may be some seconds old after a crash: then events come twice.
type WebhookState struct {
	Pos       AuditPos  // up to where in the audit log it has been told
	Failures  int       // in a row
	NextTry   time.Time // zero: at once
	LastError string
	LastOK    time.Time
	Sent      int64 // events
	Dropped   int64 // events that were given up
}
