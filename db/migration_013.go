package db

// migration013 adds how far a server's clock is ahead of the database's, in milliseconds.
var migration013 = migration{version: 13, name: "clocks of servers", sql: `
ALTER TABLE servers ADD COLUMN clock_skew BIGINT NOT NULL DEFAULT 0;
`}
