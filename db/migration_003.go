package db

// migration003 adds the settings of a tailnet, and what decides whether a node takes part: the status of its user, keys that
// need no approval, keys that never end, and the time for which peers know a node under the key it had before.
var migration003 = migration{version: 3, name: "settings, approval, expiry", sql: `
ALTER TABLE tailnets ADD COLUMN settings TEXT NOT NULL DEFAULT '{}';
ALTER TABLE users ADD COLUMN status TEXT NOT NULL DEFAULT '';
ALTER TABLE pre_auth_keys ADD COLUMN preapproved BOOLEAN NOT NULL DEFAULT FALSE;
ALTER TABLE nodes ADD COLUMN never_expires BOOLEAN NOT NULL DEFAULT FALSE;
ALTER TABLE nodes ADD COLUMN old_key_until TEXT;
`}
