package db

// migration010 adds what administrators say of pre-auth keys, and the attributes that they give to nodes for postures.
var migration010 = migration{version: 10, name: "descriptions of keys, attributes of nodes", sql: `
ALTER TABLE pre_auth_keys ADD COLUMN description TEXT NOT NULL DEFAULT '';
ALTER TABLE nodes ADD COLUMN attributes TEXT;
`}
