CREATE TABLE schema_migrations (
	version    BIGINT NOT NULL PRIMARY KEY,
	name       TEXT   NOT NULL,
	applied_at TEXT   NOT NULL
);
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
CREATE TABLE ssh_checks (
	tailnet_id  BIGINT  NOT NULL REFERENCES tailnets (id),
	id          TEXT    NOT NULL,
	src         BIGINT  NOT NULL,
	dst         BIGINT  NOT NULL,
	src_user    BIGINT  NOT NULL,
	ssh_user    TEXT    NOT NULL,
	local_user  TEXT    NOT NULL,
	period      BIGINT  NOT NULL,
	created_at  TEXT    NOT NULL,
	approved_at TEXT,
	denied      BOOLEAN NOT NULL,
	decided_by  TEXT    NOT NULL,
	PRIMARY KEY (tailnet_id, id)
);
CREATE UNIQUE INDEX users_name ON users (tailnet_id, name);
CREATE INDEX pre_auth_keys_user ON pre_auth_keys (tailnet_id, user_id);
CREATE UNIQUE INDEX nodes_stable_id ON nodes (stable_id);
CREATE UNIQUE INDEX nodes_node_key ON nodes (node_key);
CREATE UNIQUE INDEX nodes_name ON nodes (tailnet_id, name);
CREATE UNIQUE INDEX nodes_ipv4 ON nodes (tailnet_id, ipv4);
CREATE UNIQUE INDEX nodes_ipv6 ON nodes (tailnet_id, ipv6);
CREATE INDEX nodes_user ON nodes (tailnet_id, user_id);
CREATE INDEX deleted_nodes_node_key ON deleted_nodes (tailnet_id, node_key);
CREATE INDEX deleted_nodes_deleted_at ON deleted_nodes (deleted_at);
CREATE INDEX revisions_at ON revisions (at);
CREATE INDEX logins_node_key ON logins (tailnet_id, node_key);
CREATE INDEX logins_created_at ON logins (created_at);
CREATE INDEX ssh_checks_session ON ssh_checks (tailnet_id, src, dst, ssh_user);
CREATE INDEX ssh_checks_created_at ON ssh_checks (created_at);
INSERT INTO schema_migrations VALUES (1, 'tailnets, users, nodes, pre-auth keys, logins', '2026-11-20T15:00:00.123456789Z');
INSERT INTO schema_migrations VALUES (2, 'ssh checks', '2026-11-20T15:00:00.123456789Z');
INSERT INTO tailnets VALUES (1, 'office', 2, 7, 2, 3, 4, '2026-11-20T15:00:00.123456789Z');
INSERT INTO policies VALUES (1, 4, '// nothing
{}', 'hans', 'opens all', '2026-11-20T15:00:00.123456789Z');
INSERT INTO users VALUES (1, 1, 'junyao', '', '', '', '2026-11-20T15:00:00.123456789Z');
INSERT INTO users VALUES (1, 2, 'hans', 'Hans Ö', 'hans@example.com', 'admin', '2026-11-20T15:00:00.123456789Z');
INSERT INTO pre_auth_keys VALUES (1, 3, 'abc', '01000000000000000000000000000000000000000000000000000000000000ff', 2, '["tag:x"]', 1, 1, 1, '2026-11-20T15:00:00.123456789Z', '2026-11-20T15:00:00.123456790Z', 1);
INSERT INTO nodes VALUES (1, 1, 'n1CNTRL', 'mkey:b50aa94d6bed36157f119c492ee92afb7709487768c304633216656be8bbe204', 'nodekey:d1bece882dee8db7fa8f957c07e5f3f583b0ae9f278af8578baadb2328954c4a', NULL, 'discokey:2e4f4b30882d2de261f3124845d3d52b635279777b4befebeabb0a7b55ab0826', 1, NULL, 'laptop-1', 'laptop-1', 0, '100.64.0.1', 'fd7a:115c:a1e0::1', 0, 'auth_key', NULL, '2026-11-20T15:00:00.123456789Z', '2027-05-20T15:00:00.123456789Z', 1, '{"IPNVersion":"1.102.5-t0123456789-g0123456789","BackendLogID":"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef","OS":"linux","OSVersion":"6.1.0","Distro":"debian","DistroVersion":"12","Hostname":"laptop-1","GoArch":"amd64","GoVersion":"go1.26.8","Services":[{"Proto":"peerapi4","Port":41234},{"Proto":"peerapi6","Port":41234}],"NetInfo":{"WorkingUDP":true,"PreferredDERP":1,"DERPLatency":{"1-v4":0.01,"2-v4":0.02,"3-v4":0.03}}}', '["203.0.113.7:41641","192.168.1.7:41641"]', '[2,1]', 1, 130, NULL, NULL, NULL);
INSERT INTO nodes VALUES (1, 2, 'n2CNTRL', 'mkey:f7a190c92467d91fb4afa50cdf470731a4df9cd6b17d15e04a1b06000626006a', 'nodekey:559fe10b60d59c0365ece9d36834960122e9ae6c323c6c7590f568ce0cec007d', NULL, 'discokey:9c32ec5759c66ec64752664e03991a65fd4cbc59fe639dddf31017d24e064977', 1, NULL, 'laptop-2', 'laptop-2', 0, '100.64.0.2', 'fd7a:115c:a1e0::2', 0, 'auth_key', NULL, '2026-11-20T15:00:00.123456789Z', '2027-05-20T15:00:00.123456789Z', 1, '{"IPNVersion":"1.102.5-t0123456789-g0123456789","BackendLogID":"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef","OS":"linux","OSVersion":"6.1.0","Distro":"debian","DistroVersion":"12","Hostname":"laptop-2","GoArch":"amd64","GoVersion":"go1.26.8","Services":[{"Proto":"peerapi4","Port":41234},{"Proto":"peerapi6","Port":41234}],"NetInfo":{"WorkingUDP":true,"PreferredDERP":1,"DERPLatency":{"1-v4":0.01,"2-v4":0.02,"3-v4":0.03}}}', '["203.0.113.7:41641","192.168.1.7:41641"]', '[2,1]', 1, 130, NULL, NULL, NULL);
INSERT INTO nodes VALUES (1, 3, 'n3CNTRL', 'mkey:15fd800d262580d2b7375e35e8685b1c9e92f1ece5e3ab3101825251ed12b423', 'nodekey:5fcb439d9937610525024d315c15d0bfb2729fb1990df05b0cf867bdd2573376', NULL, 'discokey:361002e9685a7782948fdd5c3072bd1ef1caf34189f83b5173e36813ee0d8253', 1, NULL, 'laptop-3', 'laptop-3', 0, '100.64.0.3', 'fd7a:115c:a1e0::3', 0, 'auth_key', NULL, '2026-11-20T15:00:00.123456789Z', '2027-05-20T15:00:00.123456789Z', 1, '{"IPNVersion":"1.102.5-t0123456789-g0123456789","BackendLogID":"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef","OS":"linux","OSVersion":"6.1.0","Distro":"debian","DistroVersion":"12","Hostname":"laptop-3","GoArch":"amd64","GoVersion":"go1.26.8","Services":[{"Proto":"peerapi4","Port":41234},{"Proto":"peerapi6","Port":41234}],"NetInfo":{"WorkingUDP":true,"PreferredDERP":1,"DERPLatency":{"1-v4":0.01,"2-v4":0.02,"3-v4":0.03}}}', '["203.0.113.7:41641","192.168.1.7:41641"]', '[2,1]', 1, 130, NULL, NULL, NULL);
INSERT INTO nodes VALUES (1, 7, 'nSeven', 'mkey:99010711dc4477f5a63f346eebce9b5bdef8efe9ef715d51392b1aeb6da79642', 'nodekey:164d0e6c9a8836ddfc3cdc479e701a43ea170a82a7680b9abc636b9a61049036', 'nodekey:8584bb225227d01008c08fcd09667e5f6398e2b84fe1c98e0975711cc87e161f', 'discokey:e5cbb05386df0b88a52c84b314be74b0e526266545a8767009022faec9e40a03', 2, '["tag:a","tag:\u2028\"b"]', 'Häns''s PC', 'haens-pc', 1, '100.64.0.7', 'fd7a:115c:a1e0::7', 1, 'cli', 3, '2026-11-20T15:00:00.123456789Z', '2126-11-20T15:00:00.123456789Z', 1, '{"OS":"linux"}', '["192.0.2.1:1","[2001:db8::1]:65535"]', '[1,2]', 900, 130, '["0.0.0.0/0","::/0"]', 'nlpub:1407102638ca3292d55a5c5b9ee5d75fa91d7da4dec12cd01a9ce181f55fdd33', '0001ff');
INSERT INTO revisions VALUES (1, 1, '2026-11-20T15:00:00.123456789Z', NULL, 0, '[1,2,3]', NULL, '[1]', NULL, NULL, NULL);
INSERT INTO revisions VALUES (1, 2, '2026-11-20T15:00:00.123456789Z', '["a node joined","sample"]', 1, '[7]', NULL, '[2]', NULL, '[3]', NULL);
