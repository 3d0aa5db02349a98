// Package rules installs the nftables rules that hand the packets of FTP control
// connections to a queue. There are four rulesets: ftp-queue.nft, ftp-queue-lean.nft,
// ftp-cthelper.nft and ftp-monitor.nft, which Text returns for nft(8), and the same over netlink.
//
// Each but the last attaches a conntrack helper to a new connection before NAT, and reads its packets
// after routing, filtering and NAT, as the kernel's own helper does: what this host drops
// is not read, and a packet has the addresses that it leaves with.
//
// Each of them is one table, inet nfq_ftphelper. Nothing outside of it is
// changed. What the kernel makes of it is in net/netfilter: nf_tables_api.c,
// nft_ct.c, nft_payload.c and nft_queue.c or xt_NFQUEUE.c, Linux 5.16 and later.
//
// All functions act in the network namespace of the calling thread, unless
// nftables.WithNetNSFd names another one.
package rules

import (
	"bytes"
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

// Expr is the statement for one queue. Packets pass while nobody listens on it.
func (s Statement) Expr(queue uint16) expr.Any {
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

// AgainPriority is the priority (meta priority in nftables) that the ruleset Lean gives to a reply
// for which none is due: one that the daemon has rewritten before, sent again. The daemon sees it
// from Linux 5.18 on (NFQA_PRIORITY).
const AgainPriority = 0x2127_0119

// Bits of the conntrack label (ct label), 0 to 127.
const (
	// InLineLabel is for the daemon to set on recognised connections that it forgets in the middle of a line.
	InLineLabel = 115

	// ActiveLabel marks connections whose PORT or EPRT is in the queue: the ruleset Lean sets it, and queues all that the
	// client sends until the daemon clears it, so that nothing overtakes the line.
	ActiveLabel = 116

	// RecognisedLabel is for the daemon to set on connections that it has recognised as FTP: it read them from the
	// client's first byte up to the login. No rule looks at it; it outlives the daemon.
	RecognisedLabel = 118

	// EditedLabel is for the daemon to set on connections in which it has rewritten a 227 or 229,
	// which may be sent again: the ruleset Lean queues those replies from then on.
	EditedLabel = 119

	// AskedLabel marks connections whose client has sent PASV or EPSV, so that a 227 or 229 is due: the ruleset Lean
	// sets it, and queues all that the server sends until the daemon clears it, so that nothing overtakes the reply.
	AskedLabel = 120

	// ControlLabel marks the control connections that the ruleset has given a helper; only their
	// packets are read.
	ControlLabel = 121

	// ProxiedLabel marks connections that this host opens without a socket, in a client's name: SYNPROXY
	// does. It takes the server's SYN-ACK itself, which must not be delayed.
	ProxiedLabel = 123

	// OpaqueLabel is for the daemon to set on connections in which there is nothing left
	// to read: they are not queued any more. The ruleset Lean sets it too, on what is no FTP.
	OpaqueLabel = 122
)

// label is the label with some bits set, as the kernel has it.
func label(bit int) []byte {
	l := make([]byte, 16)
	binary.NativeEndian.PutUint32(l[bit/32*4:], 1<<(bit%32))
	return l
}

// The rulesets, part by part, in the order of the files.
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

	prerouting = baseChain("prerouting", nftables.ChainHookPrerouting, -150)
	output     = baseChain("output", nftables.ChainHookOutput, -150)
	attach     = &nftables.Chain{Table: table, Name: "attach"}

	postrouting = baseChain("postrouting", nftables.ChainHookPostrouting, 300)
	input       = baseChain("input", nftables.ChainHookInput, 300)
	control     = &nftables.Chain{Table: table, Name: "control"}
	saneRequest = &nftables.Chain{Table: table, Name: "sane_request"}

	commands = &nftables.Chain{Table: table, Name: "commands"}
	pending  = &nftables.Chain{Table: table, Name: "pending"}
	replies  = &nftables.Chain{Table: table, Name: "replies"}
	read     = &nftables.Chain{Table: table, Name: "read"}
)

// carrier is the helper that rules attach, under a name that does not depend on its type.
func carrier(t *nftables.Table, helper string) *nftables.NamedObj {
	return &nftables.NamedObj{
		Table: t,
		Name:  "carrier",
		Type:  nftables.ObjTypeCtHelper,
		Obj:   &expr.CtHelper{Name: helper, L3Proto: unix.NFPROTO_INET, L4Proto: unix.IPPROTO_TCP},
	}
}

func baseChain(name string, hook *nftables.ChainHook, priority nftables.ChainPriority) *nftables.Chain {
	accept := nftables.ChainPolicyAccept
	return &nftables.Chain{
		Table:    table,
		Name:     name,
		Type:     nftables.ChainTypeFilter,
		Hooknum:  hook,
		Priority: &priority,
		Policy:   &accept,
	}
}

// chains are those of the ruleset.
func chains(c Config) []*nftables.Chain {
	all := []*nftables.Chain{prerouting, output, attach}
	switch c.Ruleset {
	case Monitor:
		return []*nftables.Chain{postrouting, input, control}
	case CTHelper:
		return all
	case Lean:
		return append(all, postrouting, input, saneRequest, control, commands, pending, replies, read)
	}
	return append(all, postrouting, input, saneRequest, control)
}

// elements are the members of the set. The first one is where no range has begun yet; nft(8)
// writes it too.
func elements(ranges []PortRange) []nftables.SetElement {
	return append([]nftables.SetElement{{Key: binaryutil.BigEndian.PutUint16(0), IntervalEnd: true}}, bounds(ranges)...)
}

// bounds are where each range begins, and where it has ended.
func bounds(ranges []PortRange) []nftables.SetElement {
	var elems []nftables.SetElement
	for _, r := range ranges {
		elems = append(elems, nftables.SetElement{Key: binaryutil.BigEndian.PutUint16(r.First)})
		if r.Last < 65535 {
			elems = append(elems, nftables.SetElement{Key: binaryutil.BigEndian.PutUint16(r.Last + 1), IntervalEnd: true})
		}
	}
	return elems
}

// A rule is what the kernel runs, and how nft(8) lists it.
type rule struct {
	chain *nftables.Chain
	part
}

// A part of a rule is a match or a statement.
type part struct {
	text  string
	exprs []expr.Any
}

// in is the rule of a chain that consists of parts.
func in(chain *nftables.Chain, parts ...part) rule {
	r := rule{chain: chain}
	for i, p := range parts {
		if i > 0 {
			r.text += " "
		}
		r.text += p.text
		r.exprs = append(r.exprs, p.exprs...)
	}
	return r
}

var (
	fromLoopback = part{`iif "lo"`, []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIF, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(1)}, // LOOPBACK_IFINDEX
	}}

	// nft_ct reads one byte of a direction and the library writes four, which is the
	// same for "original", and costs a line in the kernel's log ("attribute type 3
	// has an invalid length").
	toControlPort = part{"meta l4proto tcp ct original proto-dst @ports", []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Ct{Key: expr.CtKeyPROTODST, Direction: 0, Register: 1},
		&expr.Lookup{SourceRegister: 1, SetName: ports.Name},
	}}

	// The daemon looks connections up in zone 0.
	otherZone = part{"ct zone != 0", []expr.Any{
		&expr.Ct{Key: expr.CtKeyZONE, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{0, 0}},
	}}

	// A packet that enters a VRF's device passes postrouting again with the interface that it leaves by, or
	// input. The kernel confirms and adjusts it there (in_vrf_postrouting of nf_conntrack_proto.c). Most
	// interfaces of hardware have no kind, so that no comparison matches, != neither.
	toVRF = part{`meta oifkind "vrf"`, []expr.Any{
		&expr.Meta{Key: metaKeyOIFKIND, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: append([]byte("vrf"), make([]byte, 13)...)}, // IFNAMSIZ
	}}

	inOriginal = direction("original", 0) // IP_CT_DIR_ORIGINAL
	inReply    = direction("reply", 1)    // IP_CT_DIR_REPLY

	hasPayload = hasByte(0)

	// No user has that number. A packet without a socket has no user to compare.
	hasSocket = part{"meta skuid != 4294967295", []expr.Any{
		&expr.Meta{Key: expr.MetaKeySKUID, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{0xff, 0xff, 0xff, 0xff}},
	}}

	// SANE_NET_START, the request that nf_conntrack_sane.c reacts to.
	beginsAsSane = part{"@ih,0,32 0x00000007", begins([]byte{0, 0, 0, 7})}

	isSYNACK = part{"tcp flags & (syn | ack) == syn | ack", []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Payload{Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1, DestRegister: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{0x12}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{0x12}},
	}}

	isSYN = part{"tcp flags syn", []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Payload{Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1, DestRegister: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{0x02}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{0}},
	}}

	isNew         = state("new", expr.CtStateBitNEW)
	isEstablished = state("established", expr.CtStateBitESTABLISHED)

	// What TLS begins with: a record of a handshake, of any version (RFC 8446 section 5.1).
	isTLS = part{"@ih,0,16 0x1603", begins([]byte{0x16, 0x03})}

	leave = part{"return", []expr.Any{&expr.Verdict{Kind: expr.VerdictReturn}}}

	setHelper = part{`ct helper set "carrier"`, []expr.Any{
		&expr.Objref{Type: int(nftables.ObjTypeCtHelper), Name: "carrier"},
	}}
)

// jumpTo continues in another chain, and returns from it.
func jumpTo(chain *nftables.Chain) part {
	return part{"jump " + chain.Name, []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain.Name}}}
}

// hasByte matches packets whose payload has a byte number i, counted from 0, of any value.
func hasByte(i uint32) part {
	return part{fmt.Sprintf("@ih,%d,8 >= 0x0", 8*i), []expr.Any{
		&expr.Payload{Base: unix.NFT_PAYLOAD_INNER_HEADER, Offset: i, Len: 1, DestRegister: 1},
		&expr.Cmp{Op: expr.CmpOpGte, Register: 1, Data: []byte{0}},
	}}
}

// continueIn goes on in another chain, and does not come back.
func continueIn(chain *nftables.Chain) part {
	return part{"goto " + chain.Name, []expr.Any{&expr.Verdict{Kind: expr.VerdictGoto, Chain: chain.Name}}}
}

func setLabel(bit int) part {
	return part{fmt.Sprintf("ct label set %d", bit), []expr.Any{
		&expr.Immediate{Register: 1, Data: label(bit)},
		&expr.Ct{Key: expr.CtKeyLABELS, Register: 1, SourceRegister: true},
	}}
}

// direction matches packets of one direction of their connection.
func direction(name string, number byte) part {
	return part{"ct direction " + name, []expr.Any{
		&expr.Ct{Key: expr.CtKeyDIRECTION, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{number}},
	}}
}

// state matches packets whose conntrack state has the bit.
func state(name string, bit uint32) part {
	return part{"ct state " + name, []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{
			SourceRegister: 1, DestRegister: 1, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(bit),
			Xor:  make([]byte, 4),
		},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}}
}

// begins matches packets whose payload begins with data, up to 16 bytes. A shorter payload does not.
// What is done to the payload first is for steps to do.
func begins(data []byte, steps ...expr.Any) []expr.Any {
	load := &expr.Payload{Base: unix.NFT_PAYLOAD_INNER_HEADER, Offset: 0, Len: uint32(len(data)), DestRegister: 1}
	return slices.Concat([]expr.Any{load}, steps, []expr.Any{&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data}})
}

// command matches packets that begin with a verb in upper or lower case. The bit that tells the two
// apart is taken out of every byte, a space becomes 0.
func command(verb string) part {
	mask, folded := bytes.Repeat([]byte{^byte(0x20)}, len(verb)), []byte(verb)
	for i := range folded {
		folded[i] &= mask[i]
	}
	return part{fmt.Sprintf("@ih,0,%d & %#x == %#x", 8*len(verb), mask, folded), begins(folded, &expr.Bitwise{
		SourceRegister: 1, DestRegister: 1, Len: uint32(len(verb)), Mask: mask, Xor: make([]byte, len(verb)),
	})}
}

// Matches of how a packet begins that tell most packets apart with one look.
var (
	toLetterP   = firstLetter("<= 0x50", &expr.Cmp{Op: expr.CmpOpLte, Register: 1, Data: []byte{'P'}})
	lettersItoN = firstLetter("== 0x49-0x4e",
		&expr.Cmp{Op: expr.CmpOpGte, Register: 1, Data: []byte{'I'}},
		&expr.Cmp{Op: expr.CmpOpLte, Register: 1, Data: []byte{'N'}})
	with22or23 = part{"@ih,0,16 & 0xfffe == 0x3232", begins([]byte("22"), &expr.Bitwise{
		SourceRegister: 1, DestRegister: 1, Len: 2, Mask: []byte{0xff, 0xfe}, Xor: []byte{0, 0},
	})}
)

// firstLetter matches packets whose first letter, in upper or lower case, compares so.
func firstLetter(text string, compare ...expr.Any) part {
	const fold = ^byte(0x20)
	return part{fmt.Sprintf("@ih,0,8 & %#x %s", fold, text), append([]expr.Any{
		&expr.Payload{Base: unix.NFT_PAYLOAD_INNER_HEADER, Offset: 0, Len: 1, DestRegister: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{fold}, Xor: []byte{0}},
	}, compare...)}
}

// reply matches packets that begin with the code of a reply.
func reply(code string) part {
	return part{fmt.Sprintf("@ih,0,%d %#x", 8*len(code), code), begins([]byte(code))}
}

// setAgainPriority marks a packet for the daemon.
var setAgainPriority = part{fmt.Sprintf("meta priority set %x:%x", AgainPriority>>16, AgainPriority&0xffff), []expr.Any{
	&expr.Immediate{Register: 1, Data: binaryutil.NativeEndian.PutUint32(AgainPriority)},
	&expr.Meta{Key: expr.MetaKeyPRIORITY, SourceRegister: true, Register: 1},
}}

// labelled matches packets of connections whose label has the bit.
func labelled(bit int) part {
	return part{fmt.Sprintf("ct label %d", bit), []expr.Any{
		&expr.Ct{Key: expr.CtKeyLABELS, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 16, Mask: label(bit), Xor: make([]byte, 16)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 16)},
	}}
}

// toQueue hands a packet to the i-th queue.
func toQueue(c Config, s Statement, i uint16) part {
	return part{fmt.Sprintf("queue flags bypass to %d", c.Queue+i), []expr.Any{s.Expr(c.Queue + i)}}
}

// metaKeyOIFKIND is NFT_META_OIFKIND, for which the library has no name.
const metaKeyOIFKIND expr.MetaKey = 27

// ctKeyID is NFT_CT_ID, for which the library has no name.
const ctKeyID expr.CtKey = 23

// hashSeed is any number but 0, for which the kernel would make up another one in each rule.
const hashSeed = 1

// spread returns, for each queue, what picks its packets and hands them over. A connection's ct
// id does the picking: it is the same in both directions, whatever NAT does to the addresses.
func spread(c Config, s Statement) [][]part {
	if c.queues() == 1 {
		return [][]part{{toQueue(c, s, 0)}}
	}
	var all [][]part
	for i := range c.queues() {
		all = append(all, []part{
			{fmt.Sprintf("jhash ct id mod %d seed %#x %d", c.queues(), hashSeed, i), []expr.Any{
				&expr.Ct{Key: ctKeyID, Register: 2},
				&expr.Hash{SourceRegister: 2, DestRegister: 1, Length: 4, Modulus: uint32(c.queues()), Seed: hashSeed, Type: expr.HashTypeJenkins},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(uint32(i))},
			}},
			toQueue(c, s, i),
		})
	}
	return all
}

// rules are those of all chains, in order.
func rules(c Config, s Statement) []rule {
	if c.Ruleset == Monitor {
		return monitorRules(c, s)
	}
	all := []rule{
		in(prerouting, isNew, toControlPort, jumpTo(attach)),
		in(output, isNew, toControlPort, hasSocket, continueIn(attach)),
		in(output, isNew, toControlPort, labelled(ControlLabel), leave),
		in(output, isNew, toControlPort, setLabel(ProxiedLabel), jumpTo(attach)),
		in(attach, otherZone, leave),
		in(attach, isSYN, hasPayload, leave),
		in(attach, setHelper, setLabel(ControlLabel)),
	}
	if c.Ruleset == CTHelper {
		return all
	}
	all = append(all,
		in(postrouting, labelled(ControlLabel), jumpTo(control)),
		in(input, fromLoopback, leave),
		in(input, labelled(ControlLabel), jumpTo(control)),
		in(saneRequest, hasByte(8), leave),
		in(saneRequest, hasByte(7), part{"drop", []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}}),
		in(control, toVRF, leave),
		in(control, inOriginal, beginsAsSane, jumpTo(saneRequest)),
	)
	if c.Ruleset == Lean {
		return append(all, leanRules(c, s)...)
	}
	all = append(all, in(control, labelled(OpaqueLabel), leave))
	queue := func(matches ...part) {
		for _, p := range spread(c, s) {
			all = append(all, in(control, slices.Concat(matches, p)...))
		}
	}
	queue(isEstablished, hasPayload)
	all = append(all, in(control, labelled(ProxiedLabel), leave))
	queue(isEstablished, inReply, isSYNACK)
	return all
}

// monitorRules read what the ruleset Full reads, by port, and attach and label nothing. The SYN-ACK is not
// queued: that of a SYNPROXY, which a label would tell apart, must not be delayed.
func monitorRules(c Config, s Statement) []rule {
	all := []rule{
		in(postrouting, toControlPort, jumpTo(control)),
		in(input, fromLoopback, leave),
		in(input, toControlPort, jumpTo(control)),
		in(control, otherZone, leave),
		in(control, toVRF, leave),
	}
	for _, p := range spread(c, s) {
		all = append(all, in(control, append([]part{isEstablished, hasPayload}, p...)...))
	}
	return all
}

// leanRules are those that only the ruleset Lean has.
func leanRules(c Config, s Statement) []rule {
	all := []rule{
		in(control, inOriginal, labelled(ActiveLabel), hasPayload, continueIn(pending)),
		in(control, inOriginal, toLetterP, continueIn(commands)),
		in(control, inReply, labelled(AskedLabel), hasPayload, continueIn(replies)),
		in(control, inReply, with22or23, continueIn(replies)),
		in(commands, lettersItoN, leave),
		in(commands, labelled(OpaqueLabel), leave),
	}
	passive := []string{"PASV", "P@SW", "EPSV"} // servers accept P@SW for PASV
	for _, verb := range passive {
		all = append(all, in(commands, command(verb), setLabel(AskedLabel)))
	}
	for _, verb := range []string{"PORT", "EPRT"} {
		all = append(all, in(commands, command(verb), setLabel(ActiveLabel), continueIn(read)))
	}
	all = append(all, in(commands, command("AUTH"), continueIn(read)))
	// RFC 9110 section 9, RFC 5789. FTP has a command DELE, and none that goes on with T.
	for _, method := range []string{"GET ", "HEAD", "POST", "PUT ", "DELET", "CONN", "OPTI", "PATC"} {
		all = append(all, in(commands, command(method), setLabel(OpaqueLabel)))
	}
	all = append(all,
		in(commands, isTLS, setLabel(OpaqueLabel)),
		in(pending, labelled(OpaqueLabel), leave),
	)
	for _, verb := range passive {
		all = append(all, in(pending, command(verb), setLabel(AskedLabel)))
	}
	all = append(all,
		in(pending, continueIn(read)),
		in(replies, labelled(OpaqueLabel), leave),
		in(replies, labelled(AskedLabel), continueIn(read)),
		in(replies, reply("234"), continueIn(read)),
		in(replies, labelled(EditedLabel), reply("227"), setAgainPriority, continueIn(read)),
		in(replies, labelled(EditedLabel), reply("229"), setAgainPriority, continueIn(read)),
	)
	for _, p := range spread(c, s) {
		all = append(all, in(read, append([]part{isEstablished}, p...)...))
	}
	return all
}
