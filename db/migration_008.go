package db

// migration008 adds how long the keys of nodes live that join with a pre-auth key, in nanoseconds.
var migration008 = migration{version: 8, name: "key duration of pre-auth keys", sql: `
ALTER TABLE pre_auth_keys ADD COLUMN key_duration BIGINT NOT NULL DEFAULT 0;
`}
