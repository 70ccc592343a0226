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
, settings TEXT NOT NULL DEFAULT '{}');
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
	created_at   TEXT, status TEXT NOT NULL DEFAULT '', provider TEXT NOT NULL DEFAULT '', provider_id TEXT NOT NULL DEFAULT '', picture TEXT NOT NULL DEFAULT '', idp_groups TEXT,
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
	revoked    BOOLEAN NOT NULL, preapproved BOOLEAN NOT NULL DEFAULT FALSE, key_duration BIGINT NOT NULL DEFAULT 0, description TEXT NOT NULL DEFAULT '',
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
	key_signature   TEXT, never_expires BOOLEAN NOT NULL DEFAULT FALSE, old_key_until TEXT, attributes TEXT,
	PRIMARY KEY (tailnet_id, id),
	FOREIGN KEY (tailnet_id, user_id) REFERENCES users (tailnet_id, id) DEFERRABLE INITIALLY DEFERRED
);
CREATE TABLE presence (
	tailnet_id     BIGINT  NOT NULL,
	node_id        BIGINT  NOT NULL,
	online         BOOLEAN NOT NULL,
	last_seen      TEXT,
	primary_routes TEXT, server TEXT NOT NULL DEFAULT '', failing BOOLEAN NOT NULL DEFAULT FALSE, steady BOOLEAN NOT NULL DEFAULT FALSE, seq BIGINT NOT NULL DEFAULT 0,
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
	deleted_pre_auth_keys TEXT, put_credentials TEXT, deleted_credentials TEXT, commit_id TEXT,
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
CREATE TABLE presence_seq (
	tailnet_id BIGINT NOT NULL PRIMARY KEY REFERENCES tailnets (id),
	seq        BIGINT NOT NULL
);
CREATE TABLE servers (
	id      TEXT   NOT NULL PRIMARY KEY,
	name    TEXT   NOT NULL,
	info    TEXT   NOT NULL,
	started BIGINT NOT NULL,
	beat    BIGINT NOT NULL
);
CREATE TABLE leases (
	name    TEXT   NOT NULL PRIMARY KEY,
	holder  TEXT   NOT NULL,
	expires BIGINT NOT NULL
);
CREATE TABLE secrets (
	name       TEXT NOT NULL PRIMARY KEY,
	value      TEXT NOT NULL,
	created_at TEXT NOT NULL
);
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
CREATE TABLE audit_log (
	tailnet_id  BIGINT NOT NULL REFERENCES tailnets (id),
	rev         BIGINT NOT NULL,
	seq         BIGINT NOT NULL,
	at          TEXT   NOT NULL,
	actor_kind  TEXT   NOT NULL,
	actor       TEXT   NOT NULL,
	actor_id    TEXT   NOT NULL,
	origin      TEXT   NOT NULL,
	remote      TEXT   NOT NULL,
	action      TEXT   NOT NULL,
	target_kind TEXT   NOT NULL,
	target_id   TEXT   NOT NULL,
	target      TEXT   NOT NULL,
	why         TEXT   NOT NULL,
	before      TEXT,
	after       TEXT,
	PRIMARY KEY (tailnet_id, rev, seq)
);
CREATE TABLE webhooks (
	tailnet_id  BIGINT NOT NULL REFERENCES tailnets (id),
	id          TEXT   NOT NULL,
	url         TEXT   NOT NULL,
	provider    TEXT   NOT NULL,
	events      TEXT,
	secret      TEXT   NOT NULL,
	creator     TEXT   NOT NULL,
	created_at  TEXT   NOT NULL,
	modified_at TEXT   NOT NULL,
	PRIMARY KEY (tailnet_id, id)
);
CREATE TABLE webhook_states (
	tailnet_id BIGINT NOT NULL REFERENCES tailnets (id),
	id         TEXT   NOT NULL,
	rev        BIGINT NOT NULL,
	seq        BIGINT NOT NULL,
	failures   BIGINT NOT NULL,
	next_try   TEXT,
	last_error TEXT   NOT NULL,
	last_ok    TEXT,
	sent       BIGINT NOT NULL,
	dropped    BIGINT NOT NULL,
	PRIMARY KEY (tailnet_id, id)
);
CREATE TABLE provider_grants (
	tailnet_id BIGINT NOT NULL,
	user_id    BIGINT NOT NULL,
	provider   TEXT   NOT NULL,
	token      TEXT,
	created_at TEXT   NOT NULL,
	checked_at TEXT   NOT NULL,
	PRIMARY KEY (tailnet_id, user_id),
	FOREIGN KEY (tailnet_id, user_id) REFERENCES users (tailnet_id, id) ON DELETE CASCADE
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
CREATE UNIQUE INDEX users_provider_id ON users (tailnet_id, provider_id) WHERE provider_id <> '';
CREATE INDEX access_tokens_expires_at ON access_tokens (expires_at);
CREATE INDEX presence_by_seq ON presence (tailnet_id, seq);
CREATE INDEX passkeys_user ON passkeys (tailnet_id, user_id);
CREATE INDEX account_links_expires_at ON account_links (expires_at);
CREATE INDEX web_sessions_user ON web_sessions (tailnet_id, user_id);
CREATE INDEX web_sessions_expires_at ON web_sessions (expires_at);
CREATE INDEX web_sessions_seen_at ON web_sessions (seen_at);
CREATE INDEX audit_log_at ON audit_log (at);
CREATE INDEX audit_log_target ON audit_log (tailnet_id, target_kind, target_id);
CREATE INDEX provider_grants_checked_at ON provider_grants (tailnet_id, provider, checked_at);
INSERT INTO schema_migrations VALUES (1, 'tailnets, users, nodes, pre-auth keys, logins', '2026-11-20T15:00:00.123456789Z');
INSERT INTO schema_migrations VALUES (2, 'ssh checks', '2026-11-20T15:00:00.123456789Z');
INSERT INTO schema_migrations VALUES (3, 'settings, approval, expiry', '2026-11-20T15:00:00.123456789Z');
INSERT INTO schema_migrations VALUES (4, 'identity providers', '2026-11-20T15:00:00.123456789Z');
INSERT INTO schema_migrations VALUES (5, 'credentials', '2026-11-20T15:00:00.123456789Z');
INSERT INTO schema_migrations VALUES (6, 'several servers', '2026-11-20T15:00:00.123456789Z');
INSERT INTO schema_migrations VALUES (7, 'accounts and web sessions', '2026-11-20T15:00:00.123456789Z');
INSERT INTO schema_migrations VALUES (8, 'key duration of pre-auth keys', '2026-11-20T15:00:00.123456789Z');
INSERT INTO schema_migrations VALUES (9, 'audit log', '2026-11-20T15:00:00.123456789Z');
INSERT INTO schema_migrations VALUES (10, 'descriptions of keys, attributes of nodes', '2026-11-20T15:00:00.123456789Z');
INSERT INTO schema_migrations VALUES (11, 'webhooks', '2026-11-20T15:00:00.123456789Z');
INSERT INTO schema_migrations VALUES (12, 'provider grants', '2026-11-20T15:00:00.123456789Z');
INSERT INTO tailnets VALUES (1, 'office', 2, 7, 2, 3, 4, '2026-11-20T15:00:00.123456789Z', '{"deviceApproval":true,"userApproval":true,"keyDuration":7776000000000000}');
INSERT INTO policies VALUES (1, 4, '// nothing
{}', 'hans', 'opens all', '2026-11-20T15:00:00.123456789Z');
INSERT INTO users VALUES (1, 1, 'junyao', '', '', '', '2026-11-20T15:00:00.123456789Z', '', '', '', '', NULL);
INSERT INTO users VALUES (1, 2, 'hans', 'Hans Ö', 'hans@example.com', 'admin', '2026-11-20T15:00:00.123456789Z', 'suspended', 'hydra', 'https://hydra.example.com/hans', 'https://example.com/hans.png', '["admins","staff"]');
INSERT INTO pre_auth_keys VALUES (1, 3, 'abc', '01000000000000000000000000000000000000000000000000000000000000ff', 2, '["tag:x"]', 1, 1, 1, '2026-11-20T15:00:00.123456789Z', '2026-11-20T15:00:00.123456790Z', 1, 1, 3600000000000, 'for CI');
INSERT INTO nodes VALUES (1, 1, 'n1CNTRL', 'mkey:09e95162fb442b286e7765e35e20b24ef0ff32c40bf0d02d53b0a61139000012', 'nodekey:ccbc0f84e55646b27e2ca6d563b9a6ac11c1a911c5237e6ea6f154444ef6f175', NULL, 'discokey:e39d90ebf5b75484d734c10acc4f7f726d1a009a38e23d7dc4624bc2e2bb2a0b', 1, NULL, 'laptop-1', 'laptop-1', 0, '100.64.0.1', 'fd7a:115c:a1e0::1', 0, 'auth_key', NULL, '2026-11-20T15:00:00.123456789Z', '2027-05-20T15:00:00.123456789Z', 1, '{"IPNVersion":"1.102.5-t0123456789-g0123456789","BackendLogID":"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef","OS":"linux","OSVersion":"6.1.0","Distro":"debian","DistroVersion":"12","Hostname":"laptop-1","GoArch":"amd64","GoVersion":"go1.26.8","Services":[{"Proto":"peerapi4","Port":41234},{"Proto":"peerapi6","Port":41234}],"NetInfo":{"WorkingUDP":true,"PreferredDERP":1,"DERPLatency":{"1-v4":0.01,"2-v4":0.02,"3-v4":0.03}}}', '["203.0.113.7:41641","192.168.1.7:41641"]', '[2,1]', 1, 130, NULL, NULL, NULL, 0, NULL, NULL);
INSERT INTO nodes VALUES (1, 2, 'n2CNTRL', 'mkey:ad876453157613a5b785cf92d10ec44f6f1e970169c265b5a760951df7a05558', 'nodekey:ca0382d71e3569c9cc2c89f9e58ae8c053a82028c4b1ef1609a0db3d21693f50', NULL, 'discokey:1608ab0596cfadff99914ffaa09b7fe5730799c7546413dab6211a818741323e', 1, NULL, 'laptop-2', 'laptop-2', 0, '100.64.0.2', 'fd7a:115c:a1e0::2', 0, 'auth_key', NULL, '2026-11-20T15:00:00.123456789Z', '2027-05-20T15:00:00.123456789Z', 1, '{"IPNVersion":"1.102.5-t0123456789-g0123456789","BackendLogID":"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef","OS":"linux","OSVersion":"6.1.0","Distro":"debian","DistroVersion":"12","Hostname":"laptop-2","GoArch":"amd64","GoVersion":"go1.26.8","Services":[{"Proto":"peerapi4","Port":41234},{"Proto":"peerapi6","Port":41234}],"NetInfo":{"WorkingUDP":true,"PreferredDERP":1,"DERPLatency":{"1-v4":0.01,"2-v4":0.02,"3-v4":0.03}}}', '["203.0.113.7:41641","192.168.1.7:41641"]', '[2,1]', 1, 130, NULL, NULL, NULL, 0, NULL, NULL);
INSERT INTO nodes VALUES (1, 3, 'n3CNTRL', 'mkey:f91164bf85f1609daa18f05e199fe32c29ec8aa4ceca2c24192b15e75a501750', 'nodekey:2063e21271499de871d0c2b86c3deaf2f2bc8214d6130a056aa87d13a0133b5a', NULL, 'discokey:de17ee9c843bdb0b04e6ed082817411da7aaf8b7de6137a8ba42c3bd0d3d3d15', 1, NULL, 'laptop-3', 'laptop-3', 0, '100.64.0.3', 'fd7a:115c:a1e0::3', 0, 'auth_key', NULL, '2026-11-20T15:00:00.123456789Z', '2027-05-20T15:00:00.123456789Z', 1, '{"IPNVersion":"1.102.5-t0123456789-g0123456789","BackendLogID":"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef","OS":"linux","OSVersion":"6.1.0","Distro":"debian","DistroVersion":"12","Hostname":"laptop-3","GoArch":"amd64","GoVersion":"go1.26.8","Services":[{"Proto":"peerapi4","Port":41234},{"Proto":"peerapi6","Port":41234}],"NetInfo":{"WorkingUDP":true,"PreferredDERP":1,"DERPLatency":{"1-v4":0.01,"2-v4":0.02,"3-v4":0.03}}}', '["203.0.113.7:41641","192.168.1.7:41641"]', '[2,1]', 1, 130, NULL, NULL, NULL, 0, NULL, NULL);
INSERT INTO nodes VALUES (1, 7, 'nSeven', 'mkey:3e055fc21864421d106605014a116e8dfd243a88e655e105d94fdb21cdf9462f', 'nodekey:870baa6b976c733029be768d49b72be37cb5528e9f35df343b77c11be951fc38', 'nodekey:55df126aafd5814ac4b6a61574866f6593d8313d8bde79f63629bce156078a5d', 'discokey:14d28de72d9dc07a036268acd44ef89a32a9a214d6e19d5adea7fd6ab307c706', 2, '["tag:a","tag:\u2028\"b"]', 'Häns''s PC', 'haens-pc', 1, '100.64.0.7', 'fd7a:115c:a1e0::7', 1, 'cli', 3, '2026-11-20T15:00:00.123456789Z', '2126-11-20T15:00:00.123456789Z', 1, '{"OS":"linux"}', '["192.0.2.1:1","[2001:db8::1]:65535"]', '[1,2]', 900, 130, '["0.0.0.0/0","::/0"]', 'nlpub:4df8b076817e7581d56b44cb75d6628bfb5a767d28b84f97306eecba4f2d8334', '0001ff', 1, '2026-11-20T15:01:00.123456789Z', '[{"name":"custom:tier","value":"gold","kind":"string"}]');
INSERT INTO revisions VALUES (1, 1, '2026-11-20T15:00:00.123456789Z', NULL, 0, '[1,2,3]', NULL, '[1]', NULL, NULL, NULL, NULL, NULL, 'KRSAFMNOKL4G5AZCVXO4MXA4D2');
INSERT INTO revisions VALUES (1, 2, '2026-11-20T15:00:00.123456789Z', '["a node joined","sample"]', 1, '[7]', NULL, '[2]', NULL, '[3]', NULL, '["kAbc"]', NULL, 'MGHBZZ33X26HKU4U37L3W7EPSL');
INSERT INTO credentials VALUES (1, 'kAbc', 'federated', 'bcrypt', '0001ff', 2, '["dns","users:read"]', '["tag:x"]', 'CI', '2026-11-20T15:00:00.123456789Z', '2026-11-20T15:00:00.123456790Z', '2026-11-20T15:00:00.123456791Z', 'https://issuer.example', 'repo:*', 'aud', '{"ref":"main"}');
