package sim

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Report is what a run has found.
type Report struct {
	URL     string    `json:"url"`
	Begin   time.Time `json:"begin"`
	Clients int       `json:"clients"`
	CPUs    int       `json:"cpus"` // that the simulator may use
	Rows    []Row     `json:"rows"`

	// PeersPerClient is how many other steady clients each sees, on average, at the end of join.
	PeersPerClient float64 `json:"peersPerClient"`

	// Memory of the server, in bytes: before anybody joined, and for each client that is connected and idle (from the
	// scenario idle, else at the end of join). 0: not measured.
	EmptyMemory     int64 `json:"emptyMemory"`
	MemoryPerClient int64 `json:"memoryPerClient"`

	SimSeconds float64  `json:"simCpuSeconds"` // of the whole run
	SimMemory  int64    `json:"simMemory"`     // bytes, at the end
	SimPeak    int64    `json:"simPeak"`       // bytes
	LostCount  int64    `json:"lostStreams"`   // that ended although nobody cut them
	Faults     []string `json:"faults"`        // what the server did wrong, the first few
}

// Row is one kind of measurement of one scenario.
type Row struct {
	Scenario string `json:"scenario"`
	What     string `json:"what"`
	Clients  int    `json:"clients"`
	// Changes is how many things happened: clients that joined, endpoint changes, approvals.
	Changes int `json:"changes"`

	Latency Latency `json:"latency"`
	Spread  Latency `json:"spread"` // since the first client knew

	Seconds   float64 `json:"seconds"`          // from the beginning until the goal was reached
	ServerCPU float64 `json:"serverCpuSeconds"` // until the server rested
	PerChange float64 `json:"serverCpuMsPerChange"`
	SimCPU    float64 `json:"simCpuSeconds"`

	// Bytes on the wire, on average of the clients.
	ReceivedPerClient          float64 `json:"receivedPerClient"`
	ReceivedPerClientAndChange float64 `json:"receivedPerClientAndChange"`
	SentPerClient              float64 `json:"sentPerClient"`
	Frames                     int64   `json:"frames"` // map responses, without keep-alives, to all clients
	KeepAlives                 int64   `json:"keepAlives"`

	// Memory of the server in bytes: at the beginning, at the end, and the most in between.
	MemoryBefore int64 `json:"memoryBefore"`
	MemoryAfter  int64 `json:"memoryAfter"`
	MemoryPeak   int64 `json:"memoryPeak"`

	// Part: the row shows another latency of the row before, which has the rest.
	Part    bool   `json:"part,omitempty"`
	Missing string `json:"missing,omitempty"` // who misses what; empty: the goal was reached
	Skipped string `json:"skipped,omitempty"` // why nothing was done
	Note    string `json:"note,omitempty"`
}

// Latency are percentiles in milliseconds.
type Latency struct {
	Samples int     `json:"samples"`
	P50     float64 `json:"p50"`
	P90     float64 `json:"p90"`
	P99     float64 `json:"p99"`
	Max     float64 `json:"max"`
}

// latencyOf are the percentiles of d, by nearest rank.
func latencyOf(d []time.Duration) Latency {
	if len(d) == 0 {
		return Latency{}
	}
	slices.Sort(d)
	at := func(p int) float64 {
		return float64(d[max(0, (len(d)*p+99)/100-1)]) / 1e6
	}
	return Latency{Samples: len(d), P50: at(50), P90: at(90), P99: at(99), Max: at(100)}
}

// fanOut sets the latencies of changes that viewers saw.
func (r *Row) fanOut(list []*goal) {
	var all, spread []time.Duration
	for _, g := range list {
		l := g.latencies()
		if len(l) == 0 {
			continue
		}
		first := slices.Min(l)
		all = append(all, l...)
		for _, d := range l {
			spread = append(spread, d-first)
		}
	}
	r.Latency, r.Spread = latencyOf(all), latencyOf(spread)
}

func newReport(s *Sim) *Report {
	r := &Report{URL: s.o.URL, Begin: time.Now().UTC().Truncate(time.Second), Clients: s.o.Clients, CPUs: runtime.GOMAXPROCS(0)}
	r.EmptyMemory = s.usage().serverMemory
	return r
}

// finish brings the report up to date after a scenario.
func (r *Report) finish(s *Sim) {
	r.SimSeconds, _ = cpuOf(os.Getpid())
	r.SimMemory, r.SimPeak, _ = memoryOf(os.Getpid())
	r.LostCount = s.lost.Load()
	if loss := s.lastLoss.Load(); loss != nil && r.LostCount > 0 {
		text := fmt.Sprintf("%d streams ended although nobody cut them, the last one that of %s: %v", r.LostCount, loss.name, loss.err)
		r.Faults = append(r.Faults, text)
	}
	if r.PeersPerClient == 0 {
		sum := 0
		for _, c := range s.clients {
			c.mu.Lock()
			sum += c.peers
			c.mu.Unlock()
		}
		r.PeersPerClient = float64(sum) / float64(len(s.clients))
	}
	if last := r.Rows[len(r.Rows)-1]; (last.Scenario == "join" || last.Scenario == "idle") && r.EmptyMemory > 0 && last.Skipped == "" {
		r.MemoryPerClient = (last.MemoryAfter - r.EmptyMemory) / int64(r.Clients)
	}
}

// Failed reports whether a scenario did not reach its goal or the server did something wrong.
func (r *Report) Failed() bool {
	return len(r.Faults) > 0 || slices.ContainsFunc(r.Rows, func(row Row) bool { return row.Missing != "" })
}

// WriteJSON writes the report for machines.
func (r *Report) WriteJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(r)
}

// columns of the table.
var columns = []struct {
	title string
	cell  func(*Row) string
}{
	{"scenario", func(r *Row) string { return r.What }},
	{"changes", func(r *Row) string { return strconv.Itoa(r.Changes) }},
	{"p50 ms", func(r *Row) string { return ms(r.Latency.P50, r.Latency.Samples) }},
	{"p90 ms", func(r *Row) string { return ms(r.Latency.P90, r.Latency.Samples) }},
	{"p99 ms", func(r *Row) string { return ms(r.Latency.P99, r.Latency.Samples) }},
	{"max ms", func(r *Row) string { return ms(r.Latency.Max, r.Latency.Samples) }},
	{"spread p99 ms", func(r *Row) string { return ms(r.Spread.P99, r.Spread.Samples) }},
	{"took s", func(r *Row) string { return number(!r.Part, "%.2f", r.Seconds) }},
	{"server CPU s", func(r *Row) string { return number(!r.Part, "%.2f", r.ServerCPU) }},
	{"CPU ms/change", func(r *Row) string { return number(!r.Part && r.Changes > 0, "%.1f", r.PerChange) }},
	{"B/client", func(r *Row) string { return number(!r.Part, "%.0f", r.ReceivedPerClient) }},
	{"B/client/change", func(r *Row) string { return number(!r.Part && r.Changes > 0, "%.0f", r.ReceivedPerClientAndChange) }},
	{"server MB", func(r *Row) string { return mb(r.MemoryAfter) }},
	{"peak MB", func(r *Row) string { return mb(r.MemoryPeak) }},
	{"sim CPU s", func(r *Row) string { return number(!r.Part, "%.2f", r.SimCPU) }},
}

// number is the number, or a dash where there is none.
func number(there bool, format string, v float64) string {
	if !there {
		return "-"
	}
	return fmt.Sprintf(format, v)
}

func ms(v float64, samples int) string {
	switch {
	case samples == 0:
		return "-"
	case v < 100:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.0f", v)
}

func mb(n int64) string {
	if n == 0 {
		return "-"
	}
	return fmt.Sprintf("%.0f", float64(n)/(1<<20))
}

// line is the row in one line, for the log.
func (r *Row) line() string {
	what := r.What
	switch {
	case r.Skipped != "":
		return what + ": skipped, " + r.Skipped
	case r.Missing != "":
		return fmt.Sprintf("%s: FAILED after %.1f s: %s", what, r.Seconds, r.Missing)
	}
	text := what
	if !r.Part {
		text = fmt.Sprintf("%s: %.2f s, server CPU %.2f s", what, r.Seconds, r.ServerCPU)
	}
	if r.Latency.Samples > 0 {
		text += fmt.Sprintf(", p50 %s ms, p99 %s ms", ms(r.Latency.P50, 1), ms(r.Latency.P99, 1))
	}
	return text
}

// WriteTable writes the report for people.
func (r *Report) WriteTable(w io.Writer) {
	var rows [][]string
	var head []string
	for _, c := range columns {
		head = append(head, c.title)
	}
	rows = append(rows, head)
	for i := range r.Rows {
		if r.Rows[i].Skipped != "" {
			continue
		}
		var cells []string
		for _, c := range columns {
			cells = append(cells, c.cell(&r.Rows[i]))
		}
		rows = append(rows, cells)
	}
	width := make([]int, len(columns))
	for _, cells := range rows {
		for i, c := range cells {
			width[i] = max(width[i], len(c))
		}
	}
	for _, cells := range rows {
		var b strings.Builder
		for i, c := range cells {
			if i == 0 {
				fmt.Fprintf(&b, "%-*s", width[i], c)
			} else {
				fmt.Fprintf(&b, "  %*s", width[i], c)
			}
		}
		fmt.Fprintln(w, strings.TrimRight(b.String(), " "))
	}
	fmt.Fprintf(w, "\n%d clients on %d CPUs, each sees %.4g others on average, %s\n", r.Clients, r.CPUs, r.PeersPerClient, r.URL)
	if r.MemoryPerClient > 0 {
		fmt.Fprintf(w, "server: %s MB with nobody connected, %.1f KB more for each idle client\n", mb(r.EmptyMemory), float64(r.MemoryPerClient)/1024)
	}
	fmt.Fprintf(w, "simulator: %.1f CPU s, %s MB (peak %s MB)\n", r.SimSeconds, mb(r.SimMemory), mb(r.SimPeak))
	for i := range r.Rows {
		row := &r.Rows[i]
		switch {
		case row.Skipped != "", row.Missing != "":
			fmt.Fprintln(w, row.line())
		case row.Note != "":
			fmt.Fprintf(w, "%s: %s\n", row.What, row.Note)
		}
	}
	for _, f := range r.Faults {
		fmt.Fprintln(w, "fault: "+f)
	}
}
