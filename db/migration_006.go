package db

// migration006 is for several servers on one database: whose commit a revision is, which server holds a node's map session, who is
// there, who does what only one may do, and what all of them must agree on. Times of servers and leases are milliseconds since 1970
// by the database's clock, so that clocks of servers may differ.
var migration006 = migration{version: 6, name: "several servers", sql: `
ALTER TABLE revisions ADD COLUMN commit_id TEXT;

ALTER TABLE presence ADD COLUMN server TEXT NOT NULL DEFAULT '';
ALTER TABLE presence ADD COLUMN failing BOOLEAN NOT NULL DEFAULT FALSE;
ALTER TABLE presence ADD COLUMN steady BOOLEAN NOT NULL DEFAULT FALSE;
ALTER TABLE presence ADD COLUMN seq BIGINT NOT NULL DEFAULT 0;
CREATE INDEX presence_by_seq ON presence (tailnet_id, seq);

CREATE TABLE presence_seq (
	tailnet_id BIGINT NOT NULL PRIMARY KEY REFERENCES tailnets (id),
	seq        BIGINT NOT NULL
);

CREATE TABLE servers (
	id      TEXT   NOT NULL PRIMARY KEY,
	name    TEXT   NOT NULL,
	info    TEXT   NOT NULL,
	started BIGINT NOT NULL,
	beat    BIGINT NOT NULL
);

CREATE TABLE leases (
	name    TEXT   NOT NULL PRIMARY KEY,
	holder  TEXT   NOT NULL,
	expires BIGINT NOT NULL
);

CREATE TABLE secrets (
	name       TEXT NOT NULL PRIMARY KEY,
	value      TEXT NOT NULL,
	created_at TEXT NOT NULL
);
`}
