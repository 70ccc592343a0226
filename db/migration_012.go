package db

// migration012 adds refresh tokens of identity providers, encrypted.
var migration012 = migration{version: 12, name: "provider grants", sql: `
CREATE TABLE provider_grants (
	tailnet_id BIGINT NOT NULL,
	user_id    BIGINT NOT NULL,
	provider   TEXT   NOT NULL,
	token      TEXT,
	created_at TEXT   NOT NULL,
	checked_at TEXT   NOT NULL,
	PRIMARY KEY (tailnet_id, user_id),
	FOREIGN KEY (tailnet_id, user_id) REFERENCES users (tailnet_id, id) ON DELETE CASCADE
);
CREATE INDEX provider_grants_checked_at ON provider_grants (tailnet_id, provider, checked_at);
`}
