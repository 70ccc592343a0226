package config

import "strings"

// foreignKeys answers for keys of headscale, of now and of old, that Skein calls otherwise or does not have. A name that ends in
// ".*" stands for everything below it.
var foreignKeys = map[string]string{
	// Other names.
	"ephemeral_node_inactivity_timeout":    renamed("node.ephemeral.inactivity_timeout"),
	"private_key_path":                     renamed("noise.private_key_path"),
	"acl_policy_path":                      renamed("policy.path"),
	"log_level":                            renamed("log.level"),
	"db_type":                              renamed("database.type"),
	"db_path":                              renamed("database.sqlite.path"),
	"db_host":                              renamed("database.postgres.host"),
	"db_port":                              renamed("database.postgres.port"),
	"db_name":                              renamed("database.postgres.name"),
	"db_user":                              renamed("database.postgres.user"),
	"db_pass":                              renamed("database.postgres.pass"),
	"db_ssl":                               renamed("database.postgres.ssl"),
	"ip_prefixes":                          "is called prefixes.v4 and prefixes.v6 here: one network of each kind",
	"derp.server.stun.listen_addr":         renamed("derp.server.stun_listen_addr"),
	"dns_config.override_local_dns":        renamed("dns.override_local_dns"),
	"dns_config.nameservers":               renamed("dns.nameservers.global"),
	"dns_config.restricted_nameservers":    renamed("dns.nameservers.split"),
	"dns_config.domains":                   renamed("dns.search_domains"),
	"dns_config.extra_records":             renamed("dns.extra_records"),
	"dns_config.magic_dns":                 renamed("dns.magic_dns"),
	"dns_config.base_domain":               renamed("dns.base_domain"),
	"dns_config.use_username_in_magic_dns": noUserNames,
	"dns_config.*":                         "is called dns here, with names of its own; see config.yaml of the distribution",

	// Not there yet.
	"acme_url":                       laterACME,
	"acme_email":                     laterACME,
	"tls_letsencrypt_hostname":       laterACME,
	"tls_letsencrypt_cache_dir":      laterACME,
	"tls_letsencrypt_challenge_type": laterACME,
	"tls_letsencrypt_listen":         laterACME,
	"tls_client_auth_mode":           later("asking clients for certificates"),
	"cli.*":                          laterRemote,
	"cli":                            laterRemote,
	"node.routes.*":                  "is called routes here: routes.failover_after, routes.restart_grace",
	"node.routes":                    "is called routes here: routes.failover_after, routes.restart_grace",
	"policy_mode":                    renamed("policy.mode"),
	"dns.use_username_in_magic_dns":  noUserNames,

	// Not needed.
	"oidc.strip_email_domain":                   "not there: the name of a user is what stands before the @ anyway; write mail addresses into policies; take the line out",
	"oidc.map_legacy_users":                     "not there: a user with the same mail address that has not signed in yet becomes the one who signs in; take the line out",
	"grpc_listen_addr":                          noGRPC,
	"grpc_allow_insecure":                       noGRPC,
	"disable_check_updates":                     "not needed: Skein never calls home to look for updates; take the line out",
	"node_update_check_interval":                "not needed: changes reach clients at once; take the line out",
	"tuning.*":                                  "not needed: Skein has no such knobs; take the section out",
	"tuning":                                    "not needed: Skein has no such knobs; take the section out",
	"database.debug":                            "not there: use log.level: debug",
	"database.gorm.*":                           "not needed: Skein sets up its database itself; take the section out",
	"database.postgres.max_idle_conns":          "not needed: connections that idle are kept for some minutes; take the line out",
	"database.postgres.conn_max_idle_time_secs": "not needed: connections that idle are kept for some minutes; take the line out",
	"database.gorm":                             "not needed: Skein sets up its database itself; take the section out",
	"database.sqlite.write_ahead_log":           "not needed: write-ahead logging is always on; take the line out",
	"database.sqlite.wal_autocheckpoint":        "not needed: Skein sets up its database itself; take the line out",
}

const (
	laterACME   = "not in this version: certificates cannot be ordered yet; use tls_cert_path and tls_key_path, or no certificate at all"
	laterRemote = "not in this version: commands reach the server over unix_socket, on the same machine"
	noGRPC      = "not there: Skein has no gRPC; commands reach the server over unix_socket"
	noUserNames = "not there: names are unique in the whole tailnet, so the namespace is no part of them"
)

func renamed(to string) string { return "is called " + to + " here" }

func later(what string) string { return "not in this version: " + what + " is not supported yet" }

// foreign returns what to say about a key that is not ours, "" if nothing is known about it.
func foreign(key string) string {
	if text, ok := foreignKeys[key]; ok {
		return text
	}
	for k := key; ; {
		i := strings.LastIndexByte(k, '.')
		if i < 0 {
			return ""
		}
		k = k[:i]
		if text, ok := foreignKeys[k+".*"]; ok {
			return text
		}
	}
}

// hasForeignBelow reports whether keys below this one are known.
func hasForeignBelow(key string) bool {
	for k := range foreignKeys {
		if strings.HasPrefix(k, key+".") {
			return true
		}
	}
	return false
}
