package cluster

import (
	"testing"
	"time"

	"github.com/skein-vpn/skein/tailnet"
)

// A server that was started again is one server; one that is gone is told once; two alive with one name are two.
func TestCurrentServers(t *testing.T) {
	at := func(minute int) time.Time { return time.Date(2026, 3, 1, 12, minute, 0, 0, time.UTC) }
	got := ""
	for _, s := range current([]tailnet.Server{
		{ID: "1", Name: "a", Started: at(1)}, {ID: "2", Name: "a", Started: at(2), Alive: true}, {ID: "3", Name: "a", Started: at(3)},
		{ID: "4", Name: "b", Started: at(2)}, {ID: "5", Name: "b", Started: at(1)},
		{ID: "6", Name: "c", Started: at(1), Alive: true}, {ID: "7", Name: "c", Started: at(2), Alive: true},
	}) {
		got += s.ID
	}
	if got != "2467" {
		t.Errorf("listed: %s", got)
	}
}
