package lab

import (
	"os"
	"path/filepath"
	"strings"
	"time"
)

// StartNginx runs nginx on the host with the server configuration of a file, in which words are replaced. It answers by TLS with a
// certificate for the host's address, whose file is returned: clients have to trust it (SSL_CERT_FILE).
func (h *Host) StartNginx(config string, replace map[string]string) (certPath string) {
	h.l.t.Helper()
	dir := filepath.Join(h.dir, "nginx")
	certPath, keyPath := filepath.Join(h.dir, "nginx.crt"), filepath.Join(h.dir, "nginx.key")
	text, err := os.ReadFile(config)
	if err == nil {
		err = os.MkdirAll(dir, 0o755)
	}
	if err == nil {
		err = selfSign(h.addr, certPath, keyPath)
	}
	if err != nil {
		h.l.t.Fatalf("lab: nginx: %v", err)
	}
	conf := string(text)
	for from, to := range replace {
		conf = strings.ReplaceAll(conf, from, to)
	}
	conf = strings.NewReplacer("/etc/ssl/skein.crt", certPath, "/etc/ssl/skein.key", keyPath).Replace(conf)
	conf = "daemon off;\nuser root;\nworker_processes 1;\npid " + dir + "/pid;\nerror_log stderr warn;\nevents {}\nhttp {\naccess_log off;\n" +
		"client_body_temp_path " + dir + ";\nproxy_temp_path " + dir + ";\nfastcgi_temp_path " + dir + ";\nuwsgi_temp_path " + dir + ";\nscgi_temp_path " + dir + ";\n" + conf + "}\n"
	path := filepath.Join(h.dir, "nginx.conf")
	if err := os.WriteFile(path, []byte(conf), 0o644); err != nil {
		h.l.t.Fatalf("lab: nginx: %v", err)
	}
	p := h.newProcess("nginx", nil, "/usr/sbin/nginx", "-c", path, "-e", "stderr")
	if err := p.Start(); err != nil {
		h.l.t.Fatal(err)
	}
	h.l.Wait(30*time.Second, p.name+" listens", func() (bool, string) {
		c, err := h.Dial(h.l.t.Context(), "tcp", "127.0.0.1:443")
		if err != nil {
			return false, p.Tail(5)
		}
		c.Close()
		return true, ""
	})
	return certPath
}
