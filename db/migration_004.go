package db

// migration004 adds what an identity provider says about a user.
var migration004 = migration{version: 4, name: "identity providers", sql: `
ALTER TABLE users ADD COLUMN provider TEXT NOT NULL DEFAULT '';
ALTER TABLE users ADD COLUMN provider_id TEXT NOT NULL DEFAULT '';
ALTER TABLE users ADD COLUMN picture TEXT NOT NULL DEFAULT '';
ALTER TABLE users ADD COLUMN idp_groups TEXT;
CREATE UNIQUE INDEX users_provider_id ON users (tailnet_id, provider_id) WHERE provider_id <> '';
`}
