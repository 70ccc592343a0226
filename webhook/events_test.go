package webhook

import (
	"encoding/json"
	"testing"

	"github.com/skein-vpn/skein/tailnet"
)

// A router that forwards no packets is told as what it offers: subnet routes, an exit node, or both.
func TestForwardingEvents(t *testing.T) {
	for after, want := range map[string]string{
		`{"subnets":true,"exitNode":false}`: "subnetIPForwardingNotEnabled ",
		`{"subnets":false,"exitNode":true}`: "exitNodeIPForwardingNotEnabled ",
		`{"subnets":true,"exitNode":true}`:  "subnetIPForwardingNotEnabled exitNodeIPForwardingNotEnabled ",
	} {
		got := ""
		for _, e := range eventsOf(&tailnet.AuditEntry{Action: "node.ip_forwarding_off", TargetKind: "node", TargetID: "7", Target: "nas", After: json.RawMessage(after)}, "default", "https://skein.example.com") {
			got += e.Type + " "
			if e.Data["nodeID"] != "7" || !wants([]string{"categoryDeviceMisconfigurations"}, e.Type) || wants([]string{"categoryTailnetManagement"}, e.Type) {
				t.Errorf("%+v", e)
			}
		}
		if got != want {
			t.Errorf("%s: %s, want %s", after, got, want)
		}
	}
	if es := eventsOf(&tailnet.AuditEntry{Action: "node.ip_forwarding_on", TargetKind: "node"}, "default", ""); len(es) != 0 {
		t.Errorf("%+v", es)
	}
}
