package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skein-vpn/skein/integration/lab"
)

// Two servers behind nginx, with the configuration that the documentation gives: clients join, hear of changes, use the relay, and
// go on when one of the servers is killed, all through the proxy.
func TestBehindNginx(t *testing.T) {
	lab.Need(t)
	if _, err := exec.LookPath("nginx"); err != nil {
		if os.Getenv("SKEIN_LAB_REQUIRED") != "" {
			t.Fatal("nginx is not installed (apt-get install nginx-light)")
		}
		t.Skip("no test behind nginx: it is not installed (apt-get install nginx-light)")
	}
	t.Parallel()
	l := lab.New(t)
	db, proxy := l.Cloud("db").StartPostgres(), l.Cloud("proxy")
	url := "https://" + proxy.Addr().String()
	c := &servers{t: t, Lab: l, db: db}
	for i := range 2 {
		name := fmt.Sprintf("s%d", i+1)
		c.s[i] = l.Private(name).StartServer(lab.ServerOptions{URL: url, Env: []string{
			"SKEIN_DATABASE_TYPE=postgres", "SKEIN_DATABASE_POSTGRES_URL=" + db.URL, "SKEIN_CLUSTER_TELL_CLIENTS=false",
			"SKEIN_TRUSTED_PROXIES=" + proxy.Addr().String() + "/32", "SKEIN_DERP_SERVER_IPV4=" + proxy.Addr().String(),
		}})
	}
	cert := proxy.StartNginx("../docs/nginx.conf", map[string]string{
		"192.0.2.11": c.s[0].Host.Addr().String(), "192.0.2.12": c.s[1].Host.Addr().String(), "vpn.example.com": "_",
	})
	c.s[0].Skein("namespaces", "create", "junyao")

	trust := lab.NodeOptions{Env: []string{"SSL_CERT_FILE=" + cert}}
	var nodes []*lab.Node
	for i, name := range []string{"alpha", "gamma"} {
		n := l.Cloud(name).StartTailscaled(trust)
		n.Up(url, "--auth-key="+c.s[i].Key("junyao"))
		nodes = append(nodes, n)
	}
	a, g := nodes[0], nodes[1]
	c.measured("a change, through the proxy", c.follows(0, "gamma", a))
	a.Host.Block(lab.UDP)
	g.Host.Block(lab.UDP)
	a.Ping(patient, g.IP4())
	a.Host.Unblock()
	g.Host.Unblock()

	c.s[0].Kill()
	begin := time.Now()
	c.follows(1, "gamma", a)
	c.measured("clients are at the other server, through the proxy", time.Since(begin))
	for _, name := range []string{"alpha", "gamma"} {
		c.s[1].WaitNode(patient, name, "online", func(r lab.Row) bool { return r != nil && r["Online"] == "online" })
	}
	// The server believes the proxy's word about where requests come from.
	log := c.s[0].Log() + c.s[1].Log()
	if !strings.Contains(log, "remote="+a.Host.Addr().String()) {
		t.Errorf("no server has seen %s:\n%s", a.Host.Addr(), filepath.Base(c.s[0].Tail(20)))
	}
}
