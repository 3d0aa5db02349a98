package doctor

import (
	"bytes"
	"encoding/binary"
	"slices"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/nfq-ftphelper/nfq-ftphelper/rules"
)

// match is the part of a rule's conditions, and of the jumps that lead to it, that matters
// here. The zero value of a field but for states is "whatever it is".
type match struct {
	// ports are the destination ports.
	ports []rules.PortRange
	// states are those of conntrack, as bits; stated says that there is such a condition.
	states uint32
	stated bool
	// notTCP says that packets of TCP don't match.
	notTCP bool
	// helper is the one that the connection must have.
	helper string
	// other says that there is something more, of any kind.
	other bool
}

var anything = match{states: ^uint32(0)}

// and combines the conditions of a jump with those behind it.
func (m match) and(n match) match {
	if n.ports == nil {
		n.ports = m.ports
	}
	if n.helper == "" {
		n.helper = m.helper
	}
	n.states &= m.states
	n.stated = n.stated || m.stated
	n.notTCP = n.notTCP || m.notTCP
	n.other = n.other || m.other
	return n
}

// An action is what a rule does to what it matches.
type action struct {
	match   match
	verdict *verdict
	reject  bool
	helper  *ctHelper // attached to the connection
}

// reading is the state of reading one rule.
type reading struct {
	rs      *ruleset
	rule    *rule
	match   match
	loaded  map[uint32]value
	low     uint16 // of the range of ports that comparisons leave
	high    uint16
	actions []action
}

// value is what is in a register.
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
	protocol
)

// actions reads a rule.
func (rs *ruleset) actions(r *rule) []action {
	d := &reading{rs: rs, rule: r, match: anything, loaded: make(map[uint32]value), high: 65535}
	for _, e := range r.exprs {
		d.read(e)
	}
	return d.actions
}

func (d *reading) act(a action) {
	a.match = d.match.and(a.match)
	d.actions = append(d.actions, a)
}

func (d *reading) read(e expression) {
	switch a := e.attrs; e.name {
	case "ct":
		d.readCt(a)
	case "payload":
		const base, offset, length, dreg = unix.NFTA_PAYLOAD_BASE, unix.NFTA_PAYLOAD_OFFSET, unix.NFTA_PAYLOAD_LEN, unix.NFTA_PAYLOAD_DREG
		v := value{}
		if a.number(base) == unix.NFT_PAYLOAD_TRANSPORT_HEADER && a.number(offset) == 2 && a.number(length) == 2 {
			v.what = destinationPort
		}
		d.load(a, dreg, v)
	case "meta":
		v := value{}
		if a.number(unix.NFTA_META_KEY) == unix.NFT_META_L4PROTO {
			v.what = protocol
		}
		d.load(a, unix.NFTA_META_DREG, v)
	case "bitwise":
		v := d.loaded[a.number(unix.NFTA_BITWISE_SREG)]
		mask := parse(a.find(unix.NFTA_BITWISE_MASK)).find(unix.NFTA_DATA_VALUE)
		if v.what != ctState || len(mask) != 4 {
			v = value{}
		} else {
			v.mask &= binary.NativeEndian.Uint32(mask)
		}
		d.load(a, unix.NFTA_BITWISE_DREG, v)
	case "cmp":
		d.compare(d.loaded[a.number(unix.NFTA_CMP_SREG)], expr.CmpOp(a.number(unix.NFTA_CMP_OP)),
			parse(a.find(unix.NFTA_CMP_DATA)).find(unix.NFTA_DATA_VALUE))
	case "lookup":
		d.lookup(a)
	case "match":
		d.matchXtables(a)
	case "immediate":
		if v := newVerdict(a.find(unix.NFTA_IMMEDIATE_DATA)); v != nil {
			d.act(action{match: anything, verdict: v})
		}
		delete(d.loaded, a.number(unix.NFTA_IMMEDIATE_DREG))
	case "objref":
		d.attach(a)
	case "target":
		d.target(a)
	case "reject":
		d.act(action{match: anything, reject: true})
	case "byteorder", "counter", "exthdr", "fib", "hash", "log", "masq", "nat", "notrack", "numgen", "redir", "rt", "socket":
		// These change registers that nothing of interest is in, or are no condition.
	default:
		d.match.other = true
	}
}

func (d *reading) load(a attributes, register uint16, v value) {
	if a.find(register) != nil {
		d.loaded[a.number(register)] = v
	}
}

func (d *reading) readCt(a attributes) {
	v := value{}
	direction := a.find(unix.NFTA_CT_DIRECTION)
	switch expr.CtKey(a.number(unix.NFTA_CT_KEY)) {
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
func (d *reading) compare(v value, op expr.CmpOp, data []byte) {
	switch {
	case v.what == ctState && len(data) == 4 && (op == expr.CmpOpEq || op == expr.CmpOpNeq):
		n := binary.NativeEndian.Uint32(data)
		states := n // of which one must be set
		if n == 0 {
			states, op = v.mask, expr.CmpOpEq+expr.CmpOpNeq-op
		}
		if op == expr.CmpOpNeq {
			states = ^states
		}
		d.match = d.match.and(match{states: states, stated: true})
	case v.what == ctHelperName && op == expr.CmpOpEq:
		d.match.helper = string(bytes.TrimRight(data, "\x00"))
	case v.what == protocol && op == expr.CmpOpEq && len(data) == 1:
		d.match.notTCP = data[0] != unix.IPPROTO_TCP
	case v.what == destinationPort && op != expr.CmpOpNeq && len(data) == 2:
		d.comparePort(op, binary.BigEndian.Uint16(data))
	default:
		d.match.other = true
	}
}

func (d *reading) comparePort(op expr.CmpOp, port uint16) {
	switch op {
	case expr.CmpOpEq:
		d.low, d.high = port, port
	case expr.CmpOpGte, expr.CmpOpGt: // one more or less does not matter
		d.low = max(d.low, port)
	case expr.CmpOpLte, expr.CmpOpLt:
		d.high = min(d.high, port)
	}
	d.match.ports = []rules.PortRange{{First: d.low, Last: d.high}}
}

// lookup reads sets of states and of ports, and maps of verdicts.
func (d *reading) lookup(a attributes) {
	v := d.loaded[a.number(unix.NFTA_LOOKUP_SREG)]
	toRegister := a.find(unix.NFTA_LOOKUP_DREG) != nil
	verdicts := toRegister && a.number(unix.NFTA_LOOKUP_DREG) == unix.NFT_REG_VERDICT
	inverted := a.number(unix.NFTA_LOOKUP_FLAGS) != 0
	if !verdicts && (v.what != ctState && v.what != destinationPort || inverted || toRegister) {
		d.match.other = true
		return
	}
	elements, err := d.rs.elements(d.rule.table, a.text(unix.NFTA_LOOKUP_SET))
	if err != nil {
		d.match.other = true
		return
	}
	if verdicts {
		for _, e := range elements {
			if e.verdict != nil {
				d.act(action{match: keyMatch(v, e), verdict: e.verdict})
			}
		}
		return
	}
	switch {
	case v.what == destinationPort && allHave(elements, 2):
		d.match.ports = portRanges(elements)
	case v.what == ctState && allHave(elements, 4):
		var states uint32
		for _, e := range elements {
			states |= binary.NativeEndian.Uint32(e.key)
		}
		d.match = d.match.and(match{states: states & v.mask, stated: true})
	default: // it begins with one of these, and goes on with something else
		d.match.other = true
	}
}

// keyMatch is the match of one element of a map.
func keyMatch(v value, e element) match {
	m := anything
	switch {
	case v.what == ctState && len(e.key) == 4:
		m.states, m.stated = binary.NativeEndian.Uint32(e.key)&v.mask, true
	case v.what == destinationPort && len(e.key) == 2 && !e.end:
		port := binary.BigEndian.Uint16(e.key)
		m.ports = []rules.PortRange{{First: port, Last: port}}
	default:
		m.other = true
	}
	return m
}

func allHave(elements []element, length int) bool {
	return !slices.ContainsFunc(elements, func(e element) bool { return len(e.key) != length })
}

// portRanges reads the elements of a set of ports, intervals or not. It is never nil.
func portRanges(elements []element) []rules.PortRange {
	slices.SortFunc(elements, func(a, b element) int {
		if c := bytes.Compare(a.key, b.key); c != 0 || a.end == b.end {
			return c
		}
		if a.end { // one ends where the next one begins
			return -1
		}
		return 1
	})
	intervals := slices.ContainsFunc(elements, func(e element) bool { return e.end })
	ranges := []rules.PortRange{}
	for _, e := range elements {
		port := binary.BigEndian.Uint16(e.key)
		switch {
		case !e.end && intervals:
			ranges = append(ranges, rules.PortRange{First: port, Last: 65535})
		case !e.end:
			ranges = append(ranges, rules.PortRange{First: port, Last: port})
		case len(ranges) > 0 && port > 0:
			ranges[len(ranges)-1].Last = port - 1
		}
	}
	return ranges
}

// matchXtables reads the states of iptables' matches conntrack and state. They have the same
// bits (xt_conntrack.h).
func (d *reading) matchXtables(a attributes) {
	const offset = 150 // of state_mask in struct xt_conntrack_mtinfo1, 2 and 3
	info := a.find(unix.NFTA_MATCH_INFO)
	revision := a.number(unix.NFTA_MATCH_REV)
	var states uint32
	switch name := a.text(unix.NFTA_MATCH_NAME); {
	case name == "conntrack" && revision == 1 && len(info) > offset:
		states = uint32(info[offset])
	case name == "conntrack" && revision > 1 && len(info) > offset+1:
		states = uint32(binary.NativeEndian.Uint16(info[offset:]))
	case name == "state" && len(info) >= 4:
		states = binary.NativeEndian.Uint32(info)
	}
	if states == 0 {
		d.match.other = true
		return
	}
	d.match = d.match.and(match{states: states, stated: true})
}

// attach reads "ct helper set", of one helper or out of a map.
func (d *reading) attach(a attributes) {
	if a.number(unix.NFTA_OBJREF_IMM_TYPE) == unix.NFT_OBJECT_CT_HELPER {
		d.attachObject(a.text(unix.NFTA_OBJREF_IMM_NAME), anything)
		return
	}
	if a.find(unix.NFTA_OBJREF_SET_NAME) == nil {
		return
	}
	// The map may be one of counters or of something else.
	elements, err := d.rs.elements(d.rule.table, a.text(unix.NFTA_OBJREF_SET_NAME))
	if err != nil {
		return
	}
	v := d.loaded[a.number(unix.NFTA_OBJREF_SET_SREG)]
	for _, e := range elements {
		d.attachObject(e.object, keyMatch(v, e))
	}
}

func (d *reading) attachObject(name string, m match) {
	if h, ok := d.rs.helpers[objectName{d.rule.table, name}]; ok {
		d.act(action{match: m, helper: &h})
	}
}

// target reads the helper of iptables' target CT (struct xt_ct_target_info_v1, xt_CT.h), and
// the targets of verdicts, which iptables-nft writes as nftables' own.
func (d *reading) target(a attributes) {
	const from, to = 12, 28
	info := a.find(unix.NFTA_TARGET_INFO)
	switch name := a.text(unix.NFTA_TARGET_NAME); {
	case name == "CT" && len(info) >= to:
		helper, _, _ := bytes.Cut(info[from:to], []byte{0})
		if len(helper) > 0 {
			d.act(action{match: anything, helper: &ctHelper{kind: string(helper), tcp: true}})
		}
	case name == "REJECT":
		d.act(action{match: anything, reject: true})
	}
}
