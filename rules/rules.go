// Package rules installs the nftables ruleset that hands the packets of FTP
// control connections to a queue: ftp-queue.nft, which Text returns for nft(8),
// and the same ruleset over netlink.
//
// The ruleset is one table, inet nfq_ftphelper. Nothing outside of it is
// changed. What the kernel makes of it is in net/netfilter: nf_tables_api.c,
// nft_ct.c, nft_payload.c and nft_queue.c or xt_NFQUEUE.c, Linux 5.16 and later.
//
// All functions act in the network namespace of the calling thread, unless
// nftables.WithNetNSFd names another one.
package rules

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"
)

// A Statement is the way in which the ruleset hands a packet to the queue.
type Statement string

const (
	// Native is nftables' own queue statement (CONFIG_NFT_QUEUE).
	Native Statement = "queue"

	// Compat is the NFQUEUE target of iptables, called through nft_compat: for
	// kernels without the native statement. nft(8) can't load it, and calls a table
	// that has it "managed by iptables-nft" when it lists it.
	Compat Statement = "NFQUEUE target"
)

// expr is the statement for one queue. Packets pass while nobody listens on it.
func (s Statement) expr(queue uint16) expr.Any {
	if s == Native {
		return &expr.Queue{Num: queue, Total: 1, Flag: expr.QueueFlagBypass}
	}
	// struct xt_NFQ_info_v3 {queuenum, queues_total, flags}, padded to 8 bytes.
	info := make(xt.Unknown, 8)
	binary.NativeEndian.PutUint16(info[0:], queue)
	binary.NativeEndian.PutUint16(info[2:], 1)
	binary.NativeEndian.PutUint16(info[4:], 1) // NFQ_FLAG_BYPASS
	return &expr.Target{Name: "NFQUEUE", Rev: 3, Info: &info}
}

// Bits of the conntrack label (ct label), 0 to 127.
const (
	// ControlLabel marks the control connections that the ruleset has given a helper.
	ControlLabel = 121

	// OpaqueLabel is for the daemon to set on connections in which there is nothing left
	// to read: they are not queued any more.
	OpaqueLabel = 122
)

// label is the label with one bit set, as the kernel has it.
func label(bit int) []byte {
	l := make([]byte, 16)
	binary.NativeEndian.PutUint32(l[bit/32*4:], 1<<(bit%32))
	return l
}

// The ruleset, part by part, in the order of ftp-queue.nft.
var (
	table = &nftables.Table{Name: "nfq_ftphelper", Family: nftables.TableFamilyINet}

	ports = &nftables.Set{
		Table:        table,
		ID:           1,
		Name:         "ports",
		KeyType:      nftables.TypeInetService,
		KeyByteOrder: binaryutil.BigEndian,
		Interval:     true,
	}

	carrier = &nftables.NamedObj{
		Table: table,
		Name:  "carrier",
		Type:  nftables.ObjTypeCtHelper,
		Obj:   &expr.CtHelper{Name: "sane", L3Proto: unix.NFPROTO_INET, L4Proto: unix.IPPROTO_TCP},
	}

	prerouting = baseChain("prerouting", nftables.ChainHookPrerouting)
	output     = baseChain("output", nftables.ChainHookOutput)
	control    = &nftables.Chain{Table: table, Name: "control"}
)

func baseChain(name string, hook *nftables.ChainHook) *nftables.Chain {
	accept := nftables.ChainPolicyAccept
	return &nftables.Chain{
		Table:    table,
		Name:     name,
		Type:     nftables.ChainTypeFilter,
		Hooknum:  hook,
		Priority: nftables.ChainPriorityRef(-150),
		Policy:   &accept,
	}
}

// elements are the members of the set: where each range begins, and where it has
// ended. The first one is where no range has begun yet; nft(8) writes it too.
func elements(ranges []PortRange) []nftables.SetElement {
	elems := []nftables.SetElement{{Key: binaryutil.BigEndian.PutUint16(0), IntervalEnd: true}}
	for _, r := range ranges {
		elems = append(elems, nftables.SetElement{Key: binaryutil.BigEndian.PutUint16(r.First)})
		if r.Last < 65535 {
			elems = append(elems, nftables.SetElement{Key: binaryutil.BigEndian.PutUint16(r.Last + 1), IntervalEnd: true})
		}
	}
	return elems
}

// A rule is what the kernel runs, and how nft(8) writes it.
type rule struct {
	chain *nftables.Chain
	text  string
	exprs []expr.Any
}

// hashSeed is any number but 0, for which the kernel would make up another one in each rule.
const hashSeed = 1

// queueRules hand packets to the queues. With several, a connection's ct id picks one: it is the
// same in both directions, whatever NAT does to the addresses.
func queueRules(c Config, s Statement) []rule {
	const carriesPayload = "ct state established @ih,0,8 >= 0x0"
	match := append(state(expr.CtStateBitESTABLISHED),
		&expr.Payload{Base: unix.NFT_PAYLOAD_INNER_HEADER, Offset: 0, Len: 1, DestRegister: 1},
		&expr.Cmp{Op: expr.CmpOpGte, Register: 1, Data: []byte{0}},
	)
	if c.queues() == 1 {
		return []rule{{
			text:  fmt.Sprintf("%s queue flags bypass to %d", carriesPayload, c.Queue),
			exprs: append(match, s.expr(c.Queue)),
		}}
	}
	var fan []rule
	for i := range c.queues() {
		fan = append(fan, rule{
			text: fmt.Sprintf("%s jhash ct id mod %d seed %#x %d queue flags bypass to %d",
				carriesPayload, c.queues(), hashSeed, i, c.Queue+i),
			exprs: append(slices.Clip(match),
				&expr.Ct{Key: ctKeyID, Register: 2},
				&expr.Hash{SourceRegister: 2, DestRegister: 1, Length: 4, Modulus: uint32(c.queues()), Seed: hashSeed, Type: expr.HashTypeJenkins},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(uint32(i))},
				s.expr(c.Queue+i),
			),
		})
	}
	return fan
}

// ctKeyID is NFT_CT_ID, for which the library has no name.
const ctKeyID expr.CtKey = 23

// state matches packets whose conntrack state has the bit.
func state(bit uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{
			SourceRegister: 1, DestRegister: 1, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(bit),
			Xor:  make([]byte, 4),
		},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

// rules are those of all chains, in order.
func rules(c Config, s Statement) []rule {
	// nft_ct reads one byte of a direction and the library writes four, which is the
	// same for "original", and costs a line in the kernel's log ("attribute type 3
	// has an invalid length").
	toControl := rule{
		text: "meta l4proto tcp ct original proto-dst @ports jump control",
		exprs: []expr.Any{
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
			&expr.Ct{Key: expr.CtKeyPROTODST, Direction: 0, Register: 1},
			&expr.Lookup{SourceRegister: 1, SetName: ports.Name},
			&expr.Verdict{Kind: expr.VerdictJump, Chain: control.Name},
		},
	}
	in := func(c *nftables.Chain, r rule) rule { r.chain = c; return r }

	all := []rule{
		in(prerouting, rule{
			text: `iif "lo" return`,
			exprs: []expr.Any{
				&expr.Meta{Key: expr.MetaKeyIIF, Register: 1},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(1)}, // LOOPBACK_IFINDEX
				&expr.Verdict{Kind: expr.VerdictReturn},
			},
		}),
		in(prerouting, toControl),
		in(output, toControl),
		in(control, rule{
			text:  `ct helper set "carrier"`,
			exprs: []expr.Any{&expr.Objref{Type: int(carrier.Type), Name: carrier.Name}},
		}),
		in(control, rule{
			text: fmt.Sprintf("ct label %d return", OpaqueLabel),
			exprs: []expr.Any{
				&expr.Ct{Key: expr.CtKeyLABELS, Register: 1},
				&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 16, Mask: label(OpaqueLabel), Xor: make([]byte, 16)},
				&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 16)},
				&expr.Verdict{Kind: expr.VerdictReturn},
			},
		}),
		in(control, rule{
			text: fmt.Sprintf("ct state new ct label set %d", ControlLabel),
			exprs: append(state(expr.CtStateBitNEW),
				&expr.Immediate{Register: 1, Data: label(ControlLabel)},
				&expr.Ct{Key: expr.CtKeyLABELS, Register: 1, SourceRegister: true},
			),
		}),
	}
	for _, r := range queueRules(c, s) {
		all = append(all, in(control, r))
	}
	return all
}
