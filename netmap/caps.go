package netmap

import (
	"tailscale.com/tailcfg"

	"github.com/skein-vpn/skein/state"
	"github.com/skein-vpn/skein/tailnet"
)

// Capability names, in one place: the constants behind them move between versions of the module.
const (
	capFileSharing         = tailcfg.NodeCapability("https://tailscale.com/cap/file-sharing")
	capSSH                 = tailcfg.NodeCapability("https://tailscale.com/cap/ssh")
	capSuggestExitNode     = tailcfg.NodeCapability("suggest-exit-node")
	capAdmin               = tailcfg.NodeCapability("https://tailscale.com/cap/is-admin")
	capOwner               = tailcfg.NodeCapability("https://tailscale.com/cap/is-owner")
	capRandomizeClientPort = tailcfg.NodeCapability("randomize-client-port")
)

// selfCaps are the capabilities that every node has itself.
func (e *Encoder) selfCaps() tailcfg.NodeCapMap {
	m := tailcfg.NodeCapMap{}
	if e.opts.Taildrop {
		m[capFileSharing] = nil
	}
	if e.opts.RandomizeClientPort {
		m[capRandomizeClientPort] = nil
	}
	return m
}

// setAdmin tells n that its user is an administrator, or an owner, if that is so. Nothing else does, not even an attribute that
// the policy gives (tailcfg.CapabilityAdmin).
func setAdmin(m tailcfg.NodeCapMap, sn *state.Snapshot, n *state.Node) {
	delete(m, capAdmin)
	delete(m, capOwner)
	if n.Tagged() {
		return
	}
	u := sn.User(n.User)
	if u == nil || u.Status != tailnet.UserActive {
		return
	}
	switch u.Role {
	case tailnet.RoleOwner:
		m[capAdmin], m[capOwner] = nil, nil
	case tailnet.RoleAdmin:
		m[capAdmin] = nil
	}
}
