package integration

import (
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skein-vpn/skein/integration/lab"
)

// The day skein was made for: from nothing to a ping of the home router out of the office.
func TestSeedDay(t *testing.T) {
	n := newNet(t, lab.EasyNAT, lab.ServerOptions{})
	srv := n.srv

	mac := n.Mac.StartTailscaled(lab.NodeOptions{})
	approve(t, n, mac.Login(srv.URL, "--accept-routes"))
	nas := n.NAS.StartTailscaled(lab.NodeOptions{})
	approve(t, n, nas.Login(srv.URL, "--accept-dns=false", "--advertise-routes="+homeLAN))
	n.join(n.Cloud)

	checkNodesList(t, srv)
	if got := mac.IP4().String() + " " + mac.IP6().String(); got != "100.64.0.1 fd7a:115c:a1e0::1" {
		t.Errorf("the client's own addresses: %s", got)
	}

	router := netip.MustParseAddr("192.168.199.1")
	mac.WaitPeer(soon, "homeDS", nil)
	srv.WaitNode(soon, "homeDS", "has advertised its route", func(lab.Row) bool {
		return n.routeEnabled(t, "2", homeLAN) != "not listed"
	})
	checkRoutes(t, srv.Skein("routes", "list", "-i", "2"), homeLAN+" | false")
	mustNotReachRouter(t, n)

	enabled := time.Now()
	checkRoutes(t, srv.Skein("routes", "enable", "-i", "2", "-r", homeLAN), homeLAN+" | true")
	mac.Ping(soon, router)
	n.measured("ping of the home router works after routes enable", time.Since(enabled))
	checkRoutes(t, srv.Skein("routes", "list", "-i", "2"), homeLAN+" | true")
	body, err := n.Mac.Get(soon, "http://192.168.199.1/")
	if want := "hello from home-router, you are 192.168.199.186\n"; err != nil || body != want {
		t.Errorf("HTTP to the home router: %q, %v; want %q", body, err, want)
	}
	if at := mac.WaitDirect(soon, nas.IP4()); at.Addr() != n.Home.Public {
		t.Errorf("the path to homeDS is %v, want the home router's outer address %v", at, n.Home.Public)
	}
	if at := nas.WaitDirect(soon, mac.IP4()); at.Addr() != n.Office.Public {
		t.Errorf("the path to junyao is %v, want the office router's outer address %v", at, n.Office.Public)
	}

	checkRoutes(t, srv.Skein("routes", "disable", "-i", "2", "-r", homeLAN), homeLAN+" | false")
	mac.WaitPeer(soon, "homeDS", not(carries(homeLAN)))
	mustNotReachRouter(t, n)
	mac.Ping(soon, nas.IP4()) // the NAS itself is still there
}

// approve does what the administrator does with the address that a client has printed.
func approve(t *testing.T, n *net, lg *lab.Login) {
	t.Helper()
	begin := time.Now()
	n.srv.Skein("nodes", "register", "--namespace", "junyao", "--key", lg.Key)
	lg.Wait(patient) // the client's own patience, should it have lost its connection meanwhile
	n.measured("client is up after the start of nodes register", time.Since(begin))
}

func mustNotReachRouter(t *testing.T, n *net) {
	t.Helper()
	if _, err := n.Mac.Ping(never, netip.MustParseAddr("192.168.199.1")); err == nil {
		t.Error("the home router answers although the route is not enabled")
	}
	if body, err := n.Mac.Get(never, "http://192.168.199.1/"); err == nil {
		t.Errorf("the home router serves %q although the route is not enabled", body)
	}
}

// spaces around cells are free.
var padding = regexp.MustCompile(` *\| *`)

func plain(table string) []string {
	var lines []string
	for line := range strings.Lines(table) {
		lines = append(lines, strings.TrimSpace(padding.ReplaceAllString(line, " | ")))
	}
	return lines
}

func checkNodesList(t *testing.T, srv *lab.Server) {
	t.Helper()
	text := srv.Skein("nodes", "list")
	const tail = ` \| false \| \d{4}-\d\d-\d\d \d\d:\d\d:\d\d \| online \| no$`
	const key = ` \| \[[A-Za-z0-9+/]{5}\] \| junyao \| `
	want := []string{
		`^ID \| Hostname \| Name \| NodeKey \| Namespace \| IP addresses \| Ephemeral \| Last seen \| Online \| Expired$`,
		`^1 \| junyao \| junyao` + key + `100\.64\.0\.1, fd7a:115c:a1e0::1` + tail,
		`^2 \| homeDS \| homeds` + key + `100\.64\.0\.2, fd7a:115c:a1e0::2` + tail,
		`^3 \| VM-0-2-centos \| vm-0-2-centos` + key + `100\.64\.0\.3, fd7a:115c:a1e0::3` + tail,
	}
	lines := plain(text)
	if len(lines) != len(want) {
		t.Fatalf("nodes list has %d lines, want %d:\n%s", len(lines), len(want), text)
	}
	for i, line := range lines {
		if !regexp.MustCompile(want[i]).MatchString(line) {
			t.Errorf("nodes list, line %d:\n%s\ndoes not match\n%s", i+1, line, want[i])
		}
	}
}

func checkRoutes(t *testing.T, text string, rows ...string) {
	t.Helper()
	if want := append([]string{"Route | Enabled"}, rows...); !slices.Equal(plain(text), want) {
		t.Errorf("table of routes is\n%s\nwant\n%s", text, strings.Join(want, "\n"))
	}
}
