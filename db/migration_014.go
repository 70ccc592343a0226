package db

// migration014 adds services, and what nodes have to do with them.
var migration014 = migration{version: 14, name: "services", sql: `
CREATE TABLE services (
	tailnet_id   BIGINT NOT NULL REFERENCES tailnets (id),
	id           TEXT   NOT NULL,
	ipv4         TEXT,
	ipv6         TEXT,
	display_name TEXT   NOT NULL,
	comment      TEXT   NOT NULL,
	annotations  TEXT,
	ports        TEXT,
	tags         TEXT,
	created_at   TEXT,
	updated_at   TEXT,
	PRIMARY KEY (tailnet_id, id),
	UNIQUE (tailnet_id, ipv4),
	UNIQUE (tailnet_id, ipv6)
);
ALTER TABLE nodes ADD COLUMN hostings TEXT;
ALTER TABLE nodes ADD COLUMN services_hash TEXT NOT NULL DEFAULT '';
ALTER TABLE revisions ADD COLUMN put_services TEXT;
ALTER TABLE revisions ADD COLUMN deleted_services TEXT;
`}
