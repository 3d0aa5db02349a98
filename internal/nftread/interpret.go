package nftread

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"slices"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/nfnetlink"
	"github.com/nfq-ftphelper/nfq-ftphelper/rules"
)

// Match is the conditions of a rule and of the jumps that lead to it, as far as FTP is concerned. The zero
// value of each field but States matches any packet.
type Match struct {
	Ports, Sources         []rules.PortRange // destination and source ports
	In, Out, NotIn, NotOut string            // interfaces; "*" at the end matches any suffix
	States                 uint32            // conntrack states, as bits (expr.CtStateBit*)
	Stated                 bool              // a condition on the state exists
	NotTCP                 bool              // no TCP packet matches
	Helper                 string            // helper of the connection
	Other                  bool              // a condition exists that cannot be interpreted
}

var anything = Match{States: ^uint32(0)}

// and returns the conditions of a jump and those of a rule that it leads to.
func (m Match) and(n Match) Match {
	if n.Ports == nil {
		n.Ports = m.Ports
	}
	if n.Sources == nil {
		n.Sources = m.Sources
	}
	n.Helper = cmp.Or(n.Helper, m.Helper)
	n.In, n.Out = cmp.Or(n.In, m.In), cmp.Or(n.Out, m.Out)
	n.NotIn, n.NotOut = cmp.Or(n.NotIn, m.NotIn), cmp.Or(n.NotOut, m.NotOut)
	n.States &= m.States
	n.Stated = n.Stated || m.Stated
	n.NotTCP = n.NotTCP || m.NotTCP
	n.Other = n.Other || m.Other
	return n
}

// Action is what a rule does to the packets that it matches.
type Action struct {
	Match   Match
	Verdict *Verdict
	Reject  bool
	Queue   bool    // to a program that decides
	Notrack bool    // hides the packet from conntrack
	Helper  *Helper // assigned to the connection
}

// ruleReader interprets one rule.
type ruleReader struct {
	rs      *Ruleset
	rule    *Rule
	match   Match
	loaded  map[uint32]value
	between map[loaded]rules.PortRange // ports that pass all comparisons so far
	actions []Action
}

// value is the content of a register.
type value struct {
	what loaded
	mask uint32 // of the state
}

type loaded int

const (
	something loaded = iota
	ctState
	ctHelperName
	destinationPort
	sourcePort
	protocol
	family
	inInterface
	outInterface
	inIndex
)

// Actions interprets a rule, never nil.
func (rs *Ruleset) Actions(r *Rule) []Action {
	if r.actions != nil {
		return r.actions
	}
	d := &ruleReader{rs: rs, rule: r, match: anything, loaded: make(map[uint32]value), between: make(map[loaded]rules.PortRange)}
	for _, e := range r.Exprs {
		d.read(e)
	}
	r.actions = append([]Action{}, d.actions...) // not nil: interpreted once
	return r.actions
}

func (d *ruleReader) emit(a Action) {
	a.Match = d.match.and(a.Match)
	d.actions = append(d.actions, a)
}

func (d *ruleReader) read(e Expression) {
	switch a := e.Attrs; e.Name {
	case "ct":
		d.readCt(a)
	case "payload":
		const base, offset, length, dreg = unix.NFTA_PAYLOAD_BASE, unix.NFTA_PAYLOAD_OFFSET, unix.NFTA_PAYLOAD_LEN, unix.NFTA_PAYLOAD_DREG
		v := value{}
		switch [3]uint32{a.Uint32(base), a.Uint32(offset), a.Uint32(length)} {
		case [3]uint32{unix.NFT_PAYLOAD_TRANSPORT_HEADER, 0, 2}:
			v.what = sourcePort
		case [3]uint32{unix.NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2}:
			v.what = destinationPort
		case [3]uint32{unix.NFT_PAYLOAD_NETWORK_HEADER, 9, 1}: // of IPv4
			v.what = protocol
		case [3]uint32{unix.NFT_PAYLOAD_NETWORK_HEADER, 6, 1}: // of IPv6
			v.what = protocol
		}
		d.load(a, dreg, v)
	case "meta":
		d.load(a, unix.NFTA_META_DREG, value{what: map[uint32]loaded{
			unix.NFT_META_L4PROTO: protocol,
			unix.NFT_META_NFPROTO: family,
			unix.NFT_META_IIF:     inIndex,
			unix.NFT_META_IIFNAME: inInterface,
			unix.NFT_META_OIFNAME: outInterface,
		}[a.Uint32(unix.NFTA_META_KEY)]})
	case "bitwise":
		v := d.loaded[a.Uint32(unix.NFTA_BITWISE_SREG)]
		mask := a.Nested(unix.NFTA_BITWISE_MASK).Find(unix.NFTA_DATA_VALUE)
		if v.what != ctState || len(mask) != 4 {
			v = value{}
		} else {
			v.mask &= binary.NativeEndian.Uint32(mask)
		}
		d.load(a, unix.NFTA_BITWISE_DREG, v)
	case "cmp":
		d.compare(d.loaded[a.Uint32(unix.NFTA_CMP_SREG)], expr.CmpOp(a.Uint32(unix.NFTA_CMP_OP)),
			a.Nested(unix.NFTA_CMP_DATA).Find(unix.NFTA_DATA_VALUE))
	case "range":
		d.inRange(a)
	case "lookup":
		d.lookup(a)
	case "match":
		d.matchXtables(a)
	case "immediate":
		if v := newVerdict(a.Find(unix.NFTA_IMMEDIATE_DATA)); v != nil {
			d.emit(Action{Match: anything, Verdict: v})
		}
		delete(d.loaded, a.Uint32(unix.NFTA_IMMEDIATE_DREG))
	case "objref":
		d.attach(a)
	case "target":
		d.target(a)
	case "reject":
		d.emit(Action{Match: anything, Reject: true})
	case "queue":
		d.emit(Action{Match: anything, Queue: true})
	case "notrack":
		d.emit(Action{Match: anything, Notrack: true})
	case "byteorder", "counter", "exthdr", "fib", "hash", "log", "masq", "nat", "numgen", "redir", "rt", "socket":
		// These are no condition, or change registers without a loaded value.
	default:
		d.match.Other = true
	}
}

func (d *ruleReader) load(a nfnetlink.Attributes, register uint16, v value) {
	if a.Find(register) != nil {
		d.loaded[a.Uint32(register)] = v
	}
}

func (d *ruleReader) readCt(a nfnetlink.Attributes) {
	v := value{}
	direction := a.Find(unix.NFTA_CT_DIRECTION)
	switch expr.CtKey(a.Uint32(unix.NFTA_CT_KEY)) {
	case expr.CtKeySTATE:
		v = value{ctState, ^uint32(0)}
	case expr.CtKeyHELPER:
		v.what = ctHelperName
	case expr.CtKeyPROTODST:
		if len(direction) > 0 && direction[0] == 0 { // of the original direction
			v.what = destinationPort
		}
	}
	d.load(a, unix.NFTA_CT_DREG, v)
}

// compare narrows the match.
func (d *ruleReader) compare(v value, op expr.CmpOp, data []byte) {
	switch {
	case v.what == ctState && len(data) == 4 && (op == expr.CmpOpEq || op == expr.CmpOpNeq):
		n := binary.NativeEndian.Uint32(data)
		states := n // one of them must be set
		if n == 0 {
			states, op = v.mask, expr.CmpOpEq+expr.CmpOpNeq-op
		}
		if op == expr.CmpOpNeq {
			states = ^states
		}
		d.match = d.match.and(Match{States: states, Stated: true})
	case v.what == ctHelperName && op == expr.CmpOpEq:
		d.match.Helper = string(bytes.TrimRight(data, "\x00"))
	case v.what == protocol && op == expr.CmpOpEq && len(data) == 1:
		d.match.NotTCP = data[0] != unix.IPPROTO_TCP
	case v.what == protocol && op == expr.CmpOpNeq && len(data) == 1 && data[0] == unix.IPPROTO_TCP:
		d.match.NotTCP = true
	case (v.what == destinationPort || v.what == sourcePort) && op != expr.CmpOpNeq && len(data) == 2:
		d.comparePort(v.what, op, binary.BigEndian.Uint16(data))
	case v.what == family && op == expr.CmpOpEq:
		// A condition on the family is ignored: the rule counts for IPv4 and IPv6.
	case (v.what == inInterface || v.what == outInterface) && (op == expr.CmpOpEq || op == expr.CmpOpNeq):
		d.match.onInterface(v.what, interfaceName(data), op == expr.CmpOpNeq)
	case v.what == inIndex && op == expr.CmpOpEq && len(data) == 4 && binary.NativeEndian.Uint32(data) == 1:
		d.match.In = loopback // which is always the first interface
	default:
		d.match.Other = true
	}
}

func (d *ruleReader) comparePort(what loaded, op expr.CmpOp, port uint16) {
	r, ok := d.between[what]
	if !ok {
		r.Last = 65535
	}
	switch op {
	case expr.CmpOpEq:
		r.First, r.Last = port, port
	case expr.CmpOpGte, expr.CmpOpGt: // one more or less does not matter
		r.First = max(r.First, port)
	case expr.CmpOpLte, expr.CmpOpLt:
		r.Last = min(r.Last, port)
	}
	d.between[what] = r
	d.match.onPorts(what, []rules.PortRange{r})
}

func (m *Match) onPorts(what loaded, ports []rules.PortRange) {
	if what == sourcePort {
		m.Sources = ports
	} else {
		m.Ports = ports
	}
}

const loopback = "lo"

// interfaceName returns a name of IFNAMSIZ bytes, or a shorter prefix with "*".
func interfaceName(data []byte) string {
	name, _, whole := bytes.Cut(data, []byte{0})
	if whole {
		return string(name)
	}
	return string(name) + "*"
}

func (m *Match) onInterface(what loaded, name string, not bool) {
	switch {
	case what == inInterface && not:
		m.NotIn = name
	case what == inInterface:
		m.In = name
	case not:
		m.NotOut = name
	default:
		m.Out = name
	}
}

// inRange interprets a comparison with both ends of a range.
func (d *ruleReader) inRange(a nfnetlink.Attributes) {
	v := d.loaded[a.Uint32(unix.NFTA_RANGE_SREG)]
	first := a.Nested(unix.NFTA_RANGE_FROM_DATA).Find(unix.NFTA_DATA_VALUE)
	last := a.Nested(unix.NFTA_RANGE_TO_DATA).Find(unix.NFTA_DATA_VALUE)
	if a.Uint32(unix.NFTA_RANGE_OP) != unix.NFT_RANGE_EQ || len(first) != 2 || len(last) != 2 {
		d.match.Other = true
		return
	}
	ports := []rules.PortRange{{First: binary.BigEndian.Uint16(first), Last: binary.BigEndian.Uint16(last)}}
	if v.what != destinationPort && v.what != sourcePort {
		d.match.Other = true
		return
	}
	d.match.onPorts(v.what, ports)
}

// lookup interprets sets of states, protocols and ports, and maps of verdicts.
func (d *ruleReader) lookup(a nfnetlink.Attributes) {
	v := d.loaded[a.Uint32(unix.NFTA_LOOKUP_SREG)]
	toRegister := a.Find(unix.NFTA_LOOKUP_DREG) != nil
	verdicts := toRegister && a.Uint32(unix.NFTA_LOOKUP_DREG) == unix.NFT_REG_VERDICT
	inverted := a.Uint32(unix.NFTA_LOOKUP_FLAGS) != 0
	read := v.what == ctState || v.what == destinationPort || v.what == sourcePort || v.what == protocol
	if !verdicts && (!read || inverted || toRegister) {
		d.match.Other = true
		return
	}
	elements, err := d.rs.setElements(d.rule.Table, a.Text(unix.NFTA_LOOKUP_SET))
	if err != nil {
		d.match.Other = true
		return
	}
	if verdicts {
		for _, e := range elements {
			if e.Verdict != nil {
				d.emit(Action{Match: keyMatch(v, e), Verdict: e.Verdict})
			}
		}
		return
	}
	switch {
	case (v.what == destinationPort || v.what == sourcePort) && allHave(elements, 2):
		d.match.onPorts(v.what, portRanges(elements))
	case v.what == protocol && allHave(elements, 1):
		d.match.NotTCP = !slices.ContainsFunc(elements, func(e Element) bool { return e.Key[0] == unix.IPPROTO_TCP })
	case v.what == ctState && allHave(elements, 4):
		var states uint32
		for _, e := range elements {
			states |= binary.NativeEndian.Uint32(e.Key)
		}
		d.match = d.match.and(Match{States: states & v.mask, Stated: true})
	default: // a concatenation
		d.match.Other = true
	}
}

// keyMatch returns the condition of one element of a map.
func keyMatch(v value, e Element) Match {
	m := anything
	switch {
	case v.what == ctState && len(e.Key) == 4:
		m.States, m.Stated = binary.NativeEndian.Uint32(e.Key)&v.mask, true
	case v.what == destinationPort && len(e.Key) == 2 && !e.End:
		port := binary.BigEndian.Uint16(e.Key)
		m.Ports = []rules.PortRange{{First: port, Last: port}}
	case v.what == protocol && len(e.Key) == 1:
		m.NotTCP = e.Key[0] != unix.IPPROTO_TCP
	case (v.what == inInterface || v.what == outInterface) && len(e.Key) == unix.IFNAMSIZ:
		m.onInterface(v.what, interfaceName(e.Key), false)
	default:
		m.Other = true
	}
	return m
}

func allHave(elements []Element, length int) bool {
	return !slices.ContainsFunc(elements, func(e Element) bool { return len(e.Key) != length })
}

// portRanges returns the ports of a set, with intervals or without, never nil.
func portRanges(elements []Element) []rules.PortRange {
	slices.SortFunc(elements, CompareElements)
	intervals := slices.ContainsFunc(elements, func(e Element) bool { return e.End })
	ranges := []rules.PortRange{}
	for _, e := range elements {
		port := binary.BigEndian.Uint16(e.Key)
		switch {
		case !e.End && intervals:
			ranges = append(ranges, rules.PortRange{First: port, Last: 65535})
		case !e.End:
			ranges = append(ranges, rules.PortRange{First: port, Last: port})
		case len(ranges) > 0 && port > 0:
			ranges[len(ranges)-1].Last = port - 1
		}
	}
	return ranges
}

// matchXtables interprets matches of iptables (xt_conntrack.h, xt_state.h, xt_tcpudp.h, xt_multiport.h,
// xt_helper.h).
func (d *ruleReader) matchXtables(a nfnetlink.Attributes) {
	info := a.Find(unix.NFTA_MATCH_INFO)
	revision := a.Uint32(unix.NFTA_MATCH_REV)
	switch name := a.Text(unix.NFTA_MATCH_NAME); {
	case name == "comment":
	case name == "conntrack" && revision >= 1:
		d.matchConntrack(info, revision)
	case name == "state" && len(info) >= 4:
		d.match = d.match.and(Match{States: binary.NativeEndian.Uint32(info), Stated: true})
	case name == "helper" && len(info) >= 5 && binary.NativeEndian.Uint32(info) == 0:
		helper, _, _ := bytes.Cut(info[4:], []byte{0})
		d.match.Helper = string(helper)
	case name == "tcp" && len(info) >= 12:
		d.matchTCP(info)
	case name == "multiport" && revision == 1:
		d.matchMultiport(info)
	default:
		d.match.Other = true
	}
}

// matchConntrack interprets the states of struct xt_conntrack_mtinfo1, 2 or 3, whose bits are those of nftables.
func (d *ruleReader) matchConntrack(info []byte, revision uint32) {
	const flags, inverted, mask, onState = 146, 148, 150, 1
	if len(info) < mask+2 {
		d.match.Other = true
		return
	}
	matched, not := binary.NativeEndian.Uint16(info[flags:]), binary.NativeEndian.Uint16(info[inverted:])
	states := uint32(binary.NativeEndian.Uint16(info[mask:]))
	if revision == 1 {
		states = uint32(info[mask])
	}
	if matched != onState {
		d.match.Other = true
	}
	if matched&onState == 0 {
		return
	}
	if not&onState != 0 {
		states = ^states
	}
	d.match = d.match.and(Match{States: states, Stated: true})
}

// matchTCP interprets struct xt_tcp.
func (d *ruleReader) matchTCP(info []byte) {
	read := func(at int) []rules.PortRange {
		r := rules.PortRange{First: binary.NativeEndian.Uint16(info[at:]), Last: binary.NativeEndian.Uint16(info[at+2:])}
		if r.First == 0 && r.Last == 65535 {
			return nil
		}
		return []rules.PortRange{r}
	}
	if option, flags, inverted := info[8], info[9], info[11]; option != 0 || flags != 0 || inverted != 0 {
		d.match.Other = true
		return
	}
	d.match.Sources, d.match.Ports = read(0), read(4)
}

// matchMultiport interprets struct xt_multiport_v1. A port whose flag is set starts a range.
func (d *ruleReader) matchMultiport(info []byte) {
	const most = 15
	const source, destination = 0, 1
	if len(info) < 2+2*most+most+1 || info[1] > most {
		d.match.Other = true
		return
	}
	var ports []rules.PortRange
	for i := 0; i < int(info[1]); i++ {
		r := rules.PortRange{First: binary.NativeEndian.Uint16(info[2+2*i:])}
		r.Last = r.First
		if info[2+2*most+i] != 0 && i+1 < int(info[1]) {
			i++
			r.Last = binary.NativeEndian.Uint16(info[2+2*i:])
		}
		ports = append(ports, r)
	}
	switch inverted := info[2+2*most+most]; {
	case inverted == 0 && info[0] == source:
		d.match.Sources = ports
	case inverted == 0 && info[0] == destination:
		d.match.Ports = ports
	default:
		d.match.Other = true
	}
}

// attach interprets "ct helper set", of one helper or from a map.
func (d *ruleReader) attach(a nfnetlink.Attributes) {
	if a.Uint32(unix.NFTA_OBJREF_IMM_TYPE) == unix.NFT_OBJECT_CT_HELPER {
		d.attachObject(a.Text(unix.NFTA_OBJREF_IMM_NAME), anything)
		return
	}
	if a.Find(unix.NFTA_OBJREF_SET_NAME) == nil {
		return
	}
	// The objects of the map may be counters, say.
	elements, err := d.rs.setElements(d.rule.Table, a.Text(unix.NFTA_OBJREF_SET_NAME))
	if err != nil {
		return
	}
	v := d.loaded[a.Uint32(unix.NFTA_OBJREF_SET_SREG)]
	for _, e := range elements {
		d.attachObject(e.Object, keyMatch(v, e))
	}
}

func (d *ruleReader) attachObject(name string, m Match) {
	if h, ok := d.rs.helpers[Object{d.rule.Table, name}]; ok {
		d.emit(Action{Match: m, Helper: &h})
	}
}

// target interprets iptables' target CT (struct xt_ct_target_info_v1, xt_CT.h), and targets that end in a
// verdict.
func (d *ruleReader) target(a nfnetlink.Attributes) {
	const noTrack, from, to = 1, 12, 28
	info := a.Find(unix.NFTA_TARGET_INFO)
	switch name := a.Text(unix.NFTA_TARGET_NAME); {
	case name == "CT" && len(info) >= to:
		helper, _, _ := bytes.Cut(info[from:to], []byte{0})
		if len(helper) > 0 {
			d.emit(Action{Match: anything, Helper: &Helper{Type: string(helper), TCP: true, Template: true}})
		}
		if binary.NativeEndian.Uint16(info)&noTrack != 0 {
			d.emit(Action{Match: anything, Notrack: true})
		}
	case name == "NOTRACK":
		d.emit(Action{Match: anything, Notrack: true})
	case name == "NFQUEUE":
		d.emit(Action{Match: anything, Queue: true})
	case name == "REJECT":
		d.emit(Action{Match: anything, Reject: true})
	}
}
