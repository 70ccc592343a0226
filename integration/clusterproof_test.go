package integration

import (
	"strconv"
	"strings"
)

// prove reads the database and its history: what was acknowledged is there, once, and nothing was given out twice.
func (c *servers) prove() {
	c.t.Helper()
	db := c.db
	if !db.Running() {
		db = c.standby
	}
	acked := map[string]int{}
	all := 0
	for _, l := range c.loads {
		if l.Running() {
			l.Kill()
		}
		for _, name := range l.Registered() {
			acked[name]++
			all++
		}
	}
	there := map[string]int{}
	for _, line := range strings.Split(db.Query("SELECT hostname, count(*) FROM nodes GROUP BY hostname"), "\n") {
		name, n, _ := strings.Cut(line, "|")
		there[name], _ = strconv.Atoi(n)
	}
	for name, n := range acked {
		if there[name] < n {
			c.t.Errorf("%d nodes %s were acknowledged, %d are there", n, name, there[name])
		}
	}
	for _, q := range []struct{ what, sql string }{
		{"an address belongs to two nodes", "SELECT ipv4, count(*) FROM nodes GROUP BY ipv4 HAVING count(*) > 1"},
		{"an IPv6 address belongs to two nodes", "SELECT ipv6, count(*) FROM nodes GROUP BY ipv6 HAVING count(*) > 1"},
		{"a name belongs to two nodes", "SELECT name, count(*) FROM nodes GROUP BY name HAVING count(*) > 1"},
		{"a node has no address", "SELECT id FROM nodes WHERE ipv4 IS NULL OR ipv6 IS NULL"},
		{"the history has gaps", "SELECT 1 FROM tailnets t WHERE t.rev <> (SELECT count(*) FROM revisions) OR t.rev <> (SELECT max(rev) FROM revisions)"},
		{"a commit was done twice", "SELECT commit_id, count(*) FROM revisions GROUP BY commit_id HAVING count(*) > 1"},
		{"a node is in no revision", `SELECT id FROM nodes WHERE id NOT IN
			(SELECT jsonb_array_elements_text(put_nodes::jsonb)::bigint FROM revisions WHERE put_nodes IS NOT NULL)`},
		{"a node of the history is gone", `SELECT DISTINCT x FROM (SELECT jsonb_array_elements_text(put_nodes::jsonb)::bigint AS x
			FROM revisions WHERE put_nodes IS NOT NULL) p WHERE x NOT IN (SELECT id FROM nodes)`},
		{"an id is above the counter", "SELECT id FROM nodes WHERE id > (SELECT last_node_id FROM tailnets)"},
	} {
		if out := db.Query(q.sql); out != "" {
			c.t.Errorf("%s: %s", q.what, out)
		}
	}
	c.Logf("%d registrations acknowledged, all there; %s revisions", all, db.Query("SELECT rev FROM tailnets"))
	if all < 50 {
		c.t.Errorf("only %d registrations: the load has not loaded", all)
	}
}
