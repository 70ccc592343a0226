package lab

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Traffic is a class of packets that Block drops.
type Traffic struct {
	proto byte   // IP protocol number; 0 is every protocol
	port  uint16 // port of either end; 0 is every port
}

// AnyTraffic is everything, in both directions. Unlike a cut cable it leaves the carrier on, so the
// host itself notices nothing.
var AnyTraffic = Traffic{}

// UDP is all of UDP, as networks that allow the web only drop it.
var UDP = Traffic{proto: unix.IPPROTO_UDP}

// TCPPort is TCP from or to the given port.
func TCPPort(port uint16) Traffic { return Traffic{proto: unix.IPPROTO_TCP, port: port} }

// UDPPort is UDP from or to the given port.
func UDPPort(port uint16) Traffic { return Traffic{proto: unix.IPPROTO_UDP, port: port} }

type blockRule struct {
	addr netip.Addr
	what Traffic
}

// Block makes the host's gateway drop the given traffic of the host silently, in both directions and
// also for flows that exist, until Unblock. Hosts of one LAN still reach each other: their bridge
// forwards no packets at the level of IP.
func (h *Host) Block(what ...Traffic) {
	h.l.t.Helper()
	for _, w := range what {
		h.blocks = append(h.blocks, blockRule{h.outer, w})
	}
	h.applyBlocks()
}

// Unblock undoes every Block of this host.
func (h *Host) Unblock() {
	h.l.t.Helper()
	h.blocks = nil
	h.applyBlocks()
}

func (h *Host) applyBlocks() {
	h.l.t.Helper()
	gw := h.gateway
	known := false
	for _, b := range gw.blockers {
		known = known || b == h
	}
	if !known {
		gw.blockers = append(gw.blockers, h)
	}
	var rules []blockRule
	for _, b := range gw.blockers {
		rules = append(rules, b.blocks...)
	}
	if err := blockRules(gw.ns.netFD, rules); err != nil {
		h.l.t.Fatalf("lab: block traffic of %s: %v", h.name, err)
	}
}

// blockRules replaces what the gateway with the network namespace netFD drops.
func blockRules(netFD int, rules []blockRule) error {
	c, err := nftables.New(nftables.WithNetNSFd(netFD))
	if err != nil {
		return err
	}
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "labblock"})
	c.FlushTable(table)
	before := nftables.ChainPriorityRef(*nftables.ChainPriorityFilter - 10)
	// input and output too: the LAN's host may speak with the router itself, and the router of a LAN
	// with a server on the internet host.
	for name, hook := range map[string]*nftables.ChainHook{
		"forward": nftables.ChainHookForward, "input": nftables.ChainHookInput, "output": nftables.ChainHookOutput,
	} {
		chain := c.AddChain(&nftables.Chain{Name: name, Table: table, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: before})
		for _, r := range rules {
			for _, exprs := range r.matches() {
				c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: append(exprs, &expr.Verdict{Kind: expr.VerdictDrop})})
			}
		}
	}
	return c.Flush()
}

// matches returns the rule's conditions: the host as sender or receiver, the port at either end.
func (r blockRule) matches() (all [][]expr.Any) {
	for _, addrOffset := range []uint32{12, 16} { // source, destination address in the IPv4 header
		m := []expr.Any{
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: addrOffset, Len: 4},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: r.addr.AsSlice()},
		}
		if r.what.proto != 0 {
			m = append(m,
				&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{r.what.proto}})
		}
		if r.what.port == 0 {
			all = append(all, m)
			continue
		}
		for _, portOffset := range []uint32{0, 2} { // source, destination port
			all = append(all, append(m[:len(m):len(m)],
				&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: portOffset, Len: 2},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, r.what.port)}))
		}
	}
	return all
}

// natRules makes the namespace netFD translate what leaves by the interface wan, and drop what comes
// in there without having been asked for. The drop matters for hole punching: an answer to an
// unexpected packet would leave a connection-tracking entry behind that takes the very port which
// the host inside is about to use.
func natRules(netFD int, wan string, nat NAT) error {
	c, err := nftables.New(nftables.WithNetNSFd(netFD))
	if err != nil {
		return err
	}
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "labnat"})
	post := c.AddChain(&nftables.Chain{
		Name: "postrouting", Table: table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})
	c.AddRule(&nftables.Rule{Table: table, Chain: post, Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: ifname(wan)},
		&expr.Masq{Random: nat == HardNAT, FullyRandom: nat == HardNAT},
	}})
	for name, hook := range map[string]*nftables.ChainHook{
		"forward": nftables.ChainHookForward, "input": nftables.ChainHookInput,
	} {
		chain := c.AddChain(&nftables.Chain{
			Name: name, Table: table, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: nftables.ChainPriorityFilter,
		})
		fromWAN := []expr.Any{
			&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: ifname(wan)},
		}
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: append(fromWAN[:2:2],
			&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
			&expr.Bitwise{
				SourceRegister: 1, DestRegister: 1, Len: 4,
				Mask: binaryutil.NativeEndian.PutUint32(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED),
				Xor:  binaryutil.NativeEndian.PutUint32(0),
			},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(0)},
			&expr.Verdict{Kind: expr.VerdictDrop},
		)})
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	return nil
}

// ifname is an interface's name as the kernel compares it: 16 bytes, zero-padded.
func ifname(name string) []byte {
	b := make([]byte, 16)
	copy(b, name)
	return b
}
