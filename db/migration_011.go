package db

// migration011 adds webhooks, and how far each has got, which is soft.
var migration011 = migration{version: 11, name: "webhooks", sql: `
CREATE TABLE webhooks (
	tailnet_id  BIGINT NOT NULL REFERENCES tailnets (id),
	id          TEXT   NOT NULL,
	url         TEXT   NOT NULL,
	provider    TEXT   NOT NULL,
	events      TEXT,
	secret      TEXT   NOT NULL,
	creator     TEXT   NOT NULL,
	created_at  TEXT   NOT NULL,
	modified_at TEXT   NOT NULL,
	PRIMARY KEY (tailnet_id, id)
);
CREATE TABLE webhook_states (
	tailnet_id BIGINT NOT NULL REFERENCES tailnets (id),
	id         TEXT   NOT NULL,
	rev        BIGINT NOT NULL,
	seq        BIGINT NOT NULL,
	failures   BIGINT NOT NULL,
	next_try   TEXT,
	last_error TEXT   NOT NULL,
	last_ok    TEXT,
	sent       BIGINT NOT NULL,
	dropped    BIGINT NOT NULL,
	PRIMARY KEY (tailnet_id, id)
);
`}
