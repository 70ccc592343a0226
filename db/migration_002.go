package db

// migration002 adds SSH sessions that wait for a person, and what became of them. They outlive the nodes that they name.
var migration002 = migration{version: 2, name: "ssh checks", sql: `
CREATE TABLE ssh_checks (
	tailnet_id  BIGINT  NOT NULL REFERENCES tailnets (id),
	id          TEXT    NOT NULL,
	src         BIGINT  NOT NULL,
	dst         BIGINT  NOT NULL,
	src_user    BIGINT  NOT NULL,
	ssh_user    TEXT    NOT NULL,
	local_user  TEXT    NOT NULL,
	period      BIGINT  NOT NULL,
	created_at  TEXT    NOT NULL,
	approved_at TEXT,
	denied      BOOLEAN NOT NULL,
	decided_by  TEXT    NOT NULL,
	PRIMARY KEY (tailnet_id, id)
);
CREATE INDEX ssh_checks_session ON ssh_checks (tailnet_id, src, dst, ssh_user);
CREATE INDEX ssh_checks_created_at ON ssh_checks (created_at);
`}
