package db

// migration001 is the first schema. Every table is keyed by tailnet from the start. Types are those that SQLite and PostgreSQL
// both know. References are checked when a transaction commits, so that the order of statements in a commit is free.
var migration001 = migration{version: 1, name: "tailnets, users, nodes, pre-auth keys, logins", sql: `
CREATE TABLE tailnets (
	id                   BIGINT NOT NULL PRIMARY KEY,
	name                 TEXT   NOT NULL UNIQUE,
	rev                  BIGINT NOT NULL,
	last_node_id         BIGINT NOT NULL,
	last_user_id         BIGINT NOT NULL,
	last_pre_auth_key_id BIGINT NOT NULL,
	last_policy_id       BIGINT NOT NULL,
	created_at           TEXT
);

INSERT INTO tailnets (id, name, rev, last_node_id, last_user_id, last_pre_auth_key_id, last_policy_id, created_at)
	VALUES (1, 'default', 0, 0, 0, 0, 0, ?);

CREATE TABLE policies (
	tailnet_id BIGINT NOT NULL REFERENCES tailnets (id),
	id         BIGINT NOT NULL,
	text       TEXT   NOT NULL,
	author     TEXT   NOT NULL,
	comment    TEXT   NOT NULL,
	created_at TEXT,
	PRIMARY KEY (tailnet_id, id)
);

CREATE TABLE users (
	tailnet_id   BIGINT NOT NULL REFERENCES tailnets (id),
	id           BIGINT NOT NULL,
	name         TEXT   NOT NULL,
	display_name TEXT   NOT NULL,
	email        TEXT   NOT NULL,
	role         TEXT   NOT NULL,
	created_at   TEXT,
	PRIMARY KEY (tailnet_id, id)
);
CREATE UNIQUE INDEX users_name ON users (tailnet_id, name);

CREATE TABLE pre_auth_keys (
	tailnet_id BIGINT  NOT NULL REFERENCES tailnets (id),
	id         BIGINT  NOT NULL,
	prefix     TEXT    NOT NULL,
	hash       TEXT    NOT NULL,
	user_id    BIGINT,
	tags       TEXT,
	reusable   BOOLEAN NOT NULL,
	ephemeral  BOOLEAN NOT NULL,
	used       BOOLEAN NOT NULL,
	created_at TEXT,
	expires_at TEXT,
	revoked    BOOLEAN NOT NULL,
	PRIMARY KEY (tailnet_id, id),
	FOREIGN KEY (tailnet_id, user_id) REFERENCES users (tailnet_id, id) DEFERRABLE INITIALLY DEFERRED
);
CREATE INDEX pre_auth_keys_user ON pre_auth_keys (tailnet_id, user_id);

CREATE TABLE nodes (
	tailnet_id      BIGINT  NOT NULL REFERENCES tailnets (id),
	id              BIGINT  NOT NULL,
	stable_id       TEXT    NOT NULL,
	machine_key     TEXT,
	node_key        TEXT    NOT NULL,
	old_node_key    TEXT,
	disco_key       TEXT,
	user_id         BIGINT,
	tags            TEXT,
	hostname        TEXT    NOT NULL,
	name            TEXT    NOT NULL,
	name_fixed      BOOLEAN NOT NULL,
	ipv4            TEXT,
	ipv6            TEXT,
	ephemeral       BOOLEAN NOT NULL,
	register_method TEXT    NOT NULL,
	pre_auth_key_id BIGINT,
	created_at      TEXT,
	expires_at      TEXT,
	authorized      BOOLEAN NOT NULL,
	hostinfo        TEXT    NOT NULL,
	endpoints       TEXT,
	endpoint_types  TEXT,
	home_derp       BIGINT  NOT NULL,
	capver          BIGINT  NOT NULL,
	approved_routes TEXT,
	nl_key          TEXT,
	key_signature   TEXT,
	PRIMARY KEY (tailnet_id, id),
	FOREIGN KEY (tailnet_id, user_id) REFERENCES users (tailnet_id, id) DEFERRABLE INITIALLY DEFERRED
);
CREATE UNIQUE INDEX nodes_stable_id ON nodes (stable_id);
CREATE UNIQUE INDEX nodes_node_key ON nodes (node_key);
CREATE UNIQUE INDEX nodes_name ON nodes (tailnet_id, name);
CREATE UNIQUE INDEX nodes_ipv4 ON nodes (tailnet_id, ipv4);
CREATE UNIQUE INDEX nodes_ipv6 ON nodes (tailnet_id, ipv6);
CREATE INDEX nodes_user ON nodes (tailnet_id, user_id);

CREATE TABLE presence (
	tailnet_id     BIGINT  NOT NULL,
	node_id        BIGINT  NOT NULL,
	online         BOOLEAN NOT NULL,
	last_seen      TEXT,
	primary_routes TEXT,
	PRIMARY KEY (tailnet_id, node_id),
	FOREIGN KEY (tailnet_id, node_id) REFERENCES nodes (tailnet_id, id) ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED
);

CREATE TABLE deleted_nodes (
	tailnet_id  BIGINT  NOT NULL REFERENCES tailnets (id),
	rev         BIGINT  NOT NULL,
	id          BIGINT  NOT NULL,
	deleted_at  TEXT    NOT NULL,
	stable_id   TEXT    NOT NULL,
	machine_key TEXT,
	node_key    TEXT    NOT NULL,
	user_id     BIGINT,
	tags        TEXT,
	hostname    TEXT    NOT NULL,
	name        TEXT    NOT NULL,
	ipv4        TEXT,
	ipv6        TEXT,
	ephemeral   BOOLEAN NOT NULL,
	created_at  TEXT,
	expires_at  TEXT,
	PRIMARY KEY (tailnet_id, rev, id)
);
CREATE INDEX deleted_nodes_node_key ON deleted_nodes (tailnet_id, node_key);
CREATE INDEX deleted_nodes_deleted_at ON deleted_nodes (deleted_at);

CREATE TABLE revisions (
	tailnet_id            BIGINT  NOT NULL REFERENCES tailnets (id),
	rev                   BIGINT  NOT NULL,
	at                    TEXT    NOT NULL,
	why                   TEXT,
	settings              BOOLEAN NOT NULL,
	put_nodes             TEXT,
	deleted_nodes         TEXT,
	put_users             TEXT,
	deleted_users         TEXT,
	put_pre_auth_keys     TEXT,
	deleted_pre_auth_keys TEXT,
	PRIMARY KEY (tailnet_id, rev)
);
CREATE INDEX revisions_at ON revisions (at);

CREATE TABLE logins (
	tailnet_id   BIGINT  NOT NULL REFERENCES tailnets (id),
	id           TEXT    NOT NULL,
	machine_key  TEXT,
	node_key     TEXT    NOT NULL,
	old_node_key TEXT,
	nl_key       TEXT,
	hostinfo     TEXT    NOT NULL,
	expires_at   TEXT,
	ephemeral    BOOLEAN NOT NULL,
	capver       BIGINT  NOT NULL,
	remote       TEXT    NOT NULL,
	created_at   TEXT    NOT NULL,
	PRIMARY KEY (tailnet_id, id)
);
CREATE INDEX logins_node_key ON logins (tailnet_id, node_key);
CREATE INDEX logins_created_at ON logins (created_at);
`}
