package main

import (
	"net/http"
	"net/http/pprof"
	"sync/atomic"

	"github.com/gorilla/mux"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/skein-vpn/skein/derp"
)

// metric is one figure. docs/operations.md lists them all.
type metric struct {
	name  string // without the prefix skein_; counters end in _total
	help  string
	count bool // a counter; otherwise a gauge
	value func() float64
}

func gauge(name, help string, f func() float64) metric { return metric{name, help, false, f} }

func counter(name, help string, v *atomic.Int64) metric {
	return metric{name, help, true, func() float64 { return float64(v.Load()) }}
}

func counterFunc(name, help string, f func() int64) metric {
	return metric{name, help, true, func() float64 { return float64(f()) }}
}

// metrics are the server's figures.
func (s *server) metrics() []metric {
	out := []metric{
		gauge("revision", "Number of the last committed change.", func() float64 { return float64(s.state.Snapshot().Rev) }),
		gauge("nodes", "Registered nodes.", func() float64 { return float64(len(s.state.Snapshot().Nodes())) }),
		gauge("nodes_online", "Nodes that have a map session.", func() float64 {
			n := 0
			for _, x := range s.state.Snapshot().Nodes() {
				if x.Online {
					n++
				}
			}
			return float64(n)
		}),
		gauge("users", "Namespaces.", func() float64 { return float64(len(s.state.Snapshot().Users())) }),
		gauge("map_sessions", "Open map sessions.", func() float64 { return float64(s.control.Sessions()) }),
		gauge("routes_carried", "Prefixes that a node carries now.", func() float64 { return float64(s.state.Snapshot().Routes.Len()) }),
	}
	out = append(out, s.clientMetrics()...)
	out = append(out, counterFunc("connections_refused_total", "Connections closed at once, because their address has too many (limits.connections_per_address).", func() (n int64) {
		for _, l := range s.listeners {
			if l, ok := l.(*derp.Listener); ok {
				n += l.Refused()
			}
		}
		return n
	}))
	out = append(out, s.clusterMetrics()...)
	if s.stun != nil {
		out = append(out,
			counterFunc("stun_answered_total", "STUN requests answered.", s.stun.Answered),
			counterFunc("stun_ignored_total", "Packets to the STUN port that were no request.", s.stun.Ignored))
	}
	if s.relay != nil {
		out = append(out, relayMetrics(s.relay.Stats)...)
	}
	return out
}

// clusterMetrics are those of a server among several. One that is alone is among one.
func (s *server) clusterMetrics() []metric {
	truth := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	return []metric{
		gauge("servers", "Servers that are alive on the database, this one included.", func() float64 {
			if s.cluster == nil {
				return 1
			}
			return float64(s.cluster.Alive())
		}),
		gauge("server_leads", "1 on the server that does what only one may do.", func() float64 { return truth(s.leads()) }),
		gauge("server_aside", "1 while this server has stepped aside, because it does not reach the database.", func() float64 {
			return truth(s.cluster != nil && s.cluster.Aside())
		}),
		gauge("clock_ahead_seconds", "How far this machine's clock is ahead of the database's; negative: behind.", func() float64 { return s.clock.Skew().Seconds() }),
		gauge("relay_links_unreached", "Relays of other servers that do not answer this one.", func() float64 {
			if s.relay == nil {
				return 0
			}
			_, n := s.relay.Links()
			return float64(n)
		}),
	}
}

// clientMetrics are those of package control.
func (s *server) clientMetrics() []metric {
	c := s.control.Counters()
	return []metric{
		gauge("connections", "Open Noise connections of clients.", func() float64 { return float64(c.Connections.Load()) }),
		counter("handshakes_total", "Noise handshakes that succeeded.", &c.Handshakes),
		counter("handshakes_failed_total", "Noise handshakes that failed.", &c.BadHandshakes),
		counter("registrations_total", "Register requests answered with a node.", &c.Registrations),
		counter("registrations_rejected_total", "Register requests answered with an error, such as an unknown key.", &c.RejectedRegs),
		counter("registrations_limited_total", "Register requests over limits.registrations_per_minute.", &c.RefusedRegs),
		counter("full_maps_total", "Full maps sent.", &c.FullMaps),
		counter("deltas_total", "Changes sent to map sessions.", &c.Deltas),
		counter("keep_alives_total", "Keep-alives sent to idle map sessions.", &c.KeepAlives),
		counter("reports_total", "Reports of nodes about themselves in which something was new.", &c.Reports),
		counter("requests_held_back_total", "Maps and reports delayed, because their node has had too many in the last minute.", &c.HeldBack),
		counter("requests_too_many_total", "Maps and reports refused, because too many of their node's were delayed already.", &c.TooMany),
		counter("streams_replaced_total", "Map sessions ended by a newer one of the same node.", &c.ReplacedStreams),
		counter("foreign_requests_total", "Requests of a machine for a node of another one.", &c.ForeignNodes),
		counter("rounds_total", "Times that map sessions were looked at for changes.", &c.Rounds),
		counter("sessions_woken_total", "Map sessions woken because a change may concern their client.", &c.Woken),
		{"round_seconds_total", "Time until most sessions had sent what they were woken for, where there are many.", true,
			func() float64 { return float64(c.RoundNanos.Load()) / 1e9 }},
		counter("http2_floods_total", "Connections cut for floods of frames without use, or for not reading the answers.", &c.H2.Floods),
		counter("http2_faults_total", "Connections cut because what came was not HTTP/2.", &c.H2.Faults),
		counter("http2_streams_refused_total", "Requests over the limit of 100 at once on a connection.", &c.H2.RefusedStreams),
		counter("http2_streams_starved_total", "Responses ended because the client took nothing of them for a minute.", &c.H2.StarvedStreams),
		counter("connections_silent_total", "Connections cut because the client gave no sign of life.", &c.H2.Silent),
		counter("connections_stuck_total", "Connections cut because a write took longer than a minute.", &c.H2.Stuck),
	}
}

// relayMetrics are those of the embedded relay.
func relayMetrics(stats func() derp.Stats) []metric {
	is := func(name, help string, f func(derp.Stats) int64) metric {
		return counterFunc(name, help, func() int64 { return f(stats()) })
	}
	return []metric{
		gauge("relay_clients", "Open relay sessions.", func() float64 { return float64(stats().Sessions) }),
		gauge("relay_nodes", "Nodes that are connected to the relay.", func() float64 { return float64(stats().Nodes) }),
		is("relay_refused_total", "Relay sessions refused because their key is no node's.", func(s derp.Stats) int64 { return s.Refused }),
		is("relay_cut_total", "Relay sessions ended because their node is gone.", func(s derp.Stats) int64 { return s.Cut }),
		is("relay_packets_received_total", "Packets that the relay has received.", func(s derp.Stats) int64 { return s.PacketsReceived }),
		is("relay_packets_sent_total", "Packets that the relay has delivered.", func(s derp.Stats) int64 { return s.PacketsSent }),
		is("relay_packets_dropped_total", "Packets that the relay has dropped.", func(s derp.Stats) int64 { return s.PacketsDropped }),
		is("relay_received_bytes_total", "Bytes that the relay has received.", func(s derp.Stats) int64 { return s.BytesReceived }),
		is("relay_sent_bytes_total", "Bytes that the relay has delivered.", func(s derp.Stats) int64 { return s.BytesSent }),
	}
}

// metricsHandler is what the metrics listener serves: /metrics and /debug/pprof. It shows what strangers must not see, so
// it has a port of its own.
func (s *server) metricsHandler() http.Handler {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	for _, m := range s.metrics() {
		name := prometheus.BuildFQName("skein", "", m.name)
		if m.count {
			reg.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: m.help}, m.value))
		} else {
			reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: m.help}, m.value))
		}
	}
	r := mux.NewRouter()
	r.Handle("/metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	r.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	r.HandleFunc("/debug/pprof/profile", pprof.Profile)
	r.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	r.HandleFunc("/debug/pprof/trace", pprof.Trace)
	r.PathPrefix("/debug/pprof/").HandlerFunc(pprof.Index)
	return r
}
