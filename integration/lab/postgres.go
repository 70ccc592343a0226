package lab

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/skein-vpn/skein/db/pgtest"
)

// Postgres is a PostgreSQL server on a host.
type Postgres struct {
	*Process
	Host *Host
	URL  string // of its database, from anywhere in the lab
	at   *pgtest.Files
}

// postgresPort is where PostgreSQL listens on its host.
const postgresPort = 5432

// StartPostgres runs a PostgreSQL on the host, open to the whole lab, and waits until it answers.
func (h *Host) StartPostgres() *Postgres {
	h.l.t.Helper()
	return h.startPostgres(pgtest.Prepare(h.l.t, pgtest.Options{Addr: "*", Port: postgresPort, Trust: "all"}))
}

func (h *Host) startPostgres(at *pgtest.Files) *Postgres {
	h.l.t.Helper()
	p := &Postgres{Host: h, at: at, URL: fmt.Sprintf("postgres://skein@%s/postgres?sslmode=disable", netip.AddrPortFrom(h.addr, postgresPort))}
	p.Process = h.newProcess("postgres", nil, at.Command[0], at.Command[1:]...)
	p.StartAgain()
	return p
}

// StartStandby runs a copy of p on the host, which follows it, and makes p wait with each commit until the copy has it.
func (h *Host) StartStandby(p *Postgres) *Postgres {
	h.l.t.Helper()
	name := "standby_" + cleanName(h.name)
	at, copyIt := p.at.Copy(h.l.t, fmt.Sprintf("host=%s port=%d user=skein application_name=%s", p.Host.addr, postgresPort, name))
	if r := h.run(h.l.t.Context(), nil, copyIt[0], copyIt[1:]...); r.Err != nil {
		h.l.t.Fatal(r)
	}
	standby := h.startPostgres(at)
	p.Query("ALTER SYSTEM SET synchronous_standby_names = '" + name + "'")
	p.Query("SELECT pg_reload_conf()")
	h.l.Wait(30*time.Second, "the standby is synchronous", func() (bool, string) {
		s := p.Query("SELECT sync_state FROM pg_stat_replication")
		return s == "sync", s
	})
	return standby
}

// Promote makes a standby the database that takes changes, and waits until it is.
func (p *Postgres) Promote() {
	p.Host.l.t.Helper()
	if s := p.Query("SELECT pg_promote()"); s != "t" {
		p.Host.l.t.Fatalf("lab: %s: pg_promote: %s", p.name, s)
	}
}

// StartAgain starts it after Kill or Shutdown and waits until it answers.
func (p *Postgres) StartAgain() {
	p.Host.l.t.Helper()
	if err := p.Start(); err != nil {
		p.Host.l.t.Fatal(err)
	}
	p.Host.l.Wait(30*time.Second, p.name+" answers", func() (bool, string) {
		r := p.Query("SELECT 1")
		return r == "1", r
	})
}

// Query runs SQL with psql and returns what it prints: a line for each row, columns separated by "|".
func (p *Postgres) Query(sql string) string {
	p.Host.l.t.Helper()
	r := p.Host.run(p.Host.l.t.Context(), nil, "psql", "-XAtq", p.URL, "-c", sql)
	if r.Err != nil {
		return r.String()
	}
	return strings.TrimSpace(r.Stdout)
}

// Pause stops PostgreSQL where it is: connections stay open and nothing answers. Resume lets it go on.
func (p *Postgres) Pause() {
	for _, pid := range pgtest.Processes(p.Pid()) {
		_ = syscall.Kill(pid, syscall.SIGSTOP)
	}
}

// Resume ends Pause.
func (p *Postgres) Resume() {
	for _, pid := range slices.Backward(pgtest.Processes(p.Pid())) {
		_ = syscall.Kill(pid, syscall.SIGCONT)
	}
}

// Ignore makes the host send nothing to an address any more: whoever is there is not answered, and learns nothing of why. Heed
// undoes it.
func (h *Host) Ignore(addr netip.Addr) {
	h.l.t.Helper()
	if err := h.nl.RouteReplace(blackhole(addr)); err != nil {
		h.l.t.Fatalf("lab: %s ignores %s: %v", h.name, addr, err)
	}
}

// Heed undoes Ignore.
func (h *Host) Heed(addr netip.Addr) {
	h.l.t.Helper()
	if err := h.nl.RouteDel(blackhole(addr)); err != nil {
		h.l.t.Fatalf("lab: %s heeds %s: %v", h.name, addr, err)
	}
}

func blackhole(addr netip.Addr) *netlink.Route {
	return &netlink.Route{Dst: netlink.NewIPNet(addr.AsSlice()), Type: unix.RTN_BLACKHOLE}
}
