package lab

import "testing"

// Seed is the network of the day skein was made for: a home and an office behind a NAT each, a
// machine in the cloud, and the host of the server.
type Seed struct {
	*Lab
	Home, Office *LAN
	Router       *Host // of Home: 192.168.199.1, no Tailscale, serves HTTP on port 80
	NAS          *Host // homeDS in Home, forwards
	Mac          *Host // junyao in Office
	Cloud        *Host // VM-0-2-centos
	ServerHost   *Host // public address
}

// NewSeed builds that network, with routers of the given kind.
func NewSeed(t testing.TB, nat NAT) *Seed {
	t.Helper()
	l := New(t)
	s := &Seed{Lab: l}
	s.ServerHost = l.Cloud("server")
	s.Home = l.LAN("home-router", "192.168.199.0/24", nat)
	s.Office = l.LAN("office-router", "10.8.99.0/24", nat)
	s.Cloud = l.Cloud("VM-0-2-centos")
	s.Router = s.Home.Router
	s.Router.ServeHTTP("192.168.199.1:80", nil)
	s.NAS = s.Home.Host("homeDS", "192.168.199.186")
	s.NAS.Forward()
	s.Mac = s.Office.Host("junyao", "10.8.99.45")
	return s
}
