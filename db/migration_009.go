package db

// migration009 adds the audit log.
var migration009 = migration{version: 9, name: "audit log", sql: `
CREATE TABLE audit_log (
	tailnet_id  BIGINT NOT NULL REFERENCES tailnets (id),
	rev         BIGINT NOT NULL,
	seq         BIGINT NOT NULL,
	at          TEXT   NOT NULL,
	actor_kind  TEXT   NOT NULL,
	actor       TEXT   NOT NULL,
	actor_id    TEXT   NOT NULL,
	origin      TEXT   NOT NULL,
	remote      TEXT   NOT NULL,
	action      TEXT   NOT NULL,
	target_kind TEXT   NOT NULL,
	target_id   TEXT   NOT NULL,
	target      TEXT   NOT NULL,
	why         TEXT   NOT NULL,
	before      TEXT,
	after       TEXT,
	PRIMARY KEY (tailnet_id, rev, seq)
);
CREATE INDEX audit_log_at ON audit_log (at);
CREATE INDEX audit_log_target ON audit_log (tailnet_id, target_kind, target_id);
`}
