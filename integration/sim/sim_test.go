package sim

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// buildSkein builds the server of this tree.
func buildSkein(t *testing.T) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "skein")
	if out, err := exec.Command("go", "build", "-o", bin, "github.com/skein-vpn/skein/cmd/skein").CombinedOutput(); err != nil {
		t.Fatalf("building the server: %v\n%s", err, out)
	}
	return bin
}

// TestSkein runs all scenarios against the server of this tree. It looks at what happened, not at how long it took.
func TestSkein(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("builds and runs the server")
	}
	bin := buildSkein(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	p, err := StartProcess(ctx, ProcessOptions{Skein: bin})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Stop()
	const n = 50
	r, err := Run(ctx, Options{
		URL: p.URL, Keys: p.Keys, EphemeralKey: p.EphemeralKey, Server: p, Approve: p.Admin.Approve,
		Policy:  policyOf(t, p, LayoutOpen, n),
		Clients: n, Changes: 10, Burst: n, Joins: 2, Flips: 1, Routes: 3, Idle: 200 * time.Millisecond,
		RoamRate: 40, RoamTime: 500 * time.Millisecond, AbuseTime: 500 * time.Millisecond,
		ChurnRate: 10, ChurnTime: time.Second, ChurnLife: 500 * time.Millisecond, quiet: 60 * time.Millisecond, Log: t.Output(),
	})
	if err != nil {
		t.Fatalf("%v\nthe server said:\n%s", err, p.Tail())
	}
	var table bytes.Buffer
	r.WriteTable(&table)
	t.Logf("\n%s", table.Bytes())
	if r.Failed() {
		t.Errorf("something went wrong; the server said:\n%s", p.Tail())
	}
	samples := map[string]int{}
	for _, row := range r.Rows {
		samples[row.What] = row.Latency.Samples
		if row.Skipped != "" {
			t.Errorf("%s was skipped: %s", row.What, row.Skipped)
		}
		if !row.Part && row.Skipped == "" && row.MemoryAfter == 0 {
			t.Errorf("%s: the server's memory was not measured", row.What)
		}
	}
	for what, want := range map[string]int{ // everyone saw everything
		"join": n, "single join: own full map": 2, "single join: seen by all": 2 * n, "endpoint change": 10 * (n - 1),
		"went offline": n - 1, "came online": n - 1, "route approval": 3 * (n - 1), "burst of 50 endpoint changes": n * (n - 1),
		"churn: join seen by all": 10 * n, "herd": n, "restart after kill -9": n,
		"endpoint changes, 40 a second": 20 * (n - 1), "2000 connections that say nothing": 20 * (n - 1), "policy change": 3 * n,
	} {
		if samples[what] != want {
			t.Errorf("%s: %d samples, want %d", what, samples[what], want)
		}
	}
	pid := p.PID()
	p.Stop()
	if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("after Stop the server's process is still there: %v", err)
	}
	if _, err := os.Stat(p.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after Stop the server's folder is still there: %v", err)
	}
}

// policyOf changes a rule of a layout's policy.
func policyOf(t *testing.T, p *Process, layout string, clients int) func(context.Context, int) error {
	l, err := NewLayout(layout, clients, 5)
	if err != nil {
		t.Fatal(err)
	}
	return func(ctx context.Context, n int) error { return p.Admin.SetPolicy(ctx, l.Policy(n)) }
}

// TestLayouts runs the layouts with a policy. Everyone must see whom the policy shows, and nobody else.
func TestLayouts(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("builds and runs the server")
	}
	bin := buildSkein(t)
	const n, users = 41, 5
	for name, want := range map[string]float64{LayoutSelf: (3*9*8 + 8*7 + 6*5) / float64(n), LayoutTeams: n - 1, LayoutCompany: companySees(n, users)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
			defer cancel()
			l, err := NewLayout(name, n, users)
			if err != nil {
				t.Fatal(err)
			}
			p, err := StartProcess(ctx, ProcessOptions{Skein: bin, Layout: l, Clients: n})
			if err != nil {
				t.Fatal(err)
			}
			defer p.Stop()
			r, err := Run(ctx, Options{
				URL: p.URL, Keys: p.Keys, Server: p, Clients: n, Partial: true, Changes: 5, Joins: 1, quiet: 60 * time.Millisecond, Log: t.Output(),
				Policy: policyOf(t, p, name, n), Scenarios: []string{"change", "herd", "policy"},
			})
			if err != nil || r.Failed() {
				t.Fatalf("%v\n%+v\nthe server said:\n%s", err, r, p.Tail())
			}
			if math.Abs(r.PeersPerClient-want) > 1e-9 {
				t.Errorf("each sees %v others on average, want %v", r.PeersPerClient, want)
			}
		})
	}
}

// companySees is how many others each client sees on average, from what the layout is meant to be.
func companySees(clients, users int) float64 {
	groups := func(u int) []int { return []int{u % 50, (7*u + 3) % 50, (u/50 + 11) % 50} }
	reaches := func(a, b Owner) bool {
		var u, t, t2 int
		switch {
		case b.Tag == "":
			return a.User != "" && a.User == b.User
		case a.Tag != "":
			_, _ = fmt.Sscanf(a.Tag, "tag:s%d", &t2)
			_, _ = fmt.Sscanf(b.Tag, "tag:s%d", &t)
			return t == (t2+1)%30
		}
		_, _ = fmt.Sscanf(a.User, "user%d", &u)
		_, _ = fmt.Sscanf(b.Tag, "tag:s%d", &t)
		return slices.ContainsFunc(groups(u), func(g int) bool { return g == 0 || t == g%30 || t == (7*g+1)%30 || t == (11*g+2)%30 })
	}
	sum := 0
	for i := range clients {
		for j := range clients {
			a, b := companyOwner(i, users), companyOwner(j, users)
			if i != j && (reaches(a, b) || reaches(b, a)) {
				sum++
			}
		}
	}
	return float64(sum) / float64(clients)
}

// TestAnyServer runs against a server that has nothing to do with Skein and sends whole maps only.
func TestAnyServer(t *testing.T) {
	t.Parallel()
	for name, f := range map[string]*fake{"plain": {}, "early payload": {early: true}, "busy": {busy: true}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, err := against(t, f, 30*time.Second, "idle", "change", "online", "burst", "herd")
			if err != nil {
				t.Fatal(err)
			}
			if r.Failed() {
				t.Errorf("%+v\n%v", r.Rows, r.Faults)
			}
		})
	}
}

// TestPartial runs where half of the nodes do not see the other half.
func TestPartial(t *testing.T) {
	t.Parallel()
	r, err := against(t, &fake{split: true}, 30*time.Second, "single-join", "change", "online", "burst", "herd")
	if err != nil {
		t.Fatal(err)
	}
	if r.Failed() {
		t.Errorf("%+v\n%v", r.Rows, r.Faults)
	}
	for _, row := range r.Rows {
		if row.What == "endpoint change" && row.Latency.Samples != 3*5 || row.What == "single join: seen by all" && row.Latency.Samples != 6 {
			t.Errorf("%s: %d samples", row.What, row.Latency.Samples)
		}
	}
}

// TestFaults checks that what a server does wrong is noticed and said.
func TestFaults(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, scenario string
		f              *fake
		want           string
	}{
		{"refused", "join", &fake{refuse: "this key is unknown"}, "the server refused the registration: this key is unknown"},
		{"nothing after the first map", "join", &fake{deaf: true}, "12 of 12 connected, 12 with a map"},
		{"itself as a peer", "join", &fake{mirror: true}, "was sent itself as a peer"},
		{"streams end", "join", &fake{drop: true}, "streams ended although nobody cut them"},
		{"expired", "join", &fake{forget: true}, "12 are not known to the server any more"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r, err := against(t, c.f, time.Second, c.scenario)
			text := ""
			if err != nil {
				text = err.Error()
			}
			if r == nil {
				t.Fatal(err)
			}
			if err == nil && !r.Failed() {
				t.Error("the run is said to have gone well")
			}
			for _, row := range r.Rows {
				text += "\n" + row.Missing
			}
			if text += "\n" + strings.Join(r.Faults, "\n"); !strings.Contains(text, c.want) {
				t.Errorf("it says %q, not %q", text, c.want)
			}
		})
	}
}

// TestMissedChange checks that a change that is never told is found, and who missed it.
func TestMissedChange(t *testing.T) {
	f := &fake{}
	url := f.start(t)
	s := &Sim{o: Options{URL: url, Keys: []string{"k"}, Clients: 4, Changes: 1, Timeout: 5 * time.Second}, reg: newRegistry(), dials: make(chan struct{}, 9)}
	s.o.defaults()
	s.decoder = newDecoder(s.reg)
	defer s.decoder.close()
	var err error
	if s.target, err = newTarget(t.Context(), url, false); err != nil {
		t.Fatal(err)
	}
	if err := s.target.fetchKey(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.ctx, s.stop = context.WithCancelCause(t.Context())
	defer s.wg.Wait()
	defer s.stop(nil)
	for i := range 4 {
		s.clients = append(s.clients, s.newClient(int32(i), "k", false))
	}
	if rows := s.join(t.Context()); rows[0].Missing != "" {
		t.Fatal(rows)
	}
	s.clients[2].pause() // it can not hear of anything
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	rows := s.change(ctx)
	if m := rows[0].Missing; !strings.Contains(m, "1 of 4 clients (sim-3)") && !strings.Contains(m, "sim-3 could not report") {
		t.Errorf("missing: %q", m)
	}
}

func TestTargets(t *testing.T) {
	for url, want := range map[string]string{
		"":                      "is not the address of a server",
		"127.0.0.1:8080":        "is not the address of a server",
		"ftp://127.0.0.1":       "is not the address of a server",
		"http://192.0.2.1:8080": "not on this machine (192.0.2.1)",
	} {
		if _, err := newTarget(t.Context(), url, false); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", url, err, want)
		}
	}
	got, err := newTarget(t.Context(), "http://192.0.2.1", true)
	if err != nil || got.addr != "192.0.2.1:80" {
		t.Errorf("with permission: %v, %v", got, err)
	}
}

func TestOptions(t *testing.T) {
	if _, err := Run(t.Context(), Options{URL: "http://127.0.0.1:1", Keys: []string{"k"}, Scenarios: []string{"herds"}}); err == nil || !strings.Contains(err.Error(), `no scenario "herds"`) {
		t.Error(err)
	}
	if _, err := Run(t.Context(), Options{URL: "http://127.0.0.1:1"}); err == nil || !strings.Contains(err.Error(), "-key") {
		t.Error(err)
	}
	if got, err := scenarioNames([]string{"herd", "change"}); err != nil || !slices.Equal(got, []string{"join", "change", "herd"}) {
		t.Error(got, err)
	}
	if err := raiseFileLimit(1 << 40); err == nil || !strings.Contains(err.Error(), "raise the limit") {
		t.Error(err)
	}
}

func TestProcessFaults(t *testing.T) {
	for _, c := range []struct {
		o    ProcessOptions
		want string
	}{
		{ProcessOptions{Skein: "/does/not/exist"}, "-skein"},
		{ProcessOptions{Command: "sh -c 'echo bad luck; exit 3'"}, "bad luck"},
	} {
		if p, err := StartProcess(t.Context(), c.o); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, %v", c.o, p, err)
		}
	}
}

func TestUpgradeAnswers(t *testing.T) {
	if err := readUpgrade(strings.NewReader("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n")); err != nil {
		t.Error(err)
	}
	err := readUpgrade(strings.NewReader("HTTP/1.1 429 Too Many Requests\r\nretry-after: 7\r\n\r\n"))
	var se *statusError
	if !errors.As(err, &se) || se.after != 7*time.Second || !strings.Contains(err.Error(), "429 Too Many Requests") {
		t.Error(err)
	}
	if err := readUpgrade(strings.NewReader(strings.Repeat("x", 10<<10))); err == nil || !strings.Contains(err.Error(), "no end") {
		t.Error(err)
	}
}

func TestLatencies(t *testing.T) {
	var d []time.Duration
	for i := range 200 {
		d = append(d, time.Duration(200-i)*time.Millisecond)
	}
	if got, want := latencyOf(d), (Latency{200, 100, 180, 198, 200}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got, want := latencyOf([]time.Duration{time.Second}), (Latency{1, 1000, 1000, 1000, 1000}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if latencyOf(nil) != (Latency{}) {
		t.Error("no samples have latencies")
	}
}

func TestReport(t *testing.T) {
	r := &Report{Clients: 2, Rows: []Row{
		{Scenario: "change", What: "endpoint change", Changes: 2, Latency: Latency{Samples: 2, P50: 1.25}},
		{Scenario: "route", What: "route approval", Skipped: "no way"},
		{Scenario: "herd", What: "herd", Missing: "1 of 2 connected"},
	}}
	var b bytes.Buffer
	r.WriteTable(&b)
	for _, want := range []string{"endpoint change        2", "route approval: skipped, no way", "herd: FAILED after 0.0 s: 1 of 2 connected"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%q is not in\n%s", want, b.String())
		}
	}
	b.Reset()
	var again Report
	if err := r.WriteJSON(&b); err != nil || json.Unmarshal(b.Bytes(), &again) != nil || len(again.Rows) != 3 || !again.Failed() {
		t.Errorf("%v\n%s", err, b.String())
	}
}
