package db

// migration005 adds what programs act with: API keys, OAuth clients and federated identities, and the access tokens that the
// latter two get. When a credential was used last is soft and has a table of its own, so that a commit never takes it back.
var migration005 = migration{version: 5, name: "credentials", sql: `
CREATE TABLE credentials (
	tailnet_id  BIGINT NOT NULL REFERENCES tailnets (id),
	id          TEXT   NOT NULL,
	kind        TEXT   NOT NULL,
	hash_kind   TEXT   NOT NULL,
	hash        TEXT,
	user_id     BIGINT,
	scopes      TEXT,
	tags        TEXT,
	description TEXT   NOT NULL,
	created_at  TEXT,
	expires_at  TEXT,
	revoked_at  TEXT,
	issuer      TEXT   NOT NULL,
	subject     TEXT   NOT NULL,
	audience    TEXT   NOT NULL,
	claims      TEXT,
	PRIMARY KEY (tailnet_id, id),
	FOREIGN KEY (tailnet_id, user_id) REFERENCES users (tailnet_id, id) DEFERRABLE INITIALLY DEFERRED
);
CREATE TABLE credential_uses (
	tailnet_id BIGINT NOT NULL REFERENCES tailnets (id),
	id         TEXT   NOT NULL,
	used_at    TEXT   NOT NULL,
	PRIMARY KEY (tailnet_id, id)
);
CREATE TABLE access_tokens (
	tailnet_id    BIGINT NOT NULL REFERENCES tailnets (id),
	hash          TEXT   NOT NULL,
	credential_id TEXT   NOT NULL,
	scopes        TEXT,
	tags          TEXT,
	created_at    TEXT   NOT NULL,
	expires_at    TEXT   NOT NULL,
	PRIMARY KEY (tailnet_id, hash)
);
CREATE INDEX access_tokens_expires_at ON access_tokens (expires_at);
ALTER TABLE revisions ADD COLUMN put_credentials TEXT;
ALTER TABLE revisions ADD COLUMN deleted_credentials TEXT;
`}
