package webhook

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/skein-vpn/skein/tailnet"
)

// Event is something that happened, in the shape that Tailscale's receivers know.
type Event struct {
	Timestamp time.Time         `json:"timestamp"`
	Version   int               `json:"version"` // 1
	Type      string            `json:"type"`
	Tailnet   string            `json:"tailnet"`
	Message   string            `json:"message"`
	Data      map[string]string `json:"data"`
}

// category stands for all events of it in a subscription.
var categories = map[string][]string{
	"categoryTailnetManagement": {
		"nodeCreated", "nodeNeedsApproval", "nodeApproved", "nodeKeyExpiringInOneDay", "nodeKeyExpired", "nodeDeleted", "nodeSigned", "nodeNeedsSignature",
		"policyUpdate", "userCreated", "userNeedsApproval", "userSuspended", "userRestored", "userDeleted", "userApproved", "userRoleUpdated",
	},
	"categoryDeviceMisconfigurations": {"subnetIPForwardingNotEnabled", "exitNodeIPForwardingNotEnabled"},
}

// neverSent are events that Skein knows the names of and has no occasion for: there is no Tailnet Lock.
var neverSent = []string{"nodeSigned", "nodeNeedsSignature"}

// EventTypes are all that a webhook can subscribe to, sorted.
func EventTypes() []string {
	var out []string
	for c, es := range categories {
		out = append(append(out, c), es...)
	}
	slices.Sort(out)
	return out
}

// NeverSent are the types of events that are never sent, sorted.
func NeverSent() []string { return slices.Sorted(slices.Values(neverSent)) }

// wants reports whether a subscription holds the type of event.
func wants(subscribed []string, event string) bool {
	return event == "test" || slices.ContainsFunc(subscribed, func(s string) bool { return s == event || slices.Contains(categories[s], event) })
}

// eventsOf are what an entry of the audit log tells other programs; mostly none.
func eventsOf(e *tailnet.AuditEntry, name, serverURL string) []Event {
	var before, after struct {
		Approved *bool  `json:"approved"`
		Status   string `json:"status"`
		Role     string `json:"role"`
		Name     string `json:"name"`
		Subnets  bool   `json:"subnets"`
		ExitNode bool   `json:"exitNode"`
	}
	_ = json.Unmarshal(e.Before, &before) // entries of other kinds have other fields, or none
	_ = json.Unmarshal(e.After, &after)
	data := map[string]string{"actor": e.Actor, "url": serverURL + "/admin"}
	switch e.TargetKind {
	case "node":
		data["nodeID"], data["deviceName"] = e.TargetID, e.Target
	case "user":
		data["user"] = e.Target
	}
	var out []Event
	add := func(typ, message string, args ...any) {
		out = append(out, Event{Timestamp: e.At.UTC(), Version: 1, Type: typ, Tailnet: name, Message: fmt.Sprintf(message, args...), Data: data})
	}
	switch e.Action {
	case "node.create":
		add("nodeCreated", "Node %s was created", e.Target)
		if after.Approved != nil && !*after.Approved {
			add("nodeNeedsApproval", "Node %s needs approval", e.Target)
		}
	case "node.update":
		if before.Approved != nil && after.Approved != nil && *after.Approved {
			add("nodeApproved", "Node %s was approved", e.Target)
		}
	case "node.delete":
		add("nodeDeleted", "Node %s was deleted", e.Target)
	case "node.key_expiring":
		add("nodeKeyExpiringInOneDay", "The key of node %s expires in one day", e.Target)
	case "node.key_expired":
		add("nodeKeyExpired", "The key of node %s has expired", e.Target)
	case "node.ip_forwarding_off":
		if after.Subnets {
			add("subnetIPForwardingNotEnabled", "Node %s offers subnet routes, but IP forwarding is off there", e.Target)
		}
		if after.ExitNode {
			add("exitNodeIPForwardingNotEnabled", "Node %s offers itself as an exit node, but IP forwarding is off there", e.Target)
		}
	case "policy.update", "policy.reload":
		add("policyUpdate", "The policy was changed")
	case "user.create":
		add("userCreated", "User %s was created", e.Target)
		if after.Status == string(tailnet.UserWaiting) {
			add("userNeedsApproval", "User %s needs approval", e.Target)
		}
	case "user.delete":
		add("userDeleted", "User %s was deleted", e.Target)
	case "user.update":
		switch {
		case after.Status == string(tailnet.UserSuspended):
			add("userSuspended", "User %s was suspended", e.Target)
		case after.Status == "active" && before.Status == string(tailnet.UserSuspended):
			add("userRestored", "User %s was restored", e.Target)
		case after.Status == "active" && before.Status == string(tailnet.UserWaiting):
			add("userApproved", "User %s was approved", e.Target)
		}
		if after.Role != "" {
			data["oldRoles"], data["newRoles"] = before.Role, after.Role
			add("userRoleUpdated", "User %s is %s now", e.Target, after.Role)
		}
	}
	return out
}

func jsonList(ss []string) string {
	b, err := json.Marshal(ss)
	if err != nil {
		return "[]"
	}
	return string(b)
}
