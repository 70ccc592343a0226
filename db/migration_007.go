package db

// migration007 adds what people sign in with on the web pages: accounts of users with their passkeys, one-time links, and the
// sessions of their browsers. They go with the user.
var migration007 = migration{version: 7, name: "accounts and web sessions", sql: `
CREATE TABLE accounts (
	tailnet_id      BIGINT NOT NULL,
	user_id         BIGINT NOT NULL,
	handle          TEXT   NOT NULL,
	password        TEXT   NOT NULL,
	password_set_at TEXT,
	created_at      TEXT   NOT NULL,
	signed_in_at    TEXT,
	PRIMARY KEY (tailnet_id, user_id),
	FOREIGN KEY (tailnet_id, user_id) REFERENCES users (tailnet_id, id) ON DELETE CASCADE
);
CREATE TABLE passkeys (
	tailnet_id BIGINT NOT NULL,
	id         TEXT   NOT NULL,
	user_id    BIGINT NOT NULL,
	name       TEXT   NOT NULL,
	data       TEXT   NOT NULL,
	created_at TEXT   NOT NULL,
	used_at    TEXT,
	PRIMARY KEY (tailnet_id, id),
	FOREIGN KEY (tailnet_id, user_id) REFERENCES accounts (tailnet_id, user_id) ON DELETE CASCADE
);
CREATE INDEX passkeys_user ON passkeys (tailnet_id, user_id);
CREATE TABLE account_links (
	tailnet_id BIGINT  NOT NULL REFERENCES tailnets (id),
	id         TEXT    NOT NULL,
	user_id    BIGINT,
	name       TEXT    NOT NULL,
	role       TEXT    NOT NULL,
	first      BOOLEAN NOT NULL,
	created_at TEXT    NOT NULL,
	expires_at TEXT    NOT NULL,
	used_at    TEXT,
	PRIMARY KEY (tailnet_id, id),
	FOREIGN KEY (tailnet_id, user_id) REFERENCES users (tailnet_id, id) ON DELETE CASCADE
);
CREATE INDEX account_links_expires_at ON account_links (expires_at);
CREATE TABLE web_sessions (
	tailnet_id BIGINT NOT NULL,
	id         TEXT   NOT NULL,
	user_id    BIGINT NOT NULL,
	method     TEXT   NOT NULL,
	nodes_end_at TEXT,
	remote     TEXT   NOT NULL,
	agent      TEXT   NOT NULL,
	created_at TEXT   NOT NULL,
	seen_at    TEXT   NOT NULL,
	expires_at TEXT   NOT NULL,
	PRIMARY KEY (tailnet_id, id),
	FOREIGN KEY (tailnet_id, user_id) REFERENCES users (tailnet_id, id) ON DELETE CASCADE
);
CREATE INDEX web_sessions_user ON web_sessions (tailnet_id, user_id);
CREATE INDEX web_sessions_expires_at ON web_sessions (expires_at);
CREATE INDEX web_sessions_seen_at ON web_sessions (seen_at);
`}
