// Package rules installs the nftables rules that queue the packets of FTP control connections. There are four
// rulesets: ftp-queue.nft, ftp-queue-lean.nft, ftp-cthelper.nft and ftp-monitor.nft, which Text returns for nft(8) and
// Apply installs over netlink.
//
// All but the last assign a conntrack helper to a new connection before NAT, and queue its packets after routing,
// filtering and NAT, as the kernel's own helper does: packets that this host drops are not read, and the others have
// the addresses that they leave with.
//
// A ruleset is one table, inet nfq_ftphelper. Nothing else is changed. The kernel's side is in net/netfilter:
// nf_tables_api.c, nft_ct.c, nft_payload.c and nft_queue.c or xt_NFQUEUE.c, Linux 5.16 and later.
//
// All functions work in the network namespace of the calling thread, unless nftables.WithNetNSFd selects another one.
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

// Statement is the nftables statement that queues a packet.
type Statement string

const (
	// Native is nftables' own queue statement (CONFIG_NFT_QUEUE).
	Native Statement = "queue"

	// Compat is the NFQUEUE target of iptables, through nft_compat, for kernels without the native statement. nft(8)
	// cannot load it, and lists its table as "managed by iptables-nft".
	Compat Statement = "NFQUEUE target"
)

// Expr returns the statement for one queue. Packets pass while no program is bound to it.
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

// RetransmitPriority is the priority (meta priority in nftables) that the ruleset Lean sets on a 227 or 229 that is not
// due: the retransmission of a rewritten one. The daemon sees it from Linux 5.18 on (NFQA_PRIORITY).
const RetransmitPriority = 0x2127_0119

// Bits of the conntrack label (ct label), 0 to 127.
const (
	// InLine marks recognised connections that the daemon has evicted within a line. The daemon sets it.
	InLine = 115

	// Active marks connections whose PORT or EPRT is in the queue. The ruleset Lean sets it and then queues all packets
	// of the client until the daemon clears it, so that none overtakes the line.
	Active = 116

	// Recognised marks connections that the daemon has recognised as FTP, from the client's first byte up to the
	// login. The daemon sets it; no rule matches it.
	Recognised = 118

	// Rewritten marks connections with a rewritten 227 or 229. The daemon sets it; the ruleset Lean then queues
	// retransmissions of these replies.
	Rewritten = 119

	// ReplyDue marks connections whose client has sent PASV or EPSV. The ruleset Lean sets it and then queues all packets
	// of the server until the daemon clears it, so that none overtakes the 227 or 229.
	ReplyDue = 120

	// Control marks control connections with a helper. The rules set it, and queue packets of these connections only.
	Control = 121

	// Proxied marks connections that SYNPROXY opens on behalf of a client. It receives the server's SYN-ACK, which must
	// not be delayed.
	Proxied = 123

	// Ignore marks connections that are encrypted or not FTP, whose packets are not queued any more. The daemon sets
	// it, and so does the ruleset Lean.
	Ignore = 122
)

// label returns a label with one bit set, as the kernel stores it.
func label(bit int) []byte {
	l := make([]byte, 16)
	binary.NativeEndian.PutUint32(l[bit/32*4:], 1<<(bit%32))
	return l
}

// The parts of the rulesets, in the order of the files.
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

// carrier returns the helper that rules assign, under a name that does not depend on its type.
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

// chains returns the chains of the ruleset.
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

// elements returns the elements of the set. The first one ends the empty interval before all ranges; nft(8) adds it
// too.
func elements(ranges []PortRange) []nftables.SetElement {
	return append([]nftables.SetElement{{Key: binaryutil.BigEndian.PutUint16(0), IntervalEnd: true}}, bounds(ranges)...)
}

// bounds returns the first port of each range, and the first one after it.
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

// rule is a rule of a chain.
type rule struct {
	chain *nftables.Chain
	part
}

// part is a match or a statement of a rule, as nft(8) lists it and as the kernel runs it.
type part struct {
	text  string
	exprs []expr.Any
}

// in returns the rule of a chain that consists of parts.
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

	// nft_ct reads one byte of a direction and the library writes four: equal for "original", with a line in the
	// kernel's log ("attribute type 3 has an invalid length").
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

	// A packet that enters a VRF's device passes postrouting again, with the interface that it leaves by, or input.
	// The kernel confirms and adjusts it there (in_vrf_postrouting of nf_conntrack_proto.c). Most hardware
	// interfaces have no kind: no comparison matches, not even !=.
	toVRF = part{`meta oifkind "vrf"`, []expr.Any{
		&expr.Meta{Key: metaKeyOIFKIND, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: append([]byte("vrf"), make([]byte, 13)...)}, // IFNAMSIZ
	}}

	inOriginal = direction("original", 0) // IP_CT_DIR_ORIGINAL
	inReply    = direction("reply", 1)    // IP_CT_DIR_REPLY

	hasPayload = hasByte(0)

	// No user has that number. For a packet without a socket the comparison fails.
	hasSocket = part{"meta skuid != 4294967295", []expr.Any{
		&expr.Meta{Key: expr.MetaKeySKUID, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{0xff, 0xff, 0xff, 0xff}},
	}}

	// SANE_NET_START, the request on which nf_conntrack_sane.c acts.
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

	// A TLS handshake record of any version (RFC 8446 section 5.1).
	isTLS = part{"@ih,0,16 0x1603", begins([]byte{0x16, 0x03})}

	returns = part{"return", []expr.Any{&expr.Verdict{Kind: expr.VerdictReturn}}}

	setHelper = part{`ct helper set "carrier"`, []expr.Any{
		&expr.Objref{Type: int(nftables.ObjTypeCtHelper), Name: "carrier"},
	}}
)

// jumpTo enters another chain, which returns.
func jumpTo(chain *nftables.Chain) part {
	return part{"jump " + chain.Name, []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain.Name}}}
}

// hasByte matches packets whose payload has more than i bytes.
func hasByte(i uint32) part {
	return part{fmt.Sprintf("@ih,%d,8 >= 0x0", 8*i), []expr.Any{
		&expr.Payload{Base: unix.NFT_PAYLOAD_INNER_HEADER, Offset: i, Len: 1, DestRegister: 1},
		&expr.Cmp{Op: expr.CmpOpGte, Register: 1, Data: []byte{0}},
	}}
}

// continueIn enters another chain, which does not return.
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

// begins matches packets whose payload, after steps, begins with data of up to 16 bytes. A shorter payload does not
// match.
func begins(data []byte, steps ...expr.Any) []expr.Any {
	load := &expr.Payload{Base: unix.NFT_PAYLOAD_INNER_HEADER, Offset: 0, Len: uint32(len(data)), DestRegister: 1}
	return slices.Concat([]expr.Any{load}, steps, []expr.Any{&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data}})
}

// command matches packets that begin with a verb in upper or lower case. Every byte is compared without the bit by
// which the cases differ; a space becomes 0.
func command(verb string) part {
	mask, masked := bytes.Repeat([]byte{^byte(0x20)}, len(verb)), []byte(verb)
	for i := range masked {
		masked[i] &= mask[i]
	}
	return part{fmt.Sprintf("@ih,0,%d & %#x == %#x", 8*len(verb), mask, masked), begins(masked, &expr.Bitwise{
		SourceRegister: 1, DestRegister: 1, Len: uint32(len(verb)), Mask: mask, Xor: make([]byte, len(verb)),
	})}
}

// Matches of the first bytes that exclude most packets with one comparison.
var (
	toLetterP   = firstLetter("<= 0x50", &expr.Cmp{Op: expr.CmpOpLte, Register: 1, Data: []byte{'P'}})
	lettersItoN = firstLetter("== 0x49-0x4e",
		&expr.Cmp{Op: expr.CmpOpGte, Register: 1, Data: []byte{'I'}},
		&expr.Cmp{Op: expr.CmpOpLte, Register: 1, Data: []byte{'N'}})
	with22or23 = part{"@ih,0,16 & 0xfffe == 0x3232", begins([]byte("22"), &expr.Bitwise{
		SourceRegister: 1, DestRegister: 1, Len: 2, Mask: []byte{0xff, 0xfe}, Xor: []byte{0, 0},
	})}
)

// firstLetter matches packets by their first letter, in upper case.
func firstLetter(text string, compare ...expr.Any) part {
	const upperCase = ^byte(0x20)
	return part{fmt.Sprintf("@ih,0,8 & %#x %s", upperCase, text), append([]expr.Any{
		&expr.Payload{Base: unix.NFT_PAYLOAD_INNER_HEADER, Offset: 0, Len: 1, DestRegister: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{upperCase}, Xor: []byte{0}},
	}, compare...)}
}

// reply matches packets that begin with a reply code.
func reply(code string) part {
	return part{fmt.Sprintf("@ih,0,%d %#x", 8*len(code), code), begins([]byte(code))}
}

// setRetransmitPriority marks a packet for the daemon.
var setRetransmitPriority = part{fmt.Sprintf("meta priority set %x:%x", RetransmitPriority>>16, RetransmitPriority&0xffff), []expr.Any{
	&expr.Immediate{Register: 1, Data: binaryutil.NativeEndian.PutUint32(RetransmitPriority)},
	&expr.Meta{Key: expr.MetaKeyPRIORITY, SourceRegister: true, Register: 1},
}}

// hasLabel matches packets of connections whose label has the bit.
func hasLabel(bit int) part {
	return part{fmt.Sprintf("ct label %d", bit), []expr.Any{
		&expr.Ct{Key: expr.CtKeyLABELS, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 16, Mask: label(bit), Xor: make([]byte, 16)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 16)},
	}}
}

// toQueue queues a packet to the i-th queue.
func toQueue(c Config, s Statement, i uint16) part {
	return part{fmt.Sprintf("queue flags bypass to %d", c.Queue+i), []expr.Any{s.Expr(c.Queue + i)}}
}

// metaKeyOIFKIND is NFT_META_OIFKIND, for which the library has no name.
const metaKeyOIFKIND expr.MetaKey = 27

// ctKeyID is NFT_CT_ID, for which the library has no name.
const ctKeyID expr.CtKey = 23

// hashSeed is any number but 0, for which the kernel would choose another one in each rule.
const hashSeed = 1

// spread returns, for each queue, a match of its connections and the statement. The match is on a hash of the ct id,
// which is equal in both directions, with NAT or without.
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

// rules returns the rules of all chains, in order.
func rules(c Config, s Statement) []rule {
	if c.Ruleset == Monitor {
		return monitorRules(c, s)
	}
	all := []rule{
		in(prerouting, isNew, toControlPort, jumpTo(attach)),
		in(output, isNew, toControlPort, hasSocket, continueIn(attach)),
		in(output, isNew, toControlPort, hasLabel(Control), returns),
		in(output, isNew, toControlPort, setLabel(Proxied), jumpTo(attach)),
		in(attach, otherZone, returns),
		in(attach, isSYN, hasPayload, returns),
		in(attach, setHelper, setLabel(Control)),
	}
	if c.Ruleset == CTHelper {
		return all
	}
	all = append(all,
		in(postrouting, hasLabel(Control), jumpTo(control)),
		in(input, fromLoopback, returns),
		in(input, hasLabel(Control), jumpTo(control)),
		in(saneRequest, hasByte(8), returns),
		in(saneRequest, hasByte(7), part{"drop", []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}}),
		in(control, toVRF, returns),
		in(control, inOriginal, beginsAsSane, jumpTo(saneRequest)),
	)
	if c.Ruleset == Lean {
		return append(all, leanRules(c, s)...)
	}
	all = append(all, in(control, hasLabel(Ignore), returns))
	queue := func(matches ...part) {
		for _, p := range spread(c, s) {
			all = append(all, in(control, slices.Concat(matches, p)...))
		}
	}
	queue(isEstablished, hasPayload)
	all = append(all, in(control, hasLabel(Proxied), returns))
	queue(isEstablished, inReply, isSYNACK)
	return all
}

// monitorRules queue the packets with payload that Full queues, by port, and assign no helper or label. The SYN-ACK is
// not queued: without a label, that of a SYNPROXY cannot be excluded.
func monitorRules(c Config, s Statement) []rule {
	all := []rule{
		in(postrouting, toControlPort, jumpTo(control)),
		in(input, fromLoopback, returns),
		in(input, toControlPort, jumpTo(control)),
		in(control, otherZone, returns),
		in(control, toVRF, returns),
	}
	for _, p := range spread(c, s) {
		all = append(all, in(control, append([]part{isEstablished, hasPayload}, p...)...))
	}
	return all
}

// leanRules are the rules that only the ruleset Lean has.
func leanRules(c Config, s Statement) []rule {
	all := []rule{
		in(control, inOriginal, hasLabel(Active), hasPayload, continueIn(pending)),
		in(control, inOriginal, toLetterP, continueIn(commands)),
		in(control, inReply, hasLabel(ReplyDue), hasPayload, continueIn(replies)),
		in(control, inReply, with22or23, continueIn(replies)),
		in(commands, lettersItoN, returns),
		in(commands, hasLabel(Ignore), returns),
	}
	passive := []string{"PASV", "P@SW", "EPSV"} // servers accept P@SW for PASV
	for _, verb := range passive {
		all = append(all, in(commands, command(verb), setLabel(ReplyDue)))
	}
	for _, verb := range []string{"PORT", "EPRT"} {
		all = append(all, in(commands, command(verb), setLabel(Active), continueIn(read)))
	}
	all = append(all, in(commands, command("AUTH"), continueIn(read)))
	// RFC 9110 section 9, RFC 5789. FTP has DELE, but no DELET.
	for _, method := range []string{"GET ", "HEAD", "POST", "PUT ", "DELET", "CONN", "OPTI", "PATC"} {
		all = append(all, in(commands, command(method), setLabel(Ignore)))
	}
	all = append(all,
		in(commands, isTLS, setLabel(Ignore)),
		in(pending, hasLabel(Ignore), returns),
	)
	for _, verb := range passive {
		all = append(all, in(pending, command(verb), setLabel(ReplyDue)))
	}
	all = append(all,
		in(pending, continueIn(read)),
		in(replies, hasLabel(Ignore), returns),
		in(replies, hasLabel(ReplyDue), continueIn(read)),
		in(replies, reply("234"), continueIn(read)),
		in(replies, hasLabel(Rewritten), reply("227"), setRetransmitPriority, continueIn(read)),
		in(replies, hasLabel(Rewritten), reply("229"), setRetransmitPriority, continueIn(read)),
	)
	for _, p := range spread(c, s) {
		all = append(all, in(read, append([]part{isEstablished}, p...)...))
	}
	return all
}
