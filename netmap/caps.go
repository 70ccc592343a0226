package netmap

import "tailscale.com/tailcfg"

// Capability names, in one place: the constants behind them move between versions of the module.
const (
	capFileSharing         = tailcfg.NodeCapability("https://tailscale.com/cap/file-sharing")
	capSSH                 = tailcfg.NodeCapability("https://tailscale.com/cap/ssh")
	capSuggestExitNode     = tailcfg.NodeCapability("suggest-exit-node")
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
