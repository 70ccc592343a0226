// Skeinsim puts a coordination server under load with thousands of simulated clients and says what came of it.
//
//	skeinsim -skein ./skein -n 1000                      start a Skein, run everything, stop it
//	skeinsim -url http://127.0.0.1:8080 -key KEY -n 300 -pid $(pidof skein) -scenario change,burst,herd
//	skeinsim -server-cmd 'other-server --data {dir} --port {port}' -key-cmd 'other-server makekey --data {dir}' -n 100
//
// What the scenarios are and what the figures mean is said in package sim; skeinsim -help lists the flags. The exit status is 1
// if a scenario did not reach its goal or the server did something wrong, 2 if nothing could be run.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/skein-vpn/skein/integration/sim"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// settings are what the flags say beyond sim.Options.
type settings struct {
	o               sim.Options
	process         sim.ProcessOptions
	pid             int
	keysFile        string
	approve, policy string
	layout          string
	users           int
	json            string
	scenarios, keys string
}

func parse(args []string, stderr io.Writer) (*settings, error) {
	s := &settings{}
	f := flag.NewFlagSet("skeinsim", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.Usage = func() {
		fmt.Fprintf(stderr, "Usage:\n  skeinsim -skein PATH [flags]\n  skeinsim -url URL -key KEY [flags]\n\nScenarios: %s\n\nFlags:\n", strings.Join(sim.ScenarioNames(), ", "))
		f.PrintDefaults()
	}
	f.StringVar(&s.process.Skein, "skein", "", "start this Skein `binary` in a temporary folder, and everything that follows from it")
	f.StringVar(&s.process.Command, "server-cmd", "", "`command` that starts the server; {dir}, {port}, {metrics} and {url} stand for a folder, free ports and the address")
	f.StringVar(&s.process.KeyCommand, "key-cmd", "", "`command` that prints a reusable pre-auth key, after the server has started")
	f.StringVar(&s.process.EphemeralKeyCommand, "ephemeral-key-cmd", "", "`command` that prints a reusable key for ephemeral nodes")
	f.BoolVar(&s.process.Keep, "keep", false, "keep the folder of the server that was started")
	f.StringVar(&s.o.URL, "url", "", "`URL` of a server that runs already")
	f.StringVar(&s.keys, "key", "", "reusable pre-auth `key`; several, separated by commas, are used in turn")
	f.StringVar(&s.keysFile, "keys-file", "", "`file` with one reusable pre-auth key a line, used in turn")
	f.StringVar(&s.o.EphemeralKey, "ephemeral-key", "", "reusable pre-auth `key` for ephemeral nodes")
	f.IntVar(&s.pid, "pid", 0, "process of the server at -url, to be measured")
	f.StringVar(&s.scenarios, "scenario", "all", "`list` of scenarios, separated by commas; join always runs")
	f.StringVar(&s.layout, "layout", sim.LayoutOpen, "who the clients of a -skein are, and its policy: "+strings.Join(sim.Layouts, ", "))
	f.IntVar(&s.users, "users", 1000, "`number` of users of the layouts self and company")
	f.IntVar(&s.o.Clients, "n", 100, "`number` of clients")
	f.IntVar(&s.o.Concurrency, "c", 32, "`number` of clients that join at the same time")
	f.IntVar(&s.o.Dials, "dials", 1000, "`number` of connections that are being made at the same time")
	f.BoolVar(&s.o.Partial, "partial", false, "not everyone sees everyone: a policy is in force")
	f.IntVar(&s.o.Changes, "changes", 20, "`number` of endpoint changes")
	f.IntVar(&s.o.Burst, "burst", 100, "`number` of endpoint changes at once")
	f.IntVar(&s.o.Joins, "joins", 5, "`number` of single joins")
	f.IntVar(&s.o.Flips, "flips", 3, "`number` of clients that go offline and come back")
	f.IntVar(&s.o.Routes, "routes", 5, "`number` of route approvals")
	f.DurationVar(&s.o.Idle, "idle", 0, "`time` to be idle (default 1m0s)")
	f.Float64Var(&s.o.ChurnRate, "churn-rate", 5, "ephemeral `nodes` that join in a second")
	f.DurationVar(&s.o.ChurnTime, "churn-time", 0, "`time` of churn (default 20s)")
	f.DurationVar(&s.o.ChurnLife, "churn-life", 0, "`time` that an ephemeral node stays (default 3s)")
	f.DurationVar(&s.o.Timeout, "timeout", 0, "`time` that a scenario may take (default 2m0s)")
	f.Float64Var(&s.o.RoamRate, "roam-rate", 10, "endpoint `changes` in a second, of roam")
	f.DurationVar(&s.o.RoamTime, "roam-time", 0, "`time` of roam (default 20s)")
	f.DurationVar(&s.o.AbuseTime, "abuse-time", 0, "`time` of each kind of abuse (default 10s)")
	f.StringVar(&s.approve, "approve-cmd", "", "`command` that approves a route; {id}, {name} and {route} stand for node and route")
	f.StringVar(&s.policy, "policy-cmd", "", "`command` that changes the policy; {n} stands for 1, 2, 3")
	f.BoolVar(&s.o.AllowRemote, "allow-remote", false, "permit load on a server that is not on this machine")
	f.StringVar(&s.json, "json", "", "write the report as JSON to this `file` too; - is stdout, instead of the table")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	if f.NArg() > 0 {
		return nil, fmt.Errorf("%q is not a flag", f.Arg(0))
	}
	starts := s.process.Skein != "" || s.process.Command != ""
	switch {
	case s.process.Skein != "" && s.process.Command != "":
		return nil, errors.New("-skein and -server-cmd contradict each other")
	case starts && s.o.URL != "":
		return nil, errors.New("-url is for a server that runs already, -skein and -server-cmd start one")
	case starts && s.pid != 0:
		return nil, errors.New("-pid is for a server that runs already")
	case s.process.Skein == "" && s.layout != sim.LayoutOpen:
		return nil, errors.New("-layout is for a server that -skein starts; elsewhere the layout is what the server has: -keys-file, -partial")
	case s.users < 1:
		return nil, errors.New("it takes one user at least (-users)")
	case !starts && s.o.URL == "":
		return nil, errors.New("which server? -skein PATH starts one, -url URL names one (-help shows more)")
	}
	s.o.Scenarios = strings.FieldsFunc(s.scenarios, func(r rune) bool { return r == ',' || r == ' ' })
	s.o.Keys = strings.FieldsFunc(s.keys, func(r rune) bool { return r == ',' || r == ' ' })
	if s.keysFile != "" {
		b, err := os.ReadFile(s.keysFile)
		if err != nil {
			return nil, fmt.Errorf("-keys-file: %w", err)
		}
		for line := range strings.Lines(string(b)) {
			if line = strings.TrimSpace(line); line != "" {
				s.o.Keys = append(s.o.Keys, line)
			}
		}
	}
	return s, nil
}

// run is the command; it returns the exit status.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	s, err := parse(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		fmt.Fprintln(stderr, "skeinsim:", err)
		return 2
	}
	report, err := s.run(ctx, stderr)
	if report != nil {
		if werr := s.write(report, stdout); werr != nil {
			err = errors.Join(err, werr)
		}
	}
	switch {
	case err != nil:
		fmt.Fprintln(stderr, "skeinsim:", err)
		if report == nil {
			return 2
		}
		return 1
	case report.Failed():
		return 1
	}
	return 0
}

// run starts the server if that is asked for, and runs the scenarios.
func (s *settings) run(ctx context.Context, stderr io.Writer) (*sim.Report, error) {
	if err := s.o.Check(); err != nil {
		return nil, err
	}
	s.o.Log = stderr
	if f, ok := stderr.(*os.File); ok {
		if st, err := f.Stat(); err == nil {
			s.o.Terminal = st.Mode()&os.ModeCharDevice != 0
		}
	}
	if s.pid != 0 {
		s.o.Server = sim.Foreign(s.pid)
	}
	var p *sim.Process
	if s.o.URL == "" {
		layout, err := sim.NewLayout(s.layout, s.o.Clients, s.users)
		if err != nil {
			return nil, fmt.Errorf("-layout: %w", err)
		}
		s.process.Layout, s.process.Clients = layout, s.o.Clients
		s.o.Partial = s.o.Partial || layout.Partial
		if p, err = sim.StartProcess(ctx, s.process); err != nil {
			return nil, err
		}
		defer p.Stop()
		s.o.URL, s.o.Server = p.URL, p
		s.o.Keys = slices.Concat(s.o.Keys, p.Keys)
		if s.o.EphemeralKey == "" {
			s.o.EphemeralKey = p.EphemeralKey
		}
		if p.Admin != nil {
			s.o.Approve = p.Admin.Approve
			s.o.Policy = func(ctx context.Context, n int) error { return p.Admin.SetPolicy(ctx, layout.Policy(n)) }
		}
	}
	if s.approve != "" {
		s.o.Approve = sim.ApproveCommand(s.approve, p)
	}
	if s.policy != "" {
		s.o.Policy = sim.PolicyCommand(s.policy, p)
	}
	report, err := sim.Run(ctx, s.o)
	if p != nil && ctx.Err() == nil && (err != nil || report.Failed()) {
		fmt.Fprintf(stderr, "The server said last:\n%s\n", p.Tail())
	}
	return report, err
}

// write writes the report where it was asked for.
func (s *settings) write(r *sim.Report, stdout io.Writer) error {
	if s.json == "-" {
		return r.WriteJSON(stdout)
	}
	w := bufio.NewWriter(stdout)
	fmt.Fprintln(w)
	r.WriteTable(w)
	if err := w.Flush(); err != nil || s.json == "" {
		return err
	}
	f, err := os.Create(s.json)
	if err != nil {
		return err
	}
	if err := r.WriteJSON(f); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}
