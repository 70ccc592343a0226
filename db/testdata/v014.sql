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
	key_signature   TEXT, never_expires BOOLEAN NOT NULL DEFAULT FALSE, old_key_until TEXT, attributes TEXT, hostings TEXT, services_hash TEXT NOT NULL DEFAULT '',
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
	deleted_pre_auth_keys TEXT, put_credentials TEXT, deleted_credentials TEXT, commit_id TEXT, put_services TEXT, deleted_services TEXT,
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
, clock_skew BIGINT NOT NULL DEFAULT 0);
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
INSERT INTO schema_migrations VALUES (13, 'clocks of servers', '2026-11-20T15:00:00.123456789Z');
INSERT INTO schema_migrations VALUES (14, 'services', '2026-11-20T15:00:00.123456789Z');
INSERT INTO tailnets VALUES (1, 'office', 2, 7, 2, 3, 4, '2026-11-20T15:00:00.123456789Z', '{"deviceApproval":true,"userApproval":true,"keyDuration":7776000000000000}');
INSERT INTO policies VALUES (1, 4, '// nothing
{}', 'hans', 'opens all', '2026-11-20T15:00:00.123456789Z');
INSERT INTO users VALUES (1, 1, 'junyao', '', '', '', '2026-11-20T15:00:00.123456789Z', '', '', '', '', NULL);
INSERT INTO users VALUES (1, 2, 'hans', 'Hans Ö', 'hans@example.com', 'admin', '2026-11-20T15:00:00.123456789Z', 'suspended', 'hydra', 'https://hydra.example.com/hans', 'https://example.com/hans.png', '["admins","staff"]');
INSERT INTO pre_auth_keys VALUES (1, 3, 'abc', '01000000000000000000000000000000000000000000000000000000000000ff', 2, '["tag:x"]', 1, 1, 1, '2026-11-20T15:00:00.123456789Z', '2026-11-20T15:00:00.123456790Z', 1, 1, 3600000000000, 'for CI');
INSERT INTO nodes VALUES (1, 1, 'n1CNTRL', 'mkey:de410f0fa5b55375302e7aa0f1eb4513792bd4dc95b5e848a44b1984ddf1813b', 'nodekey:a52466c9fe9fa4ce745cdada6e847a4426549015c1a71a2c59364dae5d4daf1a', NULL, 'discokey:8fc3d1d5c4e628d96cccfd9aef96160caeb6b2d21339386fc2e71f8a83e4832e', 1, NULL, 'laptop-1', 'laptop-1', 0, '100.64.0.1', 'fd7a:115c:a1e0::1', 0, 'auth_key', NULL, '2026-11-20T15:00:00.123456789Z', '2027-05-20T15:00:00.123456789Z', 1, '{"IPNVersion":"1.102.5-t0123456789-g0123456789","BackendLogID":"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef","OS":"linux","OSVersion":"6.1.0","Distro":"debian","DistroVersion":"12","Hostname":"laptop-1","GoArch":"amd64","GoVersion":"go1.26.8","Services":[{"Proto":"peerapi4","Port":41234},{"Proto":"peerapi6","Port":41234}],"NetInfo":{"WorkingUDP":true,"PreferredDERP":1,"DERPLatency":{"1-v4":0.01,"2-v4":0.02,"3-v4":0.03}}}', '["203.0.113.7:41641","192.168.1.7:41641"]', '[2,1]', 1, 130, NULL, NULL, NULL, 0, NULL, NULL, NULL, '');
INSERT INTO nodes VALUES (1, 2, 'n2CNTRL', 'mkey:4471f327d784ec25e3cbc7fb1347129cfe450b97fa9f153fb7db01d9b2a7907d', 'nodekey:15e452bc27407ec9fc2b23dfaa1664811619fec5b42375d4a3732ca0aa4d1926', NULL, 'discokey:c999d2742caa81a3f125f2d97a2d403806d5a2235ad8734a95b79518608fdd4e', 1, NULL, 'laptop-2', 'laptop-2', 0, '100.64.0.2', 'fd7a:115c:a1e0::2', 0, 'auth_key', NULL, '2026-11-20T15:00:00.123456789Z', '2027-05-20T15:00:00.123456789Z', 1, '{"IPNVersion":"1.102.5-t0123456789-g0123456789","BackendLogID":"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef","OS":"linux","OSVersion":"6.1.0","Distro":"debian","DistroVersion":"12","Hostname":"laptop-2","GoArch":"amd64","GoVersion":"go1.26.8","Services":[{"Proto":"peerapi4","Port":41234},{"Proto":"peerapi6","Port":41234}],"NetInfo":{"WorkingUDP":true,"PreferredDERP":1,"DERPLatency":{"1-v4":0.01,"2-v4":0.02,"3-v4":0.03}}}', '["203.0.113.7:41641","192.168.1.7:41641"]', '[2,1]', 1, 130, NULL, NULL, NULL, 0, NULL, NULL, NULL, '');
INSERT INTO nodes VALUES (1, 3, 'n3CNTRL', 'mkey:1387f1a8b5d3abb14cdf5d5310e12abb0ae7f4c737a848cdf8437dd434eb6356', 'nodekey:3444f724a64b831f0eb5fc484e412393576a0ef3a1237e703880e78c5444c50e', NULL, 'discokey:131c55d80ee00b137ab00784b92ec6c0dc9f29f92836ff9450c2d6c3b3e6b403', 1, NULL, 'laptop-3', 'laptop-3', 0, '100.64.0.3', 'fd7a:115c:a1e0::3', 0, 'auth_key', NULL, '2026-11-20T15:00:00.123456789Z', '2027-05-20T15:00:00.123456789Z', 1, '{"IPNVersion":"1.102.5-t0123456789-g0123456789","BackendLogID":"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef","OS":"linux","OSVersion":"6.1.0","Distro":"debian","DistroVersion":"12","Hostname":"laptop-3","GoArch":"amd64","GoVersion":"go1.26.8","Services":[{"Proto":"peerapi4","Port":41234},{"Proto":"peerapi6","Port":41234}],"NetInfo":{"WorkingUDP":true,"PreferredDERP":1,"DERPLatency":{"1-v4":0.01,"2-v4":0.02,"3-v4":0.03}}}', '["203.0.113.7:41641","192.168.1.7:41641"]', '[2,1]', 1, 130, NULL, NULL, NULL, 0, NULL, NULL, NULL, '');
INSERT INTO nodes VALUES (1, 7, 'nSeven', 'mkey:bb0016801a695ab0a1eba710855ac9735b27744ac22366a5feaaa04b4d62b04a', 'nodekey:d3ed997b9f59e083ddfa0d0524d13bfa283e3c519c79a4199227187b6fd22872', 'nodekey:267950d59e055710748bbde0442182128d9a47ed6039ab0fa86aa1fd06f5600b', 'discokey:175ba761dbbc726754a504653cbd587d5f9f8c6b9d8f1b589da7ff3ac84a4a3d', 2, '["tag:a","tag:\u2028\"b"]', 'Häns''s PC', 'haens-pc', 1, '100.64.0.7', 'fd7a:115c:a1e0::7', 1, 'cli', 3, '2026-11-20T15:00:00.123456789Z', '2126-11-20T15:00:00.123456789Z', 1, '{"OS":"linux"}', '["192.0.2.1:1","[2001:db8::1]:65535"]', '[1,2]', 900, 130, '["0.0.0.0/0","::/0"]', 'nlpub:12b53df342adc73d116e8cb4fa717ca3884343f4515677e2270fd30d85fa8b02', '0001ff', 1, '2026-11-20T15:01:00.123456789Z', '[{"name":"custom:tier","value":"gold","kind":"string","expires":"2026-11-20T15:00:00Z"}]', '[{"service":"svc:web","offered":true,"active":true,"ports":["tcp:443"],"approval":"auto","ipv4":"100.64.0.9","ipv6":"fd7a:115c:a1e0::9"}]', '00ff');
INSERT INTO revisions VALUES (1, 1, '2026-11-20T15:00:00.123456789Z', NULL, 0, '[1,2,3]', NULL, '[1]', NULL, NULL, NULL, NULL, NULL, 'HN4NRSVR6XMFWRG7IYPFSJOBUR', NULL, NULL);
INSERT INTO revisions VALUES (1, 2, '2026-11-20T15:00:00.123456789Z', '["a node joined","sample"]', 1, '[7]', NULL, '[2]', NULL, '[3]', NULL, '["kAbc"]', NULL, '3EUVZ5MTZZZQFZHSGNLR7JBXTK', '["svc:web"]', NULL);
INSERT INTO credentials VALUES (1, 'kAbc', 'federated', 'bcrypt', '0001ff', 2, '["dns","users:read"]', '["tag:x"]', 'CI', '2026-11-20T15:00:00.123456789Z', '2026-11-20T15:00:00.123456790Z', '2026-11-20T15:00:00.123456791Z', 'https://issuer.example', 'repo:*', 'aud', '{"ref":"main"}');
INSERT INTO services VALUES (1, 'svc:web', '100.64.0.9', 'fd7a:115c:a1e0::9', 'The web', 'of the office', '{"owner":"ops"}', '["tcp:443"]', '["tag:web"]', '2026-11-20T15:00:00.123456789Z', '2026-11-20T15:00:00.123456789Z');
