package main

import (
	"net/http"
	"net/http/pprof"

	"github.com/gorilla/mux"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// metricsHandler is what the metrics listener serves: /metrics and /debug/pprof. It shows what strangers must not see, so
// it has a port of its own.
func (s *server) metricsHandler() http.Handler {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	gauge := func(name, help string, f func() float64) {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "skein", Name: name, Help: help}, f))
	}
	gauge("revision", "Number of the last committed change.", func() float64 { return float64(s.state.Snapshot().Rev) })
	gauge("nodes", "Registered nodes.", func() float64 { return float64(len(s.state.Snapshot().Nodes())) })
	gauge("nodes_online", "Nodes that have a map session.", func() float64 {
		n := 0
		for _, x := range s.state.Snapshot().Nodes() {
			if x.Online {
				n++
			}
		}
		return float64(n)
	})
	gauge("users", "Namespaces.", func() float64 { return float64(len(s.state.Snapshot().Users())) })
	gauge("map_sessions", "Open map sessions.", func() float64 { return float64(s.control.Sessions()) })
	gauge("routes_carried", "Prefixes that a node carries now.", func() float64 { return float64(s.state.Snapshot().Routes.Len()) })
	if s.relay != nil {
		gauge("relay_clients", "Open relay sessions.", func() float64 { return float64(s.relay.Stats().Sessions) })
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
