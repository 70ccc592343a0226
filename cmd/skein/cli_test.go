package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"go4.org/mem"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"

	"github.com/skein-vpn/skein/api"
	"github.com/skein-vpn/skein/auth"
	"github.com/skein-vpn/skein/db"
	"github.com/skein-vpn/skein/dns"
	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
	"github.com/skein-vpn/skein/webhook"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"skein": func() { os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) },
	})
}

// seedTime is when the seed day's table was printed.
var seedTime = time.Date(2022, 9, 15, 2, 39, 21, 0, time.UTC)

// admin is a server for the command line: the real API over a real state and database, without anything for clients.
type admin struct {
	st   *state.State
	auth *auth.Auth
	acc  *auth.Accounts
	url  string // of the API for who has a key
}

// startAdmin listens on dir/skein.sock until cleanup runs what it was given.
func startAdmin(dir string, cleanup func(func())) (*admin, error) {
	ctx := context.Background()
	clock := func() time.Time { return seedTime }
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	d, err := db.Open(ctx, db.Options{Path: filepath.Join(dir, "db"), Now: clock})
	if err != nil {
		return nil, err
	}
	cleanup(func() { d.Close() })
	st, err := state.Open(ctx, state.Options{
		Store: d, Now: clock, Log: slog.New(slog.DiscardHandler),
		Addressing: state.Addressing{Prefix4: netip.MustParsePrefix("100.64.0.0/10"), Prefix6: netip.MustParsePrefix("fd7a:115c:a1e0::/48")},
		DNS:        &dns.Settings{MagicDNS: true, Base: "skein.internal"},
		DERP: &state.DERPMaps{Current: &tailcfg.DERPMap{Regions: map[int]*tailcfg.DERPRegion{
			999: {RegionID: 999, RegionCode: "skein", RegionName: "Skein", Nodes: []*tailcfg.DERPNode{
				{Name: "999-embedded", RegionID: 999, HostName: "192.0.2.1", IPv4: "192.0.2.1", IPv6: "none", DERPPort: 8080, STUNPort: -1},
			}},
		}}},
	})
	if err != nil {
		return nil, err
	}
	cleanup(st.Close)
	a := auth.New(auth.Options{State: st, Store: d, Now: clock})
	l, err := api.ListenUnix(filepath.Join(dir, socketName), 0o600)
	if err != nil {
		return nil, err
	}
	acc := auth.NewAccounts(auth.AccountsOptions{State: st, Store: d, ServerURL: "http://192.0.2.1:8080", Secret: []byte("test"), Now: clock, Log: slog.New(slog.DiscardHandler)})
	about := func() api.About { return api.About{URL: "http://192.0.2.1:8080"} }
	o := api.Options{State: st, Auth: a, Accounts: acc, Version: "0", About: about, Now: clock, Log: slog.New(slog.DiscardHandler)}
	o.Webhooks = webhook.New(webhook.Options{State: st, Store: d, Now: clock, Log: slog.New(slog.DiscardHandler)})
	o.Events = api.NewEvents(api.EventsOptions{State: st, AuditLog: a.AuditLog, Now: clock, Log: slog.New(slog.DiscardHandler)})
	run, stop := context.WithCancel(ctx)
	over := make(chan struct{})
	go func() {
		defer close(over)
		o.Events.Run(run)
	}()
	cleanup(func() { stop(); <-over })
	srv := &http.Server{Handler: api.NewServer(o)}
	o.Gate = api.NewGate(a, nil, clock)
	public := httptest.NewServer(api.NewServer(o))
	cleanup(public.Close)
	done := make(chan struct{})
	go func() {
		defer close(done)
		srv.Serve(l)
	}()
	cleanup(func() {
		srv.Close()
		<-done
	})
	return &admin{st, a, acc, public.URL}, nil
}

// short makes a node key that is shown as [text].
func short(text string) (k key.NodePublic, err error) {
	raw, err := base64.StdEncoding.DecodeString((text + strings.Repeat("A", 43))[:43] + "=")
	if err != nil || len(raw) != 32 {
		return k, fmt.Errorf("%q cannot begin a key (%w)", text, err)
	}
	return key.NodePublicFromRaw32(mem.B(raw)), nil
}

// addNode makes a node that advertises routes, with the host part of its addresses.
func (a *admin) addNode(namespace, hostname, shortKey string, host int, routes ...string) error {
	return a.st.Update(context.Background(), "test", func(tx *state.Tx) error {
		n, err := tx.NewNode(hostname)
		if err != nil {
			return err
		}
		u := tx.UserByName(namespace)
		if u == nil {
			return fmt.Errorf("no namespace %s", namespace)
		}
		if n.NodeKey, err = short(shortKey); err != nil {
			return err
		}
		n.IPv4, n.IPv6 = netip.MustParseAddr(fmt.Sprintf("100.64.0.%d", host)), netip.MustParseAddr(fmt.Sprintf("fd7a:115c:a1e0::%x", host))
		n.StableID, n.User, n.Authorized, n.RegisterMethod = fmt.Sprintf("nTEST%d", n.ID), u.ID, true, tailnet.RegisteredByCLI
		n.MachineKey = key.MachinePublicFromRaw32(mem.B(bytes.Repeat([]byte{byte(n.ID)}, 32)))
		n.Hostinfo = &tailcfg.Hostinfo{Hostname: hostname, OS: "linux", IPNVersion: "1.102.5"}
		for _, r := range routes {
			n.Hostinfo.RoutableIPs = append(n.Hostinfo.RoutableIPs, netip.MustParsePrefix(r))
		}
		return tx.PutNode(n)
	})
}

func (a *admin) setOnline(name string, online bool) error {
	return a.st.Update(context.Background(), "test", func(tx *state.Tx) error {
		n := tx.NodeByName(name)
		if n == nil {
			return fmt.Errorf("no node %s", name)
		}
		tx.SetOnline(n.ID, online)
		return nil
	})
}

// random are parts of what is printed that are different each time.
var random = []struct {
	is   *regexp.Regexp
	same string
}{
	{regexp.MustCompile(`tskey-(\w+)-\w+`), "tskey-$1-ID"},
	{regexp.MustCompile(`\b(k[0-9A-Za-z]{10,}|w[0-9A-Z]{10,})\b`), "ID"},
	{regexp.MustCompile(`[0-9a-f]{64}`), "HEX"},
}

// sameAgain is text without what is different each time, whoever runs the test.
func sameAgain(text string) string {
	for _, r := range random {
		text = r.is.ReplaceAllString(text, r.same)
	}
	if u, err := user.Current(); err == nil {
		text = strings.ReplaceAll(text, u.Username, "ME")
	}
	return text
}

type adminKey struct{}

func adminOf(ts *testscript.TestScript) *admin { return *ts.Value(adminKey{}).(**admin) }

// The sessions in testdata/script double as examples of the command line. Their own commands:
//
//	server                                               start a server on $WORK/data; its API for who has a key is at $URL
//	node NAMESPACE HOSTNAME SHORTKEY HOST [ROUTE...]      a node that has joined
//	online NAME, offline NAME                            its connection
//	waiting HOSTNAME                                     a machine that waits for a person; sets $KEY
//	ssh FROM TO USER                                     an SSH session that waits; sets $ID
//	code N skein ARGS...                                 run skein, which must end with exit code N
//	headscale DIR                                        files of a headscale server with one user and one node
//	hold FILE                                            open a database as a running server does
//	sql FILE STATEMENT                                   change a SQLite database
//	formats NAME ARGS...                                  run skein, which must succeed, in all formats; what it prints, with what differs
//	                                                      from run to run made the same, is in NAME.out
//	keep VAR                                             what was printed last, without the newline, as $VAR
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:           "testdata/script",
		UpdateScripts: os.Getenv("UPDATE_SCRIPTS") != "",
		Setup: func(env *testscript.Env) error {
			env.Setenv("SKEIN_SOCKET", "")
			env.Setenv("NO_COLOR", "")
			for _, k := range []string{envServer, envAPIKey, envAPIKeyFile} {
				env.Setenv(k, "")
			}
			env.Setenv("GORACE", "atexit_sleep_ms=0") // the race detector would make each command a second longer
			env.Values[adminKey{}] = new(*admin)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"server": func(ts *testscript.TestScript, _ bool, _ []string) {
				dir := ts.MkAbs("data")
				a, err := startAdmin(dir, ts.Defer)
				ts.Check(err)
				*ts.Value(adminKey{}).(**admin) = a
				ts.Setenv("SKEIN_SOCKET", filepath.Join(dir, socketName))
				ts.Setenv("URL", a.url)
			},
			"node": func(ts *testscript.TestScript, _ bool, args []string) {
				host, err := strconv.Atoi(args[3])
				ts.Check(err)
				ts.Check(adminOf(ts).addNode(args[0], args[1], args[2], host, args[4:]...))
			},
			"online": func(ts *testscript.TestScript, _ bool, args []string) { ts.Check(adminOf(ts).setOnline(args[0], true)) },
			"offline": func(ts *testscript.TestScript, _ bool, args []string) {
				ts.Check(adminOf(ts).setOnline(args[0], false))
			},
			"account": func(ts *testscript.TestScript, _ bool, args []string) {
				a := adminOf(ts)
				u := a.st.Snapshot().UserByName(args[0])
				link, _, err := a.acc.CreateLink(context.Background(), auth.LinkRequest{User: u.ID})
				ts.Check(err)
				_, err = a.acc.UseLink(context.Background(), path.Base(link), "", "seven brown foxes")
				ts.Check(err)
			},
			"waiting": func(ts *testscript.TestScript, _ bool, args []string) {
				k, err := short("waits")
				ts.Check(err)
				out, err := adminOf(ts).auth.Register(context.Background(), key.NewMachine().Public(), &tailcfg.RegisterRequest{
					Version: 142, NodeKey: k, Hostinfo: &tailcfg.Hostinfo{Hostname: args[0], OS: "linux"},
				}, "192.0.2.9:1234")
				ts.Check(err)
				ts.Setenv("KEY", out.Login)
			},
			"ssh": func(ts *testscript.TestScript, _ bool, args []string) {
				a := adminOf(ts)
				sn := a.st.Snapshot()
				out, err := a.auth.SSH(context.Background(), auth.SSHQuestion{
					Src: sn.NodeByName(args[0]).ID, Dst: sn.NodeByName(args[1]).ID, SSHUser: args[2], LocalUser: args[2],
				})
				ts.Check(err)
				u, err := url.Parse(out.HoldAndDelegate)
				ts.Check(err)
				if !u.Query().Has("check") {
					ts.Fatalf("the session does not wait: %+v", out)
				}
				ts.Setenv("ID", u.Query().Get("check"))
			},
			"code": func(ts *testscript.TestScript, _ bool, args []string) {
				err := ts.Exec(args[1], args[2:]...)
				got := 0
				var exit *exec.ExitError
				if errors.As(err, &exit) {
					got = exit.ExitCode()
				} else {
					ts.Check(err)
				}
				if strconv.Itoa(got) != args[0] {
					ts.Fatalf("%s ended with exit code %d, want %s", strings.Join(args[1:], " "), got, args[0])
				}
			},
			"headscale": func(ts *testscript.TestScript, _ bool, args []string) { ts.Check(writeHeadscale(ts.MkAbs(args[0]))) },
			"sql":       func(ts *testscript.TestScript, _ bool, args []string) { ts.Check(runSQL(ts.MkAbs(args[0]), args[1])) },
			"hold": func(ts *testscript.TestScript, _ bool, args []string) {
				d, err := db.Open(context.Background(), db.Options{Path: ts.MkAbs(args[0])})
				ts.Check(err)
				ts.Defer(func() { d.Close() })
			},
			"formats": func(ts *testscript.TestScript, _ bool, args []string) {
				var b strings.Builder
				for _, f := range []string{"table", "json", "json-line", "yaml"} {
					argv := args[1:]
					if f != "table" {
						argv = append(slices.Clone(argv), "-o", f)
					}
					ts.Check(ts.Exec("skein", argv...))
					fmt.Fprintf(&b, "# %s\n%s", f, ts.ReadFile("stdout"))
				}
				ts.Check(os.WriteFile(ts.MkAbs(args[0]+".out"), []byte(sameAgain(b.String())), 0o600))
			},
			"keep": func(ts *testscript.TestScript, _ bool, args []string) {
				ts.Setenv(args[0], strings.TrimSpace(ts.ReadFile("stdout")))
			},
		},
	})
}
